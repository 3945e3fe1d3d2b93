"""One connection: what is no URL, no server, no master or no answer, and that it is opened again when it is gone."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio.sentinel import MasterNotFoundError

from runtime.errors import ConfigError, StoreUnavailable
from runtime.store.connection import Connection, MasterConnection, one_connection
from runtime.store.resp import ServerError
from tests.liar import Leave, Liar, texts
from tests.proxy import Proxy
from tests.servers import Server, free_ports

PATIENT_S = 20.0  # no test waits for it
AWAY = "redis://127.0.0.1:1"


@pytest.fixture
async def connection(server: Server) -> AsyncIterator[Connection]:
    opened = Connection(server.url, "tested")
    yield opened
    await opened.close()


# --- urls ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("unix://jobs:geheim@run/redis.sock", "path of a unix socket must begin with /"),
        ("jobs:geheim@host:6379", "as in redis://localhost:6379"),
        ("http://jobs:geheim@host", "as in redis://localhost:6379"),
        ("redis://jobs:geheim@host:many", "as in redis://localhost:6379"),
        ("redis://jobs:geheim@host?hats=3", "as in redis://localhost:6379"),
        ("sentinel://jobs:geheim@host", "must look like sentinel://"),
    ],
)
def test_what_is_no_url_is_told_with_how_one_looks_and_without_its_password(url, why):
    with pytest.raises(ConfigError, match=why) as caught:
        one_connection(url)
    assert "geheim" not in str(caught.value)


def test_a_url_of_sentinels_has_its_credentials_and_its_database_at_the_master():
    connection = one_connection("sentinel://jobs:ge%40heim@a:1,b:2/kept/4")
    assert isinstance(connection, MasterConnection)
    assert (connection.username, connection.password, connection.db) == ("jobs", "ge@heim", 4)
    assert (connection.sentinel_url.sentinels, connection.sentinel_url.service) == ([("a", 1), ("b", 2)], "kept")


# --- opening and losing it -------------------------------------------------------------------------------------------------


async def test_it_is_opened_by_the_first_call_and_says_whose_it_is(connection, raw):
    assert repr(connection).startswith("<Connection tested closed to unix://")
    assert await connection.call(("SET", "a", "1"), ("GET", "a"), ("GET", "b")) == [b"OK", b"1", None]
    assert repr(connection).startswith("<Connection tested open to unix://")
    assert connection.run_id == raw.info("server")["run_id"]
    [ours] = [row for row in raw.client_list() if row["name"] == "tested"]
    assert int(ours["id"]) == connection.client_id
    await connection.close()
    assert "closed" in repr(connection)
    assert await connection.call(("GET", "a")) == [b"1"]
    assert connection.opened == 2


async def test_a_password_is_not_shown_in_its_repr():
    assert "geheim" not in repr(Connection("redis://:geheim@127.0.0.1:1", "tested"))


async def test_an_error_answer_stands_among_the_others(connection):
    good, bad, last = await connection.call(("SET", "a", "1"), ("LPUSH", "a", "x"), ("GET", "a"))
    assert (good, last) == (b"OK", b"1")
    assert isinstance(bad, ServerError)
    assert bad.code == "WRONGTYPE"


async def test_a_connection_that_was_cut_while_nothing_was_asked_is_opened_again_unheard(connection, raw):
    await connection.call(("PING",))
    first = connection.client_id
    raw.client_kill_filter(_id=first)
    while not connection._protocol.is_lost:
        await asyncio.sleep(0)
    await connection.ready()
    assert connection.client_id != first
    assert await connection.call(("PING",)) == [b"PONG"]


async def test_a_lost_answer_is_an_error_and_the_next_call_has_a_connection_of_its_own(server):
    async with Proxy(server.socket) as proxy:
        connection = Connection(proxy.url, "tested")
        await connection.ready()
        proxy.drop_next_reply(b"INCR")
        with pytest.raises(StoreUnavailable, match="server closed the connection"):
            await connection.call(("INCR", "n"))
        assert await connection.call(("GET", "n")) == [b"1"], "it may have happened, and has; it is not repeated here"
        await connection.close()


@pytest.mark.parametrize(("is_restarted", "kills"), [(False, [b"CLIENT KILL ID 7"]), (True, [])])
async def test_what_may_still_run_on_the_server_is_ended_before_anything_is_repeated(is_restarted, kills):
    """A server that was restarted runs nothing of ours, and our number may be a stranger's there."""

    def answer(command: bytes) -> bytes | None:
        if command == b"INFO SERVER" and is_restarted and liar.connections > 1:
            return b"$13\r\nrun_id:other\n\r\n"
        return b"" if command == b"BLPOP LIST 0" else None

    async with Liar(answer) as liar:
        connection = Connection(liar.url, "tested")
        blocked = asyncio.create_task(connection.call(("BLPOP", "list", 0), wait_s=PATIENT_S))
        while not liar.heard(b"BLPOP"):
            await asyncio.sleep(0)
        blocked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await blocked
        assert await connection.call(("SET", "a", "1")) == [b"OK"]
        second = [command for number, command in liar.asked if number == 2 and command.startswith((b"CLIENT KILL", b"SET"))]
        assert second == [*kills, b"SET A 1"]
        await connection.close()


async def test_nothing_is_sent_to_another_server_process_than_the_one_that_is_meant(connection, raw):
    with pytest.raises(StoreUnavailable, match="was restarted"):
        await connection.call(("SET", "a", "1"), run_id="another server")
    assert raw.get("a") is None
    assert await connection.call(("SET", "a", "1"), run_id=connection.run_id) == [b"OK"]


async def test_a_master_that_has_become_a_replica_is_left_for_the_new_one():
    """What a replica refuses is written to nobody: the next call asks again where the master is."""
    is_replica = True
    async with Liar(lambda command: b"-READONLY You can't write\r\n" if command[:3] == b"SET" and is_replica else None) as liar:
        connection = Connection(liar.url, "tested")
        with pytest.raises(StoreUnavailable, match="is a replica now"):
            await connection.call(("PING",), ("SET", "a", "1"))
        is_replica = False
        assert await connection.call(("SET", "a", "1")) == [b"OK"]
        assert liar.heard(b"SET") == [1, 2], "over another connection"
        await connection.close()


# --- answers that are none ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [b"CLIENT ID", b"INFO SERVER"])
async def test_a_server_that_tells_neither_its_name_nor_our_number_for_now_is_none(command):
    is_busy = True
    async with Liar(lambda asked: b"-BUSY a script runs\r\n" if asked == command and is_busy else None) as liar:
        connection = Connection(liar.url, "tested")
        with pytest.raises(StoreUnavailable, match="BUSY a script runs"):
            await connection.ready()
        is_busy = False
        await connection.ready()
        assert (connection.run_id, connection.client_id) == ("liar", 7)
        await connection.close()


@pytest.mark.parametrize("answer", [b"-NOPERM no INFO for you\r\n", b"$6\r\na:b\r\nc\r\n", b"*0\r\n"])
async def test_a_server_that_may_not_say_its_name_has_none_and_serves(answer):
    async with Liar(lambda command: answer if command == b"INFO SERVER" else None) as liar:
        connection = Connection(liar.url, "tested")
        assert await connection.call(("PING",)) == [b"PONG"]
        assert connection.run_id == ""
        await connection.close()


async def test_what_speaks_another_language_is_no_server():
    def answer(command: bytes) -> bytes:
        raise Leave(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with Liar(answer) as liar:
        connection = Connection(liar.url, "tested")
        with pytest.raises(StoreUnavailable, match=f"Redis at redis://127.0.0.1:{liar.port}: "):
            await connection.call(("PING",))
        assert "closed" in repr(connection)


async def test_a_server_that_greets_and_never_answers_is_given_up_in_time():
    async with Liar(lambda command: b"" if command == b"TIME" else None) as liar:
        connection = Connection(liar.url, "tested", answer_s=0.05)
        with pytest.raises(StoreUnavailable, match="not a byte"):
            await connection.call(("TIME",))
        assert "closed" in repr(connection)
        await connection.close()


async def test_an_answer_of_more_bytes_than_are_allowed_is_given_up():
    async with Liar(lambda command: b"$40\r\n" + b"x" * 40 + b"\r\n" if command == b"TIME" else None) as liar:
        connection = Connection(liar.url, "tested", most_bytes=39)
        with pytest.raises(StoreUnavailable, match="more than 39 bytes"):
            await connection.call(("TIME",))


async def test_where_nobody_listens_the_error_names_the_server_without_its_password():
    connection = Connection("redis://:geheim@127.0.0.1:1", "tested")
    with pytest.raises(StoreUnavailable, match=r"Redis at redis://\*\*\*@127\.0\.0\.1:1: ") as caught:
        await connection.ready()
    assert "geheim" not in str(caught.value)


async def test_without_a_free_file_there_is_no_connection_for_now(monkeypatch):
    def full(url: str, address: str) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    connection = Connection(AWAY, "tested")
    with monkeypatch.context() as context:
        context.setattr("runtime.store.connection._connection_to", full)
        with pytest.raises(StoreUnavailable, match="Too many open files"):
            await connection.ready()


async def test_an_error_without_words_is_told_by_its_kind(monkeypatch):
    async def fails(connection: object) -> list[str]:
        raise LookupError

    monkeypatch.setattr("runtime.store.connection._addresses", fails)
    with pytest.raises(StoreUnavailable, match=f"Redis at {AWAY}: LookupError"):
        await Connection(AWAY, "tested").ready()


# --- an idle connection ------------------------------------------------------------------------------------------------------


@pytest.fixture
def _always_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.store.connection.IDLE_S", -1.0)


@pytest.mark.usefixtures("_always_idle")
async def test_an_idle_connection_is_asked_whether_it_still_is_one_and_kept():
    async with Liar() as liar:
        connection = Connection(liar.url, "tested")
        await connection.ready()
        await connection.ready()
        await connection.call(("SET", "a", "1"))
        assert (liar.connections, len(liar.heard(b"PING"))) == (1, 2)
        await connection.close()


@pytest.mark.usefixtures("_always_idle")
async def test_an_idle_connection_that_does_not_answer_is_left_for_another(monkeypatch):
    monkeypatch.setattr("runtime.store.connection.PROOF_S", 0.05)
    async with Liar(lambda command: b"" if command == b"PING" and liar.connections == 1 else None) as liar:
        connection = Connection(liar.url, "tested", answer_s=PATIENT_S)
        await connection.ready()
        assert await connection.call(("SET", "a", "1")) == [b"OK"]
        assert liar.heard(b"SET") == [2]
        await connection.close()


@pytest.mark.usefixtures("_always_idle")
async def test_who_is_cancelled_while_the_question_is_open_leaves_no_answer_for_the_next(monkeypatch):
    """The PONG that is still to come would be read as the answer to the next call."""

    def late(command: bytes) -> bytes | None:
        if liar.connections > 1:
            return None
        return {b"PING": b"", b"GET A": b"+PONG\r\n$1\r\n1\r\n"}.get(command)

    async with Liar(late) as liar:
        connection = Connection(liar.url, "tested", answer_s=PATIENT_S)
        await connection.ready()
        asking = asyncio.create_task(connection.call(("SET", "a", "1")))
        while not liar.heard(b"PING"):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        monkeypatch.setattr("runtime.store.connection.IDLE_S", PATIENT_S)
        assert await connection.call(("GET", "a")) == [b"OK"]
        assert liar.heard(b"GET") == [2]
        await connection.close()


async def test_who_waits_for_the_lock_finds_the_connection_that_another_has_opened_meanwhile(server):
    connection = Connection(server.url, "tested")
    opening = [asyncio.create_task(connection.ready()) for _ in range(3)]
    await asyncio.gather(*opening)
    assert "open" in repr(connection)
    client = server.client()
    assert [row["name"] for row in client.client_list()].count("tested") == 1
    client.close()
    await connection.close()


@pytest.mark.usefixtures("_always_idle")
async def test_a_connection_that_ends_with_the_answer_to_the_question_is_none():
    """The transport brings both in one turn, before the asker has run: what would be written next has nowhere to go."""
    async with Liar(lambda command: b"" if command == b"PING" else None) as liar:
        connection = Connection(liar.url, "tested")
        await connection.ready()
        protocol = connection._protocol
        asking = asyncio.create_task(connection.ready())
        await asyncio.sleep(0)
        protocol.data_received(b"+PONG\r\n")
        protocol.connection_lost(None)
        with pytest.raises(StoreUnavailable, match="the connection was closed"):
            await asking
        assert "closed" in repr(connection)
        await connection.close()


# --- several addresses -----------------------------------------------------------------------------------------------------


async def test_the_next_address_of_a_name_is_tried_when_one_refuses(monkeypatch):
    real = socket.getaddrinfo

    def resolve(host: str, *args: object, **options: object) -> list[object]:
        names = ["127.0.0.2", "127.0.0.1"] if host == "redis.example" else [host]
        return [found for name in names for found in real(name, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with Liar() as liar:
        connection = Connection(f"redis://redis.example:{liar.port}", "tested")
        assert await connection.call(("PING",)) == [b"PONG"]
        await connection.close()
        away = Connection(f"redis://redis.example:{free_ports()}", "tested")
        with pytest.raises(StoreUnavailable, match=r"redis\.example"):
            await away.call(("PING",))


# --- sentinels -------------------------------------------------------------------------------------------------------------


def sentinel(*rows: bytes) -> Callable[[bytes], bytes | None]:
    """Return what a sentinel answers that knows these masters."""
    return lambda command: b"*%d\r\n" % len(rows) + b"".join(rows) if command == b"SENTINEL MASTERS" else None


def master(port: int, name: bytes = b"kept", flags: bytes = b"master") -> bytes:
    return texts(b"name", name, b"ip", b"127.0.0.1", b"port", b"%d" % port, b"flags", flags)


def at(*sentinels: Liar | int, password: str = "", service: str = "kept") -> Connection:
    """Return a connection to the master that these sentinels name."""
    hosts = ",".join(f"127.0.0.1:{one if isinstance(one, int) else one.port}" for one in sentinels)
    return Connection(f"sentinel://{f':{password}@' if password else ''}{hosts}/{service}", "tested")


async def test_the_master_is_asked_for_each_time_a_connection_is_opened():
    rows: list[bytes] = []

    def answer(command: bytes) -> bytes | None:
        return sentinel(*rows)(command)

    async with Liar() as old, Liar() as new, Liar(answer) as asked:
        rows[:] = [master(old.port)]
        connection = at(asked)
        await connection.call(("SET", "a", "1"))
        await connection.close()
        rows[:] = [master(new.port)]
        await connection.call(("SET", "a", "2"))
        await connection.close()
    assert (len(old.heard(b"SET")), len(new.heard(b"SET"))) == (1, 1)


async def test_sentinels_that_are_away_or_know_no_living_master_are_passed_over():
    strangers = (
        Liar(sentinel(master(1, flags=b"master,o_down"), master(1, b"other"))),
        Liar(lambda _: b"-ERR unknown command\r\n"),
    )
    async with Liar() as server, strangers[0] as lost, strangers[1] as none, Liar(sentinel(master(server.port))) as good:
        for _ in range(8):  # they are asked in another order each time
            connection = at(free_ports(), lost, none, good)
            assert await connection.call(("PING",)) == [b"PONG"]
            await connection.close()


async def test_where_no_sentinel_knows_a_master_the_error_names_the_service_and_no_password():
    async with Liar(sentinel(master(1, b"other"))) as asked:
        connection = at(asked, password="geheim")
        with pytest.raises(StoreUnavailable, match="no sentinel knows a living master 'kept', or lets us ask") as caught:
            await connection.ready()
    assert "geheim" not in str(caught.value)


async def test_a_sentinel_that_wants_a_password_is_asked_again_with_that_of_the_url():
    known: set[bytes] = set()

    def answer(command: bytes) -> bytes | None:
        if command.startswith(b"AUTH"):
            known.add(command)
        elif command == b"SENTINEL MASTERS":
            return sentinel(master(server.port))(command) if known else b"-NOAUTH Authentication required.\r\n"
        return None

    async with Liar() as server, Liar(answer) as asked:
        connection = at(asked, password="geheim")
        assert await connection.call(("PING",)) == [b"PONG"]
        await connection.close()
        assert known == {b"AUTH GEHEIM"}
        assert server.asked[0] == (1, b"AUTH GEHEIM"), "the master has the same one"
        known.clear()
        with pytest.raises(MasterNotFoundError):
            await one_connection(f"sentinel://127.0.0.1:{asked.port}/kept").connect()


@pytest.mark.parametrize(
    ("replication", "role"),
    [(b"$11\r\nrole:slave\r\n\r\n", "a slave"), (b"*0\r\n", "server without a role")],
)
async def test_a_server_that_the_sentinels_take_for_the_master_and_is_none_is_not_talked_to(replication, role):
    """They learn of a failover one after the other."""
    is_none = Liar(lambda command: replication if command == b"INFO REPLICATION" else None)
    async with is_none as server, Liar(sentinel(master(server.port))) as asked:
        connection = at(asked)
        with pytest.raises(StoreUnavailable, match=f"the sentinels name a server that is .*{role}"):
            await connection.call(("SET", "a", "1"))
    assert server.heard(b"SET") == []


async def test_a_sentinel_leads_to_a_real_master(server, raw):
    """The kind of server that is asked for its role, and its answer."""
    port = free_ports()
    raw.config_set("port", port)
    try:
        async with Liar(sentinel(master(port))) as asked:
            connection = at(asked)
            assert await connection.call(("SET", "a", "1")) == [b"OK"]
            await connection.close()
    finally:
        raw.config_set("port", 0)
