"""Circuits, with the time as an argument."""

from __future__ import annotations

import logging

import pytest

from handlers.kit.circuits import FAULTS, MAX_NAMES, MAX_OPEN_S, OPEN_S, Circuits


def opened(now_s: float = 0.0) -> Circuits:
    circuits = Circuits()
    for _ in range(FAULTS):
        assert circuits.wait_s("a", now_s) == 0
        circuits.failed("a", now_s)
    return circuits


def test_faults_in_a_row_open_it_for_this_name_alone() -> None:
    circuits = opened()
    assert circuits.wait_s("a", 0.0) == OPEN_S
    assert circuits.wait_s("a", OPEN_S - 1) == 1
    assert circuits.wait_s("b", 0.0) == 0
    assert repr(circuits) == "<Circuits: 1 open of 1>"


def test_an_answer_between_two_faults_begins_the_row_anew() -> None:
    circuits = Circuits()
    for _ in range(3):
        for _ in range(FAULTS - 1):
            circuits.failed("a", 0.0)
        circuits.succeeded("a")
    assert circuits.wait_s("a", 0.0) == 0


def test_after_its_time_one_probe_goes_before_the_others_and_closes_it() -> None:
    circuits = opened()
    assert circuits.wait_s("a", OPEN_S) == 0
    assert circuits.wait_s("a", OPEN_S) == OPEN_S
    circuits.succeeded("a")
    assert circuits.wait_s("a", OPEN_S) == 0
    assert circuits.wait_s("a", OPEN_S) == 0
    circuits.failed("a", OPEN_S)
    assert circuits.wait_s("a", OPEN_S) == 0  # the row begins anew


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_limit() -> None:
    circuits, now_s, waits = opened(), 0.0, []
    for _ in range(6):
        waits.append(circuits.wait_s("a", now_s))
        now_s += waits[-1]
        assert circuits.wait_s("a", now_s) == 0
        circuits.failed("a", now_s)
    assert waits == [30, 60, 120, 240, MAX_OPEN_S, MAX_OPEN_S]


def test_a_probe_that_is_cut_leaves_its_place_to_the_next() -> None:
    circuits = opened()
    assert circuits.wait_s("a", OPEN_S) == 0
    circuits.cut("a")
    assert circuits.wait_s("a", OPEN_S) == 0
    assert circuits.wait_s("a", OPEN_S) == OPEN_S


def test_a_probe_that_never_comes_back_does_not_keep_it_open() -> None:
    circuits = opened()
    assert circuits.wait_s("a", OPEN_S) == 0
    assert circuits.wait_s("a", OPEN_S + 10) == OPEN_S - 10
    assert circuits.wait_s("a", 2 * OPEN_S) == 0


def test_what_began_before_it_opened_does_not_prolong_it() -> None:
    circuits = opened()
    circuits.failed("a", 20.0)
    circuits.cut("a")
    assert circuits.wait_s("a", 20.0) == 10


def test_the_log_says_when_it_opens_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "handlers"):
        circuits = opened()
        circuits.wait_s("a", OPEN_S)
        circuits.succeeded("a")
        circuits.failed("b", 0.0)
        circuits.succeeded("b")
    assert [each.getMessage() for each in caplog.records] == [
        "a: 5 faults in a row; its circuit is open, and its jobs wait, for 30 s",
        "a answers again; its circuit is closed",
    ]


def test_names_from_payloads_do_not_fill_the_memory() -> None:
    circuits = Circuits()
    for number in range(MAX_NAMES + 10):
        circuits.failed(str(number), 0.0)
    assert repr(circuits) == f"<Circuits: 0 open of {MAX_NAMES}>"
