"""The pages are true: what they show runs, and nothing that exists is missing from them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import handlers
from otel.metrics import families
from runtime.codec import SENT_FIELDS
from runtime.config import SETTINGS
from runtime.jobs import Options
from runtime.store.inspector import Inspector
from tests.faults.harness import ROOT, leftovers
from tests.servers import Server, free_ports, wait_until

PYTHON = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.DOTALL)
SHELL = re.compile(r"```sh\n(.*?)```", re.DOTALL)
README = (ROOT / "README.md").read_text()
ADDRESS = "redis://127.0.0.1:6379"


@pytest.fixture
def tcp_server() -> Generator[Server]:
    """A server on a TCP port, as the pages have it (with another number)."""
    server = Server("valkey", "--bind", "127.0.0.1", "--port", str(free_ports()))
    yield server
    server.stop()


def url(server: Server) -> str:
    client: Any = server.client()  # redis-py leaves keyword arguments without a type
    return f"redis://127.0.0.1:{client.config_get('port')['port']}"


def shell(command: str, server: Server, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of a page, on the test's server and with the test's Python."""
    port = url(server).rsplit(":", 1)[1]
    line = command.replace(ADDRESS, url(server)).replace("python -m", f"{sys.executable} -m")
    line = line.replace("redis-cli XADD", f"redis-cli -p {port} XADD")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{cwd}", "REDIS_URL": url(server)}
    return subprocess.run(["bash", "-ec", line], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_the_first_job_of_the_readme_runs_as_shown(tcp_server: Server, tmp_path: Path):
    for name, code in PYTHON.findall(README):
        (tmp_path / name).write_text(code.replace(ADDRESS, url(tcp_server)).replace(", delay_s=60", ""))
    run, xadd = SHELL.findall(README)
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONUNBUFFERED": "1"}
    command = [*run.strip().replace(ADDRESS, url(tcp_server)).split(" ")[1:], "--board", "off"]
    with log.open("ab") as out:
        worker = subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment, stdout=out, stderr=out)
    try:
        wait_until(lambda: "500 lanes" in log.read_text(), what="the worker starts")
        if shutil.which("redis-cli"):
            assert shell(xadd, tcp_server, tmp_path).returncode == 0
            wait_until(lambda: "receipt for order 7 to ada@example.com, attempt 1" in log.read_text(), what="it runs")
        shop = [sys.executable, "shop.py"]
        sent = subprocess.run(shop, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert re.fullmatch(r"high-\d+-\d+\n", sent.stdout), sent
        wait_until(lambda: log.read_text().count("receipt for order 7") >= 1, what="the typed one runs")
        wait_until(lambda: not leftovers(tcp_server.client()), what="all are settled")
    finally:
        worker.terminate()
        assert worker.wait(60) == 0


PAGES = {page.name: SHELL.findall(page.read_text()) for page in sorted((ROOT / "docs").glob("*.md"))}


def test_the_pages_show_commands():
    assert sum(block.count("\n") for blocks in PAGES.values() for block in blocks) >= 8


def orders(raw: Any, place: object) -> None:
    """Let the jobs wait that pages name: two by their ids, one for its time, and one by its place."""
    raw.xadd("{jobs}:medium", {"type": "order", "data": "{}", "id": "order-7"})
    raw.xadd("{jobs}:high", {"type": "order", "data": "{}"}, id=place)
    record = msgspec.msgpack.encode(["stream", "medium", "type", "order", "data", "{}", "id", "order-8", "first_at", "5"])
    raw.hset("{jobs}:msg", "order-8", record)
    raw.zadd("{jobs}:due", {"order-8": 10**13})


@pytest.mark.parametrize("page", [name for name, blocks in PAGES.items() if blocks])
def test_every_command_of_a_page_runs(page: str, tcp_server: Server, tmp_path: Path):
    raw = tcp_server.client()
    letter = raw.xadd("{jobs}:dead", {"type": "send-email", "data": "{}", "dead_reason": "attempts", "dead_from": "high/1-1"})
    orders(raw, letter)
    (tmp_path / "mails.jsonl").write_text('{"to":"ada@example.com","subject":"Hi","text":"Hello"}\n')
    for name, code in PYTHON.findall((ROOT / "docs" / page).read_text()):
        (tmp_path / name).write_text(code)
    commands = [line for block in PAGES[page] for line in block.strip().splitlines()]
    if not shutil.which("redis-cli"):
        commands = [command for command in commands if not command.startswith("redis-cli")]
    for command in commands:
        result = shell(command.replace("1732400000000-0", letter), tcp_server, tmp_path)
        assert result.returncode == 0, (command, result)
    stored = sum(raw.xlen(f"{{jobs}}:{name}") for name in ("critical", "high", "medium", "low")) + raw.zcard("{jobs}:due")
    assert stored >= sum("enqueue" in command or "XADD" in command for command in commands), "what was sent is there"
    if any("dead replay" in command for command in commands):
        assert not raw.xrange("{jobs}:dead", letter, letter), "the letter was replayed"


def test_every_setting_is_on_the_page_for_operators():
    page = (ROOT / "docs" / "operate.md").read_text()
    for setting in SETTINGS:
        assert f"`{setting.flag}`" in page, setting.flag
        assert f"`{setting.variable}`" in page, setting.variable


def test_every_field_of_a_message_is_on_the_page_for_producers():
    page = (ROOT / "docs" / "produce.md").read_text()
    for field in SENT_FIELDS:
        assert f"`{field.decode()}`" in page, field
    for option in Options.__struct_fields__:
        assert f"\n| `{option}` |" in page, option


def test_every_exit_status_and_command_is_on_the_page_for_operators():
    from runtime import cli, leaving

    page = (ROOT / "docs" / "operate.md").read_text()
    for status in (leaving.CLEAN, leaving.FAILED, leaving.BAD_USAGE, leaving.NO_REDIS, leaving.HARD_DEADLINE):
        assert f"| {status} |" in page, status
    for command in set(cli.COMMANDS) - {"run", "enqueue"}:
        assert re.search(rf"`{command}[ `]|runtime {command}\b", page), command


def test_the_page_of_metrics_has_those_that_there_are_and_no_others():
    rows = [row for row in (ROOT / "docs" / "metrics.md").read_text().splitlines() if re.match(r"\| `(runtime|process)_", row)]
    assert rows == [
        f"| `{one.name}` | {one.kind} | {', '.join(f'`{label}`' for label in one.labels)} | {one.unit} | {one.help} |"
        for one in families()
    ]


def test_every_public_name_of_the_door_for_people_is_used():
    """A verb that no command and no board uses is dead weight."""
    texts = "".join(path.read_text() for folder in ("runtime", "board") for path in (ROOT / folder).rglob("*.py"))
    for name in vars(Inspector):
        if not name.startswith("_"):
            assert texts.count(f".{name}(") >= 1, name


def test_the_pages_link_to_pages_that_exist():
    for page in [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
        for picture in re.findall(r'src(?:set)?="(?!http)([^"]+)"', page.read_text()):
            assert (page.parent / picture).exists(), (page.name, picture)


def test_the_tests_that_the_promises_name_exist():
    for page in (ROOT / "docs" / "semantics.md", ROOT / "ARCHITECTURE.md"):
        for name in re.findall(r"tests/[a-z_/]+\.py", page.read_text()):
            assert (ROOT / name).exists(), name


def test_every_package_that_an_error_says_to_install_is_one_that_an_index_has():
    """Ours is on none: so what is missing goes by its own name, and is a dependency of ours."""
    ours = (ROOT / "pyproject.toml").read_text()
    hints = [
        (path.name, hint)
        for folder in ("runtime", "board", "otel", "handlers", "bench")
        for path in (ROOT / folder).rglob("*.py")
        for hint in re.findall(r"""pip install ([^"{,;]+)""", path.read_text())
    ]
    assert len(hints) >= 5
    for name, hint in [*hints, *(("handlers", extra) for extra in handlers.EXTRAS.values())]:
        for package in hint.split():
            assert re.search(rf'^ +"{package}(\\[\w+\\])?>=', ours, re.MULTILINE) or f'"{package}>=' in ours, (name, hint)
