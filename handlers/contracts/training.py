"""The payloads and the results of `train-model` and `evaluate-model`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from handlers.contracts.sources import Query, Table
from handlers.contracts.types import Alias, ColumnName, Compression, Delimiter, Ident, RootPath, Version, check_path
from runtime import Priority, contract

MAX_FEATURES: Final = 1000  # a guess, and as many as a row of `run-inference` may have
MAX_METRICS: Final = 10

Task = Literal["classification", "regression"]
# Of these, more is better; so a gate may ask for a least of them.
Score = Literal["accuracy", "balanced_accuracy", "precision_macro", "recall_macro", "f1_macro", "roc_auc", "r2"]
Metric = Literal[Score, "log_loss", "mae", "rmse"]
Verdict = Literal["pass", "fail", "none"]
OF_REGRESSION: Final = frozenset({"r2", "mae", "rmse"})


# --- data ----------------------------------------------------------------------------------------------------------------


class CsvFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="csv"):
    """A CSV file with names in its first line."""

    path: RootPath
    delimiter: Delimiter = ","
    compress: Compression = "none"


class NpzFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="npz"):
    """A file of NumPy's arrays: `array` has a row for each example, and its columns are called `x0`, `x1`, …"""

    path: RootPath
    array: Ident = "X"


Data = CsvFile | NpzFile | Query | Table


def check_data(data: Data) -> None:
    """Check the path of a file.

    Raises:
        ValueError: it is not in composed form (NFC).
    """
    if isinstance(data, CsvFile | NpzFile):
        check_path(data.path, "data.path")


# --- estimators ----------------------------------------------------------------------------------------------------------
# The defaults are those of scikit-learn, where nothing else is said; the limits are guesses that keep a fit within its deadline.

Penalty = Annotated[float, Meta(ge=1e-6, le=1e6)]
Rounds = Annotated[int, Meta(ge=1, le=1000)]
Depth = Annotated[int, Meta(ge=1, le=64)]


class Logistic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="logistic"):
    """Logistic regression, for classification."""

    c: Penalty = 1.0
    max_iter: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class Ridge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="ridge"):
    """Linear regression with a penalty on large weights."""

    alpha: Penalty = 1.0


class LinearSvm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="linear-svm"):
    """A support vector machine without a kernel. It has no probabilities."""

    c: Penalty = 1.0
    max_iter: Annotated[int, Meta(ge=1, le=10_000)] = 1000


class RbfSvm(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="rbf-svm"):
    """A support vector machine with a radial kernel; without `gamma`, by the spread of the data. It has no probabilities."""

    c: Penalty = 1.0
    gamma: Penalty | None = None


class RandomForest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="random-forest"):
    """Many decision trees, each on another sample."""

    trees: Rounds = 100
    depth: Depth | None = None
    min_leaf: Annotated[int, Meta(ge=1, le=10_000)] = 1


class HistGradientBoosting(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="hist-gradient-boosting"
):
    """Decision trees one after another, each for what those before it got wrong. It can do with missing numbers."""

    iterations: Rounds = 100
    learning_rate: Annotated[float, Meta(ge=1e-4, le=1)] = 0.1
    leaves: Annotated[int, Meta(ge=2, le=1024)] = 31
    depth: Depth | None = None


class KNearest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="k-nearest"):
    """What the nearest examples are."""

    k: Annotated[int, Meta(ge=1, le=100)] = 5
    weights: Literal["uniform", "distance"] = "uniform"


class Dummy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="dummy"):
    """The most frequent class, or the mean: what every other model should do better than."""


Estimator = Logistic | Ridge | LinearSvm | RbfSvm | RandomForest | HistGradientBoosting | KNearest | Dummy


class Preprocess(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is done to the features first. Those in `one_hot` are texts, and become a column for each text; others are numbers."""

    impute: Literal["none", "mean", "median", "most-frequent"] = "none"
    scale: bool = False
    one_hot: Annotated[list[ColumnName], Meta(max_length=MAX_FEATURES)] = []


class Split(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of the data is kept for the test, and by which dice. `stratify` keeps the shares of the classes in both."""

    test: Annotated[float, Meta(ge=0.05, le=0.9)] = 0.25
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0
    stratify: bool = True


# --- train-model ---------------------------------------------------------------------------------------------------------


class Gate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least that a model must reach on the test data."""

    metric: Score
    min: float


@contract("train-model", priority=Priority.MEDIUM)
class TrainModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Train a model, and keep it as a version of `name`. Without `features` these are all columns but the target.

    `folds` says how often it is tried with other splits of the training data first. With `promote` it becomes the current
    version, if it passes the gate, or there is none.
    """

    name: Alias
    data: Data
    target: ColumnName
    features: Annotated[list[ColumnName], Meta(max_length=MAX_FEATURES)] = []
    task: Task
    estimator: Estimator
    preprocess: Preprocess = Preprocess()
    split: Split = Split()
    folds: Annotated[int, Meta(ge=0, le=10)] = 0
    gate: Gate | None = None
    promote: bool = False

    def __post_init__(self) -> None:
        """Check that the fields go together.

        Raises:
            ValueError: they do not, or a path is not in composed form (NFC).
        """
        check_data(self.data)
        if self.task == "regression" and isinstance(self.estimator, Logistic):
            raise ValueError("`logistic` is for classification - at `$.estimator`")
        if self.task == "classification" and isinstance(self.estimator, Ridge):
            raise ValueError("`ridge` is for regression - at `$.estimator`")
        if self.gate is not None and (self.gate.metric in OF_REGRESSION) != (self.task == "regression"):
            raise ValueError("must be a metric of the task - at `$.gate.metric`")
        if len(set(self.features)) < len(self.features) or self.target in self.features:
            raise ValueError("must name each column once, and not the target - at `$.features`")
        one_hot = self.preprocess.one_hot
        if len(set(one_hot)) < len(one_hot) or (self.features and not set(one_hot) <= set(self.features)):
            raise ValueError("must name features, each once - at `$.preprocess.one_hot`")
        if self.folds == 1:
            raise ValueError("must be 0, or 2 to 10 - at `$.folds`")


class Trained(msgspec.Struct, frozen=True, kw_only=True):
    """The version. `metrics` are those of the test data; with `folds`, also their mean over these, as `fold_…`."""

    model: str
    version: str
    metrics: dict[str, float]
    gate: Verdict
    promoted: bool
    rows: int
    bytes: int
    model_sha256: str


# --- evaluate-model ------------------------------------------------------------------------------------------------------


class Bar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The least that a model must reach, and by how much it may be worse than the baseline."""

    metric: Score
    min: float | None = None
    max_drop: Annotated[float, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        """Check that it asks for anything.

        Raises:
            ValueError: it does not.
        """
        if self.min is None and self.max_drop is None:
            raise ValueError("must have `min` or `max_drop`")


@contract("evaluate-model", priority=Priority.MEDIUM)
class EvaluateModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """See how well a version of a model does on data, and how far these data are from those that it was trained on.

    Without `version` it is the current one. `baseline` is a version to compare with. `to` is a JSON file of the result. `notify`
    is a channel that hears of a verdict `fail`, once for the same version and data.
    """

    model: Alias
    version: Version | None = None
    data: Data
    target: ColumnName
    metrics: Annotated[list[Metric], Meta(max_length=MAX_METRICS)] = []
    baseline: Version | None = None
    gate: Bar | None = None
    to: RootPath | None = None
    overwrite: bool = False
    notify: Alias | None = None

    def __post_init__(self) -> None:
        """Check that the fields go together.

        Raises:
            ValueError: they do not, or a path is not in composed form (NFC).
        """
        check_data(self.data)
        if self.to is not None:
            check_path(self.to, "to")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError("must name each metric once - at `$.metrics`")
        if self.gate is not None and self.gate.max_drop is not None and self.baseline is None:
            raise ValueError("`max_drop` needs a `baseline`")


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """How far a feature is from the training data, as population stability index: under 0.1 little, over 0.25 much."""

    feature: str
    psi: float


class Confusion(msgspec.Struct, frozen=True, kw_only=True):
    """How often each class (a row) was taken for each (a column), where there are few classes."""

    classes: list[str]
    counts: list[list[int]]


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """How well the version did. `drift` has the ten worst features. `notified` is the id of the job that tells people."""

    model: str
    version: str
    rows: int
    data_sha256: str
    metrics: dict[str, float]
    baseline_metrics: dict[str, float] = {}
    verdict: Verdict
    drift: list[Drift]
    confusion: Confusion | None = None
    report: str | None = None
    notified: str | None = None
