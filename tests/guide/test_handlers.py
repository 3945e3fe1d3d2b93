"""The page about handlers: what it shows of many at once runs, in a test and by a worker."""

from __future__ import annotations

import hmac
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest

from runtime.testing import Answered, Notes, Progress, run
from tests.builders import job
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


async def test_a_stamp_is_made_in_a_child_and_signed_in_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("STAMP_KEY", "secret")
    (tmp_path / "stamps.py").write_text(BLOCKS["stamps"])
    importlib.invalidate_caches()
    stamps: Any = importlib.import_module("stamps")
    notes = Notes()
    outcome = cast("object", await run(stamps.make_stamp, stamps.MakeStamp(picture="a picture", width=3), notes=notes))
    assert outcome == Answered(hmac.digest(b"secret", b"a p", "sha256").hex())
    assert notes.progress == Progress(1, 1, "shrunk")


# --- results -----------------------------------------------------------------------------------------------------------------


class HTTPException(Exception):
    """As FastAPI's: a status, and why."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class App:
    """As much of FastAPI as the page uses."""

    def __init__(self, lifespan: Any) -> None:
        self.lifespan = lifespan

    def post(self, path: str) -> Callable[[Any], Any]:
        def keep(function: Any) -> Any:
            return function

        return keep


async def test_a_web_service_answers_with_what_a_job_has_answered(
    valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("totals", "totals_web"):
        (tmp_path / f"{name}.py").write_text(BLOCKS[name])
        monkeypatch.delitem(sys.modules, name, raising=False)
    web = ModuleType("fastapi")
    vars(web).update(FastAPI=App, HTTPException=HTTPException)
    monkeypatch.setitem(sys.modules, "fastapi", web)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("REDIS_URL", valkey.url)
    importlib.invalidate_caches()
    totals, service = importlib.import_module("totals"), importlib.import_module("totals_web")
    async with service.app.lifespan(service.app), working(valkey.url, totals.add_up):
        assert await service.total([1, 2, 3]) == {"cents": 6}
        with pytest.raises(HTTPException, match="empty: nothing to add up") as told:
            await service.total([])
        assert told.value.status == 422


def test_a_shell_prints_what_a_job_has_answered(valkey: Server, tmp_path: Path):
    (tmp_path / "totals.py").write_text(BLOCKS["totals"])
    options = ("--handlers", "totals", "--redis", valkey.url)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "runtime", "enqueue", "add-up", *arguments, *options]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=False)

    late = call('{"cents": [1]}', "--wait", "0.1")
    assert (late.returncode, late.stdout) == (1, "")
    assert "in 0.1 s: it waits on medium" in late.stderr
    command = [sys.executable, "-m", "runtime", "run", *options, "--board", "off"]
    worker = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        done = call('{"cents": [1, 2]}', "--wait")
        assert (done.returncode, done.stdout) == (0, '{"cents":3}\n')
        [job_id] = re.findall(r"^job (\S+): waiting for its result, up to 30 s\n", done.stderr)
        command = [sys.executable, "-m", "runtime", "jobs", "show", job_id, "--redis", valkey.url]
        shown = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=False)
        assert re.search(r'\n  done \S+, \S+ s ago, result: {"cents":3}\n', shown.stdout), shown.stdout
        dead = call('{"cents": []}', "--wait", "30")
        assert (dead.returncode, dead.stdout) == (1, "")
        assert "is dead: empty: nothing to add up" in dead.stderr
    finally:
        worker.terminate()
        worker.wait()


def test_the_test_of_what_is_handed_on_passes(tmp_path: Path):
    for name in ("pages", "test_pages"):
        (tmp_path / f"{name}.py").write_text(BLOCKS[name])
    path = os.pathsep.join((str(ROOT), str(tmp_path)))
    assert "1 passed" in pytest_in(tmp_path, "-o", "asyncio_mode=auto", PYTHONPATH=path)


async def test_each_page_of_a_site_is_crawled_once(valkey: Server, tmp_path: Path, monkeypatch: Any, capsys: Any):
    (tmp_path / "pages.py").write_text(BLOCKS["pages"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "pages", raising=False)
    importlib.invalidate_caches()
    pages = importlib.import_module("pages")
    raw: Any = valkey.client()
    raw.xadd("{jobs}:medium", {"type": "crawl-site", "data": '{"site":"https://example.com","pages":7}'})
    said = ""
    async with working(valkey.url, pages.crawl_site, pages.crawl_page):
        await until(
            lambda: raw.xinfo_stream("{jobs}:medium")["entries-added"] == 8 and not raw.xlen("{jobs}:medium"), "all are done"
        )
        said = capsys.readouterr().out
    crawled = [line.split()[1].rstrip(",") for line in said.splitlines() if line.startswith("crawls")]
    assert sorted(crawled) == [f"https://example.com/{n}" for n in range(7)]
    raw.close()


# --- secrets -----------------------------------------------------------------------------------------------------------------


async def test_what_is_secret_is_known_where_the_code_is_not(valkey: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cards.py").write_text(BLOCKS["cards"])
    monkeypatch.delitem(sys.modules, "cards", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    cards = importlib.import_module("cards")
    raw: Any = valkey.client()
    async with working(valkey.url, cards.charge):
        await until(lambda: raw.hlen("{jobs}:contracts"), "its contract is written")
    schema = json.loads(raw.hget("{jobs}:contracts", "charge-card@1"))["schema"]["$defs"]["ChargeCard"]["properties"]
    assert [name for name, told in schema.items() if told.get("writeOnly")] == ["token", "pin"]
    assert cards.charge.decode(job("charge-card", data=b'{"order":1,"token":"t"}')).token == "t"
    raw.close()
