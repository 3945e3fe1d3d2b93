"""A database of advisories in OSV's JSON, read in place: a zip as osv.dev has it, or a folder with zips and JSON files.

Nothing is extracted, no name in a zip is used as a path, and all sizes are bounded. What cannot be read is counted, since an
advisory that is passed over would make a package look clean.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import IO, Final

import msgspec
from packaging.utils import canonicalize_name

from handlers.kit.failures import wait_for_operator
from handlers.kit.files import open_below, open_file, open_root
from handlers.kit.lockfiles import Ecosystem, Package
from handlers.kit.osv import Advisory, Affected
from handlers.kit.settings import Settings

MAX_ADVISORY_BYTES: Final = 8 * 2**20  # a guess: one that lists each version of a package has 200 KB
MAX_ADVISORIES: Final = 1_000_000  # a guess: four times those of npm
MAX_BYTES: Final = 8 * 2**30  # of all together, a guess: a few KB for each of them
MAX_RATIO: Final = 200  # of unpacked to packed: JSON is packed to a tenth or a twentieth
MAX_ZIP_BYTES: Final = 512 * 2**20  # a guess: its directory is read into memory, with a few hundred bytes for each member
MAX_TAIL_BYTES: Final = 22 + 65_535 + 20  # of a zip: its last record, with the longest comment, and the place of that of zip64
MAX_DEPTH: Final = 8  # of folders, a guess: osv.dev has one, and a copy of a repository three
FUTURE: Final = timedelta(days=1)  # a guess: clocks differ, and an advisory from the next year makes no database young
PROGRESS_EVERY: Final = 1000  # advisories: some 30 ms (measured)


class Database:
    """What was read: the advisories about some packages; which ecosystems there are, and when one of each was last changed."""

    def __init__(self) -> None:
        self.count = 0
        self.unread = 0
        self.ecosystems: set[Ecosystem] = set()
        self.dates: dict[Ecosystem, datetime] = {}
        self.sha256 = ""
        self._about: dict[tuple[Ecosystem, str], list[tuple[Advisory, Affected]]] = {}

    def add(self, advisory: Advisory, wanted: set[tuple[Ecosystem, str]], newest: datetime) -> None:
        """Take in an advisory; one that was withdrawn only says how old the database is."""
        self.count += 1
        known = [(key, each) for each in advisory.affected or () for key in _key(each)]
        date = _in_utc(advisory.modified)
        for (ecosystem, _), _ in known:
            self.ecosystems.add(ecosystem)
            if date is not None and date <= newest:
                self.dates[ecosystem] = max(date, self.dates.get(ecosystem, date))
        if advisory.withdrawn is None:
            for key, each in known:
                if key in wanted:
                    self._about.setdefault(key, []).append((advisory, each))

    def about(self, package: Package) -> list[tuple[Advisory, Affected]]:
        """Return all that is said of a package, whatever its version."""
        return self._about.get((package.ecosystem, package.name), [])


def _key(affected: Affected) -> Iterator[tuple[Ecosystem, str]]:
    """Yield the package, where it is of an ecosystem that we know."""
    if affected.package is not None:
        match affected.package.ecosystem.partition(":")[0]:
            case "PyPI":
                yield "PyPI", canonicalize_name(affected.package.name)
            case "npm":
                yield "npm", affected.package.name
            case _:
                pass


def _in_utc(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def read_database(
    settings: Settings, alias: str, wanted: set[tuple[Ecosystem, str]], born: datetime, progress: Callable[[int], None]
) -> Database:
    """Return what the advisories of an alias say of some packages, as of when the job was born.

    Raises:
        Snooze: the alias or its file is missing, or holds no advisory, `alias-missing`; or they are too many, `too-large`.
    """
    path = settings.advisories_of(alias).path
    found, digest, decoder = Database(), hashlib.sha256(), msgspec.json.Decoder(Advisory)
    size_bytes = 0
    for number, (name, content) in enumerate(_documents(settings, alias, path), 1):
        size_bytes += len(content or b"")
        if number > MAX_ADVISORIES or size_bytes > MAX_BYTES:
            limits = f"{MAX_ADVISORIES} advisories with {MAX_BYTES} bytes together"
            raise wait_for_operator(f"advisories.{alias}", "too-large", f"{path} must be at most {limits}")
        digest.update(msgspec.json.encode([name, hashlib.sha256(content).hexdigest() if content is not None else None]))
        try:
            found.add(decoder.decode(content or b""), wanted, born + FUTURE)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            found.unread += 1
        if number % PROGRESS_EVERY == 0:
            progress(number)
    if not found.count:
        hint = "hint: all.zip of an ecosystem, as osv.dev has it; YAML is not read"
        raise wait_for_operator(f"advisories.{alias}", "alias-missing", f"{path} holds no advisory in OSV's JSON; {hint}")
    found.sha256 = digest.hexdigest()
    return found


def _documents(settings: Settings, alias: str, path: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield the name and the content of each advisory; no content where it is not to be read."""
    root, _, rest = path.partition(":")
    *parts, name = rest.split("/")
    try:
        with open_root(root, settings.root(root)) as top, open_below(top, parts) as parent:
            file = open_file(parent, name)
            if file is not None:
                yield from _file(name, file)
                return
            with open_below(parent, [name]) as folder:
                yield from _folder(folder, "", MAX_DEPTH)
    except OSError as error:
        raise wait_for_operator(f"advisories.{alias}", "alias-missing", f"{path}: {error.strerror}") from error


def _folder(folder: int, path: str, depth: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield what is in a folder and below it, in the order of names; a link, and YAML, is something not read."""
    with os.scandir(folder) as entries:
        seen = sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)
    for name, is_folder, is_link in seen:
        place = f"{path}{name}"
        if name.startswith("."):
            continue
        if is_link or name.endswith((".yaml", ".yml")) or (is_folder and depth == 0):
            yield place, None
        elif is_folder:
            with open_below(folder, [name]) as inner:
                yield from _folder(inner, f"{place}/", depth - 1)
        elif name.endswith((".json", ".zip")):
            file = open_file(folder, name)
            if file is None:
                yield place, None
            else:
                yield from _file(place, file)


def _file(place: str, descriptor: int) -> Iterator[tuple[str, bytes | None]]:
    """Yield one advisory, or those of a zip; the descriptor is closed."""
    with open(descriptor, "rb") as file:
        if not place.endswith(".zip"):
            yield place, _bounded(file)
        elif os.fstat(descriptor).st_size > MAX_ZIP_BYTES:
            yield place, None
        else:
            try:
                with zipfile.ZipFile(file) as archive:
                    members = sorted(archive.infolist(), key=lambda member: member.filename)
                    if len(members) != _told(file):
                        yield place, None
                    for each in members:
                        if not each.is_dir() or each.file_size:
                            yield f"{place}/{each.filename}", _member(archive, each)
            except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
                yield place, None
            except OSError as error:
                if error.errno != errno.EINVAL:  # of a place before its beginning, where a zip says that it goes on
                    raise
                yield place, None


def _told(file: IO[bytes]) -> int:
    """Return how many members a zip says that it has. Of a damaged directory, `zipfile` passes over the rest without a word.

    Raises:
        ValueError, struct.error: it does not say.
    """
    begin = max(file.seek(0, os.SEEK_END) - MAX_TAIL_BYTES, 0)
    file.seek(begin)
    tail = file.read()
    at = tail.rindex(b"PK\x05\x06")
    (count,) = struct.unpack_from("<H", tail, at + 10)
    if count == 0xFFFF:  # zip64: before this record there is one that says where the one with the numbers is
        file.seek(struct.unpack_from("<Q", tail, at - 12)[0])
        (count,) = struct.unpack_from("<Q", file.read(56), 32)
    return count


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | None:
    """Return the content of a member; None if its name, its kind or its size is not what an advisory's is."""
    parts = member.filename.replace("\\", "/").split("/")
    is_plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG) and not member.flag_bits & 0x1
    is_named = parts[-1].endswith(".json") and not {"", ".", ".."} & set(parts)
    is_small = member.file_size <= min(MAX_ADVISORY_BYTES, MAX_RATIO * max(member.compress_size, 1))
    if not (is_plain and is_named and is_small and member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)):
        return None
    with contextlib.suppress(zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError), archive.open(member) as file:
        return _bounded(file)
    return None


def _bounded(file: IO[bytes]) -> bytes | None:
    content = file.read(MAX_ADVISORY_BYTES + 1)
    return content if len(content) <= MAX_ADVISORY_BYTES else None
