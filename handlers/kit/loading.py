"""Loading the records of a file into a table, so that a kill at any moment neither loses a row nor writes one twice.

Each batch is staged, put into the table and noted, all in one transaction; the next run goes on where the note says. A run that
replaces the table, or only tries, is one transaction as a whole.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from handlers.contracts.data import ImportData, Imported
from handlers.kit import states
from handlers.kit.columns import BadCell, Columns
from handlers.kit.failures import BadRow
from handlers.kit.points import point
from handlers.kit.records import Record, Records
from handlers.kit.sessions import NUMBER, STAGED, Session, quoted
from runtime import Dead

STATE: Final = "import-data"
MAX_REASON_CHARS: Final = 100  # a guess: a database's text may list many columns

Row = tuple[Any, ...]

# Tables whose rows are deleted or changed with those of another one.
_FOLLOWERS: Final = {
    "postgresql": "SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND confdeltype IN ('c', 'n', 'd')"
    " AND confrelid = to_regclass(quote_ident($1)) AND conrelid <> confrelid",
    "sqlite": "SELECT t.name FROM sqlite_schema t JOIN pragma_foreign_key_list(t.name) f WHERE t.type = 'table'"
    ' AND lower(f."table") = lower($1) AND lower(t.name) <> lower($1)'
    " AND f.on_delete IN ('CASCADE', 'SET NULL', 'SET DEFAULT')",
}


class Rejected(msgspec.Struct, frozen=True, array_like=True):
    """A row that was refused; `column` is empty where it is not one value that is wrong."""

    line: int
    column: str
    reason: str


class State(msgspec.Struct, kw_only=True):
    """How far the file is loaded, as it is noted in the database."""

    sha256: str
    offset: int = 0
    line: int = 0
    rows: int = 0
    inserted: int = 0
    updated: int = 0
    unchanged: int = 0
    rejected: list[Rejected] = []
    result: Imported | None = None


class _TakeBack(Exception):
    """Ends the transaction of a dry run."""


class Load:
    """One run. `rejected` is what it has refused, also after it has failed."""

    def __init__(
        self,
        message: ImportData,
        session: Session,
        records: Records,
        *,
        work: str,
        born_s: float,
        progress: Callable[[float, float, str], None],
    ) -> None:
        """Check the table.

        Raises:
            Dead: it is not there, or has no such column; `bad-query`.
        """
        kinds = session.columns(message.table)
        if not kinds or message.table == STAGED:
            raise Dead(f"databases.{message.db}: no table {message.table}", "bad-query")
        self._columns = Columns(message.columns, kinds, message.key, dialect=session.dialect, is_json=message.format == "jsonl")
        self._message = message
        self._session = session
        self._records = records
        self._work = work
        self._born_s = born_s
        self._progress = progress
        self._state = State(sha256=records.sha256)
        self._noted = ""
        self._resumed_from = 0
        self._table = quoted(message.table)
        self._put, self._count_new = _statements(message, kinds, session.dialect)

    @property
    def rejected(self) -> list[Rejected]:
        """The rows that were refused so far, by this run and those before it, in the order of the file."""
        return sorted(self._state.rejected, key=lambda row: row.line)

    def run(self) -> Imported:
        """Return when all of the file is in the table; the result is noted there, so that a repeat does nothing.

        Raises:
            Dead: more rows are bad than may be, `bad-rows`; or the file is another one than before, `input-changed`.
            Snooze: another run of this job is at work, `locked`; or as for the session.
        """
        try:
            return self._at_once() if self._message.dry_run else self._run()
        except BadRow as error:  # of a whole table, or at a commit: no row is to blame alone
            raise Dead(f"the database refuses the rows before line {self._records.line + 1}: {error}", "bad-rows") from error

    def _run(self) -> Imported:
        states.prepare(self._session)
        noted = self._begun()
        if noted.result is not None:
            self._state = noted
            return noted.result
        if noted.offset:
            if noted.sha256 != self._state.sha256:
                raise Dead("the file is not the one of which a part was imported; hint: send a new job", "input-changed")
            self._state, self._resumed_from = noted, noted.offset
        return self._at_once() if self._message.mode == "replace" else self._in_steps()

    def _begun(self) -> State:
        """Return the state that an earlier run left, or note this one's first: then no other run can begin, too."""
        self._noted = states.read(self._session, self._work, STATE) or ""
        if self._noted:
            return msgspec.json.decode(self._noted, type=State)
        self._noted = self._encoded()
        with self._session.transaction():
            states.exchange(self._session, self._work, STATE, None, self._noted, self._born_s)
        return self._state

    def _in_steps(self) -> Imported:
        for batch in self._batches():
            rows = self._rows(batch)
            with self._session.transaction():
                self._claim()
                self._load(rows)
                self._note()
                point("import.before-commit")
            point("import.after-commit")
            self._tell()
        with self._session.transaction():
            self._claim()
            return self._noted_result()

    def _at_once(self) -> Imported:
        with contextlib.suppress(_TakeBack), self._session.transaction():
            if not self._message.dry_run:
                self._claim()
            if self._message.mode == "replace":
                self._empty()
            for batch in self._batches():
                self._load(self._rows(batch))
                point("import.loaded")
                self._tell()
            if self._message.dry_run:
                raise _TakeBack
            self._noted_result()
            point("import.before-commit")
        point("import.after-commit")
        return self._result()

    def _noted_result(self) -> Imported:
        result = self._state.result = self._result()
        self._note()
        states.forget_old(self._session, STATE, self._born_s)
        return result

    def _empty(self) -> None:
        """Delete all rows, after keeping other writers away: what they wrote meanwhile would not be deleted.

        Raises:
            Dead: rows of another table would go with them, or be changed; `bad-query`.
        """
        others = sorted({str(name) for (name,) in self._session.fetch(_FOLLOWERS[self._session.dialect], [self._message.table])})
        if others:
            text = f"`replace` would change {', '.join(others)} as well, by a foreign key; hint: mode `upsert`"
            raise Dead(f"databases.{self._message.db}: {text}", "bad-query")
        if self._session.dialect == "postgresql":
            self._session.execute(f"LOCK TABLE {self._table} IN SHARE ROW EXCLUSIVE MODE")
        self._session.execute(f"DELETE FROM {self._table}")  # noqa: S608 -- quoted

    def _claim(self) -> None:
        states.claim(self._session, self._work, STATE, self._noted)

    def _note(self) -> None:
        self._state.offset, self._state.line = self._records.offset, self._records.line
        old, self._noted = self._noted, self._encoded()
        states.exchange(self._session, self._work, STATE, old, self._noted, self._born_s)

    def _encoded(self) -> str:
        return msgspec.json.encode(self._state).decode()

    def _tell(self) -> None:
        self._progress(self._records.read_bytes, self._records.size_bytes, f"{self._state.rows} rows")

    def _result(self) -> Imported:
        state = self._state
        return Imported(
            rows=state.rows,
            inserted=state.inserted,
            updated=state.updated,
            unchanged=state.unchanged,
            rejected=len(state.rejected),
            reject_file=self._message.bad_rows.to or "",
            resumed_from=self._resumed_from,
            bytes=self._records.size_bytes,
            sha256=state.sha256,
        )

    # --- a batch ---

    def _batches(self) -> Iterator[list[Record]]:
        records = self._records.start(self._state.offset, self._state.line)
        while batch := list(islice(records, self._message.batch)):
            yield batch

    def _rows(self, batch: Sequence[Record]) -> list[Row]:
        """Return the rows of the records; the number of each is its line."""
        rows: list[Row] = []
        for line, values, reason in batch:
            if reason:
                self._reject(line, "", reason)
                continue
            try:
                rows.append(self._columns.row(line, values))
            except BadCell as error:
                self._reject(line, error.column, str(error))
        self._state.rows += len(batch)
        return rows

    def _load(self, rows: list[Row]) -> None:
        """Put the rows into the table; where it refuses some, halve them until the bad ones are alone."""
        if not rows:
            return
        try:
            with self._session.savepoint():
                inserted, updated = self._stage_and_put(rows)
        except BadRow as error:
            if len(rows) == 1:
                self._reject(rows[0][0], "", str(error))
                return
            half = len(rows) // 2
            self._load(rows[:half])
            self._load(rows[half:])
            return
        self._state.inserted += inserted
        self._state.updated += updated
        self._state.unchanged += len(rows) - inserted - updated

    def _stage_and_put(self, rows: list[Row]) -> tuple[int, int]:
        """Return how many rows were inserted, and how many updated."""
        session = self._session
        stream = (row for row in rows)  # of a list, COPY would let no other thread run until it is through
        session.stage(self._message.table, self._columns.names, stream)
        new = int(session.fetch(self._count_new)[0][0]) if self._count_new else len(rows)
        written = session.execute(self._put)
        inserted = min(new, written)  # another writer may have inserted one since
        return inserted, written - inserted

    def _reject(self, line: int, column: str, reason: str) -> None:
        state, most = self._state, self._message.bad_rows.max
        state.rejected.append(Rejected(line, column, reason[:MAX_REASON_CHARS]))
        if len(state.rejected) > most:
            first = state.rejected[0]
            where = f"line {first.line}, {first.column}".removesuffix(", ")
            raise Dead(f"more than {most} bad rows; the first: {where}: {first.reason}", "bad-rows")


def _statements(message: ImportData, kinds: Mapping[str, str], dialect: str) -> tuple[str, str]:
    """Return the statement that puts what is staged into the table, and for `upsert` the one that counts the new keys in it."""
    table, number = quoted(message.table), quoted(NUMBER)
    names = [column.to for column in message.columns]
    listed = ", ".join(map(quoted, names))
    insert = f"INSERT INTO {table} ({listed}) SELECT {listed} FROM {STAGED}"  # noqa: S608 -- quoted and known
    if not message.key:
        return f"{insert} ORDER BY {number}", ""
    key = ", ".join(map(quoted, message.key))
    last = f"{number} IN (SELECT max({number}) FROM {STAGED} GROUP BY {key})"  # noqa: S608 -- quoted and known
    rest = [name for name in names if name not in message.key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in map(quoted, rest))
    action = f"UPDATE SET {changes} WHERE {_differs(table, rest, kinds, dialect)}" if rest else "NOTHING"
    same = " AND ".join(f"t.{name} = s.{name}" for name in map(quoted, message.key))
    distinct = f"SELECT DISTINCT {key} FROM {STAGED}"  # noqa: S608 -- quoted and known
    count = f"SELECT count(*) FROM ({distinct}) s WHERE NOT EXISTS (SELECT 1 FROM {table} t WHERE {same})"  # noqa: S608
    return f"{insert} WHERE {last} ORDER BY {number} ON CONFLICT ({key}) DO {action}", count


def _differs(table: str, names: Sequence[str], kinds: Mapping[str, str], dialect: str) -> str:
    """Return the condition that a row would be changed; `json` of PostgreSQL can be compared only as a text."""
    operator = "IS NOT" if dialect == "sqlite" else "IS DISTINCT FROM"
    cast = {name: "::text" if kinds[name] == "json" and dialect == "postgresql" else "" for name in names}
    return " OR ".join(f"{table}.{quoted(name)}{cast[name]} {operator} excluded.{quoted(name)}{cast[name]}" for name in names)
