"""The settings: one table with the flag, default, bounds and meaning of each; `load` reads and checks them once, at the start.

A flag wins over the environment (`RUNTIME_*`, and `REDIS_URL`), that over `runtime.toml`, that over the default. Flags, variables
and help texts are made from the table.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from runtime.errors import ConfigError
from runtime.folders import why_not

FILE: Final = "runtime.toml"
TRACE_ID: Final = "{trace_id}"  # what stands in `--trace-url` for the id
MAX_VERSION_CHARS: Final = 40  # of the code that runs: a hash of git's, as other tools write it
LANES_PER_RESERVED: Final = 20  # a choice: 5 %, and a small worker keeps none idle


# Variables that no setting gives to child processes of handlers: the worker's own credentials.
WITHHELD: Final = re.compile(
    r"REDIS_URL.*|OTEL_EXPORTER_OTLP_.*HEADERS|RUNTIME_(?!HANDLERS_).*(PASSWORD|TOKEN|SECRET|REDIS).*|RUNTIME_BOARD.*", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: its flag, its field in Config, and its help. Without a metavar the flag takes no value, and means true."""

    flag: str
    field: str
    metavar: str
    help: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return "REDIS_URL" if self.field == "redis" else "RUNTIME_" + self.flag[2:].replace("-", "_").upper()

    @property
    def key(self) -> str:
        """The key in `runtime.toml` that sets it."""
        return self.flag[2:].replace("-", "_")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one worker process, validated."""

    redis: str = ""
    queue: str = "jobs"
    handlers: str = "handlers"
    concurrency: int = 100
    reserved: int = -1
    strict: bool = False
    threads: int = 40
    processes: int = 1
    max_rss_mb: int = 0
    board: str = "127.0.0.1:8080"
    app_version: str = ""
    board_pages: str = "on"
    board_token_file: str = ""
    board_proxy: str = ""
    board_send: bool = False
    board_insecure: bool = False
    board_host: str = ""
    board_prefix: str = ""
    board_label: str = ""
    lease_s: float = 30.0
    grace_s: float = 25.0
    max_block_s: float = 60.0
    block_warn_ms: int = 100
    suspect_s: float = 10.0
    max_data_bytes: int = 256 * 1024
    unknown_after_s: float = 900.0
    data_dir: str = ""
    handlers_config: str = ""
    embedded_port: int = 0
    child_env: str = ""
    debuggable: bool = False
    trace_url: str = ""
    trace_join: str = "child"
    trace_trust: str = "on"
    trace_errors: str = "full"
    trace_spans_per_s: int = 5000
    trace_forced_per_s: int = 500
    slow_ms: int = 10_000
    log: str = "auto"
    log_level: str = "info"

    @property
    def reserved_lanes(self) -> int:
        """How many lanes run jobs of CRITICAL only."""
        return self.concurrency // LANES_PER_RESERVED if self.reserved < 0 else self.reserved


SETTINGS: Final = (
    Setting(
        "--redis",
        "redis",
        "URL",
        "redis://, rediss://, unix:// or sentinel://HOST:PORT,HOST:PORT/SERVICE; else the embedded Valkey, which a worker starts",
    ),
    Setting("--queue", "queue", "NAME", "the queue; in Redis, the hash tag of its keys"),
    Setting("--handlers", "handlers", "MODULES", "modules that have handlers, separated by commas; by default, the shipped ones"),
    Setting("--concurrency", "concurrency", "N", "how many jobs run at the same time"),
    Setting(
        "--reserved",
        "reserved",
        "N",
        "how many of those run CRITICAL jobs only; -1 keeps one in twenty for that (5 of 100, none of 19), 0 keeps none",
    ),
    Setting(
        "--strict",
        "strict",
        "",
        "give all capacity to the highest priority that has a job waiting; else they share it by 8:4:2:1, and none starves",
    ),
    Setting("--threads", "threads", "N", "how many threads run handlers that are plain functions"),
    Setting(
        "--processes",
        "processes",
        "N",
        "how many worker processes run under one supervisor, each with this concurrency and these threads",
    ),
    Setting(
        "--max-rss", "max_rss_mb", "MB", "replace a worker process that has more memory than this, losing no job; 0 sets no limit"
    ),
    Setting(
        "--app-version",
        "app_version",
        "TEXT",
        "the version of your code, which people see beside each worker and each failure; up to 40 printable characters",
    ),
    Setting("--board", "board", "HOST:PORT", "where to serve the board, /healthz, /readyz and /metrics; `off` serves nothing"),
    Setting("--board-pages", "board_pages", "ON", "`off` serves health and metrics alone, which need no login"),
    Setting(
        "--board-token-file",
        "board_token_file",
        "FILE",
        'the board\'s tokens: lines such as view = "TOKEN", of view, payload and operate',
    ),
    Setting("--board-proxy", "board_proxy", "FILE", "which proxy the board believes who its user is, and what its users may do"),
    Setting("--board-send", "board_send", "", "let who may operate send jobs from the board as well"),
    Setting(
        "--board-insecure",
        "board_insecure",
        "",
        "let the board be reached from elsewhere without TLS: its tokens and the jobs' payloads travel in clear",
    ),
    Setting("--board-host", "board_host", "NAMES", "by which other names the board is asked for, separated by commas"),
    Setting("--board-prefix", "board_prefix", "PATH", "below which path the board's pages are, such as /jobs"),
    Setting("--board-label", "board_label", "TEXT", "what the board's pages name this queue by; =ok, =warn or =bad paints it"),
    Setting("--lease", "lease_s", "SECONDS", "how long a worker may be silent before others take its jobs"),
    Setting("--grace", "grace_s", "SECONDS", "how long running jobs may take to finish when the worker is told to stop"),
    Setting(
        "--block-warn-ms",
        "block_warn_ms",
        "MS",
        "how long a handler may hold the event loop before it is named and counted",
    ),
    Setting("--max-block", "max_block_s", "SECONDS", "how long the event loop may stand still before the worker counts as dead"),
    Setting(
        "--suspect",
        "suspect_s",
        "SECONDS",
        "how long the jobs of a worker that died run in isolation at first; doubled each time their worker dies again",
    ),
    Setting("--max-data", "max_data_bytes", "BYTES", "the longest payload; a job with a longer one becomes a dead letter"),
    Setting(
        "--unknown-after",
        "unknown_after_s",
        "SECONDS",
        "how long a job of a type that no live worker knows waits before it becomes a dead letter",
    ),
    Setting("--data-dir", "data_dir", "FOLDER", "where the embedded Valkey keeps its data; by default, in the home directory"),
    Setting(
        "--handlers-config", "handlers_config", "FILE", "settings of the shipped handlers (mail servers, folders, databases)"
    ),
    Setting("--embedded-port", "embedded_port", "PORT", "let the embedded Valkey listen on this loopback port too; 0 opens none"),
    Setting(
        "--child-env",
        "child_env",
        "NAMES",
        "what child processes of handlers get of the environment beside PATH and the like: names and globs, separated by commas",
    ),
    Setting(
        "--debuggable",
        "debuggable",
        "",
        "let debuggers and profilers of the same user attach, and core dumps be written; its memory holds passwords",
    ),
    Setting(
        "--trace-url",
        "trace_url",
        "URL",
        "where a trace is looked at, with {trace_id} for its id, such as http://127.0.0.1:16686/trace/{trace_id}",
    ),
    Setting(
        "--trace-join",
        "trace_join",
        "HOW",
        "where a first attempt is traced: `child` of its sender's span, or `link` to it from a trace of its own",
    ),
    Setting(
        "--trace-trust",
        "trace_trust",
        "ON",
        "whether `traceparent` of messages counts, `on` or `off`: a sender's flag has its jobs traced",
    ),
    Setting(
        "--trace-errors",
        "trace_errors",
        "WHAT",
        "what spans say of an error: `full`, or only its `class`, since messages may hold values",
    ),
    Setting("--trace-spans-per-s", "trace_spans_per_s", "N", "how many jobs a second are traced because their senders said so"),
    Setting(
        "--trace-forced-per-s",
        "trace_forced_per_s",
        "N",
        "how many attempts a second are traced that were not sampled, and failed or were slow; deaths always are",
    ),
    Setting("--slow-ms", "slow_ms", "MS", "an attempt that runs for longer is traced, whatever the sampling"),
    Setting("--log", "log", "FORMAT", "plain, json, or auto: plain on a terminal, JSON elsewhere"),
    Setting("--log-level", "log_level", "LEVEL", "debug, info, warning or error"),
)

# Guesses, but for ports (16 bits) and payloads (Redis has strings of 512 MB): beyond them a value is a slip of the keyboard.
_BOUNDS: Final[dict[str, tuple[float, float]]] = {
    "concurrency": (1, 100_000),
    "reserved": (-1, 99_999),
    "threads": (1, 10_000),
    "processes": (1, 512),
    "max_rss_mb": (0, 1024 * 1024),
    "lease_s": (0.3, 3600),
    "grace_s": (0, 24 * 3600),
    "max_block_s": (0.5, 24 * 3600),
    "block_warn_ms": (20, 60_000),
    "suspect_s": (0.1, 60),
    "max_data_bytes": (1, 512 * 1024 * 1024),
    "unknown_after_s": (1, 30 * 86400),
    "embedded_port": (0, 65535),
    "trace_spans_per_s": (0, 1_000_000),
    "trace_forced_per_s": (0, 1_000_000),
    "slow_ms": (1, 86_400_000),
}
_CHOICES: Final = {
    "board_pages": ("on", "off"),
    "log": ("auto", "plain", "json"),
    "log_level": ("debug", "info", "warning", "error"),
    "trace_join": ("child", "link"),
    "trace_trust": ("on", "off"),
    "trace_errors": ("full", "class"),
}

# A host, without user and password; then letters of a URL, no other braces among them, and none that ends an attribute of a page.
_TRACE_URL: Final = re.compile(
    r"https?://[A-Za-z0-9\[][A-Za-z0-9.:\]-]*/X*\{trace_id\}X*".replace("X", r"[A-Za-z0-9!#$%&()*+,./:;=?@\[\]_~-]")
)
_PREFIX: Final = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
_LABEL: Final = re.compile(r"[^=]{1,40}(=(ok|warn|bad))?")
_NAMES_OF_VARIABLES: Final = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?]*")
_HEX_ID: Final = re.compile("[0-9a-f]{32}")


def load(flags: Mapping[str, str | None], environment: Mapping[str, str], folder: Path) -> Config:
    """Return the settings in force. `flags` has those that were given, by field; `folder` is where the file may be.

    Raises:
        ConfigError: a value that cannot be used, with where it came from; an unknown key in the file, or one that is not trusted.
    """
    from_file = _read(folder / FILE)
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for setting in SETTINGS:
        flag = flags.get(setting.field)
        if flag is not None:
            value, source = flag, setting.flag
        elif environment.get(setting.variable):
            value, source = environment[setting.variable], setting.variable
        elif setting.key in from_file:
            value, source = from_file[setting.key], f"{FILE}: {setting.key}"
        else:
            continue
        values[setting.field], sources[setting.field] = _convert(setting, value, source), source
    config = Config(**values)
    if config.reserved >= config.concurrency:
        raise ConfigError(f"{sources['reserved']} {config.reserved}: must be less than the concurrency, {config.concurrency}")
    return config if config.data_dir else msgspec.structs.replace(config, data_dir=str(default_data_dir(environment)))


def default_data_dir(environment: Mapping[str, str]) -> Path:
    """Return the user's folder for data that must be kept, by the XDG base directory specification."""
    base = environment.get("XDG_DATA_HOME") or os.path.join(environment.get("HOME", "~"), ".local", "share")
    return Path(base).expanduser() / "backend-jobs"


def address_of(board: str) -> tuple[str, int] | None:
    """Return host and port of `--board`; None for `off`.

    Raises:
        ConfigError: it is neither; the text does not repeat it.
    """
    if board == "off":
        return None
    host, _, port = board.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError("must be HOST:PORT, such as 127.0.0.1:8080, or off")
    return host.strip("[]"), int(port)


def names_in(text: str) -> list[str]:
    """Return the names and globs of a list with commas."""
    return [name for part in text.split(",") if (name := part.strip())]


def _check_child_env(text: str) -> None:
    for name in names_in(text):
        if not _NAMES_OF_VARIABLES.fullmatch(name):
            raise ConfigError("must be names of variables, or globs such as SHOP_*, with commas between")
        if WITHHELD.fullmatch(name):
            raise ConfigError(f"{name} is the worker's own, and no child gets it; hint: give handlers a variable of their own")


def check_trace_url(template: str) -> None:
    """Do nothing for a template that links to traces can be made of, and for an empty one.

    Raises:
        ConfigError: it is none; the text does not repeat it, since it may hold a password.
    """
    if template and not _TRACE_URL.fullmatch(template):
        raise ConfigError(
            f"must be http://HOST/… or https://HOST/… with {TRACE_ID} once, such as http://127.0.0.1:16686/trace/{TRACE_ID}"
        )


def trace_url_of(template: str, trace_id: str) -> str:
    """Return the address of a trace: the checked `template` with the id of 32 hex digits in it; empty without either of them."""
    return template.replace(TRACE_ID, trace_id) if _HEX_ID.fullmatch(trace_id) else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            for what, place in (("", file.fileno()), ("its folder, ", path.parent)):
                why = why_not(place)
                if why:
                    raise ConfigError(f"{path} cannot be trusted: {what}{why}; or start elsewhere, with flags or variables")
            found = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    known = {setting.key for setting in SETTINGS}
    unknown = sorted(set(found) - known)
    if unknown:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r}; there are {', '.join(sorted(known))}")
    return found


def _convert(setting: Setting, value: Any, where: str) -> Any:
    kind: Any = next(field.type for field in msgspec.structs.fields(Config) if field.name == setting.field)
    try:
        converted = msgspec.convert(value, kind, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(f"{where} {_shown(value)}: must be {_KINDS[kind]}") from None
    low, high = _BOUNDS.get(setting.field, (None, None))
    if low is not None and high is not None and not low <= converted <= high:
        raise ConfigError(f"{where} {_shown(value)}: must be between {low} and {high}")
    choices = _CHOICES.get(setting.field)
    if choices and converted not in choices:
        raise ConfigError(f"{where} {_shown(value)}: must be one of {', '.join(choices)}")
    if setting.field == "board":
        try:
            address_of(converted)
        except ConfigError as error:
            raise ConfigError(f"{where} {_shown(value)}: {error}") from None
    if setting.field == "child_env":
        try:
            _check_child_env(converted)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    if setting.field == "app_version" and not (converted.isprintable() and len(converted) <= MAX_VERSION_CHARS):
        raise ConfigError(f"{where}: must be at most {MAX_VERSION_CHARS} printable characters")
    if setting.field == "board_prefix" and converted and not _PREFIX.fullmatch(converted):
        raise ConfigError(f"{where} {_shown(value)}: must be a path such as /jobs, without a slash at its end")
    if setting.field == "board_label" and converted and not (_LABEL.fullmatch(converted) and converted.isprintable()):
        raise ConfigError(f"{where} {_shown(value)}: must be up to 40 characters, with =ok, =warn or =bad behind them or nothing")
    if setting.field == "trace_url":
        try:
            check_trace_url(converted)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
    return converted


def _shown(value: Any) -> str:
    """Return a value as an error has it: as it was given, and in quotes where that could not be read."""
    text = str(value)
    return text if text.isprintable() and text and not any(map(str.isspace, text)) else repr(value)


# Only TOML can give what is no text.
_KINDS: Final = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
