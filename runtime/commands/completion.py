"""`completion`: a script that completes commands and flags in bash and zsh."""

from __future__ import annotations

import argparse
from typing import Any

BASH = """# eval "$(python -m runtime completion {shell})"
_backend_jobs() {{
  local words="{words}"
  case "${{COMP_WORDS[*]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _backend_jobs backend-jobs
"""
ZSH_HEAD = "autoload -U +X bashcompinit && bashcompinit\n"


def main(top: argparse.ArgumentParser, shell: str) -> int:
    """Print the script for a shell; the command is completed as `backend-jobs`."""
    commands = subparsers(top)
    cases: list[str] = []
    for name, command in commands.items():
        for verb, inner in (subparsers(command) or {"": command}).items():
            pattern = f"*' {name} {verb} '*" if verb else f"*' {name} '*"
            cases.append(f'    {pattern}) words="{" ".join(flags(inner))}" ;;')
        if subparsers(command):
            cases.append(f"    *' {name} '*) words=\"{' '.join(subparsers(command))}\" ;;")
    script = BASH.format(shell=shell, words=" ".join(commands), cases="\n".join(cases))
    print((ZSH_HEAD if shell == "zsh" else "") + script, end="")
    return 0


def subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands of a parser by name."""
    for action in parser._actions:  # pyright: ignore[reportPrivateUsage] -- argparse has no public way
        if isinstance(action, argparse._SubParsersAction):  # pyright: ignore[reportPrivateUsage]
            choices: Any = action.choices  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            return dict(choices)
    return {}


def flags(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long flags of a parser."""
    return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]  # pyright: ignore[reportPrivateUsage]
