"""What the process has loaded from which calls are forked: the command line with all commands. `main` is its entry."""

from __future__ import annotations

from runtime.cli import COMMANDS, main, parser

parser(*COMMANDS)  # loads their modules

__all__ = ["main"]
