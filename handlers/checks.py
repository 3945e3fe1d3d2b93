"""What `doctor --handlers` asks of the shipped handlers: each alias of their settings is tried, and nothing is left behind.

No mail is sent, and nothing is posted: a receiver is only looked for where a connection says nothing to anybody.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import smtplib
import sqlite3
import ssl
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final

from handlers.kit.crm import MAX_FILE_BYTES, read_resource
from handlers.kit.databases import opened
from handlers.kit.failures import TemporaryFailure, unlogged
from handlers.kit.files import open_root
from handlers.kit.http import check_url
from handlers.kit.models import current_models
from handlers.kit.pgtools import find_tool
from handlers.kit.sections import Backup, Channel, Crm, Database, Root, Sender, Smtp, read_secret
from handlers.kit.settings import Settings, current
from handlers.kit.threads import Stop
from runtime import ConfigError, Finding, JobsError

CONNECT_S: Final = 10.0  # a guess: within a data centre a connection takes ms
TOOLS: Final = ("pg_dump", "pg_restore")

# What trying an alias may raise, where the alias is at fault or what it leads to.
_FAULTS: Final = (JobsError, TemporaryFailure, ValueError, OSError, sqlite3.Error, smtplib.SMTPException)


def CHECKS() -> list[Finding]:
    """Return a finding for each alias of the settings."""
    with unlogged():
        return [_tried(subject, check) for subject, check in _checks(current())]


def _tried(subject: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding("ok", f"{subject}: {check()}")
    except _FAULTS as error:
        text = (error.strerror if isinstance(error, OSError) else "") or str(error) or type(error).__name__
        code, _, rest = text.partition(": ")
        return Finding("error", f"{rest} ({code})" if rest.startswith(subject) else f"{subject}: {text}")


def _checks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    for alias, root in settings.roots.items():
        yield f"roots.{alias}", partial(_root, alias, root)
    for alias, smtp in settings.smtp.items():
        yield f"smtp.{alias}", partial(_mail_server, smtp)
    for alias, sender in settings.senders.items():
        yield f"senders.{alias}", partial(_sender, sender, settings)
    for alias, database in settings.databases.items():
        yield f"databases.{alias}", partial(_database, alias, database, settings)
    for alias, channel in settings.channels.items():
        yield f"channels.{alias}", partial(_channel, channel)
    for alias, crm in settings.crm.items():
        yield f"crm.{alias}", partial(_crm, f"crm.{alias}", crm, settings)
    for alias, backup in settings.backups.items():
        yield f"backups.{alias}", partial(_backup, backup, settings)
    if settings.templates:
        yield "templates", partial(_templates, settings.templates.path)
    if settings.models:
        yield "models", partial(_models, settings)


def _root(alias: str, root: Root) -> str:
    """Write a file and delete it, where jobs may write."""
    with open_root(alias, root) as folder:
        if not root.allows("write"):
            os.listdir(folder)
            return f"{root.path} can be read"
        name = f".check-{secrets.token_hex(8)}"
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder))
        os.unlink(name, dir_fd=folder)
    return f"{root.path} can be written, {shutil.disk_usage(root.path).free / 2**30:.1f} GiB are free"


def _mail_server(smtp: Smtp) -> str:
    """Log in, and say goodbye."""
    place, trust = smtp.endpoint, ssl.create_default_context()
    with contextlib.ExitStack() as stack:
        if place.scheme == "smtps":
            server: smtplib.SMTP = smtplib.SMTP_SSL(place.host, place.port, timeout=CONNECT_S, context=trust)
        else:
            server = smtplib.SMTP(place.host, place.port, timeout=CONNECT_S)
        stack.enter_context(server)
        if place.scheme == "smtp+starttls":
            server.starttls(context=trust)
        password = smtp.read_password()
        if password is not None:
            server.login(place.user, password)
        server.ehlo_or_helo_if_needed()
    return f"{place.host}:{place.port} lets us in"


def _sender(sender: Sender, settings: Settings) -> str:
    settings.server(sender.smtp)
    for root in {*sender.attach, *sender.lists}:
        settings.root(root)
    if sender.unsubscribe_key:
        read_secret(sender.unsubscribe_key)
    return sender.address


def _database(alias: str, database: Database, settings: Settings) -> str:
    """Connect, and look for each table that payloads may name."""
    if database.queries:
        os.listdir(database.queries)
    with opened(settings, alias, Stop(), writes=bool(database.writable)) as session:
        tables = {name for name in (*database.tables, *database.writable) if name != "*"}
        missing = sorted(name for name in tables if not session.columns(name))
        if missing:
            raise ConfigError(f"no table {', '.join(missing)}")
        ((version,),) = session.fetch("SELECT sqlite_version()" if session.dialect == "sqlite" else "SHOW server_version")
    return f"{'SQLite' if session.dialect == 'sqlite' else 'PostgreSQL'} {version}"


def _channel(channel: Channel) -> str:
    if channel.url is not None:
        check_url(read_secret(channel.url), channel.reach)
    for key in channel.keys.values():
        for secret in filter(None, (key.secret, key.old)):
            read_secret(secret)
    return f"{channel.kind}, nothing was sent"


def _crm(subject: str, crm: Crm, settings: Settings) -> str:
    """Read each resource, and look for its table."""
    read_secret(crm.token)
    check_url(crm.base_url, crm.reach)
    with Path(crm.resources).open("rb") as file:
        names = list(tomllib.loads(file.read(MAX_FILE_BYTES).decode()))
    for name in names:
        resource = read_resource(subject, crm, name)
        if not settings.database(resource.db).allows(resource.table, write=True):
            raise ConfigError(f"[{name}]: databases.{resource.db} must have {resource.table} in `writable`")
        with opened(settings, resource.db, Stop()) as session:
            if not session.columns(resource.table):
                raise ConfigError(f"[{name}]: no table {resource.table} in databases.{resource.db}")
    return f"resources {', '.join(names) or 'none'}; nothing was asked"


def _backup(backup: Backup, settings: Settings) -> str:
    """Look for the tools that a backup of PostgreSQL needs."""
    settings.root(backup.to.partition(":")[0])
    if settings.database(backup.db).sqlite is not None:
        return f"to {backup.to}"
    with opened(settings, backup.db, Stop()) as session:
        ((version,),) = session.fetch("SHOW server_version_num")
    found = [find_tool(tool, backup.tools, int(version) // 10_000) for tool in TOOLS]
    return f"to {backup.to}, by {', '.join(f'{path} {version}' for path, version in found)}"


def _models(settings: Settings) -> str:
    """Read the keys, and verify the current version of each model."""
    found = current_models(settings, Stop())
    return f"{len(found)} with a current version, each with a valid signature"


def _templates(path: str) -> str:
    return f"{len([name for name in os.listdir(path) if name.endswith('.txt')])} in {path}"
