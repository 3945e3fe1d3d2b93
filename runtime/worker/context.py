"""What the parts of a worker share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from runtime.backoff import Backoff
from runtime.config import Config
from runtime.jobs import Job, Lease, Registry
from runtime.observer import Observer
from runtime.places import Places
from runtime.stats import Stats
from runtime.streams import Streams
from runtime.worker.gates import Gates
from runtime.worker.heartbeat import LeaseWatch
from runtime.worker.held import Held
from runtime.worker.hooks import Hooks
from runtime.worker.lanes import Inbox
from runtime.worker.ledger import Ledger
from runtime.worker.log import ThrottledLog
from runtime.worker.orders import Orders
from runtime.worker.parking import Parked

# A guess: soon enough that a short outage is not noticed, seldom enough that many workers do not keep a server from starting.
STORE_BACKOFF: Final = Backoff(base_s=0.05, cap_s=5.0)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Jobs pass from admission to the inbox, the lanes, the ledger and the flusher; `held` knows every lease on the way.

    `parked` knows what waits in lots, `gates` which types ask before they start, `leases` whether the heartbeat is confirmed,
    `orders` what people have ordered; `observer` is told of jobs, `on_dropped` of those that were dropped for their key, and why;
    `hooks` of letters that are written.
    Each of them is changed in the loop's thread only, without an await between reading and
    writing; `held` is also read by the heartbeat's thread, under its lock.
    """

    config: Config
    registry: Registry
    streams: Streams
    leases: LeaseWatch
    parked: Parked
    gates: Gates
    inbox: Inbox
    ledger: Ledger
    held: Held
    stats: Stats
    log: ThrottledLog
    places: Mapping[str, Places]
    orders: Orders
    observer: Observer | None = None
    on_dropped: Callable[[Job, str], None] = lambda job, why: None
    hooks: Hooks | None = None

    def died(self, lease: Lease, type_name: bytes, code: str, error: str) -> bytes:
        """Tell the observer of a death without a run; return the traceparent of what it writes down, if it does."""
        return b"" if self.observer is None else self.observer.died(lease, type_name, code, error)
