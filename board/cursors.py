"""Cursors say where the next part of a list begins: opaque texts, that a viewer gives back and nobody believes blindly. Pure."""

from __future__ import annotations

import base64
import binascii
from typing import TypeVar

import msgspec

from board.api import Refused

T = TypeVar("T")


def packed(place: object) -> str:
    """Return a place in a list as a cursor."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def unpacked(cursor: str, kind: type[T]) -> T | None:
    """Return the place that a cursor says; None for an empty one.

    Raises:
        Refused: it is none of this list.
    """
    if not cursor:
        return None
    try:
        data = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(data, type=kind)
    except (ValueError, binascii.Error, RecursionError):  # of msgspec's errors, too
        raise Refused(400, "cursor", "this is no place in this list: begin anew") from None
