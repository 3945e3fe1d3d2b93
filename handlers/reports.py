"""Handlers that write for people: `export-pdf` and `generate-reports`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from handlers.contracts.deliveries import ReportFile
from handlers.contracts.reports import ExportPdf, GenerateReports, PdfExported, ReportsGenerated
from handlers.contracts.windows import Span
from handlers.kit.blocks import Document, Sheet, Table
from handlers.kit.deliveries import check_delivery, check_scheduled, deliver
from handlers.kit.documents import Filler, load, read_file
from handlers.kit.failures import unlogged
from handlers.kit.files import Writer, target
from handlers.kit.folders import folder
from handlers.kit.pages import pdf
from handlers.kit.points import point
from handlers.kit.reports import csv_files, filled, in_words, json_file, read_tables
from handlers.kit.results import RESULT_TTL_S
from handlers.kit.settings import Settings, at_start, current
from handlers.kit.threads import Stop
from handlers.kit.web import page
from runtime import Backoff, Dead, Finding, Job, Schedule, Snooze, handler

MEMORY_BYTES: Final = 768 * 2**20  # a guess: a child that has drawn 20,000 rows has 91 MiB in all (`bench/handlers_pdf.py`)
MAX_DATA_BYTES: Final = 10 * 2**20  # of `data_file`: a guess
# Of its schedules:
JITTER_S: Final = 120.0  # a guess: not all at once
EXPIRES_S: Final = 7 * 86_400.0  # a guess: who was away for a week wants the last report
CAP: Final = 7  # a guess: a week of daily reports is made up for


@handler(
    ExportPdf,
    timeout_s=300,
    retry=Backoff(base_s=10, cap_s=120, attempts=3),
    runs="process",
    memory_bytes=MEMORY_BYTES,
    result_ttl_s=RESULT_TTL_S,
)
def export_pdf(message: ExportPdf, job: Job) -> PdfExported:
    """Return when the file is complete under its name, with its sidecar beside it; before that, the name does not exist.

    Runs in a child process, which is killed at the deadline, by a cancel, or when it takes too much memory. May be repeated: a
    repeat finds the sidecar and does nothing. Equal values make equal bytes.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-query`, `bad-rows`, `template-error`, `too-large`, `input-missing`,
            `output-exists`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not over: `locked`.
        Retry, TemporaryFailure, sqlite3.Error, OSError, MemoryError: retried by the policy.
    """
    settings, stop = current(), Stop()
    with target(settings, message.to) as place, Writer(place, job.work, stop, overwrite=message.overwrite) as out:
        done = out.already(PdfExported)
        if done is not None:
            return done
        document = _document(message, settings, job.attempt, stop)
        laid = pdf(document, lambda path: read_file(settings, path, job.attempt), _progress(document, job))
        point("pdf-laid")
        out.write(laid.data)
        result = PdfExported(
            path=message.to,
            pages=laid.pages,
            bytes=out.size_bytes,
            sha256=out.sha256,
            missing_glyphs=laid.missing_glyphs,
        )
        point("pdf-written")
        out.finish(result)
        point("pdf-finished")
        return result


def _document(message: ExportPdf, settings: Settings, attempt: int, stop: Stop) -> Document:
    definition = load(settings, message.document)
    if definition.queries:
        raise Dead(f"documents.{message.document} is a report; hint: generate-reports", "template-error")
    data = message.data if message.data_file is None else _data(read_file(settings, message.data_file, attempt, MAX_DATA_BYTES))
    tables = read_tables(settings, message.tables, stop)
    return Filler(message.document, data, tables, message.lang).document(definition, message.title, message.page)


def _data(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise Dead("`data_file` must hold one JSON object", "bad-payload") from None


def _progress(document: Document, job: Job) -> Callable[[int], None]:
    """Return what is told of rows that are drawn, and tells people."""
    total = sum(sheet.count for place, sheet in document.tables.items() if isinstance(document.blocks[place], Table))
    done = 0

    def drawn(rows: int) -> None:
        nonlocal done
        done += rows
        job.progress(done, total, "rows laid out")

    return drawn


# --- reports -------------------------------------------------------------------------------------------------------------


def SCHEDULES() -> list[Schedule]:
    """Return a schedule for each of `reports` in the settings that is enabled.

    Raises:
        ConfigError: the settings cannot be used, or a report has no root with mode `write`.
    """
    settings = at_start()
    return [_schedule(alias, settings) for alias, report in settings.reports.items() if report.enabled]


def CHECKS() -> list[Finding]:
    """Return a finding for each report that is sent again and again: whether its definition can be read."""
    with unlogged():
        settings = current()
        return [_checked(report.report, settings) for report in settings.reports.values()]


def _checked(name: str, settings: Settings) -> Finding:
    try:
        load(settings, name)
    except (Dead, Snooze) as error:
        return Finding("error", str(error))
    return Finding("ok", f"reports: the definition of {name} can be read")


def _schedule(alias: str, settings: Settings) -> Schedule:
    report = settings.reports[alias]
    settings.check_root(f"reports.{alias}", report.to, "write")
    check_scheduled(f"reports.{alias}", settings, report.deliver)
    options: dict[str, Any] = {"tz": report.tz, "missed": "all", "cap": CAP, "jitter_s": JITTER_S, "expires_s": EXPIRES_S}
    return Schedule(f"generate-reports.{alias}", report.cron, report.job(), **options)


@handler(
    GenerateReports,
    timeout_s=900,
    retry=Backoff(base_s=120, cap_s=1800, attempts=4),
    runs="process",
    memory_bytes=MEMORY_BYTES,
    result_ttl_s=RESULT_TTL_S,
)
def generate_reports(message: GenerateReports, job: Job) -> ReportsGenerated:
    """Return when the report is in its folder, `report/window/work` below the root `to`, and the job that tells people is sent.

    Runs in a child process, as `export_pdf` does. May be repeated: a repeat finds the folder. People are told once: that job is
    sent in the step in which this one is done. The window counts from when the job was born. No rows is a report that says so.

    Raises:
        Dead: the job cannot succeed: `bad-path`, `bad-query`, `bad-rows`, `template-error`, `too-large`, `input-missing`,
            `output-exists`.
        Snooze: the settings or the disk must be fixed: `alias-missing`, `out-of-space`; or another run is not over: `locked`.
        Retry, TemporaryFailure, sqlite3.Error, OSError, MemoryError: retried by the policy.
    """
    settings, stop = current(), Stop()
    check_delivery(settings, message.deliver)
    span = message.window.at(job.born)
    path = f"{message.to}:{message.report}/{span.name}/{job.work}"
    with folder(settings, path, job.work, stop) as out:
        done = out.already(ReportsGenerated)
        if done is None:
            definition = load(settings, message.report)
            document, tables = filled(message, definition, span, settings, stop)
            for name, data in _files(message, document, tables, span, settings, job):
                out.write(name, data)
                point("report-file")
            files = [ReportFile(name=file.name, bytes=file.bytes, sha256=file.sha256) for file in out.files]
            rows = sum(sheet.count for sheet in tables.values())
            done = out.finish(ReportsGenerated(title=document.title, folder=path, files=files, rows=rows), job)
    delivered = deliver(job, message.deliver, done.title, f"{in_words(span)}, {done.rows} rows", done.folder, done.files)
    return msgspec.structs.replace(done, delivered=delivered)


def _files(
    message: GenerateReports, document: Document, tables: dict[str, Sheet], span: Span, settings: Settings, job: Job
) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the report, by their names."""

    def picture(path: str) -> bytes:
        return read_file(settings, path, job.attempt)

    for format_ in message.formats:
        match format_:
            case "pdf":
                yield "report.pdf", pdf(document, picture, _progress(document, job)).data
            case "html":
                yield "report.html", page(document, picture)
            case "csv":
                yield from csv_files(tables)
            case "json":
                yield "report.json", json_file(message, document.title, span, tables)
