"""What a handler forks is no worker.

A process that is forked on the loop has the whole worker in it: the lane that runs its handler, all other lanes, and the
connections. It may do what its handler does until that ends, and then ends too; its parent's jobs are none of its business.
"""

from __future__ import annotations

import os
import signal
from typing import Final, NoReturn, cast
from weakref import WeakKeyDictionary

from runtime.jobs import BEGINS
from runtime.lanes import Lane
from runtime.line import disown
from runtime.offload import leave

_guarded: Final = WeakKeyDictionary[object, tuple[str, ...]]()


def guard(owner: object, *steps: str) -> None:
    """Have what handlers fork in this process end with its handler, or when it takes one of these steps of the worker's.

    It costs jobs that do not fork nothing.
    """
    if not _guarded:
        os.register_at_fork(after_in_child=_disarm)  # once more, where all before are gone: that does no harm
    _guarded[owner] = steps


def _disarm() -> None:
    """Take the worker out of a process that a handler has forked: whatever it does next ends the process.

    Only the objects that were copied are touched: such a process may run a worker or a producer of its own, and those that
    `multiprocessing` forks never come back here.
    """
    lane = getattr(BEGINS.get(), "__self__", None)
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
    for number, own in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, own)  # and would stop a worker, not end a process


def _leave(*given: object) -> NoReturn:
    leave(next((cast("BaseException", one) for one in given if issubclass(type(one), BaseException)), None))
