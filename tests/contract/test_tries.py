"""What failed attempts leave on their job, by real workers: on its letter, after a replay, and through what people order."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from runtime import Backoff, Control, Dead, Job, Priority, contract, handler
from runtime.jobs import Deferral, Handler
from runtime.store.control import ControlStore
from runtime.store.inspector import Inspector
from runtime.tries import Try, pack_tries
from tests.contract.kit import ME, batch, leases
from tests.contract.test_debounce import add, admit_all
from tests.servers import Server
from tests.workers import until, working

KEY, DEAD = "{jobs}:high", "{jobs}:dead"
SOON = Backoff(base_s=0.01, cap_s=0.01, attempts=2)
TRACE = "0af7651916cd43dd8448eb211c80319c"


@contract("fails")
class Fails(msgspec.Struct, frozen=True):
    text: str = "no"


def fail(text: str) -> None:
    raise ValueError(text)


@handler(Fails, retry=SOON)
async def on_the_loop(message: Fails, job: Job) -> None:
    fail(message.text)


@handler(Fails, retry=SOON)
def in_a_thread(message: Fails, job: Job) -> None:
    fail(message.text)


@handler(Fails, retry=SOON, runs="process")
def in_a_child(message: Fails, job: Job) -> None:
    fail(message.text)


@handler(Fails, retry=SOON, max_size=2, max_wait_ms=1)
async def together(messages: list[Fails], jobs: list[Job]) -> None:
    fail(messages[0].text)


@handler(Fails, retry=SOON)
async def at_once(message: Fails, job: Job) -> None:
    raise Dead("no account", "gone")


def send(raw: Any, **fields: str) -> str:
    return raw.xadd(KEY, {"type": "fails", "data": "{}", **fields})


@pytest.mark.parametrize("failing", [on_the_loop, in_a_thread, in_a_child, together], ids=lambda one: one.function.__name__)
async def test_a_letter_tells_of_each_attempt_when_it_began_where_and_what_of(server: Server, failing: Handler[Any]) -> None:
    raw: Any = server.client()
    began_ms = int(time.time() * 1000)
    send(raw, traceparent=f"00-{TRACE}-b7ad6b7169203331-01")
    async with working(server.url, failing, app_version="v1.4.2") as consumer:
        await until(lambda: raw.xlen(DEAD) == 1, "it is dead")
    inspector = Inspector(server.url, "jobs")
    [letter] = await inspector.dead_letters(5)
    await inspector.close()
    assert (letter.by, letter.app) == (consumer.name, "v1.4.2")
    frame = f"tests/contract/test_tries.py:{fail.__code__.co_firstlineno + 1} fail"
    for at, one in enumerate(letter.tries, 1):
        assert (one.attempt, one.by, one.app) == (at, consumer.name, "v1.4.2")
        assert (one.error, one.frame, one.trace) == ("ValueError: no", frame, TRACE)
    first, second = letter.tries
    assert began_ms - 1000 <= first.at_ms < second.at_ms <= int(time.time() * 1000) + 1000
    assert 0 <= first.run_ms <= second.at_ms - first.at_ms


async def test_a_job_that_dies_at_once_has_one_attempt_and_one_that_never_ran_none(server: Server) -> None:
    raw: Any = server.client()
    send(raw, id="at-once")
    send(raw, id="late", exp="5")
    async with working(server.url, at_once):
        await until(lambda: raw.xlen(DEAD) == 2, "both are dead")
    inspector = Inspector(server.url, "jobs")
    tries = {letter.id: [one.error for one in letter.tries] for letter in await inspector.dead_letters(5)}
    await inspector.close()
    assert tries == {"at-once": ["Dead: no account"], "late": []}


async def test_a_replayed_job_shows_its_earlier_life_and_its_attempts_begin_anew(server: Server) -> None:
    raw: Any = server.client()
    send(raw, id="j")
    control = ControlStore(server.url, "jobs")
    async with working(server.url, on_the_loop):
        await until(lambda: raw.xlen(DEAD) == 1, "it is dead")
        [(place, _)] = raw.xrange(DEAD)
        await control.replay(place)
        await until(lambda: raw.xlen(DEAD) == 1 and raw.xrange(DEAD)[0][0] != place, "it is dead again")
    await control.close()
    inspector = Inspector(server.url, "jobs")
    [letter] = await inspector.dead_letters(5)
    await inspector.close()
    assert [one.attempt for one in letter.tries] == [1, 2, 0, 1, 2]
    assert [one.is_replay for one in letter.tries] == [False, False, True, False, False]
    assert [one.at_ms for one in letter.tries] == sorted(one.at_ms for one in letter.tries)


async def test_attempts_go_with_a_job_that_people_move_and_cancel(on_server: Any) -> None:
    tries = [Try(1, 5, 6, "w", "v1", "ValueError: no", "a.py:1 f")]
    worker = on_server.streams(ME)
    await worker.start()
    on_server.add(id="j", e="", a="0")
    [job] = await leases(worker)
    await worker.settle(batch(Deferral(job, "retry", 600_000, "j", 1, tries=pack_tries(tries))))
    inspector = Inspector(on_server.server.url, "jobs")

    async def told() -> tuple[str, list[Try]]:
        [found] = await inspector.find_job("j", 10)
        return f"{found.priority} {found.state}", found.tries

    async with Control(on_server.server.url, by="ann@host") as control:
        await control.set_priority("j", Priority.LOW)
        assert await told() == ("low delayed", tries)
        await control.run_now("j")
        await worker.promote(10, "0")
        assert await told() == ("low waiting", tries)
        await control.set_priority("j", Priority.CRITICAL)
        assert await told() == ("critical waiting", tries)
        await control.cancel("j")
        assert await told() == ("critical dead", tries)
    await inspector.close()


async def test_attempts_of_a_sender_are_nothing_to_the_job_that_its_message_is_folded_into(store, kit) -> None:
    add(kit, 1, id="first")
    add(kit, 2, e=pack_tries([Try(1, 2)]).decode())
    assert await admit_all(store) == ["delayed", "duplicate"]
    assert "e" not in kit.record("first")
