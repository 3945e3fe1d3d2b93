"""The supervisor's HTTP: its processes' health and metrics as one, under the port that was asked for."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from board.site import METRICS, Site
from otel.metrics import ProcessesReading, render_processes
from runtime.supervisor import Supervisor

ANSWER_S: Final = 2.0  # a process whose loop is held answers late or not at all
PAGE: Final = """<!doctype html><html lang="en"><meta charset="utf-8"><title>backend-jobs</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:3rem auto;padding:0 1rem}</style>
<h1>backend-jobs</h1><p>This supervisor serves <a href="/healthz">/healthz</a> (the supervisor lives),
<a href="/readyz">/readyz</a> (a process fetches jobs) and <a href="/metrics">/metrics</a> (Prometheus) of all its processes.</p>
</html>
"""


class SupervisorBoard:
    """Owns the listening socket and a client of the processes' boards; an async context manager around a supervisor's life."""

    def __init__(self, supervisor: Supervisor, host: str, port: int) -> None:
        self._supervisor = supervisor
        routes = {"/": self._index, "/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        self._site = Site(host, port, routes)
        self._client: ClientSession | None = None

    async def __aenter__(self) -> Self:
        await self._site.__aenter__()
        self._client = ClientSession(timeout=ClientTimeout(total=ANSWER_S))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._site.__aexit__(kind, error, trace)
        if self._client is not None:
            await self._client.close()

    @property
    def url(self) -> str:
        """Where the board listens."""
        return self._site.url

    async def _index(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def _healthz(self, request: web.Request) -> web.Response:
        """The supervisor's own health: it starts again what has ended, and ends what stands still."""
        return web.Response(text=f"alive, {len(self._supervisor.boards)} of {len(self._supervisor.slots)} processes are up\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        answers = {} if self._supervisor.is_stopping else await self._ask("readyz")
        otherwise = f"not ready: {'stopping' if self._supervisor.is_stopping else 'no process is up'}"
        lines = [f"process {index}: {text.strip()}" for index, (_, text) in answers.items()] or [otherwise]
        is_ready = any(status == 200 for status, _ in answers.values())
        return web.Response(text="\n".join(lines) + "\n", status=200 if is_ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        answers = await self._ask("metrics")
        texts = {index: text for index, (status, text) in answers.items() if status == 200}
        total = self._supervisor.total
        reading = ProcessesReading(
            texts, dict.fromkeys(self._supervisor.slots, 0) | dict.fromkeys(texts, 1), total.deaths, total.recycled
        )
        return web.Response(body=render_processes(reading), headers=METRICS)

    async def _ask(self, page: str) -> dict[int, tuple[int, str]]:
        """Ask all processes at the same time; status 0 for one that does not answer."""
        async with asyncio.TaskGroup() as group:
            asked = {index: group.create_task(self._get(f"{url}/{page}")) for index, url in self._supervisor.boards.items()}
        return {index: task.result() for index, task in asked.items()}

    async def _get(self, url: str) -> tuple[int, str]:
        if self._client is None:
            return 0, "no client"
        try:
            async with self._client.get(url) as answer:
                return answer.status, await answer.text()
        except (ClientError, TimeoutError, OSError):
            return 0, "no answer"
