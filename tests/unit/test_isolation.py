"""The isolation of suspects over the double: who rests and for how long, and what a death would say after each lost answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from runtime.errors import StoreError, StoreUnavailable
from runtime.jobs import DONE, FREE, SUSPECT, Handler
from runtime.places import Places
from runtime.worker.admission import Admission
from runtime.worker.isolation import Isolation
from tests.cruelty import Fault
from tests.unit.parts import HIGH, LEASE_S, ME, REGISTRY, Parts, end, make, until

UNREACHED = (Fault.REFUSED, Fault.LOST)
INF = float("inf")


class Bench:
    """An isolation of a worker that runs nothing by itself; `calm_s` and `is_clean` are what runs beside."""

    def __init__(self, *faults: tuple[str, int, Fault], parts: Parts | None = None) -> None:
        self.parts = parts or make(*faults, suspect_s=10.0)
        self.calm_s, self.is_clean = INF, True
        self.isolation = Isolation(self.parts.ctx, lambda: (self.calm_s, self.is_clean), Admission(self.parts.ctx))
        self.parts.ctx.parked.has_suspects = True

    async def rests(self) -> bool:
        return await self.isolation.is_resting()

    @property
    def named(self) -> str | None:
        """What the store names as running alone here; '' for several, None without a place."""
        return self.parts.store.isolations.get(ME, (0, None))[1]

    @property
    def calls(self) -> dict[str, int]:
        return dict(self.parts.plan.counts)

    async def finish(self) -> None:
        """Run and write all that is here."""
        for job in self.parts.ctx.inbox.clear():
            self.parts.ctx.ledger.add(job, DONE)
        await self.parts.write()


# --- the way of an isolation -------------------------------------------------------------------------------------------------


async def test_nobody_is_asked_where_no_suspect_was_seen():
    bench = Bench()
    bench.parts.ctx.parked.has_suspects = False
    assert not await bench.rests()
    assert bench.calls == {}
    assert bench.isolation.next_ask_s == INF


async def test_ordinary_work_rests_while_a_suspect_runs_and_has_its_turn_when_the_store_knows_of_the_end():
    bench = Bench()
    entry = bench.parts.suspect(2, id="s")
    assert await bench.rests()
    assert [job.id for job in bench.parts.ctx.inbox.jobs] == ["s"]
    assert bench.named == f"high/{entry.decode()}"
    bench.parts.check()
    for _ in range(3):
        assert await bench.rests(), "it runs"
    await bench.finish()
    assert bench.named == f"high/{entry.decode()}", "a death would still be evidence, and nothing else starts"
    assert not await bench.rests()
    assert bench.named is None
    assert bench.calls == {"isolate": 1, "acquit": 1}


async def test_what_outlives_its_isolation_runs_on_and_has_no_strikes_any_more():
    bench = Bench()
    entry = bench.parts.suspect(2, id="s")
    at = f"high/{entry.decode()}"
    bench.parts.store.strikes[at] = "died"
    assert await bench.rests()
    assert bench.parts.store.strikes == {at: "died"}
    bench.isolation._until_s = 0.0
    assert not await bench.rests()
    assert (bench.parts.store.strikes, bench.named) == ({}, None)
    assert entry in bench.parts.known(), "it is held, and runs on"


async def test_of_several_that_ran_together_the_end_says_nothing_of_any():
    bench = Bench()
    entries = [bench.parts.suspect(1, id=f"s{n}") for n in range(2)]
    bench.parts.store.strikes[f"high/{entries[0].decode()}"] = "died"
    assert await bench.rests()
    assert len(bench.parts.ctx.inbox) == 2
    assert bench.parts.ctx.stats.isolated == 2
    assert bench.named == ""
    bench.isolation._until_s = 0.0
    assert not await bench.rests()
    assert bench.parts.store.strikes == {f"high/{entries[0].decode()}": "died"}


async def test_until_what_runs_beside_is_calm_the_place_is_kept_and_then_given_up_for_a_lease():
    bench = Bench()
    bench.parts.suspect(2, id="s")
    bench.calm_s = 1.0
    assert await bench.rests(), "nothing young is to come beside it"
    assert await bench.rests()
    assert bench.calls == {"isolate": 1}, "nothing is asked meanwhile"
    assert bench.isolation.next_ask_s == 0.0
    bench.isolation._patient_until_s = 1e-9
    assert not await bench.rests()
    assert bench.named is None
    assert 0 < bench.isolation.next_ask_s <= LEASE_S
    bench.parts.check()


async def test_where_all_is_paused_nothing_is_asked_for_and_the_place_is_left():
    bench = Bench()
    bench.parts.suspect(1, id="s")
    bench.calm_s = 0.0
    assert await bench.rests()
    assert bench.named == "waiting", "the place is kept until it is calm"
    bench.isolation.paused = frozenset(range(4))
    assert not await bench.rests()
    assert bench.named is None
    bench.calm_s = INF
    assert not await bench.rests()
    assert bench.calls == {"isolate": 2}
    bench.isolation.paused = frozenset()
    assert await bench.rests(), "it is asked at once"
    assert [job.id for job in bench.parts.ctx.inbox.jobs] == ["s"]


async def test_an_isolation_comes_to_its_end_though_all_is_paused_meanwhile():
    bench = Bench()
    bench.parts.suspect(2)
    assert await bench.rests()
    bench.isolation.paused = frozenset(range(4))
    assert await bench.rests(), "it runs"
    await bench.finish()
    assert not await bench.rests()
    assert bench.named is None


async def test_a_suspect_of_a_paused_priority_is_not_handed_out():
    bench = Bench()
    bench.parts.suspect(1)
    bench.isolation.paused = frozenset({HIGH})
    assert not await bench.rests()
    assert not bench.parts.ctx.inbox.jobs


async def test_once_it_is_calm_the_suspect_runs():
    bench = Bench()
    bench.parts.suspect(2, id="s")
    bench.calm_s = 1.0
    assert await bench.rests()
    bench.calm_s = 100.0
    assert await bench.rests()
    assert len(bench.parts.ctx.inbox) == 1


async def test_a_place_that_another_worker_has_is_asked_for_again_and_ordinary_work_goes_on():
    bench = Bench()
    bench.parts.suspect(2, id="s")
    bench.parts.store.isolations["other"] = (bench.parts.store.now_ms + 5000, "")
    bench.parts.store.workers["other"] = bench.parts.store.now_ms + 60_000
    assert not await bench.rests()
    assert not await bench.rests()
    assert bench.calls == {"isolate": 1}
    assert 0 < bench.isolation.next_ask_s <= 1.5 * 5


async def test_a_type_that_would_find_no_thread_is_not_asked_for():
    old = REGISTRY[b"part"]
    in_thread: Handler[Any] = Handler(old.contract, old.run, old.decode, old.function, old.timeout_s, old.retry, "thread")
    bench = Bench(parts=make(registry={b"part": in_thread}, places={"thread": Places("thread", 0)}))
    bench.parts.suspect(2, id="s")
    assert not await bench.rests()
    assert len(bench.parts.pending(SUSPECT)) == 1
    assert not bench.parts.ctx.parked.has_suspects


# --- lost answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", UNREACHED)
async def test_after_an_answer_that_did_not_come_nothing_starts_before_the_store_names_nobody(fault):
    bench = Bench(("isolate", 1, fault), ("acquit", 1, Fault.REFUSED), ("acquit", 2, Fault.LOST))
    entry = bench.parts.suspect(2, id="s")
    with pytest.raises(StoreUnavailable):
        await bench.rests()
    assert bench.named == (f"high/{entry.decode()}" if fault is Fault.LOST else None)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await bench.rests()
    rests = await bench.rests()
    assert bench.calls["acquit"] == 3
    assert bench.parts.store.strikes == {}
    if fault is Fault.LOST:
        assert (rests, bench.named) == (False, None)
        bench.parts.check(is_lost=True)
        assert bench.parts.pending() == {entry}, "the fetcher asks for what is pending with us"
    else:
        assert rests, "it is handed out now"
        bench.parts.check()


async def test_a_server_that_answers_with_an_error_has_named_nobody_and_ordinary_work_goes_on():
    bench = Bench(("isolate", 0, Fault.ERROR))
    bench.parts.suspect(2, id="s")
    with pytest.raises(StoreError):
        await bench.rests()
    assert not await bench.rests()
    assert bench.calls == {"isolate": 1}
    assert 0 < bench.isolation.next_ask_s <= LEASE_S / 4


@pytest.mark.parametrize("fault", [*UNREACHED, Fault.ERROR])
async def test_the_end_of_an_isolation_is_told_until_it_is_confirmed(fault):
    bench = Bench(*[("acquit", nth, fault) for nth in (1, 2)])
    bench.parts.suspect(2, id="s")
    assert await bench.rests()
    await bench.finish()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await bench.rests()
    assert not await bench.rests()
    assert (bench.calls["acquit"], bench.named) == (3, None)


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER])
@pytest.mark.parametrize("verb", ["isolate", "acquit"])
async def test_a_death_is_evidence_from_the_step_that_hands_out_to_the_one_that_confirms_the_end(verb, fault):
    bench = Bench((verb, 1, fault))
    entry = bench.parts.suspect(2, id="s")
    store = bench.parts.store
    if verb == "acquit":
        assert await bench.rests()
        bench.isolation._until_s = 0.0
    dying = asyncio.create_task(bench.rests())
    await until(lambda: bench.parts.plan.is_dead, "it dies")
    await end(dying)
    store.workers |= {"~last": store.now_ms, "~since": 1, ME: 1}
    for row in store.pending[HIGH].values():
        row.since_ms -= 10**7
    rescuer = make().streams
    rescuer.store, rescuer.consumer = store, "rescuer"
    await rescuer.reclaim(HIGH, 30_000, 100, {})
    is_evidence = (verb, fault) in {("isolate", Fault.KILLED_AFTER), ("acquit", Fault.KILLED_BEFORE)}
    assert store.strikes == ({f"high/{entry.decode()}": ME} if is_evidence else {})
    assert bench.parts.pending(SUSPECT) == {entry}


@pytest.mark.parametrize("fault", [*UNREACHED, Fault.ERROR])
async def test_a_suspect_that_did_not_start_is_given_back_and_keeps_its_strikes(fault):
    """Its key could not be claimed. That it is still here speaks for nobody."""
    bench = Bench(("admit", 1, fault))
    entry = bench.parts.suspect(5, id="s", key="k")
    at = f"high/{entry.decode()}"
    bench.parts.store.strikes[at] = "one two"
    with pytest.raises(StoreUnavailable):
        await bench.rests()
    bench.parts.check()
    assert len(bench.parts.ctx.inbox) == 0
    bench.parts.ctx.parked.has_suspects = False
    assert not await bench.rests()
    assert bench.parts.store.strikes == {at: "one two"}
    assert bench.named is None
    await bench.parts.write()
    assert bench.parts.pending(SUSPECT) == {entry}


async def test_a_cancel_while_a_suspect_is_handed_out_leaves_a_place_that_the_end_gives_up():
    bench = Bench(("isolate", 1, Fault.HELD))
    entry = bench.parts.suspect(2, id="s")
    asking = asyncio.create_task(bench.rests())
    await until(lambda: bench.parts.plan.held, "it is handed out")
    await end(asking)
    assert bench.named == f"high/{entry.decode()}"
    await bench.isolation.close()
    assert bench.named is None, "a death is no evidence against what never ran"
    bench.parts.check(is_lost=True)


@pytest.mark.parametrize("fault", [*UNREACHED, Fault.ERROR])
async def test_an_end_that_can_not_give_the_place_up_is_no_error(fault):
    bench = Bench(("isolate", 2, fault))
    bench.parts.suspect(2, id="s")
    bench.calm_s = 1.0
    assert await bench.rests()
    await bench.isolation.close()
    assert bench.named == (None if fault is Fault.LOST else "waiting")


# --- the guilty --------------------------------------------------------------------------------------------------------------


def guilty(bench: Bench) -> bytes:
    """Add a job that three workers have died of."""
    entry = bench.parts.suspect(5, id="g")
    bench.parts.store.strikes[f"high/{entry.decode()}"] = "a b c"
    return entry


async def test_what_killed_three_workers_while_it_ran_alone_is_dead_without_another_run():
    bench = Bench()
    guilty(bench)
    assert await bench.rests()
    [letter] = bench.parts.store.dead
    assert (letter["dead_reason"], letter["id"]) == ("poison", "g")
    assert "killed its process 3 times while it ran alone: a, b, c" in letter["dead_error"]
    assert (bench.parts.pending(), bench.parts.store.strikes, bench.named) == (set(), {}, None)
    assert len(bench.parts.ctx.inbox) == 0


@pytest.mark.parametrize("fault", UNREACHED)
@pytest.mark.parametrize("verb", ["isolate", "dead_letter"])
async def test_whatever_answer_is_lost_a_guilty_job_never_runs_and_dies_once(verb, fault):
    bench = Bench((verb, 1, fault))
    guilty(bench)
    with pytest.raises(StoreUnavailable):
        await bench.rests()
    assert len(bench.parts.ctx.inbox) == 0
    assert bench.parts.places() == {b"g": 1}
    for lease in await bench.parts.streams.leased():  # as the fetcher does after an answer that was lost
        bench.parts.ctx.held.add(HIGH, [lease])
        bench.parts.ctx.ledger.release([lease])
    await bench.parts.write()
    bench.parts.ctx.parked.has_suspects = True
    for _ in range(3):
        await bench.rests()
    assert [letter["dead_reason"] for letter in bench.parts.store.dead] == ["poison"]
    assert bench.parts.places() == {b"g": 1}
    assert bench.parts.pending(FREE) | bench.parts.pending(SUSPECT) == set()
