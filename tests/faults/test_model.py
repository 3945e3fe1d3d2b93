"""The store against a model: any verbs in any order, by three workers of which some are zombies, with replies that get lost.

After each step the server must hold what the model says, and the invariants hold on the server by themselves.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

import runtime.sender
from runtime import Backoff, Message, Priority, Producer, contract
from runtime.codec import decode_many, unpack_record
from runtime.errors import StoreUnavailable
from runtime.jobs import FREE, STREAMS, UNKNOWN, Claim, Deferral, Lease, Letter, Parking, lot_of
from runtime.jobs import Job as WorkerJob
from runtime.store.base import GROUP, Store, WorkerRow
from runtime.store.connection import Connection
from runtime.store.control import ControlStore
from runtime.store.resp import Command
from runtime.store.shapes import Ask, Fetched
from runtime.streams import Streams
from runtime.worker.ledger import empty_batch
from tests.faults.model import DEAD, DUE, ENTRY, Job, Model
from tests.servers import Server

WORKERS = ("ann", "bob", "cid")
KEYS = ("k", "l")
AGES_MS = (0, 60_000, 200_000)  # below both leases, between them, above both
LEASES_MS = (30_000, 120_000)
LONG_AGO_MS = 10**8
FAR_MS = (int(time.time()) + 9 * 365 * 86400) * 1000  # further than any rule waits, and near enough to be sent
LOTS = (FREE, UNKNOWN, lot_of("t", 1), lot_of("u", 2))
ALL_TYPES = {"t": 1, "u": 2}

SAME = settings(  # no shrinking: that takes minutes, and forty steps can be read
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    stateful_step_count=40,
    max_examples=60,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
)
WIDE = settings(SAME, derandomize=False, max_examples=250, stateful_step_count=60)


@contract("t")
class Tea(msgspec.Struct, frozen=True):
    n: int


@contract("u", version=2)
class Urn(msgspec.Struct, frozen=True):
    n: int


class ForgetfulConnection(Connection):
    """A connection that loses the replies of one call when told to: the server did it all, nobody hears of it."""

    loses_next = False

    async def call(self, *commands: Command, wait_s: float = 0.0, run_id: str = "") -> list[Any]:
        answers = await super().call(*commands, wait_s=wait_s, run_id=run_id)
        if self.loses_next:
            self.loses_next = False
            raise StoreUnavailable("the reply was lost")
        return answers


class Bench:
    """Owns a loop, three workers' stores, a producer and a person's writes on one server, kept over all examples."""

    def __init__(self, server: Server) -> None:
        self.loop = asyncio.new_event_loop()
        self.stores = {name: Streams(server.url, "jobs", name) for name in WORKERS}
        for store in self.stores.values():
            store._reader = ForgetfulConnection(server.url, "fetch")
            store._writer = ForgetfulConnection(server.url, "settle")
            store._helper = ForgetfulConnection(server.url, "helper")
        self.control = ControlStore(server.url, "jobs")
        self.control._connection = ForgetfulConnection(server.url, "control")
        self.eye = Connection(server.url, "eye")
        self.keys = self.control.keys
        self.producer = self.do(self._producer(server.url))
        self.steps = 0
        self.examples = 0
        self.moves = Counter[tuple[str, bool]]()

    @staticmethod
    async def _producer(url: str) -> Producer:
        producer = await Producer.connect(url).__aenter__()
        producer._connection = ForgetfulConnection(url, "producer")
        return producer

    def do(self, what: Awaitable[Any]) -> Any:
        return self.loop.run_until_complete(what)

    def ask(self, *commands: Command) -> list[Any]:
        answers = self.do(self.eye.call(*commands))
        for answer in answers:
            assert not isinstance(answer, str), answer
        return answers

    def repeated(self, connection: Connection, call: Callable[[], Awaitable[Any]], loses: bool) -> Any:
        """Call; with `loses`, the first reply is lost, and the call is made again as every caller does."""
        if loses:
            assert isinstance(connection, ForgetfulConnection)
            connection.loses_next = True
            with pytest.raises(StoreUnavailable):
                self.do(call())
        return self.do(call())

    def __str__(self) -> str:
        moved = sum(count for (_, is_passed), count in self.moves.items() if is_passed)
        return f"{self.examples} examples, {self.steps} steps, {moved} moves, {sum(self.moves.values()) - moved} refused"

    def clear(self) -> None:
        self.ask(("FLUSHALL",))
        self.do(Store.prepare(self.control, self.eye))
        self.examples += 1

    def close(self) -> None:
        self.do(self.producer.__aexit__(None, None, None))
        for store in (*self.stores.values(), self.control, self.eye):
            self.do(store.close())
        self.loop.close()


# --- what stands on the server -----------------------------------------------------------------------------------------------


class Seen(msgspec.Struct):
    """All that one look at the server shows; `acked` are entries that no read will ever return."""

    now_ms: int
    jobs: dict[int, Job]
    twice: list[int]
    marks: dict[str, str]
    overs: dict[str, int]
    alive: dict[str, bool]
    rows: dict[str, int]
    acked: list[str]
    bodiless: list[str]
    cancels: set[str]


def look(bench: Bench) -> Seen:
    keys = bench.keys
    answers = iter(
        bench.ask(
            ("TIME",),
            *[("XRANGE", key, "-", "+") for key in keys.streams],
            *[("XPENDING", key, GROUP, "-", "+", 1000) for key in keys.streams],
            *[("XINFO", "GROUPS", key) for key in keys.streams],
            ("ZRANGE", keys.due, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.messages),
            ("XRANGE", keys.dead, "-", "+"),
            ("MGET", *[f"{keys.prefix}seen:k:{key}" for key in KEYS]),
            ("MGET", *[f"{keys.prefix}seen:o:{key}" for key in KEYS]),
            ("ZRANGE", keys.workers, 0, -1, "WITHSCORES"),
            ("HGETALL", keys.rows),
            ("ZRANGE", keys.cancels, 0, -1),
        )
    )
    seconds, micros = next(answers)
    seen = Seen(int(seconds) * 1000 + int(micros) // 1000, {}, [], {}, {}, {}, {}, [], [], set())
    entries, pendings, groups = ([next(answers) for _ in range(4)] for _ in range(3))
    for stream in range(4):
        pending = {row[0]: row for row in pendings[stream]}
        group = pairs(groups[stream][0])
        last = order(text(group[b"last-delivered-id"]))
        for entry, flat in entries[stream]:
            job = job_of(pairs(flat), ENTRY, text(entry), stream)
            if entry in pending:
                _, holder, idle_ms, count = pending.pop(entry)
                job.holder, job.count, job.idle_ms = text(holder), count, max(age for age in AGES_MS if age <= idle_ms)
            elif order(text(entry)) <= last:
                seen.acked.append(f"{STREAMS[stream]}/{text(entry)}")
            note(seen, job)
        seen.bodiless += [f"{STREAMS[stream]}/{text(entry)}" for entry in pending]
    due = {text(member): float(score) for member, score in pairs(next(answers)).items()}
    for member, packed in pairs(next(answers)).items():
        flat = unpack_record(packed)
        job = job_of(pairs(flat), DUE, text(member), STREAMS.index(text(flat[1])))
        score = due.pop(job.ref, None)
        job.is_due, job.due_ms = (None, 0.0) if score is None else (score <= seen.now_ms, score)
        note(seen, job)
    seen.bodiless += due
    for letter, flat in next(answers):
        fields = pairs(flat)
        job = job_of(fields, DEAD, text(letter), STREAMS.index(text(fields[b"dead_from"].partition(b"/")[0])))
        job.reason, job.attempts = text(fields[b"dead_reason"]), int(fields[b"dead_attempts"])
        note(seen, job)
    seen.marks = {key: text(mark) for key, mark in zip(KEYS, next(answers), strict=True) if mark}
    seen.overs = {key: int(over) for key, over in zip(KEYS, next(answers), strict=True) if over}
    until = pairs(next(answers))
    seen.alive = {text(name): float(score) > seen.now_ms for name, score in until.items() if not name.startswith(b"~")}
    seen.rows = {text(name): int(row.partition(b" ")[0]) for name, row in pairs(next(answers)).items()}
    seen.cancels = set(map(text, next(answers)))
    return seen


def job_of(fields: dict[bytes, bytes], place: str, ref: str, stream: int) -> Job:
    first = fields.get(b"first_at") or (fields[b"dead_from"].partition(b"/")[2] if place == DEAD else ref.encode())
    return Job(
        n=json.loads(fields[b"data"])["n"],
        place=place,
        ref=ref,
        stream=stream,
        type=text(fields[b"type"]),
        version=int(fields.get(b"v", b"1")),
        key=text(fields.get(b"key", b"")),
        id=text(fields.get(b"id", b"")),
        failed=int(fields.get(b"a", b"0")),
        born_ms=text(first.partition(b"-")[0]),
        snoozed_ms=text(fields.get(b"snoozed_at", b"")),
        origin=text(fields.get(b"x-origin", b"")),
    )


def note(seen: Seen, job: Job) -> None:
    if job.n in seen.jobs:
        seen.twice.append(job.n)
    seen.jobs[job.n] = job


def pairs(flat: list[bytes]) -> dict[bytes, Any]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def text(raw: bytes) -> str:
    return raw.decode()


def order(entry: str) -> tuple[int, ...]:
    return tuple(int(part) for part in entry.split("-"))


# --- the machine -------------------------------------------------------------------------------------------------------------

who = st.sampled_from(WORKERS)
which = st.integers(0, 30)  # counted from the newest
streams = st.sampled_from((0, 1, 1, 1, 2, 3))
loses = st.sampled_from((False, False, True))
MOVES = (
    *("done", "done", "old done", "retry now", "retry later", "snooze now", "snooze later", "at past", "at later"),
    *("dead", "release", "release", "park", "park shared"),
)
ACCIDENTS = (
    *("a worker falls silent", "nobody renews", "nobody renews"),
    *("no beat came for long", "the clock was set back", "a time is lost", "the group is lost"),
)
messages = st.tuples(
    streams,
    st.sampled_from((Tea, Urn)),
    st.sampled_from(("", *KEYS)),
    st.sampled_from(("", "own", "same")),
    st.sampled_from(("", "", "failed", "waits")),
)


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one verb on the server and in the model, and compares the answers."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.model = Model()
        self.n = 0
        self.leases: list[tuple[str, WorkerJob]] = []
        self.letters: list[tuple[int, str]] = []
        self.owed: set[int] = set()  # accepted, and neither done nor dropped as a copy
        self.owners: set[int] = set()  # claimed their key, and have not ended since
        self.failed: dict[int, int] = {}
        self.retried: set[int] = set()
        self.replayed: set[int] = set()
        self.seen = Seen(0, {}, [], {}, {}, {}, {}, [], [], set())

    @initialize(first=st.lists(messages, min_size=2, max_size=8))
    def begin(self, first: list[Any]) -> None:
        self.bench.clear()
        for message in first:
            self.add_by_hand(message)

    def look(self) -> None:
        """See what the verb has made of the server; the model is told what the server chose."""
        self.seen = look(self.bench)
        self.model.told, self.model.told_overs = self.seen.jobs, self.seen.overs
        self.bench.steps += 1
        known = {letter for _, letter in self.letters}
        self.letters += [(n, job.ref) for n, job in self.seen.jobs.items() if job.place == DEAD and job.ref not in known]

    def pick(self, back: int) -> tuple[str, WorkerJob]:
        """Return a lease: even numbers choose among those that hold, odd ones among zombies, whose job somebody else has."""
        held = [(name, job) for name, job in self.leases if self.model.held(name, job)]
        zombies = [(name, job) for name, job in self.leases if self.model.find(job) and not self.model.held(name, job)]
        chosen = (zombies if back % 2 else held) or self.leases
        return chosen[-1 - back // 2 % len(chosen)]

    def have_work(self) -> None:
        """Let somebody hold something, so that a move has what to move."""
        if not any(self.model.held(name, job) for name, job in self.leases):
            for key in ("k", ""):  # the first may be a copy
                self.add_by_hand((1, Tea, key, "same", ""))
            self.fetch(WORKERS[0], (3, 3, 3, 3), set(), True, False)

    def receive(self, name: str, fetched: Fetched) -> list[tuple[int, int]]:
        """Read what was handed out as a worker reads it, and keep the leases for ever."""
        got: list[tuple[int, int]] = []
        for delivery in fetched.deliveries:
            now_s = time.monotonic()
            jobs, bad = decode_many(delivery.stream, delivery.rows, delivery.counts, fetched.run_id, now_s, fetched.now_ms)
            assert not bad
            self.leases += [(name, job) for job in jobs]
            got += [(json.loads(job.data)["n"], job.count) for job in jobs]
        return got

    # --- into the queue ------------------------------------------------------------------------------------------------------

    @rule(chunk=st.lists(st.tuples(messages, st.sampled_from((None, None, True, False))), min_size=1, max_size=3), loses=loses)
    def send(self, chunk: list[Any], loses: bool) -> None:
        sent: list[tuple[Job, bool | None]] = []
        wanted: list[Message] = []
        for (stream, payload, key, id_kind, _), is_due in chunk:
            self.n += 1
            job_id = {"": "", "own": f"job-{self.n}", "same": "same"}[id_kind]
            at = {None: None, True: 1.0, False: FAR_MS / 1000}[is_due]
            wanted.append(Message(payload=payload(self.n), priority=Priority(stream + 1), key=key, id=job_id, at=at))
            version = 1 if payload is Tea else 2
            sent.append(
                (Job(self.n, stream=stream, type="t" if version == 1 else "u", version=version, key=key, id=job_id), is_due)
            )
        assert isinstance(self.bench.producer._connection, ForgetfulConnection)
        self.bench.producer._connection.loses_next = loses
        answers = self.bench.do(self.bench.producer.send_many(wanted))
        self.look()
        for (job, is_due), answer in zip(sent, answers, strict=True):
            job.id = answer.id if is_due is not None else job.id
        assert self.model.send(sent) == [answer.new for answer in answers]
        self._note_folded()
        for (job, _), answer in zip(sent, answers, strict=True):
            if answer.new and job.n in self.model.jobs:
                self.owed.add(job.n)
                if job.key and job.place == DUE:
                    self._own_behind(job.n)
                self.owners |= {job.n} if job.key else set()
                assert answer.id == job.known_id if job.place == ENTRY else job.id

    def _own_behind(self, n: int) -> None:
        """A job that waits for its time has the key from now on; the one before it has begun, and has it no more."""
        jobs = self.model.jobs
        self.owners = {owner for owner in self.owners if owner in jobs and jobs[owner].key != jobs[n].key} | {n}

    def _note_folded(self) -> None:
        """What took the place of another job is owed in its stead."""
        self.owed = {job.n for job in self.model.jobs.values() if job.n in self.owed or self.model.folded}
        self.owners -= {*self.model.folded}
        self.model.folded.clear()

    @rule(message=messages)
    def add_by_hand(self, message: Any) -> None:
        stream, payload, key, id_kind, more = message
        self.n += 1
        job_id = {"": "", "own": f"job-{self.n}", "same": "same"}[id_kind]
        version = 1 if payload is Tea else 2
        job = Job(
            self.n,
            stream=stream,
            type="t" if version == 1 else "u",
            version=version,
            key=key,
            id=job_id,
            failed=int(more == "failed"),
            waits=more == "waits",
        )
        fields = {"type": job.type, "data": f'{{"n":{self.n}}}', "key": key, "id": job_id, "v": version, "a": job.failed}
        fields |= {"at": FAR_MS if job.waits else ""}
        flat = [part for name, value in fields.items() if value for part in (name, value)]
        self.bench.ask(("XADD", self.bench.keys.streams[stream], "*", *flat))
        self.look()
        self.model.add(job)
        self.owed.add(job.n)

    @rule(name=who, most=st.sampled_from((1, 2, 500)), loses=loses)
    def promote(self, name: str, most: int, loses: bool) -> None:
        if not any(job.place == DUE and job.is_due for job in self.model.jobs.values()):
            self.settle([(0, "retry now"), (2, "snooze now")], False)
        store = self.bench.stores[name]
        answer = self.bench.repeated(store._helper, lambda: store.promote(most, "0"), loses)
        self.look()
        moved = [self.model.promote(most) for _ in range(2 if loses else 1)][-1]
        assert (answer.moved, answer.bad, answer.is_full) == (moved, 0, False)
        waits = [job.is_due for job in self.model.jobs.values() if job.place == DUE]
        assert answer.wait_ms == (0 if any(waits) else -1) or (answer.wait_ms > 0 and waits and not any(waits))

    @precondition(lambda self: self.letters)
    @rule(back=which, loses=loses)
    def replay(self, back: int, loses: bool) -> None:
        n, letter = self.letters[-1 - back % len(self.letters)]
        answer = self.bench.repeated(self.bench.control._connection, lambda: self.bench.control.replay(letter), loses)
        self.look()
        answers = [self.model.replay(n, letter) for _ in range(2 if loses else 1)]
        assert answer == answers[-1]
        if answers[0] not in ("gone", "owned"):
            self.replayed.add(n)
            self.owners |= {n} if self.model.jobs[n].key else set()

    # --- to a worker ---------------------------------------------------------------------------------------------------------

    @rule(
        name=who,
        shares=st.tuples(*[st.integers(0, 3)] * 4),
        takes=st.sets(st.integers(0, 3)),
        admits=st.sampled_from((True, True, False)),
        loses=loses,
    )
    def fetch(self, name: str, shares: tuple[int, ...], takes: set[int], admits: bool, loses: bool) -> None:
        store = self.bench.stores[name]
        fetched = None
        if loses:  # nobody repeats a fetch: what was handed out is held by a worker that does not know it
            store._reader.loses_next = True
            with pytest.raises(StoreUnavailable):
                self.bench.do(store.fetch(shares, takes))
        else:
            fetched = self.bench.do(store.fetch(shares, takes))
        self.look()
        expected: list[tuple[int, int]] = []
        free: set[int] = set()
        for stream, share in enumerate(shares):
            if share:
                if stream in takes:
                    expected += self.model.take(name, stream, FREE, share, None)
                else:
                    expected += self.model.read(name, stream, share)
                free |= {stream} if self.model.entries(stream, FREE) else set()
        if fetched:
            assert self.receive(name, fetched) == expected
            assert fetched.free == free
            if admits:
                self._admit(name, [job for _, job in self.leases[len(self.leases) - len(expected) :]], False)

    @rule(name=who, stream=streams, lot=st.sampled_from(LOTS), most=st.integers(1, 3), knows=st.sampled_from(("t", "u")))
    def take(self, name: str, stream: int, lot: str, most: int, knows: str) -> None:
        types = {knows: ALL_TYPES[knows]} if lot == UNKNOWN else None
        fetched = self.bench.do(self.bench.stores[name].take(Ask(stream, lot, most, types)))
        self.look()
        assert self.receive(name, fetched) == self.model.take(name, stream, lot, most, types)

    @rule(name=who, most=st.integers(1, 3), knows=st.sampled_from(("t", "u")))
    def isolate(self, name: str, most: int, knows: str) -> None:
        store, version = self.bench.stores[name], ALL_TYPES[knows]
        found = self.bench.do(store.isolate(30_000, -1, 10_000, most, {knows: (version, 30_000)}))
        self.look()
        assert self.receive(name, found.fetched) == self.model.isolate(name, most, {knows: version})
        self.bench.do(store.isolate(0, 0, 0, -1, {}))  # another worker may isolate

    @rule(backs=st.lists(which, min_size=1, max_size=4), loses=loses)
    def admit(self, backs: list[int], loses: bool) -> None:
        self.have_work()
        self._admit(self.pick(backs[0])[0], [self.pick(back)[1] for back in backs], loses)

    def _admit(self, name: str, jobs: list[WorkerJob], loses: bool) -> None:
        asked = [Claim(job, job.envelope.key, job.envelope.at_ms) for job in jobs if job.envelope.key]
        if not asked:
            return
        store = self.bench.stores[name]
        answer = self.bench.repeated(store._reader, lambda: store.admit(asked), loses)
        self.look()
        for _ in range(2 if loses else 1):
            answers = []
            for claim in asked:
                there = self.model.find(claim.lease)
                answers.append(self.model.admit(name, claim.lease, text(claim.key)))
                if answers[-1] == "mine" and there and self.model.marks[there.key] == there.spot:
                    self.owners.add(there.n)
                if answers[-1] == "delayed" and there:
                    self._own_behind(there.n)
                if answers[-1] == "duplicate" and there:
                    gone = self.model.folded.pop() if self.model.folded else there.n
                    self.owed.remove(gone)
                    self.owners.discard(gone)
        assert answer == answers

    # --- from a worker -------------------------------------------------------------------------------------------------------

    @rule(moves=st.lists(st.tuples(which, st.sampled_from(MOVES)), min_size=1, max_size=4), loses=loses)
    def settle(self, moves: list[tuple[int, str]], loses: bool) -> None:
        self.have_work()
        name = self.pick(moves[0][0])[0]
        store = self.bench.stores[name]
        batch, chosen = empty_batch(), [(self.pick(back)[1], move) for back, move in moves]
        for job, move in chosen:
            verb, _, how = move.partition(" ")
            match verb:
                case "done":
                    batch.done[job.stream].append(job)
                case "old":
                    batch.done[job.stream].append(msgspec.structs.replace(job, run_id="another server"))
                case "at":
                    when_ms = 1 if how == "past" else FAR_MS
                    batch.defer.append(Deferral(job, "at", when_ms, job.id, job.envelope.failed))
                case "retry" | "snooze":
                    wait_ms = 0 if how == "now" else 600_000
                    failed = job.attempt if verb == "retry" else job.envelope.failed
                    batch.defer.append(Deferral(job, verb, wait_ms, job.id, failed))
                case "dead":
                    batch.dead.append(Letter(job, "handler", "e", "", job.attempt, job.id))
                case "release":
                    batch.park.append(Parking(job, FREE))
                case _:
                    lot = UNKNOWN if how else lot_of(text(job.type), job.envelope.version)
                    batch.park.append(Parking(job, lot))
        answer = self.bench.repeated(store._writer, lambda: store.settle(batch), loses)
        self.look()
        for _ in range(2 if loses else 1):
            refused = shortfall = 0
            for job, move in sorted(chosen, key=lambda item: rank(item[1])):
                there = self.model.find(job)
                held = self.model.held(name, job)
                is_passed = self._settle_one(name, job, move)
                if move == "done":
                    shortfall += not is_passed
                    self.owed -= {there.n} if there else set()
                else:
                    refused += not is_passed
                    assert is_passed == (held is not None), "only who holds the token moves a job"
                self.bench.moves[verb_of(move), is_passed] += 1
                if is_passed and held:
                    self.owed -= {held.n} if move == "old done" else set()
                    self.owners -= {held.n} if move in ("old done", "dead") else set()
                    self.retried |= {held.n} if move.startswith("retry") else set()
        assert (answer.refused, answer.shortfall, answer.error) == (refused, shortfall, "")

    @rule(moves=st.lists(st.tuples(which, st.sampled_from(MOVES)), min_size=1, max_size=4), loses=loses)
    def settle_more(self, moves: list[tuple[int, str]], loses: bool) -> None:
        """The same: a rule is chosen as often as its neighbours, and this is what workers do most."""
        self.settle(moves, loses)

    @rule(moves=st.lists(st.tuples(which, st.sampled_from(MOVES)), min_size=1, max_size=2))
    def settle_late(self, moves: list[tuple[int, str]]) -> None:
        """By zombies alone."""
        self.settle([(back | 1, move) for back, move in moves], False)

    def _settle_one(self, name: str, job: WorkerJob, move: str) -> bool:
        verb, _, how = move.partition(" ")
        match verb:
            case "done":
                return self.model.done(job)
            case "old":
                return self.model.fenced_done(name, job)
            case "dead":
                return self.model.dead(name, job, "handler", job.attempt, job.id)
            case "at" | "retry" | "snooze":
                failed = job.attempt if verb == "retry" else job.envelope.failed
                return self.model.defer(name, job, verb, job.id, failed, how in ("now", "past"))
            case "release":
                return self.model.park(name, job, FREE)
            case _:
                return self.model.park(name, job, UNKNOWN if how else lot_of(text(job.type), job.envelope.version))

    @rule(backs=st.lists(which, min_size=1, max_size=4), loses=loses)
    def renew(self, backs: list[int], loses: bool) -> None:
        self.have_work()
        name = self.pick(backs[0])[0]
        picked = [self.pick(back)[1] for back in backs]
        store = self.bench.stores[name]
        asked = [(job.stream, job.entry, job.count) for job in picked]
        answer = self.bench.repeated(store._helper, lambda: store.renew(asked), loses)
        self.look()
        assert answer == self.model.renew(name, picked)

    # --- by people -----------------------------------------------------------------------------------------------------------

    @rule(verb=st.sampled_from(("cancel", "now", "priority")), back=which, stream=streams, loses=loses)
    def steer(self, verb: str, back: int, stream: int, loses: bool) -> None:
        jobs = [job for _, job in sorted(self.model.jobs.items()) if job.place != DEAD]
        if jobs:
            self._steer(jobs[-1 - back % len(jobs)], verb, stream, loses)

    @rule(back=which, loses=loses)
    def cancel_what_runs(self, back: int, loses: bool) -> None:
        """As often as not its worker is the next to move it, or nobody is."""
        self.have_work()
        name, lease = self.pick(2 * back)
        job = self.model.held(name, lease)
        if job:
            self._steer(job, "cancel", 0, loses)

    def _steer(self, job: Job, verb: str, stream: int, loses: bool) -> None:
        n, spot, control = job.n, job.spot, self.bench.control
        argument = STREAMS[stream] if verb == "priority" else ""
        call = partial(control.steer, verb, "ann@host", "", [spot.replace(" ", "/", 1)], argument)
        [answer] = self.bench.repeated(control._connection, call, loses)
        self.look()
        answers: list[str] = []
        for _ in range(2 if loses else 1):
            match verb:
                case "cancel":
                    answers.append(self.model.cancel(n, spot))
                case "now":
                    answers.append(self.model.run_now(n, spot))
                case _:
                    answers.append(self.model.set_priority(n, spot, stream))
        assert answer == answers[-1]
        self.bench.moves[f"{verb} {answer.partition(' ')[0]}", True] += 1

    # --- life and death ------------------------------------------------------------------------------------------------------

    @rule(name=who, lease_ms=st.sampled_from(LEASES_MS), loses=loses)
    def beat(self, name: str, lease_ms: int, loses: bool) -> None:
        store = self.bench.stores[name]
        self.bench.repeated(store._helper, lambda: store.beat(WorkerRow(lease_ms)), loses)
        self.look()
        self.model.beat(name, lease_ms)

    @rule(accident=st.sampled_from(ACCIDENTS), name=who, stream=streams, back=which, age_ms=st.sampled_from(AGES_MS))
    def suffer(self, accident: str, name: str, stream: int, back: int, age_ms: int) -> None:
        keys = self.bench.keys
        match accident:
            case "a worker falls silent" if name in self.model.is_alive:
                self.bench.ask(("ZADD", keys.workers, self.seen.now_ms - 1, name))
                self.model.is_alive[name] = False
            case "nobody renews" if holders := self.model.holders(stream):
                for job in self.model.entries(stream, holders[back % len(holders)]):
                    claim = ("XCLAIM", keys.streams[stream], GROUP, job.holder, 0, job.ref)
                    self.bench.ask((*claim, "IDLE", age_ms, "RETRYCOUNT", job.count, "JUSTID"))
                    job.idle_ms = age_ms
            case "no beat came for long" | "the clock was set back":
                ago_ms = LONG_AGO_MS if accident.startswith("no") else -LONG_AGO_MS
                self.bench.ask(("ZADD", keys.workers, self.seen.now_ms - ago_ms, "~last"))
                self.model.has_gap = True
            case "a time is lost" if delayed := [job for job in self.model.jobs.values() if job.place == DUE]:
                delayed[0].is_due = None
                self.bench.ask(("ZREM", keys.due, delayed[0].ref))
            case "the group is lost" if back == 0:
                self.bench.ask(*[("XGROUP", "DESTROY", key, GROUP) for key in keys.streams])
                self.bench.do(Store.prepare(self.bench.control, self.bench.eye))
                self.model.lose_group()
        self.look()

    @rule(
        name=who,
        stream=streams,
        lease_ms=st.sampled_from(LEASES_MS),
        most=st.sampled_from((1, 2, 100)),
        still=st.lists(who, max_size=1),
        has_moved=st.sampled_from((False, False, True)),
        calm=st.sampled_from((True, True, False)),
        loses=loses,
    )
    def reclaim(
        self, name: str, stream: int, lease_ms: int, most: int, still: list[str], has_moved: bool, calm: bool, loses: bool
    ) -> None:
        if calm:  # for longer than a lease, beats have come regularly
            long_ago_ms = self.seen.now_ms - LONG_AGO_MS
            self.bench.ask(("ZADD", self.bench.keys.workers, long_ago_ms, "~since", look_at_clock(self.bench), "~last"))
            self.model.has_gap = self.model.is_guarded = False
        store = self.bench.stores[name]
        stood_at = {worker: int(self.bench.ask(("ZSCORE", self.bench.keys.workers, worker))[0] or 0) for worker in still}
        if has_moved:  # the sweep saw it where it stood before
            stood_at = {worker: at_ms - 1 for worker, at_ms in stood_at.items()}
            still = []
        answer = self.bench.repeated(store._helper, lambda: store.reclaim(stream, lease_ms, most, stood_at), loses)
        self.look()
        answers = [self.model.reclaim(stream, lease_ms, most, still) for _ in range(2 if loses else 1)]
        assert (answer.dead, answer.undelivered, answer.is_guarded) == answers[-1]

    @rule(heir=who, back=which, is_alive=st.booleans())
    def inherit(self, heir: str, back: int, is_alive: bool) -> None:
        """What a worker holds on a stream is not renewed any more; an heir, perhaps itself, finds it and takes it."""
        self.have_work()
        name, job = self.pick(2 * back)
        if not self.model.held(name, job):
            return
        self.beat(name, LEASES_MS[0], False)
        if not is_alive:
            self.suffer("a worker falls silent", name, job.stream, 0, 0)
        at = self.model.holders(job.stream).index(name)
        self.suffer("nobody renews", name, job.stream, at, AGES_MS[2])
        self.reclaim(heir, job.stream, LEASES_MS[0], 100, [], False, True, False)
        self.take(heir, job.stream, FREE, 3, "t")
        self.isolate(heir, 3, "t")

    @rule(name=who, about=who, loses=loses)
    def forget(self, name: str, about: str, loses: bool) -> None:
        store = self.bench.stores[name]
        answer = self.bench.repeated(store._helper, lambda: store.forget(about), loses)
        self.look()
        assert answer == self.model.forget(about)

    @rule(name=who, stream=streams, lot=st.sampled_from(LOTS[1:]), is_late=st.booleans())
    def dead_letter(self, name: str, stream: int, lot: str, is_late: bool) -> None:
        """What sat too long in a lot dies, but for what was taken since it was looked at."""
        store = self.bench.stores[name]
        found = self.bench.do(store.waiting_longest(stream, lot, AGES_MS[1], 10))
        old = [job for job in self.model.entries(stream, lot) if job.idle_ms >= AGES_MS[1]]
        assert [(text(entry), count, text(about.type)) for entry, count, about in found] == [
            (job.ref, job.count, job.type) for job in old
        ]
        if is_late:
            taken = self.bench.do(store.take(Ask(stream, lot, 1, ALL_TYPES if lot == UNKNOWN else None)))
            got = self.receive(name, taken)
            assert got == self.model.take(name, stream, lot, 1, ALL_TYPES if lot == UNKNOWN else None)
        letters = [Letter(Lease(stream, entry, count, "", 0.0), "unknown-type", "e", "", 0, "given") for entry, count, _ in found]
        moved = self.bench.do(store.dead_letter(lot, letters)) if letters else []
        self.look()
        passed = [self.model.dead(lot, letter.lease, "unknown-type", 0, "given") for letter in letters]
        assert len(moved) == sum(passed)
        self.owners -= {job.n for job in old if job.place == DEAD}

    # --- what must hold after each ---------------------------------------------------------------------------------------------

    @invariant()
    def server_and_model_agree(self) -> None:
        assert self.seen.jobs == self.model.jobs
        assert self.seen.marks == self.model.marks
        assert self.seen.overs == self.model.overs
        assert self.seen.alive == self.model.is_alive
        assert self.seen.rows == self.model.leases_ms
        assert self.seen.cancels == self.model.cancels

    @invariant()
    def every_job_is_in_one_place_until_it_is_done(self) -> None:
        assert set(self.seen.jobs) == self.owed
        assert not self.seen.twice
        assert not self.seen.bodiless

    @invariant()
    def a_key_admits_one_job_in_its_life(self) -> None:
        self.owners &= self.owed - {n for n, job in self.model.jobs.items() if job.place == DEAD}
        keys = [self.seen.jobs[n].key for n in self.owners if n in self.seen.jobs]
        assert len(keys) == len(set(keys)), "two live jobs own one key"

    @invariant()
    def what_is_acknowledged_is_deleted(self) -> None:
        assert not self.seen.acked

    @invariant()
    def only_a_retry_counts_a_failure(self) -> None:
        failed = {n: job.failed for n, job in self.seen.jobs.items()}
        for n, before in self.failed.items():
            if n in failed and failed[n] != before:
                assert (n in self.retried and failed[n] == before + 1) or (n in self.replayed and failed[n] == 0)
        self.failed = failed
        self.retried.clear()
        self.replayed.clear()

    def teardown(self) -> None:
        marks = {f"{self.bench.keys.prefix}seen:{kind}:{key}" for kind in "ko" for key in KEYS}
        known = {*self.bench.keys.scripted, *marks, self.bench.keys.events, self.bench.keys.deaths}
        [keys] = self.bench.ask(("KEYS", "*"))
        strange = {text(key) for key in keys} - known
        by = {self.bench.keys.asked_by(place.encode()).decode() for place in self.model.cancels}
        assert all(key.startswith(f"{self.bench.keys.prefix}seen:c:") or key in by for key in strange), strange


def verb_of(move: str) -> str:
    return move.partition(" ")[0]


PASSES = (("done",), ("at", "retry", "snooze"), ("dead",), ("release", "park"), ("old",))  # a flush is written in this order


def rank(move: str) -> int:
    return next(at for at, verbs in enumerate(PASSES) if verb_of(move) in verbs)


def look_at_clock(bench: Bench) -> int:
    [(seconds, micros)] = bench.ask(("TIME",))
    return int(seconds) * 1000 + int(micros) // 1000


@pytest.fixture
def bench(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(runtime.sender, "RESEND", Backoff(base_s=0.0001, cap_s=0.0001))
    bench = Bench(server)
    yield bench
    bench.close()


def test_any_verbs_in_any_order_do_what_the_model_says(bench: Bench) -> None:
    run_state_machine_as_test(partial(StoreMachine, bench), settings=SAME)
    print(bench)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_many_verbs_in_any_order_do_what_the_model_says(bench: Bench) -> None:
    """Elsewhere each time; MODEL_SEED repeats a run."""
    number = int(os.environ.get("MODEL_SEED") or secrets.randbits(32))
    print(f"MODEL_SEED={number}")
    run_state_machine_as_test(seed(number)(partial(StoreMachine, bench)), settings=WIDE)
    print(bench)
