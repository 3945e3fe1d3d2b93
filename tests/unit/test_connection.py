"""Commands as they go over the wire: packed by hand or by hiredis, they are the same words."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hiredis import Reader
from hypothesis import given
from hypothesis import strategies as st

from runtime.store.connection import Tail, master_in, pack, packed_value, packed_words, tail_of
from runtime.store.resp import ServerError

WORDS = st.lists(st.one_of(st.binary(max_size=40), st.text(max_size=10), st.integers(-9, 10**12)), min_size=1, max_size=8)


def as_bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


@given(WORDS, st.lists(st.binary(max_size=20), max_size=60))
def test_a_tail_is_read_as_the_values_it_was_made_of(head: list[Any], values: list[bytes]) -> None:
    reader = Reader()
    reader.feed(pack([(*head, tail_of(values)), ("PING",)]))
    read = reader.gets()
    assert read[: len(head)] == [as_bytes(word) for word in head]
    assert Counter(read[len(head) :]) == Counter(values)
    assert reader.gets() == [b"PING"], "the next command begins where it should"


@given(WORDS, WORDS, st.binary(max_size=300))
def test_words_and_values_that_were_packed_apart_keep_their_order(head: list[Any], words: list[Any], value: bytes) -> None:
    reader = Reader()
    reader.feed(pack([(*head, Tail(len(words) + 1, packed_words(words) + packed_value(value)))]))
    assert reader.gets() == [as_bytes(word) for word in (*head, *words, value)]


def master(**told: str) -> list[bytes]:
    known = {"name": "kept", "ip": "::1", "port": "6379", "flags": "master", **told}
    return [word.encode() for pair in known.items() for word in pair]


def test_the_master_is_the_one_of_the_service_and_lives():
    masters = [
        master(name="other", port="1"),
        master(flags="master,s_down", port="2"),
        master(flags="s_down,master,o_down", port="3"),
    ]
    assert master_in(masters, b"kept") is None
    assert master_in([*masters, master()], b"kept") == ("::1", 6379)


@pytest.mark.parametrize(
    "answer",
    [
        *(ServerError("NOAUTH Authentication required."), None, 7, b"PONG", [], [b"PONG"], [[b"name"]], [[[], []]], [None]),
        *([[b"name", b"kept"]], [master(port="many")], [[*master(), b"ip"]], [[*master()[:3], b"\xff", *master()[4:]]]),
    ],
)
def test_whatever_else_answers_in_the_place_of_a_sentinel_knows_no_master(answer):
    assert master_in(answer, b"kept") is None
