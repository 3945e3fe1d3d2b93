"""No secret is shown: not of a payload, a message or a stack, and whatever they look like; all else stays as it was written."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from board.jsontext import MAX_DEPTH, compact, indented, is_json, lines_by_path
from board.redact import HIDDEN, CannotKeep, Rules, redact_json, redact_text, restore_redacted, visible, visible_json

S = "hunter2-XyZ"  # the secret of each case

# --- nothing leaks -----------------------------------------------------------------------------------------------------------

KEYS = (
    *(
        "password",
        "PASSWORD",
        "userPassword",
        "db_password",
        "db-passwd",
        "pass",
        "pwd",
        "passphrase",
        "client_secret",
        "secretKey",
    ),
    *("token", "accessToken", "refresh_token", "x-auth-token", "apiKey", "API_KEY", "api-key", "api key", "authorization"),
    *("Proxy-Authorization", "cookie", "Set-Cookie", "sessionId", "session", "private_key", "privateKey", "cardNumber", "card"),
    *("credit_card", "iban", "IBAN", "ssn", "customer_ssn", "cvv", "pin", "otp", "credentials", "aws_secret_access_key", "jwt"),
    *("pass\u200bword", "pass.word", "connectionString", "dsn", "csrf_token", "bearer", "signature"),
)
SHAPES = (
    '{{"{key}": "{s}"}}',
    '{{"{key}":"{s}","a":1}}',
    '{{"a": [{{"b": {{"{key}" : "{s}"}}}}]}}',
    '{{"{key}": ["{s}", {{"x": "{s}"}}]}}',
    '{{"{key}": {{"current": "{s}", "old": ["{s}"]}}, "b": 2}}',
    '{{"name": "{key}", "value": "{s}"}}',
    '{{"value": {{"deep": ["{s}"]}}, "key": "{key}"}}',
    '[["{key}", "{s}"]]',
    '{{"headers": [{{"name": "a", "value": "b"}}, {{"value": "{s}", "name": "{key}"}}]}}',
    '{{"{key}": "a\\"{s}"}}',
    '{{"{key}": "{s}',
    '{{"{key}": {{"a": "{s}"',
    '{{"{key}": "x" "{s}"}}',
)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("key", KEYS)
def test_no_value_under_such_a_key_is_shown(key: str, shape: str) -> None:
    text = shape.format(key=key, s=S)
    if key == "pass\u200bword" and not is_json(text):
        pytest.skip("what is no JSON has no keys of that kind")
    shown, _ = redact_json(text)
    assert S not in shown
    cut, _ = redact_json(text, is_cut=True)
    assert S not in cut


@pytest.mark.parametrize(
    "text",
    [
        f"password={S}",
        f"password = {S}; user=a",
        f"bad token: {S}",
        f"Authorization: Bearer {S}{S}",
        f"Authorization: Basic {S}",
        f"got Bearer {S}{S} there",
        f"Cookie: a=1; sid={S}; b={S}",
        f"Client error '401' for url 'https://a.example.com/v1?api_key={S}&x=1'",
        f"https://a.example.com/cb#access_token={S}",
        f"a%26token%3D{S}",
        f"redis://:{S}@host:6379/0",
        f"postgresql://app:{S}@db/x and amqp://u:{S}@mq",
        f"{{'password': '{S}', 'a': 1}}",
        f"{{'password': ['{S}', '{S}'], 'a': 1}}",
        f'{{\\"password\\": \\"{S}\\"}}',
        f"Config(user='a', password='it\\'s {S}')",
        f"password=SecretStr('{S}')",
        f"Token(secret=Inner(value='{S}', n=2))",
        f"run --password {S} --verbose",
        f"run --api-key={S}",
        f"run -password {S}",
        f"card number: {S}",
        f"headers['authorization'] = '{S}'",
        f"password: 'unfinished {S}",
        "-----BEGIN RSA PRIVATE KEY-----\nhunter2-XyZ\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2-XyZ and no end",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.hunter2-XyZ",
        "sk_live_hunter2XyZhunter2",
        f"xoxb-12345678-{S}",
    ],
)
def test_no_message_shows_a_secret(text: str) -> None:
    shown = redact_text(text)
    assert S not in shown
    assert "hunter2" not in shown
    assert HIDDEN in shown
    # In a payload, too, as a text, and as JSON in a text in a text.
    inner = json.dumps({"said": text})
    for payload in (inner, json.dumps([inner]), json.dumps({"a": json.dumps({"b": inner})})):
        assert "hunter2" not in redact_json(payload)[0]


def test_json_in_json_is_looked_into_as_far_as_is_sane() -> None:
    text = json.dumps({"password": S, "a": 1})
    for _ in range(9):
        text = json.dumps({"body": text})
        assert S not in redact_json(text)[0]


@pytest.mark.parametrize(
    "text",
    [
        "ValueError: no such account 4711",
        "timed out after 30 s",
        "HTTP 401 for https://a.example.com/v3?since=2026-11-25",
        "key: value",
    ],
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redact_text(text) == text


def test_a_payload_without_secrets_stays_as_it_was_written() -> None:
    text = (
        '{ "n" : 1234567890123456789012, "f":1.10 ,"e":1E+2,\n\t"author":"\\u0041", "discard":[true,null,-0.0],"classname":"x"}'
    )
    assert redact_json(text) == (text, [])


def test_the_rest_of_a_payload_stays_as_it_was_written() -> None:
    text = '{"id":9007199254740993123,"api_token":12345678901234567890, "x": 1.0}'
    assert redact_json(text) == (f'{{"id":9007199254740993123,"api_token":"{HIDDEN}", "x": 1.0}}', ["api_token"])


def test_people_add_their_own_keys() -> None:
    assert redact_json('{"monthlySalary": 5}', rules=Rules(["salary"]))[1] == ["monthlySalary"]
    assert redact_json('{"monthlySalary": 5}')[1] == []


# --- what a contract says ----------------------------------------------------------------------------------------------------

CONTRACT: Any = {
    "$ref": "#/$defs/Pay",
    "$defs": {
        "Pay": {
            "type": "object",
            "properties": {
                "amount": {"type": "integer"},
                "note": {"type": "string", "writeOnly": True},
                "who": {"anyOf": [{"$ref": "#/$defs/Person"}, {"type": "null"}]},
                "by": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Person"}},
                "all": {"type": "array", "items": {"$ref": "#/$defs/Person"}},
                "pair": {"type": "array", "prefixItems": [{"type": "string"}, {"writeOnly": True}]},
            },
        },
        "Person": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "mail": {"writeOnly": True}, "boss": {"$ref": "#/$defs/Person"}},
        },
    },
}


@pytest.mark.parametrize(
    "payload",
    [
        {"note": S},
        {"note": {"deep": [S]}},
        {"who": {"mail": S}},
        {"who": {"boss": {"boss": {"mail": S}}}},
        {"by": {"x": {"mail": S}}},
        {"all": [{"name": "a"}, {"mail": [S]}]},
        {"pair": ["a", S]},
    ],
)
def test_what_the_contract_calls_secret_is_not_shown(payload: Any) -> None:
    shown, paths = redact_json(json.dumps(payload), CONTRACT)
    assert S not in shown
    assert paths
    assert S in redact_json(json.dumps(payload))[0]


def test_of_what_is_no_json_nothing_is_shown_where_the_contract_has_secrets() -> None:
    assert redact_json(f'{{"note": "{S}", oops', CONTRACT)[0] == HIDDEN
    assert redact_json("oops", {"type": "object"})[0] == "oops"


@pytest.mark.parametrize(
    "schema",
    [
        None,
        7,
        [],
        {"$ref": "#"},
        {"$ref": "#/a/b"},
        {"$ref": "http://x/y"},
        {"anyOf": 3, "properties": [1]},
        {"allOf": [{"$ref": "#"}] * 9},
    ],
)
def test_any_object_may_stand_for_a_schema(schema: Any) -> None:
    assert redact_json('{"a":{"b":[1]}}', schema)[0] == '{"a":{"b":[1]}}'


def test_a_schema_of_too_many_parts_hides_all() -> None:
    assert redact_json('{"a":1}', {"properties": {"a": {"anyOf": [{"title": str(n)} for n in range(999)]}}})[1] == ["a"]


# --- any text ----------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(JSON, st.booleans())
def test_json_stays_json_and_says_the_same_but_for_what_is_hidden(value: Any, is_wide: bool) -> None:
    text = json.dumps(value, ensure_ascii=not is_wide, indent=1 if is_wide else None)
    shown, paths = redact_json(text)
    json.loads(shown)
    if not paths:
        assert shown == text
    assert json.loads(visible_json(indented(text))) == value
    assert compact(indented(text)) == compact(text)


@given(st.text(alphabet=string.printable) | st.text())
@example('{"a":' * 99)
@example('"\\ud800"')
def test_no_text_is_too_strange(text: str) -> None:
    redact_json(text)
    redact_json(text, CONTRACT, is_cut=True)
    redact_text(text)
    indented(text)
    lines_by_path(text)
    assert visible(visible(text)) == visible(text)


@given(JSON, st.sampled_from(KEYS), st.integers(0, 400))
def test_a_text_that_was_cut_shows_no_more(value: Any, key: str, cut: int) -> None:
    text = json.dumps({"a": value, key: S, "z": {"name": key, "value": S}})
    assert S not in redact_json(text[:cut], is_cut=True)[0]


@pytest.mark.parametrize(
    "piece",
    [
        "eyJ-",
        "://",
        "a@",
        "password=",
        'password="',
        "password=[",
        "\\",
        "sk-",
        "basic ",
        '{"a":',
        "[",
        '"\\"',
        "token ",
        "-----BEGIN PRIVATE KEY-----",
        "--p ",
    ],
)
def test_it_takes_as_long_as_the_text(piece: str) -> None:
    text = piece * (256_000 // len(piece))  # where it took longer for each character, this would not end within a test's time
    for payload in (text, json.dumps([text]), json.dumps({"a": json.dumps([text])})):
        redact_text(payload)
        redact_json(payload)


def test_the_deepest_json_that_a_worker_reads_is_read() -> None:
    assert is_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert not is_json("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


# --- edits, and what cannot be seen ------------------------------------------------------------------------------------------

ORIGINAL = '{"url":"https://a.example.com","n":12345678901234567890,"api_token":"hunter2-XyZ"}'


def test_a_placeholder_keeps_what_it_was_where_nothing_else_changed() -> None:
    shown, _ = redact_json(ORIGINAL)
    assert restore_redacted(shown, ORIGINAL) == ORIGINAL
    assert restore_redacted(indented(shown), ORIGINAL) == ORIGINAL


@pytest.mark.parametrize(
    ("was", "now"), [("a.example.com", "evil.example.com"), ("901234567890", "901234567891"), ("api_token", "url2")]
)
def test_a_placeholder_beside_a_change_is_refused(was: str, now: str) -> None:
    shown, _ = redact_json(ORIGINAL)
    with pytest.raises(CannotKeep):
        restore_redacted(shown.replace(was, now), ORIGINAL)


def test_an_edit_without_a_placeholder_is_what_was_written() -> None:
    assert restore_redacted('{"api_token":"new"}', ORIGINAL) == '{"api_token":"new"}'


def test_what_cannot_be_seen_is_made_visible() -> None:
    assert visible("a\u202eb\x00c\td\ne\x1b[0m") == "a⟨202e⟩b⟨0000⟩c\td\ne⟨001b⟩[0m"
    assert visible_json('{"a":"\u202eb"}') == '{"a":"\\u202eb"}'


def test_a_line_is_known_for_each_value() -> None:
    assert lines_by_path(indented('{"a":1,"b":[{"c":2}]}')) == {(): 1, ("a",): 2, ("b",): 3, ("b", 0): 4, ("b", 0, "c"): 5}
