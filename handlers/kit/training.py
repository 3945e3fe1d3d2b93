"""Fitting a model to examples, and trying it: what a child process does for `train-model` and `evaluate-model`."""

# scikit-learn has no stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
import warnings
from collections.abc import Generator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from threadpoolctl import threadpool_limits

from handlers.contracts.training import Confusion, EvaluateModel, TrainModel
from handlers.kit.arrays import MAX_CATEGORIES, Numbers, matrix
from handlers.kit.asked import Asked, Fitted, Measured
from handlers.kit.estimators import dump, kind_of, load, pipeline, takes_missing, untrusted_types
from handlers.kit.examples import Examples, Wanted, read_examples
from handlers.kit.measures import Said, confusion_of, drift_of, said_of, scores_of, spread_of
from handlers.kit.models import Card, Feature, Model, read_model
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead, Job

LIBRARIES: Final = ("numpy", "scikit-learn", "scipy", "skops")


# --- training ------------------------------------------------------------------------------------------------------------


def fit(message: TrainModel, job: Job, settings: Settings) -> Fitted:
    """Return the fitted model and its card, with its metrics on the rows that were kept for the test.

    Seeded, and in one thread, so that the same examples make the same model.

    Raises:
        Dead: the examples cannot be used, `bad-rows`, `bad-payload`, `bad-query`, `too-large`.
        Retry, Snooze, TemporaryFailure, sqlite3.Error, OSError: as for `read_examples`.
        MemoryError: the examples or the model need more than this process may have.
    """
    examples, kind = _examples(message, settings, job.attempt), kind_of(message.estimator)
    table = matrix(examples.features, examples.columns, settings.registry().max_cells)
    with _one_thread(job):
        train, test = _split(message, examples.target)
        metrics = _folds(message, table[train], examples.target[train], job)
        job.progress(message.folds, message.folds + 1, "fitting")
        fitted = _fitted(message, table[train], examples.target[train])
        classes: list[Any] = fitted.classes_.tolist() if message.task == "classification" else []
        said = said_of(fitted, message.task, table[test], examples.target[test], classes)
        metrics = {**scores_of(said), **metrics}
        if message.gate is not None and message.gate.metric not in metrics:
            scores_of(said, [message.gate.metric])  # which says why it cannot be told
    job.progress(message.folds + 1, message.folds + 1, "fitted")
    data = dump(fitted)
    load(data, kind)  # what cannot be loaded, after an upgrade of scikit-learn say, is no model
    spreads = [spread_of(feature, column[train]) for feature, column in zip(examples.features, examples.columns, strict=True)]
    card = Card(
        name=message.name,
        version=job.work,
        format="skops",
        task=message.task,
        features=spreads,
        target=message.target,
        classes=classes,
        estimator=kind,
        rows=examples.rows,
        data_sha256=examples.sha256,
        metrics=metrics,
        trusted=untrusted_types(data),
        libraries={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}},
        born_s=job.born,
    )
    return Fitted(card=card, model=memoryview(data))


def _examples(message: TrainModel, settings: Settings, attempt: int) -> Examples:
    """Return the examples, if something can be learnt from them."""
    wanted = Wanted(message.target, message.task, message.features, frozenset(message.preprocess.one_hot))
    examples = read_examples(settings, message.data, wanted, attempt, Stop())
    for feature in examples.features:
        if len(feature.categories) > MAX_CATEGORIES:
            raise Dead(f"column {feature.name!r} must have at most {MAX_CATEGORIES} texts", "too-large")
    if message.task == "classification" and len(np.unique(examples.target)) < 2:
        raise Dead("the target must have at least two classes", "bad-rows")
    if not takes_missing(kind_of(message.estimator), _unfitted(message)):
        _check_missing(examples.features, examples.columns)
    return examples


def _check_missing(features: Sequence[Feature], columns: Sequence[NDArray[Any]]) -> None:
    for feature, column in zip(features, columns, strict=True):
        if feature.kind == "number" and np.isnan(column).any():
            raise Dead(f"column {feature.name!r} has missing numbers; hint: `impute`, or hist-gradient-boosting", "bad-rows")


def _split(message: TrainModel, target: NDArray[Any]) -> tuple[Any, Any]:
    """Return the places of the rows for the training and for the test."""
    split = message.split
    is_stratified = split.stratify and message.task == "classification"
    try:
        train, test = train_test_split(
            np.arange(len(target)), test_size=split.test, random_state=split.seed, stratify=target if is_stratified else None
        )
    except ValueError:
        raise Dead(f"{len(target)} rows are too few for such a split, or of some class", "bad-rows") from None
    least = max(2, message.folds)
    if len(test) < 2 or len(train) < least or (message.task == "classification" and len(np.unique(target[train])) < 2):
        raise Dead(f"the split leaves {len(train)} rows to train on, and {len(test)} for the test; too few", "bad-rows")
    return train, test


def _folds(message: TrainModel, table: Numbers, target: NDArray[Any], job: Job) -> dict[str, float]:
    """Return the mean of each metric over the folds."""
    if not message.folds:
        return {}
    kind = StratifiedKFold if message.task == "classification" else KFold
    folds = kind(message.folds, shuffle=True, random_state=message.split.seed)
    found: list[dict[str, float]] = []
    try:
        splits = list(folds.split(table, target))
    except ValueError:
        raise Dead(f"the rows to train on are too few of some class for {message.folds} folds", "bad-rows") from None
    for number, (train, test) in enumerate(splits):
        job.progress(number, message.folds + 1, f"fold {number + 1} of {message.folds}")
        fitted = _fitted(message, table[train], target[train])
        classes: list[Any] = fitted.classes_.tolist() if message.task == "classification" else []
        found.append(scores_of(said_of(fitted, message.task, table[test], target[test], classes)))
    names = [name for name in found[0] if all(name in each for each in found)]
    return {f"fold_{name}": float(np.mean([each[name] for each in found])) for name in names}


def _unfitted(message: TrainModel) -> Any:
    return pipeline(message.estimator, message.preprocess, message.task, message.split.seed)


def _fitted(message: TrainModel, table: Numbers, target: NDArray[Any]) -> Any:
    try:
        return _unfitted(message).fit(table, target)
    except ValueError:  # numbers near the end of their range, or fewer rows than the estimator needs
        raise Dead(f"{kind_of(message.estimator)} cannot be fitted to these rows", "bad-rows") from None


@contextlib.contextmanager
def _one_thread(job: Job) -> Generator[None]:
    """Compute in one thread, and keep what scikit-learn warns of for people."""
    with warnings.catch_warnings(record=True) as told, threadpool_limits(1):
        warnings.simplefilter("always")
        yield
    for kind in sorted({warning.category.__name__ for warning in told}):
        hint = "; hint: `max_iter`, `scale`" if kind == ConvergenceWarning.__name__ else ""
        job.log(f"scikit-learn: {kind}{hint}")


# --- evaluating ----------------------------------------------------------------------------------------------------------


def measure(asked: Asked, job: Job, settings: Settings) -> Measured:
    """Return how the models do on the examples, and how far these are from those that the first one was trained on.

    Raises:
        Dead: a model is not the one that was verified, or of types that are not ours, `model-untrusted`; it is of no use here,
            `model-mismatch`; else as for `fit`.
        Retry, Snooze, TemporaryFailure, sqlite3.Error, OSError, MemoryError: as for `fit`.
    """
    message, models = asked.message, [asked.model, *([asked.baseline] if asked.baseline else [])]
    for model in models:
        if model.card.format != "skops" or model.card.task != asked.model.card.task:
            raise Dead(f"{model.name} {model.version}: must be a model that train-model has made, of one task", "model-mismatch")
    features = {feature.name: feature for model in models for feature in model.card.features}
    texts = frozenset(name for name, feature in features.items() if feature.kind == "text")
    wanted = Wanted(message.target, asked.model.card.task, list(features), texts)
    examples = read_examples(settings, message.data, wanted, job.attempt, Stop())
    if examples.rows < 2:
        raise Dead("there must be at least two rows", "bad-rows")
    found: list[dict[str, float]] = []
    confusion: Confusion | None = None
    for number, model in enumerate(models):
        job.progress(number, len(models), f"version {model.version}")
        with _one_thread(job):
            said = _said(model, examples, settings)
            found.append(_scores(message, said))
        confusion = confusion or (confusion_of(said) if model is asked.model else None)
    job.progress(len(models), len(models), "measured")
    card = asked.model.card
    return Measured(
        rows=examples.rows,
        data_sha256=examples.sha256,
        metrics=found[0],
        baseline_metrics=found[1] if asked.baseline else {},
        drift=drift_of(card.features, examples.columns_for(card.features)),
        confusion=confusion,
    )


def _said(model: Model, examples: Examples, settings: Settings) -> Said:
    card = model.card
    columns = examples.columns_for(card.features)
    table = matrix(card.features, columns, settings.registry().max_cells)
    fitted = load(read_model(settings, model, Stop()), card.estimator)
    if not takes_missing(card.estimator, fitted):
        _check_missing(card.features, columns)
    return said_of(fitted, card.task, table, examples.target, card.classes)


def _scores(message: EvaluateModel, said: Said) -> dict[str, float]:
    found = scores_of(said, message.metrics)
    if message.gate is not None and message.gate.metric not in found:
        found |= scores_of(said, [message.gate.metric])
    return found
