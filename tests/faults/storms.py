"""A storm: jobs of every fate are sent while the nemesis does its worst; then all must drain, and the checker judges."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import redis

from tests.faults.checker import Verdict, check_folder, leftovers, leftovers_everywhere
from tests.faults.ledger import Drained, Seed, now_s
from tests.faults.nemesis import KINDS, LINE_KINDS, PROCESS_KINDS, SERVER_KINDS, Nemesis, Slot
from tests.faults.people import STYLES, Told
from tests.faults.sender import LONG_MS, Sender
from tests.faults.worker import ROOT
from tests.proxy import Proxy
from tests.servers import Server

WORKERS = 3
DRAIN_S = 60.0
FORGET_S = 20.0  # the dead are forgotten some leases after their last beat
# Nothing acknowledged may be lost by a kill of the server: with `everysec` a stalled disk would lose some.
DURABLE = ("--appendfsync", "always", "--enable-debug-command", "local")


PEOPLE = ("--handlers", "tests.faults.jobs,tests.faults.people", "--threads", "8")


@dataclass(frozen=True)
class Weather:
    """What a storm is made of: `kinds` of faults, each hand about every so many seconds."""

    jobs: int
    seconds: float
    kinds: Sequence[str]
    process_gap_s: float
    server_gap_s: float = 2.0
    line_gap_s: float = 1.0
    styles: Mapping[type[Told], int] = field(default_factory=dict)  # handlers beside the plain one, and how many in a hundred
    options: Sequence[str] = ()  # further flags of the workers
    long_ms: tuple[float, float] = LONG_MS
    killers_ms: Sequence[float] = ()  # jobs that end their process so long after their start
    drain_s: float = DRAIN_S
    pad_bytes: int = 0
    line_bytes_per_s: float = 0.0  # of each line; 0: as fast as it can
    workers: int = WORKERS

    def of(self, kinds: Sequence[str]) -> list[str]:
        """Return what there is of these kinds."""
        return [kind for kind in self.kinds if kind in kinds]


def usual(jobs: int, seconds: float) -> Weather:
    """Return the weather of every kind of fault, over handlers as people write them."""
    return Weather(jobs, seconds, KINDS, process_gap_s=2.0, styles=STYLES, options=PEOPLE)


# A clock that is played: the lease, the watch over suspects and the jobs are a twentieth of the defaults, so that 30 s stand for
# ten minutes. What kills late is found only where its isolation has grown to its delay.
LONG: Final = Weather(
    200,
    25.0,
    ("kill", "stop", "deploy"),
    process_gap_s=6.0,
    options=("--suspect", "0.5", "--handlers", "tests.faults.jobs,tests.faults.poison"),
    long_ms=(5000.0, 25000.0),
    killers_ms=(0, 100, 1000, 4000),
    drain_s=300.0,
)

# 75 MB through three lines of 4 MB/s each: what is asked for by number of entries never comes through.
LARGE: Final = Weather(
    300,
    30.0,
    ("kill", "stop", "deploy", "stall"),
    process_gap_s=4.0,
    line_gap_s=4.0,
    pad_bytes=250_000,
    line_bytes_per_s=4_000_000,
    drain_s=180.0,
)


async def blow(
    server: Server,
    history: Path,
    weather: Weather,
    seed: int,
    new_nemesis: Callable[..., Nemesis] = Nemesis,
    new_sender: Callable[..., Sender] = Sender,
) -> Verdict:
    """Run one storm on an empty server, and give what the checker says."""
    rng = Random(seed)
    raw = server.client()
    async with contextlib.AsyncExitStack() as stack:
        through_proxies = bool(weather.of(LINE_KINDS) or weather.line_bytes_per_s)

        async def line() -> Proxy | None:
            proxy = await stack.enter_async_context(Proxy(server.socket)) if through_proxies else None
            if proxy is not None:
                proxy.bytes_per_s = weather.line_bytes_per_s
            return proxy

        slots = [Slot(await line()) for _ in range(weather.workers)]
        to_sender = await line()
        nemesis = new_nemesis(server, history, rng, slots, to_sender, weather.options, has_killers=bool(weather.killers_ms))
        nemesis.note(Seed(seed, commit(), version_of(raw)))
        url = to_sender.url if to_sender else server.url
        sender = new_sender(
            url, history, Random(seed + 1), weather.styles, weather.long_ms, weather.killers_ms, weather.pad_bytes
        )
        try:
            await _start(nemesis)
            attending = [asyncio.create_task(nemesis.supervise()), asyncio.create_task(nemesis.watch())]
            await _rage(nemesis, sender, weather)
            await _drain(nemesis, raw, weather.drain_s)
            for task in attending:
                task.cancel()
            verdict = await asyncio.to_thread(check_folder, history, raw, nemesis.pids, nemesis.leaves)
            await nemesis.dismiss()
            goodbye = await asyncio.to_thread(leftovers_everywhere, raw, (), nemesis.leaves)
            if goodbye and not verdict.leftovers:
                verdict.problems.append(f"left after the workers have gone: {goodbye}")
            verdict.problems += nemesis.strange
        finally:
            nemesis.kill_all()
            raw.close()
    return verdict


async def _start(nemesis: Nemesis) -> None:
    for slot in nemesis.slots:
        nemesis.hire(slot)
    await _until(lambda: all(slot.worker and slot.worker.is_ready for slot in nemesis.slots), 30, "the workers start")


async def _rage(nemesis: Nemesis, sender: Sender, weather: Weather) -> None:
    hands = [
        asyncio.create_task(harm(weather.of(kinds), gap_s))
        for harm, kinds, gap_s in (
            (nemesis.harm_processes, PROCESS_KINDS, weather.process_gap_s),
            (nemesis.harm_server, SERVER_KINDS, weather.server_gap_s),
            (nemesis.harm_lines, LINE_KINDS, weather.line_gap_s),
        )
        if weather.of(kinds)
    ]
    sending = asyncio.create_task(sender.run(weather.jobs, weather.seconds))
    await asyncio.wait([sending, *hands], return_when=asyncio.FIRST_COMPLETED)  # a hand ends early only by an error
    nemesis.is_over = True
    await asyncio.gather(*hands)
    await sending


async def _drain(nemesis: Nemesis, raw: redis.Redis, drain_s: float) -> None:
    """Wait until everything is settled, and the dead are forgotten. What does not come to that is what the checker finds."""
    since_s = now_s()
    with contextlib.suppress(AssertionError):
        await _until(lambda: not leftovers(raw), drain_s, "everything is settled")
    nemesis.note(Drained(now_s() - since_s))
    with contextlib.suppress(AssertionError):
        await _until(lambda: not leftovers_everywhere(raw, nemesis.pids, nemesis.leaves), FORGET_S, "the dead are forgotten")


async def _until(is_true: Callable[[], bool], deadline_s: float, what: str) -> None:
    end_s = now_s() + deadline_s
    while not await asyncio.to_thread(is_true):
        assert now_s() < end_s, f"{what} did not hold within {deadline_s} s"
        await asyncio.sleep(0.05)


def commit() -> str:
    """Return the commit that is tested, with a mark where the tree differs from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def version_of(raw: redis.Redis) -> str:
    """Return name and version of a server."""
    facts = raw.info("server")
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"
    return f"Redis {facts['redis_version']}"
