"""Two boards, two processes, one queue: what both are told to do at the same moment happens once, and each tells what it did."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import ClientSession

from runtime.control import Control
from runtime.jobs import STREAMS, Deferral
from tests.board.test_board_command import Process, board
from tests.contract.kit import ServerKit, batch, leases
from tests.faults.test_board_deaths import NOTES
from tests.servers import Server

TOKEN = "0123456789abcdef"
DEAD, TRASH, HIGH, LOW = "{jobs}:dead", "{jobs}:trash", "{jobs}:high", "{jobs}:low"
HOUR_MS = 3_600_000
LETTERS = 150  # more than one call moves
Both = list[dict[str, Any]]


class Boards:
    """Two boards, and what they are asked at once."""

    def __init__(self, processes: list[Process], client: ClientSession) -> None:
        self._urls = [process.url for process in processes]
        self._client = client

    async def post(self, path: str, *bodies: dict[str, Any]) -> Both:
        """Return what both have answered to a body, or each to its own."""
        each = zip(self._urls, bodies if len(bodies) > 1 else bodies * 2, strict=True)
        return await asyncio.gather(*[self._post(url, path, body) for url, body in each])

    async def _post(self, url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        while True:
            async with self._client.post(f"{url}/api/{path}", json=body, headers=headers) as answer:
                told = await answer.json()
            if answer.status != 429:  # nobody acts so often as a test
                assert answer.status in (200, 409), told
                return {"status": answer.status, **told}
            await asyncio.sleep(0.1)

    async def group(self) -> Both:
        """Return the one group of letters as each board knows it."""
        return await asyncio.gather(*[self._group(url) for url in self._urls])

    async def _group(self, url: str) -> dict[str, Any]:
        while True:
            async with self._client.get(f"{url}/api/dead/groups", headers={"Authorization": f"Bearer {TOKEN}"}) as answer:
                found = (await answer.json())["groups"]
            if found and found[0]["count"] == LETTERS:
                return {"group": found[0]["fp"], "count": LETTERS}
            await asyncio.sleep(0.1)


@pytest.fixture(scope="module")
def store() -> Iterator[Server]:
    server = Server("valkey")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def processes(store: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Process]]:
    """Two boards, for all tests of the module."""
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp("board") for _ in range(2)]
        yield [stack.enter_context(_board(store, folder)) for folder in folders]


def _board(store: Server, folder: Path) -> Any:
    arguments = ("board", "--redis", store.url, "--board", "127.0.0.1:0", "--board-send", "--data-dir", str(folder))
    return board(folder, *arguments, RUNTIME_BOARD_OPERATE_TOKEN=TOKEN)


@pytest.fixture
async def boards(processes: list[Process]) -> AsyncIterator[Boards]:
    async with ClientSession() as client:
        yield Boards(processes, client)


@pytest.fixture
async def kit(store: Server) -> AsyncIterator[ServerKit]:
    opened = ServerKit(store)
    opened.clear()
    yield opened
    await opened.close()


def ids(raw: redis.Redis, *keys: str) -> Counter[str]:
    """Return how often each id stands there."""
    return Counter(fields["id"] for key in keys for _, fields in raw.xrange(key))


def bury(raw: redis.Redis, n: int = LETTERS) -> list[str]:
    pipe = raw.pipeline()
    for at in range(n):
        pipe.xadd(DEAD, {"type": "t", "data": '{"n":1}', "id": f"j{at}", **NOTES})
    return [f"dead/{entry}" for entry in pipe.execute()]


def once(n: int) -> Counter[str]:
    return Counter(f"j{at}" for at in range(n))


async def test_both_cancel_the_same_jobs(boards: Boards, kit: ServerKit) -> None:
    worker = kit.streams("w1")
    await worker.start()
    entries = [kit.add(id=f"j{at}") for at in range(60)]
    held = await leases(worker, 40)
    await worker.settle(batch(*[Deferral(lease, "retry", HOUR_MS, lease.id, 1) for lease in held[:20]]))
    places = [f"due/j{at}" for at in range(20)] + [f"high/{entry}" for entry in entries[20:]]
    both = await boards.post("cancel", {"places": places})
    told = Counter(result["answer"].partition(" ")[0] for answer in both for result in answer.get("results", []))
    assert (told["cancelled"], told["asked"], told["gone"]) == (40, 40, 40), "each once, and those that run are asked"
    assert ids(kit.raw, DEAD) == Counter(f"j{at}" for at in [*range(20), *range(40, 60)])
    assert sorted(kit.cancels()) == sorted(f"high/{entry}" for entry in entries[20:40])
    lines = Counter(line.split()[1] for row in kit.audit() for line in row["what"].splitlines())
    assert lines == once(60), "and is told once"


async def test_both_let_the_same_jobs_run_now(boards: Boards, kit: ServerKit) -> None:
    worker = kit.streams("w1")
    await worker.start()
    for at in range(40):
        kit.add(id=f"j{at}")
    await worker.settle(batch(*[Deferral(lease, "retry", HOUR_MS, lease.id, 1) for lease in await leases(worker, 40)]))
    both = await boards.post("soon", {"places": [f"due/j{at}" for at in range(40)]})
    assert all(answer["status"] == 200 for answer in both)
    await worker.promote(100, "")
    assert ids(kit.raw, *(f"{{jobs}}:{name}" for name in STREAMS)) == once(40) and not kit.records()


async def test_both_move_the_same_letters_to_the_trash_and_back(boards: Boards, kit: ServerKit) -> None:
    places = bury(kit.raw)
    both = await boards.post("dead/trash", {"places": places})
    assert sum(answer["done"] for answer in both) == LETTERS and ids(kit.raw, TRASH) == once(LETTERS) and not kit.letters()
    both = await boards.post("dead/restore", {"places": [f"trash/{entry}" for entry, _ in kit.raw.xrange(TRASH)]})
    assert sum(answer["done"] for answer in both) == LETTERS and ids(kit.raw, DEAD) == once(LETTERS)
    assert kit.raw.xlen(TRASH) == 0


@pytest.mark.parametrize("verb", ["replay", "trash"])
async def test_both_begin_the_same_operation(boards: Boards, kit: ServerKit, store: Server, verb: str) -> None:
    places = bury(kit.raw)
    if verb == "replay":
        checks = await boards.post("dead/check", {"places": places})
        made = await boards.post("dead/replay", *[{"check": one["id"], "count": LETTERS, "rate": 100} for one in checks])
    else:
        made = await boards.post("dead/trash/group", *await boards.group())
    assert len({one["id"] for one in made}) == 2 and len(kit.letters()) == LETTERS
    async with Control(store.url) as control:
        names = [one["id"] for one in made]
        while not all(rests := [await _stepped(kit, control, name) for name in names]):
            assert len(rests) == 2
        found = [await control.operation(name) for name in names]
    assert [one.state for one in found if one] == ["done", "done"]
    assert sum(one.done for one in found if one) == sum(one.refused.get("gone", 0) for one in found if one) == LETTERS
    assert ids(kit.raw, LOW if verb == "replay" else TRASH) == once(LETTERS) and not kit.letters()


async def _stepped(kit: ServerKit, control: Control, name: str) -> bool:
    """Make the next step of an operation at once, however long it was to wait; return whether that was the last."""
    kit.raw.zadd("{jobs}:operations", {name: kit.now_ms()}, xx=True)
    return (await control.step_operation(name)).wait_ms < 0


async def test_both_send_in_the_place_of_the_same_letter(boards: Boards, kit: ServerKit) -> None:
    for place in bury(kit.raw, 4):
        body = {"type": "t", "text": '{"n":2}', "place": place, "has_trash": True, "is_unchecked": True}
        both = await boards.post("send", body)
        assert sorted(answer["status"] for answer in both) == [200, 409]
    assert kit.raw.xlen(LOW) == 4 and ids(kit.raw, TRASH) == once(4) and not kit.letters()
