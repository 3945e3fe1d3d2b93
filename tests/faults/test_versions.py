"""Workers and senders of the last release and of this tree share one queue, suffer alike, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import versions
from tests.faults.ported import STYLES
from tests.faults.storms import DURABLE, Weather
from tests.servers import HOW_TO_GET, Server, binary_of

SEED = 20260
TRIES = 3  # a run that proved nothing, neither good nor bad, is run again with another seed
SHORT = Weather(
    600, 5.5, ("kill", "kill", "stop", "deploy", "server-kill-short"), process_gap_s=0.5, server_gap_s=3.0, styles=STYLES,
    options=versions.THREADS, workers=versions.WORKERS,
)  # fmt: skip


@pytest.mark.timeout(150)
@pytest.mark.parametrize("kind", ["valkey", "redis"])
async def test_600_jobs_survive_a_rolling_deploy_up_and_down_under_kills_freezes_and_an_outage(kind: str, tmp_path: Path) -> None:
    if versions.last_release() is None:
        pytest.skip(versions.WHY_NOT)
    if not binary_of(kind):
        pytest.skip(HOW_TO_GET[kind])
    for seed in range(SEED, SEED + TRIES):
        folder = tmp_path / str(seed)
        folder.mkdir()
        server = Server(kind, *DURABLE, appendonly=True)
        try:
            verdict = await versions.blow(server, folder, SHORT, seed)
        finally:
            server.stop()
        print(*verdict.figures, verdict, sep="\n")
        assert verdict.is_good, "\n".join(verdict.problems)
        if not verdict.void:
            return
    pytest.fail(f"a storm that hits nothing proves nothing: {verdict.void}, {verdict.figures}")
