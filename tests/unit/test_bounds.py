"""Payload bounds: no payload holds the loop for longer than its size says, and none that a contract allows is refused."""

from __future__ import annotations

import contextlib
import gc
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from typing import Any, Literal
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bounds import MAX_DEPTH, MAX_FAR_NUMBERS, MAX_HASHED, MAX_HEADERS, MAX_OBJECTS, check_json, check_msgpack, freedom_of
from runtime.codec import MAX_DATA_BYTES, payload_decoder
from runtime.errors import BadPayload
from runtime.jobs import Contract
from tests.builders import job

# The costliest takes 10 times of what flat numbers of the same size take. A ratio: machines differ, and do other things too.
MOST_TIMES_FLAT = 40


class Plain(msgspec.Struct):
    n: int = 0
    to: str = ""
    when: float = 0.0
    price: Decimal | None = None


class Free(msgspec.Struct):
    n: int = 0
    deep: Any = None


class Numbered(msgspec.Struct):
    n: int = 0
    by_number: dict[int, int] = {}
    members: set[int] = set()


class Line(msgspec.Struct):
    n: int = 0
    parts: list[int] = []
    by_name: dict[str, int] = {}


@dataclass
class Point:
    x: int = 0
    y: int = 0


class Full(msgspec.Struct):
    """Closed, and with much in it that costs more to make than to write."""

    deep: list[Line] = []
    points: list[Point] = []
    wide: list[msgspec.defstruct("Wide", [(f"f{n}", int, 0) for n in range(200)])] = []  # pyright: ignore[reportInvalidTypeForm]
    words: list[str] = []
    numbers: list[int] = []
    prices: list[float] = []


def decoder(payload: type[msgspec.Struct], **options: Any) -> Callable[..., Any]:
    decode = payload_decoder(Contract("t", payload, **options))

    def read(data: bytes, *, is_msgpack: bool = False, version: int = 1) -> Any:
        return decode(job("t", data=data, is_msgpack=is_msgpack, version=version))

    return read


READERS = {
    "full": decoder(Full),
    "plain": decoder(Plain),
    "free": decoder(Free),
    "numbered": decoder(Numbered),
    "lifted": decoder(Plain, version=2, upcast=lambda version, plain: {"n": 1}),
}


def filled(head: bytes, part: bytes, tail: bytes) -> bytes:
    """Return JSON of nearly the largest size, with `part` as often as there is capacity."""
    return head + part * ((MAX_DATA_BYTES - len(head) - len(tail)) // len(part)) + tail


def wide(part: bytes) -> bytes:
    """Return MessagePack of a map whose one value is an array of `part`, of nearly the largest size."""
    size = (MAX_DATA_BYTES - 20) // len(part)
    return b"\x81\xa4deep\xdd" + size.to_bytes(4, "big") + part * size


def mapped(name: bytes, keys: list[bytes]) -> bytes:
    return (
        b"\x81"
        + bytes((0xA0 + len(name),))
        + name
        + b"\xdf"
        + len(keys).to_bytes(4, "big")
        + b"".join(key + b"\1" for key in keys)
    )


NESTED = b"[" * 60 + b"]" * 60 + b","
JSON = {
    "numbers": filled(b'{"deep":[', b"1,", b"1]}"),
    "60 levels": filled(b'{"deep":[', NESTED, b"1]}"),
    "openers": b"[" * MAX_DATA_BYTES,
    "closers": b"]" * MAX_DATA_BYTES,
    "one nest": b"[" * (MAX_DATA_BYTES // 2) + b"]" * (MAX_DATA_BYTES // 2),
    "pairs": filled(b'{"deep":[', b"[],", b"1]}"),
    "objects": filled(b'{"deep":[', b"{},", b"1]}"),
    "quotes": b"[" * 65 + b'"' * (MAX_DATA_BYTES - 65),
    "texts": filled(b'{"deep":[' + b"[]," * 65, b'"",', b"1]}"),
    "brackets in texts": filled(b'{"deep":[' + b"[]," * 65, b'"[",[],', b"1]}"),
    "backslashes": filled(b'{"deep":[' + b"[]," * 65 + b'"', b"\\\\", b'"]}'),
    "escapes": filled(b'{"to":"', b"\\u00e9", b'"}'),
    "a long number": filled(b'{"n":', b"1", b"}"),
    "a long fraction": filled(b'{"when":0.', b"1", b"}"),
    "numbers near the largest": filled(b'{"deep":[', b"1e308,", b"1]}"),
    "numbers near the smallest": filled(b'{"prices":[', b"1E-0310,", b"1]}"),
    "large numbers": filled(b'{"prices":[', b"1e308,", b"1]}"),
    "empty points": filled(b'{"points":[', b"{},", b"{}]}"),
    "empty and wide": filled(b'{"wide":[', b"{},", b"{}]}"),
    "the same object again": filled(b"{", b'"deep":[{}],', b'"n":1}'),
    "a long float": filled(b'{"when":', b"9", b"e-4000}"),
    "a long decimal": filled(b'{"price":"', b"1", b'"}'),
    "the same field again": filled(b"{", b'"n":1,', b'"n":1}'),
    "many numbers as keys": filled(b'{"by_number":{', b'"1":1,', b'"2":1}}'),
    "many members": filled(b'{"members":[', b"1,", b"2]}"),
}
MSGPACK = {
    "nothings": wide(b"\xc0"),
    "lists": wide(b"\x90"),
    "maps": wide(b"\x80"),
    "60 levels": wide(b"\x91" * 59 + b"\x90"),
    "empty points": wide(b"\x80").replace(b"\xa4deep", b"\xa6points"),
    "lists of one": wide(b"\x91\xc0"),
    "maps of one": wide(b"\x81\xa0\xc0"),
    "empty texts": wide(b"\xd9\x00"),
    "short texts and numbers": wide(b"\xa1x\xcc\x01"),
    "long numbers": wide(b"\xcf" + b"\xff" * 8),
    "ext": wide(b"\xd4\x05\x00"),
    "times": wide(b"\xd6\xff\0\0\0\1"),
    "one nest": b"\x91" * MAX_DATA_BYTES,
    "numbers as keys": mapped(b"deep", [b"\xcf" + struct.pack(">Q", n << 40) for n in range(20_000)]),
    "lists as keys": mapped(b"deep", [b"\x92\x01\xcd" + struct.pack(">H", n) for n in range(40_000)]),
    "fractions as keys": mapped(b"deep", [b"\xcb" + struct.pack(">d", n) for n in range(20_000)]),
    "numbers as the contract's keys": mapped(b"by_number", [b"\xce" + struct.pack(">L", n) for n in range(40_000)]),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("data", "is_msgpack"),
    [(data, False) for data in JSON.values()] + [(data, True) for data in MSGPACK.values()],
    ids=[f"json-{name}" for name in JSON] + [f"msgpack-{name}" for name in MSGPACK],
)
def test_no_payload_holds_the_loop(reader: str, data: bytes, is_msgpack: bool) -> None:
    assert len(data) <= MAX_DATA_BYTES

    def read() -> None:
        with contextlib.suppress(BadPayload):
            READERS[reader](data, is_msgpack=is_msgpack)

    assert_quick(read)


def assert_quick(read: Callable[[], object]) -> None:
    """Fail where `read` costs far more than reading flat numbers does, however often it is tried."""
    ratios: list[float] = []
    while len(ratios) < 20 and min(ratios, default=MOST_TIMES_FLAT) >= MOST_TIMES_FLAT:
        ratios.append(cpu_s(read) / cpu_s(lambda: msgspec.json.decode(JSON["numbers"])))
    assert min(ratios) < MOST_TIMES_FLAT


def cpu_s(work: Callable[[], object]) -> float:
    """Return the processor time of one call."""
    begun_s = time.thread_time()
    work()
    return time.thread_time() - begun_s


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    """A worker has its own ways with the collector: they are not what is looked at here."""
    gc.disable()
    yield
    gc.enable()


def test_nested_json_is_judged_as_fast_as_flat_json() -> None:
    def best_s(data: bytes) -> float:
        times: list[float] = []
        for _ in range(7):
            times.append(cpu_s(lambda: check_json(data)))
        return min(times)

    assert best_s(JSON["60 levels"]) < 8 * best_s(JSON["pairs"])


# --- numbers and objects ------------------------------------------------------------------------------------------------------


def test_up_to_1000_numbers_near_the_ends_of_a_float_are_taken_and_all_others_without_a_bound() -> None:
    for number in (b"1e308", b"-1E+0308", b"5e-324"):
        for reader, name in (("full", b"prices"), ("free", b"deep"), ("lifted", b"when")):
            fits = b'{"%b":[%b]}' % (name, b",".join([number] * MAX_FAR_NUMBERS))
            with contextlib.suppress(BadPayload) if reader == "lifted" else contextlib.nullcontext():
                READERS[reader](fits)
            with pytest.raises(BadPayload, match="more than 1000 numbers with an exponent of three digits"):
                READERS[reader](fits.replace(b"[", b"[" + number + b","))
    for number in (b"1.5", b"1e+003", b"1e99", b'"1e308"'):
        many = b'{"deep":[%b]}' % b",".join([number] * 10_000)
        assert len(READERS["free"](many).deep) == 10_000
    unknown = b'{"else":[%b]}' % b",".join([b"1e308"] * 10_000)
    assert READERS["numbered"](b'{"n":1}') == Numbered(1)
    assert decoder(Line)(unknown) == Line()  # nothing of it is made


@pytest.mark.parametrize("is_msgpack", [False, True])
def test_up_to_10000_objects_that_cost_more_than_their_bytes_are_taken(is_msgpack: bool) -> None:
    encode = msgspec.msgpack.encode if is_msgpack else msgspec.json.encode
    read = READERS["full"]
    for name in ("deep", "points", "wide"):
        assert len(getattr(read(encode({name: [{}] * (MAX_OBJECTS - 2)}), is_msgpack=is_msgpack), name)) == MAX_OBJECTS - 2
        with pytest.raises(BadPayload, match="more than 10000 lists and objects"):
            read(encode({name: [{}] * (MAX_OBJECTS + 1)}), is_msgpack=is_msgpack)
    with pytest.raises(BadPayload, match="more than 10000 lists and objects"):
        decoder(Nest)(encode({"nests": [{}] * (MAX_OBJECTS + 1)}), is_msgpack=is_msgpack)


@pytest.mark.parametrize("is_msgpack", [False, True])
def test_a_closed_contract_takes_as_many_plain_values_as_fit(is_msgpack: bool) -> None:
    encode = msgspec.msgpack.encode if is_msgpack else msgspec.json.encode
    read = READERS["full"]
    for name, value in (("words", "[{]}"), ("numbers", 1), ("prices", 0.5)):
        n = 28_000 if name == "prices" else 40_000
        assert len(getattr(read(encode({name: [value] * n}), is_msgpack=is_msgpack), name)) == n
    cheap = msgspec.defstruct("Cheap", [("rows", list[msgspec.defstruct("Row", [("n", int, 0)])])])  # pyright: ignore
    assert len(decoder(cheap)(encode({"rows": [{"n": 1}] * 28_000}), is_msgpack=is_msgpack).rows) == 28_000


class Nest(msgspec.Struct):
    nests: list[Nest] = []


# --- keys --------------------------------------------------------------------------------------------------------------------


def test_keys_that_are_lists_fractions_or_nothing_are_refused_where_the_contract_leaves_them_open() -> None:
    for key in (
        b"\x90",
        b"\x92\x01\x02",
        b"\x80",
        b"\xc0",
        b"\xc3",
        b"\xca\0\0\0\0",
        b"\xcb" + b"\0" * 8,
        b"\xc4\0",
        b"\xd6\xff\0\0\0\1",
    ):
        with pytest.raises(BadPayload, match="neither a text nor a whole number"):
            check_msgpack(mapped(b"deep", [b"\xa1x"] * 1500 + [key]))


def test_a_contract_may_leave_open_up_to_2000_whole_numbers_as_keys() -> None:
    keys = [msgspec.msgpack.encode(n) for n in range(-1000, 1001)]
    assert len(READERS["free"](mapped(b"deep", keys[1:]), is_msgpack=True).deep) == MAX_HASHED
    with pytest.raises(BadPayload, match="more than 2000"):
        READERS["free"](mapped(b"deep", keys), is_msgpack=True)
    with pytest.raises(BadPayload, match="more than 2000"):
        READERS["lifted"](mapped(b"deep", keys), is_msgpack=True)
    texts = [msgspec.msgpack.encode(str(n)) for n in range(10_000)]
    assert len(READERS["free"](mapped(b"deep", texts), is_msgpack=True).deep) == 10_000


@pytest.mark.parametrize("is_msgpack", [False, True])
def test_a_contract_with_numbers_as_keys_or_members_takes_up_to_2000(is_msgpack: bool) -> None:
    encode = msgspec.msgpack.encode if is_msgpack else msgspec.json.encode
    read = READERS["numbered"]
    for name in ("by_number", "members"):
        fits = encode({name: {n: n for n in range(1990)} if name == "by_number" else list(range(1990))})
        assert len(getattr(read(fits, is_msgpack=is_msgpack), name)) == 1990
        with pytest.raises(BadPayload, match="more than 2000"):
            read(encode({name: {n: n for n in range(2100)} if name == "by_number" else list(range(2100))}), is_msgpack=is_msgpack)
    commas = encode({"n": 1, "note": "a, b, c" * 3000})
    assert read(commas, is_msgpack=is_msgpack).n == 1


@dataclass(frozen=True)
class Place:
    n: int


class Spot(msgspec.Struct, frozen=True):
    n: int


@pytest.mark.parametrize(
    ("kind", "name", "most"),
    [
        (set[UUID], "uuid", 400),
        (dict[UUID, int], "uuid", 400),
        (set[tuple[UUID | None]], "uuids", 400),
        (set[Place], "object", 400),
        (set[Spot], "object", 1000),
        (set[tuple[int]], "numbers", 1000),
        (set[Decimal], "text", 1000),
        (set[int], "number", 2000),
    ],
)
def test_however_long_two_members_take_to_compare_they_do_not_hold_the_loop(kind: Any, name: str, most: int) -> None:
    numbers = [n * (2**61 - 1) for n in range(most)]  # the hash of all of them is 0
    texts: dict[str, Callable[[int], str]] = {
        "uuid": lambda n: f'"{UUID(int=n)}"',
        "uuids": lambda n: f'["{UUID(int=n)}"]',
        "object": lambda n: f'{{"n":{n}}}',
        "numbers": lambda n: f"[{n}]",
        "text": lambda n: f'"{n}"',
        "number": str,
    }
    members = [texts[name](n) + (":1" if "dict" in str(kind) else "") for n in numbers]
    opener, closer = "{}" if "dict" in str(kind) else "[]"
    read = decoder(msgspec.defstruct("Members", [("x", kind)]))
    fits = f'{{"x":{opener}{",".join(members)}{closer}}}'.encode()
    assert len(read(fits).x) == most
    assert_quick(lambda: read(fits))
    with pytest.raises(BadPayload, match=f"more than {most} values"):
        read(f'{{"x":{opener}{",".join([*members, *members])}{closer}}}'.encode())


class Color(Enum):
    RED = "red"


class Inner(msgspec.Struct):
    by_point: dict[tuple[int, int], str]


class Texts(msgspec.Struct):
    names: set[str]
    by_name: dict[str, list[int]]
    by_color: dict[Color, int]
    by_word: dict[Literal["a", "b"], int]


class Outer(msgspec.Struct):
    inner: list[Inner | None]


class Bag(msgspec.Struct):
    bags: dict[str, list[dict[str, object]]]


def test_what_a_contract_leaves_to_the_sender_is_found_wherever_it_stands() -> None:
    found = {kind.__name__: freedom_of(kind) for kind in (Texts, Outer, Bag, Tree, Plain, Free, Numbered)}
    assert {name for name, freedom in found.items() if freedom.is_hashed} == {"Outer", "Numbered"}
    assert {name for name, freedom in found.items() if freedom.is_open} == {"Bag", "Tree", "Free"}


class Tree(msgspec.Struct):
    branches: list[Tree] = []


# --- the scan ----------------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-(2**63), 2**64 - 1), inner),
    max_leaves=40,
)


@given(values)
def test_every_messagepack_of_texts_and_numbers_is_scanned_to_its_end(value: Any) -> None:
    data = msgspec.msgpack.encode([value] + [None] * MAX_HASHED)  # long enough to be scanned
    check_msgpack(data)
    check_msgpack(data[:-1])
    deep = b"\x91" * (MAX_DEPTH + 1) + b"\xc0"
    with pytest.raises(BadPayload, match="64 levels"):  # what comes after the value is found where it stands
        check_msgpack(b"\x92" + data + deep)


@given(st.binary(max_size=300))
def test_the_scan_takes_any_bytes(tail: bytes) -> None:
    try:
        check_msgpack(b"\xdd\xff\xff\xff\xff" + b"\xc0" * MAX_HASHED + tail)
    except BadPayload as error:
        assert "levels" in str(error) or "more than" in str(error) or "key" in str(error)


def test_a_payload_of_more_values_than_can_be_looked_at_is_refused() -> None:
    with pytest.raises(BadPayload, match=f"more than {MAX_HEADERS} values"):
        check_msgpack(msgspec.msgpack.encode([[1]] * MAX_HEADERS))


@given(st.recursive(st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30))
def test_json_of_any_texts_is_as_deep_as_it_is(value: Any) -> None:
    def depth_of(value: Any) -> int:
        if not isinstance(value, list | dict):
            return 0
        return 1 + max((depth_of(inner) for inner in (value.values() if isinstance(value, dict) else value)), default=0)

    outside = MAX_DEPTH - depth_of(value)
    for levels in (outside, outside + 1):
        data = b"[" * levels + msgspec.json.encode(value) + b"]" * levels
        if levels == outside:
            check_json(data)
        else:
            with pytest.raises(BadPayload, match="64 levels"):
                check_json(data + b" " * 200)
