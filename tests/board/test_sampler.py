"""One sampler for all who look, and none where nobody does; Redis away is told, and over by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import redis

from board.overview import OverviewPage
from board.sampler import MOST_KEPT, OVERVIEW, Sampler
from board.shapes import Nothing, OverviewAsk, Tick
from board.viewer import Viewer
from runtime.errors import StoreUnavailable
from runtime.jobs import STREAMS
from runtime.store.base import GROUP, WorkerRow
from tests.servers import PATIENCE_S, Server

ANY = Viewer(rights=frozenset({"view"}))
NO_TOPICS: frozenset[str] = frozenset()
FAR_MS = 10**13


@pytest.fixture
async def sampler(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sampler]:
    monkeypatch.setattr("board.sampler.FILL_S", 0.001)
    opened = Sampler(valkey.url, "jobs")
    yield opened
    await opened.close()


async def until(is_true: Callable[[], object], what: str) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < end_s, f"{what} did not hold in time"
        await asyncio.sleep(0.01)


def asked(raw: redis.Redis) -> int:
    """Return how many commands the server has run, but for those of tests and of connections."""
    commands = cast("dict[str, dict[str, int]]", raw.info("commandstats"))
    return sum(row["calls"] for name, row in commands.items() if name.split("_")[1] not in ("info", "config|resetstat", "ping"))


def lives(raw: redis.Redis, **row: Any) -> None:
    raw.zadd("{jobs}:workers", {"w1": FAR_MS})
    raw.hset("{jobs}:workers:rows", "w1", str(WorkerRow(30_000, "web", 7, lanes=10, stage="running", **row)))


async def next_of(frames: Any) -> Tick:
    return await asyncio.wait_for(anext(frames), PATIENCE_S)


async def test_a_viewer_gets_a_snapshot_and_then_what_changes(sampler: Sampler, raw: redis.Redis) -> None:
    async with sampler.subscribe(frozenset({OVERVIEW})) as frames:
        first = await next_of(frames)
        assert first.overview is not None
        assert (first.frame.counts.jobs, first.overview.priorities[1].waiting) == (0, 0)
        raw.xadd("{jobs}:high", {"type": "t", "data": "{}"})
        seen = [await next_of(frames) for _ in range(3)]
        assert seen[-1].frame.counts.jobs == 1
        assert seen[-1].overview is not None
        assert seen[-1].overview.priorities[1].waiting == 1


async def test_a_viewer_who_does_not_show_the_first_page_gets_the_frame_alone(sampler: Sampler) -> None:
    async with sampler.subscribe(NO_TOPICS) as frames:
        assert (await next_of(frames)).overview is None


async def test_fifty_viewers_cost_as_one(sampler: Sampler, raw: redis.Redis) -> None:
    async with sampler.subscribe(frozenset({OVERVIEW})) as one:
        await until(lambda: sampler.history.now and not sampler.history.missing(), "the day is read")
        counts: list[int] = []
        for others in (0, 49):
            more = [sampler.subscribe(frozenset({OVERVIEW})) for _ in range(others)]
            for viewer in more:
                await viewer.__aenter__()
            begun = sampler.seq
            await until(lambda begun=begun: sampler.seq > begun, "a look")
            before, seq = sampler.store.asked, sampler.seq
            await until(lambda seq=seq: sampler.seq >= seq + 2, "two looks")
            counts.append(sampler.store.asked - before)
            ticks = [sampler.tick(viewer.topics, viewer.over, viewer.has_messages) for viewer in (one, *more)]
            assert all(tick is ticks[0] for tick in ticks), "the same answer for all"
            for viewer in more:
                await viewer.__aexit__(None, None, None)
    # But for a minute or two that were over meanwhile, and were read; a look of each viewer's own would be 49 times as many.
    assert abs(counts[0] - counts[1]) < counts[0] / 2


async def test_when_the_last_viewer_has_gone_nothing_is_asked(sampler: Sampler, raw: redis.Redis) -> None:
    async with sampler.subscribe(NO_TOPICS) as frames:
        await next_of(frames)
        await until(lambda: not sampler.history.missing(), "the day is read")
    await until(lambda: sampler._task is not None and sampler._task.done(), "the end of the looks")
    await until(lambda: sampler._background is None or sampler._background.done(), "the end of what is read beside them")
    before = asked(raw)
    await asyncio.sleep(1.5)  # what must not happen has no end to wait for: a look and a half
    assert asked(raw) == before
    assert sampler.viewers == 0


async def test_nobody_who_looks_means_no_connection_at_all(sampler: Sampler, raw: redis.Redis) -> None:
    raw.config_resetstat()
    await asyncio.sleep(0.1)
    assert asked(raw) == 0


async def test_a_page_that_is_asked_for_is_looked_at_for_a_while(valkey: Server) -> None:
    now = [1000.0]
    sampler = Sampler(valkey.url, "jobs", clock=lambda: now[0])
    page = OverviewPage(sampler)
    await page.overview(OverviewAsk(), ANY)
    assert (await page.frame(Nothing(), ANY)).counts.workers == 0
    assert sampler.seq == 1
    await until(lambda: sampler.seq == 2, "a second look")
    now[0] += 4.9
    assert sampler._is_watched
    now[0] += 0.2
    assert not sampler._is_watched
    await sampler.close()


async def test_two_who_ask_at_once_share_a_look(sampler: Sampler) -> None:
    found = await asyncio.gather(*[sampler.overview() for _ in range(20)])
    assert all(one is found[0] for one in found)
    assert sampler.seq == 1


async def test_messages_are_made_for_those_alone_who_may_see_them(sampler: Sampler) -> None:
    await sampler.picture()
    told: list[bool] = []

    def newest(n: int, *, has_messages: bool) -> list[Any]:
        told.append(has_messages)
        return []

    sampler.letters.newest = newest  # pyright: ignore[reportAttributeAccessIssue]
    pictures = [sampler.tick(frozenset({OVERVIEW}), "1h", has_messages) for has_messages in (False, True, False, True)]
    assert sorted(told) == [False, True], "once for each kind of viewer"
    assert pictures[0] is pictures[2] and pictures[1] is pictures[3] and pictures[0] is not pictures[1]


async def test_a_slow_viewer_misses_the_oldest_frames(sampler: Sampler) -> None:
    async with sampler.subscribe(NO_TOPICS) as frames:
        tick = await next_of(frames)
        for _ in range(20):
            frames.put(tick)
        assert len(frames._frames) == MOST_KEPT


# --- Redis away ----------------------------------------------------------------------------------------------------------------


async def test_redis_away_leaves_the_last_picture_with_its_age_and_comes_back_by_itself() -> None:
    server = Server("valkey", appendonly=True)
    sampler = Sampler(server.url, "jobs")
    try:
        client = server.client()
        client.xadd("{jobs}:high", {"type": "t", "data": "{}"})
        client.close()
        async with asyncio.timeout(PATIENCE_S), sampler.subscribe(frozenset({OVERVIEW})) as frames:
            tick = await next_of(frames)
            assert (tick.frame.trouble, tick.frame.age_ms, tick.frame.counts.jobs) == (None, 0, 1)
            server.kill()
            while tick.frame.trouble is None:
                tick = await next_of(frames)
            assert (tick.frame.counts.jobs, tick.frame.age_ms > 0) == (1, True)
            assert "Redis at" in tick.frame.trouble
            assert (await sampler.frame()).trouble == tick.frame.trouble
            server.start()
            while tick.frame.trouble is not None:
                tick = await next_of(frames)
            assert (tick.frame.age_ms, tick.frame.counts.jobs) == (0, 1)
    finally:
        await sampler.close()
        server.stop()


async def test_redis_that_was_never_there_is_told() -> None:
    sampler = Sampler("redis://127.0.0.1:1", "jobs")
    with pytest.raises(StoreUnavailable):
        await sampler.overview()
    async with sampler.subscribe(frozenset({OVERVIEW})) as frames:
        tick = await next_of(frames)
    assert (tick.overview, tick.frame.level) == (None, "act")
    assert tick.frame.trouble
    await sampler.close()


async def test_a_defect_of_a_look_is_told_and_the_next_one_is_made(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sampler.subscribe(NO_TOPICS) as frames:
        await next_of(frames)
        monkeypatch.setattr(sampler.rates, "note", lambda one: 1 / 0)
        tick = await next_of(frames)
        while tick.frame.trouble is None:
            tick = await next_of(frames)
        assert tick.frame.trouble == "the board failed: ZeroDivisionError"
        monkeypatch.undo()
        while tick.frame.trouble is not None:
            tick = await next_of(frames)


# --- what is shown -------------------------------------------------------------------------------------------------------------


async def test_the_first_page_has_the_figures_of_redis(sampler: Sampler, raw: redis.Redis) -> None:
    now = int(time.time() // 60)
    for of in STREAMS:
        raw.xgroup_create(f"{{jobs}}:{of}", GROUP, "0", mkstream=True)
    for _ in range(5):
        raw.xadd("{jobs}:low", {"type": "t", "data": "{}"})
    raw.xreadgroup(GROUP, "w1", {"{jobs}:low": ">"}, count=2)
    raw.zadd("{jobs}:due", {"a": 10**13})
    lives(raw, running={"t": 2}, types={"t": 1, "never": 1}, jobs=[("low/1-0", int(time.time() * 1000) - 9_000, "t")])
    counters = {"t low done": 30, "t low retry": 9, "t low dead": 1, "t low run11": 40, " low wait5": 40}
    raw.hset(f"{{jobs}}:stats:{now - 2}", mapping=cast("Any", counters))
    raw.hset(f"{{jobs}}:stats:{now - 2}", " low depth", 77)
    raw.hset(f"{{jobs}}:stats:{now - 300}", "t low done", 1000)
    raw.xadd("{jobs}:dead", {"type": "t"})
    async with sampler.subscribe(NO_TOPICS):
        await until(lambda: sampler.history.now and not sampler.history.missing(), "the day is read")
        seq = sampler.seq
        await until(lambda: sampler.seq > seq, "a look that knows the day")
    page = await sampler.overview("24h")
    low = page.priorities[3]
    assert (low.name, low.waiting, low.claimed, low.failed_5m, page.delayed) == ("low", 3, 2, 10, 1)
    assert low.wait_p95_ms == pytest.approx(31.2)
    assert low.run_p95_ms == pytest.approx(1.9968)
    assert 77 in low.depth
    assert low.depth[-1] == 3
    assert [verdict.level for verdict in page.verdicts] == ["ok", "look", "ok", "act"]
    assert sum(n or 0 for n in page.series.done) == 1030
    assert sum(n or 0 for n in (await sampler.overview("1h")).series.done) == 30
    assert page.series.is_complete
    [kind, other] = page.types
    assert (kind.type, kind.runs, kind.failed, kind.claimed, kind.pri, kind.level) == ("t", 40, 10, 2, "low", "look")
    assert (other.type, other.runs, other.is_known) == ("never", 0, True)
    [worker] = page.workers
    assert (worker.label, worker.busy, worker.lanes, worker.held, worker.is_alive) == ("web · 7", 2, 10, 2, True)
    assert worker.longest is not None
    assert worker.longest.runs_ms >= 9_000
    frame = await sampler.frame()
    assert (frame.level, frame.looks, frame.acts, frame.counts.jobs, frame.counts.dead) == ("act", 1, 1, 6, 1)
    assert (frame.counts.workers, frame.counts.types) == (1, 2)


async def test_a_fresh_queue_shows_how_to_begin(sampler: Sampler, raw: redis.Redis) -> None:
    sampler.hint = "send something"
    assert (await sampler.overview()).hint == "send something"
    raw.xadd("{jobs}:low", {"type": "t", "data": "{}"})
    await until(lambda: sampler.seq == 2, "a second look")
    assert (await sampler.overview()).hint == ""


async def test_what_fails_is_told_with_the_class_of_its_newest_errors(sampler: Sampler, raw: redis.Redis) -> None:
    raw.hset(f"{{jobs}}:stats:{int(time.time() // 60) - 2}", mapping=cast("Any", {"t low retry": 30}))
    for _ in range(20):
        raw.xadd("{jobs}:events", {"type": "t", "outcome": "retry", "error": "HTTPStatusError: 401 of ada@example.com"})
    async with sampler.subscribe(frozenset({OVERVIEW})) as frames:
        said: list[str] = []
        while "HTTPStatusError" not in said:
            overview = (await next_of(frames)).overview
            said = overview.verdicts[1].said if overview is not None else []
    assert said == ["", "t", ": 100 % of 30 runs failed in 5 min. All ", "HTTPStatusError", "."]
