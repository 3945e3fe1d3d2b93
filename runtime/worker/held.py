"""What this process holds: every lease, from its delivery until its move is written."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable
from typing import TypeVar

from runtime.jobs import CRITICAL, STREAMS, Job, Lease

L = TypeVar("L", bound=Lease)


class Held:
    """Owns every lease of this process: inbox, lanes and ledger. Changed per batch, under a lock shared with the heartbeat."""

    def __init__(self) -> None:
        self._leases: tuple[dict[bytes, Lease], ...] = tuple({} for _ in STREAMS)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<Held {len(self)} leases>"

    def __len__(self) -> int:
        return sum(map(len, self._leases))

    @property
    def critical(self) -> int:
        """How many leases of CRITICAL are among them."""
        return len(self._leases[CRITICAL])

    def __contains__(self, lease: Lease) -> bool:
        return self._leases[lease.stream].get(lease.entry) is lease

    def has(self, stream: int, entry: bytes) -> bool:
        """Return whether this entry is held."""
        return entry in self._leases[stream]

    def get(self, stream: int, entry: bytes) -> Lease | None:
        """Return the lease of this entry, if it is held."""
        return self._leases[stream].get(entry)

    def add(self, stream: int, leases: list[L]) -> list[L]:
        """Hold these leases of one stream; return those that are new.

        One that is held already is adopted: its token is updated, it does not run again.
        """
        known = self._leases[stream]
        new = {lease.entry: lease for lease in leases}
        with self._lock:
            if known.keys().isdisjoint(new):
                known.update(new)
                return leases
            for entry in known.keys() & new.keys():
                ours, again = known[entry], new.pop(entry)
                ours.count, ours.run_id, ours.taken_s = again.count, again.run_id, again.taken_s
            known.update(new)
        return list(new.values())

    def remove(self, leases: Iterable[Lease]) -> None:
        """Hold these no longer: their move is written, or they are another worker's. What was lost and taken anew stays held."""
        by_stream = self._leases
        with self._lock:
            for lease in leases:
                known = by_stream[lease.stream]
                if known.get(lease.entry) is lease:
                    del known[lease.entry]

    def jobs_of(self, types: Collection[bytes]) -> list[Job]:
        """Return the jobs of these types."""
        with self._lock:
            return [job for known in self._leases for job in known.values() if isinstance(job, Job) and job.type in types]

    def older_than(self, age_s: float, now_s: float) -> list[tuple[Lease, int]]:
        """Return the leases taken longer than `age_s` ago, each with the count it has now."""
        before_s = now_s - age_s
        with self._lock:
            return [(lease, lease.count) for known in self._leases for lease in known.values() if lease.taken_s < before_s]
