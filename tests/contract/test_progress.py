"""Jobs tell people how far they are, and in lines what they did: from the loop, threads and child processes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import msgspec
import pytest

from runtime import Backoff, Job, contract, handler
from runtime.said import Report, read_reports
from tests.servers import Server
from tests.workers import until, working

KEY = "{jobs}:high"
LOGS = "{jobs}:logs"
EVENTS = "{jobs}:events"


@contract("say")
class Say(msgspec.Struct, frozen=True, kw_only=True):
    text: str = ""


go_on = threading.Event()


@handler(Say)
async def quick(message: Say, job: Job) -> None:
    job.progress(1, 1)
    job.log(message.text)


@handler(Say)
async def slow(message: Say, job: Job) -> None:
    job.progress(1, 4, "rows")
    job.log(message.text)
    await until(go_on.is_set)


@handler(Say, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
def fail(message: Say, job: Job) -> None:
    job.log(f"attempt {job.attempt}")
    raise ValueError(message.text)


@handler(Say, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
async def fail_mutely(message: Say, job: Job) -> None:
    raise ValueError(message.text)


@handler(Say, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2), max_size=2, max_wait_ms=1)
async def fail_together(messages: list[Say], jobs: list[Job]) -> None:
    raise ValueError(messages[0].text)


@handler(Say)
async def elsewhere(message: Say, job: Job) -> None:
    """Say it in a thread that knows nothing of the lane."""
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        await asyncio.get_running_loop().run_in_executor(executor, job.log, message.text)
    await until(go_on.is_set)


def send(raw: Any, text: str = "a", **fields: str) -> None:
    raw.xadd(KEY, {"type": "say", "data": msgspec.json.encode(Say(text=text)), **fields})


def reports(raw: Any, worker: str) -> list[Report]:
    return read_reports((raw.get(f"{{jobs}}:progress:{worker}") or "").encode())[0]


def ended(raw: Any) -> list[tuple[str, str, str, str]]:
    return [(told["id"], told["attempt"], told["outcome"], told["text"]) for _, told in raw.xrange(LOGS)]


async def test_the_lines_of_a_job_that_is_over_at_once_are_kept(server: Server):
    raw: Any = server.client()
    send(raw, "only\na moment", id="j")
    async with working(server.url, quick):
        await until(lambda: raw.xlen(LOGS), "its lines are kept")
    assert ended(raw) == [("j", "1", "done", "only\na moment")]


async def test_a_job_that_runs_is_seen_and_vanishes_with_its_end(server: Server):
    raw: Any = server.client()
    go_on.clear()
    send(raw, "begun", id="j")
    async with working(server.url, slow) as consumer:
        await until(lambda: reports(raw, consumer.name), "it is seen")
        [report] = reports(raw, consumer.name)
        assert (report.id, report.done, report.total, report.text, report.lines) == ("j", 1, 4, "rows", ["begun"])
        assert 0 < report.since_ms <= report.at_ms
        assert 0 < raw.pttl(f"{{jobs}}:progress:{consumer.name}") <= 30_000
        go_on.set()
        await until(lambda: not reports(raw, consumer.name), "it is gone")
    assert ended(raw) == [("j", "1", "done", "begun")]


async def test_each_attempt_of_a_thread_has_its_lines_and_what_became_of_it(server: Server):
    raw: Any = server.client()
    send(raw, "no", id="j")
    async with working(server.url, fail):
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is dead")
    assert sorted(ended(raw)) == [("j", "1", "retry", "attempt 1"), ("j", "2", "dead", "attempt 2")]


@pytest.mark.parametrize("failing", [fail, fail_mutely, fail_together], ids=["spoke", "mute", "together"])
async def test_each_attempt_has_what_it_failed_of_whether_it_has_lines_or_not(server: Server, failing: Any):
    raw: Any = server.client()
    send(raw, "the database says no", id="j")
    async with working(server.url, failing):
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is dead")
    assert bool(ended(raw)) == (failing is fail), "only lines are kept here"
    told = sorted((told["attempt"], told["outcome"], told["error"]) for _, told in raw.xrange(EVENTS))
    assert told == [(n, outcome, "ValueError: the database says no") for n, outcome in (("1", "retry"), ("2", "dead"))]


async def test_a_stop_keeps_the_lines_of_what_it_cuts(server: Server):
    raw: Any = server.client()
    go_on.clear()
    send(raw, "to be continued", id="j")
    async with working(server.url, slow, grace_s=0.01) as consumer:
        await until(lambda: consumer.running, "it runs")
    assert ended(raw) == [("j", "1", "released", "to be continued")]
    assert reports(raw, consumer.name) == []


async def test_a_thread_without_the_context_of_its_job_is_heard_too(server: Server):
    raw: Any = server.client()
    go_on.clear()
    send(raw, "hello", id="j")
    async with working(server.url, elsewhere) as consumer:
        await until(lambda: reports(raw, consumer.name), "it is seen")
        assert [report.lines for report in reports(raw, consumer.name)] == [["hello"]]
        go_on.set()


async def test_the_lines_of_such_a_thread_are_kept_where_its_job_is_over_at_once(server: Server):
    raw: Any = server.client()
    go_on.set()
    send(raw, "hello", id="j")
    async with working(server.url, elsewhere):
        await until(lambda: ended(raw), "they are kept")
    assert ended(raw) == [("j", "1", "done", "hello")]


async def test_keys_of_another_type_cost_nothing_but_what_would_stand_there(server: Server):
    raw: Any = server.client()
    raw.set(LOGS, "a stranger's")
    send(raw, "lost", id="j")
    async with working(server.url, quick) as consumer:
        raw.hset(f"{{jobs}}:progress:{consumer.name}", "a", "b")
        await until(lambda: consumer.stats.finished == 1, "it is done")
        send(raw, "lost again")
        await until(lambda: consumer.stats.finished == 2, "the worker goes on")
    assert raw.get(LOGS) == "a stranger's"
