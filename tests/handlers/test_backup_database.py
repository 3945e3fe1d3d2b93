"""backup-database: what is in a backup and how that is proved, what is kept, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import zstandard

from handlers.contracts.maintenance import BackedUp, BackupDatabase
from handlers.contracts.notifications import SendNotification
from handlers.kit import dumps, pgdumps, sqlite
from handlers.kit.backups import Manifest, NotVerified, expired, opened_shelf
from handlers.kit.databases import opened
from handlers.kit.dumps import dump_sqlite
from handlers.kit.failures import TemporaryFailure
from handlers.kit.sections import Backup
from handlers.kit.settings import current
from handlers.kit.sqlite import SqliteSession
from handlers.kit.threads import Stop, Stopped
from handlers.maintenance import backup_database, main, verify
from runtime import BadPayload, ConfigError, Dead, Priority, Snooze, testing
from runtime.jobs import contract_of
from runtime.registry import find
from runtime.testing import Done, Notes
from tests import builders
from tests.handlers.conftest import Configure
from tests.handlers.disks import BORN_MS, ROOT, Disk, child, is_gone, job_of, outcome, until
from tests.handlers.postgres import LOCKED, PgDatabase
from tests.handlers.test_contracts import HEADER_ENDS, HOSTILE
from tests.servers import Server

POINTS = ("before-dump", "after-dump", "before-publish", "after-publish")
PG_POINTS = ("before-scratch", "after-scratch", "after-restore", "before-drop", "after-drop")
REMOVING = ("before-remove", "while-removing", "after-remove")
SLOW_TOOL = """#!/bin/sh
case "$1" in
--version) echo "$(basename "$0") (PostgreSQL) 99.1"; exit ;;
esac
echo $$ >"$0.pid"
cat "$PGPASSFILE" >"$0.password"
stat -Lc %a "$PGPASSFILE" >"$0.mode"
mv "$0.pid" "$0.ready"
while :; do sleep 0.05; done
"""


@dataclass
class Shop:
    """A database with 1000 rows in `t` and 10 in `u`, and where its backups go: it is called `shop` in the settings, too."""

    disk: Disk
    kind: str
    sql: Callable[[str], Any]
    text: str
    configure: Configure
    postgres: PgDatabase | None = None

    @property
    def folder(self) -> Path:
        return self.disk.out / "shop"

    def set(self, more: str = "", **changes: str) -> None:
        """Write the settings; `more` stands in the section of the backup, and `changes` replaces text in all of them."""
        text = self.text + f"backups.shop = {{ to = 'out:shop'{more} }}\n"
        for old, new in changes.items():
            text = text.replace(old, new)
        self.configure(text)

    def visible(self) -> list[str]:
        """Return the names of all files and folders below that of the backups, but for its lock."""
        return [name for name in self.disk.names(self.folder) if name != ".lock"] if self.folder.exists() else []

    def drafts(self) -> list[Path]:
        """Return the folders that nobody is to see."""
        return list(self.folder.glob(".2*"))

    def scratches(self) -> list[list[str]]:
        """Return the scratch databases that are there."""
        found = self.postgres.sql("SELECT datname FROM pg_database WHERE datname LIKE 'backup_check%'") if self.postgres else []
        return [row for row in found if row]

    def made(self, result: BackedUp) -> Path:
        """Return the folder of a backup."""
        return self.disk.out / result.folder.removeprefix("out:")


@pytest.fixture
def sqlite_shop(tmp_path: Path, configure: Configure) -> Shop:
    disk = Disk(tmp_path)
    for folder in ("out", "db", "logs"):
        (tmp_path / folder).mkdir()
    shop = Shop(disk, "sqlite", disk.sql, disk.settings(), configure)
    disk.sql("CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT)", "CREATE TABLE u (a)", "CREATE INDEX i ON t (b)")
    disk.sql("INSERT INTO t VALUES (?, ?)", rows=[(number, f"text {number}") for number in range(1000)])
    disk.sql("INSERT INTO u VALUES (?)", rows=[(number,) for number in range(10)])
    shop.set()
    return shop


@pytest.fixture
def pg_shop(tmp_path: Path, configure: Configure, postgres: PgDatabase) -> Shop:
    disk = Disk(tmp_path)
    for folder in ("out", "db", "logs"):
        (tmp_path / folder).mkdir()
    role = f"keeper_{postgres.name}"
    url = postgres.url_of(role)
    text = disk.settings().replace(f"sqlite = 'db:shop.db', queries = '{tmp_path / 'db'}'", f"url = '{url}', tls = 'off'")
    shop = Shop(disk, "postgresql", postgres.sql, text, configure, postgres)
    postgres.sql(f"CREATE ROLE {role} LOGIN CREATEDB IN ROLE pg_read_all_data")
    postgres.sql("CREATE TABLE t (a int PRIMARY KEY, b text); CREATE TABLE u (a int); CREATE INDEX i ON t (b)")
    postgres.sql(
        "INSERT INTO t SELECT n, 'text ' || n FROM generate_series(0, 999) n; INSERT INTO u SELECT generate_series(1, 10)"
    )
    shop.set()
    return shop


@pytest.fixture(params=["sqlite", "postgresql"])
def shop(request: pytest.FixtureRequest) -> Shop:
    """Each of the two."""
    return request.getfixturevalue("sqlite_shop" if request.param == "sqlite" else "pg_shop")


async def run(number: int = 0, **fields: Any) -> BackedUp:
    message = BackupDatabase(**{"backup": "shop", **fields})
    result = await cast("Awaitable[object]", backup_database(message, job_of(message, number)))
    assert isinstance(result, BackedUp)
    return result


def manifest_of(folder: Path) -> Manifest:
    return msgspec.json.decode((folder / "manifest.json").read_bytes(), type=Manifest)


def unpacked(path: Path) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())


def decode(payload: dict[str, Any]) -> BackupDatabase:
    """Decode as the worker does."""
    return backup_database.decode(builders.job("backup-database", data=msgspec.json.encode(payload)))


# --- what is in a backup -----------------------------------------------------------------------------------------------------


async def test_a_backup_is_complete_verified_and_for_nobody_else_to_read(shop: Shop) -> None:
    result = await run(label="before the move")
    folder = shop.made(result)
    file = next(path for path in folder.iterdir() if path.name != "manifest.json")
    assert sorted(shop.visible()) == sorted([folder.name, f"{folder.name}/{file.name}", f"{folder.name}/manifest.json"])
    assert (result.tables, result.rows, result.verified, result.removed) == (2, 1010, "restored", [])
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert (folder / "manifest.json").stat().st_mode & 0o777 == 0o600
    manifest = manifest_of(folder)
    prefix = "public." if shop.postgres else ""
    assert manifest.tables == {f"{prefix}t": 1000, f"{prefix}u": 10}
    assert (manifest.kind, manifest.label, manifest.born.timestamp()) == (shop.kind, "before the move", BORN_MS / 1000)
    assert manifest.taken.timestamp() == pytest.approx(time.time(), abs=600)
    assert (result.compressed, result.bytes) == (file.stat().st_size, len(unpacked(file)))
    assert len(msgspec.json.encode(result)) < 4096
    assert shop.scratches() == []
    assert verify(str(folder)).startswith(f"{file.name}: {'listed' if shop.postgres else 'restored'}, 2 tables")


async def test_what_was_backed_up_can_be_had_again(sqlite_shop: Shop, tmp_path: Path) -> None:
    folder = sqlite_shop.made(await run())
    (tmp_path / "again.db").write_bytes(unpacked(folder / "shop.sqlite.zst"))
    with closing(sqlite3.connect(tmp_path / "again.db")) as connection:
        assert connection.execute("SELECT sum(a), count(DISTINCT b) FROM t").fetchall() == [(499_500, 1000)]


async def test_what_was_dumped_can_be_had_again(pg_shop: Shop, tmp_path: Path) -> None:
    folder = pg_shop.made(await run())
    assert pg_shop.postgres
    (tmp_path / "again.dump").write_bytes(unpacked(folder / "shop.pgdump.zst"))
    again = pg_shop.postgres.server.create()
    try:
        tool = [
            pg_shop.postgres.server.bin / "pg_restore",
            "-U",
            "postgres",
            "-h",
            pg_shop.postgres.server.folder,
            "-d",
            again.name,
        ]
        subprocess.run([*tool, "--no-owner", "--exit-on-error", str(tmp_path / "again.dump")], check=True)
        assert again.sql("SELECT sum(a), count(DISTINCT b) FROM t") == [["499500", "1000"]]
    finally:
        pg_shop.postgres.server.drop(again)


async def test_a_repeat_finds_its_work_done(shop: Shop) -> None:
    result = await run()
    before = [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(shop.made(result).iterdir())]
    assert await run() == result
    assert [(path, path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(shop.made(result).iterdir())] == before
    other = await run(1)
    assert other.folder != result.folder
    assert other.removed == [shop.made(result).name], "of a day the last one is kept"


async def test_a_backup_that_is_damaged_meanwhile_is_made_anew_by_its_own_job(shop: Shop) -> None:
    result = await run()
    file = next(shop.made(result).glob("shop.*"))
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again = await run()
    assert again.folder == result.folder
    assert verify(str(shop.made(again)))
    assert not shop.drafts()


async def test_people_see_how_far_it_is(shop: Shop) -> None:
    notes = Notes()
    message = BackupDatabase(backup="shop")
    assert isinstance(await testing.run(backup_database, message, notes=notes), Done)
    assert notes.progress is not None
    assert (notes.progress.done, notes.progress.total, notes.progress.text) == (2, 2, "tables verified")


async def test_one_that_is_only_listed_says_so(shop: Shop) -> None:
    result = await run(verify="list")
    assert result.verified == "listed"
    assert manifest_of(shop.made(result)).why_listed == "only asked to list it"
    shop.set(", verify = 'list'")
    assert (await run(1, verify="restore")).verified == "listed"


# --- a writer runs meanwhile -------------------------------------------------------------------------------------------------


async def test_a_sqlite_file_that_is_written_to_is_backed_up_as_of_one_moment(sqlite_shop: Shop) -> None:
    sqlite_shop.disk.sql("PRAGMA journal_mode = WAL", "CREATE TABLE filler AS SELECT randomblob(3000) FROM t, u")
    over = threading.Event()
    moved: list[int] = []

    def move() -> None:
        with closing(sqlite3.connect(sqlite_shop.disk.database, isolation_level=None, timeout=60)) as connection:
            for number in range(1000):
                if over.is_set():
                    return
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("DELETE FROM t WHERE a = ?", (number,))
                connection.execute("INSERT INTO u VALUES (?)", (number,))
                connection.execute("COMMIT")
                moved.append(number)

    writer = threading.Thread(target=move)
    writer.start()
    try:
        until(lambda: len(moved) > 5)
        result = await run()
        before = len(moved)
        until(lambda: len(moved) > before or len(moved) == 1000)
    finally:
        over.set()
        writer.join()
    tables = manifest_of(sqlite_shop.made(result)).tables
    assert tables["t"] + tables["u"] == 1010
    assert tables["u"] > 10
    assert result.verified == "restored"


async def test_a_postgresql_database_that_is_written_to_is_backed_up_as_of_one_moment(pg_shop: Shop) -> None:
    assert pg_shop.postgres
    pg_shop.sql("CREATE TABLE filler AS SELECT n, repeat(md5(n::text), 30) AS text FROM generate_series(1, 20000) n")
    command = [pg_shop.postgres.server.bin / "psql", "-XqU", "postgres", "-h", pg_shop.postgres.server.folder]
    with subprocess.Popen([*command, "-d", pg_shop.postgres.name], stdin=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None
        for number in range(1000):
            writer.stdin.write(f"BEGIN; DELETE FROM t WHERE a = {number}; INSERT INTO u VALUES ({number}); COMMIT;")
            writer.stdin.write("SELECT pg_sleep(0.002);\n\\o /dev/null\n")
        writer.stdin.flush()
        until(lambda: int(pg_shop.sql("SELECT count(*) FROM u")[0][0]) > 20)
        result = await run()
        assert writer.poll() is None
        writer.kill()
    tables = manifest_of(pg_shop.made(result)).tables
    assert tables["public.t"] + tables["public.u"] == 1010
    assert 20 < tables["public.u"] < 1010
    assert result.verified == "restored"


async def test_the_connection_that_holds_the_moment_may_be_lost_once_the_dump_is_there(
    pg_shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[list[str]] = []

    def point(name: str) -> None:
        if name == "backup.after-dump":
            ours = "application_name = 'backend-jobs' AND state = 'idle in transaction' AND datname = current_database()"
            ended.extend(pg_shop.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}"))

    monkeypatch.setattr(pgdumps, "point", point)
    assert (await run()).verified == "restored"
    assert ended == [["t"]]


async def test_a_lost_connection_is_tried_again(pg_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def point(name: str) -> None:
        if name == "backup.after-restore":
            ours = "datname LIKE 'backup_check%' OR application_name = 'backend-jobs'"
            pg_shop.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
        if name == "backup.before-dump":
            pg_shop.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'backend-jobs'")

    monkeypatch.setattr(pgdumps, "point", point)
    with pytest.raises(TemporaryFailure, match=r"connection-lost: databases\.shop"):
        await run()
    assert pg_shop.visible() == []


async def test_a_stop_is_heard_in_the_midst_of_a_copy(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "COPY_PAGES", 1)
    stop, steps = Stop(), []

    def told(done: float, total: float | None, text: str) -> None:
        steps.append(text)
        stop.is_set = True

    job, settings = job_of(BackupDatabase(backup="shop")), current()
    with opened(settings, "shop", stop) as session, opened_shelf(settings, "shop") as shelf, shelf.draft(job) as draft:
        assert isinstance(session, SqliteSession)
        with pytest.raises(Stopped):
            dump_sqlite(session, draft, "shop", told, stop)
    assert steps == ["bytes copied"]
    assert sqlite_shop.visible() == []


# --- what is not as it should be ---------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    """Take the second half away."""
    os.truncate(file, file.stat().st_size // 2)


def cut_at_frame(file: Path) -> None:
    """Take a part away and pack the rest anew: nothing is wrong with what is left."""
    content = unpacked(file)
    file.write_bytes(zstandard.compress(content[: len(content) // 2]))


@pytest.fixture
def spoil(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Path], None]], None]]:
    """Have something done to the packed file, right after it was written."""

    def at(change: Callable[[Path], None]) -> None:
        def point(name: str) -> None:
            if name == "backup.after-dump":
                change(next(shop.folder.glob(".2*/shop.*.zst")))

        monkeypatch.setattr(dumps, "point", point)
        monkeypatch.setattr(pgdumps, "point", point)

    yield at


@pytest.mark.parametrize(
    ("change", "how"),
    [
        pytest.param(flip, "restore", id="flip"),
        pytest.param(cut, "restore", id="cut"),
        pytest.param(cut_at_frame, "restore", id="half"),
        pytest.param(lambda file: file.unlink(), "restore", id="gone"),
        pytest.param(cut_at_frame, "list", id="half, listed"),
    ],
)
async def test_a_damaged_file_is_no_backup(shop: Shop, spoil: Any, change: Callable[[Path], None], how: str) -> None:
    spoil(change)
    with pytest.raises(TemporaryFailure, match=r"verify-failed: backups\.shop"):
        await run(verify=how)
    assert shop.visible() == []
    assert shop.scratches() == []


async def test_a_wrong_count_is_no_backup(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pgdumps if shop.postgres else dumps
    compare = module.compare
    monkeypatch.setattr(module, "compare", lambda found, wanted: compare({**found, next(iter(found)): 7}, wanted))
    with pytest.raises(TemporaryFailure, match="1 of 2 tables are not as they were: .*t has 7 rows, not 1000"):
        await run()
    assert shop.visible() == []
    assert shop.scratches() == []


@pytest.mark.parametrize("change", [flip, cut, cut_at_frame])
async def test_a_backup_is_checked_anywhere(
    shop: Shop, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shop.made(await run())
    assert main(["verify", str(folder)]) == 0
    change(next(folder.glob("shop.*")))
    assert main(["verify", str(folder)]) == 1
    assert "not verified: shop." in capsys.readouterr().err
    with pytest.raises(NotVerified):
        verify(str(folder))


async def test_a_manifest_that_says_other_rows_is_found_out(sqlite_shop: Shop) -> None:
    folder = sqlite_shop.made(await run())
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"t": 1000', '"t": 999'))
    with pytest.raises(NotVerified, match="t has 1000 rows, not 999"):
        verify(str(folder))
    (folder / "manifest.json").write_text(text.replace("shop.sqlite.zst", "../shop.sqlite.zst"))
    with pytest.raises(NotVerified, match="no manifest"):
        verify(str(folder))


def test_a_check_runs_as_a_program(sqlite_shop: Shop, tmp_path: Path) -> None:
    for arguments, status in ([["verify", str(tmp_path)], 1], [["check", str(tmp_path)], 2]):
        command = [sys.executable, "-m", "handlers.maintenance", *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert "Traceback" not in done.stderr


async def test_a_database_that_is_damaged_itself_is_told_of(sqlite_shop: Shop) -> None:
    sqlite_shop.disk.sql("CREATE TABLE big AS SELECT randomblob(3000) AS x FROM t")
    with sqlite_shop.disk.database.open("r+b") as file:
        file.seek(4096 * 6 + 8)
        file.write(os.urandom(4000))
    with pytest.raises((TemporaryFailure, sqlite3.DatabaseError)):
        await run()
    assert sqlite_shop.visible() == []


async def test_a_channel_hears_of_it_at_once_and_another_job_tries_again(shop: Shop, spoil: Any) -> None:
    shop.set(", channel = 'ops'")
    spoil(flip)
    notes = Notes()
    outcome = await testing.run(backup_database, BackupDatabase(backup="shop", label="x"), notes=notes)
    assert isinstance(outcome, Done)
    alert, again = notes.sent
    assert (alert.type, alert.priority, alert.payload["channel"]) == ("send-notification", Priority.CRITICAL, "ops")
    assert (alert.payload["level"], alert.payload["title"]) == ("critical", "The backup shop could not be verified")
    assert (again.type, again.payload) == ("backup-database", {"backup": "shop", "verify": "restore", "label": "x", "tries": 2})
    with pytest.raises(Dead) as caught:
        await run(tries=4)
    assert caught.value.code == "verify-failed"
    assert shop.visible() == []


async def test_an_alert_can_be_sent_whatever_the_tables_are_called(sqlite_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_shop.set(", channel = 'ops'")
    sqlite_shop.disk.sql(*(f'CREATE TABLE "a{number}\r\x1b[2J\u202e{"x" * 5000}" (a)' for number in range(3)))
    compare = dumps.compare
    monkeypatch.setattr(dumps, "compare", lambda found, wanted: compare({}, wanted))
    notes = Notes()
    assert isinstance(await testing.run(backup_database, BackupDatabase(backup="shop"), notes=notes), Done)
    alert = msgspec.convert(notes.sent[0].payload, SendNotification)
    assert alert.body.startswith("5 of 5 tables are not as they were: a0??[2J?xxx")


async def test_end_to_end_a_plain_message_makes_a_backup_and_what_hangs_on_it(
    sqlite_shop: Shop, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite_shop.set(", channel = 'ops'")
    client = valkey.client()
    async with testing.worker(valkey.url, backup_database) as running:
        client.xadd("{jobs}:low", {"type": "backup-database", "data": '{"backup":"shop"}', "id": "nightly-1"})
        result = await running.producer.result("nightly-1", timeout_s=60, type=BackedUp)
        assert (result.verified, result.rows) == ("restored", 1010)
        monkeypatch.setattr(dumps, "compare", lambda found, wanted: (_ for _ in ()).throw(NotVerified("other rows")))
        client.xadd("{jobs}:low", {"type": "backup-database", "data": '{"backup":"shop"}', "id": "nightly-2"})
        result = await running.producer.result("nightly-2", timeout_s=60, type=BackedUp)
        assert result.verified == "failed"
        (due,) = client.zrange("{jobs}:due", 0, -1)
        assert due.endswith(":again")
    assert len(sqlite_shop.visible()) == 3
    client.close()


# --- kills and cancels -------------------------------------------------------------------------------------------------------


def kill_at(shop: Shop, point: str, **options: Any) -> None:
    killed = child(shop.disk, BackupDatabase(backup="shop"), point=f"backup.{point}", **options)
    said, _ = killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL, said


def plant(shop: Shop, name: str, days: float, **fields: Any) -> Path:
    """Put a backup of an earlier day on the shelf, and return its folder."""
    taken = datetime.now(UTC) - timedelta(days=days)
    work = (name * 26)[:26]
    folder = shop.folder / f"{taken:%Y%m%dT%H%M%SZ}-{work}"
    folder.mkdir(parents=True)
    (folder / "x").write_bytes(b"content")
    manifest = {
        **{"backup": "shop", "work": work, "born": taken, "taken": taken, "kind": "sqlite", "file": "x", "bytes": 7},
        **{
            "content_sha256": "",
            "compressed": 7,
            "sha256": "",
            "tables": {},
            "versions": {},
            "verified": "restored",
            "seconds": 1,
        },
        **fields,
    }
    (folder / "manifest.json").write_bytes(msgspec.json.encode(Manifest(**manifest)))
    return folder


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_at_a_named_point_is_made_good_by_the_next_run(shop: Shop, point: str) -> None:
    kill_at(shop, point)
    assert len(list(shop.folder.glob("2*"))) == (point == "after-publish")
    result = await run()
    assert sorted(shop.visible()) == sorted(
        [p for f in [shop.made(result)] for p in [f.name, *(f"{f.name}/{x.name}" for x in f.iterdir())]]
    )
    assert len(shop.visible()) == 3
    assert verify(str(shop.made(result)))


@pytest.mark.parametrize("point", PG_POINTS)
async def test_a_kill_during_a_restore_leaves_no_scratch_database_after_the_next_run(pg_shop: Shop, point: str) -> None:
    kill_at(pg_shop, point)
    assert len(pg_shop.scratches()) == (point not in ("before-scratch", "after-drop"))
    result = await run()
    assert result.verified == "restored"
    assert pg_shop.scratches() == []
    assert len(pg_shop.visible()) == 3


@pytest.mark.parametrize("point", REMOVING)
async def test_a_kill_while_old_backups_go_is_made_good_by_the_next_run(sqlite_shop: Shop, point: str) -> None:
    sqlite_shop.set(", keep_daily = 1, keep_weekly = 0, keep_monthly = 0")
    old = [plant(sqlite_shop, letter, days) for letter, days in (("a", 9), ("b", 8))]
    kill_at(sqlite_shop, point)
    await run()
    assert not any(folder.exists() for folder in old)
    for path in sqlite_shop.drafts():  # what is left of one that was being removed, a day later
        os.utime(path, (0, 0))
    await run(1)
    assert len(sqlite_shop.visible()) == 3


async def test_a_cancel_leaves_nothing_that_is_seen(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def point(name: str) -> None:
        if name == "backup.after-dump":
            reached.set()
            assert go_on.wait(60)

    with monkeypatch.context() as patch:
        patch.setattr(dumps, "point", point)
        patch.setattr(pgdumps, "point", point)
        task = asyncio.create_task(run())
        await asyncio.to_thread(reached.wait, 60)
        with pytest.raises(Snooze, match=r"locked: another run works on backups\.shop"):
            await run(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        until(lambda: not shop.drafts())
    assert (await ready(1)).verified == "restored"
    assert shop.scratches() == []


async def ready(number: int) -> BackedUp:
    """Run once the lock of a run that was cancelled is free."""
    end_s = time.monotonic() + 60
    while True:
        try:
            return await run(number)
        except Snooze:
            assert time.monotonic() < end_s
            await asyncio.sleep(0.01)


@dataclass
class SlowTool:
    """A program that never ends, in the place of PostgreSQL's own; it tells its pid, and the password that it was given."""

    path: Path

    def pid(self) -> int:
        """Wait until it runs."""
        until(self.path.with_suffix(".ready").exists)
        return int(self.path.with_suffix(".ready").read_text())


@pytest.fixture
def slow_tool(pg_shop: Shop) -> SlowTool:
    folder = pg_shop.disk.folder / "tools"
    folder.mkdir()
    (folder / "pg_dump").write_text(SLOW_TOOL)
    (folder / "pg_dump").chmod(0o755)
    pg_shop.set(f", tools = '{folder}'")
    return SlowTool(folder / "pg_dump")


def test_a_worker_that_is_killed_takes_its_tools_along(pg_shop: Shop, slow_tool: SlowTool) -> None:
    worker = child(pg_shop.disk, BackupDatabase(backup="shop"))
    pid = slow_tool.pid()
    assert not is_gone(pid)
    worker.kill()
    worker.communicate()
    until(lambda: is_gone(pid))


async def test_a_cancel_ends_the_tools(pg_shop: Shop, slow_tool: SlowTool) -> None:
    task = asyncio.create_task(run())
    pid = await asyncio.to_thread(slow_tool.pid)
    assert os.getpgid(pid) == pid
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    until(lambda: is_gone(pid))
    until(lambda: not pg_shop.drafts())
    assert (await cast_away(pg_shop)).verified == "restored"


async def cast_away(shop: Shop) -> BackedUp:
    """Run with the real tools."""
    shop.set()
    return await ready(1)


async def test_a_password_is_nowhere_to_be_seen(pg_shop: Shop, slow_tool: SlowTool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pg_shop.postgres
    pg_shop.sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {LOCKED}")
    monkeypatch.setenv("SHOP_PASSWORD", "secret")
    url = f"'{pg_shop.postgres.url_of(LOCKED)}', password = 'env:SHOP_PASSWORD'"
    pg_shop.text = pg_shop.text.replace(f"'{pg_shop.postgres.url_of(f'keeper_{pg_shop.postgres.name}')}'", url)
    pg_shop.set(f", tools = '{slow_tool.path.parent}'")
    task = asyncio.create_task(run())
    pid = await asyncio.to_thread(slow_tool.pid)
    place = Path(f"/proc/{pid}")
    arguments, environment = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
    assert b"--snapshot=" in arguments
    assert b"user='locked'" in arguments
    assert b"secret" not in arguments + environment
    assert {word.partition(b"=")[0] for word in environment.split(b"\0") if word} <= {b"PATH", b"LC_ALL", b"PGPASSFILE", b"PWD"}
    assert slow_tool.path.with_suffix(".password").read_text() == "*:*:*:*:secret\n"
    assert slow_tool.path.with_suffix(".mode").read_text() == "600\n"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    until(lambda: is_gone(pid))
    until(lambda: not pg_shop.drafts())
    pg_shop.set()
    result = await ready(1)
    assert result.verified == "listed", "with the real pg_dump, and the password"
    assert manifest_of(pg_shop.made(result)).why_listed == "the role may not create databases"


# --- what is kept ------------------------------------------------------------------------------------------------------------


def section(**fields: Any) -> Backup:
    return Backup(**{"db": "shop", "to": "out:shop", **fields})


def test_over_three_years_days_weeks_and_months_are_kept() -> None:
    chance = random.Random(7)
    shelf: dict[str, datetime] = {}
    keep = section(keep_daily=7, keep_weekly=5, keep_monthly=12, tz="Europe/Berlin")
    today = datetime(2024, 1, 1, 1, 10, tzinfo=UTC)
    for number in range(3 * 365 + 1):
        if chance.random() < 0.97:  # some days have none, and some have two
            for each in range(1 + (chance.random() < 0.05)):
                shelf[f"{number}-{each}"] = today + timedelta(hours=each, seconds=chance.randrange(120))
            for name in expired(shelf, keep):
                del shelf[name]
            newest = sorted(shelf.values(), reverse=True)
            days, weeks, months = (
                list(dict.fromkeys(taken.strftime(form) for taken in newest)) for form in ("%Y-%m-%d", "%G-%V", "%Y-%m")
            )
            assert len(shelf) <= 7 + 5 + 12
            assert len(days) >= min(7, number * 9 // 10)
            assert len(weeks) >= min(5, number // 7)
            assert len(months) >= min(12, number // 31)
        today += timedelta(days=1)
    newest = sorted(shelf.values(), reverse=True)
    assert newest[0] - newest[6] < timedelta(days=9)
    assert timedelta(days=330) < newest[0] - newest[-1] < timedelta(days=370)
    gaps = [later - earlier for later, earlier in pairwise(newest)]
    assert max(gaps) <= timedelta(days=35)


def test_of_a_day_its_last_one_is_kept_by_the_zone_of_the_backup() -> None:
    made = {
        "evening": datetime(2024, 5, 1, 21, 0, tzinfo=UTC),
        "night": datetime(2024, 5, 1, 22, 30, tzinfo=UTC),  # in Berlin it is the next day
        "morning": datetime(2024, 5, 2, 3, 0, tzinfo=UTC),
    }
    keep = {"keep_daily": 2, "keep_weekly": 0, "keep_monthly": 0}
    assert expired(made, section(**keep, tz="UTC")) == ["evening"]
    assert expired(made, section(**keep, tz="Europe/Berlin")) == ["night"]
    assert expired(made, section(keep_daily=0, keep_weekly=0, keep_monthly=1)) == ["evening", "night"]
    assert expired({}, section()) == []


def test_a_gap_makes_nothing_expire() -> None:
    made = {str(number): datetime(2020, 1, 1 + number, tzinfo=UTC) for number in range(7)}
    made["now"] = datetime(2024, 1, 1, tzinfo=UTC)
    assert expired(made, section(keep_daily=8, keep_weekly=0, keep_monthly=0)) == []
    assert expired(made, section(keep_daily=7, keep_weekly=0, keep_monthly=0)) == ["0"]


async def test_old_backups_go_after_a_new_one_and_only_those_of_this_alias(sqlite_shop: Shop) -> None:
    sqlite_shop.set(", keep_daily = 2, keep_weekly = 0, keep_monthly = 0")
    gone = [plant(sqlite_shop, "a", 40), plant(sqlite_shop, "b", 30)]
    kept = [plant(sqlite_shop, "c", 20), plant(sqlite_shop, "d", 50, backup="other"), plant(sqlite_shop, "e", 60, compressed=8)]
    kept += [plant(sqlite_shop, "f", 70), sqlite_shop.folder / "by-hand"]
    (kept[3] / "manifest.json").write_text("{}")
    kept[-1].mkdir()
    result = await run()
    assert result.removed == [folder.name for folder in gone]
    assert not any(folder.exists() for folder in gone)
    assert all(folder.exists() for folder in kept)


async def test_without_a_new_backup_nothing_goes(shop: Shop, spoil: Any) -> None:
    shop.set(", keep_daily = 1, keep_weekly = 0, keep_monthly = 0")
    old = [plant(shop, "a", 40), plant(shop, "b", 30)]
    spoil(flip)
    with pytest.raises(TemporaryFailure):
        await run()
    assert all(folder.exists() for folder in old)


async def test_the_last_one_that_was_restored_stays_whatever_its_age(shop: Shop) -> None:
    shop.set(", keep_daily = 1, keep_weekly = 0, keep_monthly = 0")
    older, last = plant(shop, "a", 40), plant(shop, "b", 30)
    listed = plant(shop, "c", 20, verified="listed")
    result = await run(verify="list")
    assert result.removed == [older.name, listed.name]
    assert last.exists()
    assert (await run(1)).removed == [last.name, Path(result.folder).name]


async def test_what_crashes_left_is_swept_after_a_day(sqlite_shop: Shop) -> None:
    sqlite_shop.folder.mkdir()
    names = [f".20240101T000000Z-{letter * 26}.part" for letter in "ab"]
    for name in names:
        (sqlite_shop.folder / name).mkdir()
        (sqlite_shop.folder / name / "x").write_text("half")
    os.utime(sqlite_shop.folder / names[0], (0, 0))
    await run()
    assert [path.name for path in sqlite_shop.folder.glob(".2*")] == [names[1]]


async def test_scratch_databases_that_crashes_left_are_swept_after_a_day(pg_shop: Shop) -> None:
    assert pg_shop.postgres
    role = f"keeper_{pg_shop.postgres.name}"
    names = [f"backup_check_{at}_{'a' * 26}" for at in (1_600_000_000, int(time.time()))] + [
        f"backup_check_1600000000_{'b' * 26}"
    ]
    try:
        for name, owner in zip(names, (role, role, "postgres"), strict=True):
            pg_shop.postgres.server.sql("postgres", f'CREATE DATABASE "{name}" OWNER {owner}')
        await run()
        assert sorted(pg_shop.scratches()) == sorted([[names[1]], [names[2]]])
    finally:
        for name in names:
            pg_shop.postgres.server.sql("postgres", f'DROP DATABASE IF EXISTS "{name}"')


# --- what an operator must fix -----------------------------------------------------------------------------------------------


async def test_settings_that_do_not_fit_are_waited_for(shop: Shop) -> None:
    with pytest.raises(Snooze, match=r"alias-missing: backups\.none"):
        await run(backup="none")
    shop.set(**{"mode = 'write'": "mode = 'read'"})
    with pytest.raises(Snooze, match=r"alias-missing: roots\.out: allows mode 'read' only"):
        await run()
    shop.set(**{"databases.shop": "databases.other"})
    with pytest.raises(Snooze, match=r"alias-missing: databases\.shop"):
        await run()
    shop.set()
    shutil.rmtree(shop.folder)
    shop.folder.symlink_to(shop.disk.logs)
    with pytest.raises(Dead) as caught:
        await run()
    assert caught.value.code == "bad-path"
    assert shop.disk.names(shop.disk.logs) == []


async def test_a_root_bounds_a_backup(shop: Shop) -> None:
    shop.set(**{"mode = 'write'": "mode = 'write', max_bytes = 100"})
    with pytest.raises(Dead) as caught:
        await run()
    assert caught.value.code == "too-large"
    assert shop.visible() == []


def test_a_full_disk_is_waited_for(shop: Shop) -> None:
    shop.sql("CREATE TABLE big AS SELECT * FROM t")
    said = outcome(child(shop.disk, BackupDatabase(backup="shop"), file_bytes=1_000))
    assert said.startswith(("Snooze: out-of-space", "OperationalError: disk I/O error")), said
    assert shop.visible() == []


async def test_a_disk_that_gets_full_is_waited_for(shop: Shop) -> None:
    shop.folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(shop.folder)]
    if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        noise = "md5(random()::text)" if shop.postgres else "randomblob(16)"
        shop.sql(f"CREATE TABLE noise AS SELECT {noise} AS x FROM t, u, (SELECT a FROM u) AS more")
        with pytest.raises(Snooze, match=r"out-of-space: roots\.out"):
            await run()
        assert shop.visible() == []
        assert shop.scratches() == []
    finally:
        subprocess.run(["umount", str(shop.folder)], check=True)


async def test_twelve_tenths_of_the_last_backup_must_be_free(pg_shop: Shop) -> None:
    plant(pg_shop, "a", 1, compressed=2**60)
    file = next(pg_shop.folder.glob("*/x"))
    os.truncate(file, 2**43)
    text = (file.parent / "manifest.json").read_text().replace(str(2**60), str(2**43))
    (file.parent / "manifest.json").write_text(text)
    with pytest.raises(Snooze, match=r"out-of-space: roots\.out"):
        await run()


async def test_a_tool_that_is_missing_or_too_old_is_told_with_the_way_out(pg_shop: Shop, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    pg_shop.set(f", tools = '{tools}'")
    with pytest.raises(Dead, match=r"pg_dump is not in .*tools; hint: apt-get install postgresql-client-\d+") as caught:
        await run()
    assert caught.value.code == "tool-missing"
    (tools / "pg_dump").write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.2'\n")
    (tools / "pg_dump").chmod(0o755)
    with pytest.raises(Dead, match=r"pg_dump is of version 9\.6\.2, the server of \d+; hint: ") as caught:
        await run()
    assert caught.value.code == "tool-missing"
    (tools / "pg_dump").write_text("not a program")
    with pytest.raises(Dead, match="cannot be run"):
        await run()
    assert pg_shop.visible() == []


async def test_a_wrong_password_is_waited_for(pg_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pg_shop.postgres
    url = pg_shop.postgres.url_of(f"keeper_{pg_shop.postgres.name}")
    pg_shop.text = pg_shop.text.replace(f"'{url}'", f"'{pg_shop.postgres.url_of(LOCKED)}', password = 'env:SHOP_PASSWORD'")
    pg_shop.set()
    monkeypatch.setenv("SHOP_PASSWORD", "wrong")
    with pytest.raises(Snooze, match=r"auth-failed: databases\.shop"):
        await run()


async def test_a_table_that_the_role_may_not_read_is_waited_for(pg_shop: Shop) -> None:
    assert pg_shop.postgres
    role = f"keeper_{pg_shop.postgres.name}"
    pg_shop.sql(f"REVOKE pg_read_all_data FROM {role}; GRANT SELECT ON t TO {role}")
    with pytest.raises(Snooze, match=r"alias-missing: databases\.shop: permission denied for table u"):
        await run()
    pg_shop.sql(f"GRANT pg_read_all_data TO {role}; ALTER TABLE t ENABLE ROW LEVEL SECURITY")
    with pytest.raises(Snooze, match="row-level security"):
        await run()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("ALTER ROLE {role} NOCREATEDB", "the role may not create databases"),
        ("ALTER ROLE {role} SUPERUSER", "the role may do too much"),
        ("GRANT pg_execute_server_program TO {role}", "the role may do too much"),
        ("CREATE EXTENSION file_fdw", "pg_restore: could not execute query: ERROR:  permission denied to create extension"),
    ],
)
async def test_what_may_not_be_restored_is_listed(pg_shop: Shop, change: str, why: str) -> None:
    assert pg_shop.postgres
    pg_shop.sql(change.format(role=f"keeper_{pg_shop.postgres.name}"))
    result = await run()
    assert result.verified == "listed"
    assert manifest_of(pg_shop.made(result)).why_listed.startswith(why)
    assert pg_shop.scratches() == []


async def test_a_restore_may_be_checked_on_another_database_of_another_role(pg_shop: Shop) -> None:
    assert pg_shop.postgres
    role = f"keeper_{pg_shop.postgres.name}"
    pg_shop.sql(f"ALTER ROLE {role} NOCREATEDB; CREATE ROLE checker_{pg_shop.postgres.name} LOGIN CREATEDB")
    url = pg_shop.postgres.url_of(f"checker_{pg_shop.postgres.name}").replace(f"/{pg_shop.postgres.name}?", "/postgres?")
    pg_shop.text += f"databases.scratch = {{ url = '{url}', tls = 'off' }}\n"
    pg_shop.set(", scratch = 'scratch'")
    assert (await run()).verified == "restored"
    assert pg_shop.scratches() == []


def test_without_the_package_for_zstd_backups_wait(sqlite_shop: Shop) -> None:
    said = outcome(child(sqlite_shop.disk, BackupDatabase(backup="shop"), without="zstandard"))
    assert said == "Snooze: extra-missing: zstandard: not installed; hint: pip install zstandard"
    assert not sqlite_shop.folder.exists()


# --- what databases are like -------------------------------------------------------------------------------------------------


async def test_databases_of_all_kinds_come_back(sqlite_shop: Shop) -> None:
    sqlite_shop.disk.sql(
        "CREATE VIRTUAL TABLE words USING fts5(text)",
        "INSERT INTO words SELECT b FROM t",
        'CREATE TABLE "odd ""name\'; --" (x)',
        "CREATE TABLE parent (id INTEGER PRIMARY KEY)",
        "CREATE TABLE child (p REFERENCES parent)",
        "INSERT INTO child VALUES (7), (8)",
        "CREATE VIEW v AS SELECT * FROM nowhere",
    )
    result = await run()
    manifest = manifest_of(sqlite_shop.made(result))
    assert manifest.foreign_key_violations == 2
    assert manifest.tables["odd \"name'; --"] == 0
    assert "words" not in manifest.tables
    assert "v" not in manifest.tables
    assert manifest.tables["words_content"] == 1000


async def test_an_empty_database_has_a_backup_too(sqlite_shop: Shop) -> None:
    sqlite_shop.disk.database.write_bytes(b"")
    result = await run()
    assert (result.tables, result.rows, result.verified) == (0, 0, "restored")
    assert verify(str(sqlite_shop.made(result)))


async def test_databases_of_all_kinds_are_restored(pg_shop: Shop) -> None:
    assert pg_shop.postgres
    pg_shop.sql("""
        CREATE SCHEMA "Odd ""schema"; CREATE TABLE "Odd ""schema"."a b;--" (x int);
        INSERT INTO "Odd ""schema"."a b;--" VALUES (1);
        CREATE TABLE p (n int) PARTITION BY RANGE (n); CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        INSERT INTO p SELECT generate_series(1, 9); CREATE TABLE kid () INHERITS (t); INSERT INTO kid VALUES (5000, 'x');
        CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t; INSERT INTO t VALUES (6000, 'after m');
        CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1 + 1'; CREATE INDEX ON t (f(a));
        CREATE TYPE mood AS ENUM ('well'); CREATE TABLE e (m mood); CREATE EXTENSION pg_trgm; CREATE UNLOGGED TABLE ul (x int);
        CREATE PUBLICATION pub FOR TABLE t; COMMENT ON TABLE t IS 'words'
    """)
    result = await run()
    assert result.verified == "restored"
    tables = manifest_of(pg_shop.made(result)).tables
    assert tables['"Odd ""schema"."a b;--"'] == 1
    assert (tables["public.t"], tables["public.kid"], tables["public.p1"]) == (1001, 1, 9)
    assert "public.p" not in tables


# --- the contract, the settings and the schedules ------------------------------------------------------------------------------


def test_the_handler_is_what_the_table_says() -> None:
    retry = backup_database.retry
    assert (backup_database.timeout_s, retry.attempts, retry.base_s, retry.cap_s) == (7200, 4, 300, 1800)
    assert contract_of(BackupDatabase).priority is Priority.LOW
    assert backup_database.result is not None
    assert backup_database.result.life_ms == 7 * 86_400_000


@pytest.mark.parametrize(
    "change",
    [
        {"backup": "Shop"},
        {"backup": "shop\n"},
        {"backup": "../shop"},
        {"backup": None},
        {"verify": "none"},
        {"label": "x" * 61},
        {"label": "two\nlines"},
        {"label": "back\u202ewards"},
        {"tries": 0},
        {"tries": 5},
        {"to": "out:elsewhere"},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    assert decode({"backup": "shop"}).verify == "restore"
    with pytest.raises(BadPayload):
        decode({"backup": "shop", **change})


@pytest.mark.parametrize("tail", HOSTILE + HEADER_ENDS)
@pytest.mark.parametrize("field", ["backup", "label", "verify"])
def test_no_field_takes_control_characters(field: str, tail: str) -> None:
    whole = {"backup": "shop", "label": "x", "verify": "list"}
    assert decode(whole).label == "x"
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        decode({**whole, field: whole[field] + tail})


ROOTS = 'roots.out = { path = "/srv/out", mode = "write" }\nroots.logs = { path = "/srv/logs" }\n'
SHOP = 'databases.shop = { sqlite = "out:shop.db" }\nbackups.shop = { to = "out:backups/shop" }\n'


def test_each_backup_of_the_settings_is_a_schedule_and_none_without_it(configure: Configure) -> None:
    configure(ROOTS)
    assert find(["handlers"]).schedules == {}
    nightly = 'backups.nightly = { db = "shop", to = "out:n", when = "30 2 * * *", tz = "Europe/Berlin" }\n'
    configure(ROOTS + SHOP + nightly + 'backups.off = { db = "shop", to = "out:off", enabled = false }\n')
    found = find(["handlers"]).schedules
    assert sorted(found) == ["backup-database.nightly", "backup-database.shop"]
    settings = found["backup-database.shop"].definition.settings
    assert (settings.type, settings.priority, settings.when, settings.tz) == (
        "backup-database",
        Priority.LOW,
        "10 1 * * *",
        "UTC",
    )
    assert (settings.missed, settings.expires_s) == ("latest", None)
    assert 0 <= found["backup-database.shop"].definition.offset_ms < 120_000
    assert decode(json.loads(bytes(settings.data))) == BackupDatabase(backup="shop")
    other = found["backup-database.nightly"].definition.settings
    assert (other.when, other.tz, json.loads(bytes(other.data))["backup"]) == ("30 2 * * *", "Europe/Berlin", "nightly")


def test_a_backup_is_set_in_the_environment(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(ROOTS + SHOP)
    monkeypatch.setenv("RUNTIME_HANDLERS__BACKUPS__SHOP__ENABLED", "false")
    assert find(["handlers"]).schedules == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (SHOP, "backups.shop: root 'out': must be in `roots`, with mode 'write'"),
        (ROOTS + SHOP.replace("out:backups", "logs:backups"), "backups.shop: root 'logs': must be in `roots`, with mode 'write'"),
        (ROOTS + SHOP.replace("databases.shop", "databases.other"), "backups.shop: database 'shop': must be in `databases`"),
        (ROOTS + SHOP.replace('shop" }\n', 'shop", scratch = "none" }\n'), "backups.shop: database 'none'"),
        (ROOTS + SHOP.replace('/shop" }', '/shop", channel = "ops" }'), "backups.shop: channel 'ops': must be in `channels`"),
        (
            ROOTS
            + SHOP.replace('/shop" }', '/shop", channel = "ops" }')
            + "channels.ops = { kind = 'webhook', dynamic = true, hosts = ['*'] }\n",
            "backups.shop: channel 'ops': must be in `channels`, and have a url",
        ),
        (ROOTS + SHOP.replace("backups/shop", "../shop"), "backups.shop: .*to"),
        (ROOTS + SHOP.replace('shop" }\n', 'shop", when = "0 33 * * *" }\n'), "schedule 'backup-database.shop': when '0 33 "),
        (ROOTS + SHOP.replace('/shop" }\n', '/shop", tz = "Mars" }\n'), "backups.shop: tz: must be a time zone"),
        (ROOTS + SHOP.replace('/shop" }\n', '/shop", tools = "bin" }\n'), "backups.shop: tools: must be absolute"),
        (ROOTS + SHOP.replace('/shop" }\n', '/shop", keep_daily = -1 }\n'), "backups.shop: .*keep_daily"),
        (
            ROOTS + SHOP.replace('/shop" }\n', '/shop", keep_daily = 0, keep_weekly = 0, keep_monthly = 0 }\n'),
            "backups.shop: must keep at least one",
        ),
    ],
)
def test_a_backup_that_cannot_be_is_refused_where_handlers_are_found(configure: Configure, text: str, words: str) -> None:
    configure(text)
    with pytest.raises(ConfigError, match=words):
        find(["handlers"])
