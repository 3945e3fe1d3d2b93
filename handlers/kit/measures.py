"""How well a model does on examples, and how far examples are from those that it was trained on."""

# scikit-learn has no stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray
from sklearn import metrics

from handlers.contracts.training import OF_REGRESSION, Confusion, Drift, Metric, Task
from handlers.kit.arrays import NO_CATEGORY, Codes, Numbers
from handlers.kit.examples import label_text
from handlers.kit.failures import BAD_PAYLOAD
from handlers.kit.models import Feature, Label
from runtime import Dead

BINS: Final = 10  # of a column of numbers, as is usual for the population stability index
LEAST_SHARE: Final = 1e-4  # in place of none, whose logarithm is infinite; usual
WORST: Final = 10  # of drift, that are told of
MAX_CONFUSION: Final = 10  # classes, above which their table is left out: a result is small


@dataclass(frozen=True, slots=True)
class Said:
    """What a model has said of examples, and what is true, both as places among its classes; of a regression, numbers.

    A label that the model does not know has a place behind them. `shares` are the probabilities of the classes, if it has any.
    """

    task: Task
    classes: Sequence[str]
    truth: NDArray[Any]
    said: NDArray[Any]
    shares: Numbers | None


def said_of(fitted: Any, task: Task, table: Numbers, target: NDArray[Any], classes: Sequence[Label]) -> Said:
    """Return what a pipeline says of the rows of a table.

    Raises:
        Dead: numbers are so large that it cannot do with them; `bad-rows`.
    """
    try:
        predicted: NDArray[Any] = fitted.predict(table)
        shares: Numbers | None = fitted.predict_proba(table) if hasattr(fitted, "predict_proba") else None
    except ValueError:
        raise Dead("the model cannot do with some of these numbers", "bad-rows") from None
    if task == "regression":
        return Said(task, (), target, predicted, None)
    places = _classes(classes)
    truth = _places(places, target)
    return Said(task, [str(label) for label in classes], truth, _places(places, predicted), shares)


def _classes(classes: Sequence[Label]) -> dict[str, int]:
    """Return the place of each class by its text, and by its others where these are those of no other class."""
    places = {label_text(label): place for place, label in enumerate(classes)}
    for place, label in enumerate(classes):
        places.setdefault(str(label), place)  # of a truth, which is 1 by its value
        places.setdefault(_by_value(label_text(label)), place)
    return places


def _places(places: dict[str, int], labels: NDArray[Any]) -> Codes:
    found: list[int] = []
    for text in map(label_text, labels.tolist()):
        place = places.get(text, places.get(_by_value(text)))
        found.append(places.setdefault(text, len(places)) if place is None else place)
    return np.array(found, dtype=np.int64)


def _by_value(text: str) -> str:
    """Return a text that is a number, as in CSV, as its label; else the text."""
    try:
        return label_text(float(text))
    except (ValueError, OverflowError):  # no number, or none that is finite
        return text


# --- scores --------------------------------------------------------------------------------------------------------------


def scores_of(said: Said, wanted: Sequence[Metric] = ()) -> dict[str, float]:
    """Return these metrics; without a word, all that can be told of this model and these examples.

    Raises:
        Dead: one cannot be told, `bad-payload`; numbers are so large that one is infinite, `bad-rows`.
    """
    if said.task == "regression":
        known: dict[str, Callable[[], float]] = {
            "mae": lambda: metrics.mean_absolute_error(said.truth, said.said),
            "rmse": lambda: metrics.root_mean_squared_error(said.truth, said.said),
        }
        if len(said.truth) > 1:  # of one row it is no number
            known["r2"] = lambda: metrics.r2_score(said.truth, said.said)
    else:
        known = _of_classes(said)
    for name in wanted:
        if name not in known:
            task = "regression" if name in OF_REGRESSION else "classification"
            own = "needs two rows" if name == "r2" else "needs probabilities, and examples of each class and no other"
            why = f"is for {task}" if task != said.task else own
            raise Dead(f"{name} cannot be told: it {why}", BAD_PAYLOAD)
    found = {name: float(known[name]()) for name in wanted or known}
    if not all(map(math.isfinite, found.values())):
        raise Dead("some of these numbers are too large to be measured", "bad-rows")
    return found


def _of_classes(said: Said) -> dict[str, Callable[[], float]]:
    truth, given, shares = said.truth, said.said, said.shares
    options: dict[str, Any] = {"average": "macro", "zero_division": 0}
    known: dict[str, Callable[[], float]] = {
        "accuracy": lambda: metrics.accuracy_score(truth, given),
        "balanced_accuracy": lambda: metrics.recall_score(truth, given, labels=np.unique(truth), **options),
        "precision_macro": lambda: metrics.precision_score(truth, given, **options),
        "recall_macro": lambda: metrics.recall_score(truth, given, **options),
        "f1_macro": lambda: metrics.f1_score(truth, given, **options),
    }
    labels = range(len(said.classes))
    if shares is not None and truth.max() < len(labels):
        known["log_loss"] = lambda: metrics.log_loss(truth, shares, labels=labels)
        if len(np.unique(truth)) == len(labels) == 2:
            known["roc_auc"] = lambda: metrics.roc_auc_score(truth, shares[:, 1])
        elif len(np.unique(truth)) == len(labels):
            known["roc_auc"] = lambda: metrics.roc_auc_score(truth, shares, multi_class="ovr", labels=labels)
    return known


def confusion_of(said: Said) -> Confusion | None:
    """Return how often each class was taken for each; None where there are many, or none."""
    count = len(said.classes)
    if not 0 < count <= MAX_CONFUSION:
        return None
    table = np.zeros((count, count), dtype=np.int64)
    known = said.truth < count
    np.add.at(table, (said.truth[known], said.said[known]), 1)
    return Confusion(classes=list(said.classes), counts=table.tolist())


# --- drift ---------------------------------------------------------------------------------------------------------------


def spread_of(feature: Feature, column: NDArray[Any]) -> Feature:
    """Return the feature with how the values of a column are spread: numbers over bins that have about equally many of them."""
    if feature.kind == "number":
        there = column[~np.isnan(column)]
        edges: list[float] = np.unique(np.quantile(there, np.linspace(0, 1, BINS + 1)[1:-1])).tolist() if len(there) else []
        feature = msgspec.structs.replace(feature, edges=edges)
    return msgspec.structs.replace(feature, shares=_shares(feature, column).tolist())


def _shares(feature: Feature, column: NDArray[Any]) -> Numbers:
    if feature.kind == "text":
        places, count = np.where(column == NO_CATEGORY, len(feature.categories), column), len(feature.categories)
    else:
        count = len(feature.edges) + 1
        places = np.where(np.isnan(column), count, np.searchsorted(np.array(feature.edges), column, side="right"))
    return np.bincount(places, minlength=count + 1) / len(column)


def drift_of(features: Sequence[Feature], columns: Sequence[NDArray[Any]]) -> list[Drift]:
    """Return the features whose values are farthest from those of the training, the worst first."""
    found = [
        Drift(feature=feature.name, psi=round(_psi(np.array(feature.shares), _shares(feature, column)), 6))
        for feature, column in zip(features, columns, strict=True)
        if feature.shares
    ]
    return sorted(found, key=lambda drift: (-drift.psi, drift.feature))[:WORST]


def _psi(before: Numbers, now: Numbers) -> float:
    before, now = np.maximum(before, LEAST_SHARE), np.maximum(now, LEAST_SHARE)
    return math.fsum((now - before) * np.log(now / before))
