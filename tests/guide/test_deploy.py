"""The page about deploying is true: its commands are commands, its times are longer than a stop takes, its probes are there."""

from __future__ import annotations

import re
import shlex
from configparser import ConfigParser
from typing import Any

import pytest
import yaml

from runtime import cli
from runtime.commands.run import HARD_S
from runtime.config import Config
from tests.faults.harness import ROOT

PAGE = (ROOT / "docs" / "deploy.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.DOTALL)
UNIT, SUPERVISOR = (text for kind, text in BLOCKS if kind == "ini")
[MANIFEST] = (text for kind, text in BLOCKS if kind == "yaml")
[PROCFILE] = (text for kind, text in BLOCKS if not kind)
STOP_S = Config().grace_s + HARD_S


def section(text: str, name: str) -> Any:
    parser = ConfigParser(inline_comment_prefixes=None, interpolation=None)
    parser.read_string(text)
    return parser[name]


def container() -> Any:
    return yaml.safe_load(MANIFEST)["spec"]["template"]["spec"]


COMMANDS = [
    section(UNIT, "Service")["ExecStart"].split(" -m runtime ")[1],
    section(SUPERVISOR, "program:jobs")["command"].split(" -m runtime ")[1],
    PROCFILE.split(" -m runtime ")[1],
    shlex.join(container()["containers"][0]["args"]),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_a_service_manager_starts_is_one(command: str):
    words = shlex.split(command)
    found = cli.parser(words[0]).parse_args(words)
    assert found.handlers == "shop_jobs"
    assert found.redis is None, "a URL may hold a password"


def test_whatever_ends_a_worker_waits_until_it_has_stopped():
    assert float(section(UNIT, "Service")["TimeoutStopSec"]) > STOP_S + 10
    assert float(section(SUPERVISOR, "program:jobs")["stopwaitsecs"]) > STOP_S + 10
    assert container()["terminationGracePeriodSeconds"] > STOP_S + 10
    assert f"choose `--grace {cli.parser('run').parse_args(shlex.split(COMMANDS[2])).grace_s}`" in PAGE


def test_a_supervisor_with_an_embedded_server_stops_it_last():
    assert section(UNIT, "Service")["KillMode"] == "mixed"


def test_the_probes_ask_for_what_the_board_answers():
    worker = container()["containers"][0]
    served = "".join((ROOT / "board" / name).read_text("utf-8") for name in ("site.py", "web.py", "app.py"))
    for probe in (worker["livenessProbe"], worker["readinessProbe"]):
        assert probe["httpGet"]["port"] == worker["ports"][0]["name"]
        assert f'"{probe["httpGet"]["path"]}"' in served
    assert worker["args"][worker["args"].index("--board") + 1].endswith(f":{worker['ports'][0]['containerPort']}")
