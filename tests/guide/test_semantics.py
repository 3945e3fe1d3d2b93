"""The page of promises is true: each has its test, and the example does what it says."""

from __future__ import annotations

import ast
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.harness import ROOT, leftovers
from tests.servers import Server, wait_until

PAGE = (ROOT / "docs" / "semantics.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[a-z_/]+\.py)(?:::(\w+))?`", PAGE)))
DIES = """
        import os, pathlib
        if not pathlib.Path("died").exists():
            pathlib.Path("died").touch()
            BOOKS.commit()
            os.kill(os.getpid(), 9)
        pathlib.Path("again").touch()
"""


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_the_test_that_a_promise_names_exists(path: str, name: str):
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    tests = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert not name or name in tests


def test_every_promise_names_a_test():
    promises = PAGE.split("## Promised")[1].split("## Not promised")[0]
    rows = [line for line in promises.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 10
    assert all(re.search(r"\| `tests/[^|]+\|$", row) for row in rows), rows


def example() -> str:
    [code] = re.findall(r"```python\n# charges\.py\n(.*?)```", PAGE, re.DOTALL)
    return code


def run_worker(server: Server, folder: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        "-m",
        "runtime",
        "--redis",
        server.url,
        "--handlers",
        "charges",
        "--board",
        "off",
        "--lease",
        "0.5",
    ]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, cwd=folder, env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}"}, stdout=log, stderr=log)


def test_the_example_books_once_when_its_worker_is_killed_after_the_effect(valkey: Server, tmp_path: Path):
    (tmp_path / "charges.py").write_text(example() + DIES)
    raw = valkey.client()
    raw.xadd("{jobs}:medium", {"type": "charge", "data": '{"customer":"ada","cents":700}'})
    first = run_worker(valkey, tmp_path)
    assert first.wait(60) == -9, (tmp_path / "log").read_text()
    second = run_worker(valkey, tmp_path)
    try:
        wait_until((tmp_path / "again").exists, what="the job runs again")
        wait_until(lambda: not leftovers(raw), what="it is done")
    finally:
        second.kill()
        second.wait()
        raw.close()
    with closing(sqlite3.connect(tmp_path / "books.db")) as books:
        assert books.execute("SELECT customer, cents FROM charges").fetchall() == [("ada", 700)]
