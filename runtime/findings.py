"""What a check has found, of the store or of what handlers need."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing found: `level` is `error`, `warning` or `ok`; `fix` is the command that fixes it, or what to do."""

    level: str
    what: str
    fix: str = ""
