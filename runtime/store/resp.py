"""RESP, the protocol of Redis: packs commands into bytes, and parses the answers in C as their bytes arrive.

No `asyncio.StreamReader` stands between: it hands on 64 KiB in a turn of the loop; a fetch of 1,500 jobs is five times that, and
would wait for five turns full of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from array import array
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, Final, NamedTuple, cast
from weakref import WeakSet

from hiredis import (
    ProtocolError,
    Reader,
    pack_command,  # pyright: ignore[reportUnknownVariableType]
)
from redis.asyncio.connection import AbstractConnection

if sys.platform != "win32":
    import fcntl
    import termios

NEVER: Final = float("inf")
LOOK_PART: Final = 0.25  # a guess: how often an open request is looked at, as a part of the silence that is allowed
LATE_S: Final = 0.5  # a guess: a look that comes so much later than it should says that the loop was held, and has read nothing


class Limits(NamedTuple):
    """What an answer is given up for: no byte moves for `silent_s`, it is not whole after `most_s` or has over `most_bytes`."""

    silent_s: float
    most_s: float = NEVER
    most_bytes: float = NEVER


class TooLarge(ConnectionError):
    """An answer has more bytes than its limits let it have."""


PATIENT: Final = Limits(NEVER)
_protocols: Final = WeakSet["RespProtocol"]()  # all of this process, for `disown`


# --- commands --------------------------------------------------------------------------------------------------------------


class Tail(NamedTuple):
    """The last arguments of a command, packed already: `size` of them."""

    size: int
    packed: bytes


Command = Sequence[bytes | str | int | float | Tail]
_pack = cast("Callable[[tuple[Any, ...]], bytes]", pack_command)  # its own stub says one argument


def pack(commands: Sequence[Command]) -> bytes:
    """Return the bytes of commands, packed in C: redis-py's own packing is a fifth of a drain's time."""
    return b"".join([_pack_one(command) for command in commands])


def _pack_one(command: Command) -> bytes:
    tail = command[-1]
    if not isinstance(tail, Tail):
        return _pack(tuple(command))
    head = command[:-1]
    return b"*%d\r\n%b%b" % (len(head) + tail.size, packed_words(head), tail.packed)


def packed_words(words: Sequence[Any]) -> bytes:
    """Return arguments as they stand inside of a command."""
    return _pack(tuple(words)).partition(b"\r\n")[2]  # without the count of words


def packed_value(value: bytes) -> bytes:
    """Return one argument as it stands inside of a command."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def tail_of(values: Sequence[bytes]) -> Tail:
    """Return many short arguments as a tail, for a third of the time: those of one length are joined in C. In no order."""
    parts: list[bytes] = []
    for length, alike in groupby(sorted(values, key=len), len):
        head = b"$%d\r\n" % length
        parts += (head, (b"\r\n" + head).join(alike), b"\r\n")
    return Tail(len(values), b"".join(parts))


# --- answers ---------------------------------------------------------------------------------------------------------------


class ServerError(str):
    """An error that the server answered to one command; the other commands of the round trip have their own answers."""

    @property
    def code(self) -> str:
        """The first word: NOSCRIPT, OOM, NOGROUP, WRONGTYPE, …"""
        return self.partition(" ")[0]


class RespProtocol(asyncio.Protocol):
    """Owns the bytes between a request and its last answer. One request at a time.

    `received` are the bytes of the answer so far, which came from `first_s` to `newest_s`.
    """

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        # A str, not an exception: errors are answers here.
        self._reader = Reader(replyError=cast("type[Exception]", ServerError))
        self._answers: list[Any] = []
        self._expected = 0
        self._waiter: asyncio.Future[list[Any]] | None = None
        self._lost: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._limits = PATIENT
        self._asked_s = self._moved_s = self._look_s = 0.0
        self._seen: tuple[int, int] = (0, 0)
        self._timer: asyncio.TimerHandle | None = None
        self._on_push: Callable[[Any], None] | None = None
        self.received: int = 0
        self.first_s: float = 0.0
        self.newest_s: float = 0.0
        _protocols.add(self)

    def __repr__(self) -> str:
        return f"<RespProtocol {'lost' if self._lost else 'open'}, {self._expected - len(self._answers)} answers to come>"

    @property
    def is_lost(self) -> bool:
        """Whether it is known that nothing can be written any more."""
        return self._lost is not None or self._transport.is_closing()

    async def ask(self, request: bytes, n: int, limits: Limits = PATIENT) -> list[Any]:
        """Send a request of `n` commands and return their answers in order. A caller that is cancelled must close the connection.

        Raises:
            ConnectionError: the connection ended, what came is no RESP, or it is more than `limits` allow.
            TimeoutError: the answer did not come within the `limits`.
        """
        if self._lost is not None or self._transport.is_closing():
            raise self._lost or ConnectionError("the connection is closed")
        self._answers, self._expected, self._limits = [], n, limits
        self.received, self.first_s, self.newest_s = 0, 0.0, 0.0
        self._waiter = self._loop.create_future()
        self._transport.write(request)
        if limits.silent_s == NEVER:
            return await self._waiter
        self._asked_s = self._moved_s = self._loop.time()
        self._seen = (0, 0)
        self._look_again(self._asked_s)
        try:
            return await self._waiter
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def listen(self, request: bytes, on_push: Callable[[Any], None], most_bytes: int) -> asyncio.Future[list[Any]]:
        """Send a request, and hand on all that comes from now on. The future raises when the connection has ended.

        One answer may have `most_bytes`. May be called again: the server then has one more request to answer.
        """
        if self._waiter is None or self._on_push is None:
            self._limits, self.received = PATIENT._replace(most_bytes=most_bytes), 0
            self._waiter = self._loop.create_future()
        self._on_push = on_push
        if self._lost is not None and not self._waiter.done():
            self._waiter.set_exception(self._lost)
        elif not self._transport.is_closing():
            self._transport.write(request)
        return self._waiter

    def _hand_on(self, on_push: Callable[[Any], None]) -> None:
        try:
            while (answer := self._reader.gets()) is not False:
                self.received = 0
                on_push(answer)
        except ProtocolError as error:
            self._give_up(ConnectionError(str(error)))

    def _look_again(self, now_s: float) -> None:
        """Look a few times in the silence that is allowed, and at its end."""
        silent_s, most_s, _ = self._limits
        self._look_s = min(now_s + LOOK_PART * silent_s, self._moved_s + silent_s, self._asked_s + most_s)
        self._timer = self._loop.call_at(self._look_s, self._look)

    def _look(self) -> None:
        """Stop waiting, if nothing has moved for too long: an answer that comes slowly is no silence."""
        if self._waiter is None or self._waiter.done():
            return
        now_s = self._loop.time()
        seen = (self.received, self._unsent())
        if seen != self._seen or now_s > self._look_s + LATE_S:
            self._seen, self._moved_s = seen, now_s
        elif now_s >= self._moved_s + self._limits.silent_s:
            self._waiter.set_exception(TimeoutError(f"not a byte for {self._limits.silent_s:g} s"))
            return
        if now_s >= self._asked_s + self._limits.most_s:
            self._waiter.set_exception(TimeoutError(f"an answer not whole after {self._limits.most_s:g} s"))
            return
        self._look_again(now_s)

    def _unsent(self) -> int:
        """Return how many bytes of the request have not arrived at the other end; those that the system holds, where it tells."""
        held = array("i", [0])
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, held)
        return self._transport.get_write_buffer_size() + held[0]

    def data_received(self, data: bytes) -> None:
        """Take bytes from the transport."""
        self.newest_s = self._loop.time()
        if not self.received:
            self.first_s = self.newest_s
        self.received += len(data)
        if self.received > self._limits.most_bytes:
            self._give_up(TooLarge(f"an answer of more than {self._limits.most_bytes} bytes"))
            return
        self._reader.feed(data)
        if self._on_push is not None:
            self._hand_on(self._on_push)
            return
        answers, expected, gets = self._answers, self._expected, self._reader.gets
        try:
            while len(answers) < expected:
                answer = gets()
                if answer is False:  # not whole yet; RESP 2 has no booleans
                    return
                answers.append(answer)
        except ProtocolError as error:
            self._give_up(ConnectionError(str(error)))
            return
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(answers)

    def disown(self, nothing: int) -> None:
        """Have the descriptor of this connection mean `nothing`; it stays taken until the transport closes it."""
        self._lost = self._lost or ConnectionError("a connection is not shared with a process that was forked")
        if not self._transport.is_closing():
            with contextlib.suppress(OSError):
                os.dup2(nothing, self._transport.get_extra_info("socket").fileno())

    def _give_up(self, why: ConnectionError) -> None:
        self._transport.abort()
        self._lost = self._lost or why
        self.connection_lost(why)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that the transport is closed."""
        self._lost = self._lost or ConnectionError(str(exc) if exc else "the server closed the connection")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._lost)


def disown() -> None:
    """Cut this process, which was forked, off from its parent's connections.

    The parent would miss what the child reads, and the child take the answers to the parent's requests for those to its own.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for protocol in list(_protocols):
        protocol.disown(nothing)
    os.close(nothing)


def take_over(connection: AbstractConnection) -> RespProtocol:
    """Return the protocol that reads from now on what redis-py has connected, authenticated and, where asked, encrypted."""
    writer = cast("asyncio.StreamWriter", connection._writer)  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
    protocol = RespProtocol(writer.transport)
    writer.transport.set_protocol(protocol)
    return protocol
