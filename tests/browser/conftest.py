"""One browser and one demo for all tests of a module: both take seconds to start."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import pytest_asyncio
import redis
from playwright.async_api import Browser

from tests.browser import chromium
from tests.faults.harness import ROOT
from tests.servers import wait_until


class Demo(msgspec.Struct, frozen=True):
    """The demo of `make run`: where its board is, the link that logs in, and its store."""

    origin: str
    link: str
    folder: Path
    pid: int

    def store(self) -> redis.Redis:
        """Return a client of its store."""
        return redis.Redis(unix_socket_path=str(self.folder / "data" / "s.sock"), decode_responses=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo as `make run` starts it, from the moment when its board is there."""
    if chromium.binary() is None:
        pytest.skip(chromium.HOW_TO_GET)
    with started(tmp_path_factory.mktemp("demo")) as running:
        yield running


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Demo]:
    """Run the demo in this folder."""
    command = [sys.executable, "-m", "handlers.demo", "--folder", str(folder), "--board", "127.0.0.1:0"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(command, cwd=ROOT, stderr=said, start_new_session=True)
    try:
        wait_until(lambda: re.search(r"^  board +http", _said(folder), re.MULTILINE) is not None, what="the board's address")
        link = re.findall(r"^  board +(\S+)", _said(folder), re.MULTILINE)[0]
        yield Demo(link.partition("/#")[0], link, folder, process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, _said(folder)


def _said(folder: Path) -> str:
    return (folder / "said").read_text(errors="replace")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running() -> AsyncIterator[Browser]:
    """The browser."""
    if chromium.binary() is None:
        pytest.skip(chromium.HOW_TO_GET)
    async with chromium.browser() as started:
        yield started


def read(address: str) -> bytes:
    """Return what an address answers."""
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read()
