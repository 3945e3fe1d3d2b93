"""Contracts that name a queue: their messages go there from any producer, and only its workers run them."""

from __future__ import annotations

import json

import msgspec
import pytest

from runtime import (
    ConfigError,
    Job,
    Message,
    PartlySent,
    Priority,
    Producer,
    Schedule,
    SyncProducer,
    contract,
    handler,
)
from runtime.control import Control
from runtime.sent import JobsSent
from runtime.testing import FakeProducer, Retry, run, worker
from tests.servers import Server


@contract("receipt")
class Receipt(msgspec.Struct):
    n: int


@contract("report", queue="reports", priority=Priority.LOW)
class Report(msgspec.Struct):
    n: int


@handler(Receipt)
async def receipt(message: Receipt, job: Job) -> None:
    job.send(Report(n=message.n))


@handler(Receipt, runs="process")
def receipt_in_child(message: Receipt, job: Job) -> None:
    job.send(Report(n=message.n))


@handler(Report, result_ttl_s=60)
async def report(message: Report, job: Job) -> int:
    job.send(Report(n=0), suffix="next") if message.n > 1 else None
    return message.n


async def test_a_message_goes_where_its_contract_says_from_any_producer(valkey: Server):
    raw = valkey.client()
    async with Producer(valkey.url, queue="mails") as producer:
        sent = [await producer.send(Receipt(1)), await producer.send(Report(2)), await producer.send(Report(3), key="k")]
        folded = await producer.send(Report(4), key="k", priority="high")
        sent += await producer.send_many([Receipt(5), Message(payload=Report(6), delay_s=60)])
    assert [one.queue for one in sent] == ["", "reports", "reports", "", "reports"]
    assert (folded.id, folded.new, folded.queue) == (sent[2].id, False, "reports")
    assert [json.loads(fields["data"])["n"] for _, fields in raw.xrange("{mails}:medium")] == [1, 5]
    assert [json.loads(fields["data"])["n"] for _, fields in raw.xrange("{reports}:low")] == [2, 3]
    assert raw.zcard("{reports}:due") == 1
    assert not raw.exists("{jobs}:medium", "{jobs}:low", "{mails}:low", "{mails}:due")


async def test_many_for_several_queues_are_told_of_in_their_order(valkey: Server):
    """Nothing behind a chunk that fails is sent, in whichever queue."""
    raw = valkey.client()
    async with Producer(valkey.url) as producer:
        mixed = [(Report if n // 700 % 2 else Receipt)(n) for n in range(2100)]
        sent = await producer.send_many(mixed)
        assert [one.queue for one in sent] == ["reports" if isinstance(one, Report) else "" for one in mixed]
        numbers = {
            f"{stream}-{entry}": json.loads(fields["data"])["n"]
            for queue, stream in (("jobs", "medium"), ("reports", "low"))
            for entry, fields in raw.xrange(f"{{{queue}}}:{stream}")
        }
        assert [numbers[one.id] for one in sent] == list(range(2100))
        raw.flushdb()
        raw.set("{reports}:low", "no stream")
        with pytest.raises(PartlySent) as caught:
            await producer.send_many([Receipt(1), Report(2), Message(payload=Report(3), priority="high"), Receipt(4)])
    assert [one is not None for one in caught.value.sent] == [True, False, True]
    assert raw.xlen("{jobs}:medium") == raw.xlen("{reports}:high") == 1


async def test_a_result_is_waited_for_in_the_queue_of_its_job(valkey: Server):
    async with worker(valkey.url, report, queue="reports"), Producer(valkey.url) as producer:
        assert await producer.result(await producer.send(Report(1))) == 1
        sent = await producer.send(Report(7))
        assert await producer.result(sent, type=int) == 7
        async with Producer(valkey.url, queue="reports") as own:
            assert await own.result(sent.id) == 7


def test_from_plain_code_too(valkey: Server):
    with SyncProducer(valkey.url) as producer:
        assert producer.send(Report(1)).queue == "reports"
    assert valkey.client().xlen("{reports}:low") == 1


def test_what_was_sent_is_looked_for_where_it_went(valkey: Server):
    with SyncProducer(valkey.url) as producer:
        producer.send_many([Receipt(1), Report(2)])
    sent = JobsSent(valkey.url)
    assert (sent(Receipt), sent(Report)) == ([Receipt(1)], [Report(2)])


async def test_a_fake_says_where_it_would_have_gone():
    async with FakeProducer() as producer:
        assert [(await producer.send(one)).queue for one in (Receipt(1), Report(1))] == ["", "reports"]


WORDS = "report is of queue reports, and what this job hands on stays in its own, jobs; hint: await a Producer's send"


@pytest.mark.parametrize("handled", [receipt, receipt_in_child], ids=["loop", "process"])
async def test_a_job_hands_nothing_on_to_another_queue(valkey: Server, handled):
    async with worker(valkey.url, handled) as here:
        sent = await here.producer.send(Receipt(1), attempts=1)
        await here.settled()
        [letter] = await here.dead_letters()
    assert (letter.id, letter.attempts) == (sent.id, 1)
    assert WORDS in letter.error
    assert not valkey.client().keys("{reports}:*")


async def test_a_test_of_one_run_says_so_too():
    outcome = await run(receipt, Receipt(1))
    assert isinstance(outcome, Retry)
    assert WORDS in str(outcome)
    assert not isinstance(await run(report, Report(2)), Retry), "within its queue it may"


async def test_a_worker_in_a_test_is_one_of_the_queue_of_its_handlers(valkey: Server):
    with pytest.raises(
        ConfigError, match=r"report is of queue reports, and this worker of queue jobs; hint: worker\(…, queue='rep"
    ):
        async with worker(valkey.url, receipt, report):
            pass


async def test_a_schedule_is_one_of_the_queue_of_its_message(valkey: Server):
    nightly, hourly = Schedule("nightly", "@daily", Report(1)), Schedule("hourly", "@hourly", Receipt(1))
    for queue, names in (("jobs", {"hourly"}), ("reports", {"hourly", "nightly"})):
        async with Control(valkey.url, queue, schedules=[nightly, hourly]) as control:
            assert set((await control.schedules()).in_force) == names
    async with Control(valkey.url) as control:
        with pytest.raises(ConfigError, match="schedule 'nightly': report is of queue reports, and this is queue jobs"):
            await control.add_schedule(nightly)
