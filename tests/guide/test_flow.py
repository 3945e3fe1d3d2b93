"""The page about flow: each of its examples does what the page says of it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime import Job, Priority
from runtime.config import load
from runtime.jobs import Handler
from runtime.registry import find
from runtime.worker.plan import WEIGHTS
from tests.faults.harness import ROOT
from tests.servers import Server
from tests.workers import until, working

PAGE = (ROOT / "docs" / "flow.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the modules of the page, from which they can be imported for the length of the test."""
    for name, code in BLOCKS.items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return tmp_path


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


class Spy:
    """What a handler was called with: how many at once by group, over all workers, and when each was handed out."""

    def __init__(self) -> None:
        self.running = Counter[str]()
        self.peaks = Counter[str]()
        self.jobs: list[Job] = []

    def on(self, handler: Handler[Any]) -> Handler[Any]:
        """Return the same handler, watched."""

        async def run(message: Any, job: Job) -> object:
            self.jobs.append(job)
            names = {"", job.envelope.group.decode()}
            for name in names:
                self.running[name] += 1
                self.peaks[name] = max(self.peaks[name], self.running[name])
            try:
                return await handler.run(message, job)
            finally:
                self.running.subtract(names)

        return replace(handler, run=run)


@pytest.fixture
def spy() -> Spy:
    return Spy()


async def test_no_more_than_five_newsletters_are_sent_at_once_by_two_workers(valkey: Server, page: Path, spy: Spy):
    newsletters = module("newsletters")
    raw: Any = valkey.client()
    watched = spy.on(newsletters.send_newsletter)
    async with working(valkey.url, watched, concurrency=20), working(valkey.url, watched, concurrency=20):
        for at in range(30):
            raw.xadd("{jobs}:medium", {"type": "send-newsletter", "data": f'{{"to":"{at}@example.com"}}'})
        await until(lambda: len(spy.jobs) == 30 and not spy.running.total(), "all are sent")
    assert spy.peaks[""] == 5


async def test_no_second_sees_more_than_ten_addresses(valkey: Server, page: Path, spy: Spy):
    geocode = module("geocode")
    raw: Any = valkey.client()
    async with working(valkey.url, spy.on(geocode.geocode), concurrency=50):
        for at in range(15):
            raw.xadd("{jobs}:medium", {"type": "geocode", "data": f'{{"address":"{at}"}}'})
        await until(lambda: len(spy.jobs) == 15, "all are asked for")
    granted_ms = sorted(job.fetched_ms for job in spy.jobs)
    assert all(granted_ms[at + 10] - granted_ms[at] >= 999 for at in range(5)), granted_ms


async def test_each_customer_has_one_import_at_a_time_and_they_do_not_wait_for_each_other(valkey: Server, page: Path, spy: Spy):
    imports = module("imports")
    raw: Any = valkey.client()
    async with working(valkey.url, spy.on(imports.import_orders), concurrency=50):
        for at in range(12):
            fields = {"type": "import-orders", "data": f'{{"page":{at}}}', "group": "much" if at < 10 else f"little-{at}"}
            raw.xadd("{jobs}:medium", fields)
        await until(lambda: len(spy.jobs) == 12 and not spy.running.total(), "all are imported")
    first = [job.envelope.group for job in spy.jobs[:3]]
    assert sorted(first) == [b"little-10", b"little-11", b"much"], "those with little do not stand behind the ten"
    assert {name: spy.peaks[name] for name in ("much", "little-10")} == {"much": 1, "little-10": 1}


async def test_a_bank_that_says_429_is_asked_by_nobody_until_then(
    valkey: Server, page: Path, spy: Spy, monkeypatch: pytest.MonkeyPatch
):
    payments = module("payments")

    raw: Any = valkey.client()
    told_ms: list[int] = []

    class BusyBank:
        """Says 429 to the first that asks."""

        async def charge(self, key: str, cents: int) -> float:
            if told_ms:
                return 0.0
            seconds, micros = raw.time()
            told_ms.append(seconds * 1000 + micros // 1000)
            return 1.0

    monkeypatch.setattr(payments, "bank", BusyBank())
    async with working(valkey.url, spy.on(payments.charge_card)):
        raw.xadd("{jobs}:medium", {"type": "charge-card", "data": '{"cents":1}'})
        await until(lambda: raw.hexists("{jobs}:control", "pause:charge-card"), "the type is paused")
        for at in range(5):
            raw.xadd("{jobs}:medium", {"type": "charge-card", "data": f'{{"cents":{at}}}'})
        await until(lambda: len(spy.jobs) == 7, "all are charged")
    assert min(job.fetched_ms for job in spy.jobs[1:]) >= told_ms[0] + 1000
    assert sorted(job.attempt for job in spy.jobs) == [1] * 6 + [2], "only the one that was told 429 has another attempt"


def test_the_lanes_of_the_page_are_what_the_settings_say(tmp_path: Path):
    [settings] = re.findall(r"```toml\n# runtime\.toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "runtime.toml").write_text(settings)
    config = load({}, {}, tmp_path)
    assert (config.concurrency, config.reserved_lanes, config.strict) == (200, 20, False)


def test_the_shares_of_the_page_are_those_of_the_plan():
    assert ":".join(map(str, WEIGHTS)) == "8:4:2:1"
    assert WEIGHTS[Priority.LOW - 1] / (WEIGHTS[Priority.LOW - 1] + WEIGHTS[Priority.HIGH - 1]) == pytest.approx(1 / 5)


def test_the_schedule_of_the_page_is_found_beside_its_handler(page: Path):
    found = find(["reports"])
    definition = found.schedules["nightly-report"].definition
    assert (list(found.registry), definition.times.zone) == ([b"report"], "Europe/Berlin")


def run_script(page: Path, name: str, url: str) -> str:
    """Run a module of the page against a server, and return what it prints."""
    path = page / f"{name}.py"
    path.write_text(path.read_text().replace("redis://127.0.0.1:6379", url))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    command = [sys.executable, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True).stdout


def test_python_pauses_and_resumes_as_the_page_shows(valkey: Server, page: Path):
    assert run_script(page, "people", valkey.url) == "['send-newsletter']\n"
    raw: Any = valkey.client()
    assert not raw.hexists("{jobs}:control", "pause:send-newsletter")
    raw.close()


def test_python_changes_schedules_as_the_page_shows(valkey: Server, page: Path):
    assert run_script(page, "seasons", valkey.url) == "['christmas-report', 'nightly-report']\n"
    raw: Any = valkey.client()
    assert [row["what"].partition(" ")[0] for _, row in raw.xrange("{jobs}:audit")] == ["put", "put", "drop", "put"]
    assert list(raw.hvals("{jobs}:cron")) == ["4 {}"], "a revision, so that the code's rules again at once"
    raw.close()
