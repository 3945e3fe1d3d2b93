"""`dead list`, `dead show`, `dead replay`."""

from __future__ import annotations

import argparse
import sys
import time

from runtime.commands.common import clean, lookups, print_json, with_store
from runtime.config import Config
from runtime.errors import ConfigError
from runtime.lookups import DeadLetter, is_letter

MAX_LIST = 10_000
WORDS = {
    "gone": "no such dead letter",
    "unreadable": "this letter holds no message that could run",
    "owned": "a live job has the same key; replay it when that one has ended",
}


def listing(config: Config, parsed: argparse.Namespace) -> int:
    """Print the newest dead letters, and how many were looked at."""
    if not 1 <= parsed.n <= MAX_LIST:
        raise ConfigError(f"-n {parsed.n}: from 1 to {MAX_LIST}, please")

    async def look(url: str) -> list[DeadLetter]:
        async with lookups(url, config.queue) as found:
            return await found.dead_letters(parsed.n)

    looked_at = with_store(config, look)
    letters = [
        letter
        for letter in looked_at
        if (not parsed.type or letter.type == parsed.type) and (not parsed.reason or letter.reason == parsed.reason)
    ]
    if parsed.json:
        for letter in letters:
            print_json(letter)
        return 0
    for letter in letters:
        died = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.died_at))
        head = f"{letter.letter:20} {died} {clean(letter.type or '-', 24):24} {clean(letter.reason, 18):18}"
        print(f"{head} {letter.attempts:>3} {clean(letter.error, 70)}")
    print(f"{len(letters)} shown, the newest {len(looked_at)} looked at", file=sys.stderr)
    return 0


def show(config: Config, parsed: argparse.Namespace) -> int:
    """Print one dead letter whole."""
    _check(parsed.letter)

    async def look(url: str) -> DeadLetter | None:
        async with lookups(url, config.queue) as found:
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
    print(f"died      {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(letter.died_at))} on {letter.priority}")
    for name, value in letter.message.items():
        print(f"  {clean(name)}: {clean(value, 2000)}")
    for line in letter.stack.splitlines():
        print(f"  | {clean(line)}")
    print(f"\nsend it back: python -m runtime dead replay {letter.letter}", file=sys.stderr)
    return 0


def replay(config: Config, parsed: argparse.Namespace) -> int:
    """Send dead letters back; status 1 when one of them could not be."""
    for letter in parsed.letters:
        _check(letter)

    async def send_back(url: str) -> list[str]:
        async with lookups(url, config.queue) as found:
            return [await found.replay(letter) for letter in parsed.letters]

    answers = with_store(config, send_back)
    for letter, answer in zip(parsed.letters, answers, strict=True):
        if parsed.json:
            print_json({"letter": letter, "replayed": answer not in WORDS, "answer": answer})
        else:
            print(f"{letter}: {WORDS.get(answer) or f'waits again as entry {answer}'}")
    return 1 if any(answer in WORDS for answer in answers) else 0


def _check(letter: str) -> None:
    if not is_letter(letter):
        raise ConfigError(f"{letter!r} is no dead letter's place; `dead list` prints them, such as 1732400000000-0")
