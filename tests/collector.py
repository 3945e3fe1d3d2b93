"""An OTLP/HTTP collector for traces on a loopback port: it keeps what it is sent, and misbehaves as it is told."""

from __future__ import annotations

import contextlib
import gzip
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

DRIP_S = 0.05  # between two bytes of an answer that drips: each comes before any timeout of a read


class How(Enum):
    """How an answer goes wrong on its way."""

    WHOLE = "it does not"
    HALF = "the head, half the body, and the connection is closed"
    GARBAGE = "bytes that are no HTTP, and the connection is closed"
    CLOSE = "nothing, and the connection is closed"
    CLOSE_BEHIND = "whole, and the connection is closed without telling so: it looks as if it could be used again"
    EARLY = "whole, before the request's body is read, and the connection is closed"
    SILENCE = "nothing, until the collector is closed"
    DRIP = "a byte now and then, without an end"
    ENDLESS = "headers without an end, as fast as they are read"
    HUGE = "a body without an end, as fast as it is read"
    CHUNKS = "the same in chunks"


@dataclass(frozen=True)
class Answer:
    """What the collector says: `message` and `rejected` are put where OTLP has them, unless there is a `body`."""

    status: int = 200
    message: str = ""
    rejected: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    how: How = How.WHOLE

    @property
    def takes(self) -> bool:
        """Whether a request is taken that is answered so."""
        return self.status < 300 and self.how in (How.WHOLE, How.CLOSE_BEHIND)

    def content(self) -> bytes:
        """Return the body: a response of OTLP, or a google.rpc.Status where it is an error."""
        if self.body is not None:
            return self.body
        if self.status >= 300:
            return ExportTracePartialSuccess(error_message=self.message).SerializeToString()  # the same fields as a Status
        response = ExportTraceServiceResponse()
        if self.rejected or self.message:
            response.partial_success.rejected_spans = self.rejected
            response.partial_success.error_message = self.message
        return response.SerializeToString()


@dataclass(frozen=True)
class Received:
    """One request; `headers` by their names in lower case, `body` as it was sent, `message` what it says."""

    path: str
    headers: dict[str, str]
    body: bytes
    message: ExportTraceServiceRequest
    answer: Answer

    @property
    def spans(self) -> list[Span]:
        """The spans in it, in order."""
        return [span for of in self.message.resource_spans for scope in of.scope_spans for span in scope.spans]


class Collector:
    """Owns the server. Each of `answers` serves one request; when there are no more, `otherwise` serves the others."""

    def __init__(self, *answers: Answer, otherwise: Answer | None = None, port: int = 0, certificate: str = "") -> None:
        self.answers = list(answers)
        self.otherwise = otherwise or Answer()
        self.requests: list[Received] = []
        self.connections = 0
        self.closing = threading.Event()
        self._wrong: list[BaseException] = []
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = _Server(self, ("127.0.0.1", port))
        self.port = self._server.server_port
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake is left to the request's thread: one that hangs there must not keep the others out.
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.endpoint = f"https://localhost:{self.port}" if certificate else f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def spans(self) -> list[Span]:
        """The spans that it took: those of requests that it answered with success, and wholly."""
        return [span for received in self.requests if received.answer.takes for span in received.spans]

    def wait_for(self, is_true: Callable[[Collector], bool], within_s: float = 15.0) -> None:
        """Return when the condition holds; fail if it does not in time."""
        end_s = time.monotonic() + within_s
        while not is_true(self):
            assert time.monotonic() < end_s, f"{len(self.requests)} requests with {len(self.spans)} spans"
            time.sleep(0.005)

    def hang_up(self) -> None:
        """Close all connections, whatever is going on in them."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and close all connections. May be called again.

        Raises:
            Exception: what the collector could not read, such as a request that is no OTLP.
        """
        if self.closing.is_set():
            return
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self.hang_up()
        self._server.server_close()
        if self._wrong:
            raise self._wrong[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- for the server's threads ------------------------------------------------------------------------------------------

    def opened(self, connection: socket.socket) -> None:
        """Note a connection, to be closed at the end."""
        with self._lock:
            self._open.add(connection)
            self.connections += 1

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        with self._lock:
            self._open.discard(connection)

    def next_answer(self) -> Answer:
        """Return the answer to the next request."""
        with self._lock:
            return self.answers.pop(0) if self.answers else self.otherwise

    def failed(self, error: BaseException) -> None:
        """Note what a request's thread raised: a client may hang up at any time, the rest is told at the end."""
        if not isinstance(error, OSError):
            self._wrong.append(error)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # they are joined at the end: none may outlive its test

    def __init__(self, collector: Collector, address: tuple[str, int]) -> None:
        self.collector = collector
        super().__init__(address, _Handler)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self.collector.opened(request)
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.collector.closed(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if error := sys.exception():
            self.collector.failed(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing."""

    def do_POST(self) -> None:
        collector = self.server.collector
        answer = collector.next_answer()
        if answer.how is How.EARLY:
            self._say(answer)
            self.close_connection = True
            return
        body = self._chunks() if self.headers["Transfer-Encoding"] == "chunked" else self._whole()
        if body is None:
            self.close_connection = True
            return
        plain = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
        headers = {name.lower(): value for name, value in self.headers.items()}
        message = ExportTraceServiceRequest.FromString(plain)
        collector.requests.append(Received(self.path, headers, body, message, answer))
        self._answer(answer)

    def _whole(self) -> bytes | None:
        """Return the body; None if the client hung up before its end."""
        length = int(self.headers["Content-Length"])
        body = self.rfile.read(length)
        return body if len(body) == length else None

    def _chunks(self) -> bytes | None:
        """Return the body as OpenTelemetry's exporter for Node sends it, in chunks; None as above."""
        parts: list[bytes] = []
        while length := int(self.rfile.readline() or b"0", 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        return b"".join(parts) if self.rfile.readline() == b"\r\n" else None

    def _answer(self, answer: Answer) -> None:
        self.close_connection = answer.how is not How.WHOLE
        match answer.how:
            case How.WHOLE | How.CLOSE_BEHIND | How.EARLY:
                self._say(answer)
            case How.HALF:
                body = answer.content() or b"no body to halve"
                self._say(answer, body[: len(body) // 2], len(body))
            case How.GARBAGE:
                self.wfile.write(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00@\x00")  # as a gRPC server begins
            case How.CLOSE:
                pass
            case How.SILENCE:
                self.server.collector.closing.wait()
            case How.DRIP:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
                while not self.server.collector.closing.wait(DRIP_S):
                    self.wfile.write(b".")
            case How.ENDLESS:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while not self.server.collector.closing.is_set():
                    self.wfile.write(b"X-More: and more\r\n" * 10)
            case How.HUGE:
                self._say(answer, b"", 2**40)
                while not self.server.collector.closing.is_set():
                    self.wfile.write(b"\x00" * 65536)
            case How.CHUNKS:
                self.wfile.write(b"HTTP/1.1 %d Chunks\r\nTransfer-Encoding: chunked\r\n\r\n" % answer.status)
                while not self.server.collector.closing.is_set():
                    self.wfile.write(b"400\r\n" + b"\x00" * 0x400 + b"\r\n")

    def _say(self, answer: Answer, body: bytes | None = None, length: int | None = None) -> None:
        body = answer.content() if body is None else body
        self.send_response(answer.status)
        headers = {"Content-Type": "application/x-protobuf", "Content-Length": str(len(body) if length is None else length)}
        for name, value in {**headers, **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
