"""A job that ends its process is found and dead-lettered; no innocent is dead-lettered with it, and none is lost."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import msgspec
import pytest
import redis

from tests.faults.harness import Worker, count, events, leftovers
from tests.servers import Server, wait_until

LEASE_S = 0.8
KEY = "{jobs}:medium"
OPTIONS = ("--handlers", "tests.faults.jobs,tests.faults.poison", "--suspect", "0.5", "--max-block", "1")


class Crew:
    """Workers that are started again when they have died, as a service manager does; and killed when their loop stands still."""

    def __init__(self, server: Server, history: Path, crew: list[Worker], size: int, concurrency: int, *options: str) -> None:
        self.server, self.history, self.all, self.concurrency = server, history, crew, concurrency
        self.options = (*OPTIONS, *options)
        self.now = [self._hire() for _ in range(size)]
        self.deaths = 0

    def _hire(self) -> Worker:
        worker = Worker(self.server, self.history, *self.options, concurrency=self.concurrency, lease_s=LEASE_S)
        self.all.append(worker)
        return worker

    def fix(self) -> None:
        """Replace who has died; a loop that stands still fails its liveness probe, and dies as well."""
        for place, worker in enumerate(self.now):
            if "falls silent" in worker.log and worker.process.poll() is None:
                worker.send(signal.SIGKILL)
                worker.process.wait()
            if worker.process.poll() is not None:
                self.deaths += 1
                self.now[place] = self._hire()


def add(raw: redis.Redis, kind: str, numbers: range, **payload: object) -> None:
    """Send jobs in one go."""
    pipeline = raw.pipeline(transaction=False)
    for n in numbers:
        pipeline.xadd(KEY, {"type": kind, "data": msgspec.json.encode({"n": n, **payload})})
    pipeline.execute()


def deliveries(history: Path) -> Counter[int]:
    """Return how often each number has started."""
    return Counter(event.n for event in events(history) if event.kind == "start")


def run_with_poison(
    server: Server,
    raw: redis.Redis,
    history: Path,
    workers: list[Worker],
    poison: list[dict[str, object]],
    innocents: int,
    ms: float,
) -> Crew:
    """Send innocents with the poison in their middle, keep the crew alive until all is settled, and judge."""
    crew = Crew(server, history, workers, 2, innocents + len(poison))
    for worker in crew.now:
        worker.wait_ready()
    add(raw, "scripted", range(innocents // 2), ms=ms)
    for n, payload in enumerate(poison):
        add(raw, "deadly", range(9000 + n, 9001 + n), **payload)
    add(raw, "scripted", range(innocents // 2, innocents), ms=ms)

    def is_over() -> bool:
        crew.fix()
        return not leftovers(raw)

    wait_until(is_over, 100, "all is settled")
    letters = [fields for _, fields in raw.xrange("{jobs}:dead")]
    assert sorted(msgspec.json.decode(letter["data"])["n"] for letter in letters) == [9000 + n for n in range(len(poison))]
    assert {letter["dead_reason"] for letter in letters} == {"poison"}
    for letter in letters:
        assert len(set(letter["dead_error"].partition(": ")[2].split(", "))) == 3, "it names the three workers that died of it"
    assert {event.n for event in events(history) if event.kind == "end"} == set(range(innocents)), "every innocent ran"
    runs = deliveries(history)
    crew.fix()  # the last to die of it may not have been buried yet
    assert max(runs[n] for n in range(innocents)) <= 1 + crew.deaths, (crew.deaths, runs.most_common(5))
    assert raw.exists("{jobs}:strikes") == 0
    wait_until(lambda: not raw.exists("{jobs}:wards"), what="the isolation is given up")
    again = sum(runs[n] - 1 for n in range(innocents))
    print(f"{len(poison)} poison, {innocents} innocents: {crew.deaths} deaths, {again} innocents ran again")
    return crew


@pytest.mark.timeout(150)
def test_one_of_60_jobs_in_flight_segfaults_and_alone_is_dead(valkey, tmp_path, crew):
    with valkey.client() as raw:
        run_with_poison(valkey, raw, tmp_path, crew, [{"how": "segfault", "ms": 50}], 60, 100)


@pytest.mark.long
@pytest.mark.timeout(200)
def test_one_of_500_jobs_in_flight_segfaults_and_alone_is_dead(server, raw, tmp_path, crew):
    run_with_poison(server, raw, tmp_path, crew, [{"how": "segfault", "ms": 100}], 500, 400)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["abort", "kill", "spin"])
def test_whatever_ends_or_blocks_the_process_is_found(valkey, tmp_path, crew, how):
    with valkey.client() as raw:
        run_with_poison(valkey, raw, tmp_path, crew, [{"how": how, "ms": 20}], 60, 100)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_fast_and_slow_poison_among_innocents(valkey, tmp_path, crew):
    """The slow one dies long after its first isolation, with others beside it."""
    poison = [{"how": "segfault"}, {"how": "abort", "ms": 30}, {"how": "segfault", "ms": 900}]
    with valkey.client() as raw:
        run_with_poison(valkey, raw, tmp_path, crew, poison, 200, 100)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", [1, 2])
def test_a_slow_killer_is_found_and_no_long_job_beside_it_is_dead_lettered(valkey, tmp_path, crew, size):
    """It kills six isolations late at first; the innocents take three times as long, and start again at each death."""
    options = ("--suspect", "0.2")
    with valkey.client() as raw:
        workers = Crew(valkey, tmp_path, crew, size, 10, *options)
        for worker in workers.now:
            worker.wait_ready()
        add(raw, "scripted", range(3), ms=3600)
        add(raw, "deadly", range(9000, 9001), how="kill", ms=1200)
        add(raw, "scripted", range(3, 6), ms=3600)

        def is_over() -> bool:
            workers.fix()
            return not leftovers(raw)

        wait_until(is_over, 200, "all is settled")
        ((_, letter),) = raw.xrange("{jobs}:dead")
        assert (letter["type"], letter["dead_reason"]) == ("deadly", "poison")
        assert {event.n for event in events(tmp_path) if event.kind == "end"} == set(range(6)), "every innocent ran"
        assert raw.exists("{jobs}:strikes") == 0
        print(f"a killer after 1.2 s on {size} workers, isolation from 0.2 s: {workers.deaths} deaths")


def test_the_death_of_a_child_process_stays_in_the_child(valkey, tmp_path, crew):
    with valkey.client() as raw:
        worker = Worker(valkey, tmp_path, *OPTIONS)
        crew.append(worker)
        worker.wait_ready()
        add(raw, "contained", range(1), how="segfault")
        add(raw, "contained", range(1, 2), how="memory", bytes=1_000_000_000)
        add(raw, "contained", range(2, 3), how="well")
        add(raw, "scripted", range(3, 40), ms=300)
        wait_until(lambda: not leftovers(raw), what="all is settled")
        letters = {msgspec.json.decode(fields["data"])["n"]: fields for _, fields in raw.xrange("{jobs}:dead")}
        assert {n: letter["dead_reason"] for n, letter in letters.items()} == {0: "attempts", 1: "attempts"}
        assert "ChildKilled" in letters[0]["dead_error"]
        assert "MemoryError" in letters[1]["dead_error"]
        assert count(tmp_path, "end") == 38
        assert worker.process.poll() is None
