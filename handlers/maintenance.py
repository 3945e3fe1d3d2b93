"""Handlers that keep a machine tidy and its data safe: `cleanup-logs`, `backup-database`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from heapq import heappop, heappush, nlargest
from tempfile import TemporaryDirectory
from typing import Final, Literal

import msgspec

from handlers.contracts.maintenance import MAX_TRIES, BackedUp, BackupDatabase, Cleaned, CleanupLogs, age_s
from handlers.contracts.notifications import SendNotification
from handlers.kit.backups import MANIFEST, Draft, Manifest, NotVerified, name_of, opened_shelf, read_manifest
from handlers.kit.databases import opened
from handlers.kit.deliveries import check_scheduled_channel
from handlers.kit.dumps import dump_sqlite, restore_sqlite
from handlers.kit.failures import TemporaryFailure
from handlers.kit.files import Writer, explained, open_root, target
from handlers.kit.packing import check
from handlers.kit.pgdumps import dump_postgres, read_back, restore_postgres
from handlers.kit.points import point
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.sections import Root
from handlers.kit.settings import Settings, at_start, current
from handlers.kit.sqlite import SqliteSession
from handlers.kit.sweep import PACKED, STOP_EVERY, Found, Tree, below, compress, delete, outcome_of, pattern_of
from handlers.kit.threads import Stop, in_thread
from runtime import Backoff, ConfigError, Dead, Job, Priority, Schedule, Snooze, handler

log = logging.getLogger("handlers.maintenance")

QUIET_S: Final = 600.0  # a guess: a file written to in the last ten minutes may still be open for writing
PART_AGE_S: Final = 86_400.0  # a guess: far longer than any job of ours writes
MAX_MATCHING: Final = 1_000_000  # a guess; they are held in memory, about 300 bytes each (measured)
NEVER: Final = float("inf")
PROGRESS_EVERY: Final = 1000  # files: a few tens of ms, far more often than anybody looks
BRAKE_PERCENT: Final = 90  # a guess: a root of logs always has some that are in use
# Of its schedules:
JITTER_S: Final = 120.0  # a guess: not all at once
EXPIRES_S: Final = 20 * 3600.0  # a guess: the next one is near by then; of cleanups alone

MAX_REASON_CHARS: Final = 2000  # a guess: of why it could not; a message holds 4000
AGAIN_S: Final = 300.0  # after a backup that could not be verified: as long as other failures wait at first


Action = Literal["delete", "gzip", "zstd"]


def SCHEDULES() -> list[Schedule]:
    """Return a schedule for each cleanup and each backup of the settings that is enabled.

    Raises:
        ConfigError: the settings cannot be used, or one names something that is missing or does not allow it.
    """
    settings = at_start()
    cleanups = [_cleanup_schedule(alias, settings) for alias, cleanup in settings.cleanups.items() if cleanup.enabled]
    return cleanups + [_backup_schedule(alias, settings) for alias, backup in settings.backups.items() if backup.enabled]


def _cleanup_schedule(alias: str, settings: Settings) -> Schedule:
    cleanup = settings.cleanups[alias]
    settings.check_root(f"cleanups.{alias}", cleanup.root, "purge")
    name = f"cleanup-logs.{alias}"
    return Schedule(name, cleanup.when, cleanup.job(), tz=cleanup.tz, jitter_s=JITTER_S, expires_s=EXPIRES_S)


def _backup_schedule(alias: str, settings: Settings) -> Schedule:
    """Return the schedule of a backup, which does not expire: a late one still counts."""
    backup = settings.backups[alias]
    settings.check_root(f"backups.{alias}", backup.to, "write")
    for database in {backup.db, backup.scratch or backup.db} - set(settings.databases):
        raise ConfigError(f"backups.{alias}: database {database!r}: must be in `databases`")
    check_scheduled_channel(f"backups.{alias}", settings, backup.channel)
    message = BackupDatabase(backup=alias)
    return Schedule(f"backup-database.{alias}", backup.when, message, tz=backup.tz, jitter_s=JITTER_S)


@handler(CleanupLogs, timeout_s=1800, retry=Backoff(base_s=300, cap_s=1800, attempts=3), result_ttl_s=RESULT_TTL_S)
async def cleanup_logs(message: CleanupLogs, job: Job) -> Cleaned:
    """Return when every file that was due is deleted or compressed, or counted as skipped or failed; no link is followed.

    May be repeated, and finds less to do: age counts from when the job was first enqueued, a deleted file needs no deleting, and
    one that was compressed just before a crash is compared and deleted. Of `.part` files only our own are deleted, after a day.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `safety-brake`, `too-large`; nothing was touched.
        Snooze: an operator must act: `alias-missing`, `out-of-space`, `extra-missing`; or another run is not over: `locked`.
        OSError: the disk does not answer; retried by the policy.
    """
    return await in_thread(partial(_clean, message, job, current()))


def _clean(message: CleanupLogs, job: Job, settings: Settings, stop: Stop) -> Cleaned:
    check(message.action)
    root = settings.root(message.root)
    _check_permission(message, root)
    with explained(message.root), open_root(message.root, root) as top:
        now_s = time.time()
        born_s = min(job.born, now_s)
        seen = _survey(top, message, born_s - PART_AGE_S, stop)
        youngest_s = min(now_s - QUIET_S, born_s - age_s(root.min_age))
        matched = _choose(seen.matching, message, born_s - message.older_than_s, youngest_s)
        try:
            oldest_ns = _oldest(seen.matching, matched)
            matched += seen.parts
            stats = Counter(matched=len(matched), failed=seen.failed)
            if not message.dry_run:
                _brake(message, root, len(matched), seen.files)
                oldest_ns = min(oldest_ns, _carry_out(top, matched, message, job, stats, stop))
            result = Cleaned(**stats, oldest_left=_iso(oldest_ns), listing=message.listing)
            return result if message.listing is None else _listed(result, matched, message.listing, job.work, settings, stop)
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
    includes, excludes = pattern_of(message.include), pattern_of(message.exclude)
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
        elif includes.match(found.name) and not (message.action != "delete" and found.name.endswith(PACKED)):
            matching.append(found)
            if len(matching) > MAX_MATCHING:
                _release(matching)
                raise Dead(f"more than {MAX_MATCHING} files match; hint: narrow `include`", "too-large")
    return Survey(files, matching, parts, tree.failed)


# --- choose ---------------------------------------------------------------------------------------------------------


def _choose(matching: Sequence[Found], message: CleanupLogs, cutoff_s: float, youngest_s: float) -> list[Found]:
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
        if cutoff_s * 1e9 < found.written_ns <= youngest_s * 1e9:
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


def _carry_out(top: int, matched: Sequence[Found], message: CleanupLogs, job: Job, stats: Counter[str], stop: Stop) -> float:
    """Delete or compress the files, count the outcomes, and return when the oldest that is left was written."""
    oldest_ns = NEVER
    done = 0
    folders = _by_folder(matched)
    try:
        for folder, files in folders.items():
            try:
                with below(top, folder) as place:
                    for number, found in enumerate(files):
                        if number % STOP_EVERY == 0:
                            stop.check()
                        outcome = _handle(place, found, message.action, job.work, stats, stop)
                        stats[outcome] += 1
                        done += 1
                        if done % PROGRESS_EVERY == 0:
                            job.progress(done, len(matched), "files")
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


def _handle(place: int, found: Found, action: Action, work: str, stats: Counter[str], stop: Stop) -> str:
    """Delete or compress one file and return its outcome, a field of `Cleaned`."""
    kind = None if action == "delete" or found.is_part else action
    try:
        freed = compress(place, found, kind, work, stop) if kind else delete(place, found)
    except OSError as error:
        outcome = outcome_of(error)
        if outcome is None:
            raise
        return outcome
    if freed is None:
        return "skipped"
    stats["bytes_freed"] += freed
    return "compressed" if kind else "deleted"


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
        point("cleanup.before-listing")
        out.finish(result)
        point("cleanup.after-listing")
    return result


# --- backup-database ------------------------------------------------------------------------------------------------------


@handler(BackupDatabase, timeout_s=7200, retry=Backoff(base_s=300, cap_s=1800, attempts=4), result_ttl_s=RESULT_TTL_S)
async def backup_database(message: BackupDatabase, job: Job) -> BackedUp:
    """Return when a backup is on the disk, verified, and the older ones that are not kept are gone.

    May be repeated: the folder is named by the job, and one that is there is not made again. After an interrupted run it begins
    again, since a backup shows one moment of the database. What an interrupted run left is removed by the next one.

    Where a backup cannot be verified and the settings name a channel, that hears of it at once, and another job tries again.

    Raises:
        Dead: the job cannot succeed: `tool-missing`, `too-large`, `bad-path`; or `verify-failed` four times.
        Snooze: an operator must act: `alias-missing`, `auth-failed`, `out-of-space`, `extra-missing`; or another backup of the
            same name is not over: `locked`.
        TemporaryFailure, sqlite3.Error, OSError: a failure that may pass, also `verify-failed`; retried by the policy.
    """
    settings = current()
    try:
        return await in_thread(partial(_back_up, message, job, settings), waits=True)
    except NotVerified as error:
        channel = settings.backup(message.backup).channel
        if channel is None:
            raise TemporaryFailure(f"verify-failed: backups.{message.backup}: {error}") from error
        if message.tries == MAX_TRIES:
            raise Dead(f"backups.{message.backup}: {error}", "verify-failed") from error
        alert = SendNotification(
            channel=channel,
            title=f"The backup {message.backup} could not be verified",
            body=f"{_printable(error)}\nTry {message.tries} of {MAX_TRIES}; job {job.id}",
            level="critical",
        )
        job.send(alert, suffix="alert", priority=Priority.CRITICAL)
        job.send(msgspec.structs.replace(message, tries=message.tries + 1), suffix="again", delay_s=AGAIN_S)
        return BackedUp(verified="failed")


def _printable(error: Exception) -> str:
    """Return a text that may stand in a message, whatever the names of tables are."""
    return "".join(each if each.isprintable() else "?" for each in str(error))[:MAX_REASON_CHARS]


def _back_up(message: BackupDatabase, job: Job, settings: Settings, stop: Stop) -> BackedUp:
    check("zstd")
    section = settings.backup(message.backup)
    with opened_shelf(settings, message.backup) as shelf:
        made = shelf.find(job, stop)
        if made is None:
            with shelf.draft(job) as draft:
                made = _make(message, draft, shelf.newest(), job, settings, stop)
                draft.write_manifest(made)
                shelf.publish(job)
        removed = shelf.retire(job, stop)
    return BackedUp(
        folder=f"{section.to}/{name_of(job)}",
        bytes=made.bytes,
        compressed=made.compressed,
        sha256=made.sha256,
        tables=len(made.tables),
        rows=sum(made.tables.values()),
        verified=made.verified,
        seconds=made.seconds,
        removed=removed,
    )


def _make(message: BackupDatabase, draft: Draft, previous: Manifest | None, job: Job, settings: Settings, stop: Stop) -> Manifest:
    """Dump the database into the draft, and return what is known of it once it is verified."""
    began_s = time.monotonic()
    section = settings.backup(message.backup)
    with opened(settings, section.db, stop) as session:
        if isinstance(session, SqliteSession):
            dump = dump_sqlite(session, draft, section.db, job.progress, stop)
        else:
            dump = dump_postgres(session, settings, section, draft, previous, job.progress, stop)
    why, violations = "only asked to list it", 0
    if "list" in (message.verify, section.verify):
        read_back(draft.folder, dump, section.tools, stop)
    elif dump.kind == "sqlite":
        why, violations = "", restore_sqlite(draft.folder, dump, draft.path, job.progress, stop)
    else:
        why = restore_postgres(settings, section, draft.folder, dump, job.work, job.progress, stop)
        if why:
            log.warning("backups.%s is only listed: %s", message.backup, why)
            read_back(draft.folder, dump, section.tools, stop)
    return Manifest(
        backup=message.backup,
        work=job.work,
        born=datetime.fromtimestamp(job.born, UTC),
        label=message.label,
        foreign_key_violations=violations,
        verified="listed" if why else "restored",
        why_listed=why,
        seconds=round(time.monotonic() - began_s, 3),
        **msgspec.structs.asdict(dump),
    )


def verify(path: str) -> str:
    """Check a backup wherever it is, by what its manifest says, and return what was found; without its server, or any settings.

    Raises:
        NotVerified: it is not what it was.
    """
    folder, stop = os.open(path, os.O_RDONLY | os.O_DIRECTORY), Stop()
    try:
        made = read_manifest(folder)
        if made is None:
            raise NotVerified(f"no {MANIFEST} that can be read")
        if made.kind == "sqlite":
            with TemporaryDirectory() as scratch:
                restore_sqlite(folder, made, scratch, lambda done, total, text: None, stop)
        else:
            read_back(folder, made, "", stop)
    finally:
        os.close(folder)
    return f"{made.file}: {'restored' if made.kind == 'sqlite' else 'listed'}, {len(made.tables)} tables, {made.compressed} bytes"


def main(arguments: Sequence[str]) -> int:
    """Run `python -m handlers.maintenance verify FOLDER`, and return its status."""
    if len(arguments) != 2 or arguments[0] != "verify":
        print("usage: python -m handlers.maintenance verify FOLDER", file=sys.stderr)
        return 2
    try:
        print(verify(arguments[1]))
    except (NotVerified, Dead, Snooze, OSError) as error:
        print(f"not verified: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
