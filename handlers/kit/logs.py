"""Lines of logs, parsed: sshd as syslog or journal, the combined format of nginx and Apache, and JSON lines.

Whoever attacks writes much of what is in a line. All of this takes time in proportion to a line's length, and the parts that a
server writes itself are found from the side where nobody else can write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec

from handlers.contracts.windows import zone_of
from handlers.kit.sections import Log

MAX_CACHED: Final = 4096  # hours of the cache of times: half a year
AHEAD_S: Final = 86_400.0  # a guess: more than a clock or a zone is wrong; a line may also be younger than the job
MAX_REPEATED: Final = 1000  # a guess: what rsyslog counts in one line
MAX_SUBJECT_CHARS: Final = 200  # a guess: an address has at most 45, a user of ours 32
_MONTHS: Final[dict[str, int]] = {
    **{"Jan": 1, "Feb": 2, "Mar": 3, "Apr": 4, "May": 5, "Jun": 6},
    **{"Jul": 7, "Aug": 8, "Sep": 9, "Oct": 10, "Nov": 11, "Dec": 12},
}
_FAILED: Final = frozenset({"fail", "failed", "failure", "denied", "rejected", "error"})
_ACCEPTED: Final = frozenset({"ok", "success", "succeeded", "accepted", "allowed"})
# Stand for an escaped backslash and quote while a line is split; whoever writes them into a log gets them back as those.
_BACKSLASH, _QUOTE = "\x00", "\x01"
_ESCAPED: Final = re.compile(r"[\x00\x01]|(?:\\x[0-9A-Fa-f]{2})+")  # `\xHH`: bytes, as nginx writes what is not plain text


class Event(msgspec.Struct, gc=False):
    """A line of a log. `action` is `failed`, `accepted`, `key-refused` or `unknown-user` for logins, and `request` for HTTP."""

    at: float
    src: str = ""
    user: str = ""
    action: str = ""
    times: int = 1
    host: str = ""
    program: str = ""
    message: str = ""
    method: str = ""
    target: str = ""
    status: int = 0
    referer: str = ""
    agent: str = ""


Parser = Callable[[str], Event | None]
"""Returns the event of a line; None if it is none, or its time is out of range."""


def parser_of(log: Log, now_s: float) -> Parser:
    """Return what parses lines of a source that were written until then; later lines by more than a day are not believed."""
    times = _Times(log, now_s)
    by_format: dict[str, Callable[[str], Event | None]] = {
        "sshd": lambda line: _syslog(line, times),
        "combined": lambda line: _combined(line, times),
        "journal": lambda line: _journal(line, times),
        "jsonl": lambda line: _mapped(line, times, log.fields),
    }
    parse = by_format[log.format]

    def parse_safely(line: str) -> Event | None:
        try:
            return parse(line)
        except (ValueError, TypeError, LookupError, OverflowError, OSError, RecursionError):  # a number, a year that is none
            return None

    return parse_safely


def decoded(line: bytes) -> str:
    """Return a line as text; what is not UTF-8 is shown as `\\\\xff`."""
    return line.decode("utf-8", "backslashreplace")


def printable(text: str, most: int = MAX_SUBJECT_CHARS) -> str:
    """Return text that a terminal, a chat and a file can show: anything but printable characters is escaped, and it is cut."""
    cut = text if len(text) <= most else f"{text[: most - 1]}…"
    shown = cut if cut.isprintable() else "".join(each if each.isprintable() else _escaped(each) for each in cut)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


# --- times ---------------------------------------------------------------------------------------------------------------


class _Times:
    """Times of one source. Of each hour only the first one is worked out, since the zone and the calendar cost most."""

    def __init__(self, log: Log, now_s: float) -> None:
        self._zone = zone_of(log.zone)
        self._year = log.year
        self._latest_s = now_s + AHEAD_S
        self._hours: dict[str, float] = {}

    def checked(self, at: float) -> float:
        """Return the time if it is one that can be; raises ValueError."""
        if not 0.0 <= at <= self._latest_s:
            raise ValueError
        return at

    def bsd(self, text: str) -> float:
        """Return the time of `Nov  4 22:13:20`, which has no year."""
        hour = text[:9]
        begin = self._hours.get(hour)
        if begin is None:
            begin = self._keep(hour, self._without_year(_MONTHS[text[:3]], int(text[4:6]), int(text[7:9])))
        return self.checked(begin + _seconds(text[9:15]))

    def _without_year(self, month: int, day: int, hour: int) -> float:
        years = [self._year] if self._year else range(datetime.fromtimestamp(self._latest_s, UTC).year + 1, 1970, -1)
        for year in years:
            try:
                at = datetime(year, month, day, hour, tzinfo=self._zone).timestamp()
            except ValueError:
                if month == 2 and day == 29:  # of the last leap year
                    continue
                raise
            if self._year or at <= self._latest_s:
                return at
        raise ValueError

    def common(self, text: str) -> float:
        """Return the time of `10/Oct/2023:13:55:36 +0000`."""
        if len(text) != 26 or text[2] != "/" or text[6] != "/" or text[11] != ":":
            raise ValueError
        hour = text[:14] + text[20:]
        begin = self._hours.get(hour)
        if begin is None:
            stamp = f"{text[7:11]}-{_MONTHS[text[3:6]]:02}-{text[:2]}T{text[12:14]}:00:00{text[21:24]}:{text[24:26]}"
            begin = self._keep(hour, datetime.fromisoformat(stamp).timestamp())
        return self.checked(begin + _seconds(text[14:20]))

    def iso(self, text: str) -> float:
        """Return the time of `2023-11-14T22:13:20.123456+00:00`; without a zone, in that of the source."""
        at = datetime.fromisoformat(text)
        return self.checked((at if at.tzinfo else at.replace(tzinfo=self._zone)).timestamp())

    def any(self, value: object) -> float:
        """Return a time that is text, or seconds or milliseconds since 1970."""
        if isinstance(value, str) and not value.replace(".", "", 1).isdecimal():
            return self.common(value) if "/" in value else self.iso(value)
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            number = float(value)
            return self.checked(number / 1000 if number > 1e11 else number)  # as seconds, that is the year 5138
        raise ValueError

    def _keep(self, hour: str, begin: float) -> float:
        if len(self._hours) >= MAX_CACHED:
            self._hours.clear()
        self._hours[hour] = begin
        return begin


def _seconds(text: str) -> int:
    """Return the seconds of `:13:20`."""
    minute, second = int(text[1:3]), int(text[4:6])
    if text[0] != ":" or text[3] != ":" or not (0 <= minute < 60 and 0 <= second <= 60):  # 60: a leap second
        raise ValueError
    return minute * 60 + second


# --- sshd ----------------------------------------------------------------------------------------------------------------


def _syslog(line: str, times: _Times) -> Event | None:
    if line[:1] == "<":  # the priority, where it was kept
        line = line[line.index(">", 1, 6) + 1 :]
    if line[:1].isdecimal():
        stamp, _, rest = line.partition(" ")
        at = times.iso(stamp)
    else:
        at, rest = times.bsd(line), line[16:]
    host, _, rest = rest.partition(" ")
    tag, found, message = rest.partition(": ")
    if not found:
        return None
    return _said(at, host, tag.partition("[")[0], message)


def _journal(line: str, times: _Times) -> Event | None:
    known = _object(line)
    at = times.checked(int(known["__REALTIME_TIMESTAMP"]) / 1e6)
    # `_COMM` is what the kernel says: any user can write lines under the name of sshd.
    program = known.get("_COMM") or known.get("SYSLOG_IDENTIFIER") or ""
    message = known.get("MESSAGE")
    if isinstance(message, list):  # numbers: bytes that are not UTF-8; texts: it was given more than once
        parts = cast("list[Any]", message)
        message = " ".join(parts) if parts and isinstance(parts[0], str) else decoded(bytes(parts))
    return _said(at, _text(known.get("_HOSTNAME")), _text(program), _text(message))


def _said(at: float, host: str, program: str, message: str) -> Event:
    event = Event(at, host=host, program=program, message=message)
    if program.startswith("sshd"):  # since OpenSSH 9.8 also `sshd-session`
        if message.startswith("message repeated "):
            count, _, rest = message[17:].partition(" times: [ ")
            if count.isdecimal() and rest.endswith("]"):
                event.times = min(int(count[:6]), MAX_REPEATED)
                message = rest[:-1]
        _login(event, message)
    return event


def _login(event: Event, message: str) -> None:
    """Note who logged in from where, or could not. sshd writes the name of the user as the client gave it."""
    if message.startswith("Failed "):
        # The last ` from ` is sshd's own: `Failed password for x from 1.1.1.1 port 1 ssh2 from 2.2.2.2 port 2 ssh2`.
        head, _, where = message.rpartition(" from ")
        method, found, user = head[7:].partition(" for ")
        parts = where.split(" ")
        if found and method != "none" and len(parts) >= 4 and parts[1] == "port":  # `none` is how a client asks for methods
            event.action = "key-refused" if method == "publickey" else "failed"  # an agent offers one key after the other
            event.user, event.src = user.removeprefix("invalid user "), parts[0]
    elif message.startswith("Invalid user "):
        head, _, where = message.rpartition(" from ")
        event.action, event.user, event.src = "unknown-user", head[13:], where.partition(" ")[0]
    elif message.startswith("Accepted "):
        # A user that exists has no spaces in its name, but what stands behind may be from a certificate.
        head, _, where = message.partition(" from ")
        parts = where.split(" ", 3)
        if len(parts) >= 3 and parts[1] == "port":
            event.action, event.user, event.src = "accepted", head[9:].partition(" for ")[2], parts[0]


# --- the web -------------------------------------------------------------------------------------------------------------


def _unescaped(found: re.Match[str]) -> str:
    text = found[0]
    return "\\" if text == _BACKSLASH else '"' if text == _QUOTE else decoded(bytes.fromhex(text.replace("\\x", "")))


def _combined(line: str, times: _Times) -> Event | None:
    """Parse `address - user [time] "request" status bytes "referer" "agent"`; nothing but quotes bounds what clients write."""
    is_escaped = "\\" in line
    if is_escaped:
        line = line.replace("\\\\", _BACKSLASH).replace('\\"', _QUOTE)
    head, *parts = line.split('"')
    src, _, rest = head.partition(" ")
    begin = rest.rindex("[")
    at = times.common(rest[begin + 1 : rest.rindex("]")])
    if len(parts) < 2:
        return None
    if is_escaped:
        parts = [_ESCAPED.sub(_unescaped, part) for part in parts]
    status = parts[1][1:4]
    if not status.isdecimal() or not status.isascii():
        return None
    method, _, rest_of = parts[0].partition(" ")
    target, found, _ = rest_of.rpartition(" HTTP/")
    if not found:
        target = rest_of or method
    user = rest[:begin].strip().partition(" ")[2]
    event = Event(at, src, "" if user == "-" else user, "request", method=method, target=target, status=int(status))
    if len(parts) >= 5:
        event.referer, event.agent = parts[2], parts[4]
    return event


# --- JSON ----------------------------------------------------------------------------------------------------------------


def _object(line: str) -> dict[str, Any]:
    # Of lone surrogates msgspec makes text that cannot be written; nothing of a line is written as it is.
    try:
        return msgspec.json.decode(line.encode("utf-8", "backslashreplace"), type=dict[str, Any])
    except msgspec.MsgspecError:
        raise ValueError from None


def _mapped(line: str, times: _Times, fields: Mapping[Any, str]) -> Event | None:
    known = _object(line)
    found = {field: _member(known, path) for field, path in fields.items()}
    at = times.any(found.pop("at"))
    status = found.pop("status", None)
    outcome = _text(found.pop("outcome", None)).lower()
    event = Event(at)
    for field, value in found.items():
        setattr(event, field, _text(value))
    event.status = int(status) if isinstance(status, int | str) and str(status).isdecimal() and len(str(status)) == 3 else 0
    if outcome:
        event.action = "failed" if outcome in _FAILED else "accepted" if outcome in _ACCEPTED else ""
    elif event.target or event.status:
        event.action = "request"
    elif event.program.startswith("sshd"):
        _login(event, event.message)
    return event


def _member(known: Mapping[str, Any], path: str) -> object:
    if path in known:
        return known[path]
    value: Any = known
    for name in path.split("."):
        if not isinstance(value, dict):
            return None
        value = cast("dict[str, Any]", value).get(name)
    return value


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    return msgspec.json.encode(value).decode() if isinstance(value, int | float | bool) else ""
