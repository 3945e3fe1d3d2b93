"""`operations`: what is done to many letters or jobs at once: list, show, follow, stop, resume, change the rate, drop."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

from runtime.commands.common import clean, flags_of, print_json
from runtime.commands.flags import JSON_LINES, add_texts, add_verb
from runtime.commands.many import follow, progress_of, tell_end
from runtime.commands.ordering import add_order_flags, ordered
from runtime.config import Config
from runtime.control import Control
from runtime.leaving import CLEAN
from runtime.operating import no_operation
from runtime.operations import Operation


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "Operations: what `dead replay`, `dead purge`, `jobs cancel` and others do to many at once, step by step, by any worker.",
        "python -m runtime operations list",
        "python -m runtime operations stop replay-1f3a90bc --reason 'not before the deploy'",
        "python -m runtime operations rate replay-1f3a90bc 20",
        "python -m runtime operations resume replay-1f3a90bc",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = add_verb(verbs, "list", print_list, "list those that are known, for a week after their last step")
    listing.add_argument("--json", action="store_true", help=JSON_LINES)
    show = _verb(verbs, "show", print_one, "show an operation")
    show.add_argument("--json", action="store_true", help="print one line of JSON")
    along = _verb(
        verbs, "follow", follow_one, "show how an operation goes until it rests; it goes on so also where no worker lives"
    )
    along.add_argument("--json", action="store_true", help="print one line of JSON at its end")
    for name, call, text in (
        ("stop", stop, "stop an operation; the rest stays where it is, and while it is held nothing was done"),
        ("resume", resume, "let one go on that was stopped or has braked"),
        ("drop", drop, "end an operation where it is, and forget it"),
    ):
        add_order_flags(_verb(verbs, name, call, text))
    rate = _verb(verbs, "rate", set_rate, "set how many per second it moves from now on")
    rate.add_argument("rate", type=float, metavar="N", help="per second; 0 for as many as can be")
    add_order_flags(rate)


def _verb(verbs: Any, name: str, call: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser = add_verb(verbs, name, call, text)
    parser.add_argument("id", help="of the operation, as `operations list` prints it")
    return parser


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return int(arguments.verb(config, arguments))


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print the operations that are known, the newest first."""

    async def work(control: Control) -> list[Operation]:
        return await control.operations()

    found = ordered(config, work)
    for one in found:
        if arguments.json:
            print_json(one)
        else:
            print(f"{clean(one.id):22} {_when(one.created_ms)} {progress_of(one)}  {clean(one.what, 70)}")
    print(f"{len(found)} operations", file=sys.stderr)
    return CLEAN


def print_one(config: Config, arguments: argparse.Namespace) -> int:
    """Print one operation."""

    async def work(control: Control) -> Operation:
        return await _found(control, arguments.id)

    found = ordered(config, work)
    if arguments.json:
        print_json(found)
        return CLEAN
    print(f"{found.id}\n  {clean(found.what)}\n  {progress_of(found)}")
    print(f"  looked at {found.looked:,}, {found.rate:g} per second")
    for why, n in found.refused.items():
        print(f"  left where it is, {clean(why)}: {n:,}")
    print(f"  ordered {_when(found.created_ms)} by {clean(found.by)}{': ' + clean(found.reason) if found.reason else ''}")
    print(f"  last step {_when(found.stepped_ms) if found.stepped_ms else 'none yet'}")
    if found.error:
        print(f"  stopped since {clean(found.error)}")
    return CLEAN


async def _found(control: Control, name: str) -> Operation:
    """Return an operation.

    Raises:
        ConfigError: there is none.
    """
    found = await control.operation(name)
    if found is None:
        raise no_operation(name)
    return found


def follow_one(config: Config, arguments: argparse.Namespace) -> int:
    """Show how an operation goes until it rests; status 1 where it did not come to its end."""

    async def work(control: Control) -> Operation:
        await _found(control, arguments.id)
        return await follow(config, control, arguments.id, is_shown=sys.stderr.isatty())

    found = ordered(config, work)
    if arguments.json:
        print_json(found)
    return tell_end(config, found)


def stop(config: Config, arguments: argparse.Namespace) -> int:
    """Stop an operation."""
    return _order(
        config, arguments, "stopped", lambda control: control.stop_operation(arguments.id, reason=arguments.reason), "resume"
    )


def resume(config: Config, arguments: argparse.Namespace) -> int:
    """Let an operation go on."""
    return _order(
        config, arguments, "goes on", lambda control: control.resume_operation(arguments.id, reason=arguments.reason), "stop"
    )


def drop(config: Config, arguments: argparse.Namespace) -> int:
    """End an operation, and forget it."""
    return _order(config, arguments, "dropped", lambda control: control.drop_operation(arguments.id, reason=arguments.reason))


def set_rate(config: Config, arguments: argparse.Namespace) -> int:
    """Set how many per second an operation moves."""
    order: Callable[[Control], Awaitable[bool]] = lambda control: control.set_operation_rate(  # noqa: E731
        arguments.id, arguments.rate, reason=arguments.reason
    )
    return _order(config, arguments, "has another rate", order)


def _order(
    config: Config, arguments: argparse.Namespace, said: str, order: Callable[[Control], Awaitable[bool]], back: str = ""
) -> int:
    async def work(control: Control) -> tuple[bool, Operation | None]:
        changed, found = await order(control), await control.operation(arguments.id)
        if not changed and found is None:
            raise no_operation(arguments.id)
        return changed, found

    changed, found = ordered(config, work)
    if arguments.json:
        print_json({"changed": changed, "operation": found})
        return CLEAN
    print(f"{said if changed else 'nothing to do'}: {clean(arguments.id)}{f' ({progress_of(found)})' if found else ''}")
    if changed and back:
        print(f"take it back: python -m runtime operations {back} {arguments.id}{flags_of(config)}")
    return CLEAN


def _when(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))
