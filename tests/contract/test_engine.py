"""A worker in this process against a real server that misbehaves: leases do not leak, one bad thing holds up nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import msgspec
import pytest

from runtime import Backoff, Dead, Job, Retry, contract, handler
from runtime.errors import StoreUnavailable
from runtime.jobs import Batch, Lease
from runtime.store.base import GROUP
from runtime.store.shapes import Fetched, Settled
from runtime.worker.fetcher import INBOX_BYTES
from runtime.worker.heartbeat import LATE_PART, ON_THE_WAY_S, Beat, Heartbeat
from runtime.worker.held import Held
from tests.faults.harness import leftovers
from tests.proxy import Proxy
from tests.workers import until, working

KEY = "{jobs}:high"


@contract("work")
class Work(msgspec.Struct, frozen=True, kw_only=True):
    n: int = 0
    ms: float = 0
    fail: bool = False


ran: list[int] = []


@handler(Work, retry=Backoff(base_s=0.01, cap_s=0.05, attempts=5))
async def work(message: Work, job: Job) -> None:
    ran.append(message.n)
    await asyncio.sleep(message.ms / 1000)
    if message.fail and job.attempt == 1:
        raise ValueError("fails once")


@pytest.fixture(autouse=True)
def _forget_runs():
    ran.clear()


def xadd(raw, n: int, **fields: str) -> str:
    more = {name: fields.pop(name) for name in ("ms", "fail") if name in fields}
    data = "".join(f',"{name}":{value}' for name, value in more.items())
    return str(raw.xadd(KEY, {"type": "work", "data": f'{{"n":{n}{data}}}', **fields}))


def held_by(raw) -> list[str]:
    return [row["consumer"] for row in raw.xpending_range(KEY, GROUP, "-", "+", 9)]


async def test_a_keyed_job_that_was_taken_away_before_its_key_was_claimed_is_let_go(server, raw):
    async with working(server.url, work, concurrency=1) as worker:
        real = worker.streams.admit

        async def too_late(keyed, **named):
            raw.xclaim(KEY, GROUP, "somebody-else", 0, [claim.lease.entry for claim in keyed])
            return await real(keyed, **named)

        worker.streams.admit = too_late
        xadd(raw, 1, key="k")
        await until(lambda: raw.xpending(KEY, GROUP)["pending"] == 1 and not len(worker.held), "it is let go")
        xadd(raw, 2)
        await until(lambda: ran == [2], "the worker goes on")
        raw.delete(KEY)


async def test_a_move_that_always_errors_holds_up_nobody(server, raw):
    raw.lpush("{jobs}:dead", "a list in the place of the dead letters")
    raw.xadd(KEY, {"type": "work", "data": "{"})
    async with working(server.url, work) as worker:
        for n in range(2000):  # where each flush waited for the bad one, this would take half a minute
            xadd(raw, n)
        await until(lambda: len(ran) == 2000 and raw.xlen(KEY) == 1, "all others are done")
        await until(lambda: len(worker.held) == 1, "the bad one alone keeps its lease")
        raw.delete("{jobs}:dead")
        await until(lambda: raw.exists("{jobs}:dead") and not leftovers(raw), "it is written when the server is fixed")


async def test_a_worker_beside_a_stream_of_another_type_starts_and_works_as_if_it_were_not_there(
    server, raw, monkeypatch, caplog
):
    monkeypatch.setattr("runtime.store.base.BROKEN_S", 0.1)
    broken = "{jobs}:medium"
    raw.hset(broken, "not", "a stream")
    async with working(server.url, work) as worker:
        for n in range(2000):
            xadd(raw, n)
        await until(lambda: len(ran) == 2000, "all of the others run")
        await until(lambda: worker._fetcher._is_quiet, "it waits at the bell")
        xadd(raw, 2000)
        await until(lambda: len(ran) == 2001, "the bell rings")
        assert worker.stats.store_errors == 0, "no fetch failed, so none was put off"
        assert worker.is_ready
        assert list(worker.broken) == [broken]
        raw.delete(broken)
        raw.xadd(broken, {"type": "work", "data": '{"n":2001}'})
        await until(lambda: ran[-1] == 2001, "it is read when it is a stream again")
        await until(lambda: not worker.broken, "and no longer named")
    told = [record.getMessage() for record in caplog.records if broken in record.getMessage()]
    assert len(told) == 2, told
    assert "cannot be read" in told[0]
    assert "can be read again" in told[1]


@pytest.mark.parametrize(("key", "what"), [("due", "delayed jobs do not move"), ("workers:rows", "no heartbeat")])
async def test_whatever_else_is_of_another_type_does_not_stand_still_without_a_word(server, raw, caplog, key, what):
    async with working(server.url, work, lease_s=0.9):
        raw.delete(f"{{jobs}}:{key}")
        raw.set(f"{{jobs}}:{key}", "something else")
        await until(lambda: any(what in record.getMessage() for record in caplog.records), "it is told")
        raw.delete(f"{{jobs}}:{key}")
        xadd(raw, 1)
        await until(lambda: ran == [1], "all goes on when it is gone")


async def test_a_job_that_waits_for_a_thread_past_its_deadline_has_not_started_and_does_not_die(server, raw):
    done: list[int] = []

    @handler(Work, timeout_s=1, retry=Backoff(attempts=1))
    def slow(message: Work, job: Job) -> None:
        time.sleep(0.4)
        done.append(message.n)

    async with working(server.url, slow, concurrency=12, threads=2):
        for n in range(12):
            xadd(raw, n)
        await until(lambda: len(done) == 12 and not leftovers(raw), "all have run")
    assert sorted(done) == list(range(12))
    assert raw.xlen("{jobs}:dead") == 0


async def test_a_handler_that_swallows_its_cancel_is_cut_again_and_the_lane_lives(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.worker.lanes.RECUT_S", 0.2)
    cancels: list[int] = []

    @handler(Work, timeout_s=0.2, retry=Backoff(attempts=1))
    async def stubborn(message: Work, job: Job) -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                cancels.append(message.n)
        await asyncio.sleep(60)

    async with working(server.url, stubborn, concurrency=1):
        xadd(raw, 1)
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it dies of its timeout at last")
        xadd(raw, 2)
        await until(lambda: raw.xlen("{jobs}:dead") == 2, "the lane goes on")
    assert cancels == [1, 1, 2, 2]


async def test_what_is_no_exception_does_not_end_the_worker(server, raw):
    class Panic(BaseException):
        """As native libraries raise it."""

    @handler(Work, retry=Backoff(base_s=0.01, cap_s=0.01, attempts=2))
    async def panic(message: Work, job: Job) -> None:
        raise Panic("a native library gave up")

    async with working(server.url, panic):
        xadd(raw, 1)
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is tried again, and dies")
    [(_, letter)] = raw.xrange("{jobs}:dead")
    assert letter["dead_error"].startswith("Panic: a native library")


async def test_a_handler_may_have_words_of_its_own(server, raw):
    class Gone(Dead):
        """The account is closed."""

    @handler(Work)
    async def closed(message: Work, job: Job) -> None:
        raise Gone("account closed", code="no-account")

    async with working(server.url, closed):
        xadd(raw, 1)
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it dies")
    assert raw.xrange("{jobs}:dead")[0][1]["dead_reason"] == "no-account"


async def test_jobs_that_run_while_their_group_is_lost_run_once(server, raw):
    async with working(server.url, work, concurrency=2, lease_s=4.0):  # of a shorter one a busy machine misses beats
        for n in range(2):
            xadd(raw, n, ms="7000")
        await until(lambda: len(ran) == 2, "both run")
        raw.xgroup_destroy(KEY, GROUP)
        await until(lambda: not leftovers(raw), "both are done")
    assert sorted(ran) == [0, 1]


async def test_a_large_lot_is_emptied_without_waiting_for_the_next_sweep(server, raw):
    async with working(server.url, work, concurrency=1000, lease_s=10.0):
        pipe = raw.pipeline(transaction=False)
        for n in range(3000):
            pipe.xadd("{jobs}:low", {"type": "later", "data": f'{{"n":{n}}}'})
        ids = pipe.execute()
        await until(lambda: raw.xpending("{jobs}:low", GROUP)["consumers"] == [{"name": "~t:later@1", "pending": 3000}], "parked")
    assert len(ids) == 3000

    @contract("later")
    class Later(msgspec.Struct, frozen=True):
        n: int = 0

    seen: list[int] = []

    @handler(Later)
    async def later(message: Later, job: Job) -> None:
        seen.append(message.n)

    async with working(server.url, later, concurrency=1000, lease_s=100.0):
        await until(lambda: len(seen) == 3000, "all of the lot is run")


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_what_was_given_back_is_found_soon_by_a_small_worker(server, raw, concurrency):
    for name in ("critical", "high", "medium", "low"):
        raw.xgroup_create(f"{{jobs}}:{name}", GROUP, "0", mkstream=True)
        entry = raw.xadd(f"{{jobs}}:{name}", {"type": "work", "data": '{"n":7}'})
        raw.xreadgroup(GROUP, "x", {f"{{jobs}}:{name}": ">"})
        raw.xclaim(f"{{jobs}}:{name}", GROUP, "~free", 0, [entry], retrycount=0, justid=True)
    began_s = time.monotonic()
    async with working(server.url, work, concurrency=concurrency):
        await until(lambda: len(ran) == 4, "all four run")
        assert time.monotonic() - began_s < 12, "before a lease is over"


async def test_a_message_with_as_many_fields_as_allowed_may_be_retried(server, raw):
    async with working(server.url, work):
        fields = {f"x-{n}": "y" for n in range(510)}
        raw.xadd(KEY, {"type": "work", "data": '{"n":1,"fail":true}', **fields})
        await until(lambda: len(ran) == 2 and not leftovers(raw), "it is retried and done")
    assert raw.xlen("{jobs}:dead") == 0


async def test_a_handler_that_cancels_itself_while_the_worker_stops_does_not_use_up_the_grace(server, raw):
    @handler(Work, retry=Backoff(attempts=1))
    async def suicidal(message: Work, job: Job) -> None:
        ran.append(message.n)
        await asyncio.sleep(0.3)
        task = asyncio.current_task()
        assert task
        task.cancel()
        await asyncio.sleep(60)

    async with working(server.url, suicidal, grace_s=15.0) as worker:
        xadd(raw, 1)
        await until(lambda: ran, "it runs")
        began_s = time.monotonic()
        worker.stop()
        await until(lambda: worker.stage.value == "closed", "it stops")
        assert time.monotonic() - began_s < 12, "before the grace is over"
    assert raw.xlen("{jobs}:dead") == 1


async def test_what_a_late_reply_brings_is_not_run(server, raw):
    """Its line stood still for more than a lease, while its heartbeat went on: another one has run the job by now."""
    async with working(server.url, work, lease_s=0.9) as worker:
        read = worker.streams.wait_for_entry

        async def slow_line(*asked):
            asked_s = time.monotonic()
            rung = await read(*asked)
            if rung.deliveries:
                await until(lambda: held_by(raw) == ["~free"], "it is taken back as a lost delivery")
                await until(lambda: time.monotonic() - asked_s > LATE_PART * 0.9 + ON_THE_WAY_S, "the answer is late")
                raw.xack(KEY, GROUP, late)
                raw.xdel(KEY, late)
                worker.streams.wait_for_entry = read
            return rung

        worker.streams.wait_for_entry = slow_line
        await until(lambda: worker._fetcher._is_quiet, "it waits for the bell")
        late = xadd(raw, 1)
        await until(lambda: worker.streams.wait_for_entry == read, "the reply comes")
        xadd(raw, 2)
        await until(lambda: ran == [2], "the worker goes on, and has not run the other's job")


async def test_a_worker_that_stood_still_starts_nothing_before_its_next_beat(server, raw):
    """It was frozen, a job in its inbox; others may have run that since. The next tick would see it a moment too late."""
    async with working(server.url, work, concurrency=1, lease_s=6) as worker:
        may_start, worker.inbox.may_start = worker.inbox.may_start, lambda now_s: False
        xadd(raw, 1)
        await until(lambda: len(worker.inbox) == 1, "it waits")
        worker.inbox.may_start = may_start
        worker.leases._confirmed_s -= 6
        assert worker.inbox.take(time.monotonic()) is None
        assert not worker.inbox.jobs, "it is given back"
        await until(lambda: ran == [1] and not leftovers(raw), "it runs after the next beat")


async def test_a_lost_delivery_that_is_given_back_twice_runs_once(server, raw):
    """The answer to the first time got lost, and it was taken again meanwhile: it is not given back while it runs."""
    async with working(server.url, work, concurrency=2) as worker:
        settle = worker.streams.settle
        parks: list[list[int]] = []

        async def deaf(batch: Batch) -> Settled:
            taken_s = [move.lease.taken_s for move in batch.park]
            parks.extend(list(ran) for _ in batch.park)
            settled = await settle(batch)
            if len(parks) == 1:
                [move] = batch.park
                await until(lambda: ran or [move.lease.taken_s] != taken_s, "it is taken again")
                raise StoreUnavailable("the answer got lost")
            return settled

        worker.streams.settle = deaf
        with raw.pipeline() as at_once:
            xadd(at_once, 1, ms="300")
            at_once.xreadgroup(GROUP, worker.name, {KEY: ">"})
            at_once.execute()
        worker._fetcher._has_lost = True
        await until(lambda: ran and not leftovers(raw), "it is done")
        assert ran == [1]
        assert parks == [[], []], "given back before it ran"


async def test_what_a_late_reply_brings_is_renewed_before_it_runs(server, raw):
    """The next beat would leave alone what is new, and the one after it would come too late."""
    async with working(server.url, work, lease_s=6) as worker:
        read, renew = worker.streams.wait_for_entry, worker.streams.renew
        renewed: list[bytes] = []

        async def slow_line(*asked):
            asked_s = time.monotonic()
            rung = await read(*asked)
            if rung.deliveries:
                worker.streams.wait_for_entry = read
                await until(lambda: time.monotonic() - asked_s > LATE_PART * 6 + ON_THE_WAY_S, "the answer is late")
            return rung

        async def noted(leases: Sequence[tuple[int, bytes, int]]) -> list[int]:
            assert not ran
            renewed.extend(entry for _, entry, _ in leases)
            return await renew(leases)

        worker.streams.wait_for_entry, worker.streams.renew = slow_line, noted
        await until(lambda: worker._fetcher._is_quiet, "it waits for the bell")
        late = xadd(raw, 1)
        await until(lambda: ran == [1], "it runs")
        xadd(raw, 2)
        await until(lambda: ran == [1, 2], "the worker goes on")
        assert [entry.decode() for entry in renewed] == [late]


async def test_after_the_bell_more_is_asked_for_at_once(server, raw):
    async with working(server.url, work) as worker:
        await until(lambda: worker._fetcher._is_quiet, "it waits for the bell")
        fetch, fetches, waits = worker.streams.fetch, list[list[int]](), list[str]()
        capacity_freed = worker._fetcher.capacity_freed
        wait = capacity_freed.wait

        async def noted(shares: Sequence[int], takes: set[int]) -> Fetched:
            fetches.append(list(ran))
            return await fetch(shares, takes)

        async def noted_wait() -> None:
            waits.append("for lot")
            await wait()

        worker.streams.fetch, capacity_freed.wait = noted, noted_wait
        xadd(raw, 1)
        await until(lambda: fetches, "it asks for more")
        assert fetches[0] == [1], "the job runs by then"
        assert not waits, "there are idle lanes"
        capacity_freed.wait = wait


async def test_what_a_beat_took_while_its_key_was_claimed_does_not_start(server, raw):
    """The process stood still, and the beat's answer was read before that of the claim: nobody had the job at hand."""
    async with working(server.url, work, lease_s=6) as worker:
        admit = worker.streams.admit

        async def frozen(keyed, **named):
            verdicts = await admit(keyed, **named)
            [claim] = keyed
            job = claim.lease
            raw.xclaim(KEY, GROUP, "somebody-else", 0, [job.entry])
            worker.leases._confirmed_s -= 6
            job.taken_s -= 6
            worker.on_heartbeat(Beat(time.monotonic(), worker.leases._run_id, [(job, job.count)]))
            worker.streams.admit = admit
            return verdicts

        worker.streams.admit = frozen
        xadd(raw, 1, key="k")
        await until(lambda: worker.streams.admit == admit and not len(worker.held), "it is let go")
        xadd(raw, 2)
        await until(lambda: ran == [2], "the worker goes on")
        raw.delete(KEY)


async def test_a_stop_while_keys_are_claimed_gives_their_jobs_back(server, raw):
    """The reader is silent: the fetch is ended by force, with jobs in hand that no lane has."""
    async with working(server.url, work, grace_s=0) as worker:
        is_asked = asyncio.Event()

        async def silent(keyed, **named):
            is_asked.set()
            await asyncio.Event().wait()

        worker.streams.admit = silent
        xadd(raw, 1, key="k")
        await is_asked.wait()
        worker.stop()
        await until(lambda: worker.stage.value == "closed", "it stops")
    assert held_by(raw) == ["~free"]


def test_what_was_lost_and_taken_anew_is_held_when_the_old_move_is_refused():
    held = Held()
    old, new = Lease(1, b"1-0", 1, "", 0.0), Lease(1, b"1-0", 2, "", 0.0)
    held.add(1, [old])
    held.remove([old])
    held.add(1, [new])
    held.remove([old])
    assert new in held


async def test_a_worker_is_known_before_it_reads(server, raw, monkeypatch):
    """One that died between its first read and its first beat would leave a consumer that nobody forgets."""

    async def not_yet(self, store):
        pass

    monkeypatch.setattr(Heartbeat, "beat_once", not_yet)
    async with working(server.url, work) as worker:
        await until(lambda: worker.is_fetching, "it reads")
        assert list(raw.hgetall("{jobs}:workers:rows")) == [worker.name]


# --- limits that count bytes -----------------------------------------------------------------------------------------------


def add_large(raw, n: int, size: int) -> None:
    for at in range(n):
        raw.xadd(KEY, {"type": "work", "data": f'{{"n":{at},"text":"{"x" * size}"}}'})


async def test_large_messages_over_a_slow_line_are_all_done(server, raw):
    """All that there are lanes for is more than the line brings within the lease: what came late would be given back for ever."""
    async with Proxy(server.socket) as proxy:
        proxy.bytes_per_s = 3_000_000
        asked: list[int] = []
        async with working(proxy.url, work, concurrency=100, lease_s=1.5) as worker:
            fetch = worker.streams.fetch

            async def counted(shares: Sequence[int], takes: set[int]) -> Fetched:
                asked.append(sum(shares))
                return await fetch(shares, takes)

            worker.streams.fetch = counted
            add_large(raw, 60, 100_000)
            await until(lambda: len(set(ran)) == 60 and not leftovers(raw), "all are done")
        assert max(asked) <= 32, "about sixteen at first, and one of each stream that has run dry; not a hundred"


async def test_large_messages_after_small_ones_over_a_slow_line_are_all_done(server, raw):
    async with Proxy(server.socket) as proxy, working(proxy.url, work, concurrency=100, lease_s=1.5):
        for n in range(300):
            xadd(raw, n)
        await until(lambda: len(ran) == 300, "the small ones are done")
        proxy.bytes_per_s = 3_000_000
        ran.clear()
        add_large(raw, 60, 100_000)
        await until(lambda: len(set(ran)) == 60 and not leftovers(raw), "the large ones are done")


async def test_what_a_lost_reply_brought_runs_at_once_and_not_after_a_lease(server, raw):
    async with Proxy(server.socket) as proxy, working(proxy.url, work, concurrency=100, lease_s=100.0) as worker:
        for n in range(50):
            xadd(raw, n)
        await until(lambda: len(ran) == 50, "it works")
        proxy.drop_next_reply(b"XREADGROUP")
        for n in range(50, 100):
            xadd(raw, n)
        await until(lambda: proxy.dropped == 1, "a reply is lost")
        await until(lambda: sorted(ran) == list(range(100)), "what it brought runs all the same, once")
        await until(lambda: not len(worker.held) and not leftovers(raw), "and nothing is left")


async def test_an_entry_too_large_for_any_answer_is_a_dead_letter_without_its_body_and_holds_up_nobody(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.streams.MAX_ANSWER_BYTES", 1 << 20)
    async with working(server.url, work, concurrency=100, lease_s=100.0) as worker:
        for n in range(50):
            xadd(raw, n)
        raw.xadd(KEY, {"type": "work", "data": "x" * (8 << 20), "note": "kept"})
        for n in range(50, 100):
            xadd(raw, n)
        await until(lambda: sorted(ran) == list(range(100)), "the others run, once")
        await until(lambda: raw.xlen("{jobs}:dead") == 1, "it is a dead letter")
        await until(lambda: not len(worker.held), "and nothing is held")
    [(_, letter)] = raw.xrange("{jobs}:dead")
    assert letter["dead_reason"] == "too-large"
    assert letter["dead_left_out"] == f"data {8 << 20}"
    assert letter["note"] == "kept"
    assert "data" not in letter


async def test_read_ahead_is_bounded_by_bytes(server, raw):
    async with working(server.url, work, concurrency=10) as worker:
        add_large(raw, 40, 200_000)
        await until(lambda: len(ran) == 40, "they run")
        worker.stats.finished += 1_000_000  # as if it were very fast
        assert worker._read_ahead() * 200_000 <= INBOX_BYTES


async def test_a_flush_that_is_too_large_for_the_line_goes_in_parts_that_are_not(server, raw):
    go = asyncio.Event()

    @handler(Work)
    async def fails(message: Work, job: Job) -> None:
        ran.append(message.n)
        await go.wait()
        raise Retry(delay_s=3600)

    add_large(raw, 60, 10_000)
    async with working(server.url, fails, concurrency=100, lease_s=100.0) as worker:
        settle = worker.streams.settle
        writes: list[int] = []

        async def narrow(batch: Batch) -> Settled:
            writes.append(len(batch.defer))
            if len(batch.defer) > 7:
                raise StoreUnavailable("no answer")
            return await settle(batch)

        worker.streams.settle = narrow
        await until(lambda: len(ran) == 60, "all run")
        go.set()
        await until(lambda: raw.zcard("{jobs}:due") == 60, "all are delayed")
        await until(lambda: not len(worker.held), "and held no more")
    assert max(writes) == 60
    assert writes.count(60) < 3, "what was too much is not tried again and again"


async def test_a_flush_takes_as_long_as_the_line_needs(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.consumer.ANSWER_S", 1.0)
    go = asyncio.Event()

    @handler(Work)
    async def fails(message: Work, job: Job) -> None:
        ran.append(message.n)
        await go.wait()
        raise Retry(delay_s=3600)

    add_large(raw, 60, 100_000)
    async with Proxy(server.socket) as proxy, working(proxy.url, fails, concurrency=100, lease_s=10.0) as worker:
        await until(lambda: len(ran) == 60, "all run")
        proxy.bytes_per_s = 3_000_000  # two seconds for all of it
        go.set()
        await until(lambda: raw.zcard("{jobs}:due") == 60, "all are delayed")
        await until(lambda: not len(worker.held), "and held no more")
    assert raw.xlen(KEY) == 0


async def test_what_an_answer_was_still_bringing_when_the_worker_stops_is_given_back(server, raw, monkeypatch):
    monkeypatch.setattr("runtime.consumer.UNBLOCK_S", 0.2)
    async with working(server.url, work) as worker:
        read = worker.streams.wait_for_entry

        async def slow_line(*asked: object) -> object:
            rung = await read(*asked)
            if rung.deliveries:
                await asyncio.sleep(60)
            return rung

        worker.streams.wait_for_entry = slow_line
        await until(lambda: worker._fetcher._is_quiet, "it waits for the bell")
        xadd(raw, 1)
        await until(lambda: held_by(raw) == [worker.name], "it is delivered, and the answer is on its way")
        worker.stop()
        await until(lambda: worker.stage.value == "closed", "it stops")
    [row] = raw.xpending_range(KEY, GROUP, "-", "+", 9)
    assert (row["consumer"], row["times_delivered"]) == ("~free", 0), "as if it had never been delivered"
    assert ran == []
