"""Streams carries what the sampler sees to each tab that looks, as server-sent events: one `tick` a second, the first at once.

A frame holds absolute values: a viewer that reads slowly misses some, and a new connection starts with the present.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

import msgspec
from aiohttp import web

from board.api import Refused
from board.shapes import EventsAsk, Range, Tick
from board.viewer import Viewer
from runtime.worker.log import ThrottledLog

MAX_STREAMS: Final = 100  # of this board: more viewers ask every few seconds instead
MAX_OF_ONE: Final = 6  # of a session, or of an address without one: what browsers open to one host at most
QUEUED: Final = 4  # frames for one viewer, of which the oldest is dropped
STUCK_S: Final = 30.0  # without a byte that the viewer has taken
COMMENT_S: Final = 15.0  # between two comments: what stands between may close what is silent for longer
HEADERS: Final = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
MAX_TOPICS: Final = 8  # a guess
MAX_KINDS: Final = 8  # of ticks of one second, by what is shown to whom; a guess
MAX_LOGGED: Final = 200  # characters of an error; a guess


class Source(Protocol):
    """What makes the ticks: one for all viewers."""

    def subscribe(self, topics: frozenset[str], range: Range, viewer: Viewer) -> AbstractAsyncContextManager[AsyncIterator[Tick]]:
        """Return the ticks for one viewer, from the present one on: none is made while nobody has entered one of these."""
        ...


class _Mail:
    """The frames that one viewer has not read yet, and whether more will come."""

    def __init__(self) -> None:
        self.frames: deque[bytes] = deque(maxlen=QUEUED)
        self.has_ended = False
        self._news = asyncio.Event()

    def put(self, frame: bytes) -> None:
        """Add a frame; over QUEUED, the oldest goes."""
        self.frames.append(frame)
        self._news.set()

    def end(self) -> None:
        """Say that no more will come."""
        self.has_ended = True
        self._news.set()

    async def next(self) -> bytes | None:
        """Return the next frame, or a comment where none comes for COMMENT_S; None when it is over."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), COMMENT_S)
        if self.has_ended:
            return None
        if not self.frames:
            return b": still here\n\n"
        frame = self.frames.popleft()
        if not self.frames:
            self._news.clear()
        return frame


class Streams:
    """Owns the streams that are open."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._open: dict[_Mail, str] = {}
        self._made: deque[tuple[Tick, bytes]] = deque(maxlen=MAX_KINDS)
        self._log = ThrottledLog()

    def __repr__(self) -> str:
        return f"<Streams, {len(self._open)} open>"

    def close(self) -> None:
        """End all streams."""
        for mail in self._open:
            mail.end()

    async def serve(
        self, request: web.Request, ask: EventsAsk, viewer: Viewer, is_still: Callable[[], bool], headers: dict[str, str]
    ) -> web.StreamResponse:
        """Send ticks until the viewer leaves, is stuck, is not the same any more (`is_still`), or the board stops.

        Raises:
            Refused: there are too many streams.
        """
        owner = viewer.session or viewer.address
        source = self._source
        if len(self._open) >= MAX_STREAMS or sum(one == owner for one in self._open.values()) >= MAX_OF_ONE:
            raise Refused(429, "streams", "too many streams are open: ask every five seconds instead")
        topics = frozenset(ask.topics.split(",")[:MAX_TOPICS]) - {""}
        mail = _Mail()
        self._open[mail] = owner
        pump = asyncio.create_task(self._pump(source, topics, ask.range, viewer, mail), name="board.stream")
        response = web.StreamResponse(headers=headers | HEADERS)
        try:
            async with asyncio.timeout(STUCK_S):
                await response.prepare(request)
            while (frame := await mail.next()) is not None and is_still():
                async with asyncio.timeout(STUCK_S):
                    await response.write(frame)
        except (TimeoutError, ConnectionError):
            _abort(request)  # else the bytes that it does not take would be waited for
        finally:
            del self._open[mail]
            pump.cancel()
        return response

    async def _pump(self, source: Source, topics: frozenset[str], range: Range, viewer: Viewer, mail: _Mail) -> None:
        try:
            async with source.subscribe(topics, range, viewer) as ticks:
                async for tick in ticks:
                    mail.put(self._frame(tick))
        except Exception as error:  # the viewer connects again; nobody reads what this task raises
            self._log.warn("the board: a stream ended: %s", ascii(error)[:MAX_LOGGED])
        finally:
            mail.end()

    def _frame(self, tick: Tick) -> bytes:
        """Return a tick as a frame; those who are given the same one share its bytes."""
        for made, frame in self._made:
            if made is tick:
                return frame
        frame = b"event: tick\ndata: " + msgspec.json.encode(tick) + b"\n\n"
        self._made.append((tick, frame))
        return frame


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
