"""Commands are run on one kind of server, on the others by `make faults`: what differs is for the tests of verbs to find."""

from __future__ import annotations

import pytest

from tests.conftest import empty_server
from tests.servers import KINDS, Server

SHORT = "valkey"


@pytest.fixture(params=[pytest.param(kind, marks=() if kind == SHORT else pytest.mark.long) for kind in KINDS])
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Server:
    """An empty server: Valkey, and in the long tests the others."""
    return empty_server(request.param, _servers)
