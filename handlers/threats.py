"""A handler that looks for attacks in logs: `analyze-threats`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Final

import msgspec

from handlers.contracts.notifications import SendNotification
from handlers.contracts.threats import (
    DETECTIONS,
    LEVELS,
    MAX_REPORTED,
    MAX_TOP,
    AnalyzeThreats,
    Detection,
    Level,
    Reported,
    SourceRead,
    ThreatReport,
    ThreatsAnalyzed,
    Top,
)
from handlers.contracts.windows import Span
from handlers.kit.deliveries import check_scheduled_channel
from handlers.kit.detections import BLINDNESS, LEVEL_OF, Detections, Hits
from handlers.kit.failures import BAD_PAYLOAD, unlogged, wait_for_operator
from handlers.kit.files import Writer, open_below, open_root, parts_of, target
from handlers.kit.findings import Memory, Outcome, Run, Seen, opened_memory
from handlers.kit.logs import decoded, parser_of, printable
from handlers.kit.points import point
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.sections import Threats
from handlers.kit.settings import Settings, at_start, current
from handlers.kit.sigma import Rules, Scratch, windows_of
from handlers.kit.tails import Place, Tail
from handlers.kit.threads import Stop
from runtime import Backoff, ConfigError, Dead, Finding, Job, Priority, Schedule, Snooze, handler

log = logging.getLogger("handlers.threats")

MEMORY_BYTES: Final = 768 * 2**20  # a guess: some 120 MiB are measured (`bench/handlers_threats.py`), and more with many subjects
LEAST_LINES: Final = 20  # a guess: of fewer, a few that cannot be parsed are no sign
MAX_ALERTS: Final = 20  # of a run, each by itself, a guess: of more, people read the report
MAX_RESULT_BYTES: Final = 4096
RESULT_SUBJECT_CHARS: Final = 64
# Of its schedules:
EXPIRES_S: Final = 3600.0  # a guess: each run reads on from where the last one stopped
JITTER_S: Final = 30.0  # a guess: not all at once


def SCHEDULES() -> list[Schedule]:
    """Return a schedule for each of `threats` in the settings that is enabled.

    Raises:
        ConfigError: the settings cannot be used, or an analysis names what is not in them or does not allow it.
    """
    settings = at_start()
    return [_schedule(alias, settings) for alias, analysis in settings.threats.items() if analysis.enabled]


def _schedule(alias: str, settings: Settings) -> Schedule:
    analysis = settings.threats[alias]
    for root in (analysis.state, analysis.to):
        settings.check_root(f"threats.{alias}", root, "write")
    for name in set(analysis.sources) - set(settings.logs):
        raise ConfigError(f"threats.{alias}: source {name!r}: must be in `logs`")
    if analysis.rules is not None and analysis.rules not in settings.rules:
        raise ConfigError(f"threats.{alias}: rules {analysis.rules!r}: must be in `rules`")
    check_scheduled_channel(f"threats.{alias}", settings, analysis.notify)
    name, job = f"analyze-threats.{alias}", AnalyzeThreats(analysis=alias)
    return Schedule(name, analysis.when, job, tz=analysis.tz, missed="latest", jitter_s=JITTER_S, expires_s=EXPIRES_S)


def CHECKS() -> list[Finding]:
    """Return a finding for each source and each folder of rules of an analysis: whether it can be read."""
    with unlogged():
        settings = current()
        logs = {alias for analysis in settings.threats.values() for alias in analysis.sources}
        rules = {analysis.rules for analysis in settings.threats.values() if analysis.rules is not None}
        return [
            *(_checked_log(alias, settings) for alias in sorted(logs)),
            *(_checked_rules(alias, settings) for alias in sorted(rules)),
        ]


def _checked_log(alias: str, settings: Settings) -> Finding:
    try:
        source = settings.log(alias)
        with open_root(source.root, settings.root(source.root)) as top, open_below(top, parts_of(source.folder)) as folder:
            tail = Tail(folder, source.glob, [], Stop(), most_bytes=0)
            list(tail.lines())
    except (Snooze, OSError) as error:
        return Finding("error", f"logs.{alias}: {error}")
    if tail.faults:
        return Finding("warning", f"logs.{alias}: {printable(tail.faults[0])}")
    return Finding("ok", f"logs.{alias}: {tail.files} files can be read")


def _checked_rules(alias: str, settings: Settings) -> Finding:
    with contextlib.closing(Scratch(Stop())) as scratch:
        rules = Rules(scratch)
        try:
            rules.load(settings, alias)
        except (Dead, Snooze, OSError) as error:
            return Finding("error", f"rules.{alias}: {error}")
    if rules.failed:
        first = rules.failed[0]
        return Finding("warning", f"rules.{alias}: {len(rules.failed)} cannot be used; {first.rule}: {first.reason}")
    return Finding("ok", f"rules.{alias}: {len(rules.rules)} rules can be used")


@handler(
    AnalyzeThreats,
    timeout_s=900,
    retry=Backoff(base_s=30, cap_s=600, attempts=5),
    runs="process",
    memory_bytes=MEMORY_BYTES,
    result_ttl_s=RESULT_TTL_S,
)
def analyze_threats(message: AnalyzeThreats, job: Job) -> ThreatsAnalyzed:
    """Return when the logs were read, what was found is kept, the report is written, and the jobs that alert people are sent.

    Runs in a child process. May be repeated: what was read and found is committed in one step, and a repeat finds it. Of two runs
    that read on from the same place, the later one does nothing. People are told of each finding once: `kit/findings` says how.

    Raises:
        Dead: the job cannot succeed: `rule-error`, where no rule can be used; `bad-path`, `output-exists`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `bad-channel`, `out-of-space`; or another run is not
            over: `locked`.
        sqlite3.Error, OSError, MemoryError: retried by the policy.
    """
    settings, stop = current(), Stop()
    analysis = settings.analysis(message.analysis)
    if analysis.notify is not None and settings.channel(analysis.notify).dynamic:
        raise wait_for_operator(f"threats.{message.analysis}", "bad-channel", "channel must have a url, and not be dynamic")
    _check_asked(message, analysis)
    with opened_memory(settings, message.analysis, stop) as memory:
        if message.confirm:
            return ThreatsAnalyzed(confirmed=memory.confirm(message.confirm))
        run = memory.run(job.work) or _Analysis(message, analysis, job, settings, stop).run(memory)
        if run is None:
            return ThreatsAnalyzed(raced=True)
        alerts = memory.owned(job.work)
    result = run.result
    try:
        _publish(run, settings, job, stop)
    except (Dead, Snooze, OSError) as error:
        if not alerts:
            raise
        log.error("threats.%s: the report could not be written, and people are told without it: %s", message.analysis, error)
        result = msgspec.structs.replace(result, report="")
    _alert(message, analysis.notify, alerts, job)
    return result


def _check_asked(message: AnalyzeThreats, analysis: Threats) -> None:
    """Return if the analysis has what the payload asks for a part of.

    Raises:
        Dead: it has not; what is not looked at would be taken for clean; `bad-payload`.
    """
    parts = (
        ("sources", message.sources, analysis.sources),
        ("detections", message.detections, analysis.detections or DETECTIONS),
    )
    for field, asked, known in parts:
        for name in asked or ():
            if name not in known:
                raise Dead(f"threats.{message.analysis} has no {name}; hint: {', '.join(known)} - at `$.{field}`", BAD_PAYLOAD)


class _Analysis:
    """One run: reads the logs, looks for attacks, and commits what it found."""

    def __init__(self, message: AnalyzeThreats, analysis: Threats, job: Job, settings: Settings, stop: Stop) -> None:
        self._message = message
        self._analysis = analysis
        self._job = job
        self._settings = settings
        self._stop = stop
        self._span = message.window.at(job.born) if message.window else None
        self._aliases = [alias for alias in analysis.sources if not message.sources or alias in message.sources]
        self._hits = Hits()
        asked = message.detections or DETECTIONS
        wanted: list[Detection] = [each for each in analysis.detections or DETECTIONS if each in asked]
        self._detections = Detections(wanted, analysis.thresholds, self._hits)
        self._sources: list[SourceRead] = []
        self._places: dict[str, list[Place]] = {}
        self._read_bytes = 0

    def run(self, memory: Memory) -> Run | None:
        """Return what was committed; None if another run was first."""
        seen = memory.seen()
        with contextlib.ExitStack() as stack:
            rules, scratch = self._rules(stack)
            windows = {**self._detections.windows, **windows_of(rules.rules if rules else ())}
            if self._span is None:
                for name, window in windows.items():
                    window.restore(seen.windows.get(name, {}))
            known = {alias: seen.places.get(alias, []) if self._span is None else [] for alias in self._aliases}
            # Each source has its part of `max_bytes`, and what those leave that have less: whoever fills up one hides no other.
            waiting = sorted(self._aliases, key=lambda alias: self._waiting_bytes(alias, known[alias]))
            for number, alias in enumerate(waiting):
                most_bytes = (self._analysis.max_bytes - self._read_bytes) // (len(waiting) - number)
                self._read(alias, known[alias], scratch, most_bytes)
            self._sources.sort(key=lambda read: self._aliases.index(read.source))
            self._detections.finish()
            if rules is not None and scratch is not None:
                scratch.run(rules, windows, self._hits)
        if rules is not None and rules.failed:
            self._note("rules-failed", self._message.analysis, len(rules.failed))
        if self._hits.dropped:
            self._note("findings-dropped", self._message.analysis, self._hits.dropped)
        point("threats-read")
        outcome = Outcome(self._hits, self._analysis.notify_from if self._analysis.notify else None)
        if self._span is None:
            kept = {name: window.subjects for name, window in windows.items()}
            outcome = msgspec.structs.replace(
                outcome, before=seen.number, seen=Seen(seen.number + 1, self._job.born, self._places, kept)
            )
        gap_s = None if self._span is not None or seen.born_s is None else max(0, int(self._job.born - seen.born_s))
        return memory.commit(
            self._job.work, self._job.born, outcome, lambda found: self._report(found, rules, gap_s), self._result
        )

    def _rules(self, stack: ExitStack) -> tuple[Rules | None, Scratch | None]:
        if self._analysis.rules is None:
            return None, None
        scratch = Scratch(self._stop)
        stack.callback(scratch.close)
        rules = Rules(scratch)
        rules.load(self._settings, self._analysis.rules)
        return rules, scratch

    def _note(self, rule: str, subject: str, count: int) -> None:
        """Note that something could not be looked at."""
        self._hits.add(rule, subject, LEVEL_OF[rule], self._job.born, self._job.born, count)

    def _opened(self, stack: ExitStack, alias: str, known: Sequence[Place], most_bytes: int) -> Tail:
        source = self._settings.log(alias)
        root = self._settings.root(source.root)
        with unlogged():  # the other sources are read, and people are told
            top = stack.enter_context(open_root(source.root, root))
        folder = stack.enter_context(open_below(top, parts_of(source.folder)))
        since_s = self._span.begin.timestamp() if self._span else 0.0
        return Tail(folder, source.glob, known, self._stop, most_bytes=most_bytes, since_s=since_s)

    def _waiting_bytes(self, alias: str, known: Sequence[Place]) -> int:
        with contextlib.ExitStack() as stack, contextlib.suppress(Snooze, OSError):  # `_read` tells of it
            tail = self._opened(stack, alias, known, 0)
            list(tail.lines())
            return tail.left_bytes
        return 0

    def _read(self, alias: str, known: Sequence[Place], scratch: Scratch | None, most_bytes: int) -> None:
        self._settings.root(self._settings.log(alias).root)  # what the settings do not have, an operator is waited for
        with contextlib.ExitStack() as stack:
            try:
                tail = self._opened(stack, alias, known, most_bytes)
            except (Snooze, OSError) as error:
                self._add(SourceRead(source=alias, faults=[printable(getattr(error, "strerror", None) or str(error))]), 0)
                self._places[alias] = list(known)
                return
            lines, unparsed = self._look(alias, tail, scratch)
        self._places[alias] = tail.places
        self._read_bytes += tail.read_bytes
        read = SourceRead(
            source=alias,
            files=tail.files,
            bytes=tail.read_bytes,
            lines=lines,
            parsed=lines - unparsed,
            unparsed=unparsed,
            oversized=tail.oversized,
            left_bytes=tail.left_bytes,
            faults=[printable(fault) for fault in tail.faults],
        )
        self._add(read, tail.gone)

    def _look(self, alias: str, tail: Tail, scratch: Scratch | None) -> tuple[int, int]:
        """Look at all lines, and return how many there were, and how many could not be parsed."""
        # New lines are as young as the clock says, however old the job is: one that was late or replayed reads them for good.
        now_s = self._job.born if self._span else max(self._job.born, time.time())
        parse, detect = parser_of(self._settings.log(alias), now_s), self._detections.add
        begin_s, end_s = (self._span.begin.timestamp(), self._span.end.timestamp()) if self._span else (0.0, float("inf"))
        lines = unparsed = 0
        for batch in tail.lines():
            for raw in batch:
                if not raw or raw == b"\r":
                    continue
                lines += 1
                line = decoded(raw)
                event = parse(line)
                if event is None:
                    unparsed += 1
                elif begin_s <= event.at < end_s:
                    detect(event)
                    if scratch is not None:
                        scratch.add(alias, event, line)
            self._job.progress(self._read_bytes + tail.read_bytes, None, "bytes read")
        return lines, unparsed

    def _add(self, read: SourceRead, gone: int) -> None:
        self._sources.append(read)
        if read.faults:
            self._note("source-unreadable", read.source, len(read.faults))
        if read.lines >= LEAST_LINES and 100 * read.unparsed > self._analysis.thresholds.unparsed_percent * read.lines:
            self._note("log-unparsed", read.source, read.unparsed)
        if read.left_bytes:
            self._note("log-unread", read.source, read.left_bytes)
        if gone:
            self._note("log-lines-lost", read.source, gone)

    def _report(self, findings: Sequence[Reported], rules: Rules | None, gap_s: int | None) -> ThreatReport:
        span: Span | None = self._span
        return ThreatReport(
            analysis=self._message.analysis,
            work=self._job.work,
            born=_stamp(self._job.born),
            gap_s=gap_s,
            begin=_stamp(span.begin.timestamp()) if span else None,
            end=_stamp(span.end.timestamp()) if span else None,
            lines=sum(read.lines for read in self._sources),
            parsed=sum(read.parsed for read in self._sources),
            unparsed=sum(read.unparsed for read in self._sources),
            sources=self._sources,
            findings=list(findings[:MAX_REPORTED]),
            findings_in_all=len(findings),
            rules=len(rules.rules) if rules else 0,
            failed_rules=rules.failed[:MAX_REPORTED] if rules else [],
        )

    def _result(self, report: ThreatReport, findings: Sequence[Reported]) -> ThreatsAnalyzed:
        """Return the result: as many of the worst findings as it has room for."""
        counts: dict[Level, int] = {level: count for level in LEVELS if (count := sum(each.level == level for each in findings))}
        day = datetime.fromtimestamp(self._job.born, UTC)
        result = ThreatsAnalyzed(
            lines=report.lines,
            parsed=report.parsed,
            unparsed=report.unparsed,
            findings=counts,
            top=[_top(each) for each in findings[:MAX_TOP]],
            unreadable=[read.source for read in self._sources if read.faults],
            blind=sorted({each.rule for each in findings if each.rule in BLINDNESS}),
            failed_rules=len(report.failed_rules),
            gap_s=report.gap_s,
            report=f"{self._analysis.to}:{self._message.analysis}/{day:%Y-%m-%d}/{self._job.work}.json",
        )
        while len(msgspec.json.encode(result)) > MAX_RESULT_BYTES and result.top:
            result = msgspec.structs.replace(result, top=result.top[:-1])
        return result


def _top(each: Reported) -> Top:
    subject = printable(each.subject, RESULT_SUBJECT_CHARS)
    return Top(rule=each.rule, subject=subject, level=each.level, count=each.count, first=each.first, last=each.last)


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).isoformat().replace("+00:00", "Z")


def _publish(run: Run, settings: Settings, job: Job, stop: Stop) -> None:
    """Write the report, unless an earlier attempt did."""
    with target(settings, run.result.report) as place, Writer(place, job.work, stop) as out:
        if out.already(ThreatsAnalyzed) is None:
            out.write(msgspec.json.format(msgspec.json.encode(run.report), indent=1) + b"\n")
            out.finish(run.result, job)
    point("threats-reported")


def _alert(message: AnalyzeThreats, channel: str | None, alerts: Sequence[Reported], job: Job) -> None:
    """Hand on the jobs that tell people, and the one that notes that they were told."""
    if channel is None or not alerts:
        return
    for suffix, alert in _alerts(message.analysis, channel, alerts):
        job.send(alert, suffix=suffix, priority=Priority.CRITICAL)
    job.send(msgspec.structs.replace(message, confirm=job.work), suffix="confirm")
    point("threats-alerted")


def _alerts(analysis: str, channel: str, alerts: Sequence[Reported]) -> Iterator[tuple[str, SendNotification]]:
    """Yield what people are told, and by which suffix of an id: each of the worst findings, and how many more there are."""
    for each in alerts[:MAX_ALERTS]:
        body = f"{each.subject}\n{each.count} times, {_stamp(each.first)} to {_stamp(each.last)}"
        yield (
            each.id,
            SendNotification(
                channel=channel,
                title=f"{each.level}: {each.rule} ({analysis})",
                body=body,
                level="critical" if each.level == "critical" else "error" if each.level == "high" else "warning",
                data={"finding": each.id, "rule": each.rule, "subject": each.subject, "count": each.count, "analysis": analysis},
            ),
        )
    rest = len(alerts) - MAX_ALERTS
    if rest > 0:
        title = f"{rest} more findings ({analysis})"
        yield "more", SendNotification(channel=channel, title=title, body="The report of the analysis has them.", level="error")
