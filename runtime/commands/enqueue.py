"""`enqueue`: check a payload against its contract and send it; JSON lines from standard input with a progress bar."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import msgspec

from runtime.commands.common import find_handlers, print_json, with_store
from runtime.config import Config
from runtime.errors import BadPayload, NotDurable, PartlySent, UnknownType
from runtime.jobs import PLAIN, Handler, Job, Priority
from runtime.producer import CHUNK_MESSAGES, Message, Packed, Producer

PROGRESS_S = 0.1


def main(config: Config, parsed: argparse.Namespace) -> int:
    """Send one payload, or one per line of standard input."""
    registry = find_handlers(config).registry
    handler = registry.get(parsed.type.encode())
    if handler is None:
        known: list[str] = sorted(name.decode() for name in registry)
        near: list[str] = get_close_matches(str(parsed.type), known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known there are {', '.join(known)}"
        raise UnknownType(f"no contract {parsed.type!r} in {config.handlers} (--handlers names the modules); {hint}")
    if parsed.payload == "-":
        return with_store(config, lambda url: _send_lines(url, config, parsed, handler), may_make=True)
    packed = _pack(Producer(config.redis or "redis://", queue=config.queue), parsed, handler, parsed.payload.encode())
    return with_store(config, lambda url: _send_one(url, config, parsed, packed), may_make=True)


async def _send_one(url: str, config: Config, parsed: argparse.Namespace, packed: Packed) -> int:
    status = 0
    async with Producer.connect(url, queue=config.queue, durability=parsed.durability) as producer:
        try:
            sent = (await producer.send_packed([packed]))[0]
        except NotDurable as error:
            sent, status = error.sent[0], _say(error)
    if parsed.json:
        print_json(sent)
    elif sent.new:
        print(sent.id)
    else:
        print("a live job has this key: not sent", file=sys.stderr)
    return status


async def _send_lines(url: str, config: Config, parsed: argparse.Namespace, handler: Handler[Any]) -> int:
    started_s, sent, next_s, status = time.monotonic(), 0, 0.0, 0
    refusal: PartlySent | None = None
    async with Producer.connect(url, queue=config.queue, durability=parsed.durability) as producer:
        for chunk in _chunks(producer, parsed, handler):
            try:
                results = await producer.send_packed(chunk)
            except NotDurable as error:  # these lines are stored; what follows has not been tried
                results, status = error.sent, _say(error)
            except PartlySent as error:
                results, refusal = [one for one in error.sent if one is not None], error
            sent += len(results)
            if parsed.json:
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
    elif not parsed.json:
        print(f"{sent} sent")
    if refusal is not None:
        raise refusal
    return status


def _say(error: NotDurable) -> int:
    print(f"runtime: {error}", file=sys.stderr)
    return 1


def _chunks(producer: Producer, parsed: argparse.Namespace, handler: Handler[Any]) -> Iterator[list[Packed]]:
    if parsed.id:
        raise BadPayload("--id is for a single payload: every line would get the same one")
    chunk: list[Packed] = []
    for number, line in enumerate(sys.stdin.buffer, 1):
        if not line.strip():
            continue
        try:
            chunk.append(_pack(producer, parsed, handler, line.strip()))
        except BadPayload as error:
            raise BadPayload(f"line {number}: {error} (the lines before its chunk of {CHUNK_MESSAGES} are sent)") from None
        if len(chunk) == CHUNK_MESSAGES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _pack(producer: Producer, parsed: argparse.Namespace, handler: Handler[Any], data: bytes) -> Packed:
    """Check the payload as the worker would, and give the message."""
    contract = handler.contract
    try:
        handler.decode(Job(0, b"0-0", 1, "", 0.0, contract.type.encode(), data, PLAIN, 0))
    except BadPayload as error:
        raise BadPayload(
            f"the payload is not what {contract.type} takes (JSON of {contract.payload.__name__}): {error}"
        ) from None
    message = Message(
        payload=_Nothing(),
        delay_s=parsed.delay,
        at=parsed.at,
        exp=parsed.exp,
        key=parsed.key,
        id=parsed.id,
        attempts=parsed.attempts,
    )
    priority = Priority[parsed.priority.upper()] if parsed.priority else contract.priority
    return producer.pack_raw(contract.type, data, message, contract.version, priority)


class _Nothing(msgspec.Struct):
    """The payload is JSON already."""


def _progress(sent: int, started_s: float) -> None:
    rate = sent / max(time.monotonic() - started_s, 1e-6)
    print(f"\r{sent:>12,} sent, {rate:>10,.0f} per second ", end="", file=sys.stderr, flush=True)
