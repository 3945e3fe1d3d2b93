"""What a real worker writes to its log, line by line, as JSON and for people."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.harness import ROOT
from tests.servers import wait_until

SHOP = """
import asyncio
import logging
import subprocess
import msgspec
from runtime import Backoff, Dead, Job, contract, handler

log = logging.getLogger("shop")

async def say(text):
    log.warning(text)

def declare(name, function, runs):
    payload = contract(name)(type("Payload", (msgspec.Struct,), {"__module__": __name__}))
    function.__annotations__ = {"message": payload, "job": Job}
    globals()[function.__name__] = handler(payload, runs=runs, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))(function)

async def on_loop(message, job):
    log.warning("plain code")
    await asyncio.gather(say("a task"), say("a task"))
    await asyncio.to_thread(log.warning, "a thread")
    if job.attempt == 2:
        raise Dead("no such account\\n12:00:00 info     a record of its own")
    raise ValueError("try again")

def in_thread(message, job):
    log.warning("in a thread of its own")

def in_child(message, job):
    log.warning("in a child")
    subprocess.run(["sh", "-c", "echo from a command >&2"], check=True)

declare("on-loop", on_loop, "loop")
declare("in-thread", in_thread, "thread")
declare("in-child", in_child, "process")
"""
TYPES = ("on-loop", "in-thread", "in-child")


def lines_of(valkey: Any, folder: Path, kind: str) -> list[str]:
    """Run one job of each type to its end, with this format of the log, and return its lines."""
    (folder / "shop_jobs.py").write_text(SHOP)
    raw = valkey.client()
    log = folder / "log"
    command = [sys.executable, "-m", "runtime", "--redis", valkey.url, "--handlers", "shop_jobs", "--board", "off", "--log", kind]
    with log.open("wb") as out:
        worker = subprocess.Popen([*command, "--lease", "30"], cwd=folder, stderr=out, env={"PYTHONPATH": f"{ROOT}:{folder}"})
    try:
        for name in TYPES:
            raw.xadd("{jobs}:high", {"type": name, "data": "{}", "id": f"my-{name}"})
        wait_until(lambda: raw.xlen("{jobs}:dead") == 1 and "from a command" in log.read_text(), what="all have run")
        wait_until(lambda: "is dead after attempt 2" in log.read_text(), what="the death is logged")
        wait_until(lambda: "in a thread of its own" in log.read_text(), what="the thread has run")
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0
        raw.close()
    return log.read_text().splitlines()


def test_each_line_of_a_job_is_json_with_its_fields(valkey, tmp_path):
    lines = [json.loads(line) for line in lines_of(valkey, tmp_path, "json") if line.startswith("{")]
    told = Counter((line["message"], line.get("job_id"), line.get("job_attempt")) for line in lines if line["logger"] == "shop")
    assert told == {
        **{(text, "my-on-loop", attempt): 1 for text in ("plain code", "a thread") for attempt in (1, 2)},
        **{("a task", "my-on-loop", attempt): 2 for attempt in (1, 2)},
        ("in a thread of its own", "my-in-thread", 1): 1,
        ("in a child", "my-in-child", 1): 1,
    }
    [retried] = [line for line in lines if "failed attempt 1" in line["message"]]
    [died] = [line for line in lines if "is dead after attempt 2" in line["message"]]
    for line, attempt in ((retried, 1), (died, 2)):
        assert (line["job_id"], line["job_type"], line["job_attempt"]) == ("my-on-loop", "on-loop", attempt)
    assert "stack" not in retried
    assert re.search(r'shop_jobs\.py", line \d+, in on_loop', died["stack"])
    assert not [line for line in lines if line["message"].startswith(("worker ", "stopping")) and "job_id" in line]


def test_each_line_for_people_ends_with_the_job_and_no_message_can_fake_a_record(valkey, tmp_path):
    lines = lines_of(valkey, tmp_path, "plain")
    for text, fields in (
        ("plain code", "on-loop my-on-loop attempt 1"),
        ("a task", "on-loop my-on-loop attempt 2"),
        ("a thread", "on-loop my-on-loop attempt 2"),
        ("in a thread of its own", "in-thread my-in-thread attempt 1"),
        ("in a child", "in-child my-in-child attempt 1"),
    ):
        assert any(re.fullmatch(rf"\d\d:\d\d:\d\d warning  {text}  \[{fields}\]", line) for line in lines), text
    assert [line for line in lines if line.startswith("    12:00:00 info     a record of its own")]
    assert not any(line.startswith("12:00:00 info     a record") for line in lines)
    assert any(re.fullmatch(r'      File ".*shop_jobs\.py", line \d+, in on_loop', line) for line in lines)
