"""Which jobs are traced from their beginning, and in whose trace: decided per batch, before any object is made for a job."""

from __future__ import annotations

import re
from binascii import a2b_hex
from collections.abc import Callable, Sequence
from math import log1p
from typing import Final

from runtime.codec import TRACE_STATE, TRIED
from runtime.jobs import PLAIN, Envelope, Job

# W3C Trace Context: version 00 has exactly these fields, a later one may have more behind them; ff, and ids of zeros, are none.
_IDS: Final = rb"-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
_FIRST: Final = re.compile(rb"00" + _IDS).fullmatch
_LATER: Final = re.compile(rb"(?!00|ff)[0-9a-f]{2}" + _IDS + rb"(-[ -~]*)?").fullmatch
_SIZE: Final = len("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
_EVEN: Final = b"02468ace"
_ODD: Final = b"13579bdf"  # the last digit of flags whose lowest bit is set; `b"b"[0] & 1` is not that bit
MAX_STATE_BYTES: Final = 512  # what W3C asks a vendor to carry at least
_STATE: Final = re.compile(rb"[ -~]{1,%d}(?![\s\S])" % MAX_STATE_BYTES)
NEVER: Final = float("inf")


# A span: the ids of its trace and its own, 16 and 8 bytes, and whether it is recorded. A tuple, since one is made per traced job.
Parent = tuple[bytes, bytes, bool]


def is_valid(traceparent: bytes) -> bool:
    """Return whether a traceparent is what W3C asks for."""
    return _FIRST(traceparent) is not None or _LATER(traceparent) is not None


def parse(traceparent: bytes) -> Parent | None:
    """Return what a traceparent says; None for one that is malformed."""
    if _FIRST(traceparent) is None and _LATER(traceparent) is None:
        return None
    return a2b_hex(traceparent[3:35]), a2b_hex(traceparent[36:52]), traceparent[54] in _ODD


class Budget:
    """Owns how many more may be had in this second."""

    def __init__(self, per_s: int) -> None:
        self._per_s = per_s
        self._second = -1
        self._left = 0
        self.refused: int = 0

    def take(self, now_s: float) -> bool:
        """Return whether one more may be had."""
        if int(now_s) != self._second:
            self._second, self._left = int(now_s), self._per_s
        if self._left <= 0:
            self.refused += 1
            return False
        self._left -= 1
        return True


class Sampling:
    """Decides which jobs are traced from their beginning. Owns the gap to the next one, the budgets, and counts what it met.

    Args:
        sampler: one of OpenTelemetry's names, `parentbased_traceidratio` for example.
        ratio: of `traceidratio`, from 0 to 1.
        trusts: whether the `traceparent` of a sender counts.
        joins: whether a first attempt is a child of its sender's span; else it is a trace of its own.
        spans_per_s: how many jobs a second are traced since their senders said so.
        forced_per_s: how many attempts a second are traced that the sampler left out, other than deaths.
        jitter: returns a number from 0 to 1.
    """

    def __init__(
        self,
        sampler: str,
        ratio: float,
        *,
        trusts: bool,
        joins: bool,
        spans_per_s: int,
        forced_per_s: int,
        jitter: Callable[[], float],
    ) -> None:
        kind = sampler.removeprefix("parentbased_")
        self._follows = kind != sampler
        self._ratio = {"always_on": 1.0, "always_off": 0.0}.get(kind, ratio)
        self._trusts = trusts
        self._joins = joins
        self._jitter = jitter
        self.believed: Budget = Budget(spans_per_s)
        self.forced: Budget = Budget(forced_per_s)
        self.malformed: int = 0
        self.states_dropped: int = 0
        self._gap = self._draw()

    def _draw(self) -> float:
        """Return how many jobs are not sampled before the next one that is: one draw per sampled job, not one per job."""
        if self._ratio >= 1:
            return 0
        if self._ratio <= 0:
            return NEVER
        gap = log1p(-self._jitter()) / log1p(-self._ratio)  # `log(1 - ratio)` is 0 of a ratio below 1e-16
        return int(gap) if gap < NEVER else NEVER

    @property
    def root_ratio(self) -> float:
        """Which part of what has no sender is sampled, from 0 to 1."""
        return self._ratio

    def choose(self, jobs: Sequence[Job], now_s: float) -> None:
        """Mark those of the jobs that are to be traced."""
        told = [job for job in jobs if job.fields or job.count > 1]
        is_for_parents = self._follows and self._trusts
        plain = len(jobs) - len(told)
        if self._gap < plain:
            for job in [job for job in jobs if not job.fields and job.count == 1] if told else jobs:
                job.is_traced = self._is_next()
        else:
            self._gap -= plain
        for job in told:
            parent = job.trace
            if is_for_parents and parent and job.envelope is PLAIN and job.count == 1:  # nearly all
                if len(parent) == _SIZE and parent[-1] in _EVEN:
                    continue
                if _FIRST(parent) is not None:
                    job.is_traced = self.believed.take(now_s)
                    continue
            job.is_traced = self._is_told(job, now_s)

    def _is_next(self) -> bool:
        if self._gap > 0:
            self._gap -= 1
            return False
        self._gap = self._draw()
        return True

    def _is_told(self, job: Job, now_s: float) -> bool:
        if job.count > 1:  # its worker died, or lost it
            return True
        if (job.envelope.failed or TRIED in job.fields) and self.forced.take(now_s):
            return True  # the first failure tells that, the second tells why: with what its handler does
        parent = parse(job.trace) if job.trace and self._trusts and is_straight(job.envelope) else None
        if parent is None:
            self.malformed += bool(job.trace) and self._trusts and not is_valid(job.trace)
            return self._is_next()
        trace_id, _, is_sampled = parent
        if not self._follows:  # `traceidratio` reads the same of the same trace, wherever it is asked
            return int.from_bytes(trace_id[8:], "big") < self._ratio * 2**64
        return is_sampled and self.believed.take(now_s)

    def parent_of(self, job: Job) -> Parent | None:
        """Return the sender's span, as far as it counts here."""
        return parse(job.trace) if job.trace and self._trusts else None

    def trace_of(self, job: Job) -> Parent | None:
        """Return the sender's span, if this attempt is in its trace; None for one that begins a trace of its own."""
        if not job.trace or not self._trusts or not self._joins:
            return None
        return parse(job.trace) if job.envelope is PLAIN or is_straight(job.envelope) else None

    def state_of(self, job: Job) -> str:
        """Return the sender's `tracestate`; empty where it has none, or one that W3C does not allow."""
        if not self._trusts or TRACE_STATE not in job.fields:
            return ""
        found = dict(zip(job.fields[::2], job.fields[1::2], strict=False)).get(TRACE_STATE, b"")
        if not found:
            return ""
        if not _STATE.match(found):
            self.states_dropped += 1
            return ""
        return found.decode()


def is_straight(envelope: Envelope) -> bool:
    """Return whether an attempt is the first one of a job that has not waited on purpose: not delayed, snoozed or sent back."""
    return not (envelope.failed or envelope.first_ms or envelope.at_ms or envelope.snoozed_ms)
