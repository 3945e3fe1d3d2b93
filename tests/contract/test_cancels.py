"""A worker on a real server ends what people cancel, wherever it is here, and never runs it again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from runtime import Backoff, Job, Retry, contract, handler
from runtime.places import PROCESS, THREAD
from runtime.store.base import GROUP
from runtime.store.control import ControlStore
from tests.servers import Server
from tests.workers import until, working

HIGH, DEAD, CANCELS = "{jobs}:high", "{jobs}:dead", "{jobs}:cancels"


@contract("caspar")
class Caspar(msgspec.Struct, frozen=True):
    how: str = "hangs"


ran: list[str] = []
gate = asyncio.Event()
let_go = threading.Event()


@handler(Caspar, timeout_s=60, retry=Backoff(attempts=9, base_s=0.01))
async def caspar(message: Caspar, job: Job) -> None:
    ran.append(job.id)
    try:
        await gate.wait()
    except asyncio.CancelledError:
        ran.append(f"cut {job.cancelled}")
        if message.how == "retries":
            raise Retry(0) from None
        if message.how == "returns":
            return
        raise


@handler(Caspar, timeout_s=60)
def in_thread(message: Caspar, job: Job) -> None:
    ran.append(job.id)
    while not (job.cancelled or let_go.is_set()):
        let_go.wait(0.01)
    ran.append(f"cut {job.cancelled}")
    if message.how == "stubborn":
        let_go.wait(30)


@handler(Caspar, timeout_s=60, runs="process")
def in_child(message: Caspar, job: Job) -> None:
    time.sleep(60)


@pytest.fixture(autouse=True)
def _anew():
    global gate
    ran.clear()
    gate = asyncio.Event()
    let_go.clear()
    yield
    let_go.set()


@pytest.fixture
async def control(server: Server) -> AsyncIterator[ControlStore]:
    opened = ControlStore(server.url, "jobs")
    yield opened
    await opened.close()


def send(raw, name: str, how: str = "hangs", **fields: str) -> str:
    entry = raw.xadd(HIGH, {"type": "caspar", "data": msgspec.json.encode(Caspar(how)), "id": name, **fields})
    return f"high/{entry}"


async def cancel(control: ControlStore, place: str) -> str:
    [answer] = await control.steer("cancel", "ann@host", "", [place])
    return answer.partition(" ")[0]


def letters(raw) -> list[tuple[str, str, str]]:
    return [(fields["id"], fields["dead_reason"], fields["dead_attempts"]) for _, fields in raw.xrange(DEAD)]


@pytest.mark.parametrize("how", ["hangs", "retries"])
async def test_a_job_that_runs_is_cut_and_dead_whatever_its_handler_raises_and_no_attempt_is_burnt(server, raw, control, how):
    async with working(server.url, caspar) as worker:
        places = [send(raw, "j", how, a="1", key="k"), send(raw, "other")]
        await until(lambda: len(ran) == 2, "both run")
        assert await cancel(control, places[0]) == "asked"
        await until(lambda: letters(raw) == [("j", "cancelled", "1")], "it is dead")
        assert (sorted(ran), worker.running) == (["cut True", "j", "other"], 1), "and the other one runs on"
        await until(lambda: not raw.exists(CANCELS), "the mark is taken away")
        assert (raw.get("{jobs}:seen:k:k"), raw.xlen(HIGH), raw.exists("{jobs}:due")) == (None, 1, 0)
        gate.set()
        await until(lambda: raw.xlen(HIGH) == 0, "the other one ends")
    assert len(letters(raw)) == 1


async def test_the_letter_of_a_job_that_ran_says_who_cancelled_it_and_why(server, raw, control):
    async with working(server.url, caspar):
        place = send(raw, "j", "hangs")
        await until(lambda: ran == ["j"], "it runs")
        await control.steer("cancel", "ann@host", "ordered twice", [place])
        await until(lambda: letters(raw) == [("j", "cancelled", "0")], "it is dead")
        [(_, letter)] = raw.xrange(DEAD)
        assert letter["dead_error"] == "cancelled by ann@host: ordered twice, while it ran"
        await until(lambda: not raw.keys("{jobs}:cancels*"), "nothing is left of the mark")


async def test_who_returns_all_the_same_is_done(server, raw, control):
    async with working(server.url, caspar):
        place = send(raw, "j", "returns")
        await until(lambda: ran == ["j"], "it runs")
        await cancel(control, place)
        await until(lambda: raw.xlen(HIGH) == 0 and not raw.exists(CANCELS), "it is gone, and the mark with it")
    assert (ran, letters(raw)) == (["j", "cut True"], [])


async def test_what_waits_in_the_inbox_never_starts(server, raw, control, monkeypatch):
    monkeypatch.setattr("runtime.consumer.UNSTARTED_S", 600.0)  # it would be given back, and buried by the script

    def waits() -> bool:
        worker._finished_before = [-10, -10]  # as if ten had just ended: then it reads ahead
        return len(worker.inbox) == 1

    async with working(server.url, caspar, concurrency=1, reserved=0) as worker:
        send(raw, "first")
        await until(lambda: ran == ["first"], "the lane is taken")
        place = send(raw, "j")
        await until(waits, "it waits here")
        assert await cancel(control, place) == "asked"
        await until(lambda: letters(raw) == [("j", "cancelled", "0")], "it is dead")
        gate.set()
        await until(lambda: raw.xlen(HIGH) == 0, "the first one ends")
    assert ran == ["first"]


async def test_a_thread_is_told_and_keeps_its_place_until_it_ends(server, raw, control):
    async with working(server.url, in_thread, threads=1) as worker:
        place = send(raw, "j", "stubborn")
        await until(lambda: ran == ["j"], "it runs")
        await cancel(control, place)
        await until(lambda: letters(raw) == [("j", "cancelled", "0")], "it is dead")
        await until(lambda: ran == ["j", "cut True"], "its handler sees that it is cancelled")
        assert worker.places[THREAD].taken == 1, "its thread goes on"
        let_go.set()
        await until(lambda: worker.places[THREAD].taken == 0, "that ends")


async def test_a_child_process_is_killed(server, raw, control):
    async with working(server.url, in_child) as worker:
        place = send(raw, "j")
        await until(lambda: worker.running == 1 and worker.places[PROCESS].taken == 1, "it runs")
        await cancel(control, place)
        await until(lambda: letters(raw) == [("j", "cancelled", "0")], "it is dead")
        await until(lambda: worker.places[PROCESS].taken == 0, "its place is free")


async def test_what_waits_for_a_thread_is_cut_as_well(server, raw, control, monkeypatch):
    monkeypatch.setattr("runtime.places.WAIT_S", 600.0)
    async with working(server.url, in_thread, threads=1) as worker:
        send(raw, "first")
        await until(lambda: ran == ["first"], "the thread is taken")
        worker.places[THREAD].capacity_within_a_second = lambda coming: 1  # as if jobs were short
        place = send(raw, "j")
        await until(lambda: worker.places[THREAD].waiting == 1, "it waits in its lane")
        await cancel(control, place)
        await until(lambda: letters(raw) == [("j", "cancelled", "0")], "it is dead")
        let_go.set()
        await until(lambda: raw.xlen(HIGH) == 0, "the first one ends")
    assert ran == ["first", "cut False"]


@pytest.mark.parametrize("number", [1, 2])
async def test_of_a_batch_one_is_dead_and_the_others_go_on_and_all_of_them_cut_it(server, raw, control, number):
    given: list[list[Job]] = []

    @handler(Caspar, timeout_s=60, max_size=2)
    async def many(messages: list[Caspar], jobs: list[Job]) -> None:
        given.append(jobs)
        await gate.wait()

    async with working(server.url, many) as worker:
        places = [send(raw, "j"), send(raw, "k")]
        await until(lambda: given, "they run")
        for place in places[:number]:
            await cancel(control, place)
        await until(lambda: [job.cancelled for job in given[0]] == [True, number == 2], "they are told")
        if number == 1:
            gate.set()
        await until(lambda: raw.xlen(HIGH) == 0 and worker.running == 0, "the batch ends")
    assert letters(raw) == [("j", "cancelled", "0"), ("k", "cancelled", "0")][:number]


async def test_a_suspect_in_isolation_is_cut_too(server, raw, control):
    entry = send(raw, "j").partition("/")[2]
    raw.xgroup_create(HIGH, GROUP, "0")
    raw.xreadgroup(GROUP, "dead", {HIGH: ">"})
    raw.xclaim(HIGH, GROUP, "~suspect", 0, [entry], retrycount=2, justid=True)
    async with working(server.url, caspar, lease_s=0.9) as worker:
        await until(lambda: ran == ["j"], "it runs")
        await cancel(control, f"high/{entry}")
        await until(lambda: letters(raw) == [("j", "cancelled", "0")], "it is dead")
        await until(lambda: not len(worker.held), "nothing is held")
        gate.set()
        send(raw, "next")
        await until(lambda: "next" in ran, "the worker goes on")


async def test_a_job_whose_delivery_comes_after_its_mark_was_read_is_found_by_a_later_look(server, raw, control):
    async with working(server.url, caspar) as worker:
        place = send(raw, "j")
        await until(lambda: ran == ["j"], "it runs")
        [lease] = worker.held.jobs_of({b"caspar"})
        worker.held.remove([lease])  # as if its delivery were still on its way
        await cancel(control, place)
        await until(lambda: worker.orders.cancels._read_s, "the mark is read")
        worker.held.add(lease.stream, [lease])
        await until(lambda: letters(raw) == [("j", "cancelled", "0")], "it is dead")


async def test_a_worker_that_stops_meanwhile_gives_nothing_back_that_is_cancelled(server, raw, control):
    async with working(server.url, caspar, grace_s=0) as worker:
        places = [send(raw, "j"), send(raw, "other")]
        await until(lambda: len(ran) == 2, "both run")
        worker.orders.on_look = lambda rules: None  # it never hears of it
        await cancel(control, places[0])
    assert letters(raw) == [("j", "cancelled", "0")]
    [row] = raw.xpending_range(HIGH, GROUP, "-", "+", 10)
    assert (row["consumer"], f"high/{row['message_id']}") == ("~free", places[1])


async def test_what_stands_in_the_place_of_the_marks_keeps_no_worker_from_the_rules(server, raw, control):
    raw.set(CANCELS, "x")
    async with working(server.url, caspar) as worker:
        await control.order("ann@host", "", [("pause", "pause:high", "0")])
        await until(lambda: worker._fetcher.paused == {1}, "it obeys")
