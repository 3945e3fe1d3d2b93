"""A worker is killed with -9 at each of its commands: before the server has it, and after the server did it but before its reply.

Whatever the command was: nothing is lost, nothing is left over, the dead letters are exact, and the crash burns no attempt.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import reduce
from operator import and_
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hiredis import Reader, pack_command

from runtime import Backoff, Dead, Job, Message, Producer, Retry, Schedule, Snooze, contract, handler
from runtime.config import Config
from runtime.consumer import Consumer, streams_for
from runtime.store.base import GROUP, Keys, script
from runtime.store.connection import Connection
from runtime.testing import worker
from tests.faults.worker import ROOT
from tests.proxy import Relay
from tests.servers import Server

LEASE_S = 1.2  # of a shorter one a busy machine misses beats
AT_ONCE = 18  # points under way: they spend their time waiting for leases
POLL_S = 0.03
DRAIN_S = 100.0  # beside other work a lease this short is hardly ever kept, and nothing is reclaimed meanwhile
VERBS = (
    "admit",
    "beat",
    "control",
    "dead",
    "defer",
    "handoff",
    "isolate",
    "acquit",
    "promote",
    "reclaim",
    "renew",
    "send",
    "serve",
    "tick",
)
LAST = {"EXPIRE", "acquit"}  # come when all is done: what was done is counted once a second, and the isolation ends
LOOKS = ("CLIENT", "HGETALL", "INFO", "TIME", "XPENDING", "ZRANGE", "ends")  # commands that change nothing
CLOCKED = (*LOOKS, "SCRIPT", "XREADGROUP", "beat", "promote", "reclaim", "renew", "serve", "tick")  # come by the clock
STRIDE = int(os.environ.get("CRASH_STRIDE", "5"))  # all of them take six minutes a server: each long run takes others
UNHARMED = 3
VOID_PART = 0.2  # commands that came later than in the unharmed run, or never


def note(path: Path, *words: object) -> None:
    """Append one line with one write, which survives kill -9."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, (" ".join(map(str, words)) + "\n").encode())
    os.close(descriptor)


# --- the scenario ------------------------------------------------------------------------------------------------------------


@contract("step")
class Step(msgspec.Struct, frozen=True):
    """Number `n` of a point; `history` is where its runs are written down."""

    n: int
    what: str
    history: str


@handler(Step, retry=Backoff(base_s=0.02, cap_s=0.02, attempts=2))
async def step(message: Step, job: Job) -> None:
    path = Path(message.history)
    note(path, "start", message.n, job.attempt)
    if message.what == "slow":
        await asyncio.sleep(LEASE_S * 0.6)  # long enough to be renewed
    if message.what == "fail" or (message.what == "retry" and job.attempt == 1):
        raise RuntimeError("as it should")
    if message.what == "dead":
        raise Dead("as it should", code="no-use")
    if message.what == "snooze" and not job.envelope.snoozed_ms:
        raise Snooze(0.02)
    note(path, "end", message.n, job.attempt)


@contract("narrow")
class Narrow(msgspec.Struct, frozen=True):
    """As Step, of a type of which one runs at a time."""

    n: int
    what: str
    history: str


@handler(Narrow, limit=1, rate="100/s", retry=Backoff(base_s=0.02, cap_s=0.02, attempts=3))
async def narrow(message: Narrow, job: Job) -> None:
    path = Path(message.history)
    note(path, "start", message.n, job.attempt)
    if message.what == "pause" and job.attempt == 1:
        raise Retry(0.1, "as it should", pause_type=True)
    note(path, "end", message.n, job.attempt)


@contract("ticked")
class Ticked(msgspec.Struct, frozen=True):
    history: str


@handler(Ticked)
async def ticked(message: Ticked, job: Job) -> None:
    note(Path(message.history), "ticked", job.id.rpartition(":")[2])


@contract("passing")
class Passing(msgspec.Struct, frozen=True):
    n: int
    history: str


@contract("passed")
class Passed(msgspec.Struct, frozen=True):
    """What job `n` has handed on."""

    n: int
    which: int
    history: str


@handler(Passing, retry=Backoff(base_s=0.02, cap_s=0.02, attempts=3))
async def passing(message: Passing, job: Job) -> None:
    for which in range(PASSED):
        job.send(Passed(message.n, which, message.history), suffix=str(which), delay_s=0.1 * (which % 2))
    if job.attempt == 1:
        raise RuntimeError("as it should")


@handler(Passed)
async def passed(message: Passed, job: Job) -> None:
    note(Path(message.history), "passed", message.n, message.which, job.entry.decode())


HANDLERS = (step, narrow, ticked, passing, passed)

# By number: what happens to it, and how it is sent. The worker sends these itself, the others are there when it starts.
SENT: dict[int, tuple[str, dict[str, Any]]] = {
    0: ("ok", {}),
    1: ("slow", {"priority": 1}),
    2: ("retry", {}),
    3: ("fail", {}),
    4: ("dead", {"id": "mine"}),
    5: ("snooze", {}),
    6: ("ok", {"delay_s": 0.15}),
    7: ("ok", {"key": "once"}),
}
TWINS = (8, 9)  # plain XADD with one key: while the first lives, the second is a copy
LEFT, LATER, BAD = 10, 11, 12  # held by a worker that died long ago; to be run later; no message at all
NARROW = {13: "ok", 14: "pause", 15: "ok", 16: "ok"}  # plain XADD of the type with a limit
PASSING, PASSED = (17, 18, 19), 3  # plain XADD of jobs that hand on so many others
DEADLY = {3: ("attempts", 2), 4: ("no-use", 1)}


def prepare(server: Server, queue: str, history: Path) -> None:
    """Put on the server what is there before the worker starts."""
    raw = server.client()
    keys = Keys(queue)
    for key in keys.streams:
        raw.xgroup_create(key, GROUP, "0", mkstream=True)
    high, low = keys.streams[1], keys.streams[3]

    def fields(n: int, **more: Any) -> Any:
        return {"type": "step", "data": msgspec.json.encode(Step(n, "ok", str(history))), **more}

    entry = raw.xadd(low, fields(LEFT))
    raw.xreadgroup(GROUP, "long-dead", {low: ">"})
    raw.xclaim(low, GROUP, "long-dead", 0, [str(entry)], idle=10**7, justid=True)
    for n in TWINS:
        raw.xadd(high, fields(n, key="twin"))
    for n, what in NARROW.items():
        raw.xadd(high, {"type": "narrow", "data": msgspec.json.encode(Narrow(n, what, str(history)))})
    for n in PASSING:
        raw.xadd(high, {"type": "passing", "data": msgspec.json.encode(Passing(n, str(history)))})
    now_ms = int(raw.time()[0] * 1000)
    raw.xadd(high, fields(LATER, at=now_ms + 300))
    raw.xadd(high, {"no": "message"})
    raw.zadd(keys.workers, {"~last": now_ms, "~since": 1})
    raw.close()


def live(url: str, queue: str, history: str) -> None:
    """Send and work until killed: the body of the victim's process."""
    logging.disable(logging.CRITICAL)
    asyncio.run(_live(url, queue, Path(history)))


async def _live(url: str, queue: str, history: Path) -> None:
    async with Producer.connect(url, queue=queue, patience_s=60) as producer:  # a busy machine is slow
        for numbers in ((0, 1, 2, 3), (4, 5, 6, 7)):
            messages = [Message(payload=Step(n, SENT[n][0], str(history)), **SENT[n][1]) for n in numbers]
            await producer.send_many(messages)
            note(history, "sent", *numbers)
        config = Config(concurrency=4, lease_s=LEASE_S, queue=queue)
        registry = {one.contract.type.encode(): one for one in HANDLERS}
        seconds = Schedule("seconds", "", Ticked(str(history)), every_s=1)
        consumer = Consumer(config, streams_for(config, url), registry, schedules=[seconds])
        await consumer.run()


# --- the guillotine ----------------------------------------------------------------------------------------------------------


class Guillotine:
    """Counts the commands of one process over all of its connections, passes them on one by one, and kills it at one of them.

    `at` is a name and how many of that name came, which means the same in every run.
    """

    def __init__(self, target: str, at: tuple[str, int], is_after: bool, kill: Callable[[], None]) -> None:
        self.at = at
        self.is_after = is_after
        self.kill = kill
        self.relay = Relay(target, self._serve)
        self.counts = Counter[str]()
        self.is_cut = asyncio.Event()
        self._writers: list[asyncio.StreamWriter] = []

    def _cut(self) -> None:
        self.kill()
        for writer in self._writers:
            writer.transport.abort()
        self.is_cut.set()

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        upstream_reader: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> None:
        self._writers += (writer, upstream)
        sent = answered = 0
        is_last = False  # the reply to what was sent last is the end

        async def replies() -> None:
            nonlocal answered
            parser = Reader()
            while data := await upstream_reader.read(1 << 16):
                parser.feed(data)
                while parser.gets() is not False:
                    answered += 1
                if is_last and answered >= sent:
                    return self._cut()
                if not is_last:
                    writer.write(data)
            return None

        pump = asyncio.create_task(replies())
        parser = Reader()
        try:
            while not self.is_cut.is_set() and (data := await reader.read(1 << 16)):
                parser.feed(data)
                while not is_last and not self.is_cut.is_set() and (command := parser.gets()) is not False:
                    name = name_of(command)
                    self.counts[name] += 1
                    is_it = (name, self.counts[name]) == self.at
                    if is_it and not self.is_after:
                        return self._cut()
                    sent += 1
                    is_last = is_it
                    upstream.write(pack_command(tuple(command)))
                    await upstream.drain()
            if is_last:
                await pump
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)


LUA = sorted(path.stem for path in (ROOT / "runtime" / "store" / "lua").glob("*.lua"))
SCRIPTS = {script(name).sha.encode(): name for name in LUA if name != "common"}


def name_of(command: list[bytes]) -> str:
    """Return the verb of a script, or the first word."""
    return SCRIPTS[command[1]] if command[0] == b"EVALSHA" else command[0].decode()


# --- one point ---------------------------------------------------------------------------------------------------------------

children = multiprocessing.get_context("forkserver")


class Point(msgspec.Struct):
    """What came of one point: whether the command came at all, what was left of the scenario then, and what is wrong."""

    at: tuple[str, int]
    is_after: bool
    is_hit: bool
    left: int
    wrong: list[str]
    commands: Counter[str]
    reruns: int


async def left_over(connection: Connection, keys: Keys) -> int:
    """Return how much is in any place but the dead letters, all at one moment: a job that moves would be in none of them."""
    sizes = [("XLEN", key) for key in keys.streams]
    answers = await connection.call(("MULTI",), *sizes, ("HLEN", keys.messages), ("ZCARD", keys.due), ("EXEC",))
    return sum(answers[-1])


async def drained(connection: Connection, keys: Keys) -> bool:
    end_s = asyncio.get_running_loop().time() + DRAIN_S
    while await left_over(connection, keys):
        if asyncio.get_running_loop().time() > end_s:
            return False
        await asyncio.sleep(POLL_S)
    return True


async def run_point(server: Server, folder: Path, at: tuple[str, int], is_after: bool) -> Point:
    """Run the scenario, kill its worker at command `at` or when all is done, let a fresh one finish, and check all."""
    queue = f"{at[0]}-{at[1]}-{'after' if is_after else 'before'}"
    keys, history = Keys(queue), folder / f"{queue}.history"
    history.touch()
    prepare(server, queue, history)
    eye = Connection(server.url, "eye")
    victims: list[Any] = []
    wrong: list[str] = []

    def kill() -> None:
        victims[0].kill()

    blade = Guillotine(server.socket, at, is_after, kill)
    async with blade.relay as relay:
        victims.append(children.Process(target=live, args=(f"unix://{relay.socket}", queue, str(history)), daemon=True))
        victims[0].start()
        try:
            end_s = asyncio.get_running_loop().time() + DRAIN_S
            while not blade.is_cut.is_set() and (not blade.counts.keys() >= LAST or await left_over(eye, keys)):
                is_over = not victims[0].is_alive() or asyncio.get_running_loop().time() > end_s
                if is_over and not blade.is_cut.is_set():  # it may have been cut while we looked
                    wrong.append(f"the worker stands still, or ended by itself with {victims[0].exitcode}")
                    break
                await asyncio.sleep(POLL_S)
            is_hit = blade.is_cut.is_set()
        finally:
            kill()
            await asyncio.to_thread(victims[0].join)
            victims[0].close()
    left = await left_over(eye, keys)
    wrong += undying(server, keys)
    async with worker(server.url, *HANDLERS, concurrency=4, lease_s=LEASE_S, queue=queue):
        is_drained = await drained(eye, keys)
    wrong += [] if is_drained else ["not drained"]
    wrong += check(server, keys, history) + undying(server, keys)
    await eye.close()
    runs = Counter(line for line in history.read_text().splitlines() if line.startswith("start"))
    return Point(at, is_after, is_hit, left, wrong, blade.counts, sum(runs.values()) - len(runs))


def check(server: Server, keys: Keys, history: Path) -> list[str]:
    """Say what is wrong: something lost, left over, dead that should not be, or an attempt burnt."""
    wrong: list[str] = []
    acked: set[int] = set()
    starts: dict[int, set[int]] = {}
    ends: dict[int, set[int]] = {}
    ticks: set[int] = set()
    followers: dict[tuple[int, int], set[str]] = {}  # the entries of each that was handed on
    for line in history.read_text().splitlines():
        kind, *numbers = line.split(" ")
        if kind == "sent":
            acked |= set(map(int, numbers))
        elif kind == "ticked":
            ticks.add(int(numbers[0]))
        elif kind == "passed":
            followers.setdefault((int(numbers[0]), int(numbers[1])), set()).add(numbers[2])
        else:
            n, attempt = map(int, numbers)
            (starts if kind == "start" else ends).setdefault(n, set()).add(attempt)
    expected_ones = {(n, which) for n in PASSING for which in range(PASSED)}
    wrong += [f"handed on: {sorted(followers)}"] if followers.keys() != expected_ones else []
    wrong += [f"{n} was handed on {len(entries)} times" for n, entries in followers.items() if len(entries) > 1]
    must_end = (acked - set(DEADLY)) | {LEFT, LATER, *NARROW}
    wrong += [f"{n} is lost" for n in must_end if n not in ends]
    wrong += ["both twins are lost"] if not any(n in ends for n in TWINS) else []
    wrong += [f"{n} ended, though it is deadly" for n in DEADLY if n in ends]
    for n, attempts in starts.items():
        expected = {1, 2} if n in (2, 3) or NARROW.get(n) == "pause" else {1}
        wrong += [f"{n} ran as attempts {attempts}"] if attempts != expected else []
    raw = server.client()
    letters = Counter[tuple[int, str, int]]()
    for _, fields in raw.xrange(keys.dead):
        n = msgspec.json.decode(fields["data"])["n"] if "data" in fields else BAD
        letters[n, fields["dead_reason"], int(fields["dead_attempts"])] += 1
    expected = {(n, *how): 1 for n, how in DEADLY.items() if n in acked or n in starts} | {(BAD, "unreadable", 0): 1}
    wrong += [f"dead letters {dict(letters)}, not {expected}"] if letters != expected else []
    row = raw.hget(keys.cron_state, "seconds")
    fired = {int(word[:-1]) for word in row.split()[5:] if word.endswith("f")} if row else set[int]()
    known = {tick for tick in ticks if tick >= min(fired, default=0)}  # the server tells of the last twenty
    wrong += [f"ran of ticks {sorted(ticks)}, fired {sorted(fired)}"] if known != fired else []
    wrong += ["a tick is missed"] if ticks and len(ticks) <= (max(ticks) - min(ticks)) // 1000 else []
    for key in keys.streams:
        held = raw.xpending(key, GROUP)["pending"]
        wrong += [f"{held} pending without an entry"] if held else []
    raw.close()
    return wrong


def undying(server: Server, keys: Keys) -> list[str]:
    """Say which keys that should end by themselves do not."""
    raw = server.client()
    staying = (*keys.scripted, keys.layout, keys.contracts)
    mortal = [key for key in raw.scan_iter(f"{keys.prefix}*", count=1000) if key not in staying]
    wrong = [f"{key} is left for ever" for key in mortal if raw.ttl(key) == -1]
    raw.close()
    return wrong


async def sweep(server: Server, folder: Path, is_short: bool) -> list[Point]:
    """Run the scenario unharmed, then cut it at every STRIDE-th command, or at the first of each name that changes something."""
    # As many of each as came every time: a schedule goes on until all else is done.
    unharmed = await asyncio.gather(*[run_point(server, folder, ("none", at), False) for at in range(UNHARMED)])
    assert not any(point.wrong for point in unharmed), unharmed
    commands = reduce(and_, [point.commands for point in unharmed])
    assert commands.keys() >= {*VERBS, "XREADGROUP", "XACK", "XDEL", "EXEC"}, "a sweep without them proves little"
    names = [name for name in commands if not (is_short and name in LOOKS)]
    ats = [(name, nth) for name in names for nth in range(1, 2 if is_short else commands[name] + 1)]
    if not is_short:
        first = int(time.time()) % STRIDE
        print(f"every {STRIDE}th of {len(ats)} commands, of those that come by the clock a third, from number {first}")
        ats = [at for at in ats if at[0] not in CLOCKED or at[1] % 3 == 1][first::STRIDE]
    places = asyncio.Semaphore(AT_ONCE)

    async def one(at: tuple[str, int], is_after: bool) -> Point:
        async with places:
            return await run_point(server, folder, at, is_after)

    points = await asyncio.gather(*[one(at, is_after) for at in ats for is_after in (False, True)])
    hit = [point for point in points if point.is_hit]
    late, again = sum(1 for point in hit if not point.left), sum(point.reruns for point in hit)
    print(f"points {len(hit)}/{len(points)}, {late} of them after the last job, {again} runs again")
    print(", ".join(f"{name} {count}" for name, count in sorted(Counter(point.at[0] for point in hit).items())))
    for point in points:
        if point.wrong:
            print(f"{point.at} {'after' if point.is_after else 'before'}, {point.left} left then: {'; '.join(point.wrong)}")
    telling = [point for point in points if point.at[0] not in CLOCKED]
    missed = [point.at for point in telling if not point.is_hit]
    assert len(missed) <= VOID_PART * len(telling), f"a sweep that hits nothing proves nothing: {missed}"
    return points


@pytest.fixture
def _preloaded() -> Iterator[None]:
    children.set_forkserver_preload(["tests.faults.test_crash_points"])
    yield


@pytest.mark.usefixtures("_preloaded")
async def test_a_crash_at_the_first_of_each_command_loses_nothing(valkey: Server, tmp_path: Path) -> None:
    points = await sweep(valkey, tmp_path, is_short=True)
    assert [point for point in points if point.wrong] == []


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("_preloaded")
async def test_a_crash_at_any_command_loses_nothing(server: Server, tmp_path: Path) -> None:
    points = await sweep(server, tmp_path, is_short=False)
    assert [point for point in points if point.wrong] == []
