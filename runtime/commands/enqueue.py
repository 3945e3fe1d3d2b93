"""`enqueue`: check a payload against its contract and send it; JSON lines from standard input with a progress bar."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Final

import msgspec

from runtime.commands.common import find_handlers, print_json, with_store
from runtime.commands.flags import QUEUE, add_settings, add_texts
from runtime.config import Config
from runtime.errors import BadPayload, ConfigError, JobDead, NotDurable, PartlySent, ResultTimeout, UnknownType
from runtime.jobs import PLAIN, Handler, Job, Options, Packed, Priority
from runtime.leaving import FAILED
from runtime.packing import Packer
from runtime.producer import Producer
from runtime.sender import CHUNK_MESSAGES, Sent

WAIT_S: Final = 30.0  # as Producer.result
PROGRESS_S: Final = 0.1  # between two progress lines; a guess: ten a second are seen to move


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_texts(
        parser,
        "Check a payload against its contract, send it, and print the job's id. "
        "With - the payloads are JSON lines from standard input; then the number of jobs is printed.",
        """python -m runtime enqueue send-email '{"to": "ada@example.com", "subject": "Hi", "text": "..."}' --delay 60""",
        "cat mails.jsonl | python -m runtime enqueue send-email - --priority low",
        """python -m runtime enqueue add-up '{"numbers": [1, 2]}' --wait 10""",
    )
    add_settings(parser, *QUEUE)
    parser.add_argument("type", help="wire name of the contract, such as send-email")
    parser.add_argument("payload", nargs="?", default="{}", metavar="JSON or -", help="the payload; - reads JSON lines")
    parser.add_argument("--priority", choices=["critical", "high", "medium", "low"], help="default: the contract's")
    parser.add_argument("--id", default="", help="the job's id (only for a single payload)")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="SECONDS", help="start no sooner than this many seconds from now"
    )
    parser.add_argument("--at", type=float, metavar="EPOCH", help="start no sooner than this time, in seconds since 1970")
    text = "start no later than this time, in seconds since 1970; after it, a dead letter"
    parser.add_argument("--exp", type=float, metavar="EPOCH", help=text)
    parser.add_argument("--key", default="", help="drop the message while another job with this key lives")
    text = "with --key and a time: first to drop the message, last (default) to let it replace the one that waits"
    parser.add_argument("--keep", default="", metavar="WORD", help=text)
    parser.add_argument("--group", default="", help="what the handler's limits per group count by, such as a customer's id")
    parser.add_argument("--attempts", type=int, metavar="N", help="most attempts of this job; default: the handler's")
    text = "what to wait for: local (default), fsync, or replicas=N"
    parser.add_argument("--durability", default="local", metavar="WORD", help=text)
    text = f"wait so many seconds ({WAIT_S:g}) until the job is done, and print its result; status 1 where it is dead, or late"
    parser.add_argument("--wait", type=float, nargs="?", const=WAIT_S, metavar="SECONDS", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


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
    if arguments.payload == "-":
        return with_store(config, lambda url: _send_lines(url, config, arguments, handler), may_make=True)
    packed = _pack(Packer(time.time), arguments, handler, arguments.payload.encode())
    return with_store(config, lambda url: _send_one(url, config, arguments, packed), may_make=True)


async def _send_one(url: str, config: Config, arguments: argparse.Namespace, packed: Packed) -> int:
    status = 0
    async with Producer.connect(url, queue=config.queue, durability=arguments.durability) as producer:
        try:
            sent = (await producer.send_packed([packed]))[0]
        except NotDurable as error:
            sent, status = error.sent[0], _print_error(error)
        if arguments.wait is not None and sent.new:
            return await _print_result(producer, sent, arguments.wait) or status
    if arguments.json:
        print_json(sent)
    elif sent.new:
        print(sent.id)
    else:
        print("a live job has this key: not sent", file=sys.stderr)
    return status


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
                for result in results:
                    print_json(result)
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
        handler.decode(Job(0, b"0-0", 1, "", 0.0, contract.type.encode(), data, PLAIN, 0))
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
