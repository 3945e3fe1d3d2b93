"""The store is full, or somebody lays hands on its keys: what was accepted ends, what is refused is refused in plain words."""

from __future__ import annotations

import contextlib
import time

import pytest
import redis

from runtime.errors import QueueFull, StoreUnavailable
from tests.faults.harness import LEASE_S, count, hire
from tests.faults.store_kit import (
    GROUP,
    SmallDisk,
    add,
    calls,
    ended,
    is_settled,
    lines_of,
    on_each,
    own_server,
    refusal,
    second_runs,
    starts_of,
)
from tests.servers import wait_until

KEY = "{jobs}:medium"
BRIEF_S = 0.9


# --- full ------------------------------------------------------------------------------------------------------------------


@on_each(short="redis")
def test_with_memory_full_what_is_there_ends_and_what_is_new_is_refused(kind, tmp_path, crew):
    with own_server(kind) as server:
        raw = server.client()
        hire(crew, server, tmp_path, concurrency=50)
        add(raw, 300, lambda n: 300)
        add(raw, 40, lambda n: 5, first=300, failures=1)
        wait_until(lambda: count(tmp_path, "start") > 0, what="the worker works")
        raw.config_set("maxmemory", raw.info("memory")["used_memory"] // 2)
        with pytest.raises(redis.OutOfMemoryError):
            raw.xadd(KEY, {"type": "scripted", "data": '{"n":9999}'})
        # A machine that is busy may take longer to connect than the producer's patience: then it is asked again.
        wait_until(lambda: isinstance(refusal(server), QueueFull), what="it is said that memory is full")
        assert len(ended(tmp_path)) < 250, "most is still to come"
        wait_until(lambda: is_settled(raw), what="all is settled, though memory is full")
        wait_until(lambda: isinstance(refusal(server), QueueFull), what="it is still full")
        assert ended(tmp_path) == set(range(340))
        assert starts_of(tmp_path) == {n: 1 if n < 300 else 2 for n in range(340)}
        raw.config_set("maxmemory", 0)
        assert refusal(server) is None
        wait_until(lambda: 9999 in ended(tmp_path), what="what is sent then runs")


@on_each()
def test_with_the_disk_full_for_two_leases_nothing_is_lost_and_nothing_runs_twice(kind, tmp_path, crew):
    with own_server(kind, made=SmallDisk) as server:
        raw = server.client()
        for _ in range(2):
            hire(crew, server, tmp_path, lease_s=BRIEF_S)
        add(raw, 200, lambda n: BRIEF_S * 1000 * (0.3 + 0.7 * (n % 5)))
        wait_until(lambda: count(tmp_path, "start") == 200, what="all run")
        server.fill()
        wait_until(lambda: is_refused(raw), what="the server refuses to write")
        time.sleep(2 * BRIEF_S)
        error = refusal(server)
        assert isinstance(error, StoreUnavailable)
        assert "MISCONF" in str(error)
        assert len(ended(tmp_path)) > 100, "handlers run on"
        server.enlarge()
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert ended(tmp_path) >= set(range(200))
        again = second_runs(tmp_path)
        print(f"{kind}: {again} of 200 ran twice")
        assert again <= 2
        assert len(lines_of(crew)) <= 2 * 8, lines_of(crew)


def is_refused(raw: redis.Redis) -> bool:
    try:
        raw.set("{jobs}:nothing", "", px=1)
    except redis.ResponseError as error:
        return "MISCONF" in str(error)
    return False


# --- keys that are gone -----------------------------------------------------------------------------------------------------


def flush_all(raw: redis.Redis) -> None:
    raw.flushall()


def delete_the_streams(raw: redis.Redis) -> None:
    raw.delete(KEY, "{jobs}:low")


def destroy_the_groups(raw: redis.Redis) -> None:
    raw.xgroup_destroy(KEY, GROUP)
    raw.xgroup_destroy("{jobs}:low", GROUP)


@pytest.mark.parametrize("erase", [flush_all, delete_the_streams, destroy_the_groups])
@on_each()
def test_groups_that_vanish_while_readers_wait_are_made_again_at_the_beginning(kind, erase, tmp_path, crew):
    with own_server(kind) as server, contextlib.closing(server.client()) as raw:
        for _ in range(2):
            hire(crew, server, tmp_path)
        add(raw, 10, lambda n: 0)
        wait_until(lambda: is_settled(raw), what="the workers work")
        wait_until(lambda: readers_wait(raw) == 2, what="both wait at the bell")
        raw.config_resetstat()
        erase(raw)
        add(raw, 10, lambda n: 0, first=10)
        add(raw, 10, lambda n: 0, first=20, to="low")
        wait_until(lambda: is_settled(raw), what="what was added in between is worked off")
        assert ended(tmp_path) == set(range(30))
        assert second_runs(tmp_path) == 0
        assert calls(raw, "xgroup|create") <= 4 * 2 * 2, "each of two workers tries once or twice"
        assert len(lines_of(crew)) <= 2 * 6, lines_of(crew)


def readers_wait(raw: redis.Redis) -> int:
    return raw.info("clients")["blocked_clients"]


@on_each()
def test_the_groups_vanish_while_200_jobs_run_and_those_who_hold_them_run_on(kind, tmp_path, crew):
    with own_server(kind) as server, contextlib.closing(server.client()) as raw:
        hire(crew, server, tmp_path, concurrency=250)
        add(raw, 200, lambda n: 500 + LEASE_S * 1000 * (n % 2))
        wait_until(lambda: count(tmp_path, "start") == 200, what="all run")
        destroy_the_groups(raw)
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert ended(tmp_path) == set(range(200))
        assert second_runs(tmp_path) == 0


@on_each()
def test_running_jobs_that_somebody_erased_are_cut_and_the_worker_works_on(kind, tmp_path, crew):
    with own_server(kind) as server, contextlib.closing(server.client()) as raw:
        worker = hire(crew, server, tmp_path)
        add(raw, 50, lambda n: 60_000)
        wait_until(lambda: count(tmp_path, "start") == 50, what="all run")
        raw.flushall()
        wait_until(lambda: worker.log.count("lost the lease") >= 20, what="the runs without a job are cut")
        add(raw, 100, lambda n: 0, first=50)
        wait_until(lambda: ended(tmp_path) == set(range(50, 150)), what="new jobs find free lanes")
        wait_until(lambda: is_settled(raw), what="all is settled")


@pytest.mark.long
def test_a_string_in_a_streams_place_is_named_once_and_the_other_streams_are_served(valkey, tmp_path, crew):
    raw = valkey.client()
    worker = hire(crew, valkey, tmp_path)
    wait_until(lambda: readers_wait(raw) == 1, what="it waits at the bell")
    raw.set(KEY, "not a stream")
    add(raw, 20, lambda n: 0, to="high")
    wait_until(lambda: len(ended(tmp_path)) == 20, what="the other streams are served all the same")
    wait_until(lambda: KEY in worker.log, what="the alarm names the key")
    raw.config_resetstat()
    time.sleep(3)
    fetches = calls(raw, "xreadgroup")  # a fetch asks each of the four streams
    assert fetches <= 4 * 4 * 2, "about once a second, with jitter"
    raw.delete(KEY)
    add(raw, 20, lambda n: 0, first=20)
    wait_until(lambda: len(ended(tmp_path)) == 40, what="all run when it is gone")
    assert worker.log.count("WRONGTYPE") == 1, worker.log
    assert len(lines_of(crew)) <= 8, lines_of(crew)


@pytest.mark.long
@on_each()
def test_retries_whose_stream_is_a_string_wait_apart_with_few_lines_until_it_is_gone(kind, tmp_path, crew):
    with own_server(kind) as server, contextlib.closing(server.client()) as raw:
        hire(crew, server, tmp_path)
        add(raw, 20, lambda n: 1500 + 50 * n, failures=1)
        wait_until(lambda: count(tmp_path, "start") == 20, what="they run")
        raw.set(KEY, "not a stream")
        wait_until(lambda: count(tmp_path, "fail") == 20, what="they fail")
        time.sleep(10)
        lines = lines_of(crew)
        failures = [line for line in lines if "failed attempt" in line]
        assert len(lines) - len(failures) <= 8, lines
        raw.delete(KEY)
        add(raw, 20, lambda n: 0, first=20)
        add(raw, 20, lambda n: 0, first=40, to="high")
        wait_until(lambda: ended(tmp_path) == set(range(20, 60)), what="new jobs run; those that were overwritten are gone")
        wait_until(lambda: is_settled(raw), what="nothing is left")
