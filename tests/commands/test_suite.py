"""The suite's own rules: who left something open is told, and a test that had to run twice is not hidden."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
FLAKY = """
import pathlib, pytest

@pytest.mark.parametrize("name", {names})
def test_fails_the_first_time(name, request):
    seen = pathlib.Path(__file__).with_name(name)
    if not seen.exists():
        seen.touch()
        raise AssertionError(f"{{name}} was not there")
"""


def suite(folder: Path, test: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a test file by the rules of this suite."""
    (folder / "test_it.py").write_text(test)
    rules = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), "-p", "tests.conftest")
    command = [sys.executable, "-m", "pytest", *rules, *options, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


PARALLEL = pytest.mark.parametrize("processes", ["0", "1"], ids=["one after the other", "side by side"])


def test_what_a_test_leaves_open_is_held_against_it_and_not_against_the_next(tmp_path: Path) -> None:
    done = suite(tmp_path, LEAK)
    assert done.returncode == 1
    assert re.search(r"^ERROR \S*test_it.py::test_leaves_a_socket_open", done.stdout, re.MULTILINE), done.stdout
    assert "unclosed <socket" in done.stdout
    assert "2 passed, 1 error" in done.stdout


@PARALLEL
def test_a_rerun_is_allowed_where_it_is_asked_for_and_named_in_the_last_lines(tmp_path: Path, processes: str) -> None:
    done = suite(tmp_path, FLAKY.format(names=["once"]), "--reruns", "1", "-n", processes)
    assert done.returncode == 0, done.stdout
    assert "! RUN AGAIN: test_it.py::test_fails_the_first_time[once] !" in done.stdout
    *_, name, error, _, verdict = done.stdout.splitlines()
    assert name == "RUN AGAIN: test_it.py::test_fails_the_first_time[once]:"
    assert error.split() == ["E", "AssertionError:", "once", "was", "not", "there"]
    assert verdict == "1 had to be run again, at most 5 may: mend them"


@PARALLEL
def test_more_than_a_few_reruns_fail_the_run(tmp_path: Path, processes: str) -> None:
    done = suite(tmp_path, FLAKY.format(names=list("abcde")), "--reruns", "1", "-n", processes)
    assert done.returncode == 0, done.stdout
    for name in "abcde":
        (tmp_path / name).unlink()
    done = suite(tmp_path, FLAKY.format(names=list("abcdef")), "--reruns", "1", "-n", processes)
    assert done.returncode == 1, done.stdout
    assert done.stdout.splitlines()[-1] == "6 had to be run again, at most 5 may: FAILED"


def test_a_failed_test_is_not_run_again_unasked(tmp_path: Path) -> None:
    assert suite(tmp_path, FLAKY.format(names=["once"])).returncode == 1


def test_ci_asks_for_one_rerun() -> None:
    assert "make test ARGS=--reruns=1" in (ROOT / ".ci" / "run").read_text().splitlines()
