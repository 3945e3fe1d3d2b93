"""Each rule of the four questions: what is found, how bad it is, in which words, and where its link leads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from board import words
from board.overview import STEADY_JOBS, STEADY_PART
from board.picture import Picture, errors_of
from board.shapes import Verdict
from board.verdicts import Dead, Limits, verdicts
from runtime.store.base import WorkerRow
from tests.board.looks import LEASE_MS, MINUTE, NOW_MS, ROW, minute, paused, picture, sample

AT = ["stuck", "failing", "workers", "died"]


def answer(question: str, look: Picture, limits: Limits | None = None, dead: Dead | None = None) -> Verdict:
    return verdicts(look, limits or Limits(), dead or Dead())[AT.index(question)]


def told(question: str, look: Picture, **more: Any) -> tuple[str, str, str]:
    found = answer(question, look, **more)
    assert found.said
    assert len(found.said) == 1 or all(part for part in found.said[1:]), "only the first part may be empty"
    return found.level, "".join(f"**{part}**" if at % 2 else part for at, part in enumerate(found.said)), found.href


def row(**members: Any) -> WorkerRow:
    return msgspec.structs.replace(ROW, **members)


def last_minutes(*, done: int = 0, retry: int = 0, dead: int = 0, type_name: str = "greet") -> dict[int, Any]:
    """Return the closed minutes with all of it in the third last one."""
    return {3: minute(done, retry, dead, type_name=type_name)}


# --- is anything stuck? --------------------------------------------------------------------------------------------------------

WAITS = {"waiting": {"low": 1_203_866}, "oldest_ms": {"low": 8_040_000}}
BEFORE = sample(NOW_MS - 10_000, waiting={"low": 1_202_666}, delivered={"low": "1-0"})
IDLE = sample(NOW_MS - 11_000, waiting={"high": 3}, delivered={"high": "5-0"})
STUCK = [
    ("nothing waits", picture(), "ok", "Nothing waits.", "/jobs?state=waiting"),
    ("one waits", picture(sample(waiting={"low": 1}, oldest_ms={"low": 9_000})), "ok", "One job waits, for **9 s**.", None),
    (
        "some wait, none for long",
        picture(sample(waiting={"low": 5, "high": 2}, oldest_ms={"low": 9_000, "high": 100})),
        "ok",
        "7 jobs wait, the oldest for **9 s**.",
        None,
    ),
    (
        "the oldest is over its limit",
        picture(sample(**WAITS)),
        "look",
        "**low**: the oldest of 1,203,866 jobs has waited **2 h 14 m**, limit 2 h.",
        "/jobs?state=waiting&q=pri%3Alow",
    ),
    (
        "and grows",
        picture(sample(**WAITS), before=BEFORE),
        "look",
        "**low**: the oldest of 1,203,866 jobs has waited **2 h 14 m**, limit 2 h. The backlog grows by 120 a second.",
        None,
    ),
    (
        "at its limit is no more than that",
        picture(sample(waiting={"critical": 2}, oldest_ms={"critical": 5_000})),
        "ok",
        "2 jobs wait, the oldest for **5 s**.",
        None,
    ),
    (
        "each priority has its own limit",
        picture(sample(waiting={"critical": 2}, oldest_ms={"critical": 5_001})),
        "look",
        "**critical**: the oldest of 2 jobs has waited **5 s**, limit 5 s.",
        None,
    ),
    (
        "what is paused may wait",
        picture(sample(**WAITS), rules=paused("low")),
        "ok",
        "1,203,866 jobs wait, the oldest for **2 h 14 m**. Paused: low.",
        None,
    ),
    (
        "more waits after each of five minutes",
        picture(
            sample(
                waiting={"high": 60},
                oldest_ms={"high": 900},
                minutes={MINUTE: minute(), MINUTE - 1: minute(depth={"high": 50})},
            ),
            minutes={ago: minute(depth={"high": 60 - 10 * ago}) for ago in range(2, 6)},
        ),
        "look",
        "**high**: more waits after each of the last 5 minutes, 60 jobs now.",
        None,
    ),
    (
        "once it did not",
        picture(
            sample(
                waiting={"high": 60},
                oldest_ms={"high": 900},
                minutes={MINUTE: minute(), MINUTE - 1: minute(depth={"high": 50})},
            ),
            minutes={ago: minute(depth={"high": 60 - 10 * ago + 10 * (ago == 3)}) for ago in range(2, 6)},
        ),
        "ok",
        "60 jobs wait, the oldest for **900 ms**.",
        None,
    ),
    (
        "a lot of a type that nobody knows",
        picture(sample(held={("~t:send-sms@2", "high"): 8}, lots={"high": 8})),
        "act",
        "8 jobs wait for a worker that knows **send-sms**; none that lives does.",
        "/queue",
    ),
    (
        "a version of it that nobody knows",
        picture(sample(held={("~t:greet@2", "high"): 1}, lots={"high": 1})),
        "look",
        "1 job waits for a worker that knows **greet version 2**; none that lives does.",
        "/queue",
    ),
    (
        "no worker lives",
        picture(sample(waiting={"high": 3}, oldest_ms={"high": 100}, until_ms={})),
        "act",
        "**3 jobs** wait and no worker lives.",
        "/workers",
    ),
    (
        "nothing was fetched while lanes are free",
        picture(sample(waiting={"high": 3}, delivered={"high": "5-0"}, oldest_ms={"high": 100}), before=IDLE),
        "act",
        "Nothing was fetched for **11 s**, while 3 jobs wait and lanes are free.",
        "/workers",
    ),
    (
        "something was",
        picture(sample(waiting={"high": 3}, delivered={"high": "6-0"}, oldest_ms={"high": 100}), before=IDLE),
        "ok",
        "3 jobs wait, the oldest for **100 ms**.",
        None,
    ),
    (
        "all lanes are busy",
        picture(
            sample(waiting={"high": 3}, delivered={"high": "5-0"}, oldest_ms={"high": 100}),
            before=IDLE,
            rows={"w1": row(running={"greet": 500})},
        ),
        "ok",
        "3 jobs wait, the oldest for **100 ms**.",
        None,
    ),
    (
        "what is not fetched is paused",
        picture(sample(waiting={"high": 3}, delivered={"high": "5-0"}, oldest_ms={"high": 100}), before=IDLE, rules=paused("*")),
        "ok",
        "3 jobs wait, the oldest for **100 ms**. Paused: critical, high, medium and low.",
        None,
    ),
    (
        "claims of one that is long gone",
        picture(sample(held={("w9", "high"): 2}, claimed={"high": 2})),
        "act",
        "**2 jobs** of w9, which is gone, should have come back by now.",
        "/jobs?state=claimed&facet=gone",
    ),
    (
        "claims of one that is gone for a moment",
        picture(
            sample(
                held={("w9", "high"): 2},
                claimed={"high": 2},
                until_ms={"w1": NOW_MS + LEASE_MS, "w9": NOW_MS - 4_000},
            ),
            rows={"w1": ROW, "w9": ROW},
        ),
        "ok",
        "Nothing waits.",
        None,
    ),
    (
        "a delayed job is late",
        picture(sample(delayed=1, next_due_ms=NOW_MS - 6_000)),
        "act",
        "A delayed job is **6 s** late: nobody moves it.",
        "/jobs?state=delayed",
    ),
    ("one is due", picture(sample(delayed=1, next_due_ms=NOW_MS - 4_000)), "ok", "Nothing waits.", None),
]


@pytest.mark.parametrize(("look", "level", "said", "href"), [case[1:] for case in STUCK], ids=[case[0] for case in STUCK])
def test_is_anything_stuck(look: Picture, level: str, said: str, href: str | None) -> None:
    found = told("stuck", look)
    assert found[:2] == (level, said)
    assert href is None or found[2] == href


def test_the_worst_is_said_first_and_no_more_than_two_of_it() -> None:
    held = {("~t:a@1", "high"): 3, ("~t:b@1", "high"): 2, ("~t:c@1", "high"): 1}
    level, said, href = told("stuck", picture(sample(held=held, **WAITS)))
    first = "3 jobs wait for a worker that knows **a**; none that lives does. 2 jobs wait for a worker that knows **b**;"
    assert (level, said, href) == ("act", f"{first} none that lives does. And 2 more.", "/queue")


# --- why do jobs fail? ---------------------------------------------------------------------------------------------------------

DAY = {ago: minute(100) for ago in range(100, 200)}
FAILING = [
    ("no run ended", picture(), "ok", "No run ended in 5 min."),
    ("none failed", picture(minutes=last_minutes(done=40)), "ok", "None of 40 runs failed in 5 min."),
    (
        "few failed",
        picture(minutes=last_minutes(done=95, retry=5)),
        "ok",
        "**5 %** of 100 runs failed in 5 min, no type stands out.",
    ),
    ("too few runs", picture(minutes=last_minutes(retry=19)), "ok", "**100 %** of 19 runs failed in 5 min, no type stands out."),
    (
        "more than 5 %",
        picture(minutes=last_minutes(done=94, retry=4, dead=2) | DAY),
        "look",
        "**greet**: 6 % of 100 runs failed in 5 min, 0.06 % over 24 h.",
    ),
    (
        "and not more than is usual",
        picture(minutes=last_minutes(done=94, retry=6) | {ago: minute(97, 3) for ago in range(100, 200)}),
        "ok",
        "**6 %** of 100 runs failed in 5 min, no type stands out.",
    ),
    ("more than half", picture(minutes=last_minutes(done=9, retry=11)), "act", "**greet**: 55 % of 20 runs failed in 5 min."),
    (
        "mostly of one error",
        picture(minutes=last_minutes(done=9, retry=11), errors={"greet": ("HTTPStatusError", 0.95)}),
        "act",
        "**greet**: 55 % of 20 runs failed in 5 min. Nearly all **HTTPStatusError**.",
    ),
]


@pytest.mark.parametrize(("look", "level", "said"), [case[1:] for case in FAILING], ids=[case[0] for case in FAILING])
def test_why_do_jobs_fail(look: Picture, level: str, said: str) -> None:
    assert told("failing", look) == (level, said, "/types" if level == "ok" else "/type?type=greet")


# --- what do workers do? -------------------------------------------------------------------------------------------------------

OLD = sample(until_ms={"w1": NOW_MS + LEASE_MS - 19_000})
TWO = {"w1": NOW_MS + LEASE_MS, "w2": NOW_MS + LEASE_MS}
WORKERS = [
    ("all is well", picture(), "ok", "**1 of 1** beats. 0 of 500 lanes busy, no loop blocked, one version."),
    (
        "two are well",
        picture(
            sample(until_ms=TWO),
            rows={"w1": row(running={"greet": 400}), "w2": row(running={"greet": 38}, app="1.4.3", since=NOW_MS)},
        ),
        "ok",
        "**2 of 2** beat. 438 of 1,000 lanes busy, no loop blocked, 2 versions.",
    ),
    ("none beats", picture(sample(until_ms={})), "act", "No worker beats."),
    ("a beat is late", picture(OLD), "look", "**web-a · 4121** has not beaten for 19 s."),
    (
        "its loop is slow",
        picture(rows={"w1": row(lag=140)}),
        "look",
        "The loop of **web-a · 4121** stood still for 140 ms in the last minute.",
    ),
    (
        "its loop is blocked",
        picture(rows={"w1": row(lag=2_100, blocked_ms={"": 5_000, "greet": 2_100}, where={"greet": "handlers/a.py:12"})}),
        "act",
        "The loop of **web-a · 4121** stood still for 2.1 s in the last minute, by greet in handlers/a.py:12.",
    ),
    (
        "one is gone, and held jobs",
        picture(sample(held={("w9", "high"): 2}), rows={"w1": ROW, "w9": row(pid=9)}),
        "act",
        "**web-a · 9** is gone; its 2 jobs come back soon.",
    ),
    (
        "two versions for long",
        picture(
            sample(until_ms=TWO), rows={"w1": row(since=NOW_MS - 1_900_000), "w2": row(app="1.4.3", since=NOW_MS - 1_850_000)}
        ),
        "look",
        "2 versions have run for over 30 m: **1.4.2 and 1.4.3**.",
    ),
    (
        "two versions of a deploy",
        picture(sample(until_ms=TWO), rows={"w1": ROW, "w2": row(app="1.4.3", since=NOW_MS - 60_000)}),
        "ok",
        "**2 of 2** beat. 0 of 1,000 lanes busy, no loop blocked, 2 versions.",
    ),
]


@pytest.mark.parametrize(("look", "level", "said"), [case[1:] for case in WORKERS], ids=[case[0] for case in WORKERS])
def test_what_do_workers_do(look: Picture, level: str, said: str) -> None:
    assert told("workers", look)[:2] == (level, said)


# --- what died? ----------------------------------------------------------------------------------------------------------------

DIED = [
    ("nothing", picture(), Dead(), "ok", "Nothing died."),
    ("long ago", picture(sample(dead=132)), Dead(5), "ok", "None died in the last hour, 132 letters are kept."),
    (
        "some of many runs",
        picture(sample(dead=132), minutes={3: minute(9_000, dead=41)}),
        Dead(5, 1, "ab12"),
        "look",
        "**41** died in the last hour, 132 letters are kept. **1 group** still grows.",
    ),
    (
        "one of a hundred",
        picture(sample(dead=1), minutes={3: minute(99, dead=1)}),
        Dead(),
        "look",
        "**1** died in the last hour, 1 letter is kept.",
    ),
    (
        "more of them",
        picture(sample(dead=2), minutes={3: minute(97, dead=2)}),
        Dead(),
        "act",
        "**2** died in the last hour, 2 letters are kept.",
    ),
    (
        "of few runs",
        picture(sample(dead=2), minutes={3: minute(2, dead=2)}),
        Dead(),
        "look",
        "**2** died in the last hour, 2 letters are kept.",
    ),
]


@pytest.mark.parametrize(("look", "dead", "level", "said"), [case[1:] for case in DIED], ids=[case[0] for case in DIED])
def test_what_died(look: Picture, dead: Dead, level: str, said: str) -> None:
    href = f"/dead?group={dead.first}" if dead.first else "/dead"
    assert told("died", look, dead=dead) == (level, said, href)


def test_the_class_that_most_failures_have_is_told_and_never_their_message() -> None:
    failures = [("a", "ValueError: 4711")] * 3 + [("a", "KeyError: x"), ("a", ""), ("b", "the server said: no"), ("", "OSError")]
    assert errors_of(failures) == {"a": ("ValueError", 0.75), "": ("OSError", 1.0)}


def test_the_limits_are_settings() -> None:
    look = picture(sample(waiting={"low": 1}, oldest_ms={"low": 9_000}))
    assert answer("stuck", look, Limits(oldest_ms={"low": 8_000})).level == "look"


def test_a_strangers_names_stay_text_and_addresses() -> None:
    name = "x&y=<b>\u202e" + "z" * 100
    found = answer("failing", picture(minutes=last_minutes(retry=20, type_name=name)))
    assert "\u202e" not in "".join(found.said)
    assert found.href == "/type?type=x%26y%3D%3Cb%3E%E2%80%AE" + "z" * 100


def test_the_limits_in_the_docs_are_those_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "board.md").read_text("utf-8")
    limits = Limits()
    oldest = ", ".join(f"{name} {words.duration(ms)}" for name, ms in limits.oldest_ms.items())
    for said in (
        f"over its limit ({oldest})",
        f"each of the last {limits.grew_minutes} minutes",
        f"fetched for {words.duration(limits.idle_ms)}",
        f"over {words.duration(limits.late_ms)} late",
        f"over {words.percent(limits.failed_look)} of a type's runs failed in 5 minutes (of {limits.few_runs} runs or more)",
        f"over {limits.failed_times:g} times",
        f"| over {words.percent(limits.failed_act)} |",
        f"over {words.duration(limits.lag_ms)} in the last minute",
        f"run for over {words.duration(limits.versions_ms)} |",
        f"stood still for over {words.duration(limits.blocked_ms)}, by which",
        f"over {words.percent(limits.died_act)} of the runs of {limits.died_minutes} minutes died (of {limits.few_runs} runs",
        f"fewer than {STEADY_JOBS} jobs in ten seconds, or by less than {words.percent(STEADY_PART)}",
    ):
        assert said in text, said
