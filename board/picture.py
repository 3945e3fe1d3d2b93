"""Picture is all that one look at a queue gives to those who look: the sample, the workers, and what was counted before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

import msgspec

from board.history import NOTHING, History, Rates, TypeStep, step_of
from runtime.jobs import GATE, OVERFLOW, UNKNOWN
from runtime.store.base import SILENT_PART, WorkerRow
from runtime.store.sample import Minute, People, Sample


class Seen(msgspec.Struct, frozen=True):
    """One worker as it last said, and how long ago its last heartbeat was."""

    name: str
    row: WorkerRow
    beat_ms: int
    is_alive: bool
    order: str
    held: int  # entries that wait for it or run there, as Redis has them

    @property
    def is_silent(self) -> bool:
        """Whether a heartbeat is missing, and its lease is not over yet."""
        return self.is_alive and self.beat_ms > SILENT_PART * self.row.lease_ms

    @property
    def label(self) -> str:
        """Its host and process."""
        return f"{self.row.host} · {self.row.pid}" if self.row.host else self.name

    @property
    def busy(self) -> int:
        """How many of its lanes run a job."""
        return sum(n for n in self.row.running.values() if n > 0)

    @property
    def app(self) -> str:
        """The version that it runs: its application's, or the runtime's where it says none."""
        return self.row.app or self.row.version


class Picture:
    """One look. `five` is what was counted in the present minute and the five before, `types` the same in short; `errors` has by
    type the class of error that most of its newest failures have, with its part of them.
    """

    def __init__(
        self, sample: Sample, people: People, history: History, rates: Rates, errors: dict[str, tuple[str, float]] | None = None
    ) -> None:
        self.sample = sample
        self.people = people
        self.history = history
        self.rates = rates
        self.errors: dict[str, tuple[str, float]] = errors or {}
        self.five: Minute = history.last(5)
        self.types: dict[str, TypeStep] = step_of(self.five).types
        self.workers: list[Seen] = _workers(sample, people)
        self.known: set[str] = {name for one in self.living for name in one.row.types}

    @property
    def living(self) -> list[Seen]:
        """The workers that beat."""
        return [one for one in self.workers if one.is_alive and not one.is_silent]

    @property
    def silent(self) -> list[Seen]:
        """The workers that should have beaten, and whose leases are not over yet."""
        return [one for one in self.workers if one.is_silent]

    @property
    def gone(self) -> list[Seen]:
        """The workers that do not live, and hold jobs."""
        return [one for one in self.workers if not one.is_alive]

    @property
    def five_s(self) -> float:
        """How long `five` is, in seconds."""
        return 300 + self.sample.now_ms % 60_000 / 1000

    def runs(self, type_name: str) -> tuple[int, int]:
        """Return how many runs of a type ended in the last five minutes, and how many of those failed."""
        one = self.types.get(type_name, NOTHING)
        return one.ended, one.failed

    def types_of_minute(self, ago: int) -> Collection[str]:
        """Return the types that ran in a minute of the last hour."""
        step = self.history.step(1, self.history.now - ago)
        return () if step is None else step.types

    def is_paused(self, priority: str) -> bool:
        """Return whether nothing of a priority may start."""
        rules, now_ms = self.people.rules, self.sample.now_ms
        return any(name in rules.pauses and not rules.pauses[name].is_over(now_ms) for name in (priority, "*"))


def errors_of(failures: Iterable[tuple[str, str]]) -> dict[str, tuple[str, float]]:
    """Return by type the class of error that most of its failures have, and of how large a part; each is a type and an error.

    Of an error the class alone is told, for its message may hold what not everybody may see.
    """
    found: dict[str, Counter[str]] = {}
    for type_name, error in failures:
        if error:
            found.setdefault(type_name, Counter())[class_in(error)] += 1
    most = {type_name: counts.most_common(1)[0] for type_name, counts in found.items()}
    return {type_name: (name, n / found[type_name].total()) for type_name, (name, n) in most.items() if name}


def class_in(error: str) -> str:
    """Return the class out of `Class: message`; nothing where a text begins with none."""
    name = error.partition(":")[0]
    return name if name.isidentifier() and name.isascii() else ""


def _workers(sample: Sample, people: People) -> list[Seen]:
    """Return the workers that live and those that hold jobs, by their labels; one that has gone may have left no row."""
    held: dict[str, int] = {}
    for (name, _), n in sample.held.items():
        if not name.startswith("~"):
            held[name] = held.get(name, 0) + n
    living = sample.living
    found: list[Seen] = []
    for name in {*living, *held}:
        row, until_ms = people.rows.get(name, WorkerRow()), sample.until_ms.get(name)
        # Of one whose process was seen to end, nothing is left of its lease.
        beat_ms = 0 if until_ms is None else max(0, sample.now_ms - (until_ms or sample.now_ms) + row.lease_ms)
        found.append(Seen(name, row, beat_ms, name in living, people.rules.orders.get(name, ""), held.get(name, 0)))
    return sorted(found, key=lambda one: (not one.is_alive, one.label, one.name))


def unknown_in(lot: str) -> tuple[str, str] | None:
    """Return type and version of which a lot holds what no worker knew; None of any other lot."""
    if not lot.startswith(UNKNOWN) or lot == UNKNOWN:
        return None
    name, _, version = lot.removeprefix(UNKNOWN).rpartition("@")
    return (name, version) if name else (version, "")


def gate_in(lot: str) -> tuple[str, str] | None:
    """Return type and group of which a lot is a gate's; None of any other lot."""
    if not lot.startswith((GATE, OVERFLOW)):
        return None
    name, _, group = lot[len(GATE) :].partition(":")
    return name, "" if lot.startswith(OVERFLOW) else group
