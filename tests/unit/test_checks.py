"""What modules say of what they need is asked within a guard: nothing of theirs ends the doctor, or holds it up."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from runtime import checks
from runtime.checks import needs_of
from runtime.findings import Finding
from runtime.registry import Found

FINE = Finding("ok", "fine")


RELEASED = threading.Event()


def hang() -> list[Finding]:
    RELEASED.wait()
    return []


async def hang_in_a_loop() -> list[Finding]:
    while not RELEASED.is_set():
        await asyncio.sleep(0.01)
    return []


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    """Let go what hangs, and wait until it has ended."""
    RELEASED.clear()
    yield
    RELEASED.set()
    for thread in threading.enumerate():
        if thread.name.startswith("checks of "):
            thread.join(60)


def leave() -> list[Finding]:
    sys.exit("enough")


async def answer() -> list[Finding]:
    await asyncio.sleep(0)
    return [FINE]


def test_whoever_fails_hangs_or_leaves_is_a_finding_and_the_others_are_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "CHECK_S", 0.5)
    asked = {"hangs": hang, "awaits": hang_in_a_loop, "leaves": leave, "answers": answer, "plain": lambda: [FINE]}
    found = needs_of(Found({}, [("shop.pdf", "reportlab")], {}, checks=asked))
    assert [finding.what for finding in found] == [
        "shop.pdf is not offered here",
        "hangs: its checks take longer than 0.5 s",
        "awaits: its checks take longer than 0.5 s",
        "leaves: its checks failed: SystemExit: enough",
        "fine",
        "fine",
    ]
    assert found[0].fix == "pip install reportlab"
