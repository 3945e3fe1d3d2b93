"""`python -m bench.handlers_pdf`: measures PDF in a child process: seconds, pages, the child's memory, and the lag of the loop.

The child is warm, as in a worker that runs one document after another. Its memory is the most that it had at any time (VmHWM).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import msgspec

from bench.lag import child_mib, in_folder, p99, sample, show_lag
from handlers.contracts.reports import ExportPdf, PdfExported
from handlers.contracts.sources import Query
from handlers.kit.settings import VARIABLE
from handlers.reports import export_pdf
from runtime.jobs import PLAIN, Job

ROWS_OF_A_PAGE = 39
DEFINITION = """
title = "Orders"
[[blocks]]
kind = "heading"
level = 1
text = "Orders"
[[blocks]]
kind = "table"
rows = "orders"
columns = [
  { name = "id", title = "Order" }, { name = "email", title = "Customer" }, { name = "note", title = "Note" },
  { name = "amount", title = "Amount", decimals = 2 }, { name = "created", title = "Placed" },
]
"""


def fill(folder: Path, rows: int) -> None:
    """Make the database, a query of so many rows, the definition and the settings."""
    line = [
        (n, f"user{n}@example.org", n / 7, f"order {n}, 'gift'", f"2024-01-{n % 28 + 1:02} 12:00") for n in range(1, rows + 1)
    ]
    with closing(sqlite3.connect(folder / "shop.db")) as database:
        database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, email TEXT, amount REAL, note TEXT, created TEXT)")
        database.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", line)
        database.commit()
    (folder / "some.sql").write_text("-- :rows integer\nSELECT * FROM orders WHERE id <= :rows\n")
    (folder / "orders.toml").write_text(DEFINITION)
    (folder / "handlers.toml").write_text(
        f"roots.out = {{ path = '{folder}', mode = 'write' }}\ndocuments.path = '{folder}'\n"
        f"databases.shop = {{ sqlite = 'out:shop.db', queries = '{folder}' }}\n"
    )
    os.environ[VARIABLE] = str(folder / "handlers.toml")


async def export(rows: int, number: int) -> PdfExported:
    """Run the handler as a lane would, in its child, and return its result."""
    message = ExportPdf(
        document="orders", to=f"out:{number}.pdf", tables={"orders": Query(db="shop", query="some", params={"rows": rows})}
    )
    job = Job(1, b"1700000000123-%d" % number, 1, "run", 0.0, b"export-pdf", msgspec.json.encode(message), PLAIN, 0)
    await export_pdf.run(message, job)
    assert job.extras is not None
    assert job.extras.result is not None
    return msgspec.json.decode(job.extras.result, type=PdfExported)


async def run(parsed: argparse.Namespace) -> bool:
    """Export both documents, print the figures, and return whether they are within the gates."""
    await export(1, 0)  # the child starts, and imports; a worker's does so once
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    is_within = True
    for number, rows in enumerate((parsed.pages * ROWS_OF_A_PAGE, parsed.rows), 1):
        lags_ms: list[float] = []
        sampler = asyncio.create_task(sample(lags_ms))
        began_s = time.perf_counter()
        result = await export(rows, number)
        seconds = time.perf_counter() - began_s
        sampler.cancel()
        p99_ms = p99(lags_ms)
        is_within = is_within and seconds <= parsed.gate_s and child_mib() <= parsed.gate_mib and p99_ms < parsed.gate_ms
        print(f"{rows:,} rows x 5 columns")
        print(f"  seconds               {seconds:>12.1f}")
        print(f"  pages                 {result.pages:>12,}")
        print(f"  pages/s               {result.pages / seconds:>12,.0f}")
        print(f"  file, MB              {result.bytes / 1e6:>12.1f}")
        print(f"  child's memory, MiB   {child_mib():>12.0f}")
        show_lag(lags_ms)
    return is_within


def main() -> int:
    """Make the table, measure, clean up; return 1 if a gate does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_pdf", description="Measure PDF in a child process.")
    parser.add_argument("--pages", type=int, default=200, metavar="N", help="pages of the first document; default 200")
    parser.add_argument("--rows", type=int, default=20_000, metavar="N", help="rows of the second one; default 20000")
    parser.add_argument("--gate-s", type=float, default=15, metavar="S", help="most seconds; default 15")
    parser.add_argument("--gate-mib", type=float, default=256, metavar="MIB", help="most memory of the child; default 256")
    parser.add_argument("--gate-ms", type=float, default=20, metavar="MS", help="most lag of the loop, p99; default 20")
    parsed = parser.parse_args()
    rows = max(parsed.rows, parsed.pages * ROWS_OF_A_PAGE)
    return in_folder(lambda folder: fill(folder, rows), lambda _, __: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
