"""What people are shown of gates, pauses and schedules on each server, and what a worker tells of itself for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from runtime import Job, Schedule, contract, handler
from runtime.limits import Limits, Rate
from runtime.store.base import WorkerRow
from runtime.store.flow import Flow
from runtime.store.inspector import Inspector
from runtime.store.shapes import Serve
from tests.contract.kit import HIGH, ServerKit
from tests.contract.test_serve import parked
from tests.servers import PATIENCE_S
from tests.workers import working

HOURLY = Rate(1, 3_600_000)


@pytest.fixture
def kit(on_server: ServerKit) -> ServerKit:
    return on_server


async def test_a_gate_shows_what_waits_its_permits_and_its_next_token(inspector, kit, store):
    parked(kit, 4, lot="~g:t:ada", group="ada")
    parked(kit, 2, lot="~g:t:bob", group="bob")
    limits = Limits(limit=5, rate=HOURLY, group_limit=1)
    await store.beat(WorkerRow(30_000, types={"t": 1}, limits={"t": limits.told}))
    _, [served] = await store.serve([], [Serve("t", limits, 9, 9, [(HIGH, "~g:t:ada", "ada"), (HIGH, "~g:t:bob", "bob")])])
    assert served.stands > 0, "one has come, and there is no further token"
    flow = await inspector.flow()
    [gate] = flow.gates
    assert (gate.type, gate.waiting, gate.in_use, gate.is_known) == ("t", 5, 1, True)
    assert 0 < gate.next_token_ms <= served.stands
    assert [(one.group, one.waiting, one.in_use) for one in gate.groups] == [("ada", 3, 1), ("bob", 2, 0)]
    assert flow.waits("~g:t:ada", "ada", "high").startswith("waits for a token of t (1/h, the next in ")
    assert (flow.workers, flow.pauses, flow.schedules) == (1, [], [])


async def test_a_group_of_which_nothing_waits_is_read_where_it_is_asked_for(inspector, kit, store):
    kit.set_permits("t:eve", {"high/1-1": 1.0})
    await store.beat(WorkerRow(30_000, types={"t": 1}, limits={"t": {"group_limit": 2}}))
    [gate] = (await inspector.flow([("t", "eve")])).gates
    assert [(one.group, one.waiting, one.in_use) for one in gate.groups] == [("eve", 0, 1)]


async def test_pauses_and_orders_are_read_with_what_waits_for_them(inspector, kit, store):
    kit.order(("pause", "pause:low", "0"), ("pause", "pause:t", "60000"), ("set", "limit:t", '{"limit":3}'), reason="down")
    kit.add(3)
    kit.add(3)
    parked(kit, 2)
    flow = await inspector.flow()
    pauses = {pause.name: (pause.kind, pause.waiting, pause.by, pause.reason) for pause in flow.pauses}
    assert pauses == {"low": ("priority", 2, "ann@host", "down"), "t": ("type", 2, "ann@host", "down")}
    [gate] = flow.gates
    assert (gate.limits, gate.ordered, gate.is_paused, gate.is_known) == ({"limit": 3}, ["limit"], True, False)


@pytest.mark.parametrize("key", ["control", "cron", "cron:state", "workers", "workers:rows", "high", "permits:t", "rate:t"])
async def test_what_is_of_another_type_is_as_if_it_were_not_there(inspector, kit, store, raw, key):
    await store.beat(WorkerRow(30_000, types={"t": 1}, limits={"t": {"limit": 1, "rate": "1/h"}}))
    kit.order(("set", "limit:u", '{"limit":1}'))
    raw.delete(f"{{jobs}}:{key}")
    raw.lpush(f"{{jobs}}:{key}", "x")
    flow = await inspector.flow()
    assert {gate.type for gate in flow.gates} >= {"control": {"t"}}.get(key, {"u"})
    assert await inspector.oldest_waiting_s() == dict.fromkeys(("critical", "high", "medium", "low"), 0.0)


async def test_thousands_of_groups_take_two_round_trips_and_a_few_questions(inspector, kit, store, raw):
    parked(kit, 1)
    with raw.pipeline(transaction=False) as pipe:
        for at in range(1, 2001):
            pipe.xadd("{jobs}:high", {"type": "t", "data": "{}", "group": f"g{at}"}, id=f"{2**43}-{at}")
            lot, entry = f"~g:t:g{at}", f"{2**43}-{at}"
            pipe.execute_command("XCLAIM", "{jobs}:high", "workers", lot, 0, entry, "FORCE", "JUSTID")
        pipe.execute()
    raw.config_resetstat()
    [gate] = (await inspector.flow()).gates
    assert (gate.waiting, gate.more_groups) == (2001, 1996)
    calls = {name.removeprefix("cmdstat_"): row["calls"] for name, row in raw.info("commandstats").items()}
    assert calls["zcard"] == calls["get"] <= 6


# --- what a worker tells -----------------------------------------------------------------------------------------------------


@contract("bounded")
class Bounded(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


@handler(Bounded, limit=2, group_rate="10/m")
async def bounded(message: Bounded, job: Job) -> None:
    """Do nothing."""


async def flow_when(inspector: Inspector, is_it: Callable[[Flow], object]) -> Flow:
    """Return the first reading of which it holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not is_it(flow := await inspector.flow()):
            await asyncio.sleep(0.01)
    return flow


async def test_a_worker_tells_the_limits_of_its_code_and_its_reserved_lanes(server, inspector):
    async with working(server.url, bounded, concurrency=40):
        flow = await flow_when(inspector, lambda flow: flow.gates)
    assert [(gate.type, gate.limits, gate.is_known) for gate in flow.gates] == [
        ("bounded", {"limit": 2, "group_rate": "10/m"}, True)
    ]  # fmt: skip
    assert (flow.workers, flow.reserved, flow.quiet) == (1, 2, 0)


async def test_a_worker_tells_when_its_schedules_fire_next(server, inspector):
    code = [Schedule("yearly", "@yearly", Bounded()), Schedule("off", "@daily", Bounded(), paused=True)]
    async with working(server.url, bounded, schedules=code, lease_s=0.6):
        flow = await flow_when(inspector, lambda flow: [one for one in flow.schedules if one.next_ms])
    told = {one.name: (one.next_ms is not None, one.is_paused, one.is_behind, one.heard_ms > 0) for one in flow.schedules}
    assert told == {"yearly": (True, False, False, True), "off": (False, True, False, True)}


async def test_a_quiet_worker_is_counted(server, inspector, kit):
    async with working(server.url, bounded, lease_s=0.6) as consumer:
        kit.order(("set", f"worker:{consumer.name}", "quiet"))
        await flow_when(inspector, lambda flow: flow.quiet == 1)
