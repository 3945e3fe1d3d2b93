"""Logs are read on from where they were left, line by line, each once, whatever rotates them."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from handlers.kit import tails
from handlers.kit.tails import MAX_LINE_BYTES, Place, Tail
from handlers.kit.threads import Stop, Stopped


class Reader:
    """Reads a folder again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: list[Place] = []
        self.last: Tail

    def read(self, glob: str = "log*", most_bytes: int = 2**30, since_s: float = 0.0) -> list[str]:
        top = os.open(self.folder, os.O_RDONLY)
        try:
            self.last = Tail(top, glob, self.places, Stop(), most_bytes=most_bytes, since_s=since_s)
            lines = [line.decode() for batch in self.last.lines() for line in batch]
        finally:
            os.close(top)
        self.places = self.last.places
        return lines

    def write(self, text: str, name: str = "log") -> None:
        with (self.folder / name).open("a", newline="") as file:
            file.write(text)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


LINES = "".join(f"line number {n} of the first file\n" for n in range(50))


def test_each_line_is_read_once(reader: Reader) -> None:
    reader.write("a\nb\n")
    assert reader.read() == ["a", "b"]
    assert reader.read() == []
    reader.write("c\n\nd\r\n")
    assert reader.read() == ["c", "", "d\r"]


def test_half_a_line_waits_for_the_rest(reader: Reader) -> None:
    reader.write("a\nhal")
    assert reader.read() == ["a"]
    assert reader.read() == [] and not reader.places[0].is_idle
    reader.write("f\nb")
    assert reader.read() == ["half"]
    reader.write("\n")
    assert reader.read() == ["b"]


def test_a_file_that_was_renamed_goes_on(reader: Reader) -> None:
    reader.write(LINES)
    assert len(reader.read()) == 50
    reader.write("late\n")
    (reader.folder / "log").rename(reader.folder / "log.1")
    reader.write("new\n")
    assert reader.read() == ["late", "new"]
    (reader.folder / "log.1").write_bytes(b"")
    (reader.folder / "log.1").unlink()
    reader.write("newer\n")
    assert reader.read() == ["newer"] and reader.last.gone == 1, "something may have been written to it"


def test_a_file_that_was_packed_after_a_quiet_run_is_not_missed(reader: Reader) -> None:
    reader.write(LINES)
    reader.read()
    (reader.folder / "log").rename(reader.folder / "log.1")
    reader.write("new\n")
    assert reader.read() == ["new"]
    (reader.folder / "log.1").rename(reader.folder / "log.2.gz")
    assert reader.read() == [] and reader.last.gone == 0 and not reader.last.faults


def test_a_file_that_was_copied_and_truncated_is_read_once(reader: Reader) -> None:
    reader.write(LINES)
    reader.read()
    reader.write("late\n")
    shutil.copy(reader.folder / "log", reader.folder / "log.1")
    os.truncate(reader.folder / "log", 0)
    reader.write("new\n")
    assert sorted(reader.read()) == ["late", "new"] and reader.last.gone == 0
    reader.write("newer\n")
    assert reader.read() == ["newer"]


def test_a_file_that_was_copied_and_truncated_and_has_grown_past_its_place(reader: Reader) -> None:
    reader.write("short one, but long enough to be known by its first bytes, as lines are\n")
    reader.read()
    shutil.copy(reader.folder / "log", reader.folder / "log.1")
    os.truncate(reader.folder / "log", 0)
    reader.write(LINES)
    assert len(reader.read()) == 50 and reader.last.gone == 0


def test_a_truncated_file_begins_anew(reader: Reader) -> None:
    reader.write(LINES)
    reader.read()
    (reader.folder / "log").write_text("anew\n")
    assert reader.read() == ["anew"] and reader.last.gone == 1
    assert reader.read() == [] and reader.last.gone == 0


def test_another_file_under_an_old_inode_is_another_one(reader: Reader) -> None:
    reader.write(LINES)
    reader.read()
    with (reader.folder / "log").open("r+") as file:  # the inode stays
        file.write("X" * 100)
    assert len(reader.read()) == 47


@pytest.mark.parametrize("seed", range(6))
def test_whatever_rotates_each_line_is_read_once(reader: Reader, seed: int) -> None:
    rng, written, seen = random.Random(seed), [], []
    for number in range(150):
        match rng.choice(["write"] * 4 + ["half", "rename", "copy", "read", "read"]):
            case "write":
                lines = [f"{number}.{n} {'x' * rng.randrange(200)}" for n in range(rng.randrange(1, 5))]
                written += lines
                reader.write("".join(f"{line}\n" for line in lines))
            case "half":
                line = f"{number} {'y' * 100}"
                written.append(line)
                reader.write(line[:50])
                seen += reader.read()
                reader.write(f"{line[50:]}\n")
            case "rename" if (reader.folder / "log").exists():
                seen += reader.read()
                (reader.folder / "log").rename(reader.folder / f"log.{number}")
            case "copy" if (reader.folder / "log").exists():
                shutil.copy(reader.folder / "log", reader.folder / f"log.{number}")
                os.truncate(reader.folder / "log", 0)
                seen += reader.read()
            case _:
                seen += reader.read()
    seen += reader.read()
    assert sorted(seen) == sorted(written)
    assert reader.last.gone == 0


def test_long_lines_are_cut_and_counted(reader: Reader) -> None:
    long = "x" * 1_000_000
    reader.write(f"a\n{long}\nb\n{'y' * (MAX_LINE_BYTES + 1)}\nc\n")
    lines = reader.read()
    assert [line[0] for line in lines] == list("axbyc") and max(map(len, lines)) == MAX_LINE_BYTES
    assert reader.last.oversized == 2


def test_a_long_line_that_is_not_over_is_not_read_again(reader: Reader) -> None:
    reader.write("a\n" + "x" * 1_000_000)
    assert [line[0] for line in reader.read()] == ["a", "x"]
    reader.write("y" * 1_000_000)
    assert reader.read() == [] and reader.last.read_bytes <= 1_000_000 + MAX_LINE_BYTES
    reader.write("z\nb\n")
    assert reader.read() == ["b"]


def test_what_one_run_does_not_read_the_next_one_does(reader: Reader) -> None:
    reader.write(LINES)
    reader.write("other file\n" * 10, "log.2")
    seen: list[str] = []
    for _ in range(30):
        seen += reader.read(most_bytes=300)
        assert reader.last.read_bytes <= 300
    assert len(seen) == 60 and reader.last.left_bytes == 0


def test_nothing_but_plain_files_is_read(reader: Reader, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret\n")
    (tmp_path / "log.link").symlink_to(secret)
    os.mkfifo(tmp_path / "log.pipe")
    (tmp_path / "log.folder").mkdir()
    assert reader.read() == []
    assert reader.last.faults == [f"log.{each}: no plain file" for each in ("folder", "link", "pipe")]


def test_a_log_in_whose_place_a_link_stands_is_told_of_and_not_forgotten(reader: Reader, tmp_path: Path) -> None:
    reader.write(LINES)
    reader.read()
    (tmp_path / "log").rename(tmp_path / "aside")
    (tmp_path / "log").symlink_to("/nonexistent")
    reader.write("other\n", "log.2")
    assert reader.read() == ["other"] and reader.last.faults == ["log: no plain file"] and reader.last.gone == 0
    (tmp_path / "aside").rename(tmp_path / "log")
    reader.write("more\n")
    assert reader.read() == ["more"] and reader.last.faults == []


@pytest.mark.parametrize("fault", [False, True])
def test_a_file_that_was_cut_after_a_quiet_run_is_told_of(reader: Reader, fault: bool) -> None:
    reader.write(LINES)
    reader.read()
    assert reader.read() == [] and reader.places[0].is_idle
    reader.write("Accepted password for the attacker\n")
    os.truncate(reader.folder / "log", 0)
    if fault:
        (reader.folder / "log.link").symlink_to("/nonexistent")
    assert reader.read() == [] and reader.last.gone == 1
    assert reader.read() == [] and reader.last.gone == 0


def test_old_files_are_left_out_of_a_window(reader: Reader, tmp_path: Path) -> None:
    reader.write("old\n", "log.1")
    os.utime(tmp_path / "log.1", (1000, 1000))
    reader.write("new\n")
    assert reader.read(since_s=2000.0) == ["new"]


def test_too_many_files_are_told_of(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "MAX_FILES", 3)
    for number in range(5):
        reader.write("x\n", f"log.{number}")
    assert len(reader.read()) == 3 and reader.last.faults == ["2 of 5 files were not read"]


def test_a_folder_that_is_empty_for_a_while_forgets_no_place(reader: Reader, tmp_path: Path) -> None:
    reader.write(LINES)
    reader.read()
    (tmp_path / "log").rename(tmp_path / "aside")
    assert reader.read() == [] and reader.last.faults == ["no file"]
    (tmp_path / "aside").rename(tmp_path / "log")
    reader.write("more\n")
    assert reader.read() == ["more"]


def test_it_stops(reader: Reader) -> None:
    reader.write(LINES)
    stop = Stop()
    stop.is_set = True
    top = os.open(reader.folder, os.O_RDONLY)
    try:
        with pytest.raises(Stopped):
            list(Tail(top, "log*", [], stop, most_bytes=2**20).lines())
    finally:
        os.close(top)
