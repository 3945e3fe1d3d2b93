"""The handlers' settings, from `handlers.toml` and the environment, which overrides it. They hold no secret, only where it is.

A job that meets a fault of the settings waits without spending an attempt, and the fault is logged.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import time
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NoReturn, TypeVar, cast
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from handlers.contracts.maintenance import CleanupLogs
from handlers.contracts.types import Address, Alias, Line, RootPath, check_path
from runtime import ConfigError, Snooze

log = logging.getLogger("handlers")

VARIABLE: Final = "RUNTIME_HANDLERS_CONFIG"
PREFIX: Final = "RUNTIME_HANDLERS__"
WAIT_S: Final = 60.0  # a guess: how soon a waiting job checks whether the settings have been fixed
LOG_EVERY_S: Final = 60.0  # a guess: a fault that lasts is logged once a minute
MAX_SUBJECTS: Final = 1000  # a guess: aliases come from payloads, so the memory of what was logged is bounded
_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}  # RFC 5321, RFC 6409, RFC 8314
_MODES: Final = ("read", "write", "purge")  # each allows what those before it do
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMGT]iB|B)?")
_UNITS: Final = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_NAMES: Final = ", ".join(f"{scheme}://" for scheme in _PORTS)

S = TypeVar("S", bound=msgspec.Struct)


class Endpoint(msgspec.Struct, frozen=True):
    """A mail server's URL, parsed."""

    scheme: str
    host: str
    port: int
    user: str


class Smtp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mail server, and how this worker may use it.

    The password is read when a connection is opened, so that a rotated one needs no restart.
    """

    url: str
    password: Annotated[str, Meta(pattern=r"^(?:env:[A-Za-z_][A-Za-z0-9_]*)?(?![\s\S])")] = ""
    password_file: str = ""
    connections: Annotated[int, Meta(ge=1, le=100)] = 4  # a guess; Postfix allows one client 50
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 20.0  # a guess: for each command; a third of the job's 60 s
    plain: bool = False

    def __post_init__(self) -> None:
        """Check that no password and no mail goes over a network in plain text.

        Raises:
            ValueError: the fields do not go together; the text shows nothing of the URL, which may hold a password.
        """
        endpoint = _endpoint(self.url)
        if self.plain and not _is_loopback(endpoint.host):
            raise ValueError("plain = true is only for a server on the loopback interface")
        if self.plain != (endpoint.scheme == "smtp"):
            raise ValueError("smtp:// needs plain = true, and plain = true needs smtp://; hint: smtp+starttls:// or smtps://")
        if self.password and self.password_file:
            raise ValueError("must have password or password_file, not both")
        if bool(endpoint.user) != bool(self.password or self.password_file):
            raise ValueError("must have a user in the url and a password, or neither")

    def __repr__(self) -> str:
        secret = "***" if self.password or self.password_file else "none"
        return f"<Smtp {self.url}, {self.connections} connections, password {secret}>"

    @property
    def endpoint(self) -> Endpoint:
        """The URL, parsed."""
        return _endpoint(self.url)

    def read_password(self) -> str | None:
        """Return the current password; None if there is none.

        Raises:
            ConfigError: its file or variable cannot be read.
        """
        if self.password:
            name = self.password.removeprefix("env:")
            if name not in os.environ:
                raise ConfigError(f"variable {name} is not set")
            return os.environ[name]
        if not self.password_file:
            return None
        try:
            return Path(self.password_file).read_text("utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"{self.password_file}: {reason}") from None


class Sender(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The author of a mail, and the server to send it by."""

    smtp: Alias
    address: Address
    name: Line = ""


class Templates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The folder of the mail templates."""

    path: str


class Root(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder that payloads name by its alias, and what jobs may do in it.

    `purge` allows `cleanup-logs` to delete there, up to `max_delete` files a run. `max_bytes` is for each file that a job writes.
    """

    path: str
    mode: Literal["read", "write", "purge"] = "read"
    max_bytes: int | str = "5GiB"  # a guess: ten million rows of 500 bytes
    max_delete: Annotated[int, Meta(ge=1)] = 100_000  # a guess: far above a month of logs, far below a home

    def __post_init__(self) -> None:
        """Check the path and the size.

        Raises:
            ValueError: the path is relative, the whole file system could be purged, or `max_bytes` is not a size.
        """
        if not os.path.isabs(self.path):
            raise ValueError("path: must be absolute")
        if self.mode == "purge" and os.path.normpath(self.path) in ("/", "//"):
            raise ValueError("path: must not be the whole file system with mode purge")
        if _size_bytes(self.max_bytes) < 1:
            raise ValueError("max_bytes: must be a number of bytes, or a text such as 500MiB")

    @property
    def limit_bytes(self) -> int:
        """`max_bytes` as a number."""
        return _size_bytes(self.max_bytes)

    def allows(self, mode: Literal["read", "write", "purge"]) -> bool:
        """Return whether jobs may do this here."""
        return _MODES.index(mode) <= _MODES.index(self.mode)


class Database(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A SQLite file below a root, the folder of the queries that payloads may name, and how large a row may be."""

    sqlite: RootPath
    queries: str = ""
    max_row_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 2**20  # a guess; 2**30 is near the most that SQLite allows

    def __post_init__(self) -> None:
        """Check the path.

        Raises:
            ValueError: it is not in composed form (NFC).
        """
        check_path(self.sqlite, "sqlite")


class Cleanup(CleanupLogs, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job `cleanup-logs` that is sent again and again, and when. `root` is the alias of the cleanup where it names none."""

    enabled: bool = True
    when: str = "20 3 * * *"
    tz: str = "UTC"

    def job(self) -> CleanupLogs:
        """Return the payload of each job."""
        return CleanupLogs(**{name: getattr(self, name) for name in CleanupLogs.__struct_fields__})


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The sections of `handlers.toml`, validated."""

    smtp: dict[str, Smtp] = {}
    senders: dict[str, Sender] = {}
    templates: Templates | None = None
    roots: dict[str, Root] = {}
    databases: dict[str, Database] = {}
    cleanups: dict[str, Cleanup] = {}

    def sender(self, alias: str) -> Sender:
        """Return a sender.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.senders.get(alias) or _missing("senders", alias)

    def server(self, alias: str) -> Smtp:
        """Return a mail server.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.smtp.get(alias) or _missing("smtp", alias)

    def template_folder(self, alias: str) -> str:
        """Return the folder in which the template of that name should be.

        Raises:
            Snooze: no folder is configured; `alias-missing`.
        """
        return self.templates.path if self.templates else _missing("templates", alias)

    def root(self, alias: str) -> Root:
        """Return a root.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.roots.get(alias) or _missing("roots", alias)

    def database(self, alias: str) -> Database:
        """Return a database.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.databases.get(alias) or _missing("databases", alias)


def wait_for_operator(subject: str, code: str, text: str) -> Snooze:
    """Return the `Snooze` to raise for a fault that an operator must fix, and log it, once a minute per subject."""
    now_s = time.monotonic()
    if now_s - _logged_s.get(subject, -LOG_EVERY_S) >= LOG_EVERY_S:
        if len(_logged_s) >= MAX_SUBJECTS:
            _logged_s.clear()
        _logged_s[subject] = now_s
        log.error("%s: %s: %s; its jobs wait, and check again every %g s", subject, code, text, WAIT_S)
    return Snooze(WAIT_S, f"{code}: {subject}: {text}")


_logged_s: dict[str, float] = {}


def _missing(section: str, alias: str) -> NoReturn:
    where = os.environ.get(VARIABLE) or f"handlers.toml (no {VARIABLE} is set)"
    raise wait_for_operator(f"{section}.{alias}", "alias-missing", f"not in {where}")


# --- reading -------------------------------------------------------------------------------------------------------------


def at_start() -> Settings:
    """Return the settings as they are when a process starts.

    Raises:
        ConfigError: the file cannot be used.
    """
    return load(os.environ.get(VARIABLE, ""), os.environ)


def current() -> Settings:
    """Return the current settings; the file is read again when it has changed, so that a fixed alias needs no restart.

    Raises:
        Snooze: the file cannot be used; `alias-missing`.
    """
    path = os.environ.get(VARIABLE, "")
    try:
        return _at(path, _version(path))
    except ConfigError as error:
        raise wait_for_operator(VARIABLE, "alias-missing", str(error)) from error


@lru_cache(maxsize=1)
def _at(path: str, version: tuple[int, ...]) -> Settings:
    return load(path, os.environ)


def _version(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def load(path: str, environment: Mapping[str, str]) -> Settings:
    """Return the settings of this file with the overrides of this environment; a missing file is empty.

    Raises:
        ConfigError: the file cannot be read, or a key or value in it cannot be used; values are not shown.
    """
    raw = _read(path)
    _override(raw, environment)
    unknown = sorted(set(raw) - set(Settings.__struct_fields__))
    if unknown:
        raise ConfigError(f"{path or PREFIX}: unknown section {unknown[0]!r}; hint: {', '.join(Settings.__struct_fields__)}")
    templates = raw.get("templates")
    return Settings(
        smtp=_aliases(path, raw, "smtp", Smtp),
        senders=_aliases(path, raw, "senders", Sender),
        templates=None if templates is None else _struct(path, "templates", templates, Templates),
        roots=_aliases(path, raw, "roots", Root),
        databases=_aliases(path, raw, "databases", Database),
        cleanups={alias: _cleanup(path, alias, value) for alias, value in _section(path, raw, "cleanups").items()},
    )


def _read(path: str) -> dict[str, Any]:
    if not path:
        return {}
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _override(raw: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Set each `RUNTIME_HANDLERS__SECTION__ALIAS__KEY`; there, `-` of an alias is written `_`."""
    for name in sorted(name for name in environment if name.startswith(PREFIX)):
        section, *rest = name.removeprefix(PREFIX).lower().split("__")
        if not rest:
            raise ConfigError(f"{name}: must be {PREFIX}SECTION__ALIAS__KEY")
        *alias, key = rest
        place = raw.setdefault(section, {})
        if alias and isinstance(place, dict):
            known = cast("dict[str, Any]", place)
            wanted = "__".join(alias)
            found = next((each for each in known if each.replace("-", "_") == wanted), wanted)
            place = known.setdefault(found, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{name}: no such key in the settings")
        place[key] = environment[name]


def _aliases(path: str, raw: Mapping[str, Any], section: str, kind: type[S]) -> dict[str, S]:
    return {alias: _struct(path, f"{section}.{alias}", value, kind) for alias, value in _section(path, raw, section).items()}


def _section(path: str, raw: Mapping[str, Any], section: str) -> dict[str, Any]:
    return _converted(path, section, raw.get(section, {}), dict[Alias, Any])


def _cleanup(path: str, alias: str, value: Any) -> Cleanup:
    given = {"root": alias, **cast("dict[str, Any]", value)} if isinstance(value, dict) else value
    return _struct(path, f"cleanups.{alias}", given, Cleanup)


def _struct(path: str, place: str, value: Any, kind: type[S]) -> S:
    return _converted(path, place, value, kind)


def _converted(path: str, place: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)  # the environment has only text
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or PREFIX}: {place}: {error}") from None


def _endpoint(url: str) -> Endpoint:
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("url: not a URL") from None
    if scheme not in _PORTS or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"url: must be one of {_NAMES} with a host, and optionally a user and a port")
    if parts.password is not None:
        raise ValueError("url: must not hold a password; hint: password_file, or password = 'env:NAME'")
    return Endpoint(scheme, host, port or _PORTS[scheme], unquote(parts.username or ""))


def _size_bytes(text: int | str) -> int:
    """Return a size in bytes; 0 if the text is not a size."""
    found = _SIZE.fullmatch(str(text))
    return int(found[1]) * _UNITS[found[2] or ""] if found else 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
