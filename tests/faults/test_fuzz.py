"""Anything at all is written to the queue's keys while a worker lives: it goes on, and each entry has an end that can be seen."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from runtime import Backoff, Job, contract, handler
from runtime.codec import unpack_record
from runtime.errors import UnfitPayload
from runtime.jobs import STREAMS
from runtime.store.base import GROUP, Keys
from tests.servers import Server
from tests.workers import working

KEYS = Keys("jobs")
SAME = settings(
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    max_examples=30,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)
WIDE = settings(
    SAME,
    max_examples=500,
    derandomize=False,
)
DEADLINE_S = 15.0
MAX_LINE_CHARS = 2000


@contract("good")
class Good(msgspec.Struct, frozen=True):
    """What a well-behaved producer sends."""

    n: int
    deep: list[Any] = []


ran: set[str] = set()


@handler(Good, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
async def good(message: Good, job: Job) -> None:
    ran.add(f"{STREAMS[job.stream]}/{job.entry.decode()}")
    ran.add(str(message.n))


# --- what strangers write ----------------------------------------------------------------------------------------------------

HUGE = (0, 1, 2**31, 2**53 - 1, 2**53, 2**63, 10**15, 10**16, 10**40, -1, 1.5, float("inf"), float("nan"))
junk = st.one_of(
    st.binary(max_size=40),
    st.text(max_size=20).map(lambda text: text.encode(errors="surrogatepass")),
    st.sampled_from(HUGE).map(lambda number: str(number).encode()),
    st.sampled_from(
        (b"", b"\0", b"\r\n", b"{jobs}:high", b"~free", b"~t:", b"\xff" * 200, "٣".encode(), b" 1", b"1 ", b"+1", b"0x1")
    ),
)
bodies = st.one_of(
    st.just(b'{"n":1}'),
    st.just(b'{"n":2}'),
    st.integers().map(lambda n: b'{"n":%d}' % n),
    st.sampled_from(
        (b'{"n":1}', b'{"n":1}', b'{"n":"1"}', b'{"n":1.0}', b'{"n":NaN}', b"[]", b"null", b'{"n":1', b"{}", b'{"n":1e400}')
    ),
    st.integers(1, 10_000).map(lambda depth: b'{"n":1,"deep":' + b"[" * depth + b"]" * depth + b"}"),
    st.integers(1, 10_000).map(lambda depth: b"[" * depth),
    st.integers(1, 5000).map(lambda depth: b"\x82\xa1n\x01\xa4deep" + b"\x91" * depth + b"\x90"),
    st.just(b'{"n":1,"x":"' + b"y" * 300_000 + b'"}'),
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    ).map(msgspec.json.encode),
    junk,
)
types = st.one_of(
    st.just(b"good"),
    st.sampled_from((b"GOOD", b"good ", b"good\n", b"unknown", b"unknown@9", b"~t:good@1", b"a" * 65, b"-x", b"\xc3\x28", b"")),
    junk,
)
names = st.sampled_from(
    (b"id", b"v", b"at", b"exp", b"key", b"a", b"attempts", b"first_at", b"snoozed_at", b"ct", b"x-origin", b"group", b"e")
)
cts = st.sampled_from((b"application/json", b"application/msgpack", b"text/plain"))
extras = st.lists(st.one_of(st.tuples(names, junk), st.tuples(st.just(b"ct"), cts), st.tuples(junk, junk)), max_size=5)
messages = st.one_of(
    st.builds(lambda name, body, more: [(b"type", name), (b"data", body), *more], types, bodies, extras),
    st.builds(lambda body, more: [(b"type", b"good"), (b"data", body), *more], bodies, extras),
    st.lists(st.tuples(junk, junk), min_size=1, max_size=6),
    st.builds(
        lambda size, more: [*more, *[(b"f%d" % n, b"") for n in range(size)]], st.sampled_from((505, 513, 2500, 5000)), extras
    ),
)
entries = st.tuples(st.sampled_from(STREAMS), messages)
records = st.one_of(
    junk,
    st.lists(junk, max_size=6).map(lambda parts: msgspec.msgpack.encode([part.decode(errors="replace") for part in parts])),
    st.sampled_from(
        (
            b"\xdd\xff\xff\xff\xff",
            b"\x91" * 5000,
            b"\x82\xa6stream\xa4high\xa1x\xa1y",
            b"\xc4\x00",
            b"\x94\xa6stream\xa6nobody\xa1a\xa1b",
        )
    ),
    st.builds(
        lambda where, parts: msgspec.msgpack.encode(["stream", where, *[part.decode(errors="replace") for part in parts]]),
        st.sampled_from((*STREAMS, "dead", "")),
        st.lists(junk, max_size=6),
    ),
)
scores = st.sampled_from((float("-inf"), -1.0, 0.0, 1e15, 2.0**60, float("inf")))
strangers = st.one_of(
    st.tuples(st.just("record"), junk, records, st.none() | scores),
    st.tuples(st.just("member"), junk, st.just(b""), scores),
    st.tuples(st.just("worker"), junk, junk, scores),
    st.tuples(st.just("row"), junk, st.one_of(junk, st.integers(0, 3000).map(lambda depth: b"30000 " + b"[" * depth)), scores),
    st.tuples(st.just("letter"), junk, junk, scores),
    st.tuples(st.just("mark"), junk, junk, scores),
)
cases = st.tuples(st.lists(entries, min_size=4, max_size=16), st.lists(strangers, max_size=4))


# --- what must become of it --------------------------------------------------------------------------------------------------


class Fuzz:
    """Owns a plain client, and the count of what was fed and how it ended."""

    def __init__(self, server: Server) -> None:
        self.raw = redis.Redis(unix_socket_path=server.socket, protocol=2)
        self.n = 10**12
        self.cases = 0
        self.failed = ""
        self.fates: dict[str, int] = {}

    def feed(self, case: tuple[list[Any], list[Any]]) -> None:
        """Write one case, then a good job: that one must run, and of all the others the end must be seen."""
        if self.failed:  # a living worker cannot be asked the same again: the first failure is the answer
            return
        try:
            self.feed_one(*case)
        except BaseException as error:
            self.failed = f"{type(error).__name__}: {str(error)[:3000]}\nafter {str(case)[:3000]}"

    def feed_one(self, messages: list[Any], others: list[Any]) -> None:
        self.cases += 1
        for kind, name, value, score in others:
            self.write_junk(kind, name, value, score)
        places: dict[str, list[tuple[bytes, bytes]]] = {}
        for stream, fields in messages:
            flat = [part for pair in fields for part in pair]
            entry = self.raw.execute_command("XADD", f"{KEYS.prefix}{stream}", "*", *flat)
            places[f"{stream}/{entry.decode()}"] = fields
        self.n += 1
        self.raw.xadd(KEYS.streams[3], {"type": "good", "data": b'{"n":%d}' % self.n})
        self.wait(lambda: str(self.n) in ran, "the good job runs")
        self.wait(self.is_quiet, "nothing is held any more")
        for place, fields in places.items():
            fate = self.fate(place, fields)
            self.fates[fate] = self.fates.get(fate, 0) + 1
            assert fate != "vanished", f"{place} {fields}"
        for _, fields in self.raw.xrange(KEYS.dead):
            if b"by" not in fields:
                assert fields[b"dead_reason"], fields
                assert fields[b"dead_at"].isdigit(), fields
        self.clear()

    def write_junk(self, kind: str, name: bytes, value: bytes, score: float) -> None:
        match kind:
            case "record":
                self.raw.hset(KEYS.messages, name, value)
                if score is not None:
                    self.raw.zadd(KEYS.due, {name: score})
            case "member":
                self.raw.zadd(KEYS.due, {name: score})
            case "worker":
                self.raw.zadd(KEYS.workers, {name: score})
            case "row":
                self.raw.zadd(KEYS.workers, {name: score})
                self.raw.hset(KEYS.rows, name, value)
            case "letter":
                self.raw.xadd(KEYS.dead, {name: value, "by": "a stranger"})
            case _:
                self.raw.set(KEYS.prefix.encode() + b"seen:k:" + name, value)

    def is_quiet(self) -> bool:
        """Return whether all entries are in a lot, and all delayed records have a later time."""
        waiting = 0
        for key in KEYS.streams:
            lots = self.raw.xpending(key, GROUP)["consumers"]
            waiting += self.raw.xlen(key) - sum(lot["pending"] for lot in lots if lot["name"].startswith(b"~t:"))
        now_ms = self.raw.time()[0] * 1000
        return waiting == 0 and not self.raw.zcount(KEYS.due, "-inf", now_ms)

    def fate(self, place: str, fields: list[tuple[bytes, bytes]]) -> str:
        """Say how an entry ended: it ran, died, waits in a lot or for its time, or was a copy."""
        stream, entry = place.split("/")
        if place in ran:
            return "ran"
        if any(letter.get(b"dead_from", b"").decode(errors="replace") == place for _, letter in self.raw.xrange(KEYS.dead)):
            return "dead"
        if self.raw.xrange(KEYS.prefix + stream, entry, entry):
            return "parked"
        first_at = entry.partition("-")[0].encode()
        if any(first_at in unpack_record(packed) for packed in self.raw.hvals(KEYS.messages)):
            return "delayed"
        if b"key" in dict(fields):
            return "duplicate"
        message = dict(fields)  # its time came at once, and it ran or died as another entry
        return "moved" if message.get(b"at", b"").isdigit() or b"at" in message else "vanished"

    def clear(self) -> None:
        """Empty the queue under the living worker, but for its groups and its own row."""
        for key in KEYS.streams:
            entries = [entry for entry, _ in self.raw.xrange(key)]
            if entries:
                self.raw.xack(key, GROUP, *entries)
                self.raw.xdel(key, *entries)
        self.raw.delete(KEYS.due, KEYS.messages, KEYS.dead, KEYS.workers, KEYS.rows)
        for key in self.raw.scan_iter(f"{KEYS.prefix}seen:*", count=1000):
            self.raw.delete(key)

    @staticmethod
    def wait(is_true: Callable[[], bool], what: str) -> None:
        end_s = time.monotonic() + DEADLINE_S
        while not is_true():
            assert time.monotonic() < end_s, what
            time.sleep(0.005)


async def fuzz(server: Server, how: settings, number: int | None, log: pytest.LogCaptureFixture) -> None:
    ran.clear()
    feeder = Fuzz(server)
    test = how(given(cases)(feeder.feed))
    if number is not None:
        test = seed(number)(test)
    with log.at_level(logging.INFO):
        async with working(server.url, good, lease_s=1.0, unknown_after_s=1000):
            await asyncio.to_thread(test)
    feeder.raw.close()
    print(f"{feeder.cases} cases, {sum(feeder.fates.values())} entries: {dict(sorted(feeder.fates.items()))}")
    assert not feeder.failed, feeder.failed
    for record in log.records:
        line = record.getMessage()
        assert len(line) < MAX_LINE_CHARS, line[:200]
        assert record.exc_info is None or record.exc_info[0] is UnfitPayload, record  # nothing but what is wrong with a message


# Hypothesis warns that the recursion limit is another one than in its own thread.
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
async def test_whatever_strangers_write_the_worker_goes_on_and_every_entry_has_an_end(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await fuzz(server, SAME, None, caplog)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning")
async def test_whatever_many_strangers_write_the_worker_goes_on(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Elsewhere each time; FUZZ_SEED repeats a run."""
    number = int(os.environ.get("FUZZ_SEED") or secrets.randbits(32))
    print(f"FUZZ_SEED={number}")
    await fuzz(server, WIDE, number, caplog)
