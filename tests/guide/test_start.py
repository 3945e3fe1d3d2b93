"""The first fifteen minutes are as the page tells them: its commands are run in one shell, and print what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.harness import ROOT
from tests.guide.console import shell, steps_of
from tests.servers import free_ports

PAGE = (ROOT / "docs" / "start.md").read_text("utf-8")
REFUSED = 2  # the status of a payload that does not fit


@pytest.fixture
def kitchen(tmp_path: Path) -> Path:
    for name, code in re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / f"{name}.py").write_text(code, "utf-8")
    return tmp_path


def test_the_worker_is_killed_and_the_job_recovers_as_the_page_tells(kitchen: Path):
    board = {"RUNTIME_BOARD": f"127.0.0.1:{free_ports()}"}
    with shell(kitchen, board) as opened:
        try:
            for step in steps_of(PAGE):
                printed, status = opened.run(step.command)
                assert not step.missing_in(printed), (step.command, step.missing_in(printed), printed)
                assert status in (0, REFUSED), (step.command, status, printed)
        finally:
            print(*[path.read_text("utf-8") for path in kitchen.glob("worker.log")])  # shown where the test fails


def test_the_test_of_the_page_passes(kitchen: Path):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto", "test_kitchen.py"]
    ran = subprocess.run(
        command, cwd=kitchen, env={"PYTHONPATH": f"{ROOT}:{kitchen}"}, capture_output=True, text=True, timeout=60
    )
    assert "1 passed" in ran.stdout, ran
