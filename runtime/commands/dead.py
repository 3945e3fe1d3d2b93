"""`dead list`, `dead show`, `dead replay`, `dead purge`: dead letters, one by one or by what they have in common."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from runtime.commands.common import clean, control, flags_of, inspector, print_json, with_store
from runtime.commands.flags import add_texts, add_verb, check_between
from runtime.config import Config, trace_url_of
from runtime.errors import ConfigError
from runtime.leaving import CLEAN, FAILED
from runtime.store.control import ControlStore
from runtime.store.inspector import PAGE, DeadLetter, Filter, Inspector, is_letter

MAX_LIST: Final = 10_000  # a guess: ten reads of a thousand, some megabytes
PROGRESS_S: Final = 0.2  # between two progress lines; a guess: five a second are seen to move
# Answers of a replay that are no entry's id: why a letter was not sent back.
REFUSALS: Final = {
    "gone": "no such dead letter",
    "unreadable": "this letter holds no message that could run",
    "left-out": "its payload was too large to be kept; hint: send the job again, smaller or with a higher --max-data",
    "owned": "a live job has the same key; hint: replay it when that one has ended",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "Dead letters are jobs that have failed for good; they are kept until they are replayed or purged.",
        "python -m runtime dead list --type send-email -n 100",
        "python -m runtime dead replay --type send-email --reason attempts --dry-run",
        "python -m runtime dead replay --type send-email --reason attempts --rate 50",
        "python -m runtime dead purge --older-than 720",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    listing = add_verb(verbs, "list", print_list, "list the newest dead letters")
    _add_filter(listing)
    listing.add_argument("-n", type=int, default=20, metavar="N", help=f"how many to look at (1 to {MAX_LIST}; default 20)")

    show = add_verb(verbs, "show", print_one, "show one dead letter with its error, stack and fields")
    show.add_argument("letter", help="its place, as `dead list` prints it")
    show.add_argument("--json", action="store_true", help="print JSON")

    again = add_verb(verbs, "replay", replay, "send dead letters back to their streams, with a fresh count of attempts")
    _add_filter(again)
    _add_choice(again)
    again.add_argument("--rate", type=float, default=0.0, metavar="N", help="at most this many per second; default: no limit")

    away = add_verb(verbs, "purge", purge, "delete dead letters; they cannot be brought back")
    _add_filter(away)
    _add_choice(away)


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", default="", help="only this job type")
    parser.add_argument("--reason", default="", help="only this reason, such as attempts or bad-payload")
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def _add_choice(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("letters", nargs="*", metavar="letter", help="places, as `dead list` prints them")
    parser.add_argument("--older-than", type=float, metavar="HOURS", help="only those that died at least this long ago")
    parser.add_argument("--all", action="store_true", help="all dead letters")
    parser.add_argument("--dry-run", action="store_true", help="only print which ones it would be")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return int(arguments.verb(config, arguments))


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print the newest dead letters, and how many were looked at."""
    check_between("-n", arguments.n, 1, MAX_LIST)

    async def read(url: str) -> list[DeadLetter]:
        async with inspector(url, config.queue) as found:
            return await found.dead_letters(arguments.n)

    looked_at = with_store(config, read)
    letters = [letter for letter in looked_at if _filter(arguments).fits(letter)]
    if letters and not arguments.json:
        print(f"{'LETTER':20} {'DIED':19} {'TYPE':24} {'REASON':18} RUN ERROR")
    for letter in letters:
        print_json(letter) if arguments.json else print(_line(letter))
    print(f"{len(letters)} shown, the newest {len(looked_at)} looked at", file=sys.stderr)
    return 0


def print_one(config: Config, arguments: argparse.Namespace) -> int:
    """Print one dead letter whole; status 1 when it is gone."""
    _check(arguments.letter)

    async def read(url: str) -> DeadLetter | None:
        async with inspector(url, config.queue) as found:
            return await found.dead_letter(arguments.letter)

    letter = with_store(config, read)
    if letter is None:
        print(f"runtime: {REFUSALS['gone']}: {arguments.letter}", file=sys.stderr)
        return FAILED
    if arguments.json:
        print_json(letter)
        return 0
    print(f"letter    {letter.letter}\njob       {clean(letter.id) or '-'}\ntype      {clean(letter.type) or '-'}")
    print(f"reason    {clean(letter.reason)}\nerror     {clean(letter.error)}\nattempts  {letter.attempts}")
    print(f"died      {_when(letter)} on {letter.priority}")
    if letter.trace:
        trace_id = letter.trace[3:35]
        print(f"trace     {trace_url_of(config.trace_url, trace_id) or clean(letter.trace)}")
    for name, value in letter.message.items():
        print(f"  {clean(name)}: {clean(value, 2000)}")
    if letter.left_out:
        print(f"  left out, with their bytes: {clean(letter.left_out, 2000)}")
    for line in letter.stack.splitlines():
        print(f"  | {clean(line)}")
    print(f"\nsend it back: python -m runtime dead replay {letter.letter}{flags_of(config)}", file=sys.stderr)
    return 0


def replay(config: Config, arguments: argparse.Namespace) -> int:
    """Send dead letters back, those named or those that fit; status 1 when one of them could not be sent."""
    _check_choice(arguments)
    if arguments.rate < 0:
        raise ConfigError(f"--rate {arguments.rate:g}: must be 0 or more (letters per second; 0 sets no limit)")

    async def send_back(writes: ControlStore, letter: str) -> bool:
        answer = await writes.replay(letter)
        if arguments.json:
            print_json({"letter": letter, "replayed": answer not in REFUSALS, "answer": answer})
        elif arguments.letters or answer in REFUSALS:
            print(f"{letter}: {REFUSALS.get(answer) or f'waits again as entry {answer}'}")
        await asyncio.sleep(1 / arguments.rate if arguments.rate else 0)
        return answer not in REFUSALS

    return _for_each(config, arguments, "replayed", send_back)


def purge(config: Config, arguments: argparse.Namespace) -> int:
    """Delete dead letters, those named or those that fit; status 1 when one of them was not there."""
    _check_choice(arguments)

    async def delete(writes: ControlStore, letter: str) -> bool:
        return await writes.purge([letter]) == 1

    return _for_each(config, arguments, "deleted", delete)


def _for_each(
    config: Config, arguments: argparse.Namespace, done_word: str, act: Callable[[ControlStore, str], Awaitable[bool]]
) -> int:
    """Call `act` for each chosen letter, with a progress line at a terminal; `--dry-run` only prints them."""

    async def work(url: str) -> tuple[int, int]:
        done, failed, next_s = 0, 0, 0.0
        async with inspector(url, config.queue) as found, control(url, config.queue) as writes:
            async for letter in _chosen(found, arguments):
                if arguments.dry_run:
                    print_json(letter) if arguments.json else print(_line(letter))
                    done += 1
                elif await act(writes, letter.letter):
                    done += 1
                else:
                    failed += 1
                if sys.stderr.isatty() and time.monotonic() > next_s:
                    next_s = time.monotonic() + PROGRESS_S
                    print(f"\r{done:>10,} {done_word}, {failed:,} not ", end="", file=sys.stderr, flush=True)
        return done, failed

    done, failed = with_store(config, work)
    would = "would be " if arguments.dry_run else ""
    print(f"{done} {would}{done_word}{f', {failed} could not be' if failed else ''}", file=sys.stderr)
    return FAILED if failed else CLEAN


async def _chosen(found: Inspector, arguments: argparse.Namespace) -> AsyncGenerator[DeadLetter]:
    """Yield the letters named, or page by page those that fit.

    It ends at the letter that was the newest at the start: a job that is replayed may die again, as a letter behind it, and would
    be replayed without end.
    """
    if arguments.letters:
        for place in arguments.letters:
            yield await found.dead_letter(place) or DeadLetter(place, "", "", "gone", "", 0, "", 0.0, "", {})
        return
    newest = await found.dead_letters(1)
    last, after, which = newest[0].letter if newest else "0-0", "-", _filter(arguments)
    while page := await found.letters_page(after, PAGE):
        for letter in page:
            if _order(letter.letter) > _order(last):
                return
            if which.fits(letter):
                yield letter
        after = page[-1].letter


def _order(place: str) -> tuple[int, int]:
    stamp, _, number = place.partition("-")
    return int(stamp), int(number)


def _filter(arguments: argparse.Namespace) -> Filter:
    older_s = getattr(arguments, "older_than", None)
    return Filter(arguments.type, arguments.reason, time.time() - older_s * 3600 if older_s else 0.0)


def _check_choice(arguments: argparse.Namespace) -> None:
    for letter in arguments.letters:
        _check(letter)
    is_filtered = bool(arguments.type or arguments.reason or arguments.older_than or arguments.all)
    if bool(arguments.letters) == is_filtered:
        raise ConfigError(
            "name letters, or choose them by --type, --reason, --older-than or --all, not both; hint: --dry-run shows which"
        )


def _line(letter: DeadLetter) -> str:
    head = f"{letter.letter:20} {_when(letter)} {clean(letter.type or '-', 24):24} {clean(letter.reason, 18):18}"
    return f"{head} {letter.attempts:>3} {clean(letter.error, 70)}"


def _when(letter: DeadLetter) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.died_at))


def _check(letter: str) -> None:
    if not is_letter(letter):
        raise ConfigError(f"{letter!r}: not the place of a dead letter, such as 1732400000000-0; hint: `dead list` prints them")
