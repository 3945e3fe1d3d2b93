"""SyncProducer sends jobs from plain code: Flask, Django, scripts, `def` endpoints. It is `Producer`, and waits.

All of a process share one thread with an event loop, in which one `Producer` each does the work: `runtime.portal`.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from itertools import islice
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, overload

import msgspec

from runtime import portal
from runtime.portal import Call
from runtime.producer import Message, Producer
from runtime.sender import CHUNK_MESSAGES, Sent

P = ParamSpec("P")
T = TypeVar("T")


def _waiting(
    method: Callable[Concatenate[Producer, P], Coroutine[Any, Any, T]],
) -> Callable[[Callable[..., None]], Callable[Concatenate[SyncProducer, P], T]]:
    """Return a decorator that makes of an empty method one that calls a producer's, with its parameters, and waits."""

    def decorate(named: Callable[..., None]) -> Callable[Concatenate[SyncProducer, P], T]:
        @functools.wraps(method)
        def call(self: SyncProducer, /, *given: P.args, **options: P.kwargs) -> T:
            return self._run(lambda _: method(self._producer, *given, **options))  # pyright: ignore[reportPrivateUsage]

        call.__doc__, call.__qualname__, call.__module__ = named.__doc__, named.__qualname__, __name__
        return call

    return decorate


class SyncProducer:
    """Sends jobs from any thread, and waits until each is stored; make one, and keep it in a module.

    Arguments, options and errors are those of `Producer`. It connects with its first send, in a forked process too.
    Where an event loop runs it would block that loop, and raises ConfigError: `await Producer.send` there.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str = "jobs",
        source: str = "",
        patience_s: float = 5.0,
        durability: str = "local",
        check: bool = False,
    ) -> None:
        self._producer = Producer(url, queue=queue, source=source, patience_s=patience_s, durability=durability, check=check)
        self._key = object()

    def __repr__(self) -> str:
        return f"<Sync{repr(self._producer)[1:]}"

    def __enter__(self) -> Self:
        self._producer.reopen()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_key"):
            portal.leave(self._key)

    def close(self) -> None:
        """Close the connections, and end the thread where this was the last one; each send that still waits raises."""
        portal.run(self._key, lambda _: self._producer.close(), is_last=True)

    def _run(self, work: Callable[[Call], Coroutine[Any, Any, T]]) -> T:
        self._producer.check_open()
        return portal.run(self._key, work)

    @_waiting(Producer.send)
    def send(self) -> None:
        """Store one job, and return its id when Redis has it: `Producer.send`, and waits."""

    def send_many(
        self,
        messages: Iterable[msgspec.Struct | Message],
        *,
        progress: Callable[[int], None] | None = None,
        durability: str = "",
    ) -> list[Sent]:
        """Store many jobs in order: `Producer.send_many`, and waits. Messages are made, and progress is told, in this thread."""

        def send(call: Call) -> Coroutine[Any, Any, list[Sent]]:
            def tell(stored: int) -> None:
                call.tell(lambda: progress(stored) if progress is not None else None)

            told = tell if progress is not None else None
            return self._producer.send_many(_pulled(call, messages), progress=told, durability=durability)

        return self._run(send)

    @overload
    def result(self, job: str | Sent, timeout_s: float = ...) -> Any: ...

    @overload
    def result(self, job: str | Sent, timeout_s: float = ..., *, type: type[T]) -> T: ...

    def result(self, job: str | Sent, timeout_s: float = 30.0, *, type: Any = Any) -> Any:
        """Return what a job has answered, as soon as it is done: `Producer.result`, and waits."""
        return self._run(lambda _: self._producer.result(job, timeout_s, type=type))


async def _pulled(call: Call, messages: Iterable[msgspec.Struct | Message]) -> AsyncGenerator[msgspec.Struct | Message]:
    """Yield messages that are made in the thread that sends them: what makes them may be a database's cursor, say."""
    rest = iter(messages)

    def take() -> tuple[list[msgspec.Struct | Message], Exception | None]:
        some: list[msgspec.Struct | Message] = []
        try:
            some.extend(islice(rest, CHUNK_MESSAGES))
        except Exception as error:  # what came before it is sent first, as by Producer
            return some, error
        return some, None

    while True:
        some, error = await call.ask(take)
        for message in some:
            yield message
        if error is not None:
            raise error
        if not some:
            return
