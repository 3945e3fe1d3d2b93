"""evaluate-model: figures that can be recomputed by hand, a verdict, and who hears of it."""

from __future__ import annotations

import asyncio
import json
import math
import signal
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from handlers import ml
from handlers.contracts.training import (
    Bar,
    CsvFile,
    Dummy,
    Evaluated,
    EvaluateModel,
    HistGradientBoosting,
    LinearSvm,
    Logistic,
    NpzFile,
    Preprocess,
    RandomForest,
    Ridge,
    Trained,
)
from handlers.kit import examples, measures, models
from handlers.kit.arrays import NO_CATEGORY
from handlers.kit.asked import Measured
from handlers.kit.measures import drift_of, spread_of
from handlers.kit.models import Feature, find_model, promote, publish, read_model
from handlers.kit.settings import current
from handlers.kit.threads import Stop
from handlers.ml import evaluate_model, train_model
from runtime import BadPayload, Dead, Priority, Retry, Snooze
from runtime.jobs import contract_of
from tests.builders import job
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, job_of, state
from tests.handlers.disks import until as poll
from tests.handlers.learning import bundled, disk, evaluation, inline, npz, settings, training, write_csv
from tests.handlers.test_contracts import HOSTILE
from tests.servers import Server
from tests.workers import working

__all__ = ["disk", "inline"]  # fixtures


async def train(disk: Disk, bundle: str = "wine", number: int = 0, **fields: Any) -> Trained:
    message = training(disk, bundle, **{"estimator": RandomForest(trees=20), "promote": True, **fields})
    return await train_model.function(message, job_of(message, number))


async def evaluate(message: EvaluateModel, number: int = 0) -> Evaluated:
    return await evaluate_model.function(message, job_of(message, number))


async def code_of(message: EvaluateModel, number: int = 0) -> str:
    with pytest.raises(Dead) as caught:
        await evaluate(message, number)
    return caught.value.code


def half(disk: Disk, bundle: str = "wine") -> NpzFile:
    """Write every second row of bundled data."""
    rows, target = bundled(bundle)
    return npz(disk, rows[::2], target[::2], "half")


async def said_by(disk: Disk, version: str, rows: Any) -> tuple[Any, Any]:
    """Return what the model says of rows, and how sure it is."""
    from handlers.kit import estimators

    found = find_model(current(), "m", version, 3, Stop())
    model = estimators.load(read_model(current(), found, Stop()), found.card.estimator)
    return model.predict(rows), model.predict_proba(rows) if hasattr(model, "predict_proba") else None


# --- figures --------------------------------------------------------------------------------------------------------------


async def test_metrics_of_classes_are_those_of_the_formulas(disk: Disk, inline: None) -> None:
    made = await train(disk, "digits", estimator=RandomForest(trees=3, depth=4))
    rows, target = bundled("digits")
    rows, target = rows[:301], target[:301]
    result = await evaluate(evaluation(npz(disk, rows, target)))
    given, shares = await said_by(disk, made.version, rows)
    table = np.array([[((target == a) & (given == b)).sum() for b in range(10)] for a in range(10)])
    right, true, told = np.diag(table), table.sum(1), table.sum(0)
    recall, precision = right / true, right / np.maximum(told, 1)
    f1 = [2 * p * r / (p + r) if p + r else 0 for p, r in zip(precision, recall, strict=True)]

    def auc(scores: Any, positive: Any) -> float:
        """The share of pairs in which the positive one has the higher score."""
        difference = scores[positive][:, None] - scores[~positive][None, :]
        return float(((difference > 0) + 0.5 * (difference == 0)).mean())

    wanted = {
        "accuracy": right.sum() / 301,
        "balanced_accuracy": recall.mean(),
        "precision_macro": precision.mean(),
        "recall_macro": recall.mean(),
        "f1_macro": sum(f1) / 10,
        "log_loss": -np.mean(np.log(np.clip(shares[np.arange(301), target], np.finfo(float).eps, 1))),
        "roc_auc": np.mean([auc(shares[:, label], target == label) for label in range(10)]),
    }
    assert result.metrics == pytest.approx(wanted, rel=1e-6)
    assert result.confusion is not None
    assert (result.confusion.counts, result.confusion.classes) == (table.tolist(), [str(label) for label in range(10)])
    assert (result.model, result.version, result.rows, result.verdict) == ("m", made.version, 301, "none")
    assert len(msgspec.json.encode(result)) <= 4096


async def test_two_classes_have_the_area_of_the_second(disk: Disk, inline: None) -> None:
    made = await train(disk, "breast_cancer", estimator=Logistic(), preprocess=Preprocess(scale=True))
    rows, target = bundled("breast_cancer")
    result = await evaluate(evaluation(npz(disk, rows, target), metrics=["roc_auc"]))
    _, shares = await said_by(disk, made.version, rows)
    difference = shares[target == 1, 1][:, None] - shares[target == 0, 1][None, :]
    assert result.metrics == {"roc_auc": pytest.approx(((difference > 0) + 0.5 * (difference == 0)).mean())}


async def test_metrics_of_numbers_are_those_of_the_formulas(disk: Disk, inline: None) -> None:
    made = await train(disk, "diabetes", estimator=Ridge())
    rows, target = bundled("diabetes")
    result = await evaluate(evaluation(npz(disk, rows, target)))
    given, _ = await said_by(disk, made.version, rows)
    errors = target - given
    assert result.metrics == pytest.approx(
        {
            "r2": 1 - (errors**2).sum() / ((target - target.mean()) ** 2).sum(),
            "mae": np.abs(errors).mean(),
            "rmse": math.sqrt((errors**2).mean()),
        }
    )
    assert result.confusion is None


async def test_figures_that_are_infinite_are_none(disk: Disk, inline: None) -> None:
    await train(disk, "diabetes", estimator=Ridge())
    rows, target = bundled("diabetes")
    assert await code_of(evaluation(npz(disk, rows, target * 1e200))) == "bad-rows"


async def test_shuffled_labels_are_met_by_chance(disk: Disk, inline: None) -> None:
    await train(disk, "digits")
    rows, target = bundled("digits")
    result = await evaluate(evaluation(npz(disk, rows, np.random.default_rng(3).permutation(target))))
    assert result.metrics["accuracy"] == pytest.approx(0.1, abs=0.05)
    assert result.metrics["roc_auc"] == pytest.approx(0.5, abs=0.05)


async def test_labels_that_the_model_does_not_know_count_as_wrong(disk: Disk, inline: None) -> None:
    await train(disk)
    rows, target = bundled("wine")
    result = await evaluate(evaluation(npz(disk, rows, np.where(np.arange(178) < 50, 9, target))))
    assert result.metrics["accuracy"] == pytest.approx(128 / 178, abs=0.05)
    assert not {"roc_auc", "log_loss"} & set(result.metrics)
    assert result.confusion is not None and sum(map(sum, result.confusion.counts)) == 128
    assert await code_of(evaluation(NpzFile(path="db:d.npz"), metrics=["log_loss"])) == "bad-payload"


async def test_labels_as_texts_are_those_that_were_numbers(disk: Disk, inline: None) -> None:
    await train(disk)
    rows, target = bundled("wine")
    header = [f"x{place}" for place in range(13)]
    write_csv(
        disk, ["y", *header[::-1]], [[label, *row[::-1]] for row, label in zip(rows.tolist(), target.tolist(), strict=True)]
    )
    result = await evaluate(evaluation(CsvFile(path="db:d.csv")))
    assert result.metrics["accuracy"] > 0.97, "and columns go by their names"


@pytest.mark.parametrize(
    "labels",
    [[2.0, 2.5, 3.0], [Decimal("2.00"), Decimal("2.50"), Decimal(3)], ["2", "2.5", "3"], ["2.0", "2.5", "3.0"], [True, False]],
)
def test_labels_are_the_same_by_their_values_wherever_they_are_from(disk: Disk, labels: list[Any]) -> None:
    """Which type a label has depends on where it is from, and on the rows that are there."""
    classes: list[Any] = examples.labels_of(labels, "classification").tolist()
    others: list[list[Any]] = [
        [2.0, 3.0],
        [2, 3],
        [Decimal("2.0"), Decimal("3.00")],
        ["2.0", "3"],
        [2.5],
        ["2.5"],
        [Decimal("2.50")],
    ]
    if labels[0] is True:
        others = [[True, False], [1, 0], [1.0, 0.0], ["1", "0"], ["True", "False"]]
    for given in others:
        truth = examples.labels_of(given, "classification")
        assert (measures._places(measures._classes(classes), truth) < len(classes)).all(), (classes, given)
    assert measures._places(measures._classes(classes), examples.labels_of([7], "classification")).min() >= len(classes)


def test_labels_that_are_texts_are_not_taken_for_one_another() -> None:
    versions = ["1.1", "1.10", "01.1", "1e0"]
    truth = examples.labels_of(versions, "classification")
    assert measures._places(measures._classes(versions), truth).tolist() == [0, 1, 2, 3]


async def test_a_model_of_halves_is_measured_on_whole_numbers(disk: Disk, inline: None) -> None:
    rows, target = bundled("wine")
    target = target / 2 + 2
    made = await train(disk, data=npz(disk, rows, target))
    assert find_model(current(), "m", made.version, 3, Stop()).card.classes == ["2", "2.5", "3"]
    is_whole = target == np.round(target)
    result = await evaluate(evaluation(npz(disk, rows[is_whole], target[is_whole], "whole"), metrics=["accuracy"]))
    assert result.metrics["accuracy"] > 0.97


# --- drift ----------------------------------------------------------------------------------------------------------------


def test_drift_is_the_index_of_the_formula() -> None:
    before = np.repeat(np.arange(10.0), 10)
    feature = spread_of(Feature(name="a"), before)
    assert feature.shares == [0.1] * 10 + [0.0]
    now = np.array([0.0] * 20 + [np.nan] * 10 + [9.0] * 70)
    shares = [0.2, *[0.0] * 8, 0.7, 0.1]
    floor = [(max(a, 1e-4), max(b, 1e-4)) for a, b in zip(feature.shares, shares, strict=True)]
    wanted = sum((b - a) * math.log(b / a) for a, b in floor)
    (found,) = drift_of([feature], [now])
    assert (found.feature, found.psi) == ("a", pytest.approx(wanted, abs=1e-6))
    assert drift_of([feature], [before])[0].psi == 0


def test_drift_of_texts_is_that_of_their_shares() -> None:
    feature = spread_of(Feature(name="c", kind="text", categories=["a", "b"]), np.array([0, 0, 1, 1]))
    assert feature.shares == [0.5, 0.5, 0.0]
    assert drift_of([feature], [np.array([0, 1, 1, 0])])[0].psi == 0
    assert drift_of([feature], [np.array([0, 0, NO_CATEGORY, NO_CATEGORY])])[0].psi > 1


async def test_a_feature_that_has_moved_is_the_worst(disk: Disk, inline: None) -> None:
    await train(disk)
    rows, target = bundled("wine")
    moved = rows.copy()
    moved[:, 4] += 3 * moved[:, 4].std()
    assert max(each.psi for each in (await evaluate(evaluation(npz(disk, rows, target)))).drift) < 0.1
    found = (await evaluate(evaluation(npz(disk, moved, target)))).drift
    assert (found[0].feature, len(found)) == ("x4", 10)
    assert found[0].psi > 0.25 > found[1].psi
    assert [each.psi for each in found] == sorted((each.psi for each in found), reverse=True)


# --- verdicts, and who hears of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bar", "verdict"),
    [
        (None, "none"),
        (Bar(metric="accuracy", min=0.9), "pass"),
        (Bar(metric="accuracy", min=1.01), "fail"),
        (Bar(metric="accuracy", max_drop=0.0), "pass"),
        (Bar(metric="f1_macro", min=0.5, max_drop=0.1), "pass"),
    ],
)
async def test_a_verdict_is_by_the_gate(disk: Disk, inline: None, bar: Bar | None, verdict: str) -> None:
    worse = await train(disk, estimator=Dummy())
    better = await train(disk, number=1)
    baseline = worse.version if bar and bar.max_drop is not None else None
    message = evaluation(half(disk), version=better.version, baseline=baseline, gate=bar, metrics=["recall_macro"])
    result = await evaluate(message)
    assert result.verdict == verdict
    assert set(result.metrics) == {"recall_macro", *([bar.metric] if bar else [])}
    assert bool(result.baseline_metrics) == (baseline is not None)


async def test_a_drop_below_the_baseline_fails(disk: Disk, inline: None) -> None:
    worse = await train(disk, estimator=Dummy())
    better = await train(disk, number=1)
    shared: dict[str, Any] = {"version": worse.version, "baseline": better.version}
    for drop, verdict in ((0.2, "fail"), (0.99, "pass")):
        result = await evaluate(evaluation(half(disk), **shared, gate=Bar(metric="accuracy", max_drop=drop)))
        assert result.verdict == verdict
        assert result.baseline_metrics["accuracy"] > 0.95 > 0.5 > result.metrics["accuracy"]


@pytest.mark.parametrize("bar", [Bar(metric="r2", min=0.5), Bar(metric="r2", max_drop=0.1)])
@pytest.mark.parametrize(("reached", "before"), [(math.nan, 0.5), (0.5, math.nan), (math.nan, math.nan)])
def test_what_is_no_number_passes_no_gate(bar: Bar, reached: float, before: float) -> None:
    said = Measured(rows=2, data_sha256="", metrics={"r2": reached}, baseline_metrics={"r2": before}, drift=[], confusion=None)
    is_told = bar.min is not None and not math.isnan(reached)
    assert ml._verdict(bar, said) == ("pass" if is_told else "fail")


async def test_a_baseline_may_have_other_features_and_texts(disk: Disk, inline: None) -> None:
    rows = [[place % 7, "n" if place % 2 else "p", place % 2] for place in range(60)]
    write_csv(disk, ["a", "t", "y"], rows)
    data = CsvFile(path="db:d.csv")
    both = await train(disk, data=data, estimator=Logistic(), preprocess=Preprocess(one_hot=["t"]))
    one = await train(disk, number=1, data=data, features=["a"], estimator=Logistic())
    write_csv(disk, ["a", "t", "y"], [*rows, [1, "new", 0], [1, "", 1]], "other")
    result = await evaluate(evaluation(CsvFile(path="db:other.csv"), version=both.version, baseline=one.version))
    assert result.metrics["accuracy"] > 0.95 > 0.7 > result.baseline_metrics["accuracy"]
    assert {each.feature for each in result.drift} == {"a", "t"}


@pytest.mark.parametrize(("least", "is_told"), [(0.5, False), (1.01, True)])
async def test_people_hear_of_a_verdict_that_fails(disk: Disk, inline: None, least: float, is_told: bool) -> None:
    made = await train(disk)
    message = evaluation(half(disk), gate=Bar(metric="accuracy", min=least), notify="ops")
    one = job_of(message)
    result = await evaluate_model.function(message, one)
    assert len(one.followers) == is_told and (result.notified is not None) == is_told
    if is_told:
        (packed,) = one.followers
        said = msgspec.json.decode(packed.data)
        assert (packed.head.id, result.notified) == (f"{one.work}:notification",) * 2
        assert (said["channel"], said["level"], said["title"]) == ("ops", "warning", "Model m does not pass")
        assert made.version in said["body"] and "accuracy" in said["body"]


async def test_a_channel_in_which_nobody_can_be_told_is_refused_before_anything_is_done(disk: Disk, inline: None) -> None:
    asked = evaluation(half(disk), gate=Bar(metric="accuracy", min=1.01))
    with pytest.raises(Snooze, match=r"alias-missing: channels\.none"):
        await evaluate(msgspec.structs.replace(asked, notify="none"))
    with pytest.raises(Dead, match=r"channels\.all is dynamic"):
        await evaluate(msgspec.structs.replace(asked, notify="all"))


async def test_a_target_that_is_a_feature_is_said_to_be_one(disk: Disk, inline: None) -> None:
    rows = [[place, place % 2] for place in range(40)]
    write_csv(disk, ["a", "y"], rows, "d")
    data = CsvFile(path="db:d.csv")
    made = await train(disk, data=data, estimator=Logistic())
    with pytest.raises(Dead, match="the target 'a' is a feature of the model"):
        await evaluate(msgspec.structs.replace(evaluation(data, version=made.version), target="a"))


async def test_two_evaluations_of_one_version_and_one_file_tell_people_once(disk: Disk, inline: None, valkey: Server) -> None:
    await train(disk)
    client = valkey.client()
    for metrics in (["accuracy"], ["recall_macro"]):
        message = evaluation(half(disk), gate=Bar(metric="accuracy", min=1.01), notify="ops", metrics=metrics)
        client.xadd("{jobs}:medium", {"type": "evaluate-model", "data": msgspec.json.encode(message)})
    async with working(valkey.url, evaluate_model):
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:medium") == 0)
    assert client.xlen("{jobs}:dead") == 0
    assert len(client.xrange("{jobs}:high")) == 1
    client.close()


# --- which model ------------------------------------------------------------------------------------------------------------


async def test_the_current_version_is_looked_up_once_for_all_attempts(disk: Disk, inline: None) -> None:
    first = await train(disk)
    message = evaluation(half(disk))
    assert (await evaluate(message)).version == first.version
    promote(current(), _younger(await train(disk, number=1, promote=False)))
    assert (await evaluate(message)).version == first.version, "a repeat"
    assert (await evaluate(message, 1)).version != first.version, "another job"


def _younger(made: Trained) -> models.Model:
    """Return a version as if its job had been born later."""
    found = find_model(current(), made.model, made.version, 3, Stop())
    return msgspec.structs.replace(found, card=msgspec.structs.replace(found.card, born_s=found.card.born_s + 1))


async def test_models_that_cannot_be_believed_or_used_end_the_job(disk: Disk, inline: None) -> None:
    made = await train(disk)
    data = half(disk)
    path = disk.folder / "models" / "m" / made.version / "model.skops"
    whole = path.read_bytes()
    path.write_bytes(whole[::-1])
    assert await code_of(evaluation(data)) == "model-untrusted"
    path.write_bytes(whole)
    card = find_model(current(), "m", made.version, 3, Stop()).card
    onnx = msgspec.structs.replace(card, version="a" * 26, format="onnx")
    publish(current(), onnx, b"onnx", "a" * 26, Stop())
    assert await code_of(evaluation(data, version="a" * 26)) == "model-mismatch"
    other = msgspec.structs.replace(card, version="b" * 26, estimator="logistic")
    publish(current(), other, whole, "b" * 26, Stop())
    assert await code_of(evaluation(data, version="b" * 26)) == "model-untrusted", "types of another estimator, though signed"
    regression = await train(disk, "diabetes", number=3, estimator=Ridge(), promote=False)
    assert await code_of(evaluation(data, baseline=regression.version)) == "model-mismatch"
    with pytest.raises(Retry, match="input-missing"):
        await evaluate(evaluation(data, version="c" * 26))


async def test_a_model_that_is_exchanged_after_the_worker_has_verified_it_is_not_loaded(disk: Disk) -> None:
    """By hand: what the worker asks of the child, with another file in the meantime."""
    from handlers.kit.asked import Asked
    from handlers.ml import measure

    made = await train(disk)
    message = evaluation(half(disk))
    asked = Asked(message=message, model=find_model(current(), "m", made.version, 3, Stop()))
    path = disk.folder / "models" / "m" / made.version / "model.skops"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(Dead) as caught:
        await measure(asked, job_of(message))
    assert caught.value.code == "model-untrusted"


async def test_data_that_do_not_fit_the_model_end_the_job(disk: Disk, inline: None) -> None:
    await train(disk)
    rows, target = bundled("wine")
    assert await code_of(evaluation(npz(disk, rows[:, :5], target))) == "bad-payload"
    assert await code_of(evaluation(npz(disk, rows[:1], target[:1]))) == "bad-rows"
    assert await code_of(evaluation(npz(disk, np.where(rows > 1000, np.nan, rows), target))) == "bad-rows"
    assert await code_of(evaluation(npz(disk, np.where(rows > 1000, 1e300, rows), target))) == "bad-rows", "beyond a float32"
    assert await code_of(evaluation(half(disk), metrics=["mae"])) == "bad-payload"
    await train(disk, number=1, estimator=LinearSvm(), preprocess=Preprocess(scale=True), promote=False)
    filled = await train(disk, number=2, estimator=HistGradientBoosting(iterations=3), promote=False)
    holes = npz(disk, np.where(rows > 1000, np.nan, rows), target, "holes")
    assert (await evaluate(evaluation(holes, version=filled.version))).metrics["accuracy"] > 0.8


# --- the report, repeats and kills -------------------------------------------------------------------------------------------


async def test_the_report_says_what_the_result_says(disk: Disk, inline: None) -> None:
    await train(disk)
    message = evaluation(half(disk), to="out:reports/wine.json", gate=Bar(metric="accuracy", min=1.01), notify="ops")
    result = await evaluate(message)
    report = msgspec.json.decode((disk.out / "reports" / "wine.json").read_bytes(), type=Evaluated)
    assert msgspec.structs.replace(report, notified=result.notified) == result
    sidecar = json.loads((disk.out / "reports" / "wine.json.job.json").read_bytes())
    assert sidecar["result"]["metrics"] == result.metrics
    before = state(disk.out / "reports")
    (disk.folder / "db" / "half.npz").unlink()
    assert await evaluate(message) == result, "a repeat needs neither the data nor the model, and tells people all the same"
    assert state(disk.out / "reports") == before
    assert await code_of(evaluation(half(disk), to="out:reports/wine.json"), 1) == "output-exists"
    assert (await evaluate(evaluation(half(disk), to="out:reports/wine.json", overwrite=True), 2)).verdict == "none"


@pytest.mark.parametrize("point", ["report-written", "report-finished"])
async def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(disk: Disk, inline: None, tmp_path: Path, point: str) -> None:
    await train(disk)
    message = evaluation(half(disk), to="out:r.json")
    undisturbed = await evaluate(message)
    wanted = {path.name: path.read_bytes() for path in disk.out.iterdir()}
    for path in disk.out.iterdir():
        path.unlink()
    killed = await asyncio.to_thread(child, disk, message, point=point, marks=str(tmp_path))
    await asyncio.to_thread(killed.communicate, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert await evaluate(message) == undisturbed
    assert {path.name: path.read_bytes() for path in disk.out.iterdir()} == wanted


# --- the contract ------------------------------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    declared = evaluate_model
    assert (declared.timeout_s, declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s) == (1800, 3, 30, 300)
    assert contract_of(EvaluateModel).priority is Priority.MEDIUM
    assert declared.result is not None


VERSION = "abcdefghijklmnopqrstuvwxyz"
FULL: dict[str, Any] = {
    "model": "churn",
    "version": VERSION,
    "data": {"kind": "csv", "path": "db:a.csv"},
    "target": "y",
    "metrics": ["accuracy", "log_loss"],
    "baseline": VERSION,
    "gate": {"metric": "accuracy", "min": 0.5, "max_drop": 0.1},
    "to": "out:r.json",
    "overwrite": True,
    "notify": "ops",
}


def decode(payload: dict[str, Any]) -> EvaluateModel:
    return evaluate_model.decode(job("evaluate-model", data=msgspec.json.encode(payload)))


def test_what_the_contract_offers_is_accepted() -> None:
    assert decode(FULL).notify == "ops"
    assert decode({"model": "m", "data": {"kind": "npz", "path": "db:x"}, "target": "y"}).version is None


@pytest.mark.parametrize("tail", [*HOSTILE, "\n"])
@pytest.mark.parametrize("field", ["model", "version", "target", "baseline", "to", "notify"])
def test_no_text_may_hold_a_control_character(field: str, tail: str) -> None:
    with pytest.raises(BadPayload, match=rf"\$\.{field}"):
        decode({**FULL, field: f"{FULL[field]}{tail}"})


@pytest.mark.parametrize(
    "change",
    [
        {"model": "../m"},
        {"version": "current"},
        {"version": "../../x"},
        {"version": VERSION.upper()},
        {"version": "1" * 26},
        {"baseline": "x"},
        {"data": {"kind": "onnx", "path": "db:x"}},
        {"metrics": ["accuracy", "accuracy"]},
        {"metrics": ["cost"]},
        {"metrics": ["accuracy"] * 11},
        {"gate": {"metric": "accuracy"}},
        {"gate": {"metric": "mae", "min": 1}},
        {"gate": {"metric": "accuracy", "max_drop": -1}},
        {"baseline": None},
        {"to": "out"},
        {"to": "out:../x"},
        {"to": "out:e\u0301.json"},
        {"notify": "https://example.org"},
        {"pdf": True},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})


async def test_settings_that_must_be_fixed_make_the_job_wait(disk: Disk, inline: None, configure: Configure) -> None:
    await train(disk)
    data = half(disk)
    with pytest.raises(Snooze, match=r"roots\.none"):
        await evaluate(evaluation(data, to="none:r.json"))
    configure(settings(disk, key="'env:NONE'"))
    with pytest.raises(Snooze, match=r"models\.key"):
        await evaluate(evaluation(data))
