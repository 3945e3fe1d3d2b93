"""A cruel relay between a client and a server: it drops replies or cuts in the middle of one, stalls, delays, and resets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

CHUNK_BYTES = 1 << 20
SLOW_CHUNK_BYTES = 1 << 14  # small, so that a slow line trickles instead of coming in gusts


Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


class Relay:
    """Listens on a unix socket of its own, and has each connection served together with one to `target`.

    When it ends, all of them are closed, also one that a client opens at that very moment.
    """

    def __init__(self, target: str, serve: Callable[[Reader, Writer, Reader, Writer], Awaitable[None]]) -> None:
        self.target = target
        self.socket = str(Path(tempfile.mkdtemp(prefix="bp-")) / "p.sock")
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_unix_server(self._accept, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._is_over = True
        # What was accepted and has no transport yet when the server is closed would never have one (before Python 3.12).
        for listening in self._server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(3):
            await asyncio.sleep(0)
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(Path(self.socket).parent, ignore_errors=True)

    def _accept(self, reader: Reader, writer: Writer) -> None:
        if self._is_over:
            return writer.transport.abort()
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: self._close(writer))  # a task that is cancelled before it has begun closes nothing
        return None

    async def _connect(self, reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(OSError):  # no server, or it went: the client hears it as it would without us
            server_reader, server_writer = await asyncio.open_unix_connection(self.target)
            try:
                await self._serve(reader, writer, server_reader, server_writer)
            finally:
                self._close(server_writer)

    def _close(self, end: Writer) -> None:
        if self._is_over:
            end.transport.abort()
        else:
            end.close()  # what was to come still comes


class Connection:
    """One client's connection through the proxy. A deaf one looks open at both ends, and nothing comes through any more."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.ends = (client, server)
        self.is_deaf = False
        self.is_victim = False

    def reset(self) -> None:
        """Break it at both ends, at once."""
        for end in self.ends:
            end.transport.abort()


class Proxy:
    """Listens on a unix socket of its own and relays to another; `drop_reply` acts on the next reply that comes."""

    def __init__(self, target: str) -> None:
        self._relay = Relay(target, self._serve)
        self.socket = self._relay.socket
        self.drop_replies = 0
        self.cut_at_bytes: int | None = None
        self.dropped = 0
        self.latency_s = 0.0
        self.bytes_per_s = 0.0  # of each line in each direction; 0: as fast as it can
        self.lines: set[Connection] = set()
        self.armed_for: bytes = b""
        self._flows = asyncio.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def drop_next_reply(self, to: bytes = b"", cut_at_bytes: int = 0) -> None:
        """The next request that holds `to` reaches the server; of its reply only `cut_at_bytes` come back, then the line is
        cut.
        """
        self.armed_for, self.cut_at_bytes, self.drop_replies = to, cut_at_bytes, 1

    def stall(self) -> None:
        """Let nothing through, in either direction, until `calm`."""
        self._flows.clear()

    def deafen(self) -> int:
        """Make every line half-open: nobody is told, and nothing comes through. New lines work. Gives how many."""
        for line in self.lines:
            line.is_deaf = True
        return len(self.lines)

    def reset(self) -> int:
        """Break every line at once; gives how many."""
        lines = list(self.lines)
        for line in lines:
            line.reset()
        return len(lines)

    def calm(self) -> None:
        """Relay as if nothing had been; lines that are deaf stay so until their client gives them up."""
        self.drop_replies, self.latency_s = 0, 0.0
        self._flows.set()

    async def __aenter__(self) -> Proxy:
        await self._relay.__aenter__()
        return self

    async def __aexit__(self, *what: object) -> None:
        await self._relay.__aexit__(*what)

    async def _serve(self, reader: Reader, writer: Writer, server_reader: Reader, server_writer: Writer) -> None:
        line = Connection(writer, server_writer)
        self.lines.add(line)

        async def request(data: bytes) -> bool:
            if self.drop_replies and self.armed_for in data:
                self.drop_replies -= 1
                line.is_victim = True
            server_writer.write(data)
            await server_writer.drain()
            return True

        async def reply(data: bytes) -> bool:
            if line.is_victim:
                self.dropped += 1
                writer.write(data[: self.cut_at_bytes])
                return False
            writer.write(data)
            await writer.drain()
            return True

        pumps = [asyncio.create_task(self._pump(line, *way)) for way in ((reader, request), (server_reader, reply))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            self.lines.discard(line)

    async def _pump(self, line: Connection, source: asyncio.StreamReader, pass_on: Callable[[bytes], Awaitable[bool]]) -> None:
        """Relay one direction until an end closes, or the line is cut."""
        with contextlib.suppress(OSError):
            while data := await source.read(SLOW_CHUNK_BYTES if self.bytes_per_s else CHUNK_BYTES):
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                await self._flows.wait()
                if not line.is_deaf and not await pass_on(data):
                    return
                if self.bytes_per_s:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
