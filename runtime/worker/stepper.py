"""Stepper makes the steps of operations over many jobs, as every worker does while the rules show one.

The script does nothing before its time, and what a step moved and where it stands are one write: so whoever asks, and whoever
dies before, during or after a call, nothing is moved twice and nothing is left out. Who made a step makes the next one; others
look a little later, and find work only when that one is gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from random import random
from typing import Final

from runtime import logs
from runtime.backoff import delay_s
from runtime.errors import StoreUnavailable
from runtime.streams import Streams
from runtime.worker.context import STORE_BACKOFF
from runtime.worker.log import level_of

log: Final = logs.guarded("runtime.stepper")

LOOK_S: Final = (
    0.2,
    0.8,
)  # a guess: behind the time of a step that another worker makes; less than what is made up for in step.lua


class Stepper:
    """Owns one loop, and when each operation is asked for again."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._next_s: dict[str, float] = {}
        self._seen: tuple[str, tuple[str, ...]] = ("", ())
        self._changed = asyncio.Event()
        self._failures = 0

    def __repr__(self) -> str:
        return f"<Stepper of {len(self._next_s)} operations>"

    def saw(self, version: str, operations: Sequence[str]) -> None:
        """Take over which operations go on, where the rules are other ones than those seen last."""
        seen = (version, tuple(operations))
        if seen == self._seen:
            return
        self._seen = seen
        self._next_s = {name: self._next_s.get(name, 0.0) for name in operations}
        self._changed.set()

    async def run(self) -> None:
        """Step until cancelled; without an operation this waits to be told of one, and costs nothing."""
        while True:
            if not self._next_s:
                await self._changed.wait()
            self._changed.clear()
            now_s = time.monotonic()
            for name in [name for name, at_s in self._next_s.items() if at_s <= now_s]:
                await self._step(name)
            await self._doze()

    async def _step(self, name: str) -> None:
        try:
            step = await self._streams.step(name)
        except StoreUnavailable as error:
            self._failures += 1
            log.log(level_of(error, self._failures), "operation %s makes no step: %s", name, error)
            self._note(name, delay_s(self._failures, STORE_BACKOFF, random))
            return
        self._failures = 0
        if step.wait_ms < 0:
            self._next_s.pop(name, None)
            log.info("operation %s: %s", name, step.state)
        else:
            self._note(name, step.wait_ms / 1000 + (0 if step.looked else _chance(*LOOK_S)))

    def _note(self, name: str, wait_s: float) -> None:
        if name in self._next_s:  # the rules may have changed while we asked
            self._next_s[name] = time.monotonic() + wait_s

    async def _doze(self) -> None:
        wait_s = min(self._next_s.values(), default=float("inf")) - time.monotonic()
        if wait_s <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(None if wait_s == float("inf") else wait_s):
                await self._changed.wait()
        except TimeoutError:
            return


def _chance(low: float, high: float) -> float:
    """Return a number between the two, so that workers do not ask in step."""
    return low + (high - low) * random()  # noqa: S311
