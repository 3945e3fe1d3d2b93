"""The rows of the table: what each measures, which figures it shows, and their targets.

The targets are goals for a machine with two shared cores, and follow from no measurement.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench.measures import Figures, Round, has_processes


@dataclass(frozen=True, slots=True)
class Target:
    """The limits that a median should be within."""

    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        limits = ((">=", self.at_least), ("<=", self.at_most), ("<", self.below))
        return " ".join(f"{sign} {limit:,g}" for sign, limit in limits if limit is not None)

    def is_met(self, value: float) -> bool:
        """Return whether a figure is within the limits."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the table: the label and the name of a figure, with the name of the raw figure beside it."""

    label: str
    name: str
    digits: int = 0
    raw: str = ""
    target: Target | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement. `why_not` returns why it cannot be made, or nothing; `remark` returns a sentence about the medians."""

    name: str
    title: str
    measure: Callable[[Round], Figures]
    lines: tuple[Line, ...]
    why_not: Callable[[], str] = lambda: ""
    remark: Callable[[Figures], str] = lambda medians: ""


WITHIN_15_PERCENT: Final = Target(at_least=0.85)
WITHIN_5_PERCENT: Final = Target(at_least=0.95)
CPU: Final = (
    Line("worker CPU, µs/job", "worker_us", 1),
    Line("server CPU, µs/job", "server_us", 1, "raw_server_us"),
)
SEND_CPU: Final = (Line("producer CPU, µs/job", "producer_us", 1), CPU[1])
RATE: Final = Line("jobs/s", "jobs_per_s", raw="raw_per_s")
BUSY: Final = 0.9  # of a core, a guess: the rest of a full one is lost to sampling and the start
LIKE_PLAIN: Final = Line("part of the plain drain", "of_plain", 2, target=WITHIN_15_PERCENT)


def bound_by(processes: int) -> Callable[[Figures], str]:
    """Return a remark that names what a drain was bound by, from the cores that both sides kept busy."""

    def remark(medians: Figures) -> str:
        workers, server, cores = medians["worker_cores"], medians["server_cores"], os.cpu_count() or 1
        cores_used = f"workers {workers:.2f} cores, server {server:.2f}, of {cores}"
        if server >= BUSY:
            return f"bound by the server's one core ({cores_used})"
        if workers >= BUSY * processes:
            return f"bound by the workers, {processes} of one core each ({cores_used})"
        if workers + server >= BUSY * cores:
            return f"bound by the machine's cores ({cores_used})"
        return f"bound by neither side's CPU: the machine had other work, or they waited for each other ({cores_used})"

    return remark


def busy(side: str, rate: str) -> Callable[[Figures], str]:
    """Return a remark with the cores that each side used: where neither used a whole one, they waited for each other."""

    def remark(medians: Figures) -> str:
        per_s = medians[rate] / 1e6
        ours, server = medians[f"{side}_us"] * per_s, medians["server_us"] * per_s
        best = 1e6 / max(medians[f"{side}_us"], medians["server_us"], 1e-3)
        return f"{side} {ours:.2f} cores, server {server:.2f}; with the busier one at a whole core it would be {best:,.0f} jobs/s"

    return remark


ROWS: Final = (
    Row(
        "drain",
        "drain of a no-op handler, 100-byte payload, no persistence",
        lambda run: run.plain,
        (
            Line("jobs/s", "jobs_per_s", raw="raw_per_s", target=Target(at_least=150_000)),
            Line("part of the C client", "of_raw", 2, target=Target(at_least=0.5)),
            *CPU,
            Line("start to first job, s", "start_s", 2),
        ),
        remark=bound_by(1),
    ),
    Row(
        "aof",
        "the same with the append-only file, everysec",
        Round.drain_durably,
        (RATE, Line("part of the C client", "of_raw", 2, target=Target(at_least=0.5)), *CPU),
    ),
    Row("priorities", "the same with all four priorities loaded", Round.priorities, (RATE, LIKE_PLAIN, *CPU)),
    Row("few", "the same with a hundredth as many waiting, for an idle worker", Round.few, (RATE, LIKE_PLAIN, *CPU)),
    Row("many", "the same with five times as many waiting", lambda run: run.many, (RATE, LIKE_PLAIN, *CPU)),
    Row("delayed", "the same with a tenth as many delayed", Round.delayed, (RATE, LIKE_PLAIN, *CPU)),
    Row(
        "batches",
        "drain of a no-op handler that takes up to 100 jobs at once",
        Round.batches,
        (RATE, Line("part of the plain drain", "of_plain", 2, target=Target(at_least=1)), *CPU),
        remark=bound_by(1),
    ),
    Row(
        "handoff",
        "jobs that hand on another, which runs as well",
        Round.handoff,
        (
            Line("parents/s, until all have handed on", "handed_per_s", 0, target=Target(at_least=25_000)),
            Line("pairs/s, until all have run", "jobs_per_s", 0),
            *CPU,
        ),
        remark=bound_by(1),
    ),
    Row(
        "results",
        "drain of a no-op handler whose results are kept; send to result of one at a time, 200/s",
        Round.results,
        (
            *(RATE, Line("part of the plain drain", "of_plain", 2, target=Target(at_least=0.6)), *CPU),
            Line("send to result, p50, ms", "p50_ms", 2),
            Line("p99, ms", "p99_ms", 2, target=Target(below=10)),
            Line("worst, ms", "worst_ms", 1),
        ),
        remark=bound_by(1),
    ),
    Row(
        "sleep",
        "handlers that sleep for 10 ms, concurrency 500 (aim 45,000, ideal 50,000)",
        Round.naps,
        (Line("jobs/s", "jobs_per_s", target=Target(at_least=40_000)), *CPU),
    ),
    Row(
        "retry",
        "every job fails and is retried once",
        Round.failures,
        (Line("attempts/s", "attempts_per_s", target=Target(at_least=40_000)), *CPU),
        remark=busy("worker", "jobs_per_s"),
    ),
    Row(
        "traced",
        "drain with tracing, in turn, as parts of the untraced one",
        Round.traced,
        (
            Line("untraced, jobs/s", "jobs_per_s"),
            Line("on, nothing sampled", "none_of_off", 3, target=Target(at_least=0.97)),
            Line("1 % sampled", "one_percent_of_off", 3, target=WITHIN_5_PERCENT),
            Line("100 %", "all_of_off", 3, target=Target(at_least=0.5)),
            Line("100 %, children of their senders", "children_of_off", 3),
            Line("off, messages with a sampled traceparent", "carried_of_off", 3, target=WITHIN_5_PERCENT),
            Line("untraced, worker CPU, µs/job", "worker_us", 2),
            Line("on, nothing sampled", "none_us", 2),
            Line("1 % sampled", "one_percent_us", 2),
            Line("100 %", "all_us", 2),
            Line("100 %, children of their senders", "children_us", 2),
            Line("off, messages with a sampled traceparent", "carried_us", 2),
        ),
    ),
    Row(
        "collector-away",
        "drain with 100 % traced, beside one whose collector takes all",
        Round.collector_away,
        (
            Line("collector refuses: part of its rate", "refused_of_there", 3, target=WITHIN_5_PERCENT),
            Line("memory more, MB", "refused_mb", 1, target=Target(at_most=20)),
            Line("stop takes longer, s", "refused_stop_s", 2, target=Target(at_most=2.5)),
            Line("collector never answers: part of its rate", "silent_of_there", 3, target=WITHIN_5_PERCENT),
            Line("memory more, MB", "silent_mb", 1, target=Target(at_most=20)),
            Line("stop takes longer, s", "silent_stop_s", 2, target=Target(at_most=2.5)),
        ),
    ),
    Row(
        "spans",
        "a span, µs of the loop's CPU, without Redis",
        Round.spans,
        (
            Line("of a job that was done", "sampled_us", 2),
            Line("of a failed attempt that was not sampled", "forced_us", 1, target=Target(at_most=25)),
            Line("by OpenTelemetry's SDK", "sdk_us", 1),
        ),
    ),
    Row(
        "latency",
        "XADD to handler's start, 200 jobs/s",
        lambda run: run.latency,
        (
            Line("p50, ms", "p50_ms", 2, target=Target(below=1)),
            Line("p99, ms", "p99_ms", 2, target=Target(below=5)),
            Line("worst, ms", "worst_ms", 1),
        ),
    ),
    Row(
        "busy-latency",
        "the same at half of the capacity",
        lambda run: run.busy_latency,
        (
            Line("sent, jobs/s", "rate_per_s"),
            Line("p50, ms", "p50_ms", 2),
            Line("p99, ms", "p99_ms", 2, target=Target(below=20)),
            Line("worst, ms", "worst_ms", 1),
        ),
    ),
    Row(
        "critical",
        "XADD to start of a CRITICAL job, 200/s, while 100,000 LOW wait and hold the other lanes for 1 s each",
        Round.critical,
        (
            Line("p50, ms", "p50_ms", 2),
            Line("p99, ms", "p99_ms", 2, target=Target(below=20)),
            Line("worst, ms", "worst_ms", 1),
            Line("lane free for LOW, p99, ms", "freed_p99_ms", 2, target=Target(below=5)),
        ),
    ),
    Row(
        "starving",
        "LOW beside HIGH that never ends, no-op handlers",
        Round.starving,
        (Line("LOW, % of what ran", "low_percent", 1, target=Target(at_least=5)),),
    ),
    Row(
        "limit",
        "a type with limit=5, jobs of 0.1 s",
        Round.limit,
        (
            Line("2 processes: most at once", "peak", target=Target(at_least=5, at_most=5)),
            Line("part of the ideal rate", "of_ideal", 3, target=WITHIN_5_PERCENT),
            Line("4 processes: most at once", "peak_4", target=Target(at_least=5, at_most=5)),
            Line("part of the ideal rate", "of_ideal_4", 3, target=WITHIN_5_PERCENT),
        ),
    ),
    Row(
        "rate",
        "a type with rate=100/s, while more wait",
        Round.rate,
        (
            Line("1 process: most starts in a second", "most_per_s", target=Target(at_most=100)),
            Line("fewest in 10 s", "least_per_10_s", target=Target(at_least=970)),
            Line("most in 10 s", "most_per_10_s", target=Target(at_most=1000)),
            Line("calls of Redis/s", "calls_per_s", 1, target=Target(at_most=100)),
            Line("4 processes: most starts in a second", "most_per_s_4", target=Target(at_most=100)),
            Line("fewest in 10 s", "least_per_10_s_4", target=Target(at_least=970)),
            Line("most in 10 s", "most_per_10_s_4", target=Target(at_most=1000)),
            Line("calls of Redis/s, each process", "calls_per_s_4", 1, target=Target(at_most=100)),
            Line("shut by a limit: calls of Redis/s", "shut_calls_per_s", 1, target=Target(at_most=4)),
        ),
    ),
    Row(
        "groups",
        "XADD to start of a job of another group, beside 10,000 of one with group_limit=1",
        Round.groups,
        (
            Line("sent right behind them, s", "behind_s", 2, target=Target(below=1)),
            Line("sent while they wait, worst of 20, s", "later_s", 2, target=Target(below=1)),
        ),
    ),
    Row(
        "beside-gates",
        "drain while jobs with a limit trickle in, beside the same without a limit, in turn",
        Round.beside_gates,
        (
            RATE,
            Line("part of the rate without", "of_plain", 3, target=Target(at_least=0.98)),
            Line("part of its worker CPU, with theirs", "us_of_plain", 3),
            *CPU,
        ),
    ),
    Row(
        "resume",
        "drain of jobs that were parked while their type was paused",
        Round.resume,
        (
            RATE,
            Line("part of the plain drain", "of_plain", 2, target=Target(at_least=0.3)),
            Line("resume to first job, s", "start_s", 2),
            *CPU,
        ),
    ),
    Row(
        "send-many",
        "Producer.send_many, beside pipelined XADD",
        Round.sends,
        (Line("jobs/s", "sent_per_s", raw="raw_per_s", target=Target(at_least=200_000)), *SEND_CPU),
        remark=busy("producer", "sent_per_s"),
    ),
    Row(
        "send",
        "Producer.send from 100 tasks",
        Round.single_sends,
        (Line("jobs/s", "sent_per_s", target=Target(at_least=20_000)), *SEND_CPU),
    ),
    Row(
        "rss",
        "memory of the worker with 500 lanes, after all jobs of `many`",
        lambda run: run.many,
        (
            Line("RSS, MB", "rss_mb", 1, target=Target(below=80)),
            Line("growth over the last 4/5, MB", "rss_growth_mb", 1, target=Target(below=2)),
        ),
    ),
    Row(
        "litter",
        "memory of the worker while each job leaves half a megabyte in a cycle",
        Round.litter,
        (
            Line("peak RSS, MB", "peak_mb"),
            Line("a plain interpreter's, MB", "plain_mb"),
            Line("times a plain interpreter's", "of_plain", 2, target=Target(at_most=1.5)),
        ),
    ),
    Row(
        "memory",
        "memory of the server per waiting job, 100-byte payload",
        Round.memory,
        (Line("bytes/job", "bytes_per_job", target=Target(below=140)),),
    ),
    Row(
        "server-cpu",
        "CPU of the server per job, against the C client",
        lambda run: run.plain,
        (
            Line("µs/job", "server_us", 1, "raw_server_us"),
            Line("times the C client's", "server_of_raw", 2, target=Target(at_most=1.5)),
        ),
    ),
    Row(
        "idle",
        "an idle worker with 500 lanes",
        Round.idle,
        (
            Line("CPU, % of a core", "cpu_percent", 1, target=Target(below=1)),
            Line("commands sent per second", "commands_per_s", 1, target=Target(below=10)),
            Line("commands inside of scripts, per s", "inner_per_s", 1),
            Line("RSS, MB", "rss_mb", 1),
        ),
    ),
    Row(
        "metrics",
        "/metrics with 100 types of every priority: what it takes of the loop",
        Round.metrics,
        (
            Line("text format, ms", "text_ms", 1, target=Target(below=20)),
            Line("OpenMetrics, an exemplar in each bucket, ms", "open_ms", 1, target=Target(below=20)),
            Line("a supervisor's, of 4, ms", "merged_ms", 1),
            Line("lines", "lines"),
        ),
    ),
    Row(
        "processes",
        "drain with --processes 2",
        Round.processes,
        (RATE, Line("times one process", "of_plain", 2), *CPU),
        lambda: "" if has_processes() else "not implemented yet",
        bound_by(2),
    ),
)
