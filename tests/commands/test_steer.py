"""`jobs cancel`, `now`, `priority` through the real process: what they say, and their statuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.commands.calls import call, one_line
from tests.servers import Server

HIGH = "{jobs}:high"


@pytest.fixture
def raw(valkey: Server) -> Iterator[Any]:
    client = valkey.client()
    yield client
    client.close()


@pytest.fixture
def ask(valkey: Server):
    return lambda *words: call(*words, "--redis", valkey.url)


def send(raw: Any, job_id: str, holder: str = "") -> str:
    entry = raw.xadd(HIGH, {"type": "t", "data": "{}", "id": job_id})
    if holder:
        if not raw.xinfo_groups(HIGH):
            raw.xgroup_create(HIGH, "workers", "0")
        raw.xreadgroup("workers", holder, {HIGH: ">"})
    return entry


def test_a_cancel_says_what_became_of_the_job_and_may_be_given_again(ask, raw):
    send(raw, "j")
    first = ask("jobs", "cancel", "j", "--reason", "why")
    assert (first.returncode, first.stdout) == (0, "j (t) is a dead letter now (cancelled)\n")
    [(letter, _)] = raw.xrange("{jobs}:dead")
    assert f"send it back: python -m runtime dead replay {letter} --redis" in first.stderr
    again = ask("jobs", "cancel", "j")
    assert (again.returncode, again.stdout) == (0, "j (t) is a dead letter already (cancelled)\n")
    nothing = ask("jobs", "cancel", "nobody")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert "no job nobody: it is done, or never was; looked at: delayed jobs, the newest 10,000 entries" in one_line(nothing)


@pytest.mark.parametrize("state", ["done", "dead"])
def test_a_job_that_is_over_is_told_by_its_result(ask, raw, state):
    raw.set("{jobs}:results:over", json.dumps({"state": state, "at": 1, "value": 3}))
    told = ask("jobs", "cancel", "over")
    assert (told.returncode, f"no job over: it is {state}, its result says" in one_line(told)) == (1, True)


def test_what_a_worker_has_is_asked_for_and_not_moved(ask, raw):
    send(raw, "j", "w-1")
    asked = ask("jobs", "cancel", "j", "--json")
    told = json.loads(asked.stdout)
    assert (asked.returncode, told["id"], told["answer"], told["holder"]) == (0, "j", "asked", "w-1")
    for words in (("now", "j"), ("priority", "j", "low")):
        held = ask("jobs", *words)
        assert (held.returncode, "worker w-1 has it" in held.stdout) == (1, True)


def test_a_suspect_stays_where_it_is(ask, raw):
    entry = send(raw, "j", "w-1")
    raw.xclaim(HIGH, "workers", "~suspect", 0, [entry], retrycount=1, justid=True)
    held = ask("jobs", "priority", f"high/{entry}", "low")
    assert (held.returncode, "waits to be run apart" in held.stdout) == (1, True)


def test_what_waits_already_needs_nothing(ask, raw):
    send(raw, "j")
    assert ask("jobs", "now", "j").stdout == "j (t) waits for a free worker already\n"
    assert ask("jobs", "priority", "j", "high").stdout == "j (t) has that priority already\n"
    moved = ask("jobs", "priority", "j", "low")
    assert (moved.returncode, moved.stdout) == (0, "j (t) waits with that priority now\n")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("cancel", "urgent/1-1"), "must be the place of a job, such as high/1732400000000-0 or due/order-1"),
        (("cancel", ""), "name a job, or choose them"),
        (("cancel", "j", "--reason", "a\nb"), "reason must be one line"),
        (("priority", "j", "urgent"), "invalid choice: 'urgent'"),
    ],
)
def test_what_cannot_be_meant_is_one_line_and_status_2(ask, raw, words, text):
    result = ask("jobs", *words)
    assert (result.returncode, text in one_line(result)) == (2, True), result
