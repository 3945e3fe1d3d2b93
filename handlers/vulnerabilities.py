"""Handler that looks for known vulnerabilities: `scan-vulnerabilities`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

from handlers.contracts.notifications import MAX_TITLE_CHARS, SendNotification
from handlers.contracts.vulnerabilities import Scanned, ScanVulnerabilities, digest_of_paths
from handlers.kit.advisories import read_database
from handlers.kit.deliveries import check_channel, check_scheduled_channel
from handlers.kit.failures import unlogged
from handlers.kit.folders import folder
from handlers.kit.lockfiles import Package, read_targets
from handlers.kit.points import point
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.sbom import sbom
from handlers.kit.scans import REPORT, Report, confirm, judged, note_age, read_report, told_before, with_alerts
from handlers.kit.settings import Settings, at_start, current
from handlers.kit.threads import Stop
from runtime import Backoff, ConfigError, Dead, Finding, Job, Priority, Schedule, Snooze, handler

MEMORY_BYTES: Final = 768 * 2**20  # a guess: a child that has scanned 2,000 packages has 70 MiB (`bench/handlers_scan.py`)
SBOM: Final = "sbom.cdx.json"  # the name that CycloneDX itself recommends
MAX_TARGETS: Final = 3  # of one finding, in a message: with the longest names it has 3,500 of 4,000 characters
MAX_ALERTS: Final = 20  # a guess: who gets more at once reads the report; one more says how many there are
# Of its schedules:
JITTER_S: Final = 120.0  # a guess: not all at once
EXPIRES_S: Final = 6 * 3600.0  # the next one comes


def SCHEDULES() -> list[Schedule]:
    """Return a schedule for each of `scans` in the settings that is enabled.

    Raises:
        ConfigError: the settings cannot be used, or a scan names something that is missing or does not allow it.
    """
    settings = at_start()
    return [_schedule(alias, settings) for alias, scan in settings.scans.items() if scan.enabled]


def _schedule(alias: str, settings: Settings) -> Schedule:
    scan = settings.scans[alias]
    settings.check_root(f"scans.{alias}", scan.to, "write")
    for target in scan.targets:
        settings.check_root(f"scans.{alias}", target, "read")
    if scan.advisories not in settings.advisories:
        raise ConfigError(f"scans.{alias}: advisories {scan.advisories!r}: must be in `advisories`")
    check_scheduled_channel(f"scans.{alias}", settings, scan.notify)
    name = f"scan-vulnerabilities.{alias}"
    return Schedule(name, scan.when, scan.job(), tz=scan.tz, jitter_s=JITTER_S, expires_s=EXPIRES_S)


def CHECKS() -> list[Finding]:
    """Return a finding for each database of advisories: whether it can be read, and how old it is."""
    with unlogged():
        settings = current()
        return [_checked(alias, settings, datetime.now(UTC)) for alias in settings.advisories]


def _checked(alias: str, settings: Settings, now: datetime) -> Finding:
    try:
        found = read_database(settings, alias, set(), now, lambda number: None)
    except (Dead, Snooze) as error:
        return Finding("error", str(error))
    dates = ", ".join(f"{ecosystem} of {date:%Y-%m-%d}" for ecosystem, date in sorted(found.dates.items())) or "without a date"
    limit = timedelta(days=settings.advisories[alias].max_age_days)
    is_old = not found.dates or any(now - date > limit for date in found.dates.values())
    level = "warning" if is_old or found.unread else "ok"
    return Finding(level, f"advisories.{alias}: {found.count} advisories, {dates}; {found.unread} could not be read")


@handler(
    ScanVulnerabilities,
    timeout_s=600,
    retry=Backoff(base_s=60, cap_s=600, attempts=4),
    runs="process",
    memory_bytes=MEMORY_BYTES,
    result_ttl_s=RESULT_TTL_S,
)
def scan_vulnerabilities(message: ScanVulnerabilities, job: Job) -> Scanned | None:
    """Return when report and SBOM are in the folder of this scan, below `to`, and the jobs that tell people are sent.

    With them goes one that notes that they were: until then, a later scan tells people again. That one has no result.

    Runs in a child process, which is killed at the deadline, by a cancel, or when it takes too much memory. A vulnerable package
    is a result, not an error. May be repeated: a repeat finds the folder, and sends the same jobs under the same ids. Equal files
    and equal advisories make equal bytes.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-rows`, `too-large`, `input-missing`, `output-exists`.
        Snooze: the settings, the advisories or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not
            over: `locked`.
        Retry, OSError, MemoryError: retried by the policy.
    """
    settings = current()
    if message.confirm:
        confirm(settings, message.to, message.confirm)
        return None
    check_channel(settings, message.notify, "notify")
    born = datetime.fromtimestamp(int(job.born), UTC)
    name = f"{born:%Y%m%dT%H%M%SZ}-{job.work}"
    path = f"{message.to}/{name}"
    with folder(settings, path, job.work, Stop()) as out:
        done = out.already(Scanned)
        if done is not None:
            report = read_report(settings, message.to, name)
        else:
            packages, report = _scan(message, settings, born, job)
            if message.notify is not None:
                report = with_alerts(report, told_before(settings, message.to, report))
            out.write(REPORT, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
            point("scan-file")
            if message.sbom:
                out.write(SBOM, sbom(packages, job.work, born))
                point("scan-file")
            done = out.finish(_result(message, report, path), job)
    _tell(report, done, job)
    if report.alerts:
        job.send(msgspec.structs.replace(message, confirm=name), suffix="confirm")
    return done


def _scan(message: ScanVulnerabilities, settings: Settings, born: datetime, job: Job) -> tuple[list[Package], Report]:
    """Return the packages, and the report but for what people are told."""
    inventory = read_targets(settings, message.targets, job.attempt)
    wanted = {package[:2] for package in inventory.packages}
    database = read_database(settings, message.advisories, wanted, born, lambda done: job.progress(done, text="advisories"))
    note_age(database, settings.advisories_of(message.advisories).max_age_days, born, message.advisories, inventory)
    report = judged(message, inventory, database, born)
    job.progress(report.packages, report.packages, "packages")
    return list(inventory.packages), report


def _result(message: ScanVulnerabilities, report: Report, path: str) -> Scanned:
    return Scanned(
        verdict=report.verdict,
        born=report.born,
        fail_on=message.fail_on,
        advisories=message.advisories,
        paths_sha256=digest_of_paths(message.targets),
        packages=report.packages,
        findings=report.levels(),
        incomplete=report.incomplete,
        undecided=report.incomplete.get("undecided", 0),
        ignored=sum(bool(each.ignored_until) for each in report.findings),
        alerted=len(report.alerts),
        advisories_read=report.database.advisories,
        db_date=report.db_date,
        db_sha256=report.database.sha256,
        targets_sha256=report.targets_sha256,
        folder=path,
        report=f"{path}/{REPORT}",
        sbom=f"{path}/{SBOM}" if message.sbom else None,
    )


def _tell(report: Report, done: Scanned, job: Job) -> None:
    """Hand on a job for each finding that is new, so that the channel hears of it at once; of very many, one for the rest."""
    if report.notify is None:
        return
    new = report.to_tell()
    for each in new[:MAX_ALERTS]:
        title = f"{each.id} ({each.level}) in {each.package} {each.version}"
        fixed = f"Fixed in {', '.join(each.fixed)}\n" if each.fixed else ""
        body = f"{fixed}{chr(10).join(each.targets[:MAX_TARGETS])}\n\n{done.report}"
        data = {"id": each.id, "level": each.level, "purl": each.purl}
        _alert(report, title, body, data, each.finding, job)
    rest = new[MAX_ALERTS:]
    if rest:
        title = f"{len(rest)} more vulnerabilities"
        _alert(report, title, f"All are in {done.report}", {"count": len(rest)}, "more", job)


def _alert(report: Report, title: str, body: str, data: dict[str, Any], suffix: str, job: Job) -> None:
    alert = SendNotification(channel=report.notify or "", title=title[:MAX_TITLE_CHARS], body=body, level="critical", data=data)
    # The key keeps a second scan of the same files quiet that runs at the same time.
    key = f"scan:{report.notify}:{report.targets_sha256}:{suffix}"
    job.send(alert, suffix=suffix, key=key, priority=Priority.CRITICAL)
