"""The page about handlers: what it shows of progress and marks does what the page says of it."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime import Retry
from runtime.testing import Done, Notes, run
from tests.faults.harness import ROOT
from tests.servers import Server
from tests.workers import until, working

PAGE = (ROOT / "docs" / "handlers.md").read_text("utf-8")


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    [code] = re.findall(r"```python\n# imports\.py\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "imports.py").write_text(code)
    monkeypatch.delitem(sys.modules, "imports", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return importlib.import_module("imports")


async def test_an_import_says_how_far_it_is_and_its_next_attempt_goes_on_there(imports: Any) -> None:
    rows, notes = [f"{n}" for n in range(250)], Notes()
    rows[230] = ""
    assert isinstance(await run(imports.import_rows, imports.ImportRows(rows=rows), notes=notes), Retry)
    assert (notes.marks, notes.lines) == (b"200", ["attempt 1 begins at row 0"])
    assert notes.progress is not None
    assert (notes.progress.done, notes.progress.total, notes.progress.text) == (230, 250, "row 229")
    rows[230] = "230"
    assert await run(imports.import_rows, imports.ImportRows(rows=rows), attempt=2, notes=notes) == Done()
    assert notes.lines == ["attempt 2 begins at row 200"]


async def test_in_a_worker_its_lines_are_kept(valkey: Server, imports: Any) -> None:
    raw: Any = valkey.client()
    raw.xadd("{jobs}:medium", {"type": "import-rows", "data": '{"rows":["a","b"]}', "id": "j"})
    async with working(valkey.url, imports.import_rows):
        await until(lambda: raw.xlen("{jobs}:logs"), "its lines are kept")
    [(_, told)] = raw.xrange("{jobs}:logs")
    assert (told["id"], told["outcome"], told["text"]) == ("j", "done", "attempt 1 begins at row 0")
