"""`audit`: who ordered what, when and why."""

from __future__ import annotations

import argparse
import time

from runtime.commands.common import clean, print_json
from runtime.commands.flags import JSON_LINES, QUEUE, add_settings, add_texts, check_between
from runtime.commands.ordering import ordered
from runtime.config import Config
from runtime.control import MAX_AUDIT, Control
from runtime.leaving import CLEAN
from runtime.store.control import Change


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(parser, "Print the last orders, the newest first: when, by whom, what and why.", "python -m runtime audit -n 5")
    add_settings(parser, *QUEUE)
    parser.add_argument("-n", type=int, default=20, metavar="N", help=f"how many (1 to {MAX_AUDIT}; default 20)")
    parser.add_argument("--json", action="store_true", help=JSON_LINES)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print the last orders."""
    check_between("-n", arguments.n, 1, MAX_AUDIT)

    async def work(control: Control) -> list[Change]:
        return await control.audit(arguments.n)

    changes = ordered(config, work)
    for change in changes:
        if arguments.json:
            print_json(change)
            continue
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(change.at_ms / 1000))
        why = f" ({clean(change.reason, 200)})" if change.reason else ""
        print(f"{at} {clean(change.by, 60)}: {clean('; '.join(change.what.splitlines()), 300)}{why}")
    if not changes and not arguments.json:
        print("nothing was ordered yet")
    return CLEAN
