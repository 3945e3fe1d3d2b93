"""`completion`: a script that completes commands, flags and their choices in bash and zsh."""

from __future__ import annotations

import argparse
from typing import Final

from runtime.cli import COMMANDS, parser
from runtime.commands.flags import add_texts
from runtime.config import Config
from runtime.errors import ConfigError

NAME: Final = "backend-jobs"  # what pyproject.toml installs; `python -m runtime` is a command of Python's, and not completed
# `eval` in a .zshrc that has not loaded zsh's completion yet.
PREAMBLE: Final = {"zsh": "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"}


def configure(command: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        command,
        f"Print a script that completes `{NAME}`: commands, flags and their choices.",
        f'eval "$({NAME} completion bash)"',
        f'eval "$({NAME} completion zsh)"',
    )
    command.add_argument("shell", choices=["bash", "zsh"])


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print the script for a shell; the command is completed as `backend-jobs`."""
    try:
        import shtab
    except ImportError as missing:
        raise ConfigError("completion needs shtab: pip install shtab") from missing
    shell, top = str(arguments.shell), parser(*COMMANDS)
    top.prog = NAME
    print(shtab.complete(top, shell=shell, root_prefix=NAME, preamble=PREAMBLE.get(shell, "")))
    return 0
