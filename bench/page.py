"""What `/metrics` costs a worker's loop, and a supervisor's, at 100 types of every priority."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Final

from otel.exposition import Exemplar
from otel.metrics import ProcessesReading, Reading, TraceReading, render, render_processes
from runtime.errors import Retry
from runtime.jobs import DONE, PLAIN, STREAMS, Job
from runtime.stats import Stats

TYPES: Final = 100
PAGES: Final = 20  # a guess: enough for a steady median
PROCESSES: Final = 4
NOW_MS: Final = 1_790_000_000_000  # any time: a day of 2026


def reading() -> Reading:
    """Return a reading in which every type of every priority has run in many buckets, and has a trace in each."""
    known = [f"some-ordinary-type-{n}".encode() for n in range(TYPES)]
    stats, exemplars = Stats(known), dict[tuple[bytes, int, int], Exemplar]()
    for name in known:
        for stream in range(len(STREAMS)):
            job = Job(stream, b"%d-0" % (NOW_MS - 100), 1, "run", 0.0, name, b"{}", PLAIN, NOW_MS)
            stats.waited([job], NOW_MS)
            stats.ran(job, Retry(1), 0.1)
            for power in range(7, 32):
                stats.ran(job, DONE, 2**power / 2e6)
                exemplars[name, stream, power] = ("a" * 32, "b" * 16, 2**power / 2e6, NOW_MS / 1000)
    trace = TraceReading({}, {}, exemplars=exemplars)
    return Reading("jobs", stats, None, 0, 0, 0, 500, True, known=known, trace=trace)


def measure() -> dict[str, float]:
    """Return the median time of a page in ms, in both formats and of several processes, and how many lines it has."""
    one = reading()
    text = render(one)
    pages = ProcessesReading(dict.fromkeys(range(PROCESSES), text.decode()), dict.fromkeys(range(PROCESSES), 1), 0, 0)
    return {
        "text_ms": _ms(lambda: render(one)),
        "open_ms": _ms(lambda: render(one, is_open=True)),
        "merged_ms": _ms(lambda: render_processes(pages)),
        "lines": text.count(b"\n"),
    }


def _ms(make: Callable[[], bytes]) -> float:
    taken_s: list[float] = []
    for _ in range(PAGES):
        began_s = time.perf_counter()
        make()
        taken_s.append(time.perf_counter() - began_s)
    return median(taken_s) * 1000
