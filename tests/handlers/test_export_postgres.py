"""export-csv from PostgreSQL: what is in the file, that it is of one moment, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import csv
import errno
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import zstandard

from handlers.contracts.data import ExportCsv, Exported
from handlers.contracts.sources import Condition, Order, Query, Table
from handlers.data import export_csv
from handlers.kit.failures import TemporaryFailure
from handlers.kit.files import Writer
from runtime import Dead, Snooze
from runtime.jobs import Job
from tests.handlers.conftest import Configure
from tests.handlers.disks import child, job_of, outcome, state, until
from tests.handlers.postgres import PgDatabase
from tests.handlers.stores import Store

ENDLESS = "SELECT generate_series(1, 1000000000) AS n, 'x' AS x"
COMPUTES = "SELECT count(*) FROM generate_series(1, 1000000) a, generate_series(1, 1000000) b"


@pytest.fixture
def store(tmp_path: Path, postgres: PgDatabase, configure: Configure) -> Store:
    store = Store(tmp_path, postgres)
    configure(store.settings())
    return store


def export(*columns: str, to: str = "out:t.csv", **fields: Any) -> ExportCsv:
    return ExportCsv(**{"source": Table(db="shop", table="t", columns=list(columns)), "to": to, **fields})


def query(to: str = "out:t.csv", **fields: Any) -> ExportCsv:
    return ExportCsv(source=Query(db="shop", query="q", params=fields.pop("params", {})), to=to, **fields)


def name_query(store: Store, text: str) -> None:
    (store.folder / "db" / "q.sql").write_text(text)


async def run(message: ExportCsv, job: Job | None = None) -> Exported:
    result = await cast("Awaitable[object]", export_csv(message, job or job_of(message)))
    assert isinstance(result, Exported)
    return result


async def rows_of(store: Store, message: ExportCsv) -> list[list[str]]:
    await run(message)
    with (store.folder / message.to.replace(":", "/")).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def names(store: Store) -> list[str]:
    return sorted(path.name for path in (store.folder / "out").iterdir())


# --- what is in the file ---------------------------------------------------------------------------------------------------

VALUES = {
    "smallint": ("-1", "-1"),
    "bigint": ("9007199254740993", "9007199254740993"),
    "numeric": ("-12345678901234567890.50", "-12345678901234567890.50"),
    "double precision": ("0.1", "0.1"),
    "boolean": ("true", "true"),
    "text": ("'=1+1'", "'=1+1"),
    "varchar(3)": ("'ü'", "ü"),
    "date": ("'0044-03-15 BC'", "0044-03-15 BC"),
    "timestamptz": ("'2024-01-31 12:00+01'", "2024-01-31 11:00:00+00"),
    "timestamp": ("'infinity'", "infinity"),
    "interval": ("'-1 day'", "'-1 days"),
    "time": ("'12:30'", "12:30:00"),
    "uuid": ("'0194a5c0-7c5b-7000-8000-0123456789ab'", "0194a5c0-7c5b-7000-8000-0123456789ab"),
    "jsonb": ("""'{"a": [1.50]}'""", '{"a": [1.50]}'),
    "bytea": ("'\\x00ff'", "\\x00ff"),
    "inet": ("'10.0.0.1/8'", "10.0.0.1/8"),
    "integer[]": ("'{1,NULL,3}'", "[1,null,3]"),
    "text[]": ("""'{"a,b"}'""", '["a,b"]'),
    "mood": ("'ok'", "ok"),
}


async def test_every_type_becomes_a_text(store: Store) -> None:
    columns = ", ".join(f"c{n} {kind}" for n, kind in enumerate(VALUES))
    store.sql("ALTER DATABASE " + (store.postgres.name if store.postgres else "") + " SET timezone = 'UTC'")
    store.sql(
        f"CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE t (id int, {columns});"
        f"INSERT INTO t VALUES (1, {', '.join(value for value, _ in VALUES.values())}); INSERT INTO t VALUES (2)"
    )
    found = await rows_of(store, export(*(f"c{n}" for n in range(len(VALUES)))))
    assert found[1:] == [[text for _, text in VALUES.values()], [""] * len(VALUES)]


async def test_the_server_reads_back_what_was_there(store: Store) -> None:
    store.sql(
        "CREATE TABLE t (id int, a text, b numeric);"
        "INSERT INTO t SELECT n, CASE n % 5 WHEN 0 THEN NULL WHEN 1 THEN E'a,\"b\"\\r\\n\\tü' ELSE '' END || n, n / 7.0"
        " FROM generate_series(1, 5000) n"
    )
    await run(export("id", "a", "b", null="\\N"))
    store.sql("CREATE TABLE back (LIKE t)")
    content = (store.folder / "out" / "t.csv").read_bytes().decode()
    assert store.postgres
    store.postgres.server.copy(store.postgres.name, "back", content)
    assert store.sql("SELECT count(*) FROM (TABLE t EXCEPT ALL TABLE back) d") == [["0"]]
    assert store.sql("SELECT count(*) FROM back") == [["5000"]]


async def test_zstd_holds_the_same_and_equal_rows_make_equal_bytes(store: Store) -> None:
    store.sql("CREATE TABLE t AS SELECT n AS id, md5(n::text) AS a FROM generate_series(1, 20000) n")
    plain = await run(export("id", "a", to="out:p.csv"))
    packed = await run(export("id", "a", to="out:z.csv.zst", compress="zstd"))
    again = await run(export("id", "a", to="out:y.csv.zst", compress="zstd"))
    content = (store.folder / "out" / "z.csv.zst").read_bytes()
    with zstandard.ZstdDecompressor().stream_reader(content, read_across_frames=True) as reader:
        assert reader.read() == (store.folder / "out" / "p.csv").read_bytes()
    assert packed.sha256 == again.sha256 != plain.sha256
    assert (packed.bytes, packed.rows) == (len(content), 20_000)


@pytest.mark.parametrize(
    ("column", "op", "value", "expected"),
    [
        ("x", "eq", "b", ["2"]),
        ("x", "ne", "b", ["1", "3"]),
        ("x", "in", ["a", "b"], ["1", "2"]),
        ("x", "is_null", None, ["4"]),
        ("x", "is_null", False, ["1", "2", "3"]),
        ("x", "like_prefix", "b", ["2", "3"]),
        ("x", "like_prefix", "%", []),
        ("x", "eq", "b' OR '1'='1", []),
        ("n", "ge", 3, ["3", "4"]),
        ("n", "in", [1, 4], ["1", "4"]),
        ("d", "lt", "2024-01-03", ["1", "2"]),
        ("d", "eq", "2024-01-03", ["3"]),
        ("o", "eq", True, ["1", "3"]),
        ("f", "gt", 2.5, ["3", "4"]),
    ],
)
async def test_conditions_choose_rows(store: Store, column: str, op: Any, value: Any, expected: list[str]) -> None:
    store.sql(
        "CREATE TABLE t (n int, x text, d date, o boolean, f real); INSERT INTO t SELECT n, (ARRAY['a', 'b', 'b%', NULL])[n],"
        " date '2024-01-01' + n - 1, n % 2 = 1, n FROM generate_series(1, 4) n"
    )
    where = [Condition(column=column, op=op, value=value)]
    source = Table(db="shop", table="t", columns=["n"], where=where, order_by=[Order(column="n")])
    found = await rows_of(store, ExportCsv(source=source, to="out:t.csv"))
    assert [row[0] for row in found[1:]] == expected


async def test_a_query_of_the_operator_takes_parameters(store: Store) -> None:
    store.sql("CREATE TABLE t AS SELECT n, date '2024-01-01' + n AS day FROM generate_series(1, 9) n")
    name_query(
        store, "-- :since date\n-- :least integer\nSELECT n, ':least' AS text FROM t WHERE day >= :since::date AND n > :least"
    )
    message = query(params={"since": "2024-01-05", "least": 7})
    assert await rows_of(store, message) == [["n", "text"], ["8", ":least"], ["9", ":least"]]
    with pytest.raises(Dead) as caught:
        await run(query(to="out:u.csv", params={"since": "yesterday", "least": 7}))
    assert caught.value.code == "bad-query"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("DELETE FROM t RETURNING n", "must only read"),
        ("WITH gone AS (DELETE FROM t RETURNING n) SELECT * FROM gone", "must only read|only"),
        ("SELECT nextval('s')", "must only read"),
        ("SELECT n FROM nowhere", "nowhere"),
        ("SELECT nothing FROM t", "nothing"),
        ("SELEC n", "syntax error"),
        ("SELECT 1/(n - n) FROM t", "22012"),
        ("SELECT n; SELECT n", "multiple commands|cannot insert|syntax|does not exist"),
        ("SET ROLE postgres", "no columns"),
    ],
)
async def test_a_query_that_writes_or_cannot_run_is_dead(store: Store, text: str, said: str) -> None:
    store.sql("CREATE TABLE t AS SELECT 1 AS n; CREATE SEQUENCE s")
    name_query(store, text)
    with pytest.raises(Dead, match=said) as caught:
        await run(query())
    assert caught.value.code == "bad-query"
    assert store.rows(order="n") == [["1"]]
    assert names(store) == []


async def test_a_statement_without_a_plan_is_exported_too(store: Store) -> None:
    name_query(store, "SHOW server_encoding")
    assert await rows_of(store, query()) == [["server_encoding"], ["UTF8"]]


async def test_only_tables_that_the_settings_name_are_read(store: Store, configure: Configure) -> None:
    store.sql("CREATE TABLE t AS SELECT 1 AS n; CREATE TABLE secrets AS SELECT 2 AS n")
    configure(store.settings("tables = ['t', 'pg_authid']"))
    assert (await run(export("n"))).rows == 1
    for table in ("secrets", "pg_authid", "nowhere"):
        with pytest.raises(Dead, match=table) as caught:
            await run(ExportCsv(source=Table(db="shop", table=table, columns=["n"]), to="out:u.csv"))
        assert caught.value.code == "bad-query"
    with pytest.raises(Dead, match="no column"):
        await run(export("ctid", to="out:u.csv"))


async def test_rows_are_of_one_moment_whatever_is_written_meanwhile(store: Store) -> None:
    store.sql("CREATE TABLE t AS SELECT n, repeat('before', 20) AS b FROM generate_series(1, 50000) n")
    message = export("n", "b")
    job = job_of(message)
    task = asyncio.create_task(run(message, job))
    await asyncio.to_thread(until, lambda: job.noted().said.progress is not None)
    await asyncio.to_thread(store.sql, "UPDATE t SET b = 'after'; INSERT INTO t VALUES (-1, 'after')")
    assert not task.done(), "the writer came too late to prove anything"
    assert (await task).rows == 50_000
    assert b"after" not in (store.folder / "out" / "t.csv").read_bytes()


async def test_progress_is_told_of_what_the_planner_expects(store: Store) -> None:
    store.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 5000) n; ANALYZE t")
    message = export("n")
    job = job_of(message)
    await run(message, job)
    progress = job.noted().said.progress
    assert progress is not None
    assert (progress.done, progress.total) == (5000, 5000)


async def test_an_export_has_limits(store: Store, configure: Configure) -> None:
    store.sql("CREATE TABLE t AS SELECT repeat('x', 1000) AS a FROM generate_series(1, 100)")
    configure(store.settings("tables = ['*'], max_row_bytes = 2000", out=", max_bytes = '64KiB'"))
    for message, said in [(export("a", max_rows=50), "more than 50 rows"), (export("a"), "at most 65536 bytes")]:
        with pytest.raises(Dead, match=said) as caught:
            await run(message)
        assert caught.value.code == "too-large"
    store.sql("INSERT INTO t VALUES (repeat('x', 3000))")
    configure(store.settings("tables = ['*'], max_row_bytes = 2000"))
    with pytest.raises(Dead, match="max_row_bytes"):
        await run(export("a"))
    assert names(store) == []


# --- faults, cancel, kill ----------------------------------------------------------------------------------------------------


async def test_a_fault_of_the_settings_makes_the_job_wait(
    store: Store, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sql(
        "CREATE TABLE t AS SELECT 1 AS n; CREATE TABLE other AS SELECT 1 AS n; DROP ROLE IF EXISTS poor; CREATE ROLE poor LOGIN"
    )
    assert store.postgres
    text, url = store.settings(), store.postgres.url
    monkeypatch.setenv("WRONG", "wrong")
    locked = store.postgres.url_of("locked")
    for new, said in [
        (f"{locked}', password = 'env:WRONG", "auth-failed: databases.shop: password authentication failed"),
        (f"{locked}', password = 'env:NONE", "auth-failed: databases.shop: password: variable NONE"),
        (store.postgres.url_of("nobody"), "auth-failed: databases.shop"),
        (store.postgres.url_of("poor"), "alias-missing: databases.shop: permission denied for table t"),
        (url.replace(store.postgres.name, "nowhere"), "alias-missing: databases.shop"),
    ]:
        configure(text.replace(url, new))
        with pytest.raises(Snooze, match=said):
            await run(export("n"))
    configure(text.replace(str(store.postgres.server.folder), str(store.folder)))
    with pytest.raises(TemporaryFailure, match="connection-lost: databases.shop"):
        await run(export("n"))
    assert names(store) == []


def test_without_asyncpg_the_job_waits_and_is_told_what_to_install(store: Store) -> None:
    store.sql("CREATE TABLE t AS SELECT 1 AS n")
    said = outcome(child(store, export("n"), without="asyncpg"))
    assert said == "Snooze: extra-missing: asyncpg: not installed; hint: pip install asyncpg"


async def test_a_password_reaches_the_server_and_nothing_else(store: Store, configure: Configure) -> None:
    store.sql("CREATE TABLE t AS SELECT 1 AS n; GRANT SELECT ON t TO locked")
    assert store.postgres
    secret = store.folder / "secret"
    secret.write_text("secret\n")
    text = store.settings().replace(store.postgres.url, f"{store.postgres.url_of('locked')}', password = 'file:{secret}")
    configure(text)
    assert (await run(export("n"))).rows == 1


def statements(store: Store) -> list[list[str]]:
    return store.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'backend-jobs' AND state <> 'idle'")


def is_computing(store: Store) -> bool:
    """Return whether a statement has run for a while: it is not one of those before it."""
    text = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT count%' AND state = 'active'"
    return bool(store.sql(f"{text} AND clock_timestamp() - query_start > interval '300 ms'"))


def is_writing(store: Store) -> bool:
    return any(path.stat().st_size for path in (store.folder / "out").iterdir())


async def test_a_full_disk_of_ours_is_not_a_lost_connection(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(part: Writer, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store.sql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)")
    monkeypatch.setattr(Writer, "write", write)
    with pytest.raises(Snooze, match=r"out-of-space: roots\.out"):
        await run(export("id"))


@pytest.mark.parametrize(("text", "is_at_it"), [(ENDLESS, is_writing), (COMPUTES, is_computing)], ids=["rows", "none yet"])
async def test_a_job_that_is_cut_leaves_nothing_here_and_nothing_on_the_server(
    store: Store, text: str, is_at_it: Callable[[Store], bool]
) -> None:
    name_query(store, text)
    task = asyncio.create_task(run(query(max_rows=100_000_000)))
    await asyncio.to_thread(until, lambda: is_at_it(store))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(until, lambda: names(store) == [] and statements(store) == [])


async def test_a_connection_that_is_lost_is_tried_again(store: Store) -> None:
    name_query(store, ENDLESS)
    task = asyncio.create_task(run(query(max_rows=100_000_000)))
    await asyncio.to_thread(until, lambda: len(statements(store)) == 1)
    await asyncio.to_thread(
        store.sql, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backend-jobs'"
    )
    with pytest.raises(TemporaryFailure):
        await task
    assert names(store) == []


def test_a_kill_half_way_leaves_no_visible_file_and_no_statement(store: Store) -> None:
    name_query(store, ENDLESS)
    message = query(max_rows=100_000_000)
    process = child(store, message)
    until(lambda: any(path.stat().st_size > 100_000 for path in (store.folder / "out").iterdir()))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert names(store) == [f".t.csv.{job_of(message).work}.part"]
    until(lambda: statements(store) == [])


@pytest.mark.parametrize("name", ["export.before-publish", "export.after-publish"])
async def test_a_kill_at_a_point_is_made_good_by_the_next_run(store: Store, name: str) -> None:
    store.sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 5000) n")
    message = export("n", compress="zstd")
    process = child(store, message, point=name)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    found = await run(message)
    assert (found.rows, names(store)) == (5000, ["t.csv", "t.csv.job.json"])
    before = state(store.folder / "out")
    assert await run(message) == found
    assert state(store.folder / "out") == before
    assert msgspec.json.decode((store.folder / "out" / "t.csv.job.json").read_bytes())["sha256"] == found.sha256
