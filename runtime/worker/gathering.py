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
        for job in jobs:
            policy = self._policies.get(job.type)
            if policy is None:
                ready.append(job)
            elif job.count > 1 or policy.max_size == 1:
                ready.append(together(job))
            else:
                place = job.type, job.stream == CRITICAL
                batch = _joined(self._open, place, job)
                if len(batch.jobs) >= policy.max_size:
                    ready.append(self._open.pop(place))
        return ready + self.take_due()

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


def _joined(batches: dict[tuple[bytes, bool], Gathered], place: tuple[bytes, bool], job: Job) -> Gathered:
    """Return the batch at this place, with this job in it."""
    batch = batches.get(place)
    if batch is None:
        batch = batches[place] = together(job)
        return batch
    batch.jobs.append(job)
    batch.stream = min(batch.stream, job.stream)
    batch.taken_s = min(batch.taken_s, job.taken_s)
    return batch


def gathering_of(registry: Registry, clock: Callable[[], float]) -> Gathering | None:
    """Return where jobs gather; None where each handler takes one."""
    return Gathering(registry, clock) if any(handler.batch is not None for handler in registry.values()) else None
