"""Compressed streams: gzip by the standard library, zstd by the package zstandard, without which everything else works."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Generator
from typing import IO, Final, Literal, Protocol, cast

from handlers.kit.failures import missing_package

try:
    import zstandard
except ImportError:  # only jobs that ask for zstd need it
    zstandard = None

Packing = Literal["gzip", "zstd"]

SUFFIXES: Final[dict[Packing, str]] = {"gzip": ".gz", "zstd": ".zst"}
GZIP_LEVEL: Final = 6  # that of gzip itself
ZSTD_LEVEL: Final = 3  # that of zstd itself
# What a packed file may raise that is damaged. One that only ends too early raises nothing as zstd: compare what it holds.
BROKEN: Final[tuple[type[Exception], ...]] = (
    *(EOFError, zlib.error, gzip.BadGzipFile),
    *((zstandard.ZstdError,) if zstandard is not None else ()),
)


class Sink(Protocol):
    """Where bytes go: a file, or what compresses for one."""

    def write(self, data: bytes, /) -> int: ...


class Reader(Protocol):
    """Where bytes come from: nothing at the end."""

    def read(self, size: int, /) -> bytes: ...


class FileSink(Sink, Protocol):
    """A sink that `gzip` and `zstandard` take for a file."""

    def flush(self) -> None: ...


def check(packing: str) -> None:
    """Return if this process can pack and unpack so.

    Raises:
        Snooze: zstandard is not installed; `extra-missing`.
    """
    if packing == "zstd" and zstandard is None:
        raise missing_package("zstandard")


@contextlib.contextmanager
def packed(packing: Packing, out: FileSink) -> Generator[Sink]:
    """Yield a sink that compresses into `out`; no time is in it, so that equal input makes equal bytes.

    Raises:
        Snooze: as for `check`.
    """
    check(packing)
    if packing == "gzip" or zstandard is None:
        with gzip.GzipFile("", "wb", GZIP_LEVEL, out, mtime=0) as packer:
            yield packer
        return
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
    with compressor.stream_writer(cast("IO[bytes]", out), closefd=False) as packer:
        yield packer


@contextlib.contextmanager
def unpacked(packing: Packing, file: int) -> Generator[Reader]:
    """Yield the content of a packed file from its beginning; the descriptor stays open.

    Raises:
        Snooze: as for `check`.
    """
    check(packing)
    with open(file, "rb", closefd=False) as raw:
        raw.seek(0)
        if packing == "gzip" or zstandard is None:
            with gzip.GzipFile(fileobj=raw) as reader:
                yield reader
            return
        with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True, closefd=False) as reader:
            yield reader
