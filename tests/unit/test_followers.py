"""What a job hands on: its ids, its bounds, its trace, and what a test sees of it."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import msgspec
import pytest

from runtime import Backoff, Job, Priority, contract, followers, handler, logs
from runtime.codec import JOB_ID
from runtime.errors import BadPayload, ConfigError, Dead, Retry
from runtime.frames import Noted, noted_of
from runtime.jobs import PLAIN
from runtime.offload import extras_in
from runtime.store.arguments import by_kind
from runtime.testing import Done, Notes, run
from runtime.worker.flusher import parts_of
from runtime.worker.ledger import empty_batch

TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@contract("page", priority=Priority.LOW)
class Page(msgspec.Struct, frozen=True):
    n: int
    text: str = ""


class NoContract(msgspec.Struct):
    n: int


def job(entry: bytes = b"1-1", **more: Any) -> Job:
    return Job(1, entry, 1, "", 0.0, b"site", b"{}", PLAIN, 0, **more)


def test_ids_are_the_work_and_a_suffix_or_a_number_in_the_order_of_calls() -> None:
    one = job()
    ids = [one.send(Page(0)), one.send(Page(1), suffix="a.B_9-x"), one.send(Page(2)), one.send(Page(3), suffix="s" * 100)]
    assert ids == [f"{one.work}:{suffix}" for suffix in ("1", "a.B_9-x", "3", "s" * 100)]
    assert all(JOB_ID.match(name.encode()) for name in ids)
    assert [packed.head.id for packed in one.followers] == ids
    assert job().send(Page(9)) == ids[0], "the same in each attempt"


def test_a_number_that_was_given_as_a_suffix_is_passed_over() -> None:
    one = job()
    one.send(Page(0), suffix="2")
    assert one.send(Page(1)).endswith(":3")
    with pytest.raises(ConfigError, match="the suffix '3' was sent by this run already"):
        one.send(Page(2), suffix="3")
    assert len(one.followers) == 2


@pytest.mark.parametrize("suffix", ["a b", "a:b", "s" * 101, "\n", 5, "\u00e9"])
def test_a_suffix_that_makes_no_id_is_refused(suffix: Any) -> None:
    with pytest.raises(BadPayload, match="suffix must be 1 to 100 of"):
        job().send(Page(0), suffix=suffix)


def test_what_cannot_be_sent_is_refused_at_that_line() -> None:
    one = job()
    with pytest.raises(BadPayload, match="NoContract is not a contract"):
        one.send(NoContract(1))
    with pytest.raises(BadPayload, match="delay_s"):
        one.send(Page(1), delay_s=-1)
    with pytest.raises(BadPayload, match="keep must be first or last"):
        one.send(Page(1), keep="both")
    assert one.followers == []


def test_a_job_hands_on_a_hundred_others_and_no_more() -> None:
    one = job()
    for n in range(100):
        one.send(Page(n))
    with pytest.raises(ConfigError, match="at most 100 others"):
        one.send(Page(100))
    assert len(one.followers) == 100


def test_a_job_hands_on_a_mebibyte_and_no_more() -> None:
    one = job()
    for n in range(5):
        one.send(Page(n, "x" * 200_000))
    with pytest.raises(ConfigError, match="at most 1048576 bytes together, got 1200"):
        one.send(Page(5, "x" * 200_000))
    one.send(Page(6))
    assert len(one.followers) == 6


def test_threads_of_one_handler_take_no_number_twice() -> None:
    one = job()
    one.noted()
    start = threading.Barrier(8)

    def work() -> None:
        start.wait()
        for n in range(10):
            one.send(Page(n))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(packed.head.id.partition(":")[2]) for packed in one.followers) == list(range(1, 81))


def test_a_job_tells_others_of_the_span_that_it_runs_in_or_of_its_senders(monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(trace=TRACE)
    one.send(Page(0))
    monkeypatch.setattr(logs, "trace_ids", lambda: ("a" * 32, "b" * 16, "01"))
    one.send(Page(1))
    other = job(trace=b"no trace \xff")
    monkeypatch.setattr(logs, "trace_ids", lambda: None)
    other.send(Page(2))
    fields = [packed.head.fields[:2] for packed in (*one.followers, *other.followers)]
    assert fields[0] == (b"traceparent", TRACE)
    assert fields[1] == (b"traceparent", b"00-%b-%b-01" % (b"a" * 32, b"b" * 16))
    assert b"traceparent" not in fields[2]


def test_what_is_handed_on_in_a_child_process_comes_back_with_its_answer() -> None:
    child, here = job(), job()
    child.send(Page(1), suffix="a", key="k", delay_s=60)
    child.send(Page(2))
    extras_in(here, msgspec.msgpack.decode(msgspec.msgpack.encode(noted_of(child)), type=Noted))
    assert [packed.head.id for packed in here.followers] == [packed.head.id for packed in child.followers]
    assert [packed.data for packed in here.followers] == [packed.data for packed in child.followers]
    assert noted_of(job()) is None


def test_a_flush_of_large_followers_goes_in_parts() -> None:
    batch = empty_batch()
    for n in range(4):
        one = job(b"1-%d" % n)
        if n:
            one.send(Page(n, "x" * 1000))
        batch.done[1].append(one)
    parts = [part.done[1] for _, part in parts_of(batch, 2000)]
    assert [[one.entry for one in part] for part in parts] == [[b"1-0", b"1-1"], [b"1-2"], [b"1-3"]]


class _Meanwhile(dict[str, Any]):
    """Followers of a job that hands on its first one between two looks, in a task that outlives it."""

    def __init__(self, first: Any) -> None:
        super().__init__()
        self._first = first

    def values(self) -> Any:
        found = [*super().values()]
        self["late"] = self._first
        return found

    def __bool__(self) -> bool:
        return bool([*self.values()])


def late(entry: bytes) -> Job:
    one = job(entry)
    one.send(Page(1))
    extras = one.noted()
    extras.followers = _Meanwhile(*extras.followers.values())
    return one


def test_a_job_that_hands_on_another_while_it_is_written_is_in_one_part_all_the_same() -> None:
    batch = empty_batch()
    large = job(b"1-1")
    large.send(Page(1, "x" * 3000))
    batch.done[1] += [late(b"1-0"), large]
    parts = [one.entry for _, part in parts_of(batch, 2000) for one in part.done[1]]
    assert sorted(parts) == [b"1-0", b"1-1"]


def test_a_job_that_hands_on_another_while_it_is_written_is_written_once() -> None:
    hands_on = job(b"1-1")
    hands_on.send(Page(1))
    plain, again, old, handing = by_kind([[late(b"1-0"), hands_on]], "")
    assert [[one.entry for one in jobs] for jobs in plain] == [[b"1-0"]]
    assert (again, old, handing) == ([], [], [hands_on])


# --- in tests of handlers ----------------------------------------------------------------------------------------------------


@handler(Page, retry=Backoff(attempts=2))
async def turn(message: Page, job: Job) -> None:
    job.send(Page(message.n + 1), suffix="next", key="k", delay_s=5, exp=2_000_000_000.0, group="g", attempts=7)
    if message.text:
        raise ValueError(message.text)


async def test_a_test_sees_what_was_handed_on() -> None:
    notes = Notes()
    assert await run(turn, Page(1), id="j", notes=notes) == Done()
    [one] = notes.sent
    assert (one.type, one.payload, one.data) == ("page", {"n": 2, "text": ""}, b'{"n":2,"text":""}')
    assert (one.key, one.group, one.attempts, one.exp, one.priority) == ("k", "g", 7, 2_000_000_000.0, Priority.LOW)
    assert one.id.endswith(":next")
    assert one.at > 0
    assert isinstance(await run(turn, one.data), Done)


async def test_an_attempt_that_failed_has_handed_on_nothing() -> None:
    notes = Notes()
    assert isinstance(await run(turn, Page(1, "no"), notes=notes), Retry)
    assert notes.sent == []


async def test_a_run_that_is_over_is_told_that_it_sends_nothing_more() -> None:
    tasks: list[asyncio.Task[str]] = []

    async def go_on(job: Job) -> str:
        await asyncio.sleep(0)
        return job.send(Page(2))

    @handler(Page)
    async def leaves_a_task(message: Page, job: Job) -> None:
        tasks.append(asyncio.create_task(go_on(job)))

    notes = Notes()
    assert await run(leaves_a_task, Page(1), notes=notes) == Done()
    with pytest.raises(ConfigError, match="this run is over, and sends nothing any more"):
        await tasks[0]
    assert notes.sent == []


async def test_a_thread_without_context_sends_as_long_as_its_run_goes_on() -> None:
    runs: list[Job] = []

    @handler(Page)
    async def sends(message: Page, job: Job) -> None:
        runs.append(job)
        loop = asyncio.get_running_loop()
        if len(runs) == 2:
            await loop.run_in_executor(None, job.send, Page(2))
            with pytest.raises(ConfigError, match="this run is over, and sends nothing any more"):
                await loop.run_in_executor(None, runs[0].send, Page(3))

    assert await run(sends, Page(1)) == Done()
    notes = Notes()
    assert await run(sends, Page(1), notes=notes) == Done()
    assert [follower.payload["n"] for follower in notes.sent] == [2]
    assert not runs[0].followers


def test_what_is_sent_while_the_run_ends_is_sent_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane ends the run between the look of a thread and its note: what the thread notes may be read already."""
    looks = iter([False, True])
    monkeypatch.setattr(followers, "is_over", lambda job: next(looks))
    one = job()
    with pytest.raises(ConfigError, match="this run is over"):
        one.send(Page(1))
    assert one.followers == []


async def test_what_a_handler_may_not_hand_on_is_the_failure_of_its_attempt() -> None:
    @handler(Page)
    async def twice(message: Page, job: Job) -> None:
        job.send(message, suffix="a")
        job.send(message, suffix="a" if message.n else "b c")

    outcome = await run(twice, Page(1))
    assert isinstance(outcome, Retry)
    assert "the suffix 'a'" in str(outcome)
    outcome = await run(twice, Page(0))
    assert isinstance(outcome, Retry)
    assert "BadPayload: suffix must be" in str(outcome)


async def test_what_cannot_be_sent_is_no_fault_of_the_payload_that_runs() -> None:
    @handler(Page, retry=Backoff(attempts=2))
    def in_thread(message: Page, job: Job) -> None:
        job.send(message, exp=-1)

    @handler(Page, max_size=2)
    async def many(messages: list[Page], jobs: list[Job]) -> None:
        try:
            jobs[0].send(messages[0], exp=-1)
        except BadPayload as error:
            jobs[0].settle(error)

    assert isinstance(await run(in_thread, Page(1)), Retry)
    dead = await run(in_thread, Page(1), attempt=2)
    assert isinstance(dead, Dead)
    assert dead.code == "attempts"
    outcome = await run(many, [Page(1), Page(2)])
    assert isinstance(outcome[0], Retry)
    assert outcome[1] == Done()
