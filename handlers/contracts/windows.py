"""A stretch of time as payloads name it, and as it is from when the job was born: a retry after midnight means the same day."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from functools import partial
from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, field

MAX_DAYS: Final = 400  # a guess: a year, and what two of them overlap
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}

Moment = Annotated[
    str,
    Meta(
        pattern=r"^(?:19|20|21)[0-9]{2}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})(?![\s\S])",
        description="a time with its zone (RFC 3339): `2026-11-28T00:00:00Z`",
    ),
]
Last = Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,5}[mhd](?![\s\S])", description="so long before the job: `90m`, `24h`, `7d`")]
Zone = Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_+/-]{0,63}(?![\s\S])", description="a time zone: `Europe/Berlin`")]


class Span(msgspec.Struct, frozen=True):
    """From `begin` up to `end`, which is no longer part of it. `name` is fit for a file name, and names the span alone."""

    begin: datetime
    end: datetime
    name: str


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A stretch of time: `from` and `to`; or the `last` minutes, hours or days; or a `period`, by the calendar of the zone `tz`.

    The last two count from when the job was born. Weeks begin on Monday. A day of a zone has 23 hours or 25 where its clocks
    change, and ends where the next one begins.
    """

    begin: Moment | None = field(name="from", default=None)
    end: Moment | None = field(name="to", default=None)
    last: Last | None = None
    period: Literal["yesterday", "last-week", "last-month"] | None = None
    tz: Zone = "UTC"

    def __post_init__(self) -> None:
        """Check that it is one of the three, and that there is such a time and such a zone.

        Raises:
            ValueError: it is not; the text shows no value.
        """
        if (self.begin is None) != (self.end is None) or sum(map(bool, (self.begin, self.last, self.period))) != 1:
            raise ValueError("must have either `from` and `to`, or `last`, or `period`")
        zone_of(self.tz)
        if self.begin is not None and self.end is not None and not _moment(self.begin) < _moment(self.end):
            raise ValueError("`from` must be before `to`")
        if self._length > timedelta(MAX_DAYS) or (self.last is not None and self._length < timedelta(minutes=5)):
            raise ValueError(f"must be between 5 minutes and {MAX_DAYS} days")

    @property
    def _length(self) -> timedelta:
        if self.begin is not None and self.end is not None:
            return _moment(self.end) - _moment(self.begin)
        return timedelta(**{_UNITS[self.last[-1]]: int(self.last[:-1])}) if self.last else timedelta()

    def at(self, born_s: float) -> Span:
        """Return the stretch that this is for a job that was born at this time."""
        zone = zone_of(self.tz)
        born = datetime.fromtimestamp(int(born_s), UTC)
        if self.begin is not None and self.end is not None:
            return _between(_moment(self.begin), _moment(self.end), zone)
        if self.last is not None:
            return _between(born - self._length, born, zone)
        return _period(self.period or "", born.astimezone(zone).date(), zone)


def _period(period: str, today: date, zone: ZoneInfo) -> Span:
    """Return the last day, week or month that is over on this day."""
    midnight = partial(datetime.combine, time=time_of_day(), tzinfo=zone)
    if period == "yesterday":
        begin, end = today - timedelta(1), today
        name = f"{begin:%Y-%m-%d}"
    elif period == "last-week":
        end = today - timedelta(today.weekday())
        begin = end - timedelta(7)
        name = f"{begin:%G-W%V}"
    else:
        end = today.replace(day=1)
        begin = (end - timedelta(1)).replace(day=1)
        name = f"{begin:%Y-%m}"
    return Span(_existing(midnight(begin)), _existing(midnight(end)), name)


def _between(begin: datetime, end: datetime, zone: ZoneInfo) -> Span:
    begin, end = begin.astimezone(zone), end.astimezone(zone)
    stamps = [f"{moment.astimezone(UTC):%Y%m%dT%H%M%S}{moment.microsecond or ''}Z" for moment in (begin, end)]
    return Span(begin, end, "-".join(stamps))


def _existing(moment: datetime) -> datetime:
    """Return the moment itself, or the one at which clocks jumped over it: some zones do so at midnight."""
    return moment.astimezone(UTC).astimezone(moment.tzinfo)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.upper())
    except ValueError:
        raise ValueError("must be a time that exists") from None


def zone_of(name: str) -> ZoneInfo:
    """Return a time zone.

    Raises:
        ValueError: there is none of that name.
    """
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, LookupError):  # a folder of zones, an absolute path, an unknown name
        raise ValueError("must be a time zone, such as Europe/Berlin - at `$.tz`") from None
