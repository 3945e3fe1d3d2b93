"""`python -m bench.handlers_training`: measures training in a child process: seconds, accuracy, memory, and the lag of the loop.

The first training starts the child, which imports scikit-learn; the others find it warm. The digits are those that scikit-learn
brings with it: 1,797 rows of 64 numbers. The large table is made of them, again and again with noise, as a CSV file.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import cast

import msgspec

from bench.lag import child_mib, in_folder, p99, sample, show_lag
from handlers.contracts.training import CsvFile, Data, Estimator, HistGradientBoosting, NpzFile, RandomForest, Trained, TrainModel
from handlers.kit.settings import VARIABLE
from handlers.ml import train_model
from runtime.jobs import PLAIN, Job

# In a process of its own, so that this one has no scikit-learn, as a worker has none.
DATA = """
import sys, numpy, sklearn.datasets
folder, rows = sys.argv[1], int(sys.argv[2])
table, target = sklearn.datasets.load_digits(return_X_y=True)
numpy.savez(f"{folder}/digits.npz", X=table, y=target)
places = numpy.arange(rows) % len(target)
noise = numpy.random.default_rng(0).normal(0, 2, (rows, 64))
lines = numpy.column_stack([table[places] + noise, target[places]])
head = ",".join([*(f"p{n}" for n in range(64)), "y"])
numpy.savetxt(f"{folder}/large.csv", lines, "%.3g", ",", header=head, comments="")
"""


def fill(folder: Path, rows: int) -> None:
    """Make the files of data and the settings."""
    subprocess.run([sys.executable, "-c", DATA, str(folder), str(rows)], check=True)
    (folder / "handlers.toml").write_text(
        f"roots.out = {{ path = '{folder}', mode = 'write' }}\nmodels = {{ root = 'out', key = 'env:BENCH_KEY' }}\n"
    )
    os.environ[VARIABLE], os.environ["BENCH_KEY"] = str(folder / "handlers.toml"), "0" * 64


async def train(data: Data, estimator: Estimator, number: int) -> Trained:
    """Run the handler as a lane would, and return its result."""
    message = TrainModel(name="digits", data=data, target="y", task="classification", estimator=estimator)
    job = Job(1, b"1700000000123-%d" % number, 1, "run", 0.0, b"train-model", msgspec.json.encode(message), PLAIN, 0)
    return await cast("Awaitable[Trained]", train_model.function(message, job))


async def run(parsed: argparse.Namespace) -> bool:
    """Train, print the figures, and return whether they are within the gates."""
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs, uvloop\n")
    digits, large = NpzFile(path="out:digits.npz"), CsvFile(path="out:large.csv")
    works: list[tuple[str, Data, Estimator, float]] = [
        ("digits, random forest, with the start of a child", digits, RandomForest(), parsed.gate_s),
        ("digits, random forest, in a warm child", digits, RandomForest(), parsed.gate_s),
        (f"{parsed.rows:,} rows x 64 columns of CSV, gradient boosting", large, HistGradientBoosting(iterations=20), 120.0),
    ]
    is_within = True
    for number, (name, data, estimator, gate_s) in enumerate(works):
        lags_ms: list[float] = []
        sampler = asyncio.create_task(sample(lags_ms))
        began_s = time.perf_counter()
        result = await train(data, estimator, number)
        seconds = time.perf_counter() - began_s
        sampler.cancel()
        p99_ms, accuracy = p99(lags_ms), result.metrics["accuracy"]
        is_within = is_within and seconds <= gate_s and p99_ms < parsed.gate_ms
        is_within = is_within and (data is not digits or accuracy >= parsed.gate_accuracy)
        print(name)
        print(f"  seconds               {seconds:>12.2f}")
        print(f"  accuracy              {accuracy:>12.3f}")
        print(f"  model, MB             {result.bytes / 1e6:>12.2f}")
        print(f"  child's memory, MiB   {child_mib():>12.0f}")
        show_lag(lags_ms)
    assert "sklearn" not in sys.modules
    return is_within


def main() -> int:
    """Make the data, measure, clean up; return 1 if a gate does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.handlers_training", description="Measure training in a child process.")
    parser.add_argument("--rows", type=int, default=50_000, metavar="N", help="rows of the large table; default 50000")
    parser.add_argument("--gate-s", type=float, default=15, metavar="S", help="most seconds for the digits; default 15")
    parser.add_argument("--gate-accuracy", type=float, default=0.96, metavar="A", help="least accuracy; default 0.96")
    parser.add_argument("--gate-ms", type=float, default=20, metavar="MS", help="most lag of the loop, p99; default 20")
    parsed = parser.parse_args()
    return in_folder(lambda folder: fill(folder, parsed.rows), lambda _, __: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
