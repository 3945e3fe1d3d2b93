"""What a traced call of a producer adds to its messages, and what it leaves as it is."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from opentelemetry import trace

from otel.publish import publisher
from runtime import producer as producing
from runtime.jobs import Packed, contract
from runtime.producer import Message, Producer
from runtime.sender import Sent


@contract("note")
class Note(msgspec.Struct):
    n: int = 0


@contract("other")
class Other(msgspec.Struct):
    pass


class Told:
    fields = (b"traceparent", "context")

    def __init__(self) -> None:
        self.ids: list[str] = []

    def sent(self, ids: Sequence[str]) -> None:
        self.ids += ids


class Kept:
    """Takes the place of the sender of one loop."""

    is_over = False

    def __init__(self) -> None:
        self.packed: list[Packed] = []

    async def send(self, packed: Sequence[Packed], flow: Any = None) -> list[Sent]:
        self.packed += packed
        return [Sent(str(at)) for at in range(len(packed))]

    def end(self) -> None:
        """Nothing is open."""


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Told:
    told = Told()

    @contextmanager
    def publish(queue: str, url: str, is_batch: bool) -> Generator[Told]:
        yield told

    monkeypatch.setattr(producing, "publisher", lambda: publish)
    return told


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    sender = Kept()
    monkeypatch.setattr(Producer, "_sender_for", lambda self, durability, queue="": sender)
    return sender


async def test_messages_of_a_traced_call_go_as_one_run(traced: Told, kept: Kept) -> None:
    """The sender writes what messages have in common once, as long as their heads are one."""
    await Producer("redis://127.0.0.1:1").send_many([Note(1), Note(2), Other(), Note(3)])
    heads = [packed.head for packed in kept.packed]
    assert heads[0] is heads[1] is heads[3]
    assert all(head.fields[:2] == traced.fields for head in heads)
    assert traced.ids == ["0", "1", "2", "3"]


async def test_a_context_is_added_to_what_a_message_has(traced: Told, kept: Kept) -> None:
    producer = Producer("redis://127.0.0.1:1", source="web")
    await producer.send(Note(1), id="mine")
    await producer.send_many([Message(payload=Note(1), id="other")])
    for packed in kept.packed:
        assert packed.head.fields[:2] == traced.fields
        assert b"id" in packed.head.fields
        assert b"src" in packed.head.fields


async def test_an_untraced_call_shares_what_its_type_has_in_common(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producing, "publisher", lambda: None)
    producer = Producer("redis://127.0.0.1:1")
    await producer.send(Note(1))
    await producer.send(Note(2))
    assert kept.packed[0].head is kept.packed[1].head


def test_a_provider_that_cannot_be_loaded_keeps_nothing_from_being_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    monkeypatch.setenv("OTEL_PYTHON_TRACER_PROVIDER", "nonsense")
    assert publisher() is None
