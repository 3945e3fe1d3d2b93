"""Jaeger on loopback: started with a memory that ends with it, asked for traces over its query API, stopped by its process.

`make jaeger` builds it into `.jaeger/bin`; `JAEGER_BIN` names another one.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import msgspec

ROOT: Final = Path(__file__).parents[2]
BUILT: Final = ROOT / ".jaeger" / "bin" / "jaeger"
HOW_TO_GET: Final = "no Jaeger: make jaeger, or JAEGER_BIN=path"
USUAL_PORT: Final = 16686  # where people look for Jaeger's pages
TAKEN: Final = "address already in use"
TRIES: Final = 5  # a guess: that a port is taken in between is rare
START_S: Final = 60.0  # a guess: 0.13 s were measured on a machine at rest
ANSWER_S: Final = 10.0  # a guess; answers of a hundred spans took milliseconds
MOST_TRACES: Final = 10_000  # 5.9 kB each were measured, so 59 MB
KINDS: Final = ("unspecified", "internal", "server", "client", "producer", "consumer")  # by their number in OTLP
ERROR: Final = 2  # the status code of OTLP


class Event(msgspec.Struct, frozen=True):
    """Something that happened within a span."""

    name: str
    time_ns: int
    attributes: dict[str, Any]


class Link(msgspec.Struct, frozen=True):
    """A span of another trace, and what it is to this one."""

    trace_id: str
    span_id: str
    attributes: dict[str, Any]


class Span(msgspec.Struct, frozen=True):
    """A span as Jaeger has it; ids are lowercase hex, `parent` is empty for a root."""

    trace_id: str
    id: str
    parent: str
    name: str
    kind: str
    service: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    resource: dict[str, Any]
    events: list[Event]
    links: list[Link]
    is_error: bool
    message: str
    warnings: list[str]


Trace = list[Span]
"""The spans of one trace, by their start."""


def binary() -> Path | None:
    """Return Jaeger's binary: the one that `JAEGER_BIN` names, else the one that was built; None if it cannot be run."""
    path = Path(os.environ.get("JAEGER_BIN") or BUILT)
    return path if os.access(path, os.X_OK) and path.is_file() else None


class Jaeger:
    """Owns one Jaeger process, whose files are in `folder`. It listens on loopback alone; leaving the context ends it.

    `usual` gives its pages the port where people look for them, if it is free. Where another process takes a port before Jaeger
    does, others are tried.

    Raises:
        RuntimeError: there is no binary, or it did not answer in time; the text has the end of its log.
    """

    def __init__(self, folder: Path, usual: bool = False) -> None:
        path = binary()
        if path is None:
            raise RuntimeError(HOW_TO_GET)
        self.log = folder / "jaeger.log"
        for tries_left in reversed(range(TRIES)):
            self._start(path, *free_ports(USUAL_PORT if usual else 0))
            try:
                self._wait_until_it_answers()
            except BaseException:
                self.stop()
                if not tries_left or TAKEN not in self.log.read_text(errors="replace"):
                    raise
            else:
                break

    def _start(self, path: Path, query: int, grpc: int, otlp: int) -> None:
        self.url = f"http://127.0.0.1:{query}"
        self.otlp = f"http://127.0.0.1:{otlp}"
        config = self.log.with_suffix(".yaml")
        config.write_text(json.dumps(configuration(query, grpc, otlp), indent=1))  # JSON is YAML
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([path, "--config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _wait_until_it_answers(self) -> None:
        end_s = time.monotonic() + START_S
        while self.process.poll() is None and time.monotonic() < end_s:
            try:
                self.services()
                with socket.create_connection(("127.0.0.1", int(self.otlp.rpartition(":")[2])), ANSWER_S):
                    return
            except OSError:
                time.sleep(0.02)
        raise RuntimeError(f"Jaeger does not answer: {self.log.read_text(errors='replace')[-2000:]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the process, and what it kept. It is killed: told to stop, it waits for 5 to 10 s, with nothing to save."""
        self.process.kill()
        self.process.wait()

    def ask(self, path: str, **query: str | int) -> Any:
        """Return what the query API answers.

        Raises:
            urllib.error.HTTPError: it refuses; 404 for a trace that it does not have.
            OSError: it does not answer.
        """
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:  # noqa: S310 -- our Jaeger's http:// address
            return json.load(answer)

    def services(self) -> list[str]:
        """Return the names of all services that have sent spans."""
        return sorted(self.ask("/api/services")["data"] or [])

    def find(self, service: str, most: int = 100, **tags: str) -> list[Trace]:
        """Return the newest traces that have a span of the service with these tags (`job_attempt="3"` is `job.attempt`).

        Without warnings: see `trace`.
        """
        wanted = json.dumps({name.replace("_", "."): value for name, value in tags.items()})
        found = self.ask("/api/traces", service=service, limit=most, lookback="1h", tags=wanted, raw="true")["data"]
        return [self.trace(one["traceID"]) for one in found]

    def trace(self, trace_id: str, warnings: bool = False) -> Trace:
        """Return all spans of one trace; none if Jaeger does not have it.

        With `warnings` they have those of Jaeger, to be asked for when all spans are there: once somebody has looked while a
        parent was missing, Jaeger warns of that whenever it is asked.
        """
        try:
            otlp = self.ask(f"/api/v3/traces/{trace_id}", raw_traces="true")["result"]
            older: list[dict[str, Any]] = self.ask(f"/api/traces/{trace_id}")["data"][0]["spans"] if warnings else []
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []
        # The same one is added whenever somebody looks.
        found: dict[str, list[str]] = {span["spanID"]: list(dict.fromkeys(span.get("warnings") or [])) for span in older}
        return sorted(spans_of(otlp, found), key=lambda span: (span.start_ns, -span.end_ns))


def free_ports(wanted: int) -> tuple[int, int, int]:
    """Return a port for the pages, which is `wanted` if that is free, and two others."""
    with ExitStack() as held:
        ports: list[int] = []
        for port in (wanted, 0, 0):
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                probe.bind(("127.0.0.1", 0))
            ports.append(probe.getsockname()[1])
        return ports[0], ports[1], ports[2]


def configuration(query: int, grpc: int, otlp: int) -> dict[str, Any]:
    """Return Jaeger's configuration: ports on loopback alone (its query port is open to all by default), storage in memory."""
    return {
        "service": {
            "extensions": ["jaeger_storage", "jaeger_query"],
            "pipelines": {"traces": {"receivers": ["otlp"], "processors": ["batch"], "exporters": ["jaeger_storage_exporter"]}},
            "telemetry": {"metrics": {"level": "none"}, "logs": {"level": "warn"}},
        },
        "extensions": {
            "jaeger_query": {
                "storage": {"traces": "memory"},
                "http": {"endpoint": f"127.0.0.1:{query}"},
                "grpc": {"endpoint": f"127.0.0.1:{grpc}"},
            },
            "jaeger_storage": {"backends": {"memory": {"memory": {"max_traces": MOST_TRACES}}}},
        },
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{otlp}"}}}},
        "processors": {"batch": {"timeout": "50ms"}},  # a demo should not wait for 200 ms, the default
        "exporters": {"jaeger_storage_exporter": {"trace_storage": "memory"}},
    }


def spans_of(otlp: dict[str, Any], warnings: dict[str, list[str]]) -> Trace:
    """Return the spans in an answer of OTLP's JSON, with the warnings of each id."""
    spans: Trace = []
    for group in otlp["resourceSpans"]:
        resource = values_of(group["resource"])
        for span in (span for scope in group["scopeSpans"] for span in scope["spans"]):
            status: dict[str, Any] = span.get("status", {})
            spans.append(
                Span(
                    trace_id=span["traceId"],
                    id=span["spanId"],
                    parent=span.get("parentSpanId", ""),
                    name=span["name"],
                    kind=KINDS[int(span.get("kind", 0))],
                    service=resource.get("service.name", ""),
                    start_ns=int(span["startTimeUnixNano"]),
                    end_ns=int(span["endTimeUnixNano"]),
                    attributes=values_of(span),
                    resource=resource,
                    events=[
                        Event(one.get("name", ""), int(one["timeUnixNano"]), values_of(one)) for one in span.get("events", [])
                    ],
                    links=[Link(one["traceId"], one["spanId"], values_of(one)) for one in span.get("links", [])],
                    is_error=status.get("code") == ERROR,
                    message=status.get("message", ""),
                    warnings=warnings.get(span["spanId"], []),
                )
            )
    return spans


def values_of(holder: dict[str, Any]) -> dict[str, Any]:
    """Return attributes by name; whole numbers are texts in this JSON."""
    return {pair["key"]: value_of(pair["value"]) for pair in holder.get("attributes", [])}


def value_of(value: dict[str, Any]) -> Any:
    """Return a value of OTLP's JSON, which says its kind."""
    match value:
        case {"intValue": number}:
            return int(number)
        case {"arrayValue": items}:
            return [value_of(item) for item in items.get("values", [])]
        case _:
            return next(iter(value.values()), None)
