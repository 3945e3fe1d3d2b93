"""Property tests look at the same examples in every run; HYPOTHESIS_PROFILE=wide looks further, and elsewhere each time."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "hypothesis")  # its caches are no part of the tree
settings.register_profile("same", derandomize=True, database=None, deadline=None, max_examples=50)
settings.register_profile("wide", database=None, deadline=None, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
