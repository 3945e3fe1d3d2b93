"""Access is who may enter the board, as the settings say: tokens of roles, a trusted proxy, or the login link of this start.

What the settings leave open to the network without a login, or without TLS, is refused here, before anything listens.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from board.guard import is_loopback
from board.shapes import Right
from runtime.config import Config, address_of
from runtime.errors import ConfigError
from runtime.folders import why_no_secret

Rights = frozenset[Right]

ROLES: Final[dict[str, Rights]] = {
    "view": frozenset({"view"}),
    "payload": frozenset({"view", "payload"}),
    "operate": frozenset({"view", "payload", "operate"}),
}
ALL: Final[Rights] = frozenset({"view", "payload", "operate", "send"})
SEND: Final[Rights] = frozenset({"send"})
MIN_TOKEN: Final = 16  # characters; a guess: at five tries a minute, 8 of hexadecimal would do
MAX_TOKEN: Final = 500  # as LoginAsk has it
MAX_FILE_BYTES: Final = 64 * 1024  # a guess: some hundred names


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A proxy that is believed who the user is, in requests that carry the secret, or come by the socket that it alone may open.

    `roles` has by role the exact names of users, and of what `groups_header` says, separated by commas.
    """

    secret: str = ""
    socket: str = ""
    secret_header: str = "X-Board-Secret"  # noqa: S105 -- a name
    user_header: str = "X-Forwarded-User"
    groups_header: str = ""
    roles: dict[str, list[str]] = {}


class Access(msgspec.Struct, frozen=True):
    """Who may enter. Without tokens and proxy, whoever reaches the port may look, and has all rights by the login link."""

    tokens: dict[str, str]
    proxy: Proxy | None
    may_send: bool
    is_open: bool
    prefix: str
    hosts: tuple[str, ...]
    label: str
    label_level: str

    def rights_of(self, role: str) -> Rights:
        """Return what a role may do; nothing, if it is none."""
        rights = ROLES.get(role, frozenset[Right]())
        return rights | SEND if role == "operate" and self.may_send else rights


def read(config: Config, environment: Mapping[str, str]) -> Access:
    """Return who may enter, out of the settings and the files that they name.

    Raises:
        ConfigError: a file cannot be used, or the board would be open to the network.
    """
    tokens = read_tokens(config.board_token_file, environment)
    proxy = _read_proxy(config.board_proxy) if config.board_proxy else None
    address = address_of(config.board)
    if address is not None and not is_loopback(address[0]):
        _check_exposure(config, has_login=bool(tokens or proxy), has_proxy=proxy is not None)
    label, _, level = config.board_label.partition("=")
    return Access(
        tokens=tokens,
        proxy=proxy,
        may_send=config.board_send,
        is_open=not tokens and proxy is None,
        prefix=config.board_prefix,
        hosts=tuple(name.strip().strip("[]") for name in config.board_host.split(",") if name.strip()),
        label=label,
        label_level={"": "ok", "ok": "ok", "warn": "look", "bad": "act"}[level],
    )


def _check_exposure(config: Config, *, has_login: bool, has_proxy: bool) -> None:
    where = f"--board {config.board} can be reached from elsewhere"
    if not has_login:
        raise ConfigError(
            f"{where}, and nobody would have to log in; hint: --board-token-file or --board-proxy, "
            "or --board-pages off for health and metrics alone"
        )
    if not has_proxy and not config.board_insecure:
        raise ConfigError(
            f"{where}, and tokens and payloads would travel in clear; hint: put a proxy with TLS before a board on 127.0.0.1, "
            "or --board-insecure where the network is trusted"
        )


def read_tokens(path: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the tokens by role: those of the file, else those of the environment.

    Raises:
        ConfigError: the file cannot be used, or a token is too short or stands twice; the text repeats none.
    """
    found: dict[str, Any] = {}
    for role in ROLES:
        if environment.get(f"RUNTIME_BOARD_{role.upper()}_TOKEN"):
            found[role] = environment[f"RUNTIME_BOARD_{role.upper()}_TOKEN"]
    where = "RUNTIME_BOARD_{VIEW,PAYLOAD,OPERATE}_TOKEN"
    if path:
        found, where = _read_toml(path, "--board-token-file"), path
        if not found or set(found) - set(ROLES):
            raise ConfigError(f'--board-token-file {path}: must have lines such as view = "TOKEN", of view, payload and operate')
    for role, token in found.items():
        is_fit = isinstance(token, str) and token.isascii() and token.isprintable() and " " not in token
        if not is_fit or not MIN_TOKEN <= len(token) <= MAX_TOKEN:
            raise ConfigError(
                f"{where}: {role}: must be {MIN_TOKEN} to {MAX_TOKEN} letters, digits and signs; hint: openssl rand -hex 16"
            )
    if len(set(found.values())) < len(found):
        raise ConfigError(f"{where}: each role must have a token of its own")
    return found


def _read_proxy(path: str) -> Proxy:
    try:
        proxy = msgspec.convert(_read_toml(path, "--board-proxy"), Proxy)
    except msgspec.ValidationError as error:
        raise ConfigError(f"--board-proxy {path}: {error}") from None
    if not proxy.socket and len(proxy.secret) < MIN_TOKEN:
        raise ConfigError(f"--board-proxy {path}: secret: must be at least {MIN_TOKEN} characters, or socket a path")
    if not proxy.secret.isascii() or not proxy.secret.isprintable():
        raise ConfigError(f"--board-proxy {path}: secret: must be letters, digits and signs")
    unknown = sorted(set(proxy.roles) - set(ROLES))
    if unknown or not proxy.roles:
        raise ConfigError(f"--board-proxy {path}: roles: must have lists of names for some of {', '.join(ROLES)}")
    return proxy


def _read_toml(path: str, flag: str) -> dict[str, Any]:
    """Return what a file with secrets says. It is read by the descriptor that was checked.

    Raises:
        ConfigError: others may read or write it, it is too long, or no TOML; the text repeats nothing of it.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            why = why_no_secret(file.fileno())
            if why:
                raise ConfigError(f"{flag} {path}: {why}")
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise ConfigError(f"{flag} {path}: must be at most {MAX_FILE_BYTES} bytes")
        return tomllib.loads(text.decode())
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise ConfigError(f"{flag} {path}: no TOML") from None


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; one that is a pipe is not waited for."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
