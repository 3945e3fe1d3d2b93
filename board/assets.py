"""Assets are the built pages, read once at the start: what is served is a look into a dictionary, never a path on the disk."""

from __future__ import annotations

import gzip
import mimetypes
import re
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Final

import msgspec

# The first words of the pages' addresses, each of which the one page answers: it finds out itself what to show.
PAGES: Final = frozenset(
    (
        "",
        "overview",
        "login",
        "jobs",
        "job",
        "dead",
        "letter",
        "trash",
        "types",
        "type",
        "workers",
        "worker",
        "schedules",
        "queue",
        "system",
    )
)
INDEX: Final = "index.html"
FOREVER: Final = "public, max-age=31536000, immutable"  # of names that change with what is in them
PACKED: Final = (("br", ".br"), ("gzip", ".gz"))  # the better one first
_HASHED: Final = re.compile(r"[.-][A-Za-z0-9_-]{8,}\.[a-z0-9]+")
_KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
_TEXTS: Final = frozenset((".html", ".js", ".css", ".svg"))  # what is packed here where the build has not: a third is left of it


class Asset(msgspec.Struct, frozen=True):
    """One file: its bytes by how they are packed (`br`, `gzip`, or nothing), and its headers."""

    bodies: dict[str, bytes]
    headers: dict[str, str]


class Assets:
    """Owns the files of the pages. Without a built page, as in a fresh clone, there are none."""

    def __init__(self, folder: Traversable | None = None) -> None:
        files = dict(_files(folder if folder is not None else resources.files("board") / "static", ""))
        self._assets = {path: _asset(path, files) for path in files if not path.endswith((".br", ".gz"))}

    def __repr__(self) -> str:
        return f"<Assets, {len(self._assets)} files>"

    @property
    def is_built(self) -> bool:
        """Return whether there is a page at all."""
        return INDEX in self._assets

    def find(self, path: str) -> Asset | None:
        """Return the file of this path, without a slash in front; the page itself where it is one of its addresses."""
        if path in PAGES:
            return self._assets.get(INDEX)
        return self._assets.get(path)


def packing_of(asset: Asset, accepted: str) -> str:
    """Return how a file is sent to a browser that accepts this."""
    takes = {part.partition(";")[0].strip() for part in accepted.split(",") if not part.replace(" ", "").endswith(";q=0")}
    return next((name for name, _ in PACKED if name in takes and name in asset.bodies), "")


def _files(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    if not folder.is_dir():
        return []
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += _files(entry, f"{prefix}{entry.name}/")
        elif entry.is_file():
            found.append((f"{prefix}{entry.name}", entry.read_bytes()))
    return found


def _asset(path: str, files: dict[str, bytes]) -> Asset:
    bodies = {"": files[path]} | {name: files[path + end] for name, end in PACKED if path + end in files}
    end = path[path.rfind(".") :]
    if end in _TEXTS:
        bodies.setdefault("gzip", gzip.compress(files[path], mtime=0))  # all of them in 40 ms, once
    headers = {"Content-Type": _KINDS.get(end) or mimetypes.guess_type(path)[0] or "application/octet-stream"}
    if _HASHED.search(path.rpartition("/")[2]):
        headers["Cache-Control"] = FOREVER
    if len(bodies) > 1:
        headers["Vary"] = "Accept-Encoding"
    return Asset(bodies, headers)
