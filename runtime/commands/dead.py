"""`dead list`, `dead show`, `dead replay`, `dead purge`: dead letters, one by one or by what they have in common."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from runtime.commands.common import clean, flags_of, inspector, print_json, with_store
from runtime.config import Config
from runtime.errors import ConfigError
from runtime.store.inspector import PAGE, DeadLetter, Filter, Inspector, is_letter

MAX_LIST = 10_000
PROGRESS_S = 0.2
WORDS = {
    "gone": "no such dead letter",
    "unreadable": "this letter holds no message that could run",
    "left-out": "its payload was too large to be kept in the letter: send the job again, smaller or with a higher --max-data",
    "owned": "a live job has the same key; replay it when that one has ended",
}


def listing(config: Config, parsed: argparse.Namespace) -> int:
    """Print the newest dead letters, and how many were looked at."""
    if not 1 <= parsed.n <= MAX_LIST:
        raise ConfigError(f"-n {parsed.n}: from 1 to {MAX_LIST}, please")

    async def look(url: str) -> list[DeadLetter]:
        async with inspector(url, config.queue) as found:
            return await found.dead_letters(parsed.n)

    looked_at = with_store(config, look)
    letters = [letter for letter in looked_at if _filter(parsed).fits(letter)]
    if letters and not parsed.json:
        print(f"{'LETTER':20} {'DIED':19} {'TYPE':24} {'REASON':18} RUN ERROR")
    for letter in letters:
        print_json(letter) if parsed.json else print(_line(letter))
    print(f"{len(letters)} shown, the newest {len(looked_at)} looked at", file=sys.stderr)
    return 0


def show(config: Config, parsed: argparse.Namespace) -> int:
    """Print one dead letter whole."""
    _check(parsed.letter)

    async def look(url: str) -> DeadLetter | None:
        async with inspector(url, config.queue) as found:
            return await found.dead_letter(parsed.letter)

    letter = with_store(config, look)
    if letter is None:
        print(f"runtime: {WORDS['gone']}: {parsed.letter}", file=sys.stderr)
        return 1
    if parsed.json:
        print_json(letter)
        return 0
    print(f"letter    {letter.letter}\njob       {clean(letter.id) or '-'}\ntype      {clean(letter.type) or '-'}")
    print(f"reason    {clean(letter.reason)}\nerror     {clean(letter.error)}\nattempts  {letter.attempts}")
    print(f"died      {_when(letter)} on {letter.priority}")
    for name, value in letter.message.items():
        print(f"  {clean(name)}: {clean(value, 2000)}")
    if letter.left_out:
        print(f"  left out, with their bytes: {clean(letter.left_out, 2000)}")
    for line in letter.stack.splitlines():
        print(f"  | {clean(line)}")
    print(f"\nsend it back: python -m runtime dead replay {letter.letter}{flags_of(config)}", file=sys.stderr)
    return 0


def replay(config: Config, parsed: argparse.Namespace) -> int:
    """Send dead letters back, those named or those that fit; status 1 when one of them could not be."""
    _check_choice(parsed)
    if parsed.rate < 0:
        raise ConfigError(f"--rate {parsed.rate:g}: letters per second, 0 for as fast as it goes")

    async def send_back(found: Inspector, letter: str) -> bool:
        answer = await found.replay(letter)
        if parsed.json:
            print_json({"letter": letter, "replayed": answer not in WORDS, "answer": answer})
        elif parsed.letters or answer in WORDS:
            print(f"{letter}: {WORDS.get(answer) or f'waits again as entry {answer}'}")
        await asyncio.sleep(1 / parsed.rate if parsed.rate else 0)
        return answer not in WORDS

    return _for_each(config, parsed, "replayed", send_back)


def purge(config: Config, parsed: argparse.Namespace) -> int:
    """Delete dead letters for ever, those named or those that fit; status 1 when one of them was not there."""
    _check_choice(parsed)

    async def delete(found: Inspector, letter: str) -> bool:
        return await found.purge([letter]) == 1

    return _for_each(config, parsed, "deleted", delete)


def _for_each(config: Config, parsed: argparse.Namespace, word: str, main: Callable[[Inspector, str], Awaitable[bool]]) -> int:
    """Do it for all letters that are meant, with a progress line at a terminal; `--dry-run` only names them."""

    async def work(url: str) -> tuple[int, int]:
        done, failed, next_s = 0, 0, 0.0
        async with inspector(url, config.queue) as found:
            async for letter in _meant(found, parsed):
                if parsed.dry_run:
                    print_json(letter) if parsed.json else print(_line(letter))
                    done += 1
                elif await main(found, letter.letter):
                    done += 1
                else:
                    failed += 1
                if sys.stderr.isatty() and time.monotonic() > next_s:
                    next_s = time.monotonic() + PROGRESS_S
                    print(f"\r{done:>10,} {word}, {failed:,} not ", end="", file=sys.stderr, flush=True)
        return done, failed

    done, failed = with_store(config, work)
    would = "would be " if parsed.dry_run else ""
    print(f"{done} {would}{word}{f', {failed} could not be' if failed else ''}", file=sys.stderr)
    return 1 if failed else 0


async def _meant(found: Inspector, parsed: argparse.Namespace) -> AsyncGenerator[DeadLetter]:
    """Return the letters named, or page by page those that fit and were there when we began: a replay may die again meanwhile."""
    if parsed.letters:
        for place in parsed.letters:
            yield await found.dead_letter(place) or DeadLetter(place, "", "", "gone", "", 0, "", 0.0, "", {})
        return
    newest = await found.dead_letters(1)
    last, after, which = newest[0].letter if newest else "0-0", "-", _filter(parsed)
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


def _filter(parsed: argparse.Namespace) -> Filter:
    older_s = getattr(parsed, "older_than", None)
    return Filter(parsed.type, parsed.reason, time.time() - older_s * 3600 if older_s else 0.0)


def _check_choice(parsed: argparse.Namespace) -> None:
    for letter in parsed.letters:
        _check(letter)
    is_filtered = bool(parsed.type or parsed.reason or parsed.older_than or parsed.all)
    if bool(parsed.letters) == is_filtered:
        raise ConfigError(
            "name letters, or choose them by --type, --reason, --older-than or --all (not both); --dry-run shows which"
        )


def _line(letter: DeadLetter) -> str:
    head = f"{letter.letter:20} {_when(letter)} {clean(letter.type or '-', 24):24} {clean(letter.reason, 18):18}"
    return f"{head} {letter.attempts:>3} {clean(letter.error, 70)}"


def _when(letter: DeadLetter) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.died_at))


def _check(letter: str) -> None:
    if not is_letter(letter):
        raise ConfigError(f"{letter!r} is no dead letter's place; `dead list` prints them, such as 1732400000000-0")
