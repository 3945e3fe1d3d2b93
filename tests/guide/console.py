"""Runs what pages show as a console: commands behind `$ `, in one shell, and below each what it prints.

A page is right if the lines that it shows are printed in that order: numbers may be others, `…` stands for anything, and what is
not shown may be printed as well.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Final

from tests.faults.harness import ROOT

CONSOLE: Final = re.compile(r"```console\n(.*?)```", re.DOTALL)
END: Final = "--- end of this command:"
ANSWER_S: Final = 60


class Step:
    """A command and the lines that are shown below it."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.shown: list[str] = []

    def __repr__(self) -> str:
        return f"<$ {self.command}>"

    def missing_in(self, printed: str) -> str:
        """Return the first line that is shown and was not printed behind those before it; empty where all were."""
        lines = iter(printed.splitlines())
        for shown in self.shown:
            wanted = _pattern(shown)
            if not any(wanted.fullmatch(line.strip()) for line in lines):
                return shown
        return ""


def _pattern(shown: str) -> re.Pattern[str]:
    """Return what a printed line must look like: the same words, with other numbers, ids and times."""
    words = list[str]()
    for word in shown.split():
        if word.startswith("[#"):  # a bar
            words.append(r"\[[#-]+\]")
            continue
        text = re.escape(word).replace("…", ".*")
        words.append(re.sub(r"[\da-f]*\d[\da-f]*", r"[\\da-f]+", text))  # numbers, and ids in hex
    return re.compile(r"\s+".join(words))


def steps_of(text: str) -> list[Step]:
    """Return the commands of a page's consoles, in order."""
    steps: list[Step] = []
    for block in CONSOLE.findall(text):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append(Step(line[2:]))
            elif line.strip():
                steps[-1].shown.append(line)
    return steps


class Shell:
    """One bash, in which commands see what those before them have set and started."""

    def __init__(self, folder: Path, **more: str) -> None:
        there = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "REDIS_URL"))}
        here = {"PYTHONPATH": f"{ROOT}:{folder}", "HOME": str(folder), "PYTHONUNBUFFERED": "1", **more}
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            cwd=folder,
            env=there | here,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that what it has started, which has its output too, can be killed with it
        )

    def run(self, command: str) -> tuple[str, int]:
        """Run a command. Return what it printed, on either output, and its status."""
        stdin, stdout = self._bash.stdin, self._bash.stdout
        assert stdin is not None
        assert stdout is not None
        line = command.replace("python -m", f"{sys.executable} -m")
        stdin.write(f"{line}\necho '{END}' $?\n")
        stdin.flush()
        printed: list[str] = []
        late = Timer(ANSWER_S, self._kill)
        late.start()
        try:
            for text in stdout:
                before, ended, status = text.partition(END)
                printed.append(before)
                if ended:
                    return "".join(printed), int(status)
        finally:
            late.cancel()
        raise AssertionError(f"the shell ended in {command!r}, or it took longer than {ANSWER_S} s: {printed}")

    def close(self) -> None:
        """End the shell, and what it has started."""
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):  # it was killed for being late, or is hung
            self._bash.communicate("kill $(jobs -p) 2>/dev/null; wait; exit\n", timeout=ANSWER_S)
        self._kill()
        self._bash.communicate()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)


@contextmanager
def shell(folder: Path, more: Mapping[str, str] | None = None) -> Generator[Shell]:
    """Open a shell in a folder, until the block ends."""
    opened = Shell(folder, **(more or {}))
    try:
        yield opened
    finally:
        opened.close()
