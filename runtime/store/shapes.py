"""What a worker's verbs are asked for, and what they answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from runtime.jobs import Batch, Letter
from runtime.limits import Limits
from runtime.schedules import Definition, Due


class Delivery(msgspec.Struct, gc=False):
    """Entries of one stream that are now leased to us: `rows` as the parser gave them, the delivery count of each.

    `oversized` are those that are too large to be handed out: entry, delivery count, and how many bytes they have. `is_cut` says
    that more is there, which would have been too many bytes.
    """

    stream: int
    rows: list[Any]
    counts: Iterable[int]
    oversized: Sequence[tuple[bytes, int, int]] = ()
    is_cut: bool = False


class Fetched(msgspec.Struct):
    """What one fetch brought: the server's time, the deliveries, in whose `~free` something waits, and the error of a stream."""

    now_ms: int
    run_id: str
    deliveries: list[Delivery]
    free: set[int]
    refused: str = ""


class Ask(msgspec.Struct, frozen=True):
    """How many entries of a lot are asked for; `types`, each with its newest version, restricts those of the shared lot."""

    stream: int
    lot: str
    n: int
    types: Mapping[str, int] | None = None


class Serve(msgspec.Struct, frozen=True):
    """What a gate is asked for: up to `n` jobs, `n_others` of them from other streams than CRITICAL's, out of these lots (stream,
    name, group). `freed` are what holds no permit any more, `noted` what holds one whatever the limit: each its group and place.
    """

    type: str
    limits: Limits
    n: int
    n_others: int
    lots: Sequence[tuple[int, str, str]] = ()
    freed: Sequence[tuple[str, str]] = ()
    noted: Sequence[tuple[str, str]] = ()


class Served(msgspec.Struct):
    """What a gate gave. `stands` says how it stands with the type, `lots` with each lot that was asked: 0 more may come at once,
    SHORT of permits, EMPTY and forgotten, else in how many ms the next token comes. `error` is what the server answered instead.
    Of a lot whose stream, or the keys of whose group, cannot be read, it stands in `fetched.refused`, and the lot is SHORT.
    """

    fetched: Fetched
    stands: int = 0
    lots: Sequence[int] = ()
    error: str = ""

    @property
    def size(self) -> int:
        """How many entries came."""
        return sum(len(delivery.rows) + len(delivery.oversized) for delivery in self.fetched.deliveries)


SHORT: Final = -1
EMPTY: Final = -2


class Isolated(msgspec.Struct):
    """What `isolate` answered: `word` as isolate.lua has it, `for_ms` the time that belongs to it, and what was handed out.

    `names` are the workers that died of the one entry that is handed out to be dead-lettered.
    """

    word: str
    for_ms: int
    fetched: Fetched
    names: list[str]


class Settled(msgspec.Struct):
    """What became of a flush: moves refused by the fence, finished jobs that were gone already, and what must be asked again.

    `unpaused` says why a pause that a job asked for could not be written; it holds in this process alone, for a moment. `unkept`
    says how many results were refused, and why, or why those who wait for some could not be told. `undead` are the letters among
    the moves that were refused.
    """

    refused: int
    shortfall: int
    left: Batch
    error: str
    unpaused: str = ""
    unkept: tuple[int, str] = (0, "")
    undead: list[Letter] = []


class Promoted(msgspec.Struct):
    """One run of promote. `wait_ms` is the time until the next delayed job is due, -1 without one."""

    moved: int
    bad: int
    wait_ms: int
    is_full: bool
    cursor: str


class TickAsk(msgspec.Struct, frozen=True):
    """A schedule that is confirmed, and what of it is due after `known_ms`, the last time known to be decided (None: unknown)."""

    definition: Definition
    known_ms: int | None
    due: Due


class Ticked(msgspec.Struct):
    """What became of one schedule: `word` as tick.lua has it, or an error text; up to when it is decided now; what was sent."""

    word: str
    last_ms: int
    fired: int
    skipped: int


class Reclaimed(msgspec.Struct):
    """What one sweep of one stream moved; `jobs` are types and ids of the first few that dead workers held."""

    dead: int
    undelivered: int
    is_guarded: bool
    jobs: Sequence[str] = ()


DROPPED: Final = ("copy", "folded", "outrun")
MAX_KEY_TOLD: Final = 100  # bytes; a guess: what is longer is cut


class Duplicate(str):
    """The verdict `duplicate` on a job that was dropped for its key: it was a `copy` of the job with the id `of`, which lives; or
    was `folded` into that, which waits and does now what this message said; or `outrun`, since a newer one has run.
    """

    __slots__ = ("how", "of")
    how: str
    of: str

    def __new__(cls, how: str = "copy", of: str = "") -> Duplicate:
        """Return the verdict, which is the word itself."""
        made = super().__new__(cls, "duplicate")
        made.how, made.of = how, of
        return made

    def told(self, key: bytes) -> str:
        """Return in words why a job with this key was dropped."""
        named = f"(key {key[:MAX_KEY_TOLD].decode(errors='replace')})"
        if self.how == "outrun":
            return f"dropped, since a newer job with its key has run {named}"
        return f"folded into {self.of} {named}" if self.how == "folded" else f"dropped as a duplicate of {self.of} {named}"
