"""What a job remembers of its failed attempts: short, whatever errors say; and read from anybody, whatever they wrote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.tries import FIRST, KEPT, MAX_ERROR_BYTES, MAX_TRIES_BYTES, Try, one_line, pack_tries, read_tries, with_try

TRACE = "0af7651916cd43dd8448eb211c80319c"
ONE = Try(1, 1_732_000_000_000, 2100, "pay-1 · 812", "v1.4.2", "HTTPStatusError: 401", "handlers/data.py:214 push", TRACE)

TEXT = st.text(max_size=400) | st.sampled_from(["", "=", "'='", "a\tb", "a\nb", "\udc80", "\x00", "é" * 300])
TRY = st.builds(
    Try, st.integers(1, 2**60), st.integers(-5, 2**60), st.integers(-5, 2**60), TEXT, TEXT, TEXT, TEXT, TEXT | st.just(TRACE)
) | st.builds(Try, st.just(0), st.integers(0, 2**53))


def tries(n: int, error: str = "E: {0}") -> list[Try]:
    return [Try(at, at * 1000, 5, "w", "v1", error.format(at), "a.py:1 f", TRACE) for at in range(1, n + 1)]


def test_an_attempt_is_a_line_that_people_can_read() -> None:
    line = f"1\t1732000000000\t2100\tpay-1 · 812\tv1.4.2\tHTTPStatusError: 401\thandlers/data.py:214 push\t{TRACE}"
    assert pack_tries([ONE]) == line.encode()
    assert read_tries(line.encode()) == [ONE]


def test_what_the_line_above_says_is_not_said_again() -> None:
    two = with_try(pack_tries([ONE]), Try(2, 1_732_000_060_000, 1900, *(ONE.by, "v1.4.3", ONE.error, ONE.frame, TRACE)))
    assert two.split(b"\n")[1] == b"2\t1732000060000\t1900\t=\tv1.4.3\t=\t=\t="
    assert [(one.attempt, one.by, one.app, one.error) for one in read_tries(two)] == [
        (1, "pay-1 · 812", "v1.4.2", "HTTPStatusError: 401"),
        (2, "pay-1 · 812", "v1.4.3", "HTTPStatusError: 401"),
    ]


def test_a_replay_stands_between_the_attempts_of_two_lives_and_what_is_the_same_is_so_over_it() -> None:
    packed = with_try(pack_tries([ONE]) + b"\n0\t1732000100000", Try(1, 1_732_000_200_000, 3, *(ONE.by, "", ONE.error)))
    assert [(one.attempt, one.is_replay, one.at_ms, one.error) for one in read_tries(packed)] == [
        (1, False, 1_732_000_000_000, ONE.error),
        (0, True, 1_732_000_100_000, ""),
        (1, False, 1_732_000_200_000, ONE.error),
    ]


@pytest.mark.parametrize("n", [1, KEPT, KEPT + 1, 100])
def test_the_first_and_the_last_attempts_are_kept(n: int) -> None:
    packed = b""
    for one in tries(n):
        packed = with_try(packed, one)
    numbers = list(range(1, n + 1))
    assert [one.attempt for one in read_tries(packed)] == (numbers if n <= KEPT else numbers[:FIRST] + numbers[-FIRST:])


def test_errors_that_are_long_and_all_different_are_cut_until_every_attempt_has_space() -> None:
    packed = pack_tries(tries(KEPT, "E: {0} " + "x" * 500))
    assert len(packed) <= MAX_TRIES_BYTES
    found = read_tries(packed)
    assert [one.attempt for one in found] == list(range(1, KEPT + 1))
    assert all(one.error.startswith(f"E: {one.attempt} xxx") for one in found)


def test_one_error_is_kept_in_its_full_length_however_often_it_comes() -> None:
    found = read_tries(pack_tries(tries(100, "E: " + "x" * 500)))
    assert {one.error for one in found} == {"E: " + "x" * (MAX_ERROR_BYTES - 3)}
    assert len(found) == KEPT


@given(st.lists(TRY, max_size=30))
def test_whatever_attempts_say_the_field_is_short_and_says_what_it_can(told: list[Try]) -> None:
    packed = pack_tries(told)
    assert len(packed) <= MAX_TRIES_BYTES
    found = read_tries(packed)
    assert pack_tries(found) == packed, "what is read and written again stays as it is"
    assert {one.attempt for one in found} <= {min(one.attempt, 2**53) for one in told}
    assert packed.isascii() or packed.decode()
    if told and len(found) == len(told):
        assert [one.is_replay for one in found] == [one.is_replay for one in told]


LINES = st.lists(
    st.sampled_from([b"1\t2\t3\tw", b"0\t5", b"=", b"\t\t\t", b"1\t", b"-1\t4", b"9" * 30 + b"\t1", b"2\t3\t=\t=\t="])
)


@given(st.binary(max_size=300) | LINES.map(b"\n".join) | st.binary(min_size=20, max_size=40).map(lambda some: some * 500))
def test_a_strangers_field_is_read_without_an_error_and_within_bounds(packed: bytes) -> None:
    found = read_tries(packed)
    assert len(found) <= 4 * KEPT
    for one in found:
        assert min(one.attempt, one.at_ms, one.run_ms) >= 0
        assert max(len(text.encode()) for text in (one.by, one.app, one.error, one.frame, one.trace)) <= MAX_ERROR_BYTES
    assert len(with_try(packed, ONE)) <= MAX_TRIES_BYTES
    assert read_tries(with_try(packed, ONE))[-1] == ONE


@pytest.mark.parametrize(
    ("packed", "found"),
    [
        (b"", []),
        (b"no attempt", []),
        (b"x\ty\n1\t2", [Try(1, 2)]),
        (b"1\t2\tx", []),
        (b"1\t2\t3\t=\t=", [Try(1, 2, 3)]),
        (b"1\t2\t3\ta\tb\tc\td\tno trace\tmore\tand more", [Try(1, 2, 3, "a", "b", "c", "d")]),
        (b"1\t2\t3\t\xff", [Try(1, 2, 3, "\N{REPLACEMENT CHARACTER}")]),
        ("\N{ARABIC-INDIC DIGIT ONE}\t2".encode(), []),
        (b"1\t2\n\n\n0\t7\n2\t3", [Try(1, 2), Try(0, 7), Try(2, 3)]),
    ],
)
def test_of_lines_that_say_something_else_nothing_is_read(packed: bytes, found: list[Try]) -> None:
    assert read_tries(packed) == found


@pytest.mark.parametrize(
    ("text", "size", "line"),
    [
        ("plain", 10, "plain"),
        ("  a \n\t b\u2028c ", 10, "a b c"),
        ("a\x00b\x1b[2J", 10, "a?b?[2J"),
        ("ééé", 3, "é"),
        ("\ud800", 5, "?"),
        ("=", 5, "'='"),
        ("==", 5, "=="),
        ("x" * 50, 5, "xxxxx"),
    ],
)
def test_a_text_is_one_line_of_so_many_bytes(text: str, size: int, line: str) -> None:
    assert one_line(text, size) == line


@pytest.mark.parametrize(
    ("error", "name"),
    [
        ("ValueError: no", "ValueError"),
        ("ValueError", "ValueError"),
        ("no such: thing", ""),
        ("", ""),
        ("12: x", ""),
        ("_E: x", "_E"),
    ],
)
def test_the_class_of_an_error_is_told_without_its_message(error: str, name: str) -> None:
    assert Try(1, 2, 3, error=error).error_class == name
