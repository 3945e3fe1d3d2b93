"""The steps of the images, without Docker: what is copied and installed makes a worker and a web service whose traces Jaeger has.

Each step runs as the Dockerfile has it, with /opt/jobs, /src and /app in a folder of the test; what asks for root is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.__main__ import check
from deploy.demo.jaeger import ROOT, Jaeger
from tests.deploy.dockerfile import Stage, stages
from tests.deploy.test_compose import COMPOSE
from tests.servers import Server, free_ports, wait_until

STAGES = stages(ROOT / "deploy" / "Dockerfile")
NEEDS_ROOT = ("useradd",)


class Image:
    """What the stages of one image make, in a folder; owns that folder."""

    def __init__(self, folder: Path, stage: Stage, pip_cache: Path) -> None:
        self.folder, self.stage = folder, stage
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PIP_CACHE_DIR": str(pip_cache)}
        for made in (*reversed([*stage.copies_from, *(far for near in stage.copies_from for far in near.ancestors)]), stage):
            self._run(made)

    def place(self, text: str) -> str:
        """Return a text in which the image's folders are those of the test."""
        for name in ("/opt/jobs", "/src", "/app"):
            text = text.replace(name, f"{self.folder}{name}")
        return text

    def _run(self, stage: Stage) -> None:
        above = [*([stage.parent] if stage.parent else []), stage] if stage is self.stage else [stage]
        cwd = self.folder / "src"
        for instruction, text in (each for one in above for each in one.instructions):
            match instruction:
                case "WORKDIR":
                    cwd = Path(self.place(text))
                    cwd.mkdir(parents=True, exist_ok=True)
                case "ENV":
                    self.environment |= {
                        name: self.place(value).replace("$PATH", self.environment["PATH"])
                        for name, value in (word.split("=", 1) for word in shlex.split(text))
                        if name != "PIP_NO_CACHE_DIR"
                    }
                case "COPY" if not text.startswith("--from"):
                    *sources, target = shlex.split(text)
                    for source in sources:
                        copy(ROOT / source, cwd / target, is_into=target.endswith("/"))
                case "RUN" if not text.startswith(NEEDS_ROOT):
                    command = self.place(text).replace("python -m venv", f"{sys.executable} -m venv")
                    done = subprocess.run(["sh", "-c", command], cwd=cwd, env=self.environment, capture_output=True, text=True)
                    assert done.returncode == 0, done.stdout + done.stderr

    @contextlib.contextmanager
    def running(self, port: int, **environment: str) -> Generator[None]:
        """Run the image's command, on another port than the image has, until the block ends; it must end in good order."""
        inner = "8080" if self.stage.name == "worker" else "8000"
        words = [*map(json.loads, [*self.stage.texts("ENTRYPOINT")[-1:], *self.stage.texts("CMD")[-1:]])]
        command = [word.replace(inner, str(port)).replace("0.0.0.0", "127.0.0.1") for each in words for word in each]
        check_health = json.loads(self.stage.texts("HEALTHCHECK")[-1].partition("CMD ")[2])
        around = {**self.environment, **environment}
        app = self.folder / "app"
        with (self.folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=app, env=around, executable=shutil.which(command[0], path=around["PATH"]), stdout=log, stderr=log
            )
        try:
            health = [word.replace(inner, str(port)) for word in check_health]
            wait_until(lambda: not subprocess.run(health, env=around, capture_output=True).returncode, what="it is healthy")
            yield
        finally:
            process.terminate()
            status = process.wait(60)
        # uvicorn raises the signal once more when it has shut down in good order.
        assert status == (0 if self.stage.name == "worker" else -signal.SIGTERM), (self.folder / "log").read_text()


def copy(source: Path, target: Path, is_into: bool) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target / source.name if is_into else target)


def compose(service: str, server: Server, jaeger: Jaeger, **more: str) -> dict[str, str]:
    """Return the variables of compose.yaml, with the test's own servers."""
    told: dict[str, str] = COMPOSE["services"][service]["environment"]
    return {**told, "REDIS_URL": server.url, "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp, **more}


@pytest.mark.jaeger
def test_the_images_make_a_worker_and_a_web_service_whose_traces_jaeger_has(
    valkey: Server, jaeger: Jaeger, tmp_path: Path
) -> None:
    cache = Path.home() / ".cache" / "pip"
    worker, shop = (Image(tmp_path / name, STAGES[name], cache) for name in ("worker", "shop"))
    first, second = free_ports(2), free_ports(2) + 1
    with (
        worker.running(first, **compose("worker-1", valkey, jaeger, RUNTIME_BOARD=f"127.0.0.1:{first}")),
        shop.running(second, **compose("shop", valkey, jaeger)),
    ):
        order = json.dumps({"order": 7, "to": "ada@example.com", "failures": 2}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{second}/orders", order, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            job = json.load(answer)["job"]
        found: list[Any] = []

        def is_as_it_should_be() -> bool:
            found[:] = sorted(jaeger.find("backend-jobs", messaging_message_id=job), key=lambda trace: trace[0].start_ns)
            return check(found, 2) == []

        with contextlib.suppress(AssertionError):
            wait_until(is_as_it_should_be, 30)
        found = [jaeger.trace(trace[0].trace_id, warnings=True) for trace in found]
        assert check(found, 2) == []
    assert [(span.name, span.service) for span in found[0]][:3] == [
        ("POST /orders", "shop"),
        ("publish jobs", "shop"),
        ("process confirm-order", "backend-jobs"),
    ]
