"""The command line: finds the command, reads the settings, and turns errors into one line and an exit status.

A command `x` is the module `runtime.commands.x`: `configure` adds its flags to a parser, `main` runs it. Only the command that
was asked for is loaded, since some load much: uvloop, rich, all modules of handlers.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn, Protocol, cast

from runtime import __version__
from runtime.commands.flags import Parser, add_texts
from runtime.config import Config, load
from runtime.errors import ConfigError, JobsError
from runtime.leaving import FAILED, INTERRUPTED, leave, status_of

# Commands and what they are for, in the order of the help.
COMMANDS: Final = {
    "run": "run jobs until told to stop (the default command)",
    "enqueue": "check a payload against its contract and send it",
    "dead": "list, show, replay or purge dead letters",
    "stats": "show one reading of the queue",
    "jobs": "list or show jobs that wait, run, are parked or delayed; reopen a closed stream",
    "operations": "show, stop or resume what is done to many letters or jobs at once",
    "cron": "list, change, run or backfill schedules",
    "pause": "let nothing start of job types, priorities or the whole queue; print what is paused",
    "resume": "let go on what was paused",
    "workers": "list the workers that live; let some be quiet, go on or stop",
    "limits": "set what bounds a job type at run time, in place of the code",
    "audit": "print who ordered what, and why",
    "board": "serve the web board alone, beside workers or without them",
    "top": "show a live view of the queue in the terminal",
    "doctor": "check the server and the queue; print how to fix what is wrong",
    "types": "list the job types that a worker can run; needs no Redis",
    "schema": "print the contracts as JSON Schema, for producers in other languages; needs no Redis",
    "demo": "run a worker with live demo jobs",
    "bench": "measure what one worker does on this machine, beside raw Redis",
    "completion": "print a script that completes `backend-jobs` in a shell",
}
EPILOG: Final = """exit codes: 0 clean, 1 a command found a failure or a worker crashed, 2 bad usage or settings,
            3 Redis cannot be reached, 4 hard deadline at stop

examples:
  python -m runtime run --concurrency 500 --handlers myapp.jobs
  python -m runtime enqueue send-email '{"to": "ada@example.com", "subject": "Hi", "text": "..."}' --delay 60
  python -m runtime dead replay --type send-email --dry-run
  python -m runtime top
  python -m runtime doctor

`python -m runtime COMMAND --help` shows the flags of a command.
"""


class Command(Protocol):
    """What the module of a command has."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags, the description and examples."""

    def main(self, config: Config, arguments: argparse.Namespace) -> int:
        """Run the command. Return the exit status."""
        ...


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its status."""
    leave(call(list(sys.argv[1:] if arguments is None else arguments)))


def call(given: list[str]) -> int:
    """Run one command. Return its exit status; an expected error is one line on standard error."""
    try:
        given = _with_command(given)
        arguments = _parsed(parser(given[0]), given)
        config = load(vars(arguments), os.environ, _folder())
        return int(arguments.main(config, arguments))
    except JobsError as error:
        print(f"runtime: {' '.join(str(error).split())}", file=sys.stderr)
        return status_of(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # what read our output has ended: nothing more can be printed
        return FAILED


def parser(*names: str) -> Parser:
    """Return the parser of the command line, with the flags of the named commands; for that, they are loaded."""
    top = Parser(prog="python -m runtime", epilog=EPILOG)
    add_texts(top, "Run jobs from Redis Streams, and look after them.")
    top.add_argument("--version", action="version", version=f"backend-jobs {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        if name in names:
            module = _module(name)
            module.configure(command)
            command.set_defaults(main=module.main)
    return top


def _parsed(top: Parser, given: list[str]) -> argparse.Namespace:
    """Return the arguments. The one that a command names in its default `late` may also stand alone behind flags.

    argparse looks for those that need not be there only where the first one stands.
    """
    found, rest = top.parse_known_args(given)
    late = getattr(found, "late", "")
    if late and getattr(found, late) is None and len(rest) == 1 and (rest == ["-"] or not rest[0].startswith("-")):
        setattr(found, late, rest.pop())
    if rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return found


def _module(name: str) -> Command:
    return cast("Command", import_module(f"runtime.commands.{name}"))


def _folder() -> Path:
    try:
        return Path.cwd()
    except OSError:
        raise ConfigError("the folder that this was started in is gone, or cannot be read: start it in another one") from None


def _with_command(given: list[str]) -> list[str]:
    """Return the arguments with a command in front: `run` where none is named.

    Raises:
        ConfigError: the first argument is no command.
    """
    if given[:1] in (["-h"], ["--help"], ["--version"]):
        return given
    if not given or given[0].startswith("-"):
        return ["run", *given]
    if given[0] not in COMMANDS:
        near = get_close_matches(given[0], COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        raise ConfigError(f"no command {given[0]!r}; {hint}")
    return given
