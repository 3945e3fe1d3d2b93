"""Supervisor starts several worker processes, restarts those that die, replaces those that have grown, and stops them all.

It knows no job. Supervisor and child hold the two ends of a socket, the tether. Over it a child tells that it is ready, that its
loop moves, why it cannot start, and what it did. When the supervisor's end is closed, as it is however the supervisor ends, the
child stops. SIGTERM stops a child, and may come more than once: a service manager sends it to every process of its group, and the
supervisor to its children. SIGINT skips the grace. Children have sessions of their own, so that Ctrl-C at a terminal reaches the
supervisor alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import random
from typing import Final, Self

import msgspec

from runtime import logs
from runtime.backoff import Backoff, delay_s
from runtime.config import SETTINGS, Config, address_of
from runtime.errors import ConfigError, JobsError, LifespanFailed, StoreUnavailable
from runtime.folders import SAFE
from runtime.leaving import FAILED, HARD_DEADLINE, NO_REDIS, status_of

log: Final = logs.guarded("runtime.supervisor")

VARIABLE: Final = "RUNTIME_CHILD"  # index and descriptor of the tether; a child takes it out of its environment
RESTART: Final = Backoff(base_s=0.5, cap_s=30.0)  # a guess; docs/operate.md has the 30 s
STEADY_S: Final = 60.0  # a child that lived this long has a clean record; a guess
LOOK_S: Final = 0.5  # between two looks at the children; a guess: the least `--max-block`
ALIVE_S: Final = 0.25  # between two messages of a child whose loop moves: half a look, so that none comes between two
LATE_S: Final = 1.0  # past a child's own hard deadline: then it is killed; a guess
LAST_MESSAGES_S: Final = 1.0  # for what a child sent before its end: a child of it may hold the tether open; a guess
REAP_S: Final = 1.0  # at the end, for what is told of the dead; a guess: a healthy Redis takes milliseconds
END_TICK_S: Final = 0.02  # between two looks whether all have ended; a guess
MAX_TEXT: Final = 10_000  # characters of a child's error; well under what a socket takes at once (some 200 kB)
MB: Final = 1024 * 1024
BOARD_HOST: Final = "127.0.0.1"  # of the children: the supervisor's board alone is for others


class Ready(msgspec.Struct, frozen=True, tag=True):
    """A child fetches jobs as `worker`; `url` is its board's, and `base_bytes` is its memory before its first job."""

    url: str
    base_bytes: int
    worker: str = ""


class Alive(msgspec.Struct, frozen=True, tag=True):
    """The loop of a child moves."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A child cannot start, and ends with `status`; the operator must act."""

    text: str
    status: int


class Ended(msgspec.Struct, frozen=True, tag=True):
    """A child has stopped: how many runs it finished, and how many jobs it gave back or left to their leases."""

    finished: int
    released: int
    left: int


class Ordered(msgspec.Struct, frozen=True, tag=True):
    """People have ordered this worker to stop: a child is not replaced after that, however it ends."""


ChildMessage = Ready | Alive | Failed | Ended | Ordered
_DECODER: Final = msgspec.json.Decoder(ChildMessage)


class Tether:
    """The child's end of the socket. Owns a thread that waits for the supervisor's end, also while a handler holds the loop."""

    def __init__(self, index: int, descriptor: int) -> None:
        self.index = index
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)  # else what a handler starts would keep it open
        threading.Thread(target=self._stop_at_its_end, name="tether", daemon=True).start()

    @classmethod
    def taken(cls) -> Self | None:
        """Return the tether that the supervisor left in the environment; None in a process that has no supervisor."""
        given = os.environ.pop(VARIABLE, "")
        return cls(*map(int, given.split(":"))) if given else None

    def send(self, message: ChildMessage) -> None:
        """Send the supervisor a message. It is lost where the supervisor has ended, or reads no more: the loop is not held."""
        with contextlib.suppress(OSError):
            self._socket.send(msgspec.json.encode(message) + b"\n", socket.MSG_DONTWAIT)

    def fail(self, error: JobsError) -> int:
        """Tell the supervisor why this process cannot start. Return its exit status."""
        status = status_of(error)
        self.send(Failed(str(error)[:MAX_TEXT], status))
        return status

    def _stop_at_its_end(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket.recv(64):
                pass
        os.kill(os.getpid(), signal.SIGTERM)


class Child:
    """One process from its start to its end, as its supervisor sees it. Owns the supervisor's end of the tether."""

    def __init__(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid: int = process.pid
        self.born_s: float = time.monotonic()
        self.ready: Ready | None = None
        self.failed: Failed | None = None
        self.ended: Ended = Ended(0, 0, 0)
        self.is_ordered: bool = False  # to stop, by people
        self.silent_looks: int = 0  # since its last message; not seconds, which go on while the machine is suspended
        self._process = process
        self._reader = reader
        self._writer = writer

    def __repr__(self) -> str:
        return f"<Child {self.pid}{' ready' if self.ready else ''}>"

    def send_signal(self, which: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(which)

    async def wait(self, on_ready: Callable[[], None]) -> int:
        """Read its messages until it ends. Return its exit status, negative for a signal."""
        reading = asyncio.create_task(self._read_messages(on_ready))
        try:
            status = await self._process.wait()
            await asyncio.wait([reading], timeout=LAST_MESSAGES_S)
            return status
        finally:
            reading.cancel()
            self._writer.close()

    async def _read_messages(self, on_ready: Callable[[], None]) -> None:
        with contextlib.suppress(OSError):
            async for line in self._reader:
                self.silent_looks = 0
                try:
                    message: ChildMessage = _DECODER.decode(line)
                except msgspec.DecodeError as error:  # of another version, installed while the supervisor runs: it lives
                    log.warning("pid %d sent a message that this version does not know: %s", self.pid, error)
                    continue
                match message:
                    case Alive():
                        pass
                    case Ready():
                        self.ready = message
                        on_ready()
                    case Failed():
                        self.failed = message
                    case Ended():
                        self.ended = message
                    case Ordered():
                        self.is_ordered = True


class Slot:
    """A number among a supervisor's processes: one child after another has it, and with it a port for health and metrics."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.child: Child | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.ready: asyncio.Event = asyncio.Event()  # a child has been ready in this slot, once
        self.is_retired = False
        self.was_ordered = False  # the child that was here, to stop

    def send_signal(self, which: signal.Signals) -> None:
        """Send a signal to the child that is in this slot now, if there is one."""
        if self.child is not None:
            self.child.send_signal(which)


class Total(msgspec.Struct):
    """What all children did, and how the supervisor ended."""

    seconds: float = 0.0
    finished: int = 0
    released: int = 0
    left: int = 0
    deaths: int = 0
    recycled: int = 0
    status: int = 0

    def __str__(self) -> str:
        left = f", {self.left} left to their leases" if self.left else ""
        deaths = f"; processes that died and were replaced: {self.deaths}" if self.deaths else ""
        recycled = f"; recycled: {self.recycled}" if self.recycled else ""
        work = f"{self.finished} runs finished, {self.released} jobs given back{left}"
        return f"stopped in {self.seconds:.1f} s: {work}{deaths}{recycled}"


class Supervisor:
    """Owns the children. `hard_s`: a child's own hard deadline is so many seconds after its grace, or after a second signal.

    `reap` tells the store that a worker is dead, whose process has ended and left something: its jobs need not wait for its
    leases to end. It is called beside everything else, and holds nothing up: while the store is away, children are started again
    all the same, and the leases end by themselves. So they do where the supervisor dies before.
    """

    def __init__(
        self, config: Config, url: str, hard_s: float, reap: Callable[[str], Coroutine[None, None, object]] | None = None
    ) -> None:
        self.total: Total = Total()
        self.slots: dict[int, Slot] = {}
        self._config = config
        self._url = url
        self._hard_s = hard_s
        self._reap = reap
        self._reaping = set[asyncio.Task[object]]()
        self._stop = asyncio.Event()
        self._stopping_since_s = 0.0
        self._leave_by_s = float("inf")
        self._error: JobsError | None = None
        self._has_started = False

    def __repr__(self) -> str:
        ready = sum(1 for slot in self.slots.values() if slot.child and slot.child.ready)
        return f"<Supervisor of {len(self.slots)}, {ready} ready{', stopping' if self._stop.is_set() else ''}>"

    @property
    def is_stopping(self) -> bool:
        """Return whether the supervisor has been told to stop."""
        return self._stop.is_set()

    @property
    def boards(self) -> dict[int, str]:
        """The URLs of the boards of the children that are ready, by slot."""
        return {
            index: slot.child.ready.url
            for index, slot in sorted(self.slots.items())
            if slot.child is not None and slot.child.ready is not None
        }

    def stop(self) -> None:
        """Have all children stop; a second call skips the grace."""
        now_s = time.monotonic()
        if self._stop.is_set():
            self._leave_by_s = min(self._leave_by_s, now_s + self._hard_s + LATE_S)
            self._signal_all(signal.SIGINT)
        else:
            self._stopping_since_s = now_s
            self._leave_by_s = now_s + self._config.grace_s + self._hard_s + LATE_S
            self._stop.set()
            self._signal_all(signal.SIGTERM)

    async def run(self) -> Total:
        """Keep the children until told to stop, and until all have ended.

        Raises:
            ConfigError, StoreUnavailable: a child could not start, before all had; the text is the child's.
        """
        async with asyncio.TaskGroup() as group:
            for index in range(self._config.processes):
                self._open(group, index)
            aides = [group.create_task(self._kill_hung())]
            if self._config.max_rss_mb:
                aides.append(group.create_task(self._replace_overgrown(group)))
            await self._stop.wait()
            for aide in aides:
                aide.cancel()
            await self._until_all_have_ended()
        await self._end_reaping()
        if self._error is not None:
            raise self._error
        self.total.seconds = time.monotonic() - self._stopping_since_s
        return self.total

    async def _until_all_have_ended(self) -> None:
        while any(slot.keeper and not slot.keeper.done() for slot in self.slots.values()):
            if time.monotonic() > self._leave_by_s:
                if self.total.status != HARD_DEADLINE:
                    log.critical("the hard deadline is over: killing what still runs, leases will expire by themselves")
                self.total.status = HARD_DEADLINE
                self._signal_all(signal.SIGKILL)
            await asyncio.sleep(END_TICK_S)

    def _reap_child(self, child: Child, status: int) -> None:
        """Have the store told that a child is dead, unless it has left in peace: then nobody knows it any more."""
        if self._reap is None or child.ready is None or not child.ready.worker or (status == 0 and not child.ended.left):
            return
        task = asyncio.create_task(self._reap(child.ready.worker), name=f"reap {child.ready.worker}")
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    async def _end_reaping(self) -> None:
        """Wait a moment for what is being told of the dead."""
        if self._reaping:
            _, late = await asyncio.wait(self._reaping, timeout=REAP_S)
            for task in late:
                task.cancel()

    def _signal_all(self, which: signal.Signals) -> None:
        for slot in self.slots.values():
            slot.send_signal(which)

    # --- one slot -------------------------------------------------------------------------------------------------------

    def _open(self, group: asyncio.TaskGroup, index: int) -> Slot:
        slot = self.slots[index] = Slot(index)
        slot.keeper = group.create_task(self._keep(slot))
        return slot

    async def _keep(self, slot: Slot) -> None:
        """Run one child after another in this slot, until the supervisor stops or the slot is retired."""
        failures = 0
        while not (self._stop.is_set() or slot.is_retired):
            began_s = time.monotonic()
            how = await self._run_child(slot)
            if self._stop.is_set() or slot.is_retired:
                return
            if slot.was_ordered:
                self._close(slot, how)
                return
            lived_s = time.monotonic() - began_s
            failures = 1 if lived_s >= STEADY_S else failures + 1
            self.total.deaths += 1
            pause_s = delay_s(failures, RESTART, random)
            log.error("process %d %s after %.1f s: another starts in %.1f s", slot.index, how, lived_s, pause_s)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()

    def _close(self, slot: Slot, how: str) -> None:
        """Let nothing follow in this slot; the supervisor ends with the last one."""
        del self.slots[slot.index]
        slot.ready.set()  # whoever waits for it need not
        log.info("process %d %s, as ordered: none takes its place", slot.index, how)
        if not self.slots:
            self.stop()

    async def _run_child(self, slot: Slot) -> str:
        """Run one child in this slot. Return how it ended, for the log."""
        try:
            child = await self._start(slot.index)
        except OSError as error:
            return f"could not be started ({error.strerror})"
        slot.child = child
        if self._stop.is_set() or slot.is_retired:  # meanwhile, when the slot had no child yet that a signal could reach
            child.send_signal(signal.SIGTERM)
        status = await child.wait(lambda: self._on_ready(slot, child))
        slot.child = None
        slot.was_ordered = child.is_ordered
        self._reap_child(child, status)
        self._add_up(child, status)
        why = f": {child.failed.text}" if child.failed else ""
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        return f"(pid {child.pid}) {how}{why}"

    async def _start(self, index: int) -> Child:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, SAFE, "-m", "runtime", "run"),
                    env=self._environment(index, theirs.fileno()),
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
        except BaseException:
            ours.close()
            raise
        return Child(process, *await asyncio.open_unix_connection(sock=ours))

    def _environment(self, index: int, descriptor: int) -> dict[str, str]:
        """Return a child's environment, with its settings: a URL may hold a password, and arguments are in every process list."""
        address = address_of(self._config.board)
        board = "off" if address is None else f"{BOARD_HOST}:{address[1] + 1 + index if address[1] else 0}"
        config = msgspec.structs.replace(self._config, redis=self._url, board=board, board_pages="off", processes=1, max_rss_mb=0)
        settings = {setting.variable: str(getattr(config, setting.field)) for setting in SETTINGS}
        return {**os.environ, **settings, VARIABLE: f"{index}:{descriptor}"}

    def _on_ready(self, slot: Slot, child: Child) -> None:
        slot.ready.set()
        if not self._has_started and all(slot.ready.is_set() for slot in self.slots.values()):
            self._has_started = True
            log.info("all %d processes are ready", len(self.slots))
        base_bytes = child.ready.base_bytes if child.ready else 0
        if 0 < self._config.max_rss_mb * MB < base_bytes:
            text = "process %d has %d MB before its first job, more than --max-rss %d: it is not recycled"
            log.warning(text, slot.index, base_bytes // MB, self._config.max_rss_mb)

    def _add_up(self, child: Child, status: int) -> None:
        self.total.finished += child.ended.finished
        self.total.released += child.ended.released
        self.total.left += child.ended.left
        if self._stop.is_set() or child.is_ordered:
            self.total.status = max(self.total.status, status)  # negative when SIGTERM came before its signal handler was set
        elif child.failed is not None and not self._has_started:
            kinds: dict[int, type[JobsError]] = {NO_REDIS: StoreUnavailable, FAILED: LifespanFailed}
            kind = kinds.get(child.failed.status, ConfigError)
            self._error = kind(child.failed.text)
            self.stop()
            self.stop()  # without grace

    # --- children that hang, children that have grown ---------------------------------------------------------------------

    async def _kill_hung(self) -> None:
        """Kill each child whose loop has stood still for `max_block_s`: its heartbeat has ended, and it can give nothing back."""
        while True:
            await asyncio.sleep(LOOK_S)
            for slot in self.slots.values():
                child = slot.child
                if child is None or child.ready is None:
                    continue
                child.silent_looks += 1
                if child.silent_looks * LOOK_S > self._config.max_block_s:
                    log.error("process %d has not moved for %g s: killing it", slot.index, self._config.max_block_s)
                    child.send_signal(signal.SIGKILL)

    async def _replace_overgrown(self, group: asyncio.TaskGroup) -> None:
        """Replace children that have grown too large, one at a time: the old one is stopped when the new one is ready."""
        while True:
            await asyncio.sleep(LOOK_S)
            old = self._overgrown()
            if old is None:
                continue
            free = next(index for index in range(self._config.processes + 1) if index not in self.slots)
            log.info("process %d is over %d MB: process %d takes its slot", old.index, self._config.max_rss_mb, free)
            await self._open(group, free).ready.wait()
            self.total.recycled += 1
            await self._retire(old)

    def _overgrown(self) -> Slot | None:
        limit_bytes = self._config.max_rss_mb * MB
        for slot in self.slots.values():
            child = slot.child
            if child and child.ready and not child.is_ordered and child.ready.base_bytes <= limit_bytes < rss_bytes(child.pid):
                return slot
        return None

    async def _retire(self, slot: Slot) -> None:
        slot.is_retired = True
        slot.send_signal(signal.SIGTERM)
        if slot.keeper is not None:
            _, late = await asyncio.wait([slot.keeper], timeout=self._config.grace_s + self._hard_s + LATE_S)
            if late:
                slot.send_signal(signal.SIGKILL)
                await asyncio.wait(late)
        self.slots.pop(slot.index, None)  # it may have been ordered to stop meanwhile


def rss_bytes(pid: int | str) -> int:
    """Return the resident memory of a process; 0 when it has ended, or where the system has no /proc."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def check(config: Config) -> None:
    """Check that a supervisor can do what the settings ask for.

    Raises:
        ConfigError: memory cannot be read here, or there are too few ports for the children's boards.
    """
    if config.max_rss_mb and not rss_bytes("self"):
        raise ConfigError("--max-rss: needs /proc to read the memory of processes, which this system does not have")
    address = address_of(config.board)
    last = config.processes + 1
    if address is not None and address[1] + last > 65535:
        raise ConfigError(f"--board {config.board}: the port must be {65535 - last} or lower, for the {last} ports behind it")
