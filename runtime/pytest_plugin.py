"""Fixtures for tests: `jobs_url`, an empty server for each test, `jobs_worker`, a worker on it, `jobs_sent`, what was sent to it.

pytest loads this file in every project that has the package installed, so it loads nothing until a test asks for a fixture.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from runtime.embedded import Embedded
    from runtime.testing import JobsSent, Worker

ANSWER_S: Final = 5.0  # a guess: an empty server answers within a millisecond


@pytest.fixture(scope="session")
def _jobs_server() -> Iterator[Embedded]:
    """One embedded server for the whole session, on a folder that is removed with it."""
    from runtime.embedded import Embedded

    with tempfile.TemporaryDirectory(prefix="jobs-") as folder:
        server = Embedded(Path(folder))
        with pytest.MonkeyPatch.context() as environment:
            # In Kubernetes it refuses to start, since its data would go with the pod: that of tests may.
            environment.delenv("KUBERNETES_SERVICE_HOST", raising=False)
            server.start()
        yield server
        server.stop()


@pytest.fixture
def jobs_url(_jobs_server: Embedded) -> str:
    """The URL of a server that is empty at the start of the test."""
    # By hand: a client's loop must not meet the test's, and this file loads no client.
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(ANSWER_S)
        server.connect(str(_jobs_server.socket))
        # Delayed jobs are then kept in the order in which they came, for `jobs_sent`; the value is the most that one may have.
        server.sendall(b"CONFIG SET hash-max-listpack-value 1048576\r\nFLUSHALL\r\n")
        if server.recv(10, socket.MSG_WAITALL) != b"+OK\r\n+OK\r\n":
            raise RuntimeError(f"{_jobs_server!r} could not be emptied")
    return _jobs_server.url


@pytest.fixture
def jobs_worker(jobs_url: str) -> Callable[..., AbstractAsyncContextManager[Worker]]:
    """Return `runtime.testing.worker` on this test's server: `async with jobs_worker(handler, …) as worker:`."""
    from runtime.testing import worker

    return partial(worker, jobs_url)


@pytest.fixture
def jobs_sent(jobs_url: str) -> JobsSent:
    """Return what tells of jobs sent to this test's server: `assert jobs_sent(SendReceipt) == [SendReceipt(order=7)]`."""
    from runtime.testing import JobsSent

    return JobsSent(jobs_url)
