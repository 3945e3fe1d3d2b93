"""A stream that an id far ahead has closed: its jobs run and retry as others do, it is told of, and there is a way out."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time

import msgspec
import pytest
import redis

from otel.metrics import Reading, render
from runtime import Backoff, Dead, Job, contract, handler
from runtime.errors import StoreError
from runtime.store.base import AHEAD_MS
from runtime.store.control import REOPEN_IDS, ControlStore
from runtime.store.doctor import Doctor
from tests.faults.harness import leftovers
from tests.workers import until, working

KEY, ASIDE, DEAD = "{jobs}:high", "{jobs}:high:closed", "{jobs}:dead"
LAST = 2**64 - 1
FAR = [f"{2**53 + 1}-0", f"{LAST}-0", f"{LAST}-{LAST - 2}"]


@contract("note")
class Note(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0
    fail: int = 0


class Seen:
    """Which jobs ran, as the handler saw them."""

    def __init__(self) -> None:
        self.jobs: list[tuple[int, str, int, float, str]] = []

        @handler(Note, retry=Backoff(base_s=0.01, cap_s=0.05, attempts=4))
        async def take(message: Note, job: Job) -> None:
            self.jobs.append((message.n, job.id, job.attempt, job.born, job.work))
            if job.attempt <= message.fail:
                raise ValueError("not yet")

        self.handler = take


@pytest.fixture
def seen() -> Seen:
    return Seen()


def close(raw: redis.Redis, entry: str, data: str = '{"n":1,"fail":2}') -> None:
    raw.execute_command("XADD", KEY, entry, "type", "note", "data", data)


def now_s(raw: redis.Redis) -> float:
    seconds, micros = raw.time()
    return seconds + micros / 1e6


@pytest.mark.parametrize("entry", FAR[:2])
async def test_every_job_of_a_closed_stream_fails_retries_and_ends_as_any_other(server, raw, seen, entry):
    close(raw, entry)
    raw.xadd(KEY, {"type": "note", "data": '{"n":2,"fail":2}'})
    before_s = now_s(raw)
    async with working(server.url, seen.handler) as worker:
        await until(lambda: len(seen.jobs) == 6 and not leftovers(raw), "two jobs, three runs each")
        assert not any(sum(worker.stats.waits(stream)[20:]) for stream in range(4))  # none of them has waited for 17 minutes
    assert raw.xlen(DEAD) == 0
    for n in (1, 2):
        runs = [job for job in seen.jobs if job[0] == n]
        assert [attempt for _, _, attempt, _, _ in runs] == [1, 2, 3]
        assert len({(job_id, born_s, work) for _, job_id, _, born_s, work in runs}) == 1
        assert before_s - 60 < runs[0][3] <= now_s(raw)


async def test_a_retry_whose_stream_cannot_take_one_more_entry_waits_and_is_not_lost(server, raw, seen):
    close(raw, f"{LAST}-{LAST}", '{"n":1,"fail":1}')
    async with working(server.url, seen.handler):
        await until(lambda: raw.zcard("{jobs}:due") == 1 and len(seen.jobs) == 1, "it waits for its second run")
        with pytest.raises(redis.ResponseError):
            raw.xadd(KEY, {"type": "note", "data": "{}"})
        await reopen(server)

        def is_done_at_once() -> bool:
            for waiting in raw.zrange("{jobs}:due", 0, -1):
                raw.zadd("{jobs}:due", {waiting: 0}, xx=True)  # not in a minute, but now
            return len(seen.jobs) == 2 and not leftovers(raw)

        await until(is_done_at_once, "its second run")
    assert raw.xlen(DEAD) == 0


@pytest.mark.parametrize("first_at", ["9007199254740993", "18446744073709551615", "x", "-1"])
async def test_a_time_of_birth_out_of_range_dead_letters_nobody_and_is_replaced(server, raw, seen, first_at):
    raw.xadd(KEY, {"type": "note", "data": '{"n":1,"fail":1}', "first_at": first_at, "snoozed_at": first_at})
    async with working(server.url, seen.handler):
        await until(lambda: len(seen.jobs) == 2 and not leftovers(raw), "both runs")
    assert abs(seen.jobs[1][3] - now_s(raw)) < 60
    assert seen.jobs[0][3] == seen.jobs[1][3]


@pytest.mark.parametrize(("entry", "first_at"), [(FAR[0], ""), (FAR[2], ""), ("1700000000000-0", FAR[0][:-2])])
async def test_a_letter_from_a_closed_stream_is_replayed_with_a_birth_that_has_been(server, raw, seen, entry, first_at):
    letter = {"type": "note", "data": "{}", "dead_reason": "attempts", "dead_from": f"high/{entry}", "dead_at": "1"}
    dead_lettered = letter | {
        "dead_reason": "unreadable",
        "dead_error": "`first_at` is not a whole number from 0 to 9007199254740992",
    }
    given = {"first_at": first_at} if first_at else {}
    store = ControlStore(server.url, "jobs")
    for message in (letter | given, dead_lettered | given):
        answer = await store.replay(raw.xadd(DEAD, message))
        [(_, fields)] = raw.xrange(KEY, answer, answer)
        assert 0 < int(fields["first_at"]) <= now_s(raw) * 1000
    assert (
        await store.replay(raw.xadd(DEAD, letter | {"dead_reason": "unreadable", "dead_error": "`v` is no number"}))
        == "unreadable"
    )
    await store.close()


# --- it is told of -----------------------------------------------------------------------------------------------------------


async def test_a_closed_stream_is_an_error_in_the_log_for_the_doctor_in_the_metrics_and_for_the_board(
    server, raw, seen, caplog: pytest.LogCaptureFixture
):
    close(raw, FAR[1], '{"n":1}')
    with caplog.at_level(logging.ERROR):
        async with working(server.url, seen.handler) as worker:
            await until(lambda: worker.maintenance.troubles, "the sweep has seen it")
            [trouble] = worker.maintenance.troubles
            ahead_s = {"high": worker.maintenance.ends[1].ahead_ms / 1000}
    assert "high is closed by an id that lies" in trouble
    assert [record.message for record in caplog.records if "jobs reopen" in record.message and trouble in record.message]
    text = render(Reading("jobs", worker.stats, None, 0, 0, 0, 1, True, ahead_s=ahead_s)).decode()
    assert 'runtime_stream_ahead_seconds{priority="high",queue="jobs"} 1.8' in text
    assert "is closed by an id" in await errors(server)
    await reopen(server)
    assert "closed" not in await errors(server)


async def errors(server) -> str:
    doctor = Doctor(server.url, "jobs")
    findings = await doctor.examine(int(time.time() * 1000))
    await doctor.close()
    return " ".join(f"{finding.what} {finding.fix}" for finding in findings if finding.level == "error")


async def test_an_id_within_the_hour_closes_nothing(server, raw):
    seconds, _ = raw.time()
    close(raw, f"{seconds * 1000 + AHEAD_MS - 60_000}-0")
    assert "closed" not in await errors(server)
    assert await reopen(server) == 0
    assert raw.xlen(KEY) == 1


# --- the way out -------------------------------------------------------------------------------------------------------------


async def reopen(server, stop_after: int = 1000, stream: int = 1) -> int:
    """Reopen `high` as the command does; `stop_after` so many calls, as one that is killed."""
    store = ControlStore(server.url, "jobs")
    total = 0
    for call in range(stop_after):
        moved, left, _ = await store.reopen(stream, may_set_aside=call == 0)
        total += moved
        if not left:
            break
    await store.close()
    return total


@pytest.mark.parametrize("entry", FAR)
async def test_a_closed_stream_is_moved_whole_with_what_is_parked_and_held(server, raw, seen, entry):
    raw.xgroup_create(KEY, "workers", "0", mkstream=True)
    old = raw.xadd(KEY, {"type": "note", "data": '{"n":0}'})
    raw.xadd(KEY, {"type": "note", "data": '{"n":1}', "id": "mine", "key": "k"})
    close(raw, entry, '{"n":2}')
    raw.xadd(KEY, {"type": "note", "data": '{"n":3}'})
    raw.xreadgroup("workers", "somebody", {KEY: ">"}, count=1)
    raw.xreadgroup("workers", "~free", {KEY: ">"}, count=1)
    raw.set("{jobs}:seen:k:k", f"high {raw.xrange(KEY)[1][0]}")
    assert await reopen(server) == 4
    assert not raw.exists(ASIDE)
    moved = raw.xrange(KEY)
    assert [fields["data"] for _, fields in moved] == [f'{{"n":{n}}}' for n in range(4)]
    assert [fields["id"] for _, fields in moved][:3] == [f"high-{old}", "mine", f"high-{entry}"]
    assert all(0 < int(fields["first_at"]) <= now_s(raw) * 1000 for _, fields in moved)
    assert raw.get("{jobs}:seen:k:k") == f"high {moved[1][0]}"
    raw.xadd(KEY, {"type": "note", "data": '{"n":4}'})
    assert int(raw.xrange(KEY)[-1][0].partition("-")[0]) <= now_s(raw) * 1000
    async with working(server.url, seen.handler):
        await until(lambda: len(seen.jobs) == 5 and not leftovers(raw), "all run")
    assert sorted(n for n, *_ in seen.jobs) == [0, 1, 2, 3, 4]


async def test_what_was_cancelled_while_a_worker_had_it_is_buried_and_not_moved(server, raw):
    raw.xgroup_create(KEY, "workers", "0", mkstream=True)
    entry = raw.xadd(KEY, {"type": "note", "data": "{}", "id": "mine", "key": "k"})
    raw.xreadgroup("workers", "somebody", {KEY: ">"})
    raw.set("{jobs}:seen:k:k", f"high {entry}")
    raw.zadd("{jobs}:cancels", {f"high/{entry}": now_s(raw) * 1000})
    close(raw, FAR[0])
    assert await reopen(server) == 2
    assert "mine" not in [fields.get("id") for _, fields in raw.xrange(KEY)]
    [(_, letter)] = raw.xrange("{jobs}:dead")
    assert (letter["id"], letter["dead_reason"]) == ("mine", "cancelled")
    assert not raw.exists("{jobs}:seen:k:k", "{jobs}:cancels")


async def test_a_move_that_was_cut_off_is_told_of_and_goes_on_with_the_next_call(server, raw, seen):
    size = 2 * REOPEN_IDS + 100
    for n in range(size):
        raw.xadd(KEY, {"type": "note", "data": f'{{"n":{n}}}'})
    close(raw, FAR[0], f'{{"n":{size}}}')
    assert await reopen(server, stop_after=1) == REOPEN_IDS
    assert raw.xlen(KEY) + raw.xlen(ASIDE) == size + 1
    assert "not moved yet" in await errors(server)
    raw.xadd(KEY, {"type": "note", "data": f'{{"n":{size + 1}}}'})  # producers go on meanwhile, and so do workers
    async with working(server.url, seen.handler):
        await reopen(server)
        await until(lambda: len(seen.jobs) >= size + 2 and not leftovers(raw), "all run")
    assert sorted(n for n, *_ in seen.jobs) == list(range(size + 2))


async def test_jobs_that_run_while_their_stream_is_moved_end_and_run_at_most_twice(server, raw):
    gate, runs = asyncio.Event(), list[str]()

    @handler(Note)
    async def slow(message: Note, job: Job) -> None:
        runs.append(job.id)
        await gate.wait()

    for n in range(20):
        raw.xadd(KEY, {"type": "note", "data": f'{{"n":{n}}}'})
    close(raw, FAR[0], "{}")
    ids = [f"high-{entry}" for entry, _ in raw.xrange(KEY)]
    async with working(server.url, slow, concurrency=50, lease_s=1.0) as worker:
        await until(lambda: len(runs) == 21, "all run")
        await reopen(server)
        gate.set()
        await until(lambda: not leftovers(raw) and not len(worker.held), "all are settled")
    assert set(runs) == set(ids)
    assert max(map(runs.count, ids)) <= 2
    assert raw.xlen(DEAD) == 0


async def test_what_has_more_fields_than_a_script_can_write_becomes_a_letter(server, raw):
    raw.xadd(KEY, {"type": "note", "data": "{}", **{f"f{n}": "" for n in range(5000)}})
    close(raw, FAR[0])
    assert await reopen(server) == 2
    [(_, letter)] = raw.xrange(DEAD)
    assert letter["dead_reason"] == "too-large"
    assert raw.xlen(KEY) == 1


@pytest.mark.parametrize("times", [1, 3])
async def test_a_stream_that_is_closed_again_before_all_is_moved_opens_with_the_next_call(server, raw, seen, times):
    size = 2 * REOPEN_IDS
    n = size
    pipe = raw.pipeline()
    for at in range(size):
        pipe.xadd(KEY, {"type": "note", "data": f'{{"n":{at}}}'})
    pipe.execute()
    close(raw, FAR[0], f'{{"n":{n}}}')
    for _ in range(times):
        assert await reopen(server, stop_after=1)
        n += 1
        close(raw, f"{LAST}-{LAST}", f'{{"n":{n}}}')  # the same sender once more: nothing can be added to the fresh one
        with pytest.raises(redis.ResponseError):
            raw.xadd(KEY, {"type": "note", "data": "{}"})
        found = await errors(server)
        assert "is closed by an id" in found
        assert "not moved yet" in found
    await reopen(server)
    assert not raw.keys("*closed*")
    assert "closed" not in await errors(server)
    assert sorted(int(fields["data"][5:-1]) for _, fields in raw.xrange(KEY)) == list(range(n + 1))
    raw.xadd(KEY, {"type": "note", "data": f'{{"n":{n + 1}}}'})
    async with working(server.url, seen.handler):
        await until(lambda: len(seen.jobs) == n + 2 and not leftovers(raw), "all run")


async def test_a_sender_that_closes_a_stream_again_and_again_does_not_keep_the_command(server, raw):
    for at in range(2 * REOPEN_IDS):
        raw.xadd(KEY, {"type": "note", "data": f'{{"n":{at}}}'})
    close(raw, FAR[0])
    store = ControlStore(server.url, "jobs")
    assert await store.reopen(1) == (REOPEN_IDS, REOPEN_IDS + 1, True)
    close(raw, f"{LAST}-{LAST}")
    with pytest.raises(StoreError, match="last possible"):
        await store.reopen(1, may_set_aside=False)
    assert raw.xlen(KEY) + raw.xlen(ASIDE) == 2 * REOPEN_IDS + 2
    await store.close()
    await reopen(server)
    assert raw.xlen(KEY) == 2 * REOPEN_IDS + 2
    assert not raw.keys("*closed*")


async def test_a_key_of_another_type_in_the_way_is_named_and_the_other_streams_are_opened(server, raw):
    raw.set("{jobs}:critical:closed", "x")
    close(raw, FAR[0])
    result = await asyncio.to_thread(command, server, "jobs", "reopen")
    assert result.returncode == 1
    assert "critical: Redis answered: WRONGTYPE {jobs}:critical:closed is a string" in result.stderr
    assert "high: 1 jobs moved" in result.stdout
    raw.delete("{jobs}:critical:closed")
    raw.rename(KEY, ASIDE)
    raw.set(KEY, "x")
    assert "{jobs}:high is a string" in (await asyncio.to_thread(command, server, "jobs", "reopen")).stderr
    assert raw.xlen(ASIDE) == 1


def command(server, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "runtime", *arguments, "--redis", server.url]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


async def test_dead_letters_that_take_no_more_are_told_of_and_opened_with_all_that_was_in_them(server, raw):
    @handler(Note)
    async def dies(message: Note, job: Job) -> None:
        raise Dead("for ever")

    old = raw.xadd(DEAD, {"type": "note", "data": '{"n":1}', "dead_reason": "attempts", "dead_from": "high/1-1", "dead_at": "1"})
    raw.xadd(DEAD, {f"f{n}": "" for n in range(5000)} | {"dead_reason": "bad-payload", "dead_error": "a stranger's"})
    raw.execute_command("XSETID", DEAD, f"{LAST}-{LAST}")
    raw.xadd(KEY, {"type": "note", "data": "{}"})
    async with working(server.url, dies) as worker:
        await until(lambda: [text for text in worker.maintenance.troubles if "dead is closed" in text], "the sweep has seen it")
        assert "{jobs}:dead is closed by an id" in await errors(server)
        assert raw.xlen(KEY) == 1
        result = await asyncio.to_thread(command, server, "jobs", "reopen")
        assert "dead: 2 letters moved to a fresh stream, where each has another place" in result.stdout
        await until(lambda: raw.xlen(DEAD) == 3 and not raw.xlen(KEY), "its letter is written")
    assert not raw.keys("*closed*")
    (first, fields), (_, long), (_, new) = raw.xrange(DEAD)
    assert first != old
    assert fields["data"] == '{"n":1}'
    assert long["dead_reason"] == "bad-payload"
    assert "raw" in long
    assert new["dead_error"] == "for ever"
    store = ControlStore(server.url, "jobs")
    assert (await store.replay(first)).partition("-")[0].isdigit()
    await store.close()
    assert "closed" not in await errors(server)
