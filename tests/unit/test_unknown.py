"""Lots of unknown types: who knows them, and from when on what waits there is dead."""

from __future__ import annotations

import pytest

from runtime.store.base import WorkerRow
from runtime.store.unknown import dead_from_ms, kind_in_words, lot_is_known, type_and_version

HOUR_MS = 3_600_000
NOW_MS = 1_700_000_000_000


def test_a_lot_is_known_by_its_type_and_up_to_the_newest_version():
    assert lot_is_known("~t:a@2", [("b", 9), ("a", 2)])
    assert not lot_is_known("~t:a@3", [("a", 2)])
    assert not lot_is_known("~t:a@junk", [("a", 2)])
    assert not lot_is_known("~t:", [("", 1)])
    assert type_and_version("~t:a@b@7") == ("a@b", 7)


@pytest.mark.parametrize(
    ("lot", "words"),
    [
        ("~t:a@1", "a"),
        ("~t:a@2", "a in version 2"),
        ("~t:a@junk", "a in a version that is no number"),
        ("~t:", "types beyond those with a lot of their own"),
    ],
)
def test_a_lot_is_said_in_words(lot: str, words: str):
    assert kind_in_words(lot) == words


def test_what_nobody_knows_is_dead_when_it_and_a_worker_have_been_there_for_as_long_as_that_worker_waits():
    old, young = WorkerRow(since=NOW_MS - HOUR_MS, unknown_s=900), WorkerRow(since=NOW_MS, unknown_s=900)
    parked_ms = NOW_MS - 60_000
    assert dead_from_ms("~t:a@1", parked_ms, [old, young]) == parked_ms + 900_000
    assert dead_from_ms("~t:a@1", parked_ms, [young]) == NOW_MS + 900_000, "it has not been there for as long"
    assert dead_from_ms("~t:a@1", parked_ms, [young, WorkerRow(since=1)]) == NOW_MS + 900_000, "the other does not say"


@pytest.mark.parametrize("rows", [[], [WorkerRow(since=1)], [WorkerRow(since=1, unknown_s=900, types={"a": 1})]])
def test_it_is_not_said_where_a_worker_knows_it_or_none_tells(rows: list[WorkerRow]):
    assert dead_from_ms("~t:a@1", NOW_MS, rows) == 0
