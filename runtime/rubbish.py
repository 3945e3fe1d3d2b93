"""Rubbish sets the garbage collector's thresholds, and collects everything when the process has grown.

Python counts objects, and a worker makes many that are no garbage: those of each fetch and flush would be looked at again and
again. But what handlers leave in cycles may be few objects of megabytes. So young objects are collected nearly as often as by
default, which is cheap and bounds what a burst can leave, and all objects when the memory of the process has grown.

A module that sets thresholds of its own, or switches the collector off, is left alone.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable
from typing import Final

# Young objects: measured; a drain costs what it did with 50,000, and half a megabyte in each cycle ends at 0.4 GB, as with 700,
# Python's own. The second and third: guesses; all objects are collected by growth, where the system tells a process's memory.
THRESHOLDS: Final = (800, 20, 50)
GROWTH_BYTES: Final = 64 * 1024 * 1024  # a guess: less is not worth a look at all objects
GROWTH_PART: Final = 0.25  # as Python's own rule for its oldest generation
PAUSE_PART: Final = 20  # times as long as the last collection took: at most 5 % of the time is spent collecting; a guess
STATM: Final = "/proc/self/statm"
_PYTHONS: Final = gc.get_threshold()  # before a module of handlers can have changed them


class Rubbish:
    """Owns the thresholds of the collector, unless a module of handlers has set them. `clock` and `resident` give s and bytes."""

    def __init__(self, clock: Callable[[], float], resident: Callable[[], int]) -> None:
        self._clock = clock
        self._resident = resident
        self._floor_bytes = 0
        self._next_s = float("inf")

    def __repr__(self) -> str:
        return f"<Rubbish of {self._floor_bytes >> 20} MB and what has come since>"

    def begin(self) -> None:
        """Freeze what is loaded by now, so that it is never looked at, and set the thresholds; to be called once."""
        gc.collect()  # else the garbage of the imports would be frozen too
        gc.freeze()
        if gc.isenabled() and gc.get_threshold() == _PYTHONS:
            gc.set_threshold(*THRESHOLDS)
            self._floor_bytes, self._next_s = self._resident(), 0.0

    def look(self) -> None:
        """Collect everything if memory has grown since the last time. Cheap otherwise: it may be called often."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        resident_bytes = self._resident()
        if resident_bytes < self._floor_bytes:
            self._floor_bytes = resident_bytes
        elif resident_bytes > self._floor_bytes * (1 + GROWTH_PART) + GROWTH_BYTES and gc.isenabled():
            gc.collect()
            took_s = self._clock() - now_s
            self._floor_bytes, self._next_s = self._resident(), now_s + (1 + PAUSE_PART) * took_s


def resident_reader() -> Callable[[], int]:
    """Return a function for the resident bytes of this process, 0 where the system does not tell. It owns a file descriptor."""
    with contextlib.suppress(OSError):
        descriptor, page_bytes = os.open(STATM, os.O_RDONLY | os.O_CLOEXEC), os.sysconf("SC_PAGE_SIZE")

        def read() -> int:
            try:
                return int(os.pread(descriptor, 100, 0).split()[1]) * page_bytes
            except (OSError, ValueError, IndexError):  # a handler has closed it, and another file has its number now
                return 0

        return read
    return lambda: 0
