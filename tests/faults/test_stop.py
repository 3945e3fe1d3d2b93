"""Stopping: within the grace, nothing lost, nothing burnt; and with the store away, all the same."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest

from tests.faults.harness import count, events, hire, leftovers
from tests.faults.store_kit import add, ended, is_settled, own_server
from tests.servers import Server, wait_until

KEY = "{jobs}:medium"


def counts(raw) -> dict[tuple[str, int], int]:
    rows = raw.xpending_range(KEY, "workers", "-", "+", 10_000)
    found: dict[tuple[str, int], int] = {}
    for row in rows:
        at = (row["consumer"], row["times_delivered"])
        found[at] = found.get(at, 0) + 1
    return found


def test_sigterm_with_500_running_jobs_lets_them_finish_and_loses_nothing(server, raw, tmp_path, crew):
    worker = hire(crew, server, tmp_path, "--grace", "10", concurrency=500)
    for n in range(1200):
        raw.xadd(KEY, {"type": "scripted", "data": f'{{"n":{n},"ms":1000}}'})
    wait_until(lambda: count(tmp_path, "start") >= 500, what="500 run")
    began_s = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began_s < 10
    assert "stopped in" in worker.log.splitlines()[-1]
    started, ended = count(tmp_path, "start"), count(tmp_path, "end")
    assert started == ended
    assert raw.xlen(KEY) == 1200 - ended, "what had not started is still there"
    assert all(name == "~free" and times == 0 for name, times in counts(raw)), "given back without a delivery counted"
    assert raw.exists("{jobs}:workers:rows") == 0, "the worker is forgotten"
    hire(crew, server, tmp_path, concurrency=500)
    wait_until(lambda: not leftovers(raw), what="another worker runs the rest")
    assert sorted(event.n for event in events(tmp_path) if event.kind == "end") == list(range(1200))
    assert all(event.attempt == 1 for event in events(tmp_path))


def test_what_the_grace_does_not_suffice_for_is_cut_and_given_back_without_burning_an_attempt(server, raw, tmp_path, crew):
    worker = hire(crew, server, tmp_path, "--grace", "0.3")
    for n in range(20):
        raw.xadd(KEY, {"type": "scripted", "data": f'{{"n":{n},"ms":30000}}'})
    wait_until(lambda: count(tmp_path, "start") == 20, what="20 run")
    assert worker.stop() == 0
    assert counts(raw) == {("~free", 0): 20}
    assert raw.zcard("{jobs}:due") == raw.xlen("{jobs}:dead") == 0


def test_a_thread_that_cannot_be_cut_is_given_back_and_does_not_keep_the_process(server, raw, tmp_path, crew):
    worker = hire(crew, server, tmp_path, "--grace", "0.2")
    raw.xadd(KEY, {"type": "threaded", "data": '{"n":1,"ms":60000}'})
    wait_until(lambda: count(tmp_path, "start") == 1, what="it runs")
    assert worker.stop() == 0
    assert counts(raw) == {("~free", 0): 1}


def test_a_handler_that_swallows_its_cancel_is_given_back_and_does_not_keep_the_process(server, raw, tmp_path, crew):
    worker = hire(crew, server, tmp_path, "--grace", "0.2", "--handlers", "tests.faults.saboteur")
    raw.xadd(KEY, {"type": "hinder", "data": '{"n":1}'})
    wait_until(lambda: count(tmp_path, "start") == 1, what="it runs, beside a thread and a hook that hang")
    assert worker.stop() == 0, worker.log
    assert count(tmp_path, "cut") == 1, "it was told to end"
    assert "stopped in" in worker.log.splitlines()[-1]
    assert counts(raw) == {("~free", 0): 1}


def test_a_second_signal_skips_the_grace(server, raw, tmp_path, crew):
    worker = hire(crew, server, tmp_path, "--grace", "60")
    raw.xadd(KEY, {"type": "scripted", "data": '{"n":1,"ms":60000}'})
    wait_until(lambda: count(tmp_path, "start") == 1, what="it runs")
    worker.send(signal.SIGTERM)
    wait_until(lambda: "stopping" in worker.log, what="it begins to stop")
    worker.send(signal.SIGTERM)
    assert worker.process.wait(60) == 0
    assert counts(raw) == {("~free", 0): 1}


def test_the_hard_deadline_holds_with_a_server_that_does_not_answer(tmp_path, crew):
    server = Server("valkey")
    try:
        worker = hire(crew, server, tmp_path, "--grace", "0.5")
        assert server.process
        server.process.send_signal(signal.SIGSTOP)
        began_s = time.monotonic()
        assert worker.stop() in (0, 4)
        assert time.monotonic() - began_s < 30
    finally:
        server.process.send_signal(signal.SIGCONT)
        server.stop()


def test_500_jobs_that_a_stop_cuts_off_are_given_back_and_run_elsewhere_as_if_nothing_had_been(valkey, tmp_path, crew):
    raw = valkey.client()
    worker = hire(crew, valkey, tmp_path, "--grace", "0.5", "--reserved", "0", concurrency=500)
    add(raw, 700, lambda n: 1700)
    wait_until(lambda: count(tmp_path, "start") == 500, what="500 run")
    assert worker.stop() == 0
    assert "left to their leases" not in worker.log
    assert set(counts(raw)) == {("~free", 0)}, "none is left to a lease, and no delivery is counted"
    hire(crew, valkey, tmp_path, concurrency=700)
    wait_until(lambda: is_settled(raw), what="another worker runs them all")
    assert ended(tmp_path) == set(range(700))
    assert {(event.attempt, event.rest[1]) for event in events(tmp_path) if event.kind == "start"} == {(1, "1")}
    raw.close()


@pytest.mark.long
@pytest.mark.parametrize("signals", [1, 2])
def test_500_running_jobs_and_a_server_that_does_not_answer_keep_no_process_and_lose_nothing(tmp_path, crew, signals):
    grace_s = 1.0 if signals == 1 else 60.0
    with own_server("valkey") as server, contextlib.closing(server.client()) as raw:
        worker = hire(crew, server, tmp_path, "--grace", str(grace_s), "--reserved", "0", concurrency=500)
        add(raw, 700, lambda n: 3000)
        wait_until(lambda: count(tmp_path, "start") == 500, what="500 run")
        assert server.process
        server.process.send_signal(signal.SIGSTOP)
        try:
            worker.send(signal.SIGTERM)
            if signals == 2:
                wait_until(lambda: "stopping" in worker.log, what="it begins to stop")
                worker.send(signal.SIGTERM)
            assert worker.process.wait(5 + (grace_s if signals == 1 else 0)) in (0, 4)
        finally:
            server.process.send_signal(signal.SIGCONT)
        hire(crew, server, tmp_path, "--suspect", "0.3", concurrency=700)  # they run in isolation
        wait_until(lambda: is_settled(raw), what="another worker runs what is left")
        assert ended(tmp_path) == set(range(700))
        assert all(event.attempt == 1 for event in events(tmp_path)), "no attempt is burnt"


def test_the_hard_deadline_holds_when_a_handler_holds_the_loop(valkey, tmp_path, crew):
    raw = valkey.client()
    worker = hire(crew, valkey, tmp_path, "--grace", "0.2")
    raw.xadd(KEY, {"type": "blocking", "data": '{"n":1,"ms":60000}'})
    wait_until(lambda: count(tmp_path, "start") == 1, what="it blocks the loop")
    assert worker.stop() == 4
    assert "hard deadline" in worker.log
    assert raw.xlen(KEY) == 1, "it runs again, when the lease is over"
    raw.close()


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_with_nothing_to_do_stops_at_once(valkey, tmp_path, crew, signals):
    worker = hire(crew, valkey, tmp_path)
    began_s = time.monotonic()
    for _ in range(signals):
        worker.send(signal.SIGINT)
    assert worker.process.wait(60) == 0
    assert time.monotonic() - began_s < 15, "the grace is longer"
