"""Ticker fires the schedules of code and of Redis, in every worker: the script lets each tick be fired once.

What happens when the process dies: before a call, another worker makes it; during one, the server did all of it or nothing; after
it, the row in Redis says what is decided. What is known of a schedule is replaced as a whole when it is changed: an answer that
comes later is noted where nobody looks any more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from random import random
from typing import Final

from runtime import logs
from runtime.backoff import delay_s
from runtime.errors import StoreUnavailable
from runtime.schedules import Definition, Due, merge
from runtime.store.shapes import TickAsk, Ticked
from runtime.streams import Streams
from runtime.worker.context import STORE_BACKOFF
from runtime.worker.log import level_of

log: Final = logs.guarded("runtime.ticker")

CONFIRM_MS: Final = (10_000, 15_000)  # a guess: a few may be late before a definition counts as silent, which takes a minute
SPREAD_MS: Final = (
    20  # a guess: all workers ask within it, so that a tick comes hardly later and Redis is not asked by all at once
)
OTHER_MS: Final = 5000  # a guess: another definition rules, and its last worker may be gone
REFUSED_MS: Final = 5000  # a guess: what refuses to be stored must be mended by people
READ_S: Final = 30.0  # a guess: whoever changes schedules has all workers told; this is for those that did not hear it
FORGET_S: Final = 3600.0  # a guess: what is to go has stood for a week
PER_TURN: Final = 20  # schedules worked out in a turn of the loop, a millisecond mostly; one that is a year behind takes seven


@dataclass
class _Known:
    """What is known of a schedule: the last time that was decided, when it fires next, when it is asked for (the server's ms)."""

    definition: Definition
    last_ms: int | None = None
    fires_ms: float = 0.0
    next_ms: float = 0.0

    def ask(self, now_ms: float) -> TickAsk:
        is_due = self.last_ms is not None and self.fires_ms <= now_ms
        due = self.definition.due(self.last_ms or 0, int(now_ms)) if is_due else Due([], 0, 0)
        return TickAsk(self.definition, self.last_ms, due)

    def took(self, last_ms: int, now_ms: float) -> None:
        if last_ms != self.last_ms:
            fires = self.definition.fires_after(last_ms)
            self.last_ms, self.fires_ms = last_ms, fires[0] if fires else float("inf")
        low, high = CONFIRM_MS
        self.next_ms = min(self.fires_ms + _chance(0, SPREAD_MS), now_ms + _chance(low, high))


class Ticker:
    """Owns one loop, and what is known of each schedule. `code` are the schedules of this worker's modules, by name."""

    def __init__(self, streams: Streams, code: Mapping[str, Definition]) -> None:
        self._streams = streams
        self._code = dict(code)
        self._known: dict[str, _Known] = {}
        self._told: dict[str, str] = {}  # what could not be read or stored, and was logged
        self._changed = asyncio.Event()
        self._must_read = True
        self._version = ""
        self._ahead_ms = 0.0  # of the server's clock before our monotonic one
        self._read_s, self._forget_s = 0.0, time.monotonic() + _chance(0, FORGET_S)

    def __repr__(self) -> str:
        return f"<Ticker of {len(self._known)} schedules>"

    @property
    def definitions(self) -> dict[str, Definition]:
        """The schedules in force, by name."""
        return {name: known.definition for name, known in self._known.items()}

    @property
    def next_ms(self) -> dict[str, int]:
        """When each schedule fires next, in the server's ms, or 0 where it is paused; any thread may ask."""
        told = {name: known for name, known in list(self._known.items()) if known.last_ms is not None}
        return {
            name: 0 if known.definition.settings.paused else int(known.fires_ms)
            for name, known in told.items()
            if known.definition.settings.paused or known.fires_ms < float("inf")
        }

    def saw(self, version: str) -> None:
        """Look again what stands in Redis where the rules have another version: schedules are changed with them."""
        if version != self._version:
            self._version = version
            self.look_again()

    def look_again(self) -> None:
        """Note that what stands in Redis of schedules may have changed."""
        self._must_read = True
        self._changed.set()

    def apply(self, stored: Mapping[str, str]) -> None:
        """Take over what stands in Redis: by name a revision, a space and a JSON object."""
        found, unreadable = merge(self._code, dict(stored))
        for name, reason in unreadable.items():
            self._tell(name, f"{reason}; it does not run")
        self._told = {name: text for name, text in self._told.items() if name in unreadable or name in found}
        before = self._known
        self._known = {name: _Known(definition) for name, definition in found.items()}
        for name, known in before.items():
            now = self._known.get(name)
            if now is not None and now.definition.whole_hash == known.definition.whole_hash:
                self._known[name] = known

    async def run(self) -> None:
        """Fire what is due, until cancelled."""
        failures = 0
        while True:
            try:
                await self._read()
                wait_s = await self._tick()
            except StoreUnavailable as error:
                failures += 1
                log.log(level_of(error, failures), "schedules do not fire: %s", error)
                await asyncio.sleep(delay_s(failures, STORE_BACKOFF, random))
                continue
            failures = 0
            await self._doze(wait_s)

    async def _read(self) -> None:
        now_s = time.monotonic()
        if not self._must_read and now_s < self._read_s:
            return
        self._must_read = False
        self._changed.clear()
        try:
            stored = await self._streams.definitions()
        except StoreUnavailable:
            self._must_read = True
            raise
        self._read_s = now_s + READ_S
        self.apply(stored)

    async def _tick(self) -> float:
        """Ask for all that is due to be asked for; return for how long there is nothing to do."""
        now_ms = self._now_ms()
        asked = [known for known in self._known.values() if known.next_ms <= now_ms]
        asks: list[TickAsk] = []
        for at, known in enumerate(asked, 1):
            asks.append(known.ask(now_ms))
            if at % PER_TURN == 0:
                await asyncio.sleep(0)
        if asks:
            must_forget = time.monotonic() > self._forget_s
            server_ms, ticked = await self._streams.tick(asks, int(now_ms), must_forget)
            self._ahead_ms = server_ms - time.monotonic() * 1000
            self._forget_s += FORGET_S if must_forget else 0
            for known, answer in zip(asked, ticked, strict=True):
                self._took(known, answer, server_ms)
        return (min((known.next_ms for known in self._known.values()), default=float("inf")) - self._now_ms()) / 1000

    def _took(self, known: _Known, answer: Ticked, now_ms: int) -> None:
        name = known.definition.name
        match answer.word:
            case "kept" | "fired" | "moved" | "early" | "new" | "ahead":
                known.took(answer.last_ms, now_ms)
                self._told.pop(name, None)
                if answer.word == "ahead":
                    log.warning("schedule %s: the clock of Redis has gone back; it fires again from now on", name)
            case "other":
                # What stands in Redis was changed, or another release rules.
                known.last_ms, known.next_ms = None, now_ms + OTHER_MS
                self._must_read = True
            case refusal:
                known.next_ms = now_ms + REFUSED_MS
                self._tell(name, f"schedule {name}: it cannot be fired: {refusal}")

    def _tell(self, name: str, text: str) -> None:
        if self._told.get(name) != text:
            self._told[name] = text
            log.error("%s", text)

    def _now_ms(self) -> float:
        """Return the server's time, as far as it is known: mostly a little less."""
        return time.monotonic() * 1000 + self._ahead_ms

    async def _doze(self, wait_s: float) -> None:
        if self._must_read or wait_s <= 0:
            await asyncio.sleep(0)
            return
        try:
            async with asyncio.timeout(min(wait_s, self._read_s - time.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            return


def _chance(low: float, high: float) -> float:
    """Return a number between the two, so that workers do not ask in step."""
    return low + (high - low) * random()  # noqa: S311
