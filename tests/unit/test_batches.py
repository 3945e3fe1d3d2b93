"""Handlers of many jobs: how they are declared, and what becomes of each of the jobs."""

from __future__ import annotations

import asyncio
import gc
import re
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from runtime import Backoff, Dead, Job, Retry, Snooze, batches, contract, handler
from runtime.batches import ends_of
from runtime.errors import Cancelled, ConfigError, LeaseLost, NotStarted
from runtime.jobs import LANE, BatchPolicy, Done, Handler, Outcome, running_job, together
from runtime.testing import run
from runtime.worker.lanes import Lane
from tests.builders import job_of


@contract("row")
class Row(msgspec.Struct, frozen=True):
    n: int = 0


class Panic(BaseException):
    """What native libraries raise."""


@contract("guarded")
class Guarded(msgspec.Struct, frozen=True):
    n: int = 0

    def look(self) -> None: ...

    def __post_init__(self) -> None:
        self.look()


ROWS = [Row(n) for n in range(4)]
ONCE = Backoff(attempts=1)


def names(outcomes: list[Outcome]) -> list[str]:
    return [type(outcome).__name__.strip("_") for outcome in outcomes]


# --- how they are declared ---------------------------------------------------------------------------------------------------


def test_the_presence_of_a_size_makes_a_handler_of_many():
    @handler(Row, max_size=100)
    async def insert(rows: list[Row], jobs: list[Job]) -> None: ...

    @handler(Row)
    async def one(row: Row, job: Job) -> None: ...

    assert insert.batch == BatchPolicy(100, 0.2)
    assert one.batch is None


def test_annotations_may_be_sequences_plain_lists_or_missing():
    @handler(Row, max_size=1, max_wait_ms=0)
    async def sequences(rows: Sequence[Row], jobs: Sequence[Job]) -> None: ...

    @handler(Row, max_size=1000, max_wait_ms=500)
    async def bare(rows, jobs): ...

    @handler(Row, max_size=2)
    async def plain(rows: list, jobs: list) -> None: ...  # pyright: ignore[reportMissingTypeArgument, reportUnknownParameterType]

    assert sequences.batch == BatchPolicy(1, 0.0)
    assert bare.batch == BatchPolicy(1000, 0.5)
    assert plain.batch == BatchPolicy(2, 0.2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_size": 0}, "max_size must be a whole number from 1 to 1000, got 0"),
        ({"max_size": 1001}, "max_size must be a whole number from 1 to 1000, got 1001"),
        ({"max_size": True}, "max_size must be a whole number"),
        ({"max_size": 2.0}, "max_size must be a whole number"),
        ({"max_size": 9, "max_wait_ms": 501}, "max_wait_ms must be from 0 to 500, got 501"),
        ({"max_size": 9, "max_wait_ms": -1}, "max_wait_ms must be from 0 to 500, got -1"),
        ({"max_size": 9, "max_wait_ms": float("nan")}, "max_wait_ms must be from 0 to 500, got nan"),
        ({"max_wait_ms": 9}, "max_wait_ms needs max_size"),
        ({"max_size": 9, "runs": "process"}, "runs='process' takes one job at a time"),
        ({"max_size": 9, "runs": "thread"}, "runs='thread' does not fit an async function"),
    ],
)
def test_an_option_that_cannot_work_is_told_at_the_declaration(options: dict[str, Any], text: str):
    with pytest.raises(ConfigError, match=f"^handler .*insert: {re.escape(text)}"):

        @handler(Row, **options)
        async def insert(rows: list[Row], jobs: list[Job]) -> None: ...


def test_a_handler_of_many_takes_lists():
    with pytest.raises(ConfigError, match=r"must take \(messages: list\[Row\], jobs: list\[Job\]\), but `row` is annotated Row$"):

        @handler(Row, max_size=9)  # pyright: ignore[reportArgumentType]
        async def insert(row: Row, jobs: list[Job]) -> None: ...


def test_a_handler_of_one_takes_no_list_and_the_error_says_how_it_could():
    with pytest.raises(ConfigError, match=r"but `rows` is annotated list\[.*Row\]; hint: @handler\(…, max_size=100\)"):

        @handler(Row)  # pyright: ignore[reportArgumentType]
        async def insert(rows: list[Row], jobs: list[Job]) -> None: ...


# --- what becomes of each ----------------------------------------------------------------------------------------------------


async def test_the_handler_gets_all_payloads_with_their_jobs_and_what_it_does_not_settle_is_done():
    got: list[Any] = []

    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        got.append((rows, [job.data for job in jobs]))

    assert await run(insert, ROWS) == [Done()] * 4
    assert got == [(ROWS, [msgspec.json.encode(row) for row in ROWS])]


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_each_job_may_be_settled_by_itself_and_the_others_are_done(kind: str):
    def settle(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle(Snooze(5, "not yet"))
        jobs[1].settle(Retry(7, "busy"))
        jobs[2].settle(Dead("no such row", "no-row"))

    async def settle_on_loop(rows: list[Row], jobs: list[Job]) -> None:
        settle(rows, jobs)

    insert = handler(Row, max_size=9)(settle if kind == "thread" else settle_on_loop)
    snoozed, retried, dead, done = await run(insert, ROWS)
    assert isinstance(snoozed, Snooze)
    assert snoozed.delay_s == 5
    assert isinstance(retried, Retry)
    assert retried.delay_s == 7
    assert isinstance(dead, Dead)
    assert dead.code == "no-row"
    assert done == Done()


async def test_what_the_handler_raises_is_what_became_of_all_that_it_has_not_settled():
    @handler(Row, max_size=9, retry=Backoff(base_s=3))
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle()
        jobs[1].settle(Dead("gone"))
        raise ConnectionError("the database went away")

    outcomes = await run(insert, ROWS)
    assert names(outcomes) == ["Done", "Dead", "Retry", "Retry"]
    assert "the database went away" in str(outcomes[3])


async def test_each_job_has_its_own_attempts():
    @handler(Row, max_size=9, retry=ONCE)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle(ValueError("bad row"))

    dead, *done = await run(insert, ROWS)
    assert isinstance(dead, Dead)
    assert dead.code == "attempts"
    assert "bad row" in str(dead)
    assert done == [Done()] * 3


async def test_letters_of_one_batch_have_the_stack_of_what_was_raised_all_of_them():
    @handler(Row, max_size=9, retry=ONCE)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        raise ValueError("all bad")

    causes = [outcome.__cause__ for outcome in await run(insert, ROWS) if isinstance(outcome, Dead)]
    assert len(causes) == 4
    assert len(set(map(id, causes))) == 1


async def test_the_first_word_counts():
    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle(Dead("first"))
        jobs[0].settle()
        jobs[1].settle()
        jobs[1].settle(Dead("second"))

    assert names(await run(insert, ROWS)) == ["Dead", "Done", "Done", "Done"]


async def test_a_payload_that_cannot_be_read_dies_alone_and_never_reaches_the_handler():
    got: list[Row] = []

    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        assert len(rows) == len(jobs)
        got.extend(rows)
        jobs[1].settle(Snooze(1))

    outcomes = await run(insert, [Row(1), b'{"n":"x"}', Row(2), Row(3)])
    assert names(outcomes) == ["Done", "Dead", "Snooze", "Done"]
    assert isinstance(outcomes[1], Dead)
    assert outcomes[1].code == "bad-payload"
    assert got == [Row(1), Row(2), Row(3)]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, Panic, asyncio.CancelledError])
async def test_whatever_a_payload_raises_is_a_failure_of_its_job_alone(error: type[BaseException], monkeypatch: Any):
    def look(row: Row) -> None:
        if row.n == 2:
            raise error("boom")

    monkeypatch.setattr(Guarded, "look", look)

    @handler(Guarded, max_size=9)
    async def insert(rows: list[Guarded], jobs: list[Job]) -> None: ...

    assert names(await run(insert, [Guarded(1), b'{"n":2}', Guarded(3)])) == ["Done", "Retry", "Done"]


async def test_a_batch_of_which_no_job_is_left_is_cut():
    """The others are settled, cannot be read, or were told to end as well."""
    ended: list[str] = []

    @handler(Row, max_size=9, retry=ONCE)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle()
        lane = LANE.get()
        assert isinstance(lane, Lane)
        for job in jobs[1:]:
            lane.end(job, Cancelled("cancelled while it ran"))
        await asyncio.sleep(0)
        ended.append("it went on")

    outcomes = await run(insert, [b'{"n":"x"}', *ROWS[:3]])
    assert [getattr(outcome, "code", "") for outcome in outcomes] == ["bad-payload", "", "cancelled", "cancelled"]
    assert not ended


async def test_a_batch_of_which_a_job_is_left_goes_on():
    @handler(Row, max_size=9, retry=ONCE)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        lane = LANE.get()
        assert isinstance(lane, Lane)
        lane.end(jobs[0], Cancelled("cancelled while it ran"))
        await asyncio.sleep(0)

    assert names(await run(insert, ROWS[:2])) == ["Dead", "Done"]


async def test_a_batch_of_which_nothing_can_be_read_calls_nobody():
    called: list[int] = []

    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        called.append(len(rows))

    assert names(await run(insert, [b'{"n":"x"}', b'{"n":null}'])) == ["Dead", "Dead"]
    assert called == []


@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_the_deadline_is_for_all_together_and_what_is_settled_by_then_stays_so(kind: str):
    let_go = threading.Event()

    async def hang(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle()
        await asyncio.sleep(60)

    def hang_in_thread(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle()
        let_go.wait(60)

    insert = handler(Row, max_size=9, retry=ONCE)(hang if kind == "loop" else hang_in_thread)
    outcomes = await run(insert, ROWS, timeout_s=0.05)
    let_go.set()
    assert names(outcomes) == ["Done", "Dead", "Dead", "Dead"]
    assert {outcome.code for outcome in outcomes if isinstance(outcome, Dead)} == {"timeout"}


async def test_in_a_thread_each_job_is_told_that_it_is_to_end():
    cancelled: list[bool] = []
    ended = threading.Event()

    @handler(Row, max_size=9)
    def insert(rows: list[Row], jobs: list[Job]) -> None:
        for _ in range(10_000):
            if all(job.cancelled for job in jobs):
                break
            ended.wait(0.001)
        cancelled.extend(job.cancelled for job in jobs)
        ended.set()

    await run(insert, ROWS, timeout_s=0.05)
    async with asyncio.timeout(20):
        while not ended.is_set():
            await asyncio.sleep(0.01)
    assert cancelled == [True] * 4


def test_a_job_that_a_thread_settles_while_a_stop_cuts_it_is_settled_or_given_back(monkeypatch: pytest.MonkeyPatch):
    one, other = job_of(Row(1)), job_of(Row(2))
    looks: list[Job] = []

    def has_outcome(job: Job) -> bool:
        looks.append(job)
        return job is one and looks.count(one) > 1

    monkeypatch.setattr(batches, "_has_outcome", has_outcome)
    batch = together([one, other])
    settled = [job for job, _ in ends_of(batch, asyncio.CancelledError(), is_cut_off=True)]
    assert settled + batch.jobs == [one, other]


async def test_a_thread_that_outlives_its_one_job_is_told_that_there_is_nothing_to_settle():
    let_go, told = threading.Event(), list[str]()

    @handler(Row, retry=ONCE)
    def insert(row: Row, job: Job) -> None:
        let_go.wait(60)
        try:
            job.settle(ValueError())
        except RuntimeError as error:
            told.append(str(error))
        let_go.clear()

    await run(insert, ROWS[0], timeout_s=0.05)
    let_go.set()
    async with asyncio.timeout(20):
        while let_go.is_set():
            await asyncio.sleep(0.01)
    assert told == ["settle is for handlers of many jobs: one of a single job returns, or raises"]


class Frame:
    """Stands for what a frame of a handler holds."""


@pytest.mark.parametrize("kind", ["lost", "cancelled", "late"])
async def test_nothing_is_kept_of_the_frames_in_which_jobs_were_settled(kind: str):
    let_go, ended = threading.Event(), threading.Event()
    kept: list[weakref.ref[Frame]] = []

    def settle(jobs: list[Job]) -> None:
        frame = Frame()
        kept.append(weakref.ref(frame))
        try:
            raise LeaseLost if kind == "lost" else ValueError
        except Exception as error:
            jobs[0].settle(error)

    @handler(Row, max_size=9, retry=ONCE)
    def insert(rows: list[Row], jobs: list[Job]) -> None:
        if kind == "late":
            let_go.wait(60)
        settle(jobs)
        if kind == "cancelled":
            jobs[0].noted().cut = Cancelled("by hand")
        ended.set()

    await run(insert, ROWS, timeout_s=0.05 if kind == "late" else None)
    let_go.set()
    assert await asyncio.to_thread(ended.wait, 60)
    async with asyncio.timeout(20):
        while gc.collect() >= 0 and kept[0]() is not None:
            await asyncio.sleep(0.01)


class Hostile(Exception):
    """Raises whatever it is asked."""

    def __str__(self) -> str:
        raise KeyboardInterrupt

    def __getattr__(self, name: str) -> Any:
        raise SystemExit(3)


ERRORS: dict[str, Callable[[], BaseException]] = {
    "hostile": Hostile,
    "lost": lambda: LeaseLost("mine"),
    "not started": lambda: NotStarted("mine"),
    "interrupt": KeyboardInterrupt,
    "cancel": asyncio.CancelledError,
}


@pytest.mark.parametrize("error", ERRORS)
async def test_whatever_a_job_is_settled_with_it_is_a_failure_of_this_job_alone(error: str):
    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[2].settle(ERRORS[error]())

    assert names(await run(insert, ROWS)) == ["Done", "Done", "Retry", "Done"]


@pytest.mark.parametrize("error", ["a text", ValueError, 0])
async def test_what_is_no_exception_is_a_mistake_of_the_handler(error: Any):
    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle(error)

    outcomes = await run(insert, ROWS)
    assert names(outcomes) == ["Retry"] * 4
    assert "must be given an exception or nothing" in str(outcomes[0])


async def test_a_handler_of_one_job_raises_and_does_not_settle():
    @handler(Row)
    async def insert(row: Row, job: Job) -> None:
        job.settle(Dead("gone"))

    outcome = await run(insert, Row())
    assert isinstance(outcome, Retry)
    assert "settle is for handlers of many jobs" in str(outcome)


async def test_a_thread_without_context_that_settles_its_one_job_is_told_so():
    @handler(Row, retry=ONCE)
    async def insert(row: Row, job: Job) -> None:
        await asyncio.get_running_loop().run_in_executor(None, job.settle, Dead("gone"))

    assert "settle is for handlers of many jobs" in str(await run(insert, ROWS[0]))


async def test_a_handler_that_is_called_by_hand_settles_as_well():
    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        jobs[0].settle(Dead("gone"))

    one = job_of(Row())
    await insert([Row()], [one])  # pyright: ignore[reportGeneralTypeIssues]
    assert one.extras is not None
    assert isinstance(one.extras.error, Dead)


async def test_a_line_of_the_log_is_about_no_single_job():
    seen: list[Job | None] = []

    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        seen.append(running_job())

    @handler(Row, max_size=9)
    def insert_in_thread(rows: list[Row], jobs: list[Job]) -> None:
        seen.append(running_job())

    for one in (insert, insert_in_thread):
        await run(one, ROWS)
    assert seen == [None, None]


# --- in tests of handlers ----------------------------------------------------------------------------------------------------


async def test_one_message_is_a_batch_of_one():
    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None:
        assert rows == [Row(1)]
        jobs[0].settle(Snooze(1))

    assert isinstance(await run(insert, Row(1)), Snooze)
    assert await run(insert, list[Row]()) == []


async def test_a_list_for_a_handler_of_one_is_an_error():
    @handler(Row)
    async def insert(row: Row, job: Job) -> None: ...

    with pytest.raises(ConfigError, match="takes one message, got a list"):
        await run(insert, ROWS)


async def test_a_coroutine_that_a_plain_function_returns_is_awaited():
    ran: list[int] = []

    async def work(rows: list[Row]) -> None:
        ran.append(len(rows))

    @handler(Row, max_size=9, runs="thread")
    def insert(rows: list[Row], jobs: list[Job]) -> object:
        return work(rows)

    assert await run(insert, ROWS) == [Done()] * 4
    assert ran == [4]


def test_a_decoder_of_a_handler_of_many_still_reads_one_payload():
    @handler(Row, max_size=9)
    async def insert(rows: list[Row], jobs: list[Job]) -> None: ...

    both: Handler[Row] = insert
    assert both.decode(job_of(Row(3))) == Row(3)
