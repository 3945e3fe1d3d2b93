"""Which marks are of jobs here, and when they may be taken away."""

from __future__ import annotations

from typing import cast

import pytest

from runtime.jobs import Lease
from runtime.rules import NO_RULES, Rules
from runtime.streams import Streams
from runtime.worker.cancels import LOOKED_FOR_S, Cancels
from runtime.worker.held import Held
from runtime.worker.orders import Orders

HIGH = 1


@pytest.fixture
def held() -> Held:
    return Held()


def lease(entry: bytes = b"1-1") -> Lease:
    return Lease(HIGH, entry, 1, "", 0.0)


def test_a_mark_of_what_is_held_is_met_at_each_look_and_may_go_when_it_has_left(held: Held) -> None:
    cancels, ours, other = Cancels(), lease(), lease(b"1-2")
    held.add(HIGH, [ours, other])
    cancels.saw(dict.fromkeys(["high/1-1", "low/1-2"], "ann"), 0.0)
    assert cancels.look(held, 0.0) == [(ours, "ann")]
    assert cancels.look(held, 10 * LOOKED_FOR_S) == [(ours, "ann")]
    assert cancels.ended == []
    held.remove([ours])
    assert cancels.look(held, 10 * LOOKED_FOR_S) == []
    assert cancels.ended == [(HIGH, b"1-1")]
    assert cancels.look(held, 10 * LOOKED_FOR_S) == []
    assert cancels.ended == [(HIGH, b"1-1")]


def test_a_mark_of_what_comes_later_is_met_within_a_while_and_forgotten_then(held: Held) -> None:
    cancels, late, later = Cancels(), lease(), lease(b"1-2")
    cancels.saw(dict.fromkeys(["high/1-1", "high/1-2"], "ann"), 0.0)
    assert cancels.look(held, 1.0) == []
    held.add(HIGH, [late])
    assert cancels.look(held, LOOKED_FOR_S) == [(late, "ann")]
    assert cancels.look(held, LOOKED_FOR_S + 1) == [(late, "ann")]
    held.add(HIGH, [later])
    assert cancels.look(held, LOOKED_FOR_S + 2) == [(late, "ann")]
    assert cancels.ended == [], "what was never here is another's"


def test_a_mark_that_is_read_again_is_looked_for_no_longer(held: Held) -> None:
    cancels = Cancels()
    cancels.saw(dict.fromkeys(["high/1-1"], "ann"), 0.0)
    cancels.saw(dict.fromkeys(["high/1-1"], "ann"), LOOKED_FOR_S)
    cancels.look(held, LOOKED_FOR_S + 1)
    held.add(HIGH, [lease()])
    assert cancels.look(held, LOOKED_FOR_S + 1) == []


def test_what_a_stranger_wrote_is_passed_over(held: Held) -> None:
    cancels = Cancels()
    cancels.saw(dict.fromkeys(["", "x", "urgent/1-1", "high", "high/\ufffd"], "ann"), 0.0)
    assert cancels.look(held, 0.0) == []


class Asked:
    """A store that answers with no rules, and keeps from when on marks were asked for."""

    consumer = "me"

    def __init__(self, *times_ms: int) -> None:
        self.times_ms = list(times_ms)
        self.since_ms: list[int] = []

    async def rules(self, since_ms: int) -> tuple[Rules, int, dict[str, str]]:
        self.since_ms.append(since_ms)
        return NO_RULES, self.times_ms.pop(0), {}


async def test_marks_are_read_from_a_little_before_the_last_look_and_all_where_the_clock_went_back() -> None:
    store = Asked(50_000, 60_000, 20_000, 30_000, 40_000)
    orders = Orders(cast("Streams", store))
    for _ in range(5):
        await orders.look("changed")
    assert store.since_ms == [0, 48_000, 58_000, 0, 28_000]
