"""Shipped handlers that are measured: in a folder of their own, with the loop's lag and the memory of this process's children."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

from uvloop import new_event_loop

Filled = TypeVar("Filled")

TICK_S = 0.001  # the sleep that the system keeps on time


def in_folder(fill: Callable[[Path], Filled], measure: Callable[[Path, Filled], Coroutine[Any, Any, bool]]) -> int:
    """Fill a new folder, measure on uvloop with what `fill` returned, remove the folder; return 1 if a gate does not hold."""
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        filled = fill(folder)
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return 0 if runner.run(measure(folder, filled)) else 1
    finally:
        shutil.rmtree(folder)


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
