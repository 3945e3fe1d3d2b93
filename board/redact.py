"""What of a message people are not shown: values under keys that sound like secrets, or that the contract calls secret. Pure.

It works on the text: what is not redacted stays as its sender wrote it, and no number is parsed. One pass over a text of any
kind; a contract is looked at as far as MAX_NODES. Where it cannot be told what is secret, all of it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, cast

from board.jsontext import NotJson, Reader, compact, decoded, encoded

HIDDEN: Final = "•••••• redacted"
# Parts of keys: in the first row anywhere in a key, in the second as words of it, where shorter parts would meet others.
SOUNDS_SECRET: Final = (
    *("password", "passwd", "passphrase", "passcode", "secret", "token", "apikey", "accesskey", "privatekey", "signingkey"),
    *("authorization", "authentication", "credential", "cookie", "bearer", "jwt", "sessionid", "sessionkey", "cardnumber"),
    *("cardno", "creditcard", "encryptionkey", "accountkey", "sharedkey", "connectionstring", "socialsecurity", "kennwort"),
)
SECRET_WORDS: Final = frozenset(
    (
        *("pass", "pwd", "pw", "auth", "session", "private", "card", "iban", "ssn", "cvv", "cvc", "csrf", "xsrf", "otp", "totp"),
        *("mfa", "pin", "dsn", "sid", "pan", "salt", "signature", "passport", "cred", "creds", "pem", "pkcs12", "passwort"),
    )
)
NAMES: Final = ("name", "key", "header", "field", "param", "variable")  # members that name what stands in the member `value`
VALUES: Final = ("value", "val", "content", "data")
MAX_NESTED: Final = 4  # a guess: JSON in a string in a string; what is deeper and names a secret is hidden whole
MAX_NODES: Final = 200  # of a schema for one value; a guess: more than any type that people write
MAX_KEY: Final = 200  # characters of a key that are looked at on each side; a guess

# --- keys --------------------------------------------------------------------------------------------------------------------

_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_NO_LETTERS: Final = re.compile(r"[\W_]+")


class Rules:
    """Which keys sound like secrets: those of this module, and those that people have added.

    Args:
        more: parts of keys, such as `salary`; case, and what is neither letter nor number, do not count.
    """

    def __init__(self, more: Sequence[str] = ()) -> None:
        added = tuple(plain for one in more if (plain := _plain(one)))
        self._parts = re.compile("|".join(map(re.escape, (*SOUNDS_SECRET, *added))))
        self.is_secret = lru_cache(4096)(self._is_secret)

    def _is_secret(self, key: str) -> bool:
        key = key if len(key) <= 2 * MAX_KEY else key[:MAX_KEY] + key[-MAX_KEY:]
        return bool(self._parts.search(_plain(key))) or not SECRET_WORDS.isdisjoint(word.lower() for word in _WORDS.findall(key))


def _plain(key: str) -> str:
    return _NO_LETTERS.sub("", key).lower()


PLAIN: Final = Rules()

# --- messages, stacks, and what else is no JSON ------------------------------------------------------------------------------

_SHAPES: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]{0,30}PRIVATE KEY-----|\Z)"
    r"|(?<![\w-])eyJ[\w-]{8,}+\.[\w-]{4,}+(?:\.[\w-]*+)?"  # a token of three parts
    r"|\b(?:sk|pk|rk|whsec)_[A-Za-z0-9_]{10,}+|\bsk-[\w-]{16,}+|\bgh[pousr]_\w{20,}+|\bgithub_pat_\w{20,}+|\bglpat-[\w-]{16,}+"
    r"|\bxox[a-z]-[\w-]{8,}+|\b(?:AKIA|ASIA)[A-Z0-9]{12,}+|\bAIza[\w-]{30,}+|\bya29\.[\w-]{10,}+"
)
_IN_URL: Final = re.compile(r"(?<=://)[^\s/?#\"'<>]*@")
# An address in an address.
_ESCAPED: Final = re.compile(r"((?:%3[Ff]|%26|%23)([\w.\-]++)%3[Dd])[^\s&\"'<>]*?(?=%26|[\s&\"'<>]|\Z)")
_SCHEMES: Final = re.compile(r"\b(bearer|basic|digest|negotiate)[ \t]++(?!realm)[A-Za-z0-9._~+/=:-]{8,}+", re.IGNORECASE)
_NAMED: Final = re.compile(
    r"(?<![\w.\-])(?P<flag>--?)?(?P<key>[A-Za-z_][\w.\-]*+(?: (?:key|number|id|code)\b)?)"
    r"(?P<between>\\*+[\"']?+\]?+[ \t]{0,8}+(?:=>|:=|==?|:)[ \t]*+|(?P<is_bare>[ \t]++))"
)
_LINE_LONG: Final = ("authorization", "cookie")  # their values go on to the end of the line
_OPENERS: Final = {"(": ")", "[": "]", "{": "}"}
_BOUND: Final = re.compile(r"""[\s,;&"'<>()\[\]{}|]""")
_QUOTES: Final = {mark: re.compile(rf"(?:[^{mark}\\]|\\.)*+(?:{mark}|\\?\Z)", re.DOTALL) for mark in ('"', "'")}


def redact_text(text: str, rules: Rules = PLAIN) -> str:
    """Return a message, a stack or a line without what sounds like a secret: by its name, by its shape, and in addresses."""
    parts: list[str] = []
    done = 0
    for found in _NAMED.finditer(text):
        if found.start() < done or not rules.is_secret(found["key"]):
            continue
        if found["is_bare"] and not found["flag"]:
            continue
        end = _value_end(text, found.end(), _plain(found["key"]))
        if end > found.end():
            parts += (text[done : found.end()], HIDDEN)
            done = end
    parts.append(text[done:])
    text = "".join(parts)
    text = _SHAPES.sub(HIDDEN, text)
    text = _IN_URL.sub(f"{HIDDEN}@", text)
    text = _ESCAPED.sub(lambda found: f"{found[1]}{HIDDEN}" if rules.is_secret(found[2]) else found[0], text)
    return _SCHEMES.sub(rf"\1 {HIDDEN}", text)


def _value_end(text: str, at: int, key: str) -> int:
    """Return where a value ends that begins here: a quoted one with its quote, one in brackets with its bracket, else before what
    separates values.
    """
    if any(word in key for word in _LINE_LONG) and text[at : at + 1] not in ('"', "'"):
        end = text.find("\n", at)
        return len(text) if end < 0 else end
    closers: list[str] = []
    while (found := _BOUND.search(text, at)) is not None:
        mark, at = found[0], found.end()
        if mark in _QUOTES:
            quoted = _QUOTES[mark].match(text, at)
            at = quoted.end() if quoted else len(text)
        elif mark in _OPENERS:
            closers.append(_OPENERS[mark])
        elif closers and mark == closers[-1]:
            closers.pop()
        elif not closers:
            return found.start()
    return len(text)


# --- JSON --------------------------------------------------------------------------------------------------------------------


def redact_json(text: str, schema: Any = None, rules: Rules = PLAIN, *, is_cut: bool = False) -> tuple[str, list[str]]:
    """Return JSON without its secret values, and the paths of those, such as `user.api_token`.

    Args:
        text: JSON as its sender wrote it; of anything else what `redact_text` leaves, and nothing where a schema has secrets.
        schema: the JSON schema of the payload; what has `writeOnly` there is secret.
        rules: which keys are secret besides.
        is_cut: the text is the beginning of one.
    """
    try:
        return _redacted(text, schema, rules, is_cut, 0)
    except NotJson:
        return (HIDDEN, [""]) if has_secrets(schema) else (_redact_broken(text, rules), [])


def _redacted(text: str, schema: Any, rules: Rules, is_cut: bool, nested: int) -> tuple[str, list[str]]:
    reader = Reader(text, is_cut=is_cut)
    walk = _Walk(reader, schema, rules, nested)
    spans = sorted(walk.spans(), key=lambda span: span[0])
    parts: list[str] = []
    paths: list[str] = []
    done = 0
    for start, end, shown, path in spans:
        if start >= done:
            parts += (text[done:start], shown)
            done = end
            paths.append(path)
    return "".join((*parts, text[done : reader.ended_at])), paths


def _redact_broken(text: str, rules: Rules) -> str:
    """Return what nearly is JSON up to the first key that sounds secret: where its value ends, nobody can tell."""
    if text.lstrip()[:1] in ("{", "["):
        for found in _NAMED.finditer(text):
            if not found["is_bare"] and rules.is_secret(found["key"]):
                return redact_text(text[: found.start()], rules) + HIDDEN
    return redact_text(text, rules)


_Span = tuple[int, int, str, str]  # where it stands, what is shown instead, and its path


class _Frame:
    """An object or list that is open: whether a member names another one as secret, and where that one stands."""

    def __init__(self, start: int, nodes: list[Any]) -> None:
        self.start = start
        self.nodes = nodes
        self.is_named = False
        self.values: list[_Span] = []
        self.before = ""


class _Walk:
    """Finds what is to be hidden in one text."""

    def __init__(self, reader: Reader, schema: Any, rules: Rules, nested: int) -> None:
        self._reader = reader
        self._schema = Schema(schema)
        self._rules = rules
        self._nested = nested
        self._frames: list[_Frame] = []

    def spans(self) -> Iterator[_Span]:
        """Yield what is to be hidden; spans may lie in others."""
        text, path = self._reader.text, self._reader.path
        hidden_from, hidden_depth, hidden_path = -1, 0, ""
        for what, start, end in self._reader:
            if hidden_from >= 0:
                if what == "close" and len(path) == hidden_depth:
                    yield hidden_from, end, f'"{HIDDEN}"', hidden_path
                    hidden_from = -1
                continue
            if what == "close":
                yield from self._closed(end)
                continue
            nodes = self._nodes()
            if self._is_hidden(nodes):
                if what == "open":
                    hidden_from, hidden_depth, hidden_path = start, len(path), _words(path)
                else:
                    yield start, end, f'"{HIDDEN}"', _words(path)
            elif what == "open":
                self._note_value(start, len(text))
                self._frames.append(_Frame(start, nodes))
            else:
                yield from self._of_value(text[start:end], start, end)
        if hidden_from >= 0:
            yield hidden_from, len(text), f'"{HIDDEN}"', hidden_path
        for frame in self._frames:  # the text is cut: it is not known what they are named
            yield from frame.values

    def _nodes(self) -> list[Any]:
        if not self._frames:
            return self._schema.root()
        return self._schema.inside(self._frames[-1].nodes, self._reader.path[-1])

    def _is_hidden(self, nodes: list[Any]) -> bool:
        if self._schema.is_secret(nodes):
            return True
        if not self._frames:
            return False
        key, frame = self._reader.path[-1], self._frames[-1]
        if isinstance(key, str):
            return self._rules.is_secret(key)
        named, frame.before = frame.before, ""
        return bool(named)

    def _closed(self, end: int) -> Iterator[_Span]:
        frame = self._frames.pop()
        if frame.is_named:
            yield from frame.values
        above = self._frames[-1].values if self._frames else []
        if above and above[-1][0] == frame.start:
            above[-1] = (frame.start, end, *above[-1][2:])

    def _note_value(self, start: int, end: int) -> None:
        if self._frames and self._reader.path and str(self._reader.path[-1]).lower() in VALUES:
            self._frames[-1].values.append((start, end, f'"{HIDDEN}"', _words(self._reader.path)))

    def _of_value(self, token: str, start: int, end: int) -> Iterator[_Span]:
        self._note_value(start, end)
        if token[0] != '"':
            return
        said = decoded(token)
        if self._frames:
            key, frame = self._reader.path[-1], self._frames[-1]
            if isinstance(key, int):
                frame.before = said if len(said) <= MAX_KEY and self._rules.is_secret(said) else ""
            elif key.lower() in NAMES and self._rules.is_secret(said):
                frame.is_named = True
        shown = self._inside(said)
        if shown != said:
            yield start, end, encoded(shown), _words(self._reader.path)

    def _inside(self, said: str) -> str:
        """Return what of a string is shown: it may be JSON itself, or a line with a secret."""
        if said.lstrip()[:1] in ("{", "["):
            if self._nested >= MAX_NESTED:
                return HIDDEN
            try:
                return _redacted(said, None, self._rules, False, self._nested + 1)[0]
            except NotJson:
                pass
        return redact_text(said, self._rules)


def _words(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


# --- what a contract calls secret --------------------------------------------------------------------------------------------


class Schema:
    """Follows a JSON schema beside a payload, without ever resolving anything but its own parts. Any object will do for one."""

    def __init__(self, schema: Any) -> None:
        self._schema: Any = schema
        self._known: dict[tuple[tuple[int, ...], str | None], list[Any]] = {}

    def root(self) -> list[Any]:
        """Return the parts that describe the whole."""
        return self._spread([self._schema])

    def inside(self, nodes: list[Any], key: str | int) -> list[Any]:
        """Return the parts that describe a member, or an item, of what these parts describe."""
        if not nodes:
            return []
        name = key if isinstance(key, str) else None
        known = (tuple(map(id, nodes)), name)
        if known not in self._known:
            if len(self._known) > 10 * MAX_NODES:
                self._known.clear()  # a payload may have as many keys as it likes
            self._known[known] = self._spread([part for node in nodes for part in _inner(node, name)])
        return self._known[known]

    def is_secret(self, nodes: list[Any]) -> bool:
        """Return whether one of these parts says so, or there are too many to tell."""
        return len(nodes) > MAX_NODES or any(node.get("writeOnly") is True for node in nodes)

    def _spread(self, nodes: list[Any]) -> list[Any]:
        """Return these parts with all that they refer to; MAX_NODES and one more where that is too much."""
        found: list[Any] = []
        seen: set[int] = set()
        todo = nodes[::-1]
        while todo and len(found) <= MAX_NODES:
            node = todo.pop()
            if id(node) not in seen and isinstance(node, dict):
                known = cast("dict[str, Any]", node)
                seen.add(id(known))
                found.append(known)
                todo += self._referred(known)
        return found

    def _referred(self, node: dict[str, Any]) -> list[Any]:
        parts: list[Any] = []
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith("#"):
            parts.append(pointed(self._schema, reference))
        for name in ("anyOf", "oneOf", "allOf"):
            parts += _list(node.get(name))
        return [*parts, *[node.get(name) for name in ("if", "then", "else")]]


def _inner(node: dict[str, Any], name: str | None) -> list[Any]:
    if name is None:
        return [node.get("items"), node.get("additionalItems"), node.get("contains"), *_list(node.get("prefixItems"))]
    members, patterns = node.get("properties"), node.get("patternProperties")
    found = [cast("dict[str, Any]", members).get(name)] if isinstance(members, dict) else []
    others = list(cast("dict[str, Any]", patterns).values()) if isinstance(patterns, dict) else []
    return [*found, *others, node.get("additionalProperties") if found[:1] in ([], [None]) else None]


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def pointed(schema: Any, reference: str) -> Any:
    """Return the part of a schema that a reference such as `#/$defs/Person` means; None where there is none."""
    node = schema
    for word in reference[1:].split("/")[1:20]:
        name = word.replace("~1", "/").replace("~0", "~")
        node = cast("dict[str, Any]", node).get(name) if isinstance(node, dict) else None
    return node


def has_secrets(schema: Any) -> bool:
    """Return whether a schema calls anything secret, wherever that stands."""
    return schema is not None and '"writeOnly": true' in json.dumps(schema)


# --- edits -------------------------------------------------------------------------------------------------------------------


class CannotKeep(ValueError):
    """A placeholder was left where something else was changed: what it stands for cannot be kept."""


def restore_redacted(edited: str, original: str, schema: Any = None, rules: Rules = PLAIN) -> str:
    """Return an edited payload with what its placeholders stand for. That is possible only where nothing else was changed: else
    the value would go where its owner has not sent it.

    Raises:
        CannotKeep: a placeholder stands beside a change.
    """
    if HIDDEN not in edited:
        return edited
    shown, _ = redact_json(original, schema, rules)
    if edited == shown or _tokens(edited) == _tokens(shown):
        return original
    raise CannotKeep("a redacted value can be kept only where nothing else is changed: write it anew, or undo the other changes")


def _tokens(text: str) -> list[str]:
    try:
        return compact(text)
    except NotJson:
        return [text]


# --- what cannot be seen -----------------------------------------------------------------------------------------------------

# Controls but tab and newline, and what turns the direction of a line, or has no width: they would make a text look like another.
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Return a text in which control and bidi characters can be seen, as `⟨202e⟩`."""
    return _UNSEEN.sub(lambda found: f"⟨{ord(found[0]):04x}⟩", text)


def visible_json(text: str) -> str:
    """Return JSON in which control and bidi characters can be seen, as escapes: it says the same as before."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
