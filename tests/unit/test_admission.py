"""Admission: which jobs may start, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import (
    Dead,
    Snooze,
)
from runtime.jobs import (
    LOST,
    Job,
    Outcome,
    Park,
    Postpone,
)
from runtime.worker.admission import admit, sort_claimed
from tests.builders import NOW_MS, job
from tests.unit.outcomes import (
    REGISTRY,
)


def verdict(one: Job) -> Outcome | str:
    """Return `ready`, `keyed`, or the outcome a job was turned away with."""
    admitted = admit([one], REGISTRY, NOW_MS)
    if admitted.turned_away:
        assert not admitted.ready
        assert not admitted.keyed
        assert admitted.turned_away[0][0] is one
        return admitted.turned_away[0][1]
    assert len(admitted.ready) + len(admitted.keyed) == 1
    return "ready" if admitted.ready == [one] else "keyed"


def test_a_job_of_a_known_type_may_start() -> None:
    assert verdict(job()) == "ready"
    assert verdict(job(id="a", attempts=3)) == "ready"
    assert verdict(job(version=2)) == "ready"


@pytest.mark.parametrize("name", [b"", b"Greet", b"gr eet", b"greet\n", b"-greet", b".a", "grüße".encode(), b"\xff", b"a" * 65])
def test_a_type_that_is_no_name_is_unreadable(name: bytes) -> None:
    word = verdict(job(name))
    assert isinstance(word, Dead)
    assert word.code == "unreadable"


def test_an_expired_job_is_dead() -> None:
    word = verdict(job(exp_ms=NOW_MS))
    assert isinstance(word, Dead)
    assert word.code == "expired"
    assert str(NOW_MS) in str(word)


def test_a_job_that_expires_later_may_start() -> None:
    assert verdict(job(exp_ms=NOW_MS + 1)) == "ready"


def test_an_unknown_type_is_parked_in_the_lot_of_its_type_and_version() -> None:
    assert verdict(job(b"send-fax")) == Park("~t:send-fax@1")
    assert verdict(job(b"send-fax", version=7)) == Park("~t:send-fax@7")


def test_a_newer_version_is_parked_for_a_worker_that_knows_it() -> None:
    assert verdict(job(version=3)) == Park("~t:greet@3")


def test_a_job_with_a_time_to_come_is_postponed() -> None:
    assert verdict(job(at_ms=NOW_MS + 1)) == Postpone(NOW_MS + 1)


def test_a_job_whose_time_has_come_may_start() -> None:
    assert verdict(job(at_ms=NOW_MS)) == "ready"


def test_a_job_with_a_key_waits_for_the_verdict_on_its_key() -> None:
    assert verdict(job(key=b"k")) == "keyed"


def test_what_is_wrong_with_a_job_is_judged_in_one_order() -> None:
    wrong: dict[str, Any] = {"exp_ms": 1, "version": 3, "key": b"k", "at_ms": NOW_MS + 1}
    unreadable, expired = verdict(job(b"NO", **wrong)), verdict(job(b"send-fax", **wrong))
    assert isinstance(unreadable, Dead)
    assert unreadable.code == "unreadable"
    assert isinstance(expired, Dead)
    assert expired.code == "expired"
    del wrong["exp_ms"]
    assert verdict(job(b"send-fax", **wrong)) == Park("~t:send-fax@3")
    assert verdict(job(**wrong)) == Park("~t:greet@3")
    del wrong["version"]
    assert verdict(job(**wrong)) == "keyed"
    del wrong["key"]
    assert verdict(job(**wrong)) == Postpone(NOW_MS + 1)


def test_a_batch_keeps_its_order() -> None:
    jobs = [job(), job(key=b"k"), job(id="a"), job(b"send-fax"), job(key=b"l"), job(), job(at_ms=NOW_MS + 5)]
    admitted = admit(jobs, REGISTRY, NOW_MS)
    assert admitted.ready == [jobs[0], jobs[2], jobs[5]]
    assert admitted.keyed == [jobs[1], jobs[4]]
    assert [turned for turned, _ in admitted.turned_away] == [jobs[3], jobs[6]]


def test_keyed_jobs_go_where_the_store_and_their_time_send_them() -> None:
    mine, later, duplicate, refused, failed = (
        job(key=b"k"), job(key=b"k", at_ms=NOW_MS + 9), job(key=b"k"), job(key=b"k"), job(key=b"k")
    )  # fmt: skip
    admitted = admit([mine, later, duplicate, refused, failed], REGISTRY, NOW_MS)
    verdicts = ["mine", "mine", "duplicate", "refused", "WRONGTYPE of a mark"]
    claimed = sort_claimed(admitted.keyed, verdicts, NOW_MS)
    assert claimed.duplicates == [duplicate]
    assert claimed.ready == [mine]
    turned = {id(one): outcome for one, outcome in claimed.turned_away}
    assert turned[id(later)] == Postpone(NOW_MS + 9)
    assert turned[id(refused)] is LOST
    word = turned[id(failed)]
    assert isinstance(word, Snooze)
    assert word.delay_s == 5
    assert len(turned) == 3


def test_each_key_needs_a_verdict() -> None:
    with pytest.raises(ValueError, match="zip"):
        sort_claimed([job(key=b"k"), job(key=b"l")], ["mine"], NOW_MS)
