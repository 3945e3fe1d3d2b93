"""What is traced of jobs that lanes run: which spans there are, whose children, with what in them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    exception_attributes,
    host_attributes,
    messaging_attributes,
    process_attributes,
    server_attributes,
    service_attributes,
    telemetry_attributes,
)

from otel import names, otlp
from otel.attempts import About, server_pairs, without_threshold
from otel.sampling import Sampling
from otel.spans import current_ids
from otel.tracing import MOST_SPAN_BYTES, SPANS_BYTES, Tracing, resource_of
from runtime.backoff import Backoff
from runtime.codec import decode_many
from runtime.errors import Dead, Retry, Snooze
from runtime.jobs import BadEntry, Handler, Job, Lease, contract_of
from runtime.stats import Stats
from runtime.worker.lanes import Inbox, Lane
from runtime.worker.ledger import Ledger
from tests.unit.test_lanes import Greet, until
from tests.unit.test_sampling import SAMPLED, SPAN, TRACE, UNSAMPLED, sampling

Run = Callable[[Any, Job], Any]
PREVIOUS = f"00-{'1' * 32}-{'2' * 16}-01"


class Kept:
    """Takes the place of the sender: keeps what is put into it."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, int]] = []
        self.dropped = 0
        self.is_full = False
        self.ended: list[float] = []

    def put(self, request: bytes, spans: int) -> bool:
        self.requests.append((request, spans))
        return True

    def drop(self, spans: int) -> None:
        self.dropped += spans

    def end(self, wait_s: float) -> None:
        self.ended.append(wait_s)


@dataclass
class Traced:
    """Lanes over a tracing, and what it would send."""

    tracing: Tracing
    kept: Kept
    inbox: Inbox = field(default_factory=Inbox)
    ledger: Ledger = field(default_factory=Ledger)
    stats: Stats = field(default_factory=Stats)
    handlers: dict[bytes, Handler[Any]] = field(default_factory=dict)
    lanes: list[Lane] = field(default_factory=list)
    logged: list[tuple[str, object]] = field(default_factory=list)
    count: int = 0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.ledger.observer = self.tracing

    def open(self) -> Lane:
        lane = Lane(
            self.inbox,
            self.ledger,
            self.stats,
            self.handlers,
            self.clock,
            lambda: 0.5,
            lambda job, error, outcome: self.logged.append((job.id, current_ids())),
            observer=self.tracing,
        )
        lane.start()
        self.lanes.append(lane)
        return lane

    def job(self, run: Run, type_name: str = "greet", *, deliveries: int = 1, attempts: int = 3, **fields: str) -> Job:
        """Return a job of this handler, as it is fetched, and chosen or not."""
        policy = Backoff(attempts=attempts)
        self.handlers[type_name.encode()] = Handler(contract_of(Greet), run, lambda job: None, run, 30.0, policy, "loop")
        self.count += 1
        pairs = {"type": type_name, "data": "{}", **fields}
        now_ms = int(time.time() * 1000)
        entry = b"%d-%d" % (now_ms - 2000, self.count)
        row = (entry, [word.encode() for pair in pairs.items() for word in pair])
        (job,), _ = decode_many(1, [row], [deliveries], "run", time.monotonic(), now_ms)
        self.tracing.choose([job])
        return job

    async def run(self, run: Run, type_name: str = "greet", **fields: Any) -> Job:
        """Run one job to its end."""
        job, before = self.job(run, type_name, **fields), self.stats.finished
        self.inbox.put([job])
        await until(lambda: self.stats.finished > before)
        return job

    def spans(self) -> list[Span]:
        """Return what has been written down so far."""
        self.tracing.close(0)
        read = [ExportTraceServiceRequest.FromString(request) for request, _ in self.kept.requests]
        return [
            span
            for request in read
            for of_resource in request.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]

    def span(self) -> Span:
        (span,) = self.spans()
        return span


def tracing(by: Sampling | None = None, **changed: Any) -> tuple[Tracing, Kept]:
    about = About(**{"queue": "jobs", "server": "redis://10.0.0.7:6380/2", "worker": "w-1", **changed})
    kept = Kept()
    made = Tracing(about, by or sampling(), kept, {"service.name": "mail"}, slow_s=5.0, block_s=0.1)  # pyright: ignore[reportArgumentType]
    return made, kept


@pytest.fixture
async def traced() -> AsyncIterator[Callable[..., Traced]]:
    made: list[Traced] = []

    def make(by: Sampling | None = None, lanes: int = 1, clock: Callable[[], float] = time.monotonic, **changed: Any) -> Traced:
        world = Traced(*tracing(by, **changed), clock=clock)
        for _ in range(lanes):
            world.open()
        made.append(world)
        return world

    yield make
    for world in made:
        for lane in world.lanes:
            lane.stop()
        tasks = [lane.task for lane in world.lanes if lane.task is not None]
        if tasks:
            await asyncio.wait(tasks)


def values(span: Span) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in span.attributes}


def events(span: Span) -> dict[str, dict[str, Any]]:
    return {
        event.name: {pair.key: getattr(pair.value, pair.value.WhichOneof("value") or "") for pair in event.attributes}
        for event in span.events
    }


def links(span: Span) -> list[tuple[str, str, str]]:
    return [(link.trace_id.hex(), link.span_id.hex(), link.attributes[0].value.string_value) for link in span.links]


async def returns(payload: Any, job: Job) -> None:
    pass


async def fails(payload: Any, job: Job) -> None:
    raise ConnectionError("refused")


def raising(error: BaseException) -> Run:
    async def run(payload: Any, job: Job) -> None:
        raise error

    return run


# --- what is not traced costs nothing ----------------------------------------------------------------------------------------


async def test_of_a_job_that_is_not_sampled_and_was_done_there_is_no_span(traced: Callable[..., Traced]) -> None:
    world = traced()
    await world.run(returns)
    await world.run(returns, traceparent=UNSAMPLED)
    assert world.spans() == []


# --- sampled -----------------------------------------------------------------------------------------------------------------


async def test_a_sampled_job_is_a_child_of_its_sender(traced: Callable[..., Traced]) -> None:
    world = traced()
    job = await world.run(returns, traceparent=SAMPLED, src="web")
    span = world.span()
    assert (span.name, span.kind) == ("process greet", Span.SPAN_KIND_CONSUMER)
    assert (span.trace_id.hex(), span.parent_span_id.hex(), list(span.links)) == (TRACE, SPAN, [])
    assert span.status.code == 0
    found = values(span)
    assert 2.0 <= found.pop("job.wait_s") < 60
    assert found == {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "jobs",
        "messaging.consumer.group.name": "workers",
        "messaging.client.id": "w-1",
        "messaging.message.id": job.id,
        "server.address": "10.0.0.7",
        "server.port": 6380,
        "job.type": "greet",
        "job.priority": "high",
        "job.attempt": 1,
        "job.deliveries": 1,
        "job.outcome": "done",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"id": "mine"},
        {"traceparent": SAMPLED},
        {"key": "k", "src": "web"},
        {"id": "cron:daily:1"},
        {"x-origin": "high-1-1"},
        {"tried": PREVIOUS},
        {"src": "web", "deliveries": 2},
    ],
    ids=str,
)
async def test_the_fast_way_and_the_slow_way_tell_the_same(traced: Callable[..., Traced], fields: dict[str, Any]) -> None:
    async def touches(payload: Any, job: Job) -> None:
        trace.get_current_span().set_attribute("mine", 1)

    told: list[dict[str, Any]] = []
    for run in (returns, touches):
        world = traced(sampling("always_on"))
        await world.run(run, **fields)
        found = values(world.span())
        assert found.pop("mine", 1) == 1
        del found["job.wait_s"]
        found["messaging.message.id"] = found["messaging.message.id"][:5]
        told.append({**found, "parent": world.span().parent_span_id, "links": links(world.span())})
    assert told[0] == told[1]


async def test_times_are_those_of_the_run_and_of_this_host(traced: Callable[..., Traced]) -> None:
    world = traced(sampling("always_on"))
    before_ns = time.time_ns()
    await world.run(returns)
    after_ns = time.time_ns()
    span = world.span()
    slack_ns = 50_000_000  # the clocks are read one after the other
    assert before_ns - slack_ns <= span.start_time_unix_nano <= span.end_time_unix_nano <= after_ns + slack_ns


async def test_handlers_add_to_the_span_of_their_job_and_see_no_other(traced: Callable[..., Traced]) -> None:
    seen: list[trace.SpanContext] = []

    async def adds(payload: Any, job: Job) -> None:
        span = trace.get_current_span()
        seen.append(span.get_span_context())
        span.set_attribute("mail.domain", "example.com")
        await asyncio.sleep(0)
        trace.get_current_span().add_event("sent")

    async def looks(payload: Any, job: Job) -> None:
        seen.append(trace.get_current_span().get_span_context())

    world = traced()
    await world.run(adds, traceparent=SAMPLED)
    await world.run(looks, "other")
    span = world.span()
    assert values(span)["mail.domain"] == "example.com"
    assert "sent" in events(span)
    assert seen[0].span_id.to_bytes(8, "big") == span.span_id
    assert seen[1].is_valid
    assert seen[1].trace_id != seen[0].trace_id
    assert not seen[1].trace_flags.sampled


async def test_what_a_handler_adds_takes_no_place_of_what_the_worker_says(traced: Callable[..., Traced]) -> None:
    async def pretends(payload: Any, job: Job) -> None:
        trace.get_current_span().set_attributes({"messaging.system": "kafka", "job.type": "other", "error.type": "mine"})

    world = traced(sampling("always_on"))
    await world.run(pretends)
    span = world.span()
    assert span.name == "process greet"
    assert (values(span)["messaging.system"], values(span)["job.type"], values(span)["error.type"]) == ("redis", "greet", "mine")
    assert len(span.attributes) == len({pair.key for pair in span.attributes})


async def test_a_task_that_outlives_its_job_stays_in_the_trace_of_it(traced: Callable[..., Traced]) -> None:
    gate, seen, tasks = asyncio.Event(), list[trace.SpanContext](), list[asyncio.Task[None]]()

    async def later() -> None:
        await gate.wait()
        seen.append(trace.get_current_span().get_span_context())

    async def leaves_a_task(payload: Any, job: Job) -> None:
        tasks.append(asyncio.create_task(later()))

    world = traced()
    await world.run(leaves_a_task, traceparent=SAMPLED)
    await world.run(returns, "other")
    span = world.span()
    gate.set()
    await asyncio.gather(*tasks)
    assert (seen[0].trace_id.to_bytes(16, "big"), seen[0].span_id.to_bytes(8, "big")) == (span.trace_id, span.span_id)


async def test_a_handler_that_leaves_a_span_attached_lends_it_to_no_other_job(traced: Callable[..., Traced]) -> None:
    from opentelemetry import context

    seen: list[int] = []

    async def leaves(payload: Any, job: Job) -> None:
        context.attach(trace.set_span_in_context(trace.NonRecordingSpan(trace.SpanContext(7, 7, False))))

    async def looks(payload: Any, job: Job) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    for sampler in ("always_off", "always_on"):
        world = traced(sampling(sampler))
        await world.run(leaves, "leaves")
        await world.run(looks, "looks")
    assert 7 not in seen
    assert all(seen)


async def test_traced_jobs_leave_no_lane_in_another_context(traced: Callable[..., Traced]) -> None:
    """A lane that goes on as another task after each job would pay ten times for it."""
    world = traced(sampling("always_on"))
    await world.run(returns)
    task = world.lanes[0].task
    for _ in range(3):
        await world.run(returns)
    assert world.lanes[0].task is task


async def test_explicit_ids_of_entries_tell_no_wait_of_decades(traced: Callable[..., Traced]) -> None:
    world = traced(sampling("always_on"))
    job = world.job(returns)
    job.entry = b"5-3"
    world.inbox.put([job])
    await until(lambda: world.stats.finished == 1)
    assert "job.wait_s" not in values(world.span())
    assert values(world.span())["messaging.message.id"] == "high-5-3"
    assert (world.tracing.counts["sampled"], world.kept.requests[0][1]) == (1, 1)


# --- attempts that failed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sender", [{}, {"traceparent": UNSAMPLED}, {"traceparent": SAMPLED}], ids=["none", "unsampled", "refused"]
)
async def test_a_failed_attempt_has_its_span_whatever_the_sampling(traced: Callable[..., Traced], sender: dict[str, str]) -> None:
    world = traced(sampling(spans_per_s=0))
    await world.run(fails, **sender)
    span = world.span()
    found = values(span)
    assert found["job.forced"] is True
    assert (found["job.outcome"], found["error.type"]) == ("retry", "ConnectionError")
    # A root in the trace of its sender, whose span is most likely not recorded: no parent and no link that would lead nowhere.
    assert (span.parent_span_id, list(span.links)) == (b"", [])
    assert not sender or span.trace_id.hex() == TRACE
    assert (span.status.code, span.status.message) == (2, "ConnectionError: refused")
    exception = events(span)["exception"]
    assert (exception["exception.type"], exception["exception.message"]) == ("ConnectionError", "refused")
    assert "in fails" in exception["exception.stacktrace"]
    assert events(span)["job.retry"]["job.delay_s"] > 0
    batch = world.ledger.take()
    assert batch.defer[0].tried.decode() == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"


async def test_the_ids_that_a_handler_has_seen_are_those_of_the_span_made_at_its_end_and_of_its_log_line(
    traced: Callable[..., Traced],
) -> None:
    seen: list[tuple[str, str, str] | None] = []

    async def looks_and_fails(payload: Any, job: Job) -> None:
        seen.append(current_ids())
        raise ConnectionError("refused")

    for sampler in ("parentbased_always_off", "parentbased_always_on"):
        world = traced(sampling(sampler))
        await world.run(looks_and_fails)
        span, before = world.span(), seen[-1]
        assert before is not None
        assert before[:2] == (span.trace_id.hex(), span.span_id.hex())
        assert world.logged[0][1] == (span.trace_id.hex(), span.span_id.hex(), "01")


async def test_the_second_attempt_is_a_trace_of_its_own_with_links_back(traced: Callable[..., Traced]) -> None:
    world = traced()
    await world.run(fails, a="1", tried=PREVIOUS, traceparent=SAMPLED)
    span = world.span()
    assert span.trace_id.hex() not in (TRACE, "1" * 32)
    assert span.parent_span_id == b""
    assert links(span) == [("1" * 32, "2" * 16, "previous_attempt"), (TRACE, SPAN, "producer")]
    assert values(span)["job.attempt"] == 2
    assert "job.forced" not in values(span)
    assert world.ledger.take().defer[0].tried != PREVIOUS.encode()


async def test_no_link_leads_to_what_is_not_recorded(traced: Callable[..., Traced]) -> None:
    world = traced()
    await world.run(fails, a="1", tried="00-nonsense", traceparent=UNSAMPLED)
    assert list(world.span().links) == []


async def test_where_traces_are_linked_a_first_attempt_is_no_child(traced: Callable[..., Traced]) -> None:
    world = traced(sampling(joins=False))
    await world.run(returns, traceparent=SAMPLED)
    span = world.span()
    assert (span.parent_span_id, links(span)) == (b"", [(TRACE, SPAN, "producer")])
    assert span.trace_id.hex() != TRACE


async def test_a_job_that_waited_on_purpose_is_linked_to_its_sender(traced: Callable[..., Traced]) -> None:
    world = traced(sampling("always_on"))
    await world.run(returns, traceparent=SAMPLED, first_at="1700000000000")
    span = world.span()
    assert links(span) == [(TRACE, SPAN, "producer")]
    assert span.trace_id.hex() != TRACE


async def test_a_dead_job_has_its_span_and_its_letter_the_place_of_it(traced: Callable[..., Traced]) -> None:
    world = traced(sampling(forced_per_s=0))  # deaths have no budget
    await world.run(raising(Dead("no such account", "no-account")))
    span = world.span()
    assert (values(span)["job.outcome"], values(span)["job.dead_code"], values(span)["error.type"]) == (
        "dead", "no-account", "no-account",
    )  # fmt: skip
    assert events(span)["job.dead"] == {"job.dead_code": "no-account"}
    assert "in run" in events(span)["exception"]["exception.stacktrace"]
    (letter,) = world.ledger.take().dead
    assert letter.trace.decode() == f"00-{span.trace_id.hex()}-{span.span_id.hex()}-01"


async def test_what_groups_errors_is_a_class_or_a_code_and_never_a_message(traced: Callable[..., Traced]) -> None:
    class OutOfPaper(Exception):
        pass

    told: list[str] = []
    for error in (
        OutOfPaper("tray 7"),
        Dead("x", "code"),
        Dead("x", error=OutOfPaper("y")),
        Retry(5, "z"),
        ExceptionGroup("g", [OutOfPaper()]),
    ):
        world = traced()
        await world.run(raising(error))
        told.append(values(world.span())["error.type"])
    ours = f"{__name__}.test_what_groups_errors_is_a_class_or_a_code_and_never_a_message.<locals>.OutOfPaper"
    assert told == [ours, "code", ours, "runtime.errors.Retry", "ExceptionGroup"]


class Mute(Dead):
    def __init__(self) -> None:
        pass

    @property
    def error(self) -> BaseException:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise SystemExit(3)


class Masked(Exception):
    @property
    def __class__(self) -> type:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise SystemExit(3)


@pytest.mark.parametrize("kind", [Mute, Masked])
async def test_errors_that_raise_when_they_are_asked_have_a_span_and_end_no_lane(
    traced: Callable[..., Traced], kind: Callable[[], BaseException]
) -> None:
    world = traced()
    await asyncio.wait_for(world.run(raising(kind()), attempts=1), 10)
    (letter,) = world.ledger.take().dead
    span = world.span()
    assert letter.trace.split(b"-")[2].decode() == span.span_id.hex()
    assert events(span).keys() == {"exception", "job.dead"}
    task = world.lanes[0].task
    assert task is not None
    assert not task.done()


async def test_what_spans_say_of_errors_can_be_their_class_alone(traced: Callable[..., Traced]) -> None:
    world = traced(tells_errors=False)
    await world.run(raising(ValueError("card 4111 1111")))
    await world.run(raising(Dead("card 4111 1111", "declined")))
    world.ledger.add_bad(BadEntry(Lease(1, b"1-1", 1, "run", 0.0), "unreadable", "card 4111 1111"))
    for span in world.spans():
        assert b"4111" not in span.SerializeToString()
        assert span.status.code == 2


async def test_a_snooze_is_no_failure_and_traced_only_if_sampled(traced: Callable[..., Traced]) -> None:
    world = traced()
    await world.run(raising(Snooze(5, "not yet")))
    assert world.spans() == []
    assert world.ledger.take().defer[0].tried == b""
    world = traced(sampling("always_on"))
    await world.run(raising(Snooze(5, "not yet")))
    span = world.span()
    assert (values(span)["job.outcome"], span.status.code) == ("snooze", 0)
    assert events(span) == {"job.snooze": {"job.delay_s": 5.0}}
    assert world.ledger.take().defer[0].tried


async def test_failures_beyond_their_budget_are_counted_and_leave_no_trail(traced: Callable[..., Traced]) -> None:
    world = traced(sampling(forced_per_s=1), clock=lambda: 7.5)  # one second, however long this takes
    for _ in range(3):
        await world.run(fails)
    assert len(world.spans()) == 1
    assert world.tracing.sampling.forced.refused == 2
    assert [bool(move.tried) for move in world.ledger.take().defer] == [True, False, False]


async def test_a_slow_attempt_is_traced_at_its_end(traced: Callable[..., Traced]) -> None:
    world = traced()
    world.tracing.told_s = world.tracing.slow_s = 0.0
    await world.run(returns)
    assert values(world.span())["job.forced"] is True
    assert values(world.span())["job.outcome"] == "done"


async def test_what_is_stopped_has_a_span_only_if_it_was_sampled(traced: Callable[..., Traced]) -> None:
    for sampler, number in (("always_off", 0), ("always_on", 1)):
        world, began = traced(sampling(sampler)), asyncio.Event()

        async def hangs(payload: Any, job: Job, began: asyncio.Event = began) -> None:
            began.set()
            await asyncio.Event().wait()

        world.inbox.put([world.job(hangs)])
        await began.wait()
        world.lanes[0].stop()
        assert world.lanes[0].task is not None
        await asyncio.wait([world.lanes[0].task])
        spans = world.spans()
        assert len(spans) == number
        for span in spans:
            assert (values(span)["job.outcome"], span.status.code, len(span.events)) == ("released", 0, 0)


async def test_a_death_without_a_run_has_a_span_without_length(traced: Callable[..., Traced]) -> None:
    world = traced()
    job = world.job(returns, traceparent=UNSAMPLED)
    world.ledger.add(job, Dead("expired at 5, met at 6", "expired"))
    world.ledger.add_bad(BadEntry(Lease(2, b"9-9", 1, "run", 0.0), "unreadable", "no field `type`"))
    expired, unreadable = world.spans()
    assert (expired.name, expired.trace_id.hex(), expired.parent_span_id) == ("process greet", TRACE, b"")
    assert expired.start_time_unix_nano == expired.end_time_unix_nano
    assert (values(expired)["error.type"], expired.status.message) == ("expired", "expired at 5, met at 6")
    assert (unreadable.name, values(unreadable)["messaging.message.id"]) == ("process", "medium-9-9")
    letters = world.ledger.take().dead
    assert [letter.trace[36:52].decode() for letter in letters] == [expired.span_id.hex(), unreadable.span_id.hex()]


async def test_what_a_stranger_wrote_names_no_span(traced: Callable[..., Traced]) -> None:
    world = traced()
    world.tracing.died(Lease(1, b"1-1", 1, "run", 0.0), b"<b>\xff" * 40, "unknown-type", "no live worker has known it")
    assert world.span().name == "process"


# --- on their way ------------------------------------------------------------------------------------------------------------


async def test_nothing_is_encoded_for_a_sender_that_is_full(traced: Callable[..., Traced]) -> None:
    world = traced(sampling("always_on"))
    world.kept.is_full = True
    await world.run(returns)
    assert world.spans() == []
    assert world.kept.dropped == 1


async def test_what_ended_is_encoded_soon_so_that_no_job_is_kept(traced: Callable[..., Traced]) -> None:
    world = traced(sampling("always_on"))
    now_s = time.monotonic()
    world.tracing.look(now_s)
    await world.run(returns)
    world.tracing.look(now_s + 0.5)
    assert world.tracing.ended == []
    assert world.kept.requests == []  # a moment for others to go along
    world.tracing.look(now_s + 1.5)
    assert [number for _, number in world.kept.requests] == [1]


async def test_a_full_request_waits_for_nothing(traced: Callable[..., Traced]) -> None:
    world = traced(sampling("always_on"))
    for _ in range(8):
        world.inbox.put([world.job(returns) for _ in range(64)])
    await until(lambda: world.stats.finished == 512)
    now_s = world.tracing._handed_s = time.monotonic()
    world.tracing.look(now_s)
    assert [number for _, number in world.kept.requests] == [512]


async def test_spans_of_handlers_push_no_others_out_of_a_request(traced: Callable[..., Traced]) -> None:
    world = traced(sampling("always_on"))
    await world.run(returns)
    world.tracing.collect(b"\x12" + b"x" * MOST_SPAN_BYTES)
    assert world.kept.dropped == 1, "one alone may be more than a sender keeps"
    own = otlp.field(2, otlp.field(2, otlp.field(5, b"x" * (MOST_SPAN_BYTES // 3))))
    for _ in range(8):
        world.tracing.collect(own)
    assert len(world.spans()) == 9
    assert max(len(request) for request, _ in world.kept.requests) < 2 * SPANS_BYTES
    assert sum(spans for _, spans in world.kept.requests) == 9


async def test_many_deaths_at_once_are_several_requests(traced: Callable[..., Traced]) -> None:
    world = traced()
    for number in range(3000):
        world.ledger.add_bad(BadEntry(Lease(1, b"1-%d" % number, 1, "run", 0.0), "unreadable", "no " * 300))
    assert len(world.spans()) == 3000
    assert max(len(request) for request, _ in world.kept.requests) < 2 * SPANS_BYTES


@pytest.mark.parametrize("mistake", [RuntimeError("a mistake"), SystemExit(3)], ids=["error", "exit"])
async def test_a_mistake_in_here_costs_a_span_and_no_job(
    traced: Callable[..., Traced], monkeypatch: pytest.MonkeyPatch, mistake: BaseException
) -> None:
    world = traced()

    def breaks(*_: object) -> Any:
        raise mistake

    monkeypatch.setattr(world.tracing._attempts, "span", breaks)
    monkeypatch.setattr(world.tracing._attempts, "death", breaks)
    await world.run(fails)
    world.ledger.add_bad(BadEntry(Lease(1, b"1-1", 1, "run", 0.0), "unreadable", "no"))
    batch = world.ledger.take()
    assert (len(batch.defer), len(batch.dead)) == (1, 1)
    assert world.spans() == []


async def test_the_last_span_of_each_bucket_is_its_exemplar(traced: Callable[..., Traced]) -> None:
    world = traced()
    await world.run(returns, traceparent=SAMPLED)
    await world.run(fails, "other")
    first, second = sorted(world.spans(), key=lambda span: span.name)
    held = {key[:2]: found[:2] for key, found in world.tracing.exemplars.items()}
    assert held == {(b"greet", 1): (first.trace_id, first.span_id), (b"other", 1): (second.trace_id, second.span_id)}


# --- names -------------------------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_conventions() -> None:
    known = {
        value
        for module in (
            error_attributes, exception_attributes, host_attributes, messaging_attributes, process_attributes,
            server_attributes, service_attributes, telemetry_attributes,
        )
        for value in vars(module).values()
        if isinstance(value, str)
    }  # fmt: skip
    ours = {value for name, value in vars(names).items() if name.isupper() and isinstance(value, str) and value != names.REDIS}
    assert {value for value in ours if not value.startswith("job.")} <= known


def test_the_resource_says_whose_spans_these_are_and_what_is_given_wins() -> None:
    found = resource_of({"service.name": "mail", "deployment.environment.name": "test"}, "w-1")
    assert (found["service.name"], found["deployment.environment.name"], found["service.instance.id"]) == ("mail", "test", "w-1")
    assert resource_of({}, "w-1")["service.name"] == "backend-jobs"
    assert found["host.name"]


@pytest.mark.parametrize(
    ("url", "pairs"),
    [
        ("redis://h:7", {"server.address": "h", "server.port": 7}),
        ("rediss://user:secret@h/3", {"server.address": "h", "server.port": 6379}),
        ("unix:///run/redis.sock?db=1", {"server.address": "/run/redis.sock"}),
        ("sentinel://a:1,b:2/main", {}),
    ],
)
def test_a_server_is_named_without_a_password(url: str, pairs: dict[str, object]) -> None:
    assert server_pairs(url) == pairs


@pytest.mark.parametrize(
    ("state", "left"),
    [("", ""), ("a=b", "a=b"), ("ot=th:8", ""), ("a=b, ot=th:8;rv:1 ,c=d", "a=b,ot=rv:1,c=d"), ("nonsense", "nonsense")],
)
def test_a_span_made_at_the_end_has_no_known_probability(state: str, left: str) -> None:
    assert without_threshold(state) == left


async def test_what_a_task_records_after_the_end_of_its_job_is_left_out(traced: Callable[..., Traced]) -> None:
    spans: list[trace.Span] = []

    async def lends_its_span(payload: Any, job: Job) -> None:
        spans.append(trace.get_current_span())
        spans[0].set_attribute("mine", 1)

    world = traced(sampling("always_on"))
    await world.run(lends_its_span)
    assert not spans[0].is_recording()
    spans[0].set_attribute("late", 1)
    assert "late" not in values(world.span())
