"""Handlers that keep a machine tidy: `cleanup-logs`."""

from __future__ import annotations

import fnmatch
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from heapq import heappop, heappush, nlargest
from typing import Final

import msgspec

from handlers.contracts.maintenance import Cleaned, CleanupLogs, age_s
from handlers.kit.files import Writer, explained, open_root, target
from handlers.kit.sections import Root
from handlers.kit.settings import Settings, at_start, current
from handlers.kit.sweep import PACKED, STOP_EVERY, Found, Tree, below, compress, delete, outcome_of
from handlers.kit.threads import Stop, in_thread
from runtime import Backoff, ConfigError, Dead, Job, Schedule, handler

QUIET_S: Final = 600.0  # a guess: a file written to in the last ten minutes may still be open for writing
PART_AGE_S: Final = 86_400.0  # a guess: far longer than any job of ours writes
MAX_MATCHING: Final = 1_000_000  # a guess; they are held in memory, about 300 bytes each (measured)
NEVER: Final = float("inf")
BRAKE_PERCENT: Final = 90  # a guess: a root of logs always has some that are in use
# Of its schedules:
JITTER_S: Final = 120.0  # a guess: not all at once
EXPIRES_S: Final = 20 * 3600.0  # a guess: the next one is near by then


def SCHEDULES() -> list[Schedule]:
    """Return a schedule for each cleanup of the settings that is enabled.

    Raises:
        ConfigError: the settings cannot be used, or a cleanup has no root with mode `purge`.
    """
    settings = at_start()
    return [_schedule(alias, settings) for alias, cleanup in settings.cleanups.items() if cleanup.enabled]


def _schedule(alias: str, settings: Settings) -> Schedule:
    cleanup = settings.cleanups[alias]
    root = settings.roots.get(cleanup.root)
    if root is None or not root.allows("purge"):
        raise ConfigError(f"cleanups.{alias}: root {cleanup.root!r}: must be in `roots`, with mode 'purge'")
    name = f"cleanup-logs.{alias}"
    return Schedule(name, cleanup.when, cleanup.job(), tz=cleanup.tz, jitter_s=JITTER_S, expires_s=EXPIRES_S)


@handler(CleanupLogs, timeout_s=1800, retry=Backoff(base_s=300, cap_s=1800, attempts=3))
async def cleanup_logs(message: CleanupLogs, job: Job) -> Cleaned:
    """Return when every file that was due is deleted or compressed, or counted as skipped or failed; no link is followed.

    May be repeated, and finds less to do: age counts from when the job was first enqueued, a deleted file needs no deleting, and
    one that was compressed just before a crash is compared and deleted. Of `.part` files only our own are deleted, after a day.
    There is no `job.progress` yet.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `safety-brake`, `too-large`; nothing was touched.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not over: `locked`.
        OSError: the disk does not answer; retried by the policy.
    """
    return await in_thread(partial(_clean, message, job.work, job.born, current()))


def _clean(message: CleanupLogs, work: str, born_s: float, settings: Settings, stop: Stop) -> Cleaned:
    root = settings.root(message.root)
    _check_permission(message, root)
    with explained(message.root), open_root(message.root, root) as top:
        now_s = time.time()
        born_s = min(born_s, now_s)
        seen = _survey(top, message, born_s - PART_AGE_S, stop)
        matched = _choose(seen.matching, message, born_s - message.older_than_s, now_s - QUIET_S)
        try:
            oldest_ns = _oldest(seen.matching, matched)
            matched += seen.parts
            stats = Counter(matched=len(matched), failed=seen.failed)
            if not message.dry_run:
                _brake(message, root, len(matched), seen.files)
                oldest_ns = min(oldest_ns, _carry_out(top, matched, message, work, stats, stop))
            result = Cleaned(**stats, oldest_left=_iso(oldest_ns), listing=message.listing)
            return result if message.listing is None else _listed(result, matched, message.listing, work, settings, stop)
        finally:
            matched.clear()
            _release(seen.matching)


def _check_permission(message: CleanupLogs, root: Root) -> None:
    """Return if the root allows what the payload asks for.

    Raises:
        Dead: it does not; `bad-path`, or `safety-brake` for `force`.
    """
    where = f"roots.{message.root}"
    if not root.allows("purge"):
        raise Dead(f"{where} allows mode {root.mode!r} only, not 'purge'", "bad-path")
    if message.older_than_s < age_s(root.min_age):
        raise Dead(f"{where} allows files older than {root.min_age} only, not {message.older_than}; hint: `min_age`", "bad-path")
    if message.force and not root.force:
        raise Dead(f"{where} does not allow `force`; hint: force = true in its settings", "safety-brake")


def _release(files: list[Found]) -> None:
    """Drop the references a few at a time: freeing a million at once holds up the loop for 0.1 s (measured)."""
    while files:
        del files[-STOP_EVERY:]


# --- survey -------------------------------------------------------------------------------------------------------


class Survey(msgspec.Struct, frozen=True):
    """The plain files below a root: how many, those that the globs match, our abandoned parts; and the folders not entered."""

    files: int
    matching: list[Found]
    parts: list[Found]
    failed: int


def _survey(top: int, message: CleanupLogs, part_cutoff_s: float, stop: Stop) -> Survey:
    includes, excludes = _pattern(message.include), _pattern(message.exclude)
    tree = Tree(top, recurse=message.recurse, enters=lambda name: not excludes.match(name), stop=stop)
    files = 0
    matching: list[Found] = []
    parts: list[Found] = []
    for found in tree:
        files += 1
        if excludes.match(found.name):
            continue
        if found.is_part:
            if found.is_our_part and found.written_ns <= part_cutoff_s * 1e9:
                parts.append(found)
        elif includes.match(found.name) and not (message.action == "gzip" and found.name.endswith(PACKED)):
            matching.append(found)
            if len(matching) > MAX_MATCHING:
                _release(matching)
                raise Dead(f"more than {MAX_MATCHING} files match; hint: narrow `include`", "too-large")
    return Survey(files, matching, parts, tree.failed)


def _pattern(globs: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")


# --- choose ---------------------------------------------------------------------------------------------------------


def _choose(matching: Sequence[Found], message: CleanupLogs, cutoff_s: float, quiet_s: float) -> list[Found]:
    """Return the old files, except those that each folder is to keep; and more, oldest first, to get below the total.

    Heaps, not sorts: sorting 100,000 files holds the interpreter, and with it the loop, for 0.16 s (measured).
    """
    free = _without_newest(matching, message.keep_last)
    due = [found for found in free if found.written_ns <= cutoff_s * 1e9]
    if message.max_total_bytes is None:
        return due
    left_bytes = sum(found.size_bytes for found in matching) - sum(found.size_bytes for found in due)
    younger: list[tuple[int, str, str, Found]] = []
    for found in free:
        if cutoff_s * 1e9 < found.written_ns <= quiet_s * 1e9:
            heappush(younger, (found.written_ns, found.folder, found.name, found))
    while younger and left_bytes > message.max_total_bytes:
        found = heappop(younger)[-1]
        due.append(found)
        left_bytes -= found.size_bytes
    return due


def _without_newest(matching: Sequence[Found], keep: int) -> list[Found]:
    """Return the files without the newest `keep` of each folder."""
    free: list[Found] = []
    for files in _by_folder(matching).values():
        if len(files) > keep:
            kept = set(nlargest(keep, files, key=lambda found: (found.written_ns, found.name)))
            free += [found for found in files if found not in kept]
    return free


def _by_folder(files: Iterable[Found]) -> dict[str, list[Found]]:
    folders: dict[str, list[Found]] = {}
    for found in files:
        folders.setdefault(found.folder, []).append(found)
    return folders


def _brake(message: CleanupLogs, root: Root, matched: int, files: int) -> None:
    """Return if as many files as matched may be touched.

    Raises:
        Dead: they are nearly all files, or more than the root allows, which looks like a mistake; `safety-brake`.
    """
    if message.force:
        return
    if matched > root.max_delete:
        raise Dead(f"{matched} files are due, and roots.{message.root} allows {root.max_delete} at a time", "safety-brake")
    if matched * 100 > files * BRAKE_PERCENT:
        raise Dead(f"{matched} of {files} files are due, which is more than {BRAKE_PERCENT} %", "safety-brake")


# --- carry out ------------------------------------------------------------------------------------------------------------


def _carry_out(top: int, matched: Sequence[Found], message: CleanupLogs, work: str, stats: Counter[str], stop: Stop) -> float:
    """Delete or compress the files, count the outcomes, and return when the oldest that is left was written."""
    oldest_ns = NEVER
    folders = _by_folder(matched)
    try:
        for folder, files in folders.items():
            try:
                with below(top, folder) as place:
                    for number, found in enumerate(files):
                        if number % STOP_EVERY == 0:
                            stop.check()
                        outcome = _handle(place, found, message.action, work, stats, stop)
                        stats[outcome] += 1
                        if outcome == "failed" and not found.is_part:
                            oldest_ns = min(oldest_ns, found.written_ns)
            except OSError as error:  # the folder cannot be opened any more
                outcome = outcome_of(error)
                if outcome is None:
                    raise
                stats[outcome] += len(files)
    finally:
        for files in folders.values():
            files.clear()
    return oldest_ns


def _handle(place: int, found: Found, action: str, work: str, stats: Counter[str], stop: Stop) -> str:
    """Delete or compress one file and return its outcome, a field of `Cleaned`."""
    is_packing = action == "gzip" and not found.is_part
    try:
        freed = compress(place, found, work, stop) if is_packing else delete(place, found)
    except OSError as error:
        outcome = outcome_of(error)
        if outcome is None:
            raise
        return outcome
    if freed is None:
        return "skipped"
    stats["bytes_freed"] += freed
    return "compressed" if is_packing else "deleted"


# --- report ----------------------------------------------------------------------------------------------------------


def _oldest(matching: Sequence[Found], due: Sequence[Found]) -> float:
    """Return when the oldest of the files that are not due was written."""
    going = {(found.folder, found.name) for found in due}
    return min((found.written_ns for found in matching if (found.folder, found.name) not in going), default=NEVER)


def _iso(written_ns: float) -> str | None:
    return None if written_ns == NEVER else datetime.fromtimestamp(int(written_ns) // 10**9, UTC).isoformat()


def _listed(result: Cleaned, matched: Sequence[Found], path: str, work: str, settings: Settings, stop: Stop) -> Cleaned:
    """Write the names to their file, a JSON line each, and return the result."""
    with target(settings, path) as place, Writer(place, work, stop) as out:
        done = out.already(Cleaned)
        if done is not None:
            return done
        for found in matched:
            name = os.fsencode(f"{found.folder}/{found.name}".lstrip("/")).decode("utf-8", "backslashreplace")
            line = {"name": name, "bytes": found.size_bytes, "written": _iso(found.written_ns)}
            out.write(msgspec.json.encode(line) + b"\n")
        out.finish(result)
    return result
