"""`python -m bench.export_csv`: measures the export of a large table: its rate, its memory, and the lag of the loop.

Another process makes the table, so that its memory does not count. Lag is how much later than asked a task of the loop wakes; the
worst of many thousands of wakes also shows what else the machine was doing.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median, quantiles
from typing import TypeVar, cast

import msgspec
from uvloop import new_event_loop

from handlers.contracts.data import ExportCsv, Exported
from handlers.contracts.sources import Query, Table
from handlers.data import export_csv
from handlers.kit.settings import VARIABLE
from runtime.jobs import PLAIN, Job

T = TypeVar("T")

TICK_S = 0.001  # the sleep that the system keeps on time
COLUMNS = ["id", "email", "amount", "note", "created"]
FILL = """
import sqlite3, sys
path, rows = sys.argv[1], int(sys.argv[2])
database = sqlite3.connect(path)
database.execute("PRAGMA journal_mode = WAL")
database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, email TEXT, amount REAL, note TEXT, created TEXT)")
note = lambda n: f"order {n}, 'gift'" if n % 3 else "=1+1"
line = lambda n: (n, f"user{n}@example.org", n / 7, note(n), f"2024-01-{n % 28 + 1:02} 12:00")
database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", map(line, range(1, rows + 1)))
database.commit()
database.close()
"""


class Gauge:
    """Samples the loop's lag and this process's memory while something else is awaited."""

    def __init__(self) -> None:
        self.lags_ms: list[float] = []
        self.rss_bytes = rss_bytes()
        self.peak_bytes = self.rss_bytes

    async def over(self, work: Awaitable[T]) -> T:
        """Return what the work returns."""
        sampler = asyncio.create_task(self._sample())
        try:
            return await work
        finally:
            sampler.cancel()

    async def _sample(self) -> None:
        while True:
            asked_s = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.lags_ms.append((time.perf_counter() - asked_s - TICK_S) * 1e3)
            self.peak_bytes = max(self.peak_bytes, rss_bytes())


def rss_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def job_of(message: ExportCsv, number: int) -> Job:
    """Return a job as a worker would make it."""
    return Job(2, b"1700000000123-%d" % number, 1, "run", 0.0, b"export-csv", msgspec.json.encode(message), PLAIN, 0)


async def export(message: ExportCsv, number: int) -> Exported:
    """Run the handler as a lane would, and return its result."""
    result = await cast("Awaitable[object]", export_csv(message, job_of(message, number)))
    assert isinstance(result, Exported)
    return result


async def run(parsed: argparse.Namespace) -> bool:
    """Export, print the figures, and return whether memory stayed within its limit."""
    small = ExportCsv(source=Query(db="shop", query="few"), to="out:few.csv")
    await export(small, 0)  # imports and caches are not what is measured
    print(f"{parsed.rows:,} rows x {len(COLUMNS)} columns; Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    is_within = True
    for number in range(1, parsed.runs + 1):
        messages = [
            ExportCsv(
                source=Table(db="shop", table="orders", columns=COLUMNS), to=f"out:{number}-{each}.csv", compress=parsed.compress
            )
            for each in range(parsed.at_once)
        ]
        gauge = Gauge()
        began_s = time.perf_counter()
        results = await gauge.over(asyncio.gather(*(export(each, number) for each in messages)))
        seconds = time.perf_counter() - began_s
        rows = sum(result.rows for result in results)
        assert rows == parsed.rows * parsed.at_once
        growth_mb = (gauge.peak_bytes - gauge.rss_bytes) / 1e6
        is_within = is_within and growth_mb < parsed.limit_mb
        print(f"run {number}")
        print(f"  seconds               {seconds:>12.1f}")
        print(f"  rows/s                {rows / seconds:>12,.0f}")
        print(f"  file, MB              {results[0].bytes / 1e6:>12.1f}")
        print(f"  RSS growth, MB        {growth_mb:>12.1f}")
        print(f"  loop lag, ms: median  {median(gauge.lags_ms):>12.1f}")
        print(f"                p99     {quantiles(gauge.lags_ms, n=100)[98]:>12.1f}")
        print(f"                worst   {max(gauge.lags_ms):>12.1f}\n")
    return is_within


def main() -> int:
    """Make the table, measure, clean up; return 1 if memory grew too much."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.export_csv",
        description="Measure the export of a large table: its rate, its memory, and the lag of the loop.",
    )
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of the table; default 1000000")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="default 3")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="exports at the same time; default 1")
    parser.add_argument("--compress", choices=("none", "gzip", "zstd"), default="none", help="default none")
    parser.add_argument("--limit-mb", type=float, default=50, metavar="MB", help="how much the memory may grow; default 50")
    parsed = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        subprocess.run([sys.executable, "-c", FILL, str(folder / "shop.db"), str(parsed.rows)], check=True)
        (folder / "few.sql").write_text("SELECT * FROM orders LIMIT 10\n")
        (folder / "handlers.toml").write_text(
            f"roots.out = {{ path = '{folder}', mode = 'write' }}\n"
            f"databases.shop = {{ sqlite = 'out:shop.db', queries = '{folder}', tables = ['*'] }}\n"
        )
        os.environ[VARIABLE] = str(folder / "handlers.toml")
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return 0 if runner.run(run(parsed)) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
