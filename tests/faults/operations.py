"""Operations in a storm: processes that do nothing but step are killed one after the other, while letters die again.

`python -m tests.faults.operations URL` is such a process: it reads the rules as a worker does, and steps.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from typing import Any, Final

from runtime.control import Control
from runtime.operations import Filter, Operation
from runtime.streams import Streams
from runtime.worker.stepper import Stepper
from tests.faults.harness import ROOT
from tests.servers import Server

DEAD: Final = "{jobs}:dead"
LOW: Final = "{jobs}:low"
NOTES: Final = {"dead_reason": "attempts", "dead_error": "e", "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3"}
STEPPERS: Final = 3
LOOK_S: Final = 0.05  # between two looks at the rules
LIFE_S: Final = 0.9  # of a process: its start takes most of it


async def _step(url: str) -> None:
    streams = Streams(url, "jobs", f"stepper-{os.getpid()}")
    stepper = Stepper(streams)
    task = asyncio.create_task(stepper.run())
    while not task.done():
        rules, *_ = await streams.rules()
        stepper.saw(rules.version, rules.operations)
        await asyncio.sleep(LOOK_S)


def _start(server: Server) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.faults.operations", server.url]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGKILL)
    process.wait()


async def storm(server: Server, raw: Any, letters: int, kills: int, seed: int) -> tuple[Operation, int]:
    """Replay letters while steppers are killed; return the operation, and how many were killed.

    Raises:
        AssertionError: a letter is lost, or was sent back twice.
    """
    dice = random.Random(seed)
    _bury(raw, letters)
    processes = [_start(server) for _ in range(STEPPERS)]
    killed, again, after = 0, list[str](), "0-0"
    try:
        async with Control(server.url) as control:
            rate = letters / (LIFE_S / STEPPERS * kills)
            made = await control.operate("replay", Filter(type="t"), rate=rate, hold_s=0.5, canary_s=0.5)
            while (found := await control.operation(made.id)) is not None and found.is_active:
                await asyncio.sleep(LIFE_S / STEPPERS * dice.uniform(0.5, 1.5))
                if killed < kills:
                    _end(processes.pop(0))
                    processes.append(_start(server))
                    killed += 1
                died, after = _die(raw, after)
                again += died
        assert found is not None
    finally:
        for process in processes:
            _end(process)
    _check(raw, found, letters, again)
    return found, killed


def _bury(raw: Any, letters: int) -> None:
    pipe = raw.pipeline(transaction=False)
    for at in range(letters):
        pipe.xadd(DEAD, {"type": "t" if at % 3 else "u", "data": "{}", "id": f"j{at}", **NOTES})
    pipe.execute()


def _die(raw: Any, after: str) -> tuple[list[str], str]:
    """Let one in twenty of what was sent back after an entry die again; return which, and the last entry."""
    died: list[str] = []
    for entry, fields in raw.xrange(LOW, f"({after}"):
        after = entry
        if int(fields["id"][1:]) % 20 == 1 and "seen" not in fields:
            raw.xdel(LOW, entry)
            raw.xadd(DEAD, {**fields, **NOTES, "seen": "1", "dead_from": f"low/{entry}"})
            died.append(fields["id"])
    return died, after


def _check(raw: Any, found: Operation, letters: int, again: list[str]) -> None:
    wanted = {f"j{at}" for at in range(letters) if at % 3}
    stands = Counter(fields["id"] for key in (LOW, DEAD) for _, fields in raw.xrange(key))
    assert stands == Counter(f"j{at}" for at in range(letters)), "none is lost, and none is there twice"
    assert (found.state, found.done) == ("done", len(wanted)), found
    left = {fields["id"] for _, fields in raw.xrange(DEAD) if fields["type"] == "t"}
    assert sorted(left) == sorted(again), "what died again is a letter, and was not sent back again"
    assert not raw.hexists("{jobs}:control", f"op:{found.id}")


if __name__ == "__main__":
    asyncio.run(_step(sys.argv[1]))
