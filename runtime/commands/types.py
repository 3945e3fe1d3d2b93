"""`types`: the job types that a worker with these handlers can run; needs no Redis."""

from __future__ import annotations

import argparse
import sys

from runtime.commands.common import find_handlers, print_json
from runtime.commands.flags import QUEUE, add_settings, add_texts
from runtime.config import Config


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser, "Print a line per job type of the --handlers modules: version, priority, where it runs, timeout and retries."
    )
    add_settings(parser, *QUEUE)
    parser.add_argument("--json", action="store_true", help="print JSON lines")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print a line per type, and which packages other handlers need."""
    found = find_handlers(config)
    for _, handler in sorted(found.registry.items()):
        contract, retry = handler.contract, handler.retry
        if arguments.json:
            row = {
                "type": contract.type,
                "version": contract.version,
                "priority": contract.priority.name.lower(),
                "timeout_s": handler.timeout_s,
                "attempts": retry.attempts,
                "runs": handler.runs,
                "max_size": handler.batch.max_size if handler.batch is not None else 1,
                "handler": handler.location,
            }
            print_json(row)
        else:
            tries = f"{retry.attempts} tries, {retry.base_s:g} to {retry.cap_s:g} s apart"
            where = f"v{contract.version} {contract.priority.name.lower():8} {handler.runs:7}"
            at_once = f", up to {handler.batch.max_size} at once" if handler.batch is not None else ""
            print(f"{contract.type:28} {where} {handler.timeout_s:>6g} s  {tries}{at_once}  {handler.location}")
    for module, extra in found.missing:
        print(f"{module} is not offered here: pip install '{extra}'", file=sys.stderr)
    return 0
