"""What a process opens before its first job and closes after its last, whatever the user's code does there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from runtime import ConfigError, Job, Lifespan, LifespanFailed, contract, handler, lifespan, lifespans
from runtime.children import end_idle_children
from runtime.errors import ChildFailed
from runtime.lifespans import LIFESPANS, Lifespans, opened
from runtime.registry import find
from runtime.testing import Done, Retry, run
from tests.builders import job_of
from tests.unit.shared_in_child import Share, SharePlainly, large, shared, uses, uses_none
from tests.workers import until

SEEN: ContextVar[str] = ContextVar("seen", default="")


class Panic(BaseException):
    """No Exception."""


class Mute(Exception):
    """Raises when it is asked for anything."""

    def __str__(self) -> str:
        raise Panic("no")


def making(events: list[str], name: str) -> Lifespan[str]:
    """Return a lifespan that tells when it begins and ends."""

    @lifespan
    async def made() -> AsyncGenerator[str]:
        events.append(f"{name} begins")
        SEEN.set(name)
        try:
            yield name
        finally:
            events.append(f"{name} ends")

    return made


def raising(error: BaseException) -> Lifespan[None]:
    """Return a lifespan that raises at its begin."""

    @lifespan
    async def raises() -> AsyncGenerator[None]:
        if error:
            raise error
        yield

    return raises


async def test_they_begin_in_order_and_end_in_reverse_and_have_a_value_in_between() -> None:
    events: list[str] = []
    first, second = making(events, "first"), making(events, "second")
    async with opened([first, second]):
        assert (first.value, second.value) == ("first", "second")
        assert SEEN.get() == "", "what it sets stays its own"
        events.append("job")
    assert events == ["first begins", "second begins", "job", "second ends", "first ends"]
    for one in (first, second):
        with pytest.raises(ConfigError, match="is not open here, and has no value; hint: "):
            _ = one.value


async def test_a_later_one_may_use_an_earlier_one() -> None:
    first = making([], "first")

    @lifespan
    async def second() -> AsyncGenerator[str]:
        yield f"{first.value} and second"

    async with opened([first, second]):
        assert second.value == "first and second"


async def test_what_is_left_open_is_closed_in_the_task_that_opened_it() -> None:
    tasks: list[object] = []

    @lifespan
    async def scoped() -> AsyncGenerator[None]:
        with anyio.CancelScope():
            async with asyncio.TaskGroup() as group, anyio.create_task_group() as other:
                group.create_task(asyncio.sleep(0))
                tasks.append(asyncio.current_task())
                yield
                tasks.append(asyncio.current_task())
                other.cancel_scope.cancel()

    async with opened([scoped, scoped]):
        await asyncio.sleep(0)
    assert tasks[0] is tasks[3] and tasks[1] is tasks[2]
    assert asyncio.current_task() not in tasks
    assert (asyncio.current_task() or pytest.fail("no task")).cancelling() == 0


HARD = [
    ValueError("no host"),
    Mute(),
    Panic("out"),
    KeyboardInterrupt(),
    SystemExit(3),
    asyncio.CancelledError(),
    GeneratorExit(),
]


@pytest.mark.parametrize("error", HARD, ids=lambda error: type(error).__name__)
async def test_one_that_raises_at_its_begin_is_named_and_those_before_it_end(error: BaseException) -> None:
    events: list[str] = []
    with pytest.raises(LifespanFailed, match=f"raising.<locals>.raises.*{type(error).__name__}"):
        async with opened([making(events, "first"), raising(error), making(events, "third")]):
            events.append("job")
    assert events == ["first begins", "first ends"]


async def test_the_traceback_of_one_that_raises_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(LifespanFailed):
        async with opened([raising(ValueError("no host"))]):
            pass
    (record,) = caplog.records
    assert (record.levelname, record.exc_info and record.exc_info[0]) == ("ERROR", ValueError)
    assert record.getMessage().endswith("raises could not begin: ValueError: no host")


async def test_one_that_never_yields_is_refused() -> None:
    @lifespan
    async def never() -> AsyncGenerator[None]:
        if not SEEN:
            yield

    with pytest.raises(LifespanFailed, match="it must yield once, and has not"):
        async with opened([never]):
            pass


async def test_one_that_hangs_at_its_begin_is_told_again_and_again_and_a_stop_ends_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifespans, "TOLD_S", 0.01)
    events: list[str] = []

    @lifespan
    async def hangs() -> AsyncGenerator[None]:
        try:
            await asyncio.Event().wait()
            yield
        finally:
            events.append("cut")

    stop = asyncio.Event()
    here = Lifespans([making(events, "first"), hangs])
    began = asyncio.create_task(here.begin(stop))
    await until(lambda: len([text for text in caplog.messages if "hangs has not begun after" in text]) > 2, "it is told")
    stop.set()
    assert not await began
    await here.end()
    assert events == ["first begins", "cut", "first ends"]
    assert all(record.levelname == "WARNING" for record in caplog.records), "a cut of ours is no failure"


async def test_one_that_holds_the_loop_at_its_begin_is_told_too(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifespans, "TOLD_S", 0.01)

    @lifespan
    async def holds() -> AsyncGenerator[None]:
        end_s = time.monotonic() + 15
        while not caplog.messages and time.monotonic() < end_s:
            time.sleep(0.01)
        yield

    async with opened([holds]):
        assert "has not begun after" in caplog.text


# --- how they end ----------------------------------------------------------------------------------------------------------


def ending(end: Callable[[], Any]) -> Lifespan[None]:
    """Return a lifespan that ends so."""

    @lifespan
    async def ends() -> AsyncGenerator[None]:
        yield
        await end()

    return ends


@pytest.mark.parametrize("error", HARD, ids=lambda error: type(error).__name__)
async def test_one_that_raises_at_its_end_is_logged_and_the_others_end(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def end() -> None:
        raise error

    events: list[str] = []
    async with opened([making(events, "first"), ending(end), making(events, "third")]):
        pass
    assert events == ["first begins", "third begins", "third ends", "first ends"]
    if type(error) is not asyncio.CancelledError and type(error) is not GeneratorExit:
        assert "ends could not end: " in caplog.text


async def test_one_that_yields_twice_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    @lifespan
    async def twice() -> AsyncGenerator[int]:
        yield 1
        yield 2

    async with opened([twice]):
        assert twice.value == 1
    assert "twice could not end: RuntimeError: it yields more than once" in caplog.text


@pytest.mark.parametrize("swallows", [False, True])
async def test_one_that_does_not_end_is_cut_at_its_part_of_the_time_and_the_others_end(
    swallows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    free, cuts = asyncio.Event(), [0]

    async def end() -> None:
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                cuts[0] += 1
                if not swallows:
                    raise

    events: list[str] = []
    here = Lifespans([making(events, "first"), ending(end)])
    assert await here.begin()
    await here.end(0.1)
    assert events == ["first begins", "first ends"]
    assert (cuts[0], "ends does not end: it is cut" in caplog.text) == (1, True)
    free.set()


async def test_one_whose_task_group_fails_while_it_is_open_ends_and_is_told() -> None:
    broken: list[LifespanFailed] = []
    events, go = list[str](), asyncio.Event()

    async def fails() -> None:
        await go.wait()
        raise ValueError("the connection is gone")

    @lifespan
    async def grouped() -> AsyncGenerator[str]:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            yield "open"

    here = Lifespans([making(events, "first"), grouped], broken.append)
    assert await here.begin()
    go.set()
    await until(lambda: len(broken) == 2, "it is told")
    assert "grouped ends while the worker runs" in str(broken[0])
    assert "grouped has ended while the worker runs: ExceptionGroup" in str(broken[1])
    assert "the connection is gone" in str(broken[1])
    with pytest.raises(ConfigError):
        _ = grouped.value
    await here.end()
    assert events == ["first begins", "first ends"]


# --- in tests ----------------------------------------------------------------------------------------------------------------


@contract("greet")
class Greet(msgspec.Struct):
    name: str = ""


def using(one: Lifespan[str]) -> Any:
    @handler(Greet)
    async def greet(message: Greet, job: Job) -> None:
        if one.value != message.name:
            raise ValueError(one.value)

    return greet


async def test_a_run_has_them_open() -> None:
    events: list[str] = []
    one = making(events, "pool")
    assert await run(using(one), Greet("pool"), lifespans=[one]) == Done()
    assert events == ["pool begins", "pool ends"]
    assert isinstance(await run(using(one), Greet("pool")), Retry)


async def test_one_that_is_replaced_has_another_value_and_does_not_run() -> None:
    events: list[str] = []
    one = making(events, "pool")
    with one.replaced("fake"):
        assert await run(using(one), Greet("fake"), lifespans=[one]) == Done()
        with one.replaced("another"):
            assert one.value == "another"
        assert one.value == "fake"
    assert events == []
    with pytest.raises(ConfigError):
        _ = one.value


# --- declared and found ------------------------------------------------------------------------------------------------------


async def plain() -> None:
    """Yields nothing."""


def generator() -> Iterator[int]:
    yield 1


async def needs(dsn: str) -> AsyncIterator[str]:
    yield dsn


async def may_have(dsn: str = "", *rest: str, **more: str) -> AsyncIterator[str]:
    yield dsn


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (plain, "test_lifespans:plain: must be an `async def` with one `yield`"),
        (generator, "test_lifespans:generator: must be an `async def` with one `yield`"),
        (needs, r"test_lifespans:needs: must take no arguments, got \(dsn: 'str'\)"),
        (7, "must be an `async def` with one `yield`"),
        (making([], "pool"), "must be declared once"),
    ],
)
def test_what_is_no_lifespan_is_refused(function: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        lifespan(function)


def test_arguments_with_defaults_are_none_of_ours() -> None:
    assert lifespan(may_have).location.endswith("test_lifespans:may_have")


def test_they_are_found_as_handlers_are_once_and_not_run() -> None:
    assert find(["tests.unit.shared_in_child", "tests.unit.shared_in_child"]).lifespans == [shared, large]


# --- in child processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have a worker's lifespans, and a folder in which the child's notes are."""
    monkeypatch.setenv("SHARED_FOLDER", str(tmp_path))
    monkeypatch.setenv("RUNTIME_CHILD_ENV", "SHARED_*")
    token = LIFESPANS.set([making([], "unknown to children"), shared])
    yield tmp_path
    LIFESPANS.reset(token)


def notes(folder: Path) -> list[list[str]]:
    return [line.split(" ") for line in (folder / "notes").read_text().splitlines()]


async def test_a_child_opens_them_once_runs_its_jobs_in_their_loop_and_closes_them_at_its_end(folder: Path) -> None:
    one = job_of(Share(str(folder)))
    for _ in range(3):
        await uses.run(None, one)
    await uses_none.run(None, job_of(SharePlainly(str(folder))))
    await end_idle_children(15)
    told = notes(folder)
    assert [line[0] for line in told] == ["begin", "uses", "uses", "uses", "plain", "end"]
    assert len({line[1] for line in told}) == 1, "one child"
    assert {line[2] for line in told[1:4]} == {"True"}


async def test_a_job_fails_where_its_child_cannot_open_them_and_the_next_one_tries_again(folder: Path) -> None:
    (folder / "broken").touch()
    one = job_of(Share(str(folder)))
    with pytest.raises(ChildFailed, match="shared_in_child:shared could not begin: OSError: it is broken"):
        await uses.run(None, one)
    (folder / "broken").unlink()
    await uses.run(None, one)
    assert [line[0] for line in notes(folder)] == ["begin", "uses"]


async def test_a_child_opens_none_that_is_replaced_in_its_worker(folder: Path) -> None:
    with shared.replaced(asyncio.get_running_loop()):
        await uses_none.run(None, job_of(SharePlainly(str(folder))))
    assert [line[0] for line in notes(folder)] == ["plain"]
