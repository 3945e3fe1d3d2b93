"""What a check finds: a table of letters, workers and what follows."""

from __future__ import annotations

from typing import Any

import pytest

from board.checks import Looked, Team, find
from runtime.store.letters import Head

NOW = 1_000_000
V2 = Team({"t": 2}, "v7")


def looked(fits: bool | None = True, problem: str = "", **more: Any) -> Looked:
    fixed: dict[str, Any] = {"id": "j", "type": "t", "reason": "attempts", "error": "e", "has_stack": True, "frame": "", "by": ""}
    fixed |= {"app": "", "attempts": 1, "at_ms": 1, "stood": "low/7-1", "size": 9, "trace": "", "key": "", "exp_ms": None}
    fixed |= {"version": 1, "is_msgpack": False, "operation": "", "args": b"", "args_bytes": 0, "stays": ""}
    return Looked(Head(place="1-1", **fixed | more), fits, problem)


@pytest.mark.parametrize(
    ("one", "teams", "paused", "kind"),
    [
        (looked(), [V2], [], "would-run"),
        (looked(version=2), [V2], [], "would-run"),
        (looked(fits=None), [V2], [], "would-run"),
        (looked(exp_ms=NOW + 1), [V2], [], "would-run"),
        (looked(exp_ms=NOW), [V2], [], "expired"),
        (looked(), [V2], ["u", "high"], "would-run"),
        (looked(), [V2], ["t"], "paused"),
        (looked(), [V2], ["low"], "paused"),
        (looked(), [V2], ["*"], "paused"),
        (looked(fits=False), [V2], [], "unfit"),
        (looked(), [], [], "unknown-type"),
        (looked(version=3), [V2], [], "unknown-type"),
        (looked(), [Team({"u": 1})], [], "unknown-type"),
        (looked(stays="owned", fits=False), [V2], ["t"], "owned"),
        (looked(stays="unreadable"), [V2], [], "unreadable"),
        (looked(stays="left-out"), [V2], [], "left-out"),
    ],
)
def test_each_letter_counts_once(one: Looked, teams: list[Team], paused: list[str], kind: str) -> None:
    found = find([one], 0, teams, paused, NOW)
    assert [(finding.kind, finding.count) for finding in found] == [(kind, 1)]


def test_findings_say_why() -> None:
    letters = [looked(), looked(fits=False, problem="a.b: must be a number"), looked(stays="owned", key="crm:acme")]
    found = {finding.kind: finding for finding in find(letters, 3, [V2, V2], [], NOW)}
    assert found["would-run"].why == "2 live workers know t@1; the type is not paused."
    assert found["unfit"].why == "a.b: must be a number. They would die again at once."
    assert "the key crm:acme" in found["owned"].why and found["owned"].level == "act"
    assert found["gone"].count == 3


@pytest.mark.parametrize(
    ("apps", "running", "is_told"),
    [
        (["v7", "v7"], ["v7", "v7"], True),
        (["v7", "v7"], ["v7", "v8"], False),
        (["v7", "v6"], ["v7"], False),
        (["", ""], [""], False),
        (["v7"], [], False),
    ],
)
def test_workers_that_still_run_what_all_died_on(apps: list[str], running: list[str], is_told: bool) -> None:
    found = find([looked(app=app) for app in apps], 0, [Team({"t": 1}, app) for app in running], [], NOW)
    told = [finding.text for finding in found if finding.kind == "same-version"]
    assert told == (["every worker still runs v7, on which all of these died"] if is_told else [])
