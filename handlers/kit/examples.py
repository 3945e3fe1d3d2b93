"""The data that models are trained and tried on, from a file or a database, as columns of bounded size.

Nothing in a file is executed: arrays are read from their bytes by their own header, objects in them are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import struct
import zipfile
import zlib
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from itertools import islice
from typing import Any, Final

import msgspec
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from handlers.contracts.training import MAX_FEATURES, CsvFile, Data, NpzFile, Task
from handlers.kit.arrays import NO_CATEGORY, Codes, number_of, numbers_of, recoded
from handlers.kit.databases import snapshot
from handlers.kit.failures import BAD_PAYLOAD
from handlers.kit.files import chunks_of, source
from handlers.kit.models import Feature, Label
from handlers.kit.records import MAX_RATIO, SLACK_BYTES, Records, uncut
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead

MAX_CLASSES: Final = 1000  # a guess
MAX_MEMBERS: Final = 100  # of an npz file; a guess
MAX_HEADER_BYTES: Final = 10_000  # as numpy itself has it
MAX_LABEL_CHARS: Final = 200  # a guess
STEP_BYTES: Final = 2**20  # unpacked at a time: all at once, a member may unpack to far more than it says
BATCH_ROWS: Final = 1000  # made numbers of at a time; a guess
CELL_BYTES: Final = 8  # of a float64, and of most others


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be read: these features, or all columns but the target; those in `texts` are texts."""

    target: str
    task: Task
    features: Sequence[str] = ()
    texts: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Examples:
    """Columns of examples, an array for each feature, and what a model should say of each. `sha256` is that of the file or rows.

    The column of a text has its place among the categories of its feature, which are the texts that are in these data.
    """

    features: list[Feature]
    columns: list[NDArray[Any]]
    target: NDArray[Any]
    sha256: str

    @property
    def rows(self) -> int:
        """How many examples there are."""
        return len(self.target)

    def columns_for(self, features: Sequence[Feature]) -> list[NDArray[Any]]:
        """Return the columns as a model knows them, by its features and their categories.

        Raises:
            Dead: it takes one for texts, and another model of the same job for numbers; `model-mismatch`.
        """
        there = {feature.name: (feature, column) for feature, column in zip(self.features, self.columns, strict=True)}
        found: list[NDArray[Any]] = []
        for wanted in features:
            feature, column = there[wanted.name]
            if feature.kind != wanted.kind:
                raise Dead(f"column {wanted.name!r} is of texts to one model, and of numbers to another", "model-mismatch")
            found.append(recoded(wanted, feature.categories, column) if wanted.kind == "text" else column)
        return found


def read_examples(settings: Settings, data: Data, wanted: Wanted, attempt: int, stop: Stop) -> Examples:
    """Return the examples that the data hold.

    Raises:
        Dead: a column is missing, `bad-payload`, `bad-query`; a value cannot be used, or none is there, `bad-rows`; there are too
            many, `too-large`; or as for `source` and `snapshot`.
        Retry, Snooze, TemporaryFailure, sqlite3.Error, OSError: as for these.
    """
    max_cells = settings.registry().max_cells
    if isinstance(data, NpzFile):
        with source(settings, data.path, attempt) as file:
            return _arrays(file, data, wanted, max_cells, stop)
    if isinstance(data, CsvFile):
        with source(settings, data.path, attempt) as file:
            delimiter = "\t" if data.delimiter == "tab" else data.delimiter
            names = [*wanted.features, wanted.target] if wanted.features else []
            records = Records(file, names, stop, layout="csv", compress=data.compress, delimiter=delimiter)
            return _Columns(records.names, wanted, max_cells).read(_checked(records), records.sha256)
    with snapshot(settings, data, stop) as rows:
        digest = hashlib.sha256()
        return _Columns(rows.columns, wanted, max_cells).read(_hashed(rows.rows, digest, stop), digest)


def _checked(records: Records) -> Iterator[Sequence[Any]]:
    for line, cells, reason in records.start(0, 0):
        if reason:
            raise Dead(f"line {line} {reason}", "bad-rows")
        yield cells


def _hashed(rows: Iterable[Sequence[Any]], digest: Any, stop: Stop) -> Iterator[Sequence[Any]]:
    encode = msgspec.json.Encoder(enc_hook=str).encode
    for row in rows:
        stop.check()
        digest.update(encode(row))
        digest.update(b"\n")
        yield row


# --- rows ----------------------------------------------------------------------------------------------------------------


class _Columns:
    """Takes rows, and makes columns of them."""

    def __init__(self, names: Sequence[str], wanted: Wanted, max_cells: int) -> None:
        features = list(wanted.features) or [name for name in names if name != wanted.target]
        if wanted.target in features:
            raise Dead(f"the target {wanted.target!r} is a feature of the model", BAD_PAYLOAD)
        for name in (*features, *wanted.texts, wanted.target):
            if names.count(name) != 1:
                raise Dead(f"the data have {names.count(name)} columns named {name!r}, not one{uncut(names)}", BAD_PAYLOAD)
        if not 1 <= len(features) <= MAX_FEATURES:
            raise Dead(f"the data must have 1 to {MAX_FEATURES} features, and have {len(features)}", "too-large")
        self._wanted = wanted
        self._max_rows = max_cells // len(features)
        self._max_cells = max_cells
        self._features = features
        self._places = [names.index(name) for name in features]
        self._target = names.index(wanted.target)

    def read(self, rows: Iterable[Sequence[Any]], sha256: Any) -> Examples:
        """Return all rows as columns; `sha256` is the digest of the file, or of what was read once that is over."""
        wanted, at = self._wanted, self._target
        values: list[array[float] | _Texts] = [_Texts(name) if name in wanted.texts else array("d") for name in self._features]
        target: list[Any] = []
        left = iter(rows)
        while batch := list(islice(left, BATCH_ROWS)):
            first = len(target) + 1
            target += [_target(row[at], wanted.task, number) for number, row in enumerate(batch, first)]
            if len(target) > self._max_rows:
                raise Dead(f"the data must have at most {self._max_cells} rows x columns", "too-large")
            for place, name, kept in zip(self._places, self._features, values, strict=True):
                cells = [row[place] for row in batch]
                kept.extend(cells if isinstance(kept, _Texts) else _numbers(cells, name, first))
        if not target:
            raise Dead("the data have no rows", "bad-rows")
        pairs: list[tuple[Feature, NDArray[Any]]] = [
            kept.coded() if isinstance(kept, _Texts) else (Feature(name=name), np.array(kept))
            for name, kept in zip(self._features, values, strict=True)
        ]
        digest = sha256 if isinstance(sha256, str) else sha256.hexdigest()
        return Examples([each for each, _ in pairs], [column for _, column in pairs], labels_of(target, wanted.task), digest)


class _Texts:
    """A column of texts, each kept once."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._places: dict[str, int] = {}
        self._rows = array("q")

    def extend(self, cells: Iterable[Any]) -> None:
        for value in cells:
            if value is None or value == "":
                self._rows.append(NO_CATEGORY)
            else:
                text = value if isinstance(value, str) else str(value)
                self._rows.append(self._places.setdefault(text, len(self._places)))

    def coded(self) -> tuple[Feature, Codes]:
        texts = list(self._places)
        feature = Feature(name=self._name, kind="text", categories=sorted(texts))
        return feature, recoded(feature, texts, np.array(self._rows, dtype=np.int64))


def _numbers(cells: Sequence[Any], name: str, first: int) -> array[float]:
    """Return cells as numbers, all at once where nothing is missing or wrong; that is most of them."""
    found = numbers_of(cells)
    return array("d", [_number(cell, name, row) for row, cell in enumerate(cells, first)]) if found is None else found


def _number(value: Any, name: str | None, row: int) -> float:
    """Return a value as a number; what is missing is NaN. Without the name of a column it is the target."""
    place = "the target" if name is None else f"column {name!r}"
    try:
        number = number_of(value)
    except (ValueError, TypeError, OverflowError):
        hint = "" if name is None else "; hint: `one_hot` is for texts"
        raise Dead(f"row {row}: {place} must have numbers{hint}", "bad-rows") from None
    if math.isinf(number):
        raise Dead(f"row {row}: {place} must have finite numbers", "bad-rows")
    return number


def _target(value: Any, task: Task, row: int) -> Any:
    if value is None or value == "":
        raise Dead(f"row {row} has no target", "bad-rows")
    if task == "classification":
        return value
    return _number(value, None, row)


def labels_of(values: Sequence[Any], task: Task) -> NDArray[Any]:
    """Return numbers for a regression; else labels: integers where all are whole numbers, truths, or else texts.

    Raises:
        Dead: a label is no text and no finite number, or is missing, `bad-rows`; there are too many different ones, `too-large`.
    """
    if task == "regression":
        found = np.array(values, dtype=np.float64)
        if np.isnan(found).any():
            raise Dead("each row must have a target", "bad-rows")
        return found
    kinds: set[type] = {type(value) for value in values}
    if kinds == {bool}:
        return np.array(values, dtype=np.bool_)
    if not kinds <= {str, int, float, Decimal, bool}:
        raise Dead("labels must be texts or numbers", "bad-rows")
    if not all(value if isinstance(value, str) else math.isfinite(value) for value in set(values)):
        raise Dead("each row must have a target, and numbers among them must be finite", "bad-rows")
    is_whole = not kinds & {bool, str} and all(value == int(value) for value in set(values))
    found = np.array([int(value) for value in values]) if is_whole else np.array([label_text(value) for value in values])
    if found.dtype.kind == "O" or found.dtype.itemsize > 4 * MAX_LABEL_CHARS:
        raise Dead(f"labels must have at most {MAX_LABEL_CHARS} characters, and 64 bits", "bad-rows")
    if len(np.unique(found)) > MAX_CLASSES:
        raise Dead(f"there must be at most {MAX_CLASSES} different labels", "too-large")
    return found


def label_text(label: Label | Decimal) -> str:
    """Return the text of a label, which a number has by its value: 2, 2.0 and Decimal("2.00") are one label."""
    if isinstance(label, str):
        return label
    return str(int(label)) if label == int(label) else str(float(label))


# --- arrays --------------------------------------------------------------------------------------------------------------


def _arrays(file: int, data: NpzFile, wanted: Wanted, max_cells: int, stop: Stop) -> Examples:
    if wanted.texts:
        raise Dead("an npz file has numbers, and no texts for `one_hot`", BAD_PAYLOAD)
    digest = hashlib.sha256()
    for chunk in chunks_of(file, stop):
        digest.update(chunk)
    with _members(file) as members:
        table = _member(members, data.array, 2, "biuf", max_cells)
        target = _member(members, wanted.target, 1, "biuf" if wanted.task == "regression" else "biufU", max_cells)
    if len(table) != len(target) or not len(target):
        raise Dead(f"{data.array} must have as many rows as {wanted.target}, and one at least", "bad-rows")
    names = {f"x{place}": place for place in range(table.shape[1])}
    features = list(wanted.features or names)
    if unknown := [name for name in features if name not in names]:
        raise Dead(f"{data.array} has no column {unknown[0]!r}; hint: x0 to x{len(names) - 1}", BAD_PAYLOAD)
    if not 1 <= len(features) <= MAX_FEATURES:
        raise Dead(f"the data must have 1 to {MAX_FEATURES} features, and have {len(features)}", "too-large")
    columns: list[NDArray[Any]] = [table[:, names[name]].astype(np.float64) for name in features]
    labels = labels_of(target.tolist(), wanted.task)
    return Examples([Feature(name=name) for name in features], columns, labels, digest.hexdigest())


@contextlib.contextmanager
def _members(file: int) -> Generator[zipfile.ZipFile]:
    """Yield the members of an npz file.

    Raises:
        Dead: it is not one, or is damaged, `bad-rows`; it has too many members, `too-large`.
    """
    try:
        with open(file, "rb", closefd=False) as raw, zipfile.ZipFile(raw) as members:
            if len(members.infolist()) > MAX_MEMBERS:
                raise Dead(f"an npz file must have at most {MAX_MEMBERS} arrays", "too-large")
            yield members
    # What zipfile raises, also for what is encrypted, or packed in a way that it does not know.
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError) as error:
        raise Dead(f"the file is not npz, or is damaged ({type(error).__name__})", "bad-rows") from None


def _unpacked(members: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytearray:
    """Return a member, of which no more is unpacked than it is said to have.

    Raises:
        ValueError: it is packed in a way that numpy does not write, and of which a little may unpack to much at once.
    """
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(info.compress_type)
    data = bytearray()
    with members.open(info) as stream:
        for piece in iter(partial(stream.read, STEP_BYTES), b""):
            data += piece
    return data


def _member(members: zipfile.ZipFile, name: str, dimensions: int, kinds: str, max_cells: int) -> NDArray[Any]:
    """Return an array, of whose header nothing is believed that its bytes do not bear out.

    Raises:
        Dead: there is none of that name, `bad-payload`; it is `too-large`, or of another shape or kind, `bad-rows`.
        ValueError: it is not an array.
    """
    try:
        info = members.getinfo(f"{name}.npy")
    except KeyError:
        raise Dead(f"the file has no array {name!r}", BAD_PAYLOAD) from None
    if info.file_size > max_cells * CELL_BYTES + MAX_HEADER_BYTES:
        raise Dead(f"{name} must have at most {max_cells} numbers of {CELL_BYTES} bytes", "too-large")
    if info.file_size > MAX_RATIO * info.compress_size + SLACK_BYTES:
        raise Dead(f"{name} must unpack to at most {MAX_RATIO} times its size", "too-large")
    data = _unpacked(members, info)
    stream = io.BytesIO(data)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(npy.read_magic(stream))
    if read_header is None:
        raise Dead(f"{name} must be an array of numbers or texts", "bad-rows")
    shape, is_fortran, kind = read_header(stream, max_header_size=MAX_HEADER_BYTES)
    if kind.hasobject or kind.kind not in kinds or len(shape) != dimensions or min(shape) < 0:
        raise Dead(f"{name} must have {dimensions} dimensions, and numbers{' or texts' * ('U' in kinds)}", "bad-rows")
    if math.prod(shape) > max_cells:
        raise Dead(f"{name} must have at most {max_cells} numbers", "too-large")
    # Which raises where the bytes are not as many as the header says.
    found: NDArray[Any] = np.frombuffer(data, kind, offset=stream.tell()).reshape(shape, order="F" if is_fortran else "C")
    if kind.kind == "f" and np.isinf(found).any():
        raise Dead(f"{name} must have finite numbers", "bad-rows")
    return found
