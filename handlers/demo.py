"""`python -m handlers.demo`: runs a worker on an embedded server, a mail server that refuses some mails, and a stream of jobs."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import mailbox
import os
import shlex
import signal
import socket
import sys
import urllib.request
from collections import Counter, deque
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from handlers.demo_partner import partner
from handlers.demo_screen import Screen, say
from handlers.demo_shop import prepare
from handlers.demo_traffic import Traffic
from runtime import Producer

try:
    from aiosmtpd.smtp import SMTP
except ImportError:
    raise SystemExit("the demo needs a mail server: pip install aiosmtpd") from None
try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

READY_S: Final = 60.0  # a guess: a busy machine starts Python and a server in far less
BUSY_TRIES: Final = 2  # so that the last of the three attempts that `_busy` gives a mail succeeds
MAX_MAILS: Final = 500  # a guess: the demo may run for days, and its mails must not fill the disk
MAX_SOCKET_BYTES: Final = 100  # sun_path has 104 bytes on macOS, 108 on Linux
PR_SET_PDEATHSIG: Final = 1  # <linux/prctl.h>
HANDLERS: Final = "handlers,handlers.demo_jobs"


# --- the mail server -----------------------------------------------------------------------------------------------------


class Sink:
    """Stores mails in a Maildir, and refuses those whose recipient's local part asks for it.

    `refused…`: 550 at RCPT; `busy…`: 451 twice for each address, then fine; `full…`: 552 at DATA.
    """

    def __init__(self, folder: Path) -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._mails = mailbox.Maildir(folder)
        self._kept: deque[str] = deque()
        self._tries: Counter[str] = Counter()

    async def handle_RCPT(self, server: SMTP, session: Any, envelope: Any, address: str, options: list[str]) -> str:
        """Return the answer to a recipient."""
        if address.startswith("refused"):
            return "550 5.1.1 no such mailbox"
        if address.startswith("busy"):
            self._tries[address] += 1
            if self._tries[address] <= BUSY_TRIES:
                return "451 4.2.1 busy, come again"
            del self._tries[address]
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 fine"

    async def handle_DATA(self, server: SMTP, session: Any, envelope: Any) -> str:
        """Return the answer to a mail."""
        if any(address.startswith("full") for address in envelope.rcpt_tos):
            return "552 5.2.2 mailbox full"
        await asyncio.to_thread(self._keep, envelope.content)
        return "250 2.0.0 taken"

    def _keep(self, content: bytes) -> None:
        self._kept.append(self._mails.add(content))
        if len(self._kept) > MAX_MAILS:
            self._mails.discard(self._kept.popleft())


@contextlib.asynccontextmanager
async def sink(folder: Path) -> AsyncGenerator[int]:
    """Run the mail server on a free port of the loopback interface, and yield the port."""
    handler = Sink(folder)
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(handler, hostname="sink.localhost"), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


# --- the worker ----------------------------------------------------------------------------------------------------------


async def start_worker(folder: Path, board: str) -> asyncio.subprocess.Process:
    """Start the worker in a session of its own, so that Ctrl-C reaches only this process, which passes it on once."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "runtime", "run", "--handlers", HANDLERS),
        *("--handlers-config", str(folder / "handlers.toml"), "--data-dir", str(folder / "data")),
        *("--board", board, "--lease", "10", "--grace", "10", "--log", "json"),
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _end_with_parent() -> None:
    """Have the kernel stop the worker when this process is killed; only on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


async def wait_until_ready(board: str) -> None:
    """Return when the worker fetches jobs.

    Raises:
        TimeoutError: it does not within `READY_S`.
    """
    async with asyncio.timeout(READY_S):
        while True:
            if await asyncio.to_thread(_is_ready, f"http://{board}/readyz"):
                return
            await asyncio.sleep(0.1)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 -- our worker's http:// address
            return answer.status == 200
    except OSError:
        return False


def free_address(wanted: str) -> str:
    """Return the address if it is free, else one of the same host with a free port.

    Raises:
        ValueError: it is not HOST:PORT, or not an address of this machine.
    """
    host, _, port = wanted.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:8080")
    problem: Exception | None = None
    for each in (int(port), 0):
        try:
            with socket.create_server((host, each)) as probe:
                return f"{host}:{probe.getsockname()[1]}"
        except (OSError, OverflowError) as error:
            problem = error
    raise ValueError(problem)


# --- all of it -----------------------------------------------------------------------------------------------------------


async def run(folder: Path, board: str) -> int:
    """Run everything until a signal comes or the worker ends; return the worker's exit status."""
    store = f"unix://{folder / 'data' / 's.sock'}"
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    screen = Screen(folder / "worker.log")
    async with sink(folder / "maildir") as smtp_port, partner(folder) as partner_port:
        prepare(folder, smtp_port, partner_port)
        worker = await start_worker(folder, board)
        if worker.stderr is None:
            raise RuntimeError("the worker was started without a pipe")
        following = asyncio.create_task(screen.follow(worker.stderr), name="screen")
        ended = asyncio.create_task(worker.wait(), name="worker")
        show = asyncio.create_task(_send_traffic(folder, board, store), name="traffic")
        stopping = asyncio.create_task(stop.wait(), name="signal")
        await asyncio.wait([ended, show, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not show.done():
            show.cancel()
        await asyncio.wait([show])
        if ended.done():
            say(f"the worker ended without being told to, with status {ended.result()}")
        else:
            await _end(worker, ended, stop)
        stopping.cancel()
        await following  # the worker has ended: so has what it says
        screen.close()
        if not show.cancelled():
            show.result()  # raise what ended it
    status = ended.result()
    return status if status >= 0 else 128 - status


async def _end(worker: asyncio.subprocess.Process, ended: asyncio.Task[int], stop: asyncio.Event) -> None:
    """Stop the worker and wait for it; every further signal is passed on, and makes it skip a stage of stopping."""
    while not ended.done():
        stop.clear()
        with contextlib.suppress(ProcessLookupError):
            worker.terminate()
        again = asyncio.create_task(stop.wait())
        await asyncio.wait([ended, again], return_when=asyncio.FIRST_COMPLETED)
        again.cancel()


async def _send_traffic(folder: Path, board: str, store: str) -> None:
    try:
        await wait_until_ready(board)
    except TimeoutError:
        say(f"the worker was not ready within {READY_S:g} s")
        return
    say(_welcome(folder, board))
    raw = redis.asyncio.Redis.from_url(store, retry=Retry(NoBackoff(), 0))  # pyright: ignore[reportUnknownMemberType]
    async with Producer.connect(store, source="demo") as producer, raw:
        await Traffic(producer, raw, folder).run(say)


def _login_link(folder: Path, board: str) -> str:
    """Return the link by which the board may do everything; its address alone where the file with the link is not there."""
    try:
        return (folder / "data" / f"board-{board.rpartition(':')[2]}.link").read_text("ascii").strip()
    except OSError:
        return f"http://{board}/"


def _welcome(folder: Path, board: str) -> str:
    runtime, data = f"{_python()} -m runtime", f"--data-dir {shlex.quote(_short(folder / 'data'))}"
    handlers = f"--handlers {HANDLERS} --handlers-config {shlex.quote(_short(folder / 'handlers.toml'))}"
    return f"""
  mails     {folder / "maildir" / "new"}
  files     {folder / "exports"}: CSV and PDF; {folder / "reports"}; {folder / "backups"}; {folder / "models"}
  found     {folder / "evidence"}: in packages and in logs
  told      {folder / "notifications.jsonl"}, by a webhook
  log       {folder / "worker.log"}; here, the first line of each kind
  metrics   http://{board}/metrics
  health    http://{board}/readyz

  Jobs are sent until Ctrl-C, of every shipped type first: mails, a newsletter, notifications, exports of a shop's orders as CSV,
  invoices and reports as PDF, imports of a stock, contacts of a CRM, backups, logs to clean up, a model that learns who stays and
  answers, a look for vulnerable packages and for attacks, an audit. Some wait for their turn: images, 3 at a time; a partner,
  told 5 orders a second; reports, one at a time for each customer; the stock, every 5 seconds; payments, at once, whatever else
  there is to do; long imports, which say how far they are. And trouble of every kind: mails and contacts that are refused,
  previews that crash their child process, a handler that blocks the loop, types and versions that nobody knows. In another
  terminal:

    {runtime} top {data}
    {runtime} doctor {data}
    {runtime} dead list {data}
    {runtime} pause demo-tell-partner --for 30s {data}
    {runtime} limits set demo-resize-image --limit 1 {data}
    {runtime} cron list {data} {handlers}

  board     {_login_link(folder, board)}
"""


def _python() -> str:
    return shlex.quote(_short(Path(sys.executable)))


def _short(path: Path) -> str:
    """Return a path as a user would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> int:
    """Parse the arguments and run; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m handlers.demo",
        description="Run a worker with live demo jobs that succeed, fail, are retried and become dead letters.",
    )
    parser.add_argument(
        "--folder", default=".run", metavar="FOLDER", help="the folder for everything that it writes; default .run"
    )
    parser.add_argument(
        "--board",
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="the board's address; another port if it is taken; default 127.0.0.1:8080",
    )
    arguments = parser.parse_args()
    folder = Path(arguments.folder).absolute()
    if len(os.fsencode(folder / "data" / "s.sock")) > MAX_SOCKET_BYTES:
        parser.error(f"--folder {folder}: the path must be shorter, to hold a socket")
    try:
        board = free_address(arguments.board)
    except ValueError as error:
        parser.error(f"--board {arguments.board}: {error}")
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(run(folder, board))


if __name__ == "__main__":
    sys.exit(main())
