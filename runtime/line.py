"""The reading side of an open connection: replies parsed in C as their bytes arrive, with no stream between.

A stream hands on 64 KiB in a turn of the loop; a fetch of 1,500 jobs is five times that, and waited for five turns full of jobs.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hiredis import ProtocolError, Reader
from redis.asyncio.connection import AbstractConnection


class ServerError(str):
    """An error that the server answered to one command; the other commands of the round trip have their own answers."""

    @property
    def code(self) -> str:
        """The first word: NOSCRIPT, OOM, NOGROUP, WRONGTYPE, …"""
        return self.partition(" ")[0]


class Line(asyncio.Protocol):
    """Owns the bytes between a request and its last answer. One request at a time."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        # A str, not an exception: errors are answers here.
        self._reader = Reader(replyError=cast("type[Exception]", ServerError))
        self._answers: list[Any] = []
        self._expected = 0
        self._waiter: asyncio.Future[list[Any]] | None = None
        self._lost: Exception | None = None

    def __repr__(self) -> str:
        return f"<Line {'lost' if self._lost else 'open'}, {self._expected - len(self._answers)} answers to come>"

    async def ask(self, request: bytes, n: int) -> list[Any]:
        """Send a request of `n` commands and give their answers in order. Whoever is cancelled here must close the connection.

        Raises:
            ConnectionError: the connection ended, or what came is no RESP.
        """
        if self._lost is not None:
            raise self._lost
        self._answers, self._expected = [], n
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiter

    def data_received(self, data: bytes) -> None:
        """Take bytes from the transport."""
        self._reader.feed(data)
        answers, expected, gets = self._answers, self._expected, self._reader.gets
        try:
            while len(answers) < expected:
                answer = gets()
                if answer is False:  # not whole yet; RESP 2 has no booleans
                    return
                answers.append(answer)
        except ProtocolError as error:
            self._transport.abort()
            self.connection_lost(ConnectionError(str(error)))
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answers)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the transport is closed."""
        self._lost = self._lost or ConnectionError(str(exc) if exc else "the server closed the connection")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._lost)


def take_over(connection: AbstractConnection) -> Line:
    """Read from now on what redis-py has connected, authenticated and, where asked, encrypted."""
    writer = cast("asyncio.StreamWriter", connection._writer)  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
    line = Line(writer.transport)
    writer.transport.set_protocol(line)
    return line
