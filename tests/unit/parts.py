"""What the tests of a worker's parts share: the parts over the double, jobs to put into it, and waits that are short."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from runtime.backoff import Backoff
from runtime.codec import decode_many
from runtime.config import Config
from runtime.jobs import FREE, SUSPECT, Batch, Handler, Job, Lease, contract, contract_of
from runtime.places import Places, make_places
from runtime.stats import Stats
from runtime.store.base import WorkerRow
from runtime.streams import Streams
from runtime.worker.context import WorkerContext
from runtime.worker.flusher import leases_of
from runtime.worker.gates import Gates
from runtime.worker.heartbeat import Beat, LeaseWatch
from runtime.worker.held import Held
from runtime.worker.hooks import Hooks
from runtime.worker.lanes import Inbox
from runtime.worker.ledger import Ledger
from runtime.worker.log import ThrottledLog
from runtime.worker.orders import Orders
from runtime.worker.parking import Parked
from tests.cruelty import Fault, Plan
from tests.double import MemoryStreams
from tests.memory import MemoryStore, Pending, value

ME = "me"
HIGH = 1
DEADLINE_S = 10.0  # far more than anything takes on a busy machine
LEASE_S = 30.0


@contract("part")
class Part(msgspec.Struct):
    pass


async def _never(payload: Any, job: Job) -> None:
    raise AssertionError("no lane runs here")


REGISTRY: dict[bytes, Handler[Any]] = {
    b"part": Handler(contract_of(Part), _never, lambda job: Part(), _never, 30.0, Backoff(), "loop")
}


class StillInbox(Inbox):
    """An inbox whose lanes wait and start nothing: each job in it has one of them to come."""

    lanes = 4

    @property
    def idle(self) -> int:
        """How many lanes have no job to come."""
        return max(0, self.lanes - len(self))


@dataclass
class Parts:
    """The state that parts share, and the double under it."""

    store: MemoryStore
    plan: Plan
    streams: MemoryStreams
    ctx: WorkerContext
    now_s: list[float] = field(default_factory=lambda: [time.monotonic()])

    def add(self, stream: int = HIGH, type: str = "part", **fields: str) -> bytes:
        """Add a job."""
        message = {"type": type, "data": "{}", **fields}
        return self.store.add(stream, [word.encode() for item in message.items() for word in item])

    def park(self, lot: str = FREE, count: int = 0, stream: int = HIGH, **fields: str) -> bytes:
        """Add a job that stands in a lot."""
        entry = self.add(stream, **fields)
        self.store.read(stream, lot, 1000)
        self.store.pending[stream][entry] = Pending(lot, count, self.store.now_ms)
        return entry

    def suspect(self, count: int = 1, **fields: str) -> bytes:
        """Add a job that some worker held when it died."""
        return self.park(SUSPECT, count, **fields)

    def silence(self) -> None:
        """Let no beat have been confirmed for a lease."""
        self.now_s[0] += self.ctx.config.lease_s

    def confirm(self) -> None:
        """Let a beat be confirmed now."""
        self.ctx.leases.confirm(Beat(self.now_s[0], self.store.run_id, []))

    async def hold(self, n: int = 100, stream: int = HIGH) -> list[Job]:
        """Fetch jobs of one stream and hold them, as admission does; where they go then is the test's part."""
        shares = [0, 0, 0, 0]
        shares[stream] = n
        fetched = await MemoryStreams(self.store, ME).fetch(shares, set())
        for delivery in fetched.deliveries:
            taken = (delivery.stream, delivery.rows, delivery.counts, fetched.run_id, time.monotonic(), fetched.now_ms)
            return self.ctx.held.add(stream, decode_many(*taken)[0])
        return []

    async def write(self) -> None:
        """Write what is in the ledger, as the flusher does."""
        batch = self.ctx.ledger.take()
        await MemoryStreams(self.store, ME).settle(batch)
        self.ctx.held.remove(leases_of(batch))

    # --- where jobs are ------------------------------------------------------------------------------------------------------

    def known(self) -> set[bytes]:
        """Return the entries that are held here."""
        return {lease.entry for held in self.ctx.held._leases for lease in held.values()}

    def accounted(self, apart: Batch | None = None) -> set[bytes]:
        """Return the entries that are in the inbox or the ledger, or wait apart."""
        noted = [*leases_of(self.ctx.ledger._batch), *(leases_of(apart) if apart else ())]
        return {lease.entry for lease in (*self.ctx.inbox.jobs, *noted)}

    def places(self) -> Counter[bytes]:
        """Return in how many places each job is that was added: by its `id`."""
        found = Counter[bytes]()
        for entries in self.store.entries:
            found.update(value(fields, b"id") or b"" for fields in entries.values())
        found.update(value(record, b"id") or b"" for record in self.store.records.values())
        found.update(letter["id"].encode() for letter in self.store.dead)
        return found

    def pending(self, consumer: str = ME) -> set[bytes]:
        """Return the entries that the store lists with a worker or a lot."""
        return {entry for held in self.store.pending for entry, row in held.items() if row.consumer == consumer}

    def check(self, apart: Batch | None = None, *, is_lost: bool = False) -> None:
        """Check that each lease of ours is known here and on its way; `is_lost` allows some that are not known yet."""
        assert self.known() == self.accounted(apart), "held, and neither waiting nor to be written"
        unknown = self.pending() - self.known()
        assert is_lost or not unknown, f"leased, and not known here: {unknown}"


def make(
    *faults: tuple[str, int, Fault], registry: dict[bytes, Handler[Any]] | None = None, places: dict[str, Places] | None = None,
    hooks: Hooks | None = None, **settings: Any,
) -> Parts:  # fmt: skip
    """Return the parts of a worker that runs nothing, over an empty double."""
    config = Config(**{"concurrency": 4, "lease_s": LEASE_S, **settings})
    handlers = REGISTRY if registry is None else registry
    store, plan = MemoryStore(), Plan(*faults)
    streams = MemoryStreams(store, ME, plan)
    now_s = [time.monotonic()]
    found_places = make_places(config.threads) if places is None else places
    ctx = WorkerContext(
        config=config,
        registry=handlers,
        streams=cast("Streams", streams),
        leases=LeaseWatch(config.lease_s, lambda: now_s[0]),
        parked=Parked(handlers, found_places),
        gates=Gates(handlers),
        inbox=StillInbox(),
        ledger=Ledger(),
        held=Held(),
        stats=Stats(),
        log=ThrottledLog(),
        places=found_places,
        orders=Orders(cast("Streams", streams)),
        hooks=hooks,
    )
    return Parts(store, plan, streams, ctx, now_s)


async def until(is_true: Callable[[], object], what: str) -> None:
    """Return when it holds; it is asked in each turn of the loop, which sleeps for a moment where nothing moves."""
    end_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < end_s, f"{what}: not in {DEADLINE_S:g} s"
        await asyncio.sleep(0.0005)


async def rest() -> None:
    """Let the loop turn so often that all which can happen without time has happened."""
    for _ in range(30):
        await asyncio.sleep(0)


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


HURRY: Sequence[tuple[str, Any]] = [
    *(
        (f"runtime.worker.{part}.STORE_BACKOFF", Backoff(base_s=0.001, cap_s=0.005))
        for part in ("fetcher", "flusher", "maintenance", "ticker")
    ),
    ("runtime.worker.maintenance.SWEEP_S", (0.004, 0.008)),
    ("runtime.worker.maintenance.SOON_S", 0.001),
    ("runtime.worker.maintenance.PROMOTE_S", 0.02),
    ("runtime.worker.fetcher.LOTS_S", 0.005),
    ("runtime.worker.fetcher.LONGEST_WAIT_MS", 30),
    ("runtime.worker.fetcher.PAUSE_S", 0.005),
    ("runtime.worker.loop_monitor.WATCH_S", 0.004),
    ("runtime.consumer.TICK_S", 0.01),
    ("runtime.consumer.POLL_S", 0.002),
    ("runtime.consumer.UNBLOCK_S", 0.08),
    ("runtime.consumer.LOST_S", 0.05),
]


def row() -> WorkerRow:
    """Return what this worker says of itself."""
    return WorkerRow(int(LEASE_S * 1000))


def lease_of(parts: Parts, entry: bytes, stream: int = HIGH) -> Lease:
    """Return the lease that is held here for an entry."""
    return parts.ctx.held._leases[stream][entry]
