"""Files under configured roots: found without following a link, and written so that a visible name is complete.

A file grows as `.name.<work>.part`, locked by whoever writes it. Once it is on the disk it gets its name, and then its sidecar
`name.job.json`, which says whose work it is, with size and digest: the same work, run again, finds itself done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, NoReturn, Self, TypeVar

import msgspec

from handlers.kit.settings import Root, Settings, wait_for_operator
from handlers.kit.threads import Stop
from runtime import Dead, Snooze

MAX_NAME_BYTES: Final = 200  # a file system takes 255, and the names on the way are up to 46 longer
MAX_SIDECAR_BYTES: Final = 64 * 1024
CHUNK_BYTES: Final = 256 * 1024
SPACE_EVERY_BYTES: Final = 64 * 2**20  # how often free space is looked at, and how much of it must be left
LOCKED_S: Final = 15.0
SIDECAR: Final = ".job.json"
PART: Final = ".part"

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
BARRED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
CROOKED: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})  # the first two: a link
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in a file's place must not hold us
_WRITE: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

T = TypeVar("T")


# --- finding the place ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def blamed(alias: str) -> Generator[None]:
    """Let errors of files below this root out as the word for whoever must act; what time may heal stays as it is.

    Raises:
        Dead: the path leads over a link, or into something that is no folder; `bad-path`.
        Snooze: the disk is full, or the system does not let us; `out-of-space`, `alias-missing`.
    """
    try:
        yield
    except OSError as error:
        text = error.strerror or type(error).__name__
        if error.errno in FULL:
            raise wait_for_operator(f"roots.{alias}", "out-of-space", text) from error
        if error.errno in BARRED:
            raise wait_for_operator(f"roots.{alias}", "alias-missing", text) from error
        if error.errno in CROOKED:
            raise Dead(f"roots.{alias}: {text}", "bad-path") from error
        raise


@contextlib.contextmanager
def open_root(alias: str, root: Root) -> Generator[int]:
    """Return a descriptor of the root's folder; whether that is a link is up to the operator.

    Raises:
        Snooze: there is no such folder on this host; `alias-missing`.
    """
    try:
        folder = os.open(root.path, _FOLDER)
    except OSError as error:
        if error.errno in (errno.ENOENT, *CROOKED):
            raise wait_for_operator(f"roots.{alias}", "alias-missing", f"{root.path}: {error.strerror}") from error
        raise
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def open_below(top: int, parts: Sequence[str], *, create: bool = False) -> Generator[int]:
    """Return a descriptor of the folder that these names lead to, one by one and over no link; `top` stays open."""
    folder = os.dup(top)
    try:
        for part in parts:
            inner = _open_inner(folder, part, create)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def _open_inner(folder: int, part: str, create: bool) -> int:
    try:
        return os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        if not create:
            raise
    with contextlib.suppress(FileExistsError):
        os.mkdir(part, 0o700, dir_fd=folder)
        os.fsync(folder)
    return os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)


@dataclass(frozen=True, slots=True)
class Target:
    """A name in an open folder below a root; `target` owns the descriptor."""

    path: str
    root: Root
    folder: int
    name: str


@contextlib.contextmanager
def target(settings: Settings, path: str) -> Generator[Target]:
    """Return the place where a job may write this file; folders on the way are made.

    Raises:
        Dead: it may not be written, or leads over a link; `bad-path`.
        Snooze: the root is not configured, or cannot be used; `alias-missing`, `out-of-space`.
    """
    alias, _, rest = path.partition(":")
    root = settings.root(alias)
    *parts, name = rest.split("/")
    if not root.allows("write"):
        raise Dead(f"roots.{alias} is for mode {root.mode!r} only", "bad-path")
    if name.startswith(".") or name.endswith((SIDECAR, PART)) or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise Dead(f"roots.{alias}: a name of {len(name)} characters that a job's file cannot have", "bad-path")
    with blamed(alias), open_root(alias, root) as top, open_below(top, parts, create=True) as folder:
        yield Target(path, root, folder, name)


# --- reading -------------------------------------------------------------------------------------------------------------


def open_file(folder: int, name: str) -> int | None:
    """Return a descriptor to read a plain file by; None if there is none of that name, or it is something else."""
    try:
        file = os.open(name, _READ, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return None
        raise
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    return None


def chunks_of(file: int, stop: Stop) -> Iterator[bytes]:
    """Return the bytes from where the descriptor stands."""
    while chunk := os.read(file, CHUNK_BYTES):
        stop.check()
        yield chunk


def _fingerprint(folder: int, name: str, stop: Stop) -> tuple[int, str] | None:
    """Return size and SHA-256 of a plain file."""
    file = open_file(folder, name)
    if file is None:
        return None
    try:
        digest, size_bytes = hashlib.sha256(), 0
        for chunk in chunks_of(file, stop):
            digest.update(chunk)
            size_bytes += len(chunk)
    finally:
        os.close(file)
    return size_bytes, digest.hexdigest()


# --- writing -------------------------------------------------------------------------------------------------------------


class Part:
    """A file on its way, `.name.<work>.part`: owns its descriptor and, by a lock, its name. Unpublished, it ends with the block.

    The lock keeps a repeat away from a run that is not over yet, as that of a thread whose job was cut; it ends with its process.
    """

    def __init__(self, folder: int, name: str, work: str, limit_bytes: int) -> None:
        self.folder = folder
        self.name = name
        self.part = f".{name}.{work}{PART}"
        self.size_bytes = 0
        self.file = self._open()
        self._limit_bytes = limit_bytes
        self._look_at_bytes = SPACE_EVERY_BYTES
        self._digest = hashlib.sha256()

    def _open(self) -> int:
        while True:
            file = os.open(self.part, _WRITE, 0o600, dir_fd=self.folder)
            try:
                if self._is_ours(file):
                    os.truncate(file, 0)
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _is_ours(self, file: int) -> bool:
        """Return whether we hold the lock of a plain file that has this name and no other."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Snooze(LOCKED_S, "locked: another run of this job is still writing its file") from None
        held = os.fstat(file)
        if not stat.S_ISREG(held.st_mode):
            raise Dead("something that is no file has the name of a file on its way", "bad-path")
        try:
            named = os.stat(self.part, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False  # its writer has just finished
        if held.st_ino != named.st_ino:
            return False
        if held.st_nlink > 1:  # a crash came between two names of one file: the other one is not to be emptied
            os.unlink(self.part, dir_fd=self.folder)
            return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.part, dir_fd=self.folder)
        finally:
            os.close(self.file)

    @property
    def sha256(self) -> str:
        """The digest of what was written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Append all of it.

        Raises:
            Dead: the file grows over its limit; `too-large`.
            OSError: as the disk says; also when little space is left on it.
        """
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            raise Dead(f"the file would have more than {self._limit_bytes} bytes", "too-large")
        if self.size_bytes >= self._look_at_bytes:
            self._look_at_bytes += SPACE_EVERY_BYTES
            space = os.fstatvfs(self.file)
            if space.f_bavail * space.f_frsize < SPACE_EVERY_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._digest.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.file, rest) :]
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is kept back. `gzip` asks for it."""

    def publish(self, *, replace: bool) -> None:
        """Return when the file is on the disk and has its name; the folder is left to `fsync`.

        Raises:
            FileExistsError: the name is taken, and it is not to be replaced.
        """
        os.fsync(self.file)
        if not replace:
            try:
                os.link(self.part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder, follow_symlinks=False)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            # A file system without links: here two jobs that want one name at the same moment are not told apart.
            if self._is_taken():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(self.part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def _is_taken(self) -> bool:
        try:
            os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


class Sidecar(msgspec.Struct, frozen=True, kw_only=True):
    """What `name.job.json` says of the file beside it."""

    work: str
    size: int
    sha256: str
    result: msgspec.Raw


class Writer(Part):
    """A part with a sidecar. `already` first, then `write`, then `finish`.

    The sidecar lies ready under a name of its own before the file gets its name, so that a crash between the two is fixed by the
    next run, and does not leave a file that nobody knows.
    """

    def __init__(self, place: Target, work: str, stop: Stop, *, overwrite: bool = False) -> None:
        super().__init__(place.folder, place.name, work, place.root.limit_bytes)
        self._path = place.path
        self._work = work
        self._stop = stop
        self._overwrite = overwrite
        self._is_staging = False
        self._sidecar = f"{place.name}{SIDECAR}"
        self._staged = f".{place.name}.{work}{SIDECAR}{PART}"

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._is_staging:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._staged, dir_fd=self.folder)
        finally:
            super().__exit__(kind, error, trace)

    def already(self, kind: type[T]) -> T | None:
        """Return the result if this work is done: its file and sidecar are there and fit. None if it is to be done.

        Raises:
            Dead: the name belongs to something else that may not be replaced; `output-exists`.
        """
        shown, staged = self._read_sidecar(self._sidecar), self._read_sidecar(self._staged)
        is_ours = shown is not None and shown.work == self._work
        if is_ours or staged is not None:
            there = _fingerprint(self.folder, self.name, self._stop)
            for found in (shown, staged):
                if found is not None and (found.work, found.size, found.sha256) == (self._work, *(there or ())):
                    if found is staged:
                        self._show_sidecar()
                    with contextlib.suppress(msgspec.MsgspecError):  # a result of another version: the work is done again
                        return msgspec.json.decode(found.result, type=kind)
                    is_ours = True
        if not is_ours and self._is_taken() and (shown is None or not self._overwrite):
            self._refuse()
        self._overwrite = self._overwrite or is_ours
        return None

    def _refuse(self) -> NoReturn:
        raise Dead(f"{self._path} is there already, and not by this job", "output-exists")

    def _read_sidecar(self, name: str) -> Sidecar | None:
        file = open_file(self.folder, name)
        if file is None:
            return None
        try:
            return msgspec.json.decode(os.read(file, MAX_SIDECAR_BYTES), type=Sidecar)
        except msgspec.MsgspecError:
            return None
        finally:
            os.close(file)

    def finish(self, result: msgspec.Struct) -> None:
        """Return when the file has its name and its sidecar, and both would survive a power cut.

        Raises:
            Dead: somebody else has taken the name meanwhile; `output-exists`.
        """
        sidecar = Sidecar(
            work=self._work, size=self.size_bytes, sha256=self.sha256, result=msgspec.Raw(msgspec.json.encode(result))
        )
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._staged, dir_fd=self.folder)
        self._is_staging = True
        staged = os.open(self._staged, _WRITE | os.O_EXCL, 0o600, dir_fd=self.folder)
        with open(staged, "wb") as file:
            file.write(msgspec.json.encode(sidecar) + b"\n")
            file.flush()
            os.fsync(staged)
        self._stop.check()
        try:
            self.publish(replace=self._overwrite)
        except FileExistsError:
            self._refuse()
        self._show_sidecar()

    def _show_sidecar(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # a repeat that came right after our file had its name has done it
            os.rename(self._staged, self._sidecar, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        os.fsync(self.folder)
