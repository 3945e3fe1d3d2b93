"""A Prometheus of the tests' own, as `make prometheus` fetches it; and what alerts and dashboard ask for."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from otel.metrics import families
from tests.servers import free_ports, wait_until

ROOT = Path(__file__).parents[2]
FETCHED = ROOT / ".prometheus" / "usr" / "bin"
HOW_TO_GET = "no Prometheus: make prometheus, or apt-get install prometheus"
ALERTS = ROOT / "deploy" / "prometheus" / "alerts.yml"
CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "jobs.json"
# What Prometheus adds to each sample, a supervisor to those of its processes, and a histogram to its buckets.
ADDED = {"instance", "job", "process", "le"}


def program(name: str) -> str | None:
    """Return the path of `prometheus` or `promtool`, if it is there."""
    return shutil.which(name) or shutil.which(name, path=str(FETCHED))


class Prometheus:
    """One process on loopback, with its data in a folder. It scrapes `target` each second, and knows the alerts."""

    def __init__(self, folder: Path, target: str) -> None:
        config = re.sub(r"targets: \[.*\]", f"targets: ['{target}']", CONFIG.read_text())
        config = re.sub(r"(scrape|evaluation)_interval: \S+", r"\1_interval: 1s", config)
        (folder / "prometheus.yml").write_text(config)
        shutil.copy(ALERTS, folder)
        self.url = f"http://127.0.0.1:{free_ports()}"
        self._folder = folder

    def __enter__(self) -> Prometheus:
        binary = program("prometheus")
        assert binary
        command = [
            *(binary, f"--config.file={self._folder / 'prometheus.yml'}", f"--storage.tsdb.path={self._folder / 'data'}"),
            *(f"--web.listen-address={self.url.removeprefix('http://')}", "--enable-feature=exemplar-storage"),
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def await_scrape(self) -> dict[str, Any]:
        """Return what is known of the target, once it was scraped."""
        found: list[dict[str, Any]] = []

        def is_scraped() -> bool:
            assert self._process.poll() is None, (self._folder / "log").read_text()
            try:
                found[:] = self.ask("targets")["activeTargets"]
            except OSError:
                return False
            return bool(found) and found[0]["health"] != "unknown"

        wait_until(is_scraped, what="it scrapes")
        return found[0]

    def ask(self, path: str, **query: str) -> Any:
        """Return the data of an answer of its API."""
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and values that an expression has now."""
        found = self.ask("query", query=expression)
        return [(row["metric"], float(row["value"][1])) for row in found["result"]]


class Alert(NamedTuple):
    """An alert as it stands in its file."""

    name: str
    expression: str
    severity: str
    annotations: dict[str, str]


def alerts() -> list[Alert]:
    """Return the alerts."""
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    return [Alert(one["alert"], one["expr"], one["labels"]["severity"], one["annotations"]) for one in group["rules"]]


def panels() -> list[tuple[str, str, str]]:
    """Return title, expression and legend of each query of the dashboard."""
    board = json.loads(DASHBOARD.read_text())
    return [(panel["title"], target["expr"], target["legendFormat"]) for panel in board["panels"] for target in panel["targets"]]


def as_query(expression: str) -> str:
    """Return the expression of a panel as Grafana asks it."""
    for name, value in {"$__rate_interval": "1m", "$queue": "jobs", "$type": ".*"}.items():
        expression = expression.replace(name, value)
    return expression


class Used(NamedTuple):
    """What an expression uses: metrics, each with the labels that its selector names and their values, and labels grouped by."""

    selectors: list[tuple[str, dict[str, str]]]
    grouped: set[str]


def used(expression: str) -> Used:
    """Return what an expression uses."""
    selectors = [
        (name, dict(re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"', matchers)))
        for name, matchers in re.findall(r"\b((?:runtime|process)_\w+)(\{[^}]*\})?", expression)
    ]
    groups = re.findall(r"\b(?:by|on|without) \(([^)]*)\)", expression)
    return Used(selectors, {label.strip() for group in groups for label in group.split(",")})


DECLARED = {
    **{family.name: set(family.labels) for family in families()},
    **{
        f"{family.name}{suffix}": set(family.labels)
        for family in families()
        if family.kind in ("histogram", "summary")
        for suffix in ("_bucket", "_sum", "_count")
    },
}
