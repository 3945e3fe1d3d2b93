"""The folder a command is started in: its modules come last, and what others may write there is not believed."""

from __future__ import annotations

import grp
import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import folders
from runtime.folders import why_not
from tests.commands.calls import one_line
from tests.servers import wait_until

DECOYS = (
    "argparse",
    "logging",
    "pickle",
    "subprocess",
    "queue",
    "tomllib",
    "msgspec",
    "anyio",
    "redis",
    "uvloop",
    "board",
    "otel",
)
HANDLERS = """
import os
import msgspec
from runtime import Job, contract, handler

@contract("apart")
class Apart(msgspec.Struct, frozen=True):
    path: str

@handler(Apart, runs="process")
def apart(message: Apart, job: Job) -> None:
    with open(message.path, "w") as out:
        out.write(f"{os.environ.get('PYTHONSAFEPATH')} done")
"""
SCRIPT = Path(sys.executable).parent / "backend-jobs"
WAYS = [
    pytest.param((sys.executable, "-m", "runtime"), id="module"),
    pytest.param((str(SCRIPT),), id="script", marks=pytest.mark.skipif(not SCRIPT.exists(), reason="not installed")),
]


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTIME_", "REDIS_URL", "PYTHON"))}
    return kept | more


def call(way: tuple[str, ...], *arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*way, *arguments], cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project whose handlers are in `mine.py`, and everything else in it would take the process over."""
    path = tmp_path / "project"
    path.mkdir(mode=0o755)
    for name in DECOYS:
        (path / f"{name}.py").write_text(f"open({str(tmp_path / 'hijacked')!r}, 'a').write(__name__)\nraise SystemExit(9)\n")
    (path / "mine.py").write_text(HANDLERS)
    return path


@pytest.mark.parametrize("way", WAYS)
def test_nothing_in_the_folder_is_imported_but_the_handlers_that_are_asked_for(folder, tmp_path, way):
    assert call(way, "--version", cwd=folder).returncode == 0
    assert call(way, "stats", "--data-dir", str(tmp_path / "none"), cwd=folder).returncode == 2
    result = call(way, "types", "--json", "--handlers", "mine", cwd=folder)
    assert [json.loads(line)["type"] for line in result.stdout.splitlines()] == ["apart"], result.stderr
    assert not (tmp_path / "hijacked").exists()


@pytest.mark.parametrize("way", WAYS)
def test_nor_is_it_by_any_process_that_a_worker_starts(folder, tmp_path, way):
    options = ("--handlers", "mine", "--data-dir", str(tmp_path / "data"))
    log = tmp_path / "log"
    with log.open("ab") as out:
        command = [*way, "run", *options, "--processes", "2", "--board", "127.0.0.1:0", "--log", "plain"]
        worker = subprocess.Popen(command, cwd=folder, env=environment(), stderr=out)
    try:
        wait_until(lambda: "all 2 processes are ready" in log.read_text(), what=f"it is ready ({log.read_text()})")
        answer = tmp_path / "answer"
        sent = call(way, "enqueue", "apart", json.dumps({"path": str(answer)}), *options, cwd=folder)
        assert sent.returncode == 0, sent.stderr
        wait_until(lambda: answer.exists() and answer.read_text() == "None done", what="the child has run it")
    finally:
        worker.terminate()
        worker.wait(40)
    assert not (tmp_path / "hijacked").exists()


def test_a_module_that_another_one_hides_is_said_and_not_silently_left_out(folder):
    (folder / "handlers").mkdir()
    (folder / "handlers" / "__init__.py").write_text(HANDLERS)
    result = call(WAYS[0].values[0], "types", cwd=folder)
    assert result.returncode == 2
    assert "hides the one in this folder" in one_line(result)
    assert call(WAYS[0].values[0], "types", cwd=folder, PYTHONPATH=str(folder / "..")).returncode == 2


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_handlers_are_not_imported_from_a_folder_that_others_may_write(folder, mode):
    folder.chmod(mode)
    result = call(WAYS[0].values[0], "types", "--handlers", "mine", cwd=folder)
    assert result.returncode == 2
    line = one_line(result)
    assert "chmod o-w" in line
    assert "PYTHONPATH=." in line
    assert call(WAYS[0].values[0], "types", "--handlers", "tests.faults.jobs", cwd=folder).returncode == 0, (
        "those it does not need"
    )


def _a_file(folder: Path) -> str:
    (folder / "mine.py").chmod(0o666)
    return "mine"


def _a_package(folder: Path) -> str:
    return _package(folder, "pkg", 0o777)


def _a_folder_of_a_package(folder: Path) -> str:
    return _package(folder, "pkg/inner", 0o777) + ".inner.work"


def _the_beginning_of_a_package(folder: Path) -> str:
    return _package(folder, "pkg/__init__.py", 0o666) + ".inner.work"


def _a_module_of_a_package(folder: Path) -> str:
    return _package(folder, "pkg/inner/work.py", 0o666) + ".inner.work"


def _a_package_without_a_beginning(folder: Path) -> str:
    name = _package(folder, "pkg", 0o777)
    (folder / "pkg" / "__init__.py").unlink()
    return name + ".inner.work"


def _what_a_module_imports(folder: Path) -> str:
    (folder / "mine.py").write_text("import helper\n" + HANDLERS)
    (folder / "helper.py").write_text(HIJACK)
    (folder / "helper.py").chmod(0o606)
    return "mine"


def _where_a_link_leads(folder: Path) -> str:
    (folder.parent / "open").mkdir()
    (folder.parent / "open").chmod(0o777)
    (folder / "mine.py").rename(folder.parent / "open" / "mine.py")
    (folder / "mine.py").symlink_to(folder.parent / "open" / "mine.py")
    return "mine"


def _what_is_compiled(folder: Path) -> str:
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__").chmod(0o777)
    return "mine"


HIJACK = "open('hijacked', 'w').close()\n"


def _package(folder: Path, lax: str = "", mode: int = 0) -> str:
    """Make a package, one thing of which others may write; what must not be run of it leaves a trace."""
    (folder / "pkg" / "inner").mkdir(parents=True)
    for name in ("pkg/__init__.py", "pkg/inner/__init__.py", "pkg/inner/work.py"):
        (folder / name).write_text(HIJACK if lax and name.startswith(lax) else HANDLERS)
    if lax:
        (folder / lax).chmod(mode)
    return "pkg"


LAX = [
    _a_file,
    _a_package,
    _a_folder_of_a_package,
    _the_beginning_of_a_package,
    _a_module_of_a_package,
    _a_package_without_a_beginning,
    _what_a_module_imports,
    _where_a_link_leads,
    _what_is_compiled,
]


@pytest.mark.parametrize("open_up", LAX, ids=[case.__name__.strip("_") for case in LAX])
def test_no_module_is_run_that_others_may_write(folder, open_up):
    name = open_up(folder)
    result = call(WAYS[0].values[0], "types", "--handlers", name, cwd=folder)
    assert result.returncode == 2
    line = one_line(result)
    assert "cannot be trusted: everybody may write it (chmod o-w); or set PYTHONPATH=." in line
    assert not (folder / "hijacked").exists()
    for decoy in DECOYS:
        (folder / f"{decoy}.py").unlink()
    word = call(WAYS[0].values[0], "types", "--handlers", "mine", cwd=folder, PYTHONPATH=".")
    assert word.returncode == 0, "the user's own word"


def test_each_module_is_looked_at_when_it_is_found(folder, monkeypatch):
    monkeypatch.setattr(folders, "_checked", {str(folder)})
    (folder / "mine.py").chmod(0o666)
    with pytest.raises(ImportError, match="everybody may write it"):
        folders._checking_finder(str(folder)).find_spec("mine")


@pytest.mark.parametrize("way", WAYS)
def test_packages_with_folders_of_their_own_are_found(folder, way):
    name = _package(folder)
    for handlers in (name, f"{name}.inner", f"{name}.inner.work"):
        assert call(way, "types", "--handlers", handlers, cwd=folder).returncode == 0
    (folder / "pkg" / "__init__.py").unlink()
    assert call(way, "types", "--handlers", f"{name}.inner.work", cwd=folder).returncode == 0


@pytest.mark.parametrize("command", ["types", "stats", "run", "doctor"])
def test_a_folder_that_is_gone_is_said_in_one_line(tmp_path, command):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); os.execv({sys.executable!r}, "
    script += f"[{sys.executable!r}, '-P', '-m', 'runtime', {command!r}])"
    home = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    result = call((sys.executable, "-c", script), cwd=tmp_path, **home)
    assert result.returncode == 2
    assert "is gone" in one_line(result)


@pytest.mark.parametrize("which", ["file", "folder"])
def test_settings_that_others_may_write_are_refused_in_one_line(folder, which):
    file = folder / "runtime.toml"
    file.write_text('handlers = "mine"\n')
    assert call(WAYS[0].values[0], "types", cwd=folder).returncode == 0
    (file if which == "file" else folder).chmod(0o666 if which == "file" else 0o1777)
    result = call(WAYS[0].values[0], "types", cwd=folder)
    assert result.returncode == 2
    line = one_line(result)
    assert "chmod o-w" in line
    assert ("its folder" in line) == (which == "folder")


def has_own_group() -> bool:
    """Return whether this user is alone in the group of what it makes."""
    user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(os.getegid())
    return user.pw_gid == group.gr_gid and set(group.gr_mem) <= {user.pw_name}


@pytest.mark.skipif(not has_own_group(), reason="others are in the group of this user")
def test_a_folder_made_with_umask_002_is_trusted_where_the_group_is_the_users_own(folder):
    folder.chmod(0o775)
    (folder / "runtime.toml").write_text('handlers = "mine"\n')
    (folder / "runtime.toml").chmod(0o664)
    assert call(WAYS[0].values[0], "types", cwd=folder).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_somebody_else_or_to_a_group_of_several_is_not_trusted(tmp_path):
    file = tmp_path / "runtime.toml"
    file.touch()
    os.chown(file, 12345, 0)
    assert "belongs to user 12345" in why_not(file)
    os.chown(file, 0, 12345)
    file.chmod(0o664)
    assert "the group 12345 may write it" in why_not(file)
    file.chmod(0o644)
    assert why_not(file) == ""
