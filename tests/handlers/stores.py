"""The same table in SQLite and in PostgreSQL, for tests of jobs that write both."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.handlers.postgres import PgDatabase

CREATE = "CREATE TABLE t (id bigint PRIMARY KEY, a text, b double precision)"


class Store:
    """A database that the alias `shop` leads to, and what a test asks of it."""

    def __init__(self, folder: Path, postgres: PgDatabase | None) -> None:
        self.folder = folder
        self.postgres = postgres
        for name in ("in", "out", "db"):
            (folder / name).mkdir()
        if postgres is None:
            with closing(sqlite3.connect(self.path)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")

    @property
    def path(self) -> Path:
        return self.folder / "db" / "shop.db"

    def settings(self, shop: str = "tables = ['*'], writable = ['t']", out: str = "") -> str:
        """Return the text of the settings: files are in `in`, reports go to `out`."""
        place = f"url = '{self.postgres.url}', tls = 'off'" if self.postgres else "sqlite = 'db:shop.db'"
        return (
            f"roots.in = {{ path = '{self.folder / 'in'}' }}\n"
            f"roots.out = {{ path = '{self.folder / 'out'}', mode = 'write'{out} }}\n"
            f"roots.db = {{ path = '{self.folder / 'db'}', mode = 'write' }}\n"
            f"databases.shop = {{ {place}, queries = '{self.folder / 'db'}', {shop} }}\n"
        )

    def sql(self, text: str) -> list[list[str]]:
        """Run statements and return the rows of the last, as texts; a missing value is `NULL`."""
        if self.postgres:
            return self.postgres.sql(text)
        with closing(sqlite3.connect(self.path)) as connection:
            *first, last = [part for part in text.split(";") if part.strip()]
            for part in first:
                connection.execute(part)
            rows = connection.execute(last).fetchall()
            connection.commit()
        return [[_text(value) for value in row] for row in rows]

    def rows(self, columns: str = "*", order: str = "id") -> list[list[str]]:
        return self.sql(f"SELECT {columns} FROM t ORDER BY {order}")

    def write(self, content: str | bytes, name: str = "t.csv") -> None:
        """Write the file to import."""
        (self.folder / "in" / name).write_bytes(content.encode() if isinstance(content, str) else content)


def _text(value: Any) -> str:
    return "NULL" if value is None else str(value)
