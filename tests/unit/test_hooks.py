"""Users' hooks hear of failed attempts and of dead letters, and nothing that they do changes an outcome or holds a worker."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from runtime import ConfigError, Dead, Death, Job, Priority, Retry, Snooze, contract, handler, on_dead, on_error
from runtime.errors import BadPayload, Cancelled, LeaseLost, UnfitPayload
from runtime.hooks import DeadHook, Hook
from runtime.jobs import running_job
from runtime.registry import find
from runtime.settle import decide
from runtime.worker import hooks as worker_hooks
from runtime.worker.admission import Admission
from runtime.worker.flusher import Flusher
from runtime.worker.hooks import Hooks
from runtime.worker.isolation import Isolation
from runtime.worker.log import ThrottledLog
from tests.builders import job
from tests.cruelty import Fault
from tests.unit.parts import HIGH, make, until

pytestmark = pytest.mark.usefixtures("_hurry")


@contract("mail")
class Mail(msgspec.Struct):
    pass


@handler(Mail)
async def mail(message: Mail, job: Job) -> None: ...


class Panic(BaseException):
    """No Exception."""


class Mute(Exception):
    """Raises when it is asked for anything."""

    def __str__(self) -> str:
        raise Panic("no")


HARD = [ValueError("no host"), Mute(), Panic("out"), KeyboardInterrupt(), SystemExit(3), StopIteration(), GeneratorExit()]


def name_of(error: BaseException) -> str:
    return type(error).__name__


def fail(hooks: Hooks, error: BaseException, about: Job | None = None) -> Any:
    """Have a run fail, as a lane does, and return what becomes of it."""
    one = job("mail", id="m", failed=1) if about is None else about
    outcome = decide(mail, one, error, lambda: 1.0)
    hooks.failed(one, error, outcome)
    return outcome


# --- on_error ----------------------------------------------------------------------------------------------------------------


def test_each_failed_attempt_is_told_at_once_with_its_error_and_what_becomes_of_the_job() -> None:
    told: list[tuple[str, str, Any]] = []

    @on_error
    def hear(job: Job, error: BaseException, outcome: Retry | Dead) -> None:
        told.append((job.id, str(error), outcome))

    hooks = Hooks([hear], ThrottledLog())
    for error in (ValueError("no"), Retry(7, "busy"), Dead("closed", "no-account")):
        fail(hooks, error)
    fail(hooks, ValueError("last"), job("mail", id="l", attempts=1))
    assert [(job_id, text, type(outcome), outcome.asked) for job_id, text, outcome in told] == [
        ("m", "no", Retry, False),
        ("m", "busy", Retry, True),
        ("m", "closed", Dead, True),
        ("l", "last", Dead, False),
    ]
    assert (told[1][2].delay_s, told[2][2].code, told[3][2].code) == (7.0, "no-account", "attempts")
    assert str(told[3][2]) == "ValueError: last"


@pytest.mark.parametrize(
    "error", [Snooze(7), LeaseLost("no"), Cancelled("by ada"), UnfitPayload("no"), BadPayload("no")], ids=name_of
)
def test_what_is_no_failed_attempt_is_not_told(error: BaseException) -> None:
    told: list[object] = []
    fail(Hooks([on_error(lambda job, error, outcome: told.append(outcome))], ThrottledLog()), error)
    assert [type(one) for one in told] == ([Retry] if type(error) is BadPayload else [])


def test_a_hook_runs_in_the_context_of_the_job_and_leaves_nothing_in_it() -> None:
    found: list[Job | None] = []

    def hear(job: Job, error: BaseException, outcome: object) -> None:
        found.append(running_job())

    one = job("mail", id="m")
    fail(Hooks([on_error(hear)], ThrottledLog()), ValueError("no"), one)
    assert found == [one]
    assert running_job() is None


@pytest.mark.parametrize("error", [*HARD, asyncio.CancelledError()], ids=name_of)
def test_whatever_a_hook_raises_the_others_hear_and_it_is_logged(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    told: list[object] = []

    def raises(job: Job, failed: BaseException, outcome: object) -> None:
        raise error

    hooks = Hooks([on_error(raises), on_error(lambda job, error, outcome: told.append(1))], ThrottledLog())
    for _ in range(3):
        assert isinstance(fail(hooks, ValueError("no")), Retry)
    assert told == [1, 1, 1]
    [*lines] = [text for text in caplog.messages if "raises has raised: " in text]
    assert len(lines) == 3 and name_of(error) in lines[0] and "test_hooks.py" in lines[0]
    assert error.__traceback__ is None, "one that is raised again and again keeps no frames"


def test_a_hook_that_raises_what_it_has_heard_leaves_it_its_traceback() -> None:
    def raises(job: Job, failed: BaseException, outcome: object) -> None:
        raise failed

    try:
        raise ValueError("no")
    except ValueError as error:
        fail(Hooks([on_error(raises)], ThrottledLog()), error)
        assert error.__traceback__ is not None


def test_a_hook_changes_no_outcome() -> None:
    def meddles(job: Job, error: BaseException, outcome: Any) -> object:
        outcome.delay_s, outcome.code, outcome.stack, outcome.asked = "x", 7, 8, 9
        return job

    for error in (ValueError("no"), Dead("closed", "no-account")):
        hooks = Hooks([on_error(meddles)], ThrottledLog())
        outcome = fail(hooks, error)
        assert outcome.asked != 9 and getattr(outcome, "stack", "") != 8
        assert outcome.delay_s > 0 if isinstance(outcome, Retry) else outcome.code == "no-account"


# --- on_dead -----------------------------------------------------------------------------------------------------------------


class Heard:
    """Hears of deaths."""

    def __init__(self, log: ThrottledLog | None = None) -> None:
        self.deaths: list[Death] = []
        self.hooks = Hooks([self.hook()], log or ThrottledLog())

    def hook(self) -> DeadHook:
        async def hear(death: Death) -> None:
            self.deaths.append(death)

        return on_dead(hear)

    async def all(self) -> list[tuple[str, str, str]]:
        """Return what was told: id, type and reason."""
        await self.hooks.end(15.0)
        return [(death.job_id, death.type, death.reason) for death in self.deaths]


def death(n: int = 0, error: str = "") -> Death:
    return Death(f"j{n}", "mail", Priority.HIGH, 1, "attempts", error, "")


def raising(error: BaseException) -> Any:
    async def raises(death: Death) -> None:
        raise error

    return raises


def raising_in_thread(error: BaseException) -> Any:
    def raises(death: Death) -> None:
        raise error

    return raises


@pytest.mark.parametrize("make_hook", [raising, raising_in_thread])
@pytest.mark.parametrize("error", HARD, ids=name_of)
async def test_whatever_an_on_dead_hook_raises_the_others_hear_and_it_is_logged(
    make_hook: Any, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    hooks = Hooks([on_dead(make_hook(error)), heard.hook()], ThrottledLog())
    hooks.died([death(1), death(2)])
    await hooks.end(15.0)
    assert [one.job_id for one in heard.deaths] == ["j1", "j2"]
    if make_hook is raising_in_thread or type(error) is not GeneratorExit:
        assert len([text for text in caplog.messages if "raises has raised: " in text]) == 2


async def test_plain_functions_run_in_threads_and_what_they_return_is_awaited() -> None:
    threads: list[int] = []

    async def later() -> None:
        threads.append(threading.get_ident())

    def hear(death: Death) -> object:
        threads.append(threading.get_ident())
        return later()

    hooks = Hooks([on_dead(hear)], ThrottledLog())
    hooks.died([death()])
    await hooks.end(15.0)
    assert threads[0] != threading.get_ident() == threads[1]


async def test_no_more_run_at_once_than_allowed_and_all_are_told_in_the_end() -> None:
    running, most, done = [0], [0], [0]

    @on_dead
    async def hear(death: Death) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0)
        running[0] -= 1
        done[0] += 1

    hooks = Hooks([hear], ThrottledLog())
    hooks.died([death(n) for n in range(100)])
    await hooks.end(15.0)
    assert (most[0], done[0]) == (worker_hooks.MAX_CALLS, 100)


async def test_what_does_not_fit_is_dropped_and_counted_by_its_bytes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_hooks, "MAX_WAITING_BYTES", 100_000)
    heard = Heard()
    heard.hooks.died([death(n, "x" * 20_000) for n in range(30)])
    assert len(await heard.all()) == 4
    assert any("does not hear of the death of job j4" in text for text in caplog.messages)
    heard.hooks.died([death(n) for n in range(100)])
    assert len(await heard.all()) == 104, "what has been told takes no room"


async def test_a_call_that_takes_too_long_is_cut_and_others_have_its_place(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_hooks, "CALL_S", 0.01)
    cut: list[str] = []

    @on_dead
    async def hangs(death: Death) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cut.append(death.job_id)

    hooks = Hooks([hangs], ThrottledLog())
    hooks.died([death(n) for n in range(worker_hooks.MAX_CALLS + 1)])
    await until(lambda: len(cut) == worker_hooks.MAX_CALLS + 1, "all are cut")
    assert any("takes longer than 0 s to hear of the death of job j0: it is cut" in text for text in caplog.messages)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_a_stop_gives_up_what_does_not_end_and_says_how_many(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    is_over, free = threading.Event(), asyncio.Event()

    async def swallows(death: Death) -> None:
        while not free.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await free.wait()

    def hangs(death: Death) -> None:
        is_over.wait(30)

    hooks = Hooks([on_dead(swallows if kind == "async" else hangs)], ThrottledLog())
    hooks.died([death(n) for n in range(worker_hooks.MAX_CALLS + 5)])
    await asyncio.sleep(0)
    await hooks.end(0.05)
    assert any("15 calls of on_dead hooks are given up at the stop: " in text for text in caplog.messages)
    is_over.set()
    free.set()


# --- of which deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "times"), [(None, 1), (Fault.REFUSED, 1), (Fault.ERROR, 1), (Fault.LOST, 0)])
async def test_a_death_is_told_once_when_its_letter_is_written(fault: Fault | None, times: int) -> None:
    """Of a letter that was written though no answer came, nobody can say by whom: it is told of not at all."""
    heard = Heard()
    parts = make(*([("settle", 1, fault)] if fault else []), hooks=heard.hooks)
    parts.add(id="j", type="part")
    [one] = await parts.hold()
    parts.ctx.ledger.add(one, decide(mail, one, Dead("closed", "no-account"), lambda: 1.0))
    flusher = Flusher(parts.ctx, lambda: None, lambda when_s: None, _nothing)
    for _ in range(3):
        try:
            await flusher.flush()
        except Exception:
            assert not heard.deaths
        flusher.retry_apart(float("inf"))
    assert await heard.all() == [("j", one.type.decode(), "no-account")] * times
    assert [letter["id"] for letter in parts.store.dead] == ["j"]
    if times:
        told = heard.deaths[0]
        assert (told.attempts, told.priority, told.error) == (1, Priority.HIGH, "closed")


async def _nothing() -> None:
    """Hear of permits."""


async def test_a_letter_that_waits_apart_is_told_when_it_is_written() -> None:
    heard = Heard()
    parts = make(hooks=heard.hooks)
    parts.add(id="j")
    [one] = await parts.hold()
    parts.ctx.ledger.add(one, decide(mail, one, Dead("closed"), lambda: 1.0))
    flusher = Flusher(parts.ctx, lambda: None, lambda when_s: None, _nothing)
    parts.store.errors[one.entry] = "WRONGTYPE"
    await flusher.flush()
    assert await heard.all() == []
    parts.store.errors.clear()
    flusher.retry_apart(float("inf"))
    await flusher.flush()
    assert len(await heard.all()) == 1


async def test_a_letter_that_another_worker_has_written_is_not_told() -> None:
    heard = Heard()
    parts = make(hooks=heard.hooks)
    for n in (1, 2):
        parts.add(id=f"j{n}")
    one, two = await parts.hold()
    for each in (one, two):
        parts.ctx.ledger.add(each, decide(mail, each, Dead("closed"), lambda: 1.0))
    parts.store.pending[HIGH].pop(one.entry)
    await Flusher(parts.ctx, lambda: None, lambda when_s: None, _nothing).flush()
    assert [job_id for job_id, _, _ in await heard.all()] == ["j2"]


async def test_what_killed_its_workers_is_told() -> None:
    heard = Heard()
    parts = make(hooks=heard.hooks)
    entry = parts.suspect(5, id="g")
    parts.store.strikes[f"high/{entry.decode()}"] = "a b c"
    parts.ctx.parked.has_suspects = True
    isolation = Isolation(parts.ctx, lambda: (float("inf"), True), Admission(parts.ctx))
    await isolation.is_resting()
    assert [(job_id, reason) for job_id, _, reason in await heard.all()] == [("g", "poison")]


# --- declared and found ------------------------------------------------------------------------------------------------------


async def coroutine(job: Job, error: BaseException, outcome: object) -> None: ...


def generator(death: Death) -> Iterator[int]:
    yield 1


def two(job: Job, error: BaseException) -> None: ...


def none() -> None: ...


@pytest.mark.parametrize(
    ("declare", "function", "words"),
    [
        (
            on_error,
            coroutine,
            "on_error .*test_hooks:coroutine: must be a plain function, which is called at once; hint: @on_dead",
        ),
        (on_error, two, r"on_error .*test_hooks:two: must take \(job, error, outcome\), got \(job"),
        (on_error, Heard, "must be a function, got a class"),
        (on_error, 7, "on_error: 7 is not a function with a name"),
        (on_error, functools.partial(two), "is not a function with a name; hint: wrap it in a def"),
        (on_error, on_dead(lambda death: None), "must be declared once; hint: declare two functions"),
        (on_dead, none, r"on_dead .*test_hooks:none: must take \(death\), got \(\)"),
        (on_dead, generator, "must not have a `yield`"),
    ],
)
def test_what_cannot_be_a_hook_is_refused(declare: Callable[[Any], Hook], function: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        declare(function)


def test_a_hook_is_found_as_handlers_are_and_can_be_called_as_before() -> None:
    found = find(["tests.unit.shared_in_child"])
    assert [hook.location for hook in found.hooks] == ["tests.unit.shared_in_child:hear", "tests.unit.shared_in_child:bury"]
    assert found.hooks[1](death(3)) == "j3"
