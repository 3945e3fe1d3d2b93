"""Databases by their aliases: a session with one, and the rows of a table or of a named query as they are at one moment."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final, cast

from handlers.contracts.sources import MAX_INTEGER, Condition, Query, Source, Table
from handlers.kit.failures import missing_package, wait_for_operator
from handlers.kit.sections import Database
from handlers.kit.sessions import Rows, Session, quoted
from handlers.kit.settings import Settings
from handlers.kit.sqlite import SqliteSession
from handlers.kit.threads import Stop
from runtime import Dead

MAX_QUERY_BYTES: Final = 64 * 1024  # a guess: far above what a person writes

_COMPARISONS: Final = {"eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_DECLARATION: Final = re.compile(
    r"^--[ \t]*:([A-Za-z_][A-Za-z0-9_]*)[ \t]+(text|integer|real|boolean|date|timestamp)[ \t]*$", re.MULTILINE
)
_TYPES: Final[dict[str, tuple[type, ...]]] = {"text": (str,), "integer": (int,), "real": (int, float), "boolean": (bool,)}


@contextlib.contextmanager
def opened(settings: Settings, alias: str, stop: Stop, *, writes: bool = False) -> Generator[Session]:
    """Yield a session with a database; with `writes` it may change what the server or the file lets it.

    Which tables a payload may read or write is for the caller to check, by `Database.allows`.

    Raises:
        Dead, Snooze, TemporaryFailure, sqlite3.Error, Stopped: as for each method of a `Session`.
    """
    database = settings.database(alias)
    session = (
        _postgres(alias, database, stop, writes=writes)
        if database.sqlite is None
        else SqliteSession(settings, alias, database, stop, writes=writes)
    )
    try:
        yield session
    finally:
        session.close()


def _postgres(alias: str, database: Database, stop: Stop, *, writes: bool) -> Any:
    try:
        from handlers.kit.postgres import PostgresSession
    except ImportError:
        raise missing_package("asyncpg") from None
    return PostgresSession(alias, database, stop, writes=writes)


@contextlib.contextmanager
def snapshot(settings: Settings, source: Source, stop: Stop) -> Generator[Rows]:
    """Yield the rows that the source has at this moment; what is written meanwhile is not among them.

    Raises:
        Dead: no such table or column, or the values do not fit the query, `bad-query`; a row is `too-large`; a text is not UTF-8,
            `bad-rows`.
        Snooze: the alias, its file or that of the query is missing or unusable, `alias-missing`; a sort ran `out-of-space`.
        TemporaryFailure, sqlite3.Error: a failure that may pass: the database is locked, the disk or the server does not answer.
        Stopped: the job was cancelled.
    """
    database = settings.database(source.db)
    with opened(settings, source.db, stop) as session, session.transaction(), rows_of(session, source, database) as rows:
        yield rows


@contextlib.contextmanager
def rows_of(session: Session, source: Source, database: Database) -> Generator[Rows]:
    """Yield the rows of one source within a transaction: several sources in one see the same moment.

    Raises:
        Dead, Snooze, TemporaryFailure, sqlite3.Error, Stopped: as for `snapshot`.
    """
    if isinstance(source, Table):
        statement, values = _statement(session, source, database)
    else:
        statement, values = _named_query(source, database)
    with session.query(statement, values) as rows:
        yield rows


# --- a table -------------------------------------------------------------------------------------------------------------


def _statement(session: Session, source: Table, database: Database) -> tuple[str, Sequence[Any]]:
    """Return the statement, with quoted names that exist in the catalogue, and the values to bind.

    SQLite reads a quoted name that it does not find as a text, so each is looked up.
    """
    if not database.allows(source.table):
        raise Dead(f"databases.{source.db} does not allow reading {source.table}; hint: `tables` in its settings", "bad-query")
    known = session.columns(source.table)
    if not known:
        raise Dead(f"databases.{source.db}: no table {source.table}", "bad-query")
    named = [*source.columns, *(each.column for each in source.where), *(each.column for each in source.order_by)]
    for name in named:
        if name not in known:
            raise Dead(f"databases.{source.db}: no column {name} in {source.table}", "bad-query")
    text = f"SELECT {', '.join(map(quoted, source.columns))} FROM {quoted(source.table)}"  # noqa: S608 -- quoted and known
    values: list[Any] = []
    if source.where:
        write = _postgres_condition if session.dialect == "postgresql" else _sqlite_condition
        text += f" WHERE {' AND '.join(write(each, known[each.column], values) for each in source.where)}"
    if source.order_by:
        text += f" ORDER BY {', '.join(quoted(each.column) + ' DESC' * each.descending for each in source.order_by)}"
    return text, values


def _sqlite_condition(condition: Condition, _: str, values: list[Any]) -> str:
    """Return the SQL of a condition, and add its values to those to bind."""
    column, first = quoted(condition.column), len(values) + 1
    values += condition.values
    match condition.op:
        case "in":
            return f"{column} IN ({', '.join(f'${n}' for n in range(first, len(values) + 1))})"
        case "is_null":
            del values[first - 1 :]
            return f"{column} IS {'NOT ' * (condition.value is False)}NULL"
        case "like_prefix":  # LIKE ignores case
            return f"substr({column}, 1, length(${first})) = ${first}"
        case comparison:
            return f"{column} {_COMPARISONS[comparison]} ${first}"


def _postgres_condition(condition: Condition, kind: str, values: list[Any]) -> str:
    """Return the SQL of a condition, and add its values, as texts: the server makes of each what its column holds."""
    column, number = quoted(condition.column), len(values) + 1
    texts = [str(value).lower() if isinstance(value, bool) else str(value) for value in condition.values]
    match condition.op:
        case "in":
            values.append(texts)
            return f"{column} = ANY(${number}::text[]::{kind}[])"
        case "is_null":
            return f"{column} IS {'NOT ' * (condition.value is False)}NULL"
        case "like_prefix":
            values += texts
            return f"starts_with({column}::text, ${number}::text)"
        case comparison:
            values += texts
            return f"{column} {_COMPARISONS[comparison]} ${number}::text::{kind}"


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
    _check_declarations(subject, path, text)
    declared = cast("dict[str, str]", dict(_DECLARATION.findall(text)))
    if declared.keys() != source.params.keys():
        wanted = ", ".join(f"{name} ({kind})" for name, kind in declared.items()) or "none"
        raise Dead(f"{subject}: the parameters of {source.query} must be: {wanted}", "bad-query")
    for name, kind in declared.items():
        if not _fits(source.params[name], kind):
            raise Dead(f"{subject}: {source.query}: `{name}` must be of type {kind}", "bad-query")
    return text, source.params


def _check_declarations(subject: str, path: Path, text: str) -> None:
    """Return if each line that looks like a declaration is one.

    Raises:
        Snooze: one is not; `alias-missing`.
    """
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("--") and line[2:].lstrip().startswith(":") and not _DECLARATION.match(line):
            wanted = "must be `-- :name KIND` and nothing else, of text, integer, real, boolean, date or timestamp"
            raise wait_for_operator(subject, "alias-missing", f"{path}:{number}: {wanted}")


def _fits(value: Any, kind: str) -> bool:
    if kind in ("date", "timestamp"):
        return isinstance(value, str) and _is_time(value, date if kind == "date" else datetime)
    if isinstance(value, bool) and kind != "boolean":
        return False
    return isinstance(value, _TYPES[kind]) and not (isinstance(value, int) and abs(value) > MAX_INTEGER)


def _is_time(text: str, kind: type[date]) -> bool:
    with contextlib.suppress(ValueError):
        kind.fromisoformat(text)
        return True
    return False
