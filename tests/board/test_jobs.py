"""Lists of jobs say what is so in Redis, show each viewer what they may see, and stand any search and cursor."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from board.api import Refused
from board.contracts import contract_in
from board.cursors import packed
from board.jobrows import SWEEP_MS
from board.jobs import JobsPage, Reads
from board.redact import HIDDEN
from board.shapes import Jobs, JobsAsk
from board.viewer import Viewer
from runtime.ended import Ended
from runtime.jobs import Deferral, Parking
from runtime.store.base import GROUP, WorkerRow
from tests.contract.kit import ME, batch, leases

KEY = "{jobs}:high"
NOBODY = Viewer("anna", frozenset(("view",)))
READER = Viewer("ben", frozenset(("view", "payload")))


@pytest.fixture
def page(reads: Reads) -> JobsPage:
    return JobsPage(reads)


def fill(raw: redis.Redis, n: int, stream: str = KEY, **fields: Any) -> list[str]:
    pipe = raw.pipeline()
    for at in range(n):
        pipe.xadd(
            stream, {"type": "t", "data": json.dumps({"n": at, "mail": "a@b", "token": "s3cret"}), "id": f"j{at}", **fields}
        )
    return [str(entry) for entry in pipe.execute()]


async def listed(page: JobsPage, viewer: Viewer = READER, **ask: Any) -> Jobs:
    return await page.jobs(JobsAsk(**ask), viewer)


async def all_of(page: JobsPage, **ask: Any) -> list[str]:
    found: list[str] = []
    cursor = ""
    for _ in range(100):
        part = await listed(page, cursor=cursor, **ask)
        found += [row.id for row in part.rows]
        if part.cursor is None:
            return found
        cursor = part.cursor
    raise AssertionError("a list without an end")


# --- what is so --------------------------------------------------------------------------------------------------------------


async def test_an_empty_queue_has_empty_lists(page):
    for state in ("claimed", "waiting", "delayed"):
        found = await listed(page, state=state)
        assert (found.rows, found.cursor, found.claimed, found.waiting, found.delayed) == ([], None, 0, 0, 0)
    assert (await listed(page, state="waiting")).title == ["", "0 jobs wait", ""]


async def test_who_holds_a_job_is_said_with_its_badge(page, kit, raw):
    store = kit.streams(ME)
    await store.start()
    ids = fill(raw, 5)
    held = await leases(store, 2)
    server_ms = int(raw.time()[0]) * 1000
    jobs = [(f"high/{ids[0]}", server_ms - 28_000, "t")]
    await store.beat(WorkerRow(30_000, host="pay-1", pid=812, jobs=jobs, since=1))
    raw.xreadgroup(GROUP, "gone", {KEY: ">"}, count=2)
    assert len(held) == 2
    found = await listed(page)
    assert [row.id for row in found.rows] == ["j2", "j3", "j0", "j1"]
    gone, _, near, unstarted = found.rows
    assert gone.claim is not None
    assert (gone.claim.is_alive, gone.claim.owner, gone.note.level) == (False, "gone", "act")
    assert gone.note.text.startswith("owner gone, back in ")
    assert 0 < gone.claim.back_ms <= 30_000 + SWEEP_MS
    assert gone.claim.said[1] == "Worker gone stopped beating, while it held this job."
    assert (near.claim.label, near.claim.is_started, near.claim.timeout_ms) == ("pay-1 · 812", True, 30_000)
    assert near.note.text.startswith("timeout in ")
    assert near.attempts == 5
    assert (unstarted.claim.is_started, unstarted.note) == (False, None)
    assert {facet.name: facet.count for facet in found.facets} == {
        "all": 4,
        "gone": 2,
        "suspect": 0,
        "near": 1,
        "again": 0,
        "unstarted": 1,
    }
    assert found.title == ["", "4 jobs are claimed", "3 run, 1 wait in an inbox. 2 belong to a worker that is gone."]
    assert found.said == "all 4 looked at"
    assert [row.id for row in (await listed(page, facet="near")).rows] == ["j0"]


async def test_who_was_delivered_again_to_one_who_isolates_is_a_suspect(page, kit, raw):
    store = kit.streams(ME)
    await store.start()
    [entry] = fill(raw, 1)
    raw.xreadgroup(GROUP, "dead", {KEY: ">"}, count=1)
    raw.execute_command("XCLAIM", KEY, GROUP, ME, 0, entry, "RETRYCOUNT", 2)
    raw.hset("{jobs}:wards", ME, "99 1")
    await store.beat(WorkerRow(30_000))
    [row] = (await listed(page, facet="suspect")).rows
    assert (row.claim.deliveries, row.claim.is_suspect, row.note.text) == (2, True, "suspect, runs apart")


async def test_where_no_worker_lives_nobody_takes_it_back(page, kit, raw):
    await kit.streams(ME).start()
    fill(raw, 1)
    raw.xreadgroup(GROUP, "gone", {KEY: ">"}, count=1)
    raw.delete("{jobs}:workers")
    [row] = (await listed(page)).rows
    assert (row.note.text, row.claim.back_ms) == ("owner gone, no worker lives", None)
    assert "No worker lives" in row.claim.said[2]


async def test_a_job_that_somebody_cancelled_says_so(page, kit, raw):
    store = kit.streams(ME)
    await store.start()
    [entry] = fill(raw, 1)
    await leases(store, 1)
    await store.beat(WorkerRow(30_000))
    raw.set(f"{{jobs}}:cancels:high/{entry}", "anna@board")
    [row] = (await listed(page)).rows
    assert row.note.text == "cancelled by anna@board, asked to end"


async def test_what_waits_comes_oldest_or_newest_first_over_all_streams(page, kit, raw):
    await kit.streams(ME).start()
    for at in range(6):
        raw.xadd("{jobs}:low" if at % 2 else KEY, {"type": "t", "data": "{}", "id": f"j{at}", "src": "web"}, id=f"{1000 + at}-0")
    found = await listed(page, state="waiting")
    assert [row.id for row in found.rows] == [f"j{at}" for at in range(6)]
    assert (found.rows[0].pri, found.rows[1].pri, found.rows[0].source, found.rows[0].state) == ("high", "low", "web", "waiting")
    assert found.rows[0].age_ms > 10**12 - 10**10
    assert await all_of(page, state="waiting", sort="newest", limit=2) == [f"j{at}" for at in range(5, -1, -1)]
    assert await all_of(page, state="waiting", sort="oldest", limit=1, facet="low") == ["j1", "j3", "j5"]
    assert found.title == ["", "6 jobs wait", ""]


async def test_what_lots_hold_says_what_it_waits_for(page, kit, raw):
    store = kit.streams(ME)
    await store.start()
    fill(raw, 3)
    one, two, three = await leases(store, 3)
    await store.settle(batch(Parking(one, "~free"), Parking(two, "~t:t@2"), Parking(three, "~g:t")))
    found = await listed(page, state="waiting", facet="lots")
    assert {row.id: row.waits for row in found.rows} == {
        "j0": "was given back, and runs with what comes next",
        "j1": "waits for a worker that knows t version 1",
        "j2": "waits for its turn at t",
    }
    assert {row.state for row in found.rows} == {"lot"}
    assert sorted(await all_of(page, state="waiting", facet="lots", limit=1)) == ["j0", "j1", "j2"]


async def test_delayed_jobs_come_by_their_time(page, kit, raw):
    store = kit.streams(ME)
    await store.start()
    fill(raw, 5)
    for at, lease in enumerate(await leases(store, 5)):
        await store.settle(batch(Deferral(lease, "retry", 60_000 + at * 1000, f"j{at}", 1)))
    assert await all_of(page, state="delayed", limit=2) == [f"j{at}" for at in range(5)]
    found = await listed(page, state="delayed")
    assert (found.rows[0].attempt, found.rows[0].pri, found.rows[0].place) == (2, "high", "due/j0")
    assert found.title[1] == "5 jobs are delayed"
    assert found.title[2].startswith("The next is due in ")


def end(raw: redis.Redis, at: int, outcome: str, **more: Any) -> None:
    told = {"outcome": outcome, "attempt": 1, "by": "w1", "app": "v1", **more}
    run = Ended(id=f"j{at}", type="t", place=f"high/{at}-0", at_ms=int(raw.time()[0]) * 1000, run_ms=20, wait_ms=7, **told)
    fields = run.fields()
    raw.xadd("{jobs}:events", dict(zip(fields[::2], fields[1::2], strict=True)))


async def test_runs_that_have_ended_are_a_sample_and_say_so(page, raw):
    for at in range(30):
        end(raw, at, "done" if at % 3 else "retry", error="" if at % 3 else "ValueError: token=s3cret")
    end(raw, 98, "duplicate", error="dropped as a duplicate of j1 (key k)")
    end(raw, 99, "lost")
    now = int(raw.time()[0]) // 60
    raw.hset(f"{{jobs}}:stats:{now}", "t high done", 2000)
    found = await listed(page, state="finished")
    assert [row.id for row in found.rows[:2]] == ["j99", "j98"]
    assert {facet.name: facet.count for facet in found.facets} == {"all": 32, "failed": 10, "lost": 1, "dropped": 1, "done": 20}
    assert found.title == ["", "Runs that have ended", "Every failure, and about 1 of 100 successes."]
    assert (found.rows[3].end.outcome, found.rows[3].end.run_ms, found.rows[3].end.worker) == ("done", 20, "w1")
    assert (found.rows[0].end.outcome, found.rows[0].end.run_ms) == ("lost", None)
    assert (found.rows[1].end.outcome, found.rows[1].error) == ("duplicate", "dropped as a duplicate of j1 (key k)")
    assert [row.id for row in (await listed(page, NOBODY, state="finished", facet="dropped")).rows] == ["j98"]
    failed = await listed(page, state="finished", facet="failed", limit=3)
    assert failed.rows[0].error == f"ValueError: token={HIDDEN}"
    assert (await listed(page, NOBODY, state="finished", facet="failed")).rows[0].error == "ValueError"
    assert await all_of(page, state="finished", facet="failed", limit=3) == [f"j{at}" for at in range(27, -1, -3)]
    assert await all_of(page, state="finished", q="id:j7 type:t") == ["j7"]
    assert (await listed(page, state="finished", q="error:s3cret")).rows == []


# --- who may see what --------------------------------------------------------------------------------------------------------


async def test_only_who_may_see_arguments_sees_them_and_never_a_secret(page, raw):
    fill(raw, 1)
    [row] = (await listed(page, NOBODY, state="waiting")).rows
    assert (row.args, row.id, row.type) == (None, "j0", "t")
    [row] = (await listed(page, READER, state="waiting")).rows
    assert row.args == f'{{"n": 0, "mail": "{HIDDEN}", "token": "{HIDDEN}"}}'


@pytest.mark.parametrize("q", ["args:n=0", "error:x", "word", "-word", "type:t args:a"])
async def test_who_may_not_see_messages_does_not_search_in_them(page, q):
    with pytest.raises(Refused) as refused:
        await listed(page, NOBODY, q=q)
    assert refused.value.status == 403


@pytest.mark.parametrize("q", ["args:token=s3cret", "args:token=s3*", "s3cret", "args:mail=a@b", "-args:token=nothing s3cret"])
async def test_no_secret_is_found_by_searching_for_it(page, raw, q):
    fill(raw, 2)
    assert (await listed(page, state="waiting", q=q)).rows == []


# --- search ------------------------------------------------------------------------------------------------------------------


async def test_a_search_says_how_much_it_looked_at_and_goes_on(page, raw, monkeypatch):
    monkeypatch.setattr("board.jobs.WINDOW", 200)
    monkeypatch.setattr("board.jobs.STEP", 100)
    fill(raw, 500)
    first = await listed(page, state="waiting", q="args:n=7")
    assert (first.rows, first.said) == ([], "newest 200 of 500 looked at, 0 found, go on")
    assert first.cursor is not None
    assert await all_of(page, state="waiting", q="args:n=7") == ["j7"]
    assert await all_of(page, state="waiting", q="id:j7,j400 type:t") == ["j400", "j7"]
    assert await all_of(page, state="waiting", q="id:j1*", limit=7, sort="oldest") == [
        f"j{at}" for at in range(500) if str(at)[0] == "1"
    ]
    assert (await listed(page, state="waiting", q="type:other", facet="high")).looked_at == 200


async def test_a_search_of_claims_looks_at_all_of_them(page, kit, raw):
    await kit.streams(ME).start()
    fill(raw, 300)
    raw.xreadgroup(GROUP, "w1", {KEY: ">"}, count=250)
    raw.xreadgroup(GROUP, "w2", {KEY: ">"}, count=50)
    found = await listed(page, q="id:j1*", limit=10)
    assert (found.found, len(found.rows), found.said) == (111, 10, "all 300 looked at, 111 found")
    assert len(await all_of(page, q="id:j1*", limit=10)) == 111
    assert sorted(await all_of(page, q="owner:w2 args:n=299")) == ["j299"]
    assert (await listed(page, q="owner:w1 id:j299")).rows == []


async def test_a_search_finds_what_is_delayed(page, kit, raw):
    store = kit.streams(ME)
    await store.start()
    fill(raw, 5)
    for at, lease in enumerate(await leases(store, 5)):
        await store.settle(batch(Deferral(lease, "retry", 60_000 + at * 1000, f"j{at}", 1)))
    found = await listed(page, state="delayed", q="args:n=3 attempt>1")
    assert ([row.id for row in found.rows], found.said, found.cursor) == (["j3"], "all 5 looked at, 1 found", None)


@pytest.mark.parametrize("q", ["attempt>x", "a " * 30])
async def test_a_search_that_cannot_be_read_is_refused(page, q):
    with pytest.raises(Refused) as refused:
        await listed(page, q=q)
    assert refused.value.status == 400


# --- what strangers send and write -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["claimed", "waiting", "delayed", "finished"])
@settings(max_examples=60)
@given(
    cursor=st.text(max_size=40)
    | st.recursive(st.none() | st.integers(-9, 2**60) | st.text(max_size=9), lambda inner: st.lists(inner, max_size=4)).map(
        packed
    )
    | st.tuples(st.tuples(*[st.sampled_from(["", "1-1", "x", "99999999999999999999999-1"])] * 4), st.integers(-1, 9)).map(packed)
)
async def test_any_cursor_is_a_place_or_refused(page, raw, state, cursor):
    if not raw.xlen(KEY):
        fill(raw, 3)
    try:
        await listed(page, state=state, cursor=cursor)
    except Refused as error:
        assert error.status == 400


@pytest.mark.parametrize("facet", ["", "nothing", "*"])
async def test_an_unknown_facet_is_refused(page, facet):
    for state in ("claimed", "waiting", "delayed", "finished"):
        with pytest.raises(Refused):
            await listed(page, state=state, facet=facet)


async def test_what_cannot_be_read_spoils_its_row_alone(page, raw):
    raw.xadd(KEY, {"x": "y"})
    raw.xadd(KEY, {"type": b"\xff\x00", "data": b"\xc1" * 9, "ct": "application/msgpack", "id": "\u202e", "attempts": "9" * 99})
    raw.xadd(KEY, {"type": "t", "data": b'{"a": "\xff\x00'})
    raw.xadd(KEY, {"type": "t", "data": "[" * 5000})
    raw.xadd(KEY, {"type": "other", "data": "x" * 200_000, "id": "big"})
    fill(raw, 1)
    rows = (await listed(page, state="waiting")).rows
    assert len(rows) == 6
    assert rows[-1].id == "j0"
    assert rows[1].args == "(MessagePack)"
    assert "\u202e" not in rows[1].id
    assert len(rows[4].args) == 200
    await listed(page, state="waiting", q="x type:t")


def test_a_contract_is_what_a_worker_has_written_or_nothing() -> None:
    assert contract_in("t@1", '{"timeout_s": "x", "attempts": true, "schema": []}') is not None
    for name, text in [
        ("t", "{}"),
        ("t@x", "{}"),
        ("t@1", "[]"),
        ("t@1", "{"),
        ("t@1", "[" * 10_000),
        ("t@²", "{}"),
        ("@1", "{}"),
    ]:
        assert contract_in(name, text) is None
