"""All sixteen types are at work, and each is on the page: a row of its table, a section, and payloads that its contract takes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from handlers.kit.controls import CHECKS
from runtime import Priority
from runtime.registry import find
from tests.builders import job

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "shipped-handlers.md").read_text("utf-8")
TYPES = (
    *("send-email", "send-bulk-email", "send-notification", "export-csv", "export-pdf", "import-data", "sync-crm-data"),
    *("train-model", "run-inference", "evaluate-model", "cleanup-logs", "backup-database", "generate-reports"),
    *("scan-vulnerabilities", "analyze-threats", "generate-compliance-report"),
)
UNITS = {"s": 1, "min": 60, "h": 3600}


def test_these_sixteen_types_are_listed() -> None:
    command = [sys.executable, "-m", "runtime", "types", "--handlers", "handlers"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = {line.split()[0] for line in done.stdout.splitlines() if line.strip()} & {*TYPES}
    assert len(TYPES) == 16
    assert listed == set(TYPES)
    assert {name.decode() for name in find(["handlers"]).registry} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_each_type_has_its_row_with_what_is_declared(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", PAGE, re.MULTILINE)
    priority, timeout, attempts, _, _ = (cell.strip() for cell in row.split("|"))
    declared = find(["handlers"]).registry[name.encode()]
    tries, base, cap = attempts.split(", ")
    assert Priority[priority.upper()] is declared.contract.priority
    assert seconds(timeout) == declared.timeout_s
    assert (int(tries), seconds(base), seconds(cap)) == (declared.retry.attempts, declared.retry.base_s, declared.retry.cap_s)


def seconds(text: str) -> float:
    number, unit = text.split()
    return float(number) * UNITS[unit]


@pytest.mark.parametrize("name", TYPES)
def test_each_type_has_its_section_with_payloads_that_can_be_sent(name: str) -> None:
    assert PAGE.count(f"\n## {name}\n") == 1
    payloads = re.findall(rf"^python -m runtime enqueue {name} '(.*)'", PAGE, re.MULTILINE)
    assert payloads
    handler = find(["handlers"]).registry[name.encode()]
    for payload in payloads:
        handler.decode(job(name, data=msgspec.json.encode(msgspec.json.decode(payload))))


def test_each_check_of_compliance_is_on_the_page() -> None:
    told = re.findall(r"^\| `([a-z-]+)` \| .* \|$", PAGE.partition("| check | is met where |")[2], re.MULTILINE)
    assert told == list(CHECKS)
