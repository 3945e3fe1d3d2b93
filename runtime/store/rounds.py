"""What a doctor asks at night beside the structures: is memory full, what kills workers, what hangs, what dies and since when,
and which messages lie where nobody reads. Each look is bounded.
"""

from __future__ import annotations

import difflib
import math
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

import msgspec

from runtime.codec import summary
from runtime.findings import Finding
from runtime.jobs import STREAMS, SUSPECT, default_id
from runtime.store.base import GROUP, WorkerRow, is_code
from runtime.store.deaths import Death
from runtime.store.flow import span
from runtime.store.inspector import DeadLetter, Inspector, Server
from runtime.store.resp import Command, ServerError
from runtime.store.sample import Minute, read_minute

MB: Final = 1 << 20  # as Redis counts one
MEMORY_PART: Final = 0.9  # a guess: then there is time to act
PROBE_MS: Final = 1000  # a guess: what is written to see whether that is possible is gone by itself
MOST_OF_SYSTEM: Final = 0.7  # a guess: the rest is for the rewriting of the file, and for others on that machine
MORE_ROOM: Final = 1.5  # a guess: half as much again lasts until somebody has looked
SAMPLES: Final = 5  # nodes of a key that the server looks at for its size, as it does by itself

MINUTES: Final = 60  # of what was counted that are read; a guess: an hour tells what is usual, and when it began
RECENT_MS: Final = 300_000  # a guess: deaths of now; a crash loop has some in it, at the longest pause of a supervisor too
HOUR_MS: Final = 3_600_000
FIRST: Final = 5  # of suspects, types, jobs that are named; a guess: a line that can still be read
SUSPECTS: Final = 50  # of each stream that are looked at; a guess

QUIET_MINUTES: Final = 10  # a guess: deaths so far apart are two troubles, not one
MANY_DEAD: Final = (
    10  # letters of a type within QUIET_MINUTES: more than a handful of bad inputs, as a broken handler makes; a guess
)
LETTERS: Final = 50  # newest that are read for what they died of; as many as one page

HUNG_TIMES: Final = 20  # as long as 99 of 100 of its type: none of a healthy type comes near; a guess
HUNG_MS: Final = 10_000  # a guess: what takes less is over before anybody has read that
LOOK_HUNG: Final = 200  # jobs of rows that are judged, those that have run for longest

KEYS_LOOKED: Final = 100_000  # of the whole server, for those of strangers; a guess: most servers have fewer
KEYS_A_CALL: Final = 1000  # a fraction of a millisecond
SCAN_S: Final = 2.0  # a guess: who waits for a doctor may wait for that
STRAYS: Final = 5  # that are named; a guess


class Suspect(msgspec.Struct, frozen=True):
    """A job that some worker held when it died: how many did, and of how many that was while it ran alone."""

    id: str
    type: str
    deaths: int
    alone: int

    def __str__(self) -> str:
        alone = f", {self.alone} alone" if self.alone else ""
        return f"{self.id} ({self.type}): {self.deaths} {'death' if self.deaths == 1 else 'deaths'}{alone}"


class Rounds(Inspector):
    """What is asked at night: reads of one connection, and one tiny write where memory is limited."""

    # --- memory ----------------------------------------------------------------------------------------------------------

    async def about_memory(self, server: Server) -> list[Finding]:
        """Find that memory is full, or nearly; where it may be, whether sends are refused now is tried out."""
        if not server.max_memory_bytes:
            return []
        is_refused = server.policy in ("", "noeviction") and await self._is_refused()
        room = await self._room() if is_refused or server.memory_bytes >= server.max_memory_bytes else {}
        return list(memory_findings(server, is_refused, room))

    async def _is_refused(self) -> bool:
        """Return whether Redis refuses a write for memory: one of a few bytes, which is gone by itself."""
        return is_code((await self.ask(self._connection, ("SET", self.keys.probe, 1, "PX", PROBE_MS)))[0], "OOM")

    async def _room(self) -> dict[str, int]:
        """Return about how many bytes the parts of this queue take that may be large; what is not told is left out."""
        keys = self.keys
        parts = [*((f"jobs of {name}", key) for name, key in zip(STREAMS, keys.streams, strict=True)), ("delayed jobs", keys.due)]
        parts += [("delayed jobs", keys.messages), ("dead letters", keys.dead), ("dead letters in the trash", keys.trash)]
        parts += [("lines of jobs", keys.logs), ("runs that ended", keys.events), ("the audit", keys.audit)]
        reads: list[Command] = [("MEMORY", "USAGE", key, "SAMPLES", SAMPLES) for _, key in parts]
        sizes: Counter[str] = Counter()
        for (part, _), answer in zip(parts, await self.ask(self._connection, *reads), strict=True):
            sizes[part] += answer if isinstance(answer, int) else 0
        return dict(sizes)

    # --- deaths of workers -----------------------------------------------------------------------------------------------

    async def about_deaths(self, now_ms: int) -> list[Finding]:
        """Find that worker processes died, and which jobs they held each time."""
        return list(death_findings(await self.deaths(), await self.suspects(), now_ms))

    async def suspects(self) -> list[Suspect]:
        """Return the jobs that workers held when they died and that are not acquitted, the worst first: SUSPECTS of each stream.

        Raises:
            StoreUnavailable: no answer.
        """
        keys, counts = self.keys, dict[tuple[int, bytes], int]()
        isolating = self._rows((await self.ask(self._connection, ("HKEYS", keys.isolations)))[0])[:SUSPECTS]
        holders = [SUSPECT.encode(), *isolating]
        asked = [(stream, holder) for stream in range(len(STREAMS)) for holder in holders]
        reads: list[Command] = [("XPENDING", keys.streams[stream], GROUP, "-", "+", SUSPECTS, holder) for stream, holder in asked]
        for (stream, holder), answer in zip(asked, await self.ask(self._connection, *reads), strict=True):
            for row in self._rows(answer):
                # Who runs it again holds it by one count more than workers have died.
                deaths = int(row[3]) - (holder != holders[0])
                if deaths > 0:
                    counts[stream, bytes(row[0])] = deaths
        if not counts:
            return []
        places = list(counts)[: len(STREAMS) * SUSPECTS]
        found = await self.ask(
            self._connection,
            *[("XRANGE", keys.streams[stream], entry, entry) for stream, entry in places],
            *[("HGET", keys.strikes, f"{STREAMS[stream]}/{entry.decode()}") for stream, entry in places],
        )
        told = zip(places, found[: len(places)], found[len(places) :], strict=True)
        suspects = [_suspect(place, rows, names, counts[place]) for place, rows, names in told]
        return sorted((one for one in suspects if one is not None), key=lambda one: (-one.alone, -one.deaths))

    # --- what dies, and what hangs ---------------------------------------------------------------------------------------

    async def minutes(self, now_ms: int) -> dict[int, Minute]:
        """Return what was counted in the last MINUTES, by minutes since the epoch.

        Raises:
            StoreUnavailable: no answer.
        """
        numbers = [now_ms // 60_000 - ago for ago in range(MINUTES)]
        answers = await self.ask(self._connection, *[("HGETALL", self.keys.stats(number)) for number in numbers])
        return {
            number: read_minute(answer)
            for number, answer in zip(numbers, answers, strict=True)
            if not isinstance(answer, ServerError)
        }

    async def about_letters(self, minutes: Mapping[int, Minute], now_ms: int) -> list[Finding]:
        """Find of which types jobs die, how many, since when, and what of."""
        return list(letter_findings(minutes, await self.dead_letters(LETTERS), now_ms))

    async def about_hung(self, minutes: Mapping[int, Minute], workers: Mapping[str, WorkerRow], now_ms: int) -> list[Finding]:
        """Find jobs that have run for much longer than others of their type do; those of which workers tell that live."""
        usual = usual_runs(minutes.values())
        told = [(now_ms - start_ms, place, name, worker) for worker, row in workers.items() for place, start_ms, name in row.jobs]
        longest = sorted(told, reverse=True)[:LOOK_HUNG]
        hung = [one for one in longest if one[0] > hung_after_ms(usual.get(one[2]))]
        placed = [one for one in hung if one[1].partition("/")[0] in STREAMS][:FIRST]
        keys = [(self.keys.prefix + priority, entry) for priority, _, entry in (one[1].partition("/") for one in placed)]
        rows = await self.ask(self._connection, *[("XRANGE", key, entry, entry) for key, entry in keys]) if keys else []
        found = [
            hung_finding(row[0][1], ran_ms, place, name, worker, usual.get(name))
            for (ran_ms, place, name, worker), row in zip(placed, rows, strict=True)
            if not isinstance(row, ServerError) and row  # else it has ended meanwhile
        ]
        more = len(hung) - len(placed)
        return found + ([Finding("warning", f"… and {more} more that run for much longer than others", HUNG_FIX)] if more else [])

    # --- keys of strangers -----------------------------------------------------------------------------------------------

    async def about_strays(self) -> list[Finding]:
        """Find keys that begin as this queue's do and are none of them, as of a misspelt priority: nobody reads those."""
        cursor, looked, strays, end_s = b"0", 0, list[str](), time.monotonic() + SCAN_S
        match = _glob(self.keys.prefix) + "*"
        while True:
            answer = (await self.ask(self._connection, ("SCAN", cursor, "MATCH", match, "COUNT", KEYS_A_CALL)))[0]
            if isinstance(answer, ServerError):
                return []  # not allowed to look
            cursor, names = answer
            strays += [name for name in (bytes(raw).decode(errors="replace") for raw in names) if not self.keys.is_ours(name)]
            looked += KEYS_A_CALL
            if cursor == b"0" or looked >= KEYS_LOOKED or time.monotonic() > end_s or len(strays) > 10 * STRAYS:
                break
        found = sorted(set(strays))
        findings = [await self._stray(name) for name in found[:STRAYS]]
        more = len(found) - len(findings)
        return findings + ([Finding("warning", f"… and {more} more keys that are none of this queue")] if more else [])

    async def _stray(self, key: str) -> Finding:
        asked = (("TYPE", key), ("XRANGE", key, "-", "+", "COUNT", 1), ("XLEN", key), ("XINFO", "GROUPS", key))
        kind, first, length, groups = await self.ask(self._connection, *asked)
        named = shlex.quote(key)
        near = difflib.get_close_matches(key.removeprefix(self.keys.prefix), STREAMS, 1)
        # One with a group of consumers is read by somebody, and one that resembles no priority is nobody's typing error.
        if isinstance(first, ServerError) or not first or not summary(first[0][1]).type or groups or not near:
            kind = bytes(kind).decode() if isinstance(kind, bytes) else "key"
            return Finding("warning", f"{key} ({kind}) is no key of this queue", f"redis-cli TYPE {named} (whose is it?)")
        n = f"{length:,} message{'' if length == 1 else 's'}"
        what = f"{n} in {key}, where nobody reads: no such priority, there are {', '.join(STREAMS)}"
        there = shlex.quote(self.keys.prefix + near[0])
        return Finding("error", what, f"redis-cli EVAL {shlex.quote(MOVE)} 2 {named} {there} {MOVE_UNTIL}")


HUNG_FIX: Final = "python -m runtime jobs list --state running"
# What moves messages to where they are read, in one step: it may be stopped anywhere, and called again until it answers 0.
MOVE: Final = (
    'if #redis.call("XINFO", "GROUPS", KEYS[1]) > 0 then return redis.error_reply("somebody reads it: it has a group") end '
    'for _, e in ipairs(redis.call("XRANGE", KEYS[1], "-", "+", "COUNT", 500)) do '
    'redis.call("XADD", KEYS[2], "*", unpack(e[2])) redis.call("XDEL", KEYS[1], e[1]) end '
    'local n = redis.call("XLEN", KEYS[1]) if n == 0 then redis.call("DEL", KEYS[1]) end return n'
)
MOVE_UNTIL: Final = "(moves 500 a call, again until it answers 0; and mend the sender)"


# --- what is made of the answers -------------------------------------------------------------------------------------------


def memory_findings(server: Server, is_refused: bool, room: Mapping[str, int]) -> Iterator[Finding]:
    """Say that memory is full, or nearly."""
    used, most = server.memory_bytes, server.max_memory_bytes
    amount = f"{in_mb(used)} of {in_mb(most)} used"
    if not is_refused and used < MEMORY_PART * most:
        return
    wanted = math.ceil(MORE_ROOM * max(used, most) / MB)
    if server.system_bytes and wanted * MB > MOST_OF_SYSTEM * server.system_bytes:  # the machine would end it, and that is worse
        more = f"give the server a machine with more memory than {in_mb(server.system_bytes)}, or look what takes the room"
    else:
        more = f"redis-cli CONFIG SET maxmemory {wanted}mb (and put it into redis.conf)"
    if not is_refused and used < most:
        yield Finding("warning", f"{used / most:.0%} of maxmemory is used ({amount}): sends are refused at 100 %", more)
        return
    largest = sorted(((size, part) for part, size in room.items() if size), reverse=True)[:2]
    told = f"; most of it: {', '.join(f'{part} {in_mb(size)}' for size, part in largest)}" if largest else ""
    if largest and 2 * sum(room.values()) < used:
        told = f"; of this queue: {', '.join(f'{part} {in_mb(size)}' for size, part in largest)}, the rest is in other keys"
    if largest and largest[0][1].startswith("dead letters"):
        more += "; or: python -m runtime dead purge --older-than 24 --dry-run"
    yield Finding("error", f"sends are refused {'NOW' if is_refused else 'at any moment'}: {amount}{told}", more)


def in_mb(size: int) -> str:
    """Return a number of bytes for people."""
    return f"{size / MB:,.0f} MB" if size >= 10 * MB else f"{size / MB:,.1f} MB"


def death_findings(deaths: list[Death], suspects: list[Suspect], now_ms: int) -> Iterator[Finding]:
    """Say how many worker processes died of late, and which jobs they held."""
    over, recent = "5 min", [death for death in deaths if now_ms - death.at_ms <= RECENT_MS]
    if not recent:
        over, recent = "an hour", [death for death in deaths if now_ms - death.at_ms <= HOUR_MS]
    if not recent and not suspects:
        return
    died = (
        f"{len(recent)} worker process{'' if len(recent) == 1 else 'es'} died in {over}" if recent else "no worker died of late"
    )
    newest = f" (newest {span(now_ms - recent[0].at_ms)} ago)" if recent else ""
    if suspects:
        more = f"; … and {len(suspects) - FIRST} more" if len(suspects) > FIRST else ""
        told = f"; suspects: {'; '.join(map(str, suspects[:FIRST]))}{more}"
        fix = f"python -m runtime jobs show {shlex.quote(suspects[0].id)}"
    else:
        jobs = [job for death in recent for job in death.jobs][:FIRST]
        told = f"; they held {', '.join(jobs)}" if jobs else "; they held no job"
        fix = "the log of the supervisor or service manager says how (signal 9: out of memory, or killed by hand)"
    yield Finding("warning", f"{died}{newest}{told}", fix)


def _suspect(place: tuple[int, bytes], rows: Any, names: Any, deaths: int) -> Suspect | None:
    if isinstance(rows, ServerError) or not rows:
        return None  # it has ended meanwhile
    stream, entry = place
    about = summary(rows[0][1])
    alone = len(names.split()) if isinstance(names, bytes) else 0
    return Suspect(about.id or default_id(STREAMS[stream], entry.decode()), about.type_name, deaths, alone)


def letter_findings(minutes: Mapping[int, Minute], letters: Iterable[DeadLetter], now_ms: int) -> Iterator[Finding]:
    """Say of which types jobs die in these minutes, how many, since when, and what of; the most first."""
    by_minute = {number: Counter[str]() for number in minutes}
    for number, minute in minutes.items():
        for (name, _), outcomes in minute.outcomes.items():
            if outcomes.get("dead", 0) and name:
                by_minute[number][name] += outcomes["dead"]
    newest, reasons = dict[str, DeadLetter](), dict[str, Counter[str]]()
    for letter in letters:
        if now_ms - letter.died_at * 1000 <= MINUTES * 60_000:
            newest.setdefault(letter.type, letter)
            reasons.setdefault(letter.type, Counter())[letter.reason] += 1
    told: list[tuple[int, Finding]] = []
    for name in {name for counts in by_minute.values() for name in counts}:
        n, since = began(by_minute, name)
        lately = sum(counts[name] for at, counts in by_minute.items() if at > now_ms // 60_000 - QUIET_MINUTES)
        of = f" ({', '.join(reason for reason, _ in reasons[name].most_common(2))})" if name in reasons else ""
        last = f", the newest {span(int(now_ms - newest[name].died_at * 1000))} ago" if name in newest else ""
        what = f"{n:,} dead letter{'' if n == 1 else 's'} of {name}{of} since {clock(since * 60_000)}{last}"
        fix = f"python -m runtime dead list --type {shlex.quote(name)}"
        told.append((n, Finding("warning", what, fix) if lately >= MANY_DEAD else Finding("ok", what)))
    for _, finding in sorted(told, key=lambda one: -one[0])[:FIRST]:
        yield finding


def began(by_minute: Mapping[int, Counter[str]], name: str) -> tuple[int, int]:
    """Return how many there were in the newest minutes that have any, without a long pause between, and the first of those."""
    n, since = 0, 0
    for number in sorted(by_minute, reverse=True):
        if since and since - number > QUIET_MINUTES:
            break
        if by_minute[number][name]:
            n, since = n + by_minute[number][name], number
    return n, since


def usual_runs(minutes: Iterable[Minute]) -> dict[str, tuple[int, int]]:
    """Return by type in how many ms 99 of 100 runs have ended, within a factor of two, and of how many runs that is known."""
    total = Minute({}, {}, {}, {})
    for minute in minutes:
        total.add(minute)
    runs: dict[str, Counter[int]] = {}
    for (name, _), buckets in total.runs.items():
        runs.setdefault(name, Counter()).update(buckets)
    found: dict[str, tuple[int, int]] = {}
    for name, buckets in runs.items():
        powers, n = sorted(buckets), buckets.total()
        sums = accumulate(buckets[power] for power in powers)
        power = next((power for power, reached in zip(powers, sums, strict=True) if reached >= 0.99 * n), 0)
        found[name] = max(1, math.ceil(2**power / 1000)), n
    return found


def hung_after_ms(usual: tuple[int, int] | None) -> int:
    """Return for how long a job may run before it is called hung; of a type of which none has ended, an hour."""
    return HOUR_MS if usual is None else max(HUNG_MS, HUNG_TIMES * usual[0])


def hung_finding(
    fields: list[bytes], ran_ms: int, place: str, type_name: str, worker: str, usual: tuple[int, int] | None
) -> Finding:
    """Say that a job has run for much longer than others of its type do."""
    about, (priority, _, entry) = summary(fields), place.partition("/")
    job_id = about.id or default_id(priority, entry)
    if usual is None:
        than = ", and none of its type has ended within the last hour"
    else:
        p99_ms, n = usual
        than = f": {ran_ms / p99_ms:,.0f} x its p99 of under {f'{p99_ms} ms' if p99_ms < 1000 else span(p99_ms)}" + (
            f" ({n} runs)" if n < 100 else ""
        )
    what = f"{job_id} of {type_name} runs for {span(ran_ms)}{than} (on {worker})"
    return Finding("warning", what, f"python -m runtime jobs show {shlex.quote(job_id)} (jobs cancel ends it)")


def clock(at_ms: int) -> str:
    """Return a time of day of this host's zone."""
    return time.strftime("%H:%M", time.localtime(at_ms / 1000))


def _glob(text: str) -> str:
    """Return a pattern that matches this text alone."""
    return "".join(f"\\{mark}" if mark in "\\*?[]^" else mark for mark in text)
