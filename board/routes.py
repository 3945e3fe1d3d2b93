"""The table of the API: each route with the right that it needs, what it is asked and what it answers.

A route that is not here does not exist, and a board in which one of these has no function does not start.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from board import shapes
from board.shapes import Right, Shape


class Route(msgspec.Struct, frozen=True):
    """One route below `/api`. GET reads, POST acts; `right` is None where anybody may ask."""

    verb: Literal["GET", "POST"]
    path: str
    right: Right | None
    asks: type[shapes.Ask]
    answers: type[Shape]
    about: str


ROUTES: Final[tuple[Route, ...]] = (
    Route("GET", "meta", None, shapes.Nothing, shapes.About, "who asks, what they may do, and what this board is"),
    Route("POST", "login", None, shapes.LoginAsk, shapes.About, "begin a session with a token"),
    Route("POST", "logout", None, shapes.Nothing, shapes.About, "end this session and its streams"),
    Route("GET", "frame", "view", shapes.Nothing, shapes.Frame, "the figures of the bar"),
    Route("GET", "overview", "view", shapes.OverviewAsk, shapes.Overview, "the first page"),
    Route("GET", "jobs", "view", shapes.JobsAsk, shapes.Jobs, "a list of jobs"),
    Route("GET", "job", "view", shapes.JobAsk, shapes.Job, "one job with its life"),
    Route("GET", "payload", "payload", shapes.PayloadAsk, shapes.Payload, "the payload of a job or letter"),
    Route("POST", "cancel", "operate", shapes.ActAsk, shapes.ActedAll, "cancel jobs, also those that run"),
    Route("POST", "soon", "operate", shapes.ActAsk, shapes.ActedAll, "let delayed jobs run now"),
    Route("POST", "jobs/all", "operate", shapes.AllAsk, shapes.Operation, "cancel all jobs that fit, or run them now, in steps"),
    Route("GET", "dead/groups", "view", shapes.Nothing, shapes.Groups, "dead letters by what they died of"),
    Route("GET", "dead", "view", shapes.LettersAsk, shapes.Letters, "a list of dead letters"),
    Route("GET", "letter", "view", shapes.PlaceAsk, shapes.Letter, "one dead letter"),
    Route("POST", "dead/check", "operate", shapes.CheckAsk, shapes.Check, "what a replay would do"),
    Route("POST", "dead/replay", "operate", shapes.ReplayAsk, shapes.Operation, "start a replay that was checked"),
    Route("POST", "dead/trash", "operate", shapes.ActAsk, shapes.ActedAll, "move letters to the trash, for 7 days"),
    Route("POST", "dead/trash/group", "operate", shapes.GroupAsk, shapes.Operation, "move a whole group to the trash, in steps"),
    Route("POST", "dead/restore", "operate", shapes.ActAsk, shapes.ActedAll, "take letters out of the trash"),
    Route("POST", "validate", "payload", shapes.ValidateAsk, shapes.Validated, "check a payload against its contract"),
    Route("POST", "send", "send", shapes.SendAsk, shapes.Sent, "send one job"),
    Route("GET", "operations", "view", shapes.Nothing, shapes.Operations, "operations over many jobs or letters"),
    Route(
        "POST", "operations/stop", "operate", shapes.OperationAsk, shapes.Operation, "stop one: what is left stays where it is"
    ),
    Route("POST", "operations/resume", "operate", shapes.OperationAsk, shapes.Operation, "let one go on that stands"),
    Route("GET", "types", "view", shapes.Nothing, shapes.Types, "all types"),
    Route("GET", "type", "view", shapes.TypeAsk, shapes.Type, "one type"),
    Route("GET", "workers", "view", shapes.Nothing, shapes.Workers, "all workers"),
    Route("GET", "worker", "view", shapes.WorkerAsk, shapes.Worker, "one worker with its jobs"),
    Route("POST", "workers/order", "operate", shapes.OrderAsk, shapes.Changed, "order workers to be quiet, to go on or to stop"),
    Route("GET", "queue", "view", shapes.Nothing, shapes.Queue, "what the queue holds"),
    Route("POST", "pause", "operate", shapes.PauseAsk, shapes.Changed, "let nothing start of something"),
    Route("POST", "resume", "operate", shapes.PauseAsk, shapes.Changed, "take a pause back"),
    Route("GET", "system", "view", shapes.Nothing, shapes.System, "the server and this board"),
    Route("GET", "audit", "view", shapes.AuditAsk, shapes.Audit, "who did what, and why"),
    Route("GET", "schedules", "view", shapes.Nothing, shapes.Schedules, "all schedules"),
    Route("POST", "schedules/run", "operate", shapes.ScheduleAsk, shapes.Changed, "send a schedule's job now"),
    Route("POST", "schedules/pause", "operate", shapes.ScheduleAsk, shapes.Changed, "let a schedule fire no more"),
    Route("POST", "schedules/resume", "operate", shapes.ScheduleAsk, shapes.Changed, "let it fire again"),
)
