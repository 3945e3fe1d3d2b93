"""The types of text in payloads, each with a pattern and a limit: a line, an address, an alias, a path below a root.

What these refuse cannot reach a mail header, a file system or a database.

Every pattern ends in `(?![\\s\\S])`: `$` would also match before a final newline, and that newline would end a mail header. All
of them mean the same in Python and in ECMAScript, since producers in other languages get them too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, cast
from unicodedata import is_normalized

import msgspec
from msgspec import Meta

# Guesses: far above what a person writes, and small enough that checking them does not hold up the loop.
MAX_LINE_CHARS: Final = 500
MAX_TEXT_CHARS: Final = 30_000
MAX_PARAMS_BYTES: Final = 32 * 1024
MAX_PARAMS_DEPTH: Final = 6
MAX_PARAMS_KEYS: Final = 64  # per level
MAX_PATH_CHARS: Final = 512
MAX_NAME_CHARS: Final = 80  # of a file; as a mail encodes it, in at most 960 characters, it fits into one line
MAX_COLUMN_CHARS: Final = 100
MAX_ADDRESS_CHARS: Final = 254  # RFC 5321, erratum 1690; of it, 64 before the `@`

# C0 and C1 controls, the two Unicode line ends, and the marks that make text run backwards, which can disguise it.
_FORBIDDEN: Final = r"\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_LINE: Final = rf"^[^\x00-\x1f{_FORBIDDEN}]*(?![\s\S])"
# A carriage return only as half of a line end; the look-ahead finds a lone one.
_TEXT: Final = rf"^(?![\s\S]*\r(?!\n))[^\x00-\x08\x0b\x0c\x0e-\x1f{_FORBIDDEN}]*(?![\s\S])"
_ALIAS: Final = r"^[a-z][a-z0-9_-]{0,31}(?![\s\S])"
# One addr-spec without quotes, comments and domain literals: each of them lets a comma or a space into an address. Whether the
# dots are where they may be is checked when the mail is made.
_ADDRESS: Final = r"^[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,64}@[^\x00-,/:-@\[-`{-\xa0\u2000-\u206f]+(?![\s\S])"
# A part is neither `.` nor `..`, and none is empty; `check_path` checks whether it is composed (NFC).
_PART: Final = rf"(?!\.{{1,2}}(?:/|(?![\s\S])))[^/\\\x00-\x1f{_FORBIDDEN}]+"
_ROOT_PATH: Final = rf"^[a-z][a-z0-9_-]{{0,31}}:{_PART}(?:/{_PART})*(?![\s\S])"
# 63: the longest name in PostgreSQL; SQLite has no limit.
_IDENT: Final = r"^[A-Za-z_][A-Za-z0-9_]{0,62}(?![\s\S])"
_GLOB: Final = rf"^[^/\x00-\x1f{_FORBIDDEN}]+(?![\s\S])"
_FILE_NAME: Final = rf"^{_PART}(?![\s\S])"
# What RFC 3986 allows in a URL, and braces, for what is put in their place; no comma and no `<`, which end one in a mail header.
_HTTPS: Final = r"^https://[A-Za-z0-9][A-Za-z0-9.-]*(?::[0-9]{1,5})?(?:[/?][A-Za-z0-9._~:/?#@!$&'()*+;=%{}-]*)?(?![\s\S])"
_LOCALE: Final = r"^[a-z]{2,3}(?:-[A-Z]{2})?(?![\s\S])"
_VERSION: Final = r"^[a-z2-7]{26}(?![\s\S])"  # `job.work` of the job that made it
_OWN_HEADER: Final = r"^[Xx]-[A-Za-z0-9-]{1,60}(?![\s\S])"

Alias = Annotated[str, Meta(pattern=_ALIAS, description="a name that the worker's settings define")]
Line = Annotated[str, Meta(pattern=_LINE, max_length=MAX_LINE_CHARS, description="one line of text")]
Text = Annotated[str, Meta(pattern=_TEXT, max_length=MAX_TEXT_CHARS, description="text with tabs and line ends")]
Address = Annotated[
    str, Meta(pattern=_ADDRESS, max_length=MAX_ADDRESS_CHARS, description="one mail address, without a display name")
]
# For a union with a list. msgspec (0.22) misreads the pattern of a text that shares a union with a list or a dict, and
# aborts the process at its end; so the pattern is only in the schema, and the contract calls `is_address`.
LoneAddress = Annotated[
    str, Meta(max_length=MAX_ADDRESS_CHARS, extra_json_schema={"pattern": _ADDRESS, "description": "one mail address"})
]
RootPath = Annotated[
    str,
    Meta(
        pattern=_ROOT_PATH, max_length=MAX_PATH_CHARS, description="`root:relative/path`, below a folder that the settings define"
    ),
]
Ident = Annotated[str, Meta(pattern=_IDENT, description="the name of a table or a column")]
Glob = Annotated[str, Meta(pattern=_GLOB, max_length=100, description="a pattern for file names, with `*`, `?` and `[…]`")]
FileName = Annotated[str, Meta(pattern=_FILE_NAME, max_length=MAX_NAME_CHARS, description="the name of a file, without a folder")]
HttpsUrl = Annotated[str, Meta(pattern=_HTTPS, max_length=MAX_LINE_CHARS, description="an https:// URL in ASCII")]
Locale = Annotated[str, Meta(pattern=_LOCALE, description="a language, and optionally a country: `de`, `de-AT`")]
ColumnName = Annotated[
    str, Meta(pattern=_LINE, min_length=1, max_length=MAX_COLUMN_CHARS, description="the name of a column in a file or a result")
]
Version = Annotated[str, Meta(pattern=_VERSION, description="a version of a model, as the job that trained it has said it")]
OwnHeader = Annotated[str, Meta(pattern=_OWN_HEADER, description="the name of a header, `X-…`")]
Params = Annotated[dict[str, Any], Meta(max_length=MAX_PARAMS_KEYS, description="values for a template")]

Compression = Literal["none", "gzip", "zstd"]
Delimiter = Literal[",", ";", "tab", "|"]

is_alias = re.compile(_ALIAS).match
is_version = re.compile(_VERSION).match
is_line = re.compile(_LINE).match
is_text = re.compile(_TEXT).match
is_address = re.compile(_ADDRESS).match


def check_path(path: str, field: str) -> None:
    """Check that the path is in Unicode's composed form, so that one name has one spelling.

    Raises:
        ValueError: it is not.
    """
    if not is_normalized("NFC", path):
        raise ValueError(f"must be in Unicode's composed form (NFC) - at `$.{field}`")


def check_params(params: Mapping[str, Any]) -> None:
    """Check that the values are few, flat, small and free of control characters.

    Raises:
        ValueError: they are not; the text names the limit, never a value.
    """
    level: list[Any] = [params]
    for _ in range(MAX_PARAMS_DEPTH + 1):
        level = [inner for value in level for inner in _children(value)]
        if not level:
            break
    else:
        raise ValueError(f"`params` must be nested at most {MAX_PARAMS_DEPTH} levels deep")
    size_bytes = len(msgspec.json.encode(params))
    if size_bytes > MAX_PARAMS_BYTES:
        raise ValueError(f"`params` must have at most {MAX_PARAMS_BYTES} bytes, and has {size_bytes}")


def _children(value: Any) -> list[Any]:
    match value:
        case dict():
            if len(cast("dict[Any, Any]", value)) > MAX_PARAMS_KEYS:
                raise ValueError(f"`params` must have at most {MAX_PARAMS_KEYS} keys per level")
            return [*cast("dict[Any, Any]", value), *cast("dict[Any, Any]", value).values()]
        case list() | tuple():
            return list(cast("list[Any]", value))
        case str() if not is_text(value):
            raise ValueError("`params` must not hold control characters")
        case _:
            return []
