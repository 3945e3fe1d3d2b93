"""sync-crm-data against a CRM and both databases: what comes into the table, also after kills and trouble."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers import crm as handler_module
from handlers.contracts.crm import SyncCrmData, Synced
from handlers.crm import sync_crm_data
from handlers.kit import http
from handlers.kit import mirror as mirror_module
from handlers.kit.crm import MAX_PAGE_BYTES, Resource, page_of, pointed, since_of, url_of
from handlers.kit.failures import TemporaryFailure
from handlers.kit.http import Answer
from handlers.kit.mirror import Mirror
from handlers.kit.sections import Crm
from handlers.kit.settings import current, load
from handlers.kit.threads import Stop
from runtime import BadPayload, ConfigError, Dead, Priority, Snooze
from runtime.jobs import Job, contract_of
from runtime.registry import find
from tests import builders
from tests.builders import job as plain_job
from tests.handlers.conftest import Configure
from tests.handlers.crmhost import FIRST, TOKEN, Crmhost, record
from tests.handlers.disks import BORN_MS, Disk, child, job_of, outcome, until
from tests.handlers.httphost import CUT, DROP, HANG, Reply
from tests.handlers.postgres import PgDatabase
from tests.handlers.stores import Store
from tests.handlers.test_contracts import HEADER_ENDS, HOSTILE
from tests.servers import Server
from tests.workers import working

pytestmark = pytest.mark.usefixtures("web_hung_up")
TABLE = (
    "CREATE TABLE contacts (id bigint PRIMARY KEY, email text, amount numeric, changed timestamp with time zone, gone boolean)"
)
DEFINITION = """
path = "cursor"
db = "shop"
table = "contacts"
key = "id"
updated = "changed"
deleted = "gone"
tombstone = "/archived"
items = "/data"
next = "/paging/next"
since_param = "since"
page_size = 10
columns = [
    { to = "id", type = "int" },
    { to = "email", from = "/properties/email" },
    { to = "amount", type = "decimal", from = "/properties/amount" },
    { to = "changed", type = "timestamp" },
]
"""
POINTS = ["crm.begun", "crm.fetched", "crm.before-commit", "crm.after-commit", "crm.before-finish", "crm.after-finish"]


@pytest.fixture
def crm() -> Iterator[Crmhost]:
    """A CRM with 25 contacts."""
    running = Crmhost(25)
    yield running
    running.stop()


@pytest.fixture
def define(crm: Crmhost, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write the settings and the definition of `contacts`, with other values for some of its keys."""
    monkeypatch.setenv("CRM_TOKEN", TOKEN)

    def write(store: Store, crm_keys: str = "", shop: str = "writable = ['contacts']", **changes: Any) -> None:
        configure(
            store.settings(shop)
            + f"[crm.sales]\nbase_url = '{crm.url}/api/'\ntoken = 'env:CRM_TOKEN'\nrequests_per_second = 10000\n"
            + f"private = ['127.0.0.1']\nports = [{crm.port}]\nresources = '{tmp_path / 'crm.toml'}'\n{crm_keys}"
        )
        lines = [line for line in DEFINITION.splitlines() if line.partition(" = ")[0] not in changes]
        given = [f"{name} = {json.dumps(value)}" for name, value in changes.items() if value is not None]
        (tmp_path / "crm.toml").write_text("\n".join(["[contacts]", *given, *lines]))

    return write


def made(tmp_path: Path, postgres: Any, define: Callable[..., None]) -> Store:
    store = Store(tmp_path, postgres)
    store.sql(TABLE)
    define(store)
    return store


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path, define: Callable[..., None]) -> Store:
    """An empty table `contacts` in either database."""
    return made(tmp_path, request.getfixturevalue("postgres") if request.param == "postgresql" else None, define)


@pytest.fixture
def lite(tmp_path: Path, define: Callable[..., None]) -> Store:
    """An empty table `contacts` in SQLite, for what does not depend on the database."""
    return made(tmp_path, None, define)


def sync(**fields: Any) -> SyncCrmData:
    return SyncCrmData(**{"crm": "sales", "resource": "contacts", **fields})


async def run(number: int = 0, job: Job | None = None, **fields: Any) -> Synced:
    message = sync(**fields)
    result = await sync_crm_data(message, job or job_of(message, number))
    assert isinstance(result, Synced)
    return result


async def dead(number: int = 0, **fields: Any) -> tuple[str, str]:
    with pytest.raises(Dead) as caught:
        await run(number, **fields)
    return caught.value.code, str(caught.value)


def rows(store: Store) -> list[list[str]]:
    """Return id, email, amount and whether it is gone, of each row."""
    found = store.sql("SELECT id, email, amount, gone FROM contacts ORDER BY id")
    return [[one, email, str(float(amount)), str(gone in ("1", "t"))] for one, email, amount, gone in found]


def wanted(crm: Crmhost, gone: tuple[int, ...] = ()) -> list[list[str]]:
    """Return what the table is to hold."""
    return [
        [
            str(each["id"]),
            each["properties"]["email"],
            str(float(each["properties"]["amount"])),
            str(bool(each.get("archived")) or each["id"] in gone),
        ]
        for each in sorted(crm.records.values(), key=lambda each: each["id"])
    ]


def leftovers(store: Store) -> list[list[str]]:
    return store.sql("SELECT name FROM backend_jobs_state WHERE name = 'lock'")


# --- what comes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paging", ["cursor", "link", "page", "offset"])
async def test_every_kind_of_pages_brings_every_record(
    crm: Crmhost, store: Store, define: Callable[..., None], paging: str
) -> None:
    define(store, path=paging, paging=paging, next="/paging/next" if paging == "cursor" else "")
    result = await run()
    assert rows(store) == wanted(crm)
    pages = 4 if paging in ("page", "offset") else 3  # of those, an empty page is the last
    assert (result.pages, result.rows, result.upserted, result.unchanged, result.deleted) == (pages, 25, 25, 0, 0)
    assert (result.high_water, result.is_complete, result.not_modified) == ("2023-01-01T00:00:25+00:00", True, False)
    assert leftovers(store) == []
    assert [seen.method for seen in crm.seen] == ["GET"] * pages
    assert len(crm.open_connections) == 1


async def test_an_incremental_sync_asks_for_what_has_changed_since(crm: Crmhost, store: Store) -> None:
    for number in crm.records:
        crm.records[number] = record(number, number * 60)
    await run(0)
    crm.records[3] = record(3, 3600, properties={"email": "new@example.org", "amount": 1})
    crm.records[26] = record(26, 3601)
    result = await run(1)
    assert rows(store) == wanted(crm)
    assert crm.pages[3]["since"] == "2023-01-01T00:20:00Z"  # the newest was changed at 00:25
    assert (result.rows, result.upserted, result.unchanged) == (8, 2, 6)
    await run(2)
    assert crm.pages[-1]["since"] == "2023-01-01T00:55:01Z"


async def test_nothing_new_is_known_by_the_etag_of_the_only_page(crm: Crmhost, lite: Store, define: Callable[..., None]) -> None:
    define(lite, page_size=100)
    await run(0)
    for number in (1, 2, 3):  # the first asks with a time, which is another question
        result = await run(number)
    assert (result.not_modified, result.rows, result.is_complete) == (True, 0, True)
    assert result.high_water == "2023-01-01T00:00:25+00:00"
    assert "If-None-Match" in crm.seen[-1].headers
    crm.records[2] = record(2, 100)
    assert (await run(4)).upserted == 1
    assert rows(lite) == wanted(crm)


async def test_of_more_pages_the_etag_of_the_first_is_not_believed(
    crm: Crmhost, lite: Store, define: Callable[..., None]
) -> None:
    define(lite, since_param="")
    await run(0)
    crm.records[25] = record(25, 200)
    assert (await run(1)).upserted == 1
    assert all("If-None-Match" not in seen.headers for seen in crm.seen)


async def test_a_repeat_of_a_job_that_is_done_asks_nobody(crm: Crmhost, lite: Store) -> None:
    first = await run(7)
    assert await run(7) == first
    assert len(crm.seen) == 3
    assert leftovers(lite) == []


async def test_a_row_never_goes_backwards(crm: Crmhost, store: Store) -> None:
    await run(0)
    newer = dict(crm.records[4])
    crm.records[4] = record(4, -500, properties={"email": "old@example.org", "amount": 0})
    crm.order = -1
    result = await run(1, mode="full")
    assert (result.upserted, result.unchanged) == (0, 25)
    crm.records[4] = newer
    assert rows(store) == wanted(crm)


async def test_of_one_record_twice_in_a_page_the_newer_counts(crm: Crmhost, store: Store) -> None:
    crm.records = {1: record(1, 9), 2: record(2, 10, id=1), 3: record(3, 5, id=1), 4: record(4, 5)}
    result = await run()
    assert [row[:2] for row in rows(store)] == [["1", "user2@example.org"], ["4", "user4@example.org"]]
    assert (result.rows, result.upserted, result.unchanged) == (4, 2, 0)


async def test_a_clock_that_is_ahead_does_not_hide_what_follows(crm: Crmhost, lite: Store) -> None:
    crm.records[25] = record(25, 10**9)
    assert (await run(0)).high_water == "2023-01-01T00:00:24+00:00"
    crm.records[1] = record(1, 60)
    await run(1)
    assert rows(lite) == wanted(crm)


def born_later(seconds: int, **fields: Any) -> Job:
    """Return a job that was born so many seconds after those of `job_of`."""
    at_ms = BORN_MS + 1000 * seconds
    return builders.job_of(sync(**fields), f"{at_ms}-0", fetched_ms=at_ms)


async def test_what_changes_during_a_pass_that_another_job_ends_comes_with_the_next(crm: Crmhost, lite: Store) -> None:
    born_s = BORN_MS / 1000 - FIRST.timestamp()
    await run(0, max_pages=1)
    crm.records[1] = record(1, born_s + 60, properties={"email": "new@example.org", "amount": 1})
    crm.records[25] = record(25, born_s + 3600)
    result = await run(job=born_later(7200))
    assert (result.is_complete, result.high_water) == (True, "2023-01-01T00:00:24+00:00")
    await run(job=born_later(8000))
    assert rows(lite) == wanted(crm)


async def test_what_the_database_does_not_take_is_dead(crm: Crmhost, store: Store) -> None:
    store.sql("ALTER TABLE contacts ADD CHECK (amount < 5)" if store.postgres else "CREATE UNIQUE INDEX u ON contacts (email)")
    crm.records[25] = record(25, 25, properties={"email": "user1@example.org", "amount": 6})
    code, text = await dead()
    assert code == "bad-rows"
    assert "user1" not in text
    assert len(rows(store)) == (10 if store.postgres else 20)


async def test_values_are_only_values(crm: Crmhost, store: Store) -> None:
    hostile = ["'; DROP TABLE contacts; --", '"x"', "$1", "?1", "\\", "😀\u2028", "=1+1", "%s{}"]
    crm.records = {n: record(n, n, properties={"email": text, "amount": 0.1}) for n, text in enumerate(hostile, 1)}
    await run()
    assert [email for _, email, _, _ in rows(store)] == hostile


# --- what is gone ----------------------------------------------------------------------------------------------------------


async def test_a_tombstone_marks_a_row_and_its_end_takes_the_mark_away(crm: Crmhost, store: Store) -> None:
    await run(0)
    crm.records[5] = record(5, 60, archived=True)
    await run(1)
    assert rows(store) == wanted(crm)
    assert rows(store)[4][3] == "True"
    crm.records[5] = record(5, 120)
    await run(2)
    assert rows(store) == wanted(crm)
    assert rows(store)[4][3] == "False"


async def test_a_full_sync_marks_what_the_crm_does_not_have_any_more(crm: Crmhost, store: Store) -> None:
    await run(0)
    gone = [crm.records.pop(3), crm.records.pop(20)]
    assert (await run(1)).deleted == 0
    result = await run(2, mode="full")
    assert (result.deleted, result.rows, result.unchanged) == (2, 23, 23)
    for each in gone:
        crm.records[each["id"]] = each
    assert rows(store) == wanted(crm, (3, 20))
    assert (await run(3, mode="full")).upserted == 2
    assert rows(store) == wanted(crm)
    assert store.sql("SELECT count(*) FROM backend_jobs_seen") == [["0"]]


async def test_what_comes_in_the_middle_of_a_full_sync_is_not_gone(crm: Crmhost, store: Store) -> None:
    await run(0, mode="full", max_pages=1)
    crm.records[0] = record(0, 60)  # before those that it has read
    await run(1)
    result = await run(2, mode="full")
    assert (result.pages, result.deleted, result.is_complete) == (3, 0, True)
    assert rows(store) == wanted(crm)
    crm.records[26] = record(26, 70)
    await run(3)
    assert store.sql("SELECT count(*) FROM backend_jobs_seen") == [["0"]]


@pytest.mark.parametrize(("seconds", "deleted"), [(86_400, 0), (86_401, 1)])
async def test_a_full_sync_that_began_over_a_day_ago_begins_anew(crm: Crmhost, lite: Store, seconds: int, deleted: int) -> None:
    await run(0)
    await run(1, mode="full", max_pages=1)
    del crm.records[3]  # it was there when its page was read
    crm.records[0] = record(0)  # so that the next page begins where it did
    result = await run(job=born_later(seconds, mode="full"), mode="full")
    assert (result.pages, result.deleted, result.is_complete) == (3, deleted, True)
    assert [one for one, _, _, gone in rows(lite) if gone == "True"] == ["3"] * deleted


async def test_an_operator_may_have_everything_forgotten_in_the_middle(crm: Crmhost, lite: Store) -> None:
    await run(0)
    await run(1, mode="full", max_pages=1)
    del crm.records[3]
    lite.sql("DELETE FROM backend_jobs_state")
    assert (await run(2, mode="full")).deleted == 1
    assert rows(lite)[2][3] == "True"


async def test_where_too_much_is_gone_nothing_is_marked(crm: Crmhost, store: Store) -> None:
    await run(0)
    before = rows(store)
    for number in (3, 4, 20):
        del crm.records[number]
    code, text = await dead(1, mode="full")
    assert code == "safety-brake"
    assert "3 of 25 rows" in text
    assert rows(store) == before
    assert leftovers(store) == []
    crm.records[3] = record(3, 3)
    assert (await run(1, mode="full")).deleted == 2  # sent again from the dead letters, it looks anew


async def test_an_answer_without_records_marks_nothing(crm: Crmhost, lite: Store) -> None:
    await run(0)
    crm.records.clear()
    assert (await dead(1, mode="full"))[0] == "safety-brake"
    assert {gone for *_, gone in rows(lite)} == {"False"}


# --- kills and trouble -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_a_point_and_run_again_the_table_is_as_if_undisturbed(
    crm: Crmhost, lite: Store, tmp_path: Path, point: str
) -> None:
    await killed_and_run_again(crm, lite, tmp_path, point)


@pytest.mark.parametrize("point", ["crm.before-commit", "crm.after-commit", "crm.before-finish"])
async def test_the_same_in_postgresql(
    crm: Crmhost, postgres: PgDatabase, define: Callable[..., None], tmp_path: Path, point: str
) -> None:
    await killed_and_run_again(crm, made(tmp_path, postgres, define), tmp_path, point)


async def killed_and_run_again(crm: Crmhost, store: Store, tmp_path: Path, point: str) -> None:
    """Kill a full sync that finds a row to mark, one to change, and the rest as it was."""
    await run(9)
    crm.records.pop(20)
    crm.records[7] = record(7, 500)
    before = len(crm.seen)
    times = 2 if point in ("crm.fetched", "crm.before-commit", "crm.after-commit") else 1
    process = await asyncio.to_thread(child, Disk(tmp_path), sync(mode="full"), point=point, times=times)
    await asyncio.to_thread(process.communicate)
    assert process.returncode == -9
    result = await run(mode="full")
    expected = wanted(crm)
    expected.insert(19, ["20", "user20@example.org", "5.0", "True"])
    assert rows(store) == expected
    assert (result.rows, result.upserted, result.deleted, result.is_complete) == (24, 1, 1, True)
    repeated = 0 if point in ("crm.begun", "crm.after-commit", "crm.before-finish", "crm.after-finish") else 1
    assert len(crm.seen) - before == 3 + repeated
    assert leftovers(store) == []


async def test_killed_at_every_page_it_reads_each_once_or_twice(crm: Crmhost, lite: Store, tmp_path: Path) -> None:
    for number in range(1, 4):
        process = await asyncio.to_thread(
            child, Disk(tmp_path), sync(), point="crm.before-commit" if number % 2 else "crm.after-commit"
        )
        await asyncio.to_thread(process.communicate)
    said = await asyncio.to_thread(lambda: outcome(child(Disk(tmp_path), sync())))
    assert json.loads(said)["rows"] == 25
    assert rows(lite) == wanted(crm)


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (Reply(500), TemporaryFailure, "http-5xx"),
        (Reply(429, {"Retry-After": "7"}), Snooze, "rate-limited"),
        (Reply(401), Snooze, "auth-failed"),
        (Reply(403), Snooze, "auth-failed"),
        (Reply(instead=DROP), TemporaryFailure, "connection-lost"),
        (Reply(instead=CUT), TemporaryFailure, "connection-lost"),
        (Reply(body=b"<html>secret</html>"), TemporaryFailure, "bad-page"),
        (Reply(body=b'{"data": '), TemporaryFailure, "bad-page"),
        (Reply(body=b"[" * 100_000), TemporaryFailure, "bad-page"),
        (Reply(body=b'{"data": {"secret": 1}}'), TemporaryFailure, "bad-page"),
        (Reply(body=b'{"data": [1]}'), TemporaryFailure, "bad-page"),
        (Reply(body=b'{"data": [], "paging": {"next": "MTA="}}'), TemporaryFailure, "bad-page"),
        (Reply(body=b"\xff"), TemporaryFailure, "bad-page"),
    ],
)
async def test_after_trouble_it_goes_on_at_the_page_that_failed(
    crm: Crmhost, lite: Store, caplog: pytest.LogCaptureFixture, reply: Reply, kind: type[Exception], said: str
) -> None:
    crm.trouble = {
        2: reply,
        **({3: reply} if reply.instead == DROP else {}),
    }
    with caplog.at_level(logging.DEBUG), pytest.raises(kind) as caught:
        await run()
    assert str(caught.value).startswith(said)
    for text in (str(caught.value), caplog.text):
        assert "secret" not in text
        assert TOKEN not in text
    assert (await run()).pages == 3
    assert rows(lite) == wanted(crm)
    assert len(crm.seen) == 3 + len(crm.trouble)


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (Reply(404), "http-refused"),
        (Reply(302, {"Location": "https://example.org/"}), "redirect-refused"),
        (Reply(body=b'"' + b"x" * MAX_PAGE_BYTES + b'"'), "too-large"),
        (Reply(body=json.dumps({"data": [record(1, changed="yesterday")]}).encode()), "bad-rows"),
        (Reply(body=json.dumps({"data": [record(1, changed=None)]}).encode()), "bad-rows"),
        (Reply(body=json.dumps({"data": [record(1, id=None)]}).encode()), "bad-rows"),
        (Reply(body=json.dumps({"data": [record(1, id=2**70)]}).encode()), "bad-rows"),
        (Reply(body=json.dumps({"data": [record(1, properties={"email": {"secret": 1}})]}).encode()), "bad-rows"),
        (Reply(body=json.dumps({"data": [record(1, properties={"email": "secret\0"})]}).encode()), "bad-rows"),
    ],
)
async def test_what_a_retry_cannot_mend_is_dead_and_the_next_job_goes_on(
    crm: Crmhost, lite: Store, reply: Reply, code: str
) -> None:
    crm.trouble = {2: reply}
    found, text = await dead(0)
    assert found == code
    assert "secret" not in text
    assert len(rows(lite)) == 10
    lite.sql("DELETE FROM backend_jobs_state WHERE name = 'lock'")  # as after two minutes
    assert (await run(1)).rows == 25
    assert rows(lite) == wanted(crm)


async def test_a_cursor_that_has_expired_begins_again_once(crm: Crmhost, store: Store) -> None:
    crm.trouble = {2: Reply(410)}
    assert (await run(0)).is_complete
    assert rows(store) == wanted(crm)
    assert "cursor" not in crm.pages[2]
    crm.records[9] = record(9, 60)
    crm.trouble = {7: Reply(410), 9: Reply(410)}
    assert await dead(1, mode="full") == ("http-refused", "crm.sales.contacts: the cursor has expired again")


async def test_each_job_may_begin_again_once(crm: Crmhost, lite: Store) -> None:
    crm.trouble = {2: Reply(410), 4: Reply(410), 5: Reply(410)}
    assert (await dead(0))[0] == "http-refused"
    lite.sql("DELETE FROM backend_jobs_state WHERE name = 'lock'")  # as after two minutes
    assert (await run(1)).is_complete
    assert rows(lite) == wanted(crm)


async def test_an_expired_cursor_of_a_later_pass_asks_for_the_same_time(crm: Crmhost, lite: Store) -> None:
    await run(0)
    for number in range(1, 16):
        crm.records[number] = record(number, 10_000 + number)
    crm.trouble = {5: Reply(410)}
    await run(1)
    assert crm.pages[3]["since"] == crm.pages[5]["since"] == "2022-12-31T23:55:25Z"
    assert rows(lite) == wanted(crm)


@pytest.mark.parametrize(
    "link",
    ["https://evil.example/x", "//evil.example/x", "http://127.0.0.1:1/x", "http://localhost/x", "https:x", "http://[x/", "/a b"],
)
async def test_a_next_page_elsewhere_is_refused(crm: Crmhost, lite: Store, define: Callable[..., None], link: str) -> None:
    define(lite, path="link", paging="link", next="")
    crm.trouble = {1: Reply(headers={"Link": f'<{link}>; rel="next"'}, body=b'{"data": []}')}
    code, text = await dead()
    assert code == "egress-blocked"
    assert "evil" not in text
    assert len(crm.seen) == 1


async def test_the_circuit_of_a_crm_is_one_for_all_its_resources(crm: Crmhost, lite: Store) -> None:
    crm.trouble = dict.fromkeys(range(1, 9), Reply(500))
    for _ in range(5):
        with pytest.raises(TemporaryFailure):
            await run()
    with pytest.raises(Snooze, match="circuit-open: crm.sales.contacts"):
        await run()
    assert len(crm.seen) == 5


# --- more than one at a time -----------------------------------------------------------------------------------------------


def mirror_of(number: int, **fields: Any) -> Mirror:
    message = sync(**fields)
    resource = handler_module.read_resource("crm.sales.contacts", current().crm_of("sales"), "contacts")
    return Mirror(current(), message, resource, job_of(message, number))


def answer_of(one: dict[str, Any]) -> Answer:
    return Answer(200, {}, json.dumps({"data": [one], "paging": {"next": f"after-{one['id']}"}}).encode(), 1)


async def test_while_one_job_is_at_work_another_waits(crm: Crmhost, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await asyncio.to_thread(mirror_of(0).begin, Stop())
    for mode in ("incremental", "full"):
        with pytest.raises(Snooze, match=r"locked: crm\.sales\.contacts") as caught:
            await run(1, mode=mode)
        assert 1 <= float(caught.value.delay_s) <= 120
    assert crm.seen == []
    monkeypatch.setattr(mirror_module, "LEASE_S", -1)
    await asyncio.to_thread(mirror_of(0).begin, Stop())  # as if its lease had run out
    monkeypatch.undo()
    monkeypatch.setenv("CRM_TOKEN", TOKEN)
    monkeypatch.setenv("RUNTIME_HANDLERS_CONFIG", str(store.folder / "handlers.toml"))
    assert (await run(1)).is_complete


async def test_a_run_that_was_cut_off_writes_nothing_after_the_next_has_begun(crm: Crmhost, store: Store) -> None:
    first, second = mirror_of(0), mirror_of(0)
    await asyncio.to_thread(first.begin, Stop())
    await asyncio.to_thread(first.put, answer_of(record(1, 1)), "", Stop())
    await asyncio.to_thread(second.begin, Stop())
    assert second.state.pages == 1
    with pytest.raises(Snooze, match="locked"):
        await asyncio.to_thread(first.put, answer_of(record(2, 2)), "", Stop())
    with pytest.raises(Snooze, match="locked"):
        await asyncio.to_thread(first.finish, Stop())
    await asyncio.to_thread(second.put, answer_of(record(3, 3)), "", Stop())
    assert [row[0] for row in rows(store)] == ["1", "3"]


async def test_two_runs_at_once_leave_what_one_would(crm: Crmhost, store: Store) -> None:
    found = await asyncio.gather(run(0), run(0), run(1), run(2), return_exceptions=True)
    assert all(isinstance(each, Synced | Snooze | TemporaryFailure | sqlite3.Error) for each in found), found
    store.sql("DELETE FROM backend_jobs_state WHERE name = 'lock'")
    await run(3)
    assert rows(store) == wanted(crm)


async def test_a_cancelled_job_leaves_whole_pages(crm: Crmhost, store: Store) -> None:
    crm.trouble = {2: Reply(instead=HANG)}
    task = asyncio.create_task(run())
    end_s = time.monotonic() + 60
    while len(crm.seen) < 2:
        assert time.monotonic() < end_s
        await asyncio.sleep(0.002)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(rows(store)) == 10
    assert (await run()).rows == 25
    assert rows(store) == wanted(crm)


async def test_after_so_many_pages_the_next_job_goes_on(crm: Crmhost, lite: Store) -> None:
    first = await run(0, max_pages=1)
    assert (first.rows, first.is_complete, first.high_water) == (10, False, "")
    second = await run(1, max_pages=1)
    assert (second.rows, second.pages) == (20, 2)
    assert (await run(2)).is_complete
    assert rows(lite) == wanted(crm)
    assert len(crm.seen) == 3


async def test_near_its_timeout_it_is_put_off_and_goes_on(crm: Crmhost, lite: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handler_module, "WORK_S", -1)
    with pytest.raises(Snooze, match="0 pages are read"):
        await run()
    monkeypatch.setattr(handler_module, "WORK_S", 1500)
    assert (await run()).rows == 25


async def test_requests_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    handler_module._next_s.clear()
    monkeypatch.setattr(asyncio, "sleep", sleep)
    for _ in range(3):
        await handler_module._turn("a", 0.01)
    await handler_module._turn("b", 0.01)
    assert waits[0] == waits[3] == 0
    assert 90 < waits[1] <= 100
    assert 190 < waits[2] <= 200
    handler_module._next_s.clear()


async def test_each_request_waits_for_its_turn(
    crm: Crmhost, lite: Store, define: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[tuple[str, float]] = []

    async def turn(alias: str, per_second: float) -> None:
        assert len(turns) == len(crm.seen)
        turns.append((alias, per_second))

    monkeypatch.setattr(handler_module, "_turn", turn)
    await run()
    assert turns == [("sales", 10000)] * 3


async def test_progress_says_how_far_it_is(crm: Crmhost, lite: Store) -> None:
    message = sync()
    job = job_of(message)
    await sync_crm_data(message, job)
    progress = job.noted().said.progress
    assert progress is not None
    assert "page 3" in str(progress)


async def test_sent_by_a_plain_xadd_it_runs_in_a_worker(crm: Crmhost, lite: Store, valkey: Server) -> None:
    client = valkey.client()
    client.xadd("{jobs}:medium", {"type": "sync-crm-data", "data": msgspec.json.encode(sync())})
    async with working(valkey.url, sync_crm_data, lifespans=[http.clients]):
        await asyncio.to_thread(until, lambda: len(rows(lite)) == 25 and leftovers(lite) == [])
    assert rows(lite) == wanted(crm)
    assert client.xlen("{jobs}:dead") == 0
    client.close()


# --- settings and definitions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crm_keys": "x = 1"}, "alias-missing: RUNTIME_HANDLERS_CONFIG"),
        ({"shop": "tables = ['*']"}, "does not list contacts in `writable`"),
        ({"db": "none"}, "alias-missing: databases.none"),
        ({"path": "/absolute"}, r"\[contacts\]"),
        ({"path": "../other"}, r"\[contacts\]"),
        ({"path": "https://evil.example/"}, r"\[contacts\]"),
        ({"path": "a/../b"}, r"\[contacts\]"),
        ({"key": "email; --"}, r"\[contacts\]"),
        ({"key": "none"}, "must have that of `key`"),
        ({"updated": "email"}, "with type = 'timestamp'"),
        ({"next": ""}, "next: must point"),
        ({"items": "data"}, r"\[contacts\]"),
        ({"deleted": "email"}, "a column of its own"),
        ({"deleted": None}, "be there with `tombstone`"),
        ({"wrong": 1}, r"\[contacts\]"),
    ],
)
async def test_settings_that_cannot_be_used_make_jobs_wait(
    crm: Crmhost, lite: Store, define: Callable[..., None], changes: dict[str, Any], said: str
) -> None:
    define(lite, **changes)
    with pytest.raises(Snooze, match=said):
        await run()
    assert crm.seen == []


async def test_what_is_missing_makes_jobs_wait(
    crm: Crmhost, lite: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fields, said in [({"crm": "none"}, "crm.none"), ({"resource": "none"}, r"no \[none\] in .*crm.toml")]:
        with pytest.raises(Snooze, match=said):
            await run(**fields)
    for token in ("a\nb", "ä"):
        monkeypatch.setenv("CRM_TOKEN", token)
        with pytest.raises(Snooze, match="token: must be one line"):
            await run()
    monkeypatch.setenv("CRM_TOKEN", "")
    with pytest.raises(Snooze, match="token: variable CRM_TOKEN is empty"):
        await run()
    monkeypatch.delenv("CRM_TOKEN")
    with pytest.raises(Snooze, match="token: variable CRM_TOKEN is not set"):
        await run()
    for text in (b"[contacts", b"\xff"):
        (tmp_path / "crm.toml").write_bytes(text)
        with pytest.raises(Snooze, match="alias-missing: crm.sales.contacts"):
            await run()
    (tmp_path / "crm.toml").unlink()
    with pytest.raises(Snooze, match="No such file"):
        await run()


async def test_a_table_without_what_the_definition_names_is_dead(crm: Crmhost, store: Store, define: Callable[..., None]) -> None:
    define(store, deleted="missing")
    assert await dead() == ("bad-query", "databases.shop: no column missing in contacts")
    define(store, table="other", shop="writable = ['*']")
    assert (await dead())[0] == "bad-query"
    store.sql("CREATE TABLE keyless (id bigint, email text, amount numeric, changed timestamp with time zone, gone boolean)")
    define(store, table="keyless", shop="writable = ['*']")
    assert (await dead(5))[0] == "bad-query"


async def test_a_token_may_go_in_a_header_of_its_own(crm: Crmhost, lite: Store, define: Callable[..., None]) -> None:
    define(lite, crm_keys="auth = 'header:X-Token'")
    assert (await run()).rows == 25
    assert "Authorization" not in crm.seen[0].headers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("base_url = 'ftp://x/'", "base_url"),
        ("base_url = 'https://u:very-secret@x/'", "base_url"),
        ("base_url = 'https://x/?very-secret'", "base_url"),
        ("base_url = 'https://['", "base_url"),
        ("base_url = 'https://x'\nauth = 'basic'", "auth"),
        ("base_url = 'https://x'\nauth = 'header:X Y'", "auth"),
        ("base_url = 'https://x'\nrequests_per_second = 0", "requests_per_second"),
        ("base_url = 'https://x'\nrequests_per_second = 0.01", "requests_per_second"),
        ("base_url = 'https://x'\nprivate = ['10.0.0.0/8']", "private"),
    ],
)
def test_a_crm_that_makes_no_sense_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "handlers.toml"
    path.write_text(f"[crm.sales]\ntoken = 'env:A'\nresources = '/x'\n{text}\n")
    with pytest.raises(ConfigError, match=said) as caught:
        load(str(path), {})
    assert "very-secret" not in str(caught.value)


SALES = "crm.sales = { base_url = 'https://crm.example', token = 'env:A', resources = '/x' }\n"


def test_each_sync_of_the_settings_is_a_schedule_and_none_without_it(configure: Configure) -> None:
    configure(SALES)
    assert find(["handlers"]).schedules == {}
    configure(
        f"{SALES}syncs.contacts = {{ crm = 'sales' }}\nsyncs.off = {{ crm = 'sales', enabled = false }}\n"
        "syncs.all = { crm = 'sales', resource = 'contacts', mode = 'full', when = '40 2 * * 0', tz = 'Europe/Berlin' }\n"
    )
    found = find(["handlers"]).schedules
    assert sorted(found) == ["sync-crm-data.all", "sync-crm-data.contacts"]
    often, full = found["sync-crm-data.contacts"], found["sync-crm-data.all"]
    assert (often.when, often.message, often.expires_s) == ("*/15 * * * *", sync(), 3600)
    assert (full.when, full.message, full.expires_s, full.tz) == ("40 2 * * 0", sync(mode="full"), 72_000, "Europe/Berlin")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("syncs.contacts = { crm = 'sales' }", "syncs.contacts: crm 'sales': must be in `crm`"),
        (f"{SALES}syncs.contacts = {{ }}", "syncs.contacts"),
        (f"{SALES}syncs.contacts = {{ crm = 'sales', when = 'often' }}", "sync-crm-data.contacts"),
        (f"{SALES}syncs.contacts = {{ crm = 'sales', wrong = 1 }}", "syncs.contacts"),
    ],
)
def test_a_sync_in_the_settings_that_makes_no_sense_ends_the_start(configure: Configure, text: str, said: str) -> None:
    configure(text)
    with pytest.raises(ConfigError, match=said):
        find(["handlers"])


# --- the contract, and what is pure ----------------------------------------------------------------------------------------


def decode(payload: dict[str, Any]) -> SyncCrmData:
    handler = find(["handlers"]).registry[b"sync-crm-data"]
    return handler.decode(plain_job("sync-crm-data", data=msgspec.json.encode(payload)))


def test_what_the_contract_says() -> None:
    assert contract_of(SyncCrmData).priority is Priority.MEDIUM
    assert (sync_crm_data.timeout_s, sync_crm_data.retry.attempts) == (1800, 8)
    assert (sync_crm_data.retry.base_s, sync_crm_data.retry.cap_s) == (30, 1800)
    assert decode({"crm": "sales", "resource": "contacts"}) == sync()


@pytest.mark.parametrize("tail", HOSTILE + HEADER_ENDS)
@pytest.mark.parametrize("field", ["crm", "resource", "mode"])
def test_nothing_that_could_end_a_line_passes(field: str, tail: str) -> None:
    payload = {"crm": "sales", "resource": "contacts", "mode": "full"}
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        decode({**payload, field: payload[field] + tail})


@pytest.mark.parametrize("change", [{"max_pages": 0}, {"max_pages": 10**7}, {"mode": "both"}, {"path": "x"}, {"crm": "a/b"}])
def test_a_sync_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({"crm": "sales", "resource": "contacts", **change})


def resource(**fields: Any) -> Resource:
    columns = [{"to": "id", "type": "int"}, {"to": "changed", "type": "timestamp"}]
    base = {"path": "x", "db": "d", "table": "t", "key": "id", "updated": "changed", "columns": columns, "next": "/next"}
    return msgspec.convert({**base, **fields}, Resource)


def test_the_url_of_a_page() -> None:
    crm = Crm(base_url="https://crm.example/api", token="env:A", resources="/x")
    assert url_of(crm, resource(), "", "") == "https://crm.example/api/x?limit=100"
    assert url_of(crm, resource(), "a&b=c", "") == "https://crm.example/api/x?limit=100&cursor=a%26b%3Dc"
    since = resource(since_param="since", size_param="", params={"fields": "a,b"})
    assert (
        url_of(crm, since, "", "2024-01-01T00:00:00Z") == "https://crm.example/api/x?fields=a%2Cb&since=2024-01-01T00%3A00%3A00Z"
    )
    assert url_of(crm, resource(size_param=""), "", "") == "https://crm.example/api/x"
    assert url_of(crm, resource(paging="page", page_param="p", first_page=0), "", "") == "https://crm.example/api/x?limit=100&p=0"
    assert url_of(crm, resource(paging="link"), "https://crm.example/y", "s") == "https://crm.example/y"


def test_pointers_lead_to_fields_or_nowhere() -> None:
    document = {"a": {"b/c": [{"d": 1}], "~": 2}, "": 3, "e": None}
    for pointer, value in [
        *(("", document), ("/a/b~1c/0/d", 1), ("/a/~0", 2), ("/", 3), ("e", None), ("a", document["a"]), ("/x/y", None)),
        *(("/a/b~1c/7", None), ("/a/b~1c/-1", None), ("/e/f", None), ("/a/b~1c/" + "9" * 30, None)),
    ]:
        assert pointed(document, pointer) == value


@pytest.mark.parametrize(
    ("header", "following"),
    [
        ('<https://crm.example/x?p=2>; rel="next"', "https://crm.example/x?p=2"),
        ("<?p=2>; rel=next", "https://crm.example/x?p=2"),
        ('</y>; title="a"; rel="prev next"', "https://crm.example/y"),
        ('<a>; rel="prev", <b>; REL="next", <c>; rel="last"', "https://crm.example/b"),
        ('<a>; rel="nextish"', None),
        ('<a>; rel="prev"; title="next"', None),
        ("", None),
        ("<" + "a" * 9000 + '>; rel="next"', None),
    ],
)
def test_the_next_page_of_a_link_header(header: str, following: str | None) -> None:
    answer = Answer(200, {"Link": header}, b"[]", 1)
    assert page_of("crm", resource(paging="link", next=""), answer, "https://crm.example/x", "").next == following


@pytest.mark.parametrize(
    ("value", "following"),
    [("abc", "abc"), (7, "7"), (0, "0"), (None, None), ("", None), (False, None), (True, None), ([], None)],
)
def test_a_cursor_is_a_text_or_a_number(value: Any, following: str | None) -> None:
    answer = Answer(200, {}, json.dumps({"next": value, "data": []}).encode(), 1)
    assert page_of("crm", resource(items="/data"), answer, "https://crm.example/x", "").next == following


def test_a_cursor_is_bounded() -> None:
    answer = Answer(200, {}, json.dumps({"next": "x" * 5000, "data": []}).encode(), 1)
    with pytest.raises(TemporaryFailure, match="too long"):
        page_of("crm", resource(items="/data"), answer, "https://crm.example/x", "")


def test_the_time_to_ask_from() -> None:
    assert since_of("2024-01-01T00:05:00.5+00:00") == "2024-01-01T00:00:00Z"
    assert since_of("") == ""
