"""`in_child`: functions that coroutine handlers await, and that run in child processes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import ConfigError, Dead, Job, Retry, Snooze, handler, in_child
from runtime.errors import ChildFailed, ChildKilled
from runtime.places import PLACES, PROCESS, Places, make_places
from runtime.testing import Answered, Notes, Progress, run
from tests import builders
from tests.unit.asked_in_child import (
    Fit,
    Fitted,
    Train,
    fit,
    forget,
    kept,
    kept_may_go,
    leaves,
    leaves_hanging,
    train,
    trains_unsaid,
)
from tests.unit.test_offload import is_alive, until


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Places]]:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    own = make_places()
    token = PLACES.set(own)
    yield own
    PLACES.reset(token)
    assert own[PROCESS].taken == 0


def job() -> Job:
    return builders.job("train", data=b"{}")


async def test_a_handler_awaits_what_a_child_returns() -> None:
    outcome = await run(train, Train())
    assert isinstance(outcome, Answered)
    assert outcome.result == {"do": "", "note": "a model"}


async def test_called_by_hand_it_runs_in_a_child_too(tmp_path: Path) -> None:
    fitted = await fit(Fit(), job())
    assert fitted.pid != os.getpid()
    await forget(Fit(note=str(tmp_path / "note")), job())
    assert (tmp_path / "note").exists()


async def test_many_bytes_pass_both_ways() -> None:
    data = os.urandom(1 << 20) * 100
    fitted = await fit(Fit(data=memoryview(data)), job())
    assert fitted.model == data


async def test_what_it_raises_is_raised_where_it_is_awaited() -> None:
    with pytest.raises(Dead, match="no account") as dead:
        await fit(Fit(do="dead"), job())
    assert dead.value.code == "no-account"
    with pytest.raises(Retry, match="rate limit"):
        await fit(Fit(do="retry"), job())
    with pytest.raises(Snooze, match="busy"):
        await fit(Fit(do="snooze"), job())
    with pytest.raises(ChildFailed, match="ValueError: no such file") as failed:
        await fit(Fit(do="error"), job())
    assert "in fit" in failed.value.stack
    with pytest.raises(ChildKilled):
        await fit(Fit(do="kill"), job())


async def test_what_the_job_says_and_sends_comes_back_with_what_it_had_said_before() -> None:
    notes = Notes()
    await run(train, Train("speaks"), notes=notes)
    assert notes.progress == Progress(3, 7, "rows")
    assert notes.lines == ["before", "from the child"]
    assert len({one.id for one in notes.sent}) == 3


async def test_a_cut_kills_the_child(tmp_path: Path) -> None:
    note = tmp_path / "note"
    task = asyncio.ensure_future(fit(Fit(do="hang", note=str(note)), job()))
    await until(lambda: note.exists() and note.read_text() != "")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not is_alive(int(note.read_text())))


async def test_one_job_has_one_child_at_a_time() -> None:
    outcome = await run(train, Train("both"))
    assert isinstance(outcome, Answered)
    assert outcome.result["do"] == "one child"


async def test_an_answer_of_another_type_is_an_error() -> None:
    outcome = await run(train, Train("lies"))
    assert "lies: returned what is not of its type" in str(outcome)


async def test_a_handler_that_does_not_name_it_is_refused() -> None:
    outcome = await run(trains_unsaid, Train())
    assert "hint: @handler(…, child=fit)" in str(outcome)


async def test_a_task_that_outlives_its_job_starts_no_child() -> None:
    await run(leaves, Train())
    kept_may_go.set()
    with pytest.raises(ConfigError, match="this run is over"):
        await kept.pop()


async def test_a_child_that_a_job_has_left_behind_is_killed_at_its_end(tmp_path: Path) -> None:
    note = tmp_path / "note"
    await run(leaves_hanging, Train(note=str(note)))
    with pytest.raises(asyncio.CancelledError):
        await kept.pop()
    await until(lambda: not is_alive(int(note.read_text())))


def declared(function: Callable[..., Any], **options: Any) -> Any:
    return in_child(**options)(function)


def plain(request: Fit, job: Job) -> Fitted: ...


async def waits(request: Fit, job: Job) -> Fitted: ...


def no_job(request: Fit) -> Fitted: ...


def no_answer(request: Fit, job: Job): ...  # type: ignore[no-untyped-def]


def no_struct(request: dict[str, int], job: Job) -> Fitted: ...


def other_job(request: Fit, job: Fit) -> Fitted: ...


def unresolved(request: Missing, job: Job) -> Fitted: ...  # type: ignore[name-defined]  # noqa: F821


def yields(request: Fit, job: Job) -> Fitted:
    yield


@pytest.mark.parametrize(
    ("function", "options", "told"),
    [
        (waits, {}, "must be a plain function"),
        (no_job, {}, "must take"),
        (no_answer, {}, "must be annotated"),
        (no_struct, {}, "must be annotated"),
        (other_job, {}, "must be annotated"),
        (unresolved, {}, "cannot be resolved"),
        (yields, {}, "yield"),
        (lambda request, job: None, {}, "a function of a module"),
        (Fit, {}, "a function of a module"),
        (fit, {}, "a function of a module"),
        (plain, {"memory_bytes": 512}, "memory_bytes must be at least"),
    ],
)
def test_what_cannot_run_so_is_refused_where_it_is_declared(function: Any, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        declared(function, **options)


def test_a_handler_names_what_was_declared_and_runs_on_the_loop() -> None:
    async def coroutine(message: Train, job: Job) -> None: ...

    def blocks(message: Train, job: Job) -> None: ...

    async def many(messages: list[Train], jobs: list[Job]) -> None: ...

    with pytest.raises(ConfigError, match="declared with @in_child"):
        handler(Train, child=plain)(coroutine)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="coroutine functions on the loop"):
        handler(Train, child=fit)(blocks)
    with pytest.raises(ConfigError, match="coroutine functions on the loop"):
        handler(Train, max_size=3, child=fit)(many)  # type: ignore[call-overload]
    assert (train.runs, train.needs) == ("loop", "process")
