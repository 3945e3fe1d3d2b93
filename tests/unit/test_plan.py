"""The plan: how many entries to ask of each priority."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from runtime.worker.plan import (
    ENTRY_BYTES,
    MOST_BYTES,
    START_BYTES,
    WEIGHTS,
    AwaitCapacity,
    Budget,
    Fetch,
    Pause,
    Plan,
    ServeGates,
    Sizes,
    Step,
    TakeParked,
    View,
    Wait,
    next_step,
)

CRITICAL, HIGH, MEDIUM, LOW = range(4)

# One round: the capacity, and which streams have as much as they are asked for.
Round = tuple[int, tuple[bool, bool, bool, bool]]
ROUNDS = st.lists(st.tuples(st.integers(1, 12) | st.integers(1, 5000), st.tuples(*[st.booleans()] * 4)), max_size=30)


def rounds(text: str) -> list[Round]:
    """Read rounds such as `7:--ML 5:CH--`."""
    return [
        (int(capacity), tuple(mark != "-" for mark in marks)) for capacity, marks in (word.split(":") for word in text.split())
    ]


def play(plan: Plan, capacity: int, full: tuple[bool, bool, bool, bool]) -> list[int]:
    """Play one round; a stream that is not full lacks one entry of what it is asked for."""
    shares = plan.shares(capacity)
    plan.learn(shares, [share if is_full else max(share - 1, 0) for share, is_full in zip(shares, full, strict=True)])
    return shares


def totals(plan: Plan, capacity: int, full: tuple[bool, bool, bool, bool], times: int) -> list[int]:
    """Return what each stream was asked for over many rounds."""
    asked = [play(plan, capacity, full) for _ in range(times)]
    return [sum(column) for column in zip(*asked, strict=True)]


@given(ROUNDS)
@example(rounds("7:--ML 5:CH-- 1:-H-- 2:CH-- 1:---- 1:-HML 1:----"))
@example(rounds("7:CHML 7:C--- 2:CHML 5:--M- 1:--M- 2:---- 1:-H-L 1:----"))
def test_a_fetch_brings_at_most_three_more_than_there_is_capacity_for(story: list[Round]) -> None:
    plan = Plan()
    for capacity, full in story:
        assert sum(play(plan, capacity, full)) <= capacity + 3


@given(ROUNDS)
@example(rounds("500:C-M- 7:CHML 50:C-M- 500:CH-L 500:CHML"))
def test_the_capacity_is_used_to_the_last_place(story: list[Round]) -> None:
    plan = Plan()
    for capacity, full in story:
        assert sum(play(plan, capacity, full)) >= capacity


@given(ROUNDS)
@example(rounds("7:---L 5:CH-- 7:CHM-"))  # what is owed adds up to more than there is
def test_a_fetch_asks_for_the_capacity_or_for_one_more_than_it_probes(story: list[Round]) -> None:
    plan = Plan()
    for capacity, full in story:
        probes = plan._is_loaded.count(False) % len(WEIGHTS)  # where none is loaded, all share
        assert sum(play(plan, capacity, full)) == max(capacity, probes + 1)


@given(ROUNDS)
def test_no_share_is_negative(story: list[Round]) -> None:
    plan = Plan()
    for capacity, full in story:
        assert min(play(plan, capacity, full)) >= 0


@given(ROUNDS)
@settings(max_examples=30)
def test_whatever_went_before_nobody_starves(story: list[Round]) -> None:
    plan = Plan()
    for capacity, full in story:
        play(plan, capacity, full)
    assert min(totals(plan, 1, (True, True, True, True), 3 * sum(WEIGHTS))) > 0


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 7, 15, 50, 500])
def test_loaded_streams_share_the_capacity_by_weight(capacity: int) -> None:
    times = 6000 // capacity + 60
    asked = totals(Plan(), capacity, (True, True, True, True), times)
    fair = [times * capacity * weight / sum(WEIGHTS) for weight in WEIGHTS]
    assert asked == pytest.approx(fair, rel=0.03, abs=2)
    assert sum(asked) == pytest.approx(times * capacity, abs=3)


@pytest.mark.parametrize("capacity", [1, 2, 3, 7, 50])
def test_no_stream_is_ever_more_than_one_entry_away_from_its_due(capacity: int) -> None:
    plan = Plan()
    plan.learn([1] * 4, [1] * 4)
    got = [0] * 4
    for turn in range(1, 100):
        got = [sum(pair) for pair in zip(got, play(plan, capacity, (True, True, True, True)), strict=True)]
        due = [turn * capacity * weight / sum(WEIGHTS) for weight in WEIGHTS]
        assert max(abs(mine - fair) for mine, fair in zip(got, due, strict=True)) < 1


def test_critical_gets_more_than_half_of_a_full_house() -> None:
    critical, *others = totals(Plan(), 30, (True, True, True, True), 100)
    assert critical > sum(others)


@pytest.mark.parametrize("at", [CRITICAL, HIGH, MEDIUM, LOW])
def test_what_the_others_do_not_use_goes_to_the_one_that_is_loaded(at: int) -> None:
    plan = Plan()
    full = (at == CRITICAL, at == HIGH, at == MEDIUM, at == LOW)
    play(plan, 100, full)
    shares = play(plan, 100, full)
    assert shares == [97 if stream == at else 1 for stream in range(4)]


def test_a_share_without_a_taker_is_split_by_the_weights_of_the_rest() -> None:
    asked = totals(Plan(), 90, (False, True, True, True), 200)
    assert asked[HIGH] / asked[LOW] == pytest.approx(4, rel=0.03)
    assert asked[MEDIUM] / asked[LOW] == pytest.approx(2, rel=0.03)


def test_nobody_starves_when_there_is_capacity_for_one() -> None:
    asked = totals(Plan(), 1, (True, True, True, True), 150)
    assert asked == pytest.approx([80, 40, 20, 10], abs=3)


def test_nobody_starves_at_capacity_for_one_beside_streams_that_run_dry() -> None:
    assert min(totals(Plan(), 1, (False, True, False, True), 60)[at] for at in (HIGH, LOW)) >= 10


def test_a_stream_that_ran_dry_is_only_probed() -> None:
    plan = Plan()
    play(plan, 60, (True, True, True, True))
    play(plan, 60, (True, False, True, True))
    for _ in range(20):
        assert play(plan, 60, (True, False, True, True))[HIGH] == 1


@given(ROUNDS, st.integers(1, 100))
def test_a_stream_that_answers_with_less_than_it_was_asked_for_is_owed_nothing(story: list[Round], capacity: int) -> None:
    plan = Plan()
    for before, full in story:
        play(plan, before, full)
    shares = play(plan, capacity, (False, False, False, False))
    assert [owed for owed, share in zip(plan._owed, shares, strict=True) if share] == [0] * sum(map(bool, shares))


@pytest.mark.parametrize("at", [CRITICAL, HIGH, MEDIUM, LOW])
def test_a_stream_that_was_dry_for_long_is_owed_nothing_when_it_wakes(at: int) -> None:
    plan = Plan()
    for _ in range(1000):
        play(plan, 7, (at != CRITICAL, at != HIGH, at != MEDIUM, at != LOW))
    everything = (True, True, True, True)
    assert play(plan, 7, everything)[at] == 1
    assert play(plan, 150, everything)[at] <= 150 * WEIGHTS[at] / sum(WEIGHTS) + 1


def test_when_nothing_is_known_to_wait_all_are_asked_by_weight() -> None:
    assert Plan().shares(150) == [80, 40, 20, 10]


def test_when_all_ran_dry_all_are_asked_by_weight_again() -> None:
    plan = Plan()
    play(plan, 150, (True, True, True, True))
    play(plan, 150, (False, False, False, False))
    assert plan.shares(150) == [80, 40, 20, 10]


def test_a_stream_that_was_not_asked_is_not_taken_for_loaded() -> None:
    plan = Plan()
    assert play(plan, 1, (True, True, True, True)) == [1, 0, 0, 0]
    assert plan.shares(10) == [7, 1, 1, 1]


def test_a_plan_says_what_it_owes_and_who_is_loaded() -> None:
    plan = Plan()
    play(plan, 4, (True, False, False, False))
    assert repr(plan) == f"<Plan owed={[round(owed, 2) for owed in plan._owed]} loaded=[True, False, False, False]>"


@pytest.mark.parametrize(
    ("full", "lots", "part"),
    [
        ("----", {LOW}, 1 / 2),
        ("----", {CRITICAL}, 8 / 9),
        ("C---", {LOW}, 1 / 9),
        ("---L", {CRITICAL}, 8 / 9),
        ("CHML", {LOW}, 1 / 16),
        ("C---", {CRITICAL, LOW}, 9 / 17),
    ],
)
def test_lots_have_their_part_by_weight_and_never_all(full: str, lots: set[int], part: float) -> None:
    plan = Plan()
    for round_ in rounds(f"100:{full} 100:{full}"):
        play(plan, *round_)
    assert plan.part_beside(lots) == pytest.approx(part)


# --- reserved, strict, closed ------------------------------------------------------------------------------------------------


@given(ROUNDS, st.integers(0, 20))
def test_what_is_reserved_comes_on_top_of_the_share_of_critical(story: list[Round], reserved: int) -> None:
    plan, same = Plan(), Plan()
    for capacity, full in story:
        shares, alone = plan.shares(capacity, reserved), same.shares(capacity)
        assert shares == [alone[CRITICAL] + reserved, *alone[1:]]
        for each in (plan, same):
            each.learn(alone, [share if is_full else max(share - 1, 0) for share, is_full in zip(alone, full, strict=True)])


@pytest.mark.parametrize("capacity", [0, -5])
def test_without_capacity_for_all_critical_alone_is_asked_and_no_other_is_owed_for_it(capacity: int) -> None:
    plan = Plan()
    play(plan, *rounds("100:CHML")[0])
    owed = list(plan._owed)
    assert plan.shares(capacity, 3) == [3, 0, 0, 0]
    assert plan._owed == owed
    plan.learn([3, 0, 0, 0], [0, 0, 0, 0])
    assert plan._is_loaded == [False, True, True, True]


@given(ROUNDS, st.frozensets(st.integers(0, 3)), st.booleans())
def test_nothing_is_asked_of_what_is_closed(story: list[Round], closed: frozenset[int], is_strict: bool) -> None:
    plan = Plan(is_strict=is_strict)
    plan.closed = closed
    for capacity, full in story:
        plan.learn([1] * 4, full)
        shares = plan.shares(capacity, 2)
        assert [shares[at] for at in closed] == [0] * len(closed)
        assert closed.isdisjoint(plan.asked)
        assert {at for at, share in enumerate(shares) if share} <= plan.asked
        assert sum(plan.parts()) == pytest.approx(1)
        if len(closed) < len(WEIGHTS) and not is_strict:
            assert sum(shares) >= capacity, "the others share all of it"


@given(st.integers(1, 500), st.tuples(*[st.booleans()] * 4), st.frozensets(st.integers(0, 3), max_size=3))
def test_in_strict_order_all_goes_to_the_first_that_holds_something_and_nothing_behind_it(
    capacity: int, is_loaded: tuple[bool, ...], closed: frozenset[int]
) -> None:
    plan = Plan(is_strict=True)
    plan.learn([1] * 4, is_loaded)
    plan.closed = closed
    shares = plan.shares(capacity)
    asked = [at for at in range(4) if at not in closed]
    first = next((at for at in asked if is_loaded[at]), None)
    if first is None:
        assert shares == [int(at in asked) for at in range(4)], "what is not known is probed"
        return
    before = [at for at in asked if at < first]
    assert shares[first] == max(1, capacity - len(before))
    assert [shares[at] for at in before] == [1] * len(before)
    assert sum(shares[first + 1 :]) == 0
    assert plan.asked == {*before, first}
    assert plan.parts()[first] == 1.0


def test_lots_of_what_is_closed_or_behind_in_strict_order_have_no_weight_against_the_others() -> None:
    plan = Plan()
    for round_ in rounds("100:CHML 100:CHML"):
        play(plan, *round_)
    plan.closed = frozenset({CRITICAL, HIGH})
    assert plan.part_beside({MEDIUM}) == pytest.approx(2 / (2 + 3))


# --- how many bytes ----------------------------------------------------------------------------------------------------


def rows(n: int, size: int) -> list[tuple[bytes, list[bytes]]]:
    return [(b"1-0", [b"type", b"x", b"data", b"x" * size])] * n


def test_a_budget_is_what_the_line_carries_in_time() -> None:
    budget = Budget(target_s=1.0)
    budget.passed(1_000_000, 4.0)
    assert budget.bytes == 250_000
    budget.passed(200_000, 0.8)
    assert budget.bytes == 250_000, "in time, but with nothing to spare"


def test_a_budget_is_halved_by_a_silence_and_raised_by_nothing_small() -> None:
    budget = Budget(target_s=1.0)
    budget.failed()
    budget.failed()
    assert budget.bytes == START_BYTES // 4
    for _ in range(100):
        budget.passed(1000, 0.0)
    assert budget.bytes == START_BYTES // 4, "a thousand bytes prove nothing"
    budget.passed(START_BYTES // 4, 0.1)
    assert budget.bytes == START_BYTES // 2
    for _ in range(100):
        budget.passed(budget.bytes, 0.0)
    assert budget.bytes == MOST_BYTES


def test_a_budget_never_allows_nothing() -> None:
    budget = Budget(target_s=1.0)
    for _ in range(100):
        budget.failed()
    assert budget.bytes == 1
    assert Sizes().entries([0.25] * 4, budget.bytes) == 1


def test_a_budget_and_sizes_say_what_they_have_learnt() -> None:
    budget, sizes = Budget(target_s=1.0), Sizes(2)
    budget.passed(1_000_000, 4.0)
    sizes.learn([(1, rows(3, 100))], 0)
    assert repr(budget) == "<Budget 250000 bytes>"
    assert repr(sizes) == f"<Sizes [None, {ENTRY_BYTES + 109}]>"


def test_of_a_stream_that_nothing_is_known_of_few_entries_are_asked_for() -> None:
    assert Sizes().entries([0.25] * 4, START_BYTES) == 16


def test_entries_are_weighed_as_they_come_up_at_once_and_down_by_and_by() -> None:
    sizes, only_high = Sizes(), [0.0, 1.0, 0.0, 0.0]
    sizes.learn([(HIGH, rows(2000, 100))], 2000 * 150)
    assert sizes.entries(only_high, 1 << 20) > 6000
    sizes.learn([(HIGH, rows(10, 250_000))], 10 * 250_100)
    assert sizes.entries(only_high, 1 << 20) == 4
    sizes.learn([(HIGH, rows(4, 100))], 600)
    assert sizes.entries(only_high, 1 << 20) == 8
    for _ in range(30):
        sizes.learn([(HIGH, rows(8, 100))], 1200)
    assert sizes.entries(only_high, 1 << 20) > 6000


def test_a_large_entry_that_the_sample_has_missed_shows_in_the_whole() -> None:
    sizes = Sizes()
    many = rows(1000, 100)
    many[501] = (b"1-0", [b"type", b"x", b"data", b"x" * 10_000_000])
    sizes.learn([(LOW, many)], 10_150_000)
    assert sizes.entries([0.0, 0.0, 0.0, 1.0], 1 << 20) < 110


def test_each_stream_has_its_own_size_and_counts_by_its_part() -> None:
    sizes = Sizes()
    sizes.learn([(CRITICAL, rows(800, 100)), (LOW, rows(4, 250_000))], 800 * 150 + 4 * 250_040)
    few, many = sizes.entries([0.0, 0.0, 0.0, 1.0], 1 << 20), sizes.entries([1.0, 0.0, 0.0, 0.0], 1 << 20)
    assert few == 4
    assert many > 5000
    assert few < sizes.entries([8 / 9, 0.0, 0.0, 1 / 9], 1 << 20) < many


# --- the next step -----------------------------------------------------------------------------------------------------------

QUIET = View(capacity=10, is_quiet=True)
LOADED = View(capacity=10)
FETCHED = View(capacity=10, has_fetched=True)
RESERVED = View(capacity=0, reserved=2)


@pytest.mark.parametrize(
    ("view", "step"),
    [
        (replace(LOADED, has_asks=True), TakeParked()),
        (replace(QUIET, has_asks=True), TakeParked()),
        (replace(LOADED, has_asks=True, has_taken=True), Fetch(10)),
        (replace(LOADED, has_asks=True, has_taken=True, capacity=0), None),
        (LOADED, Fetch(10)),
        (QUIET, Wait()),
        (replace(QUIET, is_free_left=True), Fetch(10)),
        (replace(QUIET, are_lots_full=True), Fetch(10)),
        (replace(QUIET, capacity=3), Fetch(3)),
        (replace(QUIET, capacity=3, wait_from=3), Wait()),
        (replace(QUIET, is_deaf=True), Pause()),
        (replace(FETCHED, has_found=True), None),
        (replace(FETCHED, is_free_left=True), None),
        (replace(FETCHED, are_lots_full=True), None),
        (replace(FETCHED, is_stopping=True), None),
        (FETCHED, Wait()),
        (replace(FETCHED, is_quiet=True), Wait()),
        (replace(FETCHED, capacity=3), Pause()),
        (replace(FETCHED, is_deaf=True), Pause()),
        # Places of CRITICAL alone: it is asked when it is due, and nothing waits in Redis meanwhile.
        (RESERVED, AwaitCapacity()),
        (replace(RESERVED, is_critical_due=True), Fetch(0, 2)),
        (replace(RESERVED, capacity=-7, is_critical_due=True), Fetch(-7, 2)),
        (replace(RESERVED, is_free_left=True), Fetch(0, 2)),
        (replace(RESERVED, are_lots_full=True), AwaitCapacity()),
        (replace(RESERVED, is_quiet=True, is_critical_due=True), Fetch(0, 2)),
        (replace(RESERVED, has_asks=True), TakeParked()),
        (replace(RESERVED, has_fetched=True, is_critical_due=True), AwaitCapacity()),
        (replace(RESERVED, has_fetched=True, has_found=True), None),
        (replace(RESERVED, has_fetched=True, is_free_left=True), None),
        (replace(RESERVED, has_fetched=True, are_lots_full=True), AwaitCapacity()),
        (replace(RESERVED, reserved=0, is_critical_due=True), None),
        (replace(RESERVED, has_fetched=True, is_deaf=True), Pause()),
        (replace(LOADED, reserved=2), Fetch(10, 2)),
        (replace(QUIET, reserved=2), Wait()),
        (replace(FETCHED, reserved=2), Wait()),
        (replace(FETCHED, reserved=2, capacity=3), AwaitCapacity()),
        (replace(LOADED, are_gates_due=True, has_asks=True), ServeGates()),
        (replace(LOADED, are_gates_due=True, has_served=True, has_asks=True), TakeParked()),
        (replace(QUIET, are_gates_open=True), Fetch(QUIET.capacity)),
        (replace(FETCHED, has_served=True, are_gates_open=True), None),
        (replace(FETCHED, has_served=True), Wait()),
    ],
)
def test_the_next_step_follows_from_what_is_known(view: View, step: Step | None) -> None:
    assert next_step(view) == step


@given(
    st.builds(
        View,
        capacity=st.integers(-5, 5),
        reserved=st.integers(0, 2),
        **{name: st.booleans() for name in View.__struct_fields__ if name not in ("capacity", "reserved", "wait_from")},
    )
)
def test_a_round_ends(view: View) -> None:
    """Each step but a wait and a pause can be taken once in a round; no wait in Redis without capacity for what it may bring."""
    taken: list[Step] = []
    while (step := next_step(view)) is not None and not isinstance(step, Wait | AwaitCapacity | Pause):
        taken.append(step)
        done = {ServeGates: "has_served", TakeParked: "has_taken", Fetch: "has_fetched"}[type(step)]
        assert not getattr(view, done), "once in a round"
        view = replace(view, **{done: True})
    assert len(taken) <= 3
    assert view.capacity >= view.wait_from or not isinstance(step, Wait)
    assert len({type(step) for step in taken}) == len(taken)
