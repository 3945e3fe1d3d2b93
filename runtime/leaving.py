"""The ends of a process that wait for nothing that runs in it: after a crash of ours, at the hard deadline, when all is done.

Threads that hang, handlers that swallow their cancel, hooks of an orderly exit, a standard error that nobody reads: none may keep
a process that does no work any more. Leases expire by themselves, so leaving is always safe.
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

from runtime.errors import JobsError, StoreUnavailable

log = logging.getLogger("runtime")

# Exit statuses, as docs/operate.md lists them. 1 is Python's own for an error that nothing caught, 2 argparse's for bad usage,
# 130 a shell's for what SIGINT has ended (128 + 2); 3 and 4 are ours.
CLEAN: Final = 0
FAILED: Final = 1  # a command found a failure
CRASHED: Final = 1  # a worker whose own machinery failed
BAD_USAGE: Final = 2  # or settings, or handlers, that cannot work
NO_REDIS: Final = 3
HARD_DEADLINE: Final = 4
INTERRUPTED: Final = 130
CRASH_S: Final = 2.5  # a guess: so long may handlers clean up after a crash; 5 s are promised
LOCKED_S: Final = 4.0  # then without Python's help, should a handler hold the interpreter's lock
WORDS_S: Final = 0.5  # for last words, and for what must end before us
LEFT_S: Final = 2.0  # a guess: so long may what handlers have left behind, tasks or hooks, take to end when all is done
LEFT: Final = "all is done, but something that a handler has left behind does not end"


def status_of(error: JobsError) -> int:
    """Return the exit status of a command that this error has ended."""
    return NO_REDIS if isinstance(error, StoreUnavailable) else BAD_USAGE


class Leaving:
    """Owns the end of this process, once it must come. `before` ends what must not outlive it, such as the embedded server."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._lock = threading.Lock()
        self._is_armed = False
        self._has_said = False
        self._untold: BaseException | None = None
        self._status: int | None = None
        self._stderr = sys.stderr
        self._nowhere = os.open(os.devnull, os.O_WRONLY)  # opened early: a process may crash for want of descriptors

    def __repr__(self) -> str:
        return f"<Leaving {'soon' if self._is_armed else 'not yet'}>"

    def crashed(self, error: BaseException) -> None:
        """Say what has crashed, once, and see to it that the process ends in time; from any thread."""
        self.soon()
        with self._lock:
            has_said, self._has_said = self._has_said, True
        if not has_said:  # what ends because of it crashes too, and says nothing new
            self._say_crash(error)

    def _say_crash(self, error: BaseException) -> None:
        """Log the traceback; print it where the log fails, or is silent since a module of handlers has configured it."""
        self._untold = error
        with contextlib.suppress(BaseException):  # a filter or a handler of somebody's may raise anything, exit, or hang
            log.critical("the worker has crashed: leaving, leases will expire by themselves", exc_info=error)
            if log.isEnabledFor(logging.CRITICAL) and log.hasHandlers():
                self._untold = None
        self._say_untold()

    def _say_untold(self) -> None:
        error, self._untold = self._untold, None
        if error is not None:
            self.tell("".join(traceback.format_exception(error)))

    def tell(self, text: str) -> None:
        """Write a line to the standard error that there was at the start; handlers may have closed or replaced `sys.stderr`."""
        try:
            print(text, file=self._stderr, flush=True)
        except (OSError, ValueError):
            with contextlib.suppress(OSError):
                os.write(2, f"{text}\n".encode(errors="backslashreplace"))

    def done(self, status: int) -> None:
        """Note that all is done: whatever ends this process from now on, it is with this status."""
        with self._lock:
            if not self._is_armed:
                self._status = status

    @contextlib.contextmanager
    def left(self, status: int) -> Generator[None]:
        """Have this process end with `status` when the block takes longer than what is left behind may.

        Raises:
            RuntimeError: no thread can be started.
        """
        timer = self.after(LEFT_S, status, LEFT)
        try:
            yield
        finally:
            timer.cancel()

    def soon(self) -> None:
        """Have this process end with the status of a crash, within CRASH_S, whatever it does until then."""
        with self._lock:
            if self._is_armed:
                return
            self._is_armed = True
        try:
            faulthandler.dump_traceback_later(LOCKED_S, exit=True, file=self._nowhere)
            self.after(CRASH_S, CRASHED, "the worker has crashed and does not end by itself, leases will expire")
        except RuntimeError:  # no thread can be started any more
            os._exit(CRASHED)

    def after(self, wait_s: float, status: int, why: str) -> threading.Timer:
        """Have this process end with `status` when so much time is over.

        Raises:
            RuntimeError: no thread can be started.
        """
        timer = threading.Timer(wait_s, self._at_once, (status, why))
        timer.daemon = True
        timer.start()
        return timer

    def _at_once(self, status: int, why: str) -> None:
        """End the process. What is still to be done may hang: it is done by threads that are not waited for long."""
        try:
            last = [
                threading.Thread(target=work, daemon=True) for work in (self._before, self._say_untold, lambda: _say_last(why))
            ]
            for thread in last:
                thread.start()
            end_s = time.monotonic() + WORDS_S
            for thread in last:
                thread.join(max(0.0, end_s - time.monotonic()))
        finally:
            os._exit(status if self._status is None else self._status)


def leave(status: int) -> NoReturn:
    """End this process with `status`. Threads that do not end and hooks that hang, such as a handler's, do not keep it."""
    for stream in (sys.stdout, sys.stderr):
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
    """Return whether a thread runs that would keep the process: such as a handler's that does not end."""
    return any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread())


def _say_last(why: str) -> None:
    log.critical("%s: leaving at once", why)
    logging.shutdown()
