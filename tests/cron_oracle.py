"""What a cron expression must name, by brute force: every minute of the years in question, and what a clock shows then.

Reads expressions on its own, and knows nothing of cronsim but its rule, which is Debian's: an expression of 5 fields that begins
neither minute nor hour with `*` runs once for each time that the calendar has: the first time where a clock shows it twice, and
where no clock shows it, when the next later time is shown. Any other runs whenever a clock shows a time that it names.
"""

from __future__ import annotations

import calendar
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

DAY_MINUTES = 1440
MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]
EPOCH = date(1970, 1, 1)


class Wall:
    """What the clocks of a zone show in each minute of some years: minutes since the epoch, on the wall and of UTC."""

    def __init__(self, zone: str, first_year: int, years: int) -> None:
        self.zone = ZoneInfo(zone)
        self.begin, self.end = (minute_of(datetime(year, 1, 1, tzinfo=UTC)) for year in (first_year, first_year + years))
        self.shown = list(self._shown())
        self.first: dict[int, int] = {}
        for at, wall in enumerate(self.shown, self.begin):
            self.first.setdefault(wall, at)
        self.changes = [
            at for at in range(self.begin + 1, self.end) if self.shown[at - self.begin] - self.shown[at - self.begin - 1] != 1
        ]

    def _shown(self) -> Iterator[int]:
        for hour in range(self.begin, self.end, 60):
            offsets = [self._offset(hour), self._offset(hour + 60)]
            is_steady = offsets[0] == offsets[1]
            for at in range(hour, hour + 60):
                yield at + (offsets[0] if is_steady else self._offset(at))

    def _offset(self, at: int) -> int:
        offset = datetime.fromtimestamp(at * 60, self.zone).utcoffset()
        assert offset is not None
        return int(offset.total_seconds()) // 60


def minute_of(at: datetime) -> int:
    return int(at.timestamp()) // 60


def ticks(expression: str, wall: Wall) -> list[int]:
    """Return the ticks in ms within the years of this wall, without those of the first and last two days."""
    fields = expression.split()
    seconds = numbers(fields[0], 0, 59) if len(fields) == 6 else {0}
    minutes, hours = numbers(fields[-5], 0, 59), numbers(fields[-4], 0, 23)
    of_day = {hour * 60 + minute for hour in hours for minute in minutes}
    begin, end = wall.begin + 2 * DAY_MINUTES, wall.end - 2 * DAY_MINUTES
    days = {day for day in range(wall.begin // DAY_MINUTES - 1, wall.end // DAY_MINUTES + 1) if runs_on(fields, day)}
    found: set[int] = set()
    if len(fields) == 5 and not fields[0].startswith("*") and not fields[1].startswith("*"):
        for at in (day * DAY_MINUTES + minute for day in days for minute in of_day):
            planned = at
            while planned not in wall.first and wall.shown[0] < planned < wall.shown[-1]:
                planned += 1  # no clock shows it: the next that one does
            found.add(wall.first.get(planned, -1))
    else:
        for at, shown in enumerate(wall.shown, wall.begin):
            if shown % DAY_MINUTES in of_day and shown // DAY_MINUTES in days:
                found.add(at)
    return sorted((at * 60 + second) * 1000 for at in found if begin <= at < end for second in seconds)


def numbers(text: str, low: int, high: int, names: list[str] | None = None) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        body, _, step = part.partition("/")
        for number, name in enumerate(names or [], low):
            body = body.replace(name, str(number))
        first, _, last = body.partition("-")
        if body == "*":
            first, last = str(low), str(high)
        elif step and not last:
            last = str(high)
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return found


def runs_on(fields: list[str], day: int) -> bool:
    at = EPOCH + timedelta(days=day)
    if at.month not in numbers(fields[-2], 1, 12, MONTHS):
        return False
    of_month, of_week = fields[-3], fields[-1]
    last = calendar.monthrange(at.year, at.month)[1]
    is_day = at.day == last if of_month == "L" else at.day in numbers(of_month, 1, 31)
    weekday = at.isoweekday() % 7
    if "#" in of_week:
        name, _, nth = of_week.partition("#")
        is_weekday = weekday == DAYS.index(name) and (at.day + 6) // 7 == int(nth)
    else:
        is_weekday = weekday in {number % 7 for number in numbers(of_week, 0, 7 if of_week[0].isdigit() else 6, DAYS)}
    if of_month.startswith("*") or of_week.startswith("*"):
        return is_day and is_weekday
    return is_day or is_weekday
