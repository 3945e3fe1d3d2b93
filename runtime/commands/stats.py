"""`stats`: one reading of the queue, and what all workers counted lately."""

from __future__ import annotations

import argparse

from runtime.commands.common import clean, inspector, print_json, with_store
from runtime.config import Config
from runtime.errors import ConfigError
from runtime.stats import OUTCOMES
from runtime.store.inspector import Depth

Counters = dict[tuple[str, str, str], int]
MAX_MINUTES = 1440


def main(config: Config, parsed: argparse.Namespace) -> int:
    """Print waiting, running, delayed and dead jobs, and outcomes by type."""
    if not 1 <= parsed.minutes <= MAX_MINUTES:
        raise ConfigError(f"--minutes {parsed.minutes}: from 1 to {MAX_MINUTES}, please")

    async def look(url: str) -> tuple[Depth, Counters]:
        async with inspector(url, config.queue) as found:
            counted = await found.counters(parsed.minutes)
            return await found.depth(), {name: count for name, count in counted.items() if name[2] in OUTCOMES}

    depth, counters = with_store(config, look)
    if parsed.json:
        rows = [
            {"type": type_name, "priority": priority, "outcome": outcome, "count": count}
            for (type_name, priority, outcome), count in sorted(counters.items())
        ]
        print_json({"queue": config.queue, "backlog": depth.backlog, "depth": depth, "minutes": parsed.minutes, "outcomes": rows})
        return 0
    print(f"queue {config.queue}: backlog {depth.backlog:,}, {depth.workers} workers")
    print(f"{'priority':10} {'waiting':>10} {'running':>10}")
    for priority, waiting in depth.waiting.items():
        print(f"{priority:10} {waiting:>10,} {depth.running[priority]:>10,}")
    print(f"delayed {depth.delayed:,} ({depth.due_now:,} due now), parked {depth.parked:,}, dead {depth.dead:,}")
    if counters:
        print(f"\nlast {parsed.minutes} minutes:\n{'type':28} {'priority':10} {'outcome':10} {'count':>10}")
    for (type_name, priority, outcome), count in sorted(counters.items()):
        print(f"{clean(type_name or '(unreadable)', 28):28} {priority:10} {outcome:10} {count:>10,}")
    return 0
