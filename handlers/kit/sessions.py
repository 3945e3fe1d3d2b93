"""What a session with a database is, whatever the database: the same verbs, and the same outcomes for its errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, Literal, Protocol

import msgspec

STAGED: Final = "backend_jobs_staged"  # the name of the temporary table, which hides any other of that name
NUMBER: Final = "#"  # that of its first column, which no column that a payload names can have


class Rows(msgspec.Struct, frozen=True):
    """The names of the columns, and the rows, which can be iterated over once. `total` is how many the server expects."""

    columns: list[str]
    rows: Iterator[tuple[Any, ...]]
    total: int | None = None


class Session(Protocol):
    """One connection, for one thread. Placeholders are `$1`, `$2`, …; names in statements are quoted by the caller.

    Each method may raise:
        Dead: no such table or column, `bad-query`; a row is `too-large`; a text cannot be read, `bad-rows`.
        Snooze: an operator must act: `alias-missing`, `auth-failed`, `out-of-space`.
        BadRow: a session that writes was given values that the table refuses.
        TemporaryFailure, sqlite3.Error: a failure that may pass.
        Stopped: the job was cancelled.
    """

    dialect: Literal["sqlite", "postgresql"]

    def columns(self, table: str) -> dict[str, str]:
        """Return the columns of a table or view with their types; none if there is no such table."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """Begin, and commit at the end of the block. All reads of a session that does not write see one moment."""
        ...

    def savepoint(self) -> AbstractContextManager[None]:
        """Undo, where the block raises, what was done in it; the transaction goes on."""
        ...

    def execute(self, statement: str, values: Sequence[Any] = ()) -> int:
        """Run a statement and return how many rows it wrote."""
        ...

    def fetch(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows of a statement that has few."""
        ...

    def query(self, statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> AbstractContextManager[Rows]:
        """Yield the rows of a statement, which are read as they are iterated over; only within a transaction."""
        ...

    def stage(self, table: str, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
        """Fill the temporary table `STAGED` with rows: a number (column `NUMBER`), and a value for each of these columns.

        Only within a transaction, with which the table ends.
        """
        ...


def quoted(name: str) -> str:
    """Return a name as SQL takes it, whatever is in it."""
    return '"' + name.replace('"', '""') + '"'
