"""run-inference: whose model answers, what is in the file, and what is left when anything goes wrong."""

from __future__ import annotations

import asyncio
import csv
import gzip
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import skops.io
from onnx import TensorProto, helper
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline

from handlers import inference
from handlers.contracts.inference import Inferred, RunInference
from handlers.inference import Question, predict, run_inference
from handlers.kit import models, predicting
from handlers.kit.models import CURRENT, Card, Model, find_model, promote, publish
from handlers.kit.settings import current
from handlers.kit.threads import Stop
from runtime import BadPayload, Dead, Job, Priority, Retry, Snooze
from runtime.errors import ChildKilled
from runtime.jobs import contract_of
from runtime.offload import InChild
from tests.builders import job
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, child, job_of, outcome, state
from tests.handlers.disks import until as poll
from tests.handlers.marks import FolderMarks
from tests.handlers.test_contracts import HOSTILE
from tests.handlers.test_export_pdf import writers
from tests.handlers.test_predicting import as_onnx, as_skops, digits, of_digits
from tests.servers import Server
from tests.workers import working

FIRST, SECOND = "a" * 26, "b" * 26
NAMES = [f"x{at}" for at in range(64)]
POINTS = ["version-found", "version-noted", "inference.before-file", "inference.after-file", "inference.unmarked"]


@pytest.fixture
def disk(tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch, marks: FolderMarks) -> Disk:
    disk = Disk(tmp_path)
    for folder in ("out", "db", "logs", "models"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("MODELS_KEY", "k" * 32)
    configure(settings(disk))
    for known in (models._known, models._numbers, predicting._kept):
        known.clear()
    return disk


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is for a child runs in this process, where it can be watched."""

    async def call(self: InChild[Any, Any], request: Any, one: Job) -> Any:
        return self.function(request, one)

    monkeypatch.setattr(InChild, "__call__", call)


def settings(disk: Disk) -> str:
    return (
        f"{disk.settings()}roots.models = {{ path = '{disk.folder / 'models'}', mode = 'write' }}\n"
        "models = { root = 'models', key = 'env:MODELS_KEY' }\n"
    )


def publish_digits(version: str = FIRST, *, data: bytes | None = None, is_current: bool = True, **fields: Any) -> Model:
    card = of_digits(**{"name": "digits", "version": version, "born_s": float(ord(version[0])), **fields})
    return published(card, as_skops() if data is None else data, is_current=is_current)


def published(card: Card, data: bytes, *, is_current: bool = True) -> Model:
    model = publish(current(), card, data, card.version, Stop())
    if is_current:
        promote(current(), model)
    return model


def rows(count: int = 3) -> list[list[float]]:
    return digits()[1][:count].tolist()


def labels(count: int = 3) -> list[int]:
    return digits()[0].predict(digits()[1][:count]).tolist()


def message(**fields: Any) -> RunInference:
    if "file" not in fields:
        fields = {"rows": rows(), **fields}
    return msgspec.convert({"model": "digits", **fields}, RunInference)


def of_file(name: str = "in.csv", **fields: Any) -> RunInference:
    return message(**{"file": f"db:{name}", "to": "out:a.csv", **fields})


async def run(asked: RunInference, number: int = 0, one: Job | None = None) -> Inferred:
    result = await run_inference.function(asked, one or job_of(asked, number))
    assert isinstance(result, Inferred)
    return result


async def code_of(asked: RunInference) -> str:
    with pytest.raises(Dead) as caught:
        await run(asked)
    return caught.value.code


def write_csv(disk: Disk, lines: list[list[Any]], names: list[str] = NAMES, name: str = "in.csv") -> None:
    with (disk.folder / "db" / name).open("w", newline="") as file:
        csv.writer(file).writerows([names, *lines])


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- answers in the result --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("format", ["skops", "onnx"])
async def test_rows_of_the_payload_are_answered_in_the_result(disk: Disk, format: str) -> None:
    publish_digits(format=format, data=as_skops() if format == "skops" else as_onnx())
    result = await run(message())
    assert (result.model, result.version, result.rows, result.outputs) == ("digits", FIRST, 3, labels())
    assert (result.path, result.classes) == (None, None)
    assert result.model_ms > 0
    shown = await run(message(output="probability"))
    assert shown.classes == list(range(10))
    np.testing.assert_allclose(np.array(shown.outputs), digits()[0].predict_proba(digits()[1][:3]), atol=1e-4)
    assert len(msgspec.json.encode(shown)) < 8192


@pytest.mark.usefixtures("here")
async def test_the_columns_of_rows_may_come_in_another_order(disk: Disk) -> None:
    publish_digits()
    turned = [row[::-1] for row in rows()]
    assert (await run(message(rows=turned, columns=NAMES[::-1]))).outputs == labels()
    for columns in (NAMES[:-1], [*NAMES[:-1], "x99"], [*NAMES, "x64"]):
        assert await code_of(message(columns=columns)) == "model-mismatch"
    assert await code_of(message(rows=[row[:-1] for row in rows()])) == "model-mismatch"
    assert await code_of(message(rows=[*rows(), [*rows()[0], 1.0]])) == "model-mismatch"


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("cell", [None, "1", "secret", 1e308 * 10, float("nan")])
async def test_rows_that_the_model_does_not_take_end_the_job_without_their_values(disk: Disk, cell: Any) -> None:
    publish_digits()
    spoilt = [[*rows()[0][:5], cell, *rows()[0][6:]]]
    with pytest.raises(Dead, match="^row 1: 'x5' must") as caught:
        await run(message(rows=spoilt))
    assert caught.value.code == "bad-payload"
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("here")
async def test_answers_that_are_too_large_for_a_result_belong_into_a_file(disk: Disk) -> None:
    publish_digits()
    with pytest.raises(Dead, match="hint: `to`") as caught:
        await run(message(rows=rows(100), output="probability"))
    assert caught.value.code == "too-large"
    result = await run(message(rows=rows(100), output="probability", to="out:a.csv"), 1)
    assert result.rows == 100 and result.outputs is None
    found = read_csv(disk.out / "a.csv")
    assert list(found[0]) == [f"probability_{label}" for label in range(10)]
    given = np.array([[float(cell) for cell in row.values()] for row in found])
    np.testing.assert_allclose(given, digits()[0].predict_proba(digits()[1][:100]))
    assert await code_of(message(output="value")) == "model-mismatch"


# --- files ------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("batch", [7, 4096])
async def test_each_row_of_a_file_gets_its_answer(disk: Disk, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "BATCH_ROWS", batch)
    publish_digits()
    write_csv(disk, [["=1+1", *row, n] for n, row in enumerate(rows(50))], ["note", *NAMES[::-1][::-1], "id"])
    asked = of_file(keep=["id", "note"])
    one = job_of(asked)
    result = await run(asked, one=one)
    assert (result.rows, result.path, result.outputs) == (50, "out:a.csv", None)
    found = read_csv(disk.out / "a.csv")
    assert [list(row.values()) for row in found] == [[str(n), "'=1+1", str(label)] for n, label in enumerate(labels(50))]
    assert list(found[0]) == ["id", "note", "label"]
    sidecar = json.loads((disk.out / "a.csv.job.json").read_bytes())
    assert sidecar["result"] == msgspec.to_builtins(result) and result.bytes == (disk.out / "a.csv").stat().st_size
    assert one.extras is not None and one.extras.said.progress is not None
    assert "50 rows" in str(one.extras.said.progress)


@pytest.mark.usefixtures("here")
async def test_json_lines_are_read_and_written(disk: Disk) -> None:
    publish_digits()
    objects = [{"id": {"deep": [1.5, None]}, **dict(zip(NAMES, row, strict=True))} for row in rows()]
    lines = b"\n".join(map(msgspec.json.encode, objects))
    (disk.folder / "db" / "in.jsonl.gz").write_bytes(gzip.compress(lines))
    await run(of_file("in.jsonl.gz", format="jsonl", compress="gzip", keep=["id"], to="out:a.jsonl"))
    found = [json.loads(line) for line in (disk.out / "a.jsonl").read_text().splitlines()]
    assert found == [{"id": {"deep": [1.5, None]}, "label": label} for label in labels()]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("lines", "names", "code"),
    [
        ([[0.0] * 64], [*NAMES[:-1], "y"], "model-mismatch"),
        ([[0.0] * 65], [*NAMES, "x0"], "model-mismatch"),
        ([[0.0] * 64, [0.0] * 63], NAMES, "bad-rows"),
        ([[0.0] * 64, [*[0.0] * 63, "secret"]], NAMES, "bad-rows"),
        ([[0.0] * 64, [*[0.0] * 63, "nan"]], NAMES, "bad-rows"),
        ([[0.0] * 64, [*[0.0] * 63, ""]], NAMES, "bad-rows"),
    ],
)
async def test_a_file_that_the_model_does_not_take_ends_the_job(disk: Disk, lines: Any, names: list[str], code: str) -> None:
    publish_digits()
    write_csv(disk, lines, names)
    with pytest.raises(Dead) as caught:
        await run(of_file())
    assert caught.value.code == code
    assert "secret" not in str(caught.value)
    assert disk.names(disk.out) == []


@pytest.mark.usefixtures("here")
async def test_what_is_kept_has_another_name_than_the_answers(disk: Disk) -> None:
    publish_digits()
    write_csv(disk, [[*row, 1] for row in rows()], [*NAMES, "label"])
    assert await code_of(of_file(keep=["label"])) == "bad-payload"
    assert (await run(of_file(keep=["label"], output="probability"))).rows == 3


@pytest.mark.usefixtures("here")
async def test_a_file_without_rows_makes_one_without_answers(disk: Disk) -> None:
    publish_digits()
    write_csv(disk, [])
    assert (await run(of_file())).rows == 0
    assert (disk.out / "a.csv").read_bytes() == b"label\r\n"


@pytest.mark.usefixtures("here")
async def test_only_what_a_job_wrote_is_replaced(disk: Disk) -> None:
    publish_digits()
    write_csv(disk, rows())
    (disk.out / "a.csv").write_text("somebody's")
    assert await code_of(of_file(overwrite=True)) == "output-exists"
    (disk.out / "a.csv").unlink()
    await run(of_file())
    assert await code_of(of_file(format="csv", delimiter=";")) == "output-exists"
    await run(of_file(overwrite=True), 1)
    assert await code_of(of_file(to="db:a.csv")) == "bad-path"


# --- which version ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
async def test_a_repeat_after_a_promotion_asks_the_version_that_the_first_run_asked(
    disk: Disk, marks: FolderMarks, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_digits()
    asked = message()

    def fail(request: Question, one: Job) -> Inferred:
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(predict, "function", fail)
        with pytest.raises(ConnectionError):
            await run(asked)
    publish_digits(SECOND)
    assert (await run(message(rows=rows(1)))).version == SECOND
    assert (await run(asked)).version == FIRST
    assert list(disk.folder.glob("*.marks")) == [], "a job that is done leaves none"
    assert (await run(message(version=FIRST, rows=rows(2)))).version == FIRST
    assert marks.writes == 2, "one whose payload says the version needs no mark"


@pytest.mark.usefixtures("here")
async def test_a_repeat_finds_its_file(disk: Disk) -> None:
    publish_digits()
    write_csv(disk, rows())
    first = await run(of_file())
    before = state(disk.out)
    (disk.folder / "db" / "in.csv").unlink()
    publish_digits(SECOND)
    assert await run(of_file()) == first
    assert state(disk.out) == before
    shutil.rmtree(disk.folder / "models" / "digits")
    one = job_of(of_file())
    assert await run(of_file(), one=one) == first, "nor does it need the model"
    assert await one.marks.get() is None, "or note a version again"


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(disk: Disk, here: None, point: str) -> None:
    publish_digits()
    write_csv(disk, rows(20))
    asked = of_file()
    killed = child(disk, asked, point=point, marks=str(disk.folder))
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    visible = [name for name in disk.names(disk.out) if not name.startswith(".")]
    is_done = point in ("inference.after-file", "inference.unmarked")
    assert visible == (["a.csv", "a.csv.job.json"] if is_done else [])
    publish_digits(SECOND)
    result = await run(asked)
    assert result.version == (SECOND if point == "version-found" else FIRST)
    assert disk.names(disk.out) == ["a.csv", "a.csv.job.json"]
    assert [row["label"] for row in read_csv(disk.out / "a.csv")] == [str(label) for label in labels(20)]
    assert list(disk.folder.glob("*.marks")) == []


async def test_a_full_disk_is_waited_for(disk: Disk) -> None:
    publish_digits()
    write_csv(disk, rows(300))
    said = outcome(child(disk, of_file(output="probability"), marks=str(disk.folder), file_bytes=10_000))
    assert said.startswith("Snooze: out-of-space: roots.out"), said
    assert disk.names(disk.out) == []


# --- what is believed -------------------------------------------------------------------------------------------------------


def folder_of(disk: Disk, version: str = FIRST) -> Path:
    return disk.folder / "models" / "digits" / version


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def unsigned(disk: Disk) -> None:
    (folder_of(disk) / "signature.json").unlink()


def swapped(disk: Disk) -> None:
    shutil.copy(folder_of(disk, SECOND) / "model.skops", folder_of(disk) / "model.skops")


def renamed(disk: Disk) -> None:
    shutil.rmtree(folder_of(disk))
    shutil.copytree(folder_of(disk, SECOND), folder_of(disk))


def put_back(disk: Disk) -> None:
    models_folder = disk.folder / "models" / "digits"
    old = (models_folder / CURRENT).read_bytes()
    third = publish_digits("c" * 26)
    assert find_model(current(), "digits", None, 3, Stop()) == third
    (models_folder / CURRENT).write_bytes(old)


SPOILT: list[Callable[[Disk], object]] = [
    unsigned,
    swapped,
    renamed,
    put_back,
    lambda disk: rewrite(folder_of(disk) / "model.skops", lambda data: data[:-1]),
    lambda disk: rewrite(folder_of(disk) / "model.skops", lambda data: data + b"\0"),
    lambda disk: rewrite(folder_of(disk) / "model.skops", lambda data: b"\0" + data[1:]),
    lambda disk: rewrite(folder_of(disk) / "card.json", lambda data: data.replace(b'"logistic"', b'"random-forest"')),
]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("spoil", SPOILT)
@pytest.mark.parametrize("is_known", [False, True])
async def test_a_model_that_is_not_what_was_signed_answers_nothing(
    disk: Disk, spoil: Callable[[Disk], object], is_known: bool
) -> None:
    publish_digits(SECOND, data=_other())
    publish_digits(FIRST, is_current=False)
    if is_known:
        await run(message(version=FIRST))
    spoil(disk)
    asked = message(version=None if spoil is put_back else FIRST, rows=rows(2))
    with pytest.raises(Dead) as caught:
        await run(asked)
    assert caught.value.code == "model-untrusted"


def _other() -> bytes:
    return skops.io.dumps(make_pipeline(RandomForestClassifier(2, random_state=0)).fit(*digits()[1:]))


@pytest.mark.usefixtures("here")
async def test_a_model_that_changes_after_it_was_verified_is_not_loaded(disk: Disk) -> None:
    model = publish_digits()
    rewrite(folder_of(disk) / "model.skops", lambda data: b"\0" + data[1:])
    asked = message(version=FIRST)
    with pytest.raises(Dead, match="not the one that was signed") as caught:
        predict.function(Question(message=asked, model=model), job_of(asked))
    assert caught.value.code == "model-untrusted"


@pytest.mark.usefixtures("here")
async def test_types_that_the_estimator_does_not_need_are_not_loaded_though_they_are_signed(disk: Disk) -> None:
    publish_digits(data=_other(), trusted=["sklearn.tree._tree.Tree"])
    assert await code_of(message()) == "model-untrusted"


@pytest.mark.usefixtures("here")
async def test_what_is_not_there_is_waited_for_a_little(disk: Disk) -> None:
    for asked in (message(), message(version=FIRST), message(version=SECOND), of_file()):
        if asked.file:
            publish_digits()
        with pytest.raises(Retry, match="input-missing"):
            await run(asked)
        last = job_of(asked)
        last = msgspec.structs.replace(last, envelope=msgspec.structs.replace(last.envelope, failed=2))
        with pytest.raises(Dead) as caught:
            await run(asked, one=last)
        assert caught.value.code == "input-missing"


@pytest.mark.usefixtures("here")
async def test_settings_that_must_be_fixed_make_the_job_wait(disk: Disk, configure: Configure) -> None:
    publish_digits()
    write_csv(disk, rows())
    text = settings(disk)
    for spoilt, asked, said in [
        (text.partition("\nmodels = {")[0], message(), "models"),
        (text.replace("roots.models", "roots.other"), message(), "roots.models"),
        (text, message(to="none:a.csv"), "roots.none"),
        (text, message(file="none:a.csv", to="out:a.csv", rows=None), "roots.none"),
        (text.replace("env:MODELS_KEY", "env:NO_KEY"), message(), "models.key"),
    ]:
        configure(spoilt)
        with pytest.raises(Snooze, match=f"alias-missing: {said}"):
            await run(asked)
    configure(text)
    assert (await run(message())).rows == 3


# --- the child --------------------------------------------------------------------------------------------------------------


def crashing() -> bytes:
    """Return a forest whose trees lead outside of what they have: asking it reads memory that is not its own."""
    forest = RandomForestClassifier(1, random_state=0).fit(*digits()[1:])
    state = forest.estimators_[0].tree_.__getstate__()
    nodes = state["nodes"].copy()
    nodes["left_child"][0] = nodes["right_child"][0] = 2**40
    state["nodes"] = nodes
    forest.estimators_[0].tree_.__setstate__(state)
    return skops.io.dumps(make_pipeline(forest))


def endless() -> bytes:
    """Return a graph that runs for hours."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["v", "v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [None, 64]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [None, 64]),
        ],
    )
    times = helper.make_tensor("times", TensorProto.INT64, [], [2**62])
    go = helper.make_tensor("go_on", TensorProto.BOOL, [], [True])
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "go_on", "x"], ["y"], body=body)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 64])],
        [times, go],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


async def test_a_crash_of_a_child_is_that_of_one_job(disk: Disk) -> None:
    publish_digits()
    crash = of_digits(name="crash", version=FIRST, estimator="random-forest")
    published(crash, crashing())
    asked, bad = message(), message(model="crash")
    outcomes = await asyncio.gather(
        *[run_inference.run(one, job_of(one, number)) for number, one in enumerate([asked, bad, asked])], return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [type(None), ChildKilled, type(None)], outcomes


async def test_a_cancel_kills_the_child_and_leaves_nothing_visible(disk: Disk) -> None:
    published(of_digits(name="slow", version=FIRST, format="onnx", classes=[], task="regression"), endless())
    write_csv(disk, rows())
    publish_digits()
    warm, asked = message(), of_file(model="slow")
    await run_inference.run(warm, job_of(warm))  # the child has what loads models
    task = asyncio.create_task(run_inference.run(asked, job_of(asked)))
    await asyncio.to_thread(poll, lambda: any(disk.out.iterdir()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(poll, lambda: not writers(disk.out))
    assert all(name.startswith(".") for name in disk.names(disk.out))


async def test_the_child_needs_no_key_and_asks_a_model_that_it_has_without_its_file(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = publish_digits()
    asked = message()
    monkeypatch.delenv("MODELS_KEY")
    for _ in range(2):
        assert predict.function(Question(message=asked, model=model), job_of(asked)).outputs == labels()
        (folder_of(disk) / "model.skops").unlink(missing_ok=True)


async def test_plain_messages_come_all_the_way_with_their_results(disk: Disk, valkey: Server) -> None:
    publish_digits()
    write_csv(disk, rows())
    client = valkey.client()
    for number, payload in enumerate([{"rows": rows()}, {"file": "db:in.csv", "to": "out:a.csv"}]):
        data = msgspec.json.encode({"model": "digits", **payload})
        client.xadd("{jobs}:high", {"type": "run-inference", "data": data, "id": f"job-{number}"})
    async with working(valkey.url, run_inference):
        await asyncio.to_thread(poll, (disk.out / "a.csv.job.json").exists)
        await asyncio.to_thread(poll, lambda: client.xlen("{jobs}:high") == 0)
    assert client.xlen("{jobs}:dead") == 0
    assert [key for key in client.keys("*") if ":marks" in str(key)] == []
    assert [row["label"] for row in read_csv(disk.out / "a.csv")] == [str(label) for label in labels()]
    client.close()


# --- the contract -----------------------------------------------------------------------------------------------------------


def test_what_is_declared() -> None:
    retry = run_inference.retry
    assert (run_inference.timeout_s, retry.attempts, retry.base_s, retry.cap_s) == (600, 3, 2, 30)
    assert contract_of(RunInference).priority is Priority.HIGH
    assert run_inference.needs == "process" and run_inference.result is not None


FULL: dict[str, Any] = {
    "model": "digits",
    "version": FIRST,
    "output": "label",
    "rows": [[1, 2.5, "left", None]],
    "columns": ["a", "b", "c", "d"],
    "to": "out:a.csv",
    "format": "jsonl",
    "delimiter": ";",
    "overwrite": True,
}
OF_FILE: dict[str, Any] = {"model": "m", "file": "db:a.csv", "to": "out:a.csv", "keep": ["id"], "compress": "gzip"}


def decode(payload: dict[str, Any]) -> RunInference:
    return run_inference.decode(job("run-inference", data=msgspec.json.encode(payload)))


def test_what_the_contract_offers_is_accepted() -> None:
    assert decode(FULL).rows == [[1.0, 2.5, "left", None]]
    assert decode(OF_FILE).keep == ["id"]
    assert len(decode({"model": "m", "rows": [[1.0]] * 1000, "to": "out:a.csv"}).rows or []) == 1000


@pytest.mark.parametrize(
    "change",
    [
        {"rows": None},
        {"file": "db:a.csv"},
        {"rows": []},
        {"rows": [[]]},
        {"rows": [[1.0]] * 1001},
        {"rows": [[1.0] * 1001]},
        {"rows": [[1.0]] * 101, "to": None},
        {"rows": [[[1.0]]]},
        {"rows": [[True]]},
        {"rows": [[{}]]},
        {"rows": "[[1]]"},
        {"keep": ["a"]},
        {"compress": "gzip"},
        {"columns": ["a", "a"]},
        {"columns": [""]},
        {"model": "../digits"},
        {"version": "current"},
        {"version": "../../etc"},
        {"output": "embedding"},
        {"format": "pickle"},
        {"to": "/etc/passwd"},
        {"to": "out:../x"},
        {"trusted": ["os.system"]},
        {"path": "/srv/model.skops"},
    ],
)
def test_a_payload_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**FULL, **change})


@pytest.mark.parametrize("change", [{"rows": [[1]]}, {"to": None}, {"columns": ["a"]}, {"keep": ["a", "a"]}, {"file": "/a"}])
def test_a_payload_about_a_file_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BadPayload):
        decode({**OF_FILE, **change})


def test_rows_that_are_nested_without_end_are_refused() -> None:
    for data in (b'{"model":"m","rows":' + b"[" * 100_000, b'{"model":"m","rows":' + b'{"a":' * 50_000):
        with pytest.raises(BadPayload):
            run_inference.decode(job("run-inference", data=data))


@pytest.mark.parametrize("tail", [*HOSTILE, "\n"])
@pytest.mark.parametrize("field", ["model", "version", "output", "rows", "columns", "to", "format", "delimiter"])
def test_hostile_text_passes_no_field(field: str, tail: str) -> None:
    spoilt = {**FULL, field: f"{FULL[field]}{tail}"}
    if field == "rows":
        spoilt = {**FULL, "rows": [[1, 2.5, f"left{tail}", None]]}
    if field == "columns":
        spoilt = {**FULL, "columns": ["a", "b", "c", f"d{tail}"]}
    with pytest.raises(BadPayload):
        decode(spoilt)
    for other in ("file", "keep", "compress"):
        value = OF_FILE[other]
        with pytest.raises(BadPayload):
            decode({**OF_FILE, other: [f"id{tail}"] if other == "keep" else f"{value}{tail}"})
