"""Waiter waits for results, for all tasks of one event loop: over one subscription, and without asking again and again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from contextvars import Context
from itertools import chain
from random import random
from typing import Any, Final, TypeVar, cast

from runtime.backoff import Backoff, delay_s
from runtime.errors import ConfigError, StoreUnavailable
from runtime.results import Result
from runtime.store.results import READ_AT_ONCE, ResultStore

T = TypeVar("T")

AGAIN: Final = Backoff(base_s=0.05, cap_s=2.0)  # a guess: soon enough for one who waits, and little beside what a server does
LETTERS_OF_NEWS: Final = 1000  # a guess: among so many of the newest is one that was written a moment ago


class Waiter:
    """Owns those who wait, by job, and three tasks: one listens, one reads results, one looks for jobs that had none in time.

    A result that is there before the subscription stands is read when it does; one that comes later is told of. So each is read
    once; and once more whenever the server has answered that it is still there, since what is published may be lost.
    """

    def __init__(self, store: ResultStore) -> None:
        self._store = store
        self._waiting: dict[str, list[asyncio.Future[Result]]] = {}
        self._to_read: dict[str, bool] = {}  # the jobs to be read, and whether there was news of them
        self._late: dict[str, list[asyncio.Future[Result | str]]] = {}
        self._somebody, self._something, self._somebody_late = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._is_listening = False
        self._failures = 0
        self.is_over: bool = False
        # Not in the context of the task that happens to wait first: it would be kept as long as this one.
        self._task = asyncio.get_running_loop().create_task(self._run(), name="results", context=Context())
        self._task.add_done_callback(self._ended)
        _end_with_loop(self._task)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values())) + sum(map(len, self._late.values()))

    def __repr__(self) -> str:
        return f"<Waiter {len(self)} wait, {'listens' if self._is_listening else 'listens to nothing'}>"

    def end(self) -> None:
        """End soon; all that still wait raise. May be repeated."""
        self.is_over = True
        self._task.cancel()

    async def close(self) -> None:
        """End, and wait until the connections are closed."""
        self.end()
        await asyncio.wait([self._task])

    async def result(self, job_id: str, timeout_s: float) -> Result | str:
        """Return what a job has answered or died of; where nothing came in time, what is known of the job then, in words.

        Raises:
            ConfigError: the waiter has ended.
            StoreUnavailable: nothing came in time, and Redis did not say where the job is.
        """
        if self.is_over:
            raise _closed()
        waiting: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, []).append(waiting)
        self._somebody.set()
        if self._is_listening:
            self._read_soon(job_id)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError:
            pass  # nothing came in time: below, it is found out where the job is
        finally:
            _leave(self._waiting, job_id, waiting)
        if self.is_over:
            raise _closed()
        late: asyncio.Future[Result | str] = asyncio.get_running_loop().create_future()
        self._late.setdefault(job_id, []).append(late)
        self._somebody_late.set()
        try:
            return await late
        finally:
            _leave(self._late, job_id, late)

    # --- the tasks ---------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for work in (self._listen(), self._read(), self._look()):
                    _end_with_loop(group.create_task(work))
        finally:
            await self._store.close()

    async def _listen(self) -> None:
        """Be subscribed as long as somebody waits, and a moment longer."""
        while True:
            await self._somebody.wait()
            try:
                await self._store.listen(self._tell, self._stands, self._is_needed)
            except StoreUnavailable:
                self._failures += 1
                self._is_listening = False
                self._read_all()  # where publishing or listening is not allowed, this is how results come
                await asyncio.sleep(delay_s(self._failures, AGAIN, random))
            self._is_listening = False

    def _is_needed(self) -> bool:
        if not self._waiting:
            self._somebody.clear()
        return bool(self._waiting)

    def _stands(self) -> None:
        self._is_listening, self._failures = True, 0
        self._read_all()

    def _tell(self, ids: list[str]) -> None:
        for job_id in ids:
            if job_id in self._waiting:
                self._read_soon(job_id, is_news=True)

    def _read_all(self) -> None:
        for job_id in self._waiting:
            self._read_soon(job_id)

    def _read_soon(self, job_id: str, is_news: bool = False) -> None:
        self._to_read[job_id] = is_news or self._to_read.get(job_id, False)
        self._something.set()

    async def _read(self) -> None:
        failures = 0
        while True:
            await self._something.wait()
            ids = [job_id for job_id in self._to_read if job_id in self._waiting][:READ_AT_ONCE]
            if not ids:
                self._something.clear()
                self._to_read.clear()
                continue
            news = {job_id for job_id in ids if self._to_read.pop(job_id)}
            try:
                found = await self._store.read(ids)
                failures = 0
            except StoreUnavailable:
                failures += 1
                for job_id in ids:
                    self._read_soon(job_id, is_news=job_id in news)
                await asyncio.sleep(delay_s(failures, AGAIN, random))
                continue
            self._answer(found)
            await self._look_for_letters(news - found.keys())

    async def _look_for_letters(self, ids: set[str]) -> None:
        """Answer how these died, of which there is news and no result: cancelled by hand, so that no worker wrote it.

        Once: letters may be large, and all others wait behind this. What is not found now is looked for when its time is over.
        """
        if ids:
            with contextlib.suppress(StoreUnavailable):
                self._answer(await self._store.letters(ids, LETTERS_OF_NEWS))

    def _answer(self, found: dict[str, Result]) -> None:
        for job_id, result in found.items():
            for waiting in self._waiting.pop(job_id, ()):
                if not waiting.done():
                    waiting.set_result(result)

    async def _look(self) -> None:
        """Answer those whose time is over: all that came meanwhile by one look, which may read much."""
        while True:
            await self._somebody_late.wait()
            self._somebody_late.clear()
            asked = {job_id: [one for one in late if not one.done()] for job_id, late in self._late.items()}
            try:
                found = await self._store.look(asked.keys())
            except StoreUnavailable as error:
                _fail(asked, StoreUnavailable(*error.args))
                continue
            for job_id, several in asked.items():
                for late in several:
                    if not late.done():
                        late.set_result(found[job_id])

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Raise to all that wait: the task is gone, by `end`, with its loop, or since all tasks were cancelled."""
        self.is_over = True
        trouble = None if task.cancelled() else task.exception()
        if isinstance(trouble, ExceptionGroup):  # of the group of tasks: the others were cancelled for the first
            trouble = cast("ExceptionGroup[Exception]", trouble).exceptions[0]
        error = _closed()
        if trouble is not None:  # a URL that is none, or a bug of the runtime
            error = trouble if isinstance(trouble, ConfigError) else RuntimeError(f"waiting for results has failed: {trouble!r}")
        _fail(self._waiting, error)
        _fail(self._late, error)


def _end_with_loop(task: asyncio.Task[None]) -> None:
    """Let asyncio not warn of a task that ends with its loop, where that is closed by hand."""
    task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]


def _fail(waiting: Mapping[str, Sequence[asyncio.Future[Any]]], error: Exception) -> None:
    """Raise to all of them: one error for each, since one that many tasks raise keeps the frames of them all."""
    for one in chain.from_iterable(waiting.values()):
        if not one.done():
            one.set_exception(type(error)(*error.args))


def _closed() -> ConfigError:
    return ConfigError("this Producer was closed, or its task cancelled, while a result was waited for")


def _leave(waiting: dict[str, list[asyncio.Future[T]]], job_id: str, one: asyncio.Future[T]) -> None:
    several = waiting.get(job_id, [])
    if one in several:
        several.remove(one)
    if not several:
        waiting.pop(job_id, None)
