"""The one checker of all fault runs: what was accepted must have ended, died, or be still there, and nothing else may be.

After Jepsen's total-queue model: it compares what was attempted, acknowledged, refused and unknown with what ran, ended and died.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import redis

from tests.contract.snapshot import STREAMS
from tests.faults import ledger
from tests.faults.ledger import ANY_RUNS, STARVED_S, Fault, Run, Story, Try
from tests.faults.worker import LEASE_S

TAG = "{jobs}"
WORKERS = f"{TAG}:workers"
HANDOVER_S = 0.1  # from a lane to the first line of a handler, on a busy machine: a fault may come and go between
ELSEWHERE_S = (
    STARVED_S  # the same in a thread or child: as long as neither need say that it got no time of a core; 0.3 s was seen
)
ELSEWHERE = ("thread", "child")  # in the names of the types that run there
PLAIN_KEYS = {f"{TAG}:{name}" for name in (*STREAMS, "due", "msg", "dead", "workers", "workers:rows", "control", "cron", "audit")}
PLAIN_KEYS |= {f"{TAG}:{name}" for name in ("strikes", "wards", "layout", "contracts")}
MORTAL = ("seen", "stats", "results", "rate")
MORTAL_KEYS = tuple(f"{TAG}:{name}:" for name in MORTAL)  # every one of these must have an end of life
LATE_S = 4 * LEASE_S  # the longest fault, and what it takes to come back from it
MOST_DELIVERIES = 3  # of an innocent, besides those that a fault of ours cut
# What may cause a second run, the nearest cause first: the end of a process, or a standstill of a lease. A broken line or
# a forgotten script is no excuse; a machine that gives a process no time is the last one.
CAUSES = (
    "kill",
    "stop",
    "deploy",
    "server-kill-short",
    "server-kill-long",
    "debug-sleep",
    "pause",
    "stall",
    "half-open",
    "latency",
    "starved",
)


class Verdict(msgspec.Struct, kw_only=True):
    """What the checker says. `problems` has every rule that was broken, with examples; the rest are figures."""

    jobs: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    dropped: int = 0
    runs: int = 0
    lost: int = 0
    vanished: int = 0
    unexpected: int = 0
    refused_yet_ran: int = 0
    recovered: int = 0
    settled_twice: int = 0
    moved_without_lease: int = 0
    dead: int = 0
    dead_missing: int = 0
    dead_wrong: int = 0
    innocents_dead: int = 0
    attempts_wrong: int = 0
    duplicate_runs: int = 0
    duplicates_by_cause: dict[str, int] = {}
    unexplained: int = 0
    most_deliveries: int = 0
    delivered_too_often: int = 0
    refused_moves: int = 0
    shortfall: int = 0
    faults: dict[str, int] = {}
    hits: dict[str, int] = {}
    in_flight: dict[str, int] = {}
    leftovers: dict[str, int] = {}
    recovery_s: list[float] = []
    exits_s: list[float] = []
    bad_exits: int = 0
    drained_s: float = 0.0
    problems: list[str] = []
    figures: list[str] = []  # further ones of a storm of its own, and why it proves nothing
    void: list[str] = []

    @property
    def is_good(self) -> bool:
        return not self.problems

    @property
    def kills(self) -> int:
        return self.faults.get("kill", 0)

    @property
    def kills_in_flight(self) -> int:
        return self.hits.get("kill", 0)

    @property
    def in_flight_at_hits(self) -> int:
        return sum(self.in_flight.values())


def check_story(
    story: Story,
    raw: redis.Redis,
    live_pids: Collection[int] | None = None,
    unreadable: int = 0,
    knows_faults: bool = True,
    but: Collection[str] = (),
) -> Verdict:
    """Judge a run that has drained.

    `live_pids` are the workers that may still be known (None: not looked at); `unreadable` is how many letters without a number
    must be there; without `knows_faults`, second runs are counted and not judged.
    """
    verdict = Verdict(jobs=len(story.tries) + unreadable, runs=len(story.runs), problems=[], drained_s=story.drained_s)
    by_number: dict[int, list[Run]] = defaultdict(list)
    for run in story.runs:
        by_number[run.n].append(run)
    ended = {run.n for run in story.runs if run.outcome == "end"}
    letters, anonymous = letters_of(raw)
    stored = stored_numbers(raw)
    _check_sends(verdict, story, by_number, ended | set(letters) | stored)
    _check_settles(verdict, story, by_number, letters)
    _check_dead(verdict, story, letters, anonymous, unreadable)
    _check_attempts(verdict, story, by_number)
    _count_faults(verdict, story)
    _check_duplicates(verdict, story, by_number, knows_faults)
    verdict.leftovers = leftovers_everywhere(raw, live_pids, but)
    _blame(verdict, "leftovers", verdict.leftovers.items())
    _check_deliveries(verdict, story, knows_faults)
    verdict.exits_s = [leaving.seconds for leaving in story.exits]
    verdict.bad_exits = _blame(verdict, "exit status", [leaving for leaving in story.exits if leaving.status])
    return verdict


def _blame(verdict: Verdict, what: str, examples: Collection[object]) -> int:
    """Note a broken rule where there are examples; give how many."""
    if examples:
        verdict.problems.append(f"{what}: {len(examples)}, such as {list(examples)[:5]}")
    return len(examples)


def _check_sends(verdict: Verdict, story: Story, by_number: dict[int, list[Run]], found: set[int]) -> None:
    said: dict[str, set[int]] = defaultdict(set)
    for n in story.tries:
        said[story.verdicts.get(n, "unknown")].add(n)
    verdict.acknowledged, verdict.unknown = len(said["ok"]), len(said["unknown"])
    verdict.refused, verdict.dropped = len(said["refused"]), len(said["dropped"])
    ran = set(by_number)
    verdict.lost = _blame(verdict, "lost", sorted(said["ok"] - found))
    strangers = [f"{run.pid} {run.n}" for n in ran - set(story.tries) for run in by_number[n]]
    verdict.unexpected = _blame(verdict, "unexpected", strangers + story.unasked_ends)
    verdict.refused_yet_ran = _blame(verdict, "refused or dropped, yet ran", sorted((said["refused"] | said["dropped"]) & ran))
    verdict.recovered = len(said["unknown"] & found)


def _check_settles(
    verdict: Verdict, story: Story, by_number: dict[int, list[Run]], letters: dict[int, list[dict[str, str]]]
) -> None:
    """Finished entries have a run that ended in the same process; no entry is moved twice, nor goes on after its end."""
    finished = {(run.pid, run.place) for run in story.runs if run.outcome == "end"}
    vanished: list[str] = []
    accepted: dict[str, list[str]] = defaultdict(list)
    counts: dict[str, dict[int, int]] = defaultdict(dict)  # the newest delivery of a place that each process ran
    for run in story.runs:
        counts[run.place][run.pid] = max(run.count, counts[run.place].get(run.pid, 0))
    zombies: list[str] = []
    for flush in story.settles:
        verdict.refused_moves += flush.refused
        verdict.shortfall += flush.shortfall
        done = flush.places.get("done", [])
        vanished += [f"{flush.pid} {place}" for place in done if (flush.pid, place) not in finished]
        if not flush.refused and not flush.shortfall:  # else nobody knows which of them
            for verb in ("done", "defer", "dead"):
                for place in flush.places.get(verb, []):
                    accepted[place].append(f"{verb} by {flush.pid}")
                    ours, newest = counts[place].get(flush.pid, 0), max(counts[place].values(), default=0)
                    if ours < newest and ours and verb != "done":  # success needs no lease: the work is done
                        zombies.append(f"{place}: {verb} by {flush.pid} with delivery {ours}, while {newest} ran")
    verdict.moved_without_lease = _blame(verdict, "moved without the lease", zombies)
    verdict.vanished = _blame(verdict, "settled without a finished run", vanished)
    twice = [f"{place}: {whose}" for place, whose in accepted.items() if len(whose) > 1]
    for n, runs in by_number.items():
        places: dict[int, set[str]] = defaultdict(set)
        for run in runs:
            places[run.attempt].add(run.place)
        twice += [f"{n}: attempt {attempt} ran at {sorted(where)}" for attempt, where in places.items() if len(where) > 1]
        last = min((run.attempt for run in runs if run.outcome == "end"), default=None)
        if last is not None and (n in letters or any(run.attempt > last for run in runs)):
            twice.append(f"{n}: ended in attempt {last}, and went on")
    verdict.settled_twice = _blame(verdict, "settled twice", twice)


def _check_dead(
    verdict: Verdict, story: Story, letters: dict[int, list[dict[str, str]]], anonymous: list[dict[str, str]], unreadable: int
) -> None:
    """The dead set is exactly what must die: once each, for its reason, every field byte for byte as it was sent."""
    verdict.dead = sum(map(len, letters.values())) + len(anonymous)
    missing: list[object] = []
    wrong: list[object] = []
    for n, sent in story.tries.items():
        must_be = bool(sent.reason) and story.verdicts.get(n) == "ok"
        may_be = bool(sent.reason) and story.verdicts.get(n, "unknown") in ("ok", "unknown")
        found = letters.get(n, [])
        if must_be and not found:
            missing.append(n)
        if len(found) > may_be:
            wrong.append((n, [letter["dead_reason"] for letter in found]))
        elif found and (fault := _unlike(sent, found[0])):
            wrong.append((n, fault))
    foreign = set(letters) - set(story.tries)
    wrong += [(n, "nobody sent it") for n in foreign]
    if len(anonymous) < unreadable:
        missing.append(f"{unreadable - len(anonymous)} unreadable ones")
    if len(anonymous) > unreadable:
        wrong.append(anonymous[0])
    innocents = [n for n in letters if n in story.tries and not story.tries[n].reason]
    verdict.dead_missing = _blame(verdict, "missing among the dead", missing)
    verdict.dead_wrong = _blame(verdict, "wrong among the dead", wrong)
    verdict.innocents_dead = _blame(verdict, "innocents dead", innocents)


def _unlike(sent: Try, letter: dict[str, str]) -> str:
    """Say how a letter differs from what was sent; '' when it does not."""
    if letter["dead_reason"] != sent.reason:
        return f"reason {letter['dead_reason']} instead of {sent.reason}"
    if sent.runs > 0 and letter["dead_attempts"] != str(sent.runs):
        return f"{letter['dead_attempts']} attempts instead of {sent.runs}"
    changed = [name for name, value in sent.fields.items() if name != "at" and letter.get(name) != value]
    return f"changed: {changed}" if changed else ""


def _check_attempts(verdict: Verdict, story: Story, by_number: dict[int, list[Run]]) -> None:
    """The attempts that a number saw are 1 to k, none skipped, and none burnt by a crash."""
    wrong: list[object] = []
    for n, sent in story.tries.items():
        seen = sorted({run.attempt for run in by_number.get(n, ())})
        if not seen and story.verdicts.get(n, "unknown") != "ok":
            continue
        if seen != list(range(1, (sent.runs if sent.runs != ANY_RUNS else len(seen)) + 1)):
            wrong.append((n, seen, f"instead of 1 to {sent.runs}"))
    verdict.attempts_wrong = _blame(verdict, "attempts", wrong)


def _count_faults(verdict: Verdict, story: Story) -> None:
    """Count faults, those that met somebody at work, and the jobs (or sends) that were in flight there."""
    faults: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    in_flight: Counter[str] = Counter()
    by_pid: dict[int, list[Run]] = defaultdict(list)
    for run in story.runs:
        by_pid[run.pid].append(run)
    for fault in story.faults:
        faults[fault.kind] += 1
        met = sum(1 for pid in fault.pids for run in by_pid[pid] if run.overlaps(fault)) if fault.acted else 0
        in_flight[fault.kind] += met
        if fault.at_sender and fault.acted:
            met += sum(
                1
                for n, sent in story.tries.items()
                if sent.at_s <= fault.to_s and fault.from_s <= story.answered_s.get(n, float("inf"))
            )
        hits[fault.kind] += met > 0
    verdict.faults, verdict.hits, verdict.in_flight = dict(faults), dict(hits), dict(in_flight)
    starts = sorted(run.start_s for run in story.runs)
    for back_s in story.backs:
        first = next((start_s for start_s in starts if start_s >= back_s), None)
        if first is not None:
            verdict.recovery_s.append(first - back_s)


def _check_duplicates(verdict: Verdict, story: Story, by_number: dict[int, list[Run]], knows_faults: bool) -> None:
    """A second run of the same attempt needs a fault that met the first one before it was settled."""
    causes: Counter[str] = Counter()
    unexplained: list[str] = []
    by_pid: dict[int, list[Fault]] = defaultdict(list)
    for fault in story.faults:
        for pid in fault.pids:
            by_pid[pid].append(fault)
    for spell in story.starved:
        for pid in spell.pids:
            by_pid[pid].append(Fault("starved", [pid], spell.from_s, spell.to_s))
    for n, runs in by_number.items():
        kind = story.tries[n].fields.get("type", "") if n in story.tries else ""
        handover_s = ELSEWHERE_S if any(word in kind for word in ELSEWHERE) else HANDOVER_S
        attempts: dict[int, list[Run]] = defaultdict(list)
        for run in sorted(runs, key=lambda run: run.start_s):
            attempts[run.attempt].append(run)
        for again in attempts.values():
            for run, following in pairwise(again):
                causes[cause := _cause(run, following, by_pid, handover_s)] += 1
                if not cause:
                    unexplained.append(f"{n}: {run} then {following}")
    verdict.duplicate_runs = sum(causes.values())
    verdict.unexplained = _blame(verdict, "second runs without a cause", unexplained if knows_faults else ())
    verdict.duplicates_by_cause = {cause or "unexplained": times for cause, times in causes.items()}


def _check_deliveries(verdict: Verdict, story: Story, knows_faults: bool) -> None:
    """An innocent is handed out at most three times, not counting runs that a fault cut, or whose end it kept from being written.

    What ran again for no fault is unexplained, and judged by itself. This one looks for deliveries that come to no run.
    """
    verdict.most_deliveries = max((run.count for run in story.runs), default=0)
    by_place: dict[tuple[int, str], list[Run]] = defaultdict(list)
    for run in story.runs:
        by_place[run.n, run.place].append(run)
    often = {
        f"{n} at {place}": f"{most} deliveries, {len(runs)} runs"
        for (n, place), runs in by_place.items()
        if (most := max(run.count for run in runs)) - _explained(runs) > MOST_DELIVERIES
    }
    verdict.delivered_too_often = _blame(verdict, "delivered too often", often.items() if knows_faults else ())


def _explained(runs: Sequence[Run]) -> int:
    """Return how many runs of an entry were cut, or were followed by another one."""
    last = max(runs, key=lambda run: run.start_s)
    return len(runs) - 1 + (last.until_s == float("inf"))


def _cause(run: Run, following: Run, by_pid: dict[int, list[Fault]], handover_s: float) -> str:
    """Return the fault behind a second run; '' when there is none.

    Where the second run has the older delivery (a lower count), that delivery came late: then the fault is one of its process.
    """
    met = {
        fault.kind
        for fault in by_pid[run.pid]
        if fault.acted and run.start_s - handover_s <= fault.to_s and fault.from_s <= min(run.until_s, following.start_s)
    }
    late = {
        fault.kind
        for fault in by_pid[following.pid]
        if following.count < run.count and fault.acted and 0 <= following.start_s - fault.from_s <= LATE_S
    }
    nearest = [kind for kind in CAUSES if kind in met] + [f"{kind}, late" for kind in CAUSES if kind in late]
    return nearest[0] if nearest else ""


# --- what is there -------------------------------------------------------------------------------------------------------


def letters_of(raw: redis.Redis) -> tuple[dict[int, list[dict[str, str]]], list[dict[str, str]]]:
    """Return the dead letters by number, and those that bear none."""
    numbered: dict[int, list[dict[str, str]]] = defaultdict(list)
    anonymous: list[dict[str, str]] = []
    for _, fields in raw.xrange(f"{TAG}:dead"):
        n = number_of(fields)
        if n is None:
            anonymous.append(fields)
        else:
            numbered[n].append(fields)
    return dict(numbered), anonymous


def number_of(fields: dict[str, str]) -> int | None:
    """Return the number of a message: of its payload, or of the field `x-n` where the payload cannot be read."""
    if fields.get("x-n", "").isdigit():
        return int(fields["x-n"])
    try:
        found = json.loads(fields.get("data", ""))
    except ValueError:
        return None
    n: Any = found.get("n") if isinstance(found, dict) else None
    return n if isinstance(n, int) else None


def stored_numbers(raw: redis.Redis) -> set[int]:
    """Return the numbers that still wait in a stream or among the delayed ones: not lost, though left over."""
    stored = {number_of(fields) for name in STREAMS for _, fields in raw.xrange(f"{TAG}:{name}")}
    stored |= {_number_in(packed) for packed in raw.hvals(f"{TAG}:msg")}
    return {n for n in stored if n is not None}


def _number_in(packed: str) -> int | None:
    at = packed.find('{"n":')
    digits = packed[at + 5 :].partition(",")[0].partition("}")[0] if at >= 0 else ""
    return int(digits) if digits.isdigit() else None


# In a script, since a transaction is refused where memory is full. Where a group is not made yet, nothing is pending.
LOOK = """#!lua flags=no-writes,allow-oom
local left = {redis.call('ZCARD', KEYS[5]), redis.call('HLEN', KEYS[6])}
for s = 1, 4 do
  local pending = redis.pcall('XPENDING', KEYS[s], 'workers')
  if pending.err and not string.find(pending.err, 'NOGROUP', 1, true) then return pending end
  left[#left + 1] = redis.call('XLEN', KEYS[s])
  left[#left + 1] = pending[1] or 0
end
return left
"""


def leftovers(raw: redis.Redis) -> dict[str, int]:
    """Return what is in any structure that holds jobs, all at one moment, or a job that moves would be in none of them."""
    names = [f"{name}{what}" for name in STREAMS for what in ("", " pending")]
    keys = [f"{TAG}:{name}" for name in (*STREAMS, "due", "msg")]
    counts = raw.eval(LOOK, len(keys), *keys)
    return {name: count for name, count in zip(("due", "msg", *names), counts, strict=True) if count}


def leftovers_everywhere(raw: redis.Redis, live_pids: Collection[int] | None = None, but: Collection[str] = ()) -> dict[str, int]:
    """Return what is left in every structure of the queue: jobs, strikes, workers and consumers that are gone, marks without
    an end, and unknown keys; all but `but`, which another check looks at.
    """
    left = leftovers(raw)
    left |= {name: raw.hlen(f"{TAG}:{name}") for name in ("strikes", "wards")}
    if live_pids is not None:
        left |= _foreign_workers(raw, live_pids)
    for key in raw.scan_iter(f"{TAG}*", count=1000):
        if key.startswith(MORTAL_KEYS) or key in (f"{TAG}:logs", f"{TAG}:events", f"{TAG}:deaths"):
            left["keys without an end"] = left.get("keys without an end", 0) + (raw.ttl(key) == -1)
        elif key not in PLAIN_KEYS:
            left[f"key {key}"] = 1
    return {name: count for name, count in left.items() if count and name not in but}


def _foreign_workers(raw: redis.Redis, live_pids: Collection[int]) -> dict[str, int]:
    """Count workers and consumers that are no live process; a consumer of a lot may stay only while it holds something."""
    rows: dict[str, str] = raw.hgetall(f"{TAG}:workers:rows")
    live = {name for name, row in rows.items() if json.loads(row.partition(" ")[2]).get("pid") in live_pids}
    listed = {name for name in raw.zrange(WORKERS, 0, -1) if not name.startswith("~")}
    left = {"rows of the dead": len(set(rows) - live), "workers that are dead": len(listed - live)}
    for name in STREAMS:
        consumers = raw.xinfo_consumers(f"{TAG}:{name}", "workers")
        for one in consumers:
            if one["name"] not in live:
                left[f"{name} consumer {one['name']}"] = 1
    return left


def check_folder(folder: Path, raw: redis.Redis, live_pids: Collection[int] | None = None, but: Collection[str] = ()) -> Verdict:
    """Judge the run that is written in a folder."""
    return check_story(ledger.read(folder), raw, live_pids, but=but)
