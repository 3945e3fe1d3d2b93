"""import-data: what comes into the table, who may write what, and that a kill neither loses a row nor writes one twice."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import signal
import sqlite3
from collections.abc import Awaitable
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import zstandard

from handlers.contracts.data import BadRows, Column, ImportData, Imported
from handlers.data import import_data
from handlers.kit import loading, records, sqlite, states
from handlers.kit.failures import TemporaryFailure
from handlers.kit.sessions import STAGED
from runtime import BadPayload, Dead, Priority, Retry, Snooze
from runtime.jobs import Job, contract_of
from tests.builders import job
from tests.handlers.conftest import Configure
from tests.handlers.disks import child, job_of, outcome, until
from tests.handlers.stores import CREATE, Store
from tests.servers import Server
from tests.workers import working

COLUMNS = [Column(to="id", type="int"), Column(to="a"), Column(to="b", type="float")]
PAYLOAD: dict[str, Any] = {"file": "in:t.csv", "format": "csv", "db": "shop", "table": "t", "columns": [{"to": "id"}]}
TEN = "id,a,b\n" + "".join(f'{n},"text\n{n}",{n}.5\n' for n in range(10))


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, configure: Configure) -> Store:
    """An empty table `t` in either database."""
    postgres = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    store = Store(tmp_path, postgres)
    store.sql(CREATE)
    configure(store.settings())
    return store


@pytest.fixture
def lite(tmp_path: Path, configure: Configure) -> Store:
    """An empty table `t` in SQLite, for what does not depend on the database."""
    store = Store(tmp_path, None)
    store.sql(CREATE)
    configure(store.settings())
    return store


def load(**fields: Any) -> ImportData:
    """Return an import of `t.csv` into the table `t`."""
    return ImportData(**{"file": "in:t.csv", "format": "csv", "db": "shop", "table": "t", "columns": COLUMNS, **fields})


async def run(message: ImportData, number: int = 0, job: Job | None = None) -> Imported:
    result = await cast("Awaitable[object]", import_data(message, job or job_of(message, number)))
    assert isinstance(result, Imported)
    return result


async def dead(message: ImportData, number: int = 0) -> tuple[str, str]:
    """Return the code with which the job dies, and its text."""
    with pytest.raises(Dead) as caught:
        await run(message, number)
    return caught.value.code, str(caught.value)


def counts(result: Imported) -> tuple[int, int, int, int, int]:
    return result.rows, result.inserted, result.updated, result.unchanged, result.rejected


def report(store: Store) -> list[list[Any]]:
    lines = (store.folder / "out" / "bad.jsonl").read_text().splitlines()
    return [list(json.loads(line).values()) for line in lines]


# --- what comes into the table ---------------------------------------------------------------------------------------------


async def test_a_file_comes_into_the_table(store: Store) -> None:
    content = '\ufeffb,id,a,more\r\n1.5,1,one,x\r\n,2,"say ""hi"",\nyou",\r\n\r\n-1.5e3,-3,,'
    store.write(content)
    result = await run(load())
    assert store.rows("id, a") == [["-3", "NULL"], ["1", "one"], ["2", 'say "hi",\nyou']]
    assert [float(b) if b != "NULL" else None for (b,) in store.rows("b")] == [-1500, 1.5, None]
    assert counts(result) == (3, 3, 0, 0, 0)
    assert (result.bytes, result.sha256) == (len(content.encode()), sha256(content.encode()).hexdigest())


async def test_json_lines_come_into_the_table(store: Store) -> None:
    store.write(
        '\ufeff{"id": 1, "text": "one", "b": 2}\n\n{"id": 9007199254740993, "text": "", "b": 1e3, "more": []}\r\n{"id":3}'
    )
    columns = [COLUMNS[0], Column(to="a", source="text"), COLUMNS[2]]
    assert counts(await run(load(format="jsonl", columns=columns))) == (3, 3, 0, 0, 0)
    assert store.rows("id, a") == [["1", "one"], ["3", "NULL"], ["9007199254740993", ""]]


@pytest.mark.parametrize("delimiter", [",", ";", "tab", "|"])
async def test_the_delimiter_and_the_text_for_null_may_be_others(lite: Store, delimiter: Any) -> None:
    mark = "\t" if delimiter == "tab" else delimiter
    lite.write(f'id{mark}a\n1{mark}\\N\n2{mark}"a,b;c|d\te"\n3{mark}\n')
    await run(load(delimiter=delimiter, columns=[COLUMNS[0], Column(to="a", null_as="\\N")]))
    assert lite.rows("a") == [["NULL"], ["a,b;c|d\te"], [""]]


@pytest.mark.parametrize("compress", ["gzip", "zstd"])
async def test_a_packed_file_is_read_as_it_is_unpacked(store: Store, compress: Any) -> None:
    pack = gzip.compress if compress == "gzip" else zstandard.compress
    rows = [f"{n},{'x' * (n % 50)},\n" for n in range(20_000)]
    parts = [b"id,a,b\n", b"", *("".join(rows[at : at + 7000]).encode() for at in range(0, 20_000, 7000))]
    store.write(b"".join(map(pack, parts)))  # several streams one after the other are one file
    assert counts(await run(load(compress=compress, batch=3000)))[:2] == (20_000, 20_000)
    assert store.sql("SELECT count(*), sum(id), sum(length(a)) FROM t") == [["20000", "199990000", "490000"]]


TYPES = (
    "CREATE TABLE t (id bigint PRIMARY KEY, i integer, f double precision, d numeric, o boolean, y date,"
    " z {time}, j {json}, u {uuid})"
)
ALL = [
    Column(to="id", type="int"),
    Column(to="i", type="int"),
    Column(to="f", type="float"),
    Column(to="d", type="decimal"),
    Column(to="o", type="bool"),
    Column(to="y", type="date"),
    Column(to="z", type="timestamp"),
    Column(to="j", type="json"),
    Column(to="u", type="uuid"),
]
UUID = "0194a5c0-7c5b-7000-8000-0123456789ab"


async def test_every_type_comes_from_csv_and_from_json(store: Store) -> None:
    kinds = (
        {"time": "timestamptz", "json": "jsonb", "uuid": "uuid"}
        if store.postgres
        else dict.fromkeys(("time", "json", "uuid"), "text")
    )
    store.sql(f"DROP TABLE t; {TYPES.format(**kinds)}")
    line = f'1,-5,1e-3,12345678901234567.25,yes,2024-02-29,2024-01-31T12:00:00+01:00,"{{""a"": [1.50]}}",{UUID.upper()}'
    store.write("id,i,f,d,o,y,z,j,u\n" + line + "\n2,,,,,,,,\n")
    await run(load(columns=ALL))
    value = {"id": 3, "i": -5, "f": 0.001, "d": "12345678901234567.25", "o": True, "y": "2024-02-29", "z": "2024-01-31T11:00:00Z"}
    store.write(json.dumps({**value, "j": {"a": [1.50]}, "u": UUID}) + '\n{"id": 4, "j": null, "d": 1.10}\n', "t.jsonl")
    await run(load(columns=ALL, file="in:t.jsonl", format="jsonl"))
    texts = "CAST({} AS text)".format
    columns = "i, f, o, " + ", ".join(map(texts, ("y", "z", "j", "u")))
    if store.postgres:
        first = ["-5", "0.001", "t", "2024-02-29", "2024-01-31 11:00:00+00", '{"a": [1.5]}', UUID]
        store.postgres.sql(f"ALTER DATABASE {store.postgres.name} SET timezone = 'UTC'")
        assert store.rows("d") == [["12345678901234567.25"], ["NULL"], ["12345678901234567.25"], ["1.10"]]
    else:
        first = ["-5", "0.001", "1", "2024-02-29", "2024-01-31 11:00:00+00:00", '{"a":[1.5]}', UUID]
    found = store.rows(columns)
    assert [[cell.replace("1.50", "1.5") for cell in row] for row in found[::2]] == [first, first]
    assert found[1] == found[3] == ["NULL"] * 7


BAD = {
    "int": ["x", "1.5", "1_0", " 1", "0x1", "²", str(2**63), str(2**70), "9" * 5000],
    "float": ["x", "nan", "inf", "1e999", "1_0", "1e", ".", "0x1p3"],
    "decimal": ["x", "NaN", "1e2000", "1_0", "9" * 1001, "1e-1001"],
    "bool": ["x", "2", "tru"],
    "date": ["x", "2024-02-30", "20240101", "2024-1-1", "2024-01-01T00:00"],
    "timestamp": ["x", "2024-01-01T25:00Z", "0001-01-01T00:00:00+14:00", "1700000000"],
    "json": ["x", "{", "NaN", "[" * 100_000, "'a'"],
    "uuid": ["x", UUID[:-1]],
}
BAD_JSON = {
    "text": [1, True, ["a"], "\0"],
    "int": ["x", 1.0, True, 2**63, [1]],
    "float": ["x", True, {}, "nan"],
    "decimal": ["x", True, []],
    "bool": [0, 1, "x", []],
    "date": [20240101, "x", []],
    "timestamp": [1700000000, "x", [], {}],
    "uuid": [1, "x", []],
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_text_that_does_not_fit_is_a_bad_row(lite: Store, kind: Any) -> None:
    texts = BAD[kind]
    lite.write("id,a\n" + "".join(f'{n},"{text}"\n' for n, text in enumerate(texts)) + "99,\n")
    result = await run(load(columns=[COLUMNS[0], Column(to="a", type=kind)], bad_rows=BadRows(max=99, to="out:bad.jsonl")))
    assert [row[:2] for row in report(lite)] == [[n + 2, "a"] for n in range(len(texts))]
    assert lite.rows("id, a") == [["99", "NULL"]]
    assert counts(result) == (len(texts) + 1, 1, 0, 0, len(texts))


@pytest.mark.parametrize("kind", BAD_JSON)
async def test_a_value_that_does_not_fit_is_a_bad_row(lite: Store, kind: Any) -> None:
    values = BAD_JSON[kind]
    lite.write("".join(json.dumps({"id": n, "a": value}) + "\n" for n, value in enumerate(values)))
    message = load(format="jsonl", columns=[COLUMNS[0], Column(to="a", type=kind)], bad_rows=BadRows(max=99, to="out:bad.jsonl"))
    await run(message)
    assert [row[:2] for row in report(lite)] == [[n + 1, "a"] for n in range(len(values))]


async def test_records_that_cannot_be_read_are_bad_rows_and_the_others_come(store: Store) -> None:
    store.write(b'id,a,b\n1,ok,\n2,\xff,\n3,a\x00b,\n4,short\n5,l,o,n,g\n6,"a"b,\n7,ok,\n,no key,\n9,a\rb,\n10,"open,\n')
    message = load(mode="upsert", key=["id"], bad_rows=BadRows(max=99, to="out:bad.jsonl"))
    assert counts(await run(message)) == (10, 2, 0, 0, 8)
    assert store.rows("id") == [["1"], ["7"]]
    assert report(store) == [
        [3, "", "is not UTF-8"],
        [4, "", "has a NUL character"],
        [5, "", "has 2 cells, and the first line has 3"],
        [6, "", "has 5 cells, and the first line has 3"],
        [7, "", "is not CSV (RFC 4180)"],
        [9, "id", "must not be missing"],
        [10, "", "is not CSV (RFC 4180)"],
        [11, "", "is not CSV (RFC 4180)"],
    ]


async def test_lines_that_are_no_objects_are_bad_rows(lite: Store) -> None:
    lines = [
        b'{"id": 1}',
        b"[1]",
        b"{",
        b"null",
        b'{"id": 2} x',
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a": "\\ud800"}',
        b'{"id": 9}',
    ]
    lite.write(b"\n".join(lines))
    assert counts(await run(load(format="jsonl", bad_rows=BadRows(max=9, to="out:bad.jsonl")))) == (9, 2, 0, 0, 7)
    assert [row[2] for row in report(lite)] == [f"is not {'a JSON object' if n in (1, 3) else 'JSON'}" for n in range(1, 8)]


# --- modes -----------------------------------------------------------------------------------------------------------------


async def test_upsert_changes_what_differs_and_says_how_much(store: Store) -> None:
    store.sql("INSERT INTO t VALUES (1, 'old', 1), (2, 'same', 2), (3, NULL, NULL), (4, 'left', NULL)")
    store.write("id,a,b\n1,new,1\n2,same,2\n3,,\n5,first,\n5,second,\n6,,0.5\n")
    assert counts(await run(load(mode="upsert", key=["id"]))) == (6, 2, 1, 3, 0)
    assert store.rows("id, a") == [["1", "new"], ["2", "same"], ["3", "NULL"], ["4", "left"], ["5", "second"], ["6", "NULL"]]
    assert counts(await run(load(mode="upsert", key=["id"]), number=1)) == (6, 0, 0, 6, 0)


async def test_upsert_of_a_key_of_all_columns_and_of_one_that_is_none(store: Store) -> None:
    store.sql("CREATE UNIQUE INDEX u ON t (id, a)")
    store.write("id,a\n1,x\n2,y\n1,x\n")
    assert counts(await run(load(mode="upsert", key=["a", "id"], columns=COLUMNS[:2]))) == (3, 2, 0, 1, 0)
    code, text = await dead(load(mode="upsert", key=["a"]))
    assert code == "bad-payload", text  # the first line lacks b
    store.write("id,a,b\n1,x,\n")
    code, text = await dead(load(mode="upsert", key=["a"]))
    assert code == "bad-query", text


async def test_columns_of_type_json_and_names_that_need_quotes(store: Store) -> None:
    kind = "json" if store.postgres else "text"
    store.sql(f'DROP TABLE t; CREATE TABLE t (n bigint PRIMARY KEY, "order" {kind}, "Select" text)')
    columns = [Column(to="n", type="int"), Column(to="order", type="json"), Column(to="Select")]
    store.write("n,order,Select\n1,[1],x\n2,{},y\n")
    message = load(mode="upsert", key=["n"], columns=columns)
    assert counts(await run(message)) == (2, 2, 0, 0, 0)
    store.write("n,order,Select\n1,[2],x\n2,{},y\n")
    assert counts(await run(message, number=1)) == (2, 0, 1, 1, 0)
    assert store.rows('"order"', "n") == [["[2]"], ["{}"]]


async def test_rows_that_the_table_refuses_are_found_among_the_others(store: Store) -> None:
    store.sql("DROP TABLE t; CREATE TABLE t (id bigint PRIMARY KEY, a text NOT NULL, b double precision CHECK (b < 100))")
    store.sql("INSERT INTO t VALUES (0, 'there', 0)")
    bad = {0, 57, 58, 999}
    store.write("id,a,b\n" + "".join(f"{n},{'' if n == 57 else 'x'},{100 if n in (58, 999) else 1}\n" for n in range(1000)))
    result = await run(load(batch=300, bad_rows=BadRows(max=4, to="out:bad.jsonl")))
    assert counts(result) == (1000, 996, 0, 0, 4)
    assert [row[:2] for row in report(store)] == [[n + 2, ""] for n in sorted(bad)]
    assert store.sql("SELECT count(*) FROM t") == [["997"]]


async def test_replace_shows_all_of_the_file_or_nothing(store: Store) -> None:
    store.sql("CREATE VIEW v AS SELECT count(*) FROM t; INSERT INTO t VALUES (1, 'old', 1), (100, 'gone', NULL)")
    store.write(TEN + "11,bad,x\n")
    code, text = await dead(load(mode="replace", batch=3))
    assert code == "bad-rows"
    assert "line 22, b: must be a number" in text
    assert store.rows("a") == [["old"], ["gone"]]
    store.write(TEN)
    assert counts(await run(load(mode="replace", batch=3))) == (10, 10, 0, 0, 0)
    assert store.sql("SELECT * FROM v") == [["10"]]
    assert store.rows("a")[-1] == ["text\n9"]


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
async def test_replace_does_not_reach_other_tables(store: Store, action: str) -> None:
    store.sql(
        "INSERT INTO t VALUES (1, 'old', 1);"
        f"CREATE TABLE other (t bigint DEFAULT 1 REFERENCES t (id) ON DELETE {action}); INSERT INTO other VALUES (1)"
    )
    store.write("id,a,b\n1,new,1\n")
    code, text = await dead(load(mode="replace"))
    assert code == "bad-query"
    assert "would change other as well" in text
    assert store.sql("SELECT t FROM other") == [["1"]]
    assert store.rows("a") == [["old"]]
    assert counts(await run(load(mode="upsert", key=["id"]), 1)) == (1, 0, 1, 0, 0)


async def test_a_table_may_refer_to_itself_and_be_replaced(store: Store) -> None:
    store.sql("DROP TABLE t; CREATE TABLE t (id bigint PRIMARY KEY, a text, b bigint REFERENCES t (id) ON DELETE CASCADE)")
    store.write("id,a,b\n1,new,1\n")
    assert counts(await run(load(mode="replace", columns=[COLUMNS[0], COLUMNS[1], Column(to="b", type="int")]))) == (
        1,
        1,
        0,
        0,
        0,
    )


async def test_while_a_table_is_replaced_others_read_the_old_rows_and_wait_to_write(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.sql("INSERT INTO t VALUES (100, 'old', NULL)")
    store.write(TEN)
    seen: list[Any] = []

    def look(name: str) -> None:
        if name == "import.loaded":
            seen.append(store.rows("a"))
            wait = "SET lock_timeout = 10; " if store.postgres else "PRAGMA busy_timeout = 10; "
            with pytest.raises((AssertionError, sqlite3.OperationalError), match="lock"):
                store.sql(f"{wait}INSERT INTO t VALUES (101, 'late', NULL)")

    monkeypatch.setattr(loading, "point", look)
    await run(load(mode="replace", batch=5))
    assert seen == [[["old"]], [["old"]]]
    assert len(store.rows()) == 10


@pytest.mark.parametrize("mode", ["insert", "upsert", "replace"])
async def test_a_dry_run_finds_the_same_and_changes_nothing(store: Store, mode: Any) -> None:
    store.sql("INSERT INTO t VALUES (100, 'there', NULL)")
    key = ["id"] if mode == "upsert" else []
    store.write(TEN + "x,bad,\n100,again,\n")
    message = load(mode=mode, key=key, batch=4, bad_rows=BadRows(max=2, to="out:bad.jsonl"), dry_run=True)
    result = await run(message)
    assert store.rows("id, a") == [["100", "there"]]
    assert counts(result) == {"insert": (12, 10, 0, 0, 2), "upsert": (12, 10, 1, 0, 1), "replace": (12, 11, 0, 0, 1)}[mode]
    assert await run(message) == result
    real = msgspec.structs.replace(message, dry_run=False, bad_rows=BadRows(max=2))
    assert counts(await run(real)) == counts(result)


# --- bad rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", ["none", "gzip"])
async def test_too_many_bad_rows_end_the_job_and_what_was_committed_stays(store: Store, compress: Any) -> None:
    content = TEN + "11,secret,secret\n12,secret,secret\n13,fine,\n"
    store.write(content if compress == "none" else gzip.compress(content.encode()))
    message = load(batch=3, compress=compress, bad_rows=BadRows(max=1, to="out:bad.jsonl"))
    code, text = await dead(message)
    assert (code, "secret" in text) == ("bad-rows", False)
    assert text == "more than 1 bad rows; the first: line 22, b: must be a number"
    assert report(store) == [[22, "b", "must be a number"], [23, "b", "must be a number"]]
    assert len(store.rows()) == 9
    assert await dead(message) == (code, text)  # a replay goes on where that was, and replaces the report
    assert len(store.rows()) == 9
    more = msgspec.structs.replace(message, bad_rows=BadRows(max=2))
    assert (await dead(more))[0] == "bad-rows"  # another payload is another job: the first row is there already
    store.sql("DELETE FROM t")
    assert counts(await run(msgspec.structs.replace(message, bad_rows=BadRows(max=2)))) == (13, 11, 0, 0, 2)


async def test_a_report_is_kept_over_a_kill(store: Store) -> None:
    store.write("id,a,b\n1,x,bad\n2,x,\n3,x,bad\n4,x,\n5,x,bad\n")
    message = load(batch=2, bad_rows=BadRows(max=3, to="out:bad.jsonl"))
    process = child(store, message, point="import.after-commit", times=2)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    result = await run(message)
    assert (counts(result), result.resumed_from > 0) == ((5, 2, 0, 0, 3), True)
    assert [row[0] for row in report(store)] == [2, 4, 6]


# --- limits and faults of the file --------------------------------------------------------------------------------------------


async def test_a_packed_file_that_is_none_or_cut_or_a_bomb_is_refused(lite: Store) -> None:
    content = TEN.encode() * 500
    broken = bytearray(gzip.compress(content))
    broken[len(broken) // 2] ^= 0xFF
    for compress, pack in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        bomb = pack(b"id,a,b\n" + (b"1," + b"x" * 1000 + b",\n") * 100_000)
        for packed, expected in [
            (content, "bad-rows"),
            (pack(content)[:-5], "bad-rows"),
            (pack(content) + b"more", "bad-rows"),
            (b"", "bad-rows"),
            (bomb, "too-large"),
        ]:
            lite.write(packed)
            code, text = await dead(load(compress=compress, mode="upsert", key=["id"], bad_rows=BadRows(max=5000), dry_run=True))
            assert (code, compress in text or "unpack" in text) == (expected, True), text
    lite.write(bytes(broken))
    assert (await dead(load(compress="gzip", mode="replace")))[0] == "bad-rows"
    window = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=24)).compress(
        content * 300
    )
    lite.write(window)
    assert (await dead(load(compress="zstd", mode="replace")))[0] == "bad-rows"
    assert lite.rows() == []


async def test_a_record_has_a_limit(lite: Store, configure: Configure) -> None:
    long = "x" * (records.MAX_RECORD_BYTES - 100)
    lite.write(f"id,a,b\n1,{long},\n")
    await run(load())
    for content in (f"id,a,b\n2,{long * 2},\n", 'id,a,b\n2,"' + "x\n" * records.MAX_RECORD_BYTES):
        lite.write(content)
        code, text = await dead(load(mode="replace"))
        assert (code, f"must have at most {records.MAX_RECORD_BYTES} bytes" in text) == ("too-large", True), text
    lite.write('{"id": 1, "a": "' + long * 2 + '"}\n')
    code, text = await dead(load(mode="replace", format="jsonl"))
    assert (code, text) == ("too-large", f"line 1 must have at most {records.MAX_RECORD_BYTES} bytes")
    configure(lite.settings().replace("/in'", "/in', max_bytes = 10"))
    assert (await dead(load(mode="replace")))[0] == "too-large"
    assert len(lite.rows()) == 1


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ("", "bad-rows"),
        ("\n\n", "bad-rows"),
        ("id,a\n", "bad-payload"),
        ("id,a,a,b\n", "bad-payload"),
        ("ID,a,b\n", "bad-payload"),
        ('"id,a,b', "bad-rows"),
        ("id,a,b\x00\n", "bad-rows"),
    ],
)
async def test_the_first_line_must_have_the_names(lite: Store, first: str, code: str) -> None:
    lite.write(first)
    found, text = await dead(load())
    assert (found, "first line" in text) == (code, True), text


async def test_a_file_may_be_late_and_must_be_a_file_below_its_root(lite: Store) -> None:
    for name in ("t.csv", "sub/t.csv"):
        with pytest.raises(Retry, match="input-missing"):
            await run(load(file=f"in:{name}"))
    (lite.folder / "secret.csv").write_text(TEN)
    (lite.folder / "in" / "t.csv").symlink_to(lite.folder / "secret.csv")
    (lite.folder / "in" / "link").symlink_to(lite.folder)
    (lite.folder / "in" / "folder").mkdir()
    for name in ("t.csv", "link/secret.csv", "folder"):
        assert (await dead(load(file=f"in:{name}")))[0] == "bad-path", name
    assert lite.rows() == []


async def test_a_file_that_changed_after_a_part_was_imported_is_refused(store: Store) -> None:
    store.write(TEN)
    message = load(batch=4)
    process = child(store, message, point="import.after-commit")
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    store.write(TEN.replace("9.5", "9.6"))
    assert (await dead(message))[0] == "input-changed"
    assert len(store.rows()) == 4
    store.write(TEN)
    assert (await run(message)).inserted == 10


# --- what the settings and the database permit ---------------------------------------------------------------------------------


async def test_only_tables_that_the_settings_name_are_written(store: Store, configure: Configure) -> None:
    store.write(TEN)
    configure(store.settings("tables = ['*']"))
    for message in (load(), load(dry_run=True)):
        code, text = await dead(message)
        assert (code, "hint: `writable`" in text) == ("bad-query", True)
    configure(store.settings("writable = ['other', 'v']"))
    assert (await dead(load()))[0] == "bad-query"
    assert (await dead(load(table="other")))[0] == "bad-query"  # there is none
    assert store.rows() == []


async def test_the_table_must_have_the_columns(store: Store) -> None:
    store.write("id,a,b,c\n1,x,2,3\n")
    assert await dead(load(columns=[*COLUMNS, Column(to="c")])) == ("bad-query", "no column c in the table")
    if store.postgres:
        for kind, column in [("int", "a"), ("text", "b"), ("uuid", "id"), ("json", "a"), ("timestamp", "a"), ("bool", "id")]:
            code, text = await dead(load(columns=[Column(to=column, type=cast("Any", kind))]))
            assert (code, f"does not take {kind}" in text) == ("bad-query", True), text


async def test_no_name_of_a_table_is_mixed_up_with_one_of_ours(store: Store, configure: Configure) -> None:
    configure(store.settings("writable = ['*']"))
    store.write(TEN)
    for name in ("staged", "s", "n"):
        store.sql(CREATE.replace(" t ", f" {name} "))
        assert (await run(load(table=name, mode="upsert", key=["id"]))).inserted == 10
        assert store.sql(f"SELECT count(*) FROM {name}") == [["10"]]
    store.sql(CREATE.replace(" t ", f" {STAGED} "))
    assert (await dead(load(table=STAGED)))[0] == "bad-query"


async def test_a_table_that_another_points_to_is_not_replaced(store: Store) -> None:
    store.sql(
        "INSERT INTO t VALUES (77, 'old', NULL); CREATE TABLE child (id bigint REFERENCES t); INSERT INTO child VALUES (77)"
    )
    store.write(TEN)
    for message in (load(mode="replace"), load(mode="replace", dry_run=True)):
        code, text = await dead(message)
        assert (code, "the database refuses" in text, "77" in text) == ("bad-rows", True, False), text
    assert store.rows("a") == [["old"]]


async def test_the_sizes_of_columns_hold(store: Store) -> None:
    if not store.postgres:
        pytest.skip("SQLite's columns have none")
    store.sql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN whole AS int CHECK (VALUE > 0); DROP TABLE t;"
        "CREATE TABLE t (id smallint, i integer, v varchar(3), n numeric(4, 2), z timestamp, m mood, w whole)"
    )
    kinds = {"id": "int", "i": "int", "v": "text", "n": "decimal", "z": "timestamp", "m": "text", "w": "int"}
    columns = [Column(to=to, type=cast("Any", kind)) for to, kind in kinds.items()]
    good = "1,2,abc,12.34,2024-01-01 12:00,ok,5"
    bad = ["32768,,,,,,", ",2147483648,,,,,", ",,abcd,,,,", ",,,123.45,,,", ",,,,2024-01-01T12:00Z,,", ",,,,,glad,", ",,,,,,0"]
    store.write("\n".join([",".join(kinds), good, *bad, good, ""]))
    result = await run(load(columns=columns, bad_rows=BadRows(max=9, to="out:bad.jsonl")))
    assert counts(result) == (9, 2, 0, 0, 7)
    named = ["id", "i", "", "", "z", "", ""]  # some only the database sees
    assert [row[:2] for row in report(store)] == [[line, name] for line, name in enumerate(named, 3)]
    assert store.sql("SELECT * FROM t LIMIT 1") == [["1", "2", "abc", "12.34", "2024-01-01 12:00:00", "ok", "5"]]


async def test_a_refusal_at_the_commit_is_told_and_nothing_of_the_batch_is_there(store: Store) -> None:
    store.sql(
        "CREATE TABLE parent (id bigint PRIMARY KEY); DROP TABLE t;"
        "CREATE TABLE t (id bigint PRIMARY KEY, a text, b bigint REFERENCES parent DEFERRABLE INITIALLY DEFERRED)"
    )
    store.write("id,a,b\n1,x,\n2,x,\n3,x,77\n4,x,\n")
    code, text = await dead(load(batch=2, columns=[*COLUMNS[:2], Column(to="b", type="int")]))
    assert (code, "before line 6" in text, "77" in text) == ("bad-rows", True, False), text
    assert store.rows("id") == [["1"], ["2"]]


async def test_no_value_of_a_file_stands_in_a_statement(store: Store) -> None:
    if not store.postgres:
        pytest.skip("SQLite keeps no log")
    hostile = "'); DROP TABLE secret; --"
    store.write(f'id,a,b\n1,"{hostile}",\n2,"x"";DROP TABLE secret;",\n')
    await run(load(mode="upsert", key=["id"]))
    assert store.rows("a") == [[hostile], ['x";DROP TABLE secret;']]
    log = store.postgres.server.log()
    assert "INSERT INTO" in log
    assert "DROP TABLE secret" not in log


async def test_a_fault_of_the_settings_makes_the_job_wait(
    store: Store, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write(TEN)
    text = store.settings()
    faults = [
        ("databases.shop", "databases.other", "alias-missing: databases.shop"),
        ("roots.in", "roots.off", "alias-missing: roots.in"),
    ]
    if store.postgres:
        monkeypatch.setenv("WRONG", "wrong")
        wrong = store.postgres.url_of("locked")
        faults += [
            (store.postgres.url, f"{wrong}', password = 'env:WRONG", "auth-failed: databases.shop"),
            (
                store.postgres.url,
                f"{wrong}', password = 'env:NONE",
                "auth-failed: databases.shop: password: variable NONE is not set",
            ),
            (f"/{store.postgres.name}?", "/nowhere?", "alias-missing: databases.shop"),
        ]
    else:
        faults += [
            ("db:shop.db", "db:none.db", "No such file"),
            ("mode = 'write' }\ndata", "mode = 'read' }\ndata", "not 'write'"),
        ]
    for old, new, said in faults:
        assert old in text
        configure(text.replace(old, new))
        with pytest.raises(Snooze, match=said):
            await run(load())
    assert store.rows() == []


async def test_a_role_that_may_not_write_makes_the_job_wait_and_may_be_given_the_table(
    store: Store, configure: Configure
) -> None:
    if not store.postgres:
        pytest.skip("SQLite has no roles")
    store.sql("DROP ROLE IF EXISTS loader; CREATE ROLE loader LOGIN; GRANT SELECT, INSERT ON t TO loader")
    store.write(TEN)
    configure(store.settings().replace("postgres@", "loader@"))
    with pytest.raises(Snooze, match="alias-missing: databases.shop: permission denied"):
        await run(load())
    store.sql(f"{states.CREATE}; GRANT SELECT, INSERT, UPDATE, DELETE ON {states.TABLE} TO loader")
    assert (await run(load())).inserted == 10
    with pytest.raises(Snooze, match="permission denied for table t"):
        await run(load(mode="replace"))
    store.sql("DROP OWNED BY loader; DROP ROLE loader")


async def test_a_server_that_is_away_is_tried_again(store: Store, configure: Configure) -> None:
    if not store.postgres:
        pytest.skip("SQLite has no server")
    store.write(TEN)
    configure(store.settings().replace(str(store.postgres.server.folder), str(store.folder)))
    with pytest.raises(TemporaryFailure, match="connection-lost"):
        await run(load())


async def test_a_table_that_another_writes_is_tried_again(lite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_TIMEOUT_S", 0.01)
    lite.write(TEN)
    with closing(sqlite3.connect(lite.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            await run(load())
    assert (await run(load())).inserted == 10


@pytest.mark.parametrize("package", ["zstandard", "asyncpg"])
def test_without_a_package_only_jobs_that_need_it_wait(store: Store, package: str) -> None:
    store.write(TEN)
    needs = package == "asyncpg" and store.postgres is not None
    said = outcome(child(store, load(), without=package))
    assert said.startswith("Snooze: extra-missing: asyncpg: not installed; hint: pip install" if needs else '{"rows":10'), said
    store.write(zstandard.compress(TEN.encode()))
    said = outcome(child(store, load(compress="zstd", mode="replace"), without=package))
    waits = needs or package == "zstandard"
    assert said.startswith("Snooze: extra-missing: " + package if waits else '{"rows":10'), said


# --- again, killed, and cancelled ---------------------------------------------------------------------------------------------


async def test_a_second_run_does_nothing(store: Store) -> None:
    store.write(TEN)
    first = await run(load(batch=3))
    store.sql("DELETE FROM t WHERE id = 5")
    assert await run(load(batch=3)) == first
    assert len(store.rows()) == 9
    code, _ = await dead(load(batch=3), number=1)
    assert code == "bad-rows"  # another job inserts the same rows again, which the key of the table refuses


async def test_a_job_whose_report_is_there_opens_no_database(store: Store, configure: Configure) -> None:
    store.write(TEN)
    message = load(bad_rows=BadRows(to="out:bad.jsonl"))
    first = await run(message)
    assert report(store) == []
    configure(
        store.settings().replace("databases.shop", "databases.shop2")
        + "databases.shop = { sqlite = 'db:none.db', writable = ['t'] }\n"
    )
    assert await run(message) == first


async def test_a_report_never_replaces_anothers_file(store: Store) -> None:
    store.write(TEN)
    (store.folder / "out" / "bad.jsonl").write_text("kept")
    assert (await dead(load(bad_rows=BadRows(to="out:bad.jsonl"))))[0] == "output-exists"
    assert store.rows() == []


POINTS = {
    "insert": [
        *(("import.before-commit", time) for time in (1, 4)),
        *(("import.after-commit", time) for time in (1, 2, 4)),
        *(("import.before-report", 1), ("import.after-report", 1)),
    ],
    "upsert": [("import.before-commit", 2), ("import.after-commit", 2)],
    "replace": [("import.loaded", 1), ("import.loaded", 4), ("import.before-commit", 1), ("import.after-commit", 1)],
}


def seen(mode: str, name: str, time: int) -> int:
    """Return how many of the ten rows are in the table after a kill there."""
    if mode == "replace":
        return 10 if name == "import.after-commit" or "report" in name else 0
    batches = {"import.before-commit": time - 1, "import.after-commit": time}.get(name, 4)
    loaded = min(3 * batches, 10)
    return loaded + (mode == "upsert" and loaded <= 3)  # the row 3 was there before


@pytest.mark.parametrize("mode", ["insert", "upsert", "replace"])
async def test_a_kill_at_any_point_is_made_good_by_the_next_run(store: Store, mode: Any) -> None:
    store.write(gzip.compress((TEN + "x,bad,\n").encode()))
    key = ["id"] if mode == "upsert" else []
    message = load(mode=mode, key=key, compress="gzip", batch=3, bad_rows=BadRows(max=1, to="out:bad.jsonl"))
    expected: list[Any] = []
    for name, time in [("", 0), *POINTS[mode]]:
        store.sql("DELETE FROM t; INSERT INTO t VALUES (3, 'text\n3', 3.5)" if mode == "upsert" else "DELETE FROM t")
        store.sql(f"DROP TABLE IF EXISTS {states.TABLE}")
        shutil.rmtree(store.folder / "out")
        (store.folder / "out").mkdir()
        if name:
            process = child(store, message, point=name, times=time)
            process.communicate()
            assert process.returncode == -signal.SIGKILL, (name, time)
            assert len(store.rows()) == seen(mode, name, time)
        result = await run(message)
        names = sorted(path.name for path in (store.folder / "out").iterdir())
        found = [store.rows(), report(store), counts(result), result.sha256, names]
        expected = expected or found
        assert found == expected, (name, time)
    assert expected[2] == ((11, 9, 0, 1, 1) if mode == "upsert" else (11, 10, 0, 0, 1))
    assert expected[4] == ["bad.jsonl", "bad.jsonl.job.json"]


async def test_of_two_runs_of_one_job_only_one_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker was cut off from Redis while it loads; another one takes the job over, and both read where to go on."""
    store.write(TEN)
    message = load(batch=3)
    point, others = loading.point, list[Imported]()

    def meanwhile(name: str) -> None:
        if name == "import.after-commit" and not others:
            monkeypatch.setattr(loading, "point", point)
            others.append(asyncio.run(run(message)))

    monkeypatch.setattr(loading, "point", meanwhile)
    with pytest.raises(Snooze, match="locked: another run"):
        await run(message)
    assert [one.inserted for one in others] == [10]
    assert len(store.rows()) == 10
    assert await run(message) == others[0]


@pytest.mark.parametrize("mode", ["insert", "replace"])
async def test_a_cancelled_import_stops_and_leaves_whole_batches(store: Store, mode: Any) -> None:
    store.sql("INSERT INTO t VALUES (-1, 'old', NULL)")
    store.write("id,a,b\n" + "".join(f"{n},x,\n" for n in range(300_000)))
    message = load(batch=1000, mode=mode, bad_rows=BadRows(to="out:bad.jsonl"))
    one = job_of(message)
    task = asyncio.create_task(run(message, job=one))
    said = one.noted().said
    await asyncio.to_thread(until, lambda: said.progress is not None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(until, lambda: not list((store.folder / "out").iterdir()))
    left = len(store.rows("id"))
    assert left == 1 if mode == "replace" else (left % 1000 == 1 and 1 < left < 300_001)
    store.write(TEN, "u.csv")
    other = load(file="in:u.csv", mode="replace")
    assert (await run(other)).inserted == 10  # nothing is locked


async def test_progress_is_told_in_bytes(store: Store) -> None:
    store.write(TEN)
    message = load(batch=4)
    one = job_of(message)
    await run(message, job=one)
    progress = one.noted().said.progress
    assert progress is not None
    assert (progress.done, progress.total, progress.text) == (len(TEN), len(TEN), "10 rows")


# --- the contract, and all the way ---------------------------------------------------------------------------------------------


def test_the_handler_is_what_the_table_says() -> None:
    retry = import_data.retry
    assert (import_data.timeout_s, retry.attempts, retry.base_s, retry.cap_s) == (3600, 6, 30, 600)
    assert contract_of(ImportData).priority is Priority.MEDIUM


def changed(**fields: Any) -> dict[str, Any]:
    return {**PAYLOAD, **fields}


def column(**fields: Any) -> dict[str, Any]:
    return changed(columns=[{"to": "id", **fields}])


def decode(payload: dict[str, Any]) -> ImportData:
    """Decode as the worker does."""
    return import_data.decode(job("import-data", data=msgspec.json.encode(payload)))


@pytest.mark.parametrize(
    "payload",
    [
        PAYLOAD,
        changed(format="jsonl", compress="zstd", mode="upsert", key=["id"], batch=1, dry_run=True),
        changed(bad_rows={"max": 5000, "to": "out:bad.jsonl"}, delimiter="tab", mode="replace"),
        column(**{"from": "Größe in m²", "type": "decimal", "required": True, "null_as": "n/a"}),
        changed(columns=[{"to": f"c{n}"} for n in range(200)]),
    ],
)
def test_what_the_contract_offers_is_accepted(payload: dict[str, Any]) -> None:
    assert decode(payload).table == "t"


@pytest.mark.parametrize(
    "payload",
    [
        {},
        changed(more=1),
        changed(file="/etc/passwd"),
        changed(file="in:../t.csv"),
        changed(file="in:u\u0308.csv"),
        changed(file="in:t.csv\n"),
        changed(format="xml"),
        changed(compress="zip"),
        changed(delimiter="\t"),
        changed(db="Shop"),
        changed(db="shop\n"),
        changed(table="t; DROP TABLE t"),
        changed(table="t\n"),
        changed(table="public.t"),
        changed(columns=[]),
        changed(columns=[{"to": f"c{n}"} for n in range(201)]),
        changed(columns=[{"to": "a"}, {"to": "a"}]),
        column(to="a b"),
        column(to="a\n"),
        column(**{"from": "a\n"}),
        column(type="blob"),
        column(null_as="x" * 21),
        column(null_as="\x00"),
        column(more=1),
        changed(key=["id"]),
        changed(mode="upsert"),
        changed(mode="upsert", key=["a"]),
        changed(mode="upsert", key=["id", "id"]),
        changed(mode="upsert", key=["id\n"]),
        changed(mode="merge"),
        changed(bad_rows={"max": -1}),
        changed(bad_rows={"max": 5001}),
        changed(bad_rows={"to": "/tmp/x"}),
        changed(bad_rows={"to": "out:u\u0308"}),
        changed(bad_rows={"more": 1}),
        changed(batch=0),
        changed(batch=50_001),
        changed(dry_run="yes"),
    ],
)
def test_what_makes_no_sense_is_refused(payload: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode(payload)


async def test_a_plain_message_comes_all_the_way(store: Store, valkey: Server) -> None:
    store.write(TEN)
    client = valkey.client()
    client.xadd("{jobs}:medium", {"type": "import-data", "data": msgspec.json.encode(load())})
    async with working(valkey.url, import_data):
        await asyncio.to_thread(until, lambda: len(store.rows()) == 10)
    assert client.xlen("{jobs}:dead") == 0
    client.close()
