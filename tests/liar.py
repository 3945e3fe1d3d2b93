"""A false server: it answers each command as a test tells it, so that what stands in a server's place can be tried in no time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from hiredis import Reader

GREETING = {
    b"CLIENT ID": b":7\r\n",
    b"INFO SERVER": b"$12\r\nrun_id:liar\n\r\n",
    b"INFO REPLICATION": b"$12\r\nrole:master\n\r\n",
    b"PING": b"+PONG\r\n",
}


class Leave(Exception):
    """Raised by what answers: the connection is closed, behind the bytes that are given along."""

    def __init__(self, last: bytes = b"") -> None:
        super().__init__()
        self.last = last


def texts(*words: bytes) -> bytes:
    """Return an answer that is a list of texts."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Liar:
    """Listens on a port of its own. `answer` gets a command, upper case and joined by spaces, and returns its answer; None is the
    usual one (`GREETING`, else OK), and nothing is no answer.

    Owns `asked`, the commands that came, each with the number of its connection.
    """

    def __init__(self, answer: Callable[[bytes], bytes | None] = lambda _: None) -> None:
        self._answer = answer
        self.asked: list[tuple[int, bytes]] = []
        self.connections = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def heard(self, word: bytes) -> list[int]:
        """Return over which connections a command that begins so has come."""
        return [number for number, command in self.asked if command.startswith(word)]

    async def __aenter__(self) -> Liar:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close in the next turn

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        self.connections += 1
        number, commands = self.connections, Reader()
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                while data := await reader.read(1 << 16):
                    commands.feed(data)
                    while (words := commands.gets()) is not False:
                        command = b" ".join(words).upper()
                        self.asked.append((number, command))
                        answer = self._answer(command)
                        writer.write(GREETING.get(command, b"+OK\r\n") if answer is None else answer)
        except Leave as end:
            writer.write(end.last)
            writer.close()
        finally:
            if not writer.is_closing():
                writer.transport.abort()
