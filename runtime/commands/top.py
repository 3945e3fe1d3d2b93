"""`top`: a live view of the queue in the terminal."""

from __future__ import annotations

import argparse

from runtime.commands.common import with_store
from runtime.commands.flags import QUEUE, add_settings, add_texts
from runtime.config import Config
from runtime.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Show the queue in the terminal, once a second, until Ctrl-C. Needs the package rich.",
        "python -m runtime top",
        "python -m runtime top --once --redis redis://127.0.0.1:6379",
    )
    add_settings(parser, *QUEUE)
    parser.add_argument("--once", action="store_true", help="print one picture and end")


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Show the queue until Ctrl-C; with `--once`, one picture.

    Raises:
        ConfigError: rich is not installed.
    """
    try:
        from runtime.commands.screen import show
    except ImportError as missing:
        raise ConfigError("top needs rich: pip install rich") from missing
    return with_store(config, lambda url: show(url, config.queue, is_once=arguments.once))
