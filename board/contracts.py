"""Contracts are what workers have written of the types that they know: schemas, timeouts, attempts; read every few seconds."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, cast

import msgspec

from board.words import duration
from runtime.bounds import check_json
from runtime.errors import BadMessage

FRESH_S: Final = 10.0  # a guess: a worker writes them once, at its start
MAX_MS: Final = 2**53


class Contract(msgspec.Struct, frozen=True):
    """What a worker says of a type. What it does not say, or says as something else, is None or empty: it may be a stranger's."""

    type: str
    version: int
    schema: dict[str, Any] | None = None
    priority: str = ""
    timeout_ms: int | None = None
    attempts: int | None = None
    retry: str = ""
    limits: dict[str, Any] = {}
    location: str = ""
    doc: str = ""
    app: str = ""
    by: str = ""
    at_ms: int = 0


class Contracts:
    """Owns what was last read.

    Args:
        read: returns the fields of the hash, `type@version` to a JSON object.
        clock: in seconds.
    """

    def __init__(self, read: Callable[[], Awaitable[Mapping[str, str]]], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._until_s = 0.0
        self._by_type: dict[str, dict[int, Contract]] = {}
        self._raw: Mapping[str, str] = {}

    async def fresh(self) -> Contracts:
        """Return these, read within the last FRESH_S.

        Raises:
            StoreUnavailable: no answer or an error.
        """
        if self._clock() >= self._until_s:
            raw = await self._read()
            if raw != self._raw:
                self._raw, self._by_type = raw, by_type(raw)
            self._until_s = self._clock() + FRESH_S
        return self

    @property
    def types(self) -> list[str]:
        """All types of which there is one."""
        return sorted(self._by_type)

    def of(self, type_name: str, version: int = 0) -> Contract | None:
        """Return the contract of a type and version, or its newest; None where no worker has written one."""
        versions = self._by_type.get(type_name, {})
        return versions.get(version or max(versions, default=0))


def by_type(raw: Mapping[str, str]) -> dict[str, dict[int, Contract]]:
    """Return contracts by type and version, out of the fields of the hash; what cannot be read is left out."""
    found: dict[str, dict[int, Contract]] = {}
    for name, text in raw.items():
        contract = contract_in(name, text)
        if contract is not None:
            found.setdefault(contract.type, {})[contract.version] = contract
    return found


def contract_in(name: str, text: str) -> Contract | None:
    """Return what a field of the hash says; None where it is nothing that a worker writes."""
    type_name, _, version = name.rpartition("@")
    if not type_name or not (version.isascii() and version.isdigit() and 0 < len(version) < 10):
        return None
    try:
        data = text.encode()
        check_json(data)
        told = msgspec.json.decode(data)
    except (BadMessage, ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    members = cast("dict[str, Any]", told)
    timeout_s, schema, limits = members.get("timeout_s"), members.get("schema"), members.get("limits")
    return Contract(
        type=type_name,
        version=int(version),
        schema=cast("dict[str, Any]", schema) if isinstance(schema, dict) else None,
        priority=_text(members, "priority"),
        timeout_ms=int(timeout_s * 1000) if isinstance(timeout_s, int | float) and 0 < timeout_s < 10**9 else None,
        attempts=_count(members, "attempts"),
        retry=_pauses(members.get("retry_base_s"), members.get("retry_cap_s")),
        limits=cast("dict[str, Any]", limits) if isinstance(limits, dict) else {},
        location=_text(members, "location"),
        doc=_text(members, "doc"),
        app=_text(members, "app"),
        by=_text(members, "by"),
        at_ms=_count(members, "at_ms") or 0,
    )


def _text(members: dict[str, Any], name: str) -> str:
    value = members.get(name)
    return value if isinstance(value, str) else ""


def _count(members: dict[str, Any], name: str) -> int | None:
    value = members.get(name)
    return value if type(value) is int and 0 < value <= MAX_MS else None


def _pauses(base_s: Any, cap_s: Any) -> str:
    """Return between which times failed attempts wait for the next; nothing where that is not told."""
    if not all(isinstance(one, int | float) and 0 < one < 10**9 for one in (base_s, cap_s)):
        return ""
    return f"from {duration(base_s * 1000)} to {duration(cap_s * 1000)}"
