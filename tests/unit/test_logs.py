"""The log of a worker, whose filters, handlers and formatters are the user's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from runtime import logs
from runtime.errors import Dead, Retry, StoreUnavailable
from runtime.worker.log import ThrottledLog
from tests.builders import job


class Panic(BaseException):
    """No Exception."""


class Broken(logging.Filter):
    """A filter that raises."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def filter(self, record: logging.LogRecord) -> bool:
        raise self.error("no")


class Heard(logging.Handler):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture(autouse=True)
def untold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs.GuardedLog, "_silent_until_s", 0.0)


@pytest.fixture(params=[ValueError, Panic, KeyboardInterrupt])
def broken(request: pytest.FixtureRequest) -> Iterator[Broken]:
    """Add a filter that raises to the logger of the worker."""
    found = Broken(request.param)
    logging.getLogger("runtime").addFilter(found)
    yield found
    logging.getLogger("runtime").removeFilter(found)


def test_a_filter_that_raises_costs_its_line_and_no_more(broken: Broken, capsys: pytest.CaptureFixture[str]) -> None:
    log = logs.guarded("runtime")
    for _ in range(3):
        log.warning("a line with %d number", 1)
    log.error("without its %s argument")
    err = capsys.readouterr().err
    assert err.count("lines are lost") == 1
    assert broken.error.__name__ in err


def test_whatever_a_worker_has_to_say_a_filter_that_raises_ends_nothing(broken: Broken) -> None:
    log = ThrottledLog()
    for _ in range(30):
        log.failure(job(), ValueError("no"), Retry(1))
        log.failure(job(), ValueError("no"), Dead("no"))
        log.warn("a line")
    log.store_unavailable(StoreUnavailable("no"), 3)
    log.store_back(3)


def test_a_record_factory_that_raises_ends_nothing() -> None:
    def factory(*given: Any, **named: Any) -> logging.LogRecord:
        raise Panic("no")

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        logs.guarded("runtime").warning("a line")
    finally:
        logging.setLogRecordFactory(before)


def test_a_line_says_where_it_was_written() -> None:
    heard = Heard()
    logger = logging.getLogger("runtime.here")
    logger.addHandler(heard)
    try:
        logs.guarded("runtime.here").warning("a line")
        logs.guarded("runtime.here").error("a line", exc_info=ValueError("no"))
    finally:
        logger.removeHandler(heard)
    assert {(record.funcName, record.filename) for record in heard.records} == {
        ("test_a_line_says_where_it_was_written", "test_logs.py")
    }
    assert heard.records[1].exc_info is not None
