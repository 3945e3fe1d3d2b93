"""Results: what a handler may answer, how it is written, and what is read of what stands there."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import pytest

from runtime import BadResult, ConfigError, Dead, Job, contract, handler
from runtime.jobs import Batch, Deferral, Kept
from runtime.results import MAX_RESULT_BYTES, dead_text, done_head, parse, reader_of, result_policy
from runtime.testing import Answered, Done, run
from runtime.worker.flusher import parts_of
from tests.builders import job_of


class Sum(msgspec.Struct, frozen=True):
    total: int


@dataclass
class Node:
    text: str
    below: list[Node]


class Strange:
    """Nothing that JSON knows."""


@contract("answer")
class Ask(msgspec.Struct, frozen=True):
    n: int = 0


def encode(answer: object, annotation: Any = Any) -> bytes:
    policy = result_policy(60, annotation)
    assert policy is not None
    return policy.encode(answer)


# --- declared ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("life_s", [1, 1.5, 7 * 86_400])
def test_a_result_is_kept_for_a_second_to_a_week(life_s: float):
    policy = result_policy(life_s, Any)
    assert policy is not None
    assert policy.life_ms == life_s * 1000


@pytest.mark.parametrize("life_s", [0, 0.9, -1, 7 * 86_400 + 1, float("nan"), float("inf"), "600", True])
def test_another_time_is_refused_when_the_handler_is_declared(life_s: Any):
    with pytest.raises(ConfigError, match=r"handler .*: result_ttl_s must be a number of seconds from 1 to 604800"):

        @handler(Ask, result_ttl_s=life_s)
        async def answer(message: Ask, job: Job) -> int:
            return 1


def test_without_a_time_nothing_is_wrapped():
    @handler(Ask)
    async def answer(message: Ask, job: Job) -> Strange:
        return Strange()

    assert answer.result is None
    assert answer.run is answer.function


@pytest.mark.parametrize(
    "annotation", [Strange, list[Strange], dict[str, Strange | None], Awaitable[Strange], Sum | Ask, "no type"]
)
def test_an_annotation_that_json_cannot_hold_is_refused_when_the_handler_is_declared(annotation: Any):
    with pytest.raises(ConfigError, match=r"a result of type .* cannot be JSON"):
        result_policy(60, annotation)


def test_a_handler_of_many_has_no_results():
    with pytest.raises(ConfigError, match="result_ttl_s must not be given with max_size"):

        @handler(Ask, result_ttl_s=60, max_size=5)
        async def answer(messages: list[Ask], jobs: list[Job]) -> None:
            pass


# --- written -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "annotation", "written"),
    [
        (None, None, b"null"),
        (Sum(3), Sum, b'{"total":3}'),
        (Sum(3), Coroutine[Any, Any, Sum], b'{"total":3}'),
        (Node("a", [Node("b", [])]), Node, b'{"text":"a","below":[{"text":"b","below":[]}]}'),
        ([1, "x", None], Any, b'[1,"x",null]'),
        ({"nan": 1}, dict[str, int], b'{"nan":1}'),
        ({"raw": msgspec.Raw(b'[ "\xc3\xbc" ]')}, Any, b'{"raw":[ "\xc3\xbc" ]}'),
        ("x" * (MAX_RESULT_BYTES - 2), str, b'"' + b"x" * (MAX_RESULT_BYTES - 2) + b'"'),
    ],
)
def test_an_answer_is_written_as_json(answer: object, annotation: Any, written: bytes):
    assert encode(answer, annotation) == written


@pytest.mark.parametrize(
    ("answer", "annotation", "told"),
    [
        (Strange(), Any, "the result cannot be written as JSON: Encoding objects of type Strange is unsupported"),
        ("x" * (MAX_RESULT_BYTES - 1), str, "result of 65,537 bytes, the limit is 65,536; hint: store it elsewhere"),
        (float("inf"), float, "the result holds NaN or infinity, which JSON cannot write"),
        ({float("nan"): 1}, Any, "the result holds NaN or infinity"),
        (None, Sum, "the result is no Sum, as the handler is annotated: Expected `object`, got `null`"),
        ([1, "x"], list[int], r"the result is no list\[int\], as the handler is annotated"),
        (5, None, "the result is no None, as the handler is annotated"),
        (msgspec.Raw(b""), Any, "the result is no JSON: Input data was truncated"),
        ({"upstream": msgspec.Raw(b'{"cut off": ')}, object, "the result is no JSON: JSON is malformed"),
        ({"a": msgspec.Raw(b'1},"state":"dead","b":{"c":1')}, Any, "the result is no JSON: JSON is malformed: trailing"),
        (
            [msgspec.Raw(b"x")],
            list[msgspec.Raw],
            r"the result is no list\[.*Raw\], as the handler is annotated: JSON is malformed",
        ),
        (msgspec.Raw(b'"\xff"'), msgspec.Raw, "the result is no Raw, as the handler is annotated: 'utf-8' codec can't decode"),
        (msgspec.Raw(b"[" * 30_000 + b"]" * 30_000), Any, "the result is no JSON: "),
    ],
)
def test_what_is_no_result_is_said_by_name(answer: object, annotation: Any, told: str):
    with pytest.raises(BadResult, match=f"^{told}"):
        encode(answer, annotation)


# --- read ----------------------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read():
    done = parse(done_head(7) + b'{"total":3}' + b"}")
    assert done is not None
    assert (done.state, done.at, reader_of(Sum)(done.value)) == ("done", 7, Sum(3))
    dead = parse(dead_text("no-use", 'a "b"', 2, 8))
    assert dead is not None
    assert (dead.state, dead.reason, dead.error, dead.attempts, dead.at) == ("dead", "no-use", 'a "b"', 2, 8)


@pytest.mark.parametrize(
    "text",
    [b"", b"x", b"null", b"[]", b'{"state":"eaten"}', b'{"state":"done","value":}', b'{"state":1}', b"\xff", b"[" * 70_000],
)
def test_what_no_worker_has_written_is_no_result(text: bytes):
    assert parse(text) is None


def test_a_value_that_nests_too_deep_is_a_bad_result():
    deep = parse(done_head(1) + b"[" * 400 + b"]" * 400 + b"}")
    if deep is not None:  # what a parser bears differs
        with pytest.raises(BadResult):
            reader_of(Sum)(deep.value)


# --- a flush in parts ----------------------------------------------------------------------------------------------------------


def test_no_job_is_written_before_its_result():
    jobs = [job_of(Ask()) for _ in range(5)]
    batch = Batch([jobs, [], [], []], [Deferral(jobs[0], "retry", 1, "x", 1)], [], [], {"t": 5})
    batch.results = [Kept(f"job-{at}", b"x" * 1000, 1000) for at in range(5)]
    parts = [part for _, part in parts_of(batch, 2500)]
    assert [len(part.results) for part in parts if part.results] == [2, 2, 1]
    first_done = next(at for at, part in enumerate(parts) if any(part.done))
    assert not any(part.results for part in parts[first_done + 1 :])
    assert [jobs for part in parts for jobs in part.done if jobs] == [jobs]
    assert [part.pauses for part in parts if part.pauses] == [{"t": 5}]


# --- in a test of a handler ----------------------------------------------------------------------------------------------------


async def test_a_test_of_a_handler_sees_what_it_has_answered():
    @handler(Ask, result_ttl_s=60)
    async def answer(message: Ask, job: Job) -> Sum:
        if message.n < 0:
            raise Dead("no negative numbers")
        return Sum(message.n)

    outcome = await run(answer, Ask(3))
    assert outcome == Answered({"total": 3})
    assert isinstance(outcome, Done)
    assert isinstance(await run(answer, Ask(-1)), Dead)


async def test_what_a_handler_without_results_returns_is_thrown_away_as_ever():
    @handler(Ask)
    async def answer(message: Ask, job: Job) -> Strange:
        return Strange()

    outcome = await run(answer, Ask(3))
    assert outcome == Done()
    assert type(cast("object", outcome)) is Done
