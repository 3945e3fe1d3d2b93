"""docket, as a peer."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from datetime import timedelta

import common
from docket import Docket, Worker

POLL = timedelta(milliseconds=10)


async def noop(payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def opened():
    async with Docket(name="bench", url=f"{common.URL}?max_connections=1000", execution_ttl=timedelta(0)) as docket:
        docket.register(noop)
        yield docket


@asynccontextmanager
async def connect():
    async with opened() as docket:
        yield (
            lambda n: docket.add(noop)(common.payload(n)),
            lambda numbers: docket.add_many([docket.call(noop)(common.payload(n)) for n in numbers]),
        )


def work() -> None:
    async def start() -> None:
        async with opened() as docket, Worker(docket, concurrency=common.CONCURRENCY, minimum_check_interval=POLL) as worker:
            await worker.run_forever()

    logging.disable(logging.WARNING)
    common.run(start())


if __name__ == "__main__":
    common.main(connect, work)
