"""`python -m handlers.models`: what an operator adds is tried, signed and asked; what is wrong with it is said in a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from handlers.kit.models import find_model, publish
from handlers.kit.settings import current
from handlers.kit.threads import Stop
from handlers.models import main
from tests.handlers.conftest import Configure
from tests.handlers.disks import ROOT, Disk
from tests.handlers.test_predicting import as_onnx, as_skops, of_digits, with_weights_beside_it
from tests.handlers.test_run_inference import crashing, labels, message, run, settings
from tests.handlers.test_run_inference import disk as disk
from tests.handlers.test_run_inference import here as here

CARD = (
    f"task = 'classification'\nfeatures = {[f'x{at}' for at in range(64)]}\nclasses = {list(range(10))}\nestimator = 'logistic'\n"
)


def write(disk: Disk, name: str, data: bytes, card: str = CARD) -> list[str]:
    """Write a model with its card, and return what adds it."""
    (disk.folder / name).write_bytes(data)
    (disk.folder / "card.toml").write_text(card)
    return ["add", str(disk.folder / name), "--name", "digits", "--card", str(disk.folder / "card.toml")]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(("name", "data"), [("digits.onnx", as_onnx), ("digits.skops", as_skops)])
async def test_a_model_of_others_answers_when_it_was_added(
    disk: Disk, capsys: pytest.CaptureFixture[str], name: str, data: object
) -> None:
    assert callable(data)
    assert main([*write(disk, name, data()), "--promote"]) == 0
    said, version = capsys.readouterr().out.split()
    assert said == "digits"
    result = await run(message())
    assert (result.version, result.outputs) == (version, labels())
    assert main(["verify", "digits"]) == 0
    assert capsys.readouterr().out.startswith(f"digits {version} {name[7:]} classification 64 columns ")
    before = sorted(disk.names(disk.folder / "models"))
    assert main([*write(disk, name, data()), "--promote"]) == 0, "to add it again changes nothing"
    assert sorted(disk.names(disk.folder / "models")) == before


def test_the_versions_are_listed_and_an_older_one_can_be_the_current_again(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    versions: list[str] = []
    for name, data in (("a.skops", as_skops()), ("b.onnx", as_onnx())):
        assert main([*write(disk, name, data), "--promote"]) == 0
        versions += capsys.readouterr().out.split()[1:]
    assert main(["promote", "digits", versions[0]]) == 0
    capsys.readouterr()
    assert main(["list", "digits"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line[2:35].split()[1] for line in lines) == sorted(versions)
    assert [line.split()[2] for line in lines if line.startswith("* ")] == [versions[0]]
    assert find_model(current(), "digits", None, 3, Stop()).version == versions[0]
    (disk.folder / "models" / "digits" / versions[1] / "model.onnx").write_bytes(b"another")
    assert main(["list"]) == 1
    assert f"digits {versions[1]} model-untrusted: " in capsys.readouterr().out
    assert main(["verify", "digits", versions[1]]) == 1
    assert main(["promote", "digits", versions[1]]) == 1
    assert main(["list", "nothing"]) == 0


@pytest.mark.parametrize(
    ("name", "data", "card", "said"),
    [
        ("a.onnx", with_weights_beside_it("card.toml"), CARD, "cannot be loaded"),
        ("a.skops", as_skops(), CARD.replace("classification", "guessing"), "card.toml: Invalid enum value"),
        ("a.skops", as_skops(), CARD.replace("'x1'", "'x0'"), "must name each column once"),
        ("a.skops", as_skops(), "features = [", "card.toml: "),
        ("a.skops", as_skops(), CARD + "trusted = ['os.system']", "unknown field"),
        ("a.skops", crashing(), CARD.replace("logistic", "random-forest"), "crashed its process (signal 11)"),
        ("a.pkl", b"", CARD, "must be called *.onnx or *.skops"),
        ("a.onnx", b"\0" * 2_000_000, CARD, "must have at most 1048576 bytes"),
    ],
)
def test_what_cannot_answer_is_not_added(
    disk: Disk, configure: Configure, capsys: pytest.CaptureFixture[str], name: str, data: bytes, card: str, said: str
) -> None:
    configure(settings(disk).replace("key = 'env", "max_bytes = '1MiB', key = 'env"))
    assert main(write(disk, name, data, card)) == 1
    told = capsys.readouterr().err
    assert told.startswith("add: ") and said in told and told.count("\n") == 1, told
    assert disk.names(disk.folder / "models") == []


def test_names_and_versions_lead_out_of_no_folder(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["verify", "../x"],
        ["promote", "digits", "../../x"],
        ["list", "/etc"],
        ["promote", "digits", "current"],
        [],
    ):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    capsys.readouterr()


def test_it_runs_by_its_name(disk: Disk, tmp_path: Path) -> None:
    model = publish(current(), of_digits(name="digits", version="a" * 26), as_skops(), "a" * 26, Stop())
    command = [sys.executable, "-m", "handlers.models", "--handlers-config", str(tmp_path / "handlers.toml"), "list"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"MODELS_KEY": "k" * 32})
    assert done.stdout.startswith(f"  digits {model.version} skops")
    assert "sklearn" not in done.stderr
