"""A table that mirrors the records of somebody else, page by page, so that a kill at any moment leaves rows and place in accord.

The rows of a page and the place of the next one are committed together. A lease in the same database keeps a second run away, and
each page renews it: a run that was cut off and lost its lease writes nothing any more. All of this blocks, and runs in threads.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, Final, cast
from uuid import uuid4

import msgspec

from handlers.contracts.crm import SyncCrmData, Synced
from handlers.kit import states
from handlers.kit.columns import BadCell, Columns
from handlers.kit.crm import Resource, page_of, pointed, since_of, time_of
from handlers.kit.databases import opened
from handlers.kit.failures import BadRow, wait_for_operator
from handlers.kit.http import Answer
from handlers.kit.points import point
from handlers.kit.sessions import STAGED, Session, quoted
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead, Job, Snooze

LEASE_S: Final = 120.0  # a guess: a page takes seconds, and after a crash another job need not wait for long
SEEN: Final = "backend_jobs_seen"  # the keys that a full sync has met so far, or other syncs since it began
FULL_S: Final = 86_400.0  # a guess: of a pass that is older, the keys say little about what is there now
LOCK: Final = "lock"
MAX_VANISHED: Final = 0.1  # a tenth: a guess; more than that is rather a fault of the CRM, or of the definition

_CREATE_SEEN: Final = f"CREATE TABLE IF NOT EXISTS {SEEN} (work text NOT NULL, key text NOT NULL, PRIMARY KEY (work, key))"


class Lease(msgspec.Struct, frozen=True):
    """Who is at work, and until when others keep away."""

    job: str
    run: str
    until_s: float


class Pass(msgspec.Struct, kw_only=True):
    """How far the records are read, as it is noted in the database. It is over when there is a result."""

    job: str
    began_s: float = 0.0  # when the job was born that began it; others may go on
    since: str = ""
    position: str | None = ""  # empty for the first page, None when the last one was read
    pages: int = 0
    rows: int = 0
    upserted: int = 0
    unchanged: int = 0
    newest: str = ""  # time of the newest record of this pass
    high_water: str = ""  # the same, of those before
    etag: str = ""
    etag_url: str = ""
    has_restarted: bool = False
    result: Synced | None = None


class Mirror:
    """One run of a job over one resource. `state` is how far it has come; each method but the first needs the lease."""

    def __init__(self, settings: Settings, message: SyncCrmData, resource: Resource, job: Job) -> None:
        self.state = Pass(job=job.work)
        self._settings = settings
        self._message = message
        self._resource = resource
        self._job = job
        self._subject = f"crm.{message.crm}.{message.resource}"
        self._run = uuid4().hex
        self._lease: str | None = None
        self._noted: str | None = None
        self._statement = ""

    @property
    def _is_full(self) -> bool:
        return self._message.mode == "full"

    def begin(self, stop: Stop) -> None:
        """Take the lease and read how far the runs before have come.

        Raises:
            Dead: the table has no such column; `bad-query`.
            Snooze: another run is at work, `locked`; or the settings must be fixed.
        """
        database = self._settings.database(self._resource.db)
        if not database.allows(self._resource.table, write=True):
            text = f"databases.{self._resource.db} does not list {self._resource.table} in `writable`"
            raise wait_for_operator(self._subject, "alias-missing", text)
        with opened(self._settings, self._resource.db, stop, writes=True) as session:
            self._columns_of(session)
            states.prepare(session)
            if self._is_full and not session.columns(SEEN):
                session.execute(_CREATE_SEEN)
            with session.transaction():
                self._noted = states.read(session, self._subject, self._message.mode)
                last = msgspec.json.decode(self._noted, type=Pass) if self._noted else None
                if last is not None and last.job == self._job.work and last.result is not None:
                    self.state = last
                    return
                self._lease = states.read(session, self._subject, LOCK)
                self._renew(session, is_first=True)
                self.state = self._continued(session, last)
                self._note(session)
            point("crm.begun")

    def _continued(self, session: Session, last: Pass | None) -> Pass:
        """Return the pass that a job has left unfinished, else a new one; also where a full one was begun over a day before."""
        is_stale = last is not None and self._is_full and self._job.born - last.began_s > FULL_S
        if last is not None and last.result is None and not is_stale:
            return msgspec.structs.replace(last, job=self._job.work, has_restarted=False)
        new = Pass(job=self._job.work, began_s=self._job.born)
        if self._is_full:
            session.execute(f"DELETE FROM {SEEN} WHERE work = $1", [self._subject])  # noqa: S608 -- a constant
        elif last is not None:
            new.high_water, new.etag, new.etag_url = last.high_water, last.etag, last.etag_url
            new.since = since_of(last.high_water)
        return new

    def put(self, answer: Answer, url: str, stop: Stop) -> None:
        """Write the rows of a page, but for those that are newer in the table, and which page is next, in one step.

        Raises:
            Dead: a record does not fit the columns, `bad-rows`; or as `page_of` says.
            Snooze: another run has taken over; `locked`.
            TemporaryFailure: the answer is no page.
        """
        state = self.state
        page = page_of(self._subject, self._resource, answer, url, state.position or "")
        with self._transaction(stop) as session:
            count, written, newest = self._upsert(session, page.records)
            self.state = msgspec.structs.replace(
                state,
                position=page.next,
                pages=state.pages + 1,
                rows=state.rows + len(page.records),
                upserted=state.upserted + written,
                unchanged=state.unchanged + count - written,
                newest=max(state.newest, newest),
                etag=page.etag,  # of the last page, which is the first one as well where there is only one
                etag_url=url,
            )
            self._note(session)
            point("crm.before-commit")
        point("crm.after-commit")

    def restart(self, stop: Stop) -> None:
        """Begin again at the high-water mark: the CRM does not know the cursor any more.

        Raises:
            Dead: that has happened before in this pass; `http-refused`.
        """
        if self.state.has_restarted:
            raise Dead(f"{self._subject}: the cursor has expired again", "http-refused")
        with self._transaction(stop) as session:
            if self._is_full:
                session.execute(f"DELETE FROM {SEEN} WHERE work = $1", [self._subject])  # noqa: S608 -- a constant
            # Of this pass nothing counts for the mark: records come in any order.
            self.state = msgspec.structs.replace(self.state, position="", has_restarted=True, etag="", etag_url="")
            self._note(session)

    def finish(self, stop: Stop, *, not_modified: bool = False) -> Synced:
        """Mark as deleted what a full sync has not met, give the lease back, and return the result, which is noted.

        Raises:
            Dead: more than a tenth would be marked, and nothing is; `safety-brake`.
        """
        state = self.state
        is_complete = state.position is None or not_modified
        refused: Dead | None = None
        with self._transaction(stop) as session:
            deleted = 0
            if self._is_full and is_complete and self._resource.deleted:
                gone, total = self._vanished(session)
                if gone > max(1, int(total * MAX_VANISHED)):
                    text = f"{self._subject}: {gone} of {total} rows were not among the records of the CRM; nothing was deleted"
                    refused = Dead(text, "safety-brake")
                else:
                    deleted = self._delete(session) if gone else 0
            high_water = max(state.high_water, state.newest) if is_complete else state.high_water
            result = Synced(
                pages=state.pages,
                rows=state.rows,
                upserted=state.upserted,
                unchanged=state.unchanged,
                deleted=deleted,
                high_water=high_water,
                is_complete=is_complete,
                not_modified=not_modified,
            )
            if is_complete:
                job = state.job if refused is None else ""  # the same job, sent again from the dead letters, is to look anew
                self.state = msgspec.structs.replace(state, job=job, high_water=high_water, result=result)
            self._note(session)
            if self._is_full and is_complete:
                session.execute(f"DELETE FROM {SEEN} WHERE work = $1", [self._subject])  # noqa: S608 -- a constant
            session.execute(f"DELETE FROM {states.TABLE} WHERE work = $1 AND name = $2", [self._subject, LOCK])  # noqa: S608
            point("crm.before-finish")
        point("crm.after-finish")
        if refused is not None:
            raise refused
        return result

    # --- in a transaction ---

    @contextmanager
    def _transaction(self, stop: Stop) -> Generator[Session]:
        """Yield a session in a transaction that holds the lease."""
        before = self._lease, self._noted, self.state
        try:
            with opened(self._settings, self._resource.db, stop, writes=True) as session:
                self._columns_of(session)
                with session.transaction():
                    self._renew(session, is_first=False)
                    yield session
        except BaseException:
            self._lease, self._noted, self.state = before
            raise

    def _renew(self, session: Session, *, is_first: bool) -> None:
        """Take the lease, or keep it; whoever has it keeps it while it lasts, but for another run of the same job."""
        now_s = time.time()
        held = msgspec.json.decode(self._lease, type=Lease) if self._lease else None
        if is_first and held is not None and held.job != self._job.work and held.until_s > now_s:
            raise Snooze(min(max(held.until_s - now_s, 1.0), LEASE_S), f"locked: {self._subject}: another job is at work")
        new = msgspec.json.encode(Lease(self._job.work, self._run, now_s + LEASE_S)).decode()
        states.exchange(session, self._subject, LOCK, self._lease, new, self._job.born)
        self._lease = new

    def _note(self, session: Session) -> None:
        text = msgspec.json.encode(self.state).decode()
        if text != self._noted:
            states.exchange(session, self._subject, self._message.mode, self._noted, text, self._job.born)
        self._noted = text

    def _columns_of(self, session: Session) -> None:
        """Check the table, and make the statement that writes to it."""
        resource = self._resource
        kinds = session.columns(resource.table)
        if not kinds or (resource.deleted and resource.deleted not in kinds):
            what = f"column {resource.deleted} in {resource.table}" if kinds else f"table {resource.table}"
            raise Dead(f"databases.{resource.db}: no {what}", "bad-query")
        key = [resource.key, resource.updated]  # neither may be missing
        self._columns = Columns(resource.columns, kinds, key, dialect=session.dialect, is_json=True)
        self._names = [*self._columns.names, *([resource.deleted] if resource.deleted else [])]
        self._statement = _upsert_of(resource, self._names, kinds, session.dialect)

    def _upsert(self, session: Session, records: Sequence[dict[str, Any]]) -> tuple[int, int, str]:
        """Return how many records there were, how many rows they have changed, and when the newest of them was changed."""
        if not records:
            return 0, 0, ""
        rows, newest = self._rows(records)
        try:
            session.stage(self._resource.table, self._names, rows)
            if self._is_full or self._is_full_open(session):
                key = f"CAST({quoted(self._resource.key)} AS text)"
                text = f"INSERT INTO {SEEN} SELECT CAST($1 AS text), {key} FROM {STAGED} WHERE true ON CONFLICT DO NOTHING"  # noqa: S608
                session.execute(text, [self._subject])
            return len(rows), session.execute(self._statement), newest
        except BadRow as error:
            raise Dead(f"{self._subject}: the database refuses a record: {error}", "bad-rows") from error

    def _is_full_open(self, session: Session) -> bool:
        """Return whether a full sync is not over: what comes meanwhile may lie on a page that it has read, and is not gone."""
        noted = states.read(session, self._subject, "full")
        return noted is not None and msgspec.json.decode(noted, type=Pass).result is None

    def _rows(self, records: Sequence[dict[str, Any]]) -> tuple[list[tuple[Any, ...]], str]:
        """Return a row for each key, made of its newest record; and when the newest was changed that counts for the mark."""
        resource = self._resource
        found: dict[Any, tuple[Any, ...]] = {}
        at_key, at_updated = (self._columns.names.index(name) + 1 for name in (resource.key, resource.updated))
        fields = [column.source or column.to for column in resource.columns]
        newest = ""
        for number, record in enumerate(records):
            try:
                row = self._columns.row(number, [pointed(record, field) for field in fields])
            except BadCell as error:
                raise Dead(f"{self._subject}: record {number + 1} of a page: {error.column} {error}", "bad-rows") from None
            if resource.deleted:
                row = (*row, bool(resource.tombstone is not None and pointed(record, resource.tombstone)))
            known = found.get(row[at_key])
            if known is None or row[at_updated] >= known[at_updated]:
                found[row[at_key]] = row
            changed = time_of(pointed(record, fields[at_updated - 1]))
            # What was changed after the pass began says nothing of pages that were read before. Nor may a clock that is ahead.
            if changed is not None and changed.timestamp() <= self.state.began_s:
                newest = max(newest, changed.isoformat())
        return list(found.values()), newest

    def _vanished(self, session: Session) -> tuple[int, int]:
        """Return how many rows are to be marked as deleted, and how many are not marked yet."""
        table, mark = quoted(self._resource.table), quoted(cast("str", self._resource.deleted))
        ((total,),) = session.fetch(f"SELECT count(*) FROM {table} WHERE {mark} IS NOT TRUE")  # noqa: S608 -- quoted
        ((gone,),) = session.fetch(f"SELECT count(*) FROM {table} WHERE {self._is_gone}", [self._subject])  # noqa: S608 -- quoted
        return int(gone), int(total)

    def _delete(self, session: Session) -> int:
        table, mark = quoted(self._resource.table), quoted(cast("str", self._resource.deleted))
        return session.execute(f"UPDATE {table} SET {mark} = true WHERE {self._is_gone}", [self._subject])  # noqa: S608 -- quoted

    @property
    def _is_gone(self) -> str:
        table, mark = quoted(self._resource.table), quoted(cast("str", self._resource.deleted))
        key = f"CAST({table}.{quoted(self._resource.key)} AS text)"
        return f"{mark} IS NOT TRUE AND NOT EXISTS (SELECT 1 FROM {SEEN} s WHERE s.work = $1 AND s.key = {key})"  # noqa: S608


def _upsert_of(resource: Resource, names: Sequence[str], kinds: dict[str, str], dialect: str) -> str:
    """Return the statement that puts what is staged into the table, where that is not newer, and differs."""
    table, key, updated = map(quoted, (resource.table, resource.key, resource.updated))
    listed = ", ".join(map(quoted, names))
    rest = [name for name in names if name != resource.key]
    changes = ", ".join(f"{quoted(name)} = excluded.{quoted(name)}" for name in rest)
    differs = " OR ".join(_differs(table, name, kinds[name], dialect) for name in rest)
    is_older = f"{table}.{updated} IS NULL OR excluded.{updated} >= {table}.{updated}"
    insert = f"INSERT INTO {table} ({listed}) SELECT {listed} FROM {STAGED} WHERE true"  # noqa: S608 -- quoted and known
    return f"{insert} ON CONFLICT ({key}) DO UPDATE SET {changes} WHERE ({is_older}) AND ({differs})"


def _differs(table: str, name: str, kind: str, dialect: str) -> str:
    """Return the condition that a value would be changed; `json` of PostgreSQL can be compared only as a text."""
    operator = "IS NOT" if dialect == "sqlite" else "IS DISTINCT FROM"
    cast_to = "::text" if kind == "json" and dialect == "postgresql" else ""
    return f"{table}.{quoted(name)}{cast_to} {operator} excluded.{quoted(name)}{cast_to}"
