"""The parser of each command, and the flags that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from shutil import get_terminal_size
from textwrap import fill
from typing import Any, Final, NoReturn

from runtime.config import SETTINGS, Config
from runtime.errors import ConfigError
from runtime.leaving import BAD_USAGE

HEADING: Final = "settings (flag, environment variable, key in runtime.toml; the first one given wins)"
LEAST_COLUMNS: Final = 11  # as argparse
# shtab's FILE and DIRECTORY, without loading it: it is an extra.
PATHS: Final = {
    "FILE": {"bash": "_shtab_compgen_files", "zsh": "_files"},
    "FOLDER": {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"},
}
JSON_LINES: Final = "print JSON lines: an object a line; counts and hints go to standard error"
QUEUE: Final = ("redis", "queue", "handlers", "data_dir")  # the settings of a command that looks at a queue


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, and which keeps the line breaks of examples."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **{"formatter_class": argparse.RawDescriptionHelpFormatter, **named})

    def error(self, message: str) -> NoReturn:
        """End the process with the status for bad usage."""
        self.exit(BAD_USAGE, f"{self.prog}: {message.replace(chr(10), ' ')} (see --help)\n")


def add_texts(parser: argparse.ArgumentParser, description: str, *examples: str) -> None:
    """Set what the help says before the flags, and the examples after them."""
    # As argparse does for what it wraps, and its least width: a terminal may be said to have one column.
    parser.description = fill(description, max(get_terminal_size().columns - 2, LEAST_COLUMNS))
    if examples:
        parser.epilog = "examples:\n" + "\n".join(f"  {example}" for example in examples)


def add_settings(parser: argparse.ArgumentParser, *fields: str) -> None:
    """Add the flags of these settings; without names, of all."""
    group = parser.add_argument_group(HEADING)
    defaults = Config()
    for setting in SETTINGS:
        if not fields or setting.field in fields:
            default = getattr(defaults, setting.field)
            is_number = isinstance(default, int | float) and not isinstance(default, bool)
            shown = f"; default {default:g}" if is_number else f"; default {default}" if default else ""
            help_text = f"{setting.help} [{setting.variable}{shown}]"
            if setting.metavar:
                complete_path(group.add_argument(setting.flag, dest=setting.field, metavar=setting.metavar, help=help_text))
            else:
                group.add_argument(setting.flag, dest=setting.field, action="store_const", const="true", help=help_text)


def complete_path(action: argparse.Action) -> None:
    """Have a flag whose value is called FILE or FOLDER completed with the names of such."""
    if isinstance(action.metavar, str) and action.metavar in PATHS:
        setattr(action, "complete", PATHS[action.metavar])  # noqa: B010 -- shtab's own attribute, of which argparse knows nothing


def add_verb(
    verbs: Any, name: str, run: Callable[[Config, argparse.Namespace], int], text: str, settings: Sequence[str] = QUEUE
) -> argparse.ArgumentParser:
    """Add a verb of a command that has several: `run` is left as `verb` in the arguments. Return its parser."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text)
    add_texts(parser, f"{text[0].upper()}{text[1:]}.")
    add_settings(parser, *settings)
    parser.set_defaults(verb=run)
    return parser


def check_between(flag: str, value: int, low: int, high: int) -> None:
    """Check the number that a flag was given.

    Raises:
        ConfigError: it is not between `low` and `high`.
    """
    if not low <= value <= high:
        raise ConfigError(f"{flag} {value}: must be between {low} and {high}")
