"""export-pdf: from a payload to a file, who may ask for what, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image as Picture
from pypdf import PdfReader

from handlers.contracts.reports import ExportPdf, PdfExported
from handlers.contracts.sources import Query, Table
from handlers.reports import export_pdf
from runtime import BadPayload, Dead, Priority, Retry, Snooze
from runtime.jobs import contract_of
from tests.builders import job
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, job_of, outcome, state, until
from tests.handlers.test_contracts import HOSTILE as CONTROLS
from tests.servers import Server
from tests.workers import working

INVOICE: dict[str, Any] = {
    "number": "2026-0042",
    "date": "2026-11-28",
    "currency": "EUR",
    "seller": ["Example GmbH", "10969 Berlin"],
    "customer": ["Ada Lovelace Ltd", "London"],
    "lines": [
        {"text": "Hosting", "quantity": 1, "price": 249, "amount": 249},
        {"text": "Support", "quantity": "3 h", "price": 120, "amount": 360},
    ],
    "totals": [["Net", 609.0], ["Total", "724.71"]],
}
STATEMENT: dict[str, Any] = {
    "holder": ["Ada Lovelace Ltd", "London"],
    "account": "4711",
    "currency": "EUR",
    "first_day": "2026-10-01",
    "last_day": "2026-10-31",
    "opening": 1000,
    "closing": 1250.5,
}
EXPRESSIONS = """
title = "A title"
blocks = [
  { kind = "paragraph", when = "note", text = "never" },
  { kind = "paragraph", when = "lines.count > 1 and who == 'Ada'", text = "<b>{{ who }}</b> {{ lines.total('price')|number }}" },
  { kind = "table", rows = "lines", columns = [
    { name = "sum", title = "For {{ who }}", value = "row.price * row.n", decimals = 1 },
  ] },
  { kind = "chart", chart = "bar", rows = "lines", label = "n", values = ["price"] },
  { kind = "columns", parts = [[], [{ kind = "paragraph", when = "note", text = "never" }]] },
]
"""
POINTS = ["pdf-laid", "pdf-written", "pdf-finished"]
SPIN = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def disk(tmp_path: Path, configure: Configure) -> Disk:
    disk = Disk(tmp_path)
    for folder in ("out", "db", "logs", "documents"):
        (tmp_path / folder).mkdir()
    configure(f"{disk.settings()}documents.path = '{tmp_path / 'documents'}'\n")
    return disk


def define(disk: Disk, text: str, name: str = "d") -> None:
    (disk.folder / "documents" / f"{name}.toml").write_text(text, "utf-8")


def blocks(*texts: str) -> str:
    """Return a definition of these blocks."""
    return 'title = "A title"\n' + ("" if texts else "blocks = []") + "".join(f"[[blocks]]\n{text}\n" for text in texts)


def message(document: str = "d", to: str = "out:d.pdf", **fields: Any) -> ExportPdf:
    return msgspec.convert({"document": document, "to": to, **fields}, ExportPdf)


def run(asked: ExportPdf, number: int = 0) -> PdfExported:
    """Run it in this process: in a child of a worker, it runs the same."""
    result = export_pdf.function(asked, job_of(asked, number))
    assert isinstance(result, PdfExported)
    return result


def code_of(asked: ExportPdf) -> str:
    with pytest.raises(Dead) as caught:
        run(asked)
    return caught.value.code


def text_of(path: Path) -> str:
    return " ".join(" ".join(page.extract_text().split()) for page in PdfReader(path).pages)


def decode(payload: dict[str, Any]) -> ExportPdf:
    """Decode as the worker does."""
    return export_pdf.decode(job("export-pdf", data=msgspec.json.encode(payload)))


# --- documents -------------------------------------------------------------------------------------------------------------


def test_the_letter_of_the_page_can_be_written(disk: Disk) -> None:
    page = (Path(__file__).parents[2] / "docs" / "shipped-handlers.md").read_text("utf-8")
    [definition] = re.findall(r"```toml\n(title = \"Letter.*?)```", page, re.DOTALL)
    [payload] = re.findall(r"enqueue export-pdf '(\{\"document\": \"letter\".*)'", page)
    define(disk, definition, "letter")
    run(msgspec.json.decode(payload, type=ExportPdf))
    text = PdfReader(disk.out / "letters" / "7.pdf").pages[0].extract_text()
    assert "Dear Ada" in text
    assert text.count("49.50") == 2, "of the line, and the total"


def test_sums_have_two_decimals_also_where_they_are_of_the_data(disk: Disk) -> None:
    run(message("invoice", data={**INVOICE, "totals": [["Net", 609.5], ["Items", 2], ["Total", "725.31"]]}, lang="de"))
    text = PdfReader(disk.out / "d.pdf").pages[0].extract_text()
    assert "609,50" in text
    assert "725.31" in text, "texts are as the sender wrote them"
    assert "2,00" not in text


def test_an_invoice_has_its_figures(disk: Disk) -> None:
    result = run(message("invoice", data={**INVOICE, "note": "Thank you."}, title="Invoice for Ada", lang="de"))
    text = text_of(disk.out / "d.pdf")
    for wanted in (
        "Ada Lovelace Ltd",
        "2026-0042",
        "Hosting 1 249,00 249,00",
        "Support 3 h 120,00 360,00",
        "Net 609",
        "Total 724.71",
        "Thank you.",
    ):
        assert wanted in text, text
    assert (result.pages, result.missing_glyphs, result.path) == (1, 0, "out:d.pdf")
    reader = PdfReader(disk.out / "d.pdf")
    assert reader.metadata is not None and reader.metadata.title == "Invoice for Ada"
    assert disk.names(disk.out) == ["d.pdf", "d.pdf.job.json"]
    assert json.loads((disk.out / "d.pdf.job.json").read_text())["result"]["pages"] == 1
    assert len(msgspec.json.encode(result)) < 4096


def test_a_statement_takes_its_entries_from_a_table(disk: Disk) -> None:
    disk.table(
        "day TEXT, text TEXT, amount REAL, balance REAL",
        [(f"2026-10-{n:02}", f"entry {n}", 10.5, 1000 + n) for n in range(1, 29)],
    )
    source = {"kind": "table", "db": "shop", "table": "t", "columns": ["day", "text", "amount", "balance"]}
    run(message("statement", data=STATEMENT, tables={"entries": source}))
    text = text_of(disk.out / "d.pdf")
    assert "Opening balance" in text and "1,250.50" in text and "250.50" in text
    assert all(f"2026-10-{n:02} entry {n} 10.50 {1000 + n:,.2f}" in text for n in range(1, 29))
    run(message("statement", to="out:e.pdf", data={**STATEMENT, "entries": []}), 1)
    assert "No entries in this time." in text_of(disk.out / "e.pdf")


def test_a_definition_of_the_operator_comes_before_a_shipped_one(disk: Disk) -> None:
    define(disk, blocks('kind = "paragraph"\ntext = "ours {{ number }}"'), "invoice")
    run(message("invoice", data={"number": 7}))
    assert text_of(disk.out / "d.pdf") == "A title 1 / 1 ours 7"


def test_expressions_choose_blocks_and_work_out_columns(disk: Disk) -> None:
    define(disk, EXPRESSIONS)
    disk.table("n INTEGER, price REAL", [(2, 1.5), (3, 2.25)])
    source = {"kind": "table", "db": "shop", "table": "t", "columns": ["n", "price"]}
    run(message(data={"who": "Ada"}, tables={"lines": source}))
    text = text_of(disk.out / "d.pdf")
    assert "Ada 3.75" in text and "For Ada 3.0 6.8" in text and "never" not in text


def test_values_may_stand_in_a_file(disk: Disk) -> None:
    define(disk, blocks('kind = "paragraph"\ntext = "{{ a.b }} {{ c|length }}"'))
    (disk.folder / "db" / "data.json").write_bytes(msgspec.json.encode({"a": {"b": "deep"}, "c": ["x" * 1000] * 1000}))
    run(message(data_file="db:data.json"))
    assert text_of(disk.out / "d.pdf").endswith("deep 1000")
    for content, code in [
        (b"[1]", "bad-payload"),
        (b"{", "bad-payload"),
        (b"[" * 100_000, "bad-payload"),
        (b" " * 11_000_000, "too-large"),
    ]:
        (disk.folder / "db" / "data.json").write_bytes(content)
        assert code_of(message(to="out:e.pdf", data_file="db:data.json")) == code


def test_an_image_comes_from_a_root(disk: Disk) -> None:
    define(disk, blocks('kind = "image"\npath = "{{ logo }}"\nwidth_mm = 30'))
    out = io.BytesIO()
    Picture.new("RGB", (60, 30), "red").save(out, "PNG")
    (disk.folder / "db" / "logo.png").write_bytes(out.getvalue())
    run(message(data={"logo": "db:logo.png"}))
    assert len(PdfReader(disk.out / "d.pdf").pages[0].images) == 1
    (disk.folder / "db" / "link.png").symlink_to(disk.folder / "db" / "logo.png")
    for path in ("/etc/passwd", "db:../x.png", "http://127.0.0.1:9/x.png", "db:link.png", "file:///etc/passwd", "db:"):
        assert code_of(message(to="out:e.pdf", data={"logo": path})) == "bad-path"
    with pytest.raises(Retry, match="input-missing"):
        run(message(to="out:e.pdf", data={"logo": "db:none.png"}))
    assert disk.names(disk.out) == ["d.pdf", "d.pdf.job.json"]


# --- data is data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hostile",
    [
        "{{ 7 * 7 }}",
        "{% for x in y %}",
        "<b>x",
        "</b>",
        "<img src='http://127.0.0.1:9/'/>",
        "&lt;",
        "${7*7}",
        "{{ ''.__class__ }}",
    ],
)
def test_templates_in_data_come_out_as_typed(disk: Disk, hostile: str) -> None:
    data = {**INVOICE, "note": hostile, "number": hostile, "customer": [hostile, hostile], "facts": [[hostile, hostile]]}
    data["lines"] = [{"text": hostile, "quantity": 1, "price": 1, "amount": 1}]
    data["totals"] = [[hostile, hostile]]
    run(message("invoice", data=data, title=hostile))
    text = text_of(disk.out / "d.pdf").replace(" ", "")
    assert text.count(hostile.replace(" ", "")) >= 9, text


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ lines.append(1) }}",
        "{{ ('%s' * 3) % cycler.__init__.__globals__ }}",
        "{{ lines.__class__ }}",
        "{{ lang.format_map }}{{ '{0.__class__}'.format(lang) }}",
        "{% include '/etc/passwd' %}",
        "{% set x = lines.rows.clear() %}",
        "{{ missing }}",
        "{{ number / 0 }}",
        "{{ number",
        "{% if %}",
        "{{ lines|nothing }}",
        "{{ [1].index(lines[0].a) }}",
        "{{ lines[0][lines[0].a] }}",
        "secretly {{ lines[0][lines[0].a] }}",
        "{{ lines[number] }}",
    ],
)
def test_the_sandbox_holds_and_faults_end_the_job_without_values(disk: Disk, template: str) -> None:
    define(disk, blocks(f"kind = \"heading\"\ntext = '''{template}'''"))
    with pytest.raises(Dead) as caught:
        run(message(data={"number": 4711, "lines": [{"a": "secret"}]}))
    assert caught.value.code == "template-error"
    assert "secret" not in str(caught.value) and "4711" not in str(caught.value)
    assert disk.names(disk.out) == []


@pytest.mark.parametrize(
    ("template", "said"),
    [("{{ nobody }}", "'nobody' is undefined"), ("{{ a.b }}", "no attribute 'b'"), ("{{ a[key] }}", "a value is missing")],
)
def test_what_is_missing_is_named_by_the_definition_alone(disk: Disk, template: str, said: str) -> None:
    define(disk, blocks(f"kind = \"heading\"\ntext = '''{template}'''"))
    with pytest.raises(Dead, match=f"block 1: .*{said}"):
        run(message(data={"a": {}, "key": "secret"}))


@pytest.mark.parametrize(
    ("definition", "code"),
    [
        ("title = 1\nblocks = []", "template-error"),
        ("nothing", "template-error"),
        (blocks('kind = "nothing"'), "template-error"),
        (blocks('kind = "heading"\ntext = "x"\nsize = 3'), "template-error"),
        (blocks('kind = "heading"\ntext = "x"\nlevel = 4'), "template-error"),
        (blocks('kind = "table"\nrows = "nothing"'), "template-error"),
        (blocks('kind = "table"\nrows = "number"'), "template-error"),
        (blocks('kind = "values"\nrows = "nothing"'), "template-error"),
        (blocks('kind = "values"\nrows = "number"'), "template-error"),
        (blocks('kind = "table"\nrows = "list"\ncolumns = [{ name = "x", value = "row.nothing" }]'), "template-error"),
        (blocks('kind = "table"\nrows = "list"\ncolumns = [{ name = "nothing" }]'), "template-error"),
        (blocks('kind = "paragraph"\nwhen = "1 +"\ntext = "x"'), "template-error"),
        ('title = "x"\nblocks = []\nqueries.q = { db = "shop", query = "q" }', "template-error"),
        ("#" * 300_000, "template-error"),
    ],
)
def test_a_definition_that_makes_no_sense_ends_the_job(disk: Disk, definition: str, code: str) -> None:
    define(disk, definition)
    assert code_of(message(data={"number": 1, "list": [{"a": 1}]})) == code
    assert disk.names(disk.out) == []


# --- who may ask for what -----------------------------------------------------------------------------------------------------


def test_tables_are_those_that_the_database_allows(disk: Disk, configure: Configure) -> None:
    disk.table("a TEXT", [("x",)])
    configure(disk.settings().replace("['*']", "['other']") + f"documents.path = '{disk.folder / 'documents'}'\n")
    define(disk, blocks('kind = "table"\nrows = "x"'))
    source = Table(db="shop", table="t", columns=["a"])
    assert code_of(ExportPdf(document="d", to="out:d.pdf", tables={"x": source})) == "bad-query"
    disk.query("SELECT a FROM t")
    assert run(ExportPdf(document="d", to="out:d.pdf", tables={"x": Query(db="shop", query="q")})).pages == 1


def test_a_table_has_a_bounded_number_of_rows(disk: Disk) -> None:
    disk.sql("CREATE TABLE t (a)")
    disk.query("WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT n FROM n LIMIT 50001")
    define(disk, blocks('kind = "paragraph"\ntext = "{{ x.count }}"'))
    assert code_of(ExportPdf(document="d", to="out:d.pdf", tables={"x": Query(db="shop", query="q")})) == "too-large"


def test_settings_that_must_be_fixed_make_the_job_wait(disk: Disk, configure: Configure) -> None:
    define(disk, blocks())
    for asked, wanted in [
        (message("nothing"), "documents.nothing"),
        (message(to="none:d.pdf"), "roots.none"),
        (message(data_file="none:d.json"), "roots.none"),
        (message(tables={"x": {"kind": "table", "db": "none", "table": "t", "columns": ["a"]}}), "databases.none"),
    ]:
        with pytest.raises(Snooze, match=f"alias-missing: {wanted}"):
            run(asked)
    assert code_of(message(to="db:d.pdf")) == "bad-path"
    configure("documents.path = 7")
    with pytest.raises(Snooze, match="documents"):
        run(message())


def test_only_what_a_job_wrote_is_replaced(disk: Disk) -> None:
    define(disk, blocks())
    (disk.out / "d.pdf").write_text("somebody's")
    assert code_of(message(overwrite=True)) == "output-exists"
    (disk.out / "d.pdf").unlink()
    run(message())
    assert code_of(message(title="another")) == "output-exists"
    assert run(message(title="another", overwrite=True), 1).pages == 1


# --- repeats and crashes ------------------------------------------------------------------------------------------------------


def test_a_repeat_finds_its_work_done(disk: Disk) -> None:
    asked = message("invoice", data=INVOICE)
    first = run(asked)
    before = state(disk.out)
    define(disk, "nothing that could be read", "invoice")
    assert run(asked) == first
    assert state(disk.out) == before


def test_equal_payloads_make_equal_bytes(disk: Disk) -> None:
    assert run(message("invoice", data=INVOICE)).sha256 == run(message("invoice", to="out:e.pdf", data=INVOICE), 1).sha256
    assert (disk.out / "d.pdf").read_bytes() == (disk.out / "e.pdf").read_bytes()


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(disk: Disk, point: str) -> None:
    asked = message("invoice", data=INVOICE)
    killed = child(disk, asked, point=point)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    visible = [name for name in disk.names(disk.out) if not name.startswith(".")]
    assert visible == (["d.pdf", "d.pdf.job.json"] if point == "pdf-finished" else [])
    result = run(asked)
    assert disk.names(disk.out) == ["d.pdf", "d.pdf.job.json"]
    assert run(message("invoice", to="out:e.pdf", data=INVOICE), 1).sha256 == result.sha256


def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    said = outcome(child(disk, message("invoice", data=INVOICE), file_bytes=10_000))
    assert said.startswith("Snooze: out-of-space: roots.out"), said
    assert disk.names(disk.out) == []


# --- the child ------------------------------------------------------------------------------------------------------------------


async def test_it_runs_in_a_child_that_its_memory_limit_stops_and_the_worker_goes_on(disk: Disk) -> None:
    doubled = "{% set n = namespace(x='x' * 100000) %}{% for _ in range(15) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"
    define(disk, blocks(f'kind = "paragraph"\ntext = "{doubled}"'), "large")
    define(disk, blocks('kind = "paragraph"\ntext = "pid"'))
    hungry, modest = message("large"), message()
    with pytest.raises(Exception, match="MemoryError|killed"):
        await export_pdf.run(hungry, job_of(hungry))
    assert disk.names(disk.out) == []
    await export_pdf.run(modest, job_of(modest))
    assert disk.names(disk.out) == ["d.pdf", "d.pdf.job.json"]


async def test_what_ends_a_job_comes_back_from_the_child(disk: Disk) -> None:
    define(disk, blocks('kind = "image"\npath = "db:none.png"'))
    for asked, kind, said in [
        (message("nothing"), Snooze, "alias-missing: documents.nothing"),
        (message(), Retry, "input-missing"),
        (message("invoice", data={}), Dead, "'number' is undefined|'seller' is undefined"),
    ]:
        with pytest.raises(kind, match=said):
            await export_pdf.run(asked, job_of(asked))


async def test_people_see_how_many_rows_are_drawn(disk: Disk) -> None:
    entries = [{"day": "2026-10-01", "text": f"entry {n}", "amount": 1, "balance": n} for n in range(100)]
    asked = message("statement", data={**STATEMENT, "entries": entries})
    one = job_of(asked)
    await export_pdf.run(asked, one)
    assert one.extras is not None and one.extras.said.progress is not None
    assert "100" in str(one.extras.said.progress) and "rows laid out" in str(one.extras.said.progress)


async def test_a_cancel_kills_the_child_and_leaves_nothing_visible(disk: Disk) -> None:
    define(disk, blocks(f"kind = \"paragraph\"\ntext = '''{SPIN}'''"))
    asked = message()
    task = asyncio.create_task(export_pdf.run(asked, job_of(asked)))
    await asyncio.to_thread(until, lambda: any(disk.out.iterdir()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(until, lambda: not writers(disk.out))
    assert all(name.startswith(".") for name in disk.names(disk.out))
    define(disk, blocks())
    assert run(asked).pages == 1
    assert disk.names(disk.out) == ["d.pdf", "d.pdf.job.json"]


def writers(folder: Path) -> list[str]:
    """Return the processes that have a file of this folder open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(entry).startswith(str(folder)):
                found.append(entry.parts[2])
        except OSError:
            continue
    return found


async def test_a_plain_message_comes_all_the_way_with_its_result(disk: Disk, valkey: Server) -> None:
    client = valkey.client()
    payload = {"document": "invoice", "to": "out:d.pdf", "data": INVOICE}
    client.xadd("{jobs}:high", {"type": "export-pdf", "data": msgspec.json.encode(payload), "id": "one"})
    async with working(valkey.url, export_pdf):
        await asyncio.to_thread(until, (disk.out / "d.pdf.job.json").exists)
        await asyncio.to_thread(until, lambda: client.xlen("{jobs}:high") == 0)
    assert client.xlen("{jobs}:dead") == 0
    assert "2026-0042" in text_of(disk.out / "d.pdf")
    client.close()


# --- the contract -------------------------------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    assert (export_pdf.timeout_s, export_pdf.retry.attempts, export_pdf.retry.base_s, export_pdf.retry.cap_s) == (300, 3, 10, 120)
    assert contract_of(ExportPdf).priority is Priority.HIGH
    assert export_pdf.runs == "process" and export_pdf.result is not None


FULL: dict[str, Any] = {
    "document": "invoice",
    "to": "out:d.pdf",
    "data": {"a": "b"},
    "tables": {"x": {"kind": "query", "db": "shop", "query": "q"}},
    "page": "letter",
    "title": "T",
    "lang": "de-CH",
    "overwrite": True,
}


def test_what_the_contract_offers_is_accepted() -> None:
    assert decode(FULL).title == "T"
    assert decode({"document": "d", "to": "out:d.pdf", "data_file": "in:x.json"}).data == {}


@pytest.mark.parametrize("tail", [*CONTROLS, "\n"])
@pytest.mark.parametrize("field", ["document", "to", "title", "lang", "data_file"])
def test_no_text_may_hold_a_control_character(field: str, tail: str) -> None:
    payload = {**FULL, "data": {}, "data_file": "in:x.json"}
    assert decode(payload)
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        decode({**payload, field: f"{payload[field]}{tail}"})


@pytest.mark.parametrize(
    "change",
    [
        {"document": None},
        {"document": "../x"},
        {"document": "X"},
        {"to": "d.pdf"},
        {"to": "out:../d.pdf"},
        {"to": "/d.pdf"},
        {"to": "out:u\u0308.pdf"},
        {"data": []},
        {"data": {"a": "\x00"}},
        {"data": {str(n): 1 for n in range(65)}},
        {"data": {"a": "x" * 40_000}},
        {"data_file": "in:x.json"},
        {"data": {}, "data_file": "x.json"},
        {"tables": {f"t{n}": FULL["tables"]["x"] for n in range(11)}},
        {"tables": {"X": FULL["tables"]["x"]}},
        {"tables": {"x": {"kind": "sql", "sql": "SELECT 1"}}},
        {"page": "A3"},
        {"title": "x" * 201},
        {"lang": "german"},
        {"lang": "de_CH"},
        {"overwrite": 1},
        {"more": 1},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})
