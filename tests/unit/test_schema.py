"""Contracts as JSON Schema: one document that producers in other languages can read, and that two versions can compare."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Backoff, Job, Priority, Secret, contract, handler
from runtime.jobs import Contract, contract_of
from runtime.schema import MAX_CONTRACT_BYTES, Declared, declared, json_schemas, read_declared


class Address(msgspec.Struct, frozen=True):
    street: str


@contract("send-parcel", version=3, priority=Priority.CRITICAL)
class SendParcel(msgspec.Struct, frozen=True, kw_only=True):
    to: Address
    weight_g: Annotated[int, msgspec.Meta(ge=1)] = 1


@contract("move-house", priority=Priority.LOW)
class MoveHouse(msgspec.Struct, frozen=True, kw_only=True):
    old: Address
    new: Address


def contracts() -> list[Contract]:
    return [contract_of(SendParcel), contract_of(MoveHouse)]


def test_each_type_has_its_version_its_priority_and_the_schema_of_its_payload():
    document = json_schemas(contracts())
    parcel = document["jobs"]["send-parcel"]
    assert (parcel["version"], parcel["priority"]) == (3, "critical")
    assert document["jobs"]["move-house"]["priority"] == "low"
    payload = document["$defs"][parcel["payload"]["$ref"].removeprefix("#/$defs/")]
    assert payload["required"] == ["to"]
    assert payload["properties"]["weight_g"] == {"type": "integer", "minimum": 1, "default": 1}


def test_what_two_contracts_share_stands_once_where_both_refer_to_it():
    document = json_schemas(contracts())
    assert set(document["$defs"]) == {"SendParcel", "MoveHouse", "Address"}
    places = document["$defs"]["MoveHouse"]["properties"]
    assert places["old"] == places["new"] == document["$defs"]["SendParcel"]["properties"]["to"] == {"$ref": "#/$defs/Address"}


def test_the_document_is_the_same_in_whichever_order_contracts_were_found():
    one, other = (json.dumps(json_schemas(found)) for found in (contracts(), contracts()[::-1]))
    assert one == other
    assert list(json.loads(one)["jobs"]) == ["move-house", "send-parcel"]


def test_without_a_contract_the_document_says_which_schema_it_follows():
    assert json_schemas([]) == {"$schema": "https://json-schema.org/draft/2020-12/schema", "jobs": {}, "$defs": {}}


# --- what a worker writes down of its contracts ------------------------------------------------------------------------------


@contract("take-parcel", version=3, priority=Priority.HIGH)
class TakeParcel(msgspec.Struct, frozen=True, kw_only=True):
    to: Address
    pin: Annotated[str | None, Secret] = None


@handler(TakeParcel, timeout_s=7.5, retry=Backoff(base_s=2, cap_s=30, attempts=4), limit=5, rate="10/m")
async def take(message: TakeParcel, job: Job) -> None:
    """Take a parcel

    to where it belongs.
    """


class Odd:
    """What a decorator may leave in a function's place."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_what_stands_in_the_place_of_a_function_costs_its_line_and_no_more():
    one = declared(dataclasses.replace(take, function=Odd()), "", "", 0)
    assert (one.type, one.location, one.doc) == ("take-parcel", "", "")
    assert read_declared(one.field, bytes(one)) == one


def test_the_name_of_a_file_may_hold_other_bytes_than_text():
    def strange(message: TakeParcel, job: Job) -> None: ...

    strange.__code__ = strange.__code__.replace(co_filename="/srv/caf\udce9/jobs.py")
    strange.__doc__ = "Caf\udce9."
    one = declared(dataclasses.replace(take, function=strange), "", "", 0)
    assert (one.location.partition(":")[0], one.doc) == ("caf?/jobs.py", "Caf?.")
    assert read_declared(one.field, bytes(one)) == one


def test_a_contract_is_read_as_it_was_written():
    one = declared(take, "1.4.2", "host-1", 17)
    assert one.field == "take-parcel@3"
    assert read_declared(one.field, bytes(one)) == one
    told = json.loads(bytes(one))
    assert told["schema"]["$defs"]["TakeParcel"]["properties"]["pin"]["writeOnly"] is True
    assert "writeOnly" not in told["schema"]
    assert {name: value for name, value in told.items() if name not in ("schema", "location")} == {
        "priority": "high",
        "timeout_s": 7.5,
        "attempts": 4,
        "retry_base_s": 2.0,
        "retry_cap_s": 30.0,
        "limits": {"limit": 5, "rate": "10/m"},
        "doc": "Take a parcel",
        "app": "1.4.2",
        "by": "host-1",
        "at_ms": 17,
    }
    line = take.function.__code__.co_firstlineno
    assert told["location"] == f"unit/test_schema.py:{line}"


class Own:
    """A type of which msgspec knows no schema."""


class Loop(msgspec.Struct):
    inner: Loop | None = None
    many: list[Loop] = []


class Card(msgspec.Struct):
    number: str
    loop: Loop | None = None


def declared_of(annotation: Any, function: Any = take.function) -> Declared:
    payload = msgspec.defstruct("Paid", [("a", annotation)])
    return declared(handler(contract("paid")(payload))(function), "", "", 0)


@pytest.fixture
def plain_function() -> Any:
    async def run(message: Any, job: Any) -> None:
        pass

    run.__annotations__ = {}
    return run


Hidden: Any = Annotated[Card, Secret]
Word: Any = Annotated[str, Secret]


@pytest.mark.parametrize("annotation", [Hidden | None, list[Hidden | int], dict[str, Hidden | None]])
def test_where_the_mark_of_a_secret_is_lost_all_of_the_payload_is_secret(annotation: Any, plain_function: Any):
    schema = json.loads(declared_of(annotation, plain_function).schema)
    assert "writeOnly" not in json.dumps(schema["$defs"]), "else this need not be told"
    assert schema["writeOnly"] is True


@pytest.mark.parametrize("annotation", [Hidden, Annotated[Card | None, Secret], Word | None, list[Hidden]])
def test_where_the_mark_is_kept_the_rest_is_not_secret(annotation: Any, plain_function: Any):
    schema = json.loads(declared_of(annotation, plain_function).schema)
    assert "writeOnly" in json.dumps(schema["$defs"])
    assert "writeOnly" not in schema


def test_another_mark_in_a_union_makes_nothing_secret(plain_function: Any):
    told: Any = Annotated[Card, msgspec.Meta(extra={"a": 1})]
    assert "writeOnly" not in declared_of(told | None, plain_function).schema != ""


def test_a_contract_without_a_schema_and_one_whose_schema_is_too_long_are_written_without(plain_function: Any):
    assert declared_of(Own, plain_function).schema == ""
    long = msgspec.structs.replace(declared(take, "", "", 0), schema='{"description":"' + "x" * MAX_CONTRACT_BYTES + '"}')
    assert len(bytes(long)) < 1000
    read = read_declared(long.field, bytes(long))
    assert read is not None
    assert (read.schema, read.timeout_s) == ("", 7.5)


@pytest.mark.parametrize("doc", [None, 7, "", "\x00\n\n", "a\tb  c\nd", "x" * 999])
def test_of_a_docstring_the_first_line_is_told_whatever_it_is(doc: Any, plain_function: Any):
    plain_function.__doc__ = doc
    told = declared_of(int, plain_function).doc
    assert told in ("", "\x00", "a b c", "x" * 200)


GOOD = b'{"priority":"low"}'


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("", GOOD),
        ("t", GOOD),
        ("t@", GOOD),
        ("t@x", GOOD),
        ("t@-1", GOOD),
        ("t@\u0663", GOOD),
        ("T@1", GOOD),
        ("t@" + "9" * 5000, GOOD),
        ("t@1", b""),
        ("t@1", b"{"),
        ("t@1", b"[]"),
        ("t@1", b"\xff"),
        ("t@1", b'{"priority":"urgent"}'),
        ("t@1", b'{"priority":"low","attempts":-1}'),
        ("t@1", b'{"priority":"low","timeout_s":"7"}'),
        ("t@1", b'{"priority":"low","limits":' + b"[" * 30_000),
        ("t@1", b'{"priority":"low","limits":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001),
        ("t@1", b'{"priority":"low","schema":7}'),
        ("t@1", b'{"priority":"low","schema":{' + b" " * MAX_CONTRACT_BYTES + b"}}"),
    ],
)
def test_what_a_stranger_wrote_in_the_place_of_a_contract_is_none(field: str, text: bytes):
    assert read_declared(field, text) is None
    assert read_declared("t@1", GOOD) == Declared(type="t", version=1, priority="low")


def test_what_a_newer_release_adds_is_passed_over():
    assert read_declared("t@2", b'{"priority":"low","colour":[1]}') == Declared(type="t", version=2, priority="low")


@given(st.text(max_size=30), st.binary(max_size=200))
def test_no_bytes_in_the_place_of_a_contract_do_harm(field: str, text: bytes) -> None:
    read_declared(field, text)
