"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import empty_server
from tests.faults.harness import Worker
from tests.servers import KINDS, Server


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.long if kind == "redis8" else ()) for kind in KINDS])
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Server:
    """An empty server of each kind in turn; of the third only in the long fault run."""
    return empty_server(request.param, _servers)


@pytest.fixture
def crew() -> Iterator[list[Worker]]:
    """Workers that are ended with the test, whatever they do."""
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()
