"""`python -m bench.handlers_inference`: measures what models answer in a second, through a worker, its children and Redis.

The model knows the digits of scikit-learn (64 columns), as a pipeline of its own and in ONNX; the file has ten columns. Jobs name
no version, so each is found as the current one, and noted in marks. Children are warm. The worker's loop is this process's, so
that its lag can be told; the server is another process, and shares the CPUs.
"""

# scikit-learn and its converters have no stubs:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import skops.io
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from bench.lab import Server
from bench.lag import child_mib, in_folder, p99, sample, show_lag
from handlers.contracts.inference import Inferred, RunInference
from handlers.inference import run_inference
from handlers.kit.models import Card, Feature, promote, publish
from handlers.kit.settings import VARIABLE, current
from handlers.kit.threads import Stop
from runtime import Producer
from runtime.testing import worker

WARM_JOBS = 200
COLUMNS = 10  # of the file
CHUNK_ROWS = 10_000


def prepare(folder: Path, rows: int) -> None:
    """Train and publish the models, write the files and the settings."""
    for name in ("models", "out"):
        (folder / name).mkdir()
    (folder / "key").write_text("k" * 32)
    (folder / "handlers.toml").write_text(
        f"roots.models = {{ path = '{folder / 'models'}', mode = 'write' }}\n"
        f"roots.data = {{ path = '{folder}', mode = 'write' }}\nmodels = {{ root = 'models', key = 'file:{folder / 'key'}' }}\n"
    )
    os.environ[VARIABLE] = str(folder / "handlers.toml")
    data, labels = load_digits(return_X_y=True)
    for width, name in ((64, "digits"), (COLUMNS, "narrow")):
        steps = [("scale", StandardScaler()), ("estimate", LogisticRegression(max_iter=1000))]
        fitted = Pipeline(steps).fit(data[:, 16 : 16 + width] if width < 64 else data, labels)
        graph: Any = to_onnx(fitted, np.zeros((1, width), np.float32), options={"zipmap": False})
        save(f"{name}-skops", skops.io.dumps(fitted), width)
        save(f"{name}-onnx", graph.SerializeToString(), width)
    chance = random.Random(7)
    for count in (rows // 10, rows):
        with (folder / f"{count}.csv").open("w") as file:
            file.write(",".join(f"x{at}" for at in range(COLUMNS)) + ",id\n")
            for start in range(0, count, CHUNK_ROWS):
                numbers = [chance.random() * 16 for _ in range(COLUMNS)]
                line = ",".join(f"{number:.4f}" for number in numbers)
                file.writelines(f"{line},{number}\n" for number in range(start, min(start + CHUNK_ROWS, count)))


def save(name: str, data: bytes, width: int) -> None:
    """Publish a model as the current version of this name."""
    kind: Any = name.rpartition("-")[2]
    features = [Feature(name=f"x{at}") for at in range(width)]
    card = Card(
        name=name,
        version="a" * 26,
        format=kind,
        task="classification",
        features=features,
        classes=list(range(10)),
        estimator="logistic",
    )
    promote(current(), publish(current(), card, data, card.version, Stop()))


async def drain(server: Server, message: RunInference, jobs: int) -> float:
    """Send so many jobs and return the seconds until all are done."""
    began_s = time.perf_counter()
    await asyncio.to_thread(server.fill, jobs, "{jobs}:high", b"run-inference", msgspec.json.encode(message))
    while await asyncio.to_thread(server.left):
        await asyncio.sleep(0.005)
    seconds = time.perf_counter() - began_s
    await asyncio.to_thread(server.check_empty)
    return seconds


async def small(server: Server, parsed: argparse.Namespace) -> bool:
    """Measure jobs of a few rows."""
    rows = load_digits(return_X_y=True)[0].tolist()
    is_within = True
    for kind, count, gate in (("onnx", 1, 500), ("skops", 1, 200), ("onnx", 10, 200), ("skops", 10, 200)):
        message = RunInference(model=f"digits-{kind}", rows=rows[:count])
        await drain(server, message, WARM_JOBS)
        lags_ms: list[float] = []
        sampler = asyncio.create_task(sample(lags_ms))
        seconds = await drain(server, message, parsed.jobs)
        sampler.cancel()
        is_within = is_within and parsed.jobs / seconds >= gate and p99(lags_ms) < parsed.gate_ms
        print(f"{parsed.jobs:,} jobs of {count} rows x 64 columns, {kind}")
        print(f"  jobs/s                {parsed.jobs / seconds:>12,.0f}   (gate {gate})")
        show_lag(lags_ms)
    return is_within


async def large(producer: Producer, parsed: argparse.Namespace) -> bool:
    """Measure files, of which the second one has ten times as many rows."""
    is_within, peaks = True, list[float]()
    for kind in ("onnx", "skops"):
        for count in (parsed.rows // 10, parsed.rows):
            message = RunInference(
                model=f"narrow-{kind}", file=f"data:{count}.csv", to=f"data:out/{kind}-{count}.csv", keep=["id"]
            )
            lags_ms: list[float] = []
            sampler = asyncio.create_task(sample(lags_ms))
            began_s = time.perf_counter()
            result = await producer.result(await producer.send(message), timeout_s=600, type=Inferred)
            seconds = time.perf_counter() - began_s
            sampler.cancel()
            peaks.append(child_mib())
            if count < parsed.rows:
                continue
            growth = peaks[-1] - peaks[-2]
            is_within = is_within and seconds <= parsed.gate_s and growth <= parsed.gate_mib and p99(lags_ms) < parsed.gate_ms
            is_within = is_within and result.rows == count
            print(f"a file of {count:,} rows x {COLUMNS} columns, {kind}")
            print(f"  seconds               {seconds:>12.1f}   (gate {parsed.gate_s:g})")
            print(f"  rows/s                {count / seconds:>12,.0f}")
            print(f"  within the model, s   {result.model_ms / 1e3:>12.1f}")
            print(f"  child's memory, MiB   {peaks[-1]:>12.0f}   (for a tenth of the rows {peaks[-2]:.0f})")
            show_lag(lags_ms)
    return is_within


async def run(parsed: argparse.Namespace) -> bool:
    """Measure, print the figures, and return whether they are within the gates."""
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    with Server() as server:
        async with (
            worker(server.url, run_inference, concurrency=50, lease_s=30),
            Producer.connect(server.url, source="bench") as producer,
        ):
            is_within = [await small(server, parsed)] if parsed.jobs else []
            is_within += [await large(producer, parsed)] if parsed.rows else []
    return all(is_within)


def main() -> int:
    """Make models and files, measure, clean up; return 1 if a gate does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_inference", description="Measure the answers of models.")
    parser.add_argument("--jobs", type=int, default=2000, metavar="N", help="of each kind; default 2000")
    parser.add_argument("--rows", type=int, default=1_000_000, metavar="N", help="of the file; default 1000000")
    parser.add_argument("--gate-s", type=float, default=60, metavar="S", help="most seconds of the file; default 60")
    parser.add_argument("--gate-mib", type=float, default=40, metavar="MIB", help="most growth of the child; default 40")
    parser.add_argument("--gate-ms", type=float, default=20, metavar="MS", help="most lag of the loop, p99; default 20")
    parsed = parser.parse_args()
    return in_folder(lambda folder: prepare(folder, parsed.rows), lambda _, __: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
