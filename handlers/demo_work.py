"""The jobs of the demo for the shipped handlers: each type comes within the first seconds, and then now and again."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Literal

from handlers.contracts.crm import SyncCrmData
from handlers.contracts.data import Column, ExportCsv, ImportData
from handlers.contracts.email import Recipient, SendBulkEmail
from handlers.contracts.maintenance import BackupDatabase, CleanupLogs
from handlers.contracts.notifications import SendNotification
from handlers.contracts.reports import ExportPdf, GenerateReports, Mail
from handlers.contracts.sources import Condition, Order, Table
from handlers.contracts.windows import Window
from runtime import Producer

OLD_S: Final = 40 * 86400  # older than the 30 days of `_clean_up`
# Guesses: enough to look into, and the demo may run for days without filling the disk.
KEPT: Final = 20
MODES: Final[tuple[Literal["full", "incremental"], ...]] = ("full", "incremental")
READERS: Final = 60
STOCK_ROWS: Final = 20_000
PRICES: Final = {"Lamp": 49.0, "Chair": 129.5, "Desk": 310.0, "Shelf": 84.25, "Rug": 59.9}


class Work:
    """Sends jobs of the shipped types, with the files that they need."""

    def __init__(self, producer: Producer, folder: Path, chance: random.Random) -> None:
        self._producer = producer
        self._folder = folder
        self._random = chance
        self._number = 0

    @property
    def scenarios(self) -> list[tuple[int, Callable[[], Awaitable[object]]]]:
        """Each kind of job, and how often it comes, beside others."""
        return [
            (8, self.export_csv),
            (3, self.clean_up),
            (5, self.notify),
            (4, self.export_pdf),
            (2, self.import_data),
            (2, self.sync_crm),
            (1, self.bulk),
            (1, self.back_up),
            (1, self.report),
        ]

    async def first(self) -> None:
        """Send one job of each kind."""
        for _, send in list(self.scenarios):
            await send()

    async def export_csv(self) -> None:
        """The orders of a day, as a spreadsheet."""
        of_one_day = [Condition(column="day", op="eq", value=self._random.randrange(28) + 1)]
        columns = ["id", "day", "customer", "total"]
        source = Table(db="shop", table="orders", columns=columns, where=of_one_day, order_by=[Order(column="id")])
        await self._producer.send(ExportCsv(source=source, to=f"exports:orders-{self._next() % KEPT}.csv", overwrite=True))

    async def clean_up(self) -> None:
        """Make a few old logs, as web servers that rotate them do, and send a job that deletes them."""
        await asyncio.to_thread(self._make_logs)
        await self._producer.send(CleanupLogs(root="logs-web", include=["*.log.*"], older_than="30d", force=True))

    def _make_logs(self) -> None:
        logs, now_s, run = self._folder / "logs", time.time(), self._next()
        for number in range(5):
            path = logs / f"access.log.{run}.{number}"
            path.write_text("127.0.0.1 - - GET / 200\n" * 100, "utf-8")
            os.utime(path, (now_s - OLD_S, now_s - OLD_S))
        (logs / "access.log").write_text("127.0.0.1 - - GET / 200\n", "utf-8")

    async def notify(self) -> None:
        """A word to the people who run the shop."""
        number = self._next()
        body = f"Only {self._random.randrange(1, 9)} lamps are left."
        await self._producer.send(SendNotification(channel="ops", title="Stock is low", body=body, data={"case": number}))

    async def export_pdf(self) -> None:
        """An invoice."""
        number = self._next()
        chosen = self._random.sample(sorted(PRICES), k=3)
        items = [(name, n, PRICES[name]) for n, name in enumerate(chosen, 1)]
        total = sum(n * price for _, n, price in items)
        data: dict[str, Any] = {
            "seller": ["Example Shop", "1 Market Square", "shop@example.com"],
            "customer": [f"Customer {number}", "2 Long Road"],
            "number": f"2026-{number:05}",
            "date": time.strftime("%Y-%m-%d"),
            "currency": "EUR",
            "lines": [{"text": name, "quantity": n, "price": price, "amount": n * price} for name, n, price in items],
            "totals": [["Net", round(total / 1.19, 2)], ["VAT 19 %", round(total - total / 1.19, 2)], ["Total", round(total, 2)]],
            "terms": "Payable within 14 days.",
        }
        await self._producer.send(
            ExportPdf(document="invoice", to=f"exports:invoice-{number % KEPT}.pdf", data=data, overwrite=True)
        )

    async def import_data(self) -> None:
        """The stock of a supplier, from a file."""
        name = f"stock-{self._next() % KEPT}.csv"
        await asyncio.to_thread(self._make_stock, self._folder / "inbox" / name)
        columns = [Column(to="sku", required=True), Column(to="count", type="int"), Column(to="price", type="decimal")]
        job = ImportData(
            file=f"inbox:{name}", format="csv", db="warehouse", table="stock", columns=columns, key=["sku"], mode="upsert"
        )
        await self._producer.send(job)

    def _make_stock(self, path: Path) -> None:
        rows = (f"S{n:06},{self._random.randrange(100)},{self._random.randrange(100, 99_999) / 100}" for n in range(STOCK_ROWS))
        part = path.with_suffix(".new")
        part.write_text("sku,count,price\n" + "\n".join(rows) + "\n", "utf-8")
        part.replace(path)

    async def sync_crm(self) -> None:
        """The contacts of the partner."""
        await self._producer.send(
            SyncCrmData(crm="partner", resource="contacts", mode=self._random.choice(["full", "incremental"]))
        )

    async def bulk(self) -> None:
        """A newsletter."""
        number = self._next()
        recipients = [Recipient(address=f"reader{n}@example.org", params={"name": f"Reader {n}"}) for n in range(READERS)]
        job = SendBulkEmail(
            template="news",
            subject=f"News {number}",
            recipients=recipients,
            list_id="news",
            common={"offer": "All lamps are ten percent off."},
            unsubscribe="https://shop.example.com/stop/{token}",
        )
        await self._producer.send(job)

    async def back_up(self) -> None:
        """A backup of the shop's database, which is checked by a restore."""
        await self._producer.send(BackupDatabase(backup="shop", label=f"demo {self._next()}"))

    async def report(self) -> None:
        """The orders of the last week, by mail to the people who run the shop; each has a folder of its own."""
        await asyncio.to_thread(self._forget_reports)
        job = GenerateReports(
            report="orders",
            window=Window(last="7d"),
            formats=["pdf", "html", "csv"],
            deliver=Mail(to=["ops@example.org"]),
        )
        await self._producer.send(job)

    def _forget_reports(self) -> None:
        made = sorted((self._folder / "reports" / "orders").glob("*"), key=lambda path: path.stat().st_mtime)
        for path in made[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    def _next(self) -> int:
        self._number += 1
        return self._number
