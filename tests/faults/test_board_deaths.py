"""A board is killed with -9 before each of its calls to the server, in the middle of what somebody has ordered.

Nothing is half done, lost or doubled; what was begun is told by the next board, which does the rest. The victim is a process with
all pages of a board, but for the socket: it kills itself before its n-th call. What it leaves is the same as after the call
before, whose answer it has or has not read; behind the last one it ends by itself, and is judged as well.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
import redis

from board import letters, pages
from board.api import Answerer, Refused
from board.shapes import ActAsk, AuditAsk, CheckAsk, GroupAsk, Nothing, OperationAsk, ReplayAsk, SendAsk
from board.viewer import Viewer
from runtime.config import Config
from runtime.control import Control
from runtime.store.base import Keys
from runtime.store.connection import Connection
from tests.servers import Server
from tests.workers import until

CLEO = Viewer("cleo", frozenset(("view", "payload", "operate", "send")))
NOTES = {"dead_reason": "attempts", "dead_error": "e", "dead_from": "low/1-1", "dead_at": "7000", "dead_attempts": "3"}
LETTERS = 4  # fewer than a replay sends first: it need not wait for what becomes of these
MANY = 130  # more than one call moves to the trash
AT_ONCE = 4  # victims under way
MOST_CALLS = 40  # more than any action makes
SURVIVED = 7  # the exit status of a victim that has done all
children = multiprocessing.get_context("forkserver")
Routes = Mapping[str, Answerer]
Act = Callable[[Routes, list[str]], Awaitable[Any]]


# --- what is ordered -----------------------------------------------------------------------------------------------------------


async def replay(routes: Routes, places: list[str]) -> Any:
    """Check, and start a replay.

    The check reads; what it fixes is in the board's memory, and gone with it. Then the list is written, which nobody knows yet
    and which ends by itself in an hour; then the operation that names it, in one step with its entry of the audit: from then on
    workers go on with it. Then it is read, to be shown.
    """
    check: Any = await routes["POST dead/check"](CheckAsk(places=places), CLEO)
    return await routes["POST dead/replay"](ReplayAsk(check=check.id, count=check.would_run, rate=100), CLEO)


async def trash_group(routes: Routes, places: list[str]) -> Any:
    """Move a group to the trash: letters are grouped, which reads; then the list, the operation, and a look at it, as above."""
    found: Any = await routes["GET dead/groups"](Nothing(), CLEO)
    while not found.groups:  # they are read in the background
        await asyncio.sleep(0.01)
        found = await routes["GET dead/groups"](Nothing(), CLEO)
    return await routes["POST dead/trash/group"](GroupAsk(group=found.groups[0].fp, count=found.groups[0].count), CLEO)


async def trash(routes: Routes, places: list[str]) -> Any:
    """Move letters to the trash, a hundred a call: each call moves its letters and tells the audit in one step."""
    return await routes["POST dead/trash"](ActAsk(places=places), CLEO)


async def send_in_place(routes: Routes, places: list[str]) -> Any:
    """Send an edited payload in the place of its letter: it is read; then one step sends the job, moves the letter to the trash
    and tells the audit.
    """
    return await routes["POST send"](_edit(places[0], has_trash=True), CLEO)


async def send_beside(routes: Routes, places: list[str]) -> Any:
    """Send an edited payload and keep its letter: it is read; the audit is told what is meant; the job is sent; the audit is told
    that it was. Between the two entries the first one stands alone, whether the job was sent or not: the job names the letter.
    """
    return await routes["POST send"](_edit(places[0], has_trash=False), CLEO)


def _edit(place: str, *, has_trash: bool) -> SendAsk:
    return SendAsk(type="t", text='{"n":2}', place=place, has_trash=has_trash, is_unchecked=True, reason="typo")


ACTS: dict[str, Act] = {act.__name__: act for act in (replay, trash_group, trash, send_in_place, send_beside)}


# --- a board and its death -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def board_of(url: str, queue: str) -> AsyncIterator[Routes]:
    """Open all pages of a board on a queue."""
    letters.FRESH_S = letters.REST_S = 0.0  # pyright: ignore[reportAttributeAccessIssue] -- no waiting for what has just changed
    async with AsyncExitStack() as stack:
        routes, _ = await pages._answerers(stack, url, Config(queue=queue))
        yield routes


def act_until_killed(url: str, queue: str, name: str, places: list[str], at: int) -> None:
    """Act as a board that is killed before its n-th call: the body of the victim's process."""
    call, calls = Connection.call, 0

    async def counted(connection: Connection, *commands: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return await call(connection, *commands, **more)

    async def act() -> None:
        async with board_of(url, queue) as routes:
            await ACTS[name](routes, places)

    Connection.call = counted  # pyright: ignore[reportAttributeAccessIssue]
    asyncio.run(act())
    os._exit(SURVIVED)


class Seen(msgspec.Struct):
    """What is there of a queue: letters, those in the trash, jobs, and what the next board tells of operations and the audit."""

    dead: list[str]
    trash: list[str]
    jobs: list[dict[str, str]]
    operations: list[Any]
    told: list[str]


class Point:
    """One death: a queue of its own on the server, with letters to act on."""

    def __init__(self, server: Server, raw: redis.Redis, name: str, at: int) -> None:
        self.server, self.raw, self.name, self.at = server, raw, name, at
        self.queue = f"{name}-{at}"
        self.keys = Keys(self.queue)
        number = MANY if name == "trash" else LETTERS
        rows = [raw.xadd(self.keys.dead, {"type": "t", "data": '{"n":1}', "id": f"j{n}", **NOTES}) for n in range(number)]
        self.ids = [f"j{n}" for n in range(number)]
        self.places = [f"dead/{entry}" for entry in rows]

    async def run(self) -> bool:
        """Act until killed, let the next board look and go on, and judge; return whether the victim was killed."""
        arguments = (self.server.url, self.queue, self.name, self.places, self.at)
        victim = children.Process(target=act_until_killed, args=arguments, daemon=True)
        victim.start()
        await until(lambda: not victim.is_alive(), f"the end of {self}")  # in one thread: two that ask for its status lose it
        status = victim.exitcode
        victim.close()
        assert status in (-signal.SIGKILL, SURVIVED), f"{self}: the victim ended with {status}"
        async with board_of(self.server.url, self.queue) as routes:
            judge = {"send_in_place": self._judge_in_place, "send_beside": self._judge_beside, "trash": self._judge_trash}
            await judge.get(self.name, self._judge_operation)(routes)
        mortal = [key for key in self.raw.scan_iter(f"{self.keys.prefix}operation:*", count=1000) if self.raw.ttl(key) < 0]
        assert not mortal, f"{self}: {mortal} stay for ever"
        return status != SURVIVED

    def __repr__(self) -> str:
        return self.queue

    async def seen(self, routes: Routes) -> Seen:
        """Return what there is now; each letter and job is one of those at the beginning."""
        shelves = [[fields["id"] for _, fields in self.raw.xrange(key)] for key in (self.keys.dead, self.keys.trash)]
        jobs = [fields for key in self.keys.streams for _, fields in self.raw.xrange(key)]
        operations: Any = await routes["GET operations"](Nothing(), CLEO)
        audit: Any = await routes["GET audit"](AuditAsk(limit=100), CLEO)
        told = [line for entry in reversed(audit.entries) for line in entry.what.splitlines()]
        return Seen(*shelves, jobs, operations.operations, told)

    async def _judge_operation(self, routes: Routes) -> None:
        """An operation is there, whole and told, or nothing was begun; it can be undone, and goes to its end once."""
        now = await self.seen(routes)
        assert (now.dead, now.trash, now.jobs) == (self.ids, [], []), f"{self}: something has moved while it was held"
        assert len(now.operations) == sum(line.startswith("operate ") for line in now.told) <= 1, f"{self}: {now}"
        if now.operations:
            [made] = now.operations
            assert (made.state, made.total, made.who) == ("held", LETTERS, "cleo@board"), f"{self}: {made}"
        else:
            made = await ACTS[self.name](routes, self.places)
        stopped: Any = await routes["POST operations/stop"](OperationAsk(id=made.id), CLEO)
        assert (stopped.state, stopped.done, (await self.seen(routes)).dead) == ("stopped", 0, self.ids), f"{self}: no undo"
        await routes["POST operations/resume"](OperationAsk(id=made.id), CLEO)
        async with Control(self.server.url, self.queue) as control:
            for _ in range(20):
                if (await control.step_operation(made.id)).wait_ms < 0:
                    break
        now = await self.seen(routes)
        moved = [fields["id"] for fields in now.jobs] if self.name == "replay" else now.trash
        assert (now.dead, sorted(moved), len(now.operations)) == ([], self.ids, 1), f"{self}: {now}"

    async def _judge_trash(self, routes: Routes) -> None:
        """Each letter is in one place, and those that moved are told; the next board moves the others."""
        now = await self.seen(routes)
        assert sorted(now.dead + now.trash) == sorted(self.ids), f"{self}: {now}"
        audit = self.raw.xlen(self.keys.audit)
        assert (audit == 0, len(now.trash) == 0) in ((True, True), (False, False)), f"{self}: {now}"
        if now.dead:
            again: Any = await trash(routes, self.places)
            assert again.done == len(now.dead), f"{self}: {again}"
        assert sorted((await self.seen(routes)).trash) == sorted(self.ids), f"{self}"

    async def _judge_in_place(self, routes: Routes) -> None:
        """The job was sent, its letter is in the trash and the audit says so; or nothing was done, and the next board does it."""
        now = await self.seen(routes)
        is_done = "j0" not in now.dead
        assert (len(now.jobs), len(now.trash), len(now.told)) == ((1, 1, 2) if is_done else (0, 0, 0)), f"{self}: {now}"
        try:
            await send_in_place(routes, self.places)
            assert not is_done, f"{self}: sent twice"
        except Refused as refused:
            assert refused.status == 409 and is_done, f"{self}: {refused}"
        now = await self.seen(routes)
        assert (len(now.jobs), now.trash, len(now.dead)) == (1, ["j0"], LETTERS - 1), f"{self}: {now}"

    async def _judge_beside(self, routes: Routes) -> None:
        """Who has died after the job was sent has told what it meant; that it was sent is told only where it was."""
        now = await self.seen(routes)
        assert (now.dead, now.trash) == (self.ids, []), f"{self}: {now}"
        begun = sum(line.startswith("send t, made of ") for line in now.told)
        ended = sum(line.startswith("sent: t as low-") for line in now.told)
        assert ended <= len(now.jobs) <= begun <= 1, f"{self}: {now}"
        assert all(fields["x-replayed-from"] == self.places[0] for fields in now.jobs), f"{self}: {now}"


@pytest.fixture(scope="module", autouse=True)
def _preloaded() -> Iterator[None]:
    children.set_forkserver_preload(["tests.faults.test_board_deaths"])
    yield


@pytest.mark.parametrize("name", ACTS)
async def test_a_board_that_dies_at_any_call_leaves_nothing_half_done(valkey: Server, name: str) -> None:
    raw = valkey.client()
    deaths, is_over = 0, False
    for first in range(1, MOST_CALLS, AT_ONCE):
        told = await asyncio.gather(*[Point(valkey, raw, name, at).run() for at in range(first, first + AT_ONCE)])
        deaths, is_over = deaths + sum(told), not all(told)
        if is_over:
            break
    raw.close()
    print(f"{name}: {deaths} deaths")
    assert is_over and deaths >= 2
