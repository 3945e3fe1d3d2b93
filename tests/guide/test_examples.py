"""The examples: each starts for real beside a worker, and sees a job done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.producers import installed_example
from tests.faults.harness import ROOT
from tests.servers import Server, free_ports, wait_until

EXAMPLES = ROOT / "examples"
WEB = {"fastapi_shop": ("-m", "uvicorn", "app:app", "--port"), "flask_shop": ("-m", "flask", "run", "--port")}


@contextmanager
def running(folder: Path, environment: dict[str, str], log: Path, *words: str) -> Generator[None]:
    with log.open("ab") as out:
        process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, stdout=out, stderr=out)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, {}


def answers(url: str) -> bool:
    try:
        ask(url)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("name", WEB)
def test_a_web_service_sends_and_tells_what_became_of_it(name: str, valkey: Server, tmp_path: Path):
    environment = {**installed_example(name), "REDIS_URL": valkey.url}
    port, log = free_ports(), tmp_path / "log"
    address = f"http://127.0.0.1:{port}"
    worker = ("-m", "runtime", "run", "--handlers", "jobs", "--board", "off")
    with running(EXAMPLES / name, environment, log, *worker), running(EXAMPLES / name, environment, log, *WEB[name], str(port)):
        wait_until(lambda: answers(f"{address}/jobs/nosuch"), 60, "the service answers")
        assert ask(f"{address}/orders", {"order": "x", "to": "ada@example.com"})[0] == 422
        status, told = ask(f"{address}/orders", {"order": 7, "to": "ada@example.com"})
        assert (status, set(told)) == (202, {"job"}), log.read_text()
        done = {"done": "receipt for order 7 to ada@example.com"}
        wait_until(lambda: ask(f"{address}/jobs/{told['job']}") == (200, done), 60, "its job is done")
    assert "Traceback" not in log.read_text()


def test_a_script_sends_what_it_reads(valkey: Server, tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": valkey.url}
    folder, lines = EXAMPLES / "script", "7 ada@example.com\n8 bob@example.com\n"
    with running(folder, environment, tmp_path / "log", "-m", "runtime", "run", "--handlers", "jobs", "--board", "off"):
        command = [sys.executable, "send.py"]
        done = subprocess.run(command, cwd=folder, env=environment, input=lines, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("2 sent\nreceipt for order 8 to bob@example.com\n", "")
