"""The payload and the result of `scan-vulnerabilities`.

The result is also in the manifest `.job.json` of the folder that a scan publishes, as evidence for whoever reads it later.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias, Line, RootPath, check_path
from runtime import Priority, contract

MAX_REASON_CHARS: Final = 200  # a guess: why a finding is accepted, in one sentence

Severity = Literal["low", "medium", "high", "critical"]
Level = Literal["low", "medium", "high", "critical", "unknown"]
# `vulnerable`: a finding of the level asked for, or of an unknown one. `incomplete`: none, but not all could be judged.
Verdict = Literal["clean", "vulnerable", "incomplete"]
# Why the silence about a package, a line, a file or an ecosystem does not mean that it is clean.
Reason = Literal[
    "unpinned",  # a package without one exact version
    "url",  # a package from a URL, a repository or a file: advisories are about those of a registry
    "unparsed",  # a line, a name or a version that could not be read
    "unread",  # a file that another one names: missing, a link, or one too many
    "outside",  # a file that another one names, which is not below the root
    "empty",  # a target that names no package
    "undecided",  # an advisory that cannot be compared with the version that is installed
    "no-advisories",  # there are none of the ecosystem
    "advisories-old",  # the newest one of the ecosystem is older than the settings allow
    "advisories-undated",  # none of the ecosystem has a date
    "advisories-unread",  # files of the database that could not be read
]

ADVISORY: Final = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}(?![\s\S])"
ScanName = Annotated[
    str, Meta(pattern=r"^(?:[0-9]{8}T[0-9]{6}Z-[a-z2-7]{26})?(?![\s\S])", description="the folder of a scan, below `to`")
]
AdvisoryId = Annotated[str, Meta(pattern=ADVISORY, description="the id of an advisory: `CVE-2026-1`, `GHSA-…`, `PYSEC-…`")]

# What a lock file may be called: its name says how it is read.
LOCK_FILE: Final = re.compile(
    r"(?:.*\.txt|pylock(?:\.[^./]+)?\.toml|uv\.lock|poetry\.lock|Pipfile\.lock|package-lock\.json|npm-shrinkwrap\.json)(?![\s\S])"
)


class Ignore(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An advisory, by its id or an alias of it, that does not count up to and on a day (UTC), and why."""

    id: AdvisoryId
    until: date
    reason: Line

    def __post_init__(self) -> None:
        """Check the reason.

        Raises:
            ValueError: there is none, or it is too long.
        """
        if not 1 <= len(self.reason) <= MAX_REASON_CHARS:
            raise ValueError(f"must have 1 to {MAX_REASON_CHARS} characters - at `$.reason`")


class ScanScope(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a scan looks at, and what of it counts."""

    targets: Annotated[list[RootPath], Meta(min_length=1, max_length=50)]
    to: RootPath
    advisories: Alias = "osv"
    sbom: bool = True
    fail_on: Severity = "high"
    ignore: Annotated[list[Ignore], Meta(max_length=200)] = []
    notify: Alias | None = None

    def __post_init__(self) -> None:
        """Check the paths.

        Raises:
            ValueError: one is not in composed form (NFC), a target is named twice, or is not called as a lock file is.
        """
        check_path(self.to, "to")
        for target in self.targets:
            check_path(target, "targets")
            if not LOCK_FILE.match(re.split("[:/]", target)[-1]):
                raise ValueError("must be called as a lock file is, such as requirements.txt or uv.lock - at `$.targets`")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("must name each file once - at `$.targets`")


@contract("scan-vulnerabilities", priority=Priority.MEDIUM)
class ScanVulnerabilities(ScanScope, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Look for known vulnerabilities in the packages that lock files name, and write a report and an SBOM.

    They are in a folder of this scan, below the folder `to`. A finding of the level `fail_on` or above, or of an unknown one,
    makes the verdict `vulnerable`; `notify` is the channel that hears of each such finding that is new. `confirm` is set by the
    handler, in the job that notes that it was told.
    """

    confirm: ScanName = ""


class Scanned(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="scan-vulnerabilities"):
    """What a scan has found.

    Its times are ISO 8601 in UTC: `born`, when it was asked for; `db_date`, when the newest advisory was changed, of the
    ecosystem for which that is longest ago, none where one has no date. `findings` are counted by level, `incomplete` by reason.
    `ignored` findings are in neither. `alerted` findings are told of in jobs that this one has sent. Paths name their root.

    What was asked is `fail_on`, the alias `advisories`, and `paths_sha256`, which is `digest_of_paths` of the targets: it tells
    the scans of one folder apart. `targets_sha256` is of what was in the files. `advisories_read` is how many there were.
    """

    verdict: Verdict
    born: str
    fail_on: str
    advisories: str
    paths_sha256: str
    packages: int
    findings: dict[Level, int]
    incomplete: dict[Reason, int]
    undecided: int
    ignored: int
    alerted: int
    advisories_read: int
    db_date: str | None
    db_sha256: str
    targets_sha256: str
    folder: str
    report: str
    sbom: str | None


def digest_of_paths(targets: Sequence[str]) -> str:
    """Return the digest of the paths of targets, in whatever order they are named."""
    return hashlib.sha256(msgspec.json.encode(sorted(targets))).hexdigest()
