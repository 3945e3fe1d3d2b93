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

from handlers.contracts.compliance import Format as AuditFormat
from handlers.contracts.compliance import GenerateComplianceReport
from handlers.contracts.crm import SyncCrmData
from handlers.contracts.data import Column, ExportCsv, ImportData
from handlers.contracts.deliveries import Mail
from handlers.contracts.email import Recipient, SendBulkEmail
from handlers.contracts.inference import RunInference
from handlers.contracts.maintenance import BackupDatabase, CleanupLogs
from handlers.contracts.notifications import SendNotification
from handlers.contracts.reports import ExportPdf, GenerateReports
from handlers.contracts.sources import Condition, Order, Table
from handlers.contracts.threats import AnalyzeThreats
from handlers.contracts.training import Bar, CsvFile, EvaluateModel, Gate, Preprocess, RandomForest, TrainModel
from handlers.contracts.vulnerabilities import ScanVulnerabilities
from handlers.contracts.windows import Window
from runtime import Producer

OLD_S: Final = 40 * 86400  # older than the 30 days of `_clean_up`
# Guesses: enough to look into, and the demo may run for days without filling the disk.
KEPT: Final = 20
MODES: Final[tuple[Literal["full", "incremental"], ...]] = ("full", "incremental")
READERS: Final = 60
TRY_S: Final = 1.0
TRIES: Final = 20
STOCK_ROWS: Final = 20_000
CUSTOMERS: Final = CsvFile(path="inbox:customers.csv")
TRAINED_S: Final = 20.0  # a guess: within it the first model has been trained
PRICES: Final = {"Lamp": 49.0, "Chair": 129.5, "Desk": 310.0, "Shelf": 84.25, "Rug": 59.9}


PAGES: Final = ("/", "/lamps", "/chairs?sort=price", "/cart", "/static/app.js")
ATTACKS: Final = ("/?id=1%27%20or%20%271%27=%271", "/%2e%2e/%2e%2e/x", "/internal/x")
MAX_LOG_BYTES: Final = 2**20  # a guess: then it is rotated, as the demo may run for days


def _request(at_s: float, src: str, target: str) -> str:
    stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(at_s))
    return f'{src} - - [{stamp}] "GET {target} HTTP/1.1" 200 512 "-" "Mozilla/5.0"'


def _login(at_s: float, text: str) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(at_s))} web1 sshd[1]: {text}"


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
            (1, self.scan),
            (3, self.look_for_attacks),
            (1, self.audit),
            (1, self.train),
            (1, self.evaluate),
            (4, self.infer),
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
        await asyncio.to_thread(self._forget, "orders")
        job = GenerateReports(
            report="orders",
            window=Window(last="7d"),
            formats=["pdf", "html", "csv"],
            deliver=Mail(to=["ops@example.org"]),
        )
        await self._producer.send(job)

    async def audit(self) -> None:
        """What can be shown to an auditor of the demo itself: its backups and reports are the evidence."""
        await asyncio.to_thread(self._forget, "audits/soc-2")
        for _ in range(TRIES):  # of the first one: a backup before it is what it is about
            if any((self._folder / "backups" / "shop").glob("*/manifest.json")):
                break
            await asyncio.sleep(TRY_S)
        await asyncio.sleep(TRY_S)  # its time has whole seconds
        window, formats = Window(last="24h"), list[AuditFormat](["oscal", "pdf", "csv"])
        await self._producer.send(GenerateComplianceReport(profile="soc-2", window=window, to="reports:audits", formats=formats))

    def _forget(self, folder: str) -> None:
        """Remove all but the newest of the folders of reports, a folder for each window."""
        made = sorted((self._folder / "reports" / folder).glob("*"), key=lambda path: path.stat().st_mtime)
        for path in made[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    async def scan(self) -> None:
        """A look for vulnerable packages of the shop's web site: one is, and the first time that is told to people."""
        await asyncio.to_thread(self._forget_scans)
        await self._producer.send(ScanVulnerabilities(targets=["code:requirements.txt"], to="evidence:scans", notify="ops"))

    def _forget_scans(self) -> None:
        for path in sorted((self._folder / "evidence" / "scans").glob("[0-9]*"))[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    async def look_for_attacks(self) -> None:
        """Write what the shop's servers log, now and again with an attack in it, and send a job that looks for one."""
        await asyncio.to_thread(self._make_traffic)
        await self._producer.send(AnalyzeThreats(analysis="shop"))

    def _make_traffic(self) -> None:
        traffic, now_s = self._folder / "traffic", time.time()
        attacker = f"192.0.2.{self._next() % 250}"
        web = [_request(now_s, f"198.51.100.{n}", self._random.choice(PAGES)) for n in range(200)]
        auth = [_login(now_s, f"Accepted publickey for ada from 198.51.100.{n} port 4000 ssh2") for n in range(5)]
        if not (traffic / "access.log").exists() or self._random.random() < 0.3:
            web += [_request(now_s, attacker, target) for target in ATTACKS]
            auth += [_login(now_s, f"Failed password for root from {attacker} port 4000 ssh2")] * 12
            auth.append(_login(now_s, f"Accepted password for root from {attacker} port 4000 ssh2"))
        for name, lines in (("access.log", web), ("auth.log", auth)):
            path = traffic / name
            if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
                path.replace(traffic / f"{name}.1")
            with path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")

    async def train(self) -> None:
        """Which customers stay: a model that learns it from those of the past."""
        await asyncio.to_thread(self._forget_models)
        job = TrainModel(
            name="churn",
            data=CUSTOMERS,
            target="stays",
            task="classification",
            estimator=RandomForest(trees=self._random.randrange(50, 150)),
            preprocess=Preprocess(impute="median", one_hot=["country"]),
            folds=3,
            gate=Gate(metric="accuracy", min=0.7),
            promote=True,
        )
        await self._producer.send(job)

    def _forget_models(self) -> None:
        made = sorted((self._folder / "models" / "churn").glob("[a-z2-7]*/"), key=lambda path: path.stat().st_mtime)
        for path in made[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    async def evaluate(self) -> None:
        """How well that model does; the first time, once there is one."""
        bar = Bar(metric="accuracy", min=0.6)
        job = EvaluateModel(
            model="churn",
            data=CUSTOMERS,
            target="stays",
            gate=bar,
            to=f"exports:churn-{self._next() % KEPT}.json",
            overwrite=True,
        )
        await self._producer.send(job, delay_s=TRAINED_S)

    async def infer(self) -> None:
        """Whether a customer stays, and now and then whether each of them does; the first time, once there is a model."""
        is_trained = await asyncio.to_thread((self._folder / "models" / "churn" / "current.json").exists)
        chance, number = self._random, self._next()
        rows: list[list[Any]] = [[chance.randrange(18, 90), chance.randrange(20), chance.randrange(6), "AT"] for _ in range(5)]
        job = RunInference(model="churn", rows=rows, output="probability")
        if number % 2:
            job = RunInference(model="churn", file="inbox:customers.csv", to=f"exports:stays-{number % KEPT}.csv", overwrite=True)
        await self._producer.send(job, delay_s=0 if is_trained else TRAINED_S)

    def _next(self) -> int:
        self._number += 1
        return self._number
