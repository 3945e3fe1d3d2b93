"""Gathering: jobs whose handler takes many at once wait here for others of their type, a moment at most, and then run together.

Pure: the clock is an argument, and the inbox sees to it that what is due is asked for. If the process dies meanwhile, the jobs
are pending with it like any others of its inbox.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from runtime.jobs import CRITICAL, Gathered, Job, Registry, together

MAX_BESIDE: Final = 2000  # jobs that may be held beyond one for each lane: as many as may be read ahead, for the same reason


class Gathering:
    """Owns the batches that are not full: one of each type's CRITICAL jobs, and one of its others. Used on the loop only."""

    def __init__(self, registry: Registry, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._policies = {name: handler.batch for name, handler in registry.items() if handler.batch is not None}
        self._open: dict[tuple[bytes, bool], Gathered] = {}

    def __repr__(self) -> str:
        return f"<Gathering {sum(len(batch.jobs) for batch in self._open.values())} jobs in {len(self._open)} batches>"

    @property
    def open(self) -> list[Gathered]:
        """The batches that gather, the oldest first."""
        return list(self._open.values())

    @property
    def due_s(self) -> float:
        """When the next of them is to begin, whether or not it is full by then; infinite where there is none."""
        return min(map(self._due_s, self._open.values()), default=float("inf"))

    @property
    def wanted(self) -> int:
        """How many more may come now: for each batch as many as it has, until it is full.

        As many as it lacks would be too many, where other types come along: these would wait here for lanes.
        """
        sizes = [(len(batch.jobs), self._policies[batch.type].max_size) for batch in self._open.values()]
        return sum(min(size, most - size) for size, most in sizes)

    def add(self, jobs: Iterable[Job]) -> list[Job]:
        """Return what may start now: jobs of types that do not gather, batches that are full, and those that are due.

        A job that was delivered before may be what killed its worker: it starts at once, alone.
        """
        ready: list[Job] = []
        joining: dict[tuple[bytes, bool], list[Job]] = {}
        for job in jobs:
            if job.type not in self._policies:
                ready.append(job)
            elif job.count > 1:
                ready.append(together([job]))
            else:
                joining.setdefault((job.type, job.stream == CRITICAL), []).append(job)
        for place, come in joining.items():
            ready += self._join(place, come)
        return ready + self.take_due()

    def _join(self, place: tuple[bytes, bool], come: list[Job]) -> list[Gathered]:
        """Let jobs join the batch that is open at this place, and others behind it; return those that are full."""
        open_batch = self._open.pop(place, None)
        jobs = come if open_batch is None else open_batch.jobs + come
        max_size = self._policies[place[0]].max_size
        batches = [together(jobs[at : at + max_size]) for at in range(0, len(jobs), max_size)]
        if len(batches[-1].jobs) < max_size:
            self._open[place] = batches.pop()
        return batches

    def take_due(self) -> list[Job]:
        """Take out and return the batches whose first job has waited for long enough."""
        now_s = self.clock()
        due = [place for place, batch in self._open.items() if self._due_s(batch) <= now_s]
        return [self._open.pop(place) for place in due]

    def take_types(self, types: Collection[bytes]) -> list[Gathered]:
        """Take out and return the batches of these types."""
        return [self._open.pop(place) for place in [*self._open] if place[0] in types]

    def clear(self) -> None:
        """Forget all batches."""
        self._open.clear()

    def drop(self, batch: Job) -> None:
        """Forget a batch, which has no job left."""
        self._open = {place: other for place, other in self._open.items() if other is not batch}

    def _due_s(self, batch: Gathered) -> float:
        return batch.taken_s + self._policies[batch.type].max_wait_s


def gathering_of(registry: Registry, clock: Callable[[], float]) -> Gathering | None:
    """Return where jobs gather; None where each handler takes one."""
    return Gathering(registry, clock) if any(handler.batch is not None for handler in registry.values()) else None
