"""`python -m bench.handlers_threats`: measures the analysis of logs in a child process: what it finds, seconds, memory, lag.

Normal traffic of a day with attacks in it, of which it is known where; then the same with Sigma rules; then as many lines of
attackers who each come once, which is the most that can be asked to be remembered.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

import msgspec

from bench.lag import child_mib, in_folder, p99, sample, show_lag
from handlers.contracts.threats import AnalyzeThreats, ThreatReport, ThreatsAnalyzed
from handlers.kit.settings import VARIABLE
from handlers.threats import analyze_threats
from runtime.jobs import PLAIN, Job
from tests.handlers.logsmith import failed, forge, ssh_line

BORN_S = 1_700_000_000
ATTACKS = 20  # of each kind
RULE = """title: teapots
logsource: {category: webserver}
detection: {sel: {sc-status: 418}, condition: sel}
level: high
---
title: failures
name: failures
logsource: {product: linux, service: sshd}
detection: {sel: ['Failed password for'], condition: sel}
---
title: many failures
correlation: {type: event_count, rules: [failures], group-by: [src_ip], timespan: 5m, condition: {gte: 10}}
level: high
"""


def fill(folder: Path, lines: int) -> set[tuple[str, str]]:
    """Make the logs, the rules and the settings, and return what is to be found."""
    made = forge(1, lines, BORN_S - 10.0, ATTACKS)
    (folder / "access.log").write_text(made.text("web"))
    (folder / "auth.log").write_text(made.text("auth"))
    with (folder / "hostile.log").open("w") as file:
        for n in range(lines):
            src = f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"
            file.write(f"{ssh_line(BORN_S - 1000 + n * 1000 / lines, failed(f'user{n}', src))}\n")
    (folder / "rules").mkdir()
    (folder / "rules" / "r.yml").write_text(RULE)
    common = "state = 'out', to = 'out'"
    (folder / "handlers.toml").write_text(
        f"roots.out = {{ path = '{folder}', mode = 'write' }}\nrules.some = {{ root = 'out', folder = 'rules' }}\n"
        "logs.web = { root = 'out', glob = 'access.log', format = 'combined' }\n"
        "logs.auth = { root = 'out', glob = 'auth.log', format = 'sshd', year = 2023 }\n"
        "logs.hostile = { root = 'out', glob = 'hostile.log', format = 'sshd', year = 2023 }\n"
        f"threats.plain = {{ sources = ['web', 'auth'], {common} }}\n"
        f"threats.rules = {{ sources = ['web', 'auth'], rules = 'some', {common} }}\n"
        f"threats.hostile = {{ sources = ['hostile'], {common} }}\n"
    )
    os.environ[VARIABLE] = str(folder / "handlers.toml")
    return made.planted


async def analyze(analysis: str) -> ThreatsAnalyzed:
    """Run the handler as a lane would, in its child, and return its result."""
    message = AnalyzeThreats(analysis=analysis)
    data, born_ms = msgspec.json.encode(message), BORN_S * 1000
    job = Job(0, b"%d-0" % born_ms, 1, "run", 0.0, b"analyze-threats", data, PLAIN, born_ms)
    await analyze_threats.run(message, job)
    assert job.extras is not None
    assert job.extras.result is not None
    return msgspec.json.decode(job.extras.result, type=ThreatsAnalyzed)


async def measure(analysis: str, parsed: argparse.Namespace) -> tuple[ThreatsAnalyzed, bool]:
    """Analyse, print the figures, and return the result, and whether they are within the gates."""
    lags_ms: list[float] = []
    sampler = asyncio.create_task(sample(lags_ms))
    began_s = time.perf_counter()
    result = await analyze(analysis)
    seconds = time.perf_counter() - began_s
    sampler.cancel()
    p99_ms = p99(lags_ms)
    print(f"{analysis}: {result.lines:,} lines, {result.unparsed} unparsed")
    print(f"  seconds               {seconds:>12.1f}")
    print(f"  lines/s               {result.lines / seconds:>12,.0f}")
    print(f"  child's memory, MiB   {child_mib():>12.0f}")
    show_lag(lags_ms)
    return result, (
        seconds <= parsed.gate_s or analysis != "plain"
    ) and child_mib() <= parsed.gate_mib and p99_ms < parsed.gate_ms


async def run(folder: Path, planted: set[tuple[str, str]], parsed: argparse.Namespace) -> bool:
    """Analyse all three, print the figures, and return whether they are within the gates."""
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    result, is_within = await measure("plain", parsed)
    report = msgspec.json.decode((folder / result.report.removeprefix("out:")).read_bytes(), type=ThreatReport)
    found = {(each.rule, each.subject) for each in report.findings}
    recall = len(planted & found) / len(planted)
    alarms = len(found - planted)
    print(f"  recall                {recall:>12.2f}   of {len(planted)} planted, {ATTACKS} of each kind")
    print(f"  false alarms          {alarms:>12}   {100_000 * alarms / result.lines:.2f} in 100,000 lines\n")
    is_within = is_within and recall == 1.0 and alarms * 100_000 <= result.lines
    for analysis in ("rules", "hostile"):
        _, is_fit = await measure(analysis, parsed)
        print()
        is_within = is_within and is_fit
    return is_within


def main() -> int:
    """Make the logs, measure, clean up; return 1 if a gate does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_threats", description="Measure the analysis of logs.")
    parser.add_argument("--lines", type=int, default=1_000_000, metavar="N", help="lines of normal traffic; default 1000000")
    parser.add_argument("--gate-s", type=float, default=30, metavar="S", help="most seconds of the first; default 30")
    parser.add_argument("--gate-mib", type=float, default=300, metavar="MIB", help="most memory of the child; default 300")
    parser.add_argument("--gate-ms", type=float, default=20, metavar="MS", help="most lag of the loop, p99; default 20")
    parsed = parser.parse_args()
    return in_folder(lambda folder: fill(folder, parsed.lines), lambda folder, planted: run(folder, planted, parsed))


if __name__ == "__main__":
    sys.exit(main())
