"""`completion`: a script that completes commands, flags and their choices in bash and zsh."""

from __future__ import annotations

import argparse
from typing import Final

from runtime.errors import ConfigError

try:
    import shtab
except ImportError as missing:
    raise ConfigError("completion needs shtab: pip install 'backend-jobs[cli]'") from missing

NAME: Final = "backend-jobs"  # what pyproject.toml installs; `python -m runtime` is a command of Python's, and not completed
# `eval` in a .zshrc that has not loaded zsh's completion yet.
PREAMBLE: Final = {"zsh": "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"}


def main(top: argparse.ArgumentParser, shell: str) -> int:
    """Print the script for a shell; the command is completed as `backend-jobs`."""
    top.prog = NAME
    print(shtab.complete(top, shell=shell, root_prefix=NAME, preamble=PREAMBLE.get(shell, "")))
    return 0
