"""Keeping a machine tidy: what a producer fills in, and what comes of it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias, Glob, RootPath, check_path
from runtime import Priority, contract

MAX_AGE_DAYS: Final = 3650
_HOURS: Final = {"h": 1, "d": 24}

Age = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,4}[hd](?![\s\S])", description="an age in hours or days: `36h`, `30d`")]


@contract("cleanup-logs", priority=Priority.LOW)
class CleanupLogs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Old files of a root, deleted or compressed.

    The globs are held against file names; a folder whose name fits an `exclude` is not entered. `keep_last` spares the newest
    files of each folder. `max_total_bytes` deletes more than the old ones, oldest first, until the rest is no larger.
    `dry_run` only counts, and writes the names to `listing`, a JSON line each. `force` lifts the safety brake.
    """

    root: Alias
    include: Annotated[list[Glob], Meta(min_length=1, max_length=20)]
    older_than: Age
    exclude: Annotated[list[Glob], Meta(max_length=20)] = []
    action: Literal["delete", "gzip"] = "delete"
    keep_last: Annotated[int, Meta(ge=0, le=10_000)] = 0
    max_total_bytes: Annotated[int, Meta(ge=0)] | None = None
    recurse: bool = True
    dry_run: bool = False
    listing: RootPath | None = None
    force: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense together.

        Raises:
            ValueError: as the text says.
        """
        if self.older_than_s > MAX_AGE_DAYS * 86_400:
            raise ValueError(f"more than {MAX_AGE_DAYS} days - at `$.older_than`")
        if self.max_total_bytes is not None and self.action != "delete":
            raise ValueError("`max_total_bytes` goes with `delete`")
        if self.listing is not None:
            if not self.dry_run:
                raise ValueError("`listing` goes with `dry_run`")
            check_path(self.listing, "listing")

    @property
    def older_than_s(self) -> int:
        """The age in seconds."""
        return int(self.older_than[:-1]) * _HOURS[self.older_than[-1]] * 3600


class Cleaned(msgspec.Struct, frozen=True, kw_only=True):
    """What was found and done.

    `matched` files were due. `skipped` of them were gone, changed or replaced by something else when their turn came; `failed`
    are the files and folders that the system refused. `oldest_left` is when the oldest file that is left was last written.
    """

    matched: int
    deleted: int = 0
    compressed: int = 0
    skipped: int = 0
    failed: int = 0
    bytes_freed: int = 0
    oldest_left: str | None = None
    listing: str | None = None
