"""The sender, on a store that answers when it is told to: what goes together, what is given up, and what is not sent any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from runtime.errors import ConfigError, PartlySent, StoreError, StoreUnavailable
from runtime.jobs import Head, Packed
from runtime.sender import Flow, Sender, Sent
from runtime.store.sends import SendStore

HEAD = Head(0, 0, "", (b"type", "greet"))
FIRST_IDS = [b"7-0", b"", b"", b""]
WRONGTYPE = b"WRONGTYPE Operation against a key"


def messages(count: int) -> list[Packed]:
    return [Packed(HEAD, b"%d" % at) for at in range(count)]


class SlowStore:
    """Answers a call only when the test says how; `calls` has the mark and the packed arguments of each."""

    url = "unix://nowhere"
    durability = "local"

    def __init__(self) -> None:
        self.calls: list[tuple[str, bytes]] = []
        self._answers: asyncio.Queue[list[Any] | Exception] = asyncio.Queue()

    def answer(self, *refused: Any) -> None:
        self._answers.put_nowait([*FIRST_IDS, [], list(refused)])

    def fail(self, error: Exception) -> None:
        self._answers.put_nowait(error)

    async def ready(self) -> None:
        pass

    async def store(self, mark: str, mark_ms: int, tail: Any) -> list[Any]:
        self.calls.append((mark, tail.packed))
        answer = await self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def confirm(self, wait_s: float) -> str:
        return ""

    async def close(self) -> None:
        pass

    async def called(self, times: int) -> None:
        while len(self.calls) < times:
            await asyncio.sleep(0)


@pytest.fixture
async def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
async def sender(store: SlowStore) -> AsyncIterator[Sender]:
    opened = Sender(cast("SendStore", store), patience_s=60)
    yield opened
    await opened.close()


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_sent_while_a_chunk_is_under_way_goes_together_with_the_next(store: SlowStore, sender: Sender) -> None:
    first = asyncio.create_task(sender.send(messages(1)))
    await store.called(1)
    others = [asyncio.create_task(sender.send(messages(2))) for _ in range(3)]
    await turns()
    store.answer()
    await store.called(2)
    store.answer()
    assert await first == [Sent("critical-7-0")]
    assert [sent.id for task in others for sent in await task] == [f"critical-7-{number}" for number in range(6)]
    assert len(store.calls) == 2


async def test_of_one_flow_nothing_behind_a_failed_chunk_is_sent(store: SlowStore, sender: Sender) -> None:
    flow = Flow()
    flow.send(messages(2), sender)
    await store.called(1)
    flow.send([Packed(HEAD, b"behind")], sender)
    alone = asyncio.create_task(sender.send(messages(1)))
    await turns()
    store.answer(1, WRONGTYPE)
    await store.called(2)
    with pytest.raises(PartlySent) as caught:
        await flow.arrived()
    assert caught.value.sent == [Sent("critical-7-0"), None]
    assert flow.has_failed
    store.answer()
    assert await alone == [Sent("critical-7-0")], "a send of its own is no part of the flow"
    assert b"behind" not in store.calls[1][1]
    await flow.close()


async def test_a_flow_takes_no_chunk_after_one_has_failed(store: SlowStore, sender: Sender) -> None:
    flow = Flow()
    flow.send(messages(2), sender)
    await store.called(1)
    store.answer(0, WRONGTYPE)
    await turns()
    flow.send(messages(2), sender)
    with pytest.raises(PartlySent):
        await flow.arrived()
    await flow.close()
    assert len(store.calls) == 1


async def test_a_flow_tells_how_many_are_stored(store: SlowStore, sender: Sender) -> None:
    told: list[int] = []
    flow = Flow(told.append)
    for chunk in (messages(3), messages(2)):
        flow.send(chunk, sender)
    assert repr(flow) == "<Flow 0 messages sent, 2 chunks under way>"
    store.answer()
    await flow.arrived(left=1)
    store.answer()
    await flow.arrived()
    assert told == [3, 5]
    assert len(store.calls) == 2, "chunks of one flow do not go together: one is told before the next is stored"


async def test_what_is_given_up_before_its_turn_is_not_sent(store: SlowStore, sender: Sender) -> None:
    first = asyncio.create_task(sender.send(messages(1)))
    await store.called(1)
    given_up, kept = (asyncio.create_task(sender.send([Packed(HEAD, data)])) for data in (b"gone", b"kept"))
    await turns()
    given_up.cancel()
    store.answer()
    await store.called(2)
    store.answer()
    await asyncio.gather(first, kept)
    assert b"kept" in store.calls[1][1]
    assert b"gone" not in store.calls[1][1]


async def test_a_repeat_has_the_mark_and_the_messages_of_the_first_try(store: SlowStore, sender: Sender) -> None:
    sending = asyncio.create_task(sender.send(messages(1)))
    await store.called(1)
    asyncio.create_task(sender.send(messages(1))).cancel()
    store.fail(StoreUnavailable("the answer is lost"))
    async with asyncio.timeout(10):
        await store.called(2)
    store.answer()
    assert await sending == [Sent("critical-7-0")]
    assert store.calls[0] == store.calls[1]


async def test_what_a_server_refuses_for_now_is_tried_again(store: SlowStore, sender: Sender) -> None:
    sending = asyncio.create_task(sender.send(messages(1)))
    await store.called(1)
    store.fail(StoreError("LOADING"))
    async with asyncio.timeout(10):
        await store.called(2)
    store.answer()
    assert await sending == [Sent("critical-7-0")]


async def test_who_waits_at_the_end_is_told_whether_it_may_be_stored(store: SlowStore, sender: Sender) -> None:
    doubtful = asyncio.create_task(sender.send(messages(1)))
    await store.called(1)
    waiting = asyncio.create_task(sender.send(messages(1)))
    await turns()
    await sender.close()
    with pytest.raises(StoreUnavailable, match="may have been stored, once"):
        await doubtful
    with pytest.raises(ConfigError, match="before this was sent"):
        await waiting
    with pytest.raises(ConfigError, match="nothing was sent"):
        await sender.send(messages(1))
