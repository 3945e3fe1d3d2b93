"""A master is killed, the sentinels make its replica the master: workers and producers find it, and go on."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import redis
from redis.asyncio.sentinel import MasterNotFoundError

from runtime import Message, NotDurable, Producer, StoreUnavailable
from runtime.store.connection import one_connection
from runtime.store.inspector import Inspector
from tests.faults.harness import ROOT, Worker, events, hire, leftovers
from tests.faults.jobs import Scripted
from tests.servers import Server, binary_of, free_ports, wait_until

SERVICE = "kept"
KEY = "{jobs}:medium"
LEASE_S = 1.5


class Watch:
    """Two servers, one of them the other's replica, and three sentinels; a user with a password for the runtime."""

    def __init__(self) -> None:
        first_port = free_ports(5)
        self.ports = [first_port, first_port + 1]
        self.folder = Path(tempfile.mkdtemp(prefix="bs-"))
        settings = self.folder / "users.conf"
        settings.write_text(
            "user jobs on >geheim ~* &* +@all\nuser follower on >follows ~* &* +@all\n"
            "masteruser follower\nmasterauth follows\nrepl-diskless-sync-delay 0\n"
        )
        common = ("--bind", "127.0.0.1", "--include", str(settings))
        first = Server("valkey", "--port", str(self.ports[0]), *common, appendonly=True)
        second = Server(
            "valkey", "--port", str(self.ports[1]), *common, "--replicaof", f"127.0.0.1 {self.ports[0]}", appendonly=True
        )
        self.servers = [first, second]
        wait_until(lambda: second.client().info("replication")["master_link_status"] == "up", what="the replica follows")
        self.sentinel_ports = [first_port + more for more in (2, 3, 4)]
        self.sentinels = [self._sentinel(port) for port in self.sentinel_ports]
        wait_until(self._is_watched, what="the sentinels know each other and the replica")

    def _sentinel(self, port: int) -> subprocess.Popen[bytes]:
        settings = self.folder / f"{port}.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.ports[0]} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} 500\nsentinel failover-timeout {SERVICE} 3000\n"
        )
        command = [str(binary_of("valkey")), str(settings), "--sentinel"]
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def _is_watched(self) -> bool:
        return all(
            (seen := self.ask(port, "MASTER")) and seen["num-other-sentinels"] == seen["num-slaves"] + 1 == 2
            for port in self.sentinel_ports
        )

    def ask(self, port: int, what: str) -> dict[str, int]:
        client = redis.Redis(port=port, decode_responses=True, protocol=2)
        try:
            flat = client.execute_command(f"SENTINEL {what}", SERVICE)
            found = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
            return {name: int(value) for name, value in found.items() if str(value).isdigit()}
        except redis.RedisError:
            return {}
        finally:
            client.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"sentinel://jobs:geheim@{hosts}/{SERVICE}"

    def cut_replication(self, master: int) -> None:
        """From now on the replica gets nothing of what the master writes."""
        client = self.servers[master].client()
        client.execute_command("ACL", "SETUSER", "follower", "off")
        client.execute_command("CLIENT", "KILL", "TYPE", "replica")
        client.close()

    def role(self, number: int) -> str:
        client = self.servers[number].client()
        try:
            return client.info("replication")["role"]
        except redis.RedisError:
            return "away"
        finally:
            client.close()

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
            sentinel.wait()
        for server in self.servers:
            server.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def watched() -> Iterator[Watch]:
    watch = Watch()
    try:
        yield watch
    finally:
        watch.stop()


class Sender:
    """Sends numbered jobs until told to stop, and keeps what was acknowledged."""

    def __init__(self, url: str, durability: str, first: int, patience_s: float) -> None:
        self.acknowledged: set[int] = set()
        self.refusals: list[str] = []
        self.is_over = False
        self._url, self._durability, self._next, self._patience_s = url, durability, first, patience_s

    async def run(self) -> None:
        async with Producer.connect(self._url, durability=self._durability, patience_s=self._patience_s) as producer:
            while not self.is_over:
                numbers = range(self._next, self._next + 5)
                self._next += 5
                try:
                    await producer.send_many([Message(payload=Scripted(n=n, ms=20), delay_s=n % 2 * 3) for n in numbers])
                    self.acknowledged |= set(numbers)
                except (StoreUnavailable, NotDurable) as error:
                    self.refusals.append(str(error))
                await asyncio.sleep(0.005)


async def held(is_true, deadline_s: float = 20.0, what: str = "the condition") -> None:
    await asyncio.to_thread(wait_until, is_true, deadline_s, what)


def lost(sender: Sender, history: Path, raw: redis.Redis) -> set[int]:
    """Return the acknowledged jobs that neither ended nor died."""
    done = {event.n for event in events(history) if event.kind == "end"}
    done |= {msgspec.json.decode(fields["data"])["n"] for _, fields in raw.xrange("{jobs}:dead")}
    return sender.acknowledged - done


async def fail_over(watch: Watch, crew: list[Worker], history: Path, rounds: int, lag_s: float) -> dict[str, tuple[int, int]]:
    """Kill the master while workers run and producers send, `rounds` times; give lost and acknowledged jobs by durability."""
    for _ in range(2):
        await asyncio.to_thread(hire, crew, watch, history)
    senders = {
        "local": Sender(watch.url, "local", 0, patience_s=10.0),
        "replicas=1": Sender(watch.url, "replicas=1", 1_000_000, patience_s=0.3),
    }
    sending = [asyncio.create_task(sender.run()) for sender in senders.values()]
    master = 0
    for number in range(rounds):
        before = {name: len(sender.acknowledged) for name, sender in senders.items()}
        await held(lambda: all(len(s.acknowledged) > before[name] + 100 for name, s in senders.items()), 40, "both send")  # noqa: B023
        if lag_s:
            watch.cut_replication(master)
            await asyncio.sleep(lag_s)  # how long the replica lags
        watch.servers[master].kill()
        sent = len(senders["local"].acknowledged)
        await held(lambda: watch.role(1 - master) == "master", 30, "the replica is promoted")  # noqa: B023
        await held(lambda: len(senders["local"].acknowledged) > sent + 100, what="sends go on")  # noqa: B023
        master = 1 - master
        if number + 1 < rounds:
            watch.servers[1 - master].start()
            await held(lambda: watch.role(1 - master) == "slave", 40, "the old master follows the new one")  # noqa: B023
    for sender in senders.values():
        sender.is_over = True
    await asyncio.gather(*sending)
    raw = watch.servers[master].client()
    await held(lambda: not leftovers(raw), 30, "everything is settled")
    figures = {name: (len(lost(sender, history, raw)), len(sender.acknowledged)) for name, sender in senders.items()}
    raw.close()
    for worker in crew:
        assert worker.process.poll() is None, worker.log
        assert "Traceback" not in worker.log
        assert "geheim" not in worker.log
    assert not any("geheim" in text for sender in senders.values() for text in sender.refusals)
    return figures


async def test_workers_and_producers_follow_a_failover(tmp_path, crew):
    with watched() as watch:
        figures = await fail_over(watch, crew, tmp_path, rounds=1, lag_s=0)
        print(f"one failover: lost of acknowledged {figures}")
        assert figures["replicas=1"][0] == 0
        assert figures["replicas=1"][1] >= 100
        done = await asyncio.to_thread(doctor, watch)
        assert "slave" not in done.stdout
        assert "geheim" not in done.stdout + done.stderr
        assert "2 workers" in done.stdout, done


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_what_the_one_replica_has_confirmed_survives_failovers_with_a_lagging_replica(tmp_path, crew):
    with watched() as watch:
        figures = await fail_over(watch, crew, tmp_path, rounds=2, lag_s=1.0)
        print(f"two failovers, replication cut for 1 s before each: lost of acknowledged {figures}")
        assert figures["replicas=1"][0] == 0
        assert figures["local"][0] > 0, "the replica did not lag: the run says nothing"


def doctor(watch: Watch) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "REDIS_URL": watch.url}
    return subprocess.run([sys.executable, "-m", "runtime", "doctor"], cwd=ROOT, env=environment, capture_output=True, text=True)


# --- the URL -------------------------------------------------------------------------------------------------------------------


async def test_without_a_sentinel_that_answers_the_store_is_away_and_no_password_is_shown():
    inspector = Inspector("sentinel://jobs:geheim@127.0.0.1:1,127.0.0.1:2/kept", "jobs")
    with pytest.raises(StoreUnavailable, match="no sentinel knows a living master 'kept'") as caught:
        await inspector.server()
    assert "geheim" not in str(caught.value)
    await inspector.close()


@pytest.fixture
def lone(valkey, tmp_path) -> Iterator[tuple[Server, str]]:
    """A server, and the URL by which its one sentinel is asked for it."""
    port = free_ports(2)
    sentinel_port = port + 1
    server = Server("valkey", "--port", str(port), "--bind", "127.0.0.1")
    settings = tmp_path / "sentinel.conf"
    settings.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor kept 127.0.0.1 {port} 1\n"
        "sentinel down-after-milliseconds kept 60000\n"
    )
    sentinel = subprocess.Popen([str(binary_of("valkey")), str(settings), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: redis.Redis(port=sentinel_port).ping(), 10, "the sentinel answers")
        yield server, f"sentinel://127.0.0.1:{sentinel_port}/kept"
    finally:
        sentinel.kill()
        sentinel.wait()
        server.stop()


async def test_a_replica_that_a_sentinel_takes_for_the_master_is_not_talked_to(lone):
    """The sentinel is asked before it has heard of the failover."""
    server, url = lone
    inspector = Inspector(url, "jobs")
    assert (await inspector.server()).role == "master"
    async with Producer.connect(url, patience_s=2.0) as producer:
        await producer.send(Scripted(n=1))
        server.client().replicaof("127.0.0.1", "1")
        with pytest.raises(StoreUnavailable, match="name a server that is a slave"):  # so it has asked again
            await producer.send(Scripted(n=2))
    await inspector.close()
    with pytest.raises(StoreUnavailable, match="slave"):
        await inspector.server()


async def test_a_sentinel_with_a_password_is_asked_with_that_of_the_url(lone):
    server, url = lone
    sentinel = redis.Redis.from_url(f"redis://{url[11:-5]}")
    for one in (server.client(), sentinel):
        one.execute_command("ACL", "SETUSER", "default", "resetpass", ">geheim")
        one.close()
    inspector = Inspector(url.replace("//", "//:geheim@"), "jobs")
    assert (await inspector.server()).role == "master"
    await inspector.close()
    with pytest.raises(MasterNotFoundError, match="or lets us ask"):
        await one_connection(url).connect()


async def test_a_cancel_while_the_master_is_looked_for_is_never_lost(lone):
    """In whichever turn of the loop it comes: a producer that is closed just then would wait for its sender for ever."""
    _, url = lone
    for turns in range(10_000):
        connection = one_connection(url)
        looking = asyncio.create_task(connection.connect())
        for _ in range(turns):
            await asyncio.sleep(0)
        if looking.done():
            break
        looking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await looking
        await connection.disconnect(nowait=True)
    await looking
    assert turns > 10, "it was cancelled in all of its stages"
    await connection.disconnect(nowait=True)
