"""JobsPage lists jobs: what workers hold, what waits, what is delayed, and what has ended; and what of it fits a search."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Final

import msgspec

from board import words
from board.api import Answerer, Refused
from board.contracts import Contracts
from board.cursors import packed, unpacked
from board.jobrows import Claimed, Eyes, Message, claim, claims_of, ended_row, message_of, note_of, row_of
from board.payloads import shown_json, text_of
from board.redact import PLAIN, Rules, redact_text
from board.search import Search, Subject, Unreadable, parse
from board.shapes import Facet, JobRow, Jobs, JobsAsk, Level, Said
from board.viewer import Viewer
from runtime.ended import DUPLICATE, Ended
from runtime.jobs import STREAMS
from runtime.results import DONE
from runtime.store.events import Events
from runtime.store.flow import Flow
from runtime.store.lists import LIST_CUT, SEARCH_CUT, Held, JobLists, Peek, Survey

FRESH_S: Final = 2.0  # what was read within this time serves all viewers
WINDOW: Final = 10_000  # of each stream that a search looks at before it asks to go on; a guess: a second or two
STEP: Final = 500  # jobs between two looks at the clock
SEARCH_S: Final = 5.0  # a guess: nobody waits for longer; what was found until then is shown
Entry = Annotated[str, msgspec.Meta(pattern=r"\A(\d{1,20}-\d{1,20})?\Z")]
FACETS: Final[dict[str, tuple[str, Level, Callable[[Claimed], bool]]]] = {
    "all": ("All", "ok", lambda one: True),
    "gone": ("Owner gone", "act", lambda one: not one.is_alive),
    "suspect": ("Suspect", "look", lambda one: one.is_suspect),
    "near": ("Near its timeout", "look", lambda one: one.is_near),
    "again": ("Delivered again", "ok", lambda one: one.held.deliveries > 1),
    "unstarted": ("Not started yet", "ok", lambda one: one.is_started is False),
}


ENDS: Final[dict[str, tuple[str, Callable[[Ended], bool]]]] = {
    "all": ("All", lambda run: True),
    "failed": ("Failed", lambda run: run.outcome not in (DONE, "lost", DUPLICATE)),
    "lost": ("Lost with their worker", lambda run: run.outcome == "lost"),
    "dropped": ("Dropped for their key", lambda run: run.outcome == DUPLICATE),
    "done": ("Done", lambda run: run.outcome == DONE),
}


class Snapshot(msgspec.Struct, frozen=True):
    """What workers hold, and how much of everything there is, as it was read."""

    survey: Survey
    claims: list[Claimed]

    @property
    def has_workers(self) -> bool:
        """Whether any worker lives."""
        return any(until_ms > self.survey.now_ms for until_ms, _ in self.survey.workers.values())


class _Claims(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in the list of claims: behind this one, in this order."""

    key: tuple[int, int, int, int]


class _Streams(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in what waits: of each stream behind this entry. `looked` were looked at before."""

    after: tuple[Entry, Entry, Entry, Entry]
    looked: Annotated[int, msgspec.Meta(ge=0)] = 0


class _Lots(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in what lots hold."""

    lot: str
    stream: Annotated[int, msgspec.Meta(ge=0, lt=len(STREAMS))]
    entry: Entry


class _Due(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in what is delayed."""

    due_ms: Annotated[int, msgspec.Meta(ge=0)]
    member: str
    looked: Annotated[int, msgspec.Meta(ge=0)] = 0


class _Ended(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A place in what has ended. `looked` were looked at before."""

    entry: Annotated[str, msgspec.Meta(pattern=r"\A\d{1,20}-\d{1,20}\Z")]
    looked: Annotated[int, msgspec.Meta(ge=0)] = 0


class Reads:
    """What all pages of jobs read, kept for FRESH_S for all viewers."""

    def __init__(self, lists: JobLists, events: Events, contracts: Contracts, rules: Rules = PLAIN) -> None:
        self.lists = lists
        self.events = events
        self.contracts = contracts
        self.rules = rules
        self._snapshot: Snapshot | None = None
        self._snapshot_until_s = 0.0
        self._flow: Flow | None = None
        self._flow_until_s = 0.0
        self._reading = asyncio.Lock()

    async def snapshot(self) -> Snapshot:
        """Return what workers hold, read within the last FRESH_S.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        async with self._reading:
            if self._snapshot is None or time.monotonic() >= self._snapshot_until_s:
                contracts = await self.contracts.fresh()
                survey = await self.lists.survey()
                held = await self.lists.claimed(survey)
                self._snapshot = Snapshot(survey, claims_of(survey, held, contracts.of))
                self._snapshot_until_s = time.monotonic() + FRESH_S
            return self._snapshot

    async def flow(self) -> Flow:
        """Return what holds jobs back, read within the last FRESH_S.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        async with self._reading:
            if self._flow is None or time.monotonic() >= self._flow_until_s:
                self._flow = await self.lists.flow()
                self._flow_until_s = time.monotonic() + FRESH_S
            return self._flow

    def eyes(self, viewer: Viewer) -> Eyes:
        """Return what a viewer may see of messages."""
        return Eyes(viewer.can("payload"), self.rules)


class Sifted(msgspec.Struct):
    """What of a list is shown: rows as they were peeked at, what else fits, and how many were looked at."""

    found: list[tuple[Peek, Message]] = []
    looked: int = 0
    fitting: int = 0


class JobsPage:
    """Answers GET jobs. Searches wait for each other: one at a time is what a server should have to bear."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._lists = reads.lists
        self._searching = asyncio.Lock()

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"GET jobs": self.jobs}

    async def jobs(self, ask: JobsAsk, viewer: Viewer) -> Jobs:
        """Return a part of a list."""
        search = searched(ask.q, viewer)
        snapshot = await self._reads.snapshot()
        await self._reads.contracts.fresh()
        list_of = {"claimed": self._claimed, "waiting": self._waiting, "delayed": self._delayed, "finished": self._finished}
        if not search.terms:
            return await list_of[ask.state](ask, search, snapshot, viewer)
        async with self._searching:
            return await list_of[ask.state](ask, search, snapshot, viewer)

    # --- claimed ---------------------------------------------------------------------------------------------------------

    async def _claimed(self, ask: JobsAsk, search: Search, snapshot: Snapshot, viewer: Viewer) -> Jobs:
        if ask.facet not in FACETS:
            raise Refused(400, "facet", f"must be one of {', '.join(FACETS)}")
        key = _claim_key(ask.sort)
        place = unpacked(ask.cursor, _Claims)
        chosen = [one for one in snapshot.claims if FACETS[ask.facet][2](one) and _owned(one, search)]
        chosen.sort(key=key)
        n_before = 0 if place is None else sum(1 for one in chosen if key(one) <= place.key)
        sifted = Sifted()
        if search.terms:
            await self._sift_claims(chosen, search, viewer, sifted, n_before, ask.limit)
        else:
            shown = chosen[n_before : n_before + ask.limit]
            peeks = await self._lists.peek([(one.held.stream, one.held.entry) for one in shown])
            sifted = Sifted([(peek, message_of(peek)) for peek in peeks if peek], len(snapshot.claims), len(chosen))
        by_place = {one.held.place: one for one in chosen}
        rows = await self._claimed_rows(sifted.found, by_place, snapshot, viewer)
        last = by_place[rows[-1].place] if rows else None
        has_more = len(rows) >= ask.limit and (sifted.fitting > n_before + len(rows) or bool(search.terms))
        survey = snapshot.survey
        return _jobs(
            survey,
            rows,
            facets=[
                Facet(name=name, text=text, count=sum(map(is_one, snapshot.claims)), level=level)
                for name, (text, level, is_one) in FACETS.items()
            ],
            looked=len(snapshot.claims),
            of=survey.claimed,
            found=sifted.fitting,
            said=_all_said(len(snapshot.claims), survey.claimed, sifted.fitting if search.terms else None),
            title=claimed_title(snapshot),
            cursor=packed(_Claims(key(last))) if has_more and last else None,
        )

    async def _sift_claims(
        self, chosen: Sequence[Claimed], search: Search, viewer: Viewer, sifted: Sifted, n_before: int, limit: int
    ) -> None:
        """Look at all of these, one after another; those behind the cursor that fit are shown."""
        survey = (await self._reads.snapshot()).survey
        for at in range(0, len(chosen), STEP):
            part = chosen[at : at + STEP]
            peeks = await self._lists.peek([(one.held.stream, one.held.entry) for one in part], _cut(search))
            for number, (one, peek) in enumerate(zip(part, peeks, strict=True), at):
                if peek is None:
                    continue
                message = message_of(peek, _cut(search))
                if self._fits(search, message, viewer, survey.now_ms, (one.held.owner, one.label, one.label.partition(" ")[0])):
                    sifted.fitting += 1
                    if number >= n_before and len(sifted.found) < limit:
                        sifted.found.append((peek, message))
            await asyncio.sleep(0)

    async def _claimed_rows(
        self, found: Sequence[tuple[Peek, Message]], by_place: dict[str, Claimed], snapshot: Snapshot, viewer: Viewer
    ) -> list[JobRow]:
        cancelled = await self._lists.cancels_of([peek.place for peek, _ in found])
        rows: list[JobRow] = []
        for (peek, message), by in zip(found, cancelled, strict=True):
            one = by_place[peek.place]
            if one.timeout_ms is None and (contract := self._reads.contracts.of(message.type)) is not None:
                one = msgspec.structs.replace(one, timeout_ms=contract.timeout_ms)
            note, held = note_of(one, snapshot.has_workers, by), claim(one, snapshot.has_workers)
            rows.append(self._row(peek, message, snapshot.survey, viewer, state="claimed", note=note, held=held))
        return rows

    # --- waiting ---------------------------------------------------------------------------------------------------------

    async def _waiting(self, ask: JobsAsk, search: Search, snapshot: Snapshot, viewer: Viewer) -> Jobs:
        survey = snapshot.survey
        unread, n_lots = survey.unread, survey.in_lots
        names = ("all", "lots", *STREAMS)
        if ask.facet not in names:
            raise Refused(400, "facet", f"must be one of {', '.join(names)}")
        flow = await self._reads.flow()
        counts = dict(zip(names, (sum(unread), n_lots, *unread), strict=True))
        if ask.facet == "lots":
            rows, cursor, sifted = await self._in_lots(ask, search, snapshot, flow, viewer)
        else:
            streams = range(len(STREAMS)) if ask.facet == "all" else (STREAMS.index(ask.facet),)
            rows, cursor, sifted = await self._unread(ask, search, snapshot, flow, viewer, streams)
        of = counts[ask.facet]
        return _jobs(
            survey,
            rows,
            facets=[
                Facet(
                    name=name,
                    text={"all": "Not fetched yet", "lots": "In lots"}.get(name, name.capitalize()),
                    count=n,
                    level="ok",
                )
                for name, n in counts.items()
            ],
            looked=sifted.looked,
            of=of,
            found=sifted.fitting if search.terms else of,
            said=_window_said(ask, search, sifted, of, "oldest" if ask.sort == "oldest" or ask.facet == "lots" else "newest"),
            title=waiting_title(sum(unread), n_lots),
            cursor=cursor,
        )

    async def _unread(
        self, ask: JobsAsk, search: Search, snapshot: Snapshot, flow: Flow, viewer: Viewer, streams: Iterable[int]
    ) -> tuple[list[JobRow], str | None, Sifted]:
        place = unpacked(ask.cursor, _Streams) or _Streams(("", "", "", ""))
        is_newest = ask.sort == "newest" or (ask.sort is None and bool(search.terms))
        last, after = await self._lists.last_delivered(), list(place.after)
        sifted = Sifted(looked=place.looked)
        if search.terms:
            has_more = False
            for stream in streams:
                has_more |= await self._sift_stream(
                    stream, last[stream], after, is_newest, search, viewer, snapshot.survey, sifted, ask.limit
                )
        else:
            peeks: list[Peek] = []
            for stream in streams:
                peeks += await self._lists.unread(stream, last[stream], ask.limit, is_newest=is_newest, beyond=after[stream])
            peeks.sort(key=_entry_key, reverse=is_newest)
            has_more, peeks = len(peeks) > ask.limit or len(peeks) == ask.limit, peeks[: ask.limit]
            for peek in peeks:
                after[peek.stream] = peek.entry
            sifted.found = [(peek, message_of(peek)) for peek in peeks]
            sifted.looked += len(peeks)
        rows = [
            self._row(peek, message, snapshot.survey, viewer, state="waiting", waits=flow.waits("", message.group, peek.priority))
            for peek, message in sifted.found
        ]
        critical, high, medium, low = after
        return rows, packed(_Streams((critical, high, medium, low), sifted.looked)) if has_more else None, sifted

    async def _sift_stream(
        self,
        stream: int,
        last: str,
        after: list[str],
        is_newest: bool,
        search: Search,
        viewer: Viewer,
        survey: Survey,
        sifted: Sifted,
        limit: int,
    ) -> bool:
        """Look at the next WINDOW of a stream in steps that yield; return whether more of it is left."""
        until_s, looked = time.monotonic() + SEARCH_S, 0
        while looked < WINDOW and time.monotonic() < until_s:
            if len(sifted.found) >= limit:
                return True
            peeks = await self._lists.unread(stream, last, STEP, is_newest=is_newest, beyond=after[stream], cut=_cut(search))
            for peek in peeks:
                looked, sifted.looked, after[stream] = looked + 1, sifted.looked + 1, peek.entry
                message = message_of(peek, _cut(search))
                if self._fits(search, message, viewer, survey.now_ms):
                    sifted.fitting += 1
                    sifted.found.append((peek, message))
                    if len(sifted.found) >= limit:
                        break
            if len(peeks) < STEP and (not peeks or after[stream] == peeks[-1].entry):
                return False
            await asyncio.sleep(0)
        return True

    async def _in_lots(
        self, ask: JobsAsk, search: Search, snapshot: Snapshot, flow: Flow, viewer: Viewer
    ) -> tuple[list[JobRow], str | None, Sifted]:
        place, survey = unpacked(ask.cursor, _Lots), snapshot.survey
        lots = sorted((name, stream) for stream, held in enumerate(survey.holders) for name, _ in held if name.startswith(b"~"))
        sifted, left, held = Sifted(), WINDOW if search.terms else ask.limit + 1, list[Held]()
        for name, stream in lots:
            shown = name.decode(errors="replace")
            if left <= 0 or (place is not None and (shown, stream) < (place.lot, place.stream)):
                continue
            is_there = place is not None and (shown, stream) == (place.lot, place.stream)
            found = await self._lists.held_by([(stream, name)], left, place.entry if is_there and place else "-")
            held, left = held + found, left - len(found)
        owners = {one.place: one for one in held}
        for at in range(0, len(held), STEP):
            part = held[at : at + STEP]
            for peek in await self._lists.peek([(one.stream, one.entry) for one in part], _cut(search)):
                sifted.looked += 1
                message = message_of(peek, _cut(search)) if peek else None
                if peek is None or message is None or not self._fits(search, message, viewer, survey.now_ms):
                    continue
                sifted.fitting += 1
                if len(sifted.found) <= ask.limit:
                    sifted.found.append((peek, message))
            await asyncio.sleep(0)
        has_more = len(sifted.found) > ask.limit
        sifted.found = sifted.found[: ask.limit]
        rows: list[JobRow] = []
        for peek, message in sifted.found:
            waits = lot_said(owners[peek.place].owner, message, flow, peek.priority)
            rows.append(self._row(peek, message, survey, viewer, state="lot", waits=waits))
        last = owners[rows[-1].place] if rows else None
        return rows, packed(_Lots(last.owner, last.stream, last.entry)) if has_more and last else None, sifted

    # --- delayed ---------------------------------------------------------------------------------------------------------

    async def _delayed(self, ask: JobsAsk, search: Search, snapshot: Snapshot, viewer: Viewer) -> Jobs:
        if ask.facet != "all":
            raise Refused(400, "facet", "must be all")
        place, survey = unpacked(ask.cursor, _Due), snapshot.survey
        after, sifted = (place.due_ms, place.member) if place else None, Sifted(looked=place.looked if place else 0)
        n, cut = (STEP, _cut(search)) if search.terms else (ask.limit, LIST_CUT)
        until_s, looked, is_end = time.monotonic() + SEARCH_S, 0, False
        while len(sifted.found) < ask.limit and looked < WINDOW and not is_end and time.monotonic() < until_s:
            peeks = await self._lists.due_from(n, after, cut)
            is_end = len(peeks) < n
            for peek in peeks:
                after, looked, sifted.looked = (peek.due_ms, peek.entry), looked + 1, sifted.looked + 1
                message = message_of(peek, cut)
                if self._fits(search, message, viewer, survey.now_ms):
                    sifted.fitting += 1
                    sifted.found.append((peek, message))
                    if len(sifted.found) >= ask.limit:
                        is_end = is_end and peek is peeks[-1]
                        break
            await asyncio.sleep(0)
        rows = [self._row(peek, message, survey, viewer, state="delayed") for peek, message in sifted.found]
        return _jobs(
            survey,
            rows,
            facets=[Facet(name="all", text="All", count=survey.due, level="ok")],
            looked=sifted.looked,
            of=survey.due,
            found=sifted.fitting if search.terms else survey.due,
            said=_window_said(ask, search, sifted, survey.due, "next"),
            title=delayed_title(survey.due, rows, survey.now_ms, is_first=place is None and not search.terms),
            cursor=packed(_Due(*after, sifted.looked)) if not is_end and after else None,
        )

    # --- finished --------------------------------------------------------------------------------------------------------

    async def _finished(self, ask: JobsAsk, search: Search, snapshot: Snapshot, viewer: Viewer) -> Jobs:
        if ask.facet not in ENDS:
            raise Refused(400, "facet", f"must be one of {', '.join(ENDS)}")
        place = unpacked(ask.cursor, _Ended)
        before, looked, found = place.entry if place else "+", place.looked if place else 0, list[Ended]()
        first: list[Ended] = []
        until_s, is_end = time.monotonic() + SEARCH_S, False
        while len(found) < ask.limit and not is_end and time.monotonic() < until_s:
            runs, cursor = await self._reads.events.events(STEP, before)
            first, is_end = first or runs, not cursor
            for run in runs:
                looked, before = looked + 1, run.entry
                if ENDS[ask.facet][1](run) and self._fits_ended(search, run, viewer):
                    found.append(run)
                    if len(found) >= ask.limit:
                        is_end = is_end and run is runs[-1]
                        break
        eyes, now_ms = self._reads.eyes(viewer), snapshot.survey.now_ms
        return _jobs(
            snapshot.survey,
            [ended_row(run, eyes, now_ms) for run in found],
            facets=[
                Facet(name=name, text=text, count=sum(map(is_one, first)), level="ok") for name, (text, is_one) in ENDS.items()
            ],
            looked=looked,
            of=looked,
            found=len(found) if search.terms else sum(map(ENDS[ask.facet][1], first)),
            said=f"newest {words.figure(looked)} looked at" if search.terms else "",
            title=["", "Runs that have ended", await self._sample_said(first, now_ms) if place is None else ""],
            cursor=packed(_Ended(before, looked)) if not is_end else None,
        )

    def _fits_ended(self, search: Search, run: Ended, viewer: Viewer) -> bool:
        error = redact_text(run.error, self._reads.rules) if viewer.can("payload") else None
        names = (run.by, run.by.partition(":")[0])
        return search.fits(Subject(type=run.type, id=run.id, names=names, attempt=run.attempt, error=error))

    async def _sample_said(self, newest: Sequence[Ended], now_ms: int) -> str:
        """Return how large a part of all runs is shown, of the last minute that was counted."""
        since_ms = (now_ms // 60_000 - 1) * 60_000
        shown = sum(1 for run in newest if run.outcome == DONE and run.at_ms >= since_ms)
        counted = await self._lists.counters(2)
        done = sum(n for (_, _, outcome), n in counted.items() if outcome == DONE)
        if not shown or done <= shown or (len(newest) == STEP and newest[-1].at_ms >= since_ms):
            return "Every failure, and a sample of successes."
        return f"Every failure, and about 1 of {words.figure(round(done / shown))} successes."

    # --- what they share -------------------------------------------------------------------------------------------------

    def _row(
        self,
        peek: Peek,
        message: Message,
        survey: Survey,
        viewer: Viewer,
        *,
        state: str,
        waits: str = "",
        note: Any = None,
        held: Any = None,
    ) -> JobRow:
        eyes, contract_of = self._reads.eyes(viewer), self._reads.contracts.of
        return row_of(peek, message, contract_of, eyes, survey.now_ms, state=state, waits=waits, note=note, held=held)

    def _fits(self, search: Search, message: Message, viewer: Viewer, now_ms: int, names: tuple[str, ...] = ()) -> bool:
        """Return whether a job fits. Arguments are looked at as the viewer would see them: what is redacted is not found."""
        if not search.terms:
            return True
        subject = Subject(
            type=message.type,
            id=message.id,
            names=names,
            src=message.source,
            group=message.group,
            attempt=message.attempt,
            age_ms=max(0, now_ms - message.first_ms) if message.first_ms else 0,
        )
        if not search.needs_payload:
            return search.fits(subject)
        rules = self._reads.rules
        raw = text_of(message.data, is_msgpack=message.is_msgpack, is_cut=message.is_cut) or ""
        if not viewer.can("payload") or not search.may_fit(subject, raw):
            return False
        contract = self._reads.contracts.of(message.type, message.version) or self._reads.contracts.of(message.type)
        shown, _ = shown_json(raw, contract.schema if contract else None, rules, is_cut=message.is_cut)
        return search.fits(msgspec.structs.replace(subject, args=shown, error=redact_text(message.error, rules)))


def searched(text: str, viewer: Viewer) -> Search:
    """Return what a viewer searches for.

    Raises:
        Refused: it cannot be read, or looks at what they may not see.
    """
    try:
        search = parse(text)
    except Unreadable as error:
        raise Refused(400, "search", str(error)) from None
    if search.needs_payload and not viewer.can("payload"):
        raise Refused(403, "right", "args:, error: and words look at messages, which needs the right payload")
    return search


def _cut(search: Search) -> int:
    return SEARCH_CUT if search.needs_payload else LIST_CUT


def _owned(one: Claimed, search: Search) -> bool:
    subject = Subject(names=(one.held.owner, one.label, one.label.partition(" ")[0]))
    return all(term.fits(subject) for term in search.terms if term.key == "owner")


def _entry_key(peek: Peek) -> tuple[int, int, int]:
    ms, _, number = peek.entry.partition("-")
    return int(ms), int(number), peek.stream


def _claim_key(sort: str | None) -> Callable[[Claimed], tuple[int, int, int, int]]:
    """Return how claims are ordered: whose owner is gone first, then what runs for longest; or by when they were sent."""

    def by_time(one: Claimed) -> tuple[int, int, int, int]:
        ms, _, number = one.held.entry.partition("-")
        sign = -1 if sort == "newest" else 1
        return 0, sign * int(ms), sign * int(number), one.held.stream

    def by_run(one: Claimed) -> tuple[int, int, int, int]:
        _, ms, number, stream = by_time(one)
        begun = one.start_ms if one.start_ms is not None else 2**53
        return (0, ms, number, stream) if not one.is_alive else (1 + begun, ms, number, stream)

    return by_time if sort in ("newest", "oldest") else by_run


def _jobs(
    survey: Survey,
    rows: list[JobRow],
    *,
    facets: list[Facet],
    looked: int,
    of: int,
    found: int,
    said: str,
    title: Said,
    cursor: str | None,
) -> Jobs:
    return Jobs(
        rows=rows,
        facets=facets,
        waiting=sum(survey.unread) + survey.in_lots,
        claimed=survey.claimed,
        delayed=survey.due,
        looked_at=looked,
        of=of,
        found=found,
        said=said,
        title=title,
        cursor=cursor,
    )


# --- words -------------------------------------------------------------------------------------------------------------------


def claimed_title(snapshot: Snapshot) -> Said:
    """Return what stands above the list of claims."""
    survey, claims = snapshot.survey, snapshot.claims
    inbox = sum(1 for one in claims if one.is_started is False)
    gone = [one for one in claims if not one.is_alive]
    n_owners = len({one.held.owner for one in gone})
    parts = [f"{words.figure(survey.claimed - inbox)} run, {words.figure(inbox)} wait in an inbox."] if inbox else []
    if gone:
        belong = "belongs" if len(gone) == 1 else "belong"
        whom = "a worker that is gone" if n_owners == 1 else f"{words.figure(n_owners)} workers that are gone"
        parts.append(f"{words.figure(len(gone))} {belong} to {whom}.")
    return ["", f"{words.counted(survey.claimed, 'job')} {'is' if survey.claimed == 1 else 'are'} claimed", " ".join(parts)]


def waiting_title(unread: int, in_lots: int) -> Said:
    """Return what stands above the list of what waits."""
    n = unread + in_lots
    lots = f"{words.figure(in_lots)} of them in lots, for a worker that knows them or for their turn." if in_lots else ""
    return ["", f"{words.counted(n, 'job')} {'waits' if n == 1 else 'wait'}", lots]


def delayed_title(n: int, rows: Sequence[JobRow], now_ms: int, *, is_first: bool) -> Said:
    """Return what stands above the list of what is delayed."""
    due_ms = rows[0].due_ms if rows and is_first else None
    when = (
        ""
        if due_ms is None
        else f"The next is due in {words.duration(due_ms - now_ms)}."
        if due_ms > now_ms
        else "The next is due now."
    )
    return ["", f"{words.counted(n, 'job')} {'is' if n == 1 else 'are'} delayed", when]


def lot_said(lot: str, message: Message, flow: Flow, priority: str) -> str:
    """Return in words what a job in a lot waits for."""
    if lot == "~free":
        return "was given back, and runs with what comes next"
    if lot == "~suspect":
        return "a worker died while it held this job: it runs apart from fresh work"
    if lot.startswith("~t:"):
        return f"waits for a worker that knows {words.name(message.type)} version {message.version}"
    return flow.waits(lot, message.group, priority)


def _all_said(looked: int, of: int, found: int | None) -> str:
    part = f"all {words.figure(of)} looked at" if looked >= of else f"{words.figure(looked)} of {words.figure(of)} looked at"
    return part if found is None else f"{part}, {words.figure(found)} found"


def _window_said(ask: JobsAsk, search: Search, sifted: Sifted, of: int, which: str) -> str:
    if not search.terms:
        return ""
    if sifted.looked >= of:
        return _all_said(of, of, sifted.fitting)
    part = f"{which} {words.figure(sifted.looked)} of {words.figure(of)} looked at"
    return f"{part}, {words.figure(sifted.fitting)} found, go on"
