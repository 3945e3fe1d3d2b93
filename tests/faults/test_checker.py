"""The checker is checked: a clean story passes, and each broken rule turns it red under its own name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import redis

from tests.contract.snapshot import STREAMS
from tests.faults.checker import Verdict, check_folder, leftovers
from tests.faults.harness import Plan, check
from tests.faults.ledger import NEMESIS, SENDER, Answer, Fault, Pen, Try
from tests.servers import Server

ME = 11
OTHER = 12
BODY = '{"n":2,"ms":5.0,"failures":99}'
LETTER = {"type": "scripted", "data": BODY, "dead_reason": "attempts", "dead_attempts": "3"}


@dataclass
class Book:
    """A small story: number 1 ends at once, 2 fails three times and dies, 3 fails once and ends, 4 was refused."""

    folder: Path
    raw: redis.Redis
    lines: dict[int, list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def run(self, n: int, attempt: int, entry: str, outcome: str, at_s: float, pid: int = ME, count: int = 1) -> None:
        verb = {"end": "done", "fail": "dead" if (n, attempt) == (2, 3) else "defer"}[outcome]
        self.lines.setdefault(pid, []).extend(
            (
                f"start {n} {attempt} {entry} {count} {at_s} 2",
                f"{outcome} {n} {attempt} {at_s + 0.1}",
                f"settle {at_s + 0.2} 0 0 {verb}:2/{entry}",
            )
        )

    def drop(self, part: str) -> None:
        """Take the first line with these words out of the history."""
        for lines in self.lines.values():
            for line in lines:
                if line.startswith(part):
                    lines.remove(line)
                    return
        raise AssertionError(f"no line {part}")

    def judge(self) -> Verdict:
        for pid, lines in self.lines.items():
            (self.folder / f"{pid}.log").write_text("".join(f"{line}\n" for line in lines))
        Pen(self.folder / NEMESIS).note(*self.faults)
        return check_folder(self.folder, self.raw, ())


@pytest.fixture
def book(valkey: Server, tmp_path: Path) -> Iterator[Book]:
    raw = valkey.client()
    for name in STREAMS:
        raw.xgroup_create(f"{{jobs}}:{name}", "workers", "0", mkstream=True)
    raw.xadd("{jobs}:dead", LETTER)
    sender = Pen(tmp_path / SENDER)
    sender.note(*[Try(n, runs, "", {}) for n, runs in ((1, 1), (3, 2), (4, 1))])
    sender.note(Try(2, 3, "attempts", {"type": "scripted", "data": BODY}), Answer("ok", [1, 2, 3]), Answer("refused", [4]))
    told = Book(tmp_path, raw)
    told.run(1, 1, "1-0", "end", 1.0)
    for attempt in (1, 2, 3):
        told.run(2, attempt, f"2-{attempt}", "fail", 1.0 + attempt)
    told.run(3, 1, "3-1", "fail", 5.0)
    told.run(3, 2, "3-2", "end", 6.0)
    yield told
    raw.close()


def test_a_clean_story_passes(book: Book) -> None:
    verdict = book.judge()
    assert verdict.is_good, verdict.problems
    assert (verdict.jobs, verdict.acknowledged, verdict.refused, verdict.runs, verdict.dead) == (4, 3, 1, 6, 1)


def test_a_job_that_never_ended_is_lost(book: Book) -> None:
    book.drop("end 1 1")
    book.drop("settle 1.2")
    verdict = book.judge()
    assert verdict.lost == 1, verdict
    assert not verdict.is_good


def test_a_job_that_is_still_stored_is_left_over_and_not_lost(book: Book) -> None:
    book.drop("end 1 1")
    book.drop("settle 1.2")
    book.raw.xadd("{jobs}:high", {"type": "scripted", "data": '{"n":1}'})
    verdict = book.judge()
    assert verdict.lost == 0
    assert verdict.leftovers == {"high": 1}
    assert not verdict.is_good


def test_what_waits_for_a_group_that_nobody_made_yet_is_left_over(book: Book) -> None:
    book.raw.delete("{jobs}:high")
    book.raw.xadd("{jobs}:high", {"type": "scripted", "data": '{"n":1}'})
    assert leftovers(book.raw) == {"high": 1}


def test_an_entry_settled_without_a_finished_run_has_vanished(book: Book) -> None:
    book.drop("end 1 1")
    assert book.judge().vanished == 1


def test_a_run_of_a_number_that_nobody_sent_is_unexpected(book: Book) -> None:
    book.run(77, 1, "7-0", "end", 9.0)
    assert book.judge().unexpected == 1


def test_an_end_without_a_start_is_unexpected(book: Book) -> None:
    book.lines[ME].append("end 1 1 9.0")
    assert book.judge().unexpected == 1


def test_what_was_refused_must_not_run(book: Book) -> None:
    book.run(4, 1, "4-0", "end", 9.0)
    assert book.judge().refused_yet_ran == 1


def test_a_letter_that_is_there_twice_is_wrong(book: Book) -> None:
    book.raw.xadd("{jobs}:dead", LETTER)
    assert book.judge().dead_wrong == 1


def test_a_letter_that_is_not_there_is_missing(book: Book) -> None:
    book.raw.delete("{jobs}:dead")
    verdict = book.judge()
    assert (verdict.dead_missing, verdict.lost) == (1, 1)


@pytest.mark.parametrize(
    "change",
    [{"data": BODY.replace("5.0", "5.00")}, {"dead_reason": "timeout"}, {"dead_attempts": "2"}, {"type": "other"}],
)
def test_a_letter_differs_in_nothing_from_what_was_sent(book: Book, change: dict[str, str]) -> None:
    book.raw.delete("{jobs}:dead")
    book.raw.xadd("{jobs}:dead", {**LETTER, **change})
    assert book.judge().dead_wrong == 1


def test_an_innocent_among_the_dead_is_named(book: Book) -> None:
    book.raw.xadd("{jobs}:dead", {**LETTER, "data": '{"n":1}'})
    verdict = book.judge()
    assert (verdict.innocents_dead, verdict.settled_twice) == (1, 1)


def test_a_skipped_attempt_is_seen(book: Book) -> None:
    for part in ("start 2 2", "fail 2 2", "settle 3.2"):
        book.drop(part)
    assert book.judge().attempts_wrong == 1


def test_an_attempt_that_a_crash_burnt_is_seen(book: Book) -> None:
    book.run(1, 2, "1-0", "end", 2.0, count=2)
    book.drop("start 1 1")
    book.drop("end 1 1")
    book.drop("settle 1.2")
    assert book.judge().attempts_wrong == 1


def test_a_second_run_without_a_fault_is_unexplained(book: Book) -> None:
    book.run(1, 1, "1-0", "end", 2.0, pid=OTHER, count=2)
    verdict = book.judge()
    assert (verdict.duplicate_runs, verdict.unexplained) == (1, 1)


def test_a_second_run_after_a_kill_is_explained_by_it(book: Book) -> None:
    book.run(1, 1, "1-0", "end", 2.0, pid=OTHER, count=2)
    book.drop("settle 1.2")
    book.faults = [Fault("kill", [ME], 1.15, 1.15), Fault("kill", [OTHER], 1.15, 1.15)]
    verdict = book.judge()
    assert verdict.duplicates_by_cause == {"kill": 1}
    assert verdict.is_good, verdict.problems


@pytest.mark.parametrize("faults", [[Fault("kill", [OTHER], 1.15, 1.15)], [Fault("stop", [ME], 1.3, 1.9)]])
def test_a_fault_that_did_not_meet_the_first_run_explains_no_second_one(book: Book, faults: list[Fault]) -> None:
    book.run(1, 1, "1-0", "end", 2.0, pid=OTHER, count=2)
    book.faults = faults
    assert book.judge().unexplained == 1


def test_a_second_run_of_a_starved_process_is_explained_by_it(book: Book) -> None:
    book.run(1, 1, "1-0", "end", 2.0, pid=OTHER, count=2)
    book.drop("settle 1.2")
    book.lines[ME].append("starved 1.05 1.9")
    verdict = book.judge()
    assert verdict.duplicates_by_cause == {"starved": 1}
    assert verdict.is_good, verdict.problems


def test_a_process_that_starved_before_its_run_explains_no_second_one(book: Book) -> None:
    book.run(1, 1, "1-0", "end", 2.0, pid=OTHER, count=2)
    book.lines[ME].insert(0, "starved 0.3 0.85")
    assert book.judge().unexplained == 1


def test_two_accepted_moves_of_one_entry_are_seen(book: Book) -> None:
    book.lines.setdefault(OTHER, []).append("settle 9.0 0 0 dead:2/3-1")
    assert book.judge().settled_twice == 1


def test_a_move_by_a_worker_that_had_lost_the_lease_is_seen(book: Book) -> None:
    book.lines.setdefault(OTHER, []).append("start 3 1 3-1 2 5.05 2")
    book.faults = [Fault("stop", [ME], 5.0, 5.2)]
    assert book.judge().moved_without_lease == 1


def test_a_retry_that_was_written_twice_is_seen(book: Book) -> None:
    book.run(3, 2, "3-3", "end", 7.0, pid=OTHER)
    assert book.judge().settled_twice == 1


def test_a_job_that_goes_on_after_its_end_is_seen(book: Book) -> None:
    book.run(1, 2, "1-9", "end", 7.0)
    assert book.judge().settled_twice == 1


def test_an_innocent_that_is_handed_out_again_and_again_is_seen(book: Book) -> None:
    book.drop("start 1 1")
    book.lines[ME].insert(0, "start 1 1 1-0 4 1.0 2")
    assert book.judge().delivered_too_often == 1


def test_a_run_whose_end_was_not_written_is_no_delivery_too_many(book: Book) -> None:
    book.drop("start 1 1")
    book.lines[ME].insert(0, "start 1 1 1-0 5 3.0 2")
    for count, start_s in ((1, 1.0), (3, 2.0)):
        book.lines.setdefault(OTHER, []).extend(
            [f"start 1 1 1-0 {count} {start_s} 2", f"end 1 1 {start_s + 0.1}", f"settle {start_s + 0.2} 1 0 done:2/1-0"]
        )
    assert book.judge().delivered_too_often == 0


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (("ZADD", "{jobs}:due", 1, "a"), "due"),
        (("HSET", "{jobs}:msg", "a", "b"), "msg"),
        (("HSET", "{jobs}:strikes", "a", "b"), "strikes"),
        (("SET", "{jobs}:seen:k:a", "b"), "keys without an end"),
        (("HSET", "{jobs}:stats:1", "a", 1), "keys without an end"),
        (("HSET", "{jobs}:wards", "a", "b"), "wards"),
        (("SET", "{jobs}:strange", "b"), "key {jobs}:strange"),
        (("SET", "{jobs}:permits:a", "b"), "key {jobs}:permits:a"),
        (("ZADD", "{jobs}:workers", 1, "gone-1"), "workers that are dead"),
        (("HSET", "{jobs}:workers:rows", "gone-1", '1500 {"pid":9}'), "rows of the dead"),
        (("XGROUP", "CREATECONSUMER", "{jobs}:low", "workers", "gone-1"), "low consumer gone-1"),
    ],
)
def test_a_leftover_in_any_structure_is_seen(book: Book, command: tuple[str | int, ...], left: str) -> None:
    book.raw.execute_command(*command)
    verdict = book.judge()
    assert verdict.leftovers == {left: 1}
    assert not verdict.is_good


def test_what_is_pending_is_left_over(book: Book) -> None:
    book.raw.xadd("{jobs}:low", {"type": "scripted", "data": '{"n":1}'})
    book.raw.xreadgroup("workers", "~free", {"{jobs}:low": ">"})
    assert book.judge().leftovers == {"low": 1, "low pending": 1, "low consumer ~free": 1}


def test_what_a_test_sent_by_itself_is_judged_by_its_plan(book: Book) -> None:
    for name in (SENDER, NEMESIS):
        (book.folder / name).unlink(missing_ok=True)
    book.run(1, 1, "1-0", "end", 2.0, pid=OTHER, count=2)
    book.drop("settle 1.2")
    book.judge()
    plan = Plan(must_end={1, 3}, must_die={2: 3}, attempts={3: 2})
    verdict = check(plan, book.folder, book.raw, [ME])
    assert verdict.is_good, verdict.problems
    assert (verdict.jobs, verdict.duplicate_runs, verdict.kills) == (3, 1, 1)
    plan.must_end.add(5)
    plan.unreadable = 1
    verdict = check(plan, book.folder, book.raw, [])
    assert (verdict.lost, verdict.dead_missing) == (1, 1)


def test_a_line_that_a_kill_cut_short_is_left_out(book: Book) -> None:
    book.judge()
    with (book.folder / f"{ME}.log").open("a") as history:
        history.write("start 99 1 9-")
    assert check_folder(book.folder, book.raw, ()).is_good
