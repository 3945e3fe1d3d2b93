"""What `durability` is worth: on disk, in a replica's memory, or an error that says so; and what `local` loses."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from runtime import ConfigError, Message, NotDurable, Producer, StoreUnavailable, contract
from tests.faults.harness import ROOT
from tests.proxy import Proxy
from tests.servers import Server, binary_of, free_ports, wait_until

KEY = "{jobs}:medium"
PATIENCE_S = 2.0  # more than a first send takes on a busy machine


@contract("kept")
class Kept(msgspec.Struct, frozen=True, kw_only=True):
    n: int


@pytest.fixture
def on_disk() -> Iterator[Server]:
    server = Server("valkey", "--appendfsync", "everysec", appendonly=True)
    yield server
    server.stop()


class Pair:
    """A master and its replica; the replica may be frozen."""

    def __init__(self) -> None:
        self.port = free_ports()
        self.master = Server("valkey", "--bind", "127.0.0.1", "--port", str(self.port), "--repl-diskless-sync-delay", "0")
        self.replica = Server("valkey", "--replicaof", f"127.0.0.1 {self.port}")
        wait_until(lambda: self.replica.client().info("replication")["master_link_status"] == "up", what="the replica follows")

    def freeze(self) -> None:
        assert self.replica.process
        self.replica.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.replica.process
        self.replica.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.thaw()
        self.replica.stop()
        self.master.stop()


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    servers = Pair()
    yield servers
    servers.stop()


@pytest.fixture
def pair(_pair: Pair) -> Iterator[Pair]:
    """Both empty, and the replica up to date."""
    _pair.thaw()
    _pair.master.client().flushall()
    wait_until(lambda: _pair.master.client().execute_command("WAIT", 1, 100) == 1, what="the replica follows")
    wait_until(lambda: not _pair.replica.client().keys("*"), what="the replica is empty")
    yield _pair
    _pair.thaw()


def producer_to(url: str, durability: str = "local") -> Producer:
    return Producer.connect(url, durability=durability, patience_s=PATIENCE_S)


# --- fsync ---------------------------------------------------------------------------------------------------------------


async def test_a_send_with_fsync_is_confirmed_by_the_disk_and_survives_kill_9(on_disk):
    async with producer_to(on_disk.url) as producer:
        one = await producer.send(Kept(n=0), durability="fsync")
        many = await producer.send_many([Kept(n=n) for n in range(1, 1200)], durability="fsync")
    asked = on_disk.client().info("commandstats")["cmdstat_waitaof"]["calls"]
    assert asked >= 4, "every chunk is confirmed on its own"
    on_disk.kill()
    on_disk.start()
    stored = {f"medium-{entry}" for entry, _ in on_disk.client().xrange(KEY)}
    assert stored == {sent.id for sent in [one, *many]}


async def test_without_a_file_fsync_is_refused_before_anything_is_stored(valkey):
    async with producer_to(valkey.url, "fsync") as producer:
        with pytest.raises(ConfigError, match="appendonly yes"):
            await producer.send(Kept(n=1))
        assert valkey.client().xlen(KEY) == 0
        await producer.send(Kept(n=2), durability="local")
    assert valkey.client().xlen(KEY) == 1


async def test_a_file_that_is_closed_under_way_is_an_error_with_what_was_stored(on_disk):
    async with producer_to(on_disk.url, "fsync") as producer:
        await producer.send(Kept(n=1))
        on_disk.client().config_set("appendonly", "no")
        with pytest.raises(NotDurable, match="appendonly is disabled") as caught:
            await producer.send(Kept(n=2), id="second")
    assert [sent.id for sent in caught.value.sent] == ["second"]
    assert on_disk.client().xlen(KEY) == 2


@pytest.mark.skipif(not binary_of("redis"), reason="no Debian Redis")
@pytest.mark.parametrize(("fsync", "is_kept"), [("always", True), ("everysec", False)])
async def test_a_redis_before_7_2_can_confirm_only_by_always(fsync, is_kept):
    server = Server("redis", "--appendfsync", fsync, appendonly=True)
    try:
        if server.client().info("server")["redis_version"].split(".")[:2] != ["7", "0"]:
            pytest.skip("this Redis is newer")
        async with producer_to(server.url, "fsync") as producer:
            if is_kept:
                await producer.send(Kept(n=1))
            else:
                with pytest.raises(ConfigError, match=r"older than 7\.2.*appendfsync always"):
                    await producer.send(Kept(n=1))
        assert server.client().xlen(KEY) == is_kept
    finally:
        server.stop()


# --- replicas --------------------------------------------------------------------------------------------------------------


async def test_a_send_with_replicas_is_in_the_replica_when_it_returns(pair):
    async with producer_to(pair.master.url, "replicas=1") as producer:
        for n in range(20):
            sent = await producer.send(Kept(n=n))
            assert pair.replica.client().xrevrange(KEY, count=1)[0][0] == sent.id.removeprefix("medium-")


async def test_a_frozen_replica_is_an_error_in_time_and_a_repeat_with_the_key_makes_no_second_job(pair):
    async with producer_to(pair.master.url, "replicas=1") as producer:
        await producer.send(Kept(n=0))
        pair.freeze()
        for is_new in (True, False):  # the repeat waits for its confirmation just the same
            with pytest.raises(NotDurable, match="0 of 1 replicas") as caught:
                await producer.send(Kept(n=1), key="once")
            assert [sent.new for sent in caught.value.sent] == [is_new]
        pair.thaw()
        wait_until(lambda: pair.replica.client().info("replication")["master_link_status"] == "up", what="it follows again")
        assert not (await producer.send(Kept(n=1), key="once")).new
    assert pair.master.client().xlen(KEY) == pair.replica.client().xlen(KEY) == 2


async def test_more_replicas_than_there_are_is_an_error(pair):
    async with producer_to(pair.master.url) as producer:
        with pytest.raises(NotDurable, match="only 1 of 2 replicas"):
            await producer.send_many([Kept(n=n) for n in range(3)], durability="replicas=2")


async def test_a_repeat_after_a_lost_reply_is_not_confirmed_by_a_replica_that_lacks_it(pair):
    """The repeat comes over a new connection: one that has written nothing is confirmed whatever the replica has."""
    async with Proxy(pair.master.socket) as proxy, producer_to(proxy.url, "replicas=1") as producer:
        await producer.send(Kept(n=0))
        pair.freeze()
        proxy.drop_next_reply(b"EVALSHA")
        with pytest.raises((NotDurable, StoreUnavailable)) as caught:
            await producer.send(Kept(n=1))
        assert isinstance(caught.value, NotDurable)
        assert proxy.dropped == 1
    assert pair.master.client().xlen(KEY) == 2


async def test_a_script_that_the_server_forgot_is_loaded_and_confirmed_all_the_same(pair):
    async with producer_to(pair.master.url, "replicas=1") as producer:
        for n in range(2):
            await producer.send(Kept(n=n))
        pair.master.client().script_flush()
        pair.freeze()
        with pytest.raises(NotDurable):
            await producer.send(Kept(n=2))
    assert pair.master.client().xlen(KEY) == 3


async def test_a_local_send_waits_for_nobodys_replica(pair):
    async with producer_to(pair.master.url) as producer:
        pair.freeze()
        waits = asyncio.create_task(producer.send(Kept(n=1), durability="replicas=1"))
        await asyncio.sleep(0)
        assert (await producer.send(Kept(n=2))).new
        assert not waits.done()
        with pytest.raises(NotDurable):
            await waits


async def test_each_of_many_tasks_hears_of_its_own_message(pair):
    async with producer_to(pair.master.url, "replicas=1") as producer:
        pair.freeze()
        answers = await asyncio.gather(*[producer.send(Kept(n=n), id=f"k-{n}") for n in range(50)], return_exceptions=True)
    assert [answer.sent[0].id for answer in answers if isinstance(answer, NotDurable)] == [f"k-{n}" for n in range(50)]


@pytest.mark.parametrize("word", ["", "disk", "replicas", "replicas=0", "replicas=-1", "replicas=x", "replicas=1001", "fsync "])
async def test_a_durability_that_is_none_is_refused_before_anything_is_sent(valkey, word):
    with pytest.raises(ConfigError, match="durability"):
        producer_to(valkey.url, word)
    async with producer_to(valkey.url) as producer:
        if word:  # an empty one is the producer's own
            with pytest.raises(ConfigError, match="durability"):
                await producer.send(Kept(n=1), durability=word)
        assert valkey.client().keys("*") == []


# --- the command -------------------------------------------------------------------------------------------------------------


def enqueue(server: Server, *options: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runtime", "enqueue", "scripted", "-" if stdin else '{"n":1}', "--redis", server.url]
    command += ["--handlers", "tests.faults.jobs", *options]
    return subprocess.run(command, cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120)


def test_enqueue_waits_for_the_durability_it_was_told(on_disk):
    done = enqueue(on_disk, "--durability", "fsync")
    assert (done.returncode, done.stdout.strip()) == (0, f"medium-{on_disk.client().xrange(KEY)[0][0]}")
    assert on_disk.client().info("commandstats")["cmdstat_waitaof"]["calls"] >= 1
    bad = enqueue(on_disk, "--durability", "paper")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "local, fsync, replicas=1" in bad.stderr
    lonely = enqueue(on_disk, "--durability", "replicas=1", stdin='{"n":2}\n{"n":3}\n')
    assert (lonely.returncode, lonely.stdout.strip()) == (1, "2 sent")
    assert "0 of 1 replicas" in lonely.stderr
    assert on_disk.client().xlen(KEY) == 3


# --- a disk that stalls --------------------------------------------------------------------------------------------------------

STALL = """
#include <time.h>
int fdatasync(int fd) { struct timespec t = {1, 800000000}; (void)fd; return nanosleep(&t, 0); }
"""
KILLS = 4
SEND_S = 4.0


async def _send_until_cut(url: str, durability: str, acknowledged: set[str]) -> None:
    async with Producer.connect(url, durability=durability, patience_s=2) as producer:
        with contextlib.suppress(StoreUnavailable, NotDurable):
            while True:
                size = 500 if durability == "local" else 50
                chunk = [Message(payload=Kept(n=n), id=f"{durability}-{len(acknowledged) + n}") for n in range(size)]
                acknowledged |= {sent.id for sent in await producer.send_many(chunk)}


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler: the disk cannot be made to stall")
async def test_fsync_loses_nothing_when_the_disk_stalls_and_the_server_is_killed(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "stall.c").write_text(STALL)
    library = tmp_path / "stall.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "stall.c"], check=True)
    lost, sent = {"local": 0, "fsync": 0}, {"local": 0, "fsync": 0}
    for _ in range(KILLS):
        monkeypatch.setenv("LD_PRELOAD", str(library))
        server = Server("valkey", "--appendfsync", "everysec", appendonly=True)
        try:
            acknowledged: dict[str, set[str]] = {"local": set(), "fsync": set()}
            senders = [asyncio.create_task(_send_until_cut(server.url, mode, ids)) for mode, ids in acknowledged.items()]
            await asyncio.sleep(SEND_S)  # how long it is sent, not a wait for something
            server.kill()
            await asyncio.gather(*senders)
            monkeypatch.delenv("LD_PRELOAD")
            server.start()
            stored = {fields["id"] for _, fields in server.client().xrange(KEY)}
        finally:
            server.stop()
        for mode, ids in acknowledged.items():
            sent[mode] += len(ids)
            lost[mode] += len(ids - stored)
    print(f"{KILLS} kill -9 with fdatasync stalled for 1.8 s: " + ", ".join(f"{m} lost {lost[m]} of {sent[m]}" for m in sent))
    assert sent["fsync"] > 0
    assert lost["fsync"] == 0
    assert lost["local"] > 0, "nothing was put off: the fault hit nothing, and the run says nothing"
