"""Dead letters in short: what is told of each, in which order, and how little of them is read at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from runtime.errors import StoreError
from runtime.store.letters import STEP, Head, LetterStore
from tests.servers import Server

DEAD, TRASH = "{jobs}:dead", "{jobs}:trash"
NOTES = {
    "dead_reason": "attempts",
    "dead_error": "KeyError: 'a'",
    "dead_from": "low/7-1",
    "dead_at": "7000",
    "dead_attempts": "3",
}
STACK = "  File \"/srv/app/shop/crm.py\", line 214, in fetch\n    raise KeyError('a')\n"
LIBRARY = '  File "/srv/app/.venv/lib/python3.11/site-packages/httpx/_client.py", line 9, in send\n    x\n'
RUNTIME = '  File "/opt/runtime/worker/lanes.py", line 9, in run\n    x\n'


@pytest.fixture
async def letters(server: Server) -> AsyncIterator[LetterStore]:
    opened = LetterStore(server.url, "jobs")
    yield opened
    await opened.close()


def bury(raw: redis.Redis, entry: str = "*", shelf: str = DEAD, **more: Any) -> str:
    return raw.xadd(shelf, {"type": "t", "data": "{}", "id": "j1", **NOTES, **more}, id=entry)


def ids(heads: list[Head]) -> list[str]:
    return [head.id for head in heads]


async def test_a_letter_says_what_it_died_of(raw: redis.Redis, letters: LetterStore) -> None:
    more = {"key": "k", "exp": "99", "v": "2", "dead_trace": "00-a-b-01", "data": '{"a":1}', "x-op": "replay-1"}
    place = bury(raw, dead_stack=STACK, dead_by="w-1", dead_app="v7", **more)
    [head], is_end = await letters.older(args_bytes=4)
    assert is_end
    size = head.size
    assert head == Head(
        place=place,
        id="j1",
        type="t",
        reason="attempts",
        error="KeyError: 'a'",
        has_stack=True,
        frame="/srv/app/shop/crm.py:214 fetch",
        by="w-1",
        app="v7",
        attempts=3,
        at_ms=7000,
        stood="low/7-1",
        size=size,
        trace="00-a-b-01",
        key="k",
        exp_ms=99,
        version=2,
        is_msgpack=False,
        operation="replay-1",
        args=b'{"a"',
        args_bytes=7,
        stays="",
    )
    assert size == sum(len(name) + len(value) for name, value in raw.xrange(DEAD)[0][1].items())


@pytest.mark.parametrize(
    ("stack", "frame"),
    [
        (STACK.replace("214, in fetch", "1, in main") + STACK, "/srv/app/shop/crm.py:214 fetch"),
        (STACK + LIBRARY * 3, "/srv/app/shop/crm.py:214 fetch"),
        (RUNTIME + STACK, "/srv/app/shop/crm.py:214 fetch"),
        (LIBRARY, "/srv/app/.venv/lib/python3.11/site-packages/httpx/_client.py:9 send"),
        (RUNTIME + '  File "/opt/runtime/jobs.py", line 1, in f\n', "/opt/runtime/jobs.py:1 f"),
        ("", ""),
        ('File "', ""),
        ("x" * 8000, ""),
        (STACK + "x" * 8000, ""),  # further from the end than anybody looks
    ],
    ids=range(9),
)
async def test_the_last_own_frame_is_told(raw: redis.Redis, letters: LetterStore, stack: str, frame: str) -> None:
    bury(raw, dead_stack=stack)
    [head], _ = await letters.older()
    assert head.frame == frame


async def test_what_a_stranger_wrote_spoils_nothing(raw: redis.Redis, letters: LetterStore) -> None:
    raw.xadd(DEAD, {"x": "y"}, id="5-1")
    raw.xadd(
        DEAD, {b"\xff": b"\xfe", "type": b"\xff\xfe", "dead_attempts": "9" * 40, "dead_at": "-1", "dead_from": "x"}, id="6-1"
    )
    bury(raw, "7-1", id="j2", dead_error="€" * 1000, type="ü" * 100)
    heads, _ = await letters.older()
    assert [(head.place, head.type, head.attempts, head.at_ms, head.priority) for head in heads[1:]] == [
        ("6-1", "\\xff\\xfe", 0, 6, ""),
        ("5-1", "", 0, 5, ""),
    ]
    assert heads[0].error == "€" * 66 and heads[0].type == "ü" * 64  # cut between characters


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"dead_from": "low/12-3"}, "low-12-3"),  # as a job is called whose message carries no id
        ({"id": "", "dead_from": "low/12-3"}, "low-12-3"),
        ({"dead_from": "low/"}, "5-1"),
        ({"x": "y"}, "5-1"),
        ({"id": "j1", "dead_from": "low/12-3"}, "j1"),
    ],
)
async def test_a_letter_has_always_a_name(raw: redis.Redis, letters: LetterStore, fields: dict[str, str], name: str) -> None:
    raw.xadd(DEAD, fields, id="5-1")
    [head], _ = await letters.older()
    assert head.id == name


async def test_letters_are_walked_in_both_directions(raw: redis.Redis, letters: LetterStore) -> None:
    for at in range(2 * STEP + 3):
        bury(raw, f"{at + 1}-1", id=f"j{at}")
    expected = [f"j{at}" for at in range(2 * STEP + 3)]

    async def walk(read: Callable[..., Any], begin: str) -> list[str]:
        found, at, is_end, steps = [], begin, False, 0
        while not is_end:
            heads, is_end = await read(at)
            found += ids(heads)
            at, steps = heads[-1].place, steps + 1
            assert len(heads) <= STEP
        assert steps == 3
        return found

    assert await walk(letters.older, "+") == expected[::-1]
    assert await walk(letters.newer, "-") == expected
    assert ids((await letters.newer(f"{2 * STEP + 2}-1"))[0]) == expected[-1:]
    assert await letters.count() == 2 * STEP + 3


async def test_no_call_reads_many_large_letters(raw: redis.Redis, letters: LetterStore) -> None:
    for at in range(8):
        bury(raw, f"{at + 1}-1", data="x" * 100_000)
    heads, is_end = await letters.older()
    assert len(heads) == 2 and not is_end and len(heads[0].args) == 0
    assert len(await letters.at([f"{at + 1}-1" for at in range(8)], args_bytes=10)) == 8  # by several calls


async def test_letters_are_found_by_their_places(raw: redis.Redis, letters: LetterStore) -> None:
    places = [bury(raw, id=f"j{at}") for at in range(STEP + 2)]
    raw.xdel(DEAD, places[1])
    assert ids(await letters.at([*places, "99-99"])) == [f"j{at}" for at in range(STEP + 2) if at != 1]
    assert (await letters.whole(places[0]) or {})[b"id"] == b"j0" and await letters.whole(places[1]) is None
    assert await letters.payloads(places[:2]) == {places[0]: b"{}"}


async def test_the_trash_is_read_as_the_dead_are(raw: redis.Redis, letters: LetterStore) -> None:
    bury(raw, shelf=TRASH, id="j9")
    assert ids((await letters.older(shelf="trash"))[0]) == ["j9"] and await letters.count("trash") == 1
    assert await letters.older() == ([], True)


@pytest.mark.parametrize(
    ("more", "stays"),
    [
        ({}, ""),
        ({"key": "mine"}, ""),
        ({"key": "taken"}, "owned"),
        ({"dead_reason": "unreadable"}, "unreadable"),
        ({"dead_from": "nowhere/1-1"}, "unreadable"),
        ({"dead_reason": "too-large", "dead_left_out": "data 300000"}, "left-out"),
    ],
)
async def test_why_a_letter_cannot_go_back(raw: redis.Redis, letters: LetterStore, more: dict[str, str], stays: str) -> None:
    owner = raw.xadd("{jobs}:low", {"type": "t", "data": "{}", "key": "taken"})
    raw.set("{jobs}:seen:k:taken", f"low {owner}")
    raw.set("{jobs}:seen:k:mine", "low 1-1")  # void: no such job is there
    place = bury(raw, **more)
    assert [head.stays for head in await letters.at([place])] == [stays]


async def test_nothing_is_written(raw: redis.Redis, letters: LetterStore) -> None:
    place = bury(raw, key="k")
    before = {key: raw.dump(key) for key in raw.scan_iter()}
    await letters.older()
    await letters.newer()
    await letters.at([place])
    assert {key: raw.dump(key) for key in raw.scan_iter()} == before


async def test_a_key_of_another_type_is_an_error(raw: redis.Redis, letters: LetterStore) -> None:
    raw.set(DEAD, "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await letters.older()
    with pytest.raises(StoreError):
        await letters.count()
