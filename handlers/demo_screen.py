"""What the demo's terminal shows: the worker's log goes to a file, and of each kind of line the first is printed."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any, Final, cast

MAX_LOG_BYTES: Final = 20_000_000  # a guess: the demo may run for days; then the file begins anew
MAX_KINDS: Final = 200  # a guess: what makes up kinds without an end prints nothing more
MAX_CHARS: Final = 200  # of a line; a guess: two rows of a terminal
# What differs between two lines of one kind: names with digits, numbers, and what is masked or quoted.
_VARIES: Final = re.compile(r"'[^']*'|\S*\d\S*|\S+@\S+")


class Screen:
    """Prints a line when something new happens. Owns the file of the whole log.

    Jobs that fail by design fail a few times a minute, each with a line: of these a person wants one.
    """

    def __init__(self, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._path = log
        self._log = log.open("wb")
        self._kinds: set[tuple[str, str, str]] = set()

    async def follow(self, stream: asyncio.StreamReader) -> None:
        """Keep what a worker writes to its standard error, and print of it what is new, until its end."""
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the reader's limit, which has dropped it
                continue
            if not line:
                return
            self._keep(line)
            shown = self._shown(line.decode(errors="replace").rstrip("\n"))
            if shown:
                say(shown)

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def _keep(self, line: bytes) -> None:
        if self._log.tell() > MAX_LOG_BYTES:
            self._log.close()
            self._log = self._path.open("wb")
        self._log.write(line)
        self._log.flush()

    def _shown(self, line: str) -> str:
        """Return a line of the log as a person reads it; nothing where one of its kind was there already."""
        try:
            told: Any = json.loads(line)
        except ValueError:
            return line  # as the worker's last one
        if not isinstance(told, dict):
            return line
        record = cast("dict[str, Any]", told)
        level, message = str(record.get("level", "")), str(record.get("message", ""))
        kind = level, str(record.get("logger", "")), _VARIES.sub("#", message)
        if kind in self._kinds or len(self._kinds) >= MAX_KINDS:
            return ""
        self._kinds.add(kind)
        text = message if len(message) <= MAX_CHARS else message[: MAX_CHARS - 1] + "…"
        return f"  {str(record.get('time', ''))[11:19]}  {level:8} {text}"


def say(text: str) -> None:
    """Print a line for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)
