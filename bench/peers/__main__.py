"""`python -m bench.peers`: enqueue, drain and latency of other job runtimes and of ours, on one server, in one run.

Every runtime does the same work in one worker process: jobs are enqueued, then a worker is started and drains them, then the idle
worker gets a steady trickle. Each handler marks its job in memory that this process reads, so that lost and repeated jobs are
seen. The runs of all runtimes take turns, so that what else the machine does meets all of them; ratios are what to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import redis

from runtime.embedded import find_server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVS = HERE / ".envs"
RESULTS = ROOT / "bench" / "results"
PACED_PER_S = 200
PACED_WARM = 50  # the first ones open connections and are not counted
START_S = 60.0  # for a worker to run its first job
STALL_S = 15.0  # without any new job: what is missing then is lost
SETTLE_S = 0.5  # for repeated jobs to show up
NEWER_PYTHONS = ("python3.14", "python3.13", "python3.12")  # for a peer that needs one, beside those of pyenv

Figures = dict[str, float]


@dataclass(frozen=True)
class Peer:
    """A runtime: what is installed, how many jobs it drains in about 6 s, and the configuration in one line."""

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

    def command(self) -> list[str]:
        if self.name == "ours":
            return [sys.executable, str(HERE / "ours.py")]
        if self.name == "bullmq":
            return ["node", str(HERE / "bullmq" / "peer.mjs")]
        return [str(self.env / "bin" / "python"), str(HERE / f"{self.name}_peer.py")]


OURS = Peer("ours", "backend-jobs", 600_000, 500, True, "uvloop, hiredis; there are no results")
PEERS = (
    Peer("bullmq", "bullmq", 80_000, 200, True, "Node, ioredis; removeOnComplete, removeOnFail"),
    Peer("ardiq", "ardiq", 60_000, 500, True, "Rust core, uvloop; result_ttl_ms=0", newer_python=True),
    Peer("taskiq", "taskiq-redis", 20_000, 500, False, "uvloop, hiredis; streams broker (never trims), no results, no-parse"),
    Peer("dramatiq", "dramatiq", 20_000, 8, False, "hiredis; threads, prefetch 500, middleware Retries alone; its client blocks"),
    Peer("saq", "saq", 12_000, 100, False, "uvloop, hiredis; ttl=-1 (no results), timeout=0"),
    Peer("arq", "arq", 8_000, 100, False, "uvloop, hiredis; keep_result=0, log_results off, poll_delay=10 ms"),
    Peer("streaq", "streaq", 8_000, 100, True, "uvloop, coredis; ttl=0 (no results), silent"),
    Peer("docket", "pydocket", 6_000, 100, True, "uvloop, hiredis; execution_ttl=0, minimum_check_interval=10 ms"),
    Peer("celery", "celery", 5_000, 1, False, "hiredis; solo pool, no results, prefetch 500, no gossip, mingle, heartbeat"),
)


class NotInstalled(Exception):
    """The peer cannot take part; the text says why."""


# --- installing ----------------------------------------------------------------------------------------------------------


def install(peer: Peer) -> None:
    """Make the peer's own environment, unless it is there with these very versions."""
    pins = HERE / "bullmq" / "package-lock.json" if peer.name == "bullmq" else HERE / "requirements" / f"{peer.name}.txt"
    stamp = peer.env / ".installed"
    if peer is OURS or (stamp.exists() and stamp.read_text() == pins.read_text()):
        return
    print(f"installing {peer.name}", file=sys.stderr)
    shutil.rmtree(peer.env, ignore_errors=True)
    if peer.name == "bullmq":
        peer.env.mkdir(parents=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "bullmq" / name, peer.env)
        _call(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], peer.env)
    else:
        _call([_python_for(peer), "-m", "venv", str(peer.env)], HERE)
        _call([str(peer.env / "bin" / "pip"), "install", "--quiet", "--no-deps", "--requirement", str(pins)], HERE)
    stamp.write_text(pins.read_text())


def _python_for(peer: Peer) -> str:
    """Give an interpreter that the peer can use; a name on PATH may be a shim that finds nothing."""
    if not peer.newer_python or sys.version_info >= (3, 12):
        return sys.executable
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for path in [*map(shutil.which, NEWER_PYTHONS), *sorted(pyenv.glob("3.1[2-9]*/bin/python"), reverse=True)]:
        if path and not subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode:
            return str(path)
    raise NotInstalled("it needs Python 3.12 or newer, and none was found")


def _call(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotInstalled(f"{Path(command[0]).name}: {error}") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()
        raise NotInstalled(f"{Path(command[0]).name}: {lines[-1]}")


def version_of(peer: Peer) -> str:
    """Give the version that is pinned."""
    if peer is OURS:
        return _git("rev-parse", "--short", "HEAD")
    if peer.name == "bullmq":
        return json.loads((HERE / "bullmq" / "package.json").read_text())["dependencies"]["bullmq"]
    pins = dict(line.split("==") for line in (HERE / "requirements" / f"{peer.name}.txt").read_text().split())
    return pins[peer.package]


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


# --- measuring -----------------------------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[redis.Redis]:
    """A server of its own on a free port, without persistence, gone with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
        process = subprocess.Popen([find_server(dict(os.environ)), *options], stdout=subprocess.DEVNULL)
        client = redis.Redis(port=port, protocol=2)
        try:
            while not _answers(client):
                if process.poll() is not None:
                    raise SystemExit("peers: the server ended at its start")
                time.sleep(0.02)
            yield client
        finally:
            process.kill()
            process.wait()


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


class Run:
    """One run of one peer: its marks, its environment, and the processes that it starts."""

    def __init__(self, peer: Peer, client: redis.Redis, folder: Path, jobs: int, concurrency: int, paced: int) -> None:
        self.peer, self.client, self.jobs, self.paced = peer, client, jobs, paced
        self.marks = folder / "marks"
        self.starts_at = -(-jobs // 8) * 8
        self.marks.write_bytes(bytes(self.starts_at + 8 * paced))
        self.log = folder / f"{peer.name}.log"
        self.environment = {
            **os.environ,
            "PEERS_PORT": str(client.connection_pool.connection_kwargs["port"]),
            "PEERS_MARKS": str(self.marks),
            "PEERS_JOBS": str(jobs),
            "PEERS_PACED": str(paced),
            "PEERS_CONCURRENCY": str(concurrency),
            "PEERS_ENV": str(peer.env),
            "PYTHONPATH": f"{HERE}:{ROOT}" if peer is OURS else str(HERE),
        }

    def produce(self, role: str, first: int, end: int, *more: str) -> Any:
        """Run the peer's client to its end and give what it printed."""
        command = [*self.peer.command(), role, str(first), str(end), *more]
        with self.log.open("ab") as log:
            done = subprocess.run(
                command, cwd=HERE, env=self.environment, stdout=subprocess.PIPE, stderr=log, timeout=120, check=False
            )
        if done.returncode:
            raise NotInstalled(f"its client failed at `{role}`: {self._last_words()}")
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def worker(self) -> Iterator[subprocess.Popen[bytes]]:
        """A worker in a session of its own, which ends with the block."""
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
                os.kill(pid, signal.SIGKILL)
            process.wait()

    def counts(self) -> bytes:
        """How often each job of the drain has run, a byte each."""
        with self.marks.open("rb") as file:
            return file.read(self.jobs)

    def done(self) -> int:
        return self.jobs - self.counts().count(0)

    def measure(self) -> Figures:
        """Enqueue, drain, trickle."""
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
        """From the first finished job that is seen to the last one."""
        moved_s, seen, first = time.perf_counter(), 0, None
        while seen < self.jobs:
            time.sleep(0.005)
            now_s, done = time.perf_counter(), self.done()
            if done > seen:
                first = first or (now_s, done, _cpu_s(worker.pid), self._server_cpu_s())
                seen, moved_s = done, now_s
            elif worker.poll() is not None:
                raise NotInstalled(f"its worker ended after {seen} jobs: {self._last_words()}")
            elif now_s - moved_s > (STALL_S if seen else START_S):
                break
        if first is None:
            raise NotInstalled(f"its worker ran no job: {self._last_words()}")
        began_s, before, cpu_s, server_s = first
        jobs = max(seen - before, 1)
        figures = {
            "drain_per_s": jobs / max(moved_s - began_s, 1e-6),
            "worker_us": (_cpu_s(worker.pid) - cpu_s) / jobs * 1e6,
            "server_us": (self._server_cpu_s() - server_s) / jobs * 1e6,
        }
        time.sleep(SETTLE_S)
        return figures

    def _latency(self) -> Figures:
        """From just before a send to the start of its handler."""
        sent_ns = self.produce("latency", self.jobs, self.jobs + self.paced, str(PACED_PER_S))
        end_s = time.monotonic() + STALL_S
        while not all(started_ns := self._starts()) and time.monotonic() < end_s:
            time.sleep(0.02)
        pairs = list(zip(sent_ns, started_ns, strict=True))[PACED_WARM:]
        cuts_ms = quantiles([(started - sent) / 1e6 for sent, started in pairs if started], n=100)
        return {"p50_ms": cuts_ms[49], "p99_ms": cuts_ms[98], "paced_lost": sum(not started for _, started in pairs)}

    def _starts(self) -> list[int]:
        with self.marks.open("rb") as file:
            file.seek(self.starts_at)
            return memoryview(file.read()).cast("q").tolist()

    def _server_cpu_s(self) -> float:
        used = self.client.info("cpu")
        return used["used_cpu_user"] + used["used_cpu_sys"]

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
        return " / ".join(line.strip() for line in lines[-2:]) or "it said nothing"


def _session(leader: int) -> list[int]:
    """Give the processes of a session that this program began."""
    return [pid for pid, fields in _processes() if int(fields[3]) == leader]


def _cpu_s(leader: int) -> float:
    """Give the CPU time of a worker with all its processes, also those that have ended."""
    return sum(sum(map(int, fields[11:15])) for _, fields in _processes() if int(fields[3]) == leader) / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, list[str]]]:
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                yield int(folder.name), (folder / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue


# --- the report ----------------------------------------------------------------------------------------------------------

COLUMNS = (
    ("drain_per_s", "drain, jobs/s", 0, True),
    ("one_per_s", "enqueue one by one, jobs/s", 0, True),
    ("bulk_per_s", "enqueue in bulk, jobs/s", 0, True),
    ("p50_ms", f"latency p50 at {PACED_PER_S}/s, ms", 2, False),
    ("p99_ms", f"latency p99 at {PACED_PER_S}/s, ms", 2, False),
    ("worker_us", "worker CPU, µs/job", 1, False),
    ("server_us", "server CPU, µs/job", 1, False),
)
FAULTS = {"lost": "lost", "repeated": "repeated", "paced_lost": "of the trickle lost"}


def report(facts: dict[str, str], runs: dict[str, list[Figures]], absent: dict[str, str]) -> tuple[str, dict[str, Any]]:
    """Give the same as text and as data."""
    peers = [peer for peer in (OURS, *PEERS) if runs.get(peer.name)]
    lines = [f"{name:<10} {value}" for name, value in facts.items()]
    data: dict[str, Any] = {"facts": facts, "absent": absent, "peers": {}}
    for peer in peers:
        data["peers"][peer.name] = {"version": version_of(peer), "configuration": peer.how, "runs": runs[peer.name], "ratios": {}}
    for key, title, digits, is_more_better in COLUMNS:
        ours = _median(runs.get("ours", []), key)
        lines += ["", f"{title:<42}{'median [min, max]':>34}   {'ours is better by' if ours else ''}"]
        for peer in peers:
            values = [run[key] for run in runs[peer.name] if key in run]
            if not values:
                continue
            theirs = median(values)
            spread = f"{theirs:,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"
            line = f"  {peer.name + ' ' + version_of(peer):<40}{spread:>34}"
            if ours and theirs and peer is not OURS:
                ratio = ours / theirs if is_more_better else theirs / ours
                data["peers"][peer.name]["ratios"][key] = round(ratio, 3)
                line += f"   {ratio:.1f} x"
            lines.append(line)
    lines += ["", "every job exactly once?"]
    for peer in peers:
        lost, repeated, late = (
            int(sum(run.get(key, 0) for run in runs[peer.name])) for key in ("lost", "repeated", "paced_lost")
        )
        verdict = f"NO: {lost} lost, {repeated} repeated, {late} of the trickle lost" if lost or repeated or late else "yes"
        lines.append(f"  {peer.name:<12}{verdict}")
    lines += ["", "configurations, one worker process each"]
    lines += [f"  {peer.name:<12}{peer.how}" for peer in peers]
    if absent:
        lines += ["", "not measured", *(f"  {name:<12}{reason}" for name, reason in absent.items())]
    return "\n".join(lines) + "\n", data


def _median(runs: list[Figures], key: str) -> float:
    values = [run[key] for run in runs if key in run]
    return median(values) if values else 0.0


def facts_of(client: redis.Redis, runs: int) -> dict[str, str]:
    """Give what a reader must know of this run."""
    info = client.info("server")
    kind = "Valkey" if "valkey_version" in info else "Redis"
    is_changed = " with changes" if _git("status", "--porcelain") not in ("", "unknown") else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _git("rev-parse", "--short", "HEAD") + is_changed,
        "server": f"{kind} {info.get('valkey_version') or info['redis_version']}, loopback TCP, no persistence",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start",
        "runtimes": f"Python {platform.python_version()}, Node {_node_version()}",
        "runs": f'{runs}, taking turns; payload {{"to":"a@b.c","subject":"hi","n":123}}; no-op handler',
    }


def _node_version() -> str:
    with suppress(OSError):
        return subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return "none"


def main() -> None:
    """Install, measure, report."""
    names = [peer.name for peer in (OURS, *PEERS)]
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--only", default="", help=f"comma-separated, of {', '.join(names)}; ours is always measured")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="jobs of each drain, as a share of the usual number")
    parser.add_argument("--seconds", type=float, default=3.0, help="of the trickle (default 3)")
    parser.add_argument("--concurrency", type=int, default=0, help="for all, instead of the best one of each")
    parsed = parser.parse_args()
    chosen = set(parsed.only.split(",")) - {""} or set(names)
    if unknown := chosen - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    peers = [peer for peer in (OURS, *PEERS) if peer is OURS or peer.name in chosen]
    absent: dict[str, str] = {}
    runs: dict[str, list[Figures]] = {peer.name: [] for peer in peers}
    for peer in peers:
        try:
            install(peer)
        except NotInstalled as why:
            absent[peer.name] = str(why)
    with server() as client, tempfile.TemporaryDirectory(prefix="peers-") as folder:
        facts = facts_of(client, parsed.runs)
        for number in range(1, parsed.runs + 1):
            for peer in peers:
                if peer.name in absent:
                    continue
                print(f"run {number}: {peer.name}", file=sys.stderr)
                paced = PACED_WARM + int(parsed.seconds * PACED_PER_S)
                jobs = max(int(peer.jobs * parsed.scale), 100)
                run = Run(peer, client, Path(folder), jobs, parsed.concurrency or peer.concurrency, paced)
                try:
                    runs[peer.name].append(run.measure())
                except (NotInstalled, subprocess.TimeoutExpired) as why:
                    absent[peer.name] = str(why)
    text, data = report(facts, runs, absent)
    print(text, end="")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "peers.txt").write_text(text)
    (RESULTS / "peers.json").write_text(json.dumps(data, indent=2) + "\n")


if __name__ == "__main__":
    main()
