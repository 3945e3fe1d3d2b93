"""`resume`: let go on what `pause` has stopped."""

from __future__ import annotations

import argparse
import sys

from runtime.commands.flags import QUEUE, add_settings, add_texts
from runtime.commands.ordering import add_order_flags, add_what, names_of, ordered, tell
from runtime.config import Config
from runtime.control import Control
from runtime.leaving import CLEAN
from runtime.rules import ALL


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Let job types, priorities or the whole queue go on, within two seconds.",
        "python -m runtime resume send-email",
        "python -m runtime resume --all",
    )
    add_settings(parser, *QUEUE)
    add_what(parser)
    add_order_flags(parser)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Take pauses back, and say what still is paused."""

    async def work(control: Control) -> tuple[list[str], list[str]]:
        given = {"type": arguments.types, "priority": arguments.priority, "all": arguments.all, "reason": arguments.reason}
        return await control.resume(**given), sorted((await control.rules()).pauses)

    changed, left = ordered(config, work)
    wanted = [ALL] if arguments.all else [*arguments.types, *arguments.priority]
    tell(config, arguments, wanted, changed, "goes on", "was not paused", "")
    if left:
        print(f"still paused: {names_of(left)}", file=sys.stderr)
    return CLEAN
