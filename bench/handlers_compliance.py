"""`python -m bench.handlers_compliance`: measures a compliance report: seconds, the child's memory, the lag of the loop.

Its evidence stands among many other files in one root, so that what looking for it costs is measured, too. The child is warm, as
in a worker that has run such a job before.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from bench.lag import child_mib, in_folder, p99, sample, show_lag
from handlers.compliance import generate_compliance_report
from handlers.contracts.compliance import ComplianceReported, GenerateComplianceReport
from handlers.contracts.windows import Window
from handlers.kit.backups import Manifest
from handlers.kit.controls import CHECKS
from handlers.kit.settings import VARIABLE
from runtime.jobs import PLAIN, Job

BORN_MS: Final = 1_700_000_000_123
ALIASES: Final = 20  # databases, each with its backups
BACKUP_BYTES: Final = 2**20
FILES_OF_A_FOLDER: Final = 1000


def fill(folder: Path, controls: int, backups: int, files: int) -> None:
    """Make the settings, a profile of so many controls, so many backups, and so many other files."""
    root = folder / "evidence"
    lines = [
        f"roots.evidence = {{ path = '{root}', mode = 'write' }}",
        f"compliance = {{ evidence = ['evidence'], path = '{folder}' }}",
    ]
    for number in range(ALIASES):
        lines.append(f"databases.d{number} = {{ sqlite = 'evidence:{number}.db', writable = ['t'] }}")
        lines.append(f"backups.d{number} = {{ to = 'evidence:backups/d{number}' }}")
    (folder / "handlers.toml").write_text("\n".join(lines))
    names = list(CHECKS)
    rows = [f'[[controls]]\nid = "c-{n}"\ntitle = "Control {n}"\nchecks = ["{names[n % len(names)]}"]' for n in range(controls)]
    (folder / "bench.toml").write_text('title = "Bench"\n' + "\n".join(rows))
    content = os.urandom(BACKUP_BYTES)
    for number in range(backups):
        _back_up(root / "backups" / f"d{number % ALIASES}" / str(number), number % ALIASES, content)
    for number in range(files):
        place = root / "other" / str(number // FILES_OF_A_FOLDER)
        if number % FILES_OF_A_FOLDER == 0:
            place.mkdir(parents=True)
        (place / str(number)).touch()
    os.environ[VARIABLE] = str(folder / "handlers.toml")


def _back_up(folder: Path, alias: int, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "f").write_bytes(content)
    taken = datetime.fromtimestamp(BORN_MS // 1000, UTC) - timedelta(hours=1)
    made = Manifest(
        backup=f"d{alias}",
        work="",
        born=taken,
        taken=taken,
        kind="sqlite",
        file="f",
        bytes=0,
        content_sha256="",
        compressed=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        tables={},
        versions={},
        verified="restored",
        seconds=0.0,
    )
    (folder / "manifest.json").write_bytes(msgspec.json.encode(made))


async def report(number: int) -> ComplianceReported:
    """Run the handler as a lane would, in its child, and return its result."""
    message = GenerateComplianceReport(
        profile="bench", window=Window(last="7d"), to="evidence:new", formats=["oscal", "pdf", "csv"]
    )
    data = msgspec.json.encode(message)
    job = Job(1, b"%d-%d" % (BORN_MS, number), 1, "run", 0.0, b"generate-compliance-report", data, PLAIN, 0)
    await generate_compliance_report.run(message, job)
    assert job.extras is not None
    assert job.extras.result is not None
    return msgspec.json.decode(job.extras.result, type=ComplianceReported)


async def run(parsed: argparse.Namespace) -> bool:
    """Make the report, print the figures, and return whether they are within the gates."""
    await report(0)  # the child starts, and imports
    lags_ms: list[float] = []
    sampler = asyncio.create_task(sample(lags_ms))
    began_s = time.perf_counter()
    result = await report(1)
    seconds = time.perf_counter() - began_s
    sampler.cancel()
    p99_ms = p99(lags_ms)
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    print(f"{result.controls} controls, {parsed.backups:,} backups of 1 MiB, {parsed.files:,} other files")
    print(f"  seconds               {seconds:>12.2f}")
    print(f"  satisfied             {result.satisfied:>12,}")
    print(f"  child's memory, MiB   {child_mib():>12.0f}")
    show_lag(lags_ms)
    return result.satisfied > 0 and seconds <= parsed.gate_s and child_mib() <= parsed.gate_mib and p99_ms < parsed.gate_ms


def main() -> int:
    """Make the evidence, measure, clean up; return 1 if a gate does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_compliance", description="Measure a compliance report.")
    parser.add_argument("--controls", type=int, default=100, metavar="N", help="of the profile; default 100")
    parser.add_argument("--backups", type=int, default=400, metavar="N", help="all of which are read; default 400")
    parser.add_argument("--files", type=int, default=100_000, metavar="N", help="other files in the root; default 100000")
    parser.add_argument("--gate-s", type=float, default=5, metavar="S", help="most seconds; default 5")
    parser.add_argument("--gate-mib", type=float, default=256, metavar="MIB", help="most memory of the child; default 256")
    parser.add_argument("--gate-ms", type=float, default=20, metavar="MS", help="most lag of the loop, p99; default 20")
    parsed = parser.parse_args()
    return in_folder(lambda folder: fill(folder, parsed.controls, parsed.backups, parsed.files), lambda _, __: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
