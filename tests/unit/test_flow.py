"""What people are shown of gates, pauses and schedules: what holds, what is left out, and that it is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.codec import MAX_MS
from runtime.commands import readings
from runtime.limits import override_of
from runtime.rules import Pause, Rules, parse
from runtime.store.base import WorkerRow
from runtime.store.flow import MAX_GATES, MAX_GROUPS, Flow, Parts, asked_of, reading, span, type_in, waiting_in

NOW_MS = 1_700_000_000_000
MINUTE_MS = 60_000
WHOLE = '{"type":"t","data":{},"when":"@daily"}'


def flow_of(
    rules: Rules | None = None,
    holders: Sequence[tuple[str, int]] = (),
    workers: Sequence[WorkerRow] = (),
    definitions: Mapping[str, str] | None = None,
    states: Mapping[str, str] | None = None,
    waiting: Mapping[str, int] | None = None,
) -> Flow:
    parts = Parts(rules or Rules(), waiting_in(holders), workers, definitions or {}, states or {}, NOW_MS)
    return reading(parts, waiting or {})


def row(*types: str, lease_ms: int = 30_000, schedules: Mapping[str, int] | None = None, **limits: dict[str, Any]) -> WorkerRow:
    known = dict.fromkeys([*types, *limits], 1)
    return WorkerRow(lease_ms, types=known, limits=dict(limits), schedules=dict(schedules or {}), reserved=5)


# --- gates -------------------------------------------------------------------------------------------------------------------


def test_the_limits_of_a_gate_are_the_codes_with_what_people_have_set_in_their_place():
    rules = Rules(limits={"mail": override_of({"rate": "1/s", "limit": None})})
    flow = flow_of(rules, workers=[row(mail={"limit": 5, "group_limit": 1}), row("other")])
    [gate] = flow.gates
    assert (gate.type, gate.limits) == ("mail", {"rate": "1/s", "group_limit": 1})
    assert sorted(gate.ordered) == ["limit", "rate"]
    assert gate.is_known
    assert flow.reserved == 10


def test_where_workers_declare_different_limits_those_of_most_are_shown_and_the_type_is_named():
    flow = flow_of(workers=[row(mail={"limit": 5}), row(mail={"limit": 7}), row(mail={"limit": 7})])
    assert (flow.gates[0].limits, flow.differing) == ({"limit": 7}, ["mail"])
    older = flow_of(workers=[row(mail={"limit": 5}), row("mail")])
    assert older.differing == ["mail"], "a release without limits runs the type without any"
    assert flow_of(workers=[row(mail={"limit": 5}), row("other")]).differing == []


def test_limits_that_this_version_does_not_know_are_left_out():
    flow = flow_of(workers=[row(mail={"limit": "many"}, bill={"hats": 3}, pay={"limit": 2})])
    assert [gate.type for gate in flow.gates] == ["pay"]


def test_what_waits_at_a_gate_is_shown_whoever_knows_the_type():
    [gate] = flow_of(holders=[("~g:gone", 3), ("~g:gone", 4), ("~free", 9), ("~t:gone@2", 9), ("me", 9)]).gates
    assert (gate.type, gate.waiting, gate.is_known, gate.groups) == ("gone", 7, False, [])


def test_of_thousands_of_groups_the_largest_are_shown_and_the_rest_is_counted():
    holders = [(f"~g:mail:g{at}", at) for at in range(1, 4001)] + [("~o:mail", 50), ("~g:mail", 3)]
    flow = flow_of(holders=holders, workers=[row(mail={"group_limit": 1})])
    [gate] = flow.gates
    assert [one.group for one in gate.groups] == [f"g{at}" for at in range(4000, 4000 - MAX_GROUPS, -1)]
    assert (gate.more_groups, gate.shared) == (4001 - MAX_GROUPS, 50)
    assert gate.waiting == sum(count for _, count in holders)
    assert len(asked_of(flow)) == 1 + MAX_GROUPS
    rows = readings.gates(flow, 5, 2)
    assert sum(int(cells[1].replace(",", "")) for cells in rows[1:]) == gate.waiting, "no job is left out of the lines"


def test_of_thousands_of_types_those_of_which_most_wait_are_shown():
    flow = flow_of(holders=[(f"~g:t{at}", at) for at in range(1, 500)])
    assert (len(flow.gates), flow.more_gates, flow.gates[0].type) == (MAX_GATES, 499 - MAX_GATES, "t499")
    assert readings.gates(flow, 5)[-1][0] == "… and 494 more"


def test_a_group_is_asked_for_beside_the_largest_and_once():
    holders = [(f"~g:mail:g{at}", at + 2) for at in range(9)] + [("~g:free", 1)]
    flow = flow_of(holders=holders, workers=[row(mail={"group_limit": 1}, free={"limit": 1})])
    asked = asked_of(flow, [("mail", "g0"), ("mail", "g8"), ("mail", ""), ("free", "g0"), ("", "x"), ("nowhere", "x")])
    assert Counter(one.name for one in asked) == Counter(
        ["mail", "free", *(f"mail:g{at}" for at in (8, 7, 6, 5, 4, 0))]
    )  # fmt: skip


# --- why a job waits ---------------------------------------------------------------------------------------------------------


def gated(in_use: int = 0, tat_us: int = 0, **limits: Any) -> Flow:
    flow = flow_of(holders=[("~g:mail:a", 2), ("~g:mail:b", 1)], workers=[row(mail=limits)])
    for one in asked_of(flow):
        if one.name in ("mail", "mail:a"):
            one.note(in_use, NOW_MS * 1000 + tat_us, NOW_MS)
    return flow


@pytest.mark.parametrize(
    ("flow", "words"),
    [
        (gated(5, limit=5), "waits for a permit of mail (5 of 5 in use)"),
        (gated(4, limit=5), "waits for its turn at mail"),
        (gated(tat_us=2_000_000, rate="10/m"), "waits for a token of mail (10/m, the next in 2.0 s)"),
        (gated(1, group_limit=1), "waits for a permit of mail, group a (1 of 1 in use)"),
        (gated(tat_us=90_000_000, group_rate="1/h"), "waits for a token of mail, group a (1/h, the next in 2 min)"),
        (gated(1, limit=1, group_limit=1), "waits for a permit of mail (1 of 1 in use)"),
    ],
)
def test_a_job_at_a_gate_says_what_it_waits_for(flow: Flow, words: str):
    assert flow.waits("~g:mail:a", "a", "high") == words


def test_a_job_of_another_group_has_its_own_permits():
    assert gated(1, group_limit=1).waits("~g:mail:b", "b", "high") == "waits for its turn at mail"


def test_what_is_paused_comes_before_permits():
    pauses = {"mail": Pause(0, NOW_MS, "ann@host", "down"), "low": Pause(NOW_MS + 1, NOW_MS, "bob@host")}
    flow = flow_of(Rules(pauses=pauses), [("~g:mail", 1)])
    assert flow.waits("~g:mail", "", "high") == "waits: mail is paused by ann@host (down)"
    assert flow.waits("", "", "low") == "waits: priority low is paused by bob@host"
    assert flow.waits("~t:other@1", "", "high") == ""
    flow = flow_of(Rules(pauses={"*": Pause(0, NOW_MS, "ann@host")}))
    assert flow.waits("", "", "high") == "waits: the whole queue is paused by ann@host"


def test_a_gate_that_is_not_among_those_shown_has_its_turn():
    assert flow_of().waits("~g:mail:a", "a", "high") == "waits for its turn at mail"
    assert [type_in(lot) for lot in ("~g:a", "~g:a:b:c", "~o:a", "~t:a@1", "~free", "me", "")] == ["a", "a", "a", "", "", "", ""]


# --- pauses ------------------------------------------------------------------------------------------------------------------


def test_pauses_say_what_waits_for_them_and_those_that_are_over_are_left_out():
    pauses = {"mail": Pause(0, 1), "low": Pause(NOW_MS + 1, 2, "ann", "why"), "*": Pause(0, 3), "old": Pause(NOW_MS, 4)}
    flow = flow_of(Rules(pauses=pauses), [("~g:mail:a", 2), ("~o:mail", 3)], waiting={"low": 7, "high": 5})
    assert [(pause.kind, pause.name, pause.waiting) for pause in flow.pauses] == [
        ("all", "*", 12),
        ("priority", "low", 7),
        ("type", "mail", 5),
    ]
    assert [gate.type for gate in flow.gates] == ["mail"]


# --- schedules ---------------------------------------------------------------------------------------------------------------


def state(*ticks: str, heard_ms: int = NOW_MS - 5000) -> str:
    return " ".join([str(NOW_MS - MINUTE_MS), "ab", "cd", str(heard_ms), "-", *ticks])


def test_a_schedule_says_what_it_did_last_and_fires_next():
    nexts = {"soon": NOW_MS + 1000, "late": NOW_MS + 9000, "off": 0, "stuck": NOW_MS - 10 * MINUTE_MS}
    states = {"soon": state(f"{NOW_MS - MINUTE_MS}f"), "late": state("1f", "7m3"), "off": state("9p"), "gone": state("5s")}
    flow = flow_of(workers=[row(schedules=nexts)], states=states, definitions={"never-seen": f"1 {WHOLE}"})
    found = {one.name: (one.last, one.next_ms, one.is_paused, one.is_behind, one.is_stored) for one in flow.schedules}
    assert found == {
        "stuck": ("", NOW_MS - 10 * MINUTE_MS, False, True, False),
        "soon": ("fired", NOW_MS + 1000, False, False, False),
        "late": ("missed", NOW_MS + 9000, False, False, False),
        "gone": ("skipped", None, False, False, False),
        "never-seen": ("", None, False, False, True),
        "off": ("paused", None, True, False, False),
    }
    assert [one.name for one in flow.schedules][:3] == ["stuck", "soon", "late"], "those that fire first come first"


def test_a_schedule_is_behind_only_when_older_than_what_a_worker_last_told():
    late_ms = NOW_MS - 2 * MINUTE_MS
    assert flow_of(workers=[row(schedules={"a": late_ms})]).schedules[0].is_behind
    assert not flow_of(workers=[row(schedules={"a": late_ms}, lease_ms=2 * MINUTE_MS)]).schedules[0].is_behind
    both = [row(schedules={"a": late_ms}), row(schedules={"a": NOW_MS + 1})]
    assert not flow_of(workers=both).schedules[0].is_behind, "another worker has it done"


def test_a_schedule_that_people_have_paused_is_so_before_a_worker_tells():
    flow = flow_of(definitions={"a": '1 {"paused":true}'}, states={"a": state()})
    assert [(one.name, one.is_paused) for one in flow.schedules] == [("a", True)]


def test_what_cannot_be_read_is_named_and_is_no_schedule():
    rules = parse([(b"limit:mail", b"{"), (b"hat", b"x")])
    flow = flow_of(rules, definitions={"a": "1 {", "b": f"1 {WHOLE}", "c": "7 {}"})
    assert list(flow.unreadable_rules) == ["limit:mail", "hat"]
    assert list(flow.unreadable_schedules) == ["a"]
    assert [one.name for one in flow.schedules] == ["b"]


# --- whatever stands there ---------------------------------------------------------------------------------------------------

ROWS = st.builds(
    lambda text, limits, schedules: WorkerRow.parse(f'1 {{"limits":{limits},"schedules":{schedules},"types":{{"a":1}}}} {text}'),
    st.text(max_size=20),
    st.sampled_from(["{}", '{"a":{"limit":0}}', '{"a":{"rate":"x"},"b":{"group_rate":"1/s"}}', "[]", '{"a":{"limit":[]}}']),
    st.sampled_from(["{}", '{"a":-5}', '{"a":99999999999999999999999}', '{"b":1}', f'{{"a":{MAX_MS}}}']),
)


@given(
    st.lists(ROWS, max_size=3),
    st.dictionaries(st.text(max_size=8), st.text(max_size=40) | st.just(f"1 {WHOLE}"), max_size=3),
    st.dictionaries(st.text(max_size=8), st.text(max_size=40) | st.just("9 a b 9 - 999999999999999f x"), max_size=3),
    st.lists(st.tuples(st.text(max_size=12) | st.sampled_from(["~g:", "~o::", "~g:a:"]), st.integers(0, 9)), max_size=4),
)
def test_whatever_stands_in_redis_is_read_and_printed(rows, definitions, states, holders):
    flow = flow_of(None, holders, rows, definitions, states)
    for one in asked_of(flow, [("a", "x")]):
        one.note(3, 10**18, NOW_MS)
    for table in (readings.pauses(flow, 5), readings.gates(flow, 5, 2), readings.schedules(flow, 5)):
        assert all(cell.isprintable() for cells in table for cell in cells)


@pytest.mark.parametrize(
    ("ms", "words"),
    [(0, "0.0 s"), (9_900, "9.9 s"), (59_000, "59 s"), (90_000, "2 min"), (3 * 3_600_000, "3 h"), (5 * 86_400_000, "5 days")],
)
def test_a_time_is_told_in_the_unit_that_people_would_take(ms: int, words: str):
    assert span(ms) == words
