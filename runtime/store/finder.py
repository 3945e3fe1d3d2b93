"""Finds a job by what somebody has of it, its id, the entry that XADD answered, its place or its key, and tells what holds it."""

from __future__ import annotations

from typing import Final

import msgspec

from runtime.jobs import STREAMS, UNKNOWN, default_id
from runtime.store.base import TOLD_JOBS, WorkerRow, by_life, ms_in, workers_of
from runtime.store.flow import silence
from runtime.store.inspector import LETTERS_PAGE, DeadLetter, FoundJob, Inspector, is_letter
from runtime.store.resp import Command, ServerError
from runtime.store.unknown import dead_from_ms, lot_is_known

MAX_PLACE_BYTES: Final = 200  # of the mark of a key, and MAX_STRIKES_BYTES: guesses, more than a worker writes
MAX_STRIKES_BYTES: Final = 4096
FORGOTTEN: Final = "forgotten: it was silent for too long, and its jobs are taken back with the next sweep"


class Looked(msgspec.Struct):
    """What was found: the jobs, and under which ids and at which places they were looked for."""

    ids: list[str]
    places: list[str]
    jobs: list[FoundJob]


class Finder(Inspector):
    """An Inspector that finds jobs by more than their ids."""

    def __init__(self, url: str, queue: str, name: str = "finder") -> None:
        super().__init__(url, queue, name)

    async def look(self, wanted: str, n: int) -> Looked:
        """Return what is there of a job; `wanted` is its id, its place, or the entry that XADD answered. For `n` see `find_job`.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        places = places_named(wanted)
        if not places:
            return Looked([wanted], [], await self.find_job(wanted, n))
        there = await self.at(places)
        own = [] if "/" in wanted else [wanted]
        ids: dict[str, None] = dict.fromkeys([*(job.id for job in there), *_default_ids(places), *own])
        if not there:  # it has moved on, as to be tried again: what is written down of its runs says what its own id is
            runs = await self.events_about(list(ids), places, 1)
            ids |= dict.fromkeys([run.id for run in runs])
        known = {job.place: job for job in (*there, *await self.find_jobs(list(ids), n))}
        return Looked(list(ids), places, list(known.values()))

    async def at(self, places: list[str]) -> list[FoundJob]:
        """Return the jobs at these places in streams, in `due` and among the dead letters; those that are gone are left out.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        found = [await self.job_at(place) for place in places]
        return [job for job in found if job is not None]

    async def letters_of(self, wanted: str, n: int) -> list[DeadLetter]:
        """Return the dead letter at a place, or those of a job by its id, or by the entry that XADD answered, among the newest
        `n`: the newest first.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        there = await self.dead_letter(wanted) if is_letter(wanted) else None
        if there is not None:
            return [there]
        ids, found = {wanted, *_default_ids(places_named(wanted))}, list[DeadLetter]()
        before, left = "+", n
        while left > 0:  # as in find_job: only what is found is kept
            page = await self.dead_letters(min(left, LETTERS_PAGE), before)
            found += [letter for letter in page if letter.id in ids]
            if len(page) < min(left, LETTERS_PAGE):
                break
            before, left = page[-1].letter, left - len(page)
        return found

    async def owner_of(self, key: str) -> FoundJob | None:
        """Return the job that has a key; None where none that lives does.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        mark = ("GETRANGE", self.keys.key_mark(key), 0, MAX_PLACE_BYTES)
        place = (await self.ask(self._connection, mark))[0]
        if isinstance(place, ServerError) or not place:
            return None
        named = bytes(place).decode(errors="replace").replace(" ", "/", 1)
        jobs = await self.at([named]) if places_named(named) else []
        return next((job for job in jobs if job.message.get("key") == key), None)

    async def note(self, jobs: list[FoundJob]) -> None:
        """Note in jobs that run or are parked what the rows of workers, their contracts and the strikes tell of them.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        held = [job for job in jobs if job.state in ("running", "parked")]
        if not held:
            return
        asks: list[Command] = [("HGET", self.keys.strikes, job.place) for job in held]
        rows = ("ZRANGE", self.keys.workers, 0, -1, "WITHSCORES"), ("HGETALL", self.keys.rows), ("TIME",)
        until, told, now, *strikes = await self.ask(self._connection, *rows, *asks)
        now_ms, workers = ms_in(self.checked(now)), workers_of(self._flat(until), self._flat(told))
        living = by_life(workers, now_ms)[0].values()
        for job, names in zip(held, strikes, strict=True):
            if isinstance(names, bytes):
                job.strikes = names[:MAX_STRIKES_BYTES].decode(errors="replace").split()
            if job.state == "running":
                await self._note_run(job, workers, now_ms)
            elif job.where.startswith(UNKNOWN):
                job.dead_from_ms = dead_from_ms(job.where, now_ms - job.idle_ms, living)
                job.is_known = lot_is_known(job.where, (kind for row in living for kind in row.types.items()))

    async def _note_run(self, job: FoundJob, workers: dict[str, tuple[int, WorkerRow]], now_ms: int) -> None:
        if job.where not in workers:
            job.silence = FORGOTTEN
            return
        until_ms, row = workers[job.where]
        job.silence = silence(until_ms, row, now_ms)
        started = {place: since_ms for place, since_ms, _ in row.jobs}
        if job.place in started:
            job.is_started, job.since_ms = True, started[job.place]
        elif row.jobs or row.lanes:
            job.is_started = None if len(row.jobs) >= TOLD_JOBS else False
        version = row.types.get(job.type)
        contract = await self.contract(job.type, version) if version and job.is_started is not False else None
        job.timeout_ms = int(contract.timeout_s * 1000) if contract else 0


def places_named(text: str) -> list[str]:
    """Return the places that a text may name: itself, where it is one; of an entry, as XADD answers it, that of each stream, and
    of a dead letter. Else none: it is an id.
    """
    name, slash, entry = text.partition("/")
    if not slash:
        return [f"{stream}/{text}" for stream in (*STREAMS, "dead")] if is_letter(text) else []
    is_place = (name == "due" and entry) or (name in (*STREAMS, "dead") and is_letter(entry))
    return [text] if is_place else []


def _default_ids(places: list[str]) -> list[str]:
    return [default_id(name, entry) for name, _, entry in (place.partition("/") for place in places) if name in STREAMS]
