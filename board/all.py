"""AllPage orders one thing of all jobs that fit a list: an operation over what was looked at then, held first."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Final

from board.api import Answerer, Refused
from board.jobs import STEP
from board.operations import shown
from board.shapes import AllAsk, Jobs, JobsAsk, Operation
from board.viewer import Viewer
from runtime.control import Control
from runtime.operations import HOLD_S, RATE

MOST: Final = 10_000  # jobs of one order, as a search looks at so many before it asks to go on
MOST_S: Final = 10.0  # a guess: longer nobody waits for an answer; what was found by then is meant, and told


class AllPage:
    """Answers POST jobs/all. What is meant are places, fixed now: no search is made again when it is their turn."""

    def __init__(self, url: str, queue: str, jobs: Callable[[JobsAsk, Viewer], Awaitable[Jobs]]) -> None:
        self._url = url
        self._queue = queue
        self._jobs = jobs

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"POST jobs/all": self.all}

    async def all(self, ask: AllAsk, viewer: Viewer) -> Operation:
        """Order it of all that fit: held first, so that a stop undoes all of it."""
        if ask.verb == "soon" and ask.state != "delayed":
            raise Refused(400, "asked", "state: only what is delayed can run sooner")
        places = await self._fitting(ask, viewer)
        if not places:
            raise Refused(409, "gone", "nothing was done", "none of the jobs that were looked at fits any more")
        async with Control(self._url, self._queue, by=viewer.by) as control:
            verb = "now" if ask.verb == "soon" else "cancel"
            return shown(await control.operate_on(verb, places, rate=RATE, hold_s=HOLD_S, reason=ask.reason))

    async def _fitting(self, ask: AllAsk, viewer: Viewer) -> list[str]:
        found: dict[str, None] = {}
        cursor, until_s = "", time.monotonic() + MOST_S
        while len(found) < MOST and time.monotonic() < until_s:
            part = await self._jobs(JobsAsk(state=ask.state, q=ask.q, facet=ask.facet, cursor=cursor, limit=STEP), viewer)
            found |= dict.fromkeys(row.place for row in part.rows)
            if part.cursor is None:
                break
            cursor = part.cursor
        return list(found)[:MOST]
