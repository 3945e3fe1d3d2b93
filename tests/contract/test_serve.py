"""The verb `serve`: what leaves the lots of a gate, with which permits and tokens, and how a gate heals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from runtime.errors import StoreUnavailable
from runtime.jobs import STREAMS, Parking
from runtime.limits import NO_LIMITS, Limits, Rate
from runtime.store.base import KEY_LIFE_MS, WorkerRow
from runtime.store.shapes import EMPTY, SHORT, Serve, Served
from runtime.streams import Streams
from tests.contract.kit import HIGH, LEASE_MS, ME, OTHER, ServerKit, batch, jobs_of, leases, pending, quiet_guard

CRITICAL, LOW = 0, 3
LOT = "~g:t"
LONG_AGO_MS = 1
HOURLY = Rate(1, 3_600_000)
JUNK = (
    "",
    "x",
    "high/",
    "high/1-1 ",
    "high/1",
    "nowhere/1-1",
    "high/99999999999999999999999-1",
    "high/1-99999999999999999999999",
)


def parked(kit: Any, n: int = 1, lot: str = LOT, to: int = HIGH, count: int = 0, **fields: str) -> list[str]:
    """Add entries that wait in a lot."""
    entries = [kit.add(to, **fields) for _ in range(n)]
    kit.read_as("somebody", to)
    for entry in entries:
        kit.claim(entry, lot, count, stream=to)
    return entries


async def ask(store: Streams, limits: Limits = NO_LIMITS, n: int = 100, n_others: int | None = None, **told: Any) -> Served:
    """Ask one gate; its lot on HIGH, where no others are named."""
    lots = told.pop("lots", [(HIGH, LOT, "")])
    serve = Serve("t", limits, n, n if n_others is None else n_others, lots, **told)
    _, [served] = await store.serve([], [serve])
    assert served.error == ""
    return served


def given(served: Served) -> list[str]:
    """Return what came, in order."""
    deliveries = served.fetched.deliveries
    return [entry.decode() for delivery in deliveries for entry, *_ in [*delivery.rows, *delivery.oversized]]


def places(entries: Sequence[str], stream: int = HIGH) -> list[str]:
    return [f"{STREAMS[stream]}/{entry}" for entry in entries]


def free(entries: Sequence[str], group: str = "") -> list[tuple[str, str]]:
    return [(group, place) for place in places(entries)]


async def done(kit: Any, store: Streams, entries: Sequence[str]) -> None:
    """Settle what this worker holds."""
    held = {lease.entry.decode(): lease for lease in await store.leased()}
    for entry in entries:
        kit.delete(entry, held[entry].stream)
    await store.serve([(held[entry], LOT) for entry in entries], [])  # a claim of what is gone takes it off the list


# --- what comes, and how much -------------------------------------------------------------------------------------------------


async def test_what_waits_comes_in_the_order_of_entries_and_a_job_that_is_given_back_has_its_old_place(store, kit):
    entries = parked(kit, 5)
    assert given(await ask(store, n=2)) == entries[:2]
    held = [lease for lease in await store.leased() if lease.entry.decode() == entries[0]]
    refused, [served] = await store.serve([(held[0], LOT)], [Serve("t", NO_LIMITS, 2, 2, [(HIGH, LOT, "")])])
    assert (refused, given(served)) == (0, [entries[0], entries[2]])
    assert {count for delivery in served.fetched.deliveries for count in delivery.counts} == {1}
    assert [kit.holders()[entry] for entry in entries] == [(ME, 1)] * 3 + [(LOT, 0)] * 2
    assert abs(served.fetched.now_ms - kit.now_ms()) < 60_000
    assert served.fetched.run_id == held[0].run_id


async def test_what_is_not_ours_any_more_is_not_parked_and_counted(store, kit):
    kit.add()
    [lease] = await leases(store)
    kit.claim(lease.entry, OTHER)
    assert await store.serve([(lease, LOT)], []) == (1, [])
    assert pending(kit) == [(OTHER, 1)]


async def test_lots_share_what_may_come_and_each_has_a_part(store, kit):
    parked(kit, 10, "~g:t:a")
    parked(kit, 2, "~g:t:b")
    parked(kit, 10, "~g:t:c")
    lots = [(HIGH, f"~g:t:{group}", group) for group in "abc"]
    served = await ask(store, n=9, lots=lots)
    assert (len(given(served)), served.lots) == (9, [0, EMPTY, 0])
    assert sorted(holder for holder, _ in pending(kit)) == [ME] * 9 + ["~g:t:a"] * 7 + ["~g:t:c"] * 6
    assert len(given(await ask(store, n=1, lots=lots))) == 1, "less than one for each: the first that is asked"


async def test_of_other_streams_than_critical_come_no_more_than_are_asked_for(store, kit):
    critical, high = parked(kit, 3, to=CRITICAL), parked(kit, 3)
    low = parked(kit, 3, to=LOW)
    lots = [(CRITICAL, LOT, ""), (HIGH, LOT, ""), (LOW, LOT, "")]
    served = await ask(store, n=5, n_others=2, lots=lots)
    assert given(served) == [critical[0], high[0], low[0]]
    served = await ask(store, n=5, n_others=0, lots=lots)
    assert (given(served), served.lots, served.stands) == (critical[1:2], [0, 0, 0], 0)
    assert given(await ask(store, n=1, lots=lots)) == critical[2:]
    assert given(await ask(store, n=0, lots=lots)) == []


async def test_a_gate_without_limits_gives_all_that_waits_and_forgets_the_lot(store, kit):
    entries = parked(kit, 700)
    first = await ask(store, n=1000)
    assert (given(first), first.stands, first.lots) == (entries[:500], 0, [0])
    second = await ask(store, n=1000)
    assert (given(second), second.stands, second.lots) == (entries[500:], 0, [EMPTY])
    assert (await ask(store)).lots == [EMPTY]
    assert (kit.permits(), kit.rates()) == ({}, {})


async def test_suspects_move_on_to_their_lot_and_get_no_permit(store, kit):
    entries = parked(kit, 3)
    for entry, count in zip(entries, (1, 0, 2), strict=True):
        kit.claim(entry, LOT, count)
    served = await ask(store, Limits(limit=5))
    assert (given(served), served.lots) == ([entries[1]], [EMPTY])
    assert [kit.holders()[entry] for entry in entries] == [("~suspect", 1), (ME, 1), ("~suspect", 2)]
    assert list(kit.permits()["t"]) == places(entries[1:2])


async def test_as_many_bytes_come_as_are_asked_for_and_one_entry_at_least(store, kit):
    entries = parked(kit, 30, data="x" * 100_000)
    store.budget_bytes = 1_000_000
    assert given(await ask(store, Limits(limit=100))) == entries[:10]
    store.budget_bytes = 1
    served = await ask(store, Limits(limit=100))
    assert (given(served), served.stands, served.lots) == (entries[10:11], 0, [0])
    assert len(kit.permits()["t"]) == 11
    two = [Serve("t", NO_LIMITS, 100, 100, [(HIGH, LOT, "")])] * 2
    store.budget_bytes = 1_000_000
    _, served_twice = await store.serve([], two)
    assert [len(given(served)) for served in served_twice] == [5, 5], "both together"


# --- free of charge -----------------------------------------------------------------------------------------------------------


async def test_what_does_not_start_comes_free_of_charge_before_what_does(store, kit):
    late = parked(kit, 150, exp="1")
    [live, waits] = parked(kit, 2, exp=str(kit.now_ms() + 10**7))
    served = await ask(store, Limits(limit=1, rate=HOURLY), n=1)
    assert given(served) == [*late, live]
    assert (list(kit.permits()["t"]), served.stands) == (places([live]), SHORT)
    assert kit.holders()[waits] == (LOT, 0)


@pytest.mark.parametrize("exp", ["0", "", "nan", "-5", " 5", "1.5", "1e3", "0x10", "inf", "9007199254740000"])
async def test_an_exp_that_does_not_end_a_job_is_none(store, kit, exp):
    """As admission has it: what comes free of charge must not run."""
    parked(kit, 3, exp=exp)
    assert len(given(await ask(store, Limits(limit=2)))) == 2
    assert len(kit.permits()["t"]) == 2


async def test_of_what_is_too_large_the_size_comes_free_of_charge(kit):
    store = kit.streams(ME, max_data_bytes=1000)
    await store.start()
    size = store.max_entry_bytes + 1
    [large] = parked(kit, 1, data="x" * size)
    [small] = parked(kit)
    [delivery] = (await ask(store, Limits(limit=1, rate=HOURLY))).fetched.deliveries
    assert list(delivery.oversized) == [(large.encode(), 1, size + len("typetdata"))]
    assert [entry for entry, _ in delivery.rows] == [small.encode()]
    assert list(kit.permits()["t"]) == places([small])


async def test_what_was_deleted_leaves_its_lot_free_of_charge(store, kit):
    entries = parked(kit, 3)
    kit.delete(entries[0])
    served = await ask(store, Limits(limit=1))
    assert (given(served), served.stands, served.lots) == ([entries[1]], SHORT, [0])
    assert sorted(kit.holders()) == sorted(entries[1:])


# --- permits ------------------------------------------------------------------------------------------------------------------


async def test_no_more_run_than_the_limit_and_each_that_is_free_again_lets_one_start(store, kit):
    entries = parked(kit, 6)
    served = await ask(store, Limits(limit=3))
    assert (given(served), served.stands, served.lots) == (entries[:3], SHORT, [0])
    assert sorted(kit.permits()["t"]) == places(entries[:3])
    assert given(await ask(store, Limits(limit=3))) == []
    await done(kit, store, entries[:2])
    served = await ask(store, Limits(limit=3), freed=free(entries[:2]))
    assert (given(served), served.stands) == (entries[3:5], SHORT)
    served = await ask(store, Limits(limit=3), n=0, freed=free(entries[:2]))
    assert (given(served), sorted(kit.permits()["t"])) == ([], places(entries[2:5])), "told twice, it frees nothing"


async def test_a_place_that_somebody_holds_again_is_not_freed(store, other, kit):
    [entry, _] = parked(kit, 2)
    await ask(store, Limits(limit=1))
    kit.claim(entry, OTHER, 1)
    served = await ask(store, Limits(limit=1), freed=free([entry]))
    assert (given(served), served.stands) == ([], SHORT)
    assert list(kit.permits()["t"]) == places([entry])
    kit.claim(entry, "~free", 0)
    assert len(given(await ask(store, Limits(limit=1), freed=free([entry])))) == 1


async def test_what_is_noted_holds_a_permit_whatever_the_limit(store, kit):
    entries = [kit.add() for _ in range(3)]
    kit.read_as(ME)
    parked(kit)
    served = await ask(store, Limits(limit=2), noted=free(entries))
    assert (given(served), served.stands) == ([], SHORT)
    assert sorted(kit.permits()["t"]) == places(entries)
    assert given(await ask(store, Limits(limit=4), n=0)) == []
    assert len(given(await ask(store, Limits(limit=4)))) == 1


async def test_what_is_noted_and_has_ended_by_then_holds_no_permit(store, kit):
    """A limit is set while it runs: that it runs is told with its end, or after that, down another connection."""
    entries = [kit.add() for _ in range(2)]
    kit.read_as(ME)
    await done(kit, store, entries[:1])
    await ask(store, Limits(limit=2), freed=free(entries[:1]), noted=free(entries))
    assert list(kit.permits()["t"]) == places(entries[1:])


async def test_a_limit_that_is_lowered_below_what_runs_gives_nothing_until_enough_have_ended(store, kit):
    entries = parked(kit, 10)
    await ask(store, Limits(limit=5))
    for ended in range(4):
        await done(kit, store, entries[ended : ended + 1])
        served = await ask(store, Limits(limit=2), freed=free(entries[ended : ended + 1]))
        assert len(given(served)) == (1 if ended == 3 else 0)
        assert served.stands == SHORT


async def test_each_group_has_its_own_permits_beside_those_of_the_type(store, kit):
    lots = [(HIGH, f"~g:t:{group}", group) for group in "abc"]
    for _, lot, group in lots:
        parked(kit, 3, lot, group=group)
    served = await ask(store, Limits(limit=5, group_limit=2), lots=lots)
    assert (len(given(served)), served.stands) == (5, SHORT)
    assert {gate: len(held) for gate, held in kit.permits().items()} == {"t": 5, "t:a": 1, "t:b": 2, "t:c": 2}
    assert served.lots == [0, SHORT, SHORT]
    served = await ask(store, Limits(group_limit=2), lots=lots)
    assert (len(given(served)), served.stands, served.lots) == (1, 0, [SHORT] * 3)


async def test_a_group_that_is_short_keeps_no_other_from_starting(store, kit):
    lots = [(HIGH, f"~g:t:{group}", group) for group in "ab"]
    [first, *_] = parked(kit, 3, "~g:t:a", group="a")
    parked(kit, 3, "~g:t:b", group="b")
    await ask(store, Limits(group_limit=1), lots=lots)
    await done(kit, store, [first])
    served = await ask(store, Limits(group_limit=1), lots=lots, freed=free([first], "a"))
    assert (len(given(served)), served.lots) == (1, [SHORT, SHORT])
    assert {gate: len(held) for gate, held in kit.permits().items()} == {"t:a": 1, "t:b": 1}


async def test_entries_of_the_shared_lot_ask_each_the_gate_of_its_group(store, kit):
    entries = [parked(kit, 1, "~o:t", **({"group": group} if group else {}))[0] for group in ("a", "a", "b", "", "a", "b", "")]
    served = await ask(store, Limits(group_limit=1), lots=[(HIGH, "~o:t", "")])
    assert given(served) == [entries[at] for at in (0, 2, 3, 6)]
    assert (served.stands, served.lots) == (0, [SHORT])
    assert {gate: list(held) for gate, held in kit.permits().items()} == {
        "t:a": places(entries[:1]),
        "t:b": places(entries[2:3]),
    }
    served = await ask(store, Limits(group_limit=1), lots=[(HIGH, "~o:t", "")])
    assert (given(served), served.lots) == ([], [SHORT])
    await done(kit, store, [entries[2]])
    served = await ask(store, Limits(group_limit=1), lots=[(HIGH, "~o:t", "")], freed=free([entries[2]], "b"))
    assert given(served) == [entries[5]]


async def test_what_was_parked_before_groups_were_bounded_asks_the_gate_of_its_group_too(store, kit):
    entries = [parked(kit, 1, group=group)[0] for group in "aab"]
    served = await ask(store, Limits(group_limit=1))
    assert (given(served), served.lots) == ([entries[0], entries[2]], [SHORT])
    assert sorted(kit.permits()) == ["t:a", "t:b"]


async def test_the_last_of_two_groups_in_an_entry_counts_as_the_worker_reads_it(valkey):
    kit = ServerKit(valkey)
    store = kit.streams(ME)
    await store.start()
    words = ("type", "t", "data", "{}", "group", "a", "group", "b")
    kit.raw.execute_command("XADD", "{jobs}:high", "*", *words)
    kit.read_as("~o:t")
    kit.claim(next(iter(kit.holders())), "~o:t", 0)
    [job] = jobs_of((await ask(store, Limits(group_limit=1), lots=[(HIGH, "~o:t", "")])).fetched)
    assert list(kit.permits()) == [f"t:{job.envelope.group.decode()}"] == ["t:b"]
    await kit.close()


# --- a gate heals -------------------------------------------------------------------------------------------------------------


async def test_a_full_gate_takes_back_the_permits_of_what_is_gone_or_waits_in_a_lot(store, kit):
    entries = parked(kit, 8)
    await ask(store, Limits(limit=4))
    held = {lease.entry.decode(): lease for lease in await store.leased()}
    kit.set_permits("t", dict.fromkeys(places(entries[:4]), LONG_AGO_MS))
    await store.settle(batch(Parking(held[entries[1]], "~free")))
    await done(kit, store, [entries[2]])
    served = await ask(store, Limits(limit=4))
    assert (given(served), served.stands) == (entries[4:6], SHORT)
    seen_ms = kit.permits()["t"]
    assert sorted(seen_ms) == sorted(places([entries[0], *entries[3:6]]))
    assert min(seen_ms.values()) > LONG_AGO_MS, "what runs was seen to"


async def test_what_a_dead_worker_had_keeps_its_permit_until_it_has_run_again_or_waited_for_long(store, other, kit):
    entries = parked(kit, 4)
    await ask(store, Limits(limit=2))
    kit.set_permits("t", dict.fromkeys(places(entries[:2]), LONG_AGO_MS))
    assert given(await ask(other, Limits(limit=2))) == [], "no clock frees a permit"
    quiet_guard(kit)
    for entry in entries[:2]:
        kit.claim(entry, ME, idle_ms=LEASE_MS + 10_000)
    kit.set_until({ME: 1})
    assert (await other.reclaim(HIGH, LEASE_MS, 100, {})).dead == 2
    kit.set_permits("t", dict.fromkeys(places(entries[:2]), LONG_AGO_MS))
    told = await ask(other, Limits(limit=2), freed=free(entries[:2]))
    assert (given(told), told.stands) == ([], SHORT), "they run next, whatever the limit: others would be beside them"
    kit.set_permits("t", dict.fromkeys(places(entries[:2]), LONG_AGO_MS))
    kit.claim(entries[0], "~suspect", idle_ms=59_000)
    kit.claim(entries[1], "~suspect", idle_ms=61_000)
    assert given(await ask(other, Limits(limit=2))) == entries[2:3]


async def test_a_look_at_a_full_gate_takes_up_to_twenty_permits(store, kit):
    parked(kit, 60)
    kit.set_permits("t", {f"high/1-{n}": float(n) for n in range(1, 51)})
    for ahead in (False, True):
        if ahead:
            kit.set_permits("t", {place: 1e15 + seen_ms for place, seen_ms in kit.permits()["t"].items() if seen_ms < 100})
        assert len(given(await ask(store, Limits(limit=50)))) == 20
    assert len(given(await ask(store, Limits(limit=50)))) == 10
    assert given(await ask(store, Limits(limit=50))) == []


@pytest.mark.parametrize("seen_ms", [LONG_AGO_MS, 1e15])
async def test_a_permit_that_nobody_uses_is_found_while_others_come_and_go(store, kit, seen_ms):
    """Each look comes with a permit that is free again: the gate is never full."""
    entries = parked(kit, 3)
    kit.set_permits("t", {"high/1-1": seen_ms})
    assert given(await ask(store, Limits(limit=2))) == entries[:2]


async def test_a_permit_that_was_seen_within_a_second_is_not_looked_at(store, kit):
    parked(kit)
    seen_ms = kit.now_ms()
    kit.set_permits("t", {"high/1-1": seen_ms})
    served = await ask(store, Limits(limit=1))
    assert given(served) == [] or kit.now_ms() >= seen_ms + 1000, "a machine that stood still for a second"


@pytest.mark.parametrize("seen_ms", [float("inf"), float("-inf"), 1e15, LONG_AGO_MS])
async def test_permits_that_strangers_wrote_are_taken_back_whatever_they_say(store, kit, seen_ms):
    entries = parked(kit, 9)
    kit.set_permits("t", dict.fromkeys(JUNK, seen_ms))
    assert given(await ask(store, Limits(limit=8))) == entries[:8]
    assert sorted(kit.permits()["t"]) == places(entries[:8])


# --- rates --------------------------------------------------------------------------------------------------------------------


async def test_a_token_is_taken_for_each_that_starts_and_the_answer_says_when_the_next_comes(store, kit):
    entries = parked(kit, 3)
    served = await ask(store, Limits(rate=HOURLY))
    assert (given(served), served.lots) == (entries[:1], [0])
    assert served.stands == 3_600_000
    tat_us = int(kit.rates()["t"])
    assert 0 <= tat_us / 1000 - served.fetched.now_ms - 3_600_000 < 1
    again = await ask(store, Limits(rate=HOURLY))
    assert (given(again), int(kit.rates()["t"])) == ([], tat_us)
    assert 0 < again.stands <= 3_600_000
    kit.set_rate("t", str(served.fetched.now_ms * 1000))
    assert given(await ask(store, Limits(rate=HOURLY))) == entries[1:2]


async def test_each_group_has_its_own_tokens_beside_those_of_the_type(store, kit):
    lots = [(HIGH, f"~g:t:{group}", group) for group in "ab"]
    for _, lot, group in lots:
        parked(kit, 3, lot, group=group)
    served = await ask(store, Limits(group_rate=HOURLY), lots=lots)
    assert (len(given(served)), served.stands, served.lots) == (2, 0, [3_600_000] * 2)
    assert sorted(kit.rates()) == ["t:a", "t:b"]
    kit.set_rate("t:b", "0")
    both = Limits(rate=HOURLY, group_rate=HOURLY)
    served = await ask(store, both, lots=lots)
    assert (len(given(served)), served.stands) == (1, 3_600_000)
    kit.set_rate("t:a", "0")
    assert given(await ask(store, both, lots=lots)) == []
    assert kit.rates()["t:a"] == "0", "what the type keeps back costs a group nothing"


async def test_limit_and_rate_hold_together_and_the_permit_is_told_first(store, kit):
    entries = parked(kit, 4)
    served = await ask(store, Limits(limit=1, rate=HOURLY))
    assert (given(served), served.stands) == (entries[:1], SHORT)
    await done(kit, store, entries[:1])
    served = await ask(store, Limits(limit=1, rate=HOURLY), freed=free(entries[:1]))
    assert (given(served), 0 < served.stands <= 3_600_000) == ([], True)
    kit.set_rate("t", "0")
    assert given(await ask(store, Limits(limit=1, rate=HOURLY))) == entries[1:2]
    kit.set_rate("t", "0")
    assert given(await ask(store, Limits(limit=1, rate=HOURLY))) == []
    assert kit.rates()["t"] == "0", "without a permit no token is taken"


@pytest.mark.parametrize("ahead", ["{far}", "inf", "nan", "1e300"])
async def test_a_time_far_ahead_is_set_back_and_written(store, kit, ahead):
    """The clock went back, or the rate was changed: set back in mind alone, it would be as far ahead at the next look."""
    parked(kit)
    kit.set_rate("t", ahead.format(far=(kit.now_ms() + 10**10) * 1000))
    served = await ask(store, Limits(rate=HOURLY))
    assert (given(served), 0 < served.stands <= 3_600_001) == ([], True)
    assert abs(int(kit.rates()["t"]) / 1000 - served.fetched.now_ms - 3_600_000) <= 1


async def test_a_rate_that_was_raised_holds_at_once(store, kit):
    parked(kit, 100)
    await ask(store, Limits(rate=HOURLY))
    quick = Rate(1_000_000, 1000)
    served = await ask(store, Limits(rate=quick))
    assert (given(served), 0 < served.stands <= 26) == ([], True)
    kit.set_rate("t", "0")
    assert len(given(await ask(store, Limits(rate=quick)))) == 99


@pytest.mark.parametrize("text", ["", "x", "-5", "-inf", "0", "1 2", "{}"])
async def test_a_rate_that_is_no_time_begins_anew(store, kit, text):
    entries = parked(kit, 2)
    kit.set_rate("t", text)
    assert given(await ask(store, Limits(rate=HOURLY))) == entries[:1]
    assert int(kit.rates()["t"]) > kit.now_ms() * 1000


# --- what goes wrong ----------------------------------------------------------------------------------------------------------


async def test_what_came_in_a_reply_that_was_lost_is_pending_with_us_and_holds_its_permit(store, other, kit):
    entries = parked(kit, 4)
    await ask(store, n=0)  # the server knows the script
    async with kit.losing("serve", 0) as unlucky:
        with pytest.raises(StoreUnavailable):
            await ask(unlucky, Limits(limit=2))
    assert [kit.holders()[entry] for entry in entries] == [(ME, 1)] * 2 + [(LOT, 0)] * 2
    assert (await ask(other, Limits(limit=2))).stands == SHORT
    await other.beat(WorkerRow(LEASE_MS))
    quiet_guard(kit)
    kit.set_until({ME: kit.now_ms() + 10**6})
    for entry in entries[:2]:
        kit.claim(entry, ME, idle_ms=10 * LEASE_MS)
    assert (await other.reclaim(HIGH, LEASE_MS, 100, {})).undelivered == 2
    kit.set_permits("t", dict.fromkeys(places(entries[:2]), LONG_AGO_MS))
    assert given(await ask(other, Limits(limit=2))) == entries[2:]


# --- what only a server has ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def serving(on_server: ServerKit) -> Streams:
    store = on_server.streams(ME)
    await store.start()
    return store


@pytest.mark.parametrize("kind", ["permits", "rate"])
async def test_a_key_of_another_type_in_the_place_of_a_gates_own_bars_that_type_alone(on_server, serving, kind):
    parked(on_server)
    [other] = parked(on_server, lot="~g:u", type="u")
    on_server.raw.lpush(f"{{jobs}}:{kind}:t", "x")
    limits, before = Limits(limit=2, rate=HOURLY), on_server.holders()
    free_places, noted = [("", "high/1-1")], [("", "high/2-2")]
    serves = [Serve(name, limits, 5, 5, [(HIGH, f"~g:{name}", "")], free_places, noted) for name in "tu"]
    _, [broken, whole] = await serving.serve([], serves)
    assert (broken.size, "WRONGTYPE" in broken.error) == (0, True)
    assert f"{{jobs}}:{kind}:t" in broken.error
    assert (given(whole), whole.error) == ([other], "")
    assert on_server.holders() == before | {other: (ME, 1)}
    on_server.raw.delete(f"{{jobs}}:{kind}:t")
    assert "t" not in on_server.rates()
    assert on_server.permits().get("t", {}).keys() <= {"high/2-2"}


@pytest.mark.parametrize("kind", ["permits", "rate"])
async def test_a_key_of_another_type_in_the_place_of_a_groups_own_bars_that_group_alone(on_server, serving, kind):
    limits = Limits(limit=9, group_limit=1, group_rate=HOURLY)
    on_server.raw.lpush(f"{{jobs}}:{kind}:t:a", "x")
    running = places([on_server.add()])
    on_server.read_as(ME)
    for lot, groups in (("~g:t:a", "a"), ("~g:t:b", "b"), ("~o:t", "ac")):
        for group in groups:
            parked(on_server, 1, lot, group=group)
    lots = [(HIGH, "~g:t:a", "a"), (HIGH, "~g:t:b", "b"), (HIGH, "~o:t", "")]
    served = await ask(serving, limits, lots=lots, freed=[("a", "high/1-1")], noted=[("a", running[0])])
    assert [job.envelope.group for job in jobs_of(served.fetched)] == [b"b", b"c"]
    assert ("WRONGTYPE" in served.fetched.refused, served.lots) == (True, [SHORT, EMPTY, SHORT])
    assert f"{{jobs}}:{kind}:t:a" in served.fetched.refused
    held = on_server.raw.zrange("{jobs}:permits:t", 0, -1)
    assert (len(held), running[0] in held) == (3, True)


async def test_a_stream_that_cannot_be_read_keeps_no_other_from_giving(on_server, serving):
    entries = parked(on_server)
    parked(on_server, to=CRITICAL)
    on_server.raw.set("{jobs}:critical", "x")
    lots = [(CRITICAL, LOT, ""), (HIGH, LOT, "")]
    served = await ask(serving, Limits(limit=9), lots=lots, freed=[("", "critical/1-1")])
    assert (given(served), served.lots, "WRONGTYPE" in served.fetched.refused) == (entries, [SHORT, EMPTY], True)


async def test_groups_that_have_vanished_are_made_again_and_hold_no_permit(on_server, serving):
    parked(on_server)
    await ask(serving, Limits(limit=1))
    parked(on_server)
    on_server.set_permits("t", dict.fromkeys(on_server.permits()["t"], LONG_AGO_MS))
    on_server.raw.xgroup_destroy("{jobs}:high", "workers")
    assert "NOGROUP" in (await ask(serving, Limits(limit=1))).fetched.refused
    held = await leases(serving)
    assert len(held) == 2, "from the beginning"
    _, [served] = await serving.serve([(lease, LOT) for lease in held], [Serve("t", Limits(limit=1), 5, 5, [(HIGH, LOT, "")])])
    assert served.size == 1


async def test_with_memory_full_a_gate_goes_on(on_server, serving):
    running = on_server.add()
    on_server.read_as(ME)
    entries = parked(on_server, 2)
    on_server.set_rate("t", "inf")
    on_server.raw.config_set("maxmemory", 1)
    try:
        assert given(await ask(serving, Limits(limit=2, rate=HOURLY))) == []
        assert given(await ask(serving, Limits(limit=2), noted=free([running]))) == entries[:1]
        assert given(await ask(serving, Limits(group_rate=HOURLY), lots=[(HIGH, LOT, "g")])) == entries[1:2]
    finally:
        on_server.raw.config_set("maxmemory", 0)
    assert {gate: len(held) for gate, held in on_server.permits().items()} == {"t": 2}
    assert sorted(on_server.rates()) == ["t", "t:g"]


async def test_a_lot_left_empty_is_no_consumer_any_more_and_one_with_entries_stays(on_server, serving):
    parked(on_server)
    parked(on_server, 2, "~g:t:a")
    served = await ask(serving, lots=[(HIGH, LOT, ""), (HIGH, "~g:t:a", "a"), (LOW, "~g:never", "")], n=2)
    assert served.lots == [EMPTY, 0, 0]
    assert [row["name"] for row in on_server.raw.xinfo_consumers("{jobs}:high", "workers")] == [ME, "somebody", "~g:t:a"]


async def test_permits_and_rates_do_not_stay_for_good(on_server, serving):
    parked(on_server, 2)
    await ask(serving, Limits(limit=1, rate=HOURLY))
    assert 0 < on_server.raw.pttl("{jobs}:permits:t") <= KEY_LIFE_MS
    assert 3_599_000 < on_server.raw.pttl("{jobs}:rate:t") <= 3_600_001
    on_server.raw.persist("{jobs}:permits:t")
    on_server.set_permits("t", dict.fromkeys(on_server.permits()["t"], LONG_AGO_MS))
    await ask(serving, Limits(limit=1))
    assert on_server.raw.pttl("{jobs}:permits:t") > 0, "a look makes it last as long again"
    await ask(serving, Limits(limit=1), noted=[("", "high/1-1")])
    assert on_server.raw.pttl("{jobs}:permits:t") > 0


async def test_thousands_of_lots_asked_in_parts_give_all_that_they_hold(on_server, serving):
    number, part = 1200, 100
    entries = [on_server.add(group=f"g{n}") for n in range(number)]
    on_server.read_as("somebody")
    for n, entry in enumerate(entries):
        on_server.claim(entry, f"~g:t:g{n}", 0)
    came: list[str] = []
    for first in range(0, number, part):
        lots = [(HIGH, f"~g:t:g{n}", f"g{n}") for n in range(first, first + part)]
        served = await ask(serving, Limits(limit=number, group_limit=1, group_rate=HOURLY), lots=lots)
        assert served.lots == [EMPTY] * part
        came += given(served)
    assert came == entries
    assert (await ask(serving, Limits(limit=number), freed=free(came[:1000]))).stands == SHORT
    assert len(on_server.permits()["t"]) == number, "they all run"
    await done(on_server, serving, came)
    await ask(serving, Limits(limit=number), freed=free(came))
    assert "t" not in on_server.permits()
