"""Files of arrays from strangers: what is read of them is bounded, and nothing in them is executed or believed."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.contracts.training import NpzFile
from handlers.kit import examples
from handlers.kit.examples import Examples, Wanted, labels_of, read_examples
from handlers.kit.settings import current
from handlers.kit.threads import Stop
from runtime import Dead
from tests.handlers.conftest import Configure
from tests.handlers.disks import Disk
from tests.handlers.learning import disk, settings

__all__ = ["disk"]  # a fixture

X, Y = np.arange(12.0).reshape(4, 3), np.array([0, 1, 0, 1])


def read(**fields: Any) -> Examples:
    wanted = Wanted(**{"target": "y", "task": "classification", **fields})
    return read_examples(current(), NpzFile(path="db:d.npz"), wanted, 3, Stop())


def code_of(**fields: Any) -> str:
    with pytest.raises(Dead) as caught:
        read(**fields)
    return caught.value.code


def raw(array: Any, **options: Any) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), **options)
    return out.getvalue()


def write(disk: Disk, packing: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    path = disk.folder / "db" / "d.npz"
    with zipfile.ZipFile(path, "w", packing) as file:
        for name, data in {"X": raw(X), "y": raw(Y), **members}.items():
            file.writestr(f"{name}.npy", data)
    return path


def header(shape: str, descr: str = "'<f8'", order: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("kind", ["<f8", "<f4", ">f8", "<f2", "<i8", "|u1", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_numbers_are_read_as_numpy_reads_them(disk: Disk, kind: str, order: Any) -> None:
    array = np.array(X, dtype=kind, order=order)
    write(disk, zipfile.ZIP_DEFLATED, X=raw(array))
    found = read()
    assert np.array_equal(np.column_stack(found.columns), array.astype(float))
    assert (found.rows, [feature.name for feature in found.features]) == (4, ["x0", "x1", "x2"])
    assert np.array_equal(np.load(disk.folder / "db" / "d.npz")["X"], array)


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        ([0, 1, 0, 1], [0, 1, 0, 1]),
        ([0.0, 1.0, 0.0, 1.0], [0, 1, 0, 1]),
        ([0.5, 1.0, 0.5, 1.0], ["0.5", "1", "0.5", "1"]),
        (["a", "b", "a", "Ä"], ["a", "b", "a", "Ä"]),
        ([True, False, True, False], [True, False, True, False]),
    ],
)
def test_labels_keep_what_they_are(disk: Disk, labels: Any, wanted: Any) -> None:
    write(disk, y=raw(labels))
    assert read().target.tolist() == wanted


def test_labels_of_two_kinds_are_texts() -> None:
    assert labels_of([1, "a", 2.0], "classification").tolist() == ["1", "a", "2"]


HOSTILE: list[tuple[str, Callable[[], dict[str, bytes]], str]] = [
    ("no array", lambda: {"X": b"not an array"}, "bad-rows"),
    ("empty", lambda: {"X": b""}, "bad-rows"),
    ("a huge shape", lambda: {"X": header("(2**60, 3)") + bytes(96)}, "bad-rows"),
    ("a huger shape", lambda: {"X": header("(1152921504606846976, 3)") + bytes(96)}, "too-large"),
    ("a negative shape", lambda: {"X": header("(-4, -3)") + bytes(96)}, "bad-rows"),
    ("more than it says", lambda: {"X": raw(X) + b"x"}, "bad-rows"),
    ("less than it says", lambda: {"X": raw(X)[:-1]}, "bad-rows"),
    ("objects", lambda: {"X": header("(4, 3)", "'|O'") + bytes(96)}, "bad-rows"),
    ("fields", lambda: {"X": header("(4,)", "[('a', '<f8'), ('b', '<f8'), ('c', '<f8')]") + bytes(96)}, "bad-rows"),
    ("code", lambda: {"X": header("__import__('os').system('true')") + bytes(96)}, "bad-rows"),
    ("a deep header", lambda: {"X": header("(" * 200 + ")" * 200) + bytes(96)}, "bad-rows"),
    ("complex numbers", lambda: {"X": raw(X.astype(complex))}, "bad-rows"),
    ("dates", lambda: {"X": raw(X.astype("M8[s]"))}, "bad-rows"),
    ("texts", lambda: {"X": raw(X.astype(str))}, "bad-rows"),
    ("one dimension", lambda: {"X": raw(X.ravel())}, "bad-rows"),
    ("three dimensions", lambda: {"X": raw(X[None])}, "bad-rows"),
    ("a version of tomorrow", lambda: {"X": b"\x93NUMPY\x09\x00" + raw(X)[8:]}, "bad-rows"),
    ("version 3", lambda: {"X": raw(X, version=(3, 0))}, "bad-rows"),
    ("infinity", lambda: {"X": raw(np.where(X > 5, np.inf, X))}, "bad-rows"),
    ("other rows", lambda: {"y": raw(Y[:3])}, "bad-rows"),
    ("no rows", lambda: {"X": raw(X[:0]), "y": raw(Y[:0])}, "bad-rows"),
    ("no columns", lambda: {"X": raw(X[:, :0])}, "too-large"),
    ("a label that is none", lambda: {"y": raw([0, 1, np.inf, 1])}, "bad-rows"),
    ("long labels", lambda: {"y": raw(["a", "b" * 201, "a", "b"])}, "bad-rows"),
    ("objects as labels", lambda: {"y": header("(4,)", "'|O'") + bytes(32)}, "bad-rows"),
    ("too many arrays", lambda: {f"a{place}": b"" for place in range(101)}, "too-large"),
]


@pytest.mark.parametrize(("members", "code"), [each[1:] for each in HOSTILE], ids=[each[0] for each in HOSTILE])
def test_an_array_that_is_not_what_it_says_is_refused(disk: Disk, members: Callable[[], dict[str, bytes]], code: str) -> None:
    write(disk, **members())
    assert code_of() == code


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bomb_is_refused_before_it_is_unpacked(disk: Disk, packing: int) -> None:
    rows = 4 * 2**20
    write(disk, packing, X=header(f"({rows}, 1)") + bytes(8 * rows))
    assert code_of() == "too-large"


def test_a_bomb_that_lies_about_its_size_is_not_unpacked_further(disk: Disk) -> None:
    """The sizes in a zip are only said: an array may unpack to more than that, and is cut there."""
    path = write(disk, zipfile.ZIP_DEFLATED, X=header("(4, 3)") + bytes(50_000_000))
    packed = bytearray(path.read_bytes())
    said = (50_000_000 + 128).to_bytes(4, "little")
    assert packed.count(said) == 2
    path.write_bytes(bytes(packed).replace(said, (96 + 128).to_bytes(4, "little")))
    assert code_of() == "bad-rows"


def test_a_bomb_whose_checksum_is_that_of_what_it_says_takes_no_memory(disk: Disk) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 3))
    whole = raw(rows)
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = pack.compress(whole) + pack.compress(bytes(200 * 2**20)) + pack.flush()
    path = write(disk, X=bomb, y=raw(np.arange(1000) % 2))
    said, lies = (struct.pack("<3I", zlib.crc32(each), len(bomb), len(each)) for each in (bomb, whole))
    data = bytearray(path.read_bytes().replace(said, lies))
    struct.pack_into("<H", data, 8, zipfile.ZIP_DEFLATED)  # X is the first one, in the file and in its list
    struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 10, zipfile.ZIP_DEFLATED)
    path.write_bytes(data)
    tracemalloc.start()
    try:
        assert (read().columns[0] == rows[:, 0]).all()
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_unpacked_in_bounded_steps_is_refused(disk: Disk, packing: int) -> None:
    write(disk, packing)
    assert code_of() == "bad-rows"


def test_small_numbers_are_counted_not_their_bytes(disk: Disk, configure: Configure) -> None:
    """Each of them becomes eight bytes."""
    configure(settings(disk, max_cells="1000"))
    write(disk, X=raw(np.zeros((4, 300), np.uint8)))
    assert code_of() == "too-large"
    write(disk, X=raw(np.zeros((4, 250), np.uint8)))
    assert read().rows == 4


def test_more_than_the_settings_allow_is_refused(disk: Disk, configure: Configure) -> None:
    configure(settings(disk, max_cells="20"))
    write(disk, X=raw(np.zeros((50, 60))), y=raw(np.arange(50)))
    assert code_of() == "too-large"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[::-1],
        lambda data: data.replace(b"NUMPY", b"NUMPX"),
        lambda data: data.replace(b"PK\x03\x04", b"PK\x03\x05"),
        lambda data: data[:200] + bytes([data[200] ^ 1]) + data[201:],
        lambda data: data.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),  # encrypted
        lambda data: data.replace(b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x00\x00\x63\x00"),
    ],
)
def test_a_file_that_is_damaged_is_refused(disk: Disk, spoil: Callable[[bytes], bytes]) -> None:
    path = write(disk)
    before = path.read_bytes()
    path.write_bytes(spoil(before))
    assert path.read_bytes() != before
    assert code_of() == "bad-rows"


def test_what_is_asked_for_must_be_there(disk: Disk) -> None:
    write(disk)
    assert code_of(target="z") == "bad-payload"
    assert code_of(features=["x3"]) == "bad-payload"
    assert code_of(features=["X0"]) == "bad-payload"
    assert code_of(texts=frozenset({"x0"})) == "bad-payload"
    write(disk, y=raw(["a", "b", "a", "b"]))
    assert code_of(task="regression") == "bad-rows"
    write(disk, y=raw([1.0, np.nan, 1.0, 1.0]))
    assert code_of(task="regression") == code_of(task="classification") == "bad-rows"
    write(disk)
    assert read(features=["x2", "x0"], task="classification").columns[0].tolist() == [2.0, 5.0, 8.0, 11.0]


def test_the_digest_is_that_of_the_file(disk: Disk) -> None:
    import hashlib

    assert hashlib.sha256(write(disk).read_bytes()).hexdigest() == read().sha256


def test_there_are_at_most_so_many_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "MAX_CLASSES", 3)
    assert len(labels_of(["a", "b", "c"], "classification")) == 3
    with pytest.raises(Dead, match="at most 3 different labels"):
        labels_of(["a", "b", "c", "d"], "classification")
