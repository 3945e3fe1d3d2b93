"""Rules: what people have ordered for a queue at run time, as the hash `control` holds it. Pure.

A field is `pause:<type>`, `pause:<priority>` or `pause:*` with until when (ms, 0 for until it is resumed), since when (ms), by
whom and why; `limit:<type>` with a JSON object; `worker:<consumer>` with `quiet` or `stop`; `op:<id>` with the verb of an
operation that is to be stepped; `v` counts the changes. What cannot be read is skipped, and told: the rest holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from runtime.codec import MAX_DIGITS
from runtime.errors import ConfigError
from runtime.jobs import STREAMS, TYPE_NAME
from runtime.limits import Override, override_of

ALL: Final = "*"
ORDERS: Final = ("quiet", "stop")
VERSION: Final = "v"


class Pause(msgspec.Struct, frozen=True):
    """Nothing of this starts until `until_ms`, or until it is resumed where that is 0. Times are the server's."""

    until_ms: int
    since_ms: int
    by: str = ""
    reason: str = ""

    def is_over(self, now_ms: float) -> bool:
        """Return whether its time is up."""
        return 0 < self.until_ms <= now_ms


class Rules(msgspec.Struct, frozen=True):
    """What holds beside the code's settings. `pauses` by type, priority or `*`; `orders` by the name of a worker;
    `operations` are those that go on, by their ids.
    """

    version: str = ""
    pauses: dict[str, Pause] = {}
    limits: dict[str, Override] = {}
    orders: dict[str, str] = {}
    operations: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    def paused_streams(self, now_ms: float) -> frozenset[int]:
        """Return the streams of which nothing may start; all of them, where the whole queue is paused."""
        return frozenset(at for at, name in enumerate(STREAMS) if self._is_paused(name, now_ms) or self._is_paused(ALL, now_ms))

    def is_type_paused(self, type_name: str, now_ms: float) -> bool:
        """Return whether a type is paused by itself. The name of a priority means the priority."""
        return type_name not in STREAMS and self._is_paused(type_name, now_ms)

    def _is_paused(self, name: str, now_ms: float) -> bool:
        pause = self.pauses.get(name)
        return pause is not None and not pause.is_over(now_ms)


NO_RULES: Final = Rules()


def parse(fields: Iterable[tuple[bytes, bytes]]) -> Rules:
    """Return the rules that the fields of `control` are."""
    rules = Rules(pauses={}, limits={}, orders={})
    version, operations, unreadable = "", list[str](), list[str]()
    for raw_name, raw in fields:
        name, text = raw_name.decode(errors="replace"), raw.decode(errors="replace")
        kind, _, of = name.partition(":")
        try:
            match kind:
                case "v":
                    version = text
                case "pause":
                    rules.pauses[of] = read_pause(of, text)
                case "limit":
                    rules.limits[of] = _read_limits(of, text)
                case "worker" if text in ORDERS:
                    rules.orders[of] = text
                case "op":
                    operations.append(of)
                case _:
                    unreadable.append(f"{name[:80]}: {text[:80]!r} is no rule of this version")
        except ConfigError as error:
            unreadable.append(f"{name[:80]}: {error}")
    return msgspec.structs.replace(rules, version=version, operations=tuple(operations), unreadable=tuple(unreadable))


def read_pause(of: str, text: str) -> Pause:
    """Return the pause that a field's value is.

    Raises:
        ConfigError: it is none.
    """
    if of != ALL and not TYPE_NAME.match(of.encode()):
        raise ConfigError(f"{of[:80]!r} is no name of a type or priority")
    until, since, *rest = [*text.split(" ", 3), "", ""][:4]
    if not (_is_ms(until) and _is_ms(since)):
        raise ConfigError(f"{text[:80]!r} must be `<until ms or 0> <since ms> <by> <reason>`")
    return Pause(int(until), int(since), rest[0], rest[1])


def _is_ms(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS


def _read_limits(of: str, text: str) -> Override:
    if not TYPE_NAME.match(of.encode()):
        raise ConfigError(f"{of[:80]!r} is no name of a type")
    try:
        told = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigError(f"no JSON: {error}") from None
    return override_of(told)
