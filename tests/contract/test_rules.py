"""Rules in the store: what people order is written all together or not at all, once, with an entry of the audit.

The double does what the servers do, in the same cases and in any order. What only a server can be asked stands at the end.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from runtime.errors import ConfigError, StoreError, StoreUnavailable
from runtime.rules import Pause
from runtime.store.base import WorkerRow
from runtime.store.control import ControlStore
from tests.contract.kit import ME, OTHER, MemoryKit, ServerKit, batch, leases
from tests.proxy import Proxy
from tests.servers import Server

CONTROL, AUDIT = "{jobs}:control", "{jobs}:audit"
HOUR_MS = 3_600_000


@pytest.fixture
async def control(server: Server) -> AsyncIterator[ControlStore]:
    opened = ControlStore(server.url, "jobs")
    yield opened
    await opened.close()


def next_ms(kit: Any) -> None:
    """Let the server's clock move on."""
    if isinstance(kit, MemoryKit):
        kit.store.advance(1)
        return
    before_ms = kit.now_ms()
    while kit.now_ms() == before_ms:
        pass


def without_at(changes: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: text for name, text in change.items() if name != "at"} for change in changes]


def ends_ms(kit: Any, what: str) -> int:
    return int(kit.control()[f"pause:{what}"].split()[0])


# --- what an order writes -----------------------------------------------------------------------------------------------------


async def test_a_pause_says_until_when_since_when_by_whom_and_why(kit):
    before_ms = kit.now_ms()
    assert kit.order(("pause", "pause:mail", str(HOUR_MS)), reason="smtp is down") == [1, 1]
    ends, since, by, *reason = kit.control()["pause:mail"].split(" ")
    assert before_ms <= int(since) <= kit.now_ms()
    assert (int(ends) - int(since), by, reason) == (HOUR_MS, "ann@host", ["smtp", "is", "down"])


async def test_an_order_counts_once_and_has_one_entry_in_the_audit(kit):
    assert kit.order(("pause", "pause:*", "0"), ("set", "limit:mail", '{"limit":3}'), reason="a try") == [1, 1, 1]
    assert kit.control()["v"] == "1"
    [change] = kit.audit()
    assert change.pop("at")
    assert change == {"by": "ann@host", "reason": "a try", "what": 'pause pause:* 0\nset limit:mail {"limit":3}'}


async def test_an_operation_that_changes_nothing_is_not_among_those_told(kit):
    kit.order(("set", "limit:mail", "{}"))
    assert kit.order(("set", "limit:mail", "{}"), ("set", "worker:w", "quiet"), ("del", "pause:none", "")) == [2, 0, 1, 0]
    assert kit.audit()[-1]["what"] == "set worker:w quiet"


@pytest.mark.parametrize(
    "operation",
    [
        ("pause", "pause:mail", "0"),
        ("pause", "pause:mail", str(HOUR_MS)),
        ("later", "pause:mail", "0"),
        ("set", "limit:mail", '{"rate":"10/s"}'),
        ("merge", "limit:mail", '{"rate":"10/s","limit":null}'),
        ("set", "worker:w", "stop"),
        ("del", "worker:gone", ""),
    ],
)
async def test_an_order_repeated_changes_nothing(kit, operation):
    kit.order(("set", "worker:gone", "quiet"))
    assert kit.order(operation, reason="a try") == [2, 1]
    once, told = kit.control(), kit.audit()
    next_ms(kit)
    assert kit.order(operation, reason="a try") == [2, 0]
    assert (kit.control(), kit.audit()) == (once, told)


async def test_a_pause_of_another_length_or_reason_is_a_new_one(kit):
    for n, (for_ms, reason) in enumerate([(HOUR_MS, ""), (HOUR_MS + 1, ""), (HOUR_MS, "why"), (0, "why"), (0, ""), (5, "")], 1):
        assert kit.order(("pause", "pause:mail", str(for_ms)), reason=reason) == [n, 1]
    assert ends_ms(kit, "mail") > 0, "people may shorten a pause"


async def test_limits_are_merged_member_by_member(kit):
    for members, text in [
        ('{"rate":"100/5m","limit":1000000}', '{"limit":1000000,"rate":"100/5m"}'),
        ('{"limit":null}', '{"limit":null,"rate":"100/5m"}'),
        ('{"rate":false,"group_limit":2}', '{"group_limit":2,"limit":null}'),
        ('{"limit":false,"group_limit":false,"rate":false}', None),
    ]:
        assert kit.order(("merge", "limit:mail", members))[1] == 1
        assert kit.control().get("limit:mail") == text
    assert kit.order(("merge", "limit:mail", '{"limit":false}'))[1] == 0


async def test_a_field_that_goes_is_gone(kit):
    kit.order(("pause", "pause:mail", "0"), ("set", "worker:w", "quiet"))
    assert kit.order(("del", "pause:mail", ""), ("del", "worker:w", "")) == [2, 1, 1]
    assert kit.control() == {"v": "2"}


# --- what jobs order ----------------------------------------------------------------------------------------------------------


async def test_a_later_pause_leaves_one_that_lasts_longer(kit):
    kit.order(("pause", "pause:mail", str(HOUR_MS)))
    longer = kit.control()["pause:mail"]
    assert kit.order(("later", "pause:mail", str(HOUR_MS // 2))) == [1, 0]
    assert kit.control()["pause:mail"] == longer
    assert kit.order(("later", "pause:mail", str(2 * HOUR_MS))) == [2, 1]
    assert ends_ms(kit, "mail") > kit.now_ms() + HOUR_MS


async def test_a_later_pause_leaves_one_until_resumed_and_may_be_one(kit):
    kit.order(("pause", "pause:mail", "0"))
    assert kit.order(("later", "pause:mail", str(HOUR_MS))) == [1, 0]
    kit.order(("pause", "pause:text", str(HOUR_MS)))
    assert kit.order(("later", "pause:text", "0")) == [3, 1]
    assert ends_ms(kit, "text") == 0


async def test_jobs_that_only_go_on_pausing_their_type_do_not_fill_the_audit(kit):
    kit.order(("later", "pause:mail", str(HOUR_MS)), by="worker-1", reason="429")
    for n in range(2, 5):
        next_ms(kit)
        assert kit.order(("later", "pause:mail", str(HOUR_MS)), by="worker-2", reason="429") == [n, 1]
    assert [change["by"] for change in kit.audit()] == ["worker-1"]
    kit.order(("later", "pause:mail", str(2 * HOUR_MS)), ("set", "worker:w", "quiet"))
    assert len(kit.audit()) == 2, "but with anything else it is told"


# --- what workers read --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[], [("t|high|done", 3)]])
async def test_the_counters_bring_how_often_the_rules_were_changed(kit, counts):
    store = kit.streams(ME)
    assert await store.count(28_000_000, counts) == ""
    kit.order(("set", "worker:w", "quiet"))
    assert await store.count(28_000_000, counts) == "1"


async def test_a_worker_reads_the_rules(kit):
    store = kit.streams(ME)
    assert (await store.rules())[0].version == ""
    kit.order(("pause", "pause:mail", "0"), ("set", "limit:mail", '{"limit":3}'), ("set", f"worker:{ME}", "quiet"), reason="why")
    before_ms = kit.now_ms()
    rules, now_ms, _ = await store.rules()
    assert before_ms <= now_ms <= kit.now_ms()
    assert (rules.version, rules.orders, list(rules.limits), rules.unreadable) == ("1", {ME: "quiet"}, ["mail"], ())
    assert isinstance(rules.pauses["mail"], Pause)
    assert (rules.pauses["mail"].by, rules.pauses["mail"].reason) == ("ann@host", "why")


async def test_a_worker_that_is_forgotten_takes_its_order_along(kit):
    store = kit.streams(ME)
    await store.start()
    await store.beat(WorkerRow(30_000))
    kit.order(("set", f"worker:{ME}", "quiet"), ("set", f"worker:{OTHER}", "stop"))
    kit.add()
    [lease] = await leases(store)
    assert not await store.forget(ME)
    assert f"worker:{ME}" in kit.control(), "it holds something, and is to obey"
    await store.settle(batch(done=[lease]))
    assert await store.forget(ME)
    assert kit.control() == {"v": "1", f"worker:{OTHER}": "stop"}


# --- the double and the servers -----------------------------------------------------------------------------------------------


def random_order(rng: Random) -> list[tuple[str, str, str]]:
    def one() -> tuple[str, str, str]:
        verb = rng.choice(["set", "set", "merge", "merge", "del", "pause", "later", "later"])
        what = rng.choice(["mail", "text", "*"])
        match verb:
            case "set":
                return verb, *rng.choice([("limit:mail", "{}"), ("limit:mail", '{"limit":1}'), ("worker:w", "stop")])
            case "merge":
                member = rng.choice(['"limit":7', '"rate":"10/s"', '"limit":null', '"limit":false', '"rate":false'])
                return verb, "limit:mail", f"{{{member}}}"
            case "del":
                return verb, rng.choice(["limit:mail", "worker:w", f"pause:{what}"]), ""
            case _:
                return verb, f"pause:{what}", str(rng.choice([0, 100_000, 100_000, 1_000_000]))

    return [one() for _ in range(rng.choice([1, 1, 1, 2, 3]))]


def without_times(fields: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = dict(fields)
    for name, text in fields.items():
        if name.startswith("pause:"):
            ends, since, rest = text.split(" ", 2)
            found[name] = (int(ends) and int(ends) - int(since), rest)
    return found


async def test_whatever_is_ordered_the_double_answers_and_holds_what_a_server_does(valkey):
    real, double = ServerKit(valkey), MemoryKit()
    for seed in range(20):
        rng = Random(seed)
        real.clear()
        double.clear()
        for _ in range(40):
            next_ms(real)
            double.store.advance(real.now_ms() - double.now_ms())
            operations, reason = random_order(rng), rng.choice(["", "why"])
            answers = [side.order(*operations, reason=reason) for side in (real, double)]
            assert answers[0] == answers[1], (seed, operations)
            assert without_times(real.control()) == without_times(double.control()), (seed, operations)
            assert without_at(real.audit()) == without_at(double.audit())
    await real.close()


# --- a server alone -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_at_bytes", [0, 3])
@pytest.mark.parametrize("for_ms", [0, HOUR_MS])
async def test_an_order_repeated_after_a_lost_reply_changes_nothing_more(server, raw, cut_at_bytes, for_ms):
    operations = [("pause", "pause:mail", str(for_ms)), ("set", "worker:w", "quiet")]
    async with Proxy(server.socket) as proxy:
        unlucky = ControlStore(proxy.url, "jobs")
        await unlucky.order("ann@host", "", [("set", "worker:x", "quiet")])  # the script is loaded
        proxy.drop_next_reply(b"EVALSHA", cut_at_bytes)
        with pytest.raises(StoreUnavailable):
            await unlucky.order("ann@host", "", operations)
        assert await unlucky.order("ann@host", "", operations) == [False, False]
        await unlucky.close()
    assert raw.hget(CONTROL, "v") == "2"
    assert raw.xlen(AUDIT) == 2


GOOD = ("set", "worker:w", "quiet")


@pytest.mark.parametrize(
    ("operations", "text"),
    [
        ([], "operations of three words"),
        ([GOOD] * 501, "1 to 500 operations"),
        ([GOOD, ("dance", "worker:w", "x")], "no verb dance"),
        ([GOOD, ("set", "v", "7")], "no such field: v"),
        ([GOOD, ("set", "pause:mail", "0 1 ann")], "no such field: pause:mail"),
        ([GOOD, ("pause", "limit:mail", "5")], "no such field: limit:mail"),
        ([GOOD, ("set", "limit:", "{}")], "no such field: limit:"),
        ([GOOD, ("del", "strange:x", "")], "no such field: strange:x"),
        ([GOOD, ("pause", "pause:mail", "soon")], "number of ms"),
        ([GOOD, ("pause", "pause:mail", "-5")], "number of ms"),
        ([GOOD, ("later", "pause:mail", "9" * 16)], "number of ms"),
        ([GOOD, ("merge", "limit:mail", "[")], "must be a limit and an object"),
        ([GOOD, ("merge", "limit:mail", "5")], "must be a limit and an object"),
        ([GOOD, ("merge", "worker:w", "{}")], "must be a limit and an object"),
        ([GOOD, ("set", "limit:mail", "x" * 4097)], "at most 4096 bytes"),
        ([GOOD, ("set", "limit:" + "x" * 4091, "x")], "at most 4096 bytes"),
    ],
)
async def test_an_order_with_one_bad_operation_changes_nothing(control, raw, operations, text):
    with pytest.raises(ConfigError, match=text):
        await control.order("ann@host", "", operations)
    assert raw.keys() == []


@pytest.mark.parametrize(("by", "reason"), [("", ""), ("ann b", ""), ("ann", "x" * 4096)])
async def test_who_orders_is_one_word_and_the_reason_short(control, raw, by, reason):
    with pytest.raises(ConfigError, match="by"):
        await control.order(by, reason, [GOOD])
    assert raw.keys() == []


async def test_a_pause_with_the_longest_reason_can_be_read(control, raw):
    await control.order("a", "x" * (4096 - 65), [("pause", "pause:mail", "999999999999999")])
    assert len(raw.hget(CONTROL, "pause:mail")) <= 4096
    rules, _ = await control.rules()
    assert rules.unreadable == ()


async def test_there_are_at_most_2000_rules(control, raw):
    raw.hset(CONTROL, mapping={f"worker:{n}": "quiet" for n in range(1998)})
    assert await control.order("ann", "", [("set", "worker:a", "quiet")]) == [True]
    with pytest.raises(ConfigError, match="at most 2000 fields"):
        await control.order("ann", "", [("set", "worker:b", "quiet"), ("set", "worker:a", "stop")])
    assert raw.hget(CONTROL, "worker:a") == "quiet"
    assert await control.order("ann", "", [("set", "worker:a", "stop")]) == [True], "a change of one is none more"
    assert await control.order("ann", "", [("del", "worker:1", ""), ("set", "worker:b", "quiet")]) == [True, True]


@pytest.mark.parametrize("key", [CONTROL, AUDIT])
async def test_a_key_of_another_type_is_named_and_nothing_changes(control, raw, key):
    raw.set(key, "x")
    with pytest.raises(StoreError, match=f"WRONGTYPE {key} must be a .*, and is a string"):
        await control.order("ann", "", [GOOD])
    assert raw.keys() == [key]


async def test_a_worker_is_told_of_a_key_of_another_type_and_counts_all_the_same(server, raw):
    kit = ServerKit(server)
    store = kit.streams(ME)
    raw.set(CONTROL, "x")
    with pytest.raises(StoreError, match=CONTROL):
        await store.rules()
    assert await store.count(28_000_000, [("t|high|done", 3)]) == ""
    assert raw.hgetall("{jobs}:stats:28000000") == {"t|high|done": "3"}
    await kit.close()


@pytest.mark.parametrize("strange", ["x", "", "-3", "9" * 30])
async def test_a_version_that_is_no_number_is_replaced(control, raw, strange):
    raw.hset(CONTROL, "v", strange)
    assert await control.order("ann", "", [GOOD]) == [True]
    assert raw.hget(CONTROL, "v").isdigit()
    assert raw.hget(CONTROL, "v") != strange


async def test_a_pause_that_cannot_be_read_is_replaced(control, raw):
    raw.hset(CONTROL, "pause:mail", "soon")
    assert await control.order("ann", "", [("later", "pause:mail", "5")]) == [True]
    rules, now_ms = await control.rules()
    assert rules.pauses["mail"].until_ms <= now_ms + 5


@pytest.mark.parametrize("strange", ["x", "5", "[1]", "[" * 3000])
async def test_limits_that_cannot_be_read_are_replaced(control, raw, strange):
    raw.hset(CONTROL, "limit:mail", strange)
    assert await control.order("ann", "", [("merge", "limit:mail", '{"limit":3}')]) == [True]
    assert raw.hget(CONTROL, "limit:mail") == '{"limit":3}'


async def test_rules_change_with_memory_full(control, raw):
    raw.config_set("maxmemory", 1)
    try:
        assert await control.order("ann", "", [("pause", "pause:*", "0")]) == [True]
    finally:
        raw.config_set("maxmemory", 0)


async def test_the_audit_is_read_newest_first_and_what_cannot_be_read_is_empty(control, raw):
    await control.order("ann", "why", [GOOD])
    raw.xadd(AUDIT, {"strange": b"\xff"})
    raw.xadd(AUDIT, {"at": "soon", "by": b"\xff"})
    await control.order("bob", "", [("del", "worker:w", "")])
    changes = await control.audit(10)
    assert [(change.by, change.reason, change.what) for change in changes] == [
        ("bob", "", "del worker:w"),
        ("\\xff", "", ""),
        ("", "", ""),
        ("ann", "why", "set worker:w quiet"),
    ]
    assert abs(changes[0].at_ms - time.time() * 1000) < 60_000
    assert [change.by for change in await control.audit(1)] == ["bob"]


async def test_what_is_told_of_a_long_order_is_cut(control, raw):
    await control.order("ann", "", [("set", f"limit:{n}", "x" * 4000) for n in range(3)])
    [change] = await control.audit(1)
    assert 4096 <= len(change.what.encode()) < 4200


async def test_the_audit_is_bounded(control, raw):
    pipe = raw.pipeline(transaction=False)
    for n in range(10_300):
        pipe.xadd(AUDIT, {"by": str(n)})
    pipe.execute()
    await control.order("ann", "", [GOOD])
    assert 10_000 <= raw.xlen(AUDIT) < 10_200
