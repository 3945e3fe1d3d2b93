"""Dumps of databases as packed files, and the proof that one holds what it should. Here, those of SQLite."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

import msgspec

from handlers.kit.backups import SPACE_FACTOR, Draft, NotVerified
from handlers.kit.files import CHUNK_BYTES, chunks_of, open_file
from handlers.kit.packing import BROKEN, packed, unpacked
from handlers.kit.points import point
from handlers.kit.sessions import quoted
from handlers.kit.sqlite import STOP_EVERY_STEPS, SqliteSession
from handlers.kit.threads import Stop, Stopped

COPY, CHECK = "copy.db", "check.db"  # beside the packed file, until it is verified
MAX_NAMED: Final = 3  # of tables that are not as they should be
_TABLES: Final = (
    "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    " AND sql NOT LIKE 'CREATE VIRTUAL %' ORDER BY name"  # its content is in tables of its own; its module may not be here
)

Fetch = Callable[[str], list[tuple[Any, ...]]]
Told = Callable[[int, int | None, str], None]  # a job's `progress`


class Content(Protocol):
    """What must come out of a packed file again."""

    @property
    def kind(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def content_sha256(self) -> str: ...
    @property
    def tables(self) -> dict[str, int]: ...


class Packed(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes and digests of a packed file, and of its content."""

    bytes: int
    content_sha256: str
    compressed: int
    sha256: str


class Dump(Packed, frozen=True, kw_only=True):
    """A dump that was made: where, and what the database held at that moment."""

    kind: Literal["sqlite", "postgresql"]
    file: str
    taken: datetime
    tables: dict[str, int]
    versions: dict[str, str]


def pack(chunks: Iterable[bytes], draft: Draft, name: str, told: Callable[[int], None]) -> Packed:
    """Write the chunks to a packed file, synced, which has its name only if all of them came."""
    digest, size_bytes = hashlib.sha256(), 0
    with draft.part(name) as part:
        with packed("zstd", part) as sink:
            for chunk in chunks:
                digest.update(chunk)
                sink.write(chunk)
                size_bytes += len(chunk)
                told(size_bytes)
        part.publish(replace=True)
        return Packed(bytes=size_bytes, content_sha256=digest.hexdigest(), compressed=part.size_bytes, sha256=part.sha256)


def content_of(folder: int, dump: Content, stop: Stop) -> Iterator[bytes]:
    """Yield what a packed file holds.

    Raises:
        NotVerified: it is not what was packed.
        Stopped: the job was cancelled.
    """
    file = open_file(folder, dump.file)
    if file is None:
        raise NotVerified(f"{dump.file} is missing")
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with unpacked("zstd", file) as reader:
            while size_bytes <= dump.bytes and (chunk := reader.read(CHUNK_BYTES)):
                stop.check()
                digest.update(chunk)
                size_bytes += len(chunk)
                yield chunk
    except BROKEN as error:
        raise NotVerified(f"{dump.file} cannot be unpacked: {type(error).__name__}") from error
    finally:
        os.close(file)
    if (size_bytes, digest.hexdigest()) != (dump.bytes, dump.content_sha256):
        raise NotVerified(f"{dump.file} does not hold what was packed")


def compare(found: Mapping[str, int], wanted: Mapping[str, int]) -> None:
    """Return if there are the tables and rows that should be.

    Raises:
        NotVerified: there are not.
    """
    wrong = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if wrong:
        shown = ", ".join(f"{name} has {found.get(name)} rows, not {wanted.get(name)}" for name in wrong[:MAX_NAMED])
        raise NotVerified(f"{len(wrong)} of {len(wanted)} tables are not as they were: {shown}")


# --- SQLite ----------------------------------------------------------------------------------------------------------------


def dump_sqlite(session: SqliteSession, draft: Draft, name: str, told: Told, stop: Stop) -> Dump:
    """Copy a SQLite file as it is at one moment, whoever writes to it meanwhile, and pack the copy.

    Raises:
        OSError: from the disk; also ENOSPC when there is too little space for two copies.
        Stopped: the job was cancelled.
    """
    copy = f"{draft.path}/{COPY}"

    def step(done: int, total: int) -> None:
        stop.check()
        told(done, total, "bytes copied")

    with session.transaction():
        taken = datetime.now(UTC)
        tables = _count(session.fetch, stop)  # the first read fixes the moment
        ((size_bytes,),) = session.fetch("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        draft.check_space(2 * SPACE_FACTOR * size_bytes)
        point("backup.before-dump")
        session.copy_to(copy, step)
    file = os.open(COPY, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=draft.folder)
    try:
        found = pack(chunks_of(file, stop), draft, f"{name}.sqlite.zst", lambda done: told(done, size_bytes, "bytes packed"))
    finally:
        os.close(file)
    os.unlink(COPY, dir_fd=draft.folder)
    point("backup.after-dump")
    versions = {"sqlite": sqlite3.sqlite_version}
    return Dump(
        kind="sqlite", file=f"{name}.sqlite.zst", taken=taken, tables=tables, versions=versions, **msgspec.structs.asdict(found)
    )


def restore_sqlite(folder: int, dump: Content, scratch: str, told: Told, stop: Stop) -> int:
    """Unpack a SQLite file into an empty folder, check it, count its rows, and return how many foreign keys lead nowhere.

    SQLite lets a database have such keys, so they are no fault of its backup.

    Raises:
        NotVerified: the file is damaged, or does not have the rows that it should.
        Stopped: the job was cancelled.
    """
    path = f"{scratch}/{CHECK}"
    with open(path, "xb") as out:
        for chunk in content_of(folder, dump, stop):
            out.write(chunk)
    # It has no journal, and a file with write-ahead logging would want one.
    with contextlib.closing(sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)) as connection:
        connection.set_progress_handler(lambda: stop.is_set, STOP_EVERY_STEPS)
        fetch: Fetch = lambda statement: connection.execute(statement).fetchall()  # noqa: E731
        try:
            if fetch("PRAGMA integrity_check(1)") != [("ok",)]:
                raise NotVerified("the integrity check of SQLite fails")
            compare(_count(fetch, stop, partial(_tell_tables, told, len(dump.tables))), dump.tables)
            violations = len(fetch("PRAGMA foreign_key_check"))
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise Stopped from None
            raise NotVerified(f"SQLite cannot read it: {getattr(error, 'sqlite_errorname', type(error).__name__)}") from error
    os.unlink(path)
    return violations


def _count(fetch: Fetch, stop: Stop, told: Callable[[int], None] = lambda done: None) -> dict[str, int]:
    """Return the rows of each table."""
    found: dict[str, int] = {}
    for (name,) in fetch(_TABLES):
        stop.check()
        ((found[name],),) = fetch(f"SELECT count(*) FROM {quoted(name)}")  # noqa: S608 -- quoted
        told(len(found))
    return found


def _tell_tables(told: Told, total: int, done: int) -> None:
    told(done, total, "tables verified")
