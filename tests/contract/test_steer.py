"""Cancel, run now and priority of one job, wherever it is, and what scripts do with the mark of a cancel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from runtime.errors import ConfigError, StoreError
from runtime.jobs import FREE, Claim, Deferral, Letter, Parking
from runtime.store.control import ControlStore
from runtime.store.shapes import Ask
from tests.contract.kit import HIGH, ME, OTHER, batch, leases, pending, quiet_guard

P = "{jobs}:"
DAY_MS = 24 * 3_600_000


@pytest.fixture
async def control(on_server: Any) -> AsyncIterator[ControlStore]:
    opened = ControlStore(on_server.server.url, "jobs")
    yield opened
    await opened.close()


@pytest.fixture
def other_on_server(on_server: Any) -> Any:
    return on_server.streams(OTHER)


@pytest.fixture
async def worker(on_server: Any) -> Any:
    streams = on_server.streams(ME)
    await streams.start()
    return streams


async def steer(control: ControlStore, verb: str, place: str, argument: str = "") -> str:
    [answer] = await control.steer(verb, "ann@host", "", [place], argument)
    return answer


async def delay(worker: Any, kit: Any, wait_ms: int = 600_000, **fields: str) -> str:
    """Add a job that fails and waits for its next run; return its member."""
    kit.add(**fields)
    [job] = await leases(worker)
    await worker.settle(batch(Deferral(job, "retry", wait_ms, job.id, job.attempt)))
    return job.id


# --- cancel ------------------------------------------------------------------------------------------------------------------


async def test_a_job_that_waits_is_a_dead_letter_at_once(on_server, control):
    entry = on_server.add(id="j", a="2", key="k")
    on_server.set_mark("k", f"high {entry}")
    assert await steer(control, "cancel", f"high/{entry}") == "cancelled"
    [letter] = on_server.letters()
    assert (letter["id"], letter["dead_reason"], letter["dead_attempts"]) == ("j", "cancelled", "2")
    assert (letter["dead_error"], letter["dead_from"]) == ("cancelled by ann@host", f"high/{entry}")
    assert (on_server.messages(), on_server.marks()) == ([], {}), "its key is free"
    assert await steer(control, "cancel", f"high/{entry}") == "gone"


async def test_a_job_without_an_id_keeps_the_one_that_its_worker_would_have_read(on_server, control):
    entry = on_server.add()
    await steer(control, "cancel", f"high/{entry}")
    assert on_server.letters()[0]["id"] == f"high-{entry}"


@pytest.mark.parametrize("lot", [FREE, "~t:t@2", "~g:t", "~suspect"])
async def test_a_job_in_a_lot_is_a_dead_letter_at_once(on_server, worker, control, lot):
    entry = on_server.suspect(1 if lot == "~suspect" else 0, id="j")
    on_server.claim(entry, lot)
    on_server.set_strikes(f"high/{entry}", "w1 w2")
    assert await steer(control, "cancel", f"high/{entry}") == "cancelled"
    assert [letter["id"] for letter in on_server.letters()] == ["j"]
    assert (on_server.messages(), pending(on_server), on_server.strikes()) == ([], [], {})


async def test_a_delayed_job_is_a_dead_letter_that_can_be_sent_back(on_server, worker, control):
    member = await delay(worker, on_server, id="j", key="k")
    on_server.set_mark("k", f"due {member}")
    assert await steer(control, "cancel", f"due/{member}") == "cancelled"
    assert (on_server.due(), on_server.records(), on_server.marks()) == ({}, set(), {})
    [(place, letter)] = on_server.raw.xrange(P + "dead")
    assert (letter["dead_from"], letter["dead_reason"], letter["dead_attempts"]) == ("high/j", "cancelled", "1")
    await control.replay(place)
    [again] = on_server.messages()
    assert (again["id"], again["type"], again["key"]) == ("j", "t", "k")
    assert again["first_at"] == letter["first_at"], "it is as old as it was"
    assert await steer(control, "cancel", f"due/{member}") == "gone"


@pytest.mark.parametrize(("record", "kept"), [(b"\xc1 no record", "raw"), (b"\x92\xa6stream\xa4high", "raw")])
async def test_a_record_that_is_no_message_can_be_cancelled_too(on_server, control, record, kept):
    on_server.raw.hset(P + "msg", "m", record)
    on_server.set_due("m", 5)
    assert await steer(control, "priority", "due/m", "low") in ("same", "moved")
    assert await steer(control, "cancel", "due/m") == "cancelled"
    assert [(letter["id"], kept in letter) for letter in on_server.letters()] == [("m", True)]
    assert on_server.records() == set()


async def test_what_a_worker_has_is_asked_for_once_and_all_workers_are_told(on_server, worker, control):
    entry = on_server.add(id="j")
    await leases(worker)
    assert await steer(control, "cancel", f"high/{entry}") == f"asked {ME}"
    before = on_server.control()
    assert (before, len(on_server.letters()), len(on_server.messages())) == ({"v": "1"}, 0, 1)
    assert list(on_server.cancels()) == [f"high/{entry}"]
    assert 0 < on_server.raw.pttl(P + "cancels") <= DAY_MS
    assert await steer(control, "cancel", f"high/{entry}") == f"asked {ME}"
    assert (on_server.control(), len(on_server.audit())) == (before, 1), "a repeat writes nothing"


async def test_a_version_that_is_no_number_is_one_that_differs_afterwards(on_server, worker, control):
    entry = on_server.add()
    await leases(worker)
    on_server.raw.hset(P + "control", "v", "x")
    await steer(control, "cancel", f"high/{entry}")
    assert int(on_server.control()["v"]) > 0


async def test_who_waits_for_a_result_is_told_of_a_cancel(on_server, worker, control):
    listener = on_server.raw.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(P + "results")
    listener.get_message(timeout=1)
    entry = on_server.add(id="j")
    await steer(control, "cancel", f"high/{entry}")
    await steer(control, "cancel", f"due/{await delay(worker, on_server, id='k')}")
    heard = [listener.get_message(timeout=5) for _ in range(2)]
    assert [message and message["data"] for message in heard] == ["j", "k"]
    listener.close()


# --- the mark ----------------------------------------------------------------------------------------------------------------

MOVES = {
    "retry": lambda job: Deferral(job, "retry", 0, job.id, 1),
    "snooze": lambda job: Deferral(job, "snooze", 0, job.id, 0),
    "at": lambda job: Deferral(job, "at", 5, job.id, 0),
    "release": lambda job: Parking(job, FREE),
    "park": lambda job: Parking(job, "~t:t@2"),
}


@pytest.mark.parametrize("move", MOVES)
async def test_a_move_of_a_marked_job_buries_it_and_no_other(store, kit, move):
    kit.add(id="j", key="k", a="1")
    kit.add(id="other")
    marked, other = await leases(store)
    kit.set_mark("k", f"high {marked.entry.decode()}")
    kit.cancel(f"high/{marked.entry.decode()}")
    settled = await store.settle(batch(MOVES[move](marked), MOVES[move](other)))
    assert (settled.refused, settled.error) == (0, "")
    [letter] = kit.letters()
    assert (letter["id"], letter["dead_reason"], letter["dead_attempts"]) == ("j", "cancelled", "1")
    assert (kit.marks(), kit.cancels()) == ({}, {}), "its key is free, and the mark has done its work"
    assert len(kit.holders()) + len(kit.due()) == 1, "the other one goes on"
    again = await store.settle(batch(MOVES[move](marked)))
    assert (again.refused, len(kit.letters())) == (1, 1), "after a lost reply it is refused"


@pytest.mark.parametrize("waits", ["", "alone", "behind another"])
async def test_a_keyed_job_that_is_cancelled_before_its_key_is_claimed_waits_for_no_time(store, kit, waits):
    at = {"at": str(kit.now_ms() + 3_600_000)} if waits else {}
    if waits == "behind another":
        kit.add(id="first", key="k", data='"first"', **at)
        [job] = await leases(store)
        assert await store.admit([Claim(job, job.envelope.key, job.envelope.at_ms)]) == ["delayed"]
    entry = kit.add(id="j", key="k", data='"j"', **at)
    [job] = await leases(store)
    assert kit.cancel(f"high/{entry}") == f"asked {ME}"
    assert await store.admit([Claim(job, job.envelope.key, job.envelope.at_ms)]) == ["refused"]
    assert [(letter["id"], letter["dead_reason"]) for letter in kit.letters()] == [("j", "cancelled")]
    assert [kit.record(member)["data"] for member in kit.due()] == (['"first"'] if waits == "behind another" else [])
    assert kit.marks() == ({"k": "due first"} if waits == "behind another" else {})
    assert (kit.messages(), pending(kit)) == ([], [])


async def test_what_was_deleted_meanwhile_leaves_no_letter(store, kit):
    entry = kit.add(id="j")
    [job] = await leases(store)
    kit.cancel(f"high/{entry}")
    kit.delete(entry)
    settled = await store.settle(batch(Deferral(job, "retry", 0, "j", 1)))
    assert (settled.refused, kit.letters(), kit.holders(), kit.due()) == (1, [], {}, {})


async def test_done_and_dead_win(store, kit):
    for name in ("done", "dead"):
        kit.add(id=name)
    done, dead = await leases(store)
    for job in (done, dead):
        kit.cancel(f"high/{job.entry.decode()}")
    settled = await store.settle(batch(Letter(dead, "handler", "e", "", 1, "dead"), done=[done]))
    assert (settled.refused, settled.shortfall) == (0, 0)
    assert [(letter["id"], letter["dead_reason"]) for letter in kit.letters()] == [("dead", "handler")]


@pytest.mark.parametrize("is_dead", [False, True])
async def test_what_nobody_renews_is_buried_by_the_sweep(store, other, kit, is_dead):
    entry = kit.add(id="j")
    await leases(store)
    quiet_guard(kit)
    kit.set_until({ME: 1 if is_dead else kit.now_ms() + 10**6})
    kit.claim(entry, ME, 1, idle_ms=10**6)
    kit.cancel(f"high/{entry}")
    found = await other.reclaim(HIGH, 30_000, 100, {})
    assert (found.dead, found.undelivered) == (int(is_dead), int(not is_dead))
    assert ([letter["dead_reason"] for letter in kit.letters()], kit.holders(), kit.strikes()) == (["cancelled"], {}, {})


async def test_a_suspect_that_is_cancelled_while_it_runs_is_buried_whoever_gives_it_back(store, kit):
    entry = kit.suspect(2, id="j")
    await store.isolate(30_000, -1, 10_000, 20, {"t": (1, 30_000)})
    kit.cancel(f"high/{entry}")
    quiet_guard(kit)
    kit.set_until({ME: 1})
    kit.claim(entry, ME, 3, idle_ms=10**6)
    await store.reclaim(HIGH, 30_000, 100, {})
    assert ([letter["dead_reason"] for letter in kit.letters()], kit.holders(), kit.strikes()) == (["cancelled"], {}, {})


async def test_the_sweep_goes_on_where_no_letter_can_be_written(on_server, worker, other_on_server, control):
    cancelled, innocent = on_server.add(id="j"), on_server.add(id="k")
    await leases(worker)
    quiet_guard(on_server)
    on_server.set_until({ME: 1})
    for entry in (cancelled, innocent):
        on_server.claim(entry, ME, 1, idle_ms=10**6)
    await steer(control, "cancel", f"high/{cancelled}")
    on_server.raw.set(P + "dead", "a stranger's")
    found = await other_on_server.reclaim(HIGH, 30_000, 100, {})
    assert (found.dead, on_server.holders()[innocent], on_server.holders()[cancelled]) == (1, ("~suspect", 1), (ME, 1))
    on_server.raw.delete(P + "dead")
    assert (await other_on_server.reclaim(HIGH, 30_000, 100, {})).dead == 1
    assert [letter["id"] for letter in on_server.letters()] == ["j"]


async def test_a_move_whose_letter_cannot_be_written_waits_and_stays_held(on_server, worker, control):
    entry = on_server.add(id="j")
    [job] = await leases(worker)
    await steer(control, "cancel", f"high/{entry}")
    on_server.raw.set(P + "dead", "a stranger's")
    settled = await worker.settle(batch(Deferral(job, "retry", 0, "j", 1)))
    assert ("WRONGTYPE" in settled.error, len(settled.left), on_server.due()) == (True, 1, {})


async def test_marks_of_jobs_that_have_left_make_room(on_server, worker, control):
    entry = on_server.add()
    await leases(worker)
    on_server.raw.zadd(P + "cancels", {f"{name}/9-{n}": on_server.now_ms() for n in range(5_000) for name in ("low", "strange")})
    assert await steer(control, "cancel", f"high/{entry}") == f"asked {ME}"
    assert len(on_server.cancels()) == 9_901, "a hundred were looked at"


async def test_no_more_is_asked_of_workers_at_once_than_they_read(on_server, worker, control):
    entry = on_server.add()
    await leases(worker)
    pipe = on_server.raw.pipeline()
    for _ in range(10_000):
        pipe.xadd(P + "low", {"type": "t"})
    pipe.execute()
    on_server.read_as(OTHER, 3)
    on_server.raw.zadd(P + "cancels", {f"low/{held}": on_server.now_ms() for held in on_server.holders(3)})
    assert await steer(control, "cancel", f"high/{entry}") == "full"
    assert (len(on_server.cancels()), on_server.control(), on_server.audit()) == (10_000, {}, [])


async def test_marks_of_yesterday_are_forgotten(on_server, worker, control):
    entry = on_server.add()
    await leases(worker)
    on_server.raw.zadd(
        P + "cancels", {"high/1-1": on_server.now_ms() - DAY_MS - 1000, "high/1-2": on_server.now_ms() - DAY_MS + 60_000}
    )
    await steer(control, "cancel", f"high/{entry}")
    assert set(on_server.cancels()) == {"high/1-2", f"high/{entry}"}


# --- now and priority --------------------------------------------------------------------------------------------------------


async def test_a_delayed_job_runs_now(on_server, worker, control):
    member = await delay(worker, on_server, id="j")
    assert await steer(control, "now", f"due/{member}") == "moved"
    assert on_server.due()[member] <= on_server.now_ms()
    assert await steer(control, "now", f"due/{member}") == "same"
    assert (await worker.promote(100, "0")).moved == 1


async def test_what_was_due_long_ago_does_not_come_later_by_it(on_server, worker, control):
    member = await delay(worker, on_server, id="j")
    on_server.set_due(member, 5)
    assert await steer(control, "now", f"due/{member}") == "same"
    assert on_server.due()[member] == 5


async def test_a_delayed_job_changes_its_priority_and_keeps_its_time(on_server, worker, control):
    member = await delay(worker, on_server, wait_ms=0, id="j", key="k")
    due = on_server.due()
    assert await steer(control, "priority", f"due/{member}", "critical") == "moved"
    assert await steer(control, "priority", f"due/{member}", "critical") == "same"
    assert on_server.due() == due
    await worker.promote(100, "0")
    [message] = on_server.messages(0)
    assert (message["id"], message["a"], message["key"]) == ("j", "1", "k")


async def test_a_job_that_waits_changes_its_stream_and_keeps_id_birth_and_key(on_server, worker, control):
    entry = on_server.add(key="k", group="g")
    on_server.set_mark("k", f"high {entry}")
    assert await steer(control, "priority", f"high/{entry}", "low") == "moved"
    [(new, message)] = on_server.raw.xrange(P + "low")
    assert (message["id"], message["first_at"], message["group"]) == (f"high-{entry}", entry.partition("-")[0], "g")
    assert (on_server.marks(), on_server.messages()) == ({"k": f"low {new}"}, [])
    assert await steer(control, "priority", f"high/{entry}", "low") == "gone"
    assert await steer(control, "priority", f"low/{new}", "low") == "same"


async def test_a_job_in_a_lot_changes_its_stream_but_no_suspect(on_server, worker, control):
    parked, suspect = on_server.suspect(0, id="j"), on_server.suspect(2, id="s")
    on_server.claim(parked, "~t:t@2", 0)
    assert await steer(control, "priority", f"high/{parked}", "critical") == "moved"
    assert await steer(control, "priority", f"high/{suspect}", "critical") == "held ~suspect"
    assert [message["id"] for message in on_server.messages(0)] == ["j"]
    assert on_server.holders() == {suspect: ("~suspect", 2)}
    assert len(await leases(worker, stream=0)) == 1


async def test_what_a_worker_has_is_not_moved(on_server, worker, control):
    entry = on_server.add()
    await leases(worker)
    assert await steer(control, "priority", f"high/{entry}", "low") == f"held {ME}"
    assert await steer(control, "now", f"high/{entry}") == f"held {ME}"
    assert (on_server.cancels(), on_server.audit()) == ({}, [])


async def test_a_job_that_waits_runs_now_anyway(on_server, control):
    assert await steer(control, "now", f"high/{on_server.add()}") == "same"
    assert on_server.audit() == []


async def test_a_message_whose_time_no_worker_has_seen_runs_now_too(on_server, worker, control):
    entry = on_server.add(id="j", key="k", at=str(on_server.now_ms() + 600_000))
    assert await steer(control, "now", f"high/{entry}") == "moved"
    [message] = on_server.messages()
    assert (message["id"], message["first_at"], message.get("at")) == ("j", entry.partition("-")[0], None)
    [job] = await leases(worker)
    assert await steer(control, "now", f"high/{job.entry.decode()}") == f"held {ME}"


async def test_a_message_with_too_many_fields_keeps_its_stream(on_server, control):
    entry = on_server.add_fields({f"f{n}": "x" for n in range(3000)})
    with pytest.raises(StoreError, match="more fields"):
        await steer(control, "priority", f"high/{entry}", "low")
    assert (len(on_server.messages()), on_server.raw.exists(P + "low")) == (1, 0)
    assert await steer(control, "cancel", f"high/{entry}") == "cancelled"


# --- the order itself --------------------------------------------------------------------------------------------------------


async def test_many_are_answered_in_turn_and_told_in_one_entry_of_the_audit(on_server, worker, control):
    member = await delay(worker, on_server, id="j")
    held = on_server.add(id="h")
    await leases(worker)
    waits = on_server.add(id="w")
    answers = await control.steer(
        "cancel", "ann@host", "no longer wanted", [f"due/{member}", f"high/{held}", f"high/{waits}", "low/1-1"]
    )
    assert answers == ["cancelled", f"asked {ME}", "cancelled", "gone"]
    [told] = on_server.audit()
    assert (told["by"], told["reason"]) == ("ann@host", "no longer wanted")
    assert told["what"].splitlines() == [
        f"cancel j (due/{member}): cancelled",
        f"cancel h (high/{held}): asked {ME}",
        f"cancel w (high/{waits}): cancelled",
    ]
    assert {letter["dead_error"] for letter in on_server.letters()} == {"cancelled by ann@host: no longer wanted"}


@pytest.mark.parametrize(
    ("verb", "place", "argument"),
    [
        ("destroy", "high/1-1", ""),
        ("cancel", "high/1-1", "low"),
        ("priority", "high/1-1", ""),
        ("priority", "high/1-1", "urgent"),
        ("cancel", "urgent/1-1", ""),
        ("cancel", "high/1", ""),
        ("cancel", "dead/1-1", ""),
        ("cancel", "due/", ""),
    ],
)
async def test_what_is_no_order_is_refused(control, verb, place, argument):
    with pytest.raises(ConfigError):
        await steer(control, verb, place, argument)


async def test_an_audit_of_another_type_refuses_the_order_before_anything_is_done(on_server, control):
    on_server.raw.set(P + "audit", "x")
    entry = on_server.add()
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await steer(control, "cancel", f"high/{entry}")
    assert len(on_server.messages()) == 1


async def test_what_goes_wrong_with_one_job_is_no_matter_of_the_others(on_server, control):
    entry = on_server.add(to=3)
    on_server.raw.set(P + "high", "x")
    with pytest.raises(StoreError, match="WRONGTYPE"):
        await control.steer("cancel", "ann@host", "", ["high/1-1", f"low/{entry}"])
    assert len(on_server.letters()) == 1


async def test_more_jobs_than_one_call_takes_are_steered_in_several(on_server, control):
    places = [f"high/{on_server.add()}" for _ in range(501)]
    assert await control.steer("cancel", "ann@host", "", places) == ["cancelled"] * 501
    assert len(on_server.audit()) == 2


async def test_a_queue_without_workers_can_be_steered(on_server, control):
    entry = on_server.add()
    assert not on_server.raw.xinfo_groups(P + "high")
    assert await steer(control, "priority", f"high/{entry}", "low") == "moved"
    assert await steer(control, "cancel", f"low/{on_server.raw.xrange(P + 'low')[0][0]}") == "cancelled"


async def test_a_cancelled_job_is_not_taken_nor_served_again(store, kit):
    """Each way out of a lot, after the mark has done its work."""
    entry = kit.add(id="j")
    [job] = await leases(store)
    kit.cancel(f"high/{entry}")
    await store.settle(batch(Parking(job, FREE)))
    taken = await store.take(Ask(HIGH, FREE, 10))
    assert [len(delivery.rows) for delivery in taken.deliveries] == [0]
    assert len(kit.letters()) == 1


async def test_marks_are_read_with_the_rules_from_a_time_on(store, kit):
    places = [f"high/{kit.add()}" for _ in range(2)]
    await leases(store)
    assert (await store.rules())[2] == {}
    for place in places:
        kit.cancel(place)
    rules, now_ms, marks = await store.rules(kit.now_ms() - 60_000)
    assert (rules.version, marks) == ("2", dict.fromkeys(places, "ann@host"))
    assert (await store.rules(now_ms + 60_000))[2] == {}


async def test_a_job_that_a_script_buries_for_its_mark_says_who_cancelled_it_and_why(on_server, worker, control):
    on_server.add()
    [job] = await leases(worker)
    await control.steer("cancel", "ann@host", "ordered twice", [f"high/{job.entry.decode()}"])
    await worker.settle(batch(Deferral(job, "retry", 1, "j", 1)))
    [letter] = on_server.letters()
    assert letter["dead_error"] == "cancelled by ann@host: ordered twice, while a worker had it"
    assert not on_server.raw.keys("{jobs}:cancels*")


async def test_a_mark_is_taken_away_only_when_its_job_has_left(store, kit):
    for _ in range(2):
        kit.add()
    done, runs = await leases(store)
    for job in (done, runs):
        kit.cancel(f"high/{job.entry.decode()}")
    await store.settle(batch(done=[done]))
    assert len(kit.cancels()) == 2, "done asks for no mark"
    await store.unmark([(HIGH, done.entry), (HIGH, runs.entry)])
    await store.unmark([(HIGH, runs.entry)])
    assert list(kit.cancels()) == [f"high/{runs.entry.decode()}"]
