"""Stands in for a collector: takes requests and reads them no further, or takes connections and never answers.

`python -m bench.sink` prints its port and runs until it is killed; with `--silent` it never answers.
"""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final

from bench.lab import ROOT

HEAD_BYTES: Final = 64 * 1024
ANSWER: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"
_LENGTH: Final = re.compile(rb"(?i)content-length: *(\d+)")


@contextmanager
def sink(*, is_silent: bool = False) -> Generator[str]:
    """Have a collector, as a process of its own; return its endpoint."""
    command = [sys.executable, "-m", "bench.sink", *(("--silent",) if is_silent else ())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def nobody() -> str:
    """Return an endpoint where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def _take(connection: socket.socket) -> None:
    buffer = bytearray(1 << 20)
    head = b""
    while True:
        got = connection.recv(HEAD_BYTES)
        if not got:
            return
        head += got
        before, found, body = head.partition(b"\r\n\r\n")
        if not found:
            continue
        length = _LENGTH.search(before)
        left = int(length[1]) - len(body) if length is not None else 0
        while left > 0:
            size = connection.recv_into(buffer, min(left, len(buffer)))
            if not size:
                return
            left -= size
        head = b""
        connection.sendall(ANSWER)


def main() -> None:
    """Run until killed."""
    is_silent, kept = "--silent" in sys.argv, list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            kept.append(connection)
            if not is_silent:
                threading.Thread(target=_take, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
