"""OperationsPage tells how operations over many letters or jobs stand, and stops them or lets them go on."""

from __future__ import annotations

from typing import Final

from board.api import Answerer, Refused
from board.shapes import Nothing, OperationAsk, Operations
from board.shapes import Operation as Shown
from board.viewer import Viewer
from board.words import counted, duration, figure
from runtime.control import Control
from runtime.errors import ConfigError
from runtime.operations import CANARY, Operation
from runtime.store.control import ControlStore

# What was done to one, and what became of one that was left alone: one of them, several.
DONE: Final = {
    "replay": "sent back",
    "trash": "moved to the trash",
    "purge": "deleted",
    "cancel": "cancelled",
    "now": "started",
    "priority": "moved",
}
LEFT: Final = {
    "gone": ("was gone", "were gone"),
    "owned": ("stays: a live job owns its key", "stay: live jobs own their keys"),
    "unreadable": ("stays: it cannot be read", "stay: they cannot be read"),
    "left-out": ("stays: its payload was too large to be kept", "stay: their payloads were too large to be kept"),
    "held": ("stays: a worker has it", "stay: workers have them"),
    "same": ("was so already", "were so already"),
    "full": ("stays: memory is full", "stay: memory is full"),
}
OF_LETTERS: Final = ("replay", "trash", "purge")


class OperationsPage:
    """Answers for operations. Each order is given in its viewer's name."""

    def __init__(self, url: str, queue: str) -> None:
        self._url = url
        self._queue = queue
        self._reader = ControlStore(url, queue, "board")

    async def close(self) -> None:
        """Close the connection."""
        await self._reader.close()

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {
            "GET operations": self.operations,
            "POST operations/stop": self.stop,
            "POST operations/resume": self.resume,
        }

    async def operations(self, ask: Nothing, viewer: Viewer) -> Operations:
        """Return all that are known."""
        return Operations(operations=[shown(one) for one in await self._reader.operations()])

    async def stop(self, ask: OperationAsk, viewer: Viewer) -> Shown:
        """Stop one: the rest stays where it is."""
        async with Control(self._url, self._queue, by=viewer.by) as control:
            try:
                await control.stop_operation(ask.id, reason=ask.reason)
            except ConfigError as error:
                raise Refused(404, "gone", str(error)) from None
            return await self.told(control, ask.id)

    async def resume(self, ask: OperationAsk, viewer: Viewer) -> Shown:
        """Let one go on that was stopped or has braked."""
        async with Control(self._url, self._queue, by=viewer.by) as control:
            try:
                await control.resume_operation(ask.id, reason=ask.reason)
            except ConfigError as error:
                raise Refused(404, "gone", str(error)) from None
            return await self.told(control, ask.id)

    async def told(self, control: Control, name: str) -> Shown:
        """Return one as it stands.

        Raises:
            Refused: it is gone.
        """
        found = await control.operation(name)
        if found is None:
            raise Refused(404, "gone", f"there is no operation {name}")
        return shown(found)


def shown(operation: Operation) -> Shown:
    """Return an operation for people."""
    return Shown(
        id=operation.id,
        verb=operation.verb,
        what=what_of(operation),
        state=operation.state,
        total=operation.total,
        looked=operation.looked,
        done=operation.done,
        refused=operation.refused,
        died=operation.again,
        rate_s=operation.rate,
        who=operation.by,
        reason=operation.reason,
        created_ms=operation.created_ms,
        starts_ms=operation.due_ms or None if operation.state == "held" else None,
        ends_ms=_ends_ms(operation),
        text=text_of(operation),
        can=["stop"] if operation.is_active else ["resume"] if operation.state in ("stopped", "braked") else [],
    )


def what_of(operation: Operation) -> str:
    """Return what is done to which, as a title."""
    if not operation.is_chosen:
        return operation.what
    noun = "letter" if operation.verb in OF_LETTERS else "job"
    verb = f"{operation.verb} {operation.argument}".rstrip()
    return f"{verb} of {counted(operation.total or 0, noun)}"


def text_of(operation: Operation) -> str:
    """Return how an operation stands, in a sentence."""
    wait_ms = max(0, operation.due_ms - operation.read_ms)
    if operation.state == "held":
        return f"nothing is done yet; it starts in {_seconds(wait_ms)}"
    told = [_done(operation), *_left_alone(operation)]
    if operation.again:
        told.append(f"{figure(operation.again)} of them died again")
    if operation.state == "running" and operation.verb == "replay" and operation.done == CANARY and wait_ms > 1000:
        told.append(f"the rest starts in {_seconds(wait_ms)}")
    if operation.state in ("stopped", "braked"):
        told.append(_why(operation))
    return ", ".join(told)


def _done(operation: Operation) -> str:
    of = f" of {figure(operation.total)}" if operation.total is not None and operation.total != operation.done else ""
    return f"{figure(operation.done)}{of} {DONE.get(operation.verb, 'done')}"


def _left_alone(operation: Operation) -> list[str]:
    return [
        f"{figure(n)} {LEFT[why][n > 1] if why in LEFT else f'left where it is: {why[:40]}'}"
        for why, n in sorted(operation.refused.items())
        if n
    ]


def _why(operation: Operation) -> str:
    left = "" if operation.left is None else f"; {figure(operation.left)} are left where they are"
    if operation.state == "braked":
        return f"stopped by its brake: too many died again{left}"
    return f"stopped{f' ({operation.error})' if operation.error else ''}{left}"


def _seconds(ms: int) -> str:
    return duration(-(-ms // 1000) * 1000)


def _ends_ms(operation: Operation) -> int | None:
    """Return when it ended, or will have, as far as can be told."""
    if not operation.is_active:
        return operation.ended_ms or None
    if operation.left is None or operation.rate <= 0:
        return None
    return int(max(operation.read_ms, operation.due_ms) + operation.left * 1000 / operation.rate)
