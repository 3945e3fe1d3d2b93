"""train-model: what a model has learnt, what is signed, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score

import runtime.child
from handlers import ml
from handlers.contracts.sources import Query, Table
from handlers.contracts.training import (
    CsvFile,
    Dummy,
    Estimator,
    EvaluateModel,
    Gate,
    HistGradientBoosting,
    KNearest,
    LinearSvm,
    Logistic,
    NpzFile,
    Preprocess,
    RandomForest,
    RbfSvm,
    Ridge,
    Split,
    Trained,
    TrainModel,
)
from handlers.kit import estimators
from handlers.kit.asked import Fitted
from handlers.kit.models import CURRENT, find_model, read_model
from handlers.kit.settings import current
from handlers.kit.threads import Stop
from handlers.ml import train_model
from runtime import BadPayload, Dead, Priority, Retry, Snooze
from runtime.errors import ChildKilled
from runtime.jobs import Job, contract_of
from tests.builders import job
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, is_gone, job_of, outcome, state
from tests.handlers.disks import until as poll
from tests.handlers.learning import bundled, disk, inline, npz, settings, write_csv
from tests.handlers.learning import training as asked
from tests.handlers.test_contracts import HOSTILE
from tests.servers import Server
from tests.workers import working

__all__ = ["disk", "inline"]  # fixtures

QUICK = Dummy()
SCALED = Preprocess(scale=True)


async def train(message: TrainModel, number: int = 0) -> Trained:
    return await train_model.function(message, job_of(message, number))


def fitted(message: TrainModel) -> Fitted:
    return ml.fit.function(message, job_of(message))


def code_of(message: TrainModel) -> str:
    with pytest.raises(Dead) as caught:
        fitted(message)
    return caught.value.code


def versions(disk: Disk) -> list[str]:
    return (
        sorted(path.name for path in (disk.folder / "models" / "m").iterdir()) if (disk.folder / "models" / "m").exists() else []
    )


# --- what is learnt -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "estimator", "preprocess", "metric", "score"),
    [
        ("digits", Logistic(), SCALED, "accuracy", 0.969),
        ("digits", RandomForest(), Preprocess(), "accuracy", 0.982),
        ("digits", RbfSvm(), SCALED, "accuracy", 0.982),
        ("wine", Logistic(), SCALED, "accuracy", 1.000),
        ("breast_cancer", Logistic(), SCALED, "accuracy", 0.958),
        ("diabetes", Ridge(), Preprocess(), "r2", 0.357),
    ],
)
def test_bundled_data_have_the_scores_that_are_known(
    disk: Disk, data: str, estimator: Estimator, preprocess: Preprocess, metric: str, score: float
) -> None:
    card = fitted(asked(disk, data, estimator=estimator, preprocess=preprocess)).card
    assert card.metrics[metric] == pytest.approx(score, abs=0.02)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize(
    "estimator",
    [
        Logistic(),
        Ridge(),
        LinearSvm(),
        RbfSvm(gamma=0.01),
        RandomForest(trees=5, depth=4),
        HistGradientBoosting(iterations=3),
        KNearest(weights="distance"),
        Dummy(),
    ],
)
def test_each_estimator_needs_just_the_types_that_are_listed_and_predicts_the_same_once_loaded(
    disk: Disk, estimator: Estimator, task: str
) -> None:
    if (task == "classification") == isinstance(estimator, Ridge) and isinstance(estimator, Ridge | Logistic):
        return
    if task == "regression" and isinstance(estimator, Logistic):
        return
    rows, target = bundled("wine" if task == "classification" else "diabetes")
    kind = estimators.kind_of(estimator)
    made = estimators.pipeline(estimator, Preprocess(impute="mean", scale=True), task, 0)  # type: ignore[arg-type]
    made.fit(rows, target)
    data = estimators.dump(made)
    assert set(estimators.untrusted_types(data)) == set(estimators.TRUSTED[kind])
    assert (estimators.load(data, kind).predict(rows) == made.predict(rows)).all()
    if "tree" in str(estimators.TRUSTED[kind]) or "boosting" in kind:
        for other in ("logistic", "unknown", ""):
            with pytest.raises(Dead, match="types") as caught:
                estimators.load(data, other)
            assert caught.value.code == "model-untrusted"


async def test_a_model_is_its_file_and_a_card_that_says_what_it_is(disk: Disk, inline: None) -> None:
    message = asked(disk, estimator=RandomForest(trees=20), folds=3)
    said = await train(message)
    found = find_model(current(), "m", said.version, 3, Stop())
    assert found.version == said.version == job_of(message).work
    card = found.card
    assert (card.estimator, card.task, card.classes, card.rows) == ("random-forest", "classification", list(range(10)), 1797)
    assert [feature.name for feature in card.features] == [f"x{place}" for place in range(64)]
    assert card.trusted == ["sklearn.tree._tree.Tree"] and card.born_s == job_of(message).born
    assert set(card.libraries) == {"python", "numpy", "scikit-learn", "scipy", "skops"}
    assert said.metrics == card.metrics and said.rows == 1797 and (said.gate, said.promoted) == ("none", False)
    assert {f"fold_{name}" for name in said.metrics if not name.startswith("fold_")} <= set(said.metrics)
    model = estimators.load(read_model(current(), found, Stop()), card.estimator)
    rows, target = bundled("digits")
    assert accuracy_score(target, model.predict(rows)) > 0.98
    assert len(msgspec.json.encode(said)) <= 4096


def test_the_metrics_are_those_of_rows_that_the_model_has_not_seen(disk: Disk) -> None:
    """By hand: the split of scikit-learn with the same seed, the same forest, and the same share of right answers."""
    from sklearn.model_selection import train_test_split

    rows, target = bundled("digits")
    a, b, c, d = train_test_split(rows, target, test_size=0.25, random_state=7, stratify=target)
    right = (RandomForestClassifier(10, random_state=7).fit(a, c).predict(b) == d).mean()
    card = fitted(asked(disk, estimator=RandomForest(trees=10), split=Split(seed=7))).card
    assert card.metrics["accuracy"] == pytest.approx(right)


def test_two_runs_make_equal_bytes_also_in_another_process(disk: Disk) -> None:
    for estimator in (RandomForest(trees=20), HistGradientBoosting(iterations=5), Logistic()):
        message = asked(disk, "wine", estimator=estimator, preprocess=Preprocess(impute="median", scale=True), folds=2)
        first, second = fitted(message), fitted(message)
        assert bytes(first.model) == bytes(second.model) and first.card == second.card
    program = (
        "import sys, msgspec; from handlers import ml; from handlers.contracts.training import TrainModel;"
        "from tests.handlers.disks import job_of; message = msgspec.json.decode(sys.argv[1], type=TrainModel);"
        "sys.stdout.buffer.write(bytes(ml.fit.function(message, job_of(message)).model))"
    )
    command = [sys.executable, "-c", program, msgspec.json.encode(message).decode()]
    assert subprocess.run(command, capture_output=True, check=True).stdout == bytes(first.model)


def test_shuffled_labels_teach_nothing(disk: Disk) -> None:
    rows, target = bundled("digits")
    data = npz(disk, rows, np.random.default_rng(1).permutation(target), "shuffled")
    card = fitted(asked(disk, data=data, estimator=RandomForest(trees=20))).card
    assert card.metrics["accuracy"] == pytest.approx(0.1, abs=0.06)


def customers(disk: Disk) -> None:
    """People of three cities, one of which stays."""
    rows = [[age, city, "stays" if city == "Bonn" else "goes"] for age in range(20, 60) for city in ("Aachen", "Bonn", "Köln")]
    rows[5][0] = ""
    rows[7][1] = ""
    write_csv(disk, ["age", "city", "label"], rows)


async def test_texts_become_columns_and_missing_numbers_are_filled_in(disk: Disk, inline: None) -> None:
    customers(disk)
    message = asked(
        disk,
        data=CsvFile(path="db:d.csv"),
        target="label",
        estimator=Logistic(),
        preprocess=Preprocess(impute="mean", scale=True, one_hot=["city"]),
    )
    said = await train(message)
    assert said.metrics["accuracy"] > 0.95
    card = find_model(current(), "m", said.version, 3, Stop()).card
    assert card.classes == ["goes", "stays"]
    age, city = card.features
    assert (age.kind, city.kind, city.categories) == ("number", "text", ["Aachen", "Bonn", "Köln"])
    assert len(age.edges) == 9 and sum(age.shares) == pytest.approx(1) and len(city.shares) == 4


async def test_a_file_may_be_packed_and_a_database_may_have_the_rows(disk: Disk, inline: None) -> None:
    rows, target = bundled("wine")
    header = [f"c{place}" for place in range(13)]
    table = [[*row, label] for row, label in zip(rows.tolist(), target.tolist(), strict=True)]
    write_csv(disk, [*header, "y"], table)
    raw = (disk.folder / "db" / "d.csv").read_bytes()
    (disk.folder / "db" / "d.csv.gz").write_bytes(gzip.compress(raw))
    columns = ", ".join(f"{name} REAL" for name in header)
    disk.table(f"{columns}, y INTEGER", [tuple(row) for row in table])
    disk.query("SELECT * FROM t")
    shared: dict[str, Any] = {"estimator": RandomForest(trees=10)}
    found = [
        await train(asked(disk, data=data, **shared))
        for data in (
            CsvFile(path="db:d.csv"),
            CsvFile(path="db:d.csv.gz", compress="gzip"),
            Table(db="shop", table="t", columns=[*header, "y"]),
            Query(db="shop", query="q"),
        )
    ]
    assert len({json.dumps(said.metrics) for said in found}) == 1
    cards = [find_model(current(), "m", said.version, 3, Stop()).card for said in found]
    assert [card.classes for card in cards] == [["0", "1", "2"], ["0", "1", "2"], [0, 1, 2], [0, 1, 2]]
    assert cards[2].data_sha256 == cards[3].data_sha256 != cards[0].data_sha256


async def test_features_may_be_named(disk: Disk, inline: None) -> None:
    said = await train(asked(disk, "wine", features=["x6", "x0"], estimator=QUICK))
    assert [each.name for each in find_model(current(), "m", said.version, 3, Stop()).card.features] == ["x6", "x0"]


async def test_folds_of_one_row_have_no_r2(disk: Disk, inline: None) -> None:
    rows, target = bundled("diabetes")
    data = npz(disk, rows[:12], target[:12])
    said = await train(asked(disk, data=data, task="regression", estimator=Ridge(), folds=8))
    assert set(said.metrics) == {"r2", "mae", "rmse", "fold_mae", "fold_rmse"}
    assert find_model(current(), "m", said.version, 3, Stop()).card.metrics == said.metrics


def test_progress_says_folds_and_stages(disk: Disk) -> None:
    message = asked(disk, "wine", estimator=QUICK, folds=3)
    one, told = job_of(message), []
    one.noted().said.tell = lambda said: told.append(
        said.progress and (said.progress.done, said.progress.total, said.progress.text)
    )
    ml.fit.function(message, one)
    assert [each[:2] for each in told if each] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[1][2] == "fold 2 of 3"


def test_a_fit_that_does_not_converge_says_so_to_people(disk: Disk) -> None:
    message = asked(disk, estimator=Logistic(max_iter=1))
    one = job_of(message)
    ml.fit.function(message, one)
    assert "ConvergenceWarning; hint: `max_iter`" in str(one.noted().said.lines)


# --- gate and promotion ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("least", "gate", "promoted"), [(0.9, "pass", True), (1.01, "fail", False)])
async def test_the_gate_keeps_what_is_worse_from_being_the_current_version(
    disk: Disk, inline: None, least: float, gate: str, promoted: bool
) -> None:
    said = await train(
        asked(disk, "wine", estimator=RandomForest(trees=20), gate=Gate(metric="accuracy", min=least), promote=True)
    )
    assert (said.gate, said.promoted) == (gate, promoted)
    assert versions(disk) == sorted([said.version, *[CURRENT] * promoted])
    if promoted:
        assert find_model(current(), "m", None, 3, Stop()).version == said.version


async def test_only_what_the_settings_name_may_be_promoted(disk: Disk, inline: None, configure: Configure) -> None:
    with pytest.raises(Dead, match=r"models\.promote"):
        await train(asked(disk, "wine", name="other", estimator=QUICK, promote=True))
    assert not (disk.folder / "models" / "other").exists(), "not even trained"
    assert not (await train(asked(disk, "wine", name="other", estimator=QUICK))).promoted


async def test_a_gate_that_cannot_be_told_ends_the_job_before_anything_is_promoted(disk: Disk, inline: None) -> None:
    message = asked(disk, "wine", estimator=RbfSvm(), gate=Gate(metric="roc_auc", min=0.5), promote=True)
    with pytest.raises(Dead, match="roc_auc cannot be told: it needs probabilities"):
        await train(message)
    assert disk.names(disk.folder / "models") == []


async def test_a_child_cannot_say_of_which_model_its_answer_is_a_version(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    message = asked(disk, "wine", estimator=QUICK)

    async def lying(request: TrainModel, one: Job) -> Fitted:
        made = honest(request, one)
        lies = {"name": "digits", "version": "a" * 26, "format": "onnx", "born_s": 2e9}
        return msgspec.structs.replace(made, card=msgspec.structs.replace(made.card, **lies))

    honest = ml.fit.function
    monkeypatch.setattr(ml, "fit", lying)
    said = await train(message)
    assert [path.name for path in (disk.folder / "models").iterdir()] == ["m"]
    card = find_model(current(), "m", said.version, 3, Stop()).card
    assert (card.version, card.format, card.born_s) == (job_of(message).work, "skops", job_of(message).born)


# --- repeats and kills -----------------------------------------------------------------------------------------------------


async def test_a_repeat_finds_its_version(disk: Disk, inline: None) -> None:
    message = asked(disk, "wine", estimator=RandomForest(trees=5), promote=True)
    first = await train(message)
    before = [state(disk.folder / "models" / "m"), state(disk.folder / "models" / "m" / first.version)]
    (disk.folder / "db" / "wine.npz").unlink()
    assert await train(message) == first
    assert before == [state(disk.folder / "models" / "m"), state(disk.folder / "models" / "m" / first.version)]
    again = await train(asked(disk, "wine", estimator=RandomForest(trees=5)), 1)
    assert again.version != first.version, "another job makes another version"
    assert again.model_sha256 == first.model_sha256


async def test_a_version_that_was_changed_is_not_taken_for_ours(disk: Disk, inline: None) -> None:
    message = asked(disk, "wine", estimator=QUICK)
    said = await train(message)
    path = disk.folder / "models" / "m" / said.version / "model.skops"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(Dead) as caught:
        await train(message)
    assert caught.value.code == "model-untrusted"


def whole(folder: Path) -> dict[str, Any]:
    """Return what a folder of models has, but for the number of `current`, which is the time."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: data if not name.endswith(CURRENT) else json.dumps(json.loads(data)["version"]).encode()
        for name, data in found.items()
    }


# Between the files of a version, and around the file that says which is the current one: in test_models.
@pytest.mark.parametrize(("point", "times"), [("before-publish", 1), ("model-file", 2), ("published", 1), ("current-named", 1)])
async def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(
    disk: Disk, inline: None, tmp_path: Path, point: str, times: int
) -> None:
    message = asked(disk, "wine", estimator=QUICK, promote=True)
    undisturbed = await train(message)
    wanted = whole(disk.folder / "models")
    shutil.rmtree(disk.folder / "models" / "m")
    killed = await asyncio.to_thread(child, disk, message, point=point, times=times, marks=str(tmp_path))
    await asyncio.to_thread(killed.communicate, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert await train(message) == undisturbed
    assert whole(disk.folder / "models") == wanted


CHILD = os.fsencode(runtime.child.__file__)
ENDLESS: dict[str, Any] = {"estimator": RandomForest(trees=1000), "folds": 10}


def is_fitting(process: Path, worker: int) -> bool:
    """Return whether this is a child process of a worker, and has loaded the forest.

    By its command line too: between fork and exec a process has the memory of its parent, and that may have loaded it.
    """
    try:
        is_its = f"\nPPid:\t{worker}\n" in (process / "status").read_text()
        is_child = is_its and CHILD in (process / "cmdline").read_bytes().split(b"\0")
        return is_child and "sklearn/ensemble" in (process / "maps").read_text()
    except OSError:  # it has ended
        return False


async def fitting_child(worker: int) -> int:
    """Return the process that fits, once it does."""
    found: list[int] = []

    def look() -> bool:
        found.extend(int(each.name) for each in Path("/proc").glob("[0-9]*") if is_fitting(each, worker))
        return bool(found)

    await asyncio.to_thread(poll, look)
    (pid,) = found
    return pid


async def test_killed_while_it_fits_nothing_is_left_and_the_child_is_gone(disk: Disk) -> None:
    message = asked(disk, **ENDLESS)
    worker = await asyncio.to_thread(child, disk, message, in_own_child=True)
    fitting = await fitting_child(worker.pid)
    worker.kill()
    await asyncio.to_thread(worker.communicate, timeout=120)
    await asyncio.to_thread(poll, lambda: is_gone(fitting))
    assert disk.names(disk.folder / "models") == []


async def test_a_child_that_is_killed_fails_one_attempt(disk: Disk) -> None:
    message = asked(disk, **ENDLESS)
    task = asyncio.create_task(train(message))
    os.kill(await fitting_child(os.getpid()), signal.SIGKILL)
    with pytest.raises(ChildKilled):
        await task
    assert disk.names(disk.folder / "models") == []


async def test_a_cancel_ends_the_child_and_leaves_nothing(disk: Disk) -> None:
    task = asyncio.create_task(train(asked(disk, **ENDLESS)))
    fitting = await fitting_child(os.getpid())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(poll, lambda: is_gone(fitting))
    assert disk.names(disk.folder / "models") == []


async def test_too_little_memory_is_tried_again_once_and_then_said(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    data = npz(disk, np.zeros((400_000, 20)), np.arange(400_000) % 2, "large")
    message = asked(disk, data=data, estimator=QUICK)
    small = asked(disk, "wine", estimator=QUICK)
    await train(small)  # this child has imported all that it needs
    monkeypatch.setattr(ml.fit, "memory_bytes", 32 * 2**20)
    with pytest.raises(Exception, match="needs more than 2048 MiB") as caught:
        await train(message)
    assert "child-killed" in str(caught.value)
    last = job("train-model", data=msgspec.json.encode(message), fetched_ms=2**53, failed=1)
    assert last.attempt == 2
    with pytest.raises(Dead, match=r"needs more than 2048 MiB \(had \d+ of them\); hint: fewer rows") as dead:
        await train_model.function(message, last)
    assert dead.value.code == "child-killed"


async def test_a_plain_message_comes_all_the_way(disk: Disk, valkey: Server) -> None:
    message = asked(disk, "wine", estimator=RandomForest(trees=5), promote=True)
    client = valkey.client()
    client.xadd("{jobs}:medium", {"type": "train-model", "data": msgspec.json.encode(message)})
    async with working(valkey.url, train_model):
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:medium") == 0)
    assert client.xlen("{jobs}:dead") == 0
    client.close()
    assert find_model(current(), "m", None, 3, Stop()).card.metrics["accuracy"] > 0.9


# --- examples that cannot be used ------------------------------------------------------------------------------------------


def test_each_fault_of_the_data_is_said_without_a_value(disk: Disk, configure: Configure) -> None:
    configure(settings(disk, max_cells="1000"))
    header = ["a", "b", "y"]
    good = [[place, place % 3, "n" if place % 2 else "p"] for place in range(40)]
    one_hot = {"preprocess": Preprocess(one_hot=["a"])}
    faults: list[tuple[list[str], list[list[Any]], dict[str, Any], str, str]] = [
        (["a", "b"], [[1, 2]], {}, "bad-payload", "0 columns named 'y'"),
        (["a", "a", "y"], [[1, 2, 3]], {}, "bad-payload", "2 columns named 'a'"),
        (header, good, {"features": ["c"]}, "bad-payload", "0 columns named 'c'"),
        (header, good, {"preprocess": Preprocess(one_hot=["c"])}, "bad-payload", "0 columns named 'c'"),
        (["a;y"], [["1;2"]], {}, "bad-payload", "0 columns named 'y', not one; hint: `delimiter`"),
        (header, [], {}, "bad-rows", "no rows"),
        (["y"], [["p"]], {}, "too-large", "1 to 1000 features"),
        (header, [[1, 2, "p"]] * 40, {}, "bad-rows", "two classes"),
        (header, [*good, ["", 1, "p"]], {}, "bad-rows", "column 'a' has missing numbers; hint: `impute`"),
        (header, [*good, ["nan", 1, "p"]], {}, "bad-rows", "column 'a' has missing numbers"),
        (header, [*good, ["inf", 1, "p"]], {}, "bad-rows", "row 41: column 'a' must have finite"),
        (header, [*good, ["1_000", 1, "p"]], {}, "bad-rows", "row 41: column 'a' must have numbers"),
        (header, [*good, ["secret", 1, "p"]], {}, "bad-rows", "row 41: column 'a' must have numbers; hint: `one_hot`"),
        (header, [*good, [1, 1, ""]], {}, "bad-rows", "row 41 has no target"),
        (header, [*good, [1, 1]], {}, "bad-rows", "line 42 has 2 cells"),
        (header, good * 20, {}, "too-large", "1000 rows x columns$"),
        (
            header,
            [[f"t{place}", 1, place % 2] for place in range(40)],
            one_hot,
            "too-large",
            "40 x 41",
        ),
        (header, [*good, [1, 1, "x" * 201]], {}, "bad-rows", "200 characters"),
        (header, good[:3], {}, "bad-rows", "too few"),
        (header, [*good, [1, 1, "once"]], {}, "bad-rows", "of some class"),
        (header, [[1, 1, f"class {place}"] for place in range(40)], {}, "bad-rows", "too few"),
        (header, good[:12], {"folds": 10}, "bad-rows", "too few"),
        (header, good, {"task": "regression", "estimator": Ridge()}, "bad-rows", "row 1: the target must have numbers$"),
        (
            header,
            [*good, ["1e300", 1, "p"]],
            {"preprocess": Preprocess(), "estimator": RandomForest(trees=2)},
            "bad-rows",
            "cannot be fitted",
        ),
    ]
    for names, rows, fields, code, text in faults:
        write_csv(disk, names, rows)
        message = asked(disk, **{"data": CsvFile(path="db:d.csv"), "estimator": KNearest(), **fields})
        with pytest.raises(Dead, match=text) as caught:
            fitted(message)
        assert caught.value.code == code and "secret" not in str(caught.value)
    assert disk.names(disk.folder / "models") == []


def test_estimators_that_can_do_with_missing_numbers_may_have_them(disk: Disk) -> None:
    rows, target = bundled("wine")
    data = npz(disk, np.where(rows > 1000, np.nan, rows), target)
    for fields in (
        {"estimator": HistGradientBoosting(iterations=5)},
        {"estimator": Logistic(), "preprocess": Preprocess(impute="median", scale=True)},
    ):
        assert fitted(asked(disk, data=data, **fields)).card.metrics["accuracy"] > 0.8
    assert code_of(asked(disk, data=data, estimator=RandomForest(trees=2))) == "bad-rows"


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0, np.nan] * 20), np.array(["a", "b", ""] * 20)])
def test_a_label_that_is_missing_is_no_class(disk: Disk, labels: Any) -> None:
    data = npz(disk, np.zeros((60, 2)), labels)
    assert code_of(asked(disk, data=data, estimator=QUICK)) == "bad-rows"


def test_what_a_database_refuses_is_said(disk: Disk) -> None:
    disk.table("a REAL, y TEXT", [(1.0, "p")])
    assert code_of(asked(disk, data=Table(db="shop", table="none", columns=["a"]), estimator=QUICK)) == "bad-query"
    assert code_of(asked(disk, data=Table(db="shop", table="t", columns=["a"]), estimator=QUICK)) == "bad-payload"
    disk.table("a BLOB, y TEXT", [(b"x", "p")], name="u")
    assert code_of(asked(disk, data=Table(db="shop", table="u", columns=["a", "y"]), estimator=QUICK)) == "bad-rows"
    disk.table("a REAL, y BLOB", [(1.0, b"x")], name="v")
    assert code_of(asked(disk, data=Table(db="shop", table="v", columns=["a", "y"]), estimator=QUICK)) == "bad-rows"


def test_a_file_that_is_not_there_is_waited_for(disk: Disk) -> None:
    message = asked(disk, data=CsvFile(path="db:none.csv"), estimator=QUICK)
    with pytest.raises(Retry, match="input-missing"):
        fitted(message)
    tries = train_model.retry.attempts
    last = job("train-model", data=msgspec.json.encode(message), fetched_ms=2**53, failed=tries - 1)
    assert last.attempt == tries
    with pytest.raises(Dead) as caught:  # with its code, and not for want of attempts
        ml.fit.function(message, last)
    assert caught.value.code == "input-missing"


# --- what is declared, and the contract --------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    declared = train_model
    assert (declared.timeout_s, declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s) == (7200, 3, 60, 300)
    assert contract_of(TrainModel).priority is Priority.MEDIUM
    assert declared.result is not None


def test_a_worker_loads_neither_scikit_learn_nor_what_it_needs() -> None:
    program = "import sys, handlers.ml; print({'sklearn', 'scipy', 'joblib', 'skops', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_pickle_is_read_or_written(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter says each thing that a pickle names; and nothing is written as one."""
    program = (
        "import sys, msgspec;"
        "from handlers import ml; from handlers.kit import training, estimators;"
        "from handlers.contracts.training import TrainModel; from tests.handlers.disks import job_of;"
        "sys.addaudithook(lambda event, args: event.startswith('pickle') and sys.exit(f'{event} {args}'))\n"
        "message = msgspec.json.decode(sys.argv[1], type=TrainModel); made = ml.fit.function(message, job_of(message))\n"
        "estimators.load(bytes(made.model), 'random-forest')\n"
        "print('none')"
    )
    message = asked(disk, "wine", estimator=RandomForest(trees=3), preprocess=Preprocess(impute="mean", scale=True), folds=2)
    command = [sys.executable, "-c", program, msgspec.json.encode(message).decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "none\n", done.stderr


def test_pickles_in_arrays_and_in_models_are_refused(disk: Disk) -> None:
    class Boom:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {disk.folder}/boom",)

    np.savez(disk.folder / "db" / "d.npz", X=np.array([[Boom()], [Boom()]], dtype=object), y=np.array([0, 1]))
    assert code_of(asked(disk, data=NpzFile(path="db:d.npz"), estimator=QUICK)) == "bad-rows"
    for data in (pickle.dumps(Boom()), b"", b"PK\x05\x06" + bytes(18)):
        with pytest.raises(Dead) as caught:
            estimators.load(data, "dummy")
        assert caught.value.code == "model-untrusted"
    assert not (disk.folder / "boom").exists()


FULL: dict[str, Any] = {
    "name": "churn",
    "data": {"kind": "csv", "path": "db:a/b.csv", "delimiter": ";", "compress": "gzip"},
    "target": "y",
    "features": ["age", "mean radius (cm)"],
    "task": "classification",
    "estimator": {"kind": "random-forest", "trees": 10, "depth": 3, "min_leaf": 2},
    "preprocess": {"impute": "most-frequent", "scale": True, "one_hot": ["age"]},
    "split": {"test": 0.3, "seed": 4, "stratify": False},
    "folds": 5,
    "gate": {"metric": "accuracy", "min": 0.5},
    "promote": True,
}


def decode(payload: dict[str, Any]) -> TrainModel:
    return train_model.decode(job("train-model", data=msgspec.json.encode(payload)))


def test_what_the_contract_offers_is_accepted() -> None:
    assert decode(FULL).folds == 5
    kinds = ("logistic", "linear-svm", "rbf-svm", "random-forest", "hist-gradient-boosting", "k-nearest", "dummy")
    for kind in kinds:
        assert estimators.kind_of(decode({**FULL, "estimator": {"kind": kind}}).estimator) == kind
    for data in (
        {"kind": "npz", "path": "db:x.npz"},
        {"kind": "query", "db": "shop", "query": "q"},
        {"kind": "table", "db": "shop", "table": "t", "columns": ["a"]},
    ):
        assert decode({**FULL, "data": data})


@pytest.mark.parametrize("tail", [*HOSTILE, "\n"])
def test_no_text_may_hold_a_control_character(tail: str) -> None:
    spoilt: list[tuple[str, Any]] = [
        ("name", f"churn{tail}"),
        ("target", f"y{tail}"),
        ("features", [f"age{tail}"]),
        ("data", {"kind": "csv", "path": f"db:a{tail}"}),
        ("data", {"kind": "npz", "path": f"db:a{tail}"}),
        ("data", {"kind": "npz", "path": "db:a", "array": f"X{tail}"}),
        ("preprocess", {"one_hot": [f"age{tail}"]}),
    ]
    for field, value in spoilt:
        with pytest.raises(BadPayload, match=rf"\$\.{field}"):
            decode({**FULL, field: value})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../x"},
        {"name": "Churn"},
        {"data": {"kind": "csv", "path": "/etc/passwd"}},
        {"data": {"kind": "csv", "path": "db:../x"}},
        {"data": {"kind": "csv", "path": "db:e\u0301.csv"}},
        {"data": {"kind": "pickle", "path": "db:x"}},
        {"data": {"path": "db:x"}},
        {"target": ""},
        {"target": "age"},
        {"target": "x" * 101},
        {"features": ["a", "a"]},
        {"features": ["a"] * 1001},
        {"features": [""]},
        {"task": "clustering"},
        {"estimator": {"kind": "ridge"}},
        {"task": "regression", "gate": None, "estimator": {"kind": "logistic"}},
        {"estimator": {"kind": "sklearn.svm.SVC"}},
        {"estimator": {"kind": "logistic", "c": 0}},
        {"estimator": {"kind": "logistic", "c": 1e7}},
        {"estimator": {"kind": "logistic", "max_iter": 10**6}},
        {"estimator": {"kind": "rbf-svm", "gamma": 0}},
        {"estimator": {"kind": "random-forest", "trees": 1001}},
        {"estimator": {"kind": "random-forest", "depth": 65}},
        {"estimator": {"kind": "random-forest", "n_jobs": 64}},
        {"estimator": {"kind": "hist-gradient-boosting", "leaves": 1}},
        {"estimator": {"kind": "k-nearest", "k": 0}},
        {"preprocess": {"impute": "knn"}},
        {"preprocess": {"one_hot": ["other"]}},
        {"preprocess": {"one_hot": ["age", "age"]}},
        {"split": {"test": 0}},
        {"split": {"test": 1}},
        {"split": {"seed": -1}},
        {"split": {"seed": 2**32}},
        {"folds": 1},
        {"folds": 11},
        {"gate": {"metric": "r2", "min": 0}},
        {"gate": {"metric": "mae", "min": 0}},
        {"gate": {"metric": "accuracy"}},
        {"promote": "yes"},
        {"more": 1},
    ],
)
def test_what_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})


# --- settings ----------------------------------------------------------------------------------------------------------------


async def test_the_models_of_the_page_can_be_trained_and_evaluated(disk: Disk, inline: None, configure: Configure) -> None:
    page = (Path(__file__).parents[2] / "docs" / "shipped-handlers.md").read_text("utf-8")
    trainings = [decode(json.loads(payload)) for payload in re.findall(r"enqueue train-model '(.*)'", page)]
    evaluations = re.findall(r"enqueue evaluate-model '(.*)'", page)
    more = "roots.data = { path = 'FOLDER' }\nroots.reports = { path = 'FOLDER', mode = 'write' }\n"
    configure(settings(disk, promote="['churn']") + more.replace("FOLDER", str(disk.folder / "db")))
    rows = [[n % 50, n % 7, n % 3, "DE" if n % 3 else "AT", "yes" if n % 50 > 25 else "no"] for n in range(200)]
    for name in ("customers", "november"):
        write_csv(disk, ["age", "orders", "complaints", "country", "stays"], [["", 0, 0, "", "no"], *rows], name)
    disk.table("size REAL, age REAL, price REAL", [(n, n % 7, 3 * n + n % 7) for n in range(50)], name="sales")
    churn, prices = [await train(message) for message in trainings]
    assert (churn.gate, churn.promoted, prices.gate) == ("pass", True, "none")
    assert prices.metrics["r2"] > 0.9
    message = msgspec.json.decode(evaluations[0], type=EvaluateModel)
    assert (await ml.evaluate_model.function(message, job_of(message))).verdict == "pass"
    assert msgspec.json.decode(evaluations[1], type=EvaluateModel).baseline


async def test_settings_that_must_be_fixed_make_the_job_wait(disk: Disk, inline: None, configure: Configure) -> None:
    message = asked(disk, "wine", estimator=QUICK)
    for text, wanted in [
        (disk.settings(), "alias-missing: models"),
        (settings(disk, key="'env:NONE'"), r"alias-missing: models\.key"),
        (settings(disk, root="'none'"), r"alias-missing: roots\.none"),
    ]:
        configure(text)
        with pytest.raises(Snooze, match=wanted):
            await train(message)
    configure(settings(disk, root="'db'"))
    with pytest.raises(Dead, match="mode 'read' only") as caught:
        await train(message)
    assert caught.value.code == "bad-path"


def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    said = outcome(child(disk, asked(disk, "wine", estimator=QUICK), file_bytes=1000))
    assert said.startswith("Snooze: out-of-space: roots.models"), said
    assert not [path for path in (disk.folder / "models").rglob("*") if path.is_file()]
