"""Auth finds out who asks: by a session's cookie, a bearer token, or what a trusted proxy says of its user."""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

import msgspec

from board.access import ALL, MAX_TOKEN, ROLES, Access, Proxy, Rights, read_tokens
from board.api import Refused
from board.guard import Limiter
from board.shapes import Right
from board.viewer import GUEST, Viewer
from runtime.errors import ConfigError
from runtime.worker.log import ThrottledLog

SESSION_S: Final = 12 * 3600.0  # a working day
MAX_SESSIONS: Final = 1000  # a guess; the oldest ends
LOOK_S: Final = 1.0  # between two looks whether the file of tokens has changed; a guess
MAX_USER: Final = 60  # characters of a user's name that a proxy tells, so that it fits into the audit; a guess
BEARER: Final = "Bearer "
NOBODY: Final[Rights] = frozenset[Right]()


class Headers(Protocol):
    """The headers of a request, which may stand in it several times."""

    def get(self, key: str, /) -> str | None:
        """Return the first one of this name."""
        ...

    def getall(self, key: str, default: Any, /) -> Any:
        """Return all of this name."""
        ...


class _Session(msgspec.Struct, frozen=True):
    """Who has logged in, with a token of this digest, and until when."""

    who: str
    token: bytes
    end_s: float


class Auth:
    """Owns the sessions, as digests of what the cookies hold, and the tokens in force. All of it ends with this process."""

    def __init__(
        self,
        access: Access,
        token_file: str = "",
        limiter: Limiter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._access = access
        self._file = token_file
        self._limiter = limiter or Limiter()
        self._clock = clock
        self.link_token = secrets.token_urlsafe(24) if access.is_open else ""
        self._roles = self._digests(access.tokens)
        self._sessions: dict[bytes, _Session] = {}
        self._looked_s, self._state = clock(), self._state_of_file()
        self._log = ThrottledLog()

    def __repr__(self) -> str:
        return f"<Auth, {len(self._sessions)} sessions>"

    @property
    def has_login(self) -> bool:
        """Return whether there is a token to log in with."""
        return bool(self._roles)

    def viewer(self, headers: Headers, address: str, cookie: str, *, is_proxied: bool = False) -> Viewer:
        """Return who asks. `cookie` is the name of ours, `is_proxied` says that the request came by the proxy's own socket.

        Raises:
            Refused: a bearer token is none of ours, or this address has tried too many.
        """
        self._look_for_new_tokens()
        proxy = self._access.proxy
        if proxy is not None and (is_proxied or _has_secret(proxy, headers)):
            user = self._user(proxy, headers, address)
            if user is not None:
                return user
        given = headers.get("Authorization") or ""
        if given.startswith(BEARER):
            role = self._role_of(given.removeprefix(BEARER).strip(), address)
            return Viewer(*self._as_role(role), address)
        found = self._session(_cookie(headers.get("Cookie") or "", cookie))
        if found is not None:
            digest, session = found
            return Viewer(*self._as_role(self._roles[session.token]), address, digest.hex()[:16])
        return self.guest(address)

    def guest(self, address: str) -> Viewer:
        """Return one who has not logged in."""
        return Viewer(GUEST, ROLES["view"] if self._access.is_open else NOBODY, address)

    def login(self, token: str, address: str) -> tuple[str, Viewer]:
        """Begin a session; return what its cookie holds, and who has it now.

        Raises:
            Refused: the token is none of ours, or this address has tried too many.
        """
        self._look_for_new_tokens()
        role = self._role_of(token, address)
        self._forget_ended()
        if len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        value = secrets.token_urlsafe(24)
        digest = _digest(value)
        self._sessions[digest] = _Session(role, _digest(token), self._clock() + SESSION_S)
        return value, Viewer(*self._as_role(role), address, digest.hex()[:16])

    def logout(self, viewer: Viewer) -> None:
        """End the session of a viewer; its streams see that with their next frame."""
        for digest in [digest for digest in self._sessions if viewer.session and digest.hex()[:16] == viewer.session]:
            del self._sessions[digest]

    def _role_of(self, token: str, address: str) -> str:
        self._limiter.check_tries(address)
        given = _digest(token[: MAX_TOKEN + 1])
        found = [role for digest, role in self._roles.items() if hmac.compare_digest(digest, given)]
        if not found:
            self._limiter.count_try(address)
            self._log.warn("the board: a token from %s is none of ours", ascii(address))
            raise Refused(401, "token", "this is no token of this board")
        return found[0]

    def _as_role(self, role: str) -> tuple[str, Rights]:
        return (_own_name(), ALL) if self._access.is_open else (role, self._access.rights_of(role))

    def _digests(self, tokens: Mapping[str, str]) -> dict[bytes, str]:
        """Return the roles by the digests of their tokens: digests are of one length, and can be compared in constant time."""
        return {
            _digest(token): role for role, token in (tokens or ({"link": self.link_token} if self.link_token else {})).items()
        }

    def _session(self, value: str) -> tuple[bytes, _Session] | None:
        digest = _digest(value)
        session = self._sessions.get(digest) if value else None
        if session is None or session.end_s <= self._clock() or session.token not in self._roles:
            return None
        return digest, session

    def _forget_ended(self) -> None:
        now_s = self._clock()
        self._sessions = {digest: one for digest, one in self._sessions.items() if one.end_s > now_s and one.token in self._roles}

    def _user(self, proxy: Proxy, headers: Headers, address: str) -> Viewer | None:
        """Return the user that a trusted proxy names, with what their names may do; None where it names nobody, or several."""
        named = headers.getall(proxy.user_header, [])
        if len(named) != 1 or not named[0].strip():
            return None
        user = named[0].strip()
        names = {user}
        if proxy.groups_header:
            names |= {name.strip() for value in headers.getall(proxy.groups_header, []) for name in value.split(",")}
        rights = NOBODY.union(*(self._access.rights_of(role) for role, listed in proxy.roles.items() if names & set(listed)))
        shown = "".join(char if char.isprintable() and char != " " else "_" for char in user[:MAX_USER])
        return Viewer(shown, rights, f"{address} {shown}")

    def _look_for_new_tokens(self) -> None:
        """Read the file of tokens again where it has changed: sessions of a token that is gone are none any more."""
        now_s = self._clock()
        if not self._file or now_s < self._looked_s + LOOK_S:
            return
        self._looked_s = now_s
        state = self._state_of_file()
        if state == self._state:
            return
        self._state = state
        try:
            self._roles = self._digests(read_tokens(self._file, {}))
        except ConfigError as error:
            self._log.warn("the board: the tokens in force stay: %s", error)

    def _state_of_file(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def _has_secret(proxy: Proxy, headers: Headers) -> bool:
    given = headers.getall(proxy.secret_header, [])
    return bool(proxy.secret) and len(given) == 1 and hmac.compare_digest(_digest(given[0]), _digest(proxy.secret))


def _cookie(text: str, name: str) -> str:
    """Return the value of a cookie; empty where there is none."""
    for part in text.split(";"):
        key, equals, value = part.strip().partition("=")
        if equals and key == name:
            return value
    return ""


def _own_name() -> str:
    """Return who has started this process: the one who has its link."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account without a name, as in a container
        return f"user-{os.geteuid()}"
