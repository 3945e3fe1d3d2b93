"""Property tests look at the same examples in every run; HYPOTHESIS_PROFILE=wide looks further, and elsewhere each time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

from tests.unit.parts import HURRY

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # its caches are no part of the tree
settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile("wide", database=None, deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker wait for milliseconds where it waits for moments."""
    for name, value in HURRY:
        monkeypatch.setattr(name, value)
