"""Bounds checks a payload before anything is made of it, so that no sender can write one that blocks the event loop.

JSON is checked by passes that run at the speed of C, MessagePack by its headers; both take time linear in the payload's size.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

import msgspec
from msgspec import inspect

from runtime.errors import BadPayload

MAX_DEPTH: Final = 64  # a guess: deeper than any payload that people design, and far from Python's recursion limit
# The sender chooses the hash of a number, and of what is made of numbers: n keys that all collide cost n². Of the worst that was
# found, 2,000 in one map take 5 ms, and 16,000 took 340 ms (measured). The hash of a text is salted per process.
MAX_HASHED: Final = 2000
# The same for keys that take longer to compare than numbers do: 2,000 decimals, tuples or structs took 40 to 130 ms, 2,000 UUIDs
# or dataclasses, which Python code compares, 200 to 650 ms (measured on a busy machine).
MAX_HASHED_MADE: Final = 1000
MAX_HASHED_SLOW: Final = 400
# Headers of MessagePack that are looked at one by one, at 0.2 µs each (measured); a run of small values counts as one.
MAX_HEADERS: Final = 30_000
# JSON numbers with an exponent of three digits, zeros in front not counted: those near the ends of what a float can be took 6 to
# 19 µs each with msgspec 0.22, and 43,000 of them 394 ms; all others less than 1.3 µs, and 24 ms in 256 KiB (measured).
MAX_FAR_NUMBERS: Final = 1000
FAR_BYTES: Final = 6 * MAX_FAR_NUMBERS  # as short as so many can be: `1e308,`
# Lists and objects, where an empty one makes far more than its one or two bytes: 0.4 to 1.3 µs each for a dataclass, or a struct
# with many defaults or some that are made anew (measured). Of all others, what 256 KiB can say takes 26 ms at most.
MAX_OBJECTS: Final = 10_000
MANY_DEFAULTS: Final = 8  # a guess: with more of them, an object costs more than its bytes

TOO_DEEP: Final = f"nested deeper than {MAX_DEPTH} levels"


# --- contracts -----------------------------------------------------------------------------------------------------------------


class Freedom(msgspec.Struct):
    """What a contract leaves to the sender.

    `is_open`: how deep a part of it nests, or what the keys of its maps are. `is_hashed`: how many there are of keys of maps, or
    members of sets, that are no texts; `most_hashed`: how many values there may be then. `has_floats`: where a float may stand.
    `has_objects`: how many there are of what costs more to make than to write.
    """

    is_open: bool = False
    is_hashed: bool = False
    most_hashed: int = MAX_HASHED
    has_floats: bool = False
    has_objects: bool = False

    @property
    def looks_from_bytes(self) -> int:
        """From how many bytes on more than the depth of JSON has to be checked."""
        return 2 * MAX_DEPTH if self.is_hashed else FAR_BYTES if self.has_floats else sys.maxsize

    @property
    def lifted(self) -> Freedom:
        """The same for a payload of an older version: it is decoded as plain dicts and lists before it is lifted."""
        return Freedom(True, self.is_hashed, self.most_hashed, True, self.has_objects)


FREE: Final = Freedom(is_open=True)  # what is known of no contract

_SAFE_KEYS = (inspect.StrType, inspect.BytesType, inspect.EnumType, inspect.LiteralType, inspect.BoolType, inspect.NoneType)


def freedom_of(payload: type[msgspec.Struct]) -> Freedom:
    """Return what a contract leaves to the sender; called once, when its handler is declared."""
    freedom = Freedom()
    _look_at(inspect.type_info(payload), freedom, [])
    return freedom


def _look_at(kind: inspect.Type, freedom: Freedom, above: list[inspect.Type]) -> None:
    if above and _is_costly(kind):  # the outermost is one; all others may be many, if only as the same field again and again
        freedom.has_objects = True
    if any(kind is outer for outer in above):
        freedom.is_open = True  # it holds itself
        return
    if isinstance(kind, inspect.AnyType | inspect.CustomType | inspect.RawType):
        freedom.is_open = freedom.has_floats = True
    if isinstance(kind, inspect.FloatType):
        freedom.has_floats = True
    for hashed in _hashed_by(kind):
        options = hashed.types if isinstance(hashed, inspect.UnionType) else (hashed,)
        if not all(isinstance(option.type if isinstance(option, inspect.Metadata) else option, _SAFE_KEYS) for option in options):
            freedom.is_hashed = True
            freedom.most_hashed = min(freedom.most_hashed, _most_hashed(hashed, []))
    for inner in _inside(kind):
        _look_at(inner, freedom, [*above, kind])


def _is_costly(kind: inspect.Type) -> bool:
    if isinstance(kind, inspect.DataclassType | inspect.NamedTupleType):
        return True
    if not isinstance(kind, inspect.StructType):
        return False
    optional = [field for field in kind.fields if not field.required]
    return len(optional) > MANY_DEFAULTS or any(field.default_factory is not msgspec.NODEFAULT for field in optional)


_MADE = (
    inspect.DecimalType,
    inspect.TimeDeltaType,
    inspect.StructType,
    inspect.NamedTupleType,
    inspect.TupleType,
    inspect.VarTupleType,
    inspect.FrozenSetType,
    inspect.CustomType,
)


def _most_hashed(kind: inspect.Type, above: list[inspect.Type]) -> int:
    """Return how many keys of this kind there may be, by the slowest to compare of what is in it."""
    is_slow = isinstance(kind, inspect.UUIDType | inspect.DataclassType)
    own = MAX_HASHED_SLOW if is_slow else MAX_HASHED_MADE if isinstance(kind, _MADE) else MAX_HASHED
    within = [*above, kind]
    inner = [_most_hashed(each, within) for each in _inside(kind) if not any(each is outer for outer in within)]
    return min([own, *inner])


def _hashed_by(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    if isinstance(kind, inspect.SetType | inspect.FrozenSetType):
        return (kind.item_type,)
    key = getattr(kind, "key_type", None)  # of a dict, or of a kind of dict that a newer msgspec knows
    return () if key is None else (key,)


def _inside(kind: inspect.Type) -> Iterable[inspect.Type]:
    if isinstance(kind, inspect.StructType | inspect.TypedDictType | inspect.DataclassType | inspect.NamedTupleType):
        return [field.type for field in kind.fields]
    if isinstance(kind, inspect.UnionType):
        return kind.types
    if isinstance(kind, inspect.TupleType):
        return kind.item_types
    names = ("key_type", "value_type", "item_type", "type")
    return [inner for name in names if isinstance(inner := getattr(kind, name, None), inspect.Type)]


# --- JSON ----------------------------------------------------------------------------------------------------------------------

_LEVELS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one up, one down, as signed bytes
_NOT_LEVELS = bytes(byte for byte in range(256) if byte not in b'[]{}"')
_NOT_COMMAS = bytes(byte for byte in range(256) if byte not in b',"')
_NOT_EXPONENTS = bytes(byte for byte in range(256) if byte not in b'eE0123456789,"')  # a comma is between any two numbers
_FAR_NUMBER = re.compile(b"[eE]0*[1-9][0-9][0-9]")


def check_json(data: bytes, freedom: Freedom = FREE) -> None:
    """Check the depth of JSON, and how many of each there are of what its contract leaves to the sender.

    Brackets that do not match are left to the decoder.

    Raises:
        BadPayload: it is nested deeper than MAX_DEPTH, or has more of something than it may.
    """
    # Proof for nearly every payload: it is too short, or has not more openers than levels are allowed.
    if len(data) > 2 * MAX_DEPTH and data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        steps = _outside_of_strings(data, _NOT_LEVELS).translate(_LEVELS)
        if max(accumulate(memoryview(steps).cast("b")), default=0) > MAX_DEPTH:
            raise BadPayload(TOO_DEEP, "unreadable")
        if freedom.has_objects and steps.count(b"\x01") > MAX_OBJECTS:
            raise _too_many_objects()
    if not freedom.is_hashed and not freedom.has_floats:
        return
    commas = data.count(b",")
    most = freedom.most_hashed
    if freedom.is_hashed and commas > most and len(_outside_of_strings(data, _NOT_COMMAS)) > most:
        raise _too_many(most)
    if not freedom.has_floats or commas < MAX_FAR_NUMBERS or data.count(b"e") + data.count(b"E") <= MAX_FAR_NUMBERS:
        return
    if len(_FAR_NUMBER.findall(_outside_of_strings(data, _NOT_EXPONENTS))) > MAX_FAR_NUMBERS:
        raise BadPayload(f"more than {MAX_FAR_NUMBERS} numbers with an exponent of three digits", "too-large")


def _outside_of_strings(data: bytes, dropped: bytes) -> bytes:
    """Return JSON without its strings and without `dropped`, among which there are no quotes."""
    if b"\\" in data:
        data = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Of two quotes side by side one begins what the other ends, whichever comes first: without both, all else is where it was.
    left = data.translate(None, dropped).replace(b'""', b"")
    return b"".join(left.split(b'"')[::2]) if b'"' in left else left


def _too_many(most: int) -> BadPayload:
    return BadPayload(f"more than {most} values, where keys or members of sets are no texts", "too-large")


def _too_many_objects() -> BadPayload:
    return BadPayload(f"more than {MAX_OBJECTS} lists and objects, where some have defaults to be made", "too-large")


# --- MessagePack ---------------------------------------------------------------------------------------------------------------

_TEXT_KEYS = frozenset((*range(0xA0, 0xC0), 0xD9, 0xDA, 0xDB))
_NUMBER_KEYS = frozenset((*range(0x80), *range(0xCC, 0xD4), *range(0xE0, 0x100)))
_MAPS = frozenset((*range(0x80, 0x90), 0xDE, 0xDF))
_CONTAINERS = _MAPS.union(range(0x90, 0xA0), (0xDC, 0xDD))
_NOT_CONTAINERS = bytes(byte for byte in range(256) if byte not in _CONTAINERS)
_SMALL = frozenset((*range(0x80), 0xC0, 0xC2, 0xC3, *range(0xE0, 0x100)))  # values of one byte: numbers, nil, true and false
_SMALLS = re.compile(b"[%b]*" % re.escape(bytes(sorted(_SMALL))))
# By the first byte of a value: how many bytes then say its size (bin, ext, str, array, map), and how many bytes of content follow
# whatever its size (a number; a short str; the type of an ext).
_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_CONTENTS = {
    **{first: first - 0xA0 for first in range(0xA0, 0xC0)},
    **{0xC7: 1, 0xC8: 1, 0xC9: 1, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17},
    **{0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
}
_LENGTHS = bytes(1 + _WIDTHS.get(first, 0) + _CONTENTS.get(first, 0) for first in range(256))


def check_msgpack(data: bytes, freedom: Freedom = FREE) -> None:
    """Check MessagePack by its headers, before anything is made of it.

    Where the contract is open, keys are texts or whole numbers, and there may be MAX_HASHED such numbers; with `is_hashed` it
    says what keys are, and there may be `most_hashed` values in all. What ends too early is left to the decoder.

    Raises:
        BadPayload: it is nested deeper than MAX_DEPTH, has other keys, or more of something than it may.
    """
    if not freedom.is_open and not freedom.is_hashed:  # it is as deep as the contract
        # Proof for nearly all that is left: not more bytes that could begin a container than objects are allowed.
        if not freedom.has_objects or len(data) <= MAX_OBJECTS or len(data.translate(None, _NOT_CONTAINERS)) <= MAX_OBJECTS:
            return
    # Proof for small payloads: too short for many keys, and not more bytes that could begin a container than levels are allowed.
    elif len(data) <= freedom.most_hashed and len(data.translate(None, _NOT_CONTAINERS)) <= MAX_DEPTH:
        return
    with contextlib.suppress(IndexError):
        _scan(data, freedom)


def _scan(data: bytes, freedom: Freedom) -> None:
    is_hashed, most_hashed, most_objects = (
        freedom.is_hashed,
        freedom.most_hashed,
        MAX_OBJECTS if freedom.has_objects else MAX_HEADERS,
    )
    has_any_keys = is_hashed or not freedom.is_open
    outer: list[tuple[int, bool]] = []
    # Of the innermost container: how many values are still to come; in a map, keys have even numbers.
    left, is_map = 1, False
    at, hashed, headers, objects = 0, 0, 0, 0
    while True:
        while not left:
            if not outer:
                return
            left, is_map = outer.pop()
        first = data[at]
        headers += 1
        if headers > MAX_HEADERS or hashed > most_hashed or objects > most_objects:
            break
        if is_map and not left & 1 and not has_any_keys and first not in _TEXT_KEYS:
            if first not in _NUMBER_KEYS:
                raise BadPayload("a map's key is neither a text nor a whole number")
            hashed += 1
        if first in _SMALL:
            end = at + 1 if is_map else _SMALLS.match(data, at, at + left).end()  # pyright: ignore[reportOptionalMemberAccess]
            left -= end - at
            at = end
            continue
        left -= 1
        size_at = at + 1
        at += _LENGTHS[first]
        width = _WIDTHS.get(first)
        size = first & 0x0F if width is None else int.from_bytes(data[size_at : size_at + width], "big")
        if first in _CONTAINERS:
            if len(outer) >= MAX_DEPTH:
                raise BadPayload(TOO_DEEP, "unreadable")
            objects += 1
            hashed += size if is_hashed else 0
            if size:
                outer.append((left, is_map))
                is_map = first in _MAPS
                left = 2 * size if is_map else size
        elif width is not None:
            at += size
    if objects > most_objects:
        raise _too_many_objects()
    raise _too_many(most_hashed) if hashed > most_hashed else BadPayload(f"more than {MAX_HEADERS} values", "too-large")
