"""Carries encoded spans to a collector, in a thread of its own: bounded, patient with a collector that is away, in nobody's way.

Nothing here raises into who puts spans in; what cannot be delivered is dropped and counted. All that threads share stands under
one lock, which is never held while the network or the log is waited for. If the process dies, what waits is lost with it.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Final

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTracePartialSuccess, ExportTraceServiceResponse

from otel.post import Answer, Connection
from otel.settings import ExportSettings
from runtime.backoff import Backoff, delay_s
from runtime.logs import guarded

log: Final = guarded("otel")

MOST_BYTES: Final = 8 * 1024 * 1024  # a guess: 18,000 spans; measured: 9 MB of memory while a collector is silent
JOINED_BYTES: Final = 1024 * 1024  # of one request; collectors with gRPC behind them refuse 4 MB, and drop all of it
GZIP_LEVEL: Final = 1  # measured on 0.9 MB of spans: to an eighth in 2.7 ms; level 6 takes 6.7 ms for 2 % more
RETRIED: Final = frozenset({429, 502, 503, 504})  # the OTLP specification's: any other refusal is for good
RETRY: Final = Backoff(base_s=0.5, cap_s=10.0)  # a guess: a collector that restarts is found soon, and not hammered
MAX_ASKED_S: Final = 60.0  # a guess: the longest Retry-After that is followed
GIVE_UP_S: Final = 300.0  # for how long one request is tried: `max_elapsed_time` of the OpenTelemetry Collector
TOLD_EVERY_S: Final = 60.0  # between two lines of the log; a guess
MAX_TEXT: Final = 200  # characters of a reason that are shown; a guess
LEAST_SECRET: Final = 4  # a guess: what is shorter in a header is no secret, and stands in other words as well
GRPC_PORT: Final = 4317  # where OTLP over gRPC is by default: it answers HTTP/1.1 with what is none


@dataclass(slots=True)
class Counts:
    """What became of the spans, and what it took."""

    sent: int = 0  # spans that a collector took
    dropped_full: int = 0  # spans that found no place here: reason `full`
    dropped_collector: int = 0  # spans that a collector refused, or did not take in time: reason `collector`
    posts: int = 0  # requests posted, each try
    failures: int = 0  # of them, those that a collector did not take
    posted_bytes: int = 0  # in them, as compressed
    export_s: float = 0.0  # seconds that they took in all
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a request by its answer: `dropped` of its spans are lost once it `is_final`; else it is posted again."""

    is_taken: bool
    is_final: bool
    dropped: int
    reason: str = ""
    asked_s: float = 0.0  # not posted again before


class _Request:
    """What is posted at once, joined: an object of its own, so that `end` and the thread can tell whose it is."""

    __slots__ = ("body", "spans")

    def __init__(self, body: bytes, spans: int) -> None:
        self.body = body
        self.spans = spans


class Sender:
    """Owns the thread, what waits and what is in flight. Any thread may put spans in; it takes none before `start`.

    Args:
        settings: where to, and how.
        most_bytes: how many bytes of spans may be here at most, those in flight included.
    """

    def __init__(self, settings: ExportSettings, most_bytes: int = MOST_BYTES) -> None:
        self._settings = settings
        self._most_bytes = most_bytes
        self._connection = Connection(settings)
        self._secrets = sorted({part for value in settings.headers.values() for part in (value, *value.split())}, key=len)
        # It may be taken again by the thread that has it: garbage that is collected meanwhile may end a span, and put it.
        self._changed = threading.Condition(threading.RLock())
        self._process = 0  # the one that it works in
        self._thread: threading.Thread | None = None
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._in_flight: _Request | None = None
        self._bytes = 0  # of both
        self._is_full = False
        self._is_ending = False
        self._is_over = False
        self._counts = Counts()
        self._silent_until_s = 0.0

    # --- for any thread ----------------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """Whether what is put now is dropped anyway, so that nothing need be encoded. Cheap. `drop` counts what was not."""
        return self._is_full or self._process != os.getpid()

    @property
    def counts(self) -> Counts:
        """The counts, as they are now."""
        return replace(self._counts)

    def start(self) -> None:
        """Take spans from now on, in this process. The thread begins with the first of them.

        To be called after the last fork: threads do not survive one. A process forked from this one sends nothing.
        """
        self._process = self._process or os.getpid()

    def put(self, request: bytes, spans: int) -> bool:
        """Return whether a request is taken, to be sent soon; if not, its spans are counted as dropped.

        Args:
            request: a complete ExportTraceServiceRequest, encoded.
            spans: how many spans are in it.
        """
        if self._process != os.getpid():
            return False  # not `start`ed; or forked, perhaps while a thread that is not here held the lock
        with self._changed:
            if self._is_over or self._bytes + len(request) > self._most_bytes:
                self._is_full = self._is_over or self._bytes > 0  # until something has an end
                self._counts.dropped_full += spans
                return False
            self._waiting.append((request, spans))
            self._bytes += len(request)
            self._wake()
        return True

    def drop(self, spans: int) -> None:
        """Count spans that were not encoded, since it is full."""
        if self._process == os.getpid():
            with self._changed:
                self._counts.dropped_full += spans
                if self._waiting:
                    self._wake()  # nothing is put while it is full

    def end(self, wait_s: float = 2.0) -> None:
        """Send what is left, and block until that is done, for at most `wait_s` seconds; what is left then is dropped.

        Once this is called nothing is tried twice: where the collector is away, it returns as soon as that is known.
        """
        if self._process != os.getpid():
            return
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
            thread, before = self._thread, self._counts.dropped_collector
        if thread is not None:
            thread.join(wait_s)
        with self._changed:
            self._drop_all()
            self._is_over = self._is_full = True
            dropped = self._counts.dropped_collector - before
        self._connection.hang_up()  # the thread may stand in it
        if dropped:
            log.warning("traces: %s did not take all before the end; spans dropped: %d", self._settings.address, dropped)

    # --- under the lock ----------------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Wake the thread; start it where there is none, or none any more."""
        thread = self._thread
        if thread is None or (thread.ident is not None and not thread.is_alive()):
            self._thread = thread = threading.Thread(target=self._run, name="traces", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # there can be no more threads now: the next request asks again
                self._thread = None
                self._counts.last_error = str(error)
        self._changed.notify_all()

    def _take(self) -> _Request | None:
        """Return what is to be posted now, as much as may be joined; it is in flight from here."""
        if self._in_flight is None and self._waiting:
            parts: list[bytes] = []
            size = spans = 0
            while self._waiting and (not parts or size + len(self._waiting[0][0]) <= JOINED_BYTES):
                part, count = self._waiting.popleft()
                parts.append(part)
                size += len(part)
                spans += count
            self._in_flight = _Request(b"".join(parts), spans)  # requests joined are one request: repeated fields merge
        return self._in_flight

    def _finish(self, request: _Request, dropped: int) -> None:
        """Count what became of a request; not of one that `end` has counted already."""
        if self._in_flight is not request:
            return
        self._in_flight = None
        self._bytes -= len(request.body)
        self._is_full = False
        self._counts.sent += request.spans - dropped
        self._counts.dropped_collector += dropped

    def _drop_all(self) -> None:
        """Count all that is here as dropped."""
        while self._waiting:
            part, spans = self._waiting.popleft()
            self._bytes -= len(part)
            self._counts.dropped_collector += spans
        if (request := self._in_flight) is not None:
            self._finish(request, request.spans)

    # --- the thread --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        """Send until the end. An error of ours costs the request at hand, and a moment, so that it is no hot loop."""
        try:
            while True:
                try:
                    self._send_all()
                    return
                except Exception as error:
                    if (request := self._in_flight) is not None:
                        with self._changed:
                            self._finish(request, request.spans)
                    where = traceback.extract_tb(error.__traceback__)[-1]
                    self._tell(f"{type(error).__name__} in {where.name}, {where.filename}:{where.lineno}")  # no text: it may tell
                    self._pause(RETRY.base_s)
        finally:
            self._connection.close()

    def _send_all(self) -> None:
        """Send whatever comes, until the end."""
        while True:
            with self._changed:
                while not (self._waiting or self._in_flight or self._is_ending):
                    self._changed.wait()
                request = self._take()
            if request is None:
                return
            self._send(request)

    def _send(self, request: _Request) -> None:
        """Post a request until it has an end: taken, refused, or given up."""
        body = gzip.compress(request.body, GZIP_LEVEL, mtime=0) if self._settings.is_gzip else request.body
        give_up_s = time.monotonic() + GIVE_UP_S
        failures = 0
        while True:
            is_ending = self._is_ending
            began_s = time.monotonic()
            verdict = self._post(body, request.spans)
            now_s = time.monotonic()
            failures += 1
            wait_s = max(verdict.asked_s, delay_s(failures, RETRY, random.random))
            is_last = verdict.is_final or is_ending or now_s + wait_s > give_up_s
            with self._changed:
                self._counts.posts += 1
                self._counts.posted_bytes += len(body)
                self._counts.export_s += now_s - began_s
                self._counts.failures += not verdict.is_taken
                if is_last:
                    self._finish(request, verdict.dropped)
                if is_ending and not verdict.is_final:
                    self._drop_all()  # who is away now is not back in the moment that is left
            if verdict.reason:
                self._tell(verdict.reason)
            if is_last:
                return
            self._pause(wait_s)

    def _post(self, body: bytes, spans: int) -> Verdict:
        try:
            return judge(self._connection.post(body), spans, time.time())
        except (OSError, HTTPException) as error:
            reason = str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = f"no answer within {self._settings.timeout_s:g} s"
            elif isinstance(error, HTTPException) and self._settings.port == GRPC_PORT:
                reason += f"; hint: port {GRPC_PORT} is mostly for gRPC, and 4318 for http/protobuf, which is sent here"
            return Verdict(is_taken=False, is_final=False, dropped=spans, reason=reason)

    def _pause(self, wait_s: float) -> None:
        """Wait, but no longer than until the end is asked for."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_ending, wait_s)

    def _tell(self, reason: str) -> None:
        """Note why spans are not taken, and log it, once in TOLD_EVERY_S."""
        for secret in reversed(self._secrets):  # the longest first: others may be parts of it
            if len(secret) >= LEAST_SECRET:
                reason = reason.replace(secret, "***")
        reason = reason if len(reason) <= MAX_TEXT else f"{reason[:MAX_TEXT]}…"
        reason = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in reason)
        with self._changed:
            self._counts.last_error = reason
            lost = replace(self._counts)
        if time.monotonic() >= self._silent_until_s and not self._is_over:
            self._silent_until_s = time.monotonic() + TOLD_EVERY_S
            text = "traces: %s: %s (spans dropped so far: %d by the collector, %d for lack of place)"
            log.warning(text, self._settings.address, reason, lost.dropped_collector, lost.dropped_full)


def judge(answer: Answer, spans: int, now_s: float) -> Verdict:
    """Return what becomes of a request with so many spans by its answer, whatever that is.

    Args:
        answer: what the collector said.
        spans: how many spans the request has.
        now_s: seconds since 1970, for a Retry-After that is a date.
    """
    if 200 <= answer.status < 300:
        rejected, message = _partial_success(answer.body)
        rejected = min(max(rejected, 0), spans)
        reason = f"{rejected} of {spans} spans rejected: {message}" if rejected else message
        return Verdict(is_taken=True, is_final=True, dropped=rejected, reason=reason)
    reason = f"status {answer.status}: {_message(answer.body)}".removesuffix(": ")
    if answer.status in RETRIED:
        return Verdict(is_taken=False, is_final=False, dropped=spans, reason=reason, asked_s=_asked_s(answer.retry_after, now_s))
    if 300 <= answer.status < 400:
        reason += "; redirects are not followed: set the endpoint to where it leads"
    elif answer.status == 404:
        reason += "; hint: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is taken as it is, and mostly ends with /v1/traces"
    return Verdict(is_taken=False, is_final=True, dropped=spans, reason=reason)


def _partial_success(body: bytes) -> tuple[int, str]:
    """Return how many spans a collector rejected, and why; 0 and nothing where it does not say, or cannot be read."""
    try:
        found = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return 0, ""
    return found.rejected_spans, found.error_message


def _message(body: bytes) -> str:
    """Return what an error says: a google.rpc.Status, or plain text."""
    try:
        # Its first fields are those of a Status: a number and a text.
        message = ExportTracePartialSuccess.FromString(body).error_message
    except DecodeError:
        message = ""
    return message or " ".join(body.decode(errors="backslashreplace").split())


def _asked_s(text: str, now_s: float) -> float:
    """Return for how many seconds a Retry-After asks, 0 to MAX_ASKED_S; 0 where there is none that can be read."""
    text = text.strip()
    try:
        if re.fullmatch("[0-9]+", text):
            asked_s = float(text)
        else:
            date = parsedate_to_datetime(text)
            asked_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return 0.0
    return min(max(asked_s, 0.0), MAX_ASKED_S)
