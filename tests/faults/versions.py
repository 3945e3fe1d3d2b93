"""A storm over workers and senders of two releases, the last one and this tree, on one queue, as in a rolling deploy.

The last release is unpacked out of git and runs as it was, with two files of ours laid into it: the handlers that both run
(`ported.py`), and numbers for its sender (`old_sender.py`). One nemesis harms both, and one checker judges all of it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from runtime import Message
from runtime.jobs import STREAMS
from tests.faults import ledger, storms
from tests.faults.checker import TAG, Verdict, number_of
from tests.faults.ledger import REPLAYS, Answer, Fault, Line, Pen, Story, Try, now_s
from tests.faults.nemesis import GRACE_S, KINDS, PROCESS_KINDS, Nemesis, Slot, deck
from tests.faults.ported import CODE, MENDABLE, OLD, SECOND_LIFE, STYLES, fate_of, fixed, key_of
from tests.faults.sender import ATTEMPTS, Sender
from tests.faults.storms import Weather
from tests.faults.worker import LEASE_S, ROOT, Worker
from tests.servers import Server

LAST_RELEASE = "8fc207a"  # no release has a tag yet; from the first one on, the tag of the last release
PARTS = ("runtime", "board", "otel", "handlers", "tests")  # what a worker and a sender of it need
LAID_IN = ("ported.py", "old_sender.py")

LAST, THIS = "last", "this"
RELEASES = (LAST, THIS)
WORKERS = 5  # two of the one release and three of the other, or the other way round
HANDLERS = "tests.faults.jobs,tests.faults.ported"
OLD_HANDLERS = "tests.faults.jobs,tests.faults.ported"  # by the names that they have in the last release
THREADS = ("--threads", "8")

ISOLATION, ISOLATIONS = f"{TAG}:ward", f"{TAG}:wards"  # who isolates suspects, in the last release and since

LONG_MS = (300.0, 1.5 * LEASE_S * 1000)  # some that each release must renew, and the other one leave alone
BEAT_S = LEASE_S / 3  # how often a worker of the last release renews what it holds

FORGOT = re.compile(r"forgot the dead worker (\S+)")
REPLAY_EVERY_S = 1.0
LATE_S = 30.0  # a guess: then no letter comes any more, and the run proves nothing
CLI_S = 2.0  # several times what a command takes that finds its server; each next try gets twice as long
SILENCE_S = 4.0  # of a server that is asked for its dead


@functools.cache
def last_release() -> Path | None:
    """Return where the last release lies unpacked until this process ends; None where git does not have it."""
    folder = Path(tempfile.mkdtemp(prefix="last-release-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        packed = subprocess.run(["git", "archive", LAST_RELEASE, *PARTS], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        return None
    if packed.returncode:
        return None
    subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
    for name in LAID_IN:
        shutil.copy(Path(__file__).with_name(name), folder / "tests" / "faults" / name)
    return folder


WHY_NOT: Final = f"git has no commit {LAST_RELEASE}, the last release: a shallow clone, or no repository"


def usual(jobs: int, seconds: float) -> Weather:
    """Return the weather of every kind of fault, for workers of both releases."""
    return Weather(jobs, seconds, KINDS, process_gap_s=1.5, styles=STYLES, options=THREADS, workers=WORKERS, long_ms=LONG_MS)


async def blow(server: Server, history: Path, weather: Weather, seed: int) -> Verdict:
    """Run one storm over both releases on an empty server, and return what the checker says, with the figures of the mixture."""
    trees = {LAST: _known(last_release()), THIS: ROOT}
    crews: list[MixedCrew] = []

    def crew(*arguments: Any, **more: Any) -> MixedCrew:
        crews.append(MixedCrew(trees, *arguments, **more))
        return crews[0]

    def calm() -> None:
        crews[0].is_over = True  # harm goes on only while there is something to harm

    verdict = await storms.blow(server, history, weather, seed, crew, functools.partial(BothSenders, trees, seed, calm))
    mixture = Mixture.of(ledger.read(history), history, trees, crews[0])
    still_held, left = await asyncio.to_thread(left_of_isolations, server)
    verdict.problems += mixture.strange + still_held
    verdict.figures += left
    verdict.figures += mixture.lines()
    verdict.void += mixture.why_void(weather.of(PROCESS_KINDS))
    return verdict


def _known(tree: Path | None) -> Path:
    assert tree, WHY_NOT
    return tree


def left_of_isolations(server: Server) -> tuple[list[str], list[str]]:
    """Return what keeps others from isolating after all workers have gone, and what is left and does not.

    A worker that the last release has buried stays in `wards` until another isolates: it lives no longer, so its place
    counts for nothing. The last release's own key ends with the lease.
    """
    with server.client() as raw:
        of_the_dead = raw.hkeys(ISOLATIONS)
        alive = [name for name in of_the_dead if raw.zscore(f"{TAG}:workers", name) is not None]
        held = [f"the isolation of {name}, who has gone" for name in alive]
        if raw.pttl(ISOLATION) == -1:
            held.append(f"{ISOLATION} of {raw.get(ISOLATION)} for ever")
    return held, [f"isolations of the dead: {len(of_the_dead)}"] if of_the_dead else []


def environment_of(release: str, tree: Path) -> dict[str, str]:
    """Return what makes a process run this release, wherever else the other one is installed."""
    return {"PYTHONPATH": str(tree), "FAULTS_RELEASE": release}


class MixedCrew(Nemesis):
    """Workers of both releases: what dies comes back as it was, and a deploy goes up or down."""

    def __init__(self, trees: dict[str, Path], *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._trees = trees
        self._release = {slot: RELEASES[at % len(RELEASES)] for at, slot in enumerate(self.slots)}
        self.hired: dict[int, str] = {}
        self.moves: Counter[tuple[str, str]] = Counter()
        self._logs_of_last: list[Path] = []

    @property
    def leaves(self) -> set[str]:
        """What is no leftover in this storm.

        Each release leaves the isolations of the other one alone: `left_of_isolations` looks at them. The last one forgets who
        stood still together with it, though that is alive: where such a worker is killed before it beats again, its name stays.
        """
        forgotten = {name for log in self._logs_of_last for name in FORGOT.findall(log.read_text(errors="replace"))}
        return {"wards", f"key {ISOLATION}", *[f"{stream} consumer {name}" for stream in STREAMS for name in forgotten]}

    def note(self, *lines: Line) -> None:
        """Write down; a fault of a worker of the last release goes on until its next beat.

        Until then it starts what it had at hand when it stood still, though that may be another's by now. This tree does not.
        """
        super().note(
            *[
                msgspec.structs.replace(line, to_s=line.to_s + BEAT_S)
                if isinstance(line, Fault) and [self.hired.get(pid) for pid in line.pids] == [LAST]
                else line
                for line in lines
            ]
        )

    def hire(self, slot: Slot) -> None:
        release = self._release[slot]
        tree, handlers = self._trees[release], OLD_HANDLERS if release == LAST else HANDLERS
        options = ("--handlers", handlers, "--grace", str(GRACE_S), *self._options)
        url = slot.proxy.url if slot.proxy else ""
        more = environment_of(release, tree)
        slot.worker = Worker(self.server, self.history, *options, url=url, root=tree, more=more)
        self.hired[slot.worker.pid] = release
        if release == LAST:
            self._logs_of_last.append(slot.worker.log_path)

    async def harm_processes(self, kinds: Sequence[str], gap_s: float) -> None:
        """Do every kind of harm to each of the two as often, until it is over; while one stands still, others are killed."""
        hands = [[kind for kind in kinds if kind == "stop"], [kind for kind in kinds if kind != "stop"]]
        await asyncio.gather(*[self._play(hand, gap_s) for hand in hands if hand])

    async def _play(self, kinds: Sequence[str], gap_s: float) -> None:
        for card in deck([f"{release} {kind}" for kind in kinds for release in RELEASES], self._rng):
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * gap_s)
            release, _, kind = card.partition(" ")
            slot = await self._pick_of(self._more() if kind == "deploy" else release)
            if slot is None:
                return
            slot.is_busy = True
            try:
                await getattr(self, f"_{kind}")(slot)
            finally:
                slot.is_busy = False

    def _more(self) -> str:
        """Return the release that has more workers, so that of the other one there are never fewer than two."""
        return max(RELEASES, key=list(self._release.values()).count)

    async def _pick_of(self, release: str) -> Slot | None:
        """Return a worker of this release that has jobs to lose; None when it is over."""
        while not self.is_over:
            ours = [slot for slot in self.slots if self._release[slot] == release and not slot.is_busy]
            if ready := [slot for slot in ours if slot.worker and self._runs(slot.worker) > 0]:
                return self._rng.choice(ready)
            await asyncio.sleep(0.05)
        return None

    async def _deploy(self, slot: Slot) -> None:
        """Replace a worker by one of the other release."""
        before = self._release[slot]
        self._release[slot] = THIS if before == LAST else LAST
        self.moves[before, self._release[slot]] += 1
        await super()._deploy(slot)


class BothSenders(Sender):
    """Sends half of the jobs from here, and has the last release's own sender send the other half; dead letters are replayed."""

    def __init__(
        self, trees: dict[str, Path], seed: int, when_sent: Callable[[], None], url: str, history: Path, *more: Any
    ) -> None:
        super().__init__(url, history, *more)
        self._when_sent = when_sent
        self._trees = trees
        self._seed = seed
        self._server_url = url
        self._history = history
        self._replays = Pen(history / REPLAYS)
        self._was_replayed: set[int] = set()
        self._is_over = False

    async def run(self, jobs: int, seconds: float) -> None:
        """Send, and replay what has died, until all is sent."""
        words = ["-m", "tests.faults.old_sender", self._server_url, str(self._history), "--seed", str(self._seed)]
        words += ["--jobs", str(jobs // 2), "--seconds", str(seconds)]
        other = await self._start(LAST, words)
        replaying = asyncio.create_task(self._replay())
        try:
            await super().run(jobs - jobs // 2, seconds)
            said, _ = await other.communicate()
            text = said.decode()
            assert other.returncode == 0, f"the sender of the last release ended with {other.returncode}:\n{text}"
            assert text.splitlines()[0] == str(self._trees[LAST] / "runtime"), f"the old sender ran {text}"
            self._is_over = True
            self._when_sent()
            await replaying
        finally:
            replaying.cancel()
            with contextlib.suppress(ProcessLookupError):
                other.kill()
            self._replays.close()

    def _typed_one(self, n: int, fate: str) -> tuple[Try, Message]:
        sent, message = super()._typed_one(n, fate_of(n, fate))
        if message.key:
            sent.fields["key"] = key_of(n)
            message = msgspec.structs.replace(message, key=key_of(n))
        return sent, message

    async def _start(self, release: str, words: Sequence[str]) -> asyncio.subprocess.Process:
        tree = self._trees[release]
        environment = {**os.environ, **environment_of(release, tree)}
        to = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
        return await asyncio.create_subprocess_exec(sys.executable, *words, cwd=tree, env=environment, **to)

    async def _replay(self) -> None:
        """Fix what made letters die, and send half of them back by the command of each release, until all is sent.

        On a busy machine the first letters may be later than that: they are waited for.
        """
        over_s = 0.0
        while not self._is_over or (not self._was_replayed and over_s < LATE_S):
            await asyncio.sleep(REPLAY_EVERY_S)
            over_s += REPLAY_EVERY_S if self._is_over else 0.0
            with contextlib.suppress(redis.RedisError):
                letters = list((await asyncio.to_thread(self._mendable)).items())
                halves = [dict(letters[at :: len(RELEASES)]) for at in range(len(RELEASES))]
                if all(halves):
                    await asyncio.gather(*map(self._send_back, halves, RELEASES))

    def _mendable(self) -> dict[str, tuple[int, dict[str, str]]]:
        """Return the letters that a fixed handler would run, with their numbers and fields."""
        with redis.Redis.from_url(self._server_url, decode_responses=True, protocol=2, socket_timeout=SILENCE_S) as raw:
            letters = raw.xrange(f"{TAG}:dead")
        found = {
            letter: (number_of(fields), fields)
            for letter, fields in letters
            if fields.get("type") in MENDABLE and fields["dead_reason"] == "attempts"
        }
        return {letter: (n, fields) for letter, (n, fields) in found.items() if n is not None and n not in self._was_replayed}

    async def _send_back(self, letters: dict[str, tuple[int, dict[str, str]]], release: str) -> None:
        """Replay these letters: each number has had its attempts, and its second life must end in the first of new ones."""
        for n, fields in letters.values():
            self._was_replayed.add(n)
            fixed(self._history, n).touch()
            at_s = now_s()
            kept = {name: value for name, value in fields.items() if name in ("type", "data")}
            self._replays.note(Try(n, ATTEMPTS, "", kept, at_s), Answer("replayed", [n], at_s))
            self._replays.note(Try(n + SECOND_LIFE, 1, "", kept, at_s))
        words = ["-m", "runtime", "dead", "replay", "--redis", self._server_url]
        left, wait_s = list(letters), CLI_S
        while left:  # a server that was away may have heard it, or not; a command that is killed has sent back a part
            process = await self._start(release, [*words, *left])
            try:
                async with asyncio.timeout(wait_s):
                    await process.communicate()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):  # it has ended just now
                    process.kill()
                await process.wait()
            left, wait_s = await self._still_dead(left), 2 * wait_s
        numbers = [n + SECOND_LIFE for n, _ in letters.values()]
        self._replays.note(Answer("ok", numbers, now_s()))
        with Path(self._history, f"replayed-by-{release}").open("a") as log:
            log.writelines(f"{n}\n" for n in numbers)

    async def _still_dead(self, letters: list[str]) -> list[str]:
        def look() -> list[str]:
            with redis.Redis.from_url(self._server_url, decode_responses=True, protocol=2, socket_timeout=SILENCE_S) as raw:
                return [letter for letter in letters if raw.xrange(f"{TAG}:dead", letter, letter)]

        while True:
            with contextlib.suppress(redis.RedisError):
                return await asyncio.to_thread(look)
            await asyncio.sleep(0.2)


@dataclass
class Mixture:
    """What shows that the two releases met: without it a storm of both proves no more than one of each."""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind of fault and release, met at work
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)  # sent by, ended by
    again: Counter[tuple[str, str]] = field(default_factory=Counter)  # cut or killed in, run again in
    retried: Counter[tuple[str, str]] = field(default_factory=Counter)  # failed in, tried again in
    replayed: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)  # whose job had the key, whose was dropped for it
    strange: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, story: Story, history: Path, trees: dict[str, Path], crew: MixedCrew) -> Mixture:
        """Return the figures of a run."""
        found = cls(moves=crew.moves)
        homes = {str(tree / "runtime"): release for release, tree in trees.items()}
        ran = {int(path.stem): path.read_text() for path in history.glob(f"*{CODE}")}
        for pid, release in crew.hired.items():
            if pid in ran and homes.get(ran[pid]) != release:
                found.strange.append(f"worker {pid} should run {trees[release]}, and ran {ran[pid]}")
        by_pid: dict[int, list[ledger.Run]] = {}
        by_number: dict[int, list[ledger.Run]] = {}
        for run in story.runs:
            by_pid.setdefault(run.pid, []).append(run)
            by_number.setdefault(run.n, []).append(run)
        if silent := sorted(set(by_pid) - set(ran)):
            found.strange.append(f"workers that do not say what they run: {silent}")
        for fault in story.faults:
            found._count(fault, by_pid, crew.hired)
        for n, runs in by_number.items():
            runs.sort(key=lambda run: run.start_s)
            for one, next_one in pairwise(runs):
                kind = found.again if one.attempt == next_one.attempt else found.retried
                kind[crew.hired[one.pid], crew.hired[next_one.pid]] += 1
            found.ended.update((sent_by(n), crew.hired[run.pid]) for run in runs if run.outcome == "end")
        found._judge_keys(story, by_number)
        for release in RELEASES:
            path = history / f"replayed-by-{release}"
            found.replayed[release] = len(path.read_text().splitlines()) if path.exists() else 0
        return found

    def _count(self, fault: Fault, by_pid: dict[int, list[ledger.Run]], hired: dict[int, str]) -> None:
        for pid in fault.pids if fault.kind in PROCESS_KINDS else ():
            self.hits[fault.kind, hired[pid]] += any(run.overlaps(fault) for run in by_pid.get(pid, ()))

    def _judge_keys(self, story: Story, by_number: dict[int, list[ledger.Run]]) -> None:
        """A key is its job's from the answer to its sending until it has ended, whoever of the two sent it and whoever asks.

        It may have ended with the first of its runs that did: one that stood still meanwhile ends later, and holds nothing.
        """
        by_key: dict[str, list[Try]] = {}
        for sent in story.tries.values():
            if key := sent.fields.get("key"):
                by_key.setdefault(key, []).append(sent)
        for owners in by_key.values():
            for owner in owners:
                if story.verdicts.get(owner.n) != "ok":
                    continue
                from_s = story.answered_s[owner.n]
                to_s = min((run.end_s for run in by_number.get(owner.n, ()) if run.outcome == "end"), default=0.0)
                for other in owners:
                    if from_s < other.at_s and story.answered_s.get(other.n, to_s) < to_s:
                        if story.verdicts[other.n] == "ok":
                            self.strange.append(f"{other.n} was taken, though {owner.n} had its key {other.fields['key']}")
                        self.dropped[sent_by(owner.n), sent_by(other.n)] += story.verdicts[other.n] == "dropped"

    def lines(self) -> list[str]:
        """Return the figures, a line each; `last` is the last release, `this` is this tree."""
        return [
            f"{LAST} is {LAST_RELEASE}; faults that met jobs in flight: {_told(self.hits)}",
            f"sent by → ended by: {_told(self.ended)}",
            f"run again, from → to: {_told(self.again)}; tried again, from → to: {_told(self.retried)}",
            f"deploys: {_told(self.moves)}; replayed by the command of {', '.join(f'{r} {n}' for r, n in self.replayed.items())}",
            f"keys of, kept from: {_told(self.dropped)}",
        ]

    def why_void(self, kinds: Sequence[str]) -> list[str]:
        """Say why the run proves nothing about the two together."""
        ways = [(one, other) for one in RELEASES for other in RELEASES]
        there_and_back = [way for way in ways if way[0] != way[1]]
        reasons = [f"no {kind} met a job in flight in {r}" for kind in set(kinds) for r in RELEASES if not self.hits[kind, r]]
        reasons += [f"nothing sent by {way[0]} ended in {way[1]}" for way in ways if not self.ended[way]]
        reasons += [f"nothing failed in {way[0]} was tried again in {way[1]}" for way in ways if not self.retried[way]]
        reasons += [f"no deploy from {way[0]} to {way[1]}" for way in there_and_back if "deploy" in kinds and not self.moves[way]]
        reasons += [] if any(self.again[way] for way in there_and_back) else ["nothing cut in one release ran again in the other"]
        reasons += [] if any(self.dropped[way] for way in there_and_back) else ["no key of one release was kept from the other"]
        return reasons + [f"no letter replayed by {release}" for release in RELEASES if not self.replayed[release]]


def sent_by(n: int) -> str:
    """Return the release whose sender owns a number, in either of its lives."""
    return LAST if n % SECOND_LIFE >= OLD else THIS


def _told(counts: Counter[tuple[str, str]]) -> str:
    return ", ".join(f"{one} {other} {times}" for (one, other), times in sorted(counts.items())) or "none"
