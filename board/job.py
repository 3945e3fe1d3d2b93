"""JobPage tells of one job: where it is, its life so far, what it says of itself, and what may be done with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import msgspec

from board import words
from board.api import Answerer, Refused
from board.fingerprint import cause_of
from board.jobrows import Claimed, Eyes, Message, claim, claims_of, ended_row, message_of, note_of, row_of
from board.jobs import Reads, Snapshot, lot_said
from board.life import Life, Lost, State, ended, said, steps_of
from board.payloads import shown_json
from board.redact import HIDDEN, redact_text, visible
from board.shapes import Fact, Job, JobAsk, JobRow, Progress, Step
from board.viewer import Viewer
from runtime.codec import DATA, TYPE, as_text, read_letter, without_tries
from runtime.ended import DUPLICATE, Ended
from runtime.jobs import default_id
from runtime.results import parse
from runtime.said import MAX_LINES, Attempt, Report
from runtime.store.base import LOOK_AT
from runtime.store.lists import DUE_STREAM, WHOLE_CUT, Held, Peek, place_of
from runtime.tries import Try

ATTEMPTS: Final = 12  # ended attempts whose lines are shown; as many as a job remembers
MAX_RESULT: Final = 16 << 10  # characters of a result that are shown; a guess: as of a payload
MAX_FACT: Final = 300  # characters of a field that are shown; a guess
Can = Literal["cancel", "soon", "replay", "trash", "edit"]
GONE: Final = (
    "It is not here now: it was never sent, or has ended. Each failure is remembered for a while, and a sample of what was done."
)


class JobPage:
    """Answers GET job."""

    def __init__(self, reads: Reads) -> None:
        self._reads = reads
        self._lists = reads.lists

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        return {"GET job": self.job}

    async def job(self, ask: JobAsk, viewer: Viewer) -> Job:
        """Return what is known of a job."""
        if not ask.place and not ask.id:
            raise Refused(400, "asked", "a place or an id is needed")
        snapshot = await self._reads.snapshot()
        await self._reads.contracts.fresh()
        place = ask.place
        is_live = place != "" and not place.startswith("trash/")  # what is in the trash is a letter, and no job any more
        peek = await self._lists.whole_at(place) if is_live else None
        if peek is None and (job_id := ask.id or _default_id(place)):
            place = await self._place_of(job_id)
            peek = await self._lists.whole_at(place) if place else None
        if peek is None:
            return await self._ended(ask.id or _default_id(ask.place), viewer, snapshot)
        if place.startswith("dead/"):
            return await self._dead(peek, viewer, snapshot)
        return await self._live(peek, viewer, snapshot)

    async def _place_of(self, job_id: str) -> str:
        """Return where the newest job of an id is: one that is not dead, where there is one."""
        found = await self._lists.find_job(job_id, LOOK_AT)
        found.sort(key=lambda job: (job.state != "dead", job.born_ms))
        return found[-1].place if found else ""

    # --- in the queue ----------------------------------------------------------------------------------------------------

    async def _live(self, peek: Peek, viewer: Viewer, snapshot: Snapshot) -> Job:
        message, survey = message_of(peek, WHOLE_CUT), snapshot.survey
        held = None if peek.stream == DUE_STREAM else await self._lists.holder_of(peek.stream, peek.entry)
        state: State = "delayed" if peek.stream == DUE_STREAM else "waiting" if held is None else "claimed"
        if held is not None and held.owner.startswith("~"):
            state = "lot"
        one = self._claimed(held, message, snapshot) if held is not None and state == "claimed" else None
        waits = await self._waits(held, message, peek, state)
        report = await self._report(one) if one is not None and viewer.can("payload") else None
        cancelled = (await self._lists.cancels_of([peek.place]))[0] if one else ""
        row = row_of(
            peek,
            message,
            self._reads.contracts.of,
            self._reads.eyes(viewer),
            survey.now_ms,
            state=state,
            waits=waits,
            note=note_of(one, snapshot.has_workers, cancelled) if one else None,
            held=claim(one, snapshot.has_workers) if one else None,
        )
        life = Life(
            state=state,
            now_ms=survey.now_ms,
            born_ms=message.first_ms or survey.now_ms,
            attempt=message.attempt,
            attempts=row.attempts,
            tries=message.tries,
            lost=await self._lost(message.id),
            due_ms=peek.due_ms,
            owner=one.label if one else "",
            app=survey.workers[one.held.owner][1].app if one and one.held.owner in survey.workers else "",
            since_ms=one.start_ms if one else None,
            is_alive=one is None or one.is_alive,
            lines=await self._lines(message.id, viewer),
        )
        is_gone = one is not None and not one.is_alive
        can: list[Can] = [] if not viewer.can("operate") else ["cancel", "soon"] if state == "delayed" else ["cancel"]
        return Job(
            row=msgspec.structs.replace(row, progress=_progress(report, self._reads.rules)),
            said=claim(one, snapshot.has_workers).said if one is not None and is_gone else said(life, waits=waits),
            steps=steps_of(life, self._shown(viewer)),
            facts=self._facts(peek, message, row, viewer, snapshot),
            result=None,
            group=_group(message, "attempts"),
            can=can,
            now_ms=survey.now_ms,
        )

    def _claimed(self, held: Held, message: Message, snapshot: Snapshot) -> Claimed:
        [one] = claims_of(snapshot.survey, [held], self._reads.contracts.of)
        contract = self._reads.contracts.of(message.type)
        return msgspec.structs.replace(one, timeout_ms=contract.timeout_ms) if contract and one.timeout_ms is None else one

    async def _waits(self, held: Held | None, message: Message, peek: Peek, state: State) -> str:
        if state in ("claimed", "delayed"):
            return ""
        flow = await self._reads.flow()
        return (
            flow.waits("", message.group, peek.priority) if held is None else lot_said(held.owner, message, flow, peek.priority)
        )

    async def _report(self, one: Claimed) -> Report | None:
        reports = await self._lists.progress_of(one.held.owner)
        return next((report for report in reports if report.place == one.held.place), None)

    async def _lost(self, job_id: str) -> list[Lost]:
        """Return the deliveries of a job that were lost, as far as that is remembered."""
        runs = await self._reads.events.events_of(job_id, ATTEMPTS)
        return [Lost(run.at_ms, run.by, run.app) for run in runs if run.outcome == "lost"]

    async def _lines(self, job_id: str, viewer: Viewer) -> dict[int, list[str]]:
        """Return what attempts have logged, by their number."""
        if not viewer.can("payload"):
            return {}
        logs: Sequence[Attempt] = await self._lists.logs_of(job_id, ATTEMPTS)
        rules = self._reads.rules
        return {one.attempt: [visible(redact_text(line, rules)) for line in _last_lines(one)] for one in reversed(logs)}

    # --- dead, or not here -----------------------------------------------------------------------------------------------

    async def _dead(self, peek: Peek, viewer: Viewer, snapshot: Snapshot) -> Job:
        message, survey = message_of(peek, WHOLE_CUT), snapshot.survey
        death, _ = read_letter(peek.fields)
        tries = message.tries
        priority = death.stood.partition("/")[0]
        place = f"dead/{peek.entry}"
        row = row_of(
            msgspec.structs.replace(peek, stream=0, priority=priority),
            message,
            self._reads.contracts.of,
            self._reads.eyes(viewer),
            survey.now_ms,
            state="dead",
        )
        kind = tries[-1].error_class if tries else ""
        row = msgspec.structs.replace(
            row,
            place=place,
            id=visible(message.id),
            attempt=death.attempts,
            age_ms=max(0, survey.now_ms - message.first_ms) if message.first_ms else None,
            error=visible(redact_text(death.error[:MAX_FACT], self._reads.rules))
            if viewer.can("payload")
            else kind or death.reason,
        )
        life = Life(
            state="dead",
            now_ms=survey.now_ms,
            born_ms=message.first_ms or (tries[0].at_ms if tries else death.at_ms),
            attempt=death.attempts,
            tries=tries,
            lost=await self._lost(message.id),
            lines=await self._lines(message.id, viewer),
        )
        acts: list[Can] = ["replay", "trash"] if viewer.can("operate") else []
        edits: list[Can] = ["edit"] if viewer.can("send") and viewer.can("payload") else []
        ago = f" It died {words.ago(survey.now_ms - death.at_ms)}." if death.at_ms else ""
        told = said(life, reason=death.reason)
        return Job(
            row=row,
            said=[*told[:-1], told[-1] + ago],
            steps=steps_of(life, self._shown(viewer)),
            facts=[
                Fact(name="reason", text=visible(death.reason), is_code=False),
                *self._facts(peek, message, row, viewer, snapshot),
            ],
            result=None,
            group=cause_of(
                message.type, death.reason, death.error, tries[-1].frame if tries else "", has_stack=bool(death.stack)
            ).fp,
            can=acts + edits,
            now_ms=survey.now_ms,
        )

    async def _ended(self, job_id: str, viewer: Viewer, snapshot: Snapshot) -> Job:
        """Return what is still known of a job that is nowhere.

        Raises:
            Refused: nothing is.
        """
        now_ms = snapshot.survey.now_ms
        logs = await self._lists.logs_of(job_id, ATTEMPTS) if job_id else []
        text = await self._lists.result_of(job_id) if job_id else ""
        result = parse(text.encode(errors="replace"))
        runs = await self._reads.events.events_of(job_id, ATTEMPTS) if job_id else []
        end = self._end(job_id, logs, result, viewer)
        # Behind a run that was lost, or is retried, came another one: where that was done, perhaps its lines alone tell of it.
        if runs and (end is None or runs[0].outcome not in ("lost", "retry") or (end[1].to_ms or 0) <= runs[0].at_ms):
            end = _of_run(runs[0], logs, self._reads.eyes(viewer), now_ms)
        if end is None:
            raise Refused(404, "gone", GONE)
        row, last = end
        life = Life("finished", now_ms, born_ms=last.from_ms, attempt=last.attempt or 1, end=last)
        return Job(
            row=row,
            said=said(life),
            steps=steps_of(life, self._shown(viewer)),
            facts=[],
            result=self._result(result, viewer),
            group=None,
            can=[],
            now_ms=now_ms,
        )

    def _end(self, job_id: str, logs: Sequence[Attempt], result: Any, viewer: Viewer) -> tuple[JobRow, Step] | None:
        if not logs and result is None:
            return None
        newest = logs[0] if logs else None
        at_ms = result.at if result is not None else newest.at_ms if newest else 0
        outcome = result.state if result is not None else (newest.outcome if newest else "") or "done"
        attempt = newest.attempt if newest else max(1, result.attempts if result else 1)
        lines = [visible(redact_text(line, self._reads.rules)) for line in _last_lines(newest)] if newest else []
        row = JobRow(
            place="",
            id=visible(job_id),
            type=visible(newest.type) if newest else "",
            pri=None,
            state="finished",
            attempt=attempt,
            attempts=None,
            args=None,
            size=0,
            age_ms=None,
            source="",
            due_ms=None,
            waits="",
            error="",
            note=None,
            claim=None,
            end=None,
            progress=None,
        )
        level = "ok" if outcome == "done" else "act"
        shown = lines if viewer.can("payload") else []
        return row, ended("attempt", at_ms, at_ms, level=level, outcome=outcome, attempt=attempt, lines=shown)

    def _result(self, result: Any, viewer: Viewer) -> str | None:
        """Return what a job has answered, as its viewer may see it."""
        if result is None or result.state != "done" or not viewer.can("payload"):
            return None
        shown, _ = shown_json(bytes(result.value).decode(errors="replace")[:MAX_RESULT], None, self._reads.rules, is_cut=True)
        return shown

    # --- what they share -------------------------------------------------------------------------------------------------

    def _shown(self, viewer: Viewer) -> Callable[[str], str | None]:
        """Return what makes of a message what a viewer may see of it."""
        rules, may_see = self._reads.rules, viewer.can("payload")

        def shown(message: str) -> str | None:
            return redact_text(message, rules) if may_see else None

        return shown

    def _facts(self, peek: Peek, message: Message, row: JobRow, viewer: Viewer, snapshot: Snapshot) -> list[Fact]:
        """Return what else a message says; what may be anything is for those who may see arguments."""
        now_ms = snapshot.survey.now_ms
        facts = [Fact(name="state", text=_state(row), is_code=False)]
        if row.due_ms is not None:
            left_ms = row.due_ms - now_ms
            facts.append(Fact(name="next run", text=f"in {words.duration(left_ms)}" if left_ms > 0 else "now", is_code=False))
        if message.first_ms:
            facts.append(Fact(name="sent", text=words.ago(now_ms - message.first_ms), is_code=False))
        named = (("group", message.group, False), ("sent by", message.source, False), ("place", row.place, True))
        facts += [Fact(name=name, text=visible(text)[:MAX_FACT], is_code=is_code) for name, text, is_code in named if text]
        if row.claim is not None:
            facts.append(Fact(name="deliveries", text=words.figure(row.claim.deliveries), is_code=False))
        facts.append(Fact(name="size", text=words.counted(peek.size, "byte"), is_code=False))
        facts.append(Fact(name="version", text=str(message.version), is_code=False))
        return facts + (self._fields(peek) if viewer.can("payload") else [])

    def _fields(self, peek: Peek) -> list[Fact]:
        """Return the fields of a message but its type and payload, redacted."""
        rules, found = self._reads.rules, list[Fact]()
        known = {TYPE.decode(), DATA.decode()}
        for name, text in without_tries(as_text(peek.fields)).items():
            if name in known or name.startswith("dead_"):
                continue
            shown = HIDDEN if rules.is_secret(name) else redact_text(text[:MAX_FACT], rules)
            found.append(Fact(name=visible(name)[:60], text=visible(shown), is_code=True))
        return found[:100]


def _of_run(run: Ended, logs: Sequence[Attempt], eyes: Eyes, now_ms: int) -> tuple[JobRow, Step]:
    """Return the row of a job by the last of its runs, and that run as a step."""
    row = ended_row(run, eyes, now_ms)
    said_of = next((one for one in logs if one.attempt == run.attempt), None)
    lines = [visible(redact_text(line, eyes.rules)) for line in _last_lines(said_of)] if said_of and eyes.can_see else []
    kind = Try(run.attempt, 0, error=run.error).error_class
    message = visible(redact_text(run.error.partition(": ")[2] if kind else run.error, eyes.rules)) if run.error else None
    return row, ended(
        "lost" if run.outcome == "lost" else "attempt",
        max(0, run.at_ms - run.run_ms),
        run.at_ms,
        level="ok" if run.outcome == "done" else "look" if run.outcome == DUPLICATE else "act",
        outcome=run.outcome,
        attempt=run.attempt,
        worker=run.by,
        app=run.app,
        error=kind,
        message=message if eyes.can_see else None,
        frame=run.frame,
        trace=run.trace or None,
        lines=lines,
    )


def _last_lines(one: Attempt) -> list[str]:
    return one.text.splitlines()[-MAX_LINES:]


def _default_id(place: str) -> str:
    """Return the id that a job at a place has where its message carries none."""
    where = place_of(place)
    if where is None:
        return ""
    return where[1] if where[0] == DUE_STREAM else default_id(place.partition("/")[0], where[1])


def _state(row: JobRow) -> str:
    of = f" of {row.attempts:,}" if row.attempts else ""
    return f"{row.state}, attempt {row.attempt:,}{of}"


def _group(message: Message, reason: str) -> str | None:
    """Return the group of dead letters in which a job would be that failed as it did last."""
    last: Try | None = message.tries[-1] if message.tries and not message.tries[-1].is_replay else None
    return None if last is None else cause_of(message.type, reason, last.error, last.frame, has_stack=True).fp


def _progress(report: Report | None, rules: Any) -> Progress | None:
    if report is None:
        return None
    return Progress(
        done=None if report.done is None else float(report.done),
        total=None if report.total is None else float(report.total),
        text=visible(redact_text(report.text, rules)),
        at_ms=report.at_ms,
        lines=[visible(redact_text(line, rules)) for line in report.lines],
    )
