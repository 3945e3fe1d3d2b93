"""One connection to a collector: posts a body and returns the answer, by a deadline, and of the answer no more than a bound.

No redirect is followed, and no proxy is taken from the environment: spans and the headers with them go where the settings say.
"""

from __future__ import annotations

import contextlib
import io
import socket
import ssl
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPResponse, IncompleteRead
from typing import Any, Final, NamedTuple, cast

from otel.settings import ExportSettings

ANSWER_BYTES: Final = 64 * 1024  # read of an answer, its head included; a guess: real ones have less than 1 KB
CHUNK_BYTES: Final = 64 * 1024  # sent between two looks at the clock; a guess
AGENT: Final = "backend-jobs-otlp"

_CLOSED: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)  # the other end did not wait for what comes


class Answer(NamedTuple):
    """What a collector said, as it said it."""

    status: int
    body: bytes = b""
    retry_after: str = ""


class Connection:
    """Owns the socket, which is opened when it is needed and kept for the next request. For one thread, but for `hang_up`."""

    def __init__(self, settings: ExportSettings) -> None:
        url = settings.url
        self._host, self._port = url.hostname or "", settings.port
        self._timeout_s = settings.timeout_s
        self._settings = settings
        self._context: ssl.SSLContext | None = None
        self._socket: socket.socket | None = None
        self._is_over = False
        headers = {
            "host": url.netloc,
            "user-agent": AGENT,
            **settings.headers,
            "content-type": "application/x-protobuf",
            **({"content-encoding": "gzip"} if settings.is_gzip else {}),
        }
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        self._head = "\r\n".join(lines).encode("ascii")

    def post(self, body: bytes) -> Answer:
        """Return the answer to a request with this body, compressed as the settings say.

        Raises:
            OSError: nobody answers, or not in time.
            HTTPException: what answers speaks no HTTP, or stops within its answer.
        """
        deadline_s = time.monotonic() + self._timeout_s
        was_open = self._socket is not None
        try:
            try:
                return self._exchange(body, deadline_s)
            except _CLOSED:
                self.close()
                if not was_open:
                    raise
                return self._exchange(body, deadline_s)  # it was closed while nothing was sent, as after an idle minute
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def hang_up(self) -> None:
        """Let the post that is under way in another thread fail now, and all later ones."""
        self._is_over = True
        if (connection := self._socket) is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)  # not of TLS, which would change what that thread reads

    def _exchange(self, body: bytes, deadline_s: float) -> Answer:
        connection = self._socket or self._open(deadline_s)
        was_cut = False
        try:
            for part in (self._head, b"\r\ncontent-length: %d\r\n\r\n" % len(body), *_chunks(body)):
                connection.settimeout(_left_s(deadline_s))
                connection.sendall(part)
        except _CLOSED:
            was_cut = True  # it may have said why: that the body is too large, or the headers are not right
        answer = _Bounded(connection, deadline_s)
        response = HTTPResponse(cast("socket.socket", answer), method="POST")  # of a socket, it only asks for a file to read
        with contextlib.closing(response):
            response.begin()
            content = _read(response, answer)
            # Kept only where it is certain that nothing of this answer is left in it, to be taken for the next one.
            if was_cut or response.status != HTTPStatus.OK or response.will_close or not response.isclosed():
                self.close()
        return Answer(response.status, content, response.getheader("retry-after") or "")

    def _open(self, deadline_s: float) -> socket.socket:
        """Return a connection to the first address of the collector that takes one.

        Raises:
            OSError: none does in time, or none can prove to be the collector.
        """
        if self._context is None:
            self._context = self._settings.tls()
        problem: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM):
            self.close()
            connection = socket.socket(family, kind, protocol)
            if self._context is not None:
                # Before it is connected: one that is reset meanwhile would be lost, and stay open.
                wrapped = self._context.wrap_socket(connection, server_hostname=self._host, do_handshake_on_connect=False)
                connection = wrapped
            self._socket = connection
            if self._is_over:  # `hang_up` looked before there was a socket
                raise ConnectionAbortedError("the worker ends")
            try:
                connection.settimeout(_left_s(deadline_s))
                connection.connect(address)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if isinstance(connection, ssl.SSLSocket):
                    connection.settimeout(_left_s(deadline_s))
                    connection.do_handshake()
                return connection
            except OSError as error:
                problem = error
        raise problem or ConnectionError("its name has no address")


class _Bounded(io.RawIOBase):
    """What is read of an answer: it ends after ANSWER_BYTES as if the collector had ended it, and fails at the deadline.

    Each read is given what is left until then, so that a byte now and then does not put it off.
    """

    def __init__(self, connection: socket.socket, deadline_s: float) -> None:
        self._socket = connection
        self._deadline_s = deadline_s
        self.left_bytes = ANSWER_BYTES

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file to read it by, as a socket does."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Return how many bytes were read into `buffer`; 0 at the end."""
        if not self.left_bytes:
            return 0
        self._socket.settimeout(_left_s(self._deadline_s))
        size = self._socket.recv_into(memoryview(buffer)[: self.left_bytes])
        self.left_bytes -= size
        return size


def _read(response: HTTPResponse, answer: _Bounded) -> bytes:
    """Return the body, or as much of it as the bound allows.

    Raises:
        IncompleteRead: the collector stopped within it.
    """
    try:
        content = response.read(ANSWER_BYTES)
    except IncompleteRead as error:
        if answer.left_bytes:
            raise
        return error.partial
    if response.length and answer.left_bytes:
        raise IncompleteRead(content, response.length)
    return content


def _chunks(body: bytes) -> Iterator[memoryview]:
    view = memoryview(body)
    return (view[at : at + CHUNK_BYTES] for at in range(0, len(view), CHUNK_BYTES))


def _left_s(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("timed out")
    return left_s
