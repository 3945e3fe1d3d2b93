"""A mail server, a PostgreSQL database and settings per test, and no connection left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from handlers.kit import failures, http, settings
from handlers.kit.circuits import Circuits
from handlers.kit.mail import close_pools
from runtime.jobs import MARKS
from tests.handlers.httphost import Httphost
from tests.handlers.mailhost import Mailhost
from tests.handlers.marks import FolderMarks
from tests.handlers.postgres import HOW_TO_GET, PgDatabase, Postgres, tools

Configure = Callable[[str], Path]
Start = Callable[..., Mailhost]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start mail servers with options of aiosmtpd."""
    running: list[Mailhost] = []

    def begin(**options: Any) -> Mailhost:
        running.append(Mailhost(**options))
        return running[-1]

    yield begin
    for host in running:
        host.stop()


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Write the settings of the handlers."""
    failures._logged_s.clear()
    settings._at.cache_clear()
    path = tmp_path / "handlers.toml"
    monkeypatch.setenv(settings.VARIABLE, str(path))

    def write(text: str) -> Path:
        path.write_text(text, "utf-8")
        return path

    return write


@pytest.fixture
def host(start: Start, configure: Configure, tmp_path: Path) -> Mailhost:
    """A mail server that takes everything, and settings that lead to it."""
    taker = start()
    (tmp_path / "templates").mkdir()
    configure(
        f'smtp.main = {{ url = "smtp://localhost:{taker.port}", plain = true, timeout_s = 5 }}\n'
        'senders.default = { smtp = "main", name = "Müller, \\"A\\"", address = "no-reply@example.com" }\n'
        f"templates.path = '{tmp_path / 'templates'}'\n"
    )
    return taker


@pytest.fixture
def web() -> Iterator[Httphost]:
    """An HTTP server that takes everything."""
    running = Httphost()
    yield running
    running.stop()


@pytest_asyncio.fixture
async def web_hung_up(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Nobody has been at fault, and after the test the HTTP clients of its loop are closed."""
    failures._logged_s.clear()
    monkeypatch.setattr(http, "circuits", Circuits())
    before = sockets()
    yield
    await http.close_clients()
    await hang_up(before)


@pytest.fixture(scope="session")
def _postgres() -> Iterator[list[Postgres]]:
    """This process's PostgreSQL, which is started for the first test that asks for one."""
    running: list[Postgres] = []
    yield running
    for server in running:
        server.stop()


@pytest.fixture
def postgres(_postgres: list[Postgres]) -> Iterator[PgDatabase]:
    """An empty database of a PostgreSQL."""
    if not _postgres:
        if tools() is None:
            pytest.skip(HOW_TO_GET)
        _postgres.append(Postgres())
    database = _postgres[0].create()
    yield database
    _postgres[0].drop(database)


@pytest.fixture
def marks(tmp_path: Path) -> Iterator[FolderMarks]:
    """What attempts at a job leave for later ones, in this test."""
    store = FolderMarks(tmp_path)
    token = MARKS.set(store)
    yield store
    MARKS.reset(token)


@pytest_asyncio.fixture
async def hung_up() -> AsyncIterator[None]:
    """Close the connections of the test's loop after it."""
    before = sockets()
    yield
    await hang_up(before)


def sockets() -> set[str]:
    """Return the sockets that this process holds open, where the system tells."""
    held: set[str] = set()
    for entry in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed meanwhile
            held.add(os.readlink(entry))
    return {target for target in held if target.startswith("socket:")}


async def hang_up(before: set[str]) -> None:
    """Close the connections of the running loop, and wait until no socket is open that was not before.

    Told to close, a transport does so in a later turn of the loop, and an encrypted one after the other end's answer. What is
    open when the loop ends stays open, until the garbage of some other test is collected.
    """
    close_pools()
    end_s = time.monotonic() + 60
    while left := sockets() - before:
        assert time.monotonic() < end_s, f"{len(left)} sockets are left open"
        await asyncio.sleep(0.002)
