"""`python -m bench.handlers_scan`: measures a scan for vulnerabilities in a child process: seconds, memory, and the loop's lag.

Packages and advisories are made up: each advisory has two ranges and a list of versions, as those of PyPI have.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
import zipfile
from pathlib import Path

import msgspec

from bench.lag import child_mib, in_folder, p99, sample, show_lag
from handlers.contracts.vulnerabilities import Scanned, ScanVulnerabilities
from handlers.kit.settings import VARIABLE
from handlers.vulnerabilities import scan_vulnerabilities
from runtime.jobs import PLAIN, Job

BORN = "2023-11-13T00:00:00Z"  # a day before the jobs
VERSIONS = 50  # of PyPI's advisories at commit 3ccb612, each lists 53
LABELS = ("LOW", "MODERATE", "HIGH", "CRITICAL", None)
WORDS = "A text for people, of which a scan reads nothing. "


def advisory(number: int, packages: int) -> bytes:
    """Return an advisory about one package."""
    name = f"package-{number % packages}"
    events = [{"introduced": "0"}, {"fixed": "1.5"}, {"introduced": "2.0"}, {"fixed": f"2.{number % 60}"}]
    listed = [f"2.{minor}" for minor in range(VERSIONS)]
    ranges = [{"type": "ECOSYSTEM", "events": events}]
    affected = {"package": {"ecosystem": "PyPI", "name": name}, "ranges": ranges, "versions": listed[: number % VERSIONS]}
    label = LABELS[number % len(LABELS)]
    known = {"id": f"BENCH-{number}", "modified": BORN, "affected": [affected], "details": WORDS * 20}
    return msgspec.json.encode({**known, "database_specific": {"severity": label}})


def fill(folder: Path, packages: int, advisories: int) -> None:
    """Make the lock file, the advisories in a zip, and the settings."""
    chance = random.Random(7)
    lines = [f"package-{number}==2.{chance.randrange(100)}\n" for number in range(packages)]
    (folder / "requirements.txt").write_text("".join(lines))
    with zipfile.ZipFile(folder / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(advisories):
            archive.writestr(f"BENCH-{number}.json", advisory(number, packages * 2))
    (folder / "handlers.toml").write_text(
        f"roots.out = {{ path = '{folder}', mode = 'write' }}\nadvisories.osv = {{ path = 'out:all.zip' }}\n"
    )
    os.environ[VARIABLE] = str(folder / "handlers.toml")


async def scan(number: int) -> Scanned:
    """Run the handler as a lane would, in its child, and return its result."""
    message = ScanVulnerabilities(targets=["out:requirements.txt"], to="out:scans")
    data = msgspec.json.encode(message)
    job = Job(1, b"1700000000123-%d" % number, 1, "run", 0.0, b"scan-vulnerabilities", data, PLAIN, 0)
    await scan_vulnerabilities.run(message, job)
    assert job.extras is not None
    assert job.extras.result is not None
    return msgspec.json.decode(job.extras.result, type=Scanned)


async def run(parsed: argparse.Namespace) -> bool:
    """Scan twice, print the figures of the second time, and return whether they are within the gates."""
    await scan(0)  # the child starts, and imports; a worker's does so once
    lags_ms: list[float] = []
    sampler = asyncio.create_task(sample(lags_ms))
    began_s = time.perf_counter()
    result = await scan(1)
    seconds = time.perf_counter() - began_s
    sampler.cancel()
    p99_ms = p99(lags_ms)
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    print(f"{result.packages:,} packages, {result.advisories_read:,} advisories, {sum(result.findings.values()):,} findings")
    print(f"  seconds               {seconds:>12.1f}")
    print(f"  child's memory, MiB   {child_mib():>12.0f}")
    show_lag(lags_ms)
    return seconds <= parsed.gate_s and child_mib() <= parsed.gate_mib and p99_ms < parsed.gate_ms


def main() -> int:
    """Make the files, measure, clean up; return 1 if a gate does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_scan", description="Measure a scan for vulnerabilities.")
    parser.add_argument("--packages", type=int, default=2000, metavar="N", help="in the lock file; default 2000")
    parser.add_argument("--advisories", type=int, default=10_000, metavar="N", help="in the zip; default 10000")
    parser.add_argument("--gate-s", type=float, default=10, metavar="S", help="most seconds; default 10")
    parser.add_argument("--gate-mib", type=float, default=256, metavar="MIB", help="most memory of the child; default 256")
    parser.add_argument("--gate-ms", type=float, default=20, metavar="MS", help="most lag of the loop, p99; default 20")
    parsed = parser.parse_args()
    return in_folder(lambda folder: fill(folder, parsed.packages, parsed.advisories), lambda _, __: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
