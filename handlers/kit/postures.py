"""The checks of compliance that go by the settings, and by the rights of what they name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from handlers.contracts.maintenance import age_s
from handlers.kit.facts import OTHERS, OTHERS_WRITE, Facts, Mode
from handlers.kit.judging import Checks, Limits, Look
from handlers.kit.sections import Crm, Database, Smtp, is_bound, is_loopback

LEAST_AGE_S: Final = 3600

CHECKS: Final = Checks()


@CHECKS.add("backups-scheduled", "Each database that jobs may write is backed up by a schedule, and is to be restored for proof")
def _backups_scheduled(facts: Facts, limits: Limits) -> Iterator[Look]:
    made = {backup.db: backup for backup in facts.settings.backups.values() if backup.enabled}
    for alias, database in facts.settings.databases.items():
        if database.writable or alias in made:
            wrong = "" if alias in made else "no backup is scheduled"
            yield Look(f"databases.{alias}", wrong or ("only to be listed" if made[alias].verify == "list" else ""))


@CHECKS.add("backups-kept", "Backups are kept for some days and some months")
def _backups_kept(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, backup in facts.settings.backups.items():
        is_kept = backup.keep_daily >= 1 and (backup.keep_weekly >= 4 or backup.keep_monthly >= 1)
        yield Look(f"backups.{alias}", "" if is_kept else "none is kept for a month")


@CHECKS.add("backups-watched", "A backup that cannot be verified is told in a channel at once")
def _backups_watched(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, backup in facts.settings.backups.items():
        yield Look(f"backups.{alias}", "" if backup.channel in facts.settings.channels else "has no `channel`")


@CHECKS.add("scans-told", "What each scan finds is told in a channel")
def _scans_told(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, scan in facts.settings.scans.items():
        yield Look(f"scans.{alias}", "" if scan.enabled and scan.notify in facts.settings.channels else "tells nobody")


@CHECKS.add("threats-told", "What each analysis of logs finds is told in a channel")
def _threats_told(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, analysis in facts.settings.threats.items():
        yield Look(f"threats.{alias}", "" if analysis.enabled and analysis.notify in facts.settings.channels else "tells nobody")


@CHECKS.add("reports-delivered", "Reports that are due again and again are delivered to people")
def _reports_delivered(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, report in facts.settings.reports.items():
        yield Look(f"reports.{alias}", "" if report.enabled and report.deliver else "is delivered to nobody")


@CHECKS.add("assessments-scheduled", "An assessment like this one is made again and again, and delivered to people")
def _assessments_scheduled(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, audit in facts.settings.audits.items():
        yield Look(f"audits.{alias}", "" if audit.enabled and audit.deliver else "is delivered to nobody")


@CHECKS.add("logs-expire", "Old files of each root that jobs may purge are deleted by a schedule")
def _logs_expire(facts: Facts, limits: Limits) -> Iterator[Look]:
    cleaned = {cleanup.root for cleanup in facts.settings.cleanups.values() if cleanup.enabled and cleanup.action == "delete"}
    for alias, root in facts.settings.roots.items():
        if root.allows("purge"):
            yield Look(f"roots.{alias}", "" if alias in cleaned else "no deletion is scheduled")


@CHECKS.add("purges-braked", "No job may purge nearly all of a root, or what is younger than an hour")
def _purges_braked(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, root in facts.settings.roots.items():
        if root.allows("purge"):
            young = "" if age_s(root.min_age) >= LEAST_AGE_S else "`min_age` is below an hour"
            yield Look(f"roots.{alias}", "allows `force`" if root.force else young)


@CHECKS.add("evidence-kept", "No job may delete or replace evidence")
def _evidence_kept(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias in facts.settings.compliance.evidence:
        root = facts.settings.roots.get(alias)
        yield Look(f"roots.{alias}", "allows `overwrite`" if root is None or root.overwrite or root.allows("purge") else "")


@CHECKS.add("roots-private", "The folders of roots can be written only by their owner and its group")
def _roots_private(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, mode in facts.folders.items():
        yield _mode(f"roots.{alias}", mode, OTHERS_WRITE)


@CHECKS.add("evidence-private", "The folders with evidence can be read and written only by their owner and its group")
def _evidence_private(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias in facts.settings.compliance.evidence:
        yield _mode(f"roots.{alias}", facts.folders.get(alias), OTHERS)


@CHECKS.add("secrets-private", "The files of secrets can be read only by their owner and its group")
def _secrets_private(facts: Facts, limits: Limits) -> Iterator[Look]:
    for key, mode in facts.secrets.items():
        yield _mode(key, mode, OTHERS)


@CHECKS.add("settings-private", "The file of the settings can be changed only by its owner and its group")
def _settings_private(facts: Facts, limits: Limits) -> Iterator[Look]:
    yield _mode("handlers.toml", facts.settings_file, OTHERS_WRITE)


def _mode(name: str, mode: Mode, forbidden: int) -> Look:
    if mode is None:
        return Look(name, "no evidence: cannot be looked at", is_known=False)
    return Look(f"{name} ({mode:04o})", f"others may {_verbs(mode & forbidden)}" if mode & forbidden else "")


def _verbs(bits: int) -> str:
    return ", ".join(verb for bit, verb in ((4, "read"), (2, "write"), (1, "enter")) if bits & bit)


@CHECKS.add("connections-encrypted", "Connections to servers elsewhere are encrypted, and their certificates verified")
def _connections_encrypted(facts: Facts, limits: Limits) -> Iterator[Look]:
    settings = facts.settings
    for section, aliases in (("smtp", settings.smtp), ("databases", settings.databases), ("crm", settings.crm)):
        for alias, found in aliases.items():
            yield Look(f"{section}.{alias}", _open_to_listeners(found))


def _open_to_listeners(found: Smtp | Database | Crm) -> str:
    """Return what lets others listen; nothing for what stays on this machine."""
    match found:
        case Smtp():
            return "" if not found.plain or is_loopback(found.endpoint.host) else "is not encrypted"
        case Database(sqlite=None, tls=tls):
            is_here = is_loopback(found.endpoint.host) or found.endpoint.host.startswith("/")
            return "" if is_here or tls == "verify" else "its certificate is not verified"  # elsewhere, it cannot be off
        case Database():
            return ""
        case Crm(base_url=url):
            return "" if url.startswith("https:") or is_loopback(urlsplit(url).hostname or "") else "is not encrypted"


@CHECKS.add("webhooks-signed", "Webhooks are signed, so that their receivers can tell who has sent them")
def _webhooks_signed(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, channel in facts.settings.channels.items():
        if channel.kind == "webhook":
            yield Look(f"channels.{alias}", "" if channel.keys else "has no `keys`")


@CHECKS.add("egress-bound", "Jobs can have something sent only to hosts that the settings name")
def _egress_bound(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, channel in facts.settings.channels.items():
        yield Look(f"channels.{alias}", "" if all(map(is_bound, channel.hosts)) else "`hosts` are of more than one owner")


@CHECKS.add("recipients-bound", "Jobs may write only to some recipients, or to so many within an hour")
def _recipients_bound(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, sender in facts.settings.senders.items():
        yield Look(f"senders.{alias}", "" if sender.to or sender.per_hour else "has neither `to` nor `per_hour`")


@CHECKS.add("tables-listed", "Jobs may read and write only tables that are listed one by one")
def _tables_listed(facts: Facts, limits: Limits) -> Iterator[Look]:
    for alias, database in facts.settings.databases.items():
        wide = [name for name in ("tables", "writable") if "*" in getattr(database, name)]
        yield Look(f"databases.{alias}", f"all of `{'`, `'.join(wide)}`" if wide else "")


@CHECKS.add("alerts-possible", "There is a channel that people are told in when something must be done")
def _alerts_possible(facts: Facts, limits: Limits) -> Iterator[Look]:
    yield from (Look(f"channels.{alias}") for alias, channel in facts.settings.channels.items() if not channel.dynamic)
