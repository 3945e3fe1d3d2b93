"""The models on disk: what is signed, what is believed, and which version is the current one."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from handlers.checks import CHECKS
from handlers.kit import models
from handlers.kit.models import CURRENT, Card, Feature, Model, current_models, find_model, promote, publish, read_model
from handlers.kit.settings import Settings, current
from handlers.kit.threads import Stop
from runtime import Dead, Retry, Snooze
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk, state

KEY, OTHER_KEY = "k" * 32, "o" * 32
WORKS = [letter * 26 for letter in "abcdef"]
DATA = b"the bytes of a model" * 1000


@pytest.fixture
def disk(tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk(tmp_path)
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("MODELS_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", OTHER_KEY)
    configure(settings(disk))
    models._known.clear()
    models._numbers.clear()
    return disk


def settings(disk: Disk, **more: str) -> str:
    fields = {"root": "'models'", "key": "'env:MODELS_KEY'", "promote": "['churn']", **more}
    said = ", ".join(f"{name} = {value}" for name, value in fields.items())
    return f"roots.models = {{ path = '{disk.folder / 'models'}', mode = 'write' }}\nmodels = {{ {said} }}\n"


def card(work: str = WORKS[0], born_s: float = 1.0, **fields: Any) -> Card:
    named = {"name": "churn", "version": work, "format": "skops", "task": "classification", "born_s": born_s}
    return Card(**{**named, "features": [Feature(name="age")], **fields})


def made(work: str = WORKS[0], born_s: float = 1.0, data: bytes = DATA, **fields: Any) -> Model:
    return publish(current(), card(work, born_s, **fields), data, work, Stop())


def found(version: str | None = None, name: str = "churn", attempt: int = 3) -> Model:
    return find_model(current(), name, version, attempt, Stop())


def folder_of(disk: Disk, work: str = WORKS[0]) -> Path:
    return disk.folder / "models" / "churn" / work


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(Dead) as caught:
        call()
    return caught.value.code


def test_what_is_published_is_found_with_its_card_and_its_bytes(disk: Disk) -> None:
    model = made(metrics={"accuracy": 0.9}, classes=["a", 1, 2.5, True])
    assert (model.name, model.version, model.sha256) == ("churn", WORKS[0], hashlib.sha256(DATA).hexdigest())
    assert model == found(WORKS[0])
    assert model.card == card(metrics={"accuracy": 0.9}, classes=["a", 1, 2.5, True])
    assert read_model(current(), model, Stop()) == DATA
    assert disk.names(folder_of(disk)) == [".job.json", "card.json", "model.skops", "signature.json"]
    assert oct(folder_of(disk).stat().st_mode & 0o777) == "0o700"


def test_a_repeat_finds_its_version_and_writes_nothing(disk: Disk) -> None:
    model, before = made(), state(folder_of(disk))
    assert made() == model
    assert made(data=b"another run has made other bytes") == model
    assert state(folder_of(disk)) == before


def test_a_key_that_is_rotated_believes_the_old_one_until_it_is_gone(disk: Disk, configure: Configure) -> None:
    promote(current(), made())
    configure(settings(disk, key="'env:OTHER_KEY'", old_key="'env:MODELS_KEY'"))
    assert found().version == found(WORKS[0]).version == WORKS[0]
    promote(current(), made(WORKS[1], 2.0))
    configure(settings(disk, key="'env:OTHER_KEY'"))
    assert found().version == WORKS[1]
    assert code_of(lambda: found(WORKS[0])) == "model-untrusted"
    configure(settings(disk))
    assert code_of(found) == code_of(lambda: found(WORKS[1])) == "model-untrusted"


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _swap_models(disk: Disk) -> None:
    made(WORKS[1], data=DATA[::-1])
    shutil.copy(folder_of(disk, WORKS[1]) / "model.skops", folder_of(disk) / "model.skops")


def _move_version(disk: Disk) -> None:
    made(WORKS[1], data=DATA[::-1])
    shutil.rmtree(folder_of(disk))
    folder_of(disk, WORKS[1]).rename(folder_of(disk))


def _other_name(disk: Disk) -> None:
    publish(current(), card(name="other"), DATA, WORKS[0], Stop())
    shutil.rmtree(folder_of(disk))
    shutil.copytree(disk.folder / "models" / "other" / WORKS[0], folder_of(disk))


def _better_card(disk: Disk) -> None:
    path = folder_of(disk) / "card.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(found(WORKS[0]).card, metrics={"accuracy": 1.0})))


def _signed_by_another(disk: Disk) -> None:
    path = folder_of(disk) / "signature.json"
    signature = json.loads(path.read_bytes())
    parts = (models._VERSION_DOMAIN, "churn", WORKS[0], signature["sha256"], signature["card_sha256"])
    path.write_bytes(msgspec.json.encode({**signature, "mac": models._mac(OTHER_KEY.encode(), *parts)}))


SPOILERS: list[Callable[[Disk], object]] = [
    lambda disk: _flip(folder_of(disk) / "model.skops"),
    lambda disk: _flip(folder_of(disk) / "card.json"),
    lambda disk: _flip(folder_of(disk) / "signature.json"),
    lambda disk: (folder_of(disk) / "signature.json").unlink(),
    lambda disk: (folder_of(disk) / "card.json").unlink(),
    lambda disk: (folder_of(disk) / "model.skops").unlink(),
    lambda disk: (folder_of(disk) / "model.skops").rename(folder_of(disk) / "model.onnx"),
    lambda disk: (folder_of(disk) / "card.json").write_bytes(b"[" * 2**20),
    lambda disk: (folder_of(disk) / "signature.json").write_bytes(b"{}"),
    lambda disk: (folder_of(disk) / "signature.json").write_bytes(b"\xff"),
    lambda disk: (folder_of(disk) / "signature.json").write_bytes(b" " * 5000),
    lambda disk: (folder_of(disk) / "signature.json").write_bytes(
        b'{"sha256": "", "card_sha256": "", "mac": "\xc3\xa9"}',
    ),
    lambda disk: os.truncate(folder_of(disk) / "model.skops", 10),
    _swap_models,
    _move_version,
    _other_name,
    _better_card,
    _signed_by_another,
]


@pytest.mark.parametrize("spoil", SPOILERS)
@pytest.mark.parametrize("is_known", [True, False])
def test_what_was_not_signed_is_not_believed(disk: Disk, spoil: Callable[[Disk], object], is_known: bool) -> None:
    made()
    spoil(disk)
    if not is_known:
        models._known.clear()
    assert code_of(lambda: found(WORKS[0])) == "model-untrusted"


def test_a_link_in_a_models_place_is_not_followed(disk: Disk) -> None:
    made()
    model = folder_of(disk) / "model.skops"
    model.rename(disk.folder / "elsewhere")
    model.symlink_to(disk.folder / "elsewhere")
    assert code_of(lambda: found(WORKS[0])) == "model-untrusted"
    folder_of(disk).rename(disk.folder / "moved")
    folder_of(disk).symlink_to(disk.folder / "moved")
    assert code_of(lambda: found(WORKS[0])) == "bad-path"


def test_a_model_is_read_once_until_it_or_a_key_changes(
    disk: Disk, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    digest = models._digest
    monkeypatch.setattr(models, "_digest", lambda file, stop: (read.append(1), digest(file, stop))[1])
    made()
    for _ in range(5):
        found(WORKS[0])
    assert len(read) == 1
    os.utime(folder_of(disk) / "card.json")
    found(WORKS[0])
    assert len(read) == 2
    configure(settings(disk, key="'env:OTHER_KEY'", old_key="'env:MODELS_KEY'"))
    found(WORKS[0])
    assert len(read) == 3


def test_a_model_that_changes_after_it_was_verified_is_not_read(disk: Disk) -> None:
    model = made()
    for spoil in (_flip, lambda path: path.write_bytes(DATA + b"x"), lambda path: os.truncate(path, 5)):
        spoil(folder_of(disk) / "model.skops")
        assert code_of(lambda: read_model(current(), model, Stop())) == "model-untrusted"
        (folder_of(disk) / "model.skops").write_bytes(DATA)
    assert read_model(current(), model, Stop()) == DATA
    shutil.rmtree(folder_of(disk))
    assert code_of(lambda: read_model(current(), model, Stop())) == "input-missing"
    shutil.rmtree(folder_of(disk).parent)
    assert code_of(lambda: read_model(current(), model, Stop())) == "input-missing"


def test_what_is_not_there_is_waited_for_a_little(disk: Disk) -> None:
    for asked in ((None, "churn"), (WORKS[0], "churn")):
        with pytest.raises(Retry, match="input-missing"):
            found(*asked, attempt=1)
        assert code_of(lambda asked=asked: found(*asked)) == "input-missing"
    made()
    for version in (None, WORKS[1]):
        assert code_of(lambda version=version: found(version)) == "input-missing"


def test_the_younger_job_wins_in_whatever_order_they_promote(disk: Disk) -> None:
    older, younger = made(WORKS[0], 1.0), made(WORKS[1], 2.0)
    assert promote(current(), older) and found() == older
    assert promote(current(), younger) and found() == younger
    before = state(disk.folder / "models" / "churn")
    assert promote(current(), younger), "a repeat is no second promotion"
    assert not promote(current(), older)
    assert state(disk.folder / "models" / "churn") == before and found() == younger


def test_what_an_operator_says_stays_until_a_job_that_is_born_after_it(disk: Disk) -> None:
    now_s = time.time()
    older, younger, waiting = made(WORKS[0], now_s - 30), made(WORKS[1], now_s - 20), made(WORKS[2], now_s - 10)
    assert promote(current(), younger)
    assert promote(current(), older, by_operator=True) and found() == older
    assert not promote(current(), younger), "a repeat of its job"
    assert not promote(current(), waiting), "a job that was sent before, and ends after it"
    assert found() == older
    assert promote(current(), made(WORKS[3], now_s + 100)) and found().version == WORKS[3]


def test_an_operator_may_hold_on_to_what_is_current(disk: Disk) -> None:
    now_s = time.time()
    older, younger = made(WORKS[0], now_s - 30), made(WORKS[1], now_s - 20)
    assert promote(current(), older)
    assert promote(current(), older, by_operator=True)
    assert not promote(current(), younger) and found() == older


def test_an_old_current_that_is_put_back_is_noticed(disk: Disk) -> None:
    path = disk.folder / "models" / "churn" / CURRENT
    promote(current(), made(WORKS[0], 1.0))
    old = path.read_bytes()
    found()
    promote(current(), made(WORKS[1], 2.0))
    assert found().version == WORKS[1]
    path.write_bytes(old)
    assert code_of(found) == code_of(lambda: promote(current(), made(WORKS[2], 3.0))) == "model-untrusted"
    path.unlink()  # as the hint says
    assert promote(current(), made(WORKS[2], 3.0)) and found().version == WORKS[2]


@pytest.mark.parametrize(
    "change", [{"version": WORKS[1]}, {"number": 2**60}, {"born_s": 0.0}, {"mac": ""}, {"more": 1}, {"version": "../x"}]
)
def test_a_current_that_was_changed_is_not_believed(disk: Disk, change: dict[str, Any]) -> None:
    made(WORKS[1])
    promote(current(), made())
    path = disk.folder / "models" / "churn" / CURRENT
    path.write_bytes(msgspec.json.encode({**json.loads(path.read_bytes()), **change}))
    assert code_of(found) == "model-untrusted"


def test_a_current_of_another_model_is_not_believed(disk: Disk) -> None:
    made()
    promote(current(), publish(current(), card(name="other"), DATA, WORKS[0], Stop()))
    shutil.copy(disk.folder / "models" / "other" / CURRENT, disk.folder / "models" / "churn")
    assert code_of(found) == "model-untrusted"


def test_two_that_promote_at_once_do_not_meet(disk: Disk) -> None:
    model = made()
    held = os.open(disk.folder / "models" / "churn", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(Snooze, match="locked"):
        promote(current(), model)
    os.close(held)
    assert promote(current(), model)


KILLED = """
import itertools, os, signal, sys
import msgspec
from handlers.kit.models import Card, promote, publish
from handlers.kit.settings import current
from handlers.kit.threads import Stop
point, times, card = sys.argv[1], int(sys.argv[2]), msgspec.json.decode(sys.argv[3], type=Card)
left = itertools.count(1)
def listen(event, arguments):
    if event == "handlers.point" and arguments[0] == point and next(left) == times:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(listen)
promote(current(), publish(current(), card, b"the bytes of a model" * 1000, card.version, Stop()))
"""


@pytest.mark.parametrize(
    ("point", "times"),
    [
        *[("model-file", 1), ("model-file", 2), ("model-file", 3), ("folder-ready", 1), ("folder-named", 1)],
        *[("current-ready", 1), ("current-named", 1)],
    ],
)
def test_killed_at_any_point_a_rerun_ends_as_if_undisturbed(disk: Disk, point: str, times: int) -> None:
    promote(current(), made(WORKS[1], 0.5))
    command = [sys.executable, "-c", KILLED, point, str(times), msgspec.json.encode(card()).decode()]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert found().version == (WORKS[0] if point == "current-named" else WORKS[1]), "never half a version"
    model = made()
    assert promote(current(), model)
    assert found() == model
    assert sorted(path.name for path in folder_of(disk).parent.iterdir()) == [*WORKS[:2], CURRENT]
    assert disk.names(folder_of(disk)) == [".job.json", "card.json", "model.skops", "signature.json"]


def test_what_a_killed_run_left_is_in_nobodys_way(disk: Disk) -> None:
    model = made()
    (disk.folder / "models" / "churn" / ".current.json.part").write_bytes(b"half")
    assert promote(current(), model)
    assert disk.names(disk.folder / "models" / "churn") == sorted(
        [CURRENT, WORKS[0], *[f"{WORKS[0]}/{name}" for name in disk.names(folder_of(disk))]]
    )


def test_a_model_that_is_too_large_is_neither_written_nor_read(disk: Disk, configure: Configure) -> None:
    made()
    configure(settings(disk, max_bytes="'1KiB'"))
    assert code_of(lambda: made(WORKS[1])) == code_of(lambda: found(WORKS[0])) == "too-large"
    assert not folder_of(disk, WORKS[1]).exists()


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("field", ["metrics", "edges", "classes"])
def test_a_card_that_could_not_be_read_is_not_signed(disk: Disk, field: str, number: float) -> None:
    """JSON has neither: a version would be there that nobody can load, for good."""
    spoilt: dict[str, Any] = {
        "metrics": {"metrics": {"r2": number}},
        "edges": {"features": [Feature(name="age", edges=[number])]},
        "classes": {"classes": [number]},
    }
    assert code_of(lambda: made(**spoilt[field])) == "bad-rows"
    assert disk.names(disk.folder / "models") == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "alias-missing: models: not in"),
        ("models = { root = 'none', key = 'env:MODELS_KEY' }", "alias-missing: roots.none"),
        ("models = { root = 'models', key = 'env:NOT_SET' }", "alias-missing: models.key: variable NOT_SET is not set"),
        ("models = { root = 'models', key = 'env:SHORT' }", "alias-missing: models.key: must have at least 32"),
        ("models = { root = 'models', key = 'env:MODELS_KEY', old_key = 'env:SHORT' }", "alias-missing: models.old_key"),
        ("models = { root = 'models', key = 'verysecret' }", "alias-missing"),
        ("models = { root = 'models', key = 'env:MODELS_KEY', max_bytes = 'lots' }", "max_bytes"),
        ("models = { root = 'models', key = 'env:MODELS_KEY', more = 1 }", "alias-missing"),
    ],
)
def test_settings_that_must_be_fixed_make_a_job_wait(
    disk: Disk, configure: Configure, monkeypatch: pytest.MonkeyPatch, text: str, wanted: str
) -> None:
    monkeypatch.setenv("SHORT", "hunter2")
    configure(f"{settings(disk).splitlines()[0]}\n{text}\n")
    with pytest.raises(Snooze, match=wanted) as caught:
        found()
    assert "hunter2" not in str(caught.value) and "verysecret" not in str(caught.value)


def test_a_root_that_may_only_be_read_is_enough_to_find_models(disk: Disk, configure: Configure) -> None:
    promote(current(), made())
    configure(settings(disk).replace("'write'", "'read'"))
    assert found().version == WORKS[0]
    assert code_of(lambda: made(WORKS[1])) == "bad-path"


def test_no_two_lists_of_texts_have_one_signature() -> None:
    assert len({models._mac(b"k", *parts) for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"))}) == 5


def test_settings_say_what_may_be_promoted(disk: Disk) -> None:
    allowed: Settings = current()
    assert allowed.registry().may_promote("churn") and not allowed.registry().may_promote("churn2")


def test_the_doctor_verifies_what_is_current(disk: Disk) -> None:
    assert [finding.what for finding in CHECKS() if "models" in finding.what][1:] == [
        "models: 0 with a current version, each with a valid signature"
    ]
    promote(current(), made())
    made(WORKS[1])
    publish(current(), card(name="other"), DATA, WORKS[0], Stop())
    assert current_models(current(), Stop()) == [found()]
    _flip(folder_of(disk) / "model.skops")
    (said,) = [finding for finding in CHECKS() if finding.level == "error"]
    assert said.what == f"models: churn {WORKS[0]}: the model is not the one that was signed"
