"""SystemPage answers for the server and this board: durability, the doctor's findings, facts, what the board costs; the audit."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from board import words
from board.api import Answerer, Refused
from board.sampler import Sampler
from board.shapes import Audit, AuditAsk, Entry, Fact, Level, Nothing, Said, System, Trouble
from board.viewer import Viewer
from runtime.findings import Finding
from runtime.store.base import parse_int
from runtime.store.inspector import is_letter
from runtime.store.urls import redis_cli, without_password

LEVELS: Final[dict[str, Level]] = {"error": "act", "warning": "look", "ok": "ok"}
STATM: Final = Path("/proc/self/statm")


class SystemPage:
    """Answers for the server and this board."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def routes(self) -> dict[str, Answerer]:
        """Return which method answers what."""
        return {"GET system": self.system, "GET audit": self.audit}

    async def system(self, ask: Nothing, viewer: Viewer) -> System:
        """Return what the server is, what is wrong with it, and what this board costs it."""
        sampler = self._sampler
        picture = await sampler.picture()
        findings, host = await sampler.examined(), await sampler.store.host()
        off_ms = abs(picture.sample.now_ms - int(time.time() * 1000))
        return System(
            said=durability(host),
            troubles=[trouble_of(finding, sampler.url) for finding in sorted(findings, key=_worst_first)],
            facts=[
                *_facts(host),
                _fact("clock", f"differs from this host's by less than {words.duration(off_ms + 1_000)}"),
                *self._where(),
            ],
            cost=self._cost(),
        )

    def _where(self) -> list[Fact]:
        return [
            Fact(name="address", text=without_password(self._sampler.url), is_code=True),
            Fact(name="queue", text=self._sampler.queue, is_code=True),
        ]

    def _cost(self) -> list[Fact]:
        """Return what this board asks of Redis while somebody looks, and what memory its process has, with a worker's where it is
        in one.
        """
        sampler = self._sampler
        commands, took_s = sampler.cost
        known = sampler.history.hours_known
        return [
            _fact("commands", f"{commands} a second while somebody looks, none else"),
            _fact("waits for Redis", f"{words.duration(took_s * 1000)} a second, with the way there and back"),
            _fact("memory", f"{words.size(resident_bytes())}, the process"),
            _fact("viewers", words.counted(sampler.viewers, "page that is told each second", "pages that are told each second")),
            _fact("history", f"{known} h of 24 h read" if known < 24 else "24 h read"),
        ]

    async def audit(self, ask: AuditAsk, viewer: Viewer) -> Audit:
        """Return who ordered what and why, the newest first."""
        if ask.cursor and not is_letter(ask.cursor):
            raise Refused(400, "asked", "cursor: is none that this list has given")
        found = await self._sampler.store.audit(ask.limit, ask.cursor)
        entries = [Entry(at_ms=one.at_ms, who=one.by, reason=one.reason, what=one.what) for _, one in found]
        return Audit(entries=entries, cursor=found[-1][0] if len(found) == ask.limit else None)


def _fact(name: str, text: str) -> Fact:
    return Fact(name=name, text=text, is_code=False)


def _worst_first(finding: Finding) -> int:
    return ("error", "warning", "ok").index(finding.level)


def trouble_of(finding: Finding, url: str) -> Trouble:
    """Return a finding with the command that mends it, as it can be pasted."""
    return Trouble(level=LEVELS[finding.level], text=finding.what, fix=finding.fix.replace("redis-cli", redis_cli(url)))


def durability(host: Mapping[str, str]) -> Said:
    """Return what a crash of the server's host may cost."""
    fsync = host.get("appendfsync") or "unknown"
    replicas = parse_int(host.get("connected_slaves", "")) or 0
    copies = words.counted(replicas, "replica") if replicas else "no replica"
    if host.get("aof_enabled") != "1":
        return ["", "When the Redis server ends, all jobs are lost", f": it keeps no append-only file ({copies})."]
    if fsync == "always":
        return ["", "Every accepted job is on disk", f" (appendfsync always, {copies})."]
    lost = "about 30 s" if fsync == "no" else "up to about 2 s"
    ask = 'Senders that must not may ask for durability="fsync".'
    return ["", f"A crash of the Redis host can lose {lost} of accepted jobs", f" (appendfsync {fsync}, {copies}). {ask}"]


def _facts(host: Mapping[str, str]) -> list[Fact]:
    numbers = {name: parse_int(host.get(name, "")) or 0 for name in _NUMBERS}
    name = "valkey" if "valkey_version" in host else "redis"
    version = host.get("valkey_version") or host.get("redis_version", "")
    most = numbers["maxmemory"]
    memory = f"{words.size(numbers['used_memory'])}{f' of {words.size(most)}' if most else ', no limit'}"
    clients, blocked = numbers["connected_clients"], numbers["blocked_clients"]
    return [
        _fact("server", f"{name} {version}, {host.get('role', '')}, up {words.duration(numbers['uptime_in_seconds'] * 1000)}"),
        _fact("memory", f"{memory}, fragmentation {host.get('mem_fragmentation_ratio', 'unknown')}"),
        _fact("eviction", host.get("maxmemory_policy", "unknown")),
        _fact("clients", f"{words.figure(clients)}, {words.figure(blocked)} of them wait for jobs"),
    ]


_NUMBERS: Final = ("maxmemory", "used_memory", "connected_clients", "blocked_clients", "uptime_in_seconds")


def resident_bytes() -> int:
    """Return how much memory this process has; 0 where the system does not tell."""
    try:
        return int(STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
