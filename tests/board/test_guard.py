"""What is checked of each request, whoever sends it: the name it is asked by, the page it comes from, how often."""

from __future__ import annotations

import pytest

from board.api import Refused
from board.guard import (
    ACTIONS_S,
    HEADERS,
    MAX_ADDRESSES,
    REQUESTS_S,
    TRIES,
    Hosts,
    Limiter,
    check_acting,
    check_reading,
    host_of,
    is_loopback,
    network_of,
)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("a.example", "a.example"),
        ("A.Example:8080", "a.example"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]", "::1"),
        ("[::1]:8080", "::1"),
        ("", ""),
        ("a:b", ""),
        ("a:8080@evil", ""),
        ("evil@127.0.0.1", "evil@127.0.0.1"),
        ("127.0.0.1:80:80", ""),
        ("[::1]evil", ""),
        ("[::1", ""),
    ],
)
def test_a_host_is_a_name_and_perhaps_a_port(host: str, name: str) -> None:
    assert host_of(host) == name


@pytest.mark.parametrize(
    ("bound", "more", "host", "is_ours"),
    [
        ("127.0.0.1", (), "127.0.0.1:8080", True),
        ("127.0.0.1", (), "localhost", True),
        ("127.0.0.1", (), "LOCALHOST:99", True),
        ("127.0.0.1", (), "[::1]:8080", True),
        ("127.0.0.1", (), "", False),
        ("127.0.0.1", (), "evil.example", False),
        ("127.0.0.1", (), "127.0.0.1.evil.example", False),
        ("127.0.0.1", (), "localhost.evil", False),
        ("127.0.0.1", (), "10.1.2.3", False),
        ("127.0.0.1", ("Jobs.Example",), "jobs.example:443", True),
        ("10.1.2.3", (), "10.1.2.3:8080", True),
        ("0.0.0.0", (), "10.1.2.3:8080", True),
        ("0.0.0.0", (), "evil.example", False),
        ("::", (), "[fe80::1]:8080", True),
    ],
)
def test_the_pages_are_asked_for_by_their_names_alone(bound: str, more: tuple[str, ...], host: str, is_ours: bool) -> None:
    hosts = Hosts(bound, more)
    if is_ours:
        hosts.check(host)
    else:
        with pytest.raises(Refused) as refused:
            hosts.check(host)
        assert refused.value.status == 421


JSON = {"Content-Type": "application/json", "Host": "a.example:8080"}


@pytest.mark.parametrize(
    ("headers", "is_bearer", "status"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, False, 0),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "application/json; charset=utf-8"}, False, 0),
        ({"Origin": "http://a.example:8080"}, False, 0),
        ({"Origin": "https://A.example:8080"}, False, 0),
        ({}, True, 0),
        ({}, False, 403),
        ({"Sec-Fetch-Site": "cross-site"}, False, 403),
        ({"Sec-Fetch-Site": "same-site"}, False, 403),
        ({"Sec-Fetch-Site": "none"}, False, 403),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://a.example:8080"}, False, 403),
        ({"Sec-Fetch-Site": "cross-site"}, True, 403),
        ({"Origin": "http://evil.example"}, False, 403),
        ({"Origin": "http://evil.example"}, True, 403),
        ({"Origin": "http://a.example"}, False, 403),
        ({"Origin": "null"}, False, 403),
        ({"Origin": ""}, False, 403),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"}, False, 415),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}, False, 415),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": "application/jsonp"}, False, 415),
        ({"Sec-Fetch-Site": "same-origin", "Content-Type": ""}, True, 415),
        ({"Sec-Fetch-Site": "same-origin", "Content-Encoding": "gzip"}, False, 415),
    ],
)
def test_a_post_comes_from_our_page_or_shows_its_token(headers: dict[str, str], is_bearer: bool, status: int) -> None:
    if not status:
        check_acting(JSON | headers, is_bearer=is_bearer)
        return
    with pytest.raises(Refused) as refused:
        check_acting(JSON | headers, is_bearer=is_bearer)
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("site", "may"),
    [(None, True), ("none", True), ("same-origin", True), ("same-site", False), ("cross-site", False), ("", False)],
)
def test_pages_of_other_sites_may_not_read(site: str | None, may: bool) -> None:
    headers = {} if site is None else {"Sec-Fetch-Site": site}
    if may:
        check_reading(headers)
    else:
        with pytest.raises(Refused, match="other sites"):
            check_reading(headers)


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def taken(limiter: Limiter, kind: str, address: str, most: int = 1000) -> int:
    for count in range(most):
        try:
            limiter.take(kind, address)  # pyright: ignore[reportArgumentType]
        except Refused as error:
            assert error.status == 429
            return count
    return most


@pytest.mark.parametrize(("kind", "rate"), [("requests", int(REQUESTS_S)), ("actions", int(ACTIONS_S))])
def test_an_address_may_ask_so_often_in_a_second(kind: str, rate: int) -> None:
    clock = Clock()
    limiter = Limiter(clock)
    assert taken(limiter, kind, "10.0.0.1") == rate
    assert taken(limiter, kind, "10.0.0.2") == rate, "another address has its own"
    clock.now_s += 0.5
    assert abs(taken(limiter, kind, "10.0.0.1") - rate // 2) <= 1
    clock.now_s += 100
    assert taken(limiter, kind, "10.0.0.1") == rate, "a rest earns no more than a second's"


def test_requests_and_actions_are_counted_apart() -> None:
    limiter = Limiter(Clock())
    assert taken(limiter, "actions", "a") == ACTIONS_S
    assert taken(limiter, "requests", "a") == REQUESTS_S


def test_who_fails_to_log_in_waits_for_a_minute_and_others_do_not() -> None:
    clock = Clock()
    limiter = Limiter(clock)
    for _ in range(TRIES):
        limiter.check_tries("10.0.0.1")
        limiter.count_try("10.0.0.1")
    with pytest.raises(Refused, match="minute"):
        limiter.check_tries("10.0.0.1")
    limiter.check_tries("10.0.0.2")
    clock.now_s += 60
    for _ in range(TRIES):
        limiter.check_tries("10.0.0.1")
        limiter.count_try("10.0.0.1")
    with pytest.raises(Refused):
        limiter.check_tries("10.0.0.1")


def test_however_many_addresses_ask_few_are_remembered() -> None:
    limiter = Limiter(Clock())
    for number in range(MAX_ADDRESSES + 500):
        limiter.take("requests", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert repr(limiter) == f"<Limiter of {MAX_ADDRESSES}>"


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("127.0.0.1 ada", "127.0.0.1 ada"),
    ],
)
def test_the_addresses_of_one_network_are_counted_as_one(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)),
        *(("10.0.0.1", False), ("example.org", False), ("localhost.example", False), ("", False)),
    ],
)
def test_loopback_is_this_host_alone(host: str, is_local: bool) -> None:
    assert is_loopback(host) == is_local


def test_a_browser_runs_no_script_but_ours_and_makes_no_html_of_text() -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in HEADERS["Content-Security-Policy"].split(";"))
    own = {"script-src", "style-src", "img-src", "font-src", "connect-src"}
    assert {name for name, allowed in policy.items() if allowed == "'self'"} == own
    none = {"default-src", "frame-ancestors", "base-uri", "form-action", "trusted-types"}
    assert {name for name, allowed in policy.items() if allowed == "'none'"} == none
    assert policy.keys() - own - none == {"require-trusted-types-for"} and policy["require-trusted-types-for"] == "'script'"
