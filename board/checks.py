"""What would become of dead letters that were replayed now, out of what is known of each and of the workers that live. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from board.shapes import Finding, Level
from board.words import counted, listed
from runtime.rules import ALL
from runtime.store.letters import Head


class Team(msgspec.Struct, frozen=True):
    """A worker that lives: the types that it can run, with the newest version of each, and the version of its application."""

    types: dict[str, int]
    app: str = ""


class Looked(msgspec.Struct, frozen=True):
    """A letter that was looked at. `fits` is None where nobody knows its contract; `problem` is the first of its payload."""

    head: Head
    fits: bool | None = None
    problem: str = ""


def find(looked: Sequence[Looked], gone: int, teams: Sequence[Team], paused: Iterable[str], now_ms: int) -> list[Finding]:
    """Return what was found, each letter counted once: by what keeps it from going back, else by what makes it run badly."""
    held = set(paused)
    kinds = Counter(_kind(one, teams, held, now_ms) for one in looked)
    kinds["gone"] += gone
    first = {kind: next((one for one in looked if _kind(one, teams, held, now_ms) == kind), None) for kind in kinds}
    told = [_finding(kind, kinds[kind], first[kind], looked, teams) for kind in _ORDER if kinds[kind]]
    return [*told, *_same_version(looked, teams)]


def _kind(one: Looked, teams: Sequence[Team], paused: set[str], now_ms: int) -> str:
    head = one.head
    if head.stays:
        return head.stays
    if one.fits is False:
        return "unfit"
    if not any(_knows(team, head) for team in teams):
        return "unknown-type"
    if {ALL, head.type, head.priority} & paused:
        return "paused"
    if head.exp_ms is not None and head.exp_ms <= now_ms:
        return "expired"
    return "would-run"


_ORDER: Final = ("would-run", "expired", "paused", "unfit", "unknown-type", "owned", "unreadable", "left-out", "gone")
_TEXTS: Final[dict[str, tuple[Level, str, str]]] = {
    "would-run": ("ok", "would run", ""),
    "expired": ("look", "have passed their time", "A replay drops that limit: they run late rather than never."),
    "paused": ("look", "would wait: they are paused", "They start when the pause is over."),
    "unfit": ("look", "do not fit their contract", "They would die again at once."),
    "unknown-type": (
        "look",
        "are of a type that no live worker knows",
        "They would wait for one, and die again where none comes.",
    ),
    "owned": ("act", "cannot go back now", ""),
    "unreadable": ("act", "cannot go back: there is no message in them that could run", ""),
    "left-out": ("act", "cannot go back: their payload was too large to be kept", ""),
    "gone": ("look", "are gone by now", "They were replayed, moved to the trash or deleted since they were listed."),
}


def _finding(kind: str, count: int, first: Looked | None, looked: Sequence[Looked], teams: Sequence[Team]) -> Finding:
    level, text, why = _TEXTS[kind]
    if kind == "would-run" and first:
        why = _who_knows(first.head, teams)
        if any(one.fits is None for one in looked):
            why += " Payloads were not checked: no worker has told the contract."
    if kind == "owned" and first:
        why = f"A live job owns the key {first.head.key}; replay it when that one has ended."
    if kind == "unfit" and first and first.problem:
        why = f"{first.problem}. {why}"
    return Finding(kind=kind, level=level, count=count, text=text, why=why)


def _who_knows(head: Head, teams: Sequence[Team]) -> str:
    n = sum(_knows(team, head) for team in teams)
    return f"{counted(n, 'live worker')} {'knows' if n == 1 else 'know'} {head.type}@{head.version}; the type is not paused."


def _knows(team: Team, head: Head) -> bool:
    return team.types.get(head.type, 0) >= head.version


def _same_version(looked: Sequence[Looked], teams: Sequence[Team]) -> list[Finding]:
    """Return the finding that all workers still run what all of these died on, where that is so."""
    apps = {one.head.app for one in looked}
    types = {one.head.type for one in looked}
    knowing = {team.app for team in teams if types & team.types.keys()}
    if len(apps) != 1 or "" in apps or knowing != apps:
        return []
    text = f"every worker still runs {listed(sorted(apps))}, on which all of these died"
    return [
        Finding(kind="same-version", level="look", count=0, text=text, why="They will probably die again. The brake stops that.")
    ]
