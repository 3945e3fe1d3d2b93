"""The handlers of the demo that show limits, rates, groups, schedules, progress and trouble; most only wait, in place of work."""

from __future__ import annotations

import asyncio
import os
import time

from handlers.contracts.demo import (
    BuildReport,
    CheckPayment,
    ImportCatalog,
    ParseUpload,
    RenderPreview,
    ResizeImage,
    SyncContacts,
    TakeStock,
    TellPartner,
    WarmCache,
)
from runtime import Backoff, Job, Schedule, handler

# Guesses, all of them: so that a person sees jobs wait for their turn, and the queue run empty in between.
ANSWER_S = 0.2
ROWS = 500  # of a step of an import

stock_every_5_s = Schedule("demo-take-stock", "", TakeStock(shop="main"), every_s=5, expires_s=5, missed="skip")
report_of_the_minute = Schedule(
    "demo-minute-report", "* * * * *", BuildReport(customer="all", takes_s=3), overlap="skip", missed="skip"
)


@handler(ResizeImage, limit=3)
async def resize_image(message: ResizeImage, job: Job) -> None:
    """Return when the image is resized."""
    await asyncio.sleep(message.takes_s)


@handler(TellPartner, rate="5/s")
async def tell_partner(message: TellPartner, job: Job) -> None:
    """Return when the partner has answered."""
    await asyncio.sleep(ANSWER_S)


@handler(BuildReport, group_limit=1)
async def build_report(message: BuildReport, job: Job) -> None:
    """Return when the report is built."""
    await asyncio.sleep(message.takes_s)


@handler(WarmCache)
async def warm_cache(message: WarmCache, job: Job) -> None:
    """Return when the page is in the cache."""
    await asyncio.sleep(message.takes_s)


@handler(CheckPayment)
async def check_payment(message: CheckPayment, job: Job) -> None:
    """Return when the payment is known to be fine."""
    await asyncio.sleep(ANSWER_S)


@handler(TakeStock)
async def take_stock(message: TakeStock, job: Job) -> None:
    """Return when the stock is known."""
    await asyncio.sleep(ANSWER_S)


class PartnerError(Exception):
    """The partner has refused a request."""


@handler(SyncContacts, retry=Backoff(base_s=2, cap_s=20, attempts=4))
async def sync_contacts(message: SyncContacts, job: Job) -> None:
    """Return when the contacts are the same on both sides."""
    await asyncio.sleep(ANSWER_S)
    if not message.has_key:
        raise PartnerError(
            f"401 Unauthorized for https://partner.example/v3/accounts/{message.account}/contacts?page={job.attempt}"
        )


@handler(ImportCatalog, timeout_s=600)
async def import_catalog(message: ImportCatalog, job: Job) -> None:
    """Return when all rows are in."""
    steps = max(1, message.rows // ROWS)
    for step in range(steps):
        await asyncio.sleep(message.takes_s / steps)
        job.progress(min(message.rows, (step + 1) * ROWS), message.rows, "rows")
        if step % 40 == 0:
            job.log(f"{step * ROWS} rows are in")


@handler(ParseUpload)
async def parse_upload(message: ParseUpload, job: Job) -> None:
    """Return when the upload is parsed; what it calls does not await, which `doctor` and the board show."""
    time.sleep(message.holds_loop_s)  # noqa: ASYNC251 -- the trouble that this one is there to show


@handler(RenderPreview, runs="process", timeout_s=20, retry=Backoff(base_s=2, cap_s=5, attempts=2))
def render_preview(message: RenderPreview, job: Job) -> None:
    """Return when the preview is there."""
    time.sleep(ANSWER_S)
    if message.is_poison:
        os.abort()
