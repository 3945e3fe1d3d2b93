"""`python -m tests.handlers.in_child OPTIONS`: run one job in this process, under limits of the system, or until it is killed.

With `kill` it runs the job in a copy of the folder again and again, each time in a process that kills itself one call to the file
system later, until one comes through; then it says how many there were. With `point` and
`times` it kills itself at a named point.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from handlers.kit.points import EVENT
from runtime.registry import find
from tests.handlers.disks import job_of

CALLS = ("open", "fcntl.flock", "sqlite3.connect", "os.")  # what the interpreter says before each call


def run(options: dict[str, Any]) -> str:
    handler = find(["handlers"]).registry[options["type"].encode()]
    message = msgspec.convert(options["payload"], handler.contract.payload)
    try:
        result = asyncio.run(handler.run(message, job_of(message)))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return msgspec.json.encode(result).decode()


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
    if "point" in options:
        die_at_point(options["point"], options.get("times", 1))
    if "file_bytes" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_bytes"], options["file_bytes"]))
    if "user" in options and os.getuid() == 0:
        os.setgroups([])
        os.setgid(options["user"])
        os.setuid(options["user"])
    print(run(options))


if __name__ == "__main__":
    main()
