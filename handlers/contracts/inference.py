"""The payload and the result of `run-inference`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.types import Alias, ColumnName, Compression, Delimiter, Line, RootPath, Version, check_path
from runtime import Priority, contract

MAX_ROWS: Final = 1000  # in the payload, of as many columns; a guess: what is more belongs into a file
MAX_ANSWERS: Final = 100  # in the result; a guess: people wait for few, and what is kept in Redis is small

Cell = float | Line | None  # a whole number becomes a float: models know no other numbers
Row = Annotated[list[Cell], Meta(min_length=1, max_length=MAX_ROWS)]
Answer = float | int | bool | str | list[float]
Output = Literal["label", "probability", "value"]


@contract("run-inference", priority=Priority.HIGH)
class RunInference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ask a model of the worker about rows: those in `rows`, or those of a file.

    The columns of `rows` are the model's, in its order, or in that of `columns`. Up to a hundred answers stand in the result.
    More, and those about a file, go to the file `to`, a row for each, after the columns of the file that `keep` names. Without
    `output`, a classifier answers with labels, and a regression with values.
    """

    model: Alias
    version: Version | None = None
    output: Output | None = None
    rows: Annotated[list[Row], Meta(min_length=1, max_length=MAX_ROWS)] | None = None
    columns: Annotated[list[ColumnName], Meta(max_length=MAX_ROWS)] = []
    file: RootPath | None = None
    format: Literal["csv", "jsonl"] = "csv"
    compress: Compression = "none"
    delimiter: Delimiter = ","
    keep: Annotated[list[ColumnName], Meta(max_length=20)] = []
    to: RootPath | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check that the fields go together.

        Raises:
            ValueError: they do not; or a path is not in composed form (NFC).
        """
        if (self.rows is None) == (self.file is None):
            raise ValueError("must have either `rows` or `file`")
        if self.file is None and (self.keep or self.compress != "none"):
            raise ValueError("`keep` and `compress` go with `file`")
        if self.file is not None and (self.columns or self.to is None):
            raise ValueError("`file` needs `to`, and takes no `columns`")
        if self.rows is not None and self.to is None and len(self.rows) > MAX_ANSWERS:
            raise ValueError(f"`rows` must be at most {MAX_ANSWERS} without `to`")
        if len(set(self.keep)) < len(self.keep) or len(set(self.columns)) < len(self.columns):
            raise ValueError("must name each column once")
        for field in ("file", "to"):
            path = getattr(self, field)
            if path is not None:
                check_path(path, field)


class Inferred(msgspec.Struct, frozen=True, kw_only=True):
    """What the model has answered: `outputs`, one for each row, or the file that has them.

    Probabilities are in the order of `classes`. `model_ms` is the time within the model.
    """

    model: str
    version: str
    rows: int
    model_ms: float
    classes: list[int | float | bool | str] | None = None
    outputs: list[Answer] | None = None
    path: str | None = None
    bytes: int | None = None
    sha256: str | None = None
