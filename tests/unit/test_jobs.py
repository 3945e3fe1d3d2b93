"""The nouns: identity of a job over its life, contracts, batches."""

from __future__ import annotations

import gc
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from runtime import jobs
from runtime.backoff import Backoff
from runtime.errors import ConfigError
from runtime.jobs import (
    DONE,
    STREAMS,
    Batch,
    Deferral,
    Extras,
    Handler,
    Job,
    Lease,
    Letter,
    Parking,
    Priority,
    contract,
    contract_of,
    default_id,
    lot_of,
)
from tests.builders import job

# --- one job over its attempts -------------------------------------------------------------------------------------------


def retried(first: Job, entry: str = "1700000099000-0", failed: int = 1) -> Job:
    """What a later attempt looks like: a new entry with the id and the birth of the first."""
    return job(entry=entry, id=first.id, failed=failed, first_ms=int(first.born * 1000), data=first.data)


def test_a_message_without_an_id_is_named_after_its_place() -> None:
    assert job(entry="5-1", stream=3).id == default_id("low", "5-1") == "low-5-1"


def test_a_message_with_an_id_keeps_it() -> None:
    assert job(id="order:17").id == "order:17"


def test_the_id_stays_the_same_over_all_attempts() -> None:
    first = job()
    assert retried(retried(first), "1700000200000-0").id == first.id == "high-1700000000000-0"


def test_the_attempt_is_one_more_than_the_failures() -> None:
    assert [job().attempt, job(failed=1).attempt, job(failed=7).attempt] == [1, 2, 8]


def test_a_redelivery_is_no_new_attempt() -> None:
    assert job(count=3).attempt == 1


@pytest.mark.parametrize("stream", range(4))
def test_the_priority_is_the_stream_a_job_came_from(stream: int) -> None:
    assert job(stream=stream).priority is list(Priority)[stream]
    assert job(stream=stream).priority.name.lower() == STREAMS[stream]


def test_a_job_is_born_when_its_first_entry_was_made() -> None:
    assert job(entry="1600000000123-4").born == 1600000000.123


def test_a_job_is_born_once() -> None:
    first = job(entry="1600000000123-4")
    assert retried(first).born == first.born


def test_the_work_is_one_short_word() -> None:
    assert re.fullmatch("[a-z2-7]{26}", job().work)


def test_the_work_stays_the_same_over_attempts_and_redeliveries() -> None:
    first = job()
    assert {retried(first, failed=failed).work for failed in range(1, 9)} == {first.work} == {job(count=7).work}


def test_the_work_stays_the_same_after_an_unedited_replay() -> None:
    first = job(id="order:17")
    assert job(entry="1800000000000-0", id="order:17", origin="order:17").work == first.work
    assert job(entry="1800000000000-0", id="another", origin="order:17").work == first.work


def test_another_job_or_another_payload_is_other_work() -> None:
    works = [
        job(id="a").work,
        job(id="b").work,
        job(id="a", data=b'{"a":2}').work,
        job(entry="1-1").work,
        job(entry="1-1", stream=2).work,
    ]
    assert len(set(works)) == len(works)


def test_leases_of_one_entry_are_told_apart() -> None:
    first, second = Lease(0, b"1-0", 1, "run", 0.0), Lease(0, b"1-0", 1, "run", 0.0)
    assert first != second
    assert [second, first].index(first) == 1
    one, other = job(), job()
    assert one != other
    assert {one: 1}.get(other) is None


def test_jobs_are_outside_of_the_garbage_collector() -> None:
    assert not gc.is_tracked(job())
    assert not Job.__struct_config__.gc


# --- contracts -------------------------------------------------------------------------------------------------------------


@contract("greet", version=3, priority=Priority.HIGH)
class Greet(msgspec.Struct):
    name: str


def test_a_contract_is_found_on_its_class() -> None:
    found = contract_of(Greet)
    assert (found.type, found.payload, found.version, found.priority) == ("greet", Greet, 3, Priority.HIGH)


def test_a_contract_has_version_one_and_medium_priority_unless_told() -> None:
    @contract("plain")
    class Plain(msgspec.Struct):
        pass

    assert (contract_of(Plain).version, contract_of(Plain).priority) == (1, Priority.MEDIUM)


def test_a_number_will_do_for_a_priority_and_no_other_number() -> None:
    @contract("numbered", priority=4)
    class Numbered(msgspec.Struct):
        pass

    assert contract_of(Numbered).priority is Priority.LOW
    with pytest.raises(ValueError, match="5"):
        contract("numbered", priority=5)(Numbered)


def test_a_class_derived_from_a_contract_is_none_itself() -> None:
    class GreetMore(Greet):
        more: str

    with pytest.raises(ConfigError, match="GreetMore is not a contract"):
        contract_of(GreetMore)


@pytest.mark.parametrize("name", ["a", "7", "send-email", "a.b_c-d", "a" * 64])
def test_a_wire_name_may_be(name: str) -> None:
    assert contract(name)


@pytest.mark.parametrize("name", ["", "A", "-a", ".a", "a b", "a/b", "ä", "a\n", "a" * 65])
def test_a_wire_name_may_not_be(name: str) -> None:
    with pytest.raises(ConfigError, match="must be 1 to 64"):
        contract(name)


@pytest.mark.parametrize("version", [0, -1])
def test_versions_begin_at_one(version: int) -> None:
    with pytest.raises(ConfigError, match="version"):
        contract("greet", version=version)


def test_a_contract_is_a_struct() -> None:
    with pytest.raises(ConfigError, match=r"Loose must be a subclass of msgspec\.Struct"):

        @contract("loose")
        class Loose:
            pass


def test_a_contract_without_its_name_is_told_what_it_needs() -> None:
    class Nameless(msgspec.Struct):
        pass

    with pytest.raises(ConfigError, match=r"contract Nameless: needs its wire name; hint: @contract\('its-type'\)"):
        contract(Nameless)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="'type'"):
        contract()  # pyright: ignore[reportCallIssue]


TWICE = """
import msgspec
from runtime import contract

@contract("mail", version=3)
class Mail(msgspec.Struct):
    pass

@contract("mail", version={version})
class Other(msgspec.Struct):
    pass
"""


def load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_two_classes_of_a_module_are_not_the_payload_of_the_same_messages(tmp_path: Path) -> None:
    (tmp_path / "twice.py").write_text(TWICE.format(version=3))
    with pytest.raises(ConfigError, match=r"contract 'mail': twice:Other must not be declared, Mail has this name and version"):
        load(tmp_path / "twice.py", "twice")


def test_a_module_may_be_loaded_again_and_by_another_name(tmp_path: Path) -> None:
    (tmp_path / "mails.py").write_text(TWICE.format(version=4))
    for name in ("mails", "mails", "__mp_main__"):
        assert contract_of(load(tmp_path / "mails.py", name).Other).version == 4


@pytest.mark.parametrize("queue", ["a b", "{a}", "a\n", 5])
def test_a_queue_may_not_be_named_so(queue: Any) -> None:
    with pytest.raises(ConfigError, match=r"contract 'greet': queue .*: must be a name without spaces and braces"):
        contract("greet", queue=queue)


def test_a_handler_can_be_called_as_the_function_it_is() -> None:
    def greet(message: Greet, job: Job) -> str:
        return message.name

    async def run(payload: Any, job: Job) -> None:
        raise AssertionError

    handler = Handler(contract_of(Greet), run, lambda job: None, greet, 1.0, Backoff(), "thread")
    assert handler(Greet("Ada"), job()) == "Ada"
    assert handler.location == f"{__name__}:{greet.__qualname__}"


# --- small shapes ----------------------------------------------------------------------------------------------------------


def test_a_lot_is_named_after_type_and_version() -> None:
    assert lot_of("greet", 3) == "~t:greet@3"


def test_a_batch_counts_all_that_is_to_be_written() -> None:
    one = job()
    done, defer, dead = [[], [one], [], [one, one]], [Deferral(one, "retry", 1, "a", 1)], [Letter(one, "", "", "", 0, "")]
    assert len(Batch(done, defer, dead, [Parking(one, "~")])) == 6
    assert len(Batch([[], [], [], []], [], [], [])) == 0


def test_a_batch_takes_over_what_another_holds() -> None:
    one, other = job(), job()
    batch = Batch([[one], [], [], []], [], [], [])
    batch.add(Batch([[other], [], [], [other]], [Deferral(one, "retry", 1, "a", 1)], [Letter(one, "", "", "", 0, "")], []))
    batch.add(Batch([[], [], [], []], [], [], [Parking(one, "~")]))
    assert batch.done == [[one, other], [], [], [other]]
    assert [len(batch.defer), len(batch.dead), len(batch.park)] == [1, 1, 1]


def test_success_is_one_object_for_all_jobs() -> None:
    assert type(DONE)() == DONE
    assert len(msgspec.structs.fields(DONE)) == 0


def test_threads_that_note_something_first_note_it_on_the_same_extras(monkeypatch: pytest.MonkeyPatch):
    one = job()

    class Slow(Extras):
        """The extras of a thread that loses its turn while it makes them."""

        def __post_init__(self) -> None:
            if one.extras is None:
                one.extras = first

    first = Extras()
    monkeypatch.setattr(jobs, "Extras", Slow)
    assert one.noted() is first
