"""A search finds what a plain filter finds, whatever is written into the box."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from board.search import MAX_TERMS, MAX_VALUES, Search, Subject, Term, Unreadable, at_path, parse

JOB = Subject(
    type="sync-crm-data",
    id="crm-20940",
    names=("pay-3.902.x", "pay-3", "pay-3 · 902"),
    src="crm-hooks",
    group="acme",
    attempt=4,
    age_ms=90_000,
    error="HTTPStatusError: Client error '401 Unauthorized'",
    args='{"account":"acme","customer":4711,"big":12345678901234567890,"list":[{"a":"x y"}],"n":null}',
)


@pytest.mark.parametrize(
    ("text", "is_found"),
    [
        ("", True),
        ("type:sync-crm-data", True),
        ("type:sync-crm", False),
        ("type:sync-*", True),
        ("type:other,sync-crm-data", True),
        ("-type:sync-crm-data", False),
        ("-type:other", True),
        ("id:crm-20940", True),
        ("id:crm-2*", True),
        ("id:20940", False),
        ("owner:pay-3", True),
        ("owner:pay-1,pay-3*", True),
        ('owner:"pay-3 · 902"', True),
        ("src:crm-hooks group:acme", True),
        ("src:crm-hooks group:other", False),
        ("error:401", True),
        ("error:httpstatuserror", True),
        ("error:Timeout", False),
        ("args:customer=4711", True),
        ("args:customer=471", False),
        ("args:customer=471*", True),
        ("args:big=12345678901234567890", True),
        ("args:big=12345678901234567000", False),
        ('args:"list.0.a=x y"', True),
        ("args:n=null", True),
        ("args:list=x", False),
        ("args:ACME", True),
        ("-args:customer=4711", False),
        ("attempt>3", True),
        ("attempt>4", False),
        ("attempt<5", True),
        ("-attempt>3", False),
        ("age>1m", True),
        ("age>90", False),
        ("age>89s", True),
        ("age<2h", True),
        ("unauthorized", True),
        ("UNAUTHORIZED,nothing", True),
        ("-unauthorized", False),
        ("20940 4711", True),
        ("20940 nothing", False),
        ("http://x", False),
        ("401,403", True),
        ("type:", True),
        (",", True),
    ],
)
def test_what_is_written_finds_what_it_says(text: str, is_found: bool) -> None:
    assert parse(text).fits(JOB) is is_found


@pytest.mark.parametrize(
    "text", ["attempt>x", "attempt>3m", "age>", "age>-1", "age>5 weeks", "age>9999999999999s", "a " * (MAX_TERMS + 1)]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    if text == "age>5 weeks":
        assert parse(text).terms[0].number == 5000
        return
    with pytest.raises(Unreadable):
        parse(text)
    with pytest.raises(Unreadable):
        parse("type:" + ",".join("a" * (MAX_VALUES + 1)))


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("type:a id:b owner:c src:d group:e attempt>1 age>1", False),
        ("args:a", True),
        ("error:a", True),
        ("word", True),
        ("-word", True),
    ],
)
def test_values_of_messages_are_only_for_those_who_may_see_them(text: str, needs: bool) -> None:
    assert parse(text).needs_payload is needs


def test_what_may_not_be_seen_is_not_found() -> None:
    hidden = Subject(type="t", id="i")
    assert not parse("error:e").fits(hidden)
    assert not parse("args:a=1").fits(hidden)


def test_ids_and_owners_that_are_named_exactly_are_looked_up() -> None:
    assert parse("id:a,b type:x").only("id") == ("a", "b")
    assert parse("id:a*,b").only("id") == ()
    assert parse("-id:a").only("id") == ()


# --- against a filter that is written down plainly -----------------------------------------------------------------------------

WORDS = st.sampled_from(["a", "b", "ab", "abc", "B", "x-1", "4711", "é", "q r"])
PAYLOADS = st.dictionaries(
    st.sampled_from(["a", "b"]), st.integers(0, 99) | WORDS | st.dictionaries(st.just("c"), WORDS), max_size=2
)
SUBJECTS = st.builds(
    Subject,
    type=WORDS,
    id=WORDS,
    names=st.tuples(WORDS),
    src=WORDS,
    group=WORDS,
    attempt=st.integers(1, 5),
    age_ms=st.integers(0, 5000),
    error=WORDS,
    args=PAYLOADS.map(json.dumps) | PAYLOADS.map(lambda payload: json.dumps(payload, ensure_ascii=False)),
)
TERMS = st.tuples(
    st.sampled_from(["type", "id", "owner", "src", "group", "error", "args", ""]), st.lists(WORDS, min_size=1, max_size=3)
)


def naive(key: str, values: list[str], is_prefix: bool, job: Subject) -> bool:
    exact: dict[str, str] = {"type": job.type, "id": job.id, "owner": job.names[0], "src": job.src, "group": job.group}
    if key in exact:
        return any(exact[key].startswith(value) if is_prefix else exact[key] == value for value in values)
    texts = {"error": [job.error], "args": [job.args], "": [job.type, job.id, job.args, job.error]}[key]
    return any(value.lower() in str(text).lower() for value in values for text in texts)


@given(st.lists(st.tuples(TERMS, st.booleans(), st.booleans()), max_size=4), SUBJECTS)
def test_a_search_finds_what_a_naive_filter_finds(terms: list[Any], job: Subject) -> None:
    said, expected = [], True
    for (key, values), is_not, is_prefix in terms:
        written = ",".join(f'"{value}"{"*" if is_prefix else ""}' for value in values)
        said.append(f"{'-' if is_not else ''}{key}{':' if key else ''}{written}")
        expected &= naive(key, values, is_prefix, job) is not is_not
    search = parse(" ".join(said))
    assert search.fits(job) is expected
    assert search.may_fit(job, str(job.args)) or not expected


@given(PAYLOADS)
def test_a_path_finds_what_stands_there(payload: dict[str, Any]) -> None:
    text = json.dumps(payload)
    for key, value in payload.items():
        if isinstance(value, dict):
            assert at_path(text, f"{key}.c") == ([value["c"]] if value else [])
        else:
            assert at_path(text, key) == [str(value)]


@given(st.text(max_size=1000))
def test_nothing_that_is_written_breaks_it(text: str) -> None:
    try:
        search = parse(text)
    except Unreadable:
        return
    search.fits(JOB)
    assert isinstance(search, Search)


def test_an_empty_search_is_of_all() -> None:
    assert parse("  ").terms == ()
    assert Search((Term("type", ("a",)),)).fits(Subject(type="a"))
