"""What the fault tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.harness import Worker


@pytest.fixture
def crew() -> Iterator[list[Worker]]:
    """Workers that are ended with the test, whatever they do."""
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()
