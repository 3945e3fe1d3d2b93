"""Workers are killed with -9 while they work: nothing is lost, nothing dies twice, nothing is left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import storm
from tests.servers import KINDS, Server, binary_of

SEED = 20260


@pytest.fixture(params=KINDS)
def fresh_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of its own, with an append-only file as in production."""
    if not binary_of(request.param):
        pytest.skip("no Debian Redis: apt-get install redis-server, or RUNTIME_REDIS_SERVER=path")
    server = Server(request.param, appendonly=True)
    yield server
    server.stop()


@pytest.mark.timeout(150)
async def test_2000_jobs_survive_kills_of_their_workers(fresh_server: Server, tmp_path: Path) -> None:
    verdict = await storm(fresh_server, tmp_path, jobs=2000, seconds=6, kill_every_s=0.8, seed=SEED)
    print(verdict)
    assert verdict.is_good, verdict
    assert verdict.kills_in_flight >= 4, f"a storm that hits nothing proves nothing: {verdict}"


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_20000_jobs_survive_a_kill_every_two_seconds(tmp_path: Path) -> None:
    server = Server("valkey", appendonly=True)
    try:
        verdict = await storm(server, tmp_path, jobs=20_000, seconds=30, kill_every_s=2, seed=SEED)
    finally:
        server.stop()
    print(verdict)
    assert verdict.is_good, verdict
    assert verdict.kills_in_flight >= 10, f"a storm that hits nothing proves nothing: {verdict}"
