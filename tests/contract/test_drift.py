"""The double beside a server: any verbs in any order, by three workers of which some die. Both answer alike, and hold the same.

What one case of test_verbs.py pins down for each verb, this does for what verbs do to each other.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import msgspec
import pytest

from runtime import contract, handler
from runtime.jobs import FREE, STREAMS, Claim, Deferral, Job, Lease, Letter, Parking
from runtime.limits import NO_LIMITS, Limits, Rate
from runtime.schedules import Due
from runtime.store.base import WorkerRow
from runtime.store.shapes import Ask, Serve, TickAsk
from tests.contract.kit import MemoryKit, ServerKit, batch, jobs_of, nightly, quiet_guard

WORKERS = ("ann", "bob", "cid")
TYPES = {"t": (1, 30_000), "u": (2, 600_000)}
LOTS = (FREE, "~t:", "~t:u@2")
GATE_LOTS = ("~g:t", "~g:t:a", "~g:t:b", "~o:t")
# Rates of which no second token comes while the test runs: the double's clock stands still.
LIMITS = (
    NO_LIMITS,
    Limits(limit=2),
    Limits(limit=3, group_limit=1),
    Limits(group_limit=1),
    Limits(rate=Rate(3, 3_600_000)),
    Limits(limit=9, group_rate=Rate(1, 3_600_000)),
)
AGES_MS = (0, 40_000, 200_000)
LEASE_MS = 30_000
LONG_MS = 10**10
LONG_AGO_MS = 10**9  # when a schedule was last decided: the same on both sides, as the ids of its jobs are made of it
STEPS = 180
RECENT = 12  # leases among which one is chosen: older ones are mostly void
SEEDS = int(os.environ.get("DRIFT_SEEDS", "14"))  # eight seconds; 700 of them, three minutes, found nothing more


class Side:
    """One of the two: a kit, its workers' stores, and the leases that were handed out, by number of job and order."""

    def __init__(self, kit: Any) -> None:
        self.kit = kit
        self.streams = {name: kit.streams(name) for name in WORKERS}
        self.leases: list[tuple[str, Any]] = []
        self.known: dict[tuple[str, str], int] = {}

    def leased(self, who: str, fetched: Any) -> list[tuple[str, int]]:
        """Remember what was handed out, and say what it is."""
        jobs = jobs_of(fetched)
        self.leases += [(who, job) for job in jobs]
        return sorted((job.envelope.id, job.count) for job in jobs)

    def name(self, stream: int, entry: bytes | str) -> str:
        """Return the id of the job that stands there: entries have other names on the other side."""
        wanted = entry if isinstance(entry, str) else entry.decode()
        return self.kit.ids(stream).get(wanted, "gone")

    def at(self, place: str) -> str:
        stream, _, entry = place.partition("/")
        return self.name(STREAMS.index(stream), entry) if entry else place

    def state(self) -> dict[str, Any]:
        """Return all that must be the same."""
        snapshot = self.kit.snapshot()
        for name in STREAMS:
            snapshot[name] = sorted(without_own_places(fields) for fields in snapshot[name])
        snapshot["dead"] = sorted(without_own_places(fields) for fields in snapshot["dead"])
        holders = {
            (stream, self.name(stream, entry)): row for stream in range(4) for entry, row in self.kit.holders(stream).items()
        }
        strikes = {self.at(place): names for place, names in self.kit.strikes().items()}
        isolations = {name: self.at(alone) for name, alone in self.kit.isolations().items()}
        cron = {name: self.without_times(row.split()) for name, row in self.kit.cron_state().items()}
        permits = {gate: sorted(map(self.at, held)) for gate, held in self.kit.permits().items()}
        gates = {"permits": permits, "rates": sorted(self.kit.rates()), "cancels": sorted(map(self.at, self.kit.cancels()))}
        return snapshot | {"holders": holders, "strikes": strikes, "isolations": isolations, "cron": cron} | gates

    def without_times(self, row: list[str]) -> list[Any]:
        """Return what stands of a schedule; of its times whether they are of now."""
        now_ms = self.kit.now_ms()
        ages = [now_ms - int(row[at]) > CRON_AGES_MS[1] / 2 for at in (0, 3)]
        return [*ages, row[1], row[2], row[4], *[note.lstrip("0123456789") for note in row[5:]]]


@contract("t")
class Follower(msgspec.Struct, frozen=True):
    pass


@handler(Follower)
async def follower(message: Follower, job: Job) -> None:
    """Not called here; it lets jobs hand on others."""


def without_own_places(fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [item for item in fields if item[0] != "dead_from"]


class Steps:
    """Owns the choices: each step takes them from the same rng for both sides."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.n = 0

    def step(self) -> tuple[str, list[Any]]:
        """Return a verb, and what it is called with; leases are named by their place in the list of all."""
        rng = self.rng
        who, stream, any_lease = rng.choice(WORKERS), rng.choice((1, 1, 1, 1, 3)), rng.randrange(1 << 30)
        verb = rng.choice(VERBS)
        match verb:
            case "add":
                self.n += 1
                key = {"key": rng.choice("kl")} if rng.random() < 0.6 else {}
                key |= {"group": rng.choice("ab")} if rng.random() < 0.6 else {}
                key |= {"at": str(FAR_MS)} if rng.random() < 0.1 else {}
                key |= {"exp": "1"} if rng.random() < 0.1 else {}
                return verb, [stream, f"j{self.n}", rng.choice((("t", "1"), ("u", "2"), ("u", "3"))), key]
            case "take":
                return verb, [who, stream, rng.choice(LOTS)]
            case "isolate":
                return verb, [who, rng.choice((-1, -1, 0, 10**6)), rng.choice((-1, 0, 1, 1, 1, 20)), rng.random() < 0.8]
            case "reclaim":
                return verb, [who, stream, rng.choice((None, *WORKERS))]
            case "age":
                return verb, [any_lease, rng.choice(AGES_MS)]
            case "waiting_longest":
                return verb, [stream, rng.choice((*LOTS, "~suspect"))]
            case "dead_letter":
                return verb, [stream, rng.choice((*LOTS, "~suspect"))]
            case "tick" | "age cron":
                name = rng.choice(("a", "b"))
                age_ms, n, revision = rng.choice(CRON_AGES_MS), rng.choice((0, 1, 1, 3)), rng.choice((0, 0, 0, 1))
                return verb, [who, name, rng.choice(DEFINITIONS), age_ms, n, revision, rng.random() < 0.7]
            case "fetch" | "beat" | "die" | "die alone" | "forget" | "leased" | "acquit":
                return verb, [who, stream]
            case "move":
                return verb, [any_lease, rng.choice(MOVES)]
            case "serve":
                parks = [(rng.randrange(RECENT), rng.choice(GATE_LOTS)) for _ in range(rng.choice((0, 0, 2, 6)))]
                freed = [rng.randrange(RECENT) for _ in range(rng.choice((0, 0, 3)))]
                noted = [rng.randrange(RECENT)] if rng.random() < 0.1 else []
                n = rng.choice((0, 1, 3, 100))
                bounds = rng.choice(LIMITS), n, rng.choice((n, n, 1, 0)), rng.choice((1, 1e15))
                return verb, [who, parks, freed, noted, [*bounds, "inf" if rng.random() < 0.1 else ""]]
            case _:
                return verb, [any_lease]


VERBS = (
    *("add",) * 5,
    *("fetch",) * 4,
    *("move",) * 5,
    *("isolate",) * 4,
    *("reclaim",) * 4,
    *("take", "take", "take", "acquit", "age", "age", "renew", "admit", "admit", "admit", "beat", "beat", "die", "die alone"),
    *("serve",) * 6,
    *("forget", "leased", "lots", "waiting_longest", "dead_letter", "delete", "cancel", "cancel"),
    *("tick", "tick", "tick", "tick", "age cron", "age cron"),
)
# One that skips, mostly; one with other times, one with another payload, one that is paused.
DEFINITIONS = (
    *({"overlap": "skip"},) * 4,
    {"when": "0 4 * * *"},
    {"data": msgspec.Raw(b"[]")},
    {"paused": True},
)
CRON_AGES_MS = (5_000, 40_000, 100_000, 10 * 86_400_000)  # not yet to be confirmed, to be, silent, forgotten
ON = ("hand on", "hand on later")
FAR_MS = int(time.time() + 9 * 365 * 24 * 3600) * 1000  # a time that does not come, and that may be sent
MOVES = ("done", "retry", "later", "snooze", "dead", "release", "release", "park", "park shared", "old done", *ON)


async def do(side: Side, verb: str, args: list[Any]) -> Any:
    """Do a step on one side, and return what it answered, without names of its own."""
    kit = side.kit
    match verb, args:
        case "add", [stream, job_id, (type_name, version), key]:
            kit.add(stream, type=type_name, v=version, id=job_id, **key)
        case "fetch", [who, stream]:
            shares = [0, 0, 0, 0]
            shares[stream] = 100
            fetched = await side.streams[who].fetch(shares, set())
            return side.leased(who, fetched), fetched.free
        case "take", [who, stream, lot]:
            types = {name: version for name, (version, _) in TYPES.items()} if lot == "~t:" else None
            return side.leased(who, await side.streams[who].take(Ask(stream, lot, 100, types)))
        case "serve", [who, parks, *rest]:
            recent = [job for _, job in side.leases[-RECENT:]]
            chosen = [(recent[at], lot) for at, lot in parks if at < len(recent)]
            return await serve(side, who, chosen, recent, *rest)
        case "isolate", [who, calm_ms, n, is_clean]:
            found = await side.streams[who].isolate(LEASE_MS, calm_ms, 10_000, n, TYPES, is_clean, (), {"t": (True, True)})
            for_ms = found.for_ms if found.word in ("run", "wait") else found.for_ms > 0
            return found.word, for_ms, side.leased(who, found.fetched), found.names
        case "acquit", [who, _]:
            alone = [place for name, place in kit.isolations().items() if name == who and place]
            stood = [(STREAMS.index(place.partition("/")[0]), place.partition("/")[2].encode()) for place in alone]
            await side.streams[who].acquit(stood)
        case "reclaim", [who, stream, still]:
            quiet_guard(kit)
            standing = {still: int(kit.until_ms(still))} if still else {}
            found = await side.streams[who].reclaim(stream, LEASE_MS, 100, standing)
            return found.dead, found.undelivered, found.is_guarded
        case "beat", [who, _]:
            await side.streams[who].beat(WorkerRow(LEASE_MS))
        case "die" | "die alone", [who, _]:
            if verb == "die alone":
                side.leased(who, (await side.streams[who].isolate(LEASE_MS, -1, 10_000, 1, TYPES)).fetched)
            if kit.until_ms(who):
                kit.set_until({who: 1})
            held = [(stream, *item) for stream in range(4) for item in kit.holders(stream).items()]
            for stream, entry, (holder, count) in held:
                if holder == who:
                    kit.claim(entry, holder, count, AGES_MS[-1], stream)
        case "forget", [who, _]:
            return await side.streams[who].forget(who)
        case "leased", [who, _]:
            return sorted((side.name(lease.stream, lease.entry), lease.count) for lease in await side.streams[who].leased())
        case "lots", _:
            return await side.streams["ann"].lots()
        case "waiting_longest", [stream, lot]:
            found = await side.streams["ann"].waiting_longest(stream, lot, 0, 100)
            return sorted((side.name(stream, entry), *rest) for entry, *rest in found)
        case "dead_letter", [stream, lot]:
            found = await side.streams["ann"].waiting_longest(stream, lot, 0, 100)
            letters = [Letter(Lease(stream, row[0], row[1], "", 0.0), "unknown-type", "e", "", 0, "x") for row in found[:2]]
            return len(await side.streams["ann"].dead_letter(lot, letters))
        case "age cron", [_, name, _, age_ms, _, revision, is_stored]:
            if not is_stored:
                kit.set_schedule(name, f"{revision} {{}}")
            row = kit.cron_state().get(name)
            if row is None:
                return None
            (_, times, whole, _, *rest), now_ms = row.split(), kit.now_ms()
            kit.set_cron_state(name, " ".join([str(LONG_AGO_MS), times, whole, str(now_ms - age_ms), *rest]))
        case "tick", [who, name, options, _, n, revision, is_first]:
            schedule = nightly(**{"name": name, "revision": revision} | options)
            row = kit.cron_state().get(name)
            known = int(row.split()[0]) if row and is_first else side.known.get((who, name))
            # A little more than was decided long ago, much too much of what was decided just now: the two have other clocks.
            step = 1000 if known is not None and known < 2 * LONG_AGO_MS else 10**9
            ticks = [(known or 0) + step * number for number in range(1, n + 1)]
            paused = schedule.settings.paused
            due = Due([] if paused else ticks, 2 if n == 3 and not paused else 0, ticks[-1] if ticks else 0)
            _, [ticked] = await side.streams[who].tick([TickAsk(schedule, known, due)], kit.now_ms(), n == 0)
            side.known[who, name] = ticked.last_ms
            # Of two that begin in one millisecond, one side knows the time of the other.
            return "late" if ticked.word in ("moved", "early") else ticked.word, ticked.fired, ticked.skipped
        case _, [lease, *rest] if side.leases:
            return await with_lease(side, verb, *side.leases[-1 - lease % min(len(side.leases), RECENT)], *rest)
    return None


async def serve(
    side: Side, who: str, parks: list[Any], recent: list[Any], freed: list[int], noted: list[int], how: list[Any]
) -> Any:
    """Park and serve; all permits were seen at the same time, so that a full gate looks at them on both sides."""
    limits, n, n_others, seen_ms, rate = how
    for gate, held in side.kit.permits().items():
        side.kit.set_permits(gate, dict.fromkeys(held, seen_ms))
    for gate in side.kit.rates() if rate else ():
        side.kit.set_rate(gate, rate)
    places = [(job.envelope.group.decode(), f"{STREAMS[job.stream]}/{job.entry.decode()}") for job in recent]
    told = [[places[at] for at in chosen if at < len(places)] for chosen in (freed, noted)]
    lots = [(stream, lot, lot[5:] if lot.startswith("~g:t:") else "") for stream in (1, 3) for lot in GATE_LOTS]
    refused, [served] = await side.streams[who].serve(parks, [Serve("t", limits, n, n_others, lots, *told)])
    stands = [min(stand, 1) for stand in (served.stands, *served.lots)]
    return refused, side.leased(who, served.fetched), stands, served.error, served.fetched.refused


async def with_lease(side: Side, verb: str, who: str, job: Job, how: Any = None) -> Any:
    """Do a step with a lease that somebody had, whether or not it still counts."""
    kit, streams = side.kit, side.streams[who]
    match verb:
        case "renew":
            return await streams.renew([(job.stream, job.entry, job.count)])
        case "admit":
            return await streams.admit([Claim(job, job.envelope.key, job.envelope.at_ms)]) if job.envelope.key else None
        case "age":
            holder = kit.holders(job.stream).get(job.entry.decode())
            if holder is not None:
                kit.claim(job.entry, holder[0], holder[1], how, job.stream)
            return holder
        case "delete":
            if job.entry.decode() in kit.ids(job.stream):
                kit.delete(job.entry.decode(), job.stream)
            return None
        case "cancel":
            return kit.cancel(f"{STREAMS[job.stream]}/{job.entry.decode()}")
        case _:
            settled = await streams.settle(move(job, how))
            await streams.promote(100, "0")
            return settled.refused, settled.shortfall, settled.error


def move(job: Job, how: str) -> Any:
    match how:
        case "done":
            return batch(done=[job])
        case "hand on" | "hand on later":
            done = msgspec.structs.replace(job, extras=None)
            done.send(Follower(), key=job.envelope.key.decode(), at=FAR_MS / 1000 if how.endswith("later") else None)
            return batch(done=[done])
        case "old done":
            old = Job(*[getattr(job, name) for name in Job.__struct_fields__])
            old.run_id = "another server/0"
            return batch(done=[old])
        case "retry":
            return batch(Deferral(job, "retry", 0, job.envelope.id, 1))
        case "later":
            return batch(Deferral(job, "retry", LONG_MS, job.envelope.id, 1))
        case "snooze":
            return batch(Deferral(job, "snooze", 0, job.envelope.id, 0))
        case "dead":
            return batch(Letter(job, "handler", "e", "", 1, job.envelope.id))
        case "release":
            return batch(Parking(job, FREE))
        case _:
            return batch(Parking(job, "~t:" if how == "park shared" else "~t:u@2"))


@pytest.fixture
async def sides(valkey: Any) -> AsyncIterator[list[Side]]:
    kits = [ServerKit(valkey), MemoryKit()]
    yield [Side(kit) for kit in kits]
    for kit in kits:
        await kit.close()


# What a steps must have met, or it proves little; a job that is dead-lettered for three strikes is too rare for a few seeds.
MET = {
    *("isolate none", "isolate run", "isolate wait", "isolate busy", "admit mine", "admit duplicate", "admit refused"),
    *(
        "renew refused",
        "settle refused",
        "settle shortfall",
        "reclaim dead",
        "reclaim undelivered",
        "forget gone",
        "forget refused",
    ),
    *("a strike", "alone", "dead_letter moved", "take some", "leased some"),
    *("serve refused", "serve some", "serve short", "serve later", "lot 0", "lot -1", "lot -2", "lot 1"),
    *("cancel cancelled", "cancel asked", "cancel gone"),
    *("tick new", "tick kept", "tick fired", "tick late", "tick other", "tick skipped", "a tick"),
}


def met_by(verb: str, answer: Any, state: dict[str, Any]) -> set[str]:
    """Return what a step has met."""
    found: set[str] = set()
    match verb, answer:
        case "isolate", (word, *_):
            found.add(f"isolate {word}")
        case "admit", [verdict]:
            found.add(f"admit {verdict}")
        case "renew", [_]:
            found.add("renew refused")
        case "move", (refused, shortfall, _):
            found |= {name for name, number in (("settle refused", refused), ("settle shortfall", shortfall)) if number}
        case "reclaim", (dead, undelivered, _):
            found |= {name for name, number in (("reclaim dead", dead), ("reclaim undelivered", undelivered)) if number}
        case "tick", (word, fired, skipped):
            found |= {f"tick {word}", *(["tick skipped"] if skipped else []), *(["a tick"] if fired else [])}
        case "forget", is_gone:
            found.add("forget gone" if is_gone else "forget refused")
        case "cancel", str() as told:
            found.add(f"cancel {told.partition(' ')[0]}")
        case "dead_letter", moved if moved:
            found.add("dead_letter moved")
        case "take" | "leased", some if some:
            found.add(f"{verb} some")
        case "serve", (refused, given, (stands, *lots), _, _):
            words = {"refused": refused, "some": given, "short": stands < 0, "later": stands > 0}
            found |= {f"serve {word}" for word, is_met in words.items() if is_met} | {f"lot {stand}" for stand in lots}
        case _:
            pass
    found |= {"a strike"} if state["strikes"] else set()
    return found | ({"alone"} if any(state["isolations"].values()) else set())


async def test_whatever_verbs_do_to_each_other_the_double_answers_and_holds_what_a_server_does(sides):
    met: set[str] = set()
    for seed in range(SEEDS):
        steps, told = Steps(seed), []
        for side in sides:
            side.kit.clear()
            side.leases.clear()
            side.known.clear()
            await side.streams["ann"].start()
        for _ in range(STEPS):
            verb, args = steps.step()
            told.append((verb, args))
            answers = [await do(side, verb, args) for side in sides]
            assert answers[0] == answers[1], (seed, told)
            server, double = (side.state() for side in sides)
            assert server == double, (seed, told)
            met |= met_by(verb, answers[0], server)
    assert MET - met == set()
