"""The payload and the result of `sync-crm-data`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias
from runtime import Priority, contract


@contract("sync-crm-data", priority=Priority.MEDIUM)
class SyncCrmData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bring the records of a CRM into a table. The worker's settings say which CRM, and what its resources are.

    `incremental` asks for what has changed since the last time; `full` asks for everything, and marks as deleted what is gone.
    After `max_pages` the job is done, and the next one goes on from there.
    """

    crm: Alias
    resource: Alias
    mode: Literal["incremental", "full"] = "incremental"
    max_pages: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000


class Synced(msgspec.Struct, frozen=True, kw_only=True):
    """What came, since the first page: also from the jobs before, where they did not come to the end.

    `upserted` rows are new or have changed. `high_water` is when the newest record had been changed, and `is_complete` says
    whether the last page was read. `not_modified` says that the CRM had nothing new at all.
    """

    pages: int
    rows: int
    upserted: int
    unchanged: int
    deleted: int
    high_water: str
    is_complete: bool
    not_modified: bool = False
