"""Jobs, handlers and errors for tests of what becomes of a job."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from runtime.backoff import Backoff
from runtime.errors import (
    Dead,
    Retry,
)
from runtime.jobs import (
    Handler,
    Job,
    Outcome,
    contract,
    contract_of,
)
from runtime.settle import decide
from runtime.worker.ledger import Ledger
from tests.builders import job

SAFE = 2**53  # whole numbers beyond it pass through Lua changed
NAN, INF = float("nan"), float("inf")


@contract("greet", version=2)
class Greet(msgspec.Struct):
    pass


async def greet(payload: Any, job: Job) -> None:
    """Never called in here."""


def handler(**policy: Any) -> Handler[Any]:
    return Handler(contract_of(Greet), greet, lambda job: Greet(), greet, 30.0, Backoff(**policy), "loop")


HANDLER = handler(base_s=10, cap_s=1000, attempts=3)
REGISTRY = {b"greet": HANDLER}


def as_raised(make: Callable[[], BaseException]) -> BaseException:
    """Return what a handler raises that says `raise make()`."""
    try:
        return make()
    except Exception as error:
        return error


def raised(error: BaseException) -> BaseException:
    """Return the error with a stack, as a handler would raise it."""
    try:
        raise error
    except BaseException as caught:
        return caught


class Mute(Exception):
    """An error whose own message raises."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


def decided(error: BaseException | None, roll: float = 0.5, by: Handler[Any] = HANDLER, **fields: Any) -> Outcome:
    return decide(by, job(**fields), error, lambda: roll)


def as_retry(outcome: Outcome) -> Retry:
    assert isinstance(outcome, Retry)
    return outcome


def as_dead(outcome: Outcome) -> Dead:
    assert isinstance(outcome, Dead)
    return outcome


def written_for(outcome: Outcome, **fields: Any) -> Any:
    ledger = Ledger()
    ledger.add(job(**fields), outcome)
    return ledger.take()
