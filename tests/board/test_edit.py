"""Payloads that people write: what is wrong with them and at which line, what differs, and what is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from board.api import Refused
from board.contracts import Contracts
from board.edit import EditPage, compare
from board.redact import HIDDEN
from board.shapes import SendAsk, ValidateAsk
from board.viewer import Viewer
from runtime.store.letters import LetterStore
from tests.servers import Server

DEAD, TRASH, LOW = "{jobs}:dead", "{jobs}:trash", "{jobs}:low"
SENDS = Viewer("ada", frozenset({"view", "payload", "send"}))
ALL = Viewer("ada", frozenset({"view", "payload", "send", "operate"}))
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "token": {"type": "string", "writeOnly": True}, "to": {"type": "string"}},
    "required": ["n"],
}


async def told() -> dict[str, str]:
    """Return what a worker has written of the type `t`."""
    return {"t@1": msgspec.json.encode({"schema": SCHEMA, "priority": "high"}).decode()}


@pytest.fixture
async def page(valkey: Server) -> AsyncIterator[EditPage]:
    store = LetterStore(valkey.url, "jobs")
    yield EditPage(valkey.url, "jobs", store, Contracts(told))
    await store.close()


DATA = '{"n":9007199254740993,"token":"s3cret","to":"ada"}'
SHOWN = f'{{\n  "n": 9007199254740993,\n  "token": "{HIDDEN}",\n  "to": "ada"\n}}'


def bury(raw: redis.Redis, data: str | bytes = DATA, **more: Any) -> str:
    notes = {"dead_reason": "attempts", "dead_error": "KeyError: 'a'", "dead_from": "low/7-1", "dead_at": "7000"}
    return f"dead/{raw.xadd(DEAD, {'type': 't', 'data': data, 'id': 'j1', **notes, **more})}"


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ('{"n": 1}', []),
        ('{\n  "n": "x"\n}', [("n", 2)]),
        ('{\n\n  "to": 5\n}', [("", 1), ("to", 3)]),
        ('{\n  "n": 1, x\n}', [("", 2)]),
        (f'{{"n": 1,\n"token": "{HIDDEN}"}}', [("", 2)]),
        ("", [("", 1)]),
    ],
)
async def test_problems_are_told_by_path_and_line(page: EditPage, text: str, problems: list[tuple[str, int]]) -> None:
    found = await page.validate(ValidateAsk(type="t", text=text), SENDS)
    assert sorted((one.path, one.line) for one in found.problems) == sorted(problems)
    assert found.is_checked and found.checked_by == "its contract, version 1" and found.diff == []


async def test_a_type_without_a_contract_is_checked_to_be_json_alone(page: EditPage) -> None:
    found = await page.validate(ValidateAsk(type="u", text='{"n": "x"}'), SENDS)
    assert (found.is_checked, found.checked_by, found.problems) == (False, "", [])
    assert len((await page.validate(ValidateAsk(type="u", text="{"), SENDS)).problems) == 1


async def test_what_differs_is_told_without_what_is_hidden(page: EditPage, raw: redis.Redis) -> None:
    place = bury(raw)
    same = await page.validate(ValidateAsk(type="t", text=SHOWN, place=place), SENDS)
    assert same.problems == [] and {line.mark for line in same.diff} <= {" "}
    changed = await page.validate(ValidateAsk(type="t", text=SHOWN.replace("ada", "eve"), place=place), SENDS)
    assert [line.mark + line.text for line in changed.diff if line.mark != " "] == ['-  "to": "ada"', '+  "to": "eve"']
    [problem] = changed.problems  # a secret goes nowhere else
    assert problem.line == 3 and "s3cret" not in repr(changed)


async def test_an_edit_is_sent_as_a_job_of_its_own(page: EditPage, raw: redis.Redis) -> None:
    place = bury(raw, key="k", v="1")
    text = '{"n": 9007199254740993, "token": "new", "to": "eve"}'
    sent = await page.send(SendAsk(type="t", text=text, place=place, reason="typo"), SENDS)
    [(entry, fields)] = raw.xrange(LOW)
    assert (fields["data"], fields["x-replayed-from"], fields["key"], fields["type"]) == (text, place, "k", "t")
    assert sent.is_new and sent.id == f"low-{entry}" and sent.place == f"low/{entry}" and raw.xlen(DEAD) == 1
    told = [(one["by"], one["reason"], one["what"]) for _, one in raw.xrange("{jobs}:audit")]
    assert told == [
        ("ada@board", "typo", f"send t, made of {place}"),
        ("ada@board", "typo", f"sent: t as {sent.id}, made of {place}"),
    ]
    again = await page.send(SendAsk(type="t", text=text, place=place), SENDS)
    assert not again.is_new and again.id == sent.id and raw.xlen(LOW) == 1  # its key is owned


async def test_a_placeholder_left_alone_keeps_what_it_was(page: EditPage, raw: redis.Redis) -> None:
    place = bury(raw)
    await page.send(SendAsk(type="t", text=SHOWN, place=place), SENDS)
    assert [fields["data"] for _, fields in raw.xrange(LOW)] == [DATA]
    with pytest.raises(Refused) as refused:
        await page.send(SendAsk(type="t", text=SHOWN.replace("ada", "eve"), place=place), SENDS)
    assert refused.value.code == "unfit" and "s3cret" not in refused.value.text and raw.xlen(LOW) == 1


async def test_the_letter_goes_to_the_trash_with_the_send(page: EditPage, raw: redis.Redis) -> None:
    place = bury(raw)
    ask = SendAsk(type="t", text='{"n": 1}', place=place, has_trash=True)
    with pytest.raises(Refused, match="operate"):
        await page.send(ask, SENDS)
    assert raw.xlen(LOW) == 0
    await page.send(ask, ALL)
    [(entry, _)], [(trashed, _)] = raw.xrange(LOW), raw.xrange(TRASH)
    assert raw.xlen(DEAD) == 0
    [(_, told)] = raw.xrange("{jobs}:audit")  # one step, and one entry of it
    assert told["what"] == f"sent: t as low-{entry}, made of {place}\ntrash j1 ({place}): moved {trashed}"
    with pytest.raises(Refused, match="gone"):
        await page.send(ask, ALL)


async def test_where_a_live_job_owns_its_key_the_letter_stays(page: EditPage, raw: redis.Redis) -> None:
    place = bury(raw, key="k")
    ask = SendAsk(type="t", text='{"n": 1}', place=place)
    first = await page.send(ask, ALL)
    again = await page.send(msgspec.structs.replace(ask, has_trash=True), ALL)
    assert (again.is_new, again.id, raw.xlen(LOW), raw.xlen(DEAD), raw.exists(TRASH)) == (False, first.id, 1, 1, 0)
    raw.delete(LOW)  # it is done
    freed = await page.send(msgspec.structs.replace(ask, has_trash=True), ALL)
    assert (freed.is_new, raw.xlen(LOW), raw.xlen(DEAD), raw.get("{jobs}:seen:k:k")) == (True, 1, 0, f"low {freed.place[4:]}")


async def test_one_is_sent_without_a_letter(page: EditPage, raw: redis.Redis) -> None:
    await page.send(SendAsk(type="t", text='{"n": 1}'), SENDS)
    await page.send(SendAsk(type="t", text='{"n": 2}', pri="critical"), SENDS)
    assert (raw.xlen("{jobs}:high"), raw.xlen("{jobs}:critical")) == (1, 1)


@pytest.mark.parametrize(
    ("ask", "code"),
    [
        (SendAsk(type="t", text='{"n": "x"}'), "unfit"),
        (SendAsk(type="u", text="{}"), "unchecked"),
        (SendAsk(type="u", text="{", is_unchecked=True), "unfit"),
        (SendAsk(type="t", text="{}", place="dead/9-9"), "gone"),
        (SendAsk(type="t", text="{}", place="low/9-9"), "asked"),
        (SendAsk(type="t", text='{"n": 1}', has_trash=True), "right"),
    ],
)
async def test_what_is_not_sent(page: EditPage, raw: redis.Redis, ask: SendAsk, code: str) -> None:
    with pytest.raises(Refused) as refused:
        await page.send(ask, ALL)
    assert refused.value.code == code and not list(raw.scan_iter())


async def test_a_type_that_nobody_knows_is_sent_where_that_is_meant(page: EditPage, raw: redis.Redis) -> None:
    sent = await page.send(SendAsk(type="u", text="{}", is_unchecked=True), SENDS)
    assert sent.place.startswith("medium/") and raw.xlen("{jobs}:medium") == 1


async def test_messagepack_is_edited_as_json(page: EditPage, raw: redis.Redis) -> None:
    place = bury(raw, msgspec.msgpack.encode({"n": 1, "to": "ada"}), ct="application/msgpack")
    found = await page.validate(ValidateAsk(type="t", text='{"n": 2, "to": "ada"}', place=place), SENDS)
    assert found.problems == [] and any('"n": 1' in line.text for line in found.diff)
    bad = bury(raw, b"\xc1\xff", ct="application/msgpack")
    with pytest.raises(Refused, match="cannot be shown"):
        await page.validate(ValidateAsk(type="t", text="{}", place=bad), SENDS)


lines = st.lists(st.sampled_from(["a", "b", "{", ""]), max_size=12).map("\n".join)


@given(lines, lines)
def test_a_comparison_has_all_that_was_and_is(before: str, after: str) -> None:
    told = compare(before, after)
    shown = [line.text for line in told]
    assert all(text in shown or text in before.splitlines() for text in after.splitlines())
    if before.splitlines() == after.splitlines():
        assert told == []


def test_a_long_comparison_is_bounded() -> None:
    told = compare("\n".join(f"a{n}" for n in range(20_000)), "\n".join(f"b{n}" for n in range(20_000)))
    assert len(told) == 1000
