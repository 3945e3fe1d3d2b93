"""The page about handlers: what it shows of many at once runs, in a test and by a worker."""

from __future__ import annotations

import importlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import ROOT
from tests.guide.test_testing import pytest_in
from tests.servers import Server
from tests.workers import until, working

PAGE = (ROOT / "docs" / "handlers.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A folder with the modules of the page about many at once."""
    for name in ("rows", "test_rows"):
        (tmp_path / f"{name}.py").write_text(BLOCKS[name])
    return tmp_path


def test_the_test_of_a_batch_passes(page: Path):
    path = os.pathsep.join((str(ROOT), str(page)))
    assert "1 passed" in pytest_in(page, "-o", "asyncio_mode=auto", PYTHONPATH=path)


async def test_rows_are_inserted_together_and_each_has_its_own_outcome(valkey: Server, page: Path, monkeypatch: Any):
    monkeypatch.setattr(sys, "path", [str(page), *sys.path])
    monkeypatch.delitem(sys.modules, "rows", raising=False)
    importlib.invalidate_caches()
    rows = importlib.import_module("rows")
    raw: Any = valkey.client()
    for n, text in ((1, "one"), (2, ""), (1, "another"), (3, "three")):
        raw.xadd("{jobs}:medium", {"type": "insert-row", "data": f'{{"id":{n},"text":"{text}"}}'})
    async with working(valkey.url, rows.insert):
        await until(lambda: raw.zcard("{jobs}:due") == 1 and not raw.xlen("{jobs}:medium"), "each has its outcome")
    assert rows.TABLE == {1: "one", 3: "three"}
    assert [fields["dead_reason"] for _, fields in raw.xrange("{jobs}:dead")] == ["empty"]
    raw.close()
