"""Isolation runs again what a dead worker held, beside nothing young, so that a job that kills its process is found.

At most half of the workers, at least one, isolate at a time; the script sees to it. If this process dies, others find what it
held with a higher count: that runs in smaller groups, at last alone. Against what ran alone a death is evidence, from the step
that hands it out until the store has confirmed that the isolation is over; nothing else starts here before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from random import random
from typing import Final

from runtime.codec import summary
from runtime.errors import StoreError, StoreUnavailable
from runtime.hooks import death_of
from runtime.jobs import STREAMS, Lease, Letter, default_id
from runtime.store.arguments import MAX_IDS
from runtime.store.shapes import Isolated
from runtime.worker.admission import Admission, From
from runtime.worker.context import WorkerContext

ASK_PART: Final = 0.25  # a guess: of a lease, until we ask again while others isolate


class Isolation:
    """Owns what is isolated here, and says when ordinary fetching rests.

    `beside` returns for how long the youngest job of this process has run, infinite when none does, and whether no former suspect
    runs here.
    """

    def __init__(
        self,
        ctx: WorkerContext,
        beside: Callable[[], tuple[float, bool]],
        admission: Admission,
    ) -> None:
        self._ctx = ctx
        self._beside = beside
        self._admission = admission
        self._types = {
            handler.contract.type: (handler.contract.version, int(handler.timeout_s * 1000)) for handler in ctx.registry.values()
        }
        self._isolated: list[tuple[int, bytes]] = []
        self._rests_since_s = 0.0
        self._until_s = 0.0
        self._ask_at_s = 0.0
        self._turn_until_s = 0.0  # until then it is the turn of ordinary work, unless none waits
        self._needed_s: float | None = None  # what runs beside must have run this long; None unless we have a place and wait
        self._patient_until_s = 0.0  # until then it is worth waiting for that; 0 while nothing is waited for
        self._paused: frozenset[int] = frozenset()
        self._may_be_named = False  # the store may name a job that runs alone here: our death would be evidence against it

    def __repr__(self) -> str:
        return f"<Isolation {len(self._isolated)} isolated>"

    async def is_resting(self) -> bool:
        """Hand out suspects when they may run; return whether ordinary fetching must rest meanwhile.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        now_s = time.monotonic()
        if self._isolated:
            if now_s < self._until_s and any(self._ctx.held.has(*place) for place in self._isolated):
                return True
            await self._end_isolation()
            self._turn_until_s = 2 * now_s - self._rests_since_s  # ordinary work gets as long as the isolation took
            return False
        if self._may_be_named:  # a reply was lost: what it named never ran here
            await self._end_isolation()
        is_ours = self._needed_s is not None
        if len(self._paused) == len(STREAMS):
            if is_ours:
                await self._leave(now_s)
            return False
        if now_s < max(self._ask_at_s, self._turn_until_s) or not (self._ctx.parked.has_suspects or is_ours):
            return False
        lanes = self._ctx.inbox.idle
        if self._needed_s is not None and (self._beside()[0] < self._needed_s or not lanes):
            self._patient_until_s = self._patient_until_s or now_s + max(self._ctx.config.lease_s, 2 * self._needed_s)
            if now_s < self._patient_until_s:
                return True
            await self._leave(now_s)
            return False
        return await self._ask(min(lanes, MAX_IDS), now_s)

    @property
    def paused(self) -> frozenset[int]:
        """The streams of which no suspects are asked for."""
        return self._paused

    @paused.setter
    def paused(self, streams: frozenset[int]) -> None:
        """Ask so from now on, and soon: what was answered before was about others."""
        if streams != self._paused:
            self._paused, self._ask_at_s = streams, 0.0

    @property
    def next_ask_s(self) -> float:
        """For how many seconds suspects need not be asked for; infinite where there are none."""
        if self._needed_s is not None:
            return 0.0
        if not self._ctx.parked.has_suspects:
            return float("inf")
        # While it is the turn of ordinary work, a short wait tells whether any is there.
        return max(0.0, self._ask_at_s - time.monotonic())

    async def close(self) -> None:
        """Leave the place at a stop: what is isolated here may run on for the whole grace, and be killed at its end."""
        if self._needed_s is not None or self._may_be_named:
            with contextlib.suppress(StoreUnavailable):
                await self._leave(time.monotonic())

    def is_quiet(self) -> None:
        """Note that no ordinary job waits: the next suspects need not either."""
        self._turn_until_s = 0.0

    async def _ask(self, n: int, now_s: float) -> bool:
        config, (calm_s, is_clean) = self._ctx.config, self._beside()
        calm_ms = -1 if calm_s == float("inf") else int(calm_s * 1000)
        lease_ms, base_ms = int(config.lease_s * 1000), int(config.suspect_s * 1000)
        self._may_be_named = True
        try:
            told = (self._startable(), is_clean, self._paused, self._ctx.gates.limited)
            found = await self._ctx.streams.isolate(lease_ms, calm_ms, base_ms, n, *told)
        except StoreError:  # its last step is to name us
            self._may_be_named = False
            self._ask_at_s = now_s + ASK_PART * config.lease_s  # ordinary work goes on, though suspects cannot
            raise
        rests_since_s = now_s if self._needed_s is None else self._rests_since_s
        self._may_be_named = found.word == "run"
        self._needed_s, self._patient_until_s = None, 0.0
        match found.word:
            case "run":
                self._isolated = [(delivery.stream, entry) for delivery in found.fetched.deliveries for entry, _ in delivery.rows]
                self._ctx.stats.isolated += len(self._isolated)
                self._rests_since_s = rests_since_s
                self._until_s = now_s + found.for_ms / 1000
                try:
                    await self._admission.receive(found.fetched, now_s, From.ISOLATION)
                except StoreUnavailable:
                    if len(self._isolated) == 1:  # it has not run: that this process lives says nothing of it
                        self._isolated.clear()
                    raise
                self._until_s = time.monotonic() + found.for_ms / 1000
                return True
            case "wait":
                self._needed_s, self._rests_since_s = found.for_ms / 1000, rests_since_s
                return True
            case "dead":
                await self._dead_letter(found)
                return True
            case "busy":
                self._ask_at_s = now_s + min(found.for_ms / 1000, ASK_PART * config.lease_s) * (0.5 + random())  # noqa: S311
                return False
            case _:
                self._ctx.parked.has_suspects = False
                self._ask_at_s = now_s + found.for_ms / 1000
                return False

    def _startable(self) -> dict[str, tuple[int, int]]:
        """Return the types of which one would find its thread or child process in time: others would keep this place for nothing,
        again and again, and those behind them waiting.
        """
        return {name: bounds for name, bounds in self._types.items() if self._may_start(name.encode())}

    def _may_start(self, type_name: bytes) -> bool:
        gates = self._ctx.gates
        if len(gates.paused) == len(STREAMS) or gates.is_type_paused(type_name, time.monotonic()):
            return False
        places = self._ctx.parked.places_of(type_name)
        return places is None or places.capacity_within_a_second(0) > 0

    async def _end_isolation(self) -> None:
        """Let others run beside what is left here, once the store has confirmed that our death would be no evidence any more."""
        await self._ctx.streams.acquit(self._isolated if len(self._isolated) == 1 else ())
        self._may_be_named = False
        self._isolated.clear()

    async def _leave(self, now_s: float) -> None:
        """Leave the place for a lease: another worker may have a free lane sooner."""
        await self._ctx.streams.isolate(0, 0, 0, -1, {})
        self._needed_s, self._patient_until_s, self._may_be_named = None, 0.0, False
        self._ask_at_s = now_s + self._ctx.config.lease_s

    async def _dead_letter(self, found: Isolated) -> None:
        """Move a job that killed three workers while it ran alone to the dead letters, without another run."""
        (delivery,) = found.fetched.deliveries
        entry, fields = delivery.rows[0]
        about = summary(fields)
        text = f"killed its process {len(found.names)} times while it ran alone: {', '.join(found.names)}"
        lease = Lease(delivery.stream, entry, next(iter(delivery.counts)), found.fetched.run_id, 0.0)
        trace = self._ctx.died(lease, about.type, "poison", text)
        job_id, result_ms = default_id(STREAMS[delivery.stream], entry.decode()), self._ctx.ledger.results_ms.get(about.type, 0)
        letter = Letter(lease, "poison", text, "", about.failed, job_id, trace, result_ms)
        if await self._ctx.streams.dead_letter(self._ctx.streams.consumer, [letter]):
            self._ctx.stats.moved(about.type, delivery.stream, "dead")
            job_id = about.id or letter.job_id
            told: dict[str, object] = {
                "job_id": job_id,
                "job_type": about.type.decode(errors="replace"),
                "job_attempt": about.failed,
            }
            if self._ctx.hooks is not None:
                self._ctx.hooks.died([death_of(letter, about.type, job_id)])
            self._ctx.log.death("job %s is dead: it %s", job_id, text, about=told, reason=letter.code)
