"""`python -m handlers.models` adds, lists, verifies and promotes the models that `run-inference` asks; for operators.

A file of others is loaded in a child process before it is signed. To sign it is to trust it: what it answers is its maker's word.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from handlers.contracts.types import ColumnName, is_alias, is_version
from handlers.kit.failures import MISSING_TRIES, unlogged
from handlers.kit.models import Card, Feature, Label, Model, Task, find_model, promote, publish, versions
from handlers.kit.settings import VARIABLE, Settings, current
from handlers.kit.threads import Stop
from runtime import ConfigError, Dead, Retry, Snooze

TRY_S: Final = 120.0  # a guess: a busy machine loads a model of 256 MiB and asks it once in far less
FORMATS: Final = {".onnx": "onnx", ".skops": "skops"}
WORK_BYTES: Final = 16  # 26 characters of base 32, as those of `job.work`


class Described(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator says of a model, in a TOML file.

    `features` are its columns, in its order; those in `texts` take texts, of which a pipeline of scikit-learn knows these, and
    takes a number for each, 1 for the one that it is. `estimator` is the kind of its last step, as `train-model` calls it.
    """

    task: Task
    features: list[ColumnName]
    texts: dict[ColumnName, list[str]] = {}
    classes: list[Label] = []
    estimator: str = ""
    metrics: dict[str, float] = {}

    def __post_init__(self) -> None:
        """Check the names.

        Raises:
            ValueError: one comes twice, or is that of no column.
        """
        if not self.features or len(set(self.features)) < len(self.features) or not set(self.texts) <= set(self.features):
            raise ValueError("`features` must name each column once, and those in `texts` as well")


class Wrong(Exception):
    """What the operator asked for cannot be done; the text says why."""


def main(arguments: Sequence[str]) -> int:
    """Run a command, and return its status: 0, 1 where it could not be done, 2 where it makes no sense."""
    parsed = _parser().parse_args(arguments)
    if parsed.handlers_config:
        os.environ[VARIABLE] = parsed.handlers_config
    try:
        with unlogged():
            return parsed.run(current(), parsed)
    except (Wrong, Dead, Retry, Snooze, ConfigError, OSError) as error:
        print(f"{parsed.command}: {error}", file=sys.stderr)
        return 1


def _name(text: str) -> str:
    if not is_alias(text):
        raise argparse.ArgumentTypeError("must be 1 to 32 of [a-z0-9_-], and begin with a letter")
    return text


def _version(text: str) -> str:
    if not is_version(text):
        raise argparse.ArgumentTypeError("must be 26 of [a-z2-7]; hint: list")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m handlers.models", description="The models that run-inference asks.")
    parser.add_argument("--handlers-config", metavar="FILE", help=f"the handlers' settings; default {VARIABLE}")
    commands = parser.add_subparsers(dest="command", required=True)
    adds = commands.add_parser("add", help="try a model in a child process, sign it, and say its version")
    adds.add_argument("file", type=Path, metavar="FILE", help="name.onnx, or name.skops with a pipeline of scikit-learn")
    adds.add_argument("--name", type=_name, required=True, help="by which payloads ask for it")
    adds.add_argument("--card", type=Path, required=True, metavar="FILE", help="a TOML file that says what it takes and answers")
    adds.add_argument("--promote", action="store_true", help="make it the current version")
    adds.set_defaults(run=_add)
    lists = commands.add_parser("list", help="show the versions, and whether their signatures are valid")
    lists.add_argument("name", type=_name, nargs="?", help="only those of this model")
    lists.set_defaults(run=_list)
    promotes = commands.add_parser("promote", help="make a version the current one, also an older one")
    promotes.add_argument("name", type=_name)
    promotes.add_argument("version", type=_version)
    promotes.set_defaults(run=_promote)
    verifies = commands.add_parser("verify", help="verify a version; without one, the current")
    verifies.add_argument("name", type=_name)
    verifies.add_argument("version", type=_version, nargs="?")
    verifies.set_defaults(run=_verify)
    return parser


def _add(settings: Settings, parsed: argparse.Namespace) -> int:
    kind: Any = FORMATS.get(parsed.file.suffix)
    if kind is None:
        raise Wrong(f"{parsed.file}: must be called *.onnx or *.skops")
    limit_bytes = settings.registry().limit_bytes
    with parsed.file.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise Wrong(f"{parsed.file} must have at most {limit_bytes} bytes; hint: models.max_bytes")
    said = parsed.card.read_bytes()
    described = _described(parsed.card, said)
    digest = hashlib.sha256(hashlib.sha256(data).digest() + said).digest()
    card = Card(
        name=parsed.name,
        version=base64.b32encode(digest[:WORK_BYTES]).decode().lower().rstrip("="),
        format=kind,
        task=described.task,
        features=[
            Feature(name=name, kind="text" if name in described.texts else "number", categories=described.texts.get(name, []))
            for name in described.features
        ],
        classes=described.classes,
        estimator=described.estimator,
        metrics=described.metrics,
        born_s=float(int(time.time())),
    )
    _try(card, data)
    model = publish(settings, card, data, card.version, Stop())
    print(f"{model.name} {model.version}")
    if parsed.promote:
        promote(settings, model, by_operator=True)
    return 0


def _described(path: Path, said: bytes) -> Described:
    try:
        return msgspec.convert(tomllib.loads(said.decode()), Described)
    except (msgspec.ValidationError, ValueError) as error:
        raise Wrong(f"{path}: {error}") from None


def _try(card: Card, data: bytes) -> None:
    """Load the model and ask it once, in a process that it may crash, and that has none of our secrets in its environment.

    Raises:
        Wrong: it is not what the card says, or none that can be loaded.
    """
    given = msgspec.msgpack.encode({"card": card, "data": data})
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "TMPDIR", "LANG")}
    command = [sys.executable, "-P", "-m", "handlers.kit.predicting"]
    try:
        done = subprocess.run(command, input=given, env=kept, capture_output=True, timeout=TRY_S, check=False)
    except subprocess.TimeoutExpired:
        raise Wrong(f"the model did not answer within {TRY_S:g} s") from None
    if done.returncode < 0:
        raise Wrong(f"the model crashed its process (signal {-done.returncode})")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Wrong(last or f"the model ended its process with status {done.returncode}")


def _list(settings: Settings, parsed: argparse.Namespace) -> int:
    status = 0
    for name, version, is_current in versions(settings, parsed.name):
        try:
            said = _line(find_model(settings, name, version, MISSING_TRIES, Stop()))
        except Dead as error:
            said, status = f"{error.code}: {error}", 1
        print(f"{'*' if is_current else ' '} {name} {version} {said}")
    return status


def _line(model: Model) -> str:
    card = model.card
    born = datetime.fromtimestamp(card.born_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metrics = " ".join(f"{name}={value:.4g}" for name, value in sorted(card.metrics.items()))
    return f"{card.format} {card.task} {len(card.features)} columns {model.bytes} bytes {born} {metrics}".rstrip()


def _promote(settings: Settings, parsed: argparse.Namespace) -> int:
    model = find_model(settings, parsed.name, parsed.version, MISSING_TRIES, Stop())
    promote(settings, model, by_operator=True)
    print(f"{model.name} {model.version} is the current version")
    return 0


def _verify(settings: Settings, parsed: argparse.Namespace) -> int:
    model = find_model(settings, parsed.name, parsed.version, MISSING_TRIES, Stop())
    print(f"{model.name} {model.version} {_line(model)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
