"""What commands share: which Redis, one short life of a loop, JSON out."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from runtime.config import Config
from runtime.embedded import Embedded
from runtime.lookups import Lookups
from runtime.registry import Found, find

T = TypeVar("T")


def with_store(config: Config, work: Callable[[str], Coroutine[Any, Any, T]]) -> T:
    """Run `work` with the URL of the Redis in force; without one, the embedded server is used, and started if it does not run."""
    if config.redis:
        return asyncio.run(work(config.redis))
    embedded = Embedded(Path(config.data_dir), config.embedded_port)
    embedded.start()
    try:
        return asyncio.run(work(embedded.url))
    finally:
        embedded.stop()


def find_handlers(config: Config) -> Found:
    """Give the handlers of the modules in force.

    Raises:
        ConfigError: a module cannot be used, or there is no handler.
    """
    return find([name.strip() for name in config.handlers.split(",") if name.strip()])


@contextlib.asynccontextmanager
async def lookups(url: str, queue: str) -> AsyncGenerator[Lookups]:
    """Give the reads for people, and close their connection."""
    opened = Lookups(url, queue)
    try:
        yield opened
    finally:
        await opened.close()


def print_json(value: Any) -> None:
    """Print one line of JSON."""
    print(msgspec.json.encode(value).decode())


def clean(text: str, width: int = 0) -> str:
    """Give text from strangers as it may go to a terminal: no control characters, cut to `width`."""
    printable = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return printable if not width or len(printable) <= width else printable[: width - 1] + "…"
