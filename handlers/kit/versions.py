"""The order of versions: that of PyPI (PEP 440), and that of npm (Semantic Versioning 2.0.0)."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from packaging.version import InvalidVersion, Version

MAX_VERSION_CHARS: Final = 128  # a guess: far above any that was published, and small enough for any comparison

# 16 digits have the largest number that npm itself can compare. Events of advisories may leave out what is zero.
_SEMVER: Final = re.compile(
    r"[v=]?([0-9]{1,16})(?:\.([0-9]{1,16}))?(?:\.([0-9]{1,16}))?(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?(?![\s\S])"
)


class SemVer(NamedTuple):
    """A version of npm, ordered as SemVer says: a pre-release is below its release, and the build does not count.

    Each part of a pre-release is `(0, number, "")` or `(1, 0, text)`, since numbers are below texts; of a release there is one
    part above all.
    """

    major: int
    minor: int
    patch: int
    before: tuple[tuple[int, int, str], ...]


_RELEASE: Final = ((2, 0, ""),)


def pypi(text: str) -> Version | None:
    """Return a version of PyPI; None if it is none."""
    if len(text) > MAX_VERSION_CHARS:
        return None
    try:
        return Version(text)
    except InvalidVersion:
        return None


def npm(text: str) -> SemVer | None:
    """Return a version of npm; None if it is none."""
    found = _SEMVER.match(text) if len(text) <= MAX_VERSION_CHARS else None
    if found is None:
        return None
    parts = found[4].split(".") if found[4] else []
    if not all(parts):
        return None
    before = tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts)
    return SemVer(int(found[1]), int(found[2] or 0), int(found[3] or 0), before or _RELEASE)


def without_local(version: Version | SemVer) -> Version | SemVer:
    """Return a version of PyPI without what a distributor has added: `2.0.0` of `2.0.0+cpu`."""
    return Version(version.public) if isinstance(version, Version) and version.local else version
