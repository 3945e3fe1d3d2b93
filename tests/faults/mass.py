"""`python -m tests.faults.mass`: all workers are killed at once with all its lanes full. How soon does it all run again?

Three runs: nothing else waits; one job of them is poison; the same with ordinary work that always waits. Printed are, from the
end of the lease on, when the last innocent ran again, when all was settled, and which share of all lane seconds went into runs
that came to their end: on average, and in the worst window. `--full` has the constants of production, else all times are a
sixth: what the machine needs for itself, such as starting a process, weighs six times as much then. Exit status 1 when an
innocent was dead_lettered, or the poison was not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import redis

from tests.faults.checker import leftovers
from tests.faults.ledger import Event, events
from tests.faults.worker import Worker
from tests.servers import Server, wait_until

KEY = "{jobs}:low"  # ordinary work stands before it
POISON, FILLER = 900_000, 1_000_000
DEADLINE_S = 1500.0
START_S = 120.0  # ten processes that start at once on two cores with other load


@dataclass(frozen=True)
class Scale:
    """How large, and how long everything takes."""

    workers: int = 10
    lanes: int = 100
    job_s: float = 5.0
    lease_s: float = 5.0
    suspect_s: float = 1.7
    filler_s: float = 2.0
    window_s: float = 10.0


FULL = Scale(10, 500, 30.0, 30.0, 10.0, 10.0, 30.0)


@dataclass
class Figures:
    """What a run showed; times in seconds from the end of the lease on."""

    again_s: float
    settled_s: float
    deaths: int
    most_deliveries: int
    dead_lettered: list[int]
    mean: float
    worst: float


class Workers:
    """Workers that are started again when they have died."""

    def __init__(self, server: Server, folder: Path, scale: Scale) -> None:
        self._server, self._folder, self._scale = server, folder, scale
        self.now = [self._hire() for _ in range(scale.workers)]
        self.deaths = 0

    def _hire(self) -> Worker:
        options = ("--handlers", "tests.faults.jobs,tests.faults.poison", "--suspect", str(self._scale.suspect_s))
        return Worker(
            self._server, self._folder, *options, concurrency=self._scale.lanes, lease_s=self._scale.lease_s
        )  # fmt: skip

    def wait_ready(self) -> None:
        wait_until(lambda: all(worker.is_ready for worker in self.now), START_S, "all workers start")

    def fix(self) -> None:
        for place, worker in enumerate(self.now):
            if worker.process.poll() is not None:
                self.deaths += 1
                self.now[place] = self._hire()

    def kill(self) -> None:
        for worker in self.now:
            worker.process.kill()
        for worker in self.now:
            worker.process.wait()

    def replace(self) -> None:
        self.now = [self._hire() for _ in self.now]


def send(raw: redis.Redis, kind: str, numbers: range, to: str = KEY, **payload: object) -> None:
    """Send jobs in one go."""
    pipeline = raw.pipeline(transaction=False)
    for n in numbers:
        pipeline.xadd(to, {"type": kind, "data": msgspec.json.encode({"n": n, **payload})})
    pipeline.execute()


def mass_kill(server: Server, folder: Path, scale: Scale, has_poison: bool, is_busy: bool) -> Figures:
    """Kill workers whose lanes are full, start another, and look until all is settled."""
    size = scale.workers * scale.lanes - has_poison
    workers = Workers(server, folder, scale)
    try:
        with server.client() as raw:
            workers.wait_ready()
            send(raw, "lasting", range(size), ms=scale.job_s * 1000)
            if has_poison:  # it is the last to come, and kills within its first isolation
                wait_until(lambda: started(folder) >= size, START_S, "all run")
                send(raw, "deadly", range(POISON, POISON + 1), how="kill", ms=scale.suspect_s * 300)
            wait_until(lambda: started(folder) == size + has_poison, START_S, "all run")
            workers.kill()
            lease_s = time.monotonic() + scale.lease_s
            workers.replace()
            workers.wait_ready()
            sent, end_s, settled_s = FILLER, time.monotonic() + DEADLINE_S, 0.0
            while not settled_s:
                workers.fix()
                lacking = 2 * scale.workers * scale.lanes - raw.xlen("{jobs}:medium") if is_busy else 0
                if lacking > 0:
                    send(raw, "lasting", range(sent, sent + lacking), "{jobs}:medium", ms=scale.filler_s * 1000)
                    sent += lacking
                left = leftovers(raw)
                if not {name for name in left if "medium" not in name}:
                    settled_s = time.monotonic()
                if time.monotonic() > end_s:
                    raise AssertionError(f"not settled within {DEADLINE_S:g} s: {left}")
                time.sleep(0.1)
            letters = [msgspec.json.decode(fields["data"])["n"] for _, fields in raw.xrange("{jobs}:dead")]
    finally:
        workers.kill()
    return judge(events(folder), scale, lease_s, settled_s, workers.deaths, letters)


def started(folder: Path) -> int:
    """Return how many jobs have started."""
    return sum(path.read_bytes().count(b"start ") for path in folder.glob("*.log"))


def judge(history: list[Event], scale: Scale, lease_s: float, settled_s: float, deaths: int, letters: list[int]) -> Figures:
    """Return the figures out of what the handlers wrote down."""
    first = dict[int, float]()
    opened = dict[tuple[int, int], float]()
    runs, deliveries, again_s = list[tuple[float, float]](), dict[int, int](), lease_s
    for event in history:
        at_s = float(event.rest[-1])
        if event.kind == "start":
            deliveries[event.n] = deliveries.get(event.n, 0) + 1
            opened[event.pid, event.n] = at_s
            first.setdefault(event.n, at_s)
            if event.n < POISON:
                again_s = max(again_s, at_s)
        elif event.kind == "end":
            runs.append((opened.pop((event.pid, event.n)), at_s))
    runs += [(start_s, settled_s) for start_s in opened.values() if start_s > settled_s - scale.filler_s]  # these go on
    lanes, window_s = scale.workers * scale.lanes, scale.window_s
    shares = list[float]()
    for at in range(int(max(1, (settled_s - lease_s - window_s) / window_s))):
        from_s = lease_s + window_s * (0.5 + at)  # the sweep that finds what the dead left takes a while
        to_s = from_s + window_s
        done_s = sum(max(0.0, min(end_s, to_s) - max(start_s, from_s)) for start_s, end_s in runs)
        shares.append(done_s / lanes / window_s)
    return Figures(
        again_s - lease_s, settled_s - lease_s, deaths, max(deliveries[n] for n in deliveries if n < POISON),
        letters, sum(shares) / len(shares), min(shares),
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print the figures of all runs; status 1 when one does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mass", description=__doc__)
    parser.add_argument(
        "--full", action="store_true", help="10 workers of 500 lanes, jobs of 30 s, the default lease and isolation"
    )
    parser.add_argument("--only", type=int, choices=(1, 2, 3), help="this run alone")
    options = parser.parse_args(arguments)
    scale = FULL if options.full else Scale()
    times = f"lease {scale.lease_s:g} s, isolation from {scale.suspect_s:g} s"
    print(f"mass kill: {scale.workers} workers of {scale.lanes} jobs of {scale.job_s:g} s, as many fresh ones, {times}")
    status = 0
    for number, (name, has_poison, is_busy) in enumerate(
        (("nothing else", False, False), ("one is poison", True, False), ("one is poison, other work waits", True, True)), 1
    ):
        if options.only in (None, number):
            folder, server = Path(tempfile.mkdtemp(prefix="mass-")), Server("valkey")
            try:
                figures = mass_kill(server, folder, scale, has_poison, is_busy)
            finally:
                server.stop()
                shutil.rmtree(folder)
            is_good = figures.dead_lettered == [POISON] * has_poison
            status = status if is_good else 1
            innocents = len(set(figures.dead_lettered) - {POISON})
            print(
                f"  {name:32} last innocent again after {figures.again_s:.0f} s, settled after {figures.settled_s:.0f} s; "
                f"{figures.deaths} more deaths, most deliveries {figures.most_deliveries}, innocents dead-lettered {innocents}; "
                f"useful share of the lanes {figures.mean:.2f}, worst {figures.worst:.2f}{'' if is_good else '  FAILED'}",
                flush=True,
            )
    return status


if __name__ == "__main__":
    sys.exit(main())
