"""`dead list`, `show`, `replay`, `trash`, `restore`, `purge`: dead letters, one by one or by what they have in common."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from runtime.codec import JOB_ID
from runtime.commands import many
from runtime.commands.common import clean, control, flags_of, inspector, print_json, with_store
from runtime.commands.flags import JSON_LINES, add_texts, add_verb, check_between
from runtime.commands.many import add_choice, add_course, carry_out, check_places, filter_of, is_of_many, print_meant
from runtime.commands.readings import tries_in_words
from runtime.config import Config, trace_url_of
from runtime.control import who
from runtime.errors import ConfigError
from runtime.leaving import CLEAN, FAILED
from runtime.operating import Verb
from runtime.store.base import LOOK_AT
from runtime.store.control import ControlStore
from runtime.store.finder import Finder
from runtime.store.inspector import LETTERS_PAGE, DeadLetter, is_letter
from runtime.store.letters import Head, LetterStore

MAX_LIST: Final = 10_000  # a guess: ten reads of a thousand, some megabytes
MAX_NAMED: Final = 5  # letters of one job that are named; a guess
NEWEST: Final = f"ids are looked for among the newest {LOOK_AT:,}"
# Answers of a replay that are no entry's id: why a letter was not sent back.
REFUSALS: Final = {**many.REFUSALS, "gone": "no such dead letter"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "Dead letters are jobs that have failed for good; they are kept until they are replayed, moved to the trash or purged.",
        "python -m runtime dead list --type send-email -n 100",
        "python -m runtime dead show order-7",
        "python -m runtime dead replay --type send-email --reason attempts --dry-run",
        "python -m runtime dead replay --type send-email --text 'no such host' --rate 50",
        "python -m runtime dead trash --type send-email --older-than 24",
        "python -m runtime dead purge --older-than 720",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    listing = add_verb(verbs, "list", print_list, "list the newest dead letters")
    _add_filter(listing)
    listing.add_argument("-n", type=int, default=20, metavar="N", help=f"how many to look at (1 to {MAX_LIST}; default 20)")

    listing.add_argument("--trash", action="store_true", help="those in the trash")

    show = add_verb(verbs, "show", print_one, "show one dead letter with its error, stack and fields")
    show.add_argument("letter", help="its place, as `dead list` prints it, or the job's id: of several letters the newest")
    show.add_argument("--json", action="store_true", help="print one line of JSON")

    again = add_verb(verbs, "replay", replay, "send dead letters back to their streams, with a fresh count of attempts")
    _add_filter(again)
    _add_many(again, "places, as `dead list` prints them, or ids of jobs that have one letter each")
    add_course(again, is_replay=True)

    trashed = add_verb(verbs, "trash", trash, "move dead letters to the trash, from which they can be restored for a week")
    _add_filter(trashed)
    _add_many(trashed)
    add_course(trashed)

    back = add_verb(verbs, "restore", restore, "take letters out of the trash; they are dead letters again")
    back.add_argument("letters", nargs="+", metavar="letter", help="places, as `dead list --trash` prints them")
    back.add_argument("--json", action="store_true", help=JSON_LINES)
    back.set_defaults(dry_run=False)

    away = add_verb(verbs, "purge", purge, "delete dead letters; they cannot be brought back")
    _add_filter(away)
    _add_many(away)
    add_course(away)


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--type", default="", help="only this job type")
    text = "only this reason, such as attempts or bad-payload"
    parser.add_argument("--reason", dest="letter_reason", default="", help=text)
    parser.add_argument("--json", action="store_true", help=JSON_LINES)


def _add_many(parser: argparse.ArgumentParser, text: str = "places, as `dead list` prints them") -> None:
    parser.add_argument("letters", nargs="*", metavar="letter", help=text)
    parser.add_argument("--text", default="", help="only those in whose error this text stands")
    add_choice(parser, "those that died")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return int(arguments.verb(config, arguments))


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print the newest dead letters, and how many were looked at."""
    check_between("-n", arguments.n, 1, MAX_LIST)

    look = _list_whole if arguments.json else _list_heads
    shown, looked_at = with_store(config, lambda url: look(url, config.queue, arguments))
    print(f"{shown} shown, the newest {looked_at} looked at", file=sys.stderr)
    return 0


async def _list_whole(url: str, queue: str, arguments: argparse.Namespace) -> tuple[int, int]:
    """Print letters with all that is in them as they come; return how many were shown, and looked at."""
    shown = looked_at = 0
    before, more = "+", True
    async with inspector(url, queue) as found:
        while more and looked_at < arguments.n:
            asked = min(LETTERS_PAGE, arguments.n - looked_at)
            page = await found.dead_letters(asked, before, is_trash=arguments.trash)
            fitting = [letter for letter in page if _fits(letter, arguments)]
            for letter in fitting:
                print_json(letter)
            shown, looked_at, more = shown + len(fitting), looked_at + len(page), len(page) == asked
            before = page[-1].letter if page else before
    return shown, looked_at


async def _list_heads(url: str, queue: str, arguments: argparse.Namespace) -> tuple[int, int]:
    """Print a line for each letter, of which the server sends no more than that; return how many were shown, and looked at."""
    shown = looked_at = 0
    before, is_end = "+", False
    store = LetterStore(url, queue)
    try:
        while not is_end and looked_at < arguments.n:
            page, is_end = await store.older(before, "trash" if arguments.trash else "dead")
            page = page[: arguments.n - looked_at]
            fitting = [head for head in page if _fits(head, arguments)]
            if fitting and not shown:
                print(f"{'LETTER':20} {'DIED':19} {'TYPE':24} {'REASON':18} RUN ERROR")
            for head in fitting:
                print(_line(head.place, head.at_ms / 1000, head))
            shown, looked_at = shown + len(fitting), looked_at + len(page)
            before = page[-1].place if page else before
    finally:
        await store.close()
    return shown, looked_at


def _fits(letter: DeadLetter | Head, arguments: argparse.Namespace) -> bool:
    return arguments.type in ("", letter.type) and arguments.letter_reason in ("", letter.reason)


def print_one(config: Config, arguments: argparse.Namespace) -> int:
    """Print one dead letter whole, by its place or its job's id; status 1 when there is none."""
    _check_names([arguments.letter])

    async def read(url: str) -> list[DeadLetter]:
        async with inspector(url, config.queue) as found:
            return await found.letters_of(arguments.letter, LOOK_AT)

    letters = with_store(config, read)
    if not letters:
        print(f"runtime: {REFUSALS['gone']}: {arguments.letter}; {NEWEST}", file=sys.stderr)
        return FAILED
    letter = letters[0]
    if len(letters) > 1:
        more = ", ".join(one.letter for one in letters[1 : MAX_NAMED + 1])
        print(f"the newest of {len(letters)} letters of this job; the others: {more}", file=sys.stderr)
    if arguments.json:
        print_json(letter)
        return 0
    print(f"letter    {letter.letter}\njob       {clean(letter.id) or '-'}\ntype      {clean(letter.type) or '-'}")
    print(f"reason    {clean(letter.reason)}\nerror     {clean(letter.error)}\nattempts  {letter.attempts}")
    where = (f", written by {clean(letter.by, 64)}" if letter.by else "") + (
        f", version {clean(letter.app, 40)}" if letter.app else ""
    )
    print(f"died      {_when(letter.died_at)} on {letter.priority}{where}")
    for line in tries_in_words(letter.tries, int(time.time() * 1000)):
        print(f"          {line}")
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
    if is_of_many(arguments, arguments.letters, "letters"):
        return _of_many(config, arguments, "replay")

    async def send_back(writes: ControlStore, letter: str) -> bool:
        answer = await writes.replay(letter)
        if arguments.json:
            print_json({"letter": letter, "replayed": answer not in REFUSALS, "answer": answer})
        else:
            print(f"{letter}: {REFUSALS.get(answer) or f'waits again as entry {answer}'}")
        return answer not in REFUSALS

    return _for_each(config, arguments, "replayed", send_back, may_be_ids=True)


def purge(config: Config, arguments: argparse.Namespace) -> int:
    """Delete dead letters, those named or those that fit; status 1 when one of them was not there."""
    if is_of_many(arguments, arguments.letters, "letters"):
        return _of_many(config, arguments, "purge")

    async def delete(writes: ControlStore, letter: str) -> bool:
        is_done = await writes.purge([letter]) == 1
        if arguments.json:
            print_json({"letter": letter, "deleted": is_done})
        else:
            print(f"{letter}: {'deleted' if is_done else REFUSALS['gone']}")
        return is_done

    return _for_each(config, arguments, "deleted", delete)


def trash(config: Config, arguments: argparse.Namespace) -> int:
    """Move dead letters to the trash, those named or those that fit; status 1 when one of them was not there."""
    if is_of_many(arguments, arguments.letters, "letters"):
        return _of_many(config, arguments, "trash")
    return _for_each(config, arguments, "moved to the trash", _mover(arguments, "trash", "moved to the trash: "))


def restore(config: Config, arguments: argparse.Namespace) -> int:
    """Take letters out of the trash; status 1 when one of them was not there."""
    return _for_each(config, arguments, "restored", _mover(arguments, "restore", "a dead letter again: "))


def _mover(arguments: argparse.Namespace, verb: str, told: str) -> Callable[[ControlStore, str], Awaitable[bool]]:
    async def move(writes: ControlStore, letter: str) -> bool:
        [answer] = await writes.move_letters(verb, who(), "", [letter])
        word, _, place = answer.partition(" ")
        if arguments.json:
            print_json({"letter": letter, "moved": word == "moved", "place": place})
        else:
            print(f"{letter}: {told + place if word == 'moved' else REFUSALS.get(word, clean(answer))}")
        return word == "moved"

    return move


def _of_many(config: Config, arguments: argparse.Namespace, verb: Verb) -> int:
    async def show(url: str, places: list[str]) -> None:
        async with inspector(url, config.queue) as found:
            for letter in await found.letters_at([place.partition(" ")[2] for place in places]):
                _print(letter, arguments)

    if arguments.dry_run:
        return print_meant(config, verb, filter_of(arguments), show)
    return carry_out(config, arguments, verb)


def _check_names(names: Sequence[str]) -> None:
    """Check that these may be ids of jobs, or places of letters, which look like some."""
    check_places([name for name in names if not JOB_ID.match(name.encode(errors="replace"))])


async def place_of_letter(found: Finder, name: str) -> str:
    """Return the place of the one letter that is meant: itself, where it is no id of a job."""
    letters = await found.letters_of(name, LOOK_AT)
    if len(letters) > 1:
        places = ", ".join(one.letter for one in letters[:MAX_NAMED])
        raise ConfigError(f"{name} has {len(letters)} letters; hint: name the one that is meant, {places}")
    return letters[0].letter if letters else name


def _for_each(
    config: Config,
    arguments: argparse.Namespace,
    done_word: str,
    act: Callable[[ControlStore, str], Awaitable[bool]],
    *,
    may_be_ids: bool = False,
) -> int:
    """Call `act` for each letter that was named; `--dry-run` only prints those that are there."""
    (_check_names if may_be_ids else check_places)(arguments.letters)

    async def work(url: str) -> int:
        done = 0
        async with inspector(url, config.queue) as found, control(url, config.queue) as writes:
            # Which are meant is known before the first is moved.
            places = [await place_of_letter(found, name) for name in arguments.letters] if may_be_ids else arguments.letters
            for letter in places:
                if not is_letter(letter):
                    print(f"{letter}: {REFUSALS['gone']}; {NEWEST}", file=sys.stderr)
                    continue
                if not arguments.dry_run:
                    done += await act(writes, letter)
                elif there := await found.dead_letter(letter):
                    _print(there, arguments)
                    done += 1
        return done

    done = with_store(config, work)
    failed = len(arguments.letters) - done
    would = "would be " if arguments.dry_run else ""
    print(f"{done} {would}{done_word}{f', {failed} could not be' if failed else ''}", file=sys.stderr)
    return FAILED if failed else CLEAN


def _print(letter: DeadLetter, arguments: argparse.Namespace) -> None:
    print_json(letter) if arguments.json else print(_line(letter.letter, letter.died_at, letter))


def _line(place: str, died_at: float, letter: DeadLetter | Head) -> str:
    head = f"{place:20} {_when(died_at)} {clean(letter.type or '-', 24):24} {clean(letter.reason, 18):18}"
    return f"{head} {letter.attempts:>3} {clean(letter.error, 70)}"


def _when(died_at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(died_at))
