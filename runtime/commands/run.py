"""`run`: the worker, its board, its embedded server, and the signals that stop it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from random import random
from types import FrameType
from typing import Final

from runtime import logs, offload
from runtime.backoff import Backoff, delay_s
from runtime.commands.common import find_handlers
from runtime.config import Config, address_of
from runtime.consumer import Consumer, Report
from runtime.embedded import Embedded
from runtime.errors import StoreAway
from runtime.lookups import Lookups, Server, check_server
from runtime.registry import Found
from runtime.wire import one_connection, redis_cli, without_password

log = logging.getLogger("runtime")

HARD_S: Final = 4.0  # after the grace, or after a second signal: leases expire by themselves, so leaving is always safe
HARD_DEADLINE: Final = 4  # exit status
START_TRIES: Final = 5
START_BACKOFF: Final = Backoff(base_s=0.2, cap_s=2.0)


def act(config: Config) -> int:
    """Run jobs until a signal says stop; gives the exit status."""
    logs.setup(config.log, config.log_level)
    if config.handlers_config:
        os.environ["RUNTIME_HANDLERS_CONFIG"] = str(Path(config.handlers_config).absolute())
    found = find_handlers(config)
    for module, extra in found.missing:
        log.warning("%s is not offered here: pip install '%s'", module, extra)
    embedded = None if config.redis else Embedded(Path(config.data_dir), config.embedded_port)
    if embedded is None:
        one_connection(config.redis)  # a bad URL is said before anything starts
    else:
        embedded.start()  # here, in the main thread: the kernel ends the server when the thread that started it ends
    runner = asyncio.Runner(loop_factory=loop_factory())
    try:
        report = runner.run(_work(config, found, embedded))
    finally:
        if embedded is not None:
            embedded.stop()
    _end(report)
    runner.close()
    return 0


def _end(report: Report) -> None:
    """Say the last line. A handler's thread that would not end must not keep the process: then leave it to the system."""
    print(f"runtime: {report}", file=sys.stderr, flush=True)
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        logging.shutdown()
        os._exit(0)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Give what makes the loop that workers run on."""
    try:
        import uvloop
    except ImportError:  # not there on Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _work(config: Config, found: Found, embedded: Embedded | None) -> Report:
    url = config.redis or (embedded.url if embedded else "")

    def leave(report: Report) -> None:
        if embedded is not None:
            embedded.stop()
        _end(report)
        logging.shutdown()
        os._exit(0)

    lookups = Lookups(url, config.queue, "board")
    try:
        for warning in check_server(await _reach(lookups), redis_cli(url)):
            log.warning("%s", warning)
        offload.THREADS.total_tokens = config.threads
        consumer = Consumer(config, url, found.registry, leave)
        async with contextlib.AsyncExitStack() as stack:
            where = "no board"
            address = address_of(config.board)
            if address is not None:
                from board.app import Board  # aiohttp is loaded only when somebody listens

                board = await stack.enter_async_context(Board(consumer, lookups, *address))
                where = f"board at {board.url}"
            keeper = asyncio.create_task(embedded.keep()) if embedded is not None else None
            _stop_on_signals(consumer, config.grace_s)
            kept = f"embedded server {url}" if embedded else without_password(url)
            log.info(
                "worker %s: %d lanes, %d types, queue %s on %s, %s",
                consumer.name,
                config.concurrency,
                len(found.registry),
                config.queue,
                kept,
                where,
            )
            gc.freeze()  # what was loaded until here lives as long as the process
            try:
                return await consumer.run()
            finally:
                if keeper is not None:
                    keeper.cancel()
    finally:
        await lookups.close()


async def _reach(lookups: Lookups) -> Server:
    failures = 0
    while True:
        try:
            return await lookups.server()
        except StoreAway as error:
            is_loading = "loading" in str(error).lower()  # it lives, and reads its file: no failure, only not yet
            failures += not is_loading
            if failures == START_TRIES:
                hint = "is it running? --redis or REDIS_URL names it; without either, the embedded server is used"
                raise StoreAway(f"{error} (tried {START_TRIES} times); {hint}") from None
            await asyncio.sleep(delay_s(max(failures, 1), START_BACKOFF, random))


def _stop_on_signals(consumer: Consumer, grace_s: float) -> None:
    """A first signal stops the worker, a second one skips the grace.

    Plain signal handlers, not the loop's: they run even while a handler blocks the loop, and a thread then sees to the deadline.
    """
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        seen.append(number)
        timer = threading.Timer(HARD_S if len(seen) > 1 else grace_s + HARD_S, _leave)
        timer.daemon = True
        timer.start()
        with contextlib.suppress(RuntimeError):  # the loop is closed: only the server's end is still awaited
            loop.call_soon_threadsafe(consumer.stop)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, stop)


def _leave() -> None:
    log.critical("the hard deadline is over: leaving at once, leases will expire by themselves")
    logging.shutdown()
    os._exit(HARD_DEADLINE)
