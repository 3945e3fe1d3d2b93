"""What a worker says of itself in its row, while it runs jobs and when it has left."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec

import runtime
from runtime import Job, contract, handler
from runtime.store.base import TOLD_JOBS, WorkerRow
from tests.servers import Server
from tests.workers import until, working

KEY = "{jobs}:high"
ROWS = "{jobs}:workers:rows"


@contract("stay")
class Stay(msgspec.Struct, frozen=True):
    pass


go_on = threading.Event()


@handler(Stay)
async def stay(message: Stay, job: Job) -> None:
    await until(go_on.is_set)


def row_of(raw: Any, worker: str) -> WorkerRow:
    return WorkerRow.parse(raw.hget(ROWS, worker) or "")


async def test_a_busy_worker_tells_what_it_runs_since_when_long_before_its_next_beat(server: Server):
    raw: Any = server.client()
    go_on.clear()
    began_ms = int(time.time() * 1000)
    settings: dict[str, Any] = {"lease_s": 600.0, "concurrency": 2 * TOLD_JOBS, "app_version": "1.4.2"}
    async with working(server.url, stay, **settings) as consumer:
        consumer._resident = lambda: 7_000_000
        first = raw.xadd(KEY, {"type": "stay", "data": "{}"})
        await until(lambda: consumer.running == 1, "it runs")
        for _ in range(TOLD_JOBS + 5):
            raw.xadd(KEY, {"type": "stay", "data": "{}"})
        await until(lambda: len(row_of(raw, consumer.name).jobs) == TOLD_JOBS, "its row has those that run longest")
        row = row_of(raw, consumer.name)
        place, started_ms, type_name = row.jobs[0]
        assert (place, type_name) == (f"high/{first}", "stay")
        assert began_ms - 1 <= started_ms <= row.jobs[-1][1] <= time.time() * 1000
        assert (row.app, row.version) == ("1.4.2", runtime.__version__)
        assert began_ms - 60_000 < row.since <= time.time() * 1000
        assert row.rss == 7_000_000
        go_on.set()
        await until(lambda: row_of(raw, consumer.name).jobs == [], "an idle one tells of none")
    assert raw.hkeys(ROWS) == []
