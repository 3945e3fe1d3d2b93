"""Prometheus takes the page, each alert fires when it should, and no alert or panel asks for what no worker has."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from otel.exposition import OPEN_METRICS, TEXT
from otel.metrics import Reading, TraceReading, families, is_open_metrics, render
from runtime.jobs import DONE
from runtime.stats import OUTCOMES, Stats
from tests.builders import job
from tests.collector import Collector
from tests.deploy.prometheus import (
    ADDED,
    ALERTS,
    CONFIG,
    DASHBOARD,
    DECLARED,
    HOW_TO_GET,
    ROOT,
    Prometheus,
    alerts,
    as_query,
    panels,
    program,
    used,
)
from tests.servers import Server, wait_until

needs_prometheus = pytest.mark.skipif(not (program("prometheus") and program("promtool")), reason=HOW_TO_GET)
EXPRESSIONS = [(alert.name, alert.expression) for alert in alerts()] + [(title, as_query(expr)) for title, expr, _ in panels()]


def promtool(*arguments: str, text: bytes = b"") -> str:
    binary = program("promtool")
    assert binary
    result = subprocess.run([binary, *arguments], input=text, capture_output=True, timeout=60)
    said = (result.stdout + result.stderr).decode()
    assert result.returncode == 0, said
    return said


# --- what they ask for is there ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expression"), EXPRESSIONS, ids=[f"{n} {name}" for n, (name, _) in enumerate(EXPRESSIONS)])
def test_an_expression_names_metrics_and_labels_that_are_declared(name: str, expression: str):
    found = used(expression)
    assert found.selectors
    for metric, labels in found.selectors:
        assert metric in DECLARED, metric
        assert set(labels) <= DECLARED[metric] | ADDED, (metric, labels)
        assert found.grouped <= DECLARED[metric] | ADDED, (metric, found.grouped)
        for outcome in re.split(r"\|", labels.get("outcome", "")):
            assert outcome in ("", *OUTCOMES), outcome


def test_legends_show_labels_that_are_left():
    for title, expression, legend in panels():
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            is_bare = " by " not in expression
            assert label in used(expression).grouped or (is_bare and label in ADDED), (title, label)


def test_an_alert_says_what_to_do_and_where_more_stands_and_where_its_threshold_comes_from():
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert len(alerts()) == 12
    for alert in alerts():
        assert alert.severity in ("warning", "critical")
        assert alert.annotations["summary"], alert.name
        assert re.fullmatch(r"[A-Z`].*\.", alert.annotations["runbook"]), alert.name
        assert alert.annotations["docs"] == f"docs/metrics.md#{alert.name.lower()}"
        assert f"\n### {alert.name}\n" in page, alert.name
        assert re.search(rf"# \S.*\n      - alert: {alert.name}\n", ALERTS.read_text()), "a comment says why"
    assert re.findall(r"^### (.*)", page, re.MULTILINE) == [alert.name for alert in alerts()]


def test_the_commands_that_an_alert_names_exist():
    from runtime.cli import COMMANDS

    for command in re.findall(r"`([a-z]+)\b", " ".join(alert.annotations["runbook"] for alert in alerts())):
        assert command in COMMANDS, command


def test_the_dashboard_is_what_grafana_takes_and_its_sources_are_provisioned():
    board = json.loads(DASHBOARD.read_text())
    assert board["schemaVersion"] == 39, "of Grafana 11"
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    sources = (provisioning / "datasources" / "datasources.yml").read_text()
    assert set(re.findall(r"^    uid: (\w+)", sources, re.MULTILINE)) == {"prometheus", "jaeger"}
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"prometheus"}
    places = sorted((panel["gridPos"]["y"], panel["gridPos"]["x"], panel["gridPos"]["w"]) for panel in board["panels"])
    assert all(x + w <= 24 for _, x, w in places)
    assert [target["exemplar"] for panel in board["panels"] if panel["title"] == "Run" for target in panel["targets"]] == [
        True
    ] * 2
    for title, _, _ in panels():
        assert title, "each panel has one"


# --- a real worker, a real Prometheus ----------------------------------------------------------------------------------------


JOBS = """
import time

import msgspec

from runtime import Job, contract, handler
from runtime.errors import Dead


@contract("watched")
class Watched(msgspec.Struct):
    fails: bool = False
    blocks_s: float = 0.0


@handler(Watched)
async def watched(message: Watched, job: Job) -> None:
    time.sleep(message.blocks_s)
    if message.fails:
        raise Dead("no", "no")
"""


@pytest.fixture
def worker(valkey: Server, tmp_path: Path) -> Iterator[tuple[str, Collector]]:
    """A worker process with traces on: where its page is, and the collector of its traces."""
    (tmp_path / "watched_jobs.py").write_text(JOBS)
    log = tmp_path / "log.worker"
    with Collector() as collector:
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint}
        command = [sys.executable, "-m", "runtime", "run", "--redis", valkey.url, "--handlers", "watched_jobs"]
        command += ["--board", "127.0.0.1:0", "--log", "plain"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, stderr=out, cwd=tmp_path)
        try:
            wait_until(lambda: "board at " in log.read_text() or process.poll() is not None, what="the board listens")
            assert process.poll() is None, log.read_text()
            yield log.read_text().split("board at http://")[1].split()[0], collector
        finally:
            process.terminate()
            process.wait()


@needs_prometheus
def test_a_real_prometheus_has_the_series_and_the_traces_of_a_live_worker(worker, valkey, tmp_path):
    address, collector = worker
    client = valkey.client()
    for data in ("{}", '{"blocks_s":0.4}', '{"fails":true}'):
        client.xadd("{jobs}:high", {"type": "watched", "data": data})
    wait_until(lambda: client.xlen("{jobs}:high") == 0, what="they ran, and that is written")
    client.close()
    collector.wait_for(lambda _: len(collector.spans) >= 3)
    with Prometheus(tmp_path, address) as prometheus:
        target = prometheus.await_scrape()
        assert (target["health"], target["lastError"]) == ("up", "")
        check_series(prometheus)
        now_s = time.time()
        asked = {"query": "runtime_run_seconds_bucket", "start": f"{now_s - 60}", "end": f"{now_s + 60}"}
        shown = [one for series in prometheus.ask("query_exemplars", **asked) for one in series["exemplars"]]
        assert any(float(one["value"]) > 0.4 for one in shown), "the slow one"
        traces = {span.trace_id.hex() for span in collector.spans}
        assert {one["labels"]["trace_id"] for one in shown} <= traces


def check_series(prometheus: Prometheus) -> None:
    of_all = "sum by (outcome, type, priority) (runtime_outcomes_total)"
    wait_until(lambda: prometheus.query(of_all), what="what was scraped can be asked for")  # a target is up a moment before that
    outcomes = prometheus.query(of_all)
    assert sorted((labels["outcome"], value) for labels, value in outcomes) == [("dead", 1), ("done", 2)]
    assert {(labels["type"], labels["priority"]) for labels, _ in outcomes} == {("watched", "high")}
    assert prometheus.query("max(runtime_dead_letters)") == [({}, 1)]
    assert prometheus.query("sum(runtime_wait_seconds_count)") == [({}, 3)]
    assert prometheus.query("sum(runtime_loop_blocked_total) > 0"), "by whom, a busy machine may not see"
    assert prometheus.query("max(runtime_loop_lag_max_seconds) > 0.3")
    have = set(prometheus.ask("label/__name__/values"))
    for name, expression in EXPRESSIONS:
        prometheus.query(expression)  # raises where it is none
        for metric, labels in used(expression).selectors:
            assert metric in have, (name, metric)
            series = prometheus.ask("series", **{"match[]": metric})
            assert all(set(labels) <= set(one) | {"process"} for one in series), (name, metric, labels)
    known = {alert["name"]: alert["health"] for group in prometheus.ask("rules")["groups"] for alert in group["rules"]}
    assert known.keys() == {alert.name for alert in alerts()}
    assert "err" not in known.values()


@pytest.fixture
def serving() -> Iterator[Callable[[Callable[[bool], bytes]], str]]:
    """Serve a page of ours on loopback, in the format that is asked for."""
    servers: list[ThreadingHTTPServer] = []

    def serve(page: Callable[[bool], bytes]) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_open = is_open_metrics(self.headers.get("Accept", ""))
                self.send_response(200)
                self.send_header("Content-Type", OPEN_METRICS if is_open else TEXT)
                self.end_headers()
                self.wfile.write(page(is_open))

            def log_message(self, *_: Any) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


HOSTILE = 'a"b\\c\nd\0e{f="g"} # h\u2028\r\ud800'
TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def hostile_reading(at_s: float) -> Reading:
    """Return a reading with a text that a page cannot have wherever a text comes from outside, and a run that has a trace."""
    stats = Stats((b"note",))
    stats.ran(job("note"), DONE, 0.1)
    stats.waited([job("note")], 1_700_000_000_000)
    stats.moved(HOSTILE.encode(errors="replace"), 1, "dead")
    kept = {(b"note", 1, 17): (TRACE_ID, SPAN_ID, 0.1, at_s)}
    trace = TraceReading({"sampled": 1}, {}, exemplars=kept)
    lists: dict[str, Any] = {"broken": {HOSTILE}, "ahead_s": {HOSTILE: float("inf")}, "stored_bytes": {HOSTILE: 2**70}}
    return Reading(HOSTILE, stats, None, 0, 0, 0, 1, True, known=(b"note",), trace=trace, **lists)


@needs_prometheus
def test_promtool_finds_nothing_wrong_with_the_page():
    said = promtool("check", "metrics", text=render(hostile_reading(0.0)))
    assert said == ""


@needs_prometheus
def test_prometheus_keeps_the_trace_of_a_run_whatever_stands_in_labels(serving, tmp_path):
    at_s = time.time()
    with Prometheus(tmp_path, serving(lambda is_open: render(hostile_reading(at_s), is_open=is_open))) as prometheus:
        target = prometheus.await_scrape()
        assert (target["health"], target["lastError"]) == ("up", ""), "it is taken in OpenMetrics"
        [series] = prometheus.ask("query_exemplars", query="runtime_run_seconds_bucket", start=f"{at_s - 60}", end=f"{at_s + 60}")
        [found] = series["exemplars"]
        assert found["labels"] == {"trace_id": TRACE_ID, "span_id": SPAN_ID}
        assert series["seriesLabels"]["le"] == "0.131072"
        [(labels, _)] = prometheus.query("runtime_running")
        assert labels["queue"] == HOSTILE.replace("\0", "�").replace("\r", "�").replace("\ud800", "�")


# --- each alert fires, and only when it should -------------------------------------------------------------------------------


def outcome(name: str, type_name: str = "a") -> str:
    return f'runtime_outcomes_total{{queue="jobs",type="{type_name}",priority="high",outcome="{name}"}}'


# By alert: what fires it, what does not, and after how many minutes it is looked at. Series are as promtool has them.
CASES: dict[str, tuple[dict[str, str], dict[str, str], int]] = {
    "JobsWaitTooLong": (
        {'runtime_oldest_waiting_seconds{queue="jobs",priority="low"}': "301x10"},
        {'runtime_oldest_waiting_seconds{queue="jobs",priority="low"}': "301 301 299 301x7"},
        3,
    ),
    "CriticalJobsWait": (
        {'runtime_oldest_waiting_seconds{queue="jobs",priority="critical"}': "31x10"},
        {'runtime_oldest_waiting_seconds{queue="jobs",priority="critical"}': "30x10",
         'runtime_oldest_waiting_seconds{queue="jobs",priority="low"}': "31x10"},
        2,
    ),
    "JobsFail": (
        {outcome("done"): "0+8x30", outcome("retry"): "0+2x30"},
        {outcome("done"): "0+9.5x30", outcome("dead"): "0+0.5x30",
         outcome("retry", "seldom"): "0+0.1x30", outcome("snooze", "snoozes"): "0+9x30"},
        20,
    ),
    "DeadLettersGrow": (
        {'runtime_dead_letters{queue="jobs"}': "3x9 4x20"},
        {'runtime_dead_letters{queue="jobs"}': "4x9 3x20"},
        15,
    ),
    "NoWorker": (
        {'runtime_ready{queue="jobs",instance="a"}': "0x10", 'runtime_ready{queue="jobs",instance="b"}': "0x10"},
        {'runtime_ready{queue="jobs",instance="a"}': "0x10", 'runtime_ready{queue="jobs",instance="b"}': "1x10"},
        3,
    ),
    "WorkersSilent": (
        {'runtime_workers_silent{queue="jobs"}': "0 1x10"},
        {'runtime_workers_silent{queue="jobs"}': "0 1 0x10"},
        3,
    ),
    "StoreFull": (
        {'runtime_store_full{queue="jobs"}': "0 1 0 0"},
        {'runtime_store_full{queue="jobs"}': "1 0x10"},
        3,
    ),
    "LoopBlocked": (
        {'runtime_loop_lag_max_seconds{queue="jobs",instance="a"}': "0 1.2x10"},
        {'runtime_loop_lag_max_seconds{queue="jobs",instance="a"}': "0.9x10"},
        3,
    ),
    "LeasesLost": (
        {'runtime_lease_losses_total{queue="jobs"}': "0x9 1x20"},
        {'runtime_lease_losses_total{queue="jobs"}': "1x40"},
        15,
    ),
    "JobsIsolated": (
        {'runtime_isolations_total{queue="jobs"}': "0x9 1x20"},
        {'runtime_isolations_total{queue="jobs"}': "1x40"},
        15,
    ),
    "TracesLost": (
        {'runtime_spans_dropped_total{instance="a",reason="collector"}': "0+1x30"},
        {'runtime_spans_dropped_total{instance="a",reason="budget"}': "0+9x30",
         'runtime_spans_dropped_total{instance="a",reason="full"}': "0x9 1x30",
         'runtime_export_failures_total{instance="a"}': "0x9 3x30"},
        17,
    ),
    "StoreErrors": (
        {'runtime_store_errors_total{queue="jobs",instance="a"}': "0+12x20"},
        {'runtime_store_errors_total{queue="jobs",instance="a"}': "0 12x20"},
        8,
    ),
}  # fmt: skip
ALSO_FIRES = {
    "no worker at all": ("NoWorker", {"up": "1x10"}, 3),
    "a collector that refuses": ("TracesLost", {'runtime_export_failures_total{instance="a"}': "0+4x30"}, 14),
}


def check_rules(tmp_path: Path, cases: list[tuple[str, dict[str, str], int, bool]]) -> None:
    """Have promtool look which alerts fire at a time, given series with a sample each minute."""
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                    "eval_time": f"{minutes}m",
                    "exp_samples": [{"labels": "{}", "value": 1}] if is_firing else [],
                }
            ],
        }
        for alert, series, minutes, is_firing in cases
    ]
    whole = {"rule_files": [str(ALERTS)], "evaluation_interval": "15s", "tests": tests}
    (tmp_path / "tests.yml").write_text(json.dumps(whole))  # JSON is YAML
    promtool("test", "rules", str(tmp_path / "tests.yml"))


def test_each_alert_has_its_case():
    assert list(CASES) == [alert.name for alert in alerts()]


@needs_prometheus
@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_when_it_should_and_only_then(alert: str, tmp_path: Path):
    firing, quiet, minutes = CASES[alert]
    check_rules(tmp_path, [(alert, firing, minutes, True), (alert, quiet, minutes, False)])


@needs_prometheus
def test_alerts_that_have_a_second_cause_fire_of_that_too(tmp_path: Path):
    check_rules(tmp_path, [(alert, series, minutes, True) for alert, series, minutes in ALSO_FIRES.values()])


@needs_prometheus
def test_prometheus_takes_the_configuration():
    promtool("check", "config", str(CONFIG))


def test_series_of_the_cases_are_ours():
    declared = {family.name for family in families()} | {"up"}
    for firing, quiet, _ in CASES.values():
        assert {name.partition("{")[0] for name in (*firing, *quiet)} <= declared
