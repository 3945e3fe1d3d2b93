"""The short storms: processes, server and lines suffer while jobs run, and nothing is lost, dies twice or is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import storm
from tests.faults.storms import DURABLE, Weather, blow
from tests.servers import HOW_TO_GET, Server, binary_of

SEED = 20260
SHORT = ("kill", "kill", "kill", "stop", "server-kill-long", "pause", "drop-reply", "drop-reply")


@pytest.mark.timeout(150)
async def test_2000_jobs_survive_kills_freezes_an_outage_and_lost_replies(tmp_path: Path) -> None:
    server = Server("valkey", *DURABLE, appendonly=True)
    try:
        verdict = await blow(server, tmp_path, Weather(2000, 14, SHORT, process_gap_s=0.8), SEED)
    finally:
        server.stop()
    print(verdict)
    assert verdict.is_good, "\n".join(verdict.problems)
    assert verdict.hits.keys() == set(SHORT), "every kind of fault came"
    assert all(verdict.hits.values()), f"a fault that hits nothing proves nothing: {verdict.faults}, of which hit {verdict.hits}"
    assert verdict.hits["kill"] >= 4, verdict.hits


@pytest.mark.timeout(100)
async def test_800_jobs_survive_kills_of_their_workers_on_redis_7_0(tmp_path: Path) -> None:
    if not binary_of("redis"):
        pytest.skip(HOW_TO_GET["redis"])
    server = Server("redis", appendonly=True)
    try:
        verdict = await storm(server, tmp_path, jobs=800, seconds=5, kill_every_s=0.8, seed=SEED)
    finally:
        server.stop()
    assert verdict.is_good, "\n".join(verdict.problems)
    assert verdict.kills_in_flight >= 3, f"a storm that hits nothing proves nothing: {verdict}"
