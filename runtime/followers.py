"""Followers are jobs that another one hands on: packed where it says so, and sent in the step in which it is done, only then."""

from __future__ import annotations

import re
import time
from typing import Final

import msgspec

from runtime import logs
from runtime.codec import ID, TRACE
from runtime.errors import BadPayload, ConfigError
from runtime.jobs import QUEUE, Extras, Head, Job, Options, Packed, is_over
from runtime.packing import NO_OPTIONS, Packer, shown

MAX_FOLLOWERS: Final = 100  # of one job, a guess: some 0.5 ms of the server, in one step; what is more is a job that sends
MAX_FOLLOWERS_BYTES: Final = 1 << 20  # of their payloads together, a guess: as much as a chunk that is sent
SUFFIX: Final = re.compile(r"[A-Za-z0-9._-]{1,100}(?![\s\S])")  # behind 26 characters and a colon it makes a job's id
TRACEPARENT_BYTES: Final = 55  # of version 00

_packer: Final = Packer(time.time)


def follow(job: Job, payload: msgspec.Struct, suffix: str, options: Options) -> str:
    """Note that a job hands on another one; see `Job.send`."""
    if suffix and not (type(suffix) is str and SUFFIX.match(suffix)):
        raise BadPayload(f"suffix must be 1 to 100 of [A-Za-z0-9._-], got {shown(suffix)}")
    _check_runs(job)
    followers = job.noted().followers
    number = len(followers) + 1
    while True:
        job_id = f"{job.work}:{suffix or number}"
        packed = _traced(job, _packed(payload, job_id, options))
        check_queue_of(packed)
        _check_bounds(job.noted(), packed)
        # One step: several threads of a handler may be here.
        if followers.setdefault(job_id, packed) is packed:
            try:
                _check_runs(job)  # it may have ended meanwhile, and what it sends be read
            except ConfigError:
                followers.pop(job_id, None)
                raise
            return job_id
        if suffix:
            raise ConfigError(f"a job with the suffix {suffix!r} was sent by this run already")
        number += 1


def check_queue_of(packed: Packed) -> None:
    """Raise ConfigError where a contract sends its jobs to another queue than the one whose job hands this on.

    In a child process no queue is known: its worker asks when the child has answered.
    """
    queue, here = packed.head.queue, QUEUE.get()
    if queue and here and queue != here:
        fields = packed.head.fields
        what = f"{fields[-1]} is of queue {queue}, and what this job hands on stays in its own, {here}"
        raise ConfigError(f"{what}; hint: await a Producer's send in the handler, with job.work as key")


def _check_runs(job: Job) -> None:
    if is_over(job):
        raise ConfigError("this run is over, and sends nothing any more; hint: await all tasks and threads in the handler")


def _packed(payload: msgspec.Struct, job_id: str, options: Options) -> Packed:
    if options != NO_OPTIONS:
        return _packer.pack_with(payload, msgspec.structs.replace(options, id=job_id))
    packed = _packer.pack(payload)  # a third of the time: nothing is to be checked
    head = packed.head
    return Packed(Head(head.stream, 0, job_id, (ID, job_id, *head.fields), head.queue), packed.data)


def _check_bounds(extras: Extras, packed: Packed) -> None:
    packets = list(extras.followers.values()) if extras.followers else ()
    if len(packets) >= MAX_FOLLOWERS:
        raise ConfigError(f"a job must send at most {MAX_FOLLOWERS} others; hint: send one that sends the rest")
    size_bytes = sum(len(other.data) for other in packets) + len(packed.data)
    if size_bytes > MAX_FOLLOWERS_BYTES:
        raise ConfigError(f"what a job sends must have at most {MAX_FOLLOWERS_BYTES} bytes together, got {size_bytes}")


def _traced(job: Job, packed: Packed) -> Packed:
    """Return the message with the span that it is sent in, else with the one of whoever sent the job."""
    ids = logs.trace_ids()
    trace = "-".join(("00", *ids)).encode() if ids is not None else job.trace
    if len(trace) != TRACEPARENT_BYTES:
        return packed
    head = packed.head
    return Packed(Head(head.stream, head.due_ms, head.id, (TRACE, trace, *head.fields), head.queue), packed.data)
