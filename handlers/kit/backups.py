"""Folders of backups, one for each, which are visible only when complete and verified, with `manifest.json`; and which to keep.

All who work in such a folder hold its lock.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import time
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final, Literal
from zoneinfo import ZoneInfo

import msgspec

from handlers.kit.failures import wait_for_operator
from handlers.kit.files import LOCKED_S, PART, Part, explained, fingerprint, open_below, open_file, open_root
from handlers.kit.points import point
from handlers.kit.sections import Backup, Root
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Job, Snooze

log = logging.getLogger("handlers.backups")

MANIFEST: Final = "manifest.json"
LOCK: Final = ".lock"
MAX_MANIFEST_BYTES: Final = 16 * 2**20  # a guess: 100,000 tables with long names
SPACE_FACTOR: Final = 1.2  # a guess: how much larger than the last backup the next one may be
ABANDONED_S: Final = 86_400.0  # a guess: far longer than any job works on one
MAX_REMOVED: Final = 50  # a guess: of one run; the names of more would not fit into a result
_NAME: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z2-7]{26}")
_PART_NAME: Final = re.compile(rf"\.{_NAME.pattern}{re.escape(PART)}")
_PERIODS: Final = {"keep_daily": "%Y-%m-%d", "keep_weekly": "%G-%V", "keep_monthly": "%Y-%m"}


class NotVerified(Exception):
    """A backup does not hold what it should; the text says how that shows."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a backup: `bytes` and `content_sha256` are of the dump, `compressed` and `sha256` of the file it is in.

    `born` is when the job was first enqueued, `taken` the moment that the backup shows; `tables` are the rows of each table then.
    """

    backup: str
    work: str
    born: datetime
    taken: datetime
    kind: Literal["sqlite", "postgresql"]
    label: str = ""
    file: str
    bytes: int
    content_sha256: str
    compressed: int
    sha256: str
    tables: dict[str, int]
    versions: dict[str, str]
    foreign_key_violations: int = 0
    verified: Literal["restored", "listed"]
    why_listed: str = ""
    seconds: float


def expired(made: Mapping[str, datetime], section: Backup) -> list[str]:
    """Return the names that no day, week or month keeps, oldest first.

    Of each period the last one is kept, for so many periods that have any: a gap makes nothing expire.
    """
    zone = ZoneInfo(section.tz)
    newest_first = sorted(made, key=lambda name: (made[name], name), reverse=True)
    kept: set[str] = set()
    for setting, period in _PERIODS.items():
        last: dict[str, str] = {}
        for name in newest_first:
            last.setdefault(made[name].astimezone(zone).strftime(period), name)
        kept |= set(list(last.values())[: getattr(section, setting)])
    return [name for name in reversed(newest_first) if name not in kept]


class Draft:
    """The folder of a backup that is being made, which nobody sees: owns its descriptor."""

    def __init__(self, folder: int, path: str, root: Root, work: str) -> None:
        self.folder = folder
        self.path = path
        self._root = root
        self._work = work

    def part(self, name: str) -> Part:
        """Return a new file of the backup, as large as the root allows."""
        return Part(self.folder, name, self._work, self._root.limit_bytes)

    def check_space(self, need_bytes: float) -> None:
        """Return if so much is free.

        Raises:
            OSError: ENOSPC.
        """
        space = os.fstatvfs(self.folder)
        if space.f_bavail * space.f_frsize < need_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_manifest(self, manifest: Manifest) -> None:
        """Return when the manifest, and with it all of the folder, is on the disk."""
        file = os.open(MANIFEST, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.folder)
        with open(file, "wb") as out:
            out.write(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
            out.flush()
            os.fsync(file)
        os.fsync(self.folder)


class Shelf:
    """The folder in which the backups of an alias are: owns its descriptor and its lock. `opened_shelf` makes one."""

    def __init__(self, alias: str, section: Backup, root: Root, folder: int) -> None:
        self._alias = alias
        self._section = section
        self._root = root
        self._folder = folder
        self._path = f"{root.path}/{section.to.partition(':')[2]}"

    def find(self, job: Job, stop: Stop) -> Manifest | None:
        """Return the manifest of the backup that this job has made; None if there is none, or its file is not as it was."""
        name = name_of(job)
        manifest = self._manifest(name)
        if manifest is None:
            return None
        with open_below(self._folder, [name]) as folder:
            if fingerprint(folder, manifest.file, stop) == (manifest.compressed, manifest.sha256):
                return manifest
        log.warning("backups.%s: %s is damaged, and made anew", self._alias, name)
        self._remove(name)
        return None

    def newest(self) -> Manifest | None:
        """Return the manifest of the newest backup."""
        return max(self._manifests().values(), key=lambda each: each.taken, default=None)

    @contextlib.contextmanager
    def draft(self, job: Job) -> Generator[Draft]:
        """Yield an empty folder, which is gone at the end of the block unless it was published; so is what crashes left."""
        name = f".{name_of(job)}{PART}"
        self._sweep(name)
        os.mkdir(name, 0o700, dir_fd=self._folder)
        try:
            with open_below(self._folder, [name]) as folder:
                yield Draft(folder, f"{self._path}/{name}", self._root, job.work)
        finally:
            with contextlib.suppress(FileNotFoundError):
                _delete_folder(self._folder, name)

    def publish(self, job: Job) -> None:
        """Return when the folder of the draft has its name, and would have it after a power cut."""
        point("backup.before-publish")
        name = name_of(job)
        os.rename(f".{name}{PART}", name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)
        point("backup.after-publish")

    def retire(self, job: Job, stop: Stop) -> list[str]:
        """Remove the backups that are not kept, and return their names; never this job's, nor the last that was restored."""
        manifests = self._manifests()
        restored = [name for name, each in manifests.items() if each.verified == "restored"]
        spared = {name_of(job), max(restored, key=lambda name: manifests[name].taken, default="")}
        going = expired({name: each.taken for name, each in manifests.items()}, self._section)
        going = [name for name in going if name not in spared][:MAX_REMOVED]
        for name in going:
            stop.check()
            self._remove(name)
        return going

    def _manifests(self) -> dict[str, Manifest]:
        """Return the backups of this alias that are whole, as far as that can be seen from outside; others are left alone."""
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if _NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)]
        found = {name: self._manifest(name) for name in names}
        return {name: each for name, each in found.items() if each is not None and each.backup == self._alias}

    def _manifest(self, name: str) -> Manifest | None:
        with contextlib.suppress(FileNotFoundError), open_below(self._folder, [name]) as folder:
            manifest = read_manifest(folder)
            if manifest is not None and name.endswith(manifest.work):
                size_bytes = os.stat(manifest.file, dir_fd=folder, follow_symlinks=False).st_size
                return manifest if size_bytes == manifest.compressed else None
        return None

    def _remove(self, name: str) -> None:
        """Delete a backup; first it loses its name, so that nobody sees half of one."""
        hidden = f".{name}{PART}"
        point("backup.before-remove")
        os.rename(name, hidden, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        os.fsync(self._folder)
        point("backup.while-removing")
        _delete_folder(self._folder, hidden)
        point("backup.after-remove")

    def _sweep(self, ours: str) -> None:
        """Delete unfinished folders: ours, since we have the lock, and others that are so old that nobody works on them."""
        with os.scandir(self._folder) as entries:
            found = [entry.name for entry in entries if _PART_NAME.fullmatch(entry.name)]
        for name in found:
            written_s = os.stat(name, dir_fd=self._folder, follow_symlinks=False).st_mtime
            if name == ours or written_s < time.time() - ABANDONED_S:
                _delete_folder(self._folder, name)


@contextlib.contextmanager
def opened_shelf(settings: Settings, alias: str) -> Generator[Shelf]:
    """Yield the folder of the backups of this alias, which is made if need be; nobody else works in it meanwhile.

    Raises:
        Snooze: the settings or the disk must be fixed, `alias-missing`, `out-of-space`; or another run is not over, `locked`.
        Dead: the path leads over a link; `bad-path`.
    """
    section = settings.backup(alias)
    root_alias, _, rest = section.to.partition(":")
    root = settings.root(root_alias)
    if not root.allows("write"):
        raise wait_for_operator(f"roots.{root_alias}", "alias-missing", f"allows mode {root.mode!r} only, not 'write'")
    with (
        explained(root_alias),
        open_root(root_alias, root) as top,
        open_below(top, rest.split("/"), create=True) as folder,
        _locked(folder, alias),
    ):
        yield Shelf(alias, section, root, folder)


@contextlib.contextmanager
def _locked(folder: int, alias: str) -> Generator[None]:
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Snooze(LOCKED_S, f"locked: another run works on backups.{alias}") from None
        yield
    finally:
        os.close(lock)


def name_of(job: Job) -> str:
    """Return the name of the folder of a job's backup."""
    return f"{datetime.fromtimestamp(int(job.born), UTC):%Y%m%dT%H%M%SZ}-{job.work}"


def read_manifest(folder: int) -> Manifest | None:
    """Return the manifest of a backup; None if there is none that can be read, or it names a file elsewhere."""
    file = open_file(folder, MANIFEST)
    if file is None:
        return None
    with open(file, "rb") as text, contextlib.suppress(msgspec.MsgspecError):
        manifest = msgspec.json.decode(text.read(MAX_MANIFEST_BYTES), type=Manifest)
        return manifest if "/" not in manifest.file else None
    return None


def _delete_folder(parent: int, name: str) -> None:
    with open_below(parent, [name]) as folder:
        for inner in _names_in(folder):
            os.unlink(inner, dir_fd=folder)
    os.rmdir(name, dir_fd=parent)


def _names_in(folder: int) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from [entry.name for entry in entries]
