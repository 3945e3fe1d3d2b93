"""Which jobs are traced from their beginning, and in whose trace."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otel.sampling import Budget, Sampling, parse
from runtime.codec import decode_many
from runtime.jobs import Job

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"
NOW_MS = 1_790_000_000_000


def jobs(*fields: dict[str, str], count: int = 1) -> list[Job]:
    """Return jobs as they are fetched."""
    rows = [
        (b"1790000000000-%d" % at, [word.encode() for pair in {"type": "t", "data": "{}", **one}.items() for word in pair])
        for at, one in enumerate(fields)
    ]
    found, bad = decode_many(1, rows, [count] * len(rows), "run", 0.0, NOW_MS)
    assert not bad
    return found


def job(count: int = 1, **fields: str) -> Job:
    return jobs(fields, count=count)[0]


def sampling(sampler: str = "parentbased_always_off", ratio: float = 1.0, **changed: Any) -> Sampling:
    settings: dict[str, Any] = {"trusts": True, "joins": True, "spans_per_s": 5000, "forced_per_s": 500}
    return Sampling(sampler, ratio, **{**settings, "jitter": random.Random(7).random, **changed})


def chosen(by: Sampling, found: list[Job], now_s: float = 1.0) -> list[bool]:
    by.choose(found, now_s)
    return [one.is_traced for one in found]


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (SAMPLED, True),
        (UNSAMPLED, False),
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-0b", True),
        (f"00-{TRACE}-{SPAN}-0a", False),
        (f"cc-{TRACE}-{SPAN}-01-what-comes-later", True),
    ],
)
def test_a_traceparent_says_who_sent_it_and_whether_that_is_recorded(text: str, is_sampled: bool) -> None:
    found = parse(text.encode())
    assert found is not None
    assert (found[0].hex(), found[1].hex(), found[2]) == (TRACE, SPAN, is_sampled)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01more",
        f" 00-{TRACE}-{SPAN}-01",
    ],
)
def test_what_w3c_does_not_allow_is_no_traceparent(text: str) -> None:
    assert parse(text.encode()) is None


@given(st.binary(max_size=70))
def test_no_bytes_break_the_choice(text: bytes) -> None:
    for sampler in ("parentbased_always_off", "traceidratio"):
        by = sampling(sampler, 0.5)
        row = (b"1-1", [b"type", b"t", b"data", b"{}", b"traceparent", text])
        found, _ = decode_many(1, [row], [1], "run", 0.0, NOW_MS)
        by.choose(found, 0.0)
        assert (by.trace_of(found[0]) is None) == (parse(text) is None)


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ("parentbased_always_off", [False, True, False]),
        ("parentbased_always_on", [True, True, False]),
        ("always_on", [True, True, True]),
        ("always_off", [False, False, False]),
        ("parentbased_traceidratio", [True, True, False]),
    ],
)
def test_a_sampler_decides_by_its_name(sampler: str, expected: list[bool]) -> None:
    assert chosen(sampling(sampler), jobs({}, {"traceparent": SAMPLED}, {"traceparent": UNSAMPLED})) == expected


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.999])
def test_a_ratio_holds_over_batches_of_any_size(ratio: float) -> None:
    by, sizes = sampling("parentbased_traceidratio", ratio), random.Random(3)
    total = traced = 0
    while total < 40_000:
        batch = jobs(*[{} if sizes.random() < 0.8 else {"src": "web"} for _ in range(sizes.randint(1, 300))])
        total, traced = total + len(batch), traced + sum(chosen(by, batch))
    deviation = 5 * (total * ratio * (1 - ratio)) ** 0.5
    assert abs(traced - total * ratio) < deviation


@pytest.mark.parametrize("ratio", [1e-17, 5e-324])
@pytest.mark.parametrize("jitter", [0.0, 0.5, 1 - 2**-53])
def test_however_small_a_ratio_is_it_is_drawn_from(ratio: float, jitter: float) -> None:
    by = sampling("parentbased_traceidratio", ratio, jitter=lambda: jitter)
    assert chosen(by, jobs({}, {})) == [jitter == 0] * 2


def test_a_ratio_of_a_trace_is_the_same_wherever_it_is_asked() -> None:
    low, high = f"00-{'a' * 16}{'0' * 15}1-{SPAN}-00", f"00-{'a' * 16}{'f' * 16}-{SPAN}-01"
    assert chosen(sampling("traceidratio", 0.5), jobs({"traceparent": low}, {"traceparent": high})) == [True, False]


def test_an_attempt_after_a_failed_one_and_what_a_worker_left_is_traced_from_its_beginning() -> None:
    by = sampling()
    assert chosen(by, jobs({"a": "1"}, {"tried": SAMPLED}, {"a": "0"}, {})) == [True, True, False, False]
    assert chosen(by, [job(count=2)]) == [True]


def test_a_storm_of_retries_has_its_budget_and_what_is_beyond_is_counted() -> None:
    by = sampling(forced_per_s=2)
    assert chosen(by, jobs(*[{"a": "1"}] * 4)) == [True, True, False, False]
    assert by.forced.refused == 2
    assert chosen(by, jobs(*[{"a": "1"}] * 1), now_s=2.0) == [True]
    assert chosen(by, jobs(*[{}] * 3, count=2)) == [True] * 3  # a job that its worker lost always is


def test_a_sender_is_believed_up_to_its_budget() -> None:
    by = sampling(spans_per_s=1)
    assert chosen(by, jobs(*[{"traceparent": SAMPLED}] * 3)) == [True, False, False]
    assert by.believed.refused == 2


def test_a_sender_that_is_not_trusted_changes_nothing() -> None:
    by = sampling(trusts=False)
    found = job(traceparent=SAMPLED, tracestate="a=b")
    assert chosen(by, [found]) == [False]
    assert (by.trace_of(found), by.parent_of(found), by.state_of(found)) == (None, None, "")


def test_what_is_malformed_is_counted_and_the_job_is_as_if_it_had_none() -> None:
    by = sampling("parentbased_always_on")
    assert chosen(by, jobs({"traceparent": "nonsense"}, {"traceparent": SAMPLED.upper()})) == [True, True]
    assert by.malformed == 2


@pytest.mark.parametrize(
    ("fields", "is_joined"),
    [
        ({}, True),
        ({"src": "web", "x-tenant": "a"}, True),
        ({"id": "mine", "key": "k"}, True),
        ({"a": "1"}, False),
        ({"first_at": "1789000000000"}, False),
        ({"at": "1789000000000"}, False),
        ({"snoozed_at": "1789000000000"}, False),
    ],
    ids=str,
)
def test_only_a_first_attempt_that_has_not_waited_on_purpose_is_in_the_trace_of_its_sender(
    fields: dict[str, str], is_joined: bool
) -> None:
    found = job(traceparent=SAMPLED, **fields)
    assert (sampling().trace_of(found) is not None) == is_joined
    assert sampling(joins=False).trace_of(found) is None


@pytest.mark.parametrize(
    ("state", "kept"), [("a=b", "a=b"), ("a=" + "b" * 510, "a=" + "b" * 510), ("a=" + "b" * 511, ""), ("a=b\n", ""), ("a=ü", "")]
)
def test_a_tracestate_is_kept_as_far_as_w3c_allows(state: str, kept: str) -> None:
    by = sampling()
    assert by.state_of(job(traceparent=SAMPLED, tracestate=state)) == kept
    assert by.states_dropped == (not kept)


def test_a_budget_is_full_again_each_second() -> None:
    budget = Budget(2)
    assert [budget.take(now_s) for now_s in (0.1, 0.2, 0.9, 1.0, 1.5, 1.9, 7.0)] == [True, True, False, True, True, False, True]
    assert budget.refused == 2
