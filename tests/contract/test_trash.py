"""The trash of dead letters, and operations over letters and jobs that were chosen one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest
import redis

from runtime.control import Control
from runtime.errors import ConfigError, QueueFull
from runtime.operations import MAX_CHOSEN
from runtime.store.control import ChangedMeanwhile
from tests.contract.test_operations import AT_ONCE, DEAD, bury, due_now, finish, hash_of, told
from tests.servers import Server

TRASH = "{jobs}:trash"
WEEK_MS = 7 * 24 * 3600 * 1000


@pytest.fixture
async def control(server: Server) -> AsyncIterator[Control]:
    async with Control(server.url, by="ann@host") as opened:
        yield opened


def letters_of(raw: redis.Redis, key: str = DEAD) -> dict[str, dict[str, str]]:
    return dict(raw.xrange(key))


def places(ids: list[str], where: str = "dead") -> list[str]:
    return [f"{where}/{entry}" for entry in ids]


# --- the trash --------------------------------------------------------------------------------------------------------------


async def test_a_letter_goes_to_the_trash_and_comes_back_as_it_was(control, raw):
    first, second = bury(raw, 2, key="k", own="x")
    before = letters_of(raw)[first]
    [answer] = await control.trash(f"dead/{first}", reason="a mistake")
    assert answer.startswith("moved trash/")
    assert list(letters_of(raw)) == [second]
    [(entry, fields)] = raw.xrange(TRASH)
    assert answer == f"moved trash/{entry}"
    assert fields == before | {"dead_trashed_by": "ann@host"}
    [back] = await control.restore(f"trash/{entry}")
    assert (raw.xlen(TRASH), letters_of(raw)[back.removeprefix("moved dead/")]) == (0, before)
    assert [one.what.split()[0] for one in await control.audit()] == ["restore", "trash"]


async def test_what_is_gone_is_told_and_the_others_are_moved(control, raw):
    ids = bury(raw, 3)
    raw.xdel(DEAD, ids[1])
    answers = await control.trash(*places(ids))
    assert [answer.split()[0] for answer in answers] == ["moved", "gone", "moved"]
    assert await control.trash(*places(ids)) == ["gone"] * 3, "repeated, it does no more"
    assert raw.xlen(TRASH) == 2


async def test_many_and_large_letters_are_moved_in_parts(control, raw):
    ids = bury(raw, 250) + bury(raw, 8, data="x" * 200_000)
    assert {answer.split()[0] for answer in await control.trash(*places(ids))} == {"moved"}
    assert (raw.xlen(TRASH), raw.xlen(DEAD)) == (258, 0)


async def test_the_trash_keeps_a_letter_for_a_week(control, raw):
    [letter, other] = bury(raw, 2)
    await control.trash(f"dead/{letter}")
    assert 0 < raw.pttl(TRASH) <= WEEK_MS
    [(entry, _)] = raw.xrange(TRASH)
    now_ms = int(entry.partition("-")[0])
    raw.delete(TRASH)
    old = [raw.xadd(TRASH, {"type": "t"}, id=f"{now_ms - WEEK_MS - 1000 + at}-0") for at in range(500)]
    young = raw.xadd(TRASH, {"type": "t"}, id=f"{now_ms - WEEK_MS + 60_000}-0")
    await control.trash(f"dead/{other}")
    left = [place for place, _ in raw.xrange(TRASH)]
    assert young in left and len(left) <= 102, "whole nodes of the stream go, which have a hundred entries"
    assert old[0] not in left


async def test_a_strange_key_in_its_place_moves_nothing(control, raw):
    [letter] = bury(raw, 1)
    raw.set(TRASH, "x")
    with pytest.raises(Exception, match="trash must be a stream"):
        await control.trash(f"dead/{letter}")
    assert raw.xlen(DEAD) == 1


@pytest.mark.parametrize("place", ["1-1", "trash/1-1", "dead/x", "dead/", "high/1-1", 7])
async def test_what_is_no_place_of_a_letter_is_refused(control, place):
    with pytest.raises(ConfigError, match="must be the place of a letter"):
        await control.trash(place)


# --- a job in the place of its letter ----------------------------------------------------------------------------------------


async def test_a_job_takes_the_place_of_its_letter_in_one_step(control, raw):
    [letter] = bury(raw, 1)
    sent = await control.send_text("t", b'{"n":2}', priority="low", replayed_from=f"dead/{letter}", trash=True, reason="typo")
    [(entry, fields)], [(trashed, _)] = raw.xrange("{jobs}:low"), raw.xrange(TRASH)
    assert (sent.id, sent.new, raw.xlen(DEAD)) == (f"low-{entry}", True, 0)
    assert (fields["data"], fields["x-replayed-from"]) == ('{"n":2}', f"dead/{letter}")
    [told] = await control.audit()
    assert told.what.splitlines() == [
        f"sent: t as low-{entry}, made of dead/{letter}",
        f"trash j0 (dead/{letter}): moved {trashed}",
    ]


async def test_a_letter_that_is_gone_has_no_job_in_its_place(control, raw):
    [letter] = bury(raw, 1)
    await control.trash(f"dead/{letter}")
    with pytest.raises(ChangedMeanwhile, match="gone"):
        await control.send_text("t", b"{}", replayed_from=f"dead/{letter}", trash=True)
    with pytest.raises(ConfigError, match="place of a letter"):
        await control.send_text("t", b"{}", trash=True)
    assert not raw.exists("{jobs}:medium") and raw.xlen(TRASH) == 1


async def test_a_full_memory_leaves_the_letter_and_sends_nothing(control, raw):
    [letter] = bury(raw, 1)
    await control.send_text("t", b"{}", priority="low")  # the server knows the scripts
    raw.config_set("maxmemory", 1)
    with pytest.raises(QueueFull):
        await control.send_text("t", b"{}", replayed_from=f"dead/{letter}", trash=True)
    raw.config_set("maxmemory", 0)
    assert (raw.xlen(DEAD), raw.exists("{jobs}:medium"), raw.exists(TRASH)) == (1, 0, 0)


# --- operations over what was chosen --------------------------------------------------------------------------------------------


async def test_only_what_was_chosen_is_sent_back(control, raw):
    ids = bury(raw, 40)
    chosen = ids[3:30:2]
    made = await control.operate_on("replay", places(chosen), id="one", reason="mended", **AT_ONCE)
    assert (made.total, made.sources, made.what) == (14, ("chosen",), "replay of 14 that were chosen")
    bury(raw, 5, first=100)
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.state, found.done, found.looked, found.left) == ("done", 14, 14, 0)
    assert Counter(fields["id"] for _, fields in raw.xrange("{jobs}:low")) == Counter(f"j{at}" for at in range(3, 30, 2))
    assert raw.xlen(DEAD) == 31
    assert raw.keys(hash_of("one") + ":*") == [], "its list goes with its end"


async def test_what_went_meanwhile_is_counted_as_gone(control, raw):
    ids = bury(raw, 10)
    await control.operate_on("trash", places(ids), id="one", **AT_ONCE)
    raw.xdel(DEAD, *ids[2:5])
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.done, found.refused) == (7, {"gone": 3})
    assert {fields["dead_trashed_by"] for _, fields in raw.xrange(TRASH)} == {"ann@host"}


async def test_jobs_that_wait_are_cancelled_where_they_were_chosen(control, raw):
    high = [raw.xadd("{jobs}:high", {"type": "t", "data": "{}"}) for _ in range(3)]
    raw.xgroup_create("{jobs}:high", "workers", "0")
    chosen = [f"high/{high[0]}", f"high/{high[2]}", "due/not-there"]
    await control.operate_on("cancel", chosen, id="one", **AT_ONCE)
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.done, found.refused) == (2, {"gone": 1})
    assert [entry for entry, _ in raw.xrange("{jobs}:high")] == [high[1]]


async def test_a_repeat_makes_no_second_and_another_list_is_refused(control, raw):
    ids = bury(raw, 4)
    await control.operate_on("trash", places(ids[:2]), id="one")
    again = await control.operate_on("trash", places(ids[:2]), id="one")
    assert again.state == "held" and len(await control.operations()) == 1
    with pytest.raises(ConfigError, match="about something else"):
        await control.operate_on("trash", places(ids), id="one")
    due_now(raw, "one")
    await finish(control, "one")
    assert raw.xlen(TRASH) == 2


async def test_a_list_that_is_lost_stops_it_with_the_reason(control, raw):
    ids = bury(raw, 60)
    await control.operate_on("trash", places(ids), id="one", **AT_ONCE)
    await control.step_operation("one")
    raw.delete(*raw.keys(hash_of("one") + ":*"))
    await finish(control, "one")
    found = await told(control, "one")
    assert (found.state, found.done) == ("stopped", 20)
    assert "list of what was chosen is gone" in found.error


async def test_a_list_that_is_not_whole_makes_no_operation(control, raw, monkeypatch):
    ids = bury(raw, 3)
    choose = control._operation_store.choose

    async def half(name, token, chosen):
        await choose(name, token, chosen[:2])

    monkeypatch.setattr(control._operation_store, "choose", half)
    with pytest.raises(ConfigError, match="not whole"):
        await control.operate_on("trash", places(ids), id="one")
    assert await control.operations() == []


async def test_the_list_of_one_that_is_dropped_goes_with_it(control, raw):
    ids = bury(raw, 3)
    await control.operate_on("purge", places(ids), id="one")
    assert 0 < raw.pttl(raw.keys(hash_of("one") + ":*")[0]) <= WEEK_MS
    await control.drop_operation("one")
    assert raw.keys("{jobs}:operation*") == []
    assert raw.xlen(DEAD) == 3


async def test_the_brake_looks_at_what_died_again(control, raw):
    ids = bury(raw, 50)
    await control.operate_on("replay", places(ids), id="one", **AT_ONCE)
    step = await control.step_operation("one")
    assert step.acted == 5, "a few first"
    bury(raw, 5, first=200, **{"x-op": "one"})
    due_now(raw, "one")
    await control.step_operation("one")
    assert ((await told(control, "one")).state, raw.xlen("{jobs}:low")) == ("braked", 5)


@pytest.mark.parametrize(
    ("verb", "chosen", "why"),
    [
        ("replay", [], "between 1 and"),
        ("replay", ["high/1-1"], "place of a letter"),
        ("cancel", ["dead/1-1"], "place of a job"),
        ("cancel", ["nowhere/1-1"], "place of a job"),
        ("replay", [f"dead/{at}-1" for at in range(MAX_CHOSEN + 1)], "between 1 and"),
        ("nonsense", ["high/1-1"], "no operation"),
    ],
)
async def test_what_cannot_be_chosen_is_refused(control, verb, chosen, why):
    with pytest.raises(ConfigError, match=why):
        await control.operate_on(verb, chosen)
