"""The ledger: what is to be written of each outcome."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import (
    Dead,
    LeaseLost,
    Retry,
    Snooze,
    TimedOut,
    UnfitPayload,
)
from runtime.jobs import (
    DONE,
    LOST,
    RELEASE,
    BadEntry,
    Deferral,
    Lease,
    Letter,
    Park,
    Parking,
    Postpone,
)
from runtime.settle import decide
from runtime.worker.ledger import Ledger
from tests.builders import NOW_MS, job
from tests.unit.outcomes import (
    HANDLER,
    SAFE,
    Mute,
    decided,
    raised,
    written_for,
)


def test_finished_jobs_are_noted_by_stream() -> None:
    ledger = Ledger()
    jobs = [job(stream=stream) for stream in (0, 3, 1, 3)]
    for one in jobs:
        ledger.add(one, DONE)
    assert ledger.take().done == [[jobs[0]], [jobs[2]], [], [jobs[1], jobs[3]]]


def test_a_retry_waits_from_now_and_counts_the_failure() -> None:
    one = job(id="a", failed=2)
    ledger = Ledger()
    ledger.add(one, Retry(1.5))
    assert ledger.take().defer == [Deferral(one, "retry", 1500, "a", 3)]


def test_a_snooze_waits_from_now_and_counts_no_failure() -> None:
    one = job(id="a", failed=2)
    ledger = Ledger()
    ledger.add(one, Snooze(1.5))
    assert ledger.take().defer == [Deferral(one, "snooze", 1500, "a", 2)]


def test_a_postponed_job_waits_until_its_time() -> None:
    one = job(stream=3, at_ms=NOW_MS + 7)
    ledger = Ledger()
    ledger.add(one, Postpone(NOW_MS + 7))
    assert ledger.take().defer == [Deferral(one, "at", NOW_MS + 7, "low-1700000000000-0", 0)]


def test_a_dead_letter_says_why_and_after_how_many_attempts() -> None:
    one = job(id="a", failed=2)
    error = raised(ValueError("no"))
    ledger = Ledger()
    ledger.add(one, decide(HANDLER, one, error, lambda: 0))
    (letter,) = ledger.take().dead
    assert (letter.code, letter.error) == ("attempts", "ValueError: no")
    assert (letter.lease, letter.attempts, letter.job_id) == (one, 3, "a")
    assert "in raised" in letter.stack


def test_an_expired_or_unreadable_job_burns_no_attempt_on_its_way_to_the_dead_letters() -> None:
    assert written_for(Dead("late", "expired"), failed=2).dead[0].attempts == 2
    assert written_for(decided(UnfitPayload("no"), failed=2), failed=2).dead[0].attempts == 2
    waited = {"failed": 2, "snoozed_ms": 1}
    assert written_for(decided(Snooze(1), **waited), **waited).dead[0].attempts == 2


def test_an_entry_that_is_no_job_goes_to_the_dead_letters_as_it_is() -> None:
    lease = Lease(2, b"1-0", 1, "run/0", 0.0)
    ledger = Ledger()
    ledger.add_bad(BadEntry(lease, "too-large", "x" * 5000))
    assert ledger.take().dead == [Letter(lease, "too-large", "x" * 1000, "", 0, "")]


def test_a_parked_job_goes_to_its_lot_and_a_released_one_to_the_free() -> None:
    one, other, third = job(), job(), job()
    ledger = Ledger()
    ledger.add(one, Park("~t:greet@3"))
    ledger.add(other, RELEASE)
    ledger.release([third])
    assert ledger.take().park == [Parking(one, "~t:greet@3"), Parking(other, "~free"), Parking(third, "~free")]


def test_a_lost_job_leaves_nothing_to_write() -> None:
    assert len(written_for(LOST)) == 0


def test_the_ledger_begins_anew_when_it_was_taken() -> None:
    ledger = Ledger()
    ledger.add(job(), DONE)
    assert len(ledger) == len(ledger.take()) == 1
    assert len(ledger) == len(ledger.take()) == 0
    ledger.add(job(), DONE)
    assert len(ledger.take()) == 1


def test_what_was_taken_does_not_change_with_what_is_noted_later() -> None:
    ledger = Ledger()
    ledger.add(job(), DONE)
    batch = ledger.take()
    ledger.add(job(), DONE)
    ledger.add(job(), RELEASE)
    assert len(batch) == 1


def test_what_could_not_be_written_is_noted_again_beside_what_came_meanwhile() -> None:
    ledger = Ledger()
    jobs = [job(stream=stream % 4) for stream in range(5)]
    for one, outcome in zip(jobs, (DONE, Retry(1), Dead("no"), RELEASE, DONE), strict=True):
        ledger.add(one, outcome)
    batch = ledger.take()
    late = job(stream=0)
    ledger.add(late, DONE)
    ledger.put_back(batch)
    assert len(ledger) == 6
    again = ledger.take()
    assert again.done == [[late, jobs[0], jobs[4]], [], [], []]
    assert [again.defer[0].lease, again.dead[0].lease, again.park[0].lease] == [jobs[1], jobs[2], jobs[3]]


def test_the_flusher_is_woken_once_for_all_that_is_noted_before_it_comes() -> None:
    woken: list[int] = []
    ledger = Ledger(lambda: woken.append(len(ledger)))
    ledger.add(job(), DONE)
    ledger.add(job(), Retry(1))
    ledger.release([job()])
    ledger.add_bad(BadEntry(job(), "unreadable", "no"))
    assert woken == [1]
    ledger.take()
    ledger.release([job(), job()])
    assert woken == [1, 2]


def test_what_is_put_back_wakes_the_flusher() -> None:
    woken: list[int] = []
    ledger = Ledger(lambda: woken.append(len(ledger)))
    ledger.add_bad(BadEntry(job(), "unreadable", "no"))
    batch = ledger.take()
    ledger.put_back(batch)
    assert woken == [1, 1]


def test_nothing_to_write_wakes_nobody() -> None:
    woken: list[int] = []
    ledger = Ledger(lambda: woken.append(len(ledger)))
    ledger.release([])
    ledger.put_back(ledger.take())
    assert woken == []


def test_a_ledger_says_how_much_it_holds() -> None:
    ledger = Ledger()
    ledger.add(job(), DONE)
    assert repr(ledger) == "<Ledger 1 outcomes to write>"


WAITS = st.floats() | st.integers(-(10**30), 10**30)
ERRORS = st.one_of(
    WAITS.map(Retry),
    WAITS.map(Snooze),
    st.text(max_size=2000).map(ValueError),
    st.sampled_from([Mute(), SystemExit(1), TimedOut(), LeaseLost(), Dead(""), UnfitPayload(""), None]),
)


@given(ERRORS, st.integers(0, 2**53), st.integers(0, 2**53), st.integers(0, 2**53), st.floats(0, 1, exclude_max=True))
def test_whatever_was_raised_its_outcome_can_be_written(
    error: BaseException | None, failed: int, attempts: int, snoozed_ms: int, roll: float
) -> None:
    one = job(failed=failed, attempts=attempts, snoozed_ms=snoozed_ms)
    ledger = Ledger()
    ledger.add(one, decide(HANDLER, one, error, lambda: roll))
    batch = ledger.take()
    assert len(batch) == (0 if isinstance(error, LeaseLost) else 1)
    for move in batch.defer:
        assert 0 <= move.when_ms + NOW_MS < SAFE
