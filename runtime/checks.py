"""What modules of handlers say of what they need: each function `CHECKS` is asked, within a guard."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Final, cast

from runtime.findings import Finding
from runtime.registry import Found, install

CHECK_S: Final = 60.0  # a guess: a module asks each server that it names, and one that does not answer takes 10 s


def needs_of(found: Found) -> list[Finding]:
    """Return what the modules find, and which of them could not be imported."""
    lacking = [Finding("warning", f"{module} is not offered here", install(extra)) for module, extra in found.missing]
    return [*lacking, *(finding for module, check in found.checks.items() for finding in _asked(module, check))]


def _asked(module: str, check: Callable[[], object]) -> Sequence[Finding]:
    """Return what a module finds; that it fails or takes too long is a finding, too.

    It runs in a thread that nobody waits for in the end, since it may hang.
    """
    answer: Future[object] = Future()
    threading.Thread(target=_answer, args=(check, answer), name=f"checks of {module}", daemon=True).start()
    try:
        findings = list(cast("Iterable[object]", answer.result(CHECK_S)))
        if not all(isinstance(each, Finding) for each in findings):
            raise TypeError("CHECKS must return a Finding for each thing")
    except TimeoutError:
        return [Finding("error", f"{module}: its checks take longer than {CHECK_S:g} s")]
    except (Exception, SystemExit) as error:
        return [Finding("error", f"{module}: its checks failed: {type(error).__name__}: {error}")]
    return cast("list[Finding]", findings)


def _answer(check: Callable[[], object], answer: Future[object]) -> None:
    try:
        made = check()
        answer.set_result(asyncio.run(_awaited(made)) if inspect.isawaitable(made) else made)
    except (Exception, SystemExit) as error:
        answer.set_exception(error)


async def _awaited(made: Awaitable[object]) -> object:
    return await made
