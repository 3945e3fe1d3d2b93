"""A cruel relay between a client and a server: it can drop a reply, cut in the middle of one, or stall."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path


class Proxy:
    """Listens on a unix socket of its own and relays to another; `drop_reply` acts on the next reply that comes."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.socket = str(Path(tempfile.mkdtemp(prefix="bp-")) / "p.sock")
        self.drop_replies = 0
        self.cut_at_bytes: int | None = None
        self.dropped = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.armed_for: bytes = b""

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def drop_next_reply(self, to: bytes = b"", cut_at_bytes: int = 0) -> None:
        """The next request that holds `to` reaches the server; of its reply only `cut_at_bytes` come back, then the line is
        cut.
        """
        self.armed_for, self.cut_at_bytes, self.drop_replies = to, cut_at_bytes, 1

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_unix_server(self._relay, self.socket)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_unix_connection(self.target)
        victim = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(1 << 20):
                if self.drop_replies and self.armed_for in data:
                    self.drop_replies -= 1
                    victim.set()
                server_writer.write(data)
                await server_writer.drain()

        async def replies() -> None:
            while data := await server_reader.read(1 << 20):
                if victim.is_set():
                    self.dropped += 1
                    writer.write(data[: self.cut_at_bytes])
                    return
                writer.write(data)
                await writer.drain()

        pumps = [asyncio.create_task(requests()), asyncio.create_task(replies())]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            for end in (writer, server_writer):
                with contextlib.suppress(OSError, RuntimeError):
                    end.close()
            self._tasks.discard(task)
