"""Columns of numbers and texts as the matrix that a model is given, and back: what training and inference must do alike."""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from handlers.kit.models import Feature
from runtime import Dead

MAX_CATEGORIES: Final = 1000  # of a column of texts, each of which becomes a column of the matrix; a guess
NO_CATEGORY: Final = -1  # a text that the training data did not have, or none

Numbers = NDArray[np.float64]
Codes = NDArray[np.int64]


def number_of(cell: Any) -> float:
    """Return a cell as a number; NaN for one that is missing, or says so in a text.

    Raises:
        ValueError, TypeError, OverflowError: it is none.
    """
    if cell is None or cell == "":
        return math.nan
    if isinstance(cell, str) and "_" in cell:  # which Python takes, and nobody else
        raise ValueError
    return float(cell)


def numbers_of(cells: Sequence[Any]) -> array[float] | None:
    """Return cells as `number_of` does, all at once; None where one is missing, no number or not finite."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        found = array("d", map(float, cells))
        if np.isfinite(np.frombuffer(found)).all() and "_" not in "".join(cell for cell in cells if isinstance(cell, str)):
            return found
    return None


def codes_of(feature: Feature, texts: Sequence[str | None]) -> Codes:
    """Return for each text its place among the categories of the feature; `NO_CATEGORY` for what is not among them."""
    places = {text: place for place, text in enumerate(feature.categories)}
    return np.array([NO_CATEGORY if text is None else places.get(text, NO_CATEGORY) for text in texts], dtype=np.int64)


def recoded(feature: Feature, texts: Sequence[str], places: Codes) -> Codes:
    """Return places among these texts as places among the categories of the feature."""
    return np.append(codes_of(feature, texts), NO_CATEGORY)[places]  # what is at -1 is the last one: no text


def matrix(features: Sequence[Feature], columns: Sequence[NDArray[Any]], max_cells: int) -> Numbers:
    """Return a row for each example: numbers as they are, and of a text a column for each category, with 1 in that of the text.

    Args:
        features: what the columns are.
        columns: an array for each feature: numbers, or of a text what `codes_of` returns.
        max_cells: how many rows x columns there may be.

    Raises:
        Dead: there are more; `too-large`.
    """
    rows = len(columns[0]) if columns else 0
    width = sum(len(feature.categories) if feature.kind == "text" else 1 for feature in features)
    if rows * width > max_cells:
        raise Dead(f"the data must have at most {max_cells} rows x columns, and have {rows} x {width}", "too-large")
    found = np.zeros((rows, width))
    place = 0
    for feature, column in zip(features, columns, strict=True):
        if feature.kind == "text":
            (known,) = np.nonzero(column != NO_CATEGORY)
            found[known, place + column[known]] = 1
            place += len(feature.categories)
        else:
            found[:, place] = column
            place += 1
    return found
