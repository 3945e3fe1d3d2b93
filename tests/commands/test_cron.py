"""`cron` through the real process, on a real server: what it prints, what it writes, and what it refuses."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import redis

from tests.commands.calls import call, one_line
from tests.servers import Server

HANDLERS = ("--handlers", "tests.faults.scheduled")
CRON, STATE = "{jobs}:cron", "{jobs}:cron:state"


@pytest.fixture
def cron(server: Server) -> Any:
    def run(*arguments: str) -> Any:
        return call("cron", *arguments, *HANDLERS, "--redis", server.url)

    return run


def listed(cron: Any) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in map(json.loads, cron("list", "--json").stdout.splitlines())}


def done(result: Any, text: str = "") -> None:
    assert (result.returncode, result.stderr) == (0, ""), result
    assert text in result.stdout


def test_a_schedule_is_added_changed_paused_resumed_and_removed(cron: Any, raw: redis.Redis) -> None:
    done(
        cron("add", "nightly", "quick", "{}", "--when", "0 3 * * *", "--tz", "Europe/Berlin", "--reason", "a test"),
        "added: nightly",
    )
    row = listed(cron)["nightly"]
    assert (row["source"], row["words"], row["type"]) == ("Redis", "at 03:00 every day, Europe/Berlin", "quick")
    assert not row["is_ruling"]
    revision = row["revision"]
    done(cron("edit", "nightly", "--every", "90", "--overlap", "skip"), "changed")
    row = listed(cron)["nightly"]
    assert (row["words"], row["overlap"], row["tz"]) == ("every 90 s", "skip", "Europe/Berlin")
    assert row["revision"] > revision
    done(cron("pause", "nightly"), "paused until resumed: nightly\ntake it back: python -m runtime cron resume nightly")
    done(cron("pause", "nightly"), "was so already: nightly")
    assert listed(cron)["nightly"]["paused"]
    assert "paused" in cron("list").stdout
    assert json.loads(cron("resume", "nightly", "--json").stdout) == {"changed": ["nightly"], "unchanged": []}
    done(cron("remove", "nightly"), "removed: nightly")
    assert "nightly" not in listed(cron)
    assert raw.hgetall(CRON) == {}
    audit = [(entry["what"], entry["reason"]) for _, entry in raw.xrange("{jobs}:audit")]
    assert audit == [
        ("put cron:nightly data,priority,type,tz,version,when", "a test"),
        ("put cron:nightly every_s,overlap,when", ""),
        ("put cron:nightly paused=true", ""),
        ("put cron:nightly paused=false", ""),
        ("drop cron:nightly", ""),
    ]
    assert raw.hget("{jobs}:control", "v") == "5"


def test_one_from_code_is_overridden_and_goes_back_to_what_the_code_says(cron: Any, raw: redis.Redis) -> None:
    assert listed(cron)["latest"]["source"] == "code"
    done(cron("pause", "latest"))
    row = listed(cron)["latest"]
    assert (row["source"], row["paused"], row["words"]) == ("code, overridden", True, "every second, UTC")
    assert json.loads(raw.hget(CRON, "latest").partition(" ")[2]) == {"paused": True}
    done(cron("remove", "latest"))
    assert not listed(cron)["latest"]["paused"]
    assert raw.hget(CRON, "latest") == "2 {}", "its revision makes a new definition of it, which rules at once"


def test_no_change_makes_a_past_tick_due(cron: Any, raw: redis.Redis) -> None:
    raw.hset(STATE, "latest", "1000 ab cd 2000 - 1000f")
    before_ms = int(time.time() * 1000)
    done(cron("pause", "latest"))
    last, *rest = raw.hget(STATE, "latest").split()
    assert before_ms <= int(last) <= time.time() * 1000 + 1000
    assert rest == ["ab", "cd", "2000", "-", "1000f"]


def test_a_schedule_is_shown_with_its_next_times_and_notes(cron: Any, raw: redis.Redis) -> None:
    done(cron("add", "nightly", "quick", "--when", "30 2 * * *", "--tz", "Europe/Berlin"))
    raw.hset(STATE, "nightly", "1800000000000 ab cd 2000 - 1794000000000f 1794086400000s 1794090000000m7 1794090000000p")
    shown = cron("show", "nightly", "-n", "100")
    done(shown, "nightly: at 02:30 every day, Europe/Berlin (from Redis)")
    assert shown.stdout.count("\n  next 20") == 100
    for words in (
        "fired",
        "skipped: the job of one before lived",
        "7 late ones were left out",
        "paused",
        "another definition rules",
    ):
        assert words in shown.stdout
    assert len(json.loads(cron("show", "nightly", "--json").stdout)["next"]) == 5


def test_its_job_is_sent_now_beside_its_ticks(cron: Any, raw: redis.Redis) -> None:
    done(cron("run", "latest"), "cron:latest:now-")
    [(_, fields)] = raw.xrange("{jobs}:medium")
    assert (fields["type"], fields["data"]) == ("kept", "{}")
    assert raw.hgetall(STATE) == {}
    done(cron("run", "alone"))
    again = cron("run", "alone")
    assert (again.returncode, again.stdout) == (1, "")
    assert "a job of it lives" in again.stderr


def test_ticks_of_the_past_are_sent_again_with_their_ids(cron: Any, raw: redis.Redis) -> None:
    done(cron("add", "hourly", "quick", "--when", "15 * * * *", "--tz", "Asia/Kathmandu", "--expires", "60"))
    times = ("--from", "2024-11-01", "--to", "2024-11-01T03:00")
    dry = cron("backfill", "hourly", *times, "--dry-run")
    assert dry.stdout.splitlines()[0].endswith("2024-11-01T00:15:00+05:45")
    assert raw.xlen("{jobs}:medium") == 0
    assert json.loads(cron("backfill", "hourly", *times, "--json", "--dry-run").stdout.splitlines()[0])["sent"] is False
    done(cron("backfill", "hourly", *times), "3 sent")
    sent = [fields for _, fields in raw.xrange("{jobs}:medium")]
    assert [line.split()[0] for line in dry.stdout.splitlines()] == [fields["id"] for fields in sent]
    assert all(fields["first_at"] == fields["id"].rpartition(":")[2] and "exp" not in fields for fields in sent)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("add", "Nightly", "quick", "--when", "0 3 * * *"), "'Nightly': name: must be 1 to 64 of [a-z0-9._-]"),
        (("add", "nightly", "quick", "--when", "61 * * * *"), "minute '61'"),
        (("add", "nightly", "quick"), "when, every_s: must be exactly one of the two"),
        (("add", "nightly", "quick", "--every", "0.1"), "every_s 0.1: must be a number of seconds between 1"),
        (("add", "nightly", "quick", "--when", "0 3 * * *", "--tz", "Mars"), "tz 'Mars'"),
        (("add", "nightly", "quick", "--when", "0 3 * * *", "--cap", "0"), "cap 0: must be between 1 and 100"),
        (("add", "nightly", "nobody", "--when", "0 3 * * *"), "no contract 'nobody'"),
        (("add", "nightly", "quick", "[]", "--when", "0 3 * * *"), "payload of quick"),
        (
            ("add", "latest", "quick", "--when", "0 3 * * *"),
            "there is a schedule 'latest' already; hint: edit it, or remove it first",
        ),
        (("edit", "nightly", "--cap", "3"), "no schedule 'nightly'; there are alone, every"),
        (("edit", "latest"), "nothing to change is given"),
        (("edit", "latest", "--when", "x"), "must have 5 fields"),
        (("edit", "alone", "--data", "7"), "payload of quick"),
        (("pause", "nightly"), "no schedule 'nightly'"),
        (("remove", "latest"), "no schedule 'latest' in Redis; it is one of the code: pause it"),
        (("show", "latest", "-n", "0"), "-n 0: must be between 1 and 100"),
        (("run", "nobody"), "no schedule 'nobody'"),
        (("backfill", "latest", "--from", "2024-11-01", "--to", "2024-11-02"), "more than 1,000 ticks"),
        (("backfill", "latest", "--from", "today", "--to", "2024-11-02"), "--from 'today': must be a time such as"),
        (("backfill", "latest", "--from", "2024-11-02", "--to", "2024-11-01"), "begin, end (--from, --to): must be two times"),
        (("backfill", "latest", "--from", "2024-11-02", "--to", "2199-11-01"), "neither may lie ahead"),
    ],
)
def test_bad_usage_is_one_line_and_status_2_and_changes_nothing(cron: Any, raw: redis.Redis, arguments: Any, words: str) -> None:
    result = cron(*arguments)
    assert result.returncode == 2, result
    assert words in one_line(result)
    assert raw.keys("*") == []


def test_what_cannot_be_read_is_told_and_can_be_removed(cron: Any, raw: redis.Redis) -> None:
    raw.hset(CRON, mapping={"bad": "rubbish", "latest": '3 {"cap":0}', "elsewhere": '3 {"paused":true}'})
    result = cron("list")
    assert result.returncode == 1
    assert "every" in result.stdout
    assert "schedule 'bad': must be a revision" in result.stderr
    assert "schedule 'latest': cap 0" in result.stderr
    assert "paused" in next(line for line in result.stdout.splitlines() if line.startswith("elsewhere") and "not here" in line)
    assert "hint: `cron remove latest`" in one_line(cron("show", "latest"))
    done(cron("remove", "bad"))
    done(cron("remove", "latest"))
    assert listed(cron)["latest"]["cap"] == 100
