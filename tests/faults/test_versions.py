"""Workers and senders of the last release and of this tree share one queue, suffer alike, and nothing is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import versions
from tests.faults.ledger import Run, Story, Try
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
@pytest.mark.parametrize("kind", ["valkey", pytest.param("redis", marks=pytest.mark.long)])
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


@pytest.mark.parametrize(("sent_s", "is_strange"), [(2.0, True), (4.0, False)])
def test_a_job_has_its_key_until_the_first_of_its_runs_that_came_to_an_end(sent_s: float, is_strange: bool) -> None:
    """The other run stood still meanwhile, and ended when nothing was its own any more."""
    tries = {n: Try(n, 1, "", {"key": "k"}, at_s) for n, at_s in ((1, 0.0), (2, sent_s))}
    story = Story(tries=tries, verdicts={1: "ok", 2: "ok"}, answered_s={1: 0.5, 2: sent_s + 0.5})
    runs = [Run(7, 1, 1, "2/1-0", 1, 1.0, 9.0, "end"), Run(8, 1, 1, "2/1-0", 2, 2.5, 3.0, "end")]
    mixture = versions.Mixture()
    mixture._judge_keys(story, {1: runs})
    assert mixture.strange == (["2 was taken, though 1 had its key k"] if is_strange else [])
