"""Settle decides what becomes of a job after a run, by what its handler raised. Pure: no clock, no I/O."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
import traceback
from collections import deque
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from types import TracebackType
from typing import Any, Final, NoReturn, TypeGuard, TypeVar, cast

from runtime.backoff import MAX_CAP_S, Backoff, delay_s
from runtime.errors import (
    Cancelled,
    ChildFailed,
    Dead,
    Decision,
    JobsError,
    LeaseLost,
    NoPlace,
    NotStarted,
    Retry,
    Snooze,
    TimedOut,
    UnfitPayload,
)
from runtime.jobs import (
    DONE,
    LOST,
    RELEASE,
    Handler,
    Job,
    Outcome,
    Park,
    lot_of,
)

E = TypeVar("E", bound=BaseException)

MAX_SNOOZE_MS: Final = 72 * 3600 * 1000  # in all, from the first snooze on; a guess: a weekend, and then people should look at it
CANCELLED_CODE: Final = "cancelled"  # the reason of a letter, as in common.lua
MAX_CODE_CHARS: Final = 64  # a guess: longer than any code that people sort by
MAX_ERROR_CHARS: Final = 1000  # a guess: a letter is for reading
MAX_NAME_CHARS: Final = 200  # a guess: longer than the name of any class with its module
MAX_STACK_CHARS: Final = 8000  # a guess: some fifty frames
MAX_STACK_FRAMES: Final = 100  # about as many as those characters show, with their lines of source


# --- what an error means -----------------------------------------------------------------------------------------------------

# An exception is the user's: a subclass of Dead may lack what Dead has, and each attribute and method may raise, or return
# anything. Here it is read, inside of a guard. What comes out is made of the runtime's classes, plain texts and numbers, and is
# all that later steps see. Outside of the guard it is asked for its type alone; `isinstance` would ask it for its `__class__`.

_EXCEPTIONS: Final[Callable[[BaseException], tuple[BaseException, ...]]] = BaseExceptionGroup.__dict__["exceptions"].__get__
_TRACEBACK: Final = BaseException.__dict__["__traceback__"].__get__
_SET_TRACEBACK: Final[Callable[[BaseException, TracebackType | None], None]] = BaseException.__dict__["__traceback__"].__set__
_CAUSE: Final[Callable[[BaseException], BaseException | None]] = BaseException.__dict__["__cause__"].__get__
_CONTEXT: Final[Callable[[BaseException], BaseException | None]] = BaseException.__dict__["__context__"].__get__
_NAME: Final[Callable[[type], str]] = type.__dict__["__name__"].__get__
_QUALNAME: Final[Callable[[type], str]] = type.__dict__["__qualname__"].__get__
_MODULE: Final[Callable[[type], object]] = type.__dict__["__module__"].__get__
_WORDS: Final = (Dead, Retry, Snooze)  # the hardest first
_SPEAK_FOR_THEMSELVES: Final = (*_WORDS, UnfitPayload)
# Whose class or stack is elsewhere.
_TOLD_APART = cast("tuple[type[BaseException], ...]", (*_SPEAK_FOR_THEMSELVES, ChildFailed, BaseExceptionGroup))


def decide(handler: Handler[Any], job: Job, error: BaseException | None, jitter: Callable[[], float]) -> Outcome:
    """Return what becomes of a job after a run. Raises nothing, whatever the error's own code does.

    Nothing raised is Done; Dead, Retry or Snooze is taken at its word; all else is a failure. A word that cannot be read is a
    failure too, described together with the error that reading it raised.
    """
    if error is None:
        return DONE
    try:
        word = _word_in(error)
        if word is None:
            return _fail(handler, job, jitter, error)
        outcome = _hear(handler, job, jitter, word)
        if _is(word, Decision) and isinstance(outcome, Decision):
            outcome.asked = True
        return outcome
    except BaseException as second:
        return _fail(handler, job, jitter, error, second)


def as_plain_words(error: BaseException) -> tuple[Any, ...]:
    """Return what was raised as texts and numbers that can be sent to another process, for `raise_again`; its stack is let go."""
    try:
        return _plain_words(error)
    except BaseException as second:
        return "error", _both(error, second), _stacks(error, second), name_of(error)
    finally:
        forget_stack(error)


def _plain_words(error: BaseException) -> tuple[Any, ...]:
    word = _word_in(error)
    if _is(word, Dead):
        return "dead", describe(word), _code(word.code), stack_of(_cause_of(word))
    if _is(word, Snooze):
        return "snooze", describe(word), _seconds(word.delay_s), _pauses(word)
    if _is(word, Retry):
        return "retry", describe(word), _wait_of(word), _pauses(word), stack_of(word)
    if _is(word, UnfitPayload):
        return "bad", describe(word), _code(word.code), stack_of(word)
    return "error", describe(error), stack_of(error), name_of(error)


def raise_again(kind: str, text: str, *more: Any) -> NoReturn:
    """Raise what `as_plain_words` returned in another process.

    Raises:
        Dead, Snooze, Retry, UnfitPayload: the handler's word, or the payload's fault.
        ChildFailed: all else.
    """
    match kind:
        case "dead":
            raise Dead(text, more[0], error=ChildFailed(text, more[1]))
        case "snooze":
            raise Snooze(more[0], text, pause_type=more[1])
        case "retry":
            raise Retry(more[0], text, pause_type=more[1]) from ChildFailed(text, more[2])
        case "bad":
            raise UnfitPayload(text, more[0]) from ChildFailed(text, more[1])
        case _:
            raise ChildFailed(text, *more[:2])


def has_word(error: BaseException) -> bool:
    """Return whether this is Dead, Retry or Snooze, or a group with one of them."""
    return issubclass(type(_word_in(error)), _WORDS)


def _is(error: object, kind: type[E]) -> TypeGuard[E]:
    """Return whether an error is of a kind by its type: `isinstance` would take its `__class__` at its word."""
    return issubclass(type(error), kind)


def _word_in(error: BaseException) -> JobsError | None:
    """Return an error of the runtime's own; of a group the hardest of Dead, Retry and Snooze among its leaves, if any."""
    if not _is_group(type(error)):
        return error if _is(error, JobsError) else None  # most are the user's own
    leaves = _leaves_of(error)
    return next((leaf for word in _WORDS for leaf in leaves if _is(leaf, word)), None)


def _is_group(kind: type[BaseException]) -> bool:
    return issubclass(kind, BaseExceptionGroup)


def _leaves_of(group: BaseException) -> list[BaseException]:
    leaves: list[BaseException] = []
    inner, seen = [group], set[int]()
    while inner:
        error = inner.pop()
        if id(error) in seen:
            continue
        seen.add(id(error))
        if _is_group(type(error)):
            inner.extend(reversed(_EXCEPTIONS(error)))
        else:
            leaves.append(error)
    return leaves


def _hear(handler: Handler[Any], job: Job, jitter: Callable[[], float], word: JobsError) -> Outcome:
    if _is(word, LeaseLost):
        return LOST
    if _is(word, Cancelled):  # this run is no failed attempt: a letter that is sent back has lost none
        return _dead(message_of(word), CANCELLED_CODE, "", is_failure=False)
    if _is(word, NoPlace) and job.count == 1:
        return Park(lot_of(handler.contract.type, job.envelope.version))
    if _is(word, NotStarted):  # and a suspect, which only `isolate` hands out
        return RELEASE
    if _is(word, Dead):  # it ran: its letter counts this run, and has its stack
        return _dead(describe(word), _code(word.code), stack_of(_cause_of(word)))
    if _is(word, UnfitPayload):
        return _dead(describe(word), _code(word.code), stack_of(word), is_failure=False)
    if _is(word, Snooze):
        return _snooze(job, word)
    if _is(word, Retry):
        return _fail(handler, job, jitter, word, wait_s=_wait_of(word), pause_type=_pauses(word))
    return _fail(handler, job, jitter, word)


def _cause_of(word: Dead) -> BaseException:
    error = getattr(word, "error", None)  # a subclass may have a constructor of its own
    return word if error is None else error


def _fail(
    handler: Handler[Any],
    job: Job,
    jitter: Callable[[], float],
    error: BaseException,
    second: BaseException | None = None,
    wait_s: float | None = None,
    pause_type: bool = False,
) -> Outcome:
    """Return what the policy says of a failed run. `second` is what reading the first error raised."""
    text = describe(error) if second is None else _both(error, second)
    attempts, policy_s = _policy(handler, job, jitter)
    if job.attempt >= attempts:
        return _dead(text, "timeout" if issubclass(type(error), TimedOut) else "attempts", _stacks(error, second))
    return Retry(policy_s if wait_s is None else wait_s, text, pause_type=pause_type)


def _both(error: BaseException, second: BaseException) -> str:
    text = f"{describe(error)[: MAX_ERROR_CHARS // 2]} (cannot be taken at its word: {describe(second)})"
    return plain(text, MAX_ERROR_CHARS)


def _stacks(*errors: BaseException | None) -> str:
    return "\n".join(stack for stack in map(stack_of, errors) if stack)[-MAX_STACK_CHARS:]


def _policy(handler: Handler[Any], job: Job, jitter: Callable[[], float]) -> tuple[int, float]:
    """Return how many attempts the job has, and the wait after this one; where the user's own policy raises, the default's."""
    try:
        return int(job.envelope.attempts or handler.retry.attempts), clamp_s(float(delay_s(job.attempt, handler.retry, jitter)))
    except BaseException:
        policy = Backoff()
        return job.envelope.attempts or policy.attempts, delay_s(job.attempt, policy, jitter)


def _dead(text: str, code: str, stack: str, *, is_failure: bool = True) -> Dead:
    dead = Dead(plain(text, MAX_ERROR_CHARS), code)
    dead.stack, dead.is_failure = stack, is_failure
    return dead


def _snooze(job: Job, word: Snooze) -> Outcome:
    since_ms = job.envelope.snoozed_ms
    if since_ms and job.fetched_ms - since_ms > MAX_SNOOZE_MS:
        text = f"snoozed for more than {MAX_SNOOZE_MS // 3_600_000} h: {describe(word)}"
        return _dead(text, "gave-up-waiting", stack_of(word), is_failure=False)
    return Snooze(_seconds(word.delay_s), describe(word), pause_type=_pauses(word))


def _pauses(word: Retry | Snooze) -> bool:
    return getattr(word, "pause_type", False) is True  # a subclass may have a constructor of its own


def _wait_of(word: Retry) -> float | None:
    """Return the wait that a handler has asked for; None for that of its backoff."""
    wait = cast("object", word.delay_s)
    return None if wait is None else _seconds(wait)


def _seconds(wait: object) -> float:
    """Return the wait of a word, whose class may have a constructor of its own."""
    if isinstance(wait, timedelta):
        return clamp_s(wait.total_seconds())
    if isinstance(wait, str | bytes):
        raise TypeError(f"delay_s must be a number of seconds, got {plain(repr(wait), MAX_CODE_CHARS)}")  # float() would take it
    return clamp_s(float(wait))  # pyright: ignore[reportArgumentType]


def clamp_s(wait_s: float) -> float:
    """Return a wait that can be written: what a handler computed may be negative, infinite or no number."""
    if 0.0 <= wait_s <= MAX_CAP_S:
        return wait_s
    return MAX_CAP_S if wait_s > MAX_CAP_S else 0.0


def describe(error: BaseException) -> str:
    """Return the error in one short text, whatever its own message raises; of a group the first of its leaves as well."""
    kind = type(error)
    text = message_of(error)
    if _is_group(kind):
        text = f"{text[: MAX_ERROR_CHARS // 2]}: {describe(_leaves_of(error)[0])}"
    if issubclass(kind, _SPEAK_FOR_THEMSELVES):
        return text
    return plain(f"{_NAME(kind)}: {text}" if text else _NAME(kind), MAX_ERROR_CHARS)


def message_of(error: BaseException) -> str:
    """Return what an error says, whatever saying it raises."""
    try:
        return plain(str(error), MAX_ERROR_CHARS)
    except BaseException as second:
        return f"(its message raised {_NAME(type(second))})"


def name_of(error: BaseException) -> str:
    """Return the name of an error's class with that of its module, which tools group errors by; of built-in ones without."""
    kind = type(error)
    try:
        if _is(error, ChildFailed) and error.name:
            return error.name
        module, name = _MODULE(kind), _QUALNAME(kind)
        return plain(name if type(module) is not str or module == "builtins" else f"{module}.{name}", MAX_NAME_CHARS)
    except BaseException:  # a class may have no module, or anything in its place
        return _NAME(kind)


def origin_of(error: BaseException) -> BaseException | None:
    """Return what a handler failed of: of a Dead the error that it was made of, if that can be seen, else the error itself."""
    if not _is(error, Dead):
        return error
    try:
        cause: object = getattr(error, "error", None)  # a subclass may have a constructor of its own
    except BaseException:
        return None
    return cast("BaseException", cause) if issubclass(type(cause), BaseException) else None


def raised_info(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return what the log and trackers of errors take for what was raised: of a Dead the error that it was made of."""
    origin = origin_of(error)
    shown = error if origin is None else origin
    return type(shown), shown, _TRACEBACK(shown)


def plain(text: str, chars: int) -> str:
    """Return a text of exactly the type `str` that can be written as UTF-8, cut to so many characters.

    A subclass of `str` is asked for nothing; names of files that are no UTF-8 reach Python as lone surrogates.
    """
    if type(text) is str and text.isascii():  # most are: half a microsecond less of each failed run
        return text[:chars]
    return str.encode(str.__getitem__(text, slice(chars)), errors="backslashreplace").decode()


def _code(code: object) -> str:
    """Return a reason as text, whatever the handler gave: of a member of an enumeration, its value."""
    return plain(str(getattr(code, "value", code)), MAX_CODE_CHARS)


def stack_of(error: BaseException | None) -> str:
    """Return where the error came from, newest frames last, cut to what a dead letter should carry; of a group its first leaf."""
    if error is None:
        return ""
    try:
        if _is(error, ChildFailed):
            stack = error.stack  # that of the child; its own is where `raise_again` stands
        else:
            stack = "".join(traceback.format_tb(_TRACEBACK(error), -MAX_STACK_FRAMES)) or str(getattr(error, "stack", ""))
        if _is_group(type(error)):
            stack += stack_of(_leaves_of(error)[0])
        return plain(stack[-MAX_STACK_CHARS:], MAX_STACK_CHARS)
    except BaseException as second:  # a loader that gives no source, an attribute that raises
        return f"(its stack cannot be shown: {describe(second)})"


def frames_of(error: BaseException) -> str:
    """Return where an error came from, newest frame last, without lines of source: 2 µs, where those cost 75 to 96 (measured)."""
    if _is(error, ChildFailed):  # that of the child
        return stack_of(error)
    step, last = _TRACEBACK(error), deque[Any](maxlen=MAX_STACK_FRAMES)
    while step is not None:
        last.append((step.tb_frame.f_code, step.tb_lineno))
        step = step.tb_next
    text = "".join(f'  File "{code.co_filename}", line {line}, in {code.co_name}\n' for code, line in last)
    return plain(text[-MAX_STACK_CHARS:], MAX_STACK_CHARS)


def line_of(error: BaseException, outcome: Retry | Dead) -> str:
    """Return what an attempt failed of: the class of the error, also of the runtime's words, and its message.

    `outcome` is what `decide` made of it; it describes most errors already.
    """
    kind = type(error)
    if not issubclass(kind, _TOLD_APART):
        return str(outcome)
    if issubclass(kind, ChildFailed):
        return message_of(error)  # it says the class in the child
    return describe(error) if _is_group(kind) else f"{_NAME(kind)}: {describe(error)}"


def frame_of(error: BaseException) -> str:
    """Return the newest line of the application's own code that an error came by, as `file:line function`; else one of a library,
    never one of the runtime or of Python itself. Empty where there is none, or it cannot be seen.
    """
    try:
        if issubclass(type(error), _TOLD_APART):
            error = _raised_in(error)
            if _is(error, ChildFailed):
                return _frame_in(error.stack)
        steps = list[TracebackType]()
        step: TracebackType | None = _TRACEBACK(error)
        while step is not None:
            steps.append(step)
            step = step.tb_next
        library = ""
        for step in reversed(steps):
            code = step.tb_frame.f_code
            shown, is_own = _place_of(code.co_filename)
            if is_own or (shown and not library):
                library = f"{shown}:{step.tb_lineno} {code.co_name}"
            if is_own:
                break
        return plain(library, MAX_NAME_CHARS)
    except BaseException:  # an attribute that raises
        return ""


def _raised_in(error: BaseException) -> BaseException:
    """Return the error whose stack says where something failed."""
    if _is(error, Dead):
        error = _cause_of(error)
    if _is(cause := _CAUSE(error), ChildFailed):  # a word that was raised in a child
        error = cause
    return _leaves_of(error)[0] if _is_group(type(error)) else error


def _frame_in(stack: str) -> str:
    library = ""
    for file, line, name in reversed(_FRAME.findall(stack)):
        shown, is_own = _place_of(file)
        if is_own or (shown and not library):
            library = f"{shown}:{line} {name}"
        if is_own:
            break
    return plain(library, MAX_NAME_CHARS)


_FRAME: Final = re.compile(r'^  File "([^"\n]{1,500})", line (\d{1,9}), in (.{1,200})$', re.MULTILINE)
_RUNTIME: Final = os.path.dirname(__file__) + os.sep
_PYTHON: Final = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))
_LIBRARIES: Final = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


@lru_cache(maxsize=1000)  # a guess: more files than handlers fail in
def _place_of(file: str) -> tuple[str, bool]:
    """Return a file as `sys.path` has it, nothing for one of Python or the runtime; and whether it is the application's own."""
    is_library = any(name in file for name in _LIBRARIES)
    if file.startswith((_RUNTIME, "<")) or (not is_library and file.startswith(_PYTHON)):
        return "", False
    folder = max((path for path in sys.path if path and file.startswith(f"{path}{os.sep}")), key=len, default="")
    return file[len(folder) + 1 :] if folder else os.sep.join(file.split(os.sep)[-2:]), not is_library


def module_of(error: BaseException) -> str:
    """Return the name of the module that has raised an error; empty where that cannot be seen."""
    name: object = ""
    step = _TRACEBACK(error)
    while step is not None:
        name, step = step.tb_frame.f_globals.get("__name__"), step.tb_next
    return name if type(name) is str else ""


def told_as(told: E, raised: BaseException) -> E:
    """Return an error that is logged in place of what was raised, with the stack of that."""
    _SET_TRACEBACK(told, _TRACEBACK(raised))
    return told


def copied(outcome: Retry | Dead) -> Retry | Dead:
    """Return an outcome that is the same, for code that might change it."""
    if isinstance(outcome, Retry):
        copy: Retry | Dead = Retry(outcome.delay_s, str(outcome), pause_type=outcome.pause_type)
    else:
        copy = Dead(str(outcome), outcome.code)
        copy.stack, copy.is_failure = outcome.stack, outcome.is_failure
    copy.asked = outcome.asked
    return copy


def forget_own_stack(error: BaseException) -> None:
    """Let go of where an error came from, and of nothing that it holds: that may be another's."""
    _SET_TRACEBACK(error, None)


def forget_stack(error: BaseException) -> None:
    """Let go of where an error, and all that it holds, came from.

    One that is made once and raised by each job, a constant of a module, would add each run to its stack, with all that the
    frames hold. Asks for nothing of the user's.
    """
    _SET_TRACEBACK(error, None)
    if _CAUSE(error) is None and _CONTEXT(error) is None and not _is_group(type(error)):  # most: saves 0.9 µs of a failed run
        return
    held, seen = [error], set[int]()
    while held:
        one = held.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        _SET_TRACEBACK(one, None)
        held += [other for other in (_CAUSE(one), _CONTEXT(one)) if other is not None]
        if _is_group(type(one)):
            held += _EXCEPTIONS(one)
