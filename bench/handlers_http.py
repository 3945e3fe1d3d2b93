"""`python -m bench.handlers_http`: measures webhooks, and the sync of a CRM into a database, both over loopback.

The receiver and the CRM are another process, which shares the machine's CPUs. Webhooks are sent as lanes would, so many at a
time, and one that failed is sent again at once; what a worker and Redis add is measured by `python -m bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import Any, ClassVar, cast
from urllib.parse import parse_qs, urlsplit

import msgspec
from uvloop import new_event_loop

from bench.lag import sample
from handlers.contracts.crm import SyncCrmData, Synced
from handlers.contracts.notifications import Notified, SendNotification
from handlers.crm import sync_crm_data
from handlers.kit.failures import TemporaryFailure
from handlers.kit.http import close_clients
from handlers.kit.settings import VARIABLE
from handlers.notifications import send_notification
from runtime.jobs import PLAIN, Job, contract_of

RESOURCE = """
[contacts]
path = "contacts"
db = "mirror"
table = "contacts"
key = "id"
updated = "changed"
deleted = "gone"
items = "/data"
next = "/next"
page_size = 100
columns = [
    { to = "id", type = "int" },
    { to = "email" },
    { to = "amount", type = "decimal" },
    { to = "note" },
    { to = "changed", type = "timestamp" },
]
"""


class Peer(asyncio.Protocol):
    """One connection of the other side: takes webhooks, of which it refuses some, and gives pages of records."""

    ids: ClassVar[set[bytes]] = set()
    taken = 0
    asked = 0

    def __init__(self, refuse_each: int, records: int) -> None:
        self._buffer = b""
        self._refuse_each = refuse_each
        self._records = records

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            size = end + 4 + int(fields.get(b"content-length", b"0"))
            if len(self._buffer) < size:
                return
            self._buffer = self._buffer[size:]
            status, body = self._answer(head.split(b" ", 2), fields)
            self._transport.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    def _answer(self, line: list[bytes], fields: dict[bytes, bytes]) -> tuple[bytes, bytes]:
        if line[0] == b"GET":
            query = parse_qs(urlsplit(line[1].decode()).query)
            if "report" in query:
                return b"200 OK", json.dumps({"ids": len(Peer.ids), "taken": Peer.taken, "asked": Peer.asked}).encode()
            return b"200 OK", self._page(int(query.get("cursor", ["0"])[0]), int(query["limit"][0]))
        Peer.asked += 1
        if self._refuse_each and Peer.asked % self._refuse_each == 0:
            return b"500 Internal Server Error", b""
        Peer.taken += 1
        Peer.ids.add(fields[b"webhook-id"])
        return b"200 OK", b"ok"

    def _page(self, start: int, count: int) -> bytes:
        end = min(start + count, self._records)
        note = "called, and will call again"
        data = [
            {"id": n, "email": f"user{n}@example.org", "amount": n / 8, "note": note, "changed": "2023-06-01T12:00:00Z"}
            for n in range(start, end)
        ]
        return json.dumps({"data": data, "next": end if end < self._records else None}).encode()


async def serve(refuse_each: int, records: int) -> None:
    """Say the port, and answer until this process is killed."""
    server = await asyncio.get_running_loop().create_server(lambda: Peer(refuse_each, records), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def job_of(message: msgspec.Struct, number: int) -> Job:
    """Return a job as a worker would make it."""
    name = contract_of(type(message)).type.encode()
    return Job(2, b"1700000000123-%d" % number, 1, "run", 0.0, name, msgspec.json.encode(message), PLAIN, 2**53)


async def notify(count: int, lanes: int) -> tuple[float, list[int], int]:
    """Send so many webhooks; return the seconds, the ms of each answer, and how many were sent again."""
    message = SendNotification(channel="hooks", title="Order is paid", body="Thank you.", data={"order": 7})
    left = deque(range(count))
    took_ms: list[int] = []
    repeats = 0

    async def lane() -> None:
        nonlocal repeats
        while left:
            job = job_of(message, left.popleft())
            while True:
                try:
                    result = await cast("Awaitable[object]", send_notification(message, job))
                except TemporaryFailure:
                    repeats += 1
                    continue
                assert isinstance(result, Notified)
                took_ms.append(result.response_ms)
                break

    began_s = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(lanes)))
    return time.perf_counter() - began_s, took_ms, repeats


async def webhooks(folder: Path, parsed: argparse.Namespace) -> bool:
    """Measure webhooks, without trouble and with; return whether none was lost."""
    is_sound = True
    for refuse_each in (0, 10):
        with Side(refuse_each, 0) as side:
            settings(folder, side.port)
            await notify(parsed.lanes, parsed.lanes)  # connections and imports are not what is measured
            gauge: list[float] = []
            sampler = asyncio.create_task(sample(gauge))
            cpu_s = time.process_time()
            seconds, took_ms, repeats = await notify(parsed.webhooks, parsed.lanes)
            cpu_s = time.process_time() - cpu_s
            sampler.cancel()
            said = side.report()
            lost = parsed.webhooks - said["ids"]
            is_sound = is_sound and lost == 0
            print(f"{parsed.webhooks:,} webhooks, {parsed.lanes} in flight, {10 if refuse_each else 0} % answered by 500")
            print(f"  webhooks/s            {parsed.webhooks / seconds:>12,.0f}")
            print(f"  webhooks per CPU s    {parsed.webhooks / cpu_s:>12,.0f}")
            print(f"  answer, ms: median    {median(took_ms):>12.0f}")
            print(f"              p99       {quantiles(took_ms, n=100)[98]:>12.0f}")
            print(f"  loop lag, ms: p99     {quantiles(gauge, n=100)[98]:>12.1f}")
            print(f"  sent again            {repeats:>12,}")
            print(f"  lost                  {lost:>12,}\n")
            await close_clients()
    return is_sound


async def sync(folder: Path, parsed: argparse.Namespace) -> bool:
    """Measure a first sync, and a full one over the same records; return whether all records came, each once."""
    with Side(0, parsed.records) as side:
        settings(folder, side.port)
        is_sound = True
        for number, mode in enumerate(("incremental", "full")):
            message = SyncCrmData(crm="bench", resource="contacts", mode=mode)
            gauge: list[float] = []
            sampler = asyncio.create_task(sample(gauge))
            began_s = time.perf_counter()
            result = await cast("Awaitable[object]", sync_crm_data(message, job_of(message, number)))
            seconds = time.perf_counter() - began_s
            sampler.cancel()
            assert isinstance(result, Synced)
            with closing(sqlite3.connect(folder / "mirror.db")) as database:
                ((rows, sum_of_ids),) = database.execute("SELECT count(*), sum(id) FROM contacts WHERE gone IS NOT TRUE")
            is_sound = is_sound and (rows, sum_of_ids) == (parsed.records, parsed.records * (parsed.records - 1) // 2)
            print(f"{parsed.records:,} records at 100 a page into SQLite, {mode}: {result.upserted:,} written")
            print(f"  seconds               {seconds:>12.1f}")
            print(f"  records/s             {parsed.records / seconds:>12,.0f}")
            print(f"  loop lag, ms: p99     {quantiles(gauge, n=100)[98]:>12.1f}")
            print(f"                worst   {max(gauge):>12.1f}\n")
        await close_clients()
        return is_sound


async def killed(folder: Path, parsed: argparse.Namespace) -> bool:
    """Kill a sync again and again, at moments that differ, then let it end; return whether the table is what the CRM has."""
    with Side(0, parsed.records) as side:
        settings(folder, side.port)
        with closing(sqlite3.connect(folder / "mirror.db")) as database, database:
            for table in ("contacts", "backend_jobs_state", "backend_jobs_seen"):
                if database.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", [table]).fetchone():
                    database.execute(f"DELETE FROM {table}")
        rows: list[int] = []
        for number in range(parsed.kills):
            child = subprocess.Popen([sys.executable, "-m", "bench.handlers_http", "--sync"])
            with closing(sqlite3.connect(folder / "mirror.db")) as database:
                least = (number + 1) * parsed.records // (
                    parsed.kills + 2
                ) + number % 7  # so that progress is made, and pages are cut
                while child.poll() is None and database.execute("SELECT count(*) FROM contacts").fetchone()[0] < least:
                    await asyncio.sleep(0.003)
                child.kill()
                child.wait()
                rows.append(database.execute("SELECT count(*) FROM contacts").fetchone()[0])
        message = SyncCrmData(crm="bench", resource="contacts")
        result = await cast("Awaitable[object]", sync_crm_data(message, job_of(message, 7)))
        assert isinstance(result, Synced)
        with closing(sqlite3.connect(folder / "mirror.db")) as database:
            (found,) = database.execute("SELECT count(*), sum(id), count(DISTINCT id) FROM contacts WHERE gone IS NOT TRUE")
        wanted = (parsed.records, parsed.records * (parsed.records - 1) // 2, parsed.records)
        print(f"{parsed.records:,} records, killed {parsed.kills} times (kill -9) after {rows[:1]} to {rows[-1:]} rows")
        print(f"  pages                 {result.pages:>12,}")
        print(f"  rows counted twice    {result.rows - parsed.records:>12,}")
        print(f"  drift                 {'none' if found == wanted else 'yes':>12}\n")
        await close_clients()
        return found == wanted


async def sync_once() -> None:
    """Run the job whose process is killed."""
    message = SyncCrmData(crm="bench", resource="contacts")
    await cast("Awaitable[object]", sync_crm_data(message, job_of(message, 7)))


class Side:
    """Owns the process of the other side."""

    def __init__(self, refuse_each: int, records: int) -> None:
        command = [sys.executable, "-m", "bench.handlers_http", "--serve", str(refuse_each), str(records)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.communicate()

    def report(self) -> dict[str, Any]:
        """Return what has come."""
        import urllib.request

        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/?report=1") as answer:
            return json.load(answer)


def settings(folder: Path, port: int) -> None:
    """Write the settings that lead to the other side."""
    reach = f"private = ['127.0.0.1']\nports = [{port}]\n"
    (folder / "crm.toml").write_text(RESOURCE)
    (folder / "handlers.toml").write_text(
        f"[channels.hooks]\nkind = 'webhook'\nurl = 'env:BENCH_URL'\nkeys.a = {{ secret = 'env:BENCH_KEY' }}\n{reach}"
        f"[crm.bench]\nbase_url = 'http://127.0.0.1:{port}'\ntoken = 'env:BENCH_KEY'\nrequests_per_second = 10000\n"
        f"resources = '{folder / 'crm.toml'}'\n{reach}"
        f"[roots.data]\npath = '{folder}'\nmode = 'write'\n"
        f"[databases.mirror]\nsqlite = 'data:mirror.db'\nwritable = ['contacts']\n"
    )
    os.environ |= {VARIABLE: str(folder / "handlers.toml"), "BENCH_URL": f"http://127.0.0.1:{port}/", "BENCH_KEY": "key"}


def main() -> int:
    """Measure, clean up; return 1 if something was lost."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.handlers_http",
        description="Measure webhooks, and the sync of a CRM into a database, both over loopback.",
    )
    parser.add_argument("--webhooks", type=int, default=20_000, metavar="N", help="default 20000")
    parser.add_argument("--lanes", type=int, default=200, metavar="N", help="webhooks in flight; default 200")
    parser.add_argument("--records", type=int, default=50_000, metavar="N", help="records of the CRM; default 50000")
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="of a sync; default 20")
    parser.add_argument("--only", choices=("webhooks", "crm", "kills"), help="default all")
    parser.add_argument("--serve", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--sync", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.sync:
        asyncio.run(sync_once())
        return 0
    if parsed.serve:
        asyncio.run(serve(*parsed.serve))
        return 0
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    parts: dict[str, Callable[..., Any]] = {"webhooks": webhooks, "crm": sync, "kills": killed}
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    try:
        with closing(sqlite3.connect(folder / "mirror.db")) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE contacts (id INTEGER PRIMARY KEY, email, amount NUMERIC, note, changed, gone)")
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            done = [runner.run(part(folder, parsed)) for name, part in parts.items() if parsed.only in (None, name)]
            return 1 if False in done else 0
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
