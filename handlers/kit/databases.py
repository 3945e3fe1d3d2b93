"""Reading databases: the rows of a table or of a named query, as they are at one moment.

SQLite through the standard library: the reader runs in a thread of ours, and an asynchronous driver would only pass each batch on
from a thread of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import stat
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote

import msgspec

from handlers.contracts.sources import MAX_INTEGER, Condition, Query, Source, Table
from handlers.kit.failures import wait_for_operator
from handlers.kit.files import open_below, open_root
from handlers.kit.sections import Database
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop, Stopped
from runtime import Dead

BUSY_TIMEOUT_S: Final = 5.0  # that of Python's sqlite3
MAX_QUERY_BYTES: Final = 64 * 1024  # a guess: far above what a person writes
STOP_EVERY_STEPS: Final = 100_000  # of SQLite's virtual machine, about 1 ms: a sort returns no row for a long time

_COMPARISONS: Final = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_DECLARATION: Final = re.compile(r"^--[ \t]*:([A-Za-z_][A-Za-z0-9_]*)[ \t]+(text|integer|real|boolean)[ \t]*$", re.MULTILINE)
_TYPES: Final[dict[str, tuple[type, ...]]] = {"text": (str,), "integer": (int,), "real": (int, float), "boolean": (bool,)}
_UNUSABLE: Final = frozenset(
    {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY}
)


class Rows(msgspec.Struct, frozen=True):
    """The names of the columns, and the rows, which can be iterated over once."""

    columns: list[str]
    rows: Iterator[tuple[Any, ...]]


@contextlib.contextmanager
def snapshot(settings: Settings, source: Source, stop: Stop) -> Generator[Rows]:
    """Yield the rows that the source has at this moment; what is written meanwhile is not among them.

    Raises:
        Dead: no such table or column, or the values do not fit the query, `bad-query`; a row is `too-large`; a text is not UTF-8,
            `bad-rows`.
        Snooze: the alias, its file or that of the query is missing or unusable, `alias-missing`; a sort ran `out-of-space`.
        sqlite3.Error: a failure that may pass: the database is locked, the disk does not answer.
        Stopped: the job was cancelled.
    """
    database = settings.database(source.db)
    connection = _open(settings, source.db, database)
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, database.max_row_bytes)
        connection.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)  # ATTACH would create a file, even in a read-only connection
        connection.set_progress_handler(lambda: stop.is_set, STOP_EVERY_STEPS)
        connection.execute("BEGIN")  # so that the catalogue and the rows are of one moment
        is_table = isinstance(source, Table)
        statement, values = _statement(connection, source, database) if is_table else _named_query(source, database)
        # An open cursor would keep its lock on the file after the connection is closed.
        with contextlib.closing(connection.execute(statement, values)) as cursor:
            if not cursor.description:
                raise Dead(f"databases.{source.db}: the query returns no columns", "bad-query")
            yield Rows([str(column[0]) for column in cursor.description], cursor)
    except sqlite3.Error as error:
        outcome = _outcome_of(error, source.db)
        if outcome is None:
            raise
        raise outcome from error
    finally:
        connection.close()


def _open(settings: Settings, alias: str, database: Database) -> sqlite3.Connection:
    path = _path(settings, alias, database)
    try:
        return sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    except sqlite3.Error as error:
        raise _outcome_of(error, alias) or error from None


def _path(settings: Settings, alias: str, database: Database) -> str:
    """Return the path of the file, after checking that it leads over no link.

    The file is not opened: closing it would drop the locks that SQLite holds on it in this process (POSIX).
    """
    if database.sqlite is None:
        raise wait_for_operator(f"databases.{alias}", "alias-missing", "not a SQLite database")
    root_alias, _, rest = database.sqlite.partition(":")
    root = settings.root(root_alias)
    *parts, name = rest.split("/")
    try:
        with open_root(root_alias, root) as top, open_below(top, parts) as folder:
            if stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                return f"{root.path}/{rest}"
    except OSError as error:
        reason = error.strerror
    else:
        reason = "not a plain file"
    raise wait_for_operator(f"databases.{alias}", "alias-missing", f"{database.sqlite}: {reason}")


def _outcome_of(error: sqlite3.Error, alias: str) -> Exception | None:
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
        case sqlite3.SQLITE_ERROR | sqlite3.SQLITE_MISMATCH | sqlite3.SQLITE_RANGE:
            return Dead(f"databases.{alias}: {error}", "bad-query")
        case unusable if unusable in _UNUSABLE:
            return wait_for_operator(f"databases.{alias}", "alias-missing", str(error))
        case _:
            return None


# --- a table -------------------------------------------------------------------------------------------------------------


def _statement(connection: sqlite3.Connection, source: Table, database: Database) -> tuple[str, list[Any]]:
    """Return the statement, with quoted names that exist in the catalogue, and the values to bind.

    SQLite reads a quoted name that it does not find as a text, so each is looked up.
    """
    if not database.allows(source.table):
        raise Dead(f"databases.{source.db} does not allow reading {source.table}; hint: `tables` in its settings", "bad-query")
    known = _columns(connection, source)
    named = [*source.columns, *(each.column for each in source.where), *(each.column for each in source.order_by)]
    for name in named:
        if name not in known:
            raise Dead(f"databases.{source.db}: no column {name} in {source.table}", "bad-query")
    text = f"SELECT {', '.join(map(_quoted, source.columns))} FROM {_quoted(source.table)}"  # noqa: S608 -- quoted and known
    values: list[Any] = []
    if source.where:
        conditions = [_condition(each) for each in source.where]
        text += f" WHERE {' AND '.join(each for each, _ in conditions)}"
        values = [value for _, bound in conditions for value in bound]
    if source.order_by:
        text += f" ORDER BY {', '.join(_quoted(each.column) + ' DESC' * each.descending for each in source.order_by)}"
    return text, values


def _columns(connection: sqlite3.Connection, source: Table) -> set[str]:
    found = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name = ? AND name NOT LIKE 'sqlite!_%' ESCAPE '!'",
        (source.table,),
    )
    if found.fetchone() is None:
        raise Dead(f"databases.{source.db}: no table {source.table}", "bad-query")
    return {name for (name,) in connection.execute("SELECT name FROM pragma_table_xinfo(?)", (source.table,))}


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _condition(condition: Condition) -> tuple[str, list[Any]]:
    """Return the SQL of a condition with its placeholders, and their values."""
    column, values = _quoted(condition.column), condition.values
    match condition.op:
        case "in":
            return f"{column} IN ({', '.join('?' * len(values))})", values
        case "is_null":
            return f"{column} IS {'NOT ' * (condition.value is False)}NULL", []
        case "like_prefix":  # LIKE ignores case
            return f"substr({column}, 1, length(?)) = ?", values * 2
        case comparison:
            return f"{column} {_COMPARISONS[comparison]} ?", values


# --- a named query --------------------------------------------------------------------------------------------


def _named_query(source: Query, database: Database) -> tuple[str, Mapping[str, Any]]:
    """Return the SQL of the query, and the values for the parameters that it declares, one a line: `-- :since text`."""
    subject = f"databases.{source.db}"
    path = Path(database.queries, f"{source.query}.sql")
    if not database.queries:
        raise wait_for_operator(subject, "alias-missing", "has no folder of `queries`")
    try:
        with path.open("rb") as file:
            text = file.read(MAX_QUERY_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise wait_for_operator(subject, "alias-missing", f"{path}: {reason}") from None
    if len(text.encode()) > MAX_QUERY_BYTES:
        raise wait_for_operator(subject, "alias-missing", f"{path}: must have at most {MAX_QUERY_BYTES} bytes")
    declared = cast("dict[str, str]", dict(_DECLARATION.findall(text)))
    if declared.keys() != source.params.keys():
        wanted = ", ".join(f"{name} ({kind})" for name, kind in declared.items()) or "none"
        raise Dead(f"{subject}: the parameters of {source.query} must be: {wanted}", "bad-query")
    for name, kind in declared.items():
        if not _fits(source.params[name], kind):
            raise Dead(f"{subject}: {source.query}: `{name}` must be of type {kind}", "bad-query")
    return text, source.params


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, int) and abs(value) > MAX_INTEGER)
