"""What all of the store shares: a worker's row in its own bytes and in a stranger's, and numbers out of texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.codec import MAX_MS
from runtime.errors import ConfigError
from runtime.store.base import MAX_LEASE_MS, TOLD_JOBS, Keys, WorkerRow, parse_int, script, setting, workers_of
from runtime.store.resp import ServerError

COUNTS = st.dictionaries(st.text(max_size=20), st.integers(0, 2000), max_size=5)


@given(
    st.builds(
        WorkerRow,
        lease_ms=st.integers(0, MAX_LEASE_MS),
        host=st.text(max_size=20),
        pid=st.integers(0, MAX_MS),
        lanes=st.integers(0, 2000),
        held=st.integers(0, 4000),
        running=COUNTS,
        stage=st.sampled_from(["running", "draining"]),
        types=COUNTS,
        reserved=st.integers(0, 100),
        limits=st.dictionaries(st.text(max_size=20), st.dictionaries(st.text(max_size=9), st.integers() | st.text()), max_size=3),
        schedules=COUNTS,
        blocked=COUNTS,
        blocked_ms=COUNTS,
        since=st.integers(0, MAX_MS),
        version=st.text(max_size=9),
        app=st.text(max_size=9),
        rss=st.integers(0, MAX_MS),
        lag=st.integers(0, MAX_MS),
        where=st.dictionaries(st.text(max_size=9), st.text(max_size=20), max_size=3),
        jobs=st.lists(st.tuples(st.text(max_size=9), st.integers(0, MAX_MS), st.text(max_size=9)), max_size=TOLD_JOBS),
    )
)
def test_a_row_is_read_as_it_was_written(row: WorkerRow) -> None:
    assert WorkerRow.parse(str(row)) == row


def test_a_row_is_written_as_every_version_reads_it():
    row = WorkerRow(30_000, "host", 7, 8, 3, {"a": 1}, "running", {"a": 2})
    told = '{"host":"host","pid":7,"lanes":8,"held":3,"running":{"a":1},"stage":"running","types":{"a":2}}'
    since = '"reserved":0,"limits":{},"schedules":{},"blocked":{},"blocked_ms":{}'
    newest = '"since":0,"version":"","app":"","rss":0,"lag":0,"where":{},"jobs":[],"unknown_s":0'
    assert str(row) == f"30000 {told[:-1]},{since},{newest}}}"
    assert WorkerRow.parse(f"30000 {told}") == row, "and as the releases before limits wrote it"


@given(st.text())
def test_whatever_text_stands_in_the_place_of_a_row_reads_as_one(text: str) -> None:
    row = WorkerRow.parse(text)
    assert 0 <= row.lease_ms <= MAX_LEASE_MS


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("", WorkerRow()),
        ("30000", WorkerRow(30_000)),
        ("99999999999 {}", WorkerRow(MAX_LEASE_MS)),
        ("30000 {", WorkerRow(30_000)),
        ("30000 []", WorkerRow(30_000)),
        ("30000 " + "[" * 100_000, WorkerRow(30_000)),
        ('x {"lanes":"many","host":7,"held":3}', WorkerRow(held=3)),
        ('1 {"types":{"a":1,"b":"2"},"running":[]}', WorkerRow(1, types={"a": 1})),
        ('1 {"lease_ms":5,"hats":3}', WorkerRow(1)),
        (
            '1 {"limits":{"a":{"limit":5},"b":7},"schedules":{"c":[],"d":3}}',
            WorkerRow(1, limits={"a": {"limit": 5}}, schedules={"d": 3}),
        ),
        ('1 {"where":{"a":"b.py:1","c":7},"version":7,"app":[],"lag":"x"}', WorkerRow(1, where={"a": "b.py:1"})),
        (
            '1 {"jobs":[["high/1-0",5,"t"],["high/1-0","5","t"],[],"abc",7,["a",-1,"t"],["a",1,"t",2],{"a":1,"b":2,"c":3}]}',
            WorkerRow(1, jobs=[("high/1-0", 5, "t")]),
        ),
        (f'1 {{"jobs":[["a",{10**40},"t"]],"since":{10**40},"rss":-1,"pid":true,"lag":NaN}}', WorkerRow(1)),
        (f'1 {{"jobs":[{",".join(["[]"] * 99)},["a",1,"t"]]}}', WorkerRow(1)),
    ],
)
def test_what_of_a_row_cannot_be_read_is_as_if_it_were_not_there(text: str, row: WorkerRow) -> None:
    assert WorkerRow.parse(text) == row


def test_the_guards_own_members_are_no_workers():
    row = str(WorkerRow(30_000)).encode()
    known = workers_of([b"~last", b"1", b"me", b"1e300", b"you", b"-5"], [b"me", row, b"gone", row])
    assert known == {"me": (MAX_MS, WorkerRow(30_000)), "you": (0, WorkerRow())}


@pytest.mark.parametrize(
    ("text", "number"),
    [("7", 7), (str(MAX_MS), MAX_MS), (str(MAX_MS + 1), None), ("9" * 400, None), ("\u00b2", None), ("-1", None)],
)
def test_a_number_out_of_a_text_is_one_that_scripts_can_hold(text: str, number: int | None) -> None:
    assert parse_int(text) == number


def test_a_script_has_its_flags_first_and_the_constants_of_python_before_its_body():
    lines = script("reclaim").text.splitlines()
    assert lines[0].startswith("#!lua")
    assert "local GROUP = 'workers'" in lines
    assert "local DUE = KEYS[5]" in lines
    assert f"local MAX_LEASE_MS = {MAX_LEASE_MS}" in lines
    assert "local STREAMS = {'critical', 'high', 'medium', 'low'}" in lines


@pytest.mark.parametrize("queue", ["", "a b", "{a}", "a\r", "a\n"])
def test_a_queue_whose_keys_would_lie_on_several_slots_or_lines_is_refused(queue: str) -> None:
    with pytest.raises(ConfigError, match="must be a name without spaces and braces"):
        Keys(queue)


def test_all_keys_of_a_queue_share_its_hash_tag():
    keys = Keys("jobs")
    assert {key.partition(":")[0] for key in (*keys.scripted, keys.layout, keys.stats(7))} == {"{jobs}"}


@pytest.mark.parametrize(
    ("answer", "value"), [([b"appendonly", b"yes"], "yes"), ([], ""), (ServerError("NOPERM no permissions to run CONFIG"), "")]
)
def test_a_setting_that_the_server_does_not_tell_is_empty(answer: object, value: str) -> None:
    assert setting(answer) == value
