"""The command line: arguments, settings, exit codes. One short function per command, which loads only what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, NoReturn

from runtime.config import KNOBS, Config, load
from runtime.errors import ConfigError, JobsError, StoreAway

CLEAN, FAILED, BAD_USAGE, NO_REDIS = 0, 1, 2, 3
EPILOG: Final = """exit codes: 0 clean, 1 a command found a failure, 2 bad usage or settings, 3 Redis cannot be reached,
            4 hard deadline at stop

examples:
  python -m runtime --concurrency 500 --handlers myapp.jobs
  python -m runtime enqueue send-email '{"to": "ada@example.com", "subject": "Hi", "text": "..."}' --delay 60
  python -m runtime dead list --json
"""
COMMANDS: Final = ("run", "enqueue", "dead", "stats", "types")


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong and what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """End with the status for bad usage."""
        self.exit(BAD_USAGE, f"{self.prog}: {message.replace(chr(10), ' ')} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its status."""
    sys.exit(call(list(sys.argv[1:] if arguments is None else arguments)))


def call(arguments: list[str]) -> int:
    """Run one command; give its exit status. Errors of ours are one line on standard error."""
    try:
        parsed = parser().parse_args(_with_default(arguments))
        config = load(vars(parsed), os.environ, Path.cwd())
        return int(parsed.act(config, parsed))
    except ConfigError as error:
        return _say(str(error), BAD_USAGE)
    except StoreAway as error:
        return _say(str(error), NO_REDIS)
    except JobsError as error:
        return _say(str(error), BAD_USAGE)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: nothing to say to nobody
        return FAILED


def parser() -> Parser:
    """Give the parser of all commands."""
    settings = Parser(add_help=False)
    group = settings.add_argument_group("settings (flag, environment variable, key in runtime.toml; the first one given wins)")
    defaults = {name: getattr(Config(), name) for name in Config.__struct_fields__}
    for knob in KNOBS:
        default = defaults[knob.field]
        shown = f"; default {default:g}" if isinstance(default, int | float) else f"; default {default}" if default else ""
        group.add_argument(knob.flag, dest=knob.field, metavar=knob.metavar, help=f"{knob.help} [{knob.variable}{shown}]")
    top = Parser(
        prog="python -m runtime",
        description="Run jobs from Redis Streams, and look after them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", parents=[settings], help="run jobs until told to stop (the default command)")
    run.set_defaults(act=_run)
    _add_enqueue(commands, settings)
    _add_dead(commands, settings)
    stats = commands.add_parser("stats", parents=[settings], help="one reading of the queue")
    stats.add_argument("--minutes", type=int, default=10, metavar="N", help="count outcomes of the last N minutes (1 to 1440)")
    stats.add_argument("--json", action="store_true", help="print JSON")
    stats.set_defaults(act=_stats)
    types = commands.add_parser("types", parents=[settings], help="the job types this worker can run; needs no Redis")
    types.add_argument("--json", action="store_true", help="print JSON")
    types.set_defaults(act=_types)
    return top


def _add_enqueue(commands: Any, settings: Parser) -> None:
    command = commands.add_parser(
        "enqueue",
        parents=[settings],
        help="check a payload against its contract and send it",
        description="Prints the job's id. With - the payloads are read from standard input, one JSON object per line.",
    )
    command.add_argument("type", help="wire name of the contract, such as send-email")
    command.add_argument("payload", nargs="?", default="{}", metavar="JSON or -", help="the payload; - reads JSON lines")
    command.add_argument("--priority", choices=["critical", "high", "medium", "low"], help="default: the contract's")
    command.add_argument("--id", default="", help="the job's id (only for a single payload)")
    command.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="not before so many seconds from now")
    command.add_argument("--at", type=float, metavar="EPOCH", help="not before this time, in seconds since 1970")
    command.add_argument("--exp", type=float, metavar="EPOCH", help="not after this time: then a dead letter")
    command.add_argument("--key", default="", help="drop the message while another job with this key lives")
    command.add_argument("--attempts", type=int, default=0, metavar="N", help="most attempts for this job")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(act=_enqueue)


def _add_dead(commands: Any, settings: Parser) -> None:
    dead = commands.add_parser("dead", help="dead letters: list, show, replay")
    verbs = dead.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", parents=[settings], help="the newest dead letters")
    listing.add_argument("-n", type=int, default=20, metavar="N", help="how many to look at (1 to 10000)")
    listing.add_argument("--type", default="", help="only this job type")
    listing.add_argument("--reason", default="", help="only this reason, such as attempts or bad-payload")
    listing.add_argument("--json", action="store_true", help="print JSON lines")
    listing.set_defaults(act=_dead_list)
    show = verbs.add_parser("show", parents=[settings], help="one dead letter with its error, stack and fields")
    show.add_argument("letter", help="its place, as `dead list` prints it")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(act=_dead_show)
    replay = verbs.add_parser(
        "replay", parents=[settings], help="send dead letters back to their streams, with a fresh count of attempts"
    )
    replay.add_argument("letters", nargs="+", metavar="letter", help="places, as `dead list` prints them")
    replay.add_argument("--json", action="store_true", help="print JSON lines")
    replay.set_defaults(act=_dead_replay)


def _with_default(arguments: list[str]) -> list[str]:
    """`run` is the command when none is named; a word that is nearly a command gets a hint."""
    if arguments[:1] in (["-h"], ["--help"]):
        return arguments
    if not arguments or arguments[0].startswith("-"):
        return ["run", *arguments]
    if arguments[0] not in COMMANDS:
        near = get_close_matches(arguments[0], COMMANDS, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(COMMANDS)}"
        raise ConfigError(f"no command {arguments[0]!r}{hint}")
    return arguments


def _say(text: str, status: int) -> int:
    print(f"runtime: {' '.join(text.split())}", file=sys.stderr)
    return status


# --- commands: each loads its own room -----------------------------------------------------------------------------------


def _run(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import run

    return run.act(config)


def _enqueue(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import enqueue

    return enqueue.act(config, parsed)


def _dead_list(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import dead

    return dead.listing(config, parsed)


def _dead_show(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import dead

    return dead.show(config, parsed)


def _dead_replay(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import dead

    return dead.replay(config, parsed)


def _stats(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import stats

    return stats.act(config, parsed)


def _types(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import types

    return types.act(config, parsed)
