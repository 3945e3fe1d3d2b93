"""The page about control: each of its examples does what the page says of it."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.commands.calls import call
from tests.faults.harness import ROOT
from tests.servers import Server
from tests.workers import until, working

PAGE = (ROOT / "docs" / "control.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the modules of the page, from which they can be imported for the length of the test."""
    for name, code in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return tmp_path


def shop(server: Server) -> Any:
    """Return a client of a queue in which two orders wait, one of them for its time."""
    raw: Any = server.client()
    raw.xadd("{jobs}:medium", {"type": "order", "data": "{}", "id": "order-7"})
    later = msgspec.msgpack.encode(["stream", "medium", "type", "order", "data", "{}", "id", "order-8", "first_at", "5"])
    raw.hset("{jobs}:msg", "order-8", later)
    raw.zadd("{jobs}:due", {"order-8": 10**13})
    return raw


def run(words: str, server: Server) -> tuple[int, str]:
    [*_, command] = words.split("python -m runtime ", 1)
    result = call(*shlex.split(command), "--redis", server.url)
    return result.returncode, result.stdout


def test_the_commands_of_the_page_cancel_hasten_and_move(valkey: Server, page: Path):
    raw = shop(valkey)
    raw.xadd("{jobs}:high", {"type": "order", "data": "{}"}, id="1732400000000-0")
    ours = [command for command in COMMANDS if re.search(" jobs (cancel|now|priority) [a-z]", command)]
    told = {command.partition("jobs ")[2].partition(" --")[0]: run(command, valkey) for command in ours}
    assert told["cancel order-7"] == (0, "order-7 (order) is a dead letter now (cancelled)\n")
    assert told["cancel high/1732400000000-0"] == (0, "high-1732400000000-0 (order) is a dead letter now (cancelled)\n")
    assert told["now order-8"] == (0, "order-8 (order) is due now\n")
    assert told["priority order-8 high"] == (0, "order-8 (order) waits with that priority now\n")
    assert [fields["dead_reason"] for _, fields in raw.xrange("{jobs}:dead")] == ["cancelled"] * 2
    assert raw.xrevrange("{jobs}:audit")[-1][1]["reason"] == "ordered twice"
    raw.close()


def test_python_steers_as_the_page_shows(valkey: Server, page: Path):
    raw = shop(valkey)
    path = page / "steering.py"
    path.write_text(path.read_text().replace("redis://127.0.0.1:6379", valkey.url))
    told = subprocess.run(
        [sys.executable, str(path)], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout == "order-7 cancelled\norder-8 moved\norder-8 moved\n"
    raw.close()


async def test_a_handler_in_a_thread_ends_when_it_sees_that_it_is_cancelled(valkey: Server, page: Path):
    module = importlib.import_module("thread_job")
    raw: Any = valkey.client()
    async with working(valkey.url, module.count_pages) as worker:
        raw.xadd("{jobs}:medium", {"type": "count-pages", "data": '{"pages":6000}', "id": "j"})
        await until(lambda: worker.running == 1 and worker.places["thread"].taken == 1, "it runs")
        status, told = run("python -m runtime jobs cancel j", valkey)
        assert (status, f"worker {worker.name} has it" in told) == (0, True)
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is dead")
        await until(lambda: worker.places["thread"].taken == 0, "and its thread is free")
    raw.close()
