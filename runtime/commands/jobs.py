"""`jobs list`, `jobs show`: where jobs are now, by bounded reads that say how much they read. `jobs reopen` opens streams.

`jobs cancel`, `now` and `priority` are in steer.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Final

from runtime.codec import JOB_ID
from runtime.commands import story
from runtime.commands.common import clean, control, inspector, print_json, with_store
from runtime.commands.flags import JSON_LINES, add_texts, add_verb, check_between
from runtime.commands.steer import add_verbs
from runtime.commands.whereabouts import when_in_words
from runtime.config import Config
from runtime.errors import ConfigError, StoreError
from runtime.jobs import STREAMS
from runtime.leaving import CLEAN, FAILED
from runtime.store.base import LOOK_AT
from runtime.store.control import ControlStore
from runtime.store.finder import places_named
from runtime.store.inspector import FoundJob

MAX_LIST: Final = 1_000  # of each stream; a guess
DEAD: Final = "dead"
WHERE: Final = (
    f"delayed jobs, the newest {LOOK_AT:,} entries of each stream, the newest {LOOK_AT:,} dead letters, "
    "and what is written of ended runs: failures, and a few that were done"
)
HINT: Final = "without an `id` a job is called PRIORITY-ENTRY; `jobs show --key KEY` shows which job has a key"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "Jobs that wait, run, are parked or delayed. A job that is done leaves nothing behind: `stats` counts those.",
        "python -m runtime jobs list --state running",
        "python -m runtime jobs show high-1732400000000-0",
        "python -m runtime jobs show 1732400000000-0",
        "python -m runtime jobs show --key receipt-7",
        "python -m runtime jobs cancel order-7 --reason 'ordered twice'",
        "python -m runtime jobs priority order-8 high",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    listing = add_verb(verbs, "list", print_list, "list the newest jobs of each stream and the next delayed ones")
    text = f"how many of each to look at (1 to {MAX_LIST}; default 20)"
    listing.add_argument("-n", type=int, default=20, metavar="N", help=text)
    listing.add_argument("--type", default="", help="only this job type")
    listing.add_argument("--state", default="", choices=["waiting", "running", "parked", "delayed"], help="only this state")
    listing.add_argument("--json", action="store_true", help=JSON_LINES)

    text = "show all that is known of the jobs with an id, wherever they are, and the result of one that is over while it is kept"
    show = add_verb(verbs, "show", print_one, f"{text}; status 1 when that is nothing")
    show.add_argument(
        "id", nargs="?", default="", help="the job's id, the entry that XADD answered (1732400000000-0), or its place"
    )
    show.add_argument("--key", default="", help="the job that has this key, in place of one by its id")
    show.add_argument("--follow", action="store_true", help="show it again when it changes, until it has left the queue")
    show.add_argument("--json", action="store_true", help=JSON_LINES)

    add_verbs(verbs)

    text = "move jobs out of a stream that an id far ahead has closed (doctor tells); jobs that run at that moment run again"
    add_verb(verbs, "reopen", reopen, text)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return int(arguments.verb(config, arguments))


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print the newest jobs of each stream and the next delayed ones."""
    check_between("-n", arguments.n, 1, MAX_LIST)

    async def read(url: str) -> list[FoundJob]:
        async with inspector(url, config.queue) as found:
            return await story.with_reasons(found, await found.newest_jobs(arguments.n))

    looked_at = with_store(config, read)
    jobs = [job for job in looked_at if arguments.type in ("", job.type) and arguments.state in ("", job.state)]
    if jobs and not arguments.json:
        print(f"{'ID':34} {'TYPE':24} {'PRIORITY':8} RUN {'STATE':8} WHERE, OR WHEN")
    now_ms = int(time.time() * 1000)
    for job in jobs:
        if arguments.json:
            print_json(job)
        else:
            head = f"{clean(job.id, 34):34} {clean(job.type, 24):24} {job.priority:8} {job.attempt:>3}"
            error = f", failed of {clean(job.error, 80)}" if job.error else ""
            print(f"{head} {job.state:8} {clean(job.waits or when_in_words(job, now_ms), 80)}{error}")
    which = f"the newest {arguments.n} of each stream, the next {arguments.n} delayed"
    print(f"{len(jobs)} shown of {len(looked_at)} looked at: {which}", file=sys.stderr)
    return 0


def print_one(config: Config, arguments: argparse.Namespace) -> int:
    """Print what is known of the jobs with an id; status 1 when there is nothing, as far as was looked."""
    if bool(arguments.id) == bool(arguments.key):
        raise ConfigError("`jobs show` needs a job's id, or --key KEY; hint: `jobs list` shows ids")
    if arguments.follow and arguments.key:
        raise ConfigError("--follow needs the job's id; hint: `jobs show --key` prints it")
    show = print_story if arguments.json else story.repaint

    async def read(url: str) -> story.Story:
        if arguments.follow:
            return await story.follow(url, config.queue, arguments.id, show)
        async with inspector(url, config.queue) as found:
            return await story.read(found, arguments.id, arguments.key)

    told = with_store(config, read)
    if not arguments.follow and told.is_known:
        print_story(told) if arguments.json else print("\n".join(story.lines_of(told)))
    if not told.is_known:
        print(_nothing(arguments.id, arguments.key), file=sys.stderr)
        return FAILED
    print(f"{len(told.jobs)} found{'' if told.jobs else ' in the queue'}; looked at: {WHERE}", file=sys.stderr)
    return CLEAN


def _nothing(wanted: str, key: str) -> str:
    """Return what it may mean that nothing is known of a job."""
    if key:
        return f"no job that lives has the key {clean(key, 200)}: its job is done or dead, or was never sent"
    if not JOB_ID.match(wanted.encode(errors="replace")) and not places_named(wanted):
        return "no job has such an id: id must be 1 to 128 of [A-Za-z0-9._:-]"
    became = "done, dropped as a duplicate of a job with its key, purged, or never sent"
    return f"{clean(wanted, 200)} is not in the queue: {became}; looked at: {WHERE}; hint: {HINT}"


def print_story(told: story.Story) -> None:
    """Print each job as a line of JSON, then what attempts have said and what was answered, where there is any."""
    for job in told.jobs:
        print_json(job)
    if told.attempts or told.result or told.last:
        print_json({"id": told.id, "attempts": told.attempts, "result": told.result, "last": told.last})


def reopen(config: Config, arguments: argparse.Namespace) -> int:
    """Move what is in closed streams to fresh keys; status 1 when one cannot be opened. It may be stopped and called again."""

    async def move(url: str) -> tuple[dict[str, int], dict[str, str]]:
        done: dict[str, int] = {}
        failed: dict[str, str] = {}
        async with control(url, config.queue) as writes:
            for stream, name in enumerate((*STREAMS, DEAD)):
                try:
                    await _move_all(writes, stream, name, done)
                except StoreError as error:  # of this stream alone: the others are opened all the same
                    failed[name] = str(error)
        return done, failed

    done, failed = with_store(config, move)
    for name, total in done.items():
        if name == DEAD:
            print(f"{name}: {total} letters moved to a fresh stream, where each has another place: see `dead list`")
        else:
            print(f"{name}: {total} jobs moved to a fresh stream")
    for name, error in failed.items():
        print(f"{name}: {clean(error)}; what is left is where it was: call again", file=sys.stderr)
    if not done and not failed:
        print("no stream is closed", file=sys.stderr)
    return FAILED if failed else CLEAN


async def _move_all(writes: ControlStore, stream: int, name: str, done: dict[str, int]) -> None:
    """Reopen one stream, and note in `done` how many were moved.

    It is set aside once at most: while a producer closes the fresh stream again and again, this would not end.
    """
    moved, left, was_closed = await writes.reopen(stream)
    if moved or left or was_closed:
        done[name] = moved
    while left:
        moved, left, _ = await writes.reopen(stream, may_set_aside=False)
        done[name] += moved
