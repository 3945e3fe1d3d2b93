"""`enqueue`: check a payload against its contract and send it; JSON lines from standard input with a progress bar."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from runtime.commands.common import clean, find_handlers, print_json, with_store
from runtime.commands.flags import QUEUE, add_settings, add_texts
from runtime.config import Config
from runtime.errors import BadPayload, ConfigError, JobDead, NotDurable, PartlySent, ResultTimeout, UnknownType
from runtime.jobs import Handler, Options, Packed, Priority
from runtime.leaving import FAILED
from runtime.packing import Packer, as_fetched
from runtime.producer import Producer
from runtime.sender import CHUNK_MESSAGES, Sent

WAIT_S: Final = 30.0  # as Producer.result
PROGRESS_S: Final = 0.1  # between two progress lines; a guess: ten a second are seen to move


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Check a payload against its contract, send it, and print the job's id. "
        "With - the payloads are JSON lines from standard input; then the number of jobs is printed. "
        "Without --queue it goes to the queue that the contract names, if it does.",
        """python -m runtime enqueue send-email '{"to": "ada@example.com", "subject": "Hi", "text": "..."}' --delay 60""",
        "python -m runtime enqueue send-email - --priority low < mails.jsonl",
        """python -m runtime enqueue add-up '{"numbers": [1, 2]}' --wait 10 --handlers myapp.jobs""",
    )
    add_settings(parser, *QUEUE)
    parser.add_argument("type", help="wire name of the contract, such as send-email")
    parser.add_argument("payload", nargs="?", metavar="JSON or -", help="the payload (default {}); - reads JSON lines")
    parser.set_defaults(late="payload")
    parser.add_argument("--priority", choices=["critical", "high", "medium", "low"], help="default: the contract's")
    parser.add_argument("--id", default="", help="the job's id (only for a single payload)")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="SECONDS", help="start no sooner than this many seconds from now"
    )
    text = "start no sooner than this time: seconds since 1970, or such as 2030-12-31T08:00+01:00"
    parser.add_argument("--at", type=_moment, metavar="WHEN", help=text)
    text = "start no later than this time, given as for --at; after it, a dead letter"
    parser.add_argument("--exp", type=_moment, metavar="WHEN", help=text)
    text = "while another job with this key lives: drop the message; with a time, let it replace the one that waits for its time"
    parser.add_argument("--key", default="", help=text)
    text = "with --key and a time: last (default) to replace the one that waits for its time, first to drop the message then, too"
    parser.add_argument("--keep", default="", metavar="WORD", help=text)
    parser.add_argument("--group", default="", help="what the handler's limits per group count by, such as a customer's id")
    parser.add_argument("--attempts", type=int, metavar="N", help="most attempts of this job; default: the handler's")
    text = "what to wait for: local (default), fsync, or replicas=N"
    parser.add_argument("--durability", default="local", metavar="WORD", help=text)
    text = f"wait so many seconds ({WAIT_S:g}) until the job is done, and print its result; status 1: dead, late, or no new job"
    parser.add_argument("--wait", type=_seconds, nargs="?", const=WAIT_S, metavar="SECONDS", help=text)
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def _seconds(text: str) -> float:
    """Return the time that `--wait` was given; what stands behind it may be meant as the payload."""
    try:
        return float(text)
    except ValueError:
        how = "the payload stands right behind the type, or behind --wait SECONDS"
        raise argparse.ArgumentTypeError(f"must be a number of seconds, got {text!r:.40}; hint: {how}") from None


def _moment(text: str) -> float | datetime:
    """Return a time as it was given; whether it can be used is said with the other options."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        how = "must be seconds since 1970, or a time such as 2030-12-31T08:00+01:00"
        raise argparse.ArgumentTypeError(f"{how}, got {text!r:.60}") from None


def main(config: Config, arguments: argparse.Namespace) -> int:
    """Send one payload, or one per line of standard input."""
    registry = find_handlers(config).registry
    handler = registry.get(arguments.type.encode())
    if handler is None:
        known: list[str] = sorted(name.decode() for name in registry)
        near: list[str] = get_close_matches(str(arguments.type), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UnknownType(f"no contract {arguments.type!r} in {config.handlers}; {hint} (--handlers names the modules)")
    if arguments.wait is not None and not arguments.wait >= 0:
        raise ConfigError(f"--wait: must be a number of seconds from 0, got {arguments.wait:g}")
    if arguments.wait is not None and handler.result is None:
        raise ConfigError(f"--wait: no results of {handler.contract.type} are kept; hint: @handler(…, result_ttl_s=600)")
    config = msgspec.structs.replace(config, queue=arguments.queue or handler.contract.queue or config.queue)
    if arguments.payload == "-":
        return with_store(config, lambda url: _send_lines(url, config, arguments, handler), may_make=True)
    payload = "{}" if arguments.payload is None else arguments.payload
    packed = _pack(Packer(time.time), arguments, handler, payload.encode())
    return with_store(config, lambda url: _send_one(url, config, arguments, packed), may_make=True)


async def _send_one(url: str, config: Config, arguments: argparse.Namespace, packed: Packed) -> int:
    status = 0
    async with Producer.connect(url, queue=config.queue, durability=arguments.durability) as producer:
        try:
            sent = (await producer.send_packed([packed]))[0]
        except NotDurable as error:
            sent, status = error.sent[0], _print_error(error)
        if arguments.wait is not None and sent.new:
            print(f"job {sent.id}: waiting for its result, up to {arguments.wait:g} s", file=sys.stderr)
            return await _print_result(producer, sent, arguments.wait) or status
    if arguments.json:
        print_json({"id": sent.id, "new": sent.new})
    elif sent.new:
        print(sent.id)
    else:
        print(_not_new(arguments, sent.id), file=sys.stderr)
    if arguments.wait is not None:
        print(
            "runtime: --wait: no job of its own was sent; hint: `jobs show` prints the result of the other one", file=sys.stderr
        )
        return FAILED
    return status


def _not_new(arguments: argparse.Namespace, owner: str) -> str:
    """Return what became of a message that is no job of its own."""
    if arguments.keep != "first" and (arguments.delay or arguments.at is not None):
        return (
            f"job {clean(owner)} has this key: this message has replaced its message; was dropped, where that is of another type"
        )
    return f"job {clean(owner)} lives and has this key: the message was dropped"


async def _print_result(producer: Producer, sent: Sent, timeout_s: float) -> int:
    try:
        value = await producer.result(sent, timeout_s)
    except (JobDead, ResultTimeout) as error:
        print(f"runtime: job {sent.id} is dead: {error}" if isinstance(error, JobDead) else f"runtime: {error}", file=sys.stderr)
        return FAILED
    print(msgspec.json.encode(value).decode())
    return 0


async def _send_lines(url: str, config: Config, arguments: argparse.Namespace, handler: Handler[Any]) -> int:
    started_s, sent, next_s, status = time.monotonic(), 0, 0.0, 0
    refusal: PartlySent | None = None
    async with Producer.connect(url, queue=config.queue, durability=arguments.durability) as producer:
        for chunk in _chunks(arguments, handler):
            try:
                results = await producer.send_packed(chunk)
            except NotDurable as error:  # these lines are stored; the lines behind them have not been sent
                results, status = error.sent, _print_error(error)
            except PartlySent as error:
                results, refusal = [one for one in error.sent if one is not None], error
            sent += len(results)
            if arguments.json:
                for one in results:
                    print_json({"id": one.id, "new": one.new})
            if sys.stderr.isatty() and time.monotonic() >= next_s:
                next_s = time.monotonic() + PROGRESS_S
                _progress(sent, started_s)
            if status or refusal is not None:
                break
    if sys.stderr.isatty():
        _progress(sent, started_s)
        print(file=sys.stderr)
    elif not arguments.json:
        print(f"{sent} sent")
    if refusal is not None:
        raise refusal
    return status


def _print_error(error: NotDurable) -> int:
    print(f"runtime: {error}", file=sys.stderr)
    return FAILED


def _chunks(arguments: argparse.Namespace, handler: Handler[Any]) -> Iterator[list[Packed]]:
    if arguments.wait is not None:
        raise BadPayload("--wait: must not be given with -; hint: send one, or wait by Producer.result")
    if arguments.id:
        raise BadPayload("--id: must not be given with -, since every line would get the same id")
    packer, chunk = Packer(time.time), list[Packed]()
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            chunk.append(_pack(packer, arguments, handler, line.strip()))
        except BadPayload as error:
            raise BadPayload(f"line {number}: {error} (the lines before its chunk of {CHUNK_MESSAGES} are sent)") from None
        if len(chunk) == CHUNK_MESSAGES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _pack(packer: Packer, arguments: argparse.Namespace, handler: Handler[Any], data: bytes) -> Packed:
    """Return the message, ready to be sent.

    Raises:
        BadPayload: a worker would refuse the payload, or the producer one of the options.
    """
    contract = handler.contract
    try:
        handler.decode(as_fetched(contract, data))
    except BadPayload as error:
        raise BadPayload(f"payload of {contract.type} (JSON of {contract.payload.__name__}): {error}") from None
    options = Options(
        delay_s=arguments.delay,
        at=arguments.at,
        exp=arguments.exp,
        key=arguments.key,
        keep=arguments.keep,
        group=arguments.group,
        id=arguments.id,
        attempts=arguments.attempts,
        priority=Priority[arguments.priority.upper()] if arguments.priority else None,
    )
    return packer.pack_raw(contract.type, data, options, contract.version, contract.priority)


def _progress(sent: int, started_s: float) -> None:
    rate = sent / max(time.monotonic() - started_s, 1e-6)
    print(f"\r{sent:>12,} sent, {rate:>10,.0f} per second ", end="", file=sys.stderr, flush=True)
