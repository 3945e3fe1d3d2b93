"""Files below configured roots: opened without following a link, and published only when complete.

A file grows as `.name.<work>.part`, locked by its writer. Once it is on the disk it gets its name, and then its sidecar
`name.job.json`, which names the job that wrote it, with size and digest: when that job is repeated, it finds its work done.
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
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, NoReturn, Self, TypeVar

import msgspec

from handlers.kit.failures import input_missing, wait_for_operator
from handlers.kit.sections import Root
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead, Job, Snooze

MAX_NAME_BYTES: Final = 200  # NAME_MAX is 255 on Linux, and the names of unfinished files are up to 46 bytes longer
MAX_SIDECAR_BYTES: Final = 64 * 1024  # a guess: a sidecar of ours has a few hundred bytes
CHUNK_BYTES: Final = 256 * 1024  # a guess: large enough for few calls, and read within ms, so that a stop is noticed soon
SPACE_EVERY_BYTES: Final = 64 * 2**20  # a guess: how often free space is checked, and how much of it must be left
LOCKED_S: Final = 15.0  # a guess: a run that was cancelled ends its thread, and with it its lock, within seconds
SIDECAR: Final = ".job.json"
PART: Final = ".part"

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
DENIED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
NOT_A_PATH: Final = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG})  # the first two: a link on the way
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})  # a file system without hard links

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a pipe in a file's place must not block
_WRITE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = _WRITE | os.O_CREAT | os.O_EXCL

T = TypeVar("T")


# --- opening folders ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def explained(alias: str) -> Generator[None]:
    """Turn an error of a file below this root into the outcome that it calls for.

    Raises:
        Dead: the path leads over a link, or through something that is not a folder; `bad-path`.
        Snooze: the disk is full, or access is denied; `out-of-space`, `alias-missing`.
        OSError: any other, which may pass: as it was.
    """
    try:
        yield
    except OSError as error:
        text = error.strerror or type(error).__name__
        if error.errno in FULL:
            raise wait_for_operator(f"roots.{alias}", "out-of-space", text) from error
        if error.errno in DENIED:
            raise wait_for_operator(f"roots.{alias}", "alias-missing", text) from error
        if error.errno in NOT_A_PATH:
            raise Dead(f"roots.{alias}: {text}", "bad-path") from error
        raise


@contextlib.contextmanager
def open_root(alias: str, root: Root) -> Generator[int]:
    """Yield a descriptor of the root's folder, which the operator may have made a link.

    Raises:
        Snooze: there is no such folder on this host; `alias-missing`.
    """
    try:
        folder = os.open(root.path, _FOLDER)
    except OSError as error:
        if error.errno in (errno.ENOENT, *NOT_A_PATH):
            raise wait_for_operator(f"roots.{alias}", "alias-missing", f"{root.path}: {error.strerror}") from error
        raise
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def open_below(top: int, parts: Sequence[str], *, create: bool = False) -> Generator[int]:
    """Yield a descriptor of the folder that these names lead to, opened one by one and over no link; `top` stays open."""
    folder = os.dup(top)
    try:
        for part in parts:
            inner = _open_inner(folder, part, create)
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def parts_of(path: str) -> list[str]:
    """Return the names that a path below a root leads over; none where it is empty."""
    return path.split("/") if path else []


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
    """Yield the place where a job may write this file; missing folders are made.

    Raises:
        Dead: the root may not be written, the name is reserved, or the path leads over a link; `bad-path`.
        Snooze: the root is not configured, or cannot be used; `alias-missing`, `out-of-space`.
    """
    alias, _, rest = path.partition(":")
    root = settings.root(alias)
    *parts, name = rest.split("/")
    if not root.allows("write"):
        raise Dead(f"roots.{alias} allows mode {root.mode!r} only, not 'write'", "bad-path")
    if name.startswith(".") or name.endswith((SIDECAR, PART)) or len(os.fsencode(name)) > MAX_NAME_BYTES:
        raise Dead(f"roots.{alias}: not a file name that a job may use ({len(name)} characters)", "bad-path")
    with explained(alias), open_root(alias, root) as top, open_below(top, parts, create=True) as folder:
        yield Target(path, root, folder, name)


# --- reading -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def source(settings: Settings, path: str, attempt: int) -> Generator[int]:
    """Yield a descriptor to read a plain file below a root, opened over no link.

    Raises:
        Dead: the path leads over a link or to what is not a plain file, `bad-path`; the file is `too-large` for its root, or is
            still `input-missing`.
        Retry: there is no such file yet; `input-missing`.
        Snooze: the root is not configured, or cannot be used; `alias-missing`.
    """
    alias, _, rest = path.partition(":")
    root = settings.root(alias)
    *parts, name = rest.split("/")
    with explained(alias), open_root(alias, root) as top:
        try:
            with open_below(top, parts) as folder:
                file = os.open(name, _READ, dir_fd=folder)
        except FileNotFoundError:
            raise input_missing(path, attempt) from None
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            raise Dead(f"{path}: must be a plain file", "bad-path")
        if found.st_size > root.limit_bytes:
            raise Dead(f"{path} must have at most {root.limit_bytes} bytes", "too-large")
        with explained(alias):
            yield file
    finally:
        os.close(file)


def open_file(folder: int, name: str) -> int | None:
    """Return a descriptor to read a plain file; None if there is no such file, or it is something else."""
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
    """Yield the bytes from the descriptor's position to the end.

    Raises:
        Stopped: the job was cancelled.
    """
    while chunk := os.read(file, CHUNK_BYTES):
        stop.check()
        yield chunk


def fingerprint(folder: int, name: str, stop: Stop) -> tuple[int, str] | None:
    """Return the size and SHA-256 of a plain file; None as for `open_file`."""
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
    """An unfinished file, `.name.<work>.part`: owns its descriptor and, by a lock, its name. Unpublished, it ends with the block.

    The lock keeps a repeat away from a run that is not over: the job was cancelled and delivered again, and the thread of its
    first run is still writing. The lock ends with its process.
    """

    def __init__(self, folder: int, name: str, work: str, limit_bytes: int) -> None:
        self.folder = folder
        self.name = name
        self.part = f".{name}.{work}{PART}"
        self.size_bytes = 0
        self.file = self._open()
        self._limit_bytes = limit_bytes
        self._next_check_bytes = SPACE_EVERY_BYTES
        self._digest = hashlib.sha256()

    def _open(self) -> int:
        while True:
            try:
                file, is_new = os.open(self.part, _NEW, 0o600, dir_fd=self.folder), True
            except FileExistsError:
                try:
                    file, is_new = os.open(self.part, _WRITE, dir_fd=self.folder), False
                except FileNotFoundError:
                    continue
            try:
                if self._is_ours(file, is_new=is_new):
                    os.truncate(file, 0)
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _is_ours(self, file: int, *, is_new: bool) -> bool:
        """Return whether we hold the lock of a plain file that has this name and no other, and that nobody else has made.

        Raises:
            Snooze: another run of this job holds the lock; `locked`.
            Dead: it is not a plain file; `bad-path`.
        """
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Snooze(LOCKED_S, "locked: another run of this job is still writing the file") from None
        opened = os.fstat(file)
        if not stat.S_ISREG(opened.st_mode):
            raise Dead("the name of the unfinished file belongs to something that is not a file", "bad-path")
        try:
            named = os.stat(self.part, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False  # its writer published or removed it between our open and our lock
        if opened.st_ino != named.st_ino:
            return False
        # With a second name, after a crash between link and unlink, it is a published file. Another owner could go on writing to
        # it; where all files have some other owner, as on NFS with root_squash, it is only made again.
        if opened.st_nlink > 1 or (not is_new and opened.st_uid != os.geteuid()):
            os.unlink(self.part, dir_fd=self.folder)
            return False
        if not is_new:
            os.fchmod(file, 0o600)
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
        """The digest of the bytes written so far."""
        return self._digest.hexdigest()

    def write(self, data: bytes) -> int:
        """Append all of the data and return its length.

        Raises:
            Dead: the file would be larger than the root allows; `too-large`.
            OSError: from the disk; also ENOSPC when little space is left on it.
        """
        self.size_bytes += len(data)
        if self.size_bytes > self._limit_bytes:
            raise Dead(f"the file must have at most {self._limit_bytes} bytes", "too-large")
        if self.size_bytes >= self._next_check_bytes:
            self._next_check_bytes += SPACE_EVERY_BYTES
            space = os.fstatvfs(self.file)
            if space.f_bavail * space.f_frsize < SPACE_EVERY_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._digest.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.file, rest) :]
        return len(data)

    def flush(self) -> None:
        """Do nothing: there is no buffer. `gzip` calls it."""

    def publish(self, *, replace: bool) -> None:
        """Sync the file and give it its name; the caller must sync the folder.

        Raises:
            FileExistsError: the name is taken, and `replace` is false.
        """
        os.fsync(self.file)
        if not replace:
            try:
                os.link(self.part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder, follow_symlinks=False)
                return
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
            # Without hard links, two jobs that publish one name at the same moment are not told apart: the later one wins.
            if self._is_taken():
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.rename(self.part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def _is_taken(self) -> bool:
        try:
            os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True


def origin_of(job: Job | None) -> dict[str, Any]:
    """Return what a sidecar says of the job itself."""
    return {} if job is None else {"type": job.type.decode(), "born": datetime.fromtimestamp(int(job.born), UTC)}


class Sidecar(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of `name.job.json`, about the file beside it; of which type its job was and when that was born, if told."""

    type: str = ""
    born: datetime | None = None
    work: str
    size: int
    sha256: str
    result: msgspec.Raw


class Writer(Part):
    """An unfinished file with a sidecar. Call `already` first, then `write`, then `finish`.

    The sidecar is on the disk under a temporary name before the file gets its name: after a crash between the two, the next run
    finds it and gives it its name.
    """

    def __init__(self, place: Target, work: str, stop: Stop, *, overwrite: bool = False) -> None:
        super().__init__(place.folder, place.name, work, place.root.limit_bytes)
        self._path = place.path
        self._work = work
        self._stop = stop
        self._overwrite = overwrite and place.root.overwrite
        self._is_denied = overwrite and not place.root.overwrite
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
        """Return the result if this work is done: its file and sidecar exist and match. None if it must be done.

        Raises:
            Dead: the name belongs to another file, which may not be replaced; `output-exists`.
        """
        shown, staged = self._read_sidecar(self._sidecar), self._read_sidecar(self._staged)
        is_ours = shown is not None and shown.work == self._work
        if is_ours or staged is not None:
            there = fingerprint(self.folder, self.name, self._stop)
            for found in (shown, staged):
                if found is not None and (found.work, found.size, found.sha256) == (self._work, *(there or ())):
                    if found is staged:
                        self._publish_sidecar()
                    with contextlib.suppress(
                        msgspec.MsgspecError
                    ):  # the result of another version of this contract: do the work again
                        return msgspec.json.decode(found.result, type=kind)
                    is_ours = True
        if not is_ours and self._is_taken() and (shown is None or not self._overwrite):
            self._refuse()
        self._overwrite = self._overwrite or is_ours
        return None

    def _refuse(self) -> NoReturn:
        hint = "; hint: overwrite = true in the settings of its root" if self._is_denied else ""
        raise Dead(f"{self._path} exists, and was not written by this job{hint}", "output-exists")

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

    def finish(self, result: msgspec.Struct, job: Job | None = None) -> None:
        """Return when the file has its name and its sidecar, and both survive a power cut.

        Args:
            result: of the job, which a repeat finds.
            job: for what may be shown as evidence: the sidecar says its type, and when it was born.

        Raises:
            Dead: another job or program took the name after `already`; `output-exists`.
        """
        raw = msgspec.Raw(msgspec.json.encode(result))
        sidecar = Sidecar(**origin_of(job), work=self._work, size=self.size_bytes, sha256=self.sha256, result=raw)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._staged, dir_fd=self.folder)
        self._is_staging = True
        staged = os.open(self._staged, _NEW, 0o600, dir_fd=self.folder)
        with open(staged, "wb") as file:
            file.write(msgspec.json.encode(sidecar) + b"\n")
            file.flush()
            os.fsync(staged)
        self._stop.check()
        try:
            self.publish(replace=self._overwrite)
        except FileExistsError:
            self._refuse()
        self._publish_sidecar()

    def _publish_sidecar(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # a repeat that began right after our file got its name did it
            os.rename(self._staged, self._sidecar, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        os.fsync(self.folder)


def found_before(settings: Settings, path: str, kind: type[T], work: str, stop: Stop, *, overwrite: bool = False) -> T | None:
    """Return the result of an earlier run of this work, whose file is complete; None if the work must be done.

    Raises: what `target` and `Writer.already` do.
    """
    with target(settings, path) as place, Writer(place, work, stop, overwrite=overwrite) as out:
        return out.already(kind)
