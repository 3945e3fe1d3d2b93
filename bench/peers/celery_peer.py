"""Celery, as a peer."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager

import common
from celery import Celery

app = Celery("celery_peer", broker=common.URL)
app.conf.update(
    task_ignore_result=True,
    task_store_errors_even_if_ignored=False,
    worker_prefetch_multiplier=500,
    worker_disable_rate_limits=True,
    worker_hijack_root_logger=False,
)


@app.task(name="noop")
def noop(payload: dict) -> None:
    common.ran(payload["n"])


@asynccontextmanager
async def connect():
    async def send(n):
        noop.delay(common.payload(n))

    yield send, None


def work() -> None:
    command = [sys.executable, "-m", "celery", "-A", "celery_peer", "worker", "--pool", "solo", "--loglevel", "ERROR"]
    os.execv(sys.executable, [*command, "--without-gossip", "--without-mingle", "--without-heartbeat"])


if __name__ == "__main__":
    common.main(connect, work)
