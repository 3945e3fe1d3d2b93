"""The page about hooks: what it shows runs, where the libraries that it names are there."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from aiohttp import web

from runtime import Dead, Job, contract, handler
from runtime.registry import Found, find
from runtime.testing import worker
from tests.faults.harness import ROOT
from tests.servers import Server

PAGE = (ROOT / "docs" / "hooks.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
NEEDED = {"shop_asyncpg": "asyncpg", "shop_sqlalchemy": "sqlalchemy", "shop_httpx": "httpx", "shop_sentry": "sentry_sdk"}


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Return what imports a module of the page."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    def load(name: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(BLOCKS[name])
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    return load


async def test_a_client_is_shared_by_the_jobs_of_a_worker(valkey: Server, load: Callable[[str], Any]) -> None:
    shop, asked = load("shop_client"), list[Any]()

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers["Idempotency-Key"])
        return web.Response()

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with worker(valkey.url, shop.call_partner, lifespans=find(["shop_client"]).lifespans) as running:
            url = "http://{}:{}/".format(*runner.addresses[0][:2])
            await running.producer.send(shop.CallPartner(url), id="order-7")
            await running.settled()
            session = shop.client.value
        assert session.closed
    finally:
        await runner.cleanup()
    assert len(asked) == 1


async def test_failures_and_deaths_are_heard(
    valkey: Server, load: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    import msgspec

    @contract("fails")
    class Fails(msgspec.Struct):
        pass

    @handler(Fails)
    async def fails(message: Fails, job: Job) -> None:
        raise Dead("closed", "no-account") if job.id == "asked" else ConnectionError("no host")

    alerts = load("shop_alerts")
    async with worker(valkey.url, fails, hooks=[alerts.report, alerts.tell]) as running:
        await running.producer.send(Fails(), id="asked")
        await running.producer.send(Fails(), id="crashed", attempts=1)
        await running.settled()
    told = sorted(record.getMessage() for record in caplog.records if record.name == "alerts")
    assert told == [
        "asked (fails) is dead: no-account, closed",
        "crashed (fails) is dead: attempts, ConnectionError: no host",
        "crashed has crashed",
    ]


@pytest.mark.parametrize("name", NEEDED)
def test_what_needs_a_library_is_found_where_that_is_there(name: str, load: Callable[[str], Any]) -> None:
    compile(BLOCKS[name], name, "exec")
    pytest.importorskip(NEEDED[name])
    module, found = load(name), Found({}, [], {})
    importlib.import_module("runtime.registry")._collect(found, module)
    assert len(found.lifespans) + len(found.hooks) == 1


def test_lines_of_structlog_have_the_format_of_all_others(load: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    compile(BLOCKS["shop_structlog"], "shop_structlog", "exec")
    structlog: Any = pytest.importorskip("structlog")
    before, level = logging.root.handlers[:], logging.root.level
    try:
        load("shop_structlog")
        structlog.get_logger("shop").info("receipt", order=7)
        logging.getLogger("shop").info("receipt", extra={"order": 8})
    finally:
        logging.root.handlers[:], logging.root.level = before, level
        structlog.reset_defaults()
    told = capsys.readouterr().err
    assert '"order": 7' in told and '"order": 8' in told and '"job_id": ""' in told
