"""The stream of a whole board on a real store: what is sent shows soon, a cut line heals, and nobody who looks costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis
from aiohttp import ClientSession

from board import sampler
from board.alone import AloneBoard
from board.pages import open_board
from board.shapes import Frame
from runtime.config import Config
from runtime.store.inspector import Inspector
from tests.proxy import Proxy
from tests.servers import PATIENCE_S, Server

QUIET_S = 5.0  # without a command of the board


@asynccontextmanager
async def board(url: str, folder: Path) -> AsyncGenerator[str]:
    """Serve a whole board; yields its address."""
    config = Config(queue="jobs", board="127.0.0.1:0", data_dir=str(folder))
    async with AsyncExitStack() as stack:
        site = await open_board(stack, config, url, lambda web: AloneBoard(Inspector(url, "jobs", "board"), "127.0.0.1", 0, web))
        yield site.url


@asynccontextmanager
async def frames(url: str, topics: str = "overview") -> AsyncGenerator[AsyncIterator[Frame]]:
    """Open the stream; yields its frames."""
    async with ClientSession() as client, client.get(f"{url}/events?topics={topics}") as answer:
        assert answer.status == 200

        async def each() -> AsyncIterator[Frame]:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    told = msgspec.json.decode(line.removeprefix(b"data: "))
                    yield msgspec.convert(told["frame"], Frame)

        yield each()


async def until(ticks: AsyncIterator[Frame], is_there: Any, what: str) -> Frame:
    """Return the first frame that fits."""
    async with asyncio.timeout(PATIENCE_S):
        async for frame in ticks:
            if is_there(frame):
                return frame
    raise AssertionError(f"the stream has ended without {what}")


def send(raw: redis.Redis) -> None:
    raw.xadd("{jobs}:high", {"type": "t", "data": "{}"})


async def test_what_is_sent_shows_within_two_ticks(valkey: Server, raw: redis.Redis, tmp_path: Path) -> None:
    async with board(valkey.url, tmp_path) as url, frames(url) as ticks:
        assert (await anext(ticks)).counts.jobs == 0
        send(raw)
        seen = [(await anext(ticks)).counts.jobs for _ in range(2)]  # the first may have been looked at before
        assert seen[1] == 1


@pytest.mark.parametrize("how", ["reset", "cut", "deafen"])
async def test_a_line_to_redis_that_was_cut_heals_by_itself(how: str, valkey: Server, raw: redis.Redis, tmp_path: Path) -> None:
    async with Proxy(valkey.socket) as proxy, board(proxy.url, tmp_path) as url, frames(url) as ticks:
        await anext(ticks)
        if how == "cut":
            proxy.drop_next_reply(cut_at_bytes=5)  # in the middle of an answer
        else:
            assert getattr(proxy, how)() > 0
        send(raw)
        healed = await until(ticks, lambda frame: frame.counts.jobs == 1, "the job")
        assert (healed.trouble, healed.age_ms) == (None, 0)
        assert how != "cut" or proxy.dropped == 1
        send(raw)
        assert (await until(ticks, lambda frame: frame.counts.jobs == 2, "the next one")).trouble is None


async def test_who_was_cut_off_begins_again_with_the_present(valkey: Server, raw: redis.Redis, tmp_path: Path) -> None:
    async with board(valkey.url, tmp_path) as url:
        for jobs in range(3):
            async with frames(url) as ticks:  # and is cut off, in the middle of it
                assert (await until(ticks, lambda frame, jobs=jobs: frame.counts.jobs == jobs, "the present")).trouble is None
            send(raw)


def commands(raw: redis.Redis) -> dict[str, int]:
    """Return how often each command was called, but for those that the test calls."""
    told: Any = raw.info("commandstats")
    return {name: row["calls"] for name, row in told.items() if name != "cmdstat_info"}


async def test_nobody_who_looks_means_not_one_command(
    valkey: Server, raw: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "LINGER_S", 0.5)
    raw.xadd("{jobs}:dead", {"type": "t", "data": "{}", "dead_reason": "attempts"})
    async with board(valkey.url, tmp_path) as url, ClientSession() as client:
        async with frames(url) as ticks:
            for path in ("overview", "jobs", "dead/groups", "dead", "types", "workers", "queue", "system", "audit", "operations"):
                async with client.get(f"{url}/api/{path}") as answer:
                    assert answer.status == 200, path
            await anext(ticks)
        before, since_s = commands(raw), time.monotonic()
        end_s = since_s + PATIENCE_S
        while time.monotonic() - since_s < QUIET_S:  # what is under way may end first
            assert time.monotonic() < end_s, "the board goes on asking"
            await asyncio.sleep(0.1)
            if (now := commands(raw)) != before:
                before, since_s = now, time.monotonic()
