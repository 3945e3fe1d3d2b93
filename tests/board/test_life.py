"""The life of a job, and what is true of it now in a sentence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from board.life import Life, Lost, ended, ordinal, said, steps_of
from runtime.tries import Try

NOW = 1_000_000
E = "HTTPStatusError: 401 for /x"


def shown(message: str) -> str:
    return message


def kinds(life: Life) -> list[tuple[str, int | None, int, int | None]]:
    return [(step.kind, step.attempt, step.from_ms, step.to_ms) for step in steps_of(life, shown)]


def test_a_job_that_failed_and_runs_again_later() -> None:
    tries = [Try(1, 100, 20, "w1", "v1", E, "data.py:214 fetch"), Try(2, 200, 30, "w2", "v2", E, "data.py:214 fetch")]
    life = Life("delayed", NOW, 50, 3, 5, tries, [Lost(180, "w9")], due_ms=NOW + 180_000, lines={2: ["page 1"]})
    assert kinds(life) == [
        ("waited", None, 50, 100),
        ("attempt", 1, 100, 120),
        ("lost", None, 120, 180),
        ("waited", None, 180, 200),
        ("attempt", 2, 200, 230),
        ("next", 3, 230, NOW + 180_000),
    ]
    first, second = [step for step in steps_of(life, shown) if step.kind == "attempt"]
    assert (first.error, first.message, first.same_as, second.same_as, second.lines) == (
        "HTTPStatusError",
        "401 for /x",
        None,
        1,
        ["page 1"],
    )
    assert said(life) == ["Its second attempt failed with ", "HTTPStatusError", "; it runs again in 3 m, with 3 attempts left."]


def test_who_may_not_see_messages_sees_classes_alone() -> None:
    life = Life("waiting", NOW, 50, 2, tries=[Try(1, 100, 20, error=E), Try(2, 200, 20, error="secret text without a class")])
    told = [(step.error, step.message) for step in steps_of(life, lambda message: None) if step.kind == "attempt"]
    assert told == [("HTTPStatusError", None), ("", None)]


def test_a_replay_begins_anew() -> None:
    life = Life("waiting", NOW, 50, 1, tries=[Try(1, 100, 20, error=E), Try(0, 500), Try(1, 600, 10, error=E)])
    assert [step.same_as for step in steps_of(life, shown) if step.kind == "attempt"] == [None, None]


@pytest.mark.parametrize(
    ("life", "sentence"),
    [
        (Life("waiting", NOW, NOW - 38_000, 1), "It has waited for 38 s."),
        (Life("lot", NOW, NOW - 38_000, 1), "It has waited for 38 s. It waits for its turn."),
        (Life("delayed", NOW, 0, 1, due_ms=NOW + 2000), "It is delayed, and runs in 2 s."),
        (Life("delayed", NOW, 0, 1, due_ms=NOW - 1), "It is delayed, and runs now."),
        (
            Life("claimed", NOW, 0, 3, owner="pay-1 · 8", since_ms=NOW - 41_000),
            "Its third attempt has run for 41 s on pay-1 · 8.",
        ),
        (
            Life("claimed", NOW, 0, 1, owner="pay-1 · 8"),
            "It was handed to pay-1 · 8, and has not started there as far as is known.",
        ),
        (Life("claimed", NOW, 0, 1, owner="pay-1 · 8", is_alive=False), "Worker pay-1 · 8 is gone, while it held this job."),
        (Life("dead", NOW, 0, 8, tries=[Try(8, 5, 5, error=E)]), "It is dead after 8 attempts: HTTPStatusError."),
        (Life("finished", NOW, 0, 1), "It is not here any more: it has ended, and nothing else is known of it."),
        (
            Life("finished", NOW, 0, 1, end=ended("attempt", NOW - 3000, NOW - 2000, outcome="done", worker="w")),
            "It is done, 2 s ago on w, and ran 1 s.",
        ),
    ],
)
def test_what_is_true_now_is_one_sentence(life: Life, sentence: str) -> None:
    assert "".join(said(life, reason="attempts", waits="waits for its turn" if life.state == "lot" else "")) == sentence


def test_ordinals() -> None:
    assert [ordinal(n) for n in (1, 10, 11, 12, 21, 102, 113, 1003)] == [
        *("first", "tenth", "11th", "12th", "21st", "102nd", "113th", "1,003rd"),
    ]


NUMBER = st.integers(0, 2**53)


@given(
    st.sampled_from(["waiting", "claimed", "lot", "delayed", "dead", "finished"]),
    st.lists(
        st.builds(Try, st.integers(0, 99), NUMBER, NUMBER, st.text(max_size=9), st.text(max_size=9), st.text(max_size=9)),
        max_size=9,
    ),
    st.lists(st.builds(Lost, NUMBER, st.text(max_size=9)), max_size=3),
    NUMBER,
    NUMBER,
    st.none() | NUMBER,
)
def test_time_never_goes_back(state: Any, tries: list[Try], lost: list[Lost], born: int, due: int, since: int | None) -> None:
    life = Life(state, NOW, born, 1, None, tries, lost, due, "w", "", since)
    steps = steps_of(life, shown)
    at = 0
    for step in steps:
        assert step.from_ms >= at
        assert step.to_ms is None or step.to_ms >= step.from_ms
        at = step.to_ms if step.to_ms is not None else step.from_ms
    assert len(said(life)) >= 1
