"""Which times a cron expression or an interval names, in which zone, and in words. No clock: what counts as now is an argument.

The expressions are cronsim's, and so are the rules for days when clocks change. An expression of 5 fields that begins neither its
minute nor its hour with `*` runs as in Debian's cron: once where an hour comes twice, the first time; and where its time does not
exist, as soon as the clocks have gone forward. Any other runs whenever a clock on the wall shows a time that it names: twice
where it comes twice, and not where it does not exist.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache, cached_property
from itertools import count, islice, pairwise, takewhile
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from runtime.errors import ConfigError

ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
MAX_CHARS: Final = 256  # of an expression, a guess: beyond any that people write
MIN_EVERY_S: Final = 1  # as often as an expression can say
MAX_EVERY_S: Final = 366 * 86_400  # a guess: a year; what is more seldom names its day
FIRST_WINDOW_MS: Final = 60_000  # a guess: mostly one tick was missed, and that a moment ago
# Ranges of the fields, in cronsim's order and with its names.
_FIELDS: Final = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31, L or LW",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 or SUN-SAT, with L or #1 to #5 behind it",
}
_UTC: Final = timezone.utc  # noqa: UP017 -- cronsim compares with this very object
_EPOCH: Final = datetime(1970, 1, 1)  # what a clock on the wall shows has no zone
_DAY_S: Final = 86_400


@dataclass(frozen=True)
class Times:
    """The times of an expression in a zone or, where `every_ms` is not 0, of an interval that counts from the epoch; in ms."""

    expression: str
    zone: str
    every_ms: int

    def after(self, start_ms: int) -> Iterator[int]:
        """Return the ticks later than a start, in order."""
        if self.every_ms:
            first = start_ms // self.every_ms + 1
            return (number * self.every_ms for number in count(first))
        seconds = self._as_in_debian if self._is_as_in_debian else self._by_the_wall
        return (at_s * 1000 for at_s in seconds(start_ms // 1000))

    def next(self, start_ms: int, n: int) -> list[int]:
        """Return the next `n` ticks later than a start; fewer where there are no more within 50 years."""
        return list(islice(self.after(start_ms), n))

    def between(self, last_ms: int, now_ms: int) -> list[int]:
        """Return the ticks later than `last_ms`, up to and with `now_ms`."""
        return list(takewhile(lambda tick: tick <= now_ms, self.after(last_ms)))

    def newest(self, last_ms: int, now_ms: int, cap: int) -> list[int]:
        """Return the ticks of `between` or, where there are more than `cap`, some of the newest, more than `cap` of them.

        A window from now backwards grows until it holds that many, so that a year of ticks is not walked through.
        """
        window_ms = FIRST_WINDOW_MS
        while True:
            start_ms = max(last_ms, now_ms - window_ms)
            found = self.between(start_ms, now_ms)
            if start_ms == last_ms or len(found) > cap:
                return found
            window_ms *= 4

    def words(self) -> str:
        """Return what it says, for people: `at 03:00 every day, Europe/Berlin`."""
        if self.every_ms:
            return f"every {_span(self.every_ms)}"
        text = CronSim(self.expression, _EPOCH).explain()
        return f"{text[0].lower()}{text[1:]}, {self.zone}"

    def notes(self, start_ms: int, n: int) -> list[str]:
        """Return what changes of the clock do to the times up to the `n`-th tick after a start, for people, a line for each."""
        ticks = [] if self.every_ms else self.next(start_ms, n)
        if not ticks:
            return []
        found: dict[tuple[str, str, str], list[str]] = {}
        end = _shown_by_clock(ticks[-1] // 1000, self._zone)
        planned = CronSim(self.expression, _shown_by_clock(start_ms // 1000, self._zone) - timedelta(seconds=1))
        for at in takewhile(lambda at: at <= end, planned):
            fate = self._fate(at)
            if fate:
                found.setdefault((f"{at:%Y-%m-%d}", *fate), []).append(f"{at:%H:%M:%S}".removesuffix(":00"))
        return [_note(*key, clock) for key, clock in found.items()]

    def _fate(self, at: datetime) -> tuple[str, str] | None:
        """Return what befalls a time that a clock shows twice or not at all, and what is done about it; None for any other."""
        first, second = (at.replace(tzinfo=self._zone, fold=fold) for fold in (0, 1))
        if first.utcoffset() == second.utcoffset():
            return None
        if _is_real(first):
            return "comes twice", "runs once, the first time" if self._is_as_in_debian else "runs both times"
        if not self._is_as_in_debian:
            return "does not exist", "does not run"
        while not _is_real(first):
            first += timedelta(minutes=1)
        day = "" if first.date() == at.date() else f"{first:%Y-%m-%d} "
        return "does not exist", f"runs at {day}{first:%H:%M}"

    @cached_property
    def _zone(self) -> ZoneInfo:
        return ZoneInfo(self.zone)

    @cached_property
    def _is_as_in_debian(self) -> bool:
        fields = self.expression.split()
        return len(fields) == 5 and not fields[0].startswith("*") and not fields[1].startswith("*")

    def _as_in_debian(self, start_s: int) -> Iterator[int]:
        for at in CronSim(self.expression, datetime.fromtimestamp(start_s, self._zone)):
            at_s = int(at.timestamp())
            if at_s > start_s:  # started in the second of two equal hours, it begins with the first one's times
                yield at_s

    def _by_the_wall(self, start_s: int) -> Iterator[int]:
        """Walk from one change of the clock to the next, with the plain clock of each part.

        Given the zone, cronsim goes by whole hours, and where a change is half an hour (Lord Howe) it loses ticks.
        """
        while True:
            offset_s, end_s = _part(self.zone, start_s)
            for at in CronSim(self.expression, _EPOCH + timedelta(seconds=start_s + offset_s)):
                at_s = int((at - _EPOCH).total_seconds()) - offset_s
                if at_s >= end_s:
                    break
                yield at_s
            else:
                return
            start_s = end_s - 1  # what falls on the change itself is later than this


def parse(expression: str, zone: str = "UTC", every_s: float | None = None) -> Times:
    """Return the times of an expression in a zone or, where it is empty, of `every_s` seconds; the text names a wrong field.

    Raises:
        ConfigError: not exactly one of the two is given, or one of them or the zone cannot be used, or there is no such time.
    """
    if type(expression) is not str or bool(expression) == (every_s is not None):
        raise ConfigError("when, every_s: must be exactly one of the two, an expression or a number of seconds")
    _check_zone(zone)
    if every_s is not None:
        return Times("", zone, _every_ms(every_s))
    text = " ".join(expression.split())
    if text.startswith("@"):
        if text.lower() not in ALIASES:
            hint = "; hint: it names no time, a worker's start is none" if text.lower() == "@reboot" else ""
            raise ConfigError(f"when {_cut(text)!r}: must be one of {', '.join(ALIASES)}{hint}")
        text = ALIASES[text.lower()]
    if not text.isascii() or len(text) > MAX_CHARS:
        raise ConfigError(f"when {_cut(text)!r}: must be at most {MAX_CHARS} characters of ASCII")
    try:
        names_a_time = next(CronSim(text, datetime(2000, 1, 1)), None) is not None
    except CronSimError as error:
        raise ConfigError(f"when {text!r}: {_about(str(error), text)}") from None
    if not names_a_time:
        raise ConfigError(f"when {text!r}: names no day that there is in 50 years")
    return Times(text, zone, 0)


def _about(error: str, text: str) -> str:
    fields = text.split()
    name = error.removeprefix("Bad ")
    if name not in _FIELDS:
        return "must have 5 fields (minute, hour, day of month, month, day of week), or 6 with seconds first"
    given = fields[len(fields) - len(_FIELDS) + list(_FIELDS).index(name)]
    return f"{name} {given!r}: must be of {_FIELDS[name]}, alone or as in `*`, `*/5`, `1-5`, `1,3`, and be some day"


def _every_ms(every_s: object) -> int:
    is_number = type(every_s) in (int, float)
    if not is_number or not MIN_EVERY_S <= float(every_s) <= MAX_EVERY_S:  # pyright: ignore[reportArgumentType]
        raise ConfigError(f"every_s {every_s!r}: must be a number of seconds between {MIN_EVERY_S} and {MAX_EVERY_S}")
    return round(float(every_s) * 1000)  # pyright: ignore[reportArgumentType]


def _check_zone(name: object) -> None:
    try:
        # `localtime` is another zone on another machine.
        is_known = type(name) is str and name != "localtime" and bool(ZoneInfo(name).key)
    except (KeyError, ValueError, OSError):  # no such name, one that leaves the folder of zones, or a folder of them
        is_known = False
    if not is_known:
        raise ConfigError(f"tz {_cut(str(name))!r}: must be the name of a time zone, such as UTC or Europe/Berlin")


@cache
def _changes(zone: str, year: int) -> list[tuple[int, int]]:
    """Return from when on each offset holds in a year, both in seconds; the first entry is its begin."""
    info = ZoneInfo(zone)

    def offset_s(at_s: int) -> int:
        offset = datetime.fromtimestamp(at_s, info).utcoffset()
        return int(offset.total_seconds()) if offset else 0

    begin_s, end_s = (int(datetime(at, 1, 1, tzinfo=_UTC).timestamp()) for at in (year, year + 1))
    found = [(begin_s, offset_s(begin_s))]
    for day_s in range(begin_s, end_s, _DAY_S):  # no zone has changed its clocks twice in a day
        before_s, after_s = day_s, min(day_s + _DAY_S, end_s - 1)
        if offset_s(after_s) == found[-1][1]:
            continue
        while after_s - before_s > 1:
            middle_s = (before_s + after_s) // 2
            if offset_s(middle_s) == found[-1][1]:
                before_s = middle_s
            else:
                after_s = middle_s
        found.append((after_s, offset_s(after_s)))
    return found


def _part(zone: str, at_s: int) -> tuple[int, int]:
    """Return the offset (s) that holds right after a time, and until when; the end of a year may be no change."""
    at_s += 1
    year = datetime.fromtimestamp(at_s, _UTC).year
    changes = [*_changes(zone, year), (int(datetime(year + 1, 1, 1, tzinfo=_UTC).timestamp()), 0)]
    return next((offset_s, until_s) for (_, offset_s), (until_s, _) in pairwise(changes) if at_s < until_s)


def _shown_by_clock(at_s: int, zone: ZoneInfo) -> datetime:
    return datetime.fromtimestamp(at_s, zone).replace(tzinfo=None)


def _is_real(at: datetime) -> bool:
    return at.astimezone(_UTC).astimezone(at.tzinfo).replace(tzinfo=None) == at.replace(tzinfo=None)


def _note(day: str, what: str, then: str, clock: list[str]) -> str:
    times = clock[0] if len(clock) == 1 else f"each time from {clock[0]} to {clock[-1]}"
    return f"{times} {what} on {day}: {then}"


def _span(ms: int) -> str:
    for unit, size_ms in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000)):
        if ms % size_ms == 0:
            return f"{ms // size_ms} {unit}"
    return f"{ms / 1000:g} s"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"  # a guess: a line of a log
