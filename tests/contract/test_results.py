"""What a job has answered reaches who waits for it, whatever happens between; and who waits is always told something."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec
import pytest

from runtime import (
    Backoff,
    BadResult,
    ConfigError,
    Dead,
    Job,
    JobDead,
    Producer,
    ResultTimeout,
    Sent,
    StoreUnavailable,
    contract,
    handler,
)
from runtime.jobs import Kept, Letter
from runtime.store import results
from runtime.store.control import ControlStore
from runtime.streams import Streams
from runtime.testing import worker
from tests.contract.kit import ME, ServerKit, batch, leases
from tests.proxy import Proxy, Relay
from tests.servers import PATIENCE_S, Server
from tests.workers import until

T = TypeVar("T")
ONCE = Backoff(attempts=1)


@contract("add")
class Add(msgspec.Struct, frozen=True):
    a: int
    b: int = 0


class Sum(msgspec.Struct, frozen=True):
    total: int


def adding(life_s: float = 600, gate: Callable[[], asyncio.Event] | None = None) -> Any:
    """Return a handler that adds, when its gate is open."""

    @handler(Add, result_ttl_s=life_s, retry=ONCE)
    async def add(message: Add, job: Job) -> Sum:
        if gate is not None:
            await gate().wait()
        if message.b < 0:
            raise Dead("no negative numbers", code="negative")
        return Sum(message.a + message.b)

    return add


def listeners(client: Any) -> int:
    """Return how many are subscribed."""
    return client.pubsub_numsub("{jobs}:results")[0][1]


async def soon(waiting: asyncio.Task[T]) -> T:
    """Return what a task does, long before those who wait in it would look by themselves at the end of their time."""
    return await asyncio.wait_for(waiting, PATIENCE_S)


def through(path: str, queue: str = "jobs", **options: Any) -> Producer:
    return Producer.connect(path, queue=queue, **options)


# --- what comes back ---------------------------------------------------------------------------------------------------------


async def test_the_answer_of_a_job_is_returned_as_json_has_it_or_as_the_type_that_is_asked_for(server: Server):
    async with worker(server.url, adding()) as running:
        producer = running.producer
        first = await producer.send(Add(1, 2))
        assert await producer.result(first) == {"total": 3}
        second = await producer.send(Add(2, 2))
        assert await producer.result(second.id, type=Sum) == Sum(4)
        with pytest.raises(BadResult, match="the result is no int"):
            await producer.result(second, type=int)


async def test_a_result_is_kept_as_the_page_says(server: Server, raw: Any):
    async with worker(server.url, adding(life_s=77)) as running:
        sent = await running.producer.send(Add(1, 2))
        await running.producer.result(sent)
        key = "{jobs}:results:" + sent.id
        told = msgspec.json.decode(raw.get(key))
        assert (told["state"], told["value"]) == ("done", {"total": 3})
        assert abs(told["at"] - time.time() * 1000) < 60_000
        assert 60_000 < raw.pttl(key) <= 77_000


def plainly(function: Any) -> Any:
    """Decorate as one does who has never heard of coroutines."""

    @functools.wraps(function)
    def called(*args: Any) -> Any:
        return function(*args)

    return called


@handler(Add, result_ttl_s=60)
def in_thread(message: Add, job: Job) -> Sum:
    return Sum(message.a)


@handler(Add, result_ttl_s=60)
@plainly
async def decorated(message: Add, job: Job) -> Sum:
    return Sum(message.a)


@handler(Add, result_ttl_s=60, runs="process")
def in_child(message: Add, job: Job) -> Sum:
    return Sum(message.a)


@handler(Add, result_ttl_s=60, runs="process")
async def awaited_in_child(message: Add, job: Job) -> Sum:
    await asyncio.sleep(0)
    return Sum(message.a)


@pytest.mark.parametrize("declared", [in_thread, decorated, in_child, awaited_in_child], ids=lambda one: one.function.__name__)
async def test_an_answer_comes_from_wherever_the_handler_runs(valkey: Server, declared: Any):
    async with worker(valkey.url, declared) as running:
        assert await running.producer.result(await running.producer.send(Add(7))) == {"total": 7}


async def test_nothing_is_kept_of_a_type_without_results(server: Server, raw: Any):
    @handler(Add)
    async def add(message: Add, job: Job) -> int:
        return 1

    async with worker(server.url, add) as running:
        sent = await running.producer.send(Add(1))
        await running.settled()
        assert not raw.keys("{jobs}:results*")
        with pytest.raises(ResultTimeout, match=r"its type has none \(`result_ttl_s`\)"):
            await running.producer.result(sent, timeout_s=0)


async def test_nothing_is_kept_of_an_attempt_that_is_tried_again(server: Server, raw: Any):
    met: list[bool] = []

    @handler(Add, result_ttl_s=60, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
    async def add(message: Add, job: Job) -> int:
        met.append(bool(raw.exists("{jobs}:results:" + job.id)))
        if job.attempt == 1:
            raise RuntimeError("not yet")
        return job.attempt

    async with worker(server.url, add) as running:
        assert await running.producer.result(await running.producer.send(Add(1))) == 2
    assert met == [False, False]


# --- death -------------------------------------------------------------------------------------------------------------------


async def test_who_waits_for_a_job_that_dies_is_told_of_what(server: Server, raw: Any):
    async with worker(server.url, adding()) as running:
        with pytest.raises(JobDead) as told:
            await running.producer.result(await running.producer.send(Add(1, -1)))
        assert (told.value.reason, told.value.error, told.value.attempts) == ("negative", "no negative numbers", 1)
        assert str(told.value) == "negative: no negative numbers"
        [key] = raw.keys("{jobs}:results:*")
        assert msgspec.json.decode(raw.get(key))["state"] == "dead"


async def test_a_death_is_read_from_the_letter_where_no_result_of_it_is_kept(server: Server, raw: Any):
    async with worker(server.url, adding()) as running:
        sent = await running.producer.send(Add(1, -1))
        await running.settled()
        raw.delete("{jobs}:results:" + sent.id)
        with pytest.raises(JobDead, match="negative: no negative numbers"):
            await running.producer.result(sent, timeout_s=0)


async def test_who_waits_for_a_job_that_is_replayed_hears_what_becomes_of_it_now(server: Server, raw: Any):
    is_broken = True

    @handler(Add, result_ttl_s=600, retry=ONCE)
    async def add(message: Add, job: Job) -> int:
        if is_broken:
            raise Dead("broken")
        return message.a

    control = ControlStore(server.url, "jobs")
    async with worker(server.url, add) as running:
        sent = await running.producer.send(Add(7))
        with pytest.raises(JobDead):
            await running.producer.result(sent)
        is_broken = False
        [(letter, _)] = raw.xrange("{jobs}:dead")
        await control.replay(letter)
        assert await running.producer.result(sent) == 7
    await control.close()


async def test_a_job_that_is_cancelled_by_hand_is_told_of_at_once(server: Server, raw: Any):
    """What buries it knows nothing of results: it publishes the id, and the letter says why."""
    async with through(server.url) as producer:
        sent = await producer.send(Add(1))
        waiting = asyncio.create_task(producer.result(sent, timeout_s=3600))
        await until(lambda: listeners(raw) == 1, "it listens")
        notes = {
            "dead_reason": "cancelled",
            "dead_error": "by me",
            "dead_attempts": "0",
            "dead_at": "1",
            "dead_from": "medium/1-1",
        }
        raw.xadd("{jobs}:dead", {"type": "add", "data": "{}", "id": sent.id, **notes})
        raw.publish("{jobs}:results", f"other-1 {sent.id}")
        with pytest.raises(JobDead, match="cancelled: by me"):
            await soon(waiting)


async def test_letters_that_are_too_large_for_one_answer_hide_no_other(valkey: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(results, "MAX_ANSWER_BYTES", 1_000_000)
    raw: Any = valkey.client()
    raw.xadd("{jobs}:dead", {"type": "add", "data": "{}", "id": "wanted", "dead_reason": "gone", "dead_at": "1"})
    for size in [100] * 60 + [60_000] * 60:
        raw.xadd("{jobs}:dead", {"type": "add", "data": "x" * size, "id": "other", "dead_reason": "gone", "dead_at": "1"})
    async with through(valkey.url) as producer:
        with pytest.raises(JobDead, match="gone"):
            await producer.result("wanted", timeout_s=0)


async def test_letters_that_cannot_be_read_are_looked_for_once(valkey: Server, monkeypatch: pytest.MonkeyPatch):
    """Whoever else waits for a result waits behind that."""
    raw, looks = valkey.client(), list[object]()

    async def letters(self: object, ids: object, newest: int) -> None:
        looks.append(ids)
        raise StoreUnavailable("too large")

    monkeypatch.setattr(results.ResultStore, "letters", letters)
    async with through(valkey.url) as producer:
        waiting = asyncio.create_task(producer.result("told", timeout_s=3600))
        await until(lambda: listeners(raw) == 1, "it listens")
        raw.publish("{jobs}:results", "told")
        await until(lambda: looks, "a letter is looked for")
        for _ in range(2):  # by the second, whatever was put back with the first was read
            raw.set("{jobs}:results:other", '{"state":"done","value":8}')
            assert await soon(asyncio.create_task(producer.result("other", timeout_s=3600))) == 8
        assert len(looks) == 1
        assert not waiting.done()
        waiting.cancel()


# --- who waits in vain ---------------------------------------------------------------------------------------------------------


async def test_who_waits_in_vain_is_told_where_the_job_is(server: Server):
    gate = asyncio.Event()
    async with through(server.url) as producer:
        waits = await producer.send(Add(1))
        named = await producer.send(Add(1), id="mine")
        later = await producer.send(Add(1), delay_s=3600)
        for sent, told in ((waits, "it waits on medium"), (named, "it waits on medium"), (later, "it is delayed until 20")):
            with pytest.raises(ResultTimeout, match=f"no result of '{sent.id}' in 0.01 s: {told}"):
                await producer.result(sent, timeout_s=0.01)
        with pytest.raises(TimeoutError, match="or it never was"):
            await producer.result("medium-1-1", timeout_s=0)
        async with worker(server.url, adding(gate=lambda: gate)) as running:
            await until(lambda: running.consumer.running == 2, "both run")
            with pytest.raises(ResultTimeout, match=f"it is with worker {running.consumer.name}, from medium"):
                await producer.result(waits, timeout_s=0)
            gate.set()
            assert await producer.result(waits) == {"total": 1}


@pytest.mark.parametrize(
    ("lot", "told"),
    [
        ("~free", "for the next worker"),
        ("~suspect", "to be run apart"),
        ("~t:add@1", "for a worker that knows its type"),
        ("~g:add:ada", "since its type or group is paused, or at its limit"),
        ("~o:add", "since its type or group is paused, or at its limit"),
        ("~stranger", "where no worker of this release looks"),
    ],
)
async def test_who_waits_for_a_job_in_a_lot_is_told_why_it_waits_in_words(lot: str, told: str, server: Server, raw: Any):
    async with through(server.url) as producer:
        sent = await producer.send(Add(1))
        raw.xgroup_create("{jobs}:medium", "workers", "0", mkstream=True)
        raw.xreadgroup("workers", lot, {"{jobs}:medium": ">"})
        with pytest.raises(ResultTimeout, match=f"it waits on medium, {told}") as caught:
            await producer.result(sent, timeout_s=0)
        assert "~" not in str(caught.value)


async def test_a_result_that_has_expired_is_gone(server: Server, raw: Any):
    async with worker(server.url, adding(life_s=1)) as running:
        sent = await running.producer.send(Add(1))
        await running.producer.result(sent)
        await until(lambda: not raw.exists("{jobs}:results:" + sent.id), "it is over")
        with pytest.raises(ResultTimeout, match="the time of its result is over"):
            await running.producer.result(sent, timeout_s=0)


async def test_who_sends_what_another_job_does_already_has_the_result_of_that(valkey: Server):
    async with worker(valkey.url, adding()) as running:
        producer = running.producer
        first = await producer.send(Add(1), key="k", delay_s=0.3)
        folded = await producer.send(Add(2), key="k", delay_s=0.3)
        dropped = await producer.send(Add(3), key="k", id="mine")
        assert (folded, dropped) == (Sent(first.id, new=False), Sent(first.id, new=False))
        assert await producer.result(dropped) == {"total": 2}


@pytest.mark.parametrize("timeout_s", [-1, float("nan"), "5", None])
async def test_a_timeout_that_is_none_is_refused(valkey: Server, timeout_s: Any):
    async with through(valkey.url) as producer:
        with pytest.raises(ConfigError, match="timeout_s must be a number of seconds from 0"):
            await producer.result("medium-1-1", timeout_s=timeout_s)


@pytest.mark.parametrize("job", ["", "a b", "\ud800", "ü", "x" * 129, None, 5, b"x"])
async def test_what_is_no_id_is_refused_and_ends_nobody_else_s_wait(valkey: Server, job: Any):
    async with through(valkey.url) as producer:
        other = asyncio.create_task(producer.result("other", 20))
        await asyncio.sleep(0)
        with pytest.raises(ConfigError, match="job must be what `send` returned, or an id"):
            await producer.result(job, 5)
        assert not other.done()
        other.cancel()


async def test_a_type_that_json_cannot_be_read_as_is_refused_before_anything_waits(valkey: Server):
    async with through(valkey.url) as producer:
        with pytest.raises(ConfigError, match="cannot be read from JSON"):
            await producer.result("medium-1-1", type=cast("Any", Sum | Add))


@pytest.mark.parametrize("put", ["list", "rubbish", "huge"])
async def test_what_a_stranger_puts_in_the_place_of_a_result_is_none(server: Server, raw: Any, put: str):
    key = "{jobs}:results:medium-1-1"
    match put:
        case "list":
            raw.lpush(key, "x")
        case "rubbish":
            raw.set(key, '{"state":"eaten","value":1}')
        case _:
            raw.setrange(key, 70_000_000, "x")
    async with worker(server.url, adding()) as running:
        with pytest.raises(ResultTimeout):
            await running.producer.result("medium-1-1", timeout_s=0)
        assert await running.producer.result(await running.producer.send(Add(1))) == {"total": 1}


# --- one subscription ----------------------------------------------------------------------------------------------------------


async def test_a_thousand_wait_on_one_subscription_and_all_are_told(server: Server, raw: Any):
    gate = asyncio.Event()
    async with worker(server.url, adding(gate=lambda: gate), concurrency=100) as running:
        sent = await running.producer.send_many([Add(at) for at in range(1000)])
        waiting = [asyncio.create_task(running.producer.result(one, type=Sum)) for one in sent]
        await until(lambda: listeners(raw) == 1, "it listens")
        await until(lambda: running.consumer.running > 90, "all lanes but the reserved ones run")
        gate.set()
        assert [one.total for one in await asyncio.gather(*waiting)] == list(range(1000))
        assert listeners(raw) == 1


async def test_a_result_that_is_there_already_is_returned_at_once(server: Server, raw: Any):
    raw.set("{jobs}:results:medium-1-1", '{"state":"done","value":8}')
    async with through(server.url) as producer:
        for _ in range(2):  # before the subscription stands, and when it does
            assert await soon(asyncio.create_task(producer.result("medium-1-1", timeout_s=3600))) == 8


async def test_two_who_wait_for_one_job_are_both_told_in_one_producer_and_in_two(server: Server):
    gate = asyncio.Event()
    async with worker(server.url, adding(gate=lambda: gate)) as running, through(server.url) as other:
        sent = await running.producer.send(Add(5))
        waiting = [asyncio.create_task(producer.result(sent)) for producer in (running.producer, running.producer, other)]
        await until(lambda: running.consumer.running == 1, "it runs")
        gate.set()
        assert await asyncio.gather(*waiting) == [{"total": 5}] * 3


async def test_who_is_cancelled_leaves_nothing_behind(valkey: Server):
    async with through(valkey.url) as producer:
        waiting = [asyncio.create_task(producer.result(f"medium-{at}-1")) for at in range(50)]
        await until(lambda: any(map(len, producer._waiters.values())), "they wait")
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        [waiter] = producer._waiters.values()
        assert len(waiter) == 0
        assert not waiter._waiting


async def test_a_producer_that_is_closed_ends_those_who_wait(valkey: Server):
    producer = through(valkey.url)
    waiting = asyncio.create_task(producer.result("medium-1-1", timeout_s=600))
    await until(lambda: any(map(len, producer._waiters.values())), "it waits")
    await producer.close()
    with pytest.raises(ConfigError, match="this Producer was closed"):
        await soon(waiting)
    with pytest.raises(ConfigError, match="this Producer is closed"):
        await producer.result("medium-1-1")


async def test_no_task_of_a_waiter_is_warned_of_where_a_loop_is_closed_by_hand(valkey: Server):
    raw = valkey.client()
    async with through(valkey.url) as producer:
        waiting = asyncio.create_task(producer.result("medium-1-1", timeout_s=600))
        await until(lambda: listeners(raw) == 1, "it waits")
        tasks = [task for task in asyncio.all_tasks() if "Waiter." in str(task.get_coro())]
        assert len(tasks) == 4
        assert not any(task._log_destroy_pending for task in tasks)  # pyright: ignore[reportAttributeAccessIssue]
        waiting.cancel()


# --- what goes wrong -----------------------------------------------------------------------------------------------------------


async def test_a_result_that_comes_while_the_subscription_is_broken_is_found_when_it_stands_again(server: Server, raw: Any):
    gate = asyncio.Event()
    running = worker(server.url, adding(gate=lambda: gate))
    async with running as worked, Proxy(server.socket) as proxy, through(proxy.url) as producer:
        sent = await producer.send(Add(5))
        waiting = asyncio.create_task(producer.result(sent, timeout_s=3600))
        await until(lambda: listeners(raw) == 1, "it listens")
        proxy.stall()
        proxy.reset()
        gate.set()
        await worked.settled()
        assert not waiting.done()
        proxy.calm()
        assert await soon(waiting) == {"total": 5}


async def test_a_subscription_that_has_become_deaf_is_given_up(valkey: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("runtime.store.connection.LISTEN_S", 0.1)
    gate = asyncio.Event()
    raw, running = valkey.client(), worker(valkey.url, adding(gate=lambda: gate))
    async with running, Proxy(valkey.socket) as proxy, through(proxy.url) as producer:
        sent = await producer.send(Add(5))
        waiting = asyncio.create_task(producer.result(sent, timeout_s=3600))
        await until(lambda: listeners(raw) == 1, "it listens")
        [waiter] = producer._waiters.values()
        reader = waiter._store._reader
        await until(lambda: reader.opened and not waiter._to_read and not reader._busy.locked(), "it has looked once")
        proxy.deafen()
        gate.set()
        assert await soon(waiting) == {"total": 5}


async def test_what_is_published_and_lost_is_found_all_the_same(valkey: Server, monkeypatch: pytest.MonkeyPatch):
    """A worker that is killed between the result and the message has told nobody."""
    monkeypatch.setattr("runtime.store.connection.LISTEN_S", 0.1)
    client: Any = valkey.client()
    async with through(valkey.url) as producer:
        waiting = asyncio.create_task(producer.result("medium-1-1", timeout_s=3600))
        await until(lambda: listeners(client) == 1, "it listens")
        client.set("{jobs}:results:medium-1-1", '{"state":"done","value":8}')
        assert await soon(waiting) == 8


async def test_who_waits_outlives_a_restart_of_the_server(request: pytest.FixtureRequest):
    server = Server("valkey", appendonly=True)
    request.addfinalizer(server.stop)
    client: Any = server.client()
    async with through(server.url) as producer:
        sent = await producer.send(Add(5))
        waiting = asyncio.create_task(producer.result(sent, timeout_s=3600))
        await until(lambda: listeners(client) == 1, "it listens")
        server.kill()
        server.start()
        async with worker(server.url, adding()):
            assert await soon(waiting) == {"total": 5}


async def test_without_redis_who_waits_is_told_so_at_the_end(request: pytest.FixtureRequest):
    server = Server("valkey")
    request.addfinalizer(server.stop)
    async with through(server.url, patience_s=0.6) as producer:
        server.kill()
        with pytest.raises(StoreUnavailable):
            await producer.result("medium-1-1", timeout_s=0.2)


async def test_a_result_for_which_there_is_no_memory_is_lost_and_told_and_its_job_is_done(
    server: Server, raw: Any, caplog: pytest.LogCaptureFixture
):
    gate = asyncio.Event()
    async with worker(server.url, adding(gate=lambda: gate)) as running:
        sent = await running.producer.send(Add(5))
        await until(lambda: running.consumer.running == 1, "it runs")
        raw.config_set("maxmemory", 1)
        gate.set()
        await running.settled()
        raw.config_set("maxmemory", 0)
        assert running.consumer.stats.unkept == 1
        assert "1 results could not be written, and their jobs are done: OOM" in caplog.text
        assert raw.xlen("{jobs}:medium") == 0
        with pytest.raises(ResultTimeout, match="it is not in the queue"):
            await running.producer.result(sent, timeout_s=0)


async def test_a_worker_who_may_not_publish_is_told_so_and_its_results_are_read(valkey: Server, caplog: pytest.LogCaptureFixture):
    client: Any = valkey.client()
    client.acl_setuser("mute", enabled=True, nopass=True, keys=["*"], categories=["+@all"], reset_channels=True)
    async with worker(f"{valkey.url}?username=mute&password=x", adding()) as running, through(valkey.url) as producer:
        sent = await producer.send(Add(5))
        await running.settled()
        assert "who waits for results was not told: NOPERM" in caplog.text
        assert running.consumer.stats.unkept == 0
        assert await producer.result(sent, timeout_s=0) == {"total": 5}


async def test_a_user_who_may_not_listen_reads_results_all_the_same(valkey: Server):
    client: Any = valkey.client()
    client.acl_setuser("deaf", enabled=True, nopass=True, keys=["*"], categories=["+@all"], reset_channels=True)
    async with worker(valkey.url, adding()) as running, through(f"{valkey.url}?username=deaf&password=x") as deaf:
        sent = await running.producer.send(Add(5))
        assert await deaf.result(sent) == {"total": 5}


# --- a crash -------------------------------------------------------------------------------------------------------------------


class Cut:
    """Relays to a server, until `left` bytes have reached it: then the line is cut, as that of a process that dies."""

    def __init__(self, target: str) -> None:
        self.left: float = float("inf")
        self.relay = Relay(target, self._serve)

    async def _serve(self, reader: Any, writer: Any, server_reader: Any, server_writer: Any) -> None:
        answers = asyncio.create_task(self._answer(server_reader, writer))
        while data := await reader.read(1 << 16):
            self.left -= len(data)
            server_writer.write(data[: len(data) + int(min(self.left, 0))])
            await server_writer.drain()
            if self.left <= 0:
                break
        server_writer.write_eof()
        await answers

    async def _answer(self, reader: Any, writer: Any) -> None:
        while data := await reader.read(1 << 16):
            if self.left > 0:
                writer.write(data)


async def test_wherever_a_flush_is_cut_no_job_is_gone_without_its_result(on_server: ServerKit):
    """At each third byte of it: a job that is acknowledged has a result, and one whose result is there may run again."""
    kit, store = on_server, on_server.streams()
    await store.start()
    seen: set[tuple[bool, bool]] = set()
    size, step = 1, 0
    while step < size:
        entry = kit.add()
        [job] = await leases(store)
        flush = batch(done=[job])
        flush.results = [Kept(job.id, b"[1,2]", 60_000)]
        cut = Cut(kit.server.socket)
        async with cut.relay as relay:
            cruel = Streams(f"unix://{relay.socket}", "jobs", ME, answer_s=5)
            await cruel.start()
            await cruel._writer.ready()
            flush.done[job.stream][0].run_id = cruel._writer.run_id
            cut.left = budget = 10_000 if step == 0 else step
            if step == 0:
                await cruel.settle(flush)
                size = int(budget - cut.left)
            else:
                with pytest.raises(StoreUnavailable):
                    await cruel.settle(flush)
            await cruel.close()
        is_gone, has_result = entry not in kit.ids(), bool(kit.raw.exists(f"{{jobs}}:results:{job.id}"))
        assert has_result or not is_gone, f"after {step} of {size} bytes"
        seen.add((is_gone, has_result))
        step += 3
        kit.clear()
        await store.start()
    assert seen == {(False, False), (False, True), (True, True)}


async def test_a_flush_that_is_repeated_writes_the_result_again_and_moves_nothing(kit: Any, store: Any):
    kit.add()
    [job] = await leases(store)
    flush = batch(done=[job])
    flush.results = [Kept(job.id, b"1", 60_000)]
    assert ((await store.settle(flush)).shortfall, (await store.settle(flush)).shortfall) == (0, 1)
    assert kit.results() == {job.id: 1}


async def test_a_letter_that_is_refused_tells_nobody_that_the_job_is_dead(kit: Any, store: Any, other: Any):
    """Another worker has it now, and may yet answer."""
    entry = kit.add(id="mine")
    [job] = await leases(store)
    kit.claim(entry, "other", 2)
    settled = await store.settle(batch(Letter(job, "attempts", "x", "", 1, "mine", result_ms=60_000)))
    assert (settled.refused, kit.results()) == (1, {})


async def test_a_death_is_told_under_the_id_of_the_message(kit: Any, store: Any):
    kit.add(id="mine")
    [job] = await leases(store)
    await store.settle(batch(Letter(job, "attempts", "x", "", 1, "high-1-1", result_ms=60_000)))
    assert kit.results() == {"mine": "attempts"}


# --- what cannot be kept -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("x" * 65_535, "BadResult: result of 65,537 bytes, the limit is 65,536; hint: store it elsewhere and return a reference"),
        (object(), "BadResult: the result cannot be written as JSON: Encoding objects of type object is unsupported"),
        ([1.5, float("nan")], "BadResult: the result holds NaN or infinity, which JSON cannot write"),
    ],
    ids=["large", "strange", "nan"],
)
async def test_what_cannot_be_kept_is_an_error_of_its_attempt(valkey: Server, answer: Any, told: str):
    @handler(Add, result_ttl_s=60, retry=ONCE)
    async def add(message: Add, job: Job) -> Any:
        return answer

    async with worker(valkey.url, add) as running:
        with pytest.raises(JobDead) as error:
            await running.producer.result(await running.producer.send(Add(1)))
        assert (error.value.reason, error.value.error, error.value.attempts) == ("attempts", told, 1)


async def test_who_waits_is_told_what_is_wrong_with_the_url():
    async with through("redis://127.0.0.1:nowhere") as producer:
        with pytest.raises(ConfigError, match="Redis URL 'redis://127.0.0.1:nowhere'"):
            await producer.result("medium-1-1", timeout_s=600)


def test_each_loop_has_a_subscription_of_its_own(valkey: Server):
    producer = Producer(valkey.url)
    raw: Any = valkey.client()
    raw.set("{jobs}:results:medium-1-1", '{"state":"done","value":8}')

    async def ask() -> object:
        return await producer.result("medium-1-1")

    assert [asyncio.run(ask()) for _ in range(2)] == [8, 8]
