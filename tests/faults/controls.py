"""`python -m tests.faults.controls`: jobs are cancelled, debounced, answered, handed on and replayed by an operation, while
workers are killed with -9 again and again, and the server with them.

Printed is what was promised and did not hold. Exit status 1 when it was anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import redis

from runtime import Control, JobDead, Priority, Producer
from runtime.errors import JobsError, StoreUnavailable
from runtime.operations import Filter
from runtime.steering import Steered as Answer
from tests.contract.snapshot import STREAMS
from tests.faults.controlled import MENDED, Asked, Bounced, Doomed, Parent, Steered
from tests.faults.storms import DURABLE
from tests.faults.worker import Worker
from tests.servers import KINDS, Server, binary_of, wait_until

WORKERS: Final = 3
HANDLERS: Final = ("--handlers", "tests.faults.jobs,tests.faults.controlled")
LANES: Final = 20
START_S: Final = 120.0  # processes that start at once on two cores with other load
KILL_S: Final = (0.4, 1.1)
OUTAGE_S: Final = (0.2, 1.0)
DRAIN_S: Final = 60.0
KEYS: Final = 8
BOUNCE_S: Final = (0.3, 0.8)
DOOMED: Final = 200
RATE: Final = 60.0  # of the operation, letters a second: it lasts for some kills
ANSWER_S: Final = 60.0


@dataclass
class Figures:
    """What a storm showed; `broken` are the promises that did not hold."""

    cancelled: Counter[str] = field(default_factory=Counter[str])
    parents: int = 0
    followers: int = 0
    bounces: int = 0
    answers: Counter[str] = field(default_factory=Counter[str])
    replayed: int = 0
    kills: int = 0
    outages: int = 0
    broken: list[str] = field(default_factory=list[str])

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.outages} of the server; cancels: {dict(self.cancelled)}; {self.parents} parents, "
            f"{self.followers} followers; {self.bounces} debounced; results: {dict(self.answers)}; {self.replayed} replayed"
        )


@dataclass
class Told:
    """What was ordered and answered: for cancels what was said and when, for keys the values that were stored for certain."""

    cancels: dict[int, tuple[str, float]] = field(default_factory=dict[int, tuple[str, float]])
    steered: int = 0
    parents: dict[int, Parent] = field(default_factory=dict[int, Parent])
    values: dict[str, list[tuple[int, bool]]] = field(default_factory=lambda: defaultdict(list))
    answers: dict[int, str] = field(default_factory=dict[int, str])
    is_over: bool = False


class Storm:
    """Owns the workers, and the people that order."""

    def __init__(self, server: Server, folder: Path, seed: int) -> None:
        self.server, self.folder, self.rng = server, folder, Random(seed)
        self.figures, self.told = Figures(), Told()
        self.crew = [self.hire() for _ in range(WORKERS)]
        self.producer = Producer.connect(server.url, patience_s=30)

    def hire(self) -> Worker:
        return Worker(self.server, self.folder, *HANDLERS, "--threads", "4", concurrency=LANES)

    async def run(self, seconds: float, kills_server: bool) -> Figures:
        """Order and harm for so long, let all drain, and judge."""
        await asyncio.to_thread(wait_until, lambda: any(worker.is_ready for worker in self.crew), START_S, "a worker starts")
        await self._make_letters()
        end_s = time.monotonic() + seconds
        async with self.producer, Control(self.server.url, by="storm") as control, asyncio.TaskGroup() as group:
            harm = group.create_task(self._harm(kills_server))
            operation = await control.operate("replay", Filter(type="doomed"), rate=RATE, hold_s=0.0, canary_s=1.0)
            hands = [self._cancel(control), self._hand_on(), self._bounce(), self._ask()]
            tasks = [group.create_task(hand) for hand in hands]
            await asyncio.sleep(end_s - time.monotonic())
            self.told.is_over = True
            await asyncio.wait(tasks)
            await harm
            await self._surely(lambda: self._is_over(control, operation.id))
        await asyncio.to_thread(wait_until, self._is_drained, DRAIN_S, "all is settled")
        with contextlib.closing(self.server.client()) as raw:
            self._judge(raw)
        return self.figures

    def end(self) -> None:
        """Kill what still runs."""
        for worker in self.crew:
            worker.kill()

    # --- the people ------------------------------------------------------------------------------------------------------

    async def _make_letters(self) -> None:
        await self.producer.send_many([Doomed(n) for n in range(DOOMED)])
        with contextlib.closing(self.server.client()) as raw:
            await asyncio.to_thread(wait_until, lambda: raw.xlen("{jobs}:dead") == DOOMED, START_S, "all have died")
        (self.folder / MENDED).touch()

    async def _surely(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await ask()
            await asyncio.sleep(0.05)

    async def _is_over(self, control: Control, operation: str) -> None:
        while (found := await control.operation(operation)) and found.state not in ("done", "braked"):
            await asyncio.sleep(0.1)

    async def _cancel(self, control: Control) -> None:
        """Send jobs that wait, run, fail and are delayed, and cancel most of them a moment later."""
        while not self.told.is_over:
            n = self.told.steered
            self.told.steered += 1
            message = Steered(n=n, ms=self.rng.choice([1, 50, 400, 2500]), failures=self.rng.choice([0, 0, 1, 2]))
            priority = self.rng.choice(list(Priority))
            delay_s = self.rng.choice([0.0, 0.0, 0.0, 0.3, 3.0])
            await self.producer.send(message, id=f"steered-{n}", priority=priority, delay_s=delay_s)
            await asyncio.sleep(self.rng.choice([0.0, 0.01, 0.05, 0.2]))
            if n % 5:
                answer = await self._surely(lambda n=n: control.cancel(f"steered-{n}"))
                self.told.cancels[n] = (said(answer), time.monotonic())

    async def _hand_on(self) -> None:
        n = 0
        while not self.told.is_over:
            fate, followers, delay_s = self.rng.randrange(4), self.rng.choice([0, 1, 2, 7]), self.rng.choice([0.0, 0.0, 0.2])
            message = Parent(n=n, followers=followers, delay_s=delay_s, failures=int(fate == 1), is_doomed=fate == 0)
            self.told.parents[n] = message
            await self.producer.send(message, id=f"parent-{n}")
            n += 1
            await asyncio.sleep(0.02)

    async def _bounce(self) -> None:
        """Say of a few keys again and again what their value is by now; the last one must have run."""
        value = 0
        while not self.told.is_over:
            key = f"key-{self.rng.randrange(KEYS)}"
            value += 1
            is_certain = True
            try:
                await self.producer.send(Bounced(key, value), key=key, delay_s=self.rng.uniform(*BOUNCE_S))
            except JobsError:
                is_certain = False
            self.told.values[key].append((value, is_certain))
            await asyncio.sleep(0.03)

    async def _ask(self) -> None:
        async with asyncio.TaskGroup() as group:
            n = 1
            while not self.told.is_over:
                group.create_task(self._ask_one(n))
                n += 1
                await asyncio.sleep(0.05)

    async def _ask_one(self, n: int) -> None:
        await self.producer.send(Asked(n), id=f"asked-{n}")

        async def wait() -> str:
            try:
                return str(await self.producer.result(f"asked-{n}", timeout_s=ANSWER_S, type=int))
            except JobDead as dead:
                return dead.reason

        self.told.answers[n] = await self._surely(wait)

    # --- the harm --------------------------------------------------------------------------------------------------------

    async def _harm(self, kills_server: bool) -> None:
        while not self.told.is_over:
            await asyncio.sleep(self.rng.uniform(*KILL_S))
            at = self.rng.randrange(WORKERS)
            self.crew[at].kill()
            self.crew[at] = self.hire()
            self.figures.kills += 1
            if kills_server and self.figures.kills % 4 == 0:
                self.server.kill()
                await asyncio.sleep(self.rng.uniform(*OUTAGE_S))
                await asyncio.to_thread(self.server.start)
                self.figures.outages += 1

    def _is_drained(self) -> bool:
        with contextlib.suppress(redis.RedisError), contextlib.closing(self.server.client()) as raw:
            pipe = raw.pipeline()  # one transaction: a job that moves between two of these is counted in one
            for stream in STREAMS:
                pipe.xlen(f"{{jobs}}:{stream}")
            return not any(pipe.zcard("{jobs}:due").execute())
        return False

    # --- the judge -------------------------------------------------------------------------------------------------------

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        for path in self.folder.glob("*.log"):
            if path.stem.isdigit():
                for line in path.read_text().splitlines():
                    yield int(path.stem), line.split()

    def _judge(self, raw: redis.Redis) -> None:
        lines = list(self._lines())
        rows = cast("list[tuple[str, dict[str, str]]]", raw.xrange("{jobs}:dead"))
        letters = {fields.get("id", ""): fields for _, fields in rows}
        self._judge_cancels(lines, letters)
        self._judge_hand_on(lines, letters)
        self._judge_keys(lines)
        self._judge_answers()
        self._judge_replays(lines, letters)
        for key in ("{jobs}:msg", "{jobs}:strikes"):
            if left := raw.hlen(key):
                self.broken(f"{left} left in {key}")

    def broken(self, text: str) -> None:
        self.figures.broken.append(text)

    def _judge_cancels(self, lines: list[tuple[int, list[str]]], letters: dict[str, dict[str, str]]) -> None:
        starts: dict[int, list[tuple[int, float]]] = defaultdict(list)
        ended = {int(words[1]) for _, words in lines if words[0] == "steer-end"}
        for pid, words in lines:
            if words[0] == "steer-start":
                starts[int(words[1])].append((pid, float(words[2])))
        for n, (answer, at_s) in self.told.cancels.items():
            self.figures.cancelled[answer.split()[0]] += 1
            later = [(pid, start_s) for pid, start_s in starts[n] if start_s > at_s]
            if answer.startswith("asked"):  # what waited there for a lane may start until its worker has heard of it
                later = [(pid, start_s) for pid, start_s in later if f"-{pid}-" not in answer] + later[1:]
            if later and not answer.startswith(("gone", "held")):
                self.broken(f"job {n} started after it was cancelled ({answer})")
        for n in range(self.told.steered):
            if n not in ended and f"steered-{n}" not in letters:
                self.broken(f"job {n} has neither ended nor died")

    def _judge_hand_on(self, lines: list[tuple[int, list[str]]], letters: dict[str, dict[str, str]]) -> None:
        entries: dict[int, Counter[int]] = defaultdict(Counter)
        seen: set[tuple[int, int, str]] = set()
        for _, words in lines:
            if words[0] == "follower":
                one = (int(words[1]), int(words[2]), words[3])
                if one not in seen:  # the same entry again is a second run after a kill, no second message
                    seen.add(one)
                    entries[one[0]][one[1]] += 1
        for n, parent in self.told.parents.items():
            self.figures.parents += 1
            wanted = {} if parent.is_doomed else dict.fromkeys(range(parent.followers), 1)
            if dict(entries[n]) != wanted:
                self.broken(f"parent {n} ({parent}): followers {dict(entries[n])}")
            self.figures.followers += len(entries[n])
            if parent.is_doomed and f"parent-{n}" not in letters:
                self.broken(f"parent {n} has not died")

    def _judge_keys(self, lines: list[tuple[int, list[str]]]) -> None:
        ran: dict[str, list[int]] = defaultdict(list)
        for _, words in lines:
            if words[0] == "bounced":
                ran[words[1]].append(int(words[2]))
        for key, values in self.told.values.items():
            last = max((value for value, is_certain in values if is_certain), default=0)
            self.figures.bounces += len(values)
            if max(ran[key], default=0) < last:
                self.broken(f"{key}: {last} was sent last, of what ran the newest is {max(ran[key], default=None)}")

    def _judge_answers(self) -> None:
        for n, answer in self.told.answers.items():
            is_right = answer == ("no-answer" if n % 10 == 0 else str(2 * n))
            self.figures.answers["right" if is_right else "wrong"] += 1
            if not is_right:
                self.broken(f"the answer to {n} is {answer}")

    def _judge_replays(self, lines: list[tuple[int, list[str]]], letters: dict[str, dict[str, str]]) -> None:
        entries: dict[int, set[str]] = defaultdict(set)
        for _, words in lines:
            if words[0] == "doomed":
                entries[int(words[1])].add(words[2])
        self.figures.replayed = len(entries)
        for n in range(DOOMED):
            if len(entries[n]) != 1:
                self.broken(f"dead job {n} came back {len(entries[n])} times")
        if left := sum(1 for fields in letters.values() if fields.get("type") == "doomed"):
            self.broken(f"{left} letters were not replayed")


def said(jobs: Sequence[Answer]) -> str:
    """Return what became of a job that was to be cancelled: the answer, and who has it."""
    return " ".join([jobs[0].answer, jobs[0].holder]) if jobs else "gone"


def storm(server: Server, folder: Path, seconds: float, seed: int, kills_server: bool = True) -> Figures:
    """Run one storm on an empty server."""
    one = Storm(server, folder, seed)
    try:
        return asyncio.run(one.run(seconds, kills_server))
    finally:
        one.end()


def main(arguments: list[str] | None = None) -> int:
    """Print the figures on each server; status 1 when a promise does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.controls", description=__doc__)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    print("control: cancels, debounce, results, hand-off and an operation, while workers and the server are killed", flush=True)
    status = 0
    for kind in (kind for kind in KINDS if binary_of(kind)):
        folder, server = Path(tempfile.mkdtemp(prefix="controls-")), Server(kind, *DURABLE, appendonly=True)
        try:
            figures = storm(server, folder, options.seconds, options.seed)
        finally:
            server.stop()
        print(f"  {kind:8} {figures}", flush=True)
        for text in figures.broken[:20]:
            print(f"    BROKEN {text}")
        if figures.broken:
            status = 1
            print(f"  FAILED, seed {options.seed}, logs: {folder}", flush=True)
        else:
            shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
