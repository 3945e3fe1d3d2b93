"""`workers list`, `workers quiet`, `workers resume`, `workers stop`: the workers that live, and what they are to do."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from runtime.commands.common import clean, print_json
from runtime.commands.flags import JSON_LINES, add_texts, add_verb
from runtime.commands.ordering import add_order_flags, ordered, tell
from runtime.commands.readings import blocked_in_words
from runtime.config import Config
from runtime.control import Control, Worker
from runtime.leaving import CLEAN


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "The workers that live, and what they are to do. A worker is named by its name, or by a beginning that it alone has.",
        "python -m runtime workers list",
        "python -m runtime workers quiet web-1-4711 --reason 'a look at its memory'",
        "python -m runtime workers resume --all",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = add_verb(verbs, "list", print_list, "list the workers that live, and those that have fallen silent")
    listing.add_argument("--json", action="store_true", help=JSON_LINES)
    for name, run, text in (
        ("quiet", quiet, "let workers start nothing new, until they are resumed; what runs there goes on"),
        ("resume", resume, "let quiet workers go on"),
        ("stop", stop, "stop workers as SIGTERM does; a supervisor does not replace them"),
    ):
        verb = add_verb(verbs, name, run, text)
        verb.add_argument("workers", nargs="*", metavar="WORKER", help="names, or beginnings of names")
        verb.add_argument("--all", action="store_true", help="all workers that live now")
        add_order_flags(verb)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return int(arguments.verb(config, arguments))


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print the workers that live, as they said with their last heartbeat, and those that are silent."""

    async def work(control: Control) -> list[Worker]:
        return await control.workers()

    workers = ordered(config, work)
    if workers and not arguments.json:
        print(f"{'WORKER':50} {'STAGE':10} {'ORDERED':8} {'LANES':>6} {'HELD':>6} RUNNING")
    for worker in workers:
        if arguments.json:
            print_json(worker)
            continue
        running = ", ".join(f"{number} {name}" for name, number in sorted(worker.running.items()))
        head = f"{clean(worker.name, 50):50} {clean(worker.stage, 10):10} {worker.order or '-':8}"
        print(f"{head} {worker.lanes:>6} {worker.held:>6} {clean(running, 60) or '-'}")
        if worker.silence:
            print(f"{'':50} {worker.silence}")
        blocked = blocked_in_words(worker)
        if blocked:
            print(f"{'':50} loop blocked: {blocked}")
    silent = sum(1 for worker in workers if worker.silence)
    print(f"{len(workers) - silent} workers live{f', {silent} silent' if silent else ''}", file=sys.stderr)
    return CLEAN


def quiet(config: Config, arguments: argparse.Namespace) -> int:
    """Let workers start nothing new."""
    return _order(config, arguments, Control.quiet, "starts nothing new", "was quiet already", "workers resume")


def resume(config: Config, arguments: argparse.Namespace) -> int:
    """Let quiet workers go on."""
    return _order(config, arguments, Control.resume_worker, "goes on", "was not quiet", "")


def stop(config: Config, arguments: argparse.Namespace) -> int:
    """Stop workers."""
    return _order(config, arguments, Control.stop, "stops", "was ordered to stop already", "")


def _order(
    config: Config,
    arguments: argparse.Namespace,
    act: Callable[..., Coroutine[Any, Any, list[str]]],
    said: str,
    otherwise: str,
    back: str,
) -> int:
    async def work(control: Control) -> list[str]:
        return await act(control, *arguments.workers, all=arguments.all, reason=arguments.reason)

    changed = ordered(config, work)
    unchanged = [name for name in arguments.workers if not any(other.startswith(name) for other in changed)]
    undo = f"{back} {'--all' if arguments.all else shlex.join(changed)}" if back else ""
    tell(config, arguments, [*changed, *unchanged], changed, said, otherwise, undo)
    if not changed and arguments.all and not arguments.json:
        print("nothing was to do")
    return CLEAN
