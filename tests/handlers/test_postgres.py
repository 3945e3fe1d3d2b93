"""The tests' own PostgreSQL: empty for each test, and only what a test says of it."""

from __future__ import annotations

import os

import pytest

from tests.handlers.postgres import PgDatabase


@pytest.mark.parametrize("_", [1, 2])
def test_a_database_is_empty_and_keeps_what_it_is_told(postgres: PgDatabase, _: int) -> None:
    assert postgres.sql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == [["0"]]
    assert postgres.sql("CREATE TABLE t (a int, b text); INSERT INTO t VALUES (1, 'ü,\n'), (2, NULL); SELECT * FROM t") == [
        ["1", "ü,\n"],
        ["2", "NULL"],
    ]
    with pytest.raises(AssertionError, match="division by zero"):
        postgres.sql("SELECT 1/0")
    assert "INSERT INTO t VALUES" in postgres.server.log()


def test_nobody_else_can_reach_the_server(postgres: PgDatabase) -> None:
    assert postgres.server.folder.stat().st_mode & 0o777 == 0o700
    assert postgres.sql("SELECT inet_server_addr()") == [["NULL"]]
    assert os.stat(f"/proc/{postgres.server.process.pid}").st_uid != 0
