"""The checks of compliance that go by what jobs have left: backups, reports, scans, analyses, and nothing that is overdue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final

import msgspec

from handlers.contracts.vulnerabilities import Scanned, digest_of_paths
from handlers.kit import backups
from handlers.kit.evidence import BACKUP, Evidence
from handlers.kit.facts import Facts
from handlers.kit.judging import REPORT_EVERY_H, TIME, Checks, Limits, Look, listed
from handlers.kit.sections import Scan

CHECKS: Final = Checks()
SCAN: Final = "scan-vulnerabilities"


def _recent(facts: Facts, name: str, type_: str, subject: str, since: datetime) -> Look:
    """Return a look at the newest evidence about a subject from this time on; `name` is what the settings call that."""
    if facts.partial:
        whole = [f"roots.{alias} was not looked at as a whole: {why}" for alias, why in facts.partial.items()]
        return Look(name, f"no evidence, since {listed(whole)}", is_known=False)
    found = _about(facts, type_, subject, since)
    if found:
        return Look(name, evidence=[max(found, key=lambda each: each.at)])
    changed = facts.changed.get((type_, subject), 0)
    why = f"; {changed} not as written" if changed else ""
    return Look(name, f"no evidence since {since:{TIME}}{why}", is_known=False)


def _about(facts: Facts, type_: str, subject: str, since: datetime) -> list[Evidence]:
    return [each for each in facts.evidence if (each.type, each.subject) == (type_, subject) and since <= each.at <= facts.end]


@CHECKS.add("backups-restored", "Each backup was lately restored into a scratch database, and its rows counted there", "TEST")
def _backups_restored(facts: Facts, limits: Limits) -> Iterator[Look]:
    since = limits.since(facts.begin, facts.end)[BACKUP]
    only = msgspec.structs.replace(facts, evidence=[each for each in facts.evidence if _is_restored(each.result)])
    for alias in facts.settings.backups:
        look, other = (_recent(each, f"backups.{alias}", BACKUP, alias, since) for each in (only, facts))
        yield Look(look.name, "only listed", evidence=other.evidence) if look.wrong and not other.wrong else look


def _is_restored(result: object) -> bool:
    return isinstance(result, backups.Manifest) and result.verified == "restored"


@CHECKS.add("backups-intact", "Each backup that was lately made is as it was written", "TEST")
def _backups_intact(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias in facts.settings.backups:
        changed = facts.changed.get((BACKUP, alias), 0)
        look = _recent(facts, f"backups.{alias}", BACKUP, alias, limits.since(facts.begin, facts.end)[BACKUP])
        yield Look(look.name, f"{changed} not as written") if changed else look


@CHECKS.add("reports-made", "Each report that is due again and again was made in time", "TEST")
def _reports_made(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, report in facts.settings.reports.items():
        if report.enabled:
            since = facts.end - timedelta(hours=REPORT_EVERY_H[report.every])
            yield _recent(facts, f"reports.{alias}", "generate-reports", report.report, since)


@CHECKS.add("scans-made", "Each scan for vulnerabilities was lately made, and could judge all that it looked at", "TEST")
def _scans_made(facts: Facts, limits: Limits) -> Iterator[Look]:
    for name, look, last in _last_scans(facts, limits):
        yield look if last is None else Look(name, last.verdict if last.verdict == "incomplete" else "", evidence=look.evidence)


@CHECKS.add("scans-clean", "The last of each scan has found nothing, and could judge all that it looked at", "TEST")
def _scans_clean(facts: Facts, limits: Limits) -> Iterator[Look]:
    for name, look, last in _last_scans(facts, limits):
        yield look if last is None else Look(name, _flaws(last), evidence=look.evidence)


def _flaws(last: Scanned) -> str:
    """Return what a scan has found, also what its level let pass."""
    return last.verdict if last.verdict != "clean" else "findings below its level" if any(last.findings.values()) else ""


def _last_scans(facts: Facts, limits: Limits) -> Iterator[tuple[str, Look, Scanned | None]]:
    """Yield the last run of each scan of the settings; one that was asked for something else is none of them."""
    since = limits.since(facts.begin, facts.end)[SCAN]
    for alias, scan in facts.settings.scans.items():
        if scan.enabled:
            own = [each for each in facts.evidence if each.type == SCAN and _is_of(each.result, scan)]
            look = _recent(msgspec.structs.replace(facts, evidence=own), f"scans.{alias}", SCAN, scan.to, since)
            changed = facts.changed.get((SCAN, scan.to), 0)
            if changed and look.evidence:  # which scan it was, and when, is not to be believed: it may have been the last one
                look = Look(look.name, f"no evidence, since {changed} in its folder are not as written", is_known=False)
            yield look.name, look, look.evidence[0].result if look.evidence else None


def _is_of(result: Scanned, scan: Scan) -> bool:
    asked = (digest_of_paths(scan.targets), scan.fail_on, scan.advisories)
    is_ignored = bool(result.ignored) and not scan.ignore  # by a job that somebody has sent by hand
    return (result.paths_sha256, result.fail_on, result.advisories) == asked and not is_ignored


@CHECKS.add("inventories-made", "The last of each scan has written a bill of materials", "TEST")
def _inventories_made(facts: Facts, limits: Limits) -> Iterator[Look]:
    for name, look, last in _last_scans(facts, limits):
        yield look if last is None else Look(name, "" if last.sbom else "no bill", evidence=look.evidence)


@CHECKS.add("threats-watched", "Logs were analyzed for attacks all the time, without a gap and without a blind spot", "TEST")
def _threats_watched(facts: Facts, limits: Limits) -> Iterator[Look]:
    since = limits.since(facts.begin, facts.end)["analyze-threats"]
    for alias, analysis in facts.settings.threats.items():
        if not analysis.enabled:
            continue
        look = _recent(facts, f"threats.{alias}", "analyze-threats", alias, since)
        yield look if look.wrong else _watched(facts, alias, _about(facts, "analyze-threats", alias, since), limits)


def _watched(facts: Facts, alias: str, found: Sequence[Evidence], limits: Limits) -> Look:
    """Return a look at all runs of an analysis that read on from the one before; others look at old lines."""
    runs = sorted((each for each in found if each.result.gap_s is not None), key=lambda each: each.at)
    times = [facts.begin, *(each.at for each in runs if each.at > facts.begin), facts.end]
    for before, after in pairwise(times):
        if after - before > timedelta(minutes=limits.threat_minutes):
            return Look(f"threats.{alias}", f"no evidence from {before:{TIME}} to {after:{TIME}}", is_known=False)
    blind = [each for each in runs if each.result.unreadable or each.result.blind or each.result.failed_rules]
    return Look(f"threats.{alias}", f"{len(blind)} runs could not see all" if blind else "", evidence=runs)


@CHECKS.add("assessed-before", "Each assessment that is due again and again was made in time before this one", "TEST")
def _assessed_before(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, audit in facts.settings.audits.items():
        if audit.enabled:
            since = facts.end - timedelta(days=limits.assessment_days)
            yield _recent(facts, f"audits.{alias}", "generate-compliance-report", audit.profile, since)


@CHECKS.add("logs-expired", "Nothing is left of what a cleanup should have deleted days ago", "TEST")
def _logs_expired(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, count in facts.overdue.items():
        if count is None:
            yield Look(f"cleanups.{alias}", "no evidence: its root cannot be looked at as a whole", is_known=False)
        else:
            yield Look(f"cleanups.{alias}", f"{count} files are left" if count else "")
