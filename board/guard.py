"""What is checked of every request to the pages before anything is done for it, and the headers of every answer.

Who asks is not known here: a name that a browser was led astray by, a page of another site, and too many requests look the same
whoever sends them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv6Address, ip_address
from typing import Final, Literal

from board.api import JSON, Refused

REQUESTS_S: Final = 50.0  # of one address; a guess: a page with all its parts is ten, a person opens no five pages a second
ACTIONS_S: Final = 5.0  # of one address; a guess: nobody clicks faster
TRIES: Final = 5  # to log in, of one address in TRIES_S
TRIES_S: Final = 60.0
MAX_ADDRESSES: Final = 10_000  # that are remembered; a guess: 2 MB
LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
ANYWHERE: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 -- how an address says that it is all of them

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Return whether an address of this name can be reached from this host alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Hosts:
    """The names that the pages may be asked for by: a name that leads here by a trick of DNS is none of them.

    A board that listens on all addresses takes each of them as a name, since a trick of DNS needs a name.
    """

    def __init__(self, bound: str, more: Iterable[str] = ()) -> None:
        self._names = LOCAL | {bound.lower(), *(name.lower() for name in more)}
        self._is_anywhere = bound in ANYWHERE

    def __repr__(self) -> str:
        return f"<Hosts {', '.join(sorted(self._names))}>"

    def check(self, host: str) -> None:
        """Return where a `Host` is one of ours, whatever its port.

        Raises:
            Refused: it is not.
        """
        name = host_of(host)
        if name in self._names or (self._is_anywhere and _is_address(name)):
            return
        raise Refused(421, "host", "this board is not asked for by this name; hint: --board-host NAME")


def host_of(host: str) -> str:
    """Return a `Host` without its port, an IPv6 address without brackets; empty for one that is none."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        port = port.removeprefix(":") if bracket else host  # one that is not closed is none
    else:
        name, _, port = host.partition(":")
    return name.lower() if not port or (port.isascii() and port.isdigit()) else ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def check_reading(headers: Mapping[str, str]) -> None:
    """Return where what the API or the stream is asked for may be read: not by a page of another site.

    Raises:
        Refused: a browser says that such a page asks.
    """
    site = headers.get("Sec-Fetch-Site", "none")
    if site not in ("same-origin", "none"):
        raise Refused(403, "site", "pages of other sites may not ask")


def check_acting(headers: Mapping[str, str], *, is_bearer: bool) -> None:
    """Return where a POST comes from our own page, or from a script that shows its token with each request.

    A browser that sends neither `Sec-Fetch-Site` nor `Origin` cannot be told from a page of another site.

    Raises:
        Refused: it does not, or is no JSON.
    """
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != JSON:
        raise Refused(415, "json", f"a POST must be {JSON}")
    if "Content-Encoding" in headers:
        raise Refused(415, "json", "a POST must not be compressed")
    site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
    if site is not None:
        is_ours = site == "same-origin"
    elif origin is not None:
        is_ours = origin.lower() in (f"{scheme}://{headers.get('Host', '').lower()}" for scheme in ("http", "https"))
    else:
        is_ours = is_bearer
    if not is_ours:
        raise Refused(403, "site", "this is done only for the board's own page, or with a bearer token")


class Limiter:
    """Owns how much each address has asked for: requests, actions, and tries to log in that have failed.

    Addresses of one IPv6 network of 64 bits are one: whoever has one of them has them all.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_s: dict[tuple[str, str], float] = {}  # when the bucket of one kind and address was, or will be, empty

    def __repr__(self) -> str:
        return f"<Limiter of {len(self._full_s)}>"

    def take(self, kind: Literal["requests", "actions"], address: str) -> None:
        """Count a request or an action.

        Raises:
            Refused: there were too many in the last second.
        """
        rate_s = REQUESTS_S if kind == "requests" else ACTIONS_S
        if not self._take(kind, address, 1 / rate_s, 1.0):
            raise Refused(429, "many", f"more than {rate_s:g} {kind} a second")

    def check_tries(self, address: str) -> None:
        """Return where an address may try to log in.

        Raises:
            Refused: it has failed too often in the last minute.
        """
        each_s = TRIES_S / TRIES
        if self._full_s.get(("tries", network_of(address)), 0.0) + each_s / 2 > self._clock() + TRIES_S:
            raise Refused(429, "tries", "too many tries to log in: wait for a minute")

    def count_try(self, address: str) -> None:
        """Count a try to log in that has failed."""
        self._take("tries", address, TRIES_S / TRIES, TRIES_S)

    def _take(self, kind: str, address: str, each_s: float, most_s: float) -> bool:
        """Take one out of a bucket that takes `most_s` to fill, and `each_s` for one; return whether there was one."""
        key, now_s = (kind, network_of(address)), self._clock()
        full_s = max(self._full_s.pop(key, 0.0), now_s) + each_s
        is_there = full_s <= now_s + most_s + each_s / 2  # half of one for the rounding of many sums
        self._full_s[key] = full_s if is_there else full_s - each_s
        if len(self._full_s) > MAX_ADDRESSES:
            del self._full_s[next(iter(self._full_s))]  # the one that has asked for nothing for the longest time
        return is_there


def network_of(address: str) -> str:
    """Return what an address is counted as."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
        return f"{IPv6Address(int(found) >> 64 << 64)}/64"
    return str(getattr(found, "ipv4_mapped", None) or found)
