"""The kinds of text a payload may hold, each with its limit; what is refused here can do no harm further on.

Every pattern ends in `(?![\\s\\S])`: `$` would also match before a final newline, and that newline would end a mail header. All
of them mean the same in Python and in ECMAScript, since producers in other languages get them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, cast
from unicodedata import is_normalized

import msgspec
from msgspec import Meta

MAX_LINE_CHARS: Final = 500
MAX_TEXT_CHARS: Final = 30_000
MAX_PARAMS_BYTES: Final = 32 * 1024
MAX_PARAMS_DEPTH: Final = 6
MAX_PARAMS_KEYS: Final = 64  # per level

# C0 and C1 controls, the two Unicode line ends, and the marks that let text run backwards to deceive the eye.
_FORBIDDEN: Final = r"\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_LINE: Final = rf"^[^\x00-\x1f{_FORBIDDEN}]*(?![\s\S])"
# A carriage return only as half of a line end; the look-ahead finds a lone one.
_TEXT: Final = rf"^(?![\s\S]*\r(?!\n))[^\x00-\x08\x0b\x0c\x0e-\x1f{_FORBIDDEN}]*(?![\s\S])"
_ALIAS: Final = r"^[a-z][a-z0-9_-]{0,31}(?![\s\S])"
# One addr-spec without quotes, comments and domain literals: each of them lets a comma or a space into an address. Whether the
# dots stand where they may is seen when the mail is made.
_ADDRESS: Final = r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[^\x00-,/:-@\[-`{-\xa0\u2000-\u206f]+(?![\s\S])"
# A part is neither `.` nor `..`, and none is empty; whether it is composed (NFC) is seen by `check_path`.
_PART: Final = rf"(?!\.{{1,2}}(?:/|(?![\s\S])))[^/\\\x00-\x1f{_FORBIDDEN}]+"
_ROOT_PATH: Final = rf"^[a-z][a-z0-9_-]{{0,31}}:{_PART}(?:/{_PART})*(?![\s\S])"
_IDENT: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,62}(?![\s\S])"
_GLOB: Final = rf"^[^/\x00-\x1f{_FORBIDDEN}]+(?![\s\S])"

Alias = Annotated[str, Meta(pattern=_ALIAS, description="a name that the worker's configuration knows")]
Line = Annotated[str, Meta(pattern=_LINE, max_length=MAX_LINE_CHARS, description="one line of text")]
Text = Annotated[str, Meta(pattern=_TEXT, max_length=MAX_TEXT_CHARS, description="text with tabs and line ends")]
Address = Annotated[str, Meta(pattern=_ADDRESS, max_length=254, description="one mail address, without a display name")]
# For a union with a list. msgspec (0.22) takes the pattern of a text that shares a union with a list or a dict for something
# else, and aborts the process at its end; so the pattern is only in the schema, and the contract calls `is_address`.
LoneAddress = Annotated[str, Meta(max_length=254, extra_json_schema={"pattern": _ADDRESS, "description": "one mail address"})]
RootPath = Annotated[
    str, Meta(pattern=_ROOT_PATH, max_length=512, description="`root:relative/path`, below a folder that the configuration knows")
]
Ident = Annotated[str, Meta(pattern=_IDENT, description="the name of a table or a column")]
Glob = Annotated[str, Meta(pattern=_GLOB, max_length=100, description="a pattern for file names, with `*`, `?` and `[…]`")]
Params = Annotated[dict[str, Any], Meta(max_length=MAX_PARAMS_KEYS, description="values for a template")]

is_line = re.compile(_LINE).match
is_text = re.compile(_TEXT).match
is_address = re.compile(_ADDRESS).match


def check_path(path: str, field: str) -> None:
    """Return only if the path is in Unicode's composed form, so that one name has one spelling.

    Raises:
        ValueError: it is not.
    """
    if not is_normalized("NFC", path):
        raise ValueError(f"not in Unicode's composed form (NFC) - at `$.{field}`")


def check_params(params: Mapping[str, Any]) -> None:
    """Return only if the values are few, flat, small and free of control characters.

    Raises:
        ValueError: they are not; the text names the limit, never a value.
    """
    level: list[Any] = [params]
    for _ in range(MAX_PARAMS_DEPTH + 1):
        level = [inner for value in level for inner in _children(value)]
        if not level:
            break
    else:
        raise ValueError(f"`params` is nested deeper than {MAX_PARAMS_DEPTH} levels")
    size_bytes = len(msgspec.json.encode(params))
    if size_bytes > MAX_PARAMS_BYTES:
        raise ValueError(f"`params` has {size_bytes} bytes, the limit is {MAX_PARAMS_BYTES}")


def _children(value: Any) -> list[Any]:
    match value:
        case dict():
            if len(cast("dict[Any, Any]", value)) > MAX_PARAMS_KEYS:
                raise ValueError(f"`params` has more than {MAX_PARAMS_KEYS} keys on one level")
            return [*cast("dict[Any, Any]", value), *cast("dict[Any, Any]", value).values()]
        case list() | tuple():
            return list(cast("list[Any]", value))
        case str() if not is_text(value):
            raise ValueError("`params` has a text with control characters")
        case _:
            return []
