"""The page about a second queue: its module, two workers, and commands that know where a type belongs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.harness import ROOT
from tests.servers import Server, wait_until

PAGE = (ROOT / "docs" / "queues.md").read_text("utf-8")
ELSEWHERE = "1 type of queue reports is not run here (queue jobs): make-report"


def test_two_workers_share_a_module_and_each_runs_what_is_its_queues(valkey: Server, tmp_path: Path):
    [code] = re.findall(r"```python\n# shop\.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "shop.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONUNBUFFERED": "1"}
    flags = ("--redis", valkey.url, "--handlers", "shop")

    def start(name: str, *more: str) -> subprocess.Popen[bytes]:
        with (tmp_path / name).open("wb") as out:
            command = [sys.executable, "-m", "runtime", "run", *flags, "--board", "off", *more]
            return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "runtime", *words, *flags]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done
        return done.stdout

    workers = [start("jobs"), start("reports", "--queue", "reports")]
    try:
        assert call("enqueue", "make-report", '{"month":"2026-11"}', "--wait", "60") == '"2026-11.pdf"\n'
        call("enqueue", "send-receipt", '{"order":7}')
        apart = call("enqueue", "make-report", '{"month":"2026-12"}', "--queue", "elsewhere").strip()
        wait_until(lambda: "receipt for order 7" in (tmp_path / "jobs").read_text(), what="it runs in the other queue")
        rows = [json.loads(line) for line in call("types", "--json").splitlines()]
        assert {row["type"]: row["queue"] for row in rows} == {"send-receipt": "", "make-report": "reports"}
        assert json.loads(call("schema"))["jobs"]["make-report"]["queue"] == "reports"
    finally:
        for one in workers:
            one.terminate()
        assert [one.wait(30) for one in workers] == [0, 0]
    logs = {name: (tmp_path / name).read_text() for name in ("jobs", "reports")}
    assert logs["jobs"].count(ELSEWHERE) == 1
    assert ["report of 2026-11" in logs[name] for name in logs] == [False, True]
    assert "not run here" not in logs["reports"]
    raw: Any = valkey.client()
    assert [entry for entry, _ in raw.xrange("{elsewhere}:medium")] == [apart.removeprefix("medium-")]
