"""`schema`: the contracts of the handlers as JSON Schema; needs no Redis."""

from __future__ import annotations

import argparse

import msgspec

from runtime.commands.common import find_handlers
from runtime.config import Config
from runtime.schema import json_schemas


def main(config: Config, parsed: argparse.Namespace) -> int:
    """Print one JSON document with all contracts."""
    found = find_handlers(config)
    document = json_schemas(handler.contract for handler in found.registry.values())
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
    return 0
