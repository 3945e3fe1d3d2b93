"""A session with a PostgreSQL database, by asyncpg.

Its caller runs in a thread of ours and reads and writes rows there, which would hold up the worker's loop; so each session has a
loop of its own, in that thread, which turns while a statement runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, TypeVar, cast

import asyncpg  # pyright: ignore[reportMissingTypeStubs]

from handlers.kit.failures import BadRow, TemporaryFailure, wait_for_operator
from handlers.kit.sections import Database
from handlers.kit.sessions import NUMBER, STAGED, Rows, quoted
from handlers.kit.threads import Stop, Stopped
from runtime import ConfigError, Dead

_connect_to = cast("Callable[..., Awaitable[Any]]", asyncpg.connect)  # pyright: ignore[reportUnknownMemberType]

CONNECT_S: Final = 10.0  # a guess: within a data centre a connection takes ms
LOCK_S: Final = 60  # a guess: who waits longer for another program gives its thread to others, and is retried
CLOSE_S: Final = 5.0  # a guess: to cancel a statement and say goodbye
STOP_EVERY_S: Final = 0.1  # how often a wait looks at the stop
ALIVE_S: Final = 10  # how often the server looks, during a statement, whether we are still there
BATCH_ROWS: Final = 2_000  # of a cursor: more at a time are not faster (measured, with rows of seven columns)
BATCH_BYTES: Final = 4 * 2**20  # a guess: of large rows fewer are fetched at a time, so that memory is bounded
FIRST_ROWS: Final = 50  # how large the rows are is known only once some were read

# What a lost connection raises; the last one where it was lost between two statements, while the loop did not turn.
_LOST: Final = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError)
# asyncpg makes objects of these, and refuses what Python's types cannot hold, as the year 0 and infinity: their text is wanted.
_AS_TEXT: Final = (
    *("timestamp", "timestamptz", "date", "time", "timetz", "interval", "inet", "cidr", "macaddr", "macaddr8", "bit", "varbit"),
    *("point", "line", "lseg", "box", "path", "polygon", "circle", "tid"),
)
_NAME: Final = re.compile(
    r"""(?P<skip>[eE]'(?:\\.|[^'\\])*'|'[^']*'|"[^"]*"|--[^\n]*|/\*.*?\*/|\$(?P<tag>[A-Za-z_0-9]*)\$.*?\$(?P=tag)\$|::)"""
    r"|:(?P<name>[A-Za-z_][A-Za-z0-9_]*)",
    re.DOTALL,
)


T = TypeVar("T")


class PostgresSession:
    """Owns a connection and the loop that it needs. `sessions.Session` says what each method does."""

    dialect: Literal["sqlite", "postgresql"] = "postgresql"

    def __init__(self, alias: str, database: Database, stop: Stop, *, writes: bool) -> None:
        self._alias = alias
        self._writes = writes
        self._stop = stop
        self._max_row_bytes = database.max_row_bytes
        self._runner = asyncio.Runner()
        try:
            with self._explained():
                self._connection = self._wait(lambda: _connect(alias, database, writes=writes))
        except BaseException:
            self._runner.close()
            raise

    def close(self) -> None:
        """Close the connection; a statement that still runs is cancelled, and what is not committed is gone."""
        try:
            with contextlib.suppress(asyncpg.PostgresError, *_LOST):
                self._runner.run(self._connection.close(timeout=CLOSE_S))
        finally:
            self._connection.terminate()
            self._runner.close()

    def columns(self, table: str) -> dict[str, str]:
        """Return the columns of a table or view with their types; none if there is no such table."""
        found = self.fetch(
            "SELECT a.attname, format_type(a.atttypid, a.atttypmod) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid"
            " WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND a.attnum > 0 AND NOT a.attisdropped"
            " AND c.relnamespace NOT IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace) ORDER BY a.attnum",
            [quoted(table)],
        )
        return {str(name): str(kind) for name, kind in found}

    @contextlib.contextmanager
    def transaction(self) -> Generator[None]:
        """Begin, and commit at the end of the block."""
        options = {"isolation": "read_committed"} if self._writes else {"isolation": "repeatable_read", "readonly": True}
        with self._in(self._connection.transaction(**options)):
            yield

    @contextlib.contextmanager
    def savepoint(self) -> Generator[None]:
        """Undo, where the block raises, what was done in it; the transaction goes on."""
        with self._in(self._connection.transaction()):
            yield

    @contextlib.contextmanager
    def _in(self, transaction: Any) -> Generator[None]:
        with self._explained():
            self._wait(transaction.start)
        try:
            yield
        except BaseException:
            with contextlib.suppress(asyncpg.PostgresError, *_LOST, Stopped):
                self._wait(transaction.rollback)
            raise
        with self._explained():
            self._wait(transaction.commit)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it wrote."""
        with self._explained():
            status = str(self._wait(lambda: self._connection.execute(statement, *values)))
        count = status.rpartition(" ")[2]  # `INSERT 0 5`
        return int(count) if count.isdecimal() else 0

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a statement that has few."""
        with self._explained():
            return [tuple(row) for row in self._wait(lambda: self._connection.fetch(statement, *values))]

    @contextlib.contextmanager
    def query(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> Generator[Rows]:
        """Yield the rows of a statement, which are fetched by a cursor as they are iterated over."""
        text, bound = _positional(statement, values) if isinstance(values, Mapping) else (statement, values)
        with self._explained():
            prepared = self._wait(lambda: self._connection.prepare(text))
            names = [str(each.name) for each in prepared.get_attributes()]
            if not names:
                raise Dead(f"databases.{self._alias}: the query returns no columns", "bad-query")
            cursor = self._wait(lambda: prepared.cursor(*bound))
        yield Rows(names, self._rows(cursor), self._expected(prepared, bound))  # what the block raises is not of the database

    def _expected(self, prepared: Any, bound: Sequence[Any]) -> int | None:
        """Return how many rows the planner expects; None for a statement that has no plan."""
        with contextlib.suppress(Dead, TemporaryFailure), self.savepoint(), self._explained():
            return int(self._wait(lambda: prepared.explain(*bound))[0]["Plan"]["Plan Rows"])
        return None

    def _rows(self, cursor: Any) -> Iterator[tuple[Any, ...]]:
        count = FIRST_ROWS
        while True:
            with self._explained():
                found = self._wait(partial(cursor.fetch, count))
            if not found:
                return
            largest_bytes = 1
            for row in found:
                values = tuple(row)
                size_bytes = sum([len(value) for value in values if value.__class__ is str or value.__class__ is bytes])
                if size_bytes > largest_bytes:
                    if size_bytes > self._max_row_bytes:
                        raise Dead(f"databases.{self._alias}: a row is larger than `max_row_bytes`", "too-large")
                    largest_bytes = size_bytes
                yield values
            count = max(1, min(BATCH_ROWS, 2 * count, BATCH_BYTES // largest_bytes))

    def stage(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Fill the temporary table `staged`, by COPY."""
        names = ", ".join(map(quoted, columns))
        self.execute(f"DROP TABLE IF EXISTS pg_temp.{STAGED}")
        shape = f"SELECT 0::bigint AS {quoted(NUMBER)}, {names} FROM {quoted(table)} LIMIT 0"  # noqa: S608 -- quoted
        self.execute(f"CREATE TEMP TABLE {STAGED} ON COMMIT DROP AS {shape}")
        with self._explained():
            self._wait(lambda: self._connection.copy_records_to_table(STAGED, schema_name="pg_temp", records=rows))

    def _wait(self, start: Callable[[], Awaitable[T]]) -> T:
        return self._runner.run(self._until_stopped(start))

    async def _until_stopped(self, start: Callable[[], Awaitable[T]]) -> T:
        """Return what the work returns; told to stop, cancel it, which makes the server cancel its statement.

        Raises:
            Stopped: the job was cancelled.
        """
        self._stop.check()
        task = asyncio.ensure_future(_started(start))
        while not task.done():
            await asyncio.wait([task], timeout=STOP_EVERY_S)
            if self._stop.is_set and not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=CLOSE_S)
                raise Stopped
        return task.result()

    @contextlib.contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except (asyncpg.PostgresError, *_LOST, TypeError, OverflowError, ValueError) as error:
            raise _outcome_of(error, self._alias, writes=self._writes) or error from error


async def _started(start: Callable[[], Awaitable[T]]) -> T:
    return await start()


async def _connect(alias: str, database: Database, *, writes: bool) -> Any:
    """Return an open connection."""
    place = database.endpoint
    try:
        password = database.read_password()
    except ConfigError as error:
        raise wait_for_operator(f"databases.{alias}", "auth-failed", f"password: {error}") from error
    connection = await _connect_to(
        host=place.host,
        port=place.port,
        user=place.user,
        password=password,
        database=place.name,
        ssl=_tls(database),
        timeout=CONNECT_S,
        statement_cache_size=0,  # a pooler in front of the server may hand each transaction to another connection
        server_settings={"application_name": "backend-jobs"},
    )
    if connection.get_server_version() >= (14,):
        with contextlib.suppress(asyncpg.PostgresError):  # not on every system
            await connection.execute(f"SET client_connection_check_interval = '{ALIVE_S}s'")
    if writes:
        await connection.execute(f"SET lock_timeout = '{LOCK_S}s'")
    else:
        for name in _AS_TEXT:
            await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=str, format="text")
    return connection


def _tls(database: Database) -> ssl.SSLContext | bool | str:
    if database.tls == "off" or database.endpoint.host.startswith("/"):
        return False
    return ssl.create_default_context(cafile=database.ca_file or None) if database.tls == "verify" else "require"


def _positional(statement: str, values: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """Return the statement with `$1` in place of `:name`, but for texts and comments; and the values in that order."""
    order: dict[str, int] = {}

    def replace(found: re.Match[str]) -> str:
        name = found["name"]
        if name is None or name not in values:
            return found.group()
        return f"${order.setdefault(name, len(order) + 1)}"

    text = _NAME.sub(replace, statement)
    return text, [values[name] for name in order]


def _outcome_of(error: Exception, alias: str, *, writes: bool) -> Exception | None:
    """Return the outcome that the error calls for; None if it is none of ours.

    The server's texts are shown only of errors that are about names: others quote values.
    """
    subject = f"databases.{alias}"
    if isinstance(error, ssl.SSLError):
        return wait_for_operator(subject, "auth-failed", f"TLS: {error}")
    if not isinstance(error, asyncpg.PostgresError):
        if isinstance(error, _LOST):
            return TemporaryFailure(f"connection-lost: {subject}: {type(error).__name__}")
        # asyncpg cannot encode a value
        return BadRow("a value does not fit the type of its column") if writes else None
    code = str(getattr(error, "sqlstate", ""))
    said = str(error).partition("\n")[0]  # without its hints, which are of other lines
    match code[:2], code:
        case "28", _:
            return wait_for_operator(subject, "auth-failed", said)
        case _, "3D000" | "42501":
            return wait_for_operator(subject, "alias-missing", said)
        case _, "53100":
            return wait_for_operator(subject, "out-of-space", "the server's disk is full")
        case "22" | "23" | "21", _:
            text = f"the database refuses a value ({code} {type(error).__name__})"
            return BadRow(text) if writes else Dead(f"{subject}: {text}", "bad-query")
        case "42" | "0A", _:
            return Dead(f"{subject}: {said}", "bad-query")
        case _, "25006":
            return Dead(f"{subject}: the query writes, and must only read", "bad-query")
        case _:
            return TemporaryFailure(f"db-transient: {subject}: {code} {type(error).__name__}")
