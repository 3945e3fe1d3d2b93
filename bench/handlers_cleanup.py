"""`python -m bench.handlers_cleanup`: measures the deletion of many small files in one run, and the lag of the loop meanwhile.

Gates: 100,000 files within 20 s; the loop's lag at most 20 ms (p99).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from statistics import median, quantiles
from typing import cast

import msgspec
from uvloop import new_event_loop

from bench.export_csv import Gauge
from handlers.contracts.maintenance import Cleaned, CleanupLogs
from handlers.kit.settings import VARIABLE
from handlers.maintenance import cleanup_logs
from runtime.jobs import PLAIN, Job

LIMIT_S = 20.0
LIMIT_LAG_MS = 20.0
PER_FOLDER = 1000
OLD_S = 30 * 86_400


def fill(folder: Path, files: int) -> None:
    """Make so many old files of 100 bytes, a thousand in a folder."""
    then_s = time.time() - OLD_S
    for number in range(files):
        if number % PER_FOLDER == 0:
            (folder / str(number // PER_FOLDER)).mkdir()
        path = folder / str(number // PER_FOLDER) / f"{number}.log"
        path.write_bytes(b"x" * 100)
        os.utime(path, (then_s, then_s))


async def clean(number: int) -> Cleaned:
    """Run the handler as a lane would, and return its result."""
    message = CleanupLogs(root="logs", include=["*.log"], older_than="7d", force=True)
    entry = b"%d-%d" % (time.time() * 1000, number)
    job = Job(3, entry, 1, "run", 0.0, b"cleanup-logs", msgspec.json.encode(message), PLAIN, 2**53)
    result = await cast("Awaitable[object]", cleanup_logs(message, job))
    assert isinstance(result, Cleaned)
    return result


async def run(parsed: argparse.Namespace, folder: Path) -> bool:
    """Delete, print the figures, and return whether they are within the gates."""
    print(f"{parsed.files:,} files of 100 bytes; Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    is_within = True
    for number in range(1, parsed.runs + 1):
        fill(folder, parsed.files)
        gauge = Gauge()
        began_s = time.perf_counter()
        result = await gauge.over(clean(number))
        seconds = time.perf_counter() - began_s
        assert result.deleted == parsed.files
        p99_ms = quantiles(gauge.lags_ms, n=100)[98]
        is_within = is_within and seconds * 100_000 / parsed.files <= LIMIT_S and p99_ms <= LIMIT_LAG_MS
        for path in folder.iterdir():
            path.rmdir()
        print(f"run {number}")
        print(f"  seconds               {seconds:>12.1f}")
        print(f"  files/s               {parsed.files / seconds:>12,.0f}")
        print(f"  RSS growth, MB        {(gauge.peak_bytes - gauge.rss_bytes) / 1e6:>12.1f}")
        print(f"  loop lag, ms: median  {median(gauge.lags_ms):>12.1f}")
        print(f"                p99     {p99_ms:>12.1f}")
        print(f"                worst   {max(gauge.lags_ms):>12.1f}\n")
    return is_within


def main() -> int:
    """Make the files, measure, clean up; return 1 if a gate is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_cleanup", description="Measure the deletion of many files.")
    parser.add_argument("--files", type=int, default=100_000, metavar="N", help="default 100000")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="default 3")
    parsed = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        (folder / "logs").mkdir()
        (folder / "handlers.toml").write_text(f"roots.logs = {{ path = '{folder / 'logs'}', mode = 'purge', force = true }}\n")
        os.environ[VARIABLE] = str(folder / "handlers.toml")
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return 0 if runner.run(run(parsed, folder / "logs")) else 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
