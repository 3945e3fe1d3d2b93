"""The short storm over control: cancels, debounce, results, hand-off and an operation, while workers are killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.controls import storm
from tests.faults.storms import DURABLE
from tests.servers import Server


@pytest.mark.timeout(150)
def test_what_people_order_holds_over_kills_of_workers_and_of_the_server(tmp_path: Path) -> None:
    server = Server("valkey", *DURABLE, appendonly=True)
    try:
        figures = storm(server, tmp_path, 8.0, seed=1)
    finally:
        server.stop()
    assert figures.broken == []
    assert figures.kills > 3 and figures.outages > 0
    assert figures.cancelled["cancelled"] and figures.cancelled["asked"] and figures.followers > 20
