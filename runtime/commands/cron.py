"""`cron`: schedules, of the code and of Redis: list, show, add, edit, pause, resume, run now, backfill, remove."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from zoneinfo import ZoneInfo

import msgspec

from runtime.codec import header
from runtime.commands.common import clean, control, find_handlers, print_json, with_store
from runtime.commands.flags import add_texts, add_verb, check_between
from runtime.config import Config
from runtime.control import who
from runtime.errors import BadPayload, ConfigError, UnknownType
from runtime.jobs import PLAIN, Job, Priority
from runtime.leaving import CLEAN, FAILED
from runtime.producer import Producer, Sent
from runtime.registry import Found
from runtime.schedules import Definition, Row, as_stored, merge, read_row, stored_members
from runtime.sender import CHUNK_BYTES, CHUNK_MESSAGES, Head, Packed
from runtime.store.control import ChangedMeanwhile

SHOWN: Final = 5  # next times; a guess: a week's worth of most schedules
MAX_BACKFILL: Final = 1000  # ticks of a call; a guess: who wants more, splits it
TRIES: Final = 3  # a guess: two people that change one schedule at once
PRIORITIES: Final = [priority.name.lower() for priority in Priority]


class Known(msgspec.Struct):
    """All that is known here of schedules: of the code, in force, what cannot be read, what stands in Redis, what was fired."""

    code: dict[str, Definition]
    found: dict[str, Definition]
    unreadable: dict[str, str]
    stored: dict[str, str]
    rows: dict[str, Row | None]
    now_ms: int

    def named(self, name: str) -> Definition:
        """Return a schedule in force.

        Raises:
            ConfigError: there is none of this name, or it cannot be read.
        """
        if name in self.unreadable:
            raise ConfigError(f"{self.unreadable[name]}; hint: cron remove {name}")
        if name not in self.found:
            raise ConfigError(f"no schedule {name!r}; there are {', '.join(sorted(self.found)) or 'none'} (--handlers, --queue)")
        return self.found[name]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verbs and their flags."""
    add_texts(
        parser,
        "Schedules: those in the modules of handlers, which may be overridden here, and those that were added here.",
        "python -m runtime cron list",
        """python -m runtime cron add nightly clean-logs '{"root": "app"}' --when '0 3 * * *' --tz Europe/Berlin""",
        "python -m runtime cron edit nightly --when '30 3 * * *'",
        "python -m runtime cron backfill nightly --from 2026-11-01 --to 2026-11-08 --dry-run",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    add_verb(verbs, "list", print_list, "list all schedules").add_argument("--json", action="store_true", help="print JSON lines")
    show = _verb(
        verbs, "show", print_one, "show a schedule, its next times and what its zone's clocks do to them, its last ticks"
    )
    show.add_argument("-n", type=int, default=SHOWN, metavar="N", help=f"how many next times (1 to 100; default {SHOWN})")
    show.add_argument("--json", action="store_true", help="print JSON")
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
        _add_reason(_verb(verbs, name, call, text))
    now = _verb(verbs, "run", run_now, "send its job now, beside its ticks")
    now.add_argument("--json", action="store_true", help="print JSON")
    fill = _verb(verbs, "backfill", backfill, f"send the jobs of its ticks in a time again, at most {MAX_BACKFILL:,}")
    text = "a time such as 2026-11-01 or 2026-11-01T06:00; in the schedule's zone, where it names none"
    fill.add_argument("--from", dest="begin", required=True, metavar="WHEN", help=f"the first tick, {text}")
    fill.add_argument("--to", dest="end", required=True, metavar="WHEN", help="before this time, which may not lie ahead")
    fill.add_argument("--dry-run", action="store_true", help="print what would be sent, and send nothing")


def _verb(verbs: Any, name: str, call: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser = add_verb(verbs, name, call, text)
    parser.add_argument("name", help="name of the schedule")
    return parser


def _add_reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", default="", help="why, for the audit")


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
    _add_reason(parser)


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Run the verb that was asked for."""
    return int(arguments.verb(config, arguments))


# --- looking -----------------------------------------------------------------------------------------------------------------


async def _known(store: Any, found: Found) -> Known:
    stored, rows, now_ms = await store.schedules()
    code = {name: schedule.definition for name, schedule in found.schedules.items()}
    definitions, unreadable = merge(code, stored)
    return Known(code, definitions, unreadable, stored, {name: read_row(text) for name, text in rows.items()}, now_ms)


def _look(config: Config) -> Known:
    found = find_handlers(config)

    async def read(url: str) -> Known:
        async with control(url, config.queue) as store:
            return await _known(store, found)

    return with_store(config, read)


def print_list(config: Config, arguments: argparse.Namespace) -> int:
    """Print all schedules; status 1 when one cannot be read."""
    known = _look(config)
    told = [_told(known, name, 1) for name in sorted(known.found)]
    if told and not arguments.json:
        print(f"{'NAME':24} {'TYPE':20} {'NEXT':20} {'LAST':12} WHEN")
    for one in told:
        if arguments.json:
            print_json(one)
        else:
            next_one = "paused" if one["paused"] else (one["next"] or ["never"])[0][:19].replace("T", " ")
            last = "".join(tick.lstrip("0123456789")[0] for tick in one["ticks"][-12:])
            print(f"{one['name']:24.24} {one['type']:20.20} {next_one:20} {last:12} {one['words']}")
    for reason in known.unreadable.values():
        print(clean(reason), file=sys.stderr)
    others = sorted(set(known.stored) - set(known.found) - set(known.unreadable))
    if others:
        print(f"overridden, and not in {config.handlers}: {clean(', '.join(others))}", file=sys.stderr)
    return FAILED if known.unreadable else CLEAN


def print_one(config: Config, arguments: argparse.Namespace) -> int:
    """Print a schedule, its next times and its last ticks."""
    check_between("-n", arguments.n, 1, 100)
    known = _look(config)
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


def _told(known: Known, name: str, n: int) -> dict[str, Any]:
    definition = known.found[name]
    settings, row, zone = definition.settings, known.rows.get(name), ZoneInfo(definition.times.zone)
    source = "code, overridden here" if name in known.stored and name in known.code else "code" if name in known.code else "Redis"
    is_whole = "type" in stored_members(known.stored.get(name, ""))[1]
    return {
        "name": name,
        "source": "Redis" if is_whole else source,
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
        "is_ruling": row is not None and row.whole_hash == definition.whole_hash,
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
    found = find_handlers(config)
    contract = _check_payload(config, found, arguments.type, arguments.data)
    members = _members(arguments) | {
        "type": contract.type,
        "version": contract.version,
        "data": msgspec.Raw(arguments.data.encode()),
    }
    members = {"priority": contract.priority.value} | members

    def change(known: Known) -> dict[str, Any]:
        if arguments.name in known.found or arguments.name in known.unreadable:
            raise ConfigError(f"there is a schedule {arguments.name!r}; hint: cron edit")
        return members

    return _change(config, found, arguments, change)


def edit_one(config: Config, arguments: argparse.Namespace) -> int:
    """Change members of a schedule."""
    found, given = find_handlers(config), _members(arguments)
    if arguments.data is not None:
        given["data"] = msgspec.Raw(arguments.data.encode())
    if not given:
        raise ConfigError("nothing to change is given; hint: cron edit --help")

    def change(known: Known) -> dict[str, Any]:
        definition = known.named(arguments.name)
        if arguments.data is not None:
            _check_payload(config, found, definition.settings.type, arguments.data)
        return stored_members(known.stored.get(arguments.name, ""))[1] | given

    return _change(config, found, arguments, change)


def pause(config: Config, arguments: argparse.Namespace) -> int:
    """Let a schedule fire nothing."""
    return _set_paused(config, arguments, True)


def resume(config: Config, arguments: argparse.Namespace) -> int:
    """Let a schedule fire again."""
    return _set_paused(config, arguments, False)


def _set_paused(config: Config, arguments: argparse.Namespace, is_paused: bool) -> int:
    def change(known: Known) -> dict[str, Any]:
        if known.named(arguments.name).settings.paused == is_paused:
            return {}
        return stored_members(known.stored.get(arguments.name, ""))[1] | {"paused": is_paused}

    return _change(config, find_handlers(config), arguments, change)


def remove(config: Config, arguments: argparse.Namespace) -> int:
    """Remove a schedule from Redis."""

    def change(known: Known) -> None:
        if arguments.name not in known.stored:
            is_code = arguments.name in known.code
            raise ConfigError(f"no schedule {arguments.name!r} in Redis{'; it is one of the code: pause it' if is_code else ''}")

    return _change(config, find_handlers(config), arguments, change)


def _members(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of a schedule; one of the two ways to say when takes the place of the other."""
    names = ("when", "every_s", "tz", "missed", "cap", "overlap", "jitter_s", "expires_s")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.priority:
        given["priority"] = PRIORITIES.index(arguments.priority) + 1
    if given.get("expires_s") == 0:
        given["expires_s"] = None
    if "when" in given and "every_s" not in given:
        given["every_s"] = None
    elif "every_s" in given and "when" not in given:
        given["when"] = ""
    return given


def _check_payload(config: Config, found: Found, type_name: str, data: str) -> Any:
    """Return the contract of a type.

    Raises:
        UnknownType: no module of this process has it.
        BadPayload: a worker would refuse the payload.
    """
    handler = found.registry.get(type_name.encode())
    if handler is None:
        raise UnknownType(f"no contract {type_name!r} in {config.handlers} (--handlers names the modules)")
    try:
        handler.decode(Job(0, b"0-0", 1, "", 0.0, type_name.encode(), data.encode(), PLAIN, 0))
    except BadPayload as error:
        raise BadPayload(f"payload of {type_name}: {error}") from None
    return handler.contract


def _raw(members: Mapping[str, Any], name: str) -> bytes:
    return bytes(members[name]) if name in members else b""


def _change(
    config: Config, found: Found, arguments: argparse.Namespace, change: Callable[[Known], Mapping[str, Any] | None]
) -> int:
    """Write what `change` makes of what stands there: members, none where nothing is to be done, None where all is to go."""
    name: str = arguments.name

    async def write(url: str) -> bool:
        async with control(url, config.queue) as store:
            for tries in range(TRIES):
                known = await _known(store, found)
                members = change(known)
                revision, before = stored_members(known.stored.get(name, ""))
                if members is None and name not in known.code:
                    operation = ("drop", f"cron:{name}", str(revision))
                elif members is not None and not members:
                    return False
                else:
                    # Of one from code an empty object stays: its revision makes a new definition of it, which rules at once.
                    text = as_stored(dict(members or {}))
                    _, unreadable = merge(known.code, {name: f"{revision} {text}"})
                    if unreadable:
                        raise ConfigError(unreadable[name])
                    new = stored_members(f"0 {text}")[1]
                    changed = sorted(key for key in {*new, *before} if _raw(new, key) != _raw(before, key))
                    what = ",".join(changed) or "nothing"
                    operation = ("put", f"cron:{name}", f"{revision} {what} {text}")
                try:
                    return any(await store.order(who(), arguments.reason, [operation]))
                except ChangedMeanwhile:
                    if tries == TRIES - 1:
                        raise
        raise AssertionError

    has_changed = with_store(config, write)
    print(f"{name}: {'changed' if has_changed else 'nothing to do'}")
    return CLEAN


# --- sending -----------------------------------------------------------------------------------------------------------------


def run_now(config: Config, arguments: argparse.Namespace) -> int:
    """Send the job of a schedule now; status 1 where one of its jobs lives and it is to overlap with none."""
    definition = _look(config).named(arguments.name)
    now_ms = int(time.time() * 1000)
    key = f"cron:{definition.name}" if definition.settings.overlap == "skip" else ""
    packed = _packed(definition, f"now-{now_ms}", key=key, exp_ms=definition.expires_ms(now_ms))
    [sent] = with_store(config, lambda url: _send(url, config, [packed]))
    if arguments.json:
        print_json(sent)
    elif sent.new:
        print(sent.id)
    else:
        print("a job of it lives: not sent", file=sys.stderr)
    return CLEAN if sent.new else FAILED


def backfill(config: Config, arguments: argparse.Namespace) -> int:
    """Send the jobs of the ticks in a time, with the ids that they had or would have had."""
    known = _look(config)
    definition = known.named(arguments.name)
    zone = ZoneInfo(definition.times.zone)
    begin_ms, end_ms = _time_ms("--from", arguments.begin, zone), _time_ms("--to", arguments.end, zone)
    if not 0 < begin_ms < end_ms <= known.now_ms:
        raise ConfigError("--from, --to: must be two times, the first one before the second, and neither may lie ahead")
    ticks: list[int] = []
    for tick in definition.times.after(begin_ms - 1):
        if tick >= end_ms:
            break
        ticks.append(tick)
        if len(ticks) > MAX_BACKFILL:
            raise ConfigError(
                f"--from, --to: there are more than {MAX_BACKFILL:,} ticks; hint: call it for a part of them at a time"
            )
    if arguments.dry_run:
        for tick in ticks:
            print(f"cron:{definition.name}:{tick} {_in_zone(tick, zone)}")
        print(f"{len(ticks)} would be sent", file=sys.stderr)
        return CLEAN
    # No time at which it expires: that of a tick long ago is over, and whoever calls this wants it to run.
    packed = [_packed(definition, str(tick), first_ms=tick) for tick in ticks]
    sent = with_store(config, lambda url: _send(url, config, packed))
    print(f"{len(sent)} sent")
    return CLEAN


def _time_ms(flag: str, text: str, zone: ZoneInfo) -> int:
    try:
        at = datetime.fromisoformat(text)
        return int((at if at.tzinfo else at.replace(tzinfo=zone)).timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ConfigError(f"{flag} {text[:40]!r}: must be a time such as 2026-11-01 or 2026-11-01T06:00+01:00") from None


def _packed(definition: Definition, tick: str, *, key: str = "", exp_ms: int | None = None, first_ms: int = 0) -> Packed:
    settings, job_id = definition.settings, f"cron:{definition.name}:{tick}"
    fields = header(settings.type, id=job_id, version=settings.version, key=key, exp_ms=exp_ms, first_ms=first_ms)
    return Packed(Head(settings.priority - 1, 0, job_id, fields), bytes(settings.data))


async def _send(url: str, config: Config, packed: Sequence[Packed]) -> list[Sent]:
    sent: list[Sent] = []
    n = min(CHUNK_MESSAGES, max(1, CHUNK_BYTES // max(len(one.data) for one in packed))) if packed else 1
    async with Producer.connect(url, queue=config.queue) as producer:
        for begin in range(0, len(packed), n):
            sent += await producer.send_packed(packed[begin : begin + n])
    return sent
