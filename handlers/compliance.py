"""The handler that shows to auditors what can be shown: `generate-compliance-report`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from handlers.contracts.compliance import ComplianceReported, GenerateComplianceReport
from handlers.contracts.deliveries import ReportFile
from handlers.contracts.windows import Span
from handlers.kit import controls, oscal
from handlers.kit.assessed import csv_file, summary
from handlers.kit.controls import Profile, Read, load
from handlers.kit.deliveries import check_delivery, check_scheduled, deliver
from handlers.kit.evidence import collect
from handlers.kit.expiry import overdue
from handlers.kit.facts import Facts, folder_modes, secret_modes, settings_mode
from handlers.kit.failures import unlogged
from handlers.kit.folders import folder
from handlers.kit.judging import Verdict, judge
from handlers.kit.pages import pdf
from handlers.kit.points import point
from handlers.kit.reports import in_days, in_words
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.settings import Settings, at_start, current
from handlers.kit.threads import Stop
from runtime import Backoff, Dead, Finding, Job, Schedule, Snooze, handler

MEMORY_BYTES: Final = 768 * 2**20  # a guess: as for other documents
# Of its schedules:
JITTER_S: Final = 120.0  # a guess: not all at once
EXPIRES_S: Final = 7 * 86_400.0  # a guess: who was away for a week wants the last report


def SCHEDULES() -> list[Schedule]:
    """Return a schedule for each of `audits` in the settings that is enabled.

    Raises:
        ConfigError: the settings cannot be used, or an audit has no root with mode `write`.
    """
    settings = at_start()
    return [_schedule(alias, settings) for alias, audit in settings.audits.items() if audit.enabled]


def CHECKS() -> list[Finding]:
    """Return a finding for each audit that is sent again and again: whether its profile can be used."""
    with unlogged():
        settings = current()
        return [_checked(audit.profile, settings) for audit in settings.audits.values()]


def _checked(name: str, settings: Settings) -> Finding:
    try:
        found = load(settings, name)
    except (Dead, Snooze) as error:
        return Finding("error", str(error))
    return Finding("ok", f"audits: the profile {name} has {len(found.profile.controls)} controls")


def _schedule(alias: str, settings: Settings) -> Schedule:
    audit = settings.audits[alias]
    settings.check_root(f"audits.{alias}", audit.to, "write")
    check_scheduled(f"audits.{alias}", settings, audit.deliver)
    name = f"generate-compliance-report.{alias}"
    return Schedule(name, audit.cron, audit.job(), tz=audit.tz, jitter_s=JITTER_S, expires_s=EXPIRES_S)


@handler(
    GenerateComplianceReport,
    timeout_s=600,
    retry=Backoff(base_s=60, cap_s=600, attempts=4),
    runs="process",
    memory_bytes=MEMORY_BYTES,
    result_ttl_s=RESULT_TTL_S,
)
def generate_compliance_report(message: GenerateComplianceReport, job: Job) -> ComplianceReported:
    """Return when the report is in its folder, `profile/window/work` below `to`, and the job that tells people of it is sent.

    Runs in a child process. May be repeated: a repeat finds the folder. People are told once: that job is sent in the step in
    which this one is done. A control that is not satisfied is a result, and so is one for which there is no evidence.

    Raises:
        Dead: the job cannot succeed: no such profile, `bad-payload`; one that cannot be used, `rule-error`; `bad-path`,
            `too-large`, `output-exists`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not over: `locked`.
        OSError, MemoryError: retried by the policy.
    """
    settings, stop = current(), Stop()
    check_delivery(settings, message.deliver)
    span = message.window.at(job.born)
    path = f"{message.to}/{message.profile}/{span.name}/{job.work}"
    with folder(settings, path, job.work, stop) as out:
        done = out.already(ComplianceReported)
        if done is None:
            read = load(settings, message.profile)
            verdicts = _verdicts(read.profile, _facts(settings, read.profile, span, stop), job)
            results = _results(message.profile, read, verdicts, settings, span, job)
            point("compliance-assessed")
            for name, data in _files(message, results):
                out.write(name, data)
                point("compliance-file")
            files = [ReportFile(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in out.files]
            title = f"{read.profile.title}, {in_days(span)}"
            done = out.finish(_reported(results, title, path, files), job)
    text = f"{in_words(span)}\n\n{done.satisfied} of {done.controls} controls satisfied"
    text += f", {done.not_satisfied} not, {done.without_evidence} without evidence"
    delivered = deliver(job, message.deliver, done.title, text, done.folder, done.files)
    return msgspec.structs.replace(done, delivered=delivered)


def _facts(settings: Settings, profile: Profile, span: Span, stop: Stop) -> Facts:
    begin, end = span.begin.astimezone(UTC), span.end.astimezone(UTC)
    found = collect(settings, profile.limits.since(begin, end), end, stop)
    return Facts(
        settings=settings,
        begin=begin,
        end=end,
        folders=folder_modes(settings),
        secrets=secret_modes(settings),
        settings_file=settings_mode(),
        overdue=overdue(settings, timedelta(days=profile.limits.cleanup_days), end, stop),
        evidence=found.evidence,
        partial=found.partial,
        changed=found.changed,
    )


def _verdicts(profile: Profile, facts: Facts, job: Job) -> dict[str, Verdict]:
    """Return what each check of the profile finds; progress is in controls."""
    found: dict[str, Verdict] = {}
    for number, control in enumerate(profile.controls, 1):
        for name in control.checks:
            if name not in found:
                found[name] = judge(controls.CHECKS[name], facts, profile.limits)
        job.progress(number, len(profile.controls), "controls")
    return found


def _results(
    name: str, read: Read, verdicts: dict[str, Verdict], settings: Settings, span: Span, job: Job
) -> oscal.AssessmentResults:
    basis = oscal.Basis(
        name=name,
        profile=read.profile,
        profile_sha256=read.sha256,
        settings_sha256=hashlib.sha256(msgspec.json.encode(settings, order="deterministic")).hexdigest(),
        work=job.work,
        born=datetime.fromtimestamp(int(job.born), UTC),
        begin=span.begin.astimezone(UTC),
        end=span.end.astimezone(UTC),
    )
    return oscal.document(basis, verdicts)


def _files(message: GenerateComplianceReport, results: oscal.AssessmentResults) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the report, by their names; all of them show the same document."""
    for format_ in message.formats:
        match format_:
            case "oscal":
                yield "assessment-results.json", results.encode()
            case "pdf":
                yield "report.pdf", pdf(summary(results, message.page), _no_picture, _ignore).data
            case "csv":
                yield "controls.csv", csv_file(results)


def _no_picture(path: str) -> bytes:
    raise Dead("a compliance report has no images", "template-error")


def _ignore(rows: int) -> None:
    """Tell nobody how many rows are drawn."""


def _reported(results: oscal.AssessmentResults, title: str, path: str, files: list[ReportFile]) -> ComplianceReported:
    (result,) = results.assessment_results.results
    reasons = [finding.target.status.reason for finding in result.findings]
    return ComplianceReported(
        title=title,
        folder=path,
        files=files,
        controls=len(reasons),
        satisfied=reasons.count("pass"),
        not_satisfied=reasons.count("fail"),
        without_evidence=reasons.count("no-evidence"),
        sha256=hashlib.sha256(results.encode()).hexdigest(),
    )
