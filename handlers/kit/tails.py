"""Log files, read on from where an earlier run stopped, wherever they are by now: renamed, copied and truncated, or replaced.

A file is known by its inode and by the digest of its first KiB. Only whole lines are read: half a line at the end waits for the
rest of it.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from handlers.kit.files import CHUNK_BYTES, DENIED, open_file
from handlers.kit.threads import Stop

HEAD_BYTES: Final = 1024
LEAST_HEAD_BYTES: Final = 64  # a guess: shorter than any line; a copy is known by its head alone
MAX_LINE_BYTES: Final = 64 * 1024  # a guess: eight times what servers take as a request line; of a longer one, this is read
MAX_FILES: Final = 1000  # of a source, a guess: two years of daily ones
PACKED: Final = (".gz", ".zst", ".xz", ".bz2")  # were read before they were packed


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """How far a file was read: `offset` is behind a whole line, or `in_line`. It `is_idle` if nothing was new in the last run."""

    inode: int
    head_bytes: int
    head: str
    offset: int
    in_line: bool = False
    is_idle: bool = False


class Tail:
    """The files of a source. Iterate over `lines` to the end: then `places` are where the next run goes on.

    `oversized` lines were longer than is read of them; `left_bytes` were not read, as `most_bytes` did not suffice. `faults` say
    which file could not be read, or that there is none. So many files are `gone`, or cut, with what was written to them after the
    last run.
    """

    def __init__(
        self, folder: int, glob: str, known: Sequence[Place], stop: Stop, *, most_bytes: int, since_s: float = 0.0
    ) -> None:
        """Read no file that was last written to before `since_s`."""
        self.places: list[Place] = []
        self.faults: list[str] = []
        self.files = 0
        self.read_bytes = 0
        self.left_bytes = 0
        self.oversized = 0
        self.gone = 0
        self._folder = folder
        self._glob = glob
        self._known = list(known)
        self._sizes: dict[int, int] = {}  # of the files now, by inode
        self._stop = stop
        self._most_bytes = most_bytes
        self._since_s = since_s

    def lines(self) -> Iterator[list[bytes]]:
        """Yield the new lines of all files, a batch at a time, the oldest file first."""
        files = self._opened()
        try:
            self._sizes = {now.st_ino: now.st_size for now in map(os.fstat, files)}
            for file, place in zip(files, self._recognized(files), strict=True):
                yield from self._lines_of(file, place)
        finally:
            for file in files:
                os.close(file)
        # What no file was recognized by. Of a file that was cut, something may be gone even if nothing was new before.
        lost = [place for place in self._known if self._sizes.get(place.inode, place.offset) < place.offset]
        if not self.faults:
            lost += [place for place in self._known if not place.is_idle and place not in lost]
        self.gone = len(lost)
        if self.faults:
            self.places += [place for place in self._known if place not in lost][:MAX_FILES]

    def _opened(self) -> list[int]:
        names = [name for name in os.listdir(self._folder) if fnmatch.fnmatchcase(name, self._glob) and not name.endswith(PACKED)]
        files: list[int] = []
        for name in sorted(names)[:MAX_FILES]:
            try:
                file = open_file(self._folder, name)
            except OSError as error:
                if error.errno not in DENIED:
                    raise
                self.faults.append(f"{name}: {error.strerror}")
                continue
            if file is not None:
                files.append(file)
            elif _is_there(self._folder, name):  # in place of a log, perhaps, to hide what is written
                self.faults.append(f"{name}: no plain file")
        self.files = len(files)
        if len(names) > MAX_FILES:
            self.faults.append(f"{len(names) - MAX_FILES} of {len(names)} files were not read")
        elif not files and not self.faults:
            self.faults.append("no file")
        return sorted(files, key=lambda file: os.fstat(file).st_mtime_ns)

    def _recognized(self, files: Sequence[int]) -> list[Place]:
        """Return where to go on in each file: first those that are still the same, then the copies of those that are not."""
        found: dict[int, Place] = {}
        for is_copy in (False, True):
            for file in files:
                place = None if file in found else self._known_as(file, is_copy=is_copy)
                if place is not None:
                    self._known.remove(place)
                    found[file] = place
        return [found.get(file) or Place(inode=0, head_bytes=0, head="", offset=0) for file in files]

    def _known_as(self, file: int, *, is_copy: bool) -> Place | None:
        now = os.fstat(file)
        for place in self._known:
            is_meant = place.head_bytes >= LEAST_HEAD_BYTES if is_copy else place.inode == now.st_ino
            if is_meant and now.st_size >= place.offset and _head(file, place.head_bytes) == place.head:
                return place
        return None

    def _lines_of(self, file: int, place: Place) -> Iterator[list[bytes]]:
        now = os.fstat(file)
        if now.st_mtime < self._since_s:
            return
        size = now.st_size  # what is written while this is read is for the next run
        offset, in_line = place.offset, place.in_line
        end = min(size, offset + self._most_bytes - self.read_bytes)
        os.lseek(file, offset, os.SEEK_SET)
        rest, at = b"", offset
        while at < end:
            self._stop.check()
            chunk = os.read(file, min(CHUNK_BYTES, end - at))
            if not chunk:
                break  # it was truncated while it was read
            at += len(chunk)
            self.read_bytes += len(chunk)
            cut = chunk.rfind(b"\n") + 1
            if not cut:
                rest += chunk
                if len(rest) > MAX_LINE_BYTES:
                    if not in_line:
                        self.oversized += 1
                        yield [rest[:MAX_LINE_BYTES]]
                    rest, in_line, offset = b"", True, at
                continue
            whole = (rest + chunk[:cut]).split(b"\n")[:-1]
            rest, offset = chunk[cut:], at - len(chunk) + cut
            if in_line:
                del whole[0]
                in_line = False
            yield self._bounded(whole)
        self.left_bytes += size - at
        head_bytes = min(HEAD_BYTES, offset)
        self.places.append(
            Place(
                inode=now.st_ino,
                head_bytes=head_bytes,
                head=_head(file, head_bytes),
                offset=offset,
                in_line=in_line,
                is_idle=size == place.offset and place.inode == now.st_ino,
            )
        )

    def _bounded(self, lines: list[bytes]) -> list[bytes]:
        if max(map(len, lines), default=0) <= MAX_LINE_BYTES:
            return lines
        self.oversized += sum(len(line) > MAX_LINE_BYTES for line in lines)
        return [line[:MAX_LINE_BYTES] for line in lines]


def _is_there(folder: int, name: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def _head(file: int, count: int) -> str:
    return hashlib.sha256(os.pread(file, count, 0)).hexdigest()[:32]
