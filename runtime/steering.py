"""Steering finds jobs by their id or place, and cancels them, lets them run now, or gives them another priority.

Between a look and the step that follows a job may move on: what is not there any more is looked for again, three times in all. If
the process dies in between, nothing is half done: each job is one step on the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from runtime.errors import ConfigError, StoreError, StoreUnavailable
from runtime.jobs import STREAMS, Priority
from runtime.sender import Sent
from runtime.store.base import LOOK_AT
from runtime.store.control import ControlStore, place_in
from runtime.store.finder import Finder, places_named
from runtime.store.inspector import FoundJob, is_letter

TRIES: Final = 3  # a guess: a job moves on a few times in its life, not each millisecond
DEAD: Final = "dead"
GONE: Final = "gone"


class Steered(msgspec.Struct, frozen=True):
    """What became of a job that was to be cancelled, to run now or to have another priority. `answer` is one of these:

    - `cancelled`: it is a dead letter now, and has not started.
    - `asked`: the worker `holder` runs it or is about to, and was asked to end it. It is a dead letter soon, or done where its
      handler returns all the same; in neither case does it start again.
    - `moved`: it is due now, or waits with the other priority.
    - `same`: it waits so already.
    - `held`: it was left alone. The worker `holder` has it; or `holder` is `~suspect`: a worker died while it ran, and it waits
      to be run apart.
    - `dead`: it is a dead letter already, for the reason `holder`.
    - `gone`: it moved on at each look; mostly it is done.
    - `full`: it was left alone, since 10,000 jobs that run are cancelled at this moment.
    """

    id: str
    type: str
    place: str
    answer: str
    holder: str = ""


class JobControl:
    """Orders what is to become of one job. A Control is one; `by` and the stores are its own."""

    def __init__(self, by: str, job_store: ControlStore, job_finder: Finder, check_reason: Callable[[Any], None]) -> None:
        self.by: str = by
        self._job_store = job_store
        self._job_finder = job_finder
        self._check_job_reason = check_reason

    async def cancel(self, job: str | Sent, *, reason: str = "") -> list[Steered]:
        """Cancel a job wherever it is: it starts no more. What runs is asked to end, within two seconds.

        May be repeated. Whoever waits for the job's result is told.

        Args:
            job: what `send` returned, or its id, or its place, such as `high/1732400000000-0` or `due/order-1`, or the entry
                that XADD answered, `1732400000000-0`. All jobs with an id are meant; they are looked for among the delayed ones,
                the newest 10,000 entries of each stream and the newest 10,000 dead letters.
            reason: for people, up to 500 characters.

        Returns:
            What became of each, as `Steered` says; an empty list where there is none: it is done, or never was.

        Raises:
            ConfigError: an argument cannot be used; nothing is changed.
            StoreUnavailable: no answer or an error; it may or may not be changed.
        """
        return await self._steer("cancel", job, reason)

    async def run_now(self, job: str | Sent, *, reason: str = "") -> list[Steered]:
        """Let a delayed job be due now, whatever it waits for: its time, its next attempt, the end of a snooze.

        Pauses and limits hold for it as for others. For arguments, answers and errors see `cancel`.
        """
        return await self._steer("now", job, reason)

    async def set_priority(self, job: str | Sent, priority: str | Priority, *, reason: str = "") -> list[Steered]:
        """Give a job that waits or is delayed another priority; it keeps its id, its age and its key, and stands last there.

        For the other arguments, answers and errors see `cancel`.
        """
        name = priority.name.lower() if isinstance(priority, Priority) else priority
        if name not in STREAMS:
            raise ConfigError(f"priority must be one of {', '.join(STREAMS)}, got {repr(priority)[:60]}")
        return await self._steer("priority", job, reason, name)

    async def _steer(self, verb: str, meant: str | Sent, reason: str, argument: str = "") -> list[Steered]:
        """Do this to all jobs that are meant: what is gone from where it was is looked for again."""
        job = meant.id if isinstance(meant, Sent) else meant
        _check(job)
        self._check_job_reason(reason)
        answers: dict[str, Steered] = {}
        letters: list[FoundJob] = []
        for _ in range(TRIES):
            jobs = await self._look(job)
            letters = [one for one in jobs if one.state == DEAD]
            left = [one for one in jobs if one.state != DEAD and not _is_settled(answers.get(one.place))]
            told = await self._step(verb, reason, [one.place for one in left], argument) if left else []
            answers |= {one.place: _steered(one, answer) for one, answer in zip(left, told, strict=True)}
            if all(map(_is_settled, answers.values())):
                break
        settled = [one for one in answers.values() if _is_settled(one)]
        dead = [Steered(one.id, one.type, one.place, DEAD, one.where) for one in letters]
        return settled or dead or list(answers.values())

    async def _step(self, verb: str, reason: str, places: list[str], argument: str) -> list[str]:
        try:
            return await self._job_store.steer(verb, self.by, reason, places, argument)
        except StoreError:
            raise
        except StoreUnavailable:  # the reply was lost, or the server has closed a connection that stood idle
            return await self._job_store.steer(verb, self.by, reason, places, argument)

    async def _look(self, wanted: str) -> list[FoundJob]:
        places = places_named(wanted)
        if not places:
            return [job for job in await self._job_finder.find_job(wanted, LOOK_AT) if job.id == wanted]
        jobs = await self._job_finder.at([place for place in places if "/" in wanted or not place.startswith(DEAD)])
        if not jobs and "/" not in wanted:
            jobs = (await self._job_finder.look(wanted, LOOK_AT)).jobs
        if len({job.id for job in jobs}) > 1:  # streams count for themselves: two may have given the same entry
            named = " or ".join(job.place for job in jobs)
            raise ConfigError(f"{wanted} may be any of {len(jobs)} jobs; hint: give the place of the one that is meant, {named}")
        return jobs


def _is_settled(steered: Steered | None) -> bool:
    return steered is not None and steered.answer != GONE


def _steered(job: FoundJob, answer: str) -> Steered:
    word, _, holder = answer.partition(" ")
    return Steered(job.id, job.type, job.place, word, holder)


def _check(wanted: Any) -> None:
    if not isinstance(wanted, str) or not wanted:
        raise ConfigError(f"the job must be an id, a Sent, or a place such as high/1732400000000-0, got {repr(wanted)[:60]}")
    name, slash, entry = wanted.partition("/")
    if slash and not (name == DEAD and is_letter(entry)):
        place_in(wanted)
