"""The pages of types: about how many wait, what rules hold, and a payload to begin with."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from board.api import Refused
from board.contracts import Contracts, contract_in
from board.fits import problems_of
from board.jobs import Reads
from board.sampler import Sampler
from board.shapes import Nothing, TypeAsk
from board.types import LOOKED_AT, TypesPage, example_of, policy_of
from board.viewer import Viewer
from runtime.store.events import Events
from runtime.store.lists import JobLists
from tests.servers import Server

READER = Viewer("ben", frozenset(("view", "payload")))


class Person(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=2)]
    boss: Person | None = None


class Pay(msgspec.Struct):
    amount: Annotated[int, msgspec.Meta(gt=3)]
    who: Person
    tags: Annotated[list[str], msgspec.Meta(min_length=1)]
    kind: str = "card"


SCHEMA = msgspec.json.schema(Pay)
TOLD = {"timeout_s": 30, "attempts": 5, "priority": "low", "retry_base_s": 1.0, "retry_cap_s": 60, "schema": SCHEMA}
CONTRACTS = {"pay@2": json.dumps(TOLD), "pay@1": "{}"}


@pytest.fixture
async def page(valkey: Server) -> AsyncIterator[TypesPage]:
    lists, sampler, events = JobLists(valkey.url, "jobs"), Sampler(valkey.url, "jobs"), Events(valkey.url, "jobs")

    async def read() -> dict[str, str]:
        return CONTRACTS

    yield TypesPage(sampler, Reads(lists, events, Contracts(read)))
    await sampler.close()
    await lists.close()
    await events.close()


async def test_about_how_many_wait_of_each_type(page, valkey):
    raw = valkey.client()
    pipe = raw.pipeline()
    for at in range(3 * LOOKED_AT):
        pipe.xadd("{jobs}:low", {"type": "pay" if at % 3 else "mail", "data": "{}"})
    pipe.xadd("{jobs}:high", {"type": "mail", "data": "{}"})
    pipe.execute()
    raw.close()
    rows = {row.type: row.waiting for row in (await page.types(Nothing(), READER)).types}
    assert abs(rows["mail"] - LOOKED_AT) <= 10
    assert abs(rows["pay"] - 2 * LOOKED_AT) <= 10


async def test_a_type_has_its_rules_its_schema_and_an_example(page):
    found = await page.type(TypeAsk(type="pay"), READER)
    assert (found.version, found.pri, found.is_paused) == (2, "low", False)
    told = {fact.name: fact.text for fact in found.policy}
    assert (told["timeout"], told["pauses between attempts"]) == ("30 s", "from 1 s to 1 m")
    assert json.loads(found.schema) == SCHEMA
    assert problems_of(found.example, SCHEMA) == []
    assert len(found.series.done) == 60


async def test_a_type_of_which_nobody_knows_is_not_found(page):
    with pytest.raises(Refused) as refused:
        await page.type(TypeAsk(type="nothing"), READER)
    assert refused.value.status == 404


def test_an_example_has_what_is_asked_for() -> None:
    assert example_of(msgspec.json.schema(Pay)) == {"amount": 4, "who": {"name": "xx"}, "tags": [""]}
    assert example_of(None) == {}


NODES = st.recursive(
    st.sampled_from(
        [{}, None, 5, {"type": "string"}, {"$ref": "#"}, {"type": ["integer"]}, {"enum": []}, {"type": "array", "minItems": 1}]
    ),
    lambda inner: st.dictionaries(
        st.sampled_from(["properties", "items", "anyOf", "type", "enum", "required", "$ref", "minLength", "minimum", "limits"]),
        inner | st.lists(inner, max_size=3) | st.just(["a", "b"]) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_size=4,
    ),
    max_leaves=9,
)


@given(NODES)
def test_any_schema_has_an_example(node: Any) -> None:
    json.dumps(example_of(node))
    contract = contract_in("t@1", json.dumps(node))
    if contract is not None:
        policy_of(contract)
