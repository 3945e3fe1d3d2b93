"""Handlers of a worker whose traces are looked at: they use OpenTelemetry's API in all the places where a handler may."""

from __future__ import annotations

import asyncio
import logging

import msgspec
from opentelemetry import trace

from runtime import Backoff, Dead, Job, contract, handler

log = logging.getLogger("app")
tracer = trace.get_tracer("app")


@contract("mail")
class Mail(msgspec.Struct, frozen=True, kw_only=True):
    fails: int = 0
    is_dead: bool = False


@handler(Mail, retry=Backoff(base_s=0.01, cap_s=0.02, attempts=4))
async def mail(message: Mail, job: Job) -> None:
    """Record something in plain code, in tasks and in a thread, and fail as often as the message says."""
    log.warning("mail begins")
    trace.get_current_span().set_attribute("mail.domain", "example.com")

    async def upload(name: str) -> None:
        with tracer.start_as_current_span(name):
            await asyncio.sleep(0)

    with tracer.start_as_current_span("render"):
        await asyncio.gather(upload("first"), upload("second"))
    await asyncio.to_thread(sign)
    if message.is_dead:
        raise Dead("no such account", "no-account")
    if job.attempt <= message.fails:
        raise ConnectionError("smtp.example.com: connection refused")


def sign() -> None:
    """Record something in a thread."""
    with tracer.start_as_current_span("sign"):
        log.warning("signed")


@contract("plain")
class Plain(msgspec.Struct, frozen=True, kw_only=True):
    pass


@handler(Plain)
def plain(message: Plain, job: Job) -> None:
    """Record something in a thread that the runtime has opened."""
    sign()


@contract("child")
class Child(msgspec.Struct, frozen=True, kw_only=True):
    fails: bool = False


@handler(Child, runs="process", retry=Backoff(attempts=1))
def child(message: Child, job: Job) -> None:
    """Record something in a child process."""
    sign()
    if message.fails:
        raise LookupError("not there")
