"""Long jobs, frozen workers, blocked loops, restarted servers: who may run and move a job."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.contract.snapshot import STREAMS
from tests.faults.harness import LEASE_S, count, events, hire, leftovers
from tests.faults.store_kit import SetClock, add, ended, is_settled, own_server, second_runs, starts_of
from tests.servers import KINDS, Server, wait_until

KEY = "{jobs}:medium"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path


def test_a_job_three_leases_long_on_a_healthy_worker_runs_once(server, raw, history, crew):
    for _ in range(2):
        hire(crew, server, history)
    raw.xadd(KEY, {"type": "scripted", "data": f'{{"n":1,"ms":{3 * LEASE_S * 1000}}}'})
    wait_until(lambda: count(history, "end") == 1, what="the long job ends")
    wait_until(lambda: not leftovers(raw), what="it is settled")
    assert count(history, "start") == 1


def test_a_worker_frozen_for_two_leases_neither_moves_nor_steals_back_its_job(server, raw, history, crew):
    zombie = hire(crew, server, history)
    raw.xadd(KEY, {"type": "held", "data": '{"n":1,"failures":1}', "attempts": "9"})
    wait_until(lambda: count(history, "start") == 1, what="the job starts")
    zombie.send(signal.SIGSTOP)
    hire(crew, server, history)
    wait_until(lambda: count(history, "start") == 2, what="another worker runs it")
    [owner] = [row["consumer"] for row in raw.xpending_range(KEY, "workers", "-", "+", 10)]
    zombie.send(signal.SIGCONT)
    wait_until(lambda: "lost the lease" in zombie.log, what="the zombie learns that it lost its lease")
    assert [row["consumer"] for row in raw.xpending_range(KEY, "workers", "-", "+", 10)] == [owner], "not stolen back"
    (history / "go").touch()
    wait_until(lambda: not leftovers(raw), what="the job is settled")
    attempts = sorted((event.attempt, event.pid == zombie.process.pid) for event in events(history) if event.kind == "fail")
    assert attempts == [(1, False)], "the frozen run was cut, and its failure was never counted"
    assert count(history, "end") == 1


def test_a_settle_that_comes_too_late_is_refused(server, raw, history, crew):
    """The zombie's job fails the moment it wakes, before its heartbeat can tell: only the fence stops the move."""
    zombie = hire(crew, server, history)
    raw.xadd(KEY, {"type": "blocking", "data": '{"n":1,"ms":1000}', "id": "b"})
    wait_until(lambda: count(history, "start") == 1, what="the job starts")
    zombie.send(signal.SIGSTOP)
    [row] = raw.xpending_range(KEY, "workers", "-", "+", 10)
    raw.xclaim(KEY, "workers", "somebody-else", 0, [row["message_id"]])
    raw.xadd(KEY, {"type": "scripted", "data": '{"n":2,"ms":0}'})
    zombie.send(signal.SIGCONT)
    wait_until(lambda: count(history, "end") >= 1, what="the zombie ends its run")
    zombie.stop()
    assert raw.xlen("{jobs}:dead") == 0
    assert raw.zcard("{jobs}:due") == 0


def test_a_handler_that_blocks_the_loop_keeps_its_lease_and_is_named_with_its_line(server, raw, history, crew):
    worker = hire(crew, server, history, lease_s=0.9)
    hire(crew, server, history, lease_s=0.9)
    raw.xadd(KEY, {"type": "blocking", "data": '{"n":1,"ms":2000}'})
    wait_until(lambda: count(history, "end") == 1, what="the blocking job ends")
    wait_until(lambda: not leftovers(raw), what="it is settled")
    assert count(history, "start") == 1, "nobody else took it"
    logs = crew[0].log + crew[1].log
    assert "handler of blocking" in logs
    lines = Path(__file__).with_name("jobs.py").read_text().splitlines()
    number = next(at for at, line in enumerate(lines, 1) if "time.sleep(message" in line)
    assert f"jobs.py:{number} in blocking" in logs
    assert worker.process.poll() is None


def test_jobs_survive_a_restart_of_the_server_without_a_burst_of_second_runs(valkey_on_disk, history, crew):
    raw = valkey_on_disk.client()
    for _ in range(2):
        hire(crew, valkey_on_disk, history)
    for n in range(100):
        raw.xadd(KEY, {"type": "scripted", "data": f'{{"n":{n},"ms":5000}}'})
    wait_until(lambda: count(history, "start") == 100, what="all run")
    valkey_on_disk.kill()
    wait_until(lambda: (crew[0].log + crew[1].log).count("store is away") >= 1, what="an outage is seen")
    valkey_on_disk.start()
    wait_until(lambda: count(history, "end") >= 100, what="all end")
    wait_until(lambda: not leftovers(raw), what="all are settled")
    assert count(history, "start") == 100
    raw.close()


# --- the server's clock is set ----------------------------------------------------------------------------------------------

HOUR_S = 3600
SET_FORWARD = """
for s = 1, 4 do
  for _, row in ipairs(redis.call('XPENDING', KEYS[s], 'workers', '-', '+', 1000)) do
    redis.call('XCLAIM', KEYS[s], 'workers', row[2], 0, row[1], 'TIME', ARGV[2] - ARGV[1], 'JUSTID')
  end
end
for _, name in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do redis.call('ZINCRBY', KEYS[5], -ARGV[1], name) end
"""
STAND_STILL = """
for s = 1, 4 do
  for _, row in ipairs(redis.call('XPENDING', KEYS[s], 'workers', '-', '+', 1000, ARGV[1])) do
    redis.call('XCLAIM', KEYS[s], 'workers', ARGV[1], 0, row[1], 'JUSTID')
  end
end
"""


def set_clock_forward(raw: redis.Redis, by_s: float) -> None:
    """Make every time that is stored older, in one step: what a clock that is set forward does."""
    now_ms = raw.time()[0] * 1000
    raw.eval(SET_FORWARD, 5, *[f"{{jobs}}:{name}" for name in STREAMS], "{jobs}:workers", int(by_s * 1000), now_ms)


def test_a_clock_set_an_hour_forward_robs_nobody_and_holds_reclaim_for_no_hour(valkey, history, crew):
    raw = valkey.client()
    for _ in range(2):
        hire(crew, valkey, history, lease_s=0.9)
    add(raw, 40, lambda n: 1500)
    wait_until(lambda: count(history, "start") == 40, what="all run")
    for _ in range(3):
        set_clock_forward(raw, HOUR_S)
        time.sleep(0.2)
    wait_until(lambda: is_settled(raw), what="all is settled")
    assert second_runs(history) == 0
    add(raw, 40, lambda n: 1500, first=40)
    wait_until(lambda: len(starts_of(history)) == 80, what="the next ones run")
    crew[0].kill()
    wait_until(lambda: is_settled(raw), what="what the dead worker held runs elsewhere")
    assert ended(history) == set(range(80))
    raw.close()


@pytest.mark.long
def test_a_clock_set_an_hour_back_does_not_keep_the_jobs_of_a_dead_worker_for_an_hour(valkey, history, crew):
    """Its row ends an hour from now, and its entries look as if they had just been renewed, until the clock has caught up."""
    raw = valkey.client()
    dead = hire(crew, valkey, history, lease_s=0.9)
    add(raw, 10, lambda n: 60_000)
    wait_until(lambda: count(history, "start") == 10, what="all run")
    [name] = {row["consumer"] for row in raw.xpending_range(KEY, "workers", "-", "+", 10)}
    dead.kill()
    for member in (name, "~last", "~since"):
        raw.zincrby("{jobs}:workers", HOUR_S * 1000, member)
    hire(crew, valkey, history, lease_s=0.9)
    keys = [f"{{jobs}}:{stream}" for stream in STREAMS]

    def is_taken_over() -> bool:
        raw.eval(STAND_STILL, 4, *keys, name)
        return second_runs(history) == 10

    wait_until(is_taken_over, what="they run elsewhere")
    wait_until(lambda: name not in raw.zrange("{jobs}:workers", 0, -1), what="the dead worker is forgotten")
    raw.close()


@pytest.mark.long
@pytest.mark.parametrize("by_s", [HOUR_S, -HOUR_S])
@pytest.mark.parametrize("kind", KINDS)
def test_a_real_clock_is_set_while_jobs_run_and_again_when_a_worker_has_died(kind, by_s, history, crew):
    with own_server(kind, made=SetClock) as server, contextlib.closing(server.client()) as raw:
        for _ in range(3):
            hire(crew, server, history)
        add(raw, 90, lambda n: 2.5 * LEASE_S * 1000)
        wait_until(lambda: count(history, "start") == 90, what="all run")
        told_s = raw.time()[0]
        server.set_clock(by_s)
        wait_until(lambda: abs(raw.time()[0] - told_s - by_s) < 60, what="the clock is set")
        wait_until(lambda: is_settled(raw), what="all is settled")
        assert second_runs(history) == 0
        add(raw, 90, lambda n: 2.5 * LEASE_S * 1000, first=90)
        wait_until(lambda: count(history, "start") == 180, what="the next ones run")
        dead = crew[0].process.pid
        held = {event.n for event in events(history) if event.pid == dead and event.kind == "start" and event.n >= 90}
        assert held
        crew[0].kill()
        server.set_clock(2 * by_s)
        wait_until(lambda: is_settled(raw), what="what the dead worker held runs elsewhere, within leases and not in an hour")
        assert ended(history) == set(range(180))
        assert {n for n, times in starts_of(history).items() if times > 1} <= held, "nobody else is robbed"


def test_a_delivery_that_comes_after_a_lease_of_silence_is_not_run(server, raw, history, crew):
    """The frozen worker wakes with a job in its socket that another one has run since."""
    frozen = hire(crew, server, history)
    wait_until(lambda: raw.exists("{jobs}:workers:rows"), what="it works")
    for n in range(50):
        frozen.send(signal.SIGSTOP)
        raw.xadd(KEY, {"type": "scripted", "data": f'{{"n":{n},"ms":0}}'})
        if raw.xpending(KEY, "workers")["pending"]:  # it was blocked in a read
            break
        frozen.send(signal.SIGCONT)
        wait_until(lambda: not leftovers(raw), what="it is back in its read")
    else:
        raise AssertionError("it never waited in a read")
    hire(crew, server, history)
    wait_until(lambda: not leftovers(raw), what="another worker runs it")
    started = count(history, "start")
    frozen.send(signal.SIGCONT)
    lived_until = dict(raw.zrange("{jobs}:workers", 0, -1, withscores=True))
    wait_until(lambda: dict(raw.zrange("{jobs}:workers", 0, -1, withscores=True)) != lived_until, what="somebody beats")
    raw.xadd(KEY, {"type": "scripted", "data": '{"n":99,"ms":0}'})
    assert frozen.stop() == 0
    wait_until(lambda: not leftovers(raw), what="all is settled")
    assert count(history, "start") == started + 1, "only the last job ran"


@pytest.fixture
def valkey_on_disk() -> Iterator[Server]:
    server = Server("valkey", "--appendfsync", "always", appendonly=True)
    yield server
    server.stop()
