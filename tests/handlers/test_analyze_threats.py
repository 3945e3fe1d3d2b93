"""analyze-threats: what it finds, that it tells people once, and where it goes on reading, whatever happens in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest

from handlers.contracts.threats import AnalyzeThreats, ThreatReport, ThreatsAnalyzed
from handlers.kit import findings, http
from handlers.kit.findings import TAKE_OVER_S
from handlers.kit.settings import at_start
from handlers.notifications import send_notification
from handlers.threats import CHECKS, MAX_ALERTS, SCHEDULES, analyze_threats
from runtime import BadPayload, ConfigError, Dead, Priority, Snooze
from runtime.jobs import Job, contract_of
from tests import builders
from tests.handlers.conftest import Configure
from tests.handlers.disks import BORN_MS, FETCHED_MS, Disk, child, job_of, outcome
from tests.handlers.disks import until as poll
from tests.handlers.httphost import Httphost
from tests.handlers.logsmith import accepted, failed, forge, ssh_line, web_line
from tests.handlers.test_contracts import HOSTILE
from tests.servers import Server
from tests.workers import working

BORN_S = BORN_MS / 1000
NOW = float(int(BORN_S))
POINTS = ["threats-read", "threats-before-commit", "threats-committed", "threats-reported", "threats-alerted"]
ATTACKER = "192.0.2.66"
SPRAY = "ssh-spraying"


class Logs(Disk):
    """A folder of logs, and an analysis `main` of them."""

    def configure(self, more: str = "", **options: str) -> None:
        given = {"sources": "['web', 'auth']", "state": "'out'", "to": "'out'", "notify": "'ops'", **options}
        text = self.settings() + "logs.web = { root = 'logs', glob = 'access.log*', format = 'combined' }\n"
        text += "logs.auth = { root = 'logs', glob = 'auth.log*', format = 'sshd', year = 2023 }\n"
        text += "channels.ops = { kind = 'webhook', url = 'env:HOOK' }\n"
        text += f"threats.main = {{ {', '.join(f'{key} = {value}' for key, value in given.items())} }}\n{more}"
        (self.folder / "handlers.toml").write_text(text, "utf-8")

    def write(self, name: str, *lines: str) -> None:
        """Add lines to a log."""
        with (self.logs / name).open("a", encoding="utf-8", newline="") as file:
            file.write("".join(f"{line}\n" for line in lines))

    def brute(self, src: str = ATTACKER, count: int = 12, at: float = NOW - 600) -> list[str]:
        """Return lines of a brute force."""
        return [ssh_line(at + n, failed("root", src)) for n in range(count)]

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.out / "threats-main.db")) as connection:
            return connection.execute(query).fetchall()

    def sql_of_state(self, statement: str) -> None:
        with closing(sqlite3.connect(self.out / "threats-main.db")) as connection, connection:
            connection.execute(statement)

    def report(self, result: ThreatsAnalyzed) -> ThreatReport:
        return msgspec.json.decode((self.out / result.report.removeprefix("out:")).read_bytes(), type=ThreatReport)


@pytest.fixture
def logs(tmp_path: Path, configure: Configure) -> Logs:
    logs = Logs(tmp_path)
    for folder in ("out", "db", "logs", "rules"):
        (tmp_path / folder).mkdir()
    configure("")
    logs.configure()
    logs.write("access.log", *(web_line(NOW - 900 + n, "198.51.100.1", f"/page-{n}") for n in range(30)))
    logs.write("auth.log", ssh_line(NOW - 900, accepted("ada", "198.51.100.1")))
    return logs


def run(number: int = 0, **fields: Any) -> tuple[ThreatsAnalyzed, Job]:
    """Run it in this process: in a child of a worker, it runs the same."""
    asked = msgspec.convert({"analysis": "main", **fields}, AnalyzeThreats)
    one = job_of(asked, number)
    result = analyze_threats.function(asked, one)
    assert isinstance(result, ThreatsAnalyzed)
    assert len(msgspec.json.encode(result)) <= 4096
    return result, one


def sent(one: Job) -> dict[str, dict[str, Any]]:
    """Return what a job hands on, by the suffixes of the ids."""
    return {packed.head.id.partition(":")[2]: msgspec.json.decode(packed.data) for packed in one.followers}


def found(result: ThreatsAnalyzed) -> set[tuple[str, str]]:
    return {(each.rule, each.subject) for each in result.top}


# --- what it finds -----------------------------------------------------------------------------------------------------------


def test_each_planted_attack_is_found_and_nothing_else(logs: Logs) -> None:
    made = forge(11, 20_000, NOW - 10, attacks=2)
    (logs.logs / "access.log").write_text(made.text("web"))
    (logs.logs / "auth.log").write_text(made.text("auth"))
    result, _ = run()
    report = logs.report(result)
    assert {(each.rule, each.subject) for each in report.findings} == made.planted
    assert (result.lines, result.unparsed, report.lines) == (made.lines, 0, made.lines)
    assert result.findings["critical"] == 4 and len(result.top) > 10
    assert [each.level for each in result.top][:4] == ["critical"] * 4


def test_normal_traffic_is_clean_and_says_what_was_read(logs: Logs) -> None:
    result, one = run()
    assert (result.lines, result.parsed, result.findings, result.top, result.blind, sent(one)) == (31, 31, {}, [], [], {})
    report = logs.report(result)
    assert report.kind == "analyze-threats" and report.born == "2023-11-14T22:13:20Z" and report.gap_s is None
    assert [(each.source, each.files, each.lines, each.faults) for each in report.sources] == [
        ("web", 1, 30, []),
        ("auth", 1, 1, []),
    ]
    sidecar = json.loads((logs.out / f"{result.report.removeprefix('out:')}.job.json").read_bytes())
    assert sidecar["work"] == one.work and sidecar["result"] == msgspec.to_builtins(result)


def test_an_attack_that_spans_runs_is_found_once_and_grows(logs: Logs) -> None:
    lines = logs.brute(count=30)
    logs.write("auth.log", *lines[:6])
    assert found(run(0)[0]) == set()
    logs.write("auth.log", *lines[6:11])
    second, one = run(1)
    assert [(each.rule, each.subject, each.count) for each in second.top] == [("ssh-brute-force", ATTACKER, 11)]
    assert len(sent(one)) == 2
    logs.write("auth.log", *lines[11:])
    third, one = run(2)
    assert [(each.count, each.first) for each in third.top] == [(30, second.top[0].first)]
    assert sent(one) == {}, "people were told before"
    assert not logs.report(third).findings[0].is_new


def test_an_attack_after_an_hour_of_quiet_is_another_one(logs: Logs) -> None:
    logs.write("auth.log", *logs.brute(at=NOW - 20_000), *logs.brute(at=NOW - 10_000))
    result, one = run()
    assert [each.count for each in result.top] == [12, 12]
    assert len(sent(one)) == 3


def test_a_window_looks_at_its_own_lines_and_moves_nothing(logs: Logs) -> None:
    logs.write("auth.log", *logs.brute(at=NOW - 7200))
    logs.write("auth.log", *logs.brute("192.0.2.7", at=NOW - 100_000))
    window = {"window": {"last": "3h"}}
    result, one = run(0, **window)
    assert found(result) == {("ssh-brute-force", ATTACKER)} and len(sent(one)) == 2
    assert logs.report(result).begin == "2023-11-14T19:13:20Z"
    assert found(run(1, **window, detections=["ssh-spraying"])[0]) == set()
    assert found(run(2, **window, sources=["web"])[0]) == set()
    whole, one = run(3)
    assert found(whole) == {("ssh-brute-force", ATTACKER), ("ssh-brute-force", "192.0.2.7")}
    assert [each["data"]["subject"] for each in sent(one).values() if "data" in each] == ["192.0.2.7"], "the other one is known"
    again, _ = run(4, **window)
    assert [(each.rule, each.count) for each in (*whole.top, *again.top)] == [("ssh-brute-force", 12)] * 3, (
        "each line counts once"
    )


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sources": ["web", "database"]}, r"threats\.main has no database; hint: web, auth - at `\$\.sources`"),
        ({"detections": ["ssh-spraying", "web-xss"]}, r"threats\.main has no web-xss; hint: ssh-spraying - at `\$\.detections`"),
    ],
)
def test_what_an_analysis_does_not_look_at_cannot_be_asked_for(logs: Logs, asked: dict[str, Any], said: str) -> None:
    logs.configure(detections="['ssh-spraying']")
    with pytest.raises(Dead, match=said) as refused:
        run(window={"last": "3h"}, **asked)
    assert refused.value.code == "bad-payload"


def test_thresholds_and_detections_are_those_of_the_settings(logs: Logs) -> None:
    logs.write("auth.log", *logs.brute(count=4))
    logs.configure(thresholds="{ failures = 4, failures_s = 10 }")
    assert found(run()[0]) == {("ssh-brute-force", ATTACKER)}
    logs.write("auth.log", *logs.brute("192.0.2.8"))
    logs.configure(detections="['ssh-spraying']")
    assert found(run(1)[0]) == set()


# --- who is told -------------------------------------------------------------------------------------------------------------


def test_people_are_told_at_once_and_in_printable_text(logs: Logs) -> None:
    src = "\x1b[31m\u202e<b>" + "x" * 500
    logs.write("access.log", web_line(NOW, src, "/.env"))
    result, one = run()
    alerts = sent(one)
    ((suffix, alert), (confirm, note)) = alerts.items()
    assert alert["channel"] == "ops" and alert["title"] == "medium: web-secret-file (main)" and alert["level"] == "warning"
    assert alert["data"]["finding"] == suffix == logs.report(result).findings[0].id
    assert alert["data"]["subject"].startswith("\\x1b[31m\\u202e<b>xxx") and len(alert["data"]["subject"]) == 200
    assert (confirm, note["confirm"]) == ("confirm", one.work)
    assert {packed.head.fields[3] for packed in one.followers} == {"send-notification", "analyze-threats"}
    assert {packed.head.stream for packed in one.followers} == {Priority.CRITICAL - 1}
    assert all(each.subject.isprintable() for each in result.top)


def test_many_findings_are_a_few_alerts_and_a_word_of_the_others(logs: Logs) -> None:
    for number in range(MAX_ALERTS + 7):
        logs.write("auth.log", *logs.brute(f"192.0.2.{number}"))
    result, one = run()
    alerts = sent(one)
    assert len(alerts) == MAX_ALERTS + 2
    assert alerts["more"]["title"] == "8 more findings (main)"  # one of them is of the user that all of them attacked
    assert result.findings == {"high": MAX_ALERTS + 7 + 1} and ("ssh-distributed", "root") in found(result)
    run(1, confirm=one.work)
    assert logs.rows("SELECT count(*) FROM findings WHERE NOT is_sent") == [(0,)]


def test_levels_below_are_kept_and_nobody_is_told(logs: Logs) -> None:
    logs.configure(notify_from="'high'")
    logs.write("access.log", web_line(NOW, ATTACKER, "/.env"), web_line(NOW, ATTACKER, "/a/../../b"))
    result, one = run()
    assert len(result.top) == 2 and [each["data"]["rule"] for each in sent(one).values() if "data" in each] == ["web-traversal"]


def test_without_a_channel_nobody_is_told(logs: Logs) -> None:
    logs.configure(notify="'ops'", notify_from="'low'")
    text = (logs.folder / "handlers.toml").read_text().replace("notify = 'ops', ", "")
    (logs.folder / "handlers.toml").write_text(text)
    logs.write("auth.log", *logs.brute())
    result, one = run()
    assert result.findings == {"high": 1} and sent(one) == {}


# --- repeats, races and crashes ------------------------------------------------------------------------------------------------


def test_a_repeat_reads_nothing_and_tells_the_same(logs: Logs) -> None:
    logs.write("auth.log", *logs.brute())
    first, one = run()
    logs.write("auth.log", *logs.brute("192.0.2.9"))
    again, other = run()
    assert again == first and sent(other) == sent(one)
    assert found(run(1)[0]) == {("ssh-brute-force", "192.0.2.9")}


def test_once_it_is_noted_that_people_were_told_nobody_tells_them_again(logs: Logs) -> None:
    logs.write("auth.log", *logs.brute())
    _, one = run()
    assert run(1, confirm=one.work)[0].confirmed == 1
    assert run(2, confirm=one.work)[0].confirmed == 0
    logs.sql_of_state("UPDATE findings SET owned_s = 0")
    assert sent(run(0)[1]) == sent(run(3)[1]) == {}


def test_what_a_run_that_is_gone_did_not_tell_a_later_one_does(logs: Logs) -> None:
    logs.write("auth.log", *logs.brute())
    _, gone = run(0)
    assert sent(run(1)[1]) == {}, "the first one may still be at it"
    logs.sql_of_state(f"UPDATE findings SET owned_s = owned_s - {TAKE_OVER_S + 1}")
    _, later = run(2)
    assert sent(later).keys() == sent(gone).keys() and len(sent(later)) == 2
    assert sent(run(0)[1]) == {}, "it was taken from it"
    assert run(3, confirm=gone.work)[0].confirmed == 0
    assert run(4, confirm=later.work)[0].confirmed == 1


def test_of_two_runs_from_one_place_the_later_one_does_nothing(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run reads and commits after the first one has read, and before it commits."""
    logs.write("auth.log", *logs.brute())
    second: list[tuple[ThreatsAnalyzed, Job]] = []
    commit = findings.Memory.commit

    def late(memory: findings.Memory, *arguments: Any) -> Any:
        monkeypatch.setattr(findings.Memory, "commit", commit)
        second.append(run(1))
        return commit(memory, *arguments)

    monkeypatch.setattr(findings.Memory, "commit", late)
    first, one = run(0)
    assert (first.raced, first.lines, sent(one)) == (True, 0, {})
    assert found(second[0][0]) == {("ssh-brute-force", ATTACKER)} and len(sent(second[0][1])) == 2
    assert logs.rows("SELECT rule, count FROM findings") == [("ssh-brute-force", 12)]


def test_two_runs_of_one_job_commit_once(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job was delivered again while its first run was not over."""
    logs.write("auth.log", *logs.brute())
    second: list[tuple[ThreatsAnalyzed, Job]] = []
    commit = findings.Memory.commit

    def late(memory: findings.Memory, *arguments: Any) -> Any:
        monkeypatch.setattr(findings.Memory, "commit", commit)
        second.append(run(0))
        return commit(memory, *arguments)

    monkeypatch.setattr(findings.Memory, "commit", late)
    first, one = run(0)
    assert first == second[0][0] and sent(one) == sent(second[0][1]) and len(sent(one)) == 2
    assert logs.rows("SELECT count FROM findings") == [(12,)]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(logs: Logs, point: str) -> None:
    logs.write("auth.log", *logs.brute())
    for _ in range(1 if point == "threats-committed" else 2):  # a rerun finds the commit, and does not come by there again
        killed = child(logs, AnalyzeThreats(analysis="main"), point=point)
        killed.communicate(timeout=120)
        assert killed.returncode == -signal.SIGKILL
    result, one = run()
    assert [(each.rule, each.count) for each in result.top] == [("ssh-brute-force", 12)]
    assert logs.rows("SELECT rule, count, is_sent FROM findings") == [("ssh-brute-force", 12, 0)]
    assert len(sent(one)) == 2 and logs.report(result).work == one.work
    assert [name for name in logs.names(logs.out) if name.endswith(".part") or "journal" in name] == []
    later, other = run(1)
    assert (later.lines, found(later), sent(other)) == (0, set(), {})
    logs.write("auth.log", logs.brute("192.0.2.1")[0])
    assert run(2)[0].lines == 1


async def test_a_cancel_leaves_nothing_visible_and_reads_on_later(logs: Logs) -> None:
    with (logs.logs / "access.log").open("a") as file:
        for n in range(60):
            file.write("".join(f"{web_line(NOW - n, f'198.51.{m % 250}.9', f'/p-{n}-{m}', 404)}\n" for m in range(4000)))
    asked = AnalyzeThreats(analysis="main")
    task = asyncio.create_task(analyze_threats.run(asked, job_of(asked)))
    await asyncio.to_thread(poll, (logs.out / "threats-main.db").exists)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [name for name in logs.names(logs.out) if name.endswith((".json", ".part"))] == []
    logs.write("auth.log", *logs.brute())
    (logs.logs / "access.log").write_text("")
    assert found(run()[0]) == {("ssh-brute-force", ATTACKER)}


async def test_a_plain_message_comes_all_the_way_and_people_are_told_once(
    logs: Logs, web: Httphost, valkey: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs.write("auth.log", *logs.brute())
    monkeypatch.setenv("HOOK", f"{web.url}/hook")
    text = (logs.folder / "handlers.toml").read_text()
    reach = f"private = ['127.0.0.1'], ports = [{web.port}]"
    (logs.folder / "handlers.toml").write_text(text.replace("url = 'env:HOOK'", f"url = 'env:HOOK', {reach}"))
    client = valkey.client()
    for number in range(3):
        client.xadd("{jobs}:critical", {"type": "analyze-threats", "data": b'{"analysis":"main"}'}, id=f"{BORN_MS}-{number}")
    async with working(valkey.url, analyze_threats, send_notification, lifespans=[http.clients]):
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:critical") == 0 and bool(web.seen))
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:critical") == 0)
    await asyncio.to_thread(poll, lambda: web.is_left)
    assert client.xlen("{jobs}:dead") == 0
    assert len(web.seen) == 1
    assert logs.rows("SELECT is_sent FROM findings") == [(1,)]
    client.close()


def test_a_broken_folder_of_reports_keeps_no_alert_back(logs: Logs) -> None:
    logs.configure(to="'reports'", more=f"roots.reports = {{ path = '{logs.folder / 'nowhere'}', mode = 'write' }}\n")
    with pytest.raises(Snooze, match="alias-missing"):
        run(0)
    logs.write("auth.log", *logs.brute())
    result, one = run(1)
    assert result.report == "" and len(sent(one)) == 2
    (logs.folder / "nowhere").mkdir()
    assert run(0)[0].report and run(1)[0].report


# --- blindness ---------------------------------------------------------------------------------------------------------------


def test_lines_that_cannot_be_parsed_are_a_finding(logs: Logs) -> None:
    logs.write("auth.log", *["not a line of syslog"] * 30)
    result, one = run()
    assert result.unparsed == 30 and found(result) == {("log-unparsed", "auth")} and len(sent(one)) == 2
    assert result.blind == ["log-unparsed"]
    logs.write("auth.log", *["not a line of syslog"] * 30)
    assert sent(run(1)[1]) == {}, "it is the same one"


def test_sources_that_cannot_be_read_are_told_of_and_the_others_are_read(logs: Logs) -> None:
    more = f"roots.gone = {{ path = '{logs.folder / 'gone'}' }}\nlogs.gone = {{ root = 'gone', glob = '*', format = 'sshd' }}\n"
    more += "logs.folder = { root = 'logs', folder = 'no/such', glob = '*', format = 'sshd' }\n"
    more += "logs.none = { root = 'logs', glob = 'nothing*', format = 'sshd' }\n"
    logs.configure(more, sources="['gone', 'auth', 'folder', 'none']")
    logs.write("auth.log", *logs.brute())
    result, one = run()
    assert result.unreadable == ["gone", "folder", "none"] and result.blind == ["source-unreadable"]
    assert found(result) == {("ssh-brute-force", ATTACKER), *(("source-unreadable", each) for each in result.unreadable)}
    assert len(sent(one)) == 5
    assert [len(each.faults) for each in logs.report(result).sources] == [1, 0, 1, 1]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can run as another user")
def test_a_file_that_may_not_be_read_is_told_of() -> None:
    with TemporaryDirectory() as folder:  # pytest's own are shut to other users, each time that it starts
        logs = Logs(Path(folder))
        for name in ("out", "db", "logs"):
            (logs.folder / name).mkdir()
        logs.configure()
        logs.write("access.log", web_line(NOW, "198.51.100.1", "/"))
        for path in (logs.folder, *logs.folder.rglob("*")):
            os.chown(path, 65_534, 65_534)
        logs.write("auth.log", *logs.brute())
        (logs.logs / "auth.log").chmod(0o000)
        said = outcome(child(logs, AnalyzeThreats(analysis="main"), user=65_534))
    assert json.loads(said)["unreadable"] == ["auth"], said
    assert json.loads(said)["lines"] == 1


def test_what_does_not_fit_into_a_run_is_read_in_the_next_one_or_told_of(logs: Logs) -> None:
    logs.configure(max_bytes="1048576")
    line = web_line(NOW - 60, "198.51.100.1", "/x" + "x" * 900)
    logs.write("access.log", *[line] * 2000)
    logs.write("auth.log", *logs.brute())
    window, _ = run(9, window={"last": "1h"})
    assert found(window) == {("log-unread", "web"), ("ssh-brute-force", ATTACKER)} and window.blind == ["log-unread"]
    lines = [run(number)[0] for number in range(3)]
    assert sum(each.lines for each in lines) == 2000 + 30 + 13 and not any(each.unreadable for each in lines)
    assert logs.report(lines[0]).sources[0].left_bytes > 0
    assert [each.blind for each in lines] == [["log-unread"], ["log-unread"], []]
    assert ("ssh-brute-force", ATTACKER) in found(lines[0]), "whoever fills up one log hides nothing in another"


def test_more_subjects_than_are_remembered_are_counted(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.kit.detections.Rate.__init__.__defaults__", (50,))
    logs.write("auth.log", *(ssh_line(NOW - 100, failed("root", f"10.0.{n // 250}.{n % 250}")) for n in range(200)))
    result, _ = run()
    assert ("subjects-forgotten", "failures") in found(result) and result.blind == ["subjects-forgotten"]


def test_more_findings_than_are_kept_are_counted(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("handlers.kit.detections.MAX_FOUND", 5)
    logs.write("access.log", *(web_line(NOW, f"10.0.0.{n}", "/.env") for n in range(9)))
    result, _ = run()
    assert [(each.rule, each.subject, each.count) for each in result.top if each.rule == "findings-dropped"] == [
        ("findings-dropped", "main", 4)
    ]
    assert result.findings["medium"] == 6 and result.blind == ["findings-dropped"]


def test_a_job_that_is_late_or_replayed_reads_the_lines_of_today(logs: Logs) -> None:
    logs.write("access.log", web_line(time.time() - 5, ATTACKER, "/x?f=../../../../etc/passwd"))
    asked = AnalyzeThreats(analysis="main")
    late = analyze_threats.function(asked, job_of(asked))
    assert ("web-traversal", ATTACKER) in found(late) and (late.unparsed, late.blind) == (0, [])


def test_how_long_nobody_looked_is_in_the_report(logs: Logs) -> None:
    run(0)
    asked = AnalyzeThreats(analysis="main")
    later = builders.job_of(asked, f"{BORN_MS + 900_000}-0", fetched_ms=FETCHED_MS)
    result = analyze_threats.function(asked, later)
    assert logs.report(result).gap_s == 900


# --- what a payload and the settings may say ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [*HOSTILE, "\n", "\r\n", "/../x", "A"])
@pytest.mark.parametrize("field", ["analysis", "confirm", "sources", "detections"])
def test_hostile_text_dies_in_the_contract(field: str, tail: str) -> None:
    values = {"analysis": "main", "confirm": "a" * 26, "sources": "web", "detections": "web-xss"}
    value = values[field] + tail
    payload = {"analysis": "main", "window": {"last": "1h"}, field: value if field in ("analysis", "confirm") else [value]}
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        analyze_threats.decode(builders.job("analyze-threats", data=msgspec.json.encode(payload)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sources": ["web"]}, "need a `window`"),
        ({"detections": ["web-xss"]}, "need a `window`"),
        ({"thresholds": {"failures": 1000}}, "unknown field"),
        ({"notify": "eve"}, "unknown field"),
        ({"rules": "mine"}, "unknown field"),
        ({"window": {"last": "1h"}, "sources": ["a"] * 21}, "length <= 20"),
        ({"confirm": "short"}, "confirm"),
    ],
)
def test_a_payload_cannot_loosen_what_the_settings_say(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPayload, match=said):
        analyze_threats.decode(builders.job("analyze-threats", data=msgspec.json.encode({"analysis": "main", **change})))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("logs.x = { root = 'logs', glob = '*', format = 'jsonl' }", "must say what `at` is"),
        ("logs.x = { root = 'logs', glob = '*', format = 'sshd', fields = { at = 't' } }", "are for it alone"),
        ("logs.x = { root = 'logs', glob = '*', format = 'sshd', zone = 'Nowhere' }", "must be a time zone"),
        ("logs.x = { root = 'logs', glob = '*', format = 'sshd', folder = '../x' }", "below the root"),
        ("logs.x = { root = 'logs', glob = '../*', format = 'sshd' }", "glob"),
        ("logs.x = { root = 'logs', glob = '*', format = 'iis' }", "format"),
        ("rules.x = { root = 'logs', folder = '/etc' }", "below the root"),
        ("threats.x = { sources = ['web', 'web'] }", "must name each once"),
        ("threats.x = { sources = [] }", "sources"),
        ("threats.x = { sources = ['web'], thresholds = { failures = 0 } }", "failures"),
        ("threats.x = { sources = ['web'], thresholds = { users_s = 1 } }", "users_s"),
    ],
)
def test_settings_that_make_no_sense_are_refused(logs: Logs, settings: str, said: str) -> None:
    logs.configure(f"{settings}\n")
    with pytest.raises(ConfigError, match=said):
        at_start()


def test_analyses_of_the_settings_are_schedules(logs: Logs) -> None:
    logs.configure("threats.off = { sources = ['web'], enabled = false }\n")
    (schedule,) = SCHEDULES()
    assert (schedule.name, schedule.when) == ("analyze-threats.main", "*/5 * * * *")
    assert (schedule.missed, schedule.expires_s) == ("latest", 3600)
    assert schedule.message == AnalyzeThreats(analysis="main") and contract_of(AnalyzeThreats).priority is Priority.CRITICAL
    for key, value in (("to", "'db'"), ("state", "'nowhere'"), ("sources", "['x']"), ("rules", "'x'"), ("notify", "'x'")):
        logs.configure(**{key: value})
        with pytest.raises(ConfigError, match=rf"threats\.main.*{value.strip(chr(39)).strip('[]').strip(chr(39))}"):
            SCHEDULES()


def test_a_channel_without_a_url_of_its_own_is_refused(logs: Logs) -> None:
    """A job for it would die, and what it should have told would count as told."""
    logs.configure("channels.any = { kind = 'webhook', dynamic = true, hosts = ['a.example.org'] }\n", notify="'any'")
    with pytest.raises(ConfigError, match=r"threats\.main: channel 'any'"):
        SCHEDULES()
    with pytest.raises(Snooze, match=r"bad-channel: threats\.main"):
        run()


def test_an_operator_is_waited_for(logs: Logs) -> None:
    with pytest.raises(Snooze, match=r"alias-missing: threats\.other"):
        run(analysis="other")
    logs.configure(sources="['nothing']")
    with pytest.raises(Snooze, match=r"alias-missing: logs\.nothing"):
        run()
    logs.configure(state="'db'")
    with pytest.raises(Dead, match="allows mode 'read' only"):
        run()
    logs.configure()
    (logs.out / "threats-main.db").unlink()
    (logs.out / "threats-main.db").symlink_to(logs.logs / "auth.log")
    with pytest.raises(Dead, match="bad-path|Too many levels"):
        run()
    assert (logs.logs / "auth.log").read_text().startswith("Nov 14")


def test_the_doctor_looks_at_sources_and_rules(logs: Logs) -> None:
    more = "logs.none = { root = 'logs', glob = 'nothing*', format = 'sshd' }\n"
    more += "logs.gone = { root = 'nowhere', glob = '*', format = 'sshd' }\n"
    more += f"roots.rules = {{ path = '{logs.folder / 'rules'}' }}\nrules.mine = {{ root = 'rules' }}\n"
    logs.configure(more, sources="['web', 'none', 'gone']", rules="'mine'")
    assert [(each.level, each.what.partition(":")[0]) for each in CHECKS()] == [
        ("error", "logs.gone"),
        ("warning", "logs.none"),
        ("ok", "logs.web"),
        ("error", "rules.mine"),
    ]
