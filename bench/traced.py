"""What tracing costs: drains in turn with and without it, collectors that are away, and single spans, ours and the SDK's."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanKind

from bench.lab import PAYLOAD, Server, Worker
from bench.sink import nobody, sink
from otel import names
from otel.attempts import About
from otel.sampling import Sampling
from otel.sender import Sender
from otel.settings import ExportSettings
from otel.tracing import Tracing, resource_of
from runtime.codec import decode_many
from runtime.errors import Retry
from runtime.jobs import DONE, Job, Kept

Figures = dict[str, float]
ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
SAMPLER: Final = "OTEL_TRACES_SAMPLER"
NONE: Final = {SAMPLER: "parentbased_always_off"}
ONE_PERCENT: Final = {SAMPLER: "parentbased_traceidratio", f"{SAMPLER}_ARG": "0.01"}
ALL: Final = {SAMPLER: "parentbased_always_on"}
SAMPLED: Final = (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
BELIEVED: Final = ("--trace-spans-per-s", "1000000")  # as many as there are
SPANS: Final = 512  # in a batch
ROUNDS: Final = 30  # a guess: enough for a steady median
NOW_MS: Final = 1_790_000_000_000  # any time: a day of 2026


def drain(
    jobs: int,
    variables: dict[str, str] | None = None,
    options: Sequence[str] = (),
    fields: Sequence[bytes] = (),
) -> Figures:
    """Drain jobs with these variables and options of the worker, and these fields in each message."""
    with Server() as server:
        server.fill(jobs, fields=fields)
        with Worker(server, "--concurrency", "500", *options, variables=variables) as worker:
            worker.wait_for(lambda: server.waiting() < jobs, "the first job")
            began_s, before, cpu_s = time.perf_counter(), server.left(), worker.cpu_s()
            worker.wait_for(lambda: server.left() == 0, "the last job")
            seconds, cpu_s = time.perf_counter() - began_s, worker.cpu_s() - cpu_s
            rss_mb, ending_s = worker.rss_mb(), time.perf_counter()
            worker.stop(jobs)
        server.check_empty()
        stop_s = time.perf_counter() - ending_s
    return {"jobs_per_s": before / seconds, "worker_us": cpu_s / before * 1e6, "rss_mb": rss_mb, "stop_s": stop_s}


def drains(jobs: int) -> Figures:
    """Return the rates of traced drains as parts of that of an untraced one."""
    off = drain(jobs)
    figures: Figures = {"jobs_per_s": off["jobs_per_s"], "worker_us": off["worker_us"]}
    with sink() as endpoint:
        to = {ENDPOINT: endpoint}
        for name, variables, options, fields in (
            ("none", NONE, (), ()),
            ("one_percent", ONE_PERCENT, (), ()),
            ("all", ALL, (), ()),
            ("children", NONE, BELIEVED, SAMPLED),
        ):
            figures |= _beside(name, drain(jobs, to | variables, options, fields), off)
    figures |= _beside("carried", drain(jobs, fields=SAMPLED), off)
    return figures


def away(jobs: int) -> Figures:
    """Return what becomes of a drain in which every job is traced, where the collector refuses connections, or never answers."""
    with sink() as endpoint:
        there = drain(jobs, {ENDPOINT: endpoint, **ALL})
    figures: Figures = {}
    with sink(is_silent=True) as silent:
        for name, endpoint in (("refused", nobody()), ("silent", silent)):
            found = drain(jobs, {ENDPOINT: endpoint, **ALL})
            figures |= {
                f"{name}_of_there": found["jobs_per_s"] / there["jobs_per_s"],
                f"{name}_mb": found["rss_mb"] - there["rss_mb"],
                f"{name}_stop_s": found["stop_s"] - there["stop_s"],
            }
    return figures


def _beside(name: str, found: Figures, off: Figures) -> Figures:
    return {f"{name}_of_off": found["jobs_per_s"] / off["jobs_per_s"], f"{name}_us": found["worker_us"]}


# --- single spans, without Redis ---------------------------------------------------------------------------------------------


class _Nowhere(Sender):
    """Takes requests, and sends them nowhere."""

    @property
    def is_full(self) -> bool:
        return False

    def put(self, request: bytes, spans: int) -> bool:
        return True


class _Lane:
    """A lane, as a tracing sees it."""

    job: Job | None = None
    started_s = 0.0
    watch = None
    blocked = None
    is_open = True

    def begin(self) -> None:
        """Nothing runs here."""

    def hear(self, job: Job) -> None:
        """Nothing is said here."""

    def keep(self, result: Kept) -> None:
        """Nothing is answered here."""


class _Kept(SpanProcessor):
    """Keeps what has ended, as the SDK's batches do."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


def spans() -> Figures:
    """Return what a span costs in µs of CPU: of a sampled job that was done, of one made at the end of a failed attempt, and by
    the SDK.
    """
    sampling = Sampling(
        "parentbased_always_on", 1.0, trusts=True, joins=True, spans_per_s=1, forced_per_s=10**9, jitter=random.random
    )
    about = About(queue="jobs", server="redis://127.0.0.1:6379", worker="worker-1")
    resource = resource_of({}, "worker-1")
    tracing = Tracing(about, sampling, _Nowhere(ExportSettings(endpoint="http://x")), resource, slow_s=10, block_s=0.1)
    lane = tracing.open_lane(_Lane())
    rows = [(b"%d-%d" % (NOW_MS - 5, at), [b"type", b"noop", b"data", PAYLOAD]) for at in range(SPANS)]
    jobs, _ = decode_many(2, rows, [1] * SPANS, "run", 0.0, NOW_MS)

    def sampled() -> None:
        for job in jobs:
            lane.begin(job)
            lane.ended(job, DONE, None, 1.0, 1.0)
        tracing.look(time.monotonic() + 10)

    def forced() -> None:
        for job in jobs:
            lane.ended(job, again, failure, 1.0, 1.0)
        tracing.look(time.monotonic() + 10)

    provider, kept = TracerProvider(resource=Resource(dict(resource)), shutdown_on_exit=False), _Kept()
    provider.add_span_processor(kept)
    tracer = provider.get_tracer("bench")
    pairs: dict[str, Any] = {
        names.SYSTEM: "redis", names.OPERATION_NAME: "process", names.OPERATION_TYPE: "process", names.DESTINATION: "jobs",
        names.CONSUMER_GROUP: "workers", names.CLIENT_ID: "worker-1", names.TYPE: "noop", names.PRIORITY: "medium",
        names.ATTEMPT: 1, names.DELIVERIES: 1, names.OUTCOME: "done", names.WAIT_S: 0.005,
    }  # fmt: skip

    def by_sdk() -> None:
        for job in jobs:
            attributes = {**pairs, names.MESSAGE_ID: job.id}
            with tracer.start_as_current_span("process noop", kind=SpanKind.CONSUMER, attributes=attributes):
                pass
        encode_spans(kept.spans).SerializeToString()
        kept.spans.clear()

    again, failure = Retry(1.0, "again"), _failure(6)
    return {"sampled_us": _us(sampled), "forced_us": _us(forced), "sdk_us": _us(by_sdk)}


def _failure(frames: int) -> Exception:
    """Return an error that came through so many frames."""
    try:
        _raise(frames)
    except ConnectionError as error:
        return error
    raise AssertionError


def _raise(frames: int) -> None:
    if frames > 1:
        _raise(frames - 1)
    raise ConnectionError("smtp.example.com: connection refused")


def _us(work: Callable[[], None]) -> float:
    taken_s: list[float] = []
    for _ in range(ROUNDS):
        began_s = time.thread_time()
        work()
        taken_s.append(time.thread_time() - began_s)
    return median(taken_s) / SPANS * 1e6
