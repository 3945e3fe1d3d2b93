"""From the number of failures to the seconds until the next try; no clock, no jitter of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# 2 ** 62 seconds is past any cap; clamping the exponent first keeps the power from overflowing a float.
MAX_EXPONENT = 62
MAX_CAP_S = 10 * 365 * 86400.0  # keeps due times within what a double in Lua holds exactly


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How often and how far apart a job is tried: at most `attempts` runs, exponential from `base_s` up to `cap_s`.

    Raises:
        ValueError: a number out of its range; the text names it.
    """

    base_s: float = 1.0
    cap_s: float = 600.0
    attempts: int = 8

    def __post_init__(self) -> None:
        if not 0 < self.base_s <= self.cap_s <= MAX_CAP_S:
            given = f"got base_s={self.base_s:g}, cap_s={self.cap_s:g}"
            raise ValueError(f"Backoff needs 0 < base_s <= cap_s <= {MAX_CAP_S:g} (ten years), {given}")
        if not 1 <= self.attempts <= 1_000_000:
            raise ValueError(f"Backoff needs 1 <= attempts <= 1000000, got {self.attempts}")


def ceiling_s(failures: int, policy: Backoff) -> float:
    """Return the longest wait after `failures` failed attempts: `base_s` doubled each time, never above `cap_s`."""
    exponent = min(max(failures, 1) - 1, MAX_EXPONENT)
    return min(policy.cap_s, policy.base_s * 2.0**exponent)


def delay_s(failures: int, policy: Backoff, jitter: Callable[[], float]) -> float:
    """Return the wait after `failures` failed attempts, uniform in [0, ceiling].

    Full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. `jitter` gives [0, 1).
    """
    return jitter() * ceiling_s(failures, policy)
