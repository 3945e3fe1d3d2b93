"""`python -m tests.handlers.in_child OPTIONS`: run one job in this process, under limits of the system, or until it is killed.

With `kill` it runs the job in a copy of the folder again and again, each time in a process that kills itself one call to the file
system later, until one comes through; then it says how many there were. With `point` and
`times` it kills itself at a named point. `without` names a package that cannot be imported, `marks` a folder for marks,
`module` the one module of handlers to load, which is quicker than all; with `in_own_child` a child of this process is asked what
handlers ask children, else this process.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any, cast

import msgspec

from handlers.kit.points import EVENT
from runtime.jobs import MARKS, Job
from runtime.offload import InChild
from runtime.registry import find
from tests.handlers.disks import job_of
from tests.handlers.marks import FolderMarks

CALLS = ("open", "fcntl.flock", "sqlite3.connect", "os.")  # what the interpreter says before each call


def run(options: dict[str, Any]) -> str:
    handler = find([options.get("module", "handlers")]).registry[options["type"].encode()]
    message = msgspec.convert(options["payload"], handler.contract.payload)
    job = job_of(message)
    if "in_own_child" not in options:
        InChild.__call__ = run_here  # as below
    if "marks" in options:
        MARKS.set(FolderMarks(Path(options["marks"])))
    try:
        # What runs in a child of the worker runs in this one, where it can be killed at a point.
        result: Any = (
            handler.function(message, job) if handler.runs == "process" else asyncio.run(answer_of(handler(message, job)))
        )
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return msgspec.json.encode(result).decode()


async def run_here(function: InChild[Any, Any], request: Any, job: Job) -> Any:
    """Run what is for a child of a child in this process."""
    return function.function(request, job)


async def answer_of(call: Any) -> object:
    """Return what the handler itself answers; its `run` keeps that for those who wait, and returns nothing.

    A plain function, which a worker runs in a child, has answered by now: in this process, where a point can kill it.
    """
    return await call if inspect.isawaitable(call) else call


def die_at(number: int) -> None:
    """Kill this process at its so-manyth call to the file system from now on."""
    count = itertools.count(1)

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(CALLS) and next(count) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(listen)


def die_at_point(name: str, times: int) -> None:
    """Kill this process where its work comes to the named point for the so-manyth time."""
    left = itertools.count(1)

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        if event == EVENT and arguments[0] == name and next(left) == times:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(listen)


def kill_everywhere(options: dict[str, Any]) -> str:
    """Leave folders `1`, `2`, … as the killed runs left them; the last one came through."""
    template = Path(options["kill"])
    find(["handlers"])  # so that what it imports is no call of the job, and costs each process nothing
    for number in itertools.count(1):
        folder = template.parent / str(number)
        shutil.copytree(template, folder)
        pid = os.fork()
        if pid == 0:
            os.environ[f"RUNTIME_HANDLERS__ROOTS__{options['root'].upper()}__PATH"] = str(folder)
            die_at(number)
            sys.stdout.write(run(options))
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            return f"\n{number}"
    raise AssertionError


def main() -> None:
    options = json.loads(sys.argv[1])
    if "kill" in options:
        print(kill_everywhere(options))
        return
    if "without" in options:
        cast("dict[str, Any]", sys.modules)[options["without"]] = None  # as if it were not installed
    if "point" in options:
        die_at_point(options["point"], options.get("times", 1))
    if "file_bytes" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_bytes"], options["file_bytes"]))
    if "user" in options and os.getuid() == 0:
        find(["handlers"])  # that user may not be let to the interpreter's own modules
        os.setgroups([])
        os.setgid(options["user"])
        os.setuid(options["user"])
    print(run(options))


if __name__ == "__main__":
    main()
