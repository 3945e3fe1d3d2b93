"""Hooks of a worker on a real server: what they hear of, and that nothing of theirs changes what becomes of jobs."""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar

import msgspec
import pytest

from runtime import Dead, Death, Job, Retry, contract, handler, on_dead, on_error
from runtime.jobs import running_job
from runtime.testing import worker
from tests.servers import Server

ORDER: ContextVar[int] = ContextVar("order", default=0)


@contract("mail")
class Mail(msgspec.Struct):
    n: int


@handler(Mail)
async def mail(message: Mail, job: Job) -> None:
    ORDER.set(message.n)
    if message.n == 1 and job.attempt == 1:
        raise ConnectionError("no host")
    if message.n == 2:
        raise Dead("closed", "no-account")


@handler(Mail, runs="process")
def in_child(message: Mail, job: Job) -> None:
    raise Dead("closed", "no-account")


def told(death: Death) -> tuple[str, str, str, str]:
    return death.job_id, death.type, death.priority.name.lower(), death.reason


async def test_hooks_hear_what_goes_wrong_and_of_deaths_without_a_run(server: Server) -> None:
    failures: list[tuple[str, str, str, int, bool]] = []
    deaths, plainly = list[Death](), list[str]()

    @on_error
    def hear(job: Job, error: BaseException, outcome: Retry | Dead) -> None:
        assert error.__traceback__ is not None and running_job() is job
        outcome.asked = True  # for nothing
        failures.append((job.id, type(error).__name__, type(outcome).__name__, ORDER.get(), isinstance(outcome, Retry)))

    @on_dead
    async def bury(death: Death) -> None:
        await asyncio.sleep(0)
        deaths.append(death)

    @on_dead
    def bury_plainly(death: Death) -> None:
        plainly.append(death.job_id)
        raise SystemExit(3)

    raw = server.client()
    add = lambda **fields: str(raw.xadd("{jobs}:high", fields))  # noqa: E731
    add(type="mail", id="again", data='{"n":1}')
    add(type="mail", id="closed", data='{"n":2}')
    add(type="mail", id="bad", data='{"n":"x"}')
    add(type="mail", id="late", data='{"n":3}', exp=str(int(time.time()) - 5))
    add(type="mail", id="good", data='{"n":4}')
    strange = add(nothing="of ours")
    async with worker(server.url, mail, hooks=[hear, bury, bury_plainly]) as running:
        await running.settled(delayed=True)
    assert sorted(failures) == [("again", "ConnectionError", "Retry", 1, True), ("closed", "Dead", "Dead", 2, False)]
    assert sorted(map(told, deaths)) == sorted(
        [
            ("bad", "mail", "high", "bad-payload"),
            ("closed", "mail", "high", "no-account"),
            ("late", "mail", "high", "expired"),
            (f"high-{strange}", "", "high", "unreadable"),
        ]
    )
    assert sorted(plainly) == sorted(death.job_id for death in deaths)
    closed = next(death for death in deaths if death.job_id == "closed")
    assert (closed.attempts, closed.error) == (1, "closed")
    assert ", in mail\n" in closed.stack
    assert raw.xlen("{jobs}:dead") == 4


async def test_hooks_hear_of_what_children_raise(valkey: Server) -> None:
    failures: list[str] = []
    hook = on_error(lambda job, error, outcome: failures.append(f"{type(error).__name__} {error} {outcome.asked}"))
    valkey.client().xadd("{jobs}:high", {"type": "mail", "data": '{"n":1}'})
    async with worker(valkey.url, in_child, hooks=[hook]) as running:
        await running.settled()
    assert failures == ["Dead closed True"]


async def test_a_death_in_the_last_flush_of_a_stop_is_told(valkey: Server) -> None:
    deaths: list[str] = []
    is_running = asyncio.Event()

    @on_dead
    async def bury(death: Death) -> None:
        await asyncio.sleep(0.05)
        deaths.append(death.reason)

    @handler(Mail)
    async def slow(message: Mail, job: Job) -> None:
        is_running.set()
        await asyncio.sleep(0.2)
        raise Dead("closed", "at the end")

    valkey.client().xadd("{jobs}:high", {"type": "mail", "data": '{"n":1}'})
    async with worker(valkey.url, slow, hooks=[bury]):
        await is_running.wait()
    assert deaths == ["at the end"]


@pytest.mark.parametrize("how", ["hangs", "holds a thread"])
async def test_a_hook_that_hangs_holds_no_worker(how: str, valkey: Server) -> None:
    is_over = asyncio.Event()

    async def hangs(death: Death) -> None:
        await is_over.wait()

    def holds(death: Death) -> None:
        time.sleep(2)

    for n in range(50):
        valkey.client().xadd("{jobs}:high", {"type": "mail", "data": f'{{"n":{2 if n % 2 else 3}}}'})
    async with worker(valkey.url, mail, hooks=[on_dead(hangs if how == "hangs" else holds)]) as running:
        await running.settled()
        assert running.consumer.stats.finished == 50
    assert valkey.client().xlen("{jobs}:dead") == 25
