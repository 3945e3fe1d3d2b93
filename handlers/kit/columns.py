"""Typed columns: texts of CSV and values of JSON become what the database takes, or are refused with a reason."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from handlers.contracts.data import Column
from handlers.contracts.sources import MAX_INTEGER
from handlers.kit.failures import BadRow
from runtime import Dead

MAX_DIGITS: Final = 1000  # of a decimal, on either side of its point; those that PostgreSQL lets one declare

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,19}").fullmatch
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?").fullmatch
_BOOLEANS: Final = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}
_LIMITS: Final = {"smallint": 2**15 - 1, "integer": 2**31 - 1}
# The types of PostgreSQL that take values of each type of ours; one that no list names (an enumeration, a domain) takes all.
_KINDS: Final[dict[str, frozenset[str]]] = {
    "text": frozenset({"text", "character varying", "character"}),
    "int": frozenset({"smallint", "integer", "bigint", "numeric"}),
    "float": frozenset({"real", "double precision"}),
    "decimal": frozenset({"numeric"}),
    "bool": frozenset({"boolean"}),
    "date": frozenset({"date"}),
    "timestamp": frozenset({"timestamp with time zone", "timestamp without time zone"}),
    "json": frozenset({"json", "jsonb"}),
    "uuid": frozenset({"uuid"}),
}
_KNOWN: Final = frozenset(name for names in _KINDS.values() for name in names)

Parse = Callable[[Any], Any]


class BadCell(BadRow):
    """A value does not fit; the text shows nothing of it."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


class Columns:
    """Turns the values of a record into those of a row of the table."""

    def __init__(
        self,
        columns: Sequence[Column],
        kinds: Mapping[str, str],
        key: Sequence[str],
        *,
        dialect: Literal["sqlite", "postgresql"],
        is_json: bool,
    ) -> None:
        """Check the columns against the table's.

        Raises:
            Dead: the table has no such column, or one of another type; `bad-query`.
        """
        self.names = [column.to for column in columns]
        self._converts: list[Parse] = []
        for column in columns:
            _check(column, kinds, dialect)
            null = None if is_json else column.null_as
            is_required = column.required or column.to in key
            self._converts.append(_with_null(_parser(column, kinds[column.to], dialect, is_json), null, is_required))

    def row(self, number: int, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return the row, with its number before it.

        Raises:
            BadCell: a value does not fit its column.
        """
        try:
            return (number, *[convert(value) for convert, value in zip(self._converts, values, strict=True)])
        except (ValueError, OverflowError, RecursionError):
            for name, convert, value in zip(self.names, self._converts, values, strict=True):
                try:
                    convert(value)
                except _Unfit as error:
                    raise BadCell(name, str(error)) from None
                except (ValueError, OverflowError, RecursionError):
                    raise BadCell(name, "is no such value") from None
            raise


class _Unfit(ValueError):
    """With a text that may be shown."""


def _check(column: Column, kinds: Mapping[str, str], dialect: str) -> None:
    if column.to not in kinds:
        raise Dead(f"no column {column.to} in the table", "bad-query")
    kind = re.sub(r"\(.*?\)", "", kinds[column.to])
    fits = kind in _KINDS[column.type] or (kind not in _KNOWN and not kind.endswith("[]"))
    if dialect == "postgresql" and not fits:  # a column of SQLite takes everything
        raise Dead(f"column {column.to} of the table is of type {kind}, which does not take {column.type}", "bad-query")


def _with_null(parse: Parse | None, null: str | None, required: bool) -> Parse:
    def convert(value: Any) -> Any:
        if value == null:
            if required:
                raise _Unfit("must not be missing")
            return None
        return value if parse is None else parse(value)

    return convert


def _parser(column: Column, kind: str, dialect: str, is_json: bool) -> Parse | None:
    """Return what makes a value out of a cell; None for a text of CSV, which is one."""
    match column.type:
        case "text":
            return _text if is_json else None
        case "int":
            limit = _LIMITS.get(kind, MAX_INTEGER)
            return lambda value: _integer(value, limit)
        case "float":
            return _float
        case "decimal":
            return _decimal if dialect == "postgresql" else lambda value: str(_decimal(value))
        case "bool":
            return _boolean
        case "date":
            return _date if dialect == "postgresql" else lambda value: _date(value).isoformat()
        case "timestamp":
            has_zone = None if dialect == "sqlite" else kind.endswith("with time zone")
            return lambda value: _timestamp(value, has_zone)
        case "json":
            return _json_value if is_json else _json_text
        case "uuid":
            return _uuid if dialect == "postgresql" else lambda value: str(_uuid(value))


def _text(value: Any) -> str:
    if value.__class__ is not str:
        raise _Unfit("must be a text")
    if "\0" in value:
        raise _Unfit("must not have a NUL character")
    return value


def _integer(value: Any, limit: int) -> int:
    if value.__class__ is str and _INTEGER(value):
        value = int(value)
    if value.__class__ is not int:
        raise _Unfit("must be a whole number")
    if not -limit - 1 <= value <= limit:
        raise _Unfit(f"must be a whole number of {limit.bit_length() + 1} bits")
    return value


def _number(value: Any) -> Any:
    if value.__class__ is str and _NUMBER(value):
        return value
    if value.__class__ is int or value.__class__ is Decimal:
        return value
    raise _Unfit("must be a number")


def _float(value: Any) -> float:
    number = float(_number(value))
    if not math.isfinite(number):
        raise _Unfit("must be a number of 64 bits")
    return number


def _decimal(value: Any) -> Decimal:
    number = Decimal(_number(value))
    _, digits, exponent = number.as_tuple()
    if not (isinstance(exponent, int) and exponent >= -MAX_DIGITS and len(digits) + exponent <= MAX_DIGITS):
        raise _Unfit(f"must have at most {MAX_DIGITS} digits on either side of its point")
    return number


def _boolean(value: Any) -> bool:
    found = value if value.__class__ is bool else _BOOLEANS.get(value.lower()) if value.__class__ is str else None
    if found is None:
        raise _Unfit("must be true or false")
    return found


def _date(value: Any) -> date:
    if value.__class__ is str and len(value) == len("2024-01-01"):
        try:
            return date.fromisoformat(value)
        except ValueError:
            pass
    raise _Unfit("must be a date: 2024-01-31")


def _timestamp(value: Any, has_zone: bool | None) -> datetime | str:
    """Return a time, in UTC if it has a zone; as a text for a database that does not tell the two apart."""
    try:
        time = datetime.fromisoformat(value)
        time = time.astimezone(UTC) if time.tzinfo else time
    except (ValueError, TypeError, OverflowError):
        raise _Unfit("must be a time: 2024-01-31T12:00:00+01:00") from None
    if has_zone is None:
        return time.isoformat(" ")
    if has_zone != (time.tzinfo is not None):
        raise _Unfit(f"must be a time {'with' if has_zone else 'without'} a zone")
    return time


_decode_json: Final = msgspec.json.Decoder(float_hook=Decimal).decode
_encode_json: Final = msgspec.json.Encoder(decimal_format="number").encode


def _json_value(value: Any) -> str:
    return _encode_json(value).decode()


def _json_text(value: str) -> str:
    try:
        return _json_value(_decode_json(value))
    except (ValueError, RecursionError):
        raise _Unfit("must be JSON") from None


def _uuid(value: Any) -> UUID:
    try:
        return UUID(value)
    except (ValueError, TypeError, AttributeError):
        raise _Unfit("must be a UUID") from None
