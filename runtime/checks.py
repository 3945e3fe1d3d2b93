"""What modules of handlers say of what they need: each function `CHECKS` is asked, within a guard."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

from runtime.findings import Finding
from runtime.registry import Found, install

CHECK_S: Final = 60.0  # a guess: a module asks each server that it names, and one that does not answer takes 10 s


def needs_of(found: Found) -> list[Finding]:
    """Return what the modules find, and which of them could not be imported; runs a loop of its own."""
    lacking = [Finding("warning", f"{module} is not offered here", install(extra)) for module, extra in found.missing]
    return [*lacking, *(finding for module, check in found.checks.items() for finding in _asked(module, check))]


def _asked(module: str, check: Callable[[], object]) -> Sequence[Finding]:
    """Return what a module finds; that it fails or takes too long is a finding, too."""

    async def call() -> object:
        async with asyncio.timeout(CHECK_S):
            made = await asyncio.to_thread(check)
            return await made if inspect.isawaitable(made) else made

    try:
        findings = list(cast("Iterable[object]", asyncio.run(call())))
        if not all(isinstance(each, Finding) for each in findings):
            raise TypeError("CHECKS must return a Finding for each thing")
    except TimeoutError:
        return [Finding("error", f"{module}: its checks take longer than {CHECK_S:g} s")]
    except (Exception, SystemExit) as error:
        return [Finding("error", f"{module}: its checks failed: {type(error).__name__}: {error}")]
    return cast("list[Finding]", findings)
