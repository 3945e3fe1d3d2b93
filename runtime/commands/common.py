"""What commands share: a loop with the Redis in force, the handlers in force, and how things are printed."""

from __future__ import annotations

import asyncio
import contextlib
import os
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
from runtime.store.control import ControlStore
from runtime.store.finder import Finder
from runtime.store.urls import without_password

T = TypeVar("T")


def with_store(
    config: Config,
    work: Callable[[str], Coroutine[Any, Any, T]],
    *,
    may_make: bool = False,
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> T:
    """Run `work` with the URL of the Redis in force; where none is set, with the embedded server's, which is started if need be.

    Raises:
        ConfigError: the embedded server has no data folder, and `may_make` does not allow to make one; or it cannot start.
    """
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        if config.redis:
            return runner.run(work(config.redis))
        if not may_make and not Path(config.data_dir).is_dir():
            raise ConfigError(f"no queue in {config.data_dir}: no such folder; hint: give the worker's --data-dir, or --redis")
        embedded = Embedded(Path(config.data_dir), config.embedded_port)
        embedded.start()
        try:
            return runner.run(work(embedded.url))
        finally:
            embedded.stop()


def use_settings(config: Config) -> None:
    """Let the shipped handlers of this process, and of its children, read their settings from the file that was named."""
    if config.handlers_config:
        os.environ["RUNTIME_HANDLERS_CONFIG"] = str(Path(config.handlers_config).absolute())


def find_handlers(config: Config) -> Found:
    """Return the handlers of the modules that the settings name.

    Raises:
        ConfigError: a module cannot be imported or is not the one meant, or there is no handler.
    """
    names = [name.strip() for name in config.handlers.split(",") if name.strip()]
    why_not = add_folder()
    try:
        found = find(names)
    except ConfigError as error:
        text = f"{error}; modules are not looked for in this folder: {why_not}, or set PYTHONPATH=." if why_not else str(error)
        raise ConfigError(text) from error
    hidden = hidden_in_folder(names)
    if hidden:
        raise ConfigError(f"module {hidden[0]} comes from {hidden[1]}, which hides the one in this folder; hint: rename yours")
    logs.wake()
    return found


@contextlib.asynccontextmanager
async def inspector(url: str, queue: str) -> AsyncGenerator[Finder]:
    """Yield a Finder, an Inspector of this queue that finds jobs, and close its connection."""
    opened = Finder(url, queue)
    try:
        yield opened
    finally:
        await opened.close()


@contextlib.asynccontextmanager
async def control(url: str, queue: str) -> AsyncGenerator[ControlStore]:
    """Yield the writes by people, and close their connection afterwards."""
    opened = ControlStore(url, queue)
    try:
        yield opened
    finally:
        await opened.close()


def flags_of(config: Config) -> str:
    """Return the flags with which another command finds the same queue, with a space before each; never a password."""
    where = "" if config.redis else f" --data-dir {shlex.quote(config.data_dir)}"
    redis = f" --redis {shlex.quote(config.redis)}" if config.redis and without_password(config.redis) == config.redis else ""
    return f"{where}{redis}" + (f" --queue {shlex.quote(config.queue)}" if config.queue != Config().queue else "")


def print_json(value: Any) -> None:
    """Print one line of JSON."""
    print(msgspec.json.encode(value).decode())


def clean(text: str, width: int = 0) -> str:
    """Return text of messages as it may go to a terminal: without control characters, and cut to `width` characters."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return printable if not width or len(printable) <= width else printable[: width - 1] + "…"
