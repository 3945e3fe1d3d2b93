"""Real folders and a real SQLite file for the tests of jobs that read and write them, and children to be killed."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from handlers.contracts.data import ExportCsv
from handlers.contracts.maintenance import CleanupLogs
from handlers.contracts.sources import Table
from handlers.kit.settings import VARIABLE
from runtime.jobs import Job, contract_of
from tests import builders

ROOT = Path(__file__).parents[2]
BORN_MS = 1_700_000_000_123
FETCHED_MS = 2**53  # after whatever time a test writes into an id
ENDLESS = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n)"


@dataclass
class Disk:
    """The folder of a test: `out` may be written, `logs` purged, `db` read; `shop` is a database in it."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    @property
    def database(self) -> Path:
        return self.folder / "db" / "shop.db"

    def settings(self, **more: str) -> str:
        """Return the text of the settings; `more` adds to what is said of `out`, `logs` and `shop`."""
        return (
            f"roots.out = {{ path = '{self.out}', mode = 'write', overwrite = true{more.get('out', '')} }}\n"
            f"roots.logs = {{ path = '{self.logs}', mode = 'purge', force = true{more.get('logs', '')} }}\n"
            f"roots.db = {{ path = '{self.folder / 'db'}' }}\n"
            f"databases.shop = {{ sqlite = 'db:shop.db', queries = '{self.folder / 'db'}', "
            f"tables = ['*']{more.get('shop', '')} }}\n"
        )

    def sql(self, *statements: str, rows: list[tuple[Any, ...]] | None = None) -> None:
        """Run statements on the database; the last one for each row, if there are rows."""
        with closing(sqlite3.connect(self.database)) as connection:
            for statement in statements[: len(statements) - (rows is not None)]:
                connection.execute(statement)
            if rows is not None:
                connection.executemany(statements[-1], rows)
            connection.commit()

    def table(self, columns: str, rows: list[tuple[Any, ...]], name: str = "t") -> None:
        """Make a table of these rows."""
        marks = ", ".join("?" * len(columns.split(",")))
        self.sql(f"CREATE TABLE {name} ({columns})", f"INSERT INTO {name} VALUES ({marks})", rows=rows)

    def query(self, text: str, name: str = "q") -> None:
        """Write a query of the operator's."""
        (self.folder / "db" / f"{name}.sql").write_text(text, "utf-8")

    def old(self, name: str, content: bytes = b"line\n" * 100, days: float = 30) -> Path:
        """Write a log that was last written so many days before the job was born."""
        path = self.logs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        then_ns = (BORN_MS - int(days * 86_400_000)) * 1_000_000
        os.utime(path, ns=(then_ns, then_ns))
        return path

    def names(self, folder: Path) -> list[str]:
        """Return all names below a folder, hidden ones too."""
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, size and time of each file of a folder; reading changes none of them."""
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def job_of(message: msgspec.Struct, number: int = 0) -> Job:
    """Return a job as the worker would; another number is another job."""
    return builders.job_of(message, f"{BORN_MS}-{number}", fetched_ms=FETCHED_MS)


def export(*columns: str, to: str = "out:t.csv", table: str = "t", **fields: Any) -> ExportCsv:
    """Return an export of columns of the table `t`."""
    return ExportCsv(**{"source": Table(db="shop", table=table, columns=list(columns)), "to": to, **fields})


def cleanup(**fields: Any) -> CleanupLogs:
    """Return a cleanup of `logs`: everything older than a week, without brake."""
    return CleanupLogs(**{"root": "logs", "include": ["*"], "older_than": "7d", "force": True, **fields})


def child(disk: Disk, message: msgspec.Struct, **options: Any) -> subprocess.Popen[str]:
    """Start a process that runs the job once, and says what came of it."""
    command = [sys.executable, "-m", "tests.handlers.in_child"]
    options = {"type": contract_of(type(message)).type, "payload": msgspec.to_builtins(message), **options}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: str(disk.folder / "handlers.toml")}
    return subprocess.Popen([*command, json.dumps(options)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> str:
    """Return what the child says once it has ended."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return said.strip()


SWAP = """
import os, signal, sys
folder, aside, outside = sys.argv[1:]
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(True))
print("ready", flush=True)
while not told:
    os.rename(folder, aside)
    os.symlink(outside, folder)
    os.unlink(folder)
    os.rename(aside, folder)
"""


@contextmanager
def swapping(folder: Path, aside: Path, outside: Path) -> Iterator[None]:
    """Have another process put a link to `outside` in the folder's place, and the folder back, without end."""
    command = [sys.executable, "-ISc", SWAP, str(folder), str(aside), str(outside)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=120)
    assert process.returncode == 0


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, reaped or not."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def until(is_true: Callable[[], bool]) -> None:
    """Poll until it holds."""
    end_s = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < end_s
        time.sleep(0.002)
