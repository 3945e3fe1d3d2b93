"""The codec: stream fields to jobs, payloads to contracts; nothing a stranger wrote makes it raise anything else than it says."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runtime import codec
from runtime.bounds import MAX_DEPTH, TOO_DEEP
from runtime.codec import (
    DEAD_FIELDS,
    MAX_DATA_BYTES,
    MAX_DIGITS,
    MAX_FIELDS,
    MAX_GROUP_BYTES,
    MAX_KEY_BYTES,
    MAX_MS,
    MAX_OTHERS_BYTES,
    NOTED_FIELDS,
    OWN_FIELDS,
    SENT_FIELDS,
    Summary,
    decode_many,
    entry_fields,
    header,
    pack_record,
    payload_decoder,
    read_letter,
    read_record,
    summary,
    unpack_record,
)
from runtime.errors import BadPayload
from runtime.jobs import PLAIN, BadEntry, Deferral, Envelope, Job, contract, contract_of
from tests import builders

MEDIUM = 2
ENTRY = b"1700000000123-4"
MANY = 100_000


def read(*rows: Sequence[bytes], **limits: int) -> tuple[list[Job], list[BadEntry]]:
    numbered = [(b"%d-0" % at, fields) for at, fields in enumerate(rows, 1)]
    return decode_many(MEDIUM, numbered, repeat(1), "run/0", 12.5, 1_700_000_001_000, **limits)


def flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [part for pair in fields.items() for part in pair]


def message(**fields: bytes) -> list[bytes]:
    """Return the flat fields of a message; `x_origin` stands for `x-origin`."""
    known = {b"type": b"greet", b"data": b'{"name":"Ada"}'}
    return flat(known | {name.replace("_origin", "-origin").encode(): value for name, value in fields.items()})


def one(fields: Sequence[bytes]) -> Job:
    jobs, bad = read(fields)
    assert not bad
    return jobs[0]


def refusal(fields: Sequence[bytes], **limits: int) -> BadEntry:
    jobs, bad = read(fields, **limits)
    assert not jobs
    return bad[0]


# --- messages ----------------------------------------------------------------------------------------------------------------


def test_a_message_of_type_and_data_is_a_job_with_the_shared_plain_envelope() -> None:
    (job,), bad = decode_many(MEDIUM, [(ENTRY, [b"type", b"greet", b"data", b"{}"])], [3], "run/0", 12.5, 1_700_000_001_000)
    assert (job.type, job.data, job.entry, job.stream, job.count) == (b"greet", b"{}", ENTRY, MEDIUM, 3)
    assert (job.run_id, job.taken_s, job.fetched_ms) == ("run/0", 12.5, 1_700_000_001_000)
    assert job.envelope is PLAIN
    assert bad == []


def test_the_order_of_the_fields_does_not_matter() -> None:
    job = one([b"data", b"{}", b"type", b"greet"])
    assert (job.type, job.data, job.envelope) == (b"greet", b"{}", PLAIN)


def test_every_field_of_the_contract_reaches_the_job() -> None:
    job = one(
        message(
            id=b"order:17", v=b"2", at=b"1700000002000", exp=b"1700000003000", key=b"k\xff", attempts=b"5", a=b"3",
            first_at=b"1700000000001", snoozed_at=b"1700000000002", x_origin=b"order:16", ct=b"application/msgpack",
        )
    )  # fmt: skip
    assert job.envelope == Envelope(
        id="order:17", version=2, at_ms=1700000002000, exp_ms=1700000003000, key=b"k\xff", attempts=5, failed=3,
        first_ms=1700000000001, snoozed_ms=1700000000002, origin="order:16", is_msgpack=True,
    )  # fmt: skip


def test_json_is_the_default_and_may_be_said() -> None:
    assert not one(message(src=b"shop")).envelope.is_msgpack
    assert not one(message(ct=b"application/json")).envelope.is_msgpack


def test_bad_entries_stand_beside_the_good_ones() -> None:
    jobs, bad = read(message(), message(id=b"a b"), message(id=b"fine"), [b"data", b"{}"])
    assert [job.entry for job in jobs] == [b"1-0", b"3-0"]
    assert [entry.lease.entry for entry in bad] == [b"2-0", b"4-0"]
    lease = bad[0].lease
    assert (lease.stream, lease.count, lease.run_id, lease.taken_s) == (MEDIUM, 1, "run/0", 12.5)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        (flat({b"data": b"{}"}), "no field `type`"),
        (flat({b"type": b"greet"}), "no field `data`"),
        ([], "no field `type`"),
        (flat({b"Type": b"greet", b"data": b"{}"}), "no field `type`"),
        (message(id=b""), "`id`"),
        (message(id=b"a b"), "`id`"),
        (message(id=b"a\n"), "`id`"),
        (message(id="ä".encode()), "`id`"),
        (message(id=b"a" * 129), "`id`"),
        (message(v=b"0"), "`v`"),
        (message(v=b""), "`v`"),
        (message(v=b"two"), "`v`"),
        (message(at=b"-1"), "`at`"),
        (message(at=b"-0"), "`at`"),
        (message(at=b"+1"), "`at`"),
        (message(at=b"tomorrow"), "`at`"),
        (message(at=b"1.5"), "`at`"),
        (message(at=b"1e9"), "`at`"),
        (message(at=b" 1"), "`at`"),
        (message(at=b"1\n"), "`at`"),
        (message(at=b"1_000"), "`at`"),
        (message(at="\u0661".encode()), "`at`"),
        (message(at=b"9007199254740993"), "`at`"),
        (message(at=b"9" * 5000), "`at`"),
        (message(exp=b"never"), "`exp`"),
        (message(exp=b""), "`exp`"),
        (message(attempts=b"0"), "`attempts`"),
        (message(attempts=b"many"), "`attempts`"),
        (message(a=b"x"), "`a`"),
        (message(ct=b"text/xml"), "`ct`"),
        (message(ct=b"Application/JSON"), "`ct`"),
        (message(ct=b""), "`ct`"),
        (message(ct=b"\xff"), "`ct`"),
        (message(key=b"k" * (MAX_KEY_BYTES + 1)), "`key`"),
        (message(group=b"g" * (MAX_GROUP_BYTES + 1)), "`group`"),
        (message(group=b"\xff"), "`group`"),
        (message(keep=b""), "`keep`"),
        (message(keep=b"both"), "`keep`"),
    ],
)
def test_a_malformed_field_makes_the_entry_unreadable_and_is_named(fields: list[bytes], word: str) -> None:
    bad = refusal(fields)
    assert bad.code == "unreadable"
    assert word in bad.reason


@pytest.mark.parametrize(
    "fields",
    [
        {"id": b"a" * 128},
        {"id": b"A-z_0.9:x"},
        {"at": b"0"},
        {"at": b"9007199254740992"},
        {"exp": b"0"},
        {"attempts": b"1"},
        {"v": b"1"},
        {"key": b"k" * MAX_KEY_BYTES},
        {"key": b""},
        {"keep": b"first"},
        {"keep": b"last"},
        {"traceparent": b"no trace at all \xff"},
        {"tracestate": b"\x00"},
        {"group": b"g" * MAX_GROUP_BYTES},
        {"group": b""},
        {"x_origin": b"\xff"},
    ],
)
def test_the_outermost_values_and_foreign_ones_are_taken(fields: dict[str, bytes]) -> None:
    one(message(**fields))


@pytest.mark.parametrize(
    "text", [b"x", b"", b"-1", b"1700000001001", b"9007199254740993", b"18446744073709551615", b"9" * 5000, b"1.5"]
)
def test_a_time_of_our_own_that_is_none_or_lies_ahead_is_as_good_as_absent(text: bytes) -> None:
    noted = one(message(first_at=text, snoozed_at=text)).envelope
    assert (noted.first_ms, noted.snoozed_ms) == (0, 0)
    assert one(message(first_at=b"1700000001000")).envelope.first_ms == 1_700_000_001_000


@pytest.mark.parametrize("entry", [b"1700000001001-0", b"%d-0" % 2**53, b"%d-%d" % (2**64 - 1, 2**64 - 1)])
def test_a_job_whose_id_lies_ahead_is_born_when_it_was_fetched_in_all_its_attempts(entry: bytes) -> None:
    rows = [(entry, [b"type", b"t", b"data", b"{}"])]
    [first], _ = decode_many(MEDIUM, rows, repeat(1), "run", 0.0, 1_700_000_001_000)
    assert first.born == 1_700_000_001
    assert first.id == f"medium-{entry.decode()}"
    record = unpack_record(pack_record(Deferral(first, "retry", 1, first.id, 1)))
    [second], bad = decode_many(MEDIUM, [(b"%d-1" % (2**64 - 1), record[2:])], repeat(1), "run", 0.0, 1_700_000_009_000)
    assert not bad
    assert (second.born, second.attempt, second.id, second.work) == (first.born, 2, first.id, first.work)


def test_times_fit_into_the_numbers_of_lua() -> None:
    assert MAX_MS == 2**53
    assert one(message(at=b"9007199254740992")).envelope.at_ms == 2**53
    assert len("9007199254740992") == MAX_DIGITS


@pytest.mark.parametrize("more", [{}, {"id": b"a"}])
def test_data_may_be_as_long_as_the_limit_and_no_longer(more: dict[str, bytes]) -> None:
    jobs, bad = read(message(data=b"x" * 10, **more), max_data_bytes=10)
    assert len(jobs) == 1
    assert not bad
    bad_one = refusal(message(data=b"x" * 11, **more), max_data_bytes=10)
    assert bad_one.code == "too-large"
    assert "11 bytes" in bad_one.reason


def test_without_a_setting_data_ends_at_256_kib() -> None:
    assert MAX_DATA_BYTES == 256 * 1024
    assert len(one(message(data=b"x" * MAX_DATA_BYTES)).data) == MAX_DATA_BYTES
    assert refusal(message(data=b"x" * (MAX_DATA_BYTES + 1))).code == "too-large"


def test_all_fields_together_may_have_a_mebibyte_more_than_data() -> None:
    known = sum(map(len, message(x_origin=b"", x=b"")))
    fits = message(x_origin=b"", x=b"y" * (MAX_DATA_BYTES + MAX_OTHERS_BYTES - known))
    assert one(fits).fields == fits
    bad = refusal([*fits[:-1], fits[-1] + b"y"])
    assert (bad.code, bad.reason) == ("too-large", f"more than {MAX_DATA_BYTES + MAX_OTHERS_BYTES} bytes in all fields")


def test_an_entry_has_at_most_512_fields_and_those_that_retries_add() -> None:
    extra = [part for at in range(MAX_FIELDS + OWN_FIELDS - 2) for part in (b"x-%d" % at, b"")]
    assert len(one([*message(), *extra]).data) > 0
    bad = refusal([*message(), *extra, b"x-last", b""])
    assert bad.code == "too-large"
    assert "521 fields" in bad.reason


def test_the_last_of_two_equal_fields_wins() -> None:
    job = one([*message(id=b"first", at=b"bad"), b"id", b"second", b"at", b"7", b"data", b"[]"])
    assert (job.id, job.envelope.at_ms, job.data) == ("second", 7, b"[]")


def test_two_types_do_not_make_up_for_missing_data() -> None:
    assert "no field `data`" in refusal([b"type", b"greet", b"type", b"greet"]).reason


def test_what_came_is_never_changed() -> None:
    rows = [
        (b"1-0", message()),
        (b"2-0", [*message(id=b"a", traceparent=b"\xff"), b"x-tenant", b"\x00\xff", b"", b"", b"x-tenant", b"twice"]),
        (b"3-0", message(at=b"bad")),
    ]
    before = copy.deepcopy(rows)
    decode_many(MEDIUM, rows, repeat(1), "run", 0.0, 0)
    assert rows == before


# --- messages to send, and what any message says of itself -------------------------------------------------------------------


def test_what_a_sender_writes_is_what_a_worker_reads() -> None:
    fields = header("greet", id="o-1", version=2, exp_ms=7, key="ключ", attempts=3, group="g", source="shop")
    job = one(entry_fields(fields, b"{}"))
    expected = Envelope(id="o-1", version=2, exp_ms=7, key="ключ".encode(), group=b"g", attempts=3)
    assert (job.type, job.data, job.envelope) == (b"greet", b"{}", expected)
    assert dict(zip(job.fields[::2], job.fields[1::2], strict=True)).keys() == {
        *(b"id", b"v", b"exp", b"key", b"attempts", b"group", b"src", b"type", b"data")
    }


def test_a_message_without_options_has_type_and_data_alone() -> None:
    assert entry_fields(header("greet"), b"{}") == [b"type", b"greet", b"data", b"{}"]


def test_a_name_means_one_thing() -> None:
    names = (*SENT_FIELDS, *NOTED_FIELDS, *DEAD_FIELDS)
    assert len(set(names)) == len(names)


def test_a_summary_of_a_message_takes_what_it_says() -> None:
    assert summary(message(id=b"o-1", v=b"3", a=b"2")) == Summary(b"greet", "o-1", 3, 2)
    noted = {"first_at": b"17", "x-origin": b"o-0"}
    assert summary(message(**noted)) == Summary(b"greet", "", 1, 0, 17, "o-0")
    assert summary([*message(id=b"first"), b"id", b"second"]).id == "second"
    assert summary(message(a=b"2")).attempt == 3


@pytest.mark.parametrize("fields", [[], [b"v", b"0"], [b"v", b"x", b"a", b"-1"], [b"a", b"1" * 17, b"v", b""], [b"alone"]])
def test_a_summary_of_what_is_no_message_has_its_defaults(fields: list[bytes]) -> None:
    assert summary(fields) == Summary(b"", "", 1, 0)


def test_a_summary_shows_a_type_that_is_no_text() -> None:
    assert summary([b"type", b"\xff", b"id", b"\xfe"]).type_name == "\\xff"


def test_a_letter_is_read_apart_from_its_message() -> None:
    notes = {b"dead_reason": b"attempts", b"dead_error": b"E\xff", b"dead_attempts": b"8", b"dead_from": b"high/1-1"}
    death, fields = read_letter([*message(id=b"o-1"), *flat(notes | {b"dead_at": b"1700000000123"})])
    assert (death.reason, death.error, death.attempts, death.stood) == ("attempts", "E\\xff", 8, "high/1-1")
    assert (death.at_ms, death.stack, death.left_out) == (1_700_000_000_123, "", "")
    assert fields == {"type": "greet", "data": '{"name":"Ada"}', "id": "o-1"}


def test_a_letter_of_a_stranger_has_empty_notes() -> None:
    death, fields = read_letter([b"dead_attempts", b"many", b"dead_at", b"\xff", b"raw", b"\x00"])
    assert (death.reason, death.attempts, death.at_ms, fields) == ("", 0, 0, {"raw": "\x00"})


def test_a_record_is_read_by_its_stream_and_fields() -> None:
    job = one(message(id=b"o-1"))
    stream, fields = read_record(pack_record(Deferral(job, "retry", 1, job.id, 1)))
    assert stream == "medium"
    assert summary(fields) == Summary(b"greet", "o-1", 1, 1, 1)
    assert read_record(b"\xc0") == ("", [])


NAMES = st.sampled_from(
    [
        b"type", b"data", b"id", b"v", b"at", b"exp", b"key", b"keep", b"group", b"attempts", b"traceparent", b"src", b"x-a",
        b"x-origin", b"a", b"first_at", b"snoozed_at", b"ct",
    ]
)  # fmt: skip
VALUES = st.one_of(
    st.binary(max_size=40),
    st.integers(-5, 2**60).map(lambda number: b"%d" % number),
    st.sampled_from(
        [b"greet", b'{"name":"Ada"}', b"application/msgpack", b"application/json", b"\x81\xa4name\xa3Ada", b"1", b"order:17"]
    ),
)
PAIRS = st.tuples(NAMES | st.binary(max_size=10), VALUES)
FIELDS = st.lists(PAIRS, max_size=12).map(lambda pairs: [part for pair in pairs for part in pair])
READABLE = FIELDS.map(lambda fields: [*fields, *message()])


@given(st.lists(FIELDS | READABLE, max_size=4))
def test_whatever_is_in_the_fields_each_entry_becomes_a_job_or_a_bad_entry(rows: list[list[bytes]]) -> None:
    jobs, bad = read(*rows)
    assert len(jobs) + len(bad) == len(rows)
    assert all(entry.code in ("unreadable", "too-large") and entry.reason.isprintable() for entry in bad)
    for job in jobs:
        assert job.id
        assert job.attempt >= 1
        assert job.work
        assert job.born >= 0


# --- records -----------------------------------------------------------------------------------------------------------------

NOTED = (b"id", b"at", b"a", b"first_at", b"snoozed_at")


def pairs(fields: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(fields[::2], fields[1::2], strict=True))


@given(READABLE | st.just(message()), st.sampled_from(["retry", "snooze", "at"]), st.integers(0, 9))
def test_a_record_keeps_every_field_and_says_anew_what_became_of_the_job(fields: list[bytes], kind: str, failed: int) -> None:
    for job in read(fields)[0]:
        record = unpack_record(pack_record(Deferral(job, kind, 5, job.id, failed)))
        assert record[:4] == [b"stream", b"medium", b"id", job.id.encode()]
        kept = [pair for pair in pairs(fields) if pair[0] not in NOTED]
        assert pairs(record[4:])[: len(kept)] == kept
        again = one(record[2:])  # as the stream will have it
        assert (again.type, again.data, again.born) == (job.type, job.data, job.born)
        assert (again.id, again.envelope.failed, again.envelope.at_ms) == (job.id, failed, 0)
        first_snooze_ms = job.fetched_ms if kind == "snooze" else 0
        assert again.envelope.snoozed_ms == (job.envelope.snoozed_ms or first_snooze_ms)


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 65_535, 65_536])
def test_a_record_takes_texts_of_any_length_and_as_many_fields_as_a_message(size: int) -> None:
    fields = [*message(), *[part for n in range(MAX_FIELDS - 2) for part in (b"x-%d" % n, b"v" * (size if n == 7 else 1))]]
    record = unpack_record(pack_record(Deferral(one(fields), "retry", 5, "i", 1)))
    assert record[4 : 4 + len(fields)] == fields


PACKED = msgspec.msgpack.encode(["stream", "high", "id", "x" * 300, "data", "y" * 70_000])


def test_a_record_that_a_script_wrote_is_read_whatever_the_length_of_its_texts() -> None:
    assert unpack_record(PACKED) == [b"stream", b"high", b"id", b"x" * 300, b"data", b"y" * 70_000]
    assert read_record(PACKED) == ("high", [b"id", b"x" * 300, b"data", b"y" * 70_000])


@pytest.mark.parametrize(
    "packed",
    [
        *(b"", PACKED[:1], PACKED[:20], PACKED[:-1], b"\xc0", b"\xdc", b"\xdd\xff\xff\xff\xff", b"\xff"),
        *(b"\x90", b"\x91\xa1x", b"\x93\xa1x\xa1x\xa1x", b"\x92\xa1x\x01", b"\x92\xc0\xc0", b"\x81\xa1x\xa1x", b"\x92\xa1x\xd9"),
    ],
    ids=range(15),
)
def test_what_is_no_list_of_names_and_values_is_no_record(packed: bytes) -> None:
    assert unpack_record(packed) == []
    assert read_record(packed) == ("", [])


# --- payloads ----------------------------------------------------------------------------------------------------------------


@contract("greet")
class Greet(msgspec.Struct, kw_only=True):
    name: str = ""
    count: int = 0
    extra: Any = None


decode = payload_decoder(contract_of(Greet))


def payload(data: bytes, by: Callable[[Job], Any] = decode, **envelope: Any) -> Any:
    return by(builders.job("greet", ENTRY, stream=MEDIUM, data=data, **envelope))


def refused(data: bytes, by: Callable[[Job], Any] = decode, **envelope: Any) -> BadPayload:
    with pytest.raises(BadPayload) as caught:
        payload(data, by, **envelope)
    return caught.value


def test_json_becomes_the_contract() -> None:
    assert payload(b'{"name":"Ada","count":3,"extra":[1,{"a":null}]}') == Greet(name="Ada", count=3, extra=[1, {"a": None}])


def test_messagepack_becomes_the_contract() -> None:
    data = msgspec.msgpack.encode({"name": "Ada", "count": 3, "extra": b"\xff"})
    assert payload(data, is_msgpack=True) == Greet(name="Ada", count=3, extra=b"\xff")


def test_without_its_content_type_messagepack_is_not_guessed() -> None:
    assert refused(msgspec.msgpack.encode({"name": "Ada"})).code == "unreadable"


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b'{"name":7}', "$.name"),
        (b'{"count":"3"}', "$.count"),
        (b'{"count":1.5}', "$.count"),
        (b"[]", "object"),
        (b"null", "object"),
    ],
)
def test_a_payload_of_another_shape_is_bad_and_says_where(data: bytes, where: str) -> None:
    error = refused(data)
    assert error.code == "bad-payload"
    assert where in str(error)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b'{"name":"Ada"', b"{}{}", b"{} x", b"\x00", b"nul", b'{"extra":NaN}', b'{"extra":-Infinity}',
        b'{"name":"\xff"}', b'{"name":"\\ud800"}', b'{"name":"a\nb"}', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_what_is_no_json_is_unreadable(data: bytes) -> None:
    assert refused(data).code == "unreadable"


@pytest.mark.parametrize("data", [b"", b"\x81", b"\xc1", b"\x81\xa4name\xa1\xff", b"\x80\x80", b"\x81\xa5extra\x81\x80\x01"])
def test_what_is_no_messagepack_is_unreadable(data: bytes) -> None:
    assert refused(data, is_msgpack=True).code == "unreadable"


@pytest.mark.parametrize(
    "data",
    [b'{"count":' + b"9" * 10_000 + b"}", b'{"extra":' + b"9" * 10_000 + b"}", b'{"extra":1e999}', b'{"count":1e999}'],
)
def test_a_number_beyond_all_bounds_is_bad(data: bytes) -> None:
    refused(data)


def test_a_number_that_is_none_may_come_in_messagepack() -> None:
    extra = payload(msgspec.msgpack.encode({"extra": float("nan")}), is_msgpack=True).extra
    assert math.isnan(extra)


def test_unknown_fields_of_a_payload_are_let_pass() -> None:
    assert payload(b'{"name":"Ada","since":"v9"}') == Greet(name="Ada")


@contract("even")
class Even(msgspec.Struct):
    """A contract with a rule of its own, whose bugs are not the runtime's to raise."""

    number: int

    def __post_init__(self) -> None:
        if self.number % 2:
            raise ValueError("an even number, please")
        self.share = 100 // self.number


def test_a_contract_that_says_no_makes_the_payload_bad() -> None:
    assert "an even number, please" in str(refused(b'{"number":3}', payload_decoder(contract_of(Even))))


def test_a_contract_that_breaks_on_a_payload_makes_the_payload_bad() -> None:
    assert refused(b'{"number":0}', payload_decoder(contract_of(Even))).code == "bad-payload"


# --- depth and size ----------------------------------------------------------------------------------------------------------


def lists(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def empty_lists(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def objects(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


def mixed(levels: int) -> Any:
    value: Any = 1
    for level in range(levels):
        value = {"a": value} if level % 2 else [value]
    return value


SHAPES = pytest.mark.parametrize("shape", [lists, empty_lists, objects, mixed])
FORMATS = pytest.mark.parametrize(("encode", "is_msgpack"), [(msgspec.json.encode, False), (msgspec.msgpack.encode, True)])


@SHAPES
@FORMATS
def test_a_payload_may_be_nested_64_levels(shape: Callable[[int], Any], encode: Callable[[Any], bytes], is_msgpack: bool) -> None:
    extra = shape(MAX_DEPTH - 1)  # the payload itself is one level
    assert payload(encode({"extra": extra}), is_msgpack=is_msgpack).extra == extra


@FORMATS
def test_a_payload_may_be_wide_and_nested_64_levels(encode: Callable[[Any], bytes], is_msgpack: bool) -> None:
    extra = [lists(MAX_DEPTH - 2), *[[at] for at in range(100)]]
    assert payload(encode({"extra": extra}), is_msgpack=is_msgpack).extra == extra
    too_deep = [lists(MAX_DEPTH - 1), *extra]
    assert "64 levels" in str(refused(encode({"extra": too_deep}), is_msgpack=is_msgpack))


@SHAPES
@FORMATS
def test_a_payload_nested_deeper_than_64_levels_is_unreadable(
    shape: Callable[[int], Any], encode: Callable[[Any], bytes], is_msgpack: bool
) -> None:
    error = refused(encode({"extra": shape(MAX_DEPTH)}), is_msgpack=is_msgpack)
    assert error.code == "unreadable"
    assert "64 levels" in str(error)


@FORMATS
def test_a_wide_payload_is_not_taken_for_a_deep_one(encode: Callable[[Any], bytes], is_msgpack: bool) -> None:
    extra = [{"a": [at]} for at in range(1000)]
    assert payload(encode({"extra": extra}), is_msgpack=is_msgpack).extra == extra


@pytest.mark.parametrize("before", ["", '"', "\\", '\\"', '"\\\\', "é"])
@pytest.mark.parametrize(
    "brackets", ["[" * 100, "]" * 100, "[" * 100 + "]" * 100, "{" * 100 + "}" * 100, '["' * 100 + '"]' * 100]
)
def test_brackets_inside_of_strings_are_no_levels(before: str, brackets: str) -> None:
    text = before + brackets
    data = json.dumps({"name": text, "extra": [text]}, ensure_ascii=False).encode()
    assert payload(data) == Greet(name=text, extra=[text])


def test_brackets_after_a_string_that_ends_in_a_backslash_are_levels() -> None:
    data = b'{"name":"\\\\","extra":' + b"[" * 70 + b"]" * 70 + b"}"
    assert "64 levels" in str(refused(data))


@pytest.mark.parametrize(
    "data",
    [
        b"[" * MANY,
        b"{" * MANY,
        b'{"a":' * MANY,
        b"]" * MANY,
        b"[" * MANY + b"]" * MANY,
        b'{"extra":' + b"[" * MANY + b"]" * MANY + b"}",
        b'{"extra":' + b'{"a":' * MANY + b"1" + b"}" * MANY + b"}",
        b"[{" * MANY + b"}]" * MANY,
        b"[}" * MANY,
        b"[]" * MANY,
    ],
    ids=range(10),
)
def test_nesting_without_end_is_refused(data: bytes) -> None:
    refused(data)


@pytest.mark.parametrize("head", [b"", b"\x81\xa5extra"])
@pytest.mark.parametrize("opener", [b"\x91", b"\x81\xa1a", b"\x81"])
def test_messagepack_nested_without_end_is_refused(head: bytes, opener: bytes) -> None:
    refused(head + opener * MANY + b"\x01", is_msgpack=True)


@pytest.mark.parametrize(
    "data",
    [
        b'{"name":"' + b'\\"' * MANY,
        b'"' * MANY,
        b'\\"' * MANY,
        b'"\\' * MANY,
        b"[" * 100 + b'"' + b"\\" * (2 * MANY + 1),
        b'"[' * MANY,
    ],
    ids=range(6),
)
def test_strings_without_end_are_refused_in_linear_time(data: bytes) -> None:
    refused(b"[" * 65 + data)


def test_a_contracts_own_code_that_never_ends_makes_the_payload_unreadable() -> None:
    @contract("greet")
    class Endless(msgspec.Struct):
        name: str = ""

        def __post_init__(self) -> None:
            self.__post_init__()

    error = refused(b"{}", payload_decoder(contract_of(Endless)))
    assert (error.code, str(error)) == ("unreadable", TOO_DEEP)


# --- versions ----------------------------------------------------------------------------------------------------------------


def lift(version: int, plain: Any) -> Any:
    """Version 1 had `first` and `last`; version 2 had `name`, a list."""
    if version == 1:
        return {"name": f"{plain['first']} {plain['last']}"}
    return {"name": " ".join(plain["name"])}


@contract("greet", version=3, upcast=lift)
class Greet3(msgspec.Struct):
    name: str


decode3 = payload_decoder(contract_of(Greet3))


@FORMATS
def test_an_older_payload_is_lifted(encode: Callable[[Any], bytes], is_msgpack: bool) -> None:
    first = encode({"first": "Ada", "last": "Lovelace"})
    second = encode({"name": ["Ada", "Lovelace"]})
    for data, version in ((first, 1), (second, 2)):
        assert payload(data, decode3, version=version, is_msgpack=is_msgpack) == Greet3("Ada Lovelace")


@FORMATS
@pytest.mark.parametrize("version", [3, 4])
def test_a_payload_of_today_is_not_lifted(encode: Callable[[Any], bytes], is_msgpack: bool, version: int) -> None:
    assert payload(encode({"name": "Ada"}), decode3, version=version, is_msgpack=is_msgpack) == Greet3("Ada")


def test_a_message_without_a_version_is_of_the_first_whatever_else_it_carries() -> None:
    data = b'{"first":"Ada","last":"Lovelace"}'
    by_id = one(message(id=b"a", data=data))
    plain = one(message(data=data))
    assert decode3(by_id) == Greet3("Ada Lovelace")
    assert decode3(plain) == Greet3("Ada Lovelace")


def test_without_an_upcast_an_older_payload_must_fit_as_it_is() -> None:
    @contract("greet", version=3)
    class Loose(msgspec.Struct):
        name: str
        since: str = "today"

    by = payload_decoder(contract_of(Loose))
    assert payload(b'{"name":"Ada"}', by, version=1) == Loose("Ada")
    assert refused(b'{"first":"Ada"}', by, version=1).code == "bad-payload"


def test_an_upcast_that_raises_makes_the_payload_bad() -> None:
    error = refused(b'{"first":"Ada"}', decode3, version=1)
    assert error.code == "bad-payload"
    assert "version 1 could not be lifted: KeyError('last')" in str(error)


def test_an_upcast_that_gives_another_shape_makes_the_payload_bad() -> None:
    @contract("greet", version=2, upcast=lambda version, plain: 7)
    class Wrong(msgspec.Struct):
        name: str

    assert refused(b"{}", payload_decoder(contract_of(Wrong)), version=1).code == "bad-payload"


@FORMATS
def test_an_older_payload_nested_deeper_than_64_levels_is_unreadable(encode: Callable[[Any], bytes], is_msgpack: bool) -> None:
    assert refused(encode(lists(100)), decode3, version=1, is_msgpack=is_msgpack).code == "unreadable"


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * MANY, b'{"first":"\xff"}'], ids=range(4))
def test_an_older_payload_that_cannot_be_read_is_unreadable(data: bytes) -> None:
    assert refused(data, decode3, version=1).code == "unreadable"
    assert refused(b"\xc1" + data, decode3, version=1, is_msgpack=True).code == "unreadable"


# --- any payload at all ------------------------------------------------------------------------------------------------------

TEXTS = st.text('ab"\\[]{}\n\x00é€😀', max_size=6)
PLAIN_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
HEADS = st.sampled_from([b"", b'{"name":"', b'{"extra":', b'{"extra":[', b"\x81\xa5extra", b"\x83\xa4name\xa0\xa5extra"])
TAILS = st.sampled_from([b"", b"}", b'"}', b"]}"])


@given(PLAIN_VALUES)
def test_what_was_encoded_comes_back(extra: Any) -> None:
    assert payload(msgspec.json.encode({"extra": extra})).extra == extra
    assert payload(msgspec.msgpack.encode({"extra": extra}), is_msgpack=True).extra == extra


@given(HEADS, st.binary(max_size=80), TAILS, st.booleans(), st.integers(1, 3))
@example(b"", b"[" * 300, b"", False, 1)
@example(b"", b"\x91" * 300, b"", True, 1)
def test_any_bytes_give_a_payload_or_a_bad_payload(
    head: bytes, middle: bytes, tail: bytes, is_msgpack: bool, version: int
) -> None:
    for by in (decode, decode3):
        try:
            payload(head + middle + tail, by, is_msgpack=is_msgpack, version=version)
        except BadPayload as error:
            assert error.code in ("unreadable", "bad-payload")


@given(READABLE)
def test_any_message_that_is_a_job_gives_a_payload_or_a_bad_payload(fields: list[bytes]) -> None:
    for job in read(fields)[0]:
        try:
            assert isinstance(decode(job), Greet)
        except BadPayload as error:
            assert str(error)


# --- shapes: messages whose fields say nothing that an envelope would hold ----------------------------------------------------


def decoded(*pairs: tuple[bytes, bytes]) -> Job:
    found, bad = decode_many(1, [(b"1-1", [word for pair in pairs for word in pair])], [1], "run", 0.0, 1)
    assert not bad
    return found[0]


@given(st.permutations([(b"type", b"t"), (b"data", b"{}"), (b"traceparent", b"sent"), (b"src", b"web"), (b"x-a", b"b")]))
def test_fields_that_only_go_along_need_no_envelope_in_any_order(pairs: list[tuple[bytes, bytes]]) -> None:
    job = decoded(*pairs)
    assert job.envelope is PLAIN
    assert (job.type, job.data, job.trace) == (b"t", b"{}", b"sent")
    assert list(job.fields) == [word for pair in pairs for word in pair]


@pytest.mark.parametrize("name", [b"id", b"key", b"a", b"first_at", b"tried", b"group", b"ct"])
def test_each_field_that_an_envelope_holds_is_read(name: bytes) -> None:
    value = b"application/json" if name == b"ct" else b"1"
    job = decoded((b"type", b"t"), (b"data", b"{}"), (b"traceparent", b"sent"), (name, value))
    assert job.envelope is not PLAIN
    assert job.trace == b"sent"


def test_of_a_name_that_stands_twice_the_last_counts_whatever_else_there_is() -> None:
    job = decoded((b"type", b"t"), (b"src", b"web"), (b"data", b"{}"), (b"data", b"[]"), (b"type", b"u"))
    assert (job.type, job.data) == (b"u", b"[]")


def test_shapes_of_messages_are_remembered_within_a_bound_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_SHAPES", {})
    monkeypatch.setattr(codec, "_shapes_bytes", 0)
    for number in range(3000):
        job = decoded((b"type", b"t"), (b"data", b"{}"), (b"x-%d" % number + b"y" * 100, b"z"))
        assert (job.type, job.envelope) == (b"t", PLAIN)
    assert 0 < sum(len(name) for names in codec._SHAPES for name in names) <= 64 * 1024


@given(st.permutations([(b"type", b"t"), (b"data", b"{}"), (b"traceparent", b"sent")]), st.sampled_from([0, 51, 70]))
def test_a_message_that_has_but_a_context_more_is_read_in_any_order(pairs: list[tuple[bytes, bytes]], more: int) -> None:
    sent = [(name, value + b"x" * more if name == b"traceparent" else value) for name, value in pairs]
    job = decoded(*sent)
    assert job.envelope is PLAIN
    assert (job.type, job.data, job.trace) == (b"t", b"{}", b"sent" + b"x" * more)
    assert list(job.fields) == [word for pair in sent for word in pair]
