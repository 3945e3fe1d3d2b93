"""Reading the handlers' settings from `handlers.toml` and the environment, which overrides it; `sections` says what they hold.

A job that meets a fault of the settings waits without spending an attempt, and the fault is logged.
"""

from __future__ import annotations

import contextlib
import os
import tomllib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar, cast

import msgspec

from handlers.contracts.types import Alias
from handlers.kit.failures import wait_for_operator
from handlers.kit.sections import (
    Advisories,
    Audit,
    Backup,
    Channel,
    Cleanup,
    Compliance,
    Crm,
    Database,
    Documents,
    Log,
    Mode,
    Models,
    Report,
    Root,
    RuleFolder,
    Scan,
    Sender,
    Smtp,
    Sync,
    Templates,
    Threats,
)
from runtime import ConfigError

VARIABLE: Final = "RUNTIME_HANDLERS_CONFIG"
PREFIX: Final = "RUNTIME_HANDLERS__"

S = TypeVar("S", bound=msgspec.Struct)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The sections of `handlers.toml`, validated."""

    smtp: dict[str, Smtp] = {}
    senders: dict[str, Sender] = {}
    templates: Templates | None = None
    documents: Documents | None = None
    roots: dict[str, Root] = {}
    databases: dict[str, Database] = {}
    cleanups: dict[str, Cleanup] = {}
    backups: dict[str, Backup] = {}
    reports: dict[str, Report] = {}
    compliance: Compliance = Compliance()
    audits: dict[str, Audit] = {}
    channels: dict[str, Channel] = {}
    crm: dict[str, Crm] = {}
    syncs: dict[str, Sync] = {}
    models: Models | None = None
    advisories: dict[str, Advisories] = {}
    scans: dict[str, Scan] = {}
    logs: dict[str, Log] = {}
    rules: dict[str, RuleFolder] = {}
    threats: dict[str, Threats] = {}

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

    def check_root(self, place: str, path: str, mode: Mode) -> None:
        """Return if what is sent again and again by `place` may do this in a root, which is named alone or before a path.

        Raises:
            ConfigError: it may not.
        """
        alias = path.partition(":")[0]
        root = self.roots.get(alias)
        if root is None or not root.allows(mode):
            raise ConfigError(f"{place}: root {alias!r}: must be in `roots`, with mode {mode!r}")

    def database(self, alias: str) -> Database:
        """Return a database.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.databases.get(alias) or _missing("databases", alias)

    def backup(self, alias: str) -> Backup:
        """Return what is to be backed up, and where to.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.backups.get(alias) or _missing("backups", alias)

    def channel(self, alias: str) -> Channel:
        """Return a channel of notifications.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.channels.get(alias) or _missing("channels", alias)

    def crm_of(self, alias: str) -> Crm:
        """Return a CRM.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.crm.get(alias) or _missing("crm", alias)

    def advisories_of(self, alias: str) -> Advisories:
        """Return a database of advisories.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.advisories.get(alias) or _missing("advisories", alias)

    def log(self, alias: str) -> Log:
        """Return a source of logs.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.logs.get(alias) or _missing("logs", alias)

    def rule_folder(self, alias: str) -> RuleFolder:
        """Return a folder of Sigma rules.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.rules.get(alias) or _missing("rules", alias)

    def analysis(self, alias: str) -> Threats:
        """Return an analysis of logs.

        Raises:
            Snooze: there is none of that name; `alias-missing`.
        """
        return self.threats.get(alias) or _missing("threats", alias)

    def registry(self) -> Models:
        """Return where models are, and what jobs may do with them.

        Raises:
            Snooze: nothing is said of models; `alias-missing`.
        """
        return self.models or _missing("models")


def _missing(section: str, alias: str = "") -> NoReturn:
    where = os.environ.get(VARIABLE) or f"handlers.toml (no {VARIABLE} is set)"
    raise wait_for_operator(f"{section}.{alias}".rstrip("."), "alias-missing", f"not in {where}")


# --- reading -------------------------------------------------------------------------------------------------------------


def at_start() -> Settings:
    """Return the settings as they are when a process starts.

    Raises:
        ConfigError: the file is missing, or cannot be used.
    """
    path = os.environ.get(VARIABLE, "")
    if path and not os.path.exists(path):
        raise ConfigError(f"{path}: no such file; hint: --handlers-config, or {VARIABLE}")
    return load(path, os.environ)


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
    templates, documents, models = raw.get("templates"), raw.get("documents"), raw.get("models")
    return Settings(
        smtp=_aliases(path, raw, "smtp", Smtp),
        senders=_aliases(path, raw, "senders", Sender),
        templates=None if templates is None else _struct(path, "templates", templates, Templates),
        documents=None if documents is None else _struct(path, "documents", documents, Documents),
        roots=_aliases(path, raw, "roots", Root),
        databases=_aliases(path, raw, "databases", Database),
        cleanups=_named(path, raw, "cleanups", "root", Cleanup),
        backups=_named(path, raw, "backups", "db", Backup),
        reports=_named(path, raw, "reports", "report", Report),
        compliance=_struct(path, "compliance", raw.get("compliance", {}), Compliance),
        audits=_named(path, raw, "audits", "profile", Audit),
        channels=_aliases(path, raw, "channels", Channel),
        crm=_aliases(path, raw, "crm", Crm),
        syncs=_named(path, raw, "syncs", "resource", Sync),
        models=None if models is None else _struct(path, "models", models, Models),
        advisories=_aliases(path, raw, "advisories", Advisories),
        scans=_aliases(path, raw, "scans", Scan),
        logs=_aliases(path, raw, "logs", Log),
        rules=_aliases(path, raw, "rules", RuleFolder),
        threats=_aliases(path, raw, "threats", Threats),
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
        place[key] = _value(environment[name])


def _value(text: str) -> Any:
    """Return a list where the text is one in JSON; else the text, which is converted as the key needs it."""
    if text.startswith("["):
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.json.decode(text)
    return text


def _aliases(path: str, raw: Mapping[str, Any], section: str, kind: type[S]) -> dict[str, S]:
    return {alias: _struct(path, f"{section}.{alias}", value, kind) for alias, value in _section(path, raw, section).items()}


def _section(path: str, raw: Mapping[str, Any], section: str) -> dict[str, Any]:
    return _converted(path, section, raw.get(section, {}), dict[Alias, Any])


def _named(path: str, raw: Mapping[str, Any], section: str, key: str, kind: type[S]) -> dict[str, S]:
    """Return a section in which each alias is also the value of this key, where it has none."""
    found = _section(path, raw, section)
    for alias, value in found.items():
        if isinstance(value, dict):
            found[alias] = {key: alias, **cast("dict[str, Any]", value)}
    return {alias: _struct(path, f"{section}.{alias}", value, kind) for alias, value in found.items()}


def _struct(path: str, place: str, value: Any, kind: type[S]) -> S:
    return _converted(path, place, value, kind)


def _converted(path: str, place: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind, strict=False)  # the environment has only text
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or PREFIX}: {place}: {error}") from None
