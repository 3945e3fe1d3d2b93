"""Rooms: what is parked is found and taken again, whoever made the room, and however much of it there is."""

from __future__ import annotations

import msgspec
import pytest

from runtime import Job, contract, handler
from runtime.streams import GROUP
from tests.workers import until, working

KEY = "{jobs}:medium"


@contract("work")
class Work(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0


ran: list[int] = []


@handler(Work)
async def work(message: Work, job: Job) -> None:
    ran.append(message.n)


@pytest.fixture(autouse=True)
def _forget_runs():
    ran.clear()


def park(raw, room: str, *numbers: int, type_name: str = "work", key: str = KEY) -> None:
    """Put jobs into a room, as somebody else's worker would."""
    raw.xgroup_create(key, GROUP, "0", mkstream=True) if not raw.exists(key) else None
    entries = [raw.xadd(key, {"type": type_name, "data": f'{{"n":{n}}}'}) for n in numbers]
    raw.xreadgroup(GROUP, room, {key: ">"}, count=len(entries))
    raw.execute_command("XCLAIM", key, GROUP, room, 0, *entries, "RETRYCOUNT", 0, "JUSTID")


async def test_rooms_that_come_and_go_while_a_worker_looks_at_strange_ones_do_not_end_it(server, raw):
    for n in range(3):
        park(raw, f"~new-kind-{n}", n)
    async with working(server.url, work, lease_s=1.0) as worker:
        real, looks = worker.streams.waiting_longest, 0

        async def meanwhile(stream, room, idle_ms, n):
            nonlocal looks
            looks += 1
            worker.scheduler.room_for(f"~t:unheard-of-{looks}@1")  # as the fetcher does beside the walk
            if looks == 1:
                worker.scheduler.rooms.pop((2, "~new-kind-2"), None)
            return await real(stream, room, idle_ms, n)

        worker.streams.waiting_longest = meanwhile
        await until(lambda: sorted(ran) == [0, 1, 2], "they are adopted, and run")
    assert looks >= 3
