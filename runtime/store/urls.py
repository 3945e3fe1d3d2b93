"""What a Redis URL says: the parts of one that names sentinels, its text as it may be shown, and the redis-cli that reaches it.

Opens nothing: `connection` does.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from runtime.errors import ConfigError

SENTINEL_EXAMPLE: Final = "sentinel://host:26379,host:26379/mymaster"
_PASSWORD: Final = re.compile(r"(\bpassword=)[^&#]*")  # among the options of a URL, where redis-py reads one too
_DOWN: Final = {b"s_down", b"o_down"}  # as this sentinel sees it, or as enough of them do


def without_password(url: str) -> str:
    """Return the URL as it may be shown to people and logs, also one that is none: its scheme may have been forgotten."""
    head, at, tail = _PASSWORD.sub(r"\1***", url).rpartition("@")
    scheme, slashes, _ = head.partition("://")
    return f"{scheme if slashes else ''}{slashes}***@{tail}" if at else tail


class SentinelUrl(NamedTuple):
    """A `sentinel://` URL in its parts: who is asked for which service, and how its servers are entered."""

    sentinels: list[tuple[str, int]]
    service: str
    db: int
    username: str | None
    password: str | None


def parse_sentinel_url(url: str) -> SentinelUrl:
    """Return the parts of `sentinel://[user:pass@]host:port[,host:port...]/service[/db]`.

    Raises:
        ConfigError: it is no such URL.
    """
    try:
        # By hand: what `urlsplit` says to several hosts with an IPv6 address among them differs between releases of Python.
        authority, _, path = url.removeprefix("sentinel://").partition("/")
        credentials, _, hosts = authority.rpartition("@")
        username, _, password = map(unquote, credentials.partition(":"))
        service, _, db = path.strip("/").partition("/")
        addresses = [host.rpartition(":") for host in hosts.split(",")]
        sentinels = [(host.strip("[]"), int(port)) for host, _, port in addresses]
        if not service or not all(host for host, _ in sentinels) or "?" in url or "#" in url:
            raise ValueError
        return SentinelUrl(sentinels, unquote(service), int(db or 0), username or None, password or None)
    except ValueError:
        raise ConfigError(f"Redis URL {without_password(url)!r}: must look like {SENTINEL_EXAMPLE}") from None


def master_in(answer: Any, service: bytes) -> tuple[str, int] | None:
    """Return the address of a service's master out of a sentinel's answer, if it takes it for one that lives."""
    try:
        masters = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in answer]
        for told in masters:
            flags = set(told[b"flags"].split(b","))
            if told[b"name"] == service and b"master" in flags and not flags & _DOWN:
                return told[b"ip"].decode(), int(told[b"port"])
    except (TypeError, ValueError, LookupError, AttributeError):  # an error, or what answers there is no sentinel
        pass
    return None


def redis_cli(url: str) -> str:
    """Return the redis-cli call that reaches this server, as one would type it; a password is left to the environment."""
    if url.startswith("unix://"):
        return f"redis-cli -s {url[7:].partition('?')[0]}"
    if url.startswith("sentinel://"):
        sentinel_url = parse_sentinel_url(url)
        host, port = sentinel_url.sentinels[0]
        ask = f"redis-cli -h {host} -p {port} SENTINEL GET-MASTER-ADDR-BY-NAME {sentinel_url.service}"
        enter = 'REDISCLI_AUTH="$REDIS_PASSWORD" ' if sentinel_url.password else ""
        user = f"--user {sentinel_url.username} " if sentinel_url.username else ""
        return f"{enter}redis-cli {user}$({ask} | xargs printf -- '-h %s -p %s')"
    return 'redis-cli -u "$REDIS_URL"' if without_password(url) != url else f"redis-cli -u {url}"
