"""`jobs list`, `jobs show`: where jobs are now, by bounded reads that say what they looked at. `jobs reopen`: a way out."""

from __future__ import annotations

import argparse
import sys

from runtime.commands.common import clean, inspector, print_json, with_store
from runtime.config import Config
from runtime.errors import ConfigError, StoreError
from runtime.jobs import STREAMS
from runtime.store.doctor import Doctor
from runtime.store.inspector import FoundJob

MAX_LIST = 1_000
LOOK_AT = 10_000
DEAD = "dead"


def listing(config: Config, parsed: argparse.Namespace) -> int:
    """Print the newest jobs of each stream and the next delayed ones."""
    if not 1 <= parsed.n <= MAX_LIST:
        raise ConfigError(f"-n {parsed.n}: from 1 to {MAX_LIST}, please")

    async def look(url: str) -> list[FoundJob]:
        async with inspector(url, config.queue) as found:
            return await found.newest_jobs(parsed.n)

    looked_at = with_store(config, look)
    jobs = [job for job in looked_at if parsed.type in ("", job.type) and parsed.state in ("", job.state)]
    if jobs and not parsed.json:
        print(f"{'ID':34} {'TYPE':24} {'PRIORITY':8} RUN {'STATE':8} WHERE, OR WHEN")
    for job in jobs:
        if parsed.json:
            print_json(job)
        else:
            head = f"{clean(job.id, 34):34} {clean(job.type, 24):24} {job.priority:8} {job.attempt:>3}"
            print(f"{head} {job.state:8} {clean(job.where, 40)}")
    note = f"{len(jobs)} shown of {len(looked_at)} looked at: the newest {parsed.n} of each stream, the next {parsed.n} delayed"
    print(note, file=sys.stderr)
    return 0


def show(config: Config, parsed: argparse.Namespace) -> int:
    """Print all jobs with an id; status 1 when there is none where we looked."""

    async def look(url: str) -> list[FoundJob]:
        async with inspector(url, config.queue) as found:
            return await found.find_job(parsed.id, LOOK_AT)

    jobs = with_store(config, look)
    for job in jobs:
        if parsed.json:
            print_json(job)
            continue
        print(f"{clean(job.id)}\n  {job.state}: {clean(job.where) or '-'} ({clean(job.place)})")
        print(f"  type {clean(job.type)}, priority {job.priority}, attempt {job.attempt}")
        for name, value in job.message.items():
            print(f"  {clean(name)}: {clean(value, 2000)}")
    where = f"delayed jobs, the newest {LOOK_AT:,} entries of each stream, the newest {LOOK_AT:,} dead letters"
    gone = "" if jobs else " (a job that is done leaves nothing behind; `stats` counts it)"
    print(f"{len(jobs)} found{gone}; looked at: {where}", file=sys.stderr)
    return 0 if jobs else 1


def reopen(config: Config, parsed: argparse.Namespace) -> int:
    """Move what is in closed streams to fresh keys; may be stopped and called again. Status 1 when one cannot be opened."""

    async def move(url: str) -> tuple[dict[str, int], dict[str, str]]:
        doctor = Doctor(url, config.queue, "reopen")
        done: dict[str, int] = {}
        failed: dict[str, str] = {}
        try:
            for stream, name in enumerate((*STREAMS, DEAD)):
                try:
                    await _move_all(doctor, stream, name, done)
                except StoreError as error:  # one stream's trouble: the others must not wait for it
                    failed[name] = str(error)
        finally:
            await doctor.close()
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
    return 1 if failed else 0


async def _move_all(doctor: Doctor, stream: int, name: str, done: dict[str, int]) -> None:
    """Note in `done` what is moved. Set aside once at most: who closes a stream again and again must not keep us for ever."""
    moved, left, was_closed = await doctor.reopen(stream)
    if moved or left or was_closed:
        done[name] = moved
    while left:
        moved, left, _ = await doctor.reopen(stream, may_set_aside=False)
        done[name] += moved
