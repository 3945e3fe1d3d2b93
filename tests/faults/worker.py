"""One worker process, made to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.servers import Server, wait_until

ROOT = Path(__file__).parents[2]
LEASE_S = 1.5


class Worker:
    """One worker process on a server, or at an address: that of a proxy before it, or of a store that is not the test's own."""

    def __init__(
        self,
        server: Server | None,
        history: Path,
        *options: str,
        concurrency: int = 100,
        lease_s: float = LEASE_S,
        url: str = "",
        handlers: str = "tests.faults.jobs",
        root: Path = ROOT,  # of the tree whose runtime it is
        more: Mapping[str, str] = {},  # in its environment
    ) -> None:
        url = url or (server.url if server else "")
        command = [sys.executable, "-m", "runtime", "--redis", url, "--handlers", handlers]
        command += ["--board", "off", "--lease", str(lease_s), "--concurrency", str(concurrency), "--log", "plain", *options]
        self.log_path = Path(tempfile.mkstemp(prefix="worker-", suffix=".log", dir=history)[1])
        environment = {
            **os.environ,
            "FAULTS_HISTORY": str(history),
            "RUNTIME_CHILD_ENV": "FAULTS_*",
            "PYTHONPATH": str(root),
            **more,
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def is_ready(self) -> bool:
        return " lanes, " in self.log

    def wait_ready(self) -> None:
        wait_until(lambda: self.is_ready, what=f"the worker starts ({self.log})")

    def send(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()

    def stop(self, deadline_s: float = 40.0) -> int:
        self.send(signal.SIGTERM)
        return self.process.wait(deadline_s)
