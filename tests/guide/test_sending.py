"""How to test what an application sends: what stands in the queue afterwards, and a producer that needs no Redis."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import msgspec
import pytest

from runtime import (
    BadPayload,
    BadResult,
    ConfigError,
    Job,
    JobDead,
    Message,
    Priority,
    Producer,
    ResultTimeout,
    Secret,
    Sent,
    StoreUnavailable,
    SyncProducer,
    contract,
    handler,
)
from runtime.testing import Clock, FakeProducer, FakeSyncProducer, JobsSent, SentMessage, run, until


@contract("post-parcel", priority=Priority.HIGH)
class PostParcel(msgspec.Struct, frozen=True, kw_only=True):
    order: int
    to: str = "Ada"


@contract("print-label")
class PrintLabel(msgspec.Struct, frozen=True, kw_only=True):
    order: int
    token: Annotated[str, Secret] = ""


@contract("write-report", queue="reports")
class WriteReport(msgspec.Struct, frozen=True, kw_only=True):
    order: int


@handler(PostParcel)
async def post(message: PostParcel, job: Job) -> None:
    """Hang, so that the job is fetched and not done."""
    await asyncio.Event().wait()


async def place_order(producer: Producer, order: int) -> str:
    """Do what a service does: it takes a Producer, and is given the real one or the fake."""
    await producer.send(PrintLabel(order=order))
    sent = await producer.send(PostParcel(order=order), key=f"order-{order}", delay_s=60, group="ada")
    return sent.id


# --- what stands in the queue ------------------------------------------------------------------------------------------------


async def test_what_was_sent_is_asked_for_by_its_contract(jobs_url: str, jobs_sent: JobsSent) -> None:
    """`jobs_sent(Contract)` returns payloads, in the order in which they were sent, also those for later."""
    assert jobs_sent(PostParcel) == []
    async with Producer.connect(jobs_url) as producer:
        for order in (7, 8):
            await place_order(producer, order)
    assert jobs_sent(PostParcel) == [PostParcel(order=7), PostParcel(order=8)]
    assert jobs_sent(PrintLabel) == [PrintLabel(order=7), PrintLabel(order=8)]


async def test_a_message_has_all_that_was_said_when_it_was_sent(jobs_url: str, jobs_sent: JobsSent) -> None:
    """`jobs_sent.messages`: of a contract, or of all."""
    before_s = time.time()
    async with Producer.connect(jobs_url) as producer:
        job_id = await place_order(producer, 7)
        await producer.send(PostParcel(order=9), id="nine", exp=4_000_000_000 // 2, attempts=3, priority="low")
    nine, parcel = jobs_sent.messages(PostParcel)  # what is delayed comes last
    assert (parcel.payload, parcel.type, parcel.id) == (PostParcel(order=7), "post-parcel", job_id)
    assert (parcel.priority, parcel.key, parcel.group) == (Priority.HIGH, "order-7", "ada")
    assert before_s + 59 < parcel.at < time.time() + 61
    assert (nine.id, nine.priority, nine.exp, nine.attempts, nine.at) == ("nine", Priority.LOW, 2_000_000_000, 3, 0)
    assert [(one.type, one.payload["order"]) for one in jobs_sent.messages()] == [
        ("print-label", 7), ("post-parcel", 9), ("post-parcel", 7),
    ]  # fmt: skip


async def test_many_of_one_millisecond_are_in_order(jobs_url: str, jobs_sent: JobsSent) -> None:
    """Also those that wait for a time; large payloads too, which Redis by itself keeps in no order."""
    async with Producer.connect(jobs_url) as producer:
        for at in (None, time.time() + 60):
            await producer.send_many(Message(payload=PostParcel(order=n, to="x" * 100), at=at) for n in range(100))
    now, later = jobs_sent(PostParcel)[:100], jobs_sent(PostParcel)[100:]
    assert [one.order for one in now] == [one.order for one in later] == list(range(100))


async def test_what_a_worker_has_fetched_and_not_done_was_sent_too(jobs_worker: Any, jobs_sent: JobsSent) -> None:
    """What is done is not there any more: so ask while no worker runs, or with handlers that wait."""
    async with jobs_worker(post, grace_s=0) as worker:
        await worker.producer.send(PostParcel(order=7))
        await until(lambda: worker.consumer.running == 1, "it runs")
        assert jobs_sent(PostParcel) == [PostParcel(order=7)]


async def test_a_dropped_duplicate_was_not_sent(jobs_url: str, jobs_sent: JobsSent) -> None:
    """What replaces a job that waits is there once, with what was said last."""
    async with Producer.connect(jobs_url) as producer:
        for order in (1, 2):
            await producer.send(PostParcel(order=order), key="k")
            await producer.send(PrintLabel(order=order), key="l", delay_s=60)
    assert jobs_sent(PostParcel) == [PostParcel(order=1)]
    assert jobs_sent(PrintLabel) == [PrintLabel(order=2)]


async def test_a_queue_has_its_own(jobs_url: str, jobs_sent: JobsSent) -> None:
    """`queue` names another one; `JobsSent` is what a test without pytest makes for itself."""
    async with Producer.connect(jobs_url, queue="reports") as producer:
        await producer.send(PostParcel(order=7))
    assert jobs_sent(PostParcel) == []
    assert jobs_sent(PostParcel, queue="reports") == JobsSent(jobs_url, "reports")(PostParcel) == [PostParcel(order=7)]


async def test_what_no_worker_could_read_fails_the_test(jobs_url: str, jobs_sent: JobsSent) -> None:
    """A field of another type is sent as it is, and would be a dead letter."""
    async with Producer.connect(jobs_url) as producer:
        await producer.send_packed([packed_as("post-parcel", b'{"order":"x"}')])
        with pytest.raises(AssertionError, match=r"a post-parcel was sent that no handler can read, high-.*: Expected `int`"):
            jobs_sent(PostParcel)
        assert jobs_sent(PrintLabel) == []
        assert [one.payload for one in jobs_sent.messages()] == [{"order": "x"}]
        await producer.send_packed([packed_as("print-label", b"no JSON")])
        with pytest.raises(AssertionError, match=r"a print-label was sent that no handler can read"):
            jobs_sent.messages()


def packed_as(type_name: str, data: bytes) -> Any:
    """Return a message as another language may write it."""
    from runtime.jobs import Options
    from runtime.packing import Packer

    return Packer(time.time).pack_raw(type_name, data, Options(), 1, Priority.HIGH)


def test_it_is_asked_in_plain_code(jobs_url: str, jobs_sent: JobsSent) -> None:
    """A test that is no coroutine may ask, and a message that can never run is named by its place."""

    async def send() -> None:
        async with Producer.connect(jobs_url) as producer:
            packed = packed_as("post-parcel", b"{}")
            head = msgspec.structs.replace(packed.head, fields=(b"v", "x", *packed.head.fields))
            await producer.send_packed([msgspec.structs.replace(packed, head=head)])

    asyncio.run(send())
    with pytest.raises(AssertionError, match=r"a message was sent that can never run, high/\d+-0: `v` is not a whole number"):
        jobs_sent(PostParcel)
    assert repr(jobs_sent) == "<JobsSent to jobs>"


def test_a_server_that_is_away_is_said(tmp_path: Any) -> None:
    """As by every other call."""
    with pytest.raises(StoreUnavailable):
        JobsSent(f"unix://{tmp_path}/no.sock")(PostParcel)


# --- a producer without Redis ------------------------------------------------------------------------------------------------


async def test_a_fake_producer_keeps_what_it_is_given() -> None:
    """`sent` are the payloads, `messages` all that was said of them; it is a Producer to whoever takes one."""
    clock = Clock(1_800_000_000)
    async with FakeProducer(clock=clock) as producer:
        job_id = await place_order(producer, 7)
        assert producer.sent == [PrintLabel(order=7), PostParcel(order=7)]
        assert producer.messages[1] == SentMessage(
            type="post-parcel",
            payload=PostParcel(order=7),
            data=b'{"order":7,"to":"Ada"}',
            id=job_id,
            priority=Priority.HIGH,
            at=1_800_000_060,
            key="order-7",
            group="ada",
            queue="jobs",
        )
        assert repr(producer) == "<FakeProducer of 2 messages>"
        producer.clear()
        assert producer.sent == []


async def test_a_fake_producer_checks_as_the_real_one_and_reads_back() -> None:
    """What the real one refuses, and what no handler could read, is BadPayload."""
    producer = FakeProducer()
    wrong: Any = PostParcel(order="x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadPayload, match=r"post-parcel: .*Expected `int`, got `str` - at `\$\.order`"):
        await producer.send(wrong)
    with pytest.raises(BadPayload, match=r"post-parcel: .*Expected `int`"):
        await producer.send_many([PostParcel(order=1), wrong])
    with pytest.raises(BadPayload, match="the limit is"):
        await producer.send(PostParcel(order=1, to="x" * 300_000))
    with pytest.raises(BadPayload, match="priority must be"):
        await producer.send(PostParcel(order=1), priority="urgent")
    with pytest.raises(ConfigError, match="durability"):
        await producer.send(PostParcel(order=1), durability="often")
    assert producer.sent == []
    await producer.send(PrintLabel(order=1, token="t"))
    assert producer.sent[-1] == PrintLabel(order=1, token="t")
    await producer.close()
    with pytest.raises(ConfigError, match="closed"):
        await producer.send(PrintLabel(order=1))


async def test_many_are_kept_in_order() -> None:
    """`send_many` with its progress and its options, from any iterable."""
    producer, told = FakeProducer(), list[int]()
    sent = await producer.send_many((PrintLabel(order=n) for n in range(1001)), progress=told.append)
    assert producer.sent == [PrintLabel(order=n) for n in range(1001)]
    assert (len({one.id for one in sent}), told[-1]) == (1001, 1001)
    await producer.send_many([Message(payload=PrintLabel(order=0), id="zero")])
    assert producer.messages[-1].id == "zero"


async def test_a_key_lives_until_the_list_is_cleared() -> None:
    """As where no worker runs; `clear` is as if all were done."""
    producer = FakeProducer()
    first = await producer.send(PostParcel(order=1), key="k")
    again = await producer.send(PostParcel(order=2), key="k")
    assert (first.new, again.new, again.id) == (True, False, first.id)
    assert not (await producer.send(PrintLabel(order=1), key="k")).new, "a key is the queue's, as on a server"
    assert producer.sent == [PostParcel(order=1)]
    producer.clear()
    assert (await producer.send(PostParcel(order=2), key="k")).new


@pytest.mark.parametrize(("keep", "left"), [("", 2), ("last", 2), ("first", 1)])
async def test_what_waits_for_a_time_is_replaced(keep: str, left: int) -> None:
    """Debounce, as docs/produce.md has it."""
    producer = FakeProducer()
    first = await producer.send(PostParcel(order=1), key="k", delay_s=60)
    again = await producer.send(PostParcel(order=2), key="k", delay_s=60, keep=keep)
    assert (again.new, again.id) == (False, first.id)
    assert producer.sent == [PostParcel(order=left)]
    await producer.send(PostParcel(order=3), key="k")
    assert producer.sent == [PostParcel(order=left)], "one for now replaces nothing"


@pytest.mark.parametrize("keep", ["", "first"])
async def test_one_that_waits_behind_one_that_does_not_is_a_job_of_its_own(keep: str, jobs_url: str, jobs_sent: JobsSent) -> None:
    """No change is lost: the fake says the same of it as a server."""
    async with Producer.connect(jobs_url) as real, FakeProducer() as fake:
        for producer in (real, fake):
            await producer.send(PostParcel(order=1), key="k")
            sent = await producer.send(PostParcel(order=2), key="k", delay_s=60, keep=keep)
            assert sent.new == (not keep)
            assert not (await producer.send(PrintLabel(order=1), key="k", delay_s=60)).new, "it is another type's"
    assert fake.sent == jobs_sent(PostParcel) == [PostParcel(order=1), PostParcel(order=2)][: 1 if keep else 2]


def test_plain_code_has_a_fake_of_its_own() -> None:
    """For Flask, Django and `def` endpoints, which take a SyncProducer: `fake` is a FakeProducer, with all that it has."""

    def place(producer: SyncProducer) -> Sent:
        return producer.send(PrintLabel(order=7), key="k")

    with FakeSyncProducer() as producer:
        sent = place(producer)
        assert not place(producer).new
        producer.send_many([PostParcel(order=8)])
        assert producer.fake.sent == [PrintLabel(order=7), PostParcel(order=8)]
        producer.fake.answer(sent, {"pages": 1})
        assert producer.result(sent) == {"pages": 1}
        producer.fake.error = StoreUnavailable("no answer")
        with pytest.raises(StoreUnavailable):
            place(producer)
    assert repr(producer) == "<FakeSyncProducer of 2 messages>"


async def test_where_a_contract_names_its_queue_it_is_looked_for_there(jobs_url: str, jobs_sent: JobsSent) -> None:
    """`queue` of a message says where it went; a key is one of its queue."""
    async with Producer.connect(jobs_url) as real, FakeProducer() as fake:
        for producer in (real, fake):
            for payload in (PrintLabel(order=7), WriteReport(order=7)):
                assert (await producer.send(payload, key="k")).new
    assert jobs_sent(WriteReport) == [WriteReport(order=7)]
    assert [one.queue for one in [*jobs_sent.messages(PrintLabel), *jobs_sent.messages(WriteReport)]] == ["jobs", "reports"]
    assert [one.queue for one in fake.messages] == ["jobs", "reports"]


async def test_results_are_what_the_test_has_set() -> None:
    """Of one job, or of each of a contract; without one nothing is waited for."""
    producer = FakeProducer()
    sent = await producer.send(PrintLabel(order=7))
    with pytest.raises(ResultTimeout, match="told none; hint: producer.answer"):
        await producer.result(sent, timeout_s=30)
    producer.answer(PrintLabel, {"pages": 1})
    assert await producer.result(sent.id) == {"pages": 1}
    producer.answer(sent, PrintLabel(order=3))
    assert await producer.result(sent, type=PrintLabel) == PrintLabel(order=3)
    with pytest.raises(BadResult, match="the result is no int"):
        await producer.result(sent, type=int)
    producer.answer("order-9", JobDead("no-paper", "the tray is empty", 3))
    with pytest.raises(JobDead, match="no-paper: the tray is empty") as dead:
        await producer.result("order-9")
    assert dead.value.attempts == 3


async def test_a_producer_whose_redis_is_away_can_be_played() -> None:
    """`error` is what each send raises."""
    producer = FakeProducer()
    producer.error = StoreUnavailable("no answer")
    with pytest.raises(StoreUnavailable):
        await place_order(producer, 7)
    with pytest.raises(StoreUnavailable):
        await producer.send_many([PrintLabel(order=1)])
    producer.error = None
    await place_order(producer, 7)


async def test_what_a_handler_sends_by_its_producer_is_seen() -> None:
    """A handler of the application takes the producer of its module: a test puts the fake there."""
    producer = FakeProducer()

    @handler(PrintLabel)
    async def label(message: PrintLabel, job: Job) -> None:
        await producer.send(PostParcel(order=message.order), id=job.work)

    await run(label, PrintLabel(order=7))
    assert producer.sent == [PostParcel(order=7)]
