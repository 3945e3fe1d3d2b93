"""Orders gives what people order on the board to `Control`, under their name, so that the audit says who it was."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from board.viewer import Viewer
from runtime.control import Control
from runtime.schedules import Definition

MAX_WHO: Final = 90  # of the 100 characters that a name has in the audit
_NO_WORD: Final = re.compile(r"[^\w.@+-]+")


class _Board(Control):
    """A control that knows schedules of code as workers have written them down."""

    def __init__(self, url: str, queue: str, by: str, code: Mapping[str, Definition]) -> None:
        super().__init__(url, queue, by=by)
        self._code = dict(code)


class Orders:
    """Where orders go: one queue."""

    def __init__(self, url: str, queue: str) -> None:
        self._url = url
        self._queue = queue

    def by(self, viewer: Viewer, code: Mapping[str, Definition] | None = None) -> Control:
        """Return a control that acts for a viewer, to be used with `async with`; their name is one word in the audit."""
        who = _NO_WORD.sub("-", viewer.who)[:MAX_WHO] or "somebody"
        return _Board(self._url, self._queue, f"{who}@board", code or {})
