"""The handlers of the demo that show limits, rates, groups and schedules; each only waits, in place of work."""

from __future__ import annotations

import asyncio

from handlers.contracts.demo import BuildReport, CheckPayment, ResizeImage, TakeStock, TellPartner, WarmCache
from runtime import Job, Schedule, handler

# Guesses, all of them: so that a person sees jobs wait for their turn, and the queue run empty in between.
ANSWER_S = 0.2

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
