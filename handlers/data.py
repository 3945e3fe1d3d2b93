"""Handlers that move data between databases and files: `export-csv`."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Generator
from functools import partial
from typing import Final, Protocol

from handlers.contracts.data import ExportCsv, Exported
from handlers.kit.databases import snapshot
from handlers.kit.files import Writer, target
from handlers.kit.settings import Settings, current
from handlers.kit.tables import CsvText
from handlers.kit.threads import Stop, in_thread
from runtime import Backoff, Dead, Job, handler

GZIP_LEVEL: Final = 6  # that of gzip itself


@handler(ExportCsv, timeout_s=1800, retry=Backoff(base_s=30, cap_s=600, attempts=4))
async def export_csv(message: ExportCsv, job: Job) -> Exported:
    """Return when the file is complete under its name, with its sidecar beside it; before that, the name does not exist.

    May be repeated: a repeat finds the sidecar and does nothing. After an interrupted run it begins again with a new snapshot,
    since a file shows one moment of the database. Equal rows make equal bytes. There is no `job.progress` yet.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-query`, `bad-rows`, `too-large`, `output-exists`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not over: `locked`.
        sqlite3.Error, OSError: a failure that may pass; retried by the policy.
    """
    return await in_thread(partial(_export, message, job.work, current()))


def _export(message: ExportCsv, work: str, settings: Settings, stop: Stop) -> Exported:
    with target(settings, message.to) as place, Writer(place, work, stop, overwrite=message.overwrite) as out:
        done = out.already(Exported)
        if done is not None:
            return done
        text = CsvText(
            delimiter="\t" if message.delimiter == "tab" else message.delimiter,
            null=message.null,
            formulas=message.formulas,
            encoding=message.encoding,
        )
        with snapshot(settings, message.source, stop) as found, _compressed(out, message.compress) as sink:
            sink.write(text.head(_headers(message, found.columns)))
            for chunk in text.chunks(found.rows):
                stop.check()
                if text.rows > message.max_rows:
                    raise Dead(f"more than {message.max_rows} rows", "too-large")
                sink.write(chunk)
        result = Exported(
            path=message.to,
            rows=text.rows,
            bytes=out.size_bytes,
            sha256=out.sha256,
            columns=len(found.columns),
            escaped=text.escaped,
        )
        out.finish(result)
        return result


def _headers(message: ExportCsv, columns: list[str]) -> list[str]:
    unknown = sorted(set(message.headers) - set(columns))
    if unknown:
        raise Dead(f"`headers` names {len(unknown)} columns that are not in the source", "bad-query")
    return [message.headers.get(name, name) for name in columns]


class _Sink(Protocol):
    """What both a `Writer` and a `GzipFile` are to the export."""

    def write(self, data: bytes, /) -> int: ...


@contextlib.contextmanager
def _compressed(out: Writer, compress: str) -> Generator[_Sink]:
    """Yield what to write to; the gzip header has no time in it, so that equal rows make equal bytes."""
    if compress == "none":
        yield out
        return
    with gzip.GzipFile("", "wb", GZIP_LEVEL, out, mtime=0) as packer:
        yield packer
