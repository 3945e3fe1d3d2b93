"""The channel carries what runs in child processes say of themselves to their worker, while they run: in datagrams.

Each holds all that a run has said, so that one that is lost is made up for by the next. A child never waits: where the worker
does not keep up, the datagram is lost. What a child that was killed has sent before is read all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
import weakref
from collections.abc import Callable, Generator
from typing import Any, Final

import msgspec

from runtime.said import Said

EVERY_S: Final = 0.2  # a guess: people are shown it once a second
MAX_SENT_S: Final = (
    50  # datagrams a second for lines, which go at once: the last one tells what a child did when it died; a guess
)
MAX_DATAGRAM_BYTES: Final = 64 << 10  # more than a run's lines and its text
MAX_READS: Final = 64  # a turn of the loop; a guess: a millisecond
BUFFER_BYTES: Final = 256 << 10  # a guess; macOS has 2 KiB unless it is told

Heard = Callable[[Any, Any, Any], None]


class Channel:
    """Owns a pair of sockets: one end is read here, `there` is the other, which children inherit."""

    def __init__(self) -> None:
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for one in (here, there):
            one.setblocking(False)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._runs: dict[int, Heard] = {}
        self.here: int = here.detach()
        self.there: int = there.detach()
        self._end = (self.there, os.fstat(self.there).st_ino)

    def __repr__(self) -> str:
        return f"<Channel hears {len(self._runs)} runs>"

    @contextlib.contextmanager
    def hearing(self, number: int, heard: Heard) -> Generator[tuple[int, int]]:
        """Let `heard` have what the run of this number says within the block, also what has come at its end and was not read.

        Yield the children's end.
        """
        self._runs[number] = heard
        try:
            yield self._end
        finally:
            self.read()
            del self._runs[number]

    def read(self) -> None:
        """Read what has come."""
        for _ in range(MAX_READS):
            try:
                data = os.read(self.here, MAX_DATAGRAM_BYTES)
            except OSError:  # nothing there
                return
            self._hear(data)

    def _hear(self, data: bytes) -> None:
        """Hear a datagram, which code of users may have written: what is none is dropped."""
        with contextlib.suppress(Exception):
            number, *told = msgspec.msgpack.decode(data)
            if number in self._runs:
                self._runs[number](*told)


_channels: Final = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Channel]()


def channel() -> Channel:
    """Return the channel of the running loop, which lives as long as the loop: children do, and inherit it."""
    loop = asyncio.get_running_loop()
    found = _channels.get(loop)
    if found is None:
        found = _channels[loop] = Channel()
        loop.add_reader(found.here, found.read)
        weakref.finalize(loop, _close, found.here, found.there)
    return found


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


class Sender:
    """Sends, in a child, what its run says. Never waits and never raises."""

    def __init__(self, number: int, end: tuple[int, int]) -> None:
        self._number = number
        self._descriptor, self._inode = end
        self._next_s = 0.0
        self._lines: int = 0
        self._second = self._sent = 0
        with contextlib.suppress(OSError):
            os.set_inheritable(self._descriptor, False)

    def __call__(self, said: Said) -> None:
        """Send it, unless this was done a moment ago; a new line goes at once, if there are not too many."""
        now_s = time.monotonic()
        if int(now_s) != self._second:
            self._second, self._sent = int(now_s), 0
        if now_s < self._next_s and (said.said == self._lines or self._sent >= MAX_SENT_S):
            return
        self._next_s, self._lines, self._sent = now_s + EVERY_S, said.said, self._sent + 1
        with contextlib.suppress(OSError):  # full, or closed by the handler
            if os.fstat(self._descriptor).st_ino == self._inode:  # else the handler closed it, and has a file of that number
                os.write(self._descriptor, msgspec.msgpack.encode((self._number, *said.told())))
