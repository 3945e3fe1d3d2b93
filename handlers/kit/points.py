"""Named points in handlers, before and after each effect outside of the process: there, tests kill it."""

from __future__ import annotations

import sys
from typing import Final

EVENT: Final = "handlers.point"


def point(name: str) -> None:
    """Tell the interpreter's audit hooks (PEP 578) that the work has come to this point; without a hook it does nothing."""
    sys.audit(EVENT, name)
