"""Commands packed by hand or by hiredis are the same words; and what an answer is given up for: slowness is no silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hiredis import Reader
from hypothesis import given
from hypothesis import strategies as st

from runtime.store.resp import Limits, RespProtocol, ServerError, Tail, disown, pack, packed_value, packed_words, tail_of

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


async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read what comes and answer nothing."""
    while await reader.read(1 << 16):
        pass


async def test_an_error_is_one_answer_among_others():
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b":1\r\n-WRONGTYPE of a key\r\n$-1\r\n")

    async with protocol_to(answer) as protocol:
        one, error, nothing = await protocol.ask(b"PING\r\n", 3)
        assert (one, type(error), error.code, nothing) == (1, ServerError, "WRONGTYPE", None)


async def test_what_is_no_resp_ends_the_connection():
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await reader.read()

    async with protocol_to(greet) as protocol:
        with pytest.raises(ConnectionError, match="Protocol error"):
            await protocol.ask(b"PING\r\n", 1)
        assert protocol.is_lost


async def test_a_connection_that_has_ended_takes_no_request_and_says_why():
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()

    async with protocol_to(leave) as protocol:
        assert repr(protocol) == "<RespProtocol open, 0 answers to come>"
        with pytest.raises(ConnectionError):
            await protocol.ask(b"PING\r\n", 2)
        assert repr(protocol) == "<RespProtocol lost, 2 answers to come>"
        with pytest.raises(ConnectionError) as caught:
            await protocol.ask(b"PING\r\n", 1)
        assert caught.value is protocol._lost


async def test_a_connection_that_this_side_closes_takes_no_request_from_then_on():
    async with protocol_to(hang) as protocol:
        protocol._transport.close()
        assert protocol.is_lost
        with pytest.raises(ConnectionError, match="is closed"):
            await protocol.ask(b"PING\r\n", 1)


async def test_an_answer_that_comes_in_the_turn_of_a_look_is_the_answer():
    """The transport reads first, and sets the answer; then the look of the same turn comes, before its asker has run."""
    async with protocol_to(hang) as protocol:
        asking = asyncio.create_task(protocol.ask(b"PING\r\n", 1, Limits(SILENT_S, most_s=0.0)))
        await asyncio.sleep(0)
        protocol.data_received(b"+PONG\r\n")
        protocol._look()
        assert await asking == [b"PONG"]


async def test_an_answer_that_comes_after_its_asker_has_given_up_harms_nothing():
    """The look ends the request; then the transport brings the answer, before the asker has run and closed the connection."""
    async with protocol_to(hang) as protocol:
        asking = asyncio.create_task(protocol.ask(b"PING\r\n", 1, Limits(SILENT_S, most_s=0.0)))
        await asyncio.sleep(0)
        protocol._look()
        protocol.data_received(b"+PONG\r\n")
        with pytest.raises(TimeoutError):
            await asking


async def test_a_process_that_was_forked_neither_writes_to_its_parents_connection_nor_closes_it():
    """Another descriptor of the socket is the parent's."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readline())
        writer.write(b"+PONG\r\n")
        heard.extend(await reader.readline())
        writer.close()

    async with protocol_to(listen) as protocol:
        await protocol.ask(b"PING 1\r\n", 1)
        ours = protocol._transport.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(ours)) as parents:
            disown()
            assert os.path.samestat(os.fstat(ours), os.stat(os.devnull))
            with pytest.raises(ConnectionError, match="not shared with a process that was forked"):
                await protocol.ask(b"PING 2\r\n", 1)
            protocol._transport.abort()
            parents.sendall(b"PING 3\r\n")
            parents.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(parents, 9) == b"", "the server has heard the parent, and closes"
    assert heard == b"PING 1\r\nPING 3\r\n"


async def test_a_connection_that_was_closed_before_the_fork_is_left_alone():
    async with protocol_to(hang) as protocol:
        protocol._transport.abort()
        taken = os.open(os.devnull, os.O_RDONLY)  # perhaps by the number that the connection had
        disown()
        os.read(taken, 1)
        os.close(taken)
        assert protocol.is_lost
