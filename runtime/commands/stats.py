"""`stats`: one reading of the queue, and what all workers have counted in the last minutes."""

from __future__ import annotations

import argparse
from typing import Final

from runtime.commands.common import clean, inspector, print_json, with_store
from runtime.commands.flags import QUEUE, add_settings, add_texts, check_between
from runtime.config import Config
from runtime.stats import OUTCOMES
from runtime.store.inspector import Depth

Counters = dict[tuple[str, str, str], int]
MAX_MINUTES: Final = 1440  # a day


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    text = "Print how many jobs wait, for how long, run, are delayed or dead, and the outcomes of all workers by job type."
    add_texts(parser, text)
    add_settings(parser, *QUEUE)
    text = f"count the outcomes of the last N minutes (1 to {MAX_MINUTES}; default 10)"
    parser.add_argument("--minutes", type=int, default=10, metavar="N", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print waiting, running, delayed and dead jobs, since when the oldest waits, and outcomes by type."""
    check_between("--minutes", arguments.minutes, 1, MAX_MINUTES)

    async def read(url: str) -> tuple[Depth, dict[str, float], Counters]:
        async with inspector(url, config.queue) as found:
            counted = await found.counters(arguments.minutes)
            outcomes = {name: count for name, count in counted.items() if name[2] in OUTCOMES}
            return await found.depth(), await found.oldest_waiting_s(), outcomes

    depth, oldest_s, counters = with_store(config, read)
    if arguments.json:
        rows = [
            {"type": type_name, "priority": priority, "outcome": outcome, "count": count}
            for (type_name, priority, outcome), count in sorted(counters.items())
        ]
        queue = {"queue": config.queue, "backlog": depth.backlog, "depth": depth, "oldest_waiting_s": oldest_s}
        print_json({**queue, "minutes": arguments.minutes, "outcomes": rows})
        return 0
    print(f"queue {config.queue}: backlog {depth.backlog:,}, {depth.workers} workers")
    print(f"{'priority':10} {'waiting':>10} {'running':>10} {'oldest, s':>10}")
    for priority, waiting in depth.waiting.items():
        print(f"{priority:10} {waiting:>10,} {depth.running[priority]:>10,} {oldest_s[priority]:>10,.1f}")
    print(f"delayed {depth.delayed:,} ({depth.due_now:,} due now), parked {depth.parked:,}, dead {depth.dead:,}")
    if counters:
        print(f"\nlast {arguments.minutes} minutes:\n{'type':28} {'priority':10} {'outcome':10} {'count':>10}")
    for (type_name, priority, outcome), count in sorted(counters.items()):
        print(f"{clean(type_name or '(unreadable)', 28):28} {priority:10} {outcome:10} {count:>10,}")
    return 0
