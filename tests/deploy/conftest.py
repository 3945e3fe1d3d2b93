"""A Jaeger of the tests' own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.demo.jaeger import HOW_TO_GET, Jaeger, binary


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """A Jaeger on loopback, with what the session's tests send to it."""
    if binary() is None:
        pytest.skip(HOW_TO_GET)
    folder: Path = tmp_path_factory.mktemp("jaeger")
    with Jaeger(folder) as running:
        yield running
