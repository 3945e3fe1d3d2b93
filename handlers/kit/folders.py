"""Folders below roots that a job fills and publishes as a whole: under its name, a folder is complete.

It grows as `.name.<work>.part`, locked by its writer. Its last file is `.job.json`, which names the job that made it, and its
files with their digests; then it gets its name by one rename. A repeat of the job finds it, and does nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Generator
from datetime import datetime
from typing import Final, TypeVar

import msgspec

from handlers.kit.files import LOCKED_S, MAX_NAME_BYTES, PART, chunks_of, explained, open_below, open_file, open_root, origin_of
from handlers.kit.points import point
from handlers.kit.sections import Root
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead, Job, Snooze

MANIFEST: Final = ".job.json"
MAX_MANIFEST_BYTES: Final = 64 * 1024  # a guess: one of ours has a few hundred bytes for each file
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A file of a folder."""

    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of `.job.json`; of which type the job was and when it was born, if told."""

    type: str = ""
    born: datetime | None = None
    work: str
    files: list[Written]
    result: msgspec.Raw


class Folder:
    """A folder that one job makes. Call `already` first, then `write` for each file, then `finish`."""

    def __init__(self, parent: int, name: str, work: str, root: Root, stop: Stop) -> None:
        self.files: list[Written] = []
        self._parent = parent
        self._name = name
        self._part = f".{name}.{work}{PART}"
        self._work = work
        self._limit_bytes = root.limit_bytes
        self._stop = stop
        self._inside = -1

    def already(self, kind: type[T]) -> T | None:
        """Return the result if this job has published the folder and each file is as it was; None if there is no folder yet.

        Raises:
            Dead: the name belongs to something else, or a file was changed; `output-exists`.
        """
        try:
            inside = os.open(self._name, _FOLDER, dir_fd=self._parent)
        except FileNotFoundError:
            return None
        try:
            manifest = _manifest(inside)
            if manifest is None or manifest.work != self._work or not all(self._is_same(inside, file) for file in manifest.files):
                raise Dead(f"the folder {self._name} exists, and is not what this job writes", "output-exists")
            return msgspec.json.decode(manifest.result, type=kind)
        finally:
            os.close(inside)

    def _is_same(self, inside: int, file: Written) -> bool:
        descriptor = open_file(inside, file.name)
        if descriptor is None:
            return False
        digest = hashlib.sha256()
        try:
            for chunk in chunks_of(descriptor, self._stop):
                digest.update(chunk)
        finally:
            os.close(descriptor)
        return digest.hexdigest() == file.sha256

    def write(self, name: str, data: bytes | memoryview) -> None:
        """Add a file, and note its size and digest.

        Raises:
            Dead: it is larger than the root allows; `too-large`.
            Snooze: another run of this job fills the folder; `locked`.
            OSError: from the disk.
        """
        if len(data) > self._limit_bytes:
            raise Dead(f"a file must have at most {self._limit_bytes} bytes", "too-large")
        self._stop.check()
        if self._inside < 0:
            self._inside = self._begun()
        with open(os.open(name, _NEW, 0o600, dir_fd=self._inside), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self.files.append(Written(name=name, bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))

    def _begun(self) -> int:
        """Return a descriptor of the unfinished folder, locked, and without what a run that was killed left in it."""
        while True:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._part, 0o700, dir_fd=self._parent)
            try:
                inside = os.open(self._part, _FOLDER, dir_fd=self._parent)
            except FileNotFoundError:
                continue  # its writer published or removed it in between
            try:
                fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_unfinished(inside):  # else its writer published it between our open and our lock
                    for name in os.listdir(inside):
                        os.unlink(name, dir_fd=inside)
                    return inside
            except BaseException as error:
                os.close(inside)
                if isinstance(error, BlockingIOError):
                    raise Snooze(LOCKED_S, "locked: another run of this job is still writing the folder") from None
                raise
            os.close(inside)

    def finish(self, result: S, job: Job | None = None) -> S:
        """Return the result when the folder has its name, and survives a power cut; that of another run, if it was first.

        Args:
            result: of the job, which a repeat finds.
            job: for what may be shown as evidence: the manifest says its type, and when it was born.

        Raises:
            Dead: something else has taken the name meanwhile; `output-exists`.
        """
        raw = msgspec.Raw(msgspec.json.encode(result))
        manifest = Manifest(**origin_of(job), work=self._work, files=list(self.files), result=raw)
        self.write(MANIFEST, msgspec.json.encode(manifest) + b"\n")
        os.fsync(self._inside)
        point("folder-ready")
        try:
            os.rename(self._part, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            found = None if error.errno == errno.ENOTDIR else self.already(type(result))
            if found is None:
                raise Dead(f"the folder {self._name} exists, and is not what this job writes", "output-exists") from None
            return found
        point("folder-named")
        os.fsync(self._parent)
        return result

    def close(self) -> None:
        """Remove what is unfinished, and let go of the folder."""
        if self._inside < 0:
            return
        try:
            for name in os.listdir(self._inside):
                if self._is_unfinished(self._inside):
                    os.unlink(name, dir_fd=self._inside)
            if self._is_unfinished(self._inside):
                os.rmdir(self._part, dir_fd=self._parent)
        finally:
            os.close(self._inside)

    def _is_unfinished(self, inside: int) -> bool:
        try:
            named = os.stat(self._part, dir_fd=self._parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return named.st_ino == os.fstat(inside).st_ino


def _manifest(inside: int) -> Manifest | None:
    descriptor = open_file(inside, MANIFEST)
    if descriptor is None:
        return None
    try:
        return msgspec.json.decode(os.read(descriptor, MAX_MANIFEST_BYTES), type=Manifest)
    except msgspec.MsgspecError:
        return None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def folder(settings: Settings, path: str, work: str, stop: Stop) -> Generator[Folder]:
    """Yield the folder that a job makes at this path below a root; those above it are made.

    Raises:
        Dead: the root may not be written, or the path leads over a link; `bad-path`.
        Snooze: the root is not configured, or cannot be used; `alias-missing`, `out-of-space`.
    """
    alias, _, rest = path.partition(":")
    root = settings.root(alias)
    *parts, name = rest.split("/")
    if not root.allows("write"):
        raise Dead(f"roots.{alias} allows mode {root.mode!r} only, not 'write'", "bad-path")
    if name.startswith(".") or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise Dead(f"roots.{alias}: not a name that a job may use ({len(name)} characters)", "bad-path")
    with explained(alias), open_root(alias, root) as top, open_below(top, parts, create=True) as parent:
        found = Folder(parent, name, work, root, stop)
        try:
            yield found
        finally:
            found.close()
