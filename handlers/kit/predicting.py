"""Models at work, in a child process: loaded from verified bytes and kept, given rows, asked for answers.

Nothing is unpickled: skops makes objects of the types that we list for the estimator, and onnxruntime reads a graph of operators
that it knows itself. Either may crash on a file that was made to do so, so a model is loaded and asked only in a child.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol, cast

import msgspec
import numpy as np
import onnxruntime  # pyright: ignore[reportMissingTypeStubs]
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs]

from handlers.contracts.inference import Output
from handlers.kit.arrays import codes_of, matrix, number_of, numbers_of
from handlers.kit.estimators import load, takes_missing
from handlers.kit.failures import BadRow
from handlers.kit.models import Card, Feature, Label, Model
from runtime import Dead

MAX_MODELS: Final = 4  # in memory; a guess: the models of one service
MAX_NUMBER: Final = 3.4028234e38  # of 32 bits, which trees and graphs take
LACKING: Final = "must not be missing: the model takes no row without it"
MAX_CELLS: Final = 50_000_000  # rows x columns that texts may become, of a batch; a guess: 400 MB
MAX_KEPT_BYTES: Final = 512 * 2**20  # of their files, together; a guess: twice the largest that the settings allow by default
MAX_ONNX_BYTES: Final = 2**31 - 1  # of a message of Protocol Buffers

Matrix = NDArray[Any]


class Asking(Protocol):
    """A model that was loaded. `may_lack` are the kinds of columns that may lack values; `classes` are its labels, if any."""

    may_lack: Sequence[str]
    classes: list[Label]

    def ask(self, rows: Matrix, output: Output) -> Matrix:
        """Return a label, a value or the probabilities of `classes` for each row.

        Raises:
            Dead: this model has no such output; `model-mismatch`.
        """
        ...


# --- loading -------------------------------------------------------------------------------------------------------------


def load_model(card: Card, data: bytes) -> Asking:
    """Return the model that these bytes are, which the caller has verified.

    Raises:
        Dead: they are none, or one with types, operators or files that are not allowed, `model-untrusted`; it is not what its
            card says, `model-mismatch`.
        MemoryError, OSError: the machine has not what it takes, as on a full disk.
    """
    _one_thread()
    try:
        return _Skops(card, data) if card.format == "skops" else _Onnx(card, data)
    except (Dead, MemoryError, OSError):
        raise
    except Exception as error:  # what a damaged file makes libraries raise is of any kind
        if any(text in str(error) for text in ("std::bad_alloc", "Failed to allocate memory")):  # as onnxruntime says it
            raise MemoryError(str(error)) from error
        raise Dead(f"the model cannot be loaded: {type(error).__name__}", "model-untrusted") from error


@cache
def _one_thread() -> None:
    """Let the libraries of this process compute in one thread: the jobs beside this one have the other processors."""
    threadpool_limits(1)


class _Skops:
    """A pipeline of scikit-learn, which takes numbers alone: of a text, a column for each category."""

    def __init__(self, card: Card, data: bytes) -> None:
        found: Any = load(data, card.estimator)
        self._model = found
        self._features = card.features
        self._has_texts = any(feature.kind == "text" for feature in card.features)
        self.may_lack: Sequence[str] = ("text", "number") if takes_missing(card.estimator, found) else ("text",)
        self.classes = np.asarray(getattr(found, "classes_", [])).tolist()
        width = sum(len(feature.categories) if feature.kind == "text" else 1 for feature in card.features)
        if getattr(found, "n_features_in_", width) != width:  # a dummy does not know it
            raise Dead(f"the model does not take the {len(card.features)} columns of its card", "model-mismatch")

    def ask(self, rows: Matrix, output: Output) -> Matrix:
        if (output == "value") == bool(self.classes) or (output == "probability" and not hasattr(self._model, "predict_proba")):
            raise _no_output(output)
        ask = self._model.predict_proba if output == "probability" else self._model.predict
        return np.asarray(ask(self._numbers(rows) if self._has_texts else rows))

    def _numbers(self, rows: Matrix) -> Matrix:
        columns = [
            codes_of(feature, column.tolist()) if feature.kind == "text" else column.astype(np.float64)
            for feature, column in zip(self._features, rows.T, strict=True)
        ]
        return matrix(self._features, columns, MAX_CELLS)


class _Onnx:
    """A graph of ONNX, with one input for all columns, or one for each by its name.

    Of its outputs the first of whole numbers or texts has the labels. The first other one has the values of a regression, or the
    probabilities of the classes, of which, without labels, the largest makes the label.
    """

    def __init__(self, card: Card, data: bytes) -> None:
        if len(data) > MAX_ONNX_BYTES:
            raise Dead(f"a model in ONNX must have at most {MAX_ONNX_BYTES} bytes", "too-large")
        self.may_lack: Sequence[str] = ()
        self.classes = card.classes
        self._session = _session(data)
        inputs, names = self._session.get_inputs(), [feature.name for feature in card.features]
        self._inputs: dict[str, Any] = {one.name: _TYPES[one.type] for one in inputs}
        self._is_single = len(inputs) == 1
        width = inputs[0].shape[-1] if self._is_single else None
        if list(self._inputs) != names and (not self._is_single or (isinstance(width, int) and width != len(names))):
            raise Dead(f"the model does not take the {len(names)} columns of its card", "model-mismatch")
        outputs = self._session.get_outputs()
        self._label = next((one.name for one in outputs if one.type in ("tensor(int64)", "tensor(string)")), "")
        self._scores = next((one.name for one in outputs if one.name != self._label), "")

    def ask(self, rows: Matrix, output: Output) -> Matrix:
        if (output == "value") == bool(self.classes) or (output != "label" and not self._scores):
            raise _no_output(output)
        given = {
            name: rows.astype(kind) if self._is_single else rows[:, [at]].astype(kind)
            for at, (name, kind) in enumerate(self._inputs.items())
        }
        if output == "label" and self._label:
            return np.asarray(self._session.run([self._label], given)[0]).reshape(len(rows))
        scores: Any = self._session.run([self._scores], given)[0]
        if output == "value":
            return np.asarray(scores).reshape(len(rows))
        if isinstance(scores, list):  # a map for each row, as skl2onnx makes unless it is told otherwise
            scores = [[row[label] for label in self.classes] for row in cast("list[dict[Any, float]]", scores)]
        found = np.asarray(scores).reshape(len(rows), len(self.classes))
        return found if output == "probability" else np.asarray(self.classes)[found.argmax(axis=1)]


def _session(data: bytes) -> Any:
    """Return a graph that is ready to run, in one thread, with no operators but those that the library has."""
    options: Any = cast("Any", onnxruntime).SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it grows by doubling, and the memory of a child is bounded
    options.log_severity_level = 4  # what it would print about a model that it refuses, we raise
    with _empty_folder():
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


_TYPES: Final[dict[str, Any]] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(string)": np.str_,
}


@contextlib.contextmanager
def _empty_folder() -> Generator[None]:
    """Make an empty folder the current one: what a graph says of files beside it leads nowhere."""
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with TemporaryDirectory() as folder:
            os.chdir(folder)
            try:
                yield
            finally:
                os.fchdir(before)
    finally:
        os.close(before)


def _no_output(output: Output) -> Dead:
    return Dead(f"this model has no output {output!r}", "model-mismatch")


# --- keeping -------------------------------------------------------------------------------------------------------------

_kept: OrderedDict[tuple[str, str, str], tuple[Asking, int]] = OrderedDict()
"""The models of this process by name, version and digest, with the bytes of their files; the last one was asked last."""


def kept_model(model: Model, read: Callable[[], bytes]) -> Asking:
    """Return a model; `read` is called for its bytes, which it verifies, unless it is one of the last few.

    Raises: what `read` and `load_model` do.
    """
    key = (model.name, model.version, model.sha256)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key][0]
    while _kept and (len(_kept) >= MAX_MODELS or model.bytes + sum(size for _, size in _kept.values()) > MAX_KEPT_BYTES):
        _kept.popitem(last=False)
    loaded = load_model(model.card, read())
    _kept[key] = (loaded, model.bytes)
    return loaded


# --- rows ----------------------------------------------------------------------------------------------------------------


class Questions:
    """A model with the rows that it is asked about: checks them against its card, counts them, and the time within the model."""

    def __init__(self, model: Asking, card: Card, output: Output | None) -> None:
        self.output: Output = output or ("label" if card.task == "classification" else "value")
        self.classes = model.classes if self.output == "probability" else None
        self.rows = 0
        self.model_s = 0.0
        self._model = model
        self._features = card.features
        self._has_texts = any(feature.kind == "text" for feature in card.features)

    def answers(self, rows: Sequence[Sequence[Any]], *, is_csv: bool) -> list[Any]:
        """Return an answer for each row; the cells of CSV are texts, also where they are numbers.

        Raises:
            BadRow: a row is not what the model takes; the text has the number of the row, counted over all calls, and no value.
            Dead: the model has no such output; `model-mismatch`.
        """
        given = self._matrix(rows, is_csv)
        began_s = time.perf_counter()
        found = self._model.ask(given, self.output)
        self.model_s += time.perf_counter() - began_s
        self.rows += len(rows)
        return found.tolist()

    def _matrix(self, rows: Sequence[Sequence[Any]], is_csv: bool) -> Matrix:
        if is_csv and not self._has_texts:
            numbers = numbers_of([cell for row in rows for cell in row])
            found = None if numbers is None else np.frombuffer(numbers).reshape(len(rows), len(self._features))
            if found is not None and (np.abs(found) <= MAX_NUMBER).all():
                return found
        found = np.empty((len(rows), len(self._features)), dtype=object if self._has_texts else np.float64)
        for at, row in enumerate(rows):
            found[at] = [self._cell(cell, feature, at, is_csv) for cell, feature in zip(row, self._features, strict=True)]
        return found

    def _cell(self, cell: Any, feature: Feature, at: int, is_csv: bool) -> Any:
        """Return what the model takes for a cell."""
        is_missing = cell is None or (is_csv and cell == "")
        if feature.kind == "text":
            if isinstance(cell, str) and not is_missing:
                return cell
            if is_missing and "text" in self._model.may_lack:
                return None
            raise self._bad(feature, at, LACKING if is_missing else "must be a text")
        if not is_missing and (isinstance(cell, bool) or isinstance(cell, str) != is_csv):
            raise self._bad(feature, at, "must be a number")
        try:
            found = number_of(cell)
        except (TypeError, ValueError, OverflowError):
            raise self._bad(feature, at, "must be a number") from None
        if math.isnan(found) and "number" not in self._model.may_lack:
            raise self._bad(feature, at, LACKING)
        if abs(found) > MAX_NUMBER:
            raise self._bad(feature, at, "must be a finite number, of at most 3.4e38")
        return found

    def _bad(self, feature: Feature, at: int, text: str) -> BadRow:
        return BadRow(f"row {self.rows + at + 1}: {feature.name!r} {text}")


# --- trying --------------------------------------------------------------------------------------------------------------


class Unknown(msgspec.Struct, frozen=True, kw_only=True):
    """A model that nobody has signed yet, given by an operator who may be wrong about it."""

    card: Card
    data: bytes


def answer_once(unknown: Unknown) -> list[Any]:
    """Return what the model answers about one row, of zeros and of the first category of each text.

    Raises:
        Dead: it cannot be loaded, or is not what its card says; `model-untrusted`, `model-mismatch`.
    """
    card = unknown.card
    model = load_model(card, unknown.data)
    if list(model.classes) != card.classes or bool(card.classes) != (card.task == "classification"):
        raise Dead(f"`classes` must be those of the model, in its order: {model.classes or 'none'}", "model-mismatch")
    row = [(feature.categories or [""])[0] if feature.kind == "text" else 0.0 for feature in card.features]
    if card.classes:
        with contextlib.suppress(Dead):  # it has none
            Questions(model, card, "probability").answers([row], is_csv=False)
    return Questions(model, card, None).answers([row], is_csv=False)


def main() -> None:
    """Run `answer_once` for what comes on standard input, in MessagePack, and say what is wrong with it in one line."""
    try:
        answer_once(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Unknown))
    except Exception as error:  # also what a library makes of a row that the model does not take
        sys.exit(str(error) if isinstance(error, Dead) else f"the model cannot answer: {type(error).__name__}: {error!s:.200}")


if __name__ == "__main__":
    main()
