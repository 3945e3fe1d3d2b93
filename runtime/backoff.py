"""Backoff: how many seconds a job waits after its n-th failure. No clock, and chance is an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

MAX_EXPONENT: Final = 62  # 2**62 seconds are past any cap; without a bound, the power would overflow a float
MAX_CAP_S: Final = 10 * 365 * 86400.0  # ten years, a guess: due times stay far within what a double in Lua holds exactly
MAX_ATTEMPTS: Final = 1_000_000  # a guess: beyond any use; a number that large is a mistake


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How often and how far apart a job is tried.

    After the n-th failure it waits between 0 and `base_s` · 2**(n - 1) seconds, at random, but never longer than `cap_s`.

    Args:
        base_s: seconds, more than 0: the longest wait after the first failure.
        cap_s: seconds, from `base_s` to ten years: the longest wait of all.
        attempts: how often the job is run at most, 1 to 1,000,000; a message may say otherwise.

    Raises:
        ValueError: a number is out of its range; the text names it.
    """

    base_s: float = 1.0
    cap_s: float = 600.0
    attempts: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.base_s <= self.cap_s <= MAX_CAP_S:
            given = f"got base_s={self.base_s:g}, cap_s={self.cap_s:g}"
            raise ValueError(f"Backoff must have 0 < base_s <= cap_s <= {MAX_CAP_S:g} (ten years), {given}")
        if not 1 <= self.attempts <= MAX_ATTEMPTS:
            raise ValueError(f"attempts of Backoff must be from 1 to {MAX_ATTEMPTS}, got {self.attempts}")


def ceiling_s(failures: int, policy: Backoff) -> float:
    """Return the longest wait after `failures` failed attempts: `base_s` doubled each time, never above `cap_s`."""
    exponent = min(max(failures, 1) - 1, MAX_EXPONENT)
    return min(policy.cap_s, policy.base_s * 2.0**exponent)


def delay_s(failures: int, policy: Backoff, jitter: Callable[[], float]) -> float:
    """Return the wait after `failures` failed attempts, uniform in [0, ceiling].

    Full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. `jitter()` returns a number in [0, 1).
    """
    return jitter() * ceiling_s(failures, policy)
