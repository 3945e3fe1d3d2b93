"""The estimators of payloads as pipelines of scikit-learn, and their files: written and read by skops, never by pickle.

skops builds only types that it knows to be harmless, and of others those that are named here, for each estimator: trees, whose
files hold indices that nothing checks. So a file is read only in a child process, and only if a worker has signed it.
"""

# scikit-learn has no stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import Any, Final, cast

import skops.io
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import Ridge as RidgeRegression
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, LinearSVR
from skops.io.exceptions import UntrustedTypesFoundException

from handlers.contracts.training import (
    Dummy,
    Estimator,
    HistGradientBoosting,
    KNearest,
    LinearSvm,
    Logistic,
    Preprocess,
    RandomForest,
    RbfSvm,
    Ridge,
    Task,
)
from runtime import Dead

_TREE: Final = "sklearn.tree._tree.Tree"
_PREDICTOR: Final = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"
_DTYPE: Final = "numpy.dtype"  # of numbers, which the imputer keeps
# By the kind of the estimator, what skops does not trust by itself and its pipeline needs (skops 0.16, scikit-learn 1.9).
TRUSTED: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(("logistic", "ridge", "linear-svm", "rbf-svm", "dummy"), (_DTYPE,)),
    "k-nearest": (_DTYPE,),  # with `algorithm="brute"`; its trees would need types of their own
    "random-forest": (_DTYPE, _TREE),
    "hist-gradient-boosting": (_DTYPE, _PREDICTOR),
}
_ID: Final = re.compile(r'"__id__": (\d+)|"file": "(\d+)\.npy"')
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_SCHEMA: Final = "schema.json"


def pipeline(estimator: Estimator, preprocess: Preprocess, task: Task, seed: int) -> Pipeline:
    """Return what is to be fitted: what is done to numbers first, and the estimator."""
    steps: list[tuple[str, Any]] = []
    if preprocess.impute != "none":
        steps.append(("impute", SimpleImputer(strategy=preprocess.impute.replace("-", "_"), keep_empty_features=True)))
    if preprocess.scale:
        steps.append(("scale", StandardScaler()))
    return Pipeline([*steps, ("estimate", _estimator(estimator, seed, is_classifier=task == "classification"))])


def _estimator(estimator: Estimator, seed: int, *, is_classifier: bool) -> Any:
    match estimator:
        case Logistic(c=c, max_iter=max_iter):
            return LogisticRegression(C=c, max_iter=max_iter, random_state=seed)
        case Ridge(alpha=alpha):
            return RidgeRegression(alpha=alpha, random_state=seed)
        case LinearSvm(c=c, max_iter=max_iter):
            return (LinearSVC if is_classifier else LinearSVR)(C=c, max_iter=max_iter, random_state=seed)
        case RbfSvm(c=c, gamma=gamma):
            kind: Any = SVC if is_classifier else SVR
            return kind(C=c, gamma=gamma or "scale")
        case RandomForest(trees=trees, depth=depth, min_leaf=min_leaf):
            kind = RandomForestClassifier if is_classifier else RandomForestRegressor
            return kind(n_estimators=trees, max_depth=depth, min_samples_leaf=min_leaf, random_state=seed)
        case HistGradientBoosting(iterations=iterations, learning_rate=rate, leaves=leaves, depth=depth):
            kind = HistGradientBoostingClassifier if is_classifier else HistGradientBoostingRegressor
            return kind(max_iter=iterations, learning_rate=rate, max_leaf_nodes=leaves, max_depth=depth, random_state=seed)
        case KNearest(k=k, weights=weights):
            return (KNeighborsClassifier if is_classifier else KNeighborsRegressor)(k, weights=weights, algorithm="brute")
        case Dummy():
            return DummyClassifier(strategy="most_frequent") if is_classifier else DummyRegressor()


def takes_missing(kind: str, found: Pipeline) -> bool:
    """Return whether numbers may be missing in what a pipeline is given."""
    return kind in ("hist-gradient-boosting", "dummy") or "impute" in found.named_steps


def kind_of(estimator: Estimator) -> str:
    """Return the `kind` of a payload's estimator."""
    return str(estimator.__struct_config__.tag)


# --- files ---------------------------------------------------------------------------------------------------------------


def dump(fitted: Pipeline) -> bytes:
    """Return the file of a fitted pipeline; equal pipelines make equal bytes.

    skops names each part by its address in memory. They are counted instead, in the order in which they come.
    """
    numbers: dict[str, str] = {}

    def numbered(found: re.Match[str]) -> str:
        address = found[1] or found[2]
        number = numbers.setdefault(address, str(len(numbers) + 1))
        return found[0].replace(address, number)

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(skops.io.dumps(fitted))) as parts, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        schema = _ID.sub(numbered, json.dumps(json.loads(parts.read(_SCHEMA))))
        packed.writestr(zipfile.ZipInfo(_SCHEMA, _EPOCH), schema, zipfile.ZIP_DEFLATED)
        for name in sorted(set(parts.namelist()) - {_SCHEMA}, key=lambda name: int(numbers[name.partition(".")[0]])):
            number = numbers[name.partition(".")[0]]
            packed.writestr(zipfile.ZipInfo(f"{number}.npy", _EPOCH), parts.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()


def untrusted_types(data: bytes) -> list[str]:
    """Return what a file needs that skops does not trust by itself."""
    return skops.io.get_untrusted_types(data=data)


def load(data: bytes, estimator: str) -> Pipeline:
    """Return the fitted pipeline of a file whose signature is valid. Only for child processes: a file can crash them.

    Raises:
        Dead: it needs types that this kind of estimator does not, or is damaged; `model-untrusted`.
    """
    try:
        found = skops.io.loads(data, trusted=TRUSTED.get(estimator, ()))
    except UntrustedTypesFoundException:
        raise Dead(f"the model needs types that {estimator or 'no'} estimator of ours has", "model-untrusted") from None
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Dead(f"the model cannot be read ({type(error).__name__})", "model-untrusted") from None
    if not isinstance(found, Pipeline):
        raise Dead("the model is not a pipeline", "model-untrusted")
    return cast("Any", found)
