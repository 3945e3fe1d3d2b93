"""The sender of traces against a collector over real sockets: whatever that does, each span is counted, and nothing hangs."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from otel import sender
from otel.post import ANSWER_BYTES, Connection
from otel.post import Answer as Heard
from otel.sender import MAX_ASKED_S, Sender, Verdict, judge
from otel.settings import ExportSettings
from runtime.backoff import Backoff
from tests.collector import Answer, Collector, How

SECRET = "hunter2"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again after milliseconds."""
    monkeypatch.setattr(sender, "RETRY", Backoff(base_s=0.01, cap_s=0.02))


def encoded(*names: str, bytes_each: int = 0) -> bytes:
    message = ExportTraceServiceRequest()
    spans = message.resource_spans.add().scope_spans.add().spans
    for name in names:
        spans.add(name=name, trace_id=b"t" * 16, span_id=b"s" * 8, trace_state="x" * bytes_each)
    return message.SerializeToString()


def settings(collector: Collector | str, **named: Any) -> ExportSettings:
    endpoint = collector if isinstance(collector, str) else f"{collector.endpoint}/v1/traces"
    return ExportSettings(**{"endpoint": endpoint, "timeout_s": 20.0, **named})


class Senders:
    """Starts senders, and ends them with the test."""

    def __init__(self) -> None:
        self.made: list[Sender] = []

    def __call__(self, collector: Collector | str, most_bytes: int = sender.MOST_BYTES, **named: Any) -> Sender:
        made = Sender(settings(collector, **named), most_bytes)
        made.start()
        self.made.append(made)
        return made

    def end(self) -> None:
        for made in self.made:
            made.end(0.0)
            if made._thread is not None:
                made._thread.join(30)
                assert not made._thread.is_alive()


@pytest.fixture
def started() -> Iterator[Senders]:
    senders = Senders()
    yield senders
    senders.end()


def until(is_true: Callable[[], object], within_s: float = 30.0) -> None:
    end_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def names(collector: Collector) -> list[str]:
    return [span.name for span in collector.spans]


def dropped(one: Sender) -> tuple[int, int]:
    return one.counts.dropped_full, one.counts.dropped_collector


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# --- what is sent ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_gzip", [False, True])
def test_spans_arrive_in_order_as_they_were_encoded(started: Senders, is_gzip: bool) -> None:
    with Collector() as collector:
        one = started(collector, is_gzip=is_gzip, headers={"x-tenant": "t"})
        for number in range(50):
            assert one.put(encoded(f"a{number}", f"b{number}"), 2)
        one.end()
        assert names(collector) == [f"{letter}{number}" for number in range(50) for letter in "ab"]
        assert (one.counts.sent, dropped(one)) == (100, (0, 0))
        assert one.counts.posts == len(collector.requests)
        assert one.counts.posted_bytes == sum(len(received.body) for received in collector.requests)
        assert one.counts.export_s > 0
        first = collector.requests[0]
        assert first.path == "/v1/traces"
        assert first.headers["host"] == f"127.0.0.1:{collector.port}"
        assert (first.headers["content-type"], first.headers["x-tenant"]) == ("application/x-protobuf", "t")
        assert first.headers.get("content-encoding") == ("gzip" if is_gzip else None)
        assert collector.connections == 1


@pytest.fixture
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at the end only."""
    monkeypatch.setattr(sender, "RETRY", Backoff(base_s=10_000.0, cap_s=10_000.0))
    monkeypatch.setattr(sender, "GIVE_UP_S", 100_000.0)
    monkeypatch.setattr(sender.random, "random", lambda: 0.9)


@pytest.mark.usefixtures("_patient")
def test_what_waits_is_joined_up_to_a_megabyte(started: Senders) -> None:
    with Collector(Answer(503)) as collector:
        one = started(collector)
        one.put(encoded("first"), 1)
        until(lambda: one.counts.failures)
        parts = [encoded(f"n{number}", bytes_each=300_000) for number in range(7)]
        for part in parts:
            one.put(part, 1)
        one.end(30)
        taken = [len(received.spans) for received in collector.requests if received.answer.takes]
        assert taken == [1, 3, 3, 1]
        assert max(len(received.body) for received in collector.requests) <= sender.JOINED_BYTES


def test_a_path_and_a_query_are_posted_to_as_they_are(started: Senders) -> None:
    with Collector() as collector:
        one = started(f"{collector.endpoint}/otlp/v1/traces?a=b")
        one.put(encoded("a"), 1)
        one.end()
        assert collector.requests[0].path == "/otlp/v1/traces?a=b"
        one = started(collector.endpoint)
        one.put(encoded("a"), 1)
        one.end()
        assert collector.requests[1].path == "/"


def test_no_proxy_is_taken_from_the_environment(started: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with Collector() as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        one.end()
        assert names(collector) == ["a"]


def test_no_redirect_is_followed(started: Senders) -> None:
    with Collector() as other, Collector(Answer(307, headers={"Location": f"{other.endpoint}/v1/traces"})) as collector:
        one = started(collector, headers={"authorization": SECRET})
        one.put(encoded("a"), 1)
        one.end()
        assert other.connections == 0
        assert dropped(one) == (0, 1)
        assert "redirects are not followed" in one.counts.last_error


def test_a_connection_that_was_closed_while_nothing_was_sent_costs_no_failure(started: Senders) -> None:
    with Collector(otherwise=Answer(how=How.CLOSE_BEHIND)) as collector:
        one = started(collector)
        for number in range(1, 6):
            one.put(encoded(f"n{number}"), 1)
            until(lambda number=number: one.counts.sent == number)
        assert collector.connections == 5
        assert one.counts.failures == 0


def test_spans_go_over_tls_only_to_who_has_a_certificate_that_is_trusted(
    started: Senders, certificate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Collector(otherwise=Answer(how=How.CLOSE_BEHIND), certificate=certificate) as collector:
        one = started(collector, certificate=certificate)
        for number in range(1, 4):
            one.put(encoded(f"n{number}"), 1)
            until(lambda number=number: one.counts.sent == number)
        assert (one.counts.failures, collector.connections) == (0, 3)
        other = started(collector)
        other.put(encoded("other"), 1)
        until(lambda: other.counts.failures)
        assert "CERTIFICATE_VERIFY_FAILED" in other.counts.last_error
        wrong = started(f"https://127.0.0.1:{collector.port}/v1/traces", certificate=certificate)
        wrong.put(encoded("wrong"), 1)
        until(lambda: wrong.counts.failures)
        assert "mismatch" in wrong.counts.last_error or "not valid for" in wrong.counts.last_error
        assert names(collector) == ["n1", "n2", "n3"]


# --- a collector that misbehaves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 500, 501, 505, 301, 304, 199 + 400])
def test_a_refusal_for_good_is_counted_and_not_repeated(started: Senders, status: int) -> None:
    with Collector(Answer(status, "no such tenant")) as collector:
        one = started(collector)
        one.put(encoded("a", "b"), 2)
        until(lambda: one.counts.dropped_collector)
        one.put(encoded("c"), 1)
        one.end()
        assert names(collector) == ["c"]
        assert (one.counts.sent, dropped(one), one.counts.failures, one.counts.posts) == (1, (0, 2), 1, 2)
        assert one.counts.last_error.startswith(f"status {status}")


@pytest.mark.parametrize(
    "answer",
    [
        *[Answer(status) for status in (429, 502, 503, 504)],
        *[Answer(how=how) for how in (How.CLOSE, How.GARBAGE)],
        Answer(message="half of this", how=How.HALF),
    ],
    ids=lambda answer: f"{answer.status}-{answer.how.name}",
)
def test_what_may_be_taken_later_is_posted_again(started: Senders, answer: Answer) -> None:
    with Collector(answer, answer, answer) as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.sent)
        assert names(collector) == ["a"]
        assert (dropped(one), one.counts.failures, one.counts.posts) == ((0, 0), 3, 4)
        assert one.counts.last_error


def test_a_collector_that_comes_later_gets_what_waits(started: Senders) -> None:
    port = free_port()
    one = started(f"http://127.0.0.1:{port}/v1/traces")
    one.put(encoded("a"), 1)
    until(lambda: one.counts.failures >= 3)
    assert "refused" in one.counts.last_error
    with Collector(port=port) as collector:
        collector.wait_for(lambda it: names(it) == ["a"])
        until(lambda: one.counts.sent)
    assert dropped(one) == (0, 0)


def test_retry_after_is_waited_for(started: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    paused: list[float] = []
    monkeypatch.setattr(Sender, "_pause", lambda self, wait_s: paused.append(wait_s))
    with Collector(Answer(429, headers={"Retry-After": "7"}), Answer(503, headers={"Retry-After": "0"})) as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.sent)
    assert paused[0] == 7.0
    assert 0.0 <= paused[1] <= 0.02


def test_a_request_that_is_never_taken_is_given_up(started: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "GIVE_UP_S", 0.2)
    with Collector(otherwise=Answer(503)) as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.dropped_collector)
        assert dropped(one) == (0, 1)
        collector.otherwise = Answer()
        one.put(encoded("b"), 1)
        until(lambda: one.counts.sent)
        assert names(collector) == ["b"]


def test_spans_that_a_collector_rejects_are_counted(started: Senders) -> None:
    with Collector(Answer(rejected=2, message="too old"), Answer(message="slow down"), Answer(rejected=99)) as collector:
        one = started(collector)
        one.put(encoded("a", "b", "c"), 3)
        until(lambda: one.counts.posts == 1)
        assert (one.counts.sent, dropped(one), one.counts.failures) == (1, (0, 2), 0)
        assert one.counts.last_error == "2 of 3 spans rejected: too old"
        one.put(encoded("d"), 1)
        until(lambda: one.counts.posts == 2)
        assert (one.counts.sent, one.counts.last_error) == (2, "slow down")
        one.put(encoded("e"), 1)
        until(lambda: one.counts.posts == 3)
        assert (one.counts.sent, dropped(one)) == (2, (0, 3))


def test_a_refusal_before_the_whole_body_was_read_is_heard(started: Senders) -> None:
    with Collector(Answer(413, "too large", how=How.EARLY)) as collector:
        one = started(collector, most_bytes=2**26)
        one.put(encoded("a", bytes_each=30_000_000), 1)
        until(lambda: one.counts.posts)
        assert (dropped(one), one.counts.last_error) == ((0, 1), "status 413: too large")


@pytest.mark.parametrize("how", [How.SILENCE, How.DRIP])
def test_a_collector_that_never_comes_to_an_end_is_left_at_the_timeout(started: Senders, how: How) -> None:
    with Collector(Answer(how=how)) as collector:
        one = started(collector, timeout_s=0.3)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.failures)
        assert one.counts.last_error == "no answer within 0.3 s"
        until(lambda: one.counts.sent)


def test_a_collector_that_reads_nothing_is_left_at_the_timeout(started: Senders) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = started(f"http://127.0.0.1:{server.getsockname()[1]}/", most_bytes=2**26, timeout_s=0.3)
        one.put(encoded("a", bytes_each=30_000_000), 1)
        until(lambda: one.counts.failures)
        assert one.counts.last_error == "no answer within 0.3 s"
        one.end(0.0)


def test_a_collector_that_reads_a_little_now_and_then_is_left_at_the_timeout(started: Senders) -> None:
    over = threading.Event()

    def reads(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            while not over.wait(0.05):  # each part is taken within the timeout; all of them would take a minute
                connection.recv(65_536)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=reads, args=[server])
        thread.start()
        one = started(f"http://127.0.0.1:{server.getsockname()[1]}/", most_bytes=2**27, timeout_s=0.3)
        one.put(encoded("a", bytes_each=80_000_000), 1)
        try:
            until(lambda: one.counts.failures)
        finally:
            one.end(0.0)
            over.set()
            thread.join()
        assert one.counts.failures


def test_what_is_left_of_an_answer_is_not_taken_for_the_next(started: Senders) -> None:
    """An answer of this status has no body: what comes all the same would be read as what is said to the next request."""
    with Collector(Answer(304, body=b"HTTP/1.1 400 No\r\n\r\n" * 1000)) as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.dropped_collector)
        one.put(encoded("b"), 1)
        one.end()
        assert (names(collector), dropped(one)) == (["b"], (0, 1))


def test_a_handshake_without_an_end_is_left_at_the_timeout(started: Senders, certificate: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = started(f"https://localhost:{server.getsockname()[1]}/", certificate=certificate, timeout_s=0.3)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.failures)
        assert "0.3 s" in one.counts.last_error
        one.end(0.0)


def test_of_an_answer_no_more_is_read_than_64_kib() -> None:
    tracemalloc.start()
    try:
        with Collector(Answer(400, how=How.HUGE), Answer(how=How.ENDLESS)) as collector:
            connection = Connection(settings(collector))
            heard = connection.post(encoded("a"))
            assert heard.status == 400
            assert ANSWER_BYTES - 1000 < len(heard.body) < ANSWER_BYTES
            with pytest.raises(HTTPException, match="more than 100 headers"):
                connection.post(encoded("a"))
            connection.close()
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_of_an_answer_in_chunks_no_more_is_read_either() -> None:
    with Collector(Answer(400, how=How.CHUNKS)) as collector:
        connection = Connection(settings(collector))
        heard = connection.post(encoded("a"))
        assert heard.status == 400
        assert ANSWER_BYTES - 2000 < len(heard.body) < ANSWER_BYTES
        connection.close()


def test_what_a_grpc_server_answers_names_the_port_for_http(started: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    with Collector(otherwise=Answer(how=How.GARBAGE)) as collector:
        monkeypatch.setattr(sender, "GRPC_PORT", collector.port)
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.failures)
        assert "4318 for http/protobuf" in one.counts.last_error
        assert one.counts.last_error.isprintable()


# --- bounds ------------------------------------------------------------------------------------------------------------------


def test_what_waits_and_what_is_in_flight_have_a_bound(started: Senders) -> None:
    part = encoded("a", bytes_each=1000)
    with Collector(otherwise=Answer(503)) as collector:
        one = started(collector, most_bytes=3 * len(part))
        assert one.put(part, 1)
        until(lambda: one.counts.failures)
        assert [one.put(part, 1) for _ in range(4)] == [True, True, False, False]
        assert one.is_full
        one.drop(5)
        assert dropped(one) == (7, 0)
        collector.otherwise = Answer()
        until(lambda: one.counts.sent == 3)
        assert not one.is_full
        assert one.put(part, 1)
        one.end()
        assert (one.counts.sent, dropped(one)) == (4, (7, 0))


def test_a_request_above_the_bound_is_dropped_and_others_are_taken_after_it(started: Senders) -> None:
    with Collector() as collector:
        one = started(collector, most_bytes=1000)
        assert not one.put(encoded("a", bytes_each=2000), 1)
        assert not one.is_full
        assert one.put(encoded("b"), 1)
        one.end()
        assert names(collector) == ["b"]
        assert dropped(one) == (1, 0)


def test_every_span_is_counted_once_however_many_threads_put(started: Senders) -> None:
    answers = [Answer(503), Answer(400), Answer(rejected=1), Answer(how=How.CLOSE)] * 5
    with Collector(*answers) as collector:
        one = started(collector, most_bytes=20_000)

        def puts() -> None:
            for _ in range(200):
                one.put(encoded("a", "b", bytes_each=100), 2)

        threads = [threading.Thread(target=puts) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.end(30)
        counts = one.counts
        assert counts.sent + counts.dropped_full + counts.dropped_collector == 1600
        assert one._bytes == 0


# --- the end -----------------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)  # where the end waits for the collector
@pytest.mark.parametrize("how", [How.SILENCE, How.DRIP])
def test_the_end_comes_in_time_whatever_the_collector_does_and_what_is_left_is_counted(started: Senders, how: How) -> None:
    with Collector(otherwise=Answer(how=how)) as collector:
        one = started(collector, timeout_s=10_000.0)
        one.put(encoded("a"), 1)
        collector.wait_for(lambda it: bool(it.requests))
        one.put(encoded("b", "c"), 2)
        one.end(0.1)
        assert dropped(one) == (0, 3)
        assert one.counts.sent == 0
        thread = one._thread
        assert thread is not None
        thread.join(10)
        assert not thread.is_alive()
        assert dropped(one) == (0, 3)


@pytest.mark.timeout(60)  # where the end waits for the collector
@pytest.mark.usefixtures("_patient")
def test_at_the_end_what_fails_is_not_tried_again_and_a_collector_that_is_away_not_waited_for(started: Senders) -> None:
    one = started(f"http://127.0.0.1:{free_port()}/")
    one.put(encoded("a"), 1)
    until(lambda: one.counts.failures)
    one.put(encoded("b", bytes_each=sender.JOINED_BYTES), 1)
    one.put(encoded("c"), 1)
    one.end(10_000.0)
    assert one.counts.failures == 2
    assert dropped(one) == (0, 3)


@pytest.mark.timeout(60)  # where the end waits for the next try
@pytest.mark.usefixtures("_patient")
def test_what_waits_for_another_try_has_it_at_the_end(started: Senders) -> None:
    with Collector(Answer(503)) as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.failures)
        one.put(encoded("b"), 1)
        one.end(10_000.0)
        assert names(collector) == ["a", "b"]


def test_after_the_end_nothing_is_taken(started: Senders) -> None:
    with Collector() as collector:
        one = started(collector)
        one.end()
        assert one.is_full
        assert not one.put(encoded("a"), 1)
        one.end()
        assert collector.connections == 0


# --- threads and processes ---------------------------------------------------------------------------------------------------


def test_there_is_no_thread_before_there_is_a_span(started: Senders) -> None:
    with Collector() as collector:
        one = Sender(settings(collector))
        assert one.is_full
        assert not one.put(encoded("a"), 1)
        one.start()
        assert not one.is_full
        assert one._thread is None
        one.end()
        assert "traces" not in [thread.name for thread in threading.enumerate()]


FORKS = """
import os, sys, threading
from otel.sender import Sender
from otel.settings import ExportSettings
one = Sender(ExportSettings(endpoint=sys.argv[1]))
one.start()
one.put(b"", 1)
one._changed.acquire()  # as a thread may hold it that is not in the child
child = os.fork()
if not child:
    ok = one.is_full and not one.put(b"", 1) and one.drop(1) is None and one.end() is None
    one.start()
    os._exit(0 if ok and one.is_full and threading.active_count() == 1 and one.counts.dropped_full == 0 else 1)
one._changed.release()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
one.end(30)
assert one.counts.sent == 1, one.counts
"""


def test_a_forked_process_sends_nothing_and_does_not_hang() -> None:
    with Collector() as collector:
        code = [sys.executable, "-W", "ignore", "-c", FORKS, f"{collector.endpoint}/"]
        done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert len(collector.requests) == 1


def test_a_bug_costs_the_request_at_hand_and_not_the_thread(started: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Sender._post

    def broken(self: Sender, body: bytes, spans: int) -> Verdict:
        monkeypatch.setattr(Sender, "_post", real)
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr(Sender, "_post", broken)
    with Collector() as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one.counts.dropped_collector == 1)
        one.put(encoded("b"), 1)
        until(lambda: one.counts.sent == 1)
        assert names(collector) == ["b"]
        assert one.counts.last_error.startswith("ZeroDivisionError in broken, ")
        assert SECRET not in one.counts.last_error


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_was_ended_by_force_is_replaced(started: Senders, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Sender._post

    def leaves(self: Sender, body: bytes, spans: int) -> Verdict:
        raise SystemExit

    monkeypatch.setattr(Sender, "_post", leaves)
    with Collector() as collector:
        one = started(collector)
        one.put(encoded("a"), 1)
        until(lambda: one._thread is not None and not one._thread.is_alive())
        monkeypatch.setattr(Sender, "_post", real)
        one.put(encoded("b"), 1)
        until(lambda: one.counts.sent == 2)
        assert names(collector) == ["a", "b"]


def test_where_no_thread_can_be_had_nothing_is_raised_and_the_next_put_asks_again(
    started: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Collector() as collector:
        one = started(collector)
        with monkeypatch.context() as patch:
            patch.setattr(sender.threading.Thread, "start", refuses)
            assert one.put(encoded("a"), 1)
            assert one.counts.last_error == "can't start new thread"
        assert one.put(encoded("b"), 1)
        one.end()
        assert names(collector) == ["a", "b"]


def test_where_no_thread_could_be_had_and_it_is_full_what_is_dropped_asks_again(
    started: Senders, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Collector() as collector:
        one = started(collector, most_bytes=1000)
        with monkeypatch.context() as patch:
            patch.setattr(sender.threading.Thread, "start", refuses)
            one.put(encoded("a", bytes_each=500), 1)
            one.put(encoded("b", bytes_each=500), 1)
        assert one.is_full
        one.drop(1)
        until(lambda: not one.is_full)
        assert (names(collector), dropped(one)) == (["a"], (2, 0))


@pytest.mark.timeout(60)  # where it waits for itself
def test_spans_that_end_while_garbage_is_collected_in_a_put_are_put_too(started: Senders) -> None:
    class Collects(bytes):
        """Asked for its length, in the middle of a put, it puts another."""

        def __len__(self) -> int:
            if not nested:
                nested.append(one.put(encoded("nested"), 1))
            return super().__len__()

    nested: list[bool] = []
    with Collector() as collector:
        one = started(collector)
        assert one.put(Collects(encoded("outer")), 1)
        one.end()
        assert nested == [True]
        assert sorted(names(collector)) == ["nested", "outer"]


# --- what is told ------------------------------------------------------------------------------------------------------------


def test_failures_are_logged_once_a_minute_escaped_cut_and_without_secrets(
    started: Senders, caplog: pytest.LogCaptureFixture
) -> None:
    message = f"bad token {SECRET} of Basic c2VjcmV0\x1b[31m\nline two \u202e" + "x" * 500
    with Collector(otherwise=Answer(401, message)) as collector, caplog.at_level(logging.WARNING):
        one = started(collector, headers={"authorization": f"Bearer {SECRET}", "x-key": "Basic c2VjcmV0", "a": "b"})
        for number in range(1, 6):
            one.put(encoded("a"), 1)
            until(lambda number=number: one.counts.dropped_collector == number)
        one.end()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "otel"]
    assert line.startswith(f"traces: 127.0.0.1:{collector.port}: status 401: bad token *** of ***\\x1b[31m\\nline two \\u202exx")
    assert line.endswith("x… (spans dropped so far: 1 by the collector, 0 for lack of place)")
    assert line.isprintable()
    assert len(line) < 400
    assert SECRET not in one.counts.last_error


def test_what_is_left_at_the_end_is_logged(started: Senders, caplog: pytest.LogCaptureFixture) -> None:
    with Collector(otherwise=Answer(how=How.SILENCE)) as collector, caplog.at_level(logging.WARNING):
        one = started(collector)
        one.put(encoded("a", "b"), 2)
        collector.wait_for(lambda it: bool(it.requests))
        one.end(0.0)
    assert f"traces: 127.0.0.1:{collector.port} did not take all before the end; spans dropped: 2" in caplog.messages


# --- the verdict, without sockets --------------------------------------------------------------------------------------------

NOW_S = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp()


def in_seconds(seconds: float, zone: timezone = UTC) -> str:
    return format_datetime(datetime.fromtimestamp(NOW_S + seconds, zone), usegmt=zone is UTC)


@pytest.mark.parametrize(
    ("text", "asked_s"),
    [
        ("5", 5.0),
        (" 5 ", 5.0),
        ("0", 0.0),
        ("99999999", MAX_ASKED_S),
        ("9" * 5000, MAX_ASKED_S),
        (in_seconds(30), 30.0),
        (in_seconds(30, timezone(timedelta(hours=5))), 30.0),
        (in_seconds(-30), 0.0),
        (in_seconds(1e6), MAX_ASKED_S),
        ("Fri, 02 Jan 2026 03:04:35", 30.0),
        ("Fri, 02 Jan 2026 03:04:35 -0000", 30.0),
        *[
            (text, 0.0)
            for text in ("", "-5", "1.5", "soon", "\u0665", "Fri, 99 Jan 2026 03:04:35 GMT", "Mon, 01 Jan 0001 00:00:00 +2359")
        ],
    ],
)
def test_retry_after_is_seconds_or_a_date_and_has_a_cap(text: str, asked_s: float) -> None:
    assert judge(Heard(503, b"", text), 1, NOW_S).asked_s == asked_s


def partial(rejected: int, message: str = "") -> bytes:
    response = ExportTraceServiceResponse()
    response.partial_success.rejected_spans = rejected
    response.partial_success.error_message = message
    return response.SerializeToString()


@pytest.mark.parametrize(
    ("heard", "verdict"),
    [
        (Heard(200), Verdict(True, True, 0)),
        (Heard(202, b"{}"), Verdict(True, True, 0)),
        (Heard(200, b"\xff\xff"), Verdict(True, True, 0)),
        (Heard(200, partial(3, "old")), Verdict(True, True, 3, "3 of 9 spans rejected: old")),
        (Heard(200, partial(-3, "hm")), Verdict(True, True, 0, "hm")),
        (Heard(200, partial(2**62)), Verdict(True, True, 9, "9 of 9 spans rejected: ")),
        (Heard(429, b"", "3"), Verdict(False, False, 9, "status 429", 3.0)),
        (Heard(500, b"plain\n  text"), Verdict(False, True, 9, "status 500: plain text")),
        (Heard(400, b"\xff"), Verdict(False, True, 9, "status 400: \\xff")),
    ],
)  # fmt: skip
def test_an_answer_has_one_meaning(heard: Heard, verdict: Verdict) -> None:
    assert judge(heard, 9, NOW_S) == verdict


@given(st.integers(100, 999), st.binary(max_size=200), st.text(max_size=60), st.integers(0, 10**6))
def test_any_answer_has_a_meaning(status: int, body: bytes, retry_after: str, spans: int) -> None:
    verdict = judge(Heard(status, body, retry_after), spans, NOW_S)
    assert 0 <= verdict.dropped <= spans
    assert 0 <= verdict.asked_s <= MAX_ASKED_S
    assert verdict.is_taken == (200 <= status < 300)
    assert verdict.is_final or (status in (429, 502, 503, 504) and verdict.dropped == spans)


@given(st.text(st.sampled_from("0123456789 :,-+GMTFriJanDec/")))
def test_any_date_can_be_read_or_is_none(text: str) -> None:
    assert 0 <= judge(Heard(503, b"", text), 1, NOW_S).asked_s <= MAX_ASKED_S
