"""What a doctor looks at: the server's settings and every structure of a queue, a bounded part of each.

Findings as plain values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from runtime.jobs import STREAMS, UNKNOWN
from runtime.store.base import AHEAD_MS, GROUP, setting, workers_of
from runtime.store.inspector import OLDEST_SERVER, Inspector, Server, flat_row
from runtime.store.resp import ServerError

LOOK_AT: Final = 200  # entries of each structure: enough to find a fault that is there, cheap enough for a busy server
MAX_SHOWN: Final = 10
STALE_MS: Final = 3_600_000
CLOCK_WARN_MS: Final = 1_000
CLOCK_ERROR_MS: Final = 10_000
OVERDUE_MS: Final = 60_000
REOPEN_IDS: Final = 500  # entries a call: a few milliseconds of the server
MEMORY_PART: Final = 0.9
FIX_END: Final = "python -m runtime jobs reopen (jobs that run at that moment run again)"


class Finding(msgspec.Struct, frozen=True):
    """One thing found: `level` is `error`, `warning` or `ok`; `fix` is the command that fixes it."""

    level: str
    what: str
    fix: str = ""


class Facts(msgspec.Struct):
    """What was read for the findings about the server."""

    server: Server
    fsync: str
    memory_bytes: int
    max_memory_bytes: int
    client_timeout_s: int
    server_ms: int


class Doctor(Inspector):
    """A doctor's verbs, on one connection."""

    async def examine(self, local_ms: int) -> list[Finding]:
        """Return all findings; `local_ms` is this host's clock.

        Raises:
            StoreUnavailable: no answer.
        """
        facts = await self.facts()
        findings = [*about_server(facts), *about_clock(facts.server_ms, local_ms)]
        broken = await self._about_types()
        findings += broken.values()
        if self.keys.workers not in broken:
            for stream in range(4):
                if self.keys.streams[stream] not in broken:
                    findings += await self._about_stream(stream, facts.server_ms)
        if broken.keys().isdisjoint({self.keys.due, self.keys.messages}):
            findings += await self._about_delayed(facts.server_ms)
        findings += await self._about_ends()
        findings += await self._about_workers(facts.server_ms)
        return findings

    async def reopen(self, stream: int, may_set_aside: bool = True) -> tuple[int, int, bool]:
        """Move a part of a closed stream (4: the dead letters) to a fresh key: entries moved, entries left, whether it was set
        aside just now.

        May be called again, also by others: nothing is lost, and what ran when the key was set aside runs again.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        place = stream + 1 if stream < len(STREAMS) else self.keys.scripted.index(self.keys.dead) + 1
        command = self.command("reopen", place, AHEAD_MS, REOPEN_IDS, int(may_set_aside))
        moved, left, is_new = await self.call_one(self._connection, command)
        return moved, left, bool(is_new)

    async def _about_ends(self) -> list[Finding]:
        ends = zip((*self.keys.streams, self.keys.dead), await self.ends_on(self._connection), strict=True)
        return [Finding("error", f"{key} {trouble}", FIX_END) for key, end in ends for trouble in end.troubles]

    async def facts(self) -> Facts:
        """Read what the server says of itself.

        Raises:
            StoreUnavailable: no answer.
        """
        server = await self.server()
        memory = await self.info("memory")
        fsync, timeout, now = await self.ask(
            self._connection, ("CONFIG", "GET", "appendfsync"), ("CONFIG", "GET", "timeout"), ("TIME",)
        )
        return Facts(
            server,
            setting(fsync),
            int(memory.get("used_memory", 0)),
            int(memory.get("maxmemory", 0)),
            int(setting(timeout) or 0),
            int(now[0]) * 1000 + int(now[1]) // 1000,
        )

    async def _about_types(self) -> dict[str, Finding]:
        """Return, by key, what stands in the place of another type: nothing else can be asked of that one."""
        keys = self.keys
        wanted = dict.fromkeys((*keys.streams, keys.dead), b"stream")
        wanted |= {keys.due: b"zset", keys.messages: b"hash", keys.workers: b"zset", keys.rows: b"hash"}
        wanted |= {keys.strikes: b"hash", keys.isolations: b"hash"}
        found = await self.ask(self._connection, *[("TYPE", key) for key in wanted])
        return {
            key: Finding(
                "error", f"{key} has the type {kind.decode()}, not {right.decode()}", f"redis-cli RENAME '{key}' '{key}:was'"
            )
            for (key, right), kind in zip(wanted.items(), found, strict=True)
            if isinstance(kind, bytes) and kind not in (right, b"none")
        }

    async def _about_stream(self, stream: int, now_ms: int) -> list[Finding]:
        key = self.keys.streams[stream]
        info, groups = await self.ask(self._connection, ("XINFO", "STREAM", key), ("XINFO", "GROUPS", key))
        if isinstance(info, ServerError):
            return []  # nobody has sent anything yet
        group = next((row for row in map(flat_row, groups) if row.get("name") == GROUP.encode()), None)
        if group is None:
            fix = f"start a worker, or: redis-cli XGROUP CREATE '{key}' {GROUP} 0 MKSTREAM"
            return [Finding("error", f"{key} has no consumer group: nothing of it is fetched", fix)]
        findings = await self._about_skipped(key, bytes(group["last-delivered-id"]).decode())
        return findings + await self._about_pending(stream)

    async def _about_skipped(self, key: str, delivered: str) -> list[Finding]:
        """Entries that were passed over: before the last delivered one, and pending with nobody. Nothing ever reads them."""
        entries = await self.call_one(self._connection, ("XRANGE", key, "-", delivered, "COUNT", LOOK_AT))
        pending = (
            await self.ask(self._connection, *[("XPENDING", key, GROUP, row[0], row[0], 1) for row in entries]) if entries else []
        )
        skipped = [row[0] for row, held in zip(entries, pending, strict=True) if not held]
        if not skipped:
            return []
        first = bytes(skipped[0]).decode()
        part = f"{len(skipped)} of the oldest {len(entries)} entries of {key}"
        what = f"{part} are delivered to nobody (a group made at $, or acked by hand)"
        before = _id_before(first)
        return [Finding("error", what, f"with all workers stopped: redis-cli XGROUP SETID '{key}' {GROUP} {before}")]

    async def _about_pending(self, stream: int) -> list[Finding]:
        key = self.keys.streams[stream]
        old = await self.call_one(self._connection, ("XPENDING", key, GROUP, "IDLE", STALE_MS, "-", "+", LOOK_AT))
        until = await self.call_one(self._connection, ("ZRANGE", self.keys.workers, 0, -1, "WITHSCORES"))
        known = workers_of(until, [])
        stale = sorted(
            {name for _, consumer, *_ in old if (name := consumer.decode(errors="replace"))[0] != "~" and name not in known}
        )
        lots = (await self.call_one(self._connection, ("XPENDING", key, GROUP)))[3] or ()
        parked = [(name.decode(errors="replace")[len(UNKNOWN) :], int(count)) for name, count in lots if name.startswith(b"~t:")]
        findings = [
            Finding(
                "error",
                f"consumer {name} holds jobs of {STREAMS[stream]} and has had no heartbeat for an hour",
                "start a worker: it takes them back within a lease",
            )
            for name in stale
        ]
        for type_name, count in parked[:MAX_SHOWN]:
            what = f"{count} jobs of {STREAMS[stream]} wait for a worker that knows {type_name or 'their types'}"
            findings.append(Finding("warning", what, "python -m runtime types (on the workers): a typo, or a deploy to come?"))
        return findings

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
            findings.append(Finding("error", what, "start a worker: it gives lost ones the time now"))
        overdue_ms = now_ms - float(first[1]) if first else 0
        if overdue_ms > OVERDUE_MS:
            what = f"a delayed job is overdue by {overdue_ms / 1000:.0f} s: no worker promotes"
            findings.append(Finding("warning", what, "start a worker"))
        return findings

    async def _about_workers(self, now_ms: int) -> list[Finding]:
        depth = await self.depth()
        if not depth.workers and depth.backlog:
            return [Finding("error", f"{depth.backlog} jobs wait and no worker lives", "python -m runtime --concurrency 500")]
        return [Finding("ok", f"{depth.workers} workers, backlog {depth.backlog}, delayed {depth.delayed}, dead {depth.dead}")]


def about_server(facts: Facts) -> Iterator[Finding]:
    """Judge version, role, eviction, durability, memory and time limits."""
    server = facts.server
    version = tuple(int(part) for part in server.version.split(".")[:2] if part.isdigit())
    is_old = version < OLDEST_SERVER
    yield Finding(
        "error" if is_old else "ok", f"{server.name} {server.version}", "apt-get install redis-server" if is_old else ""
    )
    if server.role not in ("", "master"):
        yield Finding("error", f"this server is a {server.role}", "give the URL of the master")
    if server.policy.startswith(("allkeys-", "volatile-")):
        level = "error" if server.policy.startswith("allkeys-") else "warning"
        prey = "streams with jobs" if level == "error" else "marks and statistics"
        what = f"maxmemory-policy {server.policy} may throw away {prey}"
        yield Finding(level, what, "redis-cli CONFIG SET maxmemory-policy noeviction")
    yield from _about_durability(server.appendonly, facts.fsync)
    if facts.max_memory_bytes and facts.memory_bytes > MEMORY_PART * facts.max_memory_bytes:
        used = facts.memory_bytes / facts.max_memory_bytes
        yield Finding(
            "warning", f"{used:.0%} of maxmemory is used: sends are refused at 100 %", "redis-cli CONFIG SET maxmemory …"
        )
    if 0 < facts.client_timeout_s < 10:
        yield Finding("warning", f"timeout {facts.client_timeout_s} s cuts idle connections", "redis-cli CONFIG SET timeout 0")


def _about_durability(appendonly: bool, fsync: str) -> Iterator[Finding]:
    if not appendonly:
        what = "no append-only file: all jobs are lost when the server ends"
        yield Finding("error", what, "redis-cli CONFIG SET appendonly yes (and put it into redis.conf)")
    elif fsync == "always":
        yield Finding("ok", "durability: every acknowledged job is on disk (appendfsync always)")
    else:
        what = f"durability: a crash of the machine loses up to 2 s of acknowledged jobs (appendfsync {fsync or 'unknown'})"
        yield Finding("ok", what)


def about_clock(server_ms: int, local_ms: int) -> Iterator[Finding]:
    """Judge how far this host's clock is from the server's."""
    off_ms = abs(server_ms - local_ms)
    if off_ms > CLOCK_WARN_MS:
        level = "error" if off_ms > CLOCK_ERROR_MS else "warning"
        what = f"this host's clock is {off_ms / 1000:.1f} s off the server's: delays and expiries sent from here are off by that"
        yield Finding(level, what, "timedatectl set-ntp true")


def _id_before(entry: str) -> str:
    stamp, _, number = entry.partition("-")
    return f"{stamp}-{int(number) - 1}" if int(number) else f"{int(stamp) - 1}-18446744073709551615"
