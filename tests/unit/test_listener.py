"""The listener: what runs have said since the last look, what is written of it, and what has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from runtime.errors import Dead, Retry
from runtime.jobs import LANE, Job
from runtime.said import MAX_LINE_CHARS, read_reports
from runtime.tries import MAX_ERROR_BYTES, Try
from runtime.worker import listener as module
from runtime.worker.held import Held
from runtime.worker.listener import AGAIN_S, DONE_S, MAX_DROPPED_S, MAX_ENDED_S, MAX_NEW, Listener, Told
from tests.builders import job


class Worker:
    """A worker's listener, its leases and lanes, and a clock."""

    def __init__(self) -> None:
        self.held = Held()
        self.lanes: list[tuple[Job, float]] = []
        self.listener = Listener(self.held, lambda: self.lanes, "w-1", "v1")
        self.hear = self.listener.hear
        self.job: Job | None = None
        self.started_s = 0.0

    def begin(self, n: int = 0, **fields: Any) -> Job:
        """Run a job in a lane."""
        one = job(entry=f"{1000 + n}-0", id=f"j{n}", **fields)
        self.held.add(one.stream, [one])
        self.lanes.append((one, 0.0))
        return one

    def end(self, one: Job, outcome: str = "") -> None:
        """Let a job be settled and written."""
        one.noted().said.outcome = outcome
        self.lanes = [lane for lane in self.lanes if lane[0] is not one]
        self.held.remove([one])

    def fail(self, one: Job, outcome: Retry | Dead, failed: Try | None = None) -> None:
        """Let a job's run fail, and be written."""
        self.listener.fail(one, outcome, failed)
        self.end(one, one.extras.said.outcome if one.extras else "")

    def look(self) -> Told:
        return self.listener.look()


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clocks."""

    class Clock:
        now_s = 1000.0

        def time(self) -> float:
            return self.now_s

        monotonic = time

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)

    def jump(by_s: float) -> None:
        clock.now_s += by_s

    return jump


@pytest.fixture
def worker(now: Callable[[float], None]) -> Any:
    made = Worker()
    token = LANE.set(made)  # type: ignore[arg-type]
    yield made
    LANE.reset(token)


def test_a_worker_whose_jobs_say_nothing_writes_nothing(worker: Worker):
    worker.begin()
    assert worker.look() == Told()
    assert worker.look() == Told()


def test_what_jobs_say_is_written_when_it_changes_and_not_else(worker: Worker, now: Callable[[float], None]):
    one = worker.begin()
    worker.begin(1)
    one.progress(1, 4, "rows")
    one.log("begun")
    [report], _ = read_reports(worker.look().progress or b"")
    assert (report.id, report.place, report.type, report.attempt) == ("j0", "high/1000-0", "greet", 1)
    assert (report.done, report.total, report.text, report.lines) == (1, 4, "rows", ["begun"])
    assert (report.since_ms, report.at_ms) == (0, 1_000_000)
    now(1)
    assert worker.look() == Told()
    one.progress(1, 4, "rows and columns")
    [report], _ = read_reports(worker.look().progress or b"")
    assert (report.text, report.at_ms) == ("rows and columns", 1_001_000)
    now(1)
    one.log("on")
    [report], _ = read_reports(worker.look().progress or b"")
    assert (report.lines, report.at_ms) == (["begun", "on"], 1_002_000)


def test_what_stands_still_is_written_again_before_it_would_vanish(worker: Worker, now: Callable[[float], None]):
    worker.begin().progress(1)
    first = worker.look().progress
    now(AGAIN_S - 1)
    assert worker.look() == Told()
    now(1)
    assert worker.look().progress == first, "the time of its last word is what it was"
    now(1)
    assert worker.look() == Told()


def test_the_newest_lines_are_shown_of_a_run_that_goes_on(worker: Worker):
    one = worker.begin()
    for n in range(300):
        one.log(f"line {n}")
    [report], _ = read_reports(worker.look().progress or b"")
    assert report.lines == [f"line {n}" for n in range(280, 300)]
    assert report.before == 280


def test_a_job_that_logs_and_ends_between_two_looks_has_its_lines(worker: Worker):
    one = worker.begin(failed=2)
    one.log("a\nb")
    worker.end(one)
    [ended] = worker.look().ended
    assert (ended.id, ended.attempt, ended.outcome, ended.text, ended.before) == ("j0", 3, "done", "a\nb", 0)
    assert ended.place == "high/1000-0"
    assert worker.look() == Told()


def test_progress_of_the_last_that_ended_is_removed_and_without_lines_nothing_is_kept(worker: Worker):
    one, other = worker.begin(), worker.begin(1)
    one.progress(1)
    other.progress(2)
    assert worker.look().progress
    worker.end(one)
    told = worker.look()
    [report], _ = read_reports(told.progress or b"")
    assert (report.id, told.ended) == ("j1", [])
    worker.end(other)
    assert worker.look() == Told(b"")
    assert worker.look() == Told()


@pytest.mark.parametrize("outcome", ["dead", "retry", "snooze", "parked"])
def test_an_attempt_says_what_became_of_it(worker: Worker, outcome: str):
    one = worker.begin()
    one.log("a")
    worker.end(one, outcome)
    assert [ended.outcome for ended in worker.look().ended] == [outcome]


def test_a_run_whose_lease_is_lost_has_ended_here(worker: Worker):
    one = worker.begin()
    one.log("a")
    worker.held.remove([one])
    assert [ended.outcome for ended in worker.look().ended] == ["lost"]
    one.log("b")
    assert worker.look() == Told()


def test_at_the_end_of_a_worker_all_its_runs_have_ended(worker: Worker):
    going, done = worker.begin(), worker.begin(1)
    going.log("on and on")
    going.progress(1)
    done.log("ready")
    worker.look()
    worker.lanes.pop()
    told = worker.listener.look(True)
    assert {ended.id: ended.outcome for ended in told.ended} == {"j0": "released", "j1": "done"}
    assert told.progress == b""


def test_of_too_many_that_ended_those_that_failed_go_first_and_the_others_are_counted(worker: Worker):
    for n in range(2 * MAX_ENDED_S):
        one = worker.begin(n)
        one.log("a")
        worker.end(one, "dead" if n % 4 == 3 else "")
    told = worker.look()
    assert len(told.ended) == MAX_ENDED_S
    assert sum(ended.outcome == "dead" for ended in told.ended) == MAX_ENDED_S // 2
    assert told.left_out == MAX_ENDED_S
    assert worker.look() == Told()


def test_of_a_flood_of_dropped_jobs_a_few_are_told_of_and_failures_keep_their_room(worker: Worker):
    for n in range(10 * MAX_DROPPED_S):
        worker.listener.drop(worker.begin(n), "dropped as a duplicate of a\nb (key k)")
    worker.listener.fail(worker.begin(), Dead("no"), Try(1, 5, error="E: no"))
    *dropped, failed = worker.look().events
    assert ([one.outcome for one in dropped], failed.outcome) == (["duplicate"] * MAX_DROPPED_S, "dead")
    assert dropped[0].error == "dropped as a duplicate of a b (key k)"
    worker.listener.drop(worker.begin(), "again")
    assert [one.error for one in worker.look().events] == ["again"]


def test_no_flood_fills_the_memory(worker: Worker):
    for n in range(MAX_NEW + 10):
        one = worker.begin(n)
        one.log("a")
        worker.end(one)
    assert worker.look().left_out == MAX_NEW - MAX_ENDED_S


def test_a_job_whose_code_runs_outside_of_its_context_is_heard_at_the_next_look(worker: Worker):
    one = worker.begin()
    LANE.set(None)
    one.log("from a thread of an executor")
    [report], _ = read_reports(worker.look().progress or b"")
    assert report.lines == ["from a thread of an executor"]
    worker.end(one)
    assert [ended.text for ended in worker.look().ended] == ["from a thread of an executor"]


def failed_attempt(text: str = "no", *, code: str = "") -> Retry | Dead:
    """Return what `decide` makes of a run that failed: for a letter where there is a code."""
    if not code:
        return Retry(1, text)
    dead = Dead(text, code)
    dead.is_failure = True
    return dead


def a_try(error: str = "ValueError: no", **fields: Any) -> Try:
    return Try(1, 999_000, 30, "w", "v1", error, "a.py:1 f", **fields)


@pytest.mark.parametrize(("code", "outcome"), [("", "retry"), ("attempts", "dead")])
@pytest.mark.parametrize("lines", ["", "a\nb"])
def test_a_run_that_failed_is_told_of_once_with_what_it_failed_of(worker: Worker, lines: str, code: str, outcome: str):
    one = worker.begin(failed=1)
    if lines:
        one.log(lines)
    worker.fail(one, failed_attempt("ValueError: the database\n says no", code=code), a_try("ValueError: the database\n says no"))
    told = worker.look()
    [event] = told.events
    assert (event.id, event.type, event.attempt, event.place) == ("j0", "greet", 2, "high/1000-0")
    assert (event.outcome, event.error, event.frame) == (outcome, "ValueError: the database says no", "a.py:1 f")
    assert (event.at_ms, event.run_ms, event.by, event.app) == (999_030, 30, "w-1", "v1")
    assert event.wait_ms == 998_000, "to its start"
    assert [(ended.text, ended.outcome, ended.error) for ended in told.ended] == (
        [(lines, outcome, "ValueError: the database says no")] if lines else []
    )
    assert worker.look() == Told()


def test_what_a_run_with_lines_failed_of_is_cut_and_read_under_a_guard(worker: Worker):
    class Mute(Retry):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    for n, outcome in enumerate((failed_attempt("x" * 10_000), Mute(1))):
        one = worker.begin(n)
        one.log("a")
        worker.fail(one, outcome, a_try("x" * 10_000))
    told = worker.look()
    assert [ended.error for ended in told.ended] == ["x" * MAX_LINE_CHARS, "(its message raised RuntimeError)"]
    assert [event.error for event in told.events] == ["x" * MAX_ERROR_BYTES] * 2


def test_a_death_without_a_run_is_no_attempt(worker: Worker):
    worker.fail(worker.begin(), Dead("expired", "expired"))
    assert worker.look() == Told()


def test_a_run_that_people_cancelled_is_told_of(worker: Worker):
    worker.fail(worker.begin(), Dead("cancelled by ann", "cancelled"))
    assert [(event.outcome, event.at_ms, event.run_ms) for event in worker.look().events] == [("cancelled", 1_000_000, 0)]


def test_of_a_flood_of_failures_the_first_are_told_of_and_their_payloads_are_let_go(worker: Worker):
    for n in range(MAX_ENDED_S + 10):
        worker.fail(worker.begin(n), failed_attempt(), a_try(str(n)))
    assert repr(worker.listener) == f"<Listener hears 0 runs, and of {MAX_ENDED_S} that ended>"
    told = worker.look()
    assert [event.error for event in told.events] == [str(n) for n in range(MAX_ENDED_S)]
    worker.fail(worker.begin(), failed_attempt(), a_try())
    assert len(worker.look().events) == 1


def test_failures_with_lines_go_before_what_did_not_fail(worker: Worker):
    for n in range(MAX_ENDED_S):
        done = worker.begin(n)
        done.log("fine")
        worker.end(done)
    spoke = worker.begin(MAX_ENDED_S)
    spoke.log("a")
    worker.fail(spoke, failed_attempt(), a_try())
    told = worker.look()
    assert [ended.text for ended in told.ended] == ["a"] + ["fine"] * (MAX_ENDED_S - 1)
    assert told.left_out == 1


def test_what_a_thread_says_after_its_run_has_failed_is_kept(worker: Worker):
    one = worker.begin()
    worker.fail(one, failed_attempt("timed out"), a_try())
    one.log("on and on")
    told = worker.look()
    assert [(ended.outcome, ended.text) for ended in told.ended] == [("retry", "on and on")]
    assert [event.outcome for event in told.events] == ["retry"]


# --- runs that were done -----------------------------------------------------------------------------------------------------


class Running:
    """As much of a lane as tells of its run."""

    def __init__(self, one: Job, started_s: float) -> None:
        self.job, self.started_s = one, started_s


def test_of_many_that_are_done_one_each_fiftieth_of_a_second_is_told_of(worker: Worker, now: Callable[[float], None]):
    for n in range(1000):
        one = worker.begin(n, fetched_ms=5000)
        one.taken_s = 999.0
        LANE.set(Running(one, 999.5))  # type: ignore[arg-type]
        worker.listener.done(one)
        now(DONE_S / 10)
    events = worker.look().events
    assert 90 <= len(events) <= 101
    first = events[0]
    assert (first.id, first.outcome, first.attempt, first.run_ms, first.at_ms) == ("j0", "done", 1, 500, 6000)
    assert first.wait_ms == 4500, "from its entry's time to its start, by the server's clock"


def test_a_job_that_another_than_its_lane_settles_is_not_told_of(worker: Worker):
    worker.listener.done(worker.begin())
    LANE.set(None)
    worker.listener.done(worker.begin(1))
    assert worker.look() == Told()
