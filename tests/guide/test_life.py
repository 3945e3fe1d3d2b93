"""The page about the life of a job has every word that the code has for it, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import signature
from pathlib import Path

from runtime import Dead
from runtime.errors import BadMessage, BadPayload
from runtime.settle import CANCELLED_CODE
from runtime.stats import OUTCOMES
from tests.faults.harness import ROOT

PAGE = (ROOT / "docs" / "life.md").read_text("utf-8")
DIES = {"Dead", "_dead", "BadMessage", "BadPayload", "BadEntry", "Letter"}
DIAGRAM = re.compile(r"(?:^ {4,}.*[─▶▼].*\n(?:^ {4,}.*\n)*)", re.MULTILINE)


def rows(section: str) -> list[str]:
    """Return what stands in code in the first column of a section's table."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)


def reasons_in(tree: ast.AST) -> Iterator[str]:
    """Return what a module gives as the reason of a letter: the second argument of what makes one, where it is written out."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in DIES and len(call.args) > 1:
            for part in ast.walk(call.args[1]):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


def reasons() -> set[str]:
    found = {signature(kind).parameters["code"].default for kind in (Dead, BadMessage, BadPayload)}
    for path in (ROOT / "runtime").rglob("*.py"):
        found |= set(reasons_in(ast.parse(path.read_text("utf-8"))))
    for path in (ROOT / "runtime").rglob("*.lua"):
        found |= set(re.findall(r"'dead_reason', '([a-z-]+)'", path.read_text("utf-8")))
    return found | {CANCELLED_CODE}


def test_every_outcome_has_its_row():
    assert sorted(rows("What becomes of an attempt")) == sorted(OUTCOMES)


def test_every_reason_of_a_letter_has_its_row():
    assert sorted(rows("Why a job is dead")) == sorted(reasons())


def test_the_first_page_shows_the_same_states():
    [here], [there] = DIAGRAM.findall(PAGE), DIAGRAM.findall(Path(ROOT / "README.md").read_text("utf-8"))
    assert here.strip() == there.strip()
