"""What commands share: which Redis, one short life of a loop, JSON out."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from runtime import logs
from runtime.config import Config
from runtime.embedded import Embedded
from runtime.errors import ConfigError
from runtime.folders import add_folder, hidden_in_folder
from runtime.registry import Found, find
from runtime.store.control import Control
from runtime.store.inspector import Inspector
from runtime.store.urls import without_password

T = TypeVar("T")


def with_store(
    config: Config,
    work: Callable[[str], Coroutine[Any, Any, T]],
    *,
    may_make: bool = False,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run `work` with the URL of the Redis in force; without one, the embedded server is used, and started if it does not run.

    Raises:
        ConfigError: there is no data folder, and this is no command that may make one.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        if config.redis:
            return runner.run(work(config.redis))
        if not may_make and not Path(config.data_dir).is_dir():
            raise ConfigError(f"no queue in {config.data_dir}: no such folder; is it the worker's --data-dir? (or give --redis)")
        embedded = Embedded(Path(config.data_dir), config.embedded_port)
        embedded.start()
        try:
            return runner.run(work(embedded.url))
        finally:
            embedded.stop()


def find_handlers(config: Config) -> Found:
    """Return the handlers of the modules in force.

    Raises:
        ConfigError: a module cannot be used, or there is no handler.
    """
    names = [name.strip() for name in config.handlers.split(",") if name.strip()]
    why_not = add_folder()
    try:
        found = find(names)
    except ConfigError as error:
        lead = f"{error}; modules are not looked for in this folder: {why_not}, or set PYTHONPATH=." if why_not else str(error)
        raise ConfigError(lead) from error
    hidden = hidden_in_folder(names)
    if hidden:
        raise ConfigError(f"module {hidden[0]} comes from {hidden[1]}, which hides the one in this folder: rename yours")
    logs.wake()
    return found


@contextlib.asynccontextmanager
async def inspector(url: str, queue: str) -> AsyncGenerator[Inspector]:
    """Return the reads for people, and close their connection."""
    opened = Inspector(url, queue)
    try:
        yield opened
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def control(url: str, queue: str) -> AsyncGenerator[Control]:
    """Yield the writes by people, and close their connection afterwards."""
    opened = Control(url, queue)
    try:
        yield opened
    finally:
        await opened.close()


def flags_of(config: Config) -> str:
    """Return the flags that lead another command to the same queue, with a space before each."""
    where = "" if config.redis else f" --data-dir {shlex.quote(config.data_dir)}"
    redis = f" --redis {shlex.quote(config.redis)}" if config.redis and without_password(config.redis) == config.redis else ""
    return f"{where}{redis}" + (f" --queue {shlex.quote(config.queue)}" if config.queue != Config().queue else "")


def print_json(value: Any) -> None:
    """Print one line of JSON."""
    print(msgspec.json.encode(value).decode())


def clean(text: str, width: int = 0) -> str:
    """Return text from strangers as it may go to a terminal: no control characters, cut to `width`."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return printable if not width or len(printable) <= width else printable[: width - 1] + "…"
