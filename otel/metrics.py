"""The Prometheus metrics of a worker and of a supervisor, each with its unit and help text; docs/metrics.md lists them.

They are computed when they are scraped, so that a job pays nothing for them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import ProcessCollector

from otel.exposition import Exemplar, Family, Page, Row, buckets, merged
from runtime import __version__
from runtime.jobs import STREAMS
from runtime.stats import UNKNOWN_TYPE, Blocks, Count, Stats
from runtime.store.flow import Flow
from runtime.store.inspector import Depth

# Every second power of two: a quantile between two buckets is off by a factor of two at most, for 13 series of each type and
# priority. 128 µs to 36 min for runs, 1 ms to 4.7 h for waits.
RUNS: Final = buckets(range(7, 32, 2), 1e6)
WAITS: Final = buckets(range(0, 25, 2), 1e3)
CALLS: Final = buckets(range(6, 23, 2), 1e6)  # 64 µs to 4 s: a call that takes longer is given up
SIZES: Final = buckets(range(0, 13, 2), 1)  # 1 to 4,096: more than a worker has lanes and read-ahead
LAGS: Final = buckets(range(10, 25, 2), 1e6)  # 1 ms to 17 s: where the loop may stand still for a minute at most
MAX_TYPES: Final = 500  # a guess: 30,000 series of one worker; what more there is, is counted as one type
MAX_ROWS: Final = 1000  # of pauses, of schedules: as many as a queue may have; a guess
UNKNOWN: Final = UNKNOWN_TYPE  # a type without a handler here, or none at all
OTHER: Final = "(other)"  # a type with a handler, beyond MAX_TYPES
SPANS: Final = ("sampled", "forced", "handler")
DROPS: Final = ("full", "collector", "budget")

_QUEUE: Final = ("queue",)
_PRIORITY: Final = ("priority", "queue")
_TYPE: Final = ("priority", "queue", "type")


def _gauge(name: str, unit: str, text: str, labels: tuple[str, ...] = _QUEUE) -> Family:
    return Family(name, "gauge", unit, text, labels)


def _counter(name: str, unit: str, text: str, labels: tuple[str, ...] = _QUEUE) -> Family:
    return Family(name, "counter", unit, text, labels)


def _histogram(name: str, unit: str, text: str, labels: tuple[str, ...] = _QUEUE) -> Family:
    return Family(name, "histogram", unit, text, labels)


# --- the queue, of which every worker says the same ----------------------------------------------------------------------------

BACKLOG: Final = _gauge("runtime_backlog", "jobs", "Jobs that more workers would work off: due, not running, and free to run")
WAITING: Final = _gauge("runtime_waiting", "jobs", "Jobs that wait to be fetched", _PRIORITY)
LEASED: Final = _gauge("runtime_leased", "jobs", "Jobs that some worker has fetched and not settled", _PRIORITY)
OLDEST: Final = _gauge("runtime_oldest_waiting_seconds", "seconds", "For how long the oldest job waits to be fetched", _PRIORITY)
DELAYED: Final = _gauge("runtime_delayed", "jobs", "Jobs that wait for their time, or were delayed until now")
DUE: Final = _gauge("runtime_due", "jobs", "Delayed jobs whose time has come and that were not moved to their stream yet")
PARKED: Final = _gauge("runtime_parked", "jobs", "Jobs that wait in lots: given back, at a gate, or of types without a handler")
DEAD: Final = _gauge("runtime_dead_letters", "letters", "Dead letters kept")
STORED: Final = _gauge(
    "runtime_stored_bytes", "bytes", "Memory of the server, about: of a stream, `delayed`, `dead`", ("part", "queue")
)
FULL: Final = _gauge("runtime_store_full", "1", "1 while Redis is full, and refuses what is sent; 0 while it has room")
WORKERS: Final = _gauge("runtime_workers", "workers", "Workers with a heartbeat")
SILENT: Final = _gauge("runtime_workers_silent", "workers", "Workers whose heartbeat is missing, and that are not forgotten yet")
GATE_WAITING: Final = _gauge("runtime_gate_waiting", "jobs", "Jobs that wait at the gate of their type", ("queue", "type"))
GATE_IN_USE: Final = _gauge("runtime_gate_in_use", "permits", "Permits in use of a type with a limit", ("queue", "type"))
GATE_LIMIT: Final = _gauge("runtime_gate_limit", "permits", "How many jobs of a type may run at once", ("queue", "type"))
GATE_TOKEN: Final = _gauge(
    "runtime_gate_next_token_seconds", "seconds", "In how long a job of a type with a rate may start", ("queue", "type")
)
PAUSED_SINCE: Final = _gauge(
    "runtime_paused_since_timestamp_seconds",
    "seconds",
    "Since when a type, a priority or all is paused",
    ("kind", "name", "queue"),
)
PAUSED_UNTIL: Final = _gauge(
    "runtime_paused_until_timestamp_seconds", "seconds", "Until when; +Inf until it is resumed", ("kind", "name", "queue")
)
TICK_LAST: Final = _gauge(
    "runtime_schedule_last_timestamp_seconds", "seconds", "The last tick of a schedule that was decided", ("queue", "schedule")
)
TICK_NEXT: Final = _gauge(
    "runtime_schedule_next_timestamp_seconds", "seconds", "When a schedule fires next", ("queue", "schedule")
)
UNREADABLE: Final = _gauge(
    "runtime_rules_unreadable", "rules", "Rules and schedules that are left out, since they cannot be read"
)

# --- jobs of this worker -------------------------------------------------------------------------------------------------------

OUTCOMES: Final = _counter("runtime_outcomes_total", "jobs", "What became of jobs in this worker", ("outcome", *_TYPE))
RUN: Final = _histogram("runtime_run_seconds", "seconds", "How long handlers ran, each attempt", _TYPE)
WAIT: Final = _histogram("runtime_wait_seconds", "seconds", "How long jobs had been due when this worker fetched them", _TYPE)
TIMEOUTS: Final = _counter("runtime_timeouts_total", "jobs", "Runs that were cut at their deadline", _TYPE)
LOSSES: Final = _counter("runtime_lease_losses_total", "jobs", "Jobs that another worker took over while they were held here")
RECLAIMS: Final = _counter("runtime_reclaims_total", "jobs", "Jobs that this worker took back from dead ones")
ISOLATIONS: Final = _counter("runtime_isolations_total", "jobs", "Suspects, held by a worker when it died, that ran here alone")
RUNNING: Final = _gauge("runtime_running", "jobs", "Jobs that run in this worker")
INBOX: Final = _gauge("runtime_inbox", "jobs", "Jobs fetched by this worker and not started")
HELD: Final = _gauge("runtime_held", "jobs", "Leases that this worker holds")
LANES: Final = _gauge("runtime_lanes", "lanes", "Jobs that this worker can run at the same time")
RESERVED: Final = _gauge("runtime_lanes_reserved", "lanes", "Lanes of these that run jobs of CRITICAL only")
PLACES: Final = _gauge("runtime_places", "places", "Threads and child processes for handlers", ("kind", "queue"))
PLACES_TAKEN: Final = _gauge("runtime_places_taken", "places", "Places of these in which something runs", ("kind", "queue"))
PLACES_LOST: Final = _gauge(
    "runtime_places_lost", "places", "Places of these lost to jobs that were cut and go on", ("kind", "queue")
)
READY: Final = _gauge("runtime_ready", "1", "1 while this worker fetches and the store answers")
SENT: Final = _counter("runtime_sent_total", "messages", "What became of messages that this process sent", ("outcome",))

# --- its loop, its calls of the store, its process -----------------------------------------------------------------------------

LAG: Final = _histogram("runtime_loop_lag_seconds", "seconds", "How late the ticks of the loop came, 20 a second")
LAG_MAX: Final = _gauge("runtime_loop_lag_max_seconds", "seconds", "The latest tick of the last minute or two: the longest turn")
BLOCKED: Final = _counter(
    "runtime_loop_blocked_total", "blocks", "Times that a handler of a type has blocked the loop", ("queue", "type")
)
BLOCKED_S: Final = _counter("runtime_loop_blocked_seconds_total", "seconds", "For how long, in all", ("queue", "type"))
STALLS: Final = _counter(
    "runtime_loop_stalls_total", "stalls", "Times that garbage or the process stood in the way", ("cause", "queue")
)
STALLS_S: Final = _counter("runtime_loop_stalls_seconds_total", "seconds", "For how long, in all", ("cause", "queue"))
FLUSH_S: Final = _histogram("runtime_flush_seconds", "seconds", "How long writing a batch of outcomes took")
FLUSH_JOBS: Final = _histogram("runtime_flush_jobs", "jobs", "How many outcomes were in a batch")
FETCH_S: Final = _histogram("runtime_fetch_seconds", "seconds", "How long a fetch took, of those that did not wait for a job")
FETCH_JOBS: Final = _histogram("runtime_fetch_jobs", "jobs", "How many jobs such a fetch brought")
STORE_ERRORS: Final = _counter("runtime_store_errors_total", "calls", "Calls that the store did not answer, or with an error")
RECONNECTS: Final = _counter("runtime_store_reconnects_total", "connections", "Connections that were lost and opened again")
REFUSED: Final = _counter("runtime_moves_refused_total", "jobs", "Moves refused because another worker held the job")
UNKEPT: Final = _counter("runtime_results_lost_total", "results", "Results of jobs that are done which Redis did not take")
BROKEN: Final = _gauge("runtime_stream_broken", "1", "1 for a stream that this worker cannot read", ("queue", "stream"))
AHEAD: Final = _gauge(
    "runtime_stream_ahead_seconds",
    "seconds",
    "How far the last id lies ahead of the server's time; above an hour, it is closed",
    _PRIORITY,
)
BUILD: Final = _gauge("runtime_build", "1", "1, with the version that runs", ("version",))
PROCESS: Final = (
    _gauge("process_resident_memory_bytes", "bytes", "Resident memory of this process", ()),
    _counter("process_cpu_seconds_total", "seconds", "User and system CPU time of this process", ()),
    _gauge("process_start_time_seconds", "seconds", "When this process started, since the epoch", ()),
    _gauge("process_open_fds", "files", "Open file descriptors", ()),
    _gauge("process_max_fds", "files", "How many file descriptors may be open", ()),
)

# --- traces --------------------------------------------------------------------------------------------------------------------

SPANS_MADE: Final = _counter("runtime_spans_total", "spans", "Spans recorded", ("kind",))
SPANS_DROPPED: Final = _counter("runtime_spans_dropped_total", "spans", "Spans that no collector has", ("reason",))
EXPORT: Final = Family("runtime_export_seconds", "summary", "seconds", "How long requests to the collector took")
EXPORT_FAILURES: Final = _counter("runtime_export_failures_total", "requests", "Requests that the collector did not take", ())
MALFORMED: Final = _counter(
    "runtime_trace_malformed_total", "jobs", "Jobs whose `traceparent` or `tracestate` could not be used", ()
)

# --- a supervisor --------------------------------------------------------------------------------------------------------------

PROCESS_UP: Final = _gauge("runtime_process_up", "1", "1 for a worker process that answers its supervisor", ("process",))
PROCESS_DEATHS: Final = _counter("runtime_process_deaths_total", "processes", "Worker processes that died and were replaced", ())
PROCESS_RECYCLED: Final = _counter(
    "runtime_process_recycled_total", "processes", "Worker processes replaced for their memory", ()
)

_process = ProcessCollector(registry=None)


def families() -> list[Family]:
    """Return all metrics that there are, in the order of docs/metrics.md."""
    declared: list[Family] = []
    for value in globals().values():
        declared += [value] if isinstance(value, Family) else PROCESS if value is PROCESS else []
    return declared


@dataclass(frozen=True, slots=True)
class TraceReading:
    """What tracing has done in this process since its start.

    `spans` by kind (SPANS) were recorded, `dropped` by reason (DROPS) reached no collector; `malformed` are jobs whose
    `traceparent` or `tracestate` could not be used. `exports` are requests to the collector, `failures` those of them that it did
    not take; all took `export_s`. `exemplars` has the newest run that a trace shows, by type, number of the stream and power of
    two µs that it was shorter than: trace id and span id in hexadecimal digits, its seconds, and when it ended, in seconds since
    the epoch.
    """

    spans: Mapping[str, int]
    dropped: Mapping[str, int]
    malformed: int = 0
    exports: int = 0
    export_s: float = 0.0
    failures: int = 0
    exemplars: Mapping[tuple[bytes, int, int], Exemplar] = field(default_factory=dict[tuple[bytes, int, int], Exemplar])


NO_TRACE: Final = TraceReading({}, {})


@dataclass(frozen=True, slots=True)
class Reading:
    """What a worker's metrics are made of: its counts and state, and the queue as last read (None: the store did not answer).

    `known` are the types with a handler here; `places` says of each kind how many there are, are taken, and are lost. `trace` is
    None where tracing is off; `now_s` is the time of the clock that the loop's lag was measured with.
    """

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
    is_full: bool = False  # the store, of memory
    stored_bytes: Mapping[str, int] = field(default_factory=dict[str, int])  # memory of the server for each part of the queue
    known: Collection[bytes] = ()
    places: Mapping[str, tuple[int, int, int]] = field(default_factory=dict[str, tuple[int, int, int]])
    reconnects: int = 0
    sent: Mapping[str, int] = field(default_factory=dict[str, int])
    trace: TraceReading | None = None
    now_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ProcessesReading:
    """What a supervisor's metrics are made of: the text of each process, 1 for each that answered, and its own counts."""

    texts: Mapping[int, str]
    up: Mapping[int, int]
    deaths: int
    recycled: int


def render(reading: Reading, *, is_open: bool = False) -> bytes:
    """Return a worker's metrics in Prometheus' text format, or in OpenMetrics, which has exemplars."""
    page = Page(is_open=is_open)
    _add_queue(page, reading)
    _add_jobs(page, reading)
    _add_worker(page, reading)
    _add_loop_and_store(page, reading)
    _add_trace(page, reading.trace)
    own = {sample.name: sample.value for metric in _process.collect() for sample in metric.samples}
    for family in PROCESS:
        page.add(family, own.get(family.name))
    page.add(BUILD, {(__version__,): 1})
    return page.body()


def render_processes(reading: ProcessesReading, *, is_open: bool = False) -> bytes:
    """Return the metrics of all processes, each sample labelled with the process it is from; the texts are of the same format."""
    page = Page(is_open=is_open)
    page.add(PROCESS_UP, {(str(index),): value for index, value in sorted(reading.up.items())})
    page.add(PROCESS_DEATHS, reading.deaths)
    page.add(PROCESS_RECYCLED, reading.recycled)
    return merged(reading.texts, "process", page.body().decode(), ("runtime_", "process_")).encode()


def is_open_metrics(accept: str) -> bool:
    """Return whether a request's `Accept` asks for OpenMetrics."""
    return any(part.partition(";")[0].strip() == "application/openmetrics-text" for part in accept.lower().split(","))


# --- the parts of a worker's page ----------------------------------------------------------------------------------------------


def _add_queue(page: Page, reading: Reading) -> None:
    """Add what the queue holds, and holds back; nothing while the store does not answer."""
    queue, depth, flow = reading.queue, reading.depth, reading.flow
    if depth is not None:
        for family, value in (
            (BACKLOG, depth.backlog),
            (DELAYED, depth.delayed),
            (DUE, depth.due_now),
            (PARKED, depth.parked),
            (DEAD, depth.dead),
            (WORKERS, depth.workers),
            (SILENT, depth.silent),
            (FULL, int(reading.is_full)),
        ):
            page.add(family, {(queue,): value})
        page.add(WAITING, {(priority, queue): n for priority, n in depth.waiting.items()})
        page.add(LEASED, {(priority, queue): n for priority, n in depth.running.items()})
        page.add(OLDEST, {(priority, queue): age_s for priority, age_s in reading.oldest_s.items()})
        page.add(STORED, {(part, queue): size for part, size in reading.stored_bytes.items()})
    if flow is None:
        return
    gates, pauses, schedules = flow.gates[:MAX_ROWS], flow.pauses[:MAX_ROWS], flow.schedules[:MAX_ROWS]
    limits = {(queue, gate.type): limit for gate in gates if isinstance(limit := gate.limits.get("limit"), int)}
    page.add(GATE_WAITING, {(queue, gate.type): gate.waiting for gate in gates})
    page.add(GATE_IN_USE, {(queue, gate.type): gate.in_use for gate in gates if "limit" in gate.limits})
    page.add(GATE_LIMIT, limits)
    page.add(GATE_TOKEN, {(queue, one.type): one.next_token_ms / 1000 for one in gates if one.next_token_ms is not None})
    page.add(PAUSED_SINCE, {(pause.kind, pause.name, queue): pause.since_ms / 1000 for pause in pauses})
    page.add(PAUSED_UNTIL, {(pause.kind, pause.name, queue): pause.until_ms / 1000 or float("inf") for pause in pauses})
    page.add(TICK_LAST, {(queue, one.name): one.last_ms / 1000 for one in schedules if one.last_ms is not None})
    page.add(TICK_NEXT, {(queue, one.name): one.next_ms / 1000 for one in schedules if one.next_ms is not None})
    page.add(UNREADABLE, {(queue,): len(flow.unreadable_rules) + len(flow.unreadable_schedules)})


def _add_jobs(page: Page, reading: Reading) -> None:
    rows = _rows(reading)
    page.add(OUTCOMES, {(name, *of): n for of, count in rows.items() for name, n in sorted(count.totals().items())})
    page.add(TIMEOUTS, {of: count.timeouts for of, count in rows.items()})
    exemplars = _exemplars(reading) if page.is_open else {}
    ran: list[Row] = [(of, count.runs, count.run_s, exemplars.get(of, {})) for of, count in rows.items() if any(count.runs)]
    page.histograms(RUN, RUNS, ran)
    waited: list[Row] = [(of, count.waits, count.wait_ms / 1000, {}) for of, count in rows.items() if any(count.waits)]
    page.histograms(WAIT, WAITS, waited)
    for family, outcome in ((LOSSES, "lost"), (RECLAIMS, "reclaimed")):  # of all types, so that there is a 0 to count from
        page.add(family, {(reading.queue,): sum(count.outcomes.get(outcome, 0) for count in rows.values())})
    page.add(ISOLATIONS, {(reading.queue,): reading.stats.isolated})


def _names(known: Collection[bytes]) -> dict[str, str]:
    """Return under which name each type with a handler here is shown: which ones do not depend on what came first."""
    return {name.decode(): name.decode() if n < MAX_TYPES else OTHER for n, name in enumerate(sorted(known))}


def _rows(reading: Reading) -> dict[tuple[str, str, str], Count]:
    """Return the counts by priority, queue and shown type: strangers choose what types there are, and no series is theirs."""
    names, rows = _names(reading.known), dict[tuple[str, str, str], Count]()
    shared: set[tuple[str, str, str]] = set()
    for type_name, priority, count in reading.stats.rows():
        of = (priority, reading.queue, names.get(type_name, UNKNOWN))
        if of in rows and of not in shared:
            shared.add(of)
            rows[of] = Count().add(rows[of])  # a copy: theirs is the process's own
        if of in rows:
            rows[of].add(count)
        else:
            rows[of] = count
    return rows


def _exemplars(reading: Reading) -> dict[tuple[str, str, str], dict[int, Exemplar]]:
    names, queue = _names(reading.known), reading.queue
    found: dict[tuple[bytes, int], dict[int, Exemplar]] = {}
    for (type_name, stream, power), one in (reading.trace or NO_TRACE).exemplars.items():
        kept = found.get((type_name, stream))
        if kept is None:
            kept = found[type_name, stream] = {}
        kept[power] = one
    # Types that share a label share its exemplars: one of them is as good as another.
    return {
        (STREAMS[stream], queue, names.get(name.decode(errors="replace"), UNKNOWN)): kept
        for (name, stream), kept in found.items()
    }


def _add_worker(page: Page, reading: Reading) -> None:
    queue = reading.queue
    for family, value in (
        (RUNNING, reading.running),
        (INBOX, reading.inbox),
        (HELD, reading.held),
        (LANES, reading.lanes),
        (RESERVED, reading.reserved),
        (READY, int(reading.is_ready)),
    ):
        page.add(family, {(queue,): value})
    for at, family in enumerate((PLACES, PLACES_TAKEN, PLACES_LOST)):
        page.add(family, {(kind, queue): numbers[at] for kind, numbers in reading.places.items()})
    page.add(BROKEN, {(queue, key): 1 for key in sorted(reading.broken)})
    page.add(AHEAD, {(priority, queue): ahead_s for priority, ahead_s in reading.ahead_s.items()})
    page.add(SENT, {(outcome,): n for outcome, n in reading.sent.items()})


def _add_loop_and_store(page: Page, reading: Reading) -> None:
    queue, stats, names = (reading.queue,), reading.stats, _names(reading.known)
    page.histograms(LAG, LAGS, [(queue, stats.lag.counts, stats.lag.total_s, {})])
    page.add(LAG_MAX, {queue: stats.lag.longest_s(reading.now_s)})
    blocked: dict[str, Blocks] = {}
    for type_name, blocks in stats.blocked.items():
        one = blocked.setdefault(names.get(type_name.decode(errors="replace"), UNKNOWN), Blocks())
        one.count, one.total_s = one.count + blocks.count, one.total_s + blocks.total_s
    page.add(BLOCKED, {(*queue, name): blocks.count for name, blocks in blocked.items()})
    page.add(BLOCKED_S, {(*queue, name): blocks.total_s for name, blocks in blocked.items()})
    page.add(STALLS, {(cause, *queue): blocks.count for cause, blocks in stats.stalls.items()})
    page.add(STALLS_S, {(cause, *queue): blocks.total_s for cause, blocks in stats.stalls.items()})
    for times, sizes, calls in ((FLUSH_S, FLUSH_JOBS, stats.flushes), (FETCH_S, FETCH_JOBS, stats.fetches)):
        page.histograms(times, CALLS, [(queue, calls.times, calls.took_s, {})])
        page.histograms(sizes, SIZES, [(queue, calls.sizes, float(calls.jobs), {})])
    page.add(STORE_ERRORS, {queue: stats.store_errors})
    page.add(RECONNECTS, {queue: reading.reconnects})
    page.add(REFUSED, {queue: stats.refused})
    page.add(UNKEPT, {queue: stats.unkept})


def _add_trace(page: Page, trace: TraceReading | None) -> None:
    if trace is None:
        return
    page.add(SPANS_MADE, {(kind,): trace.spans.get(kind, 0) for kind in SPANS})
    page.add(SPANS_DROPPED, {(reason,): trace.dropped.get(reason, 0) for reason in DROPS})
    page.summary(EXPORT, trace.exports, trace.export_s)
    page.add(EXPORT_FAILURES, trace.failures)
    page.add(MALFORMED, trace.malformed)
