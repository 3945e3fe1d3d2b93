"""The jobs of the demo: a mix of every shape, so that a person sees what each looks like."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import redis.asyncio
from redis.exceptions import RedisError

from handlers.contracts.demo import (
    BuildReport,
    CheckPayment,
    ImportCatalog,
    ParseUpload,
    RenderPreview,
    ResizeImage,
    SyncContacts,
    TellPartner,
    WarmCache,
)
from handlers.contracts.email import SendEmail
from handlers.demo_work import Work
from runtime import JobsError, Message, Producer

PAUSE_S: Final = (0.1, 0.5)  # a guess: between two jobs, so that a person can follow them
# Guesses: each of these comes a few times a minute, waits for its limit for some seconds, and is done before the next one.
IMAGES: Final = 10
ORDERS_TOLD: Final = 25
REPORTS: Final = 12
PAGES: Final = 300
CUSTOMERS: Final = ("ada", "edsger", "grace")
ACCOUNTS: Final = ("acme", "globex", "initech", "umbrella", "hooli")
IMPORT_S: Final = (60.0, 180.0)  # a guess: long enough to be looked at while it runs


class Traffic:
    """Sends a mix of jobs that succeed, fail, wait and expire. Its random numbers are seeded, so that every run is the same."""

    def __init__(self, producer: Producer, raw: redis.asyncio.Redis, folder: Path) -> None:
        self._producer = producer
        self._folder = folder
        self._raw = raw
        self._random = random.Random(7)  # noqa: S311 -- traffic, not a secret
        self._number = 0
        self._work = Work(producer, folder, self._random)
        # The weights are guesses: most jobs succeed, and each kind of failure comes a few times a minute.
        self._scenarios: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (46, self._plain),
            (12, self._from_template),
            (9, self._busy),
            (6, self._late),
            (5, self._some_refused),
            (4, self._refused),
            (3, self._full),
            (3, self._busy_for_too_long),
            (3, self._without_a_variable),
            (3, self._expired),
            (3, self._twice),
            (3, self._malformed),
            (30, self._payment),
            (5, self._images),
            (4, self._partner),
            (4, self._reports),
            (2, self._pages),
            (6, self._contacts),
            (2, self._import),
            (2, self._upload),
            (2, self._preview),
            (1, self._poison),
            (1, self._of_a_newer_version),
            *self._work.scenarios,
        ]

    async def run(self, log: Callable[[str], None]) -> None:
        """Send until cancelled; what a store that is away refuses is logged, and the next job is sent."""
        await self._work.first()
        weights = [weight for weight, _ in self._scenarios]
        while True:
            ((_, send),) = self._random.choices(self._scenarios, weights)
            self._number += 1
            try:
                await send()
            except (JobsError, RedisError) as error:
                log(f"not sent: {error}")
            await asyncio.sleep(self._random.uniform(*PAUSE_S))

    def _mail(self, name: str = "ada", *more: str) -> SendEmail:
        to = [f"{each}{self._number}@example.org" for each in (name, *more)]
        text = f"This is mail number {self._number}.\n"
        return SendEmail(to=to, subject=f"Order {self._number} for {name}", text=text)

    def _order(self, **params: Any) -> SendEmail:
        to = f"grace{self._number}@example.org"
        return SendEmail(to=to, subject=f"Order {self._number}", template="order", params={"name": "Grace", **params})

    async def _plain(self) -> None:
        await self._producer.send(self._mail(self._random.choice(["ada", "grace", "alan", "edsger"])))

    async def _from_template(self) -> None:
        await self._producer.send(self._order(order={"number": self._number}))

    async def _busy(self) -> None:
        await self._producer.send(self._mail("busy"), attempts=3)

    async def _late(self) -> None:
        await self._producer.send(self._mail("late"), delay_s=self._random.uniform(5, 20))

    async def _some_refused(self) -> None:
        await self._producer.send(self._mail("ada", "refused", "alan"))

    async def _refused(self) -> None:
        await self._producer.send(self._mail("refused"))

    async def _full(self) -> None:
        await self._producer.send(self._mail("full"))

    async def _busy_for_too_long(self) -> None:
        await self._producer.send(self._mail("busy"), attempts=1)

    async def _without_a_variable(self) -> None:
        await self._producer.send(self._order())

    async def _expired(self) -> None:
        await self._producer.send(self._mail("expired"), exp=time.time() - 1)

    async def _twice(self) -> None:
        for _ in range(2):
            await self._producer.send(self._mail("once"), key=f"order-{self._number}", delay_s=5)

    async def _payment(self) -> None:
        await self._producer.send(CheckPayment(number=self._number))

    async def _images(self) -> None:
        await self._producer.send_many(ResizeImage(image=n, takes_s=self._takes_s()) for n in range(IMAGES))

    async def _partner(self) -> None:
        await self._producer.send_many(TellPartner(order=n) for n in range(ORDERS_TOLD))

    async def _reports(self) -> None:
        customers = self._random.choices(CUSTOMERS, k=REPORTS)
        await self._producer.send_many(
            Message(payload=BuildReport(customer=name, takes_s=self._takes_s()), group=name) for name in customers
        )

    async def _pages(self) -> None:
        await self._producer.send_many(WarmCache(page=n, takes_s=self._takes_s()) for n in range(PAGES))

    async def _contacts(self) -> None:
        """Two of five accounts have lost their key: their jobs fail with each attempt."""
        account = self._random.choice(ACCOUNTS)
        await self._producer.send(SyncContacts(account=account, has_key=account not in ACCOUNTS[3:]))

    async def _import(self) -> None:
        await self._producer.send(ImportCatalog(rows=self._random.randrange(50_000, 90_000), takes_s=self._takes_s(*IMPORT_S)))

    async def _upload(self) -> None:
        await self._producer.send(ParseUpload(upload=self._number, holds_loop_s=self._takes_s(0.1, 0.4)))

    async def _preview(self) -> None:
        await self._producer.send(RenderPreview(document=self._number))

    async def _poison(self) -> None:
        await self._producer.send(RenderPreview(document=self._number, is_poison=True))

    async def _of_a_newer_version(self) -> None:
        fields = {"type": "demo-check-payment", "data": '{"number": 1, "currency": "EUR"}', "v": "2"}
        await self._raw.xadd("{jobs}:critical", fields)  # pyright: ignore[reportUnknownMemberType, reportArgumentType]

    def _takes_s(self, least_s: float = 0.3, most_s: float = 1.5) -> float:
        return round(self._random.uniform(least_s, most_s), 3)

    async def _malformed(self) -> None:
        fields = self._random.choice(
            [
                {"data": "{}"},
                {"type": "send-email", "data": '{"to": '},
                {"type": "send-email", "data": '{"to": "nobody", "subject": 7}'},
                {"type": "paint-house", "data": "{}"},
            ]
        )
        await self._raw.xadd("{jobs}:high", fields)  # pyright: ignore[reportUnknownMemberType, reportArgumentType]
