"""The loop of a worker's process, in which handlers leave what they like."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator

import pytest
import uvloop

from runtime.commands import run
from runtime.commands.common import find_handlers
from runtime.commands.run import _run_to_end, _tell_shipped
from runtime.config import Config

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@pytest.fixture(params=LOOPS)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """Return what runs a loop of each kind."""
    runner = asyncio.Runner(loop_factory=LOOPS[request.param])
    yield runner
    with contextlib.suppress(BaseException):
        runner.close()


class Panic(BaseException):
    """No Exception."""


def refuse(record: logging.LogRecord) -> bool:
    raise Panic("a filter that fails")


@pytest.fixture
def broken_log() -> Iterator[None]:
    """Let a filter raise whenever the loop has something to say."""
    logging.getLogger("asyncio").addFilter(refuse)
    yield
    logging.getLogger("asyncio").removeFilter(refuse)


def stops() -> None:
    asyncio.get_running_loop().stop()


def exits() -> None:
    sys.exit(3)


def fails() -> None:
    raise ZeroDivisionError


@pytest.mark.usefixtures("broken_log")
@pytest.mark.parametrize("what", [stops, exits, fails])
def test_a_loop_that_a_callback_stops_is_run_again(runner: asyncio.Runner, what: Callable[[], None]) -> None:
    async def work() -> str:
        for _ in range(3):
            for _ in range(40):
                asyncio.get_running_loop().call_soon(what)
            await asyncio.sleep(0.001)
        return "done"

    assert _run_to_end(runner, work()) == "done"


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_work_that_fails_has_ended(runner: asyncio.Runner, error: type[BaseException]) -> None:
    async def work() -> None:
        await asyncio.sleep(0)
        raise error("its own")

    with pytest.raises(error):
        _run_to_end(runner, work())


class Deaf(asyncio.SelectorEventLoop):
    """A loop that can go on no more from a while on, as when somebody has closed all its files."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 0

    def _run_once(self) -> None:
        self.turns += 1
        if self.turns > 10:
            raise OSError("bad file descriptor")
        super()._run_once()  # pyright: ignore[reportAttributeAccessIssue]


def test_a_loop_that_has_no_turn_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "FRUITLESS", 50)
    runner = asyncio.Runner(loop_factory=Deaf)

    async def work() -> None:
        while True:
            await asyncio.sleep(0)

    with pytest.raises(OSError, match="bad file"):
        _run_to_end(runner, work())
    runner.get_loop().turns = -(10**9)  # pyright: ignore[reportAttributeAccessIssue]
    runner.close()


def test_a_worker_without_handlers_of_its_own_says_what_it_runs(caplog: pytest.LogCaptureFixture) -> None:
    named = Config(handlers="handlers.maintenance")
    _tell_shipped(named, find_handlers(named))
    assert caplog.messages == []
    _tell_shipped(Config(), find_handlers(Config()))
    [line] = [line for line in caplog.messages if "shipped" in line]
    assert re.fullmatch(
        r"running the shipped types, and none of yours: .*cleanup-logs.*, export-csv.*; hint: --handlers myapp.jobs", line
    )
