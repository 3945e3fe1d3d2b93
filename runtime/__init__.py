"""A job runtime on Redis Streams: producers in any language, handlers in Python."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runtime.backoff import Backoff
    from runtime.control import Control
    from runtime.errors import (
        BadMarks,
        BadMessage,
        BadPayload,
        BadResult,
        ConfigError,
        Dead,
        JobDead,
        JobsError,
        LifespanFailed,
        NotDurable,
        PartlySent,
        QueueFull,
        ResultTimeout,
        Retry,
        Snooze,
        StoreError,
        StoreUnavailable,
        UnknownType,
    )
    from runtime.findings import Finding
    from runtime.hooks import Death, on_dead, on_error
    from runtime.jobs import Job, Priority, Secret, contract
    from runtime.lifespans import Lifespan, lifespan
    from runtime.offload import in_child
    from runtime.producer import Message, Producer, Sent
    from runtime.registry import handler
    from runtime.schedules import Schedule
    from runtime.sync_producer import SyncProducer

__version__ = "0.1.0"  # the only place: the wheel's metadata is made from it

__all__ = [
    "Backoff",
    "BadMarks",
    "BadMessage",
    "BadPayload",
    "BadResult",
    "ConfigError",
    "Control",
    "Dead",
    "Death",
    "Finding",
    "Job",
    "JobDead",
    "JobsError",
    "Lifespan",
    "LifespanFailed",
    "Message",
    "NotDurable",
    "PartlySent",
    "Priority",
    "Producer",
    "QueueFull",
    "ResultTimeout",
    "Retry",
    "Schedule",
    "Secret",
    "Sent",
    "Snooze",
    "StoreError",
    "StoreUnavailable",
    "SyncProducer",
    "UnknownType",
    "contract",
    "handler",
    "in_child",
    "lifespan",
    "on_dead",
    "on_error",
]

_MODULES = {
    "Backoff": "backoff",
    "Control": "control",
    "Death": "hooks",
    "Finding": "findings",
    "on_dead": "hooks",
    "on_error": "hooks",
    "Job": "jobs",
    "Priority": "jobs",
    "Secret": "jobs",
    "contract": "jobs",
    "Lifespan": "lifespans",
    "lifespan": "lifespans",
    "Message": "producer",
    "Producer": "producer",
    "Sent": "producer",
    "handler": "registry",
    "in_child": "offload",
    "Schedule": "schedules",
    "SyncProducer": "sync_producer",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: a contract must not load Redis, nor a producer the worker."""
    if name not in __all__:
        raise AttributeError(f"module 'runtime' has no attribute {name!r}")
    return getattr(importlib.import_module(f"runtime.{_MODULES.get(name, 'errors')}"), name)
