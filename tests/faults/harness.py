"""What the fault tests share: workers to be killed, their histories, and the checker of what became of the jobs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from tests.faults.checker import Verdict, check_story, leftovers
from tests.faults.ledger import ANY_RUNS, Event, Fault, Try, events, read
from tests.faults.storms import Weather, blow
from tests.faults.worker import LEASE_S, ROOT, Worker
from tests.servers import Server

__all__ = [
    "LEASE_S",
    "ROOT",
    "Event",
    "Plan",
    "Verdict",
    "Worker",
    "check",
    "count",
    "events",
    "hire",
    "leftovers",
    "storm",
]


@dataclass
class Plan:
    """What was sent: numbers that must end, numbers that must die, and how many entries nobody can read.

    `attempts` of a number, or its value in `must_die`, is how often it runs without any fault; without one, nobody counts.
    """

    must_end: set[int] = field(default_factory=set)
    must_die: dict[int, int] = field(default_factory=dict)
    unreadable: int = 0
    attempts: dict[int, int] = field(default_factory=dict)


def check(plan: Plan, history: Path, raw: redis.Redis, killed: list[int]) -> Verdict:
    """Compare what a test sent by itself with what ended, what died and what is left.

    Second runs are counted and not judged: what else the test did to the workers is not written down.
    """
    story = read(history)
    for n in plan.must_end | set(plan.must_die):
        reason = "attempts" if n in plan.must_die else ""
        story.tries[n] = Try(n, plan.attempts.get(n, plan.must_die.get(n, ANY_RUNS)), reason, {})
        story.verdicts[n] = "ok"
    last_s = {pid: max((run.start_s for run in story.runs if run.pid == pid), default=0.0) for pid in killed}
    story.faults += [Fault("kill", [pid], at_s, at_s) for pid, at_s in last_s.items()]
    return check_story(story, raw, unreadable=plan.unreadable, knows_faults=False)


async def storm(server: Server, history: Path, jobs: int, seconds: float, kill_every_s: float, seed: int) -> Verdict:
    """Send while one of three workers is killed with -9 again and again, then drain; give what the checker says."""
    return await blow(server, history, Weather(jobs, seconds, ("kill",), kill_every_s), seed)


def hire(crew: list[Worker], server: Server, history: Path, *options: str, **more: Any) -> Worker:
    """Start a worker that ends with the test, and give it when it works."""
    worker = Worker(server, history, *options, **more)
    crew.append(worker)
    worker.wait_ready()
    return worker


def count(history: Path, kind: str) -> int:
    """Return how many events of a kind all workers have written down."""
    return sum(1 for event in events(history) if event.kind == kind)
