"""What the tests of a store in trouble share: servers of their own, work to send, and ways to take the store away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
import redis

from runtime import Backoff, Job, Producer, contract, handler
from runtime.errors import JobsError
from tests.faults.harness import Worker, events, leftovers
from tests.faults.jobs import HISTORY, Scripted, note
from tests.servers import HOW_TO_GET, KINDS, Server, binary_of, wait_until

GROUP = "workers"
S = TypeVar("S", bound=Server)
Fault = Callable[[Server, float], None]


@contextlib.contextmanager
def own_server(kind: str, *options: str, made: type[S] = Server) -> Iterator[S]:
    """Return a server of this test alone, with an append-only file as in production; skip where there is none of that kind."""
    if not binary_of(kind):
        pytest.skip(HOW_TO_GET[kind])
    server = made(kind, "--enable-debug-command", "local", "--busy-reply-threshold", "100", *options, appendonly=True)
    try:
        yield server
    finally:
        server.stop()


def on_each(short: str = "valkey") -> pytest.MarkDecorator:
    """Return the parameter `kind`; only the kind named `short` is run outside of the long fault run."""
    return pytest.mark.parametrize(
        "kind", [pytest.param(kind, marks=() if kind == short else pytest.mark.long) for kind in KINDS]
    )


def add(
    raw: redis.Redis,
    jobs: int,
    ms: Callable[[int], float],
    *,
    first: int = 0,
    failures: int = 0,
    to: str = "medium",
    kind: str = "scripted",
) -> None:
    """Store numbered jobs, in one round trip; number n runs for `ms(n)`."""
    pipe = raw.pipeline(transaction=False)
    for n in range(first, first + jobs):
        data = f'{{"n":{n},"ms":{ms(n)},"failures":{failures}}}'
        pipe.xadd(f"{{jobs}}:{to}", {"type": kind, "data": data})
    pipe.execute()


def starts_of(history: Path) -> Counter[int]:
    """Return how often each number has started."""
    return Counter(event.n for event in events(history) if event.kind == "start")


def ended(history: Path) -> set[int]:
    """Return the numbers that have ended well."""
    return {event.n for event in events(history) if event.kind == "end"}


def second_runs(history: Path) -> int:
    """Return how many starts were not the first of their number."""
    return sum(starts_of(history).values()) - len(starts_of(history))


def lines_of(crew: list[Worker]) -> list[str]:
    """Return the lines that the workers have logged, without those of a loop that a busy machine held up, and of its frames."""
    lines = [line for worker in crew for line in worker.log.splitlines()]
    return [line for line in lines if not line.startswith(" ") and "the event loop" not in line]


class Spawned(Server):
    """A server whose process is made in a way of its own."""

    def how(self) -> dict[str, Any]:
        """Return further arguments of Popen."""
        return {}

    def start(self) -> None:
        binary = binary_of(self.kind)
        assert binary, f"no server binary for {self.kind}"
        command = [binary, "--port", "0", "--unixsocket", self.socket, "--dir", str(self.folder), "--save", "", *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **self.how())
        wait_until(self.answers, what=f"{self.kind} answers")


class SetClock(Spawned):
    """A server whose clock a test can set; needs a C compiler."""

    def how(self) -> dict[str, Any]:
        compiler = shutil.which("cc")
        if not compiler:
            pytest.skip("no cc: a clock that can be set must be compiled")
        library, self._offset = self.folder / "clock.so", self.folder / "offset"
        source = Path(__file__).with_name("clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
        self._offset.write_bytes(struct.pack("q", 0))
        return {"env": {**os.environ, "LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._offset)}}

    def set_clock(self, offset_s: int) -> None:
        """Let the server's clock be so many seconds ahead of the machine's, from now on."""
        with self._offset.open("r+b") as file:
            file.write(struct.pack("q", offset_s))


class SmallDisk(Spawned):
    """A server whose disk can be filled: its files may not grow beyond a limit, and it hears of that as an error."""

    def how(self) -> dict[str, Any]:
        # Python ignores SIGXFSZ, and so must the server: else the first write beyond the limit ends it.
        return {"restore_signals": False}

    def fill(self) -> None:
        """Let the append-only file grow no more."""
        size = max(path.stat().st_size for path in self.folder.rglob("*.aof"))
        self._limit(size)

    def enlarge(self) -> None:
        """Make lot again."""
        self._limit(resource.RLIM_INFINITY)

    def _limit(self, size: int) -> None:
        assert self.process
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (size, hard))


def is_settled(raw: redis.Redis) -> bool:
    """Return whether nothing is left; while groups are still to be made, it is not."""
    try:
        return not leftovers(raw)
    except redis.ResponseError:
        return False


def refusal(server: Server, patience_s: float = 0.3) -> JobsError | None:
    """Send one job through a producer, and give the error it raised."""

    async def send() -> JobsError | None:
        async with Producer.connect(server.url, patience_s=patience_s) as producer:
            try:
                await producer.send(Scripted(n=9999))
            except JobsError as error:
                return error
        return None

    return asyncio.run(send())


def calls(raw: redis.Redis, command: str) -> int:
    """Return how often the server has run a command since its counts were reset."""
    return int(raw.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


# --- handlers that the other module of handlers does not know, as that one's are unknown here -----------------------------


@contract("patient")
class Patient(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` runs for `ms`, and may."""

    n: int
    ms: float


@handler(Patient, timeout_s=300)
async def patient(message: Patient, job: Job) -> None:
    """Run as the message says."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    await asyncio.sleep(message.ms / 1000)
    note("end", message.n, job.attempt)


@contract("stubborn")
class Stubborn(msgspec.Struct, frozen=True, kw_only=True):
    """Number `n` holds the loop until there is a file `go`, and fails; whoever is not the first runs it until there is `end`."""

    n: int


@handler(Stubborn, timeout_s=300, retry=Backoff(base_s=0.05, cap_s=0.3, attempts=3))
async def stubborn(message: Stubborn, job: Job) -> None:
    """Block the loop the first time."""
    note("start", message.n, job.attempt, job.entry.decode(), job.count, time.monotonic())
    if job.count == 1:
        while not Path(HISTORY, "go").exists():
            time.sleep(0.02)
        note("fail", message.n, job.attempt)
        raise RuntimeError("too late")
    while not Path(HISTORY, "end").exists():
        await asyncio.sleep(0.02)
    note("end", message.n, job.attempt)


# --- ways in which the store goes away for some seconds: each returns when it is back -------------------------------------


def stopped(server: Server, seconds: float) -> None:
    """Shut the server down, and start it again on its folder."""
    assert server.process
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)
    time.sleep(seconds)
    server.start()


def frozen(server: Server, seconds: float) -> None:
    """Stop the server's process: it keeps its connections, and wakes with all that was written to them."""
    assert server.process
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    server.process.send_signal(signal.SIGCONT)


def paused(what: str) -> Fault:
    """Let the server hold back all commands, or those that write."""

    def pause(server: Server, seconds: float) -> None:
        with contextlib.closing(server.client()) as raw:
            raw.client_pause(int(seconds * 1000), all=what == "ALL")
        time.sleep(seconds)

    return pause


def asleep(server: Server, seconds: float) -> None:
    """Let the server do nothing at all."""
    with contextlib.closing(server.client()) as raw:
        raw.execute_command("DEBUG", "SLEEP", seconds)


def endless_script(server: Server, seconds: float) -> None:
    """Let a script hold the server, which answers BUSY, until it is killed."""

    def run() -> None:
        with contextlib.closing(server.client()) as raw, contextlib.suppress(redis.ResponseError):
            raw.eval("while true do end", 0)

    script = threading.Thread(target=run)
    script.start()
    with contextlib.closing(server.client()) as raw:
        wait_until(lambda: is_busy(raw), what="the server is busy")
        time.sleep(seconds)
        raw.script_kill()
    script.join()


def is_busy(raw: redis.Redis) -> bool:
    try:
        raw.ping()
    except redis.ResponseError as error:
        return "BUSY" in str(error) or "busy" in str(error)
    return False


def read_only(server: Server, seconds: float) -> None:
    """Make the server a replica of nobody, as after a failover."""
    with contextlib.closing(server.client()) as raw:
        raw.execute_command("REPLICAOF", "127.0.0.1", "1")
        time.sleep(seconds)
        raw.execute_command("REPLICAOF", "NO", "ONE")


def closed_to_new(setting: str, shut: str, open_: str) -> Fault:
    """Let a setting turn away every new connection, and end those there are."""

    def close(server: Server, seconds: float) -> None:
        with contextlib.closing(server.client()) as raw:
            raw.config_set(setting, shut)
            raw.execute_command("CLIENT", "KILL", "TYPE", "normal")
            time.sleep(seconds)
            raw.config_set(setting, open_)

    return close


AWAY: dict[str, Fault] = {
    "stopped": stopped,
    "frozen": frozen,
    "paused": paused("ALL"),
    "writes-paused": paused("WRITE"),
    "asleep": asleep,
    "busy": endless_script,
    "read-only": read_only,
    "full-house": closed_to_new("maxclients", "1", "10000"),
    "password": closed_to_new("requirepass", "secret", ""),
}
