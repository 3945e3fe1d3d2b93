"""Ticker over the double: every tick once, whichever call fails, whoever else fires, and whatever is changed meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any, cast

import msgspec
import pytest

from runtime.schedules import Definition, Settings, define
from runtime.streams import Streams
from runtime.worker import ticker as ticker_module
from runtime.worker.ticker import Ticker
from tests.cruelty import Fault, Plan
from tests.double import MemoryStreams
from tests.memory import MemoryStore
from tests.unit.parts import HIGH, end, until

pytestmark = pytest.mark.usefixtures("_hurry")

SPEED = 20.0  # so much faster the server's clock goes than ours
FIRED = [word for word in Fault if word is not Fault.HELD and word.name[:6] != "KILLED"]


def schedule(name: str = "a", when: str = "* * * * * *", **options: Any) -> Definition:
    settings = {"type": "part", "data": msgspec.Raw(b"{}"), "priority": HIGH + 1, "when": when, "missed": "all"} | options
    return define(name, Settings(**settings))


class Crew:
    """Tickers of several workers on one store."""

    def __init__(self, clock: Any = None) -> None:
        self.store = MemoryStore(clock or (lambda: time.monotonic() * SPEED))
        self.begin_ms = self.store.now_ms
        self.tasks: list[asyncio.Task[None]] = []

    def hire(self, *code: Definition, plan: Plan | None = None, name: str = "") -> Ticker:
        streams = MemoryStreams(self.store, name or f"w{len(self.tasks)}", plan)
        ticker = Ticker(cast("Streams", streams), {one.name: one for one in code})
        self.tasks.append(asyncio.create_task(ticker.run()))
        return ticker

    def ids(self, stream: int = HIGH) -> list[str]:
        return [message[1].decode() for message in self.store.entries[stream].values()]

    def ticks(self, name: str = "a") -> list[int]:
        return [int(job.rpartition(":")[2]) for job in self.ids() if job.startswith(f"cron:{name}:")]


@pytest.fixture
async def crew() -> AsyncIterator[Crew]:
    opened = Crew()
    yield opened
    await end(*opened.tasks)


def gaps(ticks: list[int]) -> set[int]:
    return {after - before for before, after in pairwise(ticks)}


async def test_every_tick_is_fired_once_by_whichever_of_several_workers(crew: Crew) -> None:
    for _ in range(4):
        crew.hire(schedule())
    await until(lambda: len(crew.ticks()) >= 20, "twenty ticks")
    assert gaps(crew.ticks()) == {1000}
    assert min(crew.ticks()) > crew.begin_ms


@pytest.mark.parametrize("fault", FIRED, ids=lambda fault: fault.name)
@pytest.mark.parametrize("verb", ["tick", "definitions"])
async def test_whichever_call_fails_every_tick_is_fired_once(crew: Crew, verb: str, fault: Fault) -> None:
    plan = Plan(*[(verb, nth, fault) for nth in (1, 2, 4, 5)])
    crew.hire(schedule(), plan=plan)
    await until(lambda: len(crew.ticks()) >= 10, "ten ticks")
    assert gaps(crew.ticks()) == {1000}


async def test_a_worker_that_dies_at_a_call_leaves_the_next_tick_to_the_others(crew: Crew) -> None:
    for fault in (Fault.KILLED_BEFORE, Fault.KILLED_AFTER):
        crew.hire(schedule(), plan=Plan(("tick", 3, fault)))
    crew.hire(schedule())
    await until(lambda: len(crew.ticks()) >= 10, "ten ticks")
    assert gaps(crew.ticks()) == {1000}


async def test_without_a_schedule_nothing_is_asked_until_there_is_one(crew: Crew) -> None:
    plan = Plan()
    ticker = crew.hire(plan=plan)
    await until(lambda: plan.counts["definitions"] == 1, "the look at the start")
    assert plan.counts["tick"] == 0
    crew.store.cron["a"] = f"1 {json.dumps({'type': 'part', 'data': {}, 'priority': HIGH + 1, 'every_s': 1})}"
    ticker.saw("1")
    ticker.saw("1")
    await until(lambda: len(crew.ticks()) >= 3, "three ticks")
    assert plan.counts["definitions"] == 2
    assert list(ticker.definitions) == ["a"]


async def test_an_edit_of_which_nobody_told_it_is_read_before_it_fires_again(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker_module, "OTHER_MS", 10)
    crew.hire(schedule())
    await until(lambda: len(crew.ticks()) >= 3, "three ticks")
    crew.store.cron["a"] = '7 {"paused":true}'
    last = crew.ticks()[-1]
    await until(lambda: crew.store.cron_state["a"].endswith("p"), "the pause is noted")
    seen = len(crew.ticks())
    crew.store.cron["a"] = "8 {}"
    await until(lambda: len(crew.ticks()) >= seen + 3, "it goes on")
    assert crew.ticks()[seen] > last + 1000, "nothing of the pause is fired"


async def test_what_cannot_be_read_is_told_once_and_the_others_fire(crew: Crew, caplog: pytest.LogCaptureFixture) -> None:
    crew.store.cron["b"] = "rubbish"
    ticker = crew.hire(schedule(), schedule("b"))
    for looks in (3, 6):
        await until(lambda n=looks: len(crew.ticks()) >= n, "ticks")
        ticker.look_again()
    await until(lambda: len(crew.ticks()) >= 9, "ticks")
    assert crew.ticks("b") == []
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told == ["schedule 'b': must be a revision, a space and a JSON object; it does not run"]


async def test_what_it_knows_of_a_schedule_that_stays_as_it_is_is_kept(crew: Crew) -> None:
    ticker = crew.hire(schedule(), schedule("b"))
    await until(lambda: len(crew.ticks()) >= 2, "two ticks")
    before = dict(ticker._known)
    ticker.apply({"b": '3 {"priority":1}', "c": '3 {"paused":true}'})
    assert ticker._known.keys() == {"a", "b"}
    assert ticker._known["a"] is before["a"]
    assert ticker._known["b"] is not before["b"]


async def test_a_definition_that_ruled_before_waits_until_what_followed_it_is_silent(crew: Crew) -> None:
    crew.hire(schedule(when="*/2 * * * * *"))
    await until(lambda: len(crew.ticks()) >= 2, "the old one fires")
    crew.hire(schedule(when="1-59/2 * * * * *"))
    await until(lambda: any(tick % 2000 for tick in crew.ticks()), "the new one fires")
    seen = len(crew.ticks())
    crew.hire(schedule(when="*/2 * * * * *"))  # a pod of before starts again
    await until(lambda: len(crew.ticks()) >= seen + 5, "the new one goes on")
    assert all(tick % 2000 for tick in crew.ticks()[seen:])
    await end(crew.tasks.pop(1))
    gone_ms = crew.store.now_ms
    await until(lambda: crew.ticks()[-1] % 2000 == 0, "the old one rules again")
    assert crew.ticks()[-1] - gone_ms >= 40_000
    counts = Counter(crew.ticks())
    assert max(counts.values()) == 1


async def test_after_an_outage_ticks_of_the_last_minute_fire_and_of_the_older_ones_the_newest(crew: Crew) -> None:
    plan = Plan()
    # A ticker sleeps by its own clock, up to a tick: half of the deadline.
    code = [schedule(when="*/5 * * * * *", missed="latest"), schedule("b", when="0 * * * *", missed="latest")]
    crew.hire(*code, plan=plan)
    for number in (1, 2):
        await until(lambda number=number: len(crew.ticks()) >= number, f"tick {number}")
    last = crew.ticks()[-1]
    plan.faults[("tick", 0)] = Fault.REFUSED
    crew.store.advance(3 * 3_600_000)
    seen = plan.counts["tick"]
    await until(lambda: plan.counts["tick"] > seen + 2, "it tries")
    plan.heal()
    await until(lambda: crew.ticks()[-1] > last + 3 * 3_600_000, "it fires again")
    hours = [tick for tick in crew.ticks("b") if tick > last]
    assert 1 <= len(hours) <= 2, "of three that were missed the newest, and one more where an hour has just begun"
    late = [tick for tick in crew.ticks() if tick > last]
    assert late[0] > last + 3 * 3_600_000 - 70_000
    assert gaps(late) == {5_000}
    assert any("m" in note for note in crew.store.cron_state["a"].split()[5:])


async def test_a_clock_that_goes_back_is_told_and_it_fires_again(crew: Crew, caplog: pytest.LogCaptureFixture) -> None:
    crew.hire(schedule())
    await until(lambda: len(crew.ticks()) >= 3, "three ticks")
    crew.store.advance(-3_600_000)
    before_ms = crew.store.now_ms
    await until(lambda: crew.ticks()[-1] < before_ms + 1_800_000, "it fires again")
    assert any("has gone back" in record.getMessage() for record in caplog.records)


async def test_a_schedule_that_cannot_be_stored_is_told_once_and_the_others_fire(
    crew: Crew, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticker_module, "REFUSED_MS", 10)
    crew.store.cron_errors["b"] = "WRONGTYPE"
    crew.hire(schedule(), schedule("b"))
    await until(lambda: len(crew.ticks()) >= 5, "ticks")
    del crew.store.cron_errors["b"]
    await until(lambda: len(crew.ticks("b")) >= 2, "it fires when it can")
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert told == ["schedule b: it cannot be fired: WRONGTYPE"]


async def test_rows_that_nobody_confirms_are_dropped_now_and_then(crew: Crew) -> None:
    ticker = crew.hire(schedule())
    await until(lambda: len(crew.ticks()) >= 1, "a tick")
    crew.store.cron_state["old"] = crew.store.cron_state["a"]
    crew.store.advance(8 * 86_400_000)
    ticker._forget_s = 0.0
    await until(lambda: "old" not in crew.store.cron_state, "the old row is gone")
    assert "a" in crew.store.cron_state
