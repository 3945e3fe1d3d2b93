"""What goes on beside a job that is measured: how late the loop is, and how much memory the children of this process have had."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median, quantiles

TICK_S = 0.001  # the sleep that the system keeps on time


async def sample(lags_ms: list[float]) -> None:
    """Note by how much the loop is late, until it is cancelled."""
    while True:
        asked_s = time.perf_counter()
        await asyncio.sleep(TICK_S)
        lags_ms.append((time.perf_counter() - asked_s - TICK_S) * 1e3)


def show_lag(lags_ms: list[float]) -> None:
    """Print how late the loop was."""
    print(f"  loop lag, ms: median  {median(lags_ms):>12.1f}")
    print(f"                p99     {p99(lags_ms):>12.1f}")
    print(f"                worst   {max(lags_ms):>12.1f}\n")


def p99(lags_ms: list[float]) -> float:
    """Return what one of a hundred is above."""
    return quantiles(lags_ms, n=100)[98]


def child_mib() -> float:
    """Return the most memory that a Python child of this process has had at any time (VmHWM); servers are none."""
    found = [0.0]
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            told = dict(line.split(":", 1) for line in Path("/proc", pid, "status").read_text().splitlines())
            if told["Name"].strip().startswith("python"):
                found.append(int(told["VmHWM"].split()[0]) / 1024)
    return max(found)
