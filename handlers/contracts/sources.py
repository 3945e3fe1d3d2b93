"""Where rows come from, as payloads say it: a table with conditions, or a query that the worker's operator has written.

The limits keep a query plan small. They are guesses, far above what a person writes, unless another source is named.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias, Ident, Params, check_params

MAX_COLUMNS: Final = 200
MAX_VALUES: Final = 1000  # of one `in`: 20 conditions stay below the 32,766 variables that SQLite binds in a statement
MAX_INTEGER: Final = 2**63 - 1  # the largest INTEGER of SQLite, and BIGINT elsewhere

Scalar = str | int | float | bool


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="query"):
    """A query that the worker's operator has written, with values for its parameters."""

    db: Alias
    query: Alias
    params: Params = {}

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: they are nested too deep, too many, too large, or hold control characters.
        """
        check_params(self.params)


class Condition(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A condition that a row must meet. `is_null` takes no value, or `false` for its opposite."""

    column: Ident
    op: Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "is_null", "like_prefix"]
    value: Scalar | list[Scalar] | None = None

    def __post_init__(self) -> None:
        """Check the value against the operator.

        Raises:
            ValueError: the operator does not take it, or a number has more than 64 bits; the text shows no value.
        """
        match self.op, self.value:
            case "in", list():
                fits = 1 <= len(self.values) <= MAX_VALUES
            case "is_null", None | bool():
                fits = True
            case "like_prefix", str():
                fits = True
            case "eq" | "ne" | "lt" | "le" | "gt" | "ge", str() | int() | float():
                fits = True
            case _:
                fits = False
        if not fits:
            raise ValueError(f"`{self.op}` does not take this kind of value")
        if any(isinstance(value, int) and abs(value) > MAX_INTEGER for value in self.values):
            raise ValueError("a number must fit into 64 bits")

    @property
    def values(self) -> list[Scalar]:
        """The value or values, as a list."""
        if isinstance(self.value, list):
            return self.value
        return [] if self.value is None else [self.value]


class Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A column to sort by."""

    column: Ident
    descending: bool = False


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="table"):
    """Columns of a table or view, for the rows that meet all conditions."""

    db: Alias
    table: Ident
    columns: Annotated[list[Ident], Meta(min_length=1, max_length=MAX_COLUMNS)]
    where: Annotated[list[Condition], Meta(max_length=20)] = []
    order_by: Annotated[list[Order], Meta(max_length=8)] = []


Source = Query | Table
