"""Maintenance over the double: delayed jobs, what the dead left, lots and counters, whichever call of a round fails."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from runtime import Death, on_dead
from runtime.errors import StoreUnavailable
from runtime.jobs import DONE, FREE, SUSPECT
from runtime.store.base import End, WorkerRow
from runtime.worker.heartbeat import Beat
from runtime.worker.hooks import Hooks
from runtime.worker.log import ThrottledLog
from runtime.worker.maintenance import MOST_UNKNOWN_TOLD, Maintenance, clock_in
from tests.builders import job
from tests.cruelty import Fault, Plan
from tests.memory import Pending
from tests.unit.parts import HIGH, ME, Parts, end, make, until

pytestmark = pytest.mark.usefixtures("_hurry")

SHORT_S = 0.001  # a lease, and what nobody knows is dead at once
LONG_MS = 10**7
DEAD = "dead-worker"


def left_by_others(*faults: tuple[str, int, Fault], hooks: Hooks | None = None) -> Parts:
    """Return parts for a sweep that has everything to do."""
    parts = make(*faults, hooks=hooks, lease_s=SHORT_S, unknown_after_s=0.0)
    store = parts.store
    held = parts.add(id="held")
    store.read(HIGH, DEAD, 1)
    parts.park("~t:nobody-knows@1", id="unknown", type="nobody-knows")
    parts.park("~of-a-later-version", id="strange")
    parts.park(FREE, id="free")
    store.workers |= {"~last": store.now_ms, "~since": 1, DEAD: 1}
    store.rows[DEAD] = "1 {}"
    store.workers[ME] = store.now_ms + LONG_MS
    store.rows[ME] = '1 {"types":{"part":1}}'
    for row in store.pending[HIGH].values():
        row.since_ms -= LONG_MS
    assert store.pending[HIGH][held].consumer == DEAD
    return parts


def holders(parts: Parts) -> dict[str, str]:
    """Return who has which job."""
    return {
        dict(zip(fields[::2], fields[1::2], strict=True))[b"id"].decode(): parts.store.pending[HIGH][entry].consumer
        for entry, fields in parts.store.entries[HIGH].items()
    }


def check_all_is_done(parts: Parts) -> None:
    assert holders(parts) == {"held": SUSPECT, "strange": "~of-a-later-version", "free": FREE}
    assert [(letter["id"], letter["dead_reason"]) for letter in parts.store.dead] == [("unknown", "unknown-type")]
    assert DEAD not in parts.store.workers
    assert DEAD not in parts.store.rows
    assert parts.ctx.parked.can_run("~of-a-later-version")
    assert parts.ctx.parked.has_suspects


def check_each_is_in_one_place(parts: Parts) -> None:
    assert parts.places() == dict.fromkeys((b"held", b"unknown", b"strange", b"free"), 1)


async def sweep(maintenance: Maintenance, rounds: int) -> int:
    """Sweep so often, and return how many rounds failed."""
    failed = 0
    for _ in range(rounds):
        try:
            await maintenance.sweep_once()
        except StoreUnavailable:
            failed += 1
        await asyncio.sleep(3 * SHORT_S)  # what stands still for two leases is dead
    return failed


# --- the sweep ---------------------------------------------------------------------------------------------------------------

CALLS = ("ends", "lots", "waiting_longest", "workers", "reclaim", "dead_letter", "forget")


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.ERROR, Fault.FULL, Fault.RESTARTED])
async def test_whichever_call_of_a_sweep_fails_the_next_ones_do_what_is_left(fault):
    async def one(verb: str, nth: int) -> None:
        parts = left_by_others((verb, nth, fault))
        failed = await sweep(Maintenance(parts.ctx), 5)
        check_all_is_done(parts)
        check_each_is_in_one_place(parts)
        assert failed == (0 if fault is Fault.RESTARTED else parts.plan.hits), (verb, nth)

    await asyncio.gather(*[one(verb, nth) for verb in CALLS for nth in (1, 2)])


async def test_whoever_wants_to_hear_of_deaths_hears_of_a_type_that_nobody_knows_with_its_own_id() -> None:
    told: list[tuple[str, str, str]] = []

    @on_dead
    async def hear(death: Death) -> None:
        told.append((death.job_id, death.type, death.reason))

    hooks = Hooks([hear], ThrottledLog())
    await sweep(Maintenance(left_by_others(hooks=hooks).ctx), 5)
    await hooks.end(15.0)
    assert told == [("unknown", "nobody-knows", "unknown-type")]


@pytest.mark.parametrize("how", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER, Fault.HELD])
async def test_a_sweep_that_ends_in_the_middle_leaves_each_job_in_one_place_for_the_next_worker(how):
    """By the death of its process, or by a cancel while an answer is on its way."""

    async def one(verb: str) -> None:
        parts = left_by_others((verb, 1, how))
        ending = asyncio.create_task(sweep(Maintenance(parts.ctx), 3))
        await until(lambda: parts.plan.is_dead or parts.plan.held or ending.done(), verb)
        assert not ending.done(), verb
        await end(ending)
        check_each_is_in_one_place(parts)
        parts.streams.plan = Plan()
        assert await sweep(Maintenance(parts.ctx), 3) == 0, verb
        check_all_is_done(parts)
        check_each_is_in_one_place(parts)

    await asyncio.gather(*map(one, CALLS))


@pytest.mark.parametrize("why", ["silent", "another server", "a gap"])
async def test_a_worker_that_may_have_slept_takes_nothing_from_others(why):
    """The others' beats may have waited as long as ours: before one lease has passed, none counts as dead."""
    parts = left_by_others()
    parts.confirm()
    if why == "silent":
        parts.silence()
    else:
        parts.now_s[0] += SHORT_S / 10 if why == "another server" else 0.6 * SHORT_S
        parts.ctx.leases.confirm(Beat(parts.now_s[0], "run/2" if why == "another server" else parts.store.run_id, []))
    maintenance = Maintenance(parts.ctx)
    await sweep(maintenance, 3)
    assert parts.plan.counts["reclaim"] == parts.plan.counts["forget"] == parts.plan.counts["dead_letter"] == 0
    assert holders(parts)["held"] == DEAD
    parts.now_s[0] += 2 * SHORT_S
    parts.ctx.leases._confirmed_s = parts.now_s[0]
    await sweep(maintenance, 3)
    check_all_is_done(parts)


async def test_while_the_guard_of_the_store_holds_nothing_else_is_done_either():
    parts = left_by_others()
    parts.store.workers["~since"] = parts.store.now_ms
    await sweep(Maintenance(parts.ctx), 3)
    assert holders(parts)["held"] == DEAD
    assert parts.store.dead == []
    assert DEAD in parts.store.workers


async def test_much_that_a_dead_worker_left_is_taken_in_one_sweep():
    parts = left_by_others()
    for _ in range(250):
        entry = parts.add()
        parts.store.read(HIGH, DEAD, 1)
        parts.store.pending[HIGH][entry] = Pending(DEAD, 1, 0)
    await Maintenance(parts.ctx).sweep_once()
    assert parts.plan.counts["reclaim"] == 3
    assert parts.pending(DEAD) == set()


async def test_a_worker_does_not_count_itself_among_the_dead():
    """Its own row stands still for as long as its beats are refused."""
    parts = left_by_others()
    parts.store.workers[ME] = 1
    await sweep(Maintenance(parts.ctx), 4)
    assert ME in parts.store.workers
    assert DEAD not in parts.store.workers


async def test_what_a_live_worker_knows_is_not_dead_lettered():
    parts = left_by_others()
    parts.store.workers["knows"] = parts.store.now_ms + LONG_MS
    parts.store.rows["knows"] = '1 {"types":{"nobody-knows":1}}'
    maintenance = Maintenance(parts.ctx)
    await maintenance.sweep_once()
    assert parts.store.dead == []


async def test_of_what_no_worker_knows_a_line_a_minute_says_how_many_wait_and_until_when(caplog: pytest.LogCaptureFixture):
    parts = make(lease_s=SHORT_S, unknown_after_s=900.0)
    for stream in (HIGH, HIGH, 2):
        parts.park("~t:nobody-knows@1", stream=stream, type="nobody-knows")
    parts.park("~t:part@7", type="part")
    parts.park("~t:part@1", type="part")
    maintenance = Maintenance(parts.ctx)
    maintenance._began_s -= 3600.0
    told = lambda: [record.getMessage() for record in caplog.records if "no worker that lives" in record.getMessage()]  # noqa: E731
    await sweep(maintenance, 3)
    first, second = told()
    soonest, latest = (clock_in(900.0 - ago_s) for ago_s in (1.0, 0.0))
    assert first.partition("; hint")[0] in [
        f"nobody-knows: 3 jobs wait, and no worker that lives knows it; dead letters from {at} on unless one does"
        for at in (soonest, latest)
    ]
    assert second.startswith("part in version 7: 1 job waits,")
    maintenance._strange = {lot: (since_s - 60.0, tell_s - 60.0) for lot, (since_s, tell_s) in maintenance._strange.items()}
    parts.store.workers["knows"] = parts.store.now_ms + LONG_MS
    parts.store.rows["knows"] = '1 {"types":{"nobody-knows":1}}'
    await maintenance.sweep_once()
    assert [line.partition(":")[0] for line in told()[2:]] == ["part in version 7"], "again after a minute; the other is known"


async def test_names_that_a_sender_invents_do_not_fill_the_log(caplog: pytest.LogCaptureFixture):
    parts = make(unknown_after_s=900.0)
    for n in range(25):
        parts.park(f"~t:odd-{n}@1", type=f"odd-{n}")
    maintenance = Maintenance(parts.ctx)
    await sweep(maintenance, 1)
    assert len(caplog.records) == MOST_UNKNOWN_TOLD
    await sweep(maintenance, 3)
    assert len({record.getMessage().partition(":")[0] for record in caplog.records}) == len(caplog.records) == 25


async def test_the_ends_of_the_streams_are_looked_at_now_and_then_and_a_closed_one_is_told():
    parts = left_by_others()
    parts.store.ends = [End(0, False), End(LONG_MS, False), *[End(0, False)] * 3]
    maintenance = Maintenance(parts.ctx)
    await sweep(maintenance, 3)
    assert parts.plan.counts["ends"] == 1
    [trouble] = maintenance.troubles
    assert trouble.startswith("the stream high is closed")
    assert maintenance.ahead_s["high"] == LONG_MS / 1000


async def test_the_sweeps_go_on_after_errors():
    parts = left_by_others(("lots", 1, Fault.REFUSED), ("workers", 1, Fault.ERROR), ("reclaim", 1, Fault.LOST))
    running = asyncio.create_task(Maintenance(parts.ctx).sweep())
    await until(lambda: DEAD not in parts.store.workers, "all is swept")
    check_all_is_done(parts)
    await end(running)


# --- delayed jobs ------------------------------------------------------------------------------------------------------------


async def delayed(parts: Parts, wait_ms: int, *names: str) -> None:
    """Delay jobs by a time."""
    for name in names:
        parts.store.records[name] = [b"stream", b"high", b"id", name.encode(), b"type", b"part", b"data", b"{}"]
        parts.store.due[name] = parts.store.now_ms + wait_ms


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.LOST, Fault.ERROR, Fault.FULL, Fault.RESTARTED])
async def test_what_is_due_moves_once_whatever_the_first_answers_are(fault):
    parts = make(*[("promote", nth, fault) for nth in (1, 2, 3)])
    await delayed(parts, 0, "a", "b", "c")
    running = asyncio.create_task(Maintenance(parts.ctx).promote())
    await until(lambda: not parts.store.due, "all are moved")
    await until(lambda: parts.plan.counts["promote"] > 3, "it goes on")
    assert parts.places() == {b"a": 1, b"b": 1, b"c": 1}
    assert len(parts.store.unread(HIGH)) == 3
    await end(running)


@pytest.mark.parametrize("fault", [Fault.KILLED_BEFORE, Fault.KILLED_AFTER, Fault.HELD])
async def test_a_death_or_a_cancel_leaves_each_delayed_job_in_one_place(fault):
    parts = make(("promote", 1, fault))
    await delayed(parts, 0, "a", "b", "c")
    running = asyncio.create_task(Maintenance(parts.ctx).promote())
    await until(lambda: parts.plan.is_dead or parts.plan.held, "it is there")
    await end(running)
    assert parts.places() == {b"a": 1, b"b": 1, b"c": 1}
    assert len(parts.store.unread(HIGH)) == (0 if fault is Fault.KILLED_BEFORE else 3)


async def test_more_than_a_run_moves_is_moved_at_once(monkeypatch):
    monkeypatch.setattr("runtime.worker.maintenance.PROMOTE_IDS", 2)
    monkeypatch.setattr("runtime.worker.maintenance.STUCK_S", 60.0)
    parts = make()
    await delayed(parts, 0, *[f"j{n}" for n in range(9)])
    running = asyncio.create_task(Maintenance(parts.ctx).promote())
    await until(lambda: not parts.store.due, "all are moved")
    assert parts.plan.counts["promote"] >= 5
    await end(running)


async def test_while_memory_is_full_what_is_due_stays_and_is_not_asked_for_in_haste(monkeypatch):
    monkeypatch.setattr("runtime.worker.maintenance.STUCK_S", 0.01)
    parts = make()
    parts.store.is_full = True
    await delayed(parts, 0, "a")
    running = asyncio.create_task(Maintenance(parts.ctx).promote())
    await until(lambda: parts.plan.counts["promote"] >= 2, "it was tried")
    assert parts.places() == {b"a": 1}
    assert parts.store.due
    parts.store.is_full = False
    await until(lambda: not parts.store.due, "it is moved")
    await end(running)


async def test_who_has_just_delayed_a_job_for_a_moment_is_not_late_for_it(monkeypatch):
    monkeypatch.setattr("runtime.worker.maintenance.PROMOTE_S", 60.0)
    parts = make()
    maintenance = Maintenance(parts.ctx)
    running = asyncio.create_task(maintenance.promote())
    await until(lambda: parts.plan.counts["promote"] == 1, "nothing is delayed")
    await delayed(parts, 5, "a")
    maintenance.due_within(70.0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert parts.plan.counts["promote"] == 1, "for what is far away nothing is asked"
    maintenance.due_within(0.005)
    await until(lambda: parts.plan.counts["promote"] > 1, "it looks again")
    parts.store.advance(10)
    await until(lambda: not parts.store.due, "it is moved")
    await end(running)


# --- counters ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [None, Fault.REFUSED, Fault.LOST, Fault.ERROR])
async def test_counters_are_added_once_or_lost_and_never_added_twice(fault):
    parts = make(*([("count", 1, fault)] if fault else []))
    maintenance = Maintenance(parts.ctx)
    parts.ctx.stats.ran(job("part"), DONE, 0.001)
    await maintenance.count_once()
    await maintenance.count_once()
    is_lost = fault in (Fault.REFUSED, Fault.ERROR)
    assert parts.store.stats["part high done"] == (0 if is_lost else 1)
    parts.ctx.stats.ran(job("part"), DONE, 0.001)
    await maintenance.count_once()
    assert parts.store.stats["part high done"] == (1 if is_lost else 2)


async def test_how_many_wait_is_written_once_after_each_sweep():
    parts = make()
    maintenance = Maintenance(parts.ctx)
    parts.add()
    await maintenance.sweep_once()
    await maintenance.count_once()
    assert parts.store.stats[" high depth"] == 1
    parts.store.stats.clear()
    await maintenance.count_once()
    assert not parts.store.stats, "what was seen in one minute is not written into the next"


async def test_a_busy_worker_says_with_its_counters_what_it_is_and_an_idle_one_does_not():
    parts = make()
    await parts.streams.beat(WorkerRow(1000))
    maintenance, rows = Maintenance(parts.ctx), itertools.count(1)
    maintenance.row = lambda: WorkerRow(1000, pid=next(rows))
    parts_pid = lambda: WorkerRow.parse(parts.store.rows[ME]).pid  # noqa: E731
    await maintenance.count_once()
    assert parts_pid() == 0
    one = job("part")
    parts.ctx.held.add(one.stream, [one])
    await maintenance.count_once()
    await maintenance.count_once()
    assert parts_pid() == 1, "a second time only after a while"
    maintenance._next_row_s = 0.0
    parts.ctx.held.remove([one])
    await maintenance.count_once()
    assert parts_pid() == 2, "that it is idle now"
    maintenance._next_row_s = 0.0
    await maintenance.count_once()
    assert parts_pid() == 2
    parts.ctx.held.add(one.stream, [one])
    await maintenance.count_once(is_last=True)
    assert parts_pid() == 2, "one that stops has said its last"


@pytest.mark.parametrize("name", ["promote", "sweep", "count"])
async def test_each_loop_ends_when_it_is_cancelled(name: str):
    maintenance: Any = Maintenance(left_by_others().ctx)
    running = asyncio.create_task(getattr(maintenance, name)())
    began_s = time.monotonic()
    await until(lambda: time.monotonic() - began_s > 0.005, "it runs")
    await end(running)
    assert running.cancelled()
