"""Children: what a worker takes from one, and what becomes of it when it dies, is killed, or cannot be started."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from runtime.children import _rest, children, end_idle_children
from runtime.errors import ChildFailed, ChildKilled, NotStarted
from runtime.followers import MAX_FOLLOWERS
from runtime.frames import (
    APART_BYTES,
    MAX_ANSWER_BYTES,
    MAX_BESIDE_BYTES,
    MAX_BODY_BYTES,
    MAX_RECORDED,
    NoFrame,
    answer_in,
    lengths,
    parts_of,
)
from runtime.jobs import Job
from runtime.places import PLACES, PROCESS, Places, make_places
from runtime.said import MAX_LINES
from tests import builders
from tests.unit.asked_in_child import Fit, fit, numbers
from tests.unit.hostile_in_child import FRAMES, Hostile, hostile
from tests.unit.test_offload import is_alive, until


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Places]]:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    own = make_places(processes=32)
    token = PLACES.set(own)
    yield own
    PLACES.reset(token)
    assert own[PROCESS].taken == 0


def job(do: str, note: Path | str = "") -> Job:
    return builders.job("hostile", data=msgspec.json.encode(Hostile(do, str(note))))


async def run(do: str, note: Path | str = "") -> BaseException | None:
    try:
        await hostile.run(None, job(do, note))
    except Exception as error:
        return error
    return None


async def pid_of_next(folder: Path) -> int:
    """Return the process id of the child that runs the next job."""
    assert await run("pid", folder / "pid") is None
    return int((folder / "pid").read_text())


# --- what it sends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*FRAMES])
async def test_what_is_no_answer_fails_the_job_ends_the_child_and_nothing_else(name: str, tmp_path: Path) -> None:
    beside = asyncio.ensure_future(fit(Fit(do="hang", note=str(tmp_path / "beside")), builders.job("train")))
    await until((tmp_path / "beside").exists)
    before = await pid_of_next(tmp_path)
    first = await run(name)
    assert isinstance(first, ChildFailed)
    assert "the child process was killed" in str(first)
    assert not beside.done(), "no other child is ended"
    assert await pid_of_next(tmp_path) != before
    await until(lambda: not is_alive(before))
    beside.cancel()
    await asyncio.wait([beside])


async def test_what_comes_behind_an_answer_is_no_answer_to_the_next_job(tmp_path: Path) -> None:
    before = await pid_of_next(tmp_path)
    assert await run("behind", tmp_path / "go") is None
    (tmp_path / "go").touch()
    await until(lambda: not (tmp_path / "go").exists())
    assert await pid_of_next(tmp_path) != before


async def test_a_child_whose_handler_closes_its_socket_writes_its_answer_into_no_file(tmp_path: Path) -> None:
    assert isinstance(await run("closes"), ChildKilled)
    assert isinstance(await run("closes-and-opens", tmp_path / "file"), ChildKilled)
    assert (tmp_path / "file").read_bytes() == b""
    assert await run("pid", tmp_path / "pid") is None


async def test_a_large_answer_comes_whole_and_one_that_is_too_large_is_refused_there(monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(1 << 20) * 64
    assert (await fit(Fit(data=memoryview(data)), builders.job("train"))).model == data
    monkeypatch.setattr("runtime.offload.MAX_BODY_BYTES", 1 << 20)
    with pytest.raises(ChildFailed, match="the child process was killed: .*has more than"):
        await fit(Fit(data=memoryview(data)), builders.job("train"))


async def test_what_an_answer_has_beside_many_bytes_is_bounded_in_the_child_and_in_the_worker(tmp_path: Path) -> None:
    large = memoryview(bytes(MAX_BESIDE_BYTES))
    many = str(MAX_BESIDE_BYTES // 9 - 10)  # a float has nine
    answer = await numbers(Fit(note=many, data=large), builders.job("train"))
    assert (len(answer.many), answer.data) == (int(many), large)
    too_many = str(MAX_BESIDE_BYTES // 9 + 1)
    with pytest.raises(ChildFailed, match="ValueError: Numbers: must have at most .* beside"):
        await numbers(Fit(note=too_many, data=large), builders.job("train"))
    for data in (large, memoryview(b"")):
        with pytest.raises(ChildFailed, match="numbers: returned more than"):
            await numbers(Fit(do="unchecked", note=too_many, data=data), builders.job("train"))


@pytest.mark.parametrize(
    ("recorded", "noted"),
    [
        ([b""] * (MAX_RECORDED + 1), None),
        ([], [[[0, 0, f"{n}", [], "", b""] for n in range(MAX_FOLLOWERS + 1)], [None, [], 0]]),
        ([], [[], [None, [""] * (MAX_LINES + 1), 0]]),
    ],
    ids=["recorded", "followers", "lines"],
)
def test_what_a_run_notes_in_a_child_is_bounded(recorded: Any, noted: Any) -> None:
    with pytest.raises(NoFrame):
        answer_in(msgspec.msgpack.encode([1, recorded, noted, ["done", True]]))


async def test_a_child_that_always_has_more_to_say_leaves_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, turns, size = asyncio.get_running_loop(), 0, 64 << 20

    async def at_once(_: socket.socket, view: memoryview) -> int:
        return len(view)

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    monkeypatch.setattr(loop, "sock_recv_into", at_once)
    turn()
    with socket.socket() as one:
        assert len(await _rest(one, size)) == size
    assert turns >= size >> 21


def test_a_frame_is_bounded_before_there_is_memory_for_it() -> None:
    head = (MAX_ANSWER_BYTES + 1).to_bytes(4, "big") + bytes(8)
    body = (1).to_bytes(4, "big") + (MAX_BODY_BYTES + 1).to_bytes(8, "big")
    for header in (head, body, bytes(12)):
        with pytest.raises(NoFrame):
            lengths(header, MAX_ANSWER_BYTES, MAX_BODY_BYTES)


FOLLOWER = [0, 0, "id", [[1]], "", b""]


@pytest.mark.parametrize(
    "answer",
    [
        *(
            7,
            [],
            [1, [], None],
            [1, [], None, ["done"]],
            [1, [], None, ["done", 1]],
            [1, [], None, ["retry", "x", "soon", 1, ""]],
        ),
        *([1, ["span"], None, ["done", True]], [1, [], [[], [None, [7], 1]], ["done", True]], [1, [], None, ["dead", 1, 2, 3]]),
        [1, [], [[FOLLOWER], [None, [], 0]], ["done", True]],
    ],
    ids=str,
)
def test_an_answer_is_taken_by_its_types_alone(answer: Any) -> None:
    with pytest.raises(NoFrame):
        answer_in(msgspec.msgpack.encode(answer))


# --- a struct in parts ---------------------------------------------------------------------------------------------------------


class Many(msgspec.Struct, rename="camel"):
    first_one: bytes = b""
    some_view: memoryview = memoryview(b"")
    text: str = ""
    more: bytearray = msgspec.field(default_factory=bytearray)


class InArray(msgspec.Struct, array_like=True):
    data: bytes


class Tagged(msgspec.Struct, tag=True):
    data: bytes


@pytest.mark.parametrize("size", [0, APART_BYTES - 1, APART_BYTES, APART_BYTES + 1, 3 * APART_BYTES])
def test_fields_of_many_bytes_are_not_copied_and_nobody_sees_a_difference(size: int) -> None:
    data = os.urandom(size)
    for value in (Many(data, memoryview(data)[1:], "ü", bytearray(data)), InArray(data), Tagged(data), Many(text="x" * size)):
        parts = parts_of(value)
        assert msgspec.msgpack.decode(b"".join(parts), type=type(value)) == value
    large = parts_of(Many(data))
    assert len(large) == (3 if size >= APART_BYTES else 1)
    assert size < APART_BYTES or any(isinstance(part, memoryview) and part.obj is data for part in large)


# --- how it dies ---------------------------------------------------------------------------------------------------------------


async def test_a_child_that_is_killed_while_it_is_idle_costs_no_job(tmp_path: Path) -> None:
    for _ in range(20):
        os.kill(await pid_of_next(tmp_path), signal.SIGKILL)  # it may be dead when the next one is sent, or die of it


async def test_a_child_that_ends_before_it_has_read_its_call_is_none_that_ran_it(tmp_path: Path) -> None:
    first = await pid_of_next(tmp_path)
    os.kill(first, signal.SIGSTOP)  # it is silent, and takes nothing
    running = asyncio.ensure_future(run("pid", tmp_path / "pid"))
    for _ in range(5):
        await asyncio.sleep(0)
    os.kill(first, signal.SIGKILL)
    assert await running is None
    assert int((tmp_path / "pid").read_text()) != first


async def test_a_call_that_was_read_and_run_is_not_asked_of_another_child(tmp_path: Path) -> None:
    await asyncio.gather(*[fit(Fit(), builders.job("train")) for _ in range(3)])

    async def busy() -> None:  # so that the child has run and died before the worker looks again
        while True:
            time.sleep(0.05)
            await asyncio.sleep(0)

    beside = asyncio.ensure_future(busy())
    asked = EndsLarge(note=str(tmp_path / "ran"), data=memoryview(bytes(400_000)))
    with pytest.raises(ChildKilled):
        await fit(cast("Any", asked), builders.job("train"))
    beside.cancel()
    assert (tmp_path / "ran").read_text() == "ran\n"


class EndsLarge(msgspec.Struct, kw_only=True):
    do: str = "note-and-kill"
    note: str
    data: memoryview


async def test_a_child_that_is_killed_while_it_starts_burns_no_attempt(tmp_path: Path) -> None:
    running = asyncio.ensure_future(run("pid", tmp_path / "pid"))
    await until(lambda: len(children()._alive) == 1)
    (child,) = children()._alive
    os.kill(child.process.pid, signal.SIGKILL)
    assert isinstance(await running, NotStarted)


async def test_children_that_cannot_start_burn_no_attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))  # no interpreter finds its library there
    assert isinstance(await run("pid", tmp_path / "pid"), NotStarted)
    assert isinstance(await run("pid", tmp_path / "pid"), NotStarted)
    await until(lambda: not children()._alive)


async def test_descriptors_that_a_job_has_leaked_cost_the_next_one_nothing(tmp_path: Path) -> None:
    await fit(Fit(), builders.job("train"))
    assert await run("leaks", tmp_path / "leaks") is None
    await fit(Fit(), builders.job("train"))  # which has a bound of memory, for which a file is read
    assert await pid_of_next(tmp_path) != int((tmp_path / "leaks").read_text())


async def test_a_bound_of_memory_that_cannot_be_set_is_told(tmp_path: Path) -> None:
    await fit(Fit(), builders.job("train"))
    assert await run("leaks-later", tmp_path / "go") is None
    (tmp_path / "go").touch()
    await until(lambda: not (tmp_path / "go").exists())
    with pytest.raises(ChildFailed, match="Too many open files: '/proc"):
        await fit(Fit(), builders.job("train"))


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8])
async def test_a_cut_while_it_starts_leaves_no_process(turns: int) -> None:
    running = asyncio.ensure_future(run("pid", os.devnull))
    for _ in range(turns):
        await asyncio.sleep(0)
    alive = [child.process.pid for child in children()._alive]
    running.cancel()
    await asyncio.wait([running])
    await until(lambda: not children()._alive)
    assert [pid for pid in alive if is_alive(pid)] == []


async def test_what_a_handler_has_started_dies_with_its_child(tmp_path: Path) -> None:
    running = asyncio.ensure_future(run("starts", tmp_path / "pids"))
    await until(lambda: (tmp_path / "pids").exists() and len((tmp_path / "pids").read_text().split()) == 2)
    running.cancel()
    await asyncio.wait([running])
    await until(lambda: not any(is_running(int(pid)) for pid in (tmp_path / "pids").read_text().split()))


async def test_what_a_handler_has_forked_does_not_hold_up_the_news_of_its_end(tmp_path: Path) -> None:
    async with asyncio.timeout(30):  # less than the fork lives
        assert isinstance(await run("forks-and-dies", tmp_path / "pid"), ChildKilled)
    await until(lambda: not is_running(int((tmp_path / "pid").read_text())))


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_child_that_has_grown_is_not_used_again(tmp_path: Path) -> None:
    assert await run("grows", tmp_path / "large") is None
    assert await pid_of_next(tmp_path) != int((tmp_path / "large").read_text())


async def test_a_child_that_has_grown_and_does_not_end_swallows_no_job(tmp_path: Path) -> None:
    assert await run("grows-and-stays", tmp_path / "large") is None
    async with asyncio.timeout(30):  # less than its thread lives
        assert await pid_of_next(tmp_path) != int((tmp_path / "large").read_text())
    await until(lambda: not is_alive(int((tmp_path / "large").read_text())))


async def test_a_child_that_was_not_needed_for_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes = [tmp_path / "a", tmp_path / "b"]
    await asyncio.gather(*[run("pid", note) for note in notes])
    pids = {int(note.read_text()) for note in notes}
    assert len(pids) == 2
    monkeypatch.setattr("runtime.children.MAX_IDLE_S", -1.0)
    kept = await pid_of_next(tmp_path)
    (ended,) = pids - {kept}
    await until(lambda: not is_alive(ended))
    assert is_alive(kept)


# --- how it is started -------------------------------------------------------------------------------------------------------


async def test_no_child_without_descriptors_burns_no_attempt_and_leaves_none_open(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert await run("pid", tmp_path / "pid") is None
    await end_idle_children(15)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    for more in range(6):
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + more, hard))
        try:
            error = await run("pid", tmp_path / "pid")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert error is None or isinstance(error, NotStarted)
        await end_idle_children(15)
    assert len(os.listdir("/proc/self/fd")) == before
    assert await run("pid", tmp_path / "pid") is None


async def test_a_child_gets_no_privileges_dumps_no_core_and_has_a_session_of_its_own(tmp_path: Path) -> None:
    assert await run("limits", tmp_path / "told") is None
    told = (tmp_path / "told").read_text()
    assert told == "1 (0, 0) True 6 /dev/null", "its standard streams, its socket, the channel, and the one that lists them"


CLOSED = """
import asyncio, os, sys
from pathlib import Path

from tests.unit.test_children import run

os.close(0)
os.close(1)
del sys.modules["__main__"]
sys.exit(repr(asyncio.run(run("pid", sys.argv[1]))))
"""


def test_a_worker_whose_standard_streams_are_closed_starts_children_all_the_same(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", CLOSED, str(tmp_path / "pid")], stderr=subprocess.PIPE, text=True, check=False)
    assert done.stderr.splitlines()[-1] == "None"
    assert (tmp_path / "pid").exists()


async def test_twenty_busy_children_are_gone_with_their_loop(tmp_path: Path) -> None:
    async def busy() -> list[int]:
        PLACES.set(make_places(processes=20))
        notes = [tmp_path / f"{n}" for n in range(20)]
        tasks = [asyncio.ensure_future(fit(Fit(do="hang", note=str(note)), builders.job("train"))) for note in notes]
        await until(lambda: all(note.exists() and note.read_text() for note in notes))
        assert not any(task.done() for task in tasks)
        return [int(note.read_text()) for note in notes]

    pids = await asyncio.to_thread(asyncio.run, busy())
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
