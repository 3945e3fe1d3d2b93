"""The producer: what it stores, what it refuses, and that a lost reply never enqueues twice."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from runtime import BadPayload, Message, Priority, Producer, QueueFull, StoreAway, contract
from runtime.streams import Streams
from tests.proxy import Proxy
from tests.servers import Server

KEY = "{jobs}:high"


@contract("order", priority=Priority.HIGH)
class Order(msgspec.Struct, frozen=True, kw_only=True):
    n: int


@contract("note")
class Note(msgspec.Struct, frozen=True, kw_only=True):
    text: str


@pytest.fixture
async def producer(server: Server) -> AsyncIterator[Producer]:
    async with Producer.connect(server.url, source="shop") as opened:
        yield opened


async def test_a_message_lies_on_its_stream_as_any_client_would_have_written_it(producer, raw):
    sent = await producer.send(Order(n=1), exp=time.time() + 60, key="k", id="o-1", attempts=3, group="g")
    [(_, fields)] = raw.xrange(KEY)
    assert abs(int(fields.pop("exp")) - time.time() * 1000 - 60_000) < 5000
    assert fields == {"type": "order", "data": '{"n":1}', "id": "o-1", "key": "k", "attempts": "3", "group": "g", "src": "shop"}
    assert (sent.id, sent.new) == ("o-1", True)


async def test_without_an_id_the_sent_id_is_the_one_the_worker_will_see(producer, raw):
    sent = await producer.send_many([Message(payload=Order(n=n), priority=Priority(n % 4 + 1)) for n in range(40)])
    streams = ("critical", "high", "medium", "low")
    ids = {f"{name}-{entry}" for name in streams for entry, _ in raw.xrange(f"{{jobs}}:{name}")}
    assert {one.id for one in sent} == ids
    assert len(ids) == 40
    by_id = {f"{name}-{entry}": fields["data"] for name in streams for entry, fields in raw.xrange(f"{{jobs}}:{name}")}
    assert [by_id[one.id] for one in sent] == [f'{{"n":{n}}}' for n in range(40)]


async def test_ids_are_right_however_long_a_chunk_takes_the_server(producer, raw):
    """Redis 7.0 looks at the clock within a script: a large chunk spans milliseconds."""
    for _ in range(20):
        sent = await producer.send_many([Order(n=n) for n in range(500)])
        entries = [entry for entry, _ in raw.xrevrange(KEY, count=500)][::-1]
        assert [one.id for one in sent] == [f"high-{entry}" for entry in entries]


async def test_a_delayed_message_waits_among_the_delayed_jobs(producer, raw, server):
    sent = await producer.send(Order(n=1), delay_s=30)
    [(member, due)] = raw.zrange("{jobs}:due", 0, -1, withscores=True)
    assert member == sent.id
    assert abs(due - time.time() * 1000 - 30_000) < 5000
    raw.zadd("{jobs}:due", {member: 1})
    door = Streams(server.url, "jobs", "me")
    await door.start()
    assert (await door.promote(10, "0")).moved == 1
    await door.close()
    [(_, fields)] = raw.xrange(KEY)
    assert (fields["id"], fields["type"]) == (sent.id, "order")


async def test_a_second_message_with_the_key_of_a_live_one_is_not_new(producer, raw):
    first, second, third = await producer.send_many([Message(payload=Order(n=n), key="k") for n in range(2)] + [Order(n=3)])
    assert (first.new, second.new, third.new) == (True, False, True)
    assert not (await producer.send(Order(n=9), key="k", delay_s=5)).new
    assert raw.xlen(KEY) == 2


async def test_two_delayed_messages_with_one_id_are_two_jobs(producer, raw):
    await producer.send_many([Message(payload=Order(n=n), id="same", delay_s=10) for n in range(2)])
    assert raw.zcard("{jobs}:due") == raw.hlen("{jobs}:msg") == 2


async def test_send_many_tells_its_progress_and_keeps_the_order(producer, raw):
    heard: list[int] = []
    await producer.send_many((Order(n=n) for n in range(1234)), progress=heard.append)
    assert heard == [500, 1000, 1234]
    assert [fields["data"] for _, fields in raw.xrange(KEY)] == [f'{{"n":{n}}}' for n in range(1234)]


async def test_what_a_message_costs_does_not_grow_with_its_chunk(producer, raw):
    """Counted in function calls, since a clock says little on a busy machine."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    async def calls_of(messages: int) -> int:
        nonlocal calls
        calls = 0
        sys.setprofile(count)
        try:
            await producer.send_many(Order(n=1) for _ in range(messages))
        finally:
            sys.setprofile(None)
        return calls

    await calls_of(1)  # the connection is made, the script loaded
    few, many = await calls_of(100), await calls_of(500)
    assert many < 6 * few


async def test_large_messages_make_small_chunks(producer, raw):
    heard: list[int] = []
    await producer.send_many((Note(text="x" * 250_000) for _ in range(9)), progress=heard.append)
    assert heard == [4, 8, 9]  # a chunk is one script call of a megabyte at most


async def test_sends_of_concurrent_tasks_share_round_trips_and_each_gets_its_own_answer(producer, raw):
    sent = await asyncio.gather(*[producer.send(Order(n=n), id=f"o-{n}") for n in range(300)])
    assert [one.id for one in sent] == [f"o-{n}" for n in range(300)]
    assert raw.xlen(KEY) == 300
    assert len(raw.keys("{jobs}:seen:c:*")) <= 3


@pytest.mark.parametrize("cut_at_bytes", [0, 2, 9])
async def test_a_lost_reply_does_not_enqueue_twice_and_the_answer_is_the_first_one(server, raw, cut_at_bytes):
    async with Proxy(server.socket) as proxy, Producer.connect(proxy.url) as producer:
        await producer.send(Order(n=0))
        proxy.drop_next_reply(b"EVALSHA", cut_at_bytes)
        sent = await producer.send_many([Order(n=n) for n in range(1, 100)])
        assert proxy.dropped == 1
    assert raw.xlen(KEY) == 100
    assert [one.id for one in sent] == [f"high-{entry}" for entry, _ in raw.xrange(KEY)][1:]


async def test_full_memory_is_a_typed_error_and_nothing_is_written(producer, raw):
    raw.config_set("maxmemory", 1)
    with pytest.raises(QueueFull):
        await producer.send(Order(n=1))
    raw.config_set("maxmemory", 0)
    assert raw.xlen(KEY) == 0
    await producer.send(Order(n=1))


async def test_a_chunk_that_failed_in_the_middle_is_not_taken_for_sent(server, raw):
    """One stream cannot be written: the chunk fails, and its repeat fails again instead of being called a copy."""
    raw.set("{jobs}:low", "a string in a stream's place")
    async with Producer.connect(server.url, patience_s=0.3) as producer:
        with pytest.raises(StoreAway, match="WRONGTYPE"):
            await producer.send_many([Order(n=1), Message(payload=Order(n=2), priority=Priority.LOW)])


async def test_what_stands_behind_a_chunk_that_failed_is_not_stored(server, raw):
    """Chunks wait in a queue while the one before is stored: whoever sends the rest again must not find it stored already."""
    raw.set("{jobs}:low", "a string in a stream's place")
    messages = [Message(payload=Order(n=n), priority=Priority.LOW if n == 700 else Priority.HIGH) for n in range(3000)]
    told: list[int] = []
    async with Producer.connect(server.url, patience_s=0.3) as producer:
        with pytest.raises(StoreAway, match="WRONGTYPE"):
            await producer.send_many(messages, progress=told.append)
        await producer.send(Note(text="the way is open for others"))
    assert told == [500]
    assert [msgspec.json.decode(fields["data"])["n"] for _, fields in raw.xrange(KEY)][-1] < 700, "nothing behind the failed one"


async def test_a_server_that_is_not_there_is_a_typed_error():
    async with Producer.connect("redis://127.0.0.1:1", patience_s=0.2) as producer:
        with pytest.raises(StoreAway, match=r"127\.0\.0\.1:1"):
            await producer.send(Order(n=1))


@pytest.mark.parametrize(
    "options",
    [
        {"id": "a b"},
        {"id": "x" * 129},
        {"delay_s": -1.0},
        {"at": -5.0},
        {"at": float("nan")},
        {"exp": 1e300},
        {"key": "k" * 600},
        {"attempts": -1},
    ],
)
async def test_an_option_that_cannot_be_sent_is_refused_before_anything_is_written(producer, raw, options):
    with pytest.raises(BadPayload):
        await producer.send(Order(n=1), **options)
    assert raw.keys("*") == []


async def test_a_text_that_is_no_utf_8_is_refused_and_harms_nobody_else(producer, raw):
    bad, good = await asyncio.gather(producer.send(Order(n=1), group="\udcff"), producer.send(Order(n=2)), return_exceptions=True)
    assert isinstance(bad, BadPayload)
    assert good.new
    await producer.send(Order(n=3))
    assert raw.xlen(KEY) == 2


async def test_a_payload_that_cannot_be_sent_is_refused(producer, raw):
    @contract("big")
    class Big(msgspec.Struct):
        text: str

    class Plain(msgspec.Struct):
        n: int

    with pytest.raises(BadPayload, match="limit"):
        await producer.send(Big(text="x" * 300_000))
    with pytest.raises(BadPayload, match="no contract"):
        await producer.send(Plain(n=1))
    with pytest.raises(BadPayload):
        await producer.send_many([Order(n=1), Order(n=object())])  # type: ignore[arg-type]
    assert raw.xlen(KEY) == 0


async def test_a_password_is_never_shown():
    producer = Producer.connect("redis://user:geheim@127.0.0.1:1", patience_s=0.1)
    assert "geheim" not in repr(producer)
    async with producer:
        with pytest.raises(StoreAway) as caught:
            await producer.send(Order(n=1))
    assert "geheim" not in str(caught.value)
