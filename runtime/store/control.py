"""Writes by people: rules, dead letters sent back or deleted, and the opening of a stream that an id far ahead has closed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from runtime.codec import as_text
from runtime.errors import ConfigError, StoreError
from runtime.jobs import STREAMS
from runtime.rules import Rules
from runtime.store.base import AHEAD_MS, Operation, WorkerRow, is_code, ms_in, parse_int, texts
from runtime.store.inspector import is_letter
from runtime.store.operations import OperationStore

STEER_PLACES: Final = 500  # of one call, as steer.lua has it: each costs a few µs of the server
STEER_ANSWERS: Final = ("cancelled", "asked", "moved", "same", "held", "gone", "full")
AUDIT_ENTRIES: Final = 10_000  # as audit.lua has it
REOPEN_IDS: Final = 500  # a guess: entries moved by one call, a few milliseconds of the server


class Change(msgspec.Struct, frozen=True):
    """An entry of the audit: when (the server's ms), by whom and why, and what was changed, an operation in each line."""

    at_ms: int
    by: str
    reason: str
    what: str


class ChangedMeanwhile(ConfigError):
    """What was to be changed is not what it was when it was read: read it again."""


class ControlStore(OperationStore):
    """A person's verbs that change a queue. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str = "control") -> None:
        super().__init__(url, queue, name)

    async def order(self, by: str, reason: str, operations: Sequence[Operation]) -> list[bool]:
        """Change rules, all together or none; return of each operation whether it changed anything.

        May be repeated: what stands as it is ordered is left alone.

        Raises:
            ConfigError: an operation is none, or there would be too many rules.
            ChangedMeanwhile: a schedule has another revision than the operation says.
            StoreUnavailable: no answer or an error.
        """
        [answer] = await self.ask(self._connection, self.order_command(by, reason, operations))
        if is_code(answer, "BADORDER") or is_code(answer, "FULL"):
            raise ConfigError(str(answer).partition(" ")[2])
        if is_code(answer, "STALE"):
            raise ChangedMeanwhile(str(answer).partition(" ")[2])
        _, *changed = self.checked(answer)
        return [bool(word) for word in changed]

    async def rules(self) -> tuple[Rules, int]:
        """Return the rules that are in force, and the server's time in ms.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.rules_on(self._connection)

    async def schedules(self) -> tuple[dict[str, str], dict[str, str], int]:
        """Return what stands of schedules by name, definitions and what was decided, and the server's time in ms.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        keys = self.keys.cron, self.keys.cron_state
        *answers, now = await self.ask(self._connection, *[("HGETALL", key) for key in keys], ("TIME",))
        definitions, state = [self.checked(answer, key) for answer, key in zip(answers, keys, strict=True)]
        return texts(definitions), texts(state), ms_in(self.checked(now))

    async def audit(self, n: int) -> list[Change]:
        """Return the newest `n` changes of rules, the newest first.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        rows = await self.call_one(self._connection, ("XREVRANGE", self.keys.audit, "+", "-", "COUNT", n), self.keys.audit)
        return [change_of(as_text(fields or ())) for _, fields in rows]

    async def note(self, by: str, reason: str, what: str) -> None:
        """Write an entry of the audit, of what no script of people does.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        now_ms = ms_in(await self.call_one(self._connection, ("TIME",)))
        words = ("at", now_ms, "by", by, "reason", reason, "what", what)
        await self.call_one(
            self._connection, ("XADD", self.keys.audit, "MAXLEN", "~", AUDIT_ENTRIES, "*", *words), self.keys.audit
        )

    async def workers(self) -> dict[str, tuple[int, WorkerRow]]:
        """Return the known workers: until when each lives (the server's ms), and its row.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.workers_on(self._connection)

    async def replay(self, letter: str) -> str:
        """Move a dead letter back to its stream; return its new entry, or `gone`, `unreadable`, `left-out`, `owned`.

        May be repeated: a letter that was moved is gone.

        Raises:
            QueueFull: memory is full; the letter is where it was.
            StoreUnavailable: no answer or an error.
        """
        return bytes(await self.call_one(self._connection, self.command("replay", letter))).decode()

    async def purge(self, letters: Sequence[str]) -> int:
        """Delete dead letters by their places; return how many were there.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return int(await self.call_one(self._connection, ("XDEL", self.keys.dead, *letters))) if letters else 0

    async def steer(self, verb: str, by: str, reason: str, places: Sequence[str], argument: str = "") -> list[str]:
        """Cancel jobs, let them run now, or give them another priority; return for each an answer, as steering.lua has them.

        The verb is `cancel`, `now` or `priority`, whose argument is the name of one. Places are such as `high/12-0` and
        `due/order-1`.

        May be repeated: what was moved is not there any more, and what was asked of a worker is not asked again.

        Raises:
            ConfigError: a place is none, or the verb cannot be used so.
            StoreUnavailable: no answer or an error; those before it may be done.
        """
        answers: list[str] = []
        for start in range(0, len(places), STEER_PLACES):
            words = [word for place in places[start : start + STEER_PLACES] for word in place_in(place)]
            [told] = await self.ask(self._connection, self.command("steer", verb, by, reason, argument, *words))
            if is_code(told, "BADORDER"):
                raise ConfigError(str(told).partition(" ")[2])
            answers += [bytes(answer).decode(errors="replace") for answer in self.checked(told)]
        failed = [answer for answer in answers if answer.partition(" ")[0] not in STEER_ANSWERS]
        if failed:
            raise StoreError(f"Redis answered: {failed[0]}")
        return answers

    async def reopen(self, stream: int, may_set_aside: bool = True) -> tuple[int, int, bool]:
        """Move a part of a closed stream to a fresh key; the number behind the streams' stands for the dead letters.

        Returns how many entries were moved, how many are left, and whether the stream was set aside just now. May be repeated,
        also by others: nothing is lost, and what ran when the key was set aside runs again.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        key = (*self.keys.streams, self.keys.dead)[stream]
        command = self.command("reopen", self.keys.scripted.index(key) + 1, AHEAD_MS, REOPEN_IDS, int(may_set_aside))
        moved, left, is_new = await self.call_one(self._connection, command)
        return moved, left, bool(is_new)


def change_of(fields: dict[str, str]) -> Change:
    """Return an entry of the audit; a stranger may have written it."""
    return Change(parse_int(fields.get("at", "")) or 0, *[fields.get(name, "") for name in ("by", "reason", "what")])


def place_in(text: str) -> tuple[int, str]:
    """Return the number of a stream (from 1; 0 for the delayed jobs) and the entry or member, out of a place.

    Raises:
        ConfigError: it is no place of a job that waits or runs.
    """
    name, _, entry = text.partition("/")
    if name == "due" and entry:
        return 0, entry
    if name in STREAMS and is_letter(entry):
        return STREAMS.index(name) + 1, entry
    raise ConfigError(f"{text[:60]!r}: must be the place of a job, such as high/1732400000000-0 or due/order-1")
