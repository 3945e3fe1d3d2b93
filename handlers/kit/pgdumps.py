"""Dumps of PostgreSQL databases by `pg_dump`, and the proof: `pg_restore` into a scratch database, where the rows are counted."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote, urlsplit

from msgspec import structs

from handlers.kit.backups import SPACE_FACTOR, Draft, Manifest, NotVerified
from handlers.kit.databases import opened
from handlers.kit.dumps import Content, Dump, Told, compare, content_of, pack
from handlers.kit.failures import TemporaryFailure
from handlers.kit.pgtools import Tool, ToolFailed, address_of, find_tool, password_of
from handlers.kit.points import point
from handlers.kit.sections import Backup, Database
from handlers.kit.sessions import Session, quoted
from handlers.kit.settings import Settings
from handlers.kit.threads import Stop
from runtime import JobsError

log = logging.getLogger("handlers.backups")

SCRATCH: Final = "backup_check"
ABANDONED_S: Final = 86_400.0  # a guess: far longer than any check takes
LOCK_WAIT_S: Final = 60  # a guess: for a table that somebody is altering
DROP_S: Final = 30  # a guess: the server only unlinks files
_SCRATCH_NAME: Final = re.compile(rf"{SCRATCH}_([0-9]{{10,}})_([a-z2-7]{{26}})")
_RESTORE: Final = (
    *("--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", "--no-comments", "--no-security-labels"),
    *(
        "--no-tablespaces",
        "--no-publications",
        "--no-subscriptions",
        "--no-password",
    ),  # a subscription would fetch from its source
)
# What `pg_dump` writes rows of. Those of a materialized view are made anew by a restore, and may be others by then.
_TABLES: Final = """
SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1
"""
_ROLE: Final = """
SELECT rolsuper OR pg_has_role(oid, 'pg_read_server_files', 'MEMBER') OR pg_has_role(oid, 'pg_write_server_files', 'MEMBER')
OR pg_has_role(oid, 'pg_execute_server_program', 'MEMBER'), rolcreatedb, pg_is_in_recovery()
FROM pg_roles WHERE rolname = current_user
"""


def dump_postgres(
    session: Session, settings: Settings, section: Backup, draft: Draft, previous: Manifest | None, told: Told, stop: Stop
) -> Dump:
    """Dump a database as it is at one moment, whoever writes to it meanwhile, and pack the dump.

    Raises:
        Dead: `pg_dump` is missing or older than the server; `tool-missing`.
        Snooze: an operator must act: `auth-failed`, `alias-missing`, `out-of-space`.
        TemporaryFailure: the connection was lost, or `pg_dump` failed.
        Stopped: the job was cancelled.
    """
    database = settings.database(section.db)
    if previous is not None:
        draft.check_space(SPACE_FACTOR * previous.compressed)
    with _moment(session) as moment:
        taken = datetime.now(UTC)
        ((number, server),) = session.fetch(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version')"
        )
        tool, version = find_tool("pg_dump", section.tools, number // 10_000)
        tables = _count(session, stop)
        command = [tool, "--format=custom", "--compress=0", f"--snapshot={moment}", f"--lock-wait-timeout={LOCK_WAIT_S}s"]
        command += ["--no-password", f"--dbname={address_of(database)}"]
        total = previous.bytes if previous is not None else None
        point("backup.before-dump")
        subject, name = f"databases.{section.db}", f"{section.db}.pgdump.zst"
        with Tool(command, password_of(subject, database), stop) as pg_dump:
            found = pack(_to_the_end(pg_dump, subject), draft, name, lambda done: told(done, total, "bytes packed"))
        point("backup.after-dump")
    versions = {"server": str(server), "pg_dump": version}
    return Dump(kind="postgresql", file=name, taken=taken, tables=tables, versions=versions, **structs.asdict(found))


@contextlib.contextmanager
def _moment(session: Session) -> Generator[str]:
    """Yield the name of a snapshot, in which the session reads, too.

    The session idles while the dump is made, and its connection may be lost for that; once the dump is there, it is not needed.
    """
    is_needed = True
    try:
        with session.transaction():
            session.execute("SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL statement_timeout = 0")
            ((moment,),) = session.fetch("SELECT pg_export_snapshot()")
            yield str(moment)
            is_needed = False
    except TemporaryFailure:
        if is_needed:
            raise


def _to_the_end(tool: Tool, subject: str) -> Iterator[bytes]:
    """Yield what a tool writes; at its end it must have ended well, so that nothing is taken for complete that is not."""
    yield from tool.output()
    try:
        tool.finish()
    except ToolFailed as error:
        raise error.outcome(subject) from error


def _count(session: Session, stop: Stop, told: Told = lambda done, total, text: None) -> dict[str, int]:
    """Return the rows of each table, by its quoted name."""
    names = [str(name) for (name,) in session.fetch(_TABLES)]
    found: dict[str, int] = {}
    for name in names:
        stop.check()
        ((found[name],),) = session.fetch(f"SELECT count(*) FROM ONLY {name}")  # noqa: S608 -- the server has quoted it
        told(len(found), len(names), "tables verified")
    return found


# --- the proof -------------------------------------------------------------------------------------------------------------


def read_back(folder: int, dump: Content, tools: str, stop: Stop) -> None:
    """Read a dump back, whatever its database; one of PostgreSQL is listed by `pg_restore`, and its tables are counted.

    Raises:
        NotVerified: the dump is damaged, or has fewer tables than it should.
        Dead: `pg_restore` is missing; `tool-missing`.
        Stopped: the job was cancelled.
    """
    if dump.kind == "sqlite":
        for _ in content_of(folder, dump, stop):
            pass
        return
    command = [find_tool("pg_restore", tools, 0)[0], "--list"]
    with tempfile.TemporaryFile() as listing:
        try:
            _feed(Tool(command, None, stop, feeds=listing), folder, dump, stop)
        except ToolFailed as error:
            raise NotVerified(str(error)) from error
        listing.seek(0)
        tables = sum(b" TABLE DATA " in line for line in listing)
    if tables < len(dump.tables):
        raise NotVerified(f"{dump.file} has {tables} tables, not {len(dump.tables)}")


def restore_postgres(settings: Settings, section: Backup, folder: int, dump: Content, work: str, told: Told, stop: Stop) -> str:
    """Restore a dump into a fresh scratch database and count the rows there; return why that was not done, where it may not be.

    Raises:
        NotVerified: the dump is damaged, cannot be restored, or does not have the rows that it should.
        Dead: `pg_restore` is missing or older than the server; `tool-missing`.
        Snooze: an operator must act: `auth-failed`, `alias-missing`, `out-of-space`.
        TemporaryFailure: the connection was lost.
        Stopped: the job was cancelled.
    """
    alias = section.scratch or section.db
    subject = f"databases.{alias}"
    with opened(settings, alias, stop, writes=True) as session:
        why = why_not_restored(session)
        if why:
            return why
        ((number,),) = session.fetch("SELECT current_setting('server_version_num')::int")
        tool, _ = find_tool("pg_restore", section.tools, number // 10_000)
        with _scratch(session, settings, alias, work, like_this=section.scratch is None) as database:
            command = [tool, *_RESTORE, f"--dbname={address_of(database)}"]
            with open(os.devnull, "wb") as nowhere:
                try:
                    _feed(Tool(command, password_of(subject, database), stop, feeds=nowhere), folder, dump, stop)
                except ToolFailed as error:
                    if error.fault == "denied":
                        return str(error)  # such as an extension that only a superuser may create
                    raise NotVerified(str(error)) if error.fault == "other" else error.outcome(subject) from error
            point("backup.after-restore")
            with opened(structs.replace(settings, databases={alias: database}), alias, stop) as restored:
                compare(_count(restored, stop, told), dump.tables)
    return ""


@contextlib.contextmanager
def _scratch(session: Session, settings: Settings, alias: str, work: str, *, like_this: bool) -> Generator[Database]:
    """Yield an empty database, which is gone at the end of the block; with `like_this` it sorts as the session's own does."""
    _sweep(session, work)
    name = f"{SCRATCH}_{int(time.time())}_{work}"
    point("backup.before-scratch")
    try:
        session.execute(f"CREATE DATABASE {quoted(name)} TEMPLATE template0{_locale_of(session) if like_this else ''}")
        point("backup.after-scratch")
        database = settings.database(alias)
        yield structs.replace(database, url=urlsplit(database.url)._replace(path=f"/{quote(name)}").geturl())
    finally:
        point("backup.before-drop")
        _drop(settings, alias, name)
        point("backup.after-drop")


def _feed(tool: Tool, folder: int, dump: Content, stop: Stop) -> None:
    """Have `pg_restore` read a dump, and read it to its end also where that needs only a part.

    Raises:
        NotVerified: the dump is damaged.
        ToolFailed: `pg_restore` has not ended well.
    """
    with tool:
        is_read = True
        for chunk in content_of(folder, dump, stop):
            is_read = is_read and tool.write(chunk)
        tool.finish()


def why_not_restored(session: Session) -> str:
    """Return why nothing may be restored by this role; empty if it may.

    A dump holds code of whoever may create in its database, such as functions of indexes; a restore runs it as this role.
    """
    ((is_mighty, may_create, is_standby),) = session.fetch(_ROLE)
    if is_standby:
        return "the server is a standby; hint: scratch = a database of another server"
    if is_mighty:
        return "the role may do too much: it is a superuser, or may use files or programs of the server"
    return "" if may_create else "the role may not create databases"


def _locale_of(session: Session) -> str:
    """Return the options for a database that encodes and sorts as the session's does."""
    ((encoding, *rules),) = session.fetch(
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = current_database()"
    )
    texts = [str(value).replace("'", "''") for value in (encoding, *rules)]
    return " ENCODING '{}' LC_COLLATE '{}' LC_CTYPE '{}'".format(*texts)


def _sweep(session: Session, work: str) -> None:
    """Drop the scratch databases that crashes left: ours, and those of others that are a day old."""
    found = session.fetch("SELECT datname::text FROM pg_database WHERE pg_get_userbyid(datdba) = current_user")
    for (name,) in found:
        ours = _SCRATCH_NAME.fullmatch(str(name))
        if ours and (ours[2] == work or int(ours[1]) < time.time() - ABANDONED_S):
            session.execute(f"DROP DATABASE IF EXISTS {quoted(str(name))} WITH (FORCE)")


def _drop(settings: Settings, alias: str, name: str) -> None:
    """Drop the scratch database, also where the job was cancelled; where that fails, the next run does it."""
    try:
        with opened(settings, alias, Stop(), writes=True) as session:
            session.execute(f"SET statement_timeout = '{DROP_S}s'")
            session.execute(f"DROP DATABASE IF EXISTS {quoted(name)} WITH (FORCE)")
    except (JobsError, TemporaryFailure) as error:
        log.warning("databases.%s: %s is left, and is dropped by a later run: %s", alias, name, error)
