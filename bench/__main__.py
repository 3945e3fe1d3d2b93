"""`python -m bench`: drain, idle memory and start of one worker, each beside the raw Redis figure of the same run.

Figures of shared machines are noisy: medians with minimum and maximum, and ratios, are what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import redis

from runtime.embedded import find_server

ROOT = Path(__file__).parents[1]
STREAM = "{jobs}:medium"
PAYLOAD = json.dumps({"to": "ada@example.com", "subject": "Hi", "text": "x" * 49}, separators=(",", ":"))
BATCH = 500


@contextmanager
def server(appendonly: bool) -> Iterator[redis.Redis]:
    """A server of its own on a unix socket, gone with the block."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    socket = str(folder / "s.sock")
    binary = os.environ.get("RUNTIME_REDIS_SERVER") or find_server({})
    options = ["--port", "0", "--unixsocket", socket, "--save", "", "--dir", str(folder)]
    options += ["--appendonly", "yes" if appendonly else "no"]
    process = subprocess.Popen([binary, *options], stdout=subprocess.DEVNULL)
    client = redis.Redis(unix_socket_path=socket, protocol=2)
    try:
        wait_for(lambda: _answers(client))
        yield client
    finally:
        process.kill()
        process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def wait_for(is_true, every_s: float = 0.002, deadline_s: float = 120.0) -> None:
    """Poll until it holds."""
    end_s = time.monotonic() + deadline_s
    while not is_true():
        if time.monotonic() > end_s:
            raise SystemExit("bench: a step did not end in time")
        time.sleep(every_s)


def fill(client: redis.Redis, jobs: int) -> None:
    """Put the jobs onto one stream, as any client would write them."""
    client.flushall()
    pipe = client.pipeline(transaction=False)
    for n in range(jobs):
        pipe.execute_command("XADD", STREAM, "*", "type", "noop", "data", PAYLOAD)
        if n % 10_000 == 9_999:
            pipe.execute()
    pipe.execute()


def raw_drain(client: redis.Redis, jobs: int) -> float:
    """Jobs per second of XREADGROUP, XACK and XDEL in batches from one Python process that does nothing with them:
    the raw figure.
    """
    fill(client, jobs)
    client.execute_command("XGROUP", "CREATE", STREAM, "raw", "0")
    connection = client.connection_pool.get_connection()
    began_s = time.perf_counter()
    left = jobs
    ids: list[bytes] = []
    while left or ids:
        commands = [("XREADGROUP", "GROUP", "raw", "me", "COUNT", BATCH, "STREAMS", STREAM, ">")]
        if ids:
            commands += [("XACK", STREAM, "raw", *ids), ("XDEL", STREAM, *ids)]
        connection.send_packed_command(connection.pack_commands(commands))
        answers = [connection.read_response(disable_decoding=True) for _ in commands]
        ids = [row[0] for row in answers[0][0][1]] if answers[0] else []
        left -= len(ids)
    rate = jobs / (time.perf_counter() - began_s)
    client.connection_pool.release(connection)
    return rate


class Worker:
    """A worker process and what the system says of it."""

    def __init__(self, client: redis.Redis, *options: str) -> None:
        socket = client.connection_pool.connection_kwargs["path"]
        command = [sys.executable, "-m", "runtime", "--redis", f"unix://{socket}", "--handlers", "bench.noop", "--board", "off"]
        self.process = subprocess.Popen([*command, "--log-level", "error", *options], cwd=ROOT, stderr=subprocess.DEVNULL)

    def cpu_s(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 1e6

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


def drain(client: redis.Redis, jobs: int, concurrency: int) -> dict[str, float]:
    """Start a worker on waiting jobs: time to the first one, rate from there on, CPU per job of both sides."""
    fill(client, jobs)
    redis_cpu_s = _redis_cpu_s(client)
    began_s = time.perf_counter()
    worker = Worker(client, "--concurrency", str(concurrency))
    wait_for(lambda: client.xlen(STREAM) < jobs)
    first_s, before, cpu_s = time.perf_counter(), client.xlen(STREAM), worker.cpu_s()
    wait_for(lambda: client.xlen(STREAM) == 0)
    seconds = time.perf_counter() - first_s
    figures = {
        "start_s": first_s - began_s,
        "jobs_per_s": before / seconds,
        "worker_us": (worker.cpu_s() - cpu_s) / before * 1e6,
        "redis_us": (_redis_cpu_s(client) - redis_cpu_s) / jobs * 1e6,
        "rss_mb": worker.rss_mb(),
    }
    worker.stop()
    return figures


def _redis_cpu_s(client: redis.Redis) -> float:
    used = client.info("cpu")
    return used["used_cpu_user"] + used["used_cpu_sys"]


def idle(client: redis.Redis) -> dict[str, float]:
    """500 idle lanes: memory, and what ten seconds of idling cost."""
    client.flushall()
    worker = Worker(client, "--concurrency", "500")
    wait_for(lambda: client.zcard("{jobs}:workers") > 1)
    time.sleep(2)
    cpu_s, commands = worker.cpu_s(), client.info("stats")["total_commands_processed"]
    time.sleep(10)
    figures = {
        "rss_mb": worker.rss_mb(),
        "cpu_percent": (worker.cpu_s() - cpu_s) * 10,
        "commands_per_s": (client.info("stats")["total_commands_processed"] - commands - 1) / 10,
    }
    worker.stop()
    return figures


def spread(values: list[float], digits: int = 0) -> str:
    """Median with minimum and maximum."""
    return f"{median(values):>11,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"


def main() -> None:
    """Run everything and print a table, or JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300_000, help="jobs waiting before each drain (default 300000)")
    parser.add_argument("--runs", type=int, default=5, help="runs of each drain (default 5)")
    parser.add_argument("--concurrency", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    for name, appendonly in (("no persistence", False), ("append-only file, everysec", True)):
        with server(appendonly) as client:
            figures: dict[str, list[float]] = {}
            for _ in range(parsed.runs):
                figures.setdefault("raw_per_s", []).append(raw_drain(client, parsed.jobs))
                for key, value in drain(client, parsed.jobs, parsed.concurrency).items():
                    figures.setdefault(key, []).append(value)
            results[name] = figures
            if not appendonly:
                results["idle"] = {key: [value] for key, value in idle(client).items()}
    if parsed.json:
        print(json.dumps(results))
        return
    print(f"{parsed.jobs:,} jobs waiting, {len(PAYLOAD)}-byte payload, no-op handler, concurrency {parsed.concurrency}")
    print(f"medians of {parsed.runs} runs [minimum, maximum]; Python {sys.version.split()[0]}, {os.cpu_count()} CPUs\n")
    for name, figures in results.items():
        print(name)
        if "raw_per_s" in figures:
            ratios = [ours / raw for ours, raw in zip(figures["jobs_per_s"], figures["raw_per_s"], strict=True)]
            print(f"  drain, jobs/s                        {spread(figures['jobs_per_s'])}")
            print(f"  raw fetch + ack + delete, in Python  {spread(figures['raw_per_s'])}")
            print(f"  ratio to raw                         {spread(ratios, 2)}")
            print(f"  worker CPU, µs/job                   {spread(figures['worker_us'], 1)}")
            print(f"  server CPU, µs/job                   {spread(figures['redis_us'], 1)}")
            print(f"  start to first job, s                {spread(figures['start_s'], 2)}")
        else:
            print(f"  CPU of 500 idle lanes, %             {spread(figures['cpu_percent'], 1)}")
            print(f"  server commands/s when idle          {spread(figures['commands_per_s'], 1)}")
        print(f"  RSS of the worker, MB                {spread(figures['rss_mb'], 1)}\n")


if __name__ == "__main__":
    main()
