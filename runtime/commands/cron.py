"""`cron`: schedules, of the code and of Redis: list, show, add, edit, pause, resume, run now, backfill, remove."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

import msgspec

from runtime.commands.common import clean, find_handlers, print_json, use_settings, with_store
from runtime.commands.flags import JSON_LINES, QUEUE, add_texts, add_verb, check_between
from runtime.commands.ordering import add_order_flags, tell
from runtime.config import Config
from runtime.control import MAX_BACKFILL, Control
from runtime.errors import BadPayload, ConfigError, UnknownType
from runtime.jobs import Priority
from runtime.leaving import CLEAN, FAILED
from runtime.packing import as_fetched
from runtime.registry import Found
from runtime.schedules import InForce, Row, Schedule, Schedules

SHOWN: Final = 5  # next times; a guess: a week's worth of most schedules
MARKS: Final = 12  # of the last ticks in the list; a guess: two hours of most that fire every ten minutes
ELSEWHERE: Final = "of code that is not here (--handlers, --handlers-config)"
SETTINGS: Final = (*QUEUE, "handlers_config")  # some of the shipped handlers' schedules are made from their settings
PRIORITIES: Final = [priority.name.lower() for priority in Priority]
T = TypeVar("T")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "Schedules: those in the modules of handlers, which may be overridden here, and those that were added here.",
        "python -m runtime cron list",
        """python -m runtime cron add nightly cleanup-logs '{"root": "app"}' --when '0 3 * * *' --tz Europe/Berlin""",
        "python -m runtime cron edit nightly --when '30 3 * * *'",
        "python -m runtime cron backfill nightly --from 2026-11-01 --to 2026-11-08 --dry-run",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    listing = add_verb(verbs, "list", print_list, "list all schedules", SETTINGS)
    listing.add_argument("--json", action="store_true", help=JSON_LINES)
    show = _verb(
        verbs, "show", print_one, "show a schedule, its next times and what its zone's clocks do to them, its last ticks"
    )
    show.add_argument("-n", type=int, default=SHOWN, metavar="N", help=f"how many next times (1 to 100; default {SHOWN})")
    show.add_argument("--json", action="store_true", help="print one line of JSON")
    add = _verb(verbs, "add", add_one, "add a schedule, which stands in Redis alone")
    add.add_argument("type", help="wire name of the contract")
    add.add_argument("data", nargs="?", default="{}", metavar="JSON", help="the payload of each job")
    _add_members(add)
    edit = _verb(verbs, "edit", edit_one, "change a schedule; of one from code, what is given overrides the code")
    edit.add_argument("--data", metavar="JSON", help="the payload of each job")
    _add_members(edit)
    for name, call, text in (
        ("pause", pause, "let it fire nothing until it is resumed; what it would have fired is not made up for"),
        ("resume", resume, "let it fire again, from now on"),
        (
            "remove",
            remove,
            "remove a schedule that was added here; or what overrides one from code, which goes on as the code says",
        ),
    ):
        add_order_flags(_verb(verbs, name, call, text))
    now = _verb(verbs, "run", run_now, "send its job now, beside its ticks")
    now.add_argument("--json", action="store_true", help="print one line of JSON")
    fill = _verb(verbs, "backfill", backfill, f"send the jobs of its ticks in a time again, at most {MAX_BACKFILL:,}")
    text = "a time such as 2026-11-01 or 2026-11-01T06:00; in the schedule's zone, where it names none"
    fill.add_argument("--from", dest="begin", required=True, metavar="WHEN", help=f"the first tick, {text}")
    fill.add_argument("--to", dest="end", required=True, metavar="WHEN", help="before this time, which may not lie ahead")
    fill.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")
    fill.add_argument("--json", action="store_true", help=JSON_LINES)


def _verb(verbs: Any, name: str, call: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser = add_verb(verbs, name, call, text, SETTINGS)
    parser.add_argument("name", help="name of the schedule")
    return parser


def _add_members(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--when", metavar="EXPRESSION", help="cron expression of 5 fields, or of 6 with seconds first, or @daily, …"
    )
    parser.add_argument("--every", dest="every_s", type=float, metavar="SECONDS", help="in its place: an interval")
    parser.add_argument("--tz", metavar="ZONE", help="zone of the expression (default UTC)")
    parser.add_argument("--missed", choices=["latest", "skip", "all"], help="what becomes of ticks more than a minute old")
    parser.add_argument("--cap", type=int, metavar="N", help="how many of them at most, with `all` (1 to 100)")
    parser.add_argument("--overlap", choices=["allow", "skip"], help="skip: no tick while the job of one before lives")
    parser.add_argument("--jitter", dest="jitter_s", type=float, metavar="SECONDS", help="fire later by a part of it")
    text = "after so many seconds a job is not started any more; 0 for any time"
    parser.add_argument("--expires", dest="expires_s", type=float, metavar="SECONDS", help=text)
    parser.add_argument("--priority", choices=PRIORITIES, help="default: the contract's")
    add_order_flags(parser)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    use_settings(config)
    return int(arguments.verb(config, arguments))


# --- looking -----------------------------------------------------------------------------------------------------------------


def _ask(config: Config, found: Found, work: Callable[[Control], Awaitable[T]]) -> T:
    """Return what `work` does with the Control of the queue in force, which knows the schedules of the modules."""

    async def run(url: str) -> T:
        async with Control(url, config.queue, schedules=found.schedules.values()) as control:
            return await work(control)

    return with_store(config, run)


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print all schedules; status 1 when one cannot be read."""
    known = _ask(config, find_handlers(config), Control.schedules)
    told = [_told(known, name, 1) for name in sorted(known.in_force)]
    if (told or known.elsewhere) and not arguments.json:
        print(f"{'NAME':24} {'TYPE':20} {'NEXT':20} {'LAST':12} WHEN")
    for one in told:
        if arguments.json:
            print_json(one)
        else:
            next_one = "paused" if one["paused"] else (one["next"] or ["never"])[0][:19].replace("T", " ")
            last = _marks(known.in_force[one["name"]].row)
            print(f"{clean(one['name'], 24):24} {clean(one['type'], 20):20} {next_one:20} {last:12} {one['words']}")
    for reason in known.unreadable.values():
        print(clean(reason), file=sys.stderr)
    for name, other in known.elsewhere.items():
        if not arguments.json:
            print(f"{clean(name, 24):24} {'-':20} {'paused' if other.is_paused else '-':20} {_marks(other.row):12} {ELSEWHERE}")
    print(f"{len(known.in_force)} in force here, {len(known.elsewhere)} elsewhere", file=sys.stderr)
    return FAILED if known.unreadable else CLEAN


def _marks(row: Row | None) -> str:
    return "".join(tick.lstrip("0123456789")[:1] for tick in (row.ticks[-MARKS:] if row else ()))


def print_one(config: Config, arguments: argparse.Namespace) -> int:
    """Print a schedule, its next times and its last ticks."""
    check_between("-n", arguments.n, 1, 100)
    known = _ask(config, find_handlers(config), Control.schedules)
    known.named(arguments.name)
    told = _told(known, arguments.name, arguments.n)
    if arguments.json:
        print_json(told)
        return CLEAN
    print(f"{told['name']}: {told['words']}{', paused' if told['paused'] else ''} (from {told['source']})")
    print(f"  type {told['type']}, priority {told['priority']}, missed {told['missed']}, overlap {told['overlap']}")
    for member in ("jitter_s", "expires_s"):
        if told[member]:
            print(f"  {member}: {told[member]:g}")
    print(f"  payload {clean(told['data'], 200)}")
    for at in told["next"]:
        print(f"  next {at}")
    for note in told["notes"]:
        print(f"  note: {note}")
    for tick in told["ticks"]:
        print(f"  {_tick_in_words(tick)}")
    if not told["is_ruling"]:
        print("  another definition rules in the queue, or no worker has seen this one yet")
    return CLEAN


def _told(known: Schedules, name: str, n: int) -> dict[str, Any]:
    one: InForce = known.in_force[name]
    definition, row, zone = one.definition, one.row, ZoneInfo(one.definition.times.zone)
    settings = definition.settings
    return {
        "name": name,
        "source": one.source,
        "words": definition.times.words(),
        **{member: getattr(settings, member) for member in settings.__struct_fields__ if member != "data"},
        "priority": PRIORITIES[settings.priority - 1],
        "data": bytes(settings.data).decode(errors="replace"),
        "offset_ms": definition.offset_ms,
        "revision": definition.revision,
        "next": [_in_zone(at, zone) for at in definition.fires_after(known.now_ms, n)],
        "notes": definition.times.notes(known.now_ms, n),
        "ticks": row.ticks if row else [],
        "last_ms": row.last_ms if row else None,
        "is_ruling": one.is_ruling,
    }


def _in_zone(at_ms: int, zone: ZoneInfo) -> str:
    return datetime.fromtimestamp(at_ms / 1000, zone).isoformat(timespec="seconds")


def _tick_in_words(tick: str) -> str:
    digits = tick[: len(tick) - len(tick.lstrip("0123456789"))]
    what = tick[len(digits) :]
    at = datetime.fromtimestamp(int(digits or 0) / 1000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    words = {"f": "fired", "s": "skipped: the job of one before lived", "p": "paused"}
    return f"{at} {words.get(what, f'{what[1:]} late ones were left out' if what.startswith('m') else what)}"


# --- changing ----------------------------------------------------------------------------------------------------------------


def add_one(config: Config, arguments: argparse.Namespace) -> int:
    """Add a schedule."""
    found, members = find_handlers(config), _members(arguments)
    message = _payload(config, found, arguments.type, arguments.data)
    schedule = Schedule(arguments.name, members.pop("when", ""), message, **members)
    change = partial(Control.add_schedule, schedule=schedule, reason=arguments.reason)
    return _changed(config, found, arguments, change, "added", f"cron remove {shlex.quote(arguments.name)}")


def edit_one(config: Config, arguments: argparse.Namespace) -> int:
    """Change members of a schedule."""
    found, given = find_handlers(config), _members(arguments)
    if not given and arguments.data is None:
        raise ConfigError("nothing to change is given; hint: cron edit --help")

    async def edit(control: Control) -> bool:
        if arguments.data is not None:
            of_type = (await control.schedules()).named(arguments.name).settings.type
            given["message"] = _payload(config, found, of_type, arguments.data)
        return await control.edit_schedule(arguments.name, **given, reason=arguments.reason)

    return _changed(config, found, arguments, edit, "changed")


def pause(config: Config, arguments: argparse.Namespace) -> int:
    """Let a schedule fire nothing."""
    return _order(config, arguments, Control.pause_schedule, "paused until resumed", f"cron resume {shlex.quote(arguments.name)}")


def resume(config: Config, arguments: argparse.Namespace) -> int:
    """Let a schedule fire again."""
    return _order(config, arguments, Control.resume_schedule, "goes on")


def remove(config: Config, arguments: argparse.Namespace) -> int:
    """Remove a schedule from Redis."""
    return _order(config, arguments, Control.remove_schedule, "removed")


def _order(config: Config, arguments: argparse.Namespace, verb: Callable[..., Awaitable[bool]], said: str, back: str = "") -> int:
    change = partial(verb, name=arguments.name, reason=arguments.reason)
    return _changed(config, find_handlers(config), arguments, change, said, back)


def _changed(
    config: Config,
    found: Found,
    arguments: argparse.Namespace,
    change: Callable[[Control], Awaitable[bool]],
    said: str,
    back: str = "",
) -> int:
    changed = [arguments.name] if _ask(config, found, change) else []
    tell(config, arguments, [arguments.name], changed, said, "was so already", back)
    return CLEAN


def _members(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of a schedule."""
    names = ("when", "every_s", "tz", "missed", "cap", "overlap", "jitter_s", "expires_s")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.priority:
        given["priority"] = Priority[arguments.priority.upper()]
    if given.get("expires_s") == 0:
        given["expires_s"] = None
    return given


def _payload(config: Config, found: Found, type_name: str, data: str) -> msgspec.Struct:
    """Return the payload of a type.

    Raises:
        UnknownType: no module of this process has it.
        BadPayload: a worker would refuse the payload.
    """
    text = type_name.encode(errors="replace")
    handler = found.registry.get(text)
    if handler is None:
        raise UnknownType(f"no contract {type_name!r} in {config.handlers} (--handlers names the modules)")
    try:
        return handler.decode(as_fetched(handler.contract, data.encode(errors="surrogateescape")))
    except BadPayload as error:
        raise BadPayload(f"payload of {type_name}: {error}") from None


# --- sending -----------------------------------------------------------------------------------------------------------------


def run_now(config: Config, arguments: argparse.Namespace) -> int:
    """Send the job of a schedule now; status 1 where one of its jobs lives and it is to overlap with none."""
    sent = _ask(config, find_handlers(config), lambda control: control.run_schedule(arguments.name))
    if arguments.json:
        print_json({"id": sent.id, "new": sent.new})
    elif sent.new:
        print(sent.id)
    else:
        print("a job of it lives: not sent", file=sys.stderr)
    return CLEAN if sent.new else FAILED


def backfill(config: Config, arguments: argparse.Namespace) -> int:
    """Send the jobs of the ticks in a time, with the ids that they had or would have had."""
    name, is_dry_run = arguments.name, arguments.dry_run
    begin, end = _time("--from", arguments.begin), _time("--to", arguments.end)
    found = find_handlers(config)
    ticks = _ask(config, found, lambda control: control.backfill_schedule(name, begin, end, is_dry_run=is_dry_run))
    for tick in ticks if is_dry_run or arguments.json else ():
        job_id, at = f"cron:{name}:{round(tick.timestamp() * 1000)}", tick.isoformat(timespec="seconds")
        if arguments.json:
            print_json({"id": job_id, "tick": at, "sent": not is_dry_run})
        else:
            print(job_id, at)
    print(
        f"{len(ticks)} {'would be ' if is_dry_run else ''}sent", file=sys.stderr if is_dry_run or arguments.json else sys.stdout
    )
    return CLEAN


def _time(flag: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{flag} {text[:40]!r}: must be a time such as 2026-11-01 or 2026-11-01T06:00+01:00") from None
