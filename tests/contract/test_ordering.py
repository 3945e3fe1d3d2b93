"""`Control`: what people order in Python. Wrong arguments are refused by name, before anything changes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import pytest

from runtime import ConfigError, Control, Priority, StoreUnavailable
from runtime.control import who
from runtime.limits import override_of
from runtime.store.base import WorkerRow
from runtime.streams import Streams
from tests.proxy import Proxy
from tests.servers import Server

CONTROL = "{jobs}:control"


@pytest.fixture
async def control(server: Server) -> AsyncIterator[Control]:
    async with Control(server.url, by="ann@host") as opened:
        yield opened


async def live(server: Server, *names: str) -> None:
    """Let workers of these names have beaten a moment ago."""
    for name in names:
        streams = Streams(server.url, "jobs", name)
        await streams.beat(WorkerRow(60_000, host="h", pid=7, lanes=5, stage="running", types={"mail": 1}))
        await streams.close()


# --- pauses --------------------------------------------------------------------------------------------------------------------


async def test_types_priorities_and_the_queue_are_paused_and_resumed(control):
    assert await control.pause(type="mail", priority=[Priority.LOW, "high"], reason="why") == ["mail", "low", "high"]
    assert await control.pause(all=True, for_s=90) == ["*"]
    pauses = (await control.rules()).pauses
    assert set(pauses) == {"mail", "low", "high", "*"}
    assert (pauses["mail"].until_ms, pauses["mail"].by, pauses["mail"].reason) == (0, "ann@host", "why")
    assert pauses["*"].until_ms - pauses["*"].since_ms == 90_000
    assert await control.pause(type=["mail", "mail", "text"], reason="why") == ["text"]
    assert await control.resume(all=True) == ["*"]
    assert await control.resume(type=["mail", "none"], priority="low") == ["mail", "low"]
    assert set((await control.rules()).pauses) == {"high", "text"}


async def test_a_pause_whose_time_is_up_is_none(control, raw):
    raw.hset(CONTROL, "pause:mail", "5 1 ann")
    assert (await control.rules()).pauses == {}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "name types or priorities, or choose the whole queue"),
        ({"type": []}, "name types or priorities"),
        ({"type": "mail", "all": True}, "not both"),
        ({"type": ""}, "type must be 1 to 64"),
        ({"type": ["mail", "Mail"]}, "type must be 1 to 64 .* got 'Mail'"),
        ({"type": "x" * 65}, "type must be"),
        ({"type": "mail\n"}, "type must be"),
        ({"type": "\udc80"}, "type must be"),
        ({"type": 5}, "type must be .* got 5"),
        ({"type": "high"}, "name of a priority.*hint: to pause a priority: priority='high'"),
        ({"priority": "urgent"}, "priority must be one of critical, high, medium, low, got 'urgent'"),
        ({"priority": 1}, "priority must be"),
        ({"type": "mail", "for_s": 0}, "for_s must be between 1 and"),
        ({"type": "mail", "for_s": float("nan")}, "for_s"),
        ({"type": "mail", "for_s": float("inf")}, "for_s"),
        ({"type": "mail", "for_s": 10**9}, "for_s"),
        ({"type": "mail", "for_s": "10m"}, "for_s"),
        ({"type": "mail", "reason": "x" * 501}, "reason must be one line of up to 500"),
        ({"type": "mail", "reason": "a\nb"}, "reason"),
        ({"type": "mail", "reason": "\udc80"}, "reason"),
        ({"type": "mail", "reason": None}, "reason"),
    ],
)
async def test_a_bad_pause_is_refused_and_nothing_changes(control, raw, given, text):
    with pytest.raises(ConfigError, match=text):
        await control.pause(**given)
    if "for_s" not in given:
        with pytest.raises(ConfigError, match=text):
            await control.resume(**given)
    assert raw.keys() == []


async def test_the_longest_reason_and_name_fit(server):
    async with Control(server.url, by="x" * 100) as control:
        assert await control.pause(type="x" * 64, reason="\N{GRINNING FACE}" * 500) == ["x" * 64]
        assert (await control.rules()).unreadable == ()


@pytest.mark.parametrize("by", ["ann b", "a\n", "x" * 101, 5])
def test_who_orders_is_one_word(by):
    with pytest.raises(ConfigError, match="by must be one word"):
        Control("redis://127.0.0.1:1", by=by)


def test_who_orders_is_the_user_and_host_of_the_process(monkeypatch):
    monkeypatch.setattr("getpass.getuser", lambda: "ann lee")
    monkeypatch.setattr("socket.gethostname", lambda: "host.example")
    assert Control("redis://127.0.0.1:1").by == "ann-lee@host.example"

    def nobody() -> str:
        raise KeyError("no such user")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert who().startswith("uid-")


# --- limits --------------------------------------------------------------------------------------------------------------------


async def test_limits_are_set_one_by_one_listed_and_cleared(control):
    assert await control.set_limits("mail", limit=3, rate="100/5m")
    assert not await control.set_limits("mail", limit=3)
    assert await control.set_limits("mail", limit=None, group_limit=2)
    assert await control.limits() == {"mail": override_of({"limit": None, "rate": "100/5m", "group_limit": 2})}
    assert await control.clear_limits("mail", "limit", "rate")
    assert await control.limits() == {"mail": override_of({"group_limit": 2})}
    assert await control.clear_limits("mail")
    assert not await control.clear_limits("mail")
    assert await control.limits() == {}


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("mail", {}, "give at least one of limit, rate, group_limit, group_rate"),
        ("mail", {"limit": 0}, "limit must be a whole number between 1 and 1,000,000, got 0; hint: `pause`"),
        ("mail", {"group_limit": True}, "group_limit must be"),
        ("mail", {"rate": 5}, "rate must be"),
        ("mail", {"group_rate": "5/y"}, "group_rate must be"),
        ("Mail", {"limit": 1}, "type must be"),
        ("high", {"limit": 1}, "type must not be the name of a priority"),
        ("mail", {"limit": 1, "reason": "\n"}, "reason"),
    ],
)
async def test_bad_limits_are_refused_and_nothing_changes(control, raw, name, given, text):
    with pytest.raises(ConfigError, match=text):
        await control.set_limits(name, **given)
    assert raw.keys() == []


async def test_a_limit_that_there_is_not_cannot_be_cleared(control):
    with pytest.raises(ConfigError, match="unknown limit 'limits'"):
        await control.clear_limits("mail", "limits")


# --- workers -------------------------------------------------------------------------------------------------------------------


async def test_workers_that_live_are_listed_and_told_what_to_do(server, control, raw):
    await live(server, "web-1-aa", "web-2-bb", "web-22-cc")
    raw.zadd("{jobs}:workers", {"dead-1": 5})
    assert [worker.name for worker in await control.workers()] == ["dead-1", "web-1-aa", "web-2-bb", "web-22-cc"]
    assert await control.quiet("web-1", "web-2-bb", reason="why") == ["web-1-aa", "web-2-bb"]
    assert await control.quiet("web-1-aa", "web-22") == ["web-22-cc"]
    [dead, first, *_] = await control.workers()
    assert dead.silence.endswith(", its jobs are taken back now")
    assert first.silence == ""
    assert (first.order, first.host, first.pid, first.lanes, first.stage, first.types) == (
        "quiet",
        "h",
        7,
        5,
        "running",
        {"mail": 1},
    )
    assert await control.resume_worker("web-1") == ["web-1-aa"]
    assert await control.stop(all=True) == ["web-1-aa", "web-2-bb", "web-22-cc"]
    assert (await control.rules()).orders == dict.fromkeys(["web-1-aa", "web-2-bb", "web-22-cc"], "stop")
    assert await control.resume_worker(all=True) == ["web-1-aa", "web-2-bb", "web-22-cc"]


@pytest.mark.parametrize(
    ("names", "is_all", "text"),
    [
        ([], False, "name workers, or choose all of them"),
        (["web-1"], True, "not both"),
        (["web-1-aa", "nobody"], False, "no worker 'nobody' lives; there are web-1-aa, web-2-bb"),
        (["dead-1"], False, "no worker 'dead-1' lives"),
        ([""], False, "no worker '' lives"),
        (["web"], False, "'web' is the beginning of several workers: web-1-aa, web-2-bb"),
    ],
)
async def test_a_worker_that_does_not_live_is_refused_with_those_that_do(server, control, raw, names, is_all, text):
    await live(server, "web-1-aa", "web-2-bb")
    raw.zadd("{jobs}:workers", {"dead-1": 5})
    for act in (control.quiet, control.resume_worker, control.stop):
        with pytest.raises(ConfigError, match=text):
            await act(*names, all=is_all)
    assert raw.exists(CONTROL) == 0


async def test_a_name_that_is_the_beginning_of_another_is_that_worker(server, control):
    await live(server, "web", "web-2")
    assert await control.stop("web") == ["web"]


async def test_where_no_worker_lives_that_is_said_and_all_are_none(control, raw):
    with pytest.raises(ConfigError, match="no worker 'x' lives; none does"):
        await control.stop("x")
    assert await control.stop(all=True) == []
    assert raw.keys() == []


async def test_more_workers_than_one_step_takes_are_all_told(control, raw):
    until_ms = int(time.time() * 1000) + 60_000
    raw.zadd("{jobs}:workers", {f"w{n:04}": until_ms for n in range(1100)})
    assert len(await control.quiet(all=True)) == 1100
    assert len((await control.rules()).orders) == 1100


# --- the audit, and a lost reply -----------------------------------------------------------------------------------------------


async def test_the_audit_says_who_ordered_what_and_why(control):
    await control.pause(type="mail", reason="smtp is down")
    await control.set_limits("mail", limit=3)
    changes = await control.audit()
    assert [(change.by, change.reason, change.what) for change in changes] == [
        ("ann@host", "", 'merge limit:mail {"limit":3}'),
        ("ann@host", "smtp is down", "pause pause:mail 0"),
    ]
    assert len(await control.audit(1)) == 1
    for n in (0, 10_001, 2.5, True):
        with pytest.raises(ConfigError, match="n must be between 1 and 10,000"):
            await control.audit(n)


@pytest.mark.parametrize("cut_at_bytes", [0, 3])
async def test_an_order_whose_answer_was_lost_is_given_again_and_counts_once(server, raw, cut_at_bytes):
    async with Proxy(server.socket) as proxy, Control(proxy.url) as control:
        await control.pause(type="text")
        proxy.drop_next_reply(b"EVALSHA", cut_at_bytes)
        assert await control.pause(type="mail", for_s=60) == [], "it stands already"
        assert proxy.dropped == 1
    assert raw.hget(CONTROL, "v") == "2"
    assert set(raw.hkeys(CONTROL)) == {"v", "pause:text", "pause:mail"}


async def test_where_no_server_is_that_is_said():
    async with Control("redis://127.0.0.1:1") as control:
        with pytest.raises(StoreUnavailable):
            await control.pause(all=True)


def test_what_it_is_for_people_says_no_password():
    assert "secret" not in repr(Control("redis://u:secret@127.0.0.1:1"))
