"""The payloads and the results of `cleanup-logs` and `backup-database`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias, Glob, Line, RootPath, check_path
from runtime import Priority, contract

MAX_LABEL_CHARS: Final = 60  # a guess: what a person calls a backup
MAX_TRIES: Final = 4  # as often as other failures are tried
MAX_AGE_DAYS: Final = 3650  # a guess: ten years, longer than any law has logs kept
_HOURS: Final = {"h": 1, "d": 24}

Age = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,4}[hd](?![\s\S])", description="an age in hours or days: `36h`, `30d`")]


def age_s(age: Age) -> int:
    """Return an age in seconds."""
    return int(age[:-1]) * _HOURS[age[-1]] * 3600


@contract("cleanup-logs", priority=Priority.LOW)
class CleanupLogs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delete or compress the old files of a root.

    The globs are matched against file names; a folder whose name matches an `exclude` is not entered. `keep_last` keeps the
    newest files of each folder. `max_total_bytes` deletes more than the old ones, oldest first, until the rest is no larger.
    `dry_run` only counts, and writes the names to `listing`, a JSON line each. `force` turns the safety brake off.
    """

    root: Alias
    include: Annotated[list[Glob], Meta(min_length=1, max_length=20)]
    older_than: Age
    exclude: Annotated[list[Glob], Meta(max_length=20)] = []
    action: Literal["delete", "gzip", "zstd"] = "delete"
    keep_last: Annotated[int, Meta(ge=0, le=10_000)] = 0
    max_total_bytes: Annotated[int, Meta(ge=0)] | None = None
    recurse: bool = True
    dry_run: bool = False
    listing: RootPath | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: the age is too long, or a field was given that the action or `dry_run` does not take.
        """
        if self.older_than_s > MAX_AGE_DAYS * 86_400:
            raise ValueError(f"must be at most {MAX_AGE_DAYS} days - at `$.older_than`")
        if self.max_total_bytes is not None and self.action != "delete":
            raise ValueError("`max_total_bytes` needs `action: delete`")
        if self.listing is not None:
            if not self.dry_run:
                raise ValueError("`listing` needs `dry_run: true`")
            check_path(self.listing, "listing")

    @property
    def older_than_s(self) -> int:
        """The age in seconds."""
        return age_s(self.older_than)


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """What `cleanup-logs` found and did.

    `matched` files were due. `skipped` of them were gone, changed or replaced when their turn came; `failed` are the files and
    folders that the system refused. `oldest_left` is when the oldest remaining file was last written.
    """

    matched: int
    deleted: int = 0
    compressed: int = 0
    skipped: int = 0
    failed: int = 0
    bytes_freed: int = 0
    oldest_left: str | None = None
    listing: str | None = None


@contract("backup-database", priority=Priority.LOW)
class BackupDatabase(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Make one of the backups that the worker's settings define, and check it.

    `verify` is how: `restore` it into a scratch database and count the rows there, or only `list` what it holds; the settings may
    say `list` for all. `label` is for people. `tries` is set by the handler, where it hands on a backup that was not verified.
    """

    backup: Alias
    verify: Literal["restore", "list"] = "restore"
    label: Line = ""
    tries: Annotated[int, Meta(ge=1, le=MAX_TRIES)] = 1

    def __post_init__(self) -> None:
        """Check the label.

        Raises:
            ValueError: it is too long.
        """
        if len(self.label) > MAX_LABEL_CHARS:
            raise ValueError(f"must have at most {MAX_LABEL_CHARS} characters - at `$.label`")


class BackedUp(msgspec.Struct, frozen=True, kw_only=True):
    """The folder with the backup, and what is in it: `sha256` and `compressed` are of the file on disk, `bytes` of its content.

    `verified` is `restored` where the rows were counted in a scratch database, `listed` where only the content was read back, and
    `failed` where it was neither: then there is no folder, and another job tries again. `removed` are backups that the retention
    does not keep.
    """

    folder: str = ""
    bytes: int = 0
    compressed: int = 0
    sha256: str = ""
    tables: int = 0
    rows: int = 0
    verified: Literal["restored", "listed", "failed"]
    seconds: float = 0.0
    removed: list[str] = []
