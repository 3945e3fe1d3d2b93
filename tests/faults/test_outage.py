"""The store goes away for two leases and comes back: every job ends, and hardly one runs twice."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest

from runtime.errors import StoreAway
from runtime.wire import Wire
from tests.faults.harness import LEASE_S, count, hire
from tests.faults.store_kit import (
    AWAY,
    add,
    ended,
    endless_script,
    is_busy,
    is_settled,
    lines_of,
    on_both,
    own_server,
    second_runs,
)
from tests.servers import wait_until


@pytest.mark.parametrize("away", AWAY)
@on_both()
def test_200_jobs_in_flight_survive_two_leases_without_the_store(kind, away, tmp_path, crew):
    with own_server(kind) as server:
        raw = server.client()
        for _ in range(2):
            hire(crew, server, tmp_path)
        add(raw, 200, lambda n: 500 + 1000 * (n % 5))
        wait_until(lambda: count(tmp_path, "start") == 200, what="all run")
        AWAY[away](server, 2 * LEASE_S)
        add(raw, 100, lambda n: 20, first=200)
        wait_until(lambda: is_settled(raw), 40, "all is settled")
        again = second_runs(tmp_path)
        print(f"{kind}, {away}: {again} of 300 ran twice")
        assert ended(tmp_path) == set(range(300))
        assert again <= 2
        assert raw.xlen("{jobs}:dead") == 0
        said = lines_of(crew)
        assert len(said) <= 2 * 8, said


@on_both(long="")
def test_a_connection_opened_while_the_server_is_busy_is_none(kind, tmp_path):
    """It would have no id, so that nobody could wake it, and no server's name, so that no lease of it could be fenced."""
    with own_server(kind) as server:
        wire = Wire(server.url, "test")
        script = threading.Thread(target=endless_script, args=(server, 0.5))
        script.start()
        with contextlib.closing(server.client()) as raw:
            wait_until(lambda: is_busy(raw), what="the server is busy")
        asyncio.run(answers(wire))
        script.join()


async def answers(wire: Wire) -> None:
    with pytest.raises(StoreAway, match="BUSY"):
        await wire.call(("TIME",))
    loop = asyncio.get_running_loop()
    end_s = loop.time() + 10
    while loop.time() < end_s:
        with contextlib.suppress(StoreAway):
            await wire.call(("TIME",))
            break
    assert isinstance(wire.client_id, int)
    assert len(wire.run) == 40
    await wire.close()
