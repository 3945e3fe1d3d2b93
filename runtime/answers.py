"""What a handler returns: usually nothing of interest, now and then work that is still to be done.

An answer is the user's object, and asked for its type alone: a proxy whose target is gone raises at everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from concurrent.futures import Future
from itertools import starmap
from types import CoroutineType, GeneratorType
from typing import Any, Final, cast

from runtime import logs
from runtime.errors import NeverRan
from runtime.jobs import LANE, Handler, Job, Kept, ResultPolicy

log: Final = logs.guarded("runtime")

MAX_DEPTH: Final = 8  # a guess: more than decorators lie upon each other
MANY: Final = 8  # a guess: so many of a list are looked at; coroutines in it stand from the start

# What calling a function can return in place of its work. A handler that wants such a thing consumed does it itself.
_NEVER_RUN: Final = (
    Generator,
    AsyncGenerator,
    map,
    filter,
    starmap,
    contextlib._GeneratorContextManager,  # pyright: ignore[reportPrivateUsage]
    contextlib._AsyncGeneratorContextManager,  # pyright: ignore[reportPrivateUsage]
)
_AWAITED: Final = (Awaitable, Future)
_OPEN: Final = (*_AWAITED, *_NEVER_RUN)  # asked at once, since most answers are none of them
# Most answers that are kept: seen without asking for abstract classes, which is a tenth of what such a job costs its worker.
_SETTLED: Final = frozenset((dict, str, int, float, bool, type(None)))


async def finish(answer: object) -> object:
    """Await what a handler returned in place of its work, such as the coroutine of an `async def` under a plain decorator.

    Return what comes of it in the end.

    Raises:
        NeverRan: it, or what came of it, cannot be awaited and nothing of it has run; or each awaited answer gives another.
    """
    for _ in range(MAX_DEPTH):
        if not is_to_do(answer):
            return answer
        rest = asyncio.wrap_future(cast("Future[object]", answer)) if _is_a(answer, Future) else cast("Awaitable[object]", answer)
        given = await rest
        if given is answer:  # a Redis client returns itself, ready for use
            return answer
        answer = given
    raise NeverRan(f"the handler returned a {_name_of(answer)}, and each that is awaited gives another: {MAX_DEPTH} times")


def is_to_do(answer: object) -> bool:
    """Return whether work is still to be waited for before a job is done.

    Raises:
        NeverRan: nothing of the answer has run.
    """
    if _is_a(answer, _OPEN):
        if _is_a(answer, _AWAITED) or (_is_a(answer, GeneratorType) and inspect.isawaitable(answer)):
            return True
        what = _name_of(answer)
        raise NeverRan(f"the handler returned a {what}, so that nothing of it has run: call its steps, or loop over it")
    kind = type(answer)
    if (kind is list or kind is tuple) and any(map(_is_unborn, cast("list[object]", answer)[:MANY])):
        raise NeverRan("the handler returned coroutines in a list, so that nothing of them has run: await each, or gather them")
    return False


def note_lost(handler: Handler[Any], answer: object) -> None:
    """Log that what a handler returns is thrown away, unless it is nothing: once for each type and process."""
    name = handler.contract.type
    if answer is not None and name not in _lost:
        _lost.add(name)
        text = "%s: what its handler returns is thrown away; hint: @handler(…, result_ttl_s=3600) keeps it for Producer.result"
        log.warning(text, name)


_lost: Final = set[str]()  # types that were logged: no more than this process has handlers of


def keeping(run: Callable[[Any, Job], Awaitable[object]], policy: ResultPolicy) -> Callable[[Any, Job], Awaitable[object]]:
    """Return what runs a handler and has what it answers kept for those who wait for it.

    What a child process answers comes as the result that it made of it.
    """

    async def run_and_keep(payload: Any, job: Job) -> None:
        answer = await run(payload, job)
        made = job.extras.result if job.extras is not None else None
        value = policy.encode(answer if type(answer) in _SETTLED else await finish(answer)) if made is None else made
        lane = LANE.get()
        if lane is not None:
            lane.keep(Kept(job.id, value, policy.life_ms))

    return run_and_keep


def _is_a(answer: object, kinds: Any) -> bool:
    try:
        return issubclass(type(answer), kinds)
    except Exception:  # a class of classes may refuse even that
        return False


def _is_unborn(one: object) -> bool:
    return type(one) is CoroutineType and inspect.getcoroutinestate(cast("Any", one)) == inspect.CORO_CREATED


def _name_of(answer: object) -> str:
    return type(answer).__name__.strip("_").replace("_", " ")
