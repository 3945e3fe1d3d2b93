"""Batches when their process dies: each job runs again by its own lease, and of a batch that kills none is condemned but one."""

from __future__ import annotations

import signal
from collections import Counter

import msgspec
import pytest

from tests.faults.harness import events, hire, leftovers
from tests.faults.test_poison import Crew, add, deliveries
from tests.servers import wait_until

OPTIONS = ("--handlers", "tests.faults.batched", "--suspect", "0.5", "--max-block", "1")


def test_what_a_killed_worker_ran_together_runs_once_more_each_by_itself(server, raw, tmp_path, crew):
    first = hire(crew, server, tmp_path, *OPTIONS, lease_s=0.8)
    add(raw, "batched", range(60), ms=60_000)
    wait_until(lambda: sum(deliveries(tmp_path).values()) == 60, what="all run, in three batches")
    first.send(signal.SIGKILL)
    first.process.wait()
    assert raw.xlen("{jobs}:medium") == 60
    hire(crew, server, tmp_path, *OPTIONS, lease_s=0.8)
    wait_until(lambda: sum(deliveries(tmp_path).values()) == 120, 60, "each runs once more")
    attempts = Counter(event.attempt for event in events(tmp_path) if event.kind == "start")
    assert attempts == {1: 120}, "the kill has burnt no attempt"


@pytest.mark.timeout(150)
def test_of_a_batch_that_kills_its_process_the_culprit_alone_is_dead(valkey, tmp_path, crew):
    with valkey.client() as raw:
        workers = Crew(valkey, tmp_path, crew, 2, 20, "--handlers", "tests.faults.batched")
        for worker in workers.now:
            worker.wait_ready()
        add(raw, "batched", range(30), ms=50)
        add(raw, "batched", range(9000, 9001), ms=50, kills=True)
        add(raw, "batched", range(30, 60), ms=50)

        def is_over() -> bool:
            workers.fix()
            return not leftovers(raw)

        wait_until(is_over, 100, "all is settled")
        letters = [fields for _, fields in raw.xrange("{jobs}:dead")]
        assert [msgspec.json.decode(letter["data"])["n"] for letter in letters] == [9000]
        assert [letter["dead_reason"] for letter in letters] == ["poison"]
        assert {event.n for event in events(tmp_path) if event.kind == "end"} == set(range(60)), "every innocent ran"
