"""`python -m bench.handlers_backup`: measures a backup of a large table, with its check by a restore, and the loop's lag.

Gates, for a million rows: 60 s on PostgreSQL, 10 s on SQLite; the loop's lag at most 20 ms (p99).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Generator
from pathlib import Path
from statistics import median, quantiles
from typing import cast

import msgspec
from uvloop import new_event_loop

from bench.export_csv import FILL, Gauge
from handlers.contracts.maintenance import BackedUp, BackupDatabase
from handlers.kit.settings import VARIABLE
from handlers.maintenance import backup_database
from runtime.jobs import PLAIN, Job
from tests.handlers.postgres import HOW_TO_GET, Postgres, tools

LIMITS_S = {"sqlite": 10.0, "postgresql": 60.0}
LIMIT_LAG_MS = 20.0
PG_FILL = """
CREATE TABLE orders (id int PRIMARY KEY, email text, amount float8, note text, created timestamp);
INSERT INTO orders SELECT n, 'user' || n || '@example.org', n / 7.0,
  CASE WHEN n % 3 = 0 THEN '=1+1' ELSE 'order ' || n || ', gift' END,
  timestamp '2024-01-01 12:00' + n % 28 * interval '1 day' FROM generate_series(1, {rows}) n;
CREATE ROLE keeper LOGIN CREATEDB IN ROLE pg_read_all_data
"""


async def back_up(name: str, number: int) -> BackedUp:
    """Run the handler as a lane would, and return its result."""
    message = BackupDatabase(backup=name)
    entry = b"%d-%d" % (time.time() * 1000, number)
    job = Job(3, entry, 1, "run", 0.0, b"backup-database", msgspec.json.encode(message), PLAIN, 2**53)
    result = await cast("Awaitable[object]", backup_database(message, job))
    assert isinstance(result, BackedUp)
    return result


async def run(parsed: argparse.Namespace, kinds: list[str]) -> bool:
    """Back up, print the figures, and return whether they are within the gates."""
    print(f"{parsed.rows:,} rows x 5 columns; Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    is_within = True
    for number, kind in enumerate(kinds * parsed.runs):
        gauge = Gauge()
        began_s = time.perf_counter()
        result = await gauge.over(back_up(kind, number))
        seconds = time.perf_counter() - began_s
        assert (result.verified, result.rows) == ("restored", parsed.rows), result
        p99_ms = quantiles(gauge.lags_ms, n=100)[98]
        is_within = is_within and seconds * 1_000_000 / parsed.rows <= LIMITS_S[kind] and p99_ms <= LIMIT_LAG_MS
        print(f"{kind}, run {number // len(kinds) + 1}")
        print(f"  seconds               {seconds:>12.1f}")
        print(f"  dump, MB              {result.bytes / 1e6:>12.1f}")
        print(f"  packed, MB            {result.compressed / 1e6:>12.1f}")
        print(f"  RSS growth, MB        {(gauge.peak_bytes - gauge.rss_bytes) / 1e6:>12.1f}")
        print(f"  loop lag, ms: median  {median(gauge.lags_ms):>12.1f}")
        print(f"                p99     {p99_ms:>12.1f}")
        print(f"                worst   {max(gauge.lags_ms):>12.1f}\n")
    return is_within


@contextlib.contextmanager
def settings(folder: Path, rows: int) -> Generator[list[str]]:
    """Make the databases and the settings, and yield the kinds that there are."""
    subprocess.run([sys.executable, "-c", FILL, str(folder / "shop.db"), str(rows)], check=True)
    text = f"roots.out = {{ path = '{folder}', mode = 'write' }}\ndatabases.sqlite = {{ sqlite = 'out:shop.db' }}\n"
    text += "backups.sqlite = { to = 'out:backups/sqlite' }\n"
    server = Postgres() if tools() else None
    try:
        if server is None:
            print(HOW_TO_GET)
        else:
            database = server.create()
            database.sql(PG_FILL.format(rows=rows))
            text += f"databases.postgresql = {{ url = '{database.url_of('keeper')}', tls = 'off' }}\n"
            text += "backups.postgresql = { to = 'out:backups/postgresql' }\n"
        (folder / "handlers.toml").write_text(text)
        yield ["sqlite", "postgresql"] if server else ["sqlite"]
    finally:
        if server is not None:
            server.stop()


def main() -> int:
    """Make the databases, measure, clean up; return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_backup", description="Measure backups with their checks.")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="rows of the table; default 1000000")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="default 3")
    parsed = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        os.environ[VARIABLE] = str(folder / "handlers.toml")
        with settings(folder, parsed.rows) as kinds, asyncio.Runner(loop_factory=new_event_loop) as runner:
            return 0 if runner.run(run(parsed, kinds)) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
