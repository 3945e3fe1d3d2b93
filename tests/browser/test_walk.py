"""The walk: what somebody does whom failing jobs have called, in the demo of `make run`: by mouse, by keyboard alone, by thumb.

A worker of the test's own does the demo's jobs, and those of `walk_jobs`, while the demo's worker is quiet and shows the board:
so that there is one to be killed, and one that knows the letters' type.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from playwright.async_api import Locator, Page, expect

from runtime.control import Control
from tests.browser.chromium import Watched, watched
from tests.browser.conftest import Demo
from tests.browser.hands import Hands, Keyboard, Mouse, Thumb
from tests.faults.worker import Worker
from tests.servers import wait_until
from tests.workers import until

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

STREAMS: Final = ("{jobs}:critical", "{jobs}:high", "{jobs}:medium", "{jobs}:low")
DEAD: Final = "{jobs}:dead"
# What a check of letters could change, were it to write: jobs, letters, orders. The others tell of workers and of counts.
KEPT: Final = (*STREAMS, DEAD, "{jobs}:trash", "{jobs}:due", "{jobs}:msg", "{jobs}:control", "{jobs}:operations", "{jobs}:audit")
CONTACTS: Final = "demo-sync-contacts"
LEASE_S: Final = 30.0  # long: the jobs of a worker that died are to be seen before they are taken back
TIMES_DIFFER: Final = "new Set([...document.querySelectorAll('.attempt > summary > .push')].map(it => it.textContent)).size > 1"
BEAT_AGE_S: Final = 7.5  # less than the shortest time between two beats, 0.8 of a third of a lease
PARCELS: Final = 12
TRIAL: Final = 5
WAYS: Final[dict[str, type[Mouse | Keyboard | Thumb]]] = {"mouse": Mouse, "keyboard": Keyboard, "thumb": Thumb}


# --- who walks, and where ---------------------------------------------------------------------------------------------------


@dataclass
class Crew:
    """The worker of one walk, and the files by which it hears what its handlers are to do."""

    demo: Demo
    folder: Path
    way: str
    worker: Worker = field(init=False)

    def start(self) -> None:
        """Start a worker, and wait until it works."""
        self.worker = Worker(
            None,
            self.folder,
            *("--handlers-config", str(self.demo.folder / "handlers.toml"), "--suspect", "2", "--grace", "1"),
            handlers="handlers,handlers.demo_jobs,tests.browser.walk_jobs",
            url=f"unix://{self.demo.folder / 'data' / 's.sock'}",
            lease_s=LEASE_S,
            more={"WALK_WAY": self.way, "WALK_FOLDER": str(self.folder)},
        )
        self.worker.wait_ready()

    @property
    def label(self) -> str:
        """How the board names its worker."""
        return f"{socket.gethostname()} · {self.worker.pid}"

    def say(self, word: str) -> None:
        """Let the handlers hear a word."""
        (self.folder / word).touch()

    def take_back(self, word: str) -> None:
        """Let the handlers hear it no more."""
        (self.folder / word).unlink(missing_ok=True)

    def delivered(self) -> list[str]:
        """Return the parcels that were delivered."""
        book = self.folder / "delivered"
        return book.read_text().split() if book.exists() else []

    @contextlib.contextmanager
    def stillness(self) -> Iterator[None]:
        """Stop the traffic of the demo, and the worker."""
        for pid in (self.demo.pid, self.worker.pid):
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in (self.demo.pid, self.worker.pid):
                os.kill(pid, signal.SIGCONT)


@dataclass
class Walk:
    """One walk: a page, the hands that use it, the store behind it, and the crew."""

    seen: Watched
    hands: Hands
    store: redis.Redis
    crew: Crew

    @property
    def page(self) -> Page:
        """The page."""
        return self.seen.page

    @property
    def way(self) -> str:
        """By what it is made; the names of its jobs begin so."""
        return self.crew.way

    @property
    def parcel(self) -> str:
        """The type of its letters."""
        return f"walk-parcel-{self.way}"

    def send(self, type_name: str, name: str, payload: dict[str, Any], stream: str = "{jobs}:medium") -> str:
        """Send a job as any client may; return its id."""
        job = f"{self.way}-{name}"
        self.store.xadd(stream, {"type": type_name, "id": job, "data": json.dumps(payload)})
        return job

    def send_parcels(self, name: str, many: int) -> list[str]:
        """Send parcels that cannot be delivered while the depot is shut."""
        return [
            self.send(self.parcel, f"{name}-{n}", {"number": n, "street": "Shut Street", "weight_g": 500}) for n in range(many)
        ]

    def letters(self) -> dict[str, str]:
        """Return the letters of its type: by the job's id, their place."""
        return {fields["id"]: entry for entry, fields in self.store.xrange(DEAD) if fields.get("type") == self.parcel}

    def waiting(self) -> set[str]:
        """Return the parcels that wait or run."""
        return {
            fields["id"] for stream in STREAMS for _, fields in self.store.xrange(stream) if fields.get("type") == self.parcel
        }

    async def confirm(self, verb: str, reason: str = "") -> None:
        """Answer the question that is asked."""
        dialog = self.page.get_by_role("dialog")
        if reason:
            await self.hands.write(dialog.get_by_label("Reason, for the audit (optional)"), reason)
        await self.hands.press(dialog.get_by_role("button", name=verb, exact=True))
        await expect(dialog).to_have_count(0)


Step = Callable[[Walk], Any]


async def take(walk: Walk, steps: Sequence[Step]) -> None:
    """Make the steps, one after another; none may leave an error in the console, or a request that failed."""
    for step in steps:
        await step(walk)
        assert walk.seen.answer_for() == [], step.__name__
    assert getattr(walk.hands, "small", []) == [], "too small for a thumb"


# --- the steps --------------------------------------------------------------------------------------------------------------


async def the_overview_is_alive(walk: Walk) -> None:
    """Two ticks after jobs were sent, the figures are other ones."""
    table = walk.page.locator("table.priorities")
    await expect(table).to_be_visible()
    before = await table.text_content()  # a phone shows a few of the columns
    for n in range(20):
        walk.send("demo-check-payment", f"payment-{n}", {"number": n}, "{jobs}:critical")
    await _ticks(walk.page, 2)
    assert await table.text_content() != before


async def the_failing_type_is_named_and_linked(walk: Walk) -> None:
    """Of a type that fails the first page says so, and leads to it."""
    for n in range(14):
        walk.send(CONTACTS, f"contacts-{n}", {"account": "initech", "has_key": False})
    verdict = walk.page.locator(".verdicts > a", has_text="Why do jobs fail?")
    await expect(verdict).to_have_class(re.compile("isbad|iswarn"))
    await expect(verdict).to_contain_text(CONTACTS)
    await walk.hands.press(verdict)
    await expect(walk.page).to_have_url(re.compile(f"/type[?]type={CONTACTS}"))
    await expect(walk.page.locator("h1")).to_have_text(CONTACTS)


async def a_job_is_found_with_its_attempts(walk: Walk) -> None:
    """An id leads to the job: when each attempt was, and what it failed of."""
    walk.seen.expected += ["/api/payload?place=", "status of 404"]  # it moves on: asked for where it stood a moment ago
    await walk.hands.find(f"{walk.way}-contacts-0")
    await expect(walk.page.locator("h1")).to_have_text(f"{walk.way}-contacts-0")
    attempts = walk.page.locator("details.attempt")
    await expect(attempts.nth(1)).to_be_visible()
    newest = attempts.first
    await expect(newest).to_contain_text("PartnerError")
    await expect(newest).to_contain_text("401 Unauthorized")
    await walk.page.wait_for_function(TIMES_DIFFER)  # to the second: two may be as near as that
    older = attempts.last
    await walk.hands.press(older.locator("summary"))
    await expect(older).to_have_attribute("open", "")


async def the_jobs_of_a_killed_worker_come_back(walk: Walk) -> None:
    """They are of an owner that is gone, with when they are back at the latest; then another worker has them, and does them."""
    errands = f"walk-errand-{walk.way}"
    killed = walk.crew.label
    name = _name_of(walk.store, walk.crew.worker.pid)
    wait_until(lambda: _beat_age_s(walk.store, name) > BEAT_AGE_S, what="a heartbeat that is nearly due")
    jobs = [walk.send(errands, f"errand-{n}", {}) for n in range(4)]
    wait_until(lambda: _held_by(walk.store, name) >= set(jobs), what="the worker has them")
    walk.crew.worker.kill()

    await walk.hands.go("jobs")
    await walk.hands.find(f"type:{errands}")
    row = walk.page.locator("tbody tr", has_text=jobs[0])
    note = row.locator("td.c4")
    await expect(note).to_contain_text(re.compile(r"owner gone, back in \d"), timeout=60_000)
    first = await note.inner_text()
    await expect(note).not_to_have_text(first)
    await expect(row).to_contain_text(killed)

    walk.crew.start()
    await expect(row.locator("td.c3")).to_have_text(walk.crew.label, timeout=60_000)
    walk.crew.say("errands-may-end")
    await walk.hands.press(walk.page.get_by_role("link", name="Finished"))
    for job in jobs:
        await expect(walk.page.locator("tbody tr", has_text=job).filter(has_text="lost")).to_be_visible()
    await walk.hands.go("workers")
    await expect(walk.page.locator("tbody tr", has_text=walk.crew.label)).to_be_visible()
    await expect(walk.page.locator("tbody tr", has_text=killed)).to_have_count(0)
    await walk.hands.find(jobs[0])
    await expect(walk.page.locator(".hero .err", has_text="It is done")).to_be_visible()
    await expect(walk.page.locator(".attempt", has_text="ran an errand")).to_contain_text("Attempt 1")


async def a_letter_is_edited_and_sent(walk: Walk) -> None:
    """A letter leads to its payload; what does not fit is refused at its line, what fits is sent, and runs."""
    parcels = walk.send_parcels("parcel", PARCELS)
    wait_until(lambda: walk.letters().keys() == set(parcels), what="the parcels are letters")
    await _open_group(walk, PARCELS)
    await walk.hands.open(walk.page.locator(".letters tbody tr", has_text=parcels[-1]).get_by_role("link"))
    await expect(walk.page.locator("h1")).to_have_text(parcels[-1])
    await walk.hands.press(walk.page.get_by_role("button", name="Edit …"))

    text = walk.page.get_by_label("Payload, editable")
    send = walk.page.get_by_role("button", name="Send as a new job …")
    await walk.hands.write(text, '{\n"number": 0,\n"street": "Open Street",\n"weight_g": "heavy"\n}')
    await expect(walk.page.locator("#problems")).to_contain_text("line 4")
    await expect(walk.page.locator(".editor .lines .err")).to_have_text("4")
    await expect(send).to_be_disabled()
    await walk.hands.write(text, '{\n"number": 0,\n"street": "Open Street",\n"weight_g": 250\n}')
    await expect(walk.page.locator("#problems li")).to_have_count(0)
    await walk.hands.press(send)
    await walk.confirm("Send as a new job", "the street was wrong")

    job = walk.page.locator("h1")
    await expect(job).not_to_have_text(parcels[-1])
    sent = await job.inner_text()
    # It may be over before anything is told of it, or between its row and its payload.
    walk.seen.expected += [f"/api/job?id={sent}", "/api/payload?place=", "status of 404"]
    await expect(walk.page.locator(".hero .err", has_text="It is done")).to_be_visible()
    await expect(walk.page.locator(".attempt", has_text="delivered")).to_be_visible()
    assert walk.crew.delivered() == [sent]
    assert walk.letters().keys() == set(parcels), "the letter is kept"
    await walk.hands.go("jobs")
    await walk.hands.press(walk.page.get_by_role("link", name="Finished"))
    await walk.hands.find(f"type:{walk.parcel}")
    # Every failure stands there; of what was done, a sample.
    await expect(walk.page.locator("tbody tr", has_text=f"{walk.way}-parcel").filter(has_text="dead")).to_have_count(PARCELS)


async def a_check_writes_nothing(walk: Walk) -> None:
    """Jobs, letters and orders are the same before and after, byte by byte."""
    many = len(walk.letters())
    await _open_group(walk, many)
    await expect(walk.page.locator(".check li", has_text="would run").locator(".n")).to_have_text(str(many))
    with walk.crew.stillness():
        for _ in range(20):  # a schedule of the demo may fire meanwhile, or a retry become due
            before = _dump(walk.store)
            async with walk.page.expect_response(lambda answer: answer.url.endswith("/api/dead/check")) as answer:
                await walk.hands.press(walk.page.get_by_role("button", name="check again"))
            assert (await answer.value).ok
            if _dump(walk.store) == before:
                return
    raise AssertionError("a check has written")


async def letters_are_replayed_braked_and_stopped(walk: Walk) -> None:
    """A trial of five, then the rest: braked where they die again, stopped where somebody says so. None is lost or doubled."""
    parcels = set(walk.letters())
    book = set(walk.crew.delivered())
    await _open_group(walk, PARCELS)
    walk.crew.say("depot-is-open")
    await _replay(walk, f"Replay {TRIAL} as a trial …", TRIAL, "trial")
    await _operation_is(walk, "trial", "done")
    _all_are_there(walk, parcels, book, done=TRIAL)

    rest = PARCELS - TRIAL
    walk.crew.take_back("depot-is-open")
    await _replay(walk, f"Replay {rest} letters …", rest, "too early")
    await _operation_is(walk, "too early", "braked: too many died again")
    _all_are_there(walk, parcels, book, done=TRIAL)

    walk.crew.say("depot-is-open")
    await _replay(walk, f"Replay {rest} letters …", rest, "at last")
    await until(lambda: len(walk.crew.delivered()) - len(book) == 2 * TRIAL, "five more were delivered")
    await walk.hands.press(_operation(walk, "at last").get_by_role("button", name="Stop …"))
    await walk.confirm("Stop")
    await _operation_is(walk, "at last", "stopped")
    _all_are_there(walk, parcels, book, done=2 * TRIAL)

    await walk.hands.press(_operation(walk, "at last").get_by_role("button", name="Go on …"))
    await walk.confirm("Go on")
    await _operation_is(walk, "at last", "done")
    _all_are_there(walk, parcels, book, done=PARCELS)
    walk.crew.take_back("depot-is-open")


async def letters_go_to_the_trash_and_back(walk: Walk) -> None:
    """What is marked goes to the trash, and comes out of it."""
    parcels = walk.send_parcels("lost", 3)
    wait_until(lambda: walk.letters().keys() >= set(parcels), what="the parcels are letters")
    await _open_group(walk, len(walk.letters()))
    for parcel in parcels[:2]:
        await walk.hands.mark(walk.page.locator(".letters tbody tr", has_text=parcel))
    bar = walk.page.get_by_label("Marked rows")
    await expect(bar).to_contain_text("2 marked")
    await walk.hands.press(bar.get_by_role("button", name="Move to trash …"))
    await walk.confirm("Move 2 letters", "nobody asks for them")
    await expect(walk.page.locator(".letters tbody tr:not(.isgone)", has_text=parcels[0])).to_have_count(0)
    assert not walk.letters().keys() & set(parcels[:2])

    await walk.hands.go("dead")
    await walk.hands.press(walk.page.get_by_role("link", name="in the trash"))
    for parcel in parcels[:2]:
        await walk.hands.mark(walk.page.locator(".letters tbody tr", has_text=parcel))
    await walk.hands.press(bar.get_by_role("button", name="Restore …"))
    await walk.confirm("Restore 2 letters")
    await expect(walk.page.locator(".letters tbody tr:not(.isgone)", has_text=parcels[0])).to_have_count(0)
    assert walk.letters().keys() >= set(parcels)
    await _open_group(walk, len(walk.letters()))
    await expect(walk.page.locator(".letters tbody tr", has_text=parcels[0])).to_be_visible()


WHOLE: Final[tuple[Step, ...]] = (
    the_overview_is_alive,
    the_failing_type_is_named_and_linked,
    a_job_is_found_with_its_attempts,
    the_jobs_of_a_killed_worker_come_back,
    a_letter_is_edited_and_sent,
    a_check_writes_nothing,
    letters_are_replayed_braked_and_stopped,
    letters_go_to_the_trash_and_back,
)
# What nothing has to be waited for in: no lease that ends, no replay that is held.
SHORT: Final[dict[str, tuple[Step, ...]]] = {
    "jobs": WHOLE[:3],
    "edit": WHOLE[4:5],
    "trash": (letters_go_to_the_trash_and_back, a_check_writes_nothing),
}


# --- what the steps need ----------------------------------------------------------------------------------------------------


async def _ticks(page: Page, many: int) -> None:
    """Return when so many ticks have come: with each the live sign's dot is a new one."""
    await page.evaluate(
        """many => new Promise(done => {
          const seen = new MutationObserver(changes => {
            many -= changes.filter(change => change.addedNodes.length > 0).length;
            if (many <= 0) { seen.disconnect(); done(); }
          });
          seen.observe(document.querySelector('.live'), {childList: true});
        })""",
        many,
    )


def _name_of(store: redis.Redis, pid: int) -> str:
    """Return the name of the worker of a process."""
    for name, row in store.hgetall("{jobs}:workers:rows").items():
        if json.loads(row.partition(" ")[2]).get("pid") == pid:
            return name
    raise AssertionError(f"no worker of process {pid}")


def _beat_age_s(store: redis.Redis, name: str) -> float:
    """Return how long ago its last heartbeat was."""
    until_ms = store.zscore("{jobs}:workers", name)
    assert until_ms is not None
    seconds, micros = store.time()
    return LEASE_S - (until_ms / 1000 - seconds - micros / 1e6)


def _held_by(store: redis.Redis, name: str) -> set[str]:
    """Return the ids of the jobs of the walk that a worker has."""
    held = store.xpending_range(STREAMS[2], "workers", "-", "+", 1000, consumername=name)
    return {fields.get("id", "") for one in held for _, fields in store.xrange(STREAMS[2], one["message_id"], one["message_id"])}


def _dump(store: redis.Redis) -> dict[str, bytes | None]:
    """Return what the keys hold, as bytes."""
    return {key: store.execute_command("DUMP", key, NEVER_DECODE=True) for key in KEPT}


async def _open_group(walk: Walk, many: int) -> None:
    """Go to the dead letters, and open the group of the walk's own: it must have so many."""
    await walk.hands.go("dead")
    group = walk.page.locator(".groups a", has_text=walk.parcel)
    await expect(group.locator(".count")).to_have_text(str(many))
    await walk.hands.open(group)
    await expect(walk.page.locator(".hero", has_text=f"{many} letters")).to_be_visible()


async def _replay(walk: Walk, button: str, many: int, reason: str) -> None:
    await walk.hands.press(walk.page.get_by_role("button", name=button))
    await walk.confirm(f"Replay {many} letters", f"{walk.way}: {reason}")
    await expect(_operation(walk, reason).get_by_role("button", name="Undo")).to_be_visible()


def _operation(walk: Walk, reason: str) -> Locator:
    return walk.page.locator(".operations > li", has_text=f"{walk.way}: {reason}")


async def _operation_is(walk: Walk, reason: str, state: str) -> None:
    await expect(_operation(walk, reason).locator(".badge")).to_have_text(state)


def _all_are_there(walk: Walk, parcels: set[str], before: set[str], done: int) -> None:
    """See that each parcel is a letter or was delivered, once, when none is under way any more."""
    wait_until(lambda: not walk.waiting(), what="no parcel is under way")
    delivered, letters = [each for each in walk.crew.delivered() if each not in before], walk.letters().keys()
    assert len(delivered) == len(set(delivered)) == done
    assert set(delivered) | letters == parcels
    assert not set(delivered) & letters


@pytest.fixture(scope="module", autouse=True)
def quiet_demo(demo: Demo) -> None:
    """Let the demo's worker show the board, and do nothing else."""

    async def order() -> None:
        async with Control(f"unix://{demo.folder / 'data' / 's.sock'}") as control:
            await control.quiet(all=True)

    asyncio.run(order())


@contextlib.asynccontextmanager
async def walking(demo: Demo, running: Any, way: str, folder: Path, hands: type[Mouse | Keyboard | Thumb]) -> AsyncIterator[Walk]:
    """Begin a walk at the first page. Its jobs and letters are its own, also where it is made again after it has failed."""
    crew = Crew(demo, folder, f"{way}-{secrets.token_hex(3)}")
    crew.start()
    try:
        async with watched(running, demo.origin, width=hands.width, height=hands.height, **hands.more) as seen:
            with demo.store() as store:
                await seen.page.goto(demo.link)
                yield Walk(seen, hands(seen.page), store, crew)
    finally:
        crew.worker.stop()


@pytest.mark.parametrize("part", SHORT)
async def test_the_quick_parts_of_the_walk(demo: Demo, running: Any, tmp_path: Path, part: str) -> None:
    async with walking(demo, running, "desk", tmp_path, Mouse) as walk:
        await take(walk, SHORT[part])


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
async def test_the_walk(demo: Demo, running: Any, tmp_path: Path, way: str) -> None:
    async with walking(demo, running, way, tmp_path, WAYS[way]) as walk:
        await take(walk, WHOLE)
