"""The wire contract by plain XADD, as any client would write it: each field does what the documentation says."""

from __future__ import annotations

import time

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime import Backoff, Job, Priority, Retry, Snooze, contract, handler
from tests.faults.harness import leftovers
from tests.proxy import Proxy
from tests.workers import until, working

KEY = "{jobs}:high"


@contract("note", version=2, priority=Priority.HIGH)
class Note(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0
    fail: int = 0


class Seen:
    """What the handler saw: number, id, attempt, server time."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, str, int]] = []
        self.jobs: list[Job] = []

        @handler(Note, retry=Backoff(base_s=0.01, cap_s=0.05, attempts=5))
        async def take_note(message: Note, job: Job) -> None:
            self.runs.append((message.n, job.id, job.attempt))
            self.jobs.append(job)
            if job.attempt <= message.fail:
                raise ValueError(f"fails {message.fail} times")

        self.handler = take_note


@pytest.fixture
def seen() -> Seen:
    return Seen()


def xadd(raw: redis.Redis, data: str = '{"n":1}', to: str = KEY, **fields: str) -> str:
    return str(raw.xadd(to, {"type": "note", "data": data, **fields}))


def dead(raw: redis.Redis) -> list[dict[str, str]]:
    return [fields for _, fields in raw.xrange("{jobs}:dead")]


async def test_type_and_data_are_all_a_message_needs(server, raw, seen):
    async with working(server.url, seen.handler):
        entry = xadd(raw)
        await until(lambda: seen.runs and not leftovers(raw), "the job runs")
    assert seen.runs == [(1, f"high-{entry}", 1)]
    assert seen.jobs[0].born == int(entry.split("-")[0]) / 1000


async def test_all_four_streams_are_read(server, raw, seen):
    async with working(server.url, seen.handler):
        for n, name in enumerate(("critical", "high", "medium", "low")):
            xadd(raw, f'{{"n":{n}}}', to=f"{{jobs}}:{name}")
        await until(lambda: len(seen.runs) == 4, "all run")
    assert {job.priority for job in seen.jobs} == set(Priority)


async def test_id_stays_the_same_over_all_attempts_and_work_and_born_too(server, raw, seen):
    async with working(server.url, seen.handler):
        xadd(raw, '{"n":1,"fail":2}', id="order-7")
        await until(lambda: len(seen.runs) == 3 and not leftovers(raw), "three runs")
    assert seen.runs == [(1, "order-7", 1), (1, "order-7", 2), (1, "order-7", 3)]
    assert len({(job.work, job.born) for job in seen.jobs}) == 1


async def test_attempts_bounds_the_runs_and_the_letter_says_why(server, raw, seen):
    async with working(server.url, seen.handler):
        xadd(raw, '{"n":1,"fail":9}', attempts="2", **{"x-tenant": "a"})
        await until(lambda: dead(raw) and not leftovers(raw), "it dies")
    [letter] = dead(raw)
    assert len(seen.runs) == 2
    assert (letter["dead_reason"], letter["dead_attempts"], letter["x-tenant"]) == ("attempts", "2", "a")
    assert "fails 9 times" in letter["dead_error"]
    assert "take_note" in letter["dead_stack"]


async def test_at_holds_a_job_back_until_its_time(server, raw, seen):
    async with working(server.url, seen.handler):
        at_ms = int(time.time() * 1000) + 700
        entry = xadd(raw, at=str(at_ms))
        await until(lambda: raw.zcard("{jobs}:due") == 1, "it is among the delayed jobs")
        await until(lambda: seen.runs, "it runs")
        assert time.time() * 1000 >= at_ms - 5
        await until(lambda: not leftovers(raw), "it is settled")
    assert seen.runs == [(1, f"high-{entry}", 1)]


async def test_a_job_past_its_exp_is_a_dead_letter_and_never_starts(server, raw, seen):
    async with working(server.url, seen.handler):
        xadd(raw, exp=str(int(time.time() * 1000) - 1))
        xadd(raw, '{"n":2}', exp=str(int(time.time() * 1000) + 60_000))
        await until(lambda: dead(raw) and seen.runs and not leftovers(raw), "both are settled")
    assert [n for n, _, _ in seen.runs] == [2]
    assert dead(raw)[0]["dead_reason"] == "expired"


async def test_a_second_message_with_the_key_of_a_live_one_is_dropped(server, raw, seen):
    for n in range(3):
        xadd(raw, f'{{"n":{n}}}', key="report-7")
    async with working(server.url, seen.handler) as worker:
        await until(lambda: seen.runs and not leftovers(raw), "all are settled")
        xadd(raw, '{"n":9}', key="report-7")
        await until(lambda: len(seen.runs) == 2, "a later one runs")
        assert sum(count.totals().get("duplicate", 0) for _, _, count in worker.stats.rows()) == 2
    assert [n for n, _, _ in seen.runs] == [0, 9]


async def test_messagepack_is_read_when_ct_says_so(server, raw, seen):
    async with working(server.url, seen.handler):
        raw.xadd(KEY, {"type": "note", "data": msgspec.msgpack.encode({"n": 5}), "ct": "application/msgpack"})
        await until(lambda: seen.runs, "it runs")
    assert seen.runs[0][0] == 5


async def test_a_newer_version_waits_in_a_lot_for_a_worker_that_knows_it(server, raw, seen):
    async with working(server.url, seen.handler):
        xadd(raw, v="3")
        xadd(raw, '{"n":2}', v="1")
        await until(lambda: seen.runs, "the older version runs")
        await until(lambda: raw.xpending(KEY, "workers")["consumers"] == [{"name": "~t:note@3", "pending": 1}], "parked")
    assert [n for n, _, _ in seen.runs] == [2]


async def test_an_unknown_type_waits_for_a_worker_that_knows_it_and_burns_no_attempt(server, raw, seen):
    @contract("other")
    class Other(msgspec.Struct, frozen=True):
        n: int = 0

    ran: list[int] = []

    @handler(Other)
    async def other(message: Other, job: Job) -> None:
        ran.append(job.attempt)

    async with working(server.url, seen.handler):
        raw.xadd(KEY, {"type": "other", "data": "{}"})
        await until(lambda: raw.xpending(KEY, "workers")["consumers"] == [{"name": "~t:other@1", "pending": 1}], "parked")
        async with working(server.url, other):
            await until(lambda: ran and not leftovers(raw), "the worker that knows it runs it")
    assert ran == [1]


async def test_an_unknown_type_that_nobody_learns_becomes_a_dead_letter(server, raw, seen):
    async with working(server.url, seen.handler, lease_s=0.3, unknown_after_s=1.0) as worker:
        raw.xadd(KEY, {"type": "typo", "data": "{}"})
        await until(lambda: dead(raw) and not leftovers(raw), "it is dead-lettered")
        counted = lambda: {name: count.totals() for name, _, count in worker.stats.rows()}  # noqa: E731
        await until(lambda: counted() == {"typo": {"parked": 1, "dead": 1}}, "it is counted under its own name")
    assert (dead(raw)[0]["dead_reason"], dead(raw)[0]["type"]) == ("unknown-type", "typo")


async def test_inventing_type_names_makes_no_more_than_257_lots(server, raw, seen):
    async with working(server.url, seen.handler, concurrency=400):
        for n in range(400):
            raw.xadd(KEY, {"type": f"typo-{n}", "data": "{}"})
        await until(lambda: raw.xpending(KEY, "workers")["pending"] == 400, "all are parked")
        await until(lambda: all(row["name"].startswith("~t:") for row in raw.xpending(KEY, "workers")["consumers"]))
        assert len(raw.xpending(KEY, "workers")["consumers"]) <= 257


MALFORMED = {
    "no type": {"data": "{}"},
    "no data": {"type": "note"},
    "bad type": {"type": "No Such", "data": "{}"},
    "bad id": {"type": "note", "data": "{}", "id": "a b"},
    "bad at": {"type": "note", "data": "{}", "at": "soon"},
    "bad exp": {"type": "note", "data": "{}", "exp": "-1"},
    "bad attempts": {"type": "note", "data": "{}", "attempts": "0"},
    "bad json": {"type": "note", "data": "{"},
    "wrong type of a field": {"type": "note", "data": '{"n":"x"}'},
    "bad utf-8": {"type": "note", "data": b'{"n":"\xff"}'},
    "too large": {"type": "note", "data": '{"x":"' + "y" * 300_000 + '"}'},
    "too deep": {"type": "note", "data": "[" * 100_000},
    "too many fields": {"type": "note", "data": "{}", **{f"f{n}": "" for n in range(5000)}},
}


async def test_every_malformed_message_is_a_dead_letter_with_its_raw_fields_and_the_next_job_runs(server, raw, seen):
    for fields in MALFORMED.values():
        raw.xadd(KEY, fields)
    xadd(raw, '{"n":42}')
    async with working(server.url, seen.handler):
        await until(lambda: seen.runs and not leftovers(raw), "all are settled")
    assert [n for n, _, _ in seen.runs] == [42]
    letters = dead(raw)
    assert len(letters) == len(MALFORMED)
    assert {letter["dead_reason"] for letter in letters} <= {"unreadable", "bad-payload", "too-large"}
    assert all(letter["dead_error"] for letter in letters)
    kept = [letter for letter in letters if letter.get("data") == '{"n":"x"}']
    assert kept[0]["dead_reason"] == "bad-payload"
    assert "$.n" in kept[0]["dead_error"]


names = st.one_of(
    st.sampled_from([b"type", b"data", b"id", b"at", b"exp", b"key", b"attempts", b"v", b"ct", b"a", b"first_at", b"x-a"]),
    st.binary(max_size=20),
)
values = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([b"note", b"{}", b"0", b"1", b"-1", b"99999999999999999", b"application/msgpack", b"\xc1", b'{"n":1}']),
)


async def test_whatever_a_stranger_writes_the_worker_lives_and_nothing_vanishes(valkey):
    """One worker through all examples: each entry ends as a run, a dead letter, a copy, or waits where one can see it."""
    raw = redis.Redis(unix_socket_path=valkey.socket)
    seen = Seen()
    sent = 0

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.dictionaries(names, values, min_size=1, max_size=6), min_size=1, max_size=5))
    def write(entries: list[dict[bytes, bytes]]) -> None:
        nonlocal sent
        for fields in entries:
            raw.xadd(KEY, fields)
            sent += 1

    write()  # before the worker's threads begin: they roll jitter of their own, which hypothesis would take for its own
    xadd(raw, '{"n":4242}')
    async with working(valkey.url, seen.handler, concurrency=50) as worker:
        await until(lambda: any(n == 4242 for n, _, _ in seen.runs), "a good job still runs")

        def settled() -> bool:
            rows = raw.xpending(KEY, "workers")["consumers"]
            return not len(worker.held) and all(row["name"].startswith(b"~") for row in rows)

        await until(settled, "all are settled")
        copies = sum(count.totals().get("duplicate", 0) for _, _, count in worker.stats.rows())
        done = sum(count.totals().get("done", 0) for _, _, count in worker.stats.rows())
        waiting = raw.xlen(KEY) + raw.zcard("{jobs}:due")
        assert done + copies + raw.xlen("{jobs}:dead") + waiting == sent + 1
    raw.close()


async def test_a_flush_without_an_answer_is_written_again_and_no_lease_stays_behind(server, raw, seen):
    async with Proxy(server.socket) as proxy, working(proxy.url, seen.handler) as worker:
        proxy.drop_next_reply(b"XACK")
        xadd(raw, '{"n":1}')
        await until(lambda: proxy.dropped == 1, "the answer to the flush is lost")
        proxy.drop_next_reply(b"retry")
        xadd(raw, '{"n":2,"fail":1}')
        await until(lambda: proxy.dropped == 2, "the answer to a move is lost")
        await until(lambda: not leftovers(raw) and not len(worker.held), "nothing is left, here and there")
    assert [n for n, _, _ in seen.runs] == [1, 2, 2]


async def test_a_handler_may_ask_for_another_time(server, raw):
    attempts: list[tuple[str, int]] = []

    @handler(Note, retry=Backoff(attempts=2))
    async def moody(message: Note, job: Job) -> None:
        attempts.append((job.id, job.attempt))
        if len(attempts) <= 3:
            raise Snooze(delay_s=0.01)
        if len(attempts) == 4:
            raise Retry(delay_s=0.01)

    async with working(server.url, moody):
        xadd(raw, id="m")
        await until(lambda: len(attempts) == 5 and not leftovers(raw), "snoozes, a retry, and done")
    assert [attempt for _, attempt in attempts] == [1, 1, 1, 1, 2]


async def test_a_job_past_its_deadline_is_cut_and_counts_as_a_failure(server, raw):
    import asyncio

    @handler(Note, timeout_s=0.2, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
    async def slow(message: Note, job: Job) -> None:
        await asyncio.sleep(60)

    async with working(server.url, slow):
        xadd(raw)
        await until(lambda: dead(raw) and not leftovers(raw), "it dies of its timeout")
    assert (dead(raw)[0]["dead_reason"], dead(raw)[0]["dead_attempts"]) == ("timeout", "2")
