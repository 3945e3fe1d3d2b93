"""The benchmark suite measures what it says, and tells when a job is missing. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import raw
from bench.lab import ROOT, STREAM, BenchError, Server, Worker
from bench.noop import Noop
from bench.report import Result, text
from bench.rows import ROWS, Line, Row, Target, bound_by
from tests.servers import binary_of


@pytest.fixture(autouse=True)
def _valkey(monkeypatch: pytest.MonkeyPatch) -> None:
    binary = binary_of("valkey")
    assert binary
    monkeypatch.setenv("RUNTIME_REDIS_SERVER", binary)


def bench(*options: str, results: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", "--runs", "1", "--jobs", "20000", "--results", str(results), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


def test_a_row_gives_rates_cpu_and_the_raw_figure_as_text_and_json(tmp_path):
    result = bench("--rows", "drain,memory", results=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (tmp_path / "latest.txt").read_text("utf-8")
    told = json.loads((tmp_path / "latest.json").read_text("utf-8"))
    assert told["jobs"] == 20_000
    assert {"commit", "cpu", "load", "date", "server", "python"} <= set(told)
    drain = told["rows"]["drain"]["runs"]
    assert min(drain[name][0] for name in ("jobs_per_s", "worker_us", "server_us", "start_s")) >= 0
    assert drain["jobs_per_s"][0] > 0
    assert told["rows"]["drain"]["targets"]["jobs_per_s"]["target"] == ">= 150,000"
    assert 80 < told["rows"]["memory"]["medians"]["bytes_per_job"] < 300
    no_raw = raw.missing()
    if no_raw:
        assert no_raw in result.stdout  # the table says why it has none
        pytest.skip(no_raw)
    assert drain["of_raw"][0] == pytest.approx(drain["jobs_per_s"][0] / drain["raw_per_s"][0])


def test_rows_with_other_handlers_and_clocks_count_their_jobs_too(tmp_path):
    names = ["few", "retry", "latency", "send"]
    result = bench("--rows", ",".join(names), "--json", results=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert sorted(rows) == sorted(names)
    assert 0 < rows["latency"]["medians"]["p50_ms"] <= rows["latency"]["medians"]["p99_ms"]
    assert rows["retry"]["medians"]["attempts_per_s"] == pytest.approx(2 * rows["retry"]["medians"]["jobs_per_s"])


def test_each_step_of_a_worker_has_its_cost():
    command = [sys.executable, "-m", "bench.steps", "--batches", "3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    costs = {name: float(cost) for cost, name in (line.split(None, 1) for line in result.stdout.splitlines()[1:])}
    steps = list(costs)[: list(costs).index("in all")]
    assert len(steps) > 5
    assert costs["in all"] == pytest.approx(sum(costs[step] for step in steps), abs=0.1)


def test_the_list_shows_every_row_and_an_unknown_row_is_refused(tmp_path):
    listed = bench("--list", results=tmp_path).stdout
    assert [line.split()[0] for line in listed.splitlines()] == [row.name for row in ROWS]
    refused = bench("--rows", "drian", results=tmp_path)
    assert refused.returncode == 2
    assert "drian" in refused.stderr


def test_a_worker_that_ran_other_jobs_than_expected_is_no_measurement():
    with Server() as server:
        server.fill(50)
        with Worker(server) as worker:
            worker.wait_for(lambda: server.left() == 0, "the last job")
            with pytest.raises(BenchError, match="50 runs instead of 51"):
                worker.stop(51)
        server.check_empty()
        server.fill(1)
        with pytest.raises(BenchError, match="1 jobs wait"):
            server.check_empty()


def test_what_fills_the_stream_are_the_jobs_of_the_benchmark():
    with Server() as server:
        server.fill(2_001)
        entries = server.client.xrange(STREAM)
        assert len(entries) == 2_001
        assert {tuple(fields) for _, fields in entries} == {(b"type", b"data")}
        assert len(entries[0][1][b"data"]) == 100
        assert b'"to":"ada@example.com"' in entries[0][1][b"data"]
        assert set(Noop.__struct_fields__) == {"to", "subject", "text"}


def test_the_table_judges_the_median_and_shows_the_spread():
    row = Row("made-up", "a row", lambda run: {}, (Line("things/s", "things_per_s", raw="raw", target=Target(at_least=20)),))
    result = Result(row)
    for value in (30.0, 10.0, 20.0):
        result.add({"things_per_s": value, "raw": 40.0})
    head = {"commit": "c", "date": "d", "cpu": "p", "cpus": 2, "load": [0.0], "server": "s", "python": "3"}
    table = text({**head, "packages": {}, "jobs": 1, "runs": 3}, [result, Result(row, why_not="not yet")], [])
    assert table.splitlines()[-3].split() == ["things/s", "20", "[10,", "30]", "40", "[40,", "40]", ">=", "20", "yes"]
    assert table.splitlines()[-1] == "  not yet"
    assert "server's one core" in bound_by(2)({"worker_cores": 0.5, "server_cores": 0.95})
    assert "the workers" in bound_by(1)({"worker_cores": 0.95, "server_cores": 0.3})
    assert not Target(below=20).is_met(20)
    assert not Target(at_most=1.5).is_met(1.6)
