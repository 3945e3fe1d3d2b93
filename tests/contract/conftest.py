"""A queue in the double and on each server in turn, and two workers' stores on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.store.inspector import Inspector
from runtime.streams import Streams
from tests.conftest import empty_server
from tests.contract.kit import ME, OTHER, MemoryKit, ServerKit
from tests.servers import KINDS, Server


@pytest.fixture(params=["double", *KINDS])
async def kit(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """An empty queue, in the double and on each server in turn."""
    is_double = request.param == "double"
    opened = MemoryKit() if is_double else ServerKit(empty_server(request.param, request.getfixturevalue("_servers")))
    yield opened
    await opened.close()


@pytest.fixture
async def store(kit: Any) -> Streams:
    opened = kit.streams(ME)
    await opened.start()
    return opened


@pytest.fixture
def other(kit: Any) -> Streams:
    return kit.streams(OTHER)


@pytest.fixture
async def on_server(server: Server) -> AsyncIterator[ServerKit]:
    """An empty queue on each server in turn, for what the double does not have."""
    opened = ServerKit(server)
    yield opened
    await opened.close()


@pytest.fixture
async def inspector(server: Server) -> AsyncIterator[Inspector]:
    opened = Inspector(server.url, "jobs")
    yield opened
    await opened.close()
