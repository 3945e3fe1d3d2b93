"""An answer that comes slowly is no silence: what a line is given up for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from runtime.store.resp import Limits, RespProtocol

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SILENT_S = 0.5


@contextlib.asynccontextmanager
async def line_to(answer: Answer) -> AsyncIterator[RespProtocol]:
    """A line to a server that does as it is told."""

    served: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        served.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await answer(reader, writer)
        finally:
            writer.transport.abort()

    end = socket.socket()
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # a large one would take much off the sender's hands at once
    end.bind(("127.0.0.1", 0))
    server = await asyncio.start_server(serve, sock=end)
    transport, _ = await asyncio.get_running_loop().create_connection(Holder, *server.sockets[0].getsockname()[:2])
    line = RespProtocol(transport)
    transport.set_protocol(line)
    try:
        yield line
    finally:
        transport.abort()
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served)
        await asyncio.sleep(0)  # aborted transports close in the next turn


class Holder(asyncio.Protocol):
    """In the line's place until there is one."""


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one byte at a time, for longer than a silence is borne."""
    await reader.readline()
    for byte in b"$15\r\nslow and whole.\r\n":
        writer.write(bytes((byte,)))
        await asyncio.sleep(0.05)


async def test_an_answer_that_comes_slowly_is_awaited():
    async with line_to(drip) as line:
        assert await line.ask(b"PING\r\n", 1, Limits(SILENT_S)) == [b"slow and whole."]
        assert line.received == 22
        assert line.newest_s - line.first_s > SILENT_S


async def test_a_silence_ends_it_also_in_the_middle_of_an_answer():
    async def stop_half_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"$9\r\nhalf")
        await asyncio.sleep(60)

    async with line_to(stop_half_way) as line:
        with pytest.raises(TimeoutError, match="not a byte"):
            await line.ask(b"PING\r\n", 1, Limits(SILENT_S))


async def test_an_answer_may_drip_for_so_long_and_no_longer():
    async with line_to(drip) as line:
        with pytest.raises(TimeoutError, match="not whole"):
            await line.ask(b"PING\r\n", 1, Limits(SILENT_S, most_s=0.3))


async def test_an_answer_may_have_so_many_bytes_and_no_more():
    async with line_to(drip) as line:
        with pytest.raises(ConnectionError, match="more than 20 bytes"):
            await line.ask(b"PING\r\n", 1, Limits(SILENT_S, most_bytes=20))


async def test_a_request_that_leaves_slowly_is_no_silence():
    size = 8 << 20

    async def read_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = 0
        while seen < size:
            seen += len(await reader.read(1 << 20))
            await asyncio.sleep(0.02)
        writer.write(b"+OK\r\n")

    async with line_to(read_slowly) as line:
        assert await line.ask(b"x" * size, 1, Limits(SILENT_S)) == [b"OK"]
