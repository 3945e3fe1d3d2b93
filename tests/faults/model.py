"""What the store must do, as a small model in Python: one record per job, one method per verb, no server.

What only a server can choose (entry ids, times) the model is told: `told` is what was seen on the server after the verb, and the
model takes from it the reference and the clock of a job that it has itself put into that place, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt

from runtime.jobs import FREE, STREAMS, SUSPECT, Lease
from runtime.jobs import Job as WorkerJob

ENTRY, DUE, DEAD = "entry", "due", "dead"  # the three places of a job
ALONE = 4  # from this delivery count on


@dataclass
class Job:
    """A job where it is now. `ref` is its entry, its member among the delayed, or its letter."""

    n: int
    place: str = ENTRY
    ref: str = ""
    stream: int = 0
    type: str = ""
    version: int = 1
    key: str = ""
    id: str = ""  # empty until a script had to write it down
    failed: int = 0
    born_ms: str = ""
    snoozed_ms: str = ""
    origin: str = ""
    holder: str = ""  # empty: nobody has read it
    count: int = 0
    idle_ms: int = 0
    is_due: bool | None = False  # None: the message is there, its time is not
    reason: str = ""
    attempts: int = 0
    waits: bool = field(default=False, compare=False)  # its message has a time that is far ahead
    has_birth: bool = field(default=False, compare=False)  # its message says when it was born
    due_ms: float = field(default=0.0, compare=False)  # the server's clock: needed for the order only

    @property
    def spot(self) -> str:
        """Its place as a key's mark names it."""
        return f"{STREAMS[self.stream] if self.place == ENTRY else self.place} {self.ref}"

    @property
    def order(self) -> tuple[int, ...]:
        """Where it stands in its stream."""
        return tuple(int(part) for part in self.ref.split("-")) if "-" in self.ref else ()

    @property
    def stands_at(self) -> str:
        """Its place on a stream as the mark of a cancel names it."""
        return f"{STREAMS[self.stream]}/{self.ref}"

    @property
    def known_id(self) -> str:
        """The id that its worker reads."""
        return self.id or f"{STREAMS[self.stream]}-{self.ref}"


class Model:
    """Owns what should be on the server. A verb changes it and gives the answer that the store should give."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.marks: dict[str, str] = {}
        self.overs: dict[str, int] = {}  # when a key was last taken from one that had begun, or waited on its stream
        self.told_overs: Mapping[str, int] = {}
        self.cancels: set[str] = set()
        self.leases_ms: dict[str, int] = {}
        self.is_alive: dict[str, bool] = {}
        self.has_gap = True  # nobody has ever beaten
        self.is_guarded = False
        self.told: Mapping[int, Job] = {}
        self.folded: list[int] = []  # jobs whose place another message has taken

    # --- looking -------------------------------------------------------------------------------------------------------------

    def entries(self, stream: int, holder: str) -> list[Job]:
        """Return what a holder has on a stream, in the stream's order; the holder '' has what is unread."""
        found = [job for job in self.jobs.values() if (job.place, job.stream, job.holder) == (ENTRY, stream, holder)]
        return sorted(found, key=lambda job: job.order)

    def holders(self, stream: int) -> list[str]:
        """Return who holds something on a stream: workers and lots."""
        return sorted({job.holder for job in self.jobs.values() if job.place == ENTRY and job.stream == stream and job.holder})

    def find(self, lease: Lease) -> Job | None:
        """Return the job that stands at the entry of a lease, whoever has it."""
        where = (ENTRY, lease.stream, lease.entry.decode())
        return next((job for job in self.jobs.values() if (job.place, job.stream, job.ref) == where), None)

    def held(self, consumer: str, lease: Lease) -> Job | None:
        """Return the job of a lease, if this consumer still has it by that count: the fence."""
        job = self.find(lease)
        return job if job and (job.holder, job.count) == (consumer, lease.count) else None

    def _move(self, job: Job, place: str) -> None:
        """Put a job into another place, and let the mark of its key follow."""
        before, told = job.spot, self.told.get(job.n)
        job.place, job.holder, job.count, job.idle_ms, job.is_due = place, "", 0, 0, False
        job.waits = job.waits and place != DUE
        job.ref = told.ref if told and told.place == place else "not there"
        if told:
            job.due_ms = told.due_ms
            job.born_ms = job.born_ms or told.born_ms
        if place != DEAD and job.key and self.marks.get(job.key) == before:
            self.marks[job.key] = job.spot

    def _delay(self, job: Job, given_id: str, is_due: bool) -> None:
        taken = {other.ref for other in self.jobs.values() if other.place == DUE and other.n != job.n}
        self._move(job, DUE)
        job.id, job.is_due, job.has_birth = given_id, is_due, True
        if job.n not in self.told:
            return  # another has taken its place in the same call
        if given_id not in taken:
            assert job.ref == given_id, f"{job.ref} among the delayed, not {given_id}"
        else:
            assert job.ref.startswith(given_id + "#"), f"{job.ref} instead of another {given_id}"

    def _is_free(self, key: str, spot: str) -> bool:
        owner = self.marks.get(key)
        lives = any(job.key == key and job.spot == owner for job in self.jobs.values())
        return owner is None or owner == spot or not lives

    def _owner(self, key: str, spot: str) -> Job | None:
        owner = self.marks.get(key)
        found = [job for job in self.jobs.values() if job.key == key and job.spot == owner]
        return found[0] if found and owner != spot else None

    def _is_spare(self, job: Job, spot: str, is_due: bool | None) -> bool:
        """Whether a keyed message is no job of its own; `is_due`: its time is past; None: it has none. What is folded stays."""
        owner = self._owner(job.key, spot)
        if owner is None or is_due is None or owner.type != job.type:
            return owner is not None
        if owner.place != DUE or owner.failed or owner.snoozed_ms:
            self.overs[job.key] = self.told_overs[job.key]
            return False
        del self.jobs[owner.n]
        self.jobs[job.n] = replace(owner, n=job.n, stream=job.stream, version=job.version, is_due=is_due, origin="")
        if told := self.told.get(job.n):
            heir = self.jobs[job.n]
            heir.due_ms, heir.ref, heir.born_ms = told.due_ms, told.ref, owner.born_ms or told.born_ms
            assert owner.ref in ("not there", told.ref), "it stays where it was"
            self.marks[job.key] = heir.spot
        self.folded.append(owner.n)
        return True

    def _goes_ahead(self, job: Job) -> bool:
        """Whether a job whose time has come runs, while a newer one with its key waits."""
        owner = self._owner(job.key, job.spot)
        waits = owner and owner.place == DUE and not owner.failed and not owner.snoozed_ms
        return bool(waits) and job.has_birth and not job.failed and not job.snoozed_ms

    def _free(self, key: str, spot: str) -> None:
        """A job ended there: the mark of its key goes, where it names this place."""
        if key and self.marks.get(key) == spot:
            del self.marks[key]

    # --- into the queue ------------------------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        """A plain XADD, by anybody."""
        self.jobs[job.n] = job
        self._move(job, ENTRY)

    def send(self, messages: Sequence[tuple[Job, bool | None]]) -> list[bool]:
        """Store messages (None: now; else for later, and whether that is past); say which are new."""
        news: list[bool] = []
        for job, is_due in messages:
            is_new = not job.key or not self._is_spare(job, "", is_due)
            news.append(is_new)
            if is_new:
                self.jobs[job.n] = job
                if is_due is None:
                    self._move(job, ENTRY)
                else:
                    self._delay(job, job.id, is_due)
                if job.key:
                    self.marks[job.key] = job.spot
        return news

    def promote(self, most: int) -> int:
        """Delayed jobs to their streams; gives how many."""
        due = [job for job in self.jobs.values() if job.place == DUE and job.is_due]
        moved = sorted(due, key=lambda job: (job.due_ms, job.ref))[:most]
        for job in moved:
            self._move(job, ENTRY)
        for job in self.jobs.values():
            if job.place == DUE and job.is_due is None:
                job.is_due, job.due_ms = True, self.told[job.n].due_ms if job.n in self.told else 0.0
        return len(moved)

    def replay(self, n: int, letter: str) -> str:
        """A dead letter back to its stream."""
        job = self.jobs.get(n)
        if job is None or (job.place, job.ref) != (DEAD, letter):
            return "gone"
        if job.key and not self._is_free(job.key, ""):
            return "owned"
        self._move(job, ENTRY)
        job.failed, job.snoozed_ms, job.reason, job.attempts, job.waits = 0, "", "", 0, False
        job.has_birth = True
        job.origin = job.origin or job.id
        if job.key:
            self.marks[job.key] = job.spot
        return job.ref

    # --- to a worker ---------------------------------------------------------------------------------------------------------

    def _lease(self, jobs: Sequence[Job], consumer: str) -> list[tuple[int, int]]:
        for job in jobs:
            job.holder, job.count, job.idle_ms = consumer, job.count + 1, 0
        return [(job.n, job.count) for job in jobs]

    def read(self, consumer: str, stream: int, share: int) -> list[tuple[int, int]]:
        """Lease what nobody has read: number and delivery count of each."""
        return self._lease(self.entries(stream, "")[:share], consumer)

    def take(self, consumer: str, stream: int, lot: str, most: int, types: Mapping[str, int] | None) -> list[tuple[int, int]]:
        """Lease out of a lot."""
        looked_at = self.entries(stream, lot) if types is not None else self.entries(stream, lot)[:most]
        for job in looked_at:
            if job.count:
                self._put(job, SUSPECT, job.count)
        innocent = [job for job in looked_at if not job.count]
        fits = [job for job in innocent if types is None or job.version <= types.get(job.type, 0)]
        return self._lease(fits[:most], consumer)

    def isolate(self, consumer: str, most: int, types: Mapping[str, int]) -> list[tuple[int, int]]:
        """Lease suspects, the least suspect first: up to `most` first-time ones, then groups of the root of all, then alone."""
        waiting = [job for stream in range(4) for job in self.entries(stream, SUSPECT)]
        suspects = [job for job in waiting if job.version <= types.get(job.type, 0)]
        suspects.sort(key=lambda job: (job.count, job.stream, job.order))
        count = suspects[0].count if suspects else 0
        size = most if count == 1 else 1 if count >= ALONE else min(most, isqrt(len(waiting)))
        return self._lease([job for job in suspects[:size] if job.count == count], consumer)

    def _put(self, job: Job, lot: str, count: int) -> None:
        """Into a lot; what some worker held when it died is a suspect wherever it is given back, what was cancelled is buried."""
        if job.stands_at in self.cancels:
            self._bury(job)
            return
        job.holder, job.count, job.idle_ms = SUSPECT if lot == FREE and count else lot, count, 0

    def admit(self, consumer: str, lease: Lease, key: str) -> str:
        """Claim the key of a job, or drop it as a copy."""
        job = self.held(consumer, lease)
        if job and job.stands_at in self.cancels:
            self._bury(job)
            return "refused"
        if job is None:
            return "refused"
        if self.marks.get(key) == job.spot:
            return "mine"
        if not job.waits and self._goes_ahead(job):
            return "mine"
        del self.jobs[job.n]
        is_copy = self._is_spare(job, job.spot, False if job.waits else None)
        if is_copy or (not job.waits and int(job.born_ms) <= self.overs.get(key, -1)):
            return "duplicate"
        self.jobs[job.n] = job
        verdict = "mine"
        if job.waits:
            verdict = "delayed"
            self._delay(job, job.known_id, False)
        self.marks[key] = job.spot
        return verdict

    # --- from a worker: moves say whether the fence let them pass ------------------------------------------------------------

    def done(self, lease: WorkerJob) -> bool:
        """The job is done, whoever has it meanwhile; false when it was not pending any more."""
        job = self.find(lease)
        self._free(lease.envelope.key.decode(), f"{STREAMS[lease.stream]} {lease.entry.decode()}")
        if job:
            del self.jobs[job.n]
        return bool(job and job.holder)

    def fenced_done(self, consumer: str, lease: Lease) -> bool:
        """The same for a lease from before a restart."""
        job = self.held(consumer, lease)
        if job:
            self._free(job.key, job.spot)
            del self.jobs[job.n]
        return job is not None

    def defer(self, consumer: str, lease: Lease, kind: str, given_id: str, failed: int, is_due: bool) -> bool:
        """To the delayed jobs."""
        job = self.held(consumer, lease)
        if job and job.stands_at in self.cancels:
            self._bury(job)
        elif job:
            self._delay(job, given_id, is_due)
            job.failed = failed
            if kind == "snooze" and not job.snoozed_ms and job.n in self.told:
                job.snoozed_ms = self.told[job.n].snoozed_ms or "not noted"
        return job is not None

    def dead(self, consumer: str, lease: Lease, reason: str, attempts: int, given_id: str) -> bool:
        """To the dead letters."""
        job = self.held(consumer, lease)
        if job:
            self._free(job.key, job.spot)
            self._move(job, DEAD)
            job.reason, job.attempts, job.id = reason, attempts, job.id or given_id
        return job is not None

    def park(self, consumer: str, lease: Lease, lot: str) -> bool:
        """To a lot, as if it had not been handed out."""
        job = self.held(consumer, lease)
        if job:
            self._put(job, lot, job.count - 1)
        return job is not None

    def renew(self, consumer: str, leases: Sequence[Lease]) -> list[int]:
        """Renew; gives the positions of what is somebody else's or gone. What nobody has is neither."""
        refused: list[int] = []
        for position, lease in enumerate(leases):
            job = self.held(consumer, lease)
            if job:
                job.idle_ms = 0
                continue
            there = self.find(lease)
            if there is None or there.holder:
                refused.append(position)
        return refused

    # --- by people -----------------------------------------------------------------------------------------------------------

    def _bury(self, job: Job) -> None:
        """A job that is cancelled is a letter, and the mark that asked for it has done its work."""
        self.cancels.discard(job.stands_at)
        self._free(job.key, job.spot)
        job.id = job.id or job.known_id
        self._move(job, DEAD)
        job.reason, job.attempts = "cancelled", job.failed

    def cancel(self, n: int, spot: str) -> str:
        """Cancel a job, if it is there still."""
        job = self._at(n, spot)
        if job is None:
            return "gone"
        if job.place == ENTRY and job.holder and not job.holder.startswith("~"):
            self.cancels.add(job.stands_at)
            return f"asked {job.holder}"
        self._bury(job)
        return "cancelled"

    def run_now(self, n: int, spot: str) -> str:
        """Let a delayed job be due."""
        job = self._at(n, spot)
        if job is None or job.place == ENTRY:
            return "gone" if job is None else self._change_stream(job, job.stream, is_needed=job.waits)
        if job.is_due:
            return "same"
        job.is_due = True
        job.due_ms = self.told[n].due_ms if n in self.told else 0.0
        return "moved"

    def set_priority(self, n: int, spot: str, stream: int) -> str:
        """Give a job that waits another stream; not a suspect, whose deaths would be forgotten."""
        job = self._at(n, spot)
        if job is None:
            return "gone"
        if job.place == DUE:
            answer, job.stream = "same" if job.stream == stream else "moved", stream
            return answer
        return self._change_stream(job, stream, is_needed=job.stream != stream)

    def _change_stream(self, job: Job, stream: int, *, is_needed: bool) -> str:
        """Put a job that nobody runs to the end of a stream; with `now` to that of its own, without the time in its message."""
        if job.holder and not job.holder.startswith("~"):
            return f"held {job.holder}"
        if not is_needed:
            return "same"
        if job.count:
            return f"held {job.holder}"
        job.waits = job.waits and job.stream != stream
        before, job.id, job.stream, job.has_birth = job.spot, job.known_id, stream, True
        self._move(job, ENTRY)
        if job.key and self.marks.get(job.key) == before:
            self.marks[job.key] = job.spot
        return "moved"

    def _at(self, n: int, spot: str) -> Job | None:
        job = self.jobs.get(n)
        return job if job and job.spot == spot and job.place != DEAD else None

    # --- life and death ------------------------------------------------------------------------------------------------------

    def beat(self, consumer: str, lease_ms: int) -> None:
        """This worker lives."""
        self.is_guarded = self.is_guarded or self.has_gap
        self.has_gap = False
        self.is_alive[consumer], self.leases_ms[consumer] = True, lease_ms

    def reclaim(self, stream: int, lease_ms: int, most: int, still: Sequence[str]) -> tuple[int, int, bool]:
        """Take from workers what nobody renews; gives what was the dead's, what was a lost reply, and whether the guard held."""
        self.is_guarded = self.is_guarded or self.has_gap
        if self.is_guarded:
            return 0, 0, True
        dead = undelivered = 0
        for holder in self.holders(stream):
            lease = 0 if holder in still else self.leases_ms.get(holder) or max(lease_ms, *self.leases_ms.values(), 0)
            late = [job for job in self.entries(stream, holder) if job.idle_ms >= lease and not holder.startswith("~")]
            for job in late[: most - dead - undelivered]:
                if self.is_alive.get(holder) and holder not in still:
                    self._put(job, FREE, max(0, job.count - 1))
                    undelivered += 1
                else:
                    self._put(job, SUSPECT, max(1, job.count))
                    dead += 1
        return dead, undelivered, False

    def forget(self, consumer: str) -> bool:
        """Strike a worker off the list, if it holds nothing."""
        if any(self.entries(stream, consumer) for stream in range(4)):
            return False
        self.is_alive.pop(consumer, None)
        self.leases_ms.pop(consumer, None)
        return True

    def lose_group(self) -> None:
        """The consumer group was destroyed and made again: everything is unread."""
        for job in self.jobs.values():
            if job.place == ENTRY:
                job.holder, job.count, job.idle_ms = "", 0, 0

    def copy(self) -> dict[int, Job]:
        """Return the jobs as they are now."""
        return {n: replace(job) for n, job in self.jobs.items()}
