"""What the span of an attempt says: its name, attributes, events, links, status, and whose child it is.

docs/tracing.md has the table.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

import msgspec

from otel import names, otlp
from otel.otlp import Event, Link, Pairs, Shape, Span, Value
from otel.sampling import Sampling, parse
from otel.spans import JobSpan, LaneSpan
from runtime.codec import TRIED
from runtime.errors import Dead, Retry, Snooze
from runtime.jobs import STREAMS, TYPE_NAME, Job, Lease, Lost, Outcome, default_id, ms_of
from runtime.settle import describe, frames_of, message_of, name_of, origin_of
from runtime.stats import outcome_name
from runtime.store.base import GROUP

LONGEST_WAIT_S: Final = 10 * 365 * 86_400  # a sender may choose the id of an entry; what waited for ten years did not
CRON: Final = "cron:"  # what ids of jobs begin with that a schedule has sent


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What the spans of a worker have in common: `server` is the URL of its store, `worker` its name in there."""

    queue: str
    server: str
    worker: str
    tells_errors: bool = True


class Ran(msgspec.Struct, frozen=True):
    """An attempt that has ended: when it began and ended, in ns since the epoch, and how long it had blocked the loop."""

    job: Job
    outcome: Outcome
    error: BaseException | None
    start_ns: int
    end_ns: int
    blocked_ms: float = 0.0


class Attempts:
    """Makes spans. Owns nothing but what they have in common."""

    def __init__(self, about: About, sampling: Sampling) -> None:
        self._sampling = sampling
        self._tells_errors = about.tells_errors
        constant: Pairs = {
            names.SYSTEM: names.REDIS,
            names.OPERATION_NAME: "process",
            names.OPERATION_TYPE: "process",
            names.DESTINATION: about.queue,
            names.CONSUMER_GROUP: GROUP,
            names.CLIENT_ID: about.worker,
            **server_pairs(about.server),
        }
        self._constant = otlp.attributes(constant)
        self._constant_names = constant.keys()

    def shape(self, job: Job, has_parent: bool) -> Shape:
        """Return what the spans of all first attempts that were done have in common, of this type and priority."""
        name = job.type.decode(errors="replace")
        constant = self._constant + otlp.attributes({**_job_pairs(name, job.stream, 1, 1), names.OUTCOME: "done"})
        return Shape(f"process {name}", otlp.CONSUMER, constant, names.WAIT_S, names.MESSAGE_ID, has_parent=has_parent)

    def span(self, ran: Ran, seen: JobSpan | LaneSpan) -> Span:
        """Return the span of an attempt; `seen` is what its handler saw: the job's own span, or the lane's, where the job was not
        sampled and this is made at its end.

        That one is a root in the trace of the sender: it has no parent and no link there, since the sender's span is most likely
        not recorded, and Jaeger warns of a parent that is missing, or is linked to inside of a trace.
        """
        job, outcome, error = ran.job, ran.outcome, ran.error
        is_sampled = isinstance(seen, JobSpan)
        trace_id, span_id = seen.ids_of(job)
        parent = self._sampling.trace_of(job)
        state = self._sampling.state_of(job) if parent is not None else ""
        pairs, events, links = self._pairs(ran), list[Event](), self._links(job)
        if error is not None:
            pairs[names.ERROR_TYPE] = error_type(error, outcome)
            events = self._events(error, outcome, ran.end_ns)
        if not is_sampled:
            pairs[names.FORCED] = True
        elif seen.is_touched:
            pairs = {**{key: value for key, value in seen.attributes.copy().items() if key not in self._constant_names}, **pairs}
            events, links = [*seen.events, *events], [*links, *seen.links]
        return Span(
            name=f"process {pairs[names.TYPE]}",
            kind=otlp.CONSUMER,
            trace_id=trace_id,
            span_id=span_id,
            parent_id=parent[1] if is_sampled and parent is not None and parent[2] else b"",
            state=state if is_sampled else without_threshold(state),
            constant=self._constant,
            start_ns=ran.start_ns,
            end_ns=max(ran.start_ns, ran.end_ns),
            pairs=pairs,
            events=events,
            links=links,
            error=None if error is None or isinstance(outcome, Snooze) else self._told(error, outcome),
        )

    def death(self, lease: Lease, type_name: bytes, code: str, error: str, at_ns: int) -> Span:
        """Return the span, without length, of a death without a run."""
        job = lease if isinstance(lease, Job) else None
        trace_id, span_id = JobSpan(self._sampling.trace_of(job) if job is not None else None).identify()
        name = type_name.decode() if TYPE_NAME.match(type_name) else ""  # else anybody could make names of spans
        failed = job.envelope.failed if job is not None else 0
        pairs = {**_job_pairs(name, lease.stream, failed + 1, lease.count), names.OUTCOME: "dead"}
        pairs[names.MESSAGE_ID] = job.id if job is not None else default_id(STREAMS[lease.stream], lease.entry.decode())
        return Span(
            name=f"process {name}".rstrip(),
            kind=otlp.CONSUMER,
            trace_id=trace_id,
            span_id=span_id,
            constant=self._constant,
            start_ns=at_ns,
            end_ns=at_ns,
            pairs={**pairs, names.DEAD_CODE: code, names.ERROR_TYPE: code, names.FORCED: True},
            events=[Event("job.dead", at_ns, {names.DEAD_CODE: code})],
            links=self._links(job) if job is not None else (),
            error=error if self._tells_errors else code,
        )

    def _pairs(self, ran: Ran) -> dict[str, Value]:
        job, outcome, envelope = ran.job, ran.outcome, ran.job.envelope
        pairs: dict[str, Value] = {
            **_job_pairs(job.type.decode(errors="replace"), job.stream, job.attempt, job.count),
            names.MESSAGE_ID: job.id,
            names.OUTCOME: outcome_name(outcome),
        }
        wait_s = ran.start_ns / 1e9 - ms_of(job.entry, job.fetched_ms) / 1000
        if wait_s < LONGEST_WAIT_S:
            pairs[names.WAIT_S] = max(0.0, wait_s)
        if isinstance(outcome, Dead):
            pairs[names.DEAD_CODE] = outcome.code
        if envelope.origin:
            pairs[names.ORIGIN] = envelope.origin
        if envelope.id.startswith(CRON):
            pairs[names.SCHEDULE] = envelope.id.split(":")[1]
        if ran.blocked_ms:
            pairs[names.BLOCKED_MS] = round(ran.blocked_ms)
        return pairs

    def _events(self, error: BaseException, outcome: Outcome, at_ns: int) -> list[Event]:
        events: list[Event] = []
        if not isinstance(outcome, Snooze | Lost):
            pairs = {names.EXCEPTION_TYPE: name_of(error)}
            if self._tells_errors:
                stack = outcome.stack if isinstance(outcome, Dead) and outcome.stack else frames_of(error)
                pairs |= {names.EXCEPTION_MESSAGE: message_of(error), names.EXCEPTION_STACK: stack}
            events.append(Event("exception", at_ns, pairs))
        match outcome:
            case Retry():
                events.append(Event("job.retry", at_ns, {names.DELAY_S: outcome.delay_s}))
            case Snooze():
                events.append(Event("job.snooze", at_ns, {names.DELAY_S: outcome.delay_s}))
            case Dead():
                events.append(Event("job.dead", at_ns, {names.DEAD_CODE: outcome.code}))
            case Lost():
                events.append(Event("job.lease_lost", at_ns))
            case _:
                pass
        return events

    def _told(self, error: BaseException, outcome: Outcome) -> str:
        if not self._tells_errors:
            return error_type(error, outcome)
        return describe(outcome if isinstance(outcome, Dead | Retry) else error)

    def _links(self, job: Job) -> list[Link]:
        """Return links to the spans before this one that are recorded, and stand in other traces."""
        links: list[Link] = []
        if TRIED in job.fields:
            tried = parse(dict(zip(job.fields[::2], job.fields[1::2], strict=False)).get(TRIED, b""))
            if tried is not None and tried[2]:
                links.append(Link(*tried[:2], {names.LINK: "previous_attempt"}))
        sender = None if self._sampling.trace_of(job) is not None else self._sampling.parent_of(job)
        if sender is not None and sender[2]:
            links.append(Link(*sender[:2], {names.LINK: "producer"}))
        return links


def _job_pairs(name: str, stream: int, attempt: int, deliveries: int) -> dict[str, Value]:
    pairs: dict[str, Value] = {names.TYPE: name} if name else {}
    return {**pairs, names.PRIORITY: STREAMS[stream], names.ATTEMPT: attempt, names.DELIVERIES: deliveries}


def error_type(error: BaseException, outcome: Outcome) -> str:
    """Return what a failure has in common with others of its kind: a class, or the code of a death, and never a message."""
    if not isinstance(outcome, Dead):
        return name_of(error)
    cause = origin_of(error)
    return outcome.code if cause is None else name_of(cause)


def traceparent(trace_id: bytes, span_id: bytes) -> bytes:
    """Return the traceparent of a span that is recorded."""
    return b"00-%b-%b-01" % (trace_id.hex().encode(), span_id.hex().encode())


def without_threshold(state: str) -> str:
    """Return a tracestate without OpenTelemetry's sampling threshold: a span that is made at the end has no known probability.

    Source: OpenTelemetry specification, "TraceState: Probability Sampling".
    """
    kept: list[str] = []
    for member in filter(None, map(str.strip, state.split(","))):
        key, _, value = member.partition("=")
        if key != "ot":
            kept.append(member)
        elif rest := ";".join(part for part in value.split(";") if not part.startswith("th:")):
            kept.append(f"ot={rest}")
    return ",".join(kept)


def server_pairs(url: str) -> dict[str, Value]:
    """Return which server a URL means: its host and port, or the path of its socket."""
    with suppress(ValueError):
        address = urlsplit(url)
        if address.scheme == "unix":
            return {names.SERVER_ADDRESS: address.path}
        if address.hostname:
            return {names.SERVER_ADDRESS: address.hostname, names.SERVER_PORT: address.port or 6379}
    return {}
