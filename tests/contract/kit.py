"""What the suite of a worker's verbs needs beside them: a hand behind the store's back, for a server and for the double."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
import redis

from runtime.codec import as_text, decode_many, unpack_record
from runtime.jobs import FREE, STREAMS, SUSPECT, Batch, Claim, Deferral, Lease, Letter, Parking
from runtime.limits import Limits
from runtime.schedules import Definition, Due, Settings, define
from runtime.store.base import GROUP, Keys, WorkerRow, script
from runtime.store.control import place_in
from runtime.store.shapes import Ask, Fetched, Serve, TickAsk
from runtime.streams import Streams
from tests.contract.snapshot import snapshot, stable
from tests.cruelty import Fault, Plan
from tests.double import MemoryStreams
from tests.memory import MemoryStore
from tests.proxy import Proxy
from tests.servers import Server

HIGH = 1
ME, OTHER = "me", "other"
LEASE_MS = 30_000
LONG_MS = 10**7


class Kit:
    """A queue and what a test does to it that no verb of a worker does; entries are texts here."""

    def __init__(self) -> None:
        self._opened: list[Any] = []

    def streams(self, consumer: str = ME, **options: Any) -> Streams:
        """Return a worker's store, closed at the end of the test."""
        self._opened.append(self._open(consumer, **options))
        return self._opened[-1]

    async def close(self) -> None:
        """Close all that was opened."""
        for streams in self._opened:
            await streams.close()

    def _open(self, consumer: str, **options: Any) -> Streams:
        raise NotImplementedError

    def suspect(self, count: int = 1, to: int = HIGH, **fields: str) -> str:
        """Add a job that some worker held when it died."""
        entry = self.add(to, **fields)
        self.read_as("dead", to)
        self.claim(entry, SUSPECT, count, stream=to)
        return entry

    def add(self, to: int = HIGH, entry: str = "*", **fields: str) -> str:
        """Add a message of type `t`."""
        return self.add_fields({"type": "t", "data": "{}", **fields}, to, entry)

    def add_fields(self, fields: dict[str, str], to: int = HIGH, entry: str = "*") -> str:
        """Add an entry with these fields alone."""
        raise NotImplementedError

    def read_as(self, consumer: str, stream: int = HIGH) -> None:
        """Hand all new entries to somebody."""
        raise NotImplementedError

    def claim(self, entry: str | bytes, holder: str, count: int | None = None, idle_ms: int = 0, stream: int = HIGH) -> None:
        """Put an entry into other hands, by this count (or the one it has) and idle for so long."""
        raise NotImplementedError


class ServerKit(Kit):
    """A real server; `raw` is a plain client of it."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.server = server
        self.raw = server.client()

    def _open(self, consumer: str, **options: Any) -> Streams:
        return Streams(self.server.url, "jobs", consumer, **options)

    async def close(self) -> None:
        await super().close()
        self.raw.close()

    @contextlib.asynccontextmanager
    async def losing(self, verb: str, cut_at_bytes: int) -> AsyncIterator[Streams]:
        """Open a store whose next reply to a verb is lost."""
        async with Proxy(self.server.socket) as proxy:
            unlucky = Streams(proxy.url, "jobs", ME)
            proxy.drop_next_reply(b"EVALSHA" if verb != "done" else b"XACK", cut_at_bytes)
            yield unlucky
            assert proxy.dropped == 1
            await unlucky.close()

    @staticmethod
    def _key(stream: int) -> str:
        return f"{{jobs}}:{STREAMS[stream]}"

    def clear(self) -> None:
        self.raw.flushall()

    def now_ms(self) -> int:
        seconds, micros = self.raw.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def add_fields(self, fields: dict[str, str], to: int = HIGH, entry: str = "*") -> str:
        return str(self.raw.xadd(self._key(to), cast("Any", fields), id=entry))

    def delete(self, entry: str, stream: int = HIGH) -> None:
        self.raw.xdel(self._key(stream), entry)

    def read_as(self, consumer: str, stream: int = HIGH) -> None:
        self.raw.xreadgroup(GROUP, consumer, {self._key(stream): ">"})

    def claim(self, entry: str | bytes, holder: str, count: int | None = None, idle_ms: int = 0, stream: int = HIGH) -> None:
        self.raw.xclaim(self._key(stream), GROUP, holder, 0, cast("Any", [entry]), idle=idle_ms, retrycount=count, justid=True)

    def holders(self, stream: int = HIGH) -> dict[str, tuple[str, int]]:
        rows = self.raw.xpending_range(self._key(stream), GROUP, "-", "+", 10_000)
        return {row["message_id"]: (row["consumer"], row["times_delivered"]) for row in rows}

    def idle_ms(self, entry: str | bytes, stream: int = HIGH) -> int:
        [row] = self.raw.xpending_range(self._key(stream), GROUP, entry, entry, 1)
        return int(row["time_since_delivered"])

    def messages(self, stream: int = HIGH) -> list[dict[str, str]]:
        return [fields for _, fields in self.raw.xrange(self._key(stream))]

    def ids(self, stream: int = HIGH) -> dict[str, str]:
        return {entry: fields.get("id", "") for entry, fields in self.raw.xrange(self._key(stream))}

    def letters(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.raw.xrange("{jobs}:dead")]

    def results(self) -> dict[str, Any]:
        """Return the value of each result, or the reason of a death."""
        keys = self.raw.keys("{jobs}:results:*")
        return {key.removeprefix("{jobs}:results:"): _result_in(self.raw.get(key)) for key in keys}

    def due(self) -> dict[str, float]:
        return dict(self.raw.zrange("{jobs}:due", 0, -1, withscores=True))

    def is_waiting(self) -> bool:
        return bool(self.raw.info("clients")["blocked_clients"])

    def set_due(self, member: str, at_ms: int | None) -> None:
        if at_ms is None:
            self.raw.zrem("{jobs}:due", member)
        else:
            self.raw.zadd("{jobs}:due", {member: at_ms})

    def records(self) -> set[str]:
        return set(self.raw.hkeys("{jobs}:msg"))

    def record(self, member: str) -> dict[str, str]:
        return as_text(unpack_record(self.raw.execute_command("HGET", "{jobs}:msg", member, NEVER_DECODE=True) or b""))

    def lose_record(self, member: str) -> None:
        self.raw.hdel("{jobs}:msg", member)

    def snapshot(self) -> dict[str, Any]:
        return snapshot(self.raw)

    def set_until(self, until_ms: dict[str, int]) -> None:
        self.raw.zadd("{jobs}:workers", cast("Any", until_ms))

    def until_ms(self, name: str) -> float:
        return self.raw.zscore("{jobs}:workers", name) or 0

    def strikes(self) -> dict[str, str]:
        return self.raw.hgetall("{jobs}:strikes")

    def set_strikes(self, at: str, names: str) -> None:
        self.raw.hset("{jobs}:strikes", at, names)

    def isolations(self) -> dict[str, str]:
        return {name: row.partition(" ")[2] for name, row in self.raw.hgetall("{jobs}:wards").items()}

    def set_isolation(self, name: str, until_ms: int, alone: str = "") -> None:
        self.raw.hset("{jobs}:wards", name, f"{until_ms} {alone}")

    def marks(self) -> dict[str, str]:
        keys = self.raw.keys("{jobs}:seen:k:*")
        return {key.removeprefix("{jobs}:seen:k:"): self.raw.get(key) for key in keys}

    def set_mark(self, key: str, place: str) -> None:
        self.raw.set(f"{{jobs}}:seen:k:{key}", place)

    def order(self, *operations: tuple[str, str, str], by: str = "ann@host", reason: str = "") -> list[int]:
        return self._run("control", by, reason, *[word for operation in operations for word in operation])

    def _run(self, name: str, *words: Any) -> Any:
        keys = Keys("jobs").scripted
        try:
            return self.raw.evalsha(script(name).sha, len(keys), *keys, *words)
        except redis.exceptions.NoScriptError:
            self.raw.script_load(script(name).text)
            return self._run(name, *words)

    def cancel(self, place: str) -> str:
        """Cancel a job as people do."""
        return self._run("steer", "cancel", "ann@host", "", "", *place_in(place))[0]

    def cancels(self) -> dict[str, float]:
        return dict(self.raw.zrange("{jobs}:cancels", 0, -1, withscores=True))

    def control(self) -> dict[str, str]:
        return self.raw.hgetall("{jobs}:control")

    def audit(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.raw.xrange("{jobs}:audit")]

    def progress(self, consumer: str) -> bytes | None:
        found = self.raw.get(f"{{jobs}}:progress:{consumer}")
        return None if found is None else found.encode()

    def rows(self) -> dict[str, str]:
        return self.raw.hgetall("{jobs}:workers:rows")

    def minute(self, minute: int) -> dict[str, str]:
        return self.raw.hgetall(f"{{jobs}}:stats:{minute}")

    def logs(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.raw.xrange("{jobs}:logs")]

    def events(self) -> list[dict[str, str]]:
        return [fields for _, fields in self.raw.xrange("{jobs}:events")]

    def set_schedule(self, name: str, text: str) -> None:
        self.raw.hset("{jobs}:cron", name, text)

    def cron_state(self) -> dict[str, str]:
        return self.raw.hgetall("{jobs}:cron:state")

    def set_cron_state(self, name: str, text: str) -> None:
        self.raw.hset("{jobs}:cron:state", name, text)

    def permits(self) -> dict[str, dict[str, float]]:
        keys = [str(key) for key in self.raw.keys("{jobs}:permits:*")]
        return {key.removeprefix("{jobs}:permits:"): dict(self.raw.zrange(key, 0, -1, withscores=True)) for key in keys}

    def set_permits(self, gate: str, seen_ms: Mapping[str, float]) -> None:
        self.raw.zadd(f"{{jobs}}:permits:{gate}", cast("Any", seen_ms))

    def rates(self) -> dict[str, str]:
        keys = [str(key) for key in self.raw.keys("{jobs}:rate:*")]
        return {key.removeprefix("{jobs}:rate:"): str(self.raw.get(key)) for key in keys}

    def set_rate(self, gate: str, text: str) -> None:
        self.raw.set(f"{{jobs}}:rate:{gate}", text)

    def lose_groups(self) -> None:
        for stream in range(len(STREAMS)):
            self.raw.xgroup_destroy(self._key(stream), GROUP)
            self.raw.xgroup_create(self._key(stream), GROUP, "0")


class MemoryKit(Kit):
    """The double."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()

    def _open(self, consumer: str, **options: Any) -> Streams:
        return cast("Streams", MemoryStreams(self.store, consumer, **options))

    @contextlib.asynccontextmanager
    async def losing(self, verb: str, cut_at_bytes: int) -> AsyncIterator[Streams]:
        """Open a store whose next reply is lost."""
        plan = Plan()
        plan.faults = {
            (name, 1): Fault.LOST
            for name in ("settle", "admit", "renew", "take", "serve", "promote", "reclaim", "beat", "forget", "tick")
        }
        yield cast("Streams", MemoryStreams(self.store, ME, plan))
        assert plan.hits == 1

    def clear(self) -> None:
        self.store.__init__()

    def now_ms(self) -> int:
        return self.store.now_ms

    def add_fields(self, fields: dict[str, str], to: int = HIGH, entry: str = "*") -> str:
        words = [word.encode() for item in fields.items() for word in item]
        return self.store.add(to, words, b"" if entry == "*" else entry.encode()).decode()

    def delete(self, entry: str, stream: int = HIGH) -> None:
        del self.store.entries[stream][entry.encode()]

    def read_as(self, consumer: str, stream: int = HIGH) -> None:
        self.store.read(stream, consumer, 10_000)

    def claim(self, entry: str | bytes, holder: str, count: int | None = None, idle_ms: int = 0, stream: int = HIGH) -> None:
        name = entry if isinstance(entry, bytes) else entry.encode()
        before = self.store.pending[stream][name].count
        self.store.claim(stream, name, holder, before if count is None else count, idle_ms)

    def holders(self, stream: int = HIGH) -> dict[str, tuple[str, int]]:
        return {entry.decode(): (row.consumer, row.count) for entry, row in self.store.pending[stream].items()}

    def idle_ms(self, entry: str | bytes, stream: int = HIGH) -> int:
        name = entry if isinstance(entry, bytes) else entry.encode()
        return int(self.store.now_ms - self.store.pending[stream][name].since_ms)

    def messages(self, stream: int = HIGH) -> list[dict[str, str]]:
        return [as_text(fields) for fields in self.store.entries[stream].values()]

    def ids(self, stream: int = HIGH) -> dict[str, str]:
        return {entry.decode(): as_text(fields).get("id", "") for entry, fields in self.store.entries[stream].items()}

    def letters(self) -> list[dict[str, str]]:
        return [dict(letter) for letter in self.store.dead]

    def results(self) -> dict[str, Any]:
        return {job_id: _result_in(text) for job_id, text in self.store.results.items()}

    def due(self) -> dict[str, float]:
        return dict(self.store.due)

    def is_waiting(self) -> bool:
        return bool(self.store.waiting)

    def set_due(self, member: str, at_ms: int | None) -> None:
        if at_ms is None:
            del self.store.due[member]
        else:
            self.store.due[member] = at_ms

    def records(self) -> set[str]:
        return set(self.store.records)

    def record(self, member: str) -> dict[str, str]:
        return as_text(self.store.records.get(member, []))

    def lose_record(self, member: str) -> None:
        del self.store.records[member]

    def snapshot(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for stream, name in enumerate(STREAMS):
            state[name] = sorted(stable(fields) for fields in self.messages(stream))
            state[f"{name} pending"] = sorted(self.holders(stream).values())
        state |= {"due": sorted(self.store.due), "msg": sorted(self.store.records)}
        return state | {
            "dead": sorted(map(stable, self.store.dead)),
            "marks": sorted(f"k:{key.decode()}" for key in self.store.marks),
        }

    def set_until(self, until_ms: dict[str, int]) -> None:
        self.store.workers |= until_ms

    def until_ms(self, name: str) -> float:
        return self.store.until_ms(name)

    def strikes(self) -> dict[str, str]:
        return dict(self.store.strikes)

    def set_strikes(self, at: str, names: str) -> None:
        self.store.strikes[at] = names

    def isolations(self) -> dict[str, str]:
        return {name: alone for name, (_, alone) in self.store.isolations.items()}

    def set_isolation(self, name: str, until_ms: int, alone: str = "") -> None:
        self.store.isolations[name] = (until_ms, alone)

    def marks(self) -> dict[str, str]:
        return {key.decode(): place for key, place in self.store.marks.items()}

    def set_mark(self, key: str, place: str) -> None:
        self.store.marks[key.encode()] = place

    def order(self, *operations: tuple[str, str, str], by: str = "ann@host", reason: str = "") -> list[int]:
        return self.store.order(by, reason, operations)

    def cancel(self, place: str) -> str:
        stream, entry = place_in(place)
        return self.store.cancel(stream - 1, entry.encode())

    def cancels(self) -> dict[str, float]:
        return dict(self.store.cancels)

    def control(self) -> dict[str, str]:
        return dict(self.store.control)

    def audit(self) -> list[dict[str, str]]:
        return [dict(change) for change in self.store.audit]

    def progress(self, consumer: str) -> bytes | None:
        return self.store.progress.get(consumer)

    def rows(self) -> dict[str, str]:
        return dict(self.store.rows)

    def minute(self, minute: int) -> dict[str, str]:
        return {name: str(count) for name, count in self.store.stats.items()}

    def logs(self) -> list[dict[str, str]]:
        return [dict(fields) for fields in self.store.logs]

    def events(self) -> list[dict[str, str]]:
        return [dict(fields) for fields in self.store.events]

    def set_schedule(self, name: str, text: str) -> None:
        self.store.cron[name] = text

    def cron_state(self) -> dict[str, str]:
        return dict(self.store.cron_state)

    def set_cron_state(self, name: str, text: str) -> None:
        self.store.cron_state[name] = text

    def permits(self) -> dict[str, dict[str, float]]:
        return {gate: dict(seen_ms) for gate, seen_ms in self.store.permits.items() if seen_ms}

    def set_permits(self, gate: str, seen_ms: Mapping[str, float]) -> None:
        self.store.permits.setdefault(gate, {}).update(seen_ms)

    def rates(self) -> dict[str, str]:
        return dict(self.store.rates)

    def set_rate(self, gate: str, text: str) -> None:
        self.store.rates[gate] = text

    def lose_groups(self) -> None:
        self.store.lose_groups()


# --- what both kinds are asked ---------------------------------------------------------------------------------------------


def batch(*moves: Deferral | Letter | Parking, done: Sequence[Lease] = ()) -> Batch:
    """Return what one flush writes."""
    lists: list[list[Any]] = [[], [], [], []]
    for lease in done:
        lists[lease.stream].append(lease)
    return Batch(
        lists,
        [move for move in moves if isinstance(move, Deferral)],
        [move for move in moves if isinstance(move, Letter)],
        [move for move in moves if isinstance(move, Parking)],
    )


async def leases(store: Streams, n: int = 100, stream: int = HIGH) -> list[Any]:
    """Fetch from one stream, as a worker does."""
    shares = [0, 0, 0, 0]
    shares[stream] = n
    return jobs_of(await store.fetch(shares, set()))


def _result_in(text: str | bytes) -> Any:
    told = msgspec.json.decode(text)
    return told["value"] if told["state"] == "done" else told["reason"]


def jobs_of(fetched: Fetched) -> list[Any]:
    """Return what was fetched: jobs, or bare leases of what cannot be read."""
    found: list[Any] = []
    for delivery in fetched.deliveries:
        for row, count in zip(delivery.rows, delivery.counts, strict=False):
            jobs, bad = decode_many(delivery.stream, [row], [count], fetched.run_id, time.monotonic(), fetched.now_ms)
            found += jobs or [entry.lease for entry in bad]
    return found


def pending(kit: Any, stream: int = HIGH) -> list[tuple[str, int]]:
    """Return who holds how often handed out entries."""
    return sorted(kit.holders(stream).values())


def quiet_guard(kit: Any) -> None:
    """Workers have beaten all along: the guard of the store is off."""
    now_ms = kit.now_ms()
    kit.set_until({"~last": now_ms, "~since": now_ms - LONG_MS})


# --- one call of each verb that changes something ----------------------------------------------------------------------------

Act = Callable[[Streams], Awaitable[Any]]


def _with_lease(act: Callable[[Streams, Any], Awaitable[Any]], key: str = "k") -> Callable[[Streams, Any], Awaitable[Act]]:
    async def prepare(store: Streams, kit: Any) -> Act:
        kit.add(entry="7-1", **({"key": key} if key else {}))
        [lease] = await leases(store)
        return lambda which: act(which, lease)

    return prepare


async def _prepare_take(store: Streams, kit: Any) -> Act:
    kit.add(entry="7-1")
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, FREE)))
    return lambda which: which.take(Ask(HIGH, FREE, 5))


async def _prepare_serve(store: Streams, kit: Any) -> Act:
    kit.add(entry="7-1")
    [lease] = await leases(store)
    await store.settle(batch(Parking(lease, "~g:t")))
    return lambda which: which.serve([], [Serve("t", Limits(limit=1), 5, 5, [(HIGH, "~g:t", "")])])


async def _prepare_promote(store: Streams, kit: Any) -> Act:
    kit.add(entry="7-1")
    [lease] = await leases(store)
    await store.settle(batch(Deferral(lease, "retry", 0, "j", 1)))
    return lambda which: which.promote(5, "0")


async def _prepare_reclaim(store: Streams, kit: Any) -> Act:
    kit.add(entry="7-1")
    [lease] = await leases(store)
    quiet_guard(kit)
    kit.claim(lease.entry, ME, idle_ms=40_000)
    return lambda which: which.reclaim(HIGH, LEASE_MS, 100, {})


async def _prepare_beat(store: Streams, kit: Any) -> Act:
    return lambda which: which.beat(WorkerRow(LEASE_MS))


def nightly(when: str = "0 3 * * *", **options: Any) -> Definition:
    """Return a schedule whose jobs go to the stream HIGH."""
    name, revision = options.pop("name", "nightly"), options.pop("revision", 0)
    settings = {"type": "t", "data": msgspec.Raw(b"{}"), "priority": HIGH + 1, "when": when} | options
    return define(name, Settings(**settings), revision)


def row_of(definition: Definition, last_ms: int, alive_ms: int, former: str = "-", ticks: str = "") -> str:
    """Return what stands of a schedule in Redis."""
    return f"{last_ms} {definition.when_hash} {definition.whole_hash} {alive_ms} {former} {ticks}".rstrip()


async def _prepare_tick(store: Streams, kit: Any) -> Act:
    schedule = nightly(overlap="skip")
    kit.set_cron_state("nightly", row_of(schedule, 1000, kit.now_ms()))
    return lambda which: which.tick([TickAsk(schedule, 1000, Due([2000, 3000], 1, 3000))], kit.now_ms())


async def _prepare_forget(store: Streams, kit: Any) -> Act:
    await store.beat(WorkerRow(LEASE_MS))
    return lambda which: which.forget(ME)


VERBS = {
    "done": _with_lease(lambda store, lease: store.settle(batch(done=[lease])), key=""),
    "done with a key": _with_lease(lambda store, lease: store.settle(batch(done=[lease]))),
    "retry": _with_lease(lambda store, lease: store.settle(batch(Deferral(lease, "retry", 0, "j", 1)))),
    "snooze": _with_lease(lambda store, lease: store.settle(batch(Deferral(lease, "snooze", 0, "j", 0)))),
    "at": _with_lease(lambda store, lease: store.settle(batch(Deferral(lease, "at", 5, "j", 0)))),
    "dead": _with_lease(lambda store, lease: store.settle(batch(Letter(lease, "handler", "e", "s", 1, "j")))),
    "release": _with_lease(lambda store, lease: store.settle(batch(Parking(lease, FREE)))),
    "admit": _with_lease(lambda store, lease: store.admit([Claim(lease, b"k")])),
    "renew": _with_lease(lambda store, lease: store.renew([(lease.stream, lease.entry, lease.count)])),
    "take": _prepare_take,
    "serve": _prepare_serve,
    "promote": _prepare_promote,
    "reclaim": _prepare_reclaim,
    "beat": _prepare_beat,
    "forget": _prepare_forget,
    "tick": _prepare_tick,
}
