"""Gates: which lots are asked, when, and what an answer tells; the clock is given."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runtime.backoff import Backoff
from runtime.jobs import CRITICAL, Envelope, Handler, Job, contract, contract_of
from runtime.limits import NO_LIMITS, Limits, limits_of
from runtime.rules import Rules, parse
from runtime.store.shapes import EMPTY, SHORT, Fetched, Served
from runtime.worker.gates import ASKED_LOTS, ERROR_S, LOOK_S, MAX_LOTS, OWN_PAUSE_S, TOKEN_S, Asked, Gates

NOW_MS = 1_700_000_000_000
LOW = 3


@contract("gated")
class Gated(msgspec.Struct):
    pass


@contract("plain")
class Plain(msgspec.Struct):
    pass


async def _never(payload: Any, job: Job) -> None:
    raise AssertionError("no lane runs here")


def gates_of(limits: Limits = NO_LIMITS) -> Gates:
    bounds = {b"gated": limits, b"plain": NO_LIMITS}
    kinds = {b"gated": Gated, b"plain": Plain}
    return Gates(
        {
            name: Handler(contract_of(kind), _never, _never, _never, 30.0, Backoff(), "loop", bounds[name])
            for name, kind in kinds.items()
        }
    )


def job(number: int, stream: int = LOW, group: str = "", type_name: bytes = b"gated") -> Job:
    return Job(stream, b"%d-0" % number, 1, "run/1", 0.0, type_name, b"{}", Envelope(group=group.encode()), NOW_MS)


def rules(**fields: str) -> Rules:
    return parse([(name.replace("__", ":").encode(), value.encode()) for name, value in fields.items()])


def ask(gates: Gates, now_s: float, n: int = 10, n_others: int = 10) -> Asked | None:
    due = gates.due(now_s)
    return gates.ask(due[0], now_s, n, n_others) if due else None


def answer(gates: Gates, asked: Asked | None, stands: int, *lots: int, now_s: float = 0.0) -> None:
    assert asked is not None
    gates.answered(asked, Served(Fetched(NOW_MS, "run/1", [], set()), stands, lots), now_s)


def test_a_type_without_limits_has_no_gate():
    gates = gates_of()
    assert gates.closed == {}
    assert gates.next_look_s(0.0) == float("inf")
    assert gates_of(limits_of(limit=1)).closed.keys() == {b"gated"}


def test_what_waits_is_asked_for_at_once_and_after_its_answer_when_that_says():
    gates = gates_of(limits_of(rate="10/s"))
    assert gates.park(job(1)) == "~g:gated"
    asked = ask(gates, 0.0)
    assert asked is not None
    assert [*asked.serve.lots] == [(LOW, "~g:gated", "")]
    answer(gates, asked, 100, 0)
    assert gates.due(0.099) == []
    assert gates.next_look_s(0.0) == pytest.approx(0.1)
    answer(gates, ask(gates, 0.1), 1, 0, now_s=0.1)
    assert gates.next_look_s(0.1) == pytest.approx(TOKEN_S), "at most a hundred looks a second"
    answer(gates, ask(gates, 0.2), 0, EMPTY, now_s=0.2)
    assert gates.next_look_s(0.2) == float("inf")


def test_a_full_gate_is_looked_at_now_and_then_and_at_once_when_a_permit_came_free_here():
    gates = gates_of(limits_of(limit=1))
    gates.park(job(1))
    answer(gates, ask(gates, 0.0), SHORT, 0)
    assert gates.next_look_s(0.0) == pytest.approx(LOOK_S)
    gates.settled([job(7)])
    asked = ask(gates, 0.0)
    assert asked is not None
    assert [*asked.serve.freed] == [("", "low/7-0")]
    assert gates.with_news() == [], "it is told once"


def test_a_permit_that_comes_free_hurries_no_rate():
    gates = gates_of(limits_of(limit=5, rate="1/s"))
    gates.park(job(1))
    answer(gates, ask(gates, 0.0), 900, 0)
    gates.settled([job(7)])
    assert gates.due(0.5) == []
    assert len(gates.with_news()) == 1


def test_an_answer_tells_nothing_of_what_came_after_its_question():
    gates = gates_of(limits_of(limit=1))
    gates.park(job(1))
    asked = ask(gates, 0.0)
    gates.park(job(2))
    answer(gates, asked, 0, EMPTY)
    assert len(gates.due(0.0)) == 1, "the lot was filled again meanwhile"
    asked = ask(gates, 0.0)
    gates.settled([job(7)])
    answer(gates, asked, SHORT, 0)
    assert len(gates.due(0.0)) == 1, "a permit came free meanwhile"


def test_what_was_told_without_an_answer_is_told_again():
    gates = gates_of(limits_of(limit=1))
    gates.settled([job(7)])
    gates.note([job(8)])
    (gate,) = gates.with_news()
    asked = gates.ask(gate, 0.0, 0, 0)
    assert gates.with_news() == []
    gates.unanswered([asked])
    again = gates.ask(gates.with_news()[0], 0.0, 0, 0)
    assert ([*again.serve.freed], [*again.serve.noted]) == ([("", "low/7-0")], [("", "low/8-0")])


def test_a_gate_that_answers_with_an_error_is_asked_again_after_a_while():
    gates = gates_of(limits_of(limit=1))
    gates.park(job(1))
    asked = ask(gates, 0.0)
    assert asked is not None
    gates.answered(asked, Served(Fetched(0, "", [], set()), error="WRONGTYPE"), 0.0)
    assert gates.due(ERROR_S / 2) == []
    assert len(gates.due(ERROR_S)) == 1


def test_groups_wait_apart_and_a_full_one_keeps_no_other():
    gates = gates_of(limits_of(group_limit=1))
    assert gates.park(job(1, group="a")) == "~g:gated:a"
    assert gates.park(job(2, group="b:c")) == "~g:gated:b:c"
    assert gates.park(job(3)) == "~g:gated"
    answer(gates, ask(gates, 0.0), 0, SHORT, 0, 50)
    asked = ask(gates, 0.0)
    assert asked is not None
    assert [*asked.serve.lots] == [(LOW, "~g:gated:b:c", "b:c")]
    gates.settled([job(9, group="a")])
    asked = ask(gates, 0.0)
    assert asked is not None
    assert {name for _, name, _ in asked.serve.lots} == {"~g:gated:a", "~g:gated:b:c"}


def test_without_limits_per_group_all_wait_together_in_the_order_of_entries():
    gates = gates_of(limits_of(limit=1))
    assert gates.park(job(1, group="a")) == gates.park(job(2, group="b")) == "~g:gated"
    gates.settled([job(1, group="a")])
    assert len(gates.due(0.0)) == 1


def test_many_groups_are_asked_in_turn_and_critical_first():
    gates = gates_of(limits_of(group_limit=1))
    for n in range(3 * ASKED_LOTS):
        gates.park(job(n, group=str(n)))
    gates.park(job(9999, stream=CRITICAL, group="first"))
    seen: set[str] = set()
    for _ in range(4):
        asked = ask(gates, 0.0)
        assert asked is not None
        assert len(asked.serve.lots) == ASKED_LOTS
        assert asked.serve.lots[0] == (CRITICAL, "~g:gated:first", "first")
        seen |= {name for _, name, _ in asked.serve.lots}
    assert len(seen) == 3 * ASKED_LOTS + 1


def test_more_groups_than_there_may_be_lots_share_one():
    gates = gates_of(limits_of(group_limit=1))
    for n in range(MAX_LOTS):
        gates.park(job(n, group=str(n)))
    assert gates.park(job(1, group="one more")) == "~o:gated"
    assert gates.park(job(2, group="5")) == "~g:gated:5", "this one has a lot"


def test_only_critical_is_asked_for_where_others_find_no_lane():
    gates = gates_of(limits_of(limit=5))
    gates.park(job(1))
    assert gates.due(0.0, critical_only=True) == []
    gates.park(job(2, stream=CRITICAL))
    asked = gates.ask(gates.due(0.0, critical_only=True)[0], 0.0, 3, 0)
    assert [*asked.serve.lots] == [(CRITICAL, "~g:gated", "")]


def test_nothing_of_a_paused_priority_is_asked_for():
    gates = gates_of(limits_of(limit=5))
    gates.park(job(1))
    gates.paused = frozenset({LOW})
    assert gates.due(0.0) == []
    assert gates.next_look_s(0.0) == float("inf")


# --- rules ---------------------------------------------------------------------------------------------------------------------


def test_a_pause_closes_a_gate_and_its_end_lets_flow_out_what_waits():
    gates = gates_of()
    changed = gates.apply(rules(pause__gated=f"0 {NOW_MS} ann"), NOW_MS, 0.0)
    assert (changed.paused, gates.closed.keys()) == ([b"gated"], {b"gated"})
    gates.park(job(1))
    assert gates.due(0.0) == []
    assert gates.next_look_s(0.0) == float("inf")
    assert gates.apply(rules(pause__gated=f"0 {NOW_MS} ann"), NOW_MS, 1.0).paused == [], "that is known"
    gates.apply(rules(), NOW_MS, 2.0)
    assert gates.closed == {}, "what comes now starts as it comes"
    answer(gates, ask(gates, 2.0), 0, EMPTY)
    gates.apply(rules(), NOW_MS, 3.0)
    assert repr(gates) == "<Gates []>"


def test_a_timed_pause_ends_by_itself():
    gates = gates_of()
    gates.apply(rules(pause__gated=f"{NOW_MS + 5000} {NOW_MS} ann"), NOW_MS, 10.0)
    gates.park(job(1))
    assert gates.due(14.9) == []
    assert gates.next_look_s(10.0) == pytest.approx(5.0)
    assert len(gates.due(15.0)) == 1


def test_a_pause_by_a_job_holds_at_once_and_only_until_the_rules_know_of_it():
    gates = gates_of()
    gates.pause(b"gated", 3600.0, 0.0)
    assert gates.closed.keys() == {b"gated"}
    gates.park(job(1))
    assert gates.due(OWN_PAUSE_S - 0.1) == []
    assert len(gates.due(OWN_PAUSE_S)) == 1, "people have resumed it, or it was never written"


def test_an_order_takes_the_place_of_the_code_and_its_end_gives_it_back():
    gates = gates_of(limits_of(limit=5, rate="1/s"))
    gates.apply(rules(limit__gated='{"limit": 9, "rate": null}'), NOW_MS, 0.0)
    assert gates.closed[b"gated"].limits == Limits(limit=9)
    gates.apply(rules(), NOW_MS, 0.0)
    assert gates.closed[b"gated"].limits == limits_of(limit=5, rate="1/s")
    gates.apply(rules(limit__gated='{"limit": null, "rate": null}'), NOW_MS, 0.0)
    assert gates.closed == {}


def test_a_new_limit_is_asked_at_once_and_counts_what_runs():
    gates = gates_of(limits_of(rate="1/h"))
    gates.park(job(1))
    answer(gates, ask(gates, 0.0), 3_600_000, 0)
    changed = gates.apply(rules(limit__gated='{"rate": null, "limit": 3}'), NOW_MS, 1.0)
    assert changed.limited == [b"gated"]
    assert len(gates.due(1.0)) == 1
    assert gates.apply(rules(limit__gated='{"rate": null, "limit": 4}'), NOW_MS, 1.0).limited == []


def test_lots_that_others_have_filled_are_served_as_the_code_here_says():
    gates = gates_of()
    gates.saw([(LOW, "~g:gated:a"), (LOW, "~o:gated"), (LOW, "~g:unheard-of"), (LOW, "~free")], 0.0)
    asked = ask(gates, 0.0)
    assert asked is not None
    assert sorted(asked.serve.lots) == [(LOW, "~g:gated:a", "a"), (LOW, "~o:gated", "")]
    assert asked.serve.limits == NO_LIMITS
    assert gates.closed == {}


def test_what_waits_for_people_is_kept_whoever_knows_its_type():
    gates = gates_of()
    assert not gates.is_kept("~g:unheard-of")
    gates.apply(parse([(b"pause:unheard-of", b"0 1 ann")]), NOW_MS, 0.0)
    assert gates.is_kept("~g:unheard-of")
    assert gates.is_kept("~o:unheard-of")
    assert not gates.is_kept("~t:unheard-of@1")


def test_a_job_whose_gate_was_opened_while_its_key_was_claimed_flows_out():
    gates = gates_of()
    gates.apply(rules(pause__gated=f"0 {NOW_MS} ann"), NOW_MS, 0.0)
    met = job(1)
    gates.apply(rules(), NOW_MS, 1.0)
    assert gates.park(met) == "~g:gated"
    asked = ask(gates, 1.0)
    assert asked is not None
    assert [*asked.serve.lots] == [(LOW, "~g:gated", "")]
