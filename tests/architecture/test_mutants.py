"""Every mutant can still be applied: a rule that has moved on would be broken by nobody any more."""

from __future__ import annotations

import ast

import pytest

from tests.faults.mutants import MUTANTS, Mutant
from tests.faults.worker import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_breaks_one_place_and_leaves_a_program(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1
    if mutant.file.endswith(".py"):
        ast.parse(text.replace(mutant.old, mutant.new))
