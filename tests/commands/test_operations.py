"""Operations over many through the real process: how they are begun, shown, left alone, stopped and taken up again."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.commands.calls import call, one_line
from tests.commands.test_on_call import bury
from tests.faults.harness import ROOT
from tests.servers import Server, wait_until

DEAD = "{jobs}:dead"


@pytest.fixture
def raw(valkey: Server) -> Iterator[Any]:
    client = valkey.client()
    yield client
    client.close()


@pytest.fixture
def ask(valkey: Server):
    def call_here(*words: str) -> subprocess.CompletedProcess[str]:
        return call(*words, "--redis", valkey.url)

    return call_here


def started(valkey: Server, *words: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "runtime", *words, "--redis", valkey.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, **options)


def name_in(text: str) -> str:
    found = re.search(r"operation ((?:replay|purge|cancel|now|priority)-[0-9a-f]{8})", text)
    assert found, text
    return found[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("dead", "replay"), ("name letters", "--all")),
        (("dead", "purge", "1-1", "--all"), ("not both",)),
        (("dead", "purge", "nonsense"), ("not the place of a dead letter",)),
        (("dead", "purge", "--older-than", "soon"), ("--older-than soon: must be a time",)),
        (("dead", "purge", "--older-than", "nan"), ("--older-than nan",)),
        (("jobs", "cancel"), ("name a job", "--all")),
        (("jobs", "cancel", "x", "--all"), ("not both",)),
        (("jobs", "cancel", "x", "--dry-run"), ("--dry-run is about many",)),
        (("jobs", "cancel", "--state", "waiting"), ("--state", "--type, --group, --older-than or --all chooses")),
        (("jobs", "cancel", "x", "--state", "waiting"), ("--state is about many",)),
        *[
            (("operations", *words), ("no operation 'nothing'; hint: `operations list`",))
            for words in (
                ("show", "nothing"),
                ("follow", "nothing"),
                ("resume", "nothing"),
                ("rate", "nothing", "1"),
                ("drop", "nothing"),
            )
        ],
        (("operations", "show", "A b"), ("id must be",)),
        (("operations", "stop", "nothing"), ("no operation 'nothing'",)),
        (("operations", "rate", "nothing", "1e9"), ("rate must be between",)),
    ],
)
def test_bad_orders_are_one_line_and_status_2_and_change_nothing(ask, raw, arguments, words):
    result = ask(*arguments)
    assert result.returncode == 2, result
    line = one_line(result)
    assert all(word in line for word in words), line
    assert raw.keys() == []


def test_a_rate_that_cannot_be_is_refused_before_anything_is_done(ask, raw):
    bury(raw, 3)
    result = ask("dead", "replay", "--all", "--rate", "-1")
    assert (result.returncode, "rate must be between" in one_line(result)) == (2, True)
    assert raw.keys() == [DEAD]


def test_what_is_held_is_undone_by_a_stop(ask, raw, valkey):
    bury(raw, 30)
    running = started(valkey, "dead", "purge", "--all")
    wait_until(lambda: raw.zcard("{jobs}:operations") == 1, what="it is ordered")
    [name] = raw.zrange("{jobs}:operations", 0, -1)
    stopped = ask("operations", "stop", name, "--reason", "a mistake")
    assert (stopped.returncode, f"stopped: {name}" in stopped.stdout) == (0, True)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 1
    for words in (
        f"operation {name}: 30 meant, purge of dead: all; begins in 10 s",
        f"stop it: python -m runtime operations stop {name}",
    ):
        assert words in said, said
    assert f"operation {name} is stopped" in said
    assert raw.xlen(DEAD) == 30
    assert [row["reason"] for _, row in raw.xrange("{jobs}:audit")] == ["", "a mistake"]


def test_an_operation_is_left_to_the_workers_shown_and_taken_up_again(ask, raw):
    bury(raw, 30)
    detached = ask("dead", "replay", "--type", "scripted", "--detach", "--now", "--canary", "0", "--json")
    assert detached.returncode == 0
    made = json.loads(detached.stdout)
    name = made["id"]
    assert (made["total"], made["state"], made["filter"]["type"]) == (30, "held", "scripted")
    [listed] = [json.loads(line) for line in ask("operations", "list", "--json").stdout.splitlines()]
    assert (listed["id"], listed["done"]) == (name, 0)
    assert name in ask("operations", "list").stdout
    assert "0 of 30 replayed" in ask("operations", "show", name).stdout
    assert "has another rate" in ask("operations", "rate", name, "500").stdout
    assert "stopped" in ask("operations", "stop", name).stdout
    assert "nothing to do" in ask("operations", "stop", name).stdout
    assert json.loads(ask("operations", "resume", name, "--json").stdout)["changed"] is True
    followed = ask("operations", "follow", name)
    assert (followed.returncode, "30 replayed" in followed.stderr) == (0, True)
    shown = json.loads(ask("operations", "show", name, "--json").stdout)
    assert (shown["state"], shown["done"], shown["rate"]) == ("done", 30, 500)
    assert "dropped" in ask("operations", "drop", name).stdout
    assert ask("operations", "list").stdout == ""


def test_who_leaves_a_command_leaves_the_operation_running_and_is_told_how_to_stop_it(ask, raw, valkey):
    bury(raw, 300)  # more than a busy machine lets it do before it hears of the signal
    running = started(valkey, "dead", "purge", "--all", "--now", "--rate", "2")
    wait_until(lambda: raw.xlen(DEAD) < 300, what="it has begun")
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    name = name_in(said)
    assert running.returncode == 130
    assert f"operation {name} goes on while workers run" in said
    assert "Traceback" not in said
    assert raw.hget(f"{{jobs}}:operation:{name}", "state") == "running"


def test_letters_that_cannot_go_back_are_counted_by_the_reason_and_status_is_1(ask, raw):
    bury(raw, 4)
    bury(raw, 2, reason="unreadable")
    result = ask("dead", "replay", "--all", "--now", "--canary", "0")
    assert result.returncode == 1
    assert "2 not: this letter holds no message that could run" in result.stderr
    assert "4 replayed, 2 could not be" in result.stderr
    assert raw.xlen(DEAD) == 2


@pytest.mark.parametrize(("answer", "left"), [("n", 3), ("y", 0)])
def test_at_a_terminal_it_is_asked_back_before_letters_are_deleted(raw, valkey, answer, left):
    bury(raw, 3)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "runtime", "dead", "purge", "--all", "--now", "--redis", valkey.url]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs, stderr=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    said = ""
    while "[y/N]" not in said:
        said += os.read(ours, 1000).decode()
    os.write(ours, f"{answer}\n".encode())
    while running.poll() is None:
        try:
            said += os.read(ours, 1000).decode()
        except OSError:  # the other side has ended
            break
    assert running.wait(60) == 0
    os.close(ours)
    assert f"purge 3: all? [y/N] {answer}" in said
    assert f"{3 - left} deleted" in said
    assert raw.xlen(DEAD) == left


def test_jobs_are_cancelled_started_and_moved_by_what_they_have_in_common(ask, raw):
    for at in range(40):
        raw.xadd("{jobs}:low", {"type": "scripted" if at % 2 else "held", "data": "{}", "id": f"j{at}"})
    dry = ask("jobs", "priority", "high", "--type", "scripted", "--dry-run")
    assert (dry.returncode, len(dry.stdout.splitlines()), "20 would be moved" in dry.stderr) == (0, 20, True)
    assert re.match(r"low/\d+-\d+ +j1 +scripted +waiting +sent \d", dry.stdout), dry.stdout
    moved = ask("jobs", "priority", "high", "--type", "scripted", "--now")
    assert (moved.returncode, "20 moved" in moved.stderr) == (0, True)
    assert (raw.xlen("{jobs}:low"), raw.xlen("{jobs}:high")) == (20, 20)
    assert "0 started" in ask("jobs", "now", "--type", "scripted", "--now").stderr, "none is delayed"
    assert "0 cancelled" in ask("jobs", "cancel", "--all", "--state", "delayed", "--now").stderr
    ended = ask("jobs", "cancel", "--all", "--now", "--reason", "a mistake")
    assert (ended.returncode, "40 cancelled" in ended.stderr) == (0, True)
    assert {fields["dead_error"].rpartition(": ")[2] for _, fields in raw.xrange(DEAD)} == {"a mistake"}
    assert (raw.xlen("{jobs}:low"), raw.xlen("{jobs}:high"), raw.xlen(DEAD)) == (0, 0, 40)


def test_jobs_that_run_are_counted_apart_and_only_where_they_are_meant(ask, raw):
    raw.xgroup_create("{jobs}:low", "workers", id="0", mkstream=True)
    raw.xadd("{jobs}:low", {"type": "scripted", "data": "{}", "id": "runs"})
    raw.xreadgroup("workers", "w-1", {"{jobs}:low": ">"})
    raw.xadd("{jobs}:low", {"type": "scripted", "data": "{}", "id": "waits"})
    dry = ask("jobs", "cancel", "--all", "--dry-run", "--json")
    assert [(job["id"], job["state"]) for job in map(json.loads, dry.stdout.splitlines())] == [
        ("runs", "running"),
        ("waits", "waiting"),
    ]
    assert "1 would be moved" in ask("jobs", "priority", "high", "--all", "--dry-run").stderr
    assert "1 would be cancelled" in ask("jobs", "cancel", "--all", "--state", "running", "--dry-run").stderr
    ended = ask("jobs", "cancel", "--all", "--now")
    assert (ended.returncode, "\n1 cancelled, 1 asked to end: " in ended.stderr) == (0, True), ended.stderr


def test_of_a_type_that_nobody_has_another_one_is_named(ask, raw):
    for words in (("--dry-run",), ("--now",)):
        told = ask("dead", "replay", "--type", "send-emial", *words)
        assert (told.returncode, "nothing fits: type send-emial; did you mean --type send-email?" in told.stderr) == (0, True)
    told = ask("dead", "purge", "--type", "send-email", "--now")
    assert ("nothing fits: type send-email\n" in told.stderr, raw.keys()) == (True, [])


def test_letters_go_to_the_trash_and_come_back(ask, raw):
    [first, *_] = bury(raw, 3)
    moved = ask("dead", "trash", first)
    assert (moved.returncode, f"{first}: moved to the trash: " in moved.stdout) == (0, True)
    place = moved.stdout.split()[-1]
    assert ask("dead", "trash", first).stdout == f"{first}: no such dead letter\n"
    listed = ask("dead", "list", "--trash", "--json")
    assert [json.loads(line)["letter"] for line in listed.stdout.splitlines()] == [place]
    back = ask("dead", "restore", place)
    assert (back.returncode, f"{place}: a dead letter again: " in back.stdout, raw.xlen("{jobs}:dead")) == (0, True, 3)
    many = ask("dead", "trash", "--all", "--now")
    assert ("3 moved to the trash" in many.stderr, raw.xlen("{jobs}:trash")) == (True, 3)


def test_what_is_left_to_the_workers_is_named_for_scripts(ask, raw):
    bury(raw, 2)
    told = ask("dead", "purge", "--all", "--now", "--detach")
    assert told.stdout.strip() in raw.zrange("{jobs}:operations", 0, -1)


def test_what_went_before_its_turn_is_said(ask, raw):
    [first, *_] = bury(raw, 3)
    name = ask("dead", "purge", "--all", "--now", "--detach").stdout.strip()
    assert ask("dead", "purge", first).stdout == f"{first}: deleted\n"
    gone = ask("dead", "purge", first)
    assert (gone.returncode, gone.stdout) == (1, f"{first}: no such dead letter\n")
    followed = ask("operations", "follow", name)
    assert (followed.returncode, "2 deleted, 1 gone before their turn" in followed.stderr) == (0, True)


def test_words_of_strangers_reach_a_terminal_as_text(raw, ask):
    for name in ("two", "\x1b[2J"):
        raw.zadd("{jobs}:operations", {name: 0})
        raw.hset(f"{{jobs}}:operation:{name}", mapping={"state": "\x1b[31m", "verb": "cancel", "source": "\x1b[3m", "by": "\x07"})
    for words in (("list",), ("show", "two"), ("stop", "two")):
        done = ask("operations", *words)
        assert done.returncode == 0, done.stderr
        assert not set("\x1b\x07") & set(done.stdout + done.stderr), words
