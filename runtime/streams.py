"""A worker's verbs on a queue: fetch, take, settle, renew, beat, promote, reclaim, and what belongs to them.

Each transition is one atomic step on the server: destination first, source last, fenced on the lease.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, TypeVar, cast

from runtime.codec import MAX_DATA_BYTES, MAX_OTHERS_BYTES, Summary, summary
from runtime.ended import Ended
from runtime.errors import ConfigError, StoreError
from runtime.jobs import FREE, STREAMS, Batch, Claim, Deferral, Job, Kept, Lease, Letter, Parking
from runtime.results import done_head
from runtime.rules import Rules
from runtime.said import Attempt
from runtime.schema import Declared
from runtime.store.arguments import (
    MAX_IDS,
    bounds_of,
    by_kind,
    handoff_parts,
    handoff_words,
    move_words,
    parts_of,
    tick_parts,
    tick_words,
    token,
)
from runtime.store.base import (
    DEPTH,
    EVENTS_LIFE_MS,
    GROUP,
    MAX_BY_BYTES,
    MAX_EVENTS,
    End,
    Room,
    Step,
    Store,
    WorkerRow,
    holders_in,
    is_code,
    ms_in,
    pairs,
    room_in,
    text_of,
    texts,
)
from runtime.store.connection import ANSWER_S, Connection
from runtime.store.resp import Command, ServerError, tail_of
from runtime.store.shapes import (
    DROPPED,
    SHORT,
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

T = TypeVar("T")

MAX_MARKS: Final = 10_000  # as in steering.lua: no more cancels stand at once
PENDING_PAGE: Final = 1000  # leases looked at in a round trip: measured, a millisecond of the server
MAX_ANSWER_BYTES: Final = 64 << 20  # a guess: what a worker may have in its memory at once before it has looked at it
BLOCK_SLACK_S: Final = 4.0  # a guess: a blocked read answers this much later than asked, or the connection is given up
PROGRESS_LIFE_MS: Final = 30_000  # a guess: what a worker that was killed has said is gone within a lease
MARKS_LIFE_MS: Final = 7 * 24 * 3_600_000  # a guess: longer than any job waits between two attempts
LOGS_LIFE_MS: Final = 7 * 24 * 3_600_000  # since the last was written; a guess: who looks later has the letters
MAX_LOGS: Final = 20_000  # attempts; a guess: some 20 MB where each has a page of lines
STATS_LIFE_S: Final = 24 * 3600  # a guess: people look at minutes and hours
CODE_LIFE_MS: Final = 7 * 24 * 3_600_000  # a guess: schedules of workers that are all away for longer are of no interest
_NONE: Final[Mapping[int, int]] = {}
_NO_TEXTS: Final[Mapping[str, str]] = {}


class Streams(Store):
    """A worker's verbs. Owns three connections: one that may block, one that writes, one for all the rest.

    A fetch is given up where it takes longer than `fetch_s`. `budget_bytes` is how much may be taken out of lots at once.
    """

    def __init__(
        self,
        url: str,
        queue: str,
        consumer: str,
        answer_s: float = ANSWER_S,
        fetch_s: float = 0.0,
        max_data_bytes: int = MAX_DATA_BYTES,
    ) -> None:
        super().__init__(url, queue)
        self.consumer = consumer
        self.queue = queue
        self.app = ""  # the version of the application, beside each letter
        self.budget_bytes = MAX_ANSWER_BYTES
        self.max_entry_bytes: int = max_data_bytes + MAX_OTHERS_BYTES
        self._reader = Connection(url, f"{consumer}:fetch", answer_s, fetch_s, MAX_ANSWER_BYTES + 4 * self.max_entry_bytes)
        self._writer = Connection(url, f"{consumer}:settle", answer_s)
        self._helper = Connection(url, f"{consumer}:helper", answer_s)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def reconnects(self) -> int:
        """How often one of the connections was opened again."""
        return sum(max(0, connection.opened - 1) for connection in (self._reader, self._writer, self._helper))

    def sibling(self, answer_s: float) -> Streams:
        """Return the same worker's store with connections of its own, for use in another thread's loop."""
        return Streams(self.url, self.queue, self.consumer, answer_s)

    async def close(self) -> None:
        """Close the connections."""
        for connection in (self._reader, self._writer, self._helper):
            await connection.close()

    async def start(self) -> None:
        """Check that this queue's layout is one that this version knows, and make the groups, so that the first fetch finds them.

        Raises:
            ConfigError: a newer version wrote this queue.
            StoreUnavailable: no answer, or an error.
        """
        self._loop = asyncio.get_running_loop()
        await self.agree_on_layout(self._helper)
        await self.prepare(self._helper)

    # --- fetch and take ----------------------------------------------------------------------------------------------

    async def fetch(self, shares: Sequence[int], takes: set[int]) -> Fetched:
        """Lease up to `shares[s]` entries of each stream; where `takes` names a stream, from its lot `~free` instead.

        One round trip. A stream with a share of 0 is not asked: COUNT 0 would deliver all of it; nor is one that is broken. Any
        other error that one stream answers stands in `refused`, beside what the others brought.

        Raises:
            StoreUnavailable: no answer, or an error and no entries; what was delivered meanwhile is found by the sweep.
        """
        commands: list[Command] = [("TIME",)]
        await self._heal(self._reader)
        asked = [stream for stream, share in enumerate(shares) if share > 0 and stream not in self.broken]
        for stream in asked:
            key = self.keys.streams[stream]
            if stream in takes:
                n = min(shares[stream], MAX_IDS)
                commands.append(self._take(Ask(stream, FREE, n), n, len(asked)))
            else:
                commands.append(self._read(shares[stream], key))
            commands.append(self._peek(key))
        now, *answers = await self.ask(self._reader, *commands)
        fetched = Fetched(ms_in(self.checked(now)), self._reader.run_id, [], set())
        for stream, (entries, peek) in zip(asked, pairs(answers), strict=True):
            if isinstance(entries, ServerError) and "WRONGTYPE" in entries:
                self.broken[stream] = str(entries)
            elif isinstance(entries, ServerError):
                # The other streams' entries are ours already: they are handed out first.
                fetched.refused = f"Redis answered: {entries} ({self.keys.streams[stream]})"
                if "NOGROUP" in entries:
                    self._must_heal = True
                    self._groupless.add(stream)
            elif stream in takes:
                fetched.deliveries.append(_taken(stream, entries))
            elif entries:
                fetched.deliveries.append(Delivery(stream, entries[0][1], repeat(1)))
            if peek and not isinstance(peek, ServerError):
                fetched.free.add(stream)
        if fetched.refused and not fetched.deliveries:
            raise StoreError(fetched.refused)
        return fetched

    async def wait_for_entry(self, block_ms: int, but_not: Collection[int] = ()) -> Fetched:
        """Wait at most `block_ms` for a first entry on any stream except some; up to one of each may come.

        No more than a signal: COUNT is per stream, and a woken read answers in the order in which streams were written.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        await self._heal(self._reader)
        left_out = {*but_not, *self.broken}  # one broken stream would fail the read of all
        asked = [stream for stream in range(len(self.keys.streams)) if stream not in left_out]
        keys = [self.keys.streams[stream] for stream in asked]
        read = ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", 1, "BLOCK", block_ms)
        blocked = (*read, "STREAMS", *keys, *[">"] * len(keys))
        # The server reads its clock when the blocked read has ended: in a round trip of its own, a job would start later by it.
        wait_s = block_ms / 1000 + BLOCK_SLACK_S
        *peeks, read_answer, now = await self.ask(self._reader, *map(self._peek, keys), blocked, ("TIME",), wait_s=wait_s)
        self._must_heal = self._must_heal or is_code(read_answer, "WRONGTYPE")  # it does not say which
        came = self.checked(read_answer)
        names = [key.encode() for key in keys]
        deliveries = [Delivery(asked[names.index(name)], entries, repeat(1)) for name, entries in came or ()]
        free = {stream for stream, peek in zip(asked, peeks, strict=True) if peek and not isinstance(peek, ServerError)}
        return Fetched(ms_in(self.checked(now)), self._reader.run_id, deliveries, free)

    async def unblock(self) -> None:
        """Wake the blocked `wait_for_entry`, which then returns nothing.

        Cancelling that one instead would leave what was delivered to it to the sweep.

        While the server holds all writes back (CLIENT PAUSE WRITE, as at a failover), it may take the reader for blocked, and
        releases before the middle of 2025 die of CLIENT UNBLOCK then (redis #14164, valkey #2111). So it comes with a write that
        changes nothing, and is held back too.

        Raises:
            StoreUnavailable: no answer.
        """
        nothing = ("XACK", self.keys.streams[0], GROUP, "0-0")
        await self.ask(self._helper, ("MULTI",), ("CLIENT", "UNBLOCK", self._reader.client_id), nothing, ("EXEC",))

    async def take(self, *asks: Ask) -> Fetched:
        """Lease entries of lots, in one round trip; a delivery for each that was asked, in turn.

        An error that one of them answers stands in `refused`, beside what the others brought.

        Raises:
            StoreUnavailable: no answer, or an error and no entries.
        """
        parts = [(at, min(MAX_IDS, ask.n - begin)) for at, ask in enumerate(asks) for begin in range(0, ask.n, MAX_IDS)]
        answers = await self.ask(self._reader, *[self._take(asks[at], n, len(parts)) for at, n in parts])
        deliveries = [Delivery(ask.stream, [], list[int]()) for ask in asks]
        fetched = Fetched(0, self._reader.run_id, deliveries, set())
        for (at, _), answer in zip(parts, answers, strict=True):
            if isinstance(answer, ServerError):
                fetched.refused = f"Redis answered: {answer} ({self.keys.streams[asks[at].stream]})"
                self._must_heal = self._must_heal or "NOGROUP" in answer
                continue
            fetched.now_ms, taken = answer[0], _taken(asks[at].stream, answer)
            deliveries[at] = _together(deliveries[at], taken)
        if fetched.refused and not any(delivery.rows or delivery.oversized for delivery in deliveries):
            raise StoreError(fetched.refused)
        return fetched

    async def serve(
        self, parks: Sequence[tuple[Lease, str]], serves: Sequence[Serve], *, by_writer: bool = False
    ) -> tuple[int, list[Served]]:
        """Put what may not start into its lots, then serve gates, in one round trip.

        Return how many were no longer ours, and what each gate gave.

        `by_writer`: down the connection that settles, behind what was written there.

        Raises:
            StoreUnavailable: no answer, or an error to the parking; what was handed out meanwhile is found by the sweep.
        """
        connection = self._writer if by_writer else self._reader
        moves = self._moves("park", [Parking(lease, lot) for lease, lot in parks])
        calls = [self._serve(serve, len(serves)) for serve in serves]
        answers = await self.ask(connection, *[command for _, command in moves], *calls)
        served = [self._served(answer, connection.run_id) for answer in answers[len(moves) :]]
        refused = 0
        for answer in answers[: len(moves)]:
            for verdict in self.checked(answer):
                if verdict not in (0, 1):
                    raise StoreError(f"Redis answered: {bytes(verdict).decode(errors='replace')}")
                refused += verdict == 0
        return refused, served

    def _serve(self, serve: Serve, beside: int) -> Command:
        limits, told = serve.limits, [serve.freed, serve.noted, [(stream + 1, lot, group) for stream, lot, group in serve.lots]]
        bounds = (*bounds_of(limits.limit, limits.rate), *bounds_of(limits.group_limit, limits.group_rate))
        lists = [word for items in told for word in (len(items), *itertools.chain.from_iterable(items))]
        # Each call may bring one entry beyond its part: together no more than the connection bears.
        bearable = (MAX_ANSWER_BYTES + 4 * self.max_entry_bytes) // beside - self.max_entry_bytes
        most = (max(1, min(self.budget_bytes // beside, bearable)), self.max_entry_bytes)
        return self.command("serve", self.consumer, serve.n, serve.n_others, *most, serve.type, *bounds, *lists)

    def _served(self, answer: Any, run_id: str) -> Served:
        if isinstance(answer, ServerError):
            self._must_heal = self._must_heal or "NOGROUP" in answer
            return Served(Fetched(0, run_id, [], set()), error=f"Redis answered: {answer}")
        now_ms, stands, told, *given = answer
        lots = [stand if isinstance(stand, int) else SHORT for stand in told]
        refusals = [f"Redis answered: {stand.decode(errors='replace')}" for stand in told if isinstance(stand, bytes)]
        self._must_heal = self._must_heal or any("NOGROUP" in refusal for refusal in refusals)
        deliveries = [_taken(stream, [now_ms, 0, *rows]) for stream, rows in enumerate(given) if rows]
        return Served(Fetched(now_ms, run_id, deliveries, set(), refusals[0] if refusals else ""), stands, lots)

    def _take(self, ask: Ask, n: int, beside: int) -> Command:
        """Return the call that takes from a lot; as one of `beside` in its round trip, it may bring its part of the bytes."""
        bounds = (n, max(1, self.budget_bytes // beside), self.max_entry_bytes)
        chosen = [part for item in (ask.types or {}).items() for part in item]
        return self.command("take", self.consumer, ask.stream + 1, ask.lot, *bounds, *chosen)

    @property
    def came(self) -> tuple[int, float]:
        """How many bytes the newest answer to a fetch had, and how many seconds they took from the first to the last."""
        return self._reader.came

    async def leased(self) -> list[Lease]:
        """Return all that is pending with us, whether we know it or not: the answer that brought it may have been lost.

        Raises:
            StoreUnavailable: no answer.
        """
        found: list[Lease] = []
        now_s = time.monotonic()
        for stream, key in enumerate(self.keys.streams):
            start = "-"
            while start:
                page = ("XPENDING", key, GROUP, start, "+", PENDING_PAGE, self.consumer)
                rows = (await self.ask(self._reader, page))[0]
                rows = [] if isinstance(rows, ServerError) else cast("list[Any]", rows)
                found += [Lease(stream, row[0], row[3], self._reader.run_id, now_s) for row in rows]
                start = f"({bytes(rows[-1][0]).decode()}" if len(rows) == PENDING_PAGE else ""
        return found

    async def isolate(
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
        """Ask whether this worker may isolate, and for suspects of these types (each with its newest version, and timeout in ms).

        `calm_ms` is for how long the youngest job here has run, -1 where none runs; up to `n` may start; -1 gives the place up.
        `is_clean` says that no former suspect runs here. None are handed out of the streams that are `paused`.
        `limited` are the types that have a limit, and whether it is of themselves, of their groups: what of these died without a
        permit has never run, and waits for one.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        runnable = [part for name, bounds in types.items() for part in (name, *bounds)]
        bounded = [part for name, (of_type, of_group) in limited.items() for part in (name, int(of_type), int(of_group))]
        without = "".join(str(stream + 1) for stream in paused)
        args = (self.consumer, lease_ms, calm_ms, base_ms, n, int(is_clean), without, len(limited), *bounded, *runnable)
        now_ms, word, for_ms, *rows = await self.call_one(self._reader, self.command("isolate", *args))
        deliveries = [Delivery(row[0] - 1, [(row[1], row[2])], [row[3]]) for row in rows]
        names = cast("bytes", rows[0][4]).decode(errors="replace").split() if rows else []
        return Isolated(word.decode(), for_ms, Fetched(now_ms, self._reader.run_id, deliveries, set()), names)

    async def acquit(self, alone: Sequence[tuple[int, bytes]]) -> None:
        """Write that an isolation is over and this process lives; `alone` is what ran alone in it, its stream and entry.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        args = [part for stream, entry in alone for part in (stream + 1, entry)]
        await self.call_one(self._reader, self.command("acquit", self.consumer, *args))

    async def admit(self, keyed: Sequence[Claim], *, by_writer: bool = False) -> list[str]:
        """Claim the key of each job: `mine`, a `Duplicate` (a live job owns it: dropped, or folded into that), `delayed` (it
        waits for its time now), `refused`, or an error text.

        `by_writer`: down the connection that settles; the other one may be waiting.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        verdicts: list[str] = []
        for part in parts_of(keyed):
            args = [arg for claim in part for arg in (*token(claim.lease), claim.key, claim.at_ms or "")]
            connection = self._writer if by_writer else self._reader
            for answer in await self.call_one(connection, self.command("admit", self.consumer, *args)):
                verdicts.append(_CLAIMED.get(answer) or _dropped(answer.decode(errors="replace")))
        return verdicts

    def _read(self, count: int, key: str) -> Command:
        return ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", count, "STREAMS", key, ">")

    @staticmethod
    def _peek(key: str) -> Command:
        return ("XPENDING", key, GROUP, "-", "+", 1, FREE)

    # --- settle ------------------------------------------------------------------------------------------------------

    async def settle(self, batch: Batch) -> Settled:
        """Write a batch of outcomes in one round trip: finished jobs in one transaction, moves by fenced scripts.

        Results go before them: behind, a crash would leave jobs that are gone, and people who wait for their answer.

        May be repeated whole: what moved already is refused by the fence.

        Raises:
            StoreUnavailable: no answer, or one that says that nothing can be written now.
        """
        await self._writer.ready()
        server = self._writer.run_id
        plain, again, old, handing = by_kind(batch.done, server)
        commands: list[Command] = []
        if any(plain):
            commands += self._finish(plain)
        results, told = self._results(batch.results)
        pauses = [self._pause(name, for_ms) for name, for_ms in batch.pauses.items()]
        moves = [
            *self._done_by_script("", again),
            *self._hand_on([job for job in handing if job.run_id == server], has_fence=False),
        ]
        unfenced = len(moves)
        moves += [*self._moves("defer", batch.defer), *self._moves("dead", batch.dead), *self._moves("park", batch.park)]
        moves += self._done_by_script(self.consumer, old)
        moves += self._hand_on([job for job in handing if job.run_id != server], has_fence=True)
        parts = (results, pauses, commands, [command for _, command in moves], told)
        answers = await self.ask(self._writer, *itertools.chain.from_iterable(parts), run_id=server)
        kept, paused, finished, moved, heard = _cut(answers, map(len, parts))
        settled = Settled(0, 0, Batch([[] for _ in self.keys.streams], [], [], []), "")
        # Its job waits as long as it said, all the same.
        settled.unpaused = next((str(answer) for answer in paused if isinstance(answer, ServerError)), "")
        if results:
            settled.unkept = _unkept(batch.results, kept, heard)
        if commands:
            settled.shortfall = await self._finished(plain, finished, server)
        for at, ((items, _), answer) in enumerate(zip(moves, moved, strict=True)):
            for item, verdict in zip(items, self._verdicts(answer, len(items)), strict=True):
                if verdict == 0 and at < unfenced:
                    settled.shortfall += 1
                elif verdict == 0:
                    settled.refused += 1
                    if isinstance(item, Letter):
                        settled.undead.append(item)
                elif verdict != 1:
                    settled.left.put(item)
                    settled.error = bytes(verdict).decode(errors="replace")
                    self._must_heal = self._must_heal or "NOGROUP" in settled.error
        return settled

    def _verdicts(self, answer: Any, size: int) -> list[Any]:
        # With memory full the server refuses the one script that adds, as a whole: these jobs wait apart, the others leave.
        return [str(answer).encode()] * size if is_code(answer, "OOM") else self.checked(answer)

    def _pause(self, type_name: str, for_ms: int) -> Command:
        return self.command("control", self.consumer, "a job of it asked for it", "later", f"pause:{type_name}", for_ms)

    def _results(self, results: Sequence[Kept]) -> tuple[list[Command], list[Command]]:
        """Return what writes results, and what wakes those who wait for them, when their jobs are gone.

        Memory may refuse to write one. None of it is in the transaction, which would be refused with it.
        """
        if not results:
            return [], []
        parts, key, head = parts_of(results), self.keys.results, done_head(time.time_ns() // 1_000_000)
        words = [[word for one in part for word in (one.job_id, one.value, one.life_ms)] for part in parts]
        # A script and not a SET each: packing those and reading their answers is a sixth of what such a job costs its worker.
        keeps: list[Command] = [("EVAL", text_of("keep"), 1, key, head, *some) for some in words]
        return keeps, [("PUBLISH", key, " ".join([one.job_id for one in part])) for part in parts]

    def _finish(self, done: Sequence[Sequence[Job]]) -> list[Command]:
        commands: list[Command] = [("MULTI",)]
        for key, leases in zip(self.keys.streams, done, strict=True):
            if leases:
                ids = tail_of([lease.entry for lease in leases])
                commands.append(("XACK", key, GROUP, ids))
                commands.append(("XDEL", key, ids))
        commands.append(("EXEC",))
        return commands

    async def _finished(self, done: Sequence[Sequence[Job]], answers: Sequence[Any], server: str) -> int:
        counts = answers[-1]
        if isinstance(counts, list):
            acked = sum(count for count in cast("list[Any]", counts)[::2] if isinstance(count, int))
            return sum(map(len, done)) - acked
        # Redis 7.0 refuses every command inside MULTI when memory is full; a script of the same two commands may run.
        shortfall = 0
        for _, command in self._done_by_script("", [job for jobs in done for job in jobs]):
            verdicts = self.checked((await self.ask(self._writer, command, run_id=server))[0])
            shortfall += sum(1 for verdict in verdicts if verdict == 0)
        return shortfall

    def _done_by_script(self, fence: str, jobs: Sequence[Job]) -> list[tuple[Sequence[Job], Command]]:
        """Former suspects take their strikes along, keyed jobs the mark of their key; after a restart an entry id may be another
        job's: only a fence tells.
        """
        return [
            (part, self.command("done", fence, *[arg for job in part for arg in (*token(job), job.envelope.key)]))
            for part in parts_of(jobs)
        ]

    def _hand_on(self, jobs: Sequence[Job], *, has_fence: bool) -> list[tuple[Sequence[Job], Command]]:
        calls = [(part, [word for job in part for word in handoff_words(job)]) for part in handoff_parts(jobs)]
        return [(part, self.command("handoff", self.consumer, int(has_fence), *words)) for part, words in calls]

    def _moves(
        self, verb: str, moves: Sequence[Deferral] | Sequence[Letter] | Sequence[Parking]
    ) -> list[tuple[Sequence[Any], Command]]:
        return [
            (part, self.command(verb, *self._mover(verb, self.consumer), *[arg for move in part for arg in move_words(move)]))
            for part in parts_of(moves)
        ]

    def _mover(self, verb: str, holder: str) -> tuple[str, ...]:
        """Return in whose hands the entries of a move are; behind it, where letters are written, who writes them."""
        return (holder, self.consumer, self.app) if verb == "dead" else (holder,)

    # --- leases, lots, delayed jobs ---------------------------------------------------------------------------------

    async def renew(self, leases: Sequence[tuple[int, bytes, int]]) -> list[int]:
        """Renew leases (stream, entry, count); return the positions of those that are no longer ours.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        refused: list[int] = []
        for start in range(0, len(leases), MAX_IDS):
            args = [arg for stream, entry, count in leases[start : start + MAX_IDS] for arg in (stream + 1, entry, count)]
            answer = await self.call_one(self._helper, self.command("renew", self.consumer, *args))
            refused += [start + position for position in answer]
        return refused

    async def beat(self, row: WorkerRow) -> str:
        """Write that this worker lives for one more lease, and what it is; return the run id of the server that took it.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        try:
            await self.call_one(self._helper, self.command("beat", self.consumer, row.lease_ms, str(row)))
        except StoreError as error:
            raise StoreError(f"{error} ({self.keys.workers}, {self.keys.rows}; `doctor` looks at both)") from None
        return self._helper.run_id

    async def workers(self) -> dict[str, tuple[int, WorkerRow]]:
        """Return the known workers: until when each lives (ms), and its row.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.workers_on(self._helper)

    async def lots(self) -> tuple[dict[tuple[int, str], int], set[int], dict[int, int]]:
        """Return the lots that hold something, by stream and name, with their sizes; the streams of which workers hold some; and
        how many entries of each stream no worker has fetched yet.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        keys = self.keys.streams
        asks = [ask for key in keys for ask in (("XPENDING", key, GROUP), ("XLEN", key))]
        lots: dict[tuple[int, str], int] = {}
        busy: set[int] = set()
        waiting: dict[int, int] = {}
        for stream, (answer, length) in enumerate(pairs(await self.ask(self._helper, *asks))):
            if is_code(answer, "WRONGTYPE") or is_code(answer, "NOGROUP"):
                self._must_heal = self._must_heal or is_code(answer, "NOGROUP")
                continue  # the fetcher logs it; what is on the other streams must not wait for it
            holders = holders_in(self.checked(answer))
            waiting[stream] = max(0, self.checked(length) - sum(count for _, count in holders))
            for name, count in holders:
                if name.startswith(b"~"):
                    lots[stream, name.decode(errors="replace")] = count
                else:
                    busy.add(stream)
        return lots, busy, waiting

    async def empty_lots(self) -> set[str]:
        """Return the lots that hold nothing on some stream, and are still listed there: each costs memory.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: set[str] = set()
        for answer in await self.ask(self._helper, *[("XINFO", "CONSUMERS", key, GROUP) for key in self.keys.streams]):
            if is_code(answer, "WRONGTYPE") or is_code(answer, "NOGROUP") or is_code(answer, "ERR"):
                continue  # no such stream, or none that can be read
            for row in map(dict, map(pairs, self.checked(answer))):
                if row[b"name"].startswith(b"~") and row[b"pending"] == 0:
                    found.add(row[b"name"].decode(errors="replace"))
        return found

    async def waiting_longest(self, stream: int, lot: str, idle_ms: int, n: int) -> list[tuple[bytes, int, Summary]]:
        """Return up to `n` entries that sat in a lot longer than `idle_ms`: entry, count, and what its message says of itself.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        key = self.keys.streams[stream]
        rows = await self.call_one(self._helper, ("XPENDING", key, GROUP, "IDLE", idle_ms, "-", "+", n, lot))
        if not rows:
            return []
        entries = await self.ask(self._helper, *[("XRANGE", key, row[0], row[0]) for row in rows])
        abouts = [_about(self.checked(found)) for found in entries]
        return [(row[0], row[3], about) for row, about in zip(rows, abouts, strict=True)]

    async def dead_letter(self, lot: str, letters: Sequence[Letter]) -> list[Letter]:
        """Move entries of a lot to the dead letters; one that was taken meanwhile is left alone. Return those that moved.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        args = [arg for letter in letters for arg in move_words(letter)]
        verdicts = await self.call_one(self._helper, self.command("dead", *self._mover("dead", lot), *args))
        return [letter for letter, verdict in zip(letters, verdicts, strict=True) if verdict == 1]

    async def promote(self, n: int, cursor: str) -> Promoted:
        """Move up to `n` delayed jobs whose time has come to their streams.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        moved, bad, wait_ms, is_full, after = await self.call_one(self._helper, self.command("promote", n, cursor))
        return Promoted(moved, bad, wait_ms, bool(is_full), bytes(after).decode())

    async def definitions(self) -> dict[str, str]:
        """Return what stands in Redis of schedules: by name a revision, a space and a JSON object.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return texts(await self.call_one(self._helper, ("HGETALL", self.keys.cron), self.keys.cron))

    async def tick(self, asks: Sequence[TickAsk], now_ms: int, must_forget: bool = False) -> tuple[int, list[Ticked]]:
        """Confirm schedules, and fire what is due, once over all workers; return the server's time and what became of each.

        `now_ms` is the server's time for which what is due was worked out. `must_forget` also drops what stands of schedules that
        nobody has confirmed for a week. May be repeated: what is decided is not decided again. Where a call of several fails,
        those before it are done.

        Raises:
            QueueFull: memory is full; nothing was fired by this call.
            StoreUnavailable: no answer or an error.
        """
        server_ms, ticked = 0, list[Ticked]()
        for part in tick_parts(asks):
            args = [arg for ask in part for arg in tick_words(ask)]
            server_ms, *answers = await self.call_one(self._helper, self.command("tick", int(must_forget), now_ms, *args))
            for word, last_ms, fired, skipped in zip(*[iter(answers)] * 4, strict=True):
                ticked.append(Ticked(word.decode(errors="replace"), int(last_ms), fired, skipped))
            must_forget = False
        return server_ms, ticked

    async def step(self, operation: str) -> Step:
        """Make the next step of an operation over many jobs, where it is time for it; may be repeated.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.step_on(self._helper, operation)

    async def reclaim(self, stream: int, lease_ms: int, n: int, still: Mapping[str, int]) -> Reclaimed:
        """Take at most `n` entries of this stream that are not renewed, and put them into lots; none while the guard holds.

        Of workers in `still`, whose row stands at the time given there, all is taken, whatever the server's clock says.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        answer = await self.call_one(
            self._helper, self.command("reclaim", stream + 1, lease_ms, n, *itertools.chain(*still.items()))
        )
        jobs = [bytes(job).decode(errors="replace") for job in answer[3:]]
        return Reclaimed(answer[0], answer[1], bool(answer[2]), jobs)

    async def ends(self) -> list[End]:
        """Return where each stream ends.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return await self.ends_on(self._helper)

    async def room(self) -> Room:
        """Return how much memory the server uses and has.

        Raises:
            StoreUnavailable: no answer.
        """
        return room_in((await self.ask(self._helper, ("INFO", "memory")))[0])

    async def forget(self, consumer: str, stood_at_ms: int | None = None) -> bool:
        """Remove a consumer, where it holds nothing; return whether it is gone from all streams.

        Of a worker whose row was seen standing still, only where it still stands at that time.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        where = () if stood_at_ms is None else (stood_at_ms,)
        return await self.call_one(self._helper, self.command("forget", consumer, *where)) == 1

    async def count(
        self,
        minute: int,
        counts: Sequence[tuple[str, int]],
        progress: bytes | None = None,
        ended: Sequence[Attempt] = (),
        *,
        events: Sequence[Ended] = (),
        depths: Mapping[int, int] = _NONE,
        row: WorkerRow | None = None,
    ) -> str:
        """Add to the counters of a minute, and return how often the rules were changed, empty where that cannot be read.

        `progress` is what jobs here have said of themselves, nothing where none does any more, None where it stands; `ended` are
        attempts that have ended and had lines, `events` those that failed, and some that did not. `depths` are how many entries
        of each stream wait, which the minute then has, and `row` what this worker is, unless it has none any more. Never
        repeated: what is lost is lost, also what finds no memory.

        Raises:
            StoreUnavailable: no answer.
        """
        key = self.keys.stats(minute)
        counters: list[Command] = [("HINCRBY", key, name, by) for name, by in counts]
        counters += [("HSET", key, f" {STREAMS[stream]} {DEPTH}", n) for stream, n in depths.items()]
        commands = _with_end(counters, ("EXPIRE", key, STATS_LIFE_S)) + self._told(progress, ended) + self._events(events)
        if row is not None:
            commands.append(self.command("row", self.consumer, str(row)))
        *_, version = await self.ask(self._helper, *commands, self.version_command())
        return version.decode(errors="replace") if isinstance(version, bytes) else ""

    def _events(self, events: Sequence[Ended]) -> list[Command]:
        key = self.keys.events
        adds: list[Command] = [("XADD", key, "MAXLEN", "~", MAX_EVENTS, "*", *one.fields()) for one in events]
        return _with_end(adds, ("PEXPIRE", key, EVENTS_LIFE_MS))

    def _told(self, progress: bytes | None, ended: Sequence[Attempt]) -> list[Command]:
        key = self.keys.progress(self.consumer)
        logs: list[Command] = [("XADD", self.keys.logs, "MAXLEN", "~", MAX_LOGS, "*", *one.fields()) for one in ended]
        commands = _with_end(logs, ("PEXPIRE", self.keys.logs, LOGS_LIFE_MS))
        if progress is not None:
            commands.append(("SET", key, progress, "PX", PROGRESS_LIFE_MS) if progress else ("DEL", key))
        return commands

    async def declare(self, contracts: Iterable[Declared], schedules: Mapping[str, str] = _NO_TEXTS) -> None:
        """Write down contracts and handlers, and schedules as they would stand in Redis, for those who only look.

        May be repeated; one that finds no memory is left out. Schedules that nobody writes down again are gone after a week.

        Raises:
            StoreUnavailable: no answer.
        """
        commands: list[Command] = [("HSET", self.keys.contracts, one.field, bytes(one)) for one in contracts]
        told: list[Command] = [("HSET", self.keys.cron_code, name, text) for name, text in schedules.items()]
        await self.ask(self._helper, *commands, *_with_end(told, ("PEXPIRE", self.keys.cron_code, CODE_LIFE_MS)))

    async def marks_of(self, work: str) -> bytes | None:
        """Return what the attempts at a piece of work remember; None where that is nothing.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        self._check_loop()
        return await self.call_one(self._helper, ("GET", self.keys.marks(work)), self.keys.marks(work))

    async def set_marks(self, work: str, value: bytes) -> None:
        """Write it; it stays for MARKS_LIFE_MS.

        Raises:
            QueueFull: memory is full.
            StoreUnavailable: no answer or an error; it may be written all the same.
        """
        self._check_loop()
        await self.call_one(self._helper, ("SET", self.keys.marks(work), value, "PX", MARKS_LIFE_MS))

    async def delete_marks(self, work: str) -> None:
        """Remove it.

        Raises:
            StoreUnavailable: no answer or an error; it may be removed all the same.
        """
        self._check_loop()
        await self.call_one(self._helper, ("DEL", self.keys.marks(work)))

    def _check_loop(self) -> None:
        """Keep other event loops away from the helper's connection: they would break it for the worker, too.

        Raises:
            ConfigError: this is not the worker's loop.
        """
        if self._loop not in (None, asyncio.get_running_loop()):
            raise ConfigError("job.marks: not from an event loop of one's own; hint: anyio.from_thread.run(job.marks.get)")

    async def rules(self, since_ms: int = 0) -> tuple[Rules, int, dict[str, str]]:
        """Return the rules that people have ordered, the server's time in ms, and the places of jobs that they cancelled since
        `since_ms` while a worker had them, with who did that and why.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        marks = ("ZRANGE", self.keys.cancels, since_ms, "+inf", "BYSCORE", "LIMIT", 0, MAX_MARKS)
        *answers, found = await self.ask(self._helper, *self.rules_commands(), marks)
        places = (
            [] if isinstance(found, ServerError) else cast("list[bytes]", found)
        )  # a stranger's key: the rules hold all the same
        asks: list[Command] = [("GETRANGE", self.keys.asked_by(place), 0, MAX_BY_BYTES) for place in places]
        by = await self.ask(self._helper, *asks) if asks else []
        told = {
            place.decode(errors="replace"): who.decode(errors="replace") if isinstance(who, bytes) else ""
            for place, who in zip(places, by, strict=True)
        }
        return *self.rules_in(*answers), told

    async def unmark(self, places: Sequence[tuple[int, bytes]]) -> None:
        """Take away the marks of cancelled jobs that have left their streams.

        One that is still there keeps its mark: another worker may have it by now.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        keys = self.keys
        found = await self.ask(self._helper, *[("XRANGE", keys.streams[stream], entry, entry) for stream, entry in places])
        gone = [f"{STREAMS[stream]}/{entry.decode()}" for (stream, entry), rows in zip(places, found, strict=True) if rows == []]
        if gone:
            await self.call_one(self._helper, ("ZREM", keys.cancels, *gone), keys.cancels)
            await self.ask(self._helper, ("DEL", *[keys.asked_by(place.encode()) for place in gone]))


# --- small shapes --------------------------------------------------------------------------------------------------------


_CLAIMED: Final = {0: "refused", 1: "mine", 3: "delayed"}


def _dropped(text: str) -> str:
    """Return as a Duplicate what says that a job was dropped; any other text is an error."""
    how, space, of = text.partition(" ")
    return Duplicate(how, of) if space and how in DROPPED else text


def _with_end(writes: Sequence[Command], end: Command) -> list[Command]:
    """Return what writes to a key and gives it an end, in one step: of a worker killed between, it would stay for ever."""
    return [("MULTI",), *writes, end, ("EXEC",)] if writes else []


def _cut(answers: Iterable[T], sizes: Iterable[int]) -> list[list[T]]:
    """Return the answers in parts of these sizes."""
    rest = iter(answers)
    return [list(itertools.islice(rest, size)) for size in sizes]


def _unkept(results: Sequence[Kept], kept: Iterable[Any], heard: Iterable[Any]) -> tuple[int, str]:
    """Return how many results were not kept, and why, or why those who wait for some could not be told."""
    lost = [
        (len(part), str(answer)) for part, answer in zip(parts_of(results), kept, strict=True) if isinstance(answer, ServerError)
    ]
    untold = [(0, str(answer)) for answer in heard if isinstance(answer, ServerError)]
    return sum(n for n, _ in lost), next((why for _, why in lost + untold), "")


def _taken(stream: int, answer: list[Any]) -> Delivery:
    rows = answer[2:]
    whole_ones = [row for row in rows if not isinstance(row[1], int)]
    oversized = [(row[0], row[2], row[1]) for row in rows if isinstance(row[1], int)] if len(whole_ones) < len(rows) else ()
    return Delivery(stream, [(row[0], row[1]) for row in whole_ones], [row[2] for row in whole_ones], oversized, bool(answer[1]))


def _together(delivery: Delivery, more: Delivery) -> Delivery:
    counts, oversized = [*delivery.counts, *more.counts], [*delivery.oversized, *more.oversized]
    return Delivery(delivery.stream, delivery.rows + more.rows, counts, oversized, delivery.is_cut or more.is_cut)


def _about(found: list[Any]) -> Summary:
    # A version that is no number counts as 1: each worker that knows the type may take the job, and finds it unreadable.
    return summary(found[0][1] if found else ())
