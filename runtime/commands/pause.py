"""`pause`: let nothing start of job types, priorities or the whole queue, for a time or until it is resumed."""

from __future__ import annotations

import argparse
import shlex
import time

from runtime.commands.common import clean, print_json
from runtime.commands.flags import QUEUE, add_settings, add_texts
from runtime.commands.ordering import add_order_flags, add_what, names_of, note_unknown, ordered, span_s, tell
from runtime.config import Config
from runtime.control import Control
from runtime.errors import ConfigError
from runtime.leaving import CLEAN
from runtime.rules import ALL, Rules


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Let nothing start of job types, of priorities, or of the whole queue, within two seconds. What runs goes on, and what "
        "is sent waits. Without a name, print what is paused.",
        "python -m runtime pause send-email --for 10m --reason 'the mail server is down'",
        "python -m runtime pause --priority low",
        "python -m runtime pause --all",
    )
    add_settings(parser, *QUEUE)
    add_what(parser)
    parser.add_argument(
        "--for", dest="for_time", metavar="SPAN", help="for so long, such as 90s, 10m, 2h or 1d; else until `resume`"
    )
    add_order_flags(parser)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Pause what is named; with nothing named, print what is paused."""
    if not (arguments.types or arguments.priority or arguments.all):
        if arguments.for_time or arguments.reason:
            raise ConfigError("name job types, --priority or --all")
        return _print_paused(config, arguments)
    for_s = None if arguments.for_time is None else span_s("--for", arguments.for_time)

    async def work(control: Control) -> list[str]:
        changed = await control.pause(
            type=arguments.types, priority=arguments.priority, all=arguments.all, for_s=for_s, reason=arguments.reason
        )
        await note_unknown(config, control, arguments.types)
        return changed

    changed = ordered(config, work)
    wanted = [ALL] if arguments.all else [*arguments.types, *arguments.priority]
    flags = "--all" if arguments.all else shlex.join([*arguments.types, *[f"--priority={name}" for name in arguments.priority]])
    until = f" for {arguments.for_time}" if for_s else " until resumed"
    tell(config, arguments, wanted, changed, f"paused{until}", "was paused so already", f"resume {flags}")
    return CLEAN


def _print_paused(config: Config, arguments: argparse.Namespace) -> int:
    async def work(control: Control) -> Rules:
        return await control.rules()

    pauses = ordered(config, work).pauses
    for name, pause in sorted(pauses.items()):
        if arguments.json:
            print_json(
                {"name": name, "until_ms": pause.until_ms, "since_ms": pause.since_ms, "by": pause.by, "reason": pause.reason}
            )
        else:
            until = f"until {_when(pause.until_ms)}" if pause.until_ms else "until resumed"
            why = f": {clean(pause.reason, 200)}" if pause.reason else ""
            print(f"{names_of([name])} {until}, since {_when(pause.since_ms)} by {clean(pause.by, 60)}{why}")
    if not pauses and not arguments.json:
        print("nothing is paused")
    return CLEAN


def _when(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))
