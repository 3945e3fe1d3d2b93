"""A gate, whatever happens in any order: never more than its rate in its period nor than its limit at once; no permit is left."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from random import Random
from typing import Any

import pytest

from runtime.jobs import FREE, SUSPECT, Deferral, Parking
from runtime.limits import Limits, Rate
from runtime.store import base
from runtime.store.base import Script
from runtime.store.shapes import Ask, Serve, Served
from runtime.streams import Streams
from tests.contract.kit import HIGH, LEASE_MS, LONG_MS, ServerKit, batch, jobs_of, quiet_guard

WORKERS = ("ann", "bob", "cid")
LOT = "~g:t"
SEEDS = int(os.environ.get("GATES_SEEDS", "6"))  # two seconds
RATES = (
    *(Rate(n, 1000) for n in (1, 10, 19, 40, 100, 997, 20_000, 1_000_000)),
    *(Rate(1, 60_000), Rate(7, 30_000), Rate(1000, 60_000), Rate(100_000, 3_600_000), Rate(999_999, 31 * 24 * 3_600_000)),
)


# --- rates, by a clock that the test sets -------------------------------------------------------------------------------------


@pytest.fixture
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `serve` read its time from a key, in µs; a rate's key then has no end of life, which would be by the server's clock."""
    real = base.script
    text = real("serve").text
    for before, after in (
        ("local now_us = time[1] * 1000000 + time[2]\n", "local now_us = tonumber(redis.call('GET', PREFIX .. 'clock'))\n"),
        (", 'PX', math.ceil((tat - now_us) / 1000) + 1)", ")"),
    ):
        assert text.count(before) == 1
        text = text.replace(before, after)
    patched = Script(text, hashlib.sha1(text.encode()).hexdigest())
    monkeypatch.setattr(base, "script", lambda name: patched if name == "serve" else real(name))


class Waiting:
    """A gate before which more jobs wait than come, and the time there, in µs."""

    def __init__(self, kit: Any, rng: Random) -> None:
        self.kit, self.rng = kit, rng
        self.streams = [kit.streams(name) for name in WORKERS]
        self.began_us = self.now_us = kit.now_ms() * 1000
        self.grants: list[int] = []

    async def start(self) -> None:
        """Let 600 jobs wait."""
        await self.streams[0].start()
        for _ in range(600):
            self.kit.add()
        self.kit.read_as(LOT)
        self._give_back(list(self.kit.holders()))

    def _give_back(self, entries: list[str]) -> None:
        if isinstance(self.kit, ServerKit) and entries:
            self.kit.raw.execute_command("XCLAIM", "{jobs}:high", "workers", LOT, 0, *entries, "RETRYCOUNT", 0, "JUSTID")
        else:
            for entry in entries:
                self.kit.claim(entry, LOT, 0)

    async def look(self, rate: Rate, n: int, after_us: int) -> Served:
        """Have one worker ask, so much later; what comes is put back."""
        if isinstance(self.kit, ServerKit):
            self.now_us += after_us
            self.kit.raw.set("{jobs}:clock", self.now_us)
        else:
            self.now_us += after_us // 1000 * 1000
            self.kit.store.advance(self.now_us // 1000 - self.kit.now_ms())
        asking = self.rng.choice(self.streams)
        _, [served] = await asking.serve([], [Serve("t", Limits(rate=rate), n, n, [(HIGH, LOT, "")])])
        assert served.error == ""
        self.grants += [self.now_us] * served.size
        self._give_back([entry.decode() for delivery in served.fetched.deliveries for entry, _ in delivery.rows])
        return served

    def keeps(self, rate: Rate) -> bool:
        """Return whether no half-open period saw more starts than the rate."""
        return all(late - soon >= rate.period_ms * 1000 for soon, late in zip(self.grants, self.grants[rate.n :], strict=False))


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("rate", RATES, ids=str)
async def test_no_period_sees_more_starts_than_the_rate_however_workers_ask(kit, rate):
    waiting = Waiting(kit, Random(rate.n + rate.period_ms))
    await waiting.start()
    interval_us = int(rate.interval_ms * 1000)
    pauses_us = (0, 1, 1000, interval_us - 1, interval_us, interval_us + 1, rate.burst * interval_us, rate.period_ms * 1000)
    for _ in range(250):
        rng = waiting.rng
        pause_us = rng.choice(pauses_us) if rng.random() < 0.5 else rng.randrange(2 * max(1000, interval_us))
        await waiting.look(rate, rng.choice((1, 2, 50, 700)), max(0, pause_us))
    assert waiting.keeps(rate)
    assert len(waiting.grants) > 10


@pytest.mark.usefixtures("_clock")
@pytest.mark.parametrize("rate", [rate for rate in RATES if 10 <= rate.n <= 1000 and rate.period_ms == 1000], ids=str)
async def test_while_jobs_wait_a_gate_comes_near_its_rate_if_it_is_asked_when_it_says(kit, rate):
    waiting = Waiting(kit, Random(7))
    await waiting.start()
    after_us, periods = 0, 3
    while waiting.now_us < waiting.began_us + periods * rate.period_ms * 1000:
        served = await waiting.look(rate, 500, after_us)
        after_us = max(10, served.stands) * 1000 + waiting.rng.randrange(2000)
    assert waiting.keeps(rate)
    assert len(waiting.grants) >= 0.95 * rate.n * periods


@pytest.mark.usefixtures("_clock")
async def test_a_clock_that_goes_back_stops_a_gate_for_no_longer_than_one_burst(kit):
    rate = Rate(10, 1000)
    waiting = Waiting(kit, Random(1))
    await waiting.start()
    assert (await waiting.look(rate, 5, 0)).size == 1
    assert (await waiting.look(rate, 5, -3_600_000_000)).size == 0
    assert (await waiting.look(rate, 5, 99_000)).size == 0
    assert (await waiting.look(rate, 5, 2000)).size == 1


# --- permits, over deaths and lost replies -------------------------------------------------------------------------------------


class Team:
    """Workers that run jobs of one type with a limit, and of two groups with one each; what each knows of its own."""

    def __init__(self, kit: Any, seed: int, limits: Limits) -> None:
        self.kit, self.rng, self.limits = kit, Random(seed), limits
        self.streams: dict[str, Streams] = {name: kit.streams(name) for name in WORKERS}
        self.running: dict[str, list[Any]] = {name: [] for name in WORKERS}
        self.freed: dict[str, list[tuple[str, str]]] = {name: [] for name in WORKERS}
        self.met = Counter[str]()

    def _group(self, entry: str) -> str:
        return self.kit.ids(HIGH).get(entry, "gone ")[-1].strip()

    def in_use(self) -> Counter[str]:
        """Return how many run in all, and by group; what came in a reply that was lost counts too."""
        running = [entry for entry, (holder, _) in self.kit.holders().items() if not holder.startswith("~")]
        return Counter({"": len(running)}) + Counter(map(self._group, running))

    async def serve(self, who: str, came: list[Any], noted: list[tuple[str, str]] | None = None, is_lost: bool = False) -> None:
        """Park what came, and ask the gate; without the answer, all that one knows of it is that it has to ask again."""
        if self.rng.random() < 0.7:
            for gate, held in self.kit.permits().items():
                self.kit.set_permits(gate, dict.fromkeys(held, self.rng.choice((1, 1e15))))
        lots = sorted({(HIGH, f"{LOT}:{group}", group) for group in "ab"})
        before = self.in_use()
        before.subtract({"": len(came)} | Counter(self._group(job.entry.decode()) for job in came))
        freed, self.freed[who] = self.freed[who], []
        serve = Serve("t", self.limits, self.rng.choice((0, 1, 5)), 5, lots, freed, noted or [])
        parks = [(job, f"{LOT}:{job.envelope.group.decode()}") for job in came]
        refused, [served] = await self.streams[who].serve(parks, [serve])
        assert (refused, served.error, served.fetched.refused) == (0, "", "")
        after, limits = self.in_use(), {"": self.limits.limit, "a": self.limits.group_limit, "b": self.limits.group_limit}
        assert not [name for name, number in after.items() if number > max(limits[name] or 99, before[name])], (before, after)
        self.met["full"] += served.stands < 0
        if is_lost:
            self.freed[who] += freed
            self.met["lost"] += served.size > 0
        else:
            self.running[who] += jobs_of(served.fetched)
            self.met["given"] += served.size

    async def settle(self, who: str, how: str) -> None:
        """End one job, or give it back."""
        job = self.running[who].pop(self.rng.randrange(len(self.running[who])))
        moves = {
            "done": batch(done=[job]),
            "retry": batch(Deferral(job, "retry", 0, job.envelope.id, 1)),
            "release": batch(Parking(job, FREE)),
        }
        settled = await self.streams[who].settle(moves[how])
        assert (settled.refused, settled.shortfall) == (0, 0)
        self.freed[who].append((job.envelope.group.decode(), f"high/{job.entry.decode()}"))

    async def reclaim(self, who: str, dead: str | None = None) -> None:
        """Find what nobody renews: of a dead worker all, of a live one what it does not know of."""
        now_ms = self.kit.now_ms()
        self.kit.set_until(dict.fromkeys(WORKERS, now_ms + LONG_MS))
        known = {job.entry.decode() for jobs in self.running.values() for job in jobs}
        if dead:
            self.kit.set_until({dead: 1})
            known -= {job.entry.decode() for job in self.running[dead]}
            self.running[dead], self.freed[dead] = [], []
        for entry, (holder, count) in self.kit.holders().items():
            if entry not in known and not holder.startswith("~"):
                self.kit.claim(entry, holder, count, 10 * LEASE_MS)
        quiet_guard(self.kit)
        found = await self.streams[who].reclaim(HIGH, LEASE_MS, 100, {})
        self.met["dead"] += found.dead
        self.met["undelivered"] += found.undelivered

    async def isolate(self, who: str) -> None:
        """Run a suspect, which notes its permit."""
        found = await self.streams[who].isolate(LEASE_MS, LONG_MS, 10_000, 1, {"t": (1, 30_000)})
        jobs = jobs_of(found.fetched)
        self.running[who] += jobs
        await self.serve(who, [], [(job.envelope.group.decode(), f"high/{job.entry.decode()}") for job in jobs])
        await self.streams[who].acquit([])
        self.met["noted"] += len(jobs)

    async def step(self) -> None:
        """Let something happen."""
        rng, who = self.rng, self.rng.choice(WORKERS)
        streams, is_lost = self.streams[who], rng.random() < 0.15
        match rng.choice(("fetch", "take", "serve", "serve", "settle", "settle", "settle", "reclaim", "die", "isolate")):
            case "fetch":
                await self.serve(who, jobs_of(await streams.fetch([0, rng.randrange(1, 6), 0, 0], set())), is_lost=is_lost)
            case "take":
                await self.serve(who, jobs_of(await streams.take(Ask(HIGH, FREE, 5))), is_lost=is_lost)
            case "serve":
                await self.serve(who, [], is_lost=is_lost)
            case "settle" if self.running[who]:
                await self.settle(who, rng.choice(("done", "done", "done", "retry", "release")))
                await streams.promote(100, "0")
            case "die" if rng.random() < 0.3:
                await self.reclaim(rng.choice([name for name in WORKERS if name != who]), who)
            case "reclaim":
                await self.reclaim(who)
            case "isolate":
                await self.isolate(who)
            case _:
                pass

    async def drain(self) -> None:
        """Let all that is left run to its end."""
        for _ in range(500):
            if not self.kit.ids(HIGH) and not self.kit.due():
                return
            for who in WORKERS:
                await self.reclaim(who)
                await self.isolate(who)
                await self.serve(who, jobs_of(await self.streams[who].take(Ask(HIGH, FREE, 50))))
                await self.serve(who, jobs_of(await self.streams[who].fetch([0, 50, 0, 0], set())))
                while self.running[who]:
                    await self.settle(who, "done")
                await self.streams[who].promote(100, "0")
        raise AssertionError(f"still there: {self.kit.holders()}, {self.kit.permits()}")


async def test_no_more_run_than_the_limits_whatever_happens_and_in_the_end_no_permit_is_left(kit):
    met = Counter[str]()
    for seed in range(SEEDS):
        kit.clear()
        team = Team(kit, seed, Limits(limit=3, group_limit=2))
        await team.streams["ann"].start()
        for n in range(40):
            group = team.rng.choice("ab")
            kit.add(id=f"j{n}{group}", group=group)
        for _ in range(150):
            await team.step()
        await team.drain()
        met += team.met
        assert kit.holders() == {}
        for gate in ("t", "t:a", "t:b"):  # what a dead worker could not tell any more: a full gate finds it
            left = kit.permits().get(gate, {})
            kit.set_permits(gate, dict.fromkeys(left, 1)) if left else None
        team.limits = Limits(*[max(1, *map(len, kit.permits().values())) if kit.permits() else 1, None, 1, None])
        await team.streams["ann"].serve([], [Serve("t", team.limits, 5, 5, [(HIGH, f"{LOT}:{group}", group) for group in "ab"])])
        assert kit.permits() == {}
        if isinstance(kit, ServerKit):
            lots = [row["name"] for row in kit.raw.xinfo_consumers("{jobs}:high", "workers") if row["name"].startswith("~")]
            assert [name for name in lots if name not in (FREE, SUSPECT)] == []
    assert {"given", "full", "lost", "dead", "undelivered", "noted"} - met.keys() == set()
