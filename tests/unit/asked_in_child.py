"""Functions for the tests of `in_child`, and handlers that await them: a child imports them by name."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import msgspec

from runtime import Dead, Job, Retry, Snooze, contract, handler, in_child, serving
from runtime.jobs import JOB


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    do: str = ""
    note: str = ""
    data: memoryview = memoryview(b"")


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    pid: int
    model: memoryview


@contract("train")
class Train(msgspec.Struct):
    do: str = ""
    note: str = ""


@in_child(memory_bytes=2 << 30)
def fit(request: Fit, job: Job) -> Fitted:
    match request.do:
        case "dead":
            raise Dead("no account", code="no-account")
        case "retry":
            raise Retry(7.5, "rate limit")
        case "snooze":
            raise Snooze(3.5, "busy")
        case "error":
            raise ValueError("no such file")
        case "note-and-kill":
            with Path(request.note).open("a") as notes:
                notes.write("ran\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            Path(request.note).write_text(f"{os.getpid()}")
            time.sleep(60)
        case "speaks":
            assert JOB.get() is job
            job.progress(3, 7, "rows")
            job.log("from the child")
            job.send(Train("follower"))
        case _:
            pass
    return Fitted(pid=os.getpid(), model=memoryview(bytes(request.data) or b"a model"))


@in_child
def forget(request: Fit, job: Job) -> None:
    Path(request.note).write_text("forgotten")


class Numbers(msgspec.Struct, frozen=True):
    many: list[float]
    data: memoryview = memoryview(b"")


@in_child
def numbers(request: Fit, job: Job) -> Numbers:
    if request.do == "unchecked":
        serving.MAX_BESIDE_BYTES = 1 << 30
    return Numbers([0.5] * int(request.note), request.data)


@in_child
def lies(request: Fit, job: Job) -> Fitted:
    return request  # type: ignore[return-value]


@handler(Train, child=(fit, forget, lies), result_ttl_s=60)
async def train(message: Train, job: Job) -> Train:
    if message.do == "speaks":
        job.log("before")
        job.send(Train("follower"))
    if message.do == "lies":
        await lies(Fit(), job)
    if message.do == "both":
        both = await asyncio.gather(*[fit(Fit(), job) for _ in range(2)])
        return Train("one child" if both[0].pid == both[1].pid != os.getpid() else "two", bytes(both[0].model).decode())
    if message.note and message.do == "forget":
        await forget(Fit(note=message.note), job)
    fitted = await fit(Fit(do=message.do, note=message.note), job)
    if message.do == "speaks":
        job.send(Train("follower"))
    return Train("", bytes(fitted.model).decode())


@handler(Train)
async def trains_unsaid(message: Train, job: Job) -> None:
    await fit(Fit(), job)


kept: list[asyncio.Task[Fitted]] = []


@handler(Train, child=fit)
async def leaves(message: Train, job: Job) -> None:
    async def later() -> Fitted:
        await kept_may_go.wait()
        return await fit(Fit(), job)

    kept.append(asyncio.create_task(later()))


@handler(Train, child=fit)
async def leaves_hanging(message: Train, job: Job) -> None:
    kept.append(asyncio.create_task(fit(Fit(do="hang", note=message.note), job)))
    while not Path(message.note).exists() or not Path(message.note).read_text():
        await asyncio.sleep(0.001)


kept_may_go = asyncio.Event()
