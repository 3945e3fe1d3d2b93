"""The command line: arguments, settings, exit codes. One short function per command, which loads only what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NoReturn

from runtime.config import SETTINGS, Config, load
from runtime.errors import ConfigError, JobsError, StoreUnavailable
from runtime.leaving import leave

CLEAN, FAILED, BAD_USAGE, NO_REDIS = 0, 1, 2, 3
Main = Callable[[Config, argparse.Namespace], int]
EPILOG: Final = """exit codes: 0 clean, 1 a command found a failure or a worker crashed, 2 bad usage or settings,
            3 Redis cannot be reached, 4 hard deadline at stop

examples:
  python -m runtime --concurrency 500 --handlers myapp.jobs
  python -m runtime enqueue send-email '{"to": "ada@example.com", "subject": "Hi", "text": "..."}' --delay 60
  python -m runtime dead replay --type send-email --dry-run
  python -m runtime top
  python -m runtime doctor
"""
COMMANDS: Final = (
    "run",
    "enqueue",
    "dead",
    "jobs",
    "stats",
    "top",
    "doctor",
    "types",
    "schema",
    "demo",
    "bench",
    "completion",
)


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong and what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """End with the status for bad usage."""
        self.exit(BAD_USAGE, f"{self.prog}: {message.replace(chr(10), ' ')} (see --help)\n")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its status."""
    leave(call(list(sys.argv[1:] if arguments is None else arguments)))


def call(arguments: list[str]) -> int:
    """Run one command; give its exit status. Errors of ours are one line on standard error."""
    try:
        parsed = parser().parse_args(_with_default(arguments))
        config = load(vars(parsed), os.environ, _folder())
        return int(parsed.main(config, parsed))
    except ConfigError as error:
        return _say(str(error), BAD_USAGE)
    except StoreUnavailable as error:
        return _say(str(error), NO_REDIS)
    except JobsError as error:
        return _say(str(error), BAD_USAGE)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader has gone: nothing to say to nobody
        return FAILED


def _folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        raise ConfigError("the folder that this was started in is gone, or cannot be read: start it in another one") from None


def parser() -> Parser:
    """Return the parser of all commands."""
    every, settings = _settings(), _settings("redis", "queue", "data_dir", "handlers")
    top = Parser(
        prog="python -m runtime",
        description="Run jobs from Redis Streams, and look after them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"backend-jobs {version('backend-jobs')}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", parents=[every], help="run jobs until told to stop (the default command)")
    run.set_defaults(main=_run)
    _add_enqueue(commands, settings)
    _add_dead(commands, settings)
    stats = commands.add_parser("stats", parents=[settings], help="one reading of the queue")
    stats.add_argument("--minutes", type=int, default=10, metavar="N", help="count outcomes of the last N minutes (1 to 1440)")
    stats.add_argument("--json", action="store_true", help="print JSON")
    stats.set_defaults(main=_stats)
    _add_jobs(commands, settings)
    top_view = commands.add_parser("top", parents=[settings], help="a live view of the queue in the terminal")
    top_view.add_argument("--once", action="store_true", help="print one picture and end")
    top_view.set_defaults(main=_top)
    doctor = commands.add_parser(
        "doctor", parents=[settings], help="what is wrong with the server or the queue, and how to fix it; status 1 on errors"
    )
    doctor.add_argument("--json", action="store_true", help="print JSON lines")
    doctor.set_defaults(main=_doctor)
    types = commands.add_parser("types", parents=[settings], help="the job types this worker can run; needs no Redis")
    types.add_argument("--json", action="store_true", help="print JSON lines")
    types.set_defaults(main=_types)
    schema = commands.add_parser(
        "schema", parents=[settings], help="the contracts, for producers in other languages; needs no Redis"
    )
    schema.add_argument("--format", choices=["json"], default="json", help="JSON Schema")
    schema.set_defaults(main=_schema)
    demo = commands.add_parser("demo", parents=[_settings("board")], help="a worker with live demo jobs, to look at")
    demo.add_argument("--folder", default=".run", help="where it keeps its data, mails and settings; default .run")
    demo.set_defaults(main=_demo)
    bench_help = "what one worker does on this machine, beside raw Redis; in a queue of its own, which is removed again"
    bench = commands.add_parser("bench", parents=[_settings("redis", "concurrency")], help=bench_help)
    bench.add_argument("--jobs", type=int, default=300_000, metavar="N", help="how many; default 300000")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.set_defaults(main=_bench)
    completion = commands.add_parser("completion", help="a script that completes `backend-jobs` in a shell")
    completion.add_argument("shell", choices=["bash", "zsh"])
    completion.set_defaults(main=_completion)
    return top


def _settings(*fields: str) -> Parser:
    """Return the flags of these settings, or of all."""
    parser = Parser(add_help=False)
    group = parser.add_argument_group("settings (flag, environment variable, key in runtime.toml; the first one given wins)")
    defaults = Config()
    for setting in SETTINGS:
        if not fields or setting.field in fields:
            default = getattr(defaults, setting.field)
            shown = f"; default {default:g}" if isinstance(default, int | float) else f"; default {default}" if default else ""
            help_text = f"{setting.help} [{setting.variable}{shown}]"
            group.add_argument(setting.flag, dest=setting.field, metavar=setting.metavar, help=help_text)
    return parser


def _add_enqueue(commands: Any, settings: Parser) -> None:
    command = commands.add_parser(
        "enqueue",
        parents=[settings],
        help="check a payload against its contract and send it",
        description="Prints the job's id. With - the payloads are JSON lines from standard input, and are counted.",
    )
    command.epilog = """examples:
  python -m runtime enqueue send-email '{"to": "ada@example.com", "subject": "Hi", "text": "..."}' --delay 60
  cat mails.jsonl | python -m runtime enqueue send-email - --priority low
"""
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("type", help="wire name of the contract, such as send-email")
    command.add_argument("payload", nargs="?", default="{}", metavar="JSON or -", help="the payload; - reads JSON lines")
    command.add_argument("--priority", choices=["critical", "high", "medium", "low"], help="default: the contract's")
    command.add_argument("--id", default="", help="the job's id (only for a single payload)")
    command.add_argument("--delay", type=float, default=0.0, metavar="SECONDS", help="not before so many seconds from now")
    command.add_argument("--at", type=float, metavar="EPOCH", help="not before this time, in seconds since 1970")
    command.add_argument("--exp", type=float, metavar="EPOCH", help="not after this time: then a dead letter")
    command.add_argument("--key", default="", help="drop the message while another job with this key lives")
    command.add_argument("--attempts", type=int, default=0, metavar="N", help="most attempts for this job")
    command.add_argument("--durability", default="local", metavar="WORD", help="wait for it: local, fsync, replicas=1 (or more)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(main=_enqueue)


def _add_dead(commands: Any, settings: Parser) -> None:
    dead = commands.add_parser(
        "dead",
        help="dead letters: list, show, replay, purge",
        epilog="""examples:
  python -m runtime dead list --type send-email -n 100
  python -m runtime dead replay --type send-email --reason attempts --dry-run
  python -m runtime dead replay --type send-email --reason attempts --rate 50
  python -m runtime dead purge --older-than 720
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = dead.add_subparsers(metavar="VERB", required=True)
    which = Parser(add_help=False)
    which.add_argument("--type", default="", help="only this job type")
    which.add_argument("--reason", default="", help="only this reason, such as attempts or bad-payload")
    which.add_argument("--json", action="store_true", help="print JSON lines")
    many = Parser(add_help=False)
    many.add_argument("letters", nargs="*", metavar="letter", help="places, as `dead list` prints them")
    many.add_argument("--older-than", type=float, metavar="HOURS", help="only those that died so long ago")
    many.add_argument("--all", action="store_true", help="all of them")
    many.add_argument("--dry-run", action="store_true", help="only show which")
    listing = verbs.add_parser("list", parents=[settings, which], help="the newest dead letters")
    listing.add_argument("-n", type=int, default=20, metavar="N", help="how many to look at (1 to 10000)")
    listing.set_defaults(main=_dead("listing"))
    show = verbs.add_parser("show", parents=[settings], help="one dead letter with its error, stack and fields")
    show.add_argument("letter", help="its place, as `dead list` prints it")
    show.add_argument("--json", action="store_true", help="print JSON")
    show.set_defaults(main=_dead("show"))
    help_text = "send dead letters back to their streams, with a fresh count of attempts"
    replay = verbs.add_parser("replay", parents=[settings, which, many], help=help_text)
    replay.add_argument("--rate", type=float, default=0.0, metavar="N", help="at most so many per second; default: no limit")
    replay.set_defaults(main=_dead("replay"))
    purge = verbs.add_parser("purge", parents=[settings, which, many], help="delete dead letters for ever")
    purge.set_defaults(main=_dead("purge"))


def _add_jobs(commands: Any, settings: Parser) -> None:
    jobs = commands.add_parser(
        "jobs",
        help="jobs that wait, run, are parked or delayed: list, show, reopen",
        epilog="""examples:
  python -m runtime jobs list --state running
  python -m runtime jobs show high-1732400000000-0
""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = jobs.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", parents=[settings], help="the newest jobs of each stream and the next delayed ones")
    listing.add_argument("-n", type=int, default=20, metavar="N", help="how many of each to look at (1 to 1000)")
    listing.add_argument("--type", default="", help="only this job type")
    listing.add_argument("--state", default="", choices=["waiting", "running", "parked", "delayed"], help="only this state")
    listing.add_argument("--json", action="store_true", help="print JSON lines")
    listing.set_defaults(main=_jobs("listing"))
    show = verbs.add_parser(
        "show", parents=[settings], help="all jobs with an id, wherever they are; status 1 when there is none"
    )
    show.add_argument("id", help="the job's id")
    show.add_argument("--json", action="store_true", help="print JSON lines")
    show.set_defaults(main=_jobs("show"))
    help_text = "move jobs out of a stream that an id far ahead has closed (doctor tells); what runs at that moment runs again"
    reopen = verbs.add_parser("reopen", parents=[settings], help=help_text)
    reopen.set_defaults(main=_jobs("reopen"))


def _with_default(arguments: list[str]) -> list[str]:
    """`run` is the command when none is named; a word that is nearly a command gets a hint."""
    if arguments[:1] in (["-h"], ["--help"], ["--version"]):
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


# --- commands: each loads its own lot -----------------------------------------------------------------------------------


def _run(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import run

    return run.main(config)


def _enqueue(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import enqueue

    return enqueue.main(config, parsed)


def _dead(verb: str) -> Main:
    def main(config: Config, parsed: argparse.Namespace) -> int:
        from runtime.commands import dead

        return int(getattr(dead, verb)(config, parsed))

    return main


def _jobs(verb: str) -> Main:
    def main(config: Config, parsed: argparse.Namespace) -> int:
        from runtime.commands import jobs

        return int(getattr(jobs, verb)(config, parsed))

    return main


def _top(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import top

    return top.main(config, parsed)


def _doctor(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import doctor

    return doctor.main(config, parsed)


def _schema(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import schema

    return schema.main(config, parsed)


def _bench(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import bench

    return bench.main(config, parsed)


def _demo(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import demo

    return demo.main(config, parsed)


def _completion(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import completion

    return completion.main(parser(), parsed.shell)


def _stats(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import stats

    return stats.main(config, parsed)


def _types(config: Config, parsed: argparse.Namespace) -> int:
    from runtime.commands import types

    return types.main(config, parsed)
