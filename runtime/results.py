"""Results: what a job has answered, or died of, as it is kept in Redis for those who wait for it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, cast, get_args, get_origin

import msgspec
from msgspec import inspect

from runtime.codec import holds_no_number
from runtime.errors import BadResult, ConfigError
from runtime.jobs import ResultPolicy

DONE, DEAD = "done", "dead"  # states
MAX_RESULT_BYTES: Final = 64 * 1024  # a guess: Redis is no store of files, and this much for 10 minutes is bearable
MIN_LIFE_S: Final = 1.0  # a guess: below it, a reader who connects again may come too late
MAX_LIFE_S: Final = 7 * 24 * 3600.0  # a guess: as long as anything that stands still is kept
MAX_TEXT_BYTES: Final = MAX_RESULT_BYTES + 1024  # of what stands in Redis: the value, and the words around it
_NO_NUMBERS: Final = re.compile(rb'null|"nan":|"-?inf":').search  # what JSON holds where NaN or infinity stands, or is a key
_WORK: Final = ("Awaitable", "Coroutine", "Future", "Task")  # annotations of what is awaited: its last argument is the answer


class Result(msgspec.Struct, frozen=True, gc=False):
    """What stands in Redis of a job that is over: `state` is done, with its `value`, or dead, with why. `at` is in ms."""

    state: str
    at: int = 0
    value: msgspec.Raw = msgspec.Raw(b"null")
    reason: str = ""
    error: str = ""
    attempts: int = 0


_read: Final = msgspec.json.Decoder(Result).decode
_write: Final = msgspec.json.Encoder().encode
_skip: Final = msgspec.json.Decoder(msgspec.Raw).decode  # measured: 0.1 µs for a small result, 6 µs for 3.5 KB


def done_head(at_ms: int) -> bytes:
    """Return what is kept of a job that is done, up to its value, which is JSON; behind that stands a brace."""
    return b'{"state":"done","at":%d,"value":' % at_ms


def dead_text(reason: str, error: str, attempts: int, at_ms: int) -> bytes:
    """Return what is kept of a job that is a dead letter."""
    return _write({"state": DEAD, "at": at_ms, "reason": reason, "error": error, "attempts": attempts})


def parse(text: bytes) -> Result | None:
    """Return what a text says of a job; None where it is nothing that a worker wrote."""
    try:
        result = _read(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return result if result.state in (DONE, DEAD) else None


def reader_of(kind: Any) -> Callable[[msgspec.Raw], Any]:
    """Return what reads the value of a job that is done as this type, or raises BadResult.

    Raises:
        ConfigError: the type cannot be read from JSON.
    """
    try:
        decode = msgspec.json.Decoder(kind).decode
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"a result of type {_name_of(kind)} cannot be read from JSON: {error}") from None

    def read(value: msgspec.Raw) -> Any:
        try:
            return decode(value)
        except (ValueError, TypeError, RecursionError) as error:
            raise BadResult(f"the result is no {_name_of(kind)}: {error}") from None

    return read


# --- what a handler may answer ---------------------------------------------------------------------------------------------


def result_policy(life_s: float | None, annotation: Any, is_of_many: bool = False) -> ResultPolicy | None:
    """Return the policy of a type whose results are kept so long, if they are; `annotation` says what its handler returns.

    Raises:
        ConfigError: the time is out of its bounds, the annotation is of something that cannot be written as JSON, or the handler
            takes many jobs at once.
    """
    if life_s is None:
        return None
    if is_of_many:
        raise ConfigError("result_ttl_s must not be given with max_size: a handler of many jobs has no answer for each")
    if type(life_s) not in (int, float) or not MIN_LIFE_S <= life_s <= MAX_LIFE_S:
        raise ConfigError(f"result_ttl_s must be a number of seconds from {MIN_LIFE_S:g} to {MAX_LIFE_S:g}, got {life_s!r}")
    return ResultPolicy(round(life_s * 1000), _encoder(_answer_of(annotation)))


def _answer_of(annotation: Any) -> Any:
    """Return what comes of the work that an annotation names, for plain functions that return an awaitable."""
    is_work = getattr(get_origin(annotation), "__name__", "") in _WORK and get_args(annotation)
    return get_args(annotation)[-1] if is_work else annotation


def _encoder(kind: Any) -> Callable[[object], bytes]:
    decode, like = _decoder_of(kind), "" if _is_anything(kind) else f" {_name_of(kind)}, as the handler is annotated"

    def encode(answer: object) -> bytes:
        try:
            value = _write(answer)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise BadResult(f"the result cannot be written as JSON: {error}") from None
        if len(value) > MAX_RESULT_BYTES:
            text = f"result of {len(value):,} bytes, the limit is {MAX_RESULT_BYTES:,}"
            raise BadResult(f"{text}; hint: store it elsewhere and return a reference")
        if _NO_NUMBERS(value) and holds_no_number(answer):
            raise BadResult("the result holds NaN or infinity, which JSON cannot write")
        try:
            decode(value.decode())  # also where anything may be answered: there may be a `msgspec.Raw` in it, which is as it is
        except (ValueError, TypeError, RecursionError) as error:
            raise BadResult(f"the result is no{like or ' JSON'}: {error}") from None
        return value

    return encode


def _is_anything(kind: Any) -> bool:
    return kind is Any or kind is object


def _decoder_of(kind: Any) -> Callable[[str], object]:
    """Return what reads a result by the type that its handler names; where that says nothing, what checks that it is JSON.

    Raises:
        ConfigError: the type is none that msgspec can write and read.
    """
    if _is_anything(kind):
        return _skip
    try:
        strange = _strange_in(inspect.type_info(kind))
        decode = msgspec.json.Decoder(kind).decode
    except Exception as error:  # what is annotated may be anything
        raise ConfigError(f"a result of type {_name_of(kind)} cannot be JSON: {error}") from None
    if strange:
        raise ConfigError(f"a result of type {_name_of(kind)} cannot be JSON: msgspec does not know {strange}")
    return decode


def _strange_in(kind: inspect.Type) -> str:
    """Return the name of a class in a type that msgspec can neither write nor read, or nothing."""
    todo: list[object] = [kind]
    seen: set[int] = set()
    while todo:
        found = todo.pop()
        if isinstance(found, inspect.CustomType):
            return _name_of(found.cls)
        if isinstance(found, list | tuple):
            todo += cast("list[object]", found)
        elif isinstance(found, inspect.Type | inspect.Field) and id(found) not in seen:  # a type may hold itself
            seen.add(id(found))
            todo += [getattr(found, name) for name in found.__struct_fields__ if name not in ("default", "default_factory")]
    return ""


def _name_of(kind: Any) -> str:
    return kind.__qualname__ if isinstance(kind, type) else str(kind)
