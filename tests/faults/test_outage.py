"""The store goes away for two leases and comes back: every job ends, and hardly one runs twice."""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from runtime.errors import StoreUnavailable
from runtime.store.connection import Connection
from tests.faults.harness import LEASE_S, Worker, count, hire
from tests.faults.store_kit import (
    AWAY,
    Fault,
    add,
    ended,
    endless_script,
    is_busy,
    is_settled,
    lines_of,
    on_each,
    own_server,
    second_runs,
    starts_of,
)
from tests.servers import KINDS, Server, wait_until


def go_through(server: Server, away: Fault, lease_s: float, history: Path, crew: list[Worker]) -> int:
    """Take the store away for two leases while 200 jobs run; give how many of them ran twice."""
    with contextlib.closing(server.client()) as raw:
        for _ in range(2):
            hire(crew, server, history, lease_s=lease_s)
        add(raw, 200, lambda n: lease_s * 1000 * (0.3 + 0.7 * (n % 5)))
        wait_until(lambda: count(history, "start") == 200, what="all run")
        away(server, 2 * lease_s)
        add(raw, 100, lambda n: 20, first=200)
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert raw.xlen("{jobs}:dead") == 0
    assert ended(history) == set(range(300))
    again, said = second_runs(history), lines_of(crew)
    assert len(said) <= 2 * 8, f"{again} ran twice; {said}"
    return again


@pytest.mark.parametrize("away", ["stopped", "frozen"])
def test_200_jobs_in_flight_survive_two_leases_without_the_store(away, tmp_path, crew):
    with own_server("valkey") as server:
        assert go_through(server, AWAY[away], 0.9, tmp_path, crew) <= 2


@pytest.mark.long
@pytest.mark.parametrize("away", AWAY)
@pytest.mark.parametrize("kind", KINDS)
def test_200_jobs_in_flight_survive_each_way_in_which_a_store_goes_away(kind, away, tmp_path, crew):
    with own_server(kind) as server:
        again = go_through(server, AWAY[away], LEASE_S, tmp_path, crew)
    print(f"{kind}, {away}: {again} of 300 ran twice")
    assert again <= 2


@pytest.mark.parametrize("nuisance", ["SCRIPT FLUSH", "CLIENT KILL TYPE normal"])
@on_each()
def test_a_server_that_forgets_its_scripts_or_its_clients_all_the_time_is_worked_with(kind, nuisance, tmp_path, crew):
    """Retries, so that every kind of script is asked for. Lost replies make lost deliveries, which others take back."""
    with own_server(kind) as server, contextlib.closing(server.client()) as raw:
        for _ in range(2):
            hire(crew, server, tmp_path, concurrency=20, lease_s=0.9)
        for part in range(10):
            add(raw, 20, lambda n: 50, first=20 * part, failures=part % 2)
            raw.execute_command(*nuisance.split(" "))
            wait_until(lambda part=part: len(ended(tmp_path)) > 10 * part, what="work goes on")
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert ended(tmp_path) == set(range(200))
        assert sum(starts_of(tmp_path).values()) - 200 - 100 <= 4, "no burst of second runs"
        assert raw.xlen("{jobs}:dead") == 0
        assert len(lines_of(crew)) <= 2 * (8 + 10) + 100, "a line for each failure, and few others"


@pytest.mark.long
@on_each()
def test_an_outage_of_20_s_is_told_in_few_lines_and_readyz_says_so(kind, tmp_path, crew):
    with own_server(kind) as server, contextlib.closing(server.client()) as raw:
        worker = hire(crew, server, tmp_path, "--board", "127.0.0.1:0", lease_s=3)
        found = re.search(r"board at (http://[0-9.:]+)", worker.log)
        assert found
        wait_until(lambda: status(f"{found[1]}/readyz") == 200, what="it is ready")
        add(raw, 50, lambda n: 10_000 if n % 2 else 1000)
        wait_until(lambda: count(tmp_path, "start") == 50, what="all run")
        before = len(lines_of(crew))
        assert server.process
        server.kill()
        end_s = time.monotonic() + 20
        wait_until(lambda: status(f"{found[1]}/readyz") == 503, what="it is not ready")
        while time.monotonic() < end_s:
            assert status(f"{found[1]}/healthz") == 200, "an outage is no reason to restart a worker"
            time.sleep(0.2)
        assert status(f"{found[1]}/readyz") == 503
        server.start()
        wait_until(lambda: status(f"{found[1]}/readyz") == 200, what="it is ready again")
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert ended(tmp_path) == set(range(50))
        assert second_runs(tmp_path) == 0
        # A machine that stands still for a moment blocks the loop, which is told too, and is no word of the outage.
        said = lines_of(crew)[before:]
        print(kind, *said, sep="\n")
        assert len(said) <= 6, said


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@on_each()
def test_a_connection_opened_while_the_server_is_busy_is_none(kind, tmp_path):
    """It would have no id, so that nobody could wake it, and no server's name, so that no lease of it could be fenced."""
    with own_server(kind) as server:
        connection = Connection(server.url, "test")
        script = threading.Thread(target=endless_script, args=(server, 0.5))
        script.start()
        with contextlib.closing(server.client()) as raw:
            wait_until(lambda: is_busy(raw), what="the server is busy")
        asyncio.run(answers(connection))
        script.join()


async def answers(connection: Connection) -> None:
    with pytest.raises(StoreUnavailable, match="BUSY"):
        await connection.call(("TIME",))
    loop = asyncio.get_running_loop()
    end_s = loop.time() + 10
    while loop.time() < end_s:
        with contextlib.suppress(StoreUnavailable):
            await connection.call(("TIME",))
            break
    assert isinstance(connection.client_id, int)
    assert len(connection.run_id) == 40
    await connection.close()
