"""export-csv: what is in the file, who may read and write what, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import shutil
import signal
import sqlite3
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handlers.contracts.data import ExportCsv, Exported
from handlers.contracts.sources import Condition, Order, Query, Table
from handlers.data import export_csv
from handlers.kit import sqlite, threads
from handlers.kit.tables import CsvText
from handlers.maintenance import cleanup_logs
from runtime import BadPayload, Dead, Priority, Snooze
from runtime.jobs import contract_of
from tests.builders import job
from tests.handlers.conftest import Configure
from tests.handlers.disks import ENDLESS, Disk, child, export, job_of, outcome, state, until
from tests.servers import Server
from tests.workers import working

SOURCE: dict[str, Any] = {"kind": "table", "db": "shop", "table": "t", "columns": ["a"]}
PAYLOAD: dict[str, Any] = {"source": SOURCE, "to": "out:t.csv"}

FORMULAS = [
    *(
        "=1+1",
        "=cmd|' /C calc'!A0",
        "+1",
        "-1",
        "-1+1",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "\n=1",
        "\uff1d1+1",
        "\uff0b1",
        "\uff0d1",
        "\uff20A1",
    ),
    *(
        '=HYPERLINK("http://x","y")',
        "=",
        "+",
        "-",
        "@",
        "\t",
        "\r\n",
        "\ufeff=1",
        '="a,b"',
        "-2;3",
        "@;=1",
        "=1\n=2",
        "+49 30 1234",
    ),
]
HARMLESS = ["", "a", " =1", "'=1", "1-1", "a=1", "a@b.org", '"=1"', "0", "1e5", "ü", "😀", "a\n=1", "x\t=1", "·", "\u2212" + "1"]


@pytest.fixture
def disk(tmp_path: Path, configure: Configure) -> Disk:
    disk = Disk(tmp_path)
    for folder in ("out", "db", "logs"):
        (tmp_path / folder).mkdir()
    configure(disk.settings())
    return disk


async def run(message: ExportCsv, number: int = 0) -> Exported:
    result = await cast("Awaitable[object]", export_csv(message, job_of(message, number)))
    assert isinstance(result, Exported)
    return result


async def rows_of(disk: Disk, message: ExportCsv, delimiter: str = ",", number: int = 0) -> list[list[str]]:
    """Export, and read the file as a reader elsewhere would."""
    await run(message, number)
    with (disk.folder / message.to.replace(":", "/")).open(newline="", encoding=message.encoding) as file:
        return list(csv.reader(file, delimiter=delimiter))


async def code_of(message: ExportCsv) -> str:
    """Return the code with which the job dies."""
    with pytest.raises(Dead) as caught:
        await run(message)
    return caught.value.code


def decode(payload: dict[str, Any]) -> ExportCsv:
    """Decode as the worker does."""
    return export_csv.decode(job("export-csv", data=msgspec.json.encode(payload)))


# --- what is in the file ---------------------------------------------------------------------------------------------------


async def test_a_table_becomes_a_file(disk: Disk) -> None:
    disk.table("a INTEGER, b TEXT, c REAL, d BLOB", [(1, "one", 0.1, b"\x00\xff"), (-2, 'say "hi", you\r\n', 1e300, None)])
    result = await run(export("a", "b", "c", "d"))
    content = (disk.out / "t.csv").read_bytes()
    assert content == b'a,b,c,d\r\n1,one,0.1,\\x00ff\r\n-2,"say ""hi"", you\r\n",1e+300,\r\n'
    expected = Exported(path="out:t.csv", rows=2, bytes=len(content), sha256=sha256(content).hexdigest(), columns=4, escaped=0)
    assert result == expected
    assert disk.names(disk.out) == ["t.csv", "t.csv.job.json"]
    assert len(msgspec.json.encode(result)) < 4096


@pytest.mark.parametrize(("delimiter", "character"), [(",", ","), (";", ";"), ("tab", "\t"), ("|", "|")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
async def test_a_reader_gets_back_what_was_there(disk: Disk, delimiter: Any, character: str, encoding: Any) -> None:
    texts = [
        "a,b;c\td|e",
        'q"q',
        '"',
        '""',
        "a\nb",
        "a\r\nb",
        "a\rb",
        " a ",
        "ü 😀 \u2028",
        "\x00",
        "\x1b[2J",
        "x" * 100_000,
        "'",
    ]
    disk.table("n INTEGER, a TEXT", list(enumerate(texts)))
    message = export("n", "a", delimiter=delimiter, encoding=encoding)
    assert await rows_of(disk, message, character) == [["n", "a"], *([str(n), text] for n, text in enumerate(texts))]
    assert (disk.out / "t.csv").read_bytes().startswith(b"\xef\xbb\xbf") == (encoding == "utf-8-sig")


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=3), max_size=5),
    delimiter=st.sampled_from(",;\t|"),
)
def test_any_text_comes_back(rows: list[list[str]], delimiter: str) -> None:
    text = CsvText(delimiter=delimiter, null="", formulas="keep", encoding="utf-8")
    content = b"".join(text.chunks(rows)).decode()
    assert list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter)) == rows
    escaping = CsvText(delimiter=delimiter, null="", formulas="escape", encoding="utf-8")
    content = b"".join(escaping.chunks(rows)).decode()
    back = list(csv.reader(io.StringIO(content, newline=""), delimiter=delimiter))
    assert [[cell.removeprefix("'") for cell in row] for row in back] == [
        [cell.removeprefix("'") for cell in row] for row in rows
    ]
    assert not any(cell.startswith(tuple("=+-@\t\r\n")) for row in back for cell in row)


async def test_headers_are_renamed_and_nulls_are_spelled(disk: Disk) -> None:
    disk.table("a TEXT, b INTEGER", [(None, None), ("", 0), ("x", 1)])
    message = export("a", "b", headers={"a": 'The "A"', "b": "B, b"}, null="\\N")
    assert await rows_of(disk, message) == [['The "A"', "B, b"], ["\\N", "\\N"], ["", "0"], ["x", "1"]]
    assert await code_of(export("a", to="out:u.csv", headers={"b": "B"})) == "bad-query"


async def test_a_single_column_of_nothing_still_has_its_rows(disk: Disk) -> None:
    disk.table("a TEXT", [(None,), ("",), (None,)])
    assert await rows_of(disk, export("a")) == [["a"], [""], [""], [""]]


async def test_an_empty_table_is_a_file_with_a_first_line(disk: Disk) -> None:
    disk.table("a TEXT, b TEXT", [])
    assert await rows_of(disk, export("a", "b")) == [["a", "b"]]


async def test_gzip_holds_the_same_and_no_time(disk: Disk) -> None:
    disk.table("a INTEGER", [(n,) for n in range(20_000)])
    plain = await run(export("a", to="out:p.csv"))
    packed = await run(export("a", to="out:g.csv.gz", compress="gzip"))
    again = await run(export("a", to="out:h.csv.gz", compress="gzip"))
    content = (disk.out / "g.csv.gz").read_bytes()
    assert gzip.decompress(content) == (disk.out / "p.csv").read_bytes()
    assert content[4:8] == bytes(4)
    assert packed.sha256 == again.sha256 == sha256(content).hexdigest() != plain.sha256
    assert (packed.bytes, packed.rows) == (len(content), 20_000)


# --- formulas ----------------------------------------------------------------------------------------------------------------


async def test_no_text_runs_in_a_spreadsheet(disk: Disk) -> None:
    disk.table("a TEXT", [(text,) for text in FORMULAS + HARMLESS])
    result = await run(export("a"))
    with (disk.out / "t.csv").open(newline="", encoding="utf-8") as file:
        found = [row[0] for row in csv.reader(file)][1:]
    assert found == [f"'{text}" for text in FORMULAS] + HARMLESS
    assert result.escaped == len(FORMULAS)


async def test_a_number_is_no_formula(disk: Disk) -> None:
    disk.table("a", [(-1,), (-0.5,), ("-1",)])
    assert await rows_of(disk, export("a")) == [["a"], ["-1"], ["-0.5"], ["'-1"]]


async def test_formulas_may_be_kept_or_refused(disk: Disk) -> None:
    disk.table("a TEXT", [("fine",), ("=1+1",)])
    assert await rows_of(disk, export("a", to="out:k.csv", formulas="keep")) == [["a"], ["fine"], ["=1+1"]]
    with pytest.raises(Dead, match="row 2") as caught:
        await run(export("a", to="out:r.csv", formulas="reject"))
    assert caught.value.code == "bad-rows"
    assert "1+1" not in str(caught.value)
    assert disk.names(disk.out) == ["k.csv", "k.csv.job.json"]


async def test_the_first_line_and_the_text_for_null_are_guarded_too(disk: Disk) -> None:
    disk.table('"=a" TEXT, b TEXT', [(None, None)])
    disk.query('SELECT "=a", b FROM t')
    message = ExportCsv(source=Query(db="shop", query="q"), to="out:t.csv", headers={"b": "@b"}, null="-")
    assert await rows_of(disk, message) == [["'=a", "'@b"], ["'-", "'-"]]
    with pytest.raises(Dead, match="first line"):
        await run(msgspec.structs.replace(message, to="out:u.csv", formulas="reject"))


# --- which rows ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("eq", "b", ["2"]),
        ("ne", "b", ["1", "3", "5"]),
        ("lt", "b", ["1", "3"]),
        ("le", "b", ["1", "2", "3"]),
        ("gt", "b", ["5"]),
        ("ge", "b", ["2", "5"]),
        ("in", ["a", "b"], ["1", "2"]),
        ("is_null", None, ["4"]),
        ("is_null", True, ["4"]),
        ("is_null", False, ["1", "2", "3", "5"]),
        ("like_prefix", "b", ["2", "5"]),
        ("like_prefix", "%", []),
        ("like_prefix", "", ["1", "2", "3", "5"]),
        ("eq", "b' OR '1'='1", []),
        ("eq", '"n"', []),
    ],
)
async def test_conditions_choose_rows(disk: Disk, op: Any, value: Any, expected: list[str]) -> None:
    disk.table("n INTEGER, x TEXT", [(1, "a"), (2, "b"), (3, "B"), (4, None), (5, "b%")])
    source = Table(db="shop", table="t", columns=["n"], where=[Condition(column="x", op=op, value=value)])
    found = await rows_of(disk, ExportCsv(source=source, to="out:t.csv"))
    assert [row[0] for row in found[1:]] == expected


async def test_all_conditions_hold_and_rows_are_sorted(disk: Disk) -> None:
    disk.table("n INTEGER, x REAL, y INTEGER", [(n, n / 2, n % 3) for n in range(10)])
    source = Table(
        db="shop",
        table="t",
        columns=["n"],
        where=[Condition(column="n", op="gt", value=2), Condition(column="x", op="lt", value=4.5)],
        order_by=[Order(column="y", descending=True), Order(column="n")],
    )
    found = await rows_of(disk, ExportCsv(source=source, to="out:t.csv"))
    assert [row[0] for row in found[1:]] == ["5", "8", "4", "7", "3", "6"]


async def test_a_view_and_odd_names_can_be_read(disk: Disk) -> None:
    disk.table("[select] TEXT, [from] TEXT", [("a", "b")], name="[order]")
    disk.sql('CREATE VIEW v AS SELECT "select" AS a FROM "order"')
    assert await rows_of(disk, export("from", "select", table="order")) == [["from", "select"], ["b", "a"]]
    assert await rows_of(disk, export("a", table="v", to="out:v.csv")) == [["a"], ["a"]]


@pytest.mark.parametrize(
    "source",
    [
        Table(db="shop", table="nothing", columns=["a"]),
        Table(db="shop", table="T", columns=["a"]),
        Table(db="shop", table="sqlite_schema", columns=["sql"]),
        Table(db="shop", table="sqlite_sequence", columns=["name"]),
        Table(db="shop", table="pragma_table_info", columns=["name"]),
        Table(db="shop", table="t", columns=["a", "nothing"]),
        Table(db="shop", table="t", columns=["rowid"]),
        Table(db="shop", table="t", columns=["a"], where=[Condition(column="nothing", op="eq", value="nothing")]),
        Table(db="shop", table="t", columns=["a"], order_by=[Order(column="nothing")]),
        Query(db="shop", query="wrong"),
        Query(db="shop", query="two"),
        Query(db="shop", query="writes"),
        Query(db="shop", query="attaches"),
        Query(db="shop", query="none"),
        Query(db="shop", query="undeclared"),
    ],
)
async def test_what_the_catalogue_does_not_have_is_a_bad_query(disk: Disk, source: Any) -> None:
    disk.table("a INTEGER PRIMARY KEY AUTOINCREMENT", [(1,)])
    for name, text in {
        "wrong": "SELEC 1",
        "two": "SELECT a FROM t; DELETE FROM t",
        "writes": "DELETE FROM t RETURNING a",
        "attaches": f"ATTACH '{disk.folder / 'new.db'}' AS other",
        "none": "-- nothing",
        "undeclared": "SELECT :a",
    }.items():
        disk.query(text, name)
    try:
        await run(ExportCsv(source=source, to="out:t.csv"))
    except Dead as error:
        assert error.code == "bad-query"
    except Snooze as error:
        assert source.query == "writes" and "readonly" in str(error)
    assert disk.names(disk.out) == []
    assert not (disk.folder / "new.db").exists()
    with closing(sqlite3.connect(disk.database)) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (1,)


async def test_a_query_of_the_operator_takes_typed_values(disk: Disk) -> None:
    disk.table("n INTEGER, x TEXT, y REAL", [(1, "a", 0.5), (2, "b", 1.5), (3, "c", 2.5)])
    disk.query(
        "-- Orders since a day.\n-- :since text\n--:least  real \n-- :most integer\n-- :all boolean\n"
        "SELECT n, x || '!' AS said FROM t WHERE (x >= :since AND y >= :least AND n <= :most) OR :all ORDER BY n"
    )
    right = {"since": "b", "least": 1, "most": 2, "all": False}
    message = ExportCsv(source=Query(db="shop", query="q", params=right), to="out:t.csv", headers={"said": "Said"})
    assert await rows_of(disk, message) == [["n", "Said"], ["2", "b!"]]
    for wrong in (
        {},
        {**right, "more": 1},
        {"since": "b", "least": 1, "most": 2},
        {**right, "since": 1},
        {**right, "since": None},
        {**right, "since": ["b"]},
        {**right, "most": 1.5},
        {**right, "most": True},
        {**right, "most": 2**63},
        {**right, "least": "1"},
        {**right, "all": 1},
    ):
        with pytest.raises(Dead, match=r"since|least|most|all") as caught:
            await run(ExportCsv(source=Query(db="shop", query="q", params=wrong), to="out:u.csv"))
        assert caught.value.code == "bad-query"


async def test_what_is_written_meanwhile_is_not_in_the_file(disk: Disk) -> None:
    disk.sql("PRAGMA journal_mode = WAL")
    disk.table("a INTEGER, b TEXT", [(n, "before" * 20) for n in range(30_000)])
    task = asyncio.create_task(run(export("a", "b")))
    with closing(sqlite3.connect(disk.database, isolation_level=None)) as connection:
        while not any(path.stat().st_size for path in disk.out.iterdir()):
            await asyncio.sleep(0)
        connection.execute("UPDATE t SET b = 'after'")
        connection.execute("INSERT INTO t VALUES (-1, 'after')")
        assert not task.done(), "the writer came too late to prove anything"
    assert (await task).rows == 30_000
    assert b"after" not in (disk.out / "t.csv").read_bytes()


# --- limits --------------------------------------------------------------------------------------------------------------------


async def test_an_export_has_limits(disk: Disk, configure: Configure) -> None:
    configure(disk.settings(out=", max_bytes = '64KiB'", shop=", max_row_bytes = 4096"))
    disk.table("a TEXT", [("x" * 1000,)] * 60)
    assert (await run(export("a", to="out:fits.csv", max_rows=60))).rows == 60
    assert await code_of(export("a", max_rows=59)) == "too-large"
    disk.table("a TEXT", [("x" * 1000,)] * 70, name="long")
    assert await code_of(export("a", table="long")) == "too-large"
    assert await code_of(export("a", table="long", compress="gzip", max_rows=10)) == "too-large"
    disk.table("a TEXT", [("x" * 5000,)], name="wide")
    assert await code_of(export("a", table="wide")) == "too-large"
    assert disk.names(disk.out) == ["fits.csv", "fits.csv.job.json"]


async def test_a_text_that_is_no_text_is_said_without_its_bytes(disk: Disk) -> None:
    disk.sql("CREATE TABLE t (a TEXT)", "INSERT INTO t VALUES (CAST(x'736563726574ff' AS TEXT))")
    with pytest.raises(Dead, match="UTF-8") as caught:
        await run(export("a"))
    assert caught.value.code == "bad-rows"
    assert "secret" not in str(caught.value)


def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    disk.table("a TEXT", [("x" * 1000,)] * 200)
    said = outcome(child(disk, export("a"), file_bytes=100_000))
    assert said.startswith("Snooze: out-of-space: roots.out: File too large"), said
    assert disk.names(disk.out) == []


# --- faults of the settings and of the world -----------------------------------------------------------------------------------


async def test_a_fault_of_the_settings_makes_the_job_wait(disk: Disk, configure: Configure) -> None:
    disk.table("a TEXT", [])
    (disk.folder / "db" / "text.db").write_text("This is no database, however long it may be. " * 100)
    (disk.folder / "db" / "link.db").symlink_to(disk.database)
    configure(
        disk.settings()
        + "".join(f"databases.{name} = {{ sqlite = 'db:{name}.db', tables = ['t'] }}\n" for name in ("none", "text", "link"))
        + "databases.deep = { sqlite = 'db:shop.db/deep.db', tables = ['t'] }\n"
        + "databases.lost = { sqlite = 'nowhere:shop.db', tables = ['t'] }\n"
    )
    for db, said in [
        ("unknown", "databases.unknown: not in"),
        ("none", "No such file"),
        ("text", "not a database"),
        ("link", "not a plain file"),
        ("deep", "Not a directory"),
        ("lost", "roots.nowhere"),
    ]:
        with pytest.raises(Snooze, match=f"alias-missing: .*{said}"):
            await run(ExportCsv(source=Table(db=db, table="t", columns=["a"]), to="out:t.csv"))
    for query, said in [("unknown", "No such file"), ("large", "at most"), ("latin", "not UTF-8")]:
        disk.query("-" * 65_537, "large")
        (disk.folder / "db" / "latin.sql").write_bytes(b"SELECT '\xff'")
        with pytest.raises(Snooze, match=f"alias-missing: .*{said}"):
            await run(ExportCsv(source=Query(db="shop", query=query), to="out:t.csv"))
    with pytest.raises(Snooze, match="no folder of"):
        await run(ExportCsv(source=Query(db="text", query="q"), to="out:t.csv"))
    assert disk.names(disk.out) == []


async def test_a_declaration_that_cannot_be_read_is_named_with_its_line(disk: Disk) -> None:
    disk.table("a TEXT", [])
    disk.query("SELECT 1 AS a\n-- :least integer (at least)\n")
    with pytest.raises(Snooze, match=r"q\.sql:2: must be `-- :name KIND`"):
        await run(ExportCsv(source=Query(db="shop", query="q", params={"least": 1}), to="out:t.csv"))


async def test_a_locked_database_is_tried_again(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    disk.table("a TEXT", [])
    with closing(sqlite3.connect(disk.database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await run(export("a"))
    assert disk.names(disk.out) == []
    assert (await run(export("a"))).rows == 0


@asynccontextmanager
async def endless(disk: Disk, *texts: str) -> AsyncIterator[list[asyncio.Task[Exported]]]:
    """Run queries that never end, and cut them at the end of the block."""
    tasks: list[asyncio.Task[Exported]] = []
    for number, text in enumerate(texts):
        disk.query(f"{ENDLESS} {text}", f"q{number}")
        message = ExportCsv(source=Query(db="shop", query=f"q{number}"), to=f"out:{number}.csv", max_rows=100_000_000)
        tasks.append(asyncio.create_task(run(message)))
    try:
        until_s = asyncio.get_running_loop().time() + 10
        while len(disk.names(disk.out)) < len(texts):
            assert asyncio.get_running_loop().time() < until_s
            await asyncio.sleep(0.002)
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await asyncio.to_thread(until, lambda: disk.names(disk.out) == [])


@pytest.mark.parametrize("text", ["SELECT n FROM n", "SELECT sum(n) FROM n", "SELECT n FROM n ORDER BY -n"])
async def test_a_job_that_is_cut_leaves_nothing_whatever_the_database_is_doing(disk: Disk, text: str) -> None:
    disk.table("a TEXT", [])
    async with endless(disk, text) as (task,):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_repeat_waits_for_the_run_that_was_cut_and_jobs_wait_for_a_thread(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TAKE_S", 0.05)
    disk.table("a TEXT", [])
    async with endless(disk, "SELECT n FROM n"):
        message = ExportCsv(source=Query(db="shop", query="q0"), to="out:0.csv", max_rows=100_000_000)
        with pytest.raises(Snooze, match="locked"):
            await run(message)
    async with endless(disk, *["SELECT n FROM n"] * threads.THREADS):
        with pytest.raises(Snooze, match="threads for long work are busy"):
            await run(export("a"))
    monkeypatch.setattr(threads, "TAKE_S", 60)  # the threads that were cut may take a while to end on a busy machine
    assert (await run(export("a"))).rows == 0


@pytest.mark.parametrize("package", ["zstandard", "asyncpg"])
def test_without_a_package_only_jobs_that_need_it_wait(disk: Disk, package: str) -> None:
    disk.table("a TEXT", [("x",)])
    assert '"rows":1' in outcome(child(disk, export("a"), without=package))
    said = outcome(child(disk, export("a", to="out:t.csv.zst", compress="zstd"), without=package))
    assert said.startswith("Snooze: extra-missing: zstandard: not installed; hint: pip install") == (package == "zstandard"), said
    assert disk.names(disk.out) == ["t.csv", "t.csv.job.json"] + ["t.csv.zst", "t.csv.zst.job.json"] * (package == "asyncpg")


# --- again, and killed ---------------------------------------------------------------------------------------------------------


async def test_a_second_run_does_nothing(disk: Disk) -> None:
    disk.table("a TEXT", [("x",)])
    first = await run(export("a"))
    before = state(disk.out)
    disk.database.unlink()
    assert await run(export("a")) == first
    assert state(disk.out) == before


async def test_the_same_rows_give_the_same_bytes(disk: Disk) -> None:
    disk.table("a TEXT, b REAL", [(f"text {n}", n / 7) for n in range(5000)])
    first = await run(export("a", "b"))
    content = (disk.out / "t.csv").read_bytes()
    shutil.rmtree(disk.out)
    disk.out.mkdir()
    assert await run(export("a", "b")) == first
    assert (disk.out / "t.csv").read_bytes() == content
    other = await run(export("a", "b", to="out:u.csv"), number=1)
    assert other.sha256 == first.sha256


async def test_only_tables_that_the_settings_name_are_read(disk: Disk, configure: Configure) -> None:
    disk.table("a TEXT", [("x",)])
    disk.table("a TEXT", [("y",)], name="secrets")
    configure(disk.settings().replace("tables = ['*']", "tables = ['t']"))
    assert (await run(export("a"))).rows == 1
    with pytest.raises(Dead, match="does not allow reading secrets; hint: `tables`") as caught:
        await run(export("a", table="secrets", to="out:u.csv"))
    assert caught.value.code == "bad-query"


async def test_anothers_file_is_not_replaced_but_on_request(disk: Disk) -> None:
    disk.table("a TEXT", [("x",)])
    await run(export("a"))
    with pytest.raises(Dead) as caught:
        await run(export("a"), number=1)
    assert caught.value.code == "output-exists"
    disk.sql("UPDATE t SET a = 'y'")
    await run(export("a", overwrite=True), number=1)
    assert (disk.out / "t.csv").read_bytes() == b"a\r\ny\r\n"


async def test_a_database_in_a_root_is_not_exported_over(disk: Disk, configure: Configure) -> None:
    disk.table("a TEXT", [("x",)])
    shutil.copy(disk.database, disk.out / "local.db")
    for overwrite in (False, True):
        assert await code_of(export("a", to="out:local.db", overwrite=overwrite)) == "output-exists"
    assert (disk.out / "local.db").read_bytes() == disk.database.read_bytes()


def test_a_kill_half_way_leaves_no_visible_file(disk: Disk) -> None:
    disk.table("a TEXT", [])
    disk.query(f"{ENDLESS} SELECT n, 'x' FROM n")
    message = ExportCsv(source=Query(db="shop", query="q"), to="out:t.csv", max_rows=100_000_000)
    process = child(disk, message)
    until(lambda: any(path.stat().st_size > 100_000 for path in disk.out.iterdir()))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert disk.names(disk.out) == [f".t.csv.{job_of(message).work}.part"]


@pytest.mark.parametrize("overwrite", [False, True])
async def test_a_kill_at_any_call_to_the_file_system_is_fixed_by_the_next_run(
    disk: Disk, configure: Configure, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    disk.table("a TEXT", [("x" * 100,)] * 3000)
    await run(export("a", to="out:sub/t.csv", max_rows=9999), number=9)
    if overwrite:
        template = disk.out
    else:
        template = disk.folder / "empty"
        template.mkdir()
    disk.sql("UPDATE t SET a = 'y'")
    message = export("a", to="out:sub/t.csv", overwrite=overwrite, compress="gzip")
    calls = int(outcome(child(disk, message, kill=str(template), root="out")).splitlines()[-1])
    assert calls >= 15
    undisturbed = {name: (disk.folder / str(calls) / name).read_bytes() for name in ("sub/t.csv", "sub/t.csv.job.json")}
    old = (disk.out / "sub/t.csv").read_bytes() if overwrite else None
    half_way = 0
    for number in range(1, calls):
        folder = disk.folder / str(number)
        left = [path for path in folder.rglob("*") if path.is_file()]
        for path in left:
            if not path.name.startswith("."):
                assert path.name in ("t.csv", "t.csv.job.json")
                assert path.name != "t.csv" or path.read_bytes() in (undisturbed["sub/t.csv"], old)
        half_way += any(path.name.endswith(".part") for path in left)
        monkeypatch.setenv("RUNTIME_HANDLERS__ROOTS__OUT__PATH", str(folder))
        configure(disk.settings())
        await run(message)
        assert {name: (folder / name).read_bytes() for name in disk.names(folder) if "/" in name} == undisturbed
    assert half_way >= 5


# --- the contract, and all the way ---------------------------------------------------------------------------------------------


def test_the_handler_is_what_the_table_says() -> None:
    retry = export_csv.retry
    assert (export_csv.timeout_s, retry.attempts, retry.base_s, retry.cap_s) == (1800, 4, 30, 600)
    assert contract_of(ExportCsv).priority is Priority.MEDIUM


def changed(**fields: Any) -> dict[str, Any]:
    return {**PAYLOAD, **fields}


def source(**fields: Any) -> dict[str, Any]:
    return {**PAYLOAD, "source": {**SOURCE, **fields}}


def condition(op: str, *value: Any) -> dict[str, Any]:
    return source(where=[{"column": "a", "op": op, **({"value": value[0]} if value else {})}])


@pytest.mark.parametrize(
    "payload",
    [
        PAYLOAD,
        source(columns=["a"] * 200, where=[{"column": "a", "op": "eq", "value": 1}] * 20, order_by=[{"column": "a"}] * 8),
        condition("in", ["a", 1, 1.5, True]),
        condition("eq", 2**63 - 1),
        changed(source={"kind": "query", "db": "shop", "query": "orders", "params": {"since": "2024-01-01"}}),
        changed(headers={"a": "Ä"}, null="NULL", delimiter="tab", encoding="utf-8-sig", formulas="reject", overwrite=True),
    ],
)
def test_what_the_contract_offers_is_accepted(payload: dict[str, Any]) -> None:
    assert decode(payload).to == "out:t.csv"


@pytest.mark.parametrize(
    "payload",
    [
        {},
        changed(more=1),
        changed(to="/etc/passwd"),
        changed(to="out:../x"),
        changed(to="out:u\u0308.csv"),
        changed(delimiter="\t"),
        changed(delimiter="::"),
        changed(encoding="latin-1"),
        changed(null="x" * 21),
        changed(null="a\n"),
        changed(headers={"a": "b\n"}),
        changed(headers={str(n): "x" for n in range(201)}),
        changed(compress="zip"),
        changed(formulas="run"),
        changed(max_rows=0),
        changed(max_rows=100_000_001),
        changed(source={"kind": "sql", "sql": "SELECT 1"}),
        changed(source={"kind": "query", "db": "shop", "query": "../etc"}),
        changed(source={"kind": "query", "db": "shop", "query": "q", "params": {"a": "\x00"}}),
        source(db="Shop"),
        source(table='t"; DROP TABLE t'),
        source(table="t\n"),
        source(columns=[]),
        source(columns=["a"] * 201),
        source(columns=["*"]),
        source(columns=["count(*)"]),
        source(columns=["a b"]),
        source(columns=["a\n"]),
        source(order_by=[{"column": "a"}] * 9),
        source(where=[{"column": "a", "op": "eq", "value": 1}] * 21),
        source(limit=1),
        condition("eq"),
        condition("eq", ["a"]),
        condition("eq", 2**63),
        condition("or", "a"),
        condition("in", "a"),
        condition("in", []),
        condition("in", ["a"] * 1001),
        condition("in", [2**63]),
        condition("in", [None]),
        condition("is_null", "a"),
        condition("like_prefix", 1),
        condition("like_prefix"),
    ],
)
def test_what_makes_no_sense_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode(payload)


async def test_plain_messages_come_all_the_way(disk: Disk, valkey: Server) -> None:
    disk.table("a TEXT", [("x",)])
    disk.old("old.log")
    (disk.logs / "new.log").write_text("just written")
    client = valkey.client()
    client.xadd("{jobs}:medium", {"type": "export-csv", "data": msgspec.json.encode(export("a"))})
    client.xadd("{jobs}:low", {"type": "cleanup-logs", "data": '{"root":"logs","include":["*.log"],"older_than":"7d"}'})
    async with working(valkey.url, export_csv, cleanup_logs):
        await asyncio.to_thread(until, lambda: (disk.out / "t.csv.job.json").exists() and disk.names(disk.logs) == ["new.log"])
    assert (disk.out / "t.csv").read_bytes() == b"a\r\nx\r\n"
    assert client.xlen("{jobs}:dead") == 0
    client.close()
