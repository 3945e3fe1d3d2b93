"""What a handler gives back: nothing of ours, or work that is still to be done.

An answer is the user's, and asked for its type only: a proxy that points nowhere any more raises at everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Generator
from concurrent.futures import Future
from itertools import starmap
from types import CoroutineType, GeneratorType
from typing import Any, Final, cast

from runtime.errors import NeverRan

MAX_DEPTH: Final = 8  # a guess: more than decorators lie upon each other
MANY: Final = 8  # so many of a list are looked at

# What calling a function can give in place of its work. Whoever consumes such a thing does it in the handler.
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


async def finish(answer: object) -> None:
    """Wait for what a handler gave back instead of its work: a coroutine of an `async def` under a plain decorator, say.

    Raises:
        NeverRan: it, or what came of it, is something that cannot be awaited and of which nothing has run; or there is no end.
    """
    for _ in range(MAX_DEPTH):
        if not is_to_do(answer):
            return
        rest = asyncio.wrap_future(cast("Future[object]", answer)) if _is_a(answer, Future) else cast("Awaitable[object]", answer)
        given = await rest
        if given is answer:  # a client of Redis gives itself, ready for use
            return
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


def _is_a(answer: object, kinds: Any) -> bool:
    try:
        return issubclass(type(answer), kinds)
    except Exception:  # a class of classes may refuse even that
        return False


def _is_unborn(one: object) -> bool:
    return type(one) is CoroutineType and inspect.getcoroutinestate(cast("Any", one)) == inspect.CORO_CREATED


def _name_of(answer: object) -> str:
    return type(answer).__name__.strip("_").replace("_", " ")
