"""What the parts of a worker share: the four objects that hold jobs, the door, the counts, the words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from runtime.backoff import Backoff
from runtime.config import Config
from runtime.jobs import Registry
from runtime.places import Places
from runtime.settle import Ledger
from runtime.stats import Tally
from runtime.streams import Streams
from runtime.worker.heartbeat import Held
from runtime.worker.lanes import Inbox
from runtime.worker.log import Words
from runtime.worker.maintenance import Scheduler

STORE_BACKOFF: Final = Backoff(base_s=0.05, cap_s=5.0)


@dataclass(frozen=True, slots=True)
class Desk:
    """Jobs pass over it: fetcher → inbox → lanes → ledger → flusher; `held` knows every lease on the way."""

    config: Config
    registry: Registry
    streams: Streams
    scheduler: Scheduler
    inbox: Inbox
    ledger: Ledger
    held: Held
    tally: Tally
    words: Words
    places: Mapping[str, Places]
