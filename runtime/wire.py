"""One connection of redis-py, used below its command layer: raw commands in, raw replies out, many per round trip.

redis-py's commands cost 3 to 5 µs per job in parsing replies into dictionaries, and its defaults repeat what must not be
repeated; its connections give TLS, ACL users and unix sockets. Behind the door only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any, cast

from hiredis import pack_command  # pyright: ignore[reportUnknownVariableType]
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from runtime.errors import ConfigError, StoreAway
from runtime.line import Line, ServerError, take_over

Command = Sequence[bytes | str | int | float]
CONNECT_S = 5.0
ANSWER_S = 5.0


def one_connection(url: str) -> AbstractConnection:
    """Give a connection for this URL, not yet open: no retries of its own, no timeouts of its own, bytes in and out.

    Raises:
        ConfigError: the URL is none of redis://, rediss://, unix://.
    """
    if url.startswith("unix://") and not url.startswith("unix:///"):
        raise ConfigError(f"Redis URL {url!r}: the path of a unix socket begins with /, as in unix:///run/redis.sock")
    try:
        pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType] -- redis-py's **kwargs
            url,
            protocol=2,
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_timeout=None,
            socket_connect_timeout=CONNECT_S,
            health_check_interval=0,
        )
        return pool.make_connection()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"Redis URL {without_password(url)!r}: {error}, as in redis://localhost:6379") from None


_pack = cast("Callable[[tuple[bytes | str | int | float, ...]], bytes]", pack_command)  # its own stub says one argument


def redis_cli(url: str) -> str:
    """Give the redis-cli call that reaches this server, as one would type it; a password is left to the environment."""
    if url.startswith("unix://"):
        return f"redis-cli -s {url[7:].partition('?')[0]}"
    return 'redis-cli -u "$REDIS_URL"' if without_password(url) != url else f"redis-cli -u {url}"


def pack(commands: Sequence[Command]) -> bytes:
    """Give the commands as they go over the wire, packed in C: redis-py's own packing is a fifth of a drain's time."""
    return b"".join([_pack(tuple(command)) for command in commands])


def without_password(url: str) -> str:
    """Give the URL as it may be shown to people and logs."""
    head, at, tail = url.rpartition("@")
    scheme, slashes, _ = head.partition("://")
    return f"{scheme}{slashes}***@{tail}" if at else url


class Wire:
    """Owns one connection and opens it again when it is gone. One caller at a time; whoever comes second waits.

    `run` names the server process behind it: ids and leases from before a restart carry another name.
    """

    def __init__(self, url: str, name: str, answer_s: float = ANSWER_S) -> None:
        self.url = url
        self._answer_s = answer_s
        self.name = name
        self.run = ""
        self.client_id = 0
        self._connection: AbstractConnection | None = None
        self._line: Line | None = None
        self._busy = asyncio.Lock()
        self._unanswered = False

    def __repr__(self) -> str:
        state = "open" if self._connection is not None else "closed"
        return f"<Wire {self.name} {state} to {without_password(self.url)}>"

    async def ready(self) -> None:
        """Open the connection if it is closed, so that `run` is true.

        Raises:
            StoreAway: no connection.
        """
        async with self._busy:
            if self._connection is None:
                await self._open()

    async def call(self, *commands: Command, wait_s: float = 0.0, run: str = "") -> list[Any]:
        """Send the commands in one write and give their answers in order; an error answer is a ServerError among them.

        The answers must come within `wait_s`, or what this wire was made with. With `run`, nothing is sent to any other server
        process than that.

        Raises:
            StoreAway: no connection, or not every answer came in time; what was sent may or may not have happened.
        """
        async with self._busy:
            line = self._line or await self._open()
            if run and run != self.run:
                raise StoreAway(f"Redis at {without_password(self.url)} was restarted")
            self._unanswered = True
            try:
                async with asyncio.timeout(wait_s or self._answer_s):
                    answers = await line.ask(pack(commands), len(commands))
            except (RedisError, OSError) as error:
                await self._drop()
                raise StoreAway(f"Redis at {without_password(self.url)}: {error or type(error).__name__}") from error
            except BaseException:
                await self._drop()  # an answer may still be on its way: nobody may read it as his own
                raise
            self._unanswered = False
            return answers

    async def close(self) -> None:
        """Close the connection when the call under way has ended; a later call opens a new one."""
        async with self._busy:
            await self._drop()

    async def _open(self) -> Line:
        connection = one_connection(self.url)
        try:
            async with asyncio.timeout(min(CONNECT_S, self._answer_s)):
                await connection.connect()
                line = take_over(connection)
                hello = [("CLIENT", "SETNAME", self.name), ("CLIENT", "ID"), ("INFO", "server")]
                _, client_id, info = await line.ask(pack(hello), len(hello))
                run = _run_of(info)
                if self._unanswered and run == self.run:
                    # The old connection's last call may still be running: end it before anything is repeated.
                    await line.ask(pack([("CLIENT", "KILL", "ID", self.client_id)]), 1)
        except (RedisError, OSError) as error:
            await _disconnect(connection)
            raise StoreAway(f"Redis at {without_password(self.url)}: {error or type(error).__name__}") from error
        except BaseException:
            await _disconnect(connection)
            raise
        self._connection, self._line = connection, line
        self.client_id, self.run, self._unanswered = client_id, run, False
        return line

    async def _drop(self) -> None:
        connection, self._connection, self._line = self._connection, None, None
        if connection is not None:
            await _disconnect(connection)


async def _disconnect(connection: AbstractConnection) -> None:
    with contextlib.suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


def _run_of(info: Any) -> str:
    if isinstance(info, ServerError) or not isinstance(info, bytes):
        return ""
    for line in info.splitlines():
        if line.startswith(b"run_id:"):
            return line[7:].decode()
    return ""
