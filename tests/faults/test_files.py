"""Without a free file: connections to the board are bounded, and for a worker that needs one the store is away."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from aiohttp import web

import board.site
from board.site import MAX_CONNECTIONS, Site
from runtime import Backoff, Job, contract, handler
from runtime.errors import NotStarted, StoreUnavailable
from runtime.store.connection import Connection
from runtime.worker.log import LINES_S
from tests.builders import job_of
from tests.faults.harness import leftovers
from tests.workers import until, working


@contract("note")
class Note(msgspec.Struct, frozen=True):
    n: int = 0


async def hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site("127.0.0.1", 0, {"/": hello}) as opened:
        yield opened


async def connect(site: Site) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = site.url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(line: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bytes:
    reader, writer = line
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split(b"\r\n")[0] + b" " + await reader.readexactly(5)


async def is_closed(line: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> bool:
    try:
        return not await asyncio.wait_for(line[0].read(1000), 20)
    except ConnectionError:
        return True


def close(*lines: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    for _, writer in lines:
        writer.transport.abort()


async def test_however_many_connect_and_are_silent_the_next_one_is_answered_and_the_oldest_leaves(monkeypatch):
    for limit in ("HEAD_S", "KEEP_ALIVE_S"):  # nobody leaves for its silence, only for want of space
        monkeypatch.setattr(board.site, limit, 1e6)
    async with Site("127.0.0.1", 0, {"/": hello}) as site:
        lines = [await connect(site) for _ in range(3 * MAX_CONNECTIONS)]
        newest = await connect(site)
        assert await ask(newest) == b"HTTP/1.1 200 OK hello"
        assert await is_closed(lines[0])
        assert await ask(lines[-1]) == b"HTTP/1.1 200 OK hello"  # only as many have left as must
        close(newest, *lines)


async def test_a_head_that_comes_byte_by_byte_has_its_time(site, monkeypatch):
    monkeypatch.setattr(board.site, "HEAD_S", 0.2)
    monkeypatch.setattr(board.site, "WATCH_S", 0.05)
    silent, slow = await connect(site), await connect(site)

    async def drip() -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                slow[1].write(b"G")
                await slow[1].drain()
                await asyncio.sleep(0.02)

    dripping = asyncio.create_task(drip())
    assert await is_closed(silent)
    assert await is_closed(slow)
    dripping.cancel()
    close(silent, slow)


async def test_who_has_asked_may_ask_again_until_it_is_idle_for_too_long(site, monkeypatch):
    monkeypatch.setattr(board.site, "HEAD_S", 0.0)
    monkeypatch.setattr(board.site, "KEEP_ALIVE_S", 0.4)
    line = await connect(site)
    assert await ask(line) == b"HTTP/1.1 200 OK hello"
    assert await ask(line) == b"HTTP/1.1 200 OK hello"
    assert await is_closed(line)
    close(line)


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 50_000, b"\xff" * 100_000])
async def test_a_head_too_large_is_refused(site, head):
    line = await connect(site)
    with contextlib.suppress(ConnectionError):
        line[1].write(head)
        await line[1].drain()
        assert b" 400 " in await line[0].readline()
    other = await connect(site)
    assert await ask(other) == b"HTTP/1.1 200 OK hello"
    close(line, other)


def is_cut(line: socket.socket) -> bool:
    try:
        return line.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


async def test_whoever_connects_in_one_turn_of_the_loop_is_counted_and_leaves_as_others_do(monkeypatch):
    monkeypatch.setattr(board.site, "HEAD_S", 1e6)
    monkeypatch.setattr(board.site, "WATCH_S", 0.05)
    async with Site("127.0.0.1", 0, {"/": hello}) as site:
        host, _, port = site.url.removeprefix("http://").partition(":")
        lines = [socket.create_connection((host, int(port))) for _ in range(95)]  # the loop accepts none meanwhile
        await until(lambda: sum(map(is_cut, lines)) == 95 - MAX_CONNECTIONS, "only as many stay as may")
        line = await connect(site)
        assert await ask(line) == b"HTTP/1.1 200 OK hello"
        monkeypatch.setattr(board.site, "HEAD_S", 0.1)
        await until(lambda: all(map(is_cut, lines)), "the silent ones leave")
        assert await ask(line) == b"HTTP/1.1 200 OK hello"
        close(line)
        for each in lines:
            each.close()


BAD = [
    b"GET http://[ HTTP/1.1\r\nHost: x\r\nX: \x1b[31m\r\n\r\n",
    b"GET / HTTP/1.1\r\nContent-Length: \x1b[31m\r\n\r\n",
    b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\x1b\r\n",
    b"\x1b[31m / HTTP/1.1\r\n\r\n",
    b"POST / HTTP/9.9\r\n\r\n",
    b"GET /%ff%00 HTTP/1.1\r\nHost: \xff\r\nX: \x00\r\n\r\n",
]


async def test_bad_requests_are_a_few_short_lines_in_the_log_however_many_come(caplog):
    async def broken(request: web.Request) -> web.Response:
        raise ValueError("one of ours\n" + "x" * 10_000)

    asked = 0
    async with Site("127.0.0.1", 0, {"/": hello, "/broken": broken}) as site:
        for head in [b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\n", *BAD * 40]:
            line = await connect(site)
            line[1].write(head)
            with contextlib.suppress(ConnectionError):
                await asyncio.wait_for(line[0].read(100), 10)
            close(line)
            asked += 1
    assert asked == 1 + 40 * len(BAD)
    lines = [record.getMessage() for record in caplog.records if record.levelno > 10]
    assert "ValueError('one of ours" in lines[0]
    assert "test_files.py:" in lines[0]
    assert {record.name for record in caplog.records if record.levelno > 10} == {"runtime"}
    assert not any(record.exc_info for record in caplog.records)
    assert all(len(text) < 500 and text.isprintable() for text in lines)
    seconds = {int(record.created) for record in caplog.records}
    assert len(lines) <= (LINES_S + 1) * (len(seconds) + 1)


@contextlib.contextmanager
def no_files() -> Iterator[None]:
    """Let this process open no file more; those that are open stay so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "url",
    ["redis://localhost:1", "redis://nowhere.invalid:1", "rediss://localhost:1", "unix:///nowhere", "sentinel://localhost:1/m"],
)
async def test_without_a_file_the_store_is_away(url):
    connection = Connection(url, "test")
    with no_files(), pytest.raises(StoreUnavailable):
        await connection.call(("PING",))


async def test_a_worker_that_cannot_connect_again_for_want_of_a_file_goes_on_when_there_is_one(valkey):
    ran: list[int] = []

    @handler(Note)
    async def note(message: Note, job: Job) -> None:
        ran.append(message.n)

    raw = valkey.client()
    async with working(valkey.url, note) as worker:
        raw.xadd("{jobs}:high", {"type": "note", "data": '{"n":1}'})
        await until(lambda: ran == [1] and not leftovers(raw), "it works")
        before = worker.stats.store_errors
        with no_files():
            raw.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            await until(lambda: worker.stats.store_errors > before + 2, "it cannot connect")
        raw.xadd("{jobs}:high", {"type": "note", "data": '{"n":2}'})
        await until(lambda: ran == [1, 2] and not leftovers(raw), "it works again", 30)
    raw.close()


@handler(Note, retry=Backoff(attempts=1))
def in_a_thread(message: Note, job: Job) -> None:
    """Return at once."""


@handler(Note, runs="process", retry=Backoff(attempts=1))
def in_a_child(message: Note, job: Job) -> None:
    """Return at once."""


async def test_a_job_for_which_no_child_can_be_started_has_not_run():
    with no_files(), pytest.raises(NotStarted, match="no child process"):
        await in_a_child.run(Note(), job_of(Note()))


async def test_a_job_for_which_no_thread_can_be_started_has_not_run(monkeypatch):
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(NotStarted, match="no thread"):
        await in_a_thread.run(Note(), job_of(Note()))
