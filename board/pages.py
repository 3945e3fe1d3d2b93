"""The pages of a board, wherever it runs: all of them work from Redis alone. A page has its line in `_answerers`."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Protocol, TypeVar

from board import access
from board.actions import ActionsPage
from board.all import AllPage
from board.api import Answerer, Api
from board.auth import Auth
from board.contracts import Contracts
from board.dead import DeadPage
from board.edit import EditPage
from board.guard import Limiter
from board.job import JobPage
from board.jobs import JobsPage, Reads
from board.letters import Index
from board.link import Link
from board.meta import MetaPage
from board.operations import OperationsPage
from board.orders import Orders
from board.overview import OverviewPage
from board.payload import PayloadPage
from board.queue import QueuePage
from board.replays import ReplayPage
from board.sampler import Sampler
from board.schedules import SchedulesPage
from board.site import Site
from board.stream import Source, Streams
from board.system import SystemPage
from board.types import TypesPage
from board.web import Web
from board.workers import WorkersPage
from runtime.config import Config, address_of
from runtime.store.control import ControlStore
from runtime.store.events import Events
from runtime.store.letters import LetterStore
from runtime.store.lists import JobLists
from runtime.store.urls import without_password

S = TypeVar("S", bound=Site)
OFF: Final = "off"
MAIL: Final = '{"to": "ada@example.com", "subject": "Hi", "text": "Hello"}'  # a payload of send-email, which comes along


class Page(Protocol):
    """What has the answers of some routes."""

    def routes(self) -> dict[str, Answerer]:
        """Return them by their route."""
        ...


async def open_board(stack: AsyncExitStack, config: Config, url: str, make: Callable[[Web | None], S]) -> S:
    """Serve a site for as long as the stack lasts, and the pages with it unless they are off. `url` is that of Redis.

    Raises:
        ConfigError: the board would be open to the network, a file of its cannot be used, or it cannot listen.
    """
    if config.board_pages == OFF:
        return await stack.enter_async_context(make(None))
    allowed = access.read(config, os.environ)
    limiter = Limiter()
    auth = Auth(allowed, config.board_token_file, limiter)
    answerers, source = await _answerers(stack, url, config)
    answerers |= MetaPage(url, config, allowed, auth).routes()
    host, _ = address_of(config.board) or ("", 0)
    web = Web(Api(answerers), auth, allowed, Streams(source), host, limiter)
    site = await stack.enter_async_context(make(web))
    if auth.link_token:
        stack.enter_context(Link(site.url + allowed.prefix, auth.link_token, Path(config.data_dir)))
    return site


async def _answerers(stack: AsyncExitStack, url: str, config: Config) -> tuple[dict[str, Answerer], Source]:
    """Return what answers the routes, by route, and what makes the ticks; the stack closes the connections that they share."""
    queue = config.queue
    sampler, lists, orders = Sampler(url, queue), JobLists(url, queue, "board"), Orders(url, queue)
    events, control = Events(url, queue, "board"), ControlStore(url, queue, "board")
    sampler.hint = first_command(url, config)
    letters = LetterStore(url, queue)
    index = Index(letters)
    sampler.letters = index
    operations = OperationsPage(url, queue)
    for owner in (sampler, lists, events, control, letters, index, operations):
        stack.push_async_callback(owner.close)
    reads = Reads(lists, events, Contracts(lambda: _contracts(events)))
    jobs = JobsPage(reads)
    replays = ReplayPage(url, queue, letters, index, reads.contracts)
    stack.push_async_callback(replays.close)
    pages: tuple[Page, ...] = (
        OverviewPage(sampler),
        WorkersPage(sampler, orders, jobs.jobs),
        QueuePage(sampler, orders, lists, config.unknown_after_s),
        SystemPage(sampler),
        SchedulesPage(sampler, orders),
        TypesPage(sampler, reads),
        *(jobs, JobPage(reads), PayloadPage(reads), ActionsPage(reads, control), AllPage(url, queue, jobs.jobs)),
        *(DeadPage(letters, index, reads.contracts), EditPage(url, queue, letters, reads.contracts), replays, operations),
    )
    return {route: answerer for page in pages for route, answerer in page.routes().items()}, sampler


async def _contracts(events: Events) -> dict[str, str]:
    return {one.field: bytes(one).decode() for one in await events.contracts()}


def first_command(url: str, config: Config) -> str:
    """Return a command that sends a first job to this queue, with no password in it; nothing where mails are not offered."""
    if "handlers" not in config.handlers.split(","):
        return ""
    socket = url.removeprefix("unix://").partition("?")[0] if url.startswith("unix://") else ""
    is_ours = socket == str(Path(config.data_dir) / "s.sock")
    where = f"--data-dir {shlex.quote(config.data_dir)}" if is_ours else f"--redis {shlex.quote(without_password(url))}"
    queue = "" if config.queue == Config().queue else f" --queue {shlex.quote(config.queue)}"
    return f"python -m runtime enqueue send-email '{MAIL}' {where}{queue}"
