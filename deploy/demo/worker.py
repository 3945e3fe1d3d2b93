"""A worker process that sends its traces to a Jaeger, and stops when it is left."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from deploy.demo.jaeger import ROOT

START_S: Final = 60.0  # a guess: a busy machine starts Python and a server in far less
STOP_S: Final = 40.0  # the worker's own grace is 25 s
HANDLERS: Final = "deploy.demo.orders"


@contextmanager
def worker(folder: Path, otlp: str, *flags: str, handlers: str = HANDLERS, **environment: str) -> Generator[str]:
    """Run a worker until the block ends, and yield the address of its board. Its log is `folder`/worker.log.

    Without `--redis` among the flags it starts an embedded server, whose URL is `store(folder)`.

    Raises:
        RuntimeError: it is not ready in time, or did not end with status 0; the text has the end of its log.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        board = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [
        sys.executable,
        "-m",
        "runtime",
        "run",
        "--handlers",
        handlers,
        "--data-dir",
        str(folder / "data"),
        "--board",
        board,
        *flags,
    ]
    around = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": otlp, **environment}
    log = folder / "worker.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, env=around, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        end_s = time.monotonic() + START_S
        while not _is_ready(board):
            if process.poll() is not None or time.monotonic() > end_s:
                raise RuntimeError(f"the worker is not ready: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)
        yield board
    finally:
        process.terminate()
        try:
            status = process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
    if status != 0:
        raise RuntimeError(f"the worker ended with status {status}: {log.read_text(errors='replace')[-2000:]}")


def store(folder: Path) -> str:
    """Return the URL of the embedded server of a worker in this folder."""
    return f"unix://{folder / 'data' / 's.sock'}"


def _is_ready(board: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{board}/readyz", timeout=2) as answer:
        return answer.status == 200
    return False
