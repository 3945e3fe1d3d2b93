"""Models for tests: settings that lead to them, the data of scikit-learn as files, and handlers without a child process."""

from __future__ import annotations

import csv
from collections.abc import Awaitable, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import datasets

from handlers import ml
from handlers.contracts.training import EvaluateModel, NpzFile, TrainModel
from handlers.kit import models
from runtime.jobs import MARKS
from runtime.offload import InChild
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk
from tests.handlers.marks import FolderMarks

KEY = "k" * 32
CHANNELS = """
channels.ops = { kind = "webhook", url = "env:HOOK" }
channels.all = { kind = "webhook", dynamic = true, hosts = ["*.example.org"] }
"""


def settings(disk: Disk, **more: str) -> str:
    """Return settings of models and of data; `more` are keys of `models`."""
    fields = {"root": "'models'", "key": "'env:MODELS_KEY'", "promote": "['digits', 'm']", **more}
    said = ", ".join(f"{name} = {value}" for name, value in fields.items())
    root = f"roots.models = {{ path = '{disk.folder / 'models'}', mode = 'write' }}"
    return f"{disk.settings()}{root}\nmodels = {{ {said} }}\n{CHANNELS}"


@pytest.fixture
def disk(tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    for name in ("out", "db", "logs", "models"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("MODELS_KEY", KEY)
    configure(settings(disk))
    models._known.clear()
    models._numbers.clear()
    token = MARKS.set(FolderMarks(tmp_path))
    yield disk
    MARKS.reset(token)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs in child processes runs here, so that a test needs not wait for one to import scikit-learn."""

    def here(made: InChild[Any, Any]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def run(request: Any, job: Any) -> Any:
            return made.function(request, job)

        return run

    for name in ("fit", "measure"):
        monkeypatch.setattr(ml, name, here(getattr(ml, name)))


@cache
def bundled(name: str) -> tuple[Any, Any]:
    """Return the rows and the target of data that scikit-learn brings with it."""
    rows, target = getattr(datasets, f"load_{name}")(return_X_y=True)
    return rows, target


def npz(disk: Disk, rows: Any, target: Any, name: str = "d") -> NpzFile:
    """Write arrays where jobs may read them."""
    np.savez(disk.folder / "db" / f"{name}.npz", X=rows, y=target)
    return NpzFile(path=f"db:{name}.npz")


def write_csv(disk: Disk, header: list[str], rows: list[list[Any]], name: str = "d") -> None:
    """Write a CSV file where jobs may read it."""
    with (disk.folder / "db" / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def training(disk: Disk, bundle: str = "digits", **fields: Any) -> TrainModel:
    """Return a training of the model `m`, on bundled data unless it says its own."""
    path = disk.folder / "db" / f"{bundle}.npz"
    if "data" not in fields and not path.exists():
        npz(disk, *bundled(bundle), bundle)
    task = "regression" if bundle == "diabetes" else "classification"
    return TrainModel(**{"name": "m", "data": NpzFile(path=f"db:{bundle}.npz"), "target": "y", "task": task, **fields})


def evaluation(data: Any, **fields: Any) -> EvaluateModel:
    """Return an evaluation of the model `m`."""
    return EvaluateModel(**{"model": "m", "data": data, "target": "y", **fields})
