"""What a doctor says at night of what it was answered: full memory, deaths, what hangs, what dies and since when."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from runtime.store.base import Room, room_in
from runtime.store.deaths import Death
from runtime.store.inspector import DeadLetter
from runtime.store.rounds import (
    FIRST,
    HUNG_MS,
    MANY_DEAD,
    MB,
    Suspect,
    clock,
    death_findings,
    hung_after_ms,
    hung_finding,
    letter_findings,
    memory_findings,
    usual_runs,
)
from runtime.store.sample import Minute
from runtime.worker.log import ThrottledLog
from tests.unit.test_doctor import FINE

NOW_MS = 1_800_000_000_000
MINUTE = NOW_MS // 60_000


def memory(
    used_mb: float, is_refused: bool = False, room: dict[str, int] | None = None, **more: Any
) -> list[tuple[str, str, str]]:
    server = msgspec.structs.replace(FINE, memory_bytes=int(used_mb * MB), max_memory_bytes=100 * MB, **more)
    return [(found.level, found.what, found.fix) for found in memory_findings(server, is_refused, room or {})]


def test_memory_that_is_nearly_full_is_a_warning_with_figures():
    assert memory(89) == []
    assert memory(95) == [
        (
            "warning",
            "95% of maxmemory is used (95 MB of 100 MB used): sends are refused at 100 %",
            "redis-cli CONFIG SET maxmemory 150mb (and put it into redis.conf)",
        )
    ]


def test_memory_that_is_full_is_an_error_that_says_what_takes_the_room_and_what_makes_some():
    room = {"jobs of low": 30 * MB, "dead letters": 61 * MB, "runs that ended": 5 * MB, "jobs of high": 0}
    [(level, what, fix)] = memory(105, True, room)
    assert level == "error"
    assert what == "sends are refused NOW: 105 MB of 100 MB used; most of it: dead letters 61 MB, jobs of low 30 MB"
    assert fix.startswith("redis-cli CONFIG SET maxmemory 158mb (and put it into redis.conf); or: python -m runtime dead purge")
    assert memory(80, True)[0][:2] == ("error", "sends are refused NOW: 80 MB of 100 MB used"), "what is refused, is refused"
    assert memory(100)[0][:2] == ("error", "sends are refused at any moment: 100 MB of 100 MB used")
    assert memory(105, True, {"jobs of low": 3 * MB})[0][1].endswith(
        "; of this queue: jobs of low 3.0 MB, the rest is in other keys"
    )


def test_more_memory_than_the_machine_has_is_no_cure():
    """The kernel would end the server, and that costs more than a send that is refused."""
    [(_, _, fix)] = memory(105, True, system_bytes=200 * MB)
    assert fix == "give the server a machine with more memory than 200 MB, or look what takes the room"
    assert memory(105, True, system_bytes=400 * MB)[0][2].startswith("redis-cli CONFIG SET maxmemory 158mb")


def test_buffers_for_which_the_server_refuses_nothing_do_not_count():
    info = b"used_memory:120\r\nmem_not_counted_for_evict:30\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\n"
    assert not room_in(info).is_full
    assert room_in(info.replace(b":30", b":20")).is_full


def test_the_log_says_once_that_memory_is_full_and_once_that_it_no_longer_is(caplog):
    log = ThrottledLog()
    for room in (Room(50, 100), Room(100, 100), Room(101, 100), Room(99, 100), Room(98, 100), Room(7, 0), Room(200, 100, True)):
        log.room(room)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    assert "what is sent is refused" in caplog.text
    assert "has room again" in caplog.text


def deaths(*ago_ms: int) -> list[Death]:
    return [Death(NOW_MS - ago, f"w{n}", 1, [f"kill poison-{n}"]) for n, ago in enumerate(ago_ms)]


@pytest.mark.parametrize(
    ("died", "suspects", "what"),
    [
        ((), 0, None),
        ((3_600_001,), 0, None),
        (
            (12_000, 60_000),
            2,
            "2 worker processes died in 5 min (newest 12 s ago)"
            "; suspects: job-0 (kill): 4 deaths, 2 alone; job-1 (kill): 1 death",
        ),
        ((400_000,), 0, "1 worker process died in an hour (newest 7 min ago); they held kill poison-0"),
        ((), 1, "no worker died of late; suspects: job-0 (kill): 4 deaths, 2 alone"),
    ],
)
def test_deaths_of_workers_are_told_with_what_is_suspected(died, suspects, what):
    found = list(
        death_findings(deaths(*died), [Suspect("job-0", "kill", 4, 2), Suspect("job-1", "kill", 1, 0)][:suspects], NOW_MS)
    )
    assert [one.what for one in found] == ([what] if what else [])
    assert all(one.level == "warning" and one.fix for one in found)
    if suspects:
        assert found[0].fix == "python -m runtime jobs show job-0"


def counted(**of_minute: dict[str, int]) -> dict[int, Minute]:
    """Return minutes in which so many of a type died; `m3` is three minutes ago."""
    return {
        MINUTE - int(ago[1:]): Minute({(name, "low"): {"dead": n, "done": 5} for name, n in died.items()}, {}, {}, {})
        for ago, died in of_minute.items()
    }


def letter(type_name: str, ago_s: float, reason: str = "attempts") -> DeadLetter:
    died_at = NOW_MS / 1000 - ago_s
    return DeadLetter("1-1", type_name, "j", reason, "e", 1, "low", died_at, "", {})


def test_letters_are_told_by_type_with_how_many_since_when_and_what_of():
    minutes = counted(m1={"boom": 15, "few": 1}, m4={"boom": 5}, m20={"boom": 100, "few": 2})
    [boom, few] = letter_findings(minutes, [letter("boom", 12), letter("boom", 13, "timeout"), letter("boom", 20)], NOW_MS)
    since = clock((MINUTE - 4) * 60_000)
    assert boom.what == f"20 dead letters of boom (attempts, timeout) since {since}, the newest 12 s ago"
    assert (boom.level, boom.fix) == ("warning", "python -m runtime dead list --type boom")
    assert (few.level, few.what) == ("ok", f"1 dead letter of few since {clock((MINUTE - 1) * 60_000)}")


def test_a_few_letters_of_an_hour_ago_are_no_warning_and_most_types_are_left_out():
    assert [one.level for one in letter_findings(counted(m30={"t": 500}), [], NOW_MS)] == ["ok"]
    assert [one.level for one in letter_findings(counted(m0={"t": MANY_DEAD}), [], NOW_MS)] == ["warning"]
    assert [one.level for one in letter_findings(counted(m0={"t": MANY_DEAD - 1}), [], NOW_MS)] == ["ok"]
    many = counted(m0={f"t{n}": 1 for n in range(FIRST + 3)})
    assert len(list(letter_findings(many, [], NOW_MS))) == FIRST
    assert list(letter_findings(counted(m0={"": 5}), [], NOW_MS)) == [], "of no type that could be named"


def test_what_is_usual_is_the_bucket_in_which_99_of_100_runs_are():
    minute = Minute({}, {("t", "low"): {10: 98, 20: 1}, ("t", "high"): {20: 1}, ("one", "low"): {5: 1}}, {}, {})
    assert usual_runs([minute, minute]) == {"t": (1049, 200), "one": (1, 2)}


def test_a_job_is_hung_when_it_runs_for_much_longer_than_others_of_its_type():
    assert hung_after_ms((40_000, 500)) == 800_000
    assert hung_after_ms((1, 500)) == HUNG_MS, "what takes a moment is not hung after another"
    assert hung_after_ms(None) == 3_600_000
    fields = [b"id", b"hung-1", b"type", b"make-pdf", b"data", b"{}"]
    found = hung_finding(fields, 2_400_000, "high/1-1", "make-pdf", "vm-7", (40_000, 500))
    assert found.what == "hung-1 of make-pdf runs for 40 min: 60 x its p99 of under 40 s (on vm-7)"
    assert found.fix == "python -m runtime jobs show hung-1 (jobs cancel ends it)"
    few = hung_finding(fields[2:], 2_400_000, "high/1-1", "make-pdf", "vm-7", (40_000, 3))
    assert few.what == "high-1-1 of make-pdf runs for 40 min: 60 x its p99 of under 40 s (3 runs) (on vm-7)"
    assert "20,000 x its p99 of under 2 ms (on w)" in hung_finding(fields, 40_000, "high/1-1", "t", "w", (2, 500)).what
    assert "none of its type has ended within the last hour" in hung_finding(fields, 4_000_000, "high/1-1", "t", "w", None).what


def test_a_time_of_day_is_of_this_hosts_zone():
    assert clock(NOW_MS) == time.strftime("%H:%M", time.localtime(NOW_MS / 1000))
