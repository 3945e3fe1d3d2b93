"""Viewer is who asks the board for something, and what they may have of it."""

from __future__ import annotations

from typing import Final

import msgspec

from board.shapes import Right

GUEST: Final = "guest"


class Viewer(msgspec.Struct, frozen=True):
    """Who asks, from where, in which session: empty where there is none, as for a bearer token."""

    who: str = GUEST
    rights: frozenset[Right] = frozenset()
    address: str = ""
    session: str = ""

    def can(self, right: Right) -> bool:
        """Return whether this viewer has a right."""
        return right in self.rights

    @property
    def by(self) -> str:
        """The name that an order of theirs has in the audit."""
        return f"{self.who}@board"
