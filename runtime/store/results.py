"""What those who wait for results ask of the store: which are there, who tells of new ones, and where a job is that has none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Any, Final

from runtime.codec import read_letter, summary
from runtime.errors import StoreUnavailable
from runtime.jobs import FREE, GATE, OVERFLOW, STREAMS, SUSPECT, UNKNOWN, default_id
from runtime.results import DEAD, MAX_TEXT_BYTES, Result, parse
from runtime.store.base import GROUP, LOOK_AT, Store, is_code
from runtime.store.connection import ANSWER_S, Connection
from runtime.store.inspector import local_time
from runtime.store.resp import Command, ServerError, TooLarge

READ_AT_ONCE: Final = 100  # results in a round trip, a guess: 6 MB at most
# Entries in a round trip at most, a guess: some 50 MB where all are as large as a job may be. The first pages are smaller: what
# is looked for is mostly among the newest.
PAGE: Final = 40
MAX_ANSWER_BYTES: Final = 64 << 20  # a guess: what a page may have; of entries that no worker would take, it has fewer


class ResultStore(Store):
    """The verbs of those who wait. Owns three connections: one listens, one reads results, one looks for jobs that have none."""

    def __init__(self, url: str, queue: str, answer_s: float = ANSWER_S) -> None:
        super().__init__(url, queue)
        self._listener = Connection(url, "producer:listen", answer_s)
        self._reader = Connection(url, "producer:results", answer_s, most_bytes=MAX_ANSWER_BYTES)
        self._looker = Connection(url, "producer:look", answer_s, most_bytes=MAX_ANSWER_BYTES)

    async def close(self) -> None:
        """Close the connections."""
        for connection in (self._listener, self._reader, self._looker):
            await connection.close()

    async def listen(
        self, on_ids: Callable[[list[str]], None], on_heard: Callable[[], None], is_needed: Callable[[], bool]
    ) -> None:
        """Hand on the ids of jobs of which there is news, until nobody needs it.

        `on_heard` is called when the subscription stands, and every few seconds as long as it does.

        Raises:
            StoreUnavailable: no connection, or it ended; or this user may not listen.
        """
        refused: list[ServerError] = []

        def hear(push: Any) -> None:
            match push:
                case [b"message", bytes(), bytes(ids)]:
                    on_ids(ids.decode(errors="replace").split())
                case ServerError():
                    refused.append(push)
                case _:  # it is subscribed, or has answered that it still is
                    on_heard()

        await self._listener.listen(self.keys.results, hear, lambda: not refused and is_needed())
        if refused:
            raise StoreUnavailable(f"Redis answered: {refused[0]} ({self.keys.results})")

    async def read(self, ids: Sequence[str]) -> dict[str, Result]:
        """Return what is kept of these jobs. What a stranger has put in the place of a result is none.

        Raises:
            StoreUnavailable: no answer.
        """
        # No GET: what stands there may be anybody's, of any size.
        reads: list[Command] = [("GETRANGE", self.keys.result(job_id), 0, MAX_TEXT_BYTES) for job_id in ids]
        found: dict[str, Result] = {}
        for job_id, answer in zip(ids, await self.ask(self._reader, *reads), strict=True):
            if isinstance(answer, ServerError) and answer.code not in ("WRONGTYPE", "NOPERM"):
                self.checked(answer)
            result = parse(answer) if isinstance(answer, bytes) and answer else None
            if result is not None:
                found[job_id] = result
        return found

    async def look(self, ids: Collection[str]) -> dict[str, Result | str]:
        """Return of jobs without a result what is true now: a result after all, how each died, or where it is, in words.

        Looks at the newest LOOK_AT entries of each stream and dead letters.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: dict[str, Result | str] = {}
        wanted = list(ids)
        for start in range(0, len(wanted), READ_AT_ONCE):
            found.update(await self.read(wanted[start : start + READ_AT_ONCE]))
        found.update(await self._delayed({*wanted} - found.keys()))
        for stream, name in enumerate(STREAMS):
            found.update(await self._placed(stream, name, {*wanted} - found.keys()))
        found.update(await self.letters({*wanted} - found.keys()))
        return {job_id: found.get(job_id, _GONE) for job_id in wanted}

    async def letters(self, ids: Collection[str], newest: int = LOOK_AT) -> dict[str, Result]:
        """Return how those of these jobs died that are dead letters, among the newest.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found: dict[str, Result] = {}
        async for row in self._newest(self.keys.dead, newest, lambda: len(found) < len(ids)):
            job_id = summary(row[1]).id
            if job_id in ids and job_id not in found:
                death, _ = read_letter(row[1])
                found[job_id] = Result(DEAD, death.at_ms, reason=death.reason, error=death.error, attempts=death.attempts)
        return found

    async def _delayed(self, ids: Collection[str]) -> dict[str, str]:
        wanted = list(ids)
        scores = await self.ask(self._looker, *[("ZSCORE", self.keys.due, job_id) for job_id in wanted]) if wanted else []
        return {
            job_id: f"it is delayed until {local_time(score)}"
            for job_id, score in zip(wanted, scores, strict=True)
            if isinstance(score, bytes)
        }

    async def _placed(self, stream: int, name: str, ids: Collection[str]) -> dict[str, str]:
        """Return who holds those of these jobs that are entries of a stream."""
        entries: dict[str, bytes] = {}
        async for entry, fields in self._newest(self.keys.streams[stream], LOOK_AT, lambda: len(entries) < len(ids)):
            job_id = summary(fields).id or default_id(name, bytes(entry).decode())
            if job_id in ids:
                entries.setdefault(job_id, entry)
        asks: list[Command] = [("XPENDING", self.keys.streams[stream], GROUP, entry, entry, 1) for entry in entries.values()]
        held = await self.ask(self._looker, *asks) if asks else []
        return {job_id: _held_in_words(name, answer) for job_id, answer in zip(entries, held, strict=True)}

    async def _newest(self, key: str, n: int, is_needed: Callable[[], bool]) -> AsyncIterator[Sequence[Any]]:
        """Yield the newest entries of a stream, as long as they are needed; of a key of another type none."""
        last, left, size, most = "+", n, 1, PAGE
        while left > 0 and is_needed():
            try:
                rows: Any = (await self.ask(self._looker, ("XREVRANGE", key, last, "-", "COUNT", min(left, size))))[0]
            except StoreUnavailable as error:
                if size == 1 or not isinstance(error.__cause__, TooLarge):
                    raise
                size = most = max(1, size // 4)
                continue
            if is_code(rows, "WRONGTYPE"):
                return
            for row in self.checked(rows, key):
                yield row
            if len(rows) < min(left, size):
                return
            last, left, size = f"({bytes(rows[-1][0]).decode()}", left - len(rows), min(2 * size, most)


_GONE: Final = (
    "it is not in the queue, and no result of it is kept: its type has none (`result_ttl_s`), the time of its result is over, "
    "a message with the same key has taken its place, or it never was"
)


# What it means to wait in a lot, by how its name begins.
_LOTS: Final = {
    FREE: "for the next worker",
    SUSPECT: "to be run apart: a worker died while it ran",
    UNKNOWN: "for a worker that knows its type, and has a thread or child process for it",
    GATE: "since its type or group is paused, or at its limit",
    OVERFLOW: "since its type or group is paused, or at its limit",
}


def _held_in_words(name: str, pending: Any) -> str:
    holder = pending[0][1].decode(errors="replace") if pending and not isinstance(pending, ServerError) else ""
    if holder.startswith("~"):
        why = next((why for lot, why in _LOTS.items() if holder.startswith(lot)), "where no worker of this release looks")
        return f"it waits on {name}, {why}"
    return f"it is with worker {holder}, from {name}" if holder else f"it waits on {name}"
