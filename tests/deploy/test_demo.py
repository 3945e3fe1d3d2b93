"""The demo of traces: what it finds wrong, how it shows what it found, and all of it with a real Jaeger."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.demo.__main__ import FINE, TITLE, check
from deploy.demo.jaeger import HOW_TO_GET, ROOT, Event, Link, Span, Trace, binary
from deploy.demo.timeline import draw
from deploy.demo.trees import tree
from tests.servers import wait_until

SVG = "{http://www.w3.org/2000/svg}"
KEPT = ROOT / "docs" / "traces"
MS = 1_000_000


def span(trace: int, id: int, name: str, kind: str = "internal", parent: int = 0, at_ms: float = 0, **more: Any) -> Span:
    fixed: dict[str, Any] = {
        "service": "backend-jobs",
        "start_ns": 1_800_000_000_000 * MS + int(at_ms * MS),
        "end_ns": 1_800_000_000_000 * MS + int((at_ms + 5) * MS),
        "attributes": {},
        "resource": {},
        "events": [],
        "links": [],
        "is_error": False,
        "message": "",
        "warnings": [],
    }
    ids = {"trace_id": f"{trace:032x}", "id": f"{id:016x}", "parent": f"{parent:016x}" if parent else ""}
    return Span(name=name, kind=kind, **{**fixed, **ids, **more})


def attempt(trace: int, number: int, outcome: str, parent: int = 0) -> Trace:
    """Return the job's span, whose id is 10, and its steps."""
    links = [Link(f"{1:032x}", f"{2:016x}", {"job.link": "producer"})]
    links += [Link(f"{trace - 1:032x}", f"{10:016x}", {"job.link": "previous_attempt"})]
    told: dict[str, Any] = {
        "attributes": {"job.attempt": number, "job.outcome": outcome},
        "links": [] if number == 1 else links,
        "is_error": outcome == "retry",
    }
    steps = ("render", "upload", "upload", "sign in a thread", "deliver")
    return [
        span(trace, 10, "process confirm-order", "consumer", parent, 1, **told),
        *(span(trace, 11 + at, name, parent=10, at_ms=2 + at) for at, name in enumerate(steps)),
    ]


def traces() -> list[Trace]:
    """Return what the demo should find."""
    shop = [span(1, 1, "POST /orders", "server"), span(1, 2, "publish jobs", "producer", 1, 0.5)]
    return [[*shop, *attempt(1, 1, "retry", 2)], attempt(2, 2, "retry"), attempt(3, 3, "done")]


def changed(at: int, where: int, **values: Any) -> Callable[[list[Trace]], None]:
    def change(found: list[Trace]) -> None:
        found[at][where] = msgspec.structs.replace(found[at][where], **values)

    return change


def test_what_is_as_it_should_be_has_no_problems() -> None:
    assert check(traces(), 2) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda found: found.pop(), "there are 2 traces, not 3"),
        (lambda found: found[1].pop(0), "there is not one span for each attempt"),
        (lambda found: found[0].pop(1), "there is not one span for each attempt, and one for the send"),
        (changed(0, 2, parent=f"{1:016x}"), "the first attempt is not below the producer's span"),
        (lambda found: found[1].pop(), "attempt 2: its steps are"),
        (changed(2, 3, parent=""), "attempt 3: its steps are"),
        (changed(1, 0, links=[]), "attempt 2: is not a trace of its own with links"),
        (changed(2, 0, parent=f"{99:016x}"), "attempt 3: is not a trace of its own with links"),
        (changed(2, 0, links=traces()[1][0].links), "attempt 3: is not a trace of its own with links"),
        (changed(1, 0, attributes={"job.attempt": 1, "job.outcome": "retry"}), "attempt 2: says attempt 1, retry"),
        (changed(2, 0, attributes={"job.attempt": 3, "job.outcome": "dead"}), "attempt 3: says attempt 3, dead"),
        (changed(2, 0, is_error=True), "attempt 3: its status is not that of its outcome"),
        (changed(0, 0, warnings=["clock skew"]), "attempt 1: Jaeger warns at POST /orders: clock skew"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_thing_that_is_wrong_is_told(change: Callable[[list[Trace]], object], problem: str) -> None:
    found = traces()
    change(found)
    problems = check(found, 2)
    assert any(each.startswith(problem) for each in problems), problems


# --- as text -----------------------------------------------------------------------------------------------------------------


def test_a_tree_shows_kinds_times_attributes_events_links_and_warnings() -> None:
    events = [Event("job.retry", 1_800_000_000_000 * MS + 6 * MS, {"job.delay_s": 0.5})]
    [*_, job] = trace = traces()[0][:3]
    told = {"events": events, "message": "refused\nby the\x1b server", "warnings": ["odd"], "links": traces()[1][0].links}
    trace[2] = msgspec.structs.replace(job, **told)
    assert tree(trace).splitlines() == [
        f"trace {1:032x}, 3 spans",
        "  POST /orders  [server, backend-jobs]  +0.0 ms, takes 5.0 ms",
        "    publish jobs  [producer, backend-jobs]  +0.5 ms, takes 5.0 ms",
        "      process confirm-order  [consumer, backend-jobs]  +1.0 ms, takes 5.0 ms  FAILED: refused by the? server",
        "          job.attempt = 1",
        "          job.outcome = retry",
        "          * job.retry +6.0 ms  job.delay_s=0.5",
        f"          -> producer: trace {1:032x}, span {2:016x}",
        f"          -> previous_attempt: trace {1:032x}, span {10:016x}",
        "          ! Jaeger warns: odd",
    ]


def test_a_span_whose_parent_is_missing_stands_at_the_left_and_a_long_value_is_cut() -> None:
    lines = tree([span(1, 3, "orphan", parent=9, attributes={"long": "x" * 1000})]).splitlines()
    assert lines[1].startswith("  orphan  [")
    assert lines[2] == "      long = " + "x" * 99 + "…"


# --- as a picture ------------------------------------------------------------------------------------------------------------


def test_the_picture_has_a_panel_for_each_trace_a_bar_for_each_span_and_a_curve_for_each_link() -> None:
    root = ElementTree.fromstring(draw(traces(), "An order"))
    classes = [element.get("class", "") for element in root.iter()]
    spans = [one for trace in traces() for one in trace]
    bars = [element for element in root.iter(f"{SVG}rect") if element.get("height") == "12"]
    assert len(bars) == len(spans)
    assert classes.count("card") == 3
    assert sum(element.get("marker-end") is not None for element in root.iter()) == 4
    names = [element.text for element in root.iter(f"{SVG}text")]
    assert [name for name in names if name in {one.name for one in spans}] == [one.name for one in spans]
    width = float(root.get("width", ""))
    assert all(float(bar.get("x", "")) >= 0 and float(bar.get("x", "")) + float(bar.get("width", "")) <= width for bar in bars)


def test_a_link_that_leads_out_of_the_picture_is_not_drawn() -> None:
    root = ElementTree.fromstring(draw([traces()[2]]))
    assert not [element for element in root.iter() if element.get("marker-end")]


def test_a_span_that_took_no_time_is_seen() -> None:
    at = span(1, 1, "x").start_ns
    root = ElementTree.fromstring(draw([[span(1, 1, "x", end_ns=at)]]))
    [bar] = [element for element in root.iter(f"{SVG}rect") if element.get("height") == "12"]
    assert float(bar.get("width", "")) >= 1


values = st.one_of(st.text(max_size=5), st.integers(), st.lists(st.text(max_size=3)))


@given(st.text(max_size=20), st.dictionaries(st.text(max_size=5), values, max_size=3))
def test_whatever_a_span_is_called_the_picture_is_well_formed_and_the_tree_fits_a_terminal(name: str, attributes: Any) -> None:
    found = [[span(1, 1, name, attributes=attributes, events=[Event(name, 1_800_000_000_000 * MS, attributes)])]]
    ElementTree.fromstring(draw(found, name))
    assert all(line.isprintable() for line in tree(found[0]).split("\n"))


@given(st.integers(1, 10**13))
def test_the_grid_has_a_few_lines_at_round_times(takes_ns: int) -> None:
    start_ns = span(1, 1, "x").start_ns
    root = ElementTree.fromstring(draw([[span(1, 1, "x", end_ns=start_ns + takes_ns)]]))
    grid = [element for element in root.iter(f"{SVG}line") if element.get("class") == "grid"]
    assert 2 <= len(grid) <= 12


# --- with a real Jaeger ------------------------------------------------------------------------------------------------------


@pytest.mark.jaeger
def test_the_demo_shows_three_attempts_and_finds_them_as_they_should_be(tmp_path: Path) -> None:
    if binary() is None:
        pytest.skip(HOW_TO_GET)
    command = [sys.executable, "-m", "deploy.demo", "--once", "--write", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == FINE
    assert done.stdout.count("process confirm-order  [consumer, backend-jobs]") == 3
    found = msgspec.json.decode((tmp_path / "traces" / "retry.json").read_bytes(), type=list[Trace])
    assert check(found, 2) == []
    assert (tmp_path / "traces" / "retry.svg").read_text() == draw(found, TITLE)
    assert str(ROOT) not in json.dumps(msgspec.to_builtins(found)), "what is written names nothing of this machine"


@pytest.mark.jaeger
def test_the_demo_stays_until_it_is_interrupted_and_leaves_nothing_running(tmp_path: Path) -> None:
    if binary() is None:
        pytest.skip(HOW_TO_GET)
    with (tmp_path / "out").open("wb") as out:
        demo = subprocess.Popen(
            [sys.executable, "-u", "-m", "deploy.demo"], cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )
    try:
        wait_until(lambda: "Ctrl-C stops all" in (tmp_path / "out").read_text(), what="it says where to look")
        assert demo.poll() is None
    finally:
        demo.send_signal(signal.SIGINT)
        status = demo.wait(60)
    assert status == 0, (tmp_path / "out").read_text()
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if str(demo.pid).encode() in command]


def test_the_picture_in_the_docs_is_that_of_the_traces_beside_it_which_are_as_they_should_be() -> None:
    found = msgspec.json.decode((KEPT / "retry.json").read_bytes(), type=list[Trace])
    assert check(found, 2) == []
    assert (KEPT / "retry.svg").read_text("utf-8") == draw(found, TITLE)
