"""Advisories of invented packages in OSV's JSON, for tests: none is a real one, so that each edge is there and nothing else."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import msgspec

YESTERDAY = "2023-11-13T00:00:00Z"  # before the jobs of tests were born

HIGH = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N"  # 7.5, by the calculator of first.org


def events(text: str) -> list[dict[str, str]]:
    """Return the events of `introduced 0, fixed 1.2`."""
    return [dict([part.split()]) for part in text.split(", ")] if text else []


def affected(name: str, text: str = "", ecosystem: str = "PyPI", **fields: Any) -> dict[str, Any]:
    """Return what an advisory says of one package."""
    kind = "SEMVER" if ecosystem == "npm" else "ECOSYSTEM"
    ranges = [{"type": kind, "events": events(text)}] if text else []
    return {"package": {"ecosystem": ecosystem, "name": name}, "ranges": ranges, **fields}


def advisory(name: str, *about: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return an advisory."""
    return {"id": name, "modified": YESTERDAY, "affected": list(about), "details": "A text for people.", **fields}


SHOP = [
    advisory("PYSEC-2023-1", affected("Jinja.Three", "introduced 0, fixed 3.1.5"), aliases=["CVE-2023-1", "GHSA-aaaa-bbbb-cccc"]),
    advisory(
        "GHSA-aaaa-bbbb-cccc",
        affected("jinja-three", "introduced 0, fixed 3.1.5"),
        aliases=["CVE-2023-1"],
        database_specific={"severity": "MODERATE"},
    ),
    advisory("PYSEC-2023-2", affected("lampshade", "introduced 2.0, fixed 2.4"), severity=[{"type": "CVSS_V3", "score": HIGH}]),
    advisory("PYSEC-2023-3", affected("nameless", "introduced 0")),
    advisory("PYSEC-2023-4", affected("lampshade", "introduced 0"), withdrawn=YESTERDAY),
    advisory(
        "GHSA-npm1-npm1-npm1",
        affected("@shop/desk", "introduced 0, fixed 4.17.21", "npm"),
        aliases=["CVE-2023-9"],
        database_specific={"severity": "CRITICAL"},
    ),
    advisory("GHSA-npm2-npm2-npm2", affected("chair", "introduced 0, fixed 1.0.0", "npm"), database_specific={"severity": "LOW"}),
]


def write_folder(folder: Path, advisories: list[dict[str, Any]]) -> None:
    """Write each advisory as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in advisories:
        (folder / f"{each['id']}.json").write_bytes(msgspec.json.encode(each))


def zipped(advisories: list[dict[str, Any]]) -> bytes:
    """Return a zip as osv.dev has it."""
    return packed({f"{each['id']}.json": msgspec.json.encode(each) for each in advisories})


def packed(members: dict[str, bytes]) -> bytes:
    """Return a zip of members by their names."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()
