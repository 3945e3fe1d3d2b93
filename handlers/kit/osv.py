"""What advisories say of a package: whether its version is affected, and how badly.

They are in OSV's JSON (https://ossf.github.io/osv-schema/), and are judged as that schema says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Any, Final, cast

import msgspec
from cvss import CVSS2, CVSS3, CVSS4, CVSSError  # pyright: ignore[reportMissingTypeStubs]
from msgspec import Meta
from packaging.version import Version

from handlers.contracts.vulnerabilities import ADVISORY, Level
from handlers.kit.lockfiles import Ecosystem, Package
from handlers.kit.versions import SemVer, npm, pypi, without_local

LEVELS: Final[tuple[Level, ...]] = ("low", "medium", "high", "critical")  # in their order; `unknown` has no place in it
MAX_VECTOR_CHARS: Final = 300  # one of CVSS 4.0 with all metrics has 200
MAX_PARSED: Final = 100_000  # a guess: versions that are kept as they are compared, 500 bytes each

_LABELS: Final[Mapping[str, Level]] = {
    "LOW": "low",
    "MODERATE": "medium",
    "MEDIUM": "medium",
    "HIGH": "high",
    "CRITICAL": "critical",
}
_SCORES: Final[tuple[tuple[float, Level], ...]] = ((9.0, "critical"), (7.0, "high"), (4.0, "medium"), (0.0, "low"))  # CVSS 3.1
_VECTORS: Final[Mapping[str, Any]] = {"CVSS_V2": CVSS2, "CVSS_V3": CVSS3, "CVSS_V4": CVSS4}

AdvisoryId = Annotated[str, Meta(pattern=ADVISORY)]
_is_id: Final = re.compile(ADVISORY).match


# --- what an advisory says -------------------------------------------------------------------------------------------------


class _Named(msgspec.Struct, frozen=True):
    ecosystem: str
    name: str


class _Event(msgspec.Struct, frozen=True):
    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class _Range(msgspec.Struct, frozen=True):
    type: str
    events: list[_Event] = []


class _Severity(msgspec.Struct, frozen=True):
    type: str
    score: str


class _Label(msgspec.Struct, frozen=True):
    severity: Any = None


class Affected(msgspec.Struct, frozen=True):
    """A package and which of its versions; the package is missing where only a repository is known."""

    package: _Named | None = None
    ranges: list[_Range] | None = None
    versions: list[str] | None = None
    severity: list[_Severity] | None = None
    ecosystem_specific: _Label | None = None
    database_specific: _Label | None = None


class Advisory(msgspec.Struct, frozen=True):
    """An advisory, without its texts for people."""

    id: AdvisoryId
    modified: datetime | None = None
    withdrawn: datetime | None = None
    aliases: list[str] | None = None
    affected: list[Affected] | None = None
    severity: list[_Severity] | None = None
    database_specific: _Label | None = None

    @property
    def names(self) -> set[str]:
        """Its id and its aliases, but for those that are no ids: some are notes for people."""
        return {self.id, *filter(_is_id, self.aliases or ())}


def level_of(advisory: Advisory, affected: Affected) -> Level:
    """Return how severe it is: by the published label, else by the highest score of CVSS; `unknown` without either."""
    for said in (affected.ecosystem_specific, affected.database_specific, advisory.database_specific):
        label = said.severity if said is not None else None
        if isinstance(label, str) and label.upper() in _LABELS:
            return _LABELS[label.upper()]
    scores = [score for each in (*(affected.severity or ()), *(advisory.severity or ())) for score in _score(each)]
    return next(level for least, level in _SCORES if max(scores) >= least) if scores else "unknown"


def _score(severity: _Severity) -> list[float]:
    """Return the base score of a vector; nothing where it is none."""
    vector = _VECTORS.get(severity.type)
    if vector is None or len(severity.score) > MAX_VECTOR_CHARS:
        return []
    try:
        return [float(vector(severity.score).base_score)]
    except (CVSSError, ValueError):
        return []


# --- which versions it is about --------------------------------------------------------------------------------------------


def is_affected(package: Package, affected: Affected) -> bool | None:
    """Return whether a version is affected, as OSV's schema says; None if what is said cannot be compared with it.

    A version with a local part, such as `2.0.0+cpu`, is listed where the one without it is, and not after it.
    """
    installed = _parsed(package.ecosystem, package.version)
    ranges = [each for each in affected.ranges or () if each.type != "GIT"]
    if not ranges and not affected.versions:
        return None
    if _is_listed(package, installed, affected.versions or ()):
        return True
    found = [_is_in_range(package.ecosystem, installed, each.events) for each in ranges]
    return True if True in found else None if None in found or installed is None else False


def _is_listed(package: Package, installed: Version | SemVer | None, versions: Iterable[str]) -> bool:
    """Return whether a version is in a list: as it is written, or as another spelling of it."""
    listed = set(versions)
    if package.version in listed or installed is None:
        return package.version in listed
    same = {installed, without_local(installed)}
    return any(_parsed(package.ecosystem, each) in same for each in listed)


def _is_in_range(ecosystem: Ecosystem, installed: Version | SemVer | None, events: Iterable[_Event]) -> bool | None:
    marks: list[tuple[bool, Any, int, str]] = []
    is_limited, is_below = False, False
    for event in events:
        for rank, kind in enumerate(("fixed", "last_affected", "introduced", "limit")):
            text: str | None = getattr(event, kind)
            if text is None:
                continue
            is_open = text == ("*" if kind == "limit" else "0")
            place: Any = 0 if is_open else _parsed(ecosystem, text)
            if place is None or (installed is None and not is_open):
                return None
            if kind == "limit":
                is_limited, is_below = True, is_below or is_open or cast("Any", installed) < place
            else:
                marks.append((not is_open, place, rank, kind))
    if not marks:
        return None
    return _is_between(installed, marks) and (is_below or not is_limited)


def _is_between(installed: Any, marks: list[tuple[bool, Any, int, str]]) -> bool:
    """Return what the last event at or below a version says of it; `0` is below all versions."""
    is_in = False
    for is_version, place, _, kind in sorted(marks):
        match kind:
            case "introduced":
                is_in = is_in or not is_version or installed >= place
            case "fixed":
                is_in = is_in and is_version and installed < place
            case _:
                is_in = is_in and is_version and without_local(installed) <= place
    return is_in


def fixes_of(package: Package, affected: Affected) -> set[str]:
    """Return the versions above the installed one that are said to fix it."""
    installed: Any = _parsed(package.ecosystem, package.version)
    texts = {event.fixed for each in affected.ranges or () if each.type != "GIT" for event in each.events if event.fixed}
    # PEP 440 lets white space stand around a version, and Unicode has much of that.
    return {text.strip() for text in texts if installed and (_parsed(package.ecosystem, text) or installed) > installed}


def in_order(ecosystem: Ecosystem, versions: Iterable[str]) -> list[str]:
    """Return versions in their order."""
    return sorted(versions, key=lambda text: cast("Any", _parsed(ecosystem, text)))


@lru_cache(MAX_PARSED)
def _parsed(ecosystem: Ecosystem, text: str) -> Version | SemVer | None:
    return pypi(text) if ecosystem == "PyPI" else npm(text)


# --- what is found ---------------------------------------------------------------------------------------------------------


class Match(msgspec.Struct, frozen=True):
    """One vulnerability of a package, of which one or several advisories tell: `names` are all their ids and aliases."""

    names: set[str]
    level: Level
    fixed: set[str]

    @property
    def id(self) -> str:
        """The id that stays when a database adds another advisory: that of CVE, where there is one."""
        return min(self.names, key=lambda name: (not name.startswith("CVE-"), name))


def matches(package: Package, about: Iterable[tuple[Advisory, Affected]]) -> tuple[list[Match], list[Match]]:
    """Return the vulnerabilities that a package has, and those that cannot be decided, of what is said `about` it."""
    hits: list[Match] = []
    unsure: list[Match] = []
    for advisory, affected in about:
        verdict = is_affected(package, affected)
        if verdict is not False:
            match = Match(advisory.names, level_of(advisory, affected), fixes_of(package, affected))
            (hits if verdict else unsure).append(match)
    found = _merged(hits)
    known = {name for match in found for name in match.names}
    return found, [match for match in _merged(unsure) if not match.names & known]


def _merged(matches: Iterable[Match]) -> list[Match]:
    """Return the matches, those that share an id or an alias as one, of the highest level that one of them knows."""
    found: list[Match] = []
    for match in matches:
        same = [each for each in found if each.names & match.names] + [match]
        found = [each for each in found if not each.names & match.names]
        known = {each.level for each in same}
        ordered: list[Level] = [each for each in LEVELS if each in known]
        level: Level = ordered[-1] if ordered else "unknown"
        names, fixed = (set[str]().union(*texts) for texts in zip(*((each.names, each.fixed) for each in same), strict=True))
        found.append(Match(names, level, fixed))
    return sorted(found, key=lambda match: match.id)
