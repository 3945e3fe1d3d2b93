"""Guards the worker against forks: a process that a handler forks ends with its handler, and is no second worker.

A process that is forked on the loop has the whole worker in it: the lane that runs its handler, all other lanes, and the
connections. It may do what its handler does until that ends, and then ends too; its parent's jobs are not its own.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final, NoReturn, cast
from weakref import WeakKeyDictionary

from runtime.errors import AllRan
from runtime.jobs import LANE
from runtime.process import leave
from runtime.store.resp import disown
from runtime.worker.lanes import Lane

_guarded: Final = WeakKeyDictionary[object, tuple[str, ...]]()
_OURS: Final = (signal.SIGTERM, signal.SIGINT)  # the worker hears these


class _Masks(threading.local):
    """What each thread that forks held back before; forks do not nest."""

    before: set[int] | None = None


_masks: Final = _Masks()


def guard(owner: object, *steps: str) -> None:
    """Have what handlers fork in this process end with its handler, or when it takes one of these steps of the worker's.

    Jobs that do not fork pay nothing for it.
    """
    if not _guarded:
        # Once more, where all before are gone: that does no harm.
        os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_disarm)
    _guarded[owner] = steps


def _hold_back() -> None:
    """Hold signals back until the new process is its own: before, it would take one for the worker's, and do nothing."""
    if _masks.before is None:  # else these steps were registered twice
        _masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _OURS)


def _let_through() -> None:
    before, _masks.before = _masks.before, None
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _disarm() -> None:
    """Take the worker out of a process that a handler has forked: whatever it does next ends the process.

    Only the objects that were copied are touched: such a process may run a worker or a producer of its own, and those that
    `multiprocessing` forks never come back here.
    """
    try:
        _make_its_own()
    finally:
        _let_through()


def _make_its_own() -> None:
    lane = LANE.get()
    if not isinstance(lane, Lane):  # not a handler's doing
        return
    steps: list[tuple[object, tuple[str, ...]]] = [
        (lane, ("_error_of",)),
        (lane.ledger, ("add", "take")),
        (lane.inbox, ("put", "take")),
        *_guarded.items(),
    ]
    for owner, names in steps:
        for name in names:
            setattr(owner, name, _leave)
    disown()
    signal.set_wakeup_fd(-1)  # else the signals of this process would wake its parent's loop,
    for number, own in zip(_OURS, (signal.SIG_DFL, signal.default_int_handler), strict=True):
        signal.signal(number, own)  # and would stop a worker, not end a process


def _leave(*given: object) -> NoReturn:
    raised = (cast("BaseException", one) for one in given if issubclass(type(one), BaseException) and type(one) is not AllRan)
    leave(next(raised, None))
