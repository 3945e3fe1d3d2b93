"""What compose.yaml and the Dockerfiles name exists, is pinned, listens on loopback alone, and is what the settings take.

There is no Docker on the machines that run the tests; `test_image.py` runs the steps of the images without it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from board import access
from deploy.demo.jaeger import ROOT
from deploy.demo.orders import confirm_order
from otel import settings as otel_settings
from runtime.commands.run import HARD_S
from runtime.config import SETTINGS, load
from runtime.errors import ConfigError
from tests.deploy.dockerfile import Stage, stages
from tests.servers import Server, free_ports, wait_until

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker-")]
BUILT = [name for name, service in SERVICES.items() if "build" in service]
LISTENS = {"valkey": {6379}, "jaeger": {4318, 16686}, "prometheus": {9090}, "grafana": {3000}, "shop": {8000}}
LISTENS |= {name: {8080} for name in ("board", *WORKERS)}

TOKENS = {f"RUNTIME_BOARD_{role.upper()}_TOKEN" for role in access.ROLES}
TOKEN = "5f1c0d2e9b8a47c6a3e4d5f60718293b"

every_service = pytest.mark.parametrize("name", SERVICES)
every_built_one = pytest.mark.parametrize("name", BUILT)


def built(name: str) -> tuple[Path, Stage]:
    """Return the folder that a service is built from, and the last stage of its image."""
    build = SERVICES[name]["build"]
    context = (DEPLOY / build["context"]).resolve()
    found = stages(context / build.get("dockerfile", "Dockerfile"))
    return context, found[build.get("target", list(found)[-1])]


def test_there_are_the_parts_of_a_whole() -> None:
    assert len(WORKERS) == 2
    assert set(SERVICES) == {"valkey", "jaeger", "prometheus", "grafana", "shop", "node-orders", "board", *WORKERS}


@every_service
def test_images_are_pinned_to_a_version(name: str) -> None:
    if name in BUILT:
        assert SERVICES[name]["image"].startswith("backend-jobs-")
        _, last = built(name)
        images = [stage.image for stage in (last, *last.ancestors) if not stage.parent]
    else:
        images = [SERVICES[name]["image"]]
    for image in images:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+|python:3\.\d+-slim-[a-z]+|node:\d+-[a-z]+-slim", image), image


def test_jaeger_is_the_release_that_make_jaeger_builds() -> None:
    [built_here] = re.findall(r"^JAEGER_VERSION := 1\.(\d+)\.0$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert SERVICES["jaeger"]["image"] == f"jaegertracing/jaeger:2.{int(built_here) - 63}.0", "v1.76 and v2.13 are one release"


@every_service
def test_ports_are_published_on_loopback_alone_and_lead_to_what_listens(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        address, _, inner = re.fullmatch(r"(\d+\.\d+\.\d+\.\d+):(\d+):(\d+)", port).groups()  # type: ignore[union-attr]
        assert address == "127.0.0.1"
        assert int(inner) in LISTENS[name]


def test_no_port_is_published_twice() -> None:
    ports = [port.rsplit(":", 1)[0] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(set(ports)) == len(ports)


@every_service
def test_files_and_volumes_exist(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, _, mode = volume.split(":")[0], volume.split(":")[1], volume.split(":")[2:]
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mode == ["ro"]
        else:
            assert source in COMPOSE["volumes"]


@every_service
def test_what_is_waited_for_has_a_health_check(name: str) -> None:
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "healthcheck" in SERVICES[other]


@every_service
def test_health_is_checked_or_the_file_says_why_not(name: str) -> None:
    checked = "healthcheck" in SERVICES[name] or (name in BUILT and built(name)[1].words("HEALTHCHECK"))
    assert bool(checked) == (name not in {"jaeger", "node-orders"})


@every_service
def test_urls_lead_to_services_and_ports_that_exist(name: str) -> None:
    for variable, value in SERVICES[name].get("environment", {}).items():
        parts = urllib.parse.urlsplit(str(value))
        if parts.hostname and variable != "RUNTIME_TRACE_URL":
            assert parts.port in LISTENS[parts.hostname], (variable, value)


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text())


def test_what_prometheus_and_grafana_ask_are_services_that_exist() -> None:
    [scrape] = read("prometheus/prometheus.yml")["scrape_configs"]
    targets = [target.split(":") for static in scrape["static_configs"] for target in static["targets"]]
    assert sorted(name for name, _ in targets) == WORKERS
    for source in read("grafana/provisioning/datasources/datasources.yml")["datasources"]:
        parts = urllib.parse.urlsplit(source["url"])
        targets.append([str(parts.hostname), str(parts.port)])
    assert all(int(port) in LISTENS[name] for name, port in targets), targets


def test_files_are_mounted_where_they_are_looked_for() -> None:
    mounts = {
        volume.split(":")[1]: DEPLOY / volume.split(":")[0] for name in SERVICES for volume in SERVICES[name].get("volumes", [])
    }
    [config] = [word.partition("=")[2] for word in SERVICES["prometheus"]["command"] if word.startswith("--config.file=")]
    folder = mounts[str(Path(config).parent)]
    assert (folder / Path(config).name).exists()
    assert all((folder / rules).exists() for rules in read("prometheus/prometheus.yml")["rule_files"])
    [provider] = read("grafana/provisioning/dashboards/dashboards.yml")["providers"]
    assert list(mounts[provider["options"]["path"]].glob("*.json"))
    assert {path.name for path in mounts["/etc/grafana/provisioning"].iterdir()} == {"dashboards", "datasources"}


@every_built_one
def test_settings_exist_and_are_taken(name: str, tmp_path: Path) -> None:
    environment = {**built(name)[1].environment, **SERVICES[name]["environment"]}
    assert all(isinstance(value, str) for value in environment.values()), "YAML makes numbers and booleans of some"
    ours = {key: value for key, value in environment.items() if key.startswith("RUNTIME_")}
    assert set(ours) <= {setting.variable for setting in SETTINGS} | (TOKENS if name == "board" else set())
    load({}, environment, tmp_path)
    if name == "board":
        return  # it sends no traces
    export = otel_settings.load(environment)
    assert export is not None
    assert export.endpoint == "http://jaeger:4318/v1/traces"


def test_the_board_asks_for_a_token_that_only_the_file_of_variables_has(tmp_path: Path) -> None:
    environment = {**built("board")[1].environment, **SERVICES["board"]["environment"]}
    told = {name: value for name, value in environment.items() if name in TOKENS}
    assert set(told) == TOKENS
    assert all(value.startswith(f"${{{name}:") for name, value in told.items()), "a token in this file is no secret"
    assert ":?" in told["RUNTIME_BOARD_OPERATE_TOKEN"], "without it nothing starts, and compose says why"
    assert is_ignored("deploy/.env", (ROOT / ".gitignore").read_text().split())
    assert is_ignored("deploy/.env", (DEPLOY / "Dockerfile.dockerignore").read_text().split())
    config = load({}, environment, tmp_path)
    with pytest.raises(ConfigError, match="nobody would have to log in"):
        access.read(config, {})
    given = access.read(config, {"RUNTIME_BOARD_OPERATE_TOKEN": TOKEN, "RUNTIME_BOARD_VIEW_TOKEN": ""})
    assert (given.tokens, given.is_open) == ({"operate": TOKEN}, False)


def test_the_command_of_the_board_serves_pages_to_who_has_the_token(valkey: Server, tmp_path: Path) -> None:
    port = free_ports(1)
    told = {**built("board")[1].environment, **SERVICES["board"]["environment"]}
    here = {"REDIS_URL": valkey.url, "RUNTIME_BOARD": f"127.0.0.1:{port}", "PATH": os.environ["PATH"]}
    environment = {**told, **dict.fromkeys(TOKENS, ""), **here, "RUNTIME_BOARD_OPERATE_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *json.loads(built("board")[1].texts("ENTRYPOINT")[-1])[1:], *SERVICES["board"]["command"]]

    def answer(path: str, **headers: str) -> int:
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)) as got:
                return got.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log) as process:
        try:
            wait_until(lambda: answer("/healthz") == 200, what="the board is healthy")
            assert (answer("/"), answer("/api/overview")) == (200, 401)
            assert answer("/api/overview", Authorization=f"Bearer {TOKEN}") == 200
        finally:
            process.terminate()
    assert process.returncode == 0, (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", WORKERS)
def test_workers_have_the_time_that_they_need_to_stop(name: str, tmp_path: Path) -> None:
    config = load({}, SERVICES[name]["environment"], tmp_path)
    assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > config.grace_s + HARD_S


@every_built_one
def test_images_run_as_nobody_in_particular_and_get_their_signals(name: str) -> None:
    _, last = built(name)
    user = last.words("USER")[0]
    assert user == "node" or int(user.split(":")[0]) > 0
    assert last.words("STOPSIGNAL") == ["SIGTERM"]
    for instruction in ("CMD", "ENTRYPOINT"):
        for text in last.texts(instruction):
            assert isinstance(json.loads(text), list), "a shell would keep the signal to itself"
    assert SERVICES[name]["read_only"]
    assert SERVICES[name]["cap_drop"] == ["ALL"]


@every_built_one
def test_what_is_copied_into_an_image_exists_and_is_not_ignored(name: str) -> None:
    context, last = built(name)
    dockerfile = SERVICES[name]["build"].get("dockerfile", "Dockerfile")
    ignore = context / f"{dockerfile}.dockerignore"
    rules = (ignore if ignore.exists() else context / ".dockerignore").read_text().split()
    for stage in (last, *last.ancestors):
        for source in stage.sources():
            assert (context / source).exists(), source
            assert not is_ignored(source, rules), source


def is_ignored(path: str, rules: list[str]) -> bool:
    """Return whether the last rule that fits the path, or a folder above it, leaves it out."""
    ignored = False
    above = [path, *map(str, Path(path).parents)]
    for rule in rules:
        if any(fnmatch(each, rule.removeprefix("!")) for each in above if each != "."):
            ignored = not rule.startswith("!")
    return ignored


def test_what_producers_pin_is_what_was_tested_with_the_rest() -> None:
    def pins(path: Path) -> dict[str, str]:
        lines = [line.split("==") for line in path.read_text().splitlines() if line and not line.startswith("#")]
        return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}

    ours, theirs = pins(ROOT / "constraints.txt"), pins(DEPLOY / "producers" / "fastapi" / "requirements.txt")
    both = ours.keys() & theirs.keys()
    assert both
    assert [(name, ours[name]) for name in both] == [(name, theirs[name]) for name in both]


def test_producers_send_what_the_workers_know() -> None:
    type = confirm_order.contract.type
    assert f"@contract({json.dumps(type)}" in (DEPLOY / "producers" / "fastapi" / "app.py").read_text()
    assert f"send('{type}'" in (DEPLOY / "producers" / "node" / "index.js").read_text()
    assert built("worker-1")[1].environment["RUNTIME_HANDLERS"] == "orders"
    assert "deploy/demo/orders.py" in built("worker-1")[1].sources()
