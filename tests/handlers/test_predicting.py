"""Models at work: what they answer, what they are not given, and which files never become one."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime
import pytest
import skops.io
from onnx import TensorProto, helper
from onnxruntime.capi.onnxruntime_pybind11_state import RuntimeException
from skl2onnx import to_onnx
from sklearn.datasets import load_diabetes, load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import LinearSVC

from handlers.kit import examples, predicting
from handlers.kit.failures import BadRow
from handlers.kit.models import Card, Feature, Model
from handlers.kit.predicting import Questions, Unknown, answer_once, kept_model, load_model
from runtime import Dead
from tests.handlers.disks import ROOT

WORK = "a" * 26
INPUT, OUTPUT = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xy")


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    predicting._kept.clear()


@cache
def digits() -> tuple[Any, Any, Any]:
    """Return a pipeline that knows digits, and rows and labels that it has not seen."""
    data, labels = load_digits(return_X_y=True)
    seen, unseen, seen_labels, unseen_labels = train_test_split(data, labels, test_size=0.25, random_state=0, stratify=labels)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(seen, seen_labels)
    return pipeline, unseen, unseen_labels


@cache
def as_skops() -> bytes:
    return skops.io.dumps(digits()[0])


def as_onnx(zipmap: bool = False) -> bytes:
    return to_onnx(digits()[0], np.zeros((1, 64), np.float32), options={"zipmap": zipmap}).SerializeToString()


def card(*names: str, **fields: Any) -> Card:
    features = [Feature(name=name) for name in names]
    return Card(**{"name": "m", "version": WORK, "format": "skops", "task": "classification", "features": features, **fields})


def of_digits(**fields: Any) -> Card:
    return card(*(f"x{at}" for at in range(64)), **{"classes": list(range(10)), "estimator": "logistic", **fields})


def ask(described: Card, data: bytes, rows: list[list[Any]], output: Any = None, *, is_csv: bool = False) -> list[Any]:
    return Questions(load_model(described, data), described, output).answers(rows, is_csv=is_csv)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(Dead) as caught:
        call()
    return caught.value.code


# --- answers ---------------------------------------------------------------------------------------------------------------


def test_the_labels_and_probabilities_are_those_of_scikit_learn() -> None:
    pipeline, rows, _ = digits()
    assert ask(of_digits(), as_skops(), rows.tolist()) == pipeline.predict(rows).tolist()
    assert ask(of_digits(), as_skops(), rows.tolist(), "probability") == pipeline.predict_proba(rows).tolist()


@pytest.mark.parametrize("zipmap", [False, True])
def test_a_model_in_onnx_agrees_with_the_one_that_it_was_made_of(zipmap: bool) -> None:
    pipeline, rows, labels = digits()
    found, data = of_digits(format="onnx"), as_onnx(zipmap)
    answers = ask(found, data, rows.tolist())
    assert len(answers) == 450
    assert answers == pipeline.predict(rows).tolist()
    assert abs((np.array(answers) == labels).mean() - 0.969) <= 0.02
    np.testing.assert_allclose(ask(found, data, rows.tolist(), "probability"), pipeline.predict_proba(rows), atol=1e-4)


@pytest.mark.parametrize("format", ["skops", "onnx"])
def test_a_regression_answers_with_values(format: Any) -> None:
    rows, values = load_diabetes(return_X_y=True)
    ridge = make_pipeline(Ridge()).fit(rows, values)
    data = skops.io.dumps(ridge) if format == "skops" else to_onnx(ridge, rows[:1].astype(np.float32)).SerializeToString()
    found = card(*(f"x{at}" for at in range(10)), task="regression", format=format)
    np.testing.assert_allclose(ask(found, data, rows.tolist()), ridge.predict(rows), rtol=1e-4)
    for output in ("label", "probability"):
        assert code_of(lambda output=output: ask(found, data, rows[:1].tolist(), output)) == "model-mismatch"


def of_mixed() -> tuple[Card, bytes, list[list[Any]], list[str]]:
    """Return a model that takes a number and a text, with rows and its answers."""
    rows: list[list[Any]] = [[float(n), "left" if n % 3 else "right"] for n in range(60)]
    numbers = np.array([[n, side == "left", side == "right"] for n, side in rows], float)
    model = Pipeline([("estimate", LogisticRegression())]).fit(numbers, ["many" if n > 30 else "few" for n in range(60)])
    sides = Feature(name="side", kind="text", categories=["left", "right"])
    described = card(classes=["few", "many"], features=[Feature(name="n"), sides], estimator="logistic")
    return described, skops.io.dumps(model), rows, model.predict(numbers).tolist()


def test_a_model_takes_numbers_beside_texts() -> None:
    found, data, rows, expected = of_mixed()
    assert set(expected) == {"few", "many"}
    assert ask(found, data, rows) == expected
    assert ask(found, data, [[str(n), side] for n, side in rows], is_csv=True) == expected
    assert ask(found, data, [[50.0, "nobody knows"], [50.0, None]]) == ["many", "many"]


def test_a_graph_with_an_input_for_each_column_is_given_each_by_its_name() -> None:
    first, second = (helper.make_tensor_value_info(name, kind, [None, 1]) for name, kind in (("n", 1), ("side", 8)))
    nodes = [
        helper.make_node(
            "LabelEncoder", ["side"], ["seen"], domain="ai.onnx.ml", keys_strings=["left", "right"], values_floats=[1.0, 2.0]
        ),
        helper.make_node("Mul", ["n", "seen"], ["value"]),
    ]
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, [None, 1])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    data = helper.make_model(helper.make_graph(nodes, "g", [first, second], [value]), opset_imports=opsets, ir_version=8)
    features = [Feature(name="n"), Feature(name="side", kind="text")]
    found = card(task="regression", format="onnx", features=features)
    assert ask(found, data.SerializeToString(), [[3.0, "right"], [4.0, "left"]]) == [6.0, 4.0]
    swapped = msgspec.structs.replace(found, features=features[::-1])
    assert code_of(lambda: load_model(swapped, data.SerializeToString())) == "model-mismatch"


def test_without_labels_the_largest_probability_makes_one() -> None:
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "g", [INPUT], [OUTPUT])
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    found = card("a", "b", format="onnx", classes=["no", "yes"])
    assert ask(found, data, [[1.0, 2.0], [2.0, 1.0]]) == ["yes", "no"]


def test_a_model_without_probabilities_says_so() -> None:
    _, rows, labels = digits()
    machine = skops.io.dumps(make_pipeline(LinearSVC()).fit(rows, labels))
    assert code_of(lambda: ask(of_digits(), machine, rows[:1].tolist(), "probability")) == "model-mismatch"
    assert code_of(lambda: ask(of_digits(), as_skops(), rows[:1].tolist(), "value")) == "model-mismatch"


# --- rows ------------------------------------------------------------------------------------------------------------------

BAD_CELLS: list[tuple[Any, str]] = [
    (float("nan"), "missing"),
    (float("inf"), "finite"),
    (1e39, "finite"),
    (10**400, "number"),
    (None, "missing"),
    ("1.5", "number"),
    ("secret", "number"),
    (True, "number"),
    ([1.0], "number"),
    ({}, "number"),
]


@pytest.mark.parametrize(("cell", "said"), BAD_CELLS)
@pytest.mark.parametrize("format", ["skops", "onnx"])
def test_what_is_no_finite_number_is_given_to_no_model(format: Any, cell: Any, said: str) -> None:
    row = [0.0] * 64
    with pytest.raises(BadRow, match=rf"^row 2: 'x3' must .*{said}") as caught:
        ask(of_digits(format=format), as_skops() if format == "skops" else as_onnx(), [row, [*row[:3], cell, *row[4:]]])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("nan", "missing"),
        ("1_000", "number"),
        ("-inf", "finite"),
        ("-1e300", "finite"),
        ("", "missing"),
        ("0x1", "number"),
        ("secret", "number"),
    ],
)
def test_the_cells_of_csv_are_held_to_the_same(cell: str, said: str) -> None:
    row = ["0"] * 64
    with pytest.raises(BadRow, match=rf"^row 2: 'x3' must .*{said}"):
        ask(of_digits(), as_skops(), [row, [*row[:3], cell, *row[4:]]], is_csv=True)


CELLS = ["1", " 1 ", "-1e3", "1_000", "nan", "NaN", "", "inf", "-Infinity", "1e309", "0x1", "1,5", "\u0661", "secret", "  "]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_of_csv_is_to_a_model_what_it_was_in_its_training(cell: str) -> None:
    rows, labels = np.array([[float(n), 1.0] for n in range(60)]), [n % 2 for n in range(60)]
    model = Pipeline([("impute", SimpleImputer()), ("estimate", LogisticRegression())]).fit(rows, labels)
    asked = Questions(
        load_model(card("a", "b", classes=[0, 1], estimator="logistic"), skops.io.dumps(model)), card("a", "b"), None
    )
    for beside in ("2", ""):  # all at once, and one by one
        try:
            trained: Any = examples._numbers([cell, beside], "a", 1)[0]
        except Dead:
            with pytest.raises(BadRow):
                asked._matrix([[cell, beside]], True)
        else:
            np.testing.assert_equal(asked._matrix([[cell, beside]], True)[0, 0], trained)


def test_a_column_of_texts_takes_only_texts() -> None:
    found, data, _, _ = of_mixed()
    for cell in (1.0, True, ["left"]):
        with pytest.raises(BadRow, match="'side' must be a text"):
            ask(found, data, [[1.0, cell]])


def test_rows_may_lack_values_where_the_model_fills_them_in() -> None:
    _, rows, labels = digits()
    model = Pipeline([("impute", SimpleImputer()), ("estimate", LogisticRegression(max_iter=5000))]).fit(rows, labels)
    row = rows[0].tolist()
    holes = [[None if at % 2 else cell for at, cell in enumerate(row)], row]
    expected = model.predict(np.array([[np.nan if cell is None else cell for cell in one] for one in holes])).tolist()
    assert ask(of_digits(), skops.io.dumps(model), holes) == expected
    assert (
        ask(of_digits(), skops.io.dumps(model), [["" if c is None else str(c) for c in one] for one in holes], is_csv=True)
        == expected
    )


def test_rows_are_counted_over_all_calls() -> None:
    questions = Questions(load_model(of_digits(), as_skops()), of_digits(), None)
    questions.answers([[0.0] * 64] * 5, is_csv=False)
    with pytest.raises(BadRow, match="^row 7:"):
        questions.answers([[0.0] * 64, ["x"] * 64], is_csv=False)
    assert questions.rows == 5
    assert questions.model_s > 0


# --- files that never become a model -----------------------------------------------------------------------------------------


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


def zipped(**members: bytes) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("_", "."), data)
    return held.getvalue()


def with_function() -> bytes:
    return skops.io.dumps(make_pipeline(FunctionTransformer(os.path.basename, validate=False), digits()[0]))


def with_trees() -> bytes:
    _, rows, labels = digits()
    return skops.io.dumps(make_pipeline(RandomForestClassifier(2)).fit(rows, labels))


SPOILT_SKOPS: list[Callable[[], bytes]] = [
    lambda: b"",
    lambda: b"no model",
    lambda: as_skops()[:-1000],
    lambda: as_skops()[1000:],
    lambda: pickle.dumps(Evil()),
    lambda: zipped(data_pkl=pickle.dumps(Evil())),
    lambda: zipped(schema_json=pickle.dumps(Evil())),
    lambda: zipped(schema_json=b"[" * 100_000),
    lambda: zipped(schema_json=b"{}"),
    as_onnx,
    with_function,
    with_trees,
    lambda: skops.io.dumps([1, 2, 3]),
]


@pytest.mark.parametrize("spoilt", SPOILT_SKOPS)
def test_a_file_that_is_no_model_or_has_other_types_is_not_loaded(
    spoilt: Callable[[], bytes], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(lambda: load_model(of_digits(), spoilt())) in ("model-untrusted", "model-mismatch")
    assert list(tmp_path.iterdir()) == []


def test_the_types_of_trees_are_trusted_for_forests_alone() -> None:
    _, rows, _ = digits()
    assert len(ask(of_digits(estimator="random-forest"), with_trees(), rows[:3].tolist())) == 3
    assert code_of(lambda: load_model(of_digits(estimator="logistic"), with_trees())) == "model-untrusted"


def test_a_model_of_other_columns_than_its_card_says_is_not_loaded() -> None:
    other = card("a", "b", classes=list(range(10)))
    assert code_of(lambda: load_model(other, as_skops())) == "model-mismatch"
    assert code_of(lambda: load_model(msgspec.structs.replace(other, format="onnx"), as_onnx())) == "model-mismatch"


def with_weights_beside_it(location: str) -> bytes:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "8"}.items():
        weights.external_data.add(key=key, value=value)
    graph = helper.make_graph([helper.make_node("Max", ["x", "w"], ["y"])], "g", [INPUT], [OUTPUT], [weights])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


LOCATIONS = [
    "w.bin",
    "./w.bin",
    "{here}/w.bin",
    "../{name}/w.bin",
    "../../../../../../{here}/w.bin",
    "link.bin",
    "in/w.bin",
    "/dev/zero",
    "/proc/self/environ",
    "*/_ORT_MEM_ADDR_/*",
]


@pytest.mark.parametrize("location", LOCATIONS)
def test_a_graph_reads_no_file_beside_it(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for name in ("w.bin", "in/w.bin"):
        (tmp_path / name).write_bytes(b"\0" * 8)
    (tmp_path / "link.bin").symlink_to(tmp_path / "w.bin")
    monkeypatch.chdir(tmp_path)
    data = with_weights_beside_it(location.format(here=tmp_path, name=tmp_path.name))
    assert code_of(lambda: load_model(card("a", "b", format="onnx"), data)) == "model-untrusted"
    assert Path.cwd() == tmp_path


def test_a_graph_is_read_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which keeps it from files if the library does not: it looks for them in the current folder."""
    (tmp_path / "w.bin").write_bytes(b"\0" * 8)
    monkeypatch.chdir(tmp_path)
    begin, seen = onnxruntime.InferenceSession, list[list[str]]()

    def look(*arguments: Any, **named: Any) -> Any:
        seen.append(os.listdir("."))
        return begin(*arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", look)
    load_model(of_digits(format="onnx"), as_onnx())
    assert seen == [[]]
    assert os.listdir(".") == ["w.bin"]


def test_what_the_machine_lacks_is_no_fault_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "none"))  # as on a full disk: no folder can be made
        with pytest.raises(FileNotFoundError):
            load_model(of_digits(format="onnx"), as_onnx())
    for text in ("Exception during initialization: std::bad_alloc", "Failed to allocate memory for requested buffer of size 1"):

        def fail(*_: Any, text: str = text, **__: Any) -> Any:
            raise RuntimeException(f"[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : {text}")

        with monkeypatch.context() as patch:
            patch.setattr(onnxruntime, "InferenceSession", fail)
            with pytest.raises(MemoryError):
                load_model(of_digits(format="onnx"), as_onnx())
    assert len(load_model(of_digits(format="onnx"), as_onnx()).classes) == 10


def test_a_graph_has_no_operators_of_its_own() -> None:
    graph = helper.make_graph([helper.make_node("Run", ["x"], ["y"], domain="evil")], "g", [INPUT], [OUTPUT])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("evil", 1)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    assert code_of(lambda: load_model(card("a", "b", format="onnx"), data)) == "model-untrusted"


@pytest.mark.parametrize("spoilt", [b"", b"no model", b"\x08\x08" * 1000])
def test_a_damaged_graph_is_not_loaded(spoilt: bytes) -> None:
    for data in (spoilt, as_onnx()[:-100] + spoilt):
        assert code_of(lambda data=data: load_model(of_digits(format="onnx"), data)) == "model-untrusted"


def test_a_graph_that_is_nested_deep_is_not_loaded() -> None:
    def field(number: int, inner: bytes) -> bytes:
        size = len(inner)
        return bytes([number << 3 | 2, size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + inner

    graph = b""
    for _ in range(10_000 // 13):  # a node has an attribute that is a graph
        graph = field(1, field(5, field(6, graph)))
    assert code_of(lambda: load_model(card("a", "b", format="onnx"), b"\x08\x08" + field(7, graph))) == "model-untrusted"


UNPICKLES = """
import os, sys
armed = []
sys.addaudithook(lambda event, arguments: os._exit(9) if event == "pickle.find_class" and armed else None)
from tests.handlers.test_predicting import as_onnx, as_skops, ask, digits, of_digits, with_trees
models = [
    (of_digits(), as_skops()),
    (of_digits(format="onnx"), as_onnx()),
    (of_digits(estimator="random-forest"), with_trees()),
]
rows = digits()[1].tolist()
armed.append(True)
for described, data in models:
    ask(described, data, rows)
"""


def test_nothing_is_unpickled() -> None:
    """Where a model is loaded and asked, the interpreter is never asked for a class by a pickle."""
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", UNPICKLES], cwd=ROOT, check=False).returncode == 0


# --- what is kept ------------------------------------------------------------------------------------------------------------


def test_the_last_four_models_are_kept_and_no_more_bytes_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []

    def get(number: int, size_bytes: int = 1) -> None:
        def read() -> bytes:
            reads.append(number)
            return as_skops()

        kept_model(Model(name="m", version=WORK, sha256=str(number), bytes=size_bytes, card=of_digits()), read)

    for number in (1, 2, 3, 4, 1, 2, 3, 4):
        get(number)
    assert reads == [1, 2, 3, 4]
    get(1)
    get(5)  # in the place of 2, which was asked longest ago
    assert reads == [1, 2, 3, 4, 5]
    get(1)
    get(2)
    assert reads == [1, 2, 3, 4, 5, 2]
    monkeypatch.setattr(predicting, "MAX_KEPT_BYTES", 10)
    get(6, 9)
    assert len(predicting._kept) == 2
    get(7, 9)
    assert len(predicting._kept) == 1


def test_a_model_that_cannot_be_loaded_is_not_kept() -> None:
    model = Model(name="m", version=WORK, sha256="0", bytes=1, card=of_digits())
    for _ in range(2):
        assert code_of(lambda: kept_model(model, lambda: b"no model")) == "model-untrusted"
    assert not predicting._kept


# --- what an operator may be wrong about ---------------------------------------------------------------------------------------


def test_a_model_is_tried_with_one_row() -> None:
    assert answer_once(Unknown(card=of_digits(), data=as_skops())) == digits()[0].predict(np.zeros((1, 64))).tolist()
    described, data, _, _ = of_mixed()
    assert len(answer_once(Unknown(card=described, data=data))) == 1


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"classes": [9, *range(1, 9), 0]}, "`classes` must be those of the model"),
        ({"classes": list(range(9))}, "`classes` must be those of the model"),
        ({"classes": []}, "`classes` must be those of the model"),
        ({"task": "regression"}, "`classes` must be those of the model"),
        ({"features": [Feature(name="x")]}, "does not take the 1 columns"),
        ({"estimator": "nothing"}, ""),
    ],
)
def test_a_card_that_is_wrong_about_a_pipeline_is_noticed(fields: dict[str, Any], said: str) -> None:
    unknown = Unknown(card=of_digits(**fields), data=as_skops())
    if not said:
        assert answer_once(unknown)
        return
    with pytest.raises(Dead, match=said):
        answer_once(unknown)


def test_a_card_that_is_wrong_about_a_graph_is_noticed() -> None:
    for fields in ({"classes": []}, {"classes": [0, 1]}, {"task": "regression"}, {"features": [Feature(name="x")]}):
        with pytest.raises((Dead, ValueError)):
            answer_once(Unknown(card=of_digits(format="onnx", **fields), data=as_onnx()))
