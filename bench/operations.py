"""`python -m bench.operations`: how near operations over many letters come to their rate, and how long a step holds the server.

One worker's stepper makes the steps. Prints per run the letters per second by the server's clock, and how long steps took, in µs:
the twentieth part that was the shortest, what half of them took, and the longest, which on a busy machine is its own.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any, Final, Literal

from bench.lab import DEAD, PAYLOAD, Server
from runtime.control import Control
from runtime.operations import Filter
from runtime.streams import Streams
from runtime.worker.stepper import Stepper

CHUNK: Final = 1000  # letters per round trip
NOTES: Final = {"dead_reason": "attempts", "dead_error": "e", "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3"}
Verb = Literal["replay", "purge"]


def bury(client: Any, n: int, payload: bytes) -> None:
    """Fill in `n` dead letters."""
    for start in range(0, n, CHUNK):
        pipe = client.pipeline(transaction=False)
        for at in range(start, min(n, start + CHUNK)):
            pipe.xadd(DEAD, {"type": "noop", "data": payload, "id": f"j{at}", **NOTES})
        pipe.execute()


async def operate(url: str, verb: Verb, rate: float) -> float:
    """Run one operation over all letters with the stepper of one worker; return how many per second it did."""
    streams = Streams(url, "jobs", "bench")
    stepper = Stepper(streams)
    task = asyncio.create_task(stepper.run())
    try:
        async with Control(url) as control:
            made = await control.operate(verb, Filter(type="noop"), rate=rate, hold_s=0, canary_s=0)
            stepper.saw("1", (made.id,))
            while (found := await control.operation(made.id)) is not None and found.is_active:
                await asyncio.sleep(0.05)
            if found is None or found.state != "done":
                raise RuntimeError(f"the operation has not come to its end: {found}")
            return found.done * 1000 / (found.ended_ms - found.created_ms)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await streams.close()


def measure(verb: Verb, rate: float, letters: int, payload: bytes) -> None:
    """Print one run."""
    with Server() as server:
        client = server.client
        client.config_set("slowlog-log-slower-than", 0)
        client.config_set("slowlog-max-len", 100_000)
        bury(client, letters, payload)
        client.slowlog_reset()
        client.config_resetstat()
        began_s = time.monotonic()
        per_s = asyncio.run(operate(server.url, verb, rate))
        took = sorted(row["duration"] for row in client.slowlog_get(100_000) if b"EVALSHA" in row["command"])[-letters // 25 :]
        busy = client.info("commandstats")["cmdstat_evalsha"]["usec"] / 1e4 / (time.monotonic() - began_s)
        line = f"{verb:7} {len(payload):7,} B {rate:8,.0f}/s: {per_s:8,.0f}/s ({100 * (per_s / rate - 1):+.2f} %), steps of"
        line = f"{line} {took[len(took) // 20]} us, {took[len(took) // 2]}, {took[-1]}"
        print(f"{line}; scripts {busy:.0f} % of the server", flush=True)


def main() -> None:
    """Measure each verb at each rate, several times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="*", default=[2000.0, 10_000.0, 20_000.0])
    arguments = parser.parse_args()
    for verb in ("replay", "purge"):
        for rate in arguments.rates:
            for _ in range(arguments.runs):
                measure(verb, rate, arguments.letters, PAYLOAD)
        measure(verb, 1000, 500, b"x" * 200_000)


if __name__ == "__main__":
    main()
