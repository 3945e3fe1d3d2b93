"""A session with a SQLite file, through the standard library.

The caller runs in a thread of ours, and an asynchronous driver would only pass each batch on from a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import quote

from handlers.kit.failures import BadRow, wait_for_operator
from handlers.kit.files import open_below, open_root
from handlers.kit.sections import Database
from handlers.kit.sessions import NUMBER, STAGED, Rows, quoted
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop, Stopped
from runtime import Dead

BUSY_TIMEOUT_S: Final = 5.0  # that of Python's sqlite3
STOP_EVERY_STEPS: Final = 100_000  # of SQLite's virtual machine, about 1 ms: a sort returns no row for a long time
COPY_PAGES: Final = 2_000  # of 4 KiB each: a step takes ms, and then the stop is looked at

_PLACEHOLDER: Final = re.compile(r"\$(\d+)")
_UNUSABLE: Final = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY}
)


class SqliteSession:
    """Owns the connection to a file. `sessions.Session` says what each method does."""

    dialect: Literal["sqlite", "postgresql"] = "sqlite"

    def __init__(self, settings: Settings, alias: str, database: Database, stop: Stop, *, writes: bool) -> None:
        self._alias = alias
        self._writes = writes
        path = _path(settings, alias, database, writes=writes)
        with self._explained():
            self._connection = sqlite3.connect(
                f"file:{quote(path)}?mode={'rw' if writes else 'ro'}", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None
            )
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, database.max_row_bytes)
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # ATTACH would create a file, even in a read-only connection
        self._connection.set_progress_handler(lambda: stop.is_set, STOP_EVERY_STEPS)
        if writes:
            self.execute("PRAGMA foreign_keys = ON")

    def close(self) -> None:
        """Close the connection; what is not committed is gone."""
        self._connection.close()

    def columns(self, table: str) -> dict[str, str]:
        """Return the columns of a table or view with their declared types; none if there is no such table."""
        found = self.fetch(
            "SELECT 1 FROM sqlite_schema WHERE type IN ('table', 'view') AND name = $1 AND name NOT LIKE 'sqlite!_%' ESCAPE '!'",
            [table],
        )
        return dict(self.fetch("SELECT name, type FROM pragma_table_xinfo($1)", [table])) if found else {}

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """Begin, and commit at the end of the block. A writer has the database for itself."""
        with self._explained():
            self._connection.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
        try:
            yield
            with self._explained():
                self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    @contextlib.contextmanager
    def savepoint(self) -> Generator[None]:
        """Undo, where the block raises, what was done in it; the transaction goes on."""
        self.execute("SAVEPOINT s")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK TO s")
                self._connection.execute("RELEASE s")
            raise
        self.execute("RELEASE s")

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it wrote."""
        with self._explained():
            return self._connection.execute(_numbered(statement), values).rowcount

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a statement that has few."""
        with self._explained():
            return self._connection.execute(_numbered(statement), values).fetchall()

    @contextlib.contextmanager
    def query(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Generator[Rows]:
        """Yield the rows of a statement, which are read as they are iterated over."""
        with self._explained():
            text = statement if isinstance(values, Mapping) else _numbered(statement)
            # An open cursor would keep its lock on the file after the connection is closed.
            with contextlib.closing(self._connection.execute(text, values)) as cursor:
                if not cursor.description:
                    raise Dead(f"databases.{self._alias}: the query returns no columns", "bad-query")
                yield Rows([str(column[0]) for column in cursor.description], cursor)

    def stage(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Fill the temporary table `staged`."""
        names = ", ".join(map(quoted, columns))
        self.execute(f"DROP TABLE IF EXISTS temp.{STAGED}")
        self.execute(f"CREATE TEMP TABLE {STAGED} AS SELECT 0 AS {quoted(NUMBER)}, {names} FROM {quoted(table)} LIMIT 0")  # noqa: S608 -- quoted
        marks = ", ".join("?" * (len(columns) + 1))
        with self._explained():
            self._connection.executemany(f"INSERT INTO temp.{STAGED} VALUES ({marks})", rows)  # noqa: S608 -- a constant

    def copy_to(self, path: str, told: Callable[[int, int], None]) -> None:
        """Copy the whole database into a new file, within a transaction as it is at that moment.

        `told` is called after each step with the bytes that are copied, and those of all; what it raises ends the copy.
        """
        ((page_bytes,),) = self.fetch("PRAGMA page_size")
        with self._explained(), contextlib.closing(sqlite3.connect(path, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous = OFF")  # whoever keeps the file syncs it
            self._connection.backup(
                copy,
                pages=COPY_PAGES,
                progress=lambda _, left, total: told((total - left) * page_bytes, total * page_bytes),
            )

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            outcome = _outcome_of(error, self._alias, writes=self._writes)
            if outcome is None:
                raise
            raise outcome from error


def _numbered(statement: str) -> str:
    return _PLACEHOLDER.sub(r"?\1", statement)


def _path(settings: Settings, alias: str, database: Database, *, writes: bool) -> str:
    """Return the path of the file, after checking that it leads over no link.

    The file is not opened: closing it would drop the locks that SQLite holds on it in this process (POSIX).
    """
    root_alias, _, rest = (database.sqlite or "").partition(":")
    root = settings.root(root_alias)
    subject = f"databases.{alias}"
    if writes and not root.allows("write"):
        raise wait_for_operator(subject, "alias-missing", f"roots.{root_alias} allows mode {root.mode!r} only, not 'write'")
    *parts, name = rest.split("/")
    try:
        with open_root(root_alias, root) as top, open_below(top, parts) as folder:
            if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return f"{root.path}/{rest}"
    except OSError as error:
        reason = error.strerror
    else:
        reason = "not a plain file"
    raise wait_for_operator(subject, "alias-missing", f"{database.sqlite}: {reason}")


def _outcome_of(error: sqlite3.Error, alias: str, *, writes: bool) -> Exception | None:
    """Return the outcome that the error calls for; None if it may pass. SQLite's texts are shown only where they hold no data."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # raised by Python: a text cannot be decoded, or the values do not fit the query
        if isinstance(error, sqlite3.OperationalError):
            return Dead(f"databases.{alias}: a text is not UTF-8", "bad-rows")
        return Dead(f"databases.{alias}: {error}", "bad-query")
    match code & 0xFF:  # the primary code; the upper bits only refine it
        case sqlite3.SQLITE_INTERRUPT:
            return Stopped()
        case sqlite3.SQLITE_TOOBIG:
            return Dead(f"databases.{alias}: a row is larger than `max_row_bytes`", "too-large")
        case sqlite3.SQLITE_FULL:
            return wait_for_operator(f"databases.{alias}", "out-of-space", str(error))
        case sqlite3.SQLITE_CONSTRAINT if writes:
            return BadRow(str(error))  # it names the constraint and its columns, no value
        case sqlite3.SQLITE_MISMATCH if writes:
            return BadRow("a value does not fit the type of its column")
        case sqlite3.SQLITE_ERROR | sqlite3.SQLITE_MISMATCH | sqlite3.SQLITE_RANGE:
            return Dead(f"databases.{alias}: {error}", "bad-query")
        case unusable if unusable in _UNUSABLE:
            return wait_for_operator(f"databases.{alias}", "alias-missing", str(error))
        case _:
            return None
