"""The checks of compliance: each is met where all is right, and by nothing else; and evidence counts only as it was written."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.contracts.vulnerabilities import digest_of_paths
from handlers.kit import evidence as kit
from handlers.kit import expiry
from handlers.kit.controls import CHECKS
from handlers.kit.files import SIDECAR
from runtime import Snooze
from tests.handlers.audits import (
    WORK,
    assess,
    back_up,
    document,
    evidence,
    found,
    good,
    message,
    prepare,
    report,
    run,
    scan,
    watch,
)
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk


@pytest.fixture
def disk(tmp_path: Path, configure: Configure) -> Disk:
    return prepare(tmp_path, configure)


def test_where_all_is_right_each_check_is_met(disk: Disk) -> None:
    result, _ = run(message())
    wrong = [each for each in document(disk, result)["findings"] if each["target"]["status"]["reason"] != "pass"]
    assert not wrong
    assert result.controls == result.satisfied == len(CHECKS)


# --- the settings ---------------------------------------------------------------------------------------------------------

BROKEN = [
    ("scans-told", "'evidence:scans', notify = 'ops'", "'evidence:scans'", "scans.app: tells nobody"),
    ("threats-told", "sources = ['auth'], notify = 'ops'", "sources = ['auth']", "threats.auth: tells nobody"),
    (
        "backups-scheduled",
        "writable = ['t']",
        "writable = ['t'] }\ndatabases.new = { sqlite = 'db:x', writable = ['t']",
        "databases.new: no",
    ),
    (
        "backups-scheduled",
        "channel = 'ops' }\ncleanups",
        "channel = 'ops', enabled = false }\ncleanups",
        "databases.shop: no backup",
    ),
    ("backups-scheduled", "channel = 'ops' }\ncleanups", "verify = 'list' }\ncleanups", "databases.shop: only to be listed"),
    (
        "backups-kept",
        "channel = 'ops' }\ncleanups",
        "keep_weekly = 3, keep_monthly = 0 }\ncleanups",
        "backups.shop: none is kept",
    ),
    ("backups-watched", "'evidence:shop', channel = 'ops'", "'evidence:shop'", "backups.shop: has no `channel`"),
    (
        "reports-delivered",
        "'evidence', deliver = { kind = 'notification', channel = 'ops' }",
        "'evidence'",
        "reports.orders: is del",
    ),
    ("assessments-scheduled", "'evidence:audits', deliver", "'evidence:audits', enabled = false, deliver", "audits.own: is"),
    ("logs-expire", "older_than = '30d'", "older_than = '30d', action = 'gzip'", "roots.logs: no deletion is scheduled"),
    ("logs-expire", "older_than = '30d'", "older_than = '30d', enabled = false", "roots.logs: no deletion is scheduled"),
    ("purges-braked", "mode = 'purge'", "mode = 'purge', force = true", "roots.logs: allows `force`"),
    ("evidence-kept", "mode = 'write'", "mode = 'write', overwrite = true", "roots.evidence: allows `overwrite`"),
    ("connections-encrypted", "password =", "tls = 'require', password =", "databases.far: its certificate is not verified"),
    ("connections-encrypted", "https://crm", "http://crm", "crm.sales: is not encrypted"),
    ("webhooks-signed", ", keys.a = {", ", ports = [1] } # {", "channels.ops: has no `keys`"),
    (
        "egress-bound",
        "['*.example.org'], keys.b = { secret = 'env:K', hosts = ['a.example.org'] }",
        "['*']",
        "channels.all: `hosts` are",
    ),
    ("recipients-bound", ", per_hour = 100", "", "senders.default: has neither"),
    ("tables-listed", "tables = ['t']", "tables = ['*']", "databases.shop: all of `tables`"),
    ("tables-listed", "writable = ['t']", "writable = ['*']", "databases.shop: all of `writable`"),
]


@pytest.mark.parametrize(("check", "old", "new", "said"), BROKEN)
def test_a_setting_that_is_wrong_is_named(disk: Disk, configure: Configure, check: str, old: str, new: str, said: str) -> None:
    assert old in good(disk)
    configure(good(disk).replace(old, new))
    reason, text = found(disk, check)
    assert (reason, said in text) == ("fail", True), text


@pytest.mark.parametrize(
    ("check", "name", "mode", "said"),
    [
        ("roots-private", "evidence", 0o707, "roots.evidence (0707): others may write"),
        ("evidence-private", "evidence", 0o705, "roots.evidence (0705): others may read, enter"),
        ("secrets-private", "secret", 0o604, "databases.far.password (0604): others may read; channels.ops.keys.a.secret (0604)"),
        ("settings-private", "handlers.toml", 0o602, "handlers.toml (0602): others may write"),
    ],
)
def test_what_others_may_do_is_seen(disk: Disk, check: str, name: str, mode: int, said: str) -> None:
    (disk.folder / name).chmod(mode)
    reason, text = found(disk, check)
    assert (reason, said in text) == ("fail", True), text


@pytest.mark.parametrize(("check", "name"), [("secrets-private", "secret"), ("roots-private", "logs")])
def test_what_is_not_there_is_no_evidence(disk: Disk, check: str, name: str) -> None:
    path = disk.folder / name
    path.rmdir() if path.is_dir() else path.unlink()
    reason, text = found(disk, check)
    assert (reason, "no evidence: cannot be looked at" in text) == ("no-evidence", True)


def test_with_nothing_to_look_at_no_check_of_settings_is_met(disk: Disk, configure: Configure) -> None:
    configure(
        f"roots.evidence = {{ path = '{evidence(disk)}', mode = 'write' }}\ncompliance.path = '{disk.folder / 'profiles'}'\n"
    )
    (disk.folder / "handlers.toml").chmod(0o600)
    result, _ = run(message())
    reasons = {each["title"]: each["target"]["status"]["reason"] for each in document(disk, result)["findings"]}
    assert {title for title, reason in reasons.items() if reason == "pass"} == {"About settings-private", "About roots-private"}
    assert set(reasons.values()) == {"pass", "no-evidence"}


def test_what_stays_on_this_machine_needs_no_encryption(disk: Disk, configure: Configure) -> None:
    configure(
        good(disk)
        + "smtp.near = { url = 'smtp://127.0.0.1:25', plain = true }\n"
        + "databases.near = { url = 'postgresql://a@/b?host=/run/postgresql', tls = 'off' }\n"
        + "crm.near = { base_url = 'http://127.0.0.1:1', token = 'env:TOKEN', resources = 'none' }\n"
    )
    assert found(disk, "connections-encrypted")[0] == "pass"


# --- evidence ----------------------------------------------------------------------------------------------------------------

KINDS = {
    "backups-restored": ("shop/1", "manifest.json", "shop.sqlite.zst"),
    "backups-intact": ("shop/1", "manifest.json", "shop.sqlite.zst"),
    "reports-made": ("orders/w", ".job.json", "report.pdf"),
    "scans-made": ("scans", ".job.json", "report.pdf"),
    "scans-clean": ("scans", ".job.json", "report.pdf"),
    "inventories-made": ("scans", ".job.json", "report.pdf"),
    "assessed-before": ("audits/own/w", ".job.json", "report.pdf"),
}


def place(disk: Disk, check: str) -> tuple[Path, Path]:
    """Return the note that a check goes by, and the file that the note is about."""
    folder, note, about = KINDS[check]
    found = evidence(disk) / folder
    if note == ".job.json":
        (found,) = found.iterdir()
    return found / note, found / about


def edit(note: Path, **fields: Any) -> None:
    """Replace what a note says."""
    note.write_bytes(msgspec.json.encode({**msgspec.json.decode(note.read_bytes()), **fields}))


def forge(note: Path) -> None:
    """Replace the digest in a note."""
    text = note.read_text()
    note.write_text(re.sub(r'"sha256":"[0-9a-f]{64}"', f'"sha256":"{"0" * 64}"', text))
    assert note.read_text() != text


@pytest.mark.parametrize("check", KINDS)
def test_evidence_that_is_gone_or_was_never_there_is_none(disk: Disk, check: str) -> None:
    note, _ = place(disk, check)
    note.unlink()
    reason, text = found(disk, check)
    assert (reason, "no evidence since 2023-1" in text) == ("no-evidence", True), text


@pytest.mark.parametrize("check", KINDS)
@pytest.mark.parametrize("how", ["changed", "grown", "gone", "forged", "a link", "a folder"])
def test_evidence_that_is_not_as_it_was_written_is_none(disk: Disk, check: str, how: str) -> None:
    note, about = place(disk, check)
    content = about.read_bytes()
    match how:
        case "changed":
            about.write_bytes(content[:-1] + b"?")
        case "grown":
            about.write_bytes(content + b"?")
        case "forged":
            forge(note)
        case _:
            about.rename(disk.folder / "elsewhere")
            if how == "a link":
                about.symlink_to(disk.folder / "elsewhere")
            elif how == "a folder":
                about.mkdir()
    reason, text = found(disk, check)
    assert reason == ("fail" if check == "backups-intact" else "no-evidence")
    assert "1 not as written" in text


@pytest.mark.parametrize(
    ("check", "hours", "make"),
    [
        ("backups-restored", 26, lambda disk, hours: back_up(disk, hours, "2")),
        ("backups-intact", 26, lambda disk, hours: back_up(disk, hours, "2")),
        ("reports-made", 26, lambda disk, hours: report(hours)),
        ("scans-made", 7 * 24, lambda disk, hours: scan(hours / 24)),
        ("scans-clean", 7 * 24, lambda disk, hours: scan(hours / 24)),
        ("inventories-made", 7 * 24, lambda disk, hours: scan(hours / 24)),
        ("assessed-before", 35 * 24, lambda disk, hours: assess(hours / 24)),
    ],
)
def test_evidence_counts_until_it_is_too_old_and_never_before_its_time(
    disk: Disk, check: str, hours: int, make: Callable[[Disk, float], object]
) -> None:
    for number, (age, wanted) in enumerate(((hours - 0.1, "pass"), (hours + 0.1, "no-evidence"), (-0.1, "no-evidence"))):
        for path in [path for path in evidence(disk).rglob("*") if path.name in ("manifest.json", ".job.json")]:
            path.unlink()
        make(disk, age)
        assert found(disk, check, number)[0] == wanted


def test_a_profile_may_say_how_old_a_backup_may_be(disk: Disk) -> None:
    place(disk, "backups-restored")[0].unlink()
    back_up(disk, 47, "2")
    assert found(disk, "backups-restored", more="limits.backup_hours = 48\n")[0] == "pass"


def test_a_backup_that_is_only_listed_is_not_restored(disk: Disk) -> None:
    place(disk, "backups-restored")[0].unlink()
    back_up(disk, 1, "2", verified="listed")
    assert found(disk, "backups-restored") == ("fail", "backups.shop: only listed")
    back_up(disk, 3, "3")
    assert found(disk, "backups-restored", 1)[0] == "pass", "an older one was restored"


@pytest.mark.parametrize(
    ("check", "fields", "wanted"),
    [
        ("scans-made", {"verdict": "incomplete"}, ("fail", "scans.app: incomplete")),
        ("scans-made", {"verdict": "vulnerable"}, ("pass", "scans.app")),
        ("scans-clean", {"verdict": "incomplete"}, ("fail", "scans.app: incomplete")),
        ("scans-clean", {"verdict": "vulnerable"}, ("fail", "scans.app: vulnerable")),
        ("scans-clean", {"findings": {"low": 1}}, ("fail", "scans.app: findings below its level")),
        ("inventories-made", {"sbom": None}, ("fail", "scans.app: no bill")),
    ],
)
def test_the_last_scan_counts(disk: Disk, check: str, fields: dict[str, Any], wanted: tuple[str, str]) -> None:
    scan(0.5, **fields)
    assert found(disk, check) == wanted


@pytest.mark.parametrize(
    "other",
    [{"paths_sha256": digest_of_paths(["db:other.txt"])}, {"fail_on": "critical"}, {"advisories": "few"}, {"ignored": 1}],
    ids=["targets", "level", "advisories", "ignores"],
)
def test_a_scan_that_was_asked_for_something_else_is_no_evidence(disk: Disk, other: dict[str, Any]) -> None:
    shutil.rmtree(evidence(disk) / "scans")
    scan(0.5, **other)
    reason, text = found(disk, "scans-clean")
    assert (reason, text.startswith("scans.app: no evidence")) == ("no-evidence", True), text
    scan(1, verdict="vulnerable")
    assert found(disk, "scans-clean", 1) == ("fail", "scans.app: vulnerable")


def test_a_scan_that_was_altered_may_have_been_the_last_one(disk: Disk) -> None:
    scan(0.5, verdict="vulnerable")
    forge(max((evidence(disk) / "scans").rglob(".job.json"), key=lambda path: path.stat().st_mtime_ns))
    reason, text = found(disk, "scans-clean")
    assert (reason, text.startswith("scans.app: no evidence")) == ("no-evidence", True), text


@pytest.mark.parametrize("blind", [{"blind": ["log-unparsed"]}, {"failed_rules": 1}])
def test_an_analysis_that_was_blind_is_no_watch(disk: Disk, blind: dict[str, Any]) -> None:
    watch([12], **blind)
    assert found(disk, "threats-watched") == ("fail", "threats.auth: 1 runs could not see all")


@pytest.mark.parametrize(
    "how", ["gap", "gap at the end", "gap at the begin", "one changed", "old lines", "first run", "none", "other"]
)
def test_analyses_leave_no_gap(disk: Disk, how: str) -> None:
    shutil.rmtree(evidence(disk) / "auth")
    match how:
        case "gap":
            watch([55, 45, 35, 19, 10, 5])
        case "end":
            watch([55, 45, 35, 25, 16])
        case "begin":
            watch([61, 44, 35, 25, 15, 5])
        case "one changed":
            watch([55, 45, 35, 25, 15, 5])
            forge(sorted((evidence(disk) / "auth").rglob(f"*{SIDECAR}"))[0])
        case "old lines":
            watch([55, 45, 15, 5])
            watch([35, 25], gap_s=None)
        case "first run":
            watch([55, 45, 35, 25, 15, 5], gap_s=None)
        case "other":
            watch([55, 45, 35, 25, 15, 5], report="evidence:another/day/x.json")
        case _:
            pass
    reason, text = found(disk, "threats-watched")
    assert (reason, text.startswith("threats.auth: no evidence")) == ("no-evidence", True), text
    assert how != "gap" or text == "threats.auth: no evidence from 2023-11-14 21:38 UTC to 2023-11-14 21:54 UTC"


def test_fifteen_minutes_are_no_gap_and_a_profile_may_ask_for_less(disk: Disk) -> None:
    shutil.rmtree(evidence(disk) / "auth")
    watch([45, 30, 15])
    assert found(disk, "threats-watched") == ("pass", "threats.auth")
    assert found(disk, "threats-watched", 1, "limits.threat_minutes = 14\n")[0] == "no-evidence"


def test_an_analysis_that_could_not_read_all_is_blind(disk: Disk) -> None:
    watch([12], unreadable=["auth"])
    assert found(disk, "threats-watched") == ("fail", "threats.auth: 1 runs could not see all")


def test_a_backup_of_another_name_is_not_this_one(disk: Disk) -> None:
    place(disk, "backups-restored")[0].unlink()
    back_up(disk, 1, "2", backup="other")
    assert found(disk, "backups-restored")[0] == "no-evidence"


HOSTILE = [
    b"",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"{" * 5000,
    b"[" * 200_000,
    b'{"work": 1}',
    b"x" * (17 * 2**20),
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("name", ["manifest.json", ".job.json", f"x{SIDECAR}"])
def test_a_note_that_makes_no_sense_is_none(disk: Disk, name: str, content: bytes) -> None:
    folder = evidence(disk) / "strange"
    folder.mkdir()
    (folder / name).write_bytes(content)
    assert found(disk, "backups-restored")[0] == "pass"


@pytest.mark.parametrize(
    "fields", [{"file": "../1/shop.sqlite.zst"}, {"file": "."}, {"file": ""}, {"file": "a\0b"}, {"file": "/etc/passwd"}]
)
def test_a_note_speaks_only_of_files_beside_it(disk: Disk, fields: dict[str, Any]) -> None:
    edit(place(disk, "backups-restored")[0], **fields)
    assert found(disk, "backups-restored")[0] == "no-evidence"


@pytest.mark.parametrize(
    "fields", [{"taken": "2023-11-14T21:00:00"}, {"taken": "9999-12-31T23:59:59Z"}, {"compressed": -1}, {"taken": None}]
)
def test_a_note_without_a_time_that_can_be_is_none(disk: Disk, fields: dict[str, Any]) -> None:
    edit(place(disk, "backups-restored")[0], **fields)
    assert found(disk, "backups-restored")[0] == "no-evidence"


@pytest.mark.parametrize(
    "fields", [{"type": "backup-database"}, {"type": "send-email"}, {"files": []}, {"born": None}, {"result": {}}]
)
def test_a_folder_of_another_type_is_no_report(disk: Disk, fields: dict[str, Any]) -> None:
    edit(place(disk, "reports-made")[0], **fields)
    assert found(disk, "reports-made")[0] == "no-evidence"


def test_links_pipes_and_hidden_folders_are_not_looked_into(disk: Disk) -> None:
    real = evidence(disk) / "shop"
    back_up(disk, 1, "2").parent.rename(evidence(disk) / f".2.{WORK}.part")
    real.rename(disk.folder / "outside")
    real.symlink_to(disk.folder / "outside")
    os.mkfifo(evidence(disk) / "manifest.json")
    (evidence(disk) / f"a{SIDECAR}").symlink_to(disk.folder / "secret")
    assert found(disk, "backups-restored")[0] == "no-evidence"


def test_hostile_names_are_shown_and_do_no_harm(disk: Disk) -> None:
    place(disk, "backups-restored")[0].unlink()
    name = os.fsdecode(b"a\nb\x1b[2J\xff\xe2\x80\xae<b>=1+1")
    back_up(disk, 1, name)
    result, _ = run(message())
    assert result.satisfied == result.controls
    folder = evidence(disk) / "new" / "all"
    content = msgspec.json.decode(next(folder.rglob("assessment-results.json")).read_bytes())
    notes = content["assessment-results"]["back-matter"]["resources"]
    (note,) = [each for each in notes if "manifest.json" in each["title"]]
    assert note["title"] == r"evidence:shop/a\u000ab\u001b[2J\xff\u202e<b>=1+1/manifest.json"
    assert note["rlinks"][0]["href"] == "evidence/shop/a%0Ab%1B%5B2J%FF%E2%80%AE%3Cb%3E%3D1%2B1/manifest.json"


@pytest.mark.parametrize(
    ("limit", "least", "said"),
    [
        ("MAX_FILES", 300, "more than 300 files"),
        ("MAX_FOLDERS", 10, "more than 10 folders"),
        ("MAX_NOTES", 2, "more than 2 notes"),
        ("MAX_CHECKED_BYTES", 3, "more than 3 bytes to check"),
    ],
)
def test_what_is_too_much_is_left_and_proves_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, limit: str, least: int, said: str
) -> None:
    """As with a million files, but here the limit is lower."""
    for number in range(20):
        folder = evidence(disk) / "many" / str(number)
        folder.mkdir(parents=True)
        for name in range(20):
            (folder / str(name)).touch()
    assert found(disk, "backups-restored")[0] == "pass"
    monkeypatch.setattr(kit, limit, least)
    for number, check in enumerate(KINDS, 1):
        reason, text = found(disk, check, number)
        assert (reason, said in text) == ("no-evidence", True), text


def test_a_folder_that_cannot_be_read_proves_nothing(disk: Disk) -> None:
    if os.geteuid() == 0:
        deep = evidence(disk).joinpath(*["d"] * 70)  # root reads all; too deep is as unread
        deep.mkdir(parents=True)
    else:
        (evidence(disk) / "closed").mkdir(mode=0)
    reason, text = found(disk, "backups-restored")
    assert (reason, "cannot be read" in text) == ("no-evidence", True)


def test_a_root_that_is_missing_or_may_be_purged_is_waited_for(disk: Disk, configure: Configure) -> None:
    configure(good(disk).replace("evidence = ['evidence']", "evidence = ['evidence', 'logs']"))
    with pytest.raises(Snooze, match=r"alias-missing: roots.logs: .*nobody may purge"):
        run(message())
    configure(good(disk).replace("evidence = ['evidence']", "evidence = ['none']"))
    with pytest.raises(Snooze, match="alias-missing: roots.none"):
        run(message())


def test_without_roots_of_evidence_there_is_none(disk: Disk, configure: Configure) -> None:
    configure(good(disk).replace("evidence = ['evidence'], ", ""))
    for number, check in enumerate(KINDS):
        assert found(disk, check, number)[0] == "no-evidence"


DAYS = 30 + 8  # of the cleanup, and of the profile


@pytest.mark.parametrize(
    ("settings", "days", "wanted"),
    [
        ("", [DAYS - 0.1, 1], "pass"),
        ("", [DAYS + 0.1, 1], "cleanups.logs: 1 files are left"),
        (", keep_last = 2", [DAYS + 3, DAYS + 2, DAYS + 1], "cleanups.logs: 1 files are left"),
        (", keep_last = 2", [DAYS + 3, DAYS + 2, 1], "cleanups.logs: 1 files are left"),
        (", keep_last = 2", [DAYS + 3, 2, 1], "cleanups.logs: 1 files are left"),
        (", keep_last = 2", [DAYS + 3, DAYS + 2], "pass"),
        (", exclude = ['*.0']", [DAYS + 3], "pass"),
    ],
)
def test_what_cleanups_have_left_is_seen(disk: Disk, configure: Configure, settings: str, days: list[float], wanted: str) -> None:
    configure(good(disk).replace("older_than = '30d'", f"older_than = '30d'{settings}"))
    for number, age in enumerate(days):
        disk.old(f"web/x.{number}", days=age)
    reason, text = found(disk, "logs-expired")
    assert wanted in (reason, text)


@pytest.mark.parametrize("why", ["gone", "too many", "unread"])
def test_a_root_that_cannot_be_looked_at_shows_no_cleanup(disk: Disk, monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    if why == "gone":
        disk.logs.rmdir()
    elif why == "too many":
        disk.old("x", days=1)
        monkeypatch.setattr(expiry, "MAX_FILES", 0)
    else:
        disk.logs.joinpath(*["d"] * 70).mkdir(parents=True)  # too deep to be entered
    assert found(disk, "logs-expired")[0] == "no-evidence"


def test_a_long_list_is_cut(disk: Disk, configure: Configure) -> None:
    more = "".join(f"roots.r{number} = {{ path = '{disk.logs}', mode = 'purge', force = true }}\n" for number in range(9))
    configure(good(disk) + more)
    text = found(disk, "purges-braked")[1]
    assert text.count("allows `force`") == 5 and text.endswith("and 4 more")
