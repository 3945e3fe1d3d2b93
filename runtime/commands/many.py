"""What the commands about many letters or jobs have in common: flags that say which, and how an operation is begun and followed.

The command only shows, and steps along, so that it goes on where no worker lives; who leaves it, leaves the operation to them.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any, Final

from runtime.commands.common import clean, flags_of, print_json, with_store
from runtime.commands.ordering import known_types, span_s
from runtime.config import Config
from runtime.control import Control
from runtime.errors import ConfigError
from runtime.leaving import CLEAN, FAILED
from runtime.operating import Verb
from runtime.operations import ALL_STATES, CANARY_S, HOLD_S, RATE, Filter, Operation
from runtime.store.inspector import is_letter

PROGRESS_S: Final = 0.2  # between two progress lines; a guess: five a second are seen to move
BAR: Final = 24  # characters; a guess
DONE: Final = {
    "replay": "replayed",
    "purge": "deleted",
    "trash": "moved to the trash",
    "cancel": "cancelled",
    "now": "started",
    "priority": "moved",
}
FINAL: Final = ("purge", "cancel")  # at a terminal these are asked back
# Why a letter or job stays as it is, of the answers of the single verbs.
REFUSALS: Final = {
    "gone": "it went meanwhile",
    "unreadable": "this letter holds no message that could run",
    "left-out": "its payload was too large to be kept; hint: send the job again, smaller or with a higher --max-data",
    "owned": "a live job has the same key; hint: replay it when that one has ended",
    "held": "a worker has it",
    "full": "too many that run were asked to end at once; hint: call again",
    "same": "it is so already",
    "failed": "the server refused it",
}
HARMLESS: Final = ("same",)


def add_choice(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the flags that say which ones are meant, beside the type."""
    parser.add_argument("--older-than", metavar="AGE", help=f"only {what} at least so many hours ago, or 90s, 10m, 2h, 1d")
    parser.add_argument("--group", default="", help="only jobs of this group")
    parser.add_argument("--all", action="store_true", help="all of them")
    parser.add_argument("--dry-run", action="store_true", help="only print which ones it would be")


def add_course(parser: argparse.ArgumentParser, *, is_replay: bool = False) -> None:
    """Add the flags that say how an operation goes."""
    text = f"many: at most so many per second (default {RATE:g}; 0: as many as can be)"
    parser.add_argument("--rate", type=float, default=RATE, metavar="N", help=text)
    text = f"many: begin at once; else it is held for {HOLD_S:g} s, in which a stop undoes all of it"
    parser.add_argument("--now", action="store_true", help=text)
    if is_replay:
        text = f"many: send five first, then wait so long (default {CANARY_S:g}), and stop where more than a fifth dies again"
        parser.add_argument("--canary", type=float, default=CANARY_S, metavar="SECONDS", help=text)
    parser.add_argument("--detach", action="store_true", help="many: leave it to the workers, and return")
    parser.add_argument("--yes", action="store_true", help="many: do not ask back at a terminal")


def add_states(parser: argparse.ArgumentParser, *states: str) -> None:
    """Add the flag that says in which of these states jobs are meant."""
    text = f"many: only those that are {' or '.join(states)} when it is their turn; in a lot they are waiting"
    parser.add_argument("--state", default="", choices=states, help=text)


def states_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the states in which jobs are meant."""
    return (arguments.state,) if arguments.state else ALL_STATES


def filter_of(arguments: argparse.Namespace) -> Filter:
    """Return which ones the flags mean."""
    return Filter(
        type=arguments.type,
        reason=getattr(arguments, "letter_reason", ""),
        text=getattr(arguments, "text", ""),
        group=arguments.group,
        before_ms=_before_ms(arguments.older_than),
    )


def _before_ms(age: str | None) -> int:
    if age is None:
        return 0
    try:
        age_s = float(age) * 3600
    except ValueError:
        age_s = float(span_s("--older-than", age))
    if not 0 <= age_s < time.time():
        raise ConfigError(f"--older-than {age}: must be between 0 hours and the age of the epoch")
    return int((time.time() - age_s) * 1000)


def is_of_many(arguments: argparse.Namespace, named: Sequence[str], what: str) -> bool:
    """Return whether the flags choose many; else some are named.

    Raises:
        ConfigError: both, or neither.
    """
    is_filtered = arguments.all or not filter_of(arguments).is_any
    if getattr(arguments, "state", "") and not is_filtered:
        which = "is about many" if named else "says which of those that --type, --group, --older-than or --all chooses"
        raise ConfigError(f"--state {which}; hint: --dry-run shows which")
    if bool(named) == is_filtered:
        raise ConfigError(f"name {what}, or choose them by --type or others, or --all, not both; hint: --dry-run shows which")
    return is_filtered


def check_places(letters: Sequence[str]) -> None:
    """Check that these may be places of letters.

    Raises:
        ConfigError: one of them is none.
    """
    for letter in letters:
        if not is_letter(letter):
            text = "not the place of a dead letter, such as 1732400000000-0; hint: `dead list` prints them"
            raise ConfigError(f"{letter!r}: {text}")


def carry_out(config: Config, arguments: argparse.Namespace, verb: Verb, reason: str = "", **more: Any) -> int:
    """Begin an operation with what the flags mean, and follow it to its end; status 1 when a part of it could not be done."""
    which = filter_of(arguments)

    async def work(url: str) -> Operation | None:
        async with Control(url, config.queue) as control:
            total = await control.count_meant(verb, which, **more)
            if not total:
                await _tell_nothing(config, control, which)
            if not total or not _is_wanted(arguments, verb, total, which):
                return None
            times = {"hold_s": 0.0 if arguments.now else HOLD_S, "canary_s": getattr(arguments, "canary", CANARY_S)}
            made = await control.operate(
                verb, which, rate=arguments.rate, total=total, reason=reason, all=arguments.all, **times, **more
            )
            _tell_begin(config, arguments, made)
            return made if arguments.detach else await follow(config, control, made.id, is_shown=sys.stderr.isatty())

    found = with_store(config, work)
    if found is None:
        print(f"0 {DONE[verb]}", file=sys.stderr)
        return CLEAN
    if arguments.json:
        print_json(found)
    elif arguments.detach:
        print(found.id)
    return CLEAN if arguments.detach else tell_end(config, found)


async def _tell_nothing(config: Config, control: Control, which: Filter) -> None:
    """Print that nothing fits, and which type may have been meant."""
    near: list[str] = []
    if which.type:
        known = await known_types(config, control, [which.type])
        near = [] if which.type in known else get_close_matches(which.type, known, 1)
    meant = f"; did you mean --type {clean(near[0])}?" if near else ""
    print(f"nothing fits: {clean(str(which))}{meant}", file=sys.stderr)


def _is_wanted(arguments: argparse.Namespace, verb: str, total: int, which: Filter) -> bool:
    """Ask back at a terminal about what cannot be undone later."""
    if verb not in FINAL or arguments.yes or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{verb} {total:,}: {clean(str(which))}? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _tell_begin(config: Config, arguments: argparse.Namespace, made: Operation) -> None:
    begins = "begins now" if arguments.now else f"begins in {HOLD_S:g} s; until then, a stop undoes all of it"
    print(f"operation {made.id}: {made.total:,} meant, {clean(made.what)}; {begins}", file=sys.stderr)
    print(f"stop it: python -m runtime operations stop {made.id}{flags_of(config)}", file=sys.stderr)


async def follow(config: Config, control: Control, name: str, *, is_shown: bool) -> Operation:
    """Step an operation along until it rests, and return it as it stands then."""
    shown_s = 0.0
    try:
        while True:
            step = await control.step_operation(name)
            if step.wait_ms < 0 or (is_shown and time.monotonic() > shown_s):
                found = await control.operation(name)
                if found is None:
                    raise ConfigError(f"operation {name} is gone: it was dropped")
                if is_shown:
                    print(f"\r{progress_of(found)}\x1b[K", end="\n" if step.wait_ms < 0 else "", file=sys.stderr, flush=True)
                if step.wait_ms < 0:
                    return found
                shown_s = time.monotonic() + PROGRESS_S
            await asyncio.sleep(min(step.wait_ms / 1000, PROGRESS_S))
    except asyncio.CancelledError:
        print(f"\noperation {name} goes on while workers run; stop it:", file=sys.stderr)
        print(f"python -m runtime operations stop {name}{flags_of(config)}", file=sys.stderr)
        raise


def progress_of(found: Operation) -> str:
    """Return how far an operation is, in a line."""
    refused = sum(found.refused.values())
    part = min(1.0, (found.done + refused) / found.total) if found.total else 0.0
    bar = "#" * round(part * BAR)
    of = "" if found.total is None else f" of {found.total:,}"
    asked = f", {found.asked:,} asked to end" if found.asked else ""
    why = ", ".join(f"{clean(why, 40)} {n:,}" for why, n in found.refused.items())
    rest = f", {refused:,} not ({why})" if refused else ""
    again = f", {found.again:,} dead again" if found.again else ""
    done = f"{found.done - found.asked:,}{of} {DONE.get(found.verb, 'done')}"
    return f"{clean(found.state, 20):8} [{bar:.<{BAR}}] {done}{asked}{rest}{_missing(found)}{again}"


def _missing(found: Operation) -> str:
    """Return how many of those counted were not met, once all was looked at."""
    return f", {found.left:,} gone before their turn" if found.state == "done" and found.left else ""


def tell_end(config: Config, found: Operation) -> int:
    """Print what became of an operation; return the status: 1 where it did not come to its end, or some could not be done."""
    refused = {why: n for why, n in found.refused.items() if why not in HARMLESS}
    for why, n in found.refused.items():
        print(f"{n:,} not: {REFUSALS.get(why) or clean(why)}", file=sys.stderr)
    could_not = f", {sum(refused.values()):,} could not be" if refused else ""
    asked = f", {found.asked:,} asked to end: they run, and are dead letters then, or done" if found.asked else ""
    done = f"{found.done - found.asked:,} {DONE.get(found.verb, 'done')}"
    print(f"{done}{asked}{could_not}{_missing(found)}", file=sys.stderr)
    if found.state != "done":
        why = f": {clean(found.error)}" if found.error else ""
        again = f", {found.again:,} of them are dead again" if found.again else ""
        print(f"operation {found.id} is {clean(found.state)}{again}{why}; the rest is where it was", file=sys.stderr)
        print(f"let it go on: python -m runtime operations resume {found.id}{flags_of(config)}", file=sys.stderr)
    return FAILED if refused or found.state != "done" else CLEAN


def print_meant(config: Config, verb: Verb, which: Filter, show: Callable[[Any, list[str]], Any], **more: Any) -> int:
    """Print what an operation would mean: `show` is given the url and the places, a few at a time; returns how many."""

    async def read(url: str) -> int:
        n = 0
        async with Control(url, config.queue) as control:
            async for places in control.meant(verb, which, **more):
                n += len(places)
                await show(url, places)
            if not n:
                await _tell_nothing(config, control, which)
        return n

    n = with_store(config, read)
    print(f"{n} would be {DONE[verb]}", file=sys.stderr)
    return CLEAN
