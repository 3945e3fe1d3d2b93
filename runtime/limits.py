"""Limits: how many jobs of a type, or of a group of it, may run at once, and how many may start in a time. Pure.

Rates follow the generic cell rate algorithm (GCRA; ITU-T I.371): one number per gate says when its next token comes.
"""

from __future__ import annotations

import math
import re
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from runtime.errors import ConfigError

MAX_LIMIT: Final = 1_000_000  # a guess: more than run at once anywhere
MAX_RATE: Final = 1_000_000  # starts in a period; a guess: more than one Redis hands out in a second
MAX_PERIOD_MS: Final = 31 * 24 * 3_600_000  # a guess: a month, the longest period that providers count by
# How much may start at once: what falls due in this time (a worker looks every few ms), and a twentieth of the rate at most: no
# period sees more than the rate, and a loaded gate still comes to 95 % of it (measured: 979 to 982 in 10 s at 100/s).
BURST_MS: Final = 25
BURST_PART: Final = 20
_RATE: Final = re.compile(r"([0-9]{1,7})/([0-9]{0,9})(s|m|h|d)(?![\s\S])")
_PERIODS_MS: Final = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_EXAMPLE: Final = "'100/m', '10/s' or '5/30s'"


class Rate(msgspec.Struct, frozen=True):
    """At most `n` starts in any period of `period_ms`, by the server's clock."""

    n: int
    period_ms: int

    @property
    def burst(self) -> int:
        """How many may start at once, after a while without any."""
        return max(1, min(1 + self.n * BURST_MS // self.period_ms, self.n // BURST_PART))

    @property
    def interval_ms(self) -> float:
        """The time from one token to the next: with the burst at its begin, a period has no more than `n`."""
        return self.period_ms / (self.n - self.burst + 1)

    def wait_ms(self, tat_us: int, now_us: int) -> int:
        """Return in how many ms the next token comes, 0 where one is there; the TAT as `serve` keeps it, in µs."""
        interval_us = 1000 * self.interval_ms
        return max(0, math.ceil(min(tat_us - now_us - (self.burst - 1) * interval_us, interval_us) / 1000))

    def __str__(self) -> str:
        unit = next(unit for unit in "dhms" if self.period_ms % _PERIODS_MS[unit] == 0)
        times = self.period_ms // _PERIODS_MS[unit]
        return f"{self.n}/{times if times > 1 else ''}{unit}"


class Limits(msgspec.Struct, frozen=True):
    """What bounds the jobs of a type, and each group of it; None is no bound."""

    limit: int | None = None
    rate: Rate | None = None
    group_limit: int | None = None
    group_rate: Rate | None = None

    @property
    def has_any(self) -> bool:
        """Whether anything is bounded."""
        return self != NO_LIMITS

    @property
    def by_group(self) -> bool:
        """Whether groups are bounded, each by itself."""
        return self.group_limit is not None or self.group_rate is not None

    @property
    def told(self) -> dict[str, int | str]:
        """What is bounded, by name as people write it."""
        named = (("limit", self.limit), ("rate", self.rate), ("group_limit", self.group_limit), ("group_rate", self.group_rate))
        return {name: str(value) if isinstance(value, Rate) else value for name, value in named if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self.told.items()) or "none"


NO_LIMITS: Final = Limits()
FIELDS: Final = Limits.__struct_fields__


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """What was ordered at run time in place of the code's limits: unset leaves the code's, None takes the bound away."""

    limit: int | UnsetType | None = UNSET
    rate: Rate | UnsetType | None = UNSET
    group_limit: int | UnsetType | None = UNSET
    group_rate: Rate | UnsetType | None = UNSET

    def over(self, limits: Limits) -> Limits:
        """Return the limits that hold."""
        return msgspec.structs.replace(limits, **self._set())

    @property
    def told(self) -> dict[str, int | str | None]:
        """What is set, by name as people write it."""
        return {name: str(value) if isinstance(value, Rate) else value for name, value in self._set().items()}

    def text(self) -> str:
        """Return it as the hash `control` has it: a JSON object of what is set."""
        return msgspec.json.encode(self.told).decode()

    def _set(self) -> dict[str, Any]:
        return {name: value for name in FIELDS if (value := getattr(self, name)) is not UNSET}


def parse_rate(text: str, name: str = "rate") -> Rate:
    """Return the rate that a text is: a number, a slash, and a period of `s`, `m`, `h` or `d`, or of several of them.

    Raises:
        ConfigError: it is none; the text begins with `name`.
    """
    found = _RATE.match(text) if isinstance(text, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]
    if found is None:
        raise ConfigError(f"{name} must be a number of starts in a time, such as {_EXAMPLE}, got {text!r}")
    n, times, unit = int(found[1]), int(found[2] or 1), found[3]
    period_ms = times * _PERIODS_MS[unit]
    if not 1 <= n <= MAX_RATE:
        raise ConfigError(f"{name} must be between 1 and {MAX_RATE:,} starts in a time, got {text!r}")
    if not 1 <= period_ms <= MAX_PERIOD_MS:
        raise ConfigError(f"{name} must be for a time between 1 s and {MAX_PERIOD_MS // _PERIODS_MS['d']} days, got {text!r}")
    return Rate(n, period_ms)


def limits_of(
    limit: int | None = None, rate: str | None = None, group_limit: int | None = None, group_rate: str | None = None
) -> Limits:
    """Return the limits that these are; see `handler`.

    Raises:
        ConfigError: one is out of its range; the text names it.
    """
    return override_of({"limit": limit, "rate": rate, "group_limit": group_limit, "group_rate": group_rate}).over(NO_LIMITS)


def override_of(told: object) -> Override:
    """Return what an object of names and values orders; a rate is a text.

    Raises:
        ConfigError: it is no such object, a name is unknown or a value out of its range; the text names it.
    """
    if not isinstance(told, dict):
        raise ConfigError(f"limits must be an object with some of {', '.join(FIELDS)}, got {_shown(told)}")
    found: dict[str, Any] = {}
    for name, value in told.items():  # pyright: ignore[reportUnknownVariableType]
        if name not in FIELDS:
            raise ConfigError(f"unknown limit {_shown(name)}; there are {', '.join(FIELDS)}")  # pyright: ignore[reportUnknownArgumentType]
        if value is None:
            found[name] = None
        elif name in ("limit", "group_limit"):
            found[name] = _checked_limit(value, name)  # pyright: ignore[reportUnknownArgumentType]
        else:
            found[name] = parse_rate(value, name)  # pyright: ignore[reportUnknownArgumentType]
    return Override(**found)


def _checked_limit(value: object, name: str) -> int:
    if type(value) is not int or not 1 <= value <= MAX_LIMIT:
        hint = "; hint: `pause` keeps all of them from starting" if value == 0 else ""
        raise ConfigError(f"{name} must be a whole number between 1 and {MAX_LIMIT:,}, got {_shown(value)}{hint}")
    return value


def _shown(value: object) -> str:
    return repr(value)[:60]  # what a stranger wrote may be long
