"""The log of a process: plain lines for people, JSON for machines, and loggers whose calls never raise.

Lines that a job's code writes, by whichever logger, say which job that is. A filter of the handler sees to that when a line is
written: a job that writes none pays nothing. No record factory is set: a process has one, which modules of handlers, and
OpenTelemetry's own instrumentation, replace; it would be called for lines that nobody writes, too.

Control characters are escaped, and each record begins at the beginning of a line, where nothing else does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from runtime.jobs import Job, running_job

TOLD_EVERY_S: Final = 60.0  # between two lines on standard error that the log itself fails; a guess
MAX_EXTRA_CHARS: Final = 16 * 1024  # of all fields that users give one line, as JSON; a guess: a quarter of what collectors take
MAX_PLAIN_CHARS: Final = 300  # the same in a plain line; a guess: two lines of a terminal
NO_STACK: Final = "(the stack is not shown)"  # for formatters, which would ask an exception of the user's for its traceback

_OURS: Final = ("runtime", "board", "otel", "handlers")
# What a terminal or a reader of lines obeys: controls, line and paragraph separators, and what turns the direction of text.
_ESCAPED: Final = {code: f"\\x{code:02x}" for code in (*range(0x00, 0x0A), *range(0x0B, 0x20), 0x7F, *range(0x80, 0xA0))} | {
    code: f"\\u{code:04x}" for code in (0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}
_INDENT: Final = "\n    "  # what begins each further line of a record

JOB_FIELDS: Final = ("job_id", "job_type", "job_attempt")
TRACE_FIELDS: Final = ("trace_id", "span_id", "trace_flags")  # OpenTelemetry's names in logs that are not its own
_FIELDS: Final = {*JOB_FIELDS, *TRACE_FIELDS}
# What a record has without `extra`, or gets on its way through logging itself.
_RECORD: Final = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"}


def _no_ids() -> tuple[str, str, str] | None:
    """Return None: nothing is traced."""


# Returns the ids of the span that the caller runs in, in lowercase hex: 32, 16 and 2 digits; None where there is none. Tracing
# puts a function of its own here, where it is on.
trace_ids: Callable[[], tuple[str, str, str] | None] = _no_ids


def job_fields(job: Job) -> dict[str, object]:
    """Return the fields of a line about this job, for `extra`."""
    return dict(zip(JOB_FIELDS, (job.id, job.type.decode(errors="replace"), job.attempt), strict=True))


class JobFilter(logging.Filter):
    """Gives each record `job_id`, `job_type`, `job_attempt`, `trace_id`, `span_id` and `trace_flags`; empty where there is none.

    To be added to handlers, as `setup` does: a logger does not ask its filters about the lines of loggers below it. Users who
    configure logging themselves add it to their handlers, for formatters that show these names.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True: each record may pass. Never raises; fields that were given with `extra` stay."""
        told = record.__dict__
        if told.keys() >= _FIELDS:
            return True  # another handler's filter has seen it, maybe in another thread
        found: dict[str, object] = dict.fromkeys(_FIELDS, "")
        with contextlib.suppress(Exception):
            job = running_job()
            if job is not None:
                found |= job_fields(job)
            ids = trace_ids()
            if ids is not None:
                found |= zip(TRACE_FIELDS, ids, strict=True)
        for name, value in found.items():
            told.setdefault(name, value)
        return True


class GuardedLog(logging.LoggerAdapter[logging.Logger]):
    """A logger whose calls never raise: filters, handlers and record factories are the user's, and must not end a worker.

    A line that fails is lost; a line on standard error says so, once in TOLD_EVERY_S.
    """

    _silent_until_s = 0.0

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Return both as they are: an adapter would put its own in the place of `extra`."""
        return msg, kwargs

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log a line, if that can be done."""
        try:
            super().log(level, msg, *args, **{**kwargs, "stacklevel": kwargs.get("stacklevel", 1) + 1})
        except BaseException as error:
            if kwargs.get("exc_info"):  # who reads that asks an exception of the user's, which may raise anything
                self.log(level, msg, *args, **{**kwargs, "exc_info": None, "stacklevel": kwargs.get("stacklevel", 1) + 1})
            else:
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


def _with_stack(record: logging.LogRecord) -> bool:
    """Put the text `stack` of `extra` where formatters, whosever they are, look for the text of a traceback before they ask the
    exception for it.
    """
    stack = record.__dict__.pop("stack", None)
    if stack is not None:
        record.exc_text = stack or (NO_STACK if record.exc_info else None)
    return True


def guarded(name: str) -> GuardedLog:
    """Return the logger of this name, for code that must go on whatever the log does. `wake` looks after it."""
    logger = logging.getLogger(name)
    logger.addFilter(_with_stack)
    _GUARDED.append(logger)
    return GuardedLog(logger, None)


log: Final = guarded("runtime")


class _Lines(logging.Formatter):
    """What both formats have in common."""

    def stack_of(self, record: logging.LogRecord) -> str:
        """Return the traceback of a record, and the stack that was asked for with it."""
        traced = record.exc_text or (self.formatException(record.exc_info) if record.exc_info else "")
        return "\n".join(part for part in (traced, record.stack_info) if part and part is not NO_STACK)


def extras_of(record: logging.LogRecord, chars: int, *, is_ascii: bool = True) -> dict[str, str]:
    """Return what users gave a record with `extra`, each as JSON, in about so many characters; the rest is cut, or left out.

    Names that begin with `_` are those of tools that pass something on in a record.
    """
    told: dict[str, str] = {}
    for name, value in record.__dict__.copy().items():  # another handler's filter may add to it, in its thread
        if type(name) is not str or name in _RECORD or name in _FIELDS or name.startswith("_"):
            continue
        chars -= len(name)
        if chars <= 0:
            break
        told[name] = text = _as_json(value, chars, is_ascii)
        chars -= len(text)
    return told


def _as_json(value: object, chars: int, is_ascii: bool) -> str:
    """Return a value of the user's as JSON; as a text where JSON cannot say it, or where it is longer than `chars`."""
    try:
        parts, size = list[str](), 0
        for part in json.JSONEncoder(default=str, allow_nan=False, ensure_ascii=is_ascii).iterencode(value):
            parts.append(part)
            size += len(part)
            if size > chars:  # a large value would hold the loop for as long as it takes to write it
                return json.dumps(f"{''.join(parts)[: chars // 2]}…", ensure_ascii=is_ascii)
        return "".join(parts)
    except Exception:  # a dict with other keys than texts, a list that holds itself, a `__str__` that raises
        try:
            return json.dumps(str(value)[: chars // 2], ensure_ascii=is_ascii)
        except Exception as second:
            return json.dumps(f"(cannot be shown: {type(second).__name__})")


class Plain(_Lines):
    """One line per record, with what users gave it as `name=value` at the end, and the lines of a stack after it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as text; control characters are escaped, and what comes after a line break is indented."""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{stamp} {record.levelname.lower():8} {record.getMessage()}"
        told = record.__dict__
        fields: list[object] = []
        if told.get("job_id") and str(told["job_id"]) not in text:  # our own lines about a job name it
            fields += [told.get("job_type"), told["job_id"], "attempt", told.get("job_attempt")]
        if told.get("trace_id"):
            fields += ["trace", told["trace_id"]]
        fields += [f"{name}={value}" for name, value in extras_of(record, MAX_PLAIN_CHARS, is_ascii=False).items()]
        text += f"  [{' '.join(map(str, fields))}]" if fields else ""
        stack = self.stack_of(record)
        return (f"{text}\n{stack}" if stack else text).translate(_ESCAPED).replace("\n", _INDENT)


class Json(_Lines):
    """One JSON object per record, with what users gave it; our own names win."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON, in ASCII."""
        line: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told = record.__dict__
        line |= {name: told[name] for name in (*JOB_FIELDS, *TRACE_FIELDS) if told.get(name) not in (None, "")}
        stack = self.stack_of(record)
        if stack:
            line["stack"] = stack
        own = json.dumps(line, ensure_ascii=True, default=str)
        more = [f"{json.dumps(name)}: {value}" for name, value in extras_of(record, MAX_EXTRA_CHARS).items() if name not in line]
        return ", ".join([own[:-1], *more]).replace("\x7f", "\\u007f") + "}"  # the one control that JSON leaves


_settings: tuple[str, str] | None = None


def settings() -> tuple[str, str] | None:
    """Return `plain` or `json`, and the level, for a child process to log alike; None where `setup` was not called."""
    return _settings


def setup(kind: str, level: str) -> None:
    """Send the log to standard error. `kind` and `level` are the settings `log` and `log_level`."""
    global _settings
    handler = logging.StreamHandler(sys.stderr)
    is_plain = kind == "plain" or (kind == "auto" and sys.stderr.isatty())
    handler.setFormatter(Plain() if is_plain else Json())
    handler.addFilter(JobFilter())
    _settings = "plain" if is_plain else "json", level
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
