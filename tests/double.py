"""A store in memory with the verbs of `Streams` and its rules, which fails at any call as a network, a server or a process does.

It passes the same suite as the servers (tests/contract/test_verbs.py), and answers as one of them does to verbs in any order
(test_drift.py). Left out is what only a server has: bytes on the wire, memory, keys of other types, the life of marks.
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

from runtime.codec import MAX_DATA_BYTES, MAX_OTHERS_BYTES, Summary, as_text, entry_fields, pack_record, summary, unpack_record
from runtime.ended import Ended
from runtime.errors import QueueFull, StoreError, StoreUnavailable
from runtime.jobs import FREE, GATE, STREAMS, SUSPECT, Batch, Claim, Deferral, Job, Lease, Letter, Packed, Parking, default_id
from runtime.results import dead_text, done_head
from runtime.rules import VERSION, Rules, parse
from runtime.said import Attempt
from runtime.schema import Declared
from runtime.store.arguments import MAX_IDS
from runtime.store.base import MAX_LEASE_MS, SAID_DEAD, End, Keys, Room, Step, WorkerRow, pairs
from runtime.store.shapes import (
    Ask,
    Delivery,
    Duplicate,
    Fetched,
    Isolated,
    Promoted,
    Reclaimed,
    Serve,
    Served,
    Settled,
    TickAsk,
    Ticked,
)
from runtime.streams import MAX_ANSWER_BYTES
from tests.cruelty import Fault, Plan
from tests.gating import Call
from tests.memory import WHILE_HELD, MemoryStore, first_time, stands_at, value

# The same numbers as in the scripts.
ALONE, STRIKES_OUT, MAX_ISOLATED_BYTES, LATER, DELAY_AFTER_ERROR_MS = 4, 3, 2_000_000, 1.25, 60_000
ALIVE_MS, STALE_MS, FORGET_MS, AHEAD_MS, OFF_MS = 15_000, 60_000, 7 * 86_400_000, 30_000, 10_000
FORMER, TICKS = 8, 20
GUILTY, STRUCK, UNSTRUCK = 1, 2, 3


@dataclass
class Suspect:
    """An entry of the suspects' lot, as `isolate` chooses among them."""

    stream: int
    entry: bytes
    count: int
    rank: int
    names: str
    fields: list[bytes] = field(default_factory=list)


@dataclass
class CronRow:
    """What stands of a schedule in `cron:state`."""

    last: int
    times: str
    whole: str
    alive: int
    former: list[str]
    log: list[str]

    @classmethod
    def parse(cls, text: str) -> CronRow | None:
        """Return the row that a text is."""
        found = re.fullmatch(r"(\d{1,15}) ([0-9a-f]+) ([0-9a-f]+) (\d{1,15}) (\S+) ?(.*)", text)
        if found is None:
            return None
        last, times, whole, alive, former, log = found.groups()
        return cls(int(last), times, whole, int(alive), former.split(",") if former != "-" else [], log.split())

    def __str__(self) -> str:
        former = ",".join(self.former[-FORMER:]) or "-"
        return " ".join([str(self.last), self.times, self.whole, str(self.alive), former, *self.log[-TICKS:]])

    def rule(self, times: str, whole: str, now_ms: int) -> str:
        """Let a definition rule, where it may."""
        if self.whole == whole:
            return ""
        if whole in self.former and now_ms - self.alive < STALE_MS:
            return "other"
        is_new = self.times != times
        self.last = max(self.last, self.alive) if is_new else self.last
        self.former = [*[one for one in self.former if one != whole], self.whole]
        self.times, self.whole, self.alive = times, whole, now_ms
        return "new" if is_new else ""


# --- the verbs ---------------------------------------------------------------------------------------------------------------

Act = Callable[..., Any]


def verb(act: Act) -> Any:
    """Make a verb of a step: it comes to the server in a later turn of the loop, its answer in a later one again."""

    @functools.wraps(act)
    async def called(self: MemoryStreams, *args: Any, **named: Any) -> Any:
        return await self._call(act.__name__, functools.partial(act, self, *args, **named))

    return called


class MemoryStreams:
    """What `Streams` is, over a store in memory; `plan` says what goes wrong."""

    def __init__(self, store: MemoryStore, consumer: str, plan: Plan | None = None, max_data_bytes: int = MAX_DATA_BYTES) -> None:
        self.store = store
        self.consumer = consumer
        self.app = ""
        self.plan = plan or Plan()
        self.url, self.queue, self.keys = "memory://", "jobs", Keys("jobs")
        self.budget_bytes = MAX_ANSWER_BYTES
        self.max_entry_bytes = max_data_bytes + MAX_OTHERS_BYTES
        self.came = (0, 0.0)
        self.is_closed = False
        self._blocked: asyncio.Event | None = None

    @property
    def reconnects(self) -> int:
        """How often a connection was opened again: there is none."""
        return 0

    @property
    def broken(self) -> dict[int, str]:
        """The streams that cannot be read."""
        return self.store.broken

    async def _call(self, name: str, act: Callable[[], Any], wait: Callable[[], Awaitable[None]] | None = None) -> Any:
        plan = self.plan
        if plan.is_dead:
            await plan.die()
        fault = plan.met(name)
        await asyncio.sleep(0)
        match fault:
            case Fault.REFUSED:
                raise StoreUnavailable(f"{name}: no answer")
            case Fault.ERROR:
                raise StoreError(f"{name}: an error")
            case Fault.FULL:
                raise QueueFull(f"{name}: full")
            case Fault.RESTARTED:
                self.store.restart()
            case Fault.KILLED_BEFORE:
                await plan.die()
            case _:
                if plan.is_dead:
                    await plan.die()
        if wait is not None:
            await wait()
        with self.store.lock:
            answer = act()
        match fault:
            case Fault.HELD:
                await plan.hold()
            case Fault.KILLED_AFTER:
                await plan.die()
            case _:
                await asyncio.sleep(0)
        if plan.is_dead:
            await plan.die()
        if fault is Fault.LOST:
            raise StoreUnavailable(f"{name}: the reply was lost")
        return answer

    def sibling(self, answer_s: float) -> MemoryStreams:
        """Return the same worker's store for another loop: one process, which dies as one."""
        return MemoryStreams(self.store, self.consumer, self.plan)

    async def close(self) -> None:
        """Close; may be repeated."""
        self.is_closed = True

    @verb
    def start(self) -> None:
        """Have groups; here they are always there."""

    # --- fetch and take ------------------------------------------------------------------------------------------------------

    @verb
    def fetch(self, shares: Sequence[int], takes: set[int]) -> Fetched:
        """Lease new entries, or those of `~free`."""
        fetched = Fetched(self.store.now_ms, self.store.run_id, [], set())
        asked = [stream for stream, share in enumerate(shares) if share > 0 and stream not in self.broken]
        for stream in asked:
            if stream in self.store.refusing:
                fetched.refused = self.store.refusing[stream]
            elif stream in takes:
                fetched.deliveries.append(self._take(Ask(stream, FREE, min(shares[stream], MAX_IDS)), len(asked)))
            elif rows := self.store.read(stream, self.consumer, shares[stream]):
                fetched.deliveries.append(Delivery(stream, rows, repeat(1)))
            if self.store.held_by(stream, FREE):
                fetched.free.add(stream)
        return self._weighed(fetched)

    async def wait_for_entry(self, block_ms: int, but_not: Collection[int] = ()) -> Fetched:
        """Wait for the first entry."""
        asked = [stream for stream in range(len(STREAMS)) if stream not in {*but_not, *self.broken}]
        free: set[int] = set()

        async def wait() -> None:
            free.update(stream for stream in asked if self.store.held_by(stream, FREE))
            self._blocked = event = asyncio.Event()
            self.store.waiting.add(event)
            end_s, run_id = time.monotonic() + block_ms / 1000, self.store.run_id
            try:
                while not any(self.store.unread(stream) for stream in asked) and self._blocked is event:
                    if self.store.run_id != run_id:
                        raise StoreUnavailable("wait_for_entry: the server has gone")
                    event.clear()
                    async with asyncio.timeout(end_s - time.monotonic()):
                        await event.wait()
            except TimeoutError:
                return
            finally:
                self._blocked = None
                self.store.waiting.discard(event)

        def ring() -> Fetched:
            rung = [(stream, self.store.read(stream, self.consumer, 1)) for stream in asked]
            deliveries = [Delivery(stream, rows, repeat(1)) for stream, rows in rung if rows]
            return self._weighed(Fetched(self.store.now_ms, self.store.run_id, deliveries, free))

        return await self._call("wait_for_entry", ring, wait)

    @verb
    def unblock(self) -> None:
        """Wake the blocked wait; one that is not blocked yet is not woken."""
        if self._blocked is not None:
            self._blocked.set()
            self._blocked = None

    @verb
    def take(self, *asks: Ask) -> Fetched:
        """Lease entries of lots."""
        refused = [self.store.refusing[ask.stream] for ask in asks if ask.stream in self.store.refusing]
        deliveries = [
            Delivery(ask.stream, [], list[int]()) if ask.stream in self.store.refusing else self._take(ask, len(asks))
            for ask in asks
        ]
        return self._weighed(Fetched(self.store.now_ms, self.store.run_id, deliveries, set(), refused[0] if refused else ""))

    def _take(self, ask: Ask, beside: int) -> Delivery:
        store, stream = self.store, ask.stream
        most, spent = max(1, self.budget_bytes // beside), 0
        delivery = Delivery(stream, [], list[int](), list[tuple[bytes, int, int]]())
        innocent: list[bytes] = []
        listed = store.held_by(stream, ask.lot)
        for entry, row in listed if ask.types is not None else listed[: ask.n]:
            if row.count > 0:
                store.put(stream, entry, SUSPECT, row.count)
            elif ask.types is None or _fits(store.entries[stream].get(entry), ask.types):
                innocent.append(entry)
        for entry in innocent[: ask.n]:
            if spent >= most:
                delivery.is_cut = True
                break
            fields = store.entries[stream].get(entry)
            store.claim(stream, entry, self.consumer, 1)
            if fields is None:
                continue
            size = sum(map(len, fields))
            if size > self.max_entry_bytes:
                delivery.oversized = [*delivery.oversized, (entry, 1, size)]
            else:
                spent += size
                delivery.rows.append((entry, fields))
                delivery.counts = [*delivery.counts, 1]
        return delivery

    def _weighed(self, fetched: Fetched) -> Fetched:
        if fetched.refused and not any(delivery.rows or delivery.oversized for delivery in fetched.deliveries):
            raise StoreError(fetched.refused)
        self.came = (sum(len(word) for delivery in fetched.deliveries for _, fields in delivery.rows for word in fields), 0.0)
        return fetched

    @verb
    def leased(self) -> list[Lease]:
        """Return all that is pending with us."""
        now_s, run_id = time.monotonic(), self.store.run_id
        held = [(stream, *item) for stream in range(len(STREAMS)) for item in self.store.held_by(stream, self.consumer)]
        return [Lease(stream, entry, row.count, run_id, now_s) for stream, entry, row in held]

    @verb
    def serve(
        self, parks: Sequence[tuple[Lease, str]], serves: Sequence[Serve], *, by_writer: bool = False
    ) -> tuple[int, list[Served]]:
        """Put into lots what may not start, then serve gates."""
        errors = [self.store.errors[lease.entry] for lease, _ in parks if lease.entry in self.store.errors]
        parked = [
            lease.entry not in self.store.errors and self.store.holds(self.consumer, lease) and self._park(Parking(lease, lot))
            for lease, lot in parks
        ]
        most = max(1, self.budget_bytes // max(1, len(serves)))
        served = [Call(self.store, self.consumer, serve, most, self.max_entry_bytes).run() for serve in serves]
        if errors:
            raise StoreError(errors[0])
        return parked.count(False), served

    @verb
    def admit(self, keyed: Sequence[Claim], *, by_writer: bool = False) -> list[str]:
        """Claim keys."""
        return [self.store.errors.get(claim.lease.entry) or self._admit(claim.lease, claim.key, claim.at_ms) for claim in keyed]

    def _admit(self, lease: Lease, key: bytes, at_ms: int) -> str:
        store, stream, entry = self.store, lease.stream, lease.entry
        place = f"{STREAMS[stream]} {entry.decode()}"
        if not store.holds(self.consumer, lease):
            return "refused"
        if stands_at(stream, entry) in store.cancels:
            store.bury(stream, entry, WHILE_HELD)
            return "refused"
        if store.marks.get(key) == place:
            return "mine"
        fields = store.entries[stream].get(entry, [])
        at_ms = at_ms if fields else 0
        copy = store.is_spare(stream, at_ms, fields, key, place)
        if not at_ms and copy is not None and store.goes_ahead(fields, key):
            return "mine"
        verdict = "mine"
        if copy is not None or (not at_ms and store.is_outrun(fields, entry, key)):
            verdict = copy if copy is not None else Duplicate("outrun")
        elif store.puts_off(at_ms, fields) and (at_ms > store.now_ms or store.owner_of(key, place)):
            verdict = "delayed"
            born_ms = first_time(store.now_ms, value(fields, b"first_at"), entry.partition(b"-")[0])
            own_id = (value(fields, b"id") or default_id(STREAMS[stream], entry.decode()).encode()).decode()
            place = store.delay(stream, at_ms, fields, own_id, born_ms, stands_at(stream, entry))
        if verdict != "mine":
            store.remove(stream, entry, lease.count)
        if verdict != "duplicate":
            store.marks[key] = place
        return verdict

    # --- isolation -----------------------------------------------------------------------------------------------------------

    @verb
    def isolate(
        self,
        lease_ms: int,
        calm_ms: int,
        base_ms: int,
        n: int,
        types: Mapping[str, tuple[int, int]],
        is_clean: bool = True,
        paused: Collection[int] = (),
        limited: Mapping[str, tuple[bool, bool]] = {},
    ) -> Isolated:
        """Ask whether this worker may isolate, and for suspects."""
        store, me = self.store, self.consumer

        def answer(word: str, for_ms: float = 0, chosen: Sequence[Suspect] = ()) -> Isolated:
            deliveries = [Delivery(one.stream, [(one.entry, one.fields)], [one.count + 1]) for one in chosen]
            names = chosen[0].names.split() if chosen else []
            return Isolated(word, int(for_ms), Fetched(store.now_ms, store.run_id, deliveries, set()), names)

        if n < 0:
            store.isolations.pop(me, None)
            return answer("none")
        is_any = any(store.held_by(stream, SUSPECT) for stream in range(len(STREAMS)))
        listed = [one for one in self._suspects(is_clean) if one.stream not in paused]
        wait_ms, wait_to_wait_ms = self._wait_for_place()
        if wait_ms > 0 and listed and listed[0].rank != GUILTY:
            store.isolations.pop(me, None)
            return answer("busy", wait_ms)
        chosen = self._choose(listed, n, types, limited)
        if not chosen or (chosen[0].rank != GUILTY and wait_ms > 0):
            store.isolations.pop(me, None)
            return answer("none", wait_ms if chosen else self._sweep_strikes() or (lease_ms if is_any else 0))
        timeouts = [types.get((value(one.fields, b"type") or b"").decode(), (0, 0))[1] for one in chosen]
        isolation_ms = max(min(base_ms * 2 ** (one.count - 1), most) for one, most in zip(chosen, timeouts, strict=True))
        is_guilty = chosen[0].rank == GUILTY
        if not is_guilty and (n == 0 or 0 <= calm_ms < isolation_ms):
            if wait_to_wait_ms > 0:
                store.isolations.pop(me, None)
                return answer("busy", wait_to_wait_ms)
            store.isolations[me] = (store.now_ms + max(lease_ms, 2 * isolation_ms), "waiting")
            return answer("wait", isolation_ms)
        for one in chosen:
            store.claim(one.stream, one.entry, me, one.count + 1)
        if not is_guilty:
            alone = stands_at(chosen[0].stream, chosen[0].entry) if len(chosen) == 1 else ""
            store.isolations[me] = (store.now_ms + isolation_ms, alone)
        return answer("dead" if is_guilty else "run", isolation_ms, chosen)

    def _suspects(self, is_clean: bool) -> list[Suspect]:
        listed: list[Suspect] = []
        for stream in range(len(STREAMS)):
            for entry, row in self.store.held_by(stream, SUSPECT):
                names, count, rank = self.store.strikes.get(stands_at(stream, entry), ""), max(1, row.count), UNSTRUCK
                if count > 1 and names:
                    rank = GUILTY if len(names.split()) >= STRIKES_OUT else STRUCK
                if rank != STRUCK or is_clean:
                    listed.append(Suspect(stream, entry, count, rank, names))
        return sorted(listed, key=lambda one: (one.rank, one.count))  # sorted keeps the order of streams and entries

    def _has_never_run(self, one: Suspect, fields: list[bytes], limited: Mapping[str, tuple[bool, bool]]) -> bool:
        kind, group = ((value(fields, name) or b"").decode() for name in (b"type", b"group"))
        of_type, of_group = limited.get(kind, (False, False))
        name = kind if of_type else f"{kind}:{group}" if of_group and group else ""
        return bool(name) and one.count == 1 and stands_at(one.stream, one.entry) not in self.store.permits.get(name, {})

    def _choose(
        self, listed: Sequence[Suspect], n: int, types: Mapping[str, tuple[int, int]], limited: Mapping[str, tuple[bool, bool]]
    ) -> list[Suspect]:
        chosen: list[Suspect] = []
        most, size = 1, 0
        waiting = sum(len(self.store.held_by(stream, SUSPECT)) for stream in range(len(STREAMS)))
        newest = {name: version for name, (version, _) in types.items()}
        for one in listed:
            if chosen and (len(chosen) >= most or one.count != chosen[0].count or size > MAX_ISOLATED_BYTES):
                break
            fields = self.store.entries[one.stream].get(one.entry)
            if fields is None:
                del self.store.pending[one.stream][one.entry]
            elif _fits(fields, newest) and self._has_never_run(one, fields, limited):
                kind = (value(fields, b"type") or b"").decode()
                self.store.put(one.stream, one.entry, f"{GATE}{kind}", 0)
            elif value(fields, b"type") is None or _fits(fields, newest):
                one.fields = fields
                chosen.append(one)
                size += sum(map(len, fields))
                if len(chosen) == 1 and one.rank == UNSTRUCK and one.count < ALONE:
                    most = n if one.count == 1 else min(n, math.isqrt(waiting))
        return chosen

    def _wait_for_place(self) -> tuple[float, float]:
        store, now_ms = self.store, self.store.now_ms
        places = max(1, sum(1 for until_ms in store.workers.values() if until_ms > now_ms) // 2)
        theirs = [
            (ends_ms, alone) for name, (ends_ms, alone) in store.isolations.items()
            if name != self.consumer and min(ends_ms, store.until_ms(name)) > now_ms
        ]  # fmt: skip
        running, taken = [ends_ms for ends_ms, alone in theirs if alone != "waiting"], [ends_ms for ends_ms, _ in theirs]
        to_run, to_wait = (0 if len(ends) < places else min(ends) - now_ms for ends in (running, taken))
        return to_run, to_wait

    def _sweep_strikes(self) -> int:
        places = {stands_at(stream, entry) for stream, held in enumerate(self.store.pending) for entry in held}
        self.store.strikes = {at: names for at, names in self.store.strikes.items() if at in places}
        self.store.isolations = {name: row for name, row in self.store.isolations.items() if name in self.store.workers}
        return 0

    @verb
    def acquit(self, alone: Sequence[tuple[int, bytes]]) -> None:
        """An isolation is over."""
        self.store.isolations.pop(self.consumer, None)
        for stream, entry in alone:
            row = self.store.pending[stream].get(entry)
            if row and row.consumer == self.consumer:
                self.store.strikes.pop(stands_at(stream, entry), None)
            else:
                self.store.acquit(stream, entry, self.consumer)

    # --- settle --------------------------------------------------------------------------------------------------------------

    @verb
    def settle(self, batch: Batch) -> Settled:
        """Write a batch of outcomes."""
        settled = Settled(0, 0, Batch([[], [], [], []], [], [], []), "")
        if batch.results and self.store.is_full:
            settled.unkept = (len(batch.results), "OOM")
        else:
            head = done_head(round(self.store.now_ms))
            self.store.results |= {one.job_id: head + one.value + b"}" for one in batch.results}
        for jobs in batch.done:
            for job in jobs:
                is_old = job.run_id != self.store.run_id
                if error := self._refusal(job):
                    settled.left.put(job)
                    settled.error = error
                elif not self._finish(job, is_old):
                    settled.refused += is_old
                    settled.shortfall += not is_old
        moves: list[tuple[Any, list[Any], Callable[[Any], bool]]] = [
            *((move, settled.left.defer, self._defer) for move in batch.defer),
            *((move, settled.left.dead, functools.partial(self._bury, self.consumer)) for move in batch.dead),
            *((move, settled.left.park, self._park) for move in batch.park),
        ]
        for move, left, act in moves:
            if move.lease.entry in self.store.errors:
                left.append(move)
                settled.error = self.store.errors[move.lease.entry]
            elif not self.store.holds(self.consumer, move.lease) or not act(move):
                settled.refused += 1
                settled.undead += [move] if isinstance(move, Letter) else []
        return settled

    def _refusal(self, job: Job) -> str:
        """Return why what a job hands on cannot be stored."""
        store, streams = self.store, {packed.head.stream for packed in job.followers}
        if streams and store.is_full:
            return "OOM command not allowed when used memory > 'maxmemory'."
        return next((store.refusing[stream] for stream in streams if stream in store.refusing), "")

    def _enqueue(self, packed: Packed, own: str, other: str) -> None:
        store, stream, due_ms = self.store, packed.head.stream, packed.head.due_ms
        fields = entry_fields(packed.head.fields, packed.data)
        key = value(fields, b"key")
        if key and store.is_spare(stream, due_ms, fields, key, own) is not None:
            return
        place = (
            store.delay(stream, due_ms, fields, packed.head.id, store.now_ms, other)
            if due_ms
            else f"{STREAMS[stream]} {store.add(stream, fields).decode()}"
        )
        if key:
            store.marks[key] = place

    def _finish(self, job: Job, is_fenced: bool) -> bool:
        if is_fenced and not self.store.holds(self.consumer, job):
            return False
        is_there = job.entry in self.store.pending[job.stream]
        if job.followers:
            if not is_there or job.entry not in self.store.entries[job.stream]:
                self.store.pending[job.stream].pop(job.entry, None)
                return False
            for packed in job.followers:
                self._enqueue(packed, f"{STREAMS[job.stream]} {job.entry.decode()}", stands_at(job.stream, job.entry))
        self.store.remove(job.stream, job.entry, job.count)
        self.store.move_key(job.envelope.key, f"{STREAMS[job.stream]} {job.entry.decode()}", "")
        return is_there

    def _defer(self, move: Deferral) -> bool:
        store, stream, entry = self.store, move.lease.stream, move.lease.entry
        if stands_at(stream, entry) in store.cancels:
            return store.bury(stream, entry, WHILE_HELD)
        is_there = entry in store.entries[stream]
        store.remove(stream, entry, move.lease.count)
        if is_there:
            member = f"{move.job_id}#{stands_at(stream, entry)}" if move.job_id in store.records else move.job_id
            store.records[member] = unpack_record(pack_record(move))
            store.due[member] = move.when_ms if move.kind == "at" else store.now_ms + move.when_ms
            store.move_key(move.lease.envelope.key, f"{STREAMS[stream]} {entry.decode()}", f"due {member}")
        return is_there

    def _bury(self, holder: str, letter: Letter) -> bool:
        store, stream, entry = self.store, letter.lease.stream, letter.lease.entry
        if not store.holds(holder, letter.lease):
            return False
        fields = store.entries[stream].get(entry)
        if fields is None:
            del store.pending[stream][entry]
            return False
        store.remove(stream, entry, letter.lease.count)
        notes = {"reason": letter.code, "error": letter.error, "stack": letter.stack, "attempts": str(letter.attempts)}
        notes |= {"from": stands_at(stream, entry), "at": str(store.now_ms)}
        notes |= {"by": self.consumer} | ({"app": self.app} if self.app else {})
        if letter.trace:
            notes["trace"] = letter.trace.decode()
        tries = {"e": letter.tries.decode()} if letter.tries else {}
        own_id = {"id": letter.job_id} if letter.job_id and value(fields, b"id") is None else {}
        store.dead.append(as_text(fields) | own_id | tries | {f"dead_{name}": note for name, note in notes.items()})
        store.move_key(value(fields, b"key"), f"{STREAMS[stream]} {entry.decode()}", "")
        if letter.result_ms:
            own = (value(fields, b"id") or letter.job_id.encode()).decode()
            store.results[own] = dead_text(letter.code, letter.error, letter.attempts, round(store.now_ms))
        return True

    def _park(self, move: Parking) -> bool:
        stream, entry, count = move.lease.stream, move.lease.entry, move.lease.count
        self.store.put(stream, entry, move.lot, count - 1)
        if count > 1:
            self.store.acquit(stream, entry, self.consumer)
        return True

    # --- leases, lots, delayed jobs ------------------------------------------------------------------------------------------

    @verb
    def renew(self, leases: Sequence[tuple[int, bytes, int]]) -> list[int]:
        """Renew leases; an entry that nobody has is no refusal."""
        refused: list[int] = []
        for position, (stream, entry, count) in enumerate(leases):
            row = self.store.pending[stream].get(entry)
            if row and (row.consumer, row.count) == (self.consumer, count):
                self.store.claim(stream, entry, self.consumer, count)
            elif row or entry not in self.store.entries[stream]:
                refused.append(position)
                self.store.acquit(stream, entry, self.consumer)
        return refused

    @verb
    def beat(self, row: WorkerRow) -> str:
        """Say that this worker lives."""
        now_ms = self.store.now_ms
        self.store.guarded_for_ms(row.lease_ms)
        self.store.workers |= {"~last": now_ms, self.consumer: now_ms + row.lease_ms}
        self.store.rows[self.consumer] = str(row)
        return self.store.run_id

    @verb
    def workers(self) -> dict[str, tuple[int, WorkerRow]]:
        """Return the known workers."""
        known = {name: until_ms for name, until_ms in self.store.workers.items() if not name.startswith("~")}
        return {name: (int(until_ms), WorkerRow.parse(self.store.rows.get(name, ""))) for name, until_ms in known.items()}

    @verb
    def lots(self) -> tuple[dict[tuple[int, str], int], set[int], dict[int, int]]:
        """Return the lots with their sizes, the streams of which workers hold some, and how many entries of each wait."""
        found = Counter((stream, row.consumer) for stream, held in enumerate(self.store.pending) for row in held.values())
        lots = {at: number for at, number in found.items() if at[1].startswith("~")}
        sizes = [(len(rows), len(held)) for rows, held in zip(self.store.entries, self.store.pending, strict=True)]
        waiting = {stream: max(0, length - held) for stream, (length, held) in enumerate(sizes)}
        return lots, {stream for stream, name in found if not name.startswith("~")}, waiting

    @verb
    def empty_lots(self) -> set[str]:
        """Return the lots that hold nothing; here a lot that holds nothing is none."""
        return set()

    @verb
    def waiting_longest(self, stream: int, lot: str, idle_ms: int, n: int) -> list[tuple[bytes, int, Summary]]:
        """Return entries that sat in a lot for long."""
        held = self.store.held_by(stream, lot)
        old = [(entry, row.count) for entry, row in held if self.store.now_ms - row.since_ms >= idle_ms][:n]
        abouts = [summary(self.store.entries[stream].get(entry, ())) for entry, _ in old]
        return [(*item, about) for item, about in zip(old, abouts, strict=True)]

    @verb
    def dead_letter(self, lot: str, letters: Sequence[Letter]) -> list[Letter]:
        """Move entries of a lot to the dead letters."""
        return [letter for letter in letters if self._bury(lot, letter)]

    @verb
    def promote(self, n: int, cursor: str) -> Promoted:
        """Move delayed jobs to their streams."""
        store, now_ms, moved, bad, is_full = self.store, self.store.now_ms, 0, 0, False
        due = sorted((due_ms, member) for member, due_ms in store.due.items() if due_ms <= now_ms)[:n]
        for _, member in due:
            record = store.records.get(member, [])
            if store.is_full:
                is_full = True
                break
            if len(record) > 2 and STREAMS.index(record[1].decode()) in store.refusing:
                store.due[member] = now_ms + DELAY_AFTER_ERROR_MS
                continue
            if len(record) > 2:
                stream = STREAMS.index(record[1].decode())
                names = zip(record[2::2], record[3::2], strict=True)
                fields = [word for name, text in names if name != b"at" for word in (name, text)]
                entry = store.add(stream, fields)
                store.move_key(value(fields, b"key"), f"due {member}", f"{STREAMS[stream]} {entry.decode()}")
            moved, bad = moved + (len(record) > 2), bad + (len(record) <= 2)
            store.records.pop(member, None)
            del store.due[member]
        store.due |= {member: now_ms for member in store.records if member not in store.due}
        wait_ms = max(0, math.ceil(min(store.due.values()) - now_ms)) if store.due else -1
        return Promoted(moved, bad, wait_ms, is_full, "0")

    @verb
    def definitions(self) -> dict[str, str]:
        """Return what stands of schedules."""
        return dict(self.store.cron)

    @verb
    def step(self, operation: str) -> Step:
        """Answer what a test has put there for this operation, as often as it says; else there is none."""
        steps = self.store.steps.get(operation)
        return steps.pop(0) if steps else Step("gone", -1)

    @verb
    def tick(self, asks: Sequence[TickAsk], now_ms: int, must_forget: bool = False) -> tuple[int, list[Ticked]]:
        """Confirm schedules, and fire what is due."""
        if self.store.is_full:
            raise QueueFull("tick: full")
        is_off = self.store.now_ms - now_ms > OFF_MS
        ticked = [self._tick(ask, is_off) for ask in asks]
        now_ms = self.store.now_ms
        if must_forget:
            rows = {name: CronRow.parse(text) for name, text in self.store.cron_state.items()}
            for name in [name for name, row in rows.items() if row and now_ms - row.alive > FORGET_MS]:
                del self.store.cron_state[name]
        return now_ms, ticked

    def _tick(self, ask: TickAsk, is_off: bool) -> Ticked:
        definition, now_ms = ask.definition, self.store.now_ms
        if definition.name in self.store.cron_errors:
            return Ticked(self.store.cron_errors[definition.name], 0, 0, 0)
        row = CronRow.parse(self.store.cron_state.get(definition.name, ""))
        stored = re.match(r"\d+", self.store.cron.get(definition.name, ""))
        if (stored[0] if stored else "0") != str(definition.revision):
            return Ticked("other", row.last if row else now_ms, 0, 0)
        answer = ("new", 0, 0)
        if row is None:
            row = CronRow(now_ms, definition.when_hash, definition.whole_hash, now_ms, [], [])
        else:
            answer = self._decide(ask, row, is_off)
        self.store.cron_state[definition.name] = str(row)
        return Ticked(answer[0], row.last, *answer[1:])

    def _decide(self, ask: TickAsk, row: CronRow, is_off: bool) -> tuple[str, int, int]:
        now_ms, due = self.store.now_ms, ask.due
        is_ahead = row.last > now_ms + AHEAD_MS
        row.last = now_ms if is_ahead else row.last
        row.alive = now_ms if row.alive > now_ms + AHEAD_MS else row.alive
        word = row.rule(ask.definition.when_hash, ask.definition.whole_hash, now_ms)
        if word or is_ahead:
            return word if word == "other" or not is_ahead else "ahead", 0, 0
        row.alive = now_ms if now_ms - row.alive > ALIVE_MS else row.alive
        if not due.ticks and not due.missed and due.last_ms <= row.last:
            return "kept", 0, 0
        if ask.known_ms != row.last:
            return "moved", 0, 0
        if due.last_ms > now_ms or is_off:
            return "early", 0, 0
        return self._fire(ask, row)

    def _fire(self, ask: TickAsk, row: CronRow) -> tuple[str, int, int]:
        definition, now_ms, due = ask.definition, self.store.now_ms, ask.due
        settings, key, before = definition.settings, f"cron:{definition.name}".encode(), len(row.log)
        row.log += [f"{now_ms}m{due.missed}"] if due.missed else []
        for tick in due.ticks:
            if settings.overlap == "skip" and not self.store.key_is_free(key, ""):
                row.log.append(f"{tick}s")
                continue
            expires_ms = definition.expires_ms(tick)
            fields = [b"id", b"%b:%d" % (key, tick), b"first_at", b"%d" % tick]
            fields += [] if expires_ms is None else [b"exp", b"%d" % expires_ms]
            fields += [b"key", key] if settings.overlap == "skip" else []
            entry = self.store.add(settings.priority - 1, [*fields, *definition.fields()])
            if settings.overlap == "skip":
                self.store.marks[key] = f"{STREAMS[settings.priority - 1]} {entry.decode()}"
            row.log.append(f"{tick}f")
        if settings.paused and "p" not in (row.log[-1] if row.log else ""):
            row.log.append(f"{now_ms}p")
        row.last, row.alive = due.last_ms, now_ms
        fired = sum(1 for tick in row.log[before:] if tick.endswith("f"))
        return "fired", fired, len(due.ticks) - fired

    @verb
    def reclaim(self, stream: int, lease_ms: int, n: int, still: Mapping[str, int]) -> Reclaimed:
        """Take from workers what nobody renews."""
        store = self.store
        is_guarded = store.guarded_for_ms(lease_ms) < lease_ms
        dead = undelivered = 0
        leases = {name: _lease_in(row) for name, row in store.rows.items()}
        longest = max([lease_ms, *(lease or 0 for lease in leases.values())])
        for name in sorted({row.consumer for row in store.pending[stream].values() if not row.consumer.startswith("~")}):
            is_reaped = store.workers.get(name) == SAID_DEAD
            if is_guarded and not is_reaped:
                continue
            is_still = is_reaped or (name in still and still[name] == int(store.until_ms(name)))
            is_alive = store.until_ms(name) > store.now_ms and not is_still
            idle_ms = 0 if is_still else leases.get(name) or longest
            held = store.held_by(stream, name)
            late = [item for item in held if store.now_ms - item[1].since_ms >= idle_ms * (LATER if is_alive else 1)]
            for entry, row in late[: n - dead - undelivered]:
                if is_alive:
                    store.put(stream, entry, FREE, max(0, row.count - 1))
                    store.acquit(stream, entry, name)
                    undelivered += 1
                else:
                    at = stands_at(stream, entry)
                    if store.isolations.get(name, (0, ""))[1] == at:
                        store.strikes[at] = " ".join(dict.fromkeys([*store.strikes.get(at, "").split(), name]))
                    store.put(stream, entry, SUSPECT, max(1, row.count))
                    dead += 1
                    store.events.append(_lost(store, stream, entry, name))
        return Reclaimed(dead, undelivered, is_guarded)

    @verb
    def ends(self) -> list[End]:
        """Return where each stream ends."""
        return self.store.ends

    @verb
    def room(self) -> Room:
        """Return how much memory there is."""
        return Room(2, 2) if self.store.is_full else Room(1, 2)

    @verb
    def forget(self, consumer: str, stood_at_ms: int | None = None) -> bool:
        """Remove a worker that holds nothing."""
        has_moved = stood_at_ms is not None and int(self.store.until_ms(consumer)) != stood_at_ms
        if has_moved or any(self.store.held_by(stream, consumer) for stream in range(len(STREAMS))):
            return False
        for table in (self.store.workers, self.store.rows, self.store.isolations):
            table.pop(consumer, None)
        self.store.control.pop(f"worker:{consumer}", None)
        return True

    @verb
    def count(
        self,
        minute: int,
        counts: Sequence[tuple[str, int]],
        progress: bytes | None = None,
        ended: Sequence[Attempt] = (),
        *,
        events: Sequence[Ended] = (),
        depths: Mapping[int, int] = {},
        row: WorkerRow | None = None,
    ) -> str:
        """Add to the counters; return how often the rules were changed."""
        self.store.stats.update(dict(counts))
        self.store.events += [dict(pairs(list(map(str, one.fields())))) for one in events]
        for stream, n in depths.items():
            self.store.stats[f" {STREAMS[stream]} depth"] = n
        if row is not None and self.consumer in self.store.workers:
            self.store.rows[self.consumer] = str(row)
        self.store.logs += [dict(pairs(list(map(str, one.fields())))) for one in ended]
        if progress is not None:
            self.store.progress.pop(self.consumer, None)
            self.store.progress |= {self.consumer: progress} if progress else {}
        return self.store.control.get(VERSION, "")

    @verb
    def declare(self, contracts: Iterable[Declared], schedules: Mapping[str, str] | None = None) -> None:
        """Write down contracts, handlers and schedules."""
        self.store.contracts |= {one.field: bytes(one) for one in contracts}
        self.store.cron_code |= schedules or {}

    @verb
    def marks_of(self, work: str) -> bytes | None:
        """Return what the attempts at a piece of work remember."""
        return self.store.remembered.get(work)

    @verb
    def set_marks(self, work: str, value: bytes) -> None:
        """Write it."""
        self.store.remembered[work] = value

    @verb
    def delete_marks(self, work: str) -> None:
        """Remove it."""
        self.store.remembered.pop(work, None)

    @verb
    def rules(self, since_ms: int = 0) -> tuple[Rules, int, dict[str, str]]:
        """Return the rules that people have ordered, the time, and what they have cancelled."""
        rules = parse((name.encode(), text.encode()) for name, text in self.store.control.items())
        return rules, self.store.now_ms, {place: "ann@host" for place, at_ms in self.store.cancels.items() if at_ms >= since_ms}

    @verb
    def unmark(self, places: Sequence[tuple[int, bytes]]) -> None:
        """Take away the marks of what has left its stream."""
        for stream, entry in places:
            if entry not in self.store.entries[stream]:
                self.store.cancels.pop(stands_at(stream, entry), None)


def _fits(fields: Sequence[bytes] | None, newest: Mapping[str, int]) -> bool:
    """Return whether one of these types can run it; what was deleted fits all."""
    if fields is None:
        return True
    version = value(fields, b"v") or b"1"
    known = newest.get((value(fields, b"type") or b"").decode(errors="replace"))
    return known is not None and (int(version) if version.isdigit() else 0) <= known


def _lease_in(row: str) -> int | None:
    found = re.match(r"(\d+) ", row)
    return min(int(found[1]), MAX_LEASE_MS) if found else None


def _lost(store: MemoryStore, stream: int, entry: bytes, consumer: str) -> dict[str, str]:
    fields = store.entries[stream].get(entry)
    told = {"place": stands_at(stream, entry), "outcome": "lost", "at": str(int(store.now_ms)), "by": consumer}
    if fields is None:
        return told
    about = summary(fields)
    name = about.id or default_id(STREAMS[stream], entry.decode())
    return {**told, "id": name, "type": about.type_name, "attempt": str(about.attempt)}
