"""Files under roots: no path and no link leads out of them, and a visible name is complete."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from handlers.contracts.data import Exported
from handlers.contracts.types import RootPath, check_path
from handlers.kit import files
from handlers.kit.files import Sidecar, Target, Writer, open_below, open_root, target
from handlers.kit.sections import Root
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop, Stopped
from runtime import Dead, Snooze
from tests.handlers.disks import Disk, state, swapping

WORK = "a" * 26
OTHER = "b" * 26
RESULT = Exported(path="out:x.csv", rows=1, bytes=3, sha256="", columns=1, escaped=0)

HOSTILE_PARTS = [
    *(
        "..",
        ".",
        "",
        "\x00",
        "a\x00",
        "\n",
        "a\n",
        "\r",
        "\t",
        "\x1b[2J",
        "\x7f",
        "\x85",
        "\u2028",
        "\u202e",
        "\u2066",
        "\\",
        "a\\b",
    ),
    *("..\\..", "a\\..\\b", "./", "../", "/", "//", "/..", "/../", "/.", "/./", "x/", "x//", "x/../y", "x/./y", "x/..", "x/."),
]
HOSTILE_PATHS = [
    *(f"out:{part}" for part in HOSTILE_PARTS),
    *(f"out:a/{part}" for part in HOSTILE_PARTS),
    *(f"out:{part}/a" for part in HOSTILE_PARTS),
    *(f"out:a/{part}/b/c.csv" for part in HOSTILE_PARTS),
    *(f"out:{part}.csv\n" for part in HOSTILE_PARTS),
    *(f"{part}:a.csv" for part in HOSTILE_PARTS),
    *("out", "", ":", ":a", "a.csv", "/etc/passwd", "../etc/passwd", "file:///etc/passwd", "OUT:a", "1out:a", "out :a", " out:a"),
    *("out:/etc/passwd", "out:" + "a" * 600, "o" * 33 + ":a", "öut:a", "out\n:a", "out:a/" * 200, "-:a", "_:a"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "out").mkdir()
    return Disk(tmp_path)


@contextmanager
def writing(
    disk: Disk, path: str = "out:x.csv", work: str = WORK, overwrite: bool = False, allows: bool = True, **root: Any
) -> Iterator[Writer]:
    """Open a writer as a handler does."""
    settings = Settings(roots={"out": Root(path=str(disk.out), **{"mode": "write", "overwrite": allows, **root})})
    with target(settings, path) as place, Writer(place, work, Stop(), overwrite=overwrite) as writer:
        yield writer


def write(disk: Disk, content: bytes = b"one", **options: Any) -> Exported | None:
    """Write a file as a handler does; gives the result that was stored, if the work was done already."""
    with writing(disk, **options) as writer:
        done = writer.already(Exported)
        if done is None:
            writer.write(content)
            writer.finish(RESULT)
        return done


# --- paths ---------------------------------------------------------------------------------------------------------------


def test_no_hostile_path_passes_the_contract() -> None:
    assert len(set(HOSTILE_PATHS)) >= 200
    for path in HOSTILE_PATHS:
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(path, RootPath)
            pytest.fail(f"{path!r} passes")


@pytest.mark.parametrize(
    "path", ["out:a", "out:a/b/c.csv", "logs-web:..a/b..", "out:...", "out:a b/ü 😀", "out:-rf", "out:a:b", "o:~"]
)
def test_an_ordinary_path_passes(path: str) -> None:
    assert msgspec.convert(path, RootPath) == path
    check_path(path, "to")


def test_a_name_has_one_spelling() -> None:
    with pytest.raises(ValueError, match=r"NFC.*\$\.to"):
        check_path("out:u\u0308.csv", "to")


@hypothesis_settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("./\\:ao\n\x00\u202e"), max_size=12))
def test_whatever_passes_stays_below_its_root(text: str) -> None:
    with suppress(msgspec.ValidationError):
        path = msgspec.convert(f"out:{text}", RootPath)
        parts = path.partition(":")[2].split("/")
        assert all(part and part not in (".", "..") and not set(part) & set("\\\n\x00\u202e") for part in parts)
        assert os.path.normpath("/root/" + "/".join(parts)).startswith("/root/")


@pytest.mark.parametrize("name", [".hidden", ".x.csv.part", "x.part", "x.job.json", "x" * 201, "ü" * 101])
def test_some_names_are_not_for_jobs(disk: Disk, name: str) -> None:
    with pytest.raises(Dead) as caught:
        write(disk, path=f"out:{name}")
    assert caught.value.code == "bad-path"
    assert name not in str(caught.value)
    assert disk.names(disk.out) == []


def test_a_root_for_reading_is_not_written(disk: Disk) -> None:
    with pytest.raises(Dead, match="mode 'read'") as caught:
        write(disk, mode="read")
    assert caught.value.code == "bad-path"
    write(disk, mode="purge")


def test_a_root_that_is_not_here_is_waited_for(disk: Disk) -> None:
    for path in (disk.folder / "none", disk.folder / "none/deeper"):
        with pytest.raises(Snooze, match=r"alias-missing: roots.out"):
            open_at(path)
    with pytest.raises(Snooze, match=r"alias-missing: roots.other"):
        write(disk, path="other:x.csv")


def open_at(path: Path) -> None:
    with target(Settings(roots={"out": Root(path=str(path), mode="write")}), "out:x.csv"):
        pass


def test_folders_on_the_way_are_made(disk: Disk) -> None:
    write(disk, path="out:a/b/x.csv")
    assert (disk.out / "a/b/x.csv").read_bytes() == b"one"
    assert (disk.out / "a/b").stat().st_mode & 0o777 == 0o700


# --- links ---------------------------------------------------------------------------------------------------------------


def test_no_link_on_the_way_is_followed(disk: Disk) -> None:
    outside = disk.folder / "outside"
    (outside / "b").mkdir(parents=True)
    (disk.out / "a").symlink_to(outside)
    (disk.out / "d").mkdir()
    (disk.out / "d/e").symlink_to("../../outside")
    (disk.out / "file").write_text("no folder")
    for path in ("out:a/x.csv", "out:a/b/x.csv", "out:d/e/x.csv", "out:file/x.csv"):
        with pytest.raises(Dead) as caught:
            write(disk, path=path)
        assert caught.value.code == "bad-path"
    assert disk.names(outside) == ["b"]


def test_the_root_itself_may_be_a_link(disk: Disk) -> None:
    (disk.folder / "link").symlink_to(disk.out)
    open_at(disk.folder / "link")


@pytest.mark.parametrize("name", ["x.csv", "x.csv.job.json", f".x.csv.{WORK}.part", f".x.csv.{WORK}.job.json.part"])
@pytest.mark.parametrize("kind", ["link", "hanging link", "hard link", "folder", "pipe"])
def test_whatever_lies_in_the_way_nothing_else_is_written_and_nobody_hangs(disk: Disk, name: str, kind: str) -> None:
    precious = disk.folder / "precious"
    precious.write_text("precious")
    path = disk.out / name
    match kind:
        case "link":
            path.symlink_to(precious)
        case "hanging link":
            path.symlink_to(disk.folder / "new")
        case "hard link":
            path.hardlink_to(precious)
        case "folder":
            path.mkdir()
        case _:
            os.mkfifo(path)
    with suppress(Dead, OSError):
        write(disk, overwrite=True)
    assert precious.read_text() == "precious"
    assert not (disk.folder / "new").exists()


def test_folders_that_become_links_at_any_moment_lead_nowhere(disk: Disk) -> None:
    outside = disk.folder / "outside"
    outside.mkdir()
    (disk.out / "a").mkdir()
    enough_s = time.monotonic() + 5
    opened = refused = 0
    with swapping(disk.out / "a", disk.out / "kept", outside), open_root("out", Root(path=str(disk.out))) as top:
        # 2000 and 200 where there is a core for each side; where there is not, what five seconds give, and both at least once.
        while not opened or not refused or (time.monotonic() < enough_s and (opened < 2000 or refused < 200)):
            assert time.monotonic() < enough_s + 60
            try:
                with open_below(top, ["a"]) as folder:
                    os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=folder))
                opened += 1
            except OSError as error:
                assert error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
                refused += 1
    assert disk.names(outside) == []


# --- writing -------------------------------------------------------------------------------------------------------------


def test_a_file_appears_complete_with_its_sidecar(disk: Disk) -> None:
    with writing(disk) as writer:
        assert writer.already(Exported) is None
        for _ in range(3):
            writer.write(b"abc")
        assert disk.names(disk.out) == [f".x.csv.{WORK}.part"]
        assert (writer.size_bytes, writer.sha256) == (9, hashlib.sha256(b"abc" * 3).hexdigest())
        writer.finish(RESULT)
    assert disk.names(disk.out) == ["x.csv", "x.csv.job.json"]
    assert (disk.out / "x.csv").read_bytes() == b"abc" * 3
    assert {path.stat().st_mode & 0o777 for path in disk.out.iterdir()} == {0o600}
    sidecar = msgspec.json.decode((disk.out / "x.csv.job.json").read_bytes(), type=Sidecar)
    assert (sidecar.work, sidecar.size, sidecar.sha256) == (WORK, 9, hashlib.sha256(b"abc" * 3).hexdigest())
    assert msgspec.json.decode(sidecar.result, type=Exported) == RESULT


def test_the_same_work_is_done_once(disk: Disk) -> None:
    assert write(disk) is None
    before = state(disk.out)
    assert write(disk, b"other bytes") == RESULT
    assert state(disk.out) == before
    assert disk.names(disk.out) == ["x.csv", "x.csv.job.json"]


@pytest.mark.parametrize("name", ["x.csv", "x.csv.job.json"])
def test_a_link_is_not_taken_for_the_file_or_the_sidecar(disk: Disk, name: str) -> None:
    write(disk)
    outside = disk.folder / "outside"
    os.rename(disk.out / name, outside)
    (disk.out / name).symlink_to(outside)
    content = outside.read_bytes()
    if name == "x.csv":
        assert write(disk, b"new") is None
        assert not (disk.out / name).is_symlink()
    else:
        with pytest.raises(Dead, match="not written by this job"):
            write(disk, b"new")
    assert outside.read_bytes() == content


@pytest.mark.parametrize("spoil", [b"", b"onE", b"one more"])
def test_a_file_that_is_not_what_its_sidecar_says_is_written_again(disk: Disk, spoil: bytes) -> None:
    write(disk)
    (disk.out / "x.csv").write_bytes(spoil)
    assert write(disk) is None
    assert (disk.out / "x.csv").read_bytes() == b"one"


@pytest.mark.parametrize("sidecar", [b"", b"{", b"[]", b'{"work": 1}', b"\xff" * 100_000])
def test_a_sidecar_that_cannot_be_read_makes_nothing_ours(disk: Disk, sidecar: bytes) -> None:
    write(disk)
    (disk.out / "x.csv.job.json").write_bytes(sidecar)
    with pytest.raises(Dead, match="not written by this job"):
        write(disk, b"two", overwrite=True)
    assert (disk.out / "x.csv").read_bytes() == b"one"


def test_the_root_must_allow_what_the_payload_asks_for(disk: Disk) -> None:
    write(disk)
    with (
        pytest.raises(Dead, match="hint: overwrite = true") as caught,
        writing(disk, work=OTHER, overwrite=True, allows=False) as writer,
    ):
        writer.already(Exported)
    assert caught.value.code == "output-exists"
    assert (disk.out / "x.csv").read_bytes() == b"one"


def test_a_result_of_another_version_is_made_again(disk: Disk) -> None:
    write(disk)
    path = disk.out / "x.csv.job.json"
    path.write_bytes(path.read_bytes().replace(b'"rows"', b'"lines"'))
    assert write(disk) is None
    assert write(disk) == RESULT


def test_a_name_of_another_job_is_not_taken_but_may_be_replaced(disk: Disk) -> None:
    write(disk)
    with pytest.raises(Dead) as caught:
        write(disk, b"two", work=OTHER)
    assert caught.value.code == "output-exists"
    assert write(disk, b"two", work=OTHER, overwrite=True) is None
    assert (disk.out / "x.csv").read_bytes() == b"two"
    assert write(disk, b"two", work=OTHER, overwrite=True) == RESULT
    with pytest.raises(Dead):
        write(disk)
    assert disk.names(disk.out) == ["x.csv", "x.csv.job.json"]


def test_a_file_that_no_job_wrote_is_never_replaced(disk: Disk) -> None:
    (disk.out / "x.csv").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(Dead) as caught:
            write(disk, overwrite=overwrite)
        assert caught.value.code == "output-exists"
    assert (disk.out / "x.csv").read_text() == "mine"
    assert disk.names(disk.out) == ["x.csv"]


def test_a_sidecar_whose_file_is_gone_is_in_nobodys_way(disk: Disk) -> None:
    write(disk)
    (disk.out / "x.csv").unlink()
    assert write(disk, b"two", work=OTHER) is None
    assert (disk.out / "x.csv").read_bytes() == b"two"


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_jobs_that_want_one_name_the_second_gets_none(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(files.os, "link", _no_links)
    with writing(disk) as first, writing(disk, work=OTHER) as second:
        for writer in (first, second):
            assert writer.already(Exported) is None
            writer.write(writer.part.encode())
        first.finish(RESULT)
        with pytest.raises(Dead) as caught:
            second.finish(RESULT)
        assert caught.value.code == "output-exists"
    assert (disk.out / "x.csv").read_text() == f".x.csv.{WORK}.part"
    assert disk.names(disk.out) == ["x.csv", "x.csv.job.json"]
    assert write(disk) == RESULT


def _no_links(*names: object, **options: object) -> None:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def test_a_run_that_is_not_over_keeps_its_repeat_away(disk: Disk) -> None:
    with writing(disk) as first:
        first.write(b"long")
        with pytest.raises(Snooze, match="locked"), writing(disk):
            pass
        first.finish(RESULT)
    assert write(disk) == RESULT


def test_what_fails_leaves_nothing(disk: Disk) -> None:
    with pytest.raises(KeyError), writing(disk) as writer:
        writer.write(b"half")
        raise KeyError
    assert disk.names(disk.out) == []


def test_a_stop_is_heard_before_the_name_appears(disk: Disk) -> None:
    stop = Stop()
    settings = Settings(roots={"out": Root(path=str(disk.out), mode="write")})
    with pytest.raises(Stopped), target(settings, "out:x.csv") as place, Writer(place, WORK, stop) as writer:
        writer.write(b"all of it")
        stop.is_set = True
        writer.finish(RESULT)
    assert disk.names(disk.out) == []


def test_a_part_of_a_killed_run_is_begun_again(disk: Disk) -> None:
    (disk.out / f".x.csv.{WORK}.part").write_bytes(b"half of something longer")
    (disk.out / f".x.csv.{WORK}.job.json.part").write_bytes(b'{"work"')
    assert write(disk) is None
    assert (disk.out / "x.csv").read_bytes() == b"one"
    assert disk.names(disk.out) == ["x.csv", "x.csv.job.json"]


def test_a_part_that_another_user_has_made_is_not_written_to(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own files have another owner too, as on NFS with root_squash: new ones are written all the same."""
    part = disk.out / f".x.csv.{WORK}.part"
    part.write_bytes(b"half")
    owner = part.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with part.open("rb") as theirs:
        assert write(disk) is None
        assert os.fstat(theirs.fileno()).st_nlink == 0
        assert theirs.read() == b"half"
    assert (disk.out / "x.csv").read_bytes() == b"one"


def test_a_part_that_is_begun_again_is_for_nobody_else(disk: Disk) -> None:
    part = disk.out / f".x.csv.{WORK}.part"
    part.write_bytes(b"half")
    part.chmod(0o666)
    assert write(disk) is None
    assert (disk.out / "x.csv").stat().st_mode & 0o777 == 0o600


def test_a_crash_between_name_and_sidecar_is_fixed(disk: Disk) -> None:
    write(disk)
    os.rename(disk.out / "x.csv.job.json", disk.out / f".x.csv.{WORK}.job.json.part")
    os.link(disk.out / "x.csv", disk.out / f".x.csv.{WORK}.part")
    assert write(disk, b"other bytes") == RESULT
    assert (disk.out / "x.csv").read_bytes() == b"one"
    assert disk.names(disk.out) == ["x.csv", "x.csv.job.json"]


def test_a_sidecar_made_ready_does_not_make_anothers_file_ours(disk: Disk) -> None:
    write(disk)
    os.rename(disk.out / "x.csv.job.json", disk.out / f".x.csv.{WORK}.job.json.part")
    (disk.out / "x.csv").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(Dead, match="not written by this job"):
            write(disk, overwrite=overwrite)
    assert (disk.out / "x.csv").read_text() == "mine"


def test_a_file_has_a_limit(disk: Disk) -> None:
    write(disk, b"x" * 1024, max_bytes="1KiB")
    with pytest.raises(Dead) as caught:
        write(disk, b"x" * 1025, path="out:y.csv", max_bytes="1KiB")
    assert caught.value.code == "too-large"
    assert disk.names(disk.out) == ["x.csv", "x.csv.job.json"]


def test_the_last_of_the_space_is_left_to_others(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    free = os.statvfs(disk.out)
    monkeypatch.setattr(files, "SPACE_EVERY_BYTES", free.f_bavail * free.f_frsize * 2)
    with writing(disk) as writer:
        writer._next_check_bytes = 1000
        writer.write(b"x" * 999)
        with pytest.raises(OSError, match="No space left"):
            writer.write(b"x")


@pytest.mark.parametrize(
    ("number", "word", "said"),
    [
        (errno.ENOSPC, Snooze, "out-of-space"),
        (errno.EDQUOT, Snooze, "out-of-space"),
        (errno.EFBIG, Snooze, "out-of-space"),
        (errno.EROFS, Snooze, "alias-missing"),
        (errno.EACCES, Snooze, "alias-missing"),
        (errno.ELOOP, Dead, "symbolic links"),
        (errno.EIO, OSError, "Input/output"),
        (errno.ESTALE, OSError, "Stale"),
    ],
)
def test_each_fault_of_a_disk_has_its_word(disk: Disk, number: int, word: type[Exception], said: str) -> None:
    with pytest.raises(word, match=said), writing(disk):
        raise OSError(number, os.strerror(number))
    assert disk.names(disk.out) == []


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("5GiB", 5 * 2**30), ("1 KiB", 1024), (10, 10), ("10", 10), ("7B", 7), ("2TiB", 2 * 2**40)]
)
def test_a_size_may_have_a_unit(text: Any, size_bytes: int) -> None:
    assert Root(path="/x", max_bytes=text).limit_bytes == size_bytes


@pytest.mark.parametrize(
    "root", [{"path": "out"}, {"path": ""}, {"path": "/", "mode": "purge"}, {"path": "/x", "max_bytes": "5 GB"}]
)
def test_a_root_that_makes_no_sense_is_refused(root: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(root, Root)


def test_each_mode_allows_what_those_before_it_do() -> None:
    allowed = {
        mode: [each for each in ("read", "write", "purge") if Root(path="/x", mode=mode).allows(each)]
        for mode in ("read", "write", "purge")
    }
    assert allowed == {"read": ["read"], "write": ["read", "write"], "purge": ["read", "write", "purge"]}


def test_a_target_knows_its_place(disk: Disk) -> None:
    with target(Settings(roots={"out": Root(path=str(disk.out), mode="write")}), "out:a/b.csv") as place:
        assert isinstance(place, Target)
        assert (place.path, place.name, os.listdir(place.folder)) == ("out:a/b.csv", "b.csv", [])
