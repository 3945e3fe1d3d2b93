"""A job is found by the entry that XADD answered, by its place and by its key, and what holds it is told; on real servers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from runtime.commands.dead import place_of_letter
from runtime.control import Control
from runtime.ended import Ended
from runtime.errors import ConfigError
from runtime.jobs import STREAMS
from runtime.schema import Declared
from runtime.store.base import GROUP, TOLD_JOBS, WorkerRow
from runtime.store.finder import Finder, places_named
from tests.servers import Server

HIGH = "{jobs}:high"
LOOK_AT = 1000
LEASE_MS = 30_000


@pytest.fixture
async def finder(server: Server) -> AsyncIterator[Finder]:
    found = Finder(server.url, "jobs")
    yield found
    await found.close()


def now_ms(raw: Any) -> int:
    return int(raw.time()[0]) * 1000


def send(raw: Any, stream: str = "high", entry: str = "*", holder: str = "", count: int = 1, **fields: str) -> str:
    """Send a job; where it has a holder, let that one hold it."""
    key = f"{{jobs}}:{stream}"
    sent = raw.xadd(key, {"type": "t", "data": "{}", **fields}, id=entry)
    if holder:
        if not raw.xinfo_groups(key):
            raw.xgroup_create(key, GROUP, "0")
        raw.xreadgroup(GROUP, "somebody", {key: ">"})
        raw.xclaim(key, GROUP, holder, 0, [sent], retrycount=count, justid=True)
    return str(sent)


def delay(raw: Any, member: str, **fields: str) -> None:
    record = ["stream", "high", *[word for item in {"type": "t", "data": "{}", **fields}.items() for word in item]]
    raw.hset("{jobs}:msg", member, msgspec.msgpack.encode(record))
    raw.zadd("{jobs}:due", {member: now_ms(raw) + 60_000})


def live(raw: Any, name: str, row: WorkerRow, beat_ago_ms: int = 0) -> None:
    raw.zadd("{jobs}:workers", {name: now_ms(raw) + LEASE_MS - beat_ago_ms})
    raw.hset("{jobs}:workers:rows", name, str(row))


def wrote(raw: Any, run: Ended) -> None:
    words = run.fields()
    raw.xadd("{jobs}:events", dict(zip(map(str, words[::2]), words[1::2], strict=True)))


async def places(finder: Finder, wanted: str) -> list[str]:
    return [job.place for job in (await finder.look(wanted, LOOK_AT)).jobs]


# --- by what it is found -----------------------------------------------------------------------------------------------------


async def test_a_job_is_found_by_the_entry_that_xadd_answered_whatever_its_id_is(finder: Finder, raw: Any):
    plain, named = send(raw, "medium", "8-0"), send(raw, "low", "9-0", id="order-1")
    assert await places(finder, plain) == [f"medium/{plain}"]
    [job] = (await finder.look(named, LOOK_AT)).jobs
    assert (job.id, job.place) == ("order-1", f"low/{named}")
    parked = send(raw, entry="7-1", holder="~t:nosuch@1")
    [job] = (await finder.look(parked, LOOK_AT)).jobs
    assert (job.id, job.state, job.where) == ("high-7-1", "parked", "~t:nosuch@1")


async def test_of_an_entry_that_has_moved_the_job_is_found_by_the_id_that_it_has_from_it(finder: Finder, raw: Any):
    delay(raw, "medium-5-1", id="medium-5-1")
    assert await places(finder, "5-1") == ["due/medium-5-1"]
    letter = raw.xadd("{jobs}:dead", {"type": "t", "id": "low-6-1", "dead_reason": "attempts"})
    assert await places(finder, "6-1") == [f"dead/{letter}"]
    assert await places(finder, letter) == [f"dead/{letter}"], "where a letter stands is an entry too"
    raw.set("{jobs}:results:high-8-1", '{"state":"done"}')
    assert "high-8-1" in (await finder.look("8-1", LOOK_AT)).ids


async def test_of_an_entry_that_has_moved_what_is_written_of_its_runs_says_the_id(finder: Finder, raw: Any):
    wrote(raw, Ended("order-9", "t", "high/9-1", "retry", 1, now_ms(raw)))
    wrote(raw, Ended("other", "t", "high/9-2", "retry", 1, now_ms(raw)))
    delay(raw, "order-9", id="order-9")
    looked = await finder.look("9-1", LOOK_AT)
    assert (looked.ids[-1], [job.place for job in looked.jobs]) == ("order-9", ["due/order-9"])


async def test_a_job_is_found_by_its_place_and_an_id_that_looks_like_an_entry_is_one(finder: Finder, raw: Any):
    entry = send(raw, id="a")
    assert await places(finder, f"high/{entry}") == [f"high/{entry}"]
    assert await places(finder, f"low/{entry}") == []
    odd = send(raw, id="5-3")
    assert await places(finder, "5-3") == [f"high/{odd}"]
    assert await places(finder, "a") == [f"high/{entry}"]


@pytest.mark.parametrize("text", ["high/x", "due/", "nowhere/1-1", "high", "1", "1-", "dead/1", "/1-1", "low/1-1/2"])
def test_what_is_no_place_is_an_id(text: str):
    assert places_named(text) == []


def test_an_entry_may_stand_in_each_stream_and_among_the_dead():
    assert places_named("1-1") == [*(f"{stream}/1-1" for stream in STREAMS), "dead/1-1"]


async def test_the_job_that_has_a_key_is_found_and_what_only_seems_to_have_it_is_not(finder: Finder, raw: Any):
    entry = send(raw, id="order-1", key="k1")
    delay(raw, "order-2", id="order-2", key="k2")
    for key, place in (("k1", f"high {entry}"), ("k2", "due order-2"), ("void", f"high {entry}"), ("gone", "low 1-1")):
        raw.set(f"{{jobs}}:seen:k:{key}", place)
    raw.set("{jobs}:seen:k:odd", "x" * 10_000)
    raw.rpush("{jobs}:seen:k:list", "high 1-1")
    found = {key: await finder.owner_of(key) for key in ("k1", "k2", "void", "gone", "odd", "list", "none")}
    assert {key: job.id for key, job in found.items() if job} == {"k1": "order-1", "k2": "order-2"}


async def test_people_act_on_a_job_by_its_entry_and_never_on_one_that_has_the_same_in_another_stream(server: Server, raw: Any):
    async with Control(server.url) as control:
        entry = send(raw, id="order-1")
        [moved] = await control.set_priority(entry, "low")
        assert (moved.id, moved.answer) == ("order-1", "moved")
        delay(raw, "high-7-7", id="high-7-7")
        assert [one.answer for one in await control.run_now("7-7")] == ["moved"]
        send(raw, "critical", "9-9")
        send(raw, "medium", "9-9", id="b")
        with pytest.raises(ConfigError, match=r"9-9 may be any of 2 jobs; hint: .* critical/9-9 or medium/9-9"):
            await control.cancel("9-9")
        assert raw.xlen("{jobs}:dead") == 0
        assert [one.id for one in await control.cancel("medium/9-9")] == ["b"]


async def test_a_letter_is_found_by_its_place_by_the_id_of_its_job_and_by_the_entry_that_this_had(finder: Finder, raw: Any):
    letters = [raw.xadd("{jobs}:dead", {"type": "t", "id": job_id}) for job_id in ("a", "high-5-1", "b", "a")]
    first, second, third, newest = letters
    found = {name: [one.letter for one in await finder.letters_of(name, 100)] for name in (third, "a", "5-1", "nobody", "9-9")}
    assert found == {third: [third], "a": [newest, first], "5-1": [second], "nobody": [], "9-9": []}
    assert [one.letter for one in await finder.letters_of("a", 3)] == [newest], "among so many"


async def test_of_several_letters_none_is_sent_back_until_one_is_named(finder: Finder, raw: Any):
    first, newest = (raw.xadd("{jobs}:dead", {"type": "t", "id": "a"}) for _ in range(2))
    with pytest.raises(ConfigError, match=f"a has 2 letters; hint: name the one that is meant, {newest}, {first}"):
        await place_of_letter(finder, "a")
    assert [await place_of_letter(finder, name) for name in (first, "b", "9-9")] == [first, "b", "9-9"]
    raw.xdel("{jobs}:dead", first)
    assert await place_of_letter(finder, "a") == newest


# --- what holds it -----------------------------------------------------------------------------------------------------------


async def one(finder: Finder, job_id: str) -> Any:
    jobs = (await finder.look(job_id, LOOK_AT)).jobs
    await finder.note(jobs)
    [job] = jobs
    return job


async def test_of_a_job_that_runs_it_is_told_since_when_and_for_how_long_it_may(finder: Finder, raw: Any):
    entry, since_ms = send(raw, id="a", holder="w-1"), now_ms(raw) - 5000
    idle = send(raw, id="b", holder="w-1")
    live(raw, "w-1", WorkerRow(LEASE_MS, lanes=5, types={"t": 2}, jobs=[(f"high/{entry}", since_ms, "t")]))
    raw.hset("{jobs}:contracts", "t@2", bytes(Declared(type="t", version=2, priority="high", timeout_s=60.0)))
    job = await one(finder, "a")
    assert (job.is_started, job.since_ms, job.timeout_ms, job.silence, job.deliveries) == (True, since_ms, 60_000, "", 1)
    job = await one(finder, "b")
    assert (job.place, job.is_started, job.since_ms, job.timeout_ms) == (f"high/{idle}", False, 0, 0)
    told = [(f"low/{n}-1", since_ms, "t") for n in range(TOLD_JOBS)]
    live(raw, "w-1", WorkerRow(LEASE_MS, lanes=99, types={"t": 2}, jobs=told))
    assert (await one(finder, "b")).is_started is None, "it may be one that runs for less than those"
    raw.hset("{jobs}:contracts", "t@2", "x" * 100_000)
    assert (await one(finder, "a")).timeout_ms == 0
    raw.config_resetstat()
    assert await finder.contract("t", 2) is None
    assert "cmdstat_hget" not in raw.info("commandstats"), "what is too long for a contract is not read"


async def test_of_a_worker_that_is_silent_or_forgotten_it_is_told(finder: Finder, raw: Any):
    send(raw, id="a", holder="w-1")
    live(raw, "w-1", WorkerRow(LEASE_MS, lanes=5), beat_ago_ms=25_000)
    assert (await one(finder, "a")).silence.startswith("silent for 2")
    raw.zrem("{jobs}:workers", "w-1")
    assert (await one(finder, "a")).silence.startswith("forgotten")


async def test_of_a_suspect_it_is_told_how_many_workers_died_and_which_while_it_ran_alone(finder: Finder, raw: Any):
    entry = send(raw, id="a", holder="~suspect", count=4)
    raw.hset("{jobs}:strikes", f"high/{entry}", "vm-1 vm-2")
    job = await one(finder, "a")
    assert (job.deliveries, job.strikes) == (4, ["vm-1", "vm-2"])
    raw.delete("{jobs}:strikes")
    raw.set("{jobs}:strikes", "x")
    assert (await one(finder, "a")).strikes == []


async def test_of_a_type_that_nobody_knows_it_is_told_when_it_is_a_dead_letter(finder: Finder, raw: Any):
    send(raw, id="a", holder="~t:t@3")
    since_ms = now_ms(raw) - 1000
    live(raw, "w-1", WorkerRow(LEASE_MS, types={"t": 2}, since=since_ms, unknown_s=900))
    job = await one(finder, "a")
    assert job.is_known is False
    assert abs(job.dead_from_ms - time.time() * 1000 - 900_000) < 60_000
    live(raw, "w-2", WorkerRow(LEASE_MS, types={"t": 3}, unknown_s=900))
    job = await one(finder, "a")
    assert (job.is_known, job.dead_from_ms) == (True, 0)
