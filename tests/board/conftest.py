"""What the tests of the board's pages share: a queue on a server, and hands behind the board's back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator

import pytest
import redis

from board.contracts import Contracts
from board.jobs import Reads
from runtime.store.events import Events
from runtime.store.lists import JobLists
from tests.contract.kit import ServerKit
from tests.servers import Server

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "mail": {"writeOnly": True}}, "required": ["n"]}
CONTRACTS = {"t@1": json.dumps({"timeout_s": 30, "attempts": 5, "schema": SCHEMA})}


@pytest.fixture
def raw(request: pytest.FixtureRequest) -> Iterator[redis.Redis]:
    """A plain client of the test's server: of a Valkey, where the test asks for none of each kind."""
    server: Server = request.getfixturevalue("server" if "server" in request.fixturenames else "valkey")
    client = server.client()
    yield client
    client.close()


@pytest.fixture
async def kit(valkey: Server) -> AsyncIterator[ServerKit]:
    """Workers' stores, and what else happens to a queue."""
    opened = ServerKit(valkey)
    yield opened
    await opened.close()


@pytest.fixture
async def reads(valkey: Server) -> AsyncIterator[Reads]:
    """What pages of jobs read, and a worker has told of the type `t`."""

    async def told() -> dict[str, str]:
        return CONTRACTS

    lists, events = JobLists(valkey.url, "jobs"), Events(valkey.url, "jobs")
    yield Reads(lists, events, Contracts(told))
    await lists.close()
    await events.close()
