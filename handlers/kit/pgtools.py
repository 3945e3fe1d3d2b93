"""PostgreSQL's own programs, `pg_dump` and `pg_restore`, run as children that end with their job, whatever becomes of it.

No shell, and nothing secret in their arguments or their environment: the password is in a file without a name, mode 0600, which
they inherit.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Final, Literal, Self, cast

from handlers.kit.failures import TemporaryFailure, wait_for_operator
from handlers.kit.files import CHUNK_BYTES
from handlers.kit.sections import Database
from handlers.kit.threads import Stop
from runtime import ConfigError, Dead

STOP_EVERY_S: Final = 0.1  # how often a wait for a tool looks at the stop
CONNECT_S: Final = 10  # as for our own connections
VERSION_S: Final = 10.0  # a guess: to print a line
MAX_SAID_BYTES: Final = 4096  # of what a tool says, the end
_CA_FILES: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
_VERSION: Final = re.compile(r"\(PostgreSQL\) ((\d+)[0-9a-z.]*)")
_VALUES: Final = re.compile(r"\"[^\"]*\"|'[^']*'|=\([^)]*\)")  # what may be of a row, or a name

# It becomes the tool, after it has asked the kernel to end it with the thread that started it; such threads end with the process.
_BECOME: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

Fault = Literal["auth", "denied", "full", "lost", "other"]

# What a tool says, and what it means: texts of libpq and the server in English, which LC_ALL=C makes them speak.
_FAULTS: Final[dict[Fault, tuple[str, ...]]] = {
    "auth": ("authentication failed", "no password supplied", "no pg_hba.conf entry", "certificate"),
    "denied": ("permission denied", "must be superuser", "must be owner", "row-level security", "extension control file"),
    "full": ("No space left on device", "could not extend file"),
    "lost": (
        "connection to server",
        "server closed the connection",
        "terminating connection",
        "invalid snapshot",
        "lock timeout",
    ),
}


class ToolFailed(Exception):
    """A tool ended with a status other than 0; the text is its first error, without what it quotes."""

    def __init__(self, text: str, fault: Fault) -> None:
        super().__init__(text)
        self.fault: Fault = fault

    def outcome(self, subject: str) -> Exception:
        """Return what to raise where the fault is not in what the tool works on."""
        match self.fault:
            case "auth":
                return wait_for_operator(subject, "auth-failed", str(self))
            case "denied":
                return wait_for_operator(subject, "alias-missing", str(self))
            case "full":
                return wait_for_operator(subject, "out-of-space", str(self))
            case "lost":
                return TemporaryFailure(f"connection-lost: {subject}: {self}")
            case "other":
                return TemporaryFailure(f"{subject}: {self}")


def find_tool(name: str, folder: str, server: int) -> tuple[str, str]:
    """Return path and version of a tool that can read a server of this major version, in this folder or on PATH.

    Raises:
        Dead: there is none, or it is older than the server; `tool-missing`.
    """
    path = shutil.which(name, path=folder or None)
    way_out = f"hint: apt-get install postgresql-client-{server}, or tools = '/usr/lib/postgresql/{server}/bin' of the backup"
    if path is None:
        raise Dead(f"{name} is not {f'in {folder}' if folder else 'on PATH'}; {way_out}", "tool-missing")
    try:
        done = subprocess.run([path, "--version"], capture_output=True, timeout=VERSION_S, check=False, env=_environment())
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Dead(f"{path} cannot be run: {type(error).__name__}; {way_out}", "tool-missing") from error
    found = _VERSION.search(done.stdout.decode("utf-8", "replace"))
    if found is None or int(found[2]) < server:
        raise Dead(f"{path} is of version {found[1] if found else 'unknown'}, the server of {server}; {way_out}", "tool-missing")
    return path, found[1]


def address_of(database: Database) -> str:
    """Return the connection string of a database, without a password."""
    place = database.endpoint
    parts = {"host": place.host, "port": str(place.port), "user": place.user, "dbname": place.name}
    parts |= {"connect_timeout": str(CONNECT_S), "application_name": "backend-jobs"}
    match database.tls:
        case "off":
            parts["sslmode"] = "disable"
        case "require":
            parts["sslmode"] = "require"
        case "verify":
            parts["sslmode"] = "verify-full"
            parts["sslrootcert"] = database.ca_file or next(filter(os.path.exists, _CA_FILES), "")
    return " ".join(f"{name}={_quoted(value)}" for name, value in parts.items() if value)


class Tool:
    """A running tool: owns its process group, which ends with the block, and its pipes.

    Args:
        password: of the database's user.
        feeds: the file for what it writes, where it reads what `write` is given; without one, it is read from.
    """

    def __init__(self, command: Sequence[str], password: str | None, stop: Stop, *, feeds: IO[bytes] | None = None) -> None:
        self._stop = stop
        self._name = os.path.basename(command[0])
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the block
        with tempfile.TemporaryFile() as secret:
            secret.write(f"*:*:*:*:{_escaped(password or '', ':')}\n".encode())
            secret.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-ISc", _BECOME, str(os.getpid()), *command],
                stdin=subprocess.PIPE if feeds else subprocess.DEVNULL,
                stdout=feeds or subprocess.PIPE,
                stderr=self._said,
                cwd="/",
                env={**_environment(), "PGPASSFILE": f"/dev/fd/{secret.fileno()}"},
                pass_fds=[secret.fileno()],
                process_group=0,
            )
        self._poll = select.poll()
        self._pipe = cast("IO[bytes]", self._process.stdin if feeds else self._process.stdout)
        os.set_blocking(self._pipe.fileno(), False)
        self._poll.register(self._pipe.fileno(), select.POLLOUT if feeds else select.POLLIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._said.close()

    @property
    def pid(self) -> int:
        """The process, and its group."""
        return self._process.pid

    def output(self) -> Iterator[bytes]:
        """Yield what the tool writes, to its end.

        Raises:
            Stopped: the job was cancelled.
        """
        while True:
            self._wait_for_pipe()
            chunk = os.read(self._pipe.fileno(), CHUNK_BYTES)
            if not chunk:
                return
            yield chunk

    def write(self, data: bytes) -> bool:
        """Have the tool read this, and return whether it still reads.

        Raises:
            Stopped: the job was cancelled.
        """
        rest = memoryview(data)
        try:
            while rest:
                self._wait_for_pipe()
                with contextlib.suppress(BlockingIOError):
                    rest = rest[os.write(self._pipe.fileno(), rest) :]
        except BrokenPipeError:
            return False
        return True

    def finish(self) -> None:
        """Return when the tool has ended well.

        Raises:
            Stopped: the job was cancelled.
            ToolFailed: it has not.
        """
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        while self._process.poll() is None:
            self._stop.check()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_EVERY_S)
        if self._process.returncode != 0:
            raise self._failure()

    def _wait_for_pipe(self) -> None:
        self._stop.check()
        while not self._poll.poll(STOP_EVERY_S * 1000):
            self._stop.check()

    def _failure(self) -> ToolFailed:
        size_bytes = self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, size_bytes - MAX_SAID_BYTES))
        said = self._said.read().decode("utf-8", "replace")
        line = next((line for line in said.splitlines() if "error:" in line), f"ended with status {self._process.returncode}")
        text = _VALUES.sub("…", line).removeprefix(f"{self._name}: ").removeprefix("error: ")
        found: list[Fault] = [fault for fault, texts in _FAULTS.items() if any(each in line for each in texts)]
        return ToolFailed(f"{self._name}: {text}", "lost" if self._process.returncode < 0 else (*found, "other")[0])


def password_of(subject: str, database: Database) -> str | None:
    """Return the current password.

    Raises:
        Snooze: it cannot be read; `auth-failed`.
    """
    try:
        return database.read_password()
    except ConfigError as error:
        raise wait_for_operator(subject, "auth-failed", f"password: {error}") from error


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


def _quoted(text: str) -> str:
    return "'" + _escaped(text, "'") + "'"


def _escaped(text: str, mark: str) -> str:
    return text.replace("\\", "\\\\").replace(mark, f"\\{mark}")
