"""ActionsPage cancels jobs and lets delayed ones run now: each is one step on the server, and says what is true afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from board import words
from board.api import Answerer, Refused
from board.jobs import Reads
from board.redact import visible
from board.shapes import ActAsk, Acted, ActedAll
from board.viewer import Viewer
from runtime.jobs import SUSPECT, default_id
from runtime.store.control import ControlStore
from runtime.store.inspector import FoundJob
from runtime.store.lists import DUE_STREAM, place_of

LOOKED_FOR: Final = 5  # jobs that had moved on and are looked for; a guess: each may be a few thousand entries
LOOK_AT: Final = 1000  # newest entries of each stream that are looked through for such a job; a guess
GONE: Final = "gone"
DONE: Final = ("cancelled", "asked", "moved", "same")


class ActionsPage:
    """Answers POST cancel and POST soon."""

    def __init__(self, reads: Reads, control: ControlStore) -> None:
        self._lists = reads.lists
        self._control = control

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"POST cancel": self.cancel, "POST soon": self.soon}

    async def cancel(self, ask: ActAsk, viewer: Viewer) -> ActedAll:
        """Cancel jobs, also those that run."""
        return await self._steer("cancel", ask, viewer)

    async def soon(self, ask: ActAsk, viewer: Viewer) -> ActedAll:
        """Let delayed jobs run now."""
        return await self._steer("now", ask, viewer)

    async def _steer(self, verb: str, ask: ActAsk, viewer: Viewer) -> ActedAll:
        places = list(dict.fromkeys(ask.places))
        wrong = next((place for place in places if place_of(place) is None), None)
        if wrong is not None:
            raise Refused(400, "place", f"{visible(wrong)[:60]}: is no place of a job that waits, runs or is delayed")
        answers = await self._control.steer(verb, viewer.by, " ".join(ask.reason.split()), places)
        told = [answer.partition(" ") for answer in answers]
        moved = await self._moved_on([place for place, (word, _, _) in zip(places, told, strict=True) if word == GONE])
        results = [
            Acted(place=place, is_done=word in DONE, answer=word, text=moved.get(place) or _said(verb, word, visible(holder)))
            for place, (word, _, holder) in zip(places, told, strict=True)
        ]
        done = sum(1 for one in results if one.is_done)
        if len(results) == 1 and not done:
            raise Refused(409, results[0].answer, _refused(verb), now=results[0].text)
        return ActedAll(results=results, done=done, text=_all_said(verb, done, len(results)))

    async def _moved_on(self, places: Sequence[str]) -> dict[str, str]:
        """Return what is true now of jobs that are not where they were."""
        found: dict[str, str] = {}
        for place in places[:LOOKED_FOR]:
            where = place_of(place)
            if where is None:
                continue
            job_id = where[1] if where[0] == DUE_STREAM else default_id(place.partition("/")[0], where[1])
            jobs = [job for job in await self._lists.find_job(job_id, LOOK_AT) if job.id == job_id]
            found[place] = f"it had moved on: {_where(jobs[-1])}" if jobs else "it had moved on: mostly it is done by now"
        return found


def _where(job: FoundJob) -> str:
    match job.state:
        case "running":
            return f"worker {words.name(job.where)} has it"
        case "delayed":
            return "it is delayed again"
        case "dead":
            return f"it is a dead letter ({words.name(job.where)})"
        case _:
            return f"it waits ({words.name(job.place)})"


def _said(verb: str, word: str, holder: str) -> str:
    if word == "held":
        if holder == SUSPECT:
            return "left alone: a worker died while it ran, and it waits to run apart"
        return f"left alone: worker {words.name(holder)} has it"
    return {
        "cancelled": "cancelled: it is a dead letter now, and has not started",
        "asked": f"worker {words.name(holder)} was asked to end it",
        "moved": "it runs as soon as a worker is free",
        "same": "it waits for a worker already" if verb == "now" else "it was so already",
        GONE: "it had moved on: mostly it is done by now",
        "full": "left alone: 10,000 jobs that run are cancelled at this moment",
    }.get(word, word)


def _refused(verb: str) -> str:
    return "it was not cancelled" if verb == "cancel" else "it was not moved"


def _all_said(verb: str, done: int, n: int) -> str:
    what = "cancelled, or their workers asked to end them" if verb == "cancel" else "due now"
    if done == n == 1:
        return "cancelled, or its worker asked to end it" if verb == "cancel" else "due now"
    return f"{words.figure(done)} of {words.counted(n, 'job')} {what}" + (
        "" if done == n else "; the others had moved on or are held"
    )
