"""The page for Prometheus can be parsed whatever stands in it, says the same in both formats, and grows with no stranger."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from otel.exposition import MAX_LABEL_CHARS, Family, Page, buckets, escaped, merged
from otel.metrics import (
    MAX_ROWS,
    MAX_TYPES,
    ProcessesReading,
    Reading,
    TraceReading,
    families,
    is_open_metrics,
    render,
    render_processes,
)
from runtime.errors import Retry
from runtime.jobs import DONE
from runtime.rules import Rules
from runtime.stats import Stats
from runtime.store.flow import Parts, PauseReading, reading
from runtime.store.inspector import Depth
from tests.builders import NOW_MS, job

FAMILIES = families()
TRACE = TraceReading({"sampled": 1}, {"full": 2}, exports=3, export_s=0.5)


def counted(*types: str, known: tuple[bytes, ...] = ()) -> Stats:
    stats = Stats(known)
    for name in types:
        stats.waited([job(name, f"{NOW_MS - 5}-0")], NOW_MS)
        stats.ran(job(name), DONE, 0.1)
    return stats


def a_reading(stats: Stats | None = None, **more: Any) -> Reading:
    """Return a reading with something in every part."""
    depth = Depth({"high": 1}, {"high": 0}, 0, 0, 0, 0, 1)
    flow = reading(Parts(Rules(), Counter(), [], {}, {}, 0), {})
    parts: dict[str, Any] = {"flow": flow, "known": (b"note",), "trace": TRACE, "stored_bytes": {"high": 1}, **more}
    return Reading("jobs", stats or counted("note", known=(b"note",)), depth, 0, 0, 0, 1, True, **parts)


def samples(body: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the samples of a page in either format, as the client library reads them."""
    parse = parse_open if body.endswith(b"# EOF\n") else parse_text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def of_type(body: bytes, name: str, **labels: str) -> dict[str, float]:
    """Return the samples of a metric with these labels, by type."""
    found = samples(body).items()
    return {dict(have)["type"]: value for (named, have), value in found if named == name and labels.items() <= dict(have).items()}


# --- what is there -----------------------------------------------------------------------------------------------------------


def test_each_metric_has_a_unit_and_a_help_text_and_no_two_have_one_name():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert family.unit, family.name
        assert re.fullmatch(r"[^\\\n]+[^.\\\n]", family.help), family.name
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        if family.unit in ("seconds", "bytes"):
            assert family.name.removesuffix("_total").endswith(f"_{family.unit}"), family.name


@pytest.mark.parametrize("is_open", [False, True])
def test_the_families_that_are_declared_are_those_of_the_pages(is_open: bool):
    pages = render(a_reading(), is_open=is_open) + render_processes(ProcessesReading({}, {0: 1}, 0, 0), is_open=is_open)
    shown = re.findall(r"^# TYPE (\S+) (\S+)", pages.decode(), re.MULTILINE)
    declared = [(family.name.removesuffix("_total") if is_open else family.name, family.kind) for family in FAMILIES]
    assert sorted(shown) == sorted(declared)


def test_both_formats_say_the_same():
    """But for what differs by name or by time."""
    text, as_open = (samples(render(a_reading(), is_open=is_open)) for is_open in (False, True))
    assert {key for key in text if not key[0].startswith("process_")} == {
        key for key in as_open if not key[0].startswith("process_")
    }


def test_without_an_answer_of_the_store_the_worker_is_shown_all_the_same():
    found = samples(render(Reading("jobs", Stats(), None, 3, 0, 0, 1, False)))
    assert found["runtime_running", frozenset({("queue", "jobs")})] == 3
    assert not any(name == "runtime_backlog" for name, _ in found)
    assert not any(name == "runtime_spans_total" for name, _ in found), "tracing is off"


def test_counters_for_alerts_begin_at_zero():
    """One that appears with its first event has no increase that Prometheus could see."""
    found = samples(render(Reading("jobs", Stats(), None, 0, 0, 0, 1, True, trace=TRACE)))
    queue = frozenset({("queue", "jobs")})
    for name in ("lease_losses", "isolations", "reclaims", "store_errors", "store_reconnects", "moves_refused", "results_lost"):
        assert found[f"runtime_{name}_total", queue] == 0
    for reason in ("collector", "budget"):
        assert found["runtime_spans_dropped_total", frozenset({("reason", reason)})] == 0
    assert found["runtime_export_failures_total", frozenset()] == 0


# --- whatever stands in it ---------------------------------------------------------------------------------------------------

HOSTILE = st.one_of(st.text(max_size=300), st.text(alphabet='a"\\\n\r\0{},=# \u2028\ud800', max_size=20))


@given(HOSTILE, HOSTILE)
def test_any_text_in_a_label_leaves_a_page_that_can_be_parsed(one: str, other: str):
    family = Family("some", "gauge", "1", "some", ("a", "b"))
    for is_open in (False, True):
        page = Page(is_open=is_open)
        page.add(family, {(one, other): 1, (other, one): 2})
        found = samples(page.body())
        assert len(found) == len({(escaped(a), escaped(b)) for a, b in ((one, other), (other, one))})


def test_a_long_label_is_cut_and_two_that_are_one_then_are_one_sample():
    page = Page()
    page.add(Family("some", "gauge", "1", "some", ("a",)), {("x" * 1000,): 1, ("x" * 1001,): 2})
    assert page.body().count(b"\nsome{") == 1
    assert samples(page.body()) == {("some", frozenset({("a", "x" * MAX_LABEL_CHARS)})): 2}


@given(st.text(alphabet='ab"\\\n- é', max_size=40))
def test_what_can_be_written_comes_back_as_it_was(value: str):
    page = Page()
    page.add(Family("some", "gauge", "1", "some", ("a",)), {(value,): 1})
    assert list(samples(page.body())) == [("some", frozenset({("a", value)}))]


@given(st.floats())
def test_any_number_is_read_as_it_was(value: float):
    for is_open in (False, True):
        page = Page(is_open=is_open)
        page.add(Family("some", "gauge", "1", "some"), value)
        [found] = samples(page.body()).values()
        assert found == value or value != value


# --- types -------------------------------------------------------------------------------------------------------------------


def test_types_without_a_handler_here_share_a_label_and_lose_no_count():
    stats = counted("note", known=(b"note",))
    for n in range(50):
        stats.moved(f"strange-{n}".encode(), 1, "dead", by=2)
    stats.moved(b"", 1, "dead")
    body = render(a_reading(stats))
    assert of_type(body, "runtime_outcomes_total", outcome="dead") == {"(unknown)": 101}
    assert of_type(body, "runtime_outcomes_total", outcome="done") == {"note": 1}
    assert {count.outcomes["dead"] for name, _, count in stats.rows() if name.startswith("strange")} == {2}, "only read"


def test_types_beyond_the_bound_share_a_label_and_lose_no_count():
    known = tuple(f"t{n:04}".encode() for n in range(MAX_TYPES + 20))
    stats = counted(*(name.decode() for name in known), known=known)
    body = render(a_reading(stats, known=known))
    for name in ("runtime_outcomes_total", "runtime_run_seconds_count", "runtime_wait_seconds_count"):
        found = of_type(body, name)
        assert len(found) == MAX_TYPES + 1, name
        assert (found["t0000"], found["(other)"]) == (1, 20), name


def test_blocks_of_types_without_a_handler_share_a_label():
    stats = Stats()
    for name in (b"note", b"gone", b""):
        stats.blocked_by(name, 0.5)
    body = render(a_reading(stats))
    assert of_type(body, "runtime_loop_blocked_total") == {"note": 1, "(unknown)": 2}
    assert of_type(body, "runtime_loop_blocked_seconds_total") == {"note": 0.5, "(unknown)": 1.0}


# --- histograms --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 10_000), min_size=1, max_size=30))
def test_a_bucket_has_what_ran_shorter_than_its_bound(runs_s: list[float]):
    stats = Stats((b"note",))
    for run_s in runs_s:
        stats.ran(job("note"), DONE, run_s)
    for is_open in (False, True):
        [family] = [
            family for family in (parse_open if is_open else parse_text)(render(a_reading(stats), is_open=is_open).decode())
            if family.name == "runtime_run_seconds"
        ]  # fmt: skip
        found = {sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")}
        assert found == {bound: sum(run_s < float(bound) for run_s in runs_s) for bound in found}
        assert len(found) == 14


def test_buckets_are_powers_of_two_of_the_unit():
    assert buckets((0, 2, 10), 1e3).bounds == ("0.001", "0.004", "1.024")


IDS = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")


def exemplars_of(body: bytes) -> dict[str, Any]:
    return {
        sample.labels["le"]: sample.exemplar
        for family in parse_open(body.decode())
        for sample in family.samples
        if sample.exemplar
    }


def test_the_newest_run_with_a_trace_stands_at_its_bucket_in_openmetrics_alone():
    kept = {
        (b"note", 1, 17): (*IDS, 0.1, 100.0),  # below 131 ms
        (b"note", 1, 16): (IDS[0], "00f067aa0ba902b7", 0.05, 99.0),  # in the same shown bucket, and older
        (b"note", 1, 40): (*IDS, 9999.0, 98.0),  # beyond all bounds
        (b"gone", 1, 17): (*IDS, 0.1, 100.0),
    }
    one = a_reading(trace=TraceReading({}, {}, exemplars=kept))
    found = exemplars_of(render(one, is_open=True))
    shown = {bound: (one.labels["span_id"], one.value, float(one.timestamp)) for bound, one in found.items()}
    assert shown == {"0.131072": (IDS[1], 0.1, 100.0), "+Inf": (IDS[1], 9999.0, 98.0)}
    assert {tuple(exemplar.labels) for exemplar in found.values()} == {("trace_id", "span_id")}
    assert IDS[1] not in render(one).decode()


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;q=0.5", True),
        ("text/plain;version=0.0.4", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_openmetrics_is_for_those_that_ask_for_it(accept: str, expected: bool):
    assert is_open_metrics(accept) is expected


# --- several processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_open", [False, True])
def test_the_pages_of_all_processes_are_one_with_each_family_once(is_open: bool):
    texts = {n: render(a_reading(counted("note", *["note"] * n)), is_open=is_open).decode() for n in (0, 1)}
    body = render_processes(ProcessesReading(texts, {0: 1, 1: 1, 2: 0}, 3, 4), is_open=is_open)
    found = samples(body)
    labels = {("outcome", "done"), ("priority", "high"), ("queue", "jobs")}
    done = {
        dict(have)["process"]: value
        for (name, have), value in found.items()
        if name == "runtime_outcomes_total" and labels <= have
    }
    assert done == {"0": 1, "1": 2}
    assert found["runtime_process_up", frozenset({("process", "2")})] == 0
    assert found["runtime_process_deaths_total", frozenset()] == 3
    assert {dict(have)["process"] for (name, have), _ in found.items() if name == "process_open_fds"} == {"0", "1"}
    types = re.findall(r"^# TYPE (\S+)", body.decode(), re.MULTILINE)
    assert len(types) == len(set(types))


def test_exemplars_survive_the_supervisor():
    kept = {(b"note", 1, 17): (*IDS, 0.1, 100.0)}
    text = render(a_reading(trace=TraceReading({}, {}, exemplars=kept)), is_open=True).decode()
    body = render_processes(ProcessesReading({0: text}, {0: 1}, 0, 0), is_open=True)
    assert [exemplar.labels["trace_id"] for exemplar in exemplars_of(body).values()] == [IDS[0]]


def test_a_page_that_is_not_ours_is_left_out():
    """Another program may have the port of a process that has just ended."""
    ours = render(a_reading()).decode()
    other = "# HELP runtime_ready so\n# TYPE runtime_ready gauge\nruntime_ready 7\n# HELP load load\n# TYPE load gauge\nload 1\n"
    body = merged({0: ours, 1: other, 2: "<html>\n"}, "process", "", ("runtime_", "process_")).encode()
    assert {dict(labels)["process"] for _, labels in samples(body)} == {"0"}
    assert b"html" not in body


def test_a_label_that_looks_like_a_line_of_the_page_stays_where_it_is():
    head = "# HELP runtime_a some\n# TYPE runtime_a gauge\n"
    text = 'name="# TYPE x y\u2028{}\x85 1"} 1\n'
    assert merged({0: f"{head}runtime_a{{{text}"}, "process", "", ("runtime_",)) == f'{head}runtime_a{{process="0",{text}'


def test_a_retry_is_an_outcome():
    stats = counted("note", known=(b"note",))
    stats.ran(job("note"), Retry(1), 0.1)
    assert of_type(render(a_reading(stats)), "runtime_outcomes_total", outcome="retry") == {"note": 1}


def test_what_people_have_paused_makes_series_up_to_a_bound():
    flow = reading(Parts(Rules(), Counter(), [], {}, {}, 0), {})
    flow.pauses = [PauseReading("type", f"t{n}", 0, 0, "ann", "", 0) for n in range(2 * MAX_ROWS)]
    found = samples(render(a_reading(flow=flow)))
    assert sum(name == "runtime_paused_since_timestamp_seconds" for name, _ in found) == MAX_ROWS
