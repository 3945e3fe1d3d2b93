"""The sections of `handlers.toml`: what an operator may say, with the defaults. They hold no secret, only where it is.

A configuration permits; a payload may only ask for less.
"""

from __future__ import annotations

import fnmatch
import ipaddress
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta

from handlers.contracts.compliance import Format as AuditFormat
from handlers.contracts.compliance import GenerateComplianceReport
from handlers.contracts.compliance import default_formats as audit_formats
from handlers.contracts.crm import SyncCrmData
from handlers.contracts.deliveries import Delivery, Page
from handlers.contracts.maintenance import Age, CleanupLogs
from handlers.contracts.reports import Format, GenerateReports, Language, default_formats
from handlers.contracts.threats import MAX_SOURCES, AnalyzeThreats, Detection, Level
from handlers.contracts.types import Address, Alias, Glob, Line, Params, RootPath, check_path
from handlers.contracts.vulnerabilities import ScanScope, ScanVulnerabilities
from handlers.contracts.windows import Window, zone_of
from runtime import ConfigError

IN_CHILD: Final = "RUNTIME_IN_CHILD"  # a variable that the runtime gives to child processes of handlers alone
_PORTS: Final = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}  # RFC 5321, RFC 6409, RFC 8314
_MODES: Final = ("read", "write", "purge")  # each allows what those before it do
_SIZE: Final = re.compile(r"([0-9]{1,15}) ?([KMGT]iB|B)?")
_UNITS: Final = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_NAMES: Final = ", ".join(f"{scheme}://" for scheme in _PORTS)

Mode: TypeAlias = Literal["read", "write", "purge"]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

Secret = Annotated[
    str,
    Meta(
        pattern=r"^(?:env:[A-Za-z_][A-Za-z0-9_]*|file:/[^\x00-\x1f]+)(?![\s\S])",
        description="where a secret is: `env:NAME` or `file:/path`",
    ),
]


def read_secret(secret: Secret) -> str:
    """Return a secret as it is now, so that a rotated one needs no restart.

    Raises:
        ConfigError: its file or variable cannot be read, or is empty.
    """
    kind, _, place = secret.partition(":")
    text = _variable(place) if kind == "env" else _file(place)
    if not text.strip():
        raise ConfigError(f"{'variable ' if kind == 'env' else ''}{place} is empty")
    return text


def _variable(name: str) -> str:
    if name not in os.environ:
        hint = f"; hint: child processes have few variables: --child-env {name}" if IN_CHILD in os.environ else ""
        raise ConfigError(f"variable {name} is not set{hint}")
    return os.environ[name]


def _file(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: {reason}") from None


def is_loopback(host: str) -> bool:
    """Return whether a host is this machine by its name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Endpoint(msgspec.Struct, frozen=True):
    """A mail server's URL, parsed."""

    scheme: str
    host: str
    port: int
    user: str


class DatabaseEndpoint(msgspec.Struct, frozen=True):
    """A PostgreSQL URL, parsed: `host` is a name, an address, or the folder of a socket."""

    host: str
    port: int
    user: str
    name: str


class Smtp(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mail server, and how this worker may use it.

    The password is read when a connection is opened, so that a rotated one needs no restart.
    """

    url: str
    password: Secret | None = None
    connections: Annotated[int, Meta(ge=1, le=100)] = 4  # a guess; Postfix allows one client 50
    timeout_s: Annotated[float, Meta(gt=0, le=600)] = 20.0  # a guess: for each command; a third of the job's 60 s
    per_second: Annotated[float, Meta(gt=0, le=10_000)] | None = None  # messages, of this worker; None: as fast as the server is
    plain: bool = False

    def __post_init__(self) -> None:
        """Check that no password and no mail goes over a network in plain text.

        Raises:
            ValueError: the fields do not go together; the text shows nothing of the URL, which may hold a password.
        """
        endpoint = _endpoint(self.url)
        if self.plain and not is_loopback(endpoint.host):
            raise ValueError("plain = true is only for a server on the loopback interface")
        if self.plain != (endpoint.scheme == "smtp"):
            raise ValueError("smtp:// needs plain = true, and plain = true needs smtp://; hint: smtp+starttls:// or smtps://")
        if bool(endpoint.user) != bool(self.password):
            raise ValueError("must have a user in the url and a password, or neither")

    def __repr__(self) -> str:
        secret = "***" if self.password else "none"
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
        return read_secret(self.password) if self.password else None


class Sender(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The author of a mail, the server to send it by, and what jobs may do in this name.

    `to` are globs for whole addresses, `*@example.org`, to which they may write; without any, to everybody. `per_hour` is to how
    many recipients each worker process may send within an hour. `attach` are the roots from which they may attach files, `lists`
    those from which they may read recipients, `headers` globs for the `X-…` headers that they may add: none without a word here.
    With `unsubscribe_key` the links to unsubscribe are signed, so that nobody can unsubscribe others.
    """

    smtp: Alias
    address: Address
    name: Line = ""
    to: list[Line] = []
    per_hour: Annotated[int, Meta(ge=1)] | None = None
    attach: list[Alias] = []
    lists: list[Alias] = []
    headers: list[Line] = []
    unsubscribe_key: Secret | None = None

    def may_write_to(self, address: str) -> bool:
        """Return whether jobs may send mail of this author to the address; the case of letters does not matter."""
        return not self.to or _matches(address, self.to)

    def may_add(self, header: str) -> bool:
        """Return whether jobs may add the header; the case of letters does not matter."""
        return _matches(header, self.headers)


class Templates(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The folder of the mail templates."""

    path: str


class Documents(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The folder of the definitions of documents and reports; those that are shipped are found without it."""

    path: str


class Compliance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the evidence of compliance reports is, and the folder of their profiles; those that are shipped are found without it.

    `evidence` are roots in which jobs leave what they did. Nobody may purge them: what can be deleted proves little.
    """

    evidence: list[Alias] = []
    path: str = ""


class Root(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder that payloads name by its alias, and what jobs may do in it.

    `purge` allows `cleanup-logs` to delete there, up to `max_delete` files a run, none younger than `min_age`. `max_bytes` is for
    each file that a job writes. What a payload asks for by `overwrite` or `force` it gets only where these are true here.
    """

    path: str
    mode: Mode = "read"
    max_bytes: int | str = "5GiB"  # a guess: ten million rows of 500 bytes
    max_delete: Annotated[int, Meta(ge=1)] = 100_000  # a guess: far above a month of logs, far below a home
    min_age: Age = "1h"  # the least that a payload can ask for
    overwrite: bool = False
    force: bool = False

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

    def allows(self, mode: Mode) -> bool:
        """Return whether jobs may do this here."""
        return _MODES.index(mode) <= _MODES.index(self.mode)


class Database(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A SQLite file below a root, or a PostgreSQL database, and what payloads may ask of it.

    `queries` is the folder of the queries that they may name; `tables` are the tables and views that they may read, `writable`
    those that they may write, `["*"]` for all. `max_row_bytes` is for each row that is read.
    """

    sqlite: RootPath | None = None
    url: str = ""
    password: Secret | None = None
    tls: Literal["require", "verify", "off"] = "verify"
    ca_file: str = ""
    queries: str = ""
    tables: list[Line] = []
    writable: list[Line] = []
    max_row_bytes: Annotated[int, Meta(ge=1024, le=2**30)] = 2**20  # a guess; 2**30 is near the most that SQLite allows

    def __post_init__(self) -> None:
        """Check that it is one database, and that no password goes over a network in plain text.

        Raises:
            ValueError: the fields do not go together; the text shows nothing of the URL, which may hold a password.
        """
        if (self.sqlite is None) == (not self.url):
            raise ValueError("must have sqlite = 'root:path' or url = 'postgresql://…'")
        if self.sqlite is not None:
            check_path(self.sqlite, "sqlite")
            return
        endpoint = self.endpoint
        if self.tls == "off" and not is_loopback(endpoint.host) and not endpoint.host.startswith("/"):
            raise ValueError("tls = 'off' is only for a server on the loopback interface or a socket")

    @property
    def endpoint(self) -> DatabaseEndpoint:
        """The URL, parsed."""
        return _database_endpoint(self.url)

    def read_password(self) -> str | None:
        """Return the current password; None if there is none.

        Raises:
            ConfigError: its file or variable cannot be read.
        """
        return read_secret(self.password) if self.password else None

    def allows(self, table: str, *, write: bool = False) -> bool:
        """Return whether payloads may read this table, or write it."""
        allowed = self.writable if write else self.tables
        return table in allowed or "*" in allowed


class Models(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where models are, what signs them, and what jobs may do with them.

    `root` has a folder for each name. Only what `key` has signed is loaded, or `old_key` during a rotation. A job may make the
    model that it trains the current one where a glob of `promote` matches the name: none without a word here.
    """

    root: Alias
    key: Secret
    old_key: Secret | None = None
    promote: list[Line] = []
    max_bytes: int | str = "256MiB"  # a guess: a random forest of digits has 1 MiB
    max_cells: Annotated[int, Meta(ge=1, le=10**9)] = 20_000_000  # rows x columns of data; a guess: 160 MB, copied a few times

    def __post_init__(self) -> None:
        """Check the size.

        Raises:
            ValueError: `max_bytes` is not a size.
        """
        if _size_bytes(self.max_bytes) < 1:
            raise ValueError("max_bytes: must be a number of bytes, or a text such as 500MiB")

    @property
    def limit_bytes(self) -> int:
        """`max_bytes` as a number."""
        return _size_bytes(self.max_bytes)

    def may_promote(self, name: str) -> bool:
        """Return whether jobs may change which version of this model is the current one."""
        return _matches(name, self.promote)


class Reach(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an alias may reach over HTTP: every public address at `ports`, and of all others those in `private`, one by one.

    `ca_file` holds the certificates to trust instead of the system's.
    """

    private: tuple[Line, ...] = ()
    ports: tuple[Annotated[int, Meta(ge=1, le=65_535)], ...] = (443,)
    ca_file: str = ""

    def __post_init__(self) -> None:
        """Check the addresses.

        Raises:
            ValueError: one is no address; a network is none.
        """
        for address in self.private:
            try:
                ipaddress.ip_address(address)
            except ValueError:
                raise ValueError("private: must be addresses, each by itself, such as 10.0.0.7") from None

    @property
    def reach(self) -> Reach:
        """This without what an alias has beside it."""
        return Reach(private=self.private, ports=self.ports, ca_file=self.ca_file)

    @property
    def private_addresses(self) -> frozenset[IpAddress]:
        """`private`, parsed."""
        return frozenset(map(ipaddress.ip_address, self.private))


class SigningKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What signs webhooks: `whsec_…` or plain text. During a rotation `old` signs as well.

    `hosts` are globs for the hosts that may get something signed by it, where jobs say to whom a notification goes.
    """

    secret: Secret
    old: Secret | None = None
    hosts: tuple[Line, ...] = ()

    def signs_for(self, host: str) -> bool:
        """Return whether this host may get something signed."""
        return _matches(host, self.hosts)


class Channel(Reach, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where notifications go. The URL of a chat lets everybody write there, so it is a secret.

    With `dynamic`, jobs say where a webhook goes: to the hosts that match one of the globs in `hosts`.
    """

    kind: Literal["webhook", "slack", "teams", "ntfy"]
    url: Secret | None = None
    dynamic: bool = False
    hosts: tuple[Line, ...] = ()
    keys: dict[Alias, SigningKey] = {}

    def __post_init__(self) -> None:
        """Check the fields against each other.

        Raises:
            ValueError: they do not go together, or a key could sign for everybody.
        """
        super().__post_init__()
        if self.kind != "webhook" and (self.dynamic or self.keys):
            raise ValueError("dynamic and keys are only for kind = 'webhook'")
        if self.dynamic != (self.url is None) or self.dynamic != bool(self.hosts):
            raise ValueError("must have either a url, or dynamic = true and hosts")
        if not self.dynamic and len(self.keys) > 1:
            raise ValueError("keys: must be one; hint: `old` is for a rotation")
        if self.dynamic and not all(key.hosts for key in self.keys.values()):
            raise ValueError("keys: must have hosts, so that a job cannot have anything signed for anybody")
        if self.keys and not all(map(is_bound, [*self.hosts, *(host for key in self.keys.values() for host in key.hosts)])):
            raise ValueError("hosts: must name at least a domain, such as *.example.org, where there are keys")

    def allows(self, host: str) -> bool:
        """Return whether jobs may say that a notification goes to this host."""
        return _matches(host, self.hosts)


class Crm(Reach, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A CRM, and how this worker may use it.

    `resources` is a TOML file, with a table for each resource. `auth` says how the token goes over the wire: as `bearer`, or
    alone in a header of that name.
    """

    base_url: str
    token: Secret
    auth: Annotated[str, Meta(pattern=r"^(?:bearer|header:[A-Za-z][A-Za-z0-9-]{0,60})(?![\s\S])")] = "bearer"
    requests_per_second: Annotated[float, Meta(ge=0.1, le=10_000)] = 5.0  # a guess; HubSpot allows an app 10
    resources: str

    def __post_init__(self) -> None:
        """Check the URL.

        Raises:
            ValueError: it is not one to which paths can be added; the text shows nothing of it.
        """
        super().__post_init__()
        try:
            parts = urlsplit(self.base_url)
            is_fit = bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_fit = False
            parts = urlsplit("")
        if not is_fit or parts.scheme not in ("https", "http") or parts.username or parts.query or parts.fragment:
            raise ValueError("base_url: must be https://host/path without user, query and fragment")


class Cleanup(CleanupLogs, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job `cleanup-logs` that is sent again and again, and when. `root` is the alias of the cleanup where it names none."""

    enabled: bool = True
    when: str = "20 3 * * *"
    tz: str = "UTC"

    def job(self) -> CleanupLogs:
        """Return the payload of each job."""
        return CleanupLogs(**{name: getattr(self, name) for name in CleanupLogs.__struct_fields__})


class Sync(SyncCrmData, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job `sync-crm-data` that is sent again and again, and when. `resource` is the alias of the sync where it names none."""

    enabled: bool = True
    when: str = "*/15 * * * *"
    tz: str = "UTC"

    def job(self) -> SyncCrmData:
        """Return the payload of each job."""
        return SyncCrmData(**{name: getattr(self, name) for name in SyncCrmData.__struct_fields__})


class Backup(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Backups of a database, below a folder, and when they are made. `db` is the name of the backup where it says none.

    For each of the last `keep_daily` days with a backup its last one is kept, and so on. `scratch` is a database on the server
    where restores are checked; without one, that of `db`. `tools` is the folder of `pg_dump` and `pg_restore`, where it is not
    that on PATH. `channel` hears at once of a backup that cannot be verified.
    """

    db: Alias
    to: RootPath
    keep_daily: Annotated[int, Meta(ge=0, le=1000)] = 7
    keep_weekly: Annotated[int, Meta(ge=0, le=1000)] = 5
    keep_monthly: Annotated[int, Meta(ge=0, le=1000)] = 12
    verify: Literal["restore", "list"] = "restore"
    scratch: Alias | None = None
    tools: str = ""
    channel: Alias | None = None
    enabled: bool = True
    when: str = "10 1 * * *"
    tz: str = "UTC"

    def __post_init__(self) -> None:
        """Check the path, the folder of tools and the zone.

        Raises:
            ValueError: one cannot be used, or no backup would be kept.
        """
        check_path(self.to, "to")
        if self.tools and not os.path.isabs(self.tools):
            raise ValueError("tools: must be absolute")
        if not self.keep_daily + self.keep_weekly + self.keep_monthly:
            raise ValueError("must keep at least one: keep_daily, keep_weekly or keep_monthly")
        try:
            ZoneInfo(self.tz)
        except (ValueError, OSError, KeyError):
            raise ValueError("tz: must be a time zone, such as Europe/Berlin") from None


def _matches(host: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(host.lower().rstrip("."), glob.lower()) for glob in globs)


def is_bound(glob: str) -> bool:
    """Return whether a glob is one host, or ends in a name of two parts at least, so that its hosts are of one owner."""
    return not set(glob) & set("*?[") or re.search(r"\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+(?![\s\S])", glob) is not None


_PERIODS: Final[dict[str, Literal["yesterday", "last-week", "last-month"]]] = {
    "day": "yesterday",
    "week": "last-week",
    "month": "last-month",
}
_MORNINGS: Final = {"day": "0 5 * * *", "week": "15 5 * * 1", "month": "30 5 1 * *"}


class Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job `generate-reports` that is sent again and again, about the day, week or month that is over; `when` says when else.

    `report` is the alias where it names none.
    """

    report: Alias
    every: Literal["day", "week", "month"] = "day"
    to: Alias = "reports"
    formats: list[Format] = msgspec.field(default_factory=default_formats)
    params: Params = {}
    deliver: Delivery | None = None
    lang: Language = "en"
    page: Page = "A4"
    enabled: bool = True
    when: str = ""
    tz: str = "UTC"

    def __post_init__(self) -> None:
        """Check the payload that this makes.

        Raises:
            ValueError: it cannot be sent.
        """
        self.job()

    @property
    def cron(self) -> str:
        """When it is sent: `when`, or in the morning after the day, week or month."""
        return self.when or _MORNINGS[self.every]

    def job(self) -> GenerateReports:
        """Return the payload of each job."""
        window = Window(period=_PERIODS[self.every], tz=self.tz)
        names = set(GenerateReports.__struct_fields__) - {"window"}
        return GenerateReports(window=window, **{name: getattr(self, name) for name in names})


LogField = Literal["at", "host", "program", "message", "user", "src", "outcome", "method", "target", "status", "referer", "agent"]
MIN_WINDOW_S: Final = 10  # a guess: clocks of one host, and the order of its lines, are no better
MAX_WINDOW_S: Final = 86_400  # a guess: what takes longer is no burst
Seconds = Annotated[int, Meta(ge=MIN_WINDOW_S, le=MAX_WINDOW_S)]
Count = Annotated[int, Meta(ge=2, le=1000)]  # the times of so many events are remembered for each subject


class Log(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Log files below a root: those in `folder` whose names match `glob`, which should match rotated ones, too.

    Times without a zone are in `zone`. Those without a year are in `year`; without one, in the last in which they are not in the
    future. `fields` says for `jsonl` which member of a line, `a.b` for one in another, is which.
    """

    root: Alias
    folder: Line = ""
    glob: Glob
    format: Literal["sshd", "journal", "combined", "jsonl"]
    zone: str = "UTC"
    year: Annotated[int, Meta(ge=1970, le=2199)] | None = None
    fields: dict[LogField, Line] = {}

    def __post_init__(self) -> None:
        """Check the folder, the zone and the fields.

        Raises:
            ValueError: one cannot be used.
        """
        check_folder(self.folder)
        zone_of(self.zone)
        if (self.format == "jsonl") != ("at" in self.fields) or (self.fields and self.format != "jsonl"):
            raise ValueError("fields: must say what `at` is for format = 'jsonl', and are for it alone")


class RuleFolder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A folder of Sigma rules, `*.yml` and `*.yaml`, below a root."""

    root: Alias
    folder: Line = ""

    def __post_init__(self) -> None:
        """Check the folder.

        Raises:
            ValueError: it is not one below the root.
        """
        check_folder(self.folder)


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From how many events, in how many seconds, something is a finding."""

    failures: Count = 10  # as most lists of rules have it
    failures_s: Seconds = 300
    before_success: Count = 5  # a guess: people mistype a password three times
    users: Count = 8
    users_s: Seconds = 300
    addresses: Count = 20
    addresses_s: Seconds = 300
    client_errors: Count = 60  # a guess: a broken page of a shop makes some ten
    client_errors_s: Seconds = 60
    server_errors: Count = 30  # a guess
    server_errors_s: Seconds = 60
    unparsed_percent: Annotated[int, Meta(ge=1, le=100)] = 20


class Threats(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An analysis of logs, and when it is made. Without `detections`, all; `rules` are beside them.

    `notify` is the channel that hears of findings from `notify_from` on. Below the root `state` is kept how far the logs were
    read, and what was found; below `to` are the reports.
    """

    sources: Annotated[list[Alias], Meta(min_length=1, max_length=MAX_SOURCES)]
    detections: list[Detection] = []
    rules: Alias | None = None
    thresholds: Thresholds = Thresholds()
    notify: Alias | None = None
    notify_from: Level = "medium"
    state: Alias = "state"
    to: Alias = "evidence"
    max_bytes: Annotated[int, Meta(ge=2**20, le=2**34)] = 2**30  # of logs, each run: some four minutes of a CPU
    enabled: bool = True
    when: str = "*/5 * * * *"
    tz: str = "UTC"

    def __post_init__(self) -> None:
        """Check the sources.

        Raises:
            ValueError: one is named twice.
        """
        if len(set(self.sources)) < len(self.sources):
            raise ValueError("sources: must name each once")

    def job(self, alias: str) -> AnalyzeThreats:
        """Return the payload of each job."""
        return AnalyzeThreats(analysis=alias)


def check_folder(folder: str) -> None:
    """Check that a folder is empty, or the path of one below a root.

    Raises:
        ValueError: it is absolute, or leads out of the root.
    """
    if folder and any(part in ("", ".", "..") for part in folder.split("/")):
        raise ValueError("folder: must be a path below the root, without `.` and `..`")


class Advisories(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A database of advisories in OSV's JSON: a zip, or a folder with zips and JSON files, below a root.

    Where the newest advisory of an ecosystem is older than `max_age_days`, no scan of its packages is complete.
    """

    path: RootPath
    max_age_days: Annotated[int, Meta(ge=1, le=365)] = 7  # a guess: those of PyPI and npm change each day

    def __post_init__(self) -> None:
        """Check the path.

        Raises:
            ValueError: it is not in composed form (NFC).
        """
        check_path(self.path, "path")


class Scan(ScanScope, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job `scan-vulnerabilities` that is sent again and again, and when."""

    enabled: bool = True
    when: str = "35 */6 * * *"
    tz: str = "UTC"

    def job(self) -> ScanVulnerabilities:
        """Return the payload of each job."""
        return ScanVulnerabilities(**{name: getattr(self, name) for name in ScanScope.__struct_fields__})


_AUDITS: Final = {"week": "30 6 * * 1", "month": "30 6 1 * *"}


class Audit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job `generate-compliance-report` that is sent again and again, about the week or month that is over; or as `when` says.

    `profile` is the alias where it names none.
    """

    profile: Alias
    to: RootPath
    every: Literal["week", "month"] = "month"
    formats: list[AuditFormat] = msgspec.field(default_factory=audit_formats)
    deliver: Delivery | None = None
    page: Page = "A4"
    enabled: bool = True
    when: str = ""
    tz: str = "UTC"

    def __post_init__(self) -> None:
        """Check the payload that this makes.

        Raises:
            ValueError: it cannot be sent.
        """
        self.job()

    @property
    def cron(self) -> str:
        """When it is sent: `when`, or in the morning after the week or month."""
        return self.when or _AUDITS[self.every]

    def job(self) -> GenerateComplianceReport:
        """Return the payload of each job."""
        window = Window(period=_PERIODS[self.every], tz=self.tz)
        names = set(GenerateComplianceReport.__struct_fields__) - {"window"}
        return GenerateComplianceReport(window=window, **{name: getattr(self, name) for name in names})


def _endpoint(url: str) -> Endpoint:
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("url: not a URL") from None
    if scheme not in _PORTS or not host or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"url: must be one of {_NAMES} with a host, and optionally a user and a port")
    if parts.password is not None:
        raise ValueError("url: must not hold a password; hint: password = 'file:/path' or 'env:NAME'")
    return Endpoint(scheme, host, port or _PORTS[scheme], unquote(parts.username or ""))


def _size_bytes(text: int | str) -> int:
    """Return a size in bytes; 0 if the text is not a size."""
    found = _SIZE.fullmatch(str(text))
    return int(found[1]) * _UNITS[found[2] or ""] if found else 0


def _database_endpoint(url: str) -> DatabaseEndpoint:
    """Return a parsed `postgresql://user@host:port/name`, or `postgresql://user@/name?host=/folder&port=5432` for a socket."""
    try:
        parts = urlsplit(url)
        host, port, options = parts.hostname or "", parts.port, dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError("url: not a URL") from None
    if parts.password is not None:
        raise ValueError("url: must not hold a password; hint: password = 'file:/path' or 'env:NAME'")
    name = unquote(parts.path.removeprefix("/"))
    host, socket_port = options.pop("host", host), options.pop("port", "")
    if parts.scheme not in ("postgresql", "postgres") or not host or not name or not parts.username or options or parts.fragment:
        raise ValueError("url: must be postgresql://user@host/name, or postgresql://user@/name?host=/folder for a socket")
    if not socket_port.isdecimal() and socket_port:
        raise ValueError("url: port must be a number")
    return DatabaseEndpoint(host, port or int(socket_port or 5432), unquote(parts.username), name)
