"""`demo`: a worker, a mail server and live demo jobs, to look at."""

from __future__ import annotations

import argparse
import os
import sys

from runtime.config import Config
from runtime.folders import SAFE


def main(config: Config, parsed: argparse.Namespace) -> int:
    """Become the demo that the shipped handlers bring."""
    command = [sys.executable, SAFE, "-m", "handlers.demo", "--folder", parsed.folder, "--board", config.board]
    os.execv(sys.executable, command)  # noqa: S606 -- signals go to it, and its status is ours
