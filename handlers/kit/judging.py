"""What a check of compliance is: a small function of facts, which looks at nothing else.

It yields what it looked at, a `Look` for each alias, root or file. It is met where there was something to look at, and all of
that is right; what cannot be known, for want of evidence, is never right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.kit.evidence import BACKUP, Evidence
from handlers.kit.facts import Facts

TIME: Final = "%Y-%m-%d %H:%M %Z"
SHOWN: Final = 5  # a guess: as many as a line of a report has room for
MAX_REFERENCES: Final = 50  # a guess: the newest; nobody opens more
REPORT_EVERY_H: Final = {"day": 26, "week": 7 * 24 + 2, "month": 31 * 24 + 2}  # two hours for the queue


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How old evidence may be at the end of the time that a report is about. Guesses, which a profile may replace."""

    backup_hours: Annotated[int, Meta(ge=1, le=9600)] = 26  # a day, and two hours for the backup itself
    scan_days: Annotated[int, Meta(ge=1, le=400)] = 7
    threat_minutes: Annotated[int, Meta(ge=5, le=10_080)] = 15  # three runs, of which two may fail
    cleanup_days: Annotated[int, Meta(ge=1, le=400)] = 8  # a week, for those who clean up so often, and a day
    assessment_days: Annotated[int, Meta(ge=1, le=400)] = 35  # a month, and some days for those who send it by hand

    def since(self, begin: datetime, end: datetime) -> dict[str, datetime]:
        """Return from when on the evidence of each type counts, for a report about this time."""
        return {
            BACKUP: end - timedelta(hours=self.backup_hours),
            "generate-reports": end - timedelta(hours=max(REPORT_EVERY_H.values())),
            "scan-vulnerabilities": end - timedelta(days=self.scan_days),
            "analyze-threats": begin - timedelta(minutes=self.threat_minutes),
            "generate-compliance-report": end - timedelta(days=self.assessment_days),
        }


class Look(msgspec.Struct, frozen=True):
    """What a check looked at: its name, what is wrong with it, whether that is known, and the evidence."""

    name: str
    wrong: str = ""
    is_known: bool = True
    evidence: Sequence[Evidence] = ()


class Verdict(msgspec.Struct, frozen=True):
    """What a check found, in words, and by which evidence."""

    state: Literal["met", "not met", "no evidence"]
    text: str
    evidence: list[Evidence]


Looks = Callable[[Facts, Limits], Iterator[Look]]


class Check(msgspec.Struct, frozen=True):
    """A check: what it says where it is met, how it is made, and how it looks."""

    title: str
    method: Literal["EXAMINE", "TEST"]
    looks: Looks


class Checks(dict[str, Check]):
    """Checks, by the names that profiles call them."""

    def add(self, name: str, title: str, method: Literal["EXAMINE", "TEST"] = "EXAMINE") -> Callable[[Looks], Looks]:
        """Return what declares a function as a check."""

        def declare(looks: Looks) -> Looks:
            self[name] = Check(title, method, looks)
            return looks

        return declare


def judge(check: Check, facts: Facts, limits: Limits) -> Verdict:
    """Return what a check finds in these facts."""
    looks = list(check.looks(facts, limits))
    wrong = [look for look in looks if look.wrong]
    evidence = [each for look in looks for each in look.evidence]
    newest = sorted(evidence, key=lambda each: (each.at, each.place), reverse=True)[:MAX_REFERENCES]
    if not looks:
        return Verdict("no evidence", "no evidence: there is nothing to look at", [])
    if not wrong:
        return Verdict("met", listed([look.name for look in looks]), newest)
    state = "not met" if any(look.is_known for look in wrong) else "no evidence"
    return Verdict(state, listed([f"{look.name}: {look.wrong}" for look in wrong]), newest)


def listed(names: Sequence[str]) -> str:
    """Return the first of these names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return "; ".join(names[:SHOWN]) + more
