"""Rules: what stands in `control` is read as far as it can be, and the rest is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.limits import override_of
from runtime.rules import NO_RULES, Pause, parse

NOW_MS = 1_700_000_000_000


def read(**fields):
    return parse([(name.replace("__", ":").encode(), value.encode()) for name, value in fields.items()])


def test_all_kinds_of_rules_are_read():
    rules = read(
        v="7", pause__mail=f"0 {NOW_MS} ann@host smtp is down", limit__mail='{"limit": 3}', worker__w1="quiet", op__x="{}"
    )
    assert rules.version == "7"
    assert rules.pauses == {"mail": Pause(0, NOW_MS, "ann@host", "smtp is down")}
    assert rules.limits == {"mail": override_of({"limit": 3})}
    assert rules.orders == {"w1": "quiet"}
    assert rules.unreadable == ()


def test_a_pause_ends_at_its_time():
    rules = read(pause__mail=f"{NOW_MS + 5} {NOW_MS} ann")
    assert rules.is_type_paused("mail", NOW_MS)
    assert rules.is_type_paused("mail", NOW_MS + 4)
    assert not rules.is_type_paused("mail", NOW_MS + 5)
    assert not rules.is_type_paused("other", NOW_MS)


def test_a_paused_priority_is_a_stream_and_the_whole_queue_all_of_them():
    assert read(pause__high=f"0 {NOW_MS} ann").paused_streams(NOW_MS) == {1}
    assert parse([(b"pause:*", b"0 1 ann")]).paused_streams(NOW_MS) == {0, 1, 2, 3}
    assert NO_RULES.paused_streams(NOW_MS) == set()
    assert not read(pause__high=f"0 {NOW_MS} ann").is_type_paused("high", NOW_MS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"pause:mail", b""),
        (b"pause:mail", b"soon 1 ann"),
        (b"pause:mail", b"-1 1 ann"),
        (b"pause:mail", b"99999999999999999999 1 ann"),
        (b"pause:Mail!", b"0 1 ann"),
        (b"pause:", b"0 1 ann"),
        (b"limit:mail", b"5"),
        (b"limit:mail", b"{"),
        (b"limit:mail", b'{"limit": 0}'),
        (b"limit:mail", b"[" * 100_000),
        (b"worker:w1", b"dance"),
        (b"strange", b"1"),
        (b"\xff\xfe", b"\xff"),
    ],
)
def test_what_cannot_be_read_is_told_and_the_rest_holds(name, value):
    rules = parse([(name, value), (b"v", b"3"), (b"worker:w2", b"stop")])
    assert len(rules.unreadable) == 1
    assert len(rules.unreadable[0]) < 400
    assert (rules.version, rules.orders) == ("3", {"w2": "stop"})


@given(st.dictionaries(st.binary(max_size=20), st.binary(max_size=40)))
def test_no_bytes_raise(fields):
    parse(fields.items())
