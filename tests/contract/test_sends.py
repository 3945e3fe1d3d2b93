"""What a producer's store does with what a server confirms: each answer is as durable as was asked, or an error with its reason.

With real servers, disks and replicas: tests/faults/test_durability.py.
"""

from __future__ import annotations

import pytest

from runtime.errors import ConfigError, QueueFull, StoreError, StoreUnavailable
from runtime.store.resp import tail_of
from runtime.store.sends import LOCAL, Durability, SendStore, durability_of
from tests.liar import Liar, texts

FSYNC, TWO = Durability(fsync=True), Durability(replicas=2)


@pytest.mark.parametrize(
    ("word", "durability"),
    [("local", LOCAL), ("fsync", FSYNC), ("replicas=2", TWO), ("replicas=1000", Durability(replicas=1000))],
)
def test_a_durability_is_one_of_a_few_words_and_is_shown_by_it(word, durability):
    assert durability_of(word) == durability
    assert str(durability) == word


@pytest.mark.parametrize(
    "word", ["", "disk", "2", "replicas=0", "replicas=1001", "replicas=-1", "replicas=\u00b2", "replicas=", "FSYNC"]
)
def test_what_is_no_durability_is_told_with_those_there_are(word):
    with pytest.raises(ConfigError, match="must be one of local, fsync, replicas=1 to replicas=1000"):
        durability_of(word)


def store(liar: Liar, durability: Durability) -> SendStore:
    return SendStore(liar.url, "jobs", durability)


@pytest.mark.parametrize(
    ("durability", "asked", "answer", "doubt"),
    [
        (LOCAL, "", b"", ""),
        (TWO, b"WAIT 2 500", b":2\r\n", ""),
        (TWO, b"WAIT 2 500", b":7\r\n", ""),
        (TWO, b"WAIT 2 500", b":1\r\n", "only 1 of 2 replicas have confirmed it within 0.5 s"),
        (FSYNC, b"WAITAOF 1 0 500", b"*2\r\n:1\r\n:0\r\n", ""),
        (FSYNC, b"WAITAOF 1 0 500", b"*2\r\n:0\r\n:3\r\n", "its disk has not confirmed it within 0.5 s"),
        (FSYNC, b"WAITAOF 1 0 500", b"-ERR appendonly is disabled\r\n", "not confirmed on disk: ERR appendonly is disabled"),
    ],
)
async def test_a_confirmation_is_compared_with_what_was_asked(durability, asked, answer, doubt):
    is_stored = False
    async with Liar(lambda command: answer if is_stored and command.startswith(b"WAIT") else None) as liar:
        sends = store(liar, durability)
        await sends.ready()
        is_stored, before = True, len(liar.asked)
        told = await sends.confirm(0.5)
        assert told == (f"stored, but {doubt}" if doubt else "")
        assert [command for _, command in liar.asked[before:]] == ([asked] if asked else [])
        await sends.close()


@pytest.mark.parametrize("durability", [FSYNC, TWO], ids=str)
@pytest.mark.parametrize("answer", [b"+OK\r\n", b"$-1\r\n", b"*0\r\n", b"*1\r\n$1\r\n1\r\n"])
async def test_a_confirmation_that_is_none_says_nothing_of_what_was_stored(durability, answer):
    async with Liar(lambda command: answer if command.startswith(b"WAIT") else None) as liar:
        sends = store(liar, durability)
        await sends.ready()
        with pytest.raises(StoreUnavailable, match="answered what is no answer to this"):
            await sends.confirm(0.5)
        await sends.close()


@pytest.mark.parametrize("durability", [FSYNC, TWO], ids=str)
async def test_a_server_that_is_no_master_any_more_confirms_nothing(durability):
    """What it stored may go: the caller must repeat it at the new master, and not hear that it is stored."""
    is_master = True
    gone = b"-UNBLOCKED force unblock from blocking operation, instance state changed\r\n"
    async with Liar(lambda command: gone if command.startswith(b"WAIT") and not is_master else None) as liar:
        sends = store(liar, durability)
        await sends.ready()
        is_master = False
        with pytest.raises(StoreError, match="UNBLOCKED"):
            await sends.confirm(0.5)
        await sends.close()


async def test_a_wait_of_no_time_is_not_one_without_an_end():
    async with Liar(lambda command: b":2\r\n" if command.startswith(b"WAIT") else None) as liar:
        sends = store(liar, TWO)
        assert await sends.confirm(0.0001) == ""
        assert liar.asked[-1][1] == b"WAIT 2 1"
        await sends.close()


# --- whether a server can confirm at all -------------------------------------------------------------------------------------


def setting(name: bytes, value: bytes) -> bytes:
    return texts(name, value) if value else b"*0\r\n"


def old_server(appendonly: bytes, fsync: bytes, refusal: bytes = b"-ERR unknown command\r\n"):
    """Return what a server answers that has no WAITAOF, or no file."""
    answers = {
        b"WAITAOF 1 0 1": refusal,
        b"CONFIG GET APPENDONLY": setting(b"appendonly", appendonly),
        b"CONFIG GET APPENDFSYNC": setting(b"appendfsync", fsync),
    }
    return answers.get


@pytest.mark.parametrize(
    ("appendonly", "fsync", "why"),
    [
        (b"no", b"always", r"has no append-only file; nothing was sent; hint: CONFIG SET appendonly yes, or durability local"),
        (b"yes", b"everysec", r"is older than 7\.2 and cannot confirm single sends; .* CONFIG SET appendfsync always"),
        (b"", b"", r"is older than 7\.2"),
    ],
)
async def test_a_server_that_can_never_confirm_is_refused_before_anything_is_sent_with_what_fixes_it(appendonly, fsync, why):
    async with Liar(old_server(appendonly, fsync)) as liar:
        sends = store(liar, FSYNC)
        with pytest.raises(ConfigError, match=f"durability fsync: Redis at {liar.url} {why}"):
            await sends.ready()
        assert liar.heard(b"EVALSHA") == []
        await sends.close()


async def test_a_server_that_writes_each_command_to_its_disk_needs_no_confirmation():
    async with Liar(old_server(b"yes", b"always")) as liar:
        sends = store(liar, FSYNC)
        await sends.ready()
        await sends.ready()
        assert await sends.confirm(0.5) == ""
        assert len(liar.heard(b"WAITAOF")) == 1, "each connection is asked once"
        await sends.close()


async def test_a_server_that_is_loading_is_asked_again_and_nothing_is_said_of_its_settings():
    is_loading = True
    loading = old_server(b"no", b"", b"-LOADING the dataset\r\n")
    async with Liar(lambda command: loading(command) if is_loading else None) as liar:
        sends = store(liar, FSYNC)
        with pytest.raises(StoreError, match="LOADING"):
            await sends.ready()
        is_loading = False
        await sends.ready()
        assert len(liar.heard(b"WAITAOF")) == 2
        await sends.close()


# --- what becomes of a chunk -------------------------------------------------------------------------------------------------


async def sent_to(answer: bytes) -> list[object]:
    async with Liar(lambda command: answer if command.startswith(b"EVALSHA") else None) as liar:
        sends = store(liar, LOCAL)
        try:
            return await sends.store("mark", 1000, tail_of([b"a"]))
        finally:
            await sends.close()


@pytest.mark.parametrize(
    ("lists", "read"),
    [
        (b"*0\r\n*0\r\n", [[], []]),
        (b"*2\r\n:2\r\n$1\r\nj\r\n*0\r\n", [[2, b"j"], []]),
        (b"*2\r\n:2\r\n$1\r\nj\r\n*2\r\n:3\r\n$3\r\nOOM\r\n", [[2, b"j"], [3, b"OOM"]]),
    ],
)
async def test_the_reply_of_the_script_is_returned_as_it_is(lists, read):
    first = b"*6\r\n$0\r\n\r\n$3\r\n7-1\r\n$0\r\n\r\n$0\r\n\r\n"
    assert await sent_to(first + lists) == [b"", b"7-1", b"", b"", *read]


@pytest.mark.parametrize(
    ("answer", "error", "why"),
    [
        (b"-OOM command not allowed\r\n", QueueFull, "Redis is full"),
        (b"-MISCONF Redis is configured\r\n", StoreError, "MISCONF"),
        (b"-READONLY You can't write\r\n", StoreUnavailable, "is a replica now"),
        (b"-ERR upstream failure\r\n", StoreUnavailable, "ERR upstream failure"),
        (b"+OK\r\n", StoreUnavailable, "no answer to this"),
        (b"*6\r\n" + b"$0\r\n\r\n" * 4 + b"*0\r\n*1\r\n:0\r\n", StoreUnavailable, "no answer to this"),
        (b"*6\r\n" + b"$0\r\n\r\n" * 4 + b"*1\r\n$1\r\na\r\n*0\r\n", StoreUnavailable, "no answer to this"),
        (b"*6\r\n" + b"$0\r\n\r\n" * 4 + b"*0\r\n*2\r\n:0\r\n:1\r\n", StoreUnavailable, "no answer to this"),
        (b"*6\r\n" + b":1\r\n" * 4 + b"*0\r\n*0\r\n", StoreUnavailable, "no answer to this"),
        (b"*6\r\n" + b"$3\r\na-b\r\n" * 4 + b"*0\r\n*0\r\n", StoreUnavailable, "no answer to this"),
        (b"*5\r\n" + b"$0\r\n\r\n" * 4 + b"*0\r\n", StoreUnavailable, "no answer to this"),
    ],
)
async def test_an_error_says_whether_it_is_known_that_nothing_was_written(answer, error, why):
    with pytest.raises(error, match=why) as caught:
        await sent_to(answer)
    assert type(caught.value) is error, "a StoreError says that nothing was written; StoreUnavailable does not"
