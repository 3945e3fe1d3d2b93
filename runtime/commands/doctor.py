"""`doctor`: checks the server and the queue, and prints each finding with the command that fixes it."""

from __future__ import annotations

import argparse
import time
from typing import Final

from runtime.commands.common import clean, print_json, with_store
from runtime.commands.flags import JSON_LINES, QUEUE, add_settings, add_texts
from runtime.config import Config
from runtime.leaving import CLEAN, FAILED
from runtime.store.doctor import Doctor, Finding
from runtime.store.urls import redis_cli

SIGNS: Final = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    text = "Check the server's settings and the queue; print what is wrong with the command that fixes it. Status 1 on errors."
    add_texts(parser, text, "python -m runtime doctor --redis redis://127.0.0.1:6379")
    add_settings(parser, *QUEUE)
    parser.add_argument("--json", action="store_true", help=JSON_LINES)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Print all findings; status 1 when one of them is an error."""

    async def examine(url: str) -> list[Finding]:
        doctor = Doctor(url, config.queue, "doctor")
        try:
            findings = await doctor.examine(int(time.time() * 1000))
            return [
                Finding(finding.level, finding.what, finding.fix.replace("redis-cli", redis_cli(url))) for finding in findings
            ]
        finally:
            await doctor.close()

    findings = with_store(config, examine)
    for finding in findings:
        if arguments.json:
            print_json(finding)
            continue
        print(f"{SIGNS[finding.level]}  {clean(finding.what)}")
        if finding.fix:
            print(f"         fix it: {clean(finding.fix)}")
    return FAILED if any(finding.level == "error" for finding in findings) else CLEAN
