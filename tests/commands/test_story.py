"""`jobs show` tells a job's whole story, and `top` what runs say; whatever strangers have written, it is shown as plain text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import msgspec
import pytest

from runtime.commands.readings import how_far, tries_in_words
from runtime.commands.story import Story, lines_of
from runtime.commands.whereabouts import when_in_words
from runtime.ended import Ended
from runtime.said import Attempt, Report, pack_reports
from runtime.store.base import GROUP
from runtime.store.inspector import FoundJob, Inspector
from runtime.tries import Try, pack_tries
from tests.commands.calls import call
from tests.commands.test_on_call import KEY, work_here
from tests.faults.harness import ROOT
from tests.servers import Server


def now_ms() -> int:
    return int(time.time() * 1000)


EVIL = "\x1b[2J[/red]\u202e"


def report(place: str, **fields: Any) -> Report:
    told = {"id": "j", "type": "t", "attempt": 2, "since_ms": now_ms() - 40_000, "at_ms": now_ms() - 3000}
    return Report(**{"place": place, **told, **fields})


def add_log(
    raw: Any, job_id: str, attempt: int, outcome: str, text: str, before: int = 0, error: str = "", at_ms: int = 0
) -> None:
    told = Attempt(job_id, "t", attempt, "high/1-0", outcome, at_ms or now_ms() - 60_000, text, before, error).fields()
    raw.xadd("{jobs}:logs", dict(zip(told[::2], told[1::2], strict=True)))


@pytest.fixture
def running(raw: Any) -> str:
    """Return the place of a job that runs and says how far it is."""
    work_here(raw)
    entry = raw.xadd(KEY, {"type": "t", "data": "{}", "id": "j", "a": "1"})
    raw.xreadgroup(GROUP, "worker-1", {KEY: ">"})
    raw.zadd("{jobs}:workers", {"worker-1": now_ms() + 60_000, "worker-2": now_ms() + 60_000})
    reports = [report(f"high/{entry}", done=45, total=100, text="rows", lines=["begun", EVIL], before=7)]
    raw.set("{jobs}:progress:worker-1", pack_reports(reports))
    raw.set("{jobs}:progress:worker-2", "[")
    return f"high/{entry}"


def show(server: Server, job_id: str, *options: str) -> tuple[int, str]:
    result = call("jobs", "show", job_id, "--redis", server.url, *options)
    return result.returncode, result.stdout


def test_a_job_that_runs_is_told_with_its_progress_its_lines_and_those_of_earlier_attempts(
    server: Server, raw: Any, running: str
):
    add_log(raw, "j", 1, "retry", f"first\n{EVIL}", 3)
    add_log(raw, "other", 1, "done", "j")
    status, told = show(server, "j")
    assert status == 0
    assert f"  running: worker-1 ({running}), its lease renewed " in told
    assert "  type t, priority high, attempt 2, born " in told
    assert "  [#########-----------]  45%  45 of 100  rows\n" in told
    assert re.search(
        r"  runs since \S+, \d+ s ago; said something new \d+(\.\d)? s ago\n  \| … 7 lines before\n  \| begun\n", told
    )
    assert re.search(r"  attempt 1 ended \S+, \d .*ago \(high/1-0\): retry\n  \| … 3 lines before\n  \| first\n", told)
    assert told.count("  | \N{REPLACEMENT CHARACTER}[2J[/red]\N{REPLACEMENT CHARACTER}\n") == 2
    assert "done" not in told


def test_a_story_is_json_for_programs(server: Server, raw: Any, running: str):
    add_log(raw, "j", 1, "retry", "first")
    _, told = show(server, "j", "--json")
    job, more = map(json.loads, told.splitlines())
    assert (job["place"], job["progress"]["done"], job["progress"]["lines"][0]) == (running, 45, "begun")
    assert (len(job["work"]), job["idle_ms"] >= 0, job["born_ms"] > 0) == (26, True, True)
    assert [attempt["outcome"] for attempt in more["attempts"]] == ["retry"]


def test_of_a_job_that_has_left_it_is_told_how_its_attempts_ended_with_lines_or_without(server: Server, raw: Any):
    at = now_ms() - 60_000
    for attempt, outcome, error in ((1, "retry", f"E: {EVIL}"), (2, "lost", ""), (3, "done", "")):
        words = Ended("gone", "t", "high/1-0", outcome, attempt, at + attempt, error=error).fields()
        raw.xadd("{jobs}:events", dict(zip(map(str, words[::2]), words[1::2], strict=True)))
    add_log(raw, "gone", 1, "retry", "words", error="E: its own", at_ms=at)
    _, told = show(server, "gone")
    lines = [re.sub(r" ended .*\): ", ": ", line.strip()) for line in told.splitlines()[2:]]
    assert lines == ["attempt 3: done", "attempt 2: lost", "attempt 1: retry: E: its own", "| words"]


def test_what_was_lost_with_a_worker_is_told_beside_the_attempts_that_failed(server: Server, raw: Any):
    at = now_ms() - 60_000
    tries = [Try(1, at, 20, "w1", "v1", "ValueError: no")]
    entry = raw.xadd(KEY, {"type": "t", "data": "{}", "id": "j", "a": "1", "e": pack_tries(tries)})
    for ago, outcome, error in ((9, "lost", ""), (8, "lost", ""), (7, "retry", "ValueError: no")):
        run = Ended("j", "t", f"high/{entry}", outcome, 1, at + 60_000 - 1000 * ago, by="w0", error=error)
        words = run.fields()
        raw.xadd("{jobs}:events", dict(zip(map(str, words[::2]), words[1::2], strict=True)))
    _, told = show(server, "j")
    assert told.count(": lost") == 2
    assert told.count("ValueError") == 1  # the attempt is told once, by the message


def test_of_a_job_that_has_left_only_what_it_left_is_told(server: Server, raw: Any):
    add_log(raw, "gone", 1, "retry", "no")
    add_log(raw, "gone", 2, "done", "yes")
    raw.set("{jobs}:results:answered", '{"value":42}')
    status, told = show(server, "gone")
    assert (status, told.splitlines()[:2]) == (0, ["gone", "  not in the queue any more, as far as was looked"])
    assert told.index("attempt 2 ended") < told.index("attempt 1 ended")
    status, told = show(server, "answered")
    assert (status, "result: {" in told, "done" in told) == (0, True, False)
    assert show(server, "nobody") == (1, "")


def test_what_attempts_failed_of_is_told_while_a_job_waits_for_the_next(server: Server, raw: Any):
    add_log(raw, "j", 1, "retry", "", error=f"ValueError: no {EVIL}")
    status, told = show(server, "j")
    assert status == 0
    assert re.search(r"  attempt 1 ended \S+, \d .*ago \(high/1-0\): retry: ValueError: no \N{REPLACEMENT CHARACTER}\[2J", told)
    assert "  |" not in told
    _, told = show(server, "j", "--json")
    assert json.loads(told)["attempts"][0]["error"] == f"ValueError: no {EVIL}"


def test_a_delayed_job_is_told_with_what_it_failed_of_and_how_long_it_waits_yet(server: Server, raw: Any):
    work_here(raw)
    raw.zadd("{jobs}:due", {"j": now_ms() + 3_000_000})
    failed = Try(
        1, now_ms() - 60_000, 2100, "w-1", "v1", f"ValueError: no {EVIL}", "a.py:7 f", "0af7651916cd43dd8448eb211c80319c"
    )
    record = ["stream", "high", "type", "t", "data", "{}", "id", "j", "a", "1", "e", pack_tries([failed]).decode()]
    raw.hset("{jobs}:msg", "j", msgspec.msgpack.encode(record))
    lines = show(server, "j")[1]
    assert re.search(
        r"  attempt 1 began \S+, (60 s|1 min) ago, ran 2.1 s on w-1, version v1: ValueError: no \?\[2J.*\n"
        r"    at a.py:7 f, trace 0af7651916cd43dd8448eb211c80319c\n",
        lines,
    )
    assert lines.count("ValueError") == 1
    assert re.search(r"  delayed: [-0-9]*[ :0-9]+, in (49|50) min \(due/j\)\n", show(server, "j")[1])
    told = call("jobs", "list", "--redis", server.url).stdout
    assert re.search(r" delayed  [-0-9]+ [:0-9]+, failed of ValueError: no \?\[2J", told)


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        ({"state": "done", "value": {"cents": 3}}, r'  done \S+, \d+ min ago, result: {"cents":3}'),
        (
            {"state": "dead", "reason": "attempts", "error": "E: no\nhost", "attempts": 2},
            "  dead \\S+, \\d+ min ago, attempts 2: attempts: E: no\N{REPLACEMENT CHARACTER}host",
        ),
    ],
)
def test_a_result_is_told_in_words(kept: dict[str, Any], told: str):
    lines = lines_of(Story("j", [], [], json.dumps({"at": now_ms() - 200_000, **kept}, separators=(",", ":"))))
    assert re.fullmatch(told, lines[-1]), lines[-1]


def test_what_the_runtime_has_noted_on_a_message_is_told_in_words_and_once():
    noted = {"type": "t", "id": "j", "a": "1", "first_at": "5000", "snoozed_at": str(now_ms()), "tried": "00-1", "at": "9" * 30}
    job = FoundJob("j", "t", "high", "waiting", "", 2, "high/1-0", {**noted, "x-mine": "1"}, born_ms=5000)
    lines = lines_of(Story("j", [job], [], ""))
    assert [line.partition(":")[0].strip() for line in lines[3:]] == [
        "snoozed first",
        "trace of its last attempt",
        "not before",
        "x-mine",
    ]
    assert lines[-2:] == [f"  not before: {'9' * 30}", "  x-mine: 1"]
    job.born_ms = 0
    assert any(line.startswith("  sent: 1970-01-01 ") for line in lines_of(Story("j", [job], [], "")))


def test_an_id_that_no_job_can_have_is_told_by_its_rule(server: Server):
    told = call("jobs", "show", "a b", "--redis", server.url)
    assert (told.returncode, "id must be 1 to 128 of [A-Za-z0-9._:-]" in told.stderr) == (1, True)
    assert "id must be" not in call("jobs", "show", "a-b", "--redis", server.url).stderr


def test_a_dead_job_is_told_with_its_error(server: Server, raw: Any):
    raw.xadd("{jobs}:dead", {"type": "t", "data": "{}", "id": "j", "dead_reason": "attempts", "dead_error": f"E: {EVIL}"})
    status, told = show(server, "j")
    assert (status, "  dead: attempts (dead/" in told, "  E: \N{REPLACEMENT CHARACTER}[2J[/red]" in told) == (0, True, True)


def test_a_job_is_followed_until_it_has_left(server: Server, raw: Any, running: str):
    command = [sys.executable, "-m", "runtime", "jobs", "show", "j", "--follow", "--redis", server.url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL) as following:
        assert following.stdout is not None
        seen = ""
        while "lines before" not in seen:
            seen = following.stdout.readline()
        add_log(raw, "j", 2, "done", "the last words")
        raw.xdel(KEY, running.removeprefix("high/"))
        told, _ = following.communicate(timeout=60)
    assert following.returncode == 0
    assert told.rstrip().endswith("| the last words")
    assert "not in the queue any more" in told


@pytest.mark.parametrize("key", ["logs", "results:j", "progress:worker-1"])
def test_keys_of_another_type_hide_nothing_else(server: Server, raw: Any, running: str, key: str):
    raw.delete(f"{{jobs}}:{key}")
    raw.hset(f"{{jobs}}:{key}", "a", "b")
    status, told = show(server, "j")
    assert (status, "running: worker-1" in told) == (0, True)


def test_attempts_are_told_with_what_is_left_out_between_them_and_when_the_job_was_sent_back():
    tries = [Try(1, 1000, 5, error="E: a"), Try(6, 2000, 5), Try(0, 3000), Try(1, 2**53, 2**53, "w" * 64)]
    told = tries_in_words(tries, 10_000)
    assert [re.sub(r" [-0-9: ]+(,.*|)$", "", line) for line in told] == [
        "attempt 1 began",
        "… 4 more",
        "attempt 6 began",
        *AGAIN,
    ]
    assert told[0].endswith(", 9.0 s ago, ran 0.0 s: E: a")
    assert told[2].endswith(", 8.0 s ago, ran 0.0 s: failed")


AGAIN = ["replayed at", "attempt 1 began"]


async def test_lines_are_looked_for_among_so_many_attempts_over_all_their_pages(server: Server, raw: Any, monkeypatch: Any):
    monkeypatch.setattr("runtime.store.inspector.LOGS", 7)
    monkeypatch.setattr("runtime.store.inspector.LOGS_PAGE", 3)
    inspector = Inspector(server.url, "jobs")
    for n in range(10):
        add_log(raw, "j" if n % 2 == 0 else "k", n, "done", "j")
    assert [attempt.attempt for attempt in await inspector.logs_of("j", 100)] == [8, 6, 4, 2]
    assert [attempt.attempt for attempt in await inspector.logs_of("j", 1)] == [8]
    await inspector.close()


def test_top_shows_what_runs_say_and_markup_of_strangers_as_text(server: Server, raw: Any, running: str):
    raw.xadd("{jobs}:dead", {"type": "[/t]", "data": "{}", "dead_reason": "[bold]", "dead_error": "[/x] :smile:"})
    result = call("top", "--once", "--redis", server.url)
    assert result.returncode == 0, result.stderr
    assert re.search(
        r" t j +\d+ s +\[#########-----------\]  45%  45 of 100  rows +\N{REPLACEMENT CHARACTER}\[2J\[/red\]", result.stdout
    )
    assert "[/x] :smile:" in result.stdout


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, ""),
        ({"text": "rows"}, "rows"),
        ({"done": 0, "total": 10}, "[--------------------]   0%  0 of 10"),
        ({"done": 12, "total": 10}, "[####################] 100%  12 of 10"),
        ({"done": 1234.5}, "1,234.5"),
        ({"done": 1, "total": 2, "text": "\x1b[/red]"}, "[##########----------]  50%  1 of 2  \ufffd[/red]"),
        ({"done": 2**53, "total": 2**53}, "[####################] 100%  9,007,199,254,740,992 of 9,007,199,254,740,992"),
    ],
)  # fmt: skip
def test_how_far_a_run_is_in_one_line(fields: dict[str, Any], shown: str):
    assert how_far(report("high/1-0", **fields)) == shown


# --- what holds it, and what became of it ------------------------------------------------------------------------------------


def told_of(state: str, where: str, **fields: Any) -> str:
    """Return what is said of a job."""
    place = "due/j" if state == "delayed" else "high/1-0"
    message = fields.pop("message", {})
    return "\n".join(lines_of(Story("j", [FoundJob("j", "t", "high", state, where, 1, place, message, **fields)], [], "")))


def test_of_a_job_that_runs_it_is_said_since_when_and_when_that_ends_at_the_latest():
    run = {"since_ms": now_ms() - 40_000, "is_started": True, "deliveries": 1}
    told = told_of("running", "w-1", timeout_ms=60_000, **run)
    assert re.search(r"  runs since \S+, 4\d s ago\n  ends by \S+, in 1?[0-9]+ s, at the latest: its timeout is 1 min", told)
    assert "died" not in told
    late = told_of("running", "w-1", timeout_ms=30_000, **run)
    assert re.search(r"  should have ended by \S+, 1\d s ago, at the latest", late)
    assert "ends by" not in told_of("running", "w-1", **run), "no worker has written down its timeout"
    assert "  has not started there yet, as far as its worker has told" in told_of("running", "w-1", is_started=False)


def test_a_worker_that_is_silent_is_named_as_that():
    told = told_of("running", "w-1", silence="silent for 12 s, its jobs are taken back in 18 s")
    assert "  its worker is silent for 12 s, its jobs are taken back in 18 s" in told


def test_what_a_lot_is_is_said_in_words():
    assert "  its worker died while it had it: it waits to be run apart, to find out whether that was its fault" in told_of(
        "parked", "~suspect", deliveries=1
    )
    assert "  given back before it ended; goes to the next worker" in told_of("parked", "~free")
    assert "  waits for a worker that knows t in version 2, and has a thread or child process free for it" in told_of(
        "parked", "~t:t@2", is_known=True
    )
    dead_ms = now_ms() + 14 * 60_000
    told = told_of("parked", "~t:nosuch@1", is_known=False, dead_from_ms=dead_ms)
    assert re.search(r"  no worker that lives knows nosuch: a dead letter unless one does by \S+, in 14 min", told)
    assert "  no worker that lives knows nosuch\n" in told_of("parked", "~t:nosuch@1", is_known=False)


def test_how_many_workers_died_of_a_job_is_said():
    assert "  1 worker died while they had it, none while it ran alone" in told_of("parked", "~suspect", deliveries=1)
    told = told_of("parked", "~suspect", deliveries=4, strikes=["vm-1", f"vm-2{EVIL}"])
    assert "  4 workers died while they had it, 2 of them while it ran alone (vm-1, vm-2\N{REPLACEMENT CHARACTER}[2J" in told
    assert "of 3 such deaths it is a dead letter (poison)" in told
    assert "2 workers died" in told_of("running", "w-1", deliveries=3), "the third time, it is there now"


def test_of_a_snoozed_job_it_is_said_since_when_and_for_how_long_it_may():
    snoozed = {"snoozed_at": str(now_ms() - 71 * 3_600_000)}
    told = told_of("delayed", "", message=snoozed, due_ms=now_ms() + 1000)
    assert re.search(r"  snoozed first .*, 71 h ago; 72 h in all: a dead letter where it snoozes beyond \S+, in 60 min", told)
    assert "snoozed" not in told_of("delayed", "", message={"snoozed_at": "x"}).replace("snoozed first: x", "")
    listed = [FoundJob("j", "t", "high", state, "12:00", 1, "due/j", snoozed) for state in ("delayed", "waiting")]
    assert [when_in_words(job, now_ms()) for job in listed] == ["12:00, snoozed first 71 h ago", "12:00"]


@pytest.mark.parametrize(
    ("outcome", "error", "said"),
    [
        ("done", "", "not in the queue any more: done {when}, on w-1"),
        (
            "duplicate",
            "dropped as a duplicate of order-1 (key k1)",
            "dropped as a duplicate of order-1 (key k1), {when}, on w-1: it never ran",
        ),
        ("cancelled", "", "not in the queue any more: cancelled {when}, on w-1"),
        ("dead", "E: no", "not in the queue any more: dead {when}, on w-1; its letter was sent back, thrown away, or"),
        ("retry", "E: no", "not in the queue any more, as far as was looked"),
        ("lost", "", "not in the queue any more, as far as was looked"),
    ],
)
def test_what_became_of_a_job_is_said_as_far_as_it_is_written_down(outcome: str, error: str, said: str):
    last = Ended("j", "t", "high/1-0", outcome, 1, now_ms() - 5000, by="w-1", error=error)
    line = lines_of(Story("j", [], [], "", last))[1]
    assert re.match(f"  {re.escape(said).replace(re.escape('{when}'), r'[0-9:]+, 5.[0-9] s ago')}", line), line


def test_a_job_is_shown_by_its_entry_and_by_its_key_and_of_none_it_is_not_said_that_it_is_done(server: Server, raw: Any):
    work_here(raw)
    entry = raw.xadd(KEY, {"type": "nosuch", "data": "{}", "key": "k1"})
    raw.xreadgroup(GROUP, "w", {KEY: ">"})
    raw.xclaim(KEY, GROUP, "~t:nosuch@1", 0, [entry], retrycount=0, justid=True)
    raw.set("{jobs}:seen:k:k1", f"high {entry}")
    for words in ((entry,), (f"high/{entry}",), (f"high-{entry}",), ("--key", "k1")):
        result = call("jobs", "show", *words, "--redis", server.url)
        assert (result.returncode, result.stdout.startswith(f"high-{entry}\n  parked: ~t:nosuch@1 ")) == (0, True), words
    dropped = Ended(
        "order-2", "t", "high/1-0", "duplicate", 1, now_ms(), by="w", error="dropped as a duplicate of order-1 (key k1)"
    )
    words = dropped.fields()
    raw.xadd("{jobs}:events", dict(zip(map(str, words[::2]), words[1::2], strict=True)))
    assert "\n  dropped as a duplicate of order-1 (key k1), " in show(server, "order-2")[1]
    nothing = call("jobs", "show", "order-3", "--redis", server.url)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert (
        "order-3 is not in the queue: done, dropped as a duplicate of a job with its key, purged, or never sent" in nothing.stderr
    )
    nothing = call("jobs", "show", "--key", "k2", "--redis", server.url)
    assert (nothing.returncode, "no job that lives has the key k2" in nothing.stderr) == (1, True)
    assert call("jobs", "show", "--redis", server.url).returncode == 2


def test_times_and_texts_of_a_stranger_do_not_stop_the_story():
    job = FoundJob("j", "t", "high", "running", "w", 1, "high/1-0", {"x": "y" * 10_000}, born_ms=2**64, idle_ms=2**64)
    job.progress = report("high/1-0", since_ms=2**53, at_ms=2**53)
    attempt = Attempt("j", "t", 1, "high/1-0", EVIL, 2**53, "x\n" * 100_000, 0, f"{EVIL}\n" * 10_000)
    story = Story("j", [job], [attempt], "z" * 100_000)
    lines = lines_of(story)
    assert all(line.isprintable() for line in lines)
    assert len(lines) < 300
    assert max(map(len, lines)) < 3000
