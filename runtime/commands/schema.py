"""`schema`: the contracts of the handlers as JSON Schema; needs no Redis."""

from __future__ import annotations

import argparse

import msgspec

from runtime.commands.common import find_handlers
from runtime.commands.flags import QUEUE, add_settings, add_texts
from runtime.config import Config
from runtime.schema import json_schemas


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Print one JSON document with the contracts of the --handlers modules, as JSON Schema.",
        "python -m runtime schema --handlers myapp.jobs > contracts.json",
    )
    add_settings(parser, *QUEUE)
    parser.add_argument("--format", choices=["json"], default="json", help="JSON Schema, the only one so far")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print one JSON document with all contracts."""
    found = find_handlers(config)
    document = json_schemas(handler.contract for handler in found.registry.values())
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    return 0
