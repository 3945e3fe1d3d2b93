"""Lines of logs: what is in them, whoever wrote them, and that nothing takes longer than its length."""

from __future__ import annotations

import json
import random
import time
from datetime import UTC, datetime
from typing import Any

import pytest

from handlers.kit.logs import Event, decoded, parser_of, printable
from handlers.kit.sections import Log
from tests.handlers.logsmith import failed, ssh_line, web_line

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def log(layout: Any, **options: Any) -> Log:
    fields = {"fields": {"at": "t"}} if layout == "jsonl" else {}
    return Log(**{"root": "logs", "glob": "*", "format": layout, **fields, **options})


def parse(line: str | bytes, layout: str = "sshd", born: float = NOW, **options: Any) -> Event | None:
    text = line if isinstance(line, str) else decoded(line)
    return parser_of(log(layout, **options), born)(text)


def stamp(event: Event | None) -> str:
    assert event is not None
    return datetime.fromtimestamp(event.at, UTC).isoformat()


def login(message: str, **options: Any) -> tuple[str, str, str]:
    event = parse(ssh_line(NOW - 60, message), **options)
    assert event is not None
    return event.action, event.user, event.src


# --- sshd ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (failed("root", "192.0.2.1"), ("failed", "root", "192.0.2.1")),
        (failed("x", "192.0.2.1", is_known=False), ("failed", "x", "192.0.2.1")),
        ("Failed publickey for git from 2001:db8::1 port 22 ssh2: RSA SHA256:AA", ("key-refused", "git", "2001:db8::1")),
        ("Failed keyboard-interactive/pam for a from 192.0.2.1 port 1 ssh2", ("failed", "a", "192.0.2.1")),
        ("Failed none for a from 192.0.2.1 port 1 ssh2", ("", "", "")),
        ("Invalid user oracle from 192.0.2.1 port 22", ("unknown-user", "oracle", "192.0.2.1")),
        ("Accepted password for ada from 192.0.2.1 port 22 ssh2", ("accepted", "ada", "192.0.2.1")),
        (
            'Accepted publickey for git from 192.0.2.1 port 22 ssh2: RSA-CERT ID "x from y port z"',
            ("accepted", "git", "192.0.2.1"),
        ),
        ("Connection closed by 192.0.2.1 port 22 [preauth]", ("", "", "")),
        ("Failed password for", ("", "", "")),
        ("Failed password for root from", ("", "", "")),
    ],
)
def test_logins_are_known(message: str, found: tuple[str, str, str]) -> None:
    assert login(message) == found


@pytest.mark.parametrize(
    "user",
    [
        "root from 198.51.100.1 port 22 ssh2",
        "x for ada from 198.51.100.1 port 22 ssh2: RSA",
        "Accepted password for ada from 198.51.100.1 port 22 ssh2",
        "a\\nNov 14 22:13:20 h sshd[1]: Accepted password for ada from 198.51.100.1 port 1 ssh2",
        "",
        " ",
        "\x1b[2J",
        "'; DROP TABLE findings; --",
    ],
)
def test_a_user_name_cannot_forge_who_it_was(user: str) -> None:
    """sshd writes the name as the client gave it, with line ends escaped."""
    action, found, src = login(failed(user, "192.0.2.1", is_known=False))
    assert (action, src) == ("failed", "192.0.2.1")
    assert found == user
    action, _, src = login(f"Invalid user {user} from 192.0.2.1 port 22")
    assert (action, src) == ("unknown-user", "192.0.2.1")


def test_a_line_of_another_program_is_no_login() -> None:
    event = parse(ssh_line(NOW, failed("root", "192.0.2.1"), program="logger"))
    assert event is not None and (event.program, event.action) == ("logger", "")


def test_repeated_messages_count() -> None:
    event = parse(ssh_line(NOW, f"message repeated 4 times: [ {failed('root', '192.0.2.1')}]"))
    assert event is not None and (event.times, event.src) == (4, "192.0.2.1")
    event = parse(ssh_line(NOW, f"message repeated 99999999999999999999 times: [ {failed('root', '192.0.2.1')}]"))
    assert event is not None and event.times == 1000


def test_journal_says_which_program_it_really_was() -> None:
    known = {"__REALTIME_TIMESTAMP": str(int(NOW * 1e6)), "_HOSTNAME": "h", "SYSLOG_IDENTIFIER": "sshd", "_COMM": "sshd"}
    line = {**known, "MESSAGE": failed("root", "192.0.2.1")}
    event = parse(json.dumps(line), "journal")
    assert event is not None and (event.action, event.at, event.host) == ("failed", NOW, "h")
    event = parse(json.dumps({**line, "_COMM": "logger"}), "journal")
    assert event is not None and event.action == "", "any user can write under the name of sshd"
    event = parse(json.dumps({**known, "MESSAGE": list(failed("r\x00\xff", "192.0.2.1").encode("latin-1"))}), "journal")
    assert event is not None and event.user == "r\x00\\xff"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MESSAGE": ["a", "b"]}, "a b"),
        ({"MESSAGE": [97, 98]}, "ab"),
        ({"MESSAGE": []}, ""),
        ({"MESSAGE": None}, ""),
        ({"MESSAGE": {"a": 1}}, ""),
        *(({"MESSAGE": value}, None) for value in ([1, "x"], ["x", 1], [[1]], [1.5], [300], [-1], [None])),
        *(({"__REALTIME_TIMESTAMP": value}, None) for value in (None, ["1", "2"], {}, "1e9", "", "9" * 5000)),
    ],
)
def test_members_of_the_journal_that_are_odd(change: dict[str, Any], message: str | None) -> None:
    """Any user can write them; `None` is a line that is not parsed, which stops nothing."""
    event = parse(json.dumps({"__REALTIME_TIMESTAMP": str(int(NOW * 1e6)), "_COMM": "x", **change}), "journal")
    assert (event.message if event else None) == message


# --- times ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "options", "at"),
    [
        ("Nov 14 22:13:20 h sshd[1]: x", {}, "2023-11-14T22:13:20+00:00"),
        ("Nov  4 02:03:04 h sshd[1]: x", {}, "2023-11-04T02:03:04+00:00"),
        ("Dec 31 23:59:59 h sshd[1]: x", {}, "2022-12-31T23:59:59+00:00"),
        ("Nov 15 10:00:00 h sshd[1]: x", {}, "2023-11-15T10:00:00+00:00"),  # a clock is ahead
        ("Nov 17 10:00:00 h sshd[1]: x", {}, "2022-11-17T10:00:00+00:00"),
        ("Feb 29 10:00:00 h sshd[1]: x", {}, "2020-02-29T10:00:00+00:00"),
        ("Nov 14 22:13:20 h sshd[1]: x", {"year": 2019}, "2019-11-14T22:13:20+00:00"),
        ("Nov 14 22:13:20 h sshd[1]: x", {"zone": "Europe/Berlin"}, "2023-11-14T21:13:20+00:00"),
        ("Jul 14 22:13:20 h sshd[1]: x", {"zone": "Europe/Berlin"}, "2023-07-14T20:13:20+00:00"),
        ("<86>Nov 14 22:13:20 h sshd[1]: x", {}, "2023-11-14T22:13:20+00:00"),
        ("2023-11-14T22:13:20.123456+01:00 h sshd[1]: x", {}, "2023-11-14T21:13:20.123456+00:00"),
        ("2023-11-14T22:13:20 h sshd[1]: x", {"zone": "Asia/Tokyo"}, "2023-11-14T13:13:20+00:00"),
    ],
)
def test_times_of_syslog(line: str, options: dict[str, Any], at: str) -> None:
    assert stamp(parse(line, **options)) == at


def test_new_year_at_midnight() -> None:
    """A line of the old year is read in the new one, and one of the new year where the clock is behind."""
    born = datetime(2024, 1, 1, 0, 0, 30, tzinfo=UTC).timestamp()
    assert stamp(parse("Dec 31 23:59:59 h sshd[1]: x", born=born)) == "2023-12-31T23:59:59+00:00"
    born = datetime(2023, 12, 31, 23, 59, 30, tzinfo=UTC).timestamp()
    assert stamp(parse("Jan  1 00:00:10 h sshd[1]: x", born=born)) == "2024-01-01T00:00:10+00:00"


@pytest.mark.parametrize(
    "line",
    [
        *("", " ", "x", "<", "<86>", "<999999999>Nov 14 22:13:20 h sshd[1]: x", "Nov 14 22:13:20", "Nov 14 22:13:20 h"),
        *("Foo 14 22:13:20 h s: x", "Nov 31 22:13:20 h s: x", "Nov 14 25:13:20 h s: x", "Nov 14 22:61:20 h s: x"),
        *("Nov 14 22-13-20 h s: x", "Nov xx 22:13:20 h s: x", "9999-12-31T23:59:59Z h s: x", "0001-01-01T00:00:00Z h s: x"),
        *("2023-11-14T22:13:20+99:00 h s: x", "1969-12-31T23:59:59Z h s: x", "2023-11-16T00:00:00Z h s: x", "\x00" * 100),
        *("Nov 14 22:13:20 h " + "x" * 1000, "٢٠٢٣-11-14T22:13:20Z h s: x"),
    ],
)
def test_what_is_no_line_of_syslog_is_none(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (NOW, "2023-11-14T22:13:20+00:00"),
        (NOW * 1000, "2023-11-14T22:13:20+00:00"),
        ("1700000000", "2023-11-14T22:13:20+00:00"),
        ("2023-11-14T22:13:20Z", "2023-11-14T22:13:20+00:00"),
        ("14/Nov/2023:22:13:20 +0000", "2023-11-14T22:13:20+00:00"),
    ],
)
def test_times_of_json(value: Any, at: str) -> None:
    assert stamp(parse(json.dumps({"t": value}), "jsonl")) == at


FAR = ["9" * 5000, 10**400, 1e300, NOW + 90_000, "9999-12-31T00:00:00Z"]


@pytest.mark.parametrize("value", [None, True, [], {}, "", "now", -1, "1e5", *FAR])
def test_times_of_json_that_are_none(value: Any) -> None:
    assert parse(json.dumps({"t": value}), "jsonl") is None


# --- the web -------------------------------------------------------------------------------------------------------------------


def test_a_request_is_known() -> None:
    event = parse(web_line(NOW, "192.0.2.1", "/a?b=c", 404, "Agent/1", "https://x/"), "combined")
    assert event is not None
    assert (event.at, event.src, event.method, event.target, event.status) == (NOW, "192.0.2.1", "GET", "/a?b=c", 404)
    assert (event.agent, event.referer, event.action) == ("Agent/1", "https://x/", "request")


@pytest.mark.parametrize(
    ("line", "target", "agent"),
    [
        ('1.1.1.1 - ada [14/Nov/2023:22:13:20 +0000] "GET /x HTTP/1.1" 200 1', "/x", ""),
        ('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET /a b c HTTP/1.1" 400 1 "-" "x"', "/a b c", "x"),
        ('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "\\x16\\x03\\x01" 400 1 "-" "-"', "\x16\x03\x01", "-"),
        # nginx writes `"`, `\`, and what is not ASCII so; Apache writes a backslash of a client as two.
        ('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET /a\\x22b\\x5Cc HTTP/1.1" 200 1 "-" "\\xC3\\xBC"', '/a"b\\c', "ü"),
        ('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET /\\\\x22 HTTP/1.1" 200 1 "-" "\\xff\\x4"', "/\\x22", "\\xff\\x4"),
        ('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "-" 408 0 "-" "-"', "-", "-"),
        ('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET /x HTTP/1.1" 200 1 "-" "a \\"b\\" \\\\" "more"', "/x", 'a "b" \\'),
        ('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET /\\" HTTP/1.1" 200 1 "-" "x"', '/"', "x"),
        ('::1 - - [14/Nov/2023:22:13:20 +0000] "GET /\'\x00\x1b[2J HTTP/2" 200 1 "-" "x"', "/'\x00\x1b[2J", "x"),
    ],
)
def test_requests_that_are_odd(line: str, target: str, agent: str) -> None:
    event = parse(line, "combined")
    assert event is not None and (event.target, event.agent) == (target, agent)


def test_a_client_cannot_forge_its_address_time_or_status() -> None:
    """Apache and nginx escape quotes; a user's name may hold brackets and spaces."""
    forged = '9.9.9.9 - - [01/Jan/2020:00:00:00 +0000] \\"GET /forged HTTP/1.1\\" 500 1'
    event = parse(
        f'1.1.1.1 - {forged} [14/Nov/2023:22:13:20 +0000] "GET /{forged} HTTP/1.1" 200 1 "{forged}" "{forged}"', "combined"
    )
    assert event is not None and (event.src, event.at, event.status) == ("1.1.1.1", NOW, 200)


@pytest.mark.parametrize(
    "line",
    [
        *(
            "",
            '"',
            '""',
            "x",
            "1.1.1.1",
            "1.1.1.1 - - [14/Nov/2023:22:13:20 +0000]",
            '1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET',
        ),
        *('1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET /" abc 1', '1.1.1.1 - - [] "GET / HTTP/1.1" 200 1', "]["),
        *(
            '1.1.1.1 - - [14/Nov/9999:22:13:20 +0000] "GET / HTTP/1.1" 200 1',
            '1.1.1.1 - - [14/Xxx/2023:22:13:20 +0000] "G" 200 1',
        ),
        *(
            '1.1.1.1 - - [14/Nov/2023:22:13:20 +9999] "GET / HTTP/1.1" 200 1',
            '[14/Nov/2023:22:13:20 +0000 "GET / HTTP/1.1" 200 1',
        ),
        '1.1.1.1 - - [14/Nov/2023:22:13:20 +0000] "GET / HTTP/1.1" ٢٠٠ 1',
    ],
)
def test_what_is_no_request_is_none(line: str) -> None:
    assert parse(line, "combined") is None


# --- JSON ----------------------------------------------------------------------------------------------------------------------


def test_members_are_mapped() -> None:
    fields = {"at": "time", "src": "client.ip", "target": "uri", "status": "status", "agent": "ua", "user": "who.name"}
    line = {"time": NOW, "client": {"ip": "192.0.2.1"}, "uri": "/x", "status": "404", "ua": None, "who": 7}
    event = parse(json.dumps(line), "jsonl", fields=fields)
    assert event == Event(NOW, src="192.0.2.1", action="request", target="/x", status=404)
    fields = {"at": "time", "src": "ip", "outcome": "event.outcome", "user": "user"}
    for outcome, action in (("Failure", "failed"), ("success", "accepted"), ("x", "")):
        line = {"time": NOW, "ip": "192.0.2.1", "event.outcome": outcome, "user": "a"}
        event = parse(json.dumps(line), "jsonl", fields=fields)
        assert event is not None and (event.action, event.user) == (action, "a")


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"[]", b"null", b"1", b'{"t":1700000000', b'{"t":1700000000}}', b"\xff", b'{"t":NaN}'),
        *(b'{"t":' + b"[" * 60_000, b'{"t":' * 30_000, b'{"x":1}', b'{"t":"\x00"}'),
    ],
)
def test_what_is_no_object_with_a_time_is_none(line: bytes) -> None:
    assert parse(line, "jsonl") is None


def test_text_that_cannot_be_written_is_escaped() -> None:
    for text in (b'"a\\ud800b"', b'"\xed\xa0\x80"', b'"\xff\xfe"', b'"\\u0000\\u001b[31m"'):
        event = parse(b'{"t":1700000000,"u":' + text + b"}", "jsonl", fields={"at": "t", "user": "u"})
        if event is not None:
            event.user.encode()
            assert printable(event.user).isprintable()


# --- all of them ---------------------------------------------------------------------------------------------------------------


SPOILERS = [b"", b"\x00", b"\xff", b'"', b"\\", b"[", b"]", b" ", b"9" * 20, b":"]
SLOW = ('"', "\\", '\\"', "[", "] [", " from ", " for ", ": ", "{", "<", "Nov 14 22:13:20 ", " HTTP/", "message repeated ")


@pytest.mark.parametrize("layout", ["sshd", "combined", "journal", "jsonl"])
def test_anything_is_an_event_or_none(layout: str) -> None:
    rng = random.Random(5)
    seeds = [ssh_line(NOW, failed("r", "1.1.1.1")).encode(), web_line(NOW, "1.1.1.1", "/x").encode(), b'{"t":1700000000,"x":[1]}']
    for _ in range(3000):
        line = bytearray(rng.choice(seeds))
        for _ in range(rng.randrange(6)):
            place = rng.randrange(len(line))
            line[place : place + rng.randrange(3)] = rng.choice(
                [b"", b"\x00", b"\xff", b'"', b"\\", b"[", b"]", b" ", b"9" * 20, b":"]
            )
        event = parse(bytes(line), layout)
        assert event is None or 0 <= event.at <= NOW + 86_400


@pytest.mark.parametrize("layout", ["sshd", "combined", "journal", "jsonl"])
def test_time_grows_with_the_length_of_a_line_alone(layout: str) -> None:
    """64 KiB of what makes backtracking patterns slow; a square of it would take minutes."""
    parser = parser_of(log(layout), NOW)
    begin = time.process_time()
    for unit in (
        '"',
        "\\",
        '\\"',
        "[",
        "] [",
        " from ",
        " for ",
        ": ",
        "{",
        "<",
        "Nov 14 22:13:20 ",
        " HTTP/",
        "message repeated ",
    ):
        parser(unit * (65_536 // len(unit)))
        parser(ssh_line(NOW, failed(unit * (60_000 // len(unit)), "1.1.1.1")))
        parser(web_line(NOW, "1.1.1.1", unit * (60_000 // len(unit))))
    assert time.process_time() - begin < 20


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\x00", "\\x00"),
        ("\ud800", "\\ud800"),
        ("ä😀", "ä😀"),
        ("<b>&", "<b>&"),
        ("x" * 300, "x" * 199 + "…"),
        ("\x00" * 300, "\\x00" * 49 + "\\x0…"),
    ],
)
def test_subjects_are_printable_and_short(text: str, shown: str) -> None:
    assert printable(text) == shown and len(shown) <= 200
