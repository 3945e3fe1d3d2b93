"""The report of a scan for vulnerabilities: what is judged of the packages, what is not, and what people have been told."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Generator, Iterable
from datetime import datetime, timedelta
from typing import Final, Literal

import msgspec

from handlers.contracts.vulnerabilities import Ignore, Level, Reason, ScanVulnerabilities, Severity, Verdict
from handlers.kit.advisories import Database
from handlers.kit.files import open_below, open_file, open_root
from handlers.kit.lockfiles import Ecosystem, Gap, Inventory, Package
from handlers.kit.osv import LEVELS, Match, in_order, matches
from handlers.kit.points import point
from handlers.kit.sbom import purl
from handlers.kit.settings import Settings
from runtime import Dead

REPORT: Final = "report.json"
TOLD: Final = ".told"  # an empty file beside the report: the jobs that tell people of it were sent
MAX_REPORT_BYTES: Final = 64 * 2**20  # a guess: a finding has 400 bytes, and 50,000 are the most
MAX_FINDINGS: Final = 50_000  # a guess: no one reads so many
MAX_UNDECIDED: Final = 1000  # that are listed; all are counted
MAX_FIXED: Final = 10  # versions that fix one finding, the guess being that each has one for each branch
LOOK_BACK: Final = 200  # reports, a guess: with a scan of several targets each six hours a fortnight

_ORDER: Final[tuple[Level, ...]] = ("critical", "high", "unknown", "medium", "low")  # as people want to read them
_NAME: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z2-7]{26}(?![\s\S])")


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One vulnerability of one version of a package; `finding` is the same in each scan that finds it."""

    finding: str
    id: str
    aliases: list[str]
    level: Level
    package: str
    version: str
    purl: str
    targets: list[str]
    fixed: list[str] = []
    ignored_until: str = ""
    reason: str = ""


class Undecided(msgspec.Struct, frozen=True, kw_only=True):
    """An advisory that could not be compared with the version of a package."""

    id: str
    purl: str
    targets: list[str]


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """The advisories that were asked: how many could be read, and when the newest of each needed ecosystem was changed."""

    alias: str
    sha256: str
    advisories: int
    unread: int
    newest: dict[Ecosystem, str | None]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The content of `report.json`. `alerts` and `told` are findings that people hear of now, and of which they have heard."""

    kind: Literal["scan-vulnerabilities"] = "scan-vulnerabilities"
    format: Literal[1] = 1
    verdict: Verdict
    born: str
    fail_on: Severity
    packages: int
    database: Source
    files: dict[str, str]
    targets_sha256: str
    incomplete: dict[Reason, int]
    gaps: list[Gap]
    findings: list[Finding]
    undecided: list[Undecided]
    notify: str | None
    alerts: list[str]
    told: list[str]

    @property
    def db_date(self) -> str | None:
        """When the advisories were last changed, of the ecosystem for which that is longest ago; None if one has no date."""
        dates = [date for date in self.database.newest.values() if date is not None]
        return min(dates, default=None) if len(dates) == len(self.database.newest) else None

    def to_tell(self) -> list[Finding]:
        """Return the findings that people hear of by this scan."""
        new = set(self.alerts)
        return [each for each in self.findings if each.finding in new]

    def levels(self) -> dict[Level, int]:
        """Return how many findings there are of each level, those that are ignored left out."""
        counted = [each.level for each in self.findings if not each.ignored_until]
        return {level: counted.count(level) for level in _ORDER}


def iso(moment: datetime) -> str:
    """Return a time in UTC, to the second."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


# --- judging ---------------------------------------------------------------------------------------------------------------


def note_age(database: Database, max_age_days: int, born: datetime, alias: str, inventory: Inventory) -> None:
    """Note for each ecosystem that is needed whether the advisories are there, and recent enough; and those not read."""
    for ecosystem in ecosystems_of(inventory):
        date = database.dates.get(ecosystem)
        reason: Reason | None = None
        if ecosystem not in database.ecosystems:
            reason = "no-advisories"
        elif date is None:
            reason = "advisories-undated"
        elif born - date > timedelta(days=max_age_days):
            reason = "advisories-old"
        if reason:
            inventory.miss(reason, f"advisories.{alias}", package=ecosystem)
    for _ in range(database.unread):
        inventory.miss("advisories-unread", f"advisories.{alias}")


def ecosystems_of(inventory: Inventory) -> list[Ecosystem]:
    """Return the ecosystems of the packages, in the order of their names."""
    found: set[Ecosystem] = {package.ecosystem for package in inventory.packages}
    return sorted(found)


def judged(message: ScanVulnerabilities, inventory: Inventory, database: Database, born: datetime) -> Report:
    """Return the report, but for what people are told.

    Raises:
        Dead: there are too many findings; `too-large`.
    """
    ignores = {each.id: each for each in message.ignore if each.until >= born.date()}
    findings: list[Finding] = []
    undecided: list[Undecided] = []
    for package, targets in sorted(inventory.packages.items()):
        hits, unsure = matches(package, database.about(package))
        findings += [_finding(package, match, targets, ignores) for match in hits]
        for match in unsure:
            inventory.counts["undecided"] += 1
            undecided += [Undecided(id=match.id, purl=purl(package), targets=targets)]
        del undecided[MAX_UNDECIDED:]
        if len(findings) > MAX_FINDINGS:
            raise Dead(f"more than {MAX_FINDINGS} findings; hint: fewer targets", "too-large")
    failing = failing_of(findings, message.fail_on)
    return Report(
        verdict="vulnerable" if failing else "incomplete" if inventory.counts else "clean",
        born=iso(born),
        fail_on=message.fail_on,
        packages=len(inventory.packages),
        database=Source(
            alias=message.advisories,
            sha256=database.sha256,
            advisories=database.count,
            unread=database.unread,
            newest={each: iso(database.dates[each]) if each in database.dates else None for each in ecosystems_of(inventory)},
        ),
        files=dict(sorted(inventory.files.items())),
        targets_sha256=inventory.sha256,
        incomplete=dict(sorted(inventory.counts.items())),
        gaps=inventory.gaps,
        findings=sorted(findings, key=lambda each: (_ORDER.index(each.level), each.purl, each.id)),
        undecided=undecided,
        notify=message.notify,
        alerts=[],
        told=[],
    )


def failing_of(findings: Iterable[Finding], fail_on: Severity) -> list[Finding]:
    """Return the findings that are as severe as asked for, or of which nobody knows how severe they are."""
    levels = {*LEVELS[LEVELS.index(fail_on) :], "unknown"}
    return [each for each in findings if each.level in levels and not each.ignored_until]


def _finding(package: Package, match: Match, targets: list[str], ignores: dict[str, Ignore]) -> Finding:
    known, name = match.id, purl(package)
    ignored = next((ignores[each] for each in sorted(match.names) if each in ignores), None)
    return Finding(
        finding=hashlib.sha256(f"{known}\n{name}".encode()).hexdigest()[:16],
        id=known,
        aliases=sorted(match.names - {known}),
        level=match.level,
        package=package.name,
        version=package.version,
        purl=name,
        targets=targets,
        fixed=in_order(package.ecosystem, match.fixed)[:MAX_FIXED],
        ignored_until=ignored.until.isoformat() if ignored else "",
        reason=ignored.reason if ignored else "",
    )


# --- what people have been told --------------------------------------------------------------------------------------------


def with_alerts(report: Report, told_before: set[str]) -> Report:
    """Return the report with what is new since people were told; what was fixed in between is told of again."""
    failing = [each.finding for each in failing_of(report.findings, report.fail_on)]
    alerts = [each for each in failing if each not in told_before]
    return msgspec.structs.replace(report, alerts=alerts, told=sorted(failing))


def told_before(settings: Settings, to: str, report: Report) -> set[str]:
    """Return what the same channel is known to have heard of the same files, by the newest scan that is published.

    What that scan itself was to tell counts only when it is confirmed: it may have been cancelled before it was done.
    """
    with _folder(settings, to) as folder:
        names = sorted(filter(_NAME.match, os.listdir(folder)), reverse=True)
        for each in names[:LOOK_BACK]:
            found = _read(folder, each)
            if found is not None and (found.targets_sha256, found.notify) == (report.targets_sha256, report.notify):
                return set(found.told) - (set() if _is_confirmed(folder, each) else set(found.alerts))
    return set()


def _is_confirmed(folder: int, name: str) -> bool:
    with open_below(folder, [name]) as inner:
        return TOLD in os.listdir(inner)


def confirm(settings: Settings, to: str, name: str) -> None:
    """Note that people were told by a scan; nothing of one that was deleted."""
    with contextlib.suppress(FileNotFoundError), _folder(settings, to) as folder, open_below(folder, [name]) as inner:
        point("scan-before-confirm")
        os.close(os.open(TOLD, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=inner))
        os.fsync(inner)
        point("scan-confirmed")


def read_report(settings: Settings, to: str, name: str) -> Report:
    """Return the report of a scan that is published.

    Raises:
        Dead: it is not one; `output-exists`.
    """
    with _folder(settings, to) as folder:
        found = _read(folder, name)
    if found is None:
        raise Dead(f"the folder {name} exists, and is not what this job writes", "output-exists")
    return found


@contextlib.contextmanager
def _folder(settings: Settings, to: str) -> Generator[int]:
    alias, _, rest = to.partition(":")
    with open_root(alias, settings.root(alias)) as top, open_below(top, rest.split("/")) as folder:
        yield folder


def _read(folder: int, name: str) -> Report | None:
    """Return the report in a folder of this one; None if there is none that can be read."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), open_below(folder, [name]) as inner:
        descriptor = open_file(inner, REPORT)
        if descriptor is not None:
            with open(descriptor, "rb") as file, contextlib.suppress(msgspec.MsgspecError):
                return msgspec.json.decode(file.read(MAX_REPORT_BYTES), type=Report)
    return None
