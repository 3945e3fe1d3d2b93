"""`python -m tests.faults.ticks`: workers with schedules of a second are killed with -9 again and again, and the server once.

Printed is how many ticks were missed and how many were fired twice. Exit status 1 when it was one of either.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.faults.scheduled import EVERY_S
from tests.faults.storms import DURABLE
from tests.faults.worker import Worker
from tests.servers import KINDS, Server, binary_of, wait_until

START_S = 120.0  # eight processes that start at once on two cores with other load
KILL_S = (0.3, 0.9)
LAST_S = 15.0  # more than a worker needs to hear of a restarted server


@dataclass
class Figures:
    """What a storm showed."""

    ticks: int = 0
    missed: int = 0
    double: int = 0
    kills: int = 0
    alone: int = 0
    lag_ms: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.ticks} ticks of {len(EVERY_S)} schedules, {self.kills} kills: {self.missed} missed, {self.double} double; "
            f"99 % are sent within {self.lag_ms:.0f} ms"
        )


def storm(server: Server, folder: Path, seconds: float, workers: int, must_kill_server: bool, seed: int) -> Figures:
    """Kill workers for so long, and count what was sent."""
    rng, figures = random.Random(seed), Figures()
    crew = [hire(server, folder) for _ in range(workers)]
    try:
        wait_until(lambda: any(worker.is_ready for worker in crew), START_S, "a worker starts")
        began_s = time.monotonic()
        kill_s = began_s + 1.0
        while time.monotonic() < began_s + seconds:
            time.sleep(0.02)
            if time.monotonic() > kill_s:
                at = rng.randrange(workers)
                crew[at].kill()
                crew[at] = hire(server, folder)
                figures.kills += 1
                kill_s = time.monotonic() + rng.uniform(*KILL_S)
            if must_kill_server and time.monotonic() > began_s + seconds / 2:
                must_kill_server = False
                server.kill()
                server.start()
        with server.client() as raw:
            now_ms = time_of(raw)
            wait_until(lambda: min(newest(raw).values()) > now_ms, LAST_S + 60, "each schedule fires on")
    finally:
        for worker in crew:
            worker.kill()
    with server.client() as raw:
        count(raw, figures)
    return figures


def hire(server: Server, folder: Path) -> Worker:
    return Worker(server, folder, "--handlers", "tests.faults.scheduled", concurrency=5)


def time_of(raw: redis.Redis) -> int:
    seconds, micros = raw.time()
    return int(seconds) * 1000 + int(micros) // 1000


def newest(raw: redis.Redis) -> dict[str, int]:
    """Return the last tick of each schedule."""
    return {name: int(row.split()[0]) for name, row in raw.hgetall("{jobs}:cron:state").items()}


def count(raw: redis.Redis, figures: Figures) -> None:
    """Compare what was sent with what its schedule says."""
    sent: dict[str, list[int]] = {name: [] for name in EVERY_S}
    lags: list[int] = []
    for entry, fields in raw.xrange("{jobs}:medium"):
        _, name, tick = fields["id"].split(":")
        if name in sent:
            sent[name].append(int(tick))
            lags += [int(entry.partition("-")[0]) - int(tick)] if name != "third" else []  # which has an offset
    for name, ticks in sent.items():
        step = EVERY_S[name] * 1000
        wanted = set(range(min(ticks), max(ticks) + 1, step))
        figures.ticks += len(ticks)
        figures.missed += len(wanted - set(ticks))
        figures.double += len(ticks) - len(set(ticks)) + len(set(ticks) - wanted)
    figures.alone = sum(1 for note in raw.hget("{jobs}:cron:state", "alone").split()[5:] if note.endswith("f"))
    figures.lag_ms = sorted(lags)[len(lags) * 99 // 100]


def main(arguments: list[str] | None = None) -> int:
    """Print the figures on each server; status 1 when one does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.ticks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=8)
    options = parser.parse_args(arguments)
    print(f"schedules: {options.workers} workers, one of them killed every {KILL_S[0]:g} to {KILL_S[1]:g} s, the server once")
    status = 0
    for kind in (kind for kind in KINDS if binary_of(kind)):
        folder, server, seed = Path(tempfile.mkdtemp(prefix="ticks-")), Server(kind, *DURABLE, appendonly=True), int(time.time())
        try:
            figures = storm(server, folder, options.seconds, options.workers, True, seed)
        finally:
            server.stop()
        is_good = figures.ticks > options.seconds and figures.missed == figures.double == 0 < figures.alone
        status = status if is_good else 1
        kept = "" if is_good else f"  FAILED, seed {seed}, logs: {folder}"
        print(f"  {kind:8} {figures}{kept}", flush=True)
        if is_good:
            shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
