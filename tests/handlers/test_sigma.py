"""Sigma rules find what SQL written by hand finds, and neither a rule nor a line can do more than that."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from handlers.contracts.threats import ThreatsAnalyzed
from handlers.kit import sigma
from handlers.kit.detections import Hits
from handlers.kit.logs import parser_of
from handlers.kit.settings import current
from handlers.kit.sigma import Rules, Scratch, safe_documents, windows_of
from handlers.kit.threads import Stop, Stopped
from runtime import Dead, Snooze
from tests.handlers.conftest import Configure
from tests.handlers.logsmith import accepted, failed, forge, ssh_line, web_line
from tests.handlers.test_analyze_threats import ATTACKER, NOW, Logs, found, run, sent
from tests.handlers.test_logs import log

RULE = """title: {title}
name: {name}
logsource: {{category: webserver}}
detection:
  sel: {select}
  condition: {condition}
level: {level}
"""
FAILURES = """title: failures
name: failures
logsource: {product: linux, service: sshd}
detection: {sel: ['Failed password for'], condition: sel}
level: low
"""
COUNT = """---
title: many failures
correlation:
  type: event_count
  rules: [failures]
  group-by: [src_ip]
  timespan: 5m
  condition: {gte: 10}
level: high
"""


@pytest.fixture
def logs(tmp_path: Path, configure: Configure) -> Logs:
    logs = Logs(tmp_path)
    for folder in ("out", "db", "logs", "rules"):
        (tmp_path / folder).mkdir()
    configure("")
    more = f"roots.rules = {{ path = '{tmp_path / 'rules'}' }}\nrules.mine = {{ root = 'rules' }}\n"
    logs.configure(more, rules="'mine'", detections="['web-scanner']")
    return logs


def rule(logs: Logs, select: str, *, title: str = "rule", condition: str = "sel", level: str = "high", more: str = "") -> None:
    text = RULE.format(title=title, name=title.replace(" ", "_"), select=select, condition=condition, level=level) + more
    (logs.folder / "rules" / f"{title}.yml").write_text(text, "utf-8")


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    """A day of lines, with attacks in them."""
    made, scratch = forge(3, 4000, NOW), Scratch(Stop())
    for source, layout in (("web", "combined"), ("auth", "sshd")):
        parse = parser_of(log(layout), NOW)
        for _, line in sorted(getattr(made, source)):
            event = parse(line)
            assert event is not None
            scratch.add(source, event, line)
    event = parser_of(log("combined"), NOW)(ODD)
    assert event is not None
    scratch.add("web", event, ODD)
    yield scratch
    scratch.close()


ODD = web_line(NOW, "10.1.2.3", "/A%B_c?x='\\\"\\\\;--`&Y=Ünïcode", 418, "It's 100% \\\\ _odd_")
MANY = """SELECT DISTINCT src FROM (
    SELECT src, count(*) OVER (PARTITION BY src ORDER BY at RANGE BETWEEN 300 PRECEDING AND CURRENT ROW) AS n
    FROM kept WHERE raw LIKE '%Failed password for%'
) WHERE n >= 10"""


@pytest.mark.parametrize(
    ("select", "condition", "by_hand"),
    [
        ("{cs-method: GET, sc-status: 404}", "sel", "method = 'GET' AND status = 404"),
        ("{cs-uri-query|contains: select}", "sel", "query LIKE '%select%'"),
        ("{cs-uri-stem|startswith: /PRODUCTS}", "sel", "stem LIKE '/products%'"),
        ("{cs-uri-stem|endswith: [.env, .sql]}", "sel", "stem LIKE '%.env' OR stem LIKE '%.sql'"),
        ("{cs-user-agent|contains: sqlmap}", "not sel", "coalesce(agent NOT LIKE '%sqlmap%', 1)"),
        ("{cs-uri|re: 'id=[0-9]+.*(union|or)'}", "sel", "target REGEXP 'id=[0-9]+.*(union|or)'"),
        ("{c-ip|cidr: 192.0.2.0/24}", "sel", "src LIKE '192.0.2.%'"),
        ("{c-ip|cidr: 10.0.0.0/8, sc-status|gte: 400}", "sel", "src LIKE '10.%' AND status >= 400"),
        ("{cs-uri|contains: 'A%B_c'}", "sel", "instr(target, 'A%B_c')"),
        ("{cs-uri|contains: '\"'}", "sel", "instr(target, '\"')"),
        ('{cs-user-agent|contains: "It\'s 100%"}', "sel", "instr(agent, 'It''s 100%')"),
        ("['Failed password', 'Accepted']", "sel", "raw LIKE '%Failed password%' OR raw LIKE '%Accepted%'"),
        ("{user: ROOT}", "sel", "user = 'root'"),
        ("{cs-referer: null}", "sel", "referer IS NULL"),
        ("{cs-uri-query|exists: true}", "sel", "query IS NOT NULL"),
        ("{timestamp|hour: 3}", "sel", "strftime('%H', at, 'unixepoch') = '03'"),
        (
            "{program: sshd, message|contains|all: [Failed, root]}",
            "sel",
            "program = 'sshd' AND message LIKE '%failed%' AND message LIKE '%root%'",
        ),
    ],
)
def test_a_rule_finds_what_sql_by_hand_finds(logs: Logs, scratch: Scratch, select: str, condition: str, by_hand: str) -> None:
    rule(logs, select, condition=condition)
    rules, hits = Rules(scratch), Hits()
    rules.load(current(), "mine")
    assert rules.failed == []
    scratch.run(rules, {}, hits)
    scratch._connection.set_authorizer(None)
    expected = scratch._connection.execute(
        f"SELECT coalesce(src, user, host, source), min(at), max(at), count(*) FROM kept WHERE {by_hand} GROUP BY 1"
    ).fetchall()
    got = {}
    for hit in hits:
        first, last, count = got.get(hit.subject, (hit.first, hit.last, 0))
        got[hit.subject] = (min(first, hit.first), max(last, hit.last), count + hit.count)
    expected = sorted(expected, key=lambda row: -row[3])[: sigma.MAX_FINDINGS]
    assert sum(row[3] for row in expected) == sum(count for _, _, count in got.values()) > 0
    if len(expected) < sigma.MAX_FINDINGS:
        assert got == {row[0]: row[1:] for row in expected}


def test_a_correlation_counts_as_a_window_function_does(logs: Logs, scratch: Scratch) -> None:
    (logs.folder / "rules" / "r.yml").write_text(FAILURES + COUNT)
    rules, hits = Rules(scratch), Hits()
    rules.load(current(), "mine")
    assert rules.failed == [] and [each.name for each in rules.rules] == ["sigma: many failures"]
    scratch.run(rules, windows_of(rules.rules), hits)
    scratch._connection.set_authorizer(None)
    assert {hit.subject for hit in hits} == {row[0] for row in scratch._connection.execute(MANY)} != set()


def test_a_correlation_counts_values(logs: Logs, scratch: Scratch) -> None:
    count = COUNT.replace("event_count", "value_count").replace("{gte: 10}", "{field: user, gt: 7}")
    (logs.folder / "rules" / "r.yml").write_text(FAILURES + count)
    rules, hits = Rules(scratch), Hits()
    rules.load(current(), "mine")
    scratch.run(rules, windows_of(rules.rules), hits)
    assert {hit.subject for hit in hits} == {src for rule, src in forge(3, 4000, NOW).planted if rule == "ssh-spraying"}


# --- in a job ------------------------------------------------------------------------------------------------------------------


def test_rules_are_findings_and_alerts(logs: Logs) -> None:
    rule(logs, "{sc-status: 418}", title="teapot", level="critical")
    logs.write("access.log", web_line(NOW, ATTACKER, "/tea", 418))
    logs.write("auth.log", ssh_line(NOW, accepted("a", "192.0.2.1")))
    result, one = run()
    assert found(result) == {("sigma: teapot", ATTACKER)} and len(sent(one)) == 2
    assert logs.report(result).rules == 1


def test_a_correlation_goes_on_in_the_next_run(logs: Logs) -> None:
    (logs.folder / "rules" / "r.yml").write_text(FAILURES + COUNT)
    logs.write("access.log", web_line(NOW, "192.0.2.1", "/"))
    lines = logs.brute(count=12)
    logs.write("auth.log", *lines[:7])
    assert found(run(0)[0]) == set()
    logs.write("auth.log", *lines[7:])
    result, one = run(1)
    assert [(each.rule, each.subject, each.count) for each in result.top] == [("sigma: many failures", ATTACKER, 12)]
    assert len(sent(one)) == 2


def test_a_correlation_that_becomes_one_of_another_kind_begins_anew(logs: Logs) -> None:
    path = logs.folder / "rules" / "r.yml"
    logs.write("access.log", web_line(NOW, "192.0.2.1", "/"))
    for number, count in enumerate(
        [COUNT, COUNT.replace("event_count", "value_count").replace("gte: 10", "field: user, gte: 3")] * 2
    ):
        path.write_text(FAILURES + count)
        logs.write("auth.log", logs.brute()[number])
        result, _ = run(number)
        assert (result.failed_rules, found(result)) == (0, set())


def test_all_rules_have_one_deadline_and_what_was_read_is_kept(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigma, "RULES_S", 0.0)
    rule(logs, "{sc-status: 418}", title="one")
    rule(logs, "{sc-status: 418}", title="two")
    logs.write("access.log", web_line(NOW, ATTACKER, "/tea", 418))
    logs.write("auth.log", ssh_line(NOW, accepted("a", "192.0.2.1")))
    result, one = run(0)
    assert (result.lines, result.failed_rules, result.blind) == (2, 2, ["rules-failed"]) and len(sent(one)) == 2
    assert run(1)[0].lines == 0


BAD = {
    "unknown-field.yml": RULE.format(title="u", name="u", select="{EventID: 1}", condition="sel", level="low"),
    "no-detection.yml": "title: x\nlogsource: {category: webserver}\n",
    "condition.yml": RULE.format(title="c", name="c", select="{sc-status: 1}", condition="nothing and", level="low"),
    "regex.yml": RULE.format(title="r", name="r", select="{cs-uri|re: '(a'}", condition="sel", level="low"),
    "list.yml": "- 1\n- 2\n",
    "scalar.yml": "hello",
    "broken.yml": "a: [",
    "binary.yml": "\x00\x01",
    "empty.yml": "",
    "temporal.yml": COUNT.replace("event_count", "temporal").removeprefix("---\n"),
    "missing.yml": COUNT.replace("many failures", "m").replace("[failures]", "[nothing]").removeprefix("---\n"),
    "huge.yml": COUNT.replace("many failures", "h").replace("{gte: 10}", "{gte: 1000000}").removeprefix("---\n"),
    "python.yml": "title: !!python/object/apply:os.system ['true']\n",
    "laughs.yml": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "deep.yml": "a: " + "[" * 200 + "]" * 200,
    "many.yml": "a: [" + "1," * 60_000 + "]",
    "long.yml": "# " + "x" * 300_000,
}


def test_rules_that_cannot_be_used_are_listed_and_the_others_run(logs: Logs) -> None:
    for name, text in BAD.items():
        (logs.folder / "rules" / name).write_text(text, "utf-8")
    (logs.folder / "rules" / "link.yml").symlink_to(logs.folder / "handlers.toml")
    (logs.folder / "rules" / "deeper" / "still").mkdir(parents=True)
    rule(logs, "{sc-status: 418}", title="teapot")
    (logs.folder / "rules" / "teapot.yml").rename(logs.folder / "rules" / "deeper" / "still" / "teapot.yaml")
    logs.write("access.log", web_line(NOW, ATTACKER, "/tea", 418))
    logs.write("auth.log", ssh_line(NOW, accepted("a", "192.0.2.1")))
    result, _ = run()
    report = logs.report(result)
    assert found(result) == {("sigma: teapot", ATTACKER), ("rules-failed", "main")} and result.blind == ["rules-failed"]
    assert result.failed_rules == len(report.failed_rules) >= len(BAD) + 1
    assert all(each.rule.isprintable() and each.reason for each in report.failed_rules)
    reasons = {each.rule: each.reason for each in report.failed_rules}
    assert "no such column" in reasons["sigma: u"] and "aliases" in reasons["laughs.yml"]
    assert "levels deep" in reasons["deep.yml"] and "values" in reasons["many.yml"] and "262144" in reasons["long.yml"]


def test_no_rule_that_can_be_used_is_death_before_anything_is_read(logs: Logs) -> None:
    for texts in ({}, BAD):
        for name, text in texts.items():
            (logs.folder / "rules" / name).write_text(text, "utf-8")
        with pytest.raises(Dead) as caught:
            run()
        assert caught.value.code == "rule-error"
    assert logs.rows("SELECT count(*) FROM runs") == [(0,)]


def test_a_folder_that_is_not_there_is_waited_for(logs: Logs) -> None:
    (logs.folder / "rules").rmdir()
    with pytest.raises(Snooze, match="alias-missing"):
        run()


def test_documents_are_plain_data() -> None:
    assert safe_documents(b"a: 1\n---\nb: 2\n") == [{"a": 1}, {"b": 2}]
    for text in (b"\xff\xfe\x00", b"%YAML 9.9\n---\na: 1", b"a: !!binary x", b"? [a]\n: 1", b"a: 1\na: *x"):
        with pytest.raises(ValueError):
            safe_documents(text)


# --- bounds and permissions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO kept (at) VALUES (1)",
        "DELETE FROM kept",
        "DROP TABLE kept",
        "ATTACH 'x.db' AS x",
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE x (a)",
        "SELECT load_extension('x')",
        "SELECT randomblob(1000000000)",
        "SELECT zeroblob(1000000000)",
        "SELECT readfile('/etc/passwd')",
        "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n) SELECT count(*) FROM n",
        "SELECT * FROM sqlite_master",
    ],
)
def test_a_query_can_only_read_the_lines(scratch: Scratch, statement: str, tmp_path: Path) -> None:
    rules = Rules(scratch)
    rules.rules.append(sigma.Rule("x", "low", statement))
    scratch.run(rules, {}, Hits())
    assert [each.rule for each in rules.failed] == ["x"]
    with pytest.raises(sqlite3.DatabaseError):
        scratch._connection.execute(statement).fetchall()


def test_what_takes_too_long_is_ended_and_listed(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sigma, "RULE_S", 0.05)
    rules, hits = Rules(scratch), Hits()
    rules.rules.append(sigma.Rule("slow", "low", "SELECT a.* FROM lines a, lines b, lines c, lines d"))
    rules.rules.append(sigma.Rule("fast", "low", "SELECT * FROM lines WHERE `sc-status` = 418"))
    scratch.run(rules, {}, hits)
    assert [(each.rule, each.reason) for each in rules.failed] == [("slow", "took too long")]
    assert [hit.rule for hit in hits] == ["fast"]


def test_a_stop_ends_a_query() -> None:
    stop = Stop()
    with closing(Scratch(stop)) as scratch:
        rules = Rules(scratch)
        rules.rules.append(sigma.Rule("slow", "low", "SELECT * FROM lines"))
        stop.is_set = True
        with pytest.raises(Stopped):
            scratch.run(rules, {}, Hits())


@pytest.mark.parametrize(
    "select", ["{cs-uri|re: '(a+)+(a+)+(a+)+$'}", "{cs-uri: '" + "*a" * 12 + "*b'}", "['" + "*a" * 12 + "*b']"]
)
def test_no_pattern_is_slow_on_a_hostile_line(logs: Logs, select: str) -> None:
    rule(logs, select)
    line = web_line(NOW, ATTACKER, "/" + "a" * 8000)
    event = parser_of(log("combined"), NOW)(line)
    assert event is not None
    with closing(Scratch(Stop())) as scratch:
        for _ in range(5):
            scratch.add("web", event, line)
        rules = Rules(scratch)
        rules.load(current(), "mine")
        begin = time.process_time()
        scratch.run(rules, {}, Hits())
        assert time.process_time() - begin < 20 and rules.failed == []


@pytest.mark.parametrize(
    "text",
    [
        "'; DROP TABLE kept; --",
        "\x00 hidden behind a NUL: evil",
        "\x1b[2J",
        "😀\udcff".encode("utf-8", "backslashreplace").decode(),
    ],
)
def test_hostile_lines_are_only_values(logs: Logs, text: str) -> None:
    rule(logs, "['evil']", title="evil")
    logs.write("access.log", web_line(NOW, ATTACKER, f"/{text}evil"))
    logs.write("auth.log", ssh_line(NOW, failed(text, "192.0.2.1")))
    result, _ = run()
    assert isinstance(result, ThreatsAnalyzed)
    assert ("sigma: evil", ATTACKER) in found(result)


def test_a_rule_of_the_title_cannot_spoil_the_report(logs: Logs) -> None:
    rule(logs, "{sc-status: 418}", title="x")
    text = (logs.folder / "rules" / "x.yml").read_text().replace("title: x", 'title: "\\e[2J\\u202e' + "y" * 200 + '"')
    (logs.folder / "rules" / "x.yml").write_text(text)
    logs.write("access.log", web_line(NOW, ATTACKER, "/tea", 418))
    logs.write("auth.log", ssh_line(NOW, accepted("a", "192.0.2.1")))
    names: list[Any] = [each.rule for each in run()[0].top] or [each.rule for each in logs.report(run(1)[0]).failed_rules]
    assert names and all(name.isprintable() and len(name) < 300 for name in names)
