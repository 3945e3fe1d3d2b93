"""The page about control over many jobs: its example does what the page says of it, and its words are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime.operations import CANARY_S, HOLD_S, MAX_RATE, MAX_WAIT_S, RATE, STATES
from tests.faults.harness import ROOT
from tests.servers import Server

PAGE = (ROOT / "docs" / "control.md").read_text("utf-8")
DEAD = "{jobs}:dead"


def test_letters_are_counted_and_what_is_held_is_undone_as_the_page_shows(valkey: Server, tmp_path: Path):
    [code] = re.findall(r"```python\n# many\.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "many.py").write_text(code.replace("redis://127.0.0.1:6379", valkey.url))
    raw: Any = valkey.client()
    for error in ("no such host: mail.example.com", "refused"):
        letter = {"type": "send-email", "data": "{}", "dead_reason": "attempts", "dead_error": error, "dead_from": "high/1-1"}
        raw.xadd(DEAD, letter)
    command = [sys.executable, str(tmp_path / "many.py")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said == "1\nheld\n"
    assert raw.xlen(DEAD) == 2
    raw.close()


def test_the_figures_and_states_of_the_page_are_those_of_the_code():
    assert (HOLD_S, CANARY_S, RATE, MAX_RATE, MAX_WAIT_S) == (10, 10, 1000, 20_000, 900)
    assert re.findall(r"^\| `(\w+)` \|", PAGE.partition("| state |")[2], re.MULTILINE)[: len(STATES)] == list(STATES)
