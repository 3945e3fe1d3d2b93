"""The log of a process: plain lines for people, JSON for machines, and loggers whose calls never raise.

Control characters are escaped in both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from typing import Any, Final

TOLD_EVERY_S: Final = 60.0  # between two lines on standard error that the log itself fails; a guess

_OURS: Final = ("runtime", "board", "otel", "handlers")
_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(0x00, 0x0A), *range(0x0B, 0x20), 0x7F, *range(0x80, 0xA0))}


class GuardedLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose calls never raise: filters, handlers and record factories are the user's, and must not end a worker.

    A line that fails is lost; a line on standard error says so, once in TOLD_EVERY_S.
    """

    _silent_until_s = 0.0

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line, if that can be done."""
        try:
            super().log(level, msg, *args, **{**kwargs, "stacklevel": kwargs.get("stacklevel", 1) + 1})
        except BaseException as error:
            self._tell(type(error))

    @classmethod
    def _tell(cls, kind: type[BaseException]) -> None:
        now_s = time.monotonic()
        if now_s < cls._silent_until_s:
            return
        cls._silent_until_s = now_s + TOLD_EVERY_S
        with contextlib.suppress(Exception):
            print(f"a filter, handler or formatter of the log raises {kind.__name__}: lines are lost", file=sys.stderr)


_GUARDED: Final[list[logging.Logger]] = []


def guarded(name: str) -> GuardedLog:
    """Return the logger of this name, for code that must go on whatever the log does. `wake` looks after it."""
    logger = logging.getLogger(name)
    _GUARDED.append(logger)
    return GuardedLog(logger, None)


log: Final = guarded("runtime")


class Plain(logging.Formatter):
    """One line per record, and the lines of a stack after it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; control characters but line breaks are escaped."""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f"{stamp} {record.levelname.lower():8} {text}".translate(_ESCAPED)


class Json(logging.Formatter):
    """One JSON object per record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON, in ASCII."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["stack"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True)


def setup(kind: str, level: str) -> None:
    """Send the log to standard error. `kind` and `level` are the settings `log` and `log_level`."""
    handler = logging.StreamHandler(sys.stderr)
    is_plain = kind == "plain" or (kind == "auto" and sys.stderr.isatty())
    handler.setFormatter(Plain() if is_plain else Json())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def wake() -> None:
    """Enable our loggers again where a module of handlers has disabled them. Cheap: it may be called often.

    `dictConfig` and `fileConfig` disable all loggers that they do not name, unless they are told otherwise.
    """
    if not any(logger.disabled for logger in _GUARDED):
        return
    known = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.partition(".")[0] in _OURS]
    for logger in known:
        logger.disabled = False
    log.warning(
        "logging was configured by a module of handlers, which disabled the worker's own log: it is enabled again; "
        "hint: call dictConfig or fileConfig with disable_existing_loggers=False"
    )
