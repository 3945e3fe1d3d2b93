"""SupervisorBoard serves the health and metrics of a supervisor's processes as one, under the port that was asked for."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from aiohttp import ClientError, ClientSession, ClientTimeout, web

from board.site import Site, as_metrics, page
from board.web import Web
from otel.exposition import OPEN_METRICS, TEXT
from otel.metrics import ProcessesReading, is_open_metrics, render_processes
from runtime.supervisor import Supervisor

ANSWER_S: Final = 2.0  # a process whose loop is held answers late or not at all; a guess, below the 10 s of a scraper
ABOUT: Final = """<p>This supervisor serves, for all its processes, <a href="/healthz">/healthz</a> (the supervisor lives),
<a href="/readyz">/readyz</a> (a process fetches jobs) and <a href="/metrics">/metrics</a> (Prometheus).</p>"""


class SupervisorBoard(Site):
    """Owns the listening socket and a client of the processes' boards; an async context manager around a supervisor's life."""

    def __init__(self, supervisor: Supervisor, host: str, port: int, pages: Web | None = None) -> None:
        routes = {"/": self._index, "/healthz": self._healthz, "/readyz": self._readyz, "/metrics": self._metrics}
        super().__init__(host, port, routes, pages)
        self._supervisor = supervisor
        self._client: ClientSession | None = None

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        self._client = ClientSession(timeout=ClientTimeout(total=ANSWER_S))
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await super().__aexit__(kind, error, trace)
        if self._client is not None:
            await self._client.close()

    async def _index(self, request: web.Request) -> web.Response:
        return page(ABOUT)

    async def _healthz(self, request: web.Request) -> web.Response:
        """Answer 200 while the supervisor lives: it restarts processes that die, and kills those that hang."""
        return web.Response(text=f"alive, {len(self._supervisor.boards)} of {len(self._supervisor.slots)} processes are up\n")

    async def _readyz(self, request: web.Request) -> web.Response:
        answers = {} if self._supervisor.is_stopping else await self._ask_all("readyz")
        otherwise = f"not ready: {'stopping' if self._supervisor.is_stopping else 'no process is up'}"
        lines = [f"process {index}: {text.strip()}" for index, (_, text) in answers.items()] or [otherwise]
        is_ready = any(status == 200 for status, _ in answers.values())
        return web.Response(text="\n".join(lines) + "\n", status=200 if is_ready else 503)

    async def _metrics(self, request: web.Request) -> web.Response:
        is_open = is_open_metrics(request.headers.get("Accept", ""))
        answers = await self._ask_all("metrics", OPEN_METRICS if is_open else TEXT)
        texts = {index: text for index, (status, text) in answers.items() if status == 200}
        total = self._supervisor.total
        reading = ProcessesReading(
            texts, dict.fromkeys(self._supervisor.slots, 0) | dict.fromkeys(texts, 1), total.deaths, total.recycled
        )
        return as_metrics(render_processes(reading, is_open=is_open), is_open=is_open)

    async def _ask_all(self, path: str, accept: str = "*/*") -> dict[int, tuple[int, str]]:
        """Return status and text of each process, asked at the same time; status 0 for one that does not answer."""
        async with asyncio.TaskGroup() as group:
            asked = {
                index: group.create_task(self._get(f"{url}/{path}", accept)) for index, url in self._supervisor.boards.items()
            }
        return {index: task.result() for index, task in asked.items()}

    async def _get(self, url: str, accept: str) -> tuple[int, str]:
        if self._client is None:
            return 0, "no client"
        try:
            async with self._client.get(url, headers={"Accept": accept}) as answer:
                return answer.status, await answer.text()
        except (ClientError, TimeoutError, OSError):
            return 0, "no answer"
