"""One order of all jobs that fit: what is meant is fixed when it is given, held first, and done in steps."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import redis

from board import all as everything
from board.all import AllPage
from board.api import Refused
from board.jobs import JobsPage, Reads
from board.operations import OperationsPage
from board.shapes import AllAsk, OperationAsk
from board.viewer import Viewer
from runtime.control import Control
from runtime.jobs import Deferral
from tests.contract.kit import ME, ServerKit, batch, leases
from tests.servers import Server

CLEO = Viewer("cleo", frozenset({"view", "payload", "operate"}))
HIGH, DEAD = "{jobs}:high", "{jobs}:dead"
HOUR_MS = 3_600_000


@pytest.fixture
def page(valkey: Server, reads: Reads) -> AllPage:
    return AllPage(valkey.url, "jobs", JobsPage(reads).jobs)


@pytest.fixture
async def operations(valkey: Server) -> AsyncIterator[OperationsPage]:
    opened = OperationsPage(valkey.url, "jobs")
    yield opened
    await opened.close()


def fill(raw: redis.Redis, n: int, **more: str) -> None:
    pipe = raw.pipeline()
    for at in range(n):
        pipe.xadd(HIGH, {"type": "t" if at % 2 else "u", "data": json.dumps({"n": at}), "id": f"j{at}", **more})
    pipe.execute()


async def finish(url: str, raw: redis.Redis, name: str) -> None:
    """Make its steps, however long each was to wait."""
    async with Control(url) as control:
        raw.zadd("{jobs}:operations", {name: 0}, xx=True)
        while (await control.step_operation(name)).wait_ms >= 0:
            raw.zadd("{jobs}:operations", {name: 0}, xx=True)


async def test_more_than_one_action_reaches_are_cancelled_and_none_that_came_later(
    page: AllPage, kit: ServerKit, raw: redis.Redis, valkey: Server
) -> None:
    await kit.streams(ME).start()
    fill(raw, 3000)
    made = await page.all(AllAsk(verb="cancel", state="waiting", q="type:t", reason="a mistake"), CLEO)
    assert (made.state, made.total, made.who, made.reason, raw.xlen(DEAD)) == ("held", 1500, "cleo@board", "a mistake", 0)
    fill(raw, 10)
    await finish(valkey.url, raw, made.id)
    assert {fields["id"] for _, fields in raw.xrange(DEAD)} == {f"j{at}" for at in range(1, 3000, 2)}
    assert (raw.xlen(DEAD), raw.xlen(HIGH)) == (1500, 1510)


async def test_a_stop_undoes_all_of_it_while_it_is_held(page: AllPage, operations: OperationsPage, raw: redis.Redis) -> None:
    fill(raw, 40)
    made = await page.all(AllAsk(verb="cancel", state="waiting"), CLEO)
    stopped = await operations.stop(OperationAsk(id=made.id), CLEO)
    assert (stopped.state, stopped.done, stopped.total, raw.xlen(HIGH)) == ("stopped", 0, 40, 40)


async def test_all_that_is_delayed_runs_now(page: AllPage, kit: ServerKit, raw: redis.Redis, valkey: Server) -> None:
    store = kit.streams(ME)
    await store.start()
    fill(raw, 60)
    await store.settle(batch(*[Deferral(lease, "retry", HOUR_MS, lease.id, 1) for lease in await leases(store)]))
    made = await page.all(AllAsk(verb="soon", state="delayed"), CLEO)
    await finish(valkey.url, raw, made.id)
    now_ms = kit.now_ms()
    assert made.total == 60 and all(due_ms <= now_ms for due_ms in kit.due().values())


@pytest.mark.parametrize(
    ("verb", "state", "status"), [("soon", "waiting", 400), ("soon", "claimed", 400), ("cancel", "claimed", 409)]
)
async def test_what_cannot_be_meant_is_refused(page: AllPage, raw: redis.Redis, verb: str, state: str, status: int) -> None:
    fill(raw, 3)
    with pytest.raises(Refused) as refused:
        await page.all(AllAsk(verb=verb, state=state), CLEO)  # pyright: ignore[reportArgumentType]
    assert refused.value.status == status and not raw.exists("{jobs}:operations")


async def test_no_order_is_about_more_than_its_bound(page: AllPage, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(everything, "MOST", 700)
    fill(raw, 1800)
    assert (await page.all(AllAsk(verb="cancel", state="waiting"), CLEO)).total == 700
