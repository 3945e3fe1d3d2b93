"""What is parked: the lots in which jobs wait that their worker could not run, as this worker last saw them.

A lot is a consumer of the group whose name begins with `~`: `~free` holds what was given back, `~suspect` what the dead left,
`~t:<type>@<version>` what had no thread, no child process or no worker that knows it. Redis has the truth; what is kept here only
says where to look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

import msgspec

from runtime.jobs import FREE, STREAMS, SUSPECT, UNKNOWN, Registry
from runtime.places import Places
from runtime.store.shapes import Ask
from runtime.store.unknown import type_and_version
from runtime.worker.plan import WEIGHTS

Place = tuple[int, str]  # a stream, and the name of a lot on it

MAX_UNKNOWN: Final = 256  # a guess: lots of unknown types; a producer with a typo per message must not make a consumer for each
ANY_NUMBER: Final = 1_000_000  # more than any fetch asks for


class Parked:
    """Owns what is known of the lots, and which of them this worker can run. Changed on the loop's thread only.

    `seen` are the lots of the last look, with how many jobs were there; what was parked since counts as 0. `has_suspects` says
    whether any suspect waits. `on_new` is called when this worker has parked what it can run itself. `awaited` are the kinds of
    places for which more waits in lots than was asked for.
    """

    def __init__(self, registry: Registry, places: Mapping[str, Places]) -> None:
        self.types: dict[str, int] = {handler.contract.type: handler.contract.version for handler in registry.values()}
        self.seen: dict[Place, int] = {}
        self.has_suspects: bool = False
        self.awaited: set[Places] = set()
        self.on_new: Callable[[], None] = lambda: None
        # The types whose jobs need a thread or a child process.
        self._kinds = {name: places[handler.needs] for name, handler in registry.items() if handler.needs in places}
        self._parts = {name: 1 / handler.batch.max_size for name, handler in registry.items() if handler.batch is not None}
        self._new: set[Place] = set()
        self._unknown: set[str] = set()
        self._adopted: set[str] = set()

    def __repr__(self) -> str:
        return f"<Parked {len(self.seen)} lots{', suspects' if self.has_suspects else ''}>"

    # --- what was seen ---------------------------------------------------------------------------------------------------

    def begin_look(self) -> set[Place]:
        """Return what was parked since the look before, to be told to `saw` with what this look brings."""
        before, self._new = self._new, set()
        return before

    def saw(self, found: Mapping[Place, int], before: Iterable[Place]) -> None:
        """Note the lots that Redis lists, and those of `before`, whose first jobs may not be written yet."""
        self.seen = {**dict.fromkeys({*before, *self._new}, 0), **found}
        self._unknown = {lot for _, lot in self.seen if lot.startswith(UNKNOWN) and not self.can_run(lot)}
        self.has_suspects = any(lot == SUSPECT for _, lot in found)

    def put(self, places: Iterable[Place]) -> None:
        """Note lots into which this worker has just put jobs: what it can run is taken from there again."""
        new = {at for at in places if self.may_take(at)}
        self._new |= new
        if new:
            self.seen = dict.fromkeys(new, 0) | self.seen
            self.on_new()

    def emptied(self, stream: int, lot: str) -> None:
        """Note that a lot gave less than it was asked for."""
        self.seen.pop((stream, lot), None)

    def adopt(self, lot: str) -> None:
        """Let this worker take from a lot whose name no rule of this version knows."""
        self._adopted.add(lot)

    def lot_for(self, lot: str) -> str:
        """Return this lot of an unknown type, or the shared one where there are too many: producers can invent any name."""
        if lot not in self._unknown:
            if len(self._unknown) >= MAX_UNKNOWN:
                return UNKNOWN
            self._unknown.add(lot)
            new = [(stream, lot) for stream in range(len(STREAMS))]
            self._new.update(new)
            self.seen.update(dict.fromkeys(new, 0))
        return lot

    # --- what this worker can run ----------------------------------------------------------------------------------------

    def can_run(self, lot: str) -> bool:
        """Return whether this worker may take from a lot: its type and version, or the shared lot."""
        if lot in (FREE, UNKNOWN):
            return True
        if not lot.startswith(UNKNOWN):
            return lot in self._adopted
        name, version = type_and_version(lot)
        return version <= self.types.get(name, 0)  # by name: asked of each lot before each wait, and a worker may know many types

    def may_take(self, at: Place) -> bool:
        """Return whether a fetch takes from this lot by name; `~free` is looked at with its stream."""
        return at[1] != FREE and self.can_run(at[1])

    @property
    def is_any_to_take(self) -> bool:
        """Whether a look into lots may bring something."""
        return any(map(self.may_take, self.seen))

    def places_of(self, type_name: bytes) -> Places | None:
        """Return the places that jobs of a type need; None where they run on the loop."""
        return self._kinds.get(type_name)

    def part_of(self, type_name: bytes) -> float:
        """Return which part of a place a job of this type needs: jobs that run together need one."""
        return self._parts.get(type_name, 1.0)

    @property
    def needs_places(self) -> bool:
        """Whether any handler here needs a thread or a child process."""
        return bool(self._kinds)

    def waits_for(self, places: Places) -> bool:
        """Return whether any lot holds jobs that need a place of this kind."""
        return any(self._places_of_lot(lot) is places for _, lot in self.seen)

    def needs_any(self, type_names: Iterable[bytes]) -> bool:
        """Return whether any of these types needs a thread or a child process."""
        return not self._kinds.keys().isdisjoint(type_names)

    def openings(self, coming: Callable[[Places], int]) -> list[Ask]:
        """Return the lots to take from now; for a thread or child process as many as will soon begin, each kind by itself.

        `coming` returns how many jobs here are on their way to a place of a kind.
        """
        self.awaited.clear()
        wanted: dict[Places | None, int] = {None: ANY_NUMBER}
        openings: list[Ask] = []
        for stream, lot in filter(self.may_take, self.seen):
            kinds = {self._kinds.get(name.encode()) for name in self.types} if lot == UNKNOWN else {self._places_of_lot(lot)}
            for places in kinds:
                if places is not None:
                    self.awaited.add(places)
                    if places not in wanted:
                        wanted[places] = places.capacity_soon(coming(places))
                if wanted[places]:
                    types = {name: newest for name, newest in self.types.items() if self._kinds.get(name.encode()) is places}
                    openings.append(Ask(stream, lot, wanted[places], types if lot == UNKNOWN else None))
        return openings

    def places_of_ask(self, ask: Ask) -> Places | None:
        """Return the places that what is asked for will need."""
        return self._kinds.get(next(iter(ask.types)).encode()) if ask.types else self._places_of_lot(ask.lot)

    def _places_of_lot(self, lot: str) -> Places | None:
        name, _, _ = lot[len(UNKNOWN) :].rpartition("@")
        return self._kinds.get(name.encode()) if lot.startswith(UNKNOWN) else None


class Shares:
    """Owns what is owed to the lots of what may be fetched, and whose turn it is to be the first."""

    def __init__(self) -> None:
        self._owed = 0.0
        self._turn = 0

    def forgive(self) -> None:
        """Owe nothing any more: a lot was emptied."""
        self._owed = 0.0

    def divide(self, openings: Sequence[Ask], capacity: int, part: float, kind: Callable[[Ask], Places | None]) -> list[Ask]:
        """Return what to ask of each lot, by the weights of their streams; `part` of the capacity is due to all of them together.

        Nothing, where that comes to less than one entry: what is owed is kept, and soon will be one. `kind` returns the places
        that an ask will need: of one kind no more is asked for than the opening of that kind says.
        """
        self._owed = min(capacity, self._owed + capacity * part)
        left = most = int(self._owed)
        self._owed -= most
        of_stream = Counter(opening.stream for opening in openings)
        weights = [WEIGHTS[opening.stream] / of_stream[opening.stream] for opening in openings]
        wanted = {kind(opening): opening.n for opening in openings}
        self._turn += 1
        asks: list[Ask] = []
        for at in range(len(openings)):
            opening, weight = openings[(at + self._turn) % len(openings)], weights[(at + self._turn) % len(openings)]
            places = kind(opening)
            n = min(left, wanted[places], max(1, int(most * weight / sum(weights))))
            if n:
                asks.append(msgspec.structs.replace(opening, n=n))
                left -= n
                wanted[places] -= n
        return asks
