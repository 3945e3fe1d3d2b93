"""Which letters died of the same: pairs that must join or part, and texts that nobody thought of."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from board.fingerprint import MAX_TOLD, cause_of, short_frame, split_error, told_of

JOIN = [
    ("no row for order 4711", "no row for order 99"),
    ("no row for order 4711 of customer ada@example.com", "no row for order 4 of customer bob.b@mail.example.org"),
    ("KeyError: 'customer'", "KeyError: 'account'"),
    ('no column "a b"', 'no column "c"'),
    ("value 'it was cut he", "value 'it was cut elsew"),
    (
        "Client error '401 Unauthorized' for url 'https://crm.example.com/v3/contacts?since=2026-11-25'",
        "Client error '401 Unauthorized' for url 'https://crm.example.com/v3/contacts?since=2026-11-26'",
    ),
    ("https://a.example/orders/17/lines", "https://a.example/orders/18/lines"),
    ("https://ann:pw@a.example/x", "https://bob:other@a.example/x"),
    ("https://api-3.example.com/x", "https://api-17.example.com/x"),
    ("https://a.example/x#part-1", "https://a.example/x#part-2"),
    ("https://a.example/x?token=abc&page=2", "https://a.example/x?token=xyz&page=3"),
    ("could not open /var/data/2026/11/25/imp-88213.csv", "could not open /var/data/2026/11/24/imp-1.csv"),
    ("cannot read '/srv/in/88/a'", "cannot read '/srv/in/89/a'"),
    ("task 4bf92f35-77aa-4aaa-8bbb-0e4736aaaaaa failed", "task 00000000-77aa-4bbb-8bbb-0e4736bbbbbb failed"),
    ("object deadbeefcafe1234 is gone", "object 0123456789abcdef is gone"),
    ("object 0x7f3a10 is gone", "object 0x7f3b20 is gone"),
    ("customer cus_9XyZ has no card", "customer cus_1AbC has no card"),
    ("job crm-20931 is late", "job crm-20927 is late"),
    ("after 30.5 s", "after 1,204.25 s"),
    ("at 2026-11-25T10:00:00.123Z", "at 2026-11-26T23:59:59Z"),
    ("Process 123 waits for 456; blocked by 789", "Process 1 waits for 2; blocked by 3"),
    ("Connection to 10.0.0.12:5432 refused", "Connection to 10.0.0.13:5432 refused"),
    ("two\nlines", "two  lines"),
    ("x" * 130 + " one", "x" * 130 + " another"),
]
PART = [
    ("Client error '401 Unauthorized' for url 'https://a.example/'", "Client error '404 Not Found' for url 'https://a.example/'"),
    ("status code 503", "status code 429"),
    ("HTTP 404", "HTTP 500"),
    ("error: 500 Internal", "error: 403 Forbidden"),
    ("https://a.example/orders/17", "https://a.example/invoices/17"),
    ("https://a.example/v2/orders", "https://a.example/v3/orders"),
    ("https://a.example/x", "https://b.example/x"),
    ("https://a.example/x?page=1", "https://a.example/x?token=1"),
    ("could not open /var/data/a", "could not open /var/spool/a"),
    ("connection refused", "connection reset"),
    ("can't find it", "can't read it"),
    ("`id` is not 1 to 128", "`key` is not 1 to 128"),
    ("", "something"),
]


def test_a_status_stays_where_it_stands_with_its_words() -> None:
    assert told_of("401 Unauthorized for https://a.example/x/17") == "401 Unauthorized for https://a.example/x/…"
    assert told_of("401 things are left") == "… things are left"


@pytest.mark.parametrize(("one", "other"), JOIN)
def test_the_same_cause_joins(one: str, other: str) -> None:
    assert told_of(one) == told_of(other)


@pytest.mark.parametrize(("one", "other"), PART)
def test_another_cause_parts(one: str, other: str) -> None:
    assert told_of(one) != told_of(other)


WHOLE = {"type_name": "t", "reason": "attempts", "error": "E: x", "frame": "/srv/a/shop/crm.py:7 fetch", "has_stack": True}


@pytest.mark.parametrize(
    "other",
    [{"type_name": "u"}, {"reason": "timeout"}, {"error": "F: x"}, {"error": "E: y"}, {"frame": "/srv/a/shop/crm.py:7 send"}],
)
def test_type_reason_class_message_and_frame_all_count(other: dict[str, str]) -> None:
    assert cause_of(**WHOLE).fp != cause_of(**WHOLE | other).fp


@pytest.mark.parametrize("frame", ["/srv/b/shop/crm.py:7 fetch", "/srv/a/shop/crm.py:9 fetch"])
def test_neither_line_nor_folder_of_an_application_parts(frame: str) -> None:
    assert cause_of(**WHOLE).fp == cause_of(**WHOLE | {"frame": frame}).fp


@pytest.mark.parametrize(
    ("reason", "error", "has_stack", "split"),
    [
        ("attempts", "KeyError: 'a'", True, ("KeyError", "'a'")),
        ("attempts", "TimedOut", True, ("TimedOut", "")),
        ("attempts", "KeyError: 'a'", False, ("", "KeyError: 'a'")),
        ("bad-payload", "Ada: no such name", True, ("", "Ada: no such name")),
        ("attempts", "ada: no such name", True, ("", "ada: no such name")),
        ("attempts", "no such name", True, ("", "no such name")),
    ],
)
def test_a_class_is_told_where_a_handler_has_raised_it(reason: str, error: str, has_stack: bool, split: tuple[str, str]) -> None:
    assert split_error(reason, error, has_stack=has_stack) == split


def test_a_frame_is_short() -> None:
    assert short_frame("/srv/app/shop/crm.py:7 fetch") == "shop/crm.py:7 fetch"
    assert short_frame("C:\\app\\shop\\crm.py:7 fetch") == "shop/crm.py:7 fetch"
    assert short_frame("no frame") == "no frame"


@given(st.text() | st.text(alphabet="a1'\"/:@-.?= \n", max_size=3000))
def test_any_text_has_a_short_fingerprint_without_numbers_in_its_words(text: str) -> None:
    cause = cause_of("t", "attempts", text, text, has_stack=True)
    assert re.fullmatch("[0-9a-f]{16}", cause.fp)
    assert len(cause.told) <= MAX_TOLD and "\n" not in cause.told


@pytest.mark.parametrize("unit", ["a", "a-", "1", "'", '"', "/", "/a", "a1-", "a@", "a.", "http://", "status ", "_a", "f", "4-"])
def test_no_text_takes_long(unit: str) -> None:
    """Where a pattern went back and forth over these, a step of 50 letters would stop the board for seconds: this would hang."""
    for _ in range(200):
        told_of(unit * 1000)
