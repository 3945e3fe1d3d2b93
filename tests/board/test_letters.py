"""The index of dead letters: what it holds while letters come, go and are many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from board import letters
from board.letters import BUCKET_MS, Index
from runtime.store.letters import STEP, Head, LetterStore
from tests.servers import PATIENCE_S, Server

DEAD = "{jobs}:dead"
HOUR = 3_600_000
NOW = 1_764_154_201_337
STACK = '  File "/srv/app/shop/crm.py", line 214, in fetch\n    x\n'


def bury(raw: redis.Redis, n: int, **more: Any) -> list[str]:
    notes = {
        "dead_reason": "attempts",
        "dead_error": "KeyError: 'a'",
        "dead_from": "low/7-1",
        "dead_at": str(NOW),
        "dead_stack": STACK,
    }
    pipe = raw.pipeline(transaction=False)
    for at in range(n):
        pipe.xadd(DEAD, {"type": "t", "data": "{}", "id": f"j{at}", **notes, **more})
    return pipe.execute()


@pytest.fixture
async def index(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Index]:
    monkeypatch.setattr(letters, "FRESH_S", 0.0)
    monkeypatch.setattr(letters, "REST_S", 0.0)
    store = LetterStore(valkey.url, "jobs")
    opened = Index(store, step_wait_s=0.0)
    yield opened
    await opened.close()
    await store.close()


async def full(index: Index) -> None:
    """Look until all that there is is known."""

    end_s = time.monotonic() + PATIENCE_S
    await index.look()
    while not index.is_right:
        assert time.monotonic() < end_s, "the index was not right in time"
        await asyncio.sleep(0.01)
        await index.look()


def places(index: Index, fp: str = "") -> list[str]:
    pile = index.of(fp)
    return [letter.place for letter in pile.newest()] if pile else []


async def test_all_letters_are_read_the_newest_first(index: Index, raw: redis.Redis) -> None:
    buried = bury(raw, 3 * STEP + 7)
    await index.look()
    assert index.total == len(buried) and not index.is_complete
    await full(index)
    assert places(index) == buried[::-1]
    [group] = index.groups(NOW)
    assert (group.count, group.error, group.message, group.frame) == (len(buried), "KeyError", "'…'", "shop/crm.py:214 fetch")


async def test_letters_that_come_and_go_are_noticed(index: Index, raw: redis.Redis) -> None:
    buried = bury(raw, 2 * STEP)
    await full(index)
    more = bury(raw, 3, type="u")
    raw.xdel(DEAD, buried[0], buried[5], buried[-1], more[1])
    await full(index)
    assert places(index) == [
        more[2],
        more[0],
        *[place for place in buried[::-1] if place not in (buried[0], buried[5], buried[-1])],
    ]
    assert {(group.type, group.count) for group in index.groups(NOW)} == {("t", 2 * STEP - 3), ("u", 2)}
    raw.delete(DEAD)
    await full(index)
    assert places(index) == [] and index.groups(NOW) == []


async def test_what_comes_while_all_are_read_is_left_to_the_next_look(index: Index, raw: redis.Redis) -> None:
    buried = bury(raw, STEP)
    await full(index)
    more = bury(raw, 3)
    await index._walk_through()
    assert places(index) == buried[::-1]
    await full(index)
    assert places(index) == [*more[::-1], *buried[::-1]]


async def test_a_letter_found_to_be_gone_is_forgotten_at_once(index: Index, raw: redis.Redis) -> None:
    buried = bury(raw, 5)
    await full(index)
    index.forget([buried[4], buried[0], "9-9"])
    assert places(index) == buried[3:0:-1]
    [group] = index.groups(NOW)
    assert group.count == 3


async def test_only_the_newest_are_kept(index: Index, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "MAX_LETTERS", STEP)
    buried = bury(raw, 2 * STEP)
    await full(index)
    assert places(index) == buried[: STEP - 1 : -1] and index.total == 2 * STEP
    more = bury(raw, 2)
    await full(index)
    assert places(index) == [*more[::-1], *buried[: STEP + 1 : -1]]


async def test_who_was_away_for_long_begins_anew(index: Index, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    bury(raw, 3)
    await full(index)
    monkeypatch.setattr(letters, "FAR_BEHIND", 10)
    buried = bury(raw, 4 * STEP)
    await index.look()
    assert places(index) == []
    await full(index)
    assert places(index)[: 4 * STEP] == buried[::-1] and index.all.count == 4 * STEP + 3


async def test_nothing_is_read_while_nobody_looks(index: Index, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "LOOKED_S", -1.0)
    bury(raw, STEP)
    await index.look()
    assert index._walk is not None
    await asyncio.wait_for(index._walk, 10)
    assert places(index) == []


async def test_viewers_share_one_look(index: Index, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    bury(raw, 3)
    await full(index)
    monkeypatch.setattr(letters, "FRESH_S", 60.0)
    await index.look()
    before = raw.info("commandstats")["cmdstat_xlen"]["calls"]
    for _ in range(20):
        await index.look()
    assert raw.info("commandstats")["cmdstat_xlen"]["calls"] == before


def head(at: int, **more: Any) -> Head:
    given = {"type": "t", "reason": "attempts", "error": "KeyError: 'a'", "app": "", "trace": "", "at_ms": NOW} | more
    fixed: dict[str, Any] = {"id": "j", "has_stack": True, "frame": "", "by": "", "attempts": 1, "stood": "low/7-1", "size": 9}
    fixed |= {
        "key": "",
        "exp_ms": None,
        "version": 1,
        "is_msgpack": False,
        "operation": "",
        "args": b"",
        "args_bytes": 0,
        "stays": "",
    }
    return Head(place=f"{at}-0", **fixed, **given)


def test_a_group_tells_its_hours_versions_and_trace(index: Index) -> None:
    for at, ago_ms in enumerate((26 * HOUR, 2 * HOUR, 50 * 60_000, 10 * 60_000)):
        index._add(head(at + 1, at_ms=NOW - ago_ms, app=f"v{at % 2}", trace=f"t{at}"), is_newest=True)
    index._add(head(9, at_ms=NOW + HOUR), is_newest=True)  # a clock that was set back
    [group] = index.groups(NOW)
    assert group.hours == [*[0] * 21, 1, 0, 3] and group.last_hour == 3
    assert (group.first_ms, group.last_ms, group.apps, group.trace) == (NOW - 26 * HOUR, NOW + HOUR, ["v0", "v1"], "t3")
    assert index.groups(NOW) is index.groups(NOW) and index.groups(NOW + BUCKET_MS)[0].last_hour <= 3


@pytest.mark.parametrize(("before", "now", "grows"), [(0, 5, True), (0, 4, False), (6, 6, False), (6, 7, True), (60, 9, False)])
def test_a_group_grows_where_more_died_than_in_the_hour_before(index: Index, before: int, now: int, grows: bool) -> None:
    for at in range(before + now):
        index._add(head(at + 1, at_ms=NOW - (90 * 60_000 if at < before else 0)), is_newest=True)
    assert [group.grows for group in index.groups(NOW)] == [grows]


def test_there_are_not_more_groups_than_people_read(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "MAX_GROUPS", 3)
    for at in range(10):
        index._add(head(at + 1, type=f"t{at}"), is_newest=True)
    groups = index.groups(NOW)
    assert sorted(group.count for group in groups) == [1, 1, 1, 7]
    assert [(group.type, group.error) for group in groups if group.count == 7] == [("", "all else")]
    index.forget([f"{at + 1}-0" for at in range(10)])
    assert index.groups(NOW) == []


async def test_the_first_page_has_groups_read_in_the_background(index: Index, raw: redis.Redis) -> None:
    bury(raw, 6, dead_at=str(time.time_ns() // 1_000_000))
    end_s = time.monotonic() + PATIENCE_S
    while index.told().groups == 0:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.01)
    [group] = index.newest(5, has_messages=True)
    assert (index.told().growing, index.told().first, index.is_grouped) == (1, group.fp, True)
    assert group.message == "'…'"
    assert [(group.message, group.frame) for group in index.newest(5, has_messages=False)] == [(None, "")]


async def test_each_type_has_its_letters_counted(index: Index, raw: redis.Redis) -> None:
    bury(raw, 3)
    [gone, _] = bury(raw, 2, type="mail")
    assert index.by_type() is None
    await full(index)
    assert index.by_type() == {"t": 3, "mail": 2}
    raw.xdel(DEAD, gone)
    index.forget([gone])
    bury(raw, 1, type="mail")
    await full(index)
    assert index.by_type() == {"t": 3, "mail": 2}
