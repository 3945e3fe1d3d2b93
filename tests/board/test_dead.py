"""Dead letters as the API tells of them: who may see what, pages that move, the trash."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from board import letters
from board.api import Refused
from board.contracts import Contracts
from board.dead import DeadPage, trace_id
from board.letters import Index
from board.shapes import LettersAsk, Nothing, PlaceAsk
from board.viewer import Viewer
from runtime.store.letters import LetterStore
from runtime.tries import Try, pack_tries
from tests.servers import Server

DEAD, TRASH = "{jobs}:dead", "{jobs}:trash"
STACK = '  File "/srv/app/shop/crm.py", line 214, in fetch\n    x\n'
VIEW = Viewer("vi", frozenset({"view"}))
SEES = Viewer("pa", frozenset({"view", "payload"}))
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def told() -> dict[str, str]:
    """Return what a worker has written of the type `t`."""
    return {"t@1": '{"schema":{"properties":{"hidden":{"writeOnly": true}}}}'}


@pytest.fixture
async def page(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[DeadPage]:
    monkeypatch.setattr(letters, "FRESH_S", 0.0)
    monkeypatch.setattr(letters, "REST_S", 0.0)
    store = LetterStore(valkey.url, "jobs")
    index = Index(store, step_wait_s=0.0)
    yield DeadPage(store, index, Contracts(told))
    await index.close()
    await store.close()


def bury(raw: redis.Redis, entry: str = "*", shelf: str = DEAD, **more: Any) -> str:
    notes = {"dead_reason": "attempts", "dead_error": "KeyError: ada@example.com, password=hunter2", "dead_from": "low/7-1"}
    notes |= {"dead_at": "1764154201337", "dead_attempts": "3", "dead_stack": STACK, "dead_by": "w-1", "dead_app": "v7"}
    data = '{"name":"Ada","token":"s3cret","hidden":"h1dden","n":9007199254740993}'
    return str(raw.xadd(shelf, {"type": "t", "data": data, "id": "j1", **notes, **more}, id=entry))


async def whole(page: DeadPage) -> None:
    await page.groups(Nothing(), VIEW)
    while not page._index.is_right:
        await page.groups(Nothing(), VIEW)


async def test_groups_say_no_message_to_who_may_see_none(page: DeadPage, raw: redis.Redis) -> None:
    bury(raw, dead_trace=TRACE)
    bury(raw, shelf=TRASH)
    await whole(page)
    told = await page.groups(Nothing(), VIEW)
    assert (told.letters, told.grouped, told.trash) == (1, 1, 1)
    assert (told.groups[0].error, told.groups[0].message, told.groups[0].frame) == ("KeyError", None, "")
    [group] = (await page.groups(Nothing(), SEES)).groups
    assert group.message is not None and group.message.startswith("…, password=") and "hunter2" not in group.message
    assert group.frame == "shop/crm.py:214 fetch" and group.apps == ["v7"]


async def test_a_list_shows_arguments_and_messages_to_who_may_see_them(page: DeadPage, raw: redis.Redis) -> None:
    place = bury(raw)
    await whole(page)
    [row] = (await page.letters(LettersAsk(), VIEW)).rows
    assert (row.place, row.id, row.args, row.error, row.pri, row.attempts) == (f"dead/{place}", "j1", None, "KeyError", "low", 3)
    [row] = (await page.letters(LettersAsk(), SEES)).rows
    assert row.args is not None and "9007199254740993" in row.args and "Ada" in row.args
    assert "hunter2" not in row.error and "s3cret" not in row.args and "h1dden" not in row.args


async def test_a_list_goes_on_behind_its_cursor_though_letters_go(
    page: DeadPage, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    buried = [bury(raw, f"{at + 1}-0", id=f"j{at}") for at in range(10)]
    bury(raw, "11-0", type="other")
    await whole(page)
    [fp] = {group.fp for group in (await page.groups(Nothing(), VIEW)).groups if group.type == "t"}
    first = await page.letters(LettersAsk(group=fp, limit=4), VIEW)
    assert [row.id for row in first.rows] == ["j9", "j8", "j7", "j6"] and first.of == 10
    monkeypatch.setattr(letters, "REST_S", 1e9)  # all that is noticed is what is shown
    raw.xdel(DEAD, buried[5], buried[6], buried[9])
    then = await page.letters(LettersAsk(group=fp, limit=4, cursor=first.cursor or ""), VIEW)
    assert [row.id for row in then.rows] == ["j4", "j3", "j2", "j1"]
    last = await page.letters(LettersAsk(group=fp, limit=4, cursor=then.cursor or ""), VIEW)
    assert [row.id for row in last.rows] == ["j0"] and last.cursor is None
    assert (await page.letters(LettersAsk(group="none"), VIEW)).rows == []


@pytest.mark.parametrize("cursor", ["x", "1-", "1-1-1", "-1-0", "9" * 30 + "-0"])
async def test_a_cursor_of_nobody_is_refused(page: DeadPage, cursor: str) -> None:
    with pytest.raises(Refused, match="cursor"):
        await page.letters(LettersAsk(cursor=cursor), VIEW)


async def test_the_trash_is_a_list_of_its_own(page: DeadPage, raw: redis.Redis) -> None:
    for at in range(120):
        bury(raw, f"{at + 1}-0", TRASH, id=f"j{at}")
    first = await page.letters(LettersAsk(trash=True, limit=100), SEES)
    then = await page.letters(LettersAsk(trash=True, limit=100, cursor=first.cursor or ""), SEES)
    assert [row.id for row in (*first.rows, *then.rows)] == [f"j{at}" for at in reversed(range(120))]
    assert first.of == 120 and then.cursor is None and first.rows[0].place == "trash/120-0"


async def test_one_letter_with_its_stack_facts_and_life(page: DeadPage, raw: redis.Redis) -> None:
    tries = pack_tries(
        [Try(1, 1000, 50, "w-0", "v6", "KeyError: ada", "shop/crm.py:1 f"), Try(0, 5000), Try(1, 6000, 10, error="Bad: x")]
    )
    more = {"key": "receipt:1", "src": "billing", "x-order": "4711", "e": tries, "dead_trace": TRACE}
    place = bury(raw, **more)
    found = await page.letter(PlaceAsk(place=f"dead/{place}"), SEES)
    assert found.message is not None and found.message.startswith("ada@example.com") and "hunter2" not in found.message
    assert [(frame.function, frame.is_own) for frame in found.frames or ()] == [("fetch", True)] and found.stack == STACK
    facts = {fact.name: fact.text for fact in found.facts}
    assert facts["came from"] == "low, entry 7-1" and facts["sent by"] == "billing" and facts["died on"] == "w-1"
    assert facts["key"] == "receipt:1, free" and facts["x-order"] == "4711"
    assert found.trace == "4bf92f3577b34da6a3ce929d0e0e4736" and not found.is_in_trash and found.deleted_ms is None
    told = [(step.kind, step.attempt, step.from_ms, step.to_ms, step.error, step.message) for step in found.steps]
    attempts = [step for step in told if step[0] == "attempt"]
    assert attempts == [("attempt", 1, 1000, 1050, "KeyError", "ada"), ("attempt", 1, 6000, 6010, "Bad", "x")]
    assert told[0][:4] == ("waited", None, 7, 1000)


async def test_one_letter_shows_no_value_to_who_may_see_none(page: DeadPage, raw: redis.Redis) -> None:
    tries = pack_tries([Try(1, 1000, 50, "w-0", "v6", "KeyError: hidden-value", "hidden-value"), Try(2, 3000, 5)])
    place = bury(
        raw,
        key="hidden-value",
        dead_stack="hidden-value",
        dead_error="KeyError: hidden-value",
        e=tries,
        **{"x-a": "hidden-value"},
    )
    found = await page.letter(PlaceAsk(place=f"dead/{place}"), VIEW)
    assert (found.message, found.frames, found.stack, found.row.args) == (None, None, None, None)
    assert "hidden-value" not in repr(found) and found.row.error == "KeyError"
    assert [step.kind for step in found.steps] == ["waited", "attempt", "backoff", "attempt"]


async def test_a_letter_in_the_trash_says_when_it_is_deleted(page: DeadPage, raw: redis.Redis) -> None:
    place = bury(raw, "1764154201337-5", TRASH)
    found = await page.letter(PlaceAsk(place=f"trash/{place}"), SEES)
    assert found.is_in_trash and found.deleted_ms == 1764154201337 + 7 * 24 * 3_600_000


@pytest.mark.parametrize(("place", "status"), [("dead/1-1", 404), ("trash/1-1", 404), ("low/1-1", 400), ("dead/x", 400)])
async def test_what_is_no_letter_is_refused(page: DeadPage, place: str, status: int) -> None:
    with pytest.raises(Refused) as refused:
        await page.letter(PlaceAsk(place=place), SEES)
    assert refused.value.status == status


async def test_what_a_stranger_wrote_spoils_its_row_alone(page: DeadPage, raw: redis.Redis) -> None:
    strange = str(
        raw.xadd(DEAD, {b"\xff": b"\xfe", "type": b"\xff\x00\xe2\x80\xae", "data": b"\x00\xff" * 500, "e": "x\ty\n0", "v": "-1"})
    )
    bury(raw)
    await whole(page)
    assert (await page.letters(LettersAsk(), SEES)).rows[0].type == "t"
    found = await page.letter(PlaceAsk(place=f"dead/{strange}"), SEES)
    assert found.steps == [] and "\u202e" not in repr(found.facts)


@pytest.mark.parametrize(
    ("text", "found"),
    [(TRACE, "4bf92f3577b34da6a3ce929d0e0e4736"), ("", None), ("00-4B-1-1", None), ("00-" + "g" * 32 + "-1-1", None)],
)
def test_a_trace_is_32_hex_digits(text: str, found: str | None) -> None:
    assert trace_id(text) == found


async def test_letters_are_searched_for_among_all_that_are_known(page: DeadPage, raw: redis.Redis) -> None:
    bury(raw, "1-0", id="crm-1", type="sync-crm")
    bury(raw, "2-0", id="crm-2", type="sync-crm", dead_error="Timeout: after 30 s")
    bury(raw, "3-0", id="mail-3", dead_reason="bad-payload")
    await whole(page)

    async def found(q: str, viewer: Viewer = SEES) -> list[str]:
        return [row.id for row in (await page.letters(LettersAsk(q=q), viewer)).rows]

    assert await found("type:sync-crm", VIEW) == ["crm-2", "crm-1"] and await found("id:mail*", VIEW) == ["mail-3"]
    assert await found("error:timeout") == ["crm-2"] and await found("bad-payload") == ["mail-3"]
    assert await found("-type:sync-crm") == ["mail-3"] and await found("nothing") == []
    for q, viewer, status in (("error:x", VIEW, 403), ("word", VIEW, 403), ("args:a=1", SEES, 400), ("age>x", SEES, 400)):
        with pytest.raises(Refused) as refused:
            await found(q, viewer)
        assert refused.value.status == status
