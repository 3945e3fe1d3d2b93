"""The histories of a fault run: one append-only file per process, one write per line, so that they survive kill -9.

Workers write plain words (`tests/faults/jobs.py`), the sender and the nemesis write JSON. All stamps are of the
monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

SENDER = "sender.history"
NEMESIS = "nemesis.history"
REPLAYS = "replays.history"  # read last: what was replayed is another job than it was
ANY_RUNS = -1  # nobody knows how often it runs
WATCH_S = 0.05  # how often a process looks whether it gets time
STARVED_S = 0.5  # a third of a worker's lease: a beat was missed
RUNS = ("start", "end", "fail", "cut")  # what a handler writes of a run; the other lines are the runtime's own moves


class Seed(msgspec.Struct, tag="seed", frozen=True):
    """What this run was made from."""

    seed: int
    commit: str
    server: str


class Try(msgspec.Struct, tag="try", frozen=True):
    """Number `n` is about to be sent. It ends in its run number `runs`, or dies for `reason` after that many."""

    n: int
    runs: int
    reason: str
    fields: dict[str, str]
    at_s: float = 0.0


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """What became of the sends of these numbers: `ok`, `dropped` (a copy of a live job), `refused`, or `unknown`."""

    what: str
    numbers: list[int]
    at_s: float = 0.0


class Fault(msgspec.Struct, tag="fault", frozen=True):
    """One fault: whom it hit and from when until when. `acted` is False for one that was armed and met nothing."""

    kind: str
    pids: list[int]
    from_s: float
    to_s: float
    acted: bool = True
    at_sender: bool = False


class Starved(msgspec.Struct, tag="starved", frozen=True):
    """The machine gave these processes no time, or their server, which nobody did to them on purpose."""

    pids: list[int]
    from_s: float
    to_s: float


class Back(msgspec.Struct, tag="back", frozen=True):
    """The server answers again after a restart."""

    at_s: float


class Exit(msgspec.Struct, tag="exit", frozen=True):
    """A worker that was told to stop has ended."""

    pid: int
    seconds: float
    status: int


class Paused(msgspec.Struct, tag="paused", frozen=True):
    """Nothing of a type or priority was to start from when the pause was confirmed until it was about to be ended."""

    what: str
    from_s: float
    to_s: float


class Drained(msgspec.Struct, tag="drained", frozen=True):
    """Everything was settled this long after the last fault and the last send."""

    seconds: float


Line = Seed | Try | Answer | Fault | Starved | Back | Exit | Paused | Drained
_decode = msgspec.json.Decoder(Line).decode


class Pen:
    """Appends to one history."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(self, *lines: Line) -> None:
        os.write(self._file, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))

    def close(self) -> None:
        os.close(self._file)


@dataclass
class Event:
    """A line of a handler's run."""

    pid: int
    kind: str
    n: int
    attempt: int
    rest: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One run of a number in one process; `settled_s` is when the worker heard that its outcome was written. `more` is what
    else its handler wrote down at the start.
    """

    pid: int
    n: int
    attempt: int
    place: str
    count: int
    start_s: float
    end_s: float = float("inf")
    outcome: str = ""
    settled_s: float = float("inf")
    more: list[str] = field(default_factory=list)

    @property
    def until_s(self) -> float:
        """When it was no longer in flight: its outcome was written, or it was cut and nothing was to be written."""
        return self.end_s if self.outcome == "cut" and self.settled_s == float("inf") else self.settled_s

    def overlaps(self, fault: Fault | Starved) -> bool:
        """Return whether the fault met this run while it was in flight."""
        return self.start_s <= fault.to_s and fault.from_s <= self.until_s


@dataclass
class Settle:
    """One answered flush: the places it asked for by verb, how many moves were refused, how many of the finished were gone."""

    pid: int
    at_s: float
    places: dict[str, list[str]]
    refused: int
    shortfall: int


@dataclass
class Story:
    """All that the processes wrote down. `tries` by number; `verdicts` gives what the sender heard of it."""

    seed: Seed = field(default_factory=lambda: Seed(0, "", ""))
    tries: dict[int, Try] = field(default_factory=dict)
    verdicts: dict[int, str] = field(default_factory=dict)
    answered_s: dict[int, float] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    starved: list[Starved] = field(default_factory=list)
    backs: list[float] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    pauses: list[Paused] = field(default_factory=list)
    drained_s: float = 0.0
    runs: list[Run] = field(default_factory=list)
    settles: list[Settle] = field(default_factory=list)
    unasked_ends: list[str] = field(default_factory=list)


def histories(folder: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """Return the words of each worker's history, line by line; a line that a kill cut short has no end and is left out."""
    for path in sorted(folder.glob("*.log")):
        if path.stem.isdigit():
            text, _, _ = path.read_text().rpartition("\n")
            yield int(path.stem), [line.split(" ") for line in text.splitlines()]


def events(folder: Path) -> Iterator[Event]:
    """Return all that the handlers wrote down, process by process."""
    for pid, lines in histories(folder):
        for kind, n, attempt, *rest in lines:
            if kind in RUNS:
                yield Event(pid, kind, int(n), int(attempt), rest)


def read(folder: Path) -> Story:
    """Return the whole story of a run."""
    story = Story()
    for name in (NEMESIS, SENDER, REPLAYS):
        path = folder / name
        for line in path.read_bytes().splitlines() if path.exists() else ():
            _add(story, _decode(line))
    for pid, lines in histories(folder):
        _add_worker(story, pid, lines)
    return story


def _add(story: Story, line: Any) -> None:
    match line:
        case Seed():
            story.seed = line
        case Try():
            story.tries[line.n] = line
        case Answer():
            story.verdicts.update(dict.fromkeys(line.numbers, line.what))
            story.answered_s.update(dict.fromkeys(line.numbers, line.at_s))
        case Fault():
            story.faults.append(line)
        case Starved():
            story.starved.append(line)
        case Back():
            story.backs.append(line.at_s)
        case Exit():
            story.exits.append(line)
        case Paused():
            story.pauses.append(line)
        case Drained():
            story.drained_s = line.seconds


def _add_worker(story: Story, pid: int, lines: list[list[str]]) -> None:
    """Read one worker: its runs, and the flushes that were answered."""
    open_runs: dict[tuple[int, int], list[Run]] = {}
    by_place: dict[str, Run] = {}
    for kind, *words in lines:
        if kind == "start":
            n, attempt, entry, count, at_s, *stream = words
            run = Run(
                pid, int(n), int(attempt), f"{stream[0] if stream else ''}/{entry}", int(count), float(at_s), more=stream[1:]
            )
            story.runs.append(run)
            open_runs.setdefault((run.n, run.attempt), []).append(run)
            by_place[run.place] = run
        elif kind in RUNS:
            n, attempt, *stamp = words
            waiting = open_runs.get((int(n), int(attempt)))
            if not waiting:
                story.unasked_ends.append(f"{pid} {kind} {n}")
                continue
            run = waiting.pop(0)
            run.outcome, run.end_s = kind, float(stamp[0]) if stamp else run.start_s
        elif kind == "starved":
            from_s, to_s = words
            story.starved.append(Starved([pid], float(from_s), float(to_s)))
        elif kind == "settle":
            at_s, refused, shortfall, *moves = words
            places: dict[str, list[str]] = {}
            for move in moves:
                verb, _, place = move.partition(":")
                places.setdefault(verb, []).append(place)
                if place in by_place:
                    by_place[place].settled_s = min(by_place[place].settled_s, float(at_s))
            story.settles.append(Settle(pid, float(at_s), places, int(refused), int(shortfall)))


def now_s() -> float:
    """Return the time of the histories."""
    return time.monotonic()
