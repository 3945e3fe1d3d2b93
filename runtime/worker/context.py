"""What the parts of a worker share: the four objects that hold jobs, the store, the counts, the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runtime.backoff import Backoff
from runtime.config import Config
from runtime.jobs import Registry
from runtime.places import Places
from runtime.settle import Ledger
from runtime.stats import Stats
from runtime.streams import Streams
from runtime.worker.heartbeat import Held
from runtime.worker.lanes import Inbox
from runtime.worker.log import ThrottledLog
from runtime.worker.maintenance import Maintenance

STORE_BACKOFF: Final = Backoff(base_s=0.05, cap_s=5.0)


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """Jobs pass over it: fetcher → inbox → lanes → ledger → flusher; `held` knows every lease on the way."""

    config: Config
    registry: Registry
    streams: Streams
    maintenance: Maintenance
    inbox: Inbox
    ledger: Ledger
    held: Held
    stats: Stats
    log: ThrottledLog
    places: Mapping[str, Places]
