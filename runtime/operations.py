"""Operations are what people do to many dead letters or jobs at once, in small steps that any worker makes: their words. Pure.

What is meant is what is there when it is ordered, and never what comes later. lua/operations.lua reads the same words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from runtime.codec import DEAD_REASON, GROUP, ID, KEY, MAX_DIGITS, TYPE
from runtime.errors import ConfigError
from runtime.jobs import STREAMS, Priority

# What each verb does to one letter or job, and whether it is about letters.
VERBS: Final = {"replay": True, "purge": True, "trash": True, "cancel": False, "now": False, "priority": False}
DEAD: Final = "dead"
DUE: Final = "due"
CHOSEN: Final = "chosen"
MAX_CHOSEN: Final = 200_000  # places of one operation; a guess: 4 MB in the store
WAITING, RUNNING, DELAYED = "waiting", "running", "delayed"  # states of jobs that may be asked for alone
ALL_STATES: Final = (WAITING, RUNNING, DELAYED)
ACTIVE: Final = ("held", "running")
STATES: Final = (*ACTIVE, "stopped", "braked", "done")
OPERATION_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(?![\s\S])")
MIN_RATE: Final = 0.01  # per second, as operations.lua has it
MAX_RATE: Final = 20_000.0  # per second, as operations.lua has it
RATE: Final = 1000.0  # per second where none is given: a guess, 2 % of a server's time
HOLD_S: Final = 10.0  # a guess: so long people need to see that they meant something else
CANARY: Final = 5  # letters that a replay sends first, as step.lua has it
CANARY_S: Final = 10.0  # a guess: a failing cause shows in a few that are sent first, and soon
MAX_WAIT_S: Final = 900.0  # of both, as operations.lua has it
MAX_VALUE: Final = 512  # characters of a word of a filter; a guess, as long as a key may be
_EQUAL: Final = {"type": TYPE, "reason": DEAD_REASON, "id": ID, "key": KEY, "group": GROUP, "priority": b"priority"}
_COUNTED: Final = "refused:"
_TEXTS: Final = ("verb", "state", "argument", "only", "by", "reason", "error")


class Filter(msgspec.Struct, frozen=True):
    """Which letters or jobs are meant: those that fit every word; an empty one, and a time of 0, means any.

    `after_ms` and `before_ms` are times since the epoch: when a letter died, when a job was sent for the first time. `text` is
    contained in the error of a letter.
    """

    type: str = ""
    reason: str = ""
    id: str = ""
    key: str = ""
    group: str = ""
    priority: str = ""
    text: str = ""
    after_ms: int = 0
    before_ms: int = 0

    @property
    def is_any(self) -> bool:
        """Whether all there is are meant."""
        return self == Filter()

    def words(self) -> dict[str, str]:
        """Return the fields of an operation's hash that say this."""
        equal = {f"is:{name.decode()}": getattr(self, word) for word, name in _EQUAL.items() if getattr(self, word)}
        times = {name: str(ms) for name, ms in (("after", self.after_ms), ("before", self.before_ms)) if ms}
        return equal | times | ({"text": self.text} if self.text else {})

    @classmethod
    def read(cls, fields: Mapping[str, str]) -> Filter:
        """Return the filter that the fields of an operation's hash say."""
        equal: dict[str, Any] = {word: fields.get(f"is:{name.decode()}", "") for word, name in _EQUAL.items()}
        times: dict[str, Any] = {"after_ms": _number(fields.get("after", "")), "before_ms": _number(fields.get("before", ""))}
        return cls(text=fields.get("text", ""), **equal, **times)

    def __str__(self) -> str:
        told = [f"{word} {getattr(self, word)}" for word in (*_EQUAL, "text") if getattr(self, word)]
        return ", ".join(told) or "all"


class Operation(msgspec.Struct, frozen=True):
    """An operation as it stood when it was read; times are the server's, in ms.

    `state` is `held` before its first step, `running`, `stopped` by people or by what `error` says, `braked` where too many of
    the letters that it sent back died again, or `done`. `total` is how many were meant when they were counted, None where nobody
    has. `done` were moved, `asked` of them run and were asked to end, `again` of them are dead letters once more, `refused` were
    left where they are, by the reason. `only` says that of the jobs in streams only those are meant that wait, or that run. Its
    next step is due at `due_ms`, 0 where it rests; it was read at `read_ms`.
    """

    id: str
    verb: str
    state: str
    argument: str = ""
    sources: tuple[str, ...] = ()
    only: str = ""
    filter: Filter = Filter()
    rate: float = 0.0
    total: int | None = None
    looked: int = 0
    done: int = 0
    asked: int = 0
    again: int = 0
    refused: dict[str, int] = {}
    by: str = ""
    reason: str = ""
    created_ms: int = 0
    stepped_ms: int = 0
    ended_ms: int = 0
    error: str = ""
    due_ms: int = 0
    read_ms: int = 0

    @property
    def is_active(self) -> bool:
        """Whether it goes on by itself."""
        return self.state in ACTIVE

    @property
    def is_chosen(self) -> bool:
        """Whether it is about letters or jobs that were chosen one by one."""
        return self.sources == (CHOSEN,)

    @property
    def left(self) -> int | None:
        """How many of those counted are still to come, None where nobody has counted them."""
        return None if self.total is None else max(0, self.total - self.done - sum(self.refused.values()))

    @property
    def what(self) -> str:
        """What is done to which, for people."""
        if self.is_chosen:
            return f"{self.verb}{' ' + self.argument if self.argument else ''} of {self.total or 0:,} that were chosen"
        of = DEAD if self.sources == (DEAD,) else " ".join(self.sources)
        only = f" ({self.only} ones only)" if self.only else ""
        return f"{self.verb}{' ' + self.argument if self.argument else ''} of {of}{only}: {self.filter}"


def read_operation(name: str, fields: Mapping[str, str]) -> Operation:
    """Return the operation that a hash is; what of it cannot be read is as if it were not there: it may be a stranger's."""
    counts: dict[str, Any] = {member: _number(fields.get(member, "")) for member in ("looked", "done", "asked")}
    refused = {told[len(_COUNTED) :]: _number(value) for told, value in fields.items() if told.startswith(_COUNTED)}
    texts: dict[str, Any] = {member: fields.get(member, "") for member in _TEXTS}
    times: dict[str, Any] = {f"{member}_ms": _number(fields.get(member, "")) for member in ("created", "stepped", "ended")}
    return Operation(
        id=name,
        sources=tuple(fields.get("source", "").split()),
        filter=Filter.read(fields),
        rate=_rate(fields.get("rate", "")),
        total=_number(fields["total"]) if fields.get("total") else None,
        again=_number(fields.get("died", "")),
        refused=refused,
        **texts,
        **counts,
        **times,
    )


def operation_words(
    verb: str, filter: Filter, *, argument: Any, states: Any, rate: float, canary_s: float, total: int | None
) -> dict[str, str]:
    """Return the fields with which an operation begins.

    Raises:
        ConfigError: a word cannot be used.
    """
    if verb not in VERBS:
        raise ConfigError(f"no operation {verb!r}; there are {', '.join(VERBS)}")
    _check(filter, is_of_letters=VERBS[verb])
    _check_states(verb, states)
    words = {"verb": verb, "source": " ".join(_sources(verb, argument, states)), "rate": f"{checked_rate(rate):.6g}"}
    words |= _only(verb, states)
    if verb == "priority":
        words["argument"] = priority_name(argument)
    elif argument:
        raise ConfigError(f"{verb} takes no priority")
    if verb == "replay":
        words["canary_ms"] = str(checked_ms("canary_s", canary_s))
    if total is not None:
        words["total"] = str(total)
    return words | filter.words()


def chosen_words(verb: str, places: Sequence[str], *, argument: Any, rate: float, canary_s: float, token: str) -> dict[str, str]:
    """Return the fields with which an operation begins that is about places that were chosen one by one, in the list `token`.

    Raises:
        ConfigError: a word cannot be used, or the places are none, or too many.
    """
    if not 0 < len(places) <= MAX_CHOSEN:
        raise ConfigError(f"places must be between 1 and {MAX_CHOSEN:,}, got {len(places):,}")
    words = operation_words(verb, Filter(), argument=argument, states=ALL_STATES, rate=rate, canary_s=canary_s, total=len(places))
    words.pop("only", None)
    return words | {"source": CHOSEN, "chosen": token}


def priority_name(priority: Any) -> str:
    """Return the name of a priority.

    Raises:
        ConfigError: it is none.
    """
    name = priority.name.lower() if isinstance(priority, Priority) else priority
    if name not in STREAMS:
        raise ConfigError(f"priority must be one of {', '.join(STREAMS)}, got {name!r:.60}")
    return str(name)


def checked_rate(rate: Any) -> float:
    """Return a rate per second; 0 means the highest.

    Raises:
        ConfigError: it is none.
    """
    if rate == 0:
        return MAX_RATE
    if not (isinstance(rate, int | float) and math.isfinite(rate) and MIN_RATE <= rate <= MAX_RATE):
        raise ConfigError(
            f"rate must be between {MIN_RATE:g} and {MAX_RATE:,.0f} per second, or 0 for the highest, got {rate!r:.60}"
        )
    return float(rate)


def checked_ms(name: str, wait_s: Any) -> int:
    """Return a time to wait in ms.

    Raises:
        ConfigError: it is none.
    """
    if not (isinstance(wait_s, int | float) and math.isfinite(wait_s) and 0 <= wait_s <= MAX_WAIT_S):
        raise ConfigError(f"{name} must be between 0 and {MAX_WAIT_S:g} s, got {wait_s!r:.60}")
    return int(wait_s * 1000)


def _sources(verb: str, argument: Any, states: Any) -> tuple[str, ...]:
    """Return where a verb looks, in order: what becomes due meanwhile is met in its stream, which is walked later."""
    if VERBS[verb]:
        return (DEAD,)
    if verb == "now":
        return (DUE,)
    streams = [name for name in STREAMS if verb != "priority" or name != priority_name(argument)]
    return (*([DUE] if DELAYED in states else []), *(streams if WAITING in states or RUNNING in states else []))


def _only(verb: str, states: Any) -> dict[str, str]:
    """Return the word that says which jobs of the streams are meant, where not all are; those that run are never moved."""
    meant = [state for state in (WAITING, RUNNING) if state in states and (verb, state) != ("priority", RUNNING)]
    return {"only": meant[0]} if verb in ("cancel", "priority") and len(meant) == 1 else {}


def _check_states(verb: str, states: Any) -> None:
    if not states or [state for state in states if state not in ALL_STATES]:
        raise ConfigError(f"states must be some of {', '.join(ALL_STATES)}, got {states!r:.60}")
    if verb == "priority" and WAITING not in states and DELAYED not in states:
        raise ConfigError("states must name waiting or delayed ones: what a worker has is not moved")


def _check(filter: Any, *, is_of_letters: bool) -> None:
    if not isinstance(filter, Filter):
        raise ConfigError(f"filter must be a Filter, got {repr(filter)[:60]}; hint: Filter(type='send-email')")
    for word in (*_EQUAL, "text"):
        value: Any = getattr(filter, word)
        if not isinstance(value, str) or len(value) > MAX_VALUE:
            raise ConfigError(f"{word} must be a text of up to {MAX_VALUE} characters, got {value!r:.60}")
    for word in ("after_ms", "before_ms"):
        value = getattr(filter, word)
        if not isinstance(value, int) or value < 0:
            raise ConfigError(f"{word} must be a time in ms since the epoch, got {value!r:.60}")
    if filter.priority:
        priority_name(filter.priority)
    if not is_of_letters and (filter.reason or filter.text):
        raise ConfigError("reason and text are words about dead letters, which this operation is not about")


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else 0


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        return 0.0
    return rate if math.isfinite(rate) else 0.0
