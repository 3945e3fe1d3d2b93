"""`make trace-demo`: an order that fails twice, then succeeds, as a real Jaeger has it, and whether its traces are right."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from deploy.demo.jaeger import ROOT, Jaeger, Span, Trace
from deploy.demo.timeline import draw
from deploy.demo.trees import children, tree
from deploy.demo.worker import store, worker

SERVICE: Final = "backend-jobs"  # the worker's, where nobody names another
ORDER: Final = 7
FAILURES: Final = 2
STEPS: Final = Counter(
    ["render", "upload", "upload", "sign in a thread", "deliver"]
)  # what the handler does below the job's span
TITLE: Final = "An order whose mail server refuses twice"
FINE: Final = "As it should be: a trace for each attempt, linked to the one before and to the producer; no warning of Jaeger's."
PATIENCE_S: Final = 30.0  # a guess: the attempts take a second, and spans are sent within another


def main() -> int:
    """Run the demo. Return 0 where the traces are as they should be."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo", description="Show an order that fails twice, then succeeds, in Jaeger."
    )
    parser.add_argument("--once", action="store_true", help="end at once, instead of with Ctrl-C")
    parser.add_argument(
        "--write", metavar="FOLDER", help="write traces/retry.json, and a picture of it, retry.svg, into this folder"
    )
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that nothing is left running
    with tempfile.TemporaryDirectory(prefix="traces-") as name, suppress(KeyboardInterrupt):
        folder = Path(name)
        with Jaeger(folder, usual=True) as jaeger, worker(folder, jaeger.otlp) as board:
            trace_id, job = place_order(jaeger, store(folder), FAILURES)
            traces, problems = look(jaeger, trace_id, job)
            print("\n\n".join(map(tree, traces)))
            print("\n" + ("\n".join(f"WRONG: {problem}" for problem in problems) or FINE))
            if traces:
                write(traces, Path(arguments.write) / "traces" if arguments.write else folder)
            if not arguments.once:
                print(welcome(jaeger, board, folder, traces), flush=True)
                signal.pause()
            return 1 if problems else 0
    return 0


def place_order(jaeger: Jaeger, url: str, failures: int) -> tuple[str, str]:
    """Send an order from a process of its own. Return the id of its trace, and that of the job."""
    command = [sys.executable, "-m", "deploy.demo.shop", url, str(ORDER), str(failures)]
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp, "OTEL_SERVICE_NAME": "shop"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    trace_id, job = answer.split()
    return trace_id, job


def look(jaeger: Jaeger, trace_id: str, job: str) -> tuple[list[Trace], list[str]]:
    """Return the traces of a job, by attempt, and what is wrong with them, when all is right or the patience is at its end."""
    end_s = time.monotonic() + PATIENCE_S
    while True:
        others = [trace for trace in jaeger.find(SERVICE, messaging_message_id=job) if trace and trace[0].trace_id != trace_id]
        traces = [trace for trace in (jaeger.trace(trace_id), *sorted(others, key=lambda trace: trace[0].start_ns)) if trace]
        if not check(traces, FAILURES) or time.monotonic() > end_s:
            traces = [jaeger.trace(trace[0].trace_id, warnings=True) for trace in traces]
            return traces, check(traces, FAILURES)
        time.sleep(0.05)


def check(traces: list[Trace], failures: int) -> list[str]:
    """Return what is wrong with the traces of an order whose first attempts fail so often."""
    if len(traces) != failures + 1:
        return [f"there are {len(traces)} traces, not {failures + 1}"]
    jobs = [[span for span in trace if span.kind == "consumer"] for trace in traces]
    publishes = [span for span in traces[0] if span.kind == "producer"]
    if [len(found) for found in jobs] != [1] * len(traces) or len(publishes) != 1:
        return [
            f"there is not one span for each attempt, and one for the send: {[span.name for trace in traces for span in trace]}"
        ]
    publish, attempts = publishes[0], [found[0] for found in jobs]
    problems: list[str] = []
    if attempts[0].parent != publish.id:
        problems.append("the first attempt is not below the producer's span")
    for number, (attempt, trace) in enumerate(zip(attempts, traces, strict=True), 1):
        problems += [f"attempt {number}: {problem}" for problem in check_attempt(attempt, trace, number, failures)]
        if number > 1:
            links = {(link.attributes.get("job.link"), link.trace_id, link.span_id) for link in attempt.links}
            before = attempts[number - 2]
            wanted = {("previous_attempt", before.trace_id, before.id), ("producer", publish.trace_id, publish.id)}
            if attempt.parent or links != wanted:
                problems.append(
                    f"attempt {number}: is not a trace of its own with links to the attempt before and to the producer"
                )
    return problems


def check_attempt(attempt: Span, trace: Trace, number: int, failures: int) -> list[str]:
    """Return what is wrong with one attempt, but for where it belongs."""
    outcome = "retry" if number <= failures else "done"
    problems: list[str] = []
    if (attempt.attributes.get("job.attempt"), attempt.attributes.get("job.outcome")) != (number, outcome):
        problems.append(f"says attempt {attempt.attributes.get('job.attempt')}, {attempt.attributes.get('job.outcome')}")
    if attempt.is_error != (outcome == "retry"):
        problems.append("its status is not that of its outcome")
    if Counter(span.name for span in children(attempt, trace)) != STEPS:
        problems.append(f"its steps are {[span.name for span in children(attempt, trace)]}")
    problems += [f"Jaeger warns at {span.name}: {warning}" for span in trace for warning in span.warnings]
    return problems


def write(traces: list[Trace], folder: Path) -> None:
    """Write the traces and their picture; what names this machine is left out."""
    text = msgspec.json.format(msgspec.json.encode(traces), indent=1).decode()
    for private in (f"{ROOT}/", f"{sys.prefix}/", f"{sys.base_prefix}/"):
        text = text.replace(private, "")
    text = re.sub(rf"{tempfile.gettempdir()}/traces-\w+", "/run", re.sub(rf"\b{re.escape(socket.gethostname())}\b", "host", text))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "retry.json").write_text(text + "\n", "utf-8")
    (folder / "retry.svg").write_text(draw(msgspec.json.decode(text, type=list[Trace]), TITLE), "utf-8")


def welcome(jaeger: Jaeger, board: str, folder: Path, traces: list[Trace]) -> str:
    """Return where to look."""
    return "\n".join(
        [
            "",
            f"  Jaeger    {jaeger.url}",
            *(f"            {jaeger.url}/trace/{trace[0].trace_id}" for trace in traces),
            f"  its API   {jaeger.url}/api/traces/{traces[0][0].trace_id}" if traces else "",
            f"  picture   {(folder / 'retry.svg').as_uri()}",
            f"  metrics   http://{board}/metrics",
            "",
            "  A Jaeger that was built here has no pages, only the API; JAEGER_BIN can name a released one. Ctrl-C stops all.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
