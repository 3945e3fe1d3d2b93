"""What a sentinel answers: of which server it speaks, and whether it is one at all."""

from __future__ import annotations

import pytest

from runtime.store.resp import ServerError
from runtime.store.urls import master_in


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
