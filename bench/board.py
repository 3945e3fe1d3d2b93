"""`python -m bench.board`: what the board costs Redis, itself and a worker, with a small and a large queue, and many viewers."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.lab import DEAD, ROOT, STREAMS, WORKERS, Server, Worker, wait_for, xadd

TOKEN: Final = "a-token-of-the-bench-0123456789abcdef"
WARM_S: Final = 20.0  # a guess: the day is read, and the letters are grouped
LOOK_S: Final = 20.0  # a guess: twenty ticks
VIEWERS: Final = 50
OF_ONE: Final = 5  # streams of a session; the board allows six
PAUSE_S: Final = 0.25  # an address may log in five times a second
DRAIN_VIEWERS: Final = 20
CLAIMED_BY: Final = 4
TYPES: Final = 16
SLOW_US: Final = 1000  # what no command of the board is to take
PATHS: Final = (
    "frame",
    "overview",
    "overview?range=24h",
    "jobs?state=claimed",
    "jobs?state=waiting",
    "jobs?state=waiting&q=type:noop%20args:x",
    "jobs?state=delayed",
    "jobs?state=finished",
    "dead/groups",
    "dead",
    "types",
    "type?type=type-3",
    "workers",
    "queue",
    "system",
    "schedules",
    "audit",
    "operations",
)


class Viewers:
    """Holds streams of the board open, and throws away what comes: one thread, so that it costs little."""

    def __init__(self, port: int, n: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._is_open = True
        self.frames = 0
        session = ""
        for at in range(n):
            if at % OF_ONE == 0:
                session = login(port)
            stream = socket.create_connection(("127.0.0.1", port))
            request = f"GET /events?topics=overview HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: {session}\r\n\r\n"
            stream.sendall(request.encode())
            self._selector.register(stream, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Viewers:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_open = False
        self._thread.join(5)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

    def _read(self) -> None:
        while self._is_open:
            for key, _ in self._selector.select(0.2):
                stream: Any = key.fileobj
                data = stream.recv(1 << 20)
                self.frames += data.count(b"event: tick")
                if not data:
                    self._selector.unregister(stream)
                    stream.close()


@contextlib.contextmanager
def board(server: Server) -> Generator[tuple[int, int]]:
    """Run the board alone; yields its port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "runtime", "board", "--redis", server.url, "--board", f"127.0.0.1:{port}"]
    variables = {**os.environ, "RUNTIME_BOARD_OPERATE_TOKEN": TOKEN}
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _answers(port), "the board's first answer", deadline_s=30)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def login(port: int) -> str:
    """Return the cookie of a new session: one has few streams."""
    time.sleep(PAUSE_S)
    headers = {"Content-Type": "application/json", "X-Board": "1", "Sec-Fetch-Site": "same-origin"}
    body = json.dumps({"token": TOKEN}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/login", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.headers["Set-Cookie"].partition(";")[0]


def get(port: int, path: str) -> bytes:
    """Return what the API answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/{path}", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        get(port, "meta")
        return True
    return False


def fill(server: Server, waiting: int, claimed: int, dead: int) -> None:
    """Put jobs that wait, that are claimed and that are dead into a queue, with an hour of counts and workers that live."""
    raw = server.client
    for stream in STREAMS:
        raw.xgroup_create(stream, "workers", "0", mkstream=True)
    server.fill(claimed, STREAMS[1])
    for at in range(CLAIMED_BY if claimed else 0):
        raw.xreadgroup("workers", f"vm-{at}-0", {STREAMS[1]: ">"}, count=claimed // CLAIMED_BY)
    server.fill(waiting, STREAMS[3])
    _send(server, (_letter(at) for at in range(dead)), dead)
    pipe = raw.pipeline(transaction=False)
    now_s = int(time.time())
    for at in range(CLAIMED_BY):
        row = {"host": "vm", "pid": at, "lanes": 500, "held": claimed // CLAIMED_BY, "running": {"noop": claimed // CLAIMED_BY}}
        pipe.zadd(WORKERS, {f"vm-{at}-0": (now_s + 36_000) * 1000})
        pipe.hset(f"{WORKERS}:rows", f"vm-{at}-0", f"3600000 {json.dumps(row)}")
    for minute in range(60):
        counts = {
            f"type-{n} medium {what}": 100 + n for n in range(TYPES) for what in ("done", "retry", "dead", "run17", "run20")
        }
        pipe.hset(f"{{jobs}}:stats:{now_s // 60 - minute}", mapping=counts)
    pipe.execute()


def _letter(at: int) -> bytes:
    error = f"HTTPStatusError: {400 + at % 5} for https://crm.example.com/v3/contacts/{at}"
    notes = {"dead_reason": "attempts", "dead_error": error, "dead_from": "medium/1-1", "dead_attempts": "8"}
    notes |= {"dead_at": str(int(time.time() * 1000) - at), "id": f"crm-{at}"}
    words = [word.encode() for pair in notes.items() for word in pair]
    return xadd(DEAD, b"type-%d" % (at % TYPES), b'{"account":"acme","since":"2026-11-25"}', words)


def _send(server: Server, commands: Iterator[bytes], n: int) -> None:
    with server.connect() as connection:
        left = 0
        for at, command in enumerate(commands):
            connection.sendall(command)
            left += 2
            if left >= 2000 or at == n - 1:
                while left:
                    left -= connection.recv(1 << 18).count(b"\n")


def used(server: Server) -> tuple[int, int]:
    """Return how many commands the server has answered, and how many µs they took; ours are left out."""
    stats = server.client.info("commandstats")
    ours = ("cmdstat_info", "cmdstat_config", "cmdstat_slowlog", "cmdstat_ping", "cmdstat_client")
    rows = [row for name, row in stats.items() if not name.startswith(ours)]
    return sum(row["calls"] for row in rows), sum(row["usec"] for row in rows)


def over(server: Server, act: Callable[[], object]) -> tuple[int, int]:
    """Return commands and µs of the server while `act` runs."""
    calls, us = used(server)
    act()
    after_calls, after_us = used(server)
    return after_calls - calls, after_us - us


def measure(waiting: int, claimed: int, dead: int, has_api: bool) -> None:
    """Print what the board costs beside such a queue."""
    with Server() as server:
        fill(server, waiting, claimed, dead)
        with board(server) as (port, pid):
            print(f"\n{waiting:,} waiting, {claimed:,} claimed, {dead:,} dead")
            with Viewers(port, 1):
                began_s, (_, us) = time.perf_counter(), over(server, lambda: _wait_for_groups(port))
                took_s = time.perf_counter() - began_s
            print(f"  grouping {dead:,} letters takes {took_s:.0f} s, {us / took_s / 1000:.1f} ms of Redis a second, ticks too")
            for viewers in (1, VIEWERS):
                with Viewers(port, viewers) as seen:
                    time.sleep(WARM_S if viewers == 1 else 3.0)
                    server.client.config_set("slowlog-log-slower-than", SLOW_US)
                    server.client.slowlog_reset()
                    frames = seen.frames
                    calls, us = over(server, lambda: time.sleep(LOOK_S))
                    ticks = max(1.0, (seen.frames - frames) / viewers)
                    print(
                        f"  {viewers:3} viewers: {ticks:.0f} ticks in {LOOK_S:g} s; a tick {calls / ticks:.1f} commands,"
                        f" {us / ticks:,.0f} µs of Redis; over 1 ms: {_slow(server)}"
                    )
            calls, us = over(server, lambda: time.sleep(10.0))  # 5 s after the last viewer there is to be nothing
            quiet = over(server, lambda: time.sleep(5.0))
            print(f"  nobody looks: {calls} commands in 10 s, then {quiet[0]} in 5 s")
            if has_api:
                _measure_api(server, port)
            rss_mb = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
            print(f"  the board takes {rss_mb:.0f} MB")


def _wait_for_groups(port: int) -> None:
    """Return once all letters are grouped, as the list of groups says."""

    def is_done() -> bool:
        groups = json.loads(get(port, "dead/groups"))
        return groups["grouped"] == groups["letters"]

    wait_for(is_done, "all letters are grouped", deadline_s=600, every_s=1.0)


def _measure_api(server: Server, port: int) -> None:
    for path in PATHS:
        asked = [_ask(server, port, path) for _ in range(3)]
        cost_ms, took_ms = median(cost for cost, _ in asked), median(took for _, took in asked)
        print(f"  {path:44} {cost_ms:7.2f} ms of Redis {took_ms:8.1f} ms; over 1 ms: {_slow(server)}")


def _ask(server: Server, port: int, path: str) -> tuple[float, float]:
    """Return what a call costs the server, and how long it takes, in ms."""
    time.sleep(2.1)  # what is kept for all viewers is kept for 2 s
    server.client.slowlog_reset()
    began_s = time.perf_counter()
    _, us = over(server, lambda: get(port, path))
    return us / 1000, (time.perf_counter() - began_s) * 1000


def _slow(server: Server) -> str:
    found = server.client.slowlog_get(100)
    worst: dict[str, int] = {}
    for row in found:
        name = b" ".join(row["command"].split()[:2]).decode(errors="replace")[:24]
        worst[name] = max(worst.get(name, 0), row["duration"])
    return ", ".join(f"{name} {us} µs" for name, us in worst.items()) or "none"


def measure_drain(jobs: int, rounds: int) -> None:
    """Print the rate and the CPU of a worker with its board, with nobody and with viewers in turn."""
    found: dict[int, list[tuple[float, float]]] = {0: [], DRAIN_VIEWERS: []}
    for _ in range(rounds):
        for viewers, figures in found.items():
            figures.append(_drain(jobs, viewers))
    print(f"\ndrain of {jobs:,} beside {DRAIN_VIEWERS} viewers, as part of that without, {rounds} rounds:")
    for at, name in enumerate(("jobs/s", "jobs per second of the worker's CPU")):
        alone, seen = ([figures[at] for figures in found[viewers]] for viewers in (0, DRAIN_VIEWERS))
        ratios = [one / other for one, other in zip(seen, alone, strict=True)]
        print(f"  {name}: median {median(seen):,.0f} of {median(alone):,.0f}; ratios {[f'{ratio:.3f}' for ratio in ratios]}")


def _drain(jobs: int, viewers: int) -> tuple[float, float]:
    """Return jobs/s, and jobs for each second of the worker's CPU; the jobs are put there while the worker stands still."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    variables = {"RUNTIME_BOARD_OPERATE_TOKEN": TOKEN}
    with (
        Server() as server,
        Worker(server, "--board", f"127.0.0.1:{port}", "--concurrency", "500", variables=variables) as worker,
    ):
        worker.wait_for(lambda: _answers(port), "the board's first answer", every_s=0.05)
        with Viewers(port, viewers) as seen:
            worker.wait_for(lambda: seen.frames >= viewers, "each viewer sees a frame", every_s=0.05)
            worker.signal(signal.SIGSTOP)
            server.fill(jobs)
            cpu_s, began_s = worker.cpu_s(), time.perf_counter()
            worker.signal(signal.SIGCONT)
            worker.wait_for(lambda: server.left() == 0, "the drain", every_s=0.02)
            took_s, used_s = time.perf_counter() - began_s, worker.cpu_s() - cpu_s
        worker.stop(jobs)
    return jobs / took_s, jobs / used_s


def main() -> int:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.board", description="Measure what the board costs.")
    parser.add_argument("--waiting", type=int, default=1_000_000, metavar="N", help="jobs that wait; default 1000000")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="drains with and without viewers; default 3")
    parser.add_argument("--jobs", type=int, default=1_000_000, metavar="N", help="jobs of a drain; default 1000000")
    parsed = parser.parse_args()
    measure(0, 0, 0, has_api=False)
    measure(parsed.waiting, 10_000, 100_000, has_api=True)
    if parsed.rounds:
        measure_drain(parsed.jobs, parsed.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
