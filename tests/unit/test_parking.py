"""Parked: which lots are known, and which of them this worker can run. Shares: what is due to them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from runtime.jobs import FREE, SUSPECT, UNKNOWN, Handler, lot_of
from runtime.places import PROCESS, THREAD, Places, make_places
from runtime.store.shapes import Ask
from runtime.worker.parking import MAX_UNKNOWN, Parked, Shares
from tests.unit.outcomes import HANDLER

GREET = lot_of("greet", 2)
THREADED: Handler[Any] = dataclasses.replace(HANDLER, runs=THREAD)


@pytest.fixture
def places() -> dict[str, Places]:
    return make_places(threads=3, processes=2)


@pytest.fixture
def parked(places: dict[str, Places]) -> Parked:
    return Parked({b"greet": HANDLER}, places)


def nothing(_: Places) -> int:
    return 0


@pytest.mark.parametrize(
    ("lot", "can_run"),
    [
        (FREE, True),
        (UNKNOWN, True),
        (SUSPECT, False),
        (lot_of("greet", 1), True),
        (lot_of("greet", 2), True),
        (lot_of("greet", 3), False),
        (lot_of("greet", 0), False),
        ("~t:greet@", False),
        ("~t:greet@one", False),
        (lot_of("send-fax", 1), False),
        ("~a-newer-kind", False),
    ],
)
def test_a_worker_can_run_what_is_of_its_types_and_not_newer(parked: Parked, lot: str, can_run: bool) -> None:
    assert parked.can_run(lot) == can_run


def test_a_lot_of_a_kind_that_no_rule_knows_is_taken_from_when_it_is_adopted(parked: Parked) -> None:
    parked.adopt("~a-newer-kind")
    assert parked.can_run("~a-newer-kind")


def test_what_is_free_is_looked_at_with_its_stream_and_not_as_a_lot(parked: Parked) -> None:
    assert not parked.may_take((1, FREE))
    assert parked.may_take((1, GREET))


def test_a_look_replaces_what_was_seen_but_for_what_was_parked_meanwhile(parked: Parked) -> None:
    parked.saw({(1, GREET): 3, (2, GREET): 1}, parked.begin_look())
    before = parked.begin_look()
    parked.put([(3, GREET)])
    parked.saw({(1, GREET): 2}, before)
    assert parked.seen == {(3, GREET): 0, (1, GREET): 2}
    parked.saw({}, parked.begin_look())
    assert parked.seen == {(3, GREET): 0}, "the look that began after it may not have met it: one more"
    parked.saw({}, parked.begin_look())
    assert parked.seen == {}


def test_the_fetcher_is_told_of_what_this_worker_has_parked_and_can_run(parked: Parked) -> None:
    told: list[int] = []
    parked.on_new = lambda: told.append(len(parked.seen))
    parked.put([(1, FREE), (1, lot_of("send-fax", 1))])
    assert told == []
    parked.put([(1, GREET)])
    assert told == [1]


def test_suspects_are_known_from_a_look(parked: Parked) -> None:
    parked.saw({(1, SUSPECT): 1}, ())
    assert parked.has_suspects
    parked.saw({}, ())
    assert not parked.has_suspects


def test_an_unknown_type_has_a_lot_of_its_own_until_there_are_too_many(parked: Parked) -> None:
    lots = [lot_of(f"made-up-{n}", 1) for n in range(MAX_UNKNOWN + 1)]
    assert [parked.lot_for(lot) for lot in lots] == [*lots[:-1], UNKNOWN]
    assert parked.lot_for(lots[0]) == lots[0]
    parked.begin_look()
    parked.saw({(1, lots[0]): 1}, ())
    assert parked.lot_for(lots[-1]) == lots[-1], "most of them are gone"


def test_a_worker_asks_a_lot_for_as_much_as_it_has_lanes_for(parked: Parked) -> None:
    parked.saw({(1, GREET): 5, (1, lot_of("send-fax", 1)): 5}, ())
    [ask] = parked.openings(nothing)
    assert (ask.stream, ask.lot, ask.types) == (1, GREET, None)
    assert ask.n > 1000


def test_the_shared_lot_is_asked_for_the_types_that_this_worker_knows(parked: Parked) -> None:
    parked.saw({(1, UNKNOWN): 5}, ())
    [ask] = parked.openings(nothing)
    assert ask.types == {"greet": 2}


def test_for_threads_no_more_is_asked_for_than_will_soon_begin(places: dict[str, Places]) -> None:
    parked = Parked({b"greet": THREADED}, places)
    parked.saw({(1, GREET): 50}, ())
    assert [ask.n for ask in parked.openings(nothing)] == [3]
    assert [ask.n for ask in parked.openings(lambda kind: 2)] == [1]
    assert parked.openings(lambda kind: 3) == []
    assert parked.awaited == {places[THREAD]}
    assert parked.waits_for(places[THREAD])
    assert not parked.waits_for(places[PROCESS])
    assert parked.needs_any({b"greet"})
    assert not parked.needs_any({b"send-fax"})


def test_an_emptied_lot_is_not_asked_again_before_the_next_look(parked: Parked) -> None:
    parked.saw({(1, GREET): 5}, ())
    parked.emptied(1, GREET)
    assert not parked.is_any_to_take
    assert parked.openings(nothing) == []


# --- shares ------------------------------------------------------------------------------------------------------------------


def no_places(_: Ask) -> None:
    return None


def asked(shares: Shares, openings: list[Ask], capacity: int, part: float) -> dict[tuple[int, str], int]:
    return {(ask.stream, ask.lot): ask.n for ask in shares.divide(openings, capacity, part, no_places)}


def test_lots_get_their_part_of_the_capacity() -> None:
    assert asked(Shares(), [Ask(1, GREET, 1000)], 100, 0.4) == {(1, GREET): 40}


def test_what_is_less_than_one_entry_is_owed_until_it_is_one() -> None:
    shares = Shares()
    assert [asked(shares, [Ask(1, GREET, 1000)], 1, 0.25) for _ in range(4)] == [{}, {}, {}, {(1, GREET): 1}]


def test_what_is_owed_is_forgiven_when_a_lot_was_emptied() -> None:
    shares = Shares()
    for _ in range(3):
        asked(shares, [Ask(1, GREET, 1000)], 1, 0.25)
    shares.forgive()
    assert asked(shares, [Ask(1, GREET, 1000)], 1, 0.25) == {}


def test_several_lots_share_by_the_weights_of_their_streams_and_each_is_the_first_in_turn() -> None:
    shares = Shares()
    openings = [Ask(0, GREET, 1000), Ask(3, GREET, 1000)]
    assert asked(shares, openings, 90, 1.0) == {(0, GREET): 80, (3, GREET): 10}
    first = [next(iter(asked(shares, openings, 1, 1.0))) for _ in range(4)]
    assert first == [(0, GREET), (3, GREET), (0, GREET), (3, GREET)]


def test_lots_of_one_kind_together_ask_for_no_more_than_its_places_bear(places: dict[str, Places]) -> None:
    openings = [Ask(1, GREET, 3), Ask(2, GREET, 3)]
    asks = Shares().divide(openings, 100, 1.0, lambda ask: places[THREAD])
    assert sum(ask.n for ask in asks) == 3
