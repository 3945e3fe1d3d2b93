"""Commands as their user calls them, for tests: what they print, and how they end.

Most calls are forks of one process that has loaded everything already: a new Python of its own takes ten times the CPU until the
command begins, and there are hundreds. Tests of how a process starts have one (`call_anew`).
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.harness import ROOT

PATIENCE_S = 120
LOADED = "tests.commands.loaded"

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload([LOADED])


def call(*arguments: str, stdin: str = "", cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """Return what a command printed and how it ended; `more` are environment variables."""
    with tempfile.TemporaryDirectory() as folder:
        given, printed, complained = (Path(folder, name) for name in ("in", "out", "err"))
        given.write_text(stdin, "utf-8")
        process = _forks.Process(target=_run, args=(arguments, cwd, environment_with(more), (given, printed, complained)))
        process.start()
        process.join(PATIENCE_S)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, PATIENCE_S, printed.read_text("utf-8"), complained.read_text("utf-8"))
        result = subprocess.CompletedProcess(
            arguments, process.exitcode, printed.read_text("utf-8"), complained.read_text("utf-8")
        )
        process.close()
        return result


def call_anew(*arguments: str, stdin: str = "", cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    """Do so in a Python of its own."""
    return subprocess.run(
        [sys.executable, "-m", "runtime", *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        cwd=cwd,
        env=environment_with(more),
        timeout=PATIENCE_S,
    )


def environment_with(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command: ours without settings of the runtime, and some more."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "REDIS_URL"))}
    return ours | {"PYTHONPATH": str(ROOT), **more}


def one_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line of an error."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


def _run(arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], files: tuple[Path, Path, Path]) -> None:
    """Be the command, in the fork."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (file, mode) in enumerate(zip(files, modes, strict=True)):
        os.dup2(os.open(file, mode, 0o600), number)
    sys.stdin, sys.stdout = open(0, encoding="utf-8"), open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    sys.argv = ["runtime", *arguments]
    from tests.commands.loaded import main

    main(arguments)
