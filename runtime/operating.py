"""What people order of operations: the part of `Control` that is about many letters or jobs at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeVar
from uuid import uuid4

from runtime.errors import ConfigError, StoreError, StoreUnavailable
from runtime.jobs import Priority
from runtime.operations import (
    ALL_STATES,
    CANARY_S,
    DEAD,
    HOLD_S,
    OPERATION_ID,
    RATE,
    VERBS,
    Filter,
    Operation,
    checked_ms,
    checked_rate,
    chosen_words,
    operation_words,
)
from runtime.store.base import Step
from runtime.store.control import place_in
from runtime.store.inspector import is_letter
from runtime.store.operations import OperationStore

T = TypeVar("T")
TRASH: Final = "trash"
Verb = Literal["replay", "purge", "trash", "cancel", "now", "priority"]


class OperationControl:
    """Orders operations and reads them. A Control is one; `by` and the store are its own."""

    def __init__(self, by: str, operation_store: OperationStore, check_reason: Callable[[Any], None]) -> None:
        self.by: str = by
        self._operation_store = operation_store
        self._check_reason = check_reason

    async def operate(
        self,
        verb: Verb,
        filter: Filter,
        *,
        priority: str | Priority = "",
        states: Sequence[str] = ALL_STATES,
        rate: float = RATE,
        hold_s: float = HOLD_S,
        canary_s: float = CANARY_S,
        total: int | None = None,
        id: str = "",
        reason: str = "",
        all: bool = False,
    ) -> Operation:
        """Do something to all letters or jobs that fit, in steps that any worker makes; return the operation.

        What is meant is what is there now. It is held first: stopped within that time, nothing was done. May be repeated with the
        same id: there is one operation then.

        Args:
            verb: `replay` or `purge` dead letters, or move them to the `trash`; `cancel` jobs, let delayed ones start `now`, or
                give them another `priority`.
            filter: which ones; one that chooses nothing needs `all`.
            priority: the name of the new one, with `priority`.
            states: some of `waiting`, `running` and `delayed`: which jobs are meant, by how they are found when it is their turn;
                for `cancel` and `priority`, which moves none that a worker has.
            rate: how many per second, 0.01 to 20,000; 0 for the highest.
            hold_s: for how many seconds it is held, up to 900.
            canary_s: a replay sends five letters and then waits for so many seconds before the rest, up to 900.
            total: how many are meant, where they were counted, for those who look at it.
            id: of the operation, up to 64 of a-z, 0-9, `.`, `_` and `-`; a new one where it is empty.
            reason: for people, up to 500 characters.
            all: all there are, where the filter is empty.

        Raises:
            ConfigError: an argument cannot be used, or there are too many operations; nothing is done.
            StoreUnavailable: no answer or an error; it may or may not be ordered.
        """
        words = operation_words(verb, filter, argument=priority, states=states, rate=rate, canary_s=canary_s, total=total)
        if filter.is_any and not all:
            raise ConfigError(f"the filter chooses nothing, which would {verb} all there are; hint: Filter(type=…), or all=True")
        return await self._create(id or f"{verb}-{uuid4().hex[:8]}", words, hold_s, reason)

    async def operate_on(
        self,
        verb: Verb,
        places: Sequence[str],
        *,
        priority: str | Priority = "",
        rate: float = RATE,
        hold_s: float = HOLD_S,
        canary_s: float = CANARY_S,
        id: str = "",
        reason: str = "",
    ) -> Operation:
        """Do something to letters or jobs that were chosen one by one, as `operate` does to those that fit; return the operation.

        What is not at its place any more when it is its turn is counted as gone. For the other arguments see `operate`.

        Args:
            places: up to 200,000, such as `dead/1732400000000-0`, `high/1732400000000-0` or `due/order-1`.

        Raises:
            ConfigError: an argument cannot be used, or there are too many operations; nothing is done.
            StoreUnavailable: no answer or an error; it may or may not be ordered.
        """
        token = uuid4().hex
        chosen = [" ".join(_checked_place(verb, place)) for place in dict.fromkeys(places)]
        words = chosen_words(verb, chosen, argument=priority, rate=rate, canary_s=canary_s, token=token)
        name = _checked_id(id or f"{verb}-{uuid4().hex[:8]}")
        self._check_reason(reason)
        await self._operation_store.choose(name, token, chosen)
        return await self._create(name, words, hold_s, reason)

    async def _create(self, name: str, words: Mapping[str, str], hold_s: float, reason: str) -> Operation:
        hold_ms = checked_ms("hold_s", hold_s)
        flat = [word for pair in words.items() for word in pair]
        await self._operate("create", name, reason, str(hold_ms), *flat)
        made = await self._operation_store.operation(name)
        if made is None:
            raise StoreError(f"operation {name} is gone, right after it was made")
        return made

    async def trash(self, *letters: str, reason: str = "") -> list[str]:
        """Move dead letters to the trash, from which they can be restored for a week.

        May be repeated: a letter that was moved is gone.

        Args:
            letters: their places, such as `dead/1732400000000-0`.
            reason: for people, up to 500 characters.

        Returns:
            For each letter `moved` and its place in the trash, or `gone`, or the error that the server answered for this one.

        Raises:
            ConfigError: an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; some may be moved.
        """
        return await self._move_letters("trash", DEAD, letters, reason)

    async def restore(self, *letters: str, reason: str = "") -> list[str]:
        """Take letters out of the trash; they are dead letters again. Places are such as `trash/1732400000000-0`; see `trash`."""
        return await self._move_letters("restore", TRASH, letters, reason)

    async def _move_letters(self, verb: str, where: str, letters: Sequence[str], reason: str) -> list[str]:
        self._check_reason(reason)
        entries = [_checked_letter(where, letter) for letter in letters]
        answers = await _repeated(lambda: self._operation_store.move_letters(verb, self.by, reason, entries))
        to = TRASH if where == DEAD else DEAD
        return [answer.replace("moved ", f"moved {to}/", 1) for answer in answers]

    async def _amend(self, letter: str, stream: int, message: Sequence[bytes | str | int], reason: str) -> tuple[str, str]:
        """Send a job in the place of a letter; return what came of it, as amend.lua says."""
        return await self._operation_store.amend(_checked_letter(DEAD, letter), self.by, reason, stream, message)

    async def meant(
        self, verb: Verb, filter: Filter, *, priority: str | Priority = "", states: Sequence[str] = ALL_STATES
    ) -> AsyncGenerator[list[str]]:
        """Yield the places of what an operation would be about now, a few at a time: `dead 12-0`, `high 12-0`, `due member`.

        Raises:
            ConfigError: an argument cannot be used.
            StoreUnavailable: no answer or an error.
        """
        words = operation_words(verb, filter, argument=priority, states=states, rate=RATE, canary_s=CANARY_S, total=None)
        async for places, _ in self._operation_store.meant(words):
            yield places

    async def count_meant(
        self, verb: Verb, filter: Filter, *, priority: str | Priority = "", states: Sequence[str] = ALL_STATES
    ) -> int:
        """Return how many letters or jobs an operation would be about now; reads all that it would walk through, in small parts.

        Raises:
            ConfigError: an argument cannot be used.
            StoreUnavailable: no answer or an error.
        """
        return sum([len(places) async for places in self.meant(verb, filter, priority=priority, states=states)])

    async def operations(self) -> list[Operation]:
        """Return the operations that are known, the newest first: for a week after their last step.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self._operation_store.operations()

    async def operation(self, id: str) -> Operation | None:
        """Return an operation, None where there is none.

        Raises:
            ConfigError: it is no id.
            StoreUnavailable: no answer or an error.
        """
        return await self._operation_store.operation(_checked_id(id))

    async def stop_operation(self, id: str, *, reason: str = "") -> bool:
        """Stop an operation: the rest stays where it is. Return whether that changed anything, as each verb below.

        Raises:
            ConfigError: there is none, or an argument cannot be used.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        return await self._operate("stop", id, reason)

    async def resume_operation(self, id: str, *, reason: str = "") -> bool:
        """Let an operation go on that was stopped or has braked; raises as `stop_operation`."""
        return await self._operate("resume", id, reason)

    async def set_operation_rate(self, id: str, rate: float, *, reason: str = "") -> bool:
        """Set how many per second an operation moves from now on; raises as `stop_operation`."""
        return await self._operate("rate", id, reason, f"{checked_rate(rate):.6g}")

    async def drop_operation(self, id: str, *, reason: str = "") -> bool:
        """End an operation where it is, and forget it; raises as `stop_operation`."""
        return await self._operate("drop", id, reason)

    async def step_operation(self, id: str) -> Step:
        """Make the next step of an operation, as workers do, where it is time for it: it goes on without a worker so.

        Raises:
            ConfigError: it is no id.
            StoreUnavailable: no answer or an error.
        """
        return await self._operation_store.step(_checked_id(id))

    async def _operate(self, verb: str, id: str, reason: str, *words: str) -> bool:
        self._check_reason(reason)
        name = _checked_id(id)
        state, changed = await _repeated(lambda: self._operation_store.operate(verb, name, self.by, reason, *words))
        if state == "gone" and verb != "drop":
            raise no_operation(name)
        return changed


def no_operation(name: str) -> ConfigError:
    """Return the error that says that there is no such operation."""
    return ConfigError(f"no operation {name!r}; hint: `operations list` shows those that are known")


async def _repeated(call: Callable[[], Awaitable[T]]) -> T:
    """Call again once where the answer was lost, or the server has closed a connection that stood idle."""
    try:
        return await call()
    except StoreError:
        raise
    except StoreUnavailable:
        return await call()


def _checked_place(verb: str, place: str) -> tuple[str, str]:
    """Return the name of a stream, `due` or `dead`, and what stands for the letter or job there."""
    if VERBS.get(verb):
        return DEAD, _checked_letter(DEAD, place)
    if not isinstance(place, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"{place!r:.60}: must be the place of a job, such as high/1732400000000-0 or due/order-1")
    place_in(place)
    name, _, entry = place.partition("/")
    return name, entry


def _checked_letter(where: str, place: Any) -> str:
    name, _, entry = place.partition("/") if isinstance(place, str) else ("", "", "")
    if name != where or not is_letter(entry):
        raise ConfigError(f"{place!r:.60}: must be the place of a letter, such as {where}/1732400000000-0")
    return entry


def _checked_id(id: Any) -> str:
    if not isinstance(id, str) or not OPERATION_ID.match(id):
        raise ConfigError(f"id must be 1 to 64 of a-z, 0-9, `.`, `_` and `-`, with a letter or digit first, got {id!r:.60}")
    return id
