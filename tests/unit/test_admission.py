"""Admission: which jobs may start, and what becomes of the others; over the double, also where a call in between fails."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from runtime.errors import Dead, Snooze, StoreUnavailable
from runtime.jobs import FREE, LOST, Handler, Job, Outcome, Park, Postpone
from runtime.places import Places
from runtime.store.shapes import Ask, Duplicate
from runtime.worker.admission import Admission, From, admit, sort_claimed
from tests.builders import NOW_MS, job
from tests.cruelty import Fault
from tests.unit.outcomes import REGISTRY
from tests.unit.parts import HIGH, LEASE_S, ME, Parts, make, until
from tests.unit.parts import REGISTRY as PART


def verdict(one: Job) -> Outcome | str:
    """Return `ready`, `keyed`, or the outcome a job was turned away with."""
    admitted = admit([one], REGISTRY, NOW_MS)
    if admitted.turned_away:
        assert not admitted.ready
        assert not admitted.keyed
        assert admitted.turned_away[0][0] is one
        return admitted.turned_away[0][1]
    assert len(admitted.ready) + len(admitted.keyed) == 1
    return "ready" if admitted.ready == [one] else "keyed"


def test_a_job_of_a_known_type_may_start() -> None:
    assert verdict(job()) == "ready"
    assert verdict(job(id="a", attempts=3)) == "ready"
    assert verdict(job(version=2)) == "ready"


@pytest.mark.parametrize("name", [b"", b"Greet", b"gr eet", b"greet\n", b"-greet", b".a", "grüße".encode(), b"\xff", b"a" * 65])
def test_a_type_that_is_no_name_is_unreadable(name: bytes) -> None:
    word = verdict(job(name))
    assert isinstance(word, Dead)
    assert word.code == "unreadable"


def test_an_expired_job_is_dead() -> None:
    word = verdict(job(exp_ms=NOW_MS))
    assert isinstance(word, Dead)
    assert word.code == "expired"
    assert str(NOW_MS) in str(word)


def test_a_job_that_expires_later_may_start() -> None:
    assert verdict(job(exp_ms=NOW_MS + 1)) == "ready"


def test_an_unknown_type_is_parked_in_the_lot_of_its_type_and_version() -> None:
    assert verdict(job(b"send-fax")) == Park("~t:send-fax@1")
    assert verdict(job(b"send-fax", version=7)) == Park("~t:send-fax@7")


def test_a_newer_version_is_parked_for_a_worker_that_knows_it() -> None:
    assert verdict(job(version=3)) == Park("~t:greet@3")


def test_a_job_with_a_time_to_come_is_postponed() -> None:
    assert verdict(job(at_ms=NOW_MS + 1)) == Postpone(NOW_MS + 1)


def test_a_job_whose_time_has_come_may_start() -> None:
    assert verdict(job(at_ms=NOW_MS)) == "ready"


def test_a_job_with_a_key_waits_for_the_verdict_on_its_key() -> None:
    assert verdict(job(key=b"k")) == "keyed"


def test_what_is_wrong_with_a_job_is_judged_in_one_order() -> None:
    wrong: dict[str, Any] = {"exp_ms": 1, "version": 3, "key": b"k", "at_ms": NOW_MS + 1}
    unreadable, expired = verdict(job(b"NO", **wrong)), verdict(job(b"send-fax", **wrong))
    assert isinstance(unreadable, Dead)
    assert unreadable.code == "unreadable"
    assert isinstance(expired, Dead)
    assert expired.code == "expired"
    del wrong["exp_ms"]
    assert verdict(job(b"send-fax", **wrong)) == Park("~t:send-fax@3")
    assert verdict(job(**wrong)) == Park("~t:greet@3")
    del wrong["version"]
    assert verdict(job(**wrong)) == "keyed"
    del wrong["key"]
    assert verdict(job(**wrong)) == Postpone(NOW_MS + 1)


def test_a_batch_keeps_its_order() -> None:
    jobs = [job(), job(key=b"k"), job(id="a"), job(b"send-fax"), job(key=b"l"), job(), job(at_ms=NOW_MS + 5)]
    admitted = admit(jobs, REGISTRY, NOW_MS)
    assert admitted.ready == [jobs[0], jobs[2], jobs[5]]
    assert admitted.keyed == [jobs[1], jobs[4]]
    assert [turned for turned, _ in admitted.turned_away] == [jobs[3], jobs[6]]


def test_keyed_jobs_go_where_the_store_and_their_time_send_them() -> None:
    mine, later, duplicate, refused, failed = (
        job(key=b"k"), job(key=b"k", at_ms=NOW_MS + 9), job(key=b"k"), job(key=b"k"), job(key=b"k")
    )  # fmt: skip
    admitted = admit([mine, later, duplicate, refused, failed], REGISTRY, NOW_MS)
    verdicts = ["mine", "mine", copy := Duplicate("copy", "j"), "refused", "WRONGTYPE of a mark"]
    claimed = sort_claimed(admitted.keyed, verdicts, NOW_MS)
    assert claimed.duplicates == [(duplicate, copy)]
    assert claimed.ready == [mine]
    turned = {id(one): outcome for one, outcome in claimed.turned_away}
    assert turned[id(later)] == Postpone(NOW_MS + 9)
    assert turned[id(refused)] is LOST
    word = turned[id(failed)]
    assert isinstance(word, Snooze)
    assert word.delay_s == 5
    assert len(turned) == 3


def test_each_key_needs_a_verdict() -> None:
    with pytest.raises(ValueError, match="zip"):
        sort_claimed([job(key=b"k"), job(key=b"l")], ["mine"], NOW_MS)


# --- over the double: a batch as it comes ------------------------------------------------------------------------------------

UNREACHED = (Fault.REFUSED, Fault.LOST, Fault.ERROR, Fault.FULL)
OTHER = "other"


async def receive(parts: Parts, age_s: float = 0.0, admission: Admission | None = None, **named: Any) -> None:
    """Fetch what there is, and admit it as asked for so long ago."""
    fetched = await parts.streams.fetch([0, 100, 0, 0], set())
    await (admission or Admission(parts.ctx)).receive(fetched, parts.now_s[0] - age_s, **named)


def ids(parts: Parts) -> list[str]:
    return [one.id for one in parts.ctx.inbox.jobs]


def given_back(parts: Parts) -> set[str]:
    return {move.lease.envelope.id for move in parts.ctx.ledger._batch.park if move.lot == FREE}


async def test_each_job_of_a_batch_goes_where_it_belongs_and_is_held_on_its_way() -> None:
    parts = make()
    parts.add(id="plain")
    parts.add(id="mine", key="k")
    twin = parts.add(id="twin", key="k")
    parts.add(id="unknown", type="nobody-knows")
    parts.add(id="later", at="99999999999999")
    parts.add(id="expired", exp="1")
    parts.store.add(HIGH, [b"no", b"message"])
    await receive(parts)
    assert ids(parts) == ["plain", "mine"]
    parts.check()
    assert twin not in parts.store.entries[HIGH], "dropped, as its key is a live job's"
    await parts.write()
    assert [letter["dead_reason"] for letter in parts.store.dead] == ["unreadable", "expired"]
    assert {*parts.store.records} == {"later"}
    assert len(parts.pending("~t:nobody-knows@1")) == 1
    assert len(parts.ctx.held) == 2


@pytest.mark.parametrize("fault", UNREACHED)
async def test_without_an_answer_about_keys_their_jobs_are_given_back_and_the_others_start(fault: Fault) -> None:
    parts = make(("admit", 1, fault))
    for n in range(2):
        parts.add(id=f"keyed{n}", key=f"k{n}")
    parts.add(id="plain")
    with pytest.raises(StoreUnavailable):
        await receive(parts)
    assert ids(parts) == ["plain"]
    assert given_back(parts) == {"keyed0", "keyed1"}
    parts.check()
    await parts.write()
    again = await parts.streams.take(Ask(HIGH, FREE, 9))
    await Admission(parts.ctx).receive(again, parts.now_s[0], From.LOT)
    assert ids(parts) == ["plain", "keyed0", "keyed1"], "a lost claim is theirs when they come again"
    parts.check()


async def test_a_cancel_while_keys_are_claimed_gives_their_jobs_back() -> None:
    parts = make(("admit", 1, Fault.HELD))
    parts.add(id="keyed", key="k")
    parts.add(id="plain")
    receiving = asyncio.create_task(receive(parts))
    await until(lambda: parts.plan.held, "the claim is on its way")
    receiving.cancel()
    await asyncio.wait([receiving])
    assert receiving.cancelled()
    assert (ids(parts), given_back(parts)) == (["plain"], {"keyed"})
    parts.check()


async def test_what_was_refused_while_its_key_was_claimed_starts_no_more() -> None:
    """A beat refused the lease meanwhile: its report found the job neither in the inbox nor in a lane."""
    parts = make(("admit", 1, Fault.HELD))
    parts.add(id="keyed", key="k")
    receiving = asyncio.create_task(receive(parts))
    await until(lambda: parts.plan.held, "the claim is on its way")
    parts.now_s[0] += LEASE_S / 2
    parts.confirm()
    parts.plan.let_go()
    await receiving
    assert (ids(parts), given_back(parts)) == ([], {"keyed"})
    parts.check()


async def test_a_keyed_job_that_is_another_workers_by_now_is_held_no_longer() -> None:
    parts = make()
    entry = parts.add(id="keyed", key="k")
    fetched = await parts.streams.fetch([0, 100, 0, 0], set())
    parts.store.pending[HIGH][entry].consumer = OTHER
    await Admission(parts.ctx).receive(fetched, parts.now_s[0])
    assert (len(parts.ctx.held), len(parts.ctx.ledger), ids(parts)) == (0, 0, [])


async def test_a_key_of_which_the_server_can_not_say_whose_it_is_makes_its_job_wait() -> None:
    parts = make()
    parts.store.errors[parts.add(id="keyed", key="k")] = "WRONGTYPE"
    await receive(parts)
    [move] = parts.ctx.ledger._batch.defer
    assert (move.kind, move.when_ms, move.failed) == ("snooze", 5000, 0)
    parts.check()


@pytest.mark.parametrize("fault", UNREACHED)
async def test_what_came_late_starts_only_when_it_was_renewed(fault: Fault) -> None:
    parts = make(("renew", 1, fault))
    for n in range(3):
        parts.add(id=f"j{n}")
    with pytest.raises(StoreUnavailable):
        await receive(parts, age_s=LEASE_S / 2)
    assert (ids(parts), given_back(parts)) == ([], {"j0", "j1", "j2"})
    parts.check()


async def test_of_what_came_late_what_is_another_workers_by_now_is_let_go_of() -> None:
    parts = make()
    _, taken, _ = (parts.add(id=f"j{n}") for n in range(3))
    fetched = await parts.streams.fetch([0, 100, 0, 0], set())
    parts.store.pending[HIGH][taken].consumer = OTHER
    parts.store.advance(9000)
    await Admission(parts.ctx).receive(fetched, parts.now_s[0] - LEASE_S / 2)
    assert ids(parts) == ["j0", "j2"]
    parts.check()
    assert {row.since_ms for row in parts.store.pending[HIGH].values() if row.consumer == ME} == {parts.store.now_ms}


@pytest.mark.parametrize("how", ["cancelled", "late again"])
async def test_what_came_late_is_given_back_where_its_renewal_is_not_confirmed_in_time(how: str) -> None:
    parts = make(("renew", 1, Fault.HELD))
    parts.add(id="late")
    receiving = asyncio.create_task(receive(parts, age_s=LEASE_S / 2))
    await until(lambda: parts.plan.held, "the renewal is on its way")
    if how == "cancelled":
        receiving.cancel()
    else:
        parts.now_s[0] += LEASE_S / 2
        parts.confirm()
        parts.plan.let_go()
    await asyncio.wait([receiving])
    assert (ids(parts), given_back(parts)) == ([], {"late"})
    parts.check()


async def test_a_silent_worker_starts_nothing() -> None:
    parts = make()
    parts.add(id="plain")
    parts.add(id="keyed", key="k")
    parts.silence()
    await receive(parts)
    assert (ids(parts), given_back(parts)) == ([], {"plain", "keyed"})
    parts.check()


async def test_what_is_held_already_is_adopted_and_does_not_run_twice() -> None:
    """Given back, and taken again before that was confirmed: its token is the new one."""
    parts = make()
    parts.add(id="twice")
    await receive(parts)
    [one] = parts.ctx.inbox.jobs
    before_s = one.taken_s
    parts.store.lose_groups()
    parts.store.run_id = "run/2"
    await receive(parts)
    assert [*parts.ctx.inbox.jobs] == [one]
    assert (one.run_id, one.taken_s > before_s) == ("run/2", True)
    parts.check()


async def test_what_is_too_large_dies_without_its_body() -> None:
    parts = make()
    parts.streams.max_entry_bytes = 100
    parts.park(id="large", data="x" * 200)
    taken = await parts.streams.take(Ask(HIGH, FREE, 9))
    await Admission(parts.ctx).receive(taken, parts.now_s[0], From.LOT)
    parts.check()
    await parts.write()
    assert [letter["dead_reason"] for letter in parts.store.dead] == ["too-large"]


# --- threads -----------------------------------------------------------------------------------------------------------------


def threaded(total: int) -> tuple[Parts, Places]:
    """Return parts whose one type needs a thread, of which there are so many."""
    old = PART[b"part"]
    in_thread = Handler(old.contract, old.run, old.decode, old.function, old.timeout_s, old.retry, "thread")
    places = Places("thread", total)
    return make(registry={b"part": in_thread}, places={"thread": places}), places


async def test_what_finds_no_thread_is_parked_and_its_stream_rests_for_a_moment() -> None:
    parts, places = threaded(2)
    admission = Admission(parts.ctx)
    for n in range(5):
        parts.add(id=f"j{n}")
    await receive(parts, admission=admission)
    assert ids(parts) == ["j0", "j1"]
    assert (admission.resting(), admission.has_resting) == ({HIGH}, True)
    assert admission.coming(places) == 2
    parts.check()
    await parts.write()
    assert len(parts.pending("~t:part@1")) == 3
    end_s = time.monotonic() + 10
    while admission.resting():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.001)


async def test_what_was_asked_for_one_by_one_is_not_parked_again() -> None:
    parts, _ = threaded(0)
    for n in range(2):
        parts.add(id=f"j{n}")
    await receive(parts, came=From.LOT)
    assert ids(parts) == ["j0", "j1"]


async def test_what_was_on_its_way_when_its_priority_was_paused_is_given_back() -> None:
    parts = make()
    parts.add(id="paused")
    parts.add(id="keyed", key="k")
    parts.ctx.gates.paused = frozenset({HIGH})
    await receive(parts)
    assert (ids(parts), given_back(parts)) == ([], {"paused", "keyed"})
    parts.check()
