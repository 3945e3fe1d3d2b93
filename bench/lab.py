"""Starts the servers and workers that are measured, as users start them, and reads their CPU time and memory from the system."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import redis

from runtime.embedded import find_server

ROOT: Final = Path(__file__).parents[1]
STREAM: Final = "{jobs}:medium"
STREAMS: Final = ("{jobs}:critical", "{jobs}:high", STREAM, "{jobs}:low")
DUE, DEAD, WORKERS = "{jobs}:due", "{jobs}:dead", "{jobs}:workers"
PAYLOAD: Final = b'{"to":"ada@example.com","subject":"Hi","text":"' + b"x" * 51 + b'"}'  # 100 bytes
FILL_CHUNK: Final = 1000  # a guess: jobs per send, 150 KB
POLL_S: Final = 0.005  # a guess: 0.5 % of a drain of 1 s, and too rare to cost the server anything
DEADLINE_S: Final = 300.0  # a guess: only a fault takes that long
STOP_S: Final = 60.0  # a guess: twice the grace of a worker


class BenchError(Exception):
    """A row cannot be measured, or other jobs ran than were sent."""


def wait_for(is_true: Callable[[], bool], what: str, every_s: float = POLL_S, deadline_s: float = DEADLINE_S) -> None:
    """Poll until the condition holds.

    Raises:
        BenchError: it did not within the deadline.
    """
    end_s = time.monotonic() + deadline_s
    while not is_true():
        if time.monotonic() > end_s:
            raise BenchError(f"{what}: not within {deadline_s:.0f} s")
        time.sleep(every_s)


def server_binary() -> str:
    """Return the server to measure on: the one that `RUNTIME_REDIS_SERVER` names, the system's Redis, or the bundled Valkey."""
    return os.environ.get("RUNTIME_REDIS_SERVER") or shutil.which("redis-server") or find_server({})


class Server:
    """A server on a loopback port, without persistence unless `appendonly`; it ends with the block."""

    def __init__(self, *, appendonly: bool = False) -> None:
        self._folder = tempfile.mkdtemp(prefix="bench-")
        self.port = _free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder]
        options += ["--appendonly", "yes" if appendonly else "no", "--appendfsync", "everysec"]
        self._process = subprocess.Popen([server_binary(), *options], stdout=subprocess.DEVNULL)
        self.client: Any = redis.Redis(port=self.port, protocol=2)

    def __enter__(self) -> Self:
        wait_for(self._answers, "the server's first answer", deadline_s=10)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.client.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"the server ended with status {self._process.returncode}")
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def cpu_s(self) -> float:
        """Return the CPU time that the server has used."""
        used = self.client.info("cpu")
        return used["used_cpu_user"] + used["used_cpu_sys"]

    def used_bytes(self) -> int:
        """Return the memory that the server's data takes."""
        return self.client.info("memory")["used_memory"]

    def waiting(self) -> int:
        """Return how many entries are in the four streams, running ones among them."""
        return sum(self._sizes()[:-1])

    def left(self) -> int:
        """Return how many jobs are not finished: waiting, running or delayed."""
        return sum(self._sizes())

    def _sizes(self) -> list[int]:
        pipe = self.client.pipeline()  # one transaction: a job that moves between two of these is counted in one
        for stream in STREAMS:
            pipe.xlen(stream)
        return pipe.zcard(DUE).execute()

    def check_empty(self, delayed: int = 0) -> None:
        """Check that no job is left but `delayed` ones.

        Raises:
            BenchError: a job waits or is dead, or another number is delayed.
        """
        waiting, dead, due = self.waiting(), self.client.xlen(DEAD), self.client.zcard(DUE)
        if waiting or dead or due != delayed:
            raise BenchError(f"{waiting} jobs wait, {dead} are dead, {due} are delayed instead of {delayed}")

    def connect(self) -> socket.socket:
        """Return a socket that is connected to the server."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def fill(
        self,
        jobs: int,
        stream: str = STREAM,
        type_name: bytes = b"noop",
        payload: bytes = PAYLOAD,
        fields: Sequence[bytes] = (),
    ) -> None:
        """Put jobs onto a stream by XADD, as fast as the server takes them: one buffer, sent repeatedly.

        Raises:
            BenchError: the server refuses one.
        """
        command = xadd(stream, type_name, payload, fields)
        with self.connect() as connection:
            for start in range(0, jobs, FILL_CHUNK):
                chunk = min(FILL_CHUNK, jobs - start)
                connection.sendall(command * chunk)
                lines = 2 * chunk  # an answer is a length and an id
                while lines:
                    got = connection.recv(1 << 18)
                    if not got or got.startswith(b"-") or b"\n-" in got:
                        raise BenchError(f"XADD answers {got[:80]!r}")
                    lines -= got.count(b"\n")


def xadd(stream: str, type_name: bytes, payload: bytes, fields: Sequence[bytes] = ()) -> bytes:
    """Return the RESP bytes of the command that sends one job, with more fields and values in turn."""
    words = [b"XADD", stream.encode(), b"*", b"type", type_name, b"data", payload, *fields]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Worker:
    """A worker process with its children, and their CPU time and memory."""

    def __init__(
        self, server: Server, *options: str, variables: dict[str, str] | None = None, under: tuple[str, ...] = ()
    ) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 -- closed by stop
        command = [sys.executable, *(under or ("-m",)), "runtime", "run", "--redis", server.url, "--handlers", "bench.noop"]
        command += ["--board", "off", "--log-level", "error", *options]
        environment = {**os.environ, **(variables or {})}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def wait_for(self, is_true: Callable[[], bool], what: str, every_s: float = POLL_S) -> None:
        """Poll until the condition holds.

        Raises:
            BenchError: the worker ended, or the condition did not hold within the deadline.
        """

        def check() -> bool:
            if self._process.poll() is not None:
                raise BenchError(f"the worker ended with status {self._process.returncode}: {self._read_log()}")
            return is_true()

        wait_for(check, what, every_s)

    def cpu_s(self) -> float:
        """Return the CPU time of all its processes."""
        return sum(_cpu_s(pid) for pid in self._processes())

    def rss_mb(self) -> float:
        """Return the resident memory of all its processes."""
        pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._processes())
        return pages * resource.getpagesize() / 1e6

    def peak_mb(self) -> float:
        """Return the peak of the resident memory of its processes; only on Linux."""
        texts = [Path(f"/proc/{pid}/status").read_text() for pid in self._processes()]
        return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("VmHWM:")) / 1e3

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self, runs: int | None) -> None:
        """Stop the worker by SIGTERM, and compare the number of runs with that in its last log line; None is any number.

        Raises:
            BenchError: another number, or the worker did not stop cleanly.
        """
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(STOP_S)
        log = self._read_log()
        found = re.findall(r"(\d+) runs finished", log)
        if status or not found:
            raise BenchError(f"the worker ended with status {status}: {log}")
        if runs is not None and sum(map(int, found)) != runs:
            raise BenchError(f"{sum(map(int, found))} runs instead of {runs}")

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].strip()

    def _processes(self) -> list[int]:
        found = [self._process.pid]
        for pid in found:
            found += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_model() -> str:
    """Return the name of the processor."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def commit() -> str:
    """Return the commit that is measured, marked if files differ from it."""
    result = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude", "*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or "unknown"
