"""The suite's own rules: who left something open is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEAK = """
import socket

def test_leaves_a_socket_open():
    class Loop: ...
    loop = Loop()
    loop.itself, loop.socket = loop, socket.socket()

def test_of_somebody_else():
    import gc
    gc.collect()
"""


def suite(folder: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a test file by the rules of this suite."""
    (folder / "test_it.py").write_text(test)
    rules = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "tests.conftest")
    command = [sys.executable, "-m", "pytest", *rules, *options, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_what_a_test_leaves_open_is_held_against_it_and_not_against_the_next(tmp_path: Path) -> None:
    done = suite(tmp_path, LEAK)
    assert done.returncode == 1
    assert re.search(r"^ERROR \S*test_it.py::test_leaves_a_socket_open", done.stdout, re.MULTILINE), done.stdout
    assert "unclosed <socket" in done.stdout
    assert "2 passed, 1 error" in done.stdout
