"""What `stats` and `top` say of gates, pauses and schedules: rows of texts, the first of which are headings."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

from runtime.codec import MAX_MS
from runtime.commands.common import clean
from runtime.control import Worker
from runtime.said import MAX_TEXT_CHARS, Report
from runtime.stats import UNKNOWN_TYPE
from runtime.store.base import WorkerRow
from runtime.store.flow import BEHIND_MS, DAY_MS, MAX_GROUPS, Flow, GateReading, GroupReading, ScheduleReading, span
from runtime.store.inspector import Depth
from runtime.tries import Try

NAME: Final = 32  # characters of a name; a guess: what is longer is cut

BAR: Final = 20  # characters of a bar

Rows = list[tuple[str, ...]]
PAUSES: Final = ("paused", "waiting", "since", "until", "by, and why")
RUNS: Final = ("runs", "for", "how far", "says")
GATES: Final = ("gate", "waiting", "in use", "next token", "limits")
SCHEDULES: Final = ("schedule", "last", "", "next")
BLOCKERS: Final = 2  # types that are shown of those that have blocked a worker's loop; a guess
NUMBERS: Final = ("waiting", "in use", "next token")  # columns that are set to the right


def workers_in_words(depth: Depth, flow: Flow) -> str:
    """Return how many workers live, and what is special of them."""
    special = [f"{depth.silent} more silent"] if depth.silent else []
    special += [f"{flow.quiet} quiet"] if flow.quiet else []
    if flow.reserved:
        special.append(f"{flow.reserved} lanes kept for CRITICAL")
    told = f" ({', '.join(special)})" if special else ""
    return f"{depth.workers} workers{told}"


def blocked_in_words(row: WorkerRow | Worker) -> str:
    """Return which types have blocked a worker's loop most often, how often, and for how long at most; empty where none has."""
    worst = sorted(row.blocked, key=lambda name: -row.blocked[name])[:BLOCKERS]
    named = [(clean(name or UNKNOWN_TYPE, 24), row.blocked[name], row.blocked_ms.get(name, 0)) for name in worst]
    return ", ".join(f"{name} {count:,} times, up to {longest_ms:,} ms" for name, count, longest_ms in named)


def how_far(report: Report) -> str:
    """Return how far a run is: a bar where it is known how much there is to do, and its text; nothing where it has not said."""
    text = clean(report.text, MAX_TEXT_CHARS)
    if report.done is None:
        return text
    if not report.total:
        return f"{_amount(report.done)}  {text}".rstrip()
    part = min(1.0, max(0.0, report.done / report.total))
    bar = "#" * round(BAR * part)
    return f"[{bar:-<{BAR}}] {part:4.0%}  {_amount(report.done)} of {_amount(report.total)}  {text}".rstrip()


def tries_in_words(tries: Sequence[Try], now_ms: int) -> list[str]:
    """Return a job's failed attempts: in a line each when, for how long, where and what of, and below it what leads to it."""
    lines: list[str] = []
    before = 0
    for one in tries:
        at = moment(min(one.at_ms, MAX_MS), now_ms)
        if one.is_replay:
            lines.append(f"replayed at {at}")
        else:
            left_out = one.attempt - before - 1
            lines += [f"… {left_out} more"] if before and left_out > 0 else []
            lines += _of_try(one, at)
        before = one.attempt
    return lines


def _of_try(one: Try, at: str) -> list[str]:
    where = (f" on {clean(one.by, 64)}" if one.by else "") + (f", version {clean(one.app, 40)}" if one.app else "")
    leads = [f"at {clean(one.frame)}"] if one.frame else []
    leads += [f"trace {one.trace}"] if one.trace else []
    told = f"attempt {one.attempt} began {at}, ran {span(one.run_ms)}{where}: {clean(one.error) or 'failed'}"
    return [told, *([f"  {', '.join(leads)}"] if leads else [])]


def _amount(number: int | float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:,.6g}"


def runs(found: Mapping[str, Sequence[Report]], most: int, now_ms: int) -> Rows:
    """Return what runs say that go on, those that have spoken last first: type and id, for how long, how far, the last line."""
    told = sorted((report for reports in found.values() for report in reports), key=lambda report: -report.at_ms)
    rows: Rows = []
    for report in told[:most]:
        last = clean(report.lines[-1], NAME) if report.lines else ""
        for_s = span(min(max(0, now_ms - report.since_ms), MAX_MS))
        rows.append((f"{clean(report.type, 24)} {clean(report.id, NAME)}", for_s, clean(how_far(report), 80), last))
    return [*rows, *_more(len(told) - len(rows), RUNS)]


def pauses(flow: Flow, most: int) -> Rows:
    """Return what is paused: what waits for it, since when, until when, by whom and why."""
    rows: Rows = []
    for pause in flow.pauses[:most]:
        until = moment(pause.until_ms, flow.now_ms) if pause.until_ms else "resumed"
        why = f"{clean(pause.by, 40)}{f': {clean(pause.reason, 100)}' if pause.reason else ''}"
        rows.append((clean(pause.words, NAME), f"{pause.waiting:,}", moment(pause.since_ms, flow.now_ms), until, why))
    return [*rows, *_more(len(flow.pauses) - len(rows), PAUSES)]


def gates(flow: Flow, most: int, most_groups: int = MAX_GROUPS) -> Rows:
    """Return each gate, and below it the groups of which most wait."""
    rows: Rows = []
    for gate in flow.gates[:most]:
        limits = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in gate.limits.items())
        ordered = f" (set by people: {', '.join(name.replace('_', ' ') for name in gate.ordered)})" if gate.ordered else ""
        known = "" if gate.is_known else "; no worker that lives knows it"
        token = "paused" if gate.is_paused else _token(gate.next_token_ms)
        in_use = _in_use(gate, gate.limits.get("limit"))
        rows.append((clean(gate.type, NAME), f"{gate.waiting:,}", in_use, token, f"{limits or 'none'}{ordered}{known}"))
        rows += _groups(gate, most_groups)
    return [*rows, *_more(max(0, len(flow.gates) - most) + flow.more_gates, GATES)]


def _groups(gate: GateReading, most: int) -> Rows:
    limit, shown = gate.limits.get("group_limit"), gate.groups[:most]
    rows: Rows = [
        (clean(f"  {one.group or '(no group)'}", NAME), f"{one.waiting:,}", *_of_group(one, limit), "") for one in shown
    ]
    n_others = gate.more_groups + len(gate.groups) - len(shown)
    if n_others:
        others = gate.waiting - gate.shared - sum(one.waiting for one in shown)
        rows.append((f"  … and {n_others:,} more groups", f"{others:,}", "", "", ""))
    if gate.shared:
        rows.append(("  … and groups beyond these", f"{gate.shared:,}", "", "", ""))
    return rows


def _of_group(one: GroupReading, limit: int | str | None) -> tuple[str, str]:
    return (_in_use(one, limit), _token(one.next_token_ms)) if one.group else ("", "")


def _in_use(one: GateReading | GroupReading, limit: int | str | None) -> str:
    return f"{one.in_use:,} of {limit:,}" if isinstance(limit, int) else "-"


def _token(next_ms: int | None) -> str:
    return "-" if next_ms is None else f"in {span(next_ms)}" if next_ms else "now"


def schedules(flow: Flow, most: int) -> Rows:
    """Return what each schedule did last, and when it fires next; those that fire next come first."""
    rows: Rows = []
    for one in flow.schedules[:most]:
        last = "-" if one.last_ms is None else moment(one.last_ms, flow.now_ms)
        rows.append((clean(one.name, NAME), last, one.last, next_time(one, flow.now_ms)))
    return [*rows, *_more(len(flow.schedules) - len(rows), SCHEDULES)]


def next_time(one: ScheduleReading, now_ms: int) -> str:
    """Return when a schedule fires next, or why it does not."""
    if one.is_paused:
        return "paused"
    if one.next_ms is None:
        return "-" if now_ms - one.heard_ms < BEHIND_MS else "no worker fires it"
    return moment(one.next_ms, now_ms)


def moment(at_ms: int, now_ms: int) -> str:
    """Return a time of this host's zone for people, and how far it is from now."""
    form = "%H:%M:%S" if abs(at_ms - now_ms) < DAY_MS // 2 else "%Y-%m-%d %H:%M"
    far = f"in {span(at_ms - now_ms)}" if at_ms > now_ms else f"{span(now_ms - at_ms)} ago"
    return f"{time.strftime(form, time.localtime(at_ms / 1000))}, {far}"


def _more(n: int, headings: Sequence[str]) -> Rows:
    return [(f"… and {n:,} more", *[""] * (len(headings) - 1))] if n > 0 else []


def print_rows(headings: Sequence[str], rows: Rows) -> None:
    """Print a table, with an empty line before it; nothing where there is no row."""
    if not rows:
        return
    widths = [max(len(row[at]) for row in (headings, *rows)) for at in range(len(headings))]
    print()
    for row in (headings, *rows):
        cells = [
            cell.rjust(width) if heading in NUMBERS else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        print("  ".join(cells).rstrip())
