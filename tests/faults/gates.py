"""A storm over types with limits, whose workers die while people pause and resume.

Beside what every storm is judged by, nothing may run twice at the same time, no gate may have more at once or in a second than it
gives, nothing paused may start, and no permit, no lot and no consumer of a lot may be left.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from runtime import Message, Priority
from runtime.errors import StoreUnavailable
from runtime.store.control import ControlStore
from tests.contract.snapshot import STREAMS
from tests.faults import ledger, storms
from tests.faults.checker import Verdict
from tests.faults.gated import GROUP_LIMIT, GROUPS, LIMIT, RATE, TYPE_LIMIT, Capped, Grouped, Paced
from tests.faults.jobs import Scripted
from tests.faults.ledger import Fault, Paused, Run, Story, now_s
from tests.faults.nemesis import Nemesis, deck
from tests.faults.sender import Sender
from tests.faults.storms import Weather
from tests.servers import Server

WORKERS: Final = 4
LANES: Final = ("--handlers", "tests.faults.jobs,tests.faults.gated", "--concurrency", "10", "--reserved", "2")
STYLES: Final = {Scripted: 25, Capped: 25, Paced: 30, Grouped: 20}  # of a hundred jobs
TYPES: Final = ("capped", "paced", "grouped", "scripted")
OUTAGE: Final = "outage"  # a pause of a type, over which the server dies
ORDERS: Final = (*TYPES, "medium", OUTAGE)
KNOWN_S: Final = 3.0  # until all workers know a pause: they look once a second
PAUSE_S: Final = (0.2, KNOWN_S + 1.5)
BETWEEN_S: Final = (0.1, 1.0)
JOBS_PER_S: Final = 50.0  # a little less than the gates let through
KINDS: Final = ("kill", "kill", "kill", "deploy")


def weather(jobs: int) -> Weather:
    """Return a weather of kills and deploys; the server dies over pauses."""
    return Weather(jobs, jobs / JOBS_PER_S, KINDS, process_gap_s=1.2, options=LANES, workers=WORKERS)


class Orderers(Nemesis):
    """Beside all harm, people pause types and priorities, and resume them."""

    async def harm_processes(self, kinds: Sequence[str], gap_s: float) -> None:
        await asyncio.gather(super().harm_processes(kinds, gap_s), self._order())

    async def _order(self) -> None:
        store = ControlStore(self.server.url, "jobs")
        try:
            for what in deck(ORDERS, self._rng):
                await asyncio.sleep(self._rng.uniform(*BETWEEN_S))
                if self.is_over:
                    return
                await self._pause(store, self._rng.choice(TYPES) if what == OUTAGE else what, what == OUTAGE)
        finally:
            await store.close()

    async def _pause(self, store: ControlStore, what: str, has_outage: bool) -> None:
        await _surely(lambda: store.order("storm", "", [("pause", f"pause:{what}", "0")]))
        from_s, pids = now_s(), self.pids
        if has_outage:
            await self._server_kill_long()
            self.note(Fault("server-kill-long", pids, from_s, now_s(), at_sender=True))
            from_s = now_s()
            await asyncio.sleep(PAUSE_S[1])
        else:
            await asyncio.sleep(self._rng.uniform(*PAUSE_S))
        self.note(Paused(what, from_s, now_s()))
        await _surely(lambda: store.order("storm", "", [("del", f"pause:{what}", "")]))


async def _surely(ask: Callable[[], Awaitable[object]]) -> None:
    while True:
        with contextlib.suppress(StoreUnavailable):
            await ask()
            return
        await asyncio.sleep(0.1)


class GatedSender(Sender):
    """Sends to gated types and to one without limits, in all priorities."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._styles: Any = STYLES

    def _typed_one(self, n: int, fate: str) -> tuple[Any, Message]:
        sent, message = super()._typed_one(n, fate)
        more: dict[str, Any] = {"priority": self._rng.choice(list(Priority))}
        if isinstance(message.payload, Grouped):
            more["group"] = self._rng.choice(GROUPS)
        return sent, msgspec.structs.replace(message, **more)


async def blow(server: Server, history: Path, weather: Weather, seed: int) -> Verdict:
    """Run one storm on an empty server; return what both checkers say."""
    verdict = await storms.blow(server, history, weather, seed, Orderers, GatedSender)
    check_gates(verdict, ledger.read(history))
    return verdict


# --- the checker ---------------------------------------------------------------------------------------------------------


def check_gates(verdict: Verdict, story: Story) -> None:
    """Judge what ran at the same time and in a second, by what the handlers wrote down."""
    kills = {pid: fault.from_s for fault in story.faults if fault.kind == "kill" for pid in fault.pids}
    gone = {pid: fault.to_s for fault in story.faults if fault.kind == "deploy" for pid in fault.pids}
    spans = [(run, run.start_s, _until_s(run, kills, gone)) for run in story.runs]
    by_gate: dict[str, list[tuple[float, float]]] = defaultdict(list)
    by_number: dict[int, list[tuple[float, float]]] = defaultdict(list)
    granted_ms: list[int] = []
    for run, from_s, to_s in spans:
        kind, group = _gate_of(run)
        by_gate[kind].append((from_s, to_s))
        if kind == "grouped" and group != "-":
            by_gate[f"{kind}:{group}"].append((from_s, to_s))
        by_number[run.n].append((from_s, to_s))
        if kind == "paced" and run.count == 1:  # what was handed out again after a death is charged no token
            granted_ms.append(int(run.more[2]))
    bounds = {"capped": LIMIT, "grouped": TYPE_LIMIT, **{f"grouped:{group}": GROUP_LIMIT for group in GROUPS if group}}
    peaks = {gate: peak_of(by_gate[gate]) for gate in bounds}
    over = [f"{peaks[gate]} of {gate} ran at once, the limit is {most}" for gate, most in bounds.items() if peaks[gate] > most]
    twice = [f"{n} ran at {one} and {other}" for n, runs in by_number.items() for one, other in _overlapping(runs)]
    most_granted = most_within(granted_ms, 1000)
    quick = [f"{most_granted} of paced were let start within a second, the rate is {RATE}"] if most_granted > RATE else []
    early = _started_while_paused(story)
    verdict.problems += [*over, *twice[:5], *quick, *early[:5]]
    told = ", ".join(f"{gate} {peak} of {bounds[gate]}" for gate, peak in peaks.items())
    verdict.figures += [
        f"at once: {told}; within a second {most_granted} of {RATE}; run twice at the same time {len(twice)}",
        f"{len(story.pauses)} pauses, {len(story.backs)} over an outage; started while paused {len(early)}",
    ]
    verdict.void += [f"{gate} was never full" for gate, most in bounds.items() if peaks[gate] < most]
    verdict.void += [] if most_granted > RATE / 2 else [f"no second with more than {most_granted} of paced"]
    verdict.void += [] if story.backs else ["no pause over an outage"]


def _gate_of(run: Run) -> tuple[str, str]:
    return (run.more[0], run.more[1]) if run.more else ("", "-")


def _until_s(run: Run, kills: dict[int, float], gone: dict[int, float]) -> float:
    """Return when a run ended; of one that nobody saw end, when its process did."""
    if run.outcome:
        return run.end_s
    return max(run.start_s, kills.get(run.pid, gone.get(run.pid, float("inf"))))


def peak_of(spans: Iterable[tuple[float, float]]) -> int:
    """Return how many there were at once; what ends as another begins is not beside it."""
    steps = sorted((at_s, step) for span in spans for at_s, step in zip(span, (1, -1), strict=True))
    now = peak = 0
    for _, step in steps:
        now += step
        peak = max(peak, now)
    return peak


def _overlapping(spans: list[tuple[float, float]]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    return [(one, other) for one, other in pairwise(sorted(spans)) if other[0] < one[1]]


def most_within(times_ms: Sequence[int], window_ms: int) -> int:
    """Return how many of these times lie in one window, where most do."""
    ordered, first, most = sorted(times_ms), 0, 0
    for at, time_ms in enumerate(ordered):
        while ordered[first] <= time_ms - window_ms:
            first += 1
        most = max(most, at - first + 1)
    return most


def _started_while_paused(story: Story) -> list[str]:
    found: list[str] = []
    for run in story.runs:
        names = {_gate_of(run)[0] or "scripted", STREAMS[int(run.place.partition("/")[0])]}
        for pause in story.pauses:
            from_s = pause.from_s + KNOWN_S
            if pause.what in names and from_s < run.start_s < pause.to_s:
                starved = any(run.pid in one.pids and one.from_s < run.start_s < one.to_s + KNOWN_S for one in story.starved)
                if not starved:
                    found.append(f"{run} started {run.start_s - pause.from_s:.2f} s after the pause of {pause.what}")
    return found
