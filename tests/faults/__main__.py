"""`python -m tests.faults`: storms of every fault with fresh seeds, with their figures; types with limits; what people
order; a mass kill; schedules; the long tests.

Exit status: 0 all figures hold, 1 one does not, 3 a run proved nothing, since a kind of fault met nobody at work, nor did two
more runs in its place.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from tests.faults import controls, gates, mass, ticks, versions
from tests.faults.checker import Verdict
from tests.faults.nemesis import GRACE_S, KINDS
from tests.faults.storms import DURABLE, LARGE, LONG, Weather, blow, commit, usual, version_of
from tests.faults.worker import ROOT
from tests.servers import HOW_TO_GET, Server, binary_of
from tests.servers import KINDS as SERVERS

SEEDS = 5
JOBS = 100_000
JOBS_PER_S = 160.0
LEAST_S = 55.0  # less, and a deck of faults is not played out
LONG_IN = ("faults", "board", "browser", "commands")  # folders with long tests
GATES_PART = gates.JOBS_PER_S / JOBS_PER_S  # for as long as the others
MOST_MISSED = 0.2
MOST_RECOVERY_S = 5.0
FAILED, VOID = 1, 3
VOID_AGAIN = 2
Storm = Callable[[Server, Path, Weather, int], Coroutine[object, object, Verdict]]
ALONE: dict[Storm, str] = {versions.blow: " --versions", gates.blow: " --gates"}
SPECIAL = {"long jobs beside killers of every delay": LONG, "payloads of 250 KB over slow lines": LARGE}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many fresh seeds (default %(default)s)")
    parser.add_argument("--seed", type=int, help="run this seed alone")
    parser.add_argument(
        "--server", choices=SERVERS, help="run all seeds on this server (default: Valkey, the last of several on Redis 7.0 and 8)"
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help="how many jobs in all (default %(default)s)")
    parser.add_argument("--versions", action="store_true", help="run the storms of the last release beside this tree alone")
    parser.add_argument("--gates", action="store_true", help="run the storms over types with limits alone")
    parser.add_argument("--storms-only", action="store_true", help="without the long tests of single faults")
    options = parser.parse_args(arguments)
    first = int(time.time())
    seeds = [options.seed] if options.seed is not None else [first + number for number in range(options.seeds)]
    kinds = servers_for(len(seeds))
    if options.versions:
        return blow_versions(seeds, options.server, math.ceil(options.jobs / len(seeds)))
    if options.gates:
        return blow_gates(seeds, options.server, math.ceil(options.jobs / len(seeds)))
    statuses: list[int] = []
    for number, seed in enumerate(seeds):
        kind = options.server or kinds[number]
        jobs = math.ceil(options.jobs / len(seeds))
        statuses.append(run_until_it_proves(kind, seed, usual(jobs, max(jobs / JOBS_PER_S, LEAST_S)), options.seed is None))
    if options.seed is None:
        for name, weather in SPECIAL.items():
            print(f"{name}:", flush=True)
            statuses.append(run_until_it_proves("valkey", first, weather))
        statuses.append(blow_gates([first, first + 1], options.server, math.ceil(options.jobs / SEEDS * GATES_PART)))
        statuses.append(blow_versions([first, first + 1], options.server, math.ceil(options.jobs / SEEDS)))
        statuses.append(controls.main(["--seed", str(first)]))
    if not options.storms_only:
        statuses.append(mass.main([]))
        statuses.append(ticks.main([]))
        print("long tests of single faults:", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "-m", "long", *(f"tests/{name}" for name in LONG_IN)]
        statuses.append(FAILED if subprocess.run(command, cwd=ROOT).returncode not in (0, 5) else 0)  # 5: there are none
    return FAILED if FAILED in statuses else max(statuses, default=0)


def blow_versions(seeds: Sequence[int], server: str | None, jobs: int) -> int:
    """Run storms of two releases on one queue, of so many jobs each; return the exit status."""
    print(f"workers of the last release, {versions.LAST_RELEASE}, beside those of this tree:", flush=True)
    if versions.last_release() is None:
        print(f"  left out: {versions.WHY_NOT}\n", flush=True)
        return 0
    kinds = [kind for kind in ("valkey", "redis") if binary_of(kind)]
    weather = versions.usual(jobs, max(jobs / JOBS_PER_S, LEAST_S))
    return max(
        run_until_it_proves(server or kinds[number % len(kinds)], seed, weather, len(seeds) > 1, versions.blow)
        for number, seed in enumerate(seeds)
    )


def blow_gates(seeds: Sequence[int], server: str | None, jobs: int) -> int:
    """Run storms over types with limits, of so many jobs each; return the exit status."""
    print("types with limits, whose workers are killed while people pause and resume:", flush=True)
    kinds = [kind for kind in SERVERS if binary_of(kind)]
    return max(
        run_until_it_proves(server or kinds[number % len(kinds)], seed, gates.weather(jobs), len(seeds) > 1, gates.blow)
        for number, seed in enumerate(seeds)
    )


def servers_for(seeds: int) -> list[str]:
    """Return the kind of server of each seed: Valkey, and at the end one of each other kind that is here."""
    for kind, words in HOW_TO_GET.items():
        if seeds > 1 and not binary_of(kind):
            print(words)
    others = [kind for kind in SERVERS if kind != "valkey" and binary_of(kind)][: seeds - 1]
    return ["valkey"] * (seeds - len(others)) + others


def run_until_it_proves(kind: str, seed: int, weather: Weather, may_repeat: bool = True, storm: Storm = blow) -> int:
    """Run one storm; where it proved nothing, neither good nor bad, another seed is asked. Return the exit status."""
    status = run_one(kind, seed, weather, storm)
    for again in range(1, 1 + VOID_AGAIN if may_repeat else 1):
        if status == VOID:
            status = run_one(kind, seed + 1000 * again, weather, storm)
    return status


def run_one(kind: str, seed: int, weather: Weather, storm: Storm = blow) -> int:
    """Run one storm, print its figures, and give its exit status. The histories of a run that is not good are kept."""
    server = Server(kind, *DURABLE, appendonly=True)
    history = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        client = server.client()
        print(f"seed {seed}, commit {commit()}, {version_of(client)}, appendfsync always", flush=True)
        client.close()
        verdict = asyncio.run(storm(server, history, weather, seed))
    finally:
        if words := server.last_words():
            print(f"  the server has ended by itself:\n{words}", flush=True)
        server.stop()
    problems, void = verdict.problems + figures_that_fail(verdict), why_void(verdict, weather.kinds) + verdict.void
    print(table(verdict))
    for problem in problems:
        print(f"  FAILED  {problem}")
    for reason in void:
        print(f"  void    {reason}")
    if problems or void:
        words = f"--seed {seed} --server {kind} --jobs {weather.jobs}{ALONE.get(storm, '')}"
        print(f"  histories and logs: {history}; again: python -m tests.faults {words}")
    else:
        shutil.rmtree(history)
    print(f"  {'FAILED' if problems else 'void' if void else 'good'}\n", flush=True)
    return FAILED if problems else VOID if void else 0


def figures_that_fail(verdict: Verdict) -> list[str]:
    """Return the figures that are beyond their bounds; what must be zero is among the checker's problems already."""
    failing: list[str] = []
    if verdict.duplicate_runs > verdict.in_flight_at_hits:
        failing.append(f"{verdict.duplicate_runs} second runs, of {verdict.in_flight_at_hits} jobs in flight at the hits")
    if percentile(verdict.recovery_s, 99) >= MOST_RECOVERY_S:
        failing.append(f"{percentile(verdict.recovery_s, 99):.1f} s from a server's return to the first job")
    if percentile(verdict.exits_s, 99) >= GRACE_S + 5:
        failing.append(f"{percentile(verdict.exits_s, 99):.1f} s from SIGTERM to the exit, with a grace of {GRACE_S:g} s")
    return failing


def why_void(verdict: Verdict, kinds: Sequence[str]) -> list[str]:
    """Say why a run proves nothing: a kind of fault met nobody at work, or too many did."""
    reasons = [f"no {kind} met a job in flight" for kind in kinds if not verdict.hits.get(kind)]
    faults, hits = sum(verdict.faults.values()), sum(verdict.hits.values())
    if faults - hits > MOST_MISSED * faults:
        reasons.append(f"{faults - hits} of {faults} faults met nobody")
    return reasons


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest value that this percentage do not exceed; 0 without any."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else 0.0


def table(verdict: Verdict) -> str:
    """Return all figures of a run."""
    share = 100 * verdict.duplicate_runs / max(1, verdict.runs)
    causes = ", ".join(f"{cause} {times}" for cause, times in sorted(verdict.duplicates_by_cause.items())) or "none"
    rows = [
        f"  jobs {verdict.jobs}: {verdict.acknowledged} acknowledged, {verdict.unknown} unknown "
        f"({verdict.recovered} of them there), {verdict.refused} refused, {verdict.dropped} dropped as copies",
        f"  runs {verdict.runs}, second runs {verdict.duplicate_runs} ({share:.2f} %): {causes}",
        f"  {'fault':<20}{'times':>6}{'hit':>6}{'in flight':>11}",
        *[
            f"  {kind:<20}{verdict.faults.get(kind, 0):>6}{verdict.hits.get(kind, 0):>6}{verdict.in_flight.get(kind, 0):>11}"
            for kind in KINDS
            if verdict.faults.get(kind)
        ],
        f"  lost {verdict.lost}, vanished {verdict.vanished}, unexpected {verdict.unexpected}, refused yet ran "
        f"{verdict.refused_yet_ran}, settled twice {verdict.settled_twice}, "
        f"moved without the lease {verdict.moved_without_lease}, unexplained second runs {verdict.unexplained}",
        f"  dead {verdict.dead}: missing {verdict.dead_missing}, wrong {verdict.dead_wrong}, innocents {verdict.innocents_dead}; "
        f"attempts wrong {verdict.attempts_wrong}",
        f"  most deliveries {verdict.most_deliveries}, too often {verdict.delivered_too_often}; moves refused "
        f"{verdict.refused_moves}, finished jobs that were gone {verdict.shortfall}",
        f"  leftovers {verdict.leftovers or 0}; drained in {verdict.drained_s:.1f} s",
        f"  first job after {len(verdict.recovery_s)} restarts of the server: p50 {percentile(verdict.recovery_s, 50):.2f} s, "
        f"p99 {percentile(verdict.recovery_s, 99):.2f} s",
        f"  exit after SIGTERM, {len(verdict.exits_s)} times: p99 {percentile(verdict.exits_s, 99):.2f} s",
        *[f"  {line}" for line in verdict.figures],
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
