"""How much may be done in a time, in this process: turns at a steady pace, and a bound on each hour."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Final

from handlers.kit.sections import Sender, Smtp
from runtime import Dead, Snooze

HOUR_S: Final = 3600.0
STEP_S: Final = 60.0  # what was sent is counted by the minute, so an hour takes 61 numbers, whatever the bound


class Pace:
    """Hands out turns, `per_second` of them, as far apart as that says; without it at once."""

    def __init__(self, per_second: float | None) -> None:
        self._gap_s = 1 / per_second if per_second else 0.0
        self._next_s = 0.0

    async def turn(self, patience_s: float, subject: str) -> None:
        """Return when it is the caller's turn.

        Raises:
            Snooze: that is later than `patience_s` from now; `rate-limited`. No turn was taken.
        """
        if not self._gap_s:
            return
        now_s = asyncio.get_running_loop().time()
        at_s = max(now_s, self._next_s)
        if at_s - now_s > patience_s:
            raise Snooze(at_s - now_s, f"rate-limited: {subject}: more is to be sent than `per_second` allows")
        self._next_s = at_s + self._gap_s
        await asyncio.sleep(at_s - now_s)


class Hour:
    """Counts what was taken in the last hour; whatever the hour, no more than its bound was."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, int]] = deque()

    def take(self, count: int, bound: int, now_s: float) -> float:
        """Return 0 if so many more fit, which are taken; else in how many seconds they will."""
        step_s = now_s // STEP_S * STEP_S
        while self._steps and self._steps[0][0] + STEP_S + HOUR_S <= now_s:
            self._steps.popleft()
        excess = sum(taken for _, taken in self._steps) + count - bound
        for begun_s, taken in self._steps:
            if excess <= 0:
                break
            excess -= taken
            if excess <= 0:
                return begun_s + STEP_S + HOUR_S - now_s
        self._add(step_s, count)
        return 0.0

    def give_back(self, count: int) -> None:
        """Return what was taken and not used, of the latest."""
        while count > 0 and self._steps:
            begun_s, taken = self._steps.pop()
            if taken > count:
                self._steps.append((begun_s, taken - count))
            count -= taken

    def _add(self, step_s: float, count: int) -> None:
        if self._steps and self._steps[-1][0] == step_s:
            count += self._steps.pop()[1]
        self._steps.append((step_s, count))


def rate_of(sender: Sender, smtp: Smtp, per_second: float | None) -> float:
    """Return how many mails a second all bounds together allow; infinity where there is none."""
    bounds = (per_second, smtp.per_second, sender.per_hour and sender.per_hour / HOUR_S)
    return min((bound for bound in bounds if bound), default=math.inf)


_hours: dict[str, Hour] = {}


def reserve(alias: str, sender: Sender, count: int, now_s: float) -> None:
    """Count so many recipients for the sender's `per_hour`, which is of this process.

    Raises:
        Snooze: they do not fit into this hour; `rate-limited`.
        Dead: they fit into none; `recipient-refused`.
    """
    if sender.per_hour is None:
        return
    if count > sender.per_hour:
        raise Dead(f"{count} recipients are more than `per_hour` of senders.{alias} allows", "recipient-refused")
    wait_s = _hours.setdefault(alias, Hour()).take(count, sender.per_hour, now_s)
    if wait_s:
        raise Snooze(wait_s, f"rate-limited: senders.{alias}: `per_hour` is used up")


def give_back(alias: str, count: int) -> None:
    """Take back recipients to whom nothing was sent."""
    if alias in _hours:
        _hours[alias].give_back(count)
