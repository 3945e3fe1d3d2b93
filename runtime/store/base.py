"""What everything that speaks Redis shares: the names of keys, the scripts, and the store they go through."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final, cast

import msgspec

from runtime.errors import ConfigError, QueueFull, StoreError
from runtime.jobs import STREAMS
from runtime.store.connection import Connection
from runtime.store.resp import Command, ServerError, Tail

GROUP: Final = "workers"
BROKEN_S: Final = 3.0  # a guess: between two looks at a stream that cannot be read
MAX_MS: Final = 2.0**53
MAX_DIGITS: Final = 15
AHEAD_MS: Final = 3_600_000  # an id so far ahead is no clock's: a sender chose it. Clocks that are off, are off by seconds


class Keys:
    """The names of a queue's keys; all share its hash tag, so that every script stays on one slot."""

    def __init__(self, queue: str) -> None:
        if not queue or any(mark in queue for mark in "{}\r\n "):
            raise ConfigError(f"queue {queue!r}: a name without spaces and braces, please")
        self.prefix = f"{{{queue}}}:"
        self.streams = tuple(self.prefix + name for name in STREAMS)
        self.due = self.prefix + "due"
        self.messages = self.prefix + "msg"
        self.dead = self.prefix + "dead"
        self.workers = self.prefix + "workers"
        self.rows = self.prefix + "workers:rows"
        self.strikes = self.prefix + "strikes"
        self.isolations = self.prefix + "wards"
        places = (*self.streams, self.due, self.messages, self.dead)
        self.scripted = (*places, self.workers, self.rows, self.strikes, self.isolations)

    def stats(self, minute: int) -> str:
        """Return the key of the counters of one minute since the epoch."""
        return f"{self.prefix}stats:{minute}"


class Script(msgspec.Struct, frozen=True):
    """A script's text, and the name under which the server remembers it."""

    text: str
    sha: str


_PRELUDES = {"beat": ("common", "guard"), "reclaim": ("common", "guard")}


@cache
def script(name: str) -> Script:
    """Return the script of one verb, with what all scripts share put between its flags and its body."""
    folder = files("runtime.store") / "lua"
    flags, _, body = (folder / f"{name}.lua").read_text("utf-8").partition("\n")
    shared = [(folder / f"{part}.lua").read_text("utf-8") for part in _PRELUDES.get(name, ("common",))]
    text = "\n".join([flags, *shared, body])
    return Script(text, hashlib.sha1(text.encode()).hexdigest())  # noqa: S324 -- the server's own naming, no secret


class End(msgspec.Struct, frozen=True):
    """Where a stream ends: how far its last id lies ahead of the server's time, and whether jobs set aside wait to be moved."""

    ahead_ms: int
    is_aside: bool

    @property
    def is_closed(self) -> bool:
        """Return whether a sender's id far ahead has closed this stream: no later id is possible."""
        return self.ahead_ms > AHEAD_MS

    @property
    def troubles(self) -> list[str]:
        """What is wrong with it, for people; it may be closed again while there is something set aside."""
        found: list[str] = []
        if self.is_closed:
            days = self.ahead_ms / 86_400_000
            found.append(f"is closed by an id that lies {days:,.1f} days ahead: somebody sent an entry with it")
        if self.is_aside:
            found.append("has entries set aside that are not moved yet")
        return found


class Store:
    """Runs scripts and commands for one queue, and makes vanished groups again.

    Owns `broken`: the streams that cannot be read, since their key is of another type, with what they answered. They are left
    out, and looked at again every few seconds; the others must not notice.
    """

    def __init__(self, url: str, queue: str) -> None:
        self.url = url
        self.keys = Keys(queue)
        self.broken: dict[int, str] = {}
        self._groupless: set[int] = set()
        self._looked_s = 0.0
        self._must_heal = False

    def command(self, name: str, *args: str | bytes | int | float | Tail) -> Command:
        """Return the call of a script on this queue's keys."""
        return ("EVALSHA", script(name).sha, len(self.keys.scripted), *self.keys.scripted, *args)

    async def ask(self, connection: Connection, *commands: Command, wait_s: float = 0.0, run_id: str = "") -> list[Any]:
        """Call, and load scripts that the server has forgotten. Error answers stay among the answers.

        Raises:
            StoreUnavailable: no answer.
        """
        await self._heal(connection)
        answers = await connection.call(*commands, wait_s=wait_s, run_id=run_id)
        forgotten = [at for at, answer in enumerate(answers) if is_code(answer, "NOSCRIPT")]
        if forgotten:
            await self.load(connection)
            again = await connection.call(*[commands[at] for at in forgotten], wait_s=wait_s, run_id=run_id)
            for at, answer in zip(forgotten, again, strict=True):
                answers[at] = answer
        return answers

    async def call_one(self, connection: Connection, command: Command) -> Any:
        """Call one command and give its answer.

        Raises:
            StoreUnavailable: no answer, or an error.
        """
        return self.checked((await self.ask(connection, command))[0])

    def checked(self, answer: Any) -> Any:
        """Return the answer back, unless it is an error: then the store is as good as away, whatever the error says.

        Raises:
            QueueFull: memory is full.
            StoreError: any other error.
        """
        if not isinstance(answer, ServerError):
            return answer
        if answer.code == "NOGROUP" or "NOGROUP" in answer:
            self._must_heal = True
        if "OOM" in answer:
            raise QueueFull(f"Redis is full: {answer}")
        raise StoreError(f"Redis answered: {answer}")

    async def ends_on(self, connection: Connection) -> list[End]:
        """Return where each stream ends; the dead letters last.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        _, *answer = await self.call_one(connection, self.command("ends"))
        return [End(int(ahead), bool(aside)) for ahead, aside in zip(answer[::2], answer[1::2], strict=True)]

    async def prepare(self, connection: Connection) -> None:
        """Make the consumer group on all four streams, at 0: made at `$` it would skip what is there.

        With memory full the server refuses this even where the group exists. Then we go on: what exists can be worked off, and
        what does not is asked for again. A stream in whose place a key of another type stands is left out from then on.

        Raises:
            StoreUnavailable: no answer, or no stream can be read.
        """
        self._looked_s = time.monotonic()
        made = await connection.call(*[("XGROUP", "CREATE", key, GROUP, "0", "MKSTREAM") for key in self.keys.streams])
        broken: dict[int, str] = {}
        for stream, answer in enumerate(made):
            if is_code(answer, "WRONGTYPE") or (is_code(answer, "OOM") and stream in self._groupless | self.broken.keys()):
                broken[stream] = str(answer)
            elif not (is_code(answer, "BUSYGROUP") or is_code(answer, "OOM")):
                self.checked(answer)
        self.broken = broken
        self._groupless.clear()
        if len(broken) == len(self.keys.streams):
            raise StoreError(f"Redis answered: {broken[0]} ({', '.join(self.keys.streams)})")

    async def _heal(self, connection: Connection) -> None:
        """Make the groups again where an answer said that one is missing, and look again at what is broken."""
        if self._must_heal or (self.broken and time.monotonic() > self._looked_s + BROKEN_S):
            self._must_heal = False
            await self.prepare(connection)

    async def load(self, connection: Connection) -> None:
        """Load all scripts.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        names = [path.name[:-4] for path in (files("runtime.store") / "lua").iterdir() if path.name.endswith(".lua")]
        scripts = [script(name) for name in names if name not in ("common", "guard")]
        for answer in await connection.call(*[("SCRIPT", "LOAD", known.text) for known in scripts]):
            self.checked(answer)


# --- small shapes --------------------------------------------------------------------------------------------------------


def is_code(answer: Any, code: str) -> bool:
    """Return whether an answer is the error with this first word."""
    return isinstance(answer, ServerError) and answer.code == code


def workers_of(until: Sequence[bytes], rows: Sequence[bytes]) -> dict[str, tuple[int, str]]:
    """Return the workers out of the raw ZRANGE WITHSCORES and HGETALL; the guard's own members begin with `~`."""
    known = {name.decode(errors="replace"): row.decode(errors="replace") for name, row in pairs(rows)}
    lives = {name.decode(errors="replace"): int(min(max(float(score), 0.0), MAX_MS)) for name, score in pairs(until)}
    return {name: (at, known.get(name, "")) for name, at in lives.items() if not name.startswith("~")}


def setting(answer: Any) -> str:
    """Return the value that CONFIG GET answered, or nothing where asking is not allowed."""
    if isinstance(answer, ServerError) or not answer:
        return ""  # not allowed to ask: INFO has told what it tells
    return bytes(cast("Sequence[bytes]", answer)[1]).decode()


def parse_int(text: str) -> int | None:
    """Return the whole number that a text is, or None: what stands in Redis may be a stranger's."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None


def entry_fields(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the fields of an entry by name; the last one of a name wins, as everywhere."""
    return dict(pairs(flat))


def pairs(flat: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """Return names and values that stand in turn as pairs."""
    return zip(flat[::2], flat[1::2], strict=True)


def ms_in(time: Sequence[bytes]) -> int:
    """Return the answer of TIME in ms."""
    return int(time[0]) * 1000 + int(time[1]) // 1000
