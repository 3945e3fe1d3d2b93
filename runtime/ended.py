"""What is written of runs that have ended, for people: every failure, and a few of the successes, each an entry of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from runtime.tries import MAX_APP_BYTES, MAX_BY_BYTES, MAX_ERROR_BYTES, MAX_FRAME_BYTES, one_line

DUPLICATE: Final = "duplicate"
MAX_NUMBER: Final = 2**53  # what every reader of JSON tells apart
# Names in Redis of what has a longer one here.
_SHORT: Final = {"at_ms": "at", "wait_ms": "wait", "run_ms": "run"}
# Bytes that are read of each text: guesses, what of ours is longest.
_MOST: Final = {
    "id": 128,
    "type": 64,
    "place": 64,
    "outcome": 20,
    "by": MAX_BY_BYTES,
    "app": MAX_APP_BYTES,
    "error": MAX_ERROR_BYTES,
    "frame": MAX_FRAME_BYTES,
    "trace": 32,
}


class Ended(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run that has ended: which job's, where that stood, and what became of it.

    `outcome` is done, retry, dead or cancelled; lost, of a run whose worker was gone, which another one wrote: its times are
    not known; or duplicate, of a job that was dropped for its key without a run: `error` says of which one. `at_ms` is when it
    ended, `wait_ms` from the time of its entry to its start, `by` the worker and `app` the version of its code. `error` has
    class and message, `frame` the newest line of the application's own code, `trace` is the id of its trace. What is not known
    is empty or 0; `entry` is where this stands among the others.
    """

    id: str = ""
    type: str = ""
    place: str = ""
    outcome: str = ""
    attempt: int = 0
    at_ms: int = 0
    wait_ms: int = 0
    run_ms: int = 0
    by: str = ""
    app: str = ""
    error: str = ""
    frame: str = ""
    trace: str = ""
    entry: str = ""

    def fields(self) -> list[str | int]:
        """Return names and values in turn, as they stand in Redis; nothing of what is empty."""
        named = msgspec.structs.asdict(self)
        del named["entry"]
        return [word for name, value in named.items() if value for word in (_SHORT.get(name, name), value)]


def read_ended(entry: str, fields: Mapping[str, str]) -> Ended:
    """Return the run of which these fields tell; what is missing or no number is empty or 0: a stranger may have written them."""
    told: dict[str, Any] = {name: one_line(fields.get(name, ""), most) for name, most in _MOST.items()}
    told |= {name: _number(fields.get(_SHORT.get(name, name), "")) for name in ("attempt", "at_ms", "wait_ms", "run_ms")}
    return Ended(**told, entry=entry)


def _number(text: str) -> int:
    return min(int(text), MAX_NUMBER) if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_NUMBER)) else 0
