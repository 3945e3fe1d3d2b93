"""`board`: the web board alone, as a process of its own."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
from pathlib import Path
from typing import Final

from runtime import logs
from runtime.commands.flags import add_settings, add_texts
from runtime.config import SETTINGS, Config, address_of
from runtime.embedded import Embedded
from runtime.errors import ConfigError
from runtime.store.connection import one_connection
from runtime.store.inspector import Inspector
from runtime.store.urls import without_password

log: Final = logging.getLogger("runtime")

SHOWN: Final = (
    *("redis", "queue", "data_dir", "trace_url", "log", "log_level"),
    *(setting.field for setting in SETTINGS if setting.flag.startswith("--board")),
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Serve the web board alone until SIGTERM or Ctrl-C. It works from Redis; workers serve one too, unless --board is off.",
        "python -m runtime board --redis redis://127.0.0.1:6379",
        "python -m runtime board --board 127.0.0.1:9000 --board-token-file /etc/backend-jobs/board.toml",
    )
    add_settings(parser, *SHOWN)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Serve the board until a signal comes. Return the exit status."""
    logs.setup(config.log, config.log_level)
    if address_of(config.board) is None:
        raise ConfigError("--board off: there is nothing else to serve; hint: --board 127.0.0.1:8080")
    if config.redis:
        one_connection(config.redis)  # raises on a bad URL, before anything starts
        return asyncio.run(_serve(config, config.redis, None))
    if not Path(config.data_dir).is_dir():
        raise ConfigError(f"no queue in {config.data_dir}: no such folder; hint: give the worker's --data-dir, or --redis")
    embedded = Embedded(Path(config.data_dir), config.embedded_port)
    embedded.start()  # here, in the main thread: the kernel ends the server when the thread that started it ends
    try:
        return asyncio.run(_serve(config, embedded.url, embedded))
    finally:
        embedded.stop()


async def _serve(config: Config, url: str, embedded: Embedded | None) -> int:
    """Serve until a signal comes; an embedded server whose worker ends is started again, so that the board can tell why."""
    from board.alone import AloneBoard  # with aiohttp, which is loaded only with a board
    from board.pages import open_board

    host, port = address_of(config.board) or ("", 0)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        site = await open_board(
            stack, config, url, lambda pages: AloneBoard(Inspector(url, config.queue, "board"), host, port, pages)
        )
        kept = f"embedded server {url}" if embedded else without_password(url)
        log.info("board at %s, queue %s on %s", site.url, config.queue, kept)
        keeping = asyncio.create_task(embedded.keep()) if embedded is not None else None
        await stop.wait()
        if keeping is not None:
            keeping.cancel()
    log.info("the board has stopped")
    return 0
