"""Renders the comparison as text and as data."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from statistics import median
from typing import Any

from bench.peers.measure import PACED_PER_S, STALL_S, Figures
from bench.peers.roster import Peer, git, version_of

COLUMNS = (
    ("drain_per_s", "drain, jobs/s", 0, True),
    ("one_per_s", "enqueue one by one, jobs/s", 0, True),
    ("bulk_per_s", "enqueue in bulk, jobs/s", 0, True),
    ("p50_ms", f"latency p50 at {PACED_PER_S}/s, ms", 2, False),
    ("p99_ms", f"latency p99 at {PACED_PER_S}/s, ms", 2, False),
    ("worker_us", "worker CPU, µs/job", 1, False),
    ("server_us", "server CPU, µs/job", 1, False),
)
FAULTS = {
    "lost": f"not run when no job ran for {STALL_S:g} s",
    "repeated": "run more than once",
    "paced_lost": "not run of those for the latency",
}


def report(
    peers: Sequence[Peer], facts: dict[str, str], runs: dict[str, list[Figures]], absent: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    """Return the report as text and as data."""
    peers = [peer for peer in peers if runs[peer.name]]
    lines = [f"{name:<10} {value}" for name, value in facts.items()]
    data: dict[str, Any] = {"facts": facts, "absent": absent, "peers": {}}
    for peer in peers:
        data["peers"][peer.name] = {
            "version": version_of(peer),
            "configuration": peer.how,
            "jobs": peer.jobs,
            "concurrency": peer.concurrency,
            "runs": runs[peer.name],
            "ratios": {},
        }
    for key, title, digits, is_more_better in COLUMNS:
        ours = _median(runs.get("ours", []), key)
        lines += ["", f"{title:<42}{'median [min, max]':>34}   ratio"]
        for peer in peers:
            values = [run[key] for run in runs[peer.name] if key in run]
            if not values:
                continue
            theirs = median(values)
            spread = f"{theirs:,.{digits}f} [{min(values):,.{digits}f}, {max(values):,.{digits}f}]"
            line = f"  {peer.name + ' ' + version_of(peer):<40}{spread:>34}"
            if ours and theirs and not peer.is_ours:
                ratio = ours / theirs if is_more_better else theirs / ours
                data["peers"][peer.name]["ratios"][key] = round(ratio, 3)
                line += f"   {ratio:.1f} x"
            lines.append(line)
    lines += ["", "every job exactly once?"]
    for peer in peers:
        faults = {key: int(sum(run.get(key, 0) for run in runs[peer.name])) for key in FAULTS}
        verdict = ", ".join(f"{number} {FAULTS[key]}" for key, number in faults.items() if number)
        lines.append(f"  {peer.name:<12}{f'NO: {verdict}' if verdict else 'yes'}")
    lines += ["", "configurations, one worker process each"]
    lines += [f"  {peer.name:<12}{peer.jobs:>7,} jobs, concurrency {peer.concurrency:<4} {peer.how}" for peer in peers]
    if absent:
        lines += ["", "not measured", *(f"  {name:<12}{reason}" for name, reason in absent.items())]
    return "\n".join(lines) + "\n", data


def _median(runs: list[Figures], key: str) -> float:
    values = [run[key] for run in runs if key in run]
    return median(values) if values else 0.0


def facts_of(client: Any, runs: int) -> dict[str, str]:
    """Return what the figures of this run depend on."""
    info = client.info("server")
    kind = "Valkey" if "valkey_version" in info else "Redis"
    is_changed = " with changes" if git("status", "--porcelain") not in ("", "unknown") else ""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": git("rev-parse", "--short", "HEAD") + is_changed,
        "server": f"{kind} {info.get('valkey_version') or info['redis_version']}, loopback TCP, no persistence",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start",
        "runtimes": f"Python {platform.python_version()}, Node {_node_version()}",
        "ratio": "how much better ours is: our rate to theirs, their time to ours; under 1 theirs is better",
        "runs": f'{runs}, taking turns; payload {{"to":"a@b.c","subject":"hi","n":123}}; no-op handler',
    }


def _node_version() -> str:
    with suppress(OSError):
        return subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout.strip()
    return "none"
