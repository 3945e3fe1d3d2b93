"""How to test handlers: one idea per test. Then: the fixtures cost nothing unused, and the page about testing is true."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import (
    Backoff,
    BadPayload,
    ConfigError,
    Dead,
    Job,
    Priority,
    Retry,
    Snooze,
    StoreUnavailable,
    contract,
    handler,
    testing,
)
from runtime.errors import SelfCancelled, TimedOut
from runtime.testing import Clock, Done, Jitter, Notes, Park, Progress, run, until, worker
from tests.unit.in_child import Question, Work, answer, work

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "testing.md").read_text("utf-8")
ONE_RUN = Backoff(base_s=1, cap_s=600, attempts=3)


@contract("greet", version=2, priority=Priority.LOW, upcast=lambda version, payload: {"name": payload["first_name"]})
class Greet(msgspec.Struct, frozen=True, kw_only=True):
    name: str


@contract("wave")
class Wave(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


ADA = Greet(name="Ada")


@handler(Greet, retry=ONE_RUN)
async def greet(message: Greet, job: Job) -> None:
    """Do what the name says, so that each test can ask for what it shows."""
    match message.name:
        case "retry":
            raise Retry(30, "the line is busy")
        case "snooze":
            raise Snooze(5, "it is night")
        case "dead":
            raise Dead("nobody lives here", code="no-such-person")
        case "error":
            raise ValueError("boom")
        case "broken":
            raise Retry("crm says 503")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        case "hang":
            await asyncio.Event().wait()
        case _:
            pass  # everybody else is greeted


# --- one run, without Redis --------------------------------------------------------------------------------------------------


async def test_a_handler_that_returns_is_done() -> None:
    """`run` runs a handler as a worker does, without Redis, and returns what would become of the job."""
    assert await run(greet, ADA) == Done()


async def test_a_handler_that_raises_is_tried_again_by_its_policy() -> None:
    """Nothing is left to chance: the wait is the longest that the policy allows."""
    waits: list[float] = []
    for attempt in (1, 2):
        outcome = await run(greet, Greet(name="error"), attempt=attempt)
        assert isinstance(outcome, Retry)
        waits.append(outcome.delay_s)
    assert waits == [1, 2]


async def test_the_last_attempt_ends_among_the_dead_letters() -> None:
    """The policy says how many attempts a job has; a message may say it for itself."""
    outcomes = [
        await run(greet, Greet(name="error"), attempt=3),
        await run(greet, Greet(name="error"), attempt=1, attempts=1),
    ]
    assert [getattr(outcome, "code", "") for outcome in outcomes] == ["attempts", "attempts"]


async def test_the_words_of_a_handler_are_outcomes() -> None:
    """`Retry`, `Snooze` and `Dead` come back with all that they hold, and show it when an assertion fails."""
    outcomes = [await run(greet, Greet(name=name)) for name in ("retry", "snooze", "dead", "error")]
    assert [repr(outcome) for outcome in outcomes] == [
        "Retry(delay_s=30, reason='the line is busy', asked=True)",
        "Snooze(delay_s=5, reason='it is night', asked=True)",
        "Dead(reason='nobody lives here', code='no-such-person', asked=True)",
        "Retry(delay_s=1, reason='ValueError: boom', asked=False)",
    ]


async def test_what_a_handler_asked_for_is_told_from_a_crash() -> None:
    """`asked` and `reason`: a test that only looks for a `Retry` would pass over a bug in the handler."""
    busy, broken = [await run(greet, Greet(name=name)) for name in ("retry", "broken")]
    assert isinstance(busy, Retry)
    assert isinstance(broken, Retry)
    assert (busy.asked, busy.reason) == (True, "the line is busy")
    assert not broken.asked
    assert broken.reason.startswith("TypeError: Retry: delay_s must be a number of seconds or a timedelta, got 'crm says 503'")


async def test_what_the_handler_raised_is_the_cause_of_the_outcome() -> None:
    """So a test may look at the error itself, or raise the outcome to see its traceback."""
    outcome = await run(greet, Greet(name="error"))
    assert isinstance(outcome, Retry)
    assert isinstance(outcome.__cause__, ValueError)
    assert outcome.__cause__.__traceback__ is not None


async def test_the_job_says_what_the_test_wants() -> None:
    """`id`, `attempt`, `born` and `priority` are given to `run`; `work` follows from the id, and is the same in every attempt."""
    jobs: list[Job] = []

    @handler(Greet)
    async def note(message: Greet, job: Job) -> None:
        jobs.append(job)

    await run(note, ADA, id="greet-7", attempt=4, born=1_700_000_000.25, priority=Priority.CRITICAL)
    await run(note, ADA, id="greet-7", key="one-at-a-time", clock=Clock(1_800_000_000))
    first, second = jobs
    assert (first.id, first.attempt, first.born, first.priority) == ("greet-7", 4, 1_700_000_000.25, Priority.CRITICAL)
    assert (second.attempt, second.born, second.priority, second.envelope.key) == (
        1, 1_800_000_000, Priority.LOW, b"one-at-a-time",
    )  # fmt: skip
    assert first.work == second.work


async def test_bytes_are_the_json_of_another_language() -> None:
    """What does not fit the contract is a dead letter, before the handler sees it."""
    assert await run(greet, b'{"name": "Ada"}') == Done()
    outcome = await run(greet, b'{"name": 7}')
    assert repr(outcome) == "Dead(reason='Expected `str`, got `int` - at `$.name`', code='bad-payload', asked=False)"


async def test_an_older_message_is_lifted_and_a_newer_one_left_to_newer_workers() -> None:
    """`version` is the contract version of its sender."""
    assert await run(greet, b'{"first_name": "Ada"}', version=1) == Done()
    assert await run(greet, b'{"name": "Ada", "title": "Countess"}', version=3) == Park("~t:greet@3")


async def test_notes_have_what_a_run_leaves_and_its_next_attempt_finds() -> None:
    """`notes` gives a handler its marks, and a test what the handler said: also where it failed, and in a thread."""

    @handler(Greet, retry=ONE_RUN)
    async def count(message: Greet, job: Job) -> None:
        seen = int(await job.marks.get() or 0)
        job.progress(seen, 3, "greetings")
        job.log(f"greeting {seen}")
        await job.marks.set(str(seen + 1))
        if seen < 2:
            raise Retry(1)
        await job.marks.delete()

    notes = Notes()
    assert isinstance(await run(count, ADA, notes=notes), Retry)
    assert (notes.marks, notes.progress, notes.lines) == (b"1", Progress(0, 3, "greetings"), ["greeting 0"])
    notes = Notes(marks=b"2")
    assert await run(count, ADA, attempt=3, notes=notes) == Done()
    assert (notes.marks, notes.lines) == (None, ["greeting 2"])
    assert repr(notes) == "<Notes: marks None, Progress(done=2, total=3, text='greetings'), 1 lines>"
    await run(greet, ADA, notes=notes)
    assert (notes.progress, notes.lines) == (None, [])


async def test_a_handler_that_hangs_is_cut_at_its_deadline() -> None:
    """`timeout_s` takes the place of the handler's own deadline, so that the test need not wait for it."""
    outcome = await run(greet, Greet(name="hang"), timeout_s=0.01)
    assert isinstance(outcome, Retry)
    assert isinstance(outcome.__cause__, TimedOut)


async def test_a_deadline_is_measured_by_the_clock_that_you_give() -> None:
    """A `Clock` stands still until it jumps: ten minutes pass in no time."""
    clock = Clock()

    @handler(Wave, timeout_s=600)
    async def wave(message: Wave, job: Job) -> None:
        clock.jump(601)
        await asyncio.Event().wait()

    outcome = await run(wave, Wave(), attempts=1, clock=clock)
    assert repr(outcome) == "Dead(reason='TimedOut: ran longer than 600 s', code='timeout', asked=False)"


async def test_jitter_fall_as_they_are_told() -> None:
    """Each wait is spread by jitter; `Jitter` returns the same numbers in every run of the test."""
    jitter = Jitter(0.25, 0.75)
    outcomes = [await run(greet, Greet(name="error"), jitter=jitter) for _ in range(3)]
    assert [getattr(outcome, "delay_s", None) for outcome in outcomes] == [0.25, 0.75, 0.25]


async def test_plain_functions_run_in_their_thread_and_in_their_child_process() -> None:
    """`run` runs a handler where a worker would; a child process imports it by its name."""

    @handler(Wave)
    def wave(message: Wave, job: Job) -> None:
        raise Dead("in a thread")

    assert repr(await run(wave, Wave())) == "Dead(reason='in a thread', code='handler', asked=True)"
    assert repr(await run(work, Work(do="retry"))) == "Retry(delay_s=7.5, reason='rate limit', asked=True)"


def lost_answers(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "thrown away" in record.getMessage()]


async def test_an_answer_that_nobody_keeps_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """A type has results only with `result_ttl_s`: without it, what a handler returns is gone, wherever it runs."""

    @contract("answer-in-loop")
    class InLoop(msgspec.Struct, frozen=True):
        n: int = 0

    @contract("answer-in-thread")
    class InThread(msgspec.Struct, frozen=True):
        n: int = 0

    @handler(InLoop)
    async def in_loop(message: InLoop, job: Job) -> dict[str, int] | None:
        return {"rows": 0} if message.n else None

    @handler(InLoop, result_ttl_s=60)
    async def kept(message: InLoop, job: Job) -> dict[str, int]:
        return {"rows": message.n}

    @handler(InThread)
    def in_thread(message: InThread, job: Job) -> int:
        return message.n

    await run(in_loop, InLoop(0))
    await run(kept, InLoop(1))
    await run(answer, Question())
    assert lost_answers(caplog) == []
    for _ in range(2):
        assert await run(in_loop, InLoop(1)) == Done()
        assert await run(in_thread, InThread(0)) == Done()
        assert await run(answer, Question(text="x")) == Done()
    lost = "what its handler returns is thrown away; hint: @handler(…, result_ttl_s=3600) keeps it for Producer.result"
    types = ("answer-in-loop", "answer-in-thread", "answer-in-child")
    assert lost_answers(caplog) == [f"{name}: {lost}" for name in types]


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    """It ends its own run, not the test."""

    @handler(Wave)
    async def wave(message: Wave, job: Job) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if message.n:
            raise ValueError("and then fails")
        await asyncio.Event().wait()

    for n, cause in ((0, SelfCancelled), (1, ValueError)):
        outcome = await run(wave, Wave(n=n))
        assert isinstance(outcome, Retry)
        assert isinstance(outcome.__cause__, cause)


async def test_a_test_that_is_cut_off_takes_its_handler_along() -> None:
    """Nothing goes on behind the back of the next test."""
    ended = asyncio.Event()

    @handler(Wave)
    async def wave(message: Wave, job: Job) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await run(wave, Wave())
    assert ended.is_set()


async def test_a_failing_assertion_in_a_fake_is_an_error_of_the_handler() -> None:
    """A handler may raise anything, and an AssertionError is no exception: look at the outcome too."""

    @handler(Wave)
    async def wave(message: Wave, job: Job) -> None:
        raise AssertionError("called with the wrong key")

    assert "wrong key" in repr(await run(wave, Wave()))


async def test_mistakes_of_a_test_are_told_to_the_test() -> None:
    """They are no outcomes: no worker would ever see such a job."""
    with pytest.raises(ConfigError, match=r"tests\.guide\.test_testing:greet: the message must be a Greet, got Wave"):
        await run(greet, Wave())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="attempt must be .*, got 0"):
        await run(greet, ADA, attempt=0)
    with pytest.raises(BadPayload, match="the limit is"):
        await run(greet, Greet(name="x" * 300_000))
    for falls in ((), (1.5,)):
        with pytest.raises(ValueError, match="from 0 to 1"):
            Jitter(*falls)


def test_clock_and_jitter_are_plain_callables_for_your_own_code() -> None:
    """Hand them to whatever takes `time.time` or `random.random`."""
    clock, jitter = Clock(1_750_000_000), Jitter(0.5, 0)
    clock.jump(60.5)
    assert clock() == 1_750_000_060.5
    assert [jitter(), jitter(), jitter()] == [0.5, 0, 0.5]
    assert repr(clock) == "<Clock at 2025-06-15 15:07:40.500000>"
    assert repr(jitter) == "<Jitter 0.5, 0>"


# --- in a worker, on a real server -------------------------------------------------------------------------------------------


@handler(Wave, retry=Backoff(base_s=0.01, cap_s=0.05, attempts=3))
async def wave_back(message: Wave, job: Job) -> None:
    """Do what the number says: negative ones die, odd ones fail at first, 100 hangs."""
    if message.n < 0:
        raise Dead(f"no wave {message.n}", code="negative")
    if message.n == 100:
        await asyncio.Event().wait()
    if message.n % 2 and job.attempt == 1:
        raise ValueError("at first")


async def test_a_worker_runs_what_is_sent(jobs_worker: Any) -> None:
    """`jobs_worker` is a worker in the test's own loop; `settled` returns when it has nothing left to do."""
    seen: list[str] = []

    @handler(Greet)
    async def note(message: Greet, job: Job) -> None:
        seen.append(message.name)

    async with jobs_worker(note) as worker:
        await worker.producer.send_many(Greet(name=str(n)) for n in range(200))
        await worker.settled()
        assert sorted(seen, key=int) == [str(n) for n in range(200)]
        assert "running" in repr(worker)


async def test_a_worker_that_is_settled_may_have_retries_to_come(jobs_worker: Any) -> None:
    """A retry waits for its time: `settled(delayed=True)` waits with it."""
    async with jobs_worker(wave_back) as worker:
        await worker.producer.send_many(Wave(n=n) for n in range(10))
        await worker.settled(delayed=True)
        [count] = [count.totals() for _, _, count in worker.consumer.stats.rows()]
    assert count == {"done": 10, "retry": 5}


async def test_jobs_for_later_are_not_waited_for(jobs_worker: Any) -> None:
    """What is sent for tomorrow is not due now."""
    async with jobs_worker(wave_back) as worker:
        await worker.producer.send(Wave(), delay_s=86400)
        await worker.settled()
        with pytest.raises(AssertionError, match="1 delayed"):
            await worker.settled(delayed=True, deadline_s=0.02)


async def test_jobs_of_other_handlers_are_not_waited_for(jobs_worker: Any) -> None:
    """A handler may send jobs to handlers that are not under test: they are left to others."""
    async with jobs_worker(wave_back) as worker:
        await worker.producer.send(ADA)
        await worker.settled()
        await worker.producer.send(Wave())
        await worker.settled()
        assert worker.consumer.stats.finished == 1


async def test_dead_letters_can_be_read(jobs_worker: Any) -> None:
    """In the order in which they died, with the reason and the message."""
    async with jobs_worker(wave_back, concurrency=1) as worker:
        for n in (-1, -2):
            await worker.producer.send(Wave(n=n))
            await worker.settled()
        letters = await worker.dead_letters()
    assert [(letter.type, letter.reason, letter.error) for letter in letters] == [
        ("wave", "negative", "no wave -1"),
        ("wave", "negative", "no wave -2"),
    ]
    assert letters[0].message["data"] == '{"n":-1}'


async def test_what_does_not_settle_says_what_is_left(jobs_worker: Any) -> None:
    """And the end of the block cuts what still runs, after a grace."""
    async with jobs_worker(wave_back, grace_s=0) as worker:
        await worker.producer.send(Wave(n=100))
        await until(lambda: worker.consumer.running == 1, "the handler runs")
        with pytest.raises(AssertionError, match=r"not settled within 0\.02 s: .*1 running; <Consumer .* 1 running"):
            await worker.settled(deadline_s=0.02)
        with pytest.raises(AssertionError, match=r"the moon did not hold within 0\.02 s"):
            await until(lambda: False, "the moon", deadline_s=0.02)


@pytest.mark.parametrize("turn", [1, 2])
async def test_each_test_finds_an_empty_server(jobs_worker: Any, turn: int) -> None:
    """Whatever the test before has left there."""
    async with jobs_worker(wave_back) as worker:
        assert await worker.dead_letters() == []
        await worker.producer.send(Wave(n=-turn))
        await worker.producer.send(Wave(), delay_s=3600)
        await worker.settled()
        assert len(await worker.dead_letters()) == 1


async def test_two_queues_do_not_meet(jobs_url: str) -> None:
    """`worker` runs on any server; any setting may be given to it."""
    async with worker(jobs_url, wave_back, queue="left") as left, worker(jobs_url, wave_back, queue="right") as right:
        await left.producer.send(Wave(n=-1))
        await left.settled()
        await right.settled()
        assert (len(await left.dead_letters()), len(await right.dead_letters())) == (1, 0)


async def test_a_worker_that_cannot_work_says_so(jobs_url: str, tmp_path: Path) -> None:
    """No server, two handlers for one type, or it was stopped."""
    with pytest.raises(StoreUnavailable, match="nobody"):
        async with worker(f"unix://{tmp_path}/nobody", wave_back):
            pass
    with pytest.raises(ConfigError, match="two handlers run the same type"):
        async with worker(jobs_url, wave_back, wave_back):
            pass
    async with worker(jobs_url, wave_back) as stopped:
        stopped.consumer.stop()
        with pytest.raises(AssertionError, match="the worker was stopped: <Consumer"):
            await stopped.settled()


# --- the fixtures in a project of their own ----------------------------------------------------------------------------------


def pytest_in(folder: Path, *options: str, **environment: str) -> str:
    """Run pytest on a folder, as a user would, with every warning an error; return what it prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options]
    command += ["-o", "asyncio_default_fixture_loop_scope=function"]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_fixtures_cost_nothing_until_they_are_used(tmp_path: Path) -> None:
    """A project that only has the package installed loads neither Redis nor the runtime."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n\n\n"
        "def test_it(request):\n"
        "    assert request.config.pluginmanager.has_plugin('backend-jobs')\n"
        "    heavy = {'redis', 'aiohttp', 'msgspec', 'uvloop', 'opentelemetry', 'prometheus_client'}\n"
        "    assert sorted(heavy & set(sys.modules)) == []\n"
        "    assert [name for name in sys.modules if name.startswith('runtime.')] == ['runtime.pytest_plugin']\n"
    )
    assert "1 passed" in pytest_in(tmp_path, "-p", "no:hypothesispytest")


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_the_fixtures_work_in_both_modes_of_pytest_asyncio(tmp_path: Path, mode: str) -> None:
    """They are plain fixtures, so a loop of any scope will do."""
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "from tests.guide.test_testing import Wave, wave_back\n\n"
        "pytestmark = pytest.mark.asyncio(loop_scope='session')\n\n\n"
        "@pytest.mark.parametrize('turn', range(3))\n"
        "async def test_it(jobs_worker, turn):\n"
        "    async with jobs_worker(wave_back) as worker:\n"
        "        await worker.producer.send(Wave(n=-1))\n"
        "        await worker.settled()\n"
        "        assert len(await worker.dead_letters()) == 1\n"
    )
    assert "3 passed" in pytest_in(tmp_path, "-o", f"asyncio_mode={mode}", PYTHONPATH=str(ROOT))


def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    """As they stand there, in a project that has nothing else; in Kubernetes, too."""
    [settings] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(settings)
    examples = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == PAGE.count("```python")
    for name, code in examples:
        (tmp_path / name).write_text(code)
    tests = sum(code.count("async def test_") for _, code in examples)
    assert f"{tests} passed" in pytest_in(tmp_path, KUBERNETES_SERVICE_HOST="10.0.0.1")


def test_every_name_of_the_testing_kit_is_on_its_page() -> None:
    """And there is no other."""
    for name in testing.__all__:
        assert re.search(rf"\b{name}\b", PAGE), name
        assert getattr(testing, name).__doc__ or name == "Outcome"
