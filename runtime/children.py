"""Children are the processes in which handlers run apart from their worker: started, asked, used again, and killed.

Each has a socket of its own with the worker, over which frames go (`frames`), a session of its own, so that Ctrl-C at a terminal
reaches the worker alone and a kill reaches what the handler has started, and a part of the environment. It runs one call at a
time, and is used again where it has answered that one and sent nothing else: the newest first, so that those that are not needed
grow old and are ended.

- The worker dies: the kernel kills its children (Linux), and each ends when its socket is closed. What they
  have started goes on.
- The child dies while it is started: the socket ends before it has said that it is ready, and `ask` raises NotStarted.
- It dies while it runs: the socket ends, `ask` raises EOFError, and its whole session is killed.
- It died while it was idle: that is seen before it is asked. Where it dies in that very moment, it has not read its call to the
  end: the kernel says so (a reset), and another one is asked.
- A cancel, at whichever await: the child is killed, whether it had its call, or a part of it. It is never used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import fnmatch
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Generator, Mapping, Sequence
from contextvars import Context, ContextVar
from pathlib import Path
from typing import Final

from runtime import child as starter
from runtime.channel import channel
from runtime.config import WITHHELD, names_in
from runtime.errors import NotStarted
from runtime.folders import SAFE
from runtime.frames import HEADER, MAX_ANSWER_BYTES, READY, Buffer, NoFrame, lengths, room

MAX_IDLE_S: Final = 300.0  # copied from anyio: then a child that was not needed is ended
END_S: Final = 2.0  # for a child to close what it has open when it is to end; a guess: as long as the worker's own lifespans have
REAP_S: Final = 0.001  # from a kill to the first look whether it has ended; twice as long each time, up to REAP_MAX_S. Guesses
REAP_MAX_S: Final = 0.1
LAST_S: Final = 1.0  # for all that were killed when their loop ends; a guess: the kernel takes milliseconds
CHUNK_BYTES: Final = 256 << 10  # a guess: about what a socket holds
TURN_BYTES: Final = 1 << 20  # that are read in one turn of the loop, a guess: a millisecond
FIRST_LOOKED_AT: Final = 3  # the first descriptor that is not a standard stream

# What children get of the worker's environment: where things are, how people write, and how libraries use the machine.
GIVEN: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "PYTHON*", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "MALLOC_*", "OMP_*", "OPENBLAS_*", "MKL_*", "SSL_CERT_*"),
    *("RUNTIME_HANDLERS_CONFIG", "RUNTIME_HANDLERS__*"),
)
# Set by each worker for its lanes: what else children get, names and globs, with commas between. None, as in tests, is what a
# variable says.
CHILD_ENV: ContextVar[str | None] = ContextVar("child_env", default=None)
VARIABLE: Final = "RUNTIME_CHILD_ENV"
IN_CHILD: Final = "RUNTIME_IN_CHILD"  # there in children alone, for error texts that say why a variable is not there


def environment_of_children(environment: Mapping[str, str], more: str | None) -> dict[str, str]:
    """Return what children get of an environment, where `more` names what they get beside GIVEN."""
    globs = [*GIVEN, *names_in(environment.get(VARIABLE, "") if more is None else more)]
    given = {
        name: value
        for name, value in environment.items()
        if not WITHHELD.fullmatch(name) and any(fnmatch.fnmatchcase(name, glob) for glob in globs)
    }
    return {**given, IN_CHILD: "1"}


class Child:
    """One process, and the worker's end of its socket."""

    __slots__ = ("connection", "idle_since_s", "is_new", "process")

    def __init__(self, process: subprocess.Popen[bytes], connection: socket.socket) -> None:
        self.process: subprocess.Popen[bytes] = process
        self.connection: socket.socket = connection
        self.is_new: bool = True
        self.idle_since_s: float = 0.0

    def __repr__(self) -> str:
        return f"<Child {self.process.pid}>"

    @property
    def is_silent(self) -> bool:
        """Whether it lives, as far as its socket says, and has sent nothing: what it answers next is asked for."""
        try:
            self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def kill(self) -> None:
        """Kill it with all that it has started in its session; nothing where it is reaped, and its number another's."""
        self.connection.close()
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


class Children:
    """Owns the children of a loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._alive = set[Child]()  # or not yet reaped
        self._idle: list[Child] = []  # the newest last
        # A task, since whoever ends a loop cancels those; of no lane's context.
        self._keeper = asyncio.Task(self._live(), loop=loop, name="children of handlers", context=Context())

    def __repr__(self) -> str:
        return f"<Children: {len(self._alive)}, {len(self._idle)} idle>"

    async def _live(self) -> None:
        try:
            await self._loop.create_future()
        finally:
            self._end()

    def _end(self) -> None:
        """Kill all, and see them end: nothing does after the loop."""
        _children.pop(self._loop, None)
        for child in self._alive:
            child.kill()
        end_s = time.monotonic() + LAST_S
        for child in self._alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.0, end_s - time.monotonic()))

    # --- asking --------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def taken(self) -> Generator[Child]:
        """Have a child in the block, an idle one or a new one; where the block raises, it is killed.

        Raises:
            NotStarted: there is no idle one, and none could be started.
        """
        try:
            child = self._take()
        except OSError as error:
            raise NotStarted(f"no child process could be started: {error}") from error
        try:
            yield child
        except BaseException:
            self.kill(child)
            raise
        child.is_new, child.idle_since_s = False, time.monotonic()
        self._idle.append(child)

    def _take(self) -> Child:
        while self._idle:
            child = self._idle.pop()
            if child.is_silent:
                self._end_old()
                return child
            self._let_end(child, END_S)  # it has died, or ends, or nobody knows what it says next
        return self._start()

    def _start(self) -> Child:
        here, there = socket.socketpair()
        with there:
            try:
                here.setblocking(False)
                process = _started(there)
            except BaseException:
                here.close()
                raise
        child = Child(process, here)
        self._alive.add(child)
        return child

    # --- ending --------------------------------------------------------------------------------------------------------------

    def kill(self, child: Child) -> None:
        """Kill a child and what it has started."""
        child.kill()
        self._reap(child, 0.0)

    def _end_old(self) -> None:
        """Let those end that were not needed for long."""
        before_s = time.monotonic() - MAX_IDLE_S
        while self._idle and self._idle[0].idle_since_s < before_s:
            self._let_end(self._idle.pop(0), END_S)

    def _let_end(self, child: Child, within_s: float) -> None:
        """Let a child close what it has open, and end; kill it where it does not in time."""
        child.connection.close()
        self._reap(child, time.monotonic() + within_s)

    def _reap(self, child: Child, kill_at_s: float, pause_s: float = REAP_S) -> None:
        """Look again and again whether it has ended: the system keeps what is left of it until somebody looks."""
        if child.process.returncode is None and kill_at_s and time.monotonic() >= kill_at_s:
            child.kill()
            kill_at_s = 0.0
        if child.process.poll() is not None:
            self._alive.discard(child)
        elif not self._loop.is_closed():
            self._loop.call_later(pause_s, self._reap, child, kill_at_s, min(2 * pause_s, REAP_MAX_S), context=Context())

    async def end_idle(self, within_s: float) -> None:
        """Let those that run nothing end, and return when they have."""
        ending, self._idle = self._idle, []
        for child in ending:
            self._let_end(child, within_s)
        while self._alive.intersection(ending):
            await asyncio.sleep(REAP_S)


_children: Final = weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Children]()


def children() -> Children:
    """Return the children of the running loop."""
    loop = asyncio.get_running_loop()
    found = _children.get(loop)
    if found is None:
        found = _children[loop] = Children(loop)
    return found


async def end_idle_children(within_s: float) -> None:
    """Let the children that run nothing come to an end of their own, with what they have open; kill those that do not in time."""
    found = _children.get(asyncio.get_running_loop())
    if found is not None:
        await found.end_idle(within_s)


def _started(there: socket.socket) -> subprocess.Popen[bytes]:
    """Return a process that runs what comes over this socket."""
    spare = None
    if there.fileno() < FIRST_LOOKED_AT:  # a standard stream is closed here; there, this number is another file
        spare = fcntl.fcntl(there, fcntl.F_DUPFD_CLOEXEC, FIRST_LOOKED_AT)
    descriptor = there.fileno() if spare is None else spare
    try:
        return subprocess.Popen(
            [sys.executable, SAFE, str(Path(starter.__file__)), str(descriptor)],
            stdin=subprocess.DEVNULL,
            stdout=_standard_error(),
            pass_fds=(descriptor, channel().there),
            env=environment_of_children(os.environ, CHILD_ENV.get()),
            start_new_session=True,
        )
    finally:
        if spare is not None:
            os.close(spare)


def _standard_error() -> int:
    try:
        os.fstat(2)
    except OSError:
        return subprocess.DEVNULL
    return 2


# --- over the socket ----------------------------------------------------------------------------------------------------------


def _path() -> bytes:
    """Return where a new child finds modules: the worker's main file, and its path."""
    main = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    told = b"\0".join(map(os.fsencode, (main, *sys.path)))
    return starter.LENGTH.pack(len(told)) + told


async def ask(child: Child, call: Sequence[Buffer], most_body_bytes: int) -> tuple[Buffer, Buffer]:
    """Return head and body of what a child answers to a call.

    Raises:
        NotStarted: it is new, and has ended before it could be asked.
        NotTaken: it has ended before it had read the call, and was idle before.
        EOFError: it has ended.
        NoFrame: it has sent something else, or more than an answer may have.
    """
    loop, connection = asyncio.get_running_loop(), child.connection
    if child.is_new:
        await _begin(connection)
    try:
        for part in call:
            await loop.sock_sendall(connection, part)
        data = await loop.sock_recv(connection, CHUNK_BYTES)
    except ConnectionError as error:  # bytes of it are not sent, or not read: the kernel resets where some are left
        raise (EOFError if child.is_new else NotTaken)("it has ended before it had its call") from error
    return await _answer(connection, data, most_body_bytes)


async def _begin(connection: socket.socket) -> None:
    """Tell a new child where modules are, and wait until it can be asked."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(connection, _path())
        said = await loop.sock_recv(connection, len(READY))
    except ConnectionError:
        said = b""
    if said != READY:
        raise NotStarted("the child process has ended while it was started")


class NotTaken(Exception):
    """The child has not taken its call: it has ended before, and another may be asked."""


async def _answer(connection: socket.socket, data: bytes, most_body_bytes: int) -> tuple[Buffer, Buffer]:
    if len(data) < HEADER.size:
        data += await _rest(connection, HEADER.size - len(data))
    head_bytes, body_bytes = lengths(data[: HEADER.size], MAX_ANSWER_BYTES, most_body_bytes)
    body_at = HEADER.size + head_bytes
    if len(data) > body_at + body_bytes:
        raise NoFrame("it has sent more than its answer")
    if len(data) < body_at:
        data += bytes(await _rest(connection, body_at - len(data)))
    view = memoryview(data)
    return view[HEADER.size : body_at], await _rest(connection, body_bytes, view[body_at:]) if body_bytes else b""


async def _rest(connection: socket.socket, size: int, begun: Buffer = b"") -> Buffer:
    """Return so many bytes, of which the first have come already."""
    loop, found = asyncio.get_running_loop(), room(size)
    found[: len(begun)] = begun
    view, at, rest_at = memoryview(found), len(begun), TURN_BYTES
    while at < size:
        try:
            received = await loop.sock_recv_into(connection, view[at : at + CHUNK_BYTES])
        except ConnectionError:
            received = 0
        if not received:
            raise EOFError("it has ended in its answer")
        at += received
        if at >= rest_at:  # what is there is read at once, and a child that always has more would hold the loop
            rest_at = at + TURN_BYTES
            await asyncio.sleep(0)
    return view
