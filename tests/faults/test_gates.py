"""The short storm over types with limits, and the checker of it, each of whose rules turns a story red."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from runtime.store.base import Operation
from runtime.store.control import ControlStore
from tests.faults.checker import Verdict, leftovers_everywhere
from tests.faults.gated import GROUP_LIMIT, LIMIT, RATE, TYPE_LIMIT
from tests.faults.gates import KNOWN_S, blow, check_gates, most_within, peak_of, weather
from tests.faults.harness import Worker, hire
from tests.faults.ledger import Fault, Paused, Run, Starved, Story, read
from tests.faults.store_kit import add, ended, is_settled, on_each, own_server, second_runs, starts_of
from tests.servers import Server, wait_until

SEED = 20261
JOBS = 350


@pytest.mark.timeout(150)
async def test_gates_hold_over_kills_and_pauses(tmp_path: Path) -> None:
    server = Server("valkey", "--appendfsync", "always", appendonly=True)
    try:
        verdict = await blow(server, tmp_path, weather(JOBS), SEED)
    finally:
        server.stop()
    assert verdict.is_good, "\n".join(verdict.problems)
    assert verdict.hits["kill"] >= 3, f"a storm that hits nothing proves nothing: {verdict.faults}, of which hit {verdict.hits}"
    assert not [reason for reason in verdict.void if "capped" in reason], "its gate was full"


@on_each()
def test_a_pause_holds_over_an_outage_and_for_workers_that_come_after_it(kind: str, tmp_path: Path, crew: list[Worker]) -> None:
    options = ("--handlers", "tests.faults.jobs,tests.faults.gated")
    with own_server(kind, "--appendfsync", "always") as server, contextlib.closing(server.client()) as raw:
        order(server, ("pause", "pause:capped", "0"))
        hire(crew, server, tmp_path, *options)
        add(raw, 20, lambda n: 20, kind="capped")
        add(raw, 20, lambda n: 20, first=100)
        wait_until(lambda: ended(tmp_path) == {*range(100, 120)} and raw.xlen("{jobs}:medium") == 20, what="the others have run")
        server.kill()
        server.start()
        hire(crew, server, tmp_path, *options)
        for first in (200, 300):
            add(raw, 20, lambda n: 20, first=first)
            wait_until(lambda first=first: {*range(first, first + 20)} <= ended(tmp_path), what="the others go on")
        assert min(starts_of(tmp_path)) == 100, "nothing of the paused type has started"
        order(server, ("del", "pause:capped", ""))
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert {*range(20)} <= ended(tmp_path)
        assert second_runs(tmp_path) == 0
        spans = [(run.start_s, run.end_s) for run in read(tmp_path).runs if run.n < 100]
        assert peak_of(spans) == LIMIT
        wait_until(lambda: not leftovers_everywhere(raw, [worker.pid for worker in crew]), what="no permit and no lot is left")


def order(server: Server, operation: Operation) -> None:
    async def tell() -> None:
        store = ControlStore(server.url, "jobs")
        await store.order("test", "", [operation])
        await store.close()

    asyncio.run(tell())


def ran(n: int, kind: str, from_s: float, to_s: float, group: str = "-", granted_ms: int = 0, **more: int) -> Run:
    about = [kind, group, str(granted_ms or int(from_s * 1000))]
    return Run(more.get("pid", 1), n, 1, f"2/{n}-1", more.get("count", 1), from_s, to_s, "end", more=about)


def judge(*runs: Run, **more: Any) -> list[str]:
    verdict = Verdict(problems=[])
    check_gates(verdict, Story(runs=[*runs], **more))
    return verdict.problems


def test_as_many_as_the_limits_say_may_run_at_once_and_one_begins_where_another_ends() -> None:
    runs = [ran(n, "capped", at_s, at_s + 1) for at_s in (0.0, 1.0) for n in range(int(at_s) * 10, int(at_s) * 10 + LIMIT)]
    groups = [ran(100 + n, "grouped", 0, 1, "ab"[n // GROUP_LIMIT]) for n in range(TYPE_LIMIT)]
    assert judge(*runs, *groups) == []


def test_one_more_than_the_limit_at_once_is_found() -> None:
    [problem] = judge(*[ran(n, "capped", n / 10, 1) for n in range(LIMIT + 1)])
    assert problem == f"{LIMIT + 1} of capped ran at once, the limit is {LIMIT}"


def test_one_more_of_a_group_is_found_though_its_type_has_permits_left() -> None:
    [problem] = judge(*[ran(n, "grouped", n / 10, 1, "a") for n in range(GROUP_LIMIT + 1)])
    assert "grouped:a" in problem
    [problem] = judge(*[ran(n, "grouped", n / 10, 1) for n in range(TYPE_LIMIT + 1)])
    assert "of grouped ran" in problem


def test_what_was_killed_runs_until_then_and_not_longer() -> None:
    lost = [ran(n, "capped", 0, 0) for n in range(LIMIT)]
    for run in lost:
        run.outcome, run.end_s = "", float("inf")
    kill = Fault("kill", [1], 1.0, 1.1)
    assert judge(*lost, ran(50, "capped", 1.5, 2, pid=2), faults=[kill]) == []
    assert judge(*lost, ran(50, "capped", 0.5, 2, pid=2), faults=[kill]) != []


def test_a_number_that_runs_twice_at_the_same_time_is_found() -> None:
    assert judge(ran(1, "scripted", 0, 1), ran(1, "scripted", 1, 2, pid=2)) == []
    [problem] = judge(ran(1, "scripted", 0, 1), ran(1, "scripted", 0.9, 2, pid=2))
    assert problem.startswith("1 ran at ")


def test_one_more_start_within_a_second_than_the_rate_is_found_but_for_what_ran_before() -> None:
    runs = [ran(n, "paced", 0, 1, granted_ms=1000 + 10 * n) for n in range(RATE)]
    assert judge(*runs, ran(99, "paced", 1, 2, granted_ms=2000)) == []
    assert judge(*runs, ran(99, "paced", 1, 2, granted_ms=1999, count=2)) == [], "isolation charges no token"
    [problem] = judge(*runs, ran(99, "paced", 1, 2, granted_ms=1999))
    assert problem == f"{RATE + 1} of paced were let start within a second, the rate is {RATE}"


@pytest.mark.parametrize("what", ["capped", "medium"])
def test_what_starts_while_it_is_paused_is_found_once_all_must_know(what: str) -> None:
    pause = Paused(what, 10.0, 20.0)
    known_s = pause.from_s + KNOWN_S
    assert judge(ran(1, "capped", known_s - 0.1, 20), ran(2, "capped", 20.1, 21), pauses=[pause]) == []
    assert judge(ran(1, "paced", known_s + 0.1, 20), pauses=[Paused("capped", 10.0, 20.0)]) == []
    late = ran(1, "capped", known_s + 0.1, 20)
    [problem] = judge(late, pauses=[pause])
    assert "after the pause" in problem
    assert judge(late, pauses=[pause], starved=[Starved([1], known_s - 1, known_s)]) == []


def test_permits_and_lots_are_leftovers(server: Server) -> None:
    with server.client() as raw:
        for name in ("critical", "high", "medium", "low"):
            raw.xgroup_create(f"{{jobs}}:{name}", "workers", "0", mkstream=True)
        assert leftovers_everywhere(raw, ()) == {}
        raw.zadd("{jobs}:permits:capped", {"medium/1-1": 1})
        raw.xgroup_createconsumer("{jobs}:medium", "workers", "~g:capped")
        raw.set("{jobs}:rate:paced", "1")
        raw.set("{jobs}:rate:other", "1", px=60_000)
        assert set(leftovers_everywhere(raw, ())) == {
            "key {jobs}:permits:capped",
            "medium consumer ~g:capped",
            "keys without an end",
        }


def test_the_most_of_a_window_and_of_a_moment() -> None:
    assert most_within([0, 999, 1000, 1001], 1000) == 3
    assert most_within([], 1000) == 0
    assert peak_of([]) == 0
    assert peak_of([(0, 2), (1, 3), (2, 4)]) == 2
