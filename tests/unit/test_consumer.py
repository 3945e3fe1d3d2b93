"""A whole worker over the double: each fault at each call of each verb. Nothing is lost, nothing runs twice but for a death."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import pytest

from runtime import Backoff, Dead, Job, Snooze, contract, handler
from runtime.config import Config
from runtime.consumer import AGAIN_TRIES, UNSTARTED_S, Consumer, patiently
from runtime.errors import StoreError, StoreUnavailable
from runtime.jobs import DONE, SUSPECT
from runtime.streams import Streams
from runtime.worker.fetcher import INBOX_BYTES
from runtime.worker.heartbeat import Beat
from runtime.worker.lanes import Lane
from tests.builders import job
from tests.cruelty import Fault, Plan
from tests.double import MemoryStreams
from tests.memory import MemoryStore, Pending
from tests.unit.parts import until

LEASE_S = 2.0  # after an error, suspects are asked for again after a quarter of it
LONG_MS = 10**7
AT_ONCE = 24  # points under way: they wait more than they work
GOES_ON = ("REFUSED", "LOST", "ERROR", "FULL", "RESTARTED")
ENDS = ("KILLED_BEFORE", "KILLED_AFTER", "held, cancelled", "held, stopped", "held")
HELD_S = 0.3  # for so long an answer is held back while its worker stops
VOID_PART = 0.3  # calls that came later than in the unharmed run, or never
MOST_OF_A_VERB = 4  # calls of a verb that are tried: what comes later comes by the clock

# --- the scenario ------------------------------------------------------------------------------------------------------------


@contract("step")
class Step(msgspec.Struct, frozen=True):
    """Number `n` of a point, and what becomes of it."""

    point: int
    n: int
    what: str


histories: dict[int, list[tuple[str, int, int]]] = {}


@handler(Step, retry=Backoff(base_s=0.001, cap_s=0.001, attempts=2))
async def step(message: Step, job: Job) -> None:
    history = histories[message.point]
    history.append(("start", message.n, job.attempt))
    if message.what == "stubborn":
        await stubborn(message.point)
    await asyncio.sleep({"slow": 0.003, "long": 60}.get(message.what, 0))
    if message.what == "fail" or (message.what == "retry" and job.attempt == 1):
        raise RuntimeError("as it should")
    if message.what == "dead":
        raise Dead("as it should", code="no-use")
    if message.what == "snooze" and not job.envelope.snoozed_ms:
        raise Snooze(0.001)
    history.append(("end", message.n, job.attempt))


async def stubborn(point: int) -> None:
    """Swallow each cancel until the point's history says that it may end."""
    while ("may", 0, 0) not in histories[point]:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.001)


WHAT = ("ok", "slow", "retry", "fail", "dead", "snooze", "ok", "ok", "ok", "ok", "ok", "ok", "ok", "ok", "ok")
LATER, KEYED, TWINS, FREED, PARKED, LEFT, OTHERS, BAD, UNKNOWN = 6, 7, (8, 9), 10, 11, 12, (13, 14), 15, 16
DEADLY = {3: ("attempts", 2), 4: ("no-use", 1)}
MUST_END = {0, 1, 2, 5, LATER, KEYED, FREED, PARKED, LEFT, *OTHERS}
ATTEMPTS = {2: {1, 2}, 3: {1, 2}}


def prepare(store: MemoryStore, point: int, is_to_die: bool) -> None:
    """Put everything into the store that a worker may meet; no suspect that nobody knows: others would wait for a lease."""

    def add(n: int, stream: int, **fields: object) -> bytes:
        data = msgspec.json.encode(Step(point, n, WHAT[n] if n < len(WHAT) else ""))
        message = {"type": "step", "data": data, **fields}
        words = [word if isinstance(word, bytes) else str(word).encode() for item in message.items() for word in item]
        return store.add(stream, words)

    def put(holder: str, count: int, entry: bytes, stream: int) -> None:
        store.read(stream, holder, 1)
        store.pending[stream][entry] = Pending(holder, count, store.now_ms - LONG_MS)

    put("~free", 0, add(FREED, 3), 3)
    put("~t:step@1", 0, add(PARKED, 3), 3)
    put("long-dead", 1, add(LEFT, 3), 3)
    for n, what in enumerate(WHAT[:6]):
        add(n, 1 + n % 2, **({"id": "mine"} if what == "dead" else {}))
    add(LATER, 2, at=store.now_ms + 10)
    add(KEYED, 2, key="once")
    for n in TWINS:
        add(n, 0, key="twin")
    for n in OTHERS:
        add(n, 2)
    store.add(1, [b"no", b"message"])
    if not is_to_die:
        add(UNKNOWN, 2, type="nobody-knows")
    store.workers |= {"~last": store.now_ms, "~since": 1}


def left_in(store: MemoryStore) -> list[str]:
    """Return what is not at its end; of a type that nobody knows that is the lot of its type, or that of suspects."""
    held = {entry: row.consumer for pending in store.pending for entry, row in pending.items()}
    unknown = [entry for entry, fields in store.entries[2].items() if b"nobody-knows" in fields]
    left = {entry for entries in (*store.entries, *store.pending) for entry in entries}
    left -= {entry for entry in unknown if held.get(entry) in ("~t:nobody-knows@1", SUSPECT)}
    return [*(f"{entry.decode()} with {held.get(entry)}" for entry in left), *store.records, *store.due]


def check(store: MemoryStore, history: list[tuple[str, int, int]], has_died: bool) -> list[str]:
    """Return what is wrong at the end of a point."""
    runs = Counter(history)
    ends = {n for word, n, _ in history if word == "end"}
    attempts: dict[int, set[int]] = {}
    for word, n, attempt in history:
        if word == "start":
            attempts.setdefault(n, set()).add(attempt)
    wrong = [f"left: {left_in(store)}"] if left_in(store) else []
    wrong += [f"{n} is lost" for n in sorted(MUST_END - ends)]
    wrong += [] if ends & {*TWINS} else ["both twins are lost"]
    wrong += [f"{n} ended" for n in DEADLY if n in ends]
    wrong += [f"{n} ran as attempts {found}" for n, found in attempts.items() if found != ATTEMPTS.get(n, {1})]
    wrong += [f"{what} twice" for what, number in runs.items() if number > (2 if has_died else 1) and what[1] != 5]
    wrong += [f"{n} started more often than it should" for n in (5,) if runs["start", n, 1] > (4 if has_died else 2)]
    wrong += ["both twins ran, and nothing had died"] if ends >= {*TWINS} and not has_died and not second_twin(history) else []
    letters = Counter((letter["dead_reason"], letter["dead_attempts"]) for letter in store.dead)
    wrong += (
        [f"dead letters {dict(letters)}"] if letters != {("attempts", "2"): 1, ("no-use", "1"): 1, ("unreadable", "0"): 1} else []
    )
    wrong += [f"marks {store.marks}"] if store.marks else []
    wrong += [f"strikes {store.strikes}"] if store.strikes else []
    return wrong


def second_twin(history: list[tuple[str, int, int]]) -> bool:
    """Return whether the second of two jobs with one key began after the first had ended."""
    first, second = (at for at, (word, n, _) in enumerate(history) if word == "start" and n in TWINS)
    return any(word == "end" and n in TWINS for word, n, _ in history[first:second])


# --- one point ---------------------------------------------------------------------------------------------------------------

points = itertools.count()


@dataclass
class Point:
    """What came of one fault."""

    at: tuple[str, int]
    what: str
    wrong: list[str] = field(default_factory=list)
    is_hit: bool = False
    counts: Counter[str] = field(default_factory=Counter)


def worker(store: MemoryStore, name: str, plan: Plan, crashes: list[BaseException], **settings: Any) -> Consumer:
    config = Config(**{"concurrency": 4, "lease_s": LEASE_S, "grace_s": 2.0, "suspect_s": 0.05, **settings})
    return Consumer(config, cast("Streams", MemoryStreams(store, name, plan)), {b"step": step}, on_crash=crashes.append)


async def run_point(at: tuple[str, int], what: str) -> Point:
    """Let a worker meet one fault, and another finish where the first has ended; check all."""
    number = next(points)
    point, store = Point(at, what), MemoryStore(time.monotonic)
    history = histories[number] = []
    crashes: list[BaseException] = []
    prepare(store, number, what not in GOES_ON)
    fault = Fault.HELD if what.startswith("held") else Fault[what]
    plan = Plan((*at, fault))
    consumer = worker(store, "victim", plan, crashes)
    running = asyncio.create_task(consumer.run())
    loop = asyncio.get_running_loop()
    plan.on_death = lambda: loop.call_soon_threadsafe(running.cancel) and None
    try:
        await until(lambda: running.done() or plan.held or plan.is_dead or not left_in(store), f"{at} {what}: {left_in(store)}")
        if plan.held and what == "held, cancelled":
            running.cancel()
        elif plan.held and what == "held":
            await asyncio.sleep(0.01)
            plan.heal()
            await until(lambda: running.done() or not left_in(store), f"{at} {what} {left_in(store)}")
        if not plan.is_dead and not running.cancelling() and not running.done():
            if what != "held, stopped":
                await until(lambda: not len(consumer.held) or plan.held or plan.is_dead, f"{at} {what}: all is let go of")
            consumer.stop()
        await until(lambda: running.done() or plan.held, f"{at} {what}: the end")
        if plan.held and what == "held, cancelled":
            running.cancel()
        elif plan.held and what == "held, stopped":
            await asyncio.wait([running], timeout=HELD_S)
        plan.heal()
        await asyncio.wait([running])
    except AssertionError as error:
        point.wrong.append(str(error))
        running.cancel()
        await asyncio.wait([running])
    is_clean = not running.cancelled() and running.exception() is None
    has_died = not is_clean
    if not running.cancelled() and running.exception() is not None and not isinstance(running.exception(), StoreUnavailable):
        point.wrong.append(f"ended with {running.exception()!r}")
    point.wrong += [f"crashed of {error!r}" for error in crashes]
    point.is_hit, point.counts = plan.hits > 0, plan.counts
    left = [entry for held in store.pending for entry, row in held.items() if row.consumer == "victim"]
    if is_clean and left and at[0] not in ("settle", "leased"):
        point.wrong.append(f"an orderly stop left {left}")
    if is_clean and "victim" in store.workers and at[0] not in ("settle", "forget", "leased"):
        point.wrong.append("an orderly stop left its row")
    if left_in(store) or has_died:
        await rescue(store, point, number)
    point.wrong += check(store, history, has_died)
    return point


async def rescue(store: MemoryStore, point: Point, number: int) -> None:
    """Let the victim be dead for long, and another worker run what it left."""
    if "victim" in store.workers:
        store.workers["victim"] = 1
    for held in store.pending:
        for row in held.values():
            row.since_ms -= LONG_MS
    store.workers |= {"~last": store.now_ms, "~since": 1}
    crashes: list[BaseException] = []
    consumer = worker(store, "rescuer", Plan(), crashes)
    running = asyncio.create_task(consumer.run())
    try:
        await until(
            lambda: running.done() or (not left_in(store) and not len(consumer.held)), f"{point.at} {point.what}: the rescue"
        )
    except AssertionError as error:
        point.wrong.append(f"{error}, left {left_in(store)}")
    consumer.stop()
    await running
    point.wrong += [f"the rescuer crashed of {error!r}" for error in crashes]


# --- the sweep ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _quiet(_hurry: None) -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    histories.clear()


@pytest.mark.parametrize("what", [*GOES_ON, *ENDS])
async def test_whatever_happens_at_whichever_call_every_job_has_its_end_and_only_a_death_runs_any_twice(what):
    unharmed = await run_point(("none", 1), "REFUSED")
    assert unharmed.wrong == []
    ats = [(verb, nth) for verb, count in unharmed.counts.items() for nth in range(1, min(count, MOST_OF_A_VERB) + 1)]
    places = asyncio.Semaphore(AT_ONCE)

    async def one(at: tuple[str, int]) -> Point:
        async with places:
            return await run_point(at, what)

    found = await asyncio.gather(*map(one, ats))
    assert [point for point in found if point.wrong] == []
    missed = [point.at for point in found if not point.is_hit]
    assert len(missed) <= VOID_PART * len(ats), f"a sweep that hits nothing proves nothing: {missed}"


# --- single cases ------------------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_always_busy_isolates_a_suspect_of_which_a_worker_has_died():
    """What waits in its inbox is no former suspect: it drains for the isolation, and does not ask again a lease later."""
    number, store = next(points), MemoryStore(time.monotonic)
    history = histories[number] = []

    def add(n: int, stream: int = 1) -> bytes:
        return store.add(stream, [b"type", b"step", b"data", msgspec.json.encode(Step(number, n, "ok"))])

    for n in range(1, 200):
        add(n)
    consumer = worker(store, "busy", Plan(), [])
    running = asyncio.create_task(consumer.run())

    def backlog_is_kept() -> bool:
        for _ in range(len(store.unread(1)), 1000):
            add(1)
        return True

    await until(lambda: backlog_is_kept() and len(consumer.inbox) > 10, "it is busy")
    struck = add(0, 3)
    store.read(3, SUSPECT, 1)
    store.pending[3][struck] = Pending(SUSPECT, 4, store.now_ms)
    store.strikes[f"low/{struck.decode()}"] = "died"
    await until(lambda: backlog_is_kept() and ("end", 0, 1) in history, "the suspect runs")
    consumer.stop()
    await running


def test_beside_a_suspect_stands_what_waits_in_the_inbox_and_only_a_former_suspect_is_in_its_way():
    consumer = worker(MemoryStore(), "me", Plan(), [])
    assert consumer._beside() == (float("inf"), True)
    consumer.inbox.put([job("step")])
    assert consumer._beside() == (0.0, True), "about to run"
    consumer.inbox.put([job("step", count=2)])
    assert consumer._beside() == (0.0, False)


@pytest.mark.parametrize(
    ("count", "taken_s", "is_lost"),
    [(1, 1.0, True), (2, 1.0, False), (1, 3.0, False)],
    ids=["the lease that was asked for", "handed out again since", "taken since"],
)
def test_a_refused_lease_is_dropped_where_it_is_still_the_one_that_was_asked_for(count, taken_s, is_lost):
    consumer = worker(MemoryStore(), "me", Plan(), [])
    waiting, noted = job("step", "1-0"), job("step", "2-0")
    for one in (waiting, noted):
        consumer.held.add(one.stream, [one])
        one.count, one.taken_s = count, taken_s
    consumer.inbox.put([waiting])
    consumer.ledger.add(noted, DONE)
    consumer.on_heartbeat(Beat(2.0, "run/1", [(waiting, 1), (noted, 1)]))
    assert len(consumer.inbox) == (0 if is_lost else 1)
    assert waiting in consumer.held or is_lost
    assert noted in consumer.held, "its move waits: the fence says what becomes of it"
    assert len(consumer.ledger) == 1


async def test_a_job_whose_lease_is_refused_while_it_runs_is_cut_off_and_writes_nothing():
    number, store = next(points), MemoryStore(time.monotonic)
    histories[number] = []
    store.add(1, [b"type", b"step", b"data", msgspec.json.encode(Step(number, 0, "long"))])
    consumer = worker(store, "me", Plan(), [])
    running = asyncio.create_task(consumer.run())
    await until(lambda: consumer.running, "it runs")
    [(entry, row)] = store.pending[1].items()
    [lease] = [lane.job for lane in consumer.lanes if lane.job is not None]
    row.consumer = "other"
    consumer.on_heartbeat(Beat(time.monotonic(), store.run_id, [(lease, 1)]))
    await until(lambda: not consumer.running, "it is cut off")
    await until(lambda: not len(consumer.held), "it is let go of")
    consumer.stop()
    await running
    assert histories[number] == [("start", 0, 1)]
    assert store.pending[1][entry].consumer == "other"
    assert list(store.entries[1]) == [entry]


# --- what may be fetched -----------------------------------------------------------------------------------------------------


class Counted:
    """A worker of twenty lanes, four of them reserved, that runs nothing by itself."""

    def __init__(self) -> None:
        self.consumer = worker(MemoryStore(), "me", Plan(), [], concurrency=20, reserved=4, lease_s=3600.0)
        parts = (self.consumer.inbox, self.consumer.ledger, self.consumer.stats, self.consumer.registry)
        self.consumer.lanes += [Lane(*parts, time.monotonic, lambda: 0.5, is_reserved=at < 4) for at in range(20)]
        self.consumer.leases.begin()
        self.entries = itertools.count()

    def hold(self, stream: int, n: int) -> list[Job]:
        """Hold jobs of a stream: their moves wait, unless the test puts them elsewhere."""
        jobs = [job("step", f"{next(self.entries)}-1", stream=stream) for _ in range(n)]
        return self.consumer.held.add(stream, jobs)

    def run(self, stream: int, n: int, *, is_reserved: bool = False) -> None:
        """Let jobs run in lanes of this kind."""
        lanes = [lane for lane in self.consumer.lanes if lane.is_reserved == is_reserved and lane.job is None]
        for lane, one in zip(lanes, self.hold(stream, n), strict=False):
            lane.job = one


CRITICAL, LOW = 0, 3


async def test_a_run_that_is_cut_again_and_again_is_one_timeout():
    at = Counted()
    at.run(LOW, 1)
    lane = next(lane for lane in at.consumer.lanes if lane.job)
    lane.task = asyncio.create_task(asyncio.Event().wait())
    for _ in range(3):
        lane.deadline_s = time.monotonic()
        at.consumer._interrupt(lane, time.monotonic())
    [(name, priority, count)] = [row for row in at.consumer.stats.rows() if row[2].timeouts]
    assert (name, priority, count.timeouts) == ("step", "low", 1)
    await asyncio.wait([lane.task])


def test_what_others_may_fetch_is_less_by_the_lanes_that_are_kept_for_critical():
    at = Counted()
    assert at.consumer._capacity() == (16, 4)
    at.run(LOW, 10)
    assert at.consumer._capacity() == (6, 4)
    at.run(LOW, 6)
    assert at.consumer._capacity() == (0, 4)


def test_a_job_of_critical_that_is_here_for_a_reserved_lane_takes_its_place():
    at = Counted()
    at.run(LOW, 16)
    at.run(CRITICAL, 1, is_reserved=True)
    at.consumer.inbox.put(at.hold(CRITICAL, 1))
    assert at.consumer._capacity() == (0, 2)
    at.hold(CRITICAL, 1)
    assert at.consumer._capacity() == (0, 1), "its move is not written: a store that refuses all moves fills no worker"
    at.hold(CRITICAL, 5)
    assert at.consumer._capacity()[1] == 0


def test_what_runs_of_critical_in_other_lanes_needs_no_reserved_one():
    at = Counted()
    at.run(CRITICAL, 6)
    assert at.consumer._capacity() == (10, 4)
    at.run(LOW, 10)
    assert at.consumer._capacity() == (0, 4), "four lanes wait for CRITICAL, and nothing else may run there"


def test_a_full_read_ahead_of_others_does_not_keep_critical_out():
    at = Counted()
    at.consumer.stats.finished = 100
    at.run(LOW, 16)
    at.consumer.inbox.put(at.hold(LOW, 71))
    assert at.consumer._fetcher.entries(INBOX_BYTES) >= 100
    assert at.consumer._capacity() == (29, 4)
    at.consumer.inbox.put(at.hold(LOW, 1))
    assert at.consumer._capacity() == (0, 4)
    at.consumer.stats.finished = 0
    assert at.consumer._capacity() == (0, 4), "nothing is read ahead any more, and what was is here still"


def test_a_worker_that_is_silent_fetches_nothing_of_any_priority(monkeypatch):
    at = Counted()
    monkeypatch.setattr(type(at.consumer.leases), "is_silent", property(lambda leases: True))
    assert at.consumer._capacity() == (0, 0)


@pytest.mark.parametrize("stream", [CRITICAL, LOW])
def test_what_waits_too_long_is_given_back_whichever_queue_it_waits_in(stream):
    at = Counted()
    at.consumer.inbox.put(at.hold(CRITICAL, 2) + at.hold(LOW, 2))
    for one in at.consumer.inbox.jobs:
        one.taken_s = 100.0
    late = next(one for one in at.consumer.inbox.jobs if one.stream == stream)
    at.consumer._give_back_unstarted(100.0 + UNSTARTED_S)
    assert len(at.consumer.inbox) == 4, "not yet"
    late.taken_s = 99.9
    at.consumer._give_back_unstarted(100.0 + UNSTARTED_S)
    assert len(at.consumer.inbox) == 3
    assert late not in at.consumer.inbox.jobs
    assert len(at.consumer.ledger) == 1


# --- the start ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST])
@pytest.mark.parametrize("verb", ["start", "beat", "rules"])
async def test_an_outage_of_a_moment_at_its_start_does_not_end_a_worker(monkeypatch, verb, fault):
    monkeypatch.setattr("runtime.consumer.START_BACKOFF", Backoff(base_s=0.001, cap_s=0.001))
    at = Stopping(Plan((verb, 1, fault), (verb, 2, fault)))
    running = await at.running("ok")
    assert at.plan.hits == 2
    at.consumer.stop()
    await running


async def test_a_store_that_stays_away_at_the_start_ends_the_worker(monkeypatch):
    monkeypatch.setattr("runtime.consumer.START_BACKOFF", Backoff(base_s=0.001, cap_s=0.001))
    at = Stopping(Plan(("beat", 0, Fault.REFUSED)))
    with pytest.raises(StoreUnavailable):
        await at.consumer.run()
    assert at.plan.counts["beat"] == AGAIN_TRIES


async def test_what_the_store_refuses_at_the_start_is_no_outage():
    at = Stopping(Plan(("beat", 0, Fault.ERROR)))
    with pytest.raises(StoreError):
        await at.consumer.run()
    assert at.plan.counts["beat"] == 1


@pytest.mark.parametrize("verb", ["start", "beat", "rules"])
async def test_a_worker_that_waits_for_its_store_stops_when_it_is_told_to(verb):
    at = Stopping(Plan((verb, 0, Fault.REFUSED)))
    running = asyncio.create_task(at.consumer.run())
    await until(lambda: at.plan.hits, "it waits")
    at.consumer.stop()
    assert (await running).finished == 0


async def test_a_server_that_loads_is_waited_for_and_one_whose_name_says_so_is_not(monkeypatch):
    monkeypatch.setattr("runtime.consumer.START_BACKOFF", Backoff(base_s=0.001, cap_s=0.001))
    errors = [StoreError("Redis at x: LOADING Valkey is loading the dataset in memory") for _ in range(20)]
    errors += [StoreUnavailable("Redis at unix:///tmp/downloading.sock: no such file") for _ in range(3)]
    left = iter(errors)

    async def call() -> None:
        raise next(left)

    with pytest.raises(StoreUnavailable, match="downloading"):
        await patiently(call, 3)
    assert next(left, None) is None


# --- a stop, stage by stage --------------------------------------------------------------------------------------------------


@dataclass
class Stopping:
    """A worker with one lane, and jobs of its point."""

    plan: Plan = field(default_factory=Plan)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.number, self.store = next(points), MemoryStore(time.monotonic)
        self.history = histories[self.number] = []
        self.crashes: list[BaseException] = []
        self.consumer = worker(self.store, "me", self.plan, self.crashes, **{"concurrency": 1, "grace_s": 0.02, **self.settings})

    def add(self, n: int, what: str = "ok", stream: int = 1) -> bytes:
        return self.store.add(stream, [b"type", b"step", b"data", msgspec.json.encode(Step(self.number, n, what))])

    @property
    def rows(self) -> list[tuple[str, int]]:
        """Who has which entry, by what count."""
        return [(row.consumer, row.count) for row in self.store.pending[1].values()]

    async def running(self, what: str) -> asyncio.Task[Any]:
        """Start it, and return when a job of this kind runs."""
        self.add(0, what)
        running = asyncio.create_task(self.consumer.run())
        await until(lambda: self.history, "it runs")
        return running


async def test_an_idle_worker_is_woken_at_a_stop_and_its_read_is_not_cancelled():
    at = Stopping()
    at.consumer._fetcher._longest_wait_ms = 60_000
    running = asyncio.create_task(at.consumer.run())
    await until(lambda: at.store.waiting, "it waits")
    at.consumer.stop()
    report = await running
    assert at.plan.counts["leased"] == 0, "a cancelled read would leave what it brought to others"
    assert (report.left, at.store.workers.keys() & {"me"}) == (0, set())


async def test_at_the_end_of_the_grace_what_runs_is_cut_and_given_back_as_if_it_had_not_been_handed_out():
    at = Stopping()
    running = await at.running("long")
    at.consumer.stop()
    report = await running
    assert (report.released, report.left) == (1, 0)
    assert at.rows == [("~free", 0)]
    assert "me" not in at.store.workers
    assert at.history == [("start", 0, 1)]


async def test_a_second_stop_skips_the_grace():
    at = Stopping(settings={"grace_s": 3600.0})
    running = await at.running("long")
    at.consumer.stop()
    at.consumer.stop()
    assert (await running).released == 1


async def test_what_ends_within_the_grace_is_written():
    at = Stopping(settings={"grace_s": 60.0})
    running = await at.running("slow")
    at.consumer.stop()
    report = await running
    assert (report.finished, report.released, report.left) == (1, 0, 0)
    assert at.store.entries[1] == {}


async def test_what_an_answer_brings_while_a_worker_stops_is_given_back_with_the_rest(monkeypatch):
    monkeypatch.setattr("runtime.consumer.UNSTARTED_S", 3600.0)  # not for having waited here for long
    at = Stopping(Plan(("wait_for_entry", 1, Fault.HELD)))
    running = asyncio.create_task(at.consumer.run())
    await until(lambda: at.store.waiting, "it waits")
    for n in range(4):
        at.add(n, "long", stream=n)
    await until(lambda: at.plan.held, "the answer is on its way")
    at.consumer.stop()
    await asyncio.sleep(0)
    at.plan.let_go()
    report = await running
    assert report.left == 0
    assert [(row.consumer, row.count) for held in at.store.pending for row in held.values()] == [("~free", 0)] * 4
    assert len(at.history) <= 1, "there is one lane"


async def test_what_can_not_be_cut_is_given_back_as_the_very_last_and_its_process_may_be_left(monkeypatch):
    monkeypatch.setattr("runtime.consumer.CUT_S", 0.02)
    monkeypatch.setattr("runtime.consumer.FLUSH_S", 0.05)
    at = Stopping()
    left: list[tuple[Any, list[tuple[str, int]]]] = []

    def leave(report: Any) -> None:
        left.append((report, at.rows))
        at.history.append(("may", 0, 0))

    at.consumer._leave = leave
    running = await at.running("stubborn")
    at.consumer.stop()
    await running
    [(report, rows)] = left
    assert rows == [("~free", 0)], "before the process ends, and not earlier"
    assert report.left == 0


@pytest.mark.parametrize("verb", ["settle", "forget"])
@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.HELD])
async def test_a_stop_ends_though_the_store_does_not_answer(monkeypatch, verb, fault):
    monkeypatch.setattr("runtime.consumer.FLUSH_S", 0.05)
    at = Stopping()
    running = await at.running("long")
    at.plan.faults[verb, 0] = fault
    at.consumer.stop()
    await until(running.done, "its end")
    assert running.result().released == (1 if verb == "forget" else 0)
    assert at.rows in ([("me", 1)], [("~free", 0)])


# --- crashes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["lots", "promote", "fetch", "settle"])
async def test_a_loop_that_crashes_ends_the_worker_with_its_error_and_writes_nothing_more(monkeypatch, verb):
    at = Stopping()
    call = getattr(at.consumer.streams, verb)

    async def crash(*args: Any) -> None:
        await call(*args)
        raise ValueError("a bug")

    running = await at.running("long")
    monkeypatch.setattr(at.consumer.streams, verb, crash)
    at.add(2)
    if verb == "settle":
        at.consumer.ledger.release([lane.job for lane in at.consumer.lanes if lane.job])
    elif verb == "fetch":
        at.consumer.held.remove([lane.job for lane in at.consumer.lanes if lane.job])
        at.consumer._fetcher.look_again()
    with pytest.raises(ExceptionGroup) as caught:
        await running
    assert caught.value.subgroup(ValueError)
    assert any(isinstance(crash, ValueError) for crash in at.crashes), "it is told when it happens"
    assert at.consumer._heartbeat is not None
    assert not at.consumer._heartbeat.is_alive()
    assert ("end", 0, 1) not in at.history


async def test_a_heartbeat_that_crashes_ends_the_worker():
    at = Stopping()
    running = await at.running("long")
    assert at.consumer._heartbeat is not None
    at.consumer._heartbeat.error = ValueError("a bug")
    with pytest.raises(ExceptionGroup, match="unhandled") as caught:
        await running
    assert caught.value.subgroup(RuntimeError)
    assert at.rows == [("me", 1)], "its leases expire"
