"""The whole state of a queue as plain values that can be compared: ids of new entries and times are left out."""

from __future__ import annotations

from typing import Any

import redis

STREAMS = ("critical", "high", "medium", "low")
VOLATILE = {"dead_at", "first_at", "snoozed_at"}


def snapshot(raw: redis.Redis, queue: str = "jobs") -> dict[str, Any]:
    """Return entries, pending lists, delayed jobs, dead letters and marks."""
    state: dict[str, Any] = {}
    for name in STREAMS:
        key = f"{{{queue}}}:{name}"
        entries = raw.xrange(key) if raw.exists(key) else []
        state[name] = sorted(stable(fields) for _, fields in entries)
        try:
            rows = raw.xpending_range(key, "workers", "-", "+", 10_000)
        except redis.ResponseError:
            rows = []
        state[f"{name} pending"] = sorted((row["consumer"], row["times_delivered"]) for row in rows)
    state["due"] = sorted(raw.zrange(f"{{{queue}}}:due", 0, -1))
    state["msg"] = sorted(raw.hkeys(f"{{{queue}}}:msg"))
    state["dead"] = sorted(stable(fields) for _, fields in raw.xrange(f"{{{queue}}}:dead"))
    state["marks"] = sorted(key.split(":", 2)[2] for key in raw.keys(f"{{{queue}}}:seen:k:*"))
    return state


def stable(fields: dict[str, str]) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in fields.items() if name not in VOLATILE)
