"""Payloads as people see them: text, redacted, with what cannot be seen made visible. Pure.

What is MessagePack is shown as JSON. What has no contract in the store is redacted by its keys alone.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from board.jsontext import is_json
from board.redact import PLAIN, Rules, redact_json, visible, visible_json
from runtime.bounds import check_msgpack
from runtime.errors import BadMessage

LOOKED_AT: Final = 2048  # bytes of a payload of which a preview is made
PREVIEW: Final = 200  # characters of arguments in a list


def text_of(data: bytes, *, is_msgpack: bool = False, is_cut: bool = False) -> str | None:
    """Return a payload as text, JSON as it was written; None where it is MessagePack that cannot be read, or was cut."""
    if not is_msgpack:
        return data.decode(errors="ignore" if is_cut else "backslashreplace")
    if is_cut:
        return None
    try:
        check_msgpack(data)
        return json.dumps(msgspec.msgpack.decode(data), ensure_ascii=False, default=_shown, separators=(",", ":"))
    except (BadMessage, ValueError, TypeError, RecursionError):
        return None


def _shown(value: Any) -> str:
    """Return what JSON has no word for."""
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)[:PREVIEW]


def preview(data: bytes, schema: Any, rules: Rules = PLAIN, *, is_msgpack: bool = False, is_cut: bool = False) -> str:
    """Return the first characters of a payload, in a line."""
    if not is_msgpack and len(data) > LOOKED_AT:
        data, is_cut = data[:LOOKED_AT], True
    text = text_of(data, is_msgpack=is_msgpack, is_cut=is_cut)
    if text is None:
        return "(MessagePack)"
    shown, _ = shown_json(text, schema, rules, is_cut=is_cut)
    line = " ".join(shown[: 2 * PREVIEW].split())
    return line if len(line) <= PREVIEW and len(shown) <= 2 * PREVIEW and not is_cut else line[: PREVIEW - 1] + "…"


def shown_json(text: str, schema: Any, rules: Rules = PLAIN, *, is_cut: bool = False) -> tuple[str, list[str]]:
    """Return a payload's text redacted and visible, and the paths of what is not shown."""
    shown, hidden = redact_json(text, schema, rules, is_cut=is_cut)
    return (visible_json(shown) if is_cut or is_json(shown) else visible(shown)), hidden
