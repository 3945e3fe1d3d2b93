"""Finding the files below a folder, and deleting or compressing one of them.

Everything goes by descriptors of folders and names in them, so that a link put in a folder's place is not followed. A file is
touched only while it is the one that was seen.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from handlers.kit.files import CHUNK_BYTES, DENIED, PART, Part, chunks_of, open_below, open_file
from handlers.kit.packing import BROKEN, SUFFIXES, Packing, packed, unpacked
from handlers.kit.points import point
from handlers.kit.threads import Stop

MAX_DEPTH: Final = 64  # a guess: no tree of logs is that deep, and each level is opened again for each folder
STOP_EVERY: Final = 200  # files between two looks at the stop: a few ms, a guess
PACKED: Final = (*SUFFIXES.values(), ".xz", ".bz2", ".zip", ".br", ".lz4")
_NO_LIMIT_BYTES: Final = 2**62  # more than any disk: what is compressed is smaller than its source, which is there already
_OURS: Final = re.compile(r"\..+\.[a-z2-7]{26}(?:\.job\.json)?\.part", re.DOTALL)

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})  # or something else has the name by now, perhaps a link
_REFUSED: Final = DENIED | {errno.EBUSY, errno.ETXTBSY, errno.ENAMETOOLONG, errno.EEXIST}


class Found(msgspec.Struct, frozen=True, gc=False):
    """A plain file as it was found: `folder` is the path below the root, empty for the root itself."""

    folder: str
    name: str
    inode: int
    written_ns: int
    size_bytes: int

    @property
    def is_part(self) -> bool:
        """Return whether it is an unfinished file, of ours or of another program."""
        return self.name.endswith(PART)

    @property
    def is_our_part(self) -> bool:
        """Return whether a job wrote it."""
        return _OURS.fullmatch(self.name) is not None


def outcome_of(error: OSError) -> Literal["skipped", "failed"] | None:
    """Return the outcome of a file or a folder that raised this error; None if the error is about the disk, not about it."""
    if error.errno in _GONE:
        return "skipped"
    return "failed" if error.errno in _REFUSED else None


def pattern_of(globs: Sequence[str]) -> re.Pattern[str]:
    """Return what matches a name that one of the globs matches."""
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")


def below(top: int, folder: str) -> contextlib.AbstractContextManager[int]:
    """Yield a descriptor of a folder, by its path below `top`."""
    return open_below(top, folder.split("/") if folder else [])


class Tree:
    """Iterates over the plain files below a folder, on its file system and over no link; counts the folders not entered."""

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
                        yield from self._entries(place, folder)
            except OSError as error:
                outcome = outcome_of(error)
                if outcome is None:
                    raise
                self.failed += outcome == "failed"

    def _entries(self, place: int, folder: str) -> Iterator[Found]:
        with os.scandir(place) as entries:
            for number, entry in enumerate(entries):
                if number % STOP_EVERY == 0:
                    self._stop.check()
                if entry.is_dir(follow_symlinks=False):
                    self._push(folder, entry.name)
                    continue
                with contextlib.suppress(FileNotFoundError):
                    seen = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(seen.st_mode):
                        yield Found(folder, entry.name, seen.st_ino, seen.st_mtime_ns, seen.st_size)

    def _push(self, folder: str, name: str) -> None:
        if not self._recurse or not self._enters(name):
            return
        if folder.count("/") + 1 >= MAX_DEPTH:
            self.failed += 1
            return
        self._folders.append(f"{folder}/{name}" if folder else name)


# --- one file ------------------------------------------------------------------------------------------------------------


def is_still(place: int, found: Found) -> bool:
    """Return whether the name still leads to the file that was found, and it was not written to since."""
    try:
        now = os.stat(found.name, dir_fd=place, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(now.st_mode) and (now.st_ino, now.st_mtime_ns) == (found.inode, found.written_ns)


def delete(place: int, found: Found) -> int | None:
    """Delete the file and return the bytes freed; None if it is gone, or is another one by now."""
    if not is_still(place, found):
        return None
    point("sweep.before-delete")
    os.unlink(found.name, dir_fd=place)
    point("sweep.after-delete")
    return found.size_bytes


def compress(place: int, found: Found, kind: Packing, work: str, stop: Stop) -> int | None:
    """Replace the file by `name.gz` or `name.zst`, synced and read back, and return the bytes freed; None as for `delete`.

    May be repeated: after a crash between publishing the packed file and deleting the other, the next run finds that both have
    the same content, and deletes the file.

    Raises:
        FileExistsError: the name of the packed file has other content.
    """
    source = open_file(place, found.name)
    if source is None:
        return None
    name = found.name + SUFFIXES[kind]
    try:
        before = os.fstat(source)
        with Part(place, name, work, _NO_LIMIT_BYTES) as part:
            digest = _pack(source, part, kind, stop)
            if _digest_unpacked(part.file, kind, before.st_size, stop) != digest:
                raise OSError(errno.EIO, "the compressed file cannot be read back")
            _copy_attributes(part.file, before)
            if not is_still(place, found):
                return None
            point("sweep.before-publish")
            try:
                part.publish(replace=False)
            except FileExistsError:
                if _digest_of_name(place, name, kind, before.st_size, stop) != digest:
                    raise
            point("sweep.after-publish")
            os.fsync(place)
            freed = delete(place, found)
            return None if freed is None else freed - part.size_bytes
    finally:
        os.close(source)


def _pack(source: int, part: Part, kind: Packing, stop: Stop) -> bytes:
    """Compress the file into the part, and return the digest of what was read."""
    digest = hashlib.sha256()
    with packed(kind, part) as packer:
        for chunk in chunks_of(source, stop):
            digest.update(chunk)
            packer.write(chunk)
    return digest.digest()


def _digest_unpacked(file: int, kind: Packing, limit_bytes: int, stop: Stop) -> bytes | None:
    """Return the digest of what a packed file holds; None if it is not one, or holds more than `limit_bytes`."""
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with unpacked(kind, file) as unpacker:
            while chunk := unpacker.read(CHUNK_BYTES):
                stop.check()
                digest.update(chunk)
                size_bytes += len(chunk)
                if size_bytes > limit_bytes:
                    return None
    except BROKEN:
        return None
    return digest.digest()


def _digest_of_name(place: int, name: str, kind: Packing, limit_bytes: int, stop: Stop) -> bytes | None:
    file = open_file(place, name)
    if file is None:
        return None
    try:
        return _digest_unpacked(file, kind, limit_bytes, stop)
    finally:
        os.close(file)


def _copy_attributes(file: int, like: os.stat_result) -> None:
    """Set the owner, mode and times of another file, so that the same users can read this one."""
    with contextlib.suppress(PermissionError):
        os.fchown(file, like.st_uid, like.st_gid)
    os.fchmod(file, stat.S_IMODE(like.st_mode) & 0o777)
    os.utime(file, ns=(like.st_atime_ns, like.st_mtime_ns))
