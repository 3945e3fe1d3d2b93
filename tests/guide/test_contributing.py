"""CONTRIBUTING.md is true: its commands exist and take these arguments, its verbs are all of them, its folders are there."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = re.findall(r"^ *```sh\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
COMMANDS = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
OURS = ".venv/bin/python"


def call(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def verbs() -> set[str]:
    """Return what `make` can be asked for."""
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


def test_the_page_shows_commands_of_each_kind() -> None:
    for word in ("make ", f"{OURS} -m pytest ", f"{OURS} -m tests.faults ", f"{OURS} -m tests.faults.mutants ", "git "):
        assert any(command.startswith(word) for command in COMMANDS), word


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_exists_and_takes_these_arguments(command: str, tmp_path: Path) -> None:
    """What takes long is parsed, and what it would run is looked for; git's commands run in a repository of their own."""
    match shlex.split(command):
        case ["make", *words]:
            targets = {word for word in words if "=" not in word}
            assert targets <= verbs(), command
            makefile = (ROOT / "Makefile").read_text("utf-8")
            assert all(f"$({word.split('=')[0]})" in makefile for word in words if "=" in word), command
            asked = call("make", "--dry-run", *words)
            assert asked.returncode == 0, asked.stderr
            [arguments] = [shlex.split(word.split("=", 1)[1]) for word in words if word.startswith("ARGS=")] or [[]]
            if "bench" in targets:
                assert_known("bench", arguments)
            elif "faults" in targets:
                assert_known("tests.faults", arguments)
            elif arguments:
                assert_collected(arguments)
        case [python, "-m", "pytest", *arguments] if python == OURS:
            assert_collected(arguments)
        case [python, "-m", "tests.faults", *arguments] if python == OURS:
            assert_known("tests.faults", arguments)
        case [python, "-m", "tests.faults.mutants", *words] if python == OURS:
            from tests.faults.mutants import MUTANTS

            assert words
            assert all(any(word in mutant.name for mutant in MUTANTS) for word in words)
        case ["git", *arguments]:
            (tmp_path / "file").write_text("before")
            for step in ("init", "add file", "commit -m first"):
                assert git(tmp_path, *step.split()).returncode == 0
            (tmp_path / "file").write_text("after")
            done = git(tmp_path, *arguments)
            assert done.returncode == 0, done
        case _:
            pytest.fail(f"no way to try this out: {command}")


def git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call("git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", *arguments, cwd=folder)


def assert_collected(arguments: list[str]) -> None:
    """Hold that pytest finds tests for these arguments."""
    found = call(sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments)
    assert found.returncode == 0, found.stdout


def assert_known(module: str, arguments: list[str]) -> None:
    """Hold that a command knows these flags."""
    told = call(sys.executable, "-m", module, "--help")
    assert told.returncode == 0, told.stderr
    for word in arguments:
        assert not word.startswith("-") or word in told.stdout, word


def test_every_verb_is_on_the_page() -> None:
    table = set(re.findall(r"`make ([a-z-]+)`", PAGE))
    assert table == verbs() - {"help"}


def test_every_folder_of_the_layout_exists() -> None:
    layout = PAGE.split("```text\n")[1].split("```")[0]
    for name in re.findall(r"(?:^|  )([a-z]+)/(?= )", "\n".join(line for line in layout.splitlines() if line[0] != " ")):
        assert (ROOT / name).is_dir() or (ROOT / "tests" / name).is_dir(), name
    [tests] = [line for line in layout.splitlines() if line.startswith("tests/")]
    shown = set(re.findall(r"([a-z]+)/", tests)) - {"tests"}
    assert shown == {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists()}


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "SECURITY.md"])
def test_the_page_links_to_pages_that_exist(page: str) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / page).read_text("utf-8"))
    assert targets
    for target in targets:
        assert (ROOT / target).exists(), target


def test_clean_removes_what_make_makes_and_nothing_else(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    kept = [
        "runtime/new.py",
        "bench/rows.py",
        "bench/raw.c",
        "notes/dist.txt",
        ".env",
        ".venv-of-mine/pyvenv.cfg",
        "tests/build/x",
    ]
    made = [".venv/bin/python", ".venv-3.13/bin/python", ".run/data", "build/coverage/data", "dist/a.whl", ".ruff_cache/x"]
    made += ["bench/raw", "bench/raw.12", "bench/results/latest.txt", "bench/peers/.envs/x", "bench/peers/bullmq/node_modules/x"]
    made += ["runtime/__pycache__/x.pyc", "runtime/commands/__pycache__/x.pyc", "tests/__pycache__/x.pyc"]
    for name in [*kept, *made, *(f"{folder}/__init__.py" for folder in ("board", "otel", "handlers"))]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert call("make", "clean", cwd=tmp_path).returncode == 0
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"Makefile", *kept, "board/__init__.py", "otel/__init__.py", "handlers/__init__.py"}
