"""What checks of compliance go by: the settings, the rights of what they name, and evidence. None of it is a secret."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, cast

import msgspec

from handlers.kit.evidence import Evidence
from handlers.kit.settings import VARIABLE, Settings

OTHERS: Final = 0o007
OTHERS_WRITE: Final = 0o002

Mode = int | None
"""Who may do what with a file or folder, as `chmod` says it; None where it is not there, or cannot be looked at."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that checks know. `folders` are of roots, `secrets` of files with secrets by the settings that name them.

    `overdue` says how many files each cleanup has left; None where that cannot be known.
    """

    settings: Settings
    begin: datetime
    end: datetime
    folders: dict[str, Mode] = {}
    secrets: dict[str, Mode] = {}
    settings_file: Mode = None
    overdue: dict[str, int | None] = {}
    evidence: list[Evidence] = []
    partial: dict[str, str] = {}
    changed: dict[tuple[str, str], int] = {}


def folder_modes(settings: Settings) -> dict[str, Mode]:
    """Return who may do what in the folder of each root."""
    return {alias: mode_of(root.path) for alias, root in settings.roots.items()}


def secret_modes(settings: Settings) -> dict[str, Mode]:
    """Return who may read the files of secrets; those in the environment have none."""
    return {key: mode_of(text.removeprefix("file:")) for key, text in _texts("", msgspec.to_builtins(settings))}


def settings_mode() -> Mode:
    """Return who may do what with the file of the settings."""
    return mode_of(os.environ.get(VARIABLE, ""))


def mode_of(path: str) -> Mode:
    """Return who may do what with a file or a folder, which may be a link: that is the operator's."""
    try:
        return os.stat(path).st_mode & 0o7777
    except OSError:
        return None


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield each setting that names the file of a secret: only those begin with `file:`."""
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            yield from _texts(f"{key}.{name}".lstrip("."), inner)
    elif isinstance(value, str) and value.startswith("file:/"):
        yield key, value
