"""Pictures for tests, in which all is well but what a test says."""

from __future__ import annotations

from typing import Any

from board.history import History, Rates
from board.picture import Picture
from runtime.jobs import STREAMS
from runtime.rules import Pause, Rules
from runtime.store.base import WorkerRow
from runtime.store.sample import Minute, People, Sample

MINUTE = 29_000_000
NOW_MS = MINUTE * 60_000 + 30_000
LEASE_MS = 30_000
ZERO = dict.fromkeys(STREAMS, 0)
ROW = WorkerRow(
    LEASE_MS, "web-a", 4121, 500, 0, {}, "running", {"greet": 1}, since=NOW_MS - 7_200_000, version="0.1.0", app="1.4.2", lag=4
)


def minute(done: int = 0, retry: int = 0, dead: int = 0, *, type_name: str = "greet", of: str = "high", **more: Any) -> Minute:
    """Return a minute in which one type ran."""
    outcomes = {name: n for name, n in (("done", done), ("retry", retry), ("dead", dead)) if n}
    return Minute(
        {(type_name, of): outcomes} if outcomes else {}, more.get("runs", {}), more.get("waits", {}), more.get("depth", {})
    )


def sample(at_ms: int = NOW_MS, **members: Any) -> Sample:
    """Return a look at a queue with one worker, which beat two seconds before."""
    at = at_ms // 60_000
    found: dict[str, Any] = {
        "now_ms": at_ms,
        "waiting": ZERO,
        "claimed": ZERO,
        "lots": ZERO,
        "held": {},
        "oldest_ms": dict.fromkeys(STREAMS),
        "delivered": dict.fromkeys(STREAMS, ""),
        "delayed": 0,
        "next_due_ms": None,
        "dead": 0,
        "until_ms": {"w1": at_ms + LEASE_MS - 2_000},
        "minutes": {at: minute(), at - 1: minute()},
    }
    for name in ("waiting", "claimed", "lots", "oldest_ms"):
        members[name] = found[name] | members.get(name, {})
    return Sample(**(found | members))


def picture(
    one: Sample | None = None,
    *,
    rows: dict[str, WorkerRow] | None = None,
    rules: Rules | None = None,
    minutes: dict[int, Minute] | None = None,
    before: Sample | None = None,
    errors: dict[str, tuple[str, float]] | None = None,
) -> Picture:
    """Return a picture; `minutes` are closed ones by how long ago they were, `before` is an earlier look."""
    one = one or sample()
    history, rates = History(), Rates()
    if before is not None:
        rates.note(before)
    rates.note(one)
    history.look(one)
    known = dict.fromkeys(range(2, 60 * 24 + 2), Minute({}, {}, {}, {})) | (minutes or {})
    history.note({one.minute - ago: known[ago] for ago in sorted(known)})
    return Picture(one, People({"w1": ROW} if rows is None else rows, rules or Rules()), history, rates, errors)


def paused(*names: str) -> Rules:
    """Return rules by which these are paused until they are resumed."""
    return Rules(pauses={name: Pause(0, 1, "ada@host", "because") for name in names})
