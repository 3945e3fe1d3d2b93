"""Sending mail by SMTP: composing a letter, equal in every attempt, and pooled connections that send it.

A server's answers to a letter are data (`Receipt`); a failure of the connection is an exception, chosen by who must act on it:
`TemporaryFailure` if time may heal it, `Snooze` if the settings must be fixed.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from email.errors import MessageError
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP as SMTP_POLICY
from email.utils import format_datetime
from typing import Final, Self
from unicodedata import normalize

import aiosmtplib
import msgspec

from handlers.contracts.types import is_line
from handlers.kit.failures import BAD_PAYLOAD, TemporaryFailure, wait_for_operator
from handlers.kit.sections import Sender, Smtp
from runtime import ConfigError, Dead, Snooze

MAX_MESSAGES: Final = 100  # per connection, as Nodemailer's pool; many relays close a connection that carries more
IDLE_S: Final = 30.0  # a guess: far below the 5 minutes that RFC 5321 (4.5.3.2.7) has a server wait for a command
TAKE_S: Final = 20.0  # a guess: waiting for a connection must not use up the timeout of a job that has not begun
BUSY_S: Final = 5.0  # a guess: a job that found no connection comes back soon, since others end at any time
RSET_S: Final = 5.0  # a guess: RSET needs no work, so a server that is slower is as good as gone
DATA_S: Final = 40.0  # a guess: a server that scans mails is slow, and a missed answer means a second copy; below 60 s of the job
CLOSING_S: Final = 30.0  # a guess: after a 421, for the server to recover
CLOSING: Final = 421  # RFC 5321: the server is closing the connection
ACCESS: Final = frozenset({530, 534, 535, 538})  # RFC 4954: authentication is required, too weak, or failed
MAX_DATE_S: Final = 253_402_300_799.0  # 9999-12-31, the last day of Python's datetime
PLAIN_CHARS: Final = 66  # RFC 5322: a header line has at most 78 characters; 12 are left for its name
MAX_REPLY_CHARS: Final = 120  # a guess: a server's text as logs show it, a line at most
MAX_SHOWN: Final = 5  # a guess: addresses as logs show them, a line at most

POLICY: Final = SMTP_POLICY.clone(cte_type="7bit")  # passes every relay, with or without 8BITMIME
_ENHANCED: Final = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\d)")
_ADDRESS_IN_TEXT: Final = re.compile(r"[^\s<>()\[\],;:\"@]+@[^\s<>()\[\],;:\"@]+")


# --- the letter ----------------------------------------------------------------------------------------------------------


class Letter(msgspec.Struct, frozen=True):
    """A mail as it is sent: the envelope and the bytes."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes

    def __repr__(self) -> str:
        return f"<Letter to {shown(self.recipients)}, {len(self.content)} bytes>"


def compose(
    *,
    sender: Sender,
    to: Sequence[str],
    reply_to: str | None,
    subject: str,
    text: str,
    html: str | None,
    work: str,
    born_s: float,
) -> Letter:
    """Return the letter of a job: equal arguments make equal bytes. Date, Message-ID and boundary come from `born_s` and `work`.

    Raises:
        Dead: an address has no ASCII form, or the subject has more than one line.
        Snooze: the sender's address has no ASCII form; `alias-missing`.
    """
    if not is_line(subject):
        raise Dead("must be one line - at `$.subject`", BAD_PAYLOAD)
    author, recipients = _author(sender), _addresses(to, "to")
    message = EmailMessage(POLICY)
    headers = {
        "From": _mailbox(author),
        "To": _list(recipients),
        "Reply-To": _list(_addresses([reply_to], "reply_to")) if reply_to is not None else "",
        "Subject": _encoded(subject, "Subject"),
        "Date": format_datetime(datetime.fromtimestamp(min(born_s, MAX_DATE_S), UTC)),
        "Message-ID": f"<{work}@{author.domain}>",
    }
    for name, value in headers.items():
        if value or name == "Subject":
            message[name] = _Ready(name, value)
    message.set_content(text)
    if html is not None:
        message.make_alternative(boundary=f"=_{work}")  # a digest of the payload, so that the payload cannot contain it
        message.add_alternative(html, subtype="html")
    return Letter(author.addr_spec, tuple(each.addr_spec for each in recipients), message.as_bytes())


class _Ready(str):
    """A header's value that `email` takes as it is: it lets a value that has a `name` fold itself.

    Any other value it parses again, and decodes what looks like an encoded word: a line end that was hidden in one becomes a line
    end of the mail (CVE-2024-6923).
    """

    name: str

    def __new__(cls, name: str, value: str) -> Self:
        """Return the value, with the name of its header."""
        ready = super().__new__(cls, value)
        ready.name = name
        return ready

    def fold(self, *, policy: object) -> str:
        """Return the header with its line ends."""
        return f"{self.name}: {self}\r\n"


def _encoded(text: str, header: str) -> str:
    """Return one line of text in the form that a header takes: unchanged where that is safe, else as encoded words (RFC 2047)."""
    is_plain = text.isascii() and len(text) <= PLAIN_CHARS and "=?" not in text and text == " ".join(text.split())
    return text if is_plain else Header(text, "utf-8", 76, header).encode(linesep="\r\n")


def _mailbox(address: Address) -> str:
    """Return an address with its display name."""
    name = _encoded(address.display_name, "From")
    return str(address) if name == address.display_name else f"{name}\r\n <{address.addr_spec}>"


def _list(addresses: Sequence[Address]) -> str:
    return ",\r\n ".join(address.addr_spec for address in addresses)


def _author(sender: Sender) -> Address:
    try:
        return _address(sender.address, sender.name)
    except ValueError as error:
        raise wait_for_operator(f"sender {sender.address}", "alias-missing", str(error)) from None


def _addresses(texts: Sequence[str], field: str) -> list[Address]:
    """Return each address once, in order.

    Raises:
        Dead: one is not a plain address; the text names its position, not its value.
    """
    found: dict[str, Address] = {}
    for position, text in enumerate(texts):
        try:
            address = _address(text)
        except ValueError as error:
            raise Dead(f"{error} - at `$.{field}`, address {position + 1}", BAD_PAYLOAD) from None
        found.setdefault(address.addr_spec, address)
    return list(found.values())


def _address(text: str, name: str = "") -> Address:
    """Return the address with its domain in ASCII.

    Raises:
        ValueError: it is not one plain address; the text does not show it.
    """
    local, _, domain = text.rpartition("@")
    domain = domain if domain.isascii() else _idna(domain)
    try:
        return Address(name, addr_spec=f"{local}@{domain}")
    except (MessageError, ValueError, LookupError) as error:
        raise ValueError("must be one plain address") from error


def _idna(domain: str) -> str:
    """Return a domain in ASCII.

    Python's IDNA is that of 2003, which maps some letters to others (ß to ss), and the result may be a domain of another owner: a
    domain that does not decode to itself is refused.

    Raises:
        ValueError: it has no ASCII form, or not a certain one.
    """
    try:
        written = domain.encode("idna")
        if written.decode("idna") == normalize("NFC", domain).lower():
            return written.decode("ascii")
    except UnicodeError:
        pass
    raise ValueError("the domain has no certain ASCII form; hint: write it as xn--…")


def mask(address: str) -> str:
    """Return an address in the form that logs and errors may show: a***@example.org."""
    local, _, domain = address.rpartition("@")
    return f"{local[:1]}***@{domain}"


def shown(addresses: Sequence[str]) -> str:
    """Return the first addresses, masked, and the number of the rest."""
    rest = f" and {len(addresses) - MAX_SHOWN} more" if len(addresses) > MAX_SHOWN else ""
    return ", ".join(mask(address) for address in addresses[:MAX_SHOWN]) + rest


# --- answers of the server ----------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True):
    """One answer of a server, in a form that logs may show: `note` has no addresses."""

    code: int
    is_ok: bool
    note: str

    def __str__(self) -> str:
        return f"{self.code} {self.note}".strip()

    @property
    def is_final(self) -> bool:
        """Whether the refusal is permanent, so that a retry is pointless."""
        return not self.is_ok and 500 <= self.code <= 599


class Receipt(msgspec.Struct, frozen=True):
    """A server's answers to a letter. `content` is None where no recipient was accepted, so that nothing was sent."""

    envelope: Reply
    recipients: dict[str, Reply]
    content: Reply | None

    @property
    def replies(self) -> list[Reply]:
        """All answers, in the order of the conversation."""
        return [self.envelope, *self.recipients.values(), *([self.content] if self.content else [])]


async def _ask(verb: str, command: Awaitable[aiosmtplib.SMTPResponse]) -> Reply:
    """Return the server's answer.

    Raises:
        TemporaryFailure: the connection was lost, or the answer is not SMTP; `connection-lost`.
    """
    try:
        response = await command
    except aiosmtplib.SMTPResponseException as error:
        if error.code < 0:
            raise TemporaryFailure(f"connection-lost: the answer to {verb} is not SMTP") from error
        return Reply(error.code, False, _note(verb, error.message))
    except (aiosmtplib.SMTPException, OSError) as error:
        raise TemporaryFailure(f"connection-lost: at {verb}: {type(error).__name__}") from error
    return Reply(response.code, True, "")


def _note(verb: str, message: str) -> str:
    """Return what may be shown of an answer; of that to DATA, which may quote the mail, only the enhanced code (RFC 3463)."""
    if verb == "DATA":
        found = _ENHANCED.match(message)
        return found.group() if found else ""
    masked = _ADDRESS_IN_TEXT.sub(lambda found: mask(found.group()), message)
    return "".join(char if char.isprintable() else " " for char in masked)[:MAX_REPLY_CHARS]


async def _converse(client: aiosmtplib.SMTP, letter: Letter) -> Receipt:
    """Send one letter over an open connection: recipients one by one, then the content to those that were accepted."""
    options = [f"SIZE={len(letter.content)}"] if client.supports_extension("size") else []
    envelope = await _ask("MAIL", client.mail(letter.sender, options=options))
    recipients: dict[str, Reply] = {}
    if envelope.is_ok:
        for address in letter.recipients:
            recipients[address] = await _ask("RCPT", client.rcpt(address))
            if recipients[address].code == CLOSING:
                break
    is_closing = any(reply.code == CLOSING for reply in recipients.values())
    if is_closing or not any(reply.is_ok for reply in recipients.values()):
        return Receipt(envelope, recipients, None)
    patience_s = max(DATA_S, client.timeout or 0.0)
    return Receipt(envelope, recipients, await _ask("DATA", client.data(letter.content, timeout=patience_s)))


# --- connections ---------------------------------------------------------------------------------------------------------


class _Connection:
    """An open connection, with the number of letters sent over it, and the time since when it is idle."""

    __slots__ = ("client", "idle_since_s", "letters")

    def __init__(self, client: aiosmtplib.SMTP) -> None:
        self.client = client
        self.letters = 0
        self.idle_since_s = 0.0

    def quit(self) -> None:
        """Send QUIT and close, without waiting for the answer."""
        with contextlib.suppress(aiosmtplib.SMTPException):
            if self.client.protocol is not None:
                self.client.protocol.write(b"QUIT\r\n")
        self.client.close()


class Pool:
    """Owns the connections from one event loop to one mail server: at most as many as its settings allow, closed when idle."""

    def __init__(self, alias: str, smtp: Smtp) -> None:
        self.alias = alias
        self.smtp = smtp
        self._slots = asyncio.Semaphore(smtp.connections)
        self._idle: list[_Connection] = []
        self._closing_timer: asyncio.TimerHandle | None = None
        self._own_name = ""
        self._trust: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"<Pool {self.alias}: {len(self._idle)} idle, {self.smtp!r}>"

    async def send(self, letter: Letter) -> Receipt:
        """Send the letter and return the server's answers.

        Raises:
            TemporaryFailure: the server cannot be reached, or the connection was lost; the server may have accepted the letter.
            Snooze: the server refuses us, `auth-failed`; or all connections stay in use, `rate-limited`.
        """
        await self._enter()
        try:
            connection = await self._take()
            is_sound = False
            try:
                receipt = await _converse(connection.client, letter)
                is_sound = True  # after a 421 as well: whether the server has closed it, RSET will show
                return receipt
            finally:
                self._give_back(connection, is_sound)
        finally:
            self._slots.release()

    def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.quit()
        if self._closing_timer is not None:
            self._closing_timer.cancel()
            self._closing_timer = None

    async def _enter(self) -> None:
        try:
            async with asyncio.timeout(TAKE_S):
                await self._slots.acquire()
        except TimeoutError:
            raise Snooze(BUSY_S, f"rate-limited: smtp.{self.alias}: all {self.smtp.connections} connections are in use") from None

    async def _take(self) -> _Connection:
        """Return an open connection with an empty envelope: the last one used if it still answers, else a new one."""
        while self._idle:
            connection = self._idle.pop()
            is_sound = False
            try:
                is_sound = (await _ask("RSET", connection.client.rset(timeout=RSET_S))).is_ok
            except TemporaryFailure:
                self.close()  # the others have been idle for as long or longer, so they are lost as well
            finally:
                if not is_sound:
                    connection.client.close()
            if is_sound:
                return connection
        return await self._open()

    async def _open(self) -> _Connection:
        endpoint = self.smtp.endpoint
        try:
            password = self.smtp.read_password()
        except ConfigError as error:
            raise self._refused(f"password: {error}") from error
        if not self._own_name:
            self._own_name, self._trust = await asyncio.to_thread(_own_identity, self.smtp.plain)
        client = aiosmtplib.SMTP(
            hostname=endpoint.host,
            port=endpoint.port,
            username=endpoint.user or None,
            password=password,
            local_hostname=self._own_name,
            timeout=self.smtp.timeout_s,
            use_tls=endpoint.scheme == "smtps",
            start_tls=endpoint.scheme == "smtp+starttls",  # False, never None: with None, aiosmtplib falls back to plain text
            tls_context=self._trust,
        )
        is_open = False
        try:
            await client.connect()
            if client.is_ehlo_or_helo_needed:
                await client.ehlo()
            is_open = True
        except (aiosmtplib.SMTPException, OSError, UnicodeError) as error:
            raise self._why_closed(error) from error
        finally:
            if not is_open:
                client.close()
        return _Connection(client)

    def _give_back(self, connection: _Connection, is_sound: bool) -> None:
        connection.letters += 1
        if not is_sound or not connection.client.is_connected:
            connection.client.close()  # without QUIT, which in the middle of DATA would be part of the mail
            return
        if connection.letters >= MAX_MESSAGES:
            connection.quit()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self._idle.append(connection)
        if self._closing_timer is None:
            self._closing_timer = asyncio.get_running_loop().call_later(IDLE_S, self._close_idle)

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - IDLE_S
        stale = [each for each in self._idle if each.idle_since_s <= oldest_s]
        self._idle = [each for each in self._idle if each.idle_since_s > oldest_s]
        for connection in stale:
            connection.quit()
        self._closing_timer = loop.call_at(self._idle[0].idle_since_s + IDLE_S, self._close_idle) if self._idle else None

    def _why_closed(self, error: Exception) -> Exception:
        """Return the outcome for an error before MAIL, which is about us or the server, never about the job."""
        if isinstance(error, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError):
            return self._refused(f"TLS: {error.__cause__ or error}")
        match error:
            case aiosmtplib.SMTPResponseException(code=421):
                return Snooze(CLOSING_S, f"rate-limited: smtp.{self.alias} answered 421 on connecting")
            case aiosmtplib.SMTPResponseException(code=code) if 500 <= code <= 599 or self._is_starttls(error):
                return self._refused(f"the server refuses us with {code} {_note('connect', error.message)}")
            case aiosmtplib.SMTPResponseException(code=code):
                return TemporaryFailure(f"smtp.{self.alias} answered {code} on connecting")
            case OSError():
                return TemporaryFailure(f"smtp.{self.alias}: {error}")
            case _:  # the server offers no STARTTLS or no AUTH, or the host's name is invalid
                return self._refused(str(error))

    @staticmethod
    def _is_starttls(error: aiosmtplib.SMTPResponseException) -> bool:
        """Return whether STARTTLS was refused: aiosmtplib has no class for that refusal alone."""
        return type(error) is aiosmtplib.SMTPResponseException and error.code > 0

    def _refused(self, text: str) -> Snooze:
        return wait_for_operator(f"smtp.{self.alias}", "auth-failed", text)


def _own_identity(is_plain: bool) -> tuple[str, ssl.SSLContext | None]:
    """Return this host's name and the certificates it trusts. Blocks: for the resolver, and to read the certificates."""
    name = socket.getfqdn()
    is_name = name.isascii() and name.isprintable() and " " not in name
    return name if is_name and name else "localhost", None if is_plain else ssl.create_default_context()


_pools: dict[asyncio.AbstractEventLoop, dict[str, Pool]] = {}


def pool(alias: str, smtp: Smtp) -> Pool:
    """Return the running loop's pool for a mail server, replaced when its settings have changed."""
    loop = asyncio.get_running_loop()
    if loop not in _pools:
        for closed in [each for each in _pools if each.is_closed()]:
            del _pools[closed]
    pools = _pools.setdefault(loop, {})
    found = pools.get(alias)
    if found is None or found.smtp != smtp:
        if found is not None:
            found.close()
        found = pools[alias] = Pool(alias, smtp)
    return found


def close_pools() -> None:
    """Close the idle connections of the running loop."""
    for each in _pools.pop(asyncio.get_running_loop(), {}).values():
        each.close()
