"""`doctor`: checks the server and the queue, and what handlers need, and prints each finding with the command that fixes it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any, Final

from runtime.checks import needs_of
from runtime.commands.common import clean, find_handlers, print_json, use_settings, with_store
from runtime.commands.flags import JSON_LINES, add_settings, add_texts
from runtime.config import Config
from runtime.findings import Finding
from runtime.leaving import CLEAN, FAILED
from runtime.store.doctor import Doctor
from runtime.store.urls import redis_cli

SIGNS: Final = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


class _Asked(argparse.Action):
    """The flag of the setting, which here may stand without a value: that it was given at all says what to look at."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None) -> None:
        namespace.asks_handlers = True
        if values:
            namespace.handlers = values


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Check the server's settings and the queue, and with --handlers what handlers need; print what is wrong with the command "
        "that fixes it. Status 1 on errors.",
        "python -m runtime doctor --redis redis://127.0.0.1:6379",
        "python -m runtime doctor --handlers --handlers-config handlers.toml",
    )
    add_settings(parser, "redis", "queue", "data_dir", "handlers_config")
    text = (
        "check as well what these modules need, such as every alias of the shipped handlers' settings; default RUNTIME_HANDLERS"
    )
    parser.add_argument("--handlers", nargs="?", action=_Asked, metavar="MODULES", help=text)
    parser.add_argument("--json", action="store_true", help=JSON_LINES)
    parser.set_defaults(asks_handlers=False)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print all findings; status 1 when one of them is an error."""
    is_well = True
    if arguments.asks_handlers:
        use_settings(config)
        is_well = _print(needs_of(find_handlers(config)), arguments)
    return CLEAN if _print(_of_store(config), arguments) and is_well else FAILED


def _of_store(config: Config) -> list[Finding]:
    async def examine(url: str) -> list[Finding]:
        doctor = Doctor(url, config.queue, "doctor")
        try:
            findings = await doctor.examine(int(time.time() * 1000))
            return [
                Finding(finding.level, finding.what, finding.fix.replace("redis-cli", redis_cli(url))) for finding in findings
            ]
        finally:
            await doctor.close()

    return with_store(config, examine)


def _print(findings: Sequence[Finding], arguments: argparse.Namespace) -> bool:
    """Print findings; return whether none is an error."""
    for finding in findings:
        if arguments.json:
            print_json(finding)
            continue
        print(f"{SIGNS[finding.level]}  {clean(finding.what)}")
        if finding.fix:
            print(f"         fix it: {clean(finding.fix)}")
    return not any(finding.level == "error" for finding in findings)
