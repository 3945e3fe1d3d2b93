"""`stats`: one reading of the queue, and what all workers have counted in the last minutes."""

from __future__ import annotations

import argparse
from typing import Final

from runtime.commands import readings
from runtime.commands.common import clean, inspector, print_json, with_store
from runtime.commands.flags import QUEUE, add_settings, add_texts, check_between
from runtime.commands.readings import print_rows, workers_in_words
from runtime.config import Config
from runtime.stats import OUTCOMES, UNKNOWN_TYPE
from runtime.store.flow import Flow
from runtime.store.inspector import Depth
from runtime.store.rounds import clock

Counters = dict[tuple[str, str, str], tuple[int, int]]  # how many, and the first minute that had one
MAX_MINUTES: Final = 1440  # a day
MAX_ROWS: Final = 20  # of each table; a guess: `--json` has more


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    text = "Print how many jobs wait, for how long, run, are delayed or dead; what is paused or limited, and schedules; and the "
    text += "outcomes of all workers by job type."
    add_texts(parser, text, "python -m runtime stats", "python -m runtime stats --minutes 60 --redis redis://127.0.0.1:6379")
    add_settings(parser, *QUEUE)
    text = f"count the outcomes of the last N minutes (1 to {MAX_MINUTES}; default 10)"
    parser.add_argument("--minutes", type=int, default=10, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print waiting, running, delayed and dead jobs, since when the oldest waits, gates, schedules, and outcomes by type."""
    check_between("--minutes", arguments.minutes, 1, MAX_MINUTES)

    async def read(url: str) -> tuple[Depth, dict[str, float], Flow, Counters]:
        async with inspector(url, config.queue) as found:
            counted = await found.counters_since(arguments.minutes)
            outcomes = {name: count for name, count in counted.items() if name[2] in OUTCOMES}
            return await found.depth(), await found.oldest_waiting_s(), await found.flow(), outcomes

    depth, oldest_s, flow, counters = with_store(config, read)
    if arguments.json:
        rows = [
            {"type": type_name, "priority": priority, "outcome": outcome, "count": count}
            for (type_name, priority, outcome), (count, _) in sorted(counters.items())
        ]
        queue = {"queue": config.queue, "backlog": depth.backlog, "depth": depth, "oldest_waiting_s": oldest_s, "flow": flow}
        print_json({**queue, "minutes": arguments.minutes, "outcomes": rows})
        return 0
    print(f"queue {config.queue}: backlog {depth.backlog:,}, {workers_in_words(depth, flow)}")
    print(f"{'priority':10} {'waiting':>10} {'running':>10} {'oldest, s':>10}")
    for priority, waiting in depth.waiting.items():
        print(f"{priority:10} {waiting:>10,} {depth.running[priority]:>10,} {oldest_s[priority]:>10,.1f}")
    gated = sum(gate.waiting for gate in flow.gates)
    parked = f"parked {depth.parked:,}{f' ({gated:,} at gates)' if gated else ''}"
    print(f"delayed {depth.delayed:,} ({depth.due_now:,} due now), {parked}, dead {depth.dead:,}")
    print_rows(readings.PAUSES, readings.pauses(flow, MAX_ROWS))
    print_rows(readings.GATES, readings.gates(flow, MAX_ROWS))
    print_rows(readings.SCHEDULES, readings.schedules(flow, MAX_ROWS))
    unreadable = [f"{name}: {why}" for name, why in flow.unreadable_rules.items()] + [*flow.unreadable_schedules.values()]
    if unreadable:
        print("\nleft out, since it cannot be read (doctor has the commands that help):")
    for text in unreadable[:MAX_ROWS]:
        print(f"  {clean(text, 160)}")
    if counters:
        print(f"\nlast {arguments.minutes} minutes:\n{'type':28} {'priority':10} {'outcome':10} {'count':>10} since")
    for (type_name, priority, outcome), (count, since) in sorted(counters.items()):
        print(f"{clean(type_name or UNKNOWN_TYPE, 28):28} {priority:10} {outcome:10} {count:>10,} {clock(since * 60_000)}")
    return 0
