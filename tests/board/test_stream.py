"""The stream: the present first, then each tick; slow readers miss some, and nobody keeps what they may not see."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import ClientResponse

from board import stream
from board.access import Proxy
from board.stream import MAX_OF_ONE, QUEUED, _Mail  # pyright: ignore[reportPrivateUsage]
from board.system import resident_bytes
from tests.board.boards import Opened, opened
from tests.board.test_access import TOKENS
from tests.board.test_web import cookie_of
from tests.workers import until

FRAMES, FRAME_BYTES = 600, 200_000  # 120 MB, and as much for each of those who listen to ticks of their own


async def listen(board: Opened, path: str = "/events", **headers: str) -> ClientResponse:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await board.client.get(board.url + path, headers=given or {"Authorization": f"Bearer {TOKENS['view']}"})


async def next_frame(answer: ClientResponse) -> Any:
    async with asyncio.timeout(20):
        lines: list[bytes] = []
        while (line := await answer.content.readline()) not in (b"\n", b""):
            lines.append(line)
    if not lines:
        return None
    if lines[0].startswith(b":"):
        return "comment"
    assert lines[0] == b"event: tick\n"
    return json.loads(lines[1].removeprefix(b"data: "))["frame"]["now_ms"]


async def test_a_stream_begins_with_the_present_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "COMMENT_S", 0.5)  # who has left is met by what is written next
    async with opened() as board:
        answer = await listen(board, "/events?topics=overview,,jobs&range=24h")
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        assert answer.headers["Cache-Control"] == "no-store"
        assert await next_frame(answer) == 0
        board.ticks.tick(1)
        while (found := await next_frame(answer)) == "comment":
            pass
        assert found == 1
        [(topics, over, viewer)] = board.ticks.asked
        assert (topics, over, viewer.who) == ({"overview", "jobs"}, "24h", "view")
        answer.close()
        await until(lambda: not board.ticks.queues, "who left is not ticked for")


async def test_a_silent_stream_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "COMMENT_S", 0.05)
    async with opened() as board:
        answer = await listen(board)
        assert await next_frame(answer) == 0
        assert await next_frame(answer) == "comment"
        board.ticks.tick(1)
        while (found := await next_frame(answer)) == "comment":
            pass
        assert found == 1
        answer.close()


async def test_of_what_was_not_read_the_oldest_is_dropped() -> None:
    mail = _Mail()
    for number in range(10):
        mail.put(b"%d" % number)
    assert [await mail.next() for _ in range(QUEUED)] == [b"6", b"7", b"8", b"9"]
    mail.put(b"10")
    mail.end()
    assert await mail.next() is None


async def test_a_stream_ends_with_its_session_and_with_the_board() -> None:
    async with opened() as board:
        cookie = cookie_of(await board.post("/api/login", {"token": TOKENS["view"]}))
        mine, bearers = await listen(board, Cookie=cookie), await listen(board)
        assert [await next_frame(mine), await next_frame(bearers)] == [0, 0]
        await board.post("/api/logout", Cookie=cookie)
        board.ticks.tick(1)
        assert await next_frame(mine) is None
        assert await next_frame(bearers) == 1
        await board.site.__aexit__(None, None, None)
        assert await next_frame(bearers) is None


async def test_one_session_has_so_many_streams_and_all_of_them_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", MAX_OF_ONE + 2)
    monkeypatch.setattr(stream, "COMMENT_S", 0.5)
    async with opened() as board:
        cookies = [cookie_of(await board.post("/api/login", {"token": TOKENS["view"]})) for _ in range(3)]
        first = [await listen(board, Cookie=cookies[0]) for _ in range(MAX_OF_ONE + 1)]
        assert [one.status for one in first] == [200] * MAX_OF_ONE + [429]
        others = [await listen(board, Cookie=cookies[1]) for _ in range(2)]
        full = await listen(board, Cookie=cookies[2])
        assert [one.status for one in [*others, full]] == [200, 200, 429]
        first[0].close()
        await until(lambda: len(board.ticks.queues) == MAX_OF_ONE + 1, "it has left")
        again = await listen(board, Cookie=cookies[2])
        assert again.status == 200
        for one in (*first, *others, again):
            one.close()


async def test_users_behind_one_proxy_have_so_many_each() -> None:
    proxy = Proxy(secret="s" * 32, roles={"view": ["ada", "eve"]})
    async with opened(tokens={}, proxy=proxy) as board:
        asked = [{"X-Board-Secret": "s" * 32, "X-Forwarded-User": who} for who in ("ada",) * MAX_OF_ONE + ("eve", "ada")]
        streams = [await listen(board, **headers) for headers in asked]
        assert [one.status for one in streams] == [200] * (MAX_OF_ONE + 1) + [429]
        for one in streams:
            one.close()


async def test_a_reader_that_takes_nothing_is_closed_and_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "STUCK_S", 0.3)
    async with opened() as board:
        host, _, port = board.url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
        writer.write(f"GET /events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKENS['view']}\r\n\r\n".encode())
        await reader.readline()

        def is_gone() -> bool:
            for number in range(20):
                board.ticks.tick(number, "x" * 100_000)  # more than the system's buffers bear, soon
            return not board.ticks.queues

        await until(is_gone, "the one who reads nothing is closed")
        assert (await board.get("/api/meta")).status == 200
        writer.transport.abort()


async def test_however_much_readers_leave_unread_it_costs_no_memory() -> None:
    async with opened() as board:
        host, _, port = board.url.removeprefix("http://").partition(":")
        writers: list[asyncio.StreamWriter] = []
        for _ in range(MAX_OF_ONE):
            reader, writer = await asyncio.open_connection(host, int(port), limit=1000)
            writer.write(f"GET /events HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKENS['view']}\r\n\r\n".encode())
            await reader.readline()
            writers.append(writer)
        await until(lambda: len(board.ticks.queues) == MAX_OF_ONE, "all listen")
        before = resident_bytes()
        for number in range(FRAMES):
            board.ticks.tick(number, chr(97 + number % 26) * FRAME_BYTES)
            await until(lambda: not any(queue.qsize() for queue in board.ticks.queues), "all have been given it")
        grown = resident_bytes() - before
        for writer in writers:
            writer.transport.abort()
    assert grown < FRAMES * FRAME_BYTES / 4, f"{grown:,} bytes more"


async def test_a_source_that_fails_ends_the_stream_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as board:
        answer = await listen(board)
        assert await next_frame(answer) == 0
        board.ticks.queues[0].put_nowait("no tick but a defect")  # pyright: ignore[reportArgumentType]
        board.ticks.queues[0].put_nowait(object())  # pyright: ignore[reportArgumentType]
        while await next_frame_of_any(answer) is not None:
            pass
        assert (await board.get("/api/meta")).status == 200
    assert any("a stream ended" in line for line in caplog.messages)


async def next_frame_of_any(answer: ClientResponse) -> bytes | None:
    async with asyncio.timeout(20):
        return await answer.content.readline() or None


async def test_pages_of_other_sites_have_no_stream() -> None:
    async with opened(tokens={}) as board:
        assert (await listen(board, Sec_Fetch_Site="cross-site")).status == 403
        own = await listen(board, Sec_Fetch_Site="same-origin")
        assert own.status == 200
        own.close()
