"""The nemesis of a storm: three hands that do harm at the same time, to processes, to the server, and to the lines to it.

Every fault is written down with whom it hit and for how long. What it hit is judged afterwards, from all histories.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import redis

from tests.faults.ledger import NEMESIS, RUNS, STARVED_S, WATCH_S, Back, Exit, Fault, Line, Pen, Starved, now_s
from tests.faults.worker import LEASE_S, Worker
from tests.proxy import Proxy
from tests.servers import Server

PROCESS_KINDS = ("kill", "stop", "deploy")
SERVER_KINDS = ("server-kill-short", "server-kill-long", "pause", "debug-sleep", "client-kill", "script-flush", "squeeze")
LINE_KINDS = ("drop-reply", "cut-reply", "stall", "latency", "half-open", "reset")
KINDS = (*PROCESS_KINDS, *SERVER_KINDS, *LINE_KINDS)

GRACE_S = 2.0
EXIT_S = GRACE_S + 10  # a worker that has not left by then is killed, and the figure says so
LATENCY_S = 0.2
DEAF_S = 7.0  # longer than any client waits for an answer
ARMED_S = 4.0  # longer than a worker is frozen: it comes back to be hit
# A cut reply ends within its first bytes; what it answers to is one of these.
REQUESTS = (b"XACK", b"XREADGROUP", b"EVALSHA")
SENDS = b"EVALSHA"
AT_SENDER = 0.25  # of the faults of lines


def deck(kinds: Sequence[str], rng: Random) -> Iterator[str]:
    """Return all kinds in a random order, again and again: each comes as often as the others."""
    while True:
        cards = list(kinds)
        rng.shuffle(cards)
        yield from cards


class Slot:
    """A place for one worker, with its own line to the server."""

    def __init__(self, proxy: Proxy | None) -> None:
        self.proxy = proxy
        self.worker: Worker | None = None
        self.is_busy = False  # a fault is on it, or it is being replaced


class Nemesis:
    """Owns the workers of a storm and everything that is done to them."""

    def __init__(
        self,
        server: Server,
        history: Path,
        rng: Random,
        slots: list[Slot],
        sender: Proxy | None,
        options: Sequence[str] = (),
        *,
        has_killers: bool = False,
    ) -> None:
        self.server = server
        self.history = history
        self.slots = slots
        self.pen = Pen(history / NEMESIS)
        self._sender = sender
        self._options = options
        self._has_killers = has_killers
        self._rng = rng
        self._leaving: set[asyncio.Task[None]] = set()
        self._leaving_pids: set[int] = set()
        self.is_over = False  # the hands finish what they are at
        self.strange: list[str] = []

    def note(self, *lines: Line) -> None:
        self.pen.note(*lines)

    @property
    def leaves(self) -> Collection[str]:
        """What is no leftover in this storm."""
        return ()

    @property
    def pids(self) -> list[int]:
        """The workers that are there, those on their way out too."""
        return [slot.worker.pid for slot in self.slots if slot.worker] + sorted(self._leaving_pids)

    # --- workers ---------------------------------------------------------------------------------------------------------

    def hire(self, slot: Slot) -> None:
        url = slot.proxy.url if slot.proxy else ""
        slot.worker = Worker(self.server, self.history, "--grace", str(GRACE_S), *self._options, url=url)

    async def supervise(self) -> None:
        """Replace workers that ended by themselves, for ever: at the start, without a server, they may; at work only where
        jobs that kill them are about.
        """
        while True:
            for slot in self.slots:
                worker = slot.worker
                if worker and not slot.is_busy and worker.process.poll() is not None:
                    if self._has_killers and worker.process.returncode == -signal.SIGKILL:
                        self.note(Fault("kill", [worker.pid], now_s(), now_s()))
                    elif self._has_worked(worker):
                        self.note(Exit(worker.pid, 0.0, worker.process.returncode))
                        self.strange.append(f"worker {worker.pid} ended with {worker.process.returncode}: {worker.log[-2000:]}")
                    self.hire(slot)
            await asyncio.sleep(0.1)

    async def watch(self) -> None:
        """Write down when this process, which carries all lines, or the server got no time of a core, for ever."""
        while True:
            pids, from_s = self.pids, now_s()
            with contextlib.suppress(redis.RedisError):
                await self._tell("PING")
            await asyncio.sleep(WATCH_S)
            if now_s() - from_s >= STARVED_S:
                self.note(Starved(pids, from_s, now_s()))

    async def _pick(self) -> Slot:
        """Return a worker that has jobs to lose, and is not in our hands already."""
        while True:
            ready = [slot for slot in self.slots if not slot.is_busy and slot.worker and self._runs(slot.worker) > 0]
            if ready or self.is_over:
                return self._rng.choice(ready or self.slots)
            await asyncio.sleep(0.05)

    def _has_worked(self, worker: Worker) -> bool:
        return "start" in self._kinds(worker)

    def _runs(self, worker: Worker) -> int:
        """Return how many jobs a worker runs now, by what it has written down."""
        return sum(1 if kind == "start" else -1 for kind in self._kinds(worker) if kind in RUNS)

    def _kinds(self, worker: Worker) -> list[str]:
        """Return the first word of each line that a worker has written down."""
        path = self.history / f"{worker.pid}.log"
        return [line.partition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []

    async def harm_processes(self, kinds: Sequence[str], gap_s: float) -> None:
        """Kill, freeze and replace workers, until it is over."""
        for kind in deck(kinds, self._rng):
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * gap_s)
            if self.is_over:
                return
            slot = await self._pick()
            slot.is_busy = True
            try:
                await getattr(self, f"_{kind}")(slot)
            finally:
                slot.is_busy = False

    async def _kill(self, slot: Slot) -> None:
        assert slot.worker
        worker, at_s = slot.worker, now_s()
        worker.kill()
        self.note(Fault("kill", [worker.pid], at_s, now_s()))
        self.hire(slot)

    async def _stop(self, slot: Slot) -> None:
        assert slot.worker
        worker, at_s = slot.worker, now_s()
        worker.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(self._rng.uniform(0.5, 2) * LEASE_S)
        finally:
            worker.send(signal.SIGCONT)
            self.note(Fault("stop", [worker.pid], at_s, now_s()))

    async def _deploy(self, slot: Slot) -> None:
        assert slot.worker
        old = slot.worker
        self._leaving_pids.add(old.pid)
        task = asyncio.create_task(self._see_off(old, "deploy"))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
        self.hire(slot)

    async def _see_off(self, worker: Worker, kind: str) -> None:
        """Tell a worker to stop, and write down how long it took."""
        at_s = now_s()
        worker.send(signal.SIGTERM)
        while worker.process.poll() is None and now_s() - at_s < EXIT_S:
            await asyncio.sleep(0.01)
        seconds = now_s() - at_s
        was_killed = self._has_killers and worker.process.poll() == -signal.SIGKILL  # by one of its jobs
        worker.kill()
        status = 0 if was_killed else worker.process.returncode
        if kind:
            self.note(Fault(kind, [worker.pid], at_s, now_s()))
        self.note(Exit(worker.pid, seconds, 0 if status == 4 else status))  # 4: the hard deadline, with the server away
        self._leaving_pids.discard(worker.pid)

    async def dismiss(self) -> None:
        """Tell all workers to stop, and wait for them."""
        await asyncio.gather(*self._leaving)
        await asyncio.gather(*[self._see_off(slot.worker, "") for slot in self.slots if slot.worker])

    def kill_all(self) -> None:
        for slot in self.slots:
            if slot.worker:
                slot.worker.kill()
        for task in self._leaving:
            task.cancel()

    # --- the server ------------------------------------------------------------------------------------------------------

    async def harm_server(self, kinds: Sequence[str], gap_s: float) -> None:
        """Kill, pause and squeeze the server, and make it forget, until it is over."""
        for kind in deck(kinds, self._rng):
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * gap_s)
            if self.is_over:
                return
            pids, at_s = self.pids, now_s()
            await getattr(self, "_" + kind.replace("-", "_"))()
            self.note(Fault(kind, pids, at_s, now_s(), at_sender=True))

    async def _server_kill_short(self) -> None:
        await self._server_kill(self._rng.uniform(0.1, 0.7) * LEASE_S)

    async def _server_kill_long(self) -> None:
        await self._server_kill(self._rng.uniform(1.2, 2) * LEASE_S)

    async def _server_kill(self, outage_s: float) -> None:
        self.server.kill()
        try:
            await asyncio.sleep(outage_s)
        finally:
            await asyncio.to_thread(self.server.start)
        self.note(Back(now_s()))

    async def _pause(self) -> None:
        wait_s = self._rng.uniform(0.3, 2) * LEASE_S
        await self._tell("CLIENT", "PAUSE", int(wait_s * 1000), self._rng.choice(["ALL", "WRITE"]))
        await asyncio.sleep(wait_s)

    async def _debug_sleep(self) -> None:
        await self._tell("DEBUG", "SLEEP", f"{self._rng.uniform(0.3, 2) * LEASE_S:.2f}")

    async def _client_kill(self) -> None:
        await self._tell("CLIENT", "KILL", "TYPE", "normal")

    async def _script_flush(self) -> None:
        await self._tell("SCRIPT", "FLUSH")

    async def _squeeze(self) -> None:
        """Half the memory that is used is all there is, for a while."""
        used = (await self._tell("INFO", "memory"))["used_memory"]
        await self._tell("CONFIG", "SET", "maxmemory", used // 2)
        try:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * LEASE_S)
        finally:
            await self._tell("CONFIG", "SET", "maxmemory", 0)

    async def _tell(self, *command: str | int) -> Any:
        def ask() -> Any:
            client: redis.Redis = self.server.client()
            try:
                return client.execute_command(*command)
            finally:
                client.close()

        return await asyncio.to_thread(ask)

    # --- lines -----------------------------------------------------------------------------------------------------------

    async def harm_lines(self, kinds: Sequence[str], gap_s: float) -> None:
        """Drop replies, stall, delay and break lines, until it is over."""
        for kind in deck(kinds, self._rng):
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * gap_s)
            if self.is_over:
                return
            await self._harm_a_line(kind)

    async def _harm_a_line(self, kind: str) -> None:
        """One client's line suffers: of a worker that works, or of the sender."""
        if self._sender is not None and self._rng.random() < AT_SENDER:
            acted_from = await self._harm(kind, self._sender)
            self.note(Fault(kind, [], acted_from[0], now_s(), acted_from[1], at_sender=True))
            return
        slot = await self._pick()
        assert slot.worker
        assert slot.proxy
        pid = slot.worker.pid
        from_s, acted = await self._harm(kind, slot.proxy)
        self.note(Fault(kind, [pid], from_s, now_s(), acted))

    async def _harm(self, kind: str, proxy: Proxy) -> tuple[float, bool]:
        """Do it; give since when, and whether it met anything."""
        from_s, acted = now_s(), True
        try:
            match kind:
                case "drop-reply" | "cut-reply":
                    acted = await self._cut_a_reply(proxy, 0 if kind == "drop-reply" else self._rng.randint(1, 8))
                case "stall":
                    proxy.stall()
                    await asyncio.sleep(self._rng.uniform(0.3, 2) * LEASE_S)
                case "latency":
                    proxy.latency_s = LATENCY_S
                    await asyncio.sleep(self._rng.uniform(0.5, 1.5) * LEASE_S)
                case "half-open":
                    acted = proxy.deafen() > 0
                    end_s = now_s() + DEAF_S
                    while any(line.is_deaf for line in proxy.lines) and now_s() < end_s:
                        await asyncio.sleep(0.05)
                case _:
                    acted = proxy.reset() > 0
        finally:
            proxy.calm()
        return from_s, acted

    async def _cut_a_reply(self, proxy: Proxy, cut_at_bytes: int) -> bool:
        before, end_s = proxy.dropped, now_s() + ARMED_S
        to = SENDS if proxy is self._sender else self._rng.choice(REQUESTS)
        proxy.drop_next_reply(to, cut_at_bytes)
        while proxy.dropped == before and now_s() < end_s:
            await asyncio.sleep(0.01)
        return proxy.dropped > before
