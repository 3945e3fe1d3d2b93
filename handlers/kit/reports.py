"""What a report consists of: the rows of its queries about a stretch of time, and the files that show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import UTC, timedelta
from itertools import islice
from typing import Any, Final

import msgspec

from handlers.contracts.reports import GenerateReports
from handlers.contracts.sources import Query, Source
from handlers.contracts.windows import Span
from handlers.kit.blocks import Definition, Document, Sheet
from handlers.kit.databases import opened, rows_of
from handlers.kit.documents import Filler
from handlers.kit.sessions import Session
from handlers.kit.settings import Settings
from handlers.kit.tables import CsvText
from handlers.kit.threads import Stop
from runtime import Dead

MAX_ROWS: Final = 50_000  # of one table: a thousand pages and more


def read_tables(settings: Settings, sources: Mapping[str, Source], stop: Stop) -> dict[str, Sheet]:
    """Return the rows of each source; those of one database are of one moment.

    Raises:
        Dead: `bad-query` or `bad-rows`, as for `snapshot`; a source has too many rows, `too-large`.
        Snooze, TemporaryFailure, sqlite3.Error: as for `snapshot`.
    """
    sessions: dict[str, Session] = {}
    found: dict[str, Sheet] = {}
    with ExitStack() as stack:
        for name, source in sources.items():
            session = sessions.get(source.db)
            if session is None:
                session = sessions[source.db] = stack.enter_context(opened(settings, source.db, stop))
                stack.enter_context(session.transaction())
            with rows_of(session, source, settings.database(source.db)) as rows:
                found[name] = Sheet(rows.columns, list(islice(rows.rows, MAX_ROWS + 1)))
            if found[name].count > MAX_ROWS:
                raise Dead(f"{name} must have at most {MAX_ROWS} rows", "too-large")
    return found


def filled(
    message: GenerateReports, definition: Definition, span: Span, settings: Settings, stop: Stop
) -> tuple[Document, dict[str, Sheet]]:
    """Return the report, and the tables that it shows.

    Raises:
        Dead: a variable, a table or a column is missing, `template-error`; else as for `read_tables`.
        Snooze, TemporaryFailure, sqlite3.Error: as for `read_tables`.
    """
    values = {"params": message.params, "window": described(span)}
    asking = Filler(message.report, values, {}, message.lang)
    sources = {
        name: Query(db=query.db, query=query.query, params=asking.params(query.params, f"queries.{name}"))
        for name, query in definition.queries.items()
    }
    tables = read_tables(settings, sources, stop)
    return Filler(message.report, values, tables, message.lang).document(definition, page=message.page), tables


def described(span: Span) -> dict[str, str]:
    """Return a stretch of time as templates and queries see it: from `begin` up to `end` in UTC, and its days in its zone."""
    return {
        "name": span.name,
        "begin": f"{span.begin.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "end": f"{span.end.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}",
        "first_day": span.begin.date().isoformat(),
        "last_day": (span.end - timedelta(microseconds=1)).date().isoformat(),
    }


def in_words(span: Span) -> str:
    """Return a stretch of time as a mail says it."""
    return f"{span.begin:%Y-%m-%d %H:%M %Z} to {span.end:%Y-%m-%d %H:%M %Z}"


def in_days(span: Span) -> str:
    """Return the days of a stretch of time, as a title says them."""
    days = described(span)
    return days["first_day"] if days["first_day"] == days["last_day"] else f"{days['first_day']} to {days['last_day']}"


def csv_files(tables: Mapping[str, Sheet]) -> Iterator[tuple[str, bytes]]:
    """Yield a CSV file for each table, by its name, in which no text is a formula."""
    for name, sheet in tables.items():
        text = CsvText(delimiter=",", null="", formulas="escape", encoding="utf-8")
        yield f"{name}.csv", text.head(sheet.columns) + b"".join(text.chunks(sheet.rows))


def json_file(message: GenerateReports, title: str, span: Span, tables: Mapping[str, Sheet]) -> bytes:
    """Return all tables as JSON: numbers stay numbers, but for exact decimals, which are texts."""
    content: dict[str, Any] = {"report": message.report, "title": title, "window": described(span), "tables": {}}
    for name, sheet in tables.items():
        content["tables"][name] = {"columns": sheet.columns, "rows": sheet.rows}
    return msgspec.json.encode(content, enc_hook=str) + b"\n"
