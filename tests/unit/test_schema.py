"""Contracts as JSON Schema: one document that producers in other languages can read, and that two versions can compare."""

from __future__ import annotations

import json
from typing import Annotated

import msgspec

from runtime import Priority, contract
from runtime.jobs import Contract, contract_of
from runtime.schema import json_schemas


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
