"""What keeps a job from being done, told apart by who must act: time, the sender of the job, or an operator."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Generator
from typing import Final

from runtime import Dead, Retry, Snooze

log = logging.getLogger("handlers")

BAD_PAYLOAD: Final = "bad-payload"  # the reason of a payload that its contract refuses, for what only the work itself can see
WAIT_S: Final = 60.0  # a guess: how soon a waiting job checks whether the settings have been fixed
LOG_EVERY_S: Final = 60.0  # a guess: a fault that lasts is logged once a minute
MISSING_S: Final = 20.0  # a guess: for a file on a slow shared disk to be seen here
MISSING_TRIES: Final = 3  # a guess: after a minute it was never there
MAX_FAULTS: Final = 1000  # a guess: aliases come from payloads, so the memory of what was logged is bounded


class TemporaryFailure(Exception):
    """A failure outside of the worker that may pass: the job is retried by its policy."""


class BadRow(Exception):
    """A value of one row cannot be used; the row is refused, and the others go on. The text shows nothing of the value."""


def input_missing(path: str, attempt: int, what: str = "file") -> Dead | Retry:
    """Return what to raise for an input file that is not there: a few tries more, since shared disks may be slow, then death."""
    if attempt >= MISSING_TRIES:
        return Dead(f"no {what} {path}", "input-missing")
    return Retry(MISSING_S, f"input-missing: no {what} {path}")


def wait_for_operator(subject: str, code: str, text: str) -> Snooze:
    """Return the `Snooze` to raise for a fault that an operator must fix, and log it, once a minute."""
    now_s, fault = time.monotonic(), f"{code}: {subject}: {text}"
    if now_s - _logged_s.get(fault, -LOG_EVERY_S) >= LOG_EVERY_S:
        if len(_logged_s) >= MAX_FAULTS:
            _logged_s.clear()
        _logged_s[fault] = now_s
        log.error("%s: %s: %s; its jobs wait, and check again every %g s", subject, code, text, WAIT_S)
    return Snooze(WAIT_S, fault)


@contextlib.contextmanager
def unlogged() -> Generator[None]:
    """Log nothing of what handlers say in the block: there, each fault is told in another way."""
    before = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(before)


def missing_package(package: str) -> Snooze:
    """Return the `Snooze` to raise where a job needs a package that this worker has not installed; logged as above."""
    return wait_for_operator(package, "extra-missing", f"not installed; hint: pip install {package}")


_logged_s: dict[str, float] = {}
