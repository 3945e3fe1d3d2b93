"""The measurements of types with limits: how near they come to what they may, what Redis is asked for it, and what others pay."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Final

from bench.gated import JOB_S, LIMIT, RATE, RUNS_VARIABLE, runs_in
from bench.lab import PAYLOAD, STREAM, WORKERS, Server, Worker
from runtime.store.base import GROUP, Operation, script
from runtime.store.control import ControlStore

Figures = dict[str, float]
LANES: Final = ("--concurrency", "500")
GATED: Final = ("--handlers", "bench.noop,bench.gated")
BUSY: Final = 10_000  # jobs of one group
OTHERS: Final = 20  # a guess: jobs of other groups, one after the other
TRICKLE_PER_S: Final = 60.0  # a little more than the limit lets through
LOT: Final = "~g:noop"
PARK: Final = """
local taken = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1000, 'STREAMS', KEYS[1], '>')
if not taken then return 0 end
local words = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
for _, row in ipairs(taken[1][2]) do words[#words + 1] = row[1] end
for _, word in ipairs({'RETRYCOUNT', 0, 'JUSTID'}) do words[#words + 1] = word end
redis.call(unpack(words))
return 1
"""


def limit(processes: int, seconds: float) -> Figures:
    """Run jobs of a tenth of a second, five at once, for so long; return the peak, and the ideal time as a part of that used."""
    jobs = int(seconds * LIMIT / JOB_S)
    with _recorded() as runs, Server() as server, _workers(server, runs, processes) as worker:
        server.fill(jobs, STREAM, b"capped")
        worker.wait_for(lambda: server.left() == 0, "the last job")
        worker.wait_for(lambda: not server.client.keys("{jobs}:permits:*"), "the last permit")
        worker.stop(jobs)
        lots = [one for one in server.client.xinfo_consumers(STREAM, GROUP) if one["name"].startswith(b"~")]
        server.check_empty()
        found = runs_in(runs)
    took_s = (max(run[1] for run in found) - min(run[0] for run in found)) / 1e9
    return {"peak": peak_of([run[:2] for run in found]), "of_ideal": jobs / LIMIT * JOB_S / took_s, "lots": len(lots)}


def rate(processes: int, seconds: float) -> Figures:
    """Let more wait than may start; return the most that Redis granted in a second, and how many in ten while jobs wait."""
    jobs = int(2 * RATE * seconds)
    with _recorded() as runs, Server() as server, _workers(server, runs, processes) as worker:
        server.fill(jobs, STREAM, b"paced")
        worker.wait_for(lambda: 0 < server.left() < jobs * 9 // 10, "the first jobs")
        calls = _serves(server, seconds / 2)
        worker.wait_for(lambda: server.left() == 0, "the last job")
        worker.stop(jobs)
        granted_ms = sorted(run[2] for run in runs_in(runs))
    window_ms = int(seconds * 1000)
    within = [_within(granted_ms, at, window_ms) for at in range(len(granted_ms)) if granted_ms[at] + window_ms <= granted_ms[-1]]
    return {
        "most_per_s": max(_within(granted_ms, at, 1000) for at in range(len(granted_ms))),
        "least_per_10_s": min(within) / seconds * 10,
        "most_per_10_s": max(within) / seconds * 10,
        "calls_per_s": calls / processes,
    }


def shut(seconds: float) -> Figures:
    """Return how often Redis is asked for a gate that a job keeps shut, while others wait and nobody settles one."""
    with _recorded() as runs, Server() as server, _workers(server, runs, 1) as worker:
        server.fill(20, STREAM, b"shut")
        worker.wait_for(lambda: server.client.xpending(STREAM, GROUP)["pending"] == 20, "all are parked but one")
        time.sleep(1)  # what follows the parking
        return {"shut_calls_per_s": _serves(server, seconds)}


def groups() -> Figures:
    """Return after how long jobs of other groups start: of one right behind ten thousand of a busy group, and of some later."""
    with _recorded() as runs, Server() as server, _workers(server, runs, 1) as worker:
        began_ns = [_send(server, 1, BUSY)]
        began_ns.append(_send(server, 2, 1))
        worker.wait_for(lambda: _started(runs, 2) > 0, "the job right behind")
        for group in range(3, 3 + OTHERS):
            began_ns.append(_send(server, group, 1))
            worker.wait_for(lambda group=group: _started(runs, group) > 0, "a job of another group")
        waited_s = [(_started(runs, group) - began_ns[group - 1]) / 1e9 for group in range(2, 3 + OTHERS)]
        return {"behind_s": waited_s[0], "later_s": max(waited_s[1:]), "busy_left": float(server.waiting())}


def beside(jobs: int) -> Figures:
    """Drain no-ops while jobs with a limit trickle in, and while as many without one do, in turn."""
    runs = [_drain(jobs // 2, is_gated) for is_gated in (False, True, True, False)]
    plain, gated = (runs[0], runs[3]), runs[1:3]

    def mean(some: Sequence[Figures], name: str) -> float:
        return sum(run[name] for run in some) / len(some)

    return {
        "jobs_per_s": mean(gated, "jobs_per_s"),
        "of_plain": mean(gated, "jobs_per_s") / mean(plain, "jobs_per_s"),
        "us_of_plain": mean(gated, "worker_us") / mean(plain, "worker_us"),
        "worker_us": mean(gated, "worker_us"),
        "server_us": mean(gated, "server_us"),
    }


def resume(jobs: int, plain_per_s: float) -> Figures:
    """Park jobs whose type is paused, resume it, and return the rate from the first job on, and its part of the plain drain's."""
    with Server() as server:
        server.fill(jobs)
        server.client.xgroup_create(STREAM, GROUP, "0")
        park = server.client.register_script(PARK)
        while park(keys=[STREAM], args=[GROUP, LOT]):
            pass
        _order(server, ("pause", "pause:noop", "0"))
        with Worker(server, *LANES) as worker:
            worker.wait_for(lambda: server.client.zcard(WORKERS) > 1, "the worker's row")
            time.sleep(2)  # it has looked at the rules and the lots
            resumed_s = time.perf_counter()
            _order(server, ("del", "pause:noop", ""))
            worker.wait_for(lambda: server.waiting() < jobs, "the first job")
            first_s, before = time.perf_counter(), server.waiting()
            worker_s, server_s = worker.cpu_s(), server.cpu_s()
            worker.wait_for(lambda: server.left() == 0, "the last job")
            seconds = time.perf_counter() - first_s
            worker_s, server_s = worker.cpu_s() - worker_s, server.cpu_s() - server_s
            worker.stop(jobs)
        server.check_empty()
    return {
        "jobs_per_s": before / seconds,
        "of_plain": before / seconds / plain_per_s,
        "start_s": first_s - resumed_s,
        "worker_us": worker_s / before * 1e6,
        "server_us": server_s / before * 1e6,
    }


# --- what they share -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _recorded() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        runs = Path(folder) / "runs"
        runs.touch()
        yield runs


@contextlib.contextmanager
def _workers(server: Server, runs: Path, processes: int) -> Generator[Worker]:
    """Start so many processes, and wait until all have registered; the set's other member is their guard."""
    with Worker(server, *LANES, *GATED, "--processes", str(processes), variables={RUNS_VARIABLE: str(runs)}) as worker:
        worker.wait_for(lambda: server.client.zcard(WORKERS) > processes, "the workers' rows")
        yield worker


def _serves(server: Server, seconds: float) -> float:
    """Return how often a second the script `serve` is called."""
    word, found = script("serve").sha.encode(), b""
    with server.connect() as watch:
        watch.sendall(b"*1\r\n$7\r\nMONITOR\r\n")
        watch.settimeout(0.1)
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            with contextlib.suppress(TimeoutError):
                found += watch.recv(1 << 16)
    return found.count(word) / seconds


def _send(server: Server, group: int, jobs: int) -> int:
    """Send jobs of a group; return when, in ns."""
    pipe = server.client.pipeline(transaction=False)
    for _ in range(jobs):
        pipe.xadd(STREAM, {"type": "grouped", "data": PAYLOAD, "group": str(group)})
    sent_ns = time.time_ns()
    pipe.execute()
    return sent_ns


def _started(runs: Path, group: int) -> int:
    """Return when the first of a group began, in ns; 0 where none has ended yet."""
    return min((run[0] for run in runs_in(runs) if run[3] == group), default=0)


def _drain(jobs: int, is_gated: bool) -> Figures:
    over = threading.Event()
    with Server() as server:
        trickle = threading.Thread(target=_trickle, args=(server, b"capped" if is_gated else b"nap", over))
        server.fill(jobs)
        with Worker(server, *LANES, *(GATED if is_gated else ())) as worker:
            worker.wait_for(lambda: server.waiting() < jobs, "the first job")
            began_s, worker_s, server_s = time.perf_counter(), worker.cpu_s(), server.cpu_s()
            before = server.waiting()
            trickle.start()
            worker.wait_for(lambda: server.waiting() < before // 20, "almost the last no-op")
            seconds = time.perf_counter() - began_s
            worker_s, server_s = worker.cpu_s() - worker_s, server.cpu_s() - server_s
            over.set()
            trickle.join()
            before -= before // 20
    return {
        "jobs_per_s": before / seconds,
        "worker_us": worker_s / before * 1e6,
        "server_us": server_s / before * 1e6,
    }


def _trickle(server: Server, type_name: bytes, over: threading.Event) -> None:
    while not over.wait(1 / TRICKLE_PER_S):
        server.client.xadd(STREAM, {"type": type_name, "data": PAYLOAD})


def _order(server: Server, operation: Operation) -> None:
    async def order() -> None:
        store = ControlStore(server.url, "jobs")
        try:
            await store.order("bench", "", [operation])
        finally:
            await store.close()

    asyncio.run(order())


def peak_of(spans: Sequence[Sequence[int]]) -> int:
    """Return how many of these times from and to there were at once."""
    now = peak = 0
    for _, step in sorted((at, step) for span in spans for at, step in zip(span, (1, -1), strict=True)):
        now += step
        peak = max(peak, now)
    return peak


def _within(times: Sequence[int], first: int, window: int) -> int:
    """Return how many of these times, in order, lie in a window that begins with one of them."""
    return sum(1 for time in times[first : first + 4 * RATE * window // 1000] if time < times[first] + window)
