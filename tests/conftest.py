"""Servers for all tests: one of each kind per session, empty for each test."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.servers import HOW_TO_GET, KINDS, Server, binary_of

# How long an example takes says nothing on a busy machine, and where examples share a fixture they are to.
settings.register_profile(
    "shared", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("shared")


@pytest.fixture(scope="session")
def _servers() -> Iterator[dict[str, Server]]:
    running: dict[str, Server] = {}
    yield running
    for server in running.values():
        server.stop()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, _servers: dict[str, Server]) -> Server:
    """An empty server of each kind in turn."""
    return empty_server(request.param, _servers)


@pytest.fixture
def valkey(_servers: dict[str, Server]) -> Server:
    """An empty Valkey, as the embedded one."""
    return empty_server("valkey", _servers)


@pytest.fixture
def raw(server: Server) -> Iterator[redis.Redis]:
    """A plain client to look behind the store."""
    client = server.client()
    yield client
    client.close()


def empty_server(kind: str, servers: dict[str, Server]) -> Server:
    """Return this session's server of a kind, with nothing in it."""
    if kind not in servers:
        if not binary_of(kind):
            pytest.skip(HOW_TO_GET[kind])
        servers[kind] = Server(kind)
    client = servers[kind].client()
    client.config_set("maxmemory", 0)
    client.flushall()
    client.script_flush()
    client.close()
    return servers[kind]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A key and a certificate for `localhost` that nobody trusts by itself."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with: apt-get install openssl")
    folder = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        [
            *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
            *("-keyout", "-", "-out", "-", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        capture_output=True,
        check=True,
    )
    path = folder / "localhost.pem"
    path.write_bytes(made.stdout)
    return str(path)


# --- many at a time --------------------------------------------------------------------------------------------------------

WAITS = (
    "browser",
    "faults",
    "commands",
    "guide",
    "board",
    "contract",
)  # folders whose tests wait for processes or servers, the longest first


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return how many tests run at a time with `-n auto`: measured on two cores, where eight took longer than six."""
    return 3 * len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 4


class Together(LoadScopeScheduling):
    """Gives tests out one by one, but all of some folders to one process.

    Browsers: measured, a test took 257 s beside five, 28 s alone. Architecture: each process would read the whole tree.
    """

    def _split_scope(self, nodeid: str) -> str:
        folder = nodeid.removeprefix("tests/").partition("/")[0]
        return folder if folder in {"browser", "architecture"} else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Return what gives tests to processes: xdist_group is to do the same, but this pytest does not heed the names it makes."""
    return Together(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes long where many run at a time: else the last ones run alone.

    All processes must find the same names: one with an address in it is refused here, where it is told which.
    """
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"its name is another one in each process, give it `ids`: {item.nodeid}")
    if hasattr(config, "workerinput"):
        place = {name: at for at, name in enumerate(WAITS)}
        items.sort(key=lambda item: place.get(item.path.parent.name, len(WAITS)))


# --- what a test leaves open -------------------------------------------------------------------------------------------------


def pytest_collection_finish() -> None:
    """Take what is there before the first test out of the collector's sight: else it looks at it for 80 ms after each."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None, item: pytest.Item) -> Iterator[None]:
    """Collect each test's garbage within the test: a socket that it left open is held against it, and not against a later one."""
    left: list[str] = []
    try:
        yield
    finally:
        hook, sys.unraisablehook = sys.unraisablehook, lambda found: left.append(f"{found.exc_value!r}, in {found.object!r}")
        try:
            gc.collect()
        finally:
            sys.unraisablehook = hook
    if nextitem is not None and nextitem.path != item.path:
        gc.freeze()  # what a file of tests has left for good
    assert not left, "the test left this open:\n" + "\n".join(left)


# --- what had to run twice ---------------------------------------------------------------------------------------------------

# Where `--reruns 1` allows any. A test that fails twice fails the run; of those that fail once, a few may be the fault of a
# machine that does other things too, and more are the suite's. The last lines name each: it is to be mended, not lived with.
MOST_RERUNS = 5


def pytest_configure(config: pytest.Config) -> None:
    """Watch over the whole run, and not in each of its processes."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Reruns())


class Reruns:
    """Says loudly which tests failed and then passed; too many of them make the run fail."""

    def __init__(self) -> None:
        self.failed: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the first failure of a test that is run again."""
        if report.outcome == "rerun":
            self.failed.setdefault(report.nodeid, report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Let the run fail, if it has not."""
        if len(self.failed) > MOST_RERUNS and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show what failed the first time."""
        for name, text in self.failed.items():
            terminalreporter.section(f"RUN AGAIN: {name}", "!", red=True, bold=True)
            terminalreporter.line(text)

    def pytest_unconfigure(self) -> None:
        """Name them in the last lines, which is what a log is read from."""
        for name, text in self.failed.items():
            lines = text.strip().splitlines()
            print(f"RUN AGAIN: {name}:", *[line for line in lines if line.startswith("E ")][:2], *lines[-1:], sep="\n    ")
        if self.failed:
            verdict = "FAILED" if len(self.failed) > MOST_RERUNS else "mend them"
            print(f"{len(self.failed)} had to be run again, at most {MOST_RERUNS} may: {verdict}")
