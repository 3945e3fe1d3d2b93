"""Link is the address by which whoever has started a board enters it: with a token behind `#`, which no browser sends on."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from runtime import logs

log: Final = logs.guarded("runtime")


class Link:
    """Keeps the link in a file that only this user can read, for as long as the board runs, and tells where.

    It is printed to a terminal alone: a log may be read by others.
    """

    def __init__(self, url: str, token: str, folder: Path) -> None:
        port = url.rpartition(":")[2].partition("/")[0]
        self.text = f"{url}/#token={token}"
        self._path = folder / f"board-{port}.link"

    def __enter__(self) -> Self:
        try:
            self._write()
        except OSError as error:
            log.warning("board: the login link cannot be written to %s: %s", self._path, error.strerror)
            where = "it is printed to a terminal alone"
        else:
            where = f"it is in {self._path}"
        log.info("board: whoever reaches it may look; who has its login link may do all: %s", where)
        if sys.stderr.isatty():
            print(f"\n  log in to the board: {self.text}\n", file=sys.stderr, flush=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):
            if self._path.read_text("ascii") == f"{self.text}\n":  # else another board has written its own
                self._path.unlink()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = self._path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(file, f"{self.text}\n".encode())
        finally:
            os.close(file)
        new.replace(self._path)
