"""What runs in child processes say reaches the worker while they run, when they end, and when they are killed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime.channel import EVERY_S, MAX_SENT_S, Channel, Sender, channel
from runtime.errors import ChildFailed, ChildKilled
from runtime.jobs import LANE, Job
from runtime.places import PLACES, make_places
from runtime.said import MAX_LINES, Progress, Said
from tests import builders
from tests.unit.in_child import Work, speaks, speaks_async


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    token = PLACES.set(make_places())
    yield
    PLACES.reset(token)


class Lane:
    """A lane that notes who was heard."""

    watch = None
    job = None

    def __init__(self) -> None:
        self.heard: list[Job] = []
        self.hear = self.heard.append

    def begin(self) -> None:
        pass


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane()
    token = LANE.set(made)  # type: ignore[arg-type]
    yield made
    LANE.reset(token)


def job(do: str, note: Path | str = "") -> Job:
    return builders.job("work", data=msgspec.json.encode(Work(do, str(note))))


def said(one: Job) -> Said:
    assert one.extras is not None
    return one.extras.said


async def until(is_true: Any) -> None:
    async with asyncio.timeout(30):
        while not is_true():
            await asyncio.sleep(0.002)


async def test_what_a_child_has_said_comes_back_with_its_answer_also_of_one_that_fails(lane: Lane) -> None:
    for do in ("", "raise"):
        one = job(do)
        with contextlib.suppress(ChildFailed):
            await speaks.run(None, one)
        assert said(one).progress == Progress(3, 7, "rows")
        assert said(one).lines[:2] == ["one line", "two lines"]
        assert said(one).said == 3
        assert lane.heard.pop() is one


async def test_a_thread_of_a_coroutine_in_a_child_is_heard_too(lane: Lane) -> None:
    one = job("")
    await speaks_async.run(None, one)
    assert (said(one).lines, lane.heard) == (["from a thread in a child"], [one])


async def test_what_a_child_says_is_heard_while_it_runs_and_kept_when_it_is_cut(lane: Lane, tmp_path: Path) -> None:
    one = job("hang", tmp_path / "pid")
    running = asyncio.ensure_future(speaks.run(None, one))
    await until(lambda: one.extras is not None and said(one).said == 3)
    assert (said(one).progress, lane.heard) == (Progress(3, 7, "rows"), [one])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert said(one).said == 3


async def test_the_last_words_of_a_child_that_dies_at_once_are_kept(lane: Lane) -> None:
    one = job("kill")
    with pytest.raises(ChildKilled):
        await speaks.run(None, one)
    assert said(one).lines[:2] == ["one line", "two lines"]
    assert lane.heard == [one]


def test_where_a_handler_has_closed_the_channel_nothing_is_written_to_its_own_files(tmp_path: Path) -> None:
    made, told = Channel(), Said()
    with made.hearing(1, lambda *_: None) as end, open(tmp_path / "own", "wb") as own:
        send = Sender(1, end)
        os.dup2(own.fileno(), made.there)
        told.add("a")
        send(told)
        os.close(made.there)
        told.add("b")
        send(told)
    assert (tmp_path / "own").read_bytes() == b""


async def test_marks_in_a_child_are_an_error_that_says_so() -> None:
    with pytest.raises(ChildFailed, match="job.marks: not in a child process"):
        await speaks.run(None, job("marks"))


async def test_a_job_that_is_settled_in_a_child_is_an_error_and_not_done() -> None:
    with pytest.raises(ChildFailed, match="settle is for handlers of many jobs"):
        await speaks.run(None, job("settle"))


async def test_a_child_that_says_much_is_neither_slow_nor_lost(tmp_path: Path, lane: Lane) -> None:
    one = job("flood", tmp_path / "took")
    await speaks.run(None, one)
    assert said(one).progress == Progress(99_999, 100_000, "")
    assert float((tmp_path / "took").read_text()) < 30, "no timed assertion: it ends at all"


async def test_a_loop_has_one_channel_which_ends_with_it() -> None:
    assert channel() is channel()
    here, there = socket_pair = (channel().here, channel().there)
    assert all(os.fstat(one) for one in socket_pair)

    async def other() -> weakref.ref[Channel]:
        assert channel().here not in (here, there)
        return weakref.ref(channel())

    ended = await asyncio.to_thread(asyncio.run, other())
    gc.collect()
    assert ended() is None


NO_DATAGRAMS = [
    *(b"", b"\xff", b"7", b"\x91" * 60_000),
    *map(
        msgspec.msgpack.encode,
        ([1], [1, 2, 3, 4], [1, None, "ab", "x"], [[], None, [], 0], [99, None, [], 0], [1, None, 5, 0], [1, "abcd", [], 0]),
    ),
]


@pytest.mark.parametrize("data", NO_DATAGRAMS, ids=range(len(NO_DATAGRAMS)))
def test_a_datagram_that_is_none_is_dropped(data: bytes) -> None:
    made, heard = Channel(), Said()
    heard.add("before")
    with made.hearing(1, heard.take_over) as (there, _):
        os.write(there, data)
        made.read()
        assert (heard.lines, heard.progress) == (["before"], None)
        os.write(there, msgspec.msgpack.encode((1, (1, 2, "x"), ["a"], 5)))
    assert (heard.lines, heard.said, heard.progress) == (["a"], 5, Progress(1, 2, "x"))


def test_what_has_come_and_was_not_read_when_a_run_ends_is_read_then() -> None:
    made, told, heard = Channel(), Said(), Said()
    told.add("the last words")
    with made.hearing(1, heard.take_over) as end:
        Sender(1, end)(told)
        assert heard.lines == []
    assert heard.lines == ["the last words"]


def test_what_a_datagram_brings_is_bounded() -> None:
    heard = Said()
    heard.take_over((-1, float("nan"), "x" * 10_000), ["y\nz" * 10_000] * 1000, 3)
    assert heard.progress is not None
    assert len(heard.progress.text) == 200
    assert (len(heard.lines), heard.said, heard.lines[0]) == (MAX_LINES, MAX_LINES, "y")


def test_a_sender_sends_a_line_at_once_but_not_too_many_and_numbers_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("runtime.channel.time.monotonic", lambda: now_s[0])
    made, told, counted = Channel(), Said(), [0]

    def count(*_: Any) -> None:
        counted[0] += 1

    def says(line: str = "") -> int:
        counted[0] = 0
        if line:
            told.add(line)
        send(told)
        made.read()
        return counted[0]

    with made.hearing(1, count) as end:
        send = Sender(1, end)
        assert says() == 1
        assert says() == 0, "the same again"
        assert says("a") == 1, "a line goes at once"
        assert sum(says("b") for _ in range(2 * MAX_SENT_S)) == MAX_SENT_S - 2
        now_s[0] += EVERY_S
        assert says() == 1


def test_a_full_channel_stops_nobody() -> None:
    made, told = Channel(), Said()
    with made.hearing(1, lambda *_: None) as end:
        for n in range(1000):
            told.add(f"{n}")
            Sender(1, end)(told)
