"""Control is what people order for a queue while it runs: pauses, limits, schedules, workers that are to be quiet or to stop.

Workers obey within two seconds. Each order is one step on the server, with an entry in the audit that says who ordered it, and
why.
"""

from __future__ import annotations

import getpass
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self
from zoneinfo import ZoneInfo

import msgspec
from msgspec import UNSET, UnsetType

from runtime.codec import DATA, REPLAYED_FROM, header
from runtime.errors import ConfigError, StoreError, StoreUnavailable
from runtime.jobs import STREAMS, TYPE_NAME, Head, Options, Packed, Priority, default_id
from runtime.limits import FIELDS, Override, override_of
from runtime.operating import OperationControl
from runtime.packing import Packer
from runtime.producer import Producer
from runtime.rules import ALL, Rules
from runtime.schedules import Definition, Schedule, Schedules, message_members, schedules_in, whole_members
from runtime.sender import CHUNK_BYTES, CHUNK_MESSAGES, Sent
from runtime.steering import JobControl
from runtime.store.base import Operation, WorkerRow
from runtime.store.control import Change, ChangedMeanwhile, ControlStore
from runtime.store.finder import Finder
from runtime.store.flow import silence
from runtime.store.urls import without_password

MAX_PAUSE_S: Final = 366 * 24 * 3600  # a guess: a year; what is to last longer, lasts until it is resumed
MAX_REASON: Final = 500  # characters; a guess: a line or two. Of four bytes each, it fits into a field
MAX_BY: Final = 100  # characters; a guess
MAX_FROM: Final = 128  # characters of the place of a letter; a guess: more than one has
MAX_NAMED: Final = 20  # workers; a guess: a line that can still be read
MAX_OPERATIONS: Final = 500  # of one step, as control.lua has it; more are only workers
MAX_AUDIT: Final = 10_000  # entries, about as many as are kept
MAX_BACKFILL: Final = 1000  # ticks of a call; a guess: who wants more, splits it
TRIES: Final = 3  # a guess: two people that change one schedule at once


class Worker(msgspec.Struct, frozen=True):
    """A worker: what it said of itself with its last heartbeat, and its `order`: `quiet`, `stop` or nothing. `silence` says for
    how long it has been silent, and when its jobs are taken back; nothing of one that beats.

    `blocked` is how often handlers of each type have blocked its loop, `blocked_ms` the longest of each, in ms; under the empty
    name stands what is nobody's for certain.
    """

    name: str
    host: str
    pid: int
    lanes: int
    held: int
    running: dict[str, int]
    stage: str
    order: str
    types: dict[str, int]
    blocked: dict[str, int] = {}
    blocked_ms: dict[str, int] = {}
    silence: str = ""


class Control(OperationControl, JobControl):
    """Changes the rules of a queue, and reads them. Use it with `async with`; it connects when it is first used.

    An order may be given twice: what stands as it is ordered is left alone. So it is repeated once by itself where the answer was
    lost. Each method that orders returns the names of what it changed; what such a lost call has changed is not among them.

    Args:
        url: of Redis: `redis://`, `rediss://`, `unix://` or `sentinel://`.
        queue: name of the queue.
        by: who orders, for the audit: one word of up to 100 characters; the user and host of this process where it is empty.
        schedules: those of the code, so that they can be looked at and overridden; others have nothing to do with them.

    Raises:
        ConfigError: the queue's name or `by` cannot be used, or two schedules have one name.
    """

    def __init__(self, url: str, queue: str = "jobs", *, by: str = "", schedules: Iterable[Schedule] = ()) -> None:
        self._store = ControlStore(url, queue)
        self._inspector = Finder(url, queue, "control")
        name = _checked_by(by) if by else who()
        OperationControl.__init__(self, name, self._store, _check_reason)
        JobControl.__init__(self, name, self._store, self._inspector, _check_reason)
        self._code = _by_name(one for one in schedules if one.queue in ("", queue))
        self._url = url
        self._queue = queue

    def __repr__(self) -> str:
        return f"<Control of {without_password(self._url)}, by {self.by}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; may be repeated."""
        await self._store.close()
        await self._inspector.close()

    # --- pauses ----------------------------------------------------------------------------------------------------------

    async def pause(
        self,
        *,
        type: str | Sequence[str] = (),
        priority: str | Priority | Sequence[str | Priority] = (),
        all: bool = False,
        for_s: float | None = None,
        reason: str = "",
    ) -> list[str]:
        """Let nothing start of job types, of priorities, or of the whole queue. What runs goes on; what is sent waits.

        Args:
            type: names of job types; they need not be known to anybody yet.
            priority: names of priorities, such as `high`.
            all: the whole queue, beside which nothing else may be named.
            for_s: for how many seconds, 1 to 31,622,400; None until it is resumed.
            reason: for people, up to 500 characters.

        Raises:
            ConfigError: an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        names = _paused_names(type, priority, all)
        for_ms = "0" if for_s is None else str(_checked_ms(for_s))
        return await self._order(reason, [("pause", f"pause:{name}", for_ms) for name in names])

    async def resume(
        self,
        *,
        type: str | Sequence[str] = (),
        priority: str | Priority | Sequence[str | Priority] = (),
        all: bool = False,
        reason: str = "",
    ) -> list[str]:
        """Take pauses back. `all` takes back that of the whole queue; types and priorities that are paused by name stay so.

        Raises:
            ConfigError: an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        return await self._order(reason, [("del", f"pause:{name}", "") for name in _paused_names(type, priority, all)])

    # --- limits ----------------------------------------------------------------------------------------------------------

    async def limits(self) -> dict[str, Override]:
        """Return what was set in place of the code's limits, by job type.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return (await self.rules()).limits

    async def set_limits(
        self,
        type: str,
        *,
        limit: int | UnsetType | None = UNSET,
        rate: str | UnsetType | None = UNSET,
        group_limit: int | UnsetType | None = UNSET,
        group_rate: str | UnsetType | None = UNSET,
        reason: str = "",
    ) -> bool:
        """Set limits of a job type in place of those in the code; return whether that changed anything.

        What is not given stays as it is.

        Args:
            type: the name of the job type.
            limit: how many jobs may run at once, 1 to 1,000,000; None for no limit.
            rate: how many may start in a time, such as `100/m`, `10/s` or `5/30s`; None for no limit.
            group_limit: the same for the jobs of each group.
            group_rate: the same for the jobs of each group.
            reason: for people, up to 500 characters.

        Raises:
            ConfigError: an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        given = {"limit": limit, "rate": rate, "group_limit": group_limit, "group_rate": group_rate}
        override = override_of({name: value for name, value in given.items() if value is not UNSET})
        if override == Override():
            raise ConfigError(f"give at least one of {', '.join(FIELDS)}")
        return bool(await self._order(reason, [("merge", f"limit:{_checked_type(type)}", override.text())]))

    async def clear_limits(self, type: str, *names: str, reason: str = "") -> bool:
        """Let those of the code hold again: of the limits named, or of all. Return whether that changed anything.

        Raises:
            ConfigError: an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        field = f"limit:{_checked_type(type)}"
        for name in names:
            if name not in FIELDS:
                raise ConfigError(f"unknown limit {name!r}; there are {', '.join(FIELDS)}")
        members = msgspec.json.encode(dict.fromkeys(names, False)).decode()
        return bool(await self._order(reason, [("merge", field, members) if names else ("del", field, "")]))

    # --- workers ---------------------------------------------------------------------------------------------------------

    async def workers(self) -> list[Worker]:
        """Return the workers that live, and those that are silent and not forgotten yet.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return [worker for worker, _ in await self._workers()]

    async def _workers(self) -> list[tuple[Worker, bool]]:
        """Return all workers that are not forgotten, and whether the lease of each holds."""
        rules, now_ms = await self._store.rules()
        known = await self._store.workers()
        return [
            (_worker_of(name, row, rules.orders.get(name, ""), silence(until_ms, row, now_ms)), until_ms > now_ms)
            for name, (until_ms, row) in sorted(known.items())
        ]

    async def quiet(self, *workers: str, all: bool = False, reason: str = "") -> list[str]:
        """Let workers start nothing new, until they are resumed; what runs there goes on.

        Args:
            workers: names, or beginnings that only one worker has.
            all: all workers that live now, in place of names; others that start later work.
            reason: for people, up to 500 characters.

        Raises:
            ConfigError: no worker that lives has such a name, or several have; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        return await self._order(reason, [("set", f"worker:{name}", "quiet") for name in await self._named(workers, all)])

    async def resume_worker(self, *workers: str, all: bool = False, reason: str = "") -> list[str]:
        """Let quiet workers go on; for arguments and errors see `quiet`. One that has begun to stop goes on stopping."""
        return await self._order(reason, [("del", f"worker:{name}", "") for name in await self._named(workers, all)])

    async def stop(self, *workers: str, all: bool = False, reason: str = "") -> list[str]:
        """Stop workers as SIGTERM does; for arguments and errors see `quiet`. Their supervisor replaces them no more."""
        return await self._order(reason, [("set", f"worker:{name}", "stop") for name in await self._named(workers, all)])

    async def _named(self, wanted: Sequence[str], all: bool) -> list[str]:
        if bool(wanted) == all:
            raise ConfigError("name workers, or choose all of them, not both")
        living = [worker.name for worker, is_alive in await self._workers() if is_alive]
        return living if all else list(dict.fromkeys(_worker(name, living) for name in wanted))

    # --- schedules -------------------------------------------------------------------------------------------------------

    async def schedules(self) -> Schedules:
        """Return the schedules in force, those of the code that were given and those that stand in Redis.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        return schedules_in(self._code, *await self._store.schedules())

    async def add_schedule(self, schedule: Schedule, *, reason: str = "") -> bool:
        """Add a schedule, which stands in Redis alone; return whether that changed anything, as each verb below.

        Raises:
            ConfigError: there is one of this name, or an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        if not isinstance(schedule, Schedule):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"schedule must be a Schedule, got {_shown(schedule)}")
        if schedule.queue not in ("", self._queue):
            what = f"{schedule.definition.settings.type} is of queue {schedule.queue}, and this is queue {self._queue}"
            raise ConfigError(f"schedule {schedule.name!r}: {what}; hint: queue={schedule.queue!r} (--queue)")

        def change(known: Schedules) -> dict[str, Any]:
            if schedule.name in {*known.in_force, *known.unreadable, *known.elsewhere}:
                raise ConfigError(f"there is a schedule {schedule.name!r} already; hint: edit it, or remove it first")
            return whole_members(schedule.definition)

        return await self._change(schedule.name, reason, change)

    async def edit_schedule(
        self,
        name: str,
        *,
        message: msgspec.Struct | UnsetType = UNSET,
        when: str | UnsetType = UNSET,
        every_s: float | UnsetType = UNSET,
        tz: str | UnsetType = UNSET,
        missed: Literal["latest", "skip", "all"] | UnsetType = UNSET,
        cap: int | UnsetType = UNSET,
        overlap: Literal["allow", "skip"] | UnsetType = UNSET,
        jitter_s: float | UnsetType = UNSET,
        expires_s: float | UnsetType | None = UNSET,
        priority: str | Priority | UnsetType = UNSET,
        reason: str = "",
    ) -> bool:
        """Change a schedule; of one from code, what is given overrides the code. What is not given stays as it is.

        No change makes a tick of the past due.

        Args:
            name: of the schedule.
            message: the payload of each job, of the type that the schedule has.
            when: as in `Schedule`, like all that follow; takes the place of `every_s`.
            every_s: seconds; takes the place of `when`.
            tz: name of a zone.
            missed: what becomes of late ticks.
            cap: how many of them fire at most, 1 to 100.
            overlap: what becomes of a tick while the job of one before lives.
            jitter_s: seconds.
            expires_s: seconds; None for any time.
            priority: the stream of its jobs.
            reason: for people, up to 500 characters.

        Raises:
            ConfigError: there is no such schedule, or an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        members = {"when": when, "every_s": every_s, "tz": tz, "missed": missed, "cap": cap, "overlap": overlap}
        members |= {"jitter_s": jitter_s, "expires_s": expires_s}
        given = {member: value for member, value in members.items() if value is not UNSET}
        if priority is not UNSET:
            given["priority"] = STREAMS.index(_checked_priority(priority)) + 1
        if message is UNSET and not given:
            raise ConfigError(f"give at least one of message, {', '.join(members)}, priority")

        def change(known: Schedules) -> dict[str, Any]:
            data = {} if message is UNSET else message_members(known.named(name), message)
            return known.edited(name, given | data)

        return await self._change(name, reason, change)

    async def pause_schedule(self, name: str, *, reason: str = "") -> bool:
        """Let a schedule fire nothing until it is resumed; what it would have fired is not made up for.

        One of code that is not here can be paused as well, where a worker has seen it.

        Raises:
            ConfigError: there is no such schedule, or the reason cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        return await self._set_paused(name, True, reason)

    async def resume_schedule(self, name: str, *, reason: str = "") -> bool:
        """Let a schedule fire again, from now on; raises as `pause_schedule`."""
        return await self._set_paused(name, False, reason)

    async def _set_paused(self, name: str, is_paused: bool, reason: str) -> bool:
        return await self._change(name, reason, lambda known: known.paused(name, is_paused))

    async def remove_schedule(self, name: str, *, reason: str = "") -> bool:
        """Remove a schedule from Redis; or what overrides one from code, which goes on as the code says.

        Raises:
            ConfigError: nothing of this name stands in Redis, or the reason cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """

        def change(known: Schedules) -> None:
            if name not in known.stored:
                is_code = "; it is one of the code: pause it" if name in known.code else ""
                raise ConfigError(f"no schedule {_shown(name)} in Redis{is_code}")

        return await self._change(name, reason, change)

    async def run_schedule(self, name: str) -> Sent:
        """Send the job of a schedule now, beside its ticks; `Sent.new` is False where one lives and it is to overlap with none.

        Raises:
            ConfigError: there is no such schedule.
            QueueFull: Redis has no memory left; nothing was sent.
            StoreUnavailable: no answer or an error; it may or may not be sent.
        """
        _check_text(name)
        known = await self.schedules()
        definition = known.named(name)
        key = f"cron:{name}" if definition.settings.overlap == "skip" else ""
        packed = _packed(definition, f"now-{known.now_ms}", key=key, exp_ms=definition.expires_ms(known.now_ms))
        async with Producer.connect(self._url, queue=self._queue) as producer:
            [sent] = await producer.send_packed([packed])
        return sent

    async def backfill_schedule(self, name: str, begin: datetime, end: datetime, *, is_dry_run: bool = False) -> list[datetime]:
        """Send the jobs of the ticks in a time again, at most 1,000, with the ids they had or would have had; return the ticks.

        They do not expire: a tick of long ago would have, and whoever calls this wants it to run.

        Args:
            name: of the schedule.
            begin: the first tick, in the schedule's zone where it names none.
            end: before this time, which may not lie ahead.
            is_dry_run: whether nothing is sent.

        Raises:
            ConfigError: there is no such schedule, or the times cannot be used, or there are more ticks; nothing is sent.
            QueueFull: Redis has no memory left; a part may be sent.
            StoreUnavailable: no answer or an error; a part may be sent.
        """
        _check_text(name)
        known = await self.schedules()
        definition = known.named(name)
        zone = ZoneInfo(definition.times.zone)
        begin_ms, end_ms = _checked_time("begin", begin, zone), _checked_time("end", end, zone)
        if not 0 < begin_ms < end_ms <= known.now_ms:
            raise ConfigError(
                "begin, end (--from, --to): must be two times, the first one before the second, and neither may lie ahead"
            )
        ticks: list[int] = []
        for tick in definition.times.after(begin_ms - 1):
            if tick >= end_ms:
                break
            ticks.append(tick)
            if len(ticks) > MAX_BACKFILL:
                raise ConfigError(
                    f"begin, end (--from, --to): there are more than {MAX_BACKFILL:,} ticks; hint: call it for a part at a time"
                )
        packed = [_packed(definition, str(tick), first_ms=tick) for tick in ticks]
        if packed and not is_dry_run:
            n = min(CHUNK_MESSAGES, max(1, CHUNK_BYTES // len(packed[0].data)))
            async with Producer.connect(self._url, queue=self._queue) as producer:
                for at in range(0, len(packed), n):
                    await producer.send_packed(packed[at : at + n])
        return [datetime.fromtimestamp(tick / 1000, zone) for tick in ticks]

    async def _change(self, name: str, reason: str, change: Callable[[Schedules], dict[str, Any] | None]) -> bool:
        """Write what `change` makes of what stands: members, none where nothing is to be done, None where all is to go.

        Between reading and writing another may change the schedule: its revision differs by then, and the server refuses.
        """
        _check_text(name)
        _check_reason(reason)
        for tries in range(TRIES):
            known = await self.schedules()
            members = change(known)
            if members is not None and not members:
                return False
            try:
                return bool(await self._order(reason, [known.operation(name, members)]))
            except ChangedMeanwhile:
                if tries == TRIES - 1:
                    raise
        raise AssertionError

    # --- jobs --------------------------------------------------------------------------------------------------------------

    async def send_text(
        self,
        type: str,
        data: bytes,
        *,
        version: int = 1,
        priority: str | Priority = Priority.MEDIUM,
        key: str = "",
        replayed_from: str = "",
        trash: bool = False,
        reason: str = "",
    ) -> Sent:
        """Send one job whose payload a person has written as JSON; the audit says so, before and after.

        With `trash` it takes the place of the letter that it was made of, in one step: never do both run, whoever dies or replays
        the letter meanwhile.

        Args:
            type: the name of the job type.
            data: its payload as JSON, which is sent as it is and not checked.
            version: of the contract that the payload is written for.
            priority: the name of the stream, such as `high`.
            key: as in `send`: only one job with it lives.
            replayed_from: the place of the dead letter that it was made of; the job carries it as `x-replayed-from`.
            trash: move that letter to the trash, where the job is sent.
            reason: for people, up to 500 characters.

        Raises:
            BadPayload: an argument cannot be used; nothing is sent.
            ConfigError: the reason cannot be used; nothing is sent.
            ChangedMeanwhile: the letter that is to go to the trash is gone; nothing is sent.
            QueueFull: Redis has no memory left; nothing was sent.
            StoreUnavailable: no answer or an error; it may or may not be sent.
        """
        _check_reason(reason)
        options = Options(priority=Priority[_checked_priority(priority).upper()], key=key)
        packed = Packer(time.time, "control").pack_raw(type, data, options, version, Priority.MEDIUM)
        if replayed_from:
            head = msgspec.structs.replace(packed.head, fields=(REPLAYED_FROM, replayed_from[:MAX_FROM], *packed.head.fields))
            packed = Packed(head, packed.data)
        if trash:
            return await self._send_in_place_of(replayed_from, packed, reason)
        made_of = f", made of {replayed_from[:MAX_FROM]}" if replayed_from else ""
        await self._store.note(self.by, reason, f"send {type}{made_of}")
        async with Producer.connect(self._url, queue=self._queue) as producer:
            [sent] = await producer.send_packed([packed])
        told = "sent" if sent.new else "not sent, since it lives already"
        await self._store.note(self.by, reason, f"{told}: {type} as {sent.id}{made_of}")
        return sent

    async def _send_in_place_of(self, letter: str, packed: Packed, reason: str) -> Sent:
        head = packed.head
        word, told = await self._amend(letter, head.stream, (*head.fields, DATA, packed.data), reason)
        if word == "gone":
            raise ChangedMeanwhile(f"{letter}: the letter is gone: it was replayed, moved to the trash or deleted")
        return Sent(default_id(STREAMS[head.stream], told)) if word == "sent" else Sent(told, new=False)

    # --- what holds ------------------------------------------------------------------------------------------------------

    async def rules(self) -> Rules:
        """Return all rules that hold, without pauses whose time is up; `unreadable` are fields that are left out.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        rules, now_ms = await self._store.rules()
        pauses = {name: pause for name, pause in rules.pauses.items() if not pause.is_over(now_ms)}
        return msgspec.structs.replace(rules, pauses=pauses)

    async def audit(self, n: int = 20) -> list[Change]:
        """Return the newest `n` orders (1 to 10,000), the newest first.

        Raises:
            ConfigError: `n` is out of its range.
            StoreUnavailable: no answer or an error.
        """
        if type(n) is not int or not 1 <= n <= MAX_AUDIT:
            raise ConfigError(f"n must be between 1 and {MAX_AUDIT:,}, got {n}")
        return await self._store.audit(n)

    async def _order(self, reason: str, operations: Sequence[Operation]) -> list[str]:
        """Write an order; return the names of what it changed."""
        _check_reason(reason)
        changed: list[bool] = []
        for start in range(0, len(operations), MAX_OPERATIONS):
            part = operations[start : start + MAX_OPERATIONS]
            try:
                changed += await self._store.order(self.by, reason, part)
            except StoreError:
                raise
            except StoreUnavailable:  # the reply was lost, or the server has closed a connection that stood idle
                changed += await self._store.order(self.by, reason, part)
        return [field.partition(":")[2] for (_, field, _), is_new in zip(operations, changed, strict=True) if is_new]


# --- what is given ---------------------------------------------------------------------------------------------------------


def who() -> str:
    """Return user and host of this process, as one word."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may have no such user
        user = f"uid-{os.getuid()}"
    return re.sub(r"[^\w.@-]+", "-", f"{user}@{socket.gethostname()}")[:MAX_BY]


def _checked_by(by: Any) -> str:
    if not isinstance(by, str) or len(by) > MAX_BY or not by.isprintable() or " " in by:
        raise ConfigError(f"by must be one word of up to {MAX_BY} characters, got {_shown(by)}")
    return by


def _check_reason(reason: Any) -> None:
    if not isinstance(reason, str) or len(reason) > MAX_REASON or not reason.isprintable():
        raise ConfigError(f"reason must be one line of up to {MAX_REASON} characters, got {_shown(reason)}")


def _checked_ms(for_s: Any) -> int:
    if not (isinstance(for_s, int | float) and math.isfinite(for_s) and 1 <= for_s <= MAX_PAUSE_S):
        raise ConfigError(f"for_s must be between 1 and {MAX_PAUSE_S:,} s, or None until it is resumed, got {_shown(for_s)}")
    return int(for_s * 1000)


def _checked_type(name: Any) -> str:
    if not isinstance(name, str) or not TYPE_NAME.match(name.encode(errors="replace")):
        raise ConfigError(f"type must be 1 to 64 of a-z, 0-9, `.`, `_` and `-`, with a letter or digit first, got {_shown(name)}")
    if name in STREAMS:
        how = f"to pause a priority: priority={name!r} (--priority {name})"
        raise ConfigError(f"type must not be the name of a priority, got {name!r}; hint: {how}")
    return name


def _checked_priority(priority: Any) -> str:
    name = priority.name.lower() if isinstance(priority, Priority) else priority
    if name not in STREAMS:
        raise ConfigError(f"priority must be one of {', '.join(STREAMS)}, got {_shown(name)}")
    return name


def _paused_names(types: Any, priorities: Any, is_all: bool) -> list[str]:
    names = [*map(_checked_type, _listed(types)), *map(_checked_priority, _listed(priorities))]
    if bool(names) == is_all:
        raise ConfigError("name types or priorities, or choose the whole queue, not both")
    return [ALL] if is_all else list(dict.fromkeys(names))


def _listed(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else [given]  # pyright: ignore[reportUnknownVariableType]


def _worker_of(name: str, row: WorkerRow, order: str, silent: str) -> Worker:
    about = (row.host, row.pid, row.lanes, row.held, row.running, row.stage)
    return Worker(name, *about, order, row.types, row.blocked, row.blocked_ms, silent)


def _worker(wanted: str, living: Sequence[str]) -> str:
    found = [wanted] if wanted in living else [name for name in living if wanted and name.startswith(wanted)]
    if not found:
        raise ConfigError(f"no worker {_shown(wanted)} lives; {f'there are {_some(living)}' if living else 'none does'}")
    if len(found) > 1:
        raise ConfigError(f"{_shown(wanted)} is the beginning of several workers: {_some(found)}")
    return found[0]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more


def _by_name(schedules: Iterable[Schedule]) -> dict[str, Definition]:
    found: dict[str, Definition] = {}
    for schedule in schedules:
        if schedule.name in found:
            raise ConfigError(f"two schedules have the name {schedule.name!r}")
        found[schedule.name] = schedule.definition
    return found


def _check_text(name: Any) -> None:
    if not isinstance(name, str):  # of what stands in Redis any text may be a name, so that it can be removed
        raise ConfigError(f"name must be a text, got {_shown(name)}")


def _checked_time(name: str, at: Any, zone: ZoneInfo) -> int:
    try:
        return int((at if at.tzinfo else at.replace(tzinfo=zone)).timestamp() * 1000)
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} must be a datetime, got {_shown(at)}") from None


def _packed(definition: Definition, tick: str, *, key: str = "", exp_ms: int | None = None, first_ms: int = 0) -> Packed:
    settings, job_id = definition.settings, f"cron:{definition.name}:{tick}"
    fields = header(settings.type, id=job_id, version=settings.version, key=key, exp_ms=exp_ms, first_ms=first_ms)
    return Packed(Head(settings.priority - 1, 0, job_id, fields), bytes(settings.data))


def _shown(value: object) -> str:
    return repr(value)[:60]
