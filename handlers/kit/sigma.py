"""Sigma rules over the lines of a run: each becomes one SELECT over a scratch database that can only be read by then.

Rules of correlation (`event_count`, `value_count`) count what their rules select in sliding windows, which go on in the next run.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec
import re2  # pyright: ignore[reportMissingTypeStubs]
import yaml
from sigma.backends.sqlite import sqliteBackend  # pyright: ignore[reportMissingTypeStubs]
from sigma.collection import SigmaCollection
from sigma.correlations import SigmaCorrelationRule
from sigma.exceptions import SigmaError
from sigma.rule import SigmaRule  # pyright: ignore[reportMissingTypeStubs]

from handlers.contracts.threats import LEVELS, Level, RuleFailed
from handlers.kit.detections import Hits, Meetings, Rate
from handlers.kit.failures import wait_for_operator
from handlers.kit.files import explained, open_below, open_file, open_root, parts_of
from handlers.kit.logs import Event, printable
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead

MAX_FILES: Final = 5000  # a guess; SigmaHQ has some 3500
MAX_FILE_BYTES: Final = 256 * 1024  # a guess: rules have one or two KiB
MAX_DEPTH: Final = 32  # of folders, and of YAML, a guess: far above what people write
MAX_NODES: Final = 50_000  # of the YAML of a file, a guess
MAX_LEAST: Final = 1000  # as for thresholds
MAX_GROUPS: Final = 10_000  # of a rule of correlation, a guess: there may be many rules
MAX_FINDINGS: Final = 1000  # of a rule in a run, a guess: it is not a good rule
MAX_TITLE_CHARS: Final = 80
RULE_S: Final = 60.0  # a guess: of each rule; a million lines are looked through in a second or two
RULES_S: Final = 300.0  # of all rules: a third of a job's timeout; what was read is committed in time
STEPS: Final = 100_000  # of SQLite's machine, some 1 ms, between two looks at the clock
BATCH: Final = 1000  # rows

_LEVELS: Final[dict[str, Level]] = {level: level for level in LEVELS}  # `informational` is low
# The columns that rules may name: those of SigmaHQ for web servers, and ours.
_TABLE: Final = (
    "CREATE TABLE kept (at REAL, source TEXT COLLATE NOCASE, host TEXT COLLATE NOCASE, program TEXT COLLATE NOCASE, "
    "message TEXT COLLATE NOCASE, user TEXT COLLATE NOCASE, src TEXT COLLATE NOCASE, method TEXT COLLATE NOCASE, "
    "target TEXT COLLATE NOCASE, stem TEXT COLLATE NOCASE, query TEXT COLLATE NOCASE, status INTEGER, "
    "referer TEXT COLLATE NOCASE, agent TEXT COLLATE NOCASE, raw TEXT COLLATE NOCASE)"
)
_VIEW: Final = (
    "CREATE VIEW lines AS SELECT rowid AS number, at, strftime('%Y-%m-%dT%H:%M:%fZ', at, 'unixepoch') AS timestamp, source, "
    "host, program, message, user, src AS src_ip, raw, src AS `c-ip`, user AS `cs-username`, method AS `cs-method`, "
    "target AS `cs-uri`, stem AS `cs-uri-stem`, query AS `cs-uri-query`, status AS `sc-status`, "
    "referer AS `cs-referer`, agent AS `cs-user-agent`, host AS `cs-host` FROM kept"
)
_INSERT: Final = "INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SUBJECT: Final = "coalesce(src_ip, user, host, source)"
_FUNCTIONS: Final = frozenset({"like", "glob", "regexp", "coalesce", "strftime", "min", "max", "count", "replace"})


class Correlation(msgspec.Struct, frozen=True):
    """So many events, or so many values of a field, in a time, of each group."""

    rules: list[str]
    groups: list[str]
    value: str
    least: int
    window_s: int


class Rule(msgspec.Struct, frozen=True):
    """A rule that can be run: what it selects, or what it counts."""

    name: str
    level: Level
    selects: str
    correlation: Correlation | None = None

    @property
    def window(self) -> str:
        """The name of what a rule of correlation remembers: another kind of it remembers something else."""
        return f"{'values' if self.correlation and self.correlation.value else 'events'}: {self.name}"


# --- reading ---------------------------------------------------------------------------------------------------------------


class Rules:
    """The rules of a folder: those that can be used, and why others cannot."""

    def __init__(self, scratch: Scratch) -> None:
        self.rules: list[Rule] = []
        self.failed: list[RuleFailed] = []
        self._scratch = scratch

    def fail(self, name: str, reason: object) -> None:
        """Note that a rule, or a file of rules, cannot be used."""
        self.failed.append(RuleFailed(rule=printable(name), reason=printable(str(reason))))

    def load(self, settings: Settings, alias: str) -> None:
        """Read all rules of a folder that the settings name.

        Raises:
            Dead: none of them can be used; `rule-error`.
            Snooze: the folder cannot be read; `alias-missing`.
        """
        found: list[Any] = []
        for name, text in _files(settings, alias):
            try:
                documents = safe_documents(text)
                collection = SigmaCollection.from_dicts(documents, collect_errors=True, resolve_references=False)
            except (
                ValueError,
                SigmaError,
                LookupError,
                TypeError,
                AttributeError,
                RecursionError,
            ) as error:  # pySigma's own, for odd documents
                self.fail(name, error)
                continue
            for rule in collection.rules:
                if rule.errors:
                    self.fail(f"{name}: {rule.title}", rule.errors[0])
                else:
                    found.append(rule)
        self._convert(found)
        if not self.rules:
            raise Dead(f"rules.{alias}: no rule can be used; {_first(self.failed)}", "rule-error")

    def _convert(self, found: Sequence[Any]) -> None:
        options: Any = {"fulltext_field": "raw", "table": "lines"}
        backend: Any = sqliteBackend(**options)
        selects: dict[str, list[str]] = {}
        quiet: set[str] = set()  # those that are only there to be counted
        correlations: list[Any] = [rule for rule in found if isinstance(rule, SigmaCorrelationRule)]
        for correlation in correlations:
            if not correlation.generate:
                quiet |= {reference.reference for reference in correlation.rules}
        for rule in found:
            if not isinstance(rule, SigmaRule):
                continue
            try:
                queries = [self._scratch.compiled(query) for query in backend.convert_rule(rule)]
            except (SigmaError, sqlite3.Error, re2_error, ValueError, TypeError, NotImplementedError) as error:
                self.fail(_title(rule), error)
                continue
            names = {each for each in (rule.name, str(rule.id) if rule.id else None) if each}
            for name in names:
                selects[name] = queries
            if not names & quiet:
                self.rules += [Rule(_title(rule), _level(rule), query) for query in queries]
        for rule in correlations:
            try:
                counted = _counted(rule, selects)
                self._scratch.compiled(counted.selects)
                if counted.name in (other.name for other in self.rules):
                    raise ValueError("another rule has the same title")
                self.rules.append(counted)
            except (ValueError, sqlite3.Error) as error:
                self.fail(_title(rule), error)


def _counted(rule: Any, selects: Mapping[str, list[str]]) -> Rule:
    kind, condition, names = rule.type.name.lower(), rule.condition, [each.reference for each in rule.rules]
    operator = getattr(getattr(condition, "op", None), "name", "").lower()
    if kind not in ("event_count", "value_count") or operator not in ("gt", "gte") or rule.aliases.aliases:
        raise ValueError("only event_count and value_count with gt or gte, and without aliases, can be used")
    missing = [name for name in names if name not in selects]
    if missing:
        raise ValueError(f"it refers to {missing[0]}, which cannot be used")
    least = int(condition.count) + (operator == "gt")
    if not 1 <= least <= MAX_LEAST or rule.timespan.seconds > 86_400:
        raise ValueError(f"must count at most {MAX_LEAST}, within a day")
    of: Any = condition.fieldref if kind == "value_count" else ""
    counted = Correlation(names, list(rule.group_by or ()), of if isinstance(of, str) else of[0], least, rule.timespan.seconds)
    fields = [*counted.groups, *([counted.value] if counted.value else [])]
    columns = ", ".join(["at", "number", *map(_quoted, fields)])
    union = " UNION ".join(f"SELECT {columns} FROM ({query})" for name in names for query in selects[name])  # noqa: S608 -- quoted
    return Rule(_title(rule), _level(rule), f"{union} ORDER BY at, number", counted)


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _title(rule: Any) -> str:
    return f"sigma: {printable(str(rule.title), MAX_TITLE_CHARS)}"


def _level(rule: Any) -> Level:
    return _LEVELS.get(rule.level.name.lower(), "low") if rule.level else "medium"


def _first(failed: Sequence[RuleFailed]) -> str:
    return f"{failed[0].rule}: {failed[0].reason}" if failed else "there is none"


def _files(settings: Settings, alias: str) -> Iterator[tuple[str, bytes]]:
    section = settings.rule_folder(alias)
    root = settings.root(section.root)
    with explained(section.root), open_root(section.root, root) as top:
        folders, count = [parts_of(section.folder)], 0
        while folders:
            parts = folders.pop()
            try:
                with open_below(top, parts) as folder:
                    entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in _scanned(folder))
                    for name, is_folder in entries:
                        if is_folder and len(parts) < MAX_DEPTH:
                            folders.append([*parts, name])
                        elif name.endswith((".yml", ".yaml")) and count < MAX_FILES:
                            count += 1
                            yield "/".join([*parts, name]), _content(folder, name)
            except FileNotFoundError as error:
                raise wait_for_operator(f"rules.{alias}", "alias-missing", error.strerror or "") from None


def _scanned(folder: int) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


def _content(folder: int, name: str) -> bytes:
    file = open_file(folder, name)
    if file is None:  # a link: it is refused as an empty file is
        return b""
    try:
        return os.read(file, MAX_FILE_BYTES + 1)
    finally:
        os.close(file)


def safe_documents(text: bytes) -> list[dict[str, Any]]:
    """Return the documents of a file of YAML, without any tag, alias or depth that could make much of little.

    Raises:
        ValueError: it is not such a file.
    """
    if not text:
        raise ValueError("must be a plain file, and not empty")
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"must have at most {MAX_FILE_BYTES} bytes")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    try:
        for number, event in enumerate(yaml.parse(text, loader)):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("must have no aliases (`*name`)")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH or number > MAX_NODES:
                raise ValueError(f"must have at most {MAX_NODES} values, {MAX_DEPTH} levels deep")
        documents = list(yaml.load_all(text, loader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:MAX_TITLE_CHARS]}") from None
    if not documents or not all(isinstance(document, dict) for document in documents):
        raise ValueError("must be rules")
    return documents


# --- running ---------------------------------------------------------------------------------------------------------------


class Scratch:
    """The lines of a run in a database of its own, on the disk and without a name. `add` all, then `run` rules."""

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._rows: list[tuple[Any, ...]] = []
        self._connection = sqlite3.connect("", isolation_level=None)
        self._connection.create_function("regexp", 2, _regexp, deterministic=True)
        for statement in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", _TABLE, _VIEW, "BEGIN"):
            self._connection.execute(statement).close()

    def close(self) -> None:
        """Forget all lines."""
        self._connection.close()

    def compiled(self, query: str) -> str:
        """Return a query of a rule, if SQLite takes it.

        Raises:
            sqlite3.Error: it does not: it names a field that no line has, or is too large.
        """
        self._connection.execute(f"EXPLAIN {query}").close()
        return query

    def add(self, source: str, event: Event, line: str) -> None:
        """Add a line. SQLite's LIKE ends at a NUL, so that it is written as an escape."""
        stem, _, query = event.target.partition("?")
        texts = (event.method, event.target, stem, query)
        row = (event.at, source, event.host, event.program, event.message, event.user, event.src, *texts)
        row = (*row, event.status or None, event.referer, event.agent, line)
        if "\x00" in line or "\\u0000" in line or "\\x00" in line:
            row = tuple(value.replace("\x00", "\\x00") if isinstance(value, str) else value for value in row)
        self._rows.append(tuple(value if value != "" else None for value in row))
        if len(self._rows) >= BATCH:
            self._flush()

    def _flush(self) -> None:
        self._connection.executemany(_INSERT, self._rows)
        self._rows.clear()

    def run(self, rules: Rules, windows: Mapping[str, Rate | Meetings], hits: Hits) -> None:
        """Run all rules; those that fail are noted in `rules`. `windows` are those of an earlier run, and then of this one."""
        self._flush()
        self._connection.execute("COMMIT")
        self._connection.set_authorizer(_only_reads)
        last_s = time.monotonic() + RULES_S
        for rule in rules.rules:
            self._stop.check()
            end_s = min(time.monotonic() + RULE_S, last_s)
            if end_s <= time.monotonic():
                rules.fail(rule.name, "was not run: the rules before it took too long")
                continue
            try:
                with self._limited(end_s):
                    self._run(rule, windows, hits)
            except (sqlite3.Error, re2_error) as error:
                self._stop.check()
                rules.fail(rule.name, "took too long" if "interrupt" in str(error) else error)

    @contextlib.contextmanager
    def _limited(self, end_s: float) -> Generator[None]:
        self._connection.set_progress_handler(lambda: self._stop.is_set or time.monotonic() > end_s, STEPS)
        try:
            yield
        finally:
            self._connection.set_progress_handler(None, 0)

    def _run(self, rule: Rule, windows: Mapping[str, Rate | Meetings], hits: Hits) -> None:
        if rule.correlation is not None:
            self._count(rule, rule.correlation, windows, hits)
            return
        grouped = f"SELECT {_SUBJECT}, min(at), max(at), count(*) FROM ({rule.selects}) GROUP BY 1 ORDER BY 4 DESC LIMIT ?"  # noqa: S608 -- of pySigma
        for subject, first, last, count in self._rows_of(grouped, (MAX_FINDINGS,)):
            hits.add(rule.name, str(subject), rule.level, first, last, count)

    def _count(self, rule: Rule, counted: Correlation, windows: Mapping[str, Rate | Meetings], hits: Hits) -> None:
        window = windows[rule.window]
        for at, _, *values in self._rows_of(rule.selects, ()):
            group = ", ".join(printable(str(value)) for value in values[: len(counted.groups)]) or "all"
            if any(value is None for value in values):
                continue  # a line without the field is in no group
            if isinstance(window, Rate):
                window.add(group, at)
                first = window.begin(group, at, counted.least)
            else:
                first = window.add(group, printable(str(values[-1])), at)
            if first is not None:
                hits.add(rule.name, group, rule.level, min(first, at), max(first, at), 1, counted.least - 1)

    def _rows_of(self, query: str, values: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        with contextlib.closing(self._connection.execute(query, values)) as cursor:
            yield from cursor


def windows_of(rules: Iterable[Rule]) -> dict[str, Rate | Meetings]:
    """Return an empty window for each rule that counts, by the window's name."""
    counted = {rule.window: rule.correlation for rule in rules if rule.correlation is not None}
    return {name: (Meetings if each.value else Rate)(each.least, each.window_s, MAX_GROUPS) for name, each in counted.items()}


def _only_reads(action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
    if action == sqlite3.SQLITE_SELECT or (action == sqlite3.SQLITE_READ and first in ("kept", "lines")):
        return sqlite3.SQLITE_OK
    if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS:
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_DENY


_library: Any = re2  # it has no types
re2_error: type[Exception] = _library.error


@lru_cache(maxsize=1000)
def _compiled(pattern: str) -> Callable[[str], Any]:
    options = _library.Options()
    options.log_errors = False
    return _library.compile(pattern, options).search


def _regexp(pattern: str, value: object) -> bool | None:
    return None if value is None else _compiled(pattern)(str(value)) is not None
