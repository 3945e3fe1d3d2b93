"""`--processes N`: children that die, hang, grow, or cannot start; a supervisor that is stopped, or killed. Nothing is lost."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest
import redis
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open

from runtime.embedded import Embedded
from runtime.store.base import Keys, script
from runtime.store.deaths import Death
from runtime.store.inspector import Inspector
from tests.faults.harness import ROOT, count, events, leftovers
from tests.servers import Server, free_ports, wait_until

KEY = "{jobs}:medium"


class Supervisor:
    """`python -m runtime run --processes N` in a session of its own, as a terminal or a service manager starts it."""

    def __init__(self, history: Path, *options: str) -> None:
        self.log_path = history / f"supervisor-{len(list(history.glob('supervisor-*')))}.log"
        command = [sys.executable, "-m", "runtime", "run", "--handlers", "tests.faults.jobs", "--board", "off", "--log", "plain"]
        command += ["--lease", "1.5", "--concurrency", "10", *options]
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        environment |= {"FAULTS_HISTORY": str(history), "RUNTIME_CHILD_ENV": "FAULTS_*", "PYTHONPATH": f"{ROOT}:{history}"}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def children(self) -> list[int]:
        """The pids of all workers that have ever started."""
        return [int(pid) for pid in re.findall(r"worker \S+-(\d+)-[0-9a-f]{8}: ", self.log)]

    def wait_ready(self, processes: int) -> None:
        wait_until(lambda: f"all {processes} processes are ready" in self.log, what=f"all start ({self.log})")

    def send(self, which: signal.Signals) -> None:
        os.kill(self.process.pid, which)

    def stop(self, deadline_s: float = 20.0) -> int:
        self.send(signal.SIGTERM)
        return self.process.wait(deadline_s)


Hire = Callable[..., Supervisor]


@pytest.fixture
def hire(valkey: Server, tmp_path: Path) -> Iterator[Hire]:
    """Start a supervisor that ends with the test, and give it when all its children work."""
    hired: list[Supervisor] = []

    def start(*options: str, processes: int = 2, wait: bool = True, redis: bool = True) -> Supervisor:
        store = ("--redis", valkey.url) if redis else ()
        one = Supervisor(tmp_path, *store, "--processes", str(processes), *options)
        hired.append(one)
        if wait:
            one.wait_ready(processes)
        return one

    yield start
    for one in hired:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        for pid in filter(runs, one.children):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def raw(valkey: Server) -> Iterator[redis.Redis]:
    client = valkey.client()
    yield client
    client.close()


def runs(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def send(raw: redis.Redis, numbers: int, ms: float = 0, kind: str = "scripted") -> None:
    pipe = raw.pipeline(transaction=False)
    for n in range(numbers):
        pipe.xadd(KEY, {"type": kind, "data": f'{{"n":{n},"ms":{ms}}}'})
    pipe.execute()


def ended(history: Path) -> list[int]:
    return sorted(event.n for event in events(history) if event.kind == "end")


def reports(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.startswith("runtime: ")]


# --- one of them -----------------------------------------------------------------------------------------------------------


def test_all_work_and_one_that_is_killed_is_replaced_and_loses_nothing(hire, raw, tmp_path):
    supervisor = hire(processes=3)
    victim = supervisor.children[1]
    send(raw, 300, ms=50)
    wait_until(lambda: len({event.pid for event in events(tmp_path)}) == 3, what="all three work")
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not leftovers(raw), what="everything is done")
    assert set(ended(tmp_path)) == set(range(300))
    wait_until(lambda: len(supervisor.children) == 4, what="another one has started")
    assert re.search(rf"process \d \(pid {victim}\) was ended by signal 9", supervisor.log)
    assert supervisor.stop() == 0
    assert "processes that died and were replaced: 1" in supervisor.log.splitlines()[-1]


def test_what_one_held_that_is_killed_comes_back_at_once_and_not_a_lease_later(hire, valkey, raw, tmp_path):
    supervisor = hire("--lease", "600", "--concurrency", "3")
    send(raw, 6, kind="held")
    wait_until(lambda: count(tmp_path, "start") == 6, what="all run")
    victim, other = supervisor.children
    began = {event.n for event in events(tmp_path) if event.pid == victim}
    [name] = [name for name in raw.hkeys("{jobs}:workers:rows") if f"-{victim}-" in name]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: raw.zscore("{jobs}:workers", name) in (0, None), what="it is known to be dead")
    wait_until(lambda: count(tmp_path, "start") == 6 + len(began), what="what it ran starts again")
    assert {event.n for event in events(tmp_path) if event.kind == "start" and event.pid not in (victim, other)} == began
    wait_until(lambda: raw.zscore("{jobs}:workers", name) is None, what="it is forgotten")
    [death] = deaths(valkey)
    assert (death.worker, death.held, len(death.jobs)) == (name, len(began), len(began))
    assert re.search(r"took back \d+ jobs of dead workers and 0 lost deliveries: held medium-", supervisor.log)
    (tmp_path / "go").touch()
    wait_until(lambda: not leftovers(raw), what="all is done")
    assert supervisor.stop() == 0
    assert len(deaths(valkey)) == 1, "those that stop in peace are no deaths"


def deaths(server: Server) -> list[Death]:
    async def read() -> list[Death]:
        inspector = Inspector(server.url, "jobs")
        try:
            return await inspector.deaths()
        finally:
            await inspector.close()

    return asyncio.run(read())


def test_one_whose_loop_stands_still_is_replaced(hire, raw, tmp_path):
    supervisor = hire("--max-block", "1")
    send(raw, 1, ms=60_000, kind="blocking")
    wait_until(lambda: count(tmp_path, "start") == 1, what="it blocks")
    [hung] = {event.pid for event in events(tmp_path)}
    wait_until(lambda: not runs(hung), what="it is killed")
    raw.xtrim(KEY, 0)
    wait_until(lambda: len(supervisor.children) >= 3, what="another one has started")
    assert "has not moved for 1 s" in supervisor.log
    send(raw, 20)
    wait_until(lambda: len(ended(tmp_path)) == 20, what="the others work")


def test_one_that_has_grown_too_large_is_replaced_and_loses_nothing(hire, raw, tmp_path):
    supervisor = hire("--handlers", "tests.faults.greedy", "--max-rss", "130", "--concurrency", "2")
    for n in range(60):
        raw.xadd(KEY, {"type": "greedy", "data": f'{{"n":{n},"mb":8}}'})
    wait_until(lambda: "takes its slot" in supervisor.log and not leftovers(raw), what="recycled, and all is done")
    wait_until(lambda: len(supervisor.children) >= 3 and not runs_all(supervisor.children), what="the old one has ended")
    assert supervisor.stop() == 0
    assert ended(tmp_path) == list(range(60)), "each once"
    assert {event.attempt for event in events(tmp_path)} == {1}
    [report] = reports(supervisor.log)
    assert "60 runs finished" in report
    assert re.search(r"; recycled: \d+$", report)
    assert "died" not in report


def test_one_that_is_too_large_from_the_start_is_left_alone_with_a_warning(hire, raw, tmp_path):
    supervisor = hire("--max-rss", "1", processes=1)
    send(raw, 1, ms=1500)
    wait_until(lambda: len(ended(tmp_path)) == 1, what="several looks at its memory later")
    assert supervisor.log.count("more than --max-rss 1: it is not recycled") == 1
    assert len(supervisor.children) == 1
    assert supervisor.stop() == 0


def runs_all(pids: list[int]) -> bool:
    return all(map(runs, pids))


def order(raw: redis.Redis, order: str, pid: int) -> None:
    """Order what the worker of a process is to do, as a person does."""
    [name] = [name for name in raw.hkeys("{jobs}:workers:rows") if f"-{pid}-" in name]
    keys = Keys("jobs").scripted
    raw.eval(script("control").text, len(keys), *keys, "ann", "", "set", f"worker:{name}", order)


def test_one_that_is_ordered_to_stop_is_not_replaced_and_with_the_last_one_all_is_over(hire, raw, tmp_path):
    supervisor = hire()
    first, second = supervisor.children
    send(raw, 40, ms=50)
    order(raw, "stop", first)
    wait_until(lambda: not runs(first), what="it stops")
    wait_until(lambda: "as ordered: none takes its place" in supervisor.log, what="that is logged")
    send(raw, 40)
    wait_until(lambda: not leftovers(raw), what="the other works")
    assert set(ended(tmp_path)) == set(range(40))
    assert runs(second)
    assert supervisor.children == [first, second], "none was started"
    order(raw, "stop", second)
    assert supervisor.process.wait(60) == 0
    [report] = reports(supervisor.log)
    assert "80 runs finished" in report
    assert "died" not in report


def test_one_that_dies_while_it_stops_as_ordered_is_not_replaced_either(hire, raw, tmp_path):
    supervisor = hire("--grace", "60", "--max-rss", "9000", processes=1)
    send(raw, 1, ms=60_000)
    wait_until(lambda: count(tmp_path, "start") == 1, what="its job runs")
    [child] = supervisor.children
    order(raw, "stop", child)
    wait_until(lambda: "stopping: 1 jobs run" in supervisor.log, what="it begins to stop")
    os.kill(child, signal.SIGKILL)
    supervisor.process.wait(60)
    assert supervisor.children == [child]
    assert "as ordered: none takes its place" in supervisor.log


# --- stopping ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sigterm to all", "ctrl-c"])
def test_all_finish_their_jobs_within_the_grace_and_one_report_adds_up(hire, raw, tmp_path, how):
    supervisor = hire("--grace", "10")
    send(raw, 60, ms=700)
    wait_until(lambda: count(tmp_path, "start") >= 20, what="all lanes run")
    if how == "ctrl-c":
        os.killpg(supervisor.process.pid, signal.SIGINT)
    else:  # as a service manager does: each process hears it from there, and the children once more from the supervisor
        for pid in (*supervisor.children, supervisor.process.pid):
            os.kill(pid, signal.SIGTERM)
    assert supervisor.process.wait(60) == 0
    started, done = count(tmp_path, "start"), len(ended(tmp_path))
    assert started == done, "none was cut"
    assert raw.xlen(KEY) == 60 - done
    [report] = reports(supervisor.log)
    assert f": {done} runs finished" in report
    assert not any(map(runs, supervisor.children))
    assert raw.exists("{jobs}:workers:rows") == 0, "all are forgotten"


def test_a_second_signal_skips_the_grace_of_all(hire, raw, tmp_path):
    supervisor = hire("--grace", "60")
    send(raw, 20, ms=20_000)
    wait_until(lambda: count(tmp_path, "start") == 20, what="all lanes run")
    supervisor.send(signal.SIGTERM)
    wait_until(lambda: supervisor.log.count("stopping: ") == 2, what="all begin to stop")
    assert supervisor.process.poll() is None
    supervisor.send(signal.SIGTERM)
    assert supervisor.process.wait(60) == 0
    rows = raw.xpending_range(KEY, "workers", "-", "+", 100)
    assert {(row["consumer"], row["times_delivered"]) for row in rows} == {("~free", 0)}
    assert len(rows) == 20


def test_one_that_does_not_end_is_killed_after_the_hard_deadline(hire, raw):
    supervisor = hire("--grace", "0")
    os.kill(supervisor.children[0], signal.SIGSTOP)
    assert supervisor.stop(12) == 4
    assert "hard deadline" in supervisor.log
    assert not any(map(runs, supervisor.children))


def test_when_the_supervisor_is_killed_all_stop_and_nothing_is_lost(hire, raw, tmp_path):
    supervisor = hire("--grace", "10")
    send(raw, 60, ms=700)
    wait_until(lambda: count(tmp_path, "start") >= 20, what="all lanes run")
    supervisor.process.kill()
    supervisor.process.wait()
    wait_until(lambda: not any(map(runs, supervisor.children)), what="the children end")
    assert count(tmp_path, "start") == len(ended(tmp_path)), "within their grace"
    assert raw.xlen(KEY) == 60 - len(ended(tmp_path))
    assert {row["name"] for row in raw.xpending(KEY, "workers")["consumers"] or []} <= {"~free"}


def test_the_embedded_server_ends_last(hire, tmp_path):
    data = tmp_path / "data"
    supervisor = hire("--data-dir", str(data), redis=False)
    server = redis.Redis(unix_socket_path=str(data / "s.sock"), decode_responses=True)
    send(server, 20, ms=500)
    wait_until(lambda: count(tmp_path, "start") == 20, what="they run")
    assert supervisor.stop() == 0
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        probe.connect(str(data / "s.sock"))
    again = Embedded(data)
    again.start()
    try:
        assert leftovers(server) == {}, "every acknowledgement was written"
    finally:
        again.stop()
    assert ended(tmp_path) == list(range(20))


# --- starting ----------------------------------------------------------------------------------------------------------------


def test_handlers_that_cannot_be_imported_end_it_with_one_clear_line(hire, tmp_path):
    (tmp_path / "broken_jobs.py").write_text("raise RuntimeError('no database')\n")
    supervisor = hire("--handlers", "broken_jobs", wait=False)
    assert supervisor.process.wait(60) == 2
    assert supervisor.log.count("no database") == 1
    assert "module broken_jobs cannot be imported: RuntimeError: no database" in supervisor.log.splitlines()[-1]


def test_a_store_that_is_away_ends_it_with_one_clear_line(hire, tmp_path):
    supervisor = hire("--redis", f"unix://{tmp_path}/nobody.sock", wait=False)
    assert supervisor.process.wait(60) == 3
    assert supervisor.log.count("is it running?") == 1


# --- ports -------------------------------------------------------------------------------------------------------------------


def get(port: int, page: str, accept: str = "*/*") -> tuple[int, str]:
    try:
        with urlopen(Request(f"http://127.0.0.1:{port}/{page}", headers={"Accept": accept}), timeout=5) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()
    except (URLError, OSError):
        return 0, ""


@pytest.fixture
def port() -> int:
    """A free port with three free ones behind it."""
    return free_ports(4)


def test_health_and_metrics_of_all_are_on_the_port_and_of_each_on_its_own(hire, raw, port, tmp_path):
    supervisor = hire("--board", f"127.0.0.1:{port}")
    send(raw, 40, ms=50)
    wait_until(lambda: not leftovers(raw), what="all is done")
    assert get(port, "healthz") == (200, "alive, 2 of 2 processes are up\n")
    assert get(port, "readyz") == (200, "process 0: ready\nprocess 1: ready\n")
    status, metrics = get(port, "metrics")
    assert status == 200
    done = re.findall(r'^runtime_outcomes_total\{process="(\d)",outcome="done",.*\} (\d+)$', metrics, re.MULTILINE)
    assert {index for index, _ in done} == {"0", "1"}
    assert sum(int(number) for _, number in done) == 40
    assert metrics.count("# TYPE runtime_outcomes_total") == 1
    names = [family.name for family in parse_open(get(port, "metrics", "application/openmetrics-text")[1])]
    assert {"runtime_outcomes", "runtime_run_seconds", "runtime_process_up"} <= set(names), "in OpenMetrics as well"
    assert len(names) == len(set(names))
    for index in (0, 1):
        assert get(port + 1 + index, "readyz") == (200, "ready\n")
    victim = supervisor.children[0]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: "runtime_process_deaths_total 1\n" in get(port, "metrics")[1], what="the death is counted")
    assert get(port, "readyz")[0] == 200, "the other one is ready"
    wait_until(lambda: len(supervisor.children) == 3 and "2 of 2" in get(port, "healthz")[1], what="it is up again")
    assert 'runtime_process_up{process="0"} 1\n' in get(port, "metrics")[1]


def test_a_port_of_a_process_that_is_taken_is_named(hire, port):
    with socket.socket() as other:
        other.bind(("127.0.0.1", port + 2))
        other.listen()
        supervisor = hire("--board", f"127.0.0.1:{port}", wait=False)
        assert supervisor.process.wait(60) == 2
    assert f"127.0.0.1:{port + 2}" in supervisor.log.splitlines()[-1]
