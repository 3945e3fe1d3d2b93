"""What an analysis of logs remembers, in a SQLite file below a root: how far it read, what it found, and who is to tell people.

All that a run found is committed in one transaction, with how far it read, if no other run did so meanwhile. Alerts go out in the
step in which a job is done, which may be later, or never. So each finding has an **owner**, the job that is to tell people of it:

- the run that commits a finding owns it. A repeat of it, after a crash, finds its run committed, and tells people of what it
  owns;
- with the alerts goes a job that notes that they were sent. It is sent if they are, and only then;
- what nobody has noted as sent for `TAKE_OVER_S`, a later run takes over: the owner was cancelled, has expired, or is dead. When
  it is run again after all, it owns nothing any more.

So no alert is lost. One is doubled only if that note waited for longer than `TAKE_OVER_S` while later runs did not.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Generator, Iterable
from typing import Any, Final

import msgspec

from handlers.contracts.threats import LEVELS, Level, Reported, ThreatReport, ThreatsAnalyzed
from handlers.kit.detections import QUIET_S, Hit
from handlers.kit.files import explained, open_root
from handlers.kit.points import point
from handlers.kit.sections import Database
from handlers.kit.settings import Settings
from handlers.kit.sqlite import SqliteSession
from handlers.kit.tails import Place
from handlers.kit.threads import Stop
from runtime import Dead

TAKE_OVER_S: Final = 1800.0  # a guess: twice the timeout of a run, which commits within it, and is done seconds later
KEPT_S: Final = 90 * 86_400.0  # of findings, a guess: a quarter of a year
KEPT_RUNS_S: Final = 7 * 86_400.0  # as long as a job can be replayed and is known
MAX_STATE_BYTES: Final = 2**29  # of what is remembered of subjects, a guess: some 150 MiB at the most that we remember
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS kept (name TEXT PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS runs (work TEXT PRIMARY KEY, born REAL NOT NULL, report BLOB NOT NULL, result BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS findings (id TEXT PRIMARY KEY, rule TEXT NOT NULL, subject TEXT NOT NULL, level TEXT NOT NULL, "
    "count INTEGER NOT NULL, counted INTEGER NOT NULL, first REAL NOT NULL, last REAL NOT NULL, owner TEXT NOT NULL, "
    "owned_s REAL NOT NULL, is_sent INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS by_subject ON findings (rule, subject)",
    "CREATE INDEX IF NOT EXISTS to_be_sent ON findings (owner) WHERE NOT is_sent",
)


class Seen(msgspec.Struct, frozen=True):
    """How far an analysis is: the places in the files of each source, what is remembered of each subject, and the last run.

    `number` grows with each run: only one of two runs that began at the same number can commit.
    """

    number: int = 0
    born_s: float | None = None
    places: dict[str, list[Place]] = {}
    windows: dict[str, dict[str, Any]] = {}


class Run(msgspec.Struct, frozen=True):
    """A run that was committed."""

    report: ThreatReport
    result: ThreatsAnalyzed


class Outcome(msgspec.Struct, frozen=True):
    """What a run wants to commit: of whom people are told, from `notify_from` on, and `seen`, where it read on from `before`."""

    hits: Iterable[Hit]
    notify_from: Level | None
    before: int | None = None
    seen: Seen | None = None


class Memory:
    """The file of one analysis."""

    def __init__(self, session: SqliteSession) -> None:
        self._session = session
        for statement in _TABLES:
            session.execute(statement)

    def seen(self) -> Seen:
        """Return how far the analysis is."""
        found = self._session.fetch("SELECT value FROM kept WHERE name = 'seen'")
        return msgspec.msgpack.decode(found[0][0], type=Seen) if found else Seen()

    def run(self, work: str) -> Run | None:
        """Return what the job with this work committed, if it did."""
        found = self._session.fetch("SELECT report, result FROM runs WHERE work = $1", [work])
        if not found:
            return None
        report, result = found[0]
        return Run(msgspec.json.decode(report, type=ThreatReport), msgspec.json.decode(result, type=ThreatsAnalyzed))

    def commit(
        self, work: str, born_s: float, outcome: Outcome, build: Callable[[list[Reported]], ThreatReport], cut: Callable[..., Any]
    ) -> Run | None:
        """Return the run when it is committed; None if another one was first, and nothing is changed."""
        with self._session.transaction():
            done = self.run(work)
            if done is not None:
                return done
            if outcome.seen is not None and self.seen().number != outcome.before:
                return None
            findings = [self._merge(hit, work, outcome) for hit in outcome.hits]
            findings.sort(key=lambda each: (-LEVELS.index(each.level), -each.count, each.id))
            report = build(findings)
            run = Run(report, cut(report, findings))
            values = [work, born_s, msgspec.json.encode(run.report), msgspec.json.encode(run.result)]
            self._session.execute("INSERT INTO runs VALUES ($1, $2, $3, $4)", values)
            if outcome.seen is not None:
                encoded = msgspec.msgpack.encode(outcome.seen)
                self._session.execute("INSERT OR REPLACE INTO kept VALUES ('seen', $1)", [encoded])
            if outcome.notify_from is not None:
                self._take_over(work)
            self._session.execute("DELETE FROM runs WHERE born < $1", [born_s - KEPT_RUNS_S])
            self._session.execute("DELETE FROM findings WHERE is_sent AND last < $1", [born_s - KEPT_S])
            point("threats-before-commit")
        point("threats-committed")
        return run

    def _merge(self, hit: Hit, work: str, outcome: Outcome) -> Reported:
        """Note a finding: as another one, or as more of one that is known.

        `counted` is what runs have counted that read on, each line once; what a window saw of it counts only where that is more.
        """
        is_window = outcome.seen is None
        known = self._session.fetch(
            "SELECT id, level, count, counted, first, last FROM findings "
            "WHERE rule = $1 AND subject = $2 AND first <= $3 AND last >= $4 ORDER BY first LIMIT 1",
            [hit.rule, hit.subject, hit.last + QUIET_S, hit.first - QUIET_S],
        )
        if known:
            id_, level, count, counted, first, last = known[0]
            counted += 0 if is_window else hit.count if counted else hit.count + hit.before
            count = max(count, counted, hit.count + hit.before if is_window else 0)
            first, last = min(first, hit.first), max(last, hit.last)
            self._session.execute(
                "UPDATE findings SET count = $1, counted = $2, first = $3, last = $4 WHERE id = $5",
                [count, counted, first, last, id_],
            )
        else:
            level, count, first, last = hit.level, hit.count + hit.before, hit.first, hit.last
            id_ = finding_id(hit.rule, hit.subject, first)
            from_ = outcome.notify_from
            is_told = from_ is not None and LEVELS.index(level) >= LEVELS.index(from_)
            counted = 0 if is_window else count
            values = [id_, hit.rule, hit.subject, level, count, counted, first, last, work, time.time(), not is_told]
            self._session.execute("INSERT INTO findings VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)", values)
        return Reported(
            id=id_,
            rule=hit.rule,
            subject=hit.subject,
            level=level,
            count=count,
            first=int(first),
            last=int(last),
            is_new=not known,
        )

    def _take_over(self, work: str) -> None:
        now_s = time.time()
        self._session.execute(
            "UPDATE findings SET owner = $1, owned_s = $2 WHERE NOT is_sent AND owned_s < $3", [work, now_s, now_s - TAKE_OVER_S]
        )

    def owned(self, work: str) -> list[Reported]:
        """Return the findings of which the job with this work is to tell people, the worst first; it owns them anew."""
        self._session.execute("UPDATE findings SET owned_s = $1 WHERE NOT is_sent AND owner = $2", [time.time(), work])
        rows = self._session.fetch(
            "SELECT id, rule, subject, level, count, first, last FROM findings WHERE NOT is_sent AND owner = $1", [work]
        )
        names = ("id", "rule", "subject", "level", "count")
        found = [
            Reported(**dict(zip(names, row, strict=False)), first=int(row[5]), last=int(row[6]), is_new=True) for row in rows
        ]
        return sorted(found, key=lambda each: (-LEVELS.index(each.level), -each.count, each.id))

    def confirm(self, work: str) -> int:
        """Note that people were told of all that the job with this work owns, and return of how many."""
        with self._session.transaction():
            return self._session.execute("UPDATE findings SET is_sent = 1 WHERE NOT is_sent AND owner = $1", [work])


def finding_id(rule: str, subject: str, first: float) -> str:
    """Return the id of a finding: equal for the same rule, subject and begin."""
    return hashlib.sha256(msgspec.json.encode([rule, subject, int(first)])).hexdigest()[:24]


@contextlib.contextmanager
def opened_memory(settings: Settings, analysis: str, stop: Stop) -> Generator[Memory]:
    """Yield what an analysis remembers; for the first time, nothing.

    Raises:
        Dead: the root may not be written, or a link stands in the file's place; `bad-path`.
        Snooze: the root is not configured, or cannot be used; `alias-missing`, `out-of-space`.
        sqlite3.Error: another run writes to the file for longer than SQLite waits.
    """
    alias = settings.analysis(analysis).state
    root, name = settings.root(alias), f"threats-{analysis}.db"
    if not root.allows("write"):
        raise Dead(f"roots.{alias} allows mode {root.mode!r} only, not 'write'", "bad-path")
    with explained(alias), open_root(alias, root) as top:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        os.close(os.open(name, flags, 0o600, dir_fd=top))
    database = Database(sqlite=f"{alias}:{name}", max_row_bytes=MAX_STATE_BYTES)
    session = SqliteSession(settings, f"{alias}/{name}", database, stop, writes=True)
    try:
        yield Memory(session)
    finally:
        session.close()
