"""Compiles the C client `raw.c` when it is first needed, and runs it for the raw figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from bench.lab import PAYLOAD, STREAM, BenchError, Server

SOURCE: Final = Path(__file__).with_suffix(".c")
PROGRAM: Final = Path(__file__).with_suffix("")
BATCH: Final = 500  # what a busy worker with 500 lanes fetches at least
DEPTH: Final = 500  # commands per round trip, as a producer's, `runtime.sender.CHUNK_MESSAGES`


def missing() -> str:
    """Compile the C client if it is missing or older than its source; return why that is not possible, or nothing."""
    if PROGRAM.exists() and PROGRAM.stat().st_mtime > SOURCE.stat().st_mtime:
        return ""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        return "no C compiler (apt-get install gcc libhiredis-dev)"
    made = PROGRAM.with_name(f"raw.{os.getpid()}")
    command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(made), str(SOURCE), "-lhiredis"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        made.unlink(missing_ok=True)
        lines = result.stderr.splitlines() or ["no reason given"]
        error = next((line for line in lines if "error" in line), lines[0])
        return f"raw.c does not compile (apt-get install libhiredis-dev?): {error}"
    made.replace(PROGRAM)
    return ""


def drain(server: Server, jobs: int) -> dict[str, float]:
    """Drain the filled stream with the C client; return its rate, and the CPU per job of both sides."""
    return _run(server, jobs, "drain", STREAM, str(BATCH))


def add(server: Server, jobs: int) -> dict[str, float]:
    """Fill the stream with the C client; return the same figures."""
    return _run(server, jobs, "add", STREAM, str(jobs), str(DEPTH), PAYLOAD.decode())


def _run(server: Server, jobs: int, verb: str, *words: str) -> dict[str, float]:
    before_s = server.cpu_s()
    command = [str(PROGRAM), verb, "127.0.0.1", str(server.port), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(result.stderr.strip())
    printed = json.loads(result.stdout)
    if printed["jobs"] != jobs:
        raise BenchError(f"the C client moved {printed['jobs']} of {jobs} jobs")
    return {
        "raw_per_s": jobs / printed["seconds"],
        "raw_client_us": printed["cpu_s"] / jobs * 1e6,
        "raw_server_us": (server.cpu_s() - before_s) / jobs * 1e6,
    }


if __name__ == "__main__":
    print(missing() or f"compiled {PROGRAM}")
