"""What every declaration asks of a function of the user's before it is taken."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, Final

from runtime.errors import ConfigError


def _nothing() -> Any:
    """Do nothing; only wrapped below."""


# All functions that one of these two decorators makes share their code, and there is no `yield` in it.
_MANAGERS: Final = (contextlib.contextmanager(_nothing).__code__, contextlib.asynccontextmanager(_nothing).__code__)


def is_kind(function: Callable[..., object], is_kind: Callable[[object], bool]) -> bool:
    """Return what `inspect` says of a function, or of an object's `__call__`: a decorator may be a class."""
    return is_kind(function) or (not inspect.isroutine(function) and is_kind(type(function).__call__))


def check_call(function: Callable[..., object], where: str) -> None:
    """Refuse what does not run its own code when it is called."""
    if inspect.isclass(function):
        raise ConfigError(f"{where}: must be a function, got a class")
    if getattr(function, "__code__", None) in _MANAGERS:
        raise ConfigError(f"{where}: must not be a context manager: calling it runs nothing; hint: leave that decorator out")
    if is_kind(function, inspect.isgeneratorfunction) or is_kind(function, inspect.isasyncgenfunction):
        raise ConfigError(f"{where}: must not have a `yield`: calling it runs nothing; hint: leave the `yield` out")


def check_takes(function: Callable[..., object], where: str, wanted: str, count: int) -> None:
    """Refuse what cannot be called with so many arguments; `wanted` shows them."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: must take {wanted}, and has no signature: {error}") from None
    try:
        signature.bind(*[None] * count)
    except TypeError:
        raise ConfigError(f"{where}: must take {wanted}, got {signature}") from None
