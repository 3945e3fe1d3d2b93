"""`Control.cancel`, `run_now`, `set_priority`: what they find, what they answer, and what they look for again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from runtime import ConfigError, Control, Priority, Producer, StoreError, StoreUnavailable, contract
from runtime.jobs import Deferral, Letter
from runtime.steering import Steered
from tests.contract.kit import ME, batch, leases
from tests.proxy import Proxy


@contract("tea")
class Tea(msgspec.Struct):
    cups: int = 1


@pytest.fixture
async def control(on_server: Any) -> AsyncIterator[Control]:
    async with Control(on_server.server.url, by="ann@host") as opened:
        yield opened


@pytest.fixture
async def worker(on_server: Any) -> Any:
    streams = on_server.streams(ME)
    await streams.start()
    return streams


def told(steered: list[Steered]) -> list[tuple[str, str, str]]:
    return [(one.id, one.answer, one.holder) for one in steered]


async def test_all_jobs_with_an_id_are_cancelled_wherever_they_are(on_server, worker, control):
    for _ in range(2):
        on_server.add(id="j")
    first, second = await leases(worker)
    await worker.settle(batch(Deferral(second, "retry", 600_000, "j", 1)))
    waits = on_server.add(id="j", to=3)
    on_server.add(id="other")
    steered = await control.cancel("j", reason="why")
    assert sorted(told(steered)) == [("j", "asked", ME), ("j", "cancelled", ""), ("j", "cancelled", "")]
    assert {one.place for one in steered} == {"due/j", f"high/{first.entry.decode()}", f"low/{waits}"}
    assert {letter["dead_error"] for letter in on_server.letters()} == {"cancelled by ann@host: why"}
    assert [message["id"] for message in on_server.messages()] == ["j", "other"]
    again = await control.cancel("j")
    assert told(again) == [("j", "asked", ME)]


async def test_a_job_that_is_dead_already_says_why_and_one_that_is_not_there_is_none(on_server, worker, control):
    on_server.add(id="j")
    [job] = await leases(worker)
    await worker.settle(batch(Letter(job, "handler", "e", "", 1, "j")))
    assert told(await control.cancel("j")) == [("j", "dead", "handler")]
    assert told(await control.run_now("j")) == [("j", "dead", "handler")]
    assert await control.cancel("nobody") == []
    assert len(on_server.letters()) == 1


async def test_a_job_is_meant_by_what_send_returned(on_server, worker, control):
    async with Producer(on_server.server.url) as producer:
        sent = [await producer.send(Tea(n), delay_s=3600) for n in range(2)]
    assert told(await control.run_now(sent[0])) == [(sent[0].id, "moved", "")]
    assert told(await control.set_priority(sent[1], "low")) == [(sent[1].id, "moved", "")]
    assert told(await control.cancel(sent[1])) == [(sent[1].id, "cancelled", "")]


async def test_a_job_is_meant_by_its_place_alone(on_server, worker, control):
    first, second = on_server.add(id="j"), on_server.add(id="j")
    assert told(await control.cancel(f"high/{second}")) == [("j", "cancelled", "")]
    assert list(on_server.ids()) == [first]
    assert await control.cancel(f"high/{second}") == []
    on_server.raw.hset("{jobs}:msg", "m", b"\x94\xa6stream\xa4high\xa4type\xa1t")
    assert told(await control.run_now("due/m")) == [("m", "moved", "")], "also without a time"
    assert await control.cancel("due/none") == []
    [letter] = [place for place, _ in on_server.raw.xrange("{jobs}:dead")]
    assert told(await control.cancel(f"dead/{letter}")) == [("j", "dead", "cancelled")]


async def test_a_default_id_means_no_job_that_has_one_of_its_own(on_server, control):
    entry = on_server.add(id="j")
    assert await control.cancel(f"high-{entry}") == []
    bare = on_server.add()
    assert told(await control.cancel(f"high-{bare}")) == [(f"high-{bare}", "cancelled", "")]
    assert len(on_server.messages()) == 1


@pytest.mark.parametrize("broken", ["due", "critical", "low", "dead"])
async def test_a_key_of_a_wrong_type_hides_no_job_that_stands_elsewhere(on_server, control, broken):
    on_server.raw.set(f"{{jobs}}:{broken}", "a stranger's")
    on_server.add(id="j")
    assert told(await control.set_priority("j", "medium")) == [("j", "moved", "")]
    with pytest.raises(StoreError, match=rf"WRONGTYPE .*\({{jobs}}:{broken}\)"):
        await control.run_now("nobody")


async def test_a_job_that_moves_on_between_a_look_and_the_step_is_looked_for_again(on_server, worker, control):
    on_server.add(id="j")
    [job] = await leases(worker)
    await worker.settle(batch(Deferral(job, "retry", 0, "j", 1)))
    real, steps = control._job_store.steer, []

    async def steer(verb: str, by: str, reason: str, places: list[str], argument: str = "") -> list[str]:
        steps.append(places)
        if len(steps) == 1:
            await worker.promote(100, "0")
        return await real(verb, by, reason, places, argument)

    control._job_store.steer = steer
    assert told(await control.cancel("j")) == [("j", "cancelled", "")]
    [[first], [second]] = steps
    assert (first, second.partition("/")[0]) == ("due/j", "high")
    assert (on_server.messages(), len(on_server.letters())) == ([], 1)


async def test_what_is_done_meanwhile_or_moves_on_each_time_is_gone(on_server, worker, control):
    on_server.add(id="j")
    real, looks = control._job_store.steer, []

    async def steer(verb: str, by: str, reason: str, places: list[str], argument: str = "") -> list[str]:
        looks.append(places)
        [job] = await leases(worker)
        await worker.settle(batch(done=[job]))
        return await real(verb, by, reason, places, argument)

    control._job_store.steer = steer
    assert told(await control.cancel("j")) == [("j", "gone", "")]
    assert len(looks) == 1, "then it is not there any more"


async def test_what_a_worker_has_is_not_moved(on_server, worker, control):
    on_server.add(id="j")
    await leases(worker)
    assert told(await control.set_priority("j", Priority.LOW)) == [("j", "held", ME)]
    assert told(await control.run_now("j")) == [("j", "held", ME)]


async def test_a_priority_is_a_name_or_a_priority(on_server, control):
    on_server.add(id="j")
    assert told(await control.set_priority("j", "low")) == [("j", "moved", "")]
    assert told(await control.set_priority("j", Priority.LOW)) == [("j", "same", "")]
    assert told(await control.set_priority("j", Priority.CRITICAL)) == [("j", "moved", "")]
    assert len(on_server.messages(0)) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda control: control.cancel(""),
        lambda control: control.cancel(7),
        lambda control: control.cancel("urgent/1-1"),
        lambda control: control.cancel("high/soon"),
        lambda control: control.cancel("j", reason="a\nb"),
        lambda control: control.set_priority("j", "urgent"),
        lambda control: control.set_priority("j", 2),
    ],
)
async def test_what_cannot_be_meant_is_refused_by_name_and_nothing_changes(on_server, control, call):
    on_server.add()
    with pytest.raises(ConfigError):
        await call(control)
    assert (len(on_server.messages()), on_server.letters(), on_server.audit()) == (1, [], [])


async def test_an_order_whose_reply_is_lost_is_repeated_and_tells_what_is_true(on_server):
    on_server.add(id="j")
    async with Proxy(on_server.server.socket) as proxy, Control(proxy.url) as control:
        on_server.add(id="first")
        await control.cancel("first")  # the server knows the script
        proxy.drop_next_reply(b"EVALSHA", 0)
        assert told(await control.cancel("j")) == [("j", "dead", "cancelled")]
        assert proxy.dropped == 1
    assert [letter["id"] for letter in on_server.letters()] == ["first", "j"]


async def test_without_a_server_there_is_no_answer():
    async with Control("redis://127.0.0.1:1") as control:
        with pytest.raises(StoreUnavailable):
            await control.cancel("j")
