"""What a process of ours asks of its kernel (Linux; elsewhere that does nothing), and how one that a handler has forked ends."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

# From linux/prctl.h.
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38

STATM: Final = Path("/proc/self/statm")


@cache
def _libc() -> Any:
    return ctypes.CDLL(None)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        _libc().prctl(option, value, 0, 0, 0)


def die_with(parent: int, by: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process when the thread of `parent` that started it ends."""
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, by)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), by)


def hide_memory() -> None:
    """Let no other process of this user read this one's memory and environment, in which passwords are; it dumps no core."""
    _prctl(PR_SET_DUMPABLE, 0)


def give_up_privileges() -> None:
    """Let nothing that this process starts have more rights than it has, as `sudo` would; and leave no core."""
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def memory_bytes() -> tuple[int, int]:
    """Return the size of this process and how much of it is resident; 0 where the system does not say."""
    if sys.platform != "linux":
        return 0, 0
    size, resident = STATM.read_text("ascii").split()[:2]
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()


def end_fork(here: int, error: BaseException | None = None) -> None:
    """End this process at once if it is not `here`, but one that a handler has forked: what comes next is its parent's to do."""
    if os.getpid() != here:
        leave(error)


def leave(error: BaseException | None) -> NoReturn:
    """End this process without any clean-up, with the status that Python gives one in which this was raised."""
    status = 0
    if error is not None:
        code = error.code if type(error) is SystemExit else 1
        status = code & 0xFF if isinstance(code, int) else int(code is not None)
    os._exit(status)
