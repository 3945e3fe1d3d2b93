"""One connection to Redis, opened again when it is gone: raw commands in, raw answers out, many per round trip.

redis-py opens it and gives TLS, ACL users and unix sockets; its command layer is passed by. Those commands cost 3 to 5 µs per job
in parsing answers into dictionaries, and its defaults repeat what must not be repeated.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Callable, Generator
from itertools import product
from random import shuffle
from typing import Any, Final, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.connection import Connection as RedisConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from runtime.errors import ConfigError, StoreUnavailable
from runtime.store.resp import NEVER, Command, Limits, RespProtocol, ServerError, pack, take_over
from runtime.store.urls import SentinelUrl, master_in, parse_sentinel_url, without_password

CONNECT_S = 5.0  # a guess: to look up a name and connect to one of its addresses
ANSWER_S = 5.0  # a guess: not a byte of an answer for so long, and the connection is given up
IDLE_S: Final = 2.0  # a guess: a connection that was idle for so long is asked whether it still is one, for one round trip
PROOF_S: Final = 0.5  # a guess: what does not answer a PING by then is left for a new connection, which has more time
# A connection that was cut without a word: the kernel asks after 15 s of silence, and gives up after three questions of 5 s, or
# where something was sent and not acknowledged for 20 s. Guesses; the usual defaults are hours.
_ALIVE: Final = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
KEEPALIVE: Final = {getattr(socket, name): value for name, value in _ALIVE.items() if hasattr(socket, name)}
MOST_ANSWERS: Final = 60  # a guess: an answer that drips for so many times the silence that is allowed is given up
LISTEN_S: Final = 5.0  # a guess: between two questions to a server that we listen to; it answers in this time, or is given up
MESSAGE_BYTES: Final = 1 << 20  # a guess: what is published to us has 65 KB at most
LEAST_PART_S: Final = 0.25  # a guess, of the time to connect, for each address of a name: a busy machine needs that long
# Without a free file or thread those who connect fail in ways of their own: a codec that cannot be loaded is no OSError. And what
# answers may be no Redis at all, nor a name one.
_NO_CONNECTION: Final = (
    *(RedisError, OSError, RuntimeError, LookupError, ImportError),
    *(ValueError, TypeError, AttributeError, StoreUnavailable),
)
SENTINEL_S: Final = 0.5  # a guess, for one sentinel's answer: the others know as much


def one_connection(url: str) -> AbstractConnection:
    """Return a connection for this URL, not yet open: no retries of its own, no timeouts of its own, bytes in and out.

    Raises:
        ConfigError: the URL is none of redis://, rediss://, unix://, sentinel://.
    """
    if url.startswith("unix://") and not url.startswith("unix:///"):
        shown = without_password(url)
        raise ConfigError(f"Redis URL {shown!r}: the path of a unix socket must begin with /, as in unix:///run/redis.sock")
    options: dict[str, Any] = {
        "protocol": 2,
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
        "retry_on_error": [],
        "socket_timeout": None,
        "socket_connect_timeout": CONNECT_S,
        "health_check_interval": 0,
    }
    if not url.startswith("unix://"):
        options |= {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}
    if url.startswith("sentinel:"):
        return MasterConnection(url, options)
    try:
        pool = ConnectionPool.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType] -- redis-py's **kwargs
        return pool.make_connection()
    except (ValueError, TypeError) as error:
        raise ConfigError(f"Redis URL {without_password(url)!r}: {error}, as in redis://localhost:6379") from None


async def _addresses(connection: AbstractConnection) -> list[str]:
    """Return the addresses that the name of a connection's host stands for; just "" where it has none to look up."""
    if not isinstance(connection, RedisConnection) or isinstance(connection, MasterConnection):
        return [""]
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(connection.host)
        return [""]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(connection.host, connection.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(one[4][0]) for one in found))


def _connection_to(url: str, address: str) -> AbstractConnection:
    """Return a connection to one address of the URL's host; a certificate is compared with the host's name all the same."""
    connection = one_connection(url)
    if address and isinstance(connection, RedisConnection):
        known = cast("dict[str, Any]", connection._connection_arguments())  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]
        arguments = {**known, "host": address}
        if "ssl" in arguments:
            arguments["server_hostname"] = connection.host
        connection._connection_arguments = lambda: arguments  # pyright: ignore[reportPrivateUsage]
    return connection


class MasterConnection(RedisConnection):
    """A connection to whichever server the sentinels call the master at the moment it is opened."""

    host: str
    port: int

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self.sentinel_url: SentinelUrl = parse_sentinel_url(url)
        sentinel_url = self.sentinel_url
        super().__init__(db=sentinel_url.db, username=sentinel_url.username, password=sentinel_url.password, **options)  # pyright: ignore[reportUnknownMemberType]

    async def connect(self) -> None:
        """Find the master and connect to it.

        Raises:
            RedisError, OSError: no sentinel knows one, or it does not answer.
        """
        self.host, self.port = await self._find()
        await super().connect()

    async def _find(self) -> tuple[str, int]:
        """Ask the sentinels, in another order each time: one that is cut off may know an old master, or nothing."""
        sentinel_url = self.sentinel_url
        shuffle(sentinel_url.sentinels)
        ways: list[dict[str, Any]] = [{}]
        if sentinel_url.password:  # few protect their sentinels; those who do use one password for all
            ways.append({"username": sentinel_url.username, "password": sentinel_url.password})
        for way, (host, port) in product(ways, sentinel_url.sentinels):
            with contextlib.suppress(RedisError, OSError):
                master = await self._ask(host, port, way)
                if master is not None:
                    return master
        raise MasterNotFoundError(f"no sentinel knows a living master {sentinel_url.service!r}, or lets us ask")

    async def _ask(self, host: str, port: int, way: dict[str, Any]) -> tuple[str, int] | None:
        """Ask one sentinel where the master is.

        Not by the client of redis-py: before Python 3.12 that loses a cancel that comes in the moment of an answer, and a
        producer that is closed just then would wait for its sender without end. But by the same command: an ACL may allow no
        other.
        """
        timeouts = {"socket_timeout": None, "socket_connect_timeout": SENTINEL_S}
        options: dict[str, Any] = {"protocol": 2, **timeouts, **way}
        connection = RedisConnection(host=host, port=port, retry=Retry(NoBackoff(), 0), **options)  # pyright: ignore[reportUnknownMemberType]
        try:
            async with asyncio.timeout(SENTINEL_S):
                await connection.connect()
                (answer,) = await take_over(connection).ask(pack([("SENTINEL", "MASTERS")]), 1)
        finally:
            await _disconnect(connection)
        return master_in(answer, self.sentinel_url.service.encode())


class Connection:
    """Owns one connection and opens it again when it is gone. One caller at a time; a second one waits.

    `run_id` names the server process behind it: ids and leases from before a restart carry another name. `came` says
    of the newest call how many bytes of an answer came, and in how many seconds from the first to the last of them.
    """

    def __init__(self, url: str, name: str, answer_s: float = ANSWER_S, most_s: float = 0.0, most_bytes: float = NEVER) -> None:
        self.url = url
        self._answer_s = answer_s
        self._limits = Limits(answer_s, most_s or MOST_ANSWERS * answer_s, most_bytes)
        self.came: tuple[int, float] = (0, 0.0)
        self.name = name
        self.run_id: str = ""
        self.client_id: int = 0
        self.opened: int = 0  # how often it was opened, the first time too
        self._redis: AbstractConnection | None = None
        self._protocol: RespProtocol | None = None
        self._busy = asyncio.Lock()
        self._unanswered = False
        self._heard_s = 0.0  # when it answered last, by the loop's clock

    def __repr__(self) -> str:
        state = "open" if self._redis is not None else "closed"
        return f"<Connection {self.name} {state} to {without_password(self.url)}>"

    async def ready(self) -> None:
        """Open the connection if it is closed, was lost or has become silent, so that `run_id` is true.

        A call that follows at once awaits nothing before its request is written.

        Raises:
            StoreUnavailable: no connection.
        """
        protocol = self._protocol
        if protocol is not None and not (self._busy.locked() or protocol.is_lost or self._is_idle()):
            return
        async with self._busy:
            protocol = self._protocol
            if protocol is None or protocol.is_lost:
                await self._drop()
                protocol = await self._open()
            elif self._is_idle():
                protocol = await self._proven(protocol)
            if protocol.is_lost:  # already: its answer and its end came together
                await self._drop()
                raise StoreUnavailable(f"Redis at {without_password(self.url)}: the connection was closed")

    async def call(self, *commands: Command, wait_s: float = 0.0, run_id: str = "") -> list[Any]:
        """Send the commands in one write and return their answers in order; an error answer is a ServerError among them.

        The answers are given up when nothing moves for `wait_s` (0: the `answer_s` of this connection); a large one that moves
        may take its time. With `run_id`, nothing is sent to any other server process than that.

        Raises:
            StoreUnavailable: no connection, or not every answer came in time; what was sent may or may not have happened. Or
                the server is a replica by now: its new master may undo what it did, and the next call looks for that one.
        """
        async with self._busy:
            protocol = self._protocol or await self._open()
            if self._is_idle():
                protocol = await self._proven(protocol)
            if run_id and run_id != self.run_id:
                raise StoreUnavailable(f"Redis at {without_password(self.url)} was restarted")
            self._unanswered = True
            limits = self._limits if not wait_s else self._limits._replace(silent_s=wait_s)
            try:
                answers = await protocol.ask(pack(commands), len(commands), limits)
            except (RedisError, OSError) as error:
                await self._drop()
                raise StoreUnavailable(f"Redis at {without_password(self.url)}: {str(error) or type(error).__name__}") from error
            except BaseException:
                await self._drop()  # an answer may still be on its way: the next caller would read it as its own
                raise
            finally:
                self.came = (protocol.received, protocol.newest_s - protocol.first_s)
            self._unanswered = False
            self._heard_s = asyncio.get_running_loop().time()
            if any(isinstance(answer, ServerError) and answer.code == "READONLY" for answer in answers):
                await self._drop()
                raise StoreUnavailable(f"Redis at {without_password(self.url)} is a replica now")
            return answers

    async def listen(self, channel: str, on_push: Callable[[Any], None], is_needed: Callable[[], bool]) -> None:
        """Subscribe to a channel and hand on all that the server answers, until nobody needs it any more.

        Each LISTEN_S the server is asked whether it is still there: that is answered as well. A connection that listens is good
        for nothing else: it is closed at the end.

        Raises:
            StoreUnavailable: no connection, or it ended, or has become silent.
        """
        async with self._busy:
            await self._drop()
            protocol = await self._open()
            heard, ended = 0, None

            def hear(answer: Any) -> None:
                nonlocal heard
                heard += 1
                on_push(answer)

            try:
                asked = pack([("SUBSCRIBE", channel)])
                while True:
                    before, ended = heard, protocol.listen(asked, hear, MESSAGE_BYTES)
                    await asyncio.wait([ended], timeout=LISTEN_S)
                    if not is_needed():
                        return
                    if ended.done():
                        ended.result()
                    if heard == before:
                        raise TimeoutError(f"not a byte for {LISTEN_S:g} s")
                    asked = pack([("PING",)])
            except (RedisError, OSError) as error:
                raise StoreUnavailable(f"Redis at {without_password(self.url)}: {error}") from error
            finally:
                if ended is not None:
                    ended.cancel()  # nobody waits any more for what the end of the connection says
                await self._drop()

    async def close(self) -> None:
        """Close the connection when the call under way has ended; a later call opens a new one."""
        async with self._busy:
            await self._drop()

    def _is_idle(self) -> bool:
        return asyncio.get_running_loop().time() - self._heard_s > IDLE_S

    async def _open(self) -> RespProtocol:
        """Open a connection, to the first address of its host that answers; each has its part of the time."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + min(CONNECT_S, self._answer_s)
        with self._as_unavailable():
            async with asyncio.timeout_at(end_s):
                addresses = await _addresses(one_connection(self.url))  # reads redis-py's own version from a file
        for left in range(len(addresses), 1, -1):
            part_s = max((end_s - loop.time()) / left, LEAST_PART_S)
            with contextlib.suppress(StoreUnavailable):
                return await self._open_at(addresses[-left], min(loop.time() + part_s, end_s))
        return await self._open_at(addresses[-1], end_s)

    @contextlib.contextmanager
    def _as_unavailable(self) -> Generator[None]:
        """Raise StoreUnavailable for whatever goes wrong while connecting."""
        try:
            yield
        except _NO_CONNECTION as error:
            why = str(error) or ("no connection in time" if isinstance(error, TimeoutError) else type(error).__name__)
            raise StoreUnavailable(f"Redis at {without_password(self.url)}: {why}") from error

    async def _open_at(self, address: str, end_s: float) -> RespProtocol:
        connection: AbstractConnection | None = None
        try:
            with self._as_unavailable():
                async with asyncio.timeout_at(end_s):
                    connection = _connection_to(self.url, address)
                    await connection.connect()
                    protocol = take_over(connection)
                    hello = [("CLIENT", "SETNAME", self.name), ("CLIENT", "ID"), ("INFO", "server")]
                    _, client_id, info = map(_checked, await protocol.ask(pack(hello), len(hello)))
                    run_id = _named(b"run_id", info)
                    if isinstance(connection, MasterConnection):
                        await self._check_role(protocol)
                    if self._unanswered and run_id == self.run_id:
                        # The old connection's last call may still be running: end it before anything is repeated.
                        await protocol.ask(pack([("CLIENT", "KILL", "ID", self.client_id)]), 1)
        except BaseException:
            await _disconnect(connection)
            raise
        self._redis, self._protocol = connection, protocol
        self.opened += 1
        self.client_id, self.run_id, self._unanswered = client_id, run_id, False
        self._heard_s = asyncio.get_running_loop().time()
        return protocol

    async def _proven(self, protocol: RespProtocol) -> RespProtocol:
        """Return the protocol, or a new one where a PING gets no answer: middleboxes forget idle connections, and tell no side.

        Raises:
            StoreUnavailable: no new connection.
        """
        try:
            async with asyncio.timeout(min(PROOF_S, self._answer_s)):
                await protocol.ask(pack([("PING",)]), 1)
        except (RedisError, OSError):
            await self._drop()
            return await self._open()
        except BaseException:
            await self._drop()  # its answer may still be on its way
            raise
        return protocol

    async def _check_role(self, protocol: RespProtocol) -> None:
        """Sentinels learn of a failover one after the other: never take a replica for the master that it was."""
        (info,) = await protocol.ask(pack([("INFO", "replication")]), 1)
        role = _named(b"role", info)
        if role != "master":
            raise MasterNotFoundError(f"the sentinels name a server that is a {role or 'server without a role'}")

    async def _drop(self) -> None:
        connection, self._redis, self._protocol = self._redis, None, None
        if connection is not None:
            await _disconnect(connection)


async def _disconnect(connection: AbstractConnection | None) -> None:
    if connection is None:
        return
    with contextlib.suppress(RedisError, OSError):
        await connection.disconnect(nowait=True)


def _checked(answer: Any) -> Any:
    """Return the answer. A busy server tells neither the connection's id, by which a blocked read is woken, nor its run id, by
    which leases are fenced: such a connection is none.

    Raises:
        StoreUnavailable: it is an error, and no matter of permissions.
    """
    if isinstance(answer, ServerError) and answer.code != "NOPERM":
        raise StoreUnavailable(answer)
    return answer


def _named(name: bytes, info: Any) -> str:
    """Return a value of INFO, or nothing."""
    if not isinstance(info, bytes):
        return ""
    for line in info.splitlines():
        if line.startswith(name + b":"):
            return line[len(name) + 1 :].decode(errors="replace")
    return ""
