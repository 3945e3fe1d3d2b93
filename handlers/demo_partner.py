"""The partner of the demo: a CRM that pages its contacts, and a webhook that keeps what it is told; on the loopback interface."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Final

from aiohttp import web

CONTACTS: Final = 2_000  # a guess: twenty pages, done in a second or two
PAGE: Final = 100  # HubSpot's page
TOKEN: Final = "demo"  # noqa: S105 -- of a server that only this machine reaches
MAX_TOLD: Final = 200  # a guess: the demo may run for days, and what it is told must not fill the disk
RATE_EVERY: Final = 25  # every so-manyth request is one too many, so that a person sees a job wait for that


class Partner:
    """Answers requests; owns the file to which it writes what its webhook is told, a JSON line each."""

    def __init__(self, folder: Path) -> None:
        self._told = folder / "notifications.jsonl"
        self._lines: list[str] = []
        self._requests = 0

    async def contacts(self, request: web.Request) -> web.Response:
        """Return a page of contacts, from the cursor on; every so-manyth time, that this was one request too many."""
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return web.Response(status=401)
        self._requests += 1
        if self._requests % RATE_EVERY == 0:
            return web.Response(status=429, headers={"Retry-After": "2"})
        try:
            first = int(request.query.get("cursor") or 0)
        except ValueError:
            return web.Response(status=400)
        last = min(first + PAGE, CONTACTS)
        items = [
            {"id": f"c{n}", "name": f"Contact {n}", "mail": f"c{n}@example.org", "updated_at": f"2026-01-01T00:{n % 60:02}:00Z"}
            for n in range(first, last)
        ]
        return web.json_response({"items": items, "next": str(last) if last < CONTACTS else None})

    async def hook(self, request: web.Request) -> web.Response:
        """Keep what the webhook is told."""
        told = {"id": request.headers.get("webhook-id"), "signed": "webhook-signature" in request.headers}
        self._lines = [*self._lines[1 - MAX_TOLD :], json.dumps({**told, "told": await request.json()})]
        self._told.write_text("\n".join(self._lines) + "\n", "utf-8")
        return web.Response(status=204)


@contextlib.asynccontextmanager
async def partner(folder: Path) -> AsyncGenerator[int]:
    """Run the partner on a free port, and yield the port."""
    owner = Partner(folder)
    app = web.Application()
    app.router.add_get("/api/contacts", owner.contacts)
    app.router.add_post("/hook", owner.hook)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()
