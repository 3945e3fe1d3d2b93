"""Worker processes to be killed, their histories, and the checker: what was accepted must have ended, died, or be still there."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import redis

from runtime import Message, Producer
from tests.contract.snapshot import STREAMS
from tests.faults.jobs import Scripted
from tests.servers import Server, wait_until

ROOT = Path(__file__).parents[2]
LEASE_S = 1.5


class Worker:
    """One worker process on a server."""

    def __init__(self, server: Server, history: Path, *options: str, concurrency: int = 100, lease_s: float = LEASE_S) -> None:
        command = [sys.executable, "-m", "runtime", "--redis", server.url, "--handlers", "tests.faults.jobs", "--board", "off"]
        command += ["--lease", str(lease_s), "--concurrency", str(concurrency), "--log", "plain", *options]
        self.log_path = Path(tempfile.mkstemp(prefix="worker-", suffix=".log", dir=history)[1])
        environment = {**os.environ, "FAULTS_HISTORY": str(history), "PYTHONPATH": str(ROOT)}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def wait_ready(self) -> None:
        wait_until(lambda: " lanes, " in self.log, what=f"the worker starts ({self.log})")

    def send(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()

    def stop(self, deadline_s: float = 40.0) -> int:
        self.send(signal.SIGTERM)
        return self.process.wait(deadline_s)


@dataclass
class Event:
    pid: int
    kind: str
    n: int
    attempt: int
    rest: list[str] = field(default_factory=list)


def events(history: Path) -> Iterator[Event]:
    """Give all that the workers wrote down, process by process."""
    for path in history.glob("*.log"):
        if path.stem.isdigit():
            for line in path.read_text().splitlines():
                kind, n, attempt, *rest = line.split(" ")
                yield Event(int(path.stem), kind, int(n), int(attempt), rest)


def leftovers(raw: redis.Redis) -> dict[str, int]:
    """Give what is still in any structure of the queue."""
    left = {name: raw.xlen(f"{{jobs}}:{name}") for name in STREAMS}
    for name in STREAMS:
        left[f"{name} pending"] = raw.xpending(f"{{jobs}}:{name}", "workers")["pending"]
    left["due"] = raw.zcard("{jobs}:due")
    left["msg"] = raw.hlen("{jobs}:msg")
    return {name: count for name, count in left.items() if count}


class Verdict(msgspec.Struct):
    """What the checker says, in numbers; the first four and `leftovers` must be zero."""

    lost: int
    unexpected: int
    dead_missing: int
    dead_wrong: int
    leftovers: dict[str, int]
    jobs: int
    runs: int
    duplicate_runs: int
    kills: int
    kills_in_flight: int
    most_deliveries: int

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.unexpected or self.dead_missing or self.dead_wrong or self.leftovers)


@dataclass
class Plan:
    """What was sent: numbers that must end, numbers that must die, and how many entries nobody can read."""

    must_end: set[int] = field(default_factory=set)
    must_die: dict[int, int] = field(default_factory=dict)
    unreadable: int = 0
    attempts: dict[int, int] = field(default_factory=dict)


def check(plan: Plan, history: Path, raw: redis.Redis, killed: list[int]) -> Verdict:
    """Compare what was sent with what ended, what died and what is left."""
    ended: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    in_flight: Counter[int] = Counter()
    deliveries = 0
    for event in events(history):
        if event.kind == "start":
            runs[event.n] += 1
            in_flight[event.pid] += 1
            deliveries = max(deliveries, int(event.rest[1]))
        else:
            in_flight[event.pid] -= 1
            ended[event.n] += event.kind == "end"
    dead_numbers: Counter[int] = Counter()
    dead_unreadable = 0
    for _, fields in raw.xrange("{jobs}:dead"):
        if fields["dead_reason"] in ("unreadable", "bad-payload"):
            dead_unreadable += 1
        else:
            dead_numbers[msgspec.json.decode(fields["data"])["n"]] += 1
    expected = plan.must_end | set(plan.must_die)
    return Verdict(
        lost=sum(1 for n in plan.must_end if not ended[n]),
        unexpected=sum(1 for n in runs if n not in expected),
        dead_missing=sum(1 for n in plan.must_die if not dead_numbers[n]) + max(0, plan.unreadable - dead_unreadable),
        dead_wrong=sum(1 for n, times in dead_numbers.items() if n not in plan.must_die or times > 1)
        + max(0, dead_unreadable - plan.unreadable),
        leftovers=leftovers(raw),
        jobs=len(expected) + plan.unreadable,
        runs=sum(runs.values()),
        duplicate_runs=sum(max(0, times - plan.attempts[n]) for n, times in runs.items() if n in plan.attempts),
        kills=len(killed),
        kills_in_flight=sum(1 for pid in killed if in_flight[pid] > 0),
        most_deliveries=deliveries,
    )


async def send_mixed(server: Server, raw: redis.Redis, jobs: int, seconds: float, dice: Random) -> Plan:
    """Send jobs of 5 to 200 ms evenly over `seconds`:
    ok, retried once, always failing, delayed, malformed, some sharing an id.
    """
    plan = Plan()
    started_s = asyncio.get_running_loop().time()
    async with Producer.connect(server.url) as producer:
        chunk: list[Message] = []
        for n in range(jobs):
            kind = dice.choices(["ok", "retry", "fail", "delayed", "plain", "malformed"], [50, 15, 8, 12, 10, 5])[0]
            ms = round(dice.uniform(5, 200), 1)
            failures = {"retry": 1, "fail": 99}.get(kind, 0)
            if kind == "malformed":
                plan.unreadable += 1
                bad = dice.choice([{"foo": "bar"}, {"type": "scripted", "data": "{"}, {"type": "scripted", "data": '{"n":"x"}'}])
                raw.xadd(f"{{jobs}}:{dice.choice(STREAMS)}", bad)
                continue
            (plan.must_die if kind == "fail" else plan.attempts)[n] = 3
            if kind != "fail":
                plan.must_end.add(n)
            plan.attempts[n] = {"retry": 2, "fail": 3}.get(kind, 1)
            job_id = f"shared-{n % 50}" if n % 40 == 0 else ""
            if kind == "plain":
                extra = {"at": str(int(raw.time()[0] * 1000) + 500)} if n % 2 else {}
                raw.xadd(f"{{jobs}}:{dice.choice(STREAMS)}", {"type": "scripted", "data": f'{{"n":{n},"ms":{ms}}}', **extra})
                continue
            payload = Scripted(n=n, ms=ms, failures=failures)
            chunk.append(Message(payload=payload, id=job_id, delay_s=dice.uniform(0.1, 3) if kind == "delayed" else 0))
            if len(chunk) >= 50:
                await producer.send_many(chunk)
                chunk.clear()
            ahead_s = seconds * n / jobs - (asyncio.get_running_loop().time() - started_s)
            if ahead_s > 0:
                await asyncio.sleep(ahead_s)
        await producer.send_many(chunk)
    return plan


async def storm(server: Server, history: Path, jobs: int, seconds: float, kill_every_s: float, seed: int) -> Verdict:
    """Send while one of three workers is killed with -9 again and again, then drain; give what the checker says."""
    dice = Random(seed)
    raw = server.client()
    workers = [Worker(server, history) for _ in range(3)]
    killed: list[int] = []
    try:
        for worker in workers:
            worker.wait_ready()
        sending = asyncio.create_task(send_mixed(server, raw, jobs, seconds, Random(seed + 1)))
        while not sending.done():
            await asyncio.wait([sending], timeout=kill_every_s)
            if not sending.done():
                victim = dice.randrange(3)
                killed.append(workers[victim].process.pid)
                workers[victim].kill()
                workers[victim] = Worker(server, history)
        plan = await sending
        await asyncio.to_thread(wait_until, lambda: not leftovers(raw), 60.0, "everything is settled")
        return check(plan, history, raw, killed)
    finally:
        for worker in workers:
            worker.kill()
        raw.close()


def hire(crew: list[Worker], server: Server, history: Path, *options: str, **more: Any) -> Worker:
    """Start a worker that ends with the test, and give it when it works."""
    worker = Worker(server, history, *options, **more)
    crew.append(worker)
    worker.wait_ready()
    return worker


def count(history: Path, kind: str) -> int:
    """Give how many events of a kind all workers have written down."""
    return sum(1 for event in events(history) if event.kind == kind)
