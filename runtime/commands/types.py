"""`types`: what this worker can run; needs no Redis."""

from __future__ import annotations

import argparse
import sys

from runtime.commands.common import find_handlers, print_json
from runtime.config import Config


def main(config: Config, parsed: argparse.Namespace) -> int:
    """Print a line per type, and what is missing for others."""
    found = find_handlers(config)
    for _, handler in sorted(found.registry.items()):
        contract, retry = handler.contract, handler.retry
        if parsed.json:
            row = {
                "type": contract.type,
                "version": contract.version,
                "priority": contract.priority.name.lower(),
                "timeout_s": handler.timeout_s,
                "attempts": retry.attempts,
                "runs": handler.runs,
                "handler": handler.location,
            }
            print_json(row)
        else:
            tries = f"{retry.attempts} tries, {retry.base_s:g} to {retry.cap_s:g} s apart"
            where = f"v{contract.version} {contract.priority.name.lower():8} {handler.runs:7}"
            print(f"{contract.type:28} {where} {handler.timeout_s:>6g} s  {tries}  {handler.location}")
    for module, extra in found.missing:
        print(f"{module} is not offered here: pip install '{extra}'", file=sys.stderr)
    return 0
