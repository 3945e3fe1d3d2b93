"""What `--help` shows can be typed: each example is one that the parser takes."""

from __future__ import annotations

import argparse
import re
import shlex

import msgspec
import pytest

from runtime import cli
from runtime.registry import find

EXAMPLE = re.compile(r"^  (python -m runtime .*)$", re.MULTILINE)


def examples_of(name: str) -> list[list[str]]:
    """Return the words behind `python -m runtime` of each example in the help of a command, and nothing of the shell."""
    epilog = _epilog_of(name) if name else cli.EPILOG
    return [shlex.split(line)[3:] for line in (re.split(" [<>|] ", found)[0] for found in EXAMPLE.findall(epilog))]


def _epilog_of(name: str) -> str:
    parser = argparse.ArgumentParser()
    cli._module(name).configure(parser)
    return parser.epilog or ""


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_every_example_of_a_help_is_taken_by_its_parser(name: str) -> None:
    found = examples_of(name)
    assert found or name in ("demo", "completion"), "what can be typed is shown"
    for words in found:
        cli._parsed(cli.parser(words[0]), words)


def test_what_is_enqueued_in_an_example_fits_its_contract_or_names_its_handlers() -> None:
    registry = find(["handlers"]).registry
    for words in [*examples_of("enqueue"), *(words for words in examples_of("") if words[0] == "enqueue")]:
        given = cli._parsed(cli.parser("enqueue"), words)
        if given.handlers is None and given.payload != "-":
            msgspec.json.decode(given.payload, type=registry[given.type.encode()].contract.payload)
