"""`python -m tests.faults.isolation`: rules of isolation compared by a simulation, without Redis and in a few minutes.

Workers whose lanes are all full are killed at once, and started again at once. Per rule and case is printed: `again`, when the
last innocent was started again, and `found`, when the last poison was dead_lettered, in seconds after the lease; how many workers
died after that; how often one innocent was delivered at most; how many deliveries beyond the second there were (`more`);
innocents dead-lettered; and which part of all lanes ran something, in the worst half minute and on average.
Ordinary jobs of about the same length wait all the time (`busy`) or not at all (`idle`).
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

TICK_S = 0.5
LEASE_S = 30.0
FOUND_S = 33.0  # a lease and a sweep: from a death until what it held waits for isolation
RESTART_S = 3.0
BASE_S = 10.0
TIMEOUT_S = 600.0
STRIKES_OUT = 3
LOOK_AT = 500
ASK_S = 1.0
END_S = 20_000.0


@dataclass(slots=True, eq=False)
class Job:
    """A job: how long it runs, and after which time it kills (0: never)."""

    length_s: float
    kills_s: float = 0.0
    is_ordinary: bool = False
    count: int = 0
    strikes: int = 0
    started_s: float = -1.0

    def __lt__(self, other: Job) -> bool:
        return id(self) < id(other)


@dataclass(slots=True, eq=False)
class Worker:
    """A process: what runs, by its end; what it isolates, and until when it rests; when it may ask again."""

    running: list[tuple[float, Job]] = field(default_factory=list[tuple[float, Job]])
    isolated: list[Job] = field(default_factory=list[Job])
    until_s: float = 0.0
    waits_since_s: float = -1.0
    needed_s: float = 0.0
    turn_s: float = 0.0
    up_s: float = 0.0

    @property
    def has_place(self) -> bool:
        return bool(self.isolated) or self.waits_since_s >= 0


@dataclass(frozen=True)
class Rule:
    """How many run together at their first, second, … time (of lanes, suspects that wait); how many workers may isolate."""

    name: str
    sizes: tuple[Callable[[int, int], int], ...]
    places: Callable[[int], int]

    def size(self, count: int, lanes: int, suspects: int) -> int:
        """How many run together that were delivered this often; alone, once there is no more to split."""
        return max(1, self.sizes[count - 1](lanes, suspects)) if count <= len(self.sizes) else 1


def half(workers: int) -> int:
    """At most half of the workers, at least one."""
    return max(1, workers // 2)


def fixed(size: int) -> Callable[[int, int], int]:
    """So many together."""
    return lambda lanes, suspects: size


def all_lanes(lanes: int, suspects: int) -> int:
    """As many as there are free lanes."""
    return lanes


def root(lanes: int, suspects: int) -> int:
    """The root of all that wait: what one guilty takes along, and how many groups there are, grow alike."""
    return math.isqrt(suspects)


RULES = (
    Rule("one isolation; 20, 1", (fixed(20),), lambda workers: 1),
    Rule("half; 20, 1", (fixed(20),), half),
    Rule("half; lanes, 1", (all_lanes,), half),
    Rule("half; lanes, 20, 1", (all_lanes, fixed(20)), half),
    Rule("half; lanes, 100, 20, 1", (all_lanes, fixed(100), fixed(20)), half),
    Rule("half; lanes, root, 1", (all_lanes, root), half),
    Rule("half; lanes, root, root, 1", (all_lanes, root, root), half),  # as isolate.lua has it
    Rule("half; lanes, lanes, root, 1", (all_lanes, all_lanes, root), half),
)


@dataclass
class Result:
    """What a run showed."""

    again_s: float
    dead_lettered_s: float
    deaths: int
    most: int
    too_many: int
    innocents_dead: int
    worst: float
    mean: float


def simulate(
    rule: Rule,
    jobs: list[Job],
    workers: int,
    lanes: int,
    is_busy: bool,
    length_s: float,
    kills: tuple[float, ...] = (),
    seed: int = 0,
) -> Result:
    """Kill workers that hold these jobs, and again at each of `kills`; run until all are settled."""
    rng = random.Random(seed)
    suspects, found = list[Job](), deque[tuple[float, list[Job]]]()
    rng.shuffle(jobs)
    for job in jobs:
        job.count = 1
    found.append((0.0, jobs))
    everyone = [Worker() for _ in range(workers)]
    left, dead_lettered_s, deaths, innocents_dead = len(jobs), 0.0, 0, 0
    busy, kills_left, now_s, last_s = list[float](), deque(kills), 0.0, 0.0

    def end_isolation(worker: Worker) -> None:
        if len(worker.isolated) == 1:
            worker.isolated[0].strikes = 0
        worker.isolated = []
        worker.turn_s = now_s + (now_s - worker.waits_since_s) if is_busy else now_s
        worker.waits_since_s = -1.0

    def die(worker: Worker) -> None:
        nonlocal deaths
        deaths += 1
        held = [job for _, job in worker.running]
        if len(worker.isolated) == 1 and worker.isolated[0] in held:
            worker.isolated[0].strikes += 1
        found.append((now_s + FOUND_S, held))
        worker.running, worker.isolated, worker.waits_since_s, worker.turn_s = [], [], -1.0, 0.0
        worker.up_s = now_s + RESTART_S

    def start(worker: Worker, job: Job) -> None:
        job.started_s, job.count = now_s, job.count + 1
        heapq.heappush(worker.running, (now_s + (job.kills_s or job.length_s), job))

    def choose(worker: Worker) -> list[Job]:
        is_clean = all(job.count == 1 for _, job in worker.running)
        fit = suspects if is_clean else [job for job in suspects if not job.strikes]
        if not fit:
            return []
        struck = max(fit, key=lambda job: job.strikes)
        if struck.strikes:
            return [struck]
        least = min(job.count for job in fit)
        same = [job for job in fit if job.count == least]
        return same[: min(rule.size(least, lanes, len(suspects)), max(1, lanes - len(worker.running)), LOOK_AT)]

    while (left or found) and now_s < END_S:
        while found and found[0][0] <= now_s:
            suspects += found.popleft()[1]
        if kills_left and kills_left[0] <= now_s:
            kills_left.popleft()
            for worker in everyone:
                die(worker)
        for worker in everyone:
            while worker.running and worker.running[0][0] <= now_s:
                _, job = heapq.heappop(worker.running)
                if job.kills_s:
                    worker.running.append((0.0, job))
                    die(worker)
                elif not job.is_ordinary or job.count > 1:
                    left -= 0 if job.is_ordinary else 1
                    worker.isolated = [] if worker.isolated == [job] else worker.isolated
            if worker.isolated and (now_s >= worker.until_s or not {job for _, job in worker.running} & set(worker.isolated)):
                end_isolation(worker)
        for job in [job for job in suspects if job.strikes >= STRIKES_OUT]:
            suspects.remove(job)
            left -= 0 if job.is_ordinary else 1
            innocents_dead += not job.kills_s
            dead_lettered_s = now_s
        for worker in rng.sample(everyone, workers):
            if worker.up_s > now_s or worker.isolated:
                continue
            places = rule.places(sum(other.up_s <= now_s for other in everyone))
            is_free = worker.has_place or sum(other.has_place for other in everyone) < places
            if suspects and is_free and now_s >= worker.turn_s:
                chosen = choose(worker)
                if chosen:
                    time_s = min(BASE_S * 2 ** (max(job.count for job in chosen) - 1), TIMEOUT_S)
                    youngest_s = now_s - max((job.started_s for _, job in worker.running), default=-math.inf)
                    if worker.waits_since_s < 0:
                        worker.waits_since_s = now_s
                    if youngest_s >= time_s and len(worker.running) < lanes:
                        ids = set(map(id, chosen))
                        suspects[:] = [job for job in suspects if id(job) not in ids]
                        for job in chosen:
                            start(worker, job)
                            last_s = last_s if job.is_ordinary or job.kills_s else now_s
                        worker.isolated, worker.until_s = chosen, now_s + time_s
                    elif now_s - worker.waits_since_s > max(LEASE_S, 2 * time_s):
                        worker.waits_since_s, worker.turn_s = -1.0, now_s + LEASE_S
                else:
                    worker.waits_since_s = -1.0
            elif not suspects:
                worker.waits_since_s = -1.0
            if is_busy and not worker.has_place:
                for _ in range(lanes - len(worker.running)):
                    job = Job(length_s * rng.uniform(0.5, 1.5), is_ordinary=True)
                    start(worker, job)
        busy.append(sum(len(worker.running) for worker in everyone) / workers / lanes)
        now_s += TICK_S
    innocents = [job for job in jobs if not job.kills_s]
    window = int(30 / TICK_S)
    sums = [sum(busy[at : at + window]) / window for at in range(0, max(1, len(busy) - window), 10)]
    return Result(
        last_s, dead_lettered_s, deaths, max(job.count for job in innocents), sum(job.count - 2 for job in innocents),
        innocents_dead, min(sums), sum(busy) / len(busy),
    )  # fmt: skip


CASES: dict[str, tuple[float, tuple[float, ...], tuple[float, ...]]] = {
    "no poison": (30, (), ()),
    "1 after 1 s": (30, (1,), ()),
    "3 after 0.5, 5, 25 s": (30, (0.5, 5, 25), ()),
    "1 after 90 s, innocents of 200 s": (200, (90,), ()),
    "3 after 90 s, innocents of 200 s": (200, (90, 90, 90), ()),
    "3 after 35, 60, 90 s, innocents of 200 s": (200, (35, 60, 90), ()),
    "all killed again after 20 s": (30, (), (20,)),
}  # how long innocents run, when poison kills, and when all workers are killed again


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.isolation", description=__doc__)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--lanes", type=int, default=100)
    parser.add_argument("--rule", default="", help="only rules with this in their name")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    workers, lanes = options.workers, options.lanes
    for name, (length_s, kills_s, again) in CASES.items():
        print(f"\n{name} ({workers} workers of {lanes})")
        print(f"{'rule':28} {'':4} {'again':>6} {'found':>6} {'deaths':>6} {'most':>4} {'more':>5} dead-lettered worst mean")
        for rule in RULES:
            for is_busy in (False, True) if options.rule in rule.name else ():
                jobs = [Job(length_s) for _ in range(workers * lanes - len(kills_s))]
                jobs += [Job(length_s, kill_s) for kill_s in kills_s]
                r = simulate(rule, jobs, workers, lanes, is_busy, length_s, again, options.seed)
                print(
                    f"{rule.name:28} {'busy' if is_busy else 'idle'} {r.again_s:6.0f} {r.dead_lettered_s:6.0f} {r.deaths:6} "
                    f"{r.most:4} {r.too_many:5} {r.innocents_dead:9} {r.worst:5.2f} {r.mean:4.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
