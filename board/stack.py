"""Frames of a stack as a dead letter keeps it: a text of a worker, or of anybody. Pure."""

from __future__ import annotations

import re
from typing import Final

from board.shapes import StackFrame

MAX_FRAMES: Final = 100  # as many as a worker keeps
MAX_STACK: Final = 16_000  # characters; twice what a worker keeps
MAX_CODE: Final = 300  # characters of a line of source; a guess
_FRAME: Final = re.compile(r'^\s*File "([^"\n]*)", line (\d{1,9}), in ([^\n]*)$')
# As lua/letters.lua has them.
_LIBRARIES: Final = ("/site-packages/", "/dist-packages/", "/lib/python3", "<frozen", "/runtime/worker/")
_RUNTIME: Final = re.compile(r"/runtime/\w+\.py\Z")


def frames_of(stack: str) -> list[StackFrame]:
    """Return the frames of a stack, the outermost first; lines that are neither a frame nor its source are left out."""
    found: list[tuple[str, int, str]] = []
    source: list[str] = []
    for line in stack[-MAX_STACK:].splitlines():
        frame = _FRAME.match(line)
        if frame:
            found.append((frame[1], int(frame[2]), frame[3]))
            source.append("")
        elif found and not source[-1] and line.strip(" ^~"):
            source[-1] = line.strip()[:MAX_CODE]
    told = [
        StackFrame(function=function, file=_short(file), line=line, code=code, is_own=is_own(file))
        for (file, line, function), code in zip(found, source, strict=True)
    ]
    return told[-MAX_FRAMES:]


def is_own(file: str) -> bool:
    """Return whether a file is neither the runtime's nor a library's."""
    return not any(part in file for part in _LIBRARIES) and not _RUNTIME.search(file)


def _short(file: str) -> str:
    """Return a path from its package on, where it is a library's, else its last three parts: enough to find it."""
    for part in _LIBRARIES[:2]:
        if part in file:
            return file.rpartition(part)[2]
    parts = file.split("/")
    return file if len(parts) <= 3 else "/".join(parts[-3:])
