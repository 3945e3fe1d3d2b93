"""Portal runs coroutines for plain code: one event loop in a thread of its own, for all threads of the process that ask.

It begins with the first call, and ends when all that came in have left, with the process at the latest. A forked process gets one
of its own, and leaves its parent's alone.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any, Final, TypeVar

from runtime.errors import ConfigError, StoreUnavailable

T = TypeVar("T")

END_S: Final = 1.0  # for the thread to close its connections at the end of the process; a guess, it takes a millisecond


class Call:
    """A coroutine that runs in the portal while a thread waits for it, and does for it what is to be done in that thread.

    Owns its task. The thread is told of each request, and of the end, through `_requests`; nothing else wakes it.
    """

    def __init__(self) -> None:
        self._requests: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._task: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        return f"<Call {self._task!r}>"

    def tell(self, request: Callable[[], object]) -> None:
        """Have the thread do something; nobody waits for it."""
        self._requests.put(request)

    async def ask(self, request: Callable[[], T]) -> T:
        """Have the thread do something, and return what that returned, or raise what it raised."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T] = loop.create_future()

        def answer(value: T | None, error: Exception | None) -> None:
            if answered.done():  # cancelled meanwhile
                return
            if error is None:
                answered.set_result(value)  # pyright: ignore[reportArgumentType]
            else:
                answered.set_exception(error)

        def run() -> None:
            try:
                value, error = request(), None
            except Exception as raised:
                value, error = None, raised
            loop.call_soon_threadsafe(answer, value, error)

        self.tell(run)
        return await answered

    def begin(self, work: Coroutine[Any, Any, Any], ended: Callable[[], None]) -> None:
        """Run the coroutine; called in the portal's loop."""

        def end(_: asyncio.Task[Any]) -> None:
            ended()
            self._requests.put(None)

        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(end)

    def wait(self, cancel: Callable[[Callable[[], None]], object]) -> Any:
        """Wait in the calling thread until the coroutine has ended, and return what it returned, or raise what it raised.

        What is raised here meanwhile, such as KeyboardInterrupt, cancels it, and is raised on when it has ended: from then on
        nothing is sent. `cancel` has a function called in the loop.
        """
        has_ended = False
        try:
            while (request := self._requests.get()) is not None:
                request()
            has_ended = True
        finally:
            if not has_ended:
                cancel(self._cancel)
                while self._requests.get() is not None:
                    pass  # nobody waits for it any more
        task, self._task = self._task, None
        if task is None or task.cancelled():
            raise StoreUnavailable("the process ends before Redis has answered: it may have been stored, once")
        return task.result()

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class Portal:
    """A thread with an event loop. Its state is changed under `_lock`: by threads that come in, and by its own.

    It ends where nobody is in it and no call is under way, so a call that has come in is always answered.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        self.users: set[object] = set()
        self.calls: int = 0
        self.thread: threading.Thread = threading.Thread(target=self._run, name="jobs-sync-producer", daemon=True)

    def __repr__(self) -> str:
        return f"<Portal of {len(self.users)}, {self.calls} calls>"

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            _forget(self)  # whoever comes now gets another one
            try:
                self.loop.run_until_complete(self._end())
            finally:
                self.loop.close()

    async def _end(self) -> None:
        """End what is under way: each call is answered, each connection closed."""
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # calls that came in last may begin meanwhile
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await self.loop.shutdown_default_executor()

    def called(self) -> None:
        """Note that a call has ended; in its thread."""
        with _lock:
            self.calls -= 1
            self._end_if_left()

    def leave(self, user: object) -> None:
        """Note that somebody has left; in its thread."""
        with _lock:
            self.users.discard(user)
            self._end_if_left()

    def _end_if_left(self) -> None:
        if not self.users and not self.calls:
            _forget(self)
            self.loop.stop()


# Taken again by a handler of signals, which may interrupt the one that has it.
_lock = threading.RLock()
_portal: Portal | None = None
_inherited: Final[list[Portal]] = []


def _entered(user: object) -> Portal:
    """Return the portal with a call of this user noted in it."""
    global _portal
    if sys.is_finalizing():  # no thread runs any more
        raise ConfigError("the process ends: nothing was sent")
    with _lock:
        portal = _portal
        if portal is None:
            portal = Portal()
            try:
                portal.thread.start()
            except RuntimeError as error:  # from Python 3.12 on, at the end of the process
                portal.loop.close()
                raise ConfigError(f"no thread to send from: {error}") from None
            _portal = portal
        portal.users.add(user)
        portal.calls += 1
        return portal


def _forget(portal: Portal) -> None:
    global _portal
    with _lock:
        if _portal is portal:
            _portal = None


def run(user: object, work: Callable[[Call], Coroutine[Any, Any, T]], *, is_last: bool = False) -> T:
    """Run a coroutine in the portal, and return what it returns; what it raises is raised.

    Args:
        user: who is in the portal from now on, until `leave`; anything that can be a key.
        work: makes the coroutine; called in the loop's thread.
        is_last: the user leaves with this call.

    Raises:
        ConfigError: an event loop runs in this thread, or the process ends.
        StoreUnavailable: the process ended meanwhile.
    """
    if asyncio._get_running_loop() is not None:  # pyright: ignore[reportPrivateUsage] -- the public one raises
        raise ConfigError("an event loop runs in this thread, and a SyncProducer would block it; hint: await Producer.send")
    portal, call = _entered(user), Call()

    def begin() -> None:
        if is_last:
            portal.users.discard(user)
        try:
            coroutine = work(call)
        except Exception as error:  # such as arguments that it does not take
            coroutine = _raising(error)
        call.begin(coroutine, portal.called)

    try:
        portal.loop.call_soon_threadsafe(begin)
    except RuntimeError:  # it has ended since
        raise ConfigError("the process ends: nothing was sent") from None
    answer: T = call.wait(portal.loop.call_soon_threadsafe)
    if is_last and _portal is not portal:
        portal.thread.join(END_S)
    return answer


async def _raising(error: Exception) -> Any:
    raise error


def leave(user: object) -> None:
    """Leave the portal, if this process has one; waits for nothing, and takes no lock: the garbage collector may call it."""
    portal = _portal
    if portal is not None:
        with contextlib.suppress(RuntimeError):  # its loop is closed
            portal.loop.call_soon_threadsafe(portal.leave, user)


def _end_with_process() -> None:
    """End the thread: whoever still waits in a daemon thread hears of it. Nothing is left to be sent: each send waits."""
    portal = _portal
    if portal is not None:
        with contextlib.suppress(RuntimeError):
            portal.loop.call_soon_threadsafe(portal.loop.stop)
        portal.thread.join(END_S)


def _after_fork() -> None:
    """Forget the parent's thread, which is not in this process. Its loop is kept: closing it would reach into the parent's."""
    global _lock, _portal
    _lock = threading.RLock()
    if _portal is not None:
        _inherited.append(_portal)
        _portal = None


atexit.register(_end_with_process)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
