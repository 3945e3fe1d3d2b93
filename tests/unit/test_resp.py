"""Commands packed by hand or by hiredis are the same words; and what an answer is given up for: slowness is no silence."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hiredis import Reader
from hypothesis import given
from hypothesis import strategies as st

from runtime.store.resp import Limits, RespProtocol, Tail, pack, packed_value, packed_words, tail_of

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
SILENT_S = 0.5
WORDS = st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=10), st.integers(-9, 10**12)), min_size=1, max_size=8)


def as_bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


@given(WORDS, st.lists(st.binary(max_size=20), max_size=60))
def test_a_tail_is_read_as_the_values_it_was_made_of(head: list[Any], values: list[bytes]) -> None:
    reader = Reader()
    reader.feed(pack([(*head, tail_of(values)), ("PING",)]))
    read = reader.gets()
    assert read[: len(head)] == [as_bytes(word) for word in head]
    assert Counter(read[len(head) :]) == Counter(values)
    assert reader.gets() == [b"PING"], "the next command begins where it should"


@given(WORDS, WORDS, st.binary(max_size=300))
def test_words_and_values_that_were_packed_apart_keep_their_order(head: list[Any], words: list[Any], value: bytes) -> None:
    reader = Reader()
    reader.feed(pack([(*head, Tail(len(words) + 1, packed_words(words) + packed_value(value)))]))
    assert reader.gets() == [as_bytes(word) for word in (*head, *words, value)]


@contextlib.asynccontextmanager
async def protocol_to(answer: Answer) -> AsyncIterator[RespProtocol]:
    """Connect to a server that does as it is told."""

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
    protocol = RespProtocol(transport)
    transport.set_protocol(protocol)
    try:
        yield protocol
    finally:
        transport.abort()
        server.close()
        for task in served:
            task.cancel()
        await asyncio.gather(*served)
        await asyncio.sleep(0)  # aborted transports close in the next turn


class Holder(asyncio.Protocol):
    """In the protocol's place until there is one."""


async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer one byte at a time, for longer than a silence is borne."""
    await reader.readline()
    for byte in b"$15\r\nslow and whole.\r\n":
        writer.write(bytes((byte,)))
        await asyncio.sleep(0.05)


async def test_an_answer_that_comes_slowly_is_awaited():
    async with protocol_to(drip) as protocol:
        assert await protocol.ask(b"PING\r\n", 1, Limits(SILENT_S)) == [b"slow and whole."]
        assert protocol.received == 22
        assert protocol.newest_s - protocol.first_s > SILENT_S


async def test_a_silence_ends_it_also_in_the_middle_of_an_answer():
    async def stop_half_way(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"$9\r\nhalf")
        await asyncio.sleep(60)

    async with protocol_to(stop_half_way) as protocol:
        with pytest.raises(TimeoutError, match="not a byte"):
            await protocol.ask(b"PING\r\n", 1, Limits(SILENT_S))


async def test_an_answer_may_drip_for_so_long_and_no_longer():
    async with protocol_to(drip) as protocol:
        with pytest.raises(TimeoutError, match="not whole"):
            await protocol.ask(b"PING\r\n", 1, Limits(SILENT_S, most_s=0.3))


async def test_an_answer_may_have_so_many_bytes_and_no_more():
    async with protocol_to(drip) as protocol:
        with pytest.raises(ConnectionError, match="more than 20 bytes"):
            await protocol.ask(b"PING\r\n", 1, Limits(SILENT_S, most_bytes=20))


async def test_a_request_that_leaves_slowly_is_no_silence():
    size = 8 << 20

    async def read_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = 0
        while seen < size:
            seen += len(await reader.read(1 << 20))
            await asyncio.sleep(0.02)
        writer.write(b"+OK\r\n")

    async with protocol_to(read_slowly) as protocol:
        assert await protocol.ask(b"x" * size, 1, Limits(SILENT_S)) == [b"OK"]
