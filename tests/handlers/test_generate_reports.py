"""generate-reports: what is in the files, who is told of them and how often, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import io
import json
import os
import signal
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pypdf import PdfReader

from handlers import reports
from handlers.contracts.reports import GenerateReports, ReportsGenerated
from handlers.email import send_email
from handlers.kit import deliveries, folders
from handlers.kit import reports as kit
from handlers.kit.folders import MANIFEST
from handlers.kit.mail import close_pools
from handlers.kit.settings import at_start, current
from handlers.kit.threads import Stop
from handlers.reports import generate_reports
from runtime import BadPayload, ConfigError, Dead, Priority, Snooze
from runtime.jobs import Job, contract_of
from tests.builders import job
from tests.handlers.conftest import Configure, Start
from tests.handlers.disks import BORN_MS, Disk, child, job_of, outcome, state
from tests.handlers.disks import until as poll
from tests.handlers.postgres import PgDatabase
from tests.handlers.test_contracts import HOSTILE as CONTROLS
from tests.handlers.test_export_pdf import SPIN, writers
from tests.handlers.test_pages import HOSTILE, Tags
from tests.servers import Server
from tests.workers import working

POINTS = ["report-file", "folder-ready", "folder-named"]
SINCE = "-- :since text\n-- :until text\n"
QUERIES = {
    "orders-per-day": "SELECT substr(at, 1, 10) AS day, count(*) AS orders, sum(total) AS revenue FROM orders",
    "orders-by-status": "SELECT status, count(*) AS orders, sum(total) AS revenue FROM orders",
    "largest-orders": "SELECT id, at, customer, total FROM orders",
}
TOLD = """
smtp.main = { url = "smtp://localhost:1", plain = true }
senders.default = { smtp = "main", address = "shop@example.org" }
senders.shop = { smtp = "main", address = "shop@example.org" }
channels.ops = { kind = "webhook", url = "env:HOOK" }
channels.all = { kind = "webhook", dynamic = true, hosts = ["*.example.org"] }
"""
MONTH = {"period": "last-month"}  # jobs of these tests were born on 2023-11-14: October
FORMATS = ["pdf", "html", "csv", "json"]


@pytest.fixture
def disk(tmp_path: Path, configure: Configure) -> Disk:
    disk = Disk(tmp_path)
    for folder in ("out", "db", "logs", "documents"):
        (tmp_path / folder).mkdir()
    configure(f"{disk.settings()}{TOLD}documents.path = '{tmp_path / 'documents'}'\n")
    for name, text in QUERIES.items():
        last = {"largest-orders": "ORDER BY total DESC LIMIT 10"}.get(name, "GROUP BY 1 ORDER BY 1")
        disk.query(f"{SINCE}{text} WHERE at >= :since AND at < :until {last}", name)
    disk.sql("CREATE TABLE orders (id INTEGER, at TEXT, customer TEXT, total REAL, status TEXT)")
    return disk


def order(disk: Disk, *rows: tuple[str, str, float]) -> None:
    """Write orders: when, by whom, and for how much."""
    disk.sql("INSERT INTO orders VALUES (?, ?, ?, ?, 'paid')", rows=[(n, *row) for n, row in enumerate(rows)])


def october(disk: Disk) -> list[float]:
    totals = [n * 1.25 for n in range(1, 300)]
    inside = [(f"2023-10-{n % 31 + 1:02}T12:00:00Z", f"Customer {n % 7}", total) for n, total in enumerate(totals)]
    edges = [("2023-09-30T23:59:59Z", "before", 1e6), ("2023-11-01T00:00:00Z", "after", 1e6)]
    order(disk, *inside, *edges)
    return totals


def message(**fields: Any) -> GenerateReports:
    return msgspec.convert({"report": "orders", "window": MONTH, "to": "out", "formats": FORMATS, **fields}, GenerateReports)


def run(asked: GenerateReports, number: int = 0) -> tuple[ReportsGenerated, Job]:
    """Run it in this process: in a child of a worker, it runs the same."""
    one = job_of(asked, number)
    result = generate_reports.function(asked, one)
    assert isinstance(result, ReportsGenerated)
    return result, one


def code_of(asked: GenerateReports) -> str:
    with pytest.raises(Dead) as caught:
        run(asked)
    return caught.value.code


def define(disk: Disk, text: str, name: str = "r") -> None:
    (disk.folder / "documents" / f"{name}.toml").write_text(text, "utf-8")


def folder_of(disk: Disk, result: ReportsGenerated) -> Path:
    return disk.out / result.folder.removeprefix("out:")


def decode(payload: dict[str, Any]) -> GenerateReports:
    """Decode as the worker does."""
    return generate_reports.decode(job("generate-reports", data=msgspec.json.encode(payload)))


# --- the files -------------------------------------------------------------------------------------------------------------


def test_a_report_has_the_figures_of_the_database_in_each_format(disk: Disk) -> None:
    totals = october(disk)
    result, _ = run(message())
    folder = folder_of(disk, result)
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, *(file.name for file in result.files)])
    assert [file.name for file in result.files] == [
        "report.pdf",
        "report.html",
        "days.csv",
        "status.csv",
        "largest.csv",
        "report.json",
    ]
    assert (result.title, result.rows, result.delivered) == ("Orders, 2023-10-01 to 2023-10-31", 31 + 1 + 10, None)

    revenue = f"{sum(totals):,.2f}"
    text = " ".join(" ".join(page.extract_text().split()) for page in PdfReader(folder / "report.pdf").pages)
    assert revenue in text and "Average order" in text and "2023-10-31" in text and "1,000,000" not in text
    page = " ".join(Tags((folder / "report.html").read_text()).text)
    assert revenue in page and "2023-10-31" in page and "1,000,000" not in page
    with (folder / "days.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (sum(float(row["revenue"]) for row in rows), sum(int(row["orders"]) for row in rows)) == (sum(totals), len(totals))
    known = json.loads((folder / "report.json").read_bytes())
    assert known["tables"]["status"]["rows"] == [["paid", len(totals), sum(totals)]]
    assert known["window"]["begin"] == "2023-10-01T00:00:00Z" and known["window"]["last_day"] == "2023-10-31"
    assert len(msgspec.json.encode(result)) < 4096


def test_the_window_is_by_the_zone_and_by_when_the_job_was_born(disk: Disk) -> None:
    assert datetime.fromtimestamp(BORN_MS / 1000, UTC).date().isoformat() == "2023-11-14"
    order(
        disk,
        ("2023-10-28T23:30:00Z", "in Berlin, October 29", 1.0),
        ("2023-10-29T22:59:00Z", "the same day", 2.0),
        ("2023-10-29T23:00:00Z", "no more", 4.0),
    )
    day = {"from": "2023-10-29T00:00:00+02:00", "to": "2023-10-30T00:00:00+01:00", "tz": "Europe/Berlin"}
    result, _ = run(message(window=day, formats=["json"]))
    known = json.loads((folder_of(disk, result) / "report.json").read_bytes())
    assert known["tables"]["status"]["rows"] == [["paid", 2, 3.0]]
    assert result.title == "Orders, 2023-10-29"
    for window, name in [({"period": "yesterday"}, "2023-11-13"), ({"period": "last-week"}, "2023-W45"), (MONTH, "2023-10")]:
        result, one = run(message(window=window, formats=["csv"]))
        assert result.folder == f"out:orders/{name}/{one.work}"


def test_no_rows_are_a_report_that_says_so(disk: Disk) -> None:
    result, _ = run(message())
    assert result.rows == 0
    folder = folder_of(disk, result)
    assert "No orders in this time." in " ".join(PdfReader(folder / "report.pdf").pages[0].extract_text().split())
    assert (folder / "days.csv").read_bytes() == b"day,orders,revenue\r\n"


@pytest.mark.parametrize("hostile", [text for text in HOSTILE if "\x00" not in text])
def test_hostile_rows_are_inert(disk: Disk, hostile: str) -> None:
    order(disk, ("2023-10-05T00:00:00Z", hostile, 1.0), ("2023-10-06T00:00:00Z", "=1+1", 2.0))
    plain, _ = run(message(report="orders", formats=["html", "csv"]))
    tags = Tags((folder_of(disk, plain) / "report.html").read_text())
    assert not {"script", "img", "a"} & set(tags.tags)
    with (folder_of(disk, plain) / "largest.csv").open(newline="") as file:
        assert "'=1+1" in file.read()


def test_parameters_reach_queries_with_their_types(disk: Disk) -> None:
    october(disk)
    disk.query(
        "-- :least real\n-- :who text\n-- :n integer\nSELECT count(*) AS n FROM orders "
        "WHERE total >= :least AND customer = :who AND id > :n",
        "some",
    )
    define(
        disk,
        'title = "{{ params.who }}"\nqueries.some = { db = "shop", query = "some", params = '
        '{ least = "{{ params.least }}", who = "Customer {{ params.who }}", n = 5 } }\n'
        '[[blocks]]\nkind = "table"\nrows = "some"\n',
    )
    result, _ = run(message(report="r", params={"least": 100, "who": "3"}))
    assert json.loads((folder_of(disk, result) / "report.json").read_bytes())["tables"]["some"]["rows"] != [[0]]
    assert code_of(message(report="r", params={"who": "3"})) == "template-error"
    assert code_of(message(report="r", params={"least": "x", "who": "3"})) == "bad-query"


def test_all_queries_see_one_moment(disk: Disk) -> None:
    """While the first query has been read and the second not, somebody writes."""
    disk.sql("PRAGMA journal_mode = WAL")
    october(disk)
    define(
        disk,
        'title = "x"\nqueries.a = { db = "shop", query = "n" }\nqueries.b = { db = "shop", query = "n" }\n'
        '[[blocks]]\nkind = "table"\nrows = "a"\n',
    )
    disk.query("SELECT count(*) AS n FROM orders", "n")
    real = kit.rows_of
    written: list[int] = []

    def writing(*arguments: Any) -> Any:
        if written:
            disk.sql("INSERT INTO orders VALUES (1000, '2023-10-01', 'late', 1, 'paid')")
        written.append(1)
        return real(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kit, "rows_of", writing)
        result, _ = run(message(report="r", formats=["json"]))
    tables = json.loads((folder_of(disk, result) / "report.json").read_bytes())["tables"]
    assert tables["a"] == tables["b"] and len(written) == 2


def test_a_report_over_postgresql_has_its_types(disk: Disk, configure: Configure, postgres: PgDatabase) -> None:
    configure(
        f"{disk.settings()}documents.path = '{disk.folder / 'documents'}'\n"
        f"databases.pg = {{ url = '{postgres.url}', tls = 'off', queries = '{disk.folder / 'db'}' }}\n"
    )
    postgres.sql("CREATE TABLE orders (at timestamptz, total numeric(10, 2), note text)")
    postgres.sql("INSERT INTO orders SELECT '2023-10-05 12:00Z', 0.10, '=1' FROM generate_series(1, 3)")
    postgres.sql("INSERT INTO orders VALUES ('2023-11-01 00:00Z', 99, NULL)")
    disk.query("-- :since timestamp\n-- :until timestamp\nSELECT * FROM orders WHERE at >= :since AND at < :until", "pg")
    define(
        disk,
        'title = "x"\n'
        'blocks = [{ kind = "figures", rows = [["Sum", "{{ q.total(\'total\')|number }}"]] }, { kind = "table", rows = "q" }]\n'
        '[queries.q]\ndb = "pg"\nquery = "pg"\nparams = { since = "{{ window.begin }}", until = "{{ window.end }}" }\n',
    )
    result, _ = run(message(report="r"))
    folder = folder_of(disk, result)
    assert result.rows == 3
    assert "Sum 0.30" in " ".join(PdfReader(folder / "report.pdf").pages[0].extract_text().split())
    assert (folder / "q.csv").read_text().count("0.10,'=1") == 3
    assert json.loads((folder / "report.json").read_bytes())["tables"]["q"]["rows"][0][1:] == ["0.10", "=1"]


def test_a_title_fits_a_subject(disk: Disk) -> None:
    define(disk, "title = '''{{ params.x }}\n{{ params.x }}'''\nblocks = []")
    result, one = run(
        message(report="r", formats=["json"], params={"x": "a\n" * 300}, deliver={"kind": "mail", "to": ["a@example.org"]})
    )
    assert "\n" not in result.title and len(result.title) <= 200 and len(one.followers) == 1
    define(disk, "title = '{{ params.x }}'\nblocks = []")
    empty = message(report="r", formats=["json"], params={"x": " "}, deliver={"kind": "notification", "channel": "ops"})
    assert run(empty)[0].title == "r"


# --- repeats and crashes ------------------------------------------------------------------------------------------------------


def test_a_repeat_finds_the_folder_and_another_job_makes_its_own(disk: Disk) -> None:
    october(disk)
    first, _ = run(message())
    before = state(folder_of(disk, first))
    order(disk, ("2023-10-05T00:00:00Z", "late", 1.0))
    assert run(message())[0] == first
    assert state(folder_of(disk, first)) == before
    other, _ = run(message(), 1)
    assert other.folder != first.folder and other.files != first.files


def test_equal_rows_make_equal_bytes(disk: Disk) -> None:
    october(disk)
    assert run(message())[0].files == run(message(), 1)[0].files


def test_a_folder_that_was_changed_is_not_taken_for_ours(disk: Disk) -> None:
    result, _ = run(message(formats=["json"]))
    (folder_of(disk, result) / "report.json").write_text("{}")
    assert code_of(message(formats=["json"])) == "output-exists"
    (folder_of(disk, result) / MANIFEST).unlink()
    assert code_of(message(formats=["json"])) == "output-exists"


@pytest.mark.parametrize(("point", "times"), [("report-file", 1), ("report-file", 6), ("folder-ready", 1), ("folder-named", 1)])
def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(disk: Disk, point: str, times: int) -> None:
    october(disk)
    asked = message(deliver={"kind": "mail", "to": ["ada@example.org"]})
    for _ in range(2 if point != "folder-named" else 1):
        killed = child(disk, asked, point=point, times=times)
        killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL
    visible = [name for name in disk.names(disk.out) if name.endswith("report.pdf") and "/." not in name]
    assert len(visible) == (point == "folder-named")
    result, one = run(asked)
    undisturbed, _ = run(asked, 1)
    assert result.files == undisturbed.files
    assert [packed.head.id for packed in one.followers] == [f"{one.work}:mail"] == [result.delivered]
    assert not [name for name in disk.names(disk.out) if name.endswith(".part")]
    assert len(list((disk.out / "orders" / "2023-10").iterdir())) == 2


def test_two_runs_at_once_do_not_meet(disk: Disk) -> None:
    """The folder of a run that is not over is locked."""
    asked = message()
    path = disk.out / "orders" / "2023-10"
    path.mkdir(parents=True)
    part = path / f".{job_of(asked).work}.{job_of(asked).work}.part"
    part.mkdir()
    held = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Snooze, match="locked"):
            run(asked)
    finally:
        os.close(held)
    assert run(asked)[0].rows == 0


def made(rows: int) -> ReportsGenerated:
    return ReportsGenerated(title="t", folder="out:a/b", files=[], rows=rows)


def test_a_repeat_that_meets_the_end_of_the_first_run_spoils_nothing(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run gives the folder its name after the repeat has opened it, and before the repeat locks it."""
    lock = fcntl.flock
    with ExitStack() as running, folders.folder(current(), "out:a/b", "w", Stop()) as repeat:
        first = running.enter_context(folders.folder(current(), "out:a/b", "w", Stop()))
        first.write("r", b"first")

        def flock(descriptor: int, how: int) -> None:
            monkeypatch.setattr(fcntl, "flock", lock)
            first.finish(made(1))
            running.close()
            lock(descriptor, how)

        assert repeat.already(ReportsGenerated) is None
        monkeypatch.setattr(fcntl, "flock", flock)
        repeat.write("r", b"second")
        assert (disk.out / "a" / "b" / "r").read_bytes() == b"first"
        assert repeat.finish(made(2)) == made(1)
    assert disk.names(disk.out) == ["a", "a/b", "a/b/.job.json", "a/b/r"]
    with folders.folder(current(), "out:a/b", "w", Stop()) as again:
        assert again.already(ReportsGenerated) == made(1)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_name_that_another_takes_meanwhile_is_left_to_it(disk: Disk, kind: str) -> None:
    with pytest.raises(Dead) as caught, folders.folder(current(), "out:b", "w", Stop()) as late:
        late.write("r", b"late")
        if kind == "folder":
            (disk.out / "b").mkdir()
            (disk.out / "b" / "precious").touch()
        else:
            (disk.out / "b").touch()
        late.finish(made(1))
    assert caught.value.code == "output-exists"
    assert disk.names(disk.out) == (["b", "b/precious"] if kind == "folder" else ["b"])


def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    said = outcome(child(disk, message(), file_bytes=10_000))
    assert said.startswith("Snooze: out-of-space: roots.out"), said
    assert disk.names(disk.out) == ["orders", "orders/2023-10"]


async def test_a_cancel_leaves_nothing_visible(disk: Disk) -> None:
    define(disk, f"title = 'x'\nqueries = {{}}\n[[blocks]]\nkind = 'paragraph'\ntext = '''{SPIN}'''")
    asked = message(report="r")
    task = asyncio.create_task(generate_reports.run(asked, job_of(asked)))
    await asyncio.to_thread(poll, (disk.out / "r").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(poll, lambda: not writers(disk.out))
    assert not [path for path in disk.out.rglob("*") if path.is_file()]


# --- who is told --------------------------------------------------------------------------------------------------------------


def test_a_mail_has_the_files_that_fit(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    october(disk)
    result, one = run(message(deliver={"kind": "mail", "to": ["ada@example.org", "bob@example.org"], "sender": "shop"}))
    (packed,) = one.followers
    mail = msgspec.json.decode(packed.data)
    assert (packed.head.id, result.delivered, packed.head.fields[3]) == (f"{one.work}:mail", f"{one.work}:mail", "send-email")
    assert (mail["to"], mail["sender"], mail["subject"]) == (["ada@example.org", "bob@example.org"], "shop", result.title)
    assert [each["path"] for each in mail["attachments"]] == [f"{result.folder}/{file.name}" for file in result.files]
    assert "2023-10-01 00:00 UTC" in mail["text"] and result.folder in mail["text"]
    monkeypatch.setattr(deliveries, "MAX_ATTACHED_BYTES", result.files[1].bytes + 10)
    _, one = run(message(deliver={"kind": "mail", "to": ["ada@example.org"]}))
    assert msgspec.json.decode(one.followers[0].data)["attachments"][0]["name"] == "report.html"
    _, one = run(message(deliver={"kind": "mail", "to": ["ada@example.org"], "attach": False}), 2)
    assert msgspec.json.decode(one.followers[0].data)["attachments"] == []


def test_a_channel_is_told(disk: Disk) -> None:
    result, one = run(message(deliver={"kind": "notification", "channel": "ops"}))
    (packed,) = one.followers
    said = msgspec.json.decode(packed.data)
    assert (said["channel"], said["title"], packed.head.id) == ("ops", result.title, f"{one.work}:notification")


async def test_a_plain_message_comes_all_the_way_and_one_mail_is_sent(disk: Disk, valkey: Server) -> None:
    october(disk)
    client = valkey.client()
    payload = {"report": "orders", "window": MONTH, "to": "out", "deliver": {"kind": "mail", "to": ["ada@example.org"]}}
    client.xadd("{jobs}:low", {"type": "generate-reports", "data": msgspec.json.encode(payload)})
    async with working(valkey.url, generate_reports):
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:low") == 0)
    assert client.xlen("{jobs}:dead") == 0
    assert len(list(disk.out.rglob("report.pdf"))) == 1
    sent = client.xrange("{jobs}:high")
    assert len(sent) == 1, sent
    assert "send-email" in str(sent) and ":mail" in str(sent)
    client.close()


async def test_after_three_kills_one_mail_arrives_with_the_report(
    disk: Disk, configure: Configure, start: Start, valkey: Server
) -> None:
    """Killed in the child, as the runtime's own child would be; then a worker runs it, and the mail that it hands on."""
    october(disk)
    host = start()
    configure(
        f"{disk.settings()}smtp.main = {{ url = 'smtp://localhost:{host.port}', plain = true }}\n"
        "senders.default = { smtp = 'main', address = 'no-reply@example.com', attach = ['out'] }\n"
    )
    asked = message(deliver={"kind": "mail", "to": ["ada@example.org"]})
    for point in POINTS:
        killed = await asyncio.to_thread(child, disk, asked, point=point)
        await asyncio.to_thread(killed.communicate, timeout=120)
    client = valkey.client()
    client.xadd("{jobs}:low", {"type": "generate-reports", "data": msgspec.json.encode(asked)}, id=f"{BORN_MS}-0")
    async with working(valkey.url, generate_reports, send_email):
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:low") == 0 and bool(host.messages))
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:high") == 0)
    close_pools()
    await asyncio.to_thread(poll, lambda: host.open_connections == 0)
    (mail,) = host.messages
    attached = {part.get_filename(): part.get_content() for part in mail.iter_attachments()}
    assert mail["Subject"] == "Orders, 2023-10-01 to 2023-10-31"
    assert sorted(attached) == sorted(file.name for file in run(asked)[0].files)
    assert "Orders" in PdfReader(io.BytesIO(attached["report.pdf"])).pages[0].extract_text()
    assert len(list((disk.out / "orders" / "2023-10").iterdir())) == 1
    client.close()


# --- settings -----------------------------------------------------------------------------------------------------------------


def test_reports_of_the_settings_are_schedules(disk: Disk, configure: Configure) -> None:
    configure(
        f"{disk.settings()}{TOLD}"
        "reports.orders = { to = 'out', tz = 'Europe/Berlin', deliver = { kind = 'mail', to = ['ada@example.org'] } }\n"
        "reports.weekly = { report = 'orders', every = 'week', to = 'out', formats = ['csv'] }\n"
        "reports.monthly = { report = 'orders', every = 'month', to = 'out', when = '0 6 2 * *', params = { a = 1 } }\n"
        "reports.off = { to = 'out', enabled = false }\n"
    )
    found = {schedule.name: schedule for schedule in reports.SCHEDULES()}
    assert list(found) == ["generate-reports.orders", "generate-reports.weekly", "generate-reports.monthly"]
    assert [schedule.when for schedule in found.values()] == ["0 5 * * *", "15 5 * * 1", "0 6 2 * *"]
    assert {(schedule.missed, schedule.cap, schedule.expires_s) for schedule in found.values()} == {("all", 7, 604_800)}
    daily, weekly = at_start().reports["orders"].job(), at_start().reports["weekly"].job()
    assert (daily.report, daily.window.period, daily.window.tz) == ("orders", "yesterday", "Europe/Berlin")
    assert (weekly.report, weekly.window.period, weekly.formats) == ("orders", "last-week", ["csv"])
    assert all(decode(msgspec.to_builtins(schedule.message)) for schedule in found.values())


@pytest.mark.parametrize(
    "text",
    [
        "reports.x = { to = 'none' }",
        "reports.x = { to = 'db' }",
        "reports.x = { to = 'out', every = 'year' }",
        "reports.x = { to = 'out', formats = ['doc'] }",
        "reports.x = { to = 'out', formats = ['csv', 'csv'] }",
        "reports.x = { to = 'out', formats = [] }",
        "reports.x = { to = 'out', tz = 'Mars' }",
        "reports.x = { to = 'out', window = { last = '1d' } }",
        "reports.x = { to = 'out', deliver = { kind = 'mail', to = ['nobody'] } }",
        "reports.x = { to = 'out', deliver = { kind = 'fax' } }",
        "reports.x = { to = 'out', deliver = { kind = 'mail', to = ['a@example.org'], sender = 'none' } }",
        "reports.x = { to = 'out', deliver = { kind = 'notification', channel = 'none' } }",
        "reports.x = { to = 'out', deliver = { kind = 'notification', channel = 'all' } }",
        "reports.x = 1",
        "documents.path = 1",
        "documents = { path = '/x', more = 1 }",
    ],
)
def test_settings_that_make_no_sense_end_the_start(disk: Disk, configure: Configure, text: str) -> None:
    configure(f"{disk.settings()}{TOLD}{text}\n")
    with pytest.raises(ConfigError):
        reports.SCHEDULES()


def test_settings_that_must_be_fixed_make_the_job_wait(disk: Disk) -> None:
    for asked, wanted in [(message(report="nothing"), "documents.nothing"), (message(to="none"), "roots.none")]:
        with pytest.raises(Snooze, match=f"alias-missing: {wanted}"):
            run(asked)
    for deliver, wanted in [
        ({"kind": "mail", "to": ["a@example.org"], "sender": "none"}, "senders.none"),
        ({"kind": "notification", "channel": "none"}, "channels.none"),
    ]:
        with pytest.raises(Snooze, match=f"alias-missing: {wanted}"):
            run(message(deliver=deliver))
    assert code_of(message(to="db")) == "bad-path"
    assert code_of(message(deliver={"kind": "notification", "channel": "all"})) == "bad-payload"
    (disk.folder / "db" / "largest-orders.sql").unlink()
    with pytest.raises(Snooze, match="alias-missing: databases.shop"):
        run(message())
    assert not list(disk.out.rglob("*.pdf"))


def test_links_on_the_way_are_refused(disk: Disk) -> None:
    (disk.out / "orders").symlink_to(disk.folder / "db")
    assert code_of(message()) == "bad-path"


# --- the contract -------------------------------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    declared = generate_reports
    assert (declared.timeout_s, declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s) == (900, 4, 120, 1800)
    assert contract_of(GenerateReports).priority is Priority.LOW
    assert declared.runs == "process" and declared.result is not None


FULL: dict[str, Any] = {
    "report": "orders",
    "window": {"last": "7d", "tz": "Europe/Berlin"},
    "to": "out",
    "formats": FORMATS,
    "params": {"a": 1},
    "deliver": {"kind": "mail", "to": ["ada@example.org"], "sender": "shop", "attach": False},
    "lang": "de",
    "page": "letter",
}


def test_what_the_contract_offers_is_accepted() -> None:
    assert decode(FULL).lang == "de"
    assert decode({"report": "r", "window": MONTH}).formats == ["pdf", "html"]
    assert decode({**FULL, "deliver": {"kind": "notification", "channel": "ops"}})


@pytest.mark.parametrize("tail", [*CONTROLS, "\n"])
@pytest.mark.parametrize("field", ["report", "to", "lang"])
def test_no_text_may_hold_a_control_character(field: str, tail: str) -> None:
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        decode({**FULL, field: f"{FULL[field]}{tail}"})


@pytest.mark.parametrize(
    "change",
    [
        {"report": "../x"},
        {"window": None},
        {"window": {"last": "7w"}},
        {"to": "out:x"},
        {"formats": []},
        {"formats": ["pdf", "pdf"]},
        {"formats": ["xlsx"]},
        {"params": {"a": "\x07"}},
        {"params": {"a": "x" * 40_000}},
        {"deliver": {"kind": "mail", "to": []}},
        {"deliver": {"kind": "mail", "to": ["a@b.org"] * 21}},
        {"deliver": {"kind": "mail", "to": ["a@b.org\n"]}},
        {"deliver": {"kind": "mail", "to": ["a@b.org"], "cc": []}},
        {"deliver": {"kind": "notification", "channel": "https://x"}},
        {"deliver": {"to": ["a@b.org"]}},
        {"page": "A5"},
        {"more": 1},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})
