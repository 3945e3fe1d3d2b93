"""Clearing out folders: what lies below a root, and how one file of it is deleted or compressed.

Everything goes by descriptors of folders and by names in them, so that a link put in a folder's place leads nowhere. A file is
touched only while it is the one that was seen.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import os
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Literal

import msgspec

from handlers.kit.files import BARRED, CHUNK_BYTES, PART, Part, chunks_of, open_below, open_file
from handlers.kit.threads import Stop

MAX_DEPTH: Final = 64
STOP_EVERY: Final = 200
SUFFIX: Final = ".gz"
PACKED: Final = (SUFFIX, ".zst", ".xz", ".bz2", ".zip", ".br", ".lz4")
GZIP_LEVEL: Final = 6
_LIMIT_BYTES: Final = 2**62  # what is compressed is smaller than what lies there already
_OURS: Final = re.compile(r"\..+\.[a-z2-7]{26}(?:\.job\.json)?\.part", re.DOTALL)

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # or something else has its name by now, perhaps a link
_REFUSED: Final = BARRED | {errno.EBUSY, errno.ETXTBSY, errno.ENAMETOOLONG, errno.EEXIST}


class Found(msgspec.Struct, frozen=True, gc=False):
    """A plain file as it was seen: `folder` is the path below the root, empty for the root itself."""

    folder: str
    name: str
    inode: int
    written_ns: int
    size_bytes: int

    @property
    def is_part(self) -> bool:
        """Return whether it is a file on its way, of ours or of somebody else."""
        return self.name.endswith(PART)

    @property
    def is_our_part(self) -> bool:
        """Return whether a job of ours was writing it."""
        return _OURS.fullmatch(self.name) is not None


def word_of(error: OSError) -> Literal["skipped", "failed"] | None:
    """Say what an error makes of a file or a folder; None if it says more about the disk than about either."""
    if error.errno in _GONE:
        return "skipped"
    return "failed" if error.errno in _REFUSED else None


def below(top: int, folder: str) -> contextlib.AbstractContextManager[int]:
    """Return a descriptor of a folder by its path below `top`."""
    return open_below(top, folder.split("/") if folder else [])


class Tree:
    """Gives the plain files below a folder, of this file system and over no link; counts the folders that it could not enter."""

    def __init__(self, top: int, *, recurse: bool, enters: Callable[[str], bool], stop: Stop) -> None:
        self.failed = 0
        self._top = top
        self._device = os.fstat(top).st_dev
        self._recurse = recurse
        self._enters = enters
        self._stop = stop
        self._folders = [""]

    def __iter__(self) -> Iterator[Found]:
        while self._folders:
            folder = self._folders.pop()
            try:
                with below(self._top, folder) as place:
                    if os.fstat(place).st_dev == self._device:
                        yield from self._look_into(place, folder)
            except OSError as error:
                word = word_of(error)
                if word is None:
                    raise
                self.failed += word == "failed"

    def _look_into(self, place: int, folder: str) -> Iterator[Found]:
        with os.scandir(place) as entries:
            for number, entry in enumerate(entries):
                if number % STOP_EVERY == 0:
                    self._stop.check()
                if entry.is_dir(follow_symlinks=False):
                    self._remember(folder, entry.name)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    seen = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(seen.st_mode):
                        yield Found(folder, entry.name, seen.st_ino, seen.st_mtime_ns, seen.st_size)

    def _remember(self, folder: str, name: str) -> None:
        if not self._recurse or not self._enters(name):
            return
        if folder.count("/") + 1 >= MAX_DEPTH:
            self.failed += 1
            return
        self._folders.append(f"{folder}/{name}" if folder else name)


# --- one file ------------------------------------------------------------------------------------------------------------


def is_still(place: int, found: Found) -> bool:
    """Return whether the name still leads to the file that was seen, and nobody has written to it since."""
    try:
        now = os.stat(found.name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(now.st_mode) and (now.st_ino, now.st_mtime_ns) == (found.inode, found.written_ns)


def delete(place: int, found: Found) -> int | None:
    """Return the bytes freed; None if the file was not there any more, or is another one by now."""
    if not is_still(place, found):
        return None
    os.unlink(found.name, dir_fd=place)
    return found.size_bytes


def compress(place: int, found: Found, work: str, stop: Stop) -> int | None:
    """Return the bytes freed, once `name.gz` is on the disk, was read back, and stands in for the file; None as for `delete`.

    After a crash between the two, the next run finds that both have one content, and deletes the file.

    Raises:
        FileExistsError: `name.gz` is something else.
    """
    source = open_file(place, found.name)
    if source is None:
        return None
    try:
        before = os.fstat(source)
        with Part(place, found.name + SUFFIX, work, _LIMIT_BYTES) as part:
            digest = _pack(source, part, stop)
            if _digest_unpacked(part.file, before.st_size, stop) != digest:
                raise OSError(errno.EIO, "what was written cannot be read back")
            _dress(part.file, before)
            if not is_still(place, found):
                return None
            try:
                part.publish(replace=False)
            except FileExistsError:
                if _digest_of_name(place, found.name + SUFFIX, before.st_size, stop) != digest:
                    raise
            os.fsync(place)
            freed = delete(place, found)
            return None if freed is None else freed - part.size_bytes
    finally:
        os.close(source)


def _pack(source: int, part: Part, stop: Stop) -> bytes:
    """Write the file into the part, and give the digest of what was read."""
    digest = hashlib.sha256()
    with gzip.GzipFile("", "wb", GZIP_LEVEL, part, mtime=0) as packer:
        for chunk in chunks_of(source, stop):
            digest.update(chunk)
            packer.write(chunk)
    return digest.digest()


def _digest_unpacked(file: int, limit_bytes: int, stop: Stop) -> bytes | None:
    """Return the digest of what a gzip file holds; None if it is none, or holds more than that."""
    digest, size_bytes = hashlib.sha256(), 0
    os.lseek(file, 0, os.SEEK_SET)
    try:
        with open(file, "rb", closefd=False) as raw, gzip.GzipFile(fileobj=raw) as unpacker:
            while chunk := unpacker.read(CHUNK_BYTES):
                stop.check()
                digest.update(chunk)
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    return None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return None
    return digest.digest()


def _digest_of_name(place: int, name: str, limit_bytes: int, stop: Stop) -> bytes | None:
    file = open_file(place, name)
    if file is None:
        return None
    try:
        return _digest_unpacked(file, limit_bytes, stop)
    finally:
        os.close(file)


def _dress(file: int, like: os.stat_result) -> None:
    """Return a file the owner, rights and times of another, so that whoever could read that can read this."""
    with contextlib.suppress(PermissionError):
        os.fchown(file, like.st_uid, like.st_gid)
    os.fchmod(file, stat.S_IMODE(like.st_mode) & 0o777)
    os.utime(file, ns=(like.st_atime_ns, like.st_mtime_ns))
