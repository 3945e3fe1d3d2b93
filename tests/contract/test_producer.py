"""The producer: what it stores, what it refuses, and that a lost reply never enqueues twice."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pytest
import redis

from runtime import (
    BadPayload,
    ConfigError,
    Message,
    NotDurable,
    PartlySent,
    Priority,
    Producer,
    QueueFull,
    Secret,
    Sent,
    StoreError,
    StoreUnavailable,
    SyncProducer,
    contract,
)
from runtime.codec import decode_many
from runtime.jobs import Batch, Head, Packed
from runtime.sender import SENT
from runtime.store.connection import KEEPALIVE, Connection
from runtime.streams import Streams
from tests.proxy import Proxy, Reader, Relay, Writer
from tests.servers import Server, free_ports, wait_until

KEY = "{jobs}:high"


@contract("order", priority=Priority.HIGH)
class Order(msgspec.Struct, frozen=True, kw_only=True):
    n: int


@contract("note")
class Note(msgspec.Struct, frozen=True, kw_only=True):
    text: str


class LikeANumber:
    """Compares like one, as numbers of other libraries do."""

    def __lt__(self, other: object) -> bool:
        return False

    __le__ = __gt__ = __ge__ = __lt__


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
    store = Streams(server.url, "jobs", "me")
    await store.start()
    assert (await store.promote(10, "0")).moved == 1
    await store.close()
    [(_, fields)] = raw.xrange(KEY)
    assert (fields["id"], fields["type"]) == (sent.id, "order")


async def test_a_second_message_with_the_key_of_a_live_one_is_not_new(producer, raw):
    first, second, third = await producer.send_many([Message(payload=Order(n=n), key="k") for n in range(2)] + [Order(n=3)])
    assert (first.new, second, third.new) == (True, Sent(first.id, new=False), True)
    assert not (await producer.send(Order(n=9), key="k", delay_s=5, keep="first")).new
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


def broken_low(raw: redis.Redis) -> None:
    raw.set("{jobs}:low", "a string in a stream's place")


def without_a_free_id(raw: redis.Redis) -> None:
    raw.xadd("{jobs}:low", {"a": "b"}, id="18446744073709551615-18446744073709551615")


def broken_due(raw: redis.Redis) -> None:
    raw.set("{jobs}:due", "a string in the place of the times")


@pytest.mark.parametrize(
    ("break_it", "options"),
    [
        (broken_low, {"priority": Priority.LOW}),
        (without_a_free_id, {"priority": Priority.LOW}),
        (broken_due, {"delay_s": 60.0}),
    ],
)
async def test_a_message_that_cannot_be_stored_is_its_senders_error_and_nobody_elses(server, raw, break_it, options):
    break_it(raw)
    async with Producer.connect(server.url) as producer:
        before, bad, behind = await asyncio.gather(
            producer.send(Order(n=1)), producer.send(Order(n=2), **options), producer.send(Order(n=3)), return_exceptions=True
        )
    assert isinstance(bad, StoreError)
    assert [f"high-{entry}" for entry, _ in raw.xrange(KEY)] == [before.id, behind.id], "each once, and nothing between them"
    assert raw.hlen("{jobs}:msg") == 0
    assert len(raw.keys("{jobs}:seen:c:*")) == 1, "one call, which was not repeated"


@pytest.mark.parametrize("options", [{"priority": Priority.LOW}, {"key": "k", "delay_s": 60.0}])
async def test_a_repeated_chunk_of_which_some_were_refused_answers_the_same_and_stores_nothing_again(server, raw, options):
    broken_low(raw)
    broken_due(raw)
    before = SENT.read()
    async with Proxy(server.socket) as proxy, Producer.connect(proxy.url) as producer:
        await producer.send(Order(n=0))
        proxy.drop_next_reply(b"EVALSHA")
        sent, bad = await asyncio.gather(producer.send(Order(n=1)), producer.send(Order(n=2), **options), return_exceptions=True)
        assert proxy.dropped == 1
    assert isinstance(bad, StoreError)
    assert SENT.read()["stored"] == before["stored"] + 2, "what is answered a second time is counted once"
    assert [f"high-{entry}" for entry, _ in raw.xrange(KEY)][1:] == [sent.id]


async def test_what_a_stranger_has_put_in_the_place_of_a_key_is_no_job(producer, raw):
    raw.sadd("{jobs}:seen:k:k", "x")
    assert (await producer.send(Order(n=1), key="k")).new
    assert not (await producer.send(Order(n=2), key="k")).new


async def test_of_many_the_error_says_what_became_of_each_and_nothing_behind_its_chunk_is_stored(server, raw):
    """Chunks wait in a queue while the one before is stored: what its sender sends again must not be stored already."""
    broken_low(raw)
    messages = [Message(payload=Order(n=n), priority=Priority.LOW if n == 700 else Priority.HIGH) for n in range(3000)]
    told: list[int] = []
    before = SENT.read()
    async with Producer.connect(server.url) as producer:
        with pytest.raises(PartlySent, match="WRONGTYPE") as caught:
            await producer.send_many(messages, progress=told.append)
        await producer.send(Note(text="the way is open for others"))
        await producer.send(Note(text="one"), key="k")
        await producer.send(Note(text="two"), key="k")
    assert told == [500]
    assert {name: n - before[name] for name, n in SENT.read().items()} == {"stored": 1001, "duplicate": 1, "refused": 1}
    stored = {f"high-{entry}": msgspec.json.decode(fields["data"])["n"] for entry, fields in raw.xrange(KEY)}
    assert list(stored.values()) == [n for n in range(1000) if n != 700]
    assert [stored[sent.id] if sent else None for sent in caught.value.sent] == [n if n != 700 else None for n in range(1000)]


async def test_a_chunk_that_fails_while_the_next_one_is_packed_is_the_last_one(server, raw):
    broken_low(raw)

    async def slow_source() -> AsyncIterator[Message]:
        for n in range(2000):
            if n == 990:  # by now the chunk before is refused, and this one is not handed over yet
                while not raw.xlen(KEY):
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)
            yield Message(payload=Order(n=n), priority=Priority.LOW if n == 1 else Priority.HIGH)

    async with Producer.connect(server.url) as producer:
        with pytest.raises(PartlySent) as caught:
            await producer.send_many(slow_source())
    assert len(caught.value.sent) == 500
    assert raw.xlen(KEY) == 499


async def test_what_redis_refuses_as_a_whole_is_told_when_the_patience_is_over(server, raw):
    raw.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all", "-evalsha")
    async with Producer.connect(f"{server.url}?username=reader&password=secret", patience_s=0.3) as producer:
        with pytest.raises(StoreUnavailable, match="NOPERM"):
            await producer.send(Order(n=1))
    raw.execute_command("ACL", "DELUSER", "reader")


async def test_a_server_that_is_not_there_is_a_typed_error():
    async with Producer.connect("redis://127.0.0.1:1", patience_s=0.2) as producer:
        with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
            await producer.send(Order(n=1))


class Broken(tzinfo):
    """A time zone that raises."""

    def utcoffset(self, _: Any) -> timedelta:
        raise RuntimeError("no offset")


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
        *({"keep": wrong} for wrong in ("both", 1, None, b"last", "first", "last")),  # of the last two there is no key
        *({"attempts": wrong} for wrong in (-1, 0, True, 1.5, "3", Decimal(3), 2**60, LikeANumber())),
        *({"delay_s": wrong} for wrong in (True, "x", None, float("inf"), Decimal(3), 10**5000, LikeANumber())),
        *({"at": wrong} for wrong in (True, "x", b"1", 2**60, LikeANumber())),
        *({"exp": wrong} for wrong in (True, "x", 2**60, LikeANumber())),
        *({"priority": wrong} for wrong in (0, 5, -1, True, "urgent", "", b"high", 2.0)),
        *({"key": wrong} for wrong in (5, b"", b"k", False, ["k"], "\udcff")),
        *({"id": wrong} for wrong in (5, b"i", 0, "i\n", "\udcff")),
        *({"group": wrong} for wrong in (5, b"", LikeANumber())),
    ],
)
async def test_an_option_that_cannot_be_sent_is_refused_before_anything_is_written(options):
    """And before a connection is opened: there is no server here. `send_many` raises the same."""
    [name] = options
    async with Producer.connect("unix:///no/such/server", patience_s=60) as producer:
        with pytest.raises(BadPayload, match=name):
            await producer.send(Order(n=1), **options)
        with pytest.raises(BadPayload, match=name):
            await producer.send_many([Message(payload=Order(n=1), **options)])


NOW_S = time.time()


def lift(version: int, payload: Any) -> Any:
    raise AssertionError("a payload of today is no older one")


@contract("login", version=2, upcast=lift)
class Login(msgspec.Struct, kw_only=True):
    """Has a secret, an annotation that decoding alone looks at, and code of its own."""

    name: Annotated[str, msgspec.Meta(min_length=2)]
    password: Annotated[str, Secret] = ""
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.name == "nobody":
            raise ValueError("somebody")


async def test_what_no_handler_could_read_is_found_by_a_producer_that_checks(valkey):
    raw, wrong = valkey.client(), Order(n="x")  # type: ignore[arg-type]
    nobody = Login(name="somebody")
    nobody.name = "nobody"
    async with Producer(valkey.url, check=True) as producer:
        for message, text in (
            (wrong, r"order: Expected `int`, got `str` - at `\$\.n`"),
            (Login(name="a"), r"login: Expected `str` of length >= 2"),
            (nobody, "login: .*somebody"),
        ):
            with pytest.raises(BadPayload, match=text):
                await producer.send(message)
            with pytest.raises(BadPayload, match=text):
                await producer.send(message, key="k")
            with pytest.raises(BadPayload, match=text):
                await producer.send_many([Order(n=1), message])
        raw.flushall()
        good = Login(name="ada", password="p", at=datetime(2030, 1, 1, tzinfo=UTC))
        await producer.send_many([good, Order(n=2), Message(payload=good, priority="high")])
    assert raw.xlen(KEY) == 2
    [(_, fields)] = raw.xrange("{jobs}:medium")
    assert json.loads(fields["data"]) == {"name": "ada", "password": "p", "at": "2030-01-01T00:00:00Z"}
    with pytest.raises(BadPayload, match="Expected `int`"):
        await asyncio.to_thread(SyncProducer(valkey.url, check=True).send, wrong)
    async with Producer(valkey.url) as producer:
        await producer.send(wrong)
    assert raw.xlen(KEY) == 3, "without it, a worker finds out"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"at": datetime(2030, 1, 1)}, r"at: a datetime must have a time zone, got .*; hint: datetime\.now\(UTC\)"),
        ({"exp": datetime(2030, 1, 1)}, "exp: a datetime must have a time zone"),
        ({"at": datetime.max.replace(tzinfo=UTC)}, "at must be seconds since the epoch, at most ten years from now"),
        ({"at": NOW_S * 1000}, r"at must be seconds since the epoch, at most ten years from now, got .*: milliseconds\?"),
        ({"exp": NOW_S * 1000}, r"exp must be .*: milliseconds\?"),
        ({"at": 10**5000}, "at must be .* of type int$"),
        ({"at": datetime.fromtimestamp(-1, UTC)}, "at must be"),
        ({"at": datetime(2030, 1, 1, tzinfo=Broken())}, "at must be a datetime that says its time: RuntimeError"),
        ({"exp": 1}, r"exp has passed, got 1; hint: it is no time from now, but time\.time\(\) \+ seconds"),
        ({"exp": datetime(2020, 1, 1, tzinfo=UTC)}, "exp has passed"),
        ({"exp": NOW_S + 60, "delay_s": 3600}, "exp must not be before the job may start"),
        ({"exp": NOW_S + 60, "at": NOW_S + 61}, "exp must not be before the job may start"),
        ({"delay_s": timedelta(days=3700)}, "delay_s must be .* at most ten years"),
        ({"delay_s": timedelta(seconds=-1)}, "delay_s must be"),
    ],
)
async def test_a_time_that_cannot_be_meant_is_refused_with_what_is_wrong_with_it(options, text):
    async with Producer.connect("unix:///no/such/server", patience_s=60) as producer:
        with pytest.raises(BadPayload, match=text):
            await producer.send(Order(n=1), **options)


async def test_times_may_be_datetimes_and_timedeltas(producer, raw):
    at, zone = datetime.fromtimestamp(int(NOW_S) + 86_400, UTC), timezone(timedelta(hours=-5))
    await producer.send(Order(n=1), at=at, id="a")
    await producer.send(Order(n=2), at=at.astimezone(zone), exp=at + timedelta(minutes=1), id="b")
    await producer.send_many([Message(payload=Order(n=3), delay_s=timedelta(hours=1), id="c")])
    at_ms = at.timestamp() * 1000
    waits_ms, *exact_ms = [due_ms for _, due_ms in raw.zrange("{jobs}:due", 0, -1, withscores=True)]
    assert exact_ms == [at_ms, at_ms]
    assert NOW_S + 3600 <= waits_ms / 1000 <= time.time() + 3600
    assert str(int(at_ms) + 60_000) in str(raw.hgetall("{jobs}:msg"))


async def test_what_has_just_expired_becomes_a_dead_letter_and_no_error_of_its_sender(producer, raw):
    """It may have waited where it came from, and clocks differ."""
    await producer.send(Order(n=1), exp=time.time() - 5)
    assert raw.xlen(KEY) == 1


async def test_a_priority_may_be_given_by_its_name(producer, raw):
    await producer.send(Order(n=1), priority="high")
    await producer.send_many([Message(payload=Order(n=2), priority="low", delay_s=3600)])
    assert raw.xlen("{jobs}:high") == 1
    [delayed] = raw.zrange("{jobs}:due", 0, -1)
    assert delayed.startswith("low-")


async def test_a_class_in_place_of_a_message_is_refused_with_the_way_out(producer):
    for options in ({}, {"delay_s": 5.0}):
        with pytest.raises(BadPayload, match=r"got the class Order; hint: Order\("):
            await producer.send(Order, **options)


async def test_a_chunk_that_cannot_be_packed_is_told_to_its_callers_and_the_next_ones_are_sent(producer, raw):
    """No option can do that; a mistake of ours would."""
    await producer.send(Order(n=0))
    bad = Packed(Head(1, 0, "", (LikeANumber(), "x")), b"{}")  # type: ignore[arg-type]
    together = (producer.send(Order(n=1)), producer.send_packed([bad]), producer.send(Order(n=2)), producer.send_packed([None]))
    async with asyncio.timeout(30):
        told = await asyncio.gather(*together, return_exceptions=True)
        await producer.send(Order(n=3))
    assert all(isinstance(one, Exception) for one in told)
    assert [json.loads(fields["data"])["n"] for _, fields in raw.xrange(KEY)] == [0, 3]


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
    with pytest.raises(BadPayload, match="not a contract"):
        await producer.send(Plain(n=1))
    with pytest.raises(BadPayload):
        await producer.send_many([Order(n=1), Order(n=object())])  # type: ignore[arg-type]
    assert raw.xlen(KEY) == 0


@contract("measured")
class Measured(msgspec.Struct):
    value: Any = None
    note: str = ""


class Inner(msgspec.Struct):
    numbers: tuple[float, ...]


NAN = float("nan")


@pytest.mark.parametrize(
    "value",
    [NAN, float("inf"), -float("inf"), [1.0, NAN], {"a": [{"b": NAN}]}, Inner((1.0, NAN)), {NAN: 1}, {-float("inf"): 1}],
    ids=repr,
)
async def test_what_json_has_no_number_for_is_refused(producer, raw, value):
    with pytest.raises(BadPayload, match="NaN or infinity"):
        await producer.send(Measured(value=value))
    with pytest.raises(BadPayload, match="NaN or infinity"):
        await producer.send_many([Measured(value=value)])
    assert raw.keys("*") == []


class Tree(msgspec.Struct):
    weight: float | None = None
    below: list[Tree] = []
    named: dict[str, tuple[Tree, ...]] = {}


@contract("forest")
class Forest(msgspec.Struct):
    trees: list[Tree]
    rates: dict[int | float, str] = {}


@pytest.mark.parametrize(
    "payload",
    [
        Forest([Tree(below=[Tree(named={"a": (Tree(NAN),)})])]),
        Forest([Tree(-float("inf"))]),
        Forest([], {float("inf"): "x"}),
        Forest([], {-float("inf"): "x"}),
    ],
    ids=["deep", "shallow", "key", "negative key"],
)
async def test_a_number_that_json_lacks_is_found_wherever_the_type_has_a_place_for_it(producer, raw, payload):
    with pytest.raises(BadPayload, match="NaN or infinity"):
        await producer.send(payload)
    await producer.send(Forest([Tree(1.5)], {1.5: "x", 2: "null"}))
    assert raw.xlen("{jobs}:medium") == 1


@pytest.mark.parametrize(
    "value",
    [None, "null", [None, 1.5], {"Texan": None, "null": 0}, msgspec.Raw(b'{"a":null}')],
    ids=["none", "text", "list", "dict", "raw"],
)
async def test_what_json_calls_null_is_sent(producer, raw, value):
    await producer.send(Measured(value=value, note='"nan":'))
    assert raw.xlen("{jobs}:medium") == 1


async def test_the_mark_of_a_chunk_lives_for_the_patience_and_a_minute(server, raw):
    async with Producer.connect(server.url, patience_s=20) as producer:
        await producer.send(Order(n=1))
    [mark] = raw.keys("{jobs}:seen:c:*")
    assert 60_000 < raw.pttl(mark) <= 80_000


async def test_the_mark_of_a_key_outlives_the_delay_of_its_job(producer, raw):
    await producer.send(Order(n=1), key="k", delay_s=30 * 86400)
    assert 36 * 86400 < raw.ttl("{jobs}:seen:k:k") <= 37 * 86400
    await producer.send(Order(n=1), key="now")
    assert 6 * 86400 < raw.ttl("{jobs}:seen:k:now") <= 7 * 86400


async def test_a_password_is_never_shown():
    producer = Producer.connect("redis://user:geheim@127.0.0.1:1", patience_s=0.1)
    assert "geheim" not in repr(producer)
    async with producer:
        with pytest.raises(StoreUnavailable) as caught:
            await producer.send(Order(n=1))
    assert "geheim" not in str(caught.value)


# --- patience ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(server: Server) -> Proxy:
    """A proxy of the server that refuses connections until it is entered."""
    return Proxy(server.socket)


async def test_all_who_wait_give_up_when_their_own_patience_is_over(proxy):
    async with Producer.connect(proxy.url, patience_s=1) as producer:

        async def patience_of(n: int) -> float:
            since_s = time.monotonic()
            with pytest.raises(StoreUnavailable, match="not sent within 1 s"):
                await producer.send(Order(n=n))
            return time.monotonic() - since_s

        many = [asyncio.create_task(patience_of(n)) for n in range(6000)]  # 12 chunks
        await asyncio.sleep(0.5)
        later = asyncio.create_task(patience_of(-1))
        async with asyncio.timeout(8):
            waited_s = await asyncio.gather(*many, later)
        assert min(waited_s) >= 1, "each has its own"


async def test_what_was_given_up_before_it_was_on_the_line_is_not_sent(proxy, raw):
    async with Producer.connect(proxy.url) as producer:
        sends = [asyncio.create_task(producer.send(Order(n=n))) for n in range(1500)]
        await asyncio.sleep(0.1)
        for given_up in sends[::2]:
            given_up.cancel()
        async with proxy:
            kept = await asyncio.gather(*sends[1::2])
            await producer.send(Order(n=-1))
    assert [f"high-{entry}" for entry, _ in raw.xrange(KEY)][:-1] == [sent.id for sent in kept]


async def test_what_was_on_the_line_when_patience_ended_is_stored_at_most_once(proxy, raw):
    async with proxy, Producer.connect(proxy.url, patience_s=0.5) as producer:
        await producer.send(Order(n=0))
        proxy.stall()
        with pytest.raises(StoreUnavailable, match="may have been stored, once"):
            await producer.send(Order(n=1))
        proxy.calm()
        await producer.send(Order(n=2))
        assert [json.loads(fields["data"])["n"] for _, fields in raw.xrange(KEY)] in ([0, 2], [0, 1, 2])


def gone_silent(proxy: Proxy) -> None:
    proxy.deafen()


def gone(proxy: Proxy) -> None:
    proxy.reset()
    proxy.stall()  # and nobody answers to those who come


def silent_and_away(proxy: Proxy) -> None:
    proxy.deafen()
    proxy.stall()


@pytest.mark.parametrize(("away", "idle_s"), [(gone_silent, 0.0), (gone, 60.0), (silent_and_away, 60.0)])
async def test_what_is_cancelled_while_there_is_no_line_is_not_sent(proxy, raw, monkeypatch, away, idle_s):
    """While the idle connection is tried, while another is opened, and before a repeat."""
    async with proxy, Producer.connect(proxy.url, patience_s=3) as producer:
        await producer.send(Order(n=0))
        [sender] = producer._senders.values()
        connection = sender._store._connection
        monkeypatch.setattr("runtime.store.connection.IDLE_S", idle_s)
        away(proxy)
        await asyncio.sleep(0)
        sends = [asyncio.create_task(producer.send(Order(n=n))) for n in range(1, 4)]
        sends.append(asyncio.create_task(producer.send_many(Order(n=n) for n in range(4, 1200))))
        await until(lambda: connection._busy.locked() and (not idle_s or connection._redis is None), "there is no line")
        for send in sends:
            send.cancel()
        await asyncio.wait(sends)
        proxy.calm()
        await producer.send(Order(n=-1))
        assert [json.loads(fields["data"])["n"] for _, fields in raw.xrange(KEY)] == [0, -1]


async def until(is_true: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.005)
    assert is_true(), what


def answering(server: Server, reply: bytes, times: int = 1_000_000) -> Relay:
    """Return a proxy through which the calls of scripts are executed, and answered by this instead."""

    async def serve(reader: Reader, writer: Writer, server_reader: Reader, server_writer: Writer) -> None:
        nonlocal times
        is_script = False

        async def up() -> None:
            nonlocal is_script
            while data := await reader.read(1 << 20):
                is_script = b"EVALSHA" in data
                server_writer.write(data)

        asking = asyncio.create_task(up())
        try:
            while data := await server_reader.read(1 << 20):
                writer.write(reply if is_script and times > 0 else data)
                times -= is_script
        finally:
            asking.cancel()

    return Relay(server.socket, serve)


UNKNOWN = [
    *(b"-ERR upstream failure\r\n", b"-ASK 1 127.0.0.1:1\r\n", b"-\r\n", b"-\xff\r\n", b"-CROSSSLOT x\r\n"),
    *(b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*0\r\n", b"*-1\r\n", b"$3\r\nabc\r\n", b"_\r\n", b"%1\r\n+a\r\n+b\r\n"),
    *(b"*6\r\n" + one * 6 for one in (b"$-1\r\n", b":1\r\n", b"$0\r\n\r\n")),
    *(b"*6\r\n" + one * 4 + b"*0\r\n*0\r\n" for one in (b"$3\r\na-b\r\n", b"$2\r\n\xff\xfe\r\n", b"$0\r\n\r\n")),
    b"*6\r\n" + b"$3\r\n1-1\r\n" * 4 + b"*0\r\n*1\r\n:0\r\n",
]


async def test_what_an_answer_of_somebody_between_says_nothing_of_is_stored_once_and_told_so(valkey):
    async def send_to(n: int, reply: bytes) -> str:
        async with answering(valkey, reply) as between, Producer.connect(f"unix://{between.socket}", patience_s=1) as producer:
            with pytest.raises(StoreUnavailable) as caught:
                await producer.send(Order(n=n))
        return str(caught.value)

    async with Producer.connect(valkey.url) as producer:
        await producer.send(Order(n=-1))  # the script is loaded
    told = await asyncio.gather(*[send_to(n, reply) for n, reply in enumerate(UNKNOWN)])
    assert [reply for reply, text in zip(UNKNOWN, told, strict=True) if "may have been stored, once" not in text] == []
    stored = [json.loads(fields["data"])["n"] for _, fields in valkey.client().xrange(KEY)]
    assert sorted(stored) == [-1, *range(len(UNKNOWN))]


@pytest.mark.parametrize("reply", [b"-ERR upstream failure\r\n", b"-LOADING x\r\n", b"+OK\r\n"])
async def test_after_a_false_answer_the_repeat_brings_the_true_one(valkey, reply):
    async with Producer.connect(valkey.url) as producer:
        await producer.send(Order(n=0))
    async with answering(valkey, reply, times=2) as between, Producer.connect(f"unix://{between.socket}") as producer:
        sent = await producer.send_many([Order(n=n) for n in range(1, 100)])
    assert [one.id for one in sent] == [f"high-{entry}" for entry, _ in valkey.client().xrange(KEY)][1:]


@pytest.mark.parametrize("durability", ["fsync", "replicas=1"])
async def test_a_confirmation_that_is_none_is_a_typed_error(valkey, durability):
    async def serve(reader: Reader, writer: Writer, server_reader: Reader, server_writer: Writer) -> None:
        while data := await reader.read(1 << 20):
            if b"\r\nWAIT" in data:
                writer.write(b"+OK\r\n")
                continue
            server_writer.write(data)
            writer.write(await server_reader.read(1 << 20))

    between = Relay(valkey.socket, serve)
    async with between, Producer.connect(f"unix://{between.socket}", patience_s=1, durability=durability) as producer:
        with pytest.raises(NotDurable):
            await producer.send(Order(n=1))
    assert valkey.client().xlen(KEY) == 1


async def test_of_a_name_with_several_addresses_a_silent_one_is_passed_over(monkeypatch):
    """The second accepts and never answers, the third is the server, the others refuse."""
    port = free_ports()
    server = Server("valkey", "--bind", "127.0.0.1")
    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **options: Any) -> Any:
        names = ["127.0.0.3", "127.0.0.2", "127.0.0.1", "127.0.0.4"] if host == "redis.example" else [host]
        return [found for name in names for found in real(name, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    try:
        server.client().config_set("port", port)
        with socket.create_server(("127.0.0.2", port)):
            async with Producer.connect(f"redis://redis.example:{port}", patience_s=6) as producer:
                await producer.send(Order(n=1))
    finally:
        server.stop()


async def test_a_certificate_is_compared_with_the_name_whatever_address_it_leads_to(monkeypatch):
    """Seen in the greeting of TLS, which says the name in plain text."""
    heard = asyncio.get_running_loop().create_future()

    async def listen(reader: Reader, writer: Writer) -> None:
        heard.set_result(await reader.read(4096)) if not heard.done() else None
        writer.close()

    real = socket.getaddrinfo

    def resolve(host: str, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host == "redis.example" else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with Producer.connect(f"rediss://redis.example:{port}", patience_s=0.5) as producer:
        with pytest.raises(StoreUnavailable, match=r"redis\.example"):
            await producer.send(Order(n=1))
    assert b"redis.example" in await heard
    listening.close()


async def test_where_nobody_answers_the_error_says_so():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        async with Producer.connect(url, patience_s=0.6) as producer:
            with pytest.raises(StoreUnavailable, match=r"no connection in time: not sent within 0\.6 s"):
                await producer.send(Order(n=1))


@pytest.mark.parametrize("patience_s", [float("nan"), float("inf"), "5", None, 0, -1, True, 1e300, Decimal(5)], ids=repr)
def test_a_patience_that_is_none_is_said_at_once(patience_s):
    with pytest.raises(ConfigError, match="patience_s"):
        Producer.connect("redis://127.0.0.1:1", patience_s=patience_s)


async def test_whoever_waits_for_an_answer_at_the_end_hears_of_the_end(proxy):
    async with proxy, Producer.connect(proxy.url, patience_s=60) as producer:
        await producer.send(Order(n=0))
        proxy.stall()
        sending = asyncio.create_task(producer.send(Order(n=1)))
        await until(lambda: any(sender._current for sender in producer._senders.values()), "it is sent")
        await producer.close()
        with pytest.raises(StoreUnavailable, match=r"closed.*may have been stored, once") as caught:
            await sending
    assert "are over" not in str(caught.value)


async def test_a_silent_line_is_left_for_another_before_patience_ends(proxy, raw):
    async with proxy, Producer.connect(proxy.url, patience_s=3) as producer:
        await producer.send(Order(n=0))
        assert proxy.deafen() == 1
        sent = await asyncio.gather(*[producer.send(Order(n=n)) for n in range(1, 1200)])
    assert [f"high-{entry}" for entry, _ in raw.xrange(KEY)][1:] == [one.id for one in sent]


async def test_a_line_that_was_cut_while_it_was_idle_is_found_by_a_question_and_nobody_hears_of_it(proxy, raw, monkeypatch):
    """The producer's, and those of a worker: no answer is waited for to its end."""
    monkeypatch.setattr("runtime.store.connection.IDLE_S", 0.0)
    async with proxy, Producer.connect(proxy.url, patience_s=60) as producer:
        worker = Streams(proxy.url, "jobs", "me")
        await worker.start()
        await producer.send(Order(n=1))
        fetched = await worker.fetch([0, 1, 0, 0], set())
        [delivery] = fetched.deliveries
        jobs, _ = decode_many(delivery.stream, delivery.rows, delivery.counts, fetched.run_id, time.monotonic(), fetched.now_ms)
        await worker._writer.ready()
        async with asyncio.timeout(4.5):  # a lost answer takes a worker five seconds, and this producer twenty
            assert proxy.deafen() == 4
            await producer.send(Order(n=2))
            settled = await worker.settle(Batch([[], jobs, [], []], [], [], []))
        await worker.close()
    assert (settled.refused, settled.shortfall) == (0, 0)
    assert raw.xlen(KEY) == 1


async def test_the_kernel_asks_whether_a_connection_still_is_one():
    server = Server("valkey", "--bind", "127.0.0.1")
    try:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server.client().config_set("port", port)
        connection = Connection(f"redis://127.0.0.1:{port}", "asks")
        await connection.ready()
        ours = connection._protocol._transport.get_extra_info("socket")
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for option, value in KEEPALIVE.items():
            assert ours.getsockopt(socket.IPPROTO_TCP, option) == value
        await connection.close()
    finally:
        server.stop()


async def test_of_a_cancelled_send_many_no_further_chunk_is_sent(proxy, raw):
    async with proxy, Producer.connect(proxy.url, patience_s=60) as producer:
        await producer.send(Order(n=-1))
        proxy.stall()
        sending = asyncio.create_task(producer.send_many(Order(n=n) for n in range(3000)))
        while not any(sender._current for sender in producer._senders.values()):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # the next chunk is packed, and waits behind
        sending.cancel()
        await asyncio.wait([sending], timeout=10)
        assert sending.cancelled()
        proxy.calm()
        await producer.send(Order(n=-2))
    assert [json.loads(fields["data"])["n"] for _, fields in raw.xrange(KEY)] == [-1, *range(500), -2]


async def test_a_loop_that_stood_still_is_no_redis_that_is_away(valkey):
    async with Producer.connect(valkey.url, patience_s=1.5) as producer:
        await producer.send(Order(n=0))
        sending = [asyncio.create_task(producer.send(Order(n=n))) for n in range(1, 20)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        time.sleep(2)
        assert len(await asyncio.gather(*sending)) == 19
    assert valkey.client().xlen(KEY) == 20


async def test_a_source_that_fails_leaves_stored_what_it_gave_before_its_chunk(producer, raw):
    def source():
        yield from (Order(n=n) for n in range(1200))
        raise KeyError("no more")

    with pytest.raises(KeyError):
        await producer.send_many(source())
    assert raw.xlen(KEY) == 1000


# --- loops, threads and forks -----------------------------------------------------------------------------------------------


def test_a_producer_kept_in_a_module_serves_one_event_loop_after_the_other(valkey):
    producer = Producer.connect(valkey.url)
    ids = [asyncio.run(producer.send(Order(n=n))).id for n in range(3)]
    client = valkey.client()
    assert ids == [f"high-{entry}" for entry, _ in client.xrange(KEY)]
    wait_until(lambda: not connections(client), what="each loop takes its connection along")


CLOSED_BY_HAND = """
import asyncio, gc, sys
import msgspec
from runtime import Producer, contract

@contract("order")
class Order(msgspec.Struct):
    n: int

for n in range(2):
    loop = asyncio.new_event_loop()
    producer = Producer.connect(sys.argv[1])
    loop.run_until_complete(producer.send(Order(n)))
    loop.close()
    del loop, producer
    gc.collect()
"""


def test_a_loop_that_is_closed_by_hand_leaves_no_complaint(valkey):
    command = [sys.executable, "-c", CLOSED_BY_HAND, valkey.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def connections(client: redis.Redis) -> list[str]:
    return [one["name"] for one in client.client_list() if one["name"] == "producer"]


async def test_threads_with_loops_of_their_own_share_a_producer(producer, raw):
    mine = await producer.send(Order(n=0))
    theirs = await asyncio.gather(*[asyncio.to_thread(asyncio.run, producer.send(Order(n=n))) for n in range(1, 5)])
    behind = await producer.send(Order(n=5))
    assert sorted(f"high-{entry}" for entry, _ in raw.xrange(KEY)) == sorted(sent.id for sent in [mine, *theirs, behind])


@pytest.mark.parametrize("turns", [0, 1, 5])
async def test_when_somebody_cancels_all_tasks_those_who_wait_hear_of_it_and_the_next_send_works(proxy, raw, turns):
    async with Producer.connect(proxy.url) as producer:
        others = asyncio.all_tasks()
        sends = [asyncio.create_task(producer.send(Order(n=n))) for n in range(600)]
        await asyncio.sleep(0)
        for _ in range(turns):
            await asyncio.sleep(0.01)
        for task in asyncio.all_tasks() - others - set(sends):
            task.cancel()
        async with asyncio.timeout(10):
            assert {type(error) for error in await asyncio.gather(*sends, return_exceptions=True)} == {ConfigError}
            async with proxy:
                await producer.send(Order(n=-1))
    assert raw.xlen(KEY) == 1


async def test_after_its_end_a_producer_is_an_error_until_it_is_opened_again(server, raw, proxy):
    async with Producer.connect(proxy.url) as producer:
        waiting = asyncio.create_task(producer.send(Order(n=1)))
        await asyncio.sleep(0.1)
    with pytest.raises(ConfigError, match="closed"):
        await waiting
    with pytest.raises(ConfigError, match="closed"):
        await producer.send(Order(n=2))
    async with proxy, producer:
        await producer.send(Order(n=3))
    assert raw.xlen(KEY) == 1


async def test_a_producer_that_is_forgotten_closes_its_connection(server, raw):
    await Producer.connect(server.url).send(Order(n=1))
    gc.collect()
    while connections(raw):
        await asyncio.sleep(0.01)


FORKED = """
import asyncio, os, sys
import msgspec
from runtime import ConfigError, Producer, contract

@contract("order")
class Order(msgspec.Struct):
    n: int

producer = Producer.connect(sys.argv[1])

async def ten(first):
    for n in range(first, first + 10):
        await asyncio.wait_for(producer.send(Order(n)), 20)

def child(run):
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
    except ConfigError:
        os._exit(7)
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

async def preloaded():
    await ten(0)
    def within():
        asyncio.run(ten(100)) if sys.version_info >= (3, 12) else asyncio.new_event_loop().run_until_complete(ten(100))
    def no_loop():
        producer.send(Order(1)).send(None)
    pids = [child(within), child(no_loop)]
    await ten(10)
    return [ended(pid) for pid in pids]

kept = asyncio.new_event_loop()
kept.run_until_complete(ten(20))
parents_loop = child(lambda: kept.run_until_complete(ten(200)))
print([ended(parents_loop), *asyncio.run(preloaded()), ended(child(lambda: asyncio.run(ten(30))))])
kept.run_until_complete(ten(40))
kept.run_until_complete(producer.close())
kept.close()
"""


def test_a_forked_process_sends_over_connections_of_its_own(valkey):
    command = [sys.executable, "-W", "error", "-c", FORKED, valkey.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("[7, 0, 7, 0]\n", "")
    stored = sorted(json.loads(fields["data"])["n"] for _, fields in valkey.client().xrange("{jobs}:medium"))
    assert stored == sorted([*range(50), *range(100, 110)])
