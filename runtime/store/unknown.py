"""Lots of types that a worker does not know: whether another one does, and from when on what waits there is dead. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from runtime.jobs import UNKNOWN
from runtime.store.base import WorkerRow, parse_int

FAR: Final = 10**18  # a version that no worker knows


def lot_is_known(lot: str, known: Iterable[tuple[str, int]]) -> bool:
    """Return whether one of these types, each with the newest version that is known, can run what waits in a lot of a type."""
    name, version = type_and_version(lot)
    return any(name == known_name and version <= newest for known_name, newest in known)


def type_and_version(lot: str) -> tuple[str, int]:
    """Return of which type and version a lot is; the shared one is of none, in a version that is far away."""
    name, _, version = lot[len(UNKNOWN) :].rpartition("@")
    return name, parse_int(version) or FAR


def kind_in_words(lot: str) -> str:
    """Return of what a lot is, for people: a type, with its version where that is not the first."""
    name, version = type_and_version(lot)
    if not name:
        return "types beyond those with a lot of their own"
    if version == FAR:
        return f"{name} in a version that is no number"
    return name if version == 1 else f"{name} in version {version}"


def dead_from_ms(lot: str, parked_ms: int, rows: Iterable[WorkerRow]) -> int:
    """Return from when on, in ms since the epoch, what was parked at a time in a lot of an unknown type is dead unless a worker
    comes that knows it. 0 where one of these, which live, does, or none says for how long it waits.

    A worker buries what has stood there for so long, and has itself lived for so long without seeing one that knows it. When it
    saw one last it tells nobody: it may be later.
    """
    living = list(rows)
    if lot_is_known(lot, (kind for row in living for kind in row.types.items())):
        return 0
    return min((max(parked_ms, row.since) + row.unknown_s * 1000 for row in living if row.unknown_s), default=0)
