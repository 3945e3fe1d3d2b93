"""`python -m runtime board`, and the board of a worker and of a supervisor: real processes, from first line to last."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.faults.harness import ROOT
from tests.servers import Server, wait_until

HANDLERS = ("--handlers", "tests.faults.jobs")
PAGE = (ROOT / "docs" / "board.md").read_text("utf-8")
COMMANDS = re.findall(r"^    (python -m runtime board .*)$", PAGE, re.MULTILINE)
FILES = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


class Process:
    """A process with a board, its log, and its address."""

    def __init__(self, arguments: list[str], folder: Path, **environment: str) -> None:
        self.log = folder / "log"
        command = [sys.executable, "-m", "runtime", *arguments, "--log", "plain"]
        given = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=folder, stderr=out, stdout=out, env=given)

    @property
    def url(self) -> str:
        return next(iter(re.findall(r"board at (http://[^, \n]*)", self.log.read_text())), "")

    def wait(self) -> None:
        wait_until(lambda: self.url or self.process.poll() is not None, what="the board listens")
        assert self.process.poll() is None, self.log.read_text()

    def get(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urlopen(Request(self.url + path, data, given), timeout=20) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def board(folder: Path, *arguments: str, **environment: str) -> Iterator[Process]:
    process = Process(list(arguments), folder, **environment)
    try:
        process.wait()
        yield process
    finally:
        if process.process.poll() is None:
            process.process.kill()
            process.process.wait()


def test_a_board_alone_is_served_and_ends_cleanly(valkey: Server, tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    with board(tmp_path, "board", "--redis", valkey.url, "--board", "127.0.0.1:0", *data) as process:
        assert process.get("/healthz") == (200, "alive\n")
        assert process.get("/readyz") == (200, "ready\n")
        status, text = process.get("/api/meta")
        assert (status, json.loads(text)["rights"]) == (200, ["view"])
        [link] = (tmp_path / "data").glob("board-*.link")
        assert link.stat().st_mode & 0o777 == 0o600
        address, _, token = link.read_text().strip().partition("/#token=")
        assert address == process.url
        headers = {"Content_Type": "application/json", "Origin": process.url}
        assert process.get("/api/login", {"token": token}, **headers)[0] == 200
        assert token not in process.log.read_text()
        assert process.stop() == 0
        assert not link.exists()
        assert "the board has stopped" in process.log.read_text()


def test_a_board_alone_outlives_redis(tmp_path: Path) -> None:
    server = Server("valkey")
    try:
        with board(tmp_path, "board", "--redis", server.url, "--board", "127.0.0.1:0", "--data-dir", str(tmp_path)) as process:
            server.kill()
            wait_until(lambda: process.get("/readyz")[0] == 503, what="not ready")
            assert process.get("/api/meta")[0] == 200
            assert process.get("/healthz")[0] == 200
            server.start()
            wait_until(lambda: process.get("/readyz")[0] == 200, what="ready again")
            assert process.stop() == 0
    finally:
        server.stop()


def test_a_board_finds_the_embedded_server_of_a_worker_and_keeps_it_when_that_dies(tmp_path: Path) -> None:
    data = ("--data-dir", str(tmp_path / "data"))
    (tmp_path / "worker").mkdir()
    (tmp_path / "board").mkdir()
    with board(tmp_path / "worker", "run", *HANDLERS, *data, "--board", "127.0.0.1:0") as worker:
        wait_until(lambda: worker.get("/readyz")[0] == 200, what="the worker is ready")
        assert json.loads(worker.get("/api/meta")[1])["rights"] == ["view"]
        with board(tmp_path / "board", "board", *data, "--board", "127.0.0.1:0") as alone:
            assert alone.get("/readyz")[0] == 200
            worker.process.kill()
            worker.process.wait()
            wait_until(lambda: alone.get("/readyz")[0] == 200, what="the server is up again")
            assert alone.stop() == 0


def test_the_supervisor_has_the_pages_and_its_children_have_none(valkey: Server, tmp_path: Path) -> None:
    arguments = ("--redis", valkey.url, *HANDLERS, "--processes", "2", "--board", "127.0.0.1:0", "--data-dir", str(tmp_path))
    with board(tmp_path, "run", *arguments) as process:
        assert process.get("/api/meta")[0] == 200
        wait_until(lambda: process.get("/readyz")[1].count(": ready") == 2, what="the children are ready")
        children = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children").read_text().split()
        ports = {port for pid in children for port in listening(pid)}
        assert len(ports) == 2
        for port in ports:
            for path, expected in (("/healthz", 200), ("/api/meta", 404), ("/events", 404)):
                try:
                    with urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
                        status = answer.status
                except HTTPError as error:
                    status = error.code
                assert status == expected, path
        assert len(list(tmp_path.glob("board-*.link"))) == 1
        assert process.stop() == 0


def listening(pid: str) -> list[int]:
    """Return the ports that a process listens on."""
    inodes = {os.readlink(f) for f in Path(f"/proc/{pid}/fd").iterdir() if f.is_symlink()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes]


@pytest.mark.parametrize("command", ["board", "run"])
def test_a_board_that_others_can_reach_does_not_start_without_a_login(command: str, valkey: Server, tmp_path: Path) -> None:
    arguments = [command, "--redis", valkey.url, "--board", "0.0.0.0:0", "--data-dir", str(tmp_path)]
    process = Process([*arguments, *(HANDLERS if command == "run" else ())], tmp_path)
    assert process.process.wait(60) == 2
    last = process.log.read_text().splitlines()[-1]
    assert "can be reached from elsewhere, and nobody would have to log in" in last
    assert "--board-pages off" in last


def test_what_it_needs_to_be_reached_from_elsewhere(valkey: Server, tmp_path: Path) -> None:
    common = ("--redis", valkey.url, "--board", "0.0.0.0:0", "--data-dir", str(tmp_path))
    token = {"RUNTIME_BOARD_VIEW_TOKEN": "0123456789abcdef"}
    process = Process(["board", *common], tmp_path, **token)
    assert process.process.wait(60) == 2
    assert "in clear" in process.log.read_text()
    with board(tmp_path, "board", *common, "--board-insecure", **token) as opened:
        port = opened.url.rpartition(":")[2]
        with urlopen(
            Request(f"http://127.0.0.1:{port}/api/meta", headers={"Authorization": "Bearer 0123456789abcdef"})
        ) as answer:
            assert json.loads(answer.read())["who"] == "view"
        assert "login link" not in opened.log.read_text()
        assert opened.stop() == 0
    with board(tmp_path, "run", *common, *HANDLERS, "--board-pages", "off") as probes:
        assert probes.get("/healthz")[0] == 200
        assert probes.get("/api/meta")[0] == 404
        assert probes.stop() == 0


def test_a_board_that_has_nothing_to_show_says_so(tmp_path: Path) -> None:
    for arguments, told in (
        (["--board", "off"], "nothing else to serve"),
        (["--data-dir", str(tmp_path / "none")], "no queue in"),
    ):
        process = Process(["board", *arguments], tmp_path)
        assert process.process.wait(60) == 2
        assert told in process.log.read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_serves_a_board(command: str, valkey: Server, tmp_path: Path) -> None:
    for name, text in zip(("board-tokens.toml", "board-proxy.toml"), FILES, strict=True):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    arguments = command.removeprefix("python -m runtime ").replace("redis://127.0.0.1:6379", valkey.url).split()
    given = {"REDIS_URL": valkey.url, "RUNTIME_BOARD": "127.0.0.1:0", "RUNTIME_DATA_DIR": str(tmp_path)}
    with board(tmp_path, *arguments, **given) as process:
        about = json.loads(process.get("/api/meta")[1])
        assert about["must_login"] == ("toml" in command)
        for token in re.findall(r'^(?:view|payload|operate) = "(\w+)"', FILES[0], re.MULTILINE) if "tokens" in command else ():
            assert process.get("/api/meta", Authorization=f"Bearer {token}")[0] == 200
        assert process.stop() == 0


def test_the_page_shows_commands_and_files() -> None:
    assert len(COMMANDS) == 3
    assert len(FILES) == 2
