"""Handlers are declared with `@handler` beside their function, found in modules, and checked before the first job."""

from __future__ import annotations

import importlib
import inspect
import os
import shlex
import traceback
import typing
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, ParamSpec, TypeAlias, TypeVar, cast, overload

import msgspec

from runtime import offload
from runtime.answers import keeping
from runtime.backoff import Backoff
from runtime.batches import policy_of, reading, running, spread
from runtime.codec import payload_decoder
from runtime.declared import check_call, is_kind
from runtime.errors import ConfigError
from runtime.followers import follow
from runtime.hooks import Hook
from runtime.jobs import ABOVE, DEFAULT_TIMEOUT_S, Handler, Job, P, contract_of
from runtime.lifespans import Lifespan
from runtime.limits import limits_of
from runtime.results import result_policy
from runtime.schedules import Schedule
from runtime.settle import describe

Given = ParamSpec("Given")
T = TypeVar("T")

Child: TypeAlias = "offload.InChild[Any, Any] | tuple[offload.InChild[Any, Any], ...]"

_OURS: Final = f"{Path(__file__).parent}{os.sep}"

ABOVE.check_loop = offload.check_loop
ABOVE.follow = follow  # whoever declares a handler loads this: its jobs can hand on others, in a child process too


@overload
def handler(
    payload: type[P],
    *,
    timeout_s: float = ...,
    retry: Backoff = ...,
    runs: str = ...,
    memory_bytes: int | None = ...,
    child: Child | None = ...,
    limit: int | None = ...,
    rate: str | None = ...,
    group_limit: int | None = ...,
    group_rate: str | None = ...,
    result_ttl_s: float | None = ...,
) -> Callable[[Callable[[P, Job], object]], Handler[P]]: ...


@overload
def handler(
    payload: type[P],
    *,
    max_size: int,
    max_wait_ms: float | None = ...,
    timeout_s: float = ...,
    retry: Backoff = ...,
    runs: str = ...,
    limit: int | None = ...,
    rate: str | None = ...,
    group_limit: int | None = ...,
    group_rate: str | None = ...,
) -> Callable[[Callable[[list[P], list[Job]], object]], Handler[P]]: ...


def handler(
    payload: type[P],
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    retry: Backoff = Backoff(),  # noqa: B008 -- frozen
    runs: str = "",
    memory_bytes: int | None = None,
    child: Child | None = None,
    limit: int | None = None,
    rate: str | None = None,
    group_limit: int | None = None,
    group_rate: str | None = None,
    max_size: int | None = None,
    max_wait_ms: float | None = None,
    result_ttl_s: float | None = None,
) -> Callable[[Callable[..., object]], Handler[P]]:
    """Make a function `(payload, job)` the handler of a contract; with `max_size`, a function `(payloads, jobs)` of two lists.

    A job may be run more than once: `job.work` is the same each time. What the function returns is awaited where it can be, and
    thrown away, unless `result_ttl_s` is given. A handler of many is called with those that could be read; `Job.settle` says what
    becomes of one of them.

    Args:
        payload: the class that was declared with `@contract`.
        timeout_s: seconds, more than 0: the deadline of one run, from its begin.
        retry: how often and how far apart a job is tried.
        runs: `loop`, `thread` or `process`; empty for the loop where the function is a coroutine function, else for a thread. A
            coroutine function may run on the loop or in a process, a plain one in a thread or in a process. In a child process it
            is killed at its deadline; a thread goes on, and keeps its place until it ends.
        memory_bytes: with `runs="process"`, at least 1 MiB: what a job may take beyond what an idle child has (Linux). More is a
            MemoryError of that job, or the end of the child, never of the worker.
        child: what was made by `in_child` and the handler awaits, or a tuple of such: its jobs have a place for one child process
            each, and wait for it as those of `runs="process"` do. For coroutine functions on the loop.
        limit: how many jobs of this type may run at once, over all workers.
        rate: how many of them may start in a time, over all workers: a number, a slash, and `s`, `m`, `h` or `d`, such as `100/m`
            or `5/30s`. No such time ever sees more; one that may not start waits in its place and burns no attempt.
        group_limit: as `limit`, for each `group` that messages name; those that name none are bounded by `limit` and `rate`.
        group_rate: as `rate`, for each group.
        max_size: how many jobs a call gets at most, from 1 to 1000. Each has its own attempts, and counts for the limits.
        max_wait_ms: how long a job waits for others to come, from 0 to 500; 200 where only `max_size` is given.
        result_ttl_s: keep what the function returns so many seconds in Redis, as JSON of at most 64 KiB, for those who wait for
            it by `Producer.result`; from 1 s to 7 days. Without it, what is returned is thrown away.

    Raises:
        ConfigError: the class is no contract, the function has other arguments or a `yield`, or an option is out of its range.
    """
    if not isinstance(payload, type):  # pyright: ignore[reportUnnecessaryIsInstance] -- `@handler` without a call
        name = f" {payload.__module__}:{payload.__qualname__}" if inspect.isfunction(payload) else f"({payload!r:.60})"
        raise ConfigError(f"handler{name}: must be declared with the class of its messages; hint: @handler(ItsMessage)")
    contract = contract_of(payload)

    def declare(function: Callable[..., object]) -> Handler[P]:
        if isinstance(function, Handler):
            raise ConfigError(f"handler {function.location}: must be declared once")
        if not hasattr(function, "__qualname__"):
            raise ConfigError(f"handler of {contract.type!r}: {function!r} is not a function with a name; hint: wrap it in a def")
        where = f"handler {function.__module__}:{function.__qualname__}"
        batch = _at(where, policy_of, max_size, max_wait_ms)
        check_call(function, where)
        hints = _check_signature(function, payload, batch is not None, where)
        _check_options(timeout_s, retry, runs, memory_bytes, where)
        limits = _at(where, limits_of, limit, rate, group_limit, group_rate)
        result = _at(where, result_policy, result_ttl_s, hints.get("return", Any), batch is not None)
        kind, run = _runner_of(function, runs, memory_bytes, where) if batch is None else _batch_runner_of(function, runs, where)
        children = _children_of(child, kind, batch is not None, where)
        if children:
            run = offload.seated(run, children)
        if result is not None:
            run = keeping(run, result)
        decode = payload_decoder(contract) if batch is None else reading(payload_decoder(contract))
        return Handler(contract, run, decode, function, timeout_s, retry, kind, limits, batch, result, children)

    return declare


def _check_options(timeout_s: float, retry: object, runs: str, memory_bytes: int | None, where: str) -> None:
    if not 0 < timeout_s < float("inf"):
        raise ConfigError(f"{where}: timeout_s must be a number of seconds above 0, got {timeout_s:g}")
    if memory_bytes is not None and (runs != "process" or memory_bytes < offload.MIN_MEMORY_BYTES):
        raise ConfigError(f'{where}: memory_bytes must be at least {offload.MIN_MEMORY_BYTES}, and needs runs="process"')
    if not isinstance(retry, Backoff):
        raise ConfigError(f"{where}: retry must be a Backoff, got {retry!r}")


def _children_of(child: Child | None, kind: str, is_of_many: bool, where: str) -> tuple[offload.InChild[Any, Any], ...]:
    children = () if child is None else child if isinstance(child, tuple) else (child,)
    if not all(isinstance(one, offload.InChild) for one in children):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{where}: child must be a function that was declared with @in_child, got {child!r:.80}")
    if children and (kind != "loop" or is_of_many):
        raise ConfigError(f"{where}: child is for coroutine functions on the loop that take one job at a time")
    return children


def _at(where: str, make: Callable[Given, T], *given: Given.args, **named: Given.kwargs) -> T:
    """Return what is made of options; their errors name the handler."""
    try:
        return make(*given, **named)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _runner_of(
    function: Callable[[Any, Job], object], runs: str, memory_bytes: int | None, where: str
) -> tuple[str, Callable[[Any, Job], Awaitable[object]]]:
    """Return where the function runs, and a coroutine function that runs it there."""
    is_async = is_kind(function, inspect.iscoroutinefunction)
    kind = runs or ("loop" if is_async else "thread")
    match kind:
        case "loop" if is_async:
            return kind, cast("Callable[[Any, Job], Awaitable[object]]", function)
        case "thread" if not is_async:
            return kind, offload.in_thread(function)
        case "process":
            return kind, offload.in_process(function, memory_bytes)
        case "loop" | "thread":
            raise ConfigError(f"{where}: runs={kind!r} does not fit {'an async' if is_async else 'a plain'} function")
        case _:
            raise ConfigError(f"{where}: runs must be loop, thread or process, got {kind!r}")


def _batch_runner_of(
    function: Callable[..., object], runs: str, where: str
) -> tuple[str, Callable[[Any, Job], Awaitable[object]]]:
    """Return where the function runs, and a coroutine function that runs it there with what a batch holds."""
    if runs == "process":
        raise ConfigError(f"{where}: runs='process' takes one job at a time; hint: leave max_size out, or start processes in it")
    kind, _ = _runner_of(function, runs, None, where)
    call = spread(function)
    return kind, running(call if kind == "loop" else offload.in_thread(call))


def _check_signature(
    function: Callable[..., object], payload: type[msgspec.Struct], is_of_many: bool, where: str
) -> dict[str, Any]:
    """Return the function's annotations, if it takes what a handler is called with."""
    name = payload.__name__
    wanted = f"(messages: list[{name}], jobs: list[Job])" if is_of_many else f"(message: {name}, job: Job)"
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: must take {wanted}, and has no signature: {error}") from None
    parameters = list(signature.parameters.values())
    if len(parameters) != 2 or any(parameter.kind not in kinds for parameter in parameters):
        raise ConfigError(f"{where}: must take {wanted}, got {signature}")
    try:
        hints = typing.get_type_hints(function, localns={payload.__name__: payload, "Job": Job})
    except Exception as error:  # it runs what is written there
        if getattr(function, "__annotations__", None) is None:
            raise ConfigError(f"{where}: {function!r} is not a function; hint: wrap it in a def") from None
        raise ConfigError(f"{where}: an annotation cannot be resolved: {describe(error)}") from None
    for parameter, one in zip(parameters, (payload, Job), strict=True):
        right = (list[one], Sequence[one], list) if is_of_many else (one,)
        found = hints.get(parameter.name, one)
        if parameter.name in hints and found not in right:
            told = getattr(found, "__name__", found) if isinstance(found, type) and not typing.get_args(found) else found
            hint = "" if is_of_many or found != list[one] else "; hint: @handler(…, max_size=100) is for many at once"
            raise ConfigError(f"{where}: must take {wanted}, but `{parameter.name}` is annotated {told}{hint}")
    return hints


class Found(msgspec.Struct):
    """The handlers of the given modules by type; `missing` has modules whose extra is not installed, and what to install.

    `schedules` are those of the modules, by name; `lifespans` and `hooks` in the order in which they stand there; `checks` are
    the modules' functions `CHECKS`, by the name of the module.
    """

    registry: dict[bytes, Handler[Any]]
    missing: list[tuple[str, str]]
    schedules: dict[str, Schedule]
    lifespans: list[Lifespan[Any]] = []
    hooks: list[Hook] = []
    checks: dict[str, Callable[[], object]] = {}


def find(modules: Sequence[str]) -> Found:
    """Import the modules, and those that a package names in `HANDLERS`; return what is declared in their attributes: handlers,
    schedules, lifespans and hooks.

    A module's `SCHEDULES` is a list of more schedules, or a function that returns one, as for those made from settings.

    A module's `CHECKS` is a function that returns a `Finding` for each thing that handlers need; `doctor --handlers` calls it.

    A package may say in `EXTRAS` which import comes with which installation; where such an import is missing, the types of that
    module are not offered here. The name of the module in it wins, for one that needs more than the first import that is missing.

    Raises:
        ConfigError: a module cannot be imported, two handlers have one type or two schedules one name, a module's `SCHEDULES`
            cannot be used, or there is no handler.
    """
    found = Found({}, [], {})
    for name in modules:
        module = _import(name)
        extras = getattr(module, "EXTRAS", {})
        for inner in getattr(module, "HANDLERS", ()):
            try:
                _collect(found, _import(inner))
            except _ExtraMissing as missing:
                if missing.package not in extras:
                    raise ConfigError(str(missing)) from missing.__cause__
                found.missing.append((inner, extras.get(inner, extras[missing.package])))
        _collect(found, module)
    if not found.registry:
        lacking = "".join(f"; {module} needs: {install(extra)}" for module, extra in found.missing)
        raise ConfigError(f"no handler in {', '.join(modules)}: declare one with @handler(Contract){lacking}")
    return found


def install(extra: str) -> str:
    """Return the command that installs what a package has named in `EXTRAS`: one requirement, or several with spaces between."""
    return f"pip install {shlex.join(extra.split())}"


def of_queue(found: Found, queue: str) -> tuple[Found, dict[str, list[str]]]:
    """Return what a worker of a queue runs of what was found, and the types that it leaves out, by the queue of their contract.

    Raises:
        ConfigError: nothing is left to run.
    """
    registry, elsewhere = dict[bytes, Handler[Any]](), dict[str, list[str]]()
    for name, handler in found.registry.items():
        if handler.contract.queue in ("", queue):
            registry[name] = handler
        else:
            elsewhere.setdefault(handler.contract.queue, []).append(handler.contract.type)
    if not registry:
        told = "; ".join(f"{', '.join(types)} of queue {other}" for other, types in elsewhere.items())
        raise ConfigError(f"no handler of queue {queue}: there are {told}; hint: --queue {next(iter(elsewhere))}")
    schedules = {name: one for name, one in found.schedules.items() if one.queue in ("", queue)}
    return msgspec.structs.replace(found, registry=registry, schedules=schedules), elsewhere


class _ExtraMissing(ConfigError):
    def __init__(self, text: str, package: str) -> None:
        super().__init__(text)
        self.package = package


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            hint = "it must be in this folder or installed"
            if "not a package" in str(error):
                hint = f"{name.rpartition('.')[0]} is not a package; --handlers takes modules, and finds the handlers in them"
            raise ConfigError(f"no module named {name}; hint: {hint}") from error
        package = (error.name or "").partition(".")[0]
        raise _ExtraMissing(f"module {name} cannot be imported: {error}", package) from error
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"module {name} cannot be imported: {type(error).__name__}: {error}{_place(error)}") from error


def _place(error: BaseException, ours: int = 3) -> str:
    """Return file and line of what went wrong in the user's code, behind the frames that are ours or importlib's; and before
    those in which we have refused what was given to us.

    Empty for a SyntaxError, which says it itself.
    """
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith("<frozen")]
    if isinstance(error, SyntaxError) or len(frames) < ours:
        return ""
    theirs = [frame for frame in frames[ours - 1 :] if not frame.filename.startswith((_OURS, "<string>"))]
    last = (theirs or frames)[-1]
    return f" ({last.filename}:{last.lineno})"


def _collect(found: Found, module: ModuleType) -> None:
    check = getattr(module, "CHECKS", None)
    if callable(check):
        found.checks[module.__name__] = check
    for value in (*vars(module).values(), *_schedules(module)):
        if isinstance(value, Schedule) and found.schedules.setdefault(value.name, value) is not value:
            raise ConfigError(f"two schedules have the name {value.name!r}; the second is in module {module.__name__}")
        if isinstance(value, Lifespan) and value not in found.lifespans:
            found.lifespans.append(cast("Lifespan[Any]", value))
        if isinstance(value, Hook) and value not in found.hooks:
            found.hooks.append(value)
        if not isinstance(value, Handler):
            continue
        known = found.registry.setdefault(value.contract.type.encode(), cast("Handler[Any]", value))
        if known is not value:
            raise ConfigError(
                f"two handlers for type {value.contract.type!r}: {known.location} and {cast('Handler[Any]', value).location}"
            )


def _schedules(module: ModuleType) -> Sequence[Schedule]:
    made = getattr(module, "SCHEDULES", ())
    if callable(made):
        try:
            made = made()
        except ConfigError as error:
            raise ConfigError(f"schedules of module {module.__name__}: {error}") from error
        except (Exception, SystemExit) as error:
            text = f"{type(error).__name__}: {error}{_place(error, 2)}"
            raise ConfigError(f"schedules of module {module.__name__} cannot be made: {text}") from error
    if not isinstance(made, list | tuple) or not all(isinstance(each, Schedule) for each in cast("list[object]", made)):
        raise ConfigError(f"SCHEDULES of module {module.__name__}: must be a list of Schedule, or a function that returns one")
    return cast("Sequence[Schedule]", made)
