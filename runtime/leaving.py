"""The ends of a process: its exit statuses, and two ways out that wait for nothing of a handler's.

`leave` is the interpreter's own end, with hooks and finalizers, for a process in which all is done; they are given LEFT_S.
`Leaving.end_now` is `os._exit`, at a deadline, or where the loop can only be abandoned: a thread hangs, a handler swallows its
cancel, standard error is not read. The two cannot be one: the first would wait for what the second leaves behind, and the
second runs no hooks. Leases expire by themselves, so that a process may end at any moment without losing a job.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import Final, NoReturn

from runtime.errors import JobsError, LifespanFailed, StoreUnavailable

log: Final = logging.getLogger("runtime")

# Exit statuses, as docs/operate.md lists them. 1 is Python's own for an error that nothing caught, 2 argparse's for bad usage,
# 130 a shell's for what SIGINT has ended (128 + 2); 3 and 4 are ours.
CLEAN: Final = 0
FAILED: Final = 1  # a command found a failure, or a lifespan of the user's could not begin
CRASHED: Final = 1  # a worker whose own machinery failed
BAD_USAGE: Final = 2  # or settings, or handlers, that cannot work
NO_REDIS: Final = 3
HARD_DEADLINE: Final = 4
INTERRUPTED: Final = 130

CRASH_S: Final = 2.5  # for handlers to clean up after a crash; a guess: half of the 5 s that docs/operate.md promises
LOCKED_S: Final = 4.0  # then without Python, for a handler that holds the interpreter's lock; a guess below the same 5 s
LAST_WORDS_S: Final = 0.5  # for the last line of the log, and for what must end before this process; a guess
LEFT_S: Final = 2.0  # for tasks, hooks and finalizers that handlers have left, when all is done; a guess
LEFT: Final = "all is done, but something that a handler has left behind does not end"


def status_of(error: JobsError) -> int:
    """Return the exit status of a command that this error has ended."""
    if isinstance(error, LifespanFailed):
        return FAILED
    return NO_REDIS if isinstance(error, StoreUnavailable) else BAD_USAGE


class Leaving:
    """Owns the deadlines of this process. `before` ends what must not outlive it, such as the embedded server."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._lock = threading.Lock()
        self._has_crashed = False
        self._is_told = False
        self._unlogged: BaseException | None = None
        self._status: int | None = None
        self._stderr = sys.stderr
        self._nowhere = os.open(os.devnull, os.O_WRONLY)  # opened early: a process may crash for want of descriptors

    def __repr__(self) -> str:
        return f"<Leaving {'soon' if self._has_crashed else 'not yet'}>"

    def crashed(self, error: BaseException) -> None:
        """Log a crash, once, and have the process end within CRASH_S; from any thread."""
        self.end_soon()
        with self._lock:
            is_told, self._is_told = self._is_told, True
        if not is_told:  # what fails because of the first crash brings no news
            self._log_crash(error)

    def _log_crash(self, error: BaseException) -> None:
        """Log the traceback; print it where the log fails, or is silent since a module of handlers has configured it."""
        self._unlogged = error  # first: should the log hang, `end_now` prints it from another thread
        with contextlib.suppress(BaseException):  # a filter or handler of the user's may raise anything, exit, or hang
            log.critical("the worker has crashed: leaving, leases will expire by themselves", exc_info=error)
            if log.isEnabledFor(logging.CRITICAL) and log.hasHandlers():
                self._unlogged = None
        self._print_unlogged()

    def _print_unlogged(self) -> None:
        error, self._unlogged = self._unlogged, None
        if error is not None:
            self.write("".join(traceback.format_exception(error)))

    def write(self, text: str) -> None:
        """Write a line to the standard error that there was at the start; handlers may have closed or replaced `sys.stderr`."""
        try:
            print(text, file=self._stderr, flush=True)
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.write(2, f"{text}\n".encode(errors="backslashreplace"))

    def set_status(self, status: int) -> None:
        """Note that all is done: whatever ends this process from now on, it is with this status, but for a crash before."""
        with self._lock:
            if not self._has_crashed:
                self._status = status

    @contextlib.contextmanager
    def bounded(self, status: int) -> Generator[None]:
        """Have this process end with `status` when the block takes longer than LEFT_S.

        Raises:
            RuntimeError: no thread can be started.
        """
        timer = self.end_after(LEFT_S, status, LEFT)
        try:
            yield
        finally:
            timer.cancel()

    def end_soon(self) -> None:
        """Have this process end with the status of a crash, within CRASH_S, whatever it does until then; may be repeated."""
        with self._lock:
            if self._has_crashed:
                return
            self._has_crashed = True
        try:
            faulthandler.dump_traceback_later(LOCKED_S, exit=True, file=self._nowhere)
            self.end_after(CRASH_S, CRASHED, "the worker has crashed and does not end by itself, leases will expire")
        except RuntimeError:  # no thread can be started any more
            os._exit(CRASHED)

    def end_after(self, wait_s: float, status: int, why: str) -> threading.Timer:
        """Have this process end with `status` in `wait_s` seconds, unless the timer is cancelled.

        Raises:
            RuntimeError: no thread can be started.
        """
        timer = threading.Timer(wait_s, self.end_now, (status, why))
        timer.daemon = True
        timer.start()
        return timer

    def end_now(self, status: int, why: str = "", wait_s: float = LAST_WORDS_S) -> NoReturn:
        """End this process with `status`, or with the one that was set when all was done; `why` is the last line of the log.

        What is still to be done may hang, so it is done by threads, which have `wait_s` seconds together.
        """
        try:
            last = [
                threading.Thread(target=work, daemon=True)
                for work in (self._before, self._print_unlogged, lambda: _close_log(why))
            ]
            for thread in last:
                thread.start()
            end_s = time.monotonic() + wait_s
            for thread in last:
                thread.join(max(0.0, end_s - time.monotonic()))
        finally:
            os._exit(status if self._status is None else self._status)


def leave(status: int) -> NoReturn:
    """End this process with `status`. Threads that do not end and hooks that hang, such as a handler's, do not keep it."""
    for stream in (sys.stdout, sys.stderr):  # before the timer: a pager that reads slowly must get all that was printed
        with contextlib.suppress(Exception):  # closed, its reader has gone, or it is a handler's own
            stream.flush()
    with contextlib.suppress(RuntimeError):  # no thread can be started
        timer = threading.Timer(LEFT_S, os._exit, (status,))
        timer.daemon = True
        timer.start()
    if has_threads():
        with contextlib.suppress(Exception):
            logging.shutdown()
        os._exit(status)
    sys.exit(status)


def has_threads() -> bool:
    """Return whether a thread runs that would keep the process, such as a handler's that does not end."""
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


def _close_log(why: str) -> None:
    if why:
        log.critical("%s: leaving at once", why)
    logging.shutdown()
