"""The recipes do what they say: each is run, against a real service where it asks one, and on a real server where it sends."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from runtime import Dead, Retry, Snooze
from runtime.testing import Done, Notes, Outcome, run
from tests.faults.harness import ROOT

PAGE = (ROOT / "docs" / "cookbook.md").read_text("utf-8")
MODULES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that imports the module of a recipe."""
    for name, code in MODULES.items():
        (tmp_path / f"{name}.py").write_text(code, "utf-8")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


class Crm:
    """An API that answers as it is told, and notes what it was asked."""

    def __init__(self) -> None:
        self.answers: list[web.Response] = []
        self.asked: list[tuple[str, str, Any]] = []

    async def put(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers["Idempotency-Key"], await request.json()))
        return self.answers.pop(0)


async def serve(crm: Crm) -> tuple[web.AppRunner, str]:
    app = web.Application()
    app.router.add_put("/customers/{customer}", crm.put)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner, "http://{}:{}".format(*runner.addresses[0])


async def test_the_flaky_api_is_asked_again_when_that_helps(recipes: Any, monkeypatch: pytest.MonkeyPatch):
    crm = Crm()
    service, url = await serve(crm)
    monkeypatch.setenv("CRM_URL", url)
    module = recipes("crm")
    crm.answers = [
        web.Response(status=429, headers={"Retry-After": "7"}),
        web.Response(status=503),
        web.Response(status=500),
        web.Response(status=403),
        web.Response(status=422, text="no name"),
        web.Response(status=204),
    ]
    message = module.SyncCustomer(customer=7, name="Ada")
    try:
        said: list[Outcome] = [await run(module.sync_customer, message, id="sync-7", lifespans=[module.crm]) for _ in range(6)]
    finally:
        await service.cleanup()
    limited, away, broken, forbidden, refused, done = said
    assert isinstance(limited, Snooze)
    assert (limited.delay_s, limited.pause_type) == (7, True)
    assert isinstance(away, Snooze)
    assert (away.delay_s, away.pause_type) == (30, True)
    for crash in (broken, forbidden):
        assert isinstance(crash, Retry)
        assert not crash.asked
    assert isinstance(refused, Dead)
    assert (refused.code, str(refused)) == ("crm-422", "the CRM refuses it: no name")
    assert done == Done()
    assert {(path, body["name"]) for path, _, body in crm.asked} == {("/customers/7", "Ada")}
    assert len({key for _, key, _ in crm.asked}) == 1, "one key for all attempts"


async def test_the_nightly_report_is_of_the_day_before_its_tick_whenever_it_runs(recipes: Any):
    nightly = recipes("nightly")
    notes = Notes()
    born = datetime(2026, 11, 21, 3, tzinfo=UTC).timestamp()
    assert await run(nightly.sales_report, nightly.SalesReport(), born=born, notes=notes) == Done()
    assert [one.payload for one in notes.sent] == [{"day": "2026-11-20", "rows": 20}]
    assert notes.progress is not None
    assert notes.progress.text == "20 rows"
    by_hand = nightly.SalesReport(day=date(2026, 11, 3))
    assert await run(nightly.sales_report, by_hand, notes=notes) == Done()
    assert [one.payload["day"] for one in notes.sent] == ["2026-11-03"]


async def test_the_newsletter_thinks_of_each_reader_once(recipes: Any):
    letters = recipes("letters")
    to, message = list[str](), letters.SendNewsletter(issue=3)
    while message is not None:
        notes = Notes()
        assert await run(letters.send_newsletter, message, notes=notes) == Done()
        to += [one.payload["to"] for one in notes.sent if one.type == "send-letter"]
        rest = [one.data for one in notes.sent if one.type == "send-newsletter"]
        message = msgspec.json.decode(rest[0], type=letters.SendNewsletter) if rest else None
    assert to == list(letters.READERS.values())
