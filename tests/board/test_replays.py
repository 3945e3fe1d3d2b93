"""Replays as the board starts them: what a check fixes, undo, five first, the brake, two boards, letters that move meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis

from board import letters, replays
from board.api import Refused
from board.contracts import Contracts
from board.letters import Index
from board.operations import OperationsPage, shown
from board.replays import ReplayPage
from board.shapes import ActAsk, Check, CheckAsk, GroupAsk, Nothing, OperationAsk, ReplayAsk
from board.viewer import Viewer
from runtime import Dead, Job, contract, handler
from runtime.control import Control
from runtime.operations import CANARY
from runtime.store.letters import LetterStore
from tests.servers import Server
from tests.workers import until, working

DEAD, TRASH = "{jobs}:dead", "{jobs}:trash"
ADA = Viewer("ada", frozenset({"view", "payload", "operate"}))


@contract("t")
class Order(msgspec.Struct):
    n: int
    is_bad: bool = False


async def told() -> dict[str, str]:
    """Return what a worker has written of the type `t`."""
    return {"t@1": '{"schema":{"type":"object","required":["n"]}}'}


class Boards:
    """Pages of boards on one server, each with an index of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._open: list[tuple[LetterStore, Index, ReplayPage]] = []
        self.operations = OperationsPage(url, "jobs")

    def another(self) -> ReplayPage:
        store = LetterStore(self.url, "jobs")
        index = Index(store, step_wait_s=0.0)
        page = ReplayPage(self.url, "jobs", store, index, Contracts(told))
        self._open.append((store, index, page))
        return page

    async def close(self) -> None:
        await self.operations.close()
        for store, index, page in self._open:
            await page.close()
            await index.close()
            await store.close()


@pytest.fixture
async def boards(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Boards]:
    monkeypatch.setattr(letters, "FRESH_S", 0.0)
    monkeypatch.setattr(letters, "REST_S", 0.0)
    opened = Boards(valkey.url)
    yield opened
    await opened.close()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "HOLD_S", 0.0)
    monkeypatch.setattr(replays, "CANARY_S", 0.2)


def bury(raw: redis.Redis, n: int, data: str = '{"n":1}', **more: Any) -> list[str]:
    notes = {
        "dead_reason": "attempts",
        "dead_error": "KeyError: 'a'",
        "dead_from": "low/7-1",
        "dead_at": "7000",
        "dead_attempts": "3",
    }
    return [f"dead/{raw.xadd(DEAD, {'type': 't', 'data': data, 'id': f'j{at}', **notes, **more})}" for at in range(n)]


async def group_of(page: ReplayPage) -> str:
    await page._index.look()
    while not page._index.is_right:
        await page._index.look()
    return next(iter(page._index.piles))


def ask(found: Check, **more: Any) -> ReplayAsk:
    return ReplayAsk(**{"check": found.id, "count": found.would_run, "rate": 100.0} | more)


async def test_a_check_writes_nothing_and_says_what_would_become_of_all(boards: Boards, raw: redis.Redis) -> None:
    owner = raw.xadd("{jobs}:low", {"type": "t", "data": "{}", "key": "taken"})
    raw.set("{jobs}:seen:k:taken", f"low {owner}")
    places = [*bury(raw, 3), *bury(raw, 1, key="taken"), *bury(raw, 1, exp="99"), *bury(raw, 1, data="{}")]
    raw.hset("{jobs}:workers:rows", "w", '5000 {"types":{"t":1},"app":"v7"}')
    raw.zadd("{jobs}:workers", {"w": 8e15})
    page = boards.another()
    before = {key: raw.dump(key) for key in raw.scan_iter()}
    check = await page.check(CheckAsk(places=[*places, "dead/9-9"]), ADA)
    assert {key: raw.dump(key) for key in raw.scan_iter()} == before
    counts = {finding.kind: finding.count for finding in check.findings}
    assert counts == {"would-run": 3, "expired": 1, "unfit": 1, "owned": 1, "gone": 1}
    assert (check.total, check.looked_at, check.would_run) == (7, 7, 5)


async def test_a_check_looks_at_a_thousand_and_says_so(boards: Boards, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "MOST", 20)
    bury(raw, 30)
    page = boards.another()
    check = await page.check(CheckAsk(group=await group_of(page)), ADA)
    assert (check.total, check.looked_at, check.would_run) == (30, 20, 30)
    monkeypatch.setattr(replays, "MOST_BYTES", 1)
    monkeypatch.setattr(replays, "STEP", 7)
    check = await page.check(CheckAsk(group=await group_of(page)), ADA)
    assert check.looked_at == 7


async def test_what_was_fixed_goes_five_first_and_then_the_rest_and_nothing_else(
    boards: Boards, raw: redis.Redis, soon: None
) -> None:
    done: list[str] = []

    @handler(Order)
    async def work(message: Order, job: Job) -> None:
        done.append(job.id)

    bury(raw, 30)
    page = boards.another()
    check = await page.check(CheckAsk(group=await group_of(page)), ADA)
    bury(raw, 2)  # came later: not meant
    async with working(boards.url, work):
        started = await page.replay(ask(check, reason="token rotated"), ADA)
        assert (started.state, started.total, started.who, started.reason) == ("held", 30, "ada@board", "token rotated")
        with pytest.raises(Refused, match="over"):
            await page.replay(ask(check), ADA)
        seen: set[int] = set()

        async def is_done() -> bool:
            [found] = (await boards.operations.operations(Nothing(), ADA)).operations
            seen.add(found.done)
            return found.state == "done" and len(done) == 30

        await poll(is_done)
    assert CANARY in seen and len(set(done)) == 30 and raw.xlen(DEAD) == 2
    [found] = (await boards.operations.operations(Nothing(), ADA)).operations
    assert found.text == "30 sent back" and found.can == [] and found.ends_ms is not None


async def poll(is_true: Any) -> None:
    """Ask until it holds; the test's own time is the deadline."""
    while not await is_true():
        pass


async def test_only_a_trial_goes_back(boards: Boards, raw: redis.Redis, soon: None) -> None:
    bury(raw, 12)
    page = boards.another()
    check = await page.check(CheckAsk(group=await group_of(page)), ADA)
    started = await page.replay(ask(check, first=5), ADA)
    async with Control(boards.url) as control:
        await finish(control, started.id)
    assert raw.xlen(DEAD) == 7 and raw.xlen("{jobs}:low") == 5


async def finish(control: Control, name: str) -> None:
    """Make the steps, as workers do, until the operation rests."""

    async def rests() -> bool:
        return (await control.step_operation(name)).wait_ms < 0

    await poll(rests)


async def test_the_brake_stops_what_dies_again(boards: Boards, raw: redis.Redis, soon: None) -> None:
    @handler(Order)
    async def fail(message: Order, job: Job) -> None:
        raise Dead("no", "refused")

    bury(raw, 60)
    page = boards.another()
    check = await page.check(CheckAsk(group=await group_of(page)), ADA)
    async with working(boards.url, fail):
        started = await page.replay(ask(check), ADA)
        state = ""

        async def braked() -> bool:
            nonlocal state
            [found] = (await boards.operations.operations(Nothing(), ADA)).operations
            state = found.state
            return state == "braked"

        await poll(braked)
    [found] = (await boards.operations.operations(Nothing(), ADA)).operations
    assert found.id == started.id and found.died >= CANARY and found.done < 60 and found.can == ["resume"]
    assert "stopped by its brake" in found.text
    await until(lambda: raw.xlen(DEAD) == 60)  # nothing is lost on the way


async def test_a_replay_that_is_held_is_undone_by_a_stop(boards: Boards, raw: redis.Redis) -> None:
    bury(raw, 8)
    page = boards.another()
    check = await page.check(CheckAsk(group=await group_of(page)), ADA)
    started = await page.replay(ask(check), ADA)
    assert started.starts_ms is not None and started.text.startswith("nothing is done yet; it starts in")
    async with Control(boards.url) as control:
        assert (await control.step_operation(started.id)).acted == 0
    stopped = await boards.operations.stop(OperationAsk(id=started.id), ADA)
    assert (stopped.state, stopped.done, stopped.can) == ("stopped", 0, ["resume"]) and raw.xlen(DEAD) == 8
    resumed = await boards.operations.resume(OperationAsk(id=started.id), ADA)
    assert resumed.can == ["stop"]
    with pytest.raises(Refused):
        await boards.operations.stop(OperationAsk(id="replay-none"), ADA)


async def test_letters_that_went_meanwhile_are_counted_as_gone(boards: Boards, raw: redis.Redis, soon: None) -> None:
    places = bury(raw, 6)
    page = boards.another()
    check = await page.check(CheckAsk(places=places), ADA)
    async with Control(boards.url) as control:
        await control.trash(places[0])
        raw.xdel(DEAD, places[1].partition("/")[2])
        started = await page.replay(ask(check), ADA)
        await finish(control, started.id)
        found = await control.operation(started.id)
    assert found is not None and (found.done, found.refused) == (4, {"gone": 2})
    assert shown(found).text == "4 of 6 sent back, 2 were gone" and raw.xlen("{jobs}:low") == 4


async def test_two_boards_at_once_send_no_letter_twice(boards: Boards, raw: redis.Redis, soon: None) -> None:
    bury(raw, 20)
    one, other = boards.another(), boards.another()
    checks = [(page, await page.check(CheckAsk(group=await group_of(page)), ADA)) for page in (one, other)]
    started = [await page.replay(ask(check), ADA) for page, check in checks]
    async with Control(boards.url) as control:
        for made in started:
            await finish(control, made.id)
        found = [await control.operation(made.id) for made in started]
    assert sum(one.done for one in found if one) == 20 and sum(one.refused.get("gone", 0) for one in found if one) == 20
    assert raw.xlen("{jobs}:low") == 20 and raw.xlen(DEAD) == 0


async def test_a_replay_outlives_the_board_that_started_it(boards: Boards, raw: redis.Redis, soon: None) -> None:
    done: list[str] = []

    @handler(Order)
    async def work(message: Order, job: Job) -> None:
        done.append(job.id)

    bury(raw, 12)
    dying = Boards(boards.url)
    page = dying.another()
    check = await page.check(CheckAsk(group=await group_of(page)), ADA)
    await page.replay(ask(check), ADA)
    await dying.close()
    async with working(boards.url, work):
        await until(lambda: len(done) == 12)
    [found] = (await boards.operations.operations(Nothing(), ADA)).operations
    assert found.total == 12 and found.what == "replay of 12 letters"


@pytest.mark.parametrize(
    ("more", "code"), [({"count": 3}, "count"), ({"check": "none"}, "stale"), ({"has_brake": False}, "asked")]
)
async def test_a_replay_that_is_not_as_it_was_checked_is_refused(
    boards: Boards, raw: redis.Redis, more: dict[str, Any], code: str
) -> None:
    page = boards.another()
    check = await page.check(CheckAsk(places=bury(raw, 2)), ADA)
    with pytest.raises(Refused) as refused:
        await page.replay(ask(check, **more), ADA)
    assert refused.value.code == code and raw.xlen(DEAD) == 2 and not raw.exists("{jobs}:operations")


async def test_a_check_is_over_after_a_time(boards: Boards, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "VALID_S", 0.0)
    page = boards.another()
    check = await page.check(CheckAsk(places=bury(raw, 2)), ADA)
    with pytest.raises(Refused, match="over"):
        await page.replay(ask(check), ADA)


@pytest.mark.parametrize("given", [{}, {"group": "x", "places": ["dead/1-1"]}, {"places": ["trash/1-1"]}, {"places": ["x"]}])
async def test_a_check_of_nothing_is_refused(boards: Boards, given: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        await boards.another().check(CheckAsk(**given), ADA)
    assert refused.value.status == 400


async def test_letters_go_to_the_trash_and_back(boards: Boards, raw: redis.Redis) -> None:
    places = bury(raw, 3)
    before = raw.xrange(DEAD)
    page = boards.another()
    moved = await page.trash(ActAsk(places=[*places[:2], "dead/9-9"], reason="old"), ADA)
    assert [(one.is_done, one.answer) for one in moved.results] == [(True, "moved"), (True, "moved"), (False, "gone")]
    assert moved.text == "2 letters moved to the trash, 1 other could not be" and raw.xlen(DEAD) == 1
    back = await page.restore(ActAsk(places=[f"trash/{entry}" for entry, _ in raw.xrange(TRASH)]), ADA)
    assert back.done == 2 and raw.xlen(TRASH) == 0
    assert sorted(fields["id"] for _, fields in raw.xrange(DEAD)) == sorted(fields["id"] for _, fields in before)
    told = [fields for _, fields in raw.xrange("{jobs}:audit")]
    assert [(one["by"], one["reason"]) for one in told] == [("ada@board", "old"), ("ada@board", "")]
    with pytest.raises(Refused):
        await page.restore(ActAsk(places=["dead/1-1"]), ADA)


async def test_a_whole_group_goes_to_the_trash_in_steps(boards: Boards, raw: redis.Redis) -> None:
    bury(raw, 25)
    page = boards.another()
    group = await group_of(page)
    with pytest.raises(Refused, match="24"):
        await page.trash_group(GroupAsk(group=group, count=24), ADA)
    started = await page.trash_group(GroupAsk(group=group, count=25), ADA)
    assert (started.verb, started.state, started.total) == ("trash", "held", 25)


async def test_five_go_first_and_the_rest_waits_for_what_becomes_of_them(
    boards: Boards, raw: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "HOLD_S", 0.0)
    page = boards.another()
    check = await page.check(CheckAsk(places=bury(raw, 104)), ADA)
    started = await page.replay(ask(check), ADA)
    async with Control(boards.url) as control:
        assert [(await control.step_operation(started.id)).acted for _ in range(3)] == [5, 0, 0]
    [found] = (await boards.operations.operations(Nothing(), ADA)).operations
    assert found.text.startswith("5 of 104 sent back, the rest starts in ") and found.ends_ms is not None
