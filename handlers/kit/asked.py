"""What workers ask of child processes about models, and what these answer. Loads nothing that is heavy."""

from __future__ import annotations

import msgspec

from handlers.contracts.training import Confusion, Drift, EvaluateModel
from handlers.kit.models import Card, Model


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is not signed yet: its card, and its file."""

    card: Card
    model: memoryview


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be tried: models that the worker has verified."""

    message: EvaluateModel
    model: Model
    baseline: Model | None = None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """How models did on the same examples."""

    rows: int
    data_sha256: str
    metrics: dict[str, float]
    baseline_metrics: dict[str, float]
    drift: list[Drift]
    confusion: Confusion | None
