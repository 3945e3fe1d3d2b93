"""The Prometheus metrics of a worker and of a supervisor, each with its unit and help text.

They are computed when they are scraped, so that a job pays nothing for them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from runtime.stats import Count, Stats
from runtime.store.flow import Flow
from runtime.store.inspector import Depth

# The buckets that are shown, of the powers of two in µs that are counted: 128 µs, 1 ms, 8 ms, 65 ms, 0.5 s, 4 s, 33 s, 4.5 min,
# 36 min. A guess: every third one tells fast, slow and stuck handlers apart, and nine series per type are few enough to keep.
SHOWN: Final = (7, 10, 13, 16, 19, 22, 25, 28, 31)


@dataclass(frozen=True, slots=True)
class Reading:
    """What a worker's metrics are made of: its counts and state, and the queue as last read (None: the store did not answer)."""

    queue: str
    stats: Stats
    depth: Depth | None
    running: int
    inbox: int
    held: int
    lanes: int
    is_ready: bool
    broken: Set[str] = frozenset()  # the keys of streams that cannot be read
    ahead_s: Mapping[str, float] = field(default_factory=dict[str, float])  # how far the last id of each priority lies ahead
    reserved: int = 0
    oldest_s: Mapping[str, float] = field(default_factory=dict[str, float])  # for how long the oldest of each priority waits
    flow: Flow | None = None


@dataclass(frozen=True, slots=True)
class ProcessesReading:
    """What a supervisor's metrics are made of: the text of each process, 1 for each that answered, and its own counts."""

    texts: Mapping[int, str]
    up: Mapping[int, int]
    deaths: int
    recycled: int


def render(reading: Reading) -> bytes:
    """Return a worker's metrics in Prometheus' text format."""
    return _render(list(_metrics(reading)))


def render_processes(reading: ProcessesReading) -> bytes:
    """Return the metrics of all processes in Prometheus' text format, each sample labelled with the process it is from."""
    merged: dict[str, Metric] = {}
    for index, text in reading.texts.items():
        for metric in text_string_to_metric_families(text):
            target = merged.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
            for sample in metric.samples:
                target.add_sample(sample.name, {**sample.labels, "process": str(index)}, sample.value)
    up = GaugeMetricFamily("runtime_process_up", "1 for a worker process that answers its supervisor", labels=["process"])
    for index, value in sorted(reading.up.items()):
        up.add_metric([str(index)], value)
    deaths = CounterMetricFamily("runtime_process_deaths", "Worker processes that died and were replaced", reading.deaths)
    recycled = CounterMetricFamily("runtime_process_recycled", "Worker processes replaced for their memory", reading.recycled)
    return _render([*merged.values(), up, deaths, recycled])


def _render(metrics: Sequence[Metric]) -> bytes:
    registry = CollectorRegistry()
    registry.register(_Once(metrics))
    return generate_latest(registry)


class _Once(Collector):
    """A collector for one rendering: the client library renders only what collectors hand it."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return iter(self._metrics)


def _metrics(reading: Reading) -> Iterator[Metric]:
    yield from _queue_metrics(reading)
    yield from _job_metrics(reading)
    queue = [reading.queue]
    for name, text, value in (
        ("runtime_running", "Jobs that run in this worker", reading.running),
        ("runtime_inbox", "Jobs fetched by this worker and not started", reading.inbox),
        ("runtime_held", "Leases that this worker holds", reading.held),
        ("runtime_lanes", "Jobs that this worker can run at the same time", reading.lanes),
        ("runtime_lanes_reserved", "Lanes of these that run jobs of CRITICAL only", reading.reserved),
        ("runtime_ready", "1 while this worker fetches and the store answers", int(reading.is_ready)),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["queue"])
        gauge.add_metric(queue, value)
        yield gauge
    broken = GaugeMetricFamily(
        "runtime_stream_broken", "1 for a stream that this worker cannot read and leaves out", labels=["queue", "stream"]
    )
    for key in sorted(reading.broken):
        broken.add_metric([reading.queue, key], 1)
    yield broken
    ahead = GaugeMetricFamily(
        "runtime_stream_ahead_seconds",
        "How far the last id of a stream lies ahead of the server's time; above an hour, it has closed the stream",
        labels=["queue", "priority"],
    )
    for priority, value in reading.ahead_s.items():
        ahead.add_metric([reading.queue, priority], value)
    yield ahead
    for name, text, value in (
        ("runtime_store_errors", "Calls that the store did not answer, or answered with an error", reading.stats.store_errors),
        ("runtime_moves_refused", "Moves refused because another worker held the job", reading.stats.refused),
    ):
        counter = CounterMetricFamily(name, text, labels=["queue"])
        counter.add_metric(queue, value)
        yield counter


def _queue_metrics(reading: Reading) -> Iterator[Metric]:
    depth = reading.depth
    if depth is None:
        return
    for name, text, value in (
        (
            "runtime_backlog",
            "Jobs that are due and have not ended, running ones too, over all workers: take the maximum, not the sum",
            depth.backlog,
        ),
        ("runtime_delayed", "Jobs that wait for their time", depth.delayed),
        ("runtime_parked", "Jobs that wait in lots: given back, at a gate, or of types that no worker here knows", depth.parked),
        ("runtime_dead_letters", "Dead letters kept", depth.dead),
        ("runtime_workers", "Workers with a heartbeat", depth.workers),
    ):
        gauge = GaugeMetricFamily(name, text, labels=["queue"])
        gauge.add_metric([reading.queue], value)
        yield gauge
    waiting = GaugeMetricFamily("runtime_waiting", "Jobs that wait to be fetched", labels=["queue", "priority"])
    for priority, value in depth.waiting.items():
        waiting.add_metric([reading.queue, priority], value)
    yield waiting
    oldest = GaugeMetricFamily(
        "runtime_oldest_waiting_seconds", "For how long the oldest job has waited to be fetched", labels=["queue", "priority"]
    )
    for priority, value in reading.oldest_s.items():
        oldest.add_metric([reading.queue, priority], value)
    yield oldest
    if reading.flow is not None:
        yield from _flow_metrics(reading.queue, reading.flow)


def _flow_metrics(queue: str, flow: Flow) -> Iterator[Metric]:
    """Return what holds jobs back, and the schedules; every worker says the same of them."""
    yield _each("runtime_gate_waiting", "Jobs that wait at the gate of their type", queue, ["type"], {
        (gate.type,): gate.waiting for gate in flow.gates
    })  # fmt: skip
    yield _each("runtime_gate_in_use", "Permits in use of a type that may run so many at once", queue, ["type"], {
        (gate.type,): gate.in_use for gate in flow.gates if "limit" in gate.limits
    })  # fmt: skip
    yield _each("runtime_gate_limit", "How many jobs of a type may run at once", queue, ["type"], {
        (gate.type,): limit for gate in flow.gates if isinstance(limit := gate.limits.get("limit"), int)
    })  # fmt: skip
    yield _each("runtime_gate_next_token_seconds", "In how long a job of a type with a rate may start", queue, ["type"], {
        (gate.type,): gate.next_token_ms / 1000 for gate in flow.gates if gate.next_token_ms is not None
    })  # fmt: skip
    labels = ["kind", "name"]
    yield _each("runtime_paused_since_timestamp_seconds", "Since when a type, a priority or all is paused", queue, labels, {
        (pause.kind, pause.name): pause.since_ms / 1000 for pause in flow.pauses
    })  # fmt: skip
    yield _each("runtime_paused_until_timestamp_seconds", "Until when it is paused; +Inf until it is resumed", queue, labels, {
        (pause.kind, pause.name): pause.until_ms / 1000 or float("inf") for pause in flow.pauses
    })  # fmt: skip
    yield _each("runtime_schedule_last_timestamp_seconds", "The last tick of a schedule that was decided", queue, ["schedule"], {
        (one.name,): one.last_ms / 1000 for one in flow.schedules if one.last_ms is not None
    })  # fmt: skip
    yield _each("runtime_schedule_next_timestamp_seconds", "When a schedule fires next", queue, ["schedule"], {
        (one.name,): one.next_ms / 1000 for one in flow.schedules if one.next_ms is not None
    })  # fmt: skip
    yield _each("runtime_rules_unreadable", "Rules and schedules that are left out, since they cannot be read", queue, [], {
        (): len(flow.unreadable_rules) + len(flow.unreadable_schedules)
    })  # fmt: skip


def _each(name: str, text: str, queue: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["queue", *labels])
    for of, value in values.items():
        gauge.add_metric([queue, *of], value)
    return gauge


def _job_metrics(reading: Reading) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "runtime_outcomes", "What became of jobs in this worker", labels=["queue", "type", "priority", "outcome"]
    )
    runs = HistogramMetricFamily(
        "runtime_run_seconds", "How long handlers ran", labels=["queue", "type", "priority"], unit="seconds"
    )
    for type_name, priority, count in reading.stats.rows():
        labels = [reading.queue, type_name or "(unknown)", priority]
        for outcome, value in sorted(count.totals().items()):
            outcomes.add_metric([*labels, outcome], value)
        if any(count.runs):
            runs.add_metric(labels, _buckets(count), count.run_s)
    yield outcomes
    yield runs


def _buckets(count: Count) -> list[tuple[str, float]]:
    """Return the upper bound in seconds and the cumulative count of each bucket that is shown."""
    below = list(accumulate(count.runs))
    return [(f"{2**power / 1e6:g}", float(below[power])) for power in SHOWN] + [("+Inf", float(below[-1]))]
