"""The log of a worker, whose filters, handlers and formatters are the user's, and which says which job wrote a line."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import logging.config
import logging.handlers
import queue
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import logs
from runtime.errors import Cancelled, Dead, Retry, StoreUnavailable
from runtime.jobs import LANE, Job
from runtime.offload import in_thread
from runtime.settle import decide
from runtime.worker.log import LINES_S, STACKS_S, ThrottledLog
from tests.builders import job
from tests.unit.in_child import writes


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


# --- which job ---------------------------------------------------------------------------------------------------------------

IDS = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "01")
IN_TRACE = dict(zip(logs.TRACE_FIELDS, IDS, strict=True))


class OnLane:
    """A lane, as far as the log sees one."""

    def __init__(self, job: Job | None) -> None:
        self.job = job

    def begin(self) -> None:
        """Note nothing."""


@pytest.fixture
def lane() -> Iterator[OnLane]:
    """Run this test as a job's code."""
    lane = OnLane(job("mail", b"7-1", id="order-5", failed=1))
    token = LANE.set(lane)
    yield lane
    LANE.reset(token)


OF_THE_LANE = {"job_id": "order-5", "job_type": "mail", "job_attempt": 2}


@pytest.fixture
def heard() -> Iterator[Heard]:
    """Hear the lines of a logger of the user's own, as `setup` would have them."""
    heard = Heard()
    heard.addFilter(logs.JobFilter())
    logging.getLogger("shop").addHandler(heard)
    yield heard
    logging.getLogger("shop").removeHandler(heard)


def fields_of(record: logging.LogRecord) -> dict[str, object]:
    """Return what the line of JSON of a record says of jobs and traces."""
    line = json.loads(logs.Json().format(record))
    return {name: line[name] for name in (*logs.JOB_FIELDS, *logs.TRACE_FIELDS) if name in line}


async def write() -> None:
    """Write a line, as a job's code does."""
    logging.getLogger("shop").warning("a line")


async def test_lines_of_a_job_say_which_it_is_in_plain_code_tasks_and_threads(lane: OnLane, heard: Heard) -> None:
    await write()
    await asyncio.gather(write(), write())
    await asyncio.to_thread(logging.getLogger("shop").warning, "a line")
    await anyio.to_thread.run_sync(logging.getLogger("shop").warning, "a line")
    assert [fields_of(record) for record in heard.records] == [OF_THE_LANE] * 5


async def test_a_function_that_goes_on_in_its_thread_keeps_its_own_job_when_the_lane_has_another(heard: Heard) -> None:
    first, second = job("mail", id="first"), job("mail", id="second")
    lane = OnLane(first)
    LANE.set(lane)

    def run(payload: Any, job: Job) -> None:
        lane.job = second
        logging.getLogger("shop").warning("a line")

    await in_thread(run)(None, first)
    assert [fields_of(record)["job_id"] for record in heard.records] == ["first"]


def test_outside_of_jobs_and_between_them_no_line_says_one(heard: Heard) -> None:
    logging.getLogger("shop").warning("a line")
    token = LANE.set(OnLane(None))
    logging.getLogger("shop").warning("a line")
    LANE.reset(token)
    assert [fields_of(record) for record in heard.records] == [{}, {}]
    assert {name: getattr(heard.records[0], name) for name in logs.JOB_FIELDS} == dict.fromkeys(logs.JOB_FIELDS, "")


def test_lines_within_a_span_have_its_ids(lane: OnLane, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "trace_ids", lambda: IDS)
    logging.getLogger("shop").warning("a line")
    assert fields_of(heard.records[0]) == {**OF_THE_LANE, **IN_TRACE}
    plain = logs.Plain().format(heard.records[0])
    assert plain.endswith(f"a line  [mail order-5 attempt 2 trace {IDS[0]}]")


def test_fields_that_a_line_brings_along_stay(lane: OnLane, heard: Heard) -> None:
    logging.getLogger("shop").warning("a line", extra={"job_id": "another", "trace_id": "mine"})
    assert fields_of(heard.records[0]) == {**OF_THE_LANE, "job_id": "another", "trace_id": "mine"}


def test_ids_that_cannot_be_had_cost_no_line(lane: OnLane, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> None:
        raise ValueError("no")

    monkeypatch.setattr(logs, "trace_ids", raises)
    logging.getLogger("shop").warning("a line")
    assert fields_of(heard.records[0]) == OF_THE_LANE


def test_a_queue_of_records_carries_the_fields_to_the_thread_that_writes_them(lane: OnLane, heard: Heard) -> None:
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    sends = logging.handlers.QueueHandler(waiting)
    sends.addFilter(logs.JobFilter())
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, "a line", (), None)
    sends.handle(record)
    lane.job = None
    heard.handle(waiting.get())
    assert fields_of(heard.records[0]) == OF_THE_LANE


def test_a_configuration_of_the_users_own_shows_the_same_fields(lane: OnLane, capsys: pytest.CaptureFixture[str]) -> None:
    fmt = "%(levelname)s %(message)s job=%(job_id)s type=%(job_type)s attempt=%(job_attempt)s trace=%(trace_id)s"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"job": {"()": "runtime.logs.JobFilter"}},
            "formatters": {"mine": {"format": fmt}},
            "handlers": {"mine": {"class": "logging.StreamHandler", "filters": ["job"], "formatter": "mine"}},
            "loggers": {"of-the-user": {"handlers": ["mine"]}},
        }
    )
    logging.getLogger("of-the-user").warning("a line")
    lane.job = None
    logging.getLogger("of-the-user").warning("another")
    assert capsys.readouterr().err.splitlines() == [
        "WARNING a line job=order-5 type=mail attempt=2 trace=",
        "WARNING another job= type= attempt= trace=",
    ]


# --- in a child process --------------------------------------------------------------------------------------------------------


async def in_child(capfd: pytest.CaptureFixture[str], do: str = "") -> str:
    one = job("work", data=f'{{"do":"{do}"}}'.encode(), id="order-5", failed=1)
    await writes.run(None, one)
    return capfd.readouterr().err


@pytest.mark.parametrize("kind", ["json", "plain"])
async def test_a_child_logs_as_its_worker_does(kind: str, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_settings", (kind, "warning"))
    monkeypatch.setattr(logs, "trace_ids", lambda: IDS)
    lines = (await in_child(capfd)).splitlines()
    assert len(lines) == 4
    if kind == "plain":
        assert {line.partition("  [")[2] for line in lines} == {f"work order-5 attempt 2 trace {IDS[0]}]"}
        return
    for line in map(json.loads, lines):
        assert line["logger"] == "shop"
        told = {name: line[name] for name in (*logs.JOB_FIELDS, *logs.TRACE_FIELDS)}
        assert told == {**OF_THE_LANE, "job_type": "work", **IN_TRACE}


async def test_a_child_of_a_process_that_set_up_no_log_prints_as_python_does(capfd: Any) -> None:
    assert logs.settings() is None
    assert (await in_child(capfd)).splitlines() == ["by the job", "by its thread", "by a task of it", "by a task of it"]


async def test_a_command_of_a_child_may_write_as_much_to_standard_error_as_it_likes(capfd: Any) -> None:
    assert (await in_child(capfd, "much")).count("x") == 1_000_000


# --- what a line may hold ----------------------------------------------------------------------------------------------------

HOSTILE = "".join(map(chr, (*range(0x20), 0x7F, *range(0x80, 0xA0), 0x200E, *range(0x2028, 0x202F), *range(0x2066, 0x206A))))
FORMATS: dict[str, Callable[[], logging.Formatter]] = {"plain": logs.Plain, "json": logs.Json}


def record_of(text: str, **fields: object) -> logging.LogRecord:
    """Return a record with this text in its message, in an exception with a cause, and in each field."""
    try:
        try:
            raise ValueError(text)
        except ValueError as error:
            raise KeyError(text) from error
    except KeyError as error:
        record = logging.LogRecord(text, logging.WARNING, __file__, 1, "%s", (text,), (KeyError, error, error.__traceback__))
    record.stack_info = text
    record.__dict__.update(dict.fromkeys((*logs.JOB_FIELDS, *logs.TRACE_FIELDS), text) | fields)
    return record


@pytest.mark.parametrize("kind", FORMATS)
@given(text=st.text(st.sampled_from(HOSTILE + "ab:\\") | st.characters(), max_size=40))
def test_no_text_can_begin_a_record_of_its_own_or_reach_the_terminal(kind: str, text: str) -> None:
    line = FORMATS[kind]().format(record_of(text))
    assert not set(line) & set(HOSTILE.replace("\n", ""))
    first, *others = line.split("\n")
    assert line.splitlines() == [first, *others]
    assert all(other.startswith("    ") for other in others)
    if kind == "json":
        assert others == []
        told = json.loads(line)
        assert {told["message"], told["logger"], *(told[name] for name in logs.JOB_FIELDS if text)} == {text}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_control_character_is_escaped_in_both_formats(kind: str) -> None:
    line = FORMATS[kind]().format(record_of(HOSTILE))
    assert line.isascii()
    assert all(char.isprintable() or char == "\n" for char in line)
    for shown in ("\\x1b", "\\r", "\\u2028") if kind == "json" else ("\\x1b", "\\x0d", "\\u2028", "\\u202e"):
        assert shown.replace("\\x1b", "\\u001b") in line or shown in line


def test_a_stack_that_was_asked_for_is_in_both_formats() -> None:
    record = record_of("no", stack_info="Stack (most recent call last): here")
    assert json.loads(logs.Json().format(record))["stack"].endswith("here")
    assert logs.Plain().format(record).endswith("\n    Stack (most recent call last): here")


# --- the worker's own lines ----------------------------------------------------------------------------------------------------


@pytest.fixture
def told() -> Iterator[Heard]:
    """Hear the worker's own lines."""
    heard = Heard()
    logging.getLogger("runtime").addHandler(heard)
    yield heard
    logging.getLogger("runtime").removeHandler(heard)


def dead(stack: str) -> Dead:
    outcome = Dead("no such account")
    outcome.stack = stack
    return outcome


def test_a_death_is_logged_with_its_stack_and_a_retry_is_one_line(told: Heard) -> None:
    log, one = ThrottledLog(), job("mail", b"7-1", id="order-5", failed=1)
    log.failure(one, ValueError("no"), Retry(1, "no such\nhost"))
    log.failure(one, ValueError("no"), dead('File "mail.py", line 7, in send\n'))
    retried, died = told.records
    assert [fields_of(record) for record in told.records] == [OF_THE_LANE] * 2
    assert retried.exc_text is None
    assert json.loads(logs.Json().format(died))["stack"].startswith('File "mail.py", line 7')
    plain = logs.Plain().format(died).splitlines()
    assert plain[0].endswith('job order-5 (mail) is dead after attempt 2: no such account  [reason="handler"]')
    assert plain[1] == '    File "mail.py", line 7, in send'
    assert "line 7, in send" in logging.Formatter().format(died), "whose formatter it may be"


class Hostile(Exception):
    """Counts who asks it for anything."""

    asked = 0

    def __str__(self) -> str:
        Hostile.asked += 1
        raise Panic("no")


class Tracker(logging.Handler):
    """Reads what the logging integrations of error trackers read: lines from ERROR on, their exception, frames and fields."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.events: list[tuple[str, str, list[str], dict[str, object]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, stack = record.exc_info
            frames = [frame.name for frame in traceback.extract_tb(stack)]
            known = {*vars(logging.makeLogRecord({})), "message"}
            extra = {name: value for name, value in vars(record).items() if name not in known}
            self.events.append((kind.__name__, str(error), frames, extra))


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    """Hear what the worker's own logger tells an error tracker."""
    tracker = Tracker()
    logging.getLogger("runtime").addHandler(tracker)
    yield tracker
    logging.getLogger("runtime").removeHandler(tracker)


def failed(error: BaseException) -> BaseException:
    """Return an error that a handler has raised."""

    def pay() -> None:
        raise error

    with contextlib.suppress(type(error)):
        pay()
    return error


def test_an_error_tracker_gets_each_death_with_its_exception_and_fields_and_no_retry(tracker: Tracker) -> None:
    log, one = ThrottledLog(), job("mail", b"7-1", id="order-5", failed=1, attempts=2)
    error, cause = failed(ValueError("no such host")), failed(LookupError("no such account"))
    log.failure(one, error, Retry(1, "again"))
    log.failure(one, error, decide(writes, one, error, lambda: 1.0))
    error = Dead("closed", "no-account", error=cause)
    log.failure(one, error, decide(writes, one, error, lambda: 1.0))
    (first, second) = tracker.events
    assert (first[:2], first[2][-1]) == (("ValueError", "no such host"), "pay")
    assert (second[:2], second[2][-1]) == (("LookupError", "no such account"), "pay")
    assert first[3] == OF_THE_LANE | {"reason": "attempts"}
    assert second[3] == OF_THE_LANE | {"reason": "no-account"}


def test_an_exception_that_raises_is_asked_for_nothing_by_formatters_and_costs_no_line_where_a_tracker_asks(
    tracker: Tracker, told: Heard
) -> None:
    log, one, error = ThrottledLog(), job(attempts=1), failed(Hostile())
    outcome = decide(writes, one, error, lambda: 1.0)
    Hostile.asked = 0
    for _ in range(STACKS_S + 1):
        logging.getLogger("runtime").removeHandler(tracker)
        log.failure(one, error, outcome)
        for formatter in (logging.Formatter(), logs.Plain(), logs.Json()):
            formatter.format(told.records[-1])
    assert Hostile.asked == 0
    told.records.clear()
    logging.getLogger("runtime").removeHandler(told)
    for handler in (tracker, told):  # who reads it comes first, and raises
        logging.getLogger("runtime").addHandler(handler)
    log.failure(one, error, outcome)
    assert Hostile.asked == 1
    assert [(record.levelname, record.exc_info) for record in told.records] == [("ERROR", None)]


def test_what_people_have_cancelled_is_no_error(tracker: Tracker, told: Heard) -> None:
    log, one, error = ThrottledLog(), job(), Cancelled("cancelled by ada")
    log.failure(one, error, decide(writes, one, error, lambda: 1.0))
    assert [record.levelname for record in told.records] == ["WARNING"]
    assert tracker.events == []


def test_a_death_without_a_run_is_an_error_with_its_reason(told: Heard) -> None:
    ThrottledLog().death("job %s is dead", "order-5", about=job("mail", id="order-5", failed=1), reason="expired")
    assert [record.levelname for record in told.records] == ["ERROR"]
    assert json.loads(logs.Json().format(told.records[0]))["reason"] == "expired"


# --- what users give a line ----------------------------------------------------------------------------------------------------


def shown(extra: dict[str, Any]) -> dict[str, Any]:
    """Return the line of JSON of a record with these fields."""
    record = logging.makeLogRecord({"name": "shop", "msg": "receipt", "levelname": "INFO", **extra})
    plain = logs.Plain().format(record)
    assert plain.count("\n") == 0
    assert len(plain) < 2 * logs.MAX_PLAIN_CHARS + 100
    line = logs.Json().format(record)
    assert len(line) < 3 * logs.MAX_EXTRA_CHARS
    return json.loads(line)


def test_what_users_give_a_line_is_in_both_formats() -> None:
    told = shown({"order": 7, "paid": True, "who": "Zoë", "parts": [1, {"a": None}], "_mine": object()})
    assert (told["order"], told["paid"], told["who"], told["parts"]) == (7, True, "Zoë", [1, {"a": None}])
    assert "_mine" not in told
    record = logging.makeLogRecord({"msg": "receipt", "order": 7, "who": "Zoë\x1b"})
    assert logs.Plain().format(record).endswith('receipt  [order=7 who="Zoë\\u001b"]')


def test_our_own_names_win() -> None:
    told = shown({"level": 7, "logger": "mine", "time": 0, "message": "mine"})
    assert (told["level"], told["logger"], told["message"]) == ("info", "shop", "receipt")


class Untold:
    """Cannot be told."""

    def __str__(self) -> str:
        raise ValueError("no")


class Counted:
    """Counts how often it is told."""

    told = 0

    def __str__(self) -> str:
        Counted.told += 1
        return "x" * 100


def test_of_a_large_value_no_more_is_written_than_is_shown() -> None:
    """Else a line would hold the loop for as long as all of it takes."""
    assert len(shown({"rows": [Counted() for _ in range(10_000)]})["rows"]) <= logs.MAX_EXTRA_CHARS
    assert Counted.told < 2 * logs.MAX_EXTRA_CHARS / 100


def test_no_value_of_users_costs_the_line() -> None:
    ring: list[Any] = []
    ring.append(ring)
    told = shown({"a": Untold(), "b": ring, "c": {(1, 2): 3}, "d": float("nan"), "e": 10**5000, "f": b"x", "g": {1}})
    assert told["a"] == "(cannot be shown: ValueError)"
    assert told["b"] == "[[...]]"
    assert told["c"] == "{(1, 2): 3}"
    assert told["d"] == "nan"
    assert told["e"] == "(cannot be shown: ValueError)"
    assert (told["f"], told["g"]) == ("b'x'", "{1}")


def test_what_users_give_a_line_is_bounded() -> None:
    assert shown({"a": "x" * 10_000_000, "b": 1})["a"].startswith('"xxx')
    assert len(shown({f"n{i}": "x" * 1000 for i in range(10_000)})) < 30
    assert len(shown({"a": '\\"' * 1_000_000, "b": "é" * 1_000_000})) > 4


def test_few_deaths_of_a_second_have_their_stack_with_them(told: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    log, now_s = ThrottledLog(), [1000.0]
    monkeypatch.setattr("runtime.worker.log.time.monotonic", lambda: now_s[0])
    for _ in range(2):
        told.records.clear()
        for _ in range(LINES_S + 5):
            log.failure(job(), ValueError("no"), dead("here"))
        deaths = [record for record in told.records if "is dead" in record.getMessage()]
        assert (len(deaths), len([record for record in deaths if record.exc_text == "here"])) == (LINES_S, STACKS_S)
        assert not any("stack" in json.loads(logs.Json().format(record)) for record in deaths[STACKS_S:])
        now_s[0] += 1


def test_lines_about_a_job_that_another_part_writes_have_its_fields(told: Heard) -> None:
    log = ThrottledLog()
    log.warn("lost the lease of job %s", "order-5", about=job("mail", id="order-5", failed=1))
    log.warn("a line")
    assert [fields_of(record) for record in told.records] == [OF_THE_LANE, {}]
