"""The measurements: each starts a server and workers, checks that every job ran, and returns figures by name."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable, Coroutine
from functools import cached_property
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import msgspec
import uvloop

from bench import gates, page, raw, traced
from bench.bulk import BULK
from bench.lab import PAYLOAD, ROOT, STREAM, STREAMS, WORKERS, BenchError, Server, Worker, xadd
from bench.noop import LATENCY_VARIABLE, TURNS_VARIABLE, Answer, Noop
from runtime.producer import Message, Producer

Figures = dict[str, float]
LANES: Final = ("--concurrency", "500")
BURSTS: Final = 20  # a guess: enough for a steady sum
LOW_WAITING: Final = 100_000
CRITICAL_PER_S: Final = 200  # as in `latency`
SENDERS: Final = 100  # a guess: a busy web process
WARM_S: Final = 2.0  # a guess: several rounds of maintenance and heartbeats
TICK_S: Final = 0.001  # the sleep that the system keeps on time
NOOP: Final = Noop(to="ada@example.com", subject="Hi", text="x" * 51)
BURST: Final = "for n = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'type', 'noop', 'data', ARGV[2]) end"


class Round:
    """One run of all rows. What several rows refer to is measured once per round, so that ratios are of the same minute.

    `jobs` scales everything; `has_raw` tells whether there is a C client.
    """

    def __init__(self, jobs: int, *, has_raw: bool) -> None:
        self.jobs = jobs
        self.has_raw = has_raw

    @property
    def seconds(self) -> float:
        """How long the rows that are bound by time take: 10 s for a million jobs, less for fewer."""
        return max(1.0, min(10.0, self.jobs / 100_000))

    @cached_property
    def plain(self) -> Figures:
        """The drain of one stream without persistence."""
        return self.drain()

    @cached_property
    def many(self) -> Figures:
        """The same with five times as many waiting, and how the worker's memory grows."""
        return _beside(self.plain, _drain(self.jobs * 5))

    @cached_property
    def latency(self) -> Figures:
        """From just before the XADD to the handler's start, at 200 jobs/s."""
        return _latency(200, self.seconds)

    @cached_property
    def busy_latency(self) -> Figures:
        """The same at half of what the drain of this round reached."""
        rate = int(self.plain["jobs_per_s"] / 2)
        return {**_latency(rate, self.seconds / 2), "rate_per_s": rate}

    def critical(self) -> Figures:
        """Return how long CRITICAL waits while LOW has all other lanes, and how long a lane is free then."""
        return _critical(self.seconds)

    def traced(self) -> Figures:
        """Return traced drains beside an untraced one, in turn."""
        return traced.drains(self.jobs)

    def collector_away(self) -> Figures:
        """Return drains in which all is traced and no collector takes it."""
        return traced.away(self.jobs)

    def spans(self) -> Figures:
        """Return what single spans cost, without Redis."""
        return traced.spans()

    def metrics(self) -> Figures:
        """Return what a page for Prometheus takes, without Redis."""
        return page.measure()

    def starving(self) -> Figures:
        """Return the part of LOW in what runs while HIGH has more."""
        return _starving(self.jobs // 2)

    def drain(self, *, appendonly: bool = False) -> Figures:
        """Drain one stream with the worker and with the C client, each on a new server."""
        figures = self._raw_drain(appendonly)
        figures |= _drain(self.jobs, appendonly=appendonly)
        if self.has_raw:
            figures["of_raw"] = figures["jobs_per_s"] / figures["raw_per_s"]
            figures["server_of_raw"] = figures["server_us"] / figures["raw_server_us"]
        return figures

    def _raw_drain(self, appendonly: bool) -> Figures:
        if not self.has_raw:
            return {}
        with Server(appendonly=appendonly) as server:
            server.fill(self.jobs)
            return raw.drain(server, self.jobs)

    def drain_durably(self) -> Figures:
        """Drain one stream with an append-only file."""
        return self.drain(appendonly=True)

    def priorities(self) -> Figures:
        """Drain the four streams, a quarter of the jobs in each."""
        return _beside(self.plain, _drain(self.jobs, streams=STREAMS))

    def few(self) -> Figures:
        """Send a hundredth of the jobs at a time to an idle worker."""
        return _beside(self.plain, _bursts(self.jobs // 100))

    def batches(self) -> Figures:
        """Drain jobs of a handler that takes a hundred at once."""
        return _beside(self.plain, _drain(self.jobs, type_name=b"bulk", options=BULK))

    def handoff(self) -> Figures:
        """Drain jobs each of which hands on another, which runs as well."""
        return _hand_on(self.jobs // 3)

    def results(self) -> Figures:
        """Drain jobs whose results are kept, and ask for results one by one, at 200 a second, of an idle worker."""
        return {**_beside(self.plain, _drain(self.jobs, type_name=b"answer")), **_round_trips(200, self.seconds)}

    def delayed(self) -> Figures:
        """Drain while a tenth as many jobs are delayed by an hour."""
        return _beside(self.plain, _drain(self.jobs, delayed=self.jobs // 10))

    def naps(self) -> Figures:
        """Drain jobs that sleep for 10 ms."""
        return _drain(self.jobs * 3 // 10, type_name=b"nap", options=("--reserved", "0"))

    def failures(self) -> Figures:
        """Drain jobs that fail once each; the rate is of attempts."""
        figures = _drain(self.jobs // 10, type_name=b"flaky", attempts=2)
        return {**figures, "attempts_per_s": 2 * figures["jobs_per_s"]}

    def sends(self) -> Figures:
        """Send many at once, beside pipelined XADD of the C client."""
        jobs = self.jobs * 3 // 10
        figures: Figures = {}
        if self.has_raw:
            with Server() as server:
                figures |= raw.add(server, jobs)
        return {**figures, **_send(jobs, _send_many)}

    def single_sends(self) -> Figures:
        """Send one by one from a hundred tasks."""
        return _send(self.jobs // 20, _send_one_by_one)

    def memory(self) -> Figures:
        """Return the server's memory per waiting job."""
        return {"bytes_per_job": self.plain["bytes_per_job"]}

    def litter(self) -> Figures:
        """Return the peak memory of a worker and of a plain interpreter that make the same cycles."""
        return _litter(min(self.jobs // 50, 6_000))

    def idle(self) -> Figures:
        """Return the CPU, the commands and the memory of a worker with 500 idle lanes."""
        return _idle(self.seconds)

    def limit(self) -> Figures:
        """Run jobs of a type with a limit, over two processes and over four."""
        two, four = (gates.limit(processes, self.seconds) for processes in (2, 4))
        return two | {f"{name}_4": value for name, value in four.items()}

    def rate(self) -> Figures:
        """Run jobs of a type with a rate, over one process and over four; and ask how often a shut gate is looked at."""
        one, four = (gates.rate(processes, self.seconds) for processes in (1, 4))
        return one | {f"{name}_4": value for name, value in four.items()} | gates.shut(self.seconds / 2)

    def groups(self) -> Figures:
        """Return how long jobs of other groups wait beside a busy one."""
        return gates.groups()

    def beside_gates(self) -> Figures:
        """Drain while jobs of a type with a limit trickle in."""
        return gates.beside(self.jobs)

    def resume(self) -> Figures:
        """Drain what was parked while its type was paused."""
        return gates.resume(self.jobs, self.plain["jobs_per_s"])

    def processes(self) -> Figures:
        """Drain with two processes, and return how busy each side was."""
        return _beside(self.plain, _drain(self.jobs, options=("--processes", "2")))


def has_processes() -> bool:
    """Return whether `run` knows `--processes`."""
    command = [sys.executable, "-m", "runtime", "run", "--help"]
    return "--processes" in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _beside(plain: Figures, figures: Figures) -> Figures:
    """Return the figures with the part of the plain drain that they reach, and with its raw figures."""
    return {
        **{name: value for name, value in plain.items() if name.startswith("raw_")},
        **figures,
        "of_plain": figures["jobs_per_s"] / plain["jobs_per_s"],
    }


def _drain(
    jobs: int,
    *,
    appendonly: bool = False,
    streams: tuple[str, ...] = (STREAM,),
    type_name: bytes = b"noop",
    attempts: int = 1,
    delayed: int = 0,
    options: tuple[str, ...] = (),
) -> Figures:
    """Fill, then start a worker; return the time to the first job, and from there the rate and the CPU of both sides."""
    with Server(appendonly=appendonly) as server:
        empty_bytes = server.used_bytes()
        for stream in streams:
            server.fill(jobs // len(streams), stream, type_name)
        jobs = server.waiting()
        full_bytes = server.used_bytes()
        if delayed:
            _run(_delay(server.url, delayed))
        began_s = time.perf_counter()
        with Worker(server, *LANES, *options) as worker:
            worker.wait_for(lambda: server.waiting() < jobs, "the first job")
            first_s, before = time.perf_counter(), server.left() - delayed
            worker_s, server_s = worker.cpu_s(), server.cpu_s()
            worker.wait_for(lambda: server.left() - delayed <= before * 4 // 5, "a fifth of the jobs")
            early_rss_mb = worker.rss_mb()
            worker.wait_for(lambda: server.left() == delayed, "the last job")
            seconds = time.perf_counter() - first_s
            worker_s, server_s = worker.cpu_s() - worker_s, server.cpu_s() - server_s
            rss_mb = worker.rss_mb()
            worker.stop(jobs * attempts)
        server.check_empty(delayed)
    return {
        "jobs_per_s": before / seconds,
        "worker_us": worker_s / before * 1e6,
        "server_us": server_s / before * 1e6,
        "worker_cores": worker_s / seconds,
        "server_cores": server_s / seconds,
        "start_s": first_s - began_s,
        "rss_mb": rss_mb,
        "rss_growth_mb": rss_mb - early_rss_mb,
        "bytes_per_job": (full_bytes - empty_bytes) / jobs,
    }


def _hand_on(jobs: int) -> Figures:
    """Drain jobs that hand on another each; return the rate and the CPU per job and the one that it hands on together."""
    with Server() as server:
        server.fill(jobs, STREAM, b"handing")
        with Worker(server, *LANES) as worker:

            def handed() -> int:
                return server.client.xinfo_stream(STREAM)["entries-added"] - jobs

            worker.wait_for(lambda: handed() > 0, "the first one that is handed on")
            first_s, before = time.perf_counter(), jobs - handed()
            worker_s, server_s = worker.cpu_s(), server.cpu_s()
            worker.wait_for(lambda: handed() == jobs, "the last one that is handed on")  # these stand behind all that hand on
            handed_s = time.perf_counter() - first_s
            worker.wait_for(lambda: server.left() == 0, "the last job")
            seconds = time.perf_counter() - first_s
            worker_s, server_s = worker.cpu_s() - worker_s, server.cpu_s() - server_s
            worker.stop(2 * jobs)
        server.check_empty()
    return {
        "handed_per_s": before / handed_s,
        "jobs_per_s": before / seconds,
        "worker_us": worker_s / before * 1e6,
        "server_us": server_s / before * 1e6,
        "worker_cores": worker_s / seconds,
        "server_cores": server_s / seconds,
    }


def _litter(jobs: int) -> Figures:
    code = f"import resource\nfrom bench.noop import Node\nfor _ in range({jobs}): Node()\n"
    code += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)"
    plain = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    with Server() as server, Worker(server, *LANES) as worker:
        _warm(server, worker)
        server.fill(jobs, STREAM, b"litter")
        worker.wait_for(lambda: server.left() == 0, "the last job")
        peak_mb = worker.peak_mb()
        worker.stop(jobs)
        server.check_empty()
    return {"peak_mb": peak_mb, "plain_mb": float(plain.stdout), "of_plain": peak_mb / float(plain.stdout)}


def _bursts(jobs: int) -> Figures:
    """Put jobs into the stream in one step, and wait until a worker that was idle has run them; `BURSTS` times."""
    with Server() as server, Worker(server, *LANES) as worker:
        burst = server.client.register_script(BURST)
        _warm(server, worker)
        runs, seconds, server_s, worker_s = 0, 0.0, 0.0, worker.cpu_s()
        for _ in range(BURSTS):
            burst(keys=[STREAM], args=[jobs, PAYLOAD])
            began_s, used_s = time.perf_counter(), server.cpu_s()
            worker.wait_for(lambda: server.left() == 0, "the last job of a burst", TICK_S)
            seconds += time.perf_counter() - began_s
            server_s += server.cpu_s() - used_s
            runs += jobs
        worker_s = worker.cpu_s() - worker_s
        worker.stop(runs)
        server.check_empty()
    return {"jobs_per_s": runs / seconds, "worker_us": worker_s / runs * 1e6, "server_us": server_s / runs * 1e6}


def _latency(rate_per_s: int, seconds: float) -> Figures:
    """Send at a steady rate, with the time of the send in each job; return quantiles of the latency."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Server() as server:
        waits = Path(folder) / "waits"
        with Worker(server, *LANES, variables={LATENCY_VARIABLE: str(waits)}) as worker:
            _warm(server, worker)
            jobs = _pace(server, rate_per_s, seconds)
            worker.wait_for(lambda: server.left() == 0, "the last job")
            worker.stop(jobs)
        return _quantiles(waits, jobs)


def _round_trips(rate_per_s: int, seconds: float) -> Figures:
    """Return quantiles of the time from just before a send to its result, whose handler does nothing."""
    with Server() as server:
        with Worker(server, *LANES) as worker:
            _warm(server, worker)
            waits_ms = _run(_ask(server.url, rate_per_s, seconds))
            worker.stop(None)
        parts = quantiles(waits_ms, n=100)
        return {"p50_ms": parts[49], "p99_ms": parts[98], "worst_ms": max(waits_ms)}


async def _ask(url: str, rate_per_s: int, seconds: float) -> list[float]:
    loop, message = asyncio.get_running_loop(), Answer(**msgspec.structs.asdict(NOOP))
    async with Producer.connect(url) as producer:

        async def ask() -> float:
            began_s = loop.time()
            await producer.result(await producer.send(message))
            return (loop.time() - began_s) * 1000

        await ask()  # it is connected then
        begin_s, asked = loop.time(), list[asyncio.Task[float]]()
        for at in range(int(rate_per_s * seconds)):
            await asyncio.sleep(begin_s + at / rate_per_s - loop.time())
            asked.append(asyncio.create_task(ask()))
        return await asyncio.gather(*asked)


def _quantiles(waits: Path, jobs: int) -> Figures:
    waits_ms = [wait_ns / 1e6 for wait_ns in array("q", waits.read_bytes())]
    if len(waits_ms) != jobs:
        raise BenchError(f"{len(waits_ms)} of {jobs} jobs recorded when they began")
    parts = quantiles(waits_ms, n=100)
    return {"p50_ms": parts[49], "p99_ms": parts[98], "worst_ms": max(waits_ms)}


def _critical(seconds: float) -> Figures:
    """Let LOW fill all lanes that it may have, and send CRITICAL at a steady rate."""
    critical, low = STREAMS[0], STREAMS[-1]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, Server() as server:
        waits, turns = Path(folder) / "waits", Path(folder) / "turns"
        server.fill(LOW_WAITING, low, b"slow")
        with Worker(server, *LANES, variables={LATENCY_VARIABLE: str(waits), TURNS_VARIABLE: str(turns)}) as worker:
            worker.wait_for(lambda: server.waiting() < LOW_WAITING, "the first job")
            time.sleep(WARM_S)
            jobs = _pace(server, CRITICAL_PER_S, seconds, critical)
            worker.wait_for(lambda: not server.client.xlen(critical), "the last job of CRITICAL")
            still_low = server.client.xlen(low)
            worker.stop(None)
        if not still_low:
            raise BenchError("no job of LOW waited any more when the last one of CRITICAL had run")
        return {**_quantiles(waits, jobs), "freed_p99_ms": _free_ms(array("q", turns.read_bytes()))}


def _free_ms(turns_ns: array[int]) -> float:
    """Return the 99th percentile of how long lanes were free, until the last start: the first to be free is the first taken."""
    starts = [at for at in turns_ns if at > 0]
    ends = [-at for at in turns_ns if at < 0]
    lanes = turns_ns.index(next(at for at in turns_ns if at < 0))  # so many ran at once before the first one ended
    free_ms = [(start - end) / 1e6 for start, end in zip(starts[lanes:], ends, strict=False)]
    return quantiles(free_ms, n=100)[98]


def _starving(jobs: int) -> Figures:
    """Drain HIGH and LOW with as many of each; return what part LOW has in the first half of HIGH."""
    high, low = STREAMS[1], STREAMS[-1]
    with Server() as server:
        for stream in (high, low):
            server.fill(jobs, stream)
        with Worker(server, *LANES) as worker:
            worker.wait_for(lambda: server.client.xlen(high) <= jobs // 2, "half of HIGH")
            of_high, of_low = (jobs - server.client.xlen(stream) for stream in (high, low))
            worker.wait_for(lambda: server.left() == 0, "the last job")
            worker.stop(2 * jobs)
        server.check_empty()
    return {"low_percent": 100 * of_low / (of_high + of_low)}


def _pace(server: Server, rate_per_s: int, seconds: float, stream: str = STREAM) -> int:
    """Send at a rate, in steps of a millisecond or of one job; return how many were sent."""
    step_s = max(TICK_S, 1 / rate_per_s)
    began_s, sent, lines = time.perf_counter(), 0, 0
    with server.connect() as connection:
        connection.setblocking(False)
        while (now_s := time.perf_counter() - began_s) < seconds or lines < 2 * sent:  # an answer is a length and an id
            due = int(min(now_s, seconds) * rate_per_s) - sent
            if due > 0:
                text = b'{"sent_ns":%d,"text":"%s"}' % (time.time_ns(), b"x" * 61)
                connection.setblocking(True)
                connection.sendall(xadd(stream, b"timed", text) * due)
                connection.setblocking(False)
                sent += due
            with contextlib.suppress(BlockingIOError):
                lines += connection.recv(1 << 18).count(b"\n")
            time.sleep(max(0.0, began_s + (int(now_s / step_s) + 1) * step_s - time.perf_counter()))
    return sent


def _idle(seconds: float) -> Figures:
    """Watch an idle worker; commands that it sends and commands that its scripts call are counted apart."""
    with Server() as server, Worker(server, *LANES) as worker:
        _warm(server, worker)
        time.sleep(WARM_S)
        with server.connect() as watch:
            watch.sendall(b"*1\r\n$7\r\nMONITOR\r\n")
            watch.settimeout(0.1)
            worker_s, end_s, monitored = worker.cpu_s(), time.perf_counter() + seconds, b""
            while time.perf_counter() < end_s:
                with contextlib.suppress(TimeoutError):
                    monitored += watch.recv(1 << 16)
            worker_s = worker.cpu_s() - worker_s
        lines = monitored.splitlines()[1:]
        inner = sum(b" lua] " in line for line in lines)
        rss_mb = worker.rss_mb()
        worker.stop(0)
    return {
        "cpu_percent": worker_s / seconds * 100,
        "commands_per_s": (len(lines) - inner) / seconds,
        "inner_per_s": inner / seconds,
        "rss_mb": rss_mb,
    }


def _warm(server: Server, worker: Worker) -> None:
    """Wait until the worker has registered; the set's other member is its guard."""
    worker.wait_for(lambda: server.client.zcard(WORKERS) > 1, "the worker's row")


def _send(jobs: int, send: Callable[[Producer, int], Awaitable[object]]) -> Figures:
    """Send from this process, on the loop that workers use; return the rate, and the CPU of both sides."""

    async def measure(url: str) -> tuple[float, float]:
        async with Producer.connect(url) as producer:
            began_s, used_s = time.perf_counter(), time.process_time()
            await send(producer, jobs)
            return time.perf_counter() - began_s, time.process_time() - used_s

    with Server() as server:
        server_s = server.cpu_s()
        seconds, producer_s = _run(measure(server.url))
        server_s = server.cpu_s() - server_s
        if server.waiting() != jobs:
            raise BenchError(f"{server.waiting()} of {jobs} jobs were stored")
    return {"sent_per_s": jobs / seconds, "producer_us": producer_s / jobs * 1e6, "server_us": server_s / jobs * 1e6}


async def _send_many(producer: Producer, jobs: int) -> None:
    await producer.send_many(NOOP for _ in range(jobs))


async def _send_one_by_one(producer: Producer, jobs: int) -> None:
    left = iter(range(jobs))

    async def sender() -> None:
        for _ in left:
            await producer.send(NOOP)

    async with asyncio.TaskGroup() as group:
        for _ in range(SENDERS):
            group.create_task(sender())


async def _delay(url: str, jobs: int) -> None:
    async with Producer.connect(url) as producer:
        await producer.send_many(Message(payload=NOOP, delay_s=3600) for _ in range(jobs))


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
