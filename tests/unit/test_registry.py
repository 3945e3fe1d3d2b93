"""Handlers: declared beside their function, found in modules, checked before the first job."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from runtime.backoff import Backoff
from runtime.errors import BadPayload, ConfigError, Retry
from runtime.jobs import Job, contract
from runtime.registry import find, handler, of_queue
from runtime.testing import Done, run
from tests.builders import job


@contract("greet")
class Greet(msgspec.Struct):
    name: str = "you"


@contract("part")
class Part(msgspec.Struct):
    pass


class Loose(msgspec.Struct):
    pass


# --- declared ----------------------------------------------------------------------------------------------------------------


def test_a_coroutine_function_runs_on_the_loop_as_it_is() -> None:
    async def greet(message: Greet, job: Job) -> None:
        """Does nothing."""

    declared = handler(Greet)(greet)
    assert declared.run is greet
    assert declared.runs == "loop"
    assert declared.contract.type == "greet"
    assert declared.timeout_s == 600
    assert declared.retry == Backoff()


def test_a_plain_function_becomes_a_coroutine_function() -> None:
    @handler(Greet, timeout_s=30, retry=Backoff(attempts=2))
    def greet(message: Greet, job: Job) -> None:
        """Does nothing."""

    assert inspect.iscoroutinefunction(greet.run)
    assert greet.runs == "thread"
    assert (greet.timeout_s, greet.retry.attempts) == (30, 2)


@pytest.mark.parametrize("runs", ["", "loop", "process"])
def test_a_coroutine_function_may_say_where_it_runs(runs: str) -> None:
    @handler(Greet, runs=runs)
    async def greet(message: Greet, job: Job) -> None:
        """Does nothing."""

    assert greet.runs == (runs or "loop")
    assert inspect.iscoroutinefunction(greet.run)


def test_a_handler_decodes_its_own_payload() -> None:
    @handler(Greet)
    async def greet(message: Greet, job: Job) -> None:
        """Does nothing."""

    assert greet.decode(job(data=b'{"name":"Ada"}')) == Greet("Ada")
    with pytest.raises(BadPayload):
        greet.decode(job(data=b'{"name":7}'))


def test_a_declared_function_can_be_called_by_its_own_tests() -> None:
    @handler(Greet)
    async def greet(message: Greet, job: Job) -> str:
        return f"Hello {message.name}"

    assert asyncio.run(greet(Greet("Ada"), job())) == "Hello Ada"


def test_arguments_may_go_without_annotations_and_by_any_name() -> None:
    @handler(Greet)
    async def greet(m, /, j=None):
        """Does nothing."""

    assert greet.runs == "loop"


def test_a_contract_may_be_declared_inside_of_a_function() -> None:
    @contract("local")
    class Local(msgspec.Struct):
        pass

    @handler(Local)
    async def run(message: Local, job: Job) -> None:
        """Does nothing."""

    assert run.contract.type == "local"


def refusal(declare: Callable[[], object]) -> str:
    """Return the one line with which a declaration is refused."""
    with pytest.raises(ConfigError) as caught:
        declare()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


async def no_arguments() -> None:
    """Does nothing."""


async def one_argument(message: Greet) -> None:
    """Does nothing."""


async def three_arguments(message: Greet, job: Job, more: int) -> None:
    """Does nothing."""


async def by_keyword(message: Greet, *, job: Job) -> None:
    """Does nothing."""


async def any_number(*arguments: Any) -> None:
    """Does nothing."""


@pytest.mark.parametrize("function", [no_arguments, one_argument, three_arguments, by_keyword, any_number])
def test_a_function_with_other_arguments_is_refused(function: Any) -> None:
    message = refusal(lambda: handler(Greet)(function))
    assert f"{__name__}:{function.__name__}" in message
    assert "(message: Greet, job: Job)" in message


async def another_payload(message: Part, job: Job) -> None:
    """Does nothing."""


async def another_job(message: Greet, job: int) -> None:
    """Does nothing."""


async def the_wrong_way_round(job: Job, message: Greet) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("function", "name", "found"),
    [(another_payload, "message", "Part"), (another_job, "job", "int"), (the_wrong_way_round, "job", "Job")],
)
def test_a_wrong_annotation_is_refused(function: Any, name: str, found: str) -> None:
    message = refusal(lambda: handler(Greet)(function))
    assert f"`{name}` is annotated {found}" in message


async def unknown_annotation(message: Nobody, job: Job) -> None:  # noqa: F821
    """Does nothing."""


def test_an_annotation_that_means_nothing_is_refused() -> None:
    assert "Nobody" in refusal(lambda: handler(Greet)(unknown_annotation))


def test_a_class_that_is_no_contract_is_refused() -> None:
    assert "Loose is not a contract" in refusal(lambda: handler(Loose))


async def on_the_loop(message: Greet, job: Job) -> None:
    """Does nothing."""


def plain(message: Greet, job: Job) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("function", "runs", "word"),
    [
        (on_the_loop, "thread", "an async function"),
        (plain, "loop", "a plain function"),
        (plain, "fiber", "must be loop, thread or process"),
        (on_the_loop, "Process", "must be loop, thread or process"),
    ],
)
def test_a_function_that_cannot_run_there_is_refused(function: Any, runs: str, word: str) -> None:
    message = refusal(lambda: handler(Greet, runs=runs)(function))
    assert runs in message
    assert word in message


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
def test_a_deadline_that_never_comes_is_refused(timeout_s: float) -> None:
    assert "timeout_s" in refusal(lambda: handler(Greet, timeout_s=timeout_s)(on_the_loop))


def test_a_handler_is_declared_once() -> None:
    declared = handler(Greet)(on_the_loop)
    assert "once" in refusal(lambda: handler(Part)(declared))


class Callable2:
    """An object that can be called like a function."""

    def __call__(self, message: Greet, job: Job) -> None:
        """Do nothing."""


@pytest.mark.parametrize("function", [functools.partial(plain), Callable2()], ids=["partial", "object"])
def test_what_has_no_name_of_its_own_is_refused_in_words(function: Any) -> None:
    refusal(lambda: handler(Greet)(function))


def timed(function: Any) -> Any:
    """Return what most decorators do: a plain function around the other."""

    @functools.wraps(function)
    def wrapper(*given: Any) -> Any:
        return function(*given)

    return wrapper


class Timed:
    """A decorator that is a class, with a plain call."""

    def __init__(self, function: Any) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, message: Greet, job: Job) -> Any:
        return self.function(message, job)


class TimedAsync(Timed):
    """A decorator that is a class, with an async call."""

    async def __call__(self, message: Greet, job: Job) -> Any:
        return await self.function(message, job)


def awaits_nothing(function: Any) -> Any:
    """Return a coroutine function that forgets to await the other."""

    @functools.wraps(function)
    async def wrapper(message: Greet, job: Job) -> Any:
        return function(message, job)

    return wrapper


@pytest.mark.parametrize("decorate", [timed, Timed, TimedAsync, awaits_nothing])
async def test_a_coroutine_function_under_a_decorator_is_run_to_its_end(decorate: Any) -> None:
    ran: list[str] = []

    async def greet(message: Greet, job: Job) -> None:
        await asyncio.sleep(0)
        ran.append("ran")

    assert await run(handler(Greet)(decorate(greet)), Greet()) == Done()
    assert ran == ["ran"]


def test_an_async_call_of_an_object_is_known_beforehand() -> None:
    assert handler(Greet)(TimedAsync(on_the_loop)).runs == "loop"
    assert handler(Greet)(Timed(on_the_loop)).runs == "thread"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="functions can be marked from 3.12 on")
def test_a_plain_function_that_is_marked_as_one_that_gives_coroutines_runs_on_the_loop() -> None:
    marked = inspect.markcoroutinefunction(timed(on_the_loop))
    assert handler(Greet)(marked).runs == "loop"


def a_generator(message: Greet, job: Job) -> Iterator[None]:
    yield


async def an_async_generator(message: Greet, job: Job) -> AsyncIterator[None]:
    yield


class YieldingCall(Timed):
    """An object whose call is a generator function."""

    def __call__(self, message: Greet, job: Job) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    "function", [a_generator, an_async_generator, YieldingCall(plain)], ids=["generator", "async generator", "object"]
)
@pytest.mark.parametrize("runs", ["", "loop", "thread", "process"])
def test_a_function_with_a_yield_is_refused_since_a_call_would_run_nothing_of_it(function: Any, runs: str) -> None:
    assert "yield" in refusal(lambda: handler(Greet, runs=runs)(function))


@pytest.mark.parametrize("function", [a_generator, an_async_generator], ids=["generator", "async generator"])
async def test_a_generator_that_comes_out_of_a_decorator_is_a_failure(function: Any) -> None:
    outcome = await run(handler(Greet)(timed(function)), Greet())
    assert isinstance(outcome, Retry)
    assert "nothing of it has run" in str(outcome)


@pytest.mark.parametrize(
    "function",
    [contextlib.contextmanager(a_generator), contextlib.asynccontextmanager(an_async_generator)],
    ids=["with", "async with"],
)
@pytest.mark.parametrize("runs", ["", "process"])
def test_a_context_manager_is_refused_since_a_call_would_run_nothing_of_it(function: Any, runs: str) -> None:
    assert "context manager" in refusal(lambda: handler(Greet, runs=runs)(function))
    assert "nothing of it has run" in str(asyncio.run(run(handler(Greet)(timed(function)), Greet()))), (
        "it comes out of a decorator"
    )


def test_a_generator_that_its_decorator_runs_is_a_handler() -> None:
    @functools.wraps(a_generator)
    def steps(*given: Any) -> None:
        list(a_generator(*given))

    assert asyncio.run(run(handler(Greet)(steps), Greet())) == Done()


def test_a_class_is_refused_since_a_call_only_makes_an_object() -> None:
    class Greeting:
        def __init__(self, message: Greet, job: Job) -> None:
            self.message = message

    assert "got a class" in refusal(lambda: handler(Greet)(cast("Any", Greeting)))


class Named:
    """An object with a name, as a decorator may be that is a class, and nothing else that a function has."""

    def __init__(self) -> None:
        self.__qualname__ = "named"

    def __call__(self, message: Greet, job: Job) -> None:
        """Do nothing."""


class Unknown(Named):
    """One that nobody knows how to call."""

    __signature__ = "none"


async def broken_annotation(message: "1 / 0", job: Job) -> None:  # noqa: UP037  # pyright: ignore
    """Does nothing."""


@pytest.mark.parametrize("function", [Named(), Unknown(), broken_annotation], ids=["object", "unknown", "broken"])
def test_what_cannot_be_looked_into_is_refused_in_words(function: Any) -> None:
    refusal(lambda: handler(Greet)(function))


def test_a_policy_that_is_none_is_refused() -> None:
    assert "Backoff" in refusal(lambda: handler(Greet, retry=cast("Backoff", 3))(plain))


# --- found -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Return a function that writes a module where it can be imported; `pkg/__init__` is a package."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> None:
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from runtime import contract, handler\nimport msgspec\n" + textwrap.dedent(text), "utf-8")

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def declaring(type_name: str, function: str = "run") -> str:
    return textwrap.dedent(f"""
        @contract("{type_name}")
        class Message(msgspec.Struct):
            pass

        @handler(Message)
        async def {function}(message, job):
            pass
        """)


Write = Callable[[str, str], None]


def test_a_module_offers_the_handlers_in_its_attributes(write: Write) -> None:
    write("one", declaring("greet") + "also = run\nnot_a_handler = 7\n" + declaring("wave", "run2"))
    found = find(["one"])
    assert sorted(found.registry) == [b"greet", b"wave"]
    assert found.registry[b"greet"].location == "one:run"
    assert found.missing == []


def test_a_handler_may_be_seen_in_several_modules(write: Write) -> None:
    write("one", declaring("greet"))
    write("two", "from one import run")
    assert list(find(["one", "two"]).registry) == [b"greet"]


def test_a_package_names_its_modules(write: Write) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.one", "pkg.two")\n' + declaring("own"))
    write("pkg/one", declaring("one"))
    write("pkg/two", declaring("two"))
    assert sorted(find(["pkg"]).registry) == [b"one", b"own", b"two"]


def test_two_handlers_for_one_type_are_refused_by_their_places(write: Write) -> None:
    write("one", declaring("greet"))
    write("two", declaring("greet", "also"))
    message = refusal(lambda: find(["one", "two"]))
    assert "'greet'" in message
    assert "one:run" in message
    assert "two:also" in message


def test_two_handlers_for_one_contract_in_one_module_are_refused(write: Write) -> None:
    write("one", declaring("greet") + "@handler(Message)\nasync def second(message, job): pass\n")
    assert "one:second" in refusal(lambda: find(["one"]))


SCHEDULE = 'from runtime import Schedule\nnightly = Schedule("nightly", "0 3 * * *", Message())\n'


def test_schedules_are_found_like_handlers(write: Write) -> None:
    write("one", declaring("greet") + SCHEDULE + "also = nightly\n")
    write("two", "from one import nightly, run")
    found = find(["one", "two"])
    assert list(found.schedules) == ["nightly"]
    assert found.schedules["nightly"].definition.settings.type == "greet"


def test_a_worker_leaves_out_what_belongs_to_another_queue(write: Write) -> None:
    apart = declaring("report", "report").replace('"report")', '"report", queue="reports")') + SCHEDULE
    write("one", declaring("greet") + apart)
    found = find(["one"])
    here, elsewhere = of_queue(found, "jobs")
    assert (list(here.registry), list(here.schedules), elsewhere) == ([b"greet"], [], {"reports": ["report"]})
    there, elsewhere = of_queue(found, "reports")
    assert (sorted(there.registry), list(there.schedules), elsewhere) == ([b"greet", b"report"], ["nightly"], {})
    write("two", apart)
    message = refusal(lambda: of_queue(find(["two"]), "jobs"))
    assert message == "no handler of queue jobs: there are report of queue reports; hint: --queue reports"


MORE = (
    'from runtime import Schedule\n{} [Schedule("nightly", "0 3 * * *", Message()), Schedule("hourly", "@hourly", Message())]\n'
)


@pytest.mark.parametrize("code", [MORE.format("SCHEDULES ="), MORE.format("def SCHEDULES(): return")])
def test_a_module_may_give_a_list_of_schedules_or_make_one(write: Write, code: str) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.one",)\n' + declaring("own"))
    write("pkg/one", declaring("one") + code)
    assert list(find(["pkg"]).schedules) == ["nightly", "hourly"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("SCHEDULES = 7", "SCHEDULES of module one: must be a list of Schedule"),
        ("SCHEDULES = [7]", "SCHEDULES of module one: must be a list of Schedule"),
        ("def SCHEDULES(): pass", "SCHEDULES of module one: must be a list of Schedule"),
        ("def SCHEDULES(): return {}[1]", "schedules of module one cannot be made: KeyError: 1 ("),
        (
            MORE.format("def SCHEDULES(): return").replace("0 3", "0 33"),
            "schedules of module one: schedule 'nightly': when '0 33 * * *': hour '33'",
        ),
    ],
)
def test_schedules_that_cannot_be_made_are_refused_with_their_module(write: Write, code: str, words: str) -> None:
    write("one", declaring("greet") + code)
    assert words in refusal(lambda: find(["one"]))


def test_two_schedules_of_one_name_are_refused(write: Write) -> None:
    write("one", declaring("greet") + SCHEDULE)
    write("two", declaring("wave") + SCHEDULE)
    assert "two schedules have the name 'nightly'; the second is in module two" in refusal(lambda: find(["one", "two"]))


def test_a_schedule_that_cannot_be_used_is_named(write: Write) -> None:
    write("one", declaring("greet") + SCHEDULE.replace("0 3", "0 33"))
    assert "schedule 'nightly': when '0 33 * * *': hour '33'" in refusal(lambda: find(["one"]))


def test_a_module_that_is_not_there_is_named(write: Write) -> None:
    assert "no module named nowhere;" in refusal(lambda: find(["nowhere"]))
    assert "no module named nowhere.at_all;" in refusal(lambda: find(["nowhere.at_all"]))


def test_a_module_that_a_package_names_and_does_not_have_is_named(write: Write) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.one",)\nEXTRAS = {"pkg": "everything"}')
    assert "no module named pkg.one;" in refusal(lambda: find(["pkg"]))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit(7)", "SystemExit"),
        ("def (", "SyntaxError"),
        ("from os import nothing", "ImportError"),
        ("raise OSError('disk on fire')", "disk on fire"),
    ],
)
def test_a_module_that_raises_at_import_is_named_with_the_reason(write: Write, text: str, word: str) -> None:
    write("one", text)
    message = refusal(lambda: find(["one"]))
    assert "module one cannot be imported" in message
    assert word in message


def test_a_bad_declaration_in_a_module_is_told_as_it_is(write: Write) -> None:
    write("one", "@contract('NO')\nclass Message(msgspec.Struct): pass")
    assert refusal(lambda: find(["one"])).startswith("contract 'NO'")


def test_a_module_without_handlers_is_refused(write: Write) -> None:
    write("one", "")
    assert "no handler in one" in refusal(lambda: find(["one"]))
    assert "no handler in" in refusal(lambda: find([]))


def test_a_module_whose_own_import_is_missing_is_refused(write: Write) -> None:
    write("one", "import not_installed_here\n" + declaring("greet"))
    message = refusal(lambda: find(["one"]))
    assert "one" in message
    assert "not_installed_here" in message


def test_a_type_whose_extra_is_missing_is_not_offered_and_the_extra_is_named(write: Write) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.pdf", "pkg.mail")\nEXTRAS = {"not_installed_here": "jobs[pdf]"}')
    write("pkg/pdf", "import not_installed_here.canvas\n" + declaring("export-pdf"))
    write("pkg/mail", declaring("send-email"))
    found = find(["pkg"])
    assert list(found.registry) == [b"send-email"]
    assert found.missing == [("pkg.pdf", "jobs[pdf]")]


def test_a_module_that_needs_more_than_its_first_import_names_all(write: Write) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.pdf", "pkg.mail")\nEXTRAS = {"not_here": "one", "pkg.pdf": "one two"}')
    write("pkg/pdf", "import not_here")
    write("pkg/mail", declaring("send-email"))
    assert find(["pkg"]).missing == [("pkg.pdf", "one two")]


def test_where_all_extras_are_missing_they_are_named(write: Write) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.pdf",)\nEXTRAS = {"not_installed_here": "jobs[pdf]"}')
    write("pkg/pdf", "from not_installed_here import canvas")
    message = refusal(lambda: find(["pkg"]))
    assert "no handler in pkg" in message
    assert "pip install 'jobs[pdf]'" in message


def test_a_missing_import_that_belongs_to_no_extra_is_refused(write: Write) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.pdf", "pkg.mail")\nEXTRAS = {"another": "jobs[pdf]"}')
    write("pkg/pdf", "import not_installed_here")
    write("pkg/mail", declaring("send-email"))
    assert "not_installed_here" in refusal(lambda: find(["pkg"]))


def test_an_extra_that_is_there_and_breaks_is_refused(write: Write) -> None:
    write("pkg/__init__", 'HANDLERS = ("pkg.pdf", "pkg.mail")\nEXTRAS = {"broken_extra": "jobs[pdf]"}')
    write("broken_extra", "1 / 0")
    write("pkg/pdf", "import broken_extra")
    write("pkg/mail", declaring("send-email"))
    assert "ZeroDivisionError" in refusal(lambda: find(["pkg"]))


def test_where_a_module_went_wrong_is_said_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_name.py").write_text("\nx = undefined_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"wrong_name\.py:2\)"):
        find(["wrong_name"])


def test_where_an_option_went_wrong_is_said_with_the_line_that_gave_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrong_backoff.py").write_text("from runtime import Backoff\n\nAGAIN = Backoff(attempts=-1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"must be from 1 to 1000000, got -1 \(.*wrong_backoff\.py:3\)$"):
        find(["wrong_backoff"])


def test_a_handler_that_is_declared_without_its_contract_is_told_where_and_how() -> None:
    def add_up(message: Greet, job: Job) -> None: ...

    declare: Any = handler
    with pytest.raises(ConfigError, match=r"^handler tests\.unit\.test_registry:.*add_up: .*hint: @handler\(ItsMessage\)$"):
        declare(add_up)
    with pytest.raises(ConfigError, match=r"^handler\('greet'\): .*hint: @handler\(ItsMessage\)$"):
        declare("greet")


def test_a_function_in_place_of_its_module_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_module.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="plain_module is not a package; --handlers takes modules"):
        find(["plain_module.send"])
    with pytest.raises(ConfigError, match="no module named nowhere.at_all; hint: it must be"):
        find(["nowhere.at_all"])
