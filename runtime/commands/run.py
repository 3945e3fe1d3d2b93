"""`run`: a worker or a supervisor of several, with its board, its embedded server, and the signals that stop it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from otel.settings import ExportSettings
from otel.settings import load as load_export
from runtime import __version__, logs, supervisor
from runtime.commands.common import find_handlers, use_settings
from runtime.commands.flags import add_settings, add_texts
from runtime.config import Config, address_of
from runtime.consumer import CANCELLED, START_TRIES, Consumer, Report, patiently, streams_for
from runtime.embedded import Embedded
from runtime.errors import ConfigError, JobsError, StoreUnavailable
from runtime.leaving import CLEAN, CRASHED, HARD_DEADLINE, LEFT_S, Leaving, has_threads
from runtime.process import end_fork, hide_memory
from runtime.registry import Found, install, of_queue
from runtime.rubbish import Rubbish, resident_reader
from runtime.settle import describe
from runtime.store.connection import one_connection
from runtime.store.deaths import Reaper
from runtime.store.doctor import check_server
from runtime.store.inspector import Inspector, Server
from runtime.store.urls import redis_cli, without_password
from runtime.supervisor import Alive, Ended, Ordered, Ready, Supervisor, Tether, Total
from runtime.worker.forks import guard

if TYPE_CHECKING:
    from otel.tracing import Tracing

log: Final = logs.guarded("runtime")
T = TypeVar("T")

HARD_S: Final = 4.0  # after the grace, or after a second signal, as docs/operate.md promises; a guess
FRUITLESS: Final = 10_000  # ends of the loop without a turn in between: then it may have no file descriptor any more; a guess
STOPPED_LOGGED_S: Final = 1.0  # between two lines that the loop was stopped; a guess
READY_TICK_S: Final = 0.05  # between two looks whether the worker is ready; a guess
ALIVE: Final = Alive()
TRACED_S: Final = 2.0  # for spans that are not sent yet at the end; a guess: half of the hard deadline


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Run jobs until SIGTERM or Ctrl-C; a second one skips the grace of jobs that still run.",
        "python -m runtime run --handlers myapp.jobs --redis redis://127.0.0.1:6379 --concurrency 500",
        "python -m runtime run --handlers myapp.jobs --processes 4 --max-rss 500",
    )
    add_settings(parser)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run jobs until a signal stops it. Return the exit status."""
    if not config.debuggable:
        hide_memory()
    tether = Tether.taken()
    logs.setup(config.log, config.log_level)
    use_settings(config)
    if tether is not None:
        return _as_child(config, tether)
    found, export = None, load_export(os.environ)
    if config.processes > 1 or config.max_rss_mb > 0:
        supervisor.check(config)
    else:
        found = _find(config)
    embedded = None if config.redis else Embedded(Path(config.data_dir), config.embedded_port)
    if embedded is None:
        one_connection(config.redis)  # raises on a bad URL, before anything starts
    else:
        embedded.start()  # here, in the main thread: the kernel ends the server when the thread that started it ends
    leaving = Leaving(embedded.stop) if embedded is not None else Leaving()
    work = _supervise(config, embedded, leaving) if found is None else _work(config, found, embedded, leaving, export=export)
    try:
        return _run_process(work, leaving)
    finally:
        if embedded is not None:
            embedded.stop()


def _as_child(config: Config, tether: Tether) -> int:
    """Run jobs as a child of a supervisor, which prints the errors and the last line for all its children."""
    leaving = Leaving()
    try:
        return _run_process(_work(config, _find(config, tether), None, leaving, tether, load_export(os.environ)), leaving, tether)
    except JobsError as error:
        return tether.fail(error)


def _run_process(work: Coroutine[Any, Any, Report | Total], leaving: Leaving, tether: Tether | None = None) -> int:
    """Run the loop of this process from its start to its end. Return the exit status.

    Raises:
        JobsError: the work could not start.
    """
    runner = asyncio.Runner(loop_factory=loop_factory())
    guard(leaving, "crashed", "end_soon")
    try:
        report = _run_to_end(runner, work)
    except JobsError:  # it could not start
        raise
    except Exception as error:
        leaving.crashed(error)
        return CRASHED  # without closing the runner: it would wait for what runs
    except asyncio.CancelledError:
        leaving.crashed(RuntimeError(f"the worker was cancelled: {CANCELLED}"))
        raise
    except BaseException:
        leaving.end_soon()
        raise
    status = _report_end(report, leaving, tether)
    if not has_threads():  # closing waits for threads of the loop's executor
        # What still runs is a handler's and changes nothing any more, such as a task that exits when it is cancelled.
        with contextlib.suppress(BaseException), leaving.bounded(status):
            runner.get_loop().set_task_factory(None)
            runner.close()
    return status


def _run_to_end(runner: asyncio.Runner, work: Coroutine[Any, Any, T]) -> T:
    """Run the loop until this work has ended. Return its result.

    A callback or task of a handler may stop the loop, or raise past it, as `sys.exit` does, and as a filter of the log may when
    the loop logs that a callback failed: then the loop is run again.
    """
    here = os.getpid()
    task: asyncio.Task[T] | None = None
    fruitless, silent_until_s = 0, 0.0

    async def run() -> T:
        nonlocal task
        task = cast("asyncio.Task[T] | None", asyncio.current_task())
        return await work

    def turn() -> None:
        nonlocal fruitless
        fruitless = 0

    while True:
        try:
            return runner.run(run()) if task is None else runner.get_loop().run_until_complete(task)
        except BaseException as error:
            end_fork(here, error)
            loop = runner.get_loop()
            fruitless += 1
            if task is not None and task.done() and not task.cancelled():
                return task.result()  # uvloop raises what a callback raised only after the work has ended
            # Ctrl-C before our signal handlers were set, or a loop that can go on no more.
            if task is None or task.done() or loop.is_closed() or fruitless > FRUITLESS:
                raise
            now_s = time.monotonic()
            if now_s >= silent_until_s:
                silent_until_s = now_s + STOPPED_LOGGED_S
                text = "something that a handler began has stopped the loop, which is not the end of the worker: %s"
                log.error(text, describe(error))
        loop.call_soon(turn)


def _find(config: Config, tether: Tether | None = None) -> Found:
    found, elsewhere = of_queue(find_handlers(config), config.queue)
    for queue, types in elsewhere.items() if tether is None or tether.index == 0 else ():
        told = "1 type of queue %s is" if len(types) == 1 else f"{len(types)} types of queue %s are"
        log.info(f"{told} not run here (queue %s): %s", queue, config.queue, ", ".join(types))
    for module, extra in found.missing if tether is None or tether.index == 0 else ():
        log.warning("%s is not offered here: %s", module, install(extra))
    return found


def _tell_shipped(config: Config, found: Found, tether: Tether | None = None) -> None:
    """Log which types run here, where nobody has named any: `python -m runtime` alone may be typed to see what there is."""
    if config.handlers == Config().handlers and (tether is None or tether.index == 0):
        names = ", ".join(sorted(name.decode() for name in found.registry))
        log.warning("running the shipped types, and none of yours: %s; hint: --handlers myapp.jobs", names)


def _report_end(report: Report | Total, leaving: Leaving, tether: Tether | None = None) -> int:
    """Print the last line, or send the supervisor what it has to add up. Return the exit status."""
    status = report.status if isinstance(report, Total) else CLEAN
    leaving.set_status(status)
    if tether is not None and isinstance(report, Report):
        tether.send(Ended(report.finished, report.released, report.left))
    else:
        leaving.write(f"runtime: {report}")
    return status


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes the loop that workers run on: uvloop's, where it can be installed."""
    try:
        import uvloop
    except ImportError:  # not there on Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop


async def _supervise(config: Config, embedded: Embedded | None, leaving: Leaving) -> Total:
    url = config.redis or (embedded.url if embedded else "")
    reaper = Reaper(url, config.queue)
    children = Supervisor(config, url, HARD_S, partial(reaper.reap_within, for_s=config.lease_s))
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(reaper.close)
        where = "no board"
        address = address_of(config.board)
        if address is not None:
            from board.pages import open_board  # with aiohttp, which is loaded only with a board
            from board.supervisor import SupervisorBoard

            board = await open_board(stack, config, url, lambda pages: SupervisorBoard(children, *address, pages))
            where = f"board at {board.url}"
        aides = [asyncio.create_task(embedded.keep(), name="Embedded.keep")] if embedded is not None else []
        _stop_on_signals(children.stop, leaving, config.grace_s, 2 * HARD_S)  # the children's own hard deadlines come first
        kept = f"embedded server {url}" if embedded else without_password(url)
        log.info("supervisor of %d processes, queue %s on %s, %s", config.processes, config.queue, kept, where)
        return await _beside(aides, children.run(), leaving)


async def _work(
    config: Config,
    found: Found,
    embedded: Embedded | None,
    leaving: Leaving,
    tether: Tether | None = None,
    export: ExportSettings | None = None,
) -> Report:
    url = config.redis or (embedded.url if embedded else "")

    def leave(report: Report) -> None:
        """End the process from inside of the loop, which cannot be closed: a lane's handler swallows its cancel."""
        if tracing is not None:
            tracing.close(LEFT_S)
        if embedded is not None:
            embedded.stop()
        leaving.end_now(_report_end(report, leaving, tether), wait_s=LEFT_S)

    inspector, tracing = Inspector(url, config.queue, "board"), None
    try:
        for warning in check_server(await _reach(inspector, embedded), redis_cli(url)):
            log.log(logging.WARNING if tether is None or tether.index == 0 else logging.DEBUG, "%s", warning)
        resident = resident_reader()
        rubbish = Rubbish(time.monotonic, resident)
        streams = streams_for(config, url)
        tracing = _begin_tracing(config, export, url, streams.consumer)
        consumer = Consumer(
            config,
            streams,
            found.registry,
            leave=leave,
            on_crash=leaving.crashed,
            collect=rubbish.look,
            on_stop_order=partial(_stop_as_ordered, tether),
            schedules=found.schedules.values(),
            lifespans=found.lifespans,
            hooks=found.hooks,
            observer=tracing,
            resident=resident,
            version=__version__,
        )
        async with contextlib.AsyncExitStack() as stack:
            board_url = await _open_board(stack, consumer, inspector, tracing, url)
            aides = [asyncio.create_task(embedded.keep(), name="Embedded.keep")] if embedded is not None else []
            if tether is not None:
                ready = Ready(board_url, supervisor.rss_bytes("self"), consumer.name)
                aides.append(asyncio.create_task(_report_to(consumer, tether, ready), name="report"))
            _stop_on_signals(consumer.stop, leaving, config.grace_s, HARD_S, is_child=tether is not None)
            kept = f"embedded server {url}" if embedded else without_password(url)
            log.info(
                "worker %s: %d lanes, %d types, queue %s on %s, %s",
                consumer.name,
                config.concurrency,
                len(found.registry),
                config.queue,
                kept,
                f"board at {board_url}" if board_url else "no board",
            )
            _tell_shipped(config, found, tether)
            rubbish.begin()
            return await _beside(aides, consumer.run(), leaving)
    finally:
        if tracing is not None:
            tracing.close(TRACED_S)
        await inspector.close()


def _begin_tracing(config: Config, export: ExportSettings | None, url: str, worker: str) -> Tracing | None:
    """Return what traces this worker's jobs; None where traces are off.

    Raises:
        ConfigError: a variable of the SDK's own cannot be used.
    """
    if export is None:
        return None
    try:
        from otel.tracing import begin  # with OpenTelemetry's SDK, which is loaded only to trace
    except ValueError as error:  # the SDK reads its limits then, OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT and its like
        raise ConfigError(str(error)) from None
    return begin(config, export, url, worker)


async def _open_board(
    stack: contextlib.AsyncExitStack, consumer: Consumer, inspector: Inspector, tracing: Tracing | None, url: str
) -> str:
    """Serve the board as long as the stack lasts; return its URL, empty where it is off."""
    config, address = consumer.config, address_of(consumer.config.board)
    if address is None:
        return ""
    from board.app import Board  # with aiohttp, which is loaded only with a board
    from board.pages import open_board

    trace = tracing.reading if tracing is not None else lambda: None
    board = await open_board(stack, config, url, lambda pages: Board(consumer, inspector, *address, trace, pages))
    return board.url


async def _beside(aides: list[asyncio.Task[None]], work: Coroutine[Any, Any, T], leaving: Leaving) -> T:
    """Run `work` beside aides, which are cancelled with its end. An aide that ends before has crashed, and ends the process."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait([task, *aides], return_when=asyncio.FIRST_COMPLETED)
        for aide in aides:
            if aide.done() and not task.done():
                error = RuntimeError(f"{aide.get_name()} was cancelled: {CANCELLED}") if aide.cancelled() else aide.exception()
                error = error or RuntimeError(f"{aide.get_name()} has ended")
                leaving.crashed(error)
                task.cancel()
                await asyncio.wait([task])
                raise error
        return await task
    finally:
        for aide in aides:
            aide.cancel()


async def _reach(inspector: Inspector, embedded: Embedded | None) -> Server:
    """Return what the server tells of itself. One that loads its data is waited for, however long that takes.

    Raises:
        StoreUnavailable: no answer after START_TRIES.
        ConfigError: the embedded server cannot be started again.
    """
    try:
        if embedded is not None:
            with contextlib.suppress(StoreUnavailable):
                return await patiently(inspector.server, START_TRIES)
            embedded.start()  # the one that answered was ending, as its owner just had; in the main thread, as at first
        return await patiently(inspector.server, START_TRIES)
    except StoreUnavailable as error:
        hint = "hint: is it running? --redis or REDIS_URL names it; without either, the embedded server is used"
        raise StoreUnavailable(f"{error} (tried {START_TRIES} times); {hint}") from None


async def _report_to(consumer: Consumer, tether: Tether, ready: Ready) -> None:
    """Tell the supervisor once that this process is ready, and then again and again that its loop moves; ends never."""
    while not consumer.is_ready:
        await asyncio.sleep(READY_TICK_S)
    tether.send(ready)
    while True:
        await asyncio.sleep(supervisor.ALIVE_S)
        tether.send(ALIVE)


def _stop_as_ordered(tether: Tether | None) -> None:
    """Stop as at a SIGTERM, with its hard deadline; a supervisor replaces this process no more."""
    if tether is not None:
        tether.send(Ordered())
    os.kill(os.getpid(), signal.SIGTERM)


def _stop_on_signals(
    stop: Callable[[], None], leaving: Leaving, grace_s: float, hard_s: float, *, is_child: bool = False
) -> None:
    """Call `stop` at a first signal, and again at a second one, which skips the grace.

    A supervisor's child takes only SIGINT for that: it may get SIGTERM twice, from its supervisor and from a service manager.
    These are plain signal handlers, not the loop's: they run even while a handler of jobs blocks the loop, and the deadline that
    they arm is a thread's.
    """
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        must_hurry = number == signal.SIGINT if is_child else bool(seen)
        if seen and not must_hurry:
            return
        calls = 1 + (must_hurry and not seen)
        seen.append(number)
        wait_s = hard_s if must_hurry else grace_s + hard_s
        leaving.end_after(wait_s, HARD_DEADLINE, "the hard deadline is over, leases will expire")
        with contextlib.suppress(RuntimeError):  # the loop is closed: only the embedded server's end is still awaited
            for _call in range(calls):
                loop.call_soon_threadsafe(stop)

    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, on_signal)
