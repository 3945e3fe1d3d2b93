"""What a board does to a job or letter that changes meanwhile: whatever comes between two of its calls, it is done or refused.

Between any two of a board's calls to the server something else happens: a worker takes the job, ends it, lets it fail or die;
another person cancels, moves, replays, trashes or deletes it. Afterwards the job is there exactly once, or has ended, and the
board has told what it did: the audit has its line where it says so, and none where it was refused.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from board import letters, replays
from board.actions import ActionsPage
from board.api import Refused
from board.edit import EditPage
from board.jobs import Reads
from board.letters import Index
from board.replays import ReplayPage
from board.shapes import ActAsk, CheckAsk, GroupAsk, ReplayAsk, SendAsk
from board.viewer import Viewer
from runtime.control import Control
from runtime.jobs import FREE, STREAMS, Deferral, Letter, Parking
from runtime.store.connection import Connection
from runtime.store.control import ControlStore
from runtime.store.letters import LetterStore
from runtime.store.shapes import Ask
from tests.contract.kit import ServerKit, batch, jobs_of, leases
from tests.servers import Server

CLEO = Viewer("cleo", frozenset(("view", "payload", "operate", "send")))
DEAD, TRASH, HIGH = "{jobs}:dead", "{jobs}:trash", "{jobs}:high"
HOUR_MS = 3_600_000
Act = Callable[["Target"], Awaitable[int]]
Move = Callable[["Target"], Awaitable[None]]


class Between:
    """Lets something happen before the n-th call that a board makes; counts the calls. Its own calls are none of these."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._move: Callable[[], Awaitable[None]] | None = None
        self._at = self.calls = 0

    async def call(self, connection: Connection, *commands: Any, **more: Any) -> Any:
        if self._move is not None:
            self.calls += 1
            if self.calls == self._at:
                await self.happen()
        return await self._call(connection, *commands, **more)

    def arm(self, at: int, move: Callable[[], Awaitable[None]]) -> None:
        self._at, self.calls, self._move = at, 0, move

    async def happen(self) -> None:
        """Let it happen now, where it has not."""
        move, self._move = self._move, None
        if move is not None:
            calls = self.calls
            await move()
            self.calls, self._move = calls, _nothing


async def _nothing() -> None:
    """Change nothing."""


class Target:
    """One job `j1` and all that may happen to it. `ended` is how often it was done, or deleted for good."""

    def __init__(self, kit: ServerKit, url: str, reads: Reads) -> None:
        self.kit, self.url, self.reads, self.raw = kit, url, reads, kit.raw
        self.worker = kit.streams("w1")
        self.lease: Any = None
        self.ended = 0
        self.place = ""
        self.sent = 0

    async def clear(self) -> None:
        self.kit.clear()
        self.lease, self.ended, self.sent = None, 0, 0
        await self.worker.start()

    # --- how it begins ---------------------------------------------------------------------------------------------------

    async def waits(self) -> None:
        entry = self.raw.xadd(HIGH, {"type": "t", "data": '{"n":1}', "id": "j1"})
        self.place = f"high/{entry}"

    async def runs(self) -> None:
        await self.waits()
        [self.lease] = await leases(self.worker, 1)

    async def is_parked(self) -> None:
        await self.runs()
        await self.worker.settle(batch(Parking(self.lease, FREE)))
        self.lease = None

    async def is_delayed(self) -> None:
        await self.runs()
        await self.worker.settle(batch(Deferral(self.lease, "retry", HOUR_MS, "j1", 1)))
        self.lease, self.place = None, "due/j1"

    async def is_dead(self) -> None:
        await self.runs()
        await self.worker.settle(batch(Letter(self.lease, "attempts", "KeyError: 'a'", "", 3, "j1")))
        self.lease = None
        self.place = f"dead/{self.raw.xrange(DEAD)[0][0]}"

    async def is_in_trash(self) -> None:
        await self.is_dead()
        await self.trash()
        self.place = f"trash/{self.raw.xrange(TRASH)[0][0]}"

    # --- what happens to it ----------------------------------------------------------------------------------------------

    async def take(self) -> Any:
        """Let a worker have it, where it waits; return its lease, which ends with what follows."""
        lease, self.lease = self.lease, None
        if lease is not None:
            return lease
        found = await leases(self.worker, 1) or jobs_of(await self.worker.take(Ask(1, FREE, 1)))
        return next((one for one in found if one.id == "j1"), None)  # another one was made of its letter

    async def done(self) -> None:
        if (lease := await self.take()) is not None:
            before = self.copies()
            await self.worker.settle(batch(done=[lease]))
            self.ended += before - self.copies()

    async def fail(self) -> None:
        if (lease := await self.take()) is not None:
            await self.worker.settle(batch(Deferral(lease, "retry", HOUR_MS, "j1", 1)))

    async def die(self) -> None:
        if (lease := await self.take()) is not None:
            await self.worker.settle(batch(Letter(lease, "attempts", "KeyError: 'a'", "", 3, "j1")))

    async def promote(self) -> None:
        self.raw.zadd("{jobs}:due", {"j1": 1}, xx=True)
        await self.worker.promote(10, "")

    async def cancel(self) -> None:
        self.kit.cancel(self.place)

    async def replay(self) -> None:
        async with Control(self.url, by="other") as control:
            for entry, _ in self.raw.xrange(DEAD):
                await control._store.replay(str(entry))

    async def trash(self) -> None:
        async with Control(self.url, by="other") as control:
            await control.trash(*[f"dead/{entry}" for entry, _ in self.raw.xrange(DEAD)])

    async def restore(self) -> None:
        async with Control(self.url, by="other") as control:
            await control.restore(*[f"trash/{entry}" for entry, _ in self.raw.xrange(TRASH)])

    async def purge(self) -> None:
        for key in (DEAD, TRASH):
            for entry, _ in self.raw.xrange(key):
                self.ended += self.raw.xdel(key, entry)

    # --- where it is -----------------------------------------------------------------------------------------------------

    def copies(self) -> int:
        """Return in how many places it is."""
        keys = [*(f"{{jobs}}:{name}" for name in STREAMS), DEAD, TRASH]
        found = sum(fields.get("id") == "j1" for key in keys for _, fields in self.raw.xrange(key))
        return found + len(self.raw.hkeys("{jobs}:msg"))

    def told(self, verb: str) -> int:
        """Return how often the audit says that the board did this to it."""
        lines = [line for row in self.kit.audit() if row["by"] == "cleo@board" for line in row["what"].splitlines()]
        return sum(line.startswith(f"{verb} j1 ") for line in lines)


# --- what the board does -----------------------------------------------------------------------------------------------------


async def cancel(target: Target) -> int:
    """Cancel it. Awaits one script, which looks where the job is and moves or marks it in one step.

    Then, where it was gone, reads where it is now.
    """
    return await _steer(target, "cancel")


async def soon(target: Target) -> int:
    """Let it run now: one script, as for cancel."""
    return await _steer(target, "soon")


async def _steer(target: Target, verb: str) -> int:
    store = ControlStore(target.url, "jobs")
    page = ActionsPage(target.reads, store)
    try:
        acted = await getattr(page, verb)(ActAsk(places=[target.place]), CLEO)
        [one] = acted.results
        return 0 if one.answer == "same" else acted.done
    except Refused as refused:
        assert refused.status == 409 and refused.now
        return 0
    finally:
        await store.close()


async def trash(target: Target) -> int:
    """Move it to the trash: one script, the copy first and then the letter."""
    async with _Letters(target) as page:
        return (await page.trash(ActAsk(places=[target.place]), CLEO)).done


async def restore(target: Target) -> int:
    """Take it out of the trash: one script."""
    async with _Letters(target) as page:
        return (await page.restore(ActAsk(places=[target.place]), CLEO)).done


async def replay(target: Target) -> int:
    """Check it, which reads alone; start its replay, whose list is written before the operation; and make the steps."""
    async with _Letters(target) as page:
        check = await page.check(CheckAsk(places=[target.place]), CLEO)
        if not check.would_run:
            return 0
        made = await page.replay(ReplayAsk(check=check.id, count=1, rate=100), CLEO)
        return await _stepped(target, made.id)


async def trash_group(target: Target) -> int:
    """Move its group to the trash: the list, the operation, its steps."""
    async with _Letters(target) as page:
        await page._index.look()
        if not (groups := list(page._index.piles)):
            return 0
        made = await page.trash_group(GroupAsk(group=groups[0], count=1), CLEO)
        return await _stepped(target, made.id)


async def _stepped(target: Target, name: str) -> int:
    """Make the steps of an operation to its end; return how many it moved. All it meant is counted."""
    async with Control(target.url, by="w1") as control:
        for _ in range(10):
            if (await control.step_operation(name)).wait_ms < 0:
                break
        found = await control.operation(name)
    assert found is not None and found.state == "done"
    assert found.done + sum(found.refused.values()) == 1
    return found.done


async def send_anew(target: Target) -> int:
    """Send an edited payload in place of the letter. Reads the letter; then one script sends the job and moves the letter."""
    store = LetterStore(target.url, "jobs")
    page = EditPage(target.url, "jobs", store, target.reads.contracts)
    try:
        sent = await page.send(SendAsk(type="t", text='{"n":2}', place=target.place, has_trash=True), CLEO)
        target.sent += sent.is_new
        return int(sent.is_new)
    except Refused as refused:
        assert refused.status == 409
        return 0
    finally:
        await store.close()


class _Letters:
    """The page of dead letters for one test."""

    def __init__(self, target: Target) -> None:
        self._store = LetterStore(target.url, "jobs")
        self._index = Index(self._store, step_wait_s=0.0)
        self._page = ReplayPage(target.url, "jobs", self._store, self._index, target.reads.contracts)

    async def __aenter__(self) -> ReplayPage:
        return self._page

    async def __aexit__(self, *_: object) -> None:
        await self._page.close()
        await self._index.close()
        await self._store.close()


# --- all of it at every moment -----------------------------------------------------------------------------------------------

JOB_MOVES = ("done", "fail", "die", "promote", "promote done", "promote fail", "cancel", "die replay", "die replay done")
LETTER_MOVES = (
    "replay",
    "replay done",
    "trash",
    "trash restore",
    "restore",
    "restore trash",
    "restore replay",
    "purge",
    "replay die",
)
STARTS = ("waits", "runs", "is_parked", "is_delayed")
CASES = [
    *[(act, start, move, verb) for act, verb in ((cancel, "cancel"), (soon, "now")) for start in STARTS for move in JOB_MOVES],
    *[(trash, "is_dead", move, "trash") for move in LETTER_MOVES],
    *[(restore, "is_in_trash", move, "restore") for move in LETTER_MOVES],
    *[(act, "is_dead", move, "") for act in (replay, trash_group, send_anew) for move in LETTER_MOVES],
]


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    monkeypatch.setattr(letters, "FRESH_S", 0.0)
    monkeypatch.setattr(letters, "REST_S", 0.0)
    monkeypatch.setattr(replays, "HOLD_S", 0.0)
    found = Between(Connection.call)

    async def call(connection: Connection, *commands: Any, **more: Any) -> Any:
        return await found.call(connection, *commands, **more)

    monkeypatch.setattr(Connection, "call", call)
    return found


def name_of(case: Sequence[Any]) -> str:
    act, start, move, _ = case
    return f"{act.__name__} {start} {move}"


@pytest.mark.parametrize(("act", "start", "move", "verb"), CASES, ids=map(name_of, CASES))
async def test_what_changes_meanwhile_is_done_or_refused_and_never_twice(
    valkey: Server, kit: ServerKit, reads: Reads, between: Between, act: Act, start: str, move: str, verb: str
) -> None:
    target = Target(kit, valkey.url, reads)

    async def happen() -> None:
        for name in move.split():
            await getattr(target, name)()

    at, calls = 1, 1
    while at <= calls + 1:
        await target.clear()
        await getattr(target, start)()
        between.arm(at, happen)
        done = await act(target)
        calls = max(calls, between.calls) if at > 1 else between.calls
        await between.happen()  # at the last, when all is over
        where = f"before call {at} of {calls}"
        assert target.copies() + target.ended == 1, where
        if verb:  # what another person has asked of a worker is asked, and told once
            assert target.told(verb) == done or (move, start) == ("cancel", "runs"), where
        replayed = [fields for _, fields in kit.raw.xrange(HIGH) if "x-replayed-from" in fields]
        assert len(replayed) == target.sent == (done if act is send_anew else 0), where
        if act is send_anew and done:
            assert not any(fields.get("id") == "j1" for fields in kit.messages()) or at > calls, where
        at += 1
    assert calls >= 1
