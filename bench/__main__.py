"""`python -m bench`: measures every row of the table, beside a C client on the same server in the same run.

Figures of shared machines are noisy: compare medians, with the smallest and largest run, and ratios. Runs take turns: one of each
row, then the next of each, so that a slow minute does not hit one row alone.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import raw
from bench.lab import ROOT, BenchError, Server
from bench.measures import Round
from bench.report import Result, as_json, draw, header, text
from bench.rows import ROWS

MIN_JOBS: Final = 2_000  # a guess: with fewer, rows that take a hundredth of them have almost none
HELP: Final = (
    "Measure rates, latency, CPU and memory of a worker and a producer, beside a C client on the same server in the same run. "
    "Compare medians and ratios: the figures of a shared machine are noisy."
)
RESULTS: Final = ROOT / "bench" / "results"


def main() -> int:
    """Measure the chosen rows, print the table, and write it with JSON and a picture; return 1 if a row failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=HELP)
    parser.add_argument("--rows", metavar="NAMES", help="measure only these rows, separated by commas; --list shows them")
    parser.add_argument("--list", action="store_true", help="list the rows and exit")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each row; default 5")
    parser.add_argument(
        "--jobs", type=int, default=1_000_000, metavar="N", help="jobs of a drain; other rows scale with it; default 1000000"
    )
    parser.add_argument(
        "--minutes", type=float, default=20, metavar="N", help="start no run that would end later than this; default 20"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help="for latest.txt, .json and .png; default bench/results"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parsed = parser.parse_args()
    if parsed.list:
        print("\n".join(f"{row.name:16}{row.title}" for row in ROWS))
        return 0
    if parsed.jobs < MIN_JOBS or parsed.runs < 1:
        parser.error(f"--jobs must be at least {MIN_JOBS}, --runs at least 1")
    names = parsed.rows.split(",") if parsed.rows else [row.name for row in ROWS]
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}; hint: --list shows them")
    results = [Result(row, why_not=row.why_not()) for row in ROWS if row.name in names]
    load, began = os.getloadavg(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    notes = measure(results, parsed.jobs, parsed.runs, parsed.minutes * 60)
    head = header(parsed.jobs, parsed.runs, _server_name(), load, began)
    parsed.results.mkdir(parents=True, exist_ok=True)
    no_picture = draw(parsed.results / "latest.png", head, results)
    notes += [no_picture] if no_picture else []
    table, figures = text(head, results, notes), as_json(head, results, notes)
    (parsed.results / "latest.txt").write_text(table, "utf-8")
    (parsed.results / "latest.json").write_text(figures, "utf-8")
    print(figures if parsed.json else table, end="")
    return 1 if any(result.why_not.startswith("failed") for result in results) else 0


def measure(results: Sequence[Result], jobs: int, runs: int, limit_s: float) -> list[str]:
    """Fill in the results, run by run; return notes for the reader of the table."""
    notes: list[str] = []
    no_raw = raw.missing()
    if no_raw:
        notes.append(f"no raw figures: {no_raw}")
    began_s = time.monotonic()
    for number in range(1, runs + 1):
        used_s = time.monotonic() - began_s
        if number > 1 and used_s * number / (number - 1) > limit_s:
            notes.append(f"only {number - 1} of {runs} runs: the next would have ended after {limit_s / 60:g} minutes")
            break
        this = Round(jobs, has_raw=not no_raw)
        for result in results:
            if result.why_not:
                continue
            _log(f"run {number} of {runs}: {result.row.name}")
            try:
                result.add(result.row.measure(this))
            except BenchError as error:
                result.why_not = f"failed in run {number}: {error}"
                _log(f"{result.row.name}: {result.why_not}")
    notes.append(f"took {(time.monotonic() - began_s) / 60:.1f} minutes")
    return notes


def _server_name() -> str:
    with Server() as server:
        found = server.client.info("server")
    is_valkey = "valkey_version" in found
    return f"Valkey {found['valkey_version']}" if is_valkey else f"Redis {found['redis_version']}"


def _log(text: str) -> None:
    print(f"{datetime.now(UTC):%H:%M:%S} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
