"""What a producer asks of the store: to take a chunk of messages, and to confirm that it is as durable as was asked."""

from __future__ import annotations

import re
from typing import Any, Final, cast

import msgspec

from runtime.errors import ConfigError, StoreUnavailable
from runtime.jobs import STREAMS
from runtime.store.base import Store, setting
from runtime.store.connection import ANSWER_S, Connection
from runtime.store.resp import Command, ServerError, Tail
from runtime.store.urls import without_password

MAX_REPLICAS: Final = 1000  # a guess: more than any server has
# What a server answers to a script that it does not run, or `send` before it writes. Any other error may be that of a proxy,
# which does not know what became of the call.
NOTHING_WRITTEN: Final = frozenset(
    (
        *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NOAUTH", "NOPERM", "NOREPLICAS"),
        *("NOSCRIPT", "OOM", "READONLY", "UNKILLABLE", "WRONGTYPE"),
    )
)
_ENTRY_ID: Final = rb"([0-9]{1,20}-[0-9]{1,20})?"
_FIRST_IDS: Final = re.compile(b" ".join([_ENTRY_ID] * len(STREAMS)))


class Durability(msgspec.Struct, frozen=True):
    """What a send waits for: the server's disk, or the memory of so many replicas; neither is `local`."""

    fsync: bool = False
    replicas: int = 0

    def __str__(self) -> str:
        return "fsync" if self.fsync else f"replicas={self.replicas}" if self.replicas else "local"


LOCAL: Final = Durability()


def durability_of(text: str) -> Durability:
    """Return the durability that a word names: `local`, `fsync`, `replicas=2`.

    Raises:
        ConfigError: it names none.
    """
    number = str(text).removeprefix("replicas=")
    if number != text and number.isascii() and number.isdigit() and 1 <= int(number) <= MAX_REPLICAS:
        return Durability(replicas=int(number))
    if text not in ("local", "fsync"):
        raise ConfigError(f"durability {text!r}: must be one of local, fsync, replicas=1 to replicas={MAX_REPLICAS}")
    return Durability(fsync=text == "fsync")


class SendStore(Store):
    """A producer's verb. Owns one connection, over which every chunk is stored with the same durability."""

    def __init__(self, url: str, queue: str, durability: Durability = LOCAL, answer_s: float = ANSWER_S) -> None:
        super().__init__(url, queue)
        self.durability = durability
        self._answer_s = answer_s
        self._connection = Connection(url, "producer", answer_s)
        self._asked = ("", 0)  # the connection that was asked whether its server can confirm
        self._confirms = durability != LOCAL

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def ready(self) -> None:
        """Open the connection if it is closed, and ask its server whether it can confirm what it stores.

        Raises:
            ConfigError: this server can never confirm as is asked; nothing was written.
            StoreUnavailable: no connection, no answer or an error.
        """
        await self._connection.ready()
        if self.durability.fsync:
            await self._ask()
            # It may have been closed meanwhile. The call that follows at once awaits nothing before its request is written.
            await self._connection.ready()

    async def _ask(self) -> None:
        """Ask each new connection once whether its server can confirm."""
        connection = (self._connection.run_id, self._connection.client_id)
        if connection != self._asked:
            answer = (await self._connection.call(("WAITAOF", 1, 0, 1)))[0]  # nothing was written yet: answers at once
            self._confirms = not isinstance(answer, ServerError)
            if isinstance(answer, ServerError):
                await self._check_always(answer)
            self._asked = connection

    async def store(self, mark: str, mark_ms: int, messages: Tail) -> list[Any]:
        """Store a chunk, and return the script's reply. May be repeated while the chunk's mark lives, for `mark_ms`.

        Raises:
            QueueFull: memory is full; nothing was written.
            StoreError: another error of which it is known that nothing was written.
            StoreUnavailable: no answer, or one that does not say what became of it.
        """
        answer = (await self.ask(self._connection, self.command("send", mark, mark_ms, messages)))[0]
        if isinstance(answer, ServerError):
            if answer.code in NOTHING_WRITTEN:
                self.checked(answer)
            raise StoreUnavailable(f"Redis answered: {answer}")
        if not _is_reply(answer):
            raise self._strange(answer)
        return answer

    def _strange(self, answer: Any) -> StoreUnavailable:
        return StoreUnavailable(f"Redis at {without_password(self.url)} answered what is no answer to this: {repr(answer)[:80]}")

    async def confirm(self, wait_s: float) -> str:
        """Wait until what was stored last is as durable as this store's sends are; return why it is not, or nothing.

        A round trip of its own: an idle server that gets both at once finds out 100 ms later that its disk has long been done.
        It is asked over the connection that wrote: it confirms that connection's last write, and another one has written nothing.

        Raises:
            StoreUnavailable: no answer, or the server is no master any more.
        """
        if not self._confirms:
            return ""
        confirmation = self._confirmation(max(1, round(wait_s * 1000)))  # 0 would wait without end
        answers = await self._connection.call(confirmation, wait_s=wait_s + self._answer_s)
        return self._doubt(answers[0], wait_s)

    def _confirmation(self, wait_ms: int) -> Command:
        if self.durability.fsync:
            return ("WAITAOF", 1, 0, wait_ms)
        return ("WAIT", self.durability.replicas, wait_ms)

    async def _check_always(self, refusal: ServerError) -> None:
        if refusal.code != "ERR":
            self.checked(refusal)  # LOADING and the like pass
        appendonly, fsync = await self._connection.call(("CONFIG", "GET", "appendonly"), ("CONFIG", "GET", "appendfsync"))
        if (setting(appendonly), setting(fsync)) == ("yes", "always"):
            return
        where = f"Redis at {without_password(self.url)}"
        if setting(appendonly) == "no":
            why, fix = "has no append-only file", "CONFIG SET appendonly yes"
        else:
            why, fix = "is older than 7.2 and cannot confirm single sends", "CONFIG SET appendfsync always confirms every send"
        raise ConfigError(f"durability fsync: {where} {why}; nothing was sent; hint: {fix}, or durability local")

    def _doubt(self, confirmed: Any, waited_s: float) -> str:
        """Compare what was confirmed with what was asked."""
        if isinstance(confirmed, ServerError):
            if confirmed.code != "ERR":
                self.checked(confirmed)  # UNBLOCKED: this server is no master any more, and what it stored may go
            return f"stored, but not confirmed on disk: {confirmed}"
        wanted = self.durability.replicas or 1
        # WAIT answers a number, WAITAOF two of them, that of the server's own disk first.
        numbers = [confirmed] if not self.durability.fsync else cast("list[Any]", confirmed) if type(confirmed) is list else []
        found: Any = numbers[0] if numbers else None
        if type(found) is not int:
            raise self._strange(confirmed)
        if found >= wanted:
            return ""
        who = "its disk has not" if self.durability.fsync else f"only {found} of {wanted} replicas have"
        return f"stored, but {who} confirmed it within {waited_s:.1f} s"


def _is_reply(answer: Any) -> bool:
    """Return whether it is what send.lua answers: what stands between us and Redis may answer anything."""
    if type(answer) is not list or len(cast("list[Any]", answer)) != 6:
        return False
    *ids, copies, refused = cast("list[Any]", answer)
    try:
        if not _FIRST_IDS.fullmatch(b" ".join(ids)):
            return False
    except TypeError:
        return False
    if not (copies or refused):  # nearly always, and this is asked of each send
        return type(copies) is type(refused) is list
    return type(copies) is type(refused) is list and all(
        len(some) % 2 == 0 and all(type(one) is int for one in some[::2]) and all(type(one) is bytes for one in some[1::2])
        for some in (copies, refused)
    )
