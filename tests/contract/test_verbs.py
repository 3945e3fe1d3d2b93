"""The suite of a worker's verbs: every verb's guarantee, every refusal, each verb again after a lost reply.

It runs on each server, and on the double with which a worker's parts are tested (tests/double.py): it does what servers do.

What only a server can be asked stands in test_streams.py:

| what | why not here |
|---|---|
| memory full, scripts forgotten, groups destroyed | the double has no memory limit, no scripts, and groups always |
| keys of another type, records and rows of strangers | the double keeps values of its own, which no stranger can write |
| writes held back while a worker is woken | a fault of servers |
| binary payloads, thousands of fields, packed or shortened letters | they concern what is written, and how the scripts read it |
| entry ids that recur, the life of a mark, consumers of empty lots | the double has none of them |
| many pages of pending entries | the double looks at all at once |
"""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import msgspec
import pytest

from runtime.ended import Ended
from runtime.errors import StoreUnavailable
from runtime.jobs import Claim, Deferral, Lease, Letter, Parking
from runtime.said import Attempt
from runtime.schedules import Definition, Due
from runtime.store.base import Step, WorkerRow
from runtime.store.shapes import Ask, TickAsk, Ticked
from runtime.streams import Streams
from tests.contract.kit import (
    HIGH,
    ME,
    OTHER,
    VERBS,
    MemoryKit,
    batch,
    jobs_of,
    leases,
    nightly,
    pending,
    quiet_guard,
    row_of,
)
from tests.double import MemoryStreams

LOW = 3
TYPES = {"t": (1, 30_000)}


def test_the_double_has_the_verbs_of_the_store_and_their_arguments():
    """And no others, but for what stands in the places of connections."""
    verbs = {name: call for name, call in vars(Streams).items() if inspect.iscoroutinefunction(call) and name[0] != "_"}
    for name, call in verbs.items():
        theirs, ours = inspect.signature(call), inspect.signature(getattr(MemoryStreams, name))
        assert [*theirs.parameters] == [*ours.parameters], name
        assert theirs.return_annotation == ours.return_annotation, name
    made = MemoryKit().streams()
    assert [name for name, value in vars(Streams).items() if isinstance(value, property) and not hasattr(made, name)] == []
    assert [
        name for name in ("budget_bytes", "max_entry_bytes", "keys", "consumer", "queue", "broken") if not hasattr(made, name)
    ] == []


async def isolate(store: Streams, calm_ms: int = -1, n: int = 20) -> tuple[str, int, list[int]]:
    found = await store.isolate(30_000, calm_ms, 10_000, n, TYPES)
    return found.word, found.for_ms, [count for delivery in found.fetched.deliveries for count in delivery.counts]


async def test_first_suspects_run_together_and_later_ones_alone_the_least_suspect_first(store, kit):
    for _ in range(3):
        kit.suspect()
    later = [kit.suspect(2, type="t"), kit.suspect(3), kit.suspect(100)]
    assert await isolate(store, n=2) == ("run", 10_000, [2, 2])
    assert kit.isolations().get(ME) == "", "of two, a death says of neither that it was the one"
    assert await isolate(store) == ("run", 10_000, [2])
    assert kit.isolations().get(ME), "alone, also at its first time"
    assert await isolate(store) == ("run", 20_000, [3])
    assert kit.isolations().get(ME) == f"high/{later[0]}"
    assert await isolate(store) == ("run", 30_000, [4]), "40 s, but no longer than its timeout"
    assert await isolate(store) == ("run", 30_000, [101])
    assert (await isolate(store))[0] == "none"
    assert kit.isolations() == {}
    assert kit.strikes() == {}, "nobody has died"


async def test_of_what_has_a_limit_runs_in_isolation_what_holds_a_permit_or_has_died_more_than_once(store, kit):
    held, never, again = kit.suspect(1, type="t"), kit.suspect(1, type="t"), kit.suspect(2, type="t")
    in_group, of_none = kit.suspect(1, type="t", group="g"), kit.suspect(1, type="t", group="")
    kit.set_permits("t", {f"high/{held}": 1})
    found = await store.isolate(30_000, -1, 10_000, 20, TYPES, True, (), {"u": (True, True)})
    assert len(found.fetched.deliveries) == 4, "of another type with a limit nothing is here"
    for entry in (held, never, in_group, of_none):
        kit.claim(entry, "~suspect", 1)
    found = await store.isolate(30_000, -1, 10_000, 20, TYPES, True, (), {"t": (False, True)})
    assert kit.holders()[in_group] == ("~g:t", 0)
    assert [kit.holders()[entry] for entry in (held, never, of_none)] == [(ME, 2)] * 3, "there is no permit of a group for these"
    for entry in (held, never, of_none):
        kit.claim(entry, "~suspect", 1)
    await store.isolate(30_000, -1, 10_000, 20, TYPES, True, (), {"t": (True, True)})
    assert [kit.holders()[entry] for entry in (held, never, of_none)] == [(ME, 2), ("~g:t", 0), ("~g:t", 0)]
    await store.isolate(30_000, -1, 10_000, 20, TYPES, True, (), {"t": (True, True)})
    assert kit.holders()[again] == (ME, 3)


async def test_isolation_doubles_up_to_the_timeout_whatever_that_is(store, kit):
    kit.suspect(6)
    found = await store.isolate(30_000, -1, 10_000, 20, {"t": (1, 600_000)})
    assert (found.word, found.for_ms) == ("run", 320_000)


async def test_who_has_a_place_in_the_isolation_has_it_for_as_long_as_it_lives_and_said(store, other, kit):
    for _ in range(4):
        kit.suspect()
    await other.beat(WorkerRow(30_000))
    assert await isolate(other, n=1) == ("run", 10_000, [2])
    word, wait_ms, _ = await isolate(store, n=1)
    assert (word, 0 < wait_ms <= 10_000) == ("busy", True), "until that isolation is over"
    kit.set_until({OTHER: 1})
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "who is dead keeps no place"
    await other.beat(WorkerRow(30_000))
    assert (await isolate(store, n=1))[0] == "busy"
    kit.set_isolation(OTHER, 1)
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "nor who said that it would be over by now"
    assert (await other.isolate(0, 0, 0, -1, {})).word == "none"
    await store.acquit([])
    assert kit.isolations() == {}


async def test_half_of_the_workers_that_live_may_isolate_at_a_time(store, kit):
    now_ms = kit.now_ms()
    kit.set_until({f"w{n}": now_ms + 30_000 for n in range(5)} | {"~last": now_ms, "~since": 1, "dead": now_ms - 1})
    for _ in range(3):
        kit.suspect()
    kit.set_isolation("w0", now_ms + 20_000)
    kit.set_isolation("dead", now_ms + 20_000, "high/1-1")
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "two of five"
    await store.acquit([])
    kit.set_isolation("w1", now_ms + 15_000)
    word, wait_ms, _ = await isolate(store, n=1)
    assert (word, 0 < wait_ms <= 15_000) == ("busy", True)
    kit.set_until({"w5": now_ms + 30_000})
    assert await isolate(store, n=1) == ("run", 10_000, [2]), "three of six"


async def test_a_place_that_is_only_waited_for_keeps_nobody_from_starting_at_once(store, kit):
    """All lanes of the one that waits may be taken for hours. Who would have to wait as well is sent away."""
    now_ms = kit.now_ms()
    kit.set_until({"w0": now_ms + 600_000, ME: now_ms + 600_000, "~last": now_ms, "~since": 1})
    kit.suspect()
    assert (await isolate(store, n=0))[0] == "wait"
    assert kit.isolations().get(ME) == "waiting"
    kit.set_isolation("w0", now_ms + 600_000, "waiting")
    assert (await isolate(store, n=0))[0] == "busy"
    assert kit.isolations() == {"w0": "waiting"}
    assert (await isolate(store, n=1, calm_ms=0))[0] == "busy"
    assert await isolate(store, n=1) == ("run", 10_000, [2])
    kit.set_isolation("w0", now_ms + 600_000)
    kit.suspect()
    assert (await isolate(store, n=1))[0] == "busy", "that one runs"


async def test_who_dies_again_runs_in_groups_of_the_root_of_all_that_wait_twice_and_then_alone(store, kit):
    for count, number in ((2, 20), (3, 10), (4, 9)):
        for _ in range(number):
            kit.suspect(count, to=LOW if count == 2 else HIGH)
    groups = [len((await isolate(store, n=500))[2]) for _ in range(6)]
    assert groups == [6, 5, 5, 4, 4, 3], "of 39, 33, 28, 23, 19 and 15; each of one count"
    while 5 not in (group := (await isolate(store, n=500))[2]):
        pass
    assert group == [5], "though nine wait"


async def test_an_answer_of_large_suspects_is_bounded_by_their_bytes(store, kit):
    for _ in range(12):
        kit.suspect(data='{"x":"' + 250_000 * "x" + '"}')
    assert [len((await isolate(store, n=500))[2]) for _ in range(2)] == [8, 4]


async def test_a_worker_that_can_run_none_of_the_suspects_asks_again_after_a_lease_and_else_when_one_is_seen(store, kit):
    assert await isolate(store) == ("none", 0, [])
    kit.suspect(type="other")
    assert await isolate(store) == ("none", 30_000, [])


async def test_beside_a_suspect_runs_only_what_has_run_as_long_as_the_isolation(store, kit):
    kit.suspect()
    assert await isolate(store, calm_ms=9_999) == ("wait", 10_000, [])
    assert await isolate(store, n=0) == ("wait", 10_000, []), "no free lane"
    assert kit.isolations().get(ME) == "waiting"
    assert await isolate(store, calm_ms=10_000) == ("run", 10_000, [2])


async def test_nobody_asks_for_the_isolation_who_cannot_run_what_is_there(store, kit):
    entry = kit.suspect(type="other")
    kit.suspect(v="2")
    assert (await isolate(store))[0] == "none"
    assert kit.isolations() == {}
    kit.delete(entry)
    await isolate(store)
    assert pending(kit) == [("~suspect", 1)], "what was deleted leaves the list"


async def test_a_suspect_that_is_no_message_goes_to_whoever_asks_to_be_dead_lettered(store, kit):
    entry = kit.add_fields({"foo": "bar"})
    kit.read_as("dead")
    kit.claim(entry, "~suspect", 1)
    assert await isolate(store) == ("run", 0, [2])


async def test_an_ordinary_take_moves_a_suspect_on_and_takes_the_innocent(store, kit):
    for count in (1, 0):
        entry = kit.suspect(count)
        kit.claim(entry, "~free", count)
    taken = await store.take(Ask(HIGH, "~free", 10))
    assert [len(delivery.rows) for delivery in taken.deliveries] == [1]
    assert pending(kit) == [(ME, 1), ("~suspect", 1)]


async def alone(store: Streams, kit: Any, strikes: str = "") -> Any:
    """Return a suspect that runs alone, with these names as its strikes."""
    entry = kit.suspect(2)
    if strikes:
        kit.set_strikes(f"high/{entry}", strikes)
    await store.beat(WorkerRow(30_000))
    found = await store.isolate(30_000, -1, 10_000, 20, TYPES)
    assert kit.isolations().get(ME) == f"high/{entry}"
    (job,) = jobs_of(found.fetched)
    assert job.count == 3
    return job


async def reclaim_from_the_dead(store: Streams, kit: Any, lease: Lease) -> None:
    """Let the worker of this store be dead, and its job be found."""
    quiet_guard(kit)
    kit.set_until({ME: 1})
    kit.claim(lease.entry, ME, idle_ms=40_000)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1
    assert pending(kit) == [("~suspect", 3)]


async def test_a_death_in_isolation_alone_is_evidence_and_counts_once_for_each_worker(store, other, kit):
    lease = await alone(store, kit, "died")
    await reclaim_from_the_dead(other, kit, lease)
    assert [*kit.strikes().values()] == [f"died {ME}"]
    kit.claim(lease.entry, ME, 3)  # it was cut off, and is cut off again
    await reclaim_from_the_dead(other, kit, lease)
    assert [*kit.strikes().values()] == [f"died {ME}"]


async def test_a_death_after_the_isolation_is_no_evidence(store, other, kit):
    lease = await alone(store, kit)
    await store.acquit([(HIGH, lease.entry)])
    assert kit.isolations().get(ME) is None
    await reclaim_from_the_dead(other, kit, lease)
    assert kit.strikes() == {}


async def test_a_death_beside_other_suspects_is_evidence_against_none(store, other, kit):
    entry = kit.suspect()
    kit.suspect()
    await store.isolate(30_000, -1, 10_000, 20, TYPES)
    kit.claim(entry, ME, idle_ms=40_000)
    await store.beat(WorkerRow(30_000))
    quiet_guard(kit)
    kit.set_until({ME: 1})
    assert (await other.reclaim(HIGH, 30_000, 100, {})).dead == 1
    assert kit.strikes() == {}


async def test_who_outlives_its_isolation_has_no_strikes_any_more(store, kit):
    """A job that kills would have done it again in a time twice as long."""
    lease = await alone(store, kit, "died also-died")
    await store.acquit([(HIGH, lease.entry)])
    assert (kit.strikes(), kit.isolations()) == ({}, {})


async def test_who_lost_what_it_isolated_takes_off_its_own_name_alone(store, kit):
    lease = await alone(store, kit, f"died {ME}")
    kit.claim(lease.entry, OTHER, 2)
    await store.acquit([(HIGH, lease.entry)])
    assert [*kit.strikes().values()] == ["died"]


async def test_of_whom_a_worker_died_runs_first_where_no_other_former_suspect_does_and_else_not_at_all(store, kit):
    kit.suspect()
    struck = kit.suspect(4)
    kit.set_strikes(f"high/{struck}", "died")
    found = await store.isolate(30_000, 60_000, 10_000, 20, TYPES, is_clean=False)
    assert [count for delivery in found.fetched.deliveries for count in delivery.counts] == [2]
    found = await store.isolate(30_000, 60_000, 10_000, 20, TYPES, is_clean=False)
    assert found.word == "none"
    kit.suspect()
    assert await isolate(store) == ("run", 30_000, [5])
    assert kit.isolations().get(ME) == f"high/{struck}"


async def test_a_suspect_that_is_given_back_stays_one_and_our_name_leaves_its_strikes(store, kit):
    lease = await alone(store, kit)
    kit.set_strikes(f"high/{lease.entry.decode()}", f"died {ME} also-died")
    await store.settle(batch(Parking(lease, "~free")))
    assert pending(kit) == [("~suspect", 2)]
    assert [*kit.strikes().values()] == ["died also-died"]


@pytest.mark.parametrize("how", ["done", "retry", "dead"])
async def test_strikes_leave_with_their_entry(store, kit, how):
    lease = await alone(store, kit, "died")
    moves = {"retry": [Deferral(lease, "retry", 10, "j", 1)], "dead": [Letter(lease, "attempts", "e", "", 1, "j")], "done": []}
    settled = await store.settle(batch(*moves[how], done=[lease] if how == "done" else []))
    assert (settled.refused, settled.error) == (0, "")
    assert pending(kit) == []
    assert len(kit.messages()) == 0
    assert kit.strikes() == {}


async def test_a_process_that_learns_that_its_lease_is_lost_is_no_witness(store, kit):
    lease = await alone(store, kit, ME)
    kit.claim(lease.entry, OTHER, 2)
    assert await store.renew([(HIGH, lease.entry, 3)]) == [0]
    assert kit.strikes() == {}


async def test_a_suspect_whose_reply_was_lost_is_no_evidence_either(store, kit):
    lease = await alone(store, kit, ME)
    quiet_guard(kit)
    kit.claim(lease.entry, ME, idle_ms=40_000)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).undelivered == 1
    assert pending(kit) == [("~suspect", 2)]
    assert kit.strikes() == {}


async def test_three_strikes_are_handed_out_to_be_dead_lettered_without_calm(store, kit):
    entry = kit.suspect(4)
    kit.set_strikes(f"high/{entry}", "a b")
    assert await isolate(store) == ("run", 30_000, [5])
    kit.set_strikes(f"high/{entry}", "a b c")
    kit.claim(entry, "~suspect", 5)
    found = await store.isolate(30_000, 0, 10_000, 20, TYPES)
    assert (found.word, found.names) == ("dead", ["a", "b", "c"])
    assert kit.strikes().get(f"high/{entry}") == "a b c"


async def test_strikes_without_an_entry_and_isolations_without_a_worker_are_swept(store, kit):
    await store.beat(WorkerRow(30_000))
    for at, names in {"high/1-1": "a", "junk": "b", "nowhere/1-1": "c"}.items():
        kit.set_strikes(at, names)
    for name, alone in {ME: "", "gone": "high/1-1", "junk": ""}.items():
        kit.set_isolation(name, 1, alone)
    assert (await isolate(store))[0] == "none"
    assert (kit.strikes(), kit.isolations()) == ({}, {})


async def test_a_worker_that_leaves_gives_up_the_isolation(store, kit):
    kit.suspect()
    await isolate(store, n=0)
    await store.forget(ME)
    assert kit.isolations() == {}


async def test_a_fetch_takes_no_more_than_each_share_and_asks_no_stream_with_a_share_of_zero(store, kit):
    for stream in (0, HIGH, LOW):
        for _ in range(5):
            kit.add(to=stream)
    fetched = await store.fetch([2, 0, 3, 1], set())
    assert {delivery.stream: len(delivery.rows) for delivery in fetched.deliveries} == {0: 2, 3: 1}
    assert pending(kit) == []
    assert abs(fetched.now_ms - kit.now_ms()) < 60_000


async def test_the_bell_rings_for_one_entry_of_a_stream_and_answers_empty_when_it_is_unrung(store, kit):
    ringing = asyncio.create_task(store.wait_for_entry(5000))
    while not kit.is_waiting():
        await asyncio.sleep(0.005)
    kit.add()
    rung = await ringing
    assert [(delivery.stream, len(delivery.rows)) for delivery in rung.deliveries] == [(HIGH, 1)]
    ringing = asyncio.create_task(store.wait_for_entry(5000))
    while not ringing.done():
        await store.unblock()
        await asyncio.sleep(0.005)
    assert ringing.result().deliveries == []


async def test_a_released_job_comes_back_through_take_with_the_count_it_had(store, kit):
    kit.add()
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~free")))
    assert pending(kit) == [("~free", 0)]
    peeked = await store.fetch([0, 1, 0, 0], set())
    assert peeked.free == {HIGH}
    taken = await store.fetch([0, 1, 0, 0], {HIGH})
    assert list(taken.deliveries[0].counts) == [1]
    assert pending(kit) == [(ME, 1)]
    kit.add()
    kit.add()
    assert await store.lots() == ({}, {HIGH}, {0: 0, HIGH: 2, 2: 0, 3: 0}), "what is held waits no more"


async def test_two_takers_share_a_lot_and_never_an_entry(store, other, kit):
    for _ in range(50):
        kit.add()
    held = await leases(store)
    await store.settle(batch(*[Parking(lease, "~free") for lease in held]))
    deliveries = await asyncio.gather(*[taker.take(Ask(HIGH, "~free", 10)) for taker in (store, other) * 5])
    ids = [row[0] for fetched in deliveries for delivery in fetched.deliveries for row in delivery.rows]
    assert len(ids) == 50 == len(set(ids))


async def test_the_shared_lot_gives_only_what_can_be_run_even_behind_much_that_cannot(store, kit):
    for _ in range(600):
        kit.add(type="strange")
    kit.add(type="known", v="3")
    kit.add(type="known", v="2")
    held = await leases(store, 700)
    await store.settle(batch(*[Parking(lease, "~t:") for lease in held]))
    fetched = await store.take(Ask(HIGH, "~t:", 10, {"known": 2, "other": 1}))
    assert [dict(zip(row[1][::2], row[1][1::2], strict=True))[b"v"] for row in fetched.deliveries[0].rows] == [b"2"]
    assert pending(kit).count(("~t:", 0)) == 601


async def test_an_entry_deleted_under_our_feet_is_simply_gone(store, kit):
    entry = kit.add()
    [lease] = await leases(store)
    kit.delete(entry)
    settled = await store.settle(batch(Deferral(lease, "retry", 0, "x", 1)))
    assert settled.refused == 1
    assert pending(kit) == []


async def test_done_leaves_neither_entry_nor_pending(store, kit):
    for _ in range(1200):
        kit.add()
    held = await leases(store, 1200)
    settled = await store.settle(batch(done=held))
    assert (settled.refused, settled.shortfall) == (0, 0)
    assert len(kit.messages()) == 0
    assert pending(kit) == []


async def test_a_finished_job_that_is_gone_already_is_counted(store, kit):
    kit.add()
    held = await leases(store)
    await store.settle(batch(done=held))
    assert (await store.settle(batch(done=held))).shortfall == 1


async def test_a_retry_keeps_every_field_and_counts_the_failure(store, kit):
    entry = kit.add(**{"x-tenant": "7", "traceparent": "00-a-b-01", "attempts": "5"})
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, f"high-{entry}", 3)))
    assert len(kit.messages()) == 0
    run = await store.promote(10, "0")
    assert (run.moved, run.bad, run.wait_ms) == (1, 0, -1)
    [fields] = kit.messages()
    assert fields.pop("first_at") == entry.split("-")[0]
    assert fields == {
        "type": "t",
        "data": "{}",
        "id": f"high-{entry}",
        "a": "3",
        "x-tenant": "7",
        "traceparent": "00-a-b-01",
        "attempts": "5",
    }


async def test_a_snooze_burns_no_attempt_and_remembers_the_first_one(store, kit):
    kit.add(a="2")
    for _ in range(2):
        [lease] = await leases(store)
        await store.settle(batch(Deferral(lease, "snooze", 0, "i", 2)))
        await store.promote(10, "0")
    [fields] = kit.messages()
    assert fields["a"] == "2"
    assert abs(int(fields["snoozed_at"]) - kit.now_ms()) < 60_000


async def test_a_job_for_later_waits_until_its_time(store, kit):
    kit.add(at="99999999999999")
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "at", 99999999999999, "i", 0)))
    assert kit.due()["i"] == 99999999999999
    run = await store.promote(10, "0")
    assert run.moved == 0
    assert run.wait_ms > 10**12


async def test_two_messages_with_one_id_are_two_jobs(store, kit):
    for data in ("1", "2"):
        kit.add(data=data, id="same")
    held = await leases(store)
    await store.settle(batch(*[Deferral(lease, "retry", 0, "same", 1) for lease in held]))
    assert len(kit.due()) == len(kit.records()) == 2
    await store.promote(10, "0")
    assert sorted(fields["data"] for fields in kit.messages()) == ["1", "2"]
    assert {fields["id"] for fields in kit.messages()} == {"same"}


TRIED = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_letter_says_which_span_tells_of_it_if_one_does(store, kit):
    kit.add()
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "attempts", "e", "", 1, "i", TRIED)))
    [fields] = kit.letters()
    assert fields["dead_trace"] == TRIED.decode()


async def test_a_retry_says_which_attempt_it_comes_after(store, kit):
    kit.add(traceparent="sent", tried="long ago")
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, "j", 1, TRIED)))
    await store.promote(10, "0")
    [again] = await leases(store)
    fields = dict(zip(again.fields[::2], again.fields[1::2], strict=True))
    assert (fields[b"tried"], fields[b"traceparent"], again.trace) == (TRIED, b"sent", b"sent")
    assert again.fields.count(b"tried") == 1
    await store.settle(batch(Deferral(again, "snooze", 0, "j", 1)))
    await store.promote(10, "0")
    [later] = await leases(store)
    assert dict(zip(later.fields[::2], later.fields[1::2], strict=True))[b"tried"] == TRIED, "the last one that is recorded"


FIRST = b"1\t1732000000000\t20\tpay-1\tv1\tValueError: no\ta.py:1 f"
SECOND = b"2\t1732000060000\t30\t=\t=\t=\t="


async def test_what_failed_attempts_left_goes_with_a_job_through_every_move_once_and_is_renewed_by_the_next(store, kit):
    kit.add(e="long ago", traceparent="sent")
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, "j", 1, tries=FIRST)))
    for move in ("snooze", "at"):
        await store.promote(10, "0")
        [lease] = await leases(store)
        assert [value for name, value in zip(lease.fields[::2], lease.fields[1::2], strict=True) if name == b"e"] == [FIRST]
        await store.settle(batch(Deferral(lease, move, 0, "j", 1)))
    await store.promote(10, "0")
    [lease] = await leases(store)
    both = FIRST + b"\n" + SECOND
    await store.settle(batch(Letter(lease, "attempts", "e", "", 2, "j", tries=both)))
    [fields] = kit.letters()
    assert fields["e"] == both.decode(), "with the last one"
    assert fields["dead_by"] == ME


async def test_a_letter_of_a_job_that_did_not_run_has_its_attempts_as_they_were(store, kit):
    store.app = "v2"
    kit.add(e=FIRST.decode())
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "expired", "e", "", 1, "j")))
    [fields] = kit.letters()
    assert (fields["e"], fields["dead_app"]) == (FIRST.decode(), "v2")


async def test_of_a_letter_out_of_a_lot_the_worker_is_told_that_wrote_it(store, kit):
    kit.add()
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~t:t@1")))
    [(entry, count, *_)] = await store.waiting_longest(HIGH, "~t:t@1", 0, 10)
    letter = Letter(Lease(HIGH, entry, count, "", 0), "unknown-type", "e", "", 0, "i")
    assert await store.dead_letter("~t:t@1", [letter]) == [letter]
    assert [fields["dead_by"] for fields in kit.letters()] == [ME]


async def test_a_dead_letter_has_every_field_and_the_notes_of_its_death(store, kit):
    entry = kit.add(**{"x-a": "b"})
    [lease] = await leases(store)
    await store.settle(batch(Letter(lease, "no-account", "gone", "stack", 4, "my-id")))
    [fields] = kit.letters()
    assert abs(int(fields.pop("dead_at")) - kit.now_ms()) < 60_000
    assert fields == {
        "type": "t",
        "data": "{}",
        "x-a": "b",
        "id": "my-id",
        "dead_reason": "no-account",
        "dead_error": "gone",
        "dead_stack": "stack",
        "dead_attempts": "4",
        "dead_from": f"high/{entry}",
        "dead_by": ME,
    }
    assert len(kit.messages()) == 0


@pytest.mark.parametrize("verb", ["retry", "dead", "release"])
async def test_a_move_without_the_lease_is_refused_and_writes_nothing(store, other, kit, verb):
    kit.add()
    [mine] = await leases(store)
    kit.claim(mine.entry, OTHER, 2)
    before = kit.snapshot()
    move = {
        "retry": Deferral(mine, "retry", 0, "i", 1),
        "dead": Letter(mine, "attempts", "e", "", 1, "i"),
        "release": Parking(mine, "~free"),
    }[verb]
    assert (await store.settle(batch(move))).refused == 1
    assert kit.snapshot() == before


@pytest.mark.parametrize("verb", ["retry", "dead", "release"])
async def test_the_delivery_count_is_part_of_the_fence(store, kit, verb):
    kit.add()
    [mine] = await leases(store)
    kit.claim(mine.entry, ME, 2)  # the same worker holds it again, by a later delivery
    before = kit.snapshot()
    move = {
        "retry": Deferral(mine, "retry", 0, "i", 1),
        "dead": Letter(mine, "attempts", "e", "", 1, "i"),
        "release": Parking(mine, "~free"),
    }[verb]
    assert (await store.settle(batch(move))).refused == 1
    assert kit.snapshot() == before


@pytest.mark.parametrize("verb", ["retry", "dead", "release"])
async def test_the_fence_is_the_same_for_many_at_once(store, kit, verb):
    """Many are looked up in one go, from the oldest lease on: here some are stolen, some handed out again, some far behind."""
    for n in range(200):
        kit.add(n=str(n))
    held = await leases(store, 200)
    stolen, again = [lease.entry for lease in held[100:120]], [lease.entry for lease in held[130:150]]
    for entry in stolen:
        kit.claim(entry, OTHER)
    for entry in again:
        kit.claim(entry, ME, 2)
    make = {
        "retry": lambda lease: Deferral(lease, "retry", 60_000, "i-" + lease.entry.decode(), 1),
        "dead": lambda lease: Letter(lease, "attempts", "e", "", 1, "i-" + lease.entry.decode()),
        "release": lambda lease: Parking(lease, "~free"),
    }[verb]
    for chosen, refused in ((held[100:160], 40), (held[:60], 0), (held[190:], 0), (held[:60], 60)):
        assert (await store.settle(batch(*map(make, chosen)))).refused == refused
    left = {entry.encode(): holder for entry, (holder, _) in kit.holders().items()}
    moved = [lease.entry for lease in (*held[:60], *held[100:160], *held[190:]) if lease.entry not in (*stolen, *again)]
    assert {left.get(entry, "~free") for entry in moved} == {"~free"}
    assert {left[entry] for entry in stolen} == {OTHER}
    assert {left[entry] for entry in again} == {ME}


async def test_two_moves_of_one_lease_are_one(store, kit):
    for _ in range(20):
        kit.add()
    held = await leases(store)
    settled = await store.settle(batch(*[Deferral(lease, "retry", 60_000, "same", 1) for lease in (*held, *held)]))
    assert settled.refused == 20
    assert len(kit.due()) == len(kit.records()) == 20, "each under a name of its own"
    assert len(kit.messages()) == 0


async def test_a_finished_job_of_before_a_restart_is_fenced(store, kit):
    """Its entry's id may be another job's by now; of this server's own leases an ack needs no fence."""
    kit.add()
    kit.add()
    held = await leases(store)
    for lease in held:
        kit.claim(lease.entry, OTHER)
    held[0].run_id = "another server/0"
    settled = await store.settle(batch(done=held))
    assert (settled.refused, settled.shortfall) == (1, 0)
    assert pending(kit) == [(OTHER, 1)]


async def test_a_renewal_keeps_the_count_and_resets_the_idle_time(store, kit):
    kit.add()
    [lease] = await leases(store)
    kit.claim(lease.entry, ME, idle_ms=60_000)
    assert await store.renew([(lease.stream, lease.entry, lease.count)]) == []
    assert pending(kit) == [(ME, 1)]
    assert kit.idle_ms(lease.entry) < 30_000


async def test_a_late_renewal_does_not_steal_the_job_back(store, kit):
    kit.add()
    [lease] = await leases(store)
    kit.claim(lease.entry, OTHER, 2)
    assert await store.renew([(lease.stream, lease.entry, lease.count)]) == [0]
    assert pending(kit) == [(OTHER, 2)]


async def test_what_a_dead_worker_held_is_suspect_and_keeps_its_count(store, other, kit):
    kit.add()
    [lease] = await leases(other)
    quiet_guard(kit)
    kit.claim(lease.entry, OTHER, idle_ms=40_000)
    found = await store.reclaim(HIGH, 30_000, 100, {})
    assert (found.dead, found.undelivered, found.is_guarded) == (1, 0, False)
    assert pending(kit) == [("~suspect", 1)]


async def test_of_each_run_that_was_lost_with_its_worker_an_event_says_so(store, other, kit):
    first, second = kit.add(id="mine", a="2"), kit.add()
    await leases(other)
    quiet_guard(kit)
    for entry in (first, second):
        kit.claim(entry, OTHER, idle_ms=40_000)
    await store.reclaim(HIGH, 30_000, 1, {})
    await store.reclaim(HIGH, 30_000, 100, {})
    told = [dict(event) for event in kit.events()]
    assert all(int(event.pop("at")) > 0 for event in told)
    lost = {"outcome": "lost", "by": OTHER, "type": "t"}
    assert told == [
        {"place": f"high/{first}", "id": "mine", "attempt": "3", **lost},
        {"place": f"high/{second}", "id": f"high-{second}", "attempt": "1", **lost},
    ]


async def test_a_delivery_that_a_live_worker_never_saw_does_not_count(store, other, kit):
    kit.add()
    [lease] = await leases(other)
    await other.beat(WorkerRow(30_000))
    quiet_guard(kit)
    kit.claim(lease.entry, OTHER, idle_ms=40_000)
    found = await store.reclaim(HIGH, 30_000, 100, {})
    assert (found.dead, found.undelivered) == (0, 1)
    assert pending(kit) == [("~free", 0)]
    assert kit.events() == [], "nothing is lost: it never ran"


async def test_a_lease_whose_group_was_made_again_is_not_lost_but_one_that_was_settled_is(store, kit):
    kit.add()
    gone = kit.add()
    held = await leases(store)
    kit.lose_groups()
    kit.delete(gone)
    assert await store.renew([(lease.stream, lease.entry, lease.count) for lease in held]) == [1]


async def test_what_is_renewed_in_time_is_left_alone(store, other, kit):
    kit.add()
    await leases(other)
    quiet_guard(kit)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 0
    assert pending(kit) == [(OTHER, 1)]


@pytest.mark.parametrize(
    ("lease_ms", "idle_ms", "is_over"),
    [(120_000, 60_000, False), (30_000, 30_500, True)],
    ids=["within a lease longer than the sweeper's", "a moment after a lease"],
)
async def test_what_a_live_worker_holds_is_no_lost_delivery_within_its_own_lease_and_a_moment(
    store, other, kit, lease_ms, idle_ms, is_over
):
    """A beat renews first: of a worker that dies after it, the leases end a moment before its row does."""
    kit.add()
    [lease] = await leases(other)
    await other.beat(WorkerRow(lease_ms))
    quiet_guard(kit)
    kit.claim(lease.entry, OTHER, idle_ms=idle_ms)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).undelivered == 0
    kit.set_until({OTHER: 1})
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == is_over, "once it is dead, its own lease counts"


async def test_after_a_gap_in_all_beats_nobody_is_robbed_for_one_lease(store, other, kit):
    kit.add()
    [lease] = await leases(other)
    kit.claim(lease.entry, OTHER, idle_ms=10**8)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).is_guarded
    await store.beat(WorkerRow(30_000))
    assert (await store.reclaim(HIGH, 30_000, 100, {})).is_guarded
    since = kit.until_ms("~since")
    kit.set_until({"~since": since - 31_000})
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 1


async def test_a_row_that_stands_still_is_dead_whatever_the_idle_time_says(store, other, kit):
    kit.add()
    await leases(other)
    await other.beat(WorkerRow(30_000))
    quiet_guard(kit)
    [until_ms] = [until_ms for until_ms, _ in (await store.workers()).values()]
    assert (await store.reclaim(HIGH, 30_000, 100, {OTHER: until_ms - 1})).dead == 0, "it has moved since: it is back"
    assert (await store.reclaim(HIGH, 30_000, 100, {OTHER: until_ms})).dead == 1


async def test_lots_are_nobodys_lease(store, kit):
    kit.add()
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~t:x@1")))
    kit.claim(lease.entry, "~t:x@1", 0, idle_ms=10**8)
    quiet_guard(kit)
    assert (await store.reclaim(HIGH, 30_000, 100, {})).dead == 0
    assert await store.lots() == ({(HIGH, "~t:x@1"): 1}, set(), dict.fromkeys(range(4), 0))


async def test_a_consumer_that_holds_something_is_not_forgotten(store, other, kit):
    kit.add()
    [lease] = await leases(other)
    await other.beat(WorkerRow(30_000))
    assert not await store.forget(OTHER)
    assert pending(kit) == [(OTHER, 1)]
    assert OTHER in await store.workers()
    await other.settle(batch(done=[lease]))
    [until_ms] = [until_ms for name, (until_ms, _) in (await store.workers()).items() if name == OTHER] or [0]
    assert not await store.forget(OTHER, until_ms - 1), "it has moved since it was seen: it is back"
    assert await store.forget(OTHER, until_ms)
    assert OTHER not in await store.workers()


async def test_an_unknown_type_is_dead_lettered_only_while_it_sits_in_its_lot(store, kit):
    kit.add()
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~t:t@1")))
    kit.claim(lease.entry, "~t:t@1", 0, idle_ms=10**6)
    [(entry, count, about)] = await store.waiting_longest(HIGH, "~t:t@1", 900_000, 10)
    assert (count, about.type, about.version) == (0, b"t", 1)
    letter = Letter(Lease(HIGH, entry, count, "", 0), "unknown-type", "e", "", 0, "i")
    await store.take(Ask(HIGH, "~t:t@1", 1))
    assert await store.dead_letter("~t:t@1", [letter]) == []
    assert len(kit.letters()) == 0


async def test_a_message_without_a_time_is_found_again(store, kit):
    kit.add()
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 60_000, "lost", 1)))
    kit.set_due("lost", None)
    cursor, moved = "0", 0
    for _ in range(5):
        run = await store.promote(100, cursor)
        cursor, moved = run.cursor, moved + run.moved
    assert moved == 1
    assert len(kit.records()) == 0


async def test_a_full_run_promotes_no_more_than_asked_and_says_that_more_is_due(store, kit):
    for _ in range(30):
        kit.add()
    held = await leases(store)
    await store.settle(batch(*[Deferral(lease, "retry", 0, f"j{n}", 1) for n, lease in enumerate(held)]))
    run = await store.promote(20, "0")
    assert (run.moved, run.wait_ms) == (20, 0)
    assert (await store.promote(20, "0")).moved == 10


async def admit_all(store: Streams, held: list[Lease], key: bytes = b"k") -> list[str]:
    return await store.admit([Claim(lease, key) for lease in held])


async def test_a_second_job_with_the_key_of_a_live_one_is_dropped(store, kit):
    kit.add(key="k")
    kit.add(key="k")
    assert await admit_all(store, await leases(store)) == ["mine", "duplicate"]
    assert len(kit.messages()) == 1
    assert pending(kit) == [(ME, 1)]


async def test_a_redelivery_of_the_owner_is_never_taken_for_a_copy(store, kit):
    kit.add(key="k")
    [lease] = await leases(store)
    assert await admit_all(store, [lease]) == ["mine"]
    await store.settle(batch(Parking(lease, "~free")))
    taken = await store.take(Ask(HIGH, "~free", 1))
    again = Lease(HIGH, taken.deliveries[0].rows[0][0], 1, taken.run_id, 0)
    assert await admit_all(store, [again]) == ["mine"]


@pytest.mark.parametrize("way_out", ["done", "dead"])
async def test_a_key_is_free_again_when_its_job_has_ended(store, kit, way_out):
    kit.add(key="k")
    [first] = await leases(store)
    await admit_all(store, [first])
    if way_out == "done":
        await store.settle(batch(done=[first]))
    else:
        await store.settle(batch(Letter(first, "handler", "e", "", 1, "i")))
    kit.add(key="k")
    assert await admit_all(store, await leases(store)) == ["mine"]


@pytest.mark.parametrize("way_out", ["done", "done as a former suspect", "done after a restart", "dead"])
async def test_the_mark_of_a_key_goes_with_its_job(store, kit, way_out):
    kit.add(key="k")
    kit.add()
    [job, other] = await leases(store)
    await admit_all(store, [job])
    assert "k" in kit.marks()
    if way_out == "done as a former suspect":
        kit.claim(job.entry, ME, 2)
        job.count = 2
    if way_out == "done after a restart":
        job.run_id = "another server/0"
    moves = (Letter(job, "attempts", "e", "", 1, "i"),) if way_out == "dead" else ()
    settled = await store.settle(batch(*moves, done=[other] if moves else [job, other]))
    assert (settled.refused, settled.shortfall, settled.error) == (0, 0, "")
    assert len(kit.messages()) == 0
    assert "k" not in kit.marks()


async def test_the_mark_of_a_key_stays_with_whom_it_names(store, kit):
    kit.add(key="k")
    [job] = await leases(store)
    await admit_all(store, [job])
    kit.set_mark("k", "due somebody-else")
    await store.settle(batch(done=[job]))
    assert kit.marks() == {"k": "due somebody-else"}


async def test_a_key_follows_its_job_through_the_delayed_jobs_and_back(store, kit):
    kit.add(key="k")
    [first] = await leases(store)
    await admit_all(store, [first])
    await store.settle(batch(Deferral(first, "retry", 60_000, "j", 1)))
    kit.add(key="k")
    assert await admit_all(store, await leases(store)) == ["duplicate"], "the owner waits for its retry"
    kit.set_due("j", 1)
    await store.promote(10, "0")
    kit.add(key="k")
    assert sorted(await admit_all(store, await leases(store))) == ["duplicate", "mine"]


async def test_a_mark_whose_place_holds_another_job_is_void(store, kit):
    kit.set_mark("k", "high 1-1")
    kit.add(key="other", entry="1-1")
    kit.add(key="k")
    held = await leases(store)
    assert await store.admit([Claim(held[1], b"k")]) == ["mine"]


@pytest.mark.parametrize("cut_at_bytes", [0, 3])
@pytest.mark.parametrize("verb", VERBS)
async def test_a_verb_repeated_after_a_lost_reply_has_one_effect(store, kit, verb, cut_at_bytes):
    act = await VERBS[verb](store, kit)
    await act(store)
    once = kit.snapshot()
    kit.clear()
    await store.start()
    act = await VERBS[verb](store, kit)
    async with kit.losing(verb, cut_at_bytes) as unlucky:
        with pytest.raises(StoreUnavailable):
            await act(unlucky)
        await act(unlucky)
    assert kit.snapshot() == once


async def parked_entries(streams: Streams, kit: Any, *sizes: int) -> list[bytes]:
    await streams.start()
    entries = [kit.add(data="x" * size) for size in sizes]
    kit.read_as("gone")
    for entry in entries:
        kit.claim(entry, "~free", 0)
    return [entry.encode() for entry in entries]


async def test_a_take_brings_as_many_bytes_as_are_asked_for_and_says_that_there_is_more(kit):
    streams = kit.streams(ME)
    entries = await parked_entries(streams, kit, *[100_000] * 120)
    streams.budget_bytes = 1_000_000
    seen: list[bytes] = []
    while len(seen) < len(entries):
        [delivery] = (await streams.take(Ask(HIGH, "~free", 500))).deliveries
        assert 0 < sum(len(fields[3]) for _, fields in delivery.rows) <= 1_200_000
        seen += [entry for entry, _ in delivery.rows]
        assert delivery.is_cut == (len(seen) < len(entries))
    assert seen == entries, "each once, and in order"


async def test_a_take_brings_one_entry_at_least(kit):
    streams = kit.streams(ME)
    entries = await parked_entries(streams, kit, 100_000, 100)
    streams.budget_bytes = 1
    [delivery] = (await streams.take(Ask(HIGH, "~free", 500))).deliveries
    assert [entry for entry, _ in delivery.rows] == entries[:1]


async def test_a_take_brings_of_an_entry_that_is_too_large_its_size_alone(kit):
    streams = kit.streams(ME, max_data_bytes=1000)
    small, large, after = await parked_entries(streams, kit, 10, streams.max_entry_bytes + 1, 20)
    [delivery] = (await streams.take(Ask(HIGH, "~free", 500))).deliveries
    assert [entry for entry, _ in delivery.rows] == [small, after]
    assert delivery.oversized == [(large, 1, streams.max_entry_bytes + 1 + len("typetdata"))]
    assert {holder for holder, _ in pending(kit)} == {ME}, "it is leased all the same"


# --- schedules ---------------------------------------------------------------------------------------------------------------

NOTHING = Due([], 0, 0)
LONG_AGO = 1_000_000


async def tick(
    store: Streams, schedule: Definition, known_ms: int | None = None, due: Due = NOTHING, now_ms: int = 2**53
) -> Ticked:
    _, [ticked] = await store.tick([TickAsk(schedule, known_ms, due)], now_ms)
    return ticked


def log_of(kit: Any, name: str = "nightly") -> list[str]:
    return kit.cron_state()[name].split()[5:]


async def test_a_schedule_that_is_new_begins_now_and_fires_nothing(store, kit):
    before_ms = kit.now_ms()
    ticked = await tick(store, nightly(), None, Due([LONG_AGO], 0, LONG_AGO))
    assert (ticked.word, ticked.fired) == ("new", 0)
    assert before_ms <= ticked.last_ms <= kit.now_ms()
    assert kit.messages() == []
    assert kit.cron_state() == {"nightly": row_of(nightly(), ticked.last_ms, ticked.last_ms)}
    assert await tick(store, nightly()) == Ticked("kept", ticked.last_ms, 0, 0)


async def test_a_tick_fires_one_message_with_all_that_its_job_needs(store, kit):
    schedule = nightly(expires_s=90, version=2)
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, kit.now_ms()))
    due = Due([LONG_AGO + 1000, LONG_AGO + 2000], 3, LONG_AGO + 2000)
    assert await tick(store, schedule, LONG_AGO, due) == Ticked("fired", LONG_AGO + 2000, 2, 0)
    first, second = kit.messages()
    assert first == {"id": "cron:nightly:1001000", "first_at": "1001000", "exp": "1091000", "type": "t", "v": "2", "data": "{}"}
    assert second["id"] == "cron:nightly:1002000"
    missed, *fired = log_of(kit)
    assert missed.endswith("m3")
    assert fired == ["1001000f", "1002000f"]
    [job, _] = await leases(store)
    assert (job.id, job.born_ms) == ("cron:nightly:1001000", 1_001_000)


async def test_who_comes_second_hears_that_it_was_done_and_by_when(store, other, kit):
    schedule = nightly()
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, kit.now_ms()))
    due = Due([LONG_AGO + 1000], 0, LONG_AGO + 1000)
    assert (await tick(store, schedule, LONG_AGO, due)).word == "fired"
    assert await tick(other, schedule, LONG_AGO, due) == Ticked("moved", LONG_AGO + 1000, 0, 0)
    assert await tick(other, schedule, None, due) == Ticked("moved", LONG_AGO + 1000, 0, 0)
    assert len(kit.messages()) == 1


async def test_nobody_fires_before_the_servers_time(store, kit):
    schedule, now_ms = nightly(), kit.now_ms()
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, now_ms))
    assert await tick(store, schedule, LONG_AGO, Due([now_ms + 60_000], 0, now_ms + 60_000)) == Ticked("early", LONG_AGO, 0, 0)
    assert kit.messages() == []


async def test_what_was_worked_out_for_a_time_long_ago_is_worked_out_again(store, kit):
    schedule, now_ms = nightly(), kit.now_ms()
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, now_ms))
    due = Due([LONG_AGO + 1000], 0, LONG_AGO + 1000)
    assert await tick(store, schedule, LONG_AGO, due, now_ms - 11_000) == Ticked("early", LONG_AGO, 0, 0)
    assert (await tick(store, schedule, LONG_AGO, due, now_ms)).word == "fired"


async def test_what_is_left_out_is_noted_and_decided(store, kit):
    schedule = nightly()
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, kit.now_ms()))
    assert await tick(store, schedule, LONG_AGO, Due([], 7, LONG_AGO + 9000)) == Ticked("fired", LONG_AGO + 9000, 0, 0)
    assert [note.partition("m")[2] for note in log_of(kit)] == ["7"]


async def test_the_last_twenty_ticks_are_kept(store, kit):
    schedule = nightly()
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, kit.now_ms()))
    ticks = [LONG_AGO + 1000 * number for number in range(1, 31)]
    assert (await tick(store, schedule, LONG_AGO, Due(ticks, 0, ticks[-1]))).fired == 30
    assert log_of(kit) == [f"{at}f" for at in ticks[10:]]


@pytest.mark.parametrize(("age_ms", "is_confirmed"), [(10_000, False), (16_000, True)])
async def test_that_its_workers_live_is_written_every_fifteen_seconds(store, kit, age_ms, is_confirmed):
    schedule, now_ms = nightly(), kit.now_ms()
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, now_ms - age_ms))
    assert (await tick(store, schedule)).word == "kept"
    assert (int(kit.cron_state()["nightly"].split()[3]) >= now_ms) == is_confirmed


async def test_with_overlap_skip_a_tick_is_left_out_while_the_job_of_one_before_lives(store, kit):
    schedule = nightly(overlap="skip")
    kit.set_cron_state("nightly", row_of(schedule, LONG_AGO, kit.now_ms()))
    last = LONG_AGO
    for fired, skipped in ((1, 1), (0, 2)):
        due = Due([last + 1000, last + 2000], 0, last + 2000)
        assert await tick(store, schedule, last, due) == Ticked("fired", last + 2000, fired, skipped)
        last += 2000
    assert [note[-1] for note in log_of(kit)] == ["f", "s", "s", "s"]
    [job] = await leases(store)
    assert job.envelope.key == b"cron:nightly"
    assert await store.admit([Claim(job, job.envelope.key)]) == ["mine"]
    await store.settle(batch(done=[job]))
    assert (await tick(store, schedule, last, Due([last + 1000], 0, last + 1000))).fired == 1


async def test_one_that_is_paused_goes_on_without_a_message_and_notes_each_pause_once(store, kit):
    paused, resumed = nightly(paused=True), nightly()
    kit.set_cron_state("nightly", row_of(paused, LONG_AGO, kit.now_ms()))
    for at in (1000, 2000):
        known = LONG_AGO + at - 1000
        assert await tick(store, paused, known, Due([], 0, LONG_AGO + at)) == Ticked("fired", LONG_AGO + at, 0, 0)
    assert [note[-1] for note in log_of(kit)] == ["p"]
    assert (await tick(store, resumed, LONG_AGO + 2000, Due([LONG_AGO + 3000], 0, LONG_AGO + 3000))).fired == 1
    kit.set_cron_state("nightly", kit.cron_state()["nightly"].replace(resumed.whole_hash, paused.whole_hash, 1))
    await tick(store, paused, LONG_AGO + 3000, Due([], 0, LONG_AGO + 4000))
    assert [note[-1] for note in log_of(kit)] == ["p", "f", "p"]


async def test_where_another_revision_is_stored_nothing_fires(store, kit):
    schedule = nightly()
    row = row_of(schedule, LONG_AGO, kit.now_ms() - 20_000)
    kit.set_cron_state("nightly", row)
    kit.set_schedule("nightly", '4 {"paused":true}')
    due = Due([LONG_AGO + 1000], 0, LONG_AGO + 1000)
    assert await tick(store, schedule, LONG_AGO, due) == Ticked("other", LONG_AGO, 0, 0)
    assert kit.cron_state() == {"nightly": row}
    assert kit.messages() == []
    assert (await tick(store, nightly(revision=4), LONG_AGO, due)).fired == 1, "its times are the same: it goes on"
    assert (await tick(store, nightly(revision=3), LONG_AGO + 1000, due)).word == "other"


async def test_a_new_definition_rules_at_once_and_what_ruled_before_takes_nothing_back(store, other, kit):
    old, new = nightly(), nightly("0 4 * * *")
    alive = kit.now_ms() - 5000
    kit.set_cron_state("nightly", row_of(old, LONG_AGO, alive))
    due = Due([LONG_AGO + 1000], 0, LONG_AGO + 1000)
    assert await tick(other, new, LONG_AGO, due) == Ticked("new", alive, 0, 0), "ticks of before are none that were missed"
    assert (await tick(store, old, LONG_AGO, due)).word == "other"
    assert (await tick(store, old)).word == "other", "nor does a worker that has started again"
    assert (await tick(other, new)).word == "kept"
    assert kit.messages() == []
    state = kit.cron_state()["nightly"].split()
    assert (state[1], state[2], state[4]) == (new.when_hash, new.whole_hash, old.whole_hash)


async def test_what_ruled_before_rules_again_once_what_followed_it_is_silent_for_a_minute(store, kit):
    old, new = nightly(), nightly("0 4 * * *")
    silent = kit.now_ms() - 61_000
    kit.set_cron_state("nightly", row_of(new, LONG_AGO, silent, old.whole_hash))
    assert await tick(store, old) == Ticked("new", silent, 0, 0), "without a gap"
    assert kit.cron_state()["nightly"].split()[4] == new.whole_hash


async def test_a_definition_with_the_same_times_goes_on_where_the_one_before_was(store, kit):
    old, new = nightly(), nightly(data=msgspec.Raw(b"[]"))
    kit.set_cron_state("nightly", row_of(old, LONG_AGO, kit.now_ms()))
    assert (await tick(store, new, LONG_AGO, Due([LONG_AGO + 1000], 0, LONG_AGO + 1000))).fired == 1
    assert [message["data"] for message in kit.messages()] == ["[]"]


async def test_eight_of_those_that_ruled_before_are_remembered(store, kit):
    versions = [nightly(cap=cap) for cap in range(1, 12)]
    kit.set_cron_state("nightly", row_of(versions[0], LONG_AGO, kit.now_ms()))
    for version in versions[1:]:
        assert (await tick(store, version)).word == "kept"
    assert kit.cron_state()["nightly"].split()[4].split(",") == [version.whole_hash for version in versions[2:10]]


async def test_where_the_clock_went_back_the_last_time_is_set_back_and_told(store, kit):
    schedule, now_ms = nightly(), kit.now_ms()
    kit.set_cron_state("nightly", row_of(schedule, now_ms + 3_600_000, now_ms + 3_600_000))
    ticked = await tick(store, schedule, now_ms + 3_600_000)
    assert ticked.word == "ahead"
    assert now_ms <= ticked.last_ms <= kit.now_ms()
    assert (await tick(store, schedule)).word == "kept"
    kit.set_cron_state("nightly", row_of(schedule, now_ms + 20_000, now_ms))
    assert await tick(store, schedule) == Ticked("kept", now_ms + 20_000, 0, 0), "a small step is waited for"


async def test_where_the_clock_went_back_what_followed_counts_as_silent_a_minute_later_all_the_same(store, kit):
    old, new = nightly(), nightly("0 4 * * *")
    now_ms = kit.now_ms()
    kit.set_cron_state("nightly", row_of(new, LONG_AGO, now_ms + 3_600_000, old.whole_hash))
    assert (await tick(store, old)).word == "other"
    assert now_ms <= int(kit.cron_state()["nightly"].split()[3]) <= kit.now_ms()


@pytest.mark.parametrize("row", ["", "rubbish", "1000 ab cd", "99999999999999999999 ab cd 5 -", "x ab cd 5 - 3f"])
async def test_a_row_that_cannot_be_read_begins_anew(store, kit, row):
    kit.set_cron_state("nightly", row)
    ticked = await tick(store, nightly(), LONG_AGO, Due([LONG_AGO + 1000], 0, LONG_AGO + 1000))
    assert ticked.word == "new"
    assert kit.cron_state() == {"nightly": row_of(nightly(), ticked.last_ms, ticked.last_ms)}


async def test_a_year_behind_the_newest_ticks_fire_in_one_call(store, kit):
    schedule = nightly("* * * * *", missed="all")
    now_ms = kit.now_ms()
    last_ms = now_ms - 365 * 86_400_000
    kit.set_cron_state("nightly", row_of(schedule, last_ms, last_ms))
    due = schedule.due(last_ms, now_ms)
    assert (await tick(store, schedule, last_ms, due)).fired in (101, 102)
    assert (await tick(store, schedule)).last_ms == due.last_ms
    assert schedule.due(due.last_ms, now_ms) == Due([], 0, due.last_ms)


async def test_many_schedules_are_asked_for_in_calls_that_are_short_enough(store, kit):
    several = [nightly(name=f"n{number}", data=msgspec.Raw(b'"%b"' % (b"x" * 20_000))) for number in range(250)]
    for schedule in several:
        kit.set_cron_state(schedule.name, row_of(schedule, LONG_AGO, kit.now_ms()))
    now_ms, ticked = await store.tick(
        [TickAsk(one, LONG_AGO, Due([LONG_AGO + 1], 0, LONG_AGO + 1)) for one in several], kit.now_ms()
    )
    assert now_ms <= kit.now_ms()
    assert ticked == [Ticked("fired", LONG_AGO + 1, 1, 0)] * 250
    assert [message["id"] for message in kit.messages()] == [f"cron:n{number}:{LONG_AGO + 1}" for number in range(250)]


async def test_rows_that_nobody_has_confirmed_for_a_week_go(store, kit):
    now_ms = kit.now_ms()
    for name, days in (("old", 8), ("young", 6), ("nightly", 9)):
        kit.set_cron_state(name, row_of(nightly(), LONG_AGO, now_ms - days * 86_400_000))
    await store.tick([TickAsk(nightly(), None, NOTHING)], now_ms)
    assert kit.cron_state().keys() == {"old", "young", "nightly"}
    await store.tick([TickAsk(nightly(), None, NOTHING)], now_ms, True)
    assert kit.cron_state().keys() == {"young", "nightly"}


async def test_a_step_of_an_operation_that_is_not_there_says_so(store, kit):
    assert await store.step("one") == Step("gone", -1)


async def test_definitions_are_read_as_they_stand(store, kit):
    assert await store.definitions() == {}
    kit.set_schedule("nightly", "1 {}")
    assert await store.definitions() == {"nightly": "1 {}"}


# --- what jobs say ----------------------------------------------------------------------------------------------


async def test_what_jobs_say_is_written_with_the_counters_and_removed_when_none_says_anything(store, other, kit):
    await store.count(1, [("t high done", 1)], b'{"jobs":[]}')
    await other.count(1, [], b"{}")
    assert (kit.progress(ME), kit.progress(OTHER)) == (b'{"jobs":[]}', b"{}")
    await store.count(1, [("t high done", 1)])
    assert kit.progress(ME) == b'{"jobs":[]}', "nothing new"
    assert await store.count(1, [], b"") == ""
    assert (kit.progress(ME), kit.progress(OTHER)) == (None, b"{}")


async def test_the_row_of_a_worker_is_written_with_the_counters_and_not_once_it_was_forgotten(store, other, kit):
    told = WorkerRow(30_000, jobs=[("high/1-0", 5, "t")])
    await store.beat(WorkerRow(30_000))
    await store.count(1, [], row=told)
    assert {name: row for name, (_, row) in (await other.workers()).items()} == {ME: told}
    assert await store.forget(ME)
    await store.count(1, [], row=told)
    await other.beat(WorkerRow(30_000))
    assert list(kit.rows()) == [OTHER], "else it would stay for ever: no sweep looks for a row without a worker"


async def test_runs_that_ended_are_added_to_the_events(store, kit):
    one = Ended("j", "t", "high/1-0", "retry", 2, 17, 5, 6, ME, "v1", "E: ü", "a.py:1 f", "0" * 32)
    await store.count(1, [], events=[one, Ended(id="k")])
    told = {"type": "t", "place": "high/1-0", "outcome": "retry", "attempt": "2", "at": "17", "wait": "5", "run": "6", "by": ME}
    assert kit.events() == [
        {"id": "j", **told, "app": "v1", "error": "E: ü", "frame": "a.py:1 f", "trace": "0" * 32},
        {"id": "k"},
    ]


async def test_how_many_wait_is_set_in_the_minute_and_not_added(store, kit):
    await store.count(7, [("t high done", 1)], depths={HIGH: 5, 3: 2})
    await store.count(7, [("t high done", 1)], depths={HIGH: 4})
    assert kit.minute(7) == {"t high done": "2", " high depth": "4", " low depth": "2"}


async def test_the_lines_of_attempts_that_ended_are_added_to_the_logs(store, kit):
    ended = [Attempt(f"j{n}", "t", n, f"high/{n}-0", "retry", 17, "a\n\x00ü", 3, "E: ü") for n in (1, 2)]
    kit.order(("set", "limit:t", "{}"))
    assert await store.count(1, [], None, ended) == "1", "the version of the rules is answered all the same"
    told = {"type": "t", "outcome": "retry", "at": "17", "text": "a\n\x00ü", "before": "3", "error": "E: ü"}
    assert kit.logs() == [{"id": f"j{n}", "attempt": str(n), "place": f"high/{n}-0", **told} for n in (1, 2)]


async def test_marks_are_one_value_for_each_piece_of_work(store, other):
    assert await store.marks_of("w") is None
    await store.set_marks("w", b"\x00\xff")
    await store.set_marks("v", b"")
    assert (await other.marks_of("w"), await other.marks_of("v")) == (b"\x00\xff", b"")
    await other.set_marks("w", b"more")
    assert await store.marks_of("w") == b"more"
    await store.delete_marks("w")
    await store.delete_marks("w")
    assert (await other.marks_of("w"), await other.marks_of("v")) == (None, b"")
