"""One job: where it is, its life, what each viewer may see of it, its payload, and what may be done with it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis

from board.actions import ActionsPage
from board.api import Refused, Reply
from board.job import JobPage
from board.jobs import Reads
from board.payload import PayloadPage
from board.redact import HIDDEN
from board.shapes import ActAsk, Job, JobAsk, PayloadAsk
from board.viewer import Viewer
from runtime.jobs import Deferral, Letter
from runtime.said import Attempt, Report, pack_reports
from runtime.store.base import GROUP, WorkerRow
from runtime.store.control import ControlStore
from runtime.tries import Try, pack_tries
from tests.contract.kit import ME, batch, leases
from tests.servers import Server

KEY = "{jobs}:high"
VIEWER = Viewer("anna", frozenset(("view",)))
READER = Viewer("ben", frozenset(("view", "payload")))
BOSS = Viewer("cleo", frozenset(("view", "payload", "operate", "send")))
DATA = '{"n":12345678901234567890,"mail":"a@b","token":"s3cret"}'
ERROR = "HTTPStatusError: 401 for https://x/?token=s3cret"


class Pages:
    """All pages of one job, on one server."""

    def __init__(self, reads: Reads, store: ControlStore) -> None:
        self.jobs = JobPage(reads)
        self.payloads = PayloadPage(reads)
        self.actions = ActionsPage(reads, store)

    async def job(self, viewer: Viewer = READER, **ask: str) -> Job:
        return await self.jobs.job(JobAsk(**ask), viewer)


@pytest.fixture
async def pages(valkey: Server, reads: Reads) -> AsyncIterator[Pages]:
    store = ControlStore(valkey.url, "jobs")
    yield Pages(reads, store)
    await store.close()


def add(raw: redis.Redis, **fields: Any) -> str:
    return str(raw.xadd(KEY, {"type": "t", "data": DATA, "id": "j1", **fields}))


def tried(n: int, at_ms: int) -> bytes:
    return pack_tries([Try(at + 1, at_ms + 1000 * at, 20, "w1", "v1", ERROR, "data.py:214 fetch", "a" * 32) for at in range(n)])


# --- where it is -------------------------------------------------------------------------------------------------------------


async def test_a_job_that_waits(pages, kit, raw):
    await kit.streams(ME).start()
    entry = add(raw, src="web", group="acme", key="mail:a@b")
    found = await pages.job(place=f"high/{entry}")
    assert (found.row.state, found.row.id, found.said[0], found.can) == ("waiting", "j1", "It has waited for ", [])
    assert [step.kind for step in found.steps] == ["waited"]
    facts = {fact.name: fact.text for fact in found.facts}
    assert (facts["group"], facts["sent by"], facts["key"]) == ("acme", "web", "mail:a@b")
    assert "key" not in {fact.name for fact in (await pages.job(VIEWER, place=f"high/{entry}")).facts}
    assert (await pages.job(BOSS, id="j1")).can == ["cancel"]


async def test_a_job_that_runs_says_how_far_it_is(pages, kit, raw):
    store = kit.streams(ME)
    await store.start()
    entry = add(raw)
    await leases(store, 1)
    now_ms = int(time.time() * 1000)
    place = f"high/{entry}"
    await store.beat(WorkerRow(30_000, host="pay-1", pid=8, since=1, app="v7", jobs=[(place, now_ms - 5000, "t")]))
    report = Report(
        place=place, id="j1", type="t", attempt=1, since_ms=now_ms - 5000, at_ms=now_ms, done=3, total=5, lines=["token=s3cret"]
    )
    raw.set(f"{{jobs}}:progress:{ME}", pack_reports([report]))
    found = await pages.job(id="j1")
    assert (found.row.state, found.row.claim.label) == ("claimed", "pay-1 · 8")
    assert (found.row.progress.done, found.row.progress.lines) == (3.0, [f"token={HIDDEN}"])
    assert "".join(found.said).startswith("Its first attempt has run for ")
    assert [(step.kind, step.app) for step in found.steps][-1] == ("running", "v7")
    assert (await pages.job(VIEWER, id="j1")).row.progress is None


async def test_a_job_whose_worker_is_gone_says_when_it_is_back(pages, kit, raw):
    await kit.streams(ME).start()
    entry = add(raw)
    raw.xreadgroup(GROUP, "gone", {KEY: ">"}, count=1)
    found = await pages.job(place=f"high/{entry}")
    assert found.said[1] == "Worker gone stopped beating, while it held this job."


async def test_a_job_that_waits_for_its_next_attempt(pages, kit, raw):
    store = kit.streams(ME)
    await store.start()
    born_ms = int(time.time() * 1000) - 61_000
    add(raw, e=tried(2, born_ms + 1000), a="2", attempts="8", first_at=str(born_ms))
    [lease] = await leases(store, 1)
    await store.settle(batch(Deferral(lease, "retry", 180_000, "j1", 2)))
    found = await pages.job(READER, place="due/j1")
    assert "".join(found.said).startswith("Its second attempt failed with HTTPStatusError; it runs again in ")
    assert [step.kind for step in found.steps] == ["waited", "attempt", "backoff", "attempt", "next"]
    assert found.steps[1].message == f"401 for https://x/?token={HIDDEN}"
    assert (found.steps[3].same_as, found.steps[3].trace) == (1, "a" * 32)
    assert found.row.attempts == 8
    assert found.group is not None
    seen = await pages.job(VIEWER, place="due/j1")
    assert [step.message for step in seen.steps] == [None] * 5
    assert (seen.row.args, seen.row.error) == (None, "HTTPStatusError")
    assert "s3cret" not in str(seen)
    assert "s3cret" not in str(found)
    assert (await pages.job(BOSS, place="due/j1")).can == ["cancel", "soon"]


async def test_a_dead_job(pages, kit, raw):
    store = kit.streams(ME)
    await store.start()
    add(raw, e=tried(3, 5000))
    [lease] = await leases(store, 1)
    await store.settle(batch(Letter(lease, "attempts", ERROR, "stack with s3cret", 3, "j1")))
    found = await pages.job(BOSS, id="j1")
    assert (found.row.state, found.can) == ("dead", ["replay", "trash", "edit"])
    assert found.said[:2] == ["It is dead after 3 attempts: ", "HTTPStatusError"]
    assert found.row.place.startswith("dead/")
    assert len([step for step in found.steps if step.kind == "attempt"]) == 3
    assert "s3cret" not in str(found)
    assert (await pages.job(VIEWER, id="j1")).row.error == "HTTPStatusError"


async def test_a_job_that_has_ended_is_told_by_what_is_left_of_it(pages, raw):
    raw.set("{jobs}:results:j1", b'{"state":"done","at":5000,"value":{"rows":4711,"token":"s3cret"}}')
    attempt = Attempt("j1", "t", 2, "high/1-1", "", 6000, "line 1\nline 2")
    raw.xadd("{jobs}:logs", dict(zip(attempt.fields()[::2], attempt.fields()[1::2], strict=True)))
    found = await pages.job(READER, id="j1")
    assert (found.row.state, found.said[1], found.row.type) == ("finished", "It is done", "t")
    assert found.result == f'{{"rows":4711,"token":"{HIDDEN}"}}'
    assert found.steps[-1].lines == ["line 1", "line 2"]
    assert (await pages.job(VIEWER, id="j1")).result is None


async def test_a_job_that_is_not_at_its_place_any_more_is_found_by_its_id(pages, kit, raw):
    await kit.streams(ME).start()
    entry = add(raw)
    raw.xdel(KEY, entry)
    moved = add(raw)
    assert (await pages.job(place=f"high/{entry}", id="j1")).row.place == f"high/{moved}"


@pytest.mark.parametrize(
    "ask", [{"id": "nobody"}, {"place": "high/1-1"}, {"place": "due/nobody"}, {"place": "dead/1-1"}, {"place": "x"}]
)
async def test_a_job_that_is_nowhere_is_not_found(pages, ask):
    with pytest.raises(Refused) as refused:
        await pages.job(**ask)
    assert refused.value.status == 404


@pytest.mark.parametrize("place", ["dead/x", "dead/", "high/", "/", "high/-", "due/", "low/1-1-1", "\x00", "due/\U0001f600 x/y"])
async def test_any_place_is_found_or_not(pages, place):
    for call in (pages.job(place=place), pages.payloads.payload(PayloadAsk(place=place), READER)):
        with pytest.raises(Refused) as refused:
            await call
        assert refused.value.status == 404


# --- its payload -------------------------------------------------------------------------------------------------------------


async def test_a_payload_is_shown_indented_redacted_and_checked(pages, raw):
    entry = add(raw)
    found = await pages.payloads.payload(PayloadAsk(place=f"high/{entry}"), READER)
    assert found.text == f'{{\n  "n": 12345678901234567890,\n  "mail": "{HIDDEN}",\n  "token": "{HIDDEN}"\n}}'
    assert (found.fits, found.problems, found.redacted, found.size) == (True, [], ["mail", "token"], len(DATA))
    entry = add(raw, data='{"mail":"s3cret","n":"s3cret"}')
    found = await pages.payloads.payload(PayloadAsk(place=f"high/{entry}"), READER)
    assert [(one.path, one.line, one.text) for one in found.problems] == [("n", 3, "must be integer")]
    assert found.fits is False
    found = await pages.payloads.payload(PayloadAsk(place=f"high/{add(raw, type='other')}"), READER)
    assert (found.fits, found.problems) == (None, [])


async def test_the_payload_of_a_letter_is_shown_in_the_trash_too(pages, raw):
    entry = raw.xadd("{jobs}:trash", {"type": "t", "data": DATA, "id": "j1", "dead_reason": "attempts"})
    found = await pages.payloads.payload(PayloadAsk(place=f"trash/{entry}"), READER)
    assert '"n": 12345678901234567890' in found.text
    with pytest.raises(Refused):
        await pages.job(place=f"trash/{entry}")  # a letter, and no job any more


async def test_a_large_payload_is_cut_and_whole_in_its_file(pages, raw):
    entry = add(raw, data=json.dumps({"n": 1, "text": "x" * 200_000, "token": "s3cret"}), id="../a b")
    place = f"high/{entry}"
    found = await pages.payloads.payload(PayloadAsk(place=place), READER)
    assert (found.is_cut, len(found.text)) == (True, 16_384)
    reply = await pages.payloads.payload(PayloadAsk(place=place, download=True), READER)
    assert isinstance(reply, Reply)
    assert len(str(reply.body)) > 200_000
    assert "s3cret" not in str(reply.body)
    assert reply.headers["Content-Disposition"].startswith("attachment; filename=")
    assert "/" not in reply.headers["Content-Disposition"].partition("=")[2]


async def test_messagepack_is_shown_as_json(pages, raw):
    entry = add(raw, ct="application/msgpack", data=msgspec.msgpack.encode({"n": 2**63, "token": "s3cret", "raw": b"\x00"}))
    found = await pages.payloads.payload(PayloadAsk(place=f"high/{entry}"), READER)
    assert f'"n": {2**63},\n  "token": "{HIDDEN}",\n  "raw": "<1 bytes>"' in found.text
    entry = add(raw, ct="application/msgpack", data=b"\xc1")
    assert (await pages.payloads.payload(PayloadAsk(place=f"high/{entry}"), READER)).fits is False


# --- what is done with it ----------------------------------------------------------------------------------------------------


async def test_cancel_says_what_became_of_each(pages, kit, raw):
    store = kit.streams(ME)
    await store.start()
    running, waiting = add(raw, id="a"), add(raw, id="b")
    await leases(store, 1)
    answer = await pages.actions.cancel(ActAsk(places=[f"high/{running}", f"high/{waiting}", "due/none"], reason="a\nb"), BOSS)
    assert [(one.answer, one.is_done) for one in answer.results] == [("asked", True), ("cancelled", True), ("gone", False)]
    assert answer.results[0].text == f"worker {ME} was asked to end it"
    assert answer.results[2].text == "it had moved on: mostly it is done by now"
    assert answer.text == "2 of 3 jobs cancelled, or their workers asked to end them; the others had moved on or are held"
    [(_, entry)] = raw.xrevrange("{jobs}:audit", count=1)
    assert (entry["by"], entry["reason"]) == ("cleo@board", "a b")


async def test_a_job_that_moved_on_is_refused_with_where_it_is(pages, kit, raw):
    store = kit.streams(ME)
    await store.start()
    add(raw)
    [lease] = await leases(store, 1)
    await store.settle(batch(Deferral(lease, "retry", 60_000, "j1", 1)))
    assert (await pages.actions.soon(ActAsk(places=["due/j1"]), BOSS)).text == "due now"
    with pytest.raises(Refused) as refused:
        await pages.actions.cancel(ActAsk(places=["high/1-1"]), BOSS)
    assert (refused.value.status, refused.value.now) == (409, "it had moved on: mostly it is done by now")


@pytest.mark.parametrize("place", ["x", "dead/1-1", "high/x", "due/"])
async def test_what_is_no_place_of_a_job_is_refused(pages, place):
    with pytest.raises(Refused) as refused:
        await pages.actions.cancel(ActAsk(places=[place]), BOSS)
    assert refused.value.status == 400
