"""The payloads of the jobs that show limits, rates, groups and schedules in the demo."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from handlers.contracts.types import Line
from runtime import Priority, contract

Took = Annotated[float, Meta(ge=0, le=600, description="how long it takes, in seconds")]


@contract("demo-resize-image")
class ResizeImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image; few at a time, as each would need much memory."""

    image: int
    takes_s: Took


@contract("demo-tell-partner", priority=Priority.HIGH)
class TellPartner(msgspec.Struct, frozen=True, kw_only=True):
    """A request to a partner's API, which allows few per second."""

    order: int


@contract("demo-build-report", priority=Priority.LOW)
class BuildReport(msgspec.Struct, frozen=True, kw_only=True):
    """A report of a customer; one at a time for each, the jobs' group."""

    customer: Line
    takes_s: Took


@contract("demo-warm-cache", priority=Priority.LOW)
class WarmCache(msgspec.Struct, frozen=True, kw_only=True):
    """A page; many come at once, and nobody waits for them."""

    page: int
    takes_s: Took


@contract("demo-check-payment", priority=Priority.CRITICAL)
class CheckPayment(msgspec.Struct, frozen=True, kw_only=True):
    """A payment that somebody waits for; runs at once, whatever else there is to do."""

    number: int


@contract("demo-take-stock", priority=Priority.MEDIUM)
class TakeStock(msgspec.Struct, frozen=True, kw_only=True):
    """A look at the stock, every few seconds by a schedule."""

    shop: Line


@contract("demo-sync-contacts")
class SyncContacts(msgspec.Struct, frozen=True, kw_only=True):
    """The contacts of an account, at a partner that refuses those without a key: they fail, again and again, and die."""

    account: Line
    has_key: bool = True


@contract("demo-import-catalog", priority=Priority.LOW)
class ImportCatalog(msgspec.Struct, frozen=True, kw_only=True):
    """A long import, which says how far it is."""

    rows: int
    takes_s: Took


@contract("demo-parse-upload", priority=Priority.LOW)
class ParseUpload(msgspec.Struct, frozen=True, kw_only=True):
    """An upload whose handler holds the loop, as a forgotten synchronous call does: all that runs beside it waits."""

    upload: int
    holds_loop_s: Annotated[float, Meta(ge=0, le=1)]


@contract("demo-render-preview", priority=Priority.LOW)
class RenderPreview(msgspec.Struct, frozen=True, kw_only=True):
    """A preview that is rendered in a child process; poison ends the child, never the worker."""

    document: int
    is_poison: bool = False
