"""A real PostgreSQL for tests: a cluster of its own in a temporary folder, on a private unix socket, without TCP."""

from __future__ import annotations

import csv
import io
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.servers import wait_until

HOW_TO_GET = "no PostgreSQL: make postgres, or RUNTIME_POSTGRES_BIN=folder of initdb, postgres, psql, pg_dump"
TOOLS = ("initdb", "postgres", "psql", "pg_dump", "pg_restore")
LOCKED = "locked"  # a role that may log in with its password alone, which is `secret`; all others are trusted
PSQL = ("--csv", "-P", "null=NULL", "-v", "ON_ERROR_STOP=1")
OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "autovacuum": "off",
    "jit": "off",
    "log_statement": "all",  # so that tests can look for values in it
    "log_parameter_max_length": "0",
}


def tools() -> Path | None:
    """Return the folder of the newest server with its tools; `RUNTIME_POSTGRES_BIN` chooses one."""
    chosen = os.environ.get("RUNTIME_POSTGRES_BIN")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    folders = [Path(chosen)] if chosen else [*debian, *([Path(on_path).resolve().parent] if on_path else [])]
    return next((folder for folder in folders if all(os.access(folder / tool, os.X_OK) for tool in TOOLS)), None)


class Postgres:
    """A server process with its cluster. As root, it runs as `postgres` or `nobody`: it refuses to be root's."""

    def __init__(self) -> None:
        folder = tools()
        assert folder, HOW_TO_GET
        self.bin = folder
        self.folder = Path(tempfile.mkdtemp(prefix="bjpg-"))
        self._data = self.folder / "data"
        self._user = _user()
        self._count = 0
        if self._user:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        try:
            made = self._start("initdb", "-ND", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale")
            assert made.wait() == 0, self.log()
            (self._data / "pg_hba.conf").write_text(f"local all {LOCKED} scram-sha-256\nlocal all all trust\n")
            options = [part for name, value in OPTIONS.items() for part in ("-c", f"{name}={value}")]
            self.process = self._start("postgres", "-D", str(self._data), "-k", str(self.folder), *options)
            wait_until(self._answers, what="PostgreSQL answers")
            self.sql("postgres", f"CREATE ROLE {LOCKED} LOGIN PASSWORD 'secret'")
        except BaseException:
            self.stop()
            raise

    def _start(self, tool: str, *arguments: str) -> subprocess.Popen[bytes]:
        user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []} if self._user else {}
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self.bin / tool, *arguments], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user
            )

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        return self._psql("postgres", "SELECT 1").returncode == 0

    def copy(self, database: str, table: str, content: str) -> None:
        """Fill a table from CSV with a first line, as the server reads it; `\\N` is a missing value."""
        made = self._psql(database, content, "-c", f"COPY {table} FROM STDIN (FORMAT csv, HEADER, NULL '\\N')")
        assert made.returncode == 0, made.stderr

    def _psql(self, database: str, text: str, *more: str) -> subprocess.CompletedProcess[str]:
        command = [self.bin / "psql", "-XqtwU", "postgres", "-h", self.folder, "-d", database, *PSQL, *more]
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    def sql(self, database: str, text: str) -> list[list[str]]:
        """Run statements as the superuser and return the rows, as texts; a missing value is `NULL`."""
        done = self._psql(database, text)
        assert done.returncode == 0, done.stderr
        return list(csv.reader(io.StringIO(done.stdout, newline="")))

    def log(self) -> str:
        """Return the server's log: each statement, without its parameters."""
        return (self.folder / "log").read_text(errors="replace")

    def create(self) -> PgDatabase:
        """Return a new, empty database."""
        self._count += 1
        name = f"test_{self._count}"
        self.sql("postgres", f"CREATE DATABASE {name} TEMPLATE template0")
        return PgDatabase(self, name)

    def drop(self, database: PgDatabase) -> None:
        """Remove a database, whoever is connected to it."""
        self.sql("postgres", f"DROP DATABASE IF EXISTS {database.name} WITH (FORCE)")

    def stop(self) -> None:
        process = getattr(self, "process", None)
        if process and process.poll() is None:
            process.send_signal(signal.SIGQUIT)  # at once; its children end with it
            try:
                process.wait(30)
            finally:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


class PgDatabase:
    """A database of one test."""

    def __init__(self, server: Postgres, name: str) -> None:
        self.server = server
        self.name = name

    @property
    def url(self) -> str:
        """Its URL for the settings, which need `tls = 'off'` with it."""
        return self.url_of("postgres")

    def url_of(self, user: str) -> str:
        """Return its URL for another role."""
        return f"postgresql://{user}@/{self.name}?host={self.server.folder}"

    def sql(self, text: str) -> list[list[str]]:
        """Run statements as the superuser and return the rows, as texts; a missing value is `NULL`."""
        return self.server.sql(self.name, text)


def _user() -> pwd.struct_passwd | None:
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise AssertionError("no user that PostgreSQL could run as")
