"""Whether a payload fits is told by line, repeats no value, and ends, whatever the payload and the schema are."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from board.fits import MAX_PROBLEMS, is_checked_whole, problems_of
from board.jsontext import indented
from board.redact import redact_json


class Person(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=2)]
    age: Annotated[int, msgspec.Meta(ge=0, le=150)] = 0
    kind: str | None = None


class Pay(msgspec.Struct):
    amount: int
    who: Person
    tags: list[str] = []


SCHEMA = msgspec.json.schema(Pay)


def told(payload: Any, schema: Any = SCHEMA) -> list[tuple[str, int, str]]:
    text = payload if isinstance(payload, str) else json.dumps(payload)
    return [(one.path, one.line, one.text) for one in problems_of(text, schema, indented(text))]


def test_what_fits_has_no_problems() -> None:
    assert told({"amount": 1, "who": {"name": "ada"}}) == []
    assert told({"amount": 2**70, "who": {"name": "ada", "kind": None}, "more": 1}) == []


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        ({"amount": "1", "who": {"name": "ada"}}, ("amount", 2, "must be integer")),
        ({"amount": 1}, ("", 1, "lacks who")),
        ({"amount": 1, "who": {"name": "ada", "age": 151}}, ("who.age", 5, "must be at most 150")),
        ({"amount": 1, "who": {"name": "a"}}, ("who.name", 4, "must have at least as many characters as 2")),
        ({"amount": 1, "who": {"name": "ada", "x": 1}}, ("who", 3, "has members that the contract does not know")),
        ({"amount": 1, "who": {"name": "ada", "kind": 5}}, ("who.kind", 5, "must be string or null")),
        ({"amount": 1, "who": {"name": "ada"}, "tags": ["a", 5]}, ("tags.1", 8, "must be string")),
        ("[]", ("", 1, "must be object")),
        ('{"amount": 1,\n"who": }', ("", 2, "no JSON: '}' is not expected here")),
        ("", ("", 1, "no JSON: ends too early")),
        ('{"amount": ' + "9" * 500 + ', "who": {"name": "ada"}}', ("", 0, "has a number of more than 400 digits")),
    ],
)
def test_a_problem_says_where_and_what_is_wanted(payload: Any, problem: tuple[str, int, str]) -> None:
    found = told(payload)
    assert len(found) == 1
    assert found[0][:2] == problem[:2]
    assert found[0][2].startswith(problem[2])


def test_lines_are_those_of_the_text_that_is_shown() -> None:
    text = '{"token": {"a": [1, 2, 3]}, "amount": "x", "who": {"name": "ada"}}'
    shown = indented(redact_json(text)[0])
    assert [one.line for one in problems_of(text, SCHEMA, shown)] == [3]
    assert [one.line for one in problems_of(text, SCHEMA)] == [1]


def test_no_problem_repeats_a_value() -> None:
    schema: Any = {
        "properties": {"a": {"type": "integer"}, "b": {"enum": [1]}, "c": {"const": 1}, "d": {"maxLength": 2}, "e": {"not": {}}}
    }
    found = told(dict.fromkeys("abcde", "hunter2-XyZ"), schema)
    assert len(found) == 5
    assert "hunter2" not in str(found)


def test_only_so_many_are_told() -> None:
    assert len(told({"amount": 1, "who": {"name": "ada"}, "tags": [1] * 500})) == MAX_PROBLEMS


DEEP: Any = {
    "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(40)} | {"40": {}},
    "$ref": "#/$defs/0",
}


@pytest.mark.parametrize(
    "schema",
    [
        DEEP,
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"$ref": "http://127.0.0.1:1/x"},
        {"$ref": "#/nowhere"},
        {"$dynamicRef": "#x"},
        {"pattern": "(a+)+$"},
        {"patternProperties": {"(a+)+$": False}},
        {"properties": 5},
        {"type": 7},
        {"type": ["x", 3]},
        {"required": 5},
        {"anyOf": 5},
        {"enum": 5},
        {"type": [True]},
        {"multipleOf": 0},
        {"minimum": "x"},
        {"items": {"$ref": "file:///etc/passwd"}},
    ],
)
def test_any_schema_comes_to_an_end_and_asks_nobody(schema: Any) -> None:
    for payload in ("a" * 60 + "!", {"a" * 60 + "!": 1}, [1, 2], 5, 2.5):
        problems_of(json.dumps(payload), schema)


def test_items_that_repeat_are_found_in_their_own_time() -> None:
    items: list[Any] = [{"n": n} for n in range(20_000)]
    assert told(items, {"uniqueItems": True}) == []
    assert [one[2] for one in told([*items, {"n": 5}], {"uniqueItems": True})] == ["has an item twice"]


SCHEMAS = st.recursive(
    st.sampled_from([{}, True, False, None, 5, {"type": "string"}, {"minimum": 3}, {"$ref": "#"}]),
    lambda inner: st.dictionaries(
        st.sampled_from(
            ["properties", "items", "allOf", "anyOf", "not", "type", "enum", "required", "$ref", "$defs", "uniqueItems"]
        ),
        inner | st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
        max_size=3,
    ),
    max_leaves=8,
)


@settings(max_examples=200)
@given(SCHEMAS, st.text(max_size=30) | st.sampled_from(['{"a":[1,{"b":2}]}', "[[1],[1]]", '"x"', "1e400", "-0", "NaN"]))
def test_nothing_breaks_it(schema: Any, text: str) -> None:
    if isinstance(schema, dict):
        problems_of(text, schema)
        is_checked_whole(schema)


def test_what_is_not_tried_is_known() -> None:
    assert is_checked_whole(SCHEMA)
    assert not is_checked_whole({"properties": {"a": {"pattern": "x"}}})
