"""Measures one run of one peer (enqueue, drain, latency), and starts the server that all share."""

from __future__ import annotations

import json
import mmap
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import redis

from bench.peers.roster import HERE, ROOT, Peer, Unusable
from runtime.embedded import find_server

# Guesses, all of them: far more than any peer needs where it is a deadline, far less than a run where it is a pause.
PACED_PER_S = 200  # that of `python -m bench`
PACED_WARM = 50  # the first ones open connections and are not counted
CLIENT_S = 120.0  # for a client to send everything
START_S = 60.0  # for a worker to run its first job
STALL_S = 15.0  # without a new job: those that are missing then are lost
LOOK_S = 0.005  # between two looks at the marks
RECOUNT_S = 1.0  # without progress of the first missing job, until all marks are counted
SETTLE_S = 0.5  # for repeated jobs to show up

Figures = dict[str, float]


@contextmanager
def server() -> Generator[Any]:
    """Run a server on a free port, without persistence, and yield a client of it; both end with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen([find_server(dict(os.environ)), *options], stdout=subprocess.DEVNULL)
        client: Any = redis.Redis(port=port, protocol=2)
        try:
            while not _answers(client):
                if process.poll() is not None:
                    raise SystemExit("peers: the server ended at its start")
                time.sleep(0.02)
            yield client
        finally:
            process.kill()
            process.wait()


def _answers(client: Any) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


class Run:
    """One run of one peer: its marks, its environment, and the processes that it starts."""

    def __init__(self, peer: Peer, client: Any, folder: Path, paced: int) -> None:
        self.peer, self.client, self.jobs, self.paced = peer, client, peer.jobs, paced
        self.marks = folder / "marks"
        self.starts_at = -(-peer.jobs // 8) * 8
        self.marks.write_bytes(bytes(self.starts_at + 8 * paced))
        with self.marks.open("rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.log = folder / f"{peer.name}.log"
        self.environment = {
            **os.environ,
            "PEERS_PORT": str(client.connection_pool.connection_kwargs["port"]),
            "PEERS_MARKS": str(self.marks),
            "PEERS_JOBS": str(peer.jobs),
            "PEERS_PACED": str(paced),
            "PEERS_CONCURRENCY": str(peer.concurrency),
            "PEERS_ENV": str(peer.env),
            "PYTHONPATH": f"{HERE}:{ROOT}" if peer.is_ours else str(HERE),
        }

    def produce(self, role: str, first: int, end: int, *more: str) -> Any:
        """Run the peer's client to its end and return what it printed.

        Raises:
            Unusable: it failed, or took longer than `CLIENT_S`.
        """
        command = [*self.peer.command(), role, str(first), str(end), *more]
        with self.log.open("ab") as log:
            try:
                done = subprocess.run(
                    command, cwd=HERE, env=self.environment, stdout=subprocess.PIPE, stderr=log, timeout=CLIENT_S, check=False
                )
            except subprocess.TimeoutExpired:
                raise Unusable(f"its client took over {CLIENT_S:g} s for `{role}`") from None
        if done.returncode:
            raise Unusable(f"its client failed at `{role}`: {self._log_tail()}")
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def worker(self) -> Generator[subprocess.Popen[bytes]]:
        """Run a worker in a session of its own, which ends with the block."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*self.peer.command(), "work"], cwd=HERE, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            for pid in _session(process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()

    def counts(self) -> bytes:
        """Return how often each job of the drain has run, a byte each."""
        return self.memory[: self.jobs]

    def done(self) -> int:
        """Return how many jobs of the drain have run."""
        return self.jobs - self.counts().count(0)

    def measure(self) -> Figures:
        """Enqueue, drain, and measure the latency.

        Raises:
            Unusable: the peer cannot be measured.
        """
        self.client.flushall()
        figures: Figures = {}
        one = self.jobs // 4 if self.peer.bulk else self.jobs
        figures["one_per_s"] = one / self.produce("one", 0, one)
        if self.peer.bulk:
            figures["bulk_per_s"] = (self.jobs - one) / self.produce("bulk", one, self.jobs)
        with self.worker() as worker:
            figures |= self._drain(worker)
            if self.done() == self.jobs:
                figures |= self._latency()
        counts = self.counts()
        figures["lost"] = counts.count(0)
        figures["repeated"] = self.jobs - counts.count(0) - counts.count(1)
        return figures

    def _drain(self, worker: subprocess.Popen[bytes]) -> Figures:
        """Return the rate and the CPU from the first finished job that is noticed to the last one.

        Counting all marks at every look would take a core from those that are measured: while it moves, the first job that has
        not run tells the progress well enough.
        """
        moved_s, seen, first, position = time.perf_counter(), 0, None, 0
        while (position := self.memory.find(b"\0", position, self.jobs)) >= 0:
            now_s = time.perf_counter()
            done = position if position > seen or now_s - moved_s < RECOUNT_S else self.done()
            if done > seen:
                first = first or (now_s, self.done(), _cpu_s(worker.pid), self._server_cpu_s())
                seen, moved_s = done, now_s
            elif worker.poll() is not None:
                raise Unusable(f"its worker ended after {seen} jobs: {self._log_tail()}")
            elif now_s - moved_s > (STALL_S if seen else START_S):
                break
            time.sleep(LOOK_S)
        else:
            moved_s = time.perf_counter()
        worker_s, server_cpu_s = _cpu_s(worker.pid), self._server_cpu_s()
        time.sleep(SETTLE_S)
        if first is None:
            raise Unusable(f"its worker ran no job, or all of them between two looks: {self._log_tail()}")
        if position >= 0:
            return {}  # a rate of the others would mislead; the lost ones are reported
        began_s, before, cpu_s, server_s = first
        jobs = max(self.jobs - before, 1)
        return {
            "drain_per_s": jobs / max(moved_s - began_s, 1e-6),
            "worker_us": (worker_s - cpu_s) / jobs * 1e6,
            "server_us": (server_cpu_s - server_s) / jobs * 1e6,
        }

    def _latency(self) -> Figures:
        """Return quantiles of the time from just before a send to the start of its handler."""
        sent_ns = self.produce("latency", self.jobs, self.jobs + self.paced, str(PACED_PER_S))
        end_s = time.monotonic() + STALL_S
        while not all(started_ns := self._starts()) and time.monotonic() < end_s:
            time.sleep(0.02)
        pairs = list(zip(sent_ns, started_ns, strict=True))[PACED_WARM:]
        lost = sum(not started for _, started in pairs)
        if lost:
            return {"paced_lost": lost}
        cuts_ms = quantiles([(started - sent) / 1e6 for sent, started in pairs], n=100)
        return {"p50_ms": cuts_ms[49], "p99_ms": cuts_ms[98]}

    def _starts(self) -> list[int]:
        return memoryview(self.memory[self.starts_at :]).cast("q").tolist()

    def _server_cpu_s(self) -> float:
        used = self.client.info("cpu")
        return used["used_cpu_user"] + used["used_cpu_sys"]

    def _log_tail(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return " / ".join(line.strip() for line in lines[-2:]) or "no output"


def _session(leader: int) -> list[int]:
    """Return the processes of a session that this program started."""
    return [pid for pid, fields in _processes() if int(fields[3]) == leader]


def _cpu_s(leader: int) -> float:
    """Return the CPU time of a worker with all its processes, also those that have ended."""
    return sum(sum(map(int, fields[11:15])) for _, fields in _processes() if int(fields[3]) == leader) / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
