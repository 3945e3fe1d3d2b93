"""WorkersPage answers for the workers: what they do, one of them with its jobs, and the orders that they are given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from board import words
from board.api import Answerer, Refused
from board.orders import Orders
from board.picture import Picture, Seen
from board.rows import worker_row
from board.sampler import Sampler
from board.shapes import Changed, Fact, Jobs, JobsAsk, Nothing, OrderAsk, Said, Worker, WorkerAsk, Workers
from board.viewer import Viewer

Lister = Callable[[JobsAsk, Viewer], Awaitable[Jobs]]
MOST_JOBS: Final = 50  # as many as a worker's row tells of
ONE: Final = {"quiet": "starts nothing new now", "resume": "goes on", "stop": "stops"}
MANY: Final = {"quiet": "start nothing new now", "resume": "go on", "stop": "stop"}


class WorkersPage:
    """Answers for the workers. `jobs` lists jobs, as the page of jobs does."""

    def __init__(self, sampler: Sampler, orders: Orders, jobs: Lister | None = None) -> None:
        self._sampler = sampler
        self._orders = orders
        self._jobs = jobs

    def routes(self) -> dict[str, Answerer]:
        """Return which method answers what."""
        return {"GET workers": self.workers, "GET worker": self.worker, "POST workers/order": self.order}

    async def workers(self, ask: Nothing, viewer: Viewer) -> Workers:
        """Return all workers that live, and those that are gone while they hold jobs."""
        picture = await self._sampler.picture()
        now_ms, limits = picture.sample.now_ms, self._sampler.limits
        return Workers(workers=[worker_row(one, now_ms, limits) for one in picture.workers], said=workers_said(picture))

    async def worker(self, ask: WorkerAsk, viewer: Viewer) -> Worker:
        """Return one worker, with the jobs that it has, the longest first."""
        picture = await self._sampler.picture()
        one = next((one for one in picture.workers if one.name == ask.name), None)
        if one is None:
            raise Refused(
                404, "gone", "no such worker lives, nor does one that is gone hold jobs", "it is gone, and holds nothing"
            )
        wanted = JobsAsk(state="claimed", q=f"owner:{ask.name}", sort="longest", limit=MOST_JOBS)
        jobs = (await self._jobs(wanted, viewer)).rows if self._jobs is not None else []
        row = worker_row(one, picture.sample.now_ms, self._sampler.limits)
        return Worker(row=row, jobs=jobs, facts=_facts(one, picture), blocked=_blocked(one))

    async def order(self, ask: OrderAsk, viewer: Viewer) -> Changed:
        """Return what an order changed; workers obey within two seconds."""
        async with self._orders.by(viewer) as control:
            verb = {"quiet": control.quiet, "resume": control.resume_worker, "stop": control.stop}[ask.verb]
            changed = await verb(*ask.names, reason=ask.reason)
        if not changed:
            return Changed(
                is_changed=False, text=f"{_who(ask.names)} was ordered so before" if len(ask.names) == 1 else "was so before"
            )
        return Changed(is_changed=True, text=f"{_who(changed)} {(ONE if len(changed) == 1 else MANY)[ask.verb]}")


def _who(names: list[str]) -> str:
    return words.name(names[0]) if len(names) == 1 else words.counted(len(names), "worker")


def workers_said(picture: Picture) -> Said:
    """Return how many workers there are, and how busy they are."""
    living, silent, gone = picture.living, len(picture.silent), len(picture.gone)
    if not living:
        also = f", {words.counted(silent, 'worker')} silent" if silent else ""
        also += f", {words.counted(gone, 'worker')} gone while holding jobs" if gone else ""
        return ["", "No worker beats", also + "."]
    beat = f"{words.counted(len(living), 'worker')} {'beats' if len(living) == 1 else 'beat'}"
    beat += f", {silent} {'is' if silent == 1 else 'are'} silent" if silent else ""
    beat += f", {gone} {'is' if gone == 1 else 'are'} gone" if gone else ""
    lanes, busy = sum(one.row.lanes for one in living), sum(one.busy for one in living)
    return ["", beat, f". {words.figure(busy)} of {words.counted(lanes, 'lane')} busy."]


def _facts(one: Seen, picture: Picture) -> list[Fact]:
    row, now_ms = one.row, picture.sample.now_ms
    told = [
        ("name", one.name, True),
        ("version", words.name(row.app or row.version), False),
        ("runtime", words.name(row.version), False),
        ("up for", words.duration(now_ms - row.since) if row.since else "", False),
        ("memory", words.size(row.rss) if row.rss else "", False),
        ("stage", words.name(row.stage), False),
        ("order", words.name(one.order), False),
        ("lease", words.duration(row.lease_ms) if row.lease_ms else "", False),
        ("lanes", f"{row.lanes:,}, {row.reserved:,} of them for critical alone" if row.reserved else f"{row.lanes:,}", False),
        ("holds", words.counted(one.held, "job"), False),
        ("knows", words.counted(len(row.types), "type"), False),
        ("schedules", words.figure(len(row.schedules)) if row.schedules else "", False),
    ]
    return [Fact(name=name, text=text, is_code=is_code) for name, text, is_code in told if text]


def _blocked(one: Seen) -> list[Fact]:
    """Return what has blocked its loop, the most frequent first."""
    found: list[Fact] = []
    for name, times in sorted(one.row.blocked.items(), key=lambda item: -item[1]):
        longest, where = one.row.blocked_ms.get(name, 0), one.row.where.get(name, "")
        text = (
            f"{words.counted(times, 'time')}, the longest {words.duration(longest)}{f', in {words.name(where)}' if where else ''}"
        )
        found.append(Fact(name=words.name(name) or "not known which", text=text, is_code=False))
    return found
