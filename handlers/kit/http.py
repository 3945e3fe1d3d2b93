"""Asking others over HTTP: to whom a request may go, and what the answer means for the job.

To whom is checked when a connection is opened, on the address itself: whatever a name, a literal in an odd form or a resolver
that changes its mind has led to. A redirect is never followed, and no proxy of the environment is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from random import random
from typing import Any, Final, cast
from urllib.parse import urlsplit

import aiohttp
import msgspec
from yarl import URL

from handlers.kit.circuits import Circuits
from handlers.kit.failures import TemporaryFailure, wait_for_operator
from handlers.kit.sections import IpAddress, Reach
from runtime import Dead, Snooze, lifespan

CONNECT_S: Final = 5.0  # a guess: a round trip around the world takes 0.3 s, and a lost SYN is sent again after 1 s and 3 s
TOTAL_S: Final = 25.0  # a guess: below the 30 s of a notification, so that a slow answer is told from a slow handler
KEEP_ALIVE_S: Final = 4.0  # below the 5 s after which Node and uvicorn close: a request must not meet a close on its way
PER_HOST: Final = 250  # connections; a guess: above the jobs that most workers run at once, as aiohttp's queue for more is unfair
MAX_BODY_BYTES: Final = 10 * 2**20  # after decompression; a guess: 100 records of 100 KiB
MAX_RETRY_AFTER_S: Final = 3600.0  # a guess: a job that waits longer than the receiver asks for costs it one request an hour
BUSY_S: Final = 30.0  # a guess: where a 429 does not say for how long
JITTER: Final = 0.5  # of a wait at a circuit: jobs that met it together do not come back together
USER_AGENT: Final = "backend-jobs"

# What `ipaddress` counts as global, or does not know, and what is no single machine of somebody else's: multicast, what RFCs have
# taken back, what stands for an IPv4 address of whatever kind (Teredo, 6to4), and of IPv6 all but 2000::/3 (RFC 4291).
_BLOCKED: Final = tuple(
    map(
        ipaddress.ip_network,
        (
            *("0.0.0.0/8", "192.0.0.0/24", "192.88.99.0/24", "224.0.0.0/4", "240.0.0.0/4"),
            *("::/3", "4000::/2", "8000::/1", "2001::/32", "2002::/16", "3fff::/20"),
        ),
    )
)
# RFC 5737, RFC 3849: for documentation, so that no machine has them. A system that binds those as well binds everything.
_NOBODY: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
_SECONDS: Final = re.compile(r"[0-9]{1,9}")

circuits = Circuits()


class EgressBlocked(OSError):
    """The address is none that the alias may reach."""


class Answer(msgspec.Struct, frozen=True):
    """What came back. `body` is None where it was larger than asked for, or not asked for."""

    status: int
    headers: Mapping[str, str]
    body: bytes | None
    took_ms: int

    def __repr__(self) -> str:
        return f"<Answer {self.status}, {len(self.body or b'')} bytes>"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to ask. `subject` stands for the URL in all texts, `circuit` for whom others ask as well.

    `is_ours` says that the URL and the credentials are the operator's, not of the payload. `known` are statuses that the caller
    wants to see, whatever they mean elsewhere.
    """

    subject: str
    circuit: str
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""
    max_bytes: int = MAX_BODY_BYTES
    is_ours: bool = True
    known: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"<Request {self.method} to {self.subject}>"


# --- to whom ---------------------------------------------------------------------------------------------------------------


def is_allowed(address: IpAddress, private: frozenset[IpAddress]) -> bool:
    """Return whether a connection to this address may be opened: to those in `private`, and to those of others in public."""
    if address in private:
        return True
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return False
    if not address.is_global or any(address in network for network in _BLOCKED):
        return False
    return not _is_own(address)


def _is_own(address: IpAddress) -> bool:
    """Return whether an interface of this machine has the address: only such can be bound."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return _binds(family, str(address)) and not _binds(family, _NOBODY[family])


def _binds(family: socket.AddressFamily, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _guarded_socket(ports: tuple[int, ...], private: frozenset[IpAddress], found: tuple[Any, ...]) -> socket.socket:
    """Return a socket for an address that was looked up.

    Raises:
        EgressBlocked: nothing may be sent there.
    """
    family, kind, protocol, _, place = found
    if place[1] not in ports or not is_allowed(ipaddress.ip_address(place[0]), private):
        raise EgressBlocked(errno.EACCES, "the address is not allowed")
    return socket.socket(family, kind, protocol)


@lru_cache(maxsize=1024)
def check_url(url: str, reach: Reach) -> None:
    """Return if a request may be sent to this URL, as far as it says where that is.

    Raises:
        ValueError: it is no URL of HTTP, or it is one in plain text that leaves the machine; the text does not show it.
    """
    try:
        parts = urlsplit(url)
        host, is_fit = parts.hostname or "", parts.port != 0 and URL(url, encoded=True).host is not None
    except ValueError:
        host, is_fit = "", False
        parts = urlsplit("")
    if not host or not is_fit or parts.scheme not in ("https", "http") or parts.username is not None:
        raise ValueError("must be an https URL without a user")
    if parts.scheme == "http":
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            if address.is_loopback and address in reach.private_addresses:
                return
        raise ValueError("must be https; hint: http is only for an address of the loopback interface that `private` lists")


# --- clients ---------------------------------------------------------------------------------------------------------------

_clients: dict[asyncio.AbstractEventLoop, dict[Reach, aiohttp.ClientSession]] = {}


async def _client(subject: str, reach: Reach) -> aiohttp.ClientSession:
    """Return the running loop's client for what may be reached; its connections serve all aliases that may reach the same.

    Raises:
        Snooze: the certificates to trust cannot be read; `alias-missing`.
    """
    loop = asyncio.get_running_loop()
    for closed in [each for each in _clients if each.is_closed()]:
        del _clients[closed]
    found = _clients.get(loop, {}).get(reach)
    if found is not None:
        return found
    try:
        trust = await asyncio.to_thread(_trusted, reach.ca_file) if reach.ca_file else True
    except OSError as error:  # of SSL as well
        raise wait_for_operator(subject, "alias-missing", f"ca_file: {type(error).__name__}") from error
    clients = _clients.setdefault(loop, {})
    if reach not in clients:  # another job may have made it meanwhile
        connector = aiohttp.TCPConnector(
            socket_factory=partial(_guarded_socket, reach.ports, reach.private_addresses),
            ssl=trust,
            limit=0,
            limit_per_host=PER_HOST,
            keepalive_timeout=KEEP_ALIVE_S,
        )
        clients[reach] = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(TOTAL_S, sock_connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT},
            trust_env=False,
        )
    return clients[reach]


@lru_cache(maxsize=32)
def _trusted(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file)


async def close_clients() -> None:
    """Close the clients of the running loop, with their connections."""
    for each in _clients.pop(asyncio.get_running_loop(), {}).values():
        await each.close()


@lifespan
async def clients() -> AsyncGenerator[None]:
    """Close the clients when the worker stops; a module of handlers that ask over HTTP imports this."""
    try:
        yield
    finally:
        await close_clients()


# --- asking ----------------------------------------------------------------------------------------------------------------


async def ask(request: Request, reach: Reach) -> Answer:
    """Return the answer, unless it means that the request was not done.

    Raises:
        Dead: `http-refused`, `redirect-refused`, `egress-blocked`.
        Snooze: `rate-limited`, `circuit-open`, `auth-failed`, `alias-missing`.
        TemporaryFailure: `http-5xx`, `connection-lost`, `timeout`.
    """
    reach = reach.reach
    try:
        check_url(request.url, reach)
    except ValueError as error:
        raise _bad_url(request, str(error)) from None
    wait_s = circuits.wait_s(request.circuit, time.monotonic())
    if wait_s:
        raise Snooze(wait_s * (1 + JITTER * random()), f"circuit-open: {request.subject}: too many faults in a row")  # noqa: S311
    try:
        found: Answer | Exception = await _sent(request, await _client(request.subject, reach))
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        found = error
    except BaseException:
        circuits.cut(request.circuit)
        raise
    outcome = outcome_of(request, found)
    if isinstance(outcome, TemporaryFailure):
        circuits.failed(request.circuit, time.monotonic())
    elif isinstance(found, Answer):
        circuits.succeeded(request.circuit)
    else:
        circuits.cut(request.circuit)
    if outcome is not None:
        raise outcome  # without its cause, whose text may show the URL
    return cast("Answer", found)  # an exception always has an outcome


async def _sent(request: Request, client: aiohttp.ClientSession) -> Answer:
    began_s = time.monotonic()
    async with client.request(
        request.method,
        URL(request.url, encoded=True),
        data=request.body or None,
        headers=request.headers,
        allow_redirects=False,
    ) as response:
        body = await _read(response, request.max_bytes)
        took_ms = round((time.monotonic() - began_s) * 1000)
        return Answer(response.status, response.headers, body, took_ms)


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """Return the body, None if it is larger; what comes after that is not read."""
    chunks: list[bytes] = []
    left_bytes = max_bytes
    async for chunk in response.content.iter_any():  # aiohttp decompresses in small pieces
        left_bytes -= len(chunk)
        if left_bytes < 0:
            return None
        chunks.append(chunk)
    return b"".join(chunks)


# --- what it means for the job ---------------------------------------------------------------------------------------------


def outcome_of(request: Request, found: Answer | Exception) -> Exception | None:
    """Return the outcome that an answer or an error calls for; None for an answer that it was done. No text shows URL or body."""
    if isinstance(found, Exception):
        return _outcome_of_error(request, found)
    subject, status = request.subject, found.status
    match status:
        case _ if 200 <= status <= 299 or status in request.known:
            return None
        case _ if 300 <= status <= 399:
            return Dead(f"{subject} answered {status}, and redirects are not followed", "redirect-refused")
        case 401 | 403 | 407 if request.is_ours:
            return wait_for_operator(subject, "auth-failed", f"the server answered {status}")
        case 429:
            wait_s = retry_after_s(found.headers.get("Retry-After", ""), time.time())
            return Snooze(wait_s or BUSY_S, f"rate-limited: {subject} answered 429")
        case 503 if (wait_s := retry_after_s(found.headers.get("Retry-After", ""), time.time())) is not None:
            return Snooze(wait_s, f"rate-limited: {subject} answered 503")
        case 408 | 425:
            return TemporaryFailure(f"timeout: {subject} answered {status}")
        case _ if status >= 500:
            return TemporaryFailure(f"http-5xx: {subject} answered {status}")
        case _:
            return Dead(f"{subject} answered {status}", "http-refused")


def _outcome_of_error(request: Request, error: Exception) -> Exception:
    subject = request.subject
    match error:
        case aiohttp.ClientSSLError():
            text = f"TLS: {_tls_reason(error)}"
            if request.is_ours:
                return wait_for_operator(subject, "auth-failed", text)
            return TemporaryFailure(f"connection-lost: {subject}: {text}")
        case aiohttp.ClientConnectorError(os_error=EgressBlocked()):
            hint = "hint: `private` and `ports` in its settings"
            return Dead(f"{subject}: its address or port must be one that is allowed; {hint}", "egress-blocked")
        case aiohttp.InvalidURL():
            return _bad_url(request, "must have a host in its usual form")
        case TimeoutError():
            return TemporaryFailure(f"timeout: {subject}: no answer within {TOTAL_S:g} s")
        case OSError(errno=int(number)) if number > 0:
            return TemporaryFailure(f"connection-lost: {subject}: {os.strerror(number)}")
        case _:
            return TemporaryFailure(f"connection-lost: {subject}: {type(error).__name__}")  # its text may show the URL


def _bad_url(request: Request, text: str) -> Exception:
    if request.is_ours:
        return wait_for_operator(request.subject, "alias-missing", f"url {text}")
    return Dead(f"{request.subject}: url {text}", "egress-blocked")


def _tls_reason(error: aiohttp.ClientSSLError) -> str:
    cause = error.certificate_error if isinstance(error, aiohttp.ClientConnectorCertificateError) else error.os_error
    return str(getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or type(cause).__name__)


def retry_after_s(text: str, now_s: float) -> float | None:
    """Return how long a server asks to wait, in seconds or until a date (RFC 9110), an hour at most; None if it does not say."""
    if _SECONDS.fullmatch(text):
        wait_s = float(text)
    else:
        try:
            date = parsedate_to_datetime(text)
            wait_s = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now_s
        except (ValueError, OverflowError):
            return None
    return min(max(wait_s, 1.0), MAX_RETRY_AFTER_S)
