"""generate-compliance-report: what is in the files, whether OSCAL's tools take them, what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pypdf import PdfReader

from handlers import compliance
from handlers.compliance import CHECKS as DOCTOR
from handlers.compliance import generate_compliance_report
from handlers.contracts.compliance import ComplianceReported, GenerateComplianceReport
from handlers.contracts.maintenance import BackupDatabase
from handlers.kit.controls import CHECKS, SHIPPED
from handlers.kit.folders import MANIFEST
from handlers.kit.settings import at_start, current
from handlers.maintenance import backup_database
from runtime import BadPayload, ConfigError, Priority, Snooze
from runtime.jobs import contract_of
from tests.builders import job
from tests.handlers.audits import back_up, code_of, document, evidence, folder_of, found, good, message, prepare, profile, run
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, job_of, outcome, state
from tests.handlers.disks import until as poll
from tests.handlers.test_contracts import HOSTILE as CONTROLS
from tests.handlers.test_export_pdf import writers
from tests.servers import Server
from tests.workers import working

PROFILES = sorted(path.stem for path in SHIPPED.glob("*.toml"))
FILES = ["assessment-results.json", "report.pdf", "controls.csv"]


@pytest.fixture
def disk(tmp_path: Path, configure: Configure) -> Disk:
    return prepare(tmp_path, configure)


def decode(payload: dict[str, Any]) -> GenerateComplianceReport:
    """Decode as the worker does."""
    return generate_compliance_report.decode(job("generate-compliance-report", data=msgspec.json.encode(payload)))


def spoil(disk: Disk, configure: Configure) -> None:
    """Make some checks not met, and leave some without evidence."""
    configure(good(disk).replace("mode = 'purge'", "mode = 'purge', force = true"))
    for note in (evidence(disk) / "shop").rglob("manifest.json"):
        note.unlink()


# --- the files ---------------------------------------------------------------------------------------------------------------


def test_all_files_say_the_same(disk: Disk, configure: Configure) -> None:
    spoil(disk, configure)
    result, _ = run(message())
    folder = folder_of(disk, result)
    assert [file.name for file in result.files] == FILES
    assert sorted(path.name for path in folder.iterdir()) == sorted([MANIFEST, *FILES])
    reasons = [each["target"]["status"]["reason"] for each in document(disk, result)["findings"]]
    counts = (reasons.count("pass"), reasons.count("fail"), reasons.count("no-evidence"))
    assert counts == (result.satisfied, result.not_satisfied, result.without_evidence)
    assert (sum(counts), min(counts) > 0) == (result.controls, True)

    text = " ".join(" ".join(page.extract_text().split()) for page in PdfReader(folder / "report.pdf").pages)
    assert f"Controls {len(reasons)} Satisfied {counts[0]} Not satisfied {counts[1]} No evidence {counts[2]}" in text
    with (folder / "controls.csv").open(newline="") as file:
        rows = {row["control"]: row for row in csv.DictReader(file)}
    assert [row["reason"] for row in rows.values()] == reasons
    assert (rows["c-purges-braked"]["state"], rows["c-purges-braked"]["found"]) == ("not-satisfied", "roots.logs: allows `force`")
    assert rows["c-reports-made"]["evidence"] == "1" and rows["c-backups-restored"]["evidence"] == "0"
    assert len(msgspec.json.encode(result)) < 4096
    assert result.title == "Mine, 2023-11-14"


def test_evidence_is_named_with_its_digest(disk: Disk) -> None:
    result, _ = run(message())
    whole = msgspec.json.decode((folder_of(disk, result) / FILES[0]).read_bytes())["assessment-results"]
    notes = {f"#{each['uuid']}": each for each in whole["back-matter"]["resources"]}
    (seen,) = [each for each in whole["results"][0]["observations"] if each["props"][0]["value"] == "backups-restored"]
    settings, backup = [notes[each["href"]] for each in seen["relevant-evidence"]]
    assert settings["title"].startswith("Settings") and notes[whole["import-ap"]["href"]]["title"] == "Profile all"
    assert backup["title"] == "evidence:shop/1/manifest.json"
    assert backup["rlinks"][0]["hashes"] == [{"algorithm": "SHA-256", "value": _sha256(evidence(disk) / "shop/1/manifest.json")}]
    (own,) = [each for each in notes.values() if each["title"] == "Profile all"]
    assert own["rlinks"][0]["hashes"][0]["value"] == _sha256(disk.folder / "profiles" / "all.toml")


def _sha256(path: Path) -> str:
    return subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True).stdout.split()[0]


def test_no_secret_and_no_address_is_in_the_files(disk: Disk) -> None:
    result, _ = run(message(deliver={"kind": "mail", "to": ["ada@example.org"]}))
    text = b"".join(path.read_bytes() for path in folder_of(disk, result).iterdir())
    text += "".join(page.extract_text() for page in PdfReader(folder_of(disk, result) / "report.pdf").pages).encode()
    for word in (b"very secret", b"jobs@db", b"mail.example.org", b"crm.example.org", str(disk.folder).encode()):
        assert word not in text


def test_a_title_that_looks_like_a_formula_or_markup_is_inert(disk: Disk) -> None:
    text = 'title = "<b>x</b>"\n[[controls]]\nid = "a"\ntitle = "=1+1 <img src=x>"\nchecks = ["roots-private"]\n'
    (disk.folder / "profiles" / "odd.toml").write_text(text)
    result, _ = run(message("odd"))
    folder = folder_of(disk, result)
    assert "'=1+1" in (folder / "controls.csv").read_text()
    assert "=1+1 <img src=x>" in " ".join(PdfReader(folder / "report.pdf").pages[0].extract_text().split())


# --- OSCAL -------------------------------------------------------------------------------------------------------------------

JUDGE = """
import json, sys
from pathlib import Path
from trestle.oscal.assessment_results import AssessmentResults
for line in sys.stdin:
    try:
        AssessmentResults.parse_obj(json.loads(line)["assessment-results"])
        print("taken", flush=True)
    except Exception as error:
        print("refused", type(error).__name__, str(error).replace("\\n", " "), flush=True)
"""


def judged(documents: list[Any]) -> list[str]:
    """Return what compliance-trestle, which is slow to load and warns, says of documents."""
    lines = "".join(f"{json.dumps(each)}\n" for each in documents)
    command = [sys.executable, "-W", "ignore", "-c", JUDGE]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.splitlines()


def test_the_documents_are_what_oscal_asks_for(disk: Disk, configure: Configure) -> None:
    documents: list[Any] = []
    for number in range(2):
        for name in [*PROFILES, "all"]:
            result, _ = run(message(name, formats=["oscal"]), number)
            documents.append(json.loads((folder_of(disk, result) / FILES[0]).read_bytes()))
        spoil(disk, configure)
    assert judged(documents) == ["taken"] * 2 * (len(PROFILES) + 1)


def test_oscal_refuses_what_is_wrong(disk: Disk) -> None:
    """So that it would refuse ours, too."""
    result, _ = run(message(formats=["oscal"]))
    good = (folder_of(disk, result) / FILES[0]).read_text()

    def spoilt(change: Any) -> Any:
        whole = json.loads(good)
        change(whole["assessment-results"])
        return whole

    changes = [
        lambda whole: whole["results"][0]["findings"][0]["target"]["status"].update(state="perhaps"),
        lambda whole: whole["results"][0].update(more=1),
        lambda whole: whole["metadata"].update({"last-modified": "2023-11-14T22:13:20"}),
        lambda whole: whole.pop("import-ap"),
        lambda whole: whole.update(uuid="7"),
        lambda whole: whole["results"][0].update(observations=[]),
        lambda whole: whole["results"][0]["findings"][0].update(title="a\nb"),
    ]
    assert [said.split()[0] for said in judged([spoilt(change) for change in changes])] == ["refused"] * len(changes)


@pytest.mark.parametrize("name", PROFILES)
def test_a_shipped_profile_says_what_it_is_and_uses_checks_that_exist(disk: Disk, name: str) -> None:
    result, _ = run(message(name))
    assert result.controls >= 10
    assert result.satisfied == result.controls, "with a worker of which everything is in order"


def test_each_check_is_of_some_shipped_profile() -> None:
    text = "".join(path.read_text() for path in SHIPPED.glob("*.toml"))
    assert [name for name in CHECKS if f'"{name}"' not in text] == []


# --- profiles ----------------------------------------------------------------------------------------------------------------


def test_an_own_profile_wins_over_a_shipped_one(disk: Disk) -> None:
    profile(disk, PROFILES[0], ["roots-private"])
    assert run(message(PROFILES[0]))[0].controls == 1


ONE = 'title = "a"\n[[controls]]\nid = "a"\ntitle = "a"\nchecks = ["roots-private"]\n'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "title = 1",
        'title = "a"\ncontrols = []',
        ONE + "checks_more = 1",
        ONE.replace("roots-private", "no-such-check"),
        ONE.replace('"roots-private"', ""),
        ONE.replace('"roots-private"', '"roots-private", "roots-private"'),
        ONE.replace('id = "a"', 'id = "1"'),
        ONE.replace('id = "a"', 'id = "a b"'),
        ONE.replace('id = "a"', 'id = "a\\n"'),
        ONE.replace('title = "a"', 'title = "a\\nb"'),
        ONE.replace('title = "a"', 'title = ""'),
        ONE + ONE.partition("\n")[2].replace('"a"', '"A"', 1),
        "limits.backup_hours = 0\n" + ONE,
        "limits.backup_days = 3\n" + ONE,
        "a = " + "[" * 5000,
        "\x00",
        "# " + "x" * 300_000,
    ],
)
def test_a_profile_that_makes_no_sense_is_dead(disk: Disk, text: str) -> None:
    (disk.folder / "profiles" / "bad.toml").write_text(text)
    assert code_of(message("bad")) == "rule-error"
    assert not list((evidence(disk) / "new").rglob("*.json"))


def test_a_profile_that_nobody_has_written_is_dead(disk: Disk) -> None:
    assert code_of(message("nobody")) == "bad-payload"
    (disk.folder / "profiles" / "all.toml").unlink()
    (disk.folder / "profiles" / "all.toml").mkdir()
    with pytest.raises(Snooze, match=r"alias-missing: profiles.all: .*Is a directory"):
        run(message())


# --- repeats and crashes ------------------------------------------------------------------------------------------------------


def test_a_repeat_finds_the_folder_and_another_job_makes_its_own(disk: Disk) -> None:
    first, _ = run(message())
    before = state(folder_of(disk, first))
    back_up(disk, 1, "2")
    assert run(message())[0] == first
    assert state(folder_of(disk, first)) == before
    other, _ = run(message(), 1)
    assert other.folder != first.folder and other.sha256 != first.sha256


def test_the_same_job_makes_the_same_bytes(disk: Disk) -> None:
    first, _ = run(message(to="evidence:new"))
    kept = {name: (folder_of(disk, first) / name).read_bytes() for name in FILES}
    folder_of(disk, first).rename(disk.folder / "moved")
    again, _ = run(message(to="evidence:new"))
    assert again == first
    assert {name: (folder_of(disk, again) / name).read_bytes() for name in FILES} == kept


def test_a_folder_that_was_changed_is_not_taken_for_ours(disk: Disk) -> None:
    result, _ = run(message())
    (folder_of(disk, result) / FILES[0]).write_text("{}")
    assert code_of(message()) == "output-exists"


@pytest.mark.parametrize(
    ("point", "times"),
    [("compliance-assessed", 1), ("compliance-file", 1), ("compliance-file", 3), ("folder-ready", 1), ("folder-named", 1)],
)
def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(disk: Disk, point: str, times: int) -> None:
    asked = message(deliver={"kind": "mail", "to": ["ada@example.org"]})
    for _ in range(2 if point != "folder-named" else 1):
        killed = child(disk, asked, point=point, times=times, module="handlers.compliance")
        killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL
    new = evidence(disk) / "new"
    visible = [name for name in disk.names(new) if name.endswith("report.pdf") and "/." not in name]
    assert len(visible) == (point == "folder-named")
    result, one = run(asked)
    (new / "all").rename(disk.folder / "moved")
    undisturbed, _ = run(asked)
    assert result == undisturbed
    assert [packed.head.id for packed in one.followers] == [f"{one.work}:mail"] == [result.delivered]
    assert not [name for name in disk.names(disk.folder) if name.endswith(".part")]


def test_two_runs_at_once_do_not_meet(disk: Disk) -> None:
    asked = message(window={"from": "2023-11-01T00:00:00Z", "to": "2023-11-02T00:00:00Z"})
    part = evidence(disk) / "new/all/20231101T000000Z-20231102T000000Z" / f".{job_of(asked).work}.{job_of(asked).work}.part"
    part.mkdir(parents=True)
    held = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(Snooze, match="locked"):
            run(asked)
    finally:
        os.close(held)
    assert run(asked)[0].controls == len(CHECKS)


def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    said = outcome(child(disk, message(), file_bytes=10_000, module="handlers.compliance"))
    assert said.startswith("Snooze: out-of-space: roots.evidence"), said
    assert not [path for path in (evidence(disk) / "new").rglob("*") if path.is_file()]


async def test_a_cancel_leaves_nothing_visible(disk: Disk) -> None:
    """It comes while the child reads a backup that would take it minutes."""
    note = back_up(disk, 1, "huge", compressed=2**36)
    os.truncate(note.parent / "shop.sqlite.zst", 2**36)
    asked = message()
    task = asyncio.create_task(generate_compliance_report.run(asked, job_of(asked)))
    await asyncio.to_thread(poll, lambda: bool(writers(note.parent)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(poll, lambda: not writers(evidence(disk)))
    assert not [path for path in (evidence(disk) / "new").rglob("*") if path.is_file()]


# --- who is told --------------------------------------------------------------------------------------------------------------


def test_people_are_told_by_mail_or_in_a_channel(disk: Disk, configure: Configure) -> None:
    spoil(disk, configure)
    result, one = run(message(deliver={"kind": "mail", "to": ["ada@example.org"], "sender": "audit"}))
    (packed,) = one.followers
    mail = msgspec.json.decode(packed.data)
    assert (packed.head.id, result.delivered, mail["subject"]) == (f"{one.work}:mail", f"{one.work}:mail", result.title)
    assert [each["path"] for each in mail["attachments"]] == [f"{result.folder}/{name}" for name in FILES]
    assert f"{result.satisfied} of {result.controls} controls satisfied, 1 not, 2 without evidence" in mail["text"]
    result, one = run(message(deliver={"kind": "notification", "channel": "ops"}))
    said = msgspec.json.decode(one.followers[0].data)
    assert (said["channel"], said["title"], result.delivered) == ("ops", result.title, f"{one.work}:notification")


async def test_a_backup_is_the_evidence_of_a_report_all_the_way_through_a_worker(disk: Disk, valkey: Server) -> None:
    disk.table("a", [(1,), (2,)])
    client = valkey.client()
    client.xadd("{jobs}:low", {"type": "backup-database", "data": msgspec.json.encode(BackupDatabase(backup="shop"))})
    payload = {"profile": "all", "window": {"last": "1h"}, "to": "evidence:new", "formats": ["oscal"]}
    async with working(valkey.url, backup_database, generate_compliance_report):
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:low") == 0)
        # Not in the second in which the backup was taken: times of jobs have no fractions.
        await asyncio.to_thread(poll, lambda: time.time() > newest(disk) + 1)
        client.xadd("{jobs}:medium", {"type": "generate-compliance-report", "data": msgspec.json.encode(payload)})
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:medium") == 0)
    assert client.xlen("{jobs}:dead") == 0
    client.close()
    (manifest,) = (evidence(disk) / "new").rglob(MANIFEST)
    result = msgspec.json.decode(manifest.read_bytes())["result"]
    known = document(disk, msgspec.convert(result, ComplianceReported))
    by = {each["props"][0]["value"]: each for each in known["findings"]}
    assert by["c-backups-restored"]["target"]["status"] == {"state": "satisfied", "reason": "pass"}
    assert by["c-reports-made"]["target"]["status"]["reason"] == "no-evidence", "that of the fixture is old by now"


def newest(disk: Disk) -> float:
    """Return when the newest backup was published."""
    return max(path.stat().st_mtime for path in (evidence(disk) / "shop").glob("*-*/manifest.json"))


# --- settings -----------------------------------------------------------------------------------------------------------------


def test_audits_of_the_settings_are_schedules(disk: Disk, configure: Configure) -> None:
    configure(
        good(disk)
        + "audits.weekly = { profile = 'soc-2', every = 'week', to = 'evidence:w', tz = 'Asia/Tokyo', formats = ['pdf'] }\n"
        + "audits.odd = { to = 'evidence:o', when = '@daily', page = 'letter' }\n"
        + "audits.off = { to = 'evidence:x', enabled = false }\n"
    )
    schedules = {schedule.name.partition(".")[2]: schedule for schedule in compliance.SCHEDULES()}
    assert {name: schedule.when for name, schedule in schedules.items()} == {
        "own": "30 6 1 * *",
        "weekly": "30 6 * * 1",
        "odd": "@daily",
    }
    assert {(schedule.missed, schedule.expires_s, schedule.jitter_s) for schedule in schedules.values()} == {
        ("latest", 604_800, 120)
    }
    weekly = at_start().audits["weekly"].job()
    assert (weekly.profile, weekly.window.period, weekly.window.tz, weekly.formats) == (
        "soc-2",
        "last-week",
        "Asia/Tokyo",
        ["pdf"],
    )
    assert at_start().audits["own"].job().window.period == "last-month"
    assert all(decode(msgspec.to_builtins(schedule.message)) for schedule in schedules.values())


@pytest.mark.parametrize(
    "text",
    [
        "audits.x = { to = 'none:a' }",
        "audits.x = { to = 'db:a' }",
        "audits.x = { to = 'evidence' }",
        "audits.x = { to = 'evidence:../a' }",
        "audits.x = {}",
        "audits.x = { to = 'evidence:a', every = 'day' }",
        "audits.x = { to = 'evidence:a', formats = ['html'] }",
        "audits.x = { to = 'evidence:a', formats = ['csv', 'csv'] }",
        "audits.x = { to = 'evidence:a', tz = 'Mars' }",
        "audits.x = { to = 'evidence:a', profile = '../x' }",
        "audits.x = { to = 'evidence:a', deliver = { kind = 'fax' } }",
        "compliance.more = 1",
        "compliance = 1",
        "audits = 1",
    ],
)
def test_settings_that_make_no_sense_end_the_start(disk: Disk, configure: Configure, text: str) -> None:
    section, _, _ = text.partition(" ")
    kept = "\n".join(line for line in good(disk).splitlines() if not line.startswith(section.partition(".")[0]))
    configure(f"{kept}\n{text}\n")
    with pytest.raises(ConfigError):
        compliance.SCHEDULES()


def test_the_doctor_tries_each_profile(disk: Disk, configure: Configure) -> None:
    profile(disk, "own", ["roots-private"])
    configure(good(disk) + "audits.x = { profile = 'nobody', to = 'evidence:a' }\n")
    assert [(each.level, each.what.partition(";")[0]) for each in DOCTOR()] == [
        ("ok", "audits: the profile own has 1 controls"),
        ("error", "no profile nobody"),
    ]


def test_settings_that_must_be_fixed_make_the_job_wait(disk: Disk) -> None:
    with pytest.raises(Snooze, match="alias-missing: roots.none"):
        run(message(to="none:a"))
    assert code_of(message(to="db:a")) == "bad-path"
    (evidence(disk) / "link").symlink_to(disk.folder / "db")
    assert code_of(message(to="evidence:link")) == "bad-path"
    assert current().compliance.evidence == ["evidence"]


# --- the contract -------------------------------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    declared = generate_compliance_report
    assert (declared.timeout_s, declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s) == (600, 4, 60, 600)
    assert contract_of(GenerateComplianceReport).priority is Priority.MEDIUM
    assert declared.runs == "process" and declared.result is not None


FULL: dict[str, Any] = {
    "profile": "soc-2",
    "window": {"period": "last-month", "tz": "Europe/Berlin"},
    "to": "evidence:audits",
    "formats": ["oscal", "pdf", "csv"],
    "deliver": {"kind": "mail", "to": ["ada@example.org"], "sender": "shop", "attach": False},
    "page": "letter",
}


def test_what_the_contract_offers_is_accepted() -> None:
    assert decode(FULL).page == "letter"
    least = decode({"profile": "own", "window": {"last": "7d"}, "to": "a:b"})
    assert (least.formats, least.deliver) == (["oscal", "pdf"], None)


@pytest.mark.parametrize("tail", [*CONTROLS, "\n"])
@pytest.mark.parametrize("field", ["profile", "to"])
def test_no_text_may_hold_a_control_character(field: str, tail: str) -> None:
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        decode({**FULL, field: f"{FULL[field]}{tail}"})


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "../x"},
        {"profile": ""},
        {"window": None},
        {"window": {"last": "7w"}},
        {"to": "evidence"},
        {"to": "evidence:../x"},
        {"to": "evidence:/x"},
        {"to": "evidence:a\u0308"},
        {"formats": []},
        {"formats": ["pdf", "pdf"]},
        {"formats": ["html"]},
        {"deliver": {"kind": "mail", "to": []}},
        {"deliver": {"kind": "mail", "to": ["a@b.org\n"]}},
        {"page": "A5"},
        {"checks": []},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})


def test_a_report_is_evidence_of_the_next_one(disk: Disk) -> None:
    profile(disk, "own", ["roots-private"])
    for note in (evidence(disk) / "audits").rglob(MANIFEST):
        note.unlink()
    run(message("own"))
    assert found(disk, "assessed-before")[0] == "pass"
