"""`limits list`, `limits set`, `limits clear`: what holds at run time in place of the limits in the code."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any, Final

import msgspec

from runtime.commands.common import clean, print_json
from runtime.commands.flags import JSON_LINES, add_texts, add_verb
from runtime.commands.ordering import add_order_flags, note_unknown, ordered, tell
from runtime.config import Config
from runtime.control import Control
from runtime.errors import ConfigError
from runtime.leaving import CLEAN
from runtime.limits import FIELDS, Override

NONE: Final = "none"
# Of each limit: what its flag takes, and what it means.
FLAGS: Final = {
    "limit": ("N", "how many jobs of the type may run at once"),
    "rate": ("RATE", "how many may start in a time, such as 100/m, 10/s or 5/30s"),
    "group_limit": ("N", "how many jobs of each group may run at once"),
    "group_rate": ("RATE", "how many of each group may start in a time"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "What bounds a job type at run time. What is set here holds for all workers in place of the code, until it is cleared.",
        "python -m runtime limits list",
        "python -m runtime limits set send-email --rate 100/m --reason 'the provider allows no more'",
        "python -m runtime limits set send-email --limit none",
        "python -m runtime limits clear send-email --rate",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = add_verb(verbs, "list", print_list, "list what is set in place of the code")
    listing.add_argument("--json", action="store_true", help=JSON_LINES)

    setting = add_verb(verbs, "set", set_some, "set limits of a type; those not given stay as they are")
    setting.add_argument("type", help="the job type")
    for name, (metavar, text) in FLAGS.items():
        setting.add_argument(_flag(name), metavar=metavar, help=f"{text}; {NONE}: no bound, whatever the code says")
    add_order_flags(setting)

    clearing = add_verb(verbs, "clear", clear, "let the limits of the code hold again, those named or all")
    clearing.add_argument("type", help="the job type")
    for name in FIELDS:
        clearing.add_argument(_flag(name), action="store_true", help=f"only its {name.replace('_', ' ')}")
    add_order_flags(clearing)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return int(arguments.verb(config, arguments))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print what is set in place of the code, by type."""

    async def work(control: Control) -> dict[str, Override]:
        return await control.limits()

    limits = ordered(config, work)
    for name, override in sorted(limits.items()):
        told = msgspec.json.decode(override.text())
        if arguments.json:
            print_json({"type": name, **told})
        else:
            print(f"{clean(name, 64):30} {', '.join(f'{of} {NONE if value is None else value}' for of, value in told.items())}")
    print(f"{len(limits)} types; of all others, and of what is not named, the limits in the code hold", file=sys.stderr)
    return CLEAN


def set_some(config: Config, arguments: argparse.Namespace) -> int:
    """Set limits of a type."""
    given = {name: value for name in FIELDS if (value := getattr(arguments, name)) is not None}
    if not given:
        raise ConfigError(f"give at least one of {', '.join(map(_flag, FIELDS))}")
    wanted: dict[str, Any] = {name: _value(name, text) for name, text in given.items()}

    async def work(control: Control) -> bool:
        is_new = await control.set_limits(arguments.type, **wanted, reason=arguments.reason)
        await note_unknown(config, control, [arguments.type])
        return is_new

    changed = [arguments.type] if ordered(config, work) else []
    said = f"set {', '.join(f'{name} {text}' for name, text in given.items())}"
    back = shlex.join(["limits", "clear", arguments.type, *map(_flag, given)])
    tell(config, arguments, [arguments.type], changed, said, "was set so already", back)
    return CLEAN


def _value(name: str, text: str) -> int | str | None:
    if text == NONE:
        return None
    if not name.endswith("limit"):
        return text
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise ConfigError(f"{_flag(name)} {text[:40]}: must be a whole number, or {NONE}")
    return int(text)


def clear(config: Config, arguments: argparse.Namespace) -> int:
    """Let the limits of the code hold again."""
    names = [name for name in FIELDS if getattr(arguments, name)]

    async def work(control: Control) -> bool:
        return await control.clear_limits(arguments.type, *names, reason=arguments.reason)

    changed = [arguments.type] if ordered(config, work) else []
    what = ", ".join(names) or "limits"
    tell(config, arguments, [arguments.type], changed, f"the code's {what} hold again", "nothing was set", "")
    return CLEAN
