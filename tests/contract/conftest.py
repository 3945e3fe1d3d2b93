"""A queue in the double and on each server in turn, and two workers' stores on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.streams import Streams
from tests.conftest import empty_server
from tests.contract.kit import ME, OTHER, MemoryKit, ServerKit
from tests.servers import KINDS


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
