"""What a payload may hold: hostile text dies in the contract, before any handler sees it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest

import handlers
from handlers.contracts.email import SendEmail
from runtime import BadPayload, Priority
from runtime.jobs import contract_of
from runtime.registry import find
from tests.builders import job

PLAIN_MAIL: dict[str, Any] = {"to": "ada@example.org", "subject": "Hi", "text": "Hello."}
FULL: dict[str, Any] = {
    **PLAIN_MAIL,
    "to": ["ada@example.org"],
    "html": "<p>Hello.</p>",
    "sender": "shop",
    "reply_to": "me@example.org",
}
TEMPLATED: dict[str, Any] = {"to": "ada@example.org", "subject": "Hi", "template": "order", "params": {"name": "Ada"}}
LINES = [(FULL, "to"), (FULL, "subject"), (FULL, "sender"), (FULL, "reply_to"), (TEMPLATED, "to"), (TEMPLATED, "template")]
TEXTS = [(FULL, "text"), (FULL, "html"), (TEMPLATED, "params")]
HOSTILE = [
    "\x00",
    "\x07",
    "\x1b[2J",
    "\x7f",
    "\x85",
    "\x9b",
    "\u2028",
    "\u2029",
    "\u202e",
    "\u2066",
    "\r",
    "\rBcc: eve@example.org",
]
HEADER_ENDS = ["\n", "\r\n", "\nBcc: eve@example.org", "\r\n\r\n<script>", "\x0b", "\x0c", "\x1c"]


def decode(payload: dict[str, Any]) -> SendEmail:
    """Decode as the worker does."""
    handler = find(["handlers"]).registry[b"send-email"]
    return handler.decode(job("send-email", data=msgspec.json.encode(payload)))


def spoilt(payload: dict[str, Any], field: str, tail: str) -> dict[str, Any]:
    value = payload[field]
    if isinstance(value, list):
        return {**payload, field: [value[0] + tail]}
    return {**payload, field: {"name": value["name"] + tail} if isinstance(value, dict) else value + tail}


def test_contracts_load_no_handler_and_no_heavy_library() -> None:
    program = (
        "import sys, time; start = time.monotonic(); import handlers, handlers.contracts, handlers.contracts.email;"
        "heavy = {'redis', 'aiohttp', 'aiosmtplib', 'jinja2', 'asyncio', 'handlers.email', 'handlers.kit'} & set(sys.modules);"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_that_has_read_a_mail_ends_in_peace() -> None:
    """msgspec may free the pattern of a text in a union as something else, which shows only when the process ends."""
    program = (
        "import msgspec, handlers.contracts.email as email;"
        """msgspec.json.decode(b'{"to": "ada@example.org", "subject": "Hi", "text": ""}', type=email.SendEmail)"""
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_package_names_its_modules_and_the_installations_of_their_imports() -> None:
    assert handlers.HANDLERS == (
        "handlers.email",
        "handlers.notifications",
        "handlers.crm",
        "handlers.data",
        "handlers.maintenance",
        "handlers.reports",
        "handlers.ml",
        "handlers.inference",
        "handlers.threats",
        "handlers.vulnerabilities",
        "handlers.compliance",
        "handlers.checks",
    )
    assert {
        **dict.fromkeys(("aiosmtplib", "jinja2"), "aiosmtplib jinja2"),
        **dict.fromkeys(("reportlab", "PIL", "handlers.reports", "handlers.compliance"), "reportlab jinja2"),
        **dict.fromkeys(("re2", "sigma", "yaml", "handlers.threats"), "google-re2 pysigma pysigma-backend-sqlite"),
        **dict.fromkeys(("packaging", "cvss", "handlers.vulnerabilities"), "packaging cvss"),
        **dict.fromkeys(
            ("numpy", "onnxruntime", "sklearn", "skops", "threadpoolctl", "handlers.ml", "handlers.inference"),
            "numpy onnxruntime scikit-learn skops",
        ),
    } == handlers.EXTRAS
    declared = find(["handlers"]).registry[b"send-email"]
    assert (declared.timeout_s, declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s) == (60, 12, 30, 3600)
    assert contract_of(SendEmail).priority is Priority.HIGH


@pytest.mark.parametrize("payload", [PLAIN_MAIL, FULL, TEMPLATED, {**PLAIN_MAIL, "to": ["a@b.org"] * 50, "text": ""}])
def test_what_the_contract_offers_is_accepted(payload: dict[str, Any]) -> None:
    assert decode(payload).subject == "Hi"


@pytest.mark.parametrize("tail", HOSTILE + HEADER_ENDS)
@pytest.mark.parametrize(("payload", "field"), LINES)
def test_nothing_that_could_end_a_header_passes_a_field_of_one_line(payload: dict[str, Any], field: str, tail: str) -> None:
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        decode(spoilt(payload, field, tail))


@pytest.mark.parametrize("tail", HOSTILE)
@pytest.mark.parametrize(("payload", "field"), TEXTS)
def test_control_characters_do_not_pass_a_text(payload: dict[str, Any], field: str, tail: str) -> None:
    with pytest.raises(BadPayload):
        decode(spoilt(payload, field, tail))


@pytest.mark.parametrize(("payload", "field"), TEXTS)
def test_a_text_may_have_tabs_and_line_ends_of_either_kind(payload: dict[str, Any], field: str) -> None:
    assert decode(spoilt(payload, field, "\n\tone\r\ntwo 😀 \u200d ä\n")).subject == "Hi"


@pytest.mark.parametrize(
    "address",
    [
        *("ada", "@example.org", "ada@", "a b@example.org", "a,b@example.org", "a@x.org,b@y.org", "<ada@example.org>"),
        *("Ada <ada@example.org>", '"a b"@example.org', "ada(x)@example.org", "ada@[127.0.0.1]", "ada@exa mple.org"),
        *("ada@example.org>", "ada@example.org SIZE=1", "ä@example.org", "ada@ex_ample.org", "a@b@c.org", "a\u202e@x.org"),
        *("x" * 65 + "@example.org", "ada@" + "x." * 125 + "org", "ada@exam\u2024ple.org", "ada@example\u200b.org", ""),
    ],
)
def test_an_address_is_one_bare_address(address: str) -> None:
    for payload in ({**PLAIN_MAIL, "to": address}, {**PLAIN_MAIL, "to": [address]}, {**PLAIN_MAIL, "reply_to": address}):
        with pytest.raises(BadPayload):
            decode(payload)


@pytest.mark.parametrize(
    "address", ["a.b+c@example.org", "o'neil@example.org", "ada@localhost", "ada@bücher.example", "a=b@x.org"]
)
def test_ordinary_addresses_pass(address: str) -> None:
    assert decode({**PLAIN_MAIL, "to": address}).to == address


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text": None}, "either `text` or `template`"),
        ({"template": "order"}, "either `text` or `template`"),
        ({"text": None, "html": "<p>x</p>"}, "either `text` or `template`"),
        ({"text": None, "template": "order", "html": "<p>x</p>"}, "`html` goes with `text`"),
        ({"params": {"a": 1}}, "`params` and `locale` go with `template`"),
        ({"locale": "de"}, "`params` and `locale` go with `template`"),
        ({"to": []}, "length >= 1"),
        ({"to": ["a@b.org"] * 51}, "length <= 50"),
        ({"from": "eve@example.org"}, "unknown field `from`"),
        ({"bcc": "eve@example.org"}, "array"),
        ({"cc": ["a@b.org"] * 25, "bcc": ["a@b.org"] * 25}, "at most 50 addresses together"),
        ({"subject": "x" * 501}, "length <= 500"),
        ({"text": "x" * 30_001}, "length <= 30000"),
        ({"text": None, "template": "../etc/passwd"}, "template"),
    ],
)
def test_a_mail_that_makes_no_sense_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadPayload, match=said):
        decode({**PLAIN_MAIL, **change})


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"leaf": 1}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def test_params_are_few_flat_and_small() -> None:
    assert decode({**TEMPLATED, "params": {**nested(6), "b": [1, 2.5, None, True]}}).params["b"] == [1, 2.5, None, True]
    for params, said in [
        ({"x": nested(6)}, "at most 6 levels deep"),
        ({"a": {str(number): 1 for number in range(65)}}, "at most 64 keys"),
        ({str(number): 1 for number in range(65)}, "length <= 64"),
        ({"a": ["x" * 20_000, "y" * 20_000]}, "at most 32768 bytes"),
    ]:
        with pytest.raises(BadPayload, match=said):
            decode({**TEMPLATED, "params": params})


def test_a_refusal_names_the_place_and_never_the_value() -> None:
    with pytest.raises(BadPayload) as caught:
        decode({**PLAIN_MAIL, "to": ["ada@example.org", "very secret"]})
    assert "$.to[1]" in str(caught.value)
    assert "secret" not in str(caught.value)
