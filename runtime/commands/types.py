"""`types`: the job types that a worker with these handlers can run; needs no Redis."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from runtime.commands.common import find_handlers, print_json
from runtime.commands.flags import JSON_LINES, QUEUE, add_settings, add_texts
from runtime.config import Config
from runtime.jobs import Handler
from runtime.registry import install


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Print a line per type of the --handlers modules: version, priority, where it runs, timeout, retries, what few declare.",
        "python -m runtime types --handlers myapp.jobs",
    )
    add_settings(parser, *QUEUE)
    parser.add_argument("--json", action="store_true", help=JSON_LINES)


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
                "queue": contract.queue,
                "timeout_s": handler.timeout_s,
                "attempts": retry.attempts,
                "runs": handler.runs,
                "children": [child.location for child in handler.children],
                "max_size": handler.batch.max_size if handler.batch is not None else 1,
                "result_ttl_s": None if handler.result is None else handler.result.life_ms / 1000,
                "limits": handler.limits.told,
                "handler": handler.location,
            }
            print_json(row)
        else:
            tries = f"{retry.attempts} tries, {retry.base_s:g} to {retry.cap_s:g} s apart"
            where = f"v{contract.version} {contract.priority.name.lower():8} {handler.runs:7}"
            told = "".join(f", {words}" for words in _special(handler))
            print(f"{contract.type:28} {where} {handler.timeout_s:>6g} s  {tries}{told}  {handler.location}")
    for module, extra in found.missing:
        print(f"{module} is not offered here: {install(extra)}", file=sys.stderr)
    return 0


def _special(handler: Handler[Any]) -> list[str]:
    """Return what is declared of a handler that few have."""
    return [
        *([f"child {child.location}" for child in handler.children]),
        *([f"queue {handler.contract.queue}"] if handler.contract.queue else []),
        *([f"up to {handler.batch.max_size} at once"] if handler.batch is not None else []),
        *([str(handler.limits)] if handler.limits.has_any else []),
        *([f"results kept for {handler.result.life_ms / 1000:g} s"] if handler.result is not None else []),
    ]
