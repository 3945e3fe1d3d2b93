"""Operations in the store: how they are ordered, stepped, counted beforehand and read."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import msgspec

from runtime.errors import ConfigError
from runtime.operations import Operation, read_operation
from runtime.store.base import Step, Store, is_code, ms_in, pairs, texts
from runtime.store.connection import Connection
from runtime.store.resp import Command

MOST: Final = 200  # operations that are read; a guess: about twice what may be there
CHOSEN_PAGE: Final = 1000  # places a round trip; a guess: a fraction of a millisecond of the server
CHOSEN_S: Final = 3600  # a guess: no operation takes so long to be made
TRASH_LETTERS: Final = 100  # of one call, as trash.lua has it
MAX_DUE_MS: Final = 900_000  # as operations.lua has it: what lies further ahead is no time of ours
_BEGIN: Final = (b"1", b"-", b"")  # of `count`


class OperationStore(Store):
    """A person's verbs about operations. Owns one connection."""

    def __init__(self, url: str, queue: str, name: str) -> None:
        super().__init__(url, queue)
        self._connection = Connection(url, name)

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def operate(self, verb: str, name: str, by: str, reason: str, *words: str) -> tuple[str, bool]:
        """Order something of an operation; see operate.lua. Return its state, and whether this changed anything.

        May be repeated: what stands as it is ordered is left alone.

        Raises:
            ConfigError: a word cannot be used, or there are too many operations.
            StoreUnavailable: no answer or an error.
        """
        [answer] = await self.ask(self._connection, self.command("operate", verb, name, by, reason, *words))
        if is_code(answer, "BADORDER") or is_code(answer, "FULL"):
            raise ConfigError(str(answer).partition(" ")[2])
        state, changed = self.checked(answer)
        return bytes(state).decode(errors="replace"), bool(changed)

    async def choose(self, name: str, token: str, places: Sequence[str]) -> None:
        """Write the list of places that an operation is to be about: for CHOSEN_S, until the operation is made.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        key = self.keys.chosen(name, token)
        for start in range(0, len(places), CHOSEN_PAGE):
            push, life = ("RPUSH", key, *places[start : start + CHOSEN_PAGE]), ("EXPIRE", key, CHOSEN_S)
            for answer in await self.ask(self._connection, push, life):
                self.checked(answer)

    async def move_letters(self, verb: str, by: str, reason: str, places: Sequence[str]) -> list[str]:
        """Move dead letters to the trash, or with `restore` back out of it; return for each an answer, as trash.lua has them.

        May be repeated: what was moved is gone from there.

        Raises:
            ConfigError: a word cannot be used.
            StoreUnavailable: no answer or an error; those before it may be done.
        """
        answers: list[str] = []
        while len(answers) < len(places):
            part = places[len(answers) : len(answers) + TRASH_LETTERS]
            [told] = await self.ask(self._connection, self.command("trash", verb, by, reason, *part))
            if is_code(told, "BADORDER"):
                raise ConfigError(str(told).partition(" ")[2])
            answers += [bytes(answer).decode(errors="replace") for answer in self.checked(told)]
        return answers

    async def amend(
        self, letter: str, by: str, reason: str, stream: int, message: Sequence[bytes | str | int]
    ) -> tuple[str, str]:
        """Send a job in the place of a dead letter, which goes to the trash: one step; return what came of it, as amend.lua says.

        Not to be repeated where the answer was lost: the letter is gone then, as after anybody else.

        Raises:
            QueueFull: memory is full; nothing was done.
            StoreUnavailable: no answer or an error; it may or may not be done.
        """
        word, told = await self.call_one(self._connection, self.command("amend", letter, by, reason, stream + 1, *message))
        return bytes(word).decode(), bytes(told).decode(errors="replace")

    async def step(self, name: str) -> Step:
        """Make the next step of an operation, as a worker does, where it is time for it.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.step_on(self._connection, name)

    async def meant(self, words: Mapping[str, str]) -> AsyncGenerator[tuple[list[str], int]]:
        """Yield the places that an operation with these words would mean now, and how many were looked at, a few at a time.

        Raises:
            ConfigError: a word cannot be used.
            StoreUnavailable: no answer or an error.
        """
        flat = [word for pair in words.items() for word in pair]
        at, is_end = _BEGIN, False
        while not is_end:
            [answer] = await self.ask(self._connection, self.command("count", *at, *flat))
            if is_code(answer, "BADORDER"):
                raise ConfigError(str(answer).partition(" ")[2])
            *stands, is_end, looked, places = self.checked(answer)
            at = (stands[0], stands[1], stands[2])
            yield [bytes(place).decode(errors="backslashreplace") for place in places], looked

    async def operation(self, name: str) -> Operation | None:
        """Return an operation, None where there is none.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found = await self._read([name])
        return found[0] if found else None

    async def operations(self) -> list[Operation]:
        """Return the operations that are known, the newest first.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        names = await self.call_one(self._connection, ("ZRANGE", self.keys.operations, 0, MOST - 1), self.keys.operations)
        found = await self._read([bytes(name).decode(errors="replace") for name in names])
        return sorted(found, key=lambda one: -one.created_ms)

    async def _read(self, names: list[str]) -> list[Operation]:
        if not names:
            return []
        reads = [read for name in names for read in self._reads(name)]
        *answers, now = await self.ask(self._connection, *reads, ("TIME",))
        read_ms = ms_in(self.checked(now))
        found: list[Operation] = []
        for name, (fields, due) in zip(names, pairs(answers), strict=True):
            told = {} if is_code(fields, "WRONGTYPE") else texts(self.checked(fields))
            if told:
                found.append(msgspec.structs.replace(read_operation(name, told), due_ms=_due_ms(due, read_ms), read_ms=read_ms))
        return found

    def _reads(self, name: str) -> tuple[Command, Command]:
        return ("HGETALL", self.keys.operation(name)), ("ZSCORE", self.keys.operations, name)


def _due_ms(score: Any, now_ms: int) -> int:
    """Return when the next step is due; 0 where none is, or that is no time of ours."""
    due = float(score) if isinstance(score, bytes) else math.inf
    return int(due) if 0 <= due <= now_ms + MAX_DUE_MS else 0
