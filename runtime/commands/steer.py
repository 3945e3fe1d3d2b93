"""`jobs cancel`, `jobs now`, `jobs priority`: what people do to one job, wherever it is, or to all that fit."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from runtime.commands.common import clean, flags_of, inspector, print_json, with_store
from runtime.commands.flags import add_verb
from runtime.commands.many import add_choice, add_course, add_states, carry_out, filter_of, is_of_many, print_meant, states_of
from runtime.commands.ordering import add_order_flags, ordered
from runtime.config import Config
from runtime.control import Control
from runtime.errors import ConfigError
from runtime.jobs import STREAMS, SUSPECT
from runtime.leaving import CLEAN, FAILED
from runtime.operating import Verb
from runtime.operations import ALL_STATES, DELAYED, WAITING
from runtime.results import parse
from runtime.settle import CANCELLED_CODE
from runtime.steering import Steered
from runtime.store.base import LOOK_AT
from runtime.store.flow import span
from runtime.store.inspector import DeadLetter, FoundJob

NEWEST: Final = 20  # letters looked at for those just cancelled; a guess: few die in the same moment
WHERE: Final = f"delayed jobs, the newest {LOOK_AT:,} entries of each stream, the newest {LOOK_AT:,} dead letters"
# Answers after which it is as it was ordered.
GOOD: Final[dict[str, tuple[str, ...]]] = {
    "cancel": ("cancelled", "asked", "dead"),
    "now": ("moved", "same"),
    "priority": ("moved", "same"),
}
TEXTS: Final[dict[str, str]] = {
    "cancelled": "is a dead letter now (cancelled)",
    "asked": "worker {holder} has it and was asked to end it, within two seconds: it is a dead letter then (cancelled), or done "
    "where its handler returns all the same",
    "moved now": "is due now",
    "moved priority": "waits with that priority now",
    "same now": "waits for a free worker already",
    "same priority": "has that priority already",
    "held": "is left alone: worker {holder} has it, and what a worker has cannot be moved",
    "suspect": "is left alone: a worker died while it ran, and it waits to be run apart",
    "dead": "is a dead letter already ({holder})",
    "gone": "was there a moment ago, and has moved on at each look: mostly it is done by now",
    "full": "is left alone: 10,000 jobs that run are cancelled at this moment; hint: try again in a while",
}


def add_verbs(verbs: Any) -> None:
    """Add these verbs to those of `jobs`."""
    text = "cancel a job wherever it is: what waits is a dead letter at once, what runs is cut; status 1 where there is none"
    ending = add_verb(verbs, "cancel", cancel, text)
    _add_job(ending)
    add_states(ending, *ALL_STATES)
    _add_job(add_verb(verbs, "now", run_now, "let a delayed job run now; status 1 where there is none, or a worker has it"))
    text = "give a job that waits another priority; status 1 where there is none, or a worker has it"
    again = add_verb(verbs, "priority", set_priority, text)
    _add_job(again)
    again.add_argument("priority", choices=STREAMS, help="its new priority")
    add_states(again, WAITING, DELAYED)


def _add_job(parser: argparse.ArgumentParser) -> None:
    text = "the job's id, or its place, as `jobs show` prints it: high/1732400000000-0, due/order-1"
    parser.add_argument("id", nargs="?", default="", help=text)
    parser.add_argument("--type", default="", help="many: only this job type")
    add_choice(parser, "those that were sent")
    add_course(parser)
    add_order_flags(parser)


def cancel(config: Config, arguments: argparse.Namespace) -> int:
    """Cancel all jobs with an id, or all that fit."""
    if _is_of_many(arguments):
        return _to_many(config, arguments, "cancel", states=states_of(arguments))
    return _steer(config, arguments, "cancel", lambda control: control.cancel(arguments.id, reason=arguments.reason))


def run_now(config: Config, arguments: argparse.Namespace) -> int:
    """Let all delayed jobs with an id run now, or all that fit."""
    if _is_of_many(arguments):
        return _to_many(config, arguments, "now")
    return _steer(config, arguments, "now", lambda control: control.run_now(arguments.id, reason=arguments.reason))


def set_priority(config: Config, arguments: argparse.Namespace) -> int:
    """Give all jobs with an id another priority, or all that fit."""
    if _is_of_many(arguments):
        return _to_many(config, arguments, "priority", priority=arguments.priority, states=states_of(arguments))

    async def work(control: Control) -> list[Steered]:
        return await control.set_priority(arguments.id, arguments.priority, reason=arguments.reason)

    return _steer(config, arguments, "priority", work)


def _is_of_many(arguments: argparse.Namespace) -> bool:
    is_many = is_of_many(arguments, [arguments.id] if arguments.id else [], "a job")
    if arguments.dry_run and not is_many:
        raise ConfigError("--dry-run is about many; hint: `jobs show` shows one")
    return is_many


def _to_many(config: Config, arguments: argparse.Namespace, verb: Verb, **more: Any) -> int:
    async def show(url: str, places: list[str]) -> None:
        async with inspector(url, config.queue) as found:
            for job in await found.jobs_at([place.replace(" ", "/", 1) for place in places]):
                print_json(job) if arguments.json else print(_line(job))

    if arguments.dry_run:
        return print_meant(config, verb, filter_of(arguments), show, **more)
    return carry_out(config, arguments, verb, arguments.reason, **more)


def _steer(config: Config, arguments: argparse.Namespace, verb: str, work: Callable[[Control], Awaitable[list[Steered]]]) -> int:
    steered = ordered(config, work)
    for one in steered:
        if arguments.json:
            print_json(one)
        else:
            print(f"{clean(one.id)} ({clean(one.type) or '-'}) {_text(verb, one)}")
    if not steered:
        print(f"{_nothing(config, arguments.id)}; looked at: {WHERE}", file=sys.stderr)
    if verb == "cancel" and not arguments.json:
        _tell_back(config, [one for one in steered if one.answer == "cancelled"])
    return CLEAN if steered and all(one.answer in GOOD[verb] for one in steered) else FAILED


def _text(verb: str, one: Steered) -> str:
    is_suspect = one.answer == "held" and one.holder == SUSPECT
    name = "suspect" if is_suspect else f"{one.answer} {verb}" if f"{one.answer} {verb}" in TEXTS else one.answer
    return TEXTS[name].format(holder=clean(one.holder, 100))


def _line(job: FoundJob) -> str:
    age = f"sent {span(max(0, int(time.time() * 1000) - job.born_ms))} ago" if job.born_ms else ""
    head = f"{clean(job.place, 34):34} {clean(job.id, 34):34} {clean(job.type or '-', 24):24}"
    return f"{head} {job.state:8} {age:16} {clean(job.where, 40)}".rstrip()


def _nothing(config: Config, job_id: str) -> str:
    """Return in words that there is no such job, and what became of it where its result says so."""

    async def read(url: str) -> str:
        async with inspector(url, config.queue) as found:
            return await found.result_of(job_id)

    result = None if "/" in job_id else parse(with_store(config, read).encode())
    became = f"it is {result.state}, its result says; hint: `jobs show` prints it" if result else "it is done, or never was"
    return f"no job {clean(job_id, 200)}: {became}"


def _tell_back(config: Config, cancelled: Sequence[Steered]) -> None:
    """Print how jobs that were cancelled are sent back, by the places of their letters where these are among the newest."""
    if not cancelled:
        return

    async def read(url: str) -> list[DeadLetter]:
        async with inspector(url, config.queue) as found:
            return await found.dead_letters(NEWEST)

    ids = {one.id for one in cancelled}
    places = [one.letter for one in with_store(config, read) if one.id in ids and one.reason == CANCELLED_CODE]
    known = f"dead replay {' '.join(places)}{flags_of(config)}"
    how = known if places else f"dead list --reason cancelled{flags_of(config)}, then dead replay"
    print(f"send it back: python -m runtime {how}", file=sys.stderr)
