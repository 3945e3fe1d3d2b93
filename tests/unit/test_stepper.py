"""Stepper over the double: it asks while there are operations, at the time of each answer, and whatever call fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from runtime.store.base import Step
from runtime.streams import Streams
from runtime.worker import stepper as stepper_module
from runtime.worker.stepper import Stepper
from tests.cruelty import Fault, Plan
from tests.double import MemoryStreams
from tests.memory import MemoryStore
from tests.unit.parts import end, until

pytestmark = pytest.mark.usefixtures("_hurry")
WORKS = Step("running", 0, 50, 50)
FAULTS = [word for word in Fault if word is not Fault.HELD and word.name[:6] != "KILLED"]


class Crew:
    """Steppers of several workers on one store."""

    def __init__(self) -> None:
        self.store = MemoryStore(time.monotonic)
        self.tasks: list[asyncio.Task[None]] = []

    def hire(self, plan: Plan | None = None) -> Stepper:
        stepper = Stepper(cast("Streams", MemoryStreams(self.store, f"w{len(self.tasks)}", plan)))
        self.tasks.append(asyncio.create_task(stepper.run()))
        return stepper

    def left(self, name: str = "a") -> int:
        return len(self.store.steps.get(name, []))


@pytest.fixture
async def crew() -> AsyncIterator[Crew]:
    opened = Crew()
    yield opened
    await end(*opened.tasks)


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_without_an_operation_nothing_is_asked(crew: Crew) -> None:
    plan = Plan()
    stepper = crew.hire(plan)
    stepper.saw("1", ())
    await turns()
    assert plan.counts["step"] == 0
    crew.store.steps["a"] = [WORKS] * 3
    stepper.saw("2", ("a",))
    await until(lambda: plan.counts["step"] == 4, "all steps, and the answer that there is none")
    stepper.saw("2", ("a",))
    await turns()
    assert plan.counts["step"] == 4, "the same rules name it still: it is not asked for again"
    crew.store.steps["a"] = [WORKS]
    stepper.saw("3", ("a",))
    await until(lambda: plan.counts["step"] == 6, "it was resumed")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
async def test_whichever_call_fails_it_goes_on(crew: Crew, fault: Fault) -> None:
    plan = Plan(*[("step", nth, fault) for nth in (1, 2, 4)])
    crew.store.steps["a"] = [WORKS] * 10
    crew.hire(plan).saw("1", ("a",))
    await until(lambda: not crew.left(), "all steps")


async def test_a_worker_that_dies_at_a_step_leaves_the_rest_to_the_others(crew: Crew) -> None:
    crew.store.steps["a"] = [WORKS] * 20
    for plan in (Plan(("step", 3, Fault.KILLED_BEFORE)), Plan(("step", 2, Fault.KILLED_AFTER)), None):
        crew.hire(plan).saw("1", ("a",))
    await until(lambda: not crew.left(), "all steps")


async def test_who_finds_a_step_made_by_another_leaves_the_next_ones_to_it(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepper_module, "LOOK_S", (1000, 1000))
    idle, busy = Plan(), Plan()
    crew.store.steps["a"] = [Step("running", 0)] + [WORKS] * 5
    crew.hire(idle).saw("1", ("a",))
    await until(lambda: idle.counts["step"] == 1, "a look too early")
    crew.hire(busy).saw("1", ("a",))
    await until(lambda: not crew.left(), "the others, one after the other")
    assert (idle.counts["step"], busy.counts["step"] >= 5) == (1, True)


async def test_operations_that_wait_do_not_keep_others_from_their_steps(crew: Crew) -> None:
    crew.store.steps |= {"a": [Step("held", 10**7)], "b": [WORKS] * 5}
    stepper = crew.hire()
    stepper.saw("1", ("a", "b"))
    await until(lambda: not crew.left("b"), "all steps of the other")
    crew.store.steps["a"] = [WORKS]
    stepper.saw("2", ("b",))
    stepper.saw("3", ("a", "b"))
    await until(lambda: not crew.left("a"), "one that was stopped and resumed is asked for at once")


async def test_an_answer_about_an_operation_that_rests_by_now_is_forgotten(crew: Crew) -> None:
    plan = Plan(("step", 1, Fault.HELD))
    crew.store.steps["a"] = [WORKS] * 2
    stepper = crew.hire(plan)
    stepper.saw("1", ("a",))
    await until(lambda: plan.held == 1, "it is asked for")
    stepper.saw("2", ())
    plan.heal()
    await turns()
    asked: Any = plan.counts["step"]
    assert (asked, repr(stepper)) == (1, "<Stepper of 0 operations>")
