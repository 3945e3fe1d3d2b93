"""What goes wrong between a worker and its store, call by call."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from enum import Enum


class Fault(Enum):
    """What may happen at a call."""

    REFUSED = "no answer, and nothing was done"
    LOST = "it was done, and the reply was lost"
    ERROR = "the server answers with an error"
    FULL = "the server's memory is full"
    HELD = "it was done, and the answer comes when the plan lets it"
    RESTARTED = "the server was started again before it: another run id, and what leases remember names the old one"
    KILLED_BEFORE = "the process dies before the server has it"
    KILLED_AFTER = "the process dies when the server did it, before the answer"


class Plan:
    """What goes wrong at which call of one process: (verb, how many of that verb came, what), or 0 for each call of the verb.

    Owns the counts of calls, and whether the process is dead: then no call of it does anything or comes back.
    """

    def __init__(self, *faults: tuple[str, int, Fault], on_death: Callable[[], None] = lambda: None) -> None:
        self.faults = {(verb, nth): fault for verb, nth, fault in faults}
        self.counts = Counter[str]()
        self.hits = 0
        self.is_dead = False
        self.on_death = on_death
        self._held: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    @property
    def held(self) -> int:
        """How many answers are held back."""
        return len(self._held)

    def met(self, verb: str) -> Fault | None:
        """Return what goes wrong at this call."""
        self.counts[verb] += 1
        fault = self.faults.get((verb, self.counts[verb])) or self.faults.get((verb, 0))
        self.hits += fault is not None
        return fault

    def heal(self) -> None:
        """Let nothing go wrong any more, and let go of what is held back."""
        self.faults.clear()
        self.let_go()

    def let_go(self) -> None:
        """Let the answers come that are held back."""
        for loop, event in list(self._held):
            loop.call_soon_threadsafe(event.set)

    async def hold(self) -> None:
        """Return when let go."""
        held = (asyncio.get_running_loop(), asyncio.Event())
        self._held.append(held)
        try:
            await held[1].wait()
        finally:
            self._held.remove(held)

    async def die(self) -> None:
        """End the process: what waits for an answer waits until it is cancelled."""
        if not self.is_dead:
            self.is_dead = True
            self.on_death()
        await asyncio.Event().wait()
