"""The page for producers: its handler that sends does what the page says, with one connection for all jobs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.harness import ROOT, leftovers
from tests.servers import Server, wait_until

PAGE = (ROOT / "docs" / "produce.md").read_text("utf-8")
BESIDE = """

import asyncio


@contract("in-a-thread")
class InAThread(msgspec.Struct):
    order: int


@handler(InAThread)
def in_a_thread(message: InAThread, job: Job) -> None:
    asyncio.run(producer.send(SendInvoice(order=message.order)))
"""


def test_handlers_share_the_producer_of_their_module(valkey: Server, tmp_path: Path):
    [code] = re.findall(r"```python\n# orders\.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "orders.py").write_text(code + BESIDE)
    raw: Any = valkey.client()  # redis-py leaves keyword arguments without a type
    for order in range(200):
        raw.xadd("{jobs}:medium", {"type": "order-placed", "data": f'{{"order":{order}}}'})
    for order in range(200, 205):
        raw.xadd("{jobs}:medium", {"type": "in-a-thread", "data": f'{{"order":{order}}}'})
    command = [sys.executable, "-u", "-m", "runtime", "--redis", valkey.url, "--handlers", "orders", "--board", "off"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "REDIS_URL": valkey.url}
    log = tmp_path / "log"
    with log.open("wb") as out:
        worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
    try:
        wait_until(lambda: log.read_text().count("invoice for order") == 205, 60, "all invoices are sent")
        wait_until(lambda: not leftovers(raw), what="all are settled")
        wait_until(lambda: [one["name"] for one in raw.client_list()].count("producer") == 1, what="one connection is left")
        assert not raw.keys("{jobs}:seen:k:*"), "no key outlives its job"
    finally:
        worker.terminate()
        assert worker.wait(30) == 0, log.read_text()
        raw.close()
    assert "Traceback" not in log.read_text()


def test_of_changes_in_a_row_the_last_is_worked_on_whoever_sends_them(valkey: Server, tmp_path: Path):
    [code] = re.findall(r"```python\n# search\.py\n(.*?)```", PAGE, re.DOTALL)
    [shell] = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "key page-7" in block]
    more = "import asyncio, sys\n\n\nasync def main():\n    producer = Producer(sys.argv[1])\n    async with producer:\n"
    calls = "".join(f'        await changed(producer, 8, "{text}")\n' for text in ("a", "b", "c"))
    (tmp_path / "search.py").write_text(code)
    (tmp_path / "edit.py").write_text(f"{more}{calls}\n\nfrom search import *\nasyncio.run(main())\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    subprocess.run([sys.executable, "edit.py", valkey.url], cwd=tmp_path, env=environment, check=True)
    (tmp_path / "redis-cli").write_text(f'#!/bin/sh\nexec redis-cli -s {valkey.socket} "$@"\n')
    (tmp_path / "redis-cli").chmod(0o755)
    command = [sys.executable, "-u", "-m", "runtime", "--redis", valkey.url, "--handlers", "search", "--board", "off"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        worker = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=out, stderr=out)
    raw: Any = valkey.client()
    try:
        wait_until(
            lambda: "worker " in log.read_text(), what="it has started: what it met later than asked for would be due at once"
        )
        words = shell.replace("redis-cli", "./redis-cli").replace(
            "+ 2000", "+ 5000"
        )  # as long as two calls take on a busy machine
        subprocess.run(["sh", "-ec", words], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        wait_until(lambda: log.read_text().count("page ") == 2, 60, "both pages are indexed")
        wait_until(lambda: not leftovers(raw), what="all are settled")
    finally:
        worker.terminate()
        assert worker.wait(30) == 0, log.read_text()
        raw.close()
    said = [line for line in log.read_text().splitlines() if line.startswith("page ")]
    assert sorted(said) == ["page 7 is now 'final'", "page 8 is now 'c'"]
