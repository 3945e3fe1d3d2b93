"""Handlers that move data between databases and files: `export-csv`, `import-data`."""

from __future__ import annotations

import contextlib
from functools import partial

import msgspec

from handlers.contracts.data import ExportCsv, Exported, ImportData, Imported
from handlers.contracts.types import Compression
from handlers.kit.databases import opened, snapshot
from handlers.kit.files import Writer, source, target
from handlers.kit.loading import Load
from handlers.kit.packing import Sink, packed
from handlers.kit.points import point
from handlers.kit.records import Records
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.settings import Settings, current
from handlers.kit.tables import CsvText
from handlers.kit.threads import Stop, in_thread
from runtime import Backoff, Dead, Job, handler


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the sidecar of an import's report when the job is dead: a replay reads no result there, and imports."""

    rejected: int


@handler(ExportCsv, timeout_s=1800, retry=Backoff(base_s=30, cap_s=600, attempts=4), result_ttl_s=RESULT_TTL_S)
async def export_csv(message: ExportCsv, job: Job) -> Exported:
    """Return when the file is complete under its name, with its sidecar beside it; before that, the name does not exist.

    May be repeated: a repeat finds the sidecar and does nothing. After an interrupted run it begins again with a new snapshot,
    since a file shows one moment of the database. Equal rows make equal bytes.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-query`, `bad-rows`, `too-large`, `output-exists`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `auth-failed`, `out-of-space`, `extra-missing`; or
            another run is not over: `locked`.
        TemporaryFailure, sqlite3.Error, OSError: a failure that may pass; retried by the policy.
    """
    return await in_thread(partial(_export, message, job, current()))


def _export(message: ExportCsv, job: Job, settings: Settings, stop: Stop) -> Exported:
    with target(settings, message.to) as place, Writer(place, job.work, stop, overwrite=message.overwrite) as out:
        done = out.already(Exported)
        if done is not None:
            return done
        text = CsvText(
            delimiter="\t" if message.delimiter == "tab" else message.delimiter,
            null=message.null,
            formulas=message.formulas,
            encoding=message.encoding,
        )
        with snapshot(settings, message.source, stop) as found, _sink(out, message.compress) as sink:
            sink.write(text.head(_headers(message, found.columns)))
            for chunk in text.chunks(found.rows):
                stop.check()
                if text.rows > message.max_rows:
                    raise Dead(f"more than {message.max_rows} rows", "too-large")
                sink.write(chunk)
                job.progress(text.rows, found.total and max(found.total, text.rows), "rows")
        result = Exported(
            path=message.to,
            rows=text.rows,
            bytes=out.size_bytes,
            sha256=out.sha256,
            columns=len(found.columns),
            escaped=text.escaped,
        )
        point("export.before-publish")
        out.finish(result)
        point("export.after-publish")
        return result


def _sink(out: Writer, compress: Compression) -> contextlib.AbstractContextManager[Sink]:
    return contextlib.nullcontext(out) if compress == "none" else packed(compress, out)


def _headers(message: ExportCsv, columns: list[str]) -> list[str]:
    unknown = sorted(set(message.headers) - set(columns))
    if unknown:
        raise Dead(f"`headers` names {len(unknown)} columns that are not in the source", "bad-query")
    return [message.headers.get(name, name) for name in columns]


@handler(ImportData, timeout_s=3600, retry=Backoff(base_s=30, cap_s=600, attempts=6), result_ttl_s=RESULT_TTL_S)
async def import_data(message: ImportData, job: Job) -> Imported:
    """Return when the rows of the file are in the table.

    May be repeated: each batch of rows is committed together with the place in the file where the next one begins, and a repeat
    goes on there. `replace` is one transaction, and begins again.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-payload` (the first line), `bad-query`, `bad-rows`, `too-large`,
            `input-missing`, `input-changed`, `output-exists`. Of `insert` and `upsert`, the batches before that stay.
        Snooze: the settings or a disk must be fixed: `alias-missing`, `auth-failed`, `out-of-space`, `extra-missing`; or another
            run is not over: `locked`.
        TemporaryFailure, sqlite3.Error, OSError: a failure that may pass; retried by the policy.
    """
    return await in_thread(partial(_import, message, job, current()))


def _import(message: ImportData, job: Job, settings: Settings, stop: Stop) -> Imported:
    if not settings.database(message.db).allows(message.table, write=True):
        raise Dead(
            f"databases.{message.db} does not allow writing {message.table}; hint: `writable` in its settings", "bad-query"
        )
    with contextlib.ExitStack() as stack:
        report = _report(stack, message, job, settings, stop)
        done = report.already(Imported) if report else None
        if done is not None:
            return done
        records = Records(
            stack.enter_context(source(settings, message.file, job.attempt)),
            [column.source or column.to for column in message.columns],
            stop,
            layout=message.format,
            compress=message.compress,
            delimiter="\t" if message.delimiter == "tab" else message.delimiter,
        )
        session = stack.enter_context(opened(settings, message.db, stop, writes=True))
        load = Load(message, session, records, work=job.work, born_s=job.born, progress=job.progress)
        try:
            result = load.run()
        except Dead as error:
            if report and error.code == "bad-rows":
                _write_report(report, load, Refused(rejected=len(load.rejected)))
            raise
        if report:
            _write_report(report, load, result)
        return result


def _report(stack: contextlib.ExitStack, message: ImportData, job: Job, settings: Settings, stop: Stop) -> Writer | None:
    """Return the unfinished file for the rows that are refused; its name is taken before a row is written."""
    if message.bad_rows.to is None:
        return None
    place = stack.enter_context(target(settings, message.bad_rows.to))
    return stack.enter_context(Writer(place, job.work, stop))


def _write_report(report: Writer, load: Load, result: Imported | Refused) -> None:
    for row in load.rejected:
        report.write(msgspec.json.encode({"line": row.line, "column": row.column, "reason": row.reason}) + b"\n")
    point("import.before-report")
    report.finish(result)
    point("import.after-report")
