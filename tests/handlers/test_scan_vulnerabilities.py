"""scan-vulnerabilities: verdict, report and SBOM; what is never taken for clean; who is told of what; and crashes in between."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import random
import signal
import stat
import struct
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from handlers import vulnerabilities
from handlers.contracts.vulnerabilities import Scanned, ScanVulnerabilities, digest_of_paths
from handlers.kit import advisories as kit
from handlers.kit import scans
from handlers.kit.folders import MANIFEST, Manifest
from handlers.kit.lockfiles import Package
from handlers.kit.sbom import sbom
from handlers.vulnerabilities import scan_vulnerabilities
from runtime import BadPayload, ConfigError, Dead, Priority, Snooze
from runtime.jobs import Job, contract_of
from tests.builders import job
from tests.builders import job_of as made_job
from tests.handlers.advisories import SHOP, YESTERDAY, advisory, affected, packed, write_folder, zipped
from tests.handlers.conftest import Configure
from tests.handlers.disks import BORN_MS, FETCHED_MS, Disk, child, job_of, outcome, state
from tests.handlers.disks import until as poll
from tests.handlers.test_contracts import HOSTILE as CONTROLS
from tests.servers import Server
from tests.workers import working

GOOD = msgspec.json.encode(SHOP[2])
SAFE = "jinja-three==3.1.5\nlampshade==2.4\n"
BAD = "Jinja.Three==3.1.4\nlampshade==2.3.9\nother==1.0\n"


@pytest.fixture
def disk(tmp_path: Path, configure: Configure) -> Disk:
    disk = Disk(tmp_path)
    for name in ("out", "db", "logs", "src", "osv"):
        (tmp_path / name).mkdir()
    configure(settings(disk))
    write_folder(tmp_path / "osv" / "db", SHOP)
    put(disk, BAD)
    return disk


def settings(disk: Disk, more: str = "") -> str:
    return (
        f"{disk.settings()}roots.src = {{ path = '{disk.folder / 'src'}' }}\nroots.osv = {{ path = '{disk.folder / 'osv'}' }}\n"
        "advisories.osv = { path = 'osv:db' }\nchannels.ops = { kind = 'webhook', url = 'env:HOOK' }\n"
        f"channels.any = {{ kind = 'webhook', dynamic = true, hosts = ['*.example.org'] }}\n{more}"
    )


def put(disk: Disk, content: str, name: str = "requirements.txt") -> None:
    (disk.folder / "src" / name).write_text(content, "utf-8")


def put_npm(disk: Disk, packages: dict[str, Any]) -> None:
    put(disk, json.dumps({"lockfileVersion": 3, "packages": packages}), "package-lock.json")


def database(disk: Disk, *advisories: dict[str, Any]) -> None:
    """Have these advisories, and no others."""
    for path in (disk.folder / "osv" / "db").iterdir():
        path.unlink()
    write_folder(disk.folder / "osv" / "db", list(advisories))


def archive(disk: Disk, content: bytes) -> None:
    """Have a zip in place of the folder."""
    database(disk)
    (disk.folder / "osv" / "db" / "all.zip").write_bytes(content)


def message(**fields: Any) -> ScanVulnerabilities:
    return msgspec.convert({"targets": ["src:requirements.txt"], "to": "out:scans", **fields}, ScanVulnerabilities)


def run(asked: ScanVulnerabilities, number: int = 0, born_ms: int = BORN_MS) -> tuple[Scanned, Job]:
    """Run it in this process: in a child of a worker, it runs the same."""
    one = made_job(asked, f"{born_ms}-{number}", fetched_ms=FETCHED_MS)
    result = scan_vulnerabilities.function(asked, one)
    assert isinstance(result, Scanned)
    assert len(msgspec.json.encode(result)) <= 4096
    return result, one


def scan(disk: Disk, **fields: Any) -> tuple[Scanned, dict[str, Any]]:
    result, _ = run(message(**fields))
    return result, json.loads((disk.folder / result.report.replace(":", "/", 1)).read_bytes())


def folder_of(disk: Disk, result: Scanned) -> Path:
    return disk.folder / result.folder.replace(":", "/", 1)


def code_of(asked: ScanVulnerabilities) -> str:
    with pytest.raises(Dead) as caught:
        run(asked)
    return caught.value.code


def decode(payload: dict[str, Any]) -> ScanVulnerabilities:
    """Decode as the worker does."""
    return scan_vulnerabilities.decode(job("scan-vulnerabilities", data=msgspec.json.encode(payload)))


# --- the verdict ---------------------------------------------------------------------------------------------------------------


def test_a_vulnerable_package_is_a_result_with_what_fixes_it(disk: Disk) -> None:
    result, report = scan(disk)
    assert (result.verdict, result.packages, result.advisories_read, result.incomplete) == ("vulnerable", 3, 7, {})
    assert result.findings == {"critical": 0, "high": 1, "unknown": 0, "medium": 1, "low": 0}
    high, medium = report["findings"]
    assert (high["id"], high["package"], high["version"], high["fixed"]) == ("PYSEC-2023-2", "lampshade", "2.3.9", ["2.4"])
    assert (medium["id"], medium["aliases"]) == ("CVE-2023-1", ["GHSA-aaaa-bbbb-cccc", "PYSEC-2023-1"])
    assert medium["targets"] == ["src:requirements.txt"] and medium["purl"] == "pkg:pypi/jinja-three@3.1.4"
    assert (result.born, result.db_date) == ("2023-11-14T22:13:20Z", YESTERDAY)
    assert report["database"]["newest"] == {"PyPI": YESTERDAY}
    assert result.folder == f"out:scans/20231114T221320Z-{job_of(message()).work}"


def test_a_fixed_package_is_clean(disk: Disk) -> None:
    put(disk, SAFE)
    result, report = scan(disk)
    assert (result.verdict, set(result.findings.values()), report["findings"]) == ("clean", {0}, [])


@pytest.mark.parametrize(
    ("fail_on", "verdict"), [("low", "vulnerable"), ("medium", "vulnerable"), ("high", "clean"), ("critical", "clean")]
)
def test_findings_below_the_level_are_told_and_do_not_count(disk: Disk, fail_on: str, verdict: str) -> None:
    put(disk, "jinja-three==3.1.4")
    result, report = scan(disk, fail_on=fail_on)
    assert (result.verdict, result.findings["medium"], len(report["findings"])) == (verdict, 1, 1)


def test_a_finding_of_unknown_level_counts_whatever_was_asked_for(disk: Disk) -> None:
    put(disk, "nameless==1.0")
    result, _ = scan(disk, fail_on="critical")
    assert (result.verdict, result.findings["unknown"]) == ("vulnerable", 1)


def test_both_ecosystems_in_one_scan(disk: Disk) -> None:
    lock = {
        "lockfileVersion": 3,
        "packages": {"node_modules/@shop/desk": {"version": "4.17.20"}, "node_modules/chair": {"version": "1.0.0"}},
    }
    put(disk, json.dumps(lock), "package-lock.json")
    result, report = scan(disk, targets=["src:requirements.txt", "src:package-lock.json"])
    assert (result.packages, result.findings["critical"], result.findings["low"]) == (5, 1, 0)
    assert report["findings"][0]["purl"] == "pkg:npm/%40shop/desk@4.17.20"
    assert set(report["files"]) == {"src:requirements.txt", "src:package-lock.json"}


def test_a_package_of_two_targets_is_one_finding_that_names_both(disk: Disk) -> None:
    put(disk, "lampshade==2.3.9\n", "dev.txt")
    result, report = scan(disk, targets=["src:requirements.txt", "src:dev.txt"])
    assert (result.packages, result.findings["high"]) == (3, 1)
    assert report["findings"][0]["targets"] == ["src:requirements.txt", "src:dev.txt"]


def test_what_is_ignored_does_not_count_up_to_and_on_its_day(disk: Disk) -> None:
    put(disk, "lampshade==2.3.9\njinja-three==3.1.4")
    ignores = [
        {"id": "PYSEC-2023-2", "until": "2023-11-14", "reason": "not reachable"},
        {"id": "GHSA-aaaa-bbbb-cccc", "until": "2024-01-01", "reason": "by an alias"},
    ]
    result, report = scan(disk, ignore=ignores, fail_on="low")
    assert (result.verdict, result.ignored, set(result.findings.values())) == ("clean", 2, {0})
    assert report["findings"][0]["reason"] == "not reachable" and report["findings"][0]["ignored_until"] == "2023-11-14"
    ignores[0]["until"] = "2023-11-13"
    result, _ = scan(disk, ignore=ignores, fail_on="low")
    assert (result.verdict, result.ignored, result.findings["high"]) == ("vulnerable", 1, 1)


# --- silence is never clean ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("lamp", "unpinned"),
        ("lamp @ https://user:hunter2@example.org/lamp.whl", "url"),
        ("???", "unparsed"),
        ("-r more.txt", "unread"),
        ("-r ../../etc/passwd", "outside"),
        ("-r /etc/passwd", "outside"),
    ],
)
def test_what_could_not_be_judged_is_incomplete(disk: Disk, line: str, reason: str) -> None:
    put(disk, f"{SAFE}{line}\n")
    result, report = scan(disk)
    assert (result.verdict, result.incomplete, result.packages) == ("incomplete", {reason: 1}, 2)
    (gap,) = report["gaps"]
    assert (gap["reason"], gap["path"], gap["line"]) == (reason, "src:requirements.txt", 3)
    assert "hunter2" not in json.dumps(report) and "passwd" not in json.dumps(report)


def test_a_vulnerable_package_is_said_where_others_could_not_be_judged(disk: Disk) -> None:
    put(disk, f"{BAD}lamp\n")
    result, _ = scan(disk)
    assert (result.verdict, result.incomplete) == ("vulnerable", {"unpinned": 1})


def test_what_an_advisory_leaves_open_is_incomplete(disk: Disk) -> None:
    database(disk, *SHOP, advisory("X-1", affected("lampshade", "introduced 0, fixed odd-")))
    put(disk, SAFE)
    result, report = scan(disk)
    assert (result.verdict, result.undecided, result.incomplete) == ("incomplete", 1, {"undecided": 1})
    assert report["undecided"] == [{"id": "X-1", "purl": "pkg:pypi/lampshade@2.4", "targets": ["src:requirements.txt"]}]


def test_an_ecosystem_without_advisories_is_incomplete(disk: Disk) -> None:
    database(disk, *(each for each in SHOP if "npm" in each["id"]))
    put(disk, SAFE)
    result, report = scan(disk)
    assert (result.verdict, result.incomplete, result.db_date) == ("incomplete", {"no-advisories": 1}, None)
    assert report["gaps"] == [{"reason": "no-advisories", "path": "advisories.osv", "package": "PyPI"}]


@pytest.mark.parametrize(
    ("modified", "reason"),
    [
        ("2023-11-07T22:13:20Z", None),
        ("2023-11-07T22:13:19Z", "advisories-old"),
        ("2023-11-15T22:13:20Z", None),
        ("2023-11-07T22:13:20.123456789+00:00", None),
        ("9999-12-31T00:00:00Z", "advisories-undated"),
        (None, "advisories-undated"),
    ],
)
def test_an_old_database_is_incomplete(disk: Disk, modified: str | None, reason: str | None) -> None:
    database(disk, advisory("X-1", affected("unused", "introduced 0"), modified=modified))
    put(disk, SAFE)
    result, _ = scan(disk)
    assert (result.verdict, result.incomplete) == (("incomplete", {reason: 1}) if reason else ("clean", {}))
    assert (result.db_date is None) == (reason == "advisories-undated")


def test_of_two_ecosystems_the_older_one_counts(disk: Disk, configure: Configure) -> None:
    old = advisory("X-1", affected("x", "introduced 0", "npm"), modified="2023-11-01T00:00:00Z")
    database(disk, SHOP[2], old)
    put_npm(disk, {"node_modules/y": {"version": "1.0.0"}})
    put(disk, SAFE)
    both = ["src:requirements.txt", "src:package-lock.json"]
    result, _ = scan(disk, targets=both)
    assert (result.db_date, result.incomplete) == ("2023-11-01T00:00:00Z", {"advisories-old": 1})
    configure(settings(disk).replace("path = 'osv:db'", "path = 'osv:db', max_age_days = 30"))
    result, _ = run(message(targets=both), 1)
    assert result.verdict == "clean"


# --- the database --------------------------------------------------------------------------------------------------------------


def test_a_zip_says_what_its_folder_says(disk: Disk) -> None:
    first, report = scan(disk)
    database(disk)
    (disk.folder / "osv" / "db" / "PyPI").mkdir()
    (disk.folder / "osv" / "db" / "PyPI" / "all.zip").write_bytes(zipped(SHOP))
    result, other = run(message(), 1)[0], None
    other = json.loads((folder_of(disk, result) / "report.json").read_bytes())
    assert (result.verdict, other["findings"]) == (first.verdict, report["findings"])
    assert result.db_sha256 != first.db_sha256 and result.targets_sha256 == first.targets_sha256


def test_a_zip_may_be_named_itself(disk: Disk, configure: Configure) -> None:
    (disk.folder / "osv" / "all.zip").write_bytes(zipped(SHOP))
    configure(settings(disk).replace("osv:db", "osv:all.zip"))
    assert scan(disk)[0].advisories_read == 7


def test_the_digest_is_of_the_advisories_and_not_of_the_files(disk: Disk) -> None:
    archive(disk, packed({"a.json": b"{}", "b.json": msgspec.json.encode(SHOP[2])}))
    first = run(message(), 0)[0].db_sha256
    archive(disk, packed({"b.json": msgspec.json.encode(SHOP[2]), "a.json": b"{}"}))
    assert run(message(), 1)[0].db_sha256 == first
    archive(disk, packed({"b.json": msgspec.json.encode(SHOP[2]), "a.json": b"{ }"}))
    assert run(message(), 2)[0].db_sha256 != first


def bomb(size_bytes: int) -> bytes:
    return packed(
        {"good.json": msgspec.json.encode(SHOP[2]), "bomb.json": b'{"id": "A-1", "details": "' + b" " * size_bytes + b'"}'}
    )


def lying(content: bytes, size_bytes: int) -> bytes:
    """Return a zip that says of its last member that it is so small."""
    spoilt = bytearray(content)
    at = spoilt.rindex(b"PK\x01\x02")
    struct.pack_into("<I", spoilt, at + 24, size_bytes)
    return bytes(spoilt)


def of_kind(mode: int) -> bytes:
    out = io.BytesIO(packed({"good.json": GOOD}))
    with zipfile.ZipFile(out, "a") as zip_file:
        info = zipfile.ZipInfo("link.json")
        info.external_attr = mode << 16
        zip_file.writestr(info, msgspec.json.encode(SHOP[0]))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        packed({"good.json": GOOD, "../../evil.json": msgspec.json.encode(SHOP[0])}),
        packed({"good.json": GOOD, "/etc/evil.json": msgspec.json.encode(SHOP[0])}),
        packed({"good.json": GOOD, "a\\..\\evil.json": msgspec.json.encode(SHOP[0])}),
        packed({"good.json": GOOD, "evil.exe": b"x"}),
        packed({"good.json": GOOD, "inner.zip": zipped(SHOP)}),
        packed({"good.json": GOOD, "list.json": b"[]"}),
        packed({"good.json": GOOD, "odd.json": b'{"id": "\\u001b[2J"}'}),
        packed({"good.json": GOOD, "text.json": b"\xff\xfe"}),
        packed({"good.json": GOOD, "types.json": b'{"id": "A-1", "affected": [{"package": 1}]}'}),
        bomb(2 * 2**20),
        bomb(10 * 2**20),
        lying(bomb(10 * 2**20), 10),
        of_kind(stat.S_IFLNK | 0o777),
        of_kind(stat.S_IFIFO | 0o600),
    ],
)
def test_what_is_no_advisory_in_a_zip_is_counted_and_not_read(disk: Disk, content: bytes) -> None:
    archive(disk, content)
    put(disk, SAFE)
    before = disk.names(disk.folder)
    result, report = scan(disk)
    assert result.verdict == "incomplete" and result.incomplete["advisories-unread"] == 1
    assert report["database"]["unread"] == 1
    assert result.advisories_read == (0 if b"good.json" not in content else 1)
    new = {name for name in disk.names(disk.folder) if name not in before}
    assert all(name.startswith("out/scans") for name in new)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06", b"x" * 100, zipped(SHOP)[:200], zipped(SHOP)[300:]])
def test_a_broken_zip_is_waited_for(disk: Disk, content: bytes) -> None:
    archive(disk, content)
    with pytest.raises(Snooze, match="alias-missing: advisories.osv: osv:db holds no advisory"):
        run(message())


def test_whatever_is_wrong_with_a_zip_there_is_a_verdict_or_a_wait(disk: Disk) -> None:
    put(disk, SAFE)
    chance, whole = random.Random(7), zipped(SHOP)
    for number in range(150):
        spoilt = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            spoilt[chance.randrange(len(spoilt))] = chance.randrange(256)
        archive(disk, bytes(spoilt))
        try:
            result, _ = run(message(sbom=False), number)
        except Snooze as error:
            assert str(error).startswith("alias-missing: advisories.osv")
        else:
            assert result.verdict != "clean" or result.advisories_read == len(SHOP)


def test_a_zip_of_very_many_members_says_their_number_elsewhere(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    put(disk, SAFE)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 3)
    whole = zipped(SHOP)
    end = whole.rindex(b"PK\x05\x06")
    whole = whole[: end + 8] + b"\xff" * 4 + whole[end + 12 :]
    archive(disk, whole)
    assert b"PK\x06\x06" in whole and scan(disk)[0].incomplete == {}
    at = whole.index(b"PK\x06\x06") + 32
    archive(disk, whole[:at] + b"\x09" + whole[at + 1 :])
    assert run(message(), 1)[0].incomplete == {"advisories-unread": 1}


def test_a_damaged_member_is_counted(disk: Disk) -> None:
    content = bytearray(packed({"a.json": GOOD, "b.json": msgspec.json.encode(SHOP[0])}))
    at = content.index(b"b.json") + 20
    content[at] ^= 0xFF
    archive(disk, bytes(content))
    assert scan(disk)[0].incomplete == {"advisories-unread": 1}


def test_links_in_a_folder_are_counted_and_not_followed(disk: Disk, tmp_path: Path) -> None:
    put(disk, SAFE)
    write_folder(tmp_path / "far", [advisory("FAR-1", affected("lampshade", "introduced 0"))])
    (disk.folder / "osv" / "db" / "link.json").symlink_to(tmp_path / "far" / "FAR-1.json")
    (disk.folder / "osv" / "db" / "folder").symlink_to(tmp_path / "far")
    result, _ = scan(disk)
    assert (result.verdict, result.incomplete) == ("incomplete", {"advisories-unread": 2})


@pytest.mark.parametrize(
    "text", ['{"id": "A-1", "x": ' + "[" * 200_000, '{"id":' * 200_000, "[" * 200_000, '{"affected":[' * 9000]
)
def test_deep_json_is_counted_and_not_followed(disk: Disk, text: str) -> None:
    put(disk, SAFE)
    (disk.folder / "osv" / "db" / "deep.json").write_text(text)
    assert scan(disk)[0].incomplete == {"advisories-unread": 1}


def test_yaml_is_not_read_and_not_taken_for_nothing(disk: Disk) -> None:
    put(disk, SAFE)
    (disk.folder / "osv" / "db" / "PYSEC-2023-9.yaml").write_text("id: PYSEC-2023-9\n")
    (disk.folder / "osv" / "db" / "README.md").write_text("for people\n")
    (disk.folder / "osv" / "db" / ".gitignore").write_text("x\n")
    assert scan(disk)[0].incomplete == {"advisories-unread": 1}
    database(disk)
    (disk.folder / "osv" / "db" / "PYSEC-2023-9.yaml").write_text("id: PYSEC-2023-9\n")
    with pytest.raises(Snooze, match="YAML is not read"):
        run(message(), 1)


def test_a_database_is_bounded(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("MAX_ADVISORIES", "MAX_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(kit, limit, 3)
            with pytest.raises(Snooze, match="too-large: advisories.osv"):
                run(message())


def test_findings_are_bounded(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scans, "MAX_FINDINGS", 1)
    assert code_of(message()) == "too-large"


# --- report and SBOM -----------------------------------------------------------------------------------------------------------


def test_the_bill_is_valid_and_lists_every_package(disk: Disk) -> None:
    put_npm(disk, {"node_modules/@shop/desk": {"version": "4.0.0+b"}})
    put(disk, f"{BAD}epoch==1!2.0+cpu\n")
    result, _ = scan(disk, targets=["src:requirements.txt", "src:package-lock.json"])
    text = (folder_of(disk, result) / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    assert [each["purl"] for each in bill["components"]] == [
        "pkg:pypi/epoch@1%212.0%2Bcpu",
        "pkg:pypi/jinja-three@3.1.4",
        "pkg:pypi/lampshade@2.3.9",
        "pkg:pypi/other@1.0",
        "pkg:npm/%40shop/desk@4.0.0%2Bb",
    ]
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20Z"
    for each in bill["components"]:
        known = PackageURL.from_string(each["purl"])
        assert (known.namespace, known.name, known.version) == (each.get("group"), each["name"], each["version"])
        assert known.to_string() == each["purl"]
    assert bill["components"][-1]["group"] == "@shop" and bill["serialNumber"].startswith("urn:uuid:")


def test_a_bill_has_equal_bytes_in_whatever_order_packages_come() -> None:
    born, packages = datetime.fromtimestamp(0, UTC), [Package("PyPI", f"p{n}", "1") for n in range(50)]
    assert sbom(packages, "w", born) == sbom(packages[::-1], "w", born)
    assert sbom(packages, "w", born) != sbom(packages, "v", born)


def test_without_a_bill(disk: Disk) -> None:
    result, _ = scan(disk, sbom=False)
    assert result.sbom is None
    assert sorted(path.name for path in folder_of(disk, result).iterdir()) == [MANIFEST, "report.json"]


def test_the_manifest_is_evidence(disk: Disk) -> None:
    """What a report on compliance reads: kind, verdict, packages, times."""
    result, _ = scan(disk)
    manifest = msgspec.json.decode((folder_of(disk, result) / MANIFEST).read_bytes(), type=Manifest)
    known = json.loads(bytes(manifest.result))
    assert msgspec.json.decode(manifest.result, type=Scanned) == result
    assert (known["kind"], known["verdict"], known["packages"]) == ("scan-vulnerabilities", "vulnerable", 3)
    assert (known["born"], known["db_date"]) == ("2023-11-14T22:13:20Z", YESTERDAY)
    assert [file.name for file in manifest.files] == ["report.json", "sbom.cdx.json"]


def test_the_evidence_says_what_was_asked_and_tells_scans_of_one_folder_apart(disk: Disk) -> None:
    put(disk, SAFE, "other.txt")
    both, _ = scan(disk, targets=["src:requirements.txt", "src:other.txt"], fail_on="low")
    assert (both.fail_on, both.advisories, both.ignored) == ("low", "osv", 0)
    assert both.paths_sha256 == digest_of_paths(["src:other.txt", "src:requirements.txt"])
    one, _ = run(message(ignore=[{"id": "PYSEC-2023-2", "until": "2099-01-01", "reason": "x"}]), 1)
    assert (one.fail_on, one.ignored) == ("high", 1) and one.paths_sha256 != both.paths_sha256
    put(disk, SAFE)
    assert run(message(), 2)[0].paths_sha256 == one.paths_sha256, "of the paths alone"


def test_equal_files_and_advisories_make_equal_bytes(disk: Disk) -> None:
    def content(number: int) -> bytes:
        return (folder_of(disk, run(message(), number)[0]) / "report.json").read_bytes()

    assert content(0) == content(1)


@pytest.mark.parametrize("text", ["\x1b[2J", "<script>alert(1)</script>", "[bold]x[/bold]", "@everyone", "\u202ex", "x" * 9000])
def test_hostile_text_reaches_neither_report_nor_bill_nor_message(disk: Disk, text: str) -> None:
    npm = {f"node_modules/{text}": {"version": "1.0.0"}, "node_modules/chair": {"version": "0.1.0"}}
    put_npm(disk, {**npm, "node_modules/x": {"version": text}})
    put(disk, f"{text}==1.0\nlampshade==2.3.9\n-r {text}.txt\nlamp @ https://x/{text}\n")
    what = affected("lampshade", f"introduced 0, fixed {text.replace(' ', '')}")
    hostile = [
        advisory("A-1", what, details=text, summary=text, aliases=[text]),
        advisory("A-2", affected("chair", "introduced 0", "npm"), database_specific={"severity": text}),
        advisory("A-3", affected(text, "introduced 0", "npm")),
    ]
    database(disk, *SHOP, *hostile)
    result, one = run(message(targets=["src:requirements.txt", "src:package-lock.json"], notify="ops"))
    files = b"".join(path.read_bytes() for path in folder_of(disk, result).iterdir())
    said = files + b"".join(packed.data for packed in one.followers)
    assert text.encode() not in said and json.dumps(text)[1:-1].encode() not in said
    assert result.verdict == "vulnerable" and one.followers


# --- who is told ---------------------------------------------------------------------------------------------------------------


def alerts(one: Job) -> list[dict[str, Any]]:
    return [said for said in (msgspec.json.decode(packed.data) for packed in one.followers) if "title" in said]


def tell(asked: ScanVulnerabilities, number: int = 0, born_ms: int = BORN_MS) -> tuple[Scanned, Job]:
    """Run it, and the job that notes that people were told, as a worker does when the scan is done."""
    result, one = run(asked, number, born_ms)
    for follower in one.followers:
        if follower.head.id.endswith(":confirm"):
            again = msgspec.json.decode(follower.data, type=ScanVulnerabilities)
            noted = made_job(again, f"{born_ms}-9{number}", fetched_ms=FETCHED_MS)
            assert scan_vulnerabilities.function(again, noted) is None and not noted.followers
    return result, one


def test_a_channel_hears_of_each_finding_that_counts(disk: Disk) -> None:
    result, one = run(message(notify="ops"))
    (said,) = alerts(one)
    assert (result.alerted, said["channel"], said["level"]) == (1, "ops", "critical")
    assert said["title"] == "PYSEC-2023-2 (high) in lampshade 2.3.9"
    assert said["body"] == f"Fixed in 2.4\nsrc:requirements.txt\n\n{result.report}"
    assert said["data"] == {"id": "PYSEC-2023-2", "level": "high", "purl": "pkg:pypi/lampshade@2.3.9"}
    packed, noted = one.followers
    assert noted.head.id == f"{one.work}:confirm"
    assert packed.head.stream == Priority.CRITICAL - 1 and packed.head.id.startswith(f"{one.work}:")
    assert not run(message(), 1)[1].followers, "nobody is told where no channel is named"


def test_a_later_scan_tells_only_what_is_new(disk: Disk) -> None:
    hour_ms = 3_600_000
    assert tell(message(notify="ops"), 0)[0].alerted == 1
    assert tell(message(notify="ops"), 0, BORN_MS + hour_ms)[0].alerted == 0
    database(disk, *SHOP, advisory("NEW-1", affected("other", "introduced 0")))
    later, one = tell(message(notify="ops"), 0, BORN_MS + 2 * hour_ms)
    assert later.alerted == 1 and [each["data"]["id"] for each in alerts(one)] == ["NEW-1"]
    assert tell(message(notify="ops"), 0, BORN_MS + 3 * hour_ms)[0].alerted == 0
    put(disk, f"{BAD}# other bytes\n")
    assert tell(message(notify="ops"), 0, BORN_MS + 4 * hour_ms)[0].alerted == 2, "other files are told of by themselves"


def test_what_a_scan_was_to_tell_and_was_cancelled_the_next_one_tells(disk: Disk) -> None:
    """It is killed after its folder is published, and never run again."""
    hour_ms = 3_600_000
    killed = child(disk, message(notify="ops"), point="folder-named")
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    database(disk, *SHOP, advisory("NEW-1", affected("other", "introduced 0")))
    assert run(message(notify="ops"), 0, BORN_MS + hour_ms)[0].alerted == 2
    assert tell(message(notify="ops"), 0, BORN_MS + 2 * hour_ms)[0].alerted == 2, "nor was the other one done"
    assert tell(message(notify="ops"), 0, BORN_MS + 3 * hour_ms)[0].alerted == 0
    assert tell(message(notify="ops"), 0, BORN_MS + 4 * hour_ms)[0].alerted == 0, "a scan that tells nothing has nothing to note"


@pytest.mark.parametrize("point", ["scan-before-confirm", "scan-confirmed"])
def test_a_note_that_people_were_told_may_be_killed_and_repeated(disk: Disk, point: str) -> None:
    result, one = run(message(notify="ops"))
    noted = msgspec.json.decode(one.followers[-1].data, type=ScanVulnerabilities)
    killed = child(disk, noted, point=point)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    for _ in range(2):
        assert scan_vulnerabilities.function(noted, job_of(noted)) is None
    assert run(message(notify="ops"))[0] == result, "the folder is still that of the scan"
    assert run(message(notify="ops"), 0, BORN_MS + 1000)[0].alerted == 0


def test_a_note_about_a_scan_that_was_deleted_is_nothing(disk: Disk) -> None:
    noted = message(notify="ops", confirm="20231114T221320Z-" + "a" * 26)
    assert scan_vulnerabilities.function(noted, job_of(noted)) is None and not list(disk.out.iterdir())
    for bad in ("..", "../x", "a", "20231114T221320Z-" + "a" * 26 + "\n"):
        with pytest.raises(BadPayload):
            decode({"targets": ["src:requirements.txt"], "to": "out:scans", "confirm": bad})


def test_an_older_scan_that_is_late_tells_nothing_again(disk: Disk) -> None:
    assert tell(message(notify="ops"), 0, BORN_MS + 1000)[0].alerted == 1
    assert tell(message(notify="ops"))[0].alerted == 0


def test_what_was_fixed_and_comes_back_is_told_again(disk: Disk) -> None:
    hour_ms = 3_600_000
    assert tell(message(notify="ops"))[0].alerted == 1
    database(disk, SHOP[1])
    assert tell(message(notify="ops"), 0, BORN_MS + hour_ms)[0].alerted == 0
    database(disk, *SHOP)
    assert tell(message(notify="ops"), 0, BORN_MS + 2 * hour_ms)[0].alerted == 1


def test_what_is_told_to_one_channel_is_not_told_to_another(disk: Disk, configure: Configure) -> None:
    configure(settings(disk, "channels.more = { kind = 'webhook', url = 'env:HOOK' }\n"))
    assert tell(message(notify="ops"))[0].alerted == 1
    assert tell(message(notify="more"), 0, BORN_MS + 1000)[0].alerted == 1


def test_of_very_many_findings_one_message_says_how_many_more(disk: Disk) -> None:
    database(disk, *(advisory(f"N-{n}", affected("lampshade", "introduced 0")) for n in range(150)))
    result, one = tell(message(notify="ops"))
    told = alerts(one)
    assert (result.alerted, len(told)) == (150, vulnerabilities.MAX_ALERTS + 1)
    assert told[-1]["title"] == f"{150 - vulnerabilities.MAX_ALERTS} more vulnerabilities"
    assert tell(message(notify="ops"), 0, BORN_MS + 1000)[0].alerted == 0


def test_the_longest_names_fit_into_a_message_and_the_result(disk: Disk) -> None:
    package, version, deep = "p" * 214, "1" * 120, "/".join(["f" * 100] * 4)
    fixes = ", ".join(f"introduced 0, fixed {n}{'2' * 120}" for n in range(1, 30))
    database(disk, advisory("I" * 100, affected(package, fixes)))
    names = [f"{deep}/{n}.txt" for n in range(9)]
    (disk.folder / "src" / deep).mkdir(parents=True)
    for name in names:
        put(disk, f"{package}=={version}", name)
    result, one = tell(message(targets=[f"src:{name}" for name in names], to=f"out:{deep}", notify="ops"))
    assert result.alerted == 1 and len(alerts(one)[0]["title"]) == 200


def test_reports_that_are_not_ours_are_passed_over(disk: Disk) -> None:
    for name, content in [("20230101T000000Z-" + "a" * 26, "{}"), ("20230102T000000Z-" + "b" * 26, "\x00"), ("other", "{}")]:
        (disk.out / "scans" / name).mkdir(parents=True)
        (disk.out / "scans" / name / "report.json").write_text(content)
    (disk.out / "scans" / ("20230103T000000Z-" + "c" * 26)).touch()
    (disk.out / "scans" / ("20230104T000000Z-" + "d" * 26)).symlink_to(disk.out)
    assert tell(message(notify="ops"))[0].alerted == 1


# --- repeats and crashes -------------------------------------------------------------------------------------------------------


def test_a_repeat_finds_the_folder_and_sends_the_same_jobs(disk: Disk) -> None:
    first, one = run(message(notify="ops"))
    before = state(folder_of(disk, first))
    put(disk, SAFE)
    database(disk, SHOP[0])
    second, two = run(message(notify="ops"))
    assert second == first and state(folder_of(disk, first)) == before
    assert [(packed.head.id, packed.data) for packed in one.followers] == [
        (packed.head.id, packed.data) for packed in two.followers
    ]


def test_a_folder_that_was_changed_is_not_taken_for_ours(disk: Disk) -> None:
    result, _ = run(message())
    (folder_of(disk, result) / "report.json").write_text("{}")
    assert code_of(message()) == "output-exists"


@pytest.mark.parametrize(("point", "times"), [("scan-file", 1), ("scan-file", 2), ("folder-ready", 1), ("folder-named", 1)])
def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(disk: Disk, point: str, times: int) -> None:
    asked = message(notify="ops")
    killed = child(disk, asked, point=point, times=times)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    visible = [name for name in disk.names(disk.out) if name.endswith("report.json") and "/." not in name]
    assert len(visible) == (point == "folder-named")
    result, one = run(asked)
    assert [packed.head.id.startswith(f"{one.work}:") for packed in one.followers] == [True, True] and result.alerted == 1
    report = (folder_of(disk, result) / "report.json").read_bytes()
    assert not [name for name in disk.names(disk.out) if name.endswith(".part")]
    undisturbed, other = run(message(notify="ops", to="out:other"))
    assert (folder_of(disk, undisturbed) / "report.json").read_bytes() == report
    assert [alert["title"] for alert in alerts(other)] == [alert["title"] for alert in alerts(one)]


def test_two_runs_at_once_do_not_meet(disk: Disk) -> None:
    asked = message()
    name = f"20231114T221320Z-{job_of(asked).work}"
    part = disk.out / "scans" / f".{name}.{job_of(asked).work}.part"
    part.mkdir(parents=True)
    held = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Snooze, match="locked"):
            run(asked)
    finally:
        os.close(held)
    assert run(asked)[0].verdict == "vulnerable"


def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    said = outcome(child(disk, message(), file_bytes=100))
    assert said.startswith("Snooze: out-of-space: roots.out"), said
    assert not [name for name in disk.names(disk.out) if name != "scans"]


async def test_a_cancel_leaves_nothing_visible(disk: Disk) -> None:
    """The advisories are a folder of very many files, so that the child is still reading them when it is killed."""
    many = [advisory(f"M-{n}", affected(f"p{n}", "introduced 0"), details="x" * 2000) for n in range(30_000)]
    archive(disk, zipped(many))
    asked = message()
    task = asyncio.create_task(scan_vulnerabilities.run(asked, job_of(asked)))
    await asyncio.to_thread(poll, (disk.out / "scans").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not [path for path in disk.out.rglob("*") if path.is_file()]


async def test_a_plain_message_comes_all_the_way_and_people_are_told_once(disk: Disk, valkey: Server) -> None:
    client = valkey.client()
    payload = {"targets": ["src:requirements.txt"], "to": "out:scans", "notify": "ops"}
    client.xadd("{jobs}:medium", {"type": "scan-vulnerabilities", "data": msgspec.json.encode(payload)}, id=f"{BORN_MS}-0")
    async with working(valkey.url, scan_vulnerabilities):
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:medium") == 0)
    assert client.xlen("{jobs}:dead") == 0
    assert len(list(disk.out.rglob("report.json"))) == len(list(disk.out.rglob(scans.TOLD))) == 1
    sent = client.xrange("{jobs}:critical")
    assert len(sent) == 1, sent
    assert "send-notification" in str(sent)
    client.close()


# --- settings ------------------------------------------------------------------------------------------------------------------


def test_scans_of_the_settings_are_schedules(disk: Disk, configure: Configure) -> None:
    configure(
        settings(
            disk,
            "scans.shop = { targets = ['src:requirements.txt'], to = 'out:scans', fail_on = 'medium', notify = 'ops',"
            " ignore = [{ id = 'CVE-2023-1', until = 2024-01-01, reason = 'not used' }] }\n"
            "scans.night = { targets = ['src:uv.lock'], to = 'out:scans', when = '0 3 * * *', tz = 'Europe/Berlin' }\n"
            "scans.off = { targets = ['src:uv.lock'], to = 'out:scans', enabled = false }\n",
        )
    )
    found = {schedule.name: schedule for schedule in vulnerabilities.SCHEDULES()}
    assert list(found) == ["scan-vulnerabilities.shop", "scan-vulnerabilities.night"]
    assert [schedule.when for schedule in found.values()] == ["35 */6 * * *", "0 3 * * *"]
    assert {(schedule.missed, schedule.expires_s) for schedule in found.values()} == {("latest", 21_600)}
    shop = decode(msgspec.to_builtins(found["scan-vulnerabilities.shop"].message))
    assert (shop.fail_on, shop.notify, shop.ignore[0].id) == ("medium", "ops", "CVE-2023-1")


@pytest.mark.parametrize(
    "text",
    [
        "scans.x = { targets = ['none:uv.lock'], to = 'out:scans' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'none:scans' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'db:scans' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'out:scans', advisories = 'none' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'out:scans', notify = 'none' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'out:scans', notify = 'any' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'out:scans', fail_on = 'severe' }",
        "scans.x = { targets = ['src:setup.py'], to = 'out:scans' }",
        "scans.x = { targets = [], to = 'out:scans' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'out:scans', tz = 'Mars' }",
        "scans.x = { targets = ['src:uv.lock'], to = 'out:scans', when = 'often' }",
        "scans.x = 1",
        "advisories.x = { path = '/etc' }",
        "advisories.x = { path = 'osv:../db' }",
        "advisories.x = { path = 'osv:db', max_age_days = 0 }",
        "advisories.x = { path = 'osv:db', url = 'https://osv.dev' }",
    ],
)
def test_settings_that_make_no_sense_end_the_start(disk: Disk, configure: Configure, text: str) -> None:
    configure(settings(disk, f"{text}\n"))
    with pytest.raises(ConfigError):
        vulnerabilities.SCHEDULES()


def test_settings_that_must_be_fixed_make_the_job_wait(disk: Disk, configure: Configure) -> None:
    for asked, wanted in [
        (message(advisories="none"), "advisories.none"),
        (message(to="none:x"), "roots.none"),
        (message(targets=["none:uv.lock"]), "roots.none"),
        (message(notify="none"), "channels.none"),
    ]:
        with pytest.raises(Snooze, match=f"alias-missing: {wanted}"):
            run(asked)
    configure(settings(disk).replace("osv:db", "osv:gone"))
    with pytest.raises(Snooze, match=r"alias-missing: advisories.osv: osv:gone: No such file"):
        run(message())
    (disk.folder / "osv" / "gone").symlink_to(disk.folder / "osv" / "db")
    with pytest.raises(Snooze, match=r"alias-missing: advisories.osv"):
        run(message())
    assert code_of(message(to="db:x")) == "bad-path"
    assert code_of(message(notify="any")) == "bad-payload"


def test_links_on_the_way_are_refused(disk: Disk) -> None:
    (disk.out / "scans").symlink_to(disk.folder / "db")
    assert code_of(message()) == "bad-path"


def test_the_doctor_looks_at_each_database(disk: Disk, configure: Configure) -> None:
    configure(settings(disk, "advisories.gone = { path = 'osv:gone' }\nadvisories.zip = { path = 'osv:x.zip' }\n"))
    (disk.folder / "osv" / "x.zip").write_bytes(packed({"a.json": msgspec.json.encode({**SHOP[0], "modified": None})}))
    osv, gone, empty = vulnerabilities.CHECKS()
    assert (
        osv.level == "warning"
        and osv.what == "advisories.osv: 7 advisories, PyPI of 2023-11-13, npm of 2023-11-13; 0 could not be read"
    )
    assert gone.level == "error" and "osv:gone" in gone.what
    assert empty.level == "warning" and "without a date" in empty.what


# --- the contract --------------------------------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    declared = scan_vulnerabilities
    assert (declared.timeout_s, declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s) == (600, 4, 60, 600)
    assert contract_of(ScanVulnerabilities).priority is Priority.MEDIUM
    assert declared.runs == "process" and declared.result is not None


FULL: dict[str, Any] = {
    "targets": ["src:requirements.txt", "src:deep/uv.lock"],
    "to": "out:scans",
    "advisories": "osv",
    "sbom": False,
    "fail_on": "low",
    "ignore": [{"id": "CVE-2023-1", "until": "2024-01-01", "reason": "not used"}],
    "notify": "ops",
}


def test_what_the_contract_offers_is_accepted() -> None:
    assert decode(FULL).fail_on == "low"
    for name in (
        "a.txt",
        "pylock.toml",
        "pylock.dev.toml",
        "poetry.lock",
        "Pipfile.lock",
        "x/package-lock.json",
        "npm-shrinkwrap.json",
    ):
        assert decode({"targets": [f"src:{name}"], "to": "out:s"}).sbom


@pytest.mark.parametrize("tail", [*CONTROLS, "\n"])
@pytest.mark.parametrize("field", ["to", "advisories", "notify", "targets", "id", "reason"])
def test_no_text_may_hold_a_control_character(field: str, tail: str) -> None:
    ignore = {"id": "CVE-2023-1", "until": "2024-01-01", "reason": "not used"}
    if field == "targets":
        change: dict[str, Any] = {"targets": [f"src:uv.lock{tail}"]}
    elif field in ignore:
        change = {"ignore": [{**ignore, field: f"{ignore[field]}{tail}"}]}
    else:
        change = {field: f"{FULL[field]}{tail}"}
    with pytest.raises(BadPayload, match=r"\$\."):
        decode({**FULL, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"targets": []},
        {"targets": ["src:uv.lock"] * 2},
        {"targets": [f"src:{n}.txt" for n in range(51)]},
        {"targets": ["src:setup.py"]},
        {"targets": ["src:conda.yaml"]},
        {"targets": ["src:xuv.lock"]},
        {"targets": ["../uv.lock"]},
        {"targets": ["src:../uv.lock"]},
        {"targets": ["src:/etc/uv.lock"]},
        {"targets": ["src:a\u0308.txt"]},
        {"targets": "src:uv.lock"},
        {"to": "out"},
        {"to": "out:a\u0308"},
        {"advisories": "https://osv.dev"},
        {"fail_on": "unknown"},
        {"ignore": [{"id": "CVE-1", "until": "2024-01-01"}]},
        {"ignore": [{"id": "CVE-1", "until": "2024-01-01", "reason": ""}]},
        {"ignore": [{"id": "CVE-1", "until": "2024-01-01", "reason": "x" * 201}]},
        {"ignore": [{"id": "CVE-1", "until": "for ever", "reason": "x"}]},
        {"ignore": [{"id": "", "until": "2024-01-01", "reason": "x"}]},
        {"ignore": [{"id": "../x", "until": "2024-01-01", "reason": "x"}]},
        {"ignore": [{"id": "CVE-1", "until": "2024-01-01", "reason": "x"}] * 201},
        {"notify": "https://x"},
        {"more": 1},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})
