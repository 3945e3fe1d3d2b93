"""Orders are the rules that people change at run time, as this worker last read them, and the server's clock by which they end.

While the store is away, those read last hold. If the process dies between two looks, nothing is lost: a worker reads all rules
before it fetches for the first time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from runtime import logs
from runtime.errors import StoreError, StoreUnavailable
from runtime.jobs import STREAMS
from runtime.rules import NO_RULES, Rules
from runtime.store.arguments import MAX_IDS
from runtime.streams import Streams
from runtime.worker.cancels import Cancels
from runtime.worker.log import FIRST_TOLD, level_of

log: Final = logs.guarded("runtime.orders")

REREAD_S: Final = 30.0  # a guess: a field that was changed by hand, without `v`, holds after this time
OVERLAP_MS: Final = 2000  # a guess: marks are read again that were written so long before the last look
MOST_TOLD: Final = 20  # lines; a guess: who sees these looks at the others
ALL_STREAMS: Final = frozenset(range(len(STREAMS)))


class Orders:
    """Owns the rules, and the marks of cancelled jobs. `on_look` is called after each look: rules may be new, or the time of a
    pause may be up.
    """

    def __init__(self, streams: Streams) -> None:
        self.rules: Rules = NO_RULES
        self.cancels: Cancels = Cancels()
        self.on_look: Callable[[Rules], None] = lambda rules: None
        self._streams = streams
        self._server_ahead_ms = 0.0  # of our monotonic clock
        self._reread_s = 0.0
        self._marks_since_ms = 0
        self._failures = 0
        self._told: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<Orders version {self.rules.version or 'none'}{', to be ' + self.mine if self.mine else ''}>"

    @property
    def mine(self) -> str:
        """What this worker is ordered to do: `quiet`, `stop` or nothing."""
        return self.rules.orders.get(self._streams.consumer, "")

    @property
    def now_ms(self) -> float:
        """The server's time, by what it said with the rules and our clock since then."""
        return time.monotonic() * 1000 + self._server_ahead_ms

    @property
    def paused(self) -> frozenset[int]:
        """The streams of which nothing may start here: those that are paused, and all where this worker is to be quiet."""
        return ALL_STREAMS if self.mine else self.rules.paused_streams(self.now_ms)

    async def begin(self) -> None:
        """Read the rules before the first fetch.

        Raises:
            StoreUnavailable: no answer, or an error that says no more than that.
        """
        try:
            await self._read()
        except StoreError as error:
            if "WRONGTYPE" not in str(error):
                raise
            self._failures = FIRST_TOLD - 1  # told at once: what is paused may start here
            self._cannot_read(error)
        self.on_look(self.rules)

    async def look(self, version: str | None) -> None:
        """Read the rules where they were changed, and every REREAD_S; `version` is None where the store was away."""
        if version is not None and (version != self.rules.version or time.monotonic() >= self._reread_s):
            try:
                await self._read()
            except StoreUnavailable as error:
                self._cannot_read(error)
        self.on_look(self.rules)
        if self.cancels.ended:
            await self._unmark()

    async def _unmark(self) -> None:
        """Take away the marks of jobs that have ended here. What is not taken away goes by itself after a day."""
        ended, self.cancels.ended = self.cancels.ended[:MAX_IDS], self.cancels.ended[MAX_IDS:]
        try:
            await self._streams.unmark(ended)
        except StoreUnavailable as error:
            log.debug("the marks of %d cancelled jobs stay for a day: %s", len(ended), error)

    async def _read(self) -> None:
        self.rules, now_ms, marks = await self._streams.rules(self._marks_since_ms)
        # A clock that was set back: the next look reads all marks.
        self._marks_since_ms = now_ms - OVERLAP_MS if now_ms > self._marks_since_ms else 0
        self.cancels.saw(marks, time.monotonic())
        self._server_ahead_ms = now_ms - time.monotonic() * 1000
        self._reread_s = time.monotonic() + REREAD_S
        self._failures = 0
        unreadable = frozenset(self.rules.unreadable)
        for trouble in sorted(unreadable - self._told)[:MOST_TOLD]:
            log.warning("a rule cannot be read and is left out, the others hold: %s", trouble)
        self._told = unreadable

    def _cannot_read(self, error: StoreUnavailable) -> None:
        self._failures += 1
        self._reread_s = time.monotonic() + REREAD_S
        log.log(level_of(error, self._failures), "rules cannot be read, those read last hold: %s", error)
