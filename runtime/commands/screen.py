"""What `top` shows: reads the queue with a dozen cheap reads, and draws it with rich."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Final

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from runtime.commands import readings
from runtime.commands.common import clean, inspector
from runtime.errors import StoreUnavailable
from runtime.jobs import STREAMS
from runtime.said import Report
from runtime.store.base import WorkerRow
from runtime.store.flow import Flow, silence
from runtime.store.inspector import DeadLetter, Depth, Inspector

EVERY_S: Final = 1.0  # as top and htop: a second or two
FAILURES: Final = 5  # lines; with WORKERS and the four priorities, all fits a terminal of 40 lines; a guess
WORKERS, FEWER_WORKERS = 12, 4  # lines; fewer where gates, pauses and schedules take their place; a guess
PAUSES, GATES, GROUPS, SCHEDULES, RUNS = 3, 4, 1, 3, 5  # lines of each; the groups are of each gate; a guess
WIDE: Final = 160  # columns of a file or a pipe, which has no edge; a guess: nothing is cut

Counters = Mapping[tuple[str, str, str], int]


class Screen(msgspec.Struct):
    """What one picture shows: what was read at one moment."""

    depth: Depth
    oldest_s: dict[str, float]
    counters: Counters
    window_s: float
    workers: list[tuple[str, str, WorkerRow]]  # each with what is said of its silence
    failures: list[DeadLetter]
    flow: Flow
    reports: dict[str, list[Report]]


async def show(url: str, queue: str, *, is_once: bool) -> int:
    """Show the queue until Ctrl-C, or print one picture."""
    plain = partial(Console, markup=False, emoji=False)  # what senders and handlers have written is shown as it is
    console = plain()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = plain(width=WIDE)
    async with inspector(url, queue) as found:
        if is_once:
            console.print(picture(queue, await read(found)))
            return 0
        with (
            Live(console=console, auto_refresh=False, screen=console.is_terminal) as live,
            contextlib.suppress(asyncio.CancelledError),
        ):
            while True:
                try:
                    live.update(picture(queue, await read(found)), refresh=True)
                except StoreUnavailable as error:
                    live.update(Text(f"{error}; trying again", style="red"), refresh=True)
                await asyncio.sleep(EVERY_S)
    return 0


async def read(found: Inspector) -> Screen:
    """Read what a picture shows.

    Raises:
        StoreUnavailable: Redis gave no answer, or an error.
    """
    now_s = time.time()
    rows, flow = await found.workers(), await found.flow()
    workers = [(name, silence(until_ms, row, flow.now_ms), row) for name, (until_ms, row) in sorted(rows.items())]
    return Screen(
        await found.depth(),
        await found.oldest_waiting_s(),
        await found.counters(2),
        60 + now_s % 60,
        workers,
        await found.dead_letters(FAILURES),
        flow,
        await found.progress(),
    )


def picture(queue: str, screen: Screen) -> Group:
    """Return what is drawn."""
    depth = screen.depth
    head = Text.assemble(
        (f"queue {queue}", "bold"),
        f"   backlog {depth.backlog:,}   delayed {depth.delayed:,} ({depth.due_now:,} due)   parked {depth.parked:,}   ",
        (f"dead {depth.dead:,}", "red" if depth.dead else ""),
        f"   {readings.workers_in_words(depth, screen.flow)}",
    )
    flow = [
        _rows(readings.PAUSES, readings.pauses(screen.flow, PAUSES), style="yellow"),
        _rows(readings.GATES, readings.gates(screen.flow, GATES, GROUPS)),
        _rows(readings.SCHEDULES, readings.schedules(screen.flow, SCHEDULES)),
        _rows(readings.RUNS, readings.runs(screen.reports, RUNS, int(time.time() * 1000))),
    ]
    shown: list[Table | Text] = [table for table in flow if table.row_count]
    unreadable = len(screen.flow.unreadable_rules) + len(screen.flow.unreadable_schedules)
    if unreadable:
        shown.append(Text(f" {unreadable} rules or schedules cannot be read and are left out: see doctor", style="red"))
    most = max(FEWER_WORKERS, WORKERS - sum(table.row_count for table in flow))
    return Group(head, _priorities(screen), *shown, _types(screen), _workers(screen, most), _failures(screen))


def _rows(headings: Sequence[str], rows: readings.Rows, style: str = "") -> Table:
    columns = [_right(name) if name in readings.NUMBERS else name for name in headings]
    table = Table(*columns, box=None)
    for row in rows:
        table.add_row(*row, style=style)
    return table


def _priorities(screen: Screen) -> Table:
    table = Table("priority", *[_right(name) for name in ("waiting", "running", "oldest", "wait p50", "wait p99")], box=None)
    for priority in STREAMS:
        waits = buckets(screen.counters, "wait", priority=priority)
        table.add_row(
            priority,
            f"{screen.depth.waiting[priority]:,}",
            f"{screen.depth.running[priority]:,}",
            _age(screen.oldest_s[priority]),
            _ms(percentile(waits, 0.5)),
            _ms(percentile(waits, 0.99)),
        )
    return table


def _types(screen: Screen) -> Table:
    columns = ("done/s", "retried", "dead", "run p50", "run p99")
    table = Table("type", *[_right(name) for name in columns], box=None, title="last one to two minutes", title_justify="left")
    for name in sorted({name for name, _, _ in screen.counters if name}):
        counts = {outcome: total(screen.counters, name, outcome) for outcome in ("done", "retry", "dead")}
        runs = buckets(screen.counters, "run", type_name=name)
        table.add_row(
            clean(name, 28),
            f"{counts['done'] / screen.window_s:,.1f}",
            f"{counts['retry']:,}",
            f"{counts['dead']:,}",
            _ms(percentile(runs, 0.5) / 1000),
            _ms(percentile(runs, 0.99) / 1000),
        )
    return table


def _workers(screen: Screen, most: int) -> Table:
    table = Table("worker", _right("lanes"), _right("held"), "runs", "loop blocked", box=None)
    for name, silent, row in screen.workers[:most]:
        text = ", ".join(f"{count} {clean(type_name, 24)}" for type_name, count in sorted(row.running.items())[:4])
        reserved = f" ({row.reserved} kept)" if row.reserved else ""
        lanes, held = (f"{row.lanes}{reserved}", str(row.held)) if row.lanes else ("", "")  # neither, if the row cannot be read
        blocked = Text(readings.blocked_in_words(row), style="yellow")
        table.add_row(clean(name, 48), lanes, held, Text(silent, style="red") if silent else text or "-", blocked)
    if len(screen.workers) > most:
        table.add_row(f"… and {len(screen.workers) - most} more", "", "", "", "")
    return table


def _failures(screen: Screen) -> Table:
    table = Table("newest dead letters", "type", "reason", "error", box=None)
    for letter in screen.failures:
        died = time.strftime("%H:%M:%S", time.localtime(letter.died_at))
        table.add_row(f"{died} {letter.letter}", clean(letter.type or "-", 24), clean(letter.reason, 18), clean(letter.error, 60))
    return table


def _right(name: str) -> Any:
    return Column(name, justify="right")


def total(counters: Counters, type_name: str, outcome: str) -> int:
    """Return the sum of an outcome of a type over all priorities."""
    return sum(count for (name, _, counted), count in counters.items() if name == type_name and counted == outcome)


def buckets(counters: Counters, name: str, *, type_name: str = "", priority: str = "") -> dict[int, int]:
    """Return a histogram: power of two → count. Its buckets are counters `name` + power, of a type or of a priority."""
    found: dict[int, int] = {}
    for (of_type, of_priority, counter), count in counters.items():
        power = counter.removeprefix(name)
        if counter.startswith(name) and power.isdigit() and of_type == type_name and priority in ("", of_priority):
            found[int(power)] = found.get(int(power), 0) + count
    return found


def percentile(histogram: Mapping[int, int], part: float) -> float:
    """Return the upper bound of the bucket in which the part of all counts is reached; 0 without any."""
    powers = sorted(histogram)
    sums = list(accumulate(histogram[power] for power in powers))
    return next((2.0**power for power, reached in zip(powers, sums, strict=True) if reached >= part * sums[-1]), 0.0)


def _ms(value_ms: float) -> str:
    if not value_ms:
        return "-"
    return f"<{value_ms / 1000:,.1f} s" if value_ms >= 1000 else f"<{value_ms:,.3g} ms"


def _age(seconds: float) -> str:
    if not seconds:
        return "-"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
