"""A worker of which everything is in order, for tests of compliance: its settings, its folders, and the evidence in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from handlers.compliance import generate_compliance_report
from handlers.contracts.compliance import ComplianceReported, GenerateComplianceReport
from handlers.contracts.deliveries import ReportFile
from handlers.contracts.reports import GenerateReports, ReportsGenerated
from handlers.contracts.threats import AnalyzeThreats, ThreatsAnalyzed
from handlers.contracts.vulnerabilities import Scanned, ScanVulnerabilities, digest_of_paths
from handlers.contracts.windows import Window
from handlers.kit import backups
from handlers.kit.controls import CHECKS
from handlers.kit.files import Writer, target
from handlers.kit.folders import folder
from handlers.kit.settings import current
from handlers.kit.threads import Stop
from runtime import Dead
from runtime.jobs import Job
from tests import builders
from tests.handlers.conftest import Configure
from tests.handlers.disks import BORN_MS, FETCHED_MS, Disk, job_of

WORK = "abcdefghijklmnopqrstuvwxyz"
BORN = datetime.fromtimestamp(BORN_MS // 1000, UTC)
SIGNS = "{ secret = 'env:K', hosts = ['a.example.org'] }"
WINDOW = range(5, 60, 10)  # minutes before: analyses without a gap, in the hour that reports are about
FORMATS = ["oscal", "pdf", "csv"]


def good(disk: Disk) -> str:
    """Return settings with which each check is met, where the evidence is there."""
    told = "deliver = { kind = 'notification', channel = 'ops' }"
    return f"""
roots.evidence = {{ path = '{disk.folder / "evidence"}', mode = 'write' }}
roots.logs = {{ path = '{disk.logs}', mode = 'purge' }}
roots.db = {{ path = '{disk.folder / "db"}' }}
databases.shop = {{ sqlite = 'db:shop.db', tables = ['t'], writable = ['t'] }}
databases.far = {{ url = 'postgresql://jobs@db.example.org/far', password = 'file:{disk.folder / "secret"}' }}
smtp.main = {{ url = 'smtp+starttls://mail.example.org' }}
senders.default = {{ smtp = 'main', address = 'a@example.org', per_hour = 100 }}
senders.audit = {{ smtp = 'main', address = 'audit@example.org', per_hour = 100 }}
crm.sales = {{ base_url = 'https://crm.example.org', token = 'env:TOKEN', resources = 'none' }}
channels.ops = {{ kind = 'webhook', url = 'env:HOOK', keys.a = {{ secret = 'file:{disk.folder / "secret"}' }} }}
channels.all = {{ kind = 'webhook', dynamic = true, hosts = ['*.example.org'], keys.b = {SIGNS} }}
backups.shop = {{ to = 'evidence:shop', channel = 'ops' }}
cleanups.logs = {{ include = ['*'], older_than = '30d' }}
reports.orders = {{ to = 'evidence', {told} }}
audits.own = {{ to = 'evidence:audits', {told} }}
roots.state = {{ path = '{disk.folder / "state"}', mode = 'write' }}
logs.auth = {{ root = 'db', glob = '*.log', format = 'sshd' }}
threats.auth = {{ sources = ['auth'], notify = 'ops' }}
advisories.osv = {{ path = 'db:osv' }}
scans.app = {{ targets = ['db:requirements.txt'], to = 'evidence:scans', notify = 'ops' }}
compliance = {{ evidence = ['evidence'], path = '{disk.folder / "profiles"}' }}
"""


def prepare(folder: Path, configure: Configure) -> Disk:
    """Make the folders, the settings, the evidence, and the profile `all`, with a control `c-CHECK` for each check."""
    disk = Disk(folder)
    for name in ("evidence", "db", "logs", "profiles", "state"):
        (folder / name).mkdir(mode=0o700)
    (folder / "secret").write_text("very secret")
    (folder / "secret").chmod(0o600)
    configure(good(disk)).chmod(0o600)
    profile(disk, "all", CHECKS)
    back_up(disk)
    report(hours=1)
    assess(days=7)
    scan()
    watch(WINDOW)
    return disk


def profile(disk: Disk, name: str, checks: Iterable[str], more: str = "") -> None:
    """Write a profile with a control for each of these checks."""
    controls = "".join(f'[[controls]]\nid = "c-{check}"\ntitle = "About {check}"\nchecks = ["{check}"]\n' for check in checks)
    (disk.folder / "profiles" / f"{name}.toml").write_text(f'title = "Mine"\n{more}{controls}', "utf-8")


def evidence(disk: Disk) -> Path:
    return disk.folder / "evidence"


def back_up(disk: Disk, hours: float = 2, name: str = "1", **fields: Any) -> Path:
    """Write a backup of so many hours before, as `backup-database` does, and return its manifest."""
    folder = evidence(disk) / "shop" / name
    folder.mkdir(parents=True, exist_ok=True)
    content = os.fsencode(f"backup {name}")
    (folder / "shop.sqlite.zst").write_bytes(content)
    taken = BORN - timedelta(hours=hours)
    known: dict[str, Any] = {
        **{"backup": "shop", "work": WORK, "born": taken, "taken": taken, "kind": "sqlite", "file": "shop.sqlite.zst"},
        **{"bytes": 1, "content_sha256": "", "compressed": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        **{"tables": {"t": 1}, "versions": {}, "verified": "restored", "seconds": 1.0},
    }
    manifest = folder / "manifest.json"
    manifest.write_bytes(msgspec.json.encode(backups.Manifest(**{**known, **fields})))
    return manifest


def ago(message: msgspec.Struct, before: timedelta) -> Job:
    """Return the job of a payload, born so long before the others."""
    return builders.job_of(message, f"{BORN_MS - round(before.total_seconds() * 1000)}-0", fetched_ms=FETCHED_MS)


def report(hours: float = 1, name: str = "orders") -> None:
    """Write a report, as `generate-reports` does."""
    job = ago(GenerateReports(report=name, window=Window(last="1d")), timedelta(hours=hours))
    publish(job, f"evidence:{name}/w/{job.work}", lambda **fields: ReportsGenerated(rows=1, **fields))


def assess(days: float = 7, name: str = "own") -> None:
    """Write an assessment, as `generate-compliance-report` does."""
    job = ago(GenerateComplianceReport(profile=name, window=Window(last="1d"), to="evidence:audits"), timedelta(days=days))
    counts = {"controls": 1, "satisfied": 1, "not_satisfied": 0, "without_evidence": 0, "sha256": ""}
    publish(job, f"evidence:audits/{name}/w/{job.work}", lambda **fields: ComplianceReported(**counts, **fields))


def scan(days: float = 1, **fields: Any) -> None:
    """Write a scan, as `scan-vulnerabilities` does."""
    job = ago(ScanVulnerabilities(targets=["db:requirements.txt"], to="evidence:scans"), timedelta(days=days))
    path = f"evidence:scans/{job.work}"
    known: dict[str, Any] = {
        **{"verdict": "clean", "born": "", "packages": 1, "findings": {}, "incomplete": {}, "undecided": 0, "ignored": 0},
        **{"fail_on": "high", "advisories": "osv", "paths_sha256": digest_of_paths(["db:requirements.txt"])},
        **{"alerted": 0, "advisories_read": 1, "db_date": None, "db_sha256": "", "targets_sha256": "", "folder": path},
        **{"report": f"{path}/scan.json", "sbom": f"{path}/sbom.json"},
    }
    with folder(current(), path, job.work, Stop()) as out:
        out.write("report.pdf", b"a scan")
        out.finish(Scanned(**{**known, **fields}), job)


def watch(minutes: Iterable[float], **fields: Any) -> None:
    """Write the reports of analyses so many minutes before, as `analyze-threats` does."""
    for each in minutes:
        job = ago(AnalyzeThreats(analysis="auth"), timedelta(minutes=each))
        path = f"evidence:auth/day/{job.work}.json"
        with target(current(), path) as place, Writer(place, job.work, Stop()) as out:
            out.write(b"{}")
            out.finish(ThreatsAnalyzed(**{"report": path, "gap_s": 300, **fields}), job)


def publish(job: Job, path: str, result: Any) -> None:
    """Publish a folder with a file in it."""
    with folder(current(), path, job.work, Stop()) as out:
        out.write("report.pdf", b"a report")
        files = [ReportFile(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in out.files]
        out.finish(result(title="t", folder=path, files=files), job)


def message(profile: str = "all", **fields: Any) -> GenerateComplianceReport:
    given = {"profile": profile, "window": {"last": "1h"}, "to": "evidence:new", "formats": FORMATS, **fields}
    return msgspec.convert(given, GenerateComplianceReport)


def run(asked: GenerateComplianceReport, number: int = 0) -> tuple[ComplianceReported, Job]:
    """Run it in this process: in a child of a worker, it runs the same."""
    one = job_of(asked, number)
    result = generate_compliance_report.function(asked, one)
    assert isinstance(result, ComplianceReported)
    return result, one


def code_of(asked: GenerateComplianceReport) -> str:
    try:
        run(asked)
    except Dead as error:
        return error.code
    raise AssertionError


def folder_of(disk: Disk, result: ComplianceReported) -> Path:
    return evidence(disk) / result.folder.removeprefix("evidence:")


def document(disk: Disk, result: ComplianceReported) -> dict[str, Any]:
    """Return the OSCAL document's one result."""
    content = msgspec.json.decode((folder_of(disk, result) / "assessment-results.json").read_bytes())
    return content["assessment-results"]["results"][0]


def found(disk: Disk, check: str, number: int = 0, more: str = "") -> tuple[str, str]:
    """Return what becomes of a control with this check alone, as reason and text; `number` is of the job."""
    profile(disk, "one", [check], more)
    result, _ = run(message("one", formats=["oscal"]), number)
    known = document(disk, result)
    (finding,) = known["findings"]
    status = finding["target"]["status"]
    assert status["state"] == ("satisfied" if status["reason"] == "pass" else "not-satisfied")
    return status["reason"], known["observations"][0]["description"]
