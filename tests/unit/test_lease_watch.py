"""LeaseWatch: what follows from confirmed heartbeats, with a clock that the test owns."""

from __future__ import annotations

import pytest

from runtime.worker.heartbeat import LATE_PART, ON_THE_WAY_S, SILENT_PART, Beat, LeaseWatch

LEASE_S = 30.0
LATE_S = LATE_PART * LEASE_S + ON_THE_WAY_S


class Clock:
    """A clock that stands where it is put."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(clock: Clock) -> LeaseWatch:
    leases = LeaseWatch(LEASE_S, clock)
    leases.confirm(Beat(clock.now_s, "run", []))
    return leases


def beat(clock: Clock, run_id: str = "run") -> Beat:
    return Beat(clock.now_s, run_id, [])


def test_a_worker_is_silent_when_no_beat_was_confirmed_for_most_of_a_lease(clock: Clock, leases: LeaseWatch) -> None:
    clock.now_s += SILENT_PART * LEASE_S
    assert not leases.is_silent
    clock.now_s += 0.01
    assert leases.is_silent
    assert "silent" in repr(leases)
    leases.confirm(beat(clock))
    assert not leases.is_silent


def test_a_beat_counts_from_when_it_was_sent_and_not_from_its_answer(clock: Clock, leases: LeaseWatch) -> None:
    sent = beat(clock)
    clock.now_s += SILENT_PART * LEASE_S + 0.01
    leases.confirm(sent)
    assert leases.is_silent


def test_the_first_beat_is_counted_from_when_the_worker_says_so(clock: Clock) -> None:
    leases = LeaseWatch(LEASE_S, clock)
    clock.now_s += LEASE_S
    assert leases.is_silent
    leases.begin()
    assert not leases.is_silent


def test_an_answer_is_late_when_its_lease_could_end_before_the_next_beat(clock: Clock, leases: LeaseWatch) -> None:
    asked_s = clock.now_s
    clock.now_s += LATE_S - 0.001
    assert not leases.is_late(asked_s)
    clock.now_s += 0.01
    assert leases.is_late(asked_s)


def test_what_was_asked_for_in_a_silence_is_late_however_soon_it_came(clock: Clock, leases: LeaseWatch) -> None:
    asked_s = clock.now_s + LEASE_S - 0.1
    clock.now_s += LEASE_S
    leases.confirm(beat(clock))
    assert leases.is_late(asked_s)
    assert not leases.is_late(clock.now_s)


def test_what_was_asked_for_between_beats_that_came_in_time_is_not_late(clock: Clock, leases: LeaseWatch) -> None:
    clock.now_s += LEASE_S / 3
    asked_s = clock.now_s
    leases.confirm(beat(clock))
    assert not leases.is_late(asked_s)


def test_a_worker_reclaims_from_its_first_beat_on(clock: Clock, leases: LeaseWatch) -> None:
    assert leases.may_reclaim


@pytest.mark.parametrize(("gap_s", "run_id"), [(LEASE_S / 2 + 0.01, "run"), (LEASE_S / 3, "another run")])
def test_after_a_gap_or_a_restart_a_worker_reclaims_nothing_for_a_lease(
    clock: Clock, leases: LeaseWatch, gap_s: float, run_id: str
) -> None:
    clock.now_s += gap_s
    leases.confirm(beat(clock, run_id))
    assert not leases.may_reclaim
    for _ in range(4):
        clock.now_s += LEASE_S / 4
        assert not leases.may_reclaim
        leases.confirm(beat(clock, run_id))
    clock.now_s += 0.01
    assert leases.may_reclaim


def test_a_silent_worker_reclaims_nothing(clock: Clock, leases: LeaseWatch) -> None:
    clock.now_s += SILENT_PART * LEASE_S + 0.01
    assert not leases.may_reclaim
