"""`pause`, `resume`, `workers`, `limits`, `audit` through the real process: what they change, what they say, what they refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from runtime.commands.readings import blocked_in_words
from runtime.store.base import WorkerRow
from tests.commands.calls import call, one_line
from tests.commands.test_commands import SCRIPTED
from tests.faults.harness import ROOT
from tests.servers import Server, wait_until

CONTROL = "{jobs}:control"
KEY = "{jobs}:medium"


@pytest.fixture
def raw(valkey: Server) -> Iterator[object]:
    client = valkey.client()
    yield client
    client.close()


@pytest.fixture
def ask(valkey: Server):
    def call_here(*words: str) -> subprocess.CompletedProcess[str]:
        return call(*words, "--redis", valkey.url)

    return call_here


def said(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result
    return result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pause", "Mail!"), ("type must be", "'Mail!'")),
        (("pause", "high"), ("name of a priority",)),
        (("pause", "--priority", "urgent"), ("critical, high, medium, low", "urgent")),
        (("pause", "mail", "--all"), ("not both",)),
        (("pause", "mail", "--for", "soon"), ("--for soon: must be a time such as 90s, 10m, 2h or 1d",)),
        (("pause", "mail", "--for", "0s"), ("for_s must be between 1 and",)),
        (("pause", "--for", "10m"), ("name job types, --priority or --all",)),
        (("pause", "mail", "--reason", "a\nb"), ("reason must be one line",)),
        (("resume",), ("name types or priorities",)),
        (("workers", "stop", "nobody"), ("no worker 'nobody' lives; none does",)),
        (("workers", "quiet"), ("name workers, or choose all of them",)),
        (("limits", "set", "mail"), ("give at least one of --limit, --rate",)),
        (("limits", "set", "mail", "--limit", "many"), ("--limit many: must be a whole number, or none",)),
        (("limits", "set", "mail", "--limit", "0"), ("limit must be", "hint: `pause`")),
        (("limits", "set", "mail", "--rate", "fast"), ("rate must be", "100/m")),
        (("audit", "-n", "0"), ("-n 0: must be between 1 and 10000",)),
    ],
)
def test_bad_orders_are_one_line_and_status_2_and_change_nothing(ask, raw, arguments, words):
    result = ask(*arguments)
    assert result.returncode == 2, result
    line = one_line(result)
    assert all(word in line for word in words), line
    assert raw.keys() == []


def test_a_pause_says_what_it_did_how_it_is_taken_back_and_is_listed(ask, raw, valkey):
    assert said(ask("pause")) == "nothing is paused\n"
    result = ask("pause", "scripted", "--for", "10m", "--reason", "smtp is down", *SCRIPTED)
    assert said(result) == (f"paused for 10m: scripted\ntake it back: python -m runtime resume scripted --redis {valkey.url}\n")
    assert result.stderr == "", "a handler here knows it"
    assert "was paused so already: scripted" in said(
        ask("pause", "scripted", "--for", "10m", "--reason", "smtp is down", *SCRIPTED)
    )
    assert "paused until resumed: the whole queue" in said(ask("pause", "--all"))
    listed = said(ask("pause")).splitlines()
    assert listed[0].startswith("the whole queue until resumed, since ")
    assert listed[1].startswith("scripted until ")
    assert listed[1].endswith(": smtp is down")
    rows = [json.loads(line) for line in said(ask("pause", "--json")).splitlines()]
    assert [(row["name"], row["reason"]) for row in rows] == [("*", ""), ("scripted", "smtp is down")]
    result = ask("resume", "scripted", "other")
    assert said(result) == "goes on: scripted\nwas not paused: other\n"
    assert result.stderr == "still paused: the whole queue\n"
    assert said(ask("resume", "--all")) == "goes on: the whole queue\n"
    assert raw.hkeys(CONTROL) == ["v"]


def test_a_type_that_nobody_knows_is_paused_with_a_note(ask, raw):
    result = ask("pause", "scriptd", "--json", *SCRIPTED)
    assert json.loads(said(result)) == {"changed": ["scriptd"], "unchanged": []}
    assert "no live worker and no handler knows the type scriptd" in one_line(result)
    assert raw.hexists(CONTROL, "pause:scriptd")


def test_several_priorities_are_paused_at_once(ask, raw):
    assert "resume --priority=low --priority=high" in said(ask("pause", "--priority", "low", "--priority", "high"))
    assert set(raw.hkeys(CONTROL)) == {"v", "pause:low", "pause:high"}
    assert len(raw.xrange("{jobs}:audit")) == 1


def test_limits_are_set_listed_and_cleared(ask, raw):
    result = ask("limits", "set", "scripted", "--limit", "3", "--group-rate", "none", *SCRIPTED)
    assert said(result).startswith(
        "set limit 3, group_rate none: scripted\ntake it back: python -m runtime limits clear scripted"
    )
    assert said(result).splitlines()[1].split(" --redis")[0].endswith("--limit --group-rate")
    assert json.loads(raw.hget(CONTROL, "limit:scripted")) == {"limit": 3, "group_rate": None}
    assert said(ask("limits", "list")).split() == ["scripted", "limit", "3,", "group_rate", "none"]
    assert json.loads(said(ask("limits", "list", "--json"))) == {"type": "scripted", "limit": 3, "group_rate": None}
    assert "the code's group_rate hold again: scripted" in said(ask("limits", "clear", "scripted", "--group-rate"))
    assert "the code's limits hold again: scripted" in said(ask("limits", "clear", "scripted"))
    assert "nothing was set: scripted" in said(ask("limits", "clear", "scripted"))


def test_the_audit_names_the_order_the_reason_and_who(ask):
    assert said(ask("audit")) == "nothing was ordered yet\n"
    ask("pause", "--priority", "low", "--reason", "too \x1b[31mmuch")
    ask("pause", "--priority", "low", "--reason", "too much")
    ask("resume", "--priority", "low")
    lines = said(ask("audit")).splitlines()
    assert [line.partition(": ")[2] for line in lines] == ["del pause:low", "pause pause:low 0 (too much)"]
    assert "@" in lines[0]
    [row] = [json.loads(line) for line in said(ask("audit", "-n", "1", "--json")).splitlines()]
    assert (row["what"], row["reason"]) == ("del pause:low", "")


def test_a_worker_is_listed_quieted_resumed_and_stopped_and_works_meanwhile_as_ordered(ask, raw, valkey):
    command = [sys.executable, "-m", "runtime", "--redis", valkey.url, *SCRIPTED, "--board", "off", "--lease", "1"]
    worker = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: raw.exists("{jobs}:workers"), what="it lives")
        [row] = [json.loads(line) for line in said(ask("workers", "list", "--json")).splitlines()]
        name = row["name"]
        assert (row["pid"], row["order"]) == (worker.pid, "")
        assert f"starts nothing new: {name}" in said(ask("workers", "quiet", name[:-3], "--reason", "a look"))
        assert f"was quiet already: {name}" in said(ask("workers", "quiet", name))
        wait_until(lambda: '"stage":"quiet"' in raw.hget("{jobs}:workers:rows", name), what="it says so")
        raw.xadd(KEY, {"type": "scripted", "data": '{"n":1}'})
        listed = said(ask("workers", "list"))
        assert name in listed
        assert " quiet " in listed
        assert raw.xlen(KEY) == 1
        assert f"goes on: {name}" in said(ask("workers", "resume", "--all"))
        wait_until(lambda: raw.xlen(KEY) == 0, what="it works")
        assert f"stops: {name}" in said(ask("workers", "stop", name))
        assert worker.wait(60) == 0
        assert "1 runs finished" in (worker.stderr.read() if worker.stderr else "")
        assert said(ask("workers", "stop", "--all")) == "nothing was to do\n"
    finally:
        if worker.poll() is None:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        if worker.stderr:
            worker.stderr.close()


def test_the_types_that_have_blocked_a_workers_loop_most_often_stand_with_it():
    row = WorkerRow(blocked={"a": 1, "pdf\x1b": 12, "": 3}, blocked_ms={"pdf\x1b": 1480, "": 120})
    assert blocked_in_words(row) == "pdf\ufffd 12 times, up to 1,480 ms, (unknown) 3 times, up to 120 ms"
    assert blocked_in_words(WorkerRow()) == ""
