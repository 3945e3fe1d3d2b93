"""Jobs for tests, as a worker delivers them, with everything filled in that a test does not name."""

from __future__ import annotations

from typing import Any

import msgspec

from runtime.jobs import PLAIN, Envelope, Job, contract_of

NOW_MS = 1_700_000_000_000


def job(
    type_name: str | bytes = b"greet",
    entry: str | bytes = b"1700000000000-0",
    *,
    stream: int = 1,
    count: int = 1,
    data: bytes = b"{}",
    fetched_ms: int = NOW_MS,
    **envelope: Any,
) -> Job:
    """Return a job that was fetched from this entry; `envelope` are fields of its `Envelope`."""
    name = type_name.encode() if isinstance(type_name, str) else type_name
    place = entry.encode() if isinstance(entry, str) else entry
    return Job(stream, place, count, "run/0", 0.0, name, data, Envelope(**envelope) if envelope else PLAIN, fetched_ms)


def job_of(message: msgspec.Struct, entry: str | bytes = b"1700000000000-0", *, fetched_ms: int = NOW_MS, **envelope: Any) -> Job:
    """Return the job of a payload, with the type and the stream of its contract."""
    contract, data = contract_of(type(message)), msgspec.json.encode(message)
    return job(contract.type, entry, stream=contract.priority - 1, data=data, fetched_ms=fetched_ms, **envelope)
