"""The runtimes that are compared, their configurations, and the environment of each with pinned versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVS = HERE / ".envs"
NEWER_PYTHONS = ("python3.14", "python3.13", "python3.12")  # for a peer that needs one, beside those of pyenv


@dataclass(frozen=True)
class Peer:
    """A runtime: what is installed, how many jobs it drains in about 6 s, and its configuration in one line.

    `concurrency` is the one with the fastest drain of those that were tried.
    """

    name: str
    package: str
    jobs: int
    concurrency: int
    bulk: bool
    how: str
    newer_python: bool = False

    @property
    def env(self) -> Path:
        return ENVS / self.name

    @property
    def is_ours(self) -> bool:
        return self.name == "ours"

    def command(self) -> list[str]:
        if self.is_ours:
            return [sys.executable, str(HERE / "ours.py")]
        if self.name == "bullmq":
            return ["node", str(HERE / "bullmq" / "peer.mjs")]
        return [str(self.env / "bin" / "python"), str(HERE / f"{self.name}_peer.py")]


OURS = Peer("ours", "backend-jobs", 600_000, 500, True, "uvloop, hiredis; there are no results")
PEERS = (
    Peer("bullmq", "bullmq", 80_000, 200, True, "Node, ioredis; removeOnComplete, removeOnFail"),
    Peer("ardiq", "ardiq", 60_000, 500, True, "Rust core, uvloop, Python 3.12+; result_ttl_ms=0", newer_python=True),
    Peer("taskiq", "taskiq-redis", 20_000, 200, False, "uvloop, hiredis; streams broker (never trims), no results, no-parse"),
    Peer("dramatiq", "dramatiq", 20_000, 8, False, "hiredis; threads, prefetch 500, middleware Retries alone; its client blocks"),
    Peer("saq", "saq", 12_000, 20, False, "uvloop, hiredis; ttl=-1 (no results), timeout=0"),
    Peer("arq", "arq", 8_000, 50, False, "uvloop, hiredis; keep_result=0, log_results off, poll_delay=10 ms"),
    Peer("streaq", "streaq", 8_000, 100, True, "uvloop, coredis; ttl=0 (no results), silent"),
    Peer("docket", "pydocket", 6_000, 100, True, "uvloop, hiredis; execution_ttl=0, minimum_check_interval=10 ms"),
    Peer("celery", "celery", 5_000, 1, False, "hiredis; solo pool, no results, prefetch 500, no gossip, mingle, heartbeat"),
)


class Unusable(Exception):
    """The peer cannot be measured; the text says why."""


def install(peer: Peer) -> None:
    """Make the peer's environment, unless it exists with the pinned versions.

    Raises:
        Unusable: it cannot be made.
    """
    pins = HERE / "bullmq" / "package-lock.json" if peer.name == "bullmq" else HERE / "requirements" / f"{peer.name}.txt"
    stamp = peer.env / ".installed"
    if peer.is_ours or (stamp.exists() and stamp.read_text() == pins.read_text()):
        return
    print(f"installing {peer.name}", file=sys.stderr)
    shutil.rmtree(peer.env, ignore_errors=True)
    if peer.name == "bullmq":
        peer.env.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "bullmq" / name, peer.env)
        call_or_raise(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], peer.env)
    else:
        call_or_raise([_python_for(peer), "-m", "venv", str(peer.env)], HERE)
        call_or_raise([str(peer.env / "bin" / "pip"), "install", "--quiet", "--no-deps", "--requirement", str(pins)], HERE)
    stamp.write_text(pins.read_text())


def _python_for(peer: Peer) -> str:
    """Return an interpreter that the peer can use; a name on PATH may be a shim without one."""
    if not peer.newer_python or sys.version_info >= (3, 12):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for path in [*map(shutil.which, NEWER_PYTHONS), *sorted(pyenv.glob("3.1[2-9]*/bin/python"), reverse=True)]:
        if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            return str(path)
    raise Unusable("needs Python 3.12 or newer, and none was found")


def call_or_raise(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(f"{Path(command[0]).name}: {error}") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise Unusable(f"{Path(command[0]).name}: {lines[-1]}")


def version_of(peer: Peer) -> str:
    """Return the pinned version; of ours, the commit."""
    if peer.is_ours:
        return git("rev-parse", "--short", "HEAD")
    if peer.name == "bullmq":
        return json.loads((HERE / "bullmq" / "package.json").read_text())["dependencies"]["bullmq"]
    lines = (HERE / "requirements" / f"{peer.name}.txt").read_text().splitlines()
    pins = dict(line.partition(";")[0].split("==") for line in lines)
    return pins[peer.package]


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
