"""`python -m bench.handlers_data`: what `export-csv` and `import-data` reach with a large table, on SQLite and on PostgreSQL.

The table goes into a file, and the file into another table, by COPY or its like; then once more, by a process that is killed half
way and by the one after it. The databases' servers, and what makes the first table, are other processes: their memory does not
count. Returns 1 if a gate was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median, quantiles
from typing import Any, cast

import msgspec
from uvloop import new_event_loop

from bench.export_csv import Gauge
from handlers.contracts.data import Column, ExportCsv, Exported, ImportData, Imported
from handlers.contracts.sources import Table
from handlers.data import export_csv, import_data
from handlers.kit.settings import VARIABLE
from runtime.jobs import PLAIN, Job, contract_of
from runtime.rubbish import Rubbish
from tests.handlers.postgres import HOW_TO_GET, Postgres, tools

GATE_S = 30.0  # for a million rows
GATE_EXPORT_MB, GATE_IMPORT_MB = 50.0, 80.0
GATE_LAG_MS = 20.0
CREATE = (
    "CREATE TABLE {} (id bigint PRIMARY KEY, email text, amount double precision, note text, created {})",
    "INSERT INTO orders SELECT n, 'user' || n || '@example.org', n / 7.0, CASE WHEN n % 3 = 0 THEN '=1+1' ELSE "
    "'order ' || n || ', ''gift'', to be sent by the end of the week' END, {} FROM {}",
)
COUNT = "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {}) SELECT n FROM s"
COLUMNS = [
    Column(to="id", type="int"),
    Column(to="email"),
    Column(to="amount", type="float"),
    Column(to="note"),
    Column(to="created", type="timestamp"),
]


class Database:
    """One of the two, with a table `orders` of so many rows, and an empty one `copied`."""

    def __init__(self, kind: str, folder: Path, rows: int, server: Postgres | None) -> None:
        self.kind = kind
        self.path = folder / "shop.db"
        self._place = server.create() if server else None
        if self._place:
            self.settings = f"url = '{self._place.url}', tls = 'off'"
            time_type, when, source = "timestamp", "timestamp '2024-01-01' + n * interval '1 s'", f"generate_series(1, {rows}) n"
        else:
            self.settings = "sqlite = 'out:shop.db'"
            time_type, when, source = "text", "datetime('2024-01-01', n || ' seconds')", f"({COUNT.format(rows)})"
            self.sql("PRAGMA journal_mode = WAL")
        self.sql(CREATE[0].format("orders", time_type))
        self.sql(CREATE[0].format("copied", time_type))
        self.sql(CREATE[1].format(when, source))
        if self._place:
            self.sql("VACUUM ANALYZE orders")

    def sql(self, text: str) -> list[list[Any]]:
        """Run a statement in a process of its own, and return the rows."""
        if self._place:
            return cast("list[list[Any]]", self._place.sql(text))
        code = (
            "import sqlite3, sys, json; c = sqlite3.connect(sys.argv[1]);"
            "print(json.dumps(c.execute(sys.argv[2]).fetchall())); c.commit(); c.close()"
        )
        done = subprocess.run([sys.executable, "-c", code, str(self.path), text], check=True, capture_output=True)
        return msgspec.json.decode(done.stdout)

    def empty(self) -> None:
        """Take all rows out of `copied`, and forget the imports."""
        self.sql("TRUNCATE copied" if self._place else "DELETE FROM copied")
        self.sql("DELETE FROM backend_jobs_state")

    def differences(self) -> int:
        """Return how many rows are in one of the tables alone."""
        ways = (("orders", "copied"), ("copied", "orders"))
        parts = [f"SELECT * FROM {one} EXCEPT SELECT * FROM {other}" for one, other in ways]
        missing = sum(int(self.sql(f"SELECT count(*) FROM ({part}) d")[0][0]) for part in parts)
        counts = [int(self.sql(f"SELECT count(*) FROM {table}")[0][0]) for table in ("orders", "copied")]
        return missing + abs(counts[0] - counts[1])


def job_of(message: msgspec.Struct, number: int = 0) -> Job:
    """Return a job as a worker would make it; another number is another job."""
    name = contract_of(type(message)).type.encode()
    return Job(2, b"1700000000123-%d" % number, 1, "run", 0.0, name, msgspec.json.encode(message), PLAIN, 0)


def load(mode: str, packed: str = "none") -> ImportData:
    """Return an import of the exported file into `copied`."""
    key = ["id"] if mode == "upsert" else []
    return ImportData(
        file="out:orders.csv" + {"none": "", "gzip": ".gz", "zstd": ".zst"}[packed],
        format="csv",
        compress=cast("Any", packed),
        db="shop",
        table="copied",
        columns=COLUMNS,
        mode=cast("Any", mode),
        key=key,
    )


async def measured(name: str, rows: int, call: Any, gate_mb: float, gate_s: float) -> bool:
    """Await the call, print its figures, and return whether they are within the gates."""
    gauge = Gauge()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await gauge.over(cast("Awaitable[list[Exported]]", call))
    seconds, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    growth_mb = (gauge.peak_bytes - gauge.rss_bytes) / 1e6
    lag_ms = quantiles(gauge.lags_ms, n=100)[98]
    is_within = seconds <= gate_s and growth_mb <= gate_mb and lag_ms <= GATE_LAG_MS
    print(
        f"  {name:<40}{seconds:>6.1f} s, CPU {cpu_s:>5.1f} s {rows / seconds:>8,.0f} rows/s   RSS +{growth_mb:>5.1f} MB"
        f"   lag median {median(gauge.lags_ms):>4.1f}, p99 {lag_ms:>4.1f}, worst {max(gauge.lags_ms):>5.1f} ms"
        f"{'' if is_within else '   GATE MISSED'}",
        flush=True,
    )
    return is_within


async def run(database: Database, rows: int) -> bool:
    """Export and import; return whether all was within the gates."""
    print(f"{database.kind}: {rows:,} rows x {len(COLUMNS)} columns")
    gate_s = GATE_S * rows / 1e6
    names = [column.to for column in COLUMNS]
    source = Table(db="shop", table="orders", columns=names)
    is_within = await measured("nothing, for 3 s: what the machine does", rows, asyncio.sleep(3), 10, GATE_S)
    few = ExportCsv(source=Table(db="shop", table="copied", columns=names), to="out:few.csv")
    await cast("Awaitable[Any]", export_csv(few, job_of(few)))  # imports and caches are not what is measured
    for packed, suffix in (("none", ""), ("zstd", ".zst")):
        message = ExportCsv(source=source, to=f"out:orders.csv{suffix}", compress=cast("Any", packed), formulas="keep")
        is_within &= await measured(f"export, {packed}", rows, export_csv(message, job_of(message)), GATE_EXPORT_MB, gate_s)
    for number, (mode, packed) in enumerate([("insert", "none"), ("upsert", "none"), ("upsert", "none"), ("replace", "zstd")]):
        message = load(mode, packed)
        what = f"import, {'upsert again, nothing new' if number == 2 else mode}, {packed}"
        if number == 1:
            await asyncio.to_thread(database.empty)
        job = job_of(message, number)
        is_within &= await measured(what, rows, import_data(message, job), GATE_IMPORT_MB, gate_s)
        left = await asyncio.to_thread(database.differences)
        assert left == 0, f"{left} rows differ"
    return is_within


def killed_half_way(database: Database, rows: int) -> None:
    """Import in a process that is killed half way, then again, and compare the tables."""
    for mode in ("insert", "upsert"):
        database.empty()
        command = [sys.executable, "-m", "bench.handlers_data", "--import", mode]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while int(database.sql("SELECT count(*) FROM copied")[0][0]) < rows // 2:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        there = int(database.sql("SELECT count(*) FROM copied")[0][0])
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = msgspec.json.decode(done.stdout, type=Imported)
        left = database.differences()
        print(f"  import, {mode}, killed at {there:,} rows, then again: {result.inserted:,} inserted, {left} rows differ")
        assert (result.rows, result.inserted, left) == (rows, rows, 0)


def import_here(mode: str) -> None:
    """Import in this process, and print the result."""
    message = load(mode)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        result = runner.run(_awaited(import_data(message, job_of(message, 99))))
    print(msgspec.json.encode(result).decode())


async def _awaited(call: Any) -> Any:
    return await call


def measure(kind: str, rows: int, server: Postgres | None) -> bool:
    """Measure one database in a folder of its own; return whether all was within the gates."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        database = Database(kind, folder, rows, server)
        (folder / "handlers.toml").write_text(
            f"roots.out = {{ path = '{folder}', mode = 'write' }}\n"
            f"databases.shop = {{ {database.settings}, tables = ['*'], writable = ['copied'] }}\n"
        )
        os.environ[VARIABLE] = str(folder / "handlers.toml")
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            is_within = runner.run(run(database, rows))
        killed_half_way(database, rows)
        return is_within
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """Measure both databases, or the one that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_data", description="Measure export-csv and import-data.")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of the table; default 1000000")
    parser.add_argument("--only", choices=("sqlite", "postgresql"), help="one database alone")
    parser.add_argument("--import", dest="mode", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.mode:
        import_here(parsed.mode)
        return 0
    print(f"Python {sys.version.split()[0]}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} CPUs, uvloop")
    Rubbish(time.monotonic, lambda: 0).begin()  # as a worker does
    is_within = True
    if parsed.only != "postgresql":
        is_within &= measure("SQLite", parsed.rows, None)
    if parsed.only != "sqlite" and tools():
        server = Postgres()
        try:
            is_within &= measure("PostgreSQL", parsed.rows, server)
        finally:
            server.stop()
    elif parsed.only != "sqlite":
        print(HOW_TO_GET)
    return 0 if is_within else 1


if __name__ == "__main__":
    sys.exit(main())
