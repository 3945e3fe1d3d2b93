"""Traces of a worker's jobs: a span per attempt that is sampled, and one made at the end of each that failed or was slow.

Nothing is made for other jobs. A traced attempt leaves a tuple; after each flush of the ledger the loop encodes what has piled
up, and hands the bytes to the sender's thread.
"""

from __future__ import annotations

import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from random import random
from typing import Any, Final

from opentelemetry.context import Context
from opentelemetry.sdk.version import __version__ as sdk_version

from otel import names, otlp
from otel.attempts import CRON, LONGEST_WAIT_S, About, Attempts, Ran, traceparent
from otel.metrics import TraceReading
from otel.otlp import Frame, Pairs, Shape, Span, Value
from otel.provider import encode, receive_spans
from otel.sampling import Sampling, is_straight
from otel.sender import Sender
from otel.settings import ExportSettings
from otel.spans import SPAN_KEY, JobSpan, LaneSpan, attach_fast, context_of, current_ids
from runtime import __version__, logs
from runtime.codec import TRACE_STATE, TRIED
from runtime.config import Config
from runtime.errors import Dead, Retry
from runtime.jobs import DONE, PLAIN, STREAMS, Job, Lease, Lost, Outcome, Park, Running, default_id
from runtime.settle import describe, frames_of

log: Final = logs.guarded("otel.tracing")

SPANS: Final = 512  # handed over at once: as many as the SDK's processor exports
SPANS_BYTES: Final = 1 << 19  # or so many, a guess: half of what a request has at most
OLDEST_S: Final = 1.0  # or as old as this, a guess: a person who has just started a job looks for its trace
ENCODED: Final = 64  # attempts encoded at once, a guess: of fewer each costs more; of more, jobs are kept for longer
OLDEST_ENDED_S: Final = 0.1  # or as old as this, a guess
CLOCK_S: Final = 1.0  # a guess: between two looks at how far the clock of the host is from the monotonic one
TOLD_S: Final = 60.0  # a guess: between two lines of the log that say the same
MOST_SPAN_BYTES: Final = SPANS_BYTES  # of a handler's own span: the SDK cuts no text
MAX_OWN_BYTES: Final = 4 << 20  # of handlers' own spans that are not handed over, a guess: half of what the sender keeps
EXEMPLARY_S: Final = 0.001  # each longer attempt is an exemplar, of shorter ones the last of each batch: there are many
MAX_SHAPES: Final = 1024  # a guess: more than types that have handlers, times priorities; a shape has some 20 kB
CHILD: Final = "otel.child:ChildTrace"
SCOPE: Final = "backend-jobs"

_PREFIXES: Final = [default_id(stream, "").encode() for stream in STREAMS]


# A traced first attempt that was done, of which nothing else is to be told; its times are of the monotonic clock.
Ended = tuple[Job, float, float, JobSpan]


class _Guard:
    """Logs what is raised in a block, and lets it go no further: a mistake in here costs spans, and never a job.

    Whatever it is: nothing is awaited in such a block, and what handlers raise may raise anything when it is looked at.
    """

    def __init__(self) -> None:
        self._told_s = float("-inf")

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if error is None:
            return False
        now_s = time.monotonic()
        if now_s - self._told_s > TOLD_S:
            self._told_s = now_s
            log.error("a span could not be made: %s\n%s", describe(error), frames_of(error))
        return True


class Tracing:
    """Observes the jobs of one worker. Owns what has ended and is not encoded, and what is encoded and not handed over.

    Used on the worker's loop.

    Args:
        about: what all spans say.
        sampling: which jobs are traced.
        sender: carries the spans; it is started before the first job, and ended by `close`.
        resource: attributes of the process that the spans are of.
        slow_s: an attempt that takes longer is traced at its end.
        block_s: one that blocks the loop for longer is, too; `lane.blocked` says so.
    """

    def __init__(
        self, about: About, sampling: Sampling, sender: Sender, resource: Pairs, *, slow_s: float, block_s: float
    ) -> None:
        self.told_s: float = min(slow_s, block_s)
        self.slow_s = slow_s
        self.sampling = sampling
        self.sender = sender
        self.resource = resource
        self.guarded: _Guard = _Guard()
        self.counts: dict[str, int] = {"sampled": 0, "forced": 0, "handler": 0}
        # By type, stream and power of two of the µs of a run: trace id, span id, seconds of the run, and when it ended.
        self.exemplars: dict[tuple[bytes, int, int], tuple[bytes, bytes, float, float]] = {}
        self._attempts = Attempts(about, sampling)
        self._frame = Frame(resource, SCOPE, __version__)
        self._offset_s = time.time() - time.monotonic()
        self._offset_until_s = 0.0
        self.ended: list[Ended] = []
        self._own: deque[bytes] = deque()
        self._own_bytes = 0  # about, since threads add to it
        self._pending: list[bytes] = []
        self._pending_spans = self._pending_bytes = 0
        self._encoded_s = self._handed_s = self._told_until_s = 0.0
        self._told = 0
        self._shapes: dict[tuple[bytes, int, bool], Shape] = {}

    def __repr__(self) -> str:
        return f"<Tracing {len(self.ended) + self._pending_spans} spans to hand over>"

    # --- what the worker tells ---------------------------------------------------------------------------------------

    def open_lane(self, lane: Running) -> LaneTracing:
        """Return what watches a lane, and let its handlers see it."""
        return LaneTracing(self, lane)

    def choose(self, jobs: Sequence[Job]) -> None:
        """Mark the jobs that are traced from their beginning."""
        with self.guarded:
            self.sampling.choose(jobs, time.monotonic())

    def died(self, lease: Lease, type_name: bytes, code: str, error: str) -> bytes:
        """Write down a death without a run."""
        with self.guarded:
            span = self._attempts.death(lease, type_name, code, error, self.ns(time.monotonic()))
            self._put_forced(span)
            return traceparent(span.trace_id, span.span_id)
        return b""

    def look(self, now_s: float) -> None:
        """Encode what has ended, so that no job is kept, and hand over what is worth a request."""
        with self.guarded:
            if now_s >= self._offset_until_s:  # else a step of the host's clock would tear spans from those of their senders
                self._offset_s, self._offset_until_s = time.time() - time.monotonic(), now_s + CLOCK_S
            if len(self.ended) >= ENCODED or now_s - self._encoded_s > OLDEST_ENDED_S:
                self._encoded_s = now_s
                self._encode()
            is_much = self._pending_spans + len(self._own) >= SPANS or self._pending_bytes + self._own_bytes >= SPANS_BYTES
            if is_much or now_s - self._handed_s > OLDEST_S:
                self._handed_s = now_s
                self._hand_over()
            if now_s > self._told_until_s:
                self._told_until_s = now_s + TOLD_S
                self._tell()

    def close(self, wait_s: float) -> None:
        """Send what is left, for so long at most. May be repeated."""
        with self.guarded:
            self._encode()
            self._hand_over()
        self.sender.end(wait_s)

    def reading(self) -> TraceReading:
        """Return what was done since the start, for metrics."""
        sent, by = self.sender.counts, self.sampling
        return TraceReading(
            spans=self.counts.copy(),
            dropped={
                "full": sent.dropped_full,
                "collector": sent.dropped_collector,
                "budget": by.forced.refused + by.believed.refused,
            },
            malformed=by.malformed + by.states_dropped,
            exports=sent.posts,
            export_s=sent.export_s,
            failures=sent.failures,
            exemplars={
                key: (trace_id.hex(), span_id.hex(), run_s, at_s)
                for key, (trace_id, span_id, run_s, at_s) in self.exemplars.items()
            },
        )

    # --- what lanes tell ---------------------------------------------------------------------------------------------

    def ns(self, at_s: float) -> int:
        """Return a time of the monotonic clock in ns since the epoch."""
        return int((at_s + self._offset_s) * 1e9)

    def write(self, ran: Ran, seen: JobSpan | LaneSpan) -> tuple[bytes, bytes]:
        """Write down an attempt of which there is more to tell; return the ids of its trace and its span."""
        span = self._attempts.span(ran, seen)
        if isinstance(seen, JobSpan):
            self.counts["sampled"] += 1
            self._put(otlp.encode(span), 1)
        else:
            self._put_forced(span)
        self._exemplify(ran.job, (span.end_ns - span.start_ns) / 1e9, span.trace_id, span.span_id, span.end_ns / 1e9)
        return span.trace_id, span.span_id

    def collect(self, recorded: bytes) -> None:
        """Take a span that a handler has recorded, here or in a child, as `provider.encode` returns it; from any thread."""
        if self.sender.is_full or self._own_bytes > MAX_OWN_BYTES or len(recorded) > MOST_SPAN_BYTES:
            self.sender.drop(1)
        else:
            self._own.append(recorded)
            self._own_bytes += len(recorded)

    # --- on their way ------------------------------------------------------------------------------------------------

    def _encode(self) -> None:
        ended = self.ended.copy()
        self.ended.clear()  # lanes append to this very list
        if not ended:
            return
        if self.sender.is_full:
            self.sender.drop(len(ended))
            return
        parts: list[bytes] = []
        last, others = ended[-1][0], 0
        shapes, offset_s, noise, at = self._shapes, self._offset_s, os.urandom(24 * len(ended)), 0
        for job, started_s, ended_s, span in ended:
            parent, trace_id, span_id = span.parent, span.trace_id, span.span_id
            if not span_id:
                trace_id = noise[at : at + 16] if parent is None else parent[0]
                span_id = noise[at + 16 : at + 24]
                span.trace_id, span.span_id = trace_id, span_id  # a task that outlives its job may still ask for them
            at += 24
            parent_id = parent[1] if parent is not None and parent[2] else b""
            start_s, end_s = started_s + offset_s, ended_s + offset_s
            wait_s = start_s - int(job.entry.partition(b"-")[0]) / 1000
            if wait_s > LONGEST_WAIT_S:
                self.write(Ran(job, DONE, None, int(start_s * 1e9), int(end_s * 1e9)), span)
                others += 1  # which that has counted
                continue
            shape = shapes.get((job.type, job.stream, not parent_id)) or self._shape(job, bool(parent_id))
            envelope = job.envelope
            job_id = _PREFIXES[job.stream] + job.entry if envelope is PLAIN or not envelope.id else envelope.id.encode()
            start_ns, end_ns = int(start_s * 1e9), int(end_s * 1e9)
            parts += shape.parts(trace_id, span_id, parent_id, start_ns, end_ns, wait_s if wait_s > 0 else 0.0, job_id)
            if ended_s - started_s > EXEMPLARY_S or job is last:
                self._exemplify(job, ended_s - started_s, trace_id, span_id, end_s)
        self.counts["sampled"] += len(ended) - others
        self._put(b"".join(parts), len(ended) - others)

    def _shape(self, job: Job, has_parent: bool) -> Shape:
        shape = self._attempts.shape(job, has_parent)
        if len(self._shapes) < MAX_SHAPES:
            self._shapes[job.type, job.stream, not has_parent] = shape
        return shape

    def _exemplify(self, job: Job, run_s: float, trace_id: bytes, span_id: bytes, at_s: float) -> None:
        self.exemplars[job.type, job.stream, int(run_s * 1e6).bit_length()] = (trace_id, span_id, run_s, at_s)

    def _put_forced(self, span: Span) -> None:
        self.counts["forced"] += 1
        self._put(otlp.encode(span), 1)

    def _put(self, spans: bytes, number: int) -> None:
        self._pending.append(spans)
        self._pending_spans += number
        self._pending_bytes += len(spans)
        if self._pending_bytes >= SPANS_BYTES:
            self._hand_over()  # a sender that has no place drops a request as a whole

    def _hand_over(self) -> None:
        own: list[bytes] = []
        size_bytes, self._own_bytes = 0, 0
        for _ in range(len(self._own)):
            own.append(self._own.popleft())
            size_bytes += len(own[-1])
            if size_bytes >= SPANS_BYTES:
                self._hand_over_with(own)
                own, size_bytes = [], 0
        self._hand_over_with(own)

    def _hand_over_with(self, own: list[bytes]) -> None:
        self.counts["handler"] += len(own)
        if self._pending or own:
            request, number = self._frame.around(self._pending, own), self._pending_spans + len(own)
            self._pending, self._pending_spans, self._pending_bytes = [], 0, 0
            self.sender.put(request, number)

    def _tell(self) -> None:
        """Log how many attempts were not traced since the last time, if any."""
        refused = self.sampling.forced.refused + self.sampling.believed.refused
        if refused > self._told:
            text = "%d attempts were not traced: more failed or were slow than --trace-forced-per-s, or came sampled than %s"
            log.warning(text, refused - self._told, "--trace-spans-per-s")
        self._told = refused


class LaneTracing:
    """Watches one lane: which span its jobs see, and what is written down of them."""

    def __init__(self, tracing: Tracing, lane: Running) -> None:
        self._tracing = tracing
        self._lane = lane
        self._sampling = tracing.sampling
        self._note_done = tracing.ended.append
        self._span: JobSpan | None = None
        self._lane_span = LaneSpan(lane, tracing.sampling)
        self._base = context_of(self._lane_span)
        attach_fast(self._base)

    def begin(self, job: Job) -> None:
        """Let the handler of a traced job see a span of its own."""
        parent, state = None, ""
        if job.trace:
            parent = self._sampling.trace_of(job)
            if parent is not None and TRACE_STATE in job.fields:
                state = self._sampling.state_of(job)
        self._span = span = JobSpan(parent, state)
        attach_fast(Context({SPAN_KEY: span}))

    def ended(self, job: Job, outcome: Outcome, error: BaseException | None, started_s: float, ended_s: float) -> bytes:
        """Write an attempt down, if it was traced, failed, or took long; return its traceparent, if there may be another one."""
        span, self._span = self._span, None
        attach_fast(self._base)
        blocked = self._lane.blocked
        blocked_ms = blocked[1] if blocked is not None and blocked[0] is job else 0.0
        if span is not None:
            span.is_over = True
            if (
                outcome is DONE
                and not (span.is_touched or blocked_ms)
                and job.count == 1
                and (not job.fields or self._is_usual(job, span))
            ):
                self._note_done((job, started_s, ended_s, span))
                return b""
        with self._tracing.guarded:
            return self._write(job, outcome, error, started_s, ended_s, span, blocked_ms)
        return b""

    def _write(
        self,
        job: Job,
        outcome: Outcome,
        error: BaseException | None,
        started_s: float,
        ended_s: float,
        span: JobSpan | None,
        blocked_ms: float,
    ) -> bytes:
        tracing = self._tracing
        if span is None:
            if self._is_left_out(outcome, ended_s - started_s, ended_s, blocked_ms):
                return b""
        elif isinstance(outcome, Park):  # it has not begun
            return b""
        ran = Ran(job, outcome, error, tracing.ns(started_s), tracing.ns(ended_s), blocked_ms)
        recorded = tracing.write(ran, span or self._lane_span)
        self._lane_span.adopt(job, recorded)  # for the line of the log that comes next
        return traceparent(*recorded)

    def _is_usual(self, job: Job, span: JobSpan) -> bool:
        """Return whether a traced attempt of a job with fields that was done has a span like most: nothing but times and ids."""
        if (job.trace and span.parent is None) or TRACE_STATE in job.fields:
            return False
        envelope = job.envelope
        if envelope is PLAIN:  # which says nothing of what follows
            return True
        has_past = envelope.origin or TRIED in job.fields or envelope.id.startswith(CRON)
        return is_straight(envelope) and not has_past

    def _is_left_out(self, outcome: Outcome, run_s: float, now_s: float, blocked_ms: float) -> bool:
        """Return whether no span is made at the end of an attempt that was not sampled."""
        if isinstance(outcome, Dead | Lost):
            return False
        is_long = outcome is DONE and run_s >= self._tracing.slow_s
        if not (is_long or blocked_ms or isinstance(outcome, Retry)):
            return True
        return not self._tracing.sampling.forced.take(now_s)

    def carried(self, job: Job) -> tuple[str, tuple[Any, ...]]:
        """Return what traces this job in a child process."""
        if self._span is not None:
            return CHILD, (traceparent(*self._span.identify()).decode(),)
        trace_id, span_id = self._lane_span.ids_of(job)
        return CHILD, (f"00-{trace_id.hex()}-{span_id.hex()}-00",)

    def collect(self, recorded: Sequence[bytes]) -> None:
        """Send what a child process has recorded."""
        for span in recorded:
            self._tracing.collect(span)


def begin(config: Config, export: ExportSettings, server: str, worker: str) -> Tracing:
    """Return the traces of a worker, with a sender that has begun; `server` is the URL of its store, `worker` its name there."""
    about = About(queue=config.queue, server=server, worker=worker, tells_errors=config.trace_errors == "full")
    sampling = Sampling(
        export.sampler,
        export.ratio,
        trusts=config.trace_trust == "on",
        joins=config.trace_join == "child",
        spans_per_s=config.trace_spans_per_s,
        forced_per_s=config.trace_forced_per_s,
        jitter=random,
    )
    resource = resource_of(export.resource, worker)
    sender = Sender(export)
    tracing = Tracing(about, sampling, sender, resource, slow_s=config.slow_ms / 1000, block_s=config.block_warn_ms / 1000)
    receive_spans(lambda span: tracing.collect(encode(span)), resource, sampling.root_ratio)
    sender.start()
    logs.trace_ids = current_ids
    return tracing


def resource_of(given: Pairs, worker: str) -> Pairs:
    """Return the attributes of this process; what is given wins.

    Without `host.name`, Jaeger takes each span for one of another host, whose clock may be off.
    """
    ours: dict[str, Value] = {
        names.SERVICE_NAME: "backend-jobs",
        names.SERVICE_VERSION: __version__,
        names.SERVICE_INSTANCE: worker,
        names.HOST_NAME: socket.gethostname(),
        names.PROCESS_ID: os.getpid(),
        names.SDK_NAME: "opentelemetry",
        names.SDK_LANGUAGE: "python",
        names.SDK_VERSION: sdk_version,
    }
    return {**ours, **given}
