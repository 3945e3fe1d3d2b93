"""`python -m bench.cancels`: how soon a job that runs hears that people have cancelled it.

Two hundred jobs run; one after the other is cancelled at a random time. Measured from the answer to the cancel to the
CancelledError in its handler, with the jobs, the worker and the one who cancels in one process.
"""

from __future__ import annotations

import asyncio
import logging
import time
from random import uniform
from typing import Any, Final

import msgspec

from bench.lab import Server
from runtime import Control, Job, contract, handler
from runtime.testing import until, worker

JOBS: Final = 200
APART_S: Final = 0.1  # at most between two cancels: a guess, so that each second's look meets some


@contract("patient")
class Patient(msgspec.Struct):
    """A job that runs until it is cancelled."""


cut_s: dict[str, float] = {}
running: set[str] = set()


@handler(Patient, timeout_s=600)
async def patient(message: Patient, job: Job) -> None:
    """Note when it was cancelled."""
    running.add(job.id)
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        cut_s[job.id] = time.monotonic()
        raise


async def measure(server: Server) -> list[float]:
    """Return the seconds of each job, in order."""
    streams: Any = server.client
    places = {f"j{n}": f"medium/{_add(streams, f'j{n}')}" for n in range(JOBS)}
    asked_s: dict[str, float] = {}
    async with worker(server.url, patient, concurrency=JOBS + 50), Control(server.url, by="bench") as control:
        await until(lambda: len(running) == JOBS, "all run", 60)
        for name, place in places.items():
            await asyncio.sleep(uniform(0, APART_S))
            await control.cancel(place)
            asked_s[name] = time.monotonic()
        await until(lambda: len(cut_s) == JOBS, "all are cut", 60)
        await until(lambda: streams.xlen("{jobs}:dead") == JOBS, "all are dead", 60)
    return sorted(cut_s[name] - asked_s[name] for name in places)


def _add(client: Any, name: str) -> str:
    return client.xadd("{jobs}:medium", {"type": "patient", "data": "{}", "id": name}).decode()


def main() -> None:
    """Print the table."""
    logging.disable(logging.WARNING)  # a line for each death
    with Server() as server:
        seconds = asyncio.run(measure(server))
    print("| jobs | p50 | p90 | p99 | longest |\n|---|---|---|---|---|")
    at = [seconds[int(JOBS * part)] for part in (0.5, 0.9, 0.99)] + [seconds[-1]]
    print(f"| {JOBS} | " + " | ".join(f"{one:.2f} s" for one in at) + " |")


if __name__ == "__main__":
    main()
