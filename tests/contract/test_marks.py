"""Marks: what an attempt leaves for the next, written by coroutines and threads, down the worker's own connection."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio.from_thread
import msgspec
import pytest

from runtime import Backoff, BadMarks, ConfigError, Job, StoreUnavailable, contract, handler
from runtime.jobs import MAX_MARKS_BYTES, Marks
from runtime.streams import MARKS_LIFE_MS
from runtime.testing import Notes
from tests.builders import job
from tests.servers import Server
from tests.workers import until, working

KEY = "{jobs}:high"


@contract("remember")
class Remember(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


found: list[tuple[int, bytes | None]] = []
AGAIN = Backoff(base_s=0.01, cap_s=0.01, attempts=3)


@pytest.fixture(autouse=True)
def _begin_anew() -> None:
    found.clear()


@handler(Remember, retry=AGAIN)
async def on_the_loop(message: Remember, job: Job) -> None:
    found.append((job.attempt, await job.marks.get()))
    await job.marks.set(f"attempt {job.attempt}")
    if job.attempt < 3:
        raise ValueError("again")
    await job.marks.delete()


@handler(Remember, retry=AGAIN)
def in_a_thread(message: Remember, job: Job) -> None:
    found.append((job.attempt, anyio.from_thread.run(job.marks.get)))
    anyio.from_thread.run(job.marks.set, b"attempt %d" % job.attempt)
    if job.attempt < 3:
        raise ValueError("again")


@handler(Remember, retry=Backoff(attempts=1))
async def wants_too_much(message: Remember, job: Job) -> None:
    await job.marks.set(b"x" * (MAX_MARKS_BYTES + 1))


async def _awaited(ask: Callable[[], Any]) -> Any:
    return await ask()


@handler(Remember, retry=Backoff(attempts=1))
def in_a_loop_of_its_own(message: Remember, job: Job) -> None:
    for ask in (job.marks.get, job.marks.delete, lambda: job.marks.set(b"x")):
        with pytest.raises(ConfigError, match=r"hint: anyio\.from_thread\.run\(job\.marks\.get\)"):
            ask()
        with pytest.raises(ConfigError, match=r"hint: anyio\.from_thread\.run\(job\.marks\.get\)"):
            asyncio.run(_awaited(ask))
    found.append((job.attempt, None))


def send(raw: Any, **fields: str) -> None:
    raw.xadd(KEY, {"type": "remember", "data": "{}", **fields})


async def test_each_attempt_finds_what_the_one_before_has_left(server: Server):
    raw: Any = server.client()
    send(raw, id="j")
    async with working(server.url, on_the_loop):
        await until(lambda: len(found) == 3 and not raw.xlen(KEY), "all three ran")
    assert found == [(1, None), (2, b"attempt 1"), (3, b"attempt 2")]
    assert raw.keys("{jobs}:marks:*") == []


async def test_a_thread_calls_them_through_the_loop_and_they_stay_for_a_week(server: Server):
    raw: Any = server.client()
    send(raw, id="j")
    async with working(server.url, in_a_thread):
        await until(lambda: len(found) == 3 and not raw.xlen(KEY), "all three ran")
    assert found == [(1, None), (2, b"attempt 1"), (3, b"attempt 2")]
    [key] = raw.keys("{jobs}:marks:*")
    assert key == f"{{jobs}}:marks:{job(id='j').work}"
    assert MARKS_LIFE_MS - 60_000 < raw.pttl(key) <= MARKS_LIFE_MS


async def test_a_loop_of_a_thread_s_own_is_refused_before_it_breaks_the_worker_s_connection(server: Server):
    raw: Any = server.client()
    for _ in range(5):
        send(raw)
    async with working(server.url, in_a_loop_of_its_own):
        await until(lambda: not raw.xlen(KEY), "all five ran")
    assert found == [(1, None)] * 5
    assert raw.xlen("{jobs}:dead") == 0


async def test_what_is_too_large_is_an_error_of_the_handler_and_nothing_is_written(server: Server):
    raw: Any = server.client()
    send(raw)
    async with working(server.url, wants_too_much):
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is dead")
    [(_, letter)] = raw.xrange("{jobs}:dead")
    assert "BadMarks: marks must have at most 65,536 bytes, got 65,537" in letter["dead_error"]
    assert raw.keys("{jobs}:marks:*") == []


async def test_a_key_of_another_type_is_an_error_of_the_store(on_server: Any):
    store = on_server.streams()
    on_server.raw.hset("{jobs}:marks:w", "a", "b")
    with pytest.raises(StoreUnavailable, match="WRONGTYPE"):
        await store.marks_of("w")


@pytest.mark.parametrize("value", [None, 7, ["a"], "\ud800", "x" * (MAX_MARKS_BYTES + 1), "ü" * MAX_MARKS_BYTES])
def test_marks_are_bytes_or_text_within_their_bound(value: Any):
    with pytest.raises(BadMarks, match="marks must"):
        Marks("w", Notes()).set(value)


def test_without_a_worker_there_are_no_marks():
    with pytest.raises(ConfigError, match="job.marks: not in a child process"):
        _ = job().marks
