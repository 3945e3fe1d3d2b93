"""Recipients of a campaign: read from a payload or a file, checked and told apart, in constant memory however many there are."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, BinaryIO, Final, Self

import msgspec

from handlers.contracts.email import (
    MAX_ROW_BYTES,
    MAX_ROWS,
    MAX_SLICE_BYTES,
    SLICE_ROWS,
    Recipient,
    RecipientFile,
    RecipientSlice,
    SendBulkEmail,
)
from handlers.contracts.types import MAX_ADDRESS_CHARS, is_address, is_line
from handlers.kit.failures import BadRow
from handlers.kit.files import source
from handlers.kit.letters import plain_address
from handlers.kit.rates import rate_of
from handlers.kit.sections import Sender
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import Dead, Job

MAX_SLICES: Final = 100  # as many as a job hands on
MAX_BAD: Final = 0.05  # of all rows, a guess: a typing error is one row, a wrong file is all of them
SLICE_S: Final = 48 * 3600.0  # a guess: what waits for its turn for 72 h in all is dead, and others use the same bounds
SAMPLE: Final = 100  # a guess: so many of the first rows are rendered before anything is sent
MAX_PROBLEMS: Final = 20  # a guess: enough to see what is wrong, and a result is small
REPORT_EVERY: Final = 1000  # rows, some 20 ms
CACHE_KIB: Final = 16 * 1024  # a guess: of the addresses seen; SQLite keeps the others in a temporary file
BOM: Final = b"\xef\xbb\xbf"
_PLACE: Final = re.compile(r"`\$[^`]*`(?![\s\S])")
_ORDINARY: Final = re.compile(r"[A-Za-z0-9_+-]+(?:\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+")


class Row(msgspec.Struct, frozen=True, gc=False):
    """A recipient, and which of its slice it is."""

    at: int
    address: str
    params: dict[str, Any]


class Batch(msgspec.Struct, kw_only=True):
    """Recipients that one job sends to itself: `rows` of the `count` that its slice has, the first of which is `first`.

    `digest` is of what they were read from: with another one, states of an earlier attempt say nothing.
    """

    rows: list[Row]
    count: int
    first: int = 0
    digest: bytes
    suppressed: int = 0
    duplicates: int = 0
    bad: int = 0
    problems: list[str] = []


class Plan(msgspec.Struct, kw_only=True):
    """A file of recipients, read to its end."""

    sha256: str
    slices: list[RecipientSlice]
    duplicates: int
    bad: int
    problems: list[str]


class Reader:
    """Reads recipients for a job; blocks, so it runs in a thread.

    Each method raises:
        Dead: a file is not what it should be, `bad-rows`, `too-large`, `input-missing`; may not be read by this sender,
            `bad-path`; or is another one by now, `input-changed`.
        Retry: a file is not there yet.
        Snooze: the settings must be fixed; `alias-missing`.
        Stopped: the job was cancelled.
    """

    def __init__(
        self, message: SendBulkEmail, job: Job, settings: Settings, sender: Sender, try_out: Callable[[Row], object], stop: Stop
    ) -> None:
        self._message = message
        self._job = job
        self._settings = settings
        self._sender = sender
        self._try_out = try_out
        self._stop = stop

    def read(self) -> Batch | Plan:
        """Return the recipients; of a file with more of them than a slice has, what its slices are."""
        match self._message.recipients:
            case RecipientSlice() as part:
                batch = self._slice(part)
                self._try_first(batch.rows)
            case RecipientFile() as file:
                plan = self._plan(file)
                if len(plan.slices) != 1:
                    return plan
                batch = self._slice(plan.slices[0])
                batch.duplicates, batch.bad, batch.problems = plan.duplicates, plan.bad, plan.problems
            case listed:
                batch = self._listed(listed)
        self._suppress(batch)
        return batch

    def _allowed(self, path: str) -> str:
        root = path.partition(":")[0]
        if root not in self._sender.lists:
            hint = f"hint: lists = ['{root}'] in its settings"
            raise Dead(f"senders.{self._message.sender} may not read recipients from roots.{root}; {hint}", "bad-path")
        return path

    def _listed(self, recipients: list[Recipient]) -> Batch:
        with Sieve(self._try_out) as sieve:
            rows = [Row(at, each.address, each.params) for at, each in enumerate(recipients) if sieve.passes(each, at + 1)]
            sieve.check(len(recipients))
        return Batch(
            rows=rows,
            count=len(recipients),
            digest=hashlib.sha256(msgspec.json.encode(recipients)).digest(),
            duplicates=sieve.duplicates,
            bad=sieve.bad,
            problems=sieve.problems,
        )

    def _plan(self, file: RecipientFile) -> Plan:
        with (
            source(self._settings, self._allowed(file.path), self._job.attempt) as descriptor,
            open(descriptor, "rb", closefd=False) as opened,
            Sieve(self._try_out) as sieve,
        ):
            size_bytes = opened.seek(0, io.SEEK_END)
            opened.seek(0)
            head = next(records(opened, "csv"), b"") if file.format == "csv" else b""
            cut = _Cutter(file, head, self._slice_rows())
            decode = decoder_of(file.format, head)
            total = hashlib.sha256(head)
            for record in records(opened, file.format):
                total.update(record)
                is_row = bool(record.strip())
                is_kept = is_row and sieve.passes_record(record, decode, cut.rows + 1)
                cut.add(record, is_row=is_row, is_kept=is_kept)
                if cut.rows % REPORT_EVERY == 0:
                    self._stop.check()
                    self._job.progress(cut.at, size_bytes, f"{cut.rows} rows read")
            sieve.check(cut.rows)
        slices = cut.finish()
        return Plan(sha256=total.hexdigest(), slices=slices, duplicates=sieve.duplicates, bad=sieve.bad, problems=sieve.problems)

    def _slice_rows(self) -> int:
        server = self._settings.server(self._sender.smtp)
        return max(1, int(min(SLICE_ROWS, SLICE_S * rate_of(self._sender, server, self._message.per_second))))

    def _slice(self, part: RecipientSlice) -> Batch:
        with (
            source(self._settings, self._allowed(part.path), self._job.attempt) as descriptor,
            open(descriptor, "rb", closefd=False) as opened,
        ):
            head = opened.read(part.head_bytes)
            opened.seek(part.begin)
            body = opened.read(part.end - part.begin)
        digest = hashlib.sha256(head + body)
        if digest.hexdigest() != part.sha256:
            raise Dead(f"{part.path} was changed since the job began", "input-changed")
        decode = decoder_of(part.format, head)
        found = [record for record in records(io.BytesIO(body), part.format) if record.strip()]
        if len(found) != part.rows:
            raise Dead(f"{part.path}: the slice has {len(found)} rows, and should have {part.rows}", "input-changed")
        rows = list[Row]()
        for at, record in enumerate(found):
            if not (at // 8 < len(part.skip) and part.skip[at // 8] >> at % 8 & 1):
                recipient = decode(record)
                rows.append(Row(at, recipient.address, recipient.params))
        return Batch(rows=rows, count=part.rows, first=part.first, digest=digest.digest())

    def _try_first(self, rows: list[Row]) -> None:
        """Return if the template fits the first rows of a slice: since the plan, it may have been changed."""
        problems = list[str]()
        for row in rows[:SAMPLE]:
            try:
                self._try_out(row)
            except Dead as error:
                problems.append(str(error))
        if len(problems) > len(rows[:SAMPLE]) * MAX_BAD:
            text = f"the template fails on {len(problems)} of the first {len(rows[:SAMPLE])} rows: {problems[0]}"
            raise Dead(text, "bad-rows")

    def _suppress(self, batch: Batch) -> None:
        """Take out whom the file of suppressed addresses names."""
        if self._message.suppress is None:
            return
        ours = {key_of(row.address): row.at for row in batch.rows}
        found = set[int]()
        with (
            source(self._settings, self._allowed(self._message.suppress), self._job.attempt) as descriptor,
            open(descriptor, "rb", closefd=False) as opened,
        ):
            for number, line in enumerate(records(opened, "lines")):
                if number % REPORT_EVERY == 0:
                    self._stop.check()
                text = line.removeprefix(BOM).decode("utf-8", "replace").strip()
                found.add(ours.get(_key_or_text(text), -1))
        batch.rows = [row for row in batch.rows if row.at not in found]
        batch.suppressed = len(found - {-1})


class Sieve:
    """Tells rows that are recipients from those that are not, and from one more of the same address."""

    def __init__(self, try_out: Callable[[Row], object]) -> None:
        self.bad = 0
        self.duplicates = 0
        self.problems: list[str] = []
        self._try_out = try_out
        self._tried = 0
        self._failed = 0
        self._seen = sqlite3.connect("", isolation_level=None)  # a temporary file, gone with the connection

    def __enter__(self) -> Self:
        self._seen.execute("PRAGMA journal_mode = OFF")
        self._seen.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        self._seen.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._seen.execute("BEGIN")
        return self

    def __exit__(self, *_: object) -> None:
        self._seen.close()

    def passes_record(self, record: bytes, decode: Callable[[bytes], Recipient], number: int) -> bool:
        """Return whether a row of a file is a recipient that was not seen before."""
        try:
            recipient = decode(record)
        except BadRow as error:
            return self._refuse(number, str(error))
        return self.passes(recipient, number)

    def passes(self, recipient: Recipient, number: int) -> bool:
        """Return whether it is one that mail can be sent to, was not seen before, and has what the template needs."""
        try:
            key = key_of(recipient.address)
        except ValueError as error:
            return self._refuse(number, str(error))
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        with closing(self._seen.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,))) as done:
            if not done.rowcount:
                self.duplicates += 1
                return False
        if self._tried < SAMPLE:
            self._tried += 1
            try:
                self._try_out(Row(number - 1, recipient.address, recipient.params))
            except Dead as error:
                self._failed += 1
                return self._refuse(number, str(error))
        return True

    def check(self, rows: int) -> None:
        """Return if few rows are bad.

        Raises:
            Dead: too many are; `bad-rows`.
        """
        if self.bad > rows * MAX_BAD or self._failed > self._tried * MAX_BAD:
            text = f"{self.bad} of {rows} rows are bad, nothing was sent: {'; '.join(self.problems[:5])}"
            raise Dead(text, "bad-rows")

    def _refuse(self, number: int, why: str) -> bool:
        self.bad += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"row {number}: {why}"[:150])
        return False


class _Cutter:
    """Cuts a file into slices as its records go by."""

    def __init__(self, file: RecipientFile, head: bytes, slice_rows: int) -> None:
        self.rows = 0
        self.at = len(head)
        self._file = file
        self._head = head
        self._slice_rows = slice_rows
        self._slices: list[RecipientSlice] = []
        self._begin_slice()

    def _begin_slice(self) -> None:
        self._begin, self._first = self.at, self.rows
        self._digest = hashlib.sha256(self._head)
        self._skip = bytearray(SLICE_ROWS // 8)

    def add(self, record: bytes, *, is_row: bool, is_kept: bool) -> None:
        """Take the next record.

        Raises:
            Dead: the file has too many rows or bytes; `too-large`.
        """
        if self.rows - self._first >= self._slice_rows or self.at + len(record) - self._begin > MAX_SLICE_BYTES:
            self._end_slice()
        self._digest.update(record)
        self.at += len(record)
        if is_row:
            place = self.rows - self._first
            self.rows += 1
            self._skip[place // 8] |= (not is_kept) << place % 8
        if self.rows > MAX_ROWS or len(self._slices) >= MAX_SLICES:
            slices = f"{MAX_SLICES} slices of {self._slice_rows} rows and {MAX_SLICE_BYTES} bytes"
            raise Dead(f"must have at most {MAX_ROWS} rows, and {slices}", "too-large")

    def finish(self) -> list[RecipientSlice]:
        """Return the slices."""
        self._end_slice()
        return self._slices

    def _end_slice(self) -> None:
        if self.rows == self._first:
            self._begin_slice()
            return
        self._slices.append(
            RecipientSlice(
                path=self._file.path,
                format=self._file.format,
                head_bytes=len(self._head),
                begin=self._begin,
                end=self.at,
                first=self._first,
                rows=self.rows - self._first,
                sha256=self._digest.hexdigest(),
                skip=bytes(self._skip).rstrip(b"\0"),
            )
        )
        self._begin_slice()


# --- rows of files -------------------------------------------------------------------------------------------------------


def records(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """Yield the records of a file with their line ends; one of CSV may have several lines.

    Raises:
        Dead: one is longer than `MAX_ROW_BYTES`; `too-large`.
    """
    while record := file.readline(MAX_ROW_BYTES + 1):
        while kind == "csv" and record.count(b'"') % 2 and len(record) <= MAX_ROW_BYTES:
            line = file.readline(MAX_ROW_BYTES + 1)
            if not line:
                break
            record += line
        if len(record) > MAX_ROW_BYTES:
            raise Dead(f"a row has more than {MAX_ROW_BYTES} bytes; hint: a quote that is not closed", "too-large")
        yield record


def decoder_of(kind: str, head: bytes) -> Callable[[bytes], Recipient]:
    """Return what makes a recipient of a row, or raises BadRow.

    Raises:
        Dead: the first line of a CSV file does not name its columns; `bad-rows`.
    """
    if kind == "jsonl":
        return _of_json
    try:
        columns = _cells(head.removeprefix(BOM))
    except BadRow as error:
        raise Dead(f"the first line: {error}", "bad-rows") from None
    if "address" not in columns or len(set(columns)) != len(columns) or not all(name and is_line(name) for name in columns):
        raise Dead("the first line must name the columns, each once, and one of them `address`", "bad-rows")
    place = columns.index("address")

    def of_csv(record: bytes) -> Recipient:
        cells = _cells(record)
        if len(cells) != len(columns):
            raise BadRow(f"{len(cells)} cells, where the first line has {len(columns)}")
        address = cells[place]
        if not is_address(address) or len(address) > MAX_ADDRESS_CHARS:
            raise BadRow("`address` must be one mail address")
        params = {name: cell for name, cell in zip(columns, cells, strict=True) if name != "address"}
        try:
            return Recipient(address=address, params=params)
        except ValueError as error:
            raise BadRow(str(error)) from None

    return of_csv


def _cells(record: bytes) -> list[str]:
    try:
        return next(csv.reader([record.decode()], strict=True), list[str]())
    except UnicodeDecodeError:
        raise BadRow("not UTF-8") from None
    except csv.Error as error:
        raise BadRow(f"not CSV: {error}") from None


def _of_json(record: bytes) -> Recipient:
    try:
        return msgspec.json.decode(record.removeprefix(BOM), type=Recipient)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))  # the rest of its text may show names that the row has made up
        raise BadRow(f"does not fit{f' at {place[0]}' if place else ''}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRow("not JSON") from None


def key_of(address: str) -> str:
    """Return what two addresses of one mailbox have in common: the case of letters makes no other one, in practice.

    Raises:
        ValueError: it is not one plain address.
    """
    return (address if _ORDINARY.fullmatch(address) else plain_address(address)).lower()


def _key_or_text(text: str) -> str:
    try:
        return key_of(text)
    except ValueError:
        return text.lower()
