"""`demo`: a worker, a mail server and a stream of demo jobs, by becoming `handlers.demo`."""

from __future__ import annotations

import argparse
import os
import sys

from runtime.commands.flags import add_settings, add_texts, complete_path
from runtime.config import Config
from runtime.folders import SAFE


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(parser, "Run a worker, a mail server that misbehaves, and jobs that succeed, fail, retry and die, until Ctrl-C.")
    add_settings(parser, "board")
    text = "where it keeps its data, mails and settings; default .run"
    complete_path(parser.add_argument("--folder", metavar="FOLDER", default=".run", help=text))


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Replace this process by the demo of the shipped handlers. Return never."""
    command = [sys.executable, SAFE, "-m", "handlers.demo", "--folder", arguments.folder, "--board", config.board]
    os.execv(sys.executable, command)  # noqa: S606 -- not a child: signals reach it, and its status is this process's
