"""What a doctor looks at: the server's settings, and every structure of a queue, a bounded part of each.

Findings are plain values. Those about the server are the same that a worker's start refuses, or warns of.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from runtime.errors import ConfigError
from runtime.findings import Finding
from runtime.jobs import STREAMS, UNKNOWN
from runtime.store.base import GROUP, WorkerRow, by_life, holders_in, layout_trouble, ms_in, pairs, workers_of
from runtime.store.flow import BEHIND_MS, Flow, GateReading, PauseReading, ScheduleReading, silence, span
from runtime.store.inspector import Server
from runtime.store.resp import ServerError
from runtime.store.rounds import Rounds, clock, memory_findings
from runtime.store.unknown import dead_from_ms, kind_in_words

Workers = Mapping[str, tuple[int, WorkerRow]]
OLDEST_SERVER: Final = (7, 0)  # the oldest on which the tests run
LOOK_AT: Final = 200  # a guess, entries of each structure: enough to find a fault that is there, cheap enough for a busy server
LOT_LOOK: Final = 20  # entries of a lot that are looked at for how long they have stood there
MAX_SHOWN: Final = 10  # a guess: lots of unknown types of a stream
STALE_MS: Final = 3_600_000  # a guess: the longest lease that is believed
CLOCK_WARN_MS: Final = 1_000  # a guess: what NTP holds easily
CLOCK_ERROR_MS: Final = 10_000  # a guess
OVERDUE_MS: Final = 60_000  # a guess: a member that cannot be moved is tried again after a minute
PAUSED_LONG_MS: Final = 3_600_000  # a guess: whoever pauses for longer may have forgotten it
SHORT_TIMEOUT_S: Final = 10  # a guess: idle connections are asked every few seconds
TYPES_FIX: Final = "python -m runtime types (on the workers): a typo, or a deploy to come?"
SILENT_FIX: Final = "none needed: others take its jobs back; its log, or its supervisor's, says why it ended or hangs"
FIX_END: Final = "python -m runtime jobs reopen (jobs that run at that moment run again)"


class Doctor(Rounds):
    """A doctor's verbs: reads of one connection."""

    async def examine(self, local_ms: int) -> list[Finding]:
        """Return all findings; `local_ms` is this host's clock.

        Raises:
            StoreUnavailable: no answer.
        """
        server = await self.server()
        findings = [*about_server(server), *await self.about_memory(server), *about_clock(server.now_ms, local_ms)]
        findings += await self._about_layout()
        broken = await self._about_types()
        findings += broken.values()
        workers = await self._known_workers()
        if self.keys.workers not in broken:
            for stream, key in enumerate(self.keys.streams):
                if key not in broken:
                    findings += await self._about_stream(stream, workers)
        if broken.keys().isdisjoint({self.keys.due, self.keys.messages}):
            findings += await self._about_delayed(server.now_ms)
        findings += await self._about_ends()
        findings += about_flow(await self.flow(), self.keys.control)
        findings += await self.about_strays()
        if self.keys.dead not in broken:
            findings += await self._about_runs(workers, server.now_ms)
        findings += await self.about_deaths(server.now_ms)
        findings += await self._about_workers(workers, server.now_ms)
        return findings

    async def _known_workers(self) -> dict[str, tuple[int, WorkerRow]]:
        rows = ("ZRANGE", self.keys.workers, 0, -1, "WITHSCORES"), ("HGETALL", self.keys.rows)
        return workers_of(*map(self._flat, await self.ask(self._connection, *rows)))

    async def _about_runs(self, workers: Workers, now_ms: int) -> list[Finding]:
        minutes = await self.minutes(now_ms)
        hung = await self.about_hung(minutes, by_life(workers, now_ms)[0], now_ms)
        return hung + await self.about_letters(minutes, now_ms)

    async def _about_ends(self) -> list[Finding]:
        ends = zip((*self.keys.streams, self.keys.dead), await self.ends_on(self._connection), strict=True)
        return [Finding("error", f"{key} {trouble}", FIX_END) for key, end in ends for trouble in end.troubles]

    async def _about_layout(self) -> list[Finding]:
        trouble = layout_trouble(self.keys.layout, (await self.ask(self._connection, ("GET", self.keys.layout)))[0])
        return [] if trouble is None else [Finding("error", *trouble)]

    async def _about_types(self) -> dict[str, Finding]:
        """Return, by key, what stands in the place of another type: nothing else can be asked of that one."""
        keys = self.keys
        wanted = dict.fromkeys((*keys.streams, keys.dead), b"stream")
        wanted |= {keys.due: b"zset", keys.messages: b"hash", keys.workers: b"zset", keys.rows: b"hash"}
        wanted |= {keys.strikes: b"hash", keys.isolations: b"hash"}
        wanted |= {keys.control: b"hash", keys.audit: b"stream", keys.cron: b"hash", keys.cron_state: b"hash"}
        found = await self.ask(self._connection, *[("TYPE", key) for key in wanted])
        return {
            key: Finding(
                "error", f"{key} has the type {kind.decode()}, not {right.decode()}", f"redis-cli RENAME '{key}' '{key}:was'"
            )
            for (key, right), kind in zip(wanted.items(), found, strict=True)
            if isinstance(kind, bytes) and kind not in (right, b"none")
        }

    async def _about_stream(self, stream: int, workers: Workers) -> list[Finding]:
        key = self.keys.streams[stream]
        info, groups = await self.ask(self._connection, ("XINFO", "STREAM", key), ("XINFO", "GROUPS", key))
        if isinstance(info, ServerError):
            return []  # nothing was sent yet
        group = next((row for row in map(dict, map(pairs, groups)) if row.get(b"name") == GROUP.encode()), None)
        if group is None:
            fix = f"start a worker, or: redis-cli XGROUP CREATE '{key}' {GROUP} 0 MKSTREAM"
            return [Finding("error", f"{key} has no consumer group: nothing of it is fetched", fix)]
        findings = await self._about_skipped(key, bytes(group[b"last-delivered-id"]).decode())
        return findings + await self._about_pending(stream, workers)

    async def _about_skipped(self, key: str, delivered: str) -> list[Finding]:
        """Find entries that were passed over: before the last delivered one, and pending with no consumer. Nothing reads them."""
        entries = await self.call_one(self._connection, ("XRANGE", key, "-", delivered, "COUNT", LOOK_AT))
        pending = (
            await self.ask(self._connection, *[("XPENDING", key, GROUP, row[0], row[0], 1) for row in entries]) if entries else []
        )
        skipped = [row[0] for row, held in zip(entries, pending, strict=True) if not held]
        if not skipped:
            return []
        first = bytes(skipped[0]).decode()
        part = f"{len(skipped)} of the oldest {len(entries)} entries of {key}"
        what = f"{part} are delivered to no consumer (a group made at $, or acked by hand)"
        before = _id_before(first)
        return [Finding("error", what, f"with all workers stopped: redis-cli XGROUP SETID '{key}' {GROUP} {before}")]

    async def _about_pending(self, stream: int, workers: Workers) -> list[Finding]:
        key = self.keys.streams[stream]
        old = await self.call_one(self._connection, ("XPENDING", key, GROUP, "IDLE", STALE_MS, "-", "+", LOOK_AT))
        names = {consumer.decode(errors="replace") for _, consumer, _, _ in old}
        stale = sorted(name for name in names if not name.startswith("~") and name not in workers)
        held = holders_in(await self.call_one(self._connection, ("XPENDING", key, GROUP)))
        parked = [(name.decode(errors="replace"), count) for name, count in held if name.startswith(UNKNOWN.encode())]
        findings = [
            Finding(
                "error",
                f"consumer {name} holds jobs of {STREAMS[stream]} and has had no heartbeat for an hour",
                "start a worker: it takes them back within a lease",
            )
            for name in stale
        ]
        for lot, count in parked[:MAX_SHOWN]:
            kind = "their types" if lot == UNKNOWN else kind_in_words(lot)
            what = f"{count} jobs of {STREAMS[stream]} wait for a worker that knows {kind}"
            findings.append(Finding("warning", what + await self._until_dead(stream, lot, workers), TYPES_FIX))
        return findings

    async def _until_dead(self, stream: int, lot: str, workers: Workers) -> str:
        """Return from when on what waits in a lot of a type is dead: of the first of it, as far as rows of workers tell."""
        rows, now = await self.ask(
            self._connection, ("XPENDING", self.keys.streams[stream], GROUP, "-", "+", LOT_LOOK, lot), ("TIME",)
        )
        idle_ms, now_ms = max((row[2] for row in self._flat(rows)), default=0), ms_in(self.checked(now))
        from_ms = dead_from_ms(lot, now_ms - idle_ms, by_life(workers, now_ms)[0].values())
        return f": dead letters from {clock(from_ms)} on" if from_ms else ""

    async def _about_delayed(self, now_ms: int) -> list[Finding]:
        keys = self.keys
        messages, times, first, sample = await self.ask(
            self._connection,
            ("HLEN", keys.messages),
            ("ZCARD", keys.due),
            ("ZRANGE", keys.due, 0, 0, "WITHSCORES"),
            ("HRANDFIELD", keys.messages, LOOK_AT),
        )
        findings: list[Finding] = []
        if messages != times:
            scores = await self.ask(self._connection, *[("ZSCORE", keys.due, member) for member in sample]) if sample else []
            lost = sum(1 for score in scores if score is None)
            what = f"{messages} delayed messages and {times} times do not match ({lost} of {len(scores)} looked at have no time)"
            findings.append(Finding("error", what, "start a worker: those without a time are due then"))
        overdue_ms = max((now_ms - float(due_ms) for _, due_ms in pairs(first)), default=0)
        if overdue_ms > OVERDUE_MS:
            what = f"a delayed job is overdue by {overdue_ms / 1000:.0f} s: no worker promotes"
            findings.append(Finding("warning", what, "start a worker"))
        return findings

    async def _about_workers(self, workers: Workers, now_ms: int) -> list[Finding]:
        depth, findings = await self.depth(), list[Finding]()
        for name, (until_ms, row) in sorted(workers.items())[:MAX_SHOWN] if depth.silent else ():
            said = silence(until_ms, row, now_ms)
            if said:
                findings.append(Finding("warning", f"worker {name} is {said}", SILENT_FIX))
        if not depth.workers and depth.unfinished:
            what, queue = f"{depth.unfinished} jobs wait and no worker lives", shlex.quote(self.keys.queue)
            return [*findings, Finding("error", what, f"python -m runtime run --handlers YOUR.MODULE --queue {queue}")]
        silent = f" and {depth.silent} silent" if depth.silent else ""
        what = f"{depth.workers} workers{silent}, backlog {depth.backlog}, delayed {depth.delayed}, dead {depth.dead}"
        return [*findings, Finding("ok", what)]


def about_flow(flow: Flow, control: str) -> Iterator[Finding]:
    """Check rules, pauses, limits and schedules; `control` is the key of the rules."""
    for name, why in list(flow.unreadable_rules.items())[:MAX_SHOWN]:
        fix = f"redis-cli HDEL '{control}' {shlex.quote(name)}"
        yield Finding("warning", f"the rule {name} cannot be read and is left out: {why}", fix)
    for name, why in list(flow.unreadable_schedules.items())[:MAX_SHOWN]:
        fix = f"python -m runtime cron remove {shlex.quote(name)}"
        yield Finding("warning", f"{why}: it does not run", fix)
    for key in flow.unreadable_keys[:MAX_SHOWN]:
        what = f"{key} is of another type than it should be: nothing comes through that gate"
        yield Finding("error", what, f"redis-cli DEL {shlex.quote(key)} (permits and rates come again by themselves)")
    for pause in flow.pauses:
        yield _about_pause(pause, flow.now_ms)
    for gate in flow.gates:
        yield from _about_gate(gate, flow.workers)
    for name in flow.differing[:MAX_SHOWN]:
        what = f"workers declare different limits of {name}: each applies its own (a rolling deploy, or a release without limits)"
        yield Finding("warning", what, f"upgrade all workers; until then: python -m runtime limits set {name} …")
    for schedule in flow.schedules:
        yield from _about_schedule(schedule, flow)


def _about_pause(pause: PauseReading, now_ms: int) -> Finding:
    for_ms = now_ms - pause.since_ms
    flags = {"all": "--all", "priority": f"--priority {pause.name}"}.get(pause.kind, pause.name)
    why = f" ({pause.reason})" if pause.reason else ""
    what = f"{pause.words} has been paused for {span(for_ms)} by {pause.by}{why}: {pause.waiting:,} jobs wait"
    if for_ms < PAUSED_LONG_MS or not pause.waiting:
        return Finding("ok", what)
    return Finding("warning", what, f"python -m runtime resume {flags}")


def _about_gate(gate: GateReading, workers: int) -> Iterator[Finding]:
    if gate.waiting and not gate.is_known and workers:
        what = f"{gate.waiting:,} jobs of {gate.type} wait at their gate, and no worker that lives knows that type"
        yield Finding("warning", what, TYPES_FIX)
    if gate.ordered:
        told = ", ".join(f"{name} {gate.limits.get(name, 'none')}" for name in gate.ordered)
        unknown = "" if gate.is_known or not workers else "; no worker that lives knows that type"
        yield Finding("ok", f"people have set in place of the code of {gate.type}: {told}{unknown}")


def _about_schedule(schedule: ScheduleReading, flow: Flow) -> Iterator[Finding]:
    name = schedule.name
    if schedule.is_behind:
        what = f"schedule {name} should have fired {span(flow.now_ms - (schedule.next_ms or 0))} ago, and no worker has done it"
        yield Finding("warning", what, "see the log of the workers: it says what is refused (memory full?)")
    elif schedule.next_ms is None and not schedule.is_paused and flow.workers:
        if not schedule.heard_ms:
            what = f"schedule {name} has been taken up by no worker yet"
            yield Finding("warning", what, "upgrade the workers, if they are of a release without schedules")
        elif flow.now_ms - schedule.heard_ms > BEHIND_MS:
            what = f"no worker that lives fires schedule {name}, for {span(flow.now_ms - schedule.heard_ms)}"
            if schedule.is_stored:
                yield Finding("warning", what, f"python -m runtime cron show {name}")
            else:
                yield Finding("ok", f"{what}: it is not in their code any more, or has no further time")


def about_server(server: Server) -> Iterator[Finding]:
    """Check version, role, eviction, durability, memory and time limits."""
    yield from refusals(server)
    if _version(server) >= OLDEST_SERVER:
        yield Finding("ok", f"{server.name} {server.version}")
    yield from _risks(server)


def check_server(server: Server, redis_cli: str) -> list[str]:
    """Return what a worker's start warns of; `redis_cli` is the call that reaches this server.

    Raises:
        ConfigError: jobs would be lost on this server; the text has the command that fixes it.
    """
    for finding in refusals(server):
        raise ConfigError(_told(finding, redis_cli))
    found = [*_risks(server), *(memory_findings(server, False, {}) if server.max_memory_bytes else ())]
    return [_told(finding, redis_cli) for finding in found if finding.level != "ok"]


def _told(finding: Finding, redis_cli: str) -> str:
    return f"{finding.what}; hint: {finding.fix.replace('redis-cli', redis_cli)}"


def refusals(server: Server) -> Iterator[Finding]:
    """Find what loses jobs, or runs none: no worker starts on such a server."""
    if _version(server) < OLDEST_SERVER:
        oldest = ".".join(map(str, OLDEST_SERVER))
        yield Finding("error", f"{server.name} {server.version}: must be {oldest} or newer", "apt-get install redis-server")
    if server.role not in ("", "master"):
        yield Finding("error", f"this server is a {server.role}: jobs are written to the master", "give the URL of the master")
    if server.policy.startswith("allkeys-"):
        what = f"maxmemory-policy {server.policy} may throw away streams with jobs"
        yield Finding("error", what, "redis-cli CONFIG SET maxmemory-policy noeviction")


def _version(server: Server) -> tuple[int, ...]:
    return tuple(int(part) for part in server.version.split(".")[:2] if part.isdigit())


def _risks(server: Server) -> Iterator[Finding]:
    """Find what a worker can live with."""
    if server.policy.startswith("volatile-"):
        what = f"maxmemory-policy {server.policy} may throw away marks and statistics"
        yield Finding("warning", what, "redis-cli CONFIG SET maxmemory-policy noeviction")
    yield from _about_durability(server)
    if 0 < server.client_timeout_s < SHORT_TIMEOUT_S:
        what = f"timeout {server.client_timeout_s} s cuts idle connections"
        yield Finding("warning", what, "redis-cli CONFIG SET timeout 0")


def _about_durability(server: Server) -> Iterator[Finding]:
    if not server.appendonly:
        what = "no append-only file: all jobs are lost when the server ends"
        yield Finding("error", what, "redis-cli CONFIG SET appendonly yes (and put it into redis.conf)")
    elif server.fsync == "always":
        yield Finding("ok", "durability: every acknowledged job is on disk (appendfsync always)")
    else:
        how = f"appendfsync {server.fsync or 'unknown'}"
        yield Finding("ok", f"durability: a crash of the machine loses up to 2 s of acknowledged jobs ({how})")


def about_clock(server_ms: int, local_ms: int) -> Iterator[Finding]:
    """Check how far this host's clock is from the server's."""
    off_ms = abs(server_ms - local_ms)
    if off_ms > CLOCK_WARN_MS:
        level = "error" if off_ms > CLOCK_ERROR_MS else "warning"
        what = f"this host's clock is {off_ms / 1000:.1f} s off the server's: delays and expiries sent from here are off by that"
        yield Finding(level, what, "timedatectl set-ntp true")


def _id_before(entry: str) -> str:
    stamp, _, number = entry.partition("-")
    return f"{stamp}-{int(number) - 1}" if int(number) else f"{int(stamp) - 1}-18446744073709551615"
