"""What the commands that order have in common: their flags, the Control of the queue in force, and what they say afterwards."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from runtime.commands.common import clean, find_handlers, flags_of, print_json, with_store
from runtime.config import Config
from runtime.control import Control
from runtime.errors import ConfigError
from runtime.rules import ALL

T = TypeVar("T")

_SPAN: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
QUEUE_WORD: Final = "the whole queue"


def add_order_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of each command that orders."""
    parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the audit and for those who look at it later")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def add_what(parser: argparse.ArgumentParser) -> None:
    """Add what a pause is about."""
    parser.add_argument("types", nargs="*", metavar="TYPE", help="job types")
    text = "a priority: critical, high, medium or low; may be given several times"
    parser.add_argument("--priority", action="append", default=[], metavar="P", help=text)
    parser.add_argument("--all", action="store_true", help=QUEUE_WORD)


def span_s(flag: str, text: str) -> int:
    """Return the seconds that a text such as `90s`, `10m`, `2h` or `1d` means.

    Raises:
        ConfigError: it is none.
    """
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ConfigError(f"{flag} {text[:40]}: must be a time such as 90s, 10m, 2h or 1d")
    return int(found[1]) * _UNITS_S[found[2]]


def ordered(config: Config, work: Callable[[Control], Awaitable[T]]) -> T:
    """Return what `work` does with the Control of the queue in force."""

    async def run(url: str) -> T:
        async with Control(url, config.queue) as control:
            return await work(control)

    return with_store(config, run)


def tell(
    config: Config,
    arguments: argparse.Namespace,
    wanted: Sequence[str],
    changed: Sequence[str],
    said: str,
    otherwise: str,
    back: str,
) -> None:
    """Print what was changed, what stood so already, and the command that takes it back."""
    same = [name for name in wanted if name not in changed]
    if arguments.json:
        print_json({"changed": changed, "unchanged": same})
        return
    if changed:
        print(f"{said}: {names_of(changed)}")
        if back:
            print(f"take it back: python -m runtime {back}{flags_of(config)}")
    if same:
        print(f"{otherwise}: {names_of(same)}")


def names_of(names: Sequence[str]) -> str:
    """Return names for people."""
    return ", ".join(QUEUE_WORD if name == ALL else clean(name) for name in names)


async def known_types(config: Config, control: Control, wanted: Sequence[str]) -> set[str]:
    """Return the types that live workers know; where some that are wanted are not among them, those of handlers here too."""
    known = {name for worker in await control.workers() if not worker.silence for name in worker.types}
    if not known.issuperset(wanted):
        with contextlib.suppress(ConfigError):
            known |= {name.decode() for name in find_handlers(config).registry}
    return known


async def note_unknown(config: Config, control: Control, types: Sequence[str]) -> None:
    """Print a note about types that neither a live worker nor a handler here knows: they may be misspelled, or still to come."""
    known = await known_types(config, control, types)
    for name in types:
        if name not in known:
            print(f"note: no live worker and no handler knows the type {clean(name)}; it is noted all the same", file=sys.stderr)
