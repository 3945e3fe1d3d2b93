"""What workers write down for those who only look, and how it is read: contracts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from runtime import Job, contract, handler
from runtime.schema import MAX_CONTRACT_BYTES, declared
from runtime.store import events
from runtime.store.events import Events
from tests.servers import Server
from tests.workers import until, working

CONTRACTS = "{jobs}:contracts"


@contract("look")
class Look(msgspec.Struct, frozen=True):
    at: str = ""


@handler(Look)
async def look(message: Look, job: Job) -> None:
    """Look at it."""


@pytest.fixture
async def reader(server: Server) -> AsyncIterator[Events]:
    reader = Events(server.url, "jobs")
    yield reader
    await reader.close()


async def test_a_worker_writes_its_contracts_down(server: Server, reader: Events):
    raw: Any = server.client()
    assert await reader.contracts() == []
    async with working(server.url, look, app_version="1.4.2") as consumer:
        await until(lambda: raw.hlen(CONTRACTS), "they are written")
        [one] = await reader.contracts()
        assert one == declared(look, "1.4.2", consumer.name, one.at_ms)
        assert json.loads(one.schema)["$defs"]["Look"]["properties"]["at"]["type"] == "string"
    assert await reader.contracts() == [one], "and they stay"


async def test_a_server_that_lost_them_has_them_again(server: Server, reader: Events):
    async with working(server.url, look) as consumer:
        await consumer.maintenance.declare()
        server.client().delete(CONTRACTS)
        await consumer.maintenance.declare()
        assert [one.type for one in await reader.contracts()] == ["look"]


async def test_one_that_cannot_be_read_spoils_nothing(server: Server, reader: Events, monkeypatch: pytest.MonkeyPatch):
    raw: Any = server.client()
    good = '{"priority":"low"}'
    odd = {"a@1": good, "b@1": "{", "c": good, "a@2": good, b"\xff@1": good, "d@1": "x" * (MAX_CONTRACT_BYTES + 1)}
    raw.hset(CONTRACTS, mapping=odd)
    assert [one.field for one in await reader.contracts()] == ["a@2", "a@1"]
    monkeypatch.setattr(events, "MAX_CONTRACTS_BYTES", 3 * len(good))
    raw.hset(CONTRACTS, mapping={f"t{n}@1": good for n in range(300)})
    assert 0 < len(await reader.contracts()) <= 3, "all of them together are bounded"
    monkeypatch.setattr(events, "MAX_CONTRACTS", 2)
    assert len(await reader.contracts()) <= 2
    raw.delete(CONTRACTS)
    raw.set(CONTRACTS, "a text")
    assert await reader.contracts() == []


async def test_a_key_of_another_type_costs_a_worker_nothing(server: Server, caplog: pytest.LogCaptureFixture):
    raw: Any = server.client()
    raw.set(CONTRACTS, "a text")
    async with working(server.url, look) as consumer:
        await consumer.maintenance.declare()
    assert raw.get(CONTRACTS) == "a text"
