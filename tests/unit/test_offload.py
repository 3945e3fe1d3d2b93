"""Offload: plain functions in threads that keep their slot, handlers in child processes that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import os
import signal
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop
from msgspec import structs

from runtime.children import environment_of_children
from runtime.errors import ChildFailed, ChildKilled, Dead, NoPlace, NotStarted, Retry, Snooze, UnfitPayload
from runtime.frames import answer_in
from runtime.jobs import LANE, Job
from runtime.offload import in_thread
from runtime.places import PLACES, PROCESS, SECOND_TICKS, SOON_TICKS, THREAD, WAIT_S, Places, make_places
from runtime.settle import decide
from tests import builders
from tests.unit.in_child import Work, fail, forks_async, leaves, unfit, work, work_async


def job(do: str = "", note: Path | str = "", **fields: Any) -> Job:
    data = msgspec.json.encode(Work(do, str(note)))
    return builders.job("work", data=data, **fields)


async def until(is_true: Callable[[], bool]) -> None:
    """Let the loop turn until a condition holds; threads and processes take their time."""
    async with asyncio.timeout(60):
        while not is_true():
            await asyncio.sleep(0)


# --- threads -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def places() -> Iterator[dict[str, Places]]:
    """Provide places for this test alone, which are free again at its end."""
    own = make_places(threads=40)
    token = PLACES.set(own)
    yield own
    PLACES.reset(token)
    assert [kind.taken for kind in own.values()] == [0, 0]


class Noting:
    """A lane that does no more than to note that its job begins."""

    job: Job | None = None

    def __init__(self, note: Callable[[], None]) -> None:
        self.begin = note


class Hanging:
    """A function that hangs in its thread until it is let go, and counts how often and how many at once it ran."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.lock = threading.Lock()
        self.begun = self.ended = self.most = 0

    def __call__(self, payload: Any, job: Job) -> str:
        with self.lock:
            self.begun += 1
            self.most = max(self.most, self.begun - self.ended)
        self.let_go.wait(20)
        with self.lock:
            self.ended += 1
        return "let go"


async def test_a_plain_function_runs_in_a_thread_and_gives_its_answer() -> None:
    def function(payload: Any, job: Job) -> object:
        return threading.get_ident(), payload, job

    one = job()
    ident, payload, got = await in_thread(function)("payload", one)
    assert ident != threading.get_ident()
    assert (payload, got) == ("payload", one)


@pytest.mark.parametrize("error", [ValueError("no"), Retry(5), SystemExit(3), StopIteration()], ids=repr)
async def test_what_a_function_raises_in_its_thread_comes_back(error: BaseException, places: dict[str, Places]) -> None:
    def function(payload: Any, job: Job) -> None:
        raise error

    with pytest.raises(RuntimeError if isinstance(error, StopIteration) else type(error)):
        await in_thread(function)(None, job())
    await until(lambda: places[THREAD].taken == 0)


class Faceless(Exception):
    """An error that cannot be asked what it is."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("nobody knows")

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        """Leave it."""


@pytest.mark.parametrize(
    ("error", "told"), [(Faceless("mine"), "Faceless"), (StopIteration("mine"), "StopIteration: mine")], ids=["faceless", "stop"]
)
async def test_an_error_that_cannot_be_carried_to_the_loop_is_an_error_of_the_job(error: BaseException, told: str) -> None:
    def function(payload: Any, job: Job) -> None:
        raise error

    async with asyncio.timeout(20):
        try:
            await in_thread(function)(None, job())
        except BaseException as raised:
            decided = decide(work, job(attempts=1), raised, lambda: 0.5)
    assert isinstance(decided, Dead)
    assert told in str(decided)
    assert "in function" in decided.stack or type(error) is Faceless


async def test_what_a_function_raised_in_its_thread_is_let_go_with_all_that_its_frames_hold() -> None:
    seen: list[weakref.ref[Hanging]] = []

    def function(payload: Any, job: Job) -> None:
        held = Hanging()
        seen.append(weakref.ref(held))
        raise ValueError("no")

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(ValueError):
            await in_thread(function)(None, job())
        await until(lambda: seen[0]() is None)
    finally:
        gc.enable()


@pytest.mark.parametrize("error", [None, SystemExit(0), ValueError("in the fork")], ids=repr)
async def test_a_process_that_a_function_forks_in_its_thread_ends_with_the_function(error: BaseException | None) -> None:
    forked: list[int] = []

    def function(payload: Any, job: Job) -> None:
        forked.append(os.fork())
        if forked[0] == 0 and error is not None:
            raise error

    await in_thread(function)(None, job())
    _, status = await asyncio.to_thread(os.waitpid, forked[0], 0)
    assert os.waitstatus_to_exitcode(status) == (type(error) is ValueError)


async def test_a_function_in_a_thread_sees_the_context_of_its_lane() -> None:
    current = contextvars.ContextVar("current", default="nobody's")
    current.set("mine")
    assert await in_thread(lambda payload, job: current.get())(None, job()) == "mine"


async def test_no_more_functions_run_at_once_than_there_are_slots(places: dict[str, Places]) -> None:
    places[THREAD].total = 2
    hanging = Hanging()
    tasks = [asyncio.ensure_future(in_thread(hanging)(None, job())) for _ in range(5)]
    await until(lambda: hanging.begun == 2)
    for _ in range(50):
        await asyncio.sleep(0)
    assert hanging.begun == places[THREAD].taken == 2
    hanging.let_go.set()
    assert await asyncio.gather(*tasks) == ["let go"] * 5
    assert hanging.most == 2
    await until(lambda: places[THREAD].taken == 0)


async def test_a_thread_past_its_deadline_keeps_its_slot_until_it_ends(places: dict[str, Places]) -> None:
    places[THREAD].total = 1
    hanging, next_one = Hanging(), Hanging()
    next_one.let_go.set()
    task = asyncio.ensure_future(in_thread(hanging)(None, job()))
    await until(lambda: hanging.begun == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert places[THREAD].taken == 1
    second = asyncio.ensure_future(in_thread(next_one)(None, job()))
    for _ in range(50):
        await asyncio.sleep(0)
    assert next_one.begun == 0
    hanging.let_go.set()
    assert await second == "let go"
    assert hanging.ended == 1
    await until(lambda: places[THREAD].taken == 0)


async def test_a_function_that_was_cut_while_it_waited_for_a_slot_never_runs_and_takes_none(places: dict[str, Places]) -> None:
    places[THREAD].total = 1
    hanging, second = Hanging(), Hanging()
    first = asyncio.ensure_future(in_thread(hanging)(None, job()))
    await until(lambda: hanging.begun == 1)
    task = asyncio.ensure_future(in_thread(second)(None, job()))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(NotStarted):
        await task
    assert places[THREAD].taken == 1
    hanging.let_go.set()
    await first
    await until(lambda: places[THREAD].taken == 0)
    assert second.begun == 0


async def test_a_function_says_that_it_begins_when_it_has_its_slot(places: dict[str, Places]) -> None:
    places[THREAD].total = 1
    begun: list[str] = []
    first, second = Hanging(), Hanging()

    async def as_lane(name: str, function: Hanging) -> None:
        LANE.set(Noting(lambda: begun.append(name)))
        await in_thread(function)(None, job())

    tasks = [asyncio.ensure_future(as_lane("first", first)), asyncio.ensure_future(as_lane("second", second))]
    await until(lambda: first.begun == 1)
    assert begun == ["first"]
    first.let_go.set()
    second.let_go.set()
    await asyncio.gather(*tasks)
    assert begun == ["first", "second"]
    await until(lambda: places[THREAD].taken == 0)


async def test_whenever_a_cut_comes_the_slot_is_free_in_the_end(places: dict[str, Places]) -> None:
    places[THREAD].total = 1
    never_ran = 0
    for turns in range(8):
        function = Hanging()
        function.let_go.set()
        task = asyncio.ensure_future(in_thread(function)(None, job()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: places[THREAD].taken == 0)
        never_ran += function.begun == 0
    assert never_ran >= 3  # not begun, waiting for the slot, and with the slot but not yet in the thread


# --- processes ---------------------------------------------------------------------------------------------------------------

Run = Callable[[Any, Job], Awaitable[object]]


@pytest.fixture(autouse=True)
def quick_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep children from loading the main module, which is pytest's."""
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)


async def outcome(do: str, run: Run = work.run) -> BaseException | None:
    """Return what came out of a run in the child."""
    try:
        await run(None, job(do))
    except BaseException as error:
        return error
    return None


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_does_the_work_of_plain_and_async_functions(tmp_path: Path) -> None:
    one = job("note", tmp_path / "note", id="order:17", failed=2, first_ms=1_600_000_000_000)
    await work.run(None, one)
    pid, *words = (tmp_path / "note").read_text("utf-8").split()
    assert int(pid) != os.getpid()
    assert words == ["order:17", "3", one.work, "1600000000.0"]
    await work_async.run(None, job("", tmp_path / "other"))
    assert (tmp_path / "other").read_text("utf-8") == pid  # the child is used again


async def test_what_a_handler_raises_in_its_child_comes_back() -> None:
    retry, snooze, dead, error = [await outcome(do) for do in ("retry", "snooze", "dead", "error")]
    assert isinstance(retry, Retry)
    assert (retry.delay_s, str(retry)) == (7.5, "rate limit")
    assert isinstance(snooze, Snooze)
    assert (snooze.delay_s, str(snooze)) == (3.5, "busy")
    assert isinstance(dead, Dead)
    assert (dead.code, str(dead)) == ("no-account", "no account")
    assert isinstance(error, ChildFailed)
    assert "ValueError: no such file" in str(error)
    assert "in work" in error.stack
    assert "in_child.py" in error.stack
    unsendable, exit_, mute = [await outcome(do) for do in ("unsendable", "exit", "mute")]
    assert isinstance(unsendable, ChildFailed)
    assert "Unsendable: held back" in str(unsendable)
    assert isinstance(exit_, ChildFailed)
    assert "SystemExit" in str(exit_)
    assert isinstance(mute, Exception)


@pytest.mark.parametrize("do", ["keyboard", "generator-exit", "base", "declined", "unwritable", "yields"])
async def test_whatever_a_handler_raises_in_its_child_is_an_error_of_the_job_and_the_child_lives(do: str) -> None:
    before = await child()
    error = await outcome(do, fail.run)
    assert isinstance(error, ChildFailed)
    told = {
        "keyboard": "KeyboardInterrupt",
        "generator-exit": "GeneratorExit",
        "base": "SystemExit: 3",
        "declined": "acc-1 (cannot be taken at its word: AttributeError",
        "unwritable": "Unwritable: (its message raised KeyboardInterrupt)",
        "yields": "generator",
    }
    assert told[do] in str(error)
    assert "in_child.py" in error.stack or do == "yields"
    assert await child() == before


async def test_words_in_a_group_and_payloads_that_do_not_fit_come_back_from_a_child() -> None:
    dead, bad = await outcome("group", fail.run), await outcome("unfit", unfit.run)
    assert isinstance(dead, Dead)
    assert (dead.code, str(dead)) == ("no-account", "no account")
    assert isinstance(bad, UnfitPayload)
    assert (bad.code, str(bad)) == ("bad-payload", "Picky refused it: OSError('no such folder')")


async def test_what_a_handler_could_not_send_comes_back_from_a_child_as_any_failure() -> None:
    bad = await outcome("bad", fail.run)
    assert isinstance(bad, ChildFailed)
    assert (bad.name, str(bad)) == ("runtime.errors.BadPayload", "BadPayload: no such field")


@pytest.mark.parametrize("do", ["coroutine", "never-awaits"])
async def test_a_child_awaits_what_a_handler_returns(do: str, tmp_path: Path) -> None:
    await fail.run(None, job(do, tmp_path / "note"))
    assert (tmp_path / "note").exists()


async def test_the_letter_of_a_job_that_failed_in_its_child_has_the_stack_from_there() -> None:
    for do in ("error", "dead"):
        error = await outcome(do)
        decided = decide(work, job(attempts=1), error, lambda: 0.5)
        assert isinstance(decided, Dead)
        assert "in work" in decided.stack
        assert "in_child.py" in decided.stack


async def child() -> str:
    """Return the process id of the child that runs the next job."""
    with tempfile.TemporaryDirectory() as folder:
        await work_async.run(None, job("", Path(folder) / "note"))
        return (Path(folder) / "note").read_text("utf-8")


async def test_a_child_that_crashes_is_told_and_replaced(tmp_path: Path) -> None:
    ends = await asyncio.gather(*[outcome(do) for do in ("abort", "leave", "kill")])
    assert [type(end) for end in ends] == [ChildKilled] * 3
    await work.run(None, job("note", tmp_path / "note"))
    assert (tmp_path / "note").exists()


async def test_a_cut_kills_the_child(tmp_path: Path, places: dict[str, Places]) -> None:
    note = tmp_path / "note"
    task = asyncio.ensure_future(work.run(None, job("hang", note)))
    await until(lambda: note.exists() and note.read_text("utf-8") != "")
    pid = int(note.read_text("utf-8"))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert places[PROCESS].taken == 0
    await until(lambda: not is_alive(pid))


async def test_a_job_that_was_cut_while_it_waited_for_a_child_never_began(tmp_path: Path, places: dict[str, Places]) -> None:
    begun: list[str] = []
    for _ in range(places[PROCESS].total):
        await places[PROCESS].take()
    LANE.set(Noting(lambda: begun.append("begun")))
    try:
        task = asyncio.ensure_future(work.run(None, job("note", tmp_path / "note")))
        for _ in range(10):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(NotStarted):
            await task
    finally:
        for _ in range(places[PROCESS].total):
            places[PROCESS].give_back()
    assert begun == []
    assert not (tmp_path / "note").exists()
    assert places[PROCESS].taken == 0


def environment_of(pid: str) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


SECRETS = (
    *("REDIS_URL", "REDIS_URL_FILE", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"),
    *("RUNTIME_BOARD_TOKEN_FILE", "RUNTIME_X_PASSWORD", "RUNTIME_SECRET"),
)


async def test_a_child_has_of_the_environment_what_is_listed_and_what_the_setting_names(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SECRETS, "SHOP_TOKEN", "SHOP_URL", "AWS_SECRET_ACCESS_KEY", "LC_NUMERIC", "RUNTIME_HANDLERS__SMTP__PASSWORD"):
        monkeypatch.setenv(name, "hunter2")
    monkeypatch.setenv("RUNTIME_CHILD_ENV", "SHOP_U*, NOBODY")
    found = environment_of(await child())
    assert {name for name, value in found.items() if value == "hunter2"} == {
        *("LC_NUMERIC", "RUNTIME_HANDLERS__SMTP__PASSWORD", "SHOP_URL")
    }
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("more", ["*", ",".join(SECRETS)])
def test_no_setting_gives_children_the_worker_s_own_credentials(more: str) -> None:
    given = environment_of_children(dict.fromkeys((*SECRETS, "SHOP_TOKEN"), "hunter2"), more)
    assert set(given) == {"RUNTIME_IN_CHILD", *(["SHOP_TOKEN"] if more == "*" else [])}


async def test_what_a_child_writes_to_its_standard_output_does_no_harm() -> None:
    assert [await outcome(do) for do in ("print", "write", "command")] == [None] * 3


async def test_what_a_thread_of_an_earlier_job_runs_writes_nothing_to_the_worker(tmp_path: Path) -> None:
    before = await child()
    await leaves.run(None, job("command", tmp_path / "note"))
    await until((tmp_path / "note").exists)
    assert await child() == before


async def test_an_interrupt_at_the_keyboard_that_reaches_a_child_does_not_end_the_worker() -> None:
    assert not isinstance(await outcome("interrupt"), KeyboardInterrupt)


@pytest.mark.parametrize("do", ["fork-exits", "fork-returns", "fork-raises", "fork-thread", "fork-process"])
async def test_what_a_handler_forks_in_its_child_answers_nothing(do: str, tmp_path: Path) -> None:
    await leaves.run(None, job(do, tmp_path / "note"))
    for _ in range(3):
        assert isinstance(await outcome("error"), ChildFailed), "who fails has failed"
        assert await outcome("note", leaves.run) is None
    assert (tmp_path / "note").read_text("utf-8") == await child(), "and the child lives"


@pytest.mark.parametrize("do", ["exits", "returns"])
async def test_what_a_coroutine_function_forks_in_its_child_answers_nothing(do: str) -> None:
    await forks_async.run(None, job(do))
    for _ in range(3):
        assert isinstance(await outcome("error"), ChildFailed)
        assert await outcome("", leaves.run) is None


async def test_an_answer_that_nobody_has_asked_for_is_never_believed() -> None:
    await leaves.run(None, job("signal"))
    pid = int(await child())
    for _ in range(2):
        os.kill(pid, signal.SIGUSR1)  # it raises, and what was raised is answered, though no job runs
        await asyncio.sleep(0)
    ends: list[BaseException | None] = []
    while not ends or ends[-1] is None or not str(ends[-1]).startswith("ValueError"):
        ends.append(await outcome("error"))
        assert ends[-1] is not None, "who fails is never done"
    assert await child() != str(pid), "nobody knows what that child says next"
    assert not is_alive(pid)


async def test_a_shifted_answer_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    pid = await child()

    def shift(head: Any) -> Any:
        return structs.replace(answer_in(head), number=answer_in(head).number - 1)

    monkeypatch.setattr("runtime.offload.answer_in", shift)
    shifted = await outcome("note")
    assert isinstance(shifted, ChildFailed)
    assert "another job" in str(shifted)
    await until(lambda: not is_alive(int(pid)))


async def test_what_a_job_sets_in_its_child_is_not_seen_by_the_next(tmp_path: Path) -> None:
    await leaves.run(None, job("sees", tmp_path / "before"))
    for do in ("variable", "alarm"):
        await leaves.run(None, job(do))
    await leaves.run(None, job("sees", tmp_path / "after"))
    assert (tmp_path / "after").read_text("utf-8") == (tmp_path / "before").read_text("utf-8")


# --- who waits for a place ---------------------------------------------------------------------------------------------------


async def waiting(kind: Places, n: int) -> list[asyncio.Future[None]]:
    """Let so many wait for a place."""
    tasks = [asyncio.ensure_future(kind.take()) for _ in range(n)]
    await until(lambda: kind.waiting == n)
    return tasks


async def test_who_waits_for_too_long_is_turned_away_and_who_came_later_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("runtime.places.time.monotonic", lambda: now_s)
    kind = Places(THREAD, 1)
    await kind.take()
    (first,) = await waiting(kind, 1)
    now_s += WAIT_S
    (later,) = await waiting(kind, 1)
    kind.tick(now_s + 0.1)
    with pytest.raises(NoPlace):
        await first
    kind.give_back()
    await later
    assert (kind.taken, kind.waiting) == (1, 0)


async def test_at_a_stop_nobody_waits_and_nobody_comes() -> None:
    kind = Places(THREAD, 1)
    await kind.take()
    tasks = await waiting(kind, 3)
    kind.close()
    kind.give_back()
    for task in [*tasks, asyncio.ensure_future(kind.take())]:
        with pytest.raises(NotStarted) as turned_away:
            await task
        assert turned_away.type is NotStarted
    assert (kind.taken, kind.waiting) == (0, 0)


@pytest.mark.parametrize("turns", range(3))
async def test_who_is_cut_when_he_just_has_his_place_gives_it_on(turns: int) -> None:
    kind = Places(THREAD, 1)
    await kind.take()
    first, second = await waiting(kind, 2)
    kind.give_back()
    for _ in range(turns):
        await asyncio.sleep(0)
    if first.cancel():
        with pytest.raises(NoPlace):
            await first
    else:
        kind.give_back()
    await second
    assert (kind.taken, kind.waiting) == (1, 0)


async def test_no_more_may_wait_than_end_in_a_second_and_fewer_beside_a_lot() -> None:
    kind = Places(THREAD, 4)
    assert (kind.capacity_within_a_second(0), kind.capacity_soon(0), kind.capacity_soon(3)) == (4, 4, 1)
    for _ in range(4):
        await kind.take()
    assert (kind.capacity_within_a_second(0), kind.capacity_soon(0)) == (0, 0), "nothing is known of how long they run"
    for _ in range(6):  # they end, and as many begin
        kind.give_back()
        await kind.take()
    assert (kind.capacity_within_a_second(2), kind.capacity_soon(2)) == (4, 4)
    for _ in range(SOON_TICKS):
        kind.tick(0.0)
    assert (kind.capacity_within_a_second(2), kind.capacity_soon(0)) == (4, 0), "these ended a while ago"
    for _ in range(SECOND_TICKS):
        kind.tick(0.0)
    assert kind.capacity_within_a_second(0) == 0


async def test_a_place_is_lost_from_the_cut_until_its_thread_ends() -> None:
    kind = Places(THREAD, 2)
    for n in range(2):
        await kind.take()
        kind.lose(n, job(id=f"job-{n}"))
    now_s = time.monotonic() + 10
    assert [hang.job_id for hang in kind.hanging(now_s)] == ["job-0", "job-1"]
    assert kind.hanging(now_s - 10) == []
    assert kind.all_lost_s(now_s) > 9
    kind.give_back(0)
    assert kind.all_lost_s(now_s) == 0.0
    kind.give_back(1)


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_children_end_with_their_loop_and_nothing_is_logged_of_them(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    logged: list[dict[str, Any]] = []

    async def two_jobs() -> list[str]:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: logged.append(context))
        PLACES.set(make_places(threads=1))
        return list(await asyncio.gather(child(), child()))

    with asyncio.Runner(loop_factory=factory) as runner:
        children = runner.run(two_jobs())
    assert logged == []
    assert [pid for pid in children if Path(f"/proc/{pid}").exists()] == []
