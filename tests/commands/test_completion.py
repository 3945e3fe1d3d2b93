"""`completion`: the scripts are valid, know the commands, their flags and their choices, and say what they need."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands.calls import call, call_anew, one_line

SHELLS = [
    pytest.param(shell, marks=pytest.mark.skipif(not shutil.which(shell), reason=f"apt-get install {shell}"))
    for shell in ("bash", "zsh")
]


def run(shell: str, script: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([shell, *flags, "-c", script], capture_output=True, text=True, timeout=20)


def completed(script: str, *words: str) -> list[str]:
    """Return what bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in words)
    probe = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_backend_jobs; echo ${{COMPREPLY[@]}}"
    return run("bash", f"{script}\n{probe}").stdout.split()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_its_shell_reads(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(call("completion", shell).stdout)
    assert "backend-jobs" in script.read_text()
    checked = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, timeout=20)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_can_be_evaluated_in_a_shell_that_has_loaded_nothing(shell: str, tmp_path: Path) -> None:
    bare = {"bash": ["--noprofile", "--norc"], "zsh": ["-f"]}[shell]
    shows = {"bash": "complete -p backend-jobs", "zsh": "echo $_comps[backend-jobs]"}[shell]
    script = call("completion", shell).stdout.replace("compinit }", f"compinit -D -u -d {tmp_path}/dump }}")
    (tmp_path / "script").write_text(script)
    done = run(shell, f'eval "$(cat {tmp_path}/script)"; {shows}', *bare)
    assert done.stderr == ""
    assert "_shtab_backend_jobs" in done.stdout


def test_the_script_knows_commands_flags_and_choices() -> None:
    script = call("completion", "bash").stdout
    assert completed(script, "backend-jobs", "do") == ["doctor"]
    assert completed(script, "backend-jobs", "dead", "rep") == ["replay"]
    assert completed(script, "backend-jobs", "dead", "replay", "--dry") == ["--dry-run"]
    assert completed(script, "backend-jobs", "enqueue", "--priority", "") == ["critical", "high", "medium", "low"]


def test_flags_that_name_a_path_are_completed_with_paths(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there.toml").touch()
    script = call("completion", "bash").stdout
    assert completed(script, "backend-jobs", "run", "--data-dir", f"{tmp_path}/th") == [f"{tmp_path}/there"]
    assert set(completed(script, "backend-jobs", "run", "--handlers-config", f"{tmp_path}/th")) >= {f"{tmp_path}/there.toml"}


def test_every_command_is_in_the_script() -> None:
    from runtime.cli import COMMANDS

    offered = completed(call("completion", "bash").stdout, "backend-jobs", "")
    assert set(COMMANDS) <= set(offered)


def test_without_its_package_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "shtab.py").write_text("raise ImportError(name='shtab')")
    result = call_anew("completion", "bash", PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    assert result.returncode == 2, result
    assert one_line(result) == "runtime: completion needs shtab: pip install shtab"
