"""A cancel before, between and after each verb of a job's life: the job is done or dead, and never handed out again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime import Control
from runtime.jobs import FREE, Deferral, Job, Letter, Parking
from runtime.limits import Limits
from runtime.store.shapes import Ask, Serve
from tests.contract.kit import HIGH, ME, OTHER, batch, jobs_of, quiet_guard

# Each life as verbs in turn; the last one ends it.
LIVES = {
    "a retry": ("fetch", "retry", "promote", "fetch", "done"),
    "a snooze": ("fetch", "snooze", "promote", "fetch", "done"),
    "given back": ("fetch", "release", "take", "done"),
    "parked": ("fetch", "park", "take parked", "done"),
    "at a gate": ("fetch", "gate", "serve", "done"),
    "its worker dies": ("fetch", "die", "reclaim", "isolate", "done"),
    "its delivery is lost": ("fetch", "reclaim", "take", "done"),
    "a death": ("fetch", "dead"),
    "two lives": ("fetch", "release", "take", "retry", "promote", "fetch", "die", "reclaim", "isolate", "retry"),
}
AFTERWARDS = ("promote", "fetch", "take", "take parked", "serve", "die", "reclaim", "isolate")


class Life:
    """Does verbs with one job; `given` counts how often it was handed out."""

    def __init__(self, kit: Any, store: Any) -> None:
        self.kit, self.store, self.given = kit, store, 0
        self.job: Job | None = None
        self.is_done = False

    async def do(self, verb: str) -> None:
        """Do a verb; moves are of who has the job."""
        match verb:
            case "fetch":
                self._take(await self.store.fetch([0, 9, 0, 0], set()))
            case "take" | "take parked":
                self._take(await self.store.take(Ask(HIGH, FREE if verb == "take" else "~t:t@2", 9)))
            case "serve":
                served = await self.store.serve([], [Serve("t", Limits(limit=5), 9, 9, [(HIGH, "~g:t", "")])])
                self._take(served[1][0].fetched)
            case "isolate":
                self._take((await self.store.isolate(30_000, -1, 10_000, 9, {"t": (1, 30_000)})).fetched)
            case "promote":
                await self.store.promote(9, "0")
            case "die":
                self.kit.set_until({ME: 1})
            case "reclaim":
                quiet_guard(self.kit)
                for entry in self.kit.holders():
                    self.kit.claim(entry, self.kit.holders()[entry][0], idle_ms=10**6)
                await self.kit.streams(OTHER).reclaim(HIGH, 30_000, 9, {})
                self.job = None
            case _ if self.job is not None:
                await self.store.settle(self._move(verb, self.job))
                self.job, self.is_done = None, verb == "done"

    def _take(self, fetched: Any) -> None:
        for job in jobs_of(fetched):
            self.job, self.given = job, self.given + 1

    def _move(self, verb: str, job: Job) -> Any:
        lots = {"release": FREE, "park": "~t:t@2", "gate": "~g:t"}
        if verb in lots:
            return batch(Parking(job, lots[verb]))
        if verb == "done":
            return batch(done=[job])
        return batch(Letter(job, "handler", "e", "", 1, "j") if verb == "dead" else Deferral(job, verb, 0, "j", 1))


@pytest.fixture
async def control(on_server: Any) -> AsyncIterator[Control]:
    async with Control(on_server.server.url, by="ann@host") as opened:
        yield opened


@pytest.mark.parametrize("verbs", LIVES.values(), ids=LIVES)
async def test_wherever_a_cancel_falls_the_job_ends_and_is_handed_out_no_more(on_server, control, verbs):
    for at in range(len(verbs) + 1):
        on_server.clear()
        store = on_server.streams(ME)
        await store.start()
        on_server.add(id="j", key="k")
        on_server.set_until({ME: on_server.now_ms() + 10**6})
        life, answers, given = Life(on_server, store), list[Any](), 0
        for number, verb in enumerate((*verbs, None)):
            if number == at:
                answers, given = await control.cancel("j"), life.given
            if verb is not None:
                await life.do(verb)
        for verb in AFTERWARDS:
            await life.do(verb)
        told = [one.answer for one in answers]
        reasons = [letter["dead_reason"] for letter in on_server.letters()]
        assert told in ([], ["cancelled"], ["asked"], ["dead"]), (at, told)
        assert life.given == given, (at, told, "it is handed out no more")
        assert (on_server.messages(), on_server.due(), on_server.records()) == ([], {}, set()), (at, told)
        assert reasons in ([["handler"]] if told == ["dead"] else [["cancelled"], [], ["handler"]]), (at, told)
        assert (reasons == []) == life.is_done, (at, told, "it is done or dead, and never both")
        assert on_server.marks() == {} or life.is_done, (at, told)
