"""A board behind its real door, whose pages answer what a test has laid down: for tests of what a browser shows and sends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from board import shapes
from board.access import Access
from board.api import Answerer, Api, Refused
from board.auth import Auth
from board.guard import Limiter
from board.meta import MetaPage
from board.routes import ROUTES
from board.site import Site
from board.stream import Streams
from board.viewer import Viewer
from board.web import Web
from runtime.config import Config

NOW_MS = int(time.time() * 1000)
ROLES = {"view": "v" * 32, "payload": "p" * 32, "operate": "o" * 32}
BIG = "9007199254740993"  # no float has it
TEXT = f'{{\n  "order": {BIG},\n  "url": "http://files"\n}}'
REDIS = "redis://127.0.0.1:1"  # nothing asks it


def job(place: str, **members: Any) -> shapes.JobRow:
    """Return a job that a worker has."""
    claim = shapes.Claim(
        owner="web:1:ab",
        label="web · 1",
        is_alive=True,
        silent_ms=None,
        runs_ms=2000,
        timeout_ms=60_000,
        lease_ms=20_000,
        deliveries=1,
        is_started=True,
        is_suspect=False,
        back_ms=None,
        said=["It runs at ", "web · 1", "."],
    )
    row = shapes.JobRow(
        place=place,
        id=place.split("/")[-1],
        type="greet",
        pri="high",
        state="claimed",
        attempt=1,
        attempts=8,
        args='{"secret":1}',
        size=12,
        age_ms=1000,
        source="",
        due_ms=None,
        waits="",
        error="",
        note=None,
        claim=claim,
        end=None,
        progress=None,
    )
    return msgspec.structs.replace(row, **members)


def letter(place: str, **members: Any) -> shapes.LetterRow:
    """Return a dead letter as a list has it."""
    row = shapes.LetterRow(
        place=place,
        id=place.split("/")[-1],
        type="greet",
        pri="high",
        reason="attempts",
        error="ValueError",
        args='{"secret":1}',
        attempts=8,
        died_ms=NOW_MS,
    )
    return msgspec.structs.replace(row, **members)


def worker(name: str, **members: Any) -> shapes.WorkerRow:
    """Return a worker as lists have it."""
    row = shapes.WorkerRow(
        name=name,
        label=name,
        host="web",
        pid=1,
        version="0.1.0",
        app="",
        up_ms=1000,
        rss_bytes=2**20,
        lag_ms=4,
        lanes=10,
        busy=0,
        held=0,
        longest=None,
        stage="running",
        order="",
        beat_ms=100,
        is_alive=True,
        level="ok",
        note="",
    )
    return msgspec.structs.replace(row, **members)


class Canned:
    """What is answered now: a test changes it while the browser looks. `asked` has each POST with its body."""

    def __init__(self) -> None:
        self.jobs = [job(f"high/{n}-0") for n in range(1, 5)]
        self.letters = [letter(f"dead/{n}-0") for n in range(1, 121)]
        self.workers: list[shapes.WorkerRow] = []
        self.message = "no such account"
        self.moved = False
        self.found = 0  # jobs that fit, where they are more than the rows
        self.operation: shapes.Operation | None = None
        self.asked: list[tuple[str, Any]] = []

    def routes(self) -> dict[str, Answerer]:
        """Return what answers which route."""
        answers: dict[str, Callable[[Any, Viewer], shapes.Shape]] = {
            "GET frame": self._frame,
            "GET jobs": self._jobs,
            "GET job": self._job,
            "GET payload": lambda ask, viewer: shapes.Payload(
                text=TEXT, is_cut=False, size=len(TEXT), version=1, fits=True, problems=[], redacted=[]
            ),
            "GET types": lambda ask, viewer: shapes.Types(types=[]),
            "GET workers": lambda ask, viewer: shapes.Workers(workers=self.workers, said=[""]),
            "GET worker": lambda ask, viewer: shapes.Worker(row=self.workers[0], jobs=self.jobs, facts=[], blocked=[]),
            "GET dead/groups": self._groups,
            "GET dead": self._letters,
            "GET letter": self._letter,
            "GET operations": lambda ask, viewer: shapes.Operations(operations=[self.operation] if self.operation else []),
            "POST cancel": self._acted,
            "POST jobs/all": self._ordered,
            "POST dead/check": self._check,
            "POST dead/replay": self._replay,
            "POST operations/stop": self._stop,
            "POST validate": self._validated,
        }
        return {name: self._answerer(name, answer) for name, answer in answers.items()}

    @contextlib.asynccontextmanager
    async def subscribe(
        self, topics: frozenset[str], range: shapes.Range, viewer: Viewer
    ) -> AsyncGenerator[AsyncIterator[shapes.Tick]]:
        """Return a tick each second, as a sampler makes them."""
        yield self._ticks(viewer)

    async def _ticks(self, viewer: Viewer) -> AsyncIterator[shapes.Tick]:
        while True:
            yield shapes.Tick(frame=self._frame(shapes.Nothing(), viewer), overview=None)
            await asyncio.sleep(1)

    def _answerer(self, name: str, answer: Callable[[Any, Viewer], shapes.Shape]) -> Answerer:
        async def answered(ask: Any, viewer: Viewer) -> shapes.Shape:
            if name.startswith("POST"):
                self.asked.append((name, ask))
            return answer(ask, viewer)

        return answered

    def _frame(self, ask: shapes.Nothing, viewer: Viewer) -> shapes.Frame:
        counts = shapes.Counts(jobs=4, dead=120, types=1, workers=1, schedules=0, findings=0, operations=0)
        return shapes.Frame(
            now_ms=int(time.time() * 1000),
            level="ok",
            looks=0,
            acts=0,
            counts=counts,
            dead_level="ok",
            system_level="ok",
            workers_level="ok",
            age_ms=0,
            trouble=None,
        )

    def _jobs(self, ask: shapes.JobsAsk, viewer: Viewer) -> shapes.Jobs:
        rows = [row if viewer.can("payload") else msgspec.structs.replace(row, args=None) for row in self.jobs]
        return shapes.Jobs(
            rows=rows,
            facets=[shapes.Facet(name="all", text="All", count=len(rows), level="ok")],
            waiting=0,
            claimed=len(rows),
            delayed=0,
            looked_at=len(rows),
            of=len(rows),
            found=self.found or len(rows),
            said="",
            title=["", f"{len(rows)} jobs are claimed", ""],
            cursor=None,
        )

    def _job(self, ask: shapes.JobAsk, viewer: Viewer) -> shapes.Job:
        step = shapes.Step(
            kind="attempt",
            attempt=1,
            from_ms=NOW_MS - 5000,
            to_ms=NOW_MS,
            level="act",
            outcome="retry",
            worker="web · 1",
            app="1.4.2",
            error="ValueError",
            message=self.message if viewer.can("payload") else None,
            frame="handlers/a.py:1 greet",
            trace=None,
            same_as=None,
            lines=[],
        )
        row = next((row for row in self.jobs if ask.place in (row.place, "")), self.jobs[0])
        row = row if viewer.can("payload") else msgspec.structs.replace(row, args=None)
        fact = shapes.Fact(name="state", text="claimed", is_code=False)
        said = ["It runs at ", "web · 1", "."]
        return shapes.Job(row=row, said=said, steps=[step], facts=[fact], result=None, group=None, can=["cancel"], now_ms=NOW_MS)

    def _groups(self, ask: shapes.Nothing, viewer: Viewer) -> shapes.Groups:
        group = shapes.Group(
            fp="f1",
            type="greet",
            reason="attempts",
            error="ValueError",
            message=self.message if viewer.can("payload") else None,
            frame="handlers/a.py:1 greet",
            count=len(self.letters),
            hours=[0] * 24,
            first_ms=NOW_MS - 5000,
            last_ms=NOW_MS,
            last_hour=0,
            grows=False,
            apps=["1.4.2"],
            trace=None,
        )
        return shapes.Groups(groups=[group], letters=len(self.letters), grouped=len(self.letters), trash=0)

    def _letters(self, ask: shapes.LettersAsk, viewer: Viewer) -> shapes.Letters:
        rows = [row if viewer.can("payload") else msgspec.structs.replace(row, args=None) for row in self.letters[: ask.limit]]
        return shapes.Letters(rows=rows, of=len(self.letters), said="", cursor=None)

    def _letter(self, ask: shapes.PlaceAsk, viewer: Viewer) -> shapes.Letter:
        row = next(row for row in self.letters if row.place == ask.place)
        may = viewer.can("payload")
        frame = shapes.StackFrame(function="greet", file="handlers/a.py", line=1, code=self.message, is_own=True)
        return shapes.Letter(
            row=row if may else msgspec.structs.replace(row, args=None),
            group="f1",
            message=self.message if may else None,
            frames=[frame] if may else None,
            stack=self.message if may else None,
            facts=[],
            steps=[],
            trace=None,
            is_in_trash=False,
            deleted_ms=None,
        )

    def _acted(self, ask: shapes.ActAsk, viewer: Viewer) -> shapes.ActedAll:
        text = "it had moved on: done 2 s ago" if self.moved else "it is cancelled"
        results = [shapes.Acted(place=place, is_done=not self.moved, answer="", text=text) for place in ask.places]
        return shapes.ActedAll(results=results, done=0 if self.moved else len(results), text="done")

    def _check(self, ask: shapes.CheckAsk, viewer: Viewer) -> shapes.Check:
        many = len(ask.places) or len(self.letters)
        found = shapes.Finding(kind="fit", level="ok", count=many, text="would run", why="")
        return shapes.Check(id="c1", total=many, looked_at=many, would_run=many, findings=[found], until_ms=NOW_MS + 300_000)

    def _replay(self, ask: shapes.ReplayAsk, viewer: Viewer) -> shapes.Operation:
        self.operation = shapes.Operation(
            id="replay-1",
            verb="replay",
            what="replay of 120 letters",
            state="held",
            total=120,
            looked=0,
            done=0,
            refused={},
            died=0,
            rate_s=ask.rate,
            who="ada",
            reason=ask.reason,
            created_ms=int(time.time() * 1000),
            starts_ms=int(time.time() * 1000) + 600_000,
            ends_ms=None,
            text="nothing is done yet",
            can=["stop"],
        )
        return self.operation

    def _ordered(self, ask: shapes.AllAsk, viewer: Viewer) -> shapes.Operation:
        return self._replay(shapes.ReplayAsk(check="", count=120, reason=ask.reason), viewer)

    def _stop(self, ask: shapes.OperationAsk, viewer: Viewer) -> shapes.Operation:
        assert self.operation is not None
        self.operation = msgspec.structs.replace(self.operation, state="stopped", starts_ms=None, text="stopped", can=["resume"])
        return self.operation

    def _validated(self, ask: shapes.ValidateAsk, viewer: Viewer) -> shapes.Validated:
        lines = ask.text.split("\n")
        wrong = [
            shapes.Problem(path="url", line=at + 1, text="expected https") for at, line in enumerate(lines) if '"http:' in line
        ]
        was = TEXT.split("\n")
        diff = [shapes.Line(mark="+" if line not in was else " ", text=line) for line in lines]
        return shapes.Validated(problems=wrong, is_checked=True, checked_by="its contract", diff=diff)


async def nothing(ask: object, viewer: Viewer) -> shapes.Changed:
    """Refuse: no canned answer is there for this route."""
    raise Refused(404, "canned", "nothing is canned for this route")


@contextlib.asynccontextmanager
async def serving(canned: Canned, folder: Path) -> AsyncGenerator[str]:
    """Serve a board that answers so; yields its address. The tokens of its roles are in ROLES."""
    config = Config(queue="jobs", board="127.0.0.1:0", data_dir=str(folder))
    allowed = Access(ROLES, None, may_send=True, is_open=False, prefix="", hosts=(), label="", label_level="ok")
    auth, limiter = Auth(allowed), Limiter()
    others = {f"{route.verb} {route.path}": nothing for route in ROUTES}
    answerers = others | canned.routes() | MetaPage(REDIS, config, allowed, auth).routes()
    pages = Web(Api(answerers), auth, allowed, Streams(canned), "127.0.0.1", limiter)
    async with Site("127.0.0.1", 0, {}, pages) as site:
        yield site.url
