"""The producer for plain code: it does what the other one does, from any thread, and leaves none behind."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from runtime import (
    BadPayload,
    ConfigError,
    Job,
    Message,
    PartlySent,
    Producer,
    ResultTimeout,
    Sent,
    StoreUnavailable,
    SyncProducer,
    contract,
    handler,
    portal,
)
from runtime.testing import worker
from tests.proxy import Proxy
from tests.servers import Server, wait_until

ROOT = Path(__file__).parents[2]
KEY = "{jobs}:medium"


@contract("order")
class Order(msgspec.Struct):
    n: int


@handler(Order, result_ttl_s=60)
async def double(message: Order, job: Job) -> int:
    return 2 * message.n


@pytest.fixture
def producer(valkey: Server) -> Iterator[SyncProducer]:
    with SyncProducer(valkey.url, source="shop") as opened:
        yield opened


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name == "jobs-sync-producer"]


def test_it_sends_as_the_other_one_does(producer: SyncProducer, valkey: Server):
    raw = valkey.client()
    first = producer.send(Order(1), key="k", group="g")
    assert raw.xrange(KEY) == [
        (first.id.removeprefix("medium-"), {"key": "k", "group": "g", "src": "shop", "type": "order", "data": '{"n":1}'})
    ]
    assert producer.send(Order(2), key="k") == Sent(first.id, new=False)
    with pytest.raises(BadPayload, match="attempts"):
        producer.send(Order(3), attempts=0)
    with pytest.raises(PartlySent):
        raw.set("{jobs}:low", "no stream")
        producer.send_many([Order(4), Message(payload=Order(5), priority="low")])
    with pytest.raises(ResultTimeout):
        producer.result(first, 0)


@pytest.mark.parametrize("name", ["__init__", "send", "result", "close"])
def test_what_it_takes_is_what_the_other_one_takes(name: str):
    theirs, ours = inspect.signature(getattr(Producer, name)), inspect.signature(getattr(SyncProducer, name))
    assert str(ours) == str(theirs)
    assert inspect.getdoc(getattr(SyncProducer, name)) is not None or name == "__init__"


async def test_a_thread_waits_for_a_result_of_its_type(valkey: Server):
    def ask() -> int:
        with SyncProducer(valkey.url) as producer:
            return producer.result(producer.send(Order(21)), type=int)

    async with worker(valkey.url, double):
        assert await asyncio.to_thread(ask) == 42


def test_messages_are_made_and_progress_is_told_in_the_thread_that_sends(producer: SyncProducer, valkey: Server):
    """A cursor of a database may be bound to its thread."""
    seen: set[int] = set()
    told: list[tuple[int, int]] = []

    def orders() -> Iterator[Order]:
        for n in range(1200):
            seen.add(threading.get_ident())
            yield Order(n)

    sent = producer.send_many(orders(), progress=lambda stored: told.append((stored, threading.get_ident())))
    assert len(sent) == 1200
    assert [stored for stored, _ in told] == [500, 1000, 1200]
    assert seen == {thread for _, thread in told} == {threading.get_ident()}
    assert [json.loads(fields["data"])["n"] for _, fields in valkey.client().xrange(KEY)] == list(range(1200))


def test_what_messages_or_progress_raise_ends_the_sending(producer: SyncProducer, valkey: Server):
    def source() -> Iterator[Order]:
        yield from (Order(n) for n in range(1200))
        raise KeyError("no more")

    def stop(stored: int) -> None:
        raise InterruptedError(stored)

    with pytest.raises(KeyError, match="no more"):
        producer.send_many(source())
    assert valkey.client().xlen(KEY) == 1000, "as of Producer: what came before its chunk is stored"
    with pytest.raises(InterruptedError):
        producer.send_many((Order(n) for n in range(5000)), progress=stop)
    assert valkey.client().xlen(KEY) < 1000 + 5000


def test_threads_share_one_thread_and_one_connection(producer: SyncProducer, valkey: Server):
    with ThreadPoolExecutor(8) as pool:
        sent = list(pool.map(lambda n: producer.send(Order(n)), range(200)))
    assert len({one.id for one in sent}) == 200 == valkey.client().xlen(KEY)
    assert threads() == ["jobs-sync-producer"]
    assert [one["name"] for one in valkey.client().client_list()].count("producer") == 1


async def test_where_a_loop_runs_it_says_what_to_do_there(valkey: Server):
    with pytest.raises(ConfigError, match=r"an event loop runs in this thread.*; hint: await Producer\.send"):
        SyncProducer(valkey.url).send(Order(1))


def test_the_last_one_that_is_closed_takes_the_thread_along(valkey: Server):
    with SyncProducer(valkey.url) as kept:
        kept.send(Order(0))
        with SyncProducer(valkey.url) as producer:
            producer.send(Order(1))
        assert threads()
        with pytest.raises(ConfigError, match="this Producer is closed; hint: `with` opens it again"):
            producer.send(Order(2))
        with producer:
            producer.send(Order(3))
    assert threads() == []
    with pytest.raises(ConfigError, match="closed"):
        kept.send(Order(4))
    assert threads() == [], "to say so needs none"


def test_one_that_is_forgotten_takes_thread_and_connection_along(valkey: Server):
    SyncProducer(valkey.url).send(Order(1))
    gc.collect()
    wait_until(lambda: not threads(), what="the thread ends")
    wait_until(lambda: "producer" not in [one["name"] for one in valkey.client().client_list()], what="so does its connection")


def interrupted(error: type[BaseException], call: Callable[[], object]) -> None:
    """Raise in this thread, as a signal's handler does, while the call waits."""

    def strike(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, strike)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(error):
            call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Proxied:
    """A proxy in a loop of its own, for tests without one."""

    def __init__(self, target: Server) -> None:
        self.proxy = Proxy(target.socket)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def call(self, work: Callable[[], object]) -> None:
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (work(), done.set()))
        assert done.wait(10)

    def __enter__(self) -> Proxied:
        self.thread.start()
        self.do(self.proxy.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.do(self.proxy.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_cancels_what_is_not_sent_yet(valkey: Server, error: type[BaseException]):
    raw = valkey.client()
    with Proxied(valkey) as proxied, SyncProducer(proxied.proxy.url, patience_s=60) as producer:
        producer.send(Order(0))
        proxied.call(proxied.proxy.stall)
        interrupted(error, lambda: producer.send_many(Order(n) for n in range(1, 3000)))
        proxied.call(proxied.proxy.calm)
        producer.send(Order(-1))
    numbers = [json.loads(fields["data"])["n"] for _, fields in raw.xrange(KEY)]
    assert numbers in ([0, -1], [0, *range(1, 501), -1]), "at most the chunk that was under way"


def test_ctrl_c_while_messages_are_made_cancels_too(producer: SyncProducer, valkey: Server):
    def endless() -> Iterator[Order]:
        while True:
            time.sleep(0.01)
            yield Order(1)

    interrupted(KeyboardInterrupt, lambda: producer.send_many(endless()))
    assert valkey.client().xlen(KEY) == 0
    assert producer.send(Order(2)).new


PROCESSES = """
import atexit, contextlib, multiprocessing, os, sys, threading, time
import msgspec
from runtime import JobsError, SyncProducer, contract

@contract("order")
class Order(msgspec.Struct):
    n: int

producer, dead = SyncProducer(sys.argv[1]), SyncProducer("redis://127.0.0.1:1", patience_s=600)

def ten(first):
    for n in range(first, first + 10):
        producer.send(Order(n))

def ten_and_leave(first):
    ten(first)
    sys.exit(0)

def child(run):
    pid = os.fork()
    if pid:
        return pid
    try:
        run()
    except BaseException as error:
        print(repr(error), flush=True)
        os._exit(1)
    os._exit(0)

def stuck():
    with contextlib.suppress(JobsError):
        dead.send(Order(0))

ten(0)
threads = [threading.Thread(target=ten, args=(100 * n,)) for n in range(1, 5)]
for one in threads:
    one.start()
pids = [child(lambda n=n: ten(1000 * n)) for n in range(1, 4)]  # while threads of the parent send
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
for one in threads:
    one.join()
ten(500)
forked = multiprocessing.get_context("fork").Process(target=ten_and_leave, args=(5000,))
forked.start()
forked.join(30)
print([*statuses, forked.exitcode], flush=True)
atexit.register(lambda: print(producer.send(Order(7)).new, flush=True))
threading.Thread(target=stuck, daemon=True).start()
time.sleep(0.2)
"""


def test_forked_processes_send_on_and_the_end_of_a_process_waits_for_nobody(valkey: Server):
    """gunicorn --preload and multiprocessing fork; a send that waits in a daemon thread, for 600 s, holds up nothing."""
    # Python from 3.12 on warns of each fork beside threads, which is what this is about.
    warnings = ("-W", "always", "-W", "ignore::DeprecationWarning")
    command = [sys.executable, *warnings, "-c", PROCESSES, valkey.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["[0, 0, 0, 0]", "True"]
    assert valkey.client().xlen(KEY) == 10 * (1 + 4 + 3 + 1 + 1) + 1


AT_THE_END = """
import sys
from runtime import SyncProducer
from tests.contract.test_sync_producer import Order

producer = SyncProducer(sys.argv[1])
producer.send(Order(0))

class Late:
    def __del__(self):
        try:
            producer.send(Order(1))
        except Exception as error:
            print(type(error).__name__, error, flush=True)

late = Late()
late.me = late  # a cycle: it ends with the interpreter
"""


def test_what_sends_when_the_interpreter_is_being_taken_down_is_refused(valkey: Server):
    """No thread runs any more: who waited for one would wait for ever."""
    command = [sys.executable, "-c", AT_THE_END, valkey.url]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "ConfigError the process ends: nothing was sent")


@pytest.mark.parametrize("given", [{"delays": 3}, {"priority": 1, "urgent": True}])
def test_what_it_does_not_take_is_an_error_in_the_thread_that_calls(producer: SyncProducer, given: Any):
    with pytest.raises(TypeError, match="unexpected keyword"):
        producer.send(Order(0), **given)
    with pytest.raises(TypeError, match="required positional"):
        producer.send()  # type: ignore[call-arg]
    assert producer.send(Order(1)).new


ENDED = "the process ends before Redis has answered: it may have been stored, once"


def test_at_the_end_those_who_wait_are_told(valkey: Server):
    """Also where their call had come in and not begun."""
    with Proxied(valkey) as proxied, SyncProducer(proxied.proxy.url, patience_s=60) as producer:
        producer.send(Order(0))
        proxied.call(proxied.proxy.stall)
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(producer.send, Order(n)) for n in range(4)]
            wait_until(lambda: portal._portal is not None and portal._portal.calls == 4, what="all wait")
            portal._end_with_process()
            for one in waiting:
                with pytest.raises(StoreUnavailable, match=ENDED):
                    one.result(10)
        proxied.call(proxied.proxy.calm)
        assert producer.send(Order(5)).new, "whoever comes later has a thread of his own"
