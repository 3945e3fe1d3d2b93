"""Finding what operators write in folders of their own, such as documents and profiles, or else what is shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from handlers.kit.failures import wait_for_operator

MAX_BYTES: Final = 256 * 1024  # a guess: far above what a person writes


def find(folders: Sequence[str | Path], name: str, subject: str) -> bytes | None:
    """Return `name.toml` from the first folder that has one, one byte too long if it is too long; None where no folder has it.

    Raises:
        Snooze: it cannot be read; `alias-missing`.
    """
    for folder in folders:
        path = Path(folder, f"{name}.toml")
        try:
            with path.open("rb") as file:
                return file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise wait_for_operator(subject, "alias-missing", f"{path}: {error.strerror}") from None
    return None
