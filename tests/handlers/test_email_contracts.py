"""What the payloads of mails may hold: each field with text that would be something else in a header, a path or a URL."""

from __future__ import annotations

import copy
import functools
import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from handlers.contracts.email import MAX_SLICE_BYTES, SLICE_ROWS, RecipientSlice, SendBulkEmail
from runtime import BadPayload, Priority
from runtime.jobs import Registry, contract_of
from runtime.registry import find
from tests.builders import job
from tests.handlers.test_contracts import HEADER_ENDS, HOSTILE

MAIL: dict[str, Any] = {
    **{"to": ["a@x.org"], "cc": ["b@x.org"], "bcc": ["c@x.org"], "subject": "Hi", "template": "news", "params": {"a": "b"}},
    **{"locale": "de-AT", "sender": "shop", "reply_to": "d@x.org", "unsubscribe": "https://x.org/u?a=b&c={d}"},
    **{"attachments": [{"path": "out:a/b.csv", "name": "März.csv"}], "headers": {"X-Order": "7"}},
}
BULK: dict[str, Any] = {
    **{"template": "news", "subject": "Hi", "list_id": "news", "sender": "shop", "reply_to": "d@x.org", "common": {"a": "b"}},
    **{"recipients": [{"address": "a@x.org", "params": {"a": "b"}}], "locale": "de", "suppress": "lists:stop.txt"},
    **{"unsubscribe": "https://x.org/u/{token}", "per_second": 5.5, "unknown": "skip"},
}
FILE: dict[str, Any] = {"kind": "file", "path": "lists:a.csv", "format": "csv"}
SLICE: dict[str, Any] = {
    **{"kind": "slice", "path": "lists:a.csv", "format": "csv", "head_bytes": 9, "begin": 9, "end": 99, "first": 0, "rows": 5},
    **{"sha256": "0" * 64, "skip": "AAE="},
}
LINES = [
    *(("send-email", MAIL, path) for path in ("to.0", "cc.0", "bcc.0", "subject", "template", "locale", "sender", "reply_to")),
    *(("send-email", MAIL, path) for path in ("unsubscribe", "attachments.0.path", "attachments.0.name", "headers.X-Order")),
    *(("send-bulk-email", BULK, path) for path in ("template", "subject", "list_id", "sender", "reply_to", "locale", "suppress")),
    *(("send-bulk-email", BULK, path) for path in ("unsubscribe", "recipients.0.address", "unknown")),
    *(("send-bulk-email", {**BULK, "recipients": FILE}, path) for path in ("recipients.path", "recipients.format")),
    *(("send-bulk-email", {**BULK, "recipients": SLICE}, path) for path in ("recipients.path", "recipients.sha256")),
]
TEXTS = [
    ("send-email", MAIL, "params.a"),
    ("send-bulk-email", BULK, "common.a"),
    ("send-bulk-email", BULK, "recipients.0.params.a"),
]


@functools.cache
def registry() -> Registry:
    """Return the shipped handlers."""
    return find(["handlers"]).registry


def decode(kind: str, payload: dict[str, Any]) -> Any:
    """Decode as the worker does."""
    return registry()[kind.encode()].decode(job(kind, data=msgspec.json.encode(payload)))


def way(path: str) -> list[Any]:
    return [int(part) if part.isdecimal() else part for part in path.split(".")]


def value_at(payload: dict[str, Any], path: str) -> Any:
    """Return what stands at a place."""
    return functools.reduce(lambda place, part: place[part], way(path), payload)


def changed(payload: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return the payload with another value at a place."""
    found = copy.deepcopy(payload)
    *before, last = way(path)
    place: Any = found
    for part in before:
        place = place[part]
    place[last] = value
    return found


@pytest.mark.parametrize(("kind", "payload"), [("send-email", MAIL), ("send-bulk-email", BULK)])
def test_what_the_contract_offers_is_accepted(kind: str, payload: dict[str, Any]) -> None:
    assert msgspec.to_builtins(decode(kind, payload)).items() >= payload.items()


@pytest.mark.parametrize("recipients", [FILE, SLICE])
def test_recipients_may_be_a_file_or_a_slice_of_one(recipients: dict[str, Any]) -> None:
    found = decode("send-bulk-email", {**BULK, "recipients": recipients})
    assert isinstance(found, SendBulkEmail)
    assert json.loads(msgspec.json.encode(found))["recipients"] == recipients
    assert not isinstance(found.recipients, RecipientSlice) or found.recipients.skip == b"\0\1"


@pytest.mark.parametrize(("kind", "payload", "path"), LINES)
def test_nothing_that_could_end_a_header_passes_a_field_of_one_line(kind: str, payload: dict[str, Any], path: str) -> None:
    decode(kind, payload)
    for tail in HOSTILE + HEADER_ENDS:
        with pytest.raises(BadPayload):
            decode(kind, changed(payload, path, f"{value_at(payload, path)}{tail}"))


@pytest.mark.parametrize(("kind", "payload", "path"), TEXTS)
def test_control_characters_do_not_pass_a_text(kind: str, payload: dict[str, Any], path: str) -> None:
    for tail in HOSTILE:
        with pytest.raises(BadPayload):
            decode(kind, changed(payload, path, f"{value_at(payload, path)}{tail}"))


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        *(
            ("attachments.0.path", path, "path")
            for path in ("/etc/passwd", "out:../x", "out:a//b", "out:/x", "a.csv", "out:a\\b")
        ),
        ("attachments.0.path", "out:u\u0308.csv", "composed form"),
        *(("attachments.0.name", name, "name") for name in ("a/b.csv", "..", "", "x" * 81, "a\\b")),
        ("attachments", [MAIL["attachments"][0]] * 11, "length <= 10"),
        ("attachments", [{"path": "out:a", "type": "x"}], "unknown field"),
        *(
            ("headers", {name: "x"}, "headers")
            for name in ("Subject", "Bcc", "X-", "X-a:", "X-ä", "X-a\n", "X a", "X-" + "a" * 61)
        ),
        ("headers", {f"X-{number}": "x" for number in range(11)}, "length <= 10"),
        ("headers", {"X-a": "x" * 501}, "length <= 500"),
        *(
            ("unsubscribe", url, "unsubscribe")
            for url in ("http://x.org", "https://", "https://x.org/>", "https://x.org/a b", "mailto:a@x.org")
        ),
        *(
            ("unsubscribe", url, "unsubscribe")
            for url in ("https://x.org/a,b", "https://u:p@x.org/", "https://ü.org", "https://x.org/" + "a" * 500)
        ),
        *(("locale", locale, "locale") for locale in ("DE", "../x", "de_AT", "d", "de-at")),
        ("cc", ["a@x.org"] * 25 + ["b@x.org"] * 25, "at most 50 addresses together"),
        ("cc", ["a@x.org"] * 51, "length <= 50"),
        ("bcc", ["nobody"], "bcc"),
        ("sender", "Shop", "sender"),
    ],
)
def test_a_mail_that_makes_no_sense_is_refused(path: str, change: Any, said: str) -> None:
    with pytest.raises(BadPayload, match=said):
        decode("send-email", changed(MAIL, path, change))


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("recipients", [], "length >= 1"),
        ("recipients", [{"address": "a@x.org"}] * 501, "length <= 500"),
        ("recipients", [{"address": "a@x.org", "params": {"a": "x" * 300}}] * 300, "at most 65536 bytes"),
        ("recipients", [{"address": "a@x.org", "name": "x"}], "unknown field"),
        ("recipients", [{"address": "a@x.org", "params": {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}}}], "levels deep"),
        *(("recipients", {**FILE, "path": path}, "path") for path in ("/etc/passwd", "lists:../x", "x")),
        ("recipients", {**FILE, "path": "lists:u\u0308.csv"}, "composed form"),
        ("recipients", {**FILE, "format": "xlsx"}, "format"),
        ("recipients", {**FILE, "kind": "query"}, "kind"),
        *(("recipients", {**SLICE, "rows": rows}, "rows") for rows in (0, SLICE_ROWS + 1)),
        *(("recipients", {**SLICE, **ends}, "at most") for ends in ({"end": 8}, {"end": MAX_SLICE_BYTES + 10})),
        ("recipients", {**SLICE, "head_bytes": 65_537}, "head_bytes"),
        ("recipients", {**SLICE, "skip": "A" * 1668}, "skip"),
        *(("unsubscribe", url, "token") for url in ("https://x.org/u", "https://x.org/{token}{token}")),
        ("common", {"a": "x" * 4090}, "at most 4096 bytes"),
        ("suppress", "lists:u\u0308.csv", "composed form"),
        *(("per_second", rate, "per_second") for rate in (0, -1, 10_001)),
        ("list_id", "News", "list_id"),
    ],
)
def test_a_campaign_that_makes_no_sense_is_refused(path: str, change: Any, said: str) -> None:
    with pytest.raises(BadPayload, match=said):
        decode("send-bulk-email", changed(BULK, path, change))


def test_how_the_campaign_is_declared() -> None:
    declared = registry()[b"send-bulk-email"]
    assert (declared.timeout_s, declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s) == (3600, 10, 60, 3600)
    assert contract_of(SendBulkEmail).priority is Priority.MEDIUM
    assert declared.limits.group_limit == 1
    assert declared.result is not None


def test_the_slices_of_the_largest_file_can_be_handed_on() -> None:
    largest = {**BULK, "subject": "x" * 500, "common": {"a": "x" * 4080}, "unsubscribe": "https://x.org/{token}" + "a" * 479}
    skip = "A" * 1666 + "=="
    part = {**SLICE, "path": "lists:" + "a" * 506, "skip": skip, "begin": 10**9, "end": 10**9 + 9, "first": 999_999}
    found = decode("send-bulk-email", {**largest, "recipients": part, "suppress": "lists:" + "a" * 506})
    assert 100 * len(msgspec.json.encode(found)) <= 1 << 20


def test_a_process_that_has_read_a_campaign_ends_in_peace() -> None:
    """msgspec may free the pattern of a text in a union as something else, which shows only when the process ends."""
    program = (
        "import sys, msgspec, handlers.contracts.email as email;"
        "[msgspec.json.decode(each, type=kind) for kind, each in"
        " ((email.SendBulkEmail, sys.argv[1]), (email.SendBulkEmail, sys.argv[2]), (email.SendEmail, sys.argv[3]))]"
    )
    payloads = [json.dumps(each) for each in (BULK, {**BULK, "recipients": SLICE}, MAIL)]
    assert subprocess.run([sys.executable, "-c", program, *payloads], check=False).returncode == 0
