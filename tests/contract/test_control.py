"""What people change: dead letters are deleted or sent back once. Closed streams: test_closed.py."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis

from runtime.errors import StoreError
from runtime.store.control import ControlStore
from tests.servers import Server

DEAD = "{jobs}:dead"


@pytest.fixture
async def control(server: Server) -> AsyncIterator[ControlStore]:
    opened = ControlStore(server.url, "jobs")
    yield opened
    await opened.close()


def bury(raw: redis.Redis, n: int) -> list[str]:
    notes = {"dead_reason": "attempts", "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3"}
    return [str(raw.xadd(DEAD, {"type": "t", "data": "{}", "id": f"j{at}", **notes})) for at in range(n)]


async def test_letters_are_deleted_by_their_places_and_those_that_were_there_are_counted(control, raw):
    places = bury(raw, 4)
    assert await control.purge(places[:2]) == 2
    assert await control.purge(places[:3]) == 1
    assert [place for place, _ in raw.xrange(DEAD)] == places[3:]


async def test_nothing_is_deleted_where_no_letter_is_named(control, raw):
    bury(raw, 1)
    assert await control.purge([]) == 0
    assert raw.xlen(DEAD) == 1


async def test_a_letter_goes_back_to_its_stream_once(control, raw):
    [place] = bury(raw, 1)
    entry = await control.replay(place)
    [(found, fields)] = raw.xrange("{jobs}:low")
    assert (found, fields["id"], fields["type"]) == (entry, "j0", "t")
    assert not any(name.startswith("dead_") for name in fields)
    assert await control.replay(place) == "gone"
    assert raw.xlen("{jobs}:low") == 1


async def test_a_key_of_another_type_is_an_error_and_no_number(control, raw):
    raw.set(DEAD, "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await control.purge(["1-1"])
